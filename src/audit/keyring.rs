//! Keys that change while the log is written: the one that signs, and the recipients'.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::keys::PublicKey;
use super::note::SigningKey;
use super::{AppendError, AuditConfig, OpenError};
use crate::clock::{Clock, Timestamp};
use crate::watched::{Rotation, Watched};

/// Why other keys are not used.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    /// The files can't be used; what is said is theirs.
    #[error(transparent)]
    Files(#[from] OpenError),
    /// Another key would sign, and the one that signs now is not beside it, so nothing would vouch for the new one after a
    /// crash.
    #[error("audit.previous_signing_key: not the key that signs the log now; put that one there first")]
    Unvouched,
    /// The handover could not be written; it is tried again.
    #[error("the handover to another signing key: {0}")]
    Unrecorded(#[from] AppendError),
}

/// What the files say.
#[derive(Debug)]
pub(super) struct Keys {
    /// The key that signs, then the one before.
    pub(super) signing: Vec<Arc<SigningKey>>,
    pub(super) recipients: Vec<PublicKey>,
}

impl Keys {
    pub(super) fn load(config: &AuditConfig) -> Result<Self, OpenError> {
        let signing = config.load_signing_keys()?.into_iter().map(Arc::new).collect();
        Ok(Self { signing, recipients: config.load_recipients()? })
    }
}

/// The files of a log's keys and how their rotation stands.
#[derive(Debug)]
pub(super) struct Keyring {
    config: AuditConfig,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    watched: Watched,
    rotation: Rotation,
    /// What was read could not be put to use yet.
    again: bool,
}

impl Keyring {
    pub(super) fn new(config: &AuditConfig, now: Timestamp) -> Self {
        let signing = [&config.signing_key].into_iter().chain(&config.previous_signing_key);
        let files = signing.chain(&config.recipients).cloned().collect();
        let rotation = Rotation { name: "log keys".to_owned(), since: now, refused: None };
        let state = State { watched: Watched::new(files), rotation, again: false };
        Self { config: config.clone(), state: Mutex::new(state) }
    }

    /// The keys as they are now, if their files changed or are to be tried again. Blocks.
    pub(super) fn look(&self) -> Option<Result<Keys, OpenError>> {
        let mut state = self.state();
        let due = state.watched.changed() | std::mem::take(&mut state.again);
        due.then(|| Keys::load(&self.config))
    }

    /// Keeps in mind what became of them.
    pub(super) fn told(&self, taken: &Result<(), RotateError>, clock: &Clock) {
        let mut state = self.state();
        match taken {
            Ok(()) => (state.rotation.since, state.rotation.refused) = (clock.now(), None),
            Err(error) => {
                state.again = matches!(error, RotateError::Unrecorded(_));
                state.rotation.refused = Some(error.to_string());
            }
        }
    }

    pub(super) fn rotation(&self) -> Rotation {
        self.state().rotation.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
