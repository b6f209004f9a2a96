//! Whatever is done to a log, a verifier with a checkpoint of its own finds it; and finds nothing where nothing was done.
//!
//! 300 random tamperings of a log of 20,000 entries; as many as `ONCEGATE_TAMPERINGS` says. With `ONCEGATE_MILLION=1` also
//! 20 of a log of 1,000,000 entries, whose clean verification must take ten seconds at most.

use rand::{Rng as _, SeedableRng as _};

use super::*;
use crate::audit::checkpoint::{Checkpoint, Policy};
use crate::audit::note::Note;
use crate::audit::publisher::CHECKPOINT;
use crate::audit::verify::{Held, Report, Trust, verify};

/// A log on disk and in memory, and what a verifier holds of it.
struct Whole {
    site: Site,
    key: SigningKey,
    segments: Vec<Vec<u8>>,
    /// Of every entry: its segment, where its length stands, and where it ends.
    entries: Vec<(usize, usize, usize)>,
    held: Note,
    /// A checkpoint of half the log.
    earlier: Note,
    trust: Trust,
}

impl Whole {
    async fn of(count: u64) -> Self {
        let mut site = Site::new();
        (site.config.queue, site.config.batch, site.config.wait_ms) = (60_000, 4096, 60_000);
        let journal = site.open();
        let fill = async |count: u64| {
            let mut left = count;
            while left > 0 {
                let now = left.min(50_000);
                let answers = join_all((0..now).map(|_| journal.append(look(PERSON)))).await;
                assert!(answers.iter().all(Result::is_ok));
                left -= now;
            }
        };
        fill(count / 2).await;
        journal.publish();
        let mut checkpoints = journal.checkpoints();
        let half = |latest: &Option<Arc<Published>>| latest.as_ref().is_some_and(|latest| latest.tree.size > count / 2);
        let earlier = checkpoints.wait_for(half).await.unwrap().clone().unwrap().note.clone();
        fill(count - 3 - count / 2).await;
        journal.close("drained");
        let key = SigningKey::load(&site.config.signing_key).unwrap();
        let held: Note = fs::read_to_string(site.config.dir.join(CHECKPOINT)).unwrap().parse().unwrap();
        assert_eq!(Checkpoint::of(&held).unwrap().tree.size, count);
        let trust = Trust { policy: Some(Policy::of_logs(vec![key.verifier().clone()])), ..Trust::default() };
        let (mut segments, mut entries) = (Vec::new(), Vec::new());
        for number in scan::segments(&site.config.dir).unwrap() {
            let bytes = fs::read(site.segment(number)).unwrap();
            let mut at = 0;
            while at + 2 <= bytes.len() && bytes[at..at + 2] != [0, 0] {
                let end = at + 2 + usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
                entries.push((segments.len(), at, end));
                at = end;
            }
            segments.push(bytes);
        }
        assert_eq!(entries.len() as u64, count);
        Self { site, key, segments, entries, held, earlier, trust }
    }

    fn verify(&self) -> Report {
        let held = vec![Held { name: "held".into(), note: self.held.clone() }];
        verify(&self.site.config.dir, &self.trust, held, &mut |_, _| {}).unwrap()
    }

    fn path(&self, segment: usize) -> PathBuf {
        self.site.segment(segment as u64)
    }

    fn put(&self, segment: usize, bytes: &[u8]) {
        fs::write(self.path(segment), bytes).unwrap();
    }

    fn restore(&self, segment: usize) {
        self.put(segment, &self.segments[segment]);
        fs::write(self.site.config.dir.join(CHECKPOINT), self.held.to_string()).unwrap();
    }

    /// Changes the log on disk in one way; tells which, and the segment it touched.
    fn tamper(&self, random: &mut rand::rngs::StdRng) -> (&'static str, usize) {
        let number = random.random_range(1..self.entries.len() - 1);
        let (segment, at, end) = self.entries[number];
        let mut bytes = self.segments[segment].clone();
        let same = |other: usize| self.entries[other].0 == segment;
        let what = match random.random_range(0..10) {
            0 => {
                bytes[random.random_range(at..end)] ^= 1 << random.random_range(0..8);
                "a bit flipped"
            }
            1 => {
                let body = random.random_range(at + 32..end);
                bytes[body] ^= 1 << random.random_range(0..8);
                mend(&mut bytes[at + 2..end]);
                "an entry rewritten, its checksum mended"
            }
            2 => {
                bytes.drain(at..end);
                "an entry deleted"
            }
            3 => {
                bytes.drain(at..end);
                renumber(&mut bytes, at, number as u64);
                "an entry deleted, the others renumbered"
            }
            4 if same(number + 1) => {
                let (_, next, next_end) = self.entries[number + 1];
                let swapped = [&bytes[next..next_end], &bytes[at..end]].concat();
                bytes[at..next_end].copy_from_slice(&swapped);
                "two entries swapped"
            }
            5 if same(number + 1) => {
                let (_, next, next_end) = self.entries[number + 1];
                let swapped = [&bytes[next..next_end], &bytes[at..end]].concat();
                bytes[at..next_end].copy_from_slice(&swapped);
                renumber(&mut bytes, at, number as u64);
                "two entries swapped and renumbered"
            }
            6 => {
                bytes.truncate(random.random_range(at..end));
                "truncated"
            }
            7 => {
                let copy = bytes[at..end].to_vec();
                bytes.splice(end..end, copy);
                renumber(&mut bytes, end, number as u64 + 1);
                "an entry doubled, the others renumbered"
            }
            8 => {
                // The administrator has the log's key, and an older checkpoint that is really the log's.
                let half = usize::try_from(Checkpoint::of(&self.earlier).unwrap().tree.size).unwrap();
                let (segment, at, _) = self.entries[half];
                let mut bytes = self.segments[segment].clone();
                bytes.truncate(at);
                self.put(segment, &bytes);
                fs::write(self.site.config.dir.join(CHECKPOINT), self.earlier.to_string()).unwrap();
                return ("rolled back to an older checkpoint", segment);
            }
            _ => {
                // A fork: the entry rewritten, the checkpoint signed anew over it.
                let body = random.random_range(at + 32..end);
                bytes[body] ^= 1 << random.random_range(0..8);
                mend(&mut bytes[at + 2..end]);
                self.put(segment, &bytes);
                let mut tree = tree::LogTree::from_entries(&self.site.config.dir);
                tree.grow(self.entries.len() as u64).unwrap();
                let tree = tree.tree(self.entries.len() as u64).unwrap();
                let note = Checkpoint { origin: self.site.config.origin.clone(), tree }.sign(&[&self.key], MORNING);
                fs::write(self.site.config.dir.join(CHECKPOINT), note.to_string()).unwrap();
                return ("forked and signed anew", segment);
            }
        };
        self.put(segment, &bytes);
        (what, segment)
    }
}

/// Gives an entry (without its length) the checksum it should have.
fn mend(entry: &mut [u8]) {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&entry[..26]), &entry[30..]);
    entry[26..30].copy_from_slice(&crc.to_be_bytes());
}

/// Numbers the entries of a segment from `at` on, and mends them.
fn renumber(bytes: &mut [u8], mut at: usize, mut number: u64) {
    while at + 2 <= bytes.len() && bytes[at..at + 2] != [0, 0] {
        let end = at + 2 + usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
        let Some(entry) = bytes.get_mut(at + 2..end) else { return };
        entry[6..14].copy_from_slice(&number.to_be_bytes());
        mend(entry);
        (at, number) = (end, number + 1);
    }
}

fn try_all(whole: &Whole, count: u32) {
    let clean = whole.verify();
    assert!(clean.faults.is_empty() && clean.notes.is_empty(), "{clean:?}");
    assert_eq!(clean.signed, whole.entries.len() as u64);
    let mut random = rand::rngs::StdRng::seed_from_u64(5);
    let mut kinds = std::collections::BTreeMap::new();
    for round in 0..count {
        let (what, segment) = whole.tamper(&mut random);
        let report = whole.verify();
        assert!(!report.faults.is_empty(), "round {round}: {what} was not found");
        *kinds.entry(what).or_insert(0_u32) += 1;
        whole.restore(segment);
    }
    let clean = whole.verify();
    assert!(clean.faults.is_empty(), "restored: {clean:?}");
    eprintln!("{count} tamperings of {} entries found: {kinds:?}", whole.entries.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_tampering_is_found() {
    let count = std::env::var("ONCEGATE_TAMPERINGS").ok().and_then(|count| count.parse().ok()).unwrap_or(300);
    try_all(&Whole::of(20_000).await, count);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_million_entries_are_verified_in_ten_seconds() {
    if std::env::var_os("ONCEGATE_MILLION").is_none() {
        return;
    }
    let whole = Whole::of(1_000_000).await;
    let begun = tokio::time::Instant::now();
    assert!(whole.verify().faults.is_empty());
    let took = begun.elapsed();
    eprintln!("1,000,000 entries verified in {took:?}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    try_all(&whole, 20);
}

/// What stands beside the entries, and behind those of a full segment.
#[tokio::test(flavor = "multi_thread")]
async fn other_files_and_bytes_behind_full_segments_are_found() {
    let whole = Whole::of(PER_SEGMENT + 500).await;
    let dir = &whole.site.config.dir;
    let tiles = dir.join("0000000000.tiles");
    // Hashes are kept beside the writer: the next start makes them at the latest.
    whole.site.open().close("drained");
    assert!(tiles.exists() && whole.verify().faults.is_empty());
    let faults = || whole.verify().faults;

    for (name, bytes) in
        [("0000000005.seg", &b""[..]), ("0000000002.seg", &whole.segments[1]), ("9999999999.seg", b"x")]
    {
        fs::write(dir.join(name), bytes).unwrap();
        assert!(!faults().is_empty(), "{name}");
        fs::remove_file(dir.join(name)).unwrap();
    }
    // Names that are no segment's: whatever their number, they are none of the log's.
    for name in ["18446744073709551615.seg", "281474976710656.seg", "1.seg", "+000000001.seg"] {
        fs::write(dir.join(name), &whole.segments[1]).unwrap();
        assert!(faults().is_empty(), "{name}");
        assert!(LogReader::open(dir, whole.site.key("auditor")).unwrap().all(|read| read.is_ok()));
        fs::remove_file(dir.join(name)).unwrap();
    }
    for more in [&b"x"[..], &[0; 4096], &whole.segments[1][..]] {
        let full = whole.segments[0].clone();
        fs::write(whole.path(0), [full.as_slice(), more].concat()).unwrap();
        assert_eq!(faults(), ["segment 0: bytes behind its last entry"]);
        whole.put(0, &full);
    }
    let name = fs::read(dir.join("origin")).unwrap();
    for other in ["heshan.gov.example/gw2", "", "x\ny"] {
        fs::write(dir.join("origin"), other).unwrap();
        assert!(!faults().is_empty(), "{other}");
    }
    fs::write(dir.join("origin"), name).unwrap();
    let trust = Trust { origin: Some("heshan.gov.example/gw2".into()), ..whole.trust.clone() };
    assert!(!verify(dir, &trust, Vec::new(), &mut |_, _| {}).unwrap().faults.is_empty(), "another log was asked for");

    // Kept hashes prove nothing, so damage to them is none of the log; but it is said.
    let kept = fs::read(&tiles).unwrap();
    let mut random = rand::rngs::StdRng::seed_from_u64(5);
    for _ in 0..3 {
        let mut bytes = kept.clone();
        let at = random.random_range(0..bytes.len());
        bytes[at] ^= 1 << random.random_range(0..8);
        fs::write(&tiles, bytes).unwrap();
        let report = whole.verify();
        assert!(report.faults.is_empty() && report.notes.iter().any(|note| note.contains("kept hashes")), "{report:?}");
    }
    for bytes in [[kept.as_slice(), b"x"].concat(), kept[..100].to_vec()] {
        fs::write(&tiles, bytes).unwrap();
        assert!(whole.verify().notes.iter().any(|note| note.contains("kept hashes")));
    }
}
