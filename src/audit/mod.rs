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

mod entry;
mod frame;
mod journal;
pub mod keys;
pub mod reader;
mod recover;
mod scan;
mod seal;
mod segment;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fmt, io};

use serde::Deserialize;

pub use self::entry::{
    AccessEntry, AdminEntry, ComparedField, Comparison, DecodeError, Entry, EntrySubject, LegalBasis, MaskedField,
    Mode, Omitted, Outcome, PolicyChangeEntry, RecordDecision, StartEntry, StopEntry, WithheldField,
};
pub use self::journal::Journal;
use self::keys::{KeyError, PublicKey};
use crate::clock::Timestamp;

/// Options of the access log.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditConfig {
    /// Directory of this gateway's log; created if it does not exist. Two gateways never share one.
    pub dir: PathBuf,
    /// Name of the log, unique among all gateways, for example `heshan.gov.example/gw1`: 1 to 200 printable ASCII
    /// characters without spaces and `+`. It can't be changed later.
    pub origin: String,
    /// Public keys that can read the log, the auditor's and the escrow's: 2 to 8 files.
    pub recipients: Vec<PathBuf>,
    /// Entries that may wait for the writer, 1 to 1,000,000; more are refused. Default 4,096.
    #[serde(default = "default_queue")]
    pub queue: usize,
    /// Longest wait for durability in milliseconds, 1 to 60,000. Default 2,000.
    #[serde(default = "default_wait_ms")]
    pub wait_ms: u64,
    /// Time from one write to the next while many entries arrive, in microseconds, at most 100,000: what arrives
    /// meanwhile shares a sync, which costs more than all else together. A quiet log writes at once. Default 2,000.
    #[serde(default = "default_pace_us")]
    pub pace_us: u64,
    /// Most entries in one write, 1 to 65,536. Default 1,024.
    #[serde(default = "default_batch")]
    pub batch: usize,
    /// Zeros written ahead of the log's end in MiB, 1 to 1,024. Default 8.
    #[serde(default = "default_preallocate_mib")]
    pub preallocate_mib: u64,
}

const fn default_queue() -> usize {
    4096
}

const fn default_wait_ms() -> u64 {
    2000
}

const fn default_pace_us() -> u64 {
    2000
}

const fn default_batch() -> usize {
    1024
}

const fn default_preallocate_mib() -> u64 {
    8
}

impl AuditConfig {
    /// Makes relative paths relative to `base`, the directory of the configuration file.
    pub fn rebase(&mut self, base: &Path) {
        self.dir = base.join(&self.dir);
        for recipient in &mut self.recipients {
            *recipient = base.join(&*recipient);
        }
    }

    /// Checks every bound.
    pub fn check(&self) -> Result<(), OpenError> {
        let origin_byte = |byte: u8| byte.is_ascii_graphic() && byte != b'+';
        let wrong = if !(1..=200).contains(&self.origin.len()) || !self.origin.bytes().all(origin_byte) {
            "origin: 1 to 200 printable ASCII characters without spaces and `+`"
        } else if !(2..=8).contains(&self.recipients.len()) {
            "recipients: 2 to 8 public key files, the auditor's and the escrow's"
        } else if !(1..=1_000_000).contains(&self.queue) {
            "queue: 1 to 1000000"
        } else if !(1..=60_000).contains(&self.wait_ms) {
            "wait_ms: 1 to 60000"
        } else if self.pace_us > 100_000 {
            "pace_us: at most 100000"
        } else if !(1..=65_536).contains(&self.batch) {
            "batch: 1 to 65536"
        } else if !(1..=1024).contains(&self.preallocate_mib) {
            "preallocate_mib: 1 to 1024"
        } else {
            return Ok(());
        };
        Err(OpenError::Option(wrong))
    }

    /// Reads the public keys.
    pub fn load_recipients(&self) -> Result<Vec<PublicKey>, OpenError> {
        let mut keys = Vec::with_capacity(self.recipients.len());
        for file in &self.recipients {
            let key = PublicKey::load(file).map_err(|source| OpenError::Recipient { file: file.clone(), source })?;
            if keys.contains(&key) {
                return Err(OpenError::Option("recipients: two files hold the same key"));
            }
            keys.push(key);
        }
        Ok(keys)
    }
}

/// What a START entry says about the program that starts.
#[derive(Debug, Clone)]
pub struct StartInfo {
    /// SPIFFE ID of the gateway.
    pub gateway: String,
    /// Hash of the policy generation that serves.
    pub policy: [u8; 32],
}

/// Evidence that an entry is durable, and the receipt for it. Only the journal makes one, after `fdatasync`.
#[derive(Clone, PartialEq, Eq)]
pub struct Recorded {
    origin: Arc<str>,
    index: u64,
    time: Timestamp,
    leaf_hash: [u8; 32],
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
    /// False once closed or poisoned.
    pub writable: bool,
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
