//! `oncegate trust`: trust material changed and watched, through the gateway's admin socket, or on the files alone while
//! the gateway is down. `docs/rotating.md` walks through the five tasks.

mod show;
mod way;

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};

pub(super) use self::way::Way;
use super::table::Look;
use super::{Exit, Failure};
use crate::certs::Store;
use crate::config::Config;
use crate::pb::admin as pb;
use crate::pb::admin::change_trust_request::Act;

/// Changes and watches the gateway's trust material.
#[derive(Debug, Args)]
pub struct TrustArgs {
    /// The gateway's configuration file, which names the trust directory and the admin socket.
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// The admin socket itself.
    #[arg(long, value_name = "PATH", global = true, conflicts_with = "config")]
    socket: Option<PathBuf>,
    #[command(subcommand)]
    command: TrustCommand,
}

#[derive(Debug, Subcommand)]
enum TrustCommand {
    /// Makes an empty trust directory
    Init {
        /// Where; by default where the configuration says
        dir: Option<PathBuf>,
    },
    /// Makes a key, which never leaves the directory, and a request for its certificate
    Csr(CsrArgs),
    /// Prepares the next generation
    Stage(StageArgs),
    /// Tells whether what is staged can be put in force
    Check,
    /// Puts what is staged in force
    Activate {
        /// End only when the gateway serves it; without a gateway, fail
        #[arg(long)]
        wait: bool,
    },
    /// Who is connected, or was seen since the start, and by which CA
    Who {
        /// Only this CA's
        #[arg(long, value_name = "NAME")]
        issuer: Option<String>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Puts revocation lists in force at once
    Revoke {
        /// A list of a client CA (PEM or DER)
        #[arg(long, value_name = "FILE", required = true)]
        crl: Vec<PathBuf>,
    },
    /// Refuses a caller at once, without its CA's help
    Block(BlockArgs),
    /// Puts trust and certificate of an older generation in force again; blocks and revocations stay
    Rollback {
        /// Its number; the one before by default
        generation: Option<u64>,
    },
    /// What serves, what is staged, what ends when
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// The generations on disk and who made them
    History {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
struct CsrArgs {
    /// Towards callers, or towards departments
    whose: Whose,
    /// SPIFFE ID of the gateway; by default all names are those of the certificate in force
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// DNS name or address, for callers that check the host
    #[arg(long, value_name = "NAME", requires = "id")]
    host: Vec<String>,
    /// Throw away a key whose certificate has not come
    #[arg(long)]
    again: bool,
    /// Where the request goes
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Whose {
    Server,
    Client,
}

#[derive(Debug, Args)]
struct StageArgs {
    /// The server's chain, leaf first (PEM)
    #[arg(long, value_name = "FILE")]
    cert: Option<PathBuf>,
    /// Its key, if `csr` did not make it (PEM)
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// The chain towards departments (PEM)
    #[arg(long, value_name = "FILE")]
    client_cert: Option<PathBuf>,
    /// Its key, if `csr` did not make it (PEM)
    #[arg(long, value_name = "FILE", requires = "client_cert")]
    client_key: Option<PathBuf>,
    /// The roots that callers believe in (PEM)
    #[arg(long, value_name = "FILE")]
    server_ca: Option<PathBuf>,
    /// A CA of callers to add (PEM); the file's name is its name
    #[arg(long, value_name = "FILE")]
    client_ca: Vec<PathBuf>,
    /// A client CA's revocation list (PEM or DER)
    #[arg(long, value_name = "FILE")]
    crl: Vec<PathBuf>,
    /// Departments that a CA may issue for; needed unless its name is a department's code
    #[arg(long, value_name = "NAME=CODE[,CODE]")]
    bind: Vec<String>,
    /// A CA to remove; refused while a system uses it
    #[arg(long, value_name = "NAME")]
    remove_client_ca: Vec<String>,
    /// How connections of removed CAs end
    #[arg(long, value_enum, default_value = "now", requires = "remove_client_ca")]
    mode: Mode,
    /// Remove a CA that is in use
    #[arg(long, requires = "remove_client_ca")]
    force: bool,
    /// Throw away what is staged
    #[arg(long, exclusive = true)]
    discard: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// At once
    Now,
    /// After a GOAWAY and a grace
    Drain,
}

#[derive(Debug, Args)]
struct BlockArgs {
    /// SPIFFE ID of a system
    #[arg(long, value_name = "ID", required_unless_present_any = ["serial", "ca"])]
    san: Option<String>,
    /// Serial number of a certificate, hexadecimal
    #[arg(long, value_name = "HEX")]
    serial: Option<String>,
    /// Name of a client CA, or its key's SHA-256
    #[arg(long, value_name = "NAME")]
    ca: Option<String>,
    /// Take the block back
    #[arg(long)]
    remove: bool,
}

pub(super) async fn run(args: TrustArgs, out: &mut dyn Write) -> Result<Exit, Failure> {
    let config = args.config.as_deref().map(Config::load).transpose()?;
    if let TrustCommand::Init { dir } = args.command {
        return init(dir.or_else(|| config.map(|config| config.trust.dir)), out);
    }
    let mut way = Way::find(config, args.socket).await?;
    match args.command {
        TrustCommand::Init { .. } => {}
        TrustCommand::Csr(csr) => {
            let request = pb::RequestCertificate {
                client: matches!(csr.whose, Whose::Client),
                id: csr.id.unwrap_or_default(),
                hosts: csr.host,
                again: csr.again,
            };
            let done = way.change(Act::Request(request)).await?;
            std::fs::write(&csr.out, &done.certificate_request).map_err(|error| of(&csr.out, error))?;
            tell(&done, out)?;
            writeln!(out, "in {}; stage the certificate with `oncegate trust stage`", csr.out.display())?;
        }
        TrustCommand::Stage(args) if args.discard => tell(&way.change(Act::Discard(pb::Discard {})).await?, out)?,
        TrustCommand::Stage(args) => tell(&way.change(Act::Stage(stage(args)?)).await?, out)?,
        TrustCommand::Check => return show::check(&way.state().await?, out),
        TrustCommand::Activate { wait } => {
            let done = way.change(Act::Activate(pb::Activate {})).await?;
            tell(&done, out)?;
            if wait {
                way.wait_for(done.generation).await?;
                writeln!(out, "generation {} serves", done.generation)?;
            }
        }
        TrustCommand::Who { issuer, json } => {
            show::who(&way.state().await?, issuer.as_deref(), json, out, Look::stdout())?;
        }
        TrustCommand::Revoke { crl } => {
            let crls = crl.iter().map(|file| read(file)).collect::<Result<_, _>>()?;
            tell(&way.change(Act::Revoke(pb::Revoke { crls })).await?, out)?;
        }
        TrustCommand::Block(args) => {
            let who = pb::BlockedCaller {
                id: args.san.unwrap_or_default(),
                serial: args.serial.unwrap_or_default(),
                ca: args.ca.unwrap_or_default(),
                ..pb::BlockedCaller::default()
            };
            let act = if args.remove { Act::Unblock(who) } else { Act::Block(who) };
            tell(&way.change(act).await?, out)?;
        }
        TrustCommand::Rollback { generation } => {
            let rollback = pb::Rollback { generation: generation.unwrap_or(0) };
            tell(&way.change(Act::Rollback(rollback)).await?, out)?;
        }
        TrustCommand::Status { json } => show::status(&way.state().await?, json, out, Look::stdout())?,
        TrustCommand::History { json } => show::history(&way.state().await?, json, out, Look::stdout())?,
    }
    Ok(Exit::Ok)
}

fn init(dir: Option<PathBuf>, out: &mut dyn Write) -> Result<Exit, Failure> {
    let dir = dir.ok_or_else(|| Failure::new(Exit::Usage, "name the directory, or --config"))?;
    Store::new(&dir).init()?;
    writeln!(
        out,
        "{}: ready for a first generation; see `oncegate trust csr` and `oncegate trust stage`",
        dir.display()
    )?;
    Ok(Exit::Ok)
}

fn stage(args: StageArgs) -> Result<pb::Stage, Failure> {
    let optional = |file: Option<PathBuf>| file.map_or(Ok(bytes::Bytes::new()), |file| read(&file));
    let named = |file: &PathBuf| {
        let name = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(pb::NamedCertificate { name, certificate: read(file)? })
    };
    let bind = |text: &String| {
        let (ca, codes) = text
            .split_once('=')
            .ok_or_else(|| Failure::new(Exit::Usage, format!("--bind {text}: it is NAME=CODE[,CODE]")))?;
        Ok(pb::Binding { ca: ca.to_owned(), departments: codes.split(',').map(str::to_owned).collect() })
    };
    Ok(pb::Stage {
        certificate: optional(args.cert)?,
        key: optional(args.key)?,
        client_certificate: optional(args.client_cert)?,
        client_key: optional(args.client_key)?,
        server_ca: optional(args.server_ca)?,
        client_cas: args.client_ca.iter().map(named).collect::<Result<_, Failure>>()?,
        remove: args.remove_client_ca,
        drain: args.mode == Mode::Drain,
        force: args.force,
        bind: args.bind.iter().map(bind).collect::<Result<_, Failure>>()?,
        crls: args.crl.iter().map(|file| read(file)).collect::<Result<_, _>>()?,
    })
}

fn tell(done: &pb::ChangeTrustResponse, out: &mut dyn Write) -> std::io::Result<()> {
    done.lines.iter().try_for_each(|line| writeln!(out, "{line}"))
}

fn read(file: &Path) -> Result<bytes::Bytes, Failure> {
    std::fs::read(file).map(Into::into).map_err(|error| of(file, error))
}

fn of(file: &Path, error: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Failed, format!("{}: {error}", file.display()))
}
