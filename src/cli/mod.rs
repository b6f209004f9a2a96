//! The command line. Each command writes to the output it is given and ends with an [`Exit`].

pub mod answer;
pub mod audit;
pub mod call;
pub mod case;
pub mod catalog;
pub mod check;
pub mod client;
pub mod demo;
pub mod pki;
pub mod policy;
pub mod render;
pub mod serve;
pub mod status;
pub mod table;
pub mod trust;
pub mod witness;

use std::fmt::Display;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::app::StartError;
use crate::audit::keys::PrivateKey;
use crate::audit::note::{Algorithm, SigningKey};
use crate::catalog::Faults;
use crate::clock::Clock;

/// How a command ends: its exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done; for `call`: every field asked for was released, every claim matched.
    Ok = 0,
    /// Failed for a reason that no other code names.
    Failed = 1,
    /// The command line is wrong (clap's own code).
    Usage = 2,
    /// `serve`: the grace passed before all calls had ended.
    Cut = 3,
    /// `call`: some fields were released, others withheld, or some items failed, or some claims can't be told.
    Partial = 10,
    /// `call`: the policy released nothing.
    Denied = 11,
    /// `call`: no such record.
    NotFound = 12,
    /// `call`: the request is wrong.
    Invalid = 13,
    /// `call`: certificate or token refused.
    Unauthenticated = 14,
    /// `call`: a limit refused it; try later.
    Limited = 15,
    /// `call`: gateway or provider unavailable; try later.
    Unavailable = 16,
    /// `call verify`: a claim differs from the record.
    Mismatch = 17,
    /// A configuration, catalog, grant or trust file is wrong (`EX_CONFIG`).
    Config = 78,
}

/// Why a command failed.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    message: String,
}

impl Failure {
    /// With an exit code of its own.
    pub fn new(exit: Exit, message: impl Display) -> Self {
        Self { exit, message: message.to_string() }
    }
}

impl<E: std::error::Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let any: &dyn std::error::Error = &error;
        // Whoever reads has seen enough (`| head`): nothing failed.
        if any.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
            return Self { exit: Exit::Ok, message: String::new() };
        }
        let config = any.is::<Faults>()
            || any.downcast_ref::<StartError>().is_some_and(|error| matches!(error, StartError::Config(_)));
        Self::new(if config { Exit::Config } else { Exit::Failed }, error)
    }
}

/// oncegate (免证网关): releases departments' records field by field, and accounts for every look.
#[derive(Debug, Parser)]
#[command(name = "oncegate", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs a gateway.
    Serve(serve::ServeArgs),
    /// Lists and shows certificate types and matters; compiles a department's own types.
    Catalog(catalog::CatalogArgs),
    /// Checks a configuration and every file that it names, without starting.
    Check(check::CheckArgs),
    /// Shows a whole county at work on this machine: departments, gateway, platform, auditor.
    Demo(demo::DemoArgs),
    /// Calls a gateway as another system's engineer would.
    Call(call::CallArgs),
    /// Proves the access log with public keys; reads it with an auditor's key.
    Audit(audit::AuditArgs),
    /// Runs a witness of access logs: cosigns that a log has one past only.
    Witness(witness::WitnessArgs),
    /// Runs a mirror of access logs: a witness that cosigns only what it holds a copy of.
    Mirror(witness::WitnessArgs),
    /// Shows the state of the gateway on this machine.
    Status(status::StatusArgs),
    /// Changes and watches the gateway's trust material.
    Trust(trust::TrustArgs),
    /// Checks, explains, tests, compares, signs, approves and activates policy bundles.
    Policy(policy::PolicyArgs),
    /// Makes a development PKI.
    Pki(pki::PkiArgs),
}

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let (stdout, stderr) = (&mut io::stdout(), &mut io::stderr());
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(run(cli.command, stdout));
            // Tasks that only wait for connections need not be waited for.
            runtime.shutdown_timeout(std::time::Duration::from_millis(100));
            result
        }
        Err(error) => Err(error.into()),
    };
    let exit = result.unwrap_or_else(|failure| {
        if !failure.message.is_empty() {
            let _ = writeln!(stderr, "oncegate: {}", failure.message);
        }
        failure.exit
    });
    ExitCode::from(exit as u8)
}

/// Writes the access log's keys to a directory, for the development PKI: the auditor's and the escrow's, which read it;
/// the gateway's, which signs it; the witness's and the auditor's own signatures.
pub fn audit_keys(dir: &Path, trust_domain: &str) -> io::Result<()> {
    for name in ["auditor", "escrow"] {
        let key = PrivateKey::generate().map_err(io::Error::other)?;
        key.write(&dir.join(format!("{name}.key"))).map_err(io::Error::other)?;
        key.public().write(&dir.join(format!("{name}.pub"))).map_err(io::Error::other)?;
    }
    let signers = [
        ("log", format!("{trust_domain}/gw1"), Algorithm::Ed25519),
        ("witness", format!("witness.{trust_domain}"), Algorithm::Cosignature),
        ("auditor-signature", format!("auditor.{trust_domain}"), Algorithm::Ed25519),
    ];
    for (file, name, algorithm) in signers {
        let key = SigningKey::generate(&name, algorithm).map_err(io::Error::other)?;
        key.write(&dir.join(format!("{file}.key"))).map_err(io::Error::other)?;
        key.write_public(&dir.join(format!("{file}.vkey"))).map_err(io::Error::other)?;
    }
    Ok(())
}

async fn run(command: Command, out: &mut io::Stdout) -> Result<Exit, Failure> {
    match command {
        Command::Serve(args) => serve::run(args, out).await,
        Command::Catalog(args) => catalog::run(&args, out),
        Command::Check(args) => check::run(&args, &Clock::system(), out),
        Command::Demo(args) => demo::run(args, out).await,
        Command::Call(args) => call::run(args, out).await,
        Command::Audit(args) => audit::run(args, out),
        Command::Witness(args) => witness::run(&args, false, out).await,
        Command::Mirror(args) => witness::run(&args, true, out).await,
        Command::Status(args) => status::run(args, out).await,
        Command::Trust(args) => trust::run(args, out).await,
        Command::Pki(args) => match pki::run_rotation(&args, out).await {
            Some(ended) => ended,
            None => Ok(pki::run(&args, &audit_keys, out).map(|()| Exit::Ok)?),
        },
        Command::Policy(args) => policy::run(args, out).await,
    }
}
