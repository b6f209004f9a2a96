//! The gate every request passes: open connections, the generation in force, and whether the one may go on under the
//! other.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::pki_types::CertificateDer;

use super::callers::JudgeError;
use super::chains::ChainError;
use super::config::HardeningConfig;
use super::connection::{Connection, Order};
use super::generation::Generation;
use super::seen::Seen;
use crate::catalog::Faults;
use crate::clock::Clock;
use crate::ids::SpiffeId;

/// Holds the generation in force and every open connection.
///
/// Each connection is stamped with the generation it was judged under. A request on a connection with an older stamp
/// waits for a new judgement; so once [`Gate::install`] has stored a generation, no request is admitted without it.
pub struct Gate {
    current: ArcSwap<Generation>,
    hardening: HardeningConfig,
    clock: Clock,
    next_id: AtomicU64,
    sockets: Mutex<Sockets>,
    open: Mutex<Open>,
    seen: Mutex<Seen>,
    /// One installation at a time.
    installing: Mutex<()>,
    pub(super) counters: Counters,
}

/// Accepted sockets, handshakes included.
#[derive(Default)]
struct Sockets {
    total: usize,
    by_network: HashMap<IpAddr, usize>,
}

/// Connections whose caller is known.
#[derive(Default)]
struct Open {
    by_id: HashMap<u64, Arc<Connection>>,
    by_caller: HashMap<SpiffeId, usize>,
}

/// Events since the start.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) over_limit: AtomicU64,
    pub(super) handshakes_done: AtomicU64,
    pub(super) handshakes_refused: AtomicU64,
    /// Handshakes refused, by a word for the reason.
    pub(super) refused_by: Mutex<BTreeMap<&'static str, u64>>,
    requests_refused: AtomicU64,
    drained: AtomicU64,
    killed: AtomicU64,
}

/// State of the gate, for operators and metrics. Counts run since the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GateStatus {
    /// Number of the generation in force.
    pub generation: u64,
    /// Sockets open now, handshakes under way included.
    pub sockets: usize,
    /// Connections open now whose caller is known.
    pub connections: usize,
    /// Sockets and connections refused because a cap was reached.
    pub over_limit: u64,
    /// Handshakes that ended well.
    pub handshakes_done: u64,
    /// Handshakes refused, failed or timed out.
    pub handshakes_refused: u64,
    /// Requests refused because their connection was no longer trusted.
    pub requests_refused: u64,
    /// Connections drained because their certificate expired, or their CA was removed so.
    pub drained: u64,
    /// Connections killed because a generation no longer trusts them.
    pub killed: u64,
}

/// What an installation or a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Connections that go on.
    pub kept: usize,
    /// Connections that got GOAWAY.
    pub drained: usize,
    /// Connections that were ended.
    pub killed: usize,
}

/// A generation must have a higher number than the one in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("generation {offered} is not newer than generation {current}, which is in force")]
pub struct NotNewer {
    /// Number of the generation in force.
    pub current: u64,
    /// Number of the one offered.
    pub offered: u64,
}

/// Why a request on an open connection is not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The trust material in force does not believe its certificate.
    #[error("client certificate is no longer trusted")]
    NotTrusted,
    /// A certificate of its chain has expired since the handshake.
    #[error("client certificate has expired")]
    Expired,
}

/// Stands in the extensions of a request that its connection no longer allows, where an `Arc<Connection>` stands
/// otherwise: the service must refuse it, and knows whose it was.
#[derive(Debug, Clone)]
pub struct RefusedRequest {
    /// The connection that it came by.
    pub connection: Arc<Connection>,
    /// Why it is refused.
    pub refusal: Refusal,
}

/// Why a socket or connection is not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum Turned {
    #[error("too many connections")]
    Full,
    #[error("too many connections from this address")]
    Network,
    #[error("too many connections of this caller")]
    Caller,
    #[error(transparent)]
    Judge(#[from] JudgeError),
}

impl Turned {
    /// A word for metrics.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Full | Self::Network | Self::Caller => "limit",
            Self::Judge(error) => error.word(),
        }
    }
}

impl Gate {
    /// A gate with its first generation; faults name the hardening options out of bounds.
    pub fn new(generation: Generation, hardening: HardeningConfig, clock: Clock) -> Result<Arc<Self>, Faults> {
        let mut faults = Faults::default();
        hardening.check(Path::new("hardening"), &mut faults);
        faults.or(())?;
        Ok(Arc::new(Self {
            current: ArcSwap::from_pointee(generation),
            hardening,
            clock,
            next_id: AtomicU64::new(1),
            sockets: Mutex::default(),
            open: Mutex::default(),
            seen: Mutex::default(),
            installing: Mutex::default(),
            counters: Counters::default(),
        }))
    }

    /// The generation in force.
    pub fn current(&self) -> Arc<Generation> {
        self.current.load_full()
    }

    /// The limits it was made with.
    pub fn hardening(&self) -> &HardeningConfig {
        &self.hardening
    }

    /// Judges a request by its connection: one load and a few compares unless the generation changed meanwhile.
    pub fn admit(&self, connection: &Connection) -> Result<(), Refusal> {
        connection.seen(self.clock.now());
        let verdict = self.judge_now(connection, &self.current.load());
        if verdict.is_err() {
            self.counters.requests_refused.fetch_add(1, Ordering::Relaxed);
        }
        verdict
    }

    /// Puts a generation in force: new handshakes and requests see it when this returns, and every open connection has
    /// been judged by it. Costs about a microsecond of CPU a connection, and some 60 µs one whose CA has another
    /// certificate, so call it where blocking is allowed.
    pub fn install(&self, generation: Generation) -> Result<Swept, NotNewer> {
        let _one = self.installing.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.current.load().number();
        if generation.number() <= current {
            return Err(NotNewer { current, offered: generation.number() });
        }
        self.current.store(Arc::new(generation));
        Ok(self.sweep())
    }

    /// Judges every connection that the generation in force has not judged yet, and drains those whose certificate
    /// expired.
    pub fn sweep(&self) -> Swept {
        let generation = self.current.load_full();
        let mut swept = Swept::default();
        for connection in self.connections() {
            _ = self.judge_now(&connection, &generation);
            match connection.order() {
                Order::Serve => swept.kept += 1,
                Order::Drain => swept.drained += 1,
                Order::Kill => swept.killed += 1,
            }
        }
        swept
    }

    /// Gives an order to a connection, for example to drain a caller by hand.
    pub fn order(&self, connection: &Connection, order: Order) {
        if connection.command(order) {
            match order {
                Order::Serve => {}
                Order::Drain => _ = self.counters.drained.fetch_add(1, Ordering::Relaxed),
                Order::Kill => _ = self.counters.killed.fetch_add(1, Ordering::Relaxed),
            }
        }
    }

    /// The open connections, in no order.
    pub fn connections(&self) -> Vec<Arc<Connection>> {
        self.open().by_id.values().cloned().collect()
    }

    /// Counts and the generation in force.
    pub fn status(&self) -> GateStatus {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        GateStatus {
            generation: self.current.load().number(),
            sockets: self.sockets().total,
            connections: self.open().by_id.len(),
            over_limit: count(&self.counters.over_limit),
            handshakes_done: count(&self.counters.handshakes_done),
            handshakes_refused: count(&self.counters.handshakes_refused),
            requests_refused: count(&self.counters.requests_refused),
            drained: count(&self.counters.drained),
            killed: count(&self.counters.killed),
        }
    }

    /// Handshakes refused since the start, by a word for the reason.
    pub fn refused_handshakes(&self) -> BTreeMap<&'static str, u64> {
        self.counters.refused_by.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Counts a refused handshake.
    pub(super) fn handshake_refused(&self, reason: &'static str) {
        self.counters.handshakes_refused.fetch_add(1, Ordering::Relaxed);
        *self.counters.refused_by.lock().unwrap_or_else(PoisonError::into_inner).entry(reason).or_default() += 1;
    }

    /// The systems that have been seen since the start and by which CA, those connected now first told of their last
    /// request.
    pub fn seen(&self) -> Seen {
        let mut seen = self.seen_before().clone();
        for connection in self.connections() {
            seen.note(&connection, true);
        }
        seen
    }

    /// Takes a place for an accepted socket until the returned value is dropped.
    pub(super) fn enter(self: &Arc<Self>, peer: IpAddr) -> Result<Place, Turned> {
        let network = network_of(peer);
        let mut sockets = self.sockets();
        let from_network = sockets.by_network.get(&network).copied().unwrap_or(0);
        let turned = if sockets.total >= self.hardening.max_connections {
            Turned::Full
        } else if from_network >= self.hardening.max_connections_per_address {
            Turned::Network
        } else {
            sockets.total += 1;
            sockets.by_network.insert(network, from_network + 1);
            return Ok(Place { gate: self.clone(), network });
        };
        self.counters.over_limit.fetch_add(1, Ordering::Relaxed);
        Err(turned)
    }

    /// Registers a connection whose handshake is done until the returned value is dropped.
    pub(super) fn register(
        self: &Arc<Self>,
        peer: SocketAddr,
        chain: Vec<CertificateDer<'static>>,
    ) -> Result<Registered, Turned> {
        let generation = self.current();
        let judged = generation.judge_fully(&chain)?;
        let caller_id = judged.caller.id().clone();
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let connection = Arc::new(Connection::new(id, peer, chain, self.clock.now(), generation.number(), judged));
        {
            let mut open = self.open();
            let count = open.by_caller.entry(caller_id).or_default();
            if *count >= self.hardening.max_connections_per_identity {
                self.counters.over_limit.fetch_add(1, Ordering::Relaxed);
                return Err(Turned::Caller);
            }
            *count += 1;
            open.by_id.insert(id, connection.clone());
        }
        let registered = Registered { gate: self.clone(), connection };
        // A generation installed between the judgement and the registration did not find this connection.
        _ = self.judge_now(&registered.connection, &self.current.load());
        Ok(registered)
    }

    fn judge_now(&self, connection: &Connection, generation: &Generation) -> Result<(), Refusal> {
        let now = self.clock.now();
        if connection.generation() != generation.number() {
            self.judge_again(connection, generation)?;
        }
        if connection.order() == Order::Kill {
            return Err(Refusal::NotTrusted);
        }
        if now < connection.valid_until() {
            return Ok(());
        }
        // Its time is over, or its CA's list has not been renewed; which of the two, a new judgement tells.
        let verdict = generation.judge_again(&connection.grounds(), connection.caller().id());
        let refusal = match verdict {
            Some(Err(JudgeError::ListOverdue)) => Refusal::NotTrusted,
            _ => Refusal::Expired,
        };
        self.order(connection, Order::Drain);
        Err(refusal)
    }

    fn judge_again(&self, connection: &Connection, generation: &Generation) -> Result<(), Refusal> {
        let (number, before) = (generation.number(), connection.grounds());
        let by_grounds = generation.judge_again(&before, connection.caller().id());
        let verdict = match by_grounds {
            Some(verdict) => verdict.map(|valid_until| (valid_until, None)),
            None => generation.judge_fully(connection.chain()).map(|judged| (judged.valid_until, Some(judged.grounds))),
        };
        match verdict {
            Ok((valid_until, grounds)) => {
                // Who drains stays as it was: its CA may have come back, its GOAWAY can't.
                connection.stamp(number, valid_until, grounds.unwrap_or_else(|| before.with_removed(false)));
                Ok(())
            }
            Err(JudgeError::Chain(ChainError::Expired)) => {
                self.order(connection, Order::Drain);
                Err(Refusal::Expired)
            }
            Err(JudgeError::ListOverdue) => {
                self.order(connection, Order::Drain);
                Err(Refusal::NotTrusted)
            }
            // A successor of the same name makes it another fault than an unknown issuer; what counts is the CA's key.
            // What this generation says holds for CAs that it removes; who drains for one removed before goes on so.
            Err(JudgeError::Chain(_))
                if !generation.has_ca(&before.ca) && (before.removed || generation.drains_removed()) =>
            {
                // Requests are taken for the grace only, however often this is judged.
                let grace = Duration::from_millis(self.hardening.connection_grace_ms);
                let until = connection.valid_until();
                let valid_until = if before.removed { until } else { until.min(self.clock.now().plus(grace)) };
                connection.stamp(number, valid_until, before.with_removed(true));
                self.order(connection, Order::Drain);
                Ok(())
            }
            Err(error) => {
                tracing::info!(
                    connection = connection.id(), caller = %connection.caller().id(), generation = number,
                    reason = %error, "connection is no longer trusted"
                );
                self.order(connection, Order::Kill);
                Err(Refusal::NotTrusted)
            }
        }
    }

    fn sockets(&self) -> MutexGuard<'_, Sockets> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seen_before(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("status", &self.status()).finish_non_exhaustive()
    }
}

/// The place an accepted socket takes.
pub(super) struct Place {
    gate: Arc<Gate>,
    network: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut sockets = self.gate.sockets();
        sockets.total = sockets.total.saturating_sub(1);
        release(&mut sockets.by_network, self.network);
    }
}

/// A registered connection.
pub(super) struct Registered {
    gate: Arc<Gate>,
    pub(super) connection: Arc<Connection>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.gate.seen_before().note(&self.connection, false);
        let mut open = self.gate.open();
        open.by_id.remove(&self.connection.id());
        release(&mut open.by_caller, self.connection.caller().id().clone());
    }
}

/// Counts one down and forgets the key at zero, so that the map holds only what is open.
fn release<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: K) {
    if let Entry::Occupied(mut count) = counts.entry(key) {
        if *count.get() <= 1 {
            count.remove();
        } else {
            *count.get_mut() -= 1;
        }
    }
}

/// What counts as one source: an IPv4 address, or the /64 an IPv6 host can choose its addresses from.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_is_an_ipv4_address_or_an_ipv6_network() {
        let network = |text: &str| network_of(text.parse().unwrap());
        assert_eq!(network("2001:db8:1:2:3::4"), network("2001:db8:1:2:ffff::9"));
        assert_ne!(network("2001:db8:1:2::1"), network("2001:db8:1:3::1"));
        assert_eq!(network("::ffff:10.1.2.3"), network("10.1.2.3"));
        assert_ne!(network("10.1.2.3"), network("10.1.2.4"));
    }
}
