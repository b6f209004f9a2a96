//! How a command reaches the trust directory: through the gateway, or on the files while it is down.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::{Instant, sleep};
use tonic::transport::Channel;

use crate::api::Operator;
use crate::api::trust::{act_of, response_of, state_on_disk};
use crate::certs::{Custodian, Store, Terms};
use crate::cli::status::socket_channel;
use crate::cli::{Exit, Failure};
use crate::clock::Clock;
use crate::config::Config;
use crate::pb::admin as pb;
use crate::pb::admin::change_trust_request::Act;
use crate::pb::admin::trust_service_client::TrustServiceClient;

/// A request holds certificates and lists; the answer is small.
const MAX_MESSAGE_BYTES: usize = 64 << 20;
/// A gateway follows its directory four times a second; this is long enough for a slow disk.
const WAIT: Duration = Duration::from_secs(10);

/// The way.
pub(in crate::cli) enum Way {
    /// The gateway does it.
    Gateway(TrustServiceClient<Channel>),
    /// This process does it, with its user's rights on the files.
    Files { store: Store, terms: Terms, socket: Option<PathBuf> },
}

impl Way {
    /// Through the gateway if one answers; else on the files, if a configuration says where they are.
    pub(in crate::cli) async fn find(config: Option<Config>, socket: Option<PathBuf>) -> Result<Self, Failure> {
        let socket = socket.or_else(|| config.as_ref()?.admin.as_ref().map(|admin| admin.socket.clone()));
        if let Some(socket) = &socket
            && let Some(way) = Self::through(socket).await?
        {
            return Ok(way);
        }
        match (config, socket) {
            (Some(config), socket) => Ok(Self::Files {
                store: Store::new(&config.trust.dir),
                terms: Terms::new(&config.trust, &config.trust_domain),
                socket,
            }),
            (None, Some(socket)) => {
                let what = format!("{}: no gateway answers; give --config to work on the files", socket.display());
                Err(Failure::new(Exit::Unavailable, what))
            }
            (None, None) => Err(Failure::new(Exit::Usage, "name --config or --socket")),
        }
    }

    async fn through(socket: &Path) -> Result<Option<Self>, Failure> {
        match UnixStream::connect(socket).await {
            Ok(_) => {
                let client = TrustServiceClient::new(socket_channel(socket.to_owned()).await?);
                let client = client.max_encoding_message_size(MAX_MESSAGE_BYTES);
                Ok(Some(Self::Gateway(client.max_decoding_message_size(MAX_MESSAGE_BYTES))))
            }
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => Ok(None),
            // It may well run: the files are then not ours to change.
            Err(error) => Err(Failure::new(Exit::Denied, format!("{}: {error}", socket.display()))),
        }
    }

    /// Carries out an act.
    pub(in crate::cli) async fn change(&mut self, act: Act) -> Result<pb::ChangeTrustResponse, Failure> {
        let request = pb::ChangeTrustRequest { act: Some(act) };
        match self {
            Self::Gateway(client) => {
                client.change_trust(request).await.map(tonic::Response::into_inner).map_err(|status| failure(&status))
            }
            Self::Files { store, terms, .. } => {
                let by = Operator::of(std::fs::metadata("/proc/self")?.uid()).to_string();
                let custodian = Custodian { store, terms, clock: &Clock::system(), gate: None };
                let act = act_of(request).ok_or_else(|| Failure::new(Exit::Usage, "no act is given"))?;
                let done = custodian.act(act, &by).map_err(|error| Failure::new(Exit::Failed, error))?;
                let mut response = response_of(done);
                response.lines.push("the gateway was not asked: it does not run".to_owned());
                Ok(response)
            }
        }
    }

    /// How things stand.
    pub(in crate::cli) async fn state(&mut self) -> Result<pb::GetTrustResponse, Failure> {
        match self {
            Self::Gateway(client) => client
                .get_trust(pb::GetTrustRequest {})
                .await
                .map(tonic::Response::into_inner)
                .map_err(|status| failure(&status)),
            Self::Files { store, terms, .. } => {
                let custodian = Custodian { store, terms, clock: &Clock::system(), gate: None };
                Ok(state_on_disk(&custodian, None))
            }
        }
    }

    /// Ends when a gateway serves the generation or a newer one.
    pub(in crate::cli) async fn wait_for(&mut self, generation: u64) -> Result<(), Failure> {
        let end = Instant::now() + WAIT;
        loop {
            if let Self::Files { socket: Some(socket), .. } = self
                && let Some(way) = Self::through(socket).await?
            {
                *self = way;
            }
            if let Some(serving) = self.state().await?.serving
                && serving.generation >= generation
            {
                return Ok(());
            }
            if Instant::now() >= end {
                return Err(Failure::new(
                    Exit::Unavailable,
                    format!("generation {generation} is on disk, but no gateway serves it"),
                ));
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
}

fn failure(status: &tonic::Status) -> Failure {
    let exit = match status.code() {
        tonic::Code::PermissionDenied => Exit::Denied,
        tonic::Code::Unavailable => Exit::Unavailable,
        _ => Exit::Failed,
    };
    Failure::new(exit, status.message())
}
