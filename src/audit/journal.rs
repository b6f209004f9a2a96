//! The writing side as others see it: opening, a bounded queue, keys that change, state, the end.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{fs, io};

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot, watch};

use super::checkpoint::{Checkpoint, Tree};
use super::entry::{self, Entry};
use super::files::read_origin;
use super::frame::MAX_BODY;
use super::keyring::{Keyring, Keys, RotateError};
use super::keys::PublicKey;
use super::medium::{Disk, Medium, Open};
use super::merkle::Frontier;
use super::note::{Signature, SigningKey};
use super::publisher::{CHECKPOINT, Order, Published, Publisher, WITNESSED, read_checkpoint};
use super::receipt::{self, Decided};
use super::recover::{RecoverError, Tail, recover};
use super::segment::{self, Segments, clear_ready};
use super::writer::{Plain, Waiter, WriteError, Writer};
use super::{AppendError, AuditConfig, JournalStatus, OpenError, Recorded, StartInfo, prune, rotation, scan};
use crate::clock::{Clock, Timestamp};
use crate::watched::Rotation;

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
        let disk: Arc<dyn Medium> = Arc::new(Disk);
        Self::open_on(config, clock, start, &disk)
    }

    pub(super) fn open_on(
        config: &AuditConfig,
        clock: Clock,
        start: StartInfo,
        medium: &Arc<dyn Medium>,
    ) -> Result<Self, OpenError> {
        config.check()?;
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| OpenError::NoRuntime)?;
        // Before they are read: a change meanwhile is seen.
        let keyring = Keyring::new(config, clock.now());
        let in_dir = |source| OpenError::io(&config.dir, source);
        let lock = Arc::new(prepare_dir(config, medium.as_ref())?);
        let Keys { signing: keys, recipients } = Keys::load(config)?;
        let Floor { mut trees, handover, checkpoint } = Floor::of(config, &keys)?;
        trees.extend_from_slice(&start.held);
        let tail = recover(&config.dir, &trees, medium.as_ref()).map_err(|error| {
            let dir = config.dir.clone();
            match error {
                RecoverError::Io(source) => OpenError::io(&dir, source),
                RecoverError::Corrupt { index, what } => OpenError::Corrupt { dir, index, what },
                RecoverError::Rollback { size, signed } => OpenError::Rollback { dir, size, signed },
                RecoverError::Fork { size } => OpenError::Fork { dir, size },
            }
        })?;
        // The first checkpoint is made right after the first batch: a crash between the two is all that leaves none.
        if !checkpoint && tail.last_batch > 0 {
            return Err(OpenError::NoCheckpoint { dir: config.dir.clone(), size: tail.next });
        }
        clear_ready(&config.dir, tail.segment, medium.as_ref()).map_err(in_dir)?;
        let step = config.preallocate_mib << 20;
        let segments = Segments::open(&config.dir, &tail, step, medium.clone()).map_err(in_dir)?;
        let mut first = Vec::new();
        if tail.next == 0 {
            first.extend(config.load_continued()?.map(|note| Entry::Continues(note.to_string())));
        }
        first.extend(handover.map(Entry::LogKey));
        let authorization = config.load_prune_authorization()?.map(|note| note.to_string());
        if let Some(text) = &authorization
            && !prune::stands_in(&config.dir, text, tail.next).map_err(in_dir)?
        {
            first.push(Entry::PruneAuth(text.clone()));
        }
        let key = keys.first().cloned().ok_or(OpenError::Option("signing_key: there is none"))?;
        let shared = Arc::new(Shared::new(config, &tail, keys));
        let (latest, checkpoints) = watch::channel(None);
        let mut publisher = Publisher::new(config, medium.clone(), clock.clone(), shared.clone(), latest)?;
        let mut publish = || {
            publisher.tick();
            let failed = checkpoints.borrow().is_none();
            if failed { Err(in_dir(io::Error::other("the first checkpoint can't be written"))) } else { Ok(()) }
        };
        if !checkpoint && tail.next > 0 {
            publish()?;
        }
        let mut writer = Writer::start(shared.clone(), segments, clock.clone(), recipients, &tail, start, first)
            .map_err(|error| match error {
                WriteError::Seal(_) | WriteError::Epochs => OpenError::Seal,
                WriteError::Segment(segment::WriteError::Broken(source)) => in_dir(source),
                WriteError::Segment(segment::WriteError::NoSpace) => in_dir(io::ErrorKind::StorageFull.into()),
            })?;
        if let Some(text) = &authorization {
            prune::recorded(&config.dir, text, medium.as_ref()).map_err(in_dir)?;
        }
        publish()?;

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
        let (orders, taken) = std::sync::mpsc::channel();
        let (every, held) = (Duration::from_millis(config.checkpoint_ms), lock.clone());
        let publishing = std::thread::Builder::new()
            .name("audit-publisher".into())
            .spawn(move || {
                let _held = held;
                publisher.run(&taken, every);
            })
            .map_err(in_dir)?;
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
                running: Mutex::new(Some(Running { thread, publishing, orders, _lock: lock })),
                checkpoints,
                key: ArcSwap::new(key),
                keyring,
                clock,
                wait: Duration::from_millis(config.wait_ms),
            }),
        })
    }

    /// Writes one entry. `Ok` means it is durable: written and synced, at the place that the evidence names.
    ///
    /// On an error the entry may stand in the log or not, and the caller must answer without data. If the future is
    /// dropped after its first poll, the entry is written all the same.
    pub async fn append(&self, entry: Entry) -> Result<Recorded, AppendError> {
        self.queue(entry, false)?.durable().await
    }

    /// Hands an entry to the writer. It will be written unless the log fails, whether or not anybody waits for it. With
    /// `sign`, the receipt of an access record will be signed: some 20 µs more, on the task that waits.
    ///
    /// # Errors
    /// If it is not taken; then it will not stand in the log.
    pub fn queue(&self, entry: Entry, sign: bool) -> Result<Pending, AppendError> {
        let decided = match &entry {
            Entry::Access(access) if sign => Some(Decided::of(access)),
            _ => None,
        };
        Ok(Pending { recorded: self.enqueue(entry)?, decided, handle: self.handle.clone() })
    }

    /// The longest wait for an entry to become durable (`audit.wait_ms`).
    pub fn longest_wait(&self) -> Duration {
        self.handle.wait
    }

    /// Uses the keys as their files are now, if they changed and are in order; otherwise those from before are used on.
    /// `None` if there is nothing to do.
    ///
    /// Another `signing_key` is handed over to with a `LOG_KEY` entry, which is durable before the new key signs anything,
    /// and every checkpoint over it bears the new key's signature; the one before must be in `previous_signing_key`, and signs checkpoints, too, until that file is gone. Receipts are
    /// signed by the new key alone. Other recipients can read what is written from now on.
    pub async fn follow(&self) -> Option<Result<(), RotateError>> {
        let handle = self.handle.clone();
        let keys = tokio::task::spawn_blocking(move || handle.keyring.look()).await.ok()??;
        let taken = match keys {
            Ok(keys) => self.take(keys).await,
            Err(error) => Err(error.into()),
        };
        self.handle.keyring.told(&taken, &self.handle.clock);
        Some(taken)
    }

    async fn take(&self, Keys { signing, recipients }: Keys) -> Result<(), RotateError> {
        let handle = &self.handle;
        let before = handle.key.load_full();
        let Some(next) = signing.first().cloned() else { return Err(RotateError::Unvouched) };
        if next.verifier() != before.verifier() {
            if !signing.iter().any(|key| key.verifier() == before.verifier()) {
                return Err(RotateError::Unvouched);
            }
            let handover = rotation::handover(&handle.shared.origin, &before, next.verifier());
            *lock(&handle.shared.next_keys) = Some(signing.clone());
            self.append(Entry::LogKey(handover)).await?;
            handle.key.store(next);
        }
        lock(&handle.shared.signable).keys = signing;
        *lock(&handle.shared.recipients) = Some(recipients);
        Ok(())
    }

    /// How the rotation of the log's keys stands.
    pub fn rotation(&self) -> Rotation {
        self.handle.keyring.rotation()
    }

    /// False once the log is closed or poisoned, and while a full disk or absent witnesses stop it: every append is
    /// refused then.
    pub fn is_writable(&self) -> bool {
        let shared = &self.handle.shared;
        shared.writable.load(Ordering::Acquire) && !shared.refuses()
    }

    /// The latest checkpoint; it changes about once a second while entries arrive.
    pub fn checkpoints(&self) -> watch::Receiver<Option<Arc<Published>>> {
        self.handle.checkpoints.clone()
    }

    /// Takes no further entry until a restart: somebody who remembers this log better showed that it is not what it was.
    pub fn refute(&self, by: Refuted) {
        let shared = &self.handle.shared;
        let (flag, what) = match by {
            Refuted::Shorter => (&shared.shorter, "no entry is taken: a witness holds more of this log"),
            Refuted::Other => (&shared.other, "no entry is taken: a witness holds another past of this log"),
        };
        Publisher::alarm(flag, true, what);
    }

    /// One witness begins, or ceases, to say that it holds more, or another past, of this log, and does not show it.
    pub fn doubted(&self, doubted: bool) {
        let doubts = &self.handle.shared.doubts;
        if doubted {
            doubts.fetch_add(1, Ordering::AcqRel)
        } else {
            doubts.fetch_sub(1, Ordering::AcqRel)
        };
    }

    /// Hands in a witness's cosignatures of the checkpoint with this tree; those that are not valid are dropped.
    pub fn cosigned(&self, tree: Tree, signatures: Vec<Signature>) {
        self.order(Order::Cosigned(tree, signatures));
    }

    /// Signs a checkpoint now instead of within the second.
    pub fn publish(&self) {
        self.order(Order::Publish);
    }

    fn order(&self, order: Order) {
        if let Some(running) = lock(&self.handle.running).as_ref() {
            // Its receiver is gone only when the log is closed.
            let _ = running.orders.send(order);
        }
    }

    /// Name, size and health of the log.
    pub fn status(&self) -> JournalStatus {
        let shared = &self.handle.shared;
        JournalStatus {
            origin: shared.origin.clone(),
            size: shared.size.load(Ordering::Acquire),
            writable: self.is_writable(),
            signed: self.handle.checkpoints.borrow().as_ref().map_or(0, |latest| latest.tree.size),
            witnessed_at: Some(shared.witnessed_us.load(Ordering::Acquire))
                .filter(|time| *time > 0)
                .map(Timestamp::from_micros),
            disk_percent: shared.disk_percent.load(Ordering::Acquire),
            alarms: shared.alarms(),
        }
    }

    /// Ends the log in order: what is queued is written, then a STOP entry with `reason`, then a checkpoint over all;
    /// later appends are refused. Blocks until that is durable or has failed. Does nothing a second time.
    pub fn close(&self, reason: &str) {
        let mut running = lock(&self.handle.running);
        let Some(Running { thread, publishing, orders, _lock }) = running.take() else { return };
        *lock(&self.handle.shared.stop) = Some(reason.to_owned());
        // Without a sender the writer drains the queue and ends.
        self.handle.queue.write().unwrap_or_else(PoisonError::into_inner).take();
        if thread.join().is_err() {
            tracing::error!("access log: the writer ended abnormally");
        }
        // The publisher ends when it has done this and the sender is gone.
        let _ = orders.send(Order::Publish);
        drop(orders);
        if publishing.join().is_err() {
            tracing::error!("access log: the publisher ended abnormally");
        }
    }

    fn enqueue(&self, entry: Entry) -> Result<oneshot::Receiver<Recorded>, AppendError> {
        if !self.handle.shared.writable.load(Ordering::Acquire) {
            return Err(AppendError::Unavailable);
        }
        if self.handle.shared.refuses() {
            return Err(AppendError::Refused);
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

/// An entry that the writer has taken.
#[derive(Debug)]
pub struct Pending {
    recorded: oneshot::Receiver<Recorded>,
    /// What a signed receipt is to say.
    decided: Option<Decided>,
    handle: Arc<Handle>,
}

impl Pending {
    /// Waits until the entry is durable, at most [`Journal::longest_wait`].
    ///
    /// # Errors
    /// [`AppendError::TooSlow`] if it is not yet: then the entry may still be written, which [`Pending::in_the_end`] tells.
    /// [`AppendError::Unavailable`] if nobody will know.
    pub async fn durable(&mut self) -> Result<Recorded, AppendError> {
        let mut recorded = match tokio::time::timeout(self.handle.wait, &mut self.recorded).await {
            Ok(Ok(recorded)) => recorded,
            Ok(Err(_)) => return Err(AppendError::Unavailable),
            Err(_) => return Err(AppendError::TooSlow),
        };
        let sign = |decided: &Decided| receipt::sign(&self.handle.key.load(), &recorded, decided).into();
        recorded.signed = self.decided.as_ref().map(sign);
        Ok(recorded)
    }

    /// What became of an entry that was not durable in time, however long that takes; `None` if nobody will know.
    pub async fn in_the_end(self) -> Option<Recorded> {
        self.recorded.await.ok()
    }
}

/// What every clone of a journal shares.
#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    /// None once closed.
    queue: RwLock<Option<mpsc::Sender<(Plain, Waiter)>>>,
    /// None once closed.
    running: Mutex<Option<Running>>,
    checkpoints: watch::Receiver<Option<Arc<Published>>>,
    /// Signs receipts.
    key: ArcSwap<SigningKey>,
    keyring: Keyring,
    clock: Clock,
    wait: Duration,
}

#[derive(Debug)]
struct Running {
    thread: JoinHandle<()>,
    publishing: JoinHandle<()>,
    orders: std::sync::mpsc::Sender<Order>,
    /// Held by the writer, too: a poisoned log stays locked while the process lives.
    _lock: Arc<File>,
}

/// What handles, writer and publisher share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) origin: Arc<str>,
    /// Durable entries.
    pub(super) size: AtomicU64,
    /// What a checkpoint is made of.
    pub(super) signable: Mutex<Signable>,
    /// Keys that sign from the `LOG_KEY` entry on that is being written.
    pub(super) next_keys: Mutex<Option<Vec<Arc<SigningKey>>>>,
    pub(super) writable: AtomicBool,
    /// The writer found no room for an entry.
    pub(super) no_space: AtomicBool,
    /// The disk is so full that no entry is taken; or alarmingly full.
    pub(super) disk_refuses: AtomicBool,
    pub(super) disk_alarm: AtomicBool,
    pub(super) disk_percent: AtomicU8,
    /// No checkpoint can be written.
    pub(super) unpublished: AtomicBool,
    /// No witness has cosigned for too long; for so long that no entry is taken.
    pub(super) unwitnessed: AtomicBool,
    pub(super) unwitnessed_stop: AtomicBool,
    /// When a witness last cosigned, in microseconds; 0 for never.
    pub(super) witnessed_us: AtomicU64,
    /// A witness showed that this log was rolled back; or rewritten. Until a restart no entry is taken.
    shorter: AtomicBool,
    other: AtomicBool,
    /// Witnesses that say so and do not show it.
    doubts: AtomicUsize,
    /// Why the log is closed, once it is.
    pub(super) stop: Mutex<Option<String>>,
    /// Recipients that the writer does not know yet.
    pub(super) recipients: Mutex<Option<Vec<PublicKey>>>,
}

/// The durable entries and who signs for them, which change together: a checkpoint over a `LOG_KEY` entry is signed by the
/// key that it hands over to.
#[derive(Debug)]
pub(super) struct Signable {
    pub(super) frontier: Frontier,
    /// The key that signs; then the one before, while a rotation lasts.
    pub(super) keys: Vec<Arc<SigningKey>>,
}

/// How a log is known not to be the one that it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refuted {
    /// It was rolled back: somebody holds more entries of it.
    Shorter,
    /// It was rewritten: somebody holds others.
    Other,
}

impl Shared {
    fn new(config: &AuditConfig, tail: &Tail, keys: Vec<Arc<SigningKey>>) -> Self {
        let flag = || AtomicBool::new(false);
        Self {
            origin: config.origin.as_str().into(),
            size: AtomicU64::new(tail.next),
            signable: Mutex::new(Signable { frontier: tail.frontier.clone(), keys }),
            next_keys: Mutex::new(None),
            writable: AtomicBool::new(true),
            no_space: flag(),
            disk_refuses: flag(),
            disk_alarm: flag(),
            disk_percent: AtomicU8::new(0),
            unpublished: flag(),
            unwitnessed: flag(),
            unwitnessed_stop: flag(),
            witnessed_us: AtomicU64::new(0),
            shorter: flag(),
            other: flag(),
            doubts: AtomicUsize::new(0),
            stop: Mutex::new(None),
            recipients: Mutex::new(None),
        }
    }

    /// True while entries are refused.
    fn refuses(&self) -> bool {
        let flags = [&self.no_space, &self.disk_refuses, &self.unwitnessed_stop];
        self.is_refuted() || flags.iter().any(|flag| flag.load(Ordering::Acquire))
    }

    /// True once a witness showed that this log is not what it was.
    pub(super) fn is_refuted(&self) -> bool {
        self.shorter.load(Ordering::Acquire) || self.other.load(Ordering::Acquire)
    }

    fn alarms(&self) -> Vec<&'static str> {
        let flags = [
            (&self.shorter, "rolled back, a witness holds more: no entry is taken"),
            (&self.other, "rewritten, a witness holds another past: no entry is taken"),
            (&self.no_space, "no space left for entries"),
            (&self.disk_refuses, "the disk is nearly full: no entry is taken"),
            (&self.disk_alarm, "the disk fills up"),
            (&self.unpublished, "no checkpoint can be written"),
            (&self.unwitnessed_stop, "no witness cosigns: no entry is taken"),
            (&self.unwitnessed, "no witness cosigns"),
        ];
        let doubted = self.doubts.load(Ordering::Acquire) > 0;
        let doubted = doubted.then_some("a witness says that it holds more, or another past, and does not show it");
        let raised = flags.into_iter().filter(|(flag, _)| flag.load(Ordering::Acquire)).map(|(_, what)| what);
        raised.chain(doubted).collect()
    }
}

/// What the log's own files say that it must contain.
struct Floor {
    trees: Vec<Tree>,
    /// If the checkpoint was signed by the key before: the entry that hands over to the new one.
    handover: Option<String>,
    /// True if there is a checkpoint.
    checkpoint: bool,
}

impl Floor {
    fn of(config: &AuditConfig, keys: &[Arc<SigningKey>]) -> Result<Self, OpenError> {
        let mut floor = Self { trees: Vec::new(), handover: None, checkpoint: false };
        let wrong = |name, what| OpenError::Checkpoint { dir: config.dir.clone(), name, what };
        let read = |name| {
            let Some(note) = read_checkpoint(&config.dir, name)? else { return Ok(None) };
            let checkpoint = Checkpoint::of(&note).map_err(|_| wrong(name, "not a checkpoint"))?;
            if checkpoint.origin == config.origin {
                Ok(Some((note, checkpoint.tree)))
            } else {
                Err(wrong(name, "of another log"))
            }
        };
        // Who signed it may have gone since. Whatever stands there, a log that does not contain it is not continued.
        floor.trees.extend(read(WITNESSED)?.map(|(_, tree)| tree));
        let Some((note, tree)) = read(CHECKPOINT)? else { return Ok(floor) };
        floor.checkpoint = true;
        floor.trees.push(tree);
        let mut keys = keys.iter();
        let current = keys.next().ok_or_else(|| wrong(CHECKPOINT, "no key signs this log"))?;
        if current.verifier().verify(&note).is_none() {
            let before = keys.next().filter(|key| key.verifier().verify(&note).is_some());
            let unsigned = "not signed by audit.signing_key or previous_signing_key";
            let before = before.ok_or_else(|| wrong(CHECKPOINT, unsigned))?;
            floor.handover = Some(rotation::handover(&config.origin, before, current.verifier()));
        }
        Ok(floor)
    }
}

/// Creates the directory, takes its lock and checks that the log in it is the one meant. Returns the lock.
fn prepare_dir(config: &AuditConfig, medium: &dyn Medium) -> Result<File, OpenError> {
    let dir = config.dir.as_path();
    let failed = |source| OpenError::io(dir, source);
    create_dir(dir, medium).map_err(failed)?;
    let lock = medium.open(&dir.join("lock"), Open::OrMade).map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => return Err(OpenError::Locked { dir: dir.into() }),
        Err(fs::TryLockError::Error(error)) => return Err(failed(error)),
    }
    if scan::segments(dir).map_err(failed)?.is_empty() {
        medium.replace(dir, ORIGIN_FILE, config.origin.as_bytes()).map_err(failed)?;
    } else if read_origin(dir).map_err(failed)? != config.origin {
        return Err(OpenError::Origin { dir: dir.into() });
    }
    Ok(lock)
}

/// Holds the log's origin: wrapped keys open only under it.
pub(crate) const ORIGIN_FILE: &str = "origin";

fn create_dir(dir: &Path, medium: &dyn Medium) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o750).create(dir)?;
    match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => medium.sync_dir(parent),
        _ => Ok(()),
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
