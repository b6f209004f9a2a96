//! What operators see: log lines on standard error, metrics and health over HTTP, trace ids that link systems.
//! None of it ever holds a citizen's value.

mod metrics;
mod observe;
mod trace;

use std::io::IsTerminal;

use serde::Deserialize;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

pub use metrics::{CacheResult, FieldDecision, LimitScope, LogKind, Metrics, TrustState};
pub use observe::serve;
pub use trace::{TraceContext, TraceError};

/// How log lines are written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetryConfig {
    /// `text` for people, `json` for collectors. Default `text`.
    pub format: LogFormat,
    /// Which lines are written, as `tracing_subscriber::EnvFilter` has it: `info`, or `warn,oncegate=debug`.
    /// Default `info`.
    pub filter: String,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self { format: LogFormat::Text, filter: "info".into() }
    }
}

/// Form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One line of text.
    Text,
    /// One JSON object.
    Json,
}

/// The filter can't be read.
#[derive(Debug, thiserror::Error)]
#[error("telemetry.filter: {0}")]
pub struct FilterError(String);

impl TelemetryConfig {
    /// # Errors
    /// If the filter can't be read.
    pub fn check(&self) -> Result<(), FilterError> {
        self.env_filter().map(drop)
    }

    fn env_filter(&self) -> Result<EnvFilter, FilterError> {
        EnvFilter::try_new(&self.filter).map_err(|error| FilterError(error.to_string()))
    }
}

/// Starts writing log lines to standard error. Only the first call of a process has an effect, so tests and tools may
/// call it as they like.
pub fn init(config: &TelemetryConfig) -> Result<(), FilterError> {
    let lines = tracing_subscriber::fmt().with_env_filter(config.env_filter()?).with_writer(std::io::stderr);
    // `try_init` fails only where a subscriber is installed already, which is what is promised.
    let _ = match config.format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).finish().try_init(),
        LogFormat::Json => lines.json().flatten_event(true).finish().try_init(),
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn init_may_be_called_again() {
        let config: TelemetryConfig = toml::from_str("format = 'json'\nfilter = 'off'").unwrap();
        init(&config).unwrap();
        init(&TelemetryConfig::default()).unwrap();
    }

    #[test]
    fn a_bad_filter_and_an_unknown_key_are_refused() {
        assert!(init(&TelemetryConfig { filter: "oncegate=loudly".into(), ..TelemetryConfig::default() }).is_err());
        assert!(toml::from_str::<TelemetryConfig>("level = 'info'").is_err());
    }
}
