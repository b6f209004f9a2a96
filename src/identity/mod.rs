//! Who asks, and for what. A verified client certificate becomes a [`Caller`]; a verified token, bound to that
//! certificate, becomes a [`Purpose`]. Both have private fields and one constructor: later steps of a request ask for
//! them as evidence.

mod caller;
mod config;
mod json;
pub mod jws;
mod keys;
pub mod mint;
mod purpose;
#[cfg(test)]
pub(crate) mod testing;
mod token;
mod tokens;

pub use caller::{Caller, CallerError};
pub use config::{IdentityConfig, IssuerConfig, PlatformConfig};
pub use purpose::{Basis, Purpose, SubjectsKey, SubjectsKeyError};
pub use token::{MAX_TOKEN_BYTES, TokenError, TokenVerifier};
pub use tokens::Tokens;
