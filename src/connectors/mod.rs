//! Where records come from: departments' sources behind one face, [`Connectors::fetch`]; and where conditions get their
//! facts: [`Registries`].
//!
//! A fetch asks the cache first, then joins a fetch of the same answer that is already under way, then starts one. What
//! it returns is about the subject asked for and of the type asked for; anything else a source sends is thrown away
//! whole. Only answers, never their absence, are kept in memory.

mod flight;
mod grpc;
mod registry;
mod rotate;

use std::collections::HashMap;
use std::error::Error;
use std::iter;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rustls::sign::CertifiedKey;
use serde::Deserialize;
use tokio::time::Instant;

use crate::cache::{AnswerCache, CachedAnswer, Key};
use crate::catalog::{Catalog, Fault, Faults, Fields, Subject};
use crate::certs::upstream::UpstreamConfig;
use crate::clock::{Clock, Timestamp};
use crate::identity::Purpose;
use crate::ids::{DepartmentCode, RequestId, SpiffeId};
use crate::limits::Limits;
use crate::policy::{Permit, answers_subject};
use crate::telemetry::{CacheResult, LimitScope, Metrics, TraceContext};

pub use registry::{Registries, RegistriesConfig, RegistryConfig};
pub use rotate::RotatingChannel;

use flight::{FlightKey, Flights};

/// More records than this answer [`FetchError::Ambiguous`] and release nothing.
pub const MAX_RECORDS: usize = 32;

/// One connection to a department's system.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// Name of the source, unique in the configuration.
    pub name: String,
    /// Code of the department.
    pub department: String,
    /// The certificate types it provides; each type has one source.
    pub certificate_types: Vec<String>,
    /// `https://host:port` of its `RecordSourceService`.
    pub address: String,
    /// PEM file with the certificate authorities that its server certificate must chain to.
    pub ca: PathBuf,
    /// SPIFFE ID that its server certificate must carry.
    #[serde(deserialize_with = "spiffe_id")]
    pub server_id: SpiffeId,
    /// PEM file with the certificate chain that the gateway shows. Without it and its key the gateway shows the identity
    /// of the trust generation that serves, and follows it.
    pub certificate: Option<PathBuf>,
    /// PEM file with the key of that certificate.
    pub key: Option<PathBuf>,
    /// Longest time for one answer, in milliseconds, at most ten minutes. The call's own deadline, less a margin, counts
    /// if it is sooner.
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u64,
    /// Longest time to connect, in milliseconds; at most a minute.
    #[serde(default = "default_connect_timeout_ms")]
    pub connect_timeout_ms: u64,
    /// Largest answer taken, in bytes; 1 KiB to 256 MiB.
    #[serde(default = "default_max_answer_bytes")]
    pub max_answer_bytes: usize,
}

fn spiffe_id<'de, D: serde::Deserializer<'de>>(input: D) -> Result<SpiffeId, D::Error> {
    String::deserialize(input)?.parse().map_err(serde::de::Error::custom)
}

const fn default_timeout_ms() -> u64 {
    5_000
}

const fn default_connect_timeout_ms() -> u64 {
    2_000
}

/// 32 records with a picture of 64 KiB each, and as much again for the rest.
const fn default_max_answer_bytes() -> usize {
    2 * MAX_RECORDS * 65_536
}

impl SourceConfig {
    /// What is out of its bounds.
    fn out_of_bounds(&self) -> impl Iterator<Item = String> {
        let bounds = [
            ("timeout_ms", self.timeout_ms, 1, 600_000),
            ("connect_timeout_ms", self.connect_timeout_ms, 1, 60_000),
            ("max_answer_bytes", self.max_answer_bytes as u64, 1_024, 256 << 20),
        ];
        let out = bounds.into_iter().filter(|(_, value, least, most)| !(*least..=*most).contains(value));
        out.map(|(name, value, least, most)| format!("{name} is {value}; it must be {least} to {most}"))
    }

    /// Makes relative paths relative to `base`.
    pub fn rebase(&mut self, base: &Path) {
        for path in iter::once(&mut self.ca).chain(&mut self.certificate).chain(&mut self.key) {
            *path = base.join(&*path);
        }
    }

    /// What of it does not fit a catalog: an unknown department, types that are unknown or another department's.
    pub fn misfits(&self, catalog: &Catalog) -> Vec<String> {
        let department = self.department.parse().ok().filter(|code| catalog.department(code).is_some());
        let Some(department) = department else { return vec![format!("unknown department {}", self.department)] };
        let misfit = |code: &String| match catalog.certificate_type(code) {
            None => Some(format!("unknown certificate type {code}")),
            Some(found) if found.provider != department => {
                Some(format!("{code} is provided by {}, not by {department}", found.provider))
            }
            Some(_) => None,
        };
        self.certificate_types.iter().filter_map(misfit).collect()
    }
}

/// What a source is asked: enough for the protocols of the exchange platforms, which name the asker and the purpose.
#[derive(Debug, Clone)]
pub struct Query {
    /// The gateway's id of the request that started the fetch.
    pub request_id: RequestId,
    /// Whose record.
    pub subject: Subject,
    /// Fields needed.
    pub fields: Fields,
    /// Who asks and for what.
    pub purpose: Arc<Purpose>,
    /// W3C trace context to hand on, if the request has one.
    pub trace: TraceContext,
}

/// What a source sent, not yet checked.
#[derive(Debug, Clone)]
pub struct SourceRecord {
    /// Type URL of the record's `Any`.
    pub type_url: String,
    /// Its encoded message.
    pub value: Bytes,
    /// Keys that the source echoes.
    pub echoed: Vec<(String, String)>,
}

/// A system that holds records.
#[async_trait]
pub trait Source: Send + Sync + 'static {
    /// The records that match every key, before `deadline`. Dropping the future cancels the call.
    async fn fetch(&self, query: &Query, deadline: Instant) -> Result<Vec<SourceRecord>, FetchError>;
}

/// Records about the subject asked for, in the type asked for.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// The answer, shared with the cache.
    pub answer: Arc<CachedAnswer>,
    /// True if it was in memory already.
    pub cached: bool,
    /// Time the provider took; zero if cached.
    pub took: Duration,
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// No source is configured for the certificate type.
    #[error("no source is connected")]
    NotConnected,
    /// The provider has no such record.
    #[error("no record")]
    NotFound,
    /// More records than allowed match.
    #[error("too many records")]
    Ambiguous,
    /// The provider's bound of calls in flight is reached.
    #[error("the provider's bound of calls is reached")]
    Limited {
        /// When to try again.
        retry_after: Duration,
    },
    /// The provider can't be reached, or said so.
    #[error("the provider is unavailable")]
    Unavailable,
    /// The provider did not answer in time.
    #[error("the provider did not answer in time")]
    Timeout,
    /// The provider refused the gateway.
    #[error("the provider refused")]
    Refused,
    /// The answer is about somebody else.
    #[error("the answer is about another subject, or keys do not match")]
    AnotherSubject,
    /// The answer is not what was asked for.
    #[error("the answer is invalid: {0}")]
    Invalid(&'static str),
}

/// The state of one source, for operators.
#[derive(Debug, Clone)]
pub struct SourceStatus {
    /// Department.
    pub department: DepartmentCode,
    /// Name in the configuration.
    pub name: String,
    /// When it last answered.
    pub last_answer: Option<Timestamp>,
    /// Failures since then.
    pub failures: u32,
}

struct Connected {
    name: String,
    department: DepartmentCode,
    timeout: Duration,
    source: Box<dyn Source>,
    channel: Arc<RotatingChannel>,
    last_answer_us: AtomicU64,
    failures: AtomicU32,
}

/// All sources, the cache and the fetches under way. Cheap to clone.
#[derive(Clone)]
pub struct Connectors(Arc<Inner>);

struct Inner {
    by_type: HashMap<String, Arc<Connected>>,
    sources: Vec<Arc<Connected>>,
    cache: AnswerCache,
    limits: Arc<Limits>,
    flights: Flights,
    clock: Clock,
    metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Connectors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connectors").field("sources", &self.0.sources.len()).finish_non_exhaustive()
    }
}

/// Kept back from the caller's deadline so that the entry can still be written and the answer sent.
const DEADLINE_MARGIN: Duration = Duration::from_millis(50);

impl Connectors {
    /// Prepares a connection to each source; none is opened yet. `served` is the identity of the trust generation, for
    /// sources that are shown no other.
    ///
    /// # Errors
    /// All faults at once: unknown departments and types, types of another department or with two sources, unusable
    /// trust material. `file` names the configuration they stand in.
    #[expect(clippy::too_many_arguments, reason = "each is another part of the gateway")]
    pub fn new(
        file: &Path,
        configs: &[SourceConfig],
        served: Option<&Arc<CertifiedKey>>,
        catalog: &Catalog,
        cache: AnswerCache,
        limits: Arc<Limits>,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Result<Self, Faults> {
        let mut faults = Faults::default();
        let mut by_type = HashMap::new();
        let mut sources: Vec<Arc<Connected>> = Vec::new();
        for config in configs {
            let at = |what: String| Fault {
                file: file.into(),
                line: None,
                message: format!("source {}: {what}", config.name),
            };
            if sources.iter().any(|other| other.name == config.name) {
                faults.0.push(at("the name is used twice".into()));
            }
            faults.0.extend(config.misfits(catalog).into_iter().map(at));
            let Ok(department) = config.department.parse::<DepartmentCode>() else { continue };
            faults.0.extend(config.out_of_bounds().map(at));
            if !crate::certs::upstream::is_address(&config.address) {
                faults.0.push(at("address must be https://host:port".into()));
                continue;
            }
            let name = format!("source {}", config.name);
            let channel = match RotatingChannel::new(name, upstream(config), served, &clock) {
                Ok(channel) => channel,
                Err(found) => {
                    faults.0.extend(found.0);
                    continue;
                }
            };
            let connected = Arc::new(Connected {
                name: config.name.clone(),
                department: department.clone(),
                timeout: Duration::from_millis(config.timeout_ms),
                source: Box::new(grpc::GrpcSource::new(channel.clone(), config.max_answer_bytes)),
                channel,
                last_answer_us: AtomicU64::new(0),
                failures: AtomicU32::new(0),
            });
            for code in &config.certificate_types {
                if by_type.insert(code.clone(), connected.clone()).is_some() {
                    faults.0.push(at(format!("{code} has another source already")));
                }
            }
            sources.push(connected);
        }
        let flights = Flights::default();
        faults.or(Self(Arc::new(Inner { by_type, sources, cache, limits, flights, clock, metrics })))
    }

    /// True if a source is configured for the certificate type.
    pub fn connected(&self, certificate_type: &str) -> bool {
        self.0.by_type.contains_key(certificate_type)
    }

    /// The state of each source.
    pub fn status(&self) -> Vec<SourceStatus> {
        let status = |source: &Arc<Connected>| SourceStatus {
            department: source.department.clone(),
            name: source.name.clone(),
            last_answer: match source.last_answer_us.load(Ordering::Relaxed) {
                0 => None,
                micros => Some(Timestamp::from_micros(micros)),
            },
            failures: source.failures.load(Ordering::Relaxed),
        };
        self.0.sources.iter().map(status).collect()
    }

    /// The channel of each source.
    pub fn channels(&self) -> impl Iterator<Item = &Arc<RotatingChannel>> {
        self.0.sources.iter().map(|source| &source.channel)
    }

    /// The records of `subject`, with at least the fields that `permit` may release, before `deadline`.
    ///
    /// A caller that stops waiting drops the future: the fetch goes on for the others who wait for it, and is cancelled
    /// with the last of them. `asks` is called if the department is asked, by the id of this very query.
    ///
    /// # Errors
    /// See [`FetchError`]; nothing is kept of a failure.
    pub async fn fetch(
        &self,
        permit: &Permit,
        query: Query,
        deadline: Instant,
        asks: impl FnOnce(),
    ) -> Result<Fetched, FetchError> {
        let inner = &self.0;
        let kind = query.subject.certificate_type();
        let source = inner.by_type.get(&kind.code).ok_or(FetchError::NotConnected)?;
        debug_assert_eq!(permit.fetch_fields(), query.fields, "only what may be released is asked for");

        let key = Key::of(query.purpose.consumer(), query.purpose.matter(), &query.subject);
        if !query.fields.intersects(kind.volatile)
            && let Some(answer) = inner.cache.get(&key, query.fields)
        {
            inner.metrics.cache(CacheResult::Hit);
            return Ok(Fetched { answer, cached: true, took: Duration::ZERO });
        }
        inner.metrics.cache(CacheResult::Miss);

        let started = Instant::now();
        let deadline = deadline.checked_sub(DEADLINE_MARGIN).unwrap_or(started).min(started + source.timeout);
        let flight_key = FlightKey { cache: key.clone(), fields: query.fields };
        let (this, source) = (self.clone(), source.clone());
        let flight = inner.flights.join(flight_key, deadline, || {
            asks();
            async move {
                let result = this.ask(&source, &query, deadline).await;
                this.note(&source, &result, started.elapsed());
                let answer = Arc::new(CachedAnswer {
                    records: checked(&query, result?)?,
                    fields: query.fields,
                    fetched_at: this.0.clock.now(),
                    fetched_by: query.request_id,
                });
                this.0.cache.put(key, &answer, query.subject.certificate_type().freshness);
                Ok(answer)
            }
        });
        let answer = tokio::time::timeout_at(deadline, flight.wait()).await.map_err(|_| FetchError::Timeout)??;
        Ok(Fetched { answer, cached: false, took: started.elapsed() })
    }

    async fn ask(&self, source: &Connected, query: &Query, deadline: Instant) -> Result<Vec<SourceRecord>, FetchError> {
        let _place = (self.0.limits.provider(&source.department)).map_err(|limited| {
            self.0.metrics.limited(LimitScope::Provider);
            FetchError::Limited { retry_after: limited.retry_after }
        })?;
        tokio::time::timeout_at(deadline, source.source.fetch(query, deadline))
            .await
            .map_err(|_| FetchError::Timeout)?
    }

    fn note(&self, source: &Connected, result: &Result<Vec<SourceRecord>, FetchError>, took: Duration) {
        let outcome = match result {
            Ok(_) => "answered",
            Err(FetchError::Timeout) => "timeout",
            Err(FetchError::Limited { .. }) => "limited",
            Err(_) => "failed",
        };
        self.0.metrics.provider(&source.department, outcome, took);
        if let Err(error) = result {
            source.failures.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(provider = %source.department, source = source.name, %error, "fetch failed");
        } else {
            source.failures.store(0, Ordering::Relaxed);
            source.last_answer_us.store(self.0.clock.now().as_micros(), Ordering::Relaxed);
        }
    }
}

/// The records' bytes, if every one is of the type and about the subject asked for.
fn checked(query: &Query, records: Vec<SourceRecord>) -> Result<Vec<Bytes>, FetchError> {
    let kind = query.subject.certificate_type();
    if records.is_empty() {
        return Err(FetchError::NotFound);
    }
    if records.len() > if kind.many { MAX_RECORDS } else { 1 } {
        return Err(FetchError::Ambiguous);
    }
    let mut bytes = Vec::with_capacity(records.len());
    for record in records {
        if record.type_url != kind.type_url {
            return Err(FetchError::Invalid("another certificate type"));
        }
        if !answers_subject(&query.subject, &record.value, &record.echoed) {
            return Err(FetchError::AnotherSubject);
        }
        bytes.push(record.value);
    }
    Ok(bytes)
}

/// What lies under a status that a call on a channel ended with; nothing if it is the server's own.
fn causes(status: &tonic::Status) -> impl Iterator<Item = &(dyn Error + 'static)> {
    iter::successors(status.source(), |&cause| cause.source())
}

fn upstream(config: &SourceConfig) -> UpstreamConfig {
    let SourceConfig { address, ca, certificate, key, server_id, .. } = config.clone();
    UpstreamConfig {
        connect_timeout_ms: config.connect_timeout_ms,
        ..UpstreamConfig::new(address, ca, certificate, key, server_id)
    }
}
