//! The gateway's identity towards a server, and the CAs it believes there, changed while it runs.
//!
//! What is new is made before the old breaks: another identity and CAs that were added are tried with a call, and used
//! once that was answered. A CA that was taken out is believed no more from the first look on, whatever a call comes to:
//! whoever has its key could see to it that the call fails.

use std::error::Error;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::sign::CertifiedKey;
use tokio::time::{Instant, MissedTickBehavior};
use tonic::Status;
use tonic::transport::Channel;

use super::causes;
use crate::catalog::Faults;
use crate::certs::upstream::{Material, ProbeError, UpstreamConfig, channel_with, probe};
use crate::clock::{Clock, Timestamp};
use crate::watched::{POLL, Rotation, Watched};

/// How often material that failed its probe is tried again: the server may be down.
const AGAIN: Duration = Duration::from_secs(30);

/// A channel that is replaced when its files change, or the identity of the trust generation if it shows that.
pub struct RotatingChannel {
    upstream: UpstreamConfig,
    clock: Clock,
    current: ArcSwap<Channel>,
    watched: Mutex<Seen>,
    state: Mutex<State>,
}

/// What was looked at last.
struct Seen {
    files: Watched,
    /// The identity of the trust generation that serves.
    served: Option<Arc<CertifiedKey>>,
}

struct State {
    in_use: Material,
    rotation: Rotation,
    /// Whether a CA was taken out and no call was answered since.
    taken_out: bool,
    /// When to try what failed again.
    again: Option<Instant>,
}

impl fmt::Debug for RotatingChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RotatingChannel").field("rotation", &self.rotation()).finish_non_exhaustive()
    }
}

impl RotatingChannel {
    /// A channel to a server, which connects when it is first used. `name` tells operators of it; `served` is the identity
    /// of the trust generation that serves, for a server that is shown no other. Must be called within a runtime.
    ///
    /// # Errors
    /// All faults of its files at once.
    pub fn new(
        name: String,
        upstream: UpstreamConfig,
        served: Option<&Arc<CertifiedKey>>,
        clock: &Clock,
    ) -> Result<Arc<Self>, Faults> {
        // Before they are read: what changes in between is a change.
        let files = Watched::new(upstream.files());
        let material = Material::of(upstream.roots(), upstream.identity(served))?;
        let channel = channel_with(&upstream, &material, clock)?;
        let rotation = Rotation { name, since: clock.now(), refused: None };
        Ok(Arc::new(Self {
            upstream,
            clock: clock.clone(),
            current: ArcSwap::from_pointee(channel),
            watched: Mutex::new(Seen { files, served: served.cloned() }),
            state: Mutex::new(State { in_use: material, rotation, taken_out: false, again: None }),
        }))
    }

    /// The channel in use. Cheap.
    pub fn get(&self) -> Channel {
        Channel::clone(&self.current.load())
    }

    /// One call. If the server surely did not process it, it is made once more, on the channel that is then in use. A call
    /// ends on the connection it began with, whatever is rotated meanwhile.
    pub(super) async fn call<A, F>(&self, call: impl Fn(Channel) -> F) -> Result<A, Status>
    where
        F: Future<Output = Result<A, Status>>,
    {
        let mut made = 1;
        loop {
            let ended = call(self.get()).await;
            match &ended {
                Err(status) if made < most_attempts(status) => made += 1,
                _ => return ended,
            }
        }
    }

    /// How its rotation stands.
    pub fn rotation(&self) -> Rotation {
        self.state().rotation.clone()
    }

    /// Kind, name and end of each certificate in use that no trust generation holds.
    pub fn ends(&self) -> Vec<(&'static str, String, Timestamp)> {
        let state = self.state();
        let name = &state.rotation.name;
        let numbered = |(position, end): (usize, &Timestamp)| {
            let name = if position == 0 { name.clone() } else { format!("{name}, CA {}", position + 1) };
            ("upstream_ca", name, *end)
        };
        let mut ends: Vec<_> = state.in_use.roots.ends().iter().enumerate().map(numbered).collect();
        if self.upstream.certificate.is_some() {
            ends.extend(state.in_use.identity_ends().map(|end| ("client", name.clone(), end)));
        }
        ends
    }

    /// Follows until it is dropped. `served` says which identity the trust generation has that serves.
    pub async fn keep_following(self: Arc<Self>, served: impl Fn() -> Option<Arc<CertifiedKey>>) {
        let mut ticks = tokio::time::interval(POLL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.follow(served()).await;
        }
    }

    /// Looks at its files and at the identity that serves; what is new is tried, and used if it is taken.
    async fn follow(self: &Arc<Self>, served: Option<Arc<CertifiedKey>>) {
        let this = self.clone();
        // Reads files.
        let looked = tokio::task::spawn_blocking(move || this.look(served)).await;
        let Ok(Some(found)) = looked else { return };
        let tried = match found {
            Ok(material) => probe(&self.upstream, &material, &self.clock).await.map(|()| material),
            Err(faults) => Err(ProbeError::Faults(faults)),
        };
        match tried.and_then(|material| self.put_to_use(material).map_err(ProbeError::Faults)) {
            Ok(()) => {
                let mut state = self.state();
                state.rotation.refused = None;
                (state.taken_out, state.again) = (false, None);
                tracing::info!(towards = state.rotation.name, "another identity or trust is used");
            }
            Err(error) => self.refuse(&error),
        }
    }

    /// What there is to try, if anything changed or is due again. When this returns, no CA is believed that was taken out
    /// of the file. A file that is not in order takes none out.
    fn look(&self, served: Option<Arc<CertifiedKey>>) -> Option<Result<Material, Faults>> {
        let mut seen = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let chain = |identity: &Option<Arc<CertifiedKey>>| identity.as_ref().map(|identity| identity.cert.clone());
        let other = self.upstream.certificate.is_none() && chain(&seen.served) != chain(&served);
        let changed = seen.files.changed();
        let due = self.state().again.is_some_and(|at| Instant::now() >= at);
        seen.served = served;
        if !(other || changed || due) {
            return None;
        }
        let (roots, identity) = (self.upstream.roots(), self.upstream.identity(seen.served.as_ref()));
        let in_use = self.state().in_use.clone();
        if let Ok(roots) = &roots
            && !roots.contain(&in_use.roots)
        {
            if let Err(faults) = self.put_to_use(Material { roots: roots.clone(), ..in_use }) {
                return Some(Err(faults));
            }
            let mut state = self.state();
            state.taken_out = true;
            tracing::warn!(towards = state.rotation.name, "a CA was taken out: it is believed no more");
        }
        Some(Material::of(roots, identity))
    }

    fn put_to_use(&self, material: Material) -> Result<(), Faults> {
        let channel = channel_with(&self.upstream, &material, &self.clock)?;
        let mut state = self.state();
        self.current.store(Arc::new(channel));
        state.in_use = material;
        state.rotation.since = self.clock.now();
        Ok(())
    }

    fn refuse(&self, error: &ProbeError) {
        let mut state = self.state();
        // Files that are not in order will be others before they are.
        let may_heal = matches!(error, ProbeError::Unanswered(_));
        state.again = may_heal.then(|| Instant::now() + AGAIN);
        let taken_out =
            if state.taken_out { "; CAs that were taken out are believed no more all the same" } else { "" };
        let refused = Some(format!("{error}{taken_out}"));
        if state.rotation.refused != refused {
            state.rotation.refused = refused;
            let Rotation { name, refused, .. } = &state.rotation;
            tracing::error!(towards = name, why = refused, "new identity or trust refused; the old one is used");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How often a call that ended so may be made in all. More than once only if the server surely did not begin with it;
/// after anything else, a connection that broke off or a PING without an answer, it may have.
fn most_attempts(status: &Status) -> u32 {
    let of_cause = |cause: &(dyn Error + 'static)| {
        if let Some(error) = cause.downcast_ref::<h2::Error>() {
            // Of a server's GOAWAY, h2 tells the calls beyond the last one that the server took up, and no other.
            let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
            return Some(if error.is_remote() && (error.is_go_away() || refused) { 2 } else { 1 });
        }
        // It never left, for its connection was just ending: perhaps the very one that the server had left it aside on.
        let not_sent = cause.downcast_ref().is_some_and(hyper::Error::is_canceled);
        not_sent.then_some(3).or_else(|| cause.is::<tonic::ConnectError>().then_some(2))
    };
    causes(status).find_map(of_cause).unwrap_or(1)
}
