//! `oncegate witness` and `oncegate mirror`: one witness until SIGTERM or SIGINT.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::serve::stop_on_signal;
use super::{Exit, Failure};
use crate::clock::Clock;
use crate::telemetry::{self, TelemetryConfig};
use crate::witness::{self, Witness, WitnessFile};

/// Runs a witness.
#[derive(Debug, Args)]
pub struct WitnessArgs {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// Serves until it is told to stop.
pub(super) async fn run(args: &WitnessArgs, mirror: bool, out: &mut dyn Write) -> Result<Exit, Failure> {
    let config = WitnessFile::load(&args.config).map_err(|error| Failure::new(Exit::Config, error))?;
    telemetry::init(&TelemetryConfig::default()).map_err(|error| Failure::new(Exit::Config, error))?;
    let clock = Clock::system();
    let witness = Arc::new(Witness::open(&config, mirror, clock.clone())?);
    let stop = stop_on_signal()?;
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    let (told, address) = tokio::sync::oneshot::channel();
    let (serving, key) = (witness.clone(), witness.verifier().to_string());
    let bound = move |address| {
        // Nobody listens only if this command ended.
        let _ = told.send(address);
    };
    let served =
        tokio::spawn(async move { witness::serve(serving, &config, clock, bound, stop.cancelled_owned()).await });
    if let Ok(address) = address.await {
        writeln!(out, "witness  {scheme}://{address}")?;
        writeln!(out, "key      {key}")?;
        for origin in witness.origins() {
            writeln!(out, "log      {origin}")?;
        }
        out.flush()?;
    }
    match served.await? {
        Ok(()) => Ok(Exit::Ok),
        Err(error) => Err(Failure::new(Exit::Config, error)),
    }
}
