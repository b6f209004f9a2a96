//! Policy generations on disk, written in an order that leaves a loadable `current` whenever the machine stops.
//!
//! ```text
//! <store>/current ─► 7          what serves: the newest; flipped by rename
//!         1 … 7                 each a bundle's files and generation.toml; immutable once their number stands
//!         new                   what is being checked; thrown away at the next start
//!         lock                  held by the gateway
//! ```
//! A rollback is a new generation too, a copy of an older one: numbers only rise, and what served when is told by them.
//! So nothing but the newest ever serves, and a start does not believe a link that is gone or leads elsewhere.
//! Nothing is thrown away: who wants the room removes old folders.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, symlink};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::bundle::{self, RECORD};
use super::signed::{Version, Versions};
use super::{Policy, PolicyHash};
use crate::catalog::Faults;
use crate::clock::Timestamp;

const CURRENT: &str = "current";
const FLIP: &str = "current.new";
const NEW: &str = "new";
const LOCK: &str = "lock";

/// The folder of generations; one process has it open.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    _lock: File,
    #[cfg(test)]
    pub(super) steps_left: std::sync::atomic::AtomicUsize,
}

/// A generation on disk.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its number, from 1.
    pub number: u64,
    /// Its folder.
    pub dir: PathBuf,
    /// What is known of it.
    pub record: Record,
}

/// `generation.toml`: how a generation came to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The policy's hash.
    pub hash: String,
    /// When it was made, RFC 3339.
    pub when: String,
    /// Who made it: the user, and the key that approved it.
    pub who: String,
    /// Hash of the policy that served before; none for the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The generation that it is a copy of, if it was rolled back to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback_of: Option<u64>,
    /// The security administrator's approval of the hash; none for a generation that a gateway began with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<String>,
    /// The highest version of each file up to here, and the SHA-256 of its bytes.
    #[serde(default)]
    versions: BTreeMap<String, (u64, String)>,
}

impl Record {
    /// Of a policy that `who` puts in force at `now`; `before` is the newest generation, if there is one.
    pub fn new(policy: &Policy, now: Timestamp, who: String, before: Option<&Self>) -> Self {
        let mut highest = before.map(|before| before.versions.clone()).unwrap_or_default();
        for (within, version) in policy.versions() {
            let known = highest.get(within).map_or(0, |(number, _)| *number);
            if version.number >= known {
                highest.insert(within.clone(), (version.number, hex::encode(version.sha256)));
            }
        }
        let hash = policy.hash().to_string();
        Self { hash, when: now.to_rfc3339(), who, from: None, rollback_of: None, approval: None, versions: highest }
    }

    /// The same in place of `from`, which served until now, with the approval of its hash.
    #[must_use]
    pub fn instead_of(self, from: &PolicyHash, rollback_of: Option<u64>, approval: String) -> Self {
        Self { from: Some(from.to_string()), rollback_of, approval: Some(approval), ..self }
    }

    /// The highest versions up to here.
    pub(super) fn versions(&self) -> Versions {
        let version = |(within, (number, hash)): (&String, &(u64, String))| {
            let mut sha256 = [0; 32];
            // What is not a hash equals none.
            let _ = hex::decode_to_slice(hash, &mut sha256);
            (within.clone(), Version { number: *number, sha256 })
        };
        self.versions.iter().map(version).collect()
    }
}

/// Why the store can't be used.
#[derive(Debug, thiserror::Error)]
#[error("policy store {}: {source}", path.display())]
pub struct StoreError {
    path: PathBuf,
    source: io::Error,
}

impl Store {
    /// Opens the store at `root`, makes it if there is none, and removes what a stop in the midst of something left.
    ///
    /// # Errors
    /// If it can't be written, or another process has it open.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let opened = || {
            DirBuilder::new().recursive(true).mode(0o700).create(root)?;
            let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(root.join(LOCK))?;
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(io::Error::new(io::ErrorKind::WouldBlock, "is in use by another gateway"));
                }
                Err(TryLockError::Error(error)) => return Err(error),
            }
            gone(fs::remove_dir_all(root.join(NEW)))?;
            gone(fs::remove_file(root.join(FLIP)))?;
            Ok(Self {
                root: root.to_owned(),
                _lock: lock,
                #[cfg(test)]
                steps_left: usize::MAX.into(),
            })
        };
        opened().map_err(|source| StoreError { path: root.to_owned(), source })
    }

    /// The generation that serves; none if the store is empty. That is the newest: whoever moves the link chooses none. A
    /// link to the one before the newest is what a stop between [`Store::commit`]'s two renames leaves; the newest was
    /// checked and on record by then, so the link is flipped now.
    ///
    /// # Errors
    /// If it can't be read, or the link is gone or leads further back: then nothing else may serve in its place.
    pub fn current(&self) -> Result<Option<Stored>, StoreError> {
        let link = self.root.join(CURRENT);
        let linked = match fs::read_link(&link) {
            Ok(to) => to.to_str().and_then(|to| to.parse().ok()),
            // As before the first generation.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Some(0),
            Err(source) => return Err(StoreError { path: link, source }),
        };
        let newest = self.numbers()?.last().copied().unwrap_or_default();
        match linked {
            Some(0) if newest == 0 => return Ok(None),
            Some(linked) if linked == newest => {}
            Some(linked) if linked.checked_add(1) == Some(newest) => {
                self.flip(newest).map_err(|source| StoreError { path: link, source })?;
            }
            _ => {
                let why = format!(
                    "does not lead to {newest}, the newest generation, and nothing older may serve: find out who changed \
                     it, then `ln -sfn {newest} current` in that folder"
                );
                return Err(StoreError { path: link, source: io::Error::new(io::ErrorKind::InvalidData, why) });
            }
        }
        self.stored(newest).map(Some)
    }

    /// A generation by its number.
    ///
    /// # Errors
    /// If there is none, or its record can't be read.
    pub fn stored(&self, number: u64) -> Result<Stored, StoreError> {
        let dir = self.root.join(number.to_string());
        let file = dir.join(RECORD);
        let record = fs::read_to_string(&file).and_then(|text| toml::from_str(&text).map_err(io::Error::other));
        match record {
            Ok(record) => Ok(Stored { number, dir, record }),
            Err(source) => Err(StoreError { path: file, source }),
        }
    }

    /// The newest generation; its record has the highest versions.
    ///
    /// # Errors
    /// If the folder or its record can't be read.
    pub fn newest(&self) -> Result<Option<Stored>, StoreError> {
        self.numbers()?.last().map(|number| self.stored(*number)).transpose()
    }

    /// The numbers of all generations, ascending.
    ///
    /// # Errors
    /// If the folder can't be read.
    pub fn numbers(&self) -> Result<Vec<u64>, StoreError> {
        let entries = fs::read_dir(&self.root).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let entries = entries.map_err(|source| StoreError { path: self.root.clone(), source })?;
        let number = |entry: &fs::DirEntry| entry.file_name().to_str()?.parse().ok();
        let mut numbers: Vec<u64> = entries.iter().filter_map(number).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Copies a bundle to where nobody else writes, and tells where that is. Checks come then.
    ///
    /// # Errors
    /// What can't be copied.
    pub fn stage(&self, bundle: &Path) -> Result<PathBuf, Faults> {
        let new = self.root.join(NEW);
        let mut faults = Faults::default();
        let copied =
            gone(fs::remove_dir_all(&new)).and_then(|()| bundle::copy(bundle, &new, &mut faults, &|| self.step()));
        if let Err(error) = copied {
            faults.of(&new, format!("can't be written: {error}"));
        }
        if !faults.0.is_empty() {
            self.discard();
        }
        faults.or(new)
    }

    /// Throws away what is staged.
    pub fn discard(&self) {
        // What stays is removed at the next start, or before the next bundle is staged.
        let _ = fs::remove_dir_all(self.root.join(NEW));
    }

    /// Writes the record beside what is staged: after that only [`Store::commit`] is missing.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn prepare(&self, record: &Record) -> Result<(), StoreError> {
        let new = self.root.join(NEW);
        let written = || {
            let text = toml::to_string(record).map_err(io::Error::other)?;
            self.step()?;
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(new.join(RECORD))?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            File::open(&new)?.sync_all()
        };
        written().map_err(|source| StoreError { path: new.clone(), source })
    }

    /// Makes what is staged the newest generation and flips `current` to it. Returns its number once that is on disk.
    ///
    /// # Errors
    /// If the disk fails; the next start then serves what served before or, if the generation has its number already, the
    /// new one.
    pub fn commit(&self) -> Result<u64, StoreError> {
        let number = self.numbers()?.last().map_or(1, |last| last + 1);
        let numbered = || {
            self.step()?;
            fs::rename(self.root.join(NEW), self.root.join(number.to_string()))?;
            File::open(&self.root)?.sync_all()
        };
        let committed = numbered().and_then(|()| self.flip(number));
        committed.map(|()| number).map_err(|source| StoreError { path: self.root.clone(), source })
    }

    /// Leads `current` to a generation.
    fn flip(&self, number: u64) -> io::Result<()> {
        gone(fs::remove_file(self.root.join(FLIP)))?;
        self.step()?;
        symlink(number.to_string(), self.root.join(FLIP))?;
        self.step()?;
        fs::rename(self.root.join(FLIP), self.root.join(CURRENT))?;
        self.step()?;
        File::open(&self.root)?.sync_all()
    }

    /// Stands before each thing that reaches the disk, so that tests can stop there.
    #[cfg_attr(not(test), expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "tests stop here"))]
    fn step(&self) -> io::Result<()> {
        #[cfg(test)]
        {
            use std::sync::atomic::Ordering::SeqCst;
            let left = self.steps_left.load(SeqCst);
            if left == 0 {
                return Err(io::Error::other("stopped"));
            }
            self.steps_left.store(left - 1, SeqCst);
        }
        Ok(())
    }
}

/// Removing what is not there is no error.
fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
