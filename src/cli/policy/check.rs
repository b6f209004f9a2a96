//! `oncegate policy check`: every fault of a bundle, or its hash.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use crate::cli::check::faults_json;
use crate::cli::table::{Look, Tone};
use crate::cli::{Exit, Failure};
use crate::clock::Clock;
use crate::policy::Policy;

/// Checks a bundle; `verify` checks its signatures.
#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// The bundle's folder.
    bundle: PathBuf,
    /// Writes JSON.
    #[arg(long)]
    json: bool,
    /// Writes the hash alone.
    #[arg(long, conflicts_with = "json")]
    hash: bool,
}

pub(super) fn run(args: &CheckArgs, clock: &Clock, out: &mut dyn Write) -> Result<Exit, Failure> {
    let policy = match Policy::open(&args.bundle) {
        Ok(policy) => policy,
        Err(faults) if args.json => {
            writeln!(out, "{:#}", json!({ "ok": false, "faults": faults_json(&faults) }))?;
            return Ok(Exit::Config);
        }
        Err(faults) => return Err(faults.into()),
    };
    if args.hash {
        writeln!(out, "{}", policy.hash())?;
        return Ok(Exit::Ok);
    }
    let warnings = policy.warnings(clock.now().date_in_china());
    let (grants, facts) = (policy.grants().count(), policy.vocabulary().facts().len());
    let (types, matters) = (policy.catalog().certificate_types().count(), policy.catalog().matters().count());
    if args.json {
        let counts = json!({ "grants": grants, "facts": facts, "certificate_types": types, "matters": matters });
        let hash = policy.hash().to_string();
        writeln!(out, "{:#}", json!({ "ok": true, "hash": hash, "counts": counts, "warnings": warnings }))?;
        return Ok(Exit::Ok);
    }
    writeln!(out, "{grants} grants, {facts} facts, {types} certificate types, {matters} matters")?;
    let look = Look::stdout();
    for warning in &warnings {
        writeln!(out, "{}", look.paint(Tone::Caution, &format!("warning: {warning}")))?;
    }
    writeln!(out, "{} {}", look.paint(Tone::Good, "in order"), policy.hash())?;
    Ok(Exit::Ok)
}
