//! `oncegate status`: asks the gateway on this machine through its admin socket.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use super::{Exit, Failure};
use crate::clock::Timestamp;
use crate::config::Config;
use crate::pb::admin::admin_service_client::AdminServiceClient;
use crate::pb::admin::{GetStatusRequest, GetStatusResponse};

/// Shows the state of the gateway on this machine.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The gateway's configuration file, which names the admin socket.
    #[arg(long, value_name = "FILE", required_unless_present = "socket")]
    config: Option<PathBuf>,
    /// The admin socket itself.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

pub(super) async fn run(args: StatusArgs, out: &mut dyn Write) -> Result<Exit, Failure> {
    let socket = match (args.socket, args.config) {
        (Some(socket), _) => socket,
        (None, Some(file)) => match Config::load(&file)?.admin {
            Some(admin) => admin.socket,
            None => return Err(Failure::new(Exit::Config, "the configuration has no admin socket")),
        },
        (None, None) => return Err(Failure::new(Exit::Usage, "name --config or --socket")),
    };
    let status = AdminServiceClient::new(socket_channel(socket).await?)
        .get_status(GetStatusRequest {})
        .await
        .map_err(|status| Failure::new(Exit::Denied, status.message()))?
        .into_inner();
    print(&status, out)?;
    Ok(if status.ready { Exit::Ok } else { Exit::Unavailable })
}

/// A channel to the gateway that answers on an admin socket.
pub(super) async fn socket_channel(socket: PathBuf) -> Result<Channel, Failure> {
    let shown = socket.display().to_string();
    // The URI is only a name here: the connector knows one place.
    Endpoint::from_static("http://admin.invalid")
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        }))
        .await
        .map_err(|_| Failure::new(Exit::Unavailable, format!("{shown}: no gateway answers")))
}

fn print(status: &GetStatusResponse, out: &mut dyn Write) -> std::io::Result<()> {
    let time = |time: &Option<prost_types::Timestamp>| {
        let secs = time.as_ref().and_then(|time| u64::try_from(time.seconds).ok());
        secs.map_or_else(|| "never".to_owned(), |secs| Timestamp::from_secs(secs).to_rfc3339())
    };
    writeln!(out, "version    {}", status.version)?;
    writeln!(out, "started    {}", time(&status.started_at))?;
    writeln!(out, "ready      {}", if status.ready { "yes" } else { "no" })?;
    for problem in &status.problems {
        writeln!(out, "problem    {problem}")?;
    }
    if let Some(trust) = &status.trust {
        writeln!(out, "trust      generation {}, leaf {}", trust.generation, trust.leaf_sha256)?;
        writeln!(out, "           valid until {}", time(&trust.leaf_not_after))?;
        writeln!(out, "           {} connections", trust.connections)?;
    }
    if let Some(policy) = &status.policy {
        writeln!(out, "policy     generation {}, {}", policy.generation, policy.hash)?;
        for warning in &policy.warnings {
            writeln!(out, "           warning: {warning}")?;
        }
        let (grants, types, matters) = (policy.grants, policy.certificate_types, policy.matters);
        writeln!(out, "           {grants} grants, {types} certificate types, {matters} matters")?;
    }
    if let Some(log) = &status.log {
        let writable = if log.writable { "writable" } else { "NOT WRITABLE" };
        writeln!(out, "log        {}, {} entries, {writable}", log.origin, log.size)?;
        writeln!(out, "           {} signed, witnessed {}", log.signed, time(&log.witnessed_at))?;
        writeln!(out, "           its disk is {} % full", log.disk_percent)?;
        for alarm in &log.alarms {
            writeln!(out, "alarm      {alarm}")?;
        }
    }
    for provider in &status.providers {
        let last = time(&provider.last_answer_at);
        let (department, source, failures) = (&provider.department, &provider.source, provider.failures);
        writeln!(out, "provider   {department} {source}: last answer {last}, {failures} failures since")?;
    }
    Ok(())
}
