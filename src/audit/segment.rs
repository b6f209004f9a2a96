//! The segment files being written: zero-filled ahead, one write and one `fdatasync` per batch.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::recover::Tail;
use super::scan::file_name;

/// Zeros written at once.
const ZEROS: &[u8] = &[0; 1 << 18];

/// What the log needs of a disk. Tests put a failing one in its place.
pub(super) trait Medium: Send {
    /// Writes all bytes at an offset.
    fn write(&mut self, file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
        file.write_all_at(bytes, at)
    }

    /// Returns once everything written to the file, and its size, is durable.
    fn sync(&mut self, file: &File) -> io::Result<()> {
        file.sync_data()
    }
}

/// The machine's disk.
pub(super) struct Disk;

impl Medium for Disk {}

/// The last segment of a log and the place of its next entry.
pub(super) struct Segments {
    dir: PathBuf,
    medium: Box<dyn Medium>,
    step: u64,
    number: u64,
    file: File,
    /// Where the next entry goes.
    offset: u64,
    /// Size of the file: from `offset` to here it is zero.
    allocated: u64,
}

impl Segments {
    /// Opens the segment where recovery found the log's end, or creates the first one. `step` is in bytes.
    pub(super) fn open(dir: &Path, tail: &Tail, step: u64, medium: Box<dyn Medium>) -> io::Result<Self> {
        let file = open_file(dir, tail.segment)?;
        let allocated = file.metadata()?.len();
        Ok(Self { dir: dir.into(), medium, step, number: tail.segment, file, offset: tail.offset, allocated })
    }

    /// Goes on to segment `number` if it is the next one. The one before gives back its unused zeros.
    pub(super) fn advance_to(&mut self, number: u64) -> io::Result<()> {
        if number == self.number {
            return Ok(());
        }
        self.file.set_len(self.offset)?;
        self.medium.sync(&self.file)?;
        self.file = open_file(&self.dir, number)?;
        (self.number, self.offset, self.allocated) = (number, 0, 0);
        Ok(())
    }

    /// Appends the bytes of one batch. When it returns `Ok`, they are durable; after an error nothing is known about
    /// them, and the caller must never write or sync again.
    pub(super) fn append(&mut self, batch: &[u8]) -> io::Result<()> {
        self.reserve(batch.len() as u64)?;
        self.medium.write(&self.file, batch, self.offset)?;
        self.medium.sync(&self.file)?;
        if self.file.metadata()?.nlink() == 0 {
            // The bytes are safe in a file that nobody will ever find.
            return Err(io::Error::other("the segment's file was deleted"));
        }
        self.offset += batch.len() as u64;
        Ok(())
    }

    /// Fills the file with zeros ahead, so that a batch's sync need not make a new size durable.
    fn reserve(&mut self, len: u64) -> io::Result<()> {
        let needed = self.offset + len;
        if needed <= self.allocated {
            return Ok(());
        }
        let goal = needed.next_multiple_of(self.step);
        while self.allocated < goal {
            let len = usize::try_from(goal - self.allocated).unwrap_or(ZEROS.len()).min(ZEROS.len());
            self.medium.write(&self.file, ZEROS.get(..len).unwrap_or(ZEROS), self.allocated)?;
            self.allocated += len as u64;
        }
        self.medium.sync(&self.file)
    }
}

/// Makes a directory's names durable.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn open_file(dir: &Path, number: u64) -> io::Result<File> {
    let path = dir.join(file_name(number));
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o640).open(path)?;
    sync_dir(dir)?;
    Ok(file)
}
