//! Which systems have been seen since the start, under which CA: whoever still shows a certificate of a CA keeps it from
//! being removed.

use std::collections::BTreeMap;

use super::connection::Connection;
use crate::clock::Timestamp;
use crate::ids::SpiffeId;

/// More systems than a province has; beyond that those seen longest ago are forgotten.
const MOST: usize = 100_000;

/// Systems by SPIFFE ID and the key of the CA that proved them.
#[derive(Debug, Clone, Default)]
pub struct Seen(BTreeMap<(SpiffeId, [u8; 32]), Sighting>);

/// One system under one CA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sighting {
    /// Its last request, or the handshake if there was none.
    pub at: Timestamp,
    /// When the certificate it showed last ends.
    pub not_after: Timestamp,
    /// Connections open now.
    pub connections: usize,
}

impl Seen {
    /// Notes a connection, which is open or has just ended.
    pub(super) fn note(&mut self, connection: &Connection, open: bool) {
        let caller = connection.caller();
        let key = (caller.id().clone(), connection.ca());
        let seen = Sighting { at: connection.last_seen(), not_after: caller.not_after(), connections: 0 };
        let sighting = self.0.entry(key).or_insert(seen);
        if seen.at >= sighting.at {
            (sighting.at, sighting.not_after) = (seen.at, seen.not_after);
        }
        sighting.connections += usize::from(open);
        if self.0.len() > MOST {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let oldest = self.0.iter().min_by_key(|(_, sighting)| sighting.at).map(|(key, _)| key.clone());
        if let Some(oldest) = oldest {
            self.0.remove(&oldest);
        }
    }

    /// All of them, by system.
    pub fn iter(&self) -> impl Iterator<Item = (&SpiffeId, &[u8; 32], Sighting)> {
        self.0.iter().map(|((id, ca), sighting)| (id, ca, *sighting))
    }

    /// Systems that still use the CA with this key: connected by it now, or last seen under no other CA.
    pub fn users_of(&self, ca: &[u8; 32]) -> Vec<(&SpiffeId, Sighting)> {
        let uses = |id: &SpiffeId, sighting: Sighting| {
            let under_all = self.0.range((id.clone(), [0; 32])..=(id.clone(), [0xff; 32]));
            let moved = under_all.into_iter().any(|((_, by), later)| by != ca && later.at > sighting.at);
            sighting.connections > 0 || !moved
        };
        let of_ca = self.iter().filter(|(_, by, _)| *by == ca);
        of_ca.filter(|(id, _, sighting)| uses(id, *sighting)).map(|(id, _, sighting)| (id, sighting)).collect()
    }
}
