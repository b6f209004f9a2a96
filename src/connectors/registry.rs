//! The platform's registries of cases and consents: what conditions rest on, so that nobody's word counts for a register.
//!
//! An open case and a given consent are kept in memory for `fresh_s`; nothing else is, so that a case opened a moment ago
//! is found at once. A registry that does not answer makes its facts unknown: nothing is released on them.

use std::iter;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::sign::CertifiedKey;
use serde::Deserialize;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::rotate::RotatingChannel;
use super::spiffe_id;
use crate::catalog::{Faults, Subject};
use crate::certs::upstream::UpstreamConfig;
use crate::clock::Clock;
use crate::identity::{Basis, Purpose};
use crate::ids::{RequestId, SpiffeId};
use crate::pb::fact as pb;
use crate::pb::fact::case_registry_service_client::CaseRegistryServiceClient;
use crate::pb::fact::consent_registry_service_client::ConsentRegistryServiceClient;
use crate::policy::{Case, Given, Needs, Party};
use crate::telemetry::Metrics;

/// Memory for cases and for consents, in bytes each: some ten thousand of either.
const MAX_BYTES: u64 = 16 << 20;
/// The largest answer taken, in bytes: 64 parties of 16 attributes with 64 bytes each.
const MAX_ANSWER_BYTES: usize = 64 << 10;
/// A case with more parties than this is not believed.
const MAX_PARTIES: usize = 64;
/// Nor is a party with more attributes.
const MAX_ATTRIBUTES: usize = 16;
/// What an entry takes in memory beside its texts, in bytes.
const ENTRY_BYTES: usize = 256;

/// The registries; without one, its facts are unknown and what depends on them is released to nobody.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistriesConfig {
    /// `fact.v1.CaseRegistryService`.
    pub case: Option<RegistryConfig>,
    /// `fact.v1.ConsentRegistryService`.
    pub consent: Option<RegistryConfig>,
}

/// One registry.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistryConfig {
    /// `https://host:port`.
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
    /// Longest time for one answer, in milliseconds, 1 to 600000. Default 1000.
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u64,
    /// How long an open case, or a given consent, is believed, in seconds: the delay after which a closed case or a
    /// revoked consent is noticed at the latest. 0 asks each time; at most 3600. Default 30.
    #[serde(default = "default_fresh_s")]
    pub fresh_s: u64,
}

const fn default_timeout_ms() -> u64 {
    1_000
}

const fn default_fresh_s() -> u64 {
    30
}

impl RegistryConfig {
    /// What is out of its bounds.
    fn out_of_bounds(&self) -> impl Iterator<Item = String> {
        let bounds = [("timeout_ms", self.timeout_ms, 1, 600_000), ("fresh_s", self.fresh_s, 0, 3_600)];
        let out = bounds.into_iter().filter(|(_, value, least, most)| !(*least..=*most).contains(value));
        out.map(|(name, value, least, most)| format!("{name} is {value}; it must be {least} to {most}"))
    }
}

impl RegistriesConfig {
    /// Adds a fault for everything that is out of its bounds.
    fn check(&self, file: &Path, faults: &mut Faults) {
        for (name, registry) in [("case", &self.case), ("consent", &self.consent)] {
            for what in registry.iter().flat_map(RegistryConfig::out_of_bounds) {
                faults.of(file, format!("[registries.{name}] {what}"));
            }
        }
    }

    /// Makes relative paths relative to `base`.
    pub fn rebase(&mut self, base: &Path) {
        for registry in self.case.iter_mut().chain(&mut self.consent) {
            for path in iter::once(&mut registry.ca).chain(&mut registry.certificate).chain(&mut registry.key) {
                *path = base.join(&*path);
            }
        }
    }
}

/// The clients of both registries. Cheap to clone.
#[derive(Clone)]
pub struct Registries {
    case: Option<Registry<Arc<Case>>>,
    consent: Option<Registry<bool>>,
    metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Registries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (case, consent) = (self.case.is_some(), self.consent.is_some());
        f.debug_struct("Registries").field("case", &case).field("consent", &consent).finish_non_exhaustive()
    }
}

/// One client with its memory of what was asked for, as [`joined`] tells it.
#[derive(Clone)]
struct Registry<V> {
    channel: Arc<RotatingChannel>,
    timeout: Duration,
    known: moka::future::Cache<String, V>,
}

/// What is not kept in memory.
#[derive(Clone, Copy, Debug)]
enum NotKept {
    /// No answer, or one that is not believed; the reason is in the log.
    Unknown,
    /// It answered no.
    No,
}

impl Registries {
    /// Prepares a connection to each registry; none is opened yet. `file` is the configuration, `served` the identity of the
    /// trust generation, for registries that are shown no other.
    ///
    /// # Errors
    /// All faults of the configuration and the trust material at once.
    pub fn new(
        config: &RegistriesConfig,
        file: &Path,
        served: Option<&Arc<CertifiedKey>>,
        clock: &Clock,
        metrics: Arc<Metrics>,
    ) -> Result<Self, Faults> {
        let mut faults = Faults::default();
        config.check(file, &mut faults);
        if !faults.0.is_empty() {
            return Err(faults);
        }
        let mut open = |name: &str, config: &RegistryConfig| {
            let RegistryConfig { address, ca, certificate, key, server_id, .. } = config.clone();
            let upstream = UpstreamConfig::new(address, ca, certificate, key, server_id);
            let channel = RotatingChannel::new(format!("{name} registry"), upstream, served, clock);
            channel.map_err(|found| faults.0.extend(found.0)).ok()
        };
        let case = config.case.as_ref().and_then(|config| {
            let known = memory(config).weigher(|key: &String, case: &Arc<Case>| {
                let attributes = case.parties.iter().flat_map(|party| &party.attributes);
                let held: usize = attributes.map(|(name, value)| ENTRY_BYTES / 2 + name.len() + value.len()).sum();
                u32::try_from(ENTRY_BYTES + key.len() + held).unwrap_or(u32::MAX)
            });
            Some(Registry { channel: open("case", config)?, timeout: timeout(config), known: known.build() })
        });
        let consent = config.consent.as_ref().and_then(|config| {
            let known = memory(config)
                .weigher(|key: &String, _: &bool| u32::try_from(ENTRY_BYTES + key.len()).unwrap_or(u32::MAX));
            Some(Registry { channel: open("consent", config)?, timeout: timeout(config), known: known.build() })
        });
        faults.or(Self { case, consent, metrics })
    }

    /// The channel of each registry.
    pub fn channels(&self) -> impl Iterator<Item = &Arc<RotatingChannel>> {
        let case = self.case.iter().map(|registry| &registry.channel);
        case.chain(self.consent.iter().map(|registry| &registry.channel))
    }

    /// What the registries that are needed say, before `deadline`. Never fails: what is not known is none.
    pub async fn given(
        &self,
        needs: Needs,
        id: RequestId,
        purpose: &Purpose,
        subject: &Subject,
        deadline: Instant,
    ) -> Given {
        let case = async {
            match &self.case {
                Some(registry) if needs.case => self.case(registry, id, purpose, deadline).await,
                _ => None,
            }
        };
        let consent = async {
            match &self.consent {
                Some(registry) if needs.consent && purpose.basis() == Basis::Consent => {
                    self.consent(registry, id, purpose, subject, deadline).await
                }
                _ => None,
            }
        };
        let (case, consent) = tokio::join!(case, consent);
        Given { case, consent }
    }

    async fn case(
        &self,
        registry: &Registry<Arc<Case>>,
        id: RequestId,
        purpose: &Purpose,
        deadline: Instant,
    ) -> Option<Arc<Case>> {
        let (matter, case_id, consumer) = (purpose.matter(), purpose.case_id().as_str(), purpose.consumer().as_str());
        let key = joined(&[matter, case_id, consumer]);
        if let Some(known) = registry.known.get(&key).await {
            return Some(known);
        }
        let message = pb::GetCaseRequest {
            request_id: id.to_string(),
            matter: matter.to_owned(),
            case_id: case_id.to_owned(),
            consumer: consumer.to_owned(),
        };
        let call = |channel, message| {
            let client = CaseRegistryServiceClient::new(channel);
            let mut client = client.max_decoding_message_size(MAX_ANSWER_BYTES);
            async move { client.get_case(message).await.map(tonic::Response::into_inner) }
        };
        let asked = async {
            let answer = self.ask("case", registry, deadline, message, call);
            match case_of(answer.await?) {
                Some(case) if case.open => Ok(Arc::new(case)),
                Some(_) => Err(NotKept::No),
                None => Err(NotKept::Unknown),
            }
        };
        // Boxed: rarely taken, and large.
        match Box::pin(registry.known.try_get_with(key, asked)).await {
            Ok(case) => Some(case),
            Err(why) => match *why {
                NotKept::No => Some(Arc::default()),
                NotKept::Unknown => None,
            },
        }
    }

    async fn consent(
        &self,
        registry: &Registry<bool>,
        id: RequestId,
        purpose: &Purpose,
        subject: &Subject,
        deadline: Instant,
    ) -> Option<bool> {
        let message = pb::CheckConsentRequest {
            request_id: id.to_string(),
            reference: purpose.basis_reference().to_owned(),
            consumer: purpose.consumer().to_string(),
            matter: purpose.matter().to_owned(),
            case_id: purpose.case_id().to_string(),
            certificate_type: subject.certificate_type().code.clone(),
            holder: subject.holder().to_owned(),
        };
        let pb::CheckConsentRequest { reference, consumer, matter, case_id, certificate_type, holder, .. } = &message;
        let key = joined(&[reference, consumer, matter, case_id, certificate_type, holder]);
        if let Some(known) = registry.known.get(&key).await {
            return Some(known);
        }
        let call = |channel, message| {
            let client = ConsentRegistryServiceClient::new(channel);
            let mut client = client.max_decoding_message_size(MAX_ANSWER_BYTES);
            async move { client.check_consent(message).await.map(tonic::Response::into_inner) }
        };
        let asked = async {
            let answer = self.ask("consent", registry, deadline, message, call);
            match answer.await?.state() {
                pb::ConsentState::Given => Ok(true),
                pb::ConsentState::None | pb::ConsentState::Revoked => Err(NotKept::No),
                pb::ConsentState::Unspecified => Err(NotKept::Unknown),
            }
        };
        match Box::pin(registry.known.try_get_with(key, asked)).await {
            Ok(given) => Some(given),
            Err(why) => match *why {
                NotKept::No => Some(false),
                NotKept::Unknown => None,
            },
        }
    }

    /// One question, with its time and its metric.
    async fn ask<V, M: Clone, A, F>(
        &self,
        name: &'static str,
        registry: &Registry<V>,
        deadline: Instant,
        message: M,
        call: impl Fn(Channel, Request<M>) -> F,
    ) -> Result<A, NotKept>
    where
        F: Future<Output = Result<A, Status>>,
    {
        let started = Instant::now();
        let deadline = deadline.min(started + registry.timeout);
        let call = |channel| {
            let mut request = Request::new(message.clone());
            request.set_timeout(deadline.saturating_duration_since(Instant::now()));
            call(channel, request)
        };
        let answer = tokio::time::timeout_at(deadline, registry.channel.call(call)).await;
        let (result, word) = match answer {
            Ok(Ok(answer)) => (Ok(answer), "answered"),
            Ok(Err(status)) => {
                // The registry's own text may name a citizen: the code alone is logged.
                tracing::warn!(registry = name, code = ?status.code(), "registry refused or failed");
                (Err(NotKept::Unknown), "failed")
            }
            Err(_) => {
                tracing::warn!(registry = name, "registry did not answer in time");
                (Err(NotKept::Unknown), "timeout")
            }
        };
        self.metrics.registry(name, word, started.elapsed());
        result
    }
}

/// The case, if the answer has the form of one. What is beyond its bounds is not believed.
fn case_of(answer: pb::GetCaseResponse) -> Option<Case> {
    let open = match answer.state() {
        pb::CaseState::Open => true,
        pb::CaseState::None | pb::CaseState::Closed => false,
        pb::CaseState::Unspecified => return None,
    };
    let bounded = |party: &pb::CaseParty| party.attributes.len() <= MAX_ATTRIBUTES;
    if answer.parties.len() > MAX_PARTIES || !answer.parties.iter().all(bounded) {
        tracing::warn!("the case registry sent a case beyond its bounds");
        return None;
    }
    // What is not known is left out: an empty value would be equal to another one.
    if answer.parties.iter().flat_map(|party| &party.attributes).any(|known| known.value.is_empty()) {
        tracing::warn!("the case registry sent a party with an empty attribute");
        return None;
    }
    let party = |party: pb::CaseParty| Party {
        role: party.role,
        attributes: party.attributes.into_iter().map(|known| (known.name, known.value)).collect(),
    };
    Some(Case { open, region: answer.region, parties: answer.parties.into_iter().map(party).collect() })
}

fn memory<V>(config: &RegistryConfig) -> moka::future::CacheBuilder<String, V, moka::future::Cache<String, V>>
where
    V: Clone + Send + Sync + 'static,
{
    moka::future::Cache::builder().max_capacity(MAX_BYTES).time_to_live(Duration::from_secs(config.fresh_s))
}

/// The parts of a question as one key. None of them has a zero character: all are checked where they come in.
fn joined(parts: &[&str]) -> String {
    parts.join("\0")
}

const fn timeout(config: &RegistryConfig) -> Duration {
    Duration::from_millis(config.timeout_ms)
}
