//! Certificates: who may connect, how connections are served, and how the gateway proves itself to departments.
//!
//! ```text
//! TCP ─► caps ─► TLS 1.3 handshake: chain, CA ─► department, SPIFFE ID ─► ALPN h2 ─► registered Connection
//!     ─► HTTP/2 ─► per request: Gate::admit ─► service, or the evidence of refusal to it
//! ```
//!
//! - [`Generation`] is one immutable, validated set of trust material; a rotation installs the next one.
//! - [`Gate`] holds the generation in force and every open connection, and judges a connection again when the
//!   generation changed: it goes on, is drained (GOAWAY) or is killed.
//! - [`serve`] is the accept loop, with every limit of [`HardeningConfig`].
//! - [`upstream`] makes channels to servers that must be who they are expected to be.

mod config;
mod connection;
mod gate;
mod gathered;
mod generation;
mod guard;
mod material;
mod serve;
mod trust;
pub mod upstream;

pub use config::{ClientCaConfig, HardeningConfig, TlsConfig};
pub use connection::{Connection, Order};
pub use gate::{Gate, GateStatus, NotNewer, Refusal, RefusedRequest, Swept};
pub use generation::Generation;
pub use serve::serve;
pub use trust::{ChainError, JudgeError};
pub use upstream::UpstreamConfig;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
