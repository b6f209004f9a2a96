//! The directory a run writes: whole files only, private ones readable by their owner alone, complete or known not to be.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::PkiError;

/// Says whether the directory is complete, and that it is ours.
const MARKER: &str = "oncegate-pki";
const INCOMPLETE: &str = "incomplete\n";
/// What an older version completed lacks what is needed now: it counts as incomplete.
const COMPLETE: &str = "complete, with a trust directory and the keys of a signed log\n";
/// Everything else a run writes; nothing but these is ever removed.
const FOLDERS: [&str; 8] = ["ca", "gateway", "systems", "sources", "tokens", "policy", "audit", "trust"];
const SUBJECTS_KEY: &str = "subjects.key";

/// A directory being written; incomplete until [`Output::complete`].
pub(super) struct Output {
    root: PathBuf,
}

impl Output {
    /// Takes `root`, and removes what an earlier run wrote there if that is incomplete or `force` is given.
    pub(super) fn begin(root: &Path, force: bool) -> Result<Self, PkiError> {
        let output = Self { root: root.into() };
        output.directory("")?;
        let marker = root.join(MARKER);
        match std::fs::read_to_string(&marker) {
            Ok(state) if state == COMPLETE && !force => return Err(PkiError::Exists(root.into())),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut entries = root.read_dir().map_err(|source| PkiError::Io { path: root.into(), source })?;
                if entries.next().is_some() {
                    return Err(PkiError::NotOurs(root.into()));
                }
            }
            Err(source) => return Err(PkiError::Io { path: marker, source }),
        }
        output.public(MARKER, INCOMPLETE.as_bytes())?;
        for folder in FOLDERS {
            let path = root.join(folder);
            gone(std::fs::remove_dir_all(&path)).map_err(|source| PkiError::Io { path, source })?;
        }
        let path = root.join(SUBJECTS_KEY);
        gone(std::fs::remove_file(&path)).map_err(|source| PkiError::Io { path, source })?;
        Ok(output)
    }

    /// Makes a directory (mode 0700) within the output, with its parents; returns its path.
    pub(super) fn directory(&self, name: &str) -> Result<PathBuf, PkiError> {
        let path = self.root.join(name);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(|source| PkiError::Io { path: path.clone(), source })?;
        Ok(path)
    }

    /// Writes a file anybody may read (mode 0644).
    pub(super) fn public(&self, name: &str, bytes: &[u8]) -> Result<(), PkiError> {
        self.write(name, bytes, 0o644)
    }

    /// Writes a file only its owner may read (mode 0600).
    pub(super) fn private(&self, name: &str, bytes: &[u8]) -> Result<(), PkiError> {
        self.write(name, bytes, 0o600)
    }

    /// Marks the directory as complete.
    pub(super) fn complete(self) -> Result<(), PkiError> {
        self.public(MARKER, COMPLETE.as_bytes())
    }

    fn write(&self, name: &str, bytes: &[u8], mode: u32) -> Result<(), PkiError> {
        let path = self.root.join(name);
        if let Some(folder) = Path::new(name).parent().and_then(Path::to_str) {
            self.directory(folder)?;
        }
        write_whole(&path, bytes, mode).map_err(|source| PkiError::Io { path, source })
    }
}

/// Writes beside the place and renames, so that the file is whole or as it was, and never wider open than `mode`.
pub(super) fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    gone(std::fs::remove_file(&beside))?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)
}

/// Removing what is not there is no error.
fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
