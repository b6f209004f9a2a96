//! What operators may set about the access log.

use std::iter;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, de};

use super::OpenError;
use super::checkpoint::Checkpoint;
use super::keys::PublicKey;
use super::note::{Algorithm, Note, SigningKey, VerifierKey};
use super::prune::allowed_below;
use crate::ids::SpiffeId;

/// Options of the access log.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditConfig {
    /// Directory of this gateway's log; created if it does not exist. Two gateways never share one.
    pub dir: PathBuf,
    /// Name of the log, unique among all gateways, for example `heshan.gov.example/gw1`: 1 to 200 printable ASCII
    /// characters without spaces and `+`. It can't be changed later.
    pub origin: String,
    /// The key that signs the log's checkpoints, its name the origin. Another one takes force within seconds, if
    /// `previous_signing_key` holds this one.
    pub signing_key: PathBuf,
    /// The key before, while its holders learn the new one: both sign, as long as this file is there. The change itself is
    /// an entry.
    #[serde(default)]
    pub previous_signing_key: Option<PathBuf>,
    /// The log that this one continues, because that one lost entries and may never go on. Read when the log is new.
    #[serde(default)]
    pub continues: Option<ContinuesConfig>,
    /// Public keys that can read the log, the auditor's and the escrow's: 2 to 8 files. Other keys in them take force
    /// within seconds.
    pub recipients: Vec<PathBuf>,
    /// Files with the keys (vkey) of auditors who may allow to delete old entries.
    #[serde(default)]
    pub auditors: Vec<PathBuf>,
    /// An auditor's permission to delete old entries (`oncegate audit allow-prune`): it becomes an entry at the next start,
    /// once.
    #[serde(default)]
    pub prune_authorization: Option<PathBuf>,
    /// Entries that may wait for the writer, 1 to 1,000,000; more are refused. Default 4,096.
    #[serde(default = "default::queue")]
    pub queue: usize,
    /// Longest wait for durability in milliseconds, 1 to 60,000. Default 2,000.
    #[serde(default = "default::wait_ms")]
    pub wait_ms: u64,
    /// Time from one write to the next while many entries arrive, in microseconds, at most 100,000: what arrives
    /// meanwhile shares a sync, which costs more than all else together. A quiet log writes at once. Default 2,000.
    #[serde(default = "default::pace_us")]
    pub pace_us: u64,
    /// Most entries in one write, 1 to 65,536. Default 1,024.
    #[serde(default = "default::batch")]
    pub batch: usize,
    /// Zeros written ahead of the log's end in MiB, 1 to 1,024. Default 8.
    #[serde(default = "default::preallocate_mib")]
    pub preallocate_mib: u64,
    /// Time from one checkpoint to the next in milliseconds, 10 to 60,000. Default 1,000.
    #[serde(default = "default::checkpoint_ms")]
    pub checkpoint_ms: u64,
    /// When a filling disk alarms, and when it stops the log.
    #[serde(default)]
    pub disk: DiskLimits,
    /// Witnesses that cosign checkpoints, at most 16.
    #[serde(default)]
    pub witnesses: Vec<WitnessConfig>,
    /// Time without any cosignature after which an alarm is given, in seconds, 1 to 604,800. Default 900.
    #[serde(default = "default::unwitnessed_alarm_s")]
    pub unwitnessed_alarm_s: u64,
    /// Time without any cosignature after which no entry is taken, in seconds; 0 for never, the default.
    #[serde(default)]
    pub unwitnessed_stop_s: u64,
    /// Starts only if one witness at least says what it holds of this log, or that it holds nothing. Default false: a
    /// gateway whose witnesses are away starts, and stops as soon as one of them shows that it holds more.
    #[serde(default)]
    pub witness_at_start: bool,
    /// Serves the log, read-only, to those who may hold a copy.
    #[serde(default)]
    pub serve: Option<ServeConfig>,
}

/// Fill levels of the log's file system in percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DiskLimits {
    /// From here on an alarm is given. Default 80.
    pub alarm_percent: u8,
    /// From here on no entry is taken, so no call is answered, until there is room again. Default 95.
    pub refuse_percent: u8,
}

impl Default for DiskLimits {
    fn default() -> Self {
        Self { alarm_percent: 80, refuse_percent: 95 }
    }
}

/// The log that a new one continues.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContinuesConfig {
    /// That log's last checkpoint.
    pub checkpoint: PathBuf,
    /// File with the key (vkey) that signed it.
    pub vkey: PathBuf,
}

/// A witness (C2SP tlog-witness) that cosigns the log.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WitnessConfig {
    /// File with its key (vkey).
    pub vkey: PathBuf,
    /// Its submission prefix: `https://host:port` or `http://host:port`, and a path if it has one. A cosignature proves
    /// itself, so plain HTTP is as good wherever nobody minds that log sizes are seen.
    pub url: String,
    /// For `https://`: how the two prove themselves to each other.
    #[serde(default)]
    pub tls: Option<PeerTls>,
}

/// Mutual TLS with one peer.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerTls {
    /// PEM file: the CAs that may have issued the peer's certificate.
    pub ca: PathBuf,
    /// The SPIFFE ID that must be the one URI name of the peer's certificate.
    #[serde(deserialize_with = "parsed")]
    pub server_id: SpiffeId,
    /// PEM file: this side's certificate, then its intermediates. Without it and its key a gateway shows the identity of
    /// its trust generation that serves; a mirror has none and must name them.
    pub certificate: Option<PathBuf>,
    /// PEM file: its private key.
    pub key: Option<PathBuf>,
}

impl PeerTls {
    /// Makes relative paths relative to `base`.
    pub fn rebase(&mut self, base: &Path) {
        for path in iter::once(&mut self.ca).chain(&mut self.certificate).chain(&mut self.key) {
            *path = base.join(&*path);
        }
    }
}

/// The read-only service of tiles, entry bundles and checkpoint.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServeConfig {
    /// Address and port; TLS with the gateway's own certificate, HTTP/2.
    pub listen: SocketAddr,
    /// Systems that may read; their certificates come from the CAs of `tls.client_cas`.
    #[serde(deserialize_with = "parsed_list")]
    pub readers: Vec<SpiffeId>,
}

mod default {
    pub(super) const fn queue() -> usize {
        4096
    }
    pub(super) const fn wait_ms() -> u64 {
        2000
    }
    pub(super) const fn pace_us() -> u64 {
        2000
    }
    pub(super) const fn batch() -> usize {
        1024
    }
    pub(super) const fn preallocate_mib() -> u64 {
        8
    }
    pub(super) const fn checkpoint_ms() -> u64 {
        1000
    }
    pub(super) const fn unwitnessed_alarm_s() -> u64 {
        900
    }
}

impl AuditConfig {
    /// Makes relative paths relative to `base`, the directory of the configuration file.
    pub fn rebase(&mut self, base: &Path) {
        let rebase = |path: &mut PathBuf| *path = base.join(&*path);
        rebase(&mut self.dir);
        rebase(&mut self.signing_key);
        self.previous_signing_key.iter_mut().for_each(rebase);
        if let Some(continues) = &mut self.continues {
            rebase(&mut continues.checkpoint);
            rebase(&mut continues.vkey);
        }
        self.recipients.iter_mut().chain(&mut self.auditors).chain(&mut self.prune_authorization).for_each(rebase);
        for witness in &mut self.witnesses {
            rebase(&mut witness.vkey);
            witness.tls.iter_mut().for_each(|tls| tls.rebase(base));
        }
    }

    /// Checks every bound.
    pub fn check(&self) -> Result<(), OpenError> {
        let origin_byte = |byte: u8| byte.is_ascii_graphic() && byte != b'+';
        let DiskLimits { alarm_percent, refuse_percent } = self.disk;
        let wrong = if !(1..=200).contains(&self.origin.len()) || !self.origin.bytes().all(origin_byte) {
            "origin: 1 to 200 printable ASCII characters without spaces and `+`"
        } else if !(2..=8).contains(&self.recipients.len()) {
            "recipients: 2 to 8 public key files, the auditor's and the escrow's"
        } else if !(1..=1_000_000).contains(&self.queue) {
            "queue: 1 to 1000000"
        } else if !(1..=60_000).contains(&self.wait_ms) {
            "wait_ms: 1 to 60000"
        } else if self.pace_us > 100_000 {
            "pace_us: at most 100000"
        } else if !(1..=65_536).contains(&self.batch) {
            "batch: 1 to 65536"
        } else if !(1..=1024).contains(&self.preallocate_mib) {
            "preallocate_mib: 1 to 1024"
        } else if !(10..=60_000).contains(&self.checkpoint_ms) {
            "checkpoint_ms: 10 to 60000"
        } else if alarm_percent == 0 || alarm_percent > refuse_percent || refuse_percent > 100 {
            "disk: 1 <= alarm_percent <= refuse_percent <= 100"
        } else if self.witnesses.len() > 16 {
            "witnesses: at most 16"
        } else if !(1..=604_800).contains(&self.unwitnessed_alarm_s) {
            "unwitnessed_alarm_s: 1 to 604800"
        } else if self.unwitnessed_stop_s > 0 && self.witnesses.is_empty() {
            "unwitnessed_stop_s: there is no witness"
        } else if self.witness_at_start && self.witnesses.is_empty() {
            "witness_at_start: there is no witness"
        } else {
            return Ok(());
        };
        Err(OpenError::Option(wrong))
    }

    /// Reads the public keys.
    pub fn load_recipients(&self) -> Result<Vec<PublicKey>, OpenError> {
        let mut keys = Vec::with_capacity(self.recipients.len());
        for file in &self.recipients {
            let key = PublicKey::load(file).map_err(|source| OpenError::Recipient { file: file.clone(), source })?;
            if keys.contains(&key) {
                return Err(OpenError::Option("recipients: two files hold the same key"));
            }
            keys.push(key);
        }
        Ok(keys)
    }

    /// Reads every key, to see that it can be used.
    pub fn load_keys(&self) -> Result<(), OpenError> {
        self.load_recipients()?;
        self.load_witnesses()?;
        self.load_auditors()?;
        self.load_signing_keys().map(drop)
    }

    /// Reads the witnesses' keys, in the order of the witnesses.
    pub fn load_witnesses(&self) -> Result<Vec<VerifierKey>, OpenError> {
        self.witnesses.iter().map(|witness| load_key(&witness.vkey, Algorithm::Cosignature)).collect()
    }

    /// Reads the auditors' keys.
    pub fn load_auditors(&self) -> Result<Vec<VerifierKey>, OpenError> {
        self.auditors.iter().map(|file| load_key(file, Algorithm::Ed25519)).collect()
    }

    /// Reads the key that signs, then the one before if its file is there and holds another.
    pub fn load_signing_keys(&self) -> Result<Vec<SigningKey>, OpenError> {
        let load = |file: &PathBuf| {
            let failed = |what: String| OpenError::SigningKey { file: file.clone(), what };
            let key = SigningKey::load(file).map_err(|error| failed(error.to_string()))?;
            let verifier = key.verifier();
            if verifier.algorithm() != Algorithm::Ed25519 || verifier.name() != self.origin {
                return Err(failed(format!(
                    "it is named {}; the log's key has the origin as its name",
                    verifier.name()
                )));
            }
            Ok(key)
        };
        let key = load(&self.signing_key)?;
        let before = self.previous_signing_key.as_ref().filter(|file| file.exists()).map(load).transpose()?;
        let before = before.filter(|before| before.verifier() != key.verifier());
        Ok([key].into_iter().chain(before).collect())
    }

    /// The auditor's permission to delete old entries, if one is configured.
    pub(super) fn load_prune_authorization(&self) -> Result<Option<Note>, OpenError> {
        let Some(file) = &self.prune_authorization else { return Ok(None) };
        let text = std::fs::read_to_string(file).map_err(|source| OpenError::Io { dir: file.clone(), source })?;
        let note = text.parse::<Note>().ok();
        let auditors = self.load_auditors()?;
        note.filter(|note| allowed_below(note, &self.origin, &auditors).is_some())
            .ok_or(OpenError::Option("prune_authorization: not signed by one of `auditors`, or for another log"))
            .map(Some)
    }

    /// Reads the last checkpoint of the log that this one continues.
    pub(super) fn load_continued(&self) -> Result<Option<Note>, OpenError> {
        let Some(ContinuesConfig { checkpoint: file, vkey }) = &self.continues else { return Ok(None) };
        let key = load_key(vkey, Algorithm::Ed25519)?;
        let wrong = OpenError::Option("continues: no checkpoint that the key has signed");
        let text = std::fs::read_to_string(file).map_err(|source| OpenError::Io { dir: file.clone(), source })?;
        let Ok(note) = text.parse::<Note>() else { return Err(wrong) };
        let Ok(checkpoint) = Checkpoint::of(&note) else { return Err(wrong) };
        if key.verify(&note).is_none() || key.name() != checkpoint.origin || checkpoint.origin == self.origin {
            return Err(wrong);
        }
        Ok(Some(note))
    }
}

fn load_key(file: &Path, algorithm: Algorithm) -> Result<VerifierKey, OpenError> {
    let failed = |what: String| OpenError::SigningKey { file: file.to_owned(), what };
    let key = VerifierKey::load(file).map_err(|error| failed(error.to_string()))?;
    if key.algorithm() == algorithm { Ok(key) } else { Err(failed("a key for another use".to_owned())) }
}

/// Deserializes a value from its text.
fn parsed<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: std::fmt::Display>,
{
    String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
}

/// Deserializes a list of values from their texts.
fn parsed_list<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: std::fmt::Display>,
{
    Vec::<String>::deserialize(deserializer)?.iter().map(|text| text.parse().map_err(de::Error::custom)).collect()
}
