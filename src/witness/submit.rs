//! The gateway's side: every new checkpoint goes to every witness, with the proof that it grew out of the last one it
//! cosigned; the cosignature goes into the checkpoint.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use http::StatusCode;
use rustls::sign::CertifiedKey;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{Peer, PeerError, log_id};
use crate::audit::checkpoint::{Checkpoint, Tree, decimal, hash_lines};
use crate::audit::merkle::{Hash, verify_consistency};
use crate::audit::note::{MAX_NOTE, Note, VerifierKey, parse_signatures};
use crate::audit::tree::{LogTree, TreeError};
use crate::audit::{AuditConfig, Journal, OpenError, Published, Refuted, WitnessConfig};
use crate::clock::Clock;

/// A quiet log is cosigned anew so often: the cosignature's time tells that nothing was held back.
const REFRESH: Duration = Duration::from_mins(1);
/// After a failure.
const RETRY: Duration = Duration::from_secs(2);
/// Longest wait for a witness while the gateway starts.
const AT_START: Duration = Duration::from_secs(3);

/// The tree of the gateway's own log, for proofs. Work on it goes to threads that may wait.
#[derive(Debug, Clone)]
pub struct Proofs(Arc<Mutex<LogTree>>);

impl Proofs {
    /// Of the log in `dir`.
    ///
    /// # Errors
    /// If it can't be read.
    pub fn open(dir: &Path) -> Result<Self, TreeError> {
        Ok(Self(Arc::new(Mutex::new(LogTree::open(dir)?))))
    }

    pub(super) async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut LogTree) -> Result<T, TreeError> + Send + 'static,
    ) -> Result<T, TreeError> {
        let tree = self.0.clone();
        let work = move || work(&mut tree.lock().unwrap_or_else(PoisonError::into_inner));
        tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other)?
    }

    /// The proof that the signed tree `new` grew out of its first `old` entries. It holds: if kept hashes made one that does
    /// not, the entries make another.
    pub(super) async fn consistency(&self, old: u64, new: Tree) -> Result<Vec<Hash>, TreeError> {
        let prove = move |tree: &mut LogTree| -> Result<_, TreeError> {
            tree.grow(new.size)?;
            let (before, proof) = (tree.tree(old)?, tree.prove_consistency(old, new.size)?);
            Ok(verify_consistency(&proof, old, &before.root, new.size, &new.root).then_some(proof))
        };
        self.with(move |tree| {
            if let Some(proof) = prove(tree)? {
                return Ok(proof);
            }
            tracing::warn!("access log: the kept hashes (*.tiles) are wrong; the proof is made from the entries");
            *tree = LogTree::from_first(tree.dir())?;
            prove(tree)?.ok_or(TreeError::Unsigned { size: new.size })
        })
        .await
    }

    /// True if this log begins with that tree: the kept hashes say so, or the entries.
    pub(super) async fn begins_with(&self, begin: Tree) -> Result<bool, TreeError> {
        self.with(move |tree| {
            tree.grow(begin.size)?;
            if tree.tree(begin.size)? == begin {
                return Ok(true);
            }
            let mut tree = LogTree::from_first(tree.dir())?;
            tree.grow(begin.size)?;
            Ok(tree.tree(begin.size)? == begin)
        })
        .await
    }
}

/// The witnesses of a configuration. `served` is the identity of the trust generation. Must be called within a runtime.
///
/// # Errors
/// If a URL or TLS material can't be used.
pub fn peers(config: &AuditConfig, served: Option<&Arc<CertifiedKey>>, clock: &Clock) -> Result<Vec<Peer>, PeerError> {
    let peer = |witness: &WitnessConfig| Peer::new("witness", &witness.url, witness.tls.as_ref(), served, clock);
    config.witnesses.iter().map(peer).collect()
}

/// The trees of this log that its witnesses, `peers`, hold, as far as they answer: what the log must contain to go on.
///
/// # Errors
/// If the keys can't be read, or none answers and one must.
pub async fn held(config: &AuditConfig, peers: &[Peer]) -> Result<Vec<Tree>, OpenError> {
    let asked = peers.iter().map(async |peer| {
        let late = |_| Err(PeerError::Unreachable("no answer in time".to_owned()).into());
        timeout(AT_START, shown(config, peer)).await.unwrap_or_else(late)
    });
    let (mut trees, mut answered) = (Vec::new(), false);
    for (witness, answer) in config.witnesses.iter().zip(join_all(asked).await) {
        match answer {
            Ok(tree) => {
                answered = true;
                trees.extend(tree);
            }
            Err(error) => tracing::warn!(witness = witness.url, %error, "the witness does not tell what it holds"),
        }
    }
    if config.witness_at_start && !answered { Err(OpenError::NoWitness) } else { Ok(trees) }
}

/// The tree of the checkpoint that a witness shows as its last of this log, which this log must have signed. None if it
/// has none, or is one that does not tell.
async fn shown(config: &AuditConfig, peer: &Peer) -> Result<Option<Tree>, Failed> {
    let keys = config.load_signing_keys()?;
    let answer = peer.get(&format!("/{}/checkpoint", log_id(&config.origin))).await?;
    match answer.status {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND => return Ok(None),
        other => return Err(Failed::Status(other)),
    }
    let note: Note =
        std::str::from_utf8(&answer.body).ok().and_then(|text| text.parse().ok()).ok_or(Failed::Foreign)?;
    let checkpoint = Checkpoint::of(&note).map_err(|_| Failed::Foreign)?;
    let signed = keys.iter().any(|key| key.verifier().verify(&note).is_some());
    if signed && checkpoint.origin == config.origin { Ok(Some(checkpoint.tree)) } else { Err(Failed::Foreign) }
}

/// Submits checkpoints to one of the witnesses of `config`, which is `peer`, until `stop`.
///
/// # Errors
/// If the witness's key can't be used.
pub fn submit(
    config: &AuditConfig,
    witness: &WitnessConfig,
    peer: Peer,
    journal: Journal,
    proofs: Proofs,
    stop: CancellationToken,
) -> Result<(), PeerError> {
    let key = VerifierKey::load(&witness.vkey)
        .map_err(|error| PeerError::Config(format!("{}: {error}", witness.vkey.display())))?;
    let submitter = Submitter {
        peer,
        name: witness.url.clone(),
        authenticated: witness.tls.is_some(),
        key,
        config: config.clone(),
        journal,
        proofs,
        held: 0,
    };
    tokio::spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = submitter.run() => {}
        }
    });
    Ok(())
}

struct Submitter {
    peer: Peer,
    name: String,
    /// It is known by its certificate: nobody else can speak in its name.
    authenticated: bool,
    key: VerifierKey,
    config: AuditConfig,
    journal: Journal,
    proofs: Proofs,
    /// Size of the checkpoint that the witness cosigned last, as far as known.
    held: u64,
}

/// Why a checkpoint is not cosigned, or a witness does not show what it holds.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error(transparent)]
    Keys(#[from] OpenError),
    #[error("it answers {0}")]
    Status(StatusCode),
    #[error("its answer is no cosignature of its key")]
    Form,
    #[error("what it holds was not signed by this log")]
    Foreign,
    #[error("it holds more entries than this log has: this log was rolled back")]
    Shorter,
    #[error("it holds other entries than this log has: this log was rewritten")]
    Other,
    #[error("it says that it holds more entries, or others, and does not show it")]
    Doubt,
    #[error("it refuses what grew out of what it holds")]
    Unfounded,
}

impl Failed {
    /// What tells one failure from another: each kind is logged when it begins.
    fn kind(&self) -> (std::mem::Discriminant<Self>, Option<StatusCode>) {
        let status = if let Self::Status(status) = self { Some(*status) } else { None };
        (std::mem::discriminant(self), status)
    }
}

impl Submitter {
    async fn run(mut self) {
        let mut checkpoints = self.journal.checkpoints();
        let mut failing = None;
        let mut doubted = false;
        loop {
            let latest = checkpoints.borrow_and_update().clone();
            // Whatever is signed while this one is offered is the next. Cosignatures change a checkpoint, too, but not
            // its tree.
            let offered = latest.as_ref().map(|latest| latest.tree);
            if let Some(latest) = latest {
                let done = self.offer(&latest).await;
                let kind = done.as_ref().err().map(Failed::kind);
                if kind != failing {
                    failing = kind;
                    match &done {
                        Ok(()) => tracing::info!(witness = self.name, "the witness cosigns again"),
                        Err(error) => tracing::warn!(witness = self.name, %error, "the witness does not cosign"),
                    }
                }
                if doubted != matches!(done, Err(Failed::Doubt)) {
                    doubted = !doubted;
                    self.journal.doubted(doubted);
                }
                match done {
                    Ok(()) => {}
                    // No further entry is taken, so nothing comes that could be offered.
                    Err(Failed::Shorter) => return self.journal.refute(Refuted::Shorter),
                    Err(Failed::Other) => return self.journal.refute(Refuted::Other),
                    Err(_) => {
                        sleep(RETRY).await;
                        continue;
                    }
                }
            }
            let grown = checkpoints.wait_for(|latest| latest.as_ref().map(|latest| latest.tree) != offered);
            // A timeout is the time for a refresh.
            if let Ok(Err(_closed)) = timeout(REFRESH, grown).await {
                return;
            }
        }
    }

    /// Offers a checkpoint; if the witness holds another size than thought, once more from there.
    async fn offer(&mut self, latest: &Published) -> Result<(), Failed> {
        for _ in 0..2 {
            let new = latest.tree.size;
            let old = self.held.min(new);
            let proof = self.proofs.consistency(old, latest.tree).await?;
            let body = format!("old {old}\n{}\n{}", hash_lines(&proof), latest.note);
            let answer = self.peer.post("/add-checkpoint", body).await?;
            let text = std::str::from_utf8(&answer.body).ok().filter(|text| text.len() <= MAX_NOTE);
            let text = text.ok_or(Failed::Form)?;
            match answer.status {
                StatusCode::OK => {
                    let lines = parse_signatures(text).map_err(|_| Failed::Form)?;
                    if self.key.verify_lines(latest.note.text(), &lines).is_none() {
                        return Err(Failed::Form);
                    }
                    self.journal.cosigned(latest.tree, lines);
                    self.held = new;
                    return Ok(());
                }
                StatusCode::CONFLICT => {
                    let held = text.strip_suffix('\n').and_then(decimal).ok_or(Failed::Form)?;
                    if held > self.journal.status().signed {
                        return Err(self.contradicted(Failed::Shorter).await);
                    }
                    if held == old && held == new {
                        return Err(self.contradicted(Failed::Other).await);
                    }
                    self.held = held;
                }
                StatusCode::UNPROCESSABLE_ENTITY => return Err(self.contradicted(Failed::Other).await),
                other => return Err(Failed::Status(other)),
            }
        }
        Err(Failed::Status(StatusCode::CONFLICT))
    }

    /// The witness answers that it holds what this log, whose proof holds, is not. What it shows decides: a checkpoint that
    /// this log has signed. One that shows nothing is believed if nobody else can speak in its name.
    async fn contradicted(&mut self, says: Failed) -> Failed {
        match shown(&self.config, &self.peer).await {
            Ok(Some(tree)) if tree.size > self.journal.status().signed => Failed::Shorter,
            Ok(Some(tree)) => match self.proofs.begins_with(tree).await {
                Ok(true) => {
                    self.held = tree.size;
                    Failed::Unfounded
                }
                Ok(false) => Failed::Other,
                Err(error) => error.into(),
            },
            Ok(None) if self.authenticated => says,
            Ok(None) | Err(_) => Failed::Doubt,
        }
    }
}
