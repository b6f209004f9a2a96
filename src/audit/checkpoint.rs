//! Checkpoints (C2SP tlog-checkpoint): a log's name, size and root, signed; and the policy (C2SP tlog-policy) that says
//! whose signatures make one believable.

use std::fmt::{self, Write as _};
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::merkle::Hash;
use super::note::{Algorithm, Note, NoteError, SigningKey, VerifierKey};
use crate::clock::Timestamp;

/// Size and root of a log at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tree {
    /// Entries.
    pub size: u64,
    /// Root of the Merkle tree over them.
    pub root: Hash,
}

/// What a checkpoint says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Checkpoint {
    /// The log's name.
    pub origin: String,
    /// Its size and root.
    pub tree: Tree,
}

impl Checkpoint {
    /// Signs it.
    pub fn sign(&self, keys: &[&SigningKey], now: Timestamp) -> Note {
        Note::sign(self.to_string(), keys, now)
    }

    /// What a note says, if it is a checkpoint; no signature is checked.
    pub fn of(note: &Note) -> Result<Self, NoteError> {
        let mut lines = note.text().split('\n');
        let (origin, size, root) = (lines.next(), lines.next(), lines.next());
        let (Some(origin), Some(size), Some(root)) = (origin, size, root) else { return Err(NoteError::Form) };
        let root = STANDARD.decode(root).ok().and_then(|root| root.try_into().ok()).ok_or(NoteError::Form)?;
        if origin.is_empty() {
            return Err(NoteError::Form);
        }
        // Lines that may follow are extensions: signed, and none of ours.
        Ok(Self { origin: origin.to_owned(), tree: Tree { size: decimal(size).ok_or(NoteError::Form)?, root } })
    }
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n{}\n{}", self.origin, self.tree.size, STANDARD.encode(self.tree.root))
    }
}

/// A decimal number without leading zeros.
pub(crate) fn decimal(text: &str) -> Option<u64> {
    let canonical = text == "0" || !text.starts_with('0');
    (canonical && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

/// Whose signatures make a checkpoint believable.
#[derive(Clone, Debug)]
pub struct Policy {
    logs: Vec<VerifierKey>,
    witnesses: Vec<(String, VerifierKey)>,
    groups: Vec<Group>,
    /// None: no cosignature is needed.
    quorum: Option<String>,
}

/// A number of members that must have cosigned.
#[derive(Clone, Debug)]
struct Group {
    name: String,
    needed: usize,
    members: Vec<String>,
}

/// A checkpoint that a policy believes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Believed {
    /// What it says.
    pub checkpoint: Checkpoint,
    /// Witnesses of the policy whose cosignature is valid, and when each gave it.
    pub witnessed: Vec<(String, Timestamp)>,
}

impl Policy {
    /// A policy of one log's keys, without witnesses.
    pub fn of_logs(logs: Vec<VerifierKey>) -> Self {
        Self { logs, witnesses: Vec::new(), groups: Vec::new(), quorum: None }
    }

    /// Keys of logs that are believed.
    pub fn logs(&self) -> &[VerifierKey] {
        &self.logs
    }

    /// Names of the logs that are believed, each once.
    pub fn origins(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.logs.iter().map(VerifierKey::name).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Believes one key more of a log that it believes: a log may hand over to a new key.
    pub fn add_log(&mut self, key: VerifierKey) {
        if !self.logs.contains(&key) {
            self.logs.push(key);
        }
    }

    /// Checks a signed checkpoint.
    ///
    /// # Errors
    /// What is wanting.
    pub fn check(&self, note: &Note) -> Result<Believed, Unbelieved> {
        let checkpoint = Checkpoint::of(note).map_err(|_| Unbelieved::Form)?;
        let of_origin = |key: &&VerifierKey| key.name() == checkpoint.origin && key.algorithm() == Algorithm::Ed25519;
        let mut keys = self.logs.iter().filter(of_origin).peekable();
        if keys.peek().is_none() {
            return Err(Unbelieved::Log(checkpoint.origin));
        }
        if !keys.any(|key| key.verify(note).is_some()) {
            return Err(Unbelieved::Signature(checkpoint.origin));
        }
        let known = self.logs.iter().chain(self.witnesses.iter().map(|(_, key)| key));
        let wrong =
            |key: &&VerifierKey| note.signatures().iter().any(|line| line.is_of(key)) && key.verify(note).is_none();
        if let Some(key) = known.into_iter().find(wrong) {
            return Err(Unbelieved::Wrong(key.name().to_owned()));
        }
        let witnessed = self.witnessed(note);
        match &self.quorum {
            Some(quorum) if !self.satisfied(quorum, &witnessed) => {
                let names = witnessed.into_iter().map(|(name, _)| name).collect();
                Err(Unbelieved::Quorum { needed: quorum.clone(), witnessed: names })
            }
            _ => Ok(Believed { checkpoint, witnessed }),
        }
    }

    fn witnessed(&self, note: &Note) -> Vec<(String, Timestamp)> {
        let valid = |(name, key): &(String, VerifierKey)| key.verify(note).map(|time| (name.clone(), time));
        self.witnesses.iter().filter_map(valid).collect()
    }

    /// A group refers to names before it only, so this ends.
    fn satisfied(&self, name: &str, witnessed: &[(String, Timestamp)]) -> bool {
        match self.groups.iter().find(|group| group.name == name) {
            Some(group) => {
                let have = group.members.iter().filter(|member| self.satisfied(member, witnessed)).count();
                have >= group.needed
            }
            None => witnessed.iter().any(|(witness, _)| witness == name),
        }
    }
}

impl FromStr for Policy {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        /// Logs, witnesses and groups together.
        const MOST: usize = 256;
        let mut policy = Self::of_logs(Vec::new());
        let mut quorum = None;
        for (line, number) in text.lines().zip(1..) {
            let fault = |what: &'static str| PolicyError { line: number, what };
            let words: Vec<_> = line.split([' ', '\t']).filter(|word| !word.is_empty()).collect();
            match words.as_slice() {
                [] => {}
                [first, ..] if first.starts_with('#') => {}
                ["log", key] | ["log", key, _] => {
                    let key: VerifierKey = key.parse().map_err(|_| fault("the key is no vkey"))?;
                    if key.algorithm() != Algorithm::Ed25519 {
                        return Err(fault("a log's key signs checkpoints, not cosignatures"));
                    }
                    if policy.logs.iter().any(|other| other.public() == key.public()) {
                        return Err(fault("the key stands here already"));
                    }
                    policy.logs.push(key);
                }
                ["witness", name, key] | ["witness", name, key, _] => {
                    let key: VerifierKey = key.parse().map_err(|_| fault("the key is no vkey"))?;
                    if key.algorithm() != Algorithm::Cosignature {
                        return Err(fault("a witness's key signs cosignatures"));
                    }
                    if policy.witnesses.iter().any(|(_, other)| other.public() == key.public()) {
                        return Err(fault("the key stands here already"));
                    }
                    policy.new_name(name).map_err(fault)?;
                    policy.witnesses.push(((*name).to_owned(), key));
                }
                ["group", name, needed, members @ ..] if !members.is_empty() => {
                    let needed = match *needed {
                        "any" => 1,
                        "all" => members.len(),
                        number => decimal(number).and_then(|n| usize::try_from(n).ok()).unwrap_or_default(),
                    };
                    if !(1..=members.len()).contains(&needed) {
                        return Err(fault("`any`, `all`, or how many of the members: 1 to all of them"));
                    }
                    policy.new_name(name).map_err(fault)?;
                    for member in members {
                        let taken = policy.groups.iter().any(|group| group.members.iter().any(|other| other == member));
                        let twice = members.iter().filter(|other| *other == member).count() > 1;
                        if !policy.knows(member) || taken || twice {
                            return Err(fault("a member is not defined above, or is a member already"));
                        }
                    }
                    let members = members.iter().map(|&member| member.to_owned()).collect();
                    policy.groups.push(Group { name: (*name).to_owned(), needed, members });
                }
                ["quorum", name] => {
                    if quorum.is_some() {
                        return Err(fault("a second quorum"));
                    }
                    if *name != "none" && !policy.knows(name) {
                        return Err(fault("the quorum is not defined above"));
                    }
                    quorum = Some((*name).to_owned());
                }
                _ => return Err(fault("not `log`, `witness`, `group` or `quorum` with what belongs to it")),
            }
            if policy.logs.len() + policy.witnesses.len() + policy.groups.len() > MOST {
                return Err(fault("too many lines"));
            }
        }
        let quorum = quorum.ok_or(PolicyError { line: 0, what: "there is no quorum" })?;
        policy.quorum = Some(quorum).filter(|name| name != "none");
        Ok(policy)
    }
}

impl Policy {
    fn knows(&self, name: &str) -> bool {
        self.witnesses.iter().any(|(other, _)| other == name) || self.groups.iter().any(|group| group.name == name)
    }

    fn new_name(&self, name: &str) -> Result<(), &'static str> {
        if name == "none" || self.knows(name) { Err("the name is taken") } else { Ok(()) }
    }
}

/// Why a checkpoint is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unbelieved {
    /// It is none.
    #[error("not a checkpoint")]
    Form,
    /// The policy has no key of that log.
    #[error("the policy has no key of the log {0}")]
    Log(String),
    /// No key of the log has signed it.
    #[error("no key of the log {0} that the policy knows has signed it")]
    Signature(String),
    /// A signature of a known key is not valid.
    #[error("a signature in the name of {0} is not valid")]
    Wrong(String),
    /// Too few witnesses.
    #[error("cosigned by {}, which is not the quorum {needed}", list(.witnessed))]
    Quorum {
        /// Name of the quorum.
        needed: String,
        /// Names of the witnesses whose cosignature is valid.
        witnessed: Vec<String>,
    },
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "no witness".to_owned() } else { names.join(", ") }
}

/// What is wrong with a policy file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicyError {
    /// The line, from 1; 0 if none is to blame.
    pub line: usize,
    /// What is wrong there.
    pub what: &'static str,
}

impl std::error::Error for PolicyError {}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(self.what),
            line => write!(f, "line {line}: {}", self.what),
        }
    }
}

/// A proof that an entry is in a log (C2SP tlog-proof): index, inclusion proof, checkpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proof {
    /// The entry's index.
    pub index: u64,
    /// Inclusion proof, from the leaf upwards.
    pub hashes: Vec<Hash>,
    /// The signed checkpoint.
    pub note: Note,
}

const PROOF_HEAD: &str = "c2sp.org/tlog-proof@v1";

impl Proof {
    /// Checks that the policy believes the checkpoint and that an entry with this leaf hash stands at the index.
    ///
    /// # Errors
    /// What is wanting.
    pub fn check(&self, policy: &Policy, leaf: Hash) -> Result<Believed, ProofError> {
        let believed = policy.check(&self.note)?;
        let tree = believed.checkpoint.tree;
        match super::merkle::root_of_inclusion(&self.hashes, self.index, tree.size, leaf) {
            Some(root) if root == tree.root => Ok(believed),
            _ => Err(ProofError::Inclusion { index: self.index, size: tree.size }),
        }
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{PROOF_HEAD}\nindex {}", self.index)?;
        self.hashes.iter().try_for_each(|hash| writeln!(f, "{}", STANDARD.encode(hash)))?;
        write!(f, "\n{}", self.note)
    }
}

impl FromStr for Proof {
    type Err = ProofError;

    fn from_str(text: &str) -> Result<Self, ProofError> {
        let (head, note) = text.split_once("\n\n").ok_or(ProofError::Form)?;
        let mut lines = head.split('\n').peekable();
        if lines.next() != Some(PROOF_HEAD) {
            return Err(ProofError::Form);
        }
        // Extra data proves nothing, and ours has none.
        let _ = lines.next_if(|line| line.starts_with("extra "));
        let index = lines.next().and_then(|line| line.strip_prefix("index ")).and_then(decimal);
        let index = index.ok_or(ProofError::Form)?;
        Ok(Self { index, hashes: parse_hashes(lines).ok_or(ProofError::Form)?, note: note.parse()? })
    }
}

/// Lines of base64, one hash each.
pub(crate) fn parse_hashes<'a>(lines: impl Iterator<Item = &'a str>) -> Option<Vec<Hash>> {
    let mut hashes = Vec::new();
    for line in lines {
        if hashes.len() >= super::merkle::MAX_PROOF {
            return None;
        }
        hashes.push(STANDARD.decode(line).ok()?.try_into().ok()?);
    }
    Some(hashes)
}

/// Hashes as lines of base64.
pub(crate) fn hash_lines(hashes: &[Hash]) -> String {
    hashes.iter().fold(String::new(), |mut lines, hash| {
        let _ = writeln!(lines, "{}", STANDARD.encode(hash));
        lines
    })
}

/// Why a proof proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// It has not the form of C2SP tlog-proof.
    #[error("not a proof of the form {PROOF_HEAD}")]
    Form,
    /// Its checkpoint is no signed note.
    #[error("the proof's checkpoint: {0}")]
    Note(#[from] NoteError),
    /// Its checkpoint is not believed.
    #[error("the proof's checkpoint: {0}")]
    Unbelieved(#[from] Unbelieved),
    /// The entry is not the one at that index.
    #[error("the entry is not entry {index} of the log of {size} entries")]
    Inclusion {
        /// The index.
        index: u64,
        /// The checkpoint's size.
        size: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::merkle::{leaf_hash, node_hash};

    const NOW: Timestamp = Timestamp::from_secs(1_795_399_200);

    fn key(name: &str, algorithm: Algorithm) -> SigningKey {
        SigningKey::generate(name, algorithm).unwrap()
    }

    fn tree() -> Tree {
        Tree { size: 2, root: node_hash(&leaf_hash(b"a"), &leaf_hash(b"b")) }
    }

    #[test]
    fn checkpoints_read_as_written_and_odd_ones_are_refused() {
        let log = key("example/log", Algorithm::Ed25519);
        let checkpoint = Checkpoint { origin: "example/log".into(), tree: tree() };
        let note = checkpoint.sign(&[&log], NOW);
        assert_eq!(Checkpoint::of(&note.to_string().parse().unwrap()).unwrap(), checkpoint);
        let root = STANDARD.encode(tree().root);
        assert_eq!(note.text(), format!("example/log\n2\n{root}\n"));
        for text in [
            format!("example/log\n02\n{root}\n"),
            format!("example/log\n+2\n{root}\n"),
            format!("\n2\n{root}\n"),
            "example/log\n2\nAAAA\n".into(),
            "example/log\n".into(),
        ] {
            assert!(Checkpoint::of(&Note::sign(text.clone(), &[&log], NOW)).is_err(), "{text}");
        }
        let extended = Note::sign(format!("example/log\n2\n{root}\nmore\n"), &[&log], NOW);
        assert_eq!(Checkpoint::of(&extended).unwrap(), checkpoint);
    }

    #[test]
    fn a_policy_needs_the_log_and_its_quorum() {
        let log = key("example/log", Algorithm::Ed25519);
        let w: Vec<_> = (1..=3).map(|n| key(&format!("w{n}"), Algorithm::Cosignature)).collect();
        let text = format!(
            "# two of three\nlog {} https://log.example\nwitness a {}\nwitness\tb {}\nwitness c {}\n\
             group most 2 a b c\nquorum most\n",
            log.verifier(),
            w[0].verifier(),
            w[1].verifier(),
            w[2].verifier()
        );
        let policy: Policy = text.parse().unwrap();
        let mut note = Checkpoint { origin: "example/log".into(), tree: tree() }.sign(&[&log], NOW);
        note.add(w[0].sign(note.text(), NOW));
        let few = policy.check(&note);
        assert_eq!(few, Err(Unbelieved::Quorum { needed: "most".into(), witnessed: vec!["a".into()] }));
        note.add(w[2].sign(note.text(), NOW));
        let believed = policy.check(&note).unwrap();
        assert_eq!((believed.checkpoint.tree, believed.witnessed.len()), (tree(), 2));
        let spoiled: Note = format!("{note}{}\n", w[1].sign("another text\n", NOW)).parse().unwrap();
        assert_eq!(policy.check(&spoiled), Err(Unbelieved::Wrong("w2".into())));

        let other = key("example/log", Algorithm::Ed25519);
        let forged = Checkpoint { origin: "example/log".into(), tree: tree() }.sign(&[&other], NOW);
        assert_eq!(policy.check(&forged), Err(Unbelieved::Signature("example/log".into())));
        let foreign = Checkpoint { origin: "example/gw2".into(), tree: tree() }.sign(&[&log], NOW);
        assert_eq!(policy.check(&foreign), Err(Unbelieved::Log("example/gw2".into())));
    }

    #[test]
    fn wrong_policies_are_refused_by_line() {
        let (log, w) = (key("l", Algorithm::Ed25519), key("w", Algorithm::Cosignature));
        let (log, w) = (log.verifier(), w.verifier());
        for (text, line) in [
            (String::new(), 0),
            (format!("log {log}\nquorum none\nquorum none\n"), 3),
            (format!("log {w}\nquorum none\n"), 1),
            (format!("witness a {log}\nquorum a\n"), 1),
            (format!("witness none {w}\nquorum none\n"), 1),
            (format!("witness a {w}\nwitness b {w}\nquorum a\n"), 2),
            (format!("witness a {w}\ngroup g 2 a\nquorum g\n"), 2),
            (format!("witness a {w}\ngroup g any a a\nquorum g\n"), 2),
            (format!("witness a {w}\ngroup g any b\nquorum g\n"), 2),
            ("quorum a\n".into(), 1),
            ("logs\nquorum none\n".into(), 1),
        ] {
            assert_eq!(text.parse::<Policy>().map(drop).map_err(|error| error.line), Err(line), "{text}");
        }
    }

    #[test]
    fn proofs_prove_their_entry_and_no_other() {
        let log = key("example/log", Algorithm::Ed25519);
        let note = Checkpoint { origin: "example/log".into(), tree: tree() }.sign(&[&log], NOW);
        let policy = Policy::of_logs(vec![log.verifier().clone()]);
        let proof = Proof { index: 1, hashes: vec![leaf_hash(b"a")], note };
        let read: Proof = proof.to_string().parse().unwrap();
        assert_eq!(read, proof);
        assert!(read.check(&policy, leaf_hash(b"b")).is_ok());
        let wrong = [
            (proof.clone(), leaf_hash(b"c")),
            (Proof { index: 0, ..proof.clone() }, leaf_hash(b"b")),
            (Proof { index: 2, ..proof.clone() }, leaf_hash(b"b")),
            (Proof { hashes: Vec::new(), ..proof.clone() }, leaf_hash(b"b")),
        ];
        for (proof, leaf) in wrong {
            assert!(matches!(proof.check(&policy, leaf), Err(ProofError::Inclusion { .. })));
        }
        let with_extra = proof.to_string().replacen("\nindex", "\nextra YQ==\nindex", 1);
        assert_eq!(with_extra.parse::<Proof>().unwrap(), proof);
        for odd in ["", "c2sp.org/tlog-proof@v1\n\n", "c2sp.org/tlog-proof@v2\nindex 1\n\nx"] {
            assert!(odd.parse::<Proof>().is_err(), "{odd}");
        }
    }
}
