//! Generations on disk, and the order in which they are written, so that a kill at any moment leaves a `current` that
//! can be loaded.
//!
//! ```text
//! <trust>/current ─► generations/7          what should serve; flipped by rename
//!         staged  ─► drafts/<name>          what `activate` would make generation 8; absent if nothing is staged
//!         generations/1 … 7                 immutable once their number stands
//!         pending/server.key                a key whose certificate is not here yet
//!         lock                              held by whoever writes
//! ```
//! In a mounted volume (Kubernetes), where directories are swapped by their own link, `current` may lead to `..data`;
//! nothing is written then.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, fchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::contents::Contents;
use super::manifest::{MANIFEST, Manifest};
use crate::catalog::Faults;
use crate::clock::{Clock, Timestamp};

const CURRENT: &str = "current";
const STAGED: &str = "staged";
const GENERATIONS: &str = "generations";
const DRAFTS: &str = "drafts";
const PENDING: &str = "pending";
const LOCK: &str = "lock";

/// Older generations are thrown away: they are kept to roll back to, and each holds a private key.
const KEPT: usize = 16;

/// A trust directory.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    #[cfg(test)]
    pub(super) killed_after: std::sync::Arc<std::sync::atomic::AtomicUsize>,
}

/// Where a generation is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its directory, links followed.
    pub dir: PathBuf,
    /// Its number; none in a mounted volume, whose directories have names of their own.
    pub number: Option<u64>,
}

/// Why the trust directory can't be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
pub struct StoreError {
    path: PathBuf,
    source: io::Error,
}

/// The right to write, until it is dropped.
#[derive(Debug)]
pub struct Writing<'a> {
    store: &'a Store,
    _lock: File,
}

impl Store {
    /// The directory `root`, which need not exist yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            #[cfg(test)]
            killed_after: std::sync::Arc::new(usize::MAX.into()),
        }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Makes the directory with nothing in it; what is there stays.
    pub fn init(&self) -> Result<(), StoreError> {
        for name in ["", GENERATIONS, DRAFTS, PENDING] {
            let path = self.root.join(name);
            DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(at(&path))?;
        }
        Ok(())
    }

    /// Where `current` leads; none if nothing was activated yet.
    pub fn current(&self) -> Result<Option<Place>, StoreError> {
        self.place(CURRENT)
    }

    /// Where what is staged is.
    pub fn staged(&self) -> Result<Option<Place>, StoreError> {
        self.place(STAGED)
    }

    /// Where a generation with this number would be.
    pub fn generation(&self, number: u64) -> PathBuf {
        self.root.join(GENERATIONS).join(number.to_string())
    }

    /// The numbers of the generations, in order.
    pub fn numbers(&self) -> Vec<u64> {
        let entries = fs::read_dir(self.root.join(GENERATIONS)).into_iter().flatten().flatten();
        let mut numbers: Vec<u64> = entries.filter_map(|entry| number_of(Path::new(&entry.file_name()))).collect();
        numbers.sort_unstable();
        numbers
    }

    /// The key that waits for its certificate.
    pub fn pending_key(&self, file: &str) -> Option<Vec<u8>> {
        fs::read(self.root.join(PENDING).join(file)).ok()
    }

    /// Takes the right to write.
    pub fn write(&self) -> Result<Writing<'_>, StoreError> {
        let path = self.root.join(LOCK);
        let mut open = OpenOptions::new();
        open.write(true).create(true).truncate(false).mode(0o600);
        let open = open.custom_flags(OFlags::NOFOLLOW.bits().cast_signed()).open(&path);
        let lock = open.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                let source = io::Error::new(error.kind(), "is no trust directory yet; see `oncegate trust init`");
                StoreError { path: self.root.clone(), source }
            }
            _ => StoreError { path: path.clone(), source: error },
        })?;
        lock.try_lock().map_err(|error| match error {
            fs::TryLockError::WouldBlock => {
                let why = "another trust command is under way; try again when it has ended";
                StoreError { path: self.root.clone(), source: io::Error::new(io::ErrorKind::WouldBlock, why) }
            }
            fs::TryLockError::Error(source) => StoreError { path: path.clone(), source },
        })?;
        self.hand_over(&lock, &path)?;
        Ok(Writing { store: self, _lock: lock })
    }

    fn place(&self, link: &str) -> Result<Option<Place>, StoreError> {
        let link = self.root.join(link);
        match fs::canonicalize(&link) {
            Ok(dir) => {
                let in_place = dir.parent().and_then(Path::file_name).is_some_and(|parent| parent == GENERATIONS);
                let number = if in_place { number_of(&dir) } else { None };
                Ok(Some(Place { dir, number }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && !link.is_symlink() => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let why = "leads nowhere; `oncegate trust rollback NUMBER` lets it lead to a generation again";
                Err(StoreError { path: link, source: io::Error::new(error.kind(), why) })
            }
            Err(source) => Err(StoreError { path: link, source }),
        }
    }

    /// Gives a new file, open here, to whom the directory belongs: the gateway must read what root wrote for it. Never by
    /// its name, under which that owner may meanwhile have put a link to somebody else's file.
    fn hand_over(&self, file: &File, path: &Path) -> Result<(), StoreError> {
        let owner = fs::metadata(&self.root).map_err(at(&self.root))?;
        let have = file.metadata().map_err(at(path))?;
        if have.uid() != owner.uid() {
            fchown(file, Some(owner.uid()), Some(owner.gid())).map_err(at(path))?;
        }
        Ok(())
    }

    /// Fails if `current` leads elsewhere than to a generation of this directory: it is not ours to flip then.
    fn check_own(&self) -> Result<(), StoreError> {
        let link = self.root.join(CURRENT);
        let Ok(found) = fs::symlink_metadata(&link) else { return Ok(()) };
        let target = fs::read_link(&link).unwrap_or_default();
        let home = |dir: &Path| fs::canonicalize(dir).ok();
        let within = self.root.join(&target).parent().and_then(home) == home(&self.root.join(GENERATIONS));
        if found.is_symlink() && within && number_of(&target).is_some() {
            return Ok(());
        }
        let why = format!(
            "leads to {}, a mounted volume or another place that is not written here; change it there (callers to be \
             blocked stand in generation.toml), or remove the link to go on with {GENERATIONS}/",
            target.display()
        );
        Err(StoreError { path: link, source: io::Error::new(io::ErrorKind::PermissionDenied, why) })
    }

    /// Each thing that reaches the disk is one step.
    #[cfg_attr(not(test), expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "tests kill it here"))]
    fn step(&self) -> io::Result<()> {
        #[cfg(test)]
        {
            use std::sync::atomic::Ordering::SeqCst;
            let left = self.killed_after.load(SeqCst);
            if left == 0 {
                return Err(io::Error::other("killed"));
            }
            self.killed_after.store(left - 1, SeqCst);
        }
        Ok(())
    }
}

impl Writing<'_> {
    /// Replaces what is staged.
    pub fn stage(&self, contents: &Contents, clock: &Clock) -> Result<(), StoreError> {
        let before = self.store.staged().ok().flatten();
        let name = format!("{DRAFTS}/{}", clock.now().as_micros());
        let path = self.store.root.join(&name);
        self.remove(&path)?;
        self.write_dir(&path, contents)?;
        self.link(STAGED, Path::new(&name))?;
        if let Some(before) = before.filter(|before| before.dir != path) {
            self.remove(&before.dir)?;
        }
        Ok(())
    }

    /// Throws away what is staged, and drafts that a kill left behind.
    pub fn discard(&self) -> Result<(), StoreError> {
        let link = self.store.root.join(STAGED);
        if link.is_symlink() {
            self.did(&link, fs::remove_file(&link))?;
        }
        for entry in fs::read_dir(self.store.root.join(DRAFTS)).into_iter().flatten().flatten() {
            self.remove(&entry.path())?;
        }
        Ok(())
    }

    /// Makes `contents` the newest generation and flips `current` to it; returns its number, which is more than
    /// `above`. On disk when this returns.
    pub fn promote(&self, contents: &Contents, above: u64) -> Result<u64, StoreError> {
        self.store.check_own()?;
        let number = self.store.numbers().last().copied().unwrap_or(0).max(above) + 1;
        let home = self.store.root.join(GENERATIONS);
        let beside = home.join(format!(".{number}"));
        self.remove(&beside)?;
        self.write_dir(&beside, contents)?;
        let place = self.store.generation(number);
        self.did(&place, fs::rename(&beside, &place))?;
        self.sync(&home)?;
        self.link(CURRENT, &Path::new(GENERATIONS).join(number.to_string()))?;
        self.prune(number);
        Ok(number)
    }

    /// Keeps a key until its certificate comes.
    pub fn set_pending_key(&self, file: &str, key: Option<&[u8]>) -> Result<(), StoreError> {
        let path = self.store.root.join(PENDING).join(file);
        match key {
            Some(key) => {
                let beside = path.with_extension("new");
                self.remove(&beside)?;
                self.write_file(&beside, key, 0o600)?;
                self.did(&path, fs::rename(&beside, &path))
            }
            None => self.remove(&path),
        }
    }

    fn write_dir(&self, dir: &Path, contents: &Contents) -> Result<(), StoreError> {
        let manifest = contents
            .manifest
            .to_text()
            .map_err(|error| StoreError { path: dir.join(MANIFEST), source: io::Error::other(error.to_string()) })?;
        self.did(dir, DirBuilder::new().mode(0o700).create(dir))?;
        let flags = (OFlags::NOFOLLOW | OFlags::DIRECTORY).bits().cast_signed();
        let open = OpenOptions::new().read(true).custom_flags(flags).open(dir).map_err(at(dir))?;
        self.store.hand_over(&open, dir)?;
        for (name, bytes, private) in contents.to_write() {
            self.write_file(&dir.join(name), bytes, if private { 0o600 } else { 0o644 })?;
        }
        self.write_file(&dir.join(MANIFEST), manifest.as_bytes(), 0o644)?;
        self.sync(dir)
    }

    fn write_file(&self, path: &Path, bytes: &[u8], mode: u32) -> Result<(), StoreError> {
        let write = || {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
            self.store.step()?;
            file.write_all(bytes)?;
            file.sync_all()?;
            Ok(file)
        };
        let file = write().map_err(at(path))?;
        self.did(path, Ok(()))?;
        self.store.hand_over(&file, path)
    }

    /// Lets a link lead elsewhere, in one step for whoever follows it.
    fn link(&self, name: &str, target: &Path) -> Result<(), StoreError> {
        let beside = self.store.root.join(format!(".{name}"));
        self.remove(&beside)?;
        self.did(&beside, symlink(target, &beside))?;
        let link = self.store.root.join(name);
        self.did(&link, fs::rename(&beside, &link))?;
        self.sync(&self.store.root)
    }

    fn remove(&self, path: &Path) -> Result<(), StoreError> {
        let removed = match fs::symlink_metadata(path) {
            Ok(found) if found.is_dir() => fs::remove_dir_all(path),
            Ok(_) => fs::remove_file(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => Err(error),
        };
        self.did(path, removed)
    }

    fn prune(&self, current: u64) {
        let numbers = self.store.numbers();
        let old = numbers.iter().rev().skip(KEPT).filter(|number| **number != current);
        for number in old {
            // What can't be removed now will be next time.
            _ = self.remove(&self.store.generation(*number));
        }
    }

    fn sync(&self, dir: &Path) -> Result<(), StoreError> {
        self.did(dir, File::open(dir).and_then(|dir| dir.sync_all()))
    }

    fn did(&self, path: &Path, result: io::Result<()>) -> Result<(), StoreError> {
        result.and_then(|()| self.store.step()).map_err(at(path))
    }
}

impl Place {
    /// When it was written.
    pub fn written_at(&self) -> Option<Timestamp> {
        let modified = fs::metadata(self.dir.join(MANIFEST)).ok()?.mtime();
        u64::try_from(modified).ok().map(Timestamp::from_secs)
    }

    /// Its manifest alone, if it can be read.
    pub fn manifest(&self) -> Option<Manifest> {
        let file = self.dir.join(MANIFEST);
        let text = fs::read(&file).ok()?;
        Manifest::parse(&file, &text, &mut Faults::default())
    }

    /// Reads it.
    pub fn read(&self) -> Result<Contents, Faults> {
        let mut faults = Faults::default();
        let contents = Contents::read(&self.dir, &mut faults);
        match contents {
            Some(contents) => faults.or(contents),
            None => Err(faults),
        }
    }
}

fn number_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    name.parse().ok().filter(|number: &u64| *number > 0 && number.to_string() == name)
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError { path, source }
}
