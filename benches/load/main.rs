//! The gateway beside a bare tonic server, in interleaved rounds of one run: CPU per request, latency, and their ratios.
//!
//! ```text
//! cargo bench --bench load               512 calls in flight, then 1,000 calls a second
//! cargo bench --bench load -- --quick    the same for a second each: shows that it works, not how fast
//! cargo bench --bench load -- --idle     memory of 5,000 idle connections
//! ```
//!
//! Both servers run on one core, everything else on another: this program, which makes the calls and is the department's
//! source. CPU is the server process's own (`/proc/<pid>/stat`), so what a noisy machine takes from it does not count.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::expect_used, clippy::panic, reason = "a bench may fail")]
#![allow(clippy::indexing_slicing, clippy::exit, missing_docs, reason = "a program, not an interface")]
#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "figures")]

mod bare;
mod calls;
mod measure;
mod site;

use std::time::Duration;

use clap::Parser;

use calls::Callers;
use measure::{Paced, Sample, median};
use site::Site;

/// How to measure.
#[derive(Debug, Parser)]
#[allow(clippy::struct_excessive_bools, reason = "flags of a command line")]
struct Args {
    /// Seconds of each closed-loop and each paced measurement.
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Interleaved rounds.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Calls a second in the paced part.
    #[arg(long, default_value_t = 1000)]
    rate: u64,
    /// One round of a second each.
    #[arg(long)]
    quick: bool,
    /// Measures the memory of idle connections instead.
    #[arg(long)]
    idle: bool,
    /// How many of them.
    #[arg(long, default_value_t = 5000)]
    connections: usize,
    /// Only this server: `bare`, `cached` or `upstream`; for profiling it.
    #[arg(long)]
    only: Option<String>,
    /// Runs the bare server; the bench starts itself so.
    #[arg(long, hide = true)]
    bare: Option<std::path::PathBuf>,
    /// Runs the calls; the bench starts itself so, on the other core.
    #[arg(long, hide = true)]
    driver: bool,
    /// What cargo passes.
    #[arg(long, hide = true)]
    bench: bool,
}

/// The core of the servers, and that of everything else.
const CORES: [&str; 2] = ["0", "1"];

fn main() {
    let args = Args::parse();
    if let Some(dir) = &args.bare {
        return tokio_runtime().block_on(bare::serve(dir));
    }
    if !args.driver {
        let me = std::env::current_exe().unwrap();
        let status = std::process::Command::new("taskset")
            .args(["-c", CORES[1]])
            .arg(me)
            .arg("--driver")
            .args(std::env::args().skip(1))
            .status()
            .expect("taskset (util-linux)");
        std::process::exit(status.code().unwrap_or(1));
    }
    tokio_runtime().block_on(async { if args.idle { idle(&args).await } else { drive(&args).await } });
}

/// One worker: each side has one core.
fn tokio_runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// What is compared.
struct Case {
    name: &'static str,
    callers: Callers,
    pid: u32,
}

async fn drive(args: &Args) {
    let site = Site::start().await;
    let (seconds, rounds) = if args.quick { (1, 1) } else { (args.seconds, args.rounds) };
    let time = Duration::from_secs(seconds);
    let mut cases = vec![
        Case { name: "bare", callers: Callers::new(&site, site.bare_address(), false), pid: site.bare_pid() },
        Case { name: "cached", callers: Callers::new(&site, site.address(), false), pid: site.pid() },
        Case { name: "upstream", callers: Callers::new(&site, site.address(), true), pid: site.pid() },
    ];
    cases.retain(|case| args.only.as_deref().is_none_or(|only| only == case.name));
    println!(
        "request {} bytes, token {} bytes, answer {} bytes; {} connections of {} streams; {rounds} rounds of {seconds} s",
        Site::request_bytes(),
        site.token().len(),
        site.answer_bytes(),
        calls::CONNECTIONS,
        calls::STREAMS,
    );
    for case in &cases {
        case.callers.closed(case.pid, Duration::from_secs(1)).await;
    }
    println!("\nclosed loop, {} in flight", calls::CONNECTIONS * calls::STREAMS);
    let mut samples: Vec<Vec<Sample>> = cases.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for (case, samples) in cases.iter().zip(&mut samples) {
            samples.push(case.callers.closed(case.pid, time).await);
        }
    }
    report(&cases, &samples);
    println!("\nopen loop, {} calls a second, latency from the moment each was due", args.rate);
    let mut samples: Vec<Vec<Sample>> = cases.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for (case, samples) in cases.iter().zip(&mut samples) {
            samples.push(case.callers.paced(case.pid, Paced { rate: args.rate, time }).await);
        }
    }
    report(&cases, &samples);
    drop(cases);
    site.stop();
}

fn report(cases: &[Case], samples: &[Vec<Sample>]) {
    println!("            CPU µs   ÷ bare    calls/s   p50 ms   p99 ms   failed");
    let cpu = |samples: &[Sample]| median(samples.iter().map(|sample| sample.cpu_us));
    let first = samples.first().map_or(0.0, |samples| cpu(samples));
    for (case, samples) in cases.iter().zip(samples) {
        println!(
            "{:<10} {:>7.1} {:>8.2} {:>10.0} {:>8.2} {:>8.2} {:>8}",
            case.name,
            cpu(samples),
            cpu(samples) / first,
            median(samples.iter().map(|sample| sample.per_second)),
            median(samples.iter().map(|sample| sample.p50_ms)),
            median(samples.iter().map(|sample| sample.p99_ms)),
            samples.iter().map(|sample| sample.failed).sum::<usize>(),
        );
    }
}

async fn idle(args: &Args) {
    let site = Site::start().await;
    let before = measure::resident_kib(site.pid());
    let open = calls::idle_connections(&site, args.connections).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = measure::resident_kib(site.pid());
    println!(
        "{} idle connections: {:.1} MiB resident, {:.1} KiB a connection ({:.1} MiB before)",
        open.len(),
        after as f64 / 1024.0,
        (after - before) as f64 / open.len() as f64,
        before as f64 / 1024.0
    );
    drop(open);
    site.stop();
}
