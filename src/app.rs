//! One gateway: build, run, drain.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::api::{self, Admin, AdminConfig, Fits, Guard, PolicyDesk, Problems};
use crate::audit::{AdminEntry, Alarms, AuditConfig, Entry, Journal, OpenError, PolicyKeys, StartInfo, WitnessConfig};
use crate::cache::AnswerCache;
use crate::catalog::{Catalog, Faults};
use crate::certs::{self, Gate, Keeper, Opened};
use crate::clock::{Clock, Timestamp};
use crate::config::Config;
use crate::connectors::{Connectors, Registries};
use crate::identity::{TokenVerifier, Tokens};
use crate::ids::DepartmentCode;
use crate::limits::Limits;
use crate::lookup::Gateway;
use crate::pb::gateway::{catalog_service_server, lookup_service_server};
use crate::policy::{Policy, Record, Rules, Store, StoreError};
use crate::telemetry::{self, Metrics, TrustState};
use crate::watched::{self, Rotation};
use crate::witness::{self, LogService, Peer, Proofs};

/// How often counters are carried over and the health is looked at.
const TICK: Duration = Duration::from_secs(1);

/// Why a gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration, or a file it names, is wrong.
    #[error("{0}")]
    Config(Faults),
    /// The access log can't be continued.
    #[error("access log: {0}")]
    Log(#[from] OpenError),
    /// The policy's generations can't be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The access log can't be served, or handed to its witnesses.
    #[error("access log: {0}")]
    Proofs(String),
    /// A port or socket can't be had.
    #[error("{what}: {error}")]
    Listen {
        /// Which.
        what: String,
        /// Why.
        error: io::Error,
    },
}

impl From<Faults> for StartError {
    fn from(faults: Faults) -> Self {
        Self::Config(faults)
    }
}

/// How a gateway ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Every call was answered.
    Drained,
    /// The grace passed first; so many connections were cut.
    Cut(usize),
}

/// Everything that the configuration and the files it names say, read and checked; nothing is bound, opened or written.
#[derive(Debug)]
pub struct Loaded {
    /// The listener's trust material.
    pub trust: Opened,
    /// Issuers' keys and platforms.
    pub tokens: TokenVerifier,
    /// Catalog, conditions and grants.
    pub policy: Policy,
    /// Departments' sources, not yet connected.
    pub connectors: Connectors,
    /// The platform's registers, not yet connected.
    pub registries: Registries,
    /// The witnesses of the access log, in the order of the configuration.
    pub witnesses: Vec<Peer>,
    rules: Rules,
    limits: Arc<Limits>,
    metrics: Arc<Metrics>,
}

impl Loaded {
    /// Reads everything, the policy from the configured bundle. Must be called within a runtime, which sources' channels
    /// belong to.
    ///
    /// # Errors
    /// All faults of all files at once.
    pub fn load(config: &Config, clock: &Clock) -> Result<Self, Faults> {
        Self::with_policy(config, &config.policy.bundle, None, clock)
    }

    /// The same with the policy of a folder, of which no file may be older than `before` has it.
    fn with_policy(config: &Config, bundle: &Path, before: Option<&Record>, clock: &Clock) -> Result<Self, Faults> {
        let mut faults = Faults::default();
        let metrics = Arc::new(Metrics::new(env!("CARGO_PKG_VERSION")));
        let limits = Arc::new(Limits::new(&config.limits));

        let trust = gather(&mut faults, Opened::open(&config.trust, &config.trust_domain, clock));
        config.hardening.check(&config.file, &mut faults);
        config.calls.check(&config.file, &mut faults);
        if let Some(admin) = &config.admin {
            admin.check(&config.file, &mut faults);
        }
        if let Err(error) = config.telemetry.check() {
            faults.of(&config.file, error.to_string());
        }
        if let Err(error) = config.audit.check().and_then(|()| config.audit.load_keys()) {
            faults.of(&config.file, format!("[audit] {error}"));
        }
        let served = trust.as_ref().and_then(|trust| trust.generation.client_identity());
        let rules = gather(&mut faults, Rules::load(&config.policy, &config.file));
        let policy = rules.as_ref().and_then(|rules| gather(&mut faults, rules.open(bundle, None, before)));
        let catalog = policy.as_ref().map(|policy| policy.catalog().clone());
        // What names departments and types can be checked if the catalog is sound, though grants may not be.
        let catalog = catalog.or_else(|| Catalog::read(bundle, &mut Faults::default()).map(Arc::new));
        let loaded = catalog.map(|catalog| {
            let registered = |code: &DepartmentCode| catalog.department(code).is_some();
            for code in config.limits.providers.keys().filter(|code| !registered(code)) {
                faults.of(&config.file, format!("limits.providers: no department {code} in the catalog"));
            }
            let bound = trust.iter().flat_map(|trust| &trust.generation.manifest().client_cas);
            for (ca, code) in bound.flat_map(|ca| ca.departments.iter().map(move |code| (&ca.name, code))) {
                if code.parse().is_ok_and(|code| !registered(&code)) {
                    let message = format!("client CA {ca}: no department {code} in the catalog");
                    faults.of(&config.trust.dir, message);
                }
            }
            let tokens = TokenVerifier::load(&config.identity, &config.trust_domain, registered);
            let cache = AnswerCache::new(&config.cache, clock.clone());
            let connectors = Connectors::new(
                &config.file,
                &config.sources,
                served,
                &catalog,
                cache,
                limits.clone(),
                clock.clone(),
                metrics.clone(),
            );
            let tokens = gather(&mut faults, tokens.map(|tokens| tokens.with_metrics(metrics.clone())));
            (tokens, gather(&mut faults, connectors))
        });
        let registries = Registries::new(&config.registries, &config.file, served, clock, metrics.clone());
        let registries = gather(&mut faults, registries);
        let witnesses = witness::peers(&config.audit, served, clock);
        let witnesses = witnesses.map_err(|error| faults.of(&config.file, format!("audit.witnesses: {error}"))).ok();
        faults.0.extend(policy.iter().flat_map(|policy| unserved(policy, config).0));
        match (trust, loaded, registries, witnesses, policy, rules, faults.0.is_empty()) {
            (
                Some(trust),
                Some((Some(tokens), Some(connectors))),
                Some(registries),
                Some(witnesses),
                Some(policy),
                Some(rules),
                true,
            ) => Ok(Self { trust, tokens, policy, connectors, registries, witnesses, rules, limits, metrics }),
            _ => Err(faults),
        }
    }
}

/// A gateway that is built, bound to its ports and not yet serving.
#[derive(Debug)]
pub struct App {
    gateway: Arc<Gateway>,
    keeper: Arc<Keeper>,
    services: Guard<Routes>,
    health: HealthReporter,
    listener: TcpListener,
    observe: TcpListener,
    /// For those who may hold a copy of the access log.
    log: Option<(TcpListener, LogService)>,
    audit: AuditConfig,
    /// The witnesses of the access log.
    witnesses: Vec<(Peer, WitnessConfig)>,
    proofs: Proofs,
    admin: Option<AdminConfig>,
    desk: Arc<PolicyDesk>,
    started_at: Timestamp,
}

impl App {
    /// Loads and checks everything, opens the access log, and binds the ports.
    ///
    /// # Errors
    /// See [`StartError`]; faults of the configuration come all at once. The log is opened last, so a gateway that can't
    /// start leaves no entry.
    pub async fn build(config: Config, clock: Clock) -> Result<Self, StartError> {
        let store = Store::open(&config.policy.store)?;
        let bundle = &config.policy.bundle;
        let current = store.current()?;
        // A generation that was rolled back to has older files than served already.
        let before = current.as_ref().map(|current| &current.record).filter(|record| record.rollback_of.is_none());
        let serving = match &current {
            Some(current) => current.dir.clone(),
            None => store.stage(bundle)?,
        };
        let loaded = Loaded::with_policy(&config, &serving, before, &clock).map_err(|faults| match &current {
            Some(_) => faults,
            None => faults.moved(&serving, bundle),
        })?;
        let Loaded { trust, tokens, policy, connectors, registries, witnesses, rules, limits, metrics } = loaded;
        let listener = bind("server.listen", config.server.listen).await?;
        let observe = bind("server.observe", config.server.observe).await?;
        let log = match &config.audit.serve {
            Some(serve) => Some(bind("audit.serve.listen", serve.listen).await?),
            None => None,
        };
        let held = witness::held(&config.audit, &witnesses).await?;
        let gateway_id = trust.generation.server_id().to_string();
        let [authority, approvers] = rules.kids();
        let start = StartInfo {
            gateway: gateway_id,
            policy: *policy.hash().as_bytes(),
            policy_keys: PolicyKeys { signed: rules.are_signed(), authority, approvers },
            trust: trust.generation.told(),
            held,
        };
        let number = match current {
            Some(current) if current.record.hash == policy.hash().to_string() => current.number,
            Some(current) => return Err(altered(&current.dir, &policy).into()),
            None => {
                store.prepare(&Record::new(&policy, clock.now(), "start".to_owned(), None))?;
                store.commit()?
            }
        };
        let journal = Journal::open(&config.audit, clock.clone(), start)?;
        let proofs = Proofs::open(&config.audit.dir).map_err(|error| StartError::Proofs(error.to_string()))?;
        let readers = config.audit.serve.iter().flat_map(|serve| serve.readers.clone());
        let service = LogService::new(journal.clone(), config.audit.dir.clone(), proofs.clone(), readers);
        let log = log.map(|listener| (listener, service));

        let tokens = Tokens::new(tokens, config.identity.clone(), clock.clone());
        let upstreams = connectors.channels().chain(registries.channels());
        let upstreams = upstreams.chain(witnesses.iter().filter_map(Peer::channel)).cloned().collect();
        let gateway = Arc::new(Gateway {
            tokens,
            limits,
            policy: ArcSwap::from_pointee(policy),
            upstreams,
            connectors,
            registries,
            journal,
            clock: clock.clone(),
            metrics,
            tasks: TaskTracker::new(),
        });
        let started_at = clock.now();
        let hardening = config.hardening.clone();
        let keeper = Keeper::new(trust, clock.clone(), |first| Gate::new(first, hardening, clock))?;
        let (health, health_service) = tonic_health::server::health_reporter();
        let services = api::services(gateway.clone(), config.calls.clone(), health_service)?;
        let admin = config.admin.clone();
        let audit = config.audit.clone();
        let witnesses = witnesses.into_iter().zip(audit.witnesses.clone()).collect();
        let fits = Fits(Arc::new(move |policy| unfit(policy, &config)));
        let desk = Arc::new(PolicyDesk::new(gateway.clone(), store, rules, fits, number));
        Ok(Self {
            gateway,
            keeper,
            services,
            health,
            listener,
            observe,
            log,
            audit,
            witnesses,
            proofs,
            admin,
            desk,
            started_at,
        })
    }

    /// Where the access log is served, if it is.
    ///
    /// # Errors
    /// If the system does not tell.
    pub fn log_address(&self) -> io::Result<Option<SocketAddr>> {
        self.log.as_ref().map(|(listener, _)| listener.local_addr()).transpose()
    }

    /// Where the gateway listens.
    ///
    /// # Errors
    /// If the system does not tell.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Where metrics, liveness and readiness are.
    ///
    /// # Errors
    /// If the system does not tell.
    pub fn observe_address(&self) -> io::Result<SocketAddr> {
        self.observe.local_addr()
    }

    /// What it serves with.
    pub fn gateway(&self) -> &Arc<Gateway> {
        &self.gateway
    }

    /// Serves until `stop`, then says so, finishes what is under way, and closes the log.
    ///
    /// # Errors
    /// If the admin socket can't be made.
    pub async fn run(self, stop: CancellationToken) -> Result<Ended, StartError> {
        let problems = problems(self.gateway.clone(), self.keeper.clone(), stop.clone());
        let ended = CancellationToken::new();
        if let Some(config) = self.admin {
            let what = format!("admin socket {}", config.socket.display());
            let admin = Admin {
                gateway: self.gateway.clone(),
                keeper: self.keeper.clone(),
                started_at: self.started_at,
                problems: problems.clone(),
                desk: self.desk.clone(),
            };
            api::serve_admin(config, admin, ended.clone()).await.map_err(|error| StartError::Listen { what, error })?;
        }
        let ready = {
            let problems = problems.clone();
            move || match (problems.0)() {
                found if found.is_empty() => Ok(()),
                found => Err(found),
            }
        };
        tokio::spawn(telemetry::serve(
            self.observe,
            self.gateway.metrics.clone(),
            ready,
            ended.clone().cancelled_owned(),
        ));
        for (peer, witness) in self.witnesses {
            let (journal, proofs) = (self.gateway.journal.clone(), self.proofs.clone());
            witness::submit(&self.audit, &witness, peer, journal, proofs, ended.clone())
                .map_err(|error| StartError::Proofs(error.to_string()))?;
        }
        if let Some((listener, service)) = self.log {
            tokio::spawn(certs::serve(listener, self.keeper.gate().clone(), service, ended.clone().cancelled_owned()));
        }
        let follower =
            tokio::spawn(self.keeper.clone().run(api::record_followed(self.gateway.clone(), self.keeper.clone())));
        let mut keys = follow_keys(&self.gateway, &self.keeper);
        let ticker = tokio::spawn(tick(self.gateway.clone(), self.keeper.clone(), self.health.clone(), problems));

        let health = self.health.clone();
        let shutdown = async move {
            stop.cancelled().await;
            tracing::info!("draining");
            set_health(&health, ServingStatus::NotServing).await;
        };
        let cut = certs::serve(self.listener, self.keeper.gate().clone(), self.services, shutdown).await;
        ticker.abort();
        follower.abort();
        keys.abort_all();
        self.gateway.settle().await;
        let ended_as = if cut == 0 { Ended::Drained } else { Ended::Cut(cut) };
        let journal = self.gateway.journal.clone();
        let reason = if cut == 0 { "drained" } else { "grace_expired" };
        // Waits for the writer, so it must not hold a worker.
        if tokio::task::spawn_blocking(move || journal.close(reason)).await.is_err() {
            tracing::error!("the access log was not closed in order");
        }
        ended.cancel();
        Ok(ended_as)
    }
}

/// A condition that no configured registry can answer would hold for nobody: better said at the start than found out.
fn unserved(policy: &Policy, config: &Config) -> Faults {
    let mut faults = Faults::default();
    let needs = policy.needs_of_all();
    for (name, needed, configured) in [
        ("case", needs.case, config.registries.case.is_some()),
        ("consent", needs.consent, config.registries.consent.is_some()),
    ] {
        if needed && !configured {
            let message = format!("grants name conditions of the {name} registry: [registries.{name}] is missing");
            faults.of(&config.file, message);
        }
    }
    faults
}

/// What of a policy a gateway that runs can't serve, nor would start with: its configuration stays as it is.
fn unfit(policy: &Policy, config: &Config) -> Faults {
    let mut faults = unserved(policy, config);
    let catalog = policy.catalog();
    for source in &config.sources {
        for what in source.misfits(catalog) {
            faults.of(&config.file, format!("source {}: {what}", source.name));
        }
    }
    for what in config.identity.unregistered(|code| catalog.department(code).is_some()) {
        faults.of(&config.file, format!("[identity] {what}"));
    }
    faults
}

/// A generation is immutable: one that is not what its record says was written by somebody else.
fn altered(dir: &Path, policy: &Policy) -> Faults {
    let mut faults = Faults::default();
    faults.of(dir, format!("was altered: its hash is {}, not that of its generation.toml", policy.hash()));
    faults
}

fn gather<T>(faults: &mut Faults, result: Result<T, Faults>) -> Option<T> {
    result.map_err(|found| faults.0.extend(found.0)).ok()
}

async fn bind(what: &str, address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|error| StartError::Listen { what: format!("{what} {address}"), error })
}

/// What keeps the gateway from taking calls: readiness tells the truth.
fn problems(gateway: Arc<Gateway>, keeper: Arc<Keeper>, stop: CancellationToken) -> Problems {
    Problems(Arc::new(move || {
        let mut found = Vec::new();
        if stop.is_cancelled() {
            found.push("draining".to_owned());
        }
        if !gateway.journal.is_writable() {
            found.push("the access log can't be written".to_owned());
            found.extend(gateway.journal.status().alarms.into_iter().map(|alarm| format!("access log: {alarm}")));
        }
        if keeper.gate().current().leaf_not_after() <= gateway.clock.now() {
            found.push("the server's certificate has expired".to_owned());
        }
        let policy = gateway.policy.load();
        if policy.grants().next().is_none() {
            found.push("the policy has no grant".to_owned());
        }
        found
    }))
}

/// Lets token keys, the log's keys and the identities towards others change while the gateway runs. Each is a task, for
/// one that waits must hold up no other.
fn follow_keys(gateway: &Arc<Gateway>, keeper: &Arc<Keeper>) -> JoinSet<()> {
    let mut followers = JoinSet::new();
    followers.spawn(follow_tokens(gateway.clone()));
    followers.spawn(follow_log_keys(gateway.clone()));
    for upstream in &gateway.upstreams {
        let gate = keeper.gate().clone();
        followers.spawn(upstream.clone().keep_following(move || gate.current().client_identity().cloned()));
    }
    followers
}

async fn follow_tokens(gateway: Arc<Gateway>) {
    let mut ticks = polls();
    loop {
        ticks.tick().await;
        let keys = gateway.clone();
        match tokio::task::spawn_blocking(move || keys.tokens.follow()).await {
            Ok(None) => {}
            Ok(Some(Ok(()))) => tracing::info!("other token keys are used"),
            Ok(Some(Err(faults))) => tracing::error!(%faults, "token keys refused; of these files, those from before"),
            Err(_) => tracing::error!("following the token keys failed"),
        }
    }
}

async fn follow_log_keys(gateway: Arc<Gateway>) {
    let mut ticks = polls();
    loop {
        ticks.tick().await;
        match gateway.journal.follow().await {
            None => {}
            Some(Ok(())) => tracing::info!("other keys are used for the access log"),
            Some(Err(error)) => tracing::error!(%error, "keys of the access log refused; those from before are used"),
        }
    }
}

fn polls() -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(watched::POLL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks
}

async fn tick(gateway: Arc<Gateway>, keeper: Arc<Keeper>, health: HealthReporter, problems: Problems) {
    let mut ticks = tokio::time::interval(TICK);
    let mut serving = None;
    let mut alarms = Alarms::default();
    let mut rotations = api::trust::rotations(&gateway);
    loop {
        ticks.tick().await;
        gateway.record_counted().await;
        let metrics = &gateway.metrics;
        let gate = keeper.gate();
        metrics.connections(gate.status().connections);
        let log = gateway.journal.status();
        metrics.log_writable(log.writable);
        metrics.log_proofs(log.size, log.signed, log.witnessed_at, log.disk_percent, log.alarms.len());
        alarms.record(&gateway.journal, gateway.clock.now()).await;
        record_rotations(&gateway, &mut rotations).await;
        let today = gateway.clock.now().date_in_china();
        metrics.policy_workdays_end(gateway.policy.load().workdays_end(today).map(Timestamp::start_of_day_in_china));
        let (told, of) = (gateway.clone(), keeper.clone());
        // Reads the trust directory.
        if tokio::task::spawn_blocking(move || tell_trust(&told, &of)).await.is_err() {
            tracing::error!("telling the state of trust failed");
        }
        let found = (problems.0)();
        if serving != Some(found.is_empty()) {
            serving = Some(found.is_empty());
            if found.is_empty() {
                set_health(&health, ServingStatus::Serving).await;
            } else {
                tracing::error!(problems = found.join("; "), "not ready");
                set_health(&health, ServingStatus::NotServing).await;
            }
        }
    }
}

/// Keys of tokens and of the log, and identities towards others, change by their files: each change is an entry, those
/// that were refused too.
async fn record_rotations(gateway: &Gateway, before: &mut [Rotation]) {
    for now in api::trust::rotations(gateway) {
        let Some(before) = before.iter_mut().find(|before| before.name == now.name) else { continue };
        let used = (before.since != now.since).then(|| "other material is used".to_owned());
        let refused = now.refused.as_ref().filter(|why| before.refused.as_ref() != Some(why));
        let changes: Vec<_> = used.into_iter().chain(refused.map(|why| format!("refused: {why}"))).collect();
        if changes.is_empty() {
            continue;
        }
        let (operator, method) = ("files".to_owned(), "rotation".to_owned());
        let entry = AdminEntry { operator, method, detail: format!("{}: {}", now.name, changes.join("; ")) };
        // A log that takes nothing now is told again with the next second.
        if gateway.journal.append(Entry::Admin(entry)).await.is_ok() {
            *before = now;
        }
    }
}

fn tell_trust(gateway: &Gateway, keeper: &Keeper) {
    let metrics = &gateway.metrics;
    for rotation in api::trust::rotations(gateway) {
        metrics.rotation_refused(&rotation.name, rotation.refused.is_some());
    }
    let (generation, status) = (keeper.gate().current(), keeper.gate().status());
    let of_generation = generation.expiries().iter().map(|part| (part.what.kind(), part.what.name(), part.at));
    let of_upstreams = gateway.upstreams.iter().flat_map(|upstream| upstream.ends());
    let staged = keeper.store().staged().ok().flatten();
    metrics.trust(&TrustState {
        generation: generation.number(),
        on_disk: keeper.number_on_disk().unwrap_or(generation.number()),
        staged_at: staged.and_then(|staged| staged.written_at()).unwrap_or_default(),
        refused: keeper.refused().is_some(),
        expiries: of_generation.chain(of_upstreams).collect(),
        crls_made: generation.crls_made().map(|(ca, at)| (ca.to_owned(), at)).collect(),
        drained: status.drained,
        killed: status.killed,
        handshakes_refused: keeper.gate().refused_handshakes().into_iter().collect(),
    });
}

/// The gateway as a whole, and each of its services by name, as the gRPC health protocol has it.
async fn set_health(health: &HealthReporter, status: ServingStatus) {
    for service in ["", lookup_service_server::SERVICE_NAME, catalog_service_server::SERVICE_NAME] {
        health.set_service_status(service, status).await;
    }
}
