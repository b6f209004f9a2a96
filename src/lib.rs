//! oncegate (免证网关): a gateway that releases departments' records field by field, for one matter at a time, and
//! records every look before the answer leaves. `docs/architecture.md` draws the path of a request.
//!
//! Rooms, lowest first; each imports only from rows above it (a test reads the imports):
//! 1. [`ids`], [`clock`], [`watched`], [`telemetry`], [`pb`]
//! 2. [`catalog`], [`identity`]
//! 3. [`limits`], [`cache`], [`audit`], [`certs`]
//! 4. [`policy`]
//! 5. [`connectors`]
//! 6. [`lookup`], the story of a request
//! 7. [`witness`], [`api`]
//! 8. [`config`]
//! 9. [`app`]
//! 10. [`cli`]

pub mod api;
pub mod app;
pub mod audit;
pub mod cache;
pub mod catalog;
pub mod certs;
pub mod cli;
pub mod clock;
pub mod config;
pub mod connectors;
pub mod identity;
pub mod ids;
pub mod limits;
pub mod lookup;
pub mod pb;
pub mod policy;
pub mod telemetry;
pub mod watched;
pub mod witness;
