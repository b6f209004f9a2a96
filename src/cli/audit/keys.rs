//! `oncegate audit new-key` and `shred`.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::audit::keys::PrivateKey;
use crate::audit::note::{Algorithm, SigningKey};
use crate::cli::{Exit, Failure};

#[derive(Debug, Args)]
pub(super) struct NewKeyArgs {
    /// What it is for
    #[arg(value_enum)]
    what: KeyUse,
    /// Its name: a log's origin, a witness's or auditor's name; none for a reader's key
    #[arg(long, value_name = "NAME", required_if_eq_any = [("what", "log"), ("what", "witness"), ("what", "auditor")])]
    name: Option<String>,
    /// Where the private key goes; the public one beside it, as FILE.pub
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum KeyUse {
    /// Reads entries: the auditor's for a month, or the escrow's
    Reader,
    /// Signs a log's checkpoints
    Log,
    /// Cosigns checkpoints
    Witness,
    /// Signs an auditor's permissions
    Auditor,
}

#[derive(Debug, Args)]
pub(super) struct ShredArgs {
    /// The private key
    #[arg(value_name = "FILE")]
    key: PathBuf,
    /// Says that it is meant
    #[arg(long)]
    for_ever: bool,
}

pub(super) fn new(args: &NewKeyArgs, out: &mut dyn Write) -> Result<Exit, Failure> {
    let mut public = args.out.clone().into_os_string();
    public.push(".pub");
    let public = PathBuf::from(public);
    let algorithm = match args.what {
        KeyUse::Reader => {
            let key = PrivateKey::generate()?;
            key.write(&args.out)?;
            key.public().write(&public)?;
            writeln!(out, "{}\n{}", args.out.display(), public.display())?;
            return Ok(Exit::Ok);
        }
        KeyUse::Witness => Algorithm::Cosignature,
        KeyUse::Log | KeyUse::Auditor => Algorithm::Ed25519,
    };
    let key = SigningKey::generate(args.name.as_deref().unwrap_or_default(), algorithm)?;
    key.write(&args.out)?;
    key.write_public(&public)?;
    writeln!(out, "{}\n{}\n{}", args.out.display(), public.display(), key.verifier())?;
    Ok(Exit::Ok)
}

/// Overwrites and deletes. What a disk, a backup or a snapshot keeps besides is beyond a program: see docs/auditing.md.
pub(super) fn shred(args: &ShredArgs, out: &mut dyn Write) -> Result<Exit, Failure> {
    let key = PrivateKey::load(&args.key)
        .map_err(|error| Failure::new(Exit::Config, format!("{}: {error}", args.key.display())))?;
    let id = hex::encode(key.public().id());
    if !args.for_ever {
        let what = format!("this destroys key {id} for ever; say --for-ever if that is meant");
        return Err(Failure::new(Exit::Usage, what));
    }
    let mut file = OpenOptions::new().write(true).open(&args.key)?;
    let len = usize::try_from(file.metadata()?.len()).unwrap_or_default();
    file.write_all(&vec![0; len])?;
    file.sync_all()?;
    std::fs::remove_file(&args.key)?;
    writeln!(
        out,
        "key {id} is destroyed: what was sealed to it alone can't be read by anybody; every proof still holds"
    )?;
    Ok(Exit::Ok)
}
