//! The other side of the access log: those who see to it that a log has one past only.
//!
//! ```text
//! gateway                                            witness, or mirror, of another body
//! ───────                                            ─────────────────────────────────
//! checkpoint ─► submit: old size, proof, checkpoint ─► add-checkpoint (C2SP tlog-witness):
//!                                                        signed by the log? grown out of what was cosigned before?
//! tiles, bundles ◄── serve_log ◄──────────────────────── mirror: pulls the entries, holds them against the root
//! cosignature in the checkpoint ◄─────────────────────── kept on disk, then cosigned
//! ```
//! A witness knows nothing of a log but its last checkpoint, and can't be talked into cosigning another past. A mirror
//! holds a copy, all ciphertext, and cosigns only what it holds: then truncation is not only seen but undone.

mod add;
mod client;
mod config;
mod http;
mod mirror;
mod serve_log;
mod submit;
#[cfg(test)]
mod tests;

pub use self::add::{OpenError, Refused, Witness};
pub use self::client::{Peer, PeerError};
pub use self::config::{WatchedLog, WitnessFile};
pub use self::http::serve;
pub use self::serve_log::LogService;
pub use self::submit::{Proofs, held, peers, submit};

/// Name of a log in a witness's state and paths: SHA-256 of its origin, hexadecimal.
fn log_id(origin: &str) -> String {
    hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, origin.as_bytes()))
}
