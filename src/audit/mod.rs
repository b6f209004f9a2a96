//! The access log: one entry for every look, durable before the answer leaves.
//!
//! # The story of an entry
//! ```text
//! append(entry) ─► encode, bounded ─► queue ─► writer thread: takes what is there, gives each entry its index,
//!      │            (caller's task)  (bounded)  seals it, hashes it; one write, one fdatasync for all of them
//!      └── Recorded ◄── one wake-up of the runtime per batch ◄──┘
//! ```
//! - [`Recorded`] is the evidence that an answer demands. It is made in one place, after `fdatasync`.
//! - A full queue refuses at once ([`AppendError::Full`]); a slow disk refuses after `wait_ms`
//!   ([`AppendError::TooSlow`]). In neither case may data leave.
//! - Any I/O error poisons the log until the process is restarted: those who wait and all later appends get
//!   [`AppendError::Unavailable`]. Nothing is retried, for after a failed sync the kernel may show bytes the disk never
//!   got. The process stays up, to say so.
//!
//! # Files
//! `dir/0000000000.seg`, `0000000001.seg` …: 65,536 entries each (256 C2SP entry bundles), a plain concatenation of
//! `u16 length ‖ entry`, zero-filled ahead. `dir/origin` names the log, `dir/lock` keeps a second writer out. An entry is a
//! 30-byte clear header (`frame.rs`), the sealed body, a 16-byte tag; its RFC 6962 leaf is SHA-256(0x00 ‖ entry). The bytes
//! of an entry are final: Merkle tiles, checkpoints and proofs are derived from them.
//!
//! # Who can read
//! At start and with each new day (UTC+8) the writer draws a data key and wraps it with HPKE to the auditor's and the
//! escrow's public keys: an EPOCH entry (`seal.rs`). The gateway and its administrators append but can't read; in clear
//! stand only kind, index and time. Destroying the private keys shreds every copy, while hashes and proofs stay valid.
//!
//! # After a crash
//! Recovery (`recover.rs`) tells a torn last batch, which nobody was answered for and which is cut off, from damage, which is refused.
//!
//! Reading is [`reader`], key files are [`keys`].

mod alarms;
pub mod checkpoint;
mod config;
mod entry;
pub(crate) mod files;
mod frame;
mod journal;
mod keyring;
pub mod keys;
#[cfg(test)]
pub(crate) mod lossy;
pub(crate) mod medium;
pub mod merkle;
pub mod note;
pub mod prune;
mod publisher;
pub mod reader;
pub mod receipt;
mod recover;
pub mod rotation;
mod scan;
mod seal;
mod segment;
#[cfg(test)]
mod tests;
pub mod tree;
pub mod verify;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fmt, io};

pub use self::alarms::Alarms;
use self::checkpoint::Tree;
pub use self::config::{AuditConfig, ContinuesConfig, DiskLimits, PeerTls, ServeConfig, WitnessConfig};
pub use self::entry::{
    AccessEntry, AdminEntry, ComparedField, Comparison, DecodeError, Entry, EntrySubject, LegalBasis, MaskedField,
    Mode, Omitted, Outcome, PolicyChangeEntry, PolicyKeys, RecordDecision, StartEntry, StopEntry, WithheldField,
};
pub(crate) use self::frame::PER_SEGMENT;
pub(crate) use self::journal::ORIGIN_FILE;
pub use self::journal::{Journal, Pending, Refuted};
pub use self::keyring::RotateError;
use self::keys::KeyError;
pub use self::publisher::Published;
pub(crate) use self::scan::file_name as segment_file;
use crate::clock::Timestamp;

/// What a START entry says about the program that starts.
#[derive(Debug, Clone)]
pub struct StartInfo {
    /// SPIFFE ID of the gateway.
    pub gateway: String,
    /// Hash of the policy generation that serves.
    pub policy: [u8; 32],
    /// The trust generation that serves, and who made it how, in words.
    pub trust: String,
    /// Who can change it.
    pub policy_keys: PolicyKeys,
    /// Trees of this log that others hold, witnesses above all: a log that does not contain them is not continued.
    pub held: Vec<Tree>,
}

/// Evidence that an entry is durable, and the receipt for it. Only the journal makes one, after `fdatasync`.
#[derive(Clone, PartialEq, Eq)]
pub struct Recorded {
    origin: Arc<str>,
    index: u64,
    time: Timestamp,
    leaf_hash: [u8; 32],
    signed: Option<Arc<str>>,
}

impl Recorded {
    /// Name of the log.
    pub fn origin(&self) -> &Arc<str> {
        &self.origin
    }

    /// Index of the entry in the log, from 0.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// When the entry was sealed.
    pub fn time(&self) -> Timestamp {
        self.time
    }

    /// Its hash as a leaf of the log's Merkle tree.
    pub fn leaf_hash(&self) -> &[u8; 32] {
        &self.leaf_hash
    }

    /// The signed receipt (JWS), if one was asked for.
    pub fn signed(&self) -> Option<&str> {
        self.signed.as_deref()
    }
}

impl fmt::Debug for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recorded({}/{})", self.origin, self.index)
    }
}

/// Name, size and health of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalStatus {
    /// Its name.
    pub origin: Arc<str>,
    /// Durable entries.
    pub size: u64,
    /// False once closed or poisoned, and while entries are refused.
    pub writable: bool,
    /// Entries in the latest checkpoint.
    pub signed: u64,
    /// When a witness last cosigned.
    pub witnessed_at: Option<Timestamp>,
    /// How full its file system is, in percent.
    pub disk_percent: u8,
    /// What is wrong, in words; empty if nothing is.
    pub alarms: Vec<&'static str>,
}

/// Why there is no evidence that an entry is durable. No data may leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// Too many entries wait; the caller may try again soon.
    #[error("the access log's queue is full")]
    Full,
    /// Not durable within the wait limit; the entry may still be written.
    #[error("the access log's disk is too slow")]
    TooSlow,
    /// The log is poisoned or closed.
    #[error("the access log can't be written")]
    Unavailable,
    /// Entries are refused until the disk has room, or a witness cosigns, again.
    #[error("the access log takes no entries for now")]
    Refused,
}

/// Why a log can't be opened for writing.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// An option is out of its bounds.
    #[error("audit.{0}")]
    Option(&'static str),
    /// A recipient's key can't be used.
    #[error("audit recipient {}: {source}", file.display())]
    Recipient {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        source: KeyError,
    },
    /// Another process writes this log.
    #[error("access log {} is in use by another process", dir.display())]
    Locked {
        /// The log.
        dir: PathBuf,
    },
    /// The directory holds the log of another origin.
    #[error("access log {} has another origin than configured", dir.display())]
    Origin {
        /// The log.
        dir: PathBuf,
    },
    /// Acknowledged entries are damaged or missing. Such a log is never continued: keep it and start a new origin.
    #[error("access log {} is corrupt at entry {index}: {what}", dir.display())]
    Corrupt {
        /// The log.
        dir: PathBuf,
        /// The first bad entry.
        index: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The log is shorter than what it has signed. It is never continued: keep it, start a new origin that continues it.
    #[error("access log {} was rolled back: it has {size} entries, and {signed} are signed", dir.display())]
    Rollback {
        /// The log.
        dir: PathBuf,
        /// Entries found.
        size: u64,
        /// Entries signed.
        signed: u64,
    },
    /// The log's entries are not those it has signed. It is never continued: keep it, start a new origin.
    #[error("access log {} was rewritten: its first {size} entries are not those that are signed", dir.display())]
    Fork {
        /// The log.
        dir: PathBuf,
        /// Entries signed.
        size: u64,
    },
    /// The log's entries are there and its checkpoint is not: so nobody could tell whether some are missing.
    #[error(
        "access log {} has {size} entries and no checkpoint: put its file `checkpoint` back, or if it is lost the one that \
         a witness holds; without either start a new origin that continues this log",
        dir.display()
    )]
    NoCheckpoint {
        /// The log.
        dir: PathBuf,
        /// Entries found.
        size: u64,
    },
    /// A checkpoint beside the log can't be used.
    #[error("access log {}: the file {name}: {what}", dir.display())]
    Checkpoint {
        /// The log.
        dir: PathBuf,
        /// Its name.
        name: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A signing key can't be used.
    #[error("audit signing key {}: {what}", file.display())]
    SigningKey {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The directory, or a file in it, can't be opened for writing.
    #[error(
        "access log {}: {source}: its files must be writable for the gateway's user, on a file system mounted for writing",
        dir.display()
    )]
    ReadOnly {
        /// The log.
        dir: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// No witness said what it holds of this log.
    #[error("no witness of the access log says what it holds, which audit.witness_at_start demands")]
    NoWitness,
    /// A file can't be read or written.
    #[error("access log {}: {source}", dir.display())]
    Io {
        /// The log.
        dir: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The cryptography failed.
    #[error("access log: making a data key failed")]
    Seal,
    /// Called outside a tokio runtime: a program error.
    #[error("access log: opened outside a tokio runtime")]
    NoRuntime,
}

impl OpenError {
    fn io(dir: &Path, source: io::Error) -> Self {
        let dir = dir.to_owned();
        match source.kind() {
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => Self::ReadOnly { dir, source },
            _ => Self::Io { dir, source },
        }
    }
}

/// Material for tests of other rooms.
#[cfg(test)]
pub(crate) mod testing {
    use std::fs;
    use std::path::Path;
    use std::time::Duration;

    use super::frame::{Header, Kind, LENGTH, put};
    use crate::clock::Timestamp;

    /// A well-formed entry at an index, without its length; its body is no real one.
    pub(crate) fn framed(seq: u64) -> Vec<u8> {
        let time = Timestamp::from_secs(1_795_399_200);
        let header = Header { kind: Kind::ACCESS, epoch: 1, seq, batch_pos: 0, time };
        let mut out = Vec::new();
        put(&mut out, &header.bound(), format!("body of {seq}").as_bytes(), &[0; 16]).unwrap();
        out.split_off(LENGTH)
    }

    /// Waits until something is so, for some seconds at most.
    pub(crate) async fn until(what: impl Fn() -> bool) {
        for _ in 0..3000 {
            if what() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("it never came");
    }

    /// Copies the files of a directory.
    pub(crate) fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
}
