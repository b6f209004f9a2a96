//! What a log, and a witness's memory, need of a disk: every change of a file or of a name goes through here. Tests put
//! one in its place that fails, stalls, lies, or loses what was not synced.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::{fmt, io};

/// How a file is opened; always for reading and writing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Open {
    /// It must exist.
    Existing,
    /// It is made, empty, if it does not exist.
    OrMade,
    /// It must not exist, and is made.
    New,
}

/// A disk.
pub(crate) trait Medium: fmt::Debug + Send + Sync + 'static {
    /// Opens a file. One that is made has its name for good only after [`Medium::sync_dir`].
    fn open(&self, path: &Path, how: Open) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(how == Open::OrMade).create_new(how == Open::New).mode(0o640);
        options.open(path)
    }

    /// Writes all bytes at an offset.
    fn write(&self, file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
        file.write_all_at(bytes, at)
    }

    /// Cuts a file off.
    fn cut(&self, file: &File, len: u64) -> io::Result<()> {
        file.set_len(len)
    }

    /// Returns once everything written to the file, and its size, is durable.
    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    /// Gives a file of a directory another name there, in place of one that has it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    /// Removes a file, if it exists.
    fn remove(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Returns once the names in a directory are durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    /// Puts `bytes` into the file `name` of `dir`. When it returns `Ok`, they are durable there; until then, and after an
    /// error, the file is as it was, or the new one.
    fn replace(&self, dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
        let beside = dir.join(format!("{name}.tmp"));
        // What a crash left is in the way; a sync that failed must not be tried again on the same file.
        self.remove(&beside)?;
        let file = self.open(&beside, Open::New)?;
        self.write(&file, bytes, 0)?;
        self.sync(&file)?;
        self.rename(&beside, &dir.join(name))?;
        self.sync_dir(dir)
    }

    /// How full the file system is.
    fn space(&self, dir: &Path) -> io::Result<Space> {
        let found = rustix::fs::statvfs(dir)?;
        // As `df` has it: what is reserved for others counts neither as used nor as free.
        let used = found.f_blocks.saturating_sub(found.f_bfree);
        Ok(Space { total: used.saturating_add(found.f_bavail), free: found.f_bavail })
    }
}

/// The machine's disk.
#[derive(Debug)]
pub(crate) struct Disk;

impl Medium for Disk {}

/// Blocks of a file system, those reserved for others left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Space {
    pub(crate) total: u64,
    /// What this process may still take.
    pub(crate) free: u64,
}

impl Space {
    /// Used, in percent, rounded down; 0 for a file system that does not tell.
    pub(super) fn used_percent(self) -> u8 {
        let used = self.total.saturating_sub(self.free).saturating_mul(100);
        used.checked_div(self.total).and_then(|percent| u8::try_from(percent).ok()).unwrap_or_default()
    }
}

/// True for errors that only say that nothing more fits: what was written before is as it was.
pub(super) fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}
