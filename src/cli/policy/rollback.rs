//! `oncegate policy rollback`: puts an older generation in force again.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use super::{GatewayArgs, refused};
use crate::cli::{Exit, Failure};
use crate::pb::admin::RollBackPolicyRequest;

/// Puts an older generation in force again, as a new one. Takes the role `security_administrator`, and the approval that
/// was kept with the generation.
#[derive(Debug, Args)]
pub(super) struct RollbackArgs {
    /// Its number; the one before that which serves by default.
    generation: Option<u64>,
    /// An approval of its hash, as `policy approve` writes it: for a generation that a gateway began with, or whose
    /// approver is enrolled no more.
    #[arg(long, value_name = "FILE")]
    approval: Option<PathBuf>,
    #[command(flatten)]
    gateway: GatewayArgs,
}

pub(super) async fn run(args: RollbackArgs, out: &mut dyn Write) -> Result<Exit, Failure> {
    let approval = args.approval.map(|file| {
        let read = std::fs::read_to_string(&file);
        read.map_err(|error| Failure::new(Exit::Config, format!("{}: {error}", file.display())))
    });
    let generation = args.generation.unwrap_or_default();
    let request = RollBackPolicyRequest { generation, approval: approval.transpose()?.unwrap_or_default() };
    let done = args.gateway.client().await?.roll_back_policy(request).await.map_err(refused)?.into_inner();
    writeln!(out, "generation {} serves, a copy of {}: {}", done.generation, done.rollback_of, done.hash)?;
    Ok(Exit::Ok)
}
