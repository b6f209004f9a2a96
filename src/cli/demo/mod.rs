//! `oncegate demo`: a whole county on one machine. Everything shown comes out of the running system: real certificates,
//! department sources as gRPC servers over mutual TLS, the gateway of the reference deployment, a platform that calls it,
//! and an auditor who reads its log. Only the people do not exist.

mod account;
mod cast;
mod exact;
mod generate;
mod names;
pub mod numbers;
mod play;
pub mod population;
mod record;
mod refusals;
pub mod registers;
pub mod registry;
mod scene;
pub mod source;
mod verify;

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use tokio::time::Instant;

use super::table::{Look, Progress, Tone};
use super::{Exit, Failure};
use crate::catalog::{Catalog, Matter};
use crate::clock::Clock;
use crate::config::Config;
use account::Ledger;
use play::Detail;
use scene::Scene;

/// Shows a whole county at work on this machine.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Leaves everything running until Ctrl-C.
    #[arg(long)]
    keep: bool,
    /// Plays this matter, given once or several times, instead of four.
    #[arg(long, value_name = "CODE", conflicts_with = "all")]
    matter: Vec<String>,
    /// Plays every matter, one line a certificate.
    #[arg(long)]
    all: bool,
    /// The deployment to show.
    #[arg(long, value_name = "FILE", default_value = "deploy/heshan/gateway.toml")]
    config: PathBuf,
    /// Where the development PKI is, or will be made. The deployment's paths lead there.
    #[arg(long, value_name = "DIR", default_value = "certs-dev/out")]
    pki: PathBuf,
    /// Where the run's files go; an earlier run's are thrown away.
    #[arg(long, value_name = "DIR", default_value = "target/demo")]
    dir: PathBuf,
}

/// The people of the demo are the same in every run.
const SEED: u64 = 440_784;

pub(super) async fn run(args: DemoArgs, out: &mut dyn Write) -> Result<Exit, Failure> {
    let started = Instant::now();
    let look = Look::stdout();
    let mut progress = Progress::new(look);
    // Before anything is started, so that a misspelt matter costs nothing.
    let (matters, detail) = choice(&Catalog::load(&Config::load(&args.config)?.policy.bundle)?, &args)?;
    let scene = Scene::set(&args.config, &args.pki, &args.dir, Clock::system(), &mut progress, out).await?;
    progress.clear(out)?;
    scene.describe(out, look)?;

    let mut ledger = Ledger::default();
    let mut all = play::Materials::default();
    let mut grants = exact::Tally::default();
    for matter in &matters {
        let (materials, tally) = play::matter(&scene, matter, detail, &mut ledger, out, look).await?;
        all.add(materials);
        grants.add(tally);
    }
    heading(out, look, "Refusals", "拒绝")?;
    refusals::show(&scene, &mut ledger, out, look).await?;

    heading(out, look, "The access log, opened with the auditor's key", "访问记录")?;
    let accounted = ledger.check(&scene, out, look)?;
    writeln!(out)?;
    writeln!(
        out,
        "{} matters; {} of {} grants in force answered with exactly their fields; {} of {} that only compare told the truth \
         from a lie.",
        matters.len(),
        grants.exact,
        grants.open,
        grants.compared,
        grants.comparing
    )?;
    writeln!(
        out,
        "{} of {} materials need not be brought; {:.1} s in all.",
        all.avoided(),
        all.demanded(),
        started.elapsed().as_secs_f32()
    )?;
    scene.suggest(args.keep, out, look)?;
    out.flush()?;
    if args.keep {
        super::serve::stop_on_signal()?.cancelled().await;
    }
    scene.strike().await?;
    Ok(if accounted { Exit::Ok } else { Exit::Failed })
}

/// What is played, and how much of it is shown.
fn choice(catalog: &Catalog, args: &DemoArgs) -> Result<(Vec<Arc<Matter>>, Detail), Failure> {
    if args.all {
        return Ok((catalog.matters().cloned().collect(), Detail::Items));
    }
    let named: Vec<_> = args.matter.iter().map(String::as_str).collect();
    let codes = if named.is_empty() { play::MATTERS.as_slice() } else { &named };
    Ok((codes.iter().map(|code| scene::matter(catalog, code).cloned()).collect::<Result<_, _>>()?, Detail::Fields))
}

fn heading(out: &mut dyn Write, look: Look, english: &str, chinese: &str) -> std::io::Result<()> {
    writeln!(out)?;
    writeln!(out, "{}", look.paint(Tone::Heading, &format!("{english} · {chinese}")))
}
