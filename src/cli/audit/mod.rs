//! `oncegate audit`: everything that is done with an access log from outside: proving it with public keys, reading it
//! with the auditor's key, handing it on, comparing it with what others hold.

mod export;
mod keys;
mod prove;
mod prune;
mod reconcile;
mod search;
mod verify;

use std::io::Write;
use std::path::Path;

use clap::{Args, Subcommand};

pub(super) use self::search::{open, write_entries};
use super::{Exit, Failure};
use crate::audit::checkpoint::Policy;
use crate::audit::note::VerifierKey;

/// Proves the access log with public keys; reads it with an auditor's key.
#[derive(Debug, Args)]
pub struct AuditArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Checks that a log fits together: every entry, every hash; needs no key
    Fsck(verify::FsckArgs),
    /// Proves that a log, or a copy, is what was signed and witnessed; needs public keys alone
    Verify(verify::VerifyArgs),
    /// Writes the proof that an entry is in the log (C2SP tlog-proof)
    Prove(prove::ProveArgs),
    /// Checks such a proof, offline
    Check(prove::CheckArgs),
    /// Checks a signed receipt, offline
    Receipt(prove::ReceiptArgs),
    /// Finds entries by subject, consumer, matter, certificate type, outcome or time
    Search(search::SearchArgs),
    /// Shows everything that one entry says
    Show(search::ShowArgs),
    /// Writes entries as CSV, JSON lines or OCSF, or the log as a static C2SP tree
    Export(export::ExportArgs),
    /// Compares with a department's own list of request ids, and names what is missing on either side
    Reconcile(reconcile::ReconcileArgs),
    /// Deletes old entries that an auditor's entry in the log allows to delete
    Prune(prune::PruneArgs),
    /// Signs, as an auditor, the permission to delete old entries
    AllowPrune(prune::AllowArgs),
    /// Makes a key: an auditor's for a month, a log's, a witness's
    NewKey(keys::NewKeyArgs),
    /// Destroys an auditor's private key: what was sealed to it alone can never be read again
    Shred(keys::ShredArgs),
}

/// Runs the command.
pub(super) fn run(args: AuditArgs, out: &mut dyn Write) -> Result<Exit, Failure> {
    match args.what {
        What::Fsck(args) => verify::fsck(&args, out),
        What::Verify(args) => verify::verify(&args, out),
        What::Prove(args) => prove::prove(&args, out),
        What::Check(args) => prove::check(&args, out),
        What::Receipt(args) => prove::receipt(&args, out),
        What::Search(args) => search::search(args, out),
        What::Show(args) => search::show(&args, out),
        What::Export(args) => export::run(args, out),
        What::Reconcile(args) => reconcile::run(&args, out),
        What::Prune(args) => prune::prune(&args, out),
        What::AllowPrune(args) => prune::allow(&args, out),
        What::NewKey(args) => keys::new(&args, out),
        What::Shred(args) => keys::shred(&args, out),
    }
}

/// Reads a policy file (C2SP tlog-policy).
fn policy(file: &Path) -> Result<Policy, Failure> {
    let wrong = |error: &dyn std::fmt::Display| Failure::new(Exit::Config, format!("{}: {error}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|error| wrong(&error))?;
    text.parse().map_err(|error: crate::audit::checkpoint::PolicyError| wrong(&error))
}

fn verifier(file: &Path) -> Result<VerifierKey, Failure> {
    VerifierKey::load(file).map_err(|error| Failure::new(Exit::Config, format!("{}: {error}", file.display())))
}
