//! `oncegate pki`: certificates and keys for development and demonstration. `certs-dev/README.md` says what is written
//! where.

mod authority;
mod issue;
mod output;
mod rotate;
mod settings;
mod tokens;

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use authority::{Authority, Use, Validity};
use clap::{Args, Subcommand};
use output::Output;
use zeroize::Zeroizing;

pub use settings::{DepartmentSettings, GatewaySettings, PkiSettings, PlatformSettings};

use super::{Exit, Failure};
use crate::certs::{ClientCa, Contents, Store, StoreError};
use crate::clock::{Clock, Timestamp};

/// Arguments of `oncegate pki`.
#[derive(Debug, Args)]
pub struct PkiArgs {
    #[command(subcommand)]
    command: PkiCommand,
}

#[derive(Debug, Subcommand)]
enum PkiCommand {
    /// Make development certificates and keys for every department (never for production)
    Init(InitArgs),
    /// Make a certificate for a key that was made elsewhere, from its request (CSR)
    Sign(issue::SignArgs),
    /// Make another CA, to rotate a department's
    Ca(issue::CaArgs),
    /// Make a CA's next revocation list
    Crl(issue::CrlArgs),
    /// Play rotation with a running demo (`oncegate demo --keep`), calls going on
    RotateDemo(rotate::RotateArgs),
    /// Write the key set (JWKS) with which the gateway verifies tokens that a key signs
    Jwks(issue::JwksArgs),
}

#[derive(Debug, Args)]
struct InitArgs {
    /// Directory to write to
    #[arg(long, value_name = "DIR", default_value = "certs-dev/out")]
    out: PathBuf,
    /// Settings to use instead of the built-in ones (certs-dev/pki.toml)
    #[arg(long, value_name = "FILE")]
    settings: Option<PathBuf>,
    /// Throw away what an earlier run wrote there, and make it anew
    #[arg(long)]
    force: bool,
    /// Everything expired an hour ago, to practise the emergency
    #[arg(long)]
    expired: bool,
}

/// Runs `oncegate pki rotate-demo`; none if it is another command.
pub(super) async fn run_rotation(args: &PkiArgs, out: &mut dyn Write) -> Option<Result<Exit, Failure>> {
    match &args.command {
        PkiCommand::RotateDemo(args) => Some(rotate::run(args, out).await),
        _ => None,
    }
}

/// Runs `oncegate pki`. `write_audit_keys` writes the access log's keys to the directory it is given, named
/// after the trust domain.
pub fn run(
    args: &PkiArgs,
    write_audit_keys: &dyn Fn(&Path, &str) -> io::Result<()>,
    out: &mut dyn Write,
) -> Result<(), PkiError> {
    let init = match &args.command {
        PkiCommand::Init(init) => init,
        PkiCommand::Sign(args) => return issue::sign(args, out),
        PkiCommand::Ca(args) => return issue::ca(args, out),
        PkiCommand::Crl(args) => return issue::crl(args, out),
        PkiCommand::Jwks(args) => return issue::jwks(args, out),
        PkiCommand::RotateDemo(_) => return Err(PkiError::Name("rotate-demo runs on its own".to_owned())),
    };
    let settings = match &init.settings {
        Some(file) => PkiSettings::load(file)?,
        None => PkiSettings::built_in()?,
    };
    let now = Clock::system().now();
    let validity = if init.expired { Validity::over(&settings, now) } else { Validity::new(&settings, now) };
    let summary = generate_valid(&init.out, &settings, init.force, &validity, write_audit_keys)?;
    writeln!(out, "{summary}").map_err(|source| PkiError::Io { path: "standard output".into(), source })
}

/// Makes every certificate and key of `settings` in `out`.
///
/// A complete directory is refused unless `force`; an incomplete one is made anew; one that something else wrote is
/// never touched. The directory counts as complete only when everything is written.
pub fn generate(
    out: &Path,
    settings: &PkiSettings,
    force: bool,
    clock: &Clock,
    write_audit_keys: &dyn Fn(&Path, &str) -> io::Result<()>,
) -> Result<PkiSummary, PkiError> {
    generate_valid(out, settings, force, &Validity::new(settings, clock.now()), write_audit_keys)
}

fn generate_valid(
    out: &Path,
    settings: &PkiSettings,
    force: bool,
    validity: &Validity,
    write_audit_keys: &dyn Fn(&Path, &str) -> io::Result<()>,
) -> Result<PkiSummary, PkiError> {
    settings.check()?;
    let output = Output::begin(out, force)?;
    let mut summary =
        PkiSummary { out: out.into(), cas: 0, certificates: 0, token_keys: 0, not_after: validity.leaf_until() };
    let mut trust = Contents::default();

    let gateway = &settings.gateway;
    let gateway_id = settings.spiffe_id(&gateway.department, &gateway.system);
    let server_ca = Authority::new("gateway", &settings.trust_domain, validity)?;
    server_ca.write(&output, "ca/gateway", validity)?;
    let server = server_ca.issue(&gateway_id, Use::Server, validity)?;
    server.write(&output, "gateway/server")?;
    trust.set("server.pem", Some(server.certificate.into()));
    trust.set("server.key", Some(server.key.as_bytes().to_vec()));
    trust.set("server_ca.pem", Some(server_ca.certificate().into()));
    summary.cas += 1;
    summary.certificates += 1;

    for department in &settings.departments {
        let code = &department.code;
        let ca = Authority::new(code, &settings.trust_domain, validity)?;
        ca.write(&output, &format!("ca/{code}"), validity)?;
        trust.set(format!("{code}.pem"), Some(ca.certificate().into()));
        trust.set(format!("{code}.crl"), Some(ca.crl(1, &[], validity)?.into()));
        trust.manifest.client_cas.push(ClientCa { name: code.clone(), departments: vec![code.clone()] });
        summary.cas += 1;
        let systems = department.systems.iter().map(|name| ("systems", name, Use::Client));
        let sources = department.sources.iter().map(|name| ("sources", name, Use::Server));
        for (folder, name, usage) in systems.chain(sources) {
            let identity = ca.issue(&settings.spiffe_id(code, name), usage, validity)?;
            identity.write(&output, &format!("{folder}/{code}/{name}"))?;
            summary.certificates += 1;
        }
        if *code == gateway.department {
            let client = ca.issue(&gateway_id, Use::Client, validity)?;
            client.write(&output, "gateway/client")?;
            trust.set("client.pem", Some(client.certificate.into()));
            trust.set("client.key", Some(client.key.as_bytes().to_vec()));
            summary.certificates += 1;
        }
        tokens::write_key(&output, &format!("tokens/{code}"))?;
        summary.token_keys += 1;
    }
    tokens::write_key(&output, &format!("tokens/{}", settings.platform.issuer))?;
    summary.token_keys += 1;
    tokens::write_policy_keys(&output, settings.departments.iter().map(|department| department.code.as_str()))?;

    let mut subjects_key = Zeroizing::new([0; 32]);
    aws_lc_rs::rand::fill(&mut *subjects_key).map_err(|_| PkiError::Random)?;
    let subjects_key = Zeroizing::new(format!("{}\n", hex::encode(*subjects_key)));
    output.private("subjects.key", subjects_key.as_bytes())?;

    let store = Store::new(output.directory("trust")?);
    store.init()?;
    store.write()?.promote(&trust, 0)?;

    let audit = output.directory("audit")?;
    write_audit_keys(&audit, &settings.trust_domain).map_err(|source| PkiError::Io { path: audit, source })?;
    output.complete()?;
    Ok(summary)
}

/// What a run made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PkiSummary {
    /// The directory.
    pub out: PathBuf,
    /// CAs, the gateway's included.
    pub cas: usize,
    /// Certificates of servers and clients.
    pub certificates: usize,
    /// Keys that sign tokens.
    pub token_keys: usize,
    /// When the first of all these expires.
    pub not_after: Timestamp,
}

impl fmt::Display for PkiSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} CAs, {} certificates, {} token keys; valid until {}\nFor development only: this machine holds \
             every private key.",
            self.out.display(),
            self.cas,
            self.certificates,
            self.token_keys,
            self.not_after.date_in_china()
        )
    }
}

/// Why nothing, or not everything, was made.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The settings are wrong.
    #[error("{}: {message}", file.display())]
    Settings {
        /// Where they stand.
        file: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// A name or key given to the command can't be used.
    #[error("{0}")]
    Name(String),
    /// The request is for a key that no development certificate is made for.
    #[error(
        "the request's key is neither P-256 nor Ed25519; make it with `openssl genpkey -algorithm EC -pkeyopt \
             ec_paramgen_curve:P-256`"
    )]
    RequestKey,
    /// The answer can't be written.
    #[error(transparent)]
    Output(#[from] io::Error),
    /// The directory is complete and `force` was not given.
    #[error("{} has certificates and keys already; --force makes new ones", .0.display())]
    Exists(PathBuf),
    /// The directory holds something this command did not write.
    #[error("{} is not empty and was not written by this command; choose another directory", .0.display())]
    NotOurs(PathBuf),
    /// A file can't be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The trust directory can't be written.
    #[error("trust directory: {0}")]
    Trust(#[from] StoreError),
    /// A key or certificate can't be made.
    #[error("can't make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The system gives no randomness.
    #[error("the system gives no randomness")]
    Random,
}

/// Days as a duration.
const fn days(count: u32) -> Duration {
    Duration::from_secs(count as u64 * 24 * 3600)
}

#[cfg(test)]
mod tests;
