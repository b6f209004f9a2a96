//! The writing side: a bounded queue, one writer thread, group commit, poisoning.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{fs, io};

use time::Date;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::entry::{self, Entry, StartEntry, StopEntry};
use super::frame::{Header, Kind, MAX_BODY, PER_SEGMENT};
use super::keys::PublicKey;
use super::recover::{RecoverError, Tail, recover};
use super::seal::{EpochKey, SealError, epoch_day};
use super::segment::{Disk, Medium, Segments, sync_dir};
use super::{AppendError, AuditConfig, JournalStatus, OpenError, Recorded, StartInfo, scan};
use crate::clock::{Clock, Timestamp};

/// The gateway's own access log, open for writing. Cheap to clone; the log ends with [`Journal::close`]. Dropping the
/// last handle writes what is queued and ends without a STOP entry, as a crash would.
#[derive(Clone, Debug)]
pub struct Journal {
    handle: Arc<Handle>,
}

impl Journal {
    /// Opens the log in `config.dir`, creating it if there is none, for this process alone. Recovers the end of the log,
    /// then writes an EPOCH and a START entry; both are durable when it returns. Blocks for disk work, and must be called
    /// within a tokio runtime, which will carry the answers.
    pub fn open(config: &AuditConfig, clock: Clock, start: StartInfo) -> Result<Self, OpenError> {
        Self::open_on(config, clock, start, Box::new(Disk))
    }

    pub(super) fn open_on(
        config: &AuditConfig,
        clock: Clock,
        start: StartInfo,
        medium: Box<dyn Medium>,
    ) -> Result<Self, OpenError> {
        config.check()?;
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| OpenError::NoRuntime)?;
        let recipients = config.load_recipients()?;
        let in_dir = |source| OpenError::Io { dir: config.dir.clone(), source };
        let lock = Arc::new(prepare_dir(config)?);
        let tail = recover(&config.dir).map_err(|error| match error {
            RecoverError::Io(source) => in_dir(source),
            RecoverError::Corrupt { index, what } => OpenError::Corrupt { dir: config.dir.clone(), index, what },
        })?;
        let segments = Segments::open(&config.dir, &tail, config.preallocate_mib << 20, medium).map_err(in_dir)?;
        let shared = Arc::new(Shared {
            origin: config.origin.as_str().into(),
            size: AtomicU64::new(tail.next),
            writable: AtomicBool::new(true),
            stop: Mutex::new(None),
        });
        let mut writer =
            Writer::start(shared.clone(), segments, clock, recipients, tail, start).map_err(|error| match error {
                WriteError::Io(source) => in_dir(source),
                WriteError::Seal(_) | WriteError::Epochs => OpenError::Seal,
            })?;

        let (queue, waiting) = mpsc::channel(config.queue);
        let (answers, mut batches) = mpsc::unbounded_channel::<Vec<(Waiter, Recorded)>>();
        // One wake-up of the runtime per batch; this task wakes the waiters from within.
        runtime.spawn(async move {
            while let Some(batch) = batches.recv().await {
                for (waiter, recorded) in batch {
                    // A waiter that went away is no matter: its entry is in the log.
                    drop(waiter.send(recorded));
                }
            }
        });
        let (limit, pace, held) = (config.batch, Duration::from_micros(config.pace_us), lock.clone());
        let thread = std::thread::Builder::new()
            .name("audit-writer".into())
            .spawn(move || {
                let _held = held;
                writer.run(waiting, &answers, limit, pace);
            })
            .map_err(in_dir)?;
        Ok(Self {
            handle: Arc::new(Handle {
                shared,
                queue: RwLock::new(Some(queue)),
                running: Mutex::new(Some(Running { thread, _lock: lock })),
                wait: Duration::from_millis(config.wait_ms),
            }),
        })
    }

    /// Writes one entry. `Ok` means it is durable: written and synced, at the place that the evidence names.
    ///
    /// On an error the entry may stand in the log or not, and the caller must answer without data. If the future is
    /// dropped after its first poll, the entry is written all the same.
    pub async fn append(&self, entry: Entry) -> Result<Recorded, AppendError> {
        let recorded = self.enqueue(entry)?;
        match tokio::time::timeout(self.handle.wait, recorded).await {
            Ok(Ok(recorded)) => Ok(recorded),
            Ok(Err(_)) => Err(AppendError::Unavailable),
            Err(_) => Err(AppendError::TooSlow),
        }
    }

    /// False once the log is closed or poisoned: every append is refused then.
    pub fn is_writable(&self) -> bool {
        self.handle.shared.writable.load(Ordering::Acquire)
    }

    /// Name, size and health of the log.
    pub fn status(&self) -> JournalStatus {
        let shared = &self.handle.shared;
        JournalStatus {
            origin: shared.origin.clone(),
            size: shared.size.load(Ordering::Acquire),
            writable: self.is_writable(),
        }
    }

    /// Ends the log in order: what is queued is written, then a STOP entry with `reason`; later appends are refused.
    /// Blocks until that is durable or has failed. Does nothing a second time.
    pub fn close(&self, reason: &str) {
        let mut running = lock(&self.handle.running);
        let Some(Running { thread, _lock }) = running.take() else { return };
        *lock(&self.handle.shared.stop) = Some(reason.to_owned());
        // Without a sender the writer drains the queue and ends.
        self.handle.queue.write().unwrap_or_else(PoisonError::into_inner).take();
        if thread.join().is_err() {
            tracing::error!("access log: the writer ended abnormally");
        }
    }

    fn enqueue(&self, entry: Entry) -> Result<oneshot::Receiver<Recorded>, AppendError> {
        if !self.is_writable() {
            return Err(AppendError::Unavailable);
        }
        let (kind, body) = entry::encode(entry);
        debug_assert!(body.len() <= MAX_BODY, "the encoder keeps its bounds");
        let (waiter, recorded) = oneshot::channel();
        let queue = self.handle.queue.read().unwrap_or_else(PoisonError::into_inner);
        let sender = queue.as_ref().ok_or(AppendError::Unavailable)?;
        sender.try_send((Plain { kind, body }, waiter)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => AppendError::Full,
            mpsc::error::TrySendError::Closed(_) => AppendError::Unavailable,
        })?;
        Ok(recorded)
    }
}

type Waiter = oneshot::Sender<Recorded>;

/// What every clone of a journal shares.
#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    /// None once closed.
    queue: RwLock<Option<mpsc::Sender<(Plain, Waiter)>>>,
    /// None once closed.
    running: Mutex<Option<Running>>,
    wait: Duration,
}

#[derive(Debug)]
struct Running {
    thread: JoinHandle<()>,
    /// Held by the writer, too: a poisoned log stays locked while the process lives.
    _lock: Arc<File>,
}

/// What handles and writer share.
#[derive(Debug)]
struct Shared {
    origin: Arc<str>,
    /// Durable entries.
    size: AtomicU64,
    writable: AtomicBool,
    /// Why the log is closed, once it is.
    stop: Mutex<Option<String>>,
}

/// An entry before it has its place.
#[derive(Debug)]
struct Plain {
    kind: Kind,
    body: Vec<u8>,
}

/// The one who writes.
struct Writer {
    shared: Arc<Shared>,
    segments: Segments,
    clock: Clock,
    recipients: Vec<PublicKey>,
    epoch: EpochKey,
    /// The day the epoch's key is for.
    day: Date,
    /// Index of the next entry.
    next: u64,
    buffer: Vec<u8>,
}

/// What poisons the log.
#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error("epoch numbers are used up")]
    Epochs,
}

impl Writer {
    /// A writer whose EPOCH and START entries are durable.
    fn start(
        shared: Arc<Shared>,
        segments: Segments,
        clock: Clock,
        recipients: Vec<PublicKey>,
        tail: Tail,
        info: StartInfo,
    ) -> Result<Self, WriteError> {
        let now = clock.now();
        // Above every number the log holds, and a random key: no nonce was ever used with it.
        let number = tail.epoch.checked_add(1).ok_or(WriteError::Epochs)?;
        let (epoch, wrapped) = EpochKey::generate(number, &shared.origin, &recipients)?;
        let (day, next) = (epoch_day(now), tail.next);
        let mut writer = Self { shared, segments, clock, recipients, epoch, day, next, buffer: Vec::new() };
        let start = Entry::Start(StartEntry {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            gateway: info.gateway,
            policy: info.policy,
            recovered: tail.next,
        });
        let (kind, body) = entry::encode(start);
        let first = Plain { kind: Kind::EPOCH, body: wrapped };
        writer.commit(now, &mut vec![(first, ()), (Plain { kind, body }, ())], drop)?;
        Ok(writer)
    }

    /// Writes batch after batch until the queue is closed and empty, or the first error.
    fn run(
        &mut self,
        mut queue: mpsc::Receiver<(Plain, Waiter)>,
        answers: &mpsc::UnboundedSender<Vec<(Waiter, Recorded)>>,
        limit: usize,
        pace: Duration,
    ) {
        /// Entries in one batch that tell a busy log from a quiet one.
        const BUSY: usize = 4;
        let _closed = Closed(self.shared.clone());
        let mut batch = Vec::new();
        let answer = |done| drop(answers.send(done));
        // When the next write of a busy log is due.
        let mut due: Option<Instant> = None;
        while queue.blocking_recv_many(&mut batch, limit) > 0 {
            let early = due.and_then(|due| due.checked_duration_since(Instant::now()));
            if let Some(early) = early.filter(|_| batch.len() < limit) {
                pause(early);
                while batch.len() < limit
                    && let Ok(entry) = queue.try_recv()
                {
                    batch.push(entry);
                }
            }
            due = (batch.len() >= BUSY).then(|| Instant::now() + pace);
            if let Err(error) = self.write(&mut batch, answer) {
                // After a failed sync nobody knows what is on the disk, and asking again would only seem to help. All
                // who wait find their channel closed.
                self.shared.writable.store(false, Ordering::Release);
                tracing::error!(%error, size = self.next, "access log: poisoned until restart");
                return;
            }
        }
        let reason = lock(&self.shared.stop).take();
        if let Some(reason) = reason {
            let (kind, body) = entry::encode(Entry::Stop(StopEntry { reason }));
            if let Err(error) = self.write(&mut vec![(Plain { kind, body }, ())], drop) {
                tracing::error!(%error, size = self.next, "access log: no STOP entry");
            }
        }
    }

    /// Writes a batch, on a new day after a new EPOCH entry.
    fn write<T>(&mut self, batch: &mut Vec<(Plain, T)>, answer: impl Fn(Vec<(T, Recorded)>)) -> Result<(), WriteError> {
        let now = self.clock.now();
        let day = epoch_day(now);
        if day != self.day {
            let number = self.epoch.number().checked_add(1).ok_or(WriteError::Epochs)?;
            let (epoch, body) = EpochKey::generate(number, &self.shared.origin, &self.recipients)?;
            (self.epoch, self.day) = (epoch, day);
            self.commit(now, &mut vec![(Plain { kind: Kind::EPOCH, body }, ())], drop)?;
        }
        self.commit(now, batch, answer)
    }

    /// Seals, writes and syncs a batch, in two parts if it crosses into the next segment, then answers.
    fn commit<T>(
        &mut self,
        time: Timestamp,
        batch: &mut Vec<(Plain, T)>,
        answer: impl Fn(Vec<(T, Recorded)>),
    ) -> Result<(), WriteError> {
        while !batch.is_empty() {
            let room = usize::try_from(PER_SEGMENT - self.next % PER_SEGMENT).unwrap_or(1);
            let first = self.next;
            let mut sealed = Vec::with_capacity(batch.len().min(room));
            let placed = self.place(time, batch.drain(..batch.len().min(room)), &mut sealed);
            if placed.is_err() {
                // Said before those who wait hear of it: their channels close with `sealed`.
                self.shared.writable.store(false, Ordering::Release);
            }
            placed?;
            // Durable from here on: the one place where evidence is made.
            self.next = first + sealed.len() as u64;
            self.shared.size.store(self.next, Ordering::Release);
            let origin = &self.shared.origin;
            let recorded = sealed.into_iter().map(|(waiter, index, leaf_hash)| {
                (waiter, Recorded { origin: origin.clone(), index, time, leaf_hash })
            });
            answer(recorded.collect());
        }
        Ok(())
    }

    /// Makes the entries of one batch durable; who waits for each, its index and its leaf hash go to `sealed`.
    fn place<T>(
        &mut self,
        time: Timestamp,
        batch: impl Iterator<Item = (Plain, T)>,
        sealed: &mut Vec<(T, u64, [u8; 32])>,
    ) -> Result<(), WriteError> {
        /// Memory kept for the next batch, in bytes.
        const KEEP: usize = 4 << 20;
        self.buffer.clear();
        self.buffer.shrink_to(KEEP);
        for ((mut plain, waiter), batch_pos) in batch.zip(0u32..) {
            let seq = self.next + u64::from(batch_pos);
            let header = Header { kind: plain.kind, epoch: self.epoch.number(), seq, batch_pos, time };
            let leaf = self.epoch.put(&mut self.buffer, &header, &mut plain.body)?;
            sealed.push((waiter, seq, leaf));
        }
        self.segments.advance_to(self.next / PER_SEGMENT)?;
        self.segments.append(&self.buffer)?;
        Ok(())
    }
}

/// Says that nothing is written any more, however the writer ends.
struct Closed(Arc<Shared>);

impl Drop for Closed {
    fn drop(&mut self) {
        self.0.writable.store(false, Ordering::Release);
    }
}

/// Creates the directory, takes its lock and checks that the log in it is the one meant. Returns the lock.
fn prepare_dir(config: &AuditConfig) -> Result<File, OpenError> {
    let dir = config.dir.as_path();
    let failed = |source| OpenError::Io { dir: dir.into(), source };
    create_dir(dir).map_err(failed)?;
    let lock = File::options().write(true).create(true).truncate(false).open(dir.join("lock")).map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => return Err(OpenError::Locked { dir: dir.into() }),
        Err(fs::TryLockError::Error(error)) => return Err(failed(error)),
    }
    let name = dir.join(ORIGIN_FILE);
    if scan::segments(dir).map_err(failed)?.is_empty() {
        fs::write(&name, &config.origin).map_err(failed)?;
        File::open(&name).and_then(|file| file.sync_all()).map_err(failed)?;
        sync_dir(dir).map_err(failed)?;
    } else if fs::read_to_string(&name).map_err(failed)? != config.origin {
        return Err(OpenError::Origin { dir: dir.into() });
    }
    Ok(lock)
}

/// Holds the log's origin: wrapped keys open only under it.
pub(super) const ORIGIN_FILE: &str = "origin";

fn create_dir(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o750).create(dir)?;
    match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_dir(parent),
        _ => Ok(()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[expect(clippy::disallowed_methods, reason = "the writer's own thread, not a worker of the runtime")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}
