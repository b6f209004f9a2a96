//! The program itself: killed under load, told to stop, misconfigured; and what its log lines give away.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use oncegate::audit::checkpoint::Checkpoint;
use oncegate::audit::keys::PrivateKey;
use oncegate::audit::reader::{Content, LogReader, LoggedEntry};
use oncegate::audit::verify::{Trust, read_note, verify};
use oncegate::audit::{Entry, StopEntry};
use oncegate::clock::Clock;
use oncegate::pb::gateway as pb;
use oncegate::pb::gateway::lookup_service_client::LookupServiceClient;
use rand::{Rng as _, SeedableRng as _};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request};

use crate::harness::{
    Around, Script, Site, birth, claims, copy_tree, deployment, key_of, mask, mother_id, out, profile, request, subject,
};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_oncegate");

/// `oncegate serve` as a child, ended with the test.
pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) address: String,
    /// Address and port of metrics, liveness and readiness.
    observe: String,
    lines: Arc<Mutex<String>>,
}

impl Server {
    fn start(config: &Path, mut program: Command) -> Self {
        let mut child = program
            .args(["serve", "--config"])
            .arg(config)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = Arc::new(Mutex::new(String::new()));
        let (mut errors, kept) = (child.stderr.take().unwrap(), lines.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = errors.read(&mut buffer) {
                kept.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..read]));
            }
        });
        let (mut first, mut second) = (String::new(), String::new());
        let mut said = BufReader::new(child.stdout.as_mut().unwrap());
        said.read_line(&mut first).unwrap();
        said.read_line(&mut second).unwrap();
        let address = first.trim().strip_prefix("gateway  ").map(str::to_owned);
        let address = address.unwrap_or_else(|| {
            let _ = child.wait();
            panic!("{first:?} {}", lines.lock().unwrap())
        });
        let observe = second.trim().strip_prefix("observe  http://").unwrap_or_default().to_owned();
        Self { child, address, observe, lines }
    }

    pub(crate) fn client(&self) -> LookupServiceClient<tonic::transport::Channel> {
        LookupServiceClient::new(profile(&self.address, "ZS", "platform").client(Clock::system()).unwrap().channel)
    }

    pub(crate) fn terminate(mut self) -> Option<i32> {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        self.child.wait().unwrap().code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A place with a configuration for the program.
pub(crate) struct Place {
    dir: TempDir,
    pub(crate) birth: Script,
    stop: CancellationToken,
}

impl Place {
    pub(crate) async fn new(change: impl FnOnce(String) -> String) -> Self {
        let (around, stop) = (Around::new(), CancellationToken::new());
        let dir = tempfile::tempdir().unwrap();
        let text = deployment(&around, &stop).await;
        std::fs::write(dir.path().join("gateway.toml"), change(text)).unwrap();
        Self { dir, birth: around.birth, stop }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn start(&self) -> Server {
        Server::start(&self.dir.path().join("gateway.toml"), Command::new(PROGRAM))
    }

    /// With so few descriptors, sockets and files together.
    pub(crate) fn start_with_descriptors(&self, count: u32) -> Server {
        self.start_in_shell(&format!("ulimit -n {count}"))
    }

    /// After a command of the shell.
    pub(crate) fn start_in_shell(&self, before: &str) -> Server {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("{before}; exec {PROGRAM} \"$@\""), "sh"]);
        Server::start(&self.dir.path().join("gateway.toml"), shell)
    }

    pub(crate) fn log(&self) -> Vec<LoggedEntry> {
        let key = PrivateKey::load(&out().join("audit/auditor.key")).unwrap();
        LogReader::open(&self.dir.path().join("run/log"), key).unwrap().collect::<Result<_, _>>().unwrap()
    }
}

impl Place {
    /// Zeroes sectors of 512 bytes at random of the last batch, behind what was answered and what was signed: a batch is
    /// written only after the sync of the one before, whose sectors are on the disk.
    fn power_fails(&self, answered: u64, random: &mut rand::rngs::StdRng) {
        let log = self.dir.path().join("run/log");
        let signed =
            read_note(&log.join("checkpoint")).unwrap().map_or(0, |note| Checkpoint::of(&note).unwrap().tree.size);
        let path = log.join("0000000000.seg");
        let mut bytes = std::fs::read(&path).unwrap();
        let number = |at: usize, len: usize| {
            bytes.get(at..at + len).map(|bytes| bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
        };
        // As in docs/log-format.md: length, version, kind, epoch, index, place in the batch.
        let (mut at, mut from, mut index) = (0, 0, 0);
        while number(at + 2, 1) == Some(1) && number(at + 8, 8) == Some(index) {
            if index <= answered.max(signed) || number(at + 16, 4) == Some(0) {
                from = at;
            }
            at += 2 + usize::try_from(number(at, 2).unwrap()).unwrap();
            index += 1;
        }
        if index <= answered.max(signed) {
            from = at;
        }
        let mut at = from;
        let end = bytes.len().min(at + (1 << 19));
        while at < end {
            let next = ((at + 512) & !511).min(end);
            if random.random_bool(0.5) {
                bytes[at..next].fill(0);
            }
            at = next;
        }
        std::fs::write(&path, bytes).unwrap();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub(crate) fn with_token<T>(message: T) -> Request<T> {
    let token = key_of("platform").sign(&claims(&Clock::system(), "GA")).unwrap();
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

/// Twenty times killed at a random moment under load, or as often as `ONCEGATE_KILLS` says; after every other kill the
/// power fails, too, and takes any of the sectors that nobody was answered for. Every answer that a client got is in the
/// log, as it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_answer_is_lost_by_kill_nine() {
    let rounds = std::env::var("ONCEGATE_KILLS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(20_u32);
    let place = Place::new(|text| {
        text.replace("caller_per_second = 200", "caller_per_second = 1000000")
            .replace("caller_burst = 400", "caller_burst = 1000000")
            .replace("subject_per_minute = 30", "subject_per_minute = 1000000")
            .replace("subject_burst = 60", "subject_burst = 1000000")
            .replace("filter = \"info\"", "filter = \"error\"")
    })
    .await;
    place.birth.answers(vec![birth()]);
    let mut random = rand::rngs::StdRng::seed_from_u64(7);
    let got: Arc<Mutex<BTreeMap<u64, pb::Receipt>>> = Arc::default();
    for round in 0..rounds {
        let mut server = place.start();
        let before = got.lock().unwrap().len();
        let mut clients = tokio::task::JoinSet::new();
        for number in 0..6 {
            let (mut client, got) = (server.client(), got.clone());
            clients.spawn(async move {
                // Answers and refusals in turn, until the connection breaks.
                for turn in number.. {
                    let mut message = request();
                    if turn % 3 == 0 {
                        message.read_mask = mask(&["birth_weight_g"]);
                    }
                    let receipt = match client.lookup(with_token(message)).await {
                        Ok(answer) => answer.into_inner().receipt.unwrap(),
                        Err(status) => match status.metadata().get_bin("oncegate-receipt-bin") {
                            Some(bytes) => prost::Message::decode(bytes.to_bytes().unwrap()).unwrap(),
                            None => return,
                        },
                    };
                    let index = receipt.index;
                    assert!(got.lock().unwrap().insert(index, receipt).is_none(), "entry {index} given twice");
                }
            });
        }
        // Under load, however slow the machine is.
        for _ in 0..500 {
            if got.lock().unwrap().len() >= before + 12 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..200))).await;
        server.child.kill().unwrap();
        server.child.wait().unwrap();
        while let Some(ended) = clients.join_next().await {
            ended.unwrap();
        }
        if round % 2 == 1 {
            let answered = got.lock().unwrap().last_key_value().map_or(0, |(index, _)| index + 1);
            place.power_fails(answered, &mut random);
        }
    }
    let server = place.start();
    assert_eq!(server.terminate(), Some(0), "the last start recovers and stops in order");
    let log = place.log();
    let got = got.lock().unwrap();
    assert!(got.len() > 10 * rounds as usize, "only {} answers: no load", got.len());
    for (index, receipt) in got.iter() {
        let entry = &log[usize::try_from(*index).unwrap()];
        assert_eq!(entry.index, *index);
        assert_eq!(entry.leaf_hash.as_slice(), receipt.leaf_hash.as_ref());
        assert_eq!(entry.access().unwrap().request_id.to_string(), receipt.request_id);
    }
    let starts = log.iter().filter(|entry| matches!(entry.content, Content::Entry(Entry::Start(_)))).count();
    // A start that nobody was answered after may be lost with the power.
    assert!(starts > rounds as usize / 2 && starts <= rounds as usize + 1, "{starts}");
    let report = verify(&place.dir.path().join("run/log"), &Trust::default(), Vec::new(), &mut |_, _| {}).unwrap();
    assert!(report.faults.is_empty() && report.signed == log.len() as u64, "{report:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn told_to_stop_it_finishes_what_is_under_way() {
    let place = Place::new(|text| text).await;
    place.birth.answers_after(Duration::from_millis(700), vec![birth()]);
    let server = place.start();
    let mut client = server.client();
    let call = tokio::spawn(async move { client.lookup(with_token(request())).await });
    while place.birth.calls() == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let code = tokio::task::spawn_blocking(move || server.terminate()).await.unwrap();
    assert_eq!(call.await.unwrap().unwrap().into_inner().records.len(), 1);
    assert_eq!(code, Some(0));
    let last = place.log().pop().unwrap();
    assert_eq!(last.content, Content::Entry(Entry::Stop(StopEntry { reason: "drained".into() })));
}

fn get(address: &str, path: &str) -> String {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// Scans everything the program writes outside the sealed bodies for what it was told of people.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_a_person_is_in_log_lines_metrics_or_the_logs_bytes() {
    let place = Place::new(|text| {
        text.replace("format = \"text\"", "format = \"json\"")
            .replace("filter = \"info\"", "filter = \"info,oncegate=trace\"")
    })
    .await;
    let server = place.start();
    let mut client = server.client();
    let mut ids = Vec::new();
    let mut call = async |message: pb::LookupRequest| {
        let metadata = match client.lookup(with_token(message)).await {
            Ok(answer) => answer.metadata().clone(),
            Err(status) => status.metadata().clone(),
        };
        ids.push(metadata.get("oncegate-request-id").unwrap().to_str().unwrap().to_owned());
    };
    place.birth.answers(vec![birth()]);
    call(request()).await;
    place.birth.fails(Code::Internal);
    let other = pb::LookupRequest { read_mask: mask(&["issue_date"]), ..request() };
    call(other).await;
    // A caller who puts people where they do not belong.
    call(pb::LookupRequest { read_mask: mask(&["乌有安"]), ..request() }).await;
    call(pb::LookupRequest { matter: "乌有宁".into(), ..request() }).await;
    call(pb::LookupRequest { certificate_type: "乌有宁".into(), ..request() }).await;
    call(pb::LookupRequest { case_id: mother_id(), ..request() }).await;
    call(pb::LookupRequest { subject_role: "乌有宁".into(), ..request() }).await;
    call(pb::LookupRequest { subjects: vec![subject("乌有宁", &[("乌有安", "子虚刚")])], ..request() }).await;
    let wrong = format!("{}0", mother_id().get(..17).unwrap());
    call(pb::LookupRequest { subjects: vec![subject("mother", &[("id_no", &wrong)])], ..request() }).await;
    let metrics = get(&server.observe, "/metrics");
    assert!(metrics.contains("oncegate_requests_total"), "{metrics}");
    let ready = get(&server.observe, "/readyz");
    let lines = server.lines.clone();
    assert_eq!(server.terminate(), Some(0));

    let lines = lines.lock().unwrap().clone();
    let mut written = vec![
        ("log lines".to_owned(), lines.clone().into_bytes()),
        ("metrics".to_owned(), metrics.into_bytes()),
        ("readiness".to_owned(), ready.into_bytes()),
    ];
    for file in std::fs::read_dir(place.dir.path().join("run/log")).unwrap() {
        let path = file.unwrap().path();
        written.push((path.display().to_string(), std::fs::read(path).unwrap()));
    }
    let secrets = ["乌有安", "乌有宁", "子虚刚", &mother_id(), &wrong, "N900000099", "子虚县人民医院", "出生登记"];
    for (place, bytes) in &written {
        for secret in secrets {
            assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()), "{secret} in {place}");
        }
    }
    for id in ids {
        assert!(lines.contains(&id), "request {id} has its line");
    }
    for line in lines.lines().filter(|line| line.contains("fetch failed")) {
        assert!(line.contains("request_id"), "{line}");
    }
}

#[tokio::test]
pub(crate) async fn a_log_that_fails_stops_every_answer_until_a_restart() {
    let site = Site::start().await;
    site.birth.answers(vec![birth()]);
    site.lookup("GA", request()).await.unwrap();
    std::fs::remove_file(site.dir.path().join("run/log/0000000000.seg")).unwrap();
    for _ in 0..2 {
        let status = site.lookup("GA", request()).await.unwrap_err();
        let info = tonic_types::StatusExt::get_error_details(&status).error_info().unwrap().reason.clone();
        assert_eq!((status.code(), info.as_str()), (Code::Unavailable, "AUDIT_UNAVAILABLE"));
        crate::harness::note(&status);
        assert!(status.metadata().get_bin("oncegate-receipt-bin").is_none());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_configuration_is_named_and_ends_with_78() {
    let run = |place: &Place| {
        let config = place.dir.path().join("gateway.toml");
        let output = Command::new(PROGRAM).args(["serve", "--config"]).arg(config).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let unknown = Place::new(|text| text.replace("[server]\n", "[server]\nlisten_adress = 1\n")).await;
    let (code, text) = run(&unknown);
    assert_eq!(code, Some(78), "{text}");
    assert!(text.contains("gateway.toml:") && text.contains("listen_adress"), "{text}");

    let missing = Place::new(|text| text.replacen("ca/WJ.pem", "ca/none.pem", 1)).await;
    let (code, text) = run(&missing);
    assert_eq!(code, Some(78), "{text}");
    assert!(text.contains("none.pem"), "{text}");

    let shared = Place::new(|text| text).await;
    let server = shared.start();
    let (code, text) = run(&shared);
    assert_eq!(code, Some(1), "two gateways never share a log: {text}");
    assert_eq!(server.terminate(), Some(0));
}

/// A copy of the reference deployment with the test's PKI.
fn copy_of_the_deployment() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy_tree(Path::new("deploy/heshan"), dir.path());
    edit(dir.path(), "gateway.toml", "../../certs-dev/out", out().to_str().unwrap());
    dir
}

fn edit(dir: &Path, file: &str, from: &str, to: &str) {
    let text = std::fs::read_to_string(dir.join(file)).unwrap();
    assert!(text.contains(from), "{file}: {from}");
    std::fs::write(dir.join(file), text.replace(from, to)).unwrap();
}

fn check(dir: &Path, more: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(PROGRAM).args(["check", "--config"]).arg(dir.join("gateway.toml")).args(more).output();
    let output = output.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn check_finds_every_fault_of_every_room_at_once() {
    let dir = copy_of_the_deployment();
    let (code, said, wrong) = check(dir.path(), &[]);
    assert_eq!(code, Some(0), "{wrong}");
    assert!(said.contains("in order; policy sha256:") && said.contains("2025 has expired"), "{said}");
    let (_, said, _) = check(dir.path(), &["--json"]);
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&said["ok"], &said["counts"]["matters"]), (&true.into(), &23.into()));
    assert!(!dir.path().join("run").exists(), "nothing is written");

    for (file, from, to) in [
        ("policy/grants/newborn_birth/GA.toml", "roles = [\"mother\", \"father\"]", "roles = [\"mohter\"]"),
        ("policy/grants/newborn_birth/GA.toml", "mode = \"verify\"", "mode = \"verfy\""),
        ("policy/grants/newborn_birth/WJ.toml", "consumer = \"JK\"", "consumr = \"JK\""),
        ("policy/grants/retirement/GA.toml", "valid_until = \"2027-12-31\"", "valid_until = \"2027-02-30\""),
        ("policy/matters/open_restaurant.toml", "lead = \"SJ\"", "lead = \"SZ\""),
        ("policy/departments.toml", "name_en = \"Deposit bank\"", "name_en = \"Deposit bank\"\ncolour = \"red\""),
        ("gateway.toml", "ca/TY.pem", "ca/TT.pem"),
        ("gateway.toml", "tokens/SW.jwks.json", "tokens/SX.jwks.json"),
        ("gateway.toml", "audit/escrow.pub", "audit/none.pub"),
        ("gateway.toml", "department = \"CL\"", "department = \"XX\""),
        ("gateway.toml", "max_connections = 4096", "max_connections = 0"),
        ("gateway.toml", "in_flight = 4096 ", "in_flight = 9223372036854775807 "),
        ("gateway.toml", "filter = \"info\"", "filter = \"in=fo\""),
        ("gateway.toml", "providers = { CL = 32 }", "providers = { LC = 32 }"),
        ("gateway.toml", "leeway_s = 10", "leeway_s = 61"),
        ("gateway.toml", "https://127.0.0.1:7454", "http://127.0.0.1:7454"),
        ("gateway.toml", "timeout_ms = 5000               #", "timeout_ms = 0 #"),
    ] {
        edit(dir.path(), file, from, to);
    }
    let mut trust = crate::trust::in_force(&out().join("trust"));
    let ca = trust.manifest.client_cas.iter_mut().find(|ca| ca.name == "JY").unwrap();
    ca.departments = vec!["YJ".to_owned()];
    crate::trust::put_in_force(&dir.path().join("trust"), &trust);
    edit(dir.path(), "gateway.toml", out().join("trust\"").to_str().unwrap(), "trust\"");
    let (code, said, wrong) = check(dir.path(), &[]);
    assert_eq!((code, said.as_str()), (Some(78), ""), "{wrong}");
    for due in [
        "policy/grants/newborn_birth/GA.toml:12: no role `mohter` (`mother`?)",
        "policy/grants/newborn_birth/GA.toml:13: no mode `verfy` (`verify`?)",
        "policy/grants/newborn_birth/WJ.toml:",
        "unknown field `consumr`",
        "valid_until (使用时限) is a date",
        "matters/open_restaurant.toml:9: lead SZ is not registered",
        "departments.toml:",
        "unknown field `colour`",
        "ca/TT.pem: can't be read",
        "SX.jwks.json",
        "none.pub",
        "gateway.toml: source disability: unknown department XX",
        "gateway.toml: [hardening] max_connections is 0",
        "gateway.toml: [calls] in_flight is 9223372036854775807",
        "gateway.toml: telemetry.filter: ",
        "client CA JY: no department YJ in the catalog",
        "gateway.toml: limits.providers: no department LC",
        "gateway.toml: [identity] leeway_s",
        "gateway.toml: source enterprise: address must be https://host:port",
        "gateway.toml: source birth: timeout_ms is 0",
    ] {
        assert!(wrong.contains(due), "{due} is not in\n{wrong}");
    }
}

#[test]
fn a_set_that_is_damaged_is_built_anew() {
    let dir = copy_of_the_deployment();
    let types = dir.path().join("policy/types");
    std::fs::create_dir_all(&types).unwrap();
    let set = types.join("own.binpb");
    std::fs::write(&set, "damaged").unwrap();
    assert_eq!(check(dir.path(), &[]).0, Some(78));
    let mut build = Command::new(PROGRAM);
    build.args(["catalog", "build", "deploy/examples/health_permit.proto", "--out"]).arg(&set);
    let output = build.arg("--config").arg(dir.path().join("gateway.toml")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (code, _, wrong) = check(dir.path(), &[]);
    assert_eq!(code, Some(0), "{wrong}");
}
