//! Reading a log: in order, decrypted with a recipient's private key, every entry checked.
//!
//! The reader only reads, so it works on a copy and on the log of a running gateway. There it may show entries a moment
//! before they are durable; what must rest on durability asks the gateway for its receipt or a checkpoint.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fmt, io};

use super::entry::{AccessEntry, DecodeError, Entry, Outcome, decode};
use super::files::read_origin;
use super::frame::{Header, Kind, LENGTH, PER_SEGMENT, parse};
use super::keys::PrivateKey;
use super::merkle::leaf_hash;
use super::scan::{Window, file_name, segments};
use super::seal::EpochKey;
use crate::clock::Timestamp;
use crate::ids::{DepartmentCode, RequestId, SpiffeId};

/// Iterates over the entries of a log in order, from the first that is not pruned. It ends at the log's present end; calling `next` again
/// later goes on with what was written since. An error names the entries it concerns; reading goes on behind them,
/// unless it was an I/O error.
pub struct LogReader {
    dir: PathBuf,
    origin: Arc<str>,
    keys: Vec<PrivateKey>,
    /// The data key of the epoch being read, if this recipient has it.
    epoch: Option<EpochKey>,
    segment: Option<Window>,
    offset: u64,
    next: u64,
    /// Bytes of the entries passed so far.
    read: u64,
    /// True until the first EPOCH entry of a pruned log: what stands before may go, and its key has gone.
    pruned: bool,
    /// Entries outside these times are passed over without decrypting them.
    times: (Option<Timestamp>, Option<Timestamp>),
    /// The unfinished entry that was reported, so that it is reported once.
    unfinished: Option<u64>,
    failed: bool,
    progress: Option<Watch>,
}

/// Told now and then how many bytes are read.
type Watch = Box<dyn FnMut(u64) + Send>;

/// Entries between two tellings.
const TOLD_EVERY: u64 = 4096;

impl LogReader {
    /// Opens the log in `dir`, to be read with these keys: auditors' keys change with the months. Changes nothing there and
    /// takes no lock.
    pub fn open(dir: &Path, keys: impl Into<Vec<PrivateKey>>) -> Result<Self, ReadError> {
        let origin = read_origin(dir)?;
        let first = segments(dir)?.first().copied().unwrap_or_default();
        Ok(Self {
            dir: dir.into(),
            origin: origin.into(),
            keys: keys.into(),
            epoch: None,
            segment: None,
            offset: 0,
            next: first * PER_SEGMENT,
            read: 0,
            pruned: first > 0,
            times: (None, None),
            unfinished: None,
            failed: false,
            progress: None,
        })
    }

    /// The same reader; `progress` is told now and then how many bytes are read, of about [`LogReader::bytes`].
    #[must_use]
    pub fn watched(mut self, progress: impl FnMut(u64) + Send + 'static) -> Self {
        self.progress = Some(Box::new(progress));
        self
    }

    /// Bytes of the segments that are not pruned, zeros ahead included.
    pub fn bytes(&self) -> u64 {
        let numbers = segments(&self.dir).unwrap_or_default();
        numbers
            .into_iter()
            .filter_map(|number| fs::metadata(self.dir.join(file_name(number))).ok())
            .map(|file| file.len())
            .sum()
    }

    /// Name of the log.
    pub fn origin(&self) -> &Arc<str> {
        &self.origin
    }

    /// The entries that a search asks for, and every error on the way: an entry that can't be read might be one of them.
    pub fn search(mut self, search: Search) -> impl Iterator<Item = Result<LoggedEntry, ReadError>> {
        self.times = (search.since, search.until);
        self.filter(move |read| read.as_ref().map_or(true, |entry| search.matches(entry)))
    }

    fn advance(&mut self) -> Result<Option<LoggedEntry>, ReadError> {
        loop {
            let Some(header) = self.find_next()? else { return Ok(None) };
            let Some((length, window)) = self.segment.as_mut().map(|window| (header.1, window)) else {
                return Ok(None);
            };
            let header = header.0;
            let entry = window.bytes(self.offset, length)?;
            let leaf_hash = leaf_hash(entry);
            let body = parse(entry).map(|(_, body)| body.to_vec()).unwrap_or_default();
            self.offset += (LENGTH + length) as u64;
            self.next += 1;
            self.read += (LENGTH + length) as u64;
            if self.next.is_multiple_of(TOLD_EVERY)
                && let Some(progress) = &mut self.progress
            {
                progress(self.read);
            }
            self.pruned &= header.kind != Kind::EPOCH;
            if self.pruned && !header.kind.is_clear() {
                continue;
            }
            let wanted = self.wants(header.time);
            if !wanted && header.kind != Kind::EPOCH {
                continue;
            }
            let content = self.content(&header, &body)?;
            if wanted {
                let (index, time, epoch) = (header.seq, header.time, header.epoch);
                return Ok(Some(LoggedEntry { index, time, epoch, leaf_hash, content }));
            }
        }
    }

    /// Header and length of the entry at the present place; `None` at the log's end.
    fn find_next(&mut self) -> Result<Option<(Header, usize)>, ReadError> {
        let mut number = self.next / PER_SEGMENT;
        if self.next == number * PER_SEGMENT && self.offset > 0 {
            (self.segment, self.offset) = (None, 0);
        }
        if self.segment.is_none() {
            self.segment = match File::open(self.dir.join(file_name(number))) {
                Ok(file) => Some(Window::new(file)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(error.into()),
            };
        }
        let right = |found: &(Header, usize)| found.0.seq == self.next;
        if let Some(window) = self.segment.as_mut()
            && let Some(found) = window.entry(self.offset)?.filter(right)
        {
            return Ok(Some(found));
        }
        // Either the end of the log, or damage, or a live log has grown. Where a later segment exists, this one is
        // complete: so that is looked up before reading once more.
        let later = segments(&self.dir)?.into_iter().find(|other| *other > number);
        let Some(window) = self.segment.as_mut() else {
            return match later {
                Some(later) => Err(self.damaged_until(later * PER_SEGMENT, 0)),
                None => Ok(None),
            };
        };
        window.forget();
        if let Some(found) = window.entry(self.offset)?.filter(right) {
            return Ok(Some(found));
        }
        number += 1;
        let (next, end) = (self.next, number * PER_SEGMENT);
        if let Some((offset, header)) = window.find(self.offset, |header| header.seq > next && header.seq < end)? {
            return Err(self.damaged_until(header.seq, offset));
        }
        if later.is_some() {
            return Err(self.damaged_until(end, 0));
        }
        if window.data_end(self.offset)? > self.offset && self.unfinished != Some(next) {
            self.unfinished = Some(next);
            return Err(ReadError::Unfinished { index: next });
        }
        Ok(None)
    }

    /// Goes on at entry `until`, whose segment has it at `offset`.
    fn damaged_until(&mut self, until: u64, offset: u64) -> ReadError {
        let first = std::mem::replace(&mut self.next, until);
        self.offset = offset;
        if until / PER_SEGMENT != first / PER_SEGMENT {
            self.segment = None;
        }
        ReadError::Damaged { first, until }
    }

    fn content(&mut self, header: &Header, body: &[u8]) -> Result<Content, ReadError> {
        if header.kind == Kind::EPOCH {
            let unwrap = |key| EpochKey::unwrap(header.epoch, &self.origin, body, key).ok();
            self.epoch = self.keys.iter().find_map(unwrap);
            return Ok(Content::Epoch { readable: self.epoch.is_some() });
        }
        let index = header.seq;
        if header.kind.is_clear() {
            return decode(header.kind, body)
                .map(Content::Entry)
                .map_err(|source| ReadError::Unknown { index, source });
        }
        let key = self.epoch.as_ref().filter(|key| key.number() == header.epoch);
        let body =
            key.ok_or(ReadError::NoKey { index })?.open(header, body).map_err(|_| ReadError::Forged { index })?;
        decode(header.kind, &body).map(Content::Entry).map_err(|source| ReadError::Unknown { index, source })
    }

    fn wants(&self, time: Timestamp) -> bool {
        self.times.0.is_none_or(|since| time >= since) && self.times.1.is_none_or(|until| time < until)
    }
}

impl Iterator for LogReader {
    type Item = Result<LoggedEntry, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let read = self.advance();
        self.failed = matches!(read, Err(ReadError::Io(_)));
        read.transpose()
    }
}

impl fmt::Debug for LogReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogReader").field("dir", &self.dir).field("next", &self.next).finish_non_exhaustive()
    }
}

/// An entry as it stands in the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LoggedEntry {
    /// Its index, from 0.
    pub index: u64,
    /// When it was sealed.
    pub time: Timestamp,
    /// Number of the data key that sealed it.
    pub epoch: u32,
    /// Its hash as a leaf of the Merkle tree.
    pub leaf_hash: [u8; 32],
    /// What it says.
    pub content: Content,
}

impl LoggedEntry {
    /// The access record, if it is one.
    pub fn access(&self) -> Option<&AccessEntry> {
        match &self.content {
            Content::Entry(Entry::Access(access)) => Some(access),
            _ => None,
        }
    }
}

/// What an entry says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content {
    /// A new data key.
    Epoch {
        /// True if it was wrapped to this reader's key.
        readable: bool,
    },
    /// Anything else.
    Entry(Entry),
}

/// What is wrong with an entry, or with reading it.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Entries are damaged or missing, though later ones exist: bit rot, or a hand in the files.
    #[error("entries {first} to {until} (exclusive) are damaged or missing")]
    Damaged {
        /// The first one.
        first: u64,
        /// The next readable one, or the first of the next segment.
        until: u64,
    },
    /// The last bytes of the log are no whole entry: being written now, torn by a crash, or damaged.
    #[error("entry {index} at the log's end is not whole")]
    Unfinished {
        /// Where the log ends.
        index: u64,
    },
    /// The entry's data key was not wrapped to this recipient, or its EPOCH entry is damaged.
    #[error("entry {index}: no data key for this recipient")]
    NoKey {
        /// The entry.
        index: u64,
    },
    /// The checksum is right but the seal is broken: somebody rewrote the entry.
    #[error("entry {index}: the seal is broken")]
    Forged {
        /// The entry.
        index: u64,
    },
    /// The body is of a kind or form this version does not know.
    #[error("entry {index}: {source}")]
    Unknown {
        /// The entry.
        index: u64,
        /// What is unknown.
        source: DecodeError,
    },
    /// A file can't be read; the reader ends.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A filter over a log; what is not set matches everything. Filters on access records match no other entry.
#[derive(Clone, Debug, Default)]
pub struct Search {
    /// Value of any key of the subject.
    pub subject: Option<String>,
    /// The consumer.
    pub consumer: Option<DepartmentCode>,
    /// Code of the matter.
    pub matter: Option<String>,
    /// Code of the certificate type.
    pub certificate_type: Option<String>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// The first moment that counts.
    pub since: Option<Timestamp>,
    /// The first moment that no longer counts.
    pub until: Option<Timestamp>,
    /// The gateway's request id.
    pub request_id: Option<RequestId>,
    /// The calling system.
    pub caller: Option<SpiffeId>,
}

impl Search {
    /// True if the entry is asked for.
    pub fn matches(&self, entry: &LoggedEntry) -> bool {
        let in_time =
            self.since.is_none_or(|since| entry.time >= since) && self.until.is_none_or(|until| entry.time < until);
        in_time && entry.access().map_or(self.is_open(), |access| self.matches_access(access))
    }

    fn matches_access(&self, access: &AccessEntry) -> bool {
        let keys = access.subject.as_ref().map(|subject| subject.keys.as_slice()).unwrap_or_default();
        self.subject.as_ref().is_none_or(|wanted| keys.iter().any(|(_, value)| value == wanted))
            && self.consumer.as_ref().is_none_or(|wanted| access.consumer.as_ref() == Some(wanted))
            && self.matter.as_ref().is_none_or(|wanted| access.matter == *wanted)
            && self.certificate_type.as_ref().is_none_or(|wanted| access.certificate_type == *wanted)
            && self.outcome.is_none_or(|wanted| access.outcome == wanted)
            && self.request_id.is_none_or(|wanted| access.request_id == wanted)
            && self.caller.as_ref().is_none_or(|wanted| access.caller == *wanted)
    }

    /// True if nothing but times is asked for.
    fn is_open(&self) -> bool {
        let Self { subject, consumer, matter, certificate_type, outcome, since: _, until: _, request_id, caller } =
            self;
        subject.is_none()
            && consumer.is_none()
            && matter.is_none()
            && certificate_type.is_none()
            && outcome.is_none()
            && request_id.is_none()
            && caller.is_none()
    }
}
