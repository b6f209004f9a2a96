//! Checking a log, or a copy, offline: with public keys alone, every entry, against what was signed.
//!
//! Every hash is computed anew from the entries. What was signed are the checkpoints beside the log and those that whoever
//! checks has kept elsewhere: a held checkpoint is what a rolled back or forked log can't talk its way around.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use super::checkpoint::{Believed, Checkpoint, Policy, Tree, Unbelieved};
use super::files::{read_origin, read_small};
use super::frame::{Header, Kind, PER_SEGMENT};
use super::note::{MAX_NOTE, Note, VerifierKey};
use super::prune;
use super::publisher::{CHECKPOINT, WITNESSED};
use super::rotation;
use super::scan::{Window, file_name, segments};
use super::tree::{LogTree, TreeError};
use crate::clock::Timestamp;

/// A signed note and what it is called in reports.
#[derive(Debug, Clone)]
pub struct Held {
    /// For example the name of its file.
    pub name: String,
    /// The note.
    pub note: Note,
}

/// What was found.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Name of the log.
    pub origin: String,
    /// Entries read.
    pub size: u64,
    /// The first entry that is not pruned.
    pub first: u64,
    /// Entries that the largest believed checkpoint covers.
    pub signed: u64,
    /// Root of the tree over them, hexadecimal.
    pub root: String,
    /// Witnesses that cosigned it, and when.
    pub witnessed: Vec<(String, Timestamp)>,
    /// Entries by kind.
    pub kinds: BTreeMap<&'static str, u64>,
    /// Times of the first and the last entry.
    pub times: Option<(Timestamp, Timestamp)>,
    /// What is worth knowing and no fault.
    pub notes: Vec<String>,
    /// What is wrong. The log is what was signed if this is empty.
    pub faults: Vec<String>,
}

/// Whom a verifier believes.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    /// Logs and witnesses. Without it no signature is checked, only that everything fits together.
    pub policy: Option<Policy>,
    /// Auditors who may allow to delete old entries.
    pub auditors: Vec<VerifierKey>,
    /// The log that it must be. A policy may know several, and one of them is not the other.
    pub origin: Option<String>,
}

/// Checks the log in `dir`. `progress` is told how many bytes of how many are read.
///
/// # Errors
/// If a file can't be read.
pub fn verify(dir: &Path, trust: &Trust, held: Vec<Held>, progress: &mut dyn FnMut(u64, u64)) -> io::Result<Report> {
    let mut check = Check {
        dir,
        policy: trust.policy.clone(),
        auditors: &trust.auditors,
        trees: BTreeMap::new(),
        handovers: Vec::new(),
        pruned_by: None,
        report: Report { origin: read_origin(dir).unwrap_or_default(), ..Report::default() },
    };
    if let Some(origin) = trust.origin.as_ref().filter(|origin| **origin != check.report.origin) {
        check.fault(format!("this is the log {}, not {origin}", check.report.origin));
    }
    let mut notes = held;
    for name in [WITNESSED, CHECKPOINT] {
        match read_note(&dir.join(name)) {
            Ok(Some(note)) => notes.push(Held { name: name.to_owned(), note }),
            Ok(None) => {}
            Err(error) => check.fault(format!("{name}: {error}")),
        }
    }
    let sizes = notes.iter().filter_map(|held| Checkpoint::of(&held.note).ok()).map(|checkpoint| checkpoint.tree.size);
    let sizes: Vec<_> = sizes.collect();
    check.entries(&sizes, progress)?;
    check.signatures(&notes);
    Ok(check.report)
}

/// Reads a signed note; `None` if there is no such file.
///
/// # Errors
/// If the file is no note or can't be read.
pub fn read_note(path: &Path) -> io::Result<Option<Note>> {
    let Some(bytes) = read_small(path, MAX_NOTE)? else { return Ok(None) };
    let text = String::from_utf8(bytes).map_err(|_| io::Error::other("not a signed note"))?;
    text.parse().map(Some).map_err(io::Error::other)
}

struct Check<'a> {
    dir: &'a Path,
    policy: Option<Policy>,
    auditors: &'a [VerifierKey],
    /// Trees of the sizes that notes speak of.
    trees: BTreeMap<u64, Tree>,
    /// Keys that the log went over to, and the index of the entry that says so: whatever is larger must bear their signature.
    handovers: Vec<(u64, VerifierKey)>,
    /// The first entry that a believed authorisation leaves.
    pruned_by: Option<u64>,
    report: Report,
}

impl Check<'_> {
    fn fault(&mut self, what: String) {
        self.report.faults.push(what);
    }

    /// Reads every entry and keeps the trees of these sizes.
    fn entries(&mut self, sizes: &[u64], progress: &mut dyn FnMut(u64, u64)) -> io::Result<()> {
        let numbers = segments(self.dir)?;
        let first = numbers.first().copied().unwrap_or_default();
        self.report.first = first * PER_SEGMENT;
        let length = |number: &u64| fs::metadata(self.dir.join(file_name(*number))).map_or(0, |found| found.len());
        let lengths: Vec<_> = numbers.iter().map(length).collect();
        let total: u64 = lengths.iter().sum();
        let mut tree = match LogTree::from_segment(self.dir, first) {
            Ok(tree) => tree,
            Err(error) => {
                self.fault(format!("segments before {first} are missing, and so are their hashes: {error}"));
                return Ok(());
            }
        };
        if sizes.contains(&0) {
            self.keep(&tree);
        }
        let mut before: Option<Header> = None;
        let mut read = 0;
        loop {
            let header = match tree.read_entry() {
                Ok(Some(header)) => header,
                Ok(None) => break,
                Err(TreeError::Io(error)) => return Err(error),
                Err(error) => {
                    self.fault(error.to_string());
                    break;
                }
            };
            self.entry(&header, before.as_ref(), &mut tree);
            before = Some(header);
            let size = tree.size();
            if sizes.contains(&size) {
                self.keep(&tree);
            }
            if size.is_multiple_of(PER_SEGMENT) {
                let done = size / PER_SEGMENT - 1;
                if !tree.kept_are_right(done).map_err(io::Error::other)? {
                    self.report.notes.push(format!("the kept hashes of segment {done} are wrong; delete that file"));
                }
                let place = usize::try_from(done - first).unwrap_or(usize::MAX);
                let length = lengths.get(place).copied().unwrap_or_default();
                self.trailing(&tree, done, numbers.last() == Some(&done), length)?;
                read += length;
                progress(read, total);
            }
        }
        self.report.size = tree.size();
        self.behind_the_end(&numbers, tree.size())?;
        progress(total, total);
        Ok(())
    }

    fn keep(&mut self, tree: &LogTree) {
        let frontier = tree.frontier();
        self.trees.insert(frontier.size(), Tree { size: frontier.size(), root: frontier.root() });
    }

    fn entry(&mut self, header: &Header, before: Option<&Header>, tree: &mut LogTree) {
        *self.report.kinds.entry(header.kind.name()).or_default() += 1;
        self.report.times = Some((self.report.times.map_or(header.time, |(first, _)| first), header.time));
        let in_order = before.is_none_or(|before| {
            let place = header.batch_pos == 0 || before.batch_pos.checked_add(1) == Some(header.batch_pos);
            header.epoch >= before.epoch && place
        });
        if !in_order {
            self.fault(format!("entry {} does not follow the one before: its epoch or its place", header.seq));
        }
        if ![Kind::LOG_KEY, Kind::PRUNE_AUTH, Kind::CONTINUES].contains(&header.kind) {
            return;
        }
        let entry = tree.entry(header.seq).unwrap_or_default();
        let body = super::frame::parse(&entry).map(|(_, body)| body).unwrap_or_default();
        let body = std::str::from_utf8(body).unwrap_or_default();
        if header.kind == Kind::PRUNE_AUTH {
            let note = body.parse::<Note>().ok();
            let below = note.and_then(|note| prune::allowed_below(&note, &self.report.origin, self.auditors));
            self.pruned_by = self.pruned_by.max(below);
            return;
        }
        if header.kind == Kind::CONTINUES {
            return self.continues(header.seq, body);
        }
        self.handover(header.seq, body);
    }

    /// A `LOG_KEY` entry: only the key that signs then may hand over. After a crash the same handover may stand there again.
    fn handover(&mut self, index: u64, body: &str) {
        let Some(policy) = &mut self.policy else { return };
        let (current, origin) = (self.handovers.last().map(|(_, key)| key.clone()), &self.report.origin);
        let signer = current.clone().map_or_else(|| policy.clone(), |key| Policy::of_logs(vec![key]));
        let again = || rotation::next_key(body, origin, policy).filter(|key| Some(key) == current.as_ref());
        match rotation::next_key(body, origin, &signer) {
            Some(key) => {
                self.report.notes.push(format!("entry {index}: the log goes over to the key {key}"));
                policy.add_log(key.clone());
                self.handovers.push((index, key));
            }
            None if again().is_some() => {}
            None => self.fault(format!("entry {index}: a new key that the key of then has not signed")),
        }
    }

    /// The log that this one goes on from: the checkpoint it ended with, believed if the policy knows that log's key.
    fn continues(&mut self, seq: u64, body: &str) {
        let note = body.parse::<Note>().ok();
        let checkpoint = note.as_ref().and_then(|note| Checkpoint::of(note).ok());
        let (Some(note), Some(Checkpoint { origin, tree })) = (note, checkpoint) else {
            return self.fault(format!("entry {seq}: CONTINUES names no checkpoint"));
        };
        if seq != 0 || origin == self.report.origin {
            return self.fault(format!("entry {seq}: CONTINUES stands at the beginning and names another log"));
        }
        let of_origin = |key: &&VerifierKey| key.name() == origin;
        let keys: Vec<_> = self.policy.iter().flat_map(Policy::logs).filter(of_origin).collect();
        let signed = match (keys.is_empty(), keys.iter().any(|key| key.verify(&note).is_some())) {
            (true, _) => "whose signature was not checked: its key is not given",
            (false, true) => "signed by a believed key",
            (false, false) => {
                return self.fault(format!("entry {seq}: the checkpoint of {origin} is not signed by its key"));
            }
        };
        let size = tree.size;
        self.report.notes.push(format!("continues the log {origin} of {size} entries, {signed}"));
    }

    /// True if a checkpoint of that size bears the signature of the key that the log had gone over to by then.
    fn in_force(&self, note: &Note, size: u64) -> bool {
        let current = self.handovers.iter().rev().find(|(index, _)| *index < size);
        current.is_none_or(|(_, key)| key.verify(note).is_some())
    }

    /// Bytes behind the last entry of a full segment are none of the log's; only the one that is written may have zeros
    /// there.
    fn trailing(&mut self, tree: &LogTree, segment: u64, last: bool, length: u64) -> io::Result<()> {
        let end = tree.segment_end();
        let zeros = |dir: &Path| -> io::Result<bool> {
            Ok(Window::new(fs::File::open(dir.join(file_name(segment)))?).data_end(end)? == end)
        };
        if length != end && !(last && zeros(self.dir)?) {
            self.fault(format!("segment {segment}: bytes behind its last entry"));
        }
        Ok(())
    }

    /// What stands where no whole entry follows: nothing, a torn batch, or damage.
    fn behind_the_end(&mut self, numbers: &[u64], size: u64) -> io::Result<()> {
        let segment = size / PER_SEGMENT;
        if let Some(later) = numbers.iter().find(|number| **number > segment) {
            self.fault(format!("entries {size} to {} are damaged or missing", later * PER_SEGMENT - 1));
            return Ok(());
        }
        if !numbers.contains(&segment) {
            return Ok(());
        }
        let file = fs::File::open(self.dir.join(file_name(segment)))?;
        let mut window = Window::new(file);
        let mut offset = 0;
        for _ in segment * PER_SEGMENT..size {
            let Some((_, length)) = window.entry(offset)? else { break };
            offset += (super::frame::LENGTH + length) as u64;
        }
        let end = (segment + 1) * PER_SEGMENT;
        if let Some((_, header)) = window.find(offset, |header| header.seq > size && header.seq < end)? {
            self.fault(format!("entries {size} to {} are damaged or missing", header.seq - 1));
        } else if window.data_end(offset)? > offset {
            self.report.notes.push(format!("entry {size} at the end is not whole: being written, or torn"));
        }
        Ok(())
    }

    fn signatures(&mut self, notes: &[Held]) {
        let mut best: Option<Believed> = None;
        let mut unbelieved = Vec::new();
        for held in notes {
            let believed = match &self.policy {
                Some(policy) => policy.check(&held.note),
                None => Checkpoint::of(&held.note)
                    .map(|checkpoint| Believed { checkpoint, witnessed: Vec::new() })
                    .map_err(|_| Unbelieved::Form),
            };
            match believed {
                Ok(Believed { checkpoint, .. }) if !self.in_force(&held.note, checkpoint.tree.size) => {
                    self.fault(format!("{}: signed by a key that the log had handed over from", held.name));
                }
                Ok(believed) => {
                    self.hold(&held.name, &believed.checkpoint);
                    if best.as_ref().is_none_or(|best| best.checkpoint.tree.size < believed.checkpoint.tree.size) {
                        best = Some(believed);
                    }
                }
                // The newest checkpoint waits for its cosignatures; but it is signed, so it binds.
                Err(error @ Unbelieved::Quorum { .. }) => {
                    let checkpoint = Checkpoint::of(&held.note).ok();
                    if let Some(checkpoint) = checkpoint.filter(|found| self.in_force(&held.note, found.tree.size)) {
                        self.hold(&held.name, &checkpoint);
                    }
                    unbelieved.push(format!("{}: {error}", held.name));
                }
                Err(error) => self.fault(format!("{}: {error}", held.name)),
            }
        }
        let Some(best) = best else {
            self.report.faults.extend(unbelieved);
            self.fault("there is no checkpoint to believe".to_owned());
            return;
        };
        self.report.notes.extend(unbelieved);
        let tree = best.checkpoint.tree;
        self.report.signed = tree.size;
        self.report.root = hex::encode(tree.root);
        self.report.witnessed = best.witnessed;
        if self.report.size > tree.size {
            let more = self.report.size - tree.size;
            self.report.notes.push(format!("{more} entries are newer than what is signed"));
        }
        let first = self.report.first;
        if self.policy.is_none() && first > 0 {
            self.report.notes.push("whether an auditor allowed to prune it was not checked".to_owned());
        } else if first > self.pruned_by.unwrap_or_default() {
            self.fault(format!(
                "the entries before {first} are gone, and no entry that a given auditor signed allows it"
            ));
        }
    }

    /// Holds the log against a signed tree.
    fn hold(&mut self, name: &str, checkpoint: &Checkpoint) {
        let (of, tree, size) = (&checkpoint.origin, checkpoint.tree, self.report.size);
        if *of != self.report.origin {
            return self.fault(format!("{name}: of the log {of}, this is {}", self.report.origin));
        }
        match self.trees.get(&tree.size) {
            Some(found) if found.root == tree.root => {}
            Some(_) => self.fault(format!("{name}: the first {} entries are not those that were signed", tree.size)),
            None if tree.size < self.report.first => {
                self.report.notes.push(format!("{name}: older than what is left of the log"));
            }
            None => self.fault(format!("{name}: {} entries were signed, {size} are here and whole", tree.size)),
        }
    }
}
