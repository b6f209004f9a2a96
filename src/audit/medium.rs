//! What the log needs of a disk. Tests put one in its place that fails, stalls or lies.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::files;

/// A disk.
pub(super) trait Medium: Send + Sync + 'static {
    /// Writes all bytes at an offset.
    fn write(&self, file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
        file.write_all_at(bytes, at)
    }

    /// Returns once everything written to the file, and its size, is durable.
    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    /// Replaces a small file; see [`files::replace`].
    fn replace(&self, dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
        files::replace(dir, name, bytes)
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
pub(super) struct Disk;

impl Medium for Disk {}

/// Blocks of a file system, those reserved for others left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Space {
    pub(super) total: u64,
    /// What this process may still take.
    pub(super) free: u64,
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
