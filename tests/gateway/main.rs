//! Whole gateways over real TCP and TLS, with scripted department sources: every refusal is reached over the wire, and
//! every call is looked up in the access log afterwards.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "test code"
)]

mod activation;
mod attacks;
mod collect;
mod conditions;
mod faces;
mod harness;
mod imports;
mod input;
mod limits;
mod once;
mod policy;
mod process;
mod proofs;
mod provider;
mod registry;
mod tokens;
mod trust;
mod types;
mod upstreams;
mod verify;
