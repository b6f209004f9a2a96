//! `oncegate serve`: one gateway until SIGTERM or SIGINT.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{Exit, Failure};
use crate::app::{App, Ended};
use crate::clock::Clock;
use crate::config::Config;
use crate::telemetry;

/// Runs a gateway.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// Serves until it is told to stop. A second signal does not hasten it: the grace bounds the drain.
pub(super) async fn run(args: ServeArgs, out: &mut dyn Write) -> Result<Exit, Failure> {
    let config = Config::load(&args.config)?;
    telemetry::init(&config.telemetry).map_err(|error| Failure::new(Exit::Config, error))?;
    let app = App::build(config, Clock::system()).await?;
    let stop = stop_on_signal()?;
    writeln!(out, "gateway  https://{}", app.address()?)?;
    writeln!(out, "observe  http://{}", app.observe_address()?)?;
    out.flush()?;
    match app.run(stop).await? {
        Ended::Drained => Ok(Exit::Ok),
        Ended::Cut(connections) => {
            tracing::warn!(connections, "the grace passed before all calls had ended");
            Ok(Exit::Cut)
        }
    }
}

/// A token that SIGTERM or SIGINT cancels.
pub(super) fn stop_on_signal() -> std::io::Result<CancellationToken> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = CancellationToken::new();
    let told = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        told.cancel();
    });
    Ok(stop)
}
