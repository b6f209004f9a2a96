//! The gateway's identity towards a department, and the CAs it believes there, changed while it runs: make before break.
//! What is new is tried with a call before it is used, and what was used is used on while the new one fails.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::{SourceConfig, upstream};
use crate::certs::upstream::{ProbeError, probe};
use crate::clock::Clock;
use crate::watched::{Rotation, Watched};

/// How often material that failed its probe is tried again: the department may be down.
const AGAIN: Duration = Duration::from_secs(30);

/// A source's files and how their rotation stands.
pub(super) struct Rotating {
    config: SourceConfig,
    state: Mutex<State>,
}

struct State {
    watched: Watched,
    rotation: Rotation,
    /// When to try what failed again.
    again: Option<Instant>,
}

/// What a look at the files came to.
pub(super) enum Looked {
    /// Nothing to do.
    Same,
    /// New material was probed; it can be used.
    Ready,
    /// New material is not in order, or the department does not take it; why is noted.
    Refused,
}

impl Rotating {
    pub(super) fn new(config: &SourceConfig, clock: &Clock) -> Self {
        let files = vec![config.ca.clone(), config.certificate.clone(), config.key.clone()];
        let rotation = Rotation { name: format!("source {}", config.name), since: clock.now(), refused: None };
        let state = State { watched: Watched::new(files), rotation, again: None };
        Self { config: config.clone(), state: Mutex::new(state) }
    }

    pub(super) fn config(&self) -> &SourceConfig {
        &self.config
    }

    pub(super) fn rotation(&self) -> Rotation {
        self.state().rotation.clone()
    }

    /// Looks at the files and probes what is new.
    pub(super) async fn look(&self, clock: &Clock) -> Looked {
        {
            let mut state = self.state();
            let due = state.again.is_some_and(|at| Instant::now() >= at);
            if !state.watched.changed() && !due {
                return Looked::Same;
            }
        }
        let probed = probe(&upstream(&self.config), clock).await;
        let mut state = self.state();
        match probed {
            Ok(()) => {
                state.rotation = Rotation { since: clock.now(), refused: None, ..state.rotation.clone() };
                state.again = None;
                Looked::Ready
            }
            Err(error) => {
                // Files that are not in order will be others before they are.
                let may_heal = matches!(error, ProbeError::Unanswered(_));
                state.again = may_heal.then(|| Instant::now() + AGAIN);
                state.rotation.refused = Some(error.to_string());
                Looked::Refused
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
