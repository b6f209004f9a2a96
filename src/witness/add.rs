//! What a witness cosigns: `add-checkpoint` of C2SP tlog-witness.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use tokio::sync::Mutex;

use super::mirror::Mirror;
use super::{WatchedLog, WitnessFile, log_id};
use crate::audit::checkpoint::{Checkpoint, Tree, decimal, parse_hashes};
use crate::audit::files;
use crate::audit::medium::{Disk, Medium};
use crate::audit::merkle::{Hash, MAX_PROOF, empty_root, verify_consistency};
use crate::audit::note::{Algorithm, MAX_NOTE, Note, SigningKey, VerifierKey};
use crate::clock::Clock;
use crate::connectors::RotatingChannel;

/// A witness, or a mirror: a key, and what it last cosigned of each log.
#[derive(Debug)]
pub struct Witness {
    key: SigningKey,
    state: PathBuf,
    logs: Vec<Log>,
    medium: Arc<dyn Medium>,
    clock: Clock,
    /// Keeps a second process out of the state.
    _lock: File,
}

#[derive(Debug)]
struct Log {
    origin: String,
    id: String,
    keys: Vec<VerifierKey>,
    /// The latest checkpoint that was cosigned. Whoever compares with it and replaces it holds the lock meanwhile.
    latest: Arc<Mutex<Latest>>,
    /// The same checkpoint for those who ask: they do not wait while a mirror pulls entries.
    shown: Arc<ArcSwapOption<String>>,
    /// Where a mirror pulls from.
    source: Option<Arc<RotatingChannel>>,
}

#[derive(Debug)]
struct Latest {
    note: Option<Note>,
    tree: Tree,
    mirror: Option<Mirror>,
}

/// Why a checkpoint is not cosigned: the status codes of C2SP tlog-witness.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// 400: not a request of that form, or the old size is larger than the checkpoint's.
    #[error("the request is not of the form of C2SP tlog-witness add-checkpoint, or its old size is too large")]
    Form,
    /// 404: a log that is not watched.
    #[error("this log is not watched")]
    UnknownLog,
    /// 403: no known key of the log has signed.
    #[error("no known key of the log has signed this checkpoint")]
    Unsigned,
    /// 409: another size was cosigned last, or another root of this size.
    #[error("a checkpoint of {0} entries was cosigned last")]
    Conflict(u64),
    /// 422: not proved to have grown out of what was cosigned last.
    #[error("the log is not proved to have grown out of what was cosigned last")]
    Inconsistent,
    /// 503: a mirror can't get the entries.
    #[error("the entries can't be had: {0}")]
    NotHeld(String),
    /// 500: the state can't be kept.
    #[error("the state can't be kept")]
    Io(#[from] io::Error),
}

/// Why a witness does not start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The configuration, or a file it names.
    #[error("{0}")]
    Config(String),
    /// The state.
    #[error("witness state {}: {source}", dir.display())]
    State {
        /// The directory.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Witness {
    /// Opens the state, a mirror's copies too. Must be called within a runtime.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(config: &WitnessFile, mirror: bool, clock: Clock) -> Result<Self, OpenError> {
        Self::open_on(config, mirror, clock, Arc::new(Disk))
    }

    pub(super) fn open_on(
        config: &WitnessFile,
        mirror: bool,
        clock: Clock,
        medium: Arc<dyn Medium>,
    ) -> Result<Self, OpenError> {
        let state = |source| OpenError::State { dir: config.state.clone(), source };
        let key = SigningKey::load(&config.key)
            .map_err(|error| OpenError::Config(format!("{}: {error}", config.key.display())))?;
        if key.verifier().algorithm() != Algorithm::Cosignature {
            return Err(OpenError::Config(format!("{}: not a witness's key", config.key.display())));
        }
        fs::create_dir_all(&config.state).map_err(state)?;
        let lock = File::options().write(true).create(true).truncate(false).open(config.state.join("lock"));
        let lock = lock.map_err(state)?;
        lock.try_lock().map_err(|_| state(io::Error::other("in use by another process")))?;
        let logs = config.logs.iter().map(|log| Log::open(config, log, mirror, &clock, &medium));
        let logs = logs.collect::<Result<_, _>>()?;
        Ok(Self { key, state: config.state.clone(), logs, medium, clock, _lock: lock })
    }

    /// Its public key.
    pub fn verifier(&self) -> &VerifierKey {
        self.key.verifier()
    }

    /// Origins of the logs it watches.
    pub fn origins(&self) -> impl Iterator<Item = &str> {
        self.logs.iter().map(|log| log.origin.as_str())
    }

    /// The channels that a mirror pulls entries over.
    pub(super) fn channels(&self) -> impl Iterator<Item = &Arc<RotatingChannel>> {
        self.logs.iter().filter_map(|log| log.source.as_ref())
    }

    /// Checks a submitted checkpoint, keeps it, and returns the cosignature's line. When it returns `Ok`, the checkpoint
    /// is durable as the latest of its log.
    ///
    /// # Errors
    /// See [`Refused`].
    pub async fn add_checkpoint(&self, request: &str) -> Result<String, Refused> {
        let (old, proof, note) = parse(request).ok_or(Refused::Form)?;
        let checkpoint = Checkpoint::of(&note).map_err(|_| Refused::Form)?;
        let log = self.logs.iter().find(|log| log.origin == checkpoint.origin).ok_or(Refused::UnknownLog)?;
        // Text and valid signatures of the log are all that is kept of it: other lines are of no interest, as C2SP has it.
        let note = note.signed_by(&log.keys);
        if note.signatures().is_empty() {
            return Err(Refused::Unsigned);
        }
        let tree = checkpoint.tree;
        if old > tree.size {
            return Err(Refused::Form);
        }
        // Held from comparing to keeping: no other checkpoint comes between.
        let mut latest = log.latest.clone().lock_owned().await;
        let held = latest.tree;
        if tree.size == held.size && tree.root != held.root {
            self.keep_fork(log, &latest, &note);
            return Err(Refused::Conflict(held.size));
        }
        if old != held.size {
            return Err(Refused::Conflict(held.size));
        }
        if !verify_consistency(&proof, held.size, &held.root, tree.size, &tree.root) {
            self.keep_unproved(log, &latest, &note);
            return Err(Refused::Inconsistent);
        }
        // The caller may hang up; what was begun is finished.
        let (state, name, medium) = (self.state.clone(), log.id.clone(), self.medium.clone());
        let cosignature = self.key.sign(note.text(), self.clock.now());
        let mut cosigned = note;
        cosigned.add(cosignature.clone());
        if cosigned.to_string().len() > MAX_NOTE {
            return Err(Refused::Form);
        }
        let shown = log.shown.clone();
        let kept = tokio::spawn(async move {
            if let Some(mirror) = &mut latest.mirror {
                mirror.pull(tree).await.map_err(Refused::NotHeld)?;
            }
            let text = cosigned.to_string();
            let written = tokio::task::spawn_blocking(move || medium.replace(&state, &name, text.as_bytes()));
            written.await.map_err(io::Error::other)??;
            if let Some(mirror) = &latest.mirror {
                mirror.keep_checkpoint(&cosigned)?;
            }
            shown.store(Some(Arc::new(cosigned.to_string())));
            (latest.tree, latest.note) = (tree, Some(cosigned));
            Ok::<_, Refused>(())
        });
        kept.await.map_err(io::Error::other)??;
        tracing::debug!(log = log.origin, size = tree.size, "cosigned");
        Ok(format!("{cosignature}\n"))
    }

    /// The latest checkpoint cosigned of the log with this id (SHA-256 of its origin, hexadecimal).
    pub fn latest(&self, id: &str) -> Option<Arc<String>> {
        self.logs.iter().find(|log| log.id == id)?.shown.load_full()
    }

    /// Two checkpoints of one size and different roots, both signed by the log: no proof is needed that one is a lie.
    fn keep_fork(&self, log: &Log, latest: &Latest, other: &Note) {
        let name = format!("{}.fork", log.id);
        tracing::error!(log = log.origin, evidence = name, "the log signed two pasts: a fork");
        // The first one says it all; a flood of them must not fill the disk.
        if !self.state.join(&name).exists() {
            self.keep_evidence(&name, &[], latest, other);
        }
    }

    /// A checkpoint that the log signed and did not prove to have grown out of the last one. A wrong proof is no fork; but
    /// whoever has the log's entries can tell.
    fn keep_unproved(&self, log: &Log, latest: &Latest, other: &Note) {
        /// Bytes kept of one log.
        const MOST: usize = 256 << 10;
        let name = format!("{}.unproved", log.id);
        tracing::warn!(log = log.origin, kept = name, "a checkpoint came without a proof that holds");
        let before = match files::read_small(&self.state.join(&name), MOST) {
            Ok(before) => before.unwrap_or_default(),
            Err(_) => return,
        };
        let again = std::str::from_utf8(&before).is_ok_and(|before| before.contains(other.text()));
        if !again && before.len() < MOST - 2 * MAX_NOTE {
            self.keep_evidence(&name, &before, latest, other);
        }
    }

    fn keep_evidence(&self, name: &str, before: &[u8], latest: &Latest, other: &Note) {
        let held = latest.note.as_ref().map(ToString::to_string).unwrap_or_default();
        let bytes = [before, format!("{held}\n{other}\n").as_bytes()].concat();
        if let Err(error) = self.medium.replace(&self.state, name, &bytes) {
            tracing::error!(%error, "the evidence can't be kept");
        }
    }
}

impl Log {
    fn open(
        config: &WitnessFile,
        log: &WatchedLog,
        mirror: bool,
        clock: &Clock,
        medium: &Arc<dyn Medium>,
    ) -> Result<Self, OpenError> {
        let mut keys = Vec::new();
        for file in &log.keys {
            let key =
                VerifierKey::load(file).map_err(|error| OpenError::Config(format!("{}: {error}", file.display())))?;
            if key.algorithm() != Algorithm::Ed25519 {
                return Err(OpenError::Config(format!("{}: not a log's key", file.display())));
            }
            keys.push(key);
        }
        let origin = match keys.as_slice() {
            [first, rest @ ..] if rest.iter().all(|key| key.name() == first.name()) => first.name().to_owned(),
            _ => {
                return Err(OpenError::Config("logs: `keys` of one log, all with its origin as their name".to_owned()));
            }
        };
        let id = log_id(&origin);
        let state = |source| OpenError::State { dir: config.state.clone(), source };
        let held = files::read_small(&config.state.join(&id), MAX_NOTE).map_err(state)?;
        let broken = || state(io::Error::other(format!("{id} is no checkpoint; it must be restored, never deleted")));
        let note: Option<Note> = match held {
            None => None,
            Some(bytes) => Some(String::from_utf8(bytes).ok().and_then(|text| text.parse().ok()).ok_or_else(broken)?),
        };
        let tree = match &note {
            None => Tree { size: 0, root: empty_root() },
            Some(note) => Checkpoint::of(note).map_err(|_| broken())?.tree,
        };
        let open = || Mirror::open(log, &origin, tree, clock, medium.clone()).map_err(OpenError::Config);
        let mirror = mirror.then(open).transpose()?;
        let source = mirror.as_ref().and_then(Mirror::channel).cloned();
        let shown = Arc::new(ArcSwapOption::from_pointee(note.as_ref().map(ToString::to_string)));
        Ok(Self { origin, id, keys, latest: Arc::new(Mutex::new(Latest { note, tree, mirror })), shown, source })
    }
}

/// Old size, consistency proof, checkpoint.
fn parse(request: &str) -> Option<(u64, Vec<Hash>, Note)> {
    let (head, note) = request.split_once("\n\n")?;
    let mut lines = head.split('\n');
    let old = lines.next()?.strip_prefix("old ").and_then(decimal)?;
    let proof = parse_hashes(lines).filter(|proof| proof.len() < MAX_PROOF)?;
    Some((old, proof, note.parse().ok()?))
}
