//! `oncegate policy rollback`: puts an older generation in force again.

use std::io::Write;

use clap::Args;

use super::{GatewayArgs, refused};
use crate::cli::{Exit, Failure};
use crate::pb::admin::RollBackPolicyRequest;

/// Puts an older generation in force again, as a new one. Takes the role `security_administrator`.
#[derive(Debug, Args)]
pub(super) struct RollbackArgs {
    /// Its number; the one before that which serves by default.
    generation: Option<u64>,
    #[command(flatten)]
    gateway: GatewayArgs,
}

pub(super) async fn run(args: RollbackArgs, out: &mut dyn Write) -> Result<Exit, Failure> {
    let request = RollBackPolicyRequest { generation: args.generation.unwrap_or_default() };
    let done = args.gateway.client().await?.roll_back_policy(request).await.map_err(refused)?.into_inner();
    writeln!(out, "generation {} serves, a copy of {}: {}", done.generation, done.rollback_of, done.hash)?;
    Ok(Exit::Ok)
}
