//! Files that are followed while the program runs: keys, certificates. Links are resolved at each look, so that a file
//! under a link that is swapped is seen to change, however often that happens.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};

use crate::clock::Timestamp;

/// How often such files are looked at.
pub const POLL: Duration = Duration::from_secs(1);

/// A set of files that belong together.
#[derive(Debug)]
pub struct Watched {
    files: Vec<PathBuf>,
    seen: Vec<Option<Stamp>>,
    digests: Vec<Option<[u8; 32]>>,
}

/// Device, inode, length, and time of the last change in seconds and nanoseconds.
type Stamp = (u64, u64, u64, i64, i64);

impl Watched {
    /// The files as they are now.
    pub fn new(files: Vec<PathBuf>) -> Self {
        let (seen, digests) = (stamps(&files), digests(&files));
        Self { files, seen, digests }
    }

    /// True if one of them says something else than at the last look, or is there no more; a copy is no change. Blocks for
    /// as long as the disk does.
    pub fn changed(&mut self) -> bool {
        let now = stamps(&self.files);
        if now == self.seen {
            return false;
        }
        let said = digests(&self.files);
        let changed = said != self.digests;
        (self.seen, self.digests) = (now, said);
        changed
    }
}

/// How the rotation of something stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotation {
    /// What rotates, for example `token keys`.
    pub name: String,
    /// Since when what is used is used.
    pub since: Timestamp,
    /// Why newer material is not used, if there is any.
    pub refused: Option<String>,
}

fn digests(files: &[PathBuf]) -> Vec<Option<[u8; 32]>> {
    let digest = |file: &PathBuf| {
        let bytes = fs::read(file).ok()?;
        digest(&SHA256, &bytes).as_ref().try_into().ok()
    };
    files.iter().map(digest).collect()
}

fn stamps(files: &[PathBuf]) -> Vec<Option<Stamp>> {
    let stamp = |file: &PathBuf| {
        let found = fs::metadata(file).ok()?;
        Some((found.dev(), found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
    };
    files.iter().map(stamp).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn every_swap_of_a_link_above_is_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("..data");
        let swap = |name: &str| {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("key"), name).unwrap();
            let beside = dir.path().join("..data_tmp");
            symlink(name, &beside).unwrap();
            fs::rename(&beside, &link).unwrap();
        };
        swap("1");
        let mut watched = Watched::new(vec![link.join("key"), dir.path().join("missing")]);
        assert!(!watched.changed());
        for name in ["2", "3", "4"] {
            swap(name);
            assert!(watched.changed(), "{name}");
            assert!(!watched.changed(), "{name}");
        }
        fs::copy(dir.path().join("4/key"), dir.path().join("copy")).unwrap();
        fs::rename(dir.path().join("copy"), dir.path().join("4/key")).unwrap();
        assert!(!watched.changed(), "a copy is no change");
        fs::remove_file(dir.path().join("4/key")).unwrap();
        assert!(watched.changed());
    }
}
