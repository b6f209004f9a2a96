//! Small requests to a peer: over mutual TLS and HTTP/2 to one that is known by its SPIFFE ID, over plain HTTP/1.1 to
//! one that needs no secrecy.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::sign::CertifiedKey;
use tokio::net::TcpStream;
use tonic::body::Body;
use tonic::transport::Channel;
use tower::ServiceExt as _;

use crate::audit::PeerTls;
use crate::certs::UpstreamConfig;
use crate::clock::Clock;
use crate::connectors::RotatingChannel;

/// Longest request, answer included.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest answer in bytes: an entry bundle is at most 256 × 65,537 = 16,777,472.
const MAX_ANSWER: usize = 17 << 20;

/// Somebody who answers HTTP.
#[derive(Debug, Clone)]
pub struct Peer {
    /// What stands before every path.
    prefix: String,
    way: Way,
}

#[derive(Debug, Clone)]
enum Way {
    Tls(Arc<RotatingChannel>),
    /// `host:port`.
    Plain(String),
}

/// Status and body of an answer.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// Where it is, or how to prove oneself to it, can't be used.
    #[error("{0}")]
    Config(String),
    /// It does not answer, or not in time, or too much.
    #[error("{0}")]
    Unreachable(String),
}

impl Peer {
    /// A peer by its URL, `what` it is for operators. `served` is the identity of the trust generation, for a peer that is
    /// shown no other. Connects when it is asked something. Must be called within a runtime.
    ///
    /// # Errors
    /// If URL or TLS material can't be used.
    pub fn new(
        what: &str,
        url: &str,
        tls: Option<&PeerTls>,
        served: Option<&Arc<CertifiedKey>>,
        clock: &Clock,
    ) -> Result<Self, PeerError> {
        let wrong = |what: &str| PeerError::Config(format!("{url}: {what}"));
        let uri: Uri = url.parse().map_err(|_| wrong("not a URL"))?;
        let authority = uri.authority().ok_or_else(|| wrong("no host"))?.to_string();
        let prefix = uri.path().trim_end_matches('/').to_owned();
        let way = match (uri.scheme_str(), tls) {
            (Some("https"), Some(tls)) => {
                let address = format!("https://{authority}");
                let (ca, certificate, key) = (tls.ca.clone(), tls.certificate.clone(), tls.key.clone());
                let config = UpstreamConfig::new(address, ca, certificate, key, tls.server_id.clone());
                let channel = RotatingChannel::new(format!("{what} {url}"), config, served, clock);
                Way::Tls(channel.map_err(|faults| PeerError::Config(faults.to_string()))?)
            }
            (Some("http"), None) => Way::Plain(authority),
            (Some("https"), None) => return Err(wrong("https needs tls: ca and server_id")),
            _ => return Err(wrong("https:// with tls, or http:// without")),
        };
        Ok(Self { prefix, way })
    }

    /// The channel to it, if it proves itself by TLS.
    pub fn channel(&self) -> Option<&Arc<RotatingChannel>> {
        match &self.way {
            Way::Tls(channel) => Some(channel),
            Way::Plain(_) => None,
        }
    }

    pub(super) async fn get(&self, path: &str) -> Result<Answer, PeerError> {
        self.ask(Method::GET, path, Bytes::new()).await
    }

    pub(super) async fn post(&self, path: &str, body: String) -> Result<Answer, PeerError> {
        self.ask(Method::POST, path, body.into()).await
    }

    async fn ask(&self, method: Method, path: &str, body: Bytes) -> Result<Answer, PeerError> {
        let asked = async {
            let path = format!("{}{path}", self.prefix);
            match &self.way {
                Way::Tls(channel) => over_tls(channel.get(), method, &path, body).await,
                Way::Plain(authority) => plain(authority, method, &path, body).await,
            }
        };
        match tokio::time::timeout(TIMEOUT, asked).await {
            Ok(answer) => answer.map_err(|error| PeerError::Unreachable(with_causes(error.as_ref()))),
            Err(_) => Err(PeerError::Unreachable("no answer in time".to_owned())),
        }
    }
}

type Failed = Box<dyn std::error::Error + Send + Sync>;

async fn over_tls(channel: Channel, method: Method, path: &str, body: Bytes) -> Result<Answer, Failed> {
    let request = Request::builder().method(method).uri(path).body(Body::new(Full::new(body)))?;
    let (head, body) = channel.oneshot(request).await?.into_parts();
    Ok(Answer { status: head.status, body: Limited::new(body, MAX_ANSWER).collect().await?.to_bytes() })
}

async fn plain(authority: &str, method: Method, path: &str, body: Bytes) -> Result<Answer, Failed> {
    let address = if authority.contains(':') { authority.to_owned() } else { format!("{authority}:80") };
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header(header::HOST, authority).body(Full::new(body))?;
    let (head, body) = sender.send_request(request).await?.into_parts();
    let body = Limited::new(body, MAX_ANSWER).collect().await?.to_bytes();
    driver.abort();
    Ok(Answer { status: head.status, body })
}

/// An error's own text says little; its causes say which.
fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text.chars().take(300).flat_map(char::escape_debug).collect()
}
