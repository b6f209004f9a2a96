//! Reading small files.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

/// The bytes of a file of at most `limit` bytes; `None` if there is none.
pub(crate) fn read_small(path: &Path, limit: usize) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > limit { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(Some(bytes)) }
}

/// The name that a log's directory gives it.
pub(super) fn read_origin(dir: &Path) -> io::Result<String> {
    /// Longest name, in bytes.
    const MAX: usize = 200;
    let bytes = read_small(&dir.join(super::journal::ORIGIN_FILE), MAX)?.ok_or(io::ErrorKind::NotFound)?;
    String::from_utf8(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
}
