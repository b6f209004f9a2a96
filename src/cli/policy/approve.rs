//! `oncegate policy approve`: the security administrator's word that a policy may be activated.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use super::sign;
use crate::cli::{Exit, Failure};
use crate::identity::jws::Signs;
use crate::policy::PolicyHash;

/// Signs a policy's hash with a key that the gateway's configuration enrols.
#[derive(Debug, Args)]
pub(super) struct ApproveArgs {
    /// The hash, as `policy check` and `policy diff` tell it.
    hash: PolicyHash,
    /// The security administrator's private key (P-256 or Ed25519, PKCS#8 in PEM).
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Where the approval goes.
    #[arg(long, value_name = "FILE", default_value = "approval.jws")]
    out: PathBuf,
}

pub(super) fn run(args: &ApproveArgs, out: &mut dyn Write) -> Result<Exit, Failure> {
    let key = sign::key(&args.key)?;
    let jws = key.sign_detached(Signs::Approval, args.hash.to_string().as_bytes())?;
    std::fs::write(&args.out, format!("{jws}\n"))?;
    writeln!(out, "{} approved with key {} in {}", args.hash, key.kid(), args.out.display())?;
    Ok(Exit::Ok)
}
