//! `oncegate policy`: what a policy says, offline.

mod explain;
mod test;

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::{Exit, Failure};
use crate::config::Config;
use crate::policy::{Policy, PolicyConfig};

/// Explains and tests a policy.
#[derive(Debug, Args)]
pub struct PolicyArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Tells what would be released, if the facts were as stated.
    Explain(explain::ExplainArgs),
    /// Tries what the departments expect of the policy.
    Test(test::TestArgs),
}

pub(super) fn run(args: &PolicyArgs, out: &mut dyn Write) -> Result<Exit, Failure> {
    match &args.what {
        What::Explain(args) => explain::run(args, out),
        What::Test(args) => test::run(args, out),
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
