//! Finding the end of a log after whatever happened: an orderly stop, a crash, a power cut, damage, a hand in the files.
//!
//! A batch is one write; nothing of the next batch is written before it is durable. So only the last batch can be torn:
//! - Bytes at the first bad entry `k` that no later valid entry contradicts are a torn tail: never acknowledged, cut off.
//! - A valid entry beyond `k` whose batch starts after `k` proves that `k` was durable once: the log is damaged and is
//!   refused. Cutting at the first bad CRC would delete acknowledged entries in silence.
//! - Damage to the very last batch looks torn; a checkpoint tells, below.
//!
//! Checkpoints that this log has signed, the one beside it and those that witnesses hold, are its floor: a shorter log
//! was rolled back, and one whose tree has another root there was rewritten. Both are refused.
//!
//! Read are the segments from the lowest floor on, the last two always. Of older ones the kept hashes count, and the
//! floor's root tells whether they are right: a restart takes as long for a year's log as for a day's.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::checkpoint::Tree;
use super::frame::{LENGTH, PER_SEGMENT};
use super::medium::{Medium, Open};
use super::merkle::{Frontier, leaf_hash};
use super::scan::{Window, file_name, segments};
use super::tree::{self, LogTree, TreeError};

/// The end of a log.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Tail {
    /// The last segment; 0 for an empty log.
    pub(super) segment: u64,
    /// Where its next entry goes, in bytes.
    pub(super) offset: u64,
    /// Index of the log's next entry: the log's size.
    pub(super) next: u64,
    /// Index of the first entry of the last batch; 0 for an empty log.
    pub(super) last_batch: u64,
    /// Number of the last epoch; 0 for an empty log.
    pub(super) epoch: u32,
    /// The tree over all entries.
    pub(super) frontier: Frontier,
}

/// Why a log can't be continued.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecoverError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("entry {index}: {what}")]
    Corrupt { index: u64, what: &'static str },
    #[error("it has {size} entries, and {signed} are signed")]
    Rollback { size: u64, signed: u64 },
    #[error("its first {size} entries are not those that are signed")]
    Fork { size: u64 },
}

/// Finds the end of the log in `dir`, cuts off a torn tail and makes the rest durable anew. `floors` are trees that this
/// log has signed.
pub(super) fn recover(dir: &Path, floors: &[Tree], medium: &dyn Medium) -> Result<Tail, RecoverError> {
    let numbers = segments(dir)?;
    let Some((first, last)) = numbers.first().copied().zip(numbers.last().copied()) else {
        return match floors.iter().map(|floor| floor.size).max() {
            None | Some(0) => Ok(Tail::default()),
            Some(signed) => Err(RecoverError::Rollback { size: 0, signed }),
        };
    };
    for (expected, number) in (first..).zip(&numbers) {
        if *number != expected {
            return Err(corrupt(expected * PER_SEGMENT, "its segment is missing"));
        }
    }
    // What lies before the first segment that is left was held against its floors when it was pruned.
    let floors: Vec<_> = floors.iter().copied().filter(|floor| floor.size >= first * PER_SEGMENT).collect();
    let signed = floors.iter().map(|floor| floor.size).max().unwrap_or_default();
    let floors = without_kept(dir, floors, signed, last)?;
    if signed > (last + 1) * PER_SEGMENT {
        return Err(RecoverError::Rollback { size: (last + 1) * PER_SEGMENT, signed });
    }
    let lowest = floors.iter().map(|floor| floor.size / PER_SEGMENT).min().unwrap_or(last);
    let from = lowest.min(last.saturating_sub(1)).max(first);
    let mut frontier = Frontier::default();
    for segment in 0..from {
        let begins = segment * PER_SEGMENT;
        if segment >= first && open(dir, segment)?.entry(0)?.is_none_or(|(header, _)| header.seq != begins) {
            return Err(corrupt(begins, "damaged"));
        }
        let root = tree::kept_root(dir, segment)?;
        let root = match root {
            Some(root) => root,
            None if segment < first => return Err(corrupt(begins, "its segment is missing")),
            None => tree::segment_root(dir, segment).map_err(damaged)?,
        };
        let _always = frontier.push_node(PER_SEGMENT.ilog2(), root);
    }
    let mut walk = Walk { tail: Tail { frontier, ..Tail::default() }, keep: 0, floors: floors.clone() };
    walk.check_floors();
    for segment in from..last {
        walk.segment(&mut open(dir, segment)?, segment, signed)?;
        if walk.tail.next != (segment + 1) * PER_SEGMENT {
            return Err(corrupt(walk.tail.next, "damaged, and a later segment exists"));
        }
    }
    let mut window = open(dir, last)?;
    walk.segment(&mut window, last, signed)?;
    let end = (last + 1) * PER_SEGMENT;
    let next = walk.tail.next;
    if window.find(walk.tail.offset, |header| header.batch_start() > next && header.seq < end)?.is_some() {
        return Err(corrupt(next, "damaged, and a later batch is intact"));
    }
    if signed > next {
        return Err(RecoverError::Rollback { size: next, signed });
    }
    if !walk.floors.is_empty() {
        refuse_fork(dir, &floors, first)?;
    }
    let torn = window.data_end(walk.tail.offset)?.saturating_sub(walk.tail.offset);
    if torn > 0 {
        tracing::warn!(size = next, torn_bytes = torn, "access log: cutting off a torn batch, never acknowledged");
    }
    renew(dir, &walk, medium)?;
    Ok(walk.tail)
}

/// The floors that must be walked to. Those far behind the highest one are answered by the kept hashes, if these fit: a
/// witness that has been away for a year makes no restart long.
fn without_kept(dir: &Path, floors: Vec<Tree>, signed: u64, last: u64) -> Result<Vec<Tree>, RecoverError> {
    let recent = last.saturating_sub(1) * PER_SEGMENT;
    if floors.iter().all(|floor| floor.size == signed || floor.size >= recent) {
        return Ok(floors);
    }
    let mut kept = LogTree::open(dir).map_err(damaged)?;
    let mut left = floors;
    left.retain(|floor| {
        let near = floor.size == signed || floor.size >= recent;
        near || !kept.tree(floor.size).is_ok_and(|tree| tree.root == floor.root)
    });
    Ok(left)
}

/// A floor's root does not fit. Either entries were rewritten, or only the kept hashes are wrong: then they are thrown
/// away and the entries themselves decide.
fn refuse_fork(dir: &Path, floors: &[Tree], first: u64) -> Result<(), RecoverError> {
    let fork = |size| Err(RecoverError::Fork { size });
    let lowest = floors.iter().map(|floor| floor.size).min().unwrap_or_default();
    if first > 0 {
        return fork(lowest);
    }
    let mut tree = LogTree::from_entries(dir);
    let mut sorted = floors.to_vec();
    sorted.sort_unstable_by_key(|floor| floor.size);
    for floor in sorted {
        tree.grow(floor.size).map_err(damaged)?;
        if tree.frontier().root() != floor.root {
            return fork(floor.size);
        }
    }
    Err(corrupt(0, "the kept hashes (*.tiles) are wrong, the entries are right: delete the former"))
}

fn damaged(error: TreeError) -> RecoverError {
    match error {
        TreeError::Io(error) => RecoverError::Io(error),
        TreeError::Missing { index } => corrupt(index, "damaged, and a later segment exists"),
        TreeError::Pruned { segment } => corrupt(segment * PER_SEGMENT, "its segment is missing"),
        TreeError::Unsigned { size } => RecoverError::Fork { size },
    }
}

/// Reading segments from their start.
struct Walk {
    tail: Tail,
    /// Where the bytes begin that are written once more, in the last segment read.
    keep: u64,
    /// Floors not yet met.
    floors: Vec<Tree>,
}

impl Walk {
    fn segment(&mut self, window: &mut Window, segment: u64, signed: u64) -> io::Result<()> {
        let tail = &mut self.tail;
        (tail.segment, tail.offset, tail.next) = (segment, 0, segment * PER_SEGMENT);
        self.keep = 0;
        let end = (segment + 1) * PER_SEGMENT;
        while self.tail.next < end
            && let Some((header, length)) = window.entry(self.tail.offset)?
            && header.seq == self.tail.next
        {
            let leaf = leaf_hash(window.bytes(self.tail.offset, length)?);
            self.tail.frontier.push(leaf);
            self.tail.offset += (LENGTH + length) as u64;
            self.tail.next += 1;
            (self.tail.epoch, self.tail.last_batch) = (header.epoch, header.batch_start());
            if self.tail.next == signed {
                self.keep = self.tail.offset;
            }
            self.check_floors();
        }
        Ok(())
    }

    fn check_floors(&mut self) {
        let size = self.tail.frontier.size();
        if self.floors.iter().any(|floor| floor.size == size) {
            let root = self.tail.frontier.root();
            self.floors.retain(|floor| floor.size != size || floor.root != root);
        }
    }
}

/// Cuts the segment at its end and writes everything behind the floor once more: after a failed sync the page cache may
/// show bytes that never reached the disk, and what is signed next rests on them.
fn renew(dir: &Path, walk: &Walk, medium: &dyn Medium) -> io::Result<()> {
    let file = medium.open(&dir.join(file_name(walk.tail.segment)), Open::Existing)?;
    let mut bytes = vec![0; usize::try_from(walk.tail.offset - walk.keep).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, walk.keep)?;
    medium.write(&file, &bytes, walk.keep)?;
    medium.cut(&file, walk.tail.offset)?;
    medium.sync(&file)
}

fn open(dir: &Path, segment: u64) -> io::Result<Window> {
    Ok(Window::new(File::open(dir.join(file_name(segment)))?))
}

fn corrupt(index: u64, what: &'static str) -> RecoverError {
    RecoverError::Corrupt { index, what }
}
