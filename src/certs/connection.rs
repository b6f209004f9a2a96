//! One open connection: whose it is, what it was judged by, and the orders its task obeys.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

use crate::clock::Timestamp;
use crate::identity::Caller;

/// What the task of a connection is told. Orders only grow: a killed connection is never served again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Order {
    /// Serve requests.
    Serve,
    /// GOAWAY; requests under way finish within the grace, then the connection ends.
    Drain,
    /// End now; requests under way are reset.
    Kill,
}

/// An open connection of a caller. Every request carries it in its extensions, as `Arc<Connection>`.
pub struct Connection {
    id: u64,
    peer: SocketAddr,
    caller: Arc<Caller>,
    chain: Vec<CertificateDer<'static>>,
    opened_at: Timestamp,
    /// Number of the generation it was last judged under.
    generation: AtomicU64,
    /// Until when its chain proves the caller, in microseconds since 1970.
    valid_until: AtomicU64,
    /// Fingerprint of the trust it was last judged by.
    trust: Mutex<[u8; 32]>,
    order: watch::Sender<Order>,
}

impl Connection {
    pub(super) fn new(
        id: u64,
        peer: SocketAddr,
        chain: Vec<CertificateDer<'static>>,
        opened_at: Timestamp,
        caller: Caller,
        judged: &Judged,
    ) -> Self {
        Self {
            id,
            peer,
            caller: Arc::new(caller),
            chain,
            opened_at,
            generation: judged.generation.into(),
            valid_until: judged.valid_until.as_micros().into(),
            trust: Mutex::new(judged.trust),
            order: watch::Sender::new(Order::Serve),
        }
    }

    /// Its number, unique in this process.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The system at the other end.
    pub fn caller(&self) -> &Arc<Caller> {
        &self.caller
    }

    /// Where it comes from.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// When its handshake ended.
    pub fn opened_at(&self) -> Timestamp {
        self.opened_at
    }

    /// Number of the generation it was last judged under.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The last order given.
    pub fn order(&self) -> Order {
        *self.order.borrow()
    }

    /// Until when its chain, the CA included, proves the caller.
    pub fn valid_until(&self) -> Timestamp {
        Timestamp::from_micros(self.valid_until.load(Ordering::Acquire))
    }

    pub(super) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    pub(super) fn orders(&self) -> watch::Receiver<Order> {
        self.order.subscribe()
    }

    /// Gives an order; true if it is a new, stronger one.
    pub(super) fn command(&self, order: Order) -> bool {
        self.order.send_if_modified(|current| {
            let stronger = order > *current;
            if stronger {
                *current = order;
            }
            stronger
        })
    }

    pub(super) fn was_judged_by(&self, trust: &[u8; 32]) -> bool {
        *self.trust.lock().unwrap_or_else(PoisonError::into_inner) == *trust
    }

    pub(super) fn stamp(&self, judged: &Judged) {
        *self.trust.lock().unwrap_or_else(PoisonError::into_inner) = judged.trust;
        self.valid_until.store(judged.valid_until.as_micros(), Ordering::Release);
        self.generation.store(judged.generation, Ordering::Release);
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("id", &self.id)
            .field("peer", &self.peer)
            .field("caller", self.caller.id())
            .field("generation", &self.generation())
            .field("order", &self.order())
            .finish_non_exhaustive()
    }
}

/// What a favourable judgement leaves on a connection.
pub(super) struct Judged {
    pub(super) generation: u64,
    pub(super) valid_until: Timestamp,
    pub(super) trust: [u8; 32],
}
