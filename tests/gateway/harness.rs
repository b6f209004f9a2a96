//! A gateway of the reference deployment on free ports, sources that do as they are told, a client, and the auditor.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use futures_util::future::BoxFuture;
use oncegate::app::{App, Ended, StartError};
use oncegate::audit::AccessEntry;
use oncegate::audit::keys::PrivateKey;
use oncegate::audit::reader::LogReader;
use oncegate::cli::client::Profile;
use oncegate::cli::demo::{numbers, source};
use oncegate::cli::pki::{self, PkiSettings};
use oncegate::clock::Clock;
use oncegate::config::Config;
use oncegate::identity::Basis;
use oncegate::identity::mint::{MintRequest, SigningKey};
use oncegate::pb::department::record_source_service_server::{RecordSourceService, RecordSourceServiceServer};
use oncegate::pb::department::{FetchRecordsRequest, FetchRecordsResponse, SourceRecord};
use oncegate::pb::gateway as pb;
use oncegate::pb::gateway::lookup_service_client::LookupServiceClient;
use prost_reflect::{DescriptorPool, DynamicMessage, Value};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt as _;

use crate::registry::Registry;

/// The matter's first citation.
pub(crate) const CITATION: &str = "母婴保健法 第二十三条";
/// The case of every request, unless a test says otherwise.
pub(crate) const CASE: &str = "HS-TEST-000001";

/// A development PKI, made once per test process.
pub(crate) fn pki() -> &'static Path {
    static PKI: OnceLock<TempDir> = OnceLock::new();
    PKI.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let settings = PkiSettings::built_in().unwrap();
        pki::generate(&dir.path().join("out"), &settings, false, &Clock::system(), &oncegate::cli::audit_keys).unwrap();
        dir
    })
    .path()
}

pub(crate) fn out() -> PathBuf {
    pki().join("out")
}

/// What a source does with a call.
type Behaviour =
    Arc<dyn Fn(FetchRecordsRequest) -> BoxFuture<'static, Result<FetchRecordsResponse, Status>> + Send + Sync>;

/// A source that does as it is told.
#[derive(Clone)]
pub(crate) struct Script {
    behaviour: Arc<Mutex<Behaviour>>,
    calls: Arc<AtomicU32>,
    given_up: Arc<AtomicU32>,
    requests: Arc<Mutex<Vec<FetchRecordsRequest>>>,
}

impl Script {
    pub(crate) fn new() -> Self {
        let nothing: Behaviour = Arc::new(|_| Box::pin(async { Ok(FetchRecordsResponse::default()) }));
        Self {
            behaviour: Arc::new(Mutex::new(nothing)),
            calls: Arc::default(),
            given_up: Arc::default(),
            requests: Arc::default(),
        }
    }

    /// From now on, each call is answered so.
    pub(crate) fn answers(&self, records: Vec<SourceRecord>) {
        self.does(move |_| {
            let records = records.clone();
            async move { Ok(FetchRecordsResponse { records }) }
        });
    }

    pub(crate) fn fails(&self, code: Code) {
        self.does(move |_| async move { Err(Status::new(code, "the source's own words about 张三")) });
    }

    pub(crate) fn answers_after(&self, delay: Duration, records: Vec<SourceRecord>) {
        self.does(move |_| {
            let records = records.clone();
            async move {
                tokio::time::sleep(delay).await;
                Ok(FetchRecordsResponse { records })
            }
        });
    }

    fn does<F>(&self, behaviour: impl Fn(FetchRecordsRequest) -> F + Send + Sync + 'static)
    where
        F: Future<Output = Result<FetchRecordsResponse, Status>> + Send + 'static,
    {
        *self.behaviour.lock().unwrap() = Arc::new(move |request| Box::pin(behaviour(request)));
    }

    pub(crate) fn calls(&self) -> u32 {
        self.calls.load(Ordering::SeqCst)
    }

    /// Calls that the gateway cancelled.
    pub(crate) fn given_up(&self) -> u32 {
        self.given_up.load(Ordering::SeqCst)
    }

    pub(crate) fn last_request(&self) -> FetchRecordsRequest {
        self.requests.lock().unwrap().last().cloned().unwrap()
    }
}

struct CountIfDropped(Option<Arc<AtomicU32>>);

impl Drop for CountIfDropped {
    fn drop(&mut self) {
        if let Some(count) = &self.0 {
            count.fetch_add(1, Ordering::SeqCst);
        }
    }
}

#[tonic::async_trait]
impl RecordSourceService for Script {
    async fn fetch_records(
        &self,
        request: Request<FetchRecordsRequest>,
    ) -> Result<Response<FetchRecordsResponse>, Status> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.requests.lock().unwrap().push(request.get_ref().clone());
        let mut given_up = CountIfDropped(Some(self.given_up.clone()));
        let behaviour = self.behaviour.lock().unwrap().clone();
        let answer = behaviour(request.into_inner()).await;
        given_up.0 = None;
        answer.map(Response::new)
    }
}

/// TLS of a source of the PKI, `DEPARTMENT/name`.
pub(crate) fn source_tls(name: &str) -> Arc<rustls::ServerConfig> {
    let base = out().join("sources").join(name);
    let read = |path: PathBuf| std::fs::read(path).unwrap();
    source::tls(&read(base.with_extension("pem")), &read(base.with_extension("key")), &read(out().join("ca/ZS.pem")))
        .unwrap()
}

/// Serves `routes` with the certificate of a source of the PKI, `DEPARTMENT/name`, and tells where.
async fn serve(routes: Routes, name: &str, stop: CancellationToken) -> String {
    let tls = source_tls(name);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(source::serve(listener, tls, routes, stop));
    address
}

/// What the gateway runs against: two sources and the platform's registers.
#[derive(Clone)]
pub(crate) struct Around {
    pub(crate) birth: Script,
    pub(crate) population: Script,
    pub(crate) registry: Registry,
}

impl Around {
    pub(crate) fn new() -> Self {
        Self { birth: Script::new(), population: Script::new(), registry: Registry::new() }
    }
}

/// The reference deployment's configuration on free ports, with these sources and others that nobody answers for.
pub(crate) async fn deployment(around: &Around, stop: &CancellationToken) -> String {
    let here = std::env::current_dir().unwrap().join("deploy/heshan");
    let here = here.to_str().unwrap();
    let routes = |script: &Script| Routes::new(RecordSourceServiceServer::new(script.clone())).prepare();
    let birth = serve(routes(&around.birth), "WJ/birth", stop.clone()).await;
    let population = serve(routes(&around.population), "GA/population", stop.clone()).await;
    let registry = serve(around.registry.clone().routes(), "ZS/platform-registry", stop.clone()).await;
    std::fs::read_to_string(format!("{here}/gateway.toml"))
        .unwrap()
        .replace("../../certs-dev/out", out().to_str().unwrap())
        .replace("\"policy\"", &format!("\"{here}/policy\""))
        .replace("127.0.0.1:7443", "127.0.0.1:0")
        .replace("127.0.0.1:7490", "127.0.0.1:0")
        .replace("https://127.0.0.1:7470", &registry)
        .replace("127.0.0.1:7447", "127.0.0.1:0")
        // No witness answers, unless a test runs one.
        .replace("https://127.0.0.1:7446", "https://127.0.0.1:9")
        .replace("https://127.0.0.1:7451", &birth)
        .replace("https://127.0.0.1:7452", &population)
        .replace("https://127.0.0.1:7453", "https://127.0.0.1:9")
        .replace("https://127.0.0.1:7454", "https://127.0.0.1:9")
}

/// A gateway that runs, with what is around it.
pub(crate) struct Site {
    pub(crate) dir: TempDir,
    pub(crate) clock: Clock,
    pub(crate) address: String,
    pub(crate) observe: String,
    pub(crate) birth: Script,
    pub(crate) population: Script,
    pub(crate) registry: Registry,
    pub(crate) channel: Channel,
    stop: CancellationToken,
    gateway: JoinHandle<Result<Ended, StartError>>,
    due: Mutex<Vec<(String, i32)>>,
}

impl Site {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// With the configuration as a test wants it.
    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let (around, stop) = (Around::new(), CancellationToken::new());
        let dir = tempfile::tempdir().unwrap();
        let config = Self::config(&dir, &around, &stop, change).await;
        let clock = Clock::manual(Clock::system().now());
        let app = App::build(config, clock.clone()).await.unwrap();
        let address = format!("https://{}", app.address().unwrap());
        let observe = app.observe_address().unwrap().to_string();
        let gateway = tokio::spawn(app.run(stop.clone()));
        let channel = profile(&address, "ZS", "platform").client(Clock::system()).unwrap().channel;
        let Around { birth, population, registry } = around;
        let due = Mutex::default();
        Self { dir, clock, address, observe, birth, population, registry, channel, stop, gateway, due }
    }

    /// With a copy of the deployment's policy as a test changes it, and registers that are believed for a second.
    pub(crate) async fn with_bundle(change: impl FnOnce(&Path)) -> Self {
        let copy = tempfile::tempdir().unwrap();
        copy_tree(Path::new("deploy/heshan/policy"), copy.path());
        change(copy.path());
        Self::with(|config| {
            copy.path().clone_into(&mut config.policy.bundle);
            for registry in config.registries.case.iter_mut().chain(&mut config.registries.consent) {
                registry.fresh_s = 1;
            }
        })
        .await
    }

    /// What a gateway says that does not start.
    pub(crate) async fn refused_to_start(change: impl FnOnce(&mut Config)) -> String {
        let dir = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        let config = Self::config(&dir, &Around::new(), &stop, change).await;
        stop.cancel();
        App::build(config, Clock::system()).await.unwrap_err().to_string()
    }

    async fn config(
        dir: &TempDir,
        around: &Around,
        stop: &CancellationToken,
        change: impl FnOnce(&mut Config),
    ) -> Config {
        let file = dir.path().join("gateway.toml");
        std::fs::write(&file, deployment(around, stop).await).unwrap();
        let mut config = Config::load(&file).unwrap();
        config.admin = None;
        change(&mut config);
        config
    }

    /// What the operators' listener answers for a path, head and all.
    pub(crate) async fn observed(&self, path: &str) -> String {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = tokio::net::TcpStream::connect(&self.observe).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// The text of the metrics.
    pub(crate) async fn metrics(&self) -> String {
        self.observed("/metrics").await
    }

    /// A channel with another system's certificate.
    pub(crate) fn channel_of(&self, department: &str, system: &str) -> Channel {
        profile(&self.address, department, system).client(Clock::system()).unwrap().channel
    }

    /// A token of the platform's issuer for the newborn's case.
    pub(crate) fn token(&self, consumer: &str) -> String {
        self.token_with(consumer, |_| {})
    }

    /// The same with claims changed.
    pub(crate) fn token_with(&self, consumer: &str, change: impl FnOnce(&mut serde_json::Value)) -> String {
        self.sign(&key_of("platform"), consumer, change)
    }

    /// Signed by any key.
    pub(crate) fn sign(&self, key: &SigningKey, consumer: &str, change: impl FnOnce(&mut serde_json::Value)) -> String {
        let mut claims = self.claims(consumer);
        change(&mut claims);
        key.sign(&claims).unwrap()
    }

    fn claims(&self, consumer: &str) -> serde_json::Value {
        claims(&self.clock, consumer)
    }
    /// `Lookup` by the platform.
    pub(crate) async fn lookup(
        &self,
        consumer: &str,
        message: pb::LookupRequest,
    ) -> Result<pb::LookupResponse, Status> {
        self.send(self.channel.clone(), Some(&self.token(consumer)), message).await
    }

    /// `Explain` by the platform for GA.
    pub(crate) async fn explain(&self, request: pb::ExplainRequest) -> Result<pb::ExplainResponse, Status> {
        let mut request = Request::new(request);
        let bearer = format!("Bearer {}", self.token("GA")).parse().unwrap();
        request.metadata_mut().insert("authorization", bearer);
        LookupServiceClient::new(self.channel.clone()).explain(request).await.map(Response::into_inner)
    }

    /// `Lookup` by anybody, with any token or none.
    pub(crate) async fn send(
        &self,
        channel: Channel,
        token: Option<&str>,
        message: pb::LookupRequest,
    ) -> Result<pb::LookupResponse, Status> {
        let mut request = Request::new(message);
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        LookupServiceClient::new(channel).lookup(request).await.map(Response::into_inner)
    }

    /// Asserts that a call was refused so, and that its entry says so too once the site is closed.
    #[track_caller]
    pub(crate) fn refused<T: std::fmt::Debug>(&self, result: Result<T, Status>, code: Code, reason: &str) -> Status {
        let status = result.expect_err(reason);
        let details = status.get_error_details();
        let info = details.error_info().unwrap_or_else(|| panic!("no ErrorInfo: {status:?}"));
        assert_eq!((status.code(), info.reason.as_str()), (code, reason), "{status:?}");
        assert_eq!(info.domain, "oncegate");
        let names: BTreeSet<_> = info.metadata.keys().collect();
        let known = documented(reason).iter().any(|example| example.keys().collect::<BTreeSet<_>>() == names);
        assert!(known, "{reason} has other metadata than documented: {names:?}");
        note(&status);
        let id = status.metadata().get("oncegate-request-id").expect("a request id").to_str().unwrap().to_owned();
        let receipt = status.metadata().get_bin("oncegate-receipt-bin").expect("a receipt");
        let receipt: pb::Receipt = prost::Message::decode(receipt.to_bytes().unwrap()).unwrap();
        assert_eq!(receipt.request_id, id);
        let number = pb::ErrorReason::from_str_name(&format!("ERROR_REASON_{reason}")).expect("a reason of the API");
        self.due.lock().unwrap().push((id, number.into()));
        status
    }

    /// Stops the gateway, checks that it drained, that the log is whole and every refusal is on record, and returns the
    /// access records by request id.
    pub(crate) async fn close(self) -> BTreeMap<String, Vec<AccessEntry>> {
        self.close_keeping_the_dir().await.0
    }

    /// The same, for whoever wants to look into the folder afterwards.
    pub(crate) async fn close_keeping_the_dir(self) -> (BTreeMap<String, Vec<AccessEntry>>, TempDir) {
        drop(self.channel);
        self.stop.cancel();
        assert_eq!(self.gateway.await.unwrap().unwrap(), Ended::Drained);
        let key = PrivateKey::load(&out().join("audit/auditor.key")).unwrap();
        let mut entries: BTreeMap<String, Vec<AccessEntry>> = BTreeMap::new();
        for entry in LogReader::open(&self.dir.path().join("run/log"), key).unwrap() {
            if let Some(access) = entry.unwrap().access() {
                entries.entry(access.request_id.to_string()).or_default().push(access.clone());
            }
        }
        for (id, reason) in self.due.lock().unwrap().iter() {
            let found = entries.get(id).map(Vec::as_slice).unwrap_or_default();
            assert_eq!(found.len(), 1, "one entry for {id}");
            assert_eq!(found[0].error_reason, *reason, "{:?}", found[0]);
        }
        (entries, self.dir)
    }
}

/// Every refusal that a caller was told in this process: the reason, and its metadata.
static TOLD: Mutex<BTreeMap<String, BTreeSet<Metadata>>> = Mutex::new(BTreeMap::new());

/// Metadata of a reason: names and values.
type Metadata = BTreeMap<String, String>;

/// Notes what a caller was told.
pub(crate) fn note(status: &Status) {
    let details = status.get_error_details();
    let info = details.error_info().unwrap();
    let metadata = info.metadata.clone().into_iter().collect();
    TOLD.lock().unwrap().entry(info.reason.clone()).or_default().insert(metadata);
}

/// All that callers were told so far.
pub(crate) fn told() -> BTreeMap<String, BTreeSet<Metadata>> {
    TOLD.lock().unwrap().clone()
}

/// The metadata that the API's description shows for a reason: each example, or none.
pub(crate) fn documented(reason: &str) -> Vec<Metadata> {
    let proto = include_str!("../../proto/oncegate/gateway/v1/error_reason.proto");
    let (before, _) = proto.split_once(&format!("  ERROR_REASON_{reason} = ")).expect("a reason of the API");
    let comment: Vec<_> = before.lines().rev().take_while(|line| line.trim_start().starts_with("//")).collect();
    let comment = comment.iter().rev().map(|line| line.trim_start().trim_start_matches("// ")).collect::<Vec<_>>();
    let comment = comment.join(" ");
    let mut examples: Vec<Metadata> = Vec::new();
    for example in comment.split('{').skip(1) {
        let (example, _) = example.split_once('}').expect("an example ends");
        examples.push(serde_json::from_str(&format!("{{{example}}}")).expect("an example is JSON"));
    }
    if examples.is_empty() || comment.contains("or none") {
        examples.push(Metadata::new());
    }
    examples
}

/// Copies a folder with everything in it, but for what a gateway that ran there has left.
pub(crate) fn copy_tree(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().ends_with("deploy/heshan/run") {
            continue;
        }
        if entry.path().is_dir() {
            std::fs::create_dir_all(&to).unwrap();
            copy_tree(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), &to).unwrap();
        }
    }
}

/// The claims of a good token for the newborn's case.
pub(crate) fn claims(clock: &Clock, consumer: &str) -> serde_json::Value {
    MintRequest {
        issuer: "https://token.platform.heshan.gov.example",
        trust_domain: "heshan.gov.example",
        caller: &"spiffe://heshan.gov.example/ZS/platform".parse().unwrap(),
        leaf_sha256: &thumbprint("ZS", "platform"),
        officer: "window-3",
        token_id: &uuid::Uuid::now_v7().to_string(),
        issued_at: clock.now(),
        lifetime_s: 300,
        consumer: &consumer.parse().unwrap(),
        matter: "newborn_birth",
        case_id: &CASE.parse().unwrap(),
        basis: Basis::StatutoryDuty,
        basis_reference: CITATION,
        purpose: "出生登记",
        certificate_types: &[],
        subjects: None,
    }
    .claims()
}

pub(crate) fn profile(address: &str, department: &str, system: &str) -> Profile {
    Profile {
        address: address.to_owned(),
        server_id: "spiffe://heshan.gov.example/ZS/oncegate".to_owned(),
        ca: out().join("ca/gateway.pem"),
        certificate: out().join(format!("systems/{department}/{system}.pem")),
        key: out().join(format!("systems/{department}/{system}.key")),
        caller: format!("spiffe://heshan.gov.example/{department}/{system}"),
        issuer: String::new(),
        token_key: out().join("tokens/platform.key"),
        officer: "window-3".to_owned(),
    }
}

/// SHA-256 of a system's certificate.
pub(crate) fn thumbprint(department: &str, system: &str) -> [u8; 32] {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;
    let pem = std::fs::read(out().join(format!("systems/{department}/{system}.pem"))).unwrap();
    let leaf = CertificateDer::from_pem_slice(&pem).unwrap();
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &leaf).as_ref().try_into().unwrap()
}

/// A token-signing key of the PKI.
pub(crate) fn key_of(name: &str) -> SigningKey {
    SigningKey::from_pkcs8_pem(&std::fs::read(out().join(format!("tokens/{name}.key"))).unwrap()).unwrap()
}

/// The mother's number: impossible division, valid check digit.
pub(crate) fn mother_id() -> String {
    numbers::id_number(time::macros::date!(1995 - 03 - 04), 22)
}

/// The newborn of most tests.
pub(crate) const BORN: &str = "2026-10-05";

pub(crate) fn subject(role: &str, attributes: &[(&str, &str)]) -> pb::CaseSubject {
    let attributes =
        attributes.iter().map(|(name, value)| pb::Attribute { name: (*name).to_owned(), value: (*value).to_owned() });
    pb::CaseSubject { role: role.to_owned(), attributes: attributes.collect() }
}

/// A request that GA's grant answers.
pub(crate) fn request() -> pb::LookupRequest {
    pb::LookupRequest {
        matter: "newborn_birth".to_owned(),
        case_id: CASE.to_owned(),
        certificate_type: "birth_medical_certificate".to_owned(),
        subject_role: "child".to_owned(),
        subjects: vec![subject("child", &[("birth_date", BORN)]), subject("mother", &[("id_no", &mother_id())])],
        read_mask: mask(&["infant_name", "birth_datetime", "mother_name"]),
    }
}

#[expect(clippy::unnecessary_wraps, reason = "the form of the message's field")]
pub(crate) fn mask(paths: &[&str]) -> Option<prost_types::FieldMask> {
    Some(prost_types::FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() })
}

pub(crate) fn pool() -> DescriptorPool {
    DescriptorPool::decode(oncegate::pb::DESCRIPTOR_SET).unwrap()
}

/// A record of any type with these string fields.
pub(crate) fn record(message: &str, fields: &[(&str, &str)]) -> SourceRecord {
    let descriptor = pool().get_message_by_name(&format!("oncegate.records.v1.{message}")).unwrap();
    let mut record = DynamicMessage::new(descriptor);
    for (name, value) in fields {
        record.set_field_by_name(name, Value::String((*value).to_owned()));
    }
    SourceRecord {
        record: Some(prost_types::Any {
            type_url: format!("type.googleapis.com/oncegate.records.v1.{message}"),
            value: prost::Message::encode_to_vec(&record),
        }),
        keys: Vec::new(),
        as_of: None,
    }
}

/// The newborn's certificate as the department holds it, with fields that nobody asked for.
pub(crate) fn birth() -> SourceRecord {
    record(
        "BirthMedicalCertificate",
        &[
            ("certificate_no", "N900000099"),
            ("infant_name", "乌有安"),
            ("birth_datetime", "2026-10-05T08:30"),
            ("mother_name", "乌有宁"),
            ("mother_id_no", &mother_id()),
            ("father_name", "子虚刚"),
            ("issuing_institution", "子虚县人民医院"),
        ],
    )
}

/// Decodes a released record to its fields by name.
pub(crate) fn fields(record: &pb::Record) -> BTreeMap<String, String> {
    let any = record.record.clone().unwrap();
    let descriptor = pool().get_message_by_name(any.type_url.rsplit('/').next().unwrap()).unwrap();
    let message = DynamicMessage::decode(descriptor, any.value.as_slice()).unwrap();
    assert_eq!(message.unknown_fields().count(), 0, "unknown fields left the gateway");
    let text = |value: &Value| value.as_str().map_or_else(|| format!("{value:?}"), str::to_owned);
    message.fields().map(|(field, value)| (field.name().to_owned(), text(value))).collect()
}
