//! The power fails at any moment: what was acknowledged, published or cosigned is there, and the log goes on.
//!
//! 40 power cuts, each in the life of a log that the one before has left; as many as `ONCEGATE_CUTS` says.

use rand::{Rng as _, SeedableRng as _};

use super::*;
use crate::audit::checkpoint::{Checkpoint, Policy, Tree};
use crate::audit::lossy::Lossy;
use crate::audit::note::Note;
use crate::audit::publisher::{CHECKPOINT, WITNESSED};
use crate::audit::segment::{Segments, make_ready};
use crate::audit::tree::LogTree;
use crate::audit::verify::{Held, Trust, verify};

fn cuts(usual: u64) -> u64 {
    std::env::var("ONCEGATE_CUTS").ok().and_then(|count| count.parse().ok()).unwrap_or(usual)
}

/// What others have of a log.
#[derive(Default)]
struct Promised {
    /// Index and leaf hash of acknowledged entries.
    recorded: Vec<(u64, [u8; 32])>,
    /// Checkpoints that were shown, and that a witness cosigned.
    published: Vec<Note>,
    cosigned: Option<Tree>,
}

impl Site {
    /// A log's life on a disk whose power fails at some time in it.
    async fn live(&self, disk: &Lossy, promised: &mut Promised) {
        let witness = self.witness();
        let journal = match self.try_open_on(disk) {
            Ok(journal) => journal,
            Err(OpenError::Io { source, .. }) if source.to_string().starts_with("no power") => return,
            Err(OpenError::Io { source, .. }) if source.to_string().contains("first checkpoint") => return,
            Err(error) => panic!("{error}"),
        };
        let checkpoints = journal.checkpoints();
        for round in 0..40 {
            let answers = join_all((0..=round % 3).map(|_| journal.append(look(PERSON)))).await;
            let recorded = answers.iter().flatten().map(|recorded| (recorded.index(), *recorded.leaf_hash()));
            promised.recorded.extend(recorded);
            if let Some(latest) = checkpoints.borrow().clone() {
                if witness.verifier().verify(&latest.note).is_some() {
                    promised.cosigned = Some(latest.tree);
                } else {
                    journal.cosigned(latest.tree, vec![witness.sign(latest.note.text(), self.clock.now())]);
                }
                promised.published.push(latest.note.clone());
            }
            if round % 4 == 0 {
                journal.publish();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            if answers.iter().all(Result::is_err) {
                break;
            }
        }
        journal.close("drained");
    }

    /// Holds what the power cut left against what was promised, before anything mends it.
    fn keeps(&self, promised: &Promised, what: &str) {
        let on_disk = |name| {
            let text = fs::read_to_string(self.config.dir.join(name)).ok()?;
            Some(Checkpoint::of(&text.parse().expect("a whole note")).unwrap().tree)
        };
        let mut tree = LogTree::from_entries(&self.config.dir);
        while tree.read_entry().unwrap().is_some() {}
        for (index, leaf) in &promised.recorded {
            assert_eq!(tree.leaf(*index).ok().as_ref(), Some(leaf), "{what}: acknowledged entry {index}");
        }
        for note in &promised.published {
            let published = Checkpoint::of(note).unwrap().tree;
            assert!(on_disk(CHECKPOINT).is_some_and(|held| held.size >= published.size), "{what}: {}", published.size);
            assert_eq!(tree.tree(published.size).unwrap(), published, "{what}");
        }
        if let Some(cosigned) = promised.cosigned {
            assert!(on_disk(WITNESSED).is_some_and(|held| held.size >= cosigned.size), "{what}: cosigned");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_power_fails_at_any_moment_and_nothing_promised_is_lost() {
    let mut random = rand::rngs::StdRng::seed_from_u64(3);
    for log in 0..cuts(40) / 4 {
        let site = Site::with_witness();
        fs::create_dir(&site.config.dir).unwrap();
        let mut promised = Promised::default();
        for life in 0..4 {
            let disk = Lossy::over(&[&site.config.dir]);
            disk.fail_after(random.random_range(0..160));
            site.live(&disk, &mut promised).await;
            disk.cut(&mut random);
            site.keeps(&promised, &format!("log {log}, life {life}"));
        }
        let key = SigningKey::load(&site.config.signing_key).unwrap();
        let policy = Some(Policy::of_logs(vec![key.verifier().clone()]));
        site.open().close("drained");
        let held = promised.published.into_iter().map(|note| Held { name: "held".into(), note }).collect();
        let report = verify(&site.config.dir, &Trust { policy, ..Trust::default() }, held, &mut |_, _| {}).unwrap();
        assert!(report.faults.is_empty(), "log {log}: {report:?}");
    }
}

/// After a failed sync the page cache shows entries that never reached the disk: a restart must write them once more
/// before it signs them.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_failed_sync_left_in_memory_is_written_again_before_it_is_signed() {
    let site = Site::new();
    fs::create_dir(&site.config.dir).unwrap();
    let disk = Lossy::over(&[&site.config.dir]);
    let open = || site.try_open_on(&disk).unwrap();
    let journal = open();
    let mut promised = Promised::default();
    let kept = journal.append(look(PERSON)).await.unwrap();
    disk.fail_syncs_after(Some(0));
    assert_eq!(journal.append(look(PERSON)).await, Err(AppendError::Unavailable));
    disk.fail_syncs_after(None);
    journal.close("drained");
    // The process starts anew; the machine does not.
    let journal = open();
    let next = journal.append(look(PERSON)).await.unwrap();
    assert!(next.index() > kept.index() + 1, "the entry is seen");
    journal.close("drained");
    promised.recorded.extend([kept, next].map(|recorded| (recorded.index(), *recorded.leaf_hash())));
    let note: Note = fs::read_to_string(site.config.dir.join(CHECKPOINT)).unwrap().parse().unwrap();
    promised.published.push(note);
    disk.cut(&mut rand::rngs::StdRng::seed_from_u64(1));
    site.keeps(&promised, "after the cut");
    site.open().close("drained");
}

/// The same of the very first batch: what is found is durable before the first checkpoint is made over it.
#[tokio::test(flavor = "multi_thread")]
async fn a_first_batch_whose_sync_failed_is_made_durable_before_it_is_signed() {
    for operations in 0..40 {
        let site = Site::new();
        fs::create_dir(&site.config.dir).unwrap();
        let disk = Lossy::over(&[&site.config.dir]);
        let open = || site.try_open_on(&disk);
        // That of the name succeeds.
        disk.fail_syncs_after(Some(1));
        assert!(open().is_err() && layout(&site.segment(0)).len() == 2, "not durable, but seen");
        disk.fail_syncs_after(None);
        disk.fail_after(operations);
        if let Ok(journal) = open() {
            journal.close("drained");
        }
        disk.cut(&mut rand::rngs::StdRng::seed_from_u64(operations));
        site.open().close("drained");
    }
}

#[test]
fn a_new_segment_is_there_with_its_first_entries_and_the_one_before_ends_with_its_last() {
    for (seed, ahead) in (0..40).flat_map(|seed| [(seed, false), (seed, true)]) {
        let dir = tempfile::tempdir().unwrap();
        let (path, disk) = (dir.path(), Lossy::over(&[dir.path()]));
        let mut segments = Segments::open(path, &Tail::default(), 1 << 16, Arc::new(disk.clone())).unwrap();
        segments.make_room(0, 100).unwrap();
        segments.append(&[7; 100]).unwrap();
        if ahead {
            make_ready(path, 1, 1 << 16, &disk).unwrap();
            assert_eq!(disk.unsynced(&path.join("0000000001.next")), 0, "the first batch waits for itself alone");
        }
        segments.make_room(1, 100).unwrap();
        segments.append(&[8; 100]).unwrap();
        disk.cut(&mut rand::rngs::StdRng::seed_from_u64(seed));
        assert_eq!(fs::read(path.join(file_name(0))).unwrap(), [7; 100], "seed {seed}");
        let found = fs::read(path.join(file_name(1))).unwrap();
        assert!(found[..100] == [8; 100] && found[100..].iter().all(|byte| *byte == 0), "seed {seed}");
    }
}

/// Kept hashes are whole or not there.
#[test]
fn kept_hashes_are_whole() {
    let dir = tempfile::tempdir().unwrap();
    for (seed, operations) in (0..40).zip((0..8).cycle()) {
        let disk = Lossy::over(&[dir.path()]);
        disk.fail_after(operations);
        let written = disk.replace(dir.path(), "0000000000.tiles", &[9; 5000]);
        disk.cut(&mut rand::rngs::StdRng::seed_from_u64(seed));
        let found = fs::read(dir.path().join("0000000000.tiles"));
        assert!(found.as_ref().map_or(written.is_err(), |found| *found == [9; 5000]), "seed {seed}, {operations}");
        drop(fs::remove_file(dir.path().join("0000000000.tiles")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_cant_be_written_is_said_at_the_start_and_stops_a_running_log() {
    let site = Site::new();
    let faults = Faulty::default();
    let journal = site.open_on(&faults);
    let kept = journal.append(look(PERSON)).await.unwrap();
    // As ext4 does to itself after an error.
    faults.read_only.store(true, Ordering::SeqCst);
    assert_eq!(journal.append(look(PERSON)).await, Err(AppendError::Unavailable));
    assert!(!journal.is_writable());
    journal.close("drained");
    let refused = site.try_open_on(&faults).unwrap_err();
    let said = refused.to_string();
    assert!(matches!(refused, OpenError::ReadOnly { .. }) && said.contains("mounted for writing"), "{said}");
    faults.read_only.store(false, Ordering::SeqCst);
    site.open_on(&faults).close("drained");
    assert_eq!(site.read_whole()[usize::try_from(kept.index()).unwrap()].leaf_hash, *kept.leaf_hash());
}
