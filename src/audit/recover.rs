//! Finding the end of a log after whatever happened: an orderly stop, a crash, a power cut, damage.
//!
//! A batch is one write; nothing of the next batch is written before it is durable. So only the last batch can be torn:
//! - Bytes at the first bad entry `k` that no later valid entry contradicts are a torn tail: never acknowledged, cut off.
//! - A valid entry beyond `k` whose batch starts after `k` proves that `k` was durable once: the log is damaged and is
//!   refused. Cutting at the first bad CRC would delete acknowledged entries in silence.
//! - Damage to the very last batch looks torn; only a copy or a witness can tell.
//!
//! The last two segments are read whole, of older ones the first entry: a restart takes as long for a year's log as for
//! a day's. The reader checks everything.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::frame::{LENGTH, PER_SEGMENT};
use super::scan::{Window, file_name, segments};

/// The end of a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Tail {
    /// The last segment; 0 for an empty log.
    pub(super) segment: u64,
    /// Where its next entry goes, in bytes.
    pub(super) offset: u64,
    /// Index of the log's next entry: the log's size.
    pub(super) next: u64,
    /// Number of the last epoch; 0 for an empty log.
    pub(super) epoch: u32,
}

/// Why a log can't be continued.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecoverError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("entry {index}: {what}")]
    Corrupt { index: u64, what: &'static str },
}

/// Finds the end of the log in `dir`, cuts off a torn tail and makes the rest durable anew.
pub(super) fn recover(dir: &Path) -> Result<Tail, RecoverError> {
    let numbers = segments(dir)?;
    let Some(last) = numbers.last().copied() else { return Ok(Tail::default()) };
    for (expected, number) in (0..).zip(&numbers) {
        if *number != expected {
            return Err(corrupt(expected * PER_SEGMENT, "its segment is missing"));
        }
    }
    for segment in 0..last.saturating_sub(1) {
        let first = segment * PER_SEGMENT;
        if open(dir, segment)?.entry(0)?.is_none_or(|(header, _)| header.seq != first) {
            return Err(corrupt(first, "damaged"));
        }
    }
    let mut epoch = 0;
    if let Some(before) = last.checked_sub(1) {
        let walk = walk(&mut open(dir, before)?, before, epoch)?;
        if walk.tail.next != last * PER_SEGMENT {
            return Err(corrupt(walk.tail.next, "damaged, and a later segment exists"));
        }
        epoch = walk.tail.epoch;
    }
    let mut window = open(dir, last)?;
    let walk = walk(&mut window, last, epoch)?;
    let (tail, end) = (walk.tail, (last + 1) * PER_SEGMENT);
    if window.find(tail.offset, |header| header.batch_start() > tail.next && header.seq < end)?.is_some() {
        return Err(corrupt(tail.next, "damaged, and a later batch is intact"));
    }
    let torn = window.data_end(tail.offset)?.saturating_sub(tail.offset);
    if torn > 0 {
        tracing::warn!(size = tail.next, torn_bytes = torn, "access log: cutting off a torn batch, never acknowledged");
    }
    renew(dir, &walk)?;
    Ok(tail)
}

/// Where reading a segment from its start ended.
struct Walk {
    tail: Tail,
    /// Where the last batch begins, in bytes.
    batch: u64,
}

fn walk(window: &mut Window, segment: u64, epoch: u32) -> io::Result<Walk> {
    let mut tail = Tail { segment, offset: 0, next: segment * PER_SEGMENT, epoch };
    let (mut batch, end) = (0, (segment + 1) * PER_SEGMENT);
    while tail.next < end
        && let Some((header, length)) = window.entry(tail.offset)?
        && header.seq == tail.next
    {
        if header.batch_pos == 0 {
            batch = tail.offset;
        }
        tail.offset += (LENGTH + length) as u64;
        tail.next += 1;
        tail.epoch = header.epoch;
    }
    Ok(Walk { tail, batch })
}

/// Cuts the segment at its end and writes its last batch once more. After a failed sync the page cache may show bytes
/// that never reached the disk: every batch before the last was synced with success, this one perhaps not.
fn renew(dir: &Path, walk: &Walk) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(dir.join(file_name(walk.tail.segment)))?;
    let mut batch = vec![0; usize::try_from(walk.tail.offset - walk.batch).map_err(io::Error::other)?];
    file.read_exact_at(&mut batch, walk.batch)?;
    file.write_all_at(&batch, walk.batch)?;
    file.set_len(walk.tail.offset)?;
    file.sync_all()
}

fn open(dir: &Path, segment: u64) -> io::Result<Window> {
    Ok(Window::new(File::open(dir.join(file_name(segment)))?))
}

fn corrupt(index: u64, what: &'static str) -> RecoverError {
    RecoverError::Corrupt { index, what }
}
