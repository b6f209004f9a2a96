//! Signs the log once a second, beside the writer: checkpoint, cosignatures, what a full disk or an absent witness
//! means, and the next segment's file.
//!
//! A checkpoint is signed only over entries that are durable, and is durable itself before anybody sees it: so the log
//! that is found after a crash always reaches to its last checkpoint.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::checkpoint::{Checkpoint, Tree};
use super::files;
use super::frame::PER_SEGMENT;
use super::journal::Shared;
use super::medium::Medium;
use super::note::{MAX_NOTE, Note, Signature, SigningKey, VerifierKey};
use super::segment::make_ready;
use super::tree::LogTree;
use super::{AuditConfig, DiskLimits, OpenError};
use crate::clock::{Clock, Timestamp};

/// The latest checkpoint, signed by the log; witnesses' cosignatures are added as they come.
pub(super) const CHECKPOINT: &str = "checkpoint";
/// The latest checkpoint that a witness cosigned.
pub(super) const WITNESSED: &str = "witnessed";

/// Checkpoints kept for slow witnesses: about a minute's.
const RECENT: usize = 64;

/// A checkpoint that the log has signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Size and root.
    pub tree: Tree,
    /// The signed note, with the cosignatures known so far.
    pub note: Note,
}

/// What the publisher is told.
#[derive(Debug)]
pub(super) enum Order {
    /// A witness answered with these cosignatures of the checkpoint with this tree.
    Cosigned(Tree, Vec<Signature>),
    /// Sign what there is now.
    Publish,
    /// Sign with these keys from now on.
    Keys(Vec<Arc<SigningKey>>),
}

/// Its thread's state.
pub(super) struct Publisher {
    dir: PathBuf,
    origin: Arc<str>,
    /// The key that signs; then the one before, while a rotation lasts.
    keys: Vec<Arc<SigningKey>>,
    witnesses: Vec<VerifierKey>,
    limits: DiskLimits,
    unwitnessed_alarm: Duration,
    unwitnessed_stop: Option<Duration>,
    ahead: u64,
    medium: Arc<dyn Medium>,
    clock: Clock,
    shared: Arc<Shared>,
    latest: watch::Sender<Option<Arc<Published>>>,
    /// The checkpoints signed last, for which a slow witness may still answer.
    recent: VecDeque<Published>,
    /// Size of the largest checkpoint that is cosigned.
    witnessed: u64,
    /// When the log began to wait for a cosignature: the last one, or the start.
    waiting_since: Timestamp,
    /// Derives the hashes of full segments.
    tree: Option<LogTree>,
}

impl Publisher {
    pub(super) fn new(
        config: &AuditConfig,
        keys: Vec<Arc<SigningKey>>,
        medium: Arc<dyn Medium>,
        clock: Clock,
        shared: Arc<Shared>,
        latest: watch::Sender<Option<Arc<Published>>>,
    ) -> Result<Self, OpenError> {
        let stop = config.unwitnessed_stop_s;
        Ok(Self {
            dir: config.dir.clone(),
            origin: config.origin.as_str().into(),
            keys,
            witnesses: config.load_witnesses()?,
            limits: config.disk,
            unwitnessed_alarm: Duration::from_secs(config.unwitnessed_alarm_s),
            unwitnessed_stop: (stop > 0).then(|| Duration::from_secs(stop)),
            ahead: config.preallocate_mib << 20,
            medium,
            waiting_since: clock.now(),
            clock,
            shared,
            latest,
            recent: VecDeque::new(),
            witnessed: 0,
            tree: None,
        })
    }

    /// Works until its orders' sender is gone. The first checkpoint is made before.
    pub(super) fn run(&mut self, orders: &Receiver<Order>, every: Duration) {
        loop {
            match orders.recv_timeout(every) {
                Ok(Order::Cosigned(tree, signatures)) => self.cosigned(tree, signatures),
                Ok(Order::Publish) => self.publish(),
                Ok(Order::Keys(keys)) => self.keys = keys,
                Err(RecvTimeoutError::Timeout) => self.tick(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// What is due each second.
    pub(super) fn tick(&mut self) {
        self.watch_disk();
        self.watch_witnesses();
        self.publish();
        self.prepare();
    }

    /// Signs the durable tree, unless that is done.
    pub(super) fn publish(&mut self) {
        let (size, root) = {
            let frontier = self.shared.tree.lock().unwrap_or_else(PoisonError::into_inner);
            (frontier.size(), frontier.root())
        };
        let tree = Tree { size, root };
        if self.latest.borrow().as_ref().is_some_and(|latest| latest.tree == tree) {
            return;
        }
        let checkpoint = Checkpoint { origin: self.origin.to_string(), tree };
        let keys: Vec<_> = self.keys.iter().map(Arc::as_ref).collect();
        let note = checkpoint.sign(&keys, self.clock.now());
        let written = self.medium.replace(&self.dir, CHECKPOINT, note.to_string().as_bytes());
        // The log itself is as safe as before: so this is an alarm, and tried again with a new file.
        Self::alarm(&self.shared.unpublished, written.is_err(), "no checkpoint can be written");
        match written {
            Ok(()) => {
                let published = Published { tree, note };
                self.recent.truncate(RECENT - 1);
                self.recent.push_front(published.clone());
                self.latest.send_replace(Some(Arc::new(published)));
            }
            Err(error) => tracing::error!(%error, size, "access log: the checkpoint can't be written"),
        }
    }

    /// Keeps the valid cosignatures of a checkpoint.
    fn cosigned(&mut self, tree: Tree, signatures: Vec<Signature>) {
        let is_latest = self.recent.front().is_some_and(|latest| latest.tree == tree);
        let Some(published) = self.recent.iter_mut().find(|published| published.tree == tree) else { return };
        let mut note = published.note.clone();
        note.add(signatures);
        let Some(time) = self.witnesses.iter().filter_map(|key| key.verify(&note)).max() else { return };
        published.note = note;
        let published = published.clone();
        let text = published.note.to_string();
        let mut names = vec![];
        if tree.size >= self.witnessed {
            names.push(WITNESSED);
        }
        if is_latest {
            names.push(CHECKPOINT);
        }
        if let Err(error) = names.iter().try_for_each(|name| self.medium.replace(&self.dir, name, text.as_bytes())) {
            tracing::error!(%error, "access log: cosignatures can't be written");
            return;
        }
        self.witnessed = self.witnessed.max(tree.size);
        self.waiting_since = self.clock.now();
        self.shared.witnessed_us.store(time.as_micros(), Ordering::Release);
        if is_latest {
            self.latest.send_replace(Some(Arc::new(published)));
        }
        self.watch_witnesses();
    }

    fn watch_witnesses(&self) {
        if self.witnesses.is_empty() {
            return;
        }
        let waits = self.clock.now().since(self.waiting_since);
        Self::alarm(&self.shared.unwitnessed, waits >= self.unwitnessed_alarm, "no witness cosigns the log");
        let stop = self.unwitnessed_stop.is_some_and(|stop| waits >= stop);
        Self::alarm(&self.shared.unwitnessed_stop, stop, "no entry is taken: no witness cosigns the log");
    }

    fn watch_disk(&self) {
        let space = match self.medium.space(&self.dir) {
            Ok(space) => space,
            Err(error) => {
                tracing::error!(%error, "access log: the file system does not tell how full it is");
                return;
            }
        };
        let used = space.used_percent();
        self.shared.disk_percent.store(used, Ordering::Release);
        Self::alarm(&self.shared.disk_alarm, used >= self.limits.alarm_percent, "the disk fills up");
        let refuse = used >= self.limits.refuse_percent;
        Self::alarm(&self.shared.disk_refuses, refuse, "no entry is taken: the disk is nearly full");
        if !refuse {
            // The writer found no room; whether there is some now, the next entry will tell.
            Self::alarm(&self.shared.no_space, false, "no entry is taken: no space left");
        }
    }

    fn alarm(flag: &AtomicBool, now: bool, what: &str) {
        if flag.swap(now, Ordering::AcqRel) != now {
            if now {
                tracing::error!(what, "access log: alarm");
            } else {
                tracing::info!(what, "access log: the alarm is over");
            }
        }
    }

    /// Makes the next segment's file ready once this one is half full, and keeps the hashes of full segments.
    fn prepare(&mut self) {
        let size = self.shared.size.load(Ordering::Acquire);
        let segment = size / PER_SEGMENT;
        if size % PER_SEGMENT >= PER_SEGMENT / 2
            && let Err(error) = make_ready(&self.dir, segment + 1, self.ahead, self.medium.as_ref())
        {
            tracing::warn!(%error, "access log: the next segment's file can't be made ready");
        }
        if let Err(error) = self.keep_hashes(segment) {
            tracing::warn!(%error, "access log: the hashes of full segments can't be kept");
        }
    }

    fn keep_hashes(&mut self, full: u64) -> Result<(), super::tree::TreeError> {
        let tree = match &mut self.tree {
            Some(tree) => tree,
            none => none.insert(LogTree::open(&self.dir, true)?),
        };
        tree.grow(full * PER_SEGMENT)
    }
}

/// The checkpoint that stands in the log's directory.
pub(super) fn read_checkpoint(dir: &std::path::Path, name: &str) -> Result<Option<Note>, OpenError> {
    let io = |source| OpenError::Io { dir: dir.into(), source };
    let Some(bytes) = files::read_small(&dir.join(name), MAX_NOTE).map_err(io)? else { return Ok(None) };
    let text = String::from_utf8(bytes).map_err(|_| OpenError::Checkpoint { dir: dir.into(), what: "not a note" })?;
    text.parse().map(Some).map_err(|_| OpenError::Checkpoint { dir: dir.into(), what: "not a note" })
}
