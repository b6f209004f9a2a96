//! `oncegate policy verify`: every signature of a bundle, as a gateway in signed mode checks them.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use crate::catalog::Faults;
use crate::cli::table::{Look, Tone};
use crate::cli::{Exit, Failure};
use crate::identity::jws::KeySet;
use crate::policy::{MANIFEST, Rules};

/// Checks a bundle and every signature in it.
#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// The bundle's folder.
    bundle: PathBuf,
    /// JWKS file with the competent department's keys.
    #[arg(long, value_name = "FILE")]
    authority: PathBuf,
}

pub(super) fn run(args: &VerifyArgs, out: &mut dyn Write) -> Result<Exit, Failure> {
    let mut faults = Faults::default();
    let Some(authority) = KeySet::load(&args.authority, &mut faults) else { return Err(faults.into()) };
    let policy = Rules::signed_by(authority).open(&args.bundle, None, None)?;
    let version = policy.versions().get(MANIFEST).map_or(0, |version| version.number);
    let grants = policy.versions().len().saturating_sub(1);
    writeln!(out, "manifest version {version}, {grants} grant files, each signed by its provider")?;
    writeln!(out, "{} {}", Look::stdout().paint(Tone::Good, "in order"), policy.hash())?;
    Ok(Exit::Ok)
}
