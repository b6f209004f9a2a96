//! The segment files being written: zero-filled ahead, one write and one `fdatasync` per batch, the next segment's file
//! made ready before it is needed.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::medium::{Medium, Open, is_full};
use super::recover::Tail;
use super::scan::file_name;

/// Zeros written at once.
const ZEROS: &[u8] = &[0; 1 << 18];

/// Why a batch can't be written.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    /// Nothing more fits on the disk. Nothing was written, and a later batch may fit.
    #[error("no space left")]
    NoSpace,
    /// Nothing is known about the batch any more: never write or sync again.
    #[error(transparent)]
    Broken(#[from] io::Error),
}

/// The last segment of a log and the place of its next entry.
pub(super) struct Segments {
    dir: PathBuf,
    medium: Arc<dyn Medium>,
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
    pub(super) fn open(dir: &Path, tail: &Tail, step: u64, medium: Arc<dyn Medium>) -> io::Result<Self> {
        let file = open_file(dir, tail.segment, medium.as_ref())?;
        let allocated = file.metadata()?.len();
        Ok(Self { dir: dir.into(), medium, step, number: tail.segment, file, offset: tail.offset, allocated })
    }

    /// Makes room for a batch of at most `len` bytes in segment `number`: this one, or the next. The one before gives
    /// back its unused zeros. So that a batch's sync need not make a new size durable, the file is zero-filled ahead; the
    /// sync of the next batch carries the zeros, too.
    pub(super) fn make_room(&mut self, number: u64, len: u64) -> Result<(), WriteError> {
        if number != self.number {
            if self.allocated != self.offset {
                self.medium.cut(&self.file, self.offset)?;
                self.medium.sync(&self.file)?;
                self.allocated = self.offset;
            }
            self.file = take_ready(&self.dir, number, self.medium.as_ref()).map_err(no_space)?;
            (self.number, self.offset, self.allocated) = (number, 0, self.file.metadata()?.len());
        }
        let needed = self.offset + len;
        if needed <= self.allocated {
            return Ok(());
        }
        let goal = needed.next_multiple_of(self.step);
        while self.allocated < goal {
            let len = usize::try_from(goal - self.allocated).unwrap_or(ZEROS.len()).min(ZEROS.len());
            let zeros = ZEROS.get(..len).unwrap_or(ZEROS);
            self.medium.write(&self.file, zeros, self.allocated).map_err(no_space)?;
            self.allocated += len as u64;
        }
        Ok(())
    }

    /// Appends the bytes of one batch, for which there is room. When it returns `Ok`, they are durable; after an error
    /// nothing is known about them.
    pub(super) fn append(&mut self, batch: &[u8]) -> Result<(), WriteError> {
        self.medium.write(&self.file, batch, self.offset)?;
        self.medium.sync(&self.file)?;
        self.check_name()?;
        self.offset += batch.len() as u64;
        Ok(())
    }

    /// The bytes are safe, but are they in the log? A file that was deleted or replaced is one that nobody will ever
    /// find; one with a second name may be written from elsewhere.
    fn check_name(&self) -> io::Result<()> {
        let ours = self.file.metadata()?;
        if ours.nlink() != 1 {
            return Err(io::Error::other("the segment's file was deleted, or has a second name"));
        }
        let named = fs::symlink_metadata(self.dir.join(file_name(self.number)))?;
        if (named.ino(), named.dev()) == (ours.ino(), ours.dev()) {
            Ok(())
        } else {
            Err(io::Error::other("the segment's file was replaced"))
        }
    }
}

fn no_space(error: io::Error) -> WriteError {
    if is_full(&error) { WriteError::NoSpace } else { WriteError::Broken(error) }
}

/// Name under which the next segment's file waits. Its zeros are a reserve, too: a full disk still takes entries until
/// they are used up.
fn ready_name(number: u64) -> String {
    format!("{number:010}.next")
}

/// Makes the file of a segment ready ahead, `len` bytes of zeros, unless it is. Called from beside the writer.
pub(super) fn make_ready(dir: &Path, number: u64, len: u64, medium: &dyn Medium) -> io::Result<()> {
    let (ready, beside) = (dir.join(ready_name(number)), dir.join(format!("{number:010}.making")));
    if ready.exists() || dir.join(file_name(number)).exists() {
        return Ok(());
    }
    medium.remove(&beside)?;
    let made = || {
        let file = medium.open(&beside, Open::New)?;
        let mut at = 0;
        while at < len {
            let count = usize::try_from(len - at).unwrap_or(ZEROS.len()).min(ZEROS.len());
            medium.write(&file, ZEROS.get(..count).unwrap_or(ZEROS), at)?;
            at += count as u64;
        }
        // Now, so that the first batch in it waits for itself alone. The name is for good once the file is taken.
        medium.sync(&file)?;
        medium.rename(&beside, &ready)
    };
    let made = made();
    if made.is_err() {
        // A full disk is not helped by half a reserve.
        medium.remove(&beside)?;
    }
    made
}

/// Removes files made ready for segments that exist by now.
pub(super) fn clear_ready(dir: &Path, last: u64, medium: &dyn Medium) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let Some(name) = name.to_str() else { continue };
        let number = name.strip_suffix(".next").and_then(|digits| digits.parse::<u64>().ok());
        if name.ends_with(".making") || number.is_some_and(|number| number != last + 1) {
            medium.remove(&dir.join(name))?;
        }
    }
    Ok(())
}

/// The file of the next segment: the one made ready, or a new one.
fn take_ready(dir: &Path, number: u64, medium: &dyn Medium) -> io::Result<File> {
    match medium.rename(&dir.join(ready_name(number)), &dir.join(file_name(number))) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    open_file(dir, number, medium)
}

fn open_file(dir: &Path, number: u64, medium: &dyn Medium) -> io::Result<File> {
    let file = medium.open(&dir.join(file_name(number)), Open::OrMade)?;
    medium.sync_dir(dir)?;
    Ok(file)
}
