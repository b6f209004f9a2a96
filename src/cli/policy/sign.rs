//! `oncegate policy sign`: the providing department signs its grant files, the competent department the manifest.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::{Exit, Failure};
use crate::identity::jws::Signs;
use crate::identity::mint::SigningKey;
use crate::ids::DepartmentCode;
use crate::policy::{MANIFEST, write_manifest};

/// Signs grant files or the manifest of a bundle, each with a detached JWS beside it.
#[derive(Debug, Args)]
pub(super) struct SignArgs {
    /// The bundle's folder.
    bundle: PathBuf,
    /// Signs every grant file of this provider, grants/<matter>/<PROVIDER>.toml.
    #[arg(long, value_name = "CODE", required_unless_present = "manifest", conflicts_with = "manifest")]
    provider: Option<DepartmentCode>,
    /// Writes manifest.toml for the files as they are, and signs it, as the competent department.
    #[arg(long)]
    manifest: bool,
    /// The private key (P-256 or Ed25519, PKCS#8 in PEM).
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
}

pub(super) fn run(args: &SignArgs, out: &mut dyn Write) -> Result<Exit, Failure> {
    let key = key(&args.key)?;
    if let Some(provider) = &args.provider {
        let files = sign_grants(&args.bundle, provider.as_str(), &key)?;
        if files == 0 {
            let what = format!("{} has no grant file of {provider}", args.bundle.display());
            return Err(Failure::new(Exit::Config, what));
        }
        writeln!(out, "{files} grant files of {provider} signed with key {}", key.kid())?;
    } else {
        let version = sign_manifest(&args.bundle, &key)?;
        writeln!(out, "manifest version {version} signed with key {}", key.kid())?;
    }
    Ok(Exit::Ok)
}

/// A signing key of a file.
pub(crate) fn key(file: &Path) -> Result<SigningKey, Failure> {
    let wrong = |error: &dyn std::fmt::Display| Failure::new(Exit::Config, format!("{}: {error}", file.display()));
    let pem = fs::read(file).map_err(|error| wrong(&error))?;
    SigningKey::from_pkcs8_pem(&pem).map_err(|error| wrong(&error))
}

/// The departments that have a grant file in the bundle.
pub(crate) fn providers(bundle: &Path) -> Result<BTreeSet<String>, Failure> {
    let mut providers = BTreeSet::new();
    for matter in fs::read_dir(bundle.join("grants"))? {
        for file in fs::read_dir(matter?.path())? {
            let name = file?.file_name();
            providers.extend(name.to_str().and_then(|name| name.strip_suffix(".toml")).map(str::to_owned));
        }
    }
    Ok(providers)
}

/// Signs every grant file of a provider; how many there were.
pub(crate) fn sign_grants(bundle: &Path, provider: &str, key: &SigningKey) -> Result<usize, Failure> {
    let mut signed = 0;
    let name = format!("{provider}.toml");
    for matter in fs::read_dir(bundle.join("grants"))? {
        let file = matter?.path().join(&name);
        if file.is_file() {
            sign_file(&file, Signs::Grants, key)?;
            signed += 1;
        }
    }
    Ok(signed)
}

/// Writes and signs the manifest; its version.
pub(crate) fn sign_manifest(bundle: &Path, key: &SigningKey) -> Result<u64, Failure> {
    let (text, version) = write_manifest(bundle)?;
    let file = bundle.join(MANIFEST);
    fs::write(&file, text)?;
    sign_file(&file, Signs::Manifest, key)?;
    Ok(version)
}

fn sign_file(file: &Path, what: Signs, key: &SigningKey) -> Result<(), Failure> {
    let jws = key.sign_detached(what, &fs::read(file)?)?;
    let mut beside = file.as_os_str().to_owned();
    beside.push(".jws");
    Ok(fs::write(beside, format!("{jws}\n"))?)
}
