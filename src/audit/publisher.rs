//! Signs the log once a second, beside the writer: checkpoint, cosignatures, what a full disk or an absent witness
//! means, and the next segment's file.
//!
//! A checkpoint is signed only over entries that are durable, and is durable itself before anybody sees it: so the log
//! that is found after a crash always reaches to its last checkpoint.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
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
use super::note::{MAX_NOTE, Note, Signature, VerifierKey};
use super::scan::{Window, file_name, segments};
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
}

/// Its thread's state.
pub(super) struct Publisher {
    dir: PathBuf,
    origin: Arc<str>,
    witnesses: Vec<VerifierKey>,
    limits: DiskLimits,
    unwitnessed_alarm: Duration,
    unwitnessed_stop: Option<Duration>,
    ahead: u64,
    medium: Arc<dyn Medium>,
    clock: Clock,
    shared: Arc<Shared>,
    latest: watch::Sender<Option<Arc<Published>>>,
    /// The checkpoints signed last, for which a slow witness may still answer, and when each was signed.
    recent: VecDeque<(Published, Timestamp)>,
    /// Size of the largest checkpoint that is cosigned.
    witnessed: u64,
    /// Since when the log waits for a cosignature: what it was then is known to be witnessed.
    waiting_since: Timestamp,
    /// Derives the hashes of full segments.
    tree: Option<LogTree>,
}

impl Publisher {
    /// A publisher of the log that stands in `config.dir`.
    pub(super) fn new(
        config: &AuditConfig,
        medium: Arc<dyn Medium>,
        clock: Clock,
        shared: Arc<Shared>,
        latest: watch::Sender<Option<Arc<Published>>>,
    ) -> Result<Self, OpenError> {
        let stop = config.unwitnessed_stop_s;
        let witnesses = config.load_witnesses()?;
        let (witnessed, waiting_since) = last_witnessed(config, &witnesses, clock.now())?;
        if witnessed > 0 {
            shared.witnessed_us.store(waiting_since.as_micros(), Ordering::Release);
        }
        Ok(Self {
            dir: config.dir.clone(),
            origin: config.origin.as_str().into(),
            witnesses,
            limits: config.disk,
            unwitnessed_alarm: Duration::from_secs(config.unwitnessed_alarm_s),
            unwitnessed_stop: (stop > 0).then(|| Duration::from_secs(stop)),
            ahead: config.preallocate_mib << 20,
            medium,
            waiting_since,
            clock,
            shared,
            latest,
            recent: VecDeque::new(),
            witnessed,
            tree: None,
        })
    }

    /// Works until its orders' sender is gone. The first checkpoint is made before.
    pub(super) fn run(&mut self, orders: &Receiver<Order>, every: Duration) {
        loop {
            match orders.recv_timeout(every) {
                Ok(Order::Cosigned(tree, signatures)) => self.cosigned(tree, &signatures),
                Ok(Order::Publish) => self.publish(),
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

    /// Signs the durable tree, unless that is done, or the log is known to have another past.
    pub(super) fn publish(&mut self) {
        if self.shared.is_refuted() {
            return;
        }
        let (tree, keys) = {
            let signable = self.shared.signable.lock().unwrap_or_else(PoisonError::into_inner);
            (Tree { size: signable.frontier.size(), root: signable.frontier.root() }, signable.keys.clone())
        };
        if self.latest.borrow().as_ref().is_some_and(|latest| latest.tree == tree) {
            return;
        }
        let checkpoint = Checkpoint { origin: self.origin.to_string(), tree };
        let (keys, now): (Vec<_>, _) = (keys.iter().map(Arc::as_ref).collect(), self.clock.now());
        let note = checkpoint.sign(&keys, now);
        let written = self.medium.replace(&self.dir, CHECKPOINT, note.to_string().as_bytes());
        // The log itself is as safe as before: so this is an alarm, and tried again with a new file.
        Self::alarm(&self.shared.unpublished, written.is_err(), "no checkpoint can be written");
        match written {
            Ok(()) => {
                let published = Published { tree, note };
                self.recent.truncate(RECENT - 1);
                self.recent.push_front((published.clone(), now));
                self.latest.send_replace(Some(Arc::new(published)));
            }
            Err(error) => tracing::error!(%error, size = tree.size, "access log: the checkpoint can't be written"),
        }
    }

    /// Keeps the cosignatures that are valid under a witness's key and newer than what is kept: nothing else of what a
    /// witness answers gets into a checkpoint.
    fn cosigned(&mut self, tree: Tree, lines: &[Signature]) {
        let is_latest = self.recent.front().is_some_and(|(latest, _)| latest.tree == tree);
        let Some((published, signed_at)) = self.recent.iter_mut().find(|(published, _)| published.tree == tree) else {
            return;
        };
        let mut note = published.note.clone();
        let mut newest = None;
        for key in &self.witnesses {
            let Some((line, time)) = key.verify_lines(note.text(), lines) else { continue };
            // One that was seen already says nothing new, however often it is repeated.
            if key.verify(&note).is_none_or(|before| before < time) {
                note.add(line.clone());
                newest = newest.max(Some(time));
            }
        }
        let Some(time) = newest else { return };
        let text = note.to_string();
        let signed = |note: &Note| {
            let signable = self.shared.signable.lock().unwrap_or_else(PoisonError::into_inner);
            signable.keys.iter().filter(|key| key.verifier().verify(note).is_some()).count()
        };
        // A start would refuse such a file.
        if text.len() > MAX_NOTE || signed(&note) < signed(&published.note) {
            tracing::error!("access log: a witness's cosignature would spoil the checkpoint; it is not taken");
            return;
        }
        // A quiet log that is cosigned anew is as witnessed as can be; an earlier one only as it was when it was signed.
        let since = if is_latest { self.clock.now() } else { *signed_at };
        published.note = note;
        let published = published.clone();
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
        self.waiting_since = self.waiting_since.max(since);
        self.shared.witnessed_us.fetch_max(time.as_micros(), Ordering::AcqRel);
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

    pub(super) fn alarm(flag: &AtomicBool, now: bool, what: &str) {
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
        let full = [&self.shared.no_space, &self.shared.disk_refuses].iter().any(|flag| flag.load(Ordering::Acquire));
        if size % PER_SEGMENT >= PER_SEGMENT / 2
            && !full
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
            none => none.insert(LogTree::keeping(&self.dir, self.medium.clone())?),
        };
        tree.grow(full * PER_SEGMENT)
    }
}

/// Entries that are witnessed, and since when the log waits for the next cosignature: that of the file `witnessed`, so that
/// a restart does not begin to wait anew; if no checkpoint ever was cosigned, since the log's first entry.
fn last_witnessed(
    config: &AuditConfig,
    witnesses: &[VerifierKey],
    now: Timestamp,
) -> Result<(u64, Timestamp), OpenError> {
    let note = read_checkpoint(&config.dir, WITNESSED)?;
    let found = note.and_then(|note| {
        let time = witnesses.iter().filter_map(|key| key.verify(&note)).max()?;
        Some((Checkpoint::of(&note).ok()?.tree.size, time))
    });
    if let Some((size, time)) = found {
        return Ok((size, time.min(now)));
    }
    let first = first_time(&config.dir).map_err(|source| OpenError::io(&config.dir, source))?;
    Ok((0, first.unwrap_or(now).min(now)))
}

/// When the first entry that is left was written.
fn first_time(dir: &Path) -> io::Result<Option<Timestamp>> {
    let Some(first) = segments(dir)?.first().copied() else { return Ok(None) };
    let entry = Window::new(File::open(dir.join(file_name(first)))?).entry(0)?;
    Ok(entry.map(|(header, _)| header.time))
}

/// A checkpoint that stands in the log's directory.
pub(super) fn read_checkpoint(dir: &Path, name: &'static str) -> Result<Option<Note>, OpenError> {
    let Some(bytes) = files::read_small(&dir.join(name), MAX_NOTE).map_err(|source| OpenError::io(dir, source))? else {
        return Ok(None);
    };
    let wrong = || OpenError::Checkpoint { dir: dir.into(), name, what: "not a note" };
    String::from_utf8(bytes).ok().and_then(|text| text.parse().ok()).map(Some).ok_or_else(wrong)
}
