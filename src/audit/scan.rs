//! Reading a segment's bytes: entries one after the other, and the search for what stands beyond a bad one. Recovery
//! and the reader share it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::frame::{self, HEADER, Header, LENGTH};

/// Bytes read at once.
const CHUNK: usize = 1 << 20;
/// Bytes compared at once when looking for the end of the data.
const BLOCK: usize = 4096;
/// Name of a segment's file: ten digits and this.
const SUFFIX: &str = ".seg";

/// Name of the file of a segment.
pub(crate) fn file_name(segment: u64) -> String {
    format!("{segment:010}{SUFFIX}")
}

/// The number of the segment whose file has that name: ten digits, so that no index of an entry overflows.
pub(super) fn number_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(SUFFIX)?;
    let canonical = digits.len() == 10 && digits.bytes().all(|byte| byte.is_ascii_digit());
    canonical.then(|| digits.parse().ok())?
}

/// Numbers of the segments in a directory, ascending.
pub(super) fn segments(dir: &std::path::Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        numbers.extend(name.to_str().and_then(number_of));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// A window that moves over a segment's file.
pub(super) struct Window {
    file: File,
    at: u64,
    data: Vec<u8>,
    /// True if `data` ends where the file ends.
    to_end: bool,
}

impl Window {
    pub(super) fn new(file: File) -> Self {
        Self { file, at: 0, data: Vec::new(), to_end: false }
    }

    /// Forgets what was read: a live log may have grown.
    pub(super) fn forget(&mut self) {
        self.data.clear();
        self.to_end = false;
    }

    /// Up to `len` bytes at `offset`; fewer only at the file's end.
    pub(super) fn get(&mut self, offset: u64, len: usize) -> io::Result<&[u8]> {
        let skip = offset.checked_sub(self.at).and_then(|skip| usize::try_from(skip).ok());
        let held = skip.and_then(|skip| self.data.len().checked_sub(skip));
        let skip = match (skip, held) {
            (Some(skip), Some(held)) if held >= len || self.to_end => skip,
            _ => {
                self.fill(offset, len.max(CHUNK))?;
                0
            }
        };
        let rest = self.data.get(skip..).unwrap_or_default();
        Ok(rest.get(..len).unwrap_or(rest))
    }

    /// Header and length of the whole, valid entry at `offset`, if there is one.
    pub(super) fn entry(&mut self, offset: u64) -> io::Result<Option<(Header, usize)>> {
        let Some(length) = self.get(offset, LENGTH)?.first_chunk().map(|length| u16::from_be_bytes(*length)) else {
            return Ok(None);
        };
        let entry = self.bytes(offset, usize::from(length))?;
        let whole = entry.len() == usize::from(length);
        Ok(frame::parse(entry).filter(|_| whole).map(|(header, _)| (header, usize::from(length))))
    }

    /// The bytes of an entry of `length` bytes whose length stands at `offset`.
    pub(super) fn bytes(&mut self, offset: u64, length: usize) -> io::Result<&[u8]> {
        Ok(self.get(offset, LENGTH + length)?.get(LENGTH..).unwrap_or_default())
    }

    /// The first valid entry at or after `from` whose header is wanted. It need not follow the entry before: that one
    /// may be the damaged one.
    pub(super) fn find(&mut self, from: u64, wanted: impl Fn(&Header) -> bool) -> io::Result<Option<(u64, Header)>> {
        let end = self.data_end(from)?;
        let mut offset = from;
        while offset < end {
            // The header is looked at before the CRC: nearly every place fails here, at once.
            let head = self.get(offset, LENGTH + HEADER)?.get(LENGTH..).and_then(Header::peek);
            if head.is_some_and(|head| wanted(&head))
                && let Some((header, _)) = self.entry(offset)?
            {
                return Ok(Some((offset, header)));
            }
            offset += 1;
        }
        Ok(None)
    }

    /// Where the blank rest of the file begins, at or after `from`; at most a block late.
    pub(super) fn data_end(&mut self, from: u64) -> io::Result<u64> {
        let (mut offset, mut end) = (from, from);
        loop {
            let block = self.get(offset, BLOCK)?;
            if block.is_empty() {
                return Ok(end);
            }
            let read = block.len() as u64;
            if [0; BLOCK].get(..block.len()) != Some(block) {
                end = offset + read;
            }
            offset += read;
        }
    }

    fn fill(&mut self, offset: u64, len: usize) -> io::Result<()> {
        self.data.resize(len, 0);
        self.at = offset;
        let mut filled = 0;
        while let Some(space) = self.data.get_mut(filled..).filter(|space| !space.is_empty()) {
            match self.file.read_at(space, offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.forget();
                    return Err(error);
                }
            }
        }
        self.data.truncate(filled);
        self.to_end = filled < len;
        Ok(())
    }
}
