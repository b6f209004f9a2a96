//! `oncegate policy`: policy bundles, from writing to serving. `docs/writing-grants.md` walks through it.

mod activate;
mod approve;
mod check;
mod diff;
mod explain;
mod history;
mod rollback;
mod sign;
mod test;
mod verify;

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use tonic::transport::Channel;
use tonic::{Code, Status};

pub(super) use sign::{key, providers, sign_grants, sign_manifest};

use super::status::socket_channel;
use super::{Exit, Failure};
use crate::clock::Clock;
use crate::config::Config;
use crate::pb::admin::policy_service_client::PolicyServiceClient;
use crate::policy::{Policy, PolicyConfig};

/// Checks, compares, signs, approves and activates policy bundles.
#[derive(Debug, Args)]
pub struct PolicyArgs {
    #[command(subcommand)]
    command: PolicyCommand,
}

#[derive(Debug, Subcommand)]
enum PolicyCommand {
    /// Tells every fault of a bundle, or its hash
    Check(check::CheckArgs),
    /// Tells who gains, loses or gets otherwise which field, when
    Diff(diff::DiffArgs),
    /// Tells what would be released, if the facts were as stated
    Explain(explain::ExplainArgs),
    /// Tries what the departments expect of the policy
    Test(test::TestArgs),
    /// Signs grant files or the manifest of a bundle
    Sign(sign::SignArgs),
    /// Checks every signature of a bundle
    Verify(verify::VerifyArgs),
    /// Signs a policy's hash, as a security administrator: it may be activated
    Approve(approve::ApproveArgs),
    /// Puts a bundle in force
    Activate(activate::ActivateArgs),
    /// Puts an older generation in force again
    Rollback(rollback::RollbackArgs),
    /// The generations on disk, who made them, and which one serves
    History(history::HistoryArgs),
}

pub(super) async fn run(args: PolicyArgs, out: &mut dyn Write) -> Result<Exit, Failure> {
    match args.command {
        PolicyCommand::Check(args) => check::run(&args, &Clock::system(), out),
        PolicyCommand::Diff(args) => diff::run(&args, out),
        PolicyCommand::Explain(args) => explain::run(&args, out),
        PolicyCommand::Test(args) => test::run(&args, out),
        PolicyCommand::Sign(args) => sign::run(&args, out),
        PolicyCommand::Verify(args) => verify::run(&args, out),
        PolicyCommand::Approve(args) => approve::run(&args, out),
        PolicyCommand::Activate(args) => activate::run(args, out).await,
        PolicyCommand::Rollback(args) => rollback::run(args, out).await,
        PolicyCommand::History(args) => history::run(args, out).await,
    }
}

/// Where the policy is that a command is about.
#[derive(Debug, Args)]
pub(super) struct Source {
    /// The bundle.
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    bundle: Option<PathBuf>,
    /// A configuration that names the bundle.
    #[arg(long, value_name = "FILE", default_value = "deploy/heshan/gateway.toml")]
    config: PathBuf,
}

impl Source {
    /// The policy, checked. No value is masked here, so the key of pseudonyms is not needed.
    fn open(&self) -> Result<Policy, Failure> {
        let of_config = |config: &Path| Config::load(config).map(|config| config.policy);
        let PolicyConfig { bundle, .. } = match &self.bundle {
            Some(bundle) => PolicyConfig { bundle: bundle.clone(), ..PolicyConfig::default() },
            None => of_config(&self.config)?,
        };
        Ok(Policy::open(&bundle)?)
    }
}

/// The gateway to talk to.
#[derive(Debug, Args)]
struct GatewayArgs {
    /// The gateway's configuration file, which names the admin socket.
    #[arg(long, value_name = "FILE", required_unless_present = "socket")]
    config: Option<PathBuf>,
    /// The admin socket itself.
    #[arg(long, value_name = "PATH", conflicts_with = "config")]
    socket: Option<PathBuf>,
}

impl GatewayArgs {
    async fn client(self) -> Result<PolicyServiceClient<Channel>, Failure> {
        let socket = match (self.socket, self.config) {
            (Some(socket), _) => Some(socket),
            (None, Some(file)) => Config::load(&file)?.admin.map(|admin| admin.socket),
            (None, None) => None,
        };
        let socket = socket.ok_or_else(|| Failure::new(Exit::Config, "the configuration has no admin socket"))?;
        // All faults of a bundle may be more than the usual header list takes.
        Ok(PolicyServiceClient::new(socket_channel(socket).await?))
    }
}

/// What the gateway said.
#[expect(clippy::needless_pass_by_value, reason = "the form of map_err")]
fn refused(status: Status) -> Failure {
    let exit = match status.code() {
        Code::PermissionDenied => Exit::Denied,
        Code::InvalidArgument => Exit::Invalid,
        Code::FailedPrecondition => Exit::Config,
        Code::Unavailable => Exit::Unavailable,
        _ => Exit::Failed,
    };
    Failure::new(exit, status.message())
}
