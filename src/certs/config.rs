//! What operators may set about TLS and about the listener's limits.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

use crate::catalog::Faults;

/// Where the trust material is, and how strict the gateway is about revocation.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustConfig {
    /// Directory with `generations/` and the link `current`, as `oncegate trust init` makes it. The gateway follows the
    /// link four times a second.
    pub dir: PathBuf,
    /// Whether every CA of callers must come with its revocation list. Then callers' certificates must be issued by that
    /// CA itself, for nobody tells what an intermediate has revoked. Default true.
    #[serde(default = "yes")]
    pub require_crls: bool,
    /// How long a revocation list counts beyond its `nextUpdate`, in seconds, at most 30 days. It alarms from the first
    /// second; when this too has passed, callers of its CA are refused. Default 86400.
    #[serde(default = "default_crl_grace_s")]
    pub crl_grace_s: u64,
}

const fn yes() -> bool {
    true
}

const fn default_crl_grace_s() -> u64 {
    86_400
}

/// The longest `crl_grace_s`.
const LONGEST_CRL_GRACE_S: u64 = 30 * 86_400;

impl TrustConfig {
    /// With the defaults.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), require_crls: yes(), crl_grace_s: default_crl_grace_s() }
    }

    /// Makes relative paths relative to `base`, the directory of the configuration file.
    pub fn rebase(&mut self, base: &Path) {
        self.dir = base.join(&self.dir);
    }

    /// Adds a fault, placed at `file`, for every option out of its bounds.
    pub fn check(&self, file: &Path, faults: &mut Faults) {
        if self.crl_grace_s > LONGEST_CRL_GRACE_S {
            faults.of(file, format!("crl_grace_s is {}; it must be at most {LONGEST_CRL_GRACE_S}", self.crl_grace_s));
        }
    }
}

/// Limits of the listener. Every limit is on; the defaults suit a county of some hundred systems.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HardeningConfig {
    /// Connections open at once, handshakes included. Default 4096; an idle one costs about 30 KB.
    pub max_connections: usize,
    /// Connections open at once from one IPv4 address or one IPv6 /64 network. Default 128. Set it to `max_connections`
    /// behind a balancer that hides the callers' addresses.
    pub max_connections_per_address: usize,
    /// Connections open at once of one caller (SPIFFE ID). Default 64.
    pub max_connections_per_identity: usize,
    /// TLS handshakes under way at once; more wait within their timeout. Default 256.
    pub max_handshakes: usize,
    /// Longest TLS handshake, waiting for a free place included, in milliseconds. Default 5000.
    pub handshake_timeout_ms: u64,
    /// Longest time from the end of the handshake to the whole HTTP/2 preface, in milliseconds. Default 5000.
    pub preface_timeout_ms: u64,
    /// A connection on which nothing arrives for so long is closed, in milliseconds. Default 90000; longer than
    /// `keep_alive_interval_ms` plus `keep_alive_timeout_ms`, so that a living idle peer is never closed.
    pub read_idle_timeout_ms: u64,
    /// Time between HTTP/2 PINGs on a quiet connection, in milliseconds. Default 30000.
    pub keep_alive_interval_ms: u64,
    /// Longest wait for the answer to a PING, in milliseconds. Default 20000.
    pub keep_alive_timeout_ms: u64,
    /// Age at which a connection gets GOAWAY, in seconds, ±10 % so that callers do not return all at once.
    /// Default 3600.
    pub connection_age_s: u64,
    /// Time from GOAWAY to the hard end of a connection, in milliseconds. Default 30000.
    pub connection_grace_ms: u64,
    /// Time from the order to stop until connections still busy are cut, in milliseconds. Default 30000.
    pub shutdown_grace_ms: u64,
    /// Requests at once on one connection. Default 100.
    pub max_concurrent_streams: u32,
    /// Streams this side resets because of the peer's errors before the connection is closed (CVE-2025-8671).
    /// Default 128.
    pub max_local_error_reset_streams: usize,
    /// Streams the peer reset before they were taken up, before the connection is closed (CVE-2023-44487). Default 20.
    pub max_pending_accept_reset_streams: usize,
    /// Size of a request's decoded headers in bytes, tokens included. Default 16384.
    pub max_header_list_bytes: u32,
    /// HTTP/2 receive window of one request in bytes. Default 65535.
    pub initial_stream_window_bytes: u32,
    /// HTTP/2 receive window of a connection in bytes. Default 1048576.
    pub initial_connection_window_bytes: u32,
    /// Answer bytes held for one request that the peer does not read. Default 131072.
    pub max_send_buf_bytes: usize,
    /// Largest HTTP/2 frame taken in bytes, 16384 to 16777215. Default 16384.
    pub max_frame_bytes: u32,
    /// Quiet time before TCP probes the peer, and between probes, in seconds. Default 60.
    pub tcp_keepalive_s: u64,
    /// Pause after `accept` failed, for example out of file descriptors, in milliseconds. Default 100.
    pub accept_pause_ms: u64,
}

impl Default for HardeningConfig {
    fn default() -> Self {
        Self {
            max_connections: 4096,
            max_connections_per_address: 128,
            max_connections_per_identity: 64,
            max_handshakes: 256,
            handshake_timeout_ms: 5_000,
            preface_timeout_ms: 5_000,
            read_idle_timeout_ms: 90_000,
            keep_alive_interval_ms: 30_000,
            keep_alive_timeout_ms: 20_000,
            connection_age_s: 3_600,
            connection_grace_ms: 30_000,
            shutdown_grace_ms: 30_000,
            max_concurrent_streams: 100,
            max_local_error_reset_streams: 128,
            max_pending_accept_reset_streams: 20,
            max_header_list_bytes: 16_384,
            initial_stream_window_bytes: 65_535,
            initial_connection_window_bytes: 1 << 20,
            max_send_buf_bytes: 128 << 10,
            max_frame_bytes: 16_384,
            tcp_keepalive_s: 60,
            accept_pause_ms: 100,
        }
    }
}

/// No option measured in time may exceed a day; beyond that it would no longer be a limit.
const LONGEST: Duration = Duration::from_hours(24);
/// RFC 9113 §6.9.1: the largest flow-control window.
const LARGEST_WINDOW: u32 = (1 << 31) - 1;

impl HardeningConfig {
    /// Adds a fault, placed at `file`, for every option out of its bounds.
    pub fn check(&self, file: &Path, faults: &mut Faults) {
        let counts = [
            ("max_connections", self.max_connections, 1, 1_000_000),
            ("max_connections_per_address", self.max_connections_per_address, 1, 1_000_000),
            ("max_connections_per_identity", self.max_connections_per_identity, 1, 1_000_000),
            ("max_handshakes", self.max_handshakes, 1, 100_000),
            ("max_concurrent_streams", self.max_concurrent_streams as usize, 1, 10_000),
            ("max_local_error_reset_streams", self.max_local_error_reset_streams, 1, 10_000),
            ("max_pending_accept_reset_streams", self.max_pending_accept_reset_streams, 1, 10_000),
            ("max_header_list_bytes", self.max_header_list_bytes as usize, 1_024, 1 << 20),
            ("initial_stream_window_bytes", self.initial_stream_window_bytes as usize, 1_024, LARGEST_WINDOW as usize),
            (
                "initial_connection_window_bytes",
                self.initial_connection_window_bytes as usize,
                65_535,
                LARGEST_WINDOW as usize,
            ),
            ("max_send_buf_bytes", self.max_send_buf_bytes, 1_024, 64 << 20),
            ("max_frame_bytes", self.max_frame_bytes as usize, 16_384, (1 << 24) - 1),
        ];
        for (name, value, least, most) in counts {
            if !(least..=most).contains(&value) {
                faults.of(file, format!("[hardening] {name} is {value}; it must be {least} to {most}"));
            }
        }
        let times = [
            ("handshake_timeout_ms", Duration::from_millis(self.handshake_timeout_ms)),
            ("preface_timeout_ms", Duration::from_millis(self.preface_timeout_ms)),
            ("read_idle_timeout_ms", Duration::from_millis(self.read_idle_timeout_ms)),
            ("keep_alive_interval_ms", Duration::from_millis(self.keep_alive_interval_ms)),
            ("keep_alive_timeout_ms", Duration::from_millis(self.keep_alive_timeout_ms)),
            ("connection_age_s", Duration::from_secs(self.connection_age_s)),
            ("connection_grace_ms", Duration::from_millis(self.connection_grace_ms)),
            ("shutdown_grace_ms", Duration::from_millis(self.shutdown_grace_ms)),
            ("tcp_keepalive_s", Duration::from_secs(self.tcp_keepalive_s)),
            ("accept_pause_ms", Duration::from_millis(self.accept_pause_ms)),
        ];
        for (name, value) in times {
            if value.is_zero() || value > LONGEST {
                faults.of(file, format!("[hardening] {name} must be more than zero and at most a day"));
            }
        }
        if self.read_idle_timeout_ms <= self.keep_alive_interval_ms.saturating_add(self.keep_alive_timeout_ms) {
            faults.of(
                file,
                "[hardening] read_idle_timeout_ms must be more than keep_alive_interval_ms plus keep_alive_timeout_ms",
            );
        }
    }
}

/// Deserializes an identifier from its text.
pub(super) fn parsed<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: std::fmt::Display>,
{
    String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_within_their_bounds() {
        let mut faults = Faults::default();
        HardeningConfig::default().check(Path::new("gateway.toml"), &mut faults);
        assert_eq!(faults, Faults::default());
    }

    #[test]
    fn every_option_out_of_bounds_is_named_at_once() {
        let config: HardeningConfig =
            toml::from_str("max_frame_bytes = 1\nhandshake_timeout_ms = 0\nread_idle_timeout_ms = 50000").unwrap();
        let mut faults = Faults::default();
        config.check(Path::new("gateway.toml"), &mut faults);
        let text = faults.to_string();
        for option in ["max_frame_bytes", "handshake_timeout_ms", "read_idle_timeout_ms must be more"] {
            assert!(text.contains(option), "{text}");
        }
        assert_eq!(faults.0.len(), 3);
    }

    #[test]
    fn unknown_options_are_refused_and_paths_rebased() {
        assert!(toml::from_str::<HardeningConfig>("max_conections = 1").is_err());
        assert!(toml::from_str::<TrustConfig>("dir = \"trust\"\ncrl_grace = 1").is_err());
        let mut good: TrustConfig = toml::from_str("dir = \"trust\"\ncrl_grace_s = 2592001").unwrap();
        good.rebase(Path::new("/etc/oncegate"));
        assert_eq!((good.dir.as_path(), good.require_crls), (Path::new("/etc/oncegate/trust"), true));
        let mut faults = Faults::default();
        good.check(Path::new("gateway.toml"), &mut faults);
        assert!(faults.to_string().contains("crl_grace_s is 2592001"), "{faults}");
    }
}
