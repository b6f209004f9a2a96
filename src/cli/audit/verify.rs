//! `oncegate audit verify` and `fsck`.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;

use super::{policy, verifier};
use crate::audit::verify::{self, Held, Report, Trust};
use crate::cli::table::{Bar, Look, Tone};
use crate::cli::{Exit, Failure};

#[derive(Debug, Args)]
pub(super) struct FsckArgs {
    /// Directory of the log, or of a copy
    #[arg(value_name = "DIR")]
    log: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// Directory of the log, or of a copy
    #[arg(long, value_name = "DIR")]
    log: PathBuf,
    /// Whom to believe: keys of logs and witnesses, and how many witnesses it takes (C2SP tlog-policy)
    #[arg(long, value_name = "FILE")]
    policy: PathBuf,
    /// A checkpoint or proof kept elsewhere, which the log must contain: what a rolled back or forked log can't pass
    #[arg(long, value_name = "FILE")]
    checkpoint: Vec<PathBuf>,
    /// The log that it must be, if the policy knows several
    #[arg(long, value_name = "NAME")]
    origin: Option<String>,
    /// An auditor's key (vkey) that may have allowed to delete old entries
    #[arg(long, value_name = "FILE")]
    auditor: Vec<PathBuf>,
}

pub(super) fn fsck(args: &FsckArgs, out: &mut dyn Write) -> Result<Exit, Failure> {
    run(&args.log, &Trust::default(), Vec::new(), out)
}

pub(super) fn verify(args: &VerifyArgs, out: &mut dyn Write) -> Result<Exit, Failure> {
    let auditors = args.auditor.iter().map(|file| verifier(file)).collect::<Result<_, _>>()?;
    let policy = policy(&args.policy)?;
    let origin = match (&args.origin, policy.origins().as_slice()) {
        (Some(origin), _) => Some(origin.clone()),
        (None, [_, _, ..]) => {
            let what = format!("{}: knows several logs; say which with --origin", args.policy.display());
            return Err(Failure::new(Exit::Config, format!("{what}: {}", policy.origins().join(", "))));
        }
        (None, _) => None,
    };
    let trust = Trust { policy: Some(policy), auditors, origin };
    let mut held = Vec::new();
    for file in &args.checkpoint {
        let wrong = |error: &dyn std::fmt::Display| Failure::new(Exit::Config, format!("{}: {error}", file.display()));
        let text = std::fs::read_to_string(file).map_err(|error| wrong(&error))?;
        // A proof ends in the checkpoint it was made for.
        let note = match text.parse::<crate::audit::checkpoint::Proof>() {
            Ok(proof) => proof.note,
            Err(_) => text.parse().map_err(|error: crate::audit::note::NoteError| wrong(&error))?,
        };
        held.push(Held { name: file.display().to_string(), note });
    }
    run(&args.log, &trust, held, out)
}

fn run(log: &std::path::Path, trust: &Trust, held: Vec<Held>, out: &mut dyn Write) -> Result<Exit, Failure> {
    let mut bar = Bar::new("MB");
    let report = verify::verify(log, trust, held, &mut |read, of| bar.show(read >> 20, of >> 20))
        .map_err(|error| Failure::new(Exit::Config, format!("{}: {error}", log.display())))?;
    drop(bar);
    write(&report, trust.policy.is_some(), out)?;
    Ok(if report.faults.is_empty() { Exit::Ok } else { Exit::Failed })
}

fn write(report: &Report, signatures: bool, out: &mut dyn Write) -> io::Result<()> {
    let look = Look::stdout();
    writeln!(out, "log        {}", report.origin)?;
    writeln!(out, "entries    {}", report.size)?;
    if report.first > 0 {
        writeln!(out, "           the first {} are pruned", report.first)?;
    }
    if let Some((first, last)) = report.times {
        writeln!(out, "           from {} to {}", first.to_rfc3339(), last.to_rfc3339())?;
    }
    for (kind, count) in &report.kinds {
        writeln!(out, "           {count} {kind}")?;
    }
    writeln!(out, "signed     {} entries, root {}", report.signed, report.root)?;
    for (witness, time) in &report.witnessed {
        writeln!(out, "witnessed  by {witness} at {}", time.to_rfc3339())?;
    }
    for note in &report.notes {
        writeln!(out, "note       {note}")?;
    }
    for fault in &report.faults {
        writeln!(out, "{}      {fault}", look.paint(Tone::Bad, "FAULT"))?;
    }
    let (tone, said) = match (signatures, report.faults.is_empty()) {
        (true, true) => (Tone::Good, "The log is what was signed."),
        (true, false) => (Tone::Bad, "The log is NOT what was signed."),
        (false, true) => (Tone::Good, "The log fits together. No signature was checked: that is what `verify` does."),
        (false, false) => (Tone::Bad, "The log does NOT fit together."),
    };
    writeln!(out, "{}", look.paint(tone, said))
}
