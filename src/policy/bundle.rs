//! The files of a bundle: which there are, and how they are copied so that what is checked is what is kept.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::catalog::Faults;

/// A bundle has at most this many files: twice the grant files there may be, their signatures, and room for the rest.
const MAX_FILES: usize = 10_000;
/// And is at most this large, in bytes: four of the largest descriptor sets.
const MAX_BYTES: u64 = 64 << 20;
/// `grants/<matter>/<PROVIDER>.toml` is the deepest.
const MAX_DEPTH: usize = 3;

/// What the store adds to a bundle's files; a file of this name is none of the bundle's.
pub(super) const RECORD: &str = "generation.toml";

/// What lies in a bundle's folder.
#[derive(Debug, Default)]
pub(super) struct Listed {
    /// Every file by its path within the bundle, `/` between names. Links are followed.
    pub(super) files: BTreeMap<String, PathBuf>,
    /// Hidden files and folders, as editors and volumes leave them: nothing reads or copies them.
    pub(super) hidden: Vec<PathBuf>,
}

/// Lists a bundle.
pub(super) fn list(bundle: &Path, faults: &mut Faults) -> Listed {
    let mut listed = Listed::default();
    walk(bundle, "", 1, &mut listed, faults);
    if listed.files.len() > MAX_FILES {
        faults.of(bundle, format!("more than {MAX_FILES} files"));
    }
    listed.files.remove(RECORD);
    listed
}

fn walk(dir: &Path, prefix: &str, depth: usize, listed: &mut Listed, faults: &mut Faults) {
    let entries = match fs::read_dir(dir).and_then(Iterator::collect::<Result<Vec<_>, _>>) {
        Ok(entries) => entries,
        Err(error) => return faults.of(dir, format!("can't be read: {error}")),
    };
    for entry in entries {
        let path = entry.path();
        let Ok(name) = entry.file_name().into_string() else {
            faults.of(&path, "the name is not UTF-8");
            continue;
        };
        if listed.files.len() + listed.hidden.len() > MAX_FILES {
            continue;
        }
        if name.starts_with('.') {
            listed.hidden.push(path);
            continue;
        }
        let within = format!("{prefix}{name}");
        match fs::metadata(&path) {
            Ok(found) if found.is_file() => {
                listed.files.insert(within, path);
            }
            Ok(found) if found.is_dir() && depth < MAX_DEPTH => {
                walk(&path, &format!("{within}/"), depth + 1, listed, faults);
            }
            Ok(found) if found.is_dir() => faults.of(&path, "no folder of a bundle is that deep"),
            Ok(_) => faults.of(&path, "is no file"),
            Err(error) => faults.of(&path, format!("can't be read: {error}")),
        }
    }
}

/// Copies the bundle's files to `to`, which must not exist, and returns once they are on disk. `step` stands before each
/// thing that reaches the disk.
pub(super) fn copy(bundle: &Path, to: &Path, faults: &mut Faults, step: &dyn Fn() -> io::Result<()>) -> io::Result<()> {
    let files = list(bundle, faults).files;
    make_dir(to)?;
    let mut left = MAX_BYTES;
    let mut folders = BTreeSet::from([to.to_owned()]);
    for (within, from) in &files {
        let bytes = match File::open(from).and_then(|file| read_at_most(file, left)) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => {
                faults.of(bundle, format!("larger than {MAX_BYTES} bytes"));
                break;
            }
            Err(error) => {
                faults.of(from, format!("can't be read: {error}"));
                continue;
            }
        };
        left = left.saturating_sub(bytes.len() as u64);
        let place = to.join(within);
        for folder in place.ancestors().skip(1).take_while(|folder| *folder != to) {
            folders.insert(folder.to_owned());
        }
        make_dir(place.parent().unwrap_or(to))?;
        step()?;
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&place)?.write_all(&bytes)?;
    }
    // Written first and synced then, so that the disk can take them together.
    for within in files.keys() {
        match File::open(to.join(within)) {
            Ok(file) => file.sync_all()?,
            // Among the faults.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    for folder in folders {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

fn make_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn read_at_most(file: File, most: u64) -> io::Result<Option<Vec<u8>>> {
    use io::Read as _;
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= most).then_some(bytes))
}
