//! What is measured of a process and of calls.

use std::time::Duration;

/// One measurement.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    /// CPU of the server, in microseconds a call.
    pub(crate) cpu_us: f64,
    /// Calls answered in a second.
    pub(crate) per_second: f64,
    /// Median latency.
    pub(crate) p50_ms: f64,
    /// Latency that one call of a hundred exceeds.
    pub(crate) p99_ms: f64,
    /// Calls that were not answered.
    pub(crate) failed: usize,
}

/// How an open loop is paced.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paced {
    /// Calls a second.
    pub(crate) rate: u64,
    /// For so long.
    pub(crate) time: Duration,
}

impl Sample {
    /// Of latencies in microseconds.
    pub(crate) fn new(mut latencies: Vec<u32>, failed: usize, cpu: Duration, took: Duration) -> Self {
        latencies.sort_unstable();
        let at = |share: f64| {
            let place = (latencies.len() as f64 * share) as usize;
            latencies.get(place.min(latencies.len().saturating_sub(1))).copied().unwrap_or_default()
        };
        let calls = (latencies.len() + failed).max(1) as f64;
        Self {
            cpu_us: cpu.as_secs_f64() * 1e6 / calls,
            per_second: calls / took.as_secs_f64(),
            p50_ms: f64::from(at(0.50)) / 1e3,
            p99_ms: f64::from(at(0.99)) / 1e3,
            failed,
        }
    }
}

/// The middle one.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// User and system time of a process so far; the kernel counts in hundredths of a second.
pub(crate) fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the server runs");
    // The name may hold spaces; it ends at the last parenthesis. utime and stime are fields 14 and 15 (proc(5)).
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

/// Resident memory of a process, in KiB.
pub(crate) fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the server runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").trim().parse().unwrap_or_default()
}
