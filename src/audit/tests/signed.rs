//! What the log signs, what it finds again after rollback, forks and lost keys, and what a full disk does.

use super::*;
use crate::audit::checkpoint::{Checkpoint, Policy, Proof, Tree};
use crate::audit::merkle::verify_consistency;
use crate::audit::note::{Note, parse_signatures};
use crate::audit::publisher::{CHECKPOINT, WITNESSED};
use crate::audit::receipt::SignedReceipt;
use crate::audit::rotation::next_key;
use crate::audit::testing::{copy, until};
use crate::audit::tree::{Entries, LogTree, Resource, TreeError};

fn signer(site: &Site) -> SigningKey {
    SigningKey::load(&site.config.signing_key).unwrap()
}

fn note(site: &Site, name: &str) -> Note {
    fs::read_to_string(site.config.dir.join(name)).unwrap().parse().unwrap()
}

fn signed(site: &Site) -> Tree {
    let note = note(site, CHECKPOINT);
    assert!(signer(site).verifier().verify(&note).is_some());
    Checkpoint::of(&note).unwrap().tree
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_follow_the_log_and_every_entry_is_provable() {
    let mut site = Site::new();
    site.config.checkpoint_ms = 10;
    let journal = site.open();
    let first = signed(&site);
    assert_eq!(first.size, 2, "EPOCH and START are signed when the log opens");
    let recorded = journal.append(look(PERSON)).await.unwrap();
    let mut checkpoints = journal.checkpoints();
    checkpoints.wait_for(|latest| latest.as_ref().is_some_and(|latest| latest.tree.size == 3)).await.unwrap();
    assert_eq!(journal.status().signed, 3);
    journal.close("drained");
    let last = signed(&site);
    assert_eq!(last.size, 4, "STOP is signed, too");

    let mut tree = LogTree::open(&site.config.dir).unwrap();
    tree.grow(4).unwrap();
    assert_eq!(tree.tree(4).unwrap(), last);
    let consistent = tree.prove_consistency(first.size, last.size).unwrap();
    assert!(verify_consistency(&consistent, first.size, &first.root, last.size, &last.root));
    let hashes = tree.prove_inclusion(recorded.index(), last.size).unwrap();
    let proof = Proof { index: recorded.index(), hashes, note: note(&site, CHECKPOINT) };
    let policy = Policy::of_logs(vec![signer(&site).verifier().clone()]);
    proof.check(&policy, *recorded.leaf_hash()).unwrap();
    assert_eq!(merkle::leaf_hash(&tree.entry(recorded.index()).unwrap()), *recorded.leaf_hash());
    let bundle = tree.resource(Resource::Entries { number: 0, width: 4 }, 4).unwrap().unwrap();
    assert!(Entries(&bundle).map(merkle::leaf_hash).eq((0..4).map(|index| tree.leaf(index).unwrap())));
    assert_eq!(tree.resource(Resource::Entries { number: 0, width: 5 }, 4).unwrap(), None);
    assert!(tree.grow(5).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_rolled_back_or_rewritten_is_refused() {
    let site = Site::new();
    let journal = site.open();
    journal.append(look(PERSON)).await.unwrap();
    journal.publish();
    until(|| signed(&site).size == 3).await;
    let earlier = tempfile::tempdir().unwrap();
    copy(&site.config.dir, earlier.path());
    for _ in 0..5 {
        journal.append(look(PERSON)).await.unwrap();
    }
    journal.close("drained");
    let held = signed(&site);
    let good = tempfile::tempdir().unwrap();
    copy(&site.config.dir, good.path());

    // An older copy of the segment, the newer checkpoint beside it.
    fs::copy(earlier.path().join(file_name(0)), site.segment(0)).unwrap();
    let found = site.try_open();
    assert!(matches!(found, Err(OpenError::Rollback { size: 3, signed: 9, .. })), "{found:?}");
    // The older checkpoint, too: only somebody else can tell.
    fs::copy(earlier.path().join(CHECKPOINT), site.config.dir.join(CHECKPOINT)).unwrap();
    let others = StartInfo { held: vec![held], ..start() };
    let found = Journal::open(&site.config, site.clock.clone(), others.clone());
    assert!(matches!(found, Err(OpenError::Rollback { size: 3, signed: 9, .. })), "{found:?}");
    // All of it gone.
    fs::remove_file(site.segment(0)).unwrap();
    let found = Journal::open(&site.config, site.clock.clone(), others.clone());
    assert!(matches!(found, Err(OpenError::Rollback { size: 0, .. })), "{found:?}");

    // One entry rewritten with a valid checksum: the administrator has no key, but a text editor.
    copy(good.path(), &site.config.dir);
    let mut bytes = fs::read(site.segment(0)).unwrap();
    let (offset, header, length) = layout(&site.segment(0))[4];
    let entry = usize::try_from(offset).unwrap() + LENGTH;
    let mut body = bytes[entry + 30..entry + length].to_vec();
    body[0] ^= 1;
    let mut forged = Vec::new();
    frame::put(&mut forged, &header.bound(), &body, &[]).unwrap();
    bytes[entry - LENGTH..entry + length].copy_from_slice(&forged);
    fs::write(site.segment(0), &bytes).unwrap();
    let found = site.try_open();
    assert!(matches!(found, Err(OpenError::Fork { size: 9, .. })), "{found:?}");

    // A checkpoint that this log's key did not sign, or that is none.
    copy(good.path(), &site.config.dir);
    for text in [note(&site, CHECKPOINT).to_string().replace("\n9\n", "\n8\n"), "x".into(), String::new()] {
        fs::write(site.config.dir.join(CHECKPOINT), text).unwrap();
        assert!(matches!(site.try_open(), Err(OpenError::Checkpoint { .. })));
    }
    copy(good.path(), &site.config.dir);
    Journal::open(&site.config, site.clock.clone(), others).unwrap().close("drained");
}

#[tokio::test(flavor = "multi_thread")]
async fn segments_roll_over_into_the_file_made_ready_and_their_hashes_are_kept() {
    let mut site = Site::new();
    (site.config.queue, site.config.batch, site.config.wait_ms) = (70_000, 4096, 60_000);
    site.config.checkpoint_ms = 10;
    let journal = site.open();
    let ready = site.config.dir.join("0000000001.next");
    join_all((0..PER_SEGMENT / 2).map(|_| journal.append(admin("")))).await;
    until(|| ready.exists()).await;
    assert_eq!(fs::metadata(&ready).unwrap().len(), 1 << 20);
    join_all((0..PER_SEGMENT / 2 + 20).map(|_| journal.append(admin("")))).await;
    assert!(!ready.exists() && site.segment(1).exists());
    let kept = site.config.dir.join("0000000000.tiles");
    until(|| kept.exists()).await;
    journal.close("drained");
    let last = signed(&site);
    assert_eq!(last.size, PER_SEGMENT + 23);

    let (mut derived, mut whole) = (LogTree::open(&site.config.dir).unwrap(), LogTree::from_entries(&site.config.dir));
    assert_eq!((derived.size(), whole.size()), (PER_SEGMENT, 0));
    derived.grow(last.size).unwrap();
    whole.grow(last.size).unwrap();
    assert_eq!((derived.tree(last.size).unwrap(), whole.frontier()), (last, derived.frontier()));
    for index in [0, 255, 256, 40_000, PER_SEGMENT - 1, PER_SEGMENT, last.size - 1] {
        let proof = derived.prove_inclusion(index, last.size).unwrap();
        let leaf = whole.leaf(index).unwrap();
        assert_eq!(merkle::root_of_inclusion(&proof, index, last.size, leaf), Some(last.root), "{index}");
        assert_eq!(merkle::leaf_hash(&derived.entry(index).unwrap()), leaf);
    }
    for size in [1, 255, 256, 257, 65_535, 65_536, 65_537] {
        let (old, proof) = (whole.tree(size).unwrap(), derived.prove_consistency(size, last.size).unwrap());
        assert!(verify_consistency(&proof, size, &old.root, last.size, &last.root), "{size}");
    }
    site.open().close("drained");

    // Damaged kept hashes are no reason to lose the log, and none to believe it.
    let mut bytes = fs::read(&kept).unwrap();
    let at = usize::try_from(PER_SEGMENT).unwrap() * 32 + 5;
    bytes[at] ^= 1;
    fs::write(&kept, bytes).unwrap();
    // With the checkpoint in segment 1, segment 0 is read again all the same: the last two always are.
    site.open().close("drained");
    fs::remove_file(&kept).unwrap();
    site.open().close("drained");
    assert!(kept.exists(), "derived anew");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_is_handed_over_to_and_a_foreign_one_is_refused() {
    let mut site = Site::new();
    site.open().close("drained");
    let (before, old) = (site.config.signing_key.clone(), signer(&site));
    let new = SigningKey::generate("heshan.gov.example/gw1", Algorithm::Ed25519).unwrap();
    site.config.signing_key = site.dir.path().join("new.key");
    new.write(&site.config.signing_key).unwrap();
    assert!(matches!(site.try_open(), Err(OpenError::Checkpoint { .. })), "nobody vouches for the new key");
    site.config.previous_signing_key = Some(before);
    site.open().close("drained");
    let note = note(&site, CHECKPOINT);
    assert!(old.verifier().verify(&note).is_some() && new.verifier().verify(&note).is_some());
    let handed: Vec<_> = site
        .read_whole()
        .into_iter()
        .filter_map(|entry| match entry.content {
            Content::Entry(Entry::LogKey(note)) => Some(note),
            _ => None,
        })
        .collect();
    let policy = Policy::of_logs(vec![old.verifier().clone()]);
    assert_eq!(handed.len(), 1);
    assert_eq!(next_key(&handed[0], "heshan.gov.example/gw1", &policy).as_ref(), Some(new.verifier()));
    // Both keys go on to sign; the new one alone may, too. The entry stands once.
    site.open().close("drained");
    site.config.previous_signing_key = None;
    site.open().close("drained");
    let count =
        site.read_whole().iter().filter(|entry| matches!(entry.content, Content::Entry(Entry::LogKey(_)))).count();
    assert_eq!(count, 1);
    // A key of another name is no key of this log.
    let foreign = SigningKey::generate("heshan.gov.example/gw2", Algorithm::Ed25519).unwrap();
    site.config.signing_key = site.dir.path().join("foreign.key");
    foreign.write(&site.config.signing_key).unwrap();
    assert!(matches!(site.try_open(), Err(OpenError::SigningKey { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_change_while_the_log_is_written() {
    const ORIGIN: &str = "heshan.gov.example/gw1";
    let mut site = Site::new();
    site.config.checkpoint_ms = 10;
    let (signing, previous) = (site.config.signing_key.clone(), site.dir.path().join("previous.key"));
    site.config.previous_signing_key = Some(previous.clone());
    let journal = site.open();
    assert!(journal.follow().await.is_none(), "nothing changed");
    let very_first = signer(&site);
    let stop = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn({
        let (journal, stop) = (journal.clone(), stop.clone());
        async move {
            let mut signed = Vec::new();
            while !stop.load(Ordering::SeqCst) {
                let mut pending = journal.queue(look(PERSON), true).expect("no entry is refused meanwhile");
                signed.push(pending.durable().await.expect("nor too slow"));
            }
            signed
        }
    });
    let renew = |name: &str, path: &Path| {
        let key = SigningKey::generate(name, Algorithm::Ed25519).unwrap();
        let beside = site.dir.path().join("beside");
        key.write(&beside).unwrap();
        fs::rename(&beside, path).unwrap();
        key
    };
    let mut vkeys = vec![very_first.verifier().clone()];
    for _ in 0..5 {
        // Without the key in use beside it, or with one of another name, the new one is refused, and the old one signs on.
        let kept = fs::read(&signing).unwrap();
        for (name, removed) in [(ORIGIN, true), ("other.example/gw1", false)] {
            if removed {
                drop(fs::remove_file(&previous));
            }
            renew(name, &signing);
            assert!(journal.follow().await.unwrap().is_err());
            assert!(journal.rotation().refused.is_some());
            fs::write(&signing, &kept).unwrap();
            journal.follow().await.unwrap().unwrap();
        }
        assert_eq!(journal.rotation().refused, None);
        fs::copy(&signing, &previous).unwrap();
        let next = renew(ORIGIN, &signing);
        journal.follow().await.unwrap().unwrap();
        let (old, new) = (vkeys.last().unwrap().clone(), next.verifier().clone());
        until(|| new.verify(&note(&site, CHECKPOINT)).is_some()).await;
        assert!(old.verify(&note(&site, CHECKPOINT)).is_some(), "both sign");
        fs::remove_file(&previous).unwrap();
        journal.follow().await.unwrap().unwrap();
        until(|| old.verify(&note(&site, CHECKPOINT)).is_none()).await;
        vkeys.push(new);
    }
    stop.store(true, Ordering::SeqCst);
    let receipts = load.await.unwrap();
    assert!(receipts.len() > 10);
    for recorded in &receipts {
        let receipt = SignedReceipt::parse(recorded.signed.as_ref().unwrap()).unwrap();
        assert!(vkeys.iter().any(|key| receipt.is_signed_by(key)));
    }
    journal.close("drained");
    // From the very first key alone one comes to trust the last.
    let (mut policy, mut found) = (vec![very_first.verifier().clone()], 0);
    for entry in site.read_whole() {
        if let Content::Entry(Entry::LogKey(note)) = entry.content {
            policy.push(next_key(&note, ORIGIN, &Policy::of_logs(policy.clone())).expect("vouched for"));
            found += 1;
        }
    }
    assert_eq!((found, &policy), (5, &vkeys));
    site.open().close("drained");
}

#[tokio::test(flavor = "multi_thread")]
async fn recipients_change_while_the_log_is_written() {
    let site = Site::new();
    let journal = site.open();
    journal.append(look(PERSON)).await.unwrap();
    let next = PrivateKey::generate().unwrap();
    next.write(&site.dir.path().join("next.key")).unwrap();
    let public = site.dir.path().join("auditor.pub");
    fs::write(&public, "no key").unwrap();
    assert!(journal.follow().await.unwrap().is_err());
    fs::remove_file(&public).unwrap();
    next.public().write(&public).unwrap();
    journal.follow().await.unwrap().unwrap();
    for _ in 0..3 {
        journal.append(look(PERSON)).await.unwrap();
    }
    journal.close("drained");
    let read = |keys: Vec<PrivateKey>| {
        let entries = LogReader::open(&site.config.dir, keys).unwrap();
        let looks = |entry: &LoggedEntry| matches!(entry.content, Content::Entry(Entry::Access(_)));
        entries.filter_map(Result::ok).filter(looks).count()
    };
    let next = || PrivateKey::load(&site.dir.path().join("next.key")).unwrap();
    assert_eq!(read(vec![site.key("escrow")]), 4, "the escrow reads all of it");
    assert_eq!(
        (read(vec![site.key("auditor")]), read(vec![next()]), read(vec![site.key("auditor"), next()])),
        (1, 3, 4)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_lost_entries_is_continued_under_a_new_origin() {
    let mut site = Site::new();
    site.open().close("drained");
    let (old, last) = (signer(&site), site.config.dir.join(CHECKPOINT));
    let next = SigningKey::generate("heshan.gov.example/gw1/2", Algorithm::Ed25519).unwrap();
    site.config.signing_key = site.dir.path().join("next.key");
    next.write(&site.config.signing_key).unwrap();
    site.config.dir = site.dir.path().join("log2");
    site.config.origin = "heshan.gov.example/gw1/2".into();
    let (wrong, vkey) = (site.dir.path().join("wrong"), site.dir.path().join("old"));
    next.write_public(&wrong).unwrap();
    old.write_public(&vkey).unwrap();
    site.config.continues = Some(ContinuesConfig { checkpoint: last.clone(), vkey: wrong });
    assert!(matches!(site.try_open(), Err(OpenError::Option(_))));
    site.config.continues = Some(ContinuesConfig { checkpoint: last.clone(), vkey });
    site.open().close("drained");
    site.open().close("drained");
    let read = site.read_whole();
    assert_eq!(read[0].content, Content::Entry(Entry::Continues(fs::read_to_string(last).unwrap())));
    let again = read.iter().filter(|entry| matches!(entry.content, Content::Entry(Entry::Continues(_)))).count();
    assert_eq!((again, read.len()), (1, 7));
    // Which log that was, and whether its key signed so, is said.
    let stranger = SigningKey::generate("heshan.gov.example/gw1", Algorithm::Ed25519).unwrap();
    for (keys, said) in [
        (vec![&next], Some("whose signature was not checked: its key is not given")),
        (vec![&next, &old], Some("signed by a believed key")),
        (vec![&next, &stranger], None),
    ] {
        let policy = Policy::of_logs(keys.into_iter().map(|key| key.verifier().clone()).collect());
        let trust = verify::Trust { policy: Some(policy), ..verify::Trust::default() };
        let report = verify::verify(&site.config.dir, &trust, Vec::new(), &mut |_, _| {}).unwrap();
        let noted = |said: &&str| {
            report.notes.contains(&format!("continues the log heshan.gov.example/gw1 of 3 entries, {said}"))
        };
        assert_eq!(
            (report.faults.is_empty(), said.as_ref().is_some_and(noted)),
            (said.is_some(), said.is_some()),
            "{report:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_and_recovers_by_itself() {
    let mut site = Site::new();
    site.config.checkpoint_ms = 10;
    let faults = Faulty::default();
    let journal = site.open_on(&faults);
    let kept = journal.append(look(PERSON)).await.unwrap();
    assert_eq!(journal.status().alarms, [""; 0]);
    faults.used.store(85, Ordering::SeqCst);
    until(|| journal.status().alarms == ["the disk fills up"]).await;
    journal.append(look(PERSON)).await.unwrap();
    faults.used.store(95, Ordering::SeqCst);
    until(|| !journal.is_writable()).await;
    assert_eq!(journal.append(look(PERSON)).await, Err(AppendError::Refused));
    faults.used.store(60, Ordering::SeqCst);
    until(|| journal.is_writable()).await;
    assert_eq!(journal.append(look(PERSON)).await.unwrap().index(), kept.index() + 2);
    assert_eq!(journal.status().alarms, [""; 0]);
    journal.close("drained");
    assert_eq!(site.read_whole().len(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_space_nothing_is_written_and_nothing_lost() {
    let mut site = Site::new();
    site.config.checkpoint_ms = 10;
    let faults = Faulty::default();
    let journal = site.open_on(&faults);
    faults.full.store(true, Ordering::SeqCst);
    // The zeros written ahead are a reserve: about a MiB of entries still fits.
    let mut stored = 0;
    let refused = loop {
        match journal.append(admin(&"x".repeat(1000))).await {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
    };
    assert!((900..1100).contains(&stored), "{stored}");
    assert_eq!(refused, AppendError::Unavailable);
    faults.full.store(false, Ordering::SeqCst);
    until(|| journal.is_writable()).await;
    let next = journal.append(admin("")).await.unwrap();
    assert_eq!(next.index(), stored + 2, "the index that found no room is used now");
    journal.close("drained");
    assert_eq!(site.read_whole().len() as u64, stored + 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_lies_loses_only_what_the_checkpoint_then_reports() {
    let site = Site::new();
    let faults = Faulty::default();
    let journal = site.open_on(&faults);
    for _ in 0..3 {
        journal.append(look(PERSON)).await.unwrap();
    }
    journal.publish();
    until(|| signed(&site).size == 5).await;
    faults.lie.store(true, Ordering::SeqCst);
    let lied = journal.append(look(PERSON)).await.unwrap();
    journal.publish();
    until(|| signed(&site).size == 6).await;
    drop(journal);
    // The power fails, and what the disk only said it had is gone.
    let (offset, _, _) = layout(&site.segment(0))[usize::try_from(lied.index()).unwrap()];
    let held = signed(&site);
    for _ in 0..1000 {
        if File::options().write(true).open(site.config.dir.join("lock")).unwrap().try_lock().is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    File::options().write(true).open(site.segment(0)).unwrap().set_len(offset).unwrap();
    assert_eq!(held.size, 6);
    assert!(matches!(site.try_open(), Err(OpenError::Rollback { size: 5, signed: 6, .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_or_doubly_named_segment_is_noticed() {
    for second_name in [false, true] {
        let site = Site::new();
        let journal = site.open();
        journal.append(look(PERSON)).await.unwrap();
        let (path, aside) = (site.segment(0), site.dir.path().join("aside"));
        if second_name {
            fs::hard_link(&path, &aside).unwrap();
        } else {
            fs::copy(&path, &aside).unwrap();
            fs::rename(&aside, &path).unwrap();
        }
        assert_eq!(journal.append(look(PERSON)).await, Err(AppendError::Unavailable));
        assert!(!journal.is_writable());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_cant_be_written_alarms_and_is_made_up_for() {
    let mut site = Site::new();
    site.config.checkpoint_ms = 10;
    let faults = Faulty::default();
    let journal = site.open_on(&faults);
    faults.small.store(true, Ordering::SeqCst);
    journal.append(look(PERSON)).await.unwrap();
    until(|| journal.status().alarms == ["no checkpoint can be written"]).await;
    assert_eq!((signed(&site).size, journal.status().signed), (2, 2), "what is not durable is not shown");
    faults.small.store(false, Ordering::SeqCst);
    until(|| signed(&site).size == 3 && journal.status().alarms.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cosignatures_are_kept_and_their_absence_alarms_then_stops() {
    let mut site = Site::new();
    (site.config.checkpoint_ms, site.config.unwitnessed_alarm_s, site.config.unwitnessed_stop_s) = (10, 900, 3600);
    let witness = SigningKey::load(&site.dir.path().join("witness")).unwrap();
    let vkey = site.dir.path().join("witness.vkey");
    witness.write_public(&vkey).unwrap();
    site.config.witnesses = vec![WitnessConfig { vkey, url: "http://127.0.0.1:1".into(), tls: None }];
    let journal = site.open();
    let latest = journal.checkpoints().borrow().clone().unwrap();
    let stranger = SigningKey::generate("witness", Algorithm::Cosignature).unwrap();
    journal.cosigned(latest.tree, vec![stranger.sign(latest.note.text(), MORNING)]);
    journal.cosigned(latest.tree, vec![witness.sign("another text\n", MORNING)]);
    journal.cosigned(latest.tree, vec![witness.sign(latest.note.text(), MORNING)]);
    until(|| journal.status().witnessed_at == Some(MORNING)).await;
    let kept = note(&site, WITNESSED);
    assert!(witness.verifier().verify(&kept).is_some() && signer(&site).verifier().verify(&kept).is_some());
    assert_eq!(note(&site, CHECKPOINT), kept);

    // A slow witness answers for a checkpoint that is no longer the latest.
    journal.append(look(PERSON)).await.unwrap();
    until(|| journal.status().signed == 3).await;
    site.clock.advance(Duration::from_secs(20));
    journal.cosigned(latest.tree, vec![witness.sign(latest.note.text(), site.clock.now())]);
    until(|| journal.status().witnessed_at == Some(site.clock.now())).await;
    assert!(witness.verifier().verify(&note(&site, CHECKPOINT)).is_none());
    assert!(journal.status().alarms.is_empty());

    site.clock.advance(Duration::from_mins(15));
    until(|| journal.status().alarms == ["no witness cosigns"]).await;
    journal.append(look(PERSON)).await.unwrap();
    until(|| journal.status().signed == 4).await;
    site.clock.advance(Duration::from_mins(45));
    until(|| !journal.is_writable()).await;
    assert_eq!(journal.append(look(PERSON)).await, Err(AppendError::Refused));
    let latest = journal.checkpoints().borrow().clone().unwrap();
    journal.cosigned(latest.tree, vec![witness.sign(latest.note.text(), site.clock.now())]);
    until(|| journal.is_writable() && journal.status().alarms.is_empty()).await;
    journal.append(look(PERSON)).await.unwrap();
}

/// The whole way of old entries: an auditor allows, the log records it, whole segments go, and what is left can be proved
/// and read.
#[tokio::test(flavor = "multi_thread")]
async fn old_segments_go_when_an_auditor_allows_it_and_the_rest_stays_provable() {
    use crate::audit::prune::{PruneError, RETENTION, authorize, prune};
    use crate::audit::verify::{Trust, verify};

    let mut site = Site::new();
    (site.config.queue, site.config.batch, site.config.wait_ms) = (70_000, 4096, 60_000);
    let auditor = SigningKey::generate("auditor", Algorithm::Ed25519).unwrap();
    let (vkey, note) = (site.dir.path().join("auditor.vkey"), site.dir.path().join("prune.note"));
    auditor.write_public(&vkey).unwrap();
    let journal = site.open();
    for _ in 0..2 {
        let answers = join_all((0..PER_SEGMENT).map(|_| journal.append(admin("")))).await;
        assert!(answers.iter().all(Result::is_ok));
        site.clock.advance(Duration::from_hours(24));
    }
    journal.append(look(PERSON)).await.unwrap();
    journal.close("drained");
    let auditors = vec![auditor.verifier().clone()];
    let trust = Trust {
        policy: Some(Policy::of_logs(vec![signer(&site).verifier().clone()])),
        auditors: auditors.clone(),
        origin: None,
    };
    let below = PER_SEGMENT + 10;
    let later = site.clock.now().plus(2 * RETENTION);
    let try_prune = |delete| prune(&site.config.dir, &auditors, signed(&site).size, later, delete);
    assert!(matches!(try_prune(true), Err(PruneError::NotAllowed)), "nobody allowed it");

    // A stranger's permission makes no entry; the auditor's makes one, once.
    let origin = site.config.origin.clone();
    site.config.auditors = vec![vkey];
    site.config.prune_authorization = Some(note.clone());
    let stranger = SigningKey::generate("auditor", Algorithm::Ed25519).unwrap();
    fs::write(&note, authorize(&origin, below, &stranger).to_string()).unwrap();
    assert!(matches!(site.try_open(), Err(OpenError::Option(_))));
    fs::write(&note, authorize(&origin, below, &auditor).to_string()).unwrap();
    site.open().close("drained");
    site.open().close("drained");
    let count =
        site.read_whole().iter().filter(|entry| matches!(entry.content, Content::Entry(Entry::PruneAuth(_)))).count();
    assert_eq!(count, 1);

    let early = prune(&site.config.dir, &auditors, signed(&site).size, site.clock.now().plus(RETENTION / 2), true);
    assert!(matches!(early, Err(PruneError::TooYoung { segment: 0, .. })), "{early:?}");
    let prune = |delete| prune(&site.config.dir, &auditors, signed(&site).size, later, delete);
    let planned = prune(false).unwrap();
    assert!(site.segment(0).exists());
    assert_eq!(prune(true).unwrap(), planned);
    assert_eq!((planned.first, planned.segments), (PER_SEGMENT, 1));
    assert!(!site.segment(0).exists() && site.segment(1).exists());
    let report = verify(&site.config.dir, &trust, Vec::new(), &mut |_, _| {}).unwrap();
    assert!(report.faults.is_empty() && report.first == PER_SEGMENT, "{report:?}");
    let unproved = Trust { auditors: Vec::new(), ..trust.clone() };
    let report = verify(&site.config.dir, &unproved, Vec::new(), &mut |_, _| {}).unwrap();
    assert!(!report.faults.is_empty(), "who has no auditor's key can't know that it was allowed");
    let report = verify(&site.config.dir, &Trust::default(), Vec::new(), &mut |_, _| {}).unwrap();
    assert!(report.faults.is_empty() && report.notes.iter().any(|note| note.contains("not checked")), "{report:?}");
    // Of what is gone the hashes are left: copies and exports of the tree begin with them.
    let (mut tree, last) = (LogTree::from_first(&site.config.dir).unwrap(), signed(&site));
    assert_eq!(tree.size(), PER_SEGMENT);
    tree.grow(last.size).unwrap();
    assert_eq!(tree.tree(last.size).unwrap(), last);
    let (hashes, bundle) =
        (Resource::Tile { level: 0, number: 3, width: 256 }, Resource::Entries { number: 3, width: 256 });
    assert_eq!(tree.resource(hashes, last.size).unwrap().unwrap().len(), 256 * 32);
    assert!(matches!(tree.resource(bundle, last.size), Err(TreeError::Pruned { segment: 0 })));
    // The log goes on, and what is left is read from the first data key on.
    site.open().close("drained");
    let read = site.read_whole();
    assert!(read.iter().any(|entry| entry.access().is_some_and(|access| access.matter == "newborn_birth")));
    // What nobody allowed is no pruning.
    fs::remove_file(site.segment(1)).unwrap();
    let report = verify(&site.config.dir, &trust, Vec::new(), &mut |_, _| {}).unwrap();
    assert!(!report.faults.is_empty(), "{report:?}");
}

/// Whatever a witness answers, only its valid cosignature gets into the checkpoint, and the log can be opened again.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_witness_s_answer_only_its_cosignature_is_taken() {
    let site = Site::with_witness();
    let (log, witness) = (signer(&site), site.witness());
    let stranger = SigningKey::generate("nobody", Algorithm::Cosignature).unwrap();
    let journal = site.open();
    let latest = journal.checkpoints().borrow().clone().unwrap();
    let text = latest.note.text().to_owned();
    let line = |name: &str, id: [u8; 4], len: usize| {
        use base64::Engine as _;
        let encoded = base64::engine::general_purpose::STANDARD.encode([id.as_slice(), &vec![0; len]].concat());
        parse_signatures(&format!("\u{2014} {name} {encoded}\n")).unwrap().remove(0)
    };
    let forged = line(log.verifier().name(), log.verifier().id(), 64);
    let huge = line("nobody", [1; 4], 200_000);
    let junk: Vec<_> = (0..99).map(|number| line("nobody", [number; 4], 70)).collect();
    let before = note(&site, CHECKPOINT);
    for lines in [vec![forged.clone()], vec![huge.clone()], junk.clone(), vec![stranger.sign(&text, MORNING)]] {
        journal.cosigned(latest.tree, lines);
    }
    // Beside a line of its own that is wrong, its right one counts for nothing, in either order.
    for lines in [
        [witness.sign("x\n", MORNING), witness.sign(&text, MORNING)],
        [witness.sign(&text, MORNING), witness.sign("x\n", MORNING)],
    ] {
        journal.cosigned(latest.tree, lines.to_vec());
    }
    let later = MORNING.plus(Duration::from_secs(1));
    let good = vec![witness.sign(&text, MORNING), witness.sign(&text, later)];
    journal.cosigned(latest.tree, [vec![forged, huge], junk, good].concat());
    until(|| journal.status().witnessed_at == Some(later)).await;
    for name in [CHECKPOINT, WITNESSED] {
        let kept = note(&site, name);
        assert_eq!(kept.signatures().len(), 2, "{name}: {kept}");
        assert_eq!(kept.signatures()[0], before.signatures()[0]);
        assert_eq!(witness.verifier().verify(&kept), Some(later));
    }
    journal.close("drained");
    site.open().close("drained");
}

/// What was witnessed binds a start, however little else is left.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_witnessed_and_a_missing_checkpoint_stop_a_start() {
    let site = Site::with_witness();
    let journal = site.open();
    for _ in 0..3 {
        journal.append(look(PERSON)).await.unwrap();
    }
    journal.publish();
    until(|| journal.status().signed == 5).await;
    let latest = journal.checkpoints().borrow().clone().unwrap();
    journal.cosigned(latest.tree, vec![site.witness().sign(latest.note.text(), MORNING)]);
    until(|| note(&site, CHECKPOINT).signatures().len() == 2).await;
    journal.close("drained");
    let held = tempfile::tempdir().unwrap();
    copy(&site.config.dir, held.path());

    fs::remove_file(site.config.dir.join(CHECKPOINT)).unwrap();
    let whole = site.try_open();
    assert!(matches!(&whole, Err(OpenError::NoCheckpoint { size: 6, .. })), "{whole:?}");
    assert!(whole.unwrap_err().to_string().contains("put its file `checkpoint` back"));
    // Cut off behind the third entry.
    let (offset, _, _) = layout(&site.segment(0))[3];
    File::options().write(true).open(site.segment(0)).unwrap().set_len(offset).unwrap();
    let found = site.try_open();
    assert!(matches!(found, Err(OpenError::Rollback { size: 3, signed: 5, .. })), "{found:?}");
    fs::remove_file(site.config.dir.join(WITNESSED)).unwrap();
    let found = site.try_open();
    assert!(matches!(found, Err(OpenError::NoCheckpoint { size: 3, .. })), "{found:?}");
    // The witness's own copy of it, as the text of the refusal says.
    copy(held.path(), &site.config.dir);
    fs::copy(held.path().join(WITNESSED), site.config.dir.join(CHECKPOINT)).unwrap();
    site.open().close("drained");
    // Whoever signed it: it must be one, and of this log.
    for text in ["x".to_owned(), note(&site, WITNESSED).to_string().replace("gw1\n", "gw2\n")] {
        fs::write(site.config.dir.join(WITNESSED), text).unwrap();
        assert!(matches!(site.try_open(), Err(OpenError::Checkpoint { name: WITNESSED, .. })));
    }
}

/// A crash between the first batch and its checkpoint is no loss.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_of_its_first_batch_alone_needs_no_checkpoint() {
    let site = Site::new();
    let faults = Faulty::default();
    faults.small.store(true, Ordering::SeqCst);
    let open = || site.try_open_on(&faults);
    fs::create_dir(&site.config.dir).unwrap();
    assert!(open().is_err(), "not even its name can be written");
    faults.small.store(false, Ordering::SeqCst);
    open().unwrap().close("drained");
    let (offset, _, _) = layout(&site.segment(0))[2];
    File::options().write(true).open(site.segment(0)).unwrap().set_len(offset).unwrap();
    fs::remove_file(site.config.dir.join(CHECKPOINT)).unwrap();
    faults.small.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        assert!(open().is_err());
        assert_eq!(layout(&site.segment(0)).len(), 2, "nothing more is written before what is there is signed");
    }
    site.open().close("drained");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_does_not_begin_to_wait_for_a_witness_anew_and_nothing_old_counts() {
    let mut site = Site::with_witness();
    (site.config.unwitnessed_alarm_s, site.config.unwitnessed_stop_s) = (900, 3600);
    let witness = site.witness();
    let journal = site.open();
    let latest = journal.checkpoints().borrow().clone().unwrap();
    let old = vec![witness.sign(latest.note.text(), MORNING)];
    journal.cosigned(latest.tree, old.clone());
    until(|| journal.status().witnessed_at == Some(MORNING)).await;
    // The same once more, of a log that is quiet: nobody has looked at it since.
    site.clock.advance(Duration::from_mins(16));
    journal.cosigned(latest.tree, old);
    until(|| journal.status().alarms == ["no witness cosigns"]).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(journal.status().alarms, ["no witness cosigns"]);
    journal.close("drained");
    let journal = site.open();
    assert_eq!(journal.status().witnessed_at, Some(MORNING));
    assert_eq!(journal.status().alarms, ["no witness cosigns"]);
    site.clock.advance(Duration::from_mins(45));
    until(|| !journal.is_writable()).await;
    journal.close("drained");
    let journal = site.open();
    assert!(!journal.is_writable(), "nor does a restart lift the stop");
    let latest = journal.checkpoints().borrow().clone().unwrap();
    journal.cosigned(latest.tree, vec![witness.sign(latest.note.text(), site.clock.now())]);
    until(|| journal.is_writable() && journal.status().alarms.is_empty()).await;
    journal.close("drained");

    // One that was never witnessed waits since its first entry.
    let mut site = Site::with_witness();
    site.config.unwitnessed_alarm_s = 900;
    site.open().close("drained");
    site.clock.advance(Duration::from_mins(16));
    let journal = site.open();
    assert_eq!(journal.status().alarms, ["no witness cosigns"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alarm_that_ended_before_it_could_be_written_is_written_afterwards() {
    let mut site = Site::new();
    site.config.checkpoint_ms = 10;
    let faults = Faulty::default();
    let journal = site.open_on(&faults);
    let mut alarms = Alarms::default();
    alarms.record(&journal, site.clock.now()).await;
    let full = site.clock.now();
    faults.used.store(96, Ordering::SeqCst);
    until(|| !journal.is_writable()).await;
    alarms.record(&journal, full).await;
    site.clock.advance(Duration::from_mins(10));
    faults.used.store(10, Ordering::SeqCst);
    until(|| journal.status().alarms.is_empty()).await;
    alarms.record(&journal, site.clock.now()).await;
    journal.close("drained");
    let told: Vec<_> = site
        .read_whole()
        .into_iter()
        .filter_map(|entry| match entry.content {
            Content::Entry(Entry::Degraded(what)) => Some((true, what)),
            Content::Entry(Entry::Recovered(what)) => Some((false, what)),
            _ => None,
        })
        .collect();
    let seen = full.to_rfc3339();
    let (refuses, fills) = ("the disk is nearly full: no entry is taken", "the disk fills up");
    assert_eq!(told.len(), 4, "{told:?}");
    assert_eq!(told[..2], [(true, format!("{refuses}; seen {seen}")), (true, format!("{fills}; seen {seen}"))]);
    assert_eq!(told[2..], [(false, refuses.to_owned()), (false, fills.to_owned())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_leaves_no_half_made_file_behind() {
    let site = Site::new();
    let faults = Faulty::default();
    site.open_on(&faults).close("drained");
    faults.full.store(true, Ordering::SeqCst);
    let made = segment::make_ready(&site.config.dir, 1, 1 << 20, &faults);
    assert!(made.is_err());
    assert!(!fs::read_dir(&site.config.dir).unwrap().any(|entry| {
        let name = entry.unwrap().file_name();
        name.to_string_lossy().ends_with(".making")
    }));
}

/// A key that was handed over from is believed up to the handover and not beyond; and hands over no more.
#[tokio::test(flavor = "multi_thread")]
async fn a_retired_key_signs_nothing_larger_than_its_handover() {
    use crate::audit::verify::{Held, Trust, verify};

    let mut site = Site::new();
    site.config.previous_signing_key = Some(site.dir.path().join("previous.key"));
    let journal = site.open();
    journal.append(look(PERSON)).await.unwrap();
    journal.publish();
    until(|| signed(&site).size == 3).await;
    let (old, early) = (signer(&site), note(&site, CHECKPOINT));
    fs::copy(&site.config.signing_key, site.dir.path().join("previous.key")).unwrap();
    let new = SigningKey::generate("heshan.gov.example/gw1", Algorithm::Ed25519).unwrap();
    fs::remove_file(&site.config.signing_key).unwrap();
    new.write(&site.config.signing_key).unwrap();
    journal.follow().await.unwrap().unwrap();
    journal.append(look(PERSON)).await.unwrap();
    journal.close("drained");
    let last = signed(&site);
    assert_eq!(last.size, 6, "LOG_KEY is entry 3");
    let mut tree = LogTree::from_entries(&site.config.dir);
    tree.grow(6).unwrap();
    let trust = Trust { policy: Some(Policy::of_logs(vec![old.verifier().clone()])), ..Trust::default() };
    let mut faults = |keys: &[&SigningKey], size| {
        let checkpoint = Checkpoint { origin: site.config.origin.clone(), tree: tree.tree(size).unwrap() };
        let note = checkpoint.sign(keys, MORNING);
        let held = vec![Held { name: "held".into(), note }];
        verify(&site.config.dir, &trust, held, &mut |_, _| {}).unwrap().faults
    };
    for (keys, size, right) in [
        (vec![&old], 3, true),
        (vec![&old], 4, false),
        (vec![&old], 6, false),
        (vec![&new, &old], 4, true),
        (vec![&new], 6, true),
    ] {
        let found = faults(&keys, size);
        assert_eq!(found.is_empty(), right, "{} keys, {size}: {found:?}", keys.len());
    }
    let held = vec![Held { name: "held".into(), note: early }];
    assert!(verify(&site.config.dir, &trust, held, &mut |_, _| {}).unwrap().faults.is_empty());

    // The retired key hands over once more, to somebody else's.
    let third = SigningKey::generate("heshan.gov.example/gw1", Algorithm::Ed25519).unwrap();
    let journal = site.open();
    let again = rotation::handover(&site.config.origin, &old, third.verifier());
    journal.append(Entry::LogKey(again)).await.unwrap();
    journal.close("drained");
    let report = verify(&site.config.dir, &trust, Vec::new(), &mut |_, _| {}).unwrap();
    assert!(report.faults.iter().any(|fault| fault.contains("has not signed")), "{report:?}");
}

/// Every checkpoint over a handover bears the new key's signature, whenever it is made.
#[tokio::test(flavor = "multi_thread")]
async fn a_handover_and_the_keys_that_sign_change_at_once() {
    let mut site = Site::new();
    site.config.checkpoint_ms = 10;
    site.config.previous_signing_key = Some(site.dir.path().join("previous.key"));
    let journal = site.open();
    let mut checkpoints = journal.checkpoints();
    let watching = tokio::spawn(async move {
        let mut seen = Vec::new();
        while checkpoints.changed().await.is_ok() {
            seen.extend(checkpoints.borrow_and_update().clone());
        }
        seen
    });
    let mut handovers = Vec::new();
    for _ in 0..20 {
        fs::copy(&site.config.signing_key, site.dir.path().join("previous.key")).unwrap();
        fs::remove_file(&site.config.signing_key).unwrap();
        let new = SigningKey::generate("heshan.gov.example/gw1", Algorithm::Ed25519).unwrap();
        new.write(&site.config.signing_key).unwrap();
        let publish = tokio::spawn({
            let journal = journal.clone();
            async move {
                for _ in 0..50 {
                    journal.publish();
                    tokio::task::yield_now().await;
                }
            }
        });
        let index = journal.status().size;
        journal.follow().await.unwrap().unwrap();
        publish.await.unwrap();
        handovers.push((index, new.verifier().clone()));
    }
    journal.close("drained");
    drop(journal);
    for published in watching.await.unwrap() {
        let current = handovers.iter().rev().find(|(index, _)| *index < published.tree.size);
        assert!(current.is_none_or(|(_, key)| key.verify(&published.note).is_some()), "{}", published.note);
    }
}

/// The copy of a mirror brings a log back if it reaches the log's own checkpoint, which stays; never a shorter one.
#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_s_copy_brings_a_log_back_if_it_reaches_what_was_signed() {
    let site = Site::new();
    let journal = site.open();
    for _ in 0..5 {
        journal.append(look(PERSON)).await.unwrap();
    }
    journal.close("drained");
    let entries = layout(&site.segment(0));
    let whole = fs::read(site.segment(0)).unwrap();
    assert_eq!(signed(&site).size, entries.len() as u64);
    // The damaged segment is the mirror's now; `checkpoint` is the gateway's own.
    for held in [3, entries.len() - 1] {
        let end = usize::try_from(entries[held].0).unwrap();
        fs::write(site.segment(0), &whole[..end]).unwrap();
        let refused = site.try_open();
        assert!(matches!(refused, Err(OpenError::Rollback { .. })), "{held}: {refused:?}");
    }
    fs::write(site.segment(0), &whole).unwrap();
    site.open().close("drained");
}
