//! The gateway's identity towards a department, and the CAs it believes there, changed while it runs: make before break.
//! What is new is tried with a call before it is used, and what was used is used on while the new one fails.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::time::Instant;
use tonic::transport::Channel;

use crate::catalog::Faults;
use crate::certs::upstream::{ProbeError, UpstreamConfig, channel, probe};
use crate::clock::Clock;
use crate::watched::{Rotation, Watched};

/// How often material that failed its probe is tried again: the department may be down.
const AGAIN: Duration = Duration::from_secs(30);

/// The files of a channel and how their rotation stands.
pub(super) struct Rotating {
    upstream: UpstreamConfig,
    state: Mutex<State>,
}

struct State {
    watched: Watched,
    rotation: Rotation,
    /// When to try what failed again.
    again: Option<Instant>,
}

/// What a look at the files came to.
enum Looked {
    /// Nothing to do.
    Same,
    /// New material was probed; it can be used.
    Ready,
    /// New material is not in order, or the department does not take it; why is noted.
    Refused,
}

impl Rotating {
    pub(super) fn new(name: String, upstream: UpstreamConfig, clock: &Clock) -> Self {
        let files = vec![upstream.ca.clone(), upstream.certificate.clone(), upstream.key.clone()];
        let rotation = Rotation { name, since: clock.now(), refused: None };
        let state = State { watched: Watched::new(files), rotation, again: None };
        Self { upstream, state: Mutex::new(state) }
    }

    /// A channel with the files as they are now.
    fn channel(&self) -> Result<Channel, Faults> {
        channel(&self.upstream)
    }

    pub(super) fn rotation(&self) -> Rotation {
        self.state().rotation.clone()
    }

    /// Looks at the files and probes what is new.
    async fn look(&self, clock: &Clock) -> Looked {
        {
            let mut state = self.state();
            let due = state.again.is_some_and(|at| Instant::now() >= at);
            if !state.watched.changed() && !due {
                return Looked::Same;
            }
        }
        let probed = probe(&self.upstream, clock).await;
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

/// A channel that is replaced when its files change.
pub(super) struct RotatingChannel {
    rotating: Rotating,
    current: ArcSwap<Channel>,
    clock: Clock,
}

impl RotatingChannel {
    pub(super) fn new(name: String, upstream: UpstreamConfig) -> Result<Self, Faults> {
        let clock = Clock::system();
        let rotating = Rotating::new(name, upstream, &clock);
        Ok(Self { current: ArcSwap::from_pointee(rotating.channel()?), rotating, clock })
    }

    /// The channel in use. Cheap.
    pub(super) fn get(&self) -> Channel {
        Channel::clone(&self.current.load())
    }

    pub(super) fn rotation(&self) -> Rotation {
        self.rotating.rotation()
    }

    /// Looks at the files; what is new is probed, and used if it is taken.
    pub(super) async fn follow(&self) {
        follow(&self.rotating, &self.clock, |channel| self.current.store(Arc::new(channel))).await;
    }
}

/// Looks at the files and hands out a channel with what is new, once it was taken.
pub(super) async fn follow(rotating: &Rotating, clock: &Clock, put_to_use: impl FnOnce(Channel)) {
    let looked = rotating.look(clock).await;
    let Rotation { name, refused, .. } = rotating.rotation();
    match looked {
        Looked::Same => {}
        Looked::Ready => match rotating.channel() {
            Ok(channel) => {
                put_to_use(channel);
                tracing::info!(towards = name, "another identity or trust is used");
            }
            // They were in order a moment ago; the next look sees what became of them.
            Err(faults) => tracing::error!(towards = name, %faults, "rotation failed"),
        },
        Looked::Refused => {
            tracing::error!(towards = name, why = refused, "new identity or trust refused; the old one is used");
        }
    }
}
