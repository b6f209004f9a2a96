//! What a development CA does after the PKI was made: it signs, revokes, and gets a successor.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use super::PkiError;
use super::authority::{Authority, Use, Validity};
use super::output::write_whole;
use super::settings::PkiSettings;
use crate::clock::Clock;
use crate::identity::mint::jwks_from_public_key;
use crate::ids::{DepartmentCode, SpiffeId};

#[derive(Debug, Args)]
pub(super) struct SignArgs {
    /// The request (PKCS#10, PEM)
    #[arg(long, value_name = "FILE")]
    csr: PathBuf,
    /// The department whose CA signs
    #[arg(long, value_name = "CODE", required_unless_present = "gateway")]
    department: Option<DepartmentCode>,
    /// The system's name: the certificate says spiffe://<trust domain>/<department>/<system>
    #[arg(long, value_name = "NAME", required_unless_present = "gateway")]
    system: Option<String>,
    /// For the gateway towards its callers
    #[arg(long, conflicts_with_all = ["department", "system", "source"])]
    gateway: bool,
    /// The CA that signs, if it is not the department's first
    #[arg(long, value_name = "NAME")]
    ca: Option<String>,
    /// For a source, which the gateway calls (usage serverAuth, reachable as localhost), not for a caller
    #[arg(long)]
    source: bool,
    /// Where the certificate goes
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// The development PKI
    #[arg(long, value_name = "DIR", default_value = "certs-dev/out")]
    pki: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct CaArgs {
    /// Name of its files: `ca/NAME.pem`, `.key`, `.crl`
    #[arg(long, value_name = "NAME")]
    name: String,
    /// Throw away a CA of that name
    #[arg(long)]
    force: bool,
    /// The development PKI
    #[arg(long, value_name = "DIR", default_value = "certs-dev/out")]
    pki: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct CrlArgs {
    /// The CA
    #[arg(long, value_name = "NAME")]
    ca: String,
    /// Certificates to revoke, besides those that are already (PEM)
    #[arg(long, value_name = "FILE")]
    revoke: Vec<PathBuf>,
    /// Where the list goes, besides the PKI itself
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The development PKI
    #[arg(long, value_name = "DIR", default_value = "certs-dev/out")]
    pki: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct JwksArgs {
    /// The public key (P-256 or Ed25519, PEM)
    #[arg(long, value_name = "FILE")]
    public_key: PathBuf,
    /// Where the key set goes
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

pub(super) fn sign(args: &SignArgs, out: &mut dyn Write) -> Result<(), PkiError> {
    let settings = PkiSettings::built_in()?;
    let validity = Validity::new(&settings, Clock::system().now());
    let gateway = &settings.gateway;
    let department = args.department.as_ref().map_or(gateway.department.as_str(), DepartmentCode::as_str);
    let id = settings.spiffe_id(department, args.system.as_ref().unwrap_or(&gateway.system));
    id.parse::<SpiffeId>().map_err(|error| PkiError::Name(error.to_string()))?;
    let ca = args.ca.as_deref().unwrap_or(if args.gateway { "gateway" } else { department });
    let authority = Authority::load(&place(&args.pki, ca)?, &settings.trust_domain)?;
    let usage = if args.source || args.gateway { Use::Server } else { Use::Client };
    let certificate = authority.sign(&read(&args.csr)?, &id, usage, &validity)?;
    write(&args.out, &certificate)?;
    Ok(writeln!(out, "{id} in {}", args.out.display())?)
}

pub(super) fn ca(args: &CaArgs, out: &mut dyn Write) -> Result<(), PkiError> {
    let settings = PkiSettings::built_in()?;
    let validity = Validity::new(&settings, Clock::system().now());
    let at = place(&args.pki, &args.name)?;
    if at.with_extension("pem").exists() && !args.force {
        return Err(PkiError::Exists(at.with_extension("pem")));
    }
    let authority = Authority::new(&args.name, &settings.trust_domain, &validity)?;
    write(&at.with_extension("pem"), authority.certificate())?;
    write(&at.with_extension("crl"), &authority.crl(1, &[], &validity)?)?;
    let key = at.with_extension("key");
    write_whole(&key, authority.key().as_bytes(), 0o600).map_err(|source| PkiError::Io { path: key, source })?;
    Ok(writeln!(out, "CA {} in {}", args.name, at.with_extension("pem").display())?)
}

pub(super) fn crl(args: &CrlArgs, out: &mut dyn Write) -> Result<(), PkiError> {
    let settings = PkiSettings::built_in()?;
    let validity = Validity::new(&settings, Clock::system().now());
    let at = place(&args.pki, &args.ca)?;
    let authority = Authority::load(&at, &settings.trust_domain)?;
    let file = at.with_extension("crl");
    let (before, mut serials) = numbers_of(&read(&file)?).ok_or_else(|| odd(&file, "is no revocation list"))?;
    for certificate in &args.revoke {
        let der = CertificateDer::from_pem_slice(read(certificate)?.as_bytes());
        let serial = der.ok().and_then(|der| {
            X509Certificate::from_der(&der).ok().map(|(_, certificate)| certificate.raw_serial().to_vec())
        });
        serials.push(serial.ok_or_else(|| odd(certificate, "holds no certificate"))?);
    }
    let list = authority.crl(before + 1, &serials, &validity)?;
    write(&file, &list)?;
    if let Some(copy) = &args.out {
        write(copy, &list)?;
    }
    let shown = args.out.as_ref().unwrap_or(&file).display();
    Ok(writeln!(out, "revocation list {} of {} in {shown}, {} revoked", before + 1, args.ca, serials.len())?)
}

pub(super) fn jwks(args: &JwksArgs, out: &mut dyn Write) -> Result<(), PkiError> {
    let keys = jwks_from_public_key(read(&args.public_key)?.as_bytes())
        .map_err(|error| PkiError::Name(format!("{}: {error}", args.public_key.display())))?;
    write(&args.out, &format!("{keys:#}\n"))?;
    let kid = keys.pointer("/keys/0/kid").and_then(|kid| kid.as_str()).unwrap_or_default();
    Ok(writeln!(out, "kid {kid} in {}", args.out.display())?)
}

/// Number of a list and the serial numbers on it.
fn numbers_of(pem: &str) -> Option<(u64, Vec<Vec<u8>>)> {
    let der = CertificateRevocationListDer::from_pem_slice(pem.as_bytes()).ok()?;
    let (_, list) = CertificateRevocationList::from_der(&der).ok()?;
    let number = u64::try_from(list.crl_number()?.clone()).ok()?;
    Some((number, list.iter_revoked_certificates().map(|entry| entry.raw_serial().to_vec()).collect()))
}

/// Where a CA's files are, without their extension.
fn place(pki: &Path, ca: &str) -> Result<PathBuf, PkiError> {
    let form = !ca.is_empty() && ca.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    if form { Ok(pki.join("ca").join(ca)) } else { Err(PkiError::Name(format!("`{ca}` can't name a CA"))) }
}

fn odd(path: &Path, what: &str) -> PkiError {
    PkiError::Name(format!("{} {what}", path.display()))
}

fn read(path: &Path) -> Result<String, PkiError> {
    std::fs::read_to_string(path).map_err(|source| PkiError::Io { path: path.into(), source })
}

fn write(path: &Path, text: &str) -> Result<(), PkiError> {
    write_whole(path, text.as_bytes(), 0o644).map_err(|source| PkiError::Io { path: path.into(), source })
}
