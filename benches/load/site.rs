//! Everything that runs: PKI, a department's source, the gateway as its own program, the bare server.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use oncegate::cli::case::Case;
use oncegate::cli::client::{Profile, TokenFor};
use oncegate::cli::demo::registry::Registry;
use oncegate::cli::demo::{numbers, source};
use oncegate::cli::pki::{self, PkiSettings};
use oncegate::clock::Clock;
use oncegate::identity::Basis;
use oncegate::pb::department::record_source_service_server::{RecordSourceService, RecordSourceServiceServer};
use oncegate::pb::department::{FetchRecordsRequest, FetchRecordsResponse, SourceRecord};
use oncegate::pb::gateway as pb;
use oncegate::pb::gateway::lookup_service_client::LookupServiceClient;
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, Value};
use tempfile::TempDir;
use time::macros::date;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::CORES;

const CASE: &str = "HS-BENCH-000001";
const BORN: &str = "2026-10-05";
/// The fields asked for; those of an answer of some 300 bytes.
const FIELDS: [&str; 8] = [
    "certificate_no",
    "infant_name",
    "birth_datetime",
    "birth_place",
    "mother_name",
    "mother_id_no",
    "father_name",
    "issuing_institution",
];

/// What runs, until it is stopped.
pub(crate) struct Site {
    dir: TempDir,
    gateway: Child,
    bare: Child,
    address: String,
    bare_address: String,
    token: String,
    answer: pb::LookupResponse,
}

impl Site {
    pub(crate) async fn start() -> Self {
        // On the disk of the build, not in memory: the log's syncs must cost what they cost.
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let out = dir.path().join("pki");
        let settings = PkiSettings::built_in().unwrap();
        pki::generate(&out, &settings, false, &Clock::system(), &oncegate::cli::audit_keys).unwrap();
        let (birth, registry) = (department(&out).await, platform(&out).await);
        let config = dir.path().join("gateway.toml");
        write_bundle(dir.path());
        std::fs::write(&config, configuration(&out, &birth, &registry)).unwrap();
        let mut gateway = on_core(CORES[0])
            .arg(env!("CARGO_BIN_EXE_oncegate"))
            .args(["serve", "--config"])
            .arg(&config)
            .stdout(Stdio::piped())
            .spawn()
            .expect("taskset (util-linux)");
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(gateway.stdout.as_mut().unwrap()), &mut line).unwrap();
        let address = line.trim().strip_prefix("gateway  ").expect("the gateway's address").to_owned();

        let client = profile(&out, &address).client(Clock::system()).unwrap();
        let token = TokenFor {
            consumer: "GA".parse().unwrap(),
            matter: "newborn_birth".to_owned(),
            case_id: CASE.parse().unwrap(),
            basis: Basis::StatutoryDuty,
            reference: "户口登记条例 第七条".to_owned(),
            purpose: "出生登记".to_owned(),
        };
        let token = client.token(&token).unwrap();
        let request = client.request(request(0), &token, Duration::from_secs(10)).unwrap();
        let answer = LookupServiceClient::new(client.channel).lookup(request).await.unwrap().into_inner();

        let bare_dir = dir.path().join("bare");
        std::fs::create_dir(&bare_dir).unwrap();
        std::fs::write(bare_dir.join("answer.binpb"), answer.encode_to_vec()).unwrap();
        for (from, to) in
            [("gateway/server.pem", "server.pem"), ("gateway/server.key", "server.key"), ("ca/ZS.pem", "client-ca.pem")]
        {
            std::fs::copy(out.join(from), bare_dir.join(to)).unwrap();
        }
        let me = std::env::current_exe().unwrap();
        let bare = on_core(CORES[0]).arg(me).arg("--bare").arg(&bare_dir).spawn().unwrap();
        let bare_address = loop {
            match std::fs::read_to_string(bare_dir.join("address")) {
                Ok(address) => break format!("https://{address}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        Self { dir, gateway, bare, address, bare_address, token, answer }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn bare_address(&self) -> &str {
        &self.bare_address
    }

    /// `taskset` becomes what it starts, so the child's id is the server's.
    pub(crate) fn pid(&self) -> u32 {
        self.gateway.id()
    }

    pub(crate) fn bare_pid(&self) -> u32 {
        self.bare.id()
    }

    pub(crate) fn token(&self) -> &str {
        &self.token
    }

    pub(crate) fn request_bytes() -> usize {
        request(0).encoded_len()
    }

    pub(crate) fn answer_bytes(&self) -> usize {
        self.answer.encoded_len()
    }

    /// A connection of its own to either server.
    pub(crate) fn channel(&self, address: &str) -> Channel {
        profile(&self.dir.path().join("pki"), address).client(Clock::system()).unwrap().channel
    }

    pub(crate) fn stop(mut self) {
        for child in [&mut self.gateway, &mut self.bare] {
            let _ = Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
            let _ = child.wait();
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for child in [&mut self.gateway, &mut self.bare] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn on_core(core: &str) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", core]);
    command
}

fn profile(out: &Path, address: &str) -> Profile {
    let zs = |name: &str| out.join(format!("systems/ZS/{name}"));
    Profile {
        address: address.to_owned(),
        server_id: "spiffe://heshan.gov.example/ZS/oncegate".to_owned(),
        ca: out.join("ca/gateway.pem"),
        certificate: zs("platform.pem"),
        key: zs("platform.key"),
        caller: "spiffe://heshan.gov.example/ZS/platform".to_owned(),
        issuer: "https://token.platform.heshan.gov.example".to_owned(),
        token_key: out.join("tokens/platform.key"),
        officer: "window-3".to_owned(),
    }
}

fn heshan() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("deploy/heshan")
}

/// The reference bundle, less the condition that every subject is in the case: here one case is of all the mothers.
fn write_bundle(dir: &Path) {
    let (from, to) = (heshan().join("policy"), dir.join("policy"));
    std::fs::create_dir_all(to.join("grants/newborn_birth")).unwrap();
    for part in ["departments.toml", "matters", "facts.toml", "holidays.toml"] {
        std::os::unix::fs::symlink(from.join(part), to.join(part)).unwrap();
    }
    let grants = "grants/newborn_birth/WJ.toml";
    let text = std::fs::read_to_string(from.join(grants)).unwrap();
    let all = "when = [\"case_open\", \"subject_in_case\"]";
    assert!(text.contains(all));
    std::fs::write(to.join(grants), text.replace(all, "when = [\"case_open\"]")).unwrap();
}

/// The reference deployment on free ports, with limits that do not bind: they are kept and counted all the same.
fn configuration(out: &Path, birth: &str, registry: &str) -> String {
    let mut text = std::fs::read_to_string(heshan().join("gateway.toml")).unwrap();
    for (from, to) in [
        ("../../certs-dev/out", out.to_str().unwrap()),
        ("127.0.0.1:7443", "127.0.0.1:0"),
        ("127.0.0.1:7490", "127.0.0.1:0"),
        ("127.0.0.1:7447", "127.0.0.1:0"),
        ("https://127.0.0.1:7451", birth),
        ("https://127.0.0.1:7470", registry),
        ("max_connections = 4096", "max_connections = 16384"),
        ("max_connections_per_address = 128", "max_connections_per_address = 16384"),
        ("max_connections_per_identity = 64", "max_connections_per_identity = 16384"),
        ("caller_per_second = 200", "caller_per_second = 1000000"),
        ("caller_burst = 400", "caller_burst = 1000000"),
        ("subject_per_minute = 30", "subject_per_minute = 10000000"),
        ("subject_burst = 60", "subject_burst = 10000000"),
        ("provider_in_flight = 64", "provider_in_flight = 4096"),
        ("filter = \"info\"", "filter = \"warn\""),
    ] {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    text
}

/// A request about one newborn of many.
pub(crate) fn request(number: u64) -> pb::LookupRequest {
    let subject = |role: &str, name: &str, value: String| pb::CaseSubject {
        role: role.to_owned(),
        attributes: vec![pb::Attribute { name: name.to_owned(), value }],
    };
    pb::LookupRequest {
        matter: "newborn_birth".to_owned(),
        case_id: CASE.to_owned(),
        certificate_type: "birth_medical_certificate".to_owned(),
        subject_role: "child".to_owned(),
        subjects: vec![subject("child", "birth_date", BORN.to_owned()), subject("mother", "id_no", mother(number))],
        read_mask: Some(prost_types::FieldMask { paths: FIELDS.map(str::to_owned).into() }),
    }
}

/// Impossible division, valid check digit, another number each time for three million calls.
fn mother(number: u64) -> String {
    let day = time::Duration::days(i64::try_from(number / 999 % 3650).unwrap());
    numbers::id_number(date!(1985 - 01 - 01) + day, u16::try_from(number % 999 + 1).unwrap())
}

/// A source that answers at once.
#[derive(Clone)]
struct Birth(Arc<MessageDescriptor>);

#[tonic::async_trait]
impl RecordSourceService for Birth {
    async fn fetch_records(
        &self,
        request: Request<FetchRecordsRequest>,
    ) -> Result<Response<FetchRecordsResponse>, Status> {
        let keys = &request.get_ref().keys;
        let mother = keys.iter().find(|key| key.name == "mother_id_no").map(|key| key.value.clone());
        let mut record = DynamicMessage::new(self.0.as_ref().clone());
        for (field, value) in [
            ("certificate_no", "N900000099".to_owned()),
            ("infant_name", "乌有安".to_owned()),
            ("birth_datetime", format!("{BORN}T08:30")),
            ("birth_place", "990784".to_owned()),
            ("mother_name", "乌有宁".to_owned()),
            ("mother_id_no", mother.unwrap_or_default()),
            ("father_name", "子虚刚".to_owned()),
            ("father_id_no", numbers::id_number(date!(1990 - 02 - 03), 11)),
            ("issuing_institution", "子虚县人民医院".to_owned()),
        ] {
            record.set_field_by_name(field, Value::String(value));
        }
        let record = prost_types::Any {
            type_url: "type.googleapis.com/oncegate.records.v1.BirthMedicalCertificate".to_owned(),
            value: record.encode_to_vec(),
        };
        let records = vec![SourceRecord { record: Some(record), keys: Vec::new(), as_of: None }];
        Ok(Response::new(FetchRecordsResponse { records }))
    }
}

/// The department's source. Tells its address.
async fn department(out: &Path) -> String {
    let pool = DescriptorPool::decode(oncegate::pb::DESCRIPTOR_SET).unwrap();
    let message = pool.get_message_by_name("oncegate.records.v1.BirthMedicalCertificate").unwrap();
    let routes = Routes::new(RecordSourceServiceServer::new(Birth(Arc::new(message)))).prepare();
    serve(out, "WJ/birth", routes).await
}

/// The platform's registers, in which the case is open. Tells their address.
async fn platform(out: &Path) -> String {
    let case = Case {
        matter: "newborn_birth".to_owned(),
        case_id: CASE.to_owned(),
        citation: String::new(),
        consent: String::new(),
        purpose: String::new(),
        subjects: Vec::new(),
    };
    serve(out, "ZS/platform-registry", Registry::new([&case]).routes()).await
}

/// Serves within this process, with one of the PKI's certificates.
async fn serve(out: &Path, name: &str, routes: Routes) -> String {
    let read = |path: String| std::fs::read(out.join(path)).unwrap();
    let (certificate, key) = (read(format!("sources/{name}.pem")), read(format!("sources/{name}.key")));
    let tls = source::tls(&certificate, &key, &read("ca/ZS.pem".to_owned())).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, routes) = (TlsAcceptor::from(tls.clone()), routes.clone());
            tokio::spawn(async move {
                stream.set_nodelay(true).unwrap();
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .timer(TokioTimer::new())
                    .max_concurrent_streams(4096)
                    .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes))
                    .await;
            });
        }
    });
    address
}
