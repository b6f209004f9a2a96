//! `oncegate audit prune` and `allow-prune`.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use super::{policy, verifier};
use crate::audit::checkpoint::Checkpoint;
use crate::audit::note::SigningKey;
use crate::audit::prune::{self, authorize};
use crate::audit::verify::{Trust, verify};
use crate::cli::table::Bar;
use crate::cli::{Exit, Failure};
use crate::clock::Clock;

#[derive(Debug, Args)]
pub(super) struct PruneArgs {
    /// Directory of the log
    #[arg(long, value_name = "DIR")]
    log: PathBuf,
    /// Whom to believe (C2SP tlog-policy): a log that can't be proved is not pruned
    #[arg(long, value_name = "FILE")]
    policy: PathBuf,
    /// Key (vkey) of an auditor who may allow it
    #[arg(long, value_name = "FILE", required = true)]
    auditor: Vec<PathBuf>,
    /// Deletes; without it, only says what would go
    #[arg(long)]
    delete: bool,
}

#[derive(Debug, Args)]
pub(super) struct AllowArgs {
    /// Name of the log
    #[arg(long, value_name = "NAME")]
    origin: String,
    /// Entries below this index may go
    #[arg(long, value_name = "INDEX")]
    below: u64,
    /// The auditor's signing key
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
}

pub(super) fn prune(args: &PruneArgs, out: &mut dyn Write) -> Result<Exit, Failure> {
    let auditors = args.auditor.iter().map(|file| verifier(file)).collect::<Result<Vec<_>, _>>()?;
    let trust = Trust { policy: Some(policy(&args.policy)?), auditors: auditors.clone(), origin: None };
    let mut bar = Bar::new("MB");
    let report = verify(&args.log, &trust, Vec::new(), &mut |read, of| bar.show(read >> 20, of >> 20))?;
    drop(bar);
    if let Some(fault) = report.faults.first() {
        return Err(Failure::new(Exit::Failed, format!("the log can't be proved, so nothing is deleted: {fault}")));
    }
    let pruned = prune::prune(&args.log, &auditors, report.signed, Clock::system().now(), args.delete)?;
    let what = if args.delete { "deleted" } else { "would be deleted (--delete does it)" };
    writeln!(out, "{} segments, {} MB {what}", pruned.segments, pruned.bytes >> 20)?;
    writeln!(out, "the log then begins at entry {}; its hashes stay", pruned.first)?;
    Ok(Exit::Ok)
}

/// The note that the gateway is given (`audit.prune_authorization`), which makes an entry of it.
pub(super) fn allow(args: &AllowArgs, out: &mut dyn Write) -> Result<Exit, Failure> {
    let key = SigningKey::load(&args.key)
        .map_err(|error| Failure::new(Exit::Config, format!("{}: {error}", args.key.display())))?;
    let note = authorize(&args.origin, args.below, &key);
    // A note of this form is none of a log's size; a checkpoint must never be signed by mistake.
    if Checkpoint::of(&note).is_ok() {
        return Err(Failure::new(Exit::Usage, "the origin makes this a checkpoint"));
    }
    write!(out, "{note}")?;
    Ok(Exit::Ok)
}
