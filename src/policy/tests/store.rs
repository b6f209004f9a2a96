//! The store: whenever the machine stops, it opens again, and what serves is whole.

use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering::SeqCst;

use super::super::{Record, Store};
use super::*;
use crate::clock::Timestamp;

fn bundle(name: &str, facts: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for part in ["departments.toml", "matters", "holidays.toml", "facts.toml"] {
        let from = Path::new("deploy/heshan/policy").join(part);
        if from.is_dir() {
            signed::copy_tree(&from, &dir.path().join(part));
        } else {
            fs::copy(&from, dir.path().join(part)).unwrap();
        }
    }
    let text = fs::read_to_string(dir.path().join("facts.toml")).unwrap();
    fs::write(dir.path().join("facts.toml"), text + facts).unwrap();
    fs::create_dir_all(dir.path().join("grants/newborn_birth")).unwrap();
    let grants = "grants/newborn_birth/WJ.toml";
    fs::copy(Path::new("deploy/heshan/policy").join(grants), dir.path().join(grants)).unwrap();
    fs::write(dir.path().join("generation.toml"), name).unwrap();
    fs::write(dir.path().join(".hidden"), name).unwrap();
    dir
}

/// All steps of an activation, as the gateway takes them.
fn activate(store: &Store, bundle: &Path) -> Result<u64, String> {
    let staged = store.stage(bundle).map_err(|faults| faults.to_string())?;
    let policy = Policy::open(&staged).map_err(|faults| faults.to_string())?;
    let newest = store.newest().map_err(|error| error.to_string())?.map(|newest| newest.record);
    let record = Record::new(&policy, Timestamp::from_secs(7), "root".into(), newest.as_ref());
    store.prepare(&record).map_err(|error| error.to_string())?;
    store.commit().map_err(|error| error.to_string())
}

#[test]
fn a_stop_at_any_step_leaves_a_whole_generation() {
    let (first, second) = (bundle("first", ""), bundle("second", "\n# another\n"));
    let hash = |dir: &Path| Policy::open(dir).unwrap().hash().to_string();
    let (old, new) = (hash(first.path()), hash(second.path()));
    assert_ne!(old, new);
    let mut steps = 0;
    loop {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("store");
        let store = Store::open(&root).unwrap();
        assert_eq!(activate(&store, first.path()), Ok(1));
        store.steps_left.store(steps, SeqCst);
        let done = activate(&store, second.path());
        drop(store);

        let store = Store::open(&root).unwrap();
        let current = store.current().unwrap().unwrap();
        let serves = hash(&current.dir);
        assert_eq!(current.record.hash, serves, "after {steps} steps");
        assert!(serves == old || serves == new);
        assert!(!root.join("new").exists() && !root.join("current.new").exists(), "nothing half done stays");
        if done.is_ok() {
            assert_eq!((current.number, serves), (2, new));
            break;
        }
        // And it can go on.
        let next = activate(&store, second.path()).unwrap();
        assert_eq!(store.current().unwrap().unwrap().number, next);
        steps += 1;
    }
    assert!(steps > 30, "only {steps} steps");
}

/// Whoever can write to the store chooses no older policy by moving the link, or by removing it.
#[test]
fn only_the_newest_generation_serves() {
    let (dir, bundle) = (tempfile::tempdir().unwrap(), bundle("x", ""));
    let store = Store::open(dir.path()).unwrap();
    let link = dir.path().join("current");
    let lead = |to: &str| {
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(to, &link).unwrap();
    };
    assert_eq!(activate(&store, bundle.path()), Ok(1));
    // As a stop in the very first commit leaves it.
    fs::remove_file(&link).unwrap();
    assert_eq!(store.current().unwrap().unwrap().number, 1);
    assert_eq!(fs::read_link(&link).unwrap(), Path::new("1"), "the link is there again");
    for number in 2..=3 {
        assert_eq!(activate(&store, bundle.path()), Ok(number));
    }
    // As a stop between the two renames leaves it.
    lead("2");
    assert_eq!(store.current().unwrap().unwrap().number, 3);
    assert_eq!(fs::read_link(&link).unwrap(), Path::new("3"));
    for wrong in ["1", "0", "4", "..", "3/../1", "18446744073709551615"] {
        lead(wrong);
        let error = store.current().unwrap_err().to_string();
        assert!(error.contains("`ln -sfn 3 current`"), "{wrong}: {error}");
    }
    fs::remove_file(&link).unwrap();
    assert!(store.current().unwrap_err().to_string().contains("does not lead to 3, the newest generation"));
}

#[test]
fn a_generation_is_the_bundle_and_its_record_for_the_gateway_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let (dir, first) = (tempfile::tempdir().unwrap(), bundle("x", ""));
    let store = Store::open(dir.path()).unwrap();
    assert!(Store::open(dir.path()).unwrap_err().to_string().contains("in use by another gateway"));
    assert!(store.current().unwrap().is_none());
    assert_eq!(activate(&store, first.path()), Ok(1));
    let current = store.current().unwrap().unwrap();
    assert_eq!((current.record.who.as_str(), current.record.from.as_deref()), ("root", None), "not the bundle's own");
    assert_eq!(current.record.when, "1970-01-01T00:00:07.000000Z");
    assert!(!current.dir.join(".hidden").exists());
    let grants = current.dir.join("grants/newborn_birth/WJ.toml");
    assert_eq!(grants.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(store.numbers().unwrap(), [1]);
    assert!(store.stored(2).unwrap_err().to_string().contains("2/generation.toml"));

    fs::write(dir.path().join("1/generation.toml"), "hash = 1").unwrap();
    assert!(store.current().is_err(), "a record that can't be read is no reason to serve something else");
}

#[test]
fn what_is_no_bundle_is_not_copied() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    let wrong = |bundle: &Path| store.stage(bundle).unwrap_err().to_string();
    assert!(wrong(&dir.path().join("none")).contains("can't be read"));
    let deep = dir.path().join("deep");
    fs::create_dir_all(deep.join("a/b/c")).unwrap();
    assert!(wrong(&deep).contains("that deep"));
    let odd = dir.path().join("odd");
    fs::create_dir_all(&odd).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(odd.join("socket")).unwrap();
    assert!(wrong(&odd).contains("is no file"));
    let large = dir.path().join("large");
    fs::create_dir_all(&large).unwrap();
    fs::File::create(large.join("x")).unwrap().set_len(65 << 20).unwrap();
    assert!(wrong(&large).contains("larger than"));
    assert!(!dir.path().join("store/new").exists());
}
