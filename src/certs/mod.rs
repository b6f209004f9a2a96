//! Certificates: who may connect, how connections are served, and how the gateway proves itself to departments.
//!
//! ```text
//! TCP ─► caps ─► TLS 1.3 handshake: chain, CA ─► department, SPIFFE ID ─► ALPN h2 ─► registered Connection
//!     ─► HTTP/2 ─► per request: Gate::admit ─► service, or the evidence of refusal to it
//! ```
//!
//! - [`Generation`] is one immutable, validated set of trust material; a rotation installs the next one.
//! - [`Store`] has the generations on disk, [`Custodian`] carries out what operators do to them, and [`Keeper`] follows
//!   which one is in force.
//! - [`Gate`] holds the generation in force and every open connection, and judges a connection again when the
//!   generation changed: it goes on, is drained (GOAWAY) or is killed.
//! - [`serve`] is the accept loop, with every limit of [`HardeningConfig`].
//! - [`upstream`] makes channels to servers that must be who they are expected to be.

mod acts;
mod callers;
mod chains;
mod config;
mod connection;
mod contents;
mod crl;
mod gate;
mod gathered;
mod generation;
mod guard;
mod keeper;
mod manifest;
mod material;
mod refusals;
mod rehearsal;
mod request;
mod seen;
mod serve;
mod staging;
mod store;
pub mod upstream;

pub use acts::{Act, ActError, BlockWho, Custodian, Done};
pub use callers::JudgeError;
pub use chains::ChainError;
pub use config::{HardeningConfig, TrustConfig};
pub use connection::{Connection, Order};
pub use contents::Contents;
pub use gate::{Gate, GateStatus, NotNewer, Refusal, RefusedRequest, Swept};
pub use generation::{Against, Expires, Expiry, Generation, Terms};
pub use keeper::{Followed, Keeper, Opened, Refused};
pub use manifest::{Blocked, ClientCa, Made, Manifest, Removed};
pub use request::Names;
pub use seen::{Seen, Sighting};
pub use serve::serve;
pub use staging::Staging;
pub use store::{Place, Store, StoreError};
pub use upstream::UpstreamConfig;

#[cfg(test)]
mod candidates;
#[cfg(test)]
mod load;
#[cfg(test)]
mod rotation;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
