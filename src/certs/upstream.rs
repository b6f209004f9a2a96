//! The client side: a channel to a server that must be who it is expected to be, by its SPIFFE ID and not by its name.

use std::fmt;
use std::io;
use std::iter;
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
use crate::clock::{Clock, Timestamp};
use crate::ids::SpiffeId;

/// One server to call: a department's record source, or the gateway itself.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamConfig {
    /// `https://host:port`. The host is only where to connect; who answers is proved by `server_id`.
    pub address: String,
    /// PEM file: the CAs that may have issued the server's certificate; no others are believed.
    pub ca: PathBuf,
    /// PEM file: this side's leaf, then its intermediates. Without it and its key this side is what the trust generation
    /// that serves says it is.
    pub certificate: Option<PathBuf>,
    /// PEM file: the leaf's private key.
    pub key: Option<PathBuf>,
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
        certificate: impl Into<Option<PathBuf>>,
        key: impl Into<Option<PathBuf>>,
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
        for path in iter::once(&mut self.ca).chain(&mut self.certificate).chain(&mut self.key) {
            *path = base.join(&*path);
        }
    }

    /// Every file that it names.
    pub fn files(&self) -> Vec<PathBuf> {
        iter::once(&self.ca).chain(&self.certificate).chain(&self.key).cloned().collect()
    }

    /// The CAs in its file. Their dates are judged at each handshake, so that one server's expired CA costs that server
    /// alone.
    pub fn roots(&self) -> Result<Roots, Faults> {
        let (mut faults, mut authorities) = (Faults::default(), Authorities::new());
        authorities.add_file(&self.ca, &mut faults);
        faults.or(Roots(Arc::new(authorities)))
    }

    /// What this side shows: the identity in its files, or where none are named `served`, that of the trust generation
    /// that serves.
    pub fn identity(&self, served: Option<&Arc<CertifiedKey>>) -> Result<Arc<CertifiedKey>, Faults> {
        let mut faults = Faults::default();
        let identity = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => material::certified_key(certificate, key, &mut faults).map(Arc::new),
            (None, None) => {
                if served.is_none() {
                    let none = "no certificate and key are given, and the trust generation has no client.pem";
                    faults.of(&self.ca, format!("{}: {none}", self.server_id));
                }
                served.cloned()
            }
            (Some(file), None) | (None, Some(file)) => {
                faults.of(file, "certificate and key must be given both or neither");
                None
            }
        };
        identity.ok_or(faults)
    }
}

/// The CAs that may have issued a server's certificate. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Roots(Arc<Authorities>);

impl Roots {
    /// True if every CA of `other`, by its key, is among these.
    pub fn contain(&self, other: &Self) -> bool {
        other.0.keys().iter().all(|key| self.0.keys().contains(key))
    }

    /// When each ends.
    pub fn ends(&self) -> &[Timestamp] {
        self.0.ends()
    }
}

/// What a channel shows and whom it believes, read and validated. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Material {
    /// This side's chain and key.
    pub identity: Arc<CertifiedKey>,
    /// Who may have issued the server's certificate.
    pub roots: Roots,
}

impl Material {
    /// Of what [`UpstreamConfig::roots`] and [`UpstreamConfig::identity`] say; all faults at once.
    pub fn of(roots: Result<Roots, Faults>, identity: Result<Arc<CertifiedKey>, Faults>) -> Result<Self, Faults> {
        match (roots, identity) {
            (Ok(roots), Ok(identity)) => Ok(Self { identity, roots }),
            (roots, identity) => {
                let faults = [roots.err(), identity.err()].into_iter().flatten();
                Err(Faults(faults.flat_map(|faults| faults.0).collect()))
            }
        }
    }

    /// When the first certificate of the identity's chain ends.
    pub fn identity_ends(&self) -> Option<Timestamp> {
        self.identity.cert.iter().filter_map(|der| Facts::of(der)).map(|facts| facts.not_after).min()
    }
}

/// A channel to a server, on the machine's clock; see [`client_channel`].
pub fn channel(config: &UpstreamConfig) -> Result<Channel, Faults> {
    client_channel(config, &Clock::system())
}

/// A channel that connects when it is first used, and again after a loss. TLS 1.3 only, ALPN `h2`, no resumption: every
/// connection proves both sides anew.
///
/// Files are read and validated now, all faults at once.
pub fn client_channel(config: &UpstreamConfig, clock: &Clock) -> Result<Channel, Faults> {
    channel_with(config, &Material::of(config.roots(), config.identity(None))?, clock)
}

/// The same channel with material that was read before.
pub fn channel_with(config: &UpstreamConfig, material: &Material, clock: &Clock) -> Result<Channel, Faults> {
    let mut faults = Faults::default();
    let target = target(config, &mut faults);
    let tls = client_config(config, material, clock, &mut faults);
    let (Some(target), Some(tls)) = (target, tls) else { return Err(faults) };
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
pub async fn probe(config: &UpstreamConfig, material: &Material, clock: &Clock) -> Result<(), ProbeError> {
    let channel = channel_with(config, material, clock).map_err(ProbeError::Faults)?;
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

fn client_config(
    config: &UpstreamConfig,
    Material { identity, roots }: &Material,
    clock: &Clock,
    faults: &mut Faults,
) -> Option<ClientConfig> {
    let verifier = Arc::new(ServerVerifier { authorities: roots.0.clone(), expected: config.server_id.clone() });
    make_client_config(CertifiedKey::clone(identity), verifier, clock)
        .map_err(|error| faults.of(&config.ca, format!("{}: TLS refuses this material: {error}", config.server_id)))
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
    let verifier = Arc::new(ServerVerifier { authorities: Arc::new(authorities), expected: id });
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
    authorities: Arc<Authorities>,
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
