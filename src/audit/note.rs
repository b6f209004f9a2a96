//! Signed notes (C2SP signed-note): a text and lines of signatures under it. Keys have names, and a key's id binds name,
//! algorithm and public key together.
//!
//! ```text
//! heshan.gov.example/gw1            ─┐
//! 4711                               ├ text
//! CsUYapGGPo4dkMgIAUqom/Xajj7h…     ─┘
//!                                      an empty line
//! — heshan.gov.example/gw1 Az3grl…   ─┐ — name, base64(key id ‖ signature)
//! — witness.sj.example/w1 mJirIk…    ─┘
//! ```
//! Two algorithms: Ed25519 over the text (logs, auditors), and Ed25519 over time and text (witnesses' cosignatures, C2SP
//! tlog-cosignature). A line of an unknown key is never counted; a wrong one of a known key spoils the note for that key.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::str::FromStr;

use aws_lc_rs::digest;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::clock::Timestamp;

/// Longest note that is read, in bytes: a checkpoint with a hundred signatures has 20,000.
pub const MAX_NOTE: usize = 64 * 1024;
/// Most signature lines that are looked at.
const MAX_SIGNATURES: usize = 100;
/// What begins a signature line.
const DASH: &str = "\u{2014} ";
const PRIVATE_PREFIX: &str = "PRIVATE+KEY+";
/// Longest key file, in bytes.
const MAX_FILE: u64 = 1024;

/// What a key signs, and so what its signatures mean.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Algorithm {
    /// Ed25519 over the note's text.
    Ed25519,
    /// Ed25519 over a time and a checkpoint: at that time the signer had seen no other log than this one.
    Cosignature,
}

impl Algorithm {
    const fn byte(self) -> u8 {
        match self {
            Self::Ed25519 => 1,
            Self::Cosignature => 4,
        }
    }
}

/// A public key with its name: C2SP's `vkey`, for example `heshan.gov.example/gw1+a1b2c3d4+AZuf…`.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifierKey {
    name: String,
    algorithm: Algorithm,
    public: [u8; 32],
}

impl VerifierKey {
    /// Its name; a log's key has the log's origin as its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it signs.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The 32 bytes of the Ed25519 key.
    pub fn public(&self) -> &[u8; 32] {
        &self.public
    }

    /// SHA-256(name ‖ 0x0A ‖ algorithm ‖ key), its first four bytes.
    pub fn id(&self) -> [u8; 4] {
        let mut hash = digest::Context::new(&digest::SHA256);
        hash.update(self.name.as_bytes());
        hash.update(&[b'\n', self.algorithm.byte()]);
        hash.update(&self.public);
        let mut id = [0; 4];
        id.copy_from_slice(hash.finish().as_ref().first_chunk::<4>().unwrap_or(&[0; 4]));
        id
    }

    /// Reads a file with one vkey in it.
    pub fn load(path: &Path) -> Result<Self, NoteError> {
        read(path)?.trim_ascii().parse()
    }

    /// The time of `note`'s latest signature by this key (0 for [`Algorithm::Ed25519`]). None if it has no line of this
    /// key, or any that is not valid.
    pub fn verify(&self, note: &Note) -> Option<Timestamp> {
        self.verify_lines(&note.text, &note.signatures).map(|(_, time)| time)
    }

    /// As [`VerifierKey::verify`], of a text and lines that are not under it yet: the latest line, too.
    pub fn verify_lines<'a>(&self, text: &str, lines: &'a [Signature]) -> Option<(&'a Signature, Timestamp)> {
        let mine = lines.iter().filter(|line| line.is_of(self));
        let valid = mine.map(|line| Some((line, self.verify_bytes(text.as_bytes(), &line.bytes)?)));
        valid.collect::<Option<Vec<_>>>()?.into_iter().max_by_key(|(_, time)| *time)
    }

    /// True if `signature` is this key's over exactly these bytes.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.public).verify(message, signature).is_ok()
    }

    fn verify_bytes(&self, text: &[u8], signature: &[u8]) -> Option<Timestamp> {
        match self.algorithm {
            Algorithm::Ed25519 => self.verifies(text, signature).then(Timestamp::default),
            Algorithm::Cosignature => {
                let (secs, signature) = signature.split_first_chunk::<8>()?;
                let secs = u64::from_be_bytes(*secs);
                self.verifies(&cosigned(secs, text), signature).then(|| Timestamp::from_secs(secs))
            }
        }
    }
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut key = vec![self.algorithm.byte()];
        key.extend_from_slice(&self.public);
        write!(f, "{}+{}+{}", self.name, hex::encode(self.id()), STANDARD.encode(key))
    }
}

impl fmt::Debug for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for VerifierKey {
    type Err = NoteError;

    fn from_str(text: &str) -> Result<Self, NoteError> {
        let mut parts = text.splitn(3, '+');
        let (name, id, key) = (parts.next(), parts.next(), parts.next());
        let (Some(name), Some(id), Some(key)) = (name, id, key) else { return Err(NoteError::Key) };
        let key = STANDARD.decode(key).map_err(|_| NoteError::Key)?;
        let (algorithm, public) = match key.split_first() {
            Some((1, public)) => (Algorithm::Ed25519, public),
            Some((4, public)) => (Algorithm::Cosignature, public),
            _ => return Err(NoteError::Key),
        };
        let public = public.try_into().map_err(|_| NoteError::Key)?;
        let key = Self { name: checked_name(name)?, algorithm, public };
        if id == hex::encode(key.id()) { Ok(key) } else { Err(NoteError::Key) }
    }
}

/// A private key with its name. Wiped from memory on drop.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    seed: Zeroizing<[u8; 32]>,
    verifier: VerifierKey,
}

impl SigningKey {
    /// A new random key.
    pub fn generate(name: &str, algorithm: Algorithm) -> Result<Self, NoteError> {
        let mut seed = Zeroizing::new([0; 32]);
        aws_lc_rs::rand::fill(seed.as_mut_slice()).map_err(|_| NoteError::Crypto)?;
        Self::from_seed(name, algorithm, seed)
    }

    /// Reads a key file: one line, `PRIVATE+KEY+name+id+base64(algorithm ‖ seed)`.
    pub fn load(path: &Path) -> Result<Self, NoteError> {
        let text = read(path)?;
        let mut parts = text.trim_ascii().strip_prefix(PRIVATE_PREFIX).ok_or(NoteError::Key)?.splitn(3, '+');
        let (name, id, key) = (parts.next(), parts.next(), parts.next());
        let (Some(name), Some(id), Some(key)) = (name, id, key) else { return Err(NoteError::Key) };
        let key = Zeroizing::new(STANDARD.decode(key).map_err(|_| NoteError::Key)?);
        let (algorithm, seed) = match key.split_first() {
            Some((1, seed)) => (Algorithm::Ed25519, seed),
            Some((4, seed)) => (Algorithm::Cosignature, seed),
            _ => return Err(NoteError::Key),
        };
        let seed = <[u8; 32]>::try_from(seed).map(Zeroizing::new).map_err(|_| NoteError::Key)?;
        let key = Self::from_seed(name, algorithm, seed)?;
        if id == hex::encode(key.verifier.id()) { Ok(key) } else { Err(NoteError::Key) }
    }

    /// Writes a new key file with mode 0600; an existing file is refused.
    pub fn write(&self, path: &Path) -> Result<(), NoteError> {
        let mut key = Zeroizing::new(Vec::with_capacity(33));
        key.push(self.verifier.algorithm.byte());
        key.extend_from_slice(self.seed.as_slice());
        let encoded = Zeroizing::new(STANDARD.encode(&*key));
        let (name, id) = (&self.verifier.name, hex::encode(self.verifier.id()));
        create(path, 0o600, &Zeroizing::new(format!("{PRIVATE_PREFIX}{name}+{id}+{}\n", encoded.as_str())))
    }

    /// Writes the public half to a new file, one vkey; an existing file is refused.
    pub fn write_public(&self, path: &Path) -> Result<(), NoteError> {
        create(path, 0o644, &format!("{}\n", self.verifier))
    }

    /// Its public half.
    pub fn verifier(&self) -> &VerifierKey {
        &self.verifier
    }

    /// Signs a note's text; `now` counts for cosignatures only.
    pub fn sign(&self, text: &str, now: Timestamp) -> Signature {
        let bytes = match self.verifier.algorithm {
            Algorithm::Ed25519 => self.sign_bytes(text.as_bytes()).to_vec(),
            Algorithm::Cosignature => {
                let secs = now.as_secs();
                [secs.to_be_bytes().as_slice(), &self.sign_bytes(&cosigned(secs, text.as_bytes()))].concat()
            }
        };
        Signature { name: self.verifier.name.clone(), id: self.verifier.id(), bytes }
    }

    /// An Ed25519 signature over exactly these bytes.
    pub fn sign_bytes(&self, message: &[u8]) -> [u8; 64] {
        let mut signature = [0; 64];
        signature.copy_from_slice(self.pair.sign(message).as_ref().first_chunk::<64>().unwrap_or(&[0; 64]));
        signature
    }

    fn from_seed(name: &str, algorithm: Algorithm, seed: Zeroizing<[u8; 32]>) -> Result<Self, NoteError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed.as_slice()).map_err(|_| NoteError::Crypto)?;
        let public = pair.public_key().as_ref().try_into().map_err(|_| NoteError::Crypto)?;
        Ok(Self { pair, seed, verifier: VerifierKey { name: checked_name(name)?, algorithm, public } })
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("verifier", &self.verifier).finish_non_exhaustive()
    }
}

/// A text and its signatures.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Note {
    text: String,
    signatures: Vec<Signature>,
}

/// One line under a note.
#[derive(Clone, PartialEq, Eq)]
pub struct Signature {
    name: String,
    id: [u8; 4],
    bytes: Vec<u8>,
}

impl Note {
    /// A note of a text, signed by `keys`. A text that does not end in a newline gets one.
    pub fn sign(mut text: String, keys: &[&SigningKey], now: Timestamp) -> Self {
        if !text.ends_with('\n') {
            text.push('\n');
        }
        let signatures = keys.iter().map(|key| key.sign(&text, now)).collect();
        Self { text, signatures }
    }

    /// The signed text, its last newline included.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Puts a signature under it, in place of an earlier one of the same key. Whoever calls has verified it.
    pub fn add(&mut self, signature: Signature) {
        self.signatures.retain(|old| old.name != signature.name || old.id != signature.id);
        self.signatures.push(signature);
    }

    /// The same text with the valid signatures of these keys, one of each, and no other line.
    #[must_use]
    pub fn signed_by<'a>(&self, keys: impl IntoIterator<Item = &'a VerifierKey>) -> Self {
        let valid = |key: &VerifierKey| key.verify_lines(&self.text, &self.signatures).map(|(line, _)| line.clone());
        Self { text: self.text.clone(), signatures: keys.into_iter().filter_map(valid).collect() }
    }

    /// Its signatures, verified or not.
    pub fn signatures(&self) -> &[Signature] {
        &self.signatures
    }
}

impl FromStr for Note {
    type Err = NoteError;

    fn from_str(note: &str) -> Result<Self, NoteError> {
        if note.len() > MAX_NOTE || note.chars().any(|c| c.is_control() && c != '\n') {
            return Err(NoteError::Form);
        }
        // The last empty line: the text may hold others.
        let (text, lines) = note.rsplit_once("\n\n").ok_or(NoteError::Form)?;
        let signatures = parse_signatures(lines)?;
        if signatures.is_empty() { Err(NoteError::Form) } else { Ok(Self { text: format!("{text}\n"), signatures }) }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.text)?;
        self.signatures.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

/// Reads signature lines, as stand under a note and as a witness answers.
pub fn parse_signatures(lines: &str) -> Result<Vec<Signature>, NoteError> {
    let lines = lines.strip_suffix('\n').ok_or(NoteError::Form)?;
    let mut signatures = Vec::new();
    for line in lines.split('\n') {
        let (name, signature) = line.strip_prefix(DASH).and_then(|line| line.split_once(' ')).ok_or(NoteError::Form)?;
        let decoded = STANDARD.decode(signature).map_err(|_| NoteError::Form)?;
        let (id, bytes) = decoded.split_first_chunk::<4>().ok_or(NoteError::Form)?;
        if bytes.is_empty() || signatures.len() >= MAX_SIGNATURES {
            return Err(NoteError::Form);
        }
        signatures.push(Signature { name: checked_name(name)?, id: *id, bytes: bytes.to_vec() });
    }
    Ok(signatures)
}

impl Signature {
    /// True if it bears the key's name and id; whether the key made it, [`VerifierKey::verify`] tells.
    pub fn is_of(&self, key: &VerifierKey) -> bool {
        self.name == key.name && self.id == key.id()
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{DASH}{} {}", self.name, STANDARD.encode([self.id.as_slice(), &self.bytes].concat()))
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a note or a key can't be used. Never repeats key material.
#[derive(Debug, thiserror::Error)]
pub enum NoteError {
    /// The file can't be read or written.
    #[error("key file: {0}")]
    Io(#[from] io::Error),
    /// The text is no signed note.
    #[error("not a signed note")]
    Form,
    /// The text is no key, or its id does not fit.
    #[error("not a key of the form name+id+base64 (PRIVATE+KEY+name+id+base64 if private)")]
    Key,
    /// The cryptography refused.
    #[error("the key can't be made")]
    Crypto,
}

/// What a cosignature signs.
fn cosigned(secs: u64, text: &[u8]) -> Vec<u8> {
    [format!("cosignature/v1\ntime {secs}\n").as_bytes(), text].concat()
}

/// Names are not empty and hold neither white space nor `+`.
fn checked_name(name: &str) -> Result<String, NoteError> {
    let right = !name.is_empty() && name.len() <= 255 && !name.chars().any(|c| c.is_whitespace() || c == '+');
    if right { Ok(name.to_owned()) } else { Err(NoteError::Key) }
}

fn read(path: &Path) -> Result<Zeroizing<String>, NoteError> {
    // Room for the whole file from the start: a growing string would leave copies of the secret behind.
    let mut text = Zeroizing::new(String::with_capacity(2048));
    File::open(path)?.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE { Err(NoteError::Key) } else { Ok(text) }
}

fn create(path: &Path, mode: u32, text: &str) -> Result<(), NoteError> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_795_399_200);

    #[test]
    fn a_key_is_what_other_implementations_expect() {
        // From the documentation of C2SP signed-note: a key of Go's checksum database.
        let text = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8";
        let key: VerifierKey = text.parse().unwrap();
        assert_eq!((key.name(), key.to_string().as_str()), ("sum.golang.org", text));
        for wrong in [&text.replace("033de0ae", "033de0af"), "a+b", "", &text.replace("Ac4z", "Bc4z")] {
            assert!(wrong.parse::<VerifierKey>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn notes_keep_text_and_signatures_and_know_their_keys() {
        let log = SigningKey::generate("example/log", Algorithm::Ed25519).unwrap();
        let witness = SigningKey::generate("example/w", Algorithm::Cosignature).unwrap();
        let stranger = SigningKey::generate("example/log", Algorithm::Ed25519).unwrap();
        let mut note = Note::sign("a\n\nb".into(), &[&log], NOW);
        note.add(witness.sign(note.text(), NOW));
        let read: Note = note.to_string().parse().unwrap();
        assert_eq!((read.text(), &read), ("a\n\nb\n", &note));
        assert_eq!(log.verifier().verify(&read), Some(Timestamp::default()));
        assert_eq!(witness.verifier().verify(&read), Some(NOW));
        assert_eq!(stranger.verifier().verify(&read), None);
        let changed: Note = note.to_string().replace('b', "c").parse().unwrap();
        assert_eq!((log.verifier().verify(&changed), witness.verifier().verify(&changed)), (None, None));
        // A later cosignature of the same witness takes the place of the earlier one.
        note.add(witness.sign(note.text(), NOW.plus(std::time::Duration::from_secs(9))));
        assert_eq!(note.signatures().len(), 2);
        let kept = note.signed_by([log.verifier(), stranger.verifier()]);
        assert_eq!((kept.text(), kept.signatures().len()), (note.text(), 1));
        assert!(log.verifier().verify(&kept).is_some());
    }

    #[test]
    fn a_wrong_line_of_a_known_key_spoils_the_note_for_that_key() {
        let log = SigningKey::generate("example/log", Algorithm::Ed25519).unwrap();
        let witness = SigningKey::generate("example/w", Algorithm::Cosignature).unwrap();
        let good = Note::sign("a\n".into(), &[&log, &witness], NOW);
        for key in [&log, &witness] {
            let wrong = key.sign("b\n", NOW);
            let lines: Vec<_> = good.signatures().iter().map(ToString::to_string).collect();
            for order in [format!("{wrong}\n{}\n", lines.join("\n")), format!("{}\n{wrong}\n", lines.join("\n"))] {
                let note: Note = format!("a\n\n{order}").parse().unwrap();
                assert_eq!(key.verifier().verify(&note), None);
                assert!([&log, &witness].iter().filter(|key| key.verifier().verify(&note).is_some()).count() == 1);
            }
        }
    }

    #[test]
    fn a_cosigners_signature_is_no_logs_and_the_other_way_round() {
        let seed = Zeroizing::new([7; 32]);
        let log = SigningKey::from_seed("x", Algorithm::Ed25519, seed.clone()).unwrap();
        let witness = SigningKey::from_seed("x", Algorithm::Cosignature, seed).unwrap();
        assert_ne!(log.verifier().id(), witness.verifier().id());
        let note = Note::sign("t\n".into(), &[&log], NOW);
        assert_eq!(witness.verifier().verify(&note), None);
    }

    #[test]
    fn odd_notes_are_refused() {
        let log = SigningKey::generate("l", Algorithm::Ed25519).unwrap();
        let good = Note::sign("t\n".into(), &[&log], NOW).to_string();
        assert!(good.parse::<Note>().is_ok());
        let bad = [
            String::new(),
            "t\n".into(),
            "t\n\n".into(),
            good.trim_end().to_owned(),
            good.replace(DASH, "- "),
            good.replace("t\n", "t\r\n"),
            good.replace("\n\n", "\n"),
            format!("{good}\n"),
            good.replace("— l ", "— l+ "),
            "x".repeat(MAX_NOTE + 1),
        ];
        for note in bad {
            assert!(note.parse::<Note>().is_err(), "{note:.60}");
        }
    }

    #[test]
    fn key_files_hold_what_was_written_and_debug_shows_no_secret() {
        let dir = tempfile::tempdir().unwrap();
        let (private, public) = (dir.path().join("k"), dir.path().join("v"));
        let key = SigningKey::generate("heshan.gov.example/gw1", Algorithm::Ed25519).unwrap();
        key.write(&private).unwrap();
        key.write_public(&public).unwrap();
        assert_eq!(SigningKey::load(&private).unwrap().verifier(), key.verifier());
        assert_eq!(&VerifierKey::load(&public).unwrap(), key.verifier());
        assert!(SigningKey::load(&public).is_err() && VerifierKey::load(&private).is_err());
        assert!(key.write(&private).is_err(), "an existing key is never overwritten");
        assert!(!format!("{key:?}").contains(STANDARD.encode(key.seed.as_slice()).trim_end_matches('=')));
        assert!(SigningKey::generate("a b", Algorithm::Ed25519).is_err());
    }
}
