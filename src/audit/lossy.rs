//! A disk that loses, when the power fails, whatever was not synced: bytes of files, and names of directories.
//!
//! What is done is done to real files, as a page cache shows it; beside them stands what is durable for certain, and what
//! may or may not be. [`Lossy::cut`] puts into the directories what a disk could hold after a power cut.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rand::Rng;

use super::medium::{Disk, Medium, Open, Space};

/// Bytes that reach a disk together.
const SECTOR: usize = 512;

/// The disk. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lossy(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// By inode number.
    files: HashMap<u64, Content>,
    dirs: HashMap<PathBuf, Names>,
    done: u64,
    /// The power fails after so many operations.
    fails_after: Option<u64>,
    /// After so many syncs of files they fail, and what they should have made durable is lost though it can still be read.
    syncs_left: Option<u64>,
}

#[derive(Debug)]
struct Content {
    /// Keeps the inode number from being given to another file; opened anew, for a clone would share a lock.
    _open: File,
    durable: Vec<u8>,
    unsynced: Vec<Change>,
}

#[derive(Debug)]
enum Change {
    Write(u64, Vec<u8>),
    Cut(u64),
}

#[derive(Debug, Default)]
struct Names {
    durable: BTreeMap<OsString, u64>,
    /// Each step is whole or not at all, and none is without those before.
    unsynced: Vec<Vec<(OsString, Option<u64>)>>,
}

impl Lossy {
    /// Everything in these directories is durable, to begin with.
    pub(crate) fn over(dirs: &[&Path]) -> Self {
        let lossy = Self::default();
        for dir in dirs {
            let mut names = Names::default();
            for entry in fs::read_dir(dir).into_iter().flatten() {
                let entry = entry.unwrap();
                if entry.file_type().unwrap().is_file() {
                    let file = File::open(entry.path()).unwrap();
                    let number = file.metadata().unwrap().ino();
                    let durable = fs::read(entry.path()).unwrap();
                    lossy.state().files.insert(number, Content { _open: file, durable, unsynced: Vec::new() });
                    names.durable.insert(entry.file_name(), number);
                }
            }
            lossy.state().dirs.insert(dir.to_path_buf(), names);
        }
        lossy
    }

    /// After so many operations from now on nothing works any more.
    pub(crate) fn fail_after(&self, operations: u64) {
        let mut state = self.state();
        state.fails_after = Some(state.done + operations);
    }

    /// After so many syncs of files they fail; with `None` they do no longer.
    pub(crate) fn fail_syncs_after(&self, syncs: Option<u64>) {
        self.state().syncs_left = syncs;
    }

    /// True once nothing works any more.
    pub(crate) fn is_off(&self) -> bool {
        let state = self.state();
        state.fails_after.is_some_and(|last| state.done >= last)
    }

    /// Changes of a file that are not durable yet.
    pub(crate) fn unsynced(&self, path: &Path) -> usize {
        let number = fs::metadata(path).unwrap().ino();
        self.state().files[&number].unsynced.len()
    }

    /// The power fails: the directories hold what was synced, and by chance some of the rest.
    pub(crate) fn cut(&self, random: &mut impl Rng) {
        let state = self.state();
        for (dir, names) in &state.dirs {
            for entry in fs::read_dir(dir).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_file() {
                    fs::remove_file(path).unwrap();
                }
            }
            let mut left = names.durable.clone();
            let kept = random.random_range(0..=names.unsynced.len());
            for (name, number) in names.unsynced.iter().take(kept).flatten() {
                match number {
                    Some(number) => left.insert(name.clone(), *number),
                    None => left.remove(name),
                };
            }
            for (name, number) in left {
                fs::write(dir.join(name), state.files[&number].after_cut(random)).unwrap();
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn step(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        if state.fails_after.is_some_and(|last| state.done >= last) {
            return Err(io::Error::other("no power"));
        }
        state.done += 1;
        Ok(state)
    }
}

impl State {
    /// Changes of names in a directory, which must be one of those that the disk was made over.
    fn names(&mut self, dir: &Path) -> &mut Vec<Vec<(OsString, Option<u64>)>> {
        &mut self.dirs.get_mut(dir).unwrap().unsynced
    }
}

impl Content {
    fn after_cut(&self, random: &mut impl Rng) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        // All, nothing, or any sectors of each.
        let luck = random.random_range(0..4);
        for change in &self.unsynced {
            match change {
                Change::Cut(len) if luck > 1 || random.random() => bytes.resize(usize::try_from(*len).unwrap(), 0),
                Change::Cut(_) => {}
                Change::Write(at, written) => {
                    let at = usize::try_from(*at).unwrap();
                    let mut from = 0;
                    while from < written.len() {
                        let until = written.len().min(from + SECTOR - (at + from) % SECTOR);
                        if luck == 0 || luck > 1 && random.random() {
                            put(&mut bytes, at + from, &written[from..until]);
                        }
                        from = until;
                    }
                }
            }
        }
        bytes
    }
}

fn put(bytes: &mut Vec<u8>, at: usize, written: &[u8]) {
    if bytes.len() < at + written.len() {
        bytes.resize(at + written.len(), 0);
    }
    bytes[at..at + written.len()].copy_from_slice(written);
}

fn split(path: &Path) -> (PathBuf, OsString) {
    (path.parent().unwrap().to_owned(), path.file_name().unwrap().to_owned())
}

impl Medium for Lossy {
    fn open(&self, path: &Path, how: Open) -> io::Result<File> {
        let mut state = self.step()?;
        let new = !path.exists();
        let file = Disk.open(path, how)?;
        let number = file.metadata()?.ino();
        if new {
            let content = Content { _open: File::open(path)?, durable: Vec::new(), unsynced: Vec::new() };
            state.files.insert(number, content);
            let (dir, name) = split(path);
            state.names(&dir).push(vec![(name, Some(number))]);
        }
        Ok(file)
    }

    fn write(&self, file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
        let mut state = self.step()?;
        Disk.write(file, bytes, at)?;
        let content = state.files.get_mut(&file.metadata()?.ino()).unwrap();
        content.unsynced.push(Change::Write(at, bytes.to_vec()));
        Ok(())
    }

    fn cut(&self, file: &File, len: u64) -> io::Result<()> {
        let mut state = self.step()?;
        Disk.cut(file, len)?;
        state.files.get_mut(&file.metadata()?.ino()).unwrap().unsynced.push(Change::Cut(len));
        Ok(())
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        let mut state = self.step()?;
        let fails = state.syncs_left == Some(0);
        state.syncs_left = state.syncs_left.map(|left| left.saturating_sub(1));
        let content = state.files.get_mut(&file.metadata()?.ino()).unwrap();
        let changes = std::mem::take(&mut content.unsynced);
        if fails {
            return Err(io::Error::other("the sync failed"));
        }
        for change in changes {
            match change {
                Change::Write(at, bytes) => put(&mut content.durable, usize::try_from(at).unwrap(), &bytes),
                Change::Cut(len) => content.durable.resize(usize::try_from(len).unwrap(), 0),
            }
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.step()?;
        let number = fs::metadata(from)?.ino();
        Disk.rename(from, to)?;
        let ((dir, old), (_, new)) = (split(from), split(to));
        state.names(&dir).push(vec![(old, None), (new, Some(number))]);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.step()?;
        if path.exists() {
            Disk.remove(path)?;
            let (dir, name) = split(path);
            state.names(&dir).push(vec![(name, None)]);
        }
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.step()?;
        // Those above are none of its business.
        let Some(names) = state.dirs.get_mut(dir) else { return Ok(()) };
        for (name, number) in std::mem::take(&mut names.unsynced).into_iter().flatten() {
            match number {
                Some(number) => names.durable.insert(name, number),
                None => names.durable.remove(&name),
            };
        }
        Ok(())
    }

    fn space(&self, _: &Path) -> io::Result<Space> {
        Ok(Space { total: 100, free: 100 })
    }
}
