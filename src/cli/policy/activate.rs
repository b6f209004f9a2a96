//! `oncegate policy activate`: puts a bundle in force through the admin socket.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use super::{GatewayArgs, refused};
use crate::cli::{Exit, Failure};
use crate::pb::admin::ActivatePolicyRequest;
use crate::policy::PolicyHash;

/// Puts a bundle in force, as a whole and at once. Takes the role `security_administrator`.
#[derive(Debug, Args)]
pub(super) struct ActivateArgs {
    /// The bundle's folder; the gateway must be able to read it.
    bundle: PathBuf,
    /// The hash that it must have: what was checked, compared and approved.
    #[arg(long, value_name = "HASH")]
    expect: PolicyHash,
    /// The security administrator's approval of that hash, as `policy approve` writes it.
    #[arg(long, value_name = "FILE", default_value = "approval.jws")]
    approval: PathBuf,
    #[command(flatten)]
    gateway: GatewayArgs,
}

pub(super) async fn run(args: ActivateArgs, out: &mut dyn Write) -> Result<Exit, Failure> {
    let read = |error| Failure::new(Exit::Config, format!("{}: {error}", args.approval.display()));
    let approval = std::fs::read_to_string(&args.approval).map_err(read)?;
    let bundle = args.bundle.canonicalize();
    let bundle = bundle.map_err(|error| Failure::new(Exit::Config, format!("{}: {error}", args.bundle.display())))?;
    let bundle = bundle.to_str().ok_or_else(|| Failure::new(Exit::Config, "the bundle's path is not UTF-8"))?.into();
    let request = ActivatePolicyRequest { bundle, expect: args.expect.to_string(), approval };
    let done = args.gateway.client().await?.activate_policy(request).await.map_err(refused)?.into_inner();
    writeln!(out, "generation {} serves: {}", done.generation, done.hash)?;
    Ok(Exit::Ok)
}
