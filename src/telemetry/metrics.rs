//! Every metric of the gateway, with its unit; this file is the list.
//!
//! | name | kind | labels |
//! | --- | --- | --- |
//! | `oncegate_requests_total` | counter | `method`, `outcome` |
//! | `oncegate_request_seconds` | histogram | `method` |
//! | `oncegate_provider_seconds` | histogram | `provider`, `result` |
//! | `oncegate_registry_seconds` | histogram | `registry`, `result` |
//! | `oncegate_fields_total` | counter | `decision` |
//! | `oncegate_cache_total` | counter | `result` |
//! | `oncegate_token_cache_total` | counter | `result` |
//! | `oncegate_limited_total` | counter | `scope` |
//! | `oncegate_connections` | gauge | |
//! | `oncegate_log_entries_total` | counter | `kind` |
//! | `oncegate_log_wait_seconds` | histogram | |
//! | `oncegate_log_writable` | gauge, 1 or 0 | |
//! | `oncegate_log_size` | gauge, entries | |
//! | `oncegate_log_signed` | gauge, entries in the latest checkpoint | |
//! | `oncegate_log_witnessed_seconds` | gauge, Unix time of the last cosignature, 0 for never | |
//! | `oncegate_log_disk_percent` | gauge, how full the log's disk is | |
//! | `oncegate_log_alarms` | gauge, alarms of the access log now | |
//! | `oncegate_policy_workdays_end_seconds` | gauge, Unix time when the holiday table ends, 0 if no condition needs it | |
//! | `oncegate_trust_expiry_seconds` | gauge, Unix time | `kind`, `name` |
//! | `oncegate_trust_crl_issued_seconds` | gauge, Unix time (`thisUpdate`) | `name` |
//! | `oncegate_trust_generation` | gauge: the number that serves | |
//! | `oncegate_trust_on_disk` | gauge: the number `current` leads to | |
//! | `oncegate_trust_staged_seconds` | gauge, Unix time, 0 if nothing is staged | |
//! | `oncegate_trust_refused` | gauge, 1 or 0 | |
//! | `oncegate_trust_reloads_total` | counter | `result` |
//! | `oncegate_rotation_refused` | gauge, 1 or 0 | `part` |
//! | `oncegate_connections_ended` | gauge, since the start | `result` |
//! | `oncegate_handshakes_refused` | gauge, since the start | `result` |
//! | `oncegate_unknown_fields_total` | counter | `certificate_type` |
//! | `oncegate_build_info` | info | `version` |
//!
//! A label's value is a word of the program or a code of the catalog, never a caller's text: the types below see to it,
//! and so the number of series is bounded.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::clock::Timestamp;
use crate::ids::DepartmentCode;

/// All metrics of one gateway. Updating one takes well under a microsecond.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    request_seconds: Family<MethodLabel, Histogram, fn() -> Histogram>,
    provider_seconds: Family<ProviderLabels, Histogram, fn() -> Histogram>,
    registry_seconds: Family<RegistryLabels, Histogram, fn() -> Histogram>,
    fields: Family<DecisionLabel, Counter>,
    cache: Family<ResultLabel, Counter>,
    token_cache: Family<ResultLabel, Counter>,
    limited: Family<ScopeLabel, Counter>,
    connections: Gauge,
    log_entries: Family<KindLabel, Counter>,
    log_wait: Histogram,
    log_writable: Gauge,
    log_size: Gauge,
    log_signed: Gauge,
    log_witnessed: Gauge,
    log_disk: Gauge,
    log_alarms: Gauge,
    policy_workdays_end: Gauge,
    trust: TrustGauges,
    unknown_fields: Family<TypeLabel, Counter>,
}

impl Metrics {
    /// All at zero; `version` is the program's.
    pub fn new(version: &'static str) -> Self {
        let metrics = Self {
            registry: Registry::with_prefix("oncegate"),
            requests: Family::default(),
            request_seconds: Family::new_with_constructor(request_histogram),
            provider_seconds: Family::new_with_constructor(request_histogram),
            registry_seconds: Family::new_with_constructor(request_histogram),
            fields: Family::default(),
            cache: Family::default(),
            token_cache: Family::default(),
            limited: Family::default(),
            connections: Gauge::default(),
            log_entries: Family::default(),
            log_wait: log_histogram(),
            log_writable: Gauge::default(),
            log_size: Gauge::default(),
            log_signed: Gauge::default(),
            log_witnessed: Gauge::default(),
            log_disk: Gauge::default(),
            log_alarms: Gauge::default(),
            policy_workdays_end: Gauge::default(),
            trust: TrustGauges::default(),
            unknown_fields: Family::default(),
        };
        metrics.zero_closed_sets();
        metrics.registered(version)
    }

    /// The text of all metrics, as `OpenMetrics` 1.0 has it.
    pub fn encode(&self) -> String {
        let mut out = String::new();
        // Writing to a `String` can't fail.
        let _ = text::encode(&mut out, &self.registry);
        out
    }

    /// A request ended. `method` is the RPC's short name, `unknown` for one that is not served; `outcome` a word of the
    /// access record.
    pub fn request(&self, method: &'static str, outcome: &'static str, took: Duration) {
        self.requests.get_or_create(&RequestLabels { method, outcome }).inc();
        self.request_seconds.get_or_create(&MethodLabel { method }).observe(took.as_secs_f64());
    }

    /// A provider answered or failed: `result` is `ok`, `not_found` or a kind of failure.
    pub fn provider(&self, provider: &DepartmentCode, result: &'static str, took: Duration) {
        let labels = ProviderLabels { provider: provider.to_string(), result };
        self.provider_seconds.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// A registry, `case` or `consent`, answered or failed: `result` is `answered`, `failed` or `timeout`.
    pub fn registry(&self, registry: &'static str, result: &'static str, took: Duration) {
        self.registry_seconds.get_or_create(&RegistryLabels { registry, result }).observe(took.as_secs_f64());
    }

    /// Fields decided upon.
    pub fn fields(&self, decision: FieldDecision, count: usize) {
        let label = DecisionLabel { decision: decision.word() };
        self.fields.get_or_create(&label).inc_by(u64::try_from(count).unwrap_or(u64::MAX));
    }

    /// The cache of answers was asked.
    pub fn cache(&self, result: CacheResult) {
        self.cache.get_or_create(&ResultLabel { result: result.word() }).inc();
    }

    /// The cache of verified tokens was asked.
    pub fn token_cache(&self, result: CacheResult) {
        self.token_cache.get_or_create(&ResultLabel { result: result.word() }).inc();
    }

    /// A call was refused for its rate.
    pub fn limited(&self, scope: LimitScope) {
        self.limited.get_or_create(&ScopeLabel { scope: scope.word() }).inc();
    }

    /// How many client connections are open now.
    pub fn connections(&self, open: usize) {
        self.connections.set(i64::try_from(open).unwrap_or(i64::MAX));
    }

    /// An entry of the access log is durable, `waited` after it was handed in.
    pub fn log_entry(&self, kind: LogKind, waited: Duration) {
        self.log_entries.get_or_create(&KindLabel { kind: kind.word() }).inc();
        self.log_wait.observe(waited.as_secs_f64());
    }

    /// Whether the access log takes entries.
    pub fn log_writable(&self, writable: bool) {
        self.log_writable.set(i64::from(writable));
    }

    /// How well the access log is signed, witnessed and housed.
    pub fn log_proofs(&self, size: u64, signed: u64, witnessed: Option<Timestamp>, disk_percent: u8, alarms: usize) {
        let set = |gauge: &Gauge, value: u64| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        set(&self.log_size, size);
        set(&self.log_signed, signed);
        set(&self.log_witnessed, witnessed.map_or(0, Timestamp::as_secs));
        set(&self.log_disk, disk_percent.into());
        set(&self.log_alarms, alarms as u64);
    }

    /// When the policy no longer knows which days are worked; none if none of its conditions asks.
    pub fn policy_workdays_end(&self, end: Option<Timestamp>) {
        let end = end.map_or(0, Timestamp::as_secs);
        self.policy_workdays_end.set(i64::try_from(end).unwrap_or(i64::MAX));
    }

    /// The state of trust; parts that are gone lose their series.
    pub fn trust(&self, state: &TrustState<'_>) {
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let gauges = &self.trust;
        gauges.generation.set(number(state.generation));
        gauges.on_disk.set(number(state.on_disk));
        gauges.staged.set(number(state.staged_at.as_secs()));
        gauges.refused.set(i64::from(state.refused));
        let expiries = state.expiries.iter().map(|(kind, name, at)| {
            (PartLabels { kind: (*kind).to_owned(), name: name.clone() }, number(at.as_secs()))
        });
        gauges.expiry.set(expiries.collect());
        let lists = state.crls_made.iter().map(|(ca, at)| (NameLabel { name: ca.clone() }, number(at.as_secs())));
        gauges.crl_issued.set(lists.collect());
        for (result, count) in [("drained", state.drained), ("killed", state.killed)] {
            gauges.ended.get_or_create(&ResultLabel { result }).set(number(count));
        }
        for (result, count) in &state.handshakes_refused {
            gauges.handshakes_refused.get_or_create(&ResultLabel { result }).set(number(*count));
        }
    }

    /// A generation that was found on disk serves, or was refused.
    pub fn trust_reload(&self, serves: bool) {
        let result = if serves { "activated" } else { "refused" };
        self.trust.reloads.get_or_create(&ResultLabel { result }).inc();
    }

    /// Whether newer material of a part beside the generations waits: a source's identity, or the token keys.
    pub fn rotation_refused(&self, part: &str, refused: bool) {
        self.trust.rotation.get_or_create(&RotationLabel { part: part.to_owned() }).set(i64::from(refused));
    }

    /// Fields of a provider's answer that the type's descriptor has not, all dropped. `certificate_type` is a code of
    /// the catalog.
    pub fn unknown_fields(&self, certificate_type: &str, count: u32) {
        let label = TypeLabel { certificate_type: certificate_type.to_owned() };
        self.unknown_fields.get_or_create(&label).inc_by(u64::from(count));
    }

    /// Series of closed sets stand from the start, so that a rate over them has no gap.
    fn zero_closed_sets(&self) {
        for decision in FieldDecision::ALL {
            self.fields(decision, 0);
        }
        for result in [CacheResult::Hit, CacheResult::Miss] {
            let label = ResultLabel { result: result.word() };
            drop(self.cache.get_or_create(&label));
            drop(self.token_cache.get_or_create(&label));
        }
        for scope in LimitScope::ALL {
            drop(self.limited.get_or_create(&ScopeLabel { scope: scope.word() }));
        }
        for result in ["activated", "refused"] {
            drop(self.trust.reloads.get_or_create(&ResultLabel { result }));
        }
        for result in HANDSHAKES_REFUSED {
            drop(self.trust.handshakes_refused.get_or_create(&ResultLabel { result }));
        }
        for kind in LogKind::ALL {
            drop(self.log_entries.get_or_create(&KindLabel { kind: kind.word() }));
        }
    }

    /// The encoder appends `_total` to counters, `_info` to infos and the unit where one is given.
    fn registered(mut self, version: &'static str) -> Self {
        let list = &mut self.registry;
        list.register("requests", "Requests by RPC and outcome", self.requests.clone());
        let help = "Time from a request's start to its end";
        list.register_with_unit("request", help, Unit::Seconds, self.request_seconds.clone());
        let help = "Time a provider took to answer";
        list.register_with_unit("provider", help, Unit::Seconds, self.provider_seconds.clone());
        let help = "Time a registry took to answer";
        list.register_with_unit("registry", help, Unit::Seconds, self.registry_seconds.clone());
        list.register("fields", "Fields by decision", self.fields.clone());
        list.register("cache", "Look-ups in the cache of answers", self.cache.clone());
        list.register("token_cache", "Look-ups in the cache of verified tokens", self.token_cache.clone());
        list.register("limited", "Calls refused for their rate", self.limited.clone());
        list.register("connections", "Open client connections", self.connections.clone());
        list.register("log_entries", "Durable entries of the access log by kind", self.log_entries.clone());
        let help = "Time an entry waits until it is durable";
        list.register_with_unit("log_wait", help, Unit::Seconds, self.log_wait.clone());
        list.register("log_writable", "1 if the access log takes entries", self.log_writable.clone());
        list.register("log_size", "Durable entries of the access log", self.log_size.clone());
        list.register("log_signed", "Entries in the latest checkpoint", self.log_signed.clone());
        let help = "Unix time of the last cosignature of a witness";
        list.register_with_unit("log_witnessed", help, Unit::Seconds, self.log_witnessed.clone());
        list.register("log_disk_percent", "How full the access log's disk is", self.log_disk.clone());
        list.register("log_alarms", "Alarms of the access log", self.log_alarms.clone());
        let help = "When the table of holidays ends, 0 if no condition needs it";
        list.register_with_unit("policy_workdays_end", help, Unit::Seconds, self.policy_workdays_end.clone());
        self.trust.register(list);
        let help = "Fields of providers' answers dropped as unknown";
        list.register("unknown_fields", help, self.unknown_fields.clone());
        list.register("build", "The running program", Info::new([("version", version)]));
        self
    }
}

/// Why a handshake is refused, where it is for the certificate shown.
const HANDSHAKES_REFUSED: [&str; 9] = [
    "blocked",
    "chain",
    "expired",
    "identity",
    "list_overdue",
    "no_certificate",
    "protocol",
    "revoked",
    "unknown_issuer",
];

/// The state of trust at one moment.
#[derive(Debug, Default)]
pub struct TrustState<'a> {
    /// Number of the generation that serves.
    pub generation: u64,
    /// Number that `current` leads to; of the one that serves where directories have no numbers.
    pub on_disk: u64,
    /// When what is staged was staged; zero if nothing is.
    pub staged_at: Timestamp,
    /// Whether what `current` leads to is refused.
    pub refused: bool,
    /// Kind, name and end of each part; no two have both the same.
    pub expiries: Vec<(&'a str, String, Timestamp)>,
    /// Name of each client CA with a revocation list, and when that was made.
    pub crls_made: Vec<(String, Timestamp)>,
    /// Connections drained since the start.
    pub drained: u64,
    /// Connections killed since the start.
    pub killed: u64,
    /// Handshakes refused since the start, by reason.
    pub handshakes_refused: Vec<(&'static str, u64)>,
}

#[derive(Debug, Default)]
struct TrustGauges {
    expiry: Parts<PartLabels>,
    crl_issued: Parts<NameLabel>,
    generation: Gauge,
    on_disk: Gauge,
    staged: Gauge,
    refused: Gauge,
    reloads: Family<ResultLabel, Counter>,
    rotation: Family<RotationLabel, Gauge>,
    ended: Family<ResultLabel, Gauge>,
    handshakes_refused: Family<ResultLabel, Gauge>,
}

/// Gauges of parts that come and go. A scrape at any moment sees each part that there was and still is.
#[derive(Debug)]
struct Parts<L> {
    family: Family<L, Gauge>,
    /// Those with a series.
    known: Mutex<HashSet<L>>,
}

impl<L: Clone + Eq + Hash> Default for Parts<L> {
    fn default() -> Self {
        Self { family: Family::default(), known: Mutex::default() }
    }
}

impl<L: Clone + Eq + Hash> Parts<L> {
    fn set(&self, parts: HashMap<L, i64>) {
        for (label, value) in &parts {
            self.family.get_or_create(label).set(*value);
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for gone in known.iter().filter(|label| !parts.contains_key(*label)) {
            self.family.remove(gone);
        }
        *known = parts.into_keys().collect();
    }
}

impl TrustGauges {
    fn register(&self, list: &mut Registry) {
        let help = "Unix time at which a part of the trust material ends";
        list.register_with_unit("trust_expiry", help, Unit::Seconds, self.expiry.family.clone());
        let help = "Unix time at which the revocation list of a client CA was made";
        list.register_with_unit("trust_crl_issued", help, Unit::Seconds, self.crl_issued.family.clone());
        list.register("trust_generation", "Number of the trust generation that serves", self.generation.clone());
        list.register("trust_on_disk", "Number of the trust generation in force on disk", self.on_disk.clone());
        let help = "Unix time at which the next generation was staged, 0 if none is";
        list.register_with_unit("trust_staged", help, Unit::Seconds, self.staged.clone());
        list.register("trust_refused", "1 if the generation in force on disk is refused", self.refused.clone());
        list.register("trust_reloads", "Generations found on disk by result", self.reloads.clone());
        list.register("rotation_refused", "1 if newer material of a part waits", self.rotation.clone());
        list.register("connections_ended", "Connections ended for trust since the start", self.ended.clone());
        let help = "Handshakes refused since the start by reason";
        list.register("handshakes_refused", help, self.handshakes_refused.clone());
    }
}

/// What became of a field.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FieldDecision {
    /// Released in clear.
    Released,
    /// Released masked.
    Masked,
    /// Compared with a claimed value.
    Compared,
    /// Withheld.
    Withheld,
}

impl FieldDecision {
    const ALL: [Self; 4] = [Self::Released, Self::Masked, Self::Compared, Self::Withheld];

    fn word(self) -> &'static str {
        match self {
            Self::Released => "released",
            Self::Masked => "masked",
            Self::Compared => "compared",
            Self::Withheld => "withheld",
        }
    }
}

/// What a cache said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CacheResult {
    /// Answered.
    Hit,
    /// Had nothing that serves.
    Miss,
}

impl CacheResult {
    fn word(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
        }
    }
}

/// What was asked too often.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LimitScope {
    /// By one calling system.
    Caller,
    /// About one subject.
    Subject,
    /// Wrong claims about one subject.
    Attempts,
    /// Of one provider, at once.
    Provider,
}

impl LimitScope {
    const ALL: [Self; 4] = [Self::Caller, Self::Subject, Self::Attempts, Self::Provider];

    fn word(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Subject => "subject",
            Self::Attempts => "attempts",
            Self::Provider => "provider",
        }
    }
}

/// The scope in lower case.
impl fmt::Display for LimitScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Kind of an access log entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogKind {
    /// A decision, or a call refused before one.
    Access,
    /// A change of policy, trust or catalog.
    Change,
    /// Start, stop and what operators did.
    Admin,
}

impl LogKind {
    const ALL: [Self; 3] = [Self::Access, Self::Change, Self::Admin];

    fn word(self) -> &'static str {
        match self {
            Self::Access => "access",
            Self::Change => "change",
            Self::Admin => "admin",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MethodLabel {
    method: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProviderLabels {
    provider: String,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RegistryLabels {
    registry: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DecisionLabel {
    decision: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PartLabels {
    kind: String,
    name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NameLabel {
    name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RotationLabel {
    part: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ScopeLabel {
    scope: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TypeLabel {
    certificate_type: String,
}

/// From a cached answer (under a millisecond) to the longest deadline.
fn request_histogram() -> Histogram {
    Histogram::new([0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0])
}

/// From one sync of a fast disk to the wait after which the log gives up (2 s).
fn log_histogram() -> Histogram {
    Histogram::new([0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 2.0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_of_the_list_is_written_with_its_labels() {
        let metrics = Metrics::new("1.2.3");
        metrics.request("Lookup", "released", Duration::from_millis(3));
        metrics.provider(&"WJ".parse().unwrap(), "ok", Duration::from_millis(30));
        metrics.registry("case", "answered", Duration::from_millis(2));
        metrics.fields(FieldDecision::Released, 4);
        metrics.cache(CacheResult::Hit);
        metrics.token_cache(CacheResult::Miss);
        metrics.limited(LimitScope::Subject);
        metrics.connections(2);
        metrics.log_entry(LogKind::Access, Duration::from_micros(300));
        metrics.log_writable(true);
        let end = Timestamp::from_secs(1_900_000_000);
        metrics.policy_workdays_end(Some(end));
        for name in ["gone", "GA"] {
            metrics.trust(&TrustState {
                generation: 7,
                on_disk: 8,
                refused: true,
                expiries: vec![("client_ca", name.to_owned(), end)],
                crls_made: vec![(name.to_owned(), end)],
                drained: 2,
                killed: 3,
                handshakes_refused: vec![("revoked", 4)],
                ..TrustState::default()
            });
        }
        metrics.trust_reload(false);
        metrics.rotation_refused("source birth", true);
        metrics.unknown_fields("marriage_certificate", 2);
        let text = metrics.encode();
        for line in [
            "oncegate_requests_total{method=\"Lookup\",outcome=\"released\"} 1",
            "oncegate_request_seconds_bucket{le=\"0.005\",method=\"Lookup\"} 1",
            "oncegate_provider_seconds_count{provider=\"WJ\",result=\"ok\"} 1",
            "oncegate_registry_seconds_count{registry=\"case\",result=\"answered\"} 1",
            "oncegate_fields_total{decision=\"released\"} 4",
            "oncegate_fields_total{decision=\"masked\"} 0",
            "oncegate_cache_total{result=\"hit\"} 1",
            "oncegate_cache_total{result=\"miss\"} 0",
            "oncegate_token_cache_total{result=\"miss\"} 1",
            "oncegate_limited_total{scope=\"subject\"} 1",
            "oncegate_connections 2",
            "oncegate_log_entries_total{kind=\"access\"} 1",
            "oncegate_log_wait_seconds_count 1",
            "oncegate_log_writable 1",
            "oncegate_policy_workdays_end_seconds 1900000000",
            "oncegate_trust_expiry_seconds{kind=\"client_ca\",name=\"GA\"} 1900000000",
            "oncegate_trust_crl_issued_seconds{name=\"GA\"} 1900000000",
            "oncegate_trust_generation 7",
            "oncegate_trust_on_disk 8",
            "oncegate_trust_staged_seconds 0",
            "oncegate_trust_refused 1",
            "oncegate_trust_reloads_total{result=\"refused\"} 1",
            "oncegate_rotation_refused{part=\"source birth\"} 1",
            "oncegate_connections_ended{result=\"killed\"} 3",
            "oncegate_handshakes_refused{result=\"revoked\"} 4",
            "oncegate_unknown_fields_total{certificate_type=\"marriage_certificate\"} 2",
            "oncegate_build_info{version=\"1.2.3\"} 1",
        ] {
            assert!(text.lines().any(|have| have == line), "{line}\nnot in\n{text}");
        }
        assert!(!text.contains("gone"), "a part that is gone has no series");
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn a_scrape_at_any_moment_sees_every_part() {
        let metrics = std::sync::Arc::new(Metrics::new("1.2.3"));
        let state = || TrustState {
            expiries: (0..50).map(|n| ("client_ca", n.to_string(), Timestamp::from_secs(1))).collect(),
            ..TrustState::default()
        };
        metrics.trust(&state());
        let told = metrics.clone();
        let telling = std::thread::spawn(move || (0..2000).for_each(|_| told.trust(&state())));
        while !telling.is_finished() {
            assert_eq!(metrics.encode().matches("oncegate_trust_expiry_seconds{").count(), 50);
        }
        telling.join().unwrap();
    }
}
