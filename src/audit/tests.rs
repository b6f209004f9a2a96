//! The log as a whole: what it keeps, what it finds, how it fails.

mod power;
mod signed;
mod tamper;

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::join_all;

use super::frame::{Header, LENGTH, PER_SEGMENT, TAG};
use super::keys::PrivateKey;
use super::medium::{Disk, Medium, Open, Space};
use super::note::{Algorithm, SigningKey};
use super::reader::{Content, LogReader, LoggedEntry, ReadError, Search};
use super::recover::{RecoverError, Tail};
use super::scan::{Window, file_name};
use super::*;
use crate::clock::Clock;
use crate::ids::{RequestId, SpiffeId};

const PERSON: &str = "99999919900101007X";
/// 2026-11-23 10:00 in China.
const MORNING: Timestamp = Timestamp::from_secs(1_795_399_200);

/// A directory with two recipients' keys and a log's configuration.
struct Site {
    dir: tempfile::TempDir,
    config: AuditConfig,
    clock: Clock,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["auditor", "escrow"] {
            let key = PrivateKey::generate().unwrap();
            key.write(&dir.path().join(format!("{name}.key"))).unwrap();
            key.public().write(&dir.path().join(format!("{name}.pub"))).unwrap();
        }
        for (name, algorithm) in [("heshan.gov.example/gw1", Algorithm::Ed25519), ("witness", Algorithm::Cosignature)] {
            let key = SigningKey::generate(name, algorithm).unwrap();
            key.write(&dir.path().join(name.replace('/', "-"))).unwrap();
        }
        let mut config: AuditConfig = toml::from_str(
            "dir = 'log'\norigin = 'heshan.gov.example/gw1'\nsigning_key = 'heshan.gov.example-gw1'\nrecipients = ['auditor.pub', 'escrow.pub']\npreallocate_mib = 1",
        )
        .unwrap();
        config.rebase(dir.path());
        Self { dir, config, clock: Clock::manual(MORNING) }
    }

    fn try_open(&self) -> Result<Journal, OpenError> {
        Journal::open(&self.config, self.clock.clone(), start())
    }

    fn open(&self) -> Journal {
        self.try_open().unwrap()
    }

    fn try_open_on(&self, medium: &(impl Medium + Clone)) -> Result<Journal, OpenError> {
        let medium: Arc<dyn Medium> = Arc::new(medium.clone());
        Journal::open_on(&self.config, self.clock.clone(), start(), &medium)
    }

    fn open_on(&self, faults: &Faulty) -> Journal {
        self.try_open_on(faults).unwrap()
    }

    /// Opens again as soon as the writer of a dropped journal has let go of the lock.
    async fn reopen(&self) -> Journal {
        for _ in 0..1000 {
            match self.try_open() {
                Err(OpenError::Locked { .. }) => tokio::time::sleep(Duration::from_millis(2)).await,
                other => return other.unwrap(),
            }
        }
        panic!("still locked");
    }

    /// One that a witness cosigns, and checkpoints as fast as can be.
    fn with_witness() -> Self {
        let mut site = Self::new();
        let vkey = site.dir.path().join("witness.vkey");
        site.witness().write_public(&vkey).unwrap();
        site.config.witnesses = vec![WitnessConfig { vkey, url: "http://127.0.0.1:1".into(), tls: None }];
        site.config.checkpoint_ms = 10;
        site
    }

    fn witness(&self) -> SigningKey {
        SigningKey::load(&self.dir.path().join("witness")).unwrap()
    }

    fn key(&self, name: &str) -> PrivateKey {
        PrivateKey::load(&self.dir.path().join(format!("{name}.key"))).unwrap()
    }

    fn read(&self) -> Vec<Result<LoggedEntry, ReadError>> {
        LogReader::open(&self.config.dir, self.key("auditor")).unwrap().collect()
    }

    fn read_whole(&self) -> Vec<LoggedEntry> {
        self.read().into_iter().collect::<Result<_, _>>().unwrap()
    }

    fn segment(&self, number: u64) -> PathBuf {
        self.config.dir.join(file_name(number))
    }
}

/// Recovery that knows no checkpoint.
fn recover(dir: &Path) -> Result<Tail, RecoverError> {
    recover::recover(dir, &[], &Disk)
}

fn start() -> StartInfo {
    StartInfo {
        gateway: "spiffe://heshan.gov.example/ZS/gateway-1".into(),
        policy: [7; 32],
        trust: "generation 1".into(),
        policy_keys: PolicyKeys::default(),
        held: Vec::new(),
    }
}

fn caller() -> SpiffeId {
    "spiffe://heshan.gov.example/GA/household".parse().unwrap()
}

fn access(person: &str) -> AccessEntry {
    AccessEntry {
        matter: "newborn_birth".into(),
        certificate_type: "birth_medical_certificate".into(),
        consumer: Some("GA".parse().unwrap()),
        subject: Some(EntrySubject { role: "mother".into(), keys: vec![("id_number".into(), person.into())] }),
        ..AccessEntry::new(RequestId::generate(), caller(), Outcome::Released)
    }
}

fn look(person: &str) -> Entry {
    Entry::Access(Box::new(access(person)))
}

fn admin(detail: &str) -> Entry {
    Entry::Admin(AdminEntry { operator: "a".into(), method: "m".into(), detail: detail.into() })
}

/// Offsets, headers and lengths of the entries of a segment.
fn layout(path: &Path) -> Vec<(u64, Header, usize)> {
    let (mut window, mut offset, mut found) = (Window::new(File::open(path).unwrap()), 0, Vec::new());
    while let Some((header, length)) = window.entry(offset).unwrap() {
        found.push((offset, header, length));
        offset += (LENGTH + length) as u64;
    }
    found
}

fn flip(path: &Path, offset: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
}

/// A disk that fails or stalls when told to.
#[derive(Clone, Default, Debug)]
struct Faulty {
    /// Half of a write reaches the disk, then it fails.
    write: Arc<AtomicBool>,
    /// A sync fails, though the bytes are there.
    sync: Arc<AtomicBool>,
    /// A sync waits.
    stall: Arc<AtomicBool>,
    /// A sync says that it is done and does nothing.
    lie: Arc<AtomicBool>,
    /// Zeros find no room.
    full: Arc<AtomicBool>,
    /// How full the disk says it is, in percent.
    used: Arc<AtomicU64>,
    /// Small files can't be written.
    small: Arc<AtomicBool>,
    /// Nothing can be written, or opened for it.
    read_only: Arc<AtomicBool>,
}

impl Faulty {
    fn writable(&self) -> io::Result<()> {
        if self.read_only.load(Ordering::SeqCst) { Err(io::ErrorKind::ReadOnlyFilesystem.into()) } else { Ok(()) }
    }
}

impl Medium for Faulty {
    fn open(&self, path: &Path, how: Open) -> io::Result<File> {
        self.writable()?;
        Disk.open(path, how)
    }

    fn write(&self, file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
        self.writable()?;
        if self.write.load(Ordering::SeqCst) {
            file.write_all_at(&bytes[..bytes.len() / 2], at)?;
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        if self.full.load(Ordering::SeqCst) && bytes.iter().all(|byte| *byte == 0) {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        Disk.write(file, bytes, at)
    }

    fn replace(&self, dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
        if self.small.load(Ordering::SeqCst) {
            return Err(io::Error::other("injected"));
        }
        Disk.replace(dir, name, bytes)
    }

    fn space(&self, _: &Path) -> io::Result<Space> {
        Ok(Space { total: 100, free: 100 - self.used.load(Ordering::SeqCst) })
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        while self.stall.load(Ordering::SeqCst) {
            std::thread::park_timeout(Duration::from_millis(1));
        }
        if self.sync.load(Ordering::SeqCst) {
            return Err(io::Error::other("injected"));
        }
        if self.lie.load(Ordering::SeqCst) {
            return Ok(());
        }
        Disk.sync(file)
    }
}

/// Enqueues `n` entries while the disk stalls on another one, so that they make one batch.
async fn one_batch(journal: &Journal, faults: &Faulty, n: usize) {
    faults.stall.store(true, Ordering::SeqCst);
    let stuck = tokio::spawn({
        let journal = journal.clone();
        async move { journal.append(admin("first")).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let rest = (0..n).map(|_| {
        let journal = journal.clone();
        tokio::spawn(async move { journal.append(admin("next")).await })
    });
    let rest: Vec<_> = rest.collect();
    tokio::time::sleep(Duration::from_millis(100)).await;
    faults.stall.store(false, Ordering::SeqCst);
    stuck.await.unwrap().unwrap();
    for done in rest {
        done.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn both_recipients_read_what_was_written_and_nobody_else() {
    let site = Site::new();
    let journal = site.open();
    let entry = look(PERSON);
    let recorded = journal.append(entry.clone()).await.unwrap();
    assert_eq!((recorded.index(), &**recorded.origin(), recorded.time()), (2, "heshan.gov.example/gw1", MORNING));
    journal.close("drained");
    for name in ["auditor", "escrow"] {
        let read: Vec<_> =
            LogReader::open(&site.config.dir, site.key(name)).unwrap().collect::<Result<_, _>>().unwrap();
        assert_eq!(read[0].content, Content::Epoch { readable: true });
        assert!(matches!(&read[1].content, Content::Entry(Entry::Start(start)) if start.recovered == 0));
        assert_eq!(read[2].content, Content::Entry(entry.clone()));
        assert_eq!((read[2].index, &read[2].leaf_hash), (recorded.index(), recorded.leaf_hash()));
        assert_eq!(read[3].content, Content::Entry(Entry::Stop(StopEntry { reason: "drained".into() })));
        assert_eq!(read.len(), 4);
    }
    let stranger = LogReader::open(&site.config.dir, PrivateKey::generate().unwrap()).unwrap();
    let read: Vec<_> = stranger.collect();
    assert!(matches!(&read[0], Ok(epoch) if epoch.content == Content::Epoch { readable: false }));
    assert!(read[1..].iter().all(|read| matches!(read, Err(ReadError::NoKey { .. }))));
    assert_eq!(read.len(), 4);
}

#[tokio::test]
async fn nothing_about_a_person_is_in_clear() {
    let site = Site::new();
    let journal = site.open();
    journal.append(look(PERSON)).await.unwrap();
    journal.close("drained");
    let raw = fs::read(site.segment(0)).unwrap();
    for secret in [PERSON, "newborn_birth", "mother", "household", "id_number", "drained"] {
        assert!(!raw.windows(secret.len()).any(|bytes| bytes == secret.as_bytes()), "{secret}");
    }
}

#[tokio::test]
async fn restarts_and_days_begin_new_epochs_and_no_nonce_repeats() {
    let site = Site::new();
    let mut next = 0;
    for run in 0..4 {
        let journal = site.reopen().await;
        assert_eq!(journal.append(look(PERSON)).await.unwrap().index(), next + 2);
        site.clock.advance(Duration::from_hours(24));
        // A new day: its EPOCH entry comes first.
        assert_eq!(journal.append(look(PERSON)).await.unwrap().index(), next + 4);
        next += 5;
        if run % 2 == 0 {
            journal.close("drained");
            next += 1;
        }
    }
    let headers = layout(&site.segment(0));
    let nonces: HashSet<_> = headers.iter().map(|(_, header, _)| header.nonce()).collect();
    assert_eq!(nonces.len(), headers.len());
    let epochs: Vec<_> =
        headers.iter().filter(|(_, header, _)| header.kind == frame::Kind::EPOCH).map(|(_, h, _)| h.epoch).collect();
    assert_eq!(epochs, (1..=8).collect::<Vec<_>>());
    let read = site.read_whole();
    assert!(read.iter().map(|entry| entry.index).eq(0..read.len() as u64));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_torn_anywhere_is_cut_off_and_all_before_it_stays() {
    let site = Site::new();
    let faults = Faulty::default();
    let journal = site.open_on(&faults);
    journal.append(look(PERSON)).await.unwrap();
    one_batch(&journal, &faults, 3).await;
    drop(journal);
    let path = site.segment(0);
    let entries = layout(&path);
    let at = entries.len() - 3;
    let first = entries[at].1.seq;
    assert_eq!((entries[at].1.batch_pos, entries[at + 2].1.batch_pos), (0, 2), "three entries in one batch");
    let batch = usize::try_from(entries[at].0).unwrap();
    let end = usize::try_from(entries[at + 2].0).unwrap() + LENGTH + entries[at + 2].2;
    let whole = fs::read(&path).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let torn = dir.path().join(file_name(0));
    for cut in batch..end {
        for back in [false, true] {
            let mut bytes = whole[..end + 100].to_vec();
            // Sectors reach the disk in any order: the front may be missing as well as the back.
            let lost = if back { cut..end } else { batch..cut + 1 };
            bytes[lost].fill(0);
            fs::write(&torn, &bytes).unwrap();
            let tail = recover(dir.path()).unwrap();
            let kept = usize::try_from(tail.offset).unwrap();
            assert!(tail.next >= first && kept >= batch && kept <= end, "cut at {cut}");
            // The first byte, the high one of a small length, was zero already.
            assert!(back || cut == batch || kept == batch, "nothing stands behind a gap");
            assert_eq!(fs::read(&torn).unwrap(), whole[..kept], "cut at {cut}");
            if cut % 16 == 0 {
                assert_eq!(recover(dir.path()).unwrap(), tail, "a second recovery finds the same");
            }
        }
    }
}

#[tokio::test]
async fn a_torn_log_goes_on_after_its_last_whole_entry() {
    let site = Site::new();
    let journal = site.open();
    let first = fs::read(site.config.dir.join("checkpoint")).unwrap();
    let kept = journal.append(look(PERSON)).await.unwrap();
    let lost = journal.append(look("torn")).await.unwrap();
    journal.close("drained");
    let entries = layout(&site.segment(0));
    let (stop, _, _) = entries[usize::try_from(lost.index()).unwrap()];
    let file = File::options().write(true).open(site.segment(0)).unwrap();
    file.write_all_at(&[0xab; 900], stop + 20).unwrap();
    // It was not signed yet when the power failed.
    fs::write(site.config.dir.join("checkpoint"), first).unwrap();
    let unfinished = site.read();
    assert!(matches!(unfinished.last(), Some(Err(ReadError::Unfinished { index })) if *index == lost.index()));
    let journal = site.open();
    assert_eq!(journal.append(look("again")).await.unwrap().index(), lost.index() + 2);
    journal.close("drained");
    let read = site.read_whole();
    assert_eq!(&read[usize::try_from(kept.index()).unwrap()].leaf_hash, kept.leaf_hash());
    let start = &read[usize::try_from(lost.index()).unwrap() + 1];
    assert!(matches!(&start.content, Content::Entry(Entry::Start(start)) if start.recovered == lost.index()));
}

#[tokio::test]
async fn a_damaged_earlier_batch_is_refused() {
    let site = Site::new();
    let journal = site.open();
    for _ in 0..3 {
        journal.append(look(PERSON)).await.unwrap();
    }
    journal.close("drained");
    let entries = layout(&site.segment(0));
    let (damaged, length) = (entries[2].0, (entries[2].2 + LENGTH) as u64);
    for offset in (damaged..damaged + length).step_by(5) {
        flip(&site.segment(0), offset);
        assert!(matches!(site.try_open(), Err(OpenError::Corrupt { index: 2, .. })), "byte {offset}");
        flip(&site.segment(0), offset);
    }
    site.open().close("nothing was changed by refusing");
}

#[tokio::test]
async fn the_reader_reports_broken_and_rewritten_entries_and_reads_on() {
    let site = Site::new();
    let journal = site.open();
    for _ in 0..4 {
        journal.append(look(PERSON)).await.unwrap();
    }
    journal.close("drained");
    let entries = layout(&site.segment(0));
    // A flipped byte, checksum wrong; and the length in front of an entry.
    for (index, place) in [(3, entries[3].0 + 40), (3, entries[3].0), (3, entries[3].0 + 1)] {
        flip(&site.segment(0), place);
        let read = site.read();
        assert!(matches!(read[index], Err(ReadError::Damaged { first: 3, until: 4 })), "{:?}", read[index]);
        assert_eq!((read.len(), read.iter().filter(|read| read.is_ok()).count()), (7, 6));
        flip(&site.segment(0), place);
    }
    // A flipped byte, checksum mended.
    let (offset, header, length) = entries[3];
    let mut bytes = fs::read(site.segment(0)).unwrap();
    let entry = usize::try_from(offset).unwrap() + LENGTH;
    let mut body = bytes[entry + 30..entry + length].to_vec();
    body[0] ^= 1;
    let mut forged = Vec::new();
    let (text, tag) = body.split_at(body.len() - TAG);
    frame::put(&mut forged, &header.bound(), text, tag).unwrap();
    bytes[entry - LENGTH..entry + length].copy_from_slice(&forged);
    fs::write(site.segment(0), &bytes).unwrap();
    let read = site.read();
    assert!(matches!(read[3], Err(ReadError::Forged { index: 3 })), "{:?}", read[3]);
    assert_eq!((read.len(), read.iter().filter(|read| read.is_ok()).count()), (7, 6));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_poisons_the_log_until_restart() {
    let site = Site::new();
    let faults = Faulty::default();
    let journal = site.open_on(&faults);
    let kept = journal.append(look(PERSON)).await.unwrap();
    faults.sync.store(true, Ordering::SeqCst);
    assert_eq!(journal.append(look(PERSON)).await, Err(AppendError::Unavailable));
    assert!(!journal.is_writable());
    // The disk is well again, but nobody may believe it.
    faults.sync.store(false, Ordering::SeqCst);
    for _ in 0..3 {
        assert_eq!(journal.append(look(PERSON)).await, Err(AppendError::Unavailable));
    }
    assert_eq!(journal.status().size, kept.index() + 1);
    assert!(matches!(site.try_open(), Err(OpenError::Locked { .. })), "locked while the process lives");
    journal.close("drained");
    assert!(!site.read_whole().iter().any(|entry| matches!(&entry.content, Content::Entry(Entry::Stop(_)))));
    let journal = site.open();
    assert!(journal.append(look(PERSON)).await.unwrap().index() > kept.index());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_write_poisons_the_log_and_recovery_cuts_the_half_off() {
    let site = Site::new();
    let faults = Faulty::default();
    let journal = site.open_on(&faults);
    let kept = journal.append(look(PERSON)).await.unwrap();
    faults.write.store(true, Ordering::SeqCst);
    let waiters = (0..5).map(|_| journal.append(look(PERSON)));
    assert!(join_all(waiters).await.iter().all(|answer| *answer == Err(AppendError::Unavailable)));
    journal.close("drained");
    faults.write.store(false, Ordering::SeqCst);
    let journal = site.open();
    // EPOCH and START stand between, and what of the five was whole in the half that was written.
    let next = journal.append(look(PERSON)).await.unwrap().index();
    assert!((kept.index() + 3..kept.index() + 8).contains(&next));
    journal.close("drained");
    assert_eq!(site.read_whole().len() as u64, next + 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_segment_is_noticed() {
    let site = Site::new();
    let journal = site.open();
    journal.append(look(PERSON)).await.unwrap();
    fs::remove_file(site.segment(0)).unwrap();
    assert_eq!(journal.append(look(PERSON)).await, Err(AppendError::Unavailable));
    assert!(!journal.is_writable());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_disk_means_too_slow_and_then_full_but_what_was_taken_is_written() {
    let mut site = Site::new();
    (site.config.queue, site.config.batch, site.config.wait_ms) = (2, 1, 100);
    let faults = Faulty::default();
    let journal = site.open_on(&faults);
    faults.stall.store(true, Ordering::SeqCst);
    let mut answers = Vec::new();
    // One is with the writer, two wait, the fourth finds no place.
    for _ in 0..4 {
        answers.push(journal.append(look(PERSON)).await.unwrap_err());
    }
    assert_eq!(answers, [AppendError::TooSlow, AppendError::TooSlow, AppendError::TooSlow, AppendError::Full]);
    faults.stall.store(false, Ordering::SeqCst);
    journal.close("drained");
    assert_eq!(site.read_whole().len(), 2 + 3 + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_appends_get_distinct_consecutive_places_and_are_all_readable() {
    let mut site = Site::new();
    site.config.batch = 16;
    let journal = site.open();
    let looks = (0..300).map(|n| {
        let journal = journal.clone();
        tokio::spawn(async move { (n, journal.append(look(&format!("person-{n}"))).await.unwrap()) })
    });
    let mut done: Vec<_> = join_all(looks).await.into_iter().map(Result::unwrap).collect();
    journal.close("drained");
    let read = site.read_whole();
    done.sort_by_key(|(_, recorded)| recorded.index());
    assert!(done.iter().map(|(_, recorded)| recorded.index()).eq(2..302));
    for (n, recorded) in done {
        let entry = &read[usize::try_from(recorded.index()).unwrap()];
        assert_eq!(&entry.leaf_hash, recorded.leaf_hash());
        assert_eq!(entry.access().unwrap().subject.as_ref().unwrap().keys[0].1, format!("person-{n}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_log_gathers_entries_and_a_quiet_one_writes_at_once() {
    let mut site = Site::new();
    site.config.pace_us = 100_000;
    let journal = site.open();
    let busy = async |number: usize| {
        let answers = join_all((0..number).map(|_| journal.append(look(PERSON)))).await;
        assert!(answers.iter().all(Result::is_ok));
    };
    // Enough at once that some batch of them is busy; what comes right behind shares one batch.
    busy(2000).await;
    busy(3).await;
    journal.close("drained");
    let positions: Vec<_> = layout(&site.segment(0)).iter().map(|(_, header, _)| header.batch_pos).collect();
    assert_eq!(positions[positions.len() - 4..], [0, 1, 2, 0], "three together, then STOP");
}

#[tokio::test]
async fn a_caller_that_goes_away_is_in_the_log_all_the_same() {
    let site = Site::new();
    let journal = site.open();
    {
        let mut append = Box::pin(journal.append(look("gone")));
        assert!(futures_util::poll!(append.as_mut()).is_pending());
    }
    journal.close("drained");
    assert!(
        site.read_whole()
            .iter()
            .any(|entry| { entry.access().is_some_and(|access| access.subject.as_ref().unwrap().keys[0].1 == "gone") })
    );
}

#[tokio::test]
async fn a_closed_log_takes_nothing_and_closes_once() {
    let site = Site::new();
    let journal = site.open();
    let other = journal.clone();
    journal.close("drained");
    other.close("again");
    assert_eq!(other.append(look(PERSON)).await, Err(AppendError::Unavailable));
    assert!(!other.status().writable);
    assert_eq!(other.status().size, 3);
    assert_eq!(site.read_whole().len(), 3);
}

#[tokio::test]
async fn one_writer_and_one_origin() {
    let mut site = Site::new();
    let journal = site.open();
    assert!(matches!(site.try_open(), Err(OpenError::Locked { .. })));
    journal.close("drained");
    site.config.origin = "heshan.gov.example/gw2".into();
    assert!(matches!(site.try_open(), Err(OpenError::Origin { .. })));
}

#[tokio::test]
async fn both_recipients_are_required() {
    let mut site = Site::new();
    site.config.recipients[1] = site.config.recipients[0].clone();
    assert!(matches!(site.try_open(), Err(OpenError::Option(_))));
    site.config.recipients.pop();
    assert!(matches!(site.try_open(), Err(OpenError::Option(_))));
    site.config.recipients.push(site.dir.path().join("nobody.pub"));
    assert!(matches!(site.try_open(), Err(OpenError::Recipient { .. })));
}

#[tokio::test]
async fn a_reader_follows_a_live_log() {
    let site = Site::new();
    let journal = site.open();
    let mut reader = LogReader::open(&site.config.dir, site.key("auditor")).unwrap();
    assert_eq!(reader.by_ref().count(), 2);
    for _ in 0..3 {
        let recorded = journal.append(look(PERSON)).await.unwrap();
        assert_eq!(reader.next().unwrap().unwrap().index, recorded.index());
        assert!(reader.next().is_none());
    }
}

#[tokio::test]
async fn a_search_finds_by_every_field() {
    let site = Site::new();
    let journal = site.open();
    let mut entry = access(PERSON);
    let id = entry.request_id;
    journal.append(Entry::Access(Box::new(entry.clone()))).await.unwrap();
    site.clock.advance(Duration::from_hours(24));
    (entry.request_id, entry.outcome) = (RequestId::generate(), Outcome::Denied);
    entry.subject = None;
    journal.append(Entry::Access(Box::new(entry))).await.unwrap();
    journal.close("drained");
    let find = |search: Search| -> Vec<u64> {
        let reader = LogReader::open(&site.config.dir, site.key("auditor")).unwrap();
        reader.search(search).map(|read| read.unwrap().index).collect()
    };
    let next_day = MORNING.plus(Duration::from_hours(24));
    assert_eq!(find(Search::default()), [0, 1, 2, 3, 4, 5]);
    assert_eq!(find(Search { subject: Some(PERSON.into()), ..Search::default() }), [2]);
    assert_eq!(find(Search { outcome: Some(Outcome::Denied), ..Search::default() }), [4]);
    assert_eq!(find(Search { request_id: Some(id), ..Search::default() }), [2]);
    assert_eq!(find(Search { caller: Some(caller()), ..Search::default() }), [2, 4]);
    assert_eq!(find(Search { matter: Some("newborn_birth".into()), until: Some(next_day), ..Search::default() }), [2]);
    assert_eq!(find(Search { since: Some(next_day), ..Search::default() }), [3, 4, 5]);
    assert_eq!(find(Search { consumer: Some("WJ".parse().unwrap()), ..Search::default() }), [0; 0]);
    assert_eq!(find(Search { certificate_type: Some("other".into()), ..Search::default() }), [0; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_segment_rolls_over_and_both_must_be_whole() {
    let mut site = Site::new();
    (site.config.queue, site.config.batch, site.config.wait_ms) = (70_000, 4096, 60_000);
    // No checkpoint, which keeps hashes of full segments, comes between.
    site.config.checkpoint_ms = 60_000;
    let journal = site.open();
    let count = PER_SEGMENT + 10;
    let answers = join_all((0..count).map(|_| journal.append(admin("")))).await;
    assert!(answers.iter().map(|answer| answer.as_ref().unwrap().index()).eq(2..count + 2));
    journal.close("drained");
    let full = fs::metadata(site.segment(0)).unwrap().len();
    let second = layout(&site.segment(1));
    assert_eq!((second[0].1.seq, second[0].1.batch_pos, second.len()), (PER_SEGMENT, 0, 13));
    // A segment holds its entries and nothing more, and reading crosses into the next.
    assert_eq!(layout(&site.segment(0)).len() as u64, PER_SEGMENT);
    assert_eq!(site.read_whole().len() as u64, count + 3);
    let dir = site.config.dir.clone();
    let tail = recover(&dir).unwrap();
    assert_eq!((tail.segment, tail.next, tail.epoch), (1, count + 3, 1));

    flip(&site.segment(0), full - 3);
    let found = recover(&dir);
    assert!(matches!(found, Err(RecoverError::Corrupt { index, .. }) if index == PER_SEGMENT - 1), "{found:?}");
    let broken = site.read().into_iter().find_map(Result::err);
    assert!(matches!(broken, Some(ReadError::Damaged { until: PER_SEGMENT, .. })), "{broken:?}");
    flip(&site.segment(0), full - 3);

    // A crash right after the new segment's file was made.
    File::create(site.segment(1)).unwrap().set_len(1 << 20).unwrap();
    let tail = recover(&dir).unwrap();
    assert_eq!((tail.segment, tail.offset, tail.next, tail.epoch), (1, 0, PER_SEGMENT, 1));

    // Holes between segments, and before the first, of which no hashes are kept.
    drop(fs::remove_file(dir.join("0000000000.tiles")));
    fs::copy(site.segment(1), site.segment(2)).unwrap();
    fs::remove_file(site.segment(1)).unwrap();
    assert!(matches!(recover(&dir), Err(RecoverError::Corrupt { index: PER_SEGMENT, .. })));
    fs::rename(site.segment(0), site.segment(1)).unwrap();
    assert!(matches!(recover(&dir), Err(RecoverError::Corrupt { index: 0, .. })));
}
