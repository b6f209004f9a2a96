//! The one thread that writes entries: batches, their seals, the epoch's key, and the end of it all at the first error.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use time::Date;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::entry::{self, Entry, StartEntry, StopEntry};
use super::frame::{HEADER, Header, Kind, LENGTH, PER_SEGMENT, TAG};
use super::journal::{Shared, lock};
use super::keys::PublicKey;
use super::recover::Tail;
use super::seal::{EpochKey, SealError, epoch_day};
use super::segment::{self, Segments};
use super::{Recorded, StartInfo};
use crate::clock::{Clock, Timestamp};

/// Who waits for an entry.
pub(super) type Waiter = oneshot::Sender<Recorded>;

/// An entry before it has its place.
#[derive(Debug)]
pub(super) struct Plain {
    pub(super) kind: Kind,
    pub(super) body: Vec<u8>,
}

/// The one who writes.
pub(super) struct Writer {
    shared: Arc<Shared>,
    segments: Segments,
    clock: Clock,
    recipients: Vec<PublicKey>,
    epoch: EpochKey,
    /// The day the epoch's key is for.
    day: Date,
    /// The epoch's key was wrapped for other recipients.
    renew: bool,
    /// Index of the next entry.
    next: u64,
    buffer: Vec<u8>,
}

/// Why a batch was not written. All but a want of space poisons the log.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    #[error(transparent)]
    Segment(#[from] segment::WriteError),
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error("epoch numbers are used up")]
    Epochs,
}

impl Writer {
    /// A writer whose EPOCH and START entries, and those of `first`, are durable.
    pub(super) fn start(
        shared: Arc<Shared>,
        segments: Segments,
        clock: Clock,
        recipients: Vec<PublicKey>,
        tail: &Tail,
        info: StartInfo,
        first: Vec<Entry>,
    ) -> Result<Self, WriteError> {
        let now = clock.now();
        // Above every number the log holds, and a random key: no nonce was ever used with it.
        let number = tail.epoch.checked_add(1).ok_or(WriteError::Epochs)?;
        let (epoch, wrapped) = EpochKey::generate(number, &shared.origin, &recipients)?;
        let (day, next) = (epoch_day(now), tail.next);
        let mut writer =
            Self { shared, segments, clock, recipients, epoch, day, renew: false, next, buffer: Vec::new() };
        let start = Entry::Start(StartEntry {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            gateway: info.gateway,
            policy: info.policy,
            policy_keys: info.policy_keys,
            recovered: tail.next,
            trust: info.trust,
        });
        let plain = |entry| {
            let (kind, body) = entry::encode(entry);
            (Plain { kind, body }, ())
        };
        // What this log continues is its very first entry, and needs no key.
        let mut batch: Vec<_> = first.into_iter().map(plain).collect();
        batch.push((Plain { kind: Kind::EPOCH, body: wrapped }, ()));
        batch.push(plain(start));
        writer.commit(now, &mut batch, drop)?;
        Ok(writer)
    }

    /// Writes batch after batch until the queue is closed and empty, or the first error.
    pub(super) fn run(
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
                if matches!(error, WriteError::Segment(segment::WriteError::NoSpace)) {
                    // Nothing was written. Those who wait find their channel closed; others come when there is room.
                    batch.clear();
                    continue;
                }
                // After a failed sync nobody knows what is on the disk, and asking again would only seem to help. All
                // who wait find their channel closed.
                self.shared.writable.store(false, Ordering::Release);
                tracing::error!(%error, size = self.next, "access log: poisoned until restart");
                return;
            }
        }
        let reason = lock(&self.shared.stop).take();
        if let Some(reason) = reason.filter(|_| !self.shared.is_refuted()) {
            let (kind, body) = entry::encode(Entry::Stop(StopEntry { reason }));
            if let Err(error) = self.write(&mut vec![(Plain { kind, body }, ())], drop) {
                tracing::error!(%error, size = self.next, "access log: no STOP entry");
            }
        }
    }

    /// Writes a batch; on a new day and for other recipients after a new EPOCH entry.
    fn write<T>(&mut self, batch: &mut Vec<(Plain, T)>, answer: impl Fn(Vec<(T, Recorded)>)) -> Result<(), WriteError> {
        let now = self.clock.now();
        let day = epoch_day(now);
        if let Some(recipients) = lock(&self.shared.recipients).take().filter(|other| *other != self.recipients) {
            (self.recipients, self.renew) = (recipients, true);
        }
        if day != self.day || self.renew {
            let number = self.epoch.number().checked_add(1).ok_or(WriteError::Epochs)?;
            let (epoch, body) = EpochKey::generate(number, &self.shared.origin, &self.recipients)?;
            let before = std::mem::replace(&mut self.epoch, epoch);
            if let Err(error) = self.commit(now, &mut vec![(Plain { kind: Kind::EPOCH, body }, ())], drop) {
                // Nobody has the new key, so nothing may be sealed with it.
                self.epoch = before;
                return Err(error);
            }
            (self.day, self.renew) = (day, false);
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
            let count = batch.len().min(room);
            let hands_over = batch.iter().take(count).any(|(plain, _)| plain.kind == Kind::LOG_KEY);
            let len: usize = batch.iter().take(count).map(|(plain, _)| LENGTH + HEADER + plain.body.len() + TAG).sum();
            let made = self.segments.make_room(first / PER_SEGMENT, len as u64);
            self.shared.no_space.store(matches!(made, Err(segment::WriteError::NoSpace)), Ordering::Release);
            if matches!(made, Err(segment::WriteError::Broken(_))) {
                self.shared.writable.store(false, Ordering::Release);
            }
            made?;
            let mut sealed = Vec::with_capacity(count);
            let placed = self.place(time, batch.drain(..count), &mut sealed);
            if placed.is_err() {
                // Said before those who wait hear of it: their channels close with `sealed`.
                self.shared.writable.store(false, Ordering::Release);
            }
            placed?;
            // Durable from here on: the one place where evidence is made.
            self.next = first + sealed.len() as u64;
            self.shared.size.store(self.next, Ordering::Release);
            let leaves: Vec<_> = sealed.iter().map(|(_, _, leaf)| *leaf).collect();
            let origin = &self.shared.origin;
            let recorded = sealed.into_iter().map(|(waiter, index, leaf_hash)| {
                (waiter, Recorded { origin: origin.clone(), index, time, leaf_hash, signed: None })
            });
            answer(recorded.collect());
            // Nobody waits for the tree.
            let mut signable = lock(&self.shared.signable);
            for leaf in leaves {
                signable.frontier.push(leaf);
            }
            if hands_over && let Some(keys) = lock(&self.shared.next_keys).take() {
                signable.keys = keys;
            }
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
        Ok(self.segments.append(&self.buffer)?)
    }
}

/// Says that nothing is written any more, however the writer ends.
struct Closed(Arc<Shared>);

impl Drop for Closed {
    fn drop(&mut self) {
        self.0.writable.store(false, Ordering::Release);
    }
}

#[expect(clippy::disallowed_methods, reason = "the writer's own thread, not a worker of the runtime")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}
