//! Deleting old entries: only whole segments, only below what an auditor allowed, only after that permission stands in
//! the log itself. The hashes stay, so every proof of what is left, and every checkpoint, still holds.
//!
//! ```text
//! oncegate/prune/v1
//! heshan.gov.example/gw1
//! 65536000                     entries below this index may go
//! ```

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use super::checkpoint::decimal;
use super::files::{read_origin, read_small};
use super::frame::{Kind, PER_SEGMENT, parse};
use super::medium::{Disk, Medium};
use super::note::{MAX_NOTE, Note, SigningKey, VerifierKey};
use super::scan::{file_name, segments};
use super::tree::{LogTree, TreeError, kept_root};
use crate::clock::Timestamp;

const HEAD: &str = "oncegate/prune/v1";

/// Entries are kept so long at least (PIPL art. 56): three years, one of them a leap year.
pub const RETENTION: Duration = Duration::from_hours((3 * 365 + 1) * 24);

/// A permission to delete the entries of the log `origin` below an index, signed by an auditor.
pub fn authorize(origin: &str, below: u64, auditor: &SigningKey) -> Note {
    // An Ed25519 signature has no time; the entry that carries the note has one.
    Note::sign(format!("{HEAD}\n{origin}\n{below}\n"), &[auditor], Timestamp::default())
}

/// Up to which index a note allows to delete entries of the log `origin`, if one of `auditors` has signed it.
pub fn allowed_below(note: &Note, origin: &str, auditors: &[VerifierKey]) -> Option<u64> {
    let below = below(note, origin)?;
    auditors.iter().any(|key| key.verify(note).is_some()).then_some(below)
}

/// The permission that is known to stand in the log, so that a start need not read all of it to find out.
const RECORDED: &str = "prune_authorization";

/// Remembers that this permission stands in the log.
pub(super) fn recorded(dir: &Path, note: &str, medium: &dyn Medium) -> io::Result<()> {
    medium.replace(dir, RECORDED, note.as_bytes())
}

/// True if the log of `size` entries holds this very permission already.
pub(super) fn stands_in(dir: &Path, note: &str, size: u64) -> io::Result<bool> {
    if read_small(&dir.join(RECORDED), MAX_NOTE)?.is_some_and(|recorded| recorded == note.as_bytes()) {
        return Ok(true);
    }
    let first = segments(dir)?.first().copied().unwrap_or_default();
    let mut tree = LogTree::from_segment(dir, first).map_err(io::Error::other)?;
    while tree.size() < size {
        let Some(header) = tree.read_entry().map_err(io::Error::other)? else { break };
        if header.kind == Kind::PRUNE_AUTH {
            let entry = tree.entry(header.seq).map_err(io::Error::other)?;
            if parse(&entry).is_some_and(|(_, body)| body == note.as_bytes()) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn below(note: &Note, origin: &str) -> Option<u64> {
    let mut lines = note.text().lines();
    let (head, of, below) = (lines.next()?, lines.next()?, lines.next()?);
    (head == HEAD && of == origin && lines.next().is_none()).then(|| decimal(below))?
}

/// What was, or would be, deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pruned {
    /// The first entry that is left.
    pub first: u64,
    /// Segment files deleted.
    pub segments: u64,
    /// Bytes given back.
    pub bytes: u64,
}

/// Deletes the segments that the log's own `PRUNE_AUTH` entries, signed by one of `auditors`, allow; unless `delete`, only
/// says which. Entries that are not signed yet count for nothing: `signed` is the size of a believed checkpoint. Nothing is
/// deleted that is younger than [`RETENTION`] by its own time, whoever allows it.
///
/// # Errors
/// If the log can't be read, allows nothing or too much, or lacks the hashes that must stay.
pub fn prune(
    dir: &Path,
    auditors: &[VerifierKey],
    signed: u64,
    now: Timestamp,
    delete: bool,
) -> Result<Pruned, PruneError> {
    let origin = read_origin(dir)?;
    let numbers = segments(dir)?;
    let (Some(first), Some(last)) = (numbers.first().copied(), numbers.last().copied()) else {
        return Err(PruneError::NotAllowed);
    };
    let mut tree = LogTree::from_segment(dir, first)?;
    let mut allowed = 0;
    // Where each data key was handed out.
    let mut epochs = Vec::new();
    // When each segment was full.
    let mut full = Vec::new();
    while tree.size() < signed {
        let Some(header) = tree.read_entry()? else { return Err(TreeError::Missing { index: tree.size() }.into()) };
        if tree.size().is_multiple_of(PER_SEGMENT) {
            full.push(header.time);
        }
        if header.kind == Kind::EPOCH {
            epochs.push(header.seq);
        }
        if header.kind != Kind::PRUNE_AUTH {
            continue;
        }
        let entry = tree.entry(header.seq)?;
        let body = parse(&entry).and_then(|(_, body)| std::str::from_utf8(body).ok()).unwrap_or_default();
        let note = body.parse().ok();
        let below = note.and_then(|note: Note| allowed_below(&note, &origin, auditors));
        // A permission can't reach beyond its own place.
        allowed = allowed.max(below.unwrap_or_default().min(header.seq));
    }
    // The last two segments are what a restart reads.
    let end = (allowed / PER_SEGMENT).min(last.saturating_sub(1));
    // What must stay must stay readable: so does the EPOCH entry whose key its first entry is sealed with.
    let epoch = epochs.iter().rev().find(|epoch| **epoch <= allowed).copied().unwrap_or_default();
    let end = end.min(epoch / PER_SEGMENT);
    if end <= first {
        return Err(PruneError::NotAllowed);
    }
    for (segment, time) in (first..end).zip(full) {
        if now.since(time) < RETENTION {
            return Err(PruneError::TooYoung { segment, time: time.to_rfc3339() });
        }
    }
    let mut pruned = Pruned { first: end * PER_SEGMENT, segments: end - first, bytes: 0 };
    for segment in first..end {
        // Without its hashes nothing behind it could be proved any more.
        if kept_root(dir, segment)?.is_none() || !tree.kept_are_right(segment)? {
            return Err(PruneError::Hashes { segment });
        }
        pruned.bytes += fs::metadata(dir.join(file_name(segment)))?.len();
    }
    if delete {
        // From the oldest on, so that what is left is always one piece.
        for segment in first..end {
            fs::remove_file(dir.join(file_name(segment)))?;
        }
        Disk.sync_dir(dir)?;
    }
    Ok(pruned)
}

/// Why nothing was deleted.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// An entry that would go is not old enough.
    #[error("segment {segment} goes up to {time}: entries are kept three years")]
    TooYoung {
        /// The segment.
        segment: u64,
        /// Time of its last entry, RFC 3339.
        time: String,
    },
    /// No entry of the log, signed by one of the auditors, allows to delete a whole segment.
    #[error("no PRUNE_AUTH entry signed by one of these auditors covers a whole segment that may go")]
    NotAllowed,
    /// The hashes that must stay are not there, or wrong.
    #[error("the hashes of segment {segment} are not kept, or wrong: start the gateway once, it derives them")]
    Hashes {
        /// The segment.
        segment: u64,
    },
    /// The log can't be read to its signed end.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// A file can't be read or deleted.
    #[error(transparent)]
    Io(#[from] io::Error),
}
