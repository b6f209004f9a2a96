//! The client side: a channel to a server that must be who it is expected to be, by its SPIFFE ID and not by its name.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme, version};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

use super::chains::{self, Authorities, SERVER_AUTH};
use super::config::parsed;
use super::gathered::Gathered;
use super::generation::ALPN;
use super::material::{self, Facts, TlsClock};
use crate::catalog::Faults;
use crate::clock::Clock;
use crate::ids::SpiffeId;

/// One server to call: a department's record source, or the gateway itself.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamConfig {
    /// `https://host:port`. The host is only where to connect; who answers is proved by `server_id`.
    pub address: String,
    /// PEM file: the CAs that may have issued the server's certificate; no others are believed.
    pub ca: PathBuf,
    /// PEM file: this side's leaf, then its intermediates.
    pub certificate: PathBuf,
    /// PEM file: the leaf's private key.
    pub key: PathBuf,
    /// The SPIFFE ID that must be the one URI name of the server's certificate.
    #[serde(deserialize_with = "parsed")]
    pub server_id: SpiffeId,
    /// Longest TCP connect and TLS handshake together, in milliseconds. Default 5000.
    #[serde(default = "defaults::connect_timeout_ms")]
    pub connect_timeout_ms: u64,
    /// Time between HTTP/2 PINGs, idle connections included, in milliseconds. Default 30000.
    #[serde(default = "defaults::keep_alive_interval_ms")]
    pub keep_alive_interval_ms: u64,
    /// Longest wait for the answer to a PING, in milliseconds. Default 10000.
    #[serde(default = "defaults::keep_alive_timeout_ms")]
    pub keep_alive_timeout_ms: u64,
}

mod defaults {
    pub(super) const fn connect_timeout_ms() -> u64 {
        5_000
    }
    pub(super) const fn keep_alive_interval_ms() -> u64 {
        30_000
    }
    pub(super) const fn keep_alive_timeout_ms() -> u64 {
        10_000
    }
}

impl UpstreamConfig {
    /// A server with the default times.
    pub fn new(
        address: impl Into<String>,
        ca: impl Into<PathBuf>,
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
        server_id: SpiffeId,
    ) -> Self {
        Self {
            address: address.into(),
            ca: ca.into(),
            certificate: certificate.into(),
            key: key.into(),
            server_id,
            connect_timeout_ms: defaults::connect_timeout_ms(),
            keep_alive_interval_ms: defaults::keep_alive_interval_ms(),
            keep_alive_timeout_ms: defaults::keep_alive_timeout_ms(),
        }
    }

    /// Makes relative paths relative to `base`, the directory of the configuration file.
    pub fn rebase(&mut self, base: &Path) {
        for path in [&mut self.ca, &mut self.certificate, &mut self.key] {
            *path = base.join(&*path);
        }
    }
}

/// A channel to a server, on the machine's clock; see [`client_channel`].
pub fn channel(config: &UpstreamConfig) -> Result<Channel, Faults> {
    client_channel(config, &Clock::system())
}

/// A channel that connects when it is first used, and again after a loss. TLS 1.3 only, ALPN `h2`, no resumption: every
/// connection proves both sides anew.
///
/// Files are read and validated now, all faults at once. Their dates are judged at each handshake, so that one
/// department's expired CA costs that department alone.
pub fn client_channel(config: &UpstreamConfig, clock: &Clock) -> Result<Channel, Faults> {
    let mut faults = Faults::default();
    let target = target(config, &mut faults);
    let tls = client_config(config, clock, &mut faults);
    let (Some(target), Some(tls), true) = (target, tls, faults.0.is_empty()) else { return Err(faults) };
    let endpoint = target.endpoint.clone();
    let (target, tls) = (Arc::new(target), TlsConnector::from(Arc::new(tls)));
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let (target, tls) = (target.clone(), tls.clone());
        async move { connect(&target, &tls).await.map(Gathered).map(TokioIo::new) }
    })))
}

/// Why material for a channel can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// It is not in order.
    #[error("{0}")]
    Faults(Faults),
    /// The server does not take it, or did not answer.
    #[error("a call with it is not answered: {0}")]
    Unanswered(String),
}

/// Asks a server for its health on a connection of its own. Any answer will do: a handshake alone proves nothing, for a
/// TLS 1.3 client is done before the server has judged its certificate.
pub async fn probe(config: &UpstreamConfig, clock: &Clock) -> Result<(), ProbeError> {
    let channel = client_channel(config, clock).map_err(ProbeError::Faults)?;
    // One empty message of gRPC: not compressed, no bytes.
    let body = tonic::body::Body::new(http_body_util::Full::from([0_u8; 5].as_slice()));
    let request = http::Request::post("/grpc.health.v1.Health/Check")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)
        .map_err(|error| ProbeError::Unanswered(error.to_string()))?;
    let limit = Duration::from_millis(config.connect_timeout_ms.saturating_mul(2));
    match timeout(limit, tower::ServiceExt::oneshot(channel, request)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(ProbeError::Unanswered(innermost(&error))),
        Err(_) => Err(ProbeError::Unanswered("it took too long".to_owned())),
    }
}

/// The cause at the bottom says what happened; those above say only that something did.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string().chars().take(200).flat_map(char::escape_debug).collect()
}

/// Where to connect.
struct Target {
    endpoint: Endpoint,
    host: String,
    port: u16,
    name: ServerName<'static>,
    server_id: SpiffeId,
    connect_timeout: Duration,
}

async fn connect(target: &Target, tls: &TlsConnector) -> io::Result<TlsStream<TcpStream>> {
    let both = async {
        let tcp = TcpStream::connect((target.host.as_str(), target.port)).await?;
        tcp.set_nodelay(true)?;
        tls.connect(target.name.clone(), tcp).await
    };
    let connected = match timeout(target.connect_timeout, both).await {
        Ok(Ok(tls)) if tls.get_ref().1.alpn_protocol() != Some(ALPN) => {
            Err(io::Error::new(io::ErrorKind::InvalidData, "the server did not choose h2 (ALPN)"))
        }
        Ok(connected) => connected,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "connecting took too long")),
    };
    // tonic tells callers only "transport error"; the cause is kept here.
    connected.inspect_err(|error| {
        tracing::debug!(server = %target.server_id, reason = %error.to_string().escape_debug(), "can't connect");
    })
}

/// True for `https://host:port`.
pub fn is_address(address: &str) -> bool {
    parts(address).is_some()
}

/// A target's parts, if the address has the form.
fn parts(address: &str) -> Option<(Uri, String, u16, ServerName<'static>, Endpoint)> {
    let authority = address.strip_prefix("https://").filter(|rest| !rest.contains(['/', '?', '#', '@']))?;
    let origin = address.parse::<Uri>().ok()?;
    let host = origin.host()?.trim_matches(['[', ']']).to_owned();
    let port = origin.port_u16()?;
    let name = ServerName::try_from(host.clone()).ok()?;
    // The endpoint's own scheme is http because this file's connector does TLS, not tonic.
    let endpoint = Endpoint::from_shared(format!("http://{authority}")).ok()?;
    Some((origin, host, port, name, endpoint))
}

fn target(config: &UpstreamConfig, faults: &mut Faults) -> Option<Target> {
    let Some((origin, host, port, name, endpoint)) = parts(&config.address) else {
        faults.of(&config.ca, format!("address of {} must be https://host:port", config.server_id));
        return None;
    };
    let endpoint = endpoint
        .origin(origin)
        .http2_keep_alive_interval(Duration::from_millis(config.keep_alive_interval_ms))
        .keep_alive_timeout(Duration::from_millis(config.keep_alive_timeout_ms))
        .keep_alive_while_idle(true);
    let connect_timeout = Duration::from_millis(config.connect_timeout_ms);
    Some(Target { endpoint, host, port, name, server_id: config.server_id.clone(), connect_timeout })
}

fn client_config(config: &UpstreamConfig, clock: &Clock, faults: &mut Faults) -> Option<ClientConfig> {
    let mut authorities = Authorities::new();
    authorities.add_file(&config.ca, faults);
    let key = material::certified_key(&config.certificate, &config.key, faults)?;
    let verifier = Arc::new(ServerVerifier { authorities, expected: config.server_id.clone() });
    make_client_config(key, verifier, clock)
        .map_err(|error| faults.of(&config.certificate, format!("TLS refuses this material: {error}")))
        .ok()
}

fn make_client_config(
    key: CertifiedKey,
    verifier: Arc<ServerVerifier>,
    clock: &Clock,
) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(material::provider());
    let tls = ClientConfig::builder_with_details(provider, Arc::new(TlsClock(clock.clone())))
        .with_protocol_versions(&[&version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    Ok(h2_without_resumption(tls))
}

/// A client that believes in `authorities`, expects `id` and shows no certificate.
pub(super) fn anonymous(authorities: Authorities, id: SpiffeId, clock: &Clock) -> Result<ClientConfig, rustls::Error> {
    let verifier = Arc::new(ServerVerifier { authorities, expected: id });
    let tls = ClientConfig::builder_with_details(Arc::new(material::provider()), Arc::new(TlsClock(clock.clone())))
        .with_protocol_versions(&[&version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(h2_without_resumption(tls))
}

fn h2_without_resumption(mut tls: ClientConfig) -> ClientConfig {
    tls.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed session would keep the old identity after a rotation, on both sides.
    tls.resumption = Resumption::disabled();
    tls
}

/// Believes the one server whose certificate names it, whatever its host is called.
struct ServerVerifier {
    authorities: Authorities,
    expected: SpiffeId,
}

impl fmt::Debug for ServerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerVerifier").field("expected", &self.expected).finish_non_exhaustive()
    }
}

/// The server proved to be somebody, but not the one called.
#[derive(Debug, thiserror::Error)]
#[error("the server's certificate does not have {expected} as its one URI name")]
struct OtherServer {
    expected: SpiffeId,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let mut certs = vec![leaf.clone()];
        certs.extend_from_slice(intermediates);
        self.authorities.verify(&certs, SERVER_AUTH, now).map_err(rustls::Error::from)?;
        if Facts::of(leaf).and_then(|facts| facts.spiffe_id()).as_ref() == Some(&self.expected) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(chains::refused(OtherServer { expected: self.expected.clone() }))
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(chains::tls12_is_off())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.authorities.verify_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authorities.schemes()
    }
}
