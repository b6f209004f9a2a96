//! One open connection: whose it is, what it was judged by, and the orders its task obeys.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

use super::callers::{Grounds, Judged};
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
    /// Until when the caller is believed, in microseconds since 1970.
    valid_until: AtomicU64,
    /// When it last made a request, in microseconds since 1970.
    last_seen: AtomicU64,
    /// What the last judgement rests on.
    grounds: Mutex<Grounds>,
    order: watch::Sender<Order>,
}

impl Connection {
    pub(super) fn new(
        id: u64,
        peer: SocketAddr,
        chain: Vec<CertificateDer<'static>>,
        opened_at: Timestamp,
        generation: u64,
        judged: Judged,
    ) -> Self {
        Self {
            id,
            peer,
            caller: Arc::new(judged.caller),
            chain,
            opened_at,
            generation: generation.into(),
            valid_until: judged.valid_until.as_micros().into(),
            last_seen: opened_at.as_micros().into(),
            grounds: Mutex::new(judged.grounds),
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

    /// Until when the caller is believed: its chain, the CA included, proves it, and the CA's revocation list is not
    /// overdue.
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

    /// When it last made a request, or was opened.
    pub fn last_seen(&self) -> Timestamp {
        Timestamp::from_micros(self.last_seen.load(Ordering::Relaxed))
    }

    pub(super) fn seen(&self, now: Timestamp) {
        self.last_seen.store(now.as_micros(), Ordering::Relaxed);
    }

    /// SHA-256 of the public key of the CA that it was last believed by.
    pub fn ca(&self) -> [u8; 32] {
        self.grounds.lock().unwrap_or_else(PoisonError::into_inner).ca
    }

    pub(super) fn grounds(&self) -> Grounds {
        self.grounds.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes a judgement by `generation`.
    pub(super) fn stamp(&self, generation: u64, valid_until: Timestamp, grounds: Grounds) {
        *self.grounds.lock().unwrap_or_else(PoisonError::into_inner) = grounds;
        self.valid_until.store(valid_until.as_micros(), Ordering::Release);
        self.generation.store(generation, Ordering::Release);
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
