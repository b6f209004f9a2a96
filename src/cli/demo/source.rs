//! A department's system as a real gRPC source: it answers from the population over mutual TLS.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use prost_reflect::{DescriptorPool, MessageDescriptor};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use super::population::Population;
pub use super::record::RecordError;
use super::record::{Draft, drafts, encode, key_sets, message_of};
use crate::clock::{Clock, Timestamp};
use crate::pb::department::record_source_service_server::{RecordSourceService, RecordSourceServiceServer};
use crate::pb::department::{FetchRecordsRequest, FetchRecordsResponse, RecordKey, SourceRecord};

/// Serves what a department or the platform offers the gateway until `shutdown`, then lets running calls end for at most
/// five seconds.
pub async fn serve(listener: TcpListener, tls: Arc<ServerConfig>, routes: Routes, shutdown: CancellationToken) {
    let acceptor = TlsAcceptor::from(tls);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, acceptor.clone(), routes.clone(), shutdown.clone()));
                }
                // Out of descriptors: the pause keeps the loop from spinning until some are free.
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
        }
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    // What is still open afterwards is aborted with the set.
    let _ = tokio::time::timeout(DRAIN, drained).await;
}

const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const HANDSHAKE: Duration = Duration::from_secs(10);
const DRAIN: Duration = Duration::from_secs(5);
const MAX_STREAMS: u32 = 256;

/// One connection. A peer that fails the handshake or breaks the protocol loses it; nobody else notices.
async fn connection(stream: TcpStream, acceptor: TlsAcceptor, routes: Routes, shutdown: CancellationToken) {
    let _ = stream.set_nodelay(true);
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await else { return };
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.timer(TokioTimer::new()).max_concurrent_streams(MAX_STREAMS);
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    tokio::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        () = shutdown.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}

/// TLS 1.3 with the source's certificate chain and key; peers need a certificate of one of the CAs given. All in PEM.
pub fn tls(cert_pem: &[u8], key_pem: &[u8], client_ca_pem: &[u8]) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    for ca in CertificateDer::pem_slice_iter(client_ca_pem) {
        roots.add(ca?)?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build()?;
    let chain = CertificateDer::pem_slice_iter(cert_pem).collect::<Result<Vec<_>, _>>()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, PrivateKeyDer::from_pem_slice(key_pem)?)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// Why TLS material was refused.
#[derive(Debug, Error)]
pub enum TlsError {
    /// Not PEM, or a part is missing.
    #[error("PEM: {0}")]
    Pem(#[from] pem::Error),
    /// No CA, or one that can't verify clients.
    #[error("client CA: {0}")]
    ClientCa(#[from] VerifierBuilderError),
    /// Certificate and key don't fit, or rustls refuses them.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

/// A department's records, found by their keys. It sends whole records, fields never to be shared included, as real
/// systems do: cutting them is the gateway's work. Clones share records and counter.
#[derive(Clone)]
pub struct RecordSource {
    shelves: Arc<HashMap<String, Shelf>>,
    calls: Arc<AtomicU64>,
    clock: Clock,
}

/// The records of one certificate type.
struct Shelf {
    message: MessageDescriptor,
    key_sets: Vec<Vec<String>>,
    drafts: Vec<Draft>,
    /// Positions in `drafts` by keys in the order of their names.
    index: HashMap<Vec<(String, String)>, Vec<usize>>,
}

impl RecordSource {
    /// The source of some certificate types, by code; `pool` must hold their messages.
    pub fn new(
        pool: &DescriptorPool,
        population: &Population,
        types: &[&str],
        clock: Clock,
    ) -> Result<Self, RecordError> {
        let mut shelves = HashMap::new();
        for code in types {
            let message = message_of(pool, code)?;
            let drafts = drafts(population, code)?;
            let mut index: HashMap<_, Vec<usize>> = HashMap::new();
            for (position, draft) in drafts.iter().enumerate() {
                for set in &draft.keys {
                    let mut keys: Vec<_> =
                        set.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
                    keys.sort();
                    index.entry(keys).or_default().push(position);
                }
            }
            let key_sets = key_sets(&message);
            shelves.insert((*code).to_owned(), Shelf { message, key_sets, drafts, index });
        }
        Ok(Self { shelves: Arc::new(shelves), calls: Arc::default(), clock })
    }

    /// The records that these keys find, as they would be sent.
    pub(super) fn records(
        &self,
        code: &str,
        keys: Vec<(String, String)>,
    ) -> Result<Vec<prost_types::Any>, RecordError> {
        let shelf = self.shelves.get(code).ok_or_else(|| RecordError::UnknownType(code.to_owned()))?;
        let keys = keys.into_iter().map(|(name, value)| RecordKey { name, value }).collect();
        let Ok(found) = shelf.find(keys) else { return Ok(Vec::new()) };
        found.map(|draft| encode(&shelf.message, draft)).collect()
    }

    /// Its service.
    pub fn routes(self) -> Routes {
        Routes::new(RecordSourceServiceServer::new(self)).prepare()
    }

    /// Calls answered so far, refusals included.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }
}

/// Codes only.
impl fmt::Debug for RecordSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordSource")
            .field("types", &self.shelves.keys())
            .field("calls", &self.calls())
            .finish_non_exhaustive()
    }
}

#[tonic::async_trait]
impl RecordSourceService for RecordSource {
    async fn fetch_records(
        &self,
        request: Request<FetchRecordsRequest>,
    ) -> Result<Response<FetchRecordsResponse>, Status> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let FetchRecordsRequest { certificate_type, keys, .. } = request.into_inner();
        let shelf = (self.shelves.get(certificate_type.as_str()))
            .ok_or_else(|| Status::invalid_argument("this source has no such certificate type"))?;
        let as_of = timestamp(self.clock.now());
        let records = shelf.find(keys)?.map(|draft| {
            let record = encode(&shelf.message, draft).map_err(|_| Status::internal("the record does not encode"))?;
            Ok(SourceRecord { record: Some(record), keys: Vec::new(), as_of: Some(as_of) })
        });
        Ok(Response::new(FetchRecordsResponse { records: records.collect::<Result<_, Status>>()? }))
    }
}

impl Shelf {
    /// The records that match every key; the keys must be exactly those of one lookup set.
    fn find(&self, keys: Vec<RecordKey>) -> Result<impl Iterator<Item = &Draft>, Status> {
        let mut keys: Vec<_> = keys.into_iter().map(|key| (key.name, key.value)).collect();
        keys.sort();
        let is_asked = |set: &Vec<String>| {
            set.len() == keys.len() && set.iter().all(|name| keys.iter().any(|(given, _)| given == name))
        };
        if !self.key_sets.iter().any(is_asked) {
            return Err(Status::invalid_argument("these keys are no lookup set of the certificate type"));
        }
        let found = self.index.get(&keys).map(Vec::as_slice).unwrap_or_default();
        Ok(found.iter().filter_map(|position| self.drafts.get(*position)))
    }
}

fn timestamp(at: Timestamp) -> prost_types::Timestamp {
    let nanos = i32::try_from(at.as_micros() % 1_000_000 * 1000).unwrap_or(0);
    prost_types::Timestamp { seconds: i64::try_from(at.as_secs()).unwrap_or(i64::MAX), nanos }
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
