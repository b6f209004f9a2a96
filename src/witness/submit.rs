//! The gateway's side: every new checkpoint goes to every witness, with the proof that it grew out of the last one it
//! cosigned; the cosignature goes into the checkpoint.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::StatusCode;
use rustls::sign::CertifiedKey;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{Peer, PeerError, log_id};
use crate::audit::checkpoint::{Checkpoint, Tree, decimal, hash_lines};
use crate::audit::note::{Note, parse_signatures};
use crate::audit::tree::{LogTree, TreeError};
use crate::audit::{AuditConfig, Journal, Published, WitnessConfig};
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
        Ok(Self(Arc::new(Mutex::new(LogTree::open(dir, false)?))))
    }

    pub(super) async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut LogTree) -> Result<T, TreeError> + Send + 'static,
    ) -> Result<T, TreeError> {
        let tree = self.0.clone();
        let work = move || work(&mut tree.lock().unwrap_or_else(PoisonError::into_inner));
        tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other)?
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
pub async fn held(config: &AuditConfig, peers: &[Peer]) -> Vec<Tree> {
    let mut trees = Vec::new();
    let Ok(keys) = config.load_signing_keys() else { return trees };
    let path = format!("/{}/checkpoint", log_id(&config.origin));
    for (peer, key) in peers.iter().zip(config.load_witnesses().unwrap_or_default()) {
        let answer = async {
            timeout(AT_START, peer.get(&path))
                .await
                .map_err(|_| PeerError::Unreachable("no answer in time".to_owned()))?
        };
        let name = key.name();
        match answer.await {
            Ok(answer) if answer.status == StatusCode::OK => {
                let note = std::str::from_utf8(&answer.body).ok().and_then(|text| text.parse::<Note>().ok());
                let signed = note.as_ref().filter(|note| keys.iter().any(|key| key.verifier().verify(note).is_some()));
                let checkpoint = signed.and_then(|note| Checkpoint::of(note).ok());
                if let Some(checkpoint) = checkpoint.filter(|found| found.origin == config.origin) {
                    trees.push(checkpoint.tree);
                } else {
                    tracing::warn!(witness = name, "what the witness holds was not signed by this log");
                }
            }
            // It holds nothing, or is one that does not tell.
            Ok(_) => {}
            Err(error) => tracing::warn!(witness = name, %error, "the witness does not tell what it holds"),
        }
    }
    trees
}

/// Submits checkpoints to one witness, known to operators by `name`, until `stop`.
pub fn submit(peer: Peer, name: String, journal: Journal, proofs: Proofs, stop: CancellationToken) {
    let submitter = Submitter { peer, name, journal, proofs, held: 0 };
    tokio::spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = submitter.run() => {}
        }
    });
}

struct Submitter {
    peer: Peer,
    name: String,
    journal: Journal,
    proofs: Proofs,
    /// Size of the checkpoint that the witness cosigned last, as far as known.
    held: u64,
}

/// Why a checkpoint is not cosigned.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error("it holds {0} entries, more than this log has: this log was rolled back")]
    Ahead(u64),
    #[error("it answers {0}")]
    Status(StatusCode),
    #[error("its answer is no cosignature")]
    Form,
}

impl Submitter {
    async fn run(mut self) {
        let mut checkpoints = self.journal.checkpoints();
        let mut failing = false;
        loop {
            let latest = checkpoints.borrow_and_update().clone();
            // Whatever is signed while this one is offered is the next. Cosignatures change a checkpoint, too, but not
            // its tree.
            let offered = latest.as_ref().map(|latest| latest.tree);
            if let Some(latest) = latest {
                let done = self.offer(&latest).await;
                if done.is_err() != failing {
                    failing = done.is_err();
                    match &done {
                        Ok(()) => tracing::info!(witness = self.name, "the witness cosigns again"),
                        Err(error) => tracing::warn!(witness = self.name, %error, "the witness does not cosign"),
                    }
                }
                if done.is_err() {
                    sleep(RETRY).await;
                    continue;
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
            let (old, new) = (self.held.min(latest.tree.size), latest.tree.size);
            let proof = self.proofs.with(move |tree| {
                tree.grow(new)?;
                tree.prove_consistency(old, new)
            });
            let body = format!("old {old}\n{}\n{}", hash_lines(&proof.await?), latest.note);
            let answer = self.peer.post("/add-checkpoint", body).await?;
            let text = std::str::from_utf8(&answer.body).map_err(|_| Failed::Form)?;
            match answer.status {
                StatusCode::OK => {
                    let signatures = parse_signatures(text).map_err(|_| Failed::Form)?;
                    self.journal.cosigned(latest.tree, signatures);
                    self.held = new;
                    return Ok(());
                }
                StatusCode::CONFLICT => {
                    let held = text.strip_suffix('\n').and_then(decimal).ok_or(Failed::Form)?;
                    if held > new {
                        return Err(Failed::Ahead(held));
                    }
                    self.held = held;
                }
                other => return Err(Failed::Status(other)),
            }
        }
        Err(Failed::Status(StatusCode::CONFLICT))
    }
}
