//! Rotation as operators do it: the program, its commands, its admin socket and its log, with calls under way.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use oncegate::audit::Entry;
use oncegate::audit::keys::PrivateKey;
use oncegate::audit::reader::{Content, LogReader, LoggedEntry};
use oncegate::certs::{Contents, Store};
use oncegate::clock::Clock;
use oncegate::pb::gateway::ListMattersRequest;
use oncegate::pb::gateway::catalog_service_client::CatalogServiceClient;
use oncegate::pb::gateway::lookup_service_client::LookupServiceClient;
use rand::{Rng as _, SeedableRng as _};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;

use crate::harness::{Site, birth, key_of, mask, out, profile, request};
use crate::process::{PROGRAM, Place, with_token};

/// A place whose trust directory, and with it the identity towards departments, is its own.
async fn place() -> Place {
    let place = Place::new(|text| {
        text.replace("caller_per_second = 200", "caller_per_second = 1000000")
            .replace("caller_burst = 400", "caller_burst = 1000000")
            .replace("subject_per_minute = 30", "subject_per_minute = 1000000")
            .replace("subject_burst = 60", "subject_burst = 1000000")
            .replace(out().join("trust").to_str().unwrap(), "trust")
    })
    .await;
    own_trust(&place.path("trust"));
    place.birth.answers(vec![birth()]);
    place
}

fn own_trust(at: &Path) {
    put_in_force(at, &in_force(&out().join("trust")));
}

pub(crate) fn put_in_force(at: &Path, contents: &Contents) {
    let store = Store::new(at);
    store.init().unwrap();
    store.write().unwrap().promote(contents, 0).unwrap();
}

pub(crate) fn in_force(trust: &Path) -> Contents {
    Store::new(trust).current().unwrap().unwrap().read().unwrap()
}

/// Runs `oncegate` with these words in the place; its exit code and all it said.
fn run(place: &Place, words: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(PROGRAM).args(words).current_dir(place.path("")).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

/// `oncegate trust`, which must end well.
#[track_caller]
fn trust(place: &Place, words: &[&str]) -> String {
    let (code, said) = run(place, &[&["trust", "--config", "gateway.toml"], words].concat());
    assert_eq!(code, Some(0), "{words:?}\n{said}");
    said
}

#[track_caller]
fn trust_fails(place: &Place, words: &[&str]) -> String {
    let (code, said) = run(place, &[&["trust", "--config", "gateway.toml"], words].concat());
    assert_ne!(code, Some(0), "{words:?}\n{said}");
    said
}

/// A copy of the development PKI that this test may rotate.
fn own_pki(place: &Place) -> PathBuf {
    let to = place.path("pki/ca");
    std::fs::create_dir_all(&to).unwrap();
    for entry in std::fs::read_dir(out().join("ca")).unwrap() {
        let from = entry.unwrap().path();
        std::fs::copy(&from, to.join(from.file_name().unwrap())).unwrap();
    }
    place.path("pki")
}

/// Calls without a pause until it is told to stop; counts what was answered and what was not.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU32>,
    failed: Arc<AtomicU32>,
    tasks: Vec<JoinHandle<()>>,
}

/// A test that fails ends its load, too.
impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Load {
    /// `clients` that keep their connection, and one that connects for each call.
    fn start(address: &str, clients: usize) -> Self {
        let mut load =
            Self { stop: Arc::default(), answered: Arc::default(), failed: Arc::default(), tasks: Vec::new() };
        let connect = {
            let address = address.to_owned();
            move || {
                LookupServiceClient::new(profile(&address, "ZS", "platform").client(Clock::system()).unwrap().channel)
            }
        };
        let tasks = (0..=clients).map(|number| {
            let (stop, answered, failed) = (load.stop.clone(), load.answered.clone(), load.failed.clone());
            let (connect, mut kept) = (connect.clone(), connect());
            tokio::spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    if number == 0 {
                        kept = connect();
                    }
                    match kept.lookup(with_token(request())).await {
                        Ok(_) => answered.fetch_add(1, Ordering::SeqCst),
                        Err(status) => {
                            eprintln!("{status:?}");
                            failed.fetch_add(1, Ordering::SeqCst)
                        }
                    };
                }
            })
        });
        load.tasks = tasks.collect();
        load
    }

    async fn end(mut self) -> (u32, u32) {
        self.stop.store(true, Ordering::SeqCst);
        for task in std::mem::take(&mut self.tasks) {
            task.await.unwrap();
        }
        (self.answered.load(Ordering::SeqCst), self.failed.load(Ordering::SeqCst))
    }
}

/// Leaf renewed, a department's CA added, its system moved, the old CA dropped, by commands, with calls under way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_rotated_by_commands_and_no_call_fails() {
    let place = place().await;
    let pki = own_pki(&place);
    let pki = pki.to_str().unwrap();
    let server = place.start();
    let load = Load::start(&server.address, 2);
    let mut leaves = Vec::new();
    for round in 1..=2 {
        trust(&place, &["csr", "server", "-o", "gw.csr"]);
        run(&place, &["pki", "sign", "--gateway", "--csr", "gw.csr", "--out", "gw.pem", "--pki", pki]);
        trust(&place, &["stage", "--cert", "gw.pem"]);
        trust(&place, &["check"]);
        let said = trust(&place, &["activate", "--wait"]);
        // A gateway that noticed the new generation by itself has nothing to tell of connections.
        assert!(said.contains("serves") && (!said.contains("serves: ") || said.contains("0 drained, 0 cut")), "{said}");

        let (new, old) =
            (format!("ZS-{round}"), if round == 1 { "ZS".to_owned() } else { format!("ZS-{}", round - 1) });
        run(&place, &["pki", "ca", "--name", &new, "--pki", pki]);
        let (pem, crl, bind) = (format!("pki/ca/{new}.pem"), format!("pki/ca/{new}.crl"), format!("{new}=ZS"));
        trust(&place, &["stage", "--client-ca", &pem, "--crl", &crl, "--bind", &bind]);
        trust(&place, &["activate", "--wait"]);
        let used = trust_fails(&place, &["stage", "--remove-client-ca", "ZS"]);
        if round == 1 {
            assert!(used.contains("is used by 1 systems") && used.contains("ZS/platform"), "{used}");
        } else {
            // The clients of this test never move, so from here on it is removed by force.
            trust(&place, &["stage", "--remove-client-ca", &old, "--mode", "drain", "--force"]);
            trust(&place, &["activate", "--wait"]);
        }
        let status: serde_json::Value = serde_json::from_str(&trust(&place, &["status", "--json"])).unwrap();
        leaves.push(status["serving"]["leaf_sha256"].as_str().unwrap().to_owned());
        assert_eq!(status["serving"]["generation"], status["on_disk"]["generation"]);
    }
    let (answered, failed) = load.end().await;
    assert_ne!(leaves[0], leaves[1]);
    assert!(answered > 20, "only {answered} calls: no load");
    assert_eq!(failed, 0, "of {answered}");
    assert_eq!(server.terminate(), Some(0));
}

/// A stream that is answered without a pause until it ends; when its last answer came.
async fn open_stream(channel: tonic::transport::Channel) -> JoinHandle<Instant> {
    let asks = futures_util::stream::unfold((), async |()| {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let message_request = Some(MessageRequest::ListServices(String::new()));
        Some((ServerReflectionRequest { host: String::new(), message_request }, ()))
    });
    let mut client = ServerReflectionClient::new(channel);
    let mut answers = client.server_reflection_info(asks).await.unwrap().into_inner();
    answers.message().await.unwrap().expect("a first answer");
    tokio::spawn(async move {
        // Without it the connection might end before the stream.
        let _client = client;
        let mut last = Instant::now();
        while let Ok(Some(_)) = answers.message().await {
            last = Instant::now();
        }
        last
    })
}

/// Revoked by its CA or blocked by the operator: out within a second, whatever it has open; others notice nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_revoked_or_blocked_is_out_within_a_second() {
    let rounds: usize = std::env::var("ONCEGATE_ROUNDS").map_or(2, |rounds| rounds.parse().unwrap());
    let place = place().await;
    let pki = own_pki(&place);
    let pki = pki.to_str().unwrap();
    let server = place.start();
    let others = Load::start(&server.address, 1);
    let id = "spiffe://heshan.gov.example/GA/household";
    let mut ended = Vec::new();
    for round in 0..rounds {
        // A certificate of this round, so that revoking it for ever does not end the next one's.
        let key = rcgen::KeyPair::generate().unwrap();
        let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
        std::fs::write(place.path("household.key"), key.serialize_pem()).unwrap();
        std::fs::write(place.path("household.csr"), csr).unwrap();
        let system = ["--department", "GA", "--system", "household", "--out", "household.pem", "--pki", pki];
        run(&place, &[&["pki", "sign", "--csr", "household.csr"], system.as_slice()].concat());
        let mut own = profile(&server.address, "GA", "household");
        (own.certificate, own.key) = (place.path("household.pem"), place.path("household.key"));
        let connect = || own.client(Clock::system()).unwrap().channel;
        let (mut client, mut idle) = (CatalogServiceClient::new(connect()), CatalogServiceClient::new(connect()));
        client.list_matters(ListMattersRequest::default()).await.unwrap();
        idle.list_matters(ListMattersRequest::default()).await.unwrap();
        let stream = open_stream(connect()).await;
        let stop = Arc::new(AtomicBool::new(false));
        let calling = tokio::spawn({
            let stop = stop.clone();
            async move {
                let mut last = Instant::now();
                while !stop.load(Ordering::SeqCst) {
                    if client.list_matters(ListMattersRequest::default()).await.is_ok() {
                        last = Instant::now();
                    }
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                last
            }
        });
        let killed = killed(&place);
        if round % 2 == 0 {
            trust(&place, &["block", "--san", id]);
        } else {
            let list = ["--revoke", "household.pem", "--out", "ga.crl", "--pki", pki];
            run(&place, &[&["pki", "crl", "--ca", "GA"], list.as_slice()].concat());
            trust(&place, &["revoke", "--crl", "ga.crl"]);
        }
        let done = Instant::now();
        assert_eq!(self::killed(&place), killed + 3, "the idle connection and the open stream, too");
        tokio::time::sleep(Duration::from_millis(1100)).await;
        stop.store(true, Ordering::SeqCst);
        let after = calling.await.unwrap().saturating_duration_since(done);
        assert!(after < Duration::from_secs(1), "it was answered {after:?} after");
        ended.push(after);
        let streamed = tokio::time::timeout(Duration::from_secs(20), stream).await.expect("the stream ends").unwrap();
        let after = streamed.saturating_duration_since(done);
        assert!(after < Duration::from_secs(1), "its stream was answered {after:?} after");
        ended.push(after);
        assert!(idle.list_matters(ListMattersRequest::default()).await.is_err());
        if round % 2 == 0 {
            trust(&place, &["block", "--san", id, "--remove"]);
        }
    }
    let (answered, failed) = others.end().await;
    eprintln!(
        "{rounds} rounds: last answer at most {:?} after the command ended; others {answered}",
        ended.iter().max()
    );
    assert!(answered > 0);
    assert_eq!(failed, 0, "others: of {answered}");
    let old = out().join("ca/GA.crl");
    assert!(trust_fails(&place, &["revoke", "--crl", old.to_str().unwrap()]).contains("numbers never fall"));
    assert_eq!(server.terminate(), Some(0));
}

/// Its CA is gone and it drains, its stream open for the whole grace: a block ends it all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_drains_is_out_within_a_second_when_blocked() {
    let place = place().await;
    let server = place.start();
    let channel = profile(&server.address, "GA", "household").client(Clock::system()).unwrap().channel;
    trust(&place, &["stage", "--remove-client-ca", "GA", "--mode", "drain", "--force"]);
    let stream = open_stream(channel).await;
    let said = trust(&place, &["activate"]);
    assert!(said.contains("1 drained, 0 cut"), "{said}");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!stream.is_finished(), "it drains");
    trust(&place, &["block", "--san", "spiffe://heshan.gov.example/GA/household"]);
    let done = Instant::now();
    let last = tokio::time::timeout(Duration::from_secs(20), stream).await.expect("the stream ends").unwrap();
    assert!(last.saturating_duration_since(done) < Duration::from_secs(1));
    assert_eq!(server.terminate(), Some(0));
}

fn killed(place: &Place) -> u64 {
    let status: serde_json::Value = serde_json::from_str(&trust(place, &["status", "--json"])).unwrap();
    status["serving"]["killed"].as_u64().unwrap()
}

/// Who did what stands in the access log, whether it was done or not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acts_are_entries_with_their_operator_and_roles_are_kept() {
    let place = place().await;
    let server = place.start();
    let id = "spiffe://heshan.gov.example/GA/household";
    trust(&place, &["block", "--san", id]);
    trust_fails(&place, &["activate"]);
    trust(&place, &["rollback"]);
    assert!(trust(&place, &["who"]).contains("nobody"));
    assert!(trust(&place, &["who", "--issuer", "GA"]).contains("nobody"));
    let typo = trust_fails(&place, &["who", "--issuer", "GO"]);
    assert!(typo.contains("no client CA is called GO; there are "), "{typo}");
    trust(&place, &["stage", "--remove-client-ca", "GA", "--mode", "drain", "--force"]);
    trust(&place, &["activate"]);
    let history = trust(&place, &["history"]);
    assert!(history.contains("rollback: to generation 1") && history.contains("block: id"), "{history}");
    assert_eq!(server.terminate(), Some(0));
    // What was done while the gateway was down is told when it starts.
    trust(&place, &["block", "--san", id, "--remove"]);
    let server = place.start();
    assert_eq!(server.terminate(), Some(0));
    let (mut said, mut starts) = (Vec::new(), Vec::new());
    for entry in place.log() {
        match entry.content {
            Content::Entry(Entry::Admin(admin)) => said.push(admin),
            Content::Entry(Entry::Start(start)) => starts.push(start.trust),
            _ => {}
        }
    }
    let details: Vec<_> = said.iter().map(|admin| admin.detail.as_str()).collect();
    let removed = "client CA GA removed, drained, in use or not";
    assert_eq!(
        details,
        [
            format!("block: id {id}").as_str(),
            &format!("block: done: generation 2: block: id {id}"),
            "activate",
            "activate: not done: nothing is staged; see `oncegate trust stage`",
            "rollback",
            "rollback: done: generation 3: rollback: to generation 1",
            &format!("stage: {removed}"),
            &format!("stage: done: staged: {removed}"),
            "activate",
            &format!("activate: done: generation 4: activate: {removed}"),
        ]
    );
    assert!(said.iter().all(|admin| admin.operator == "root (uid 0)"), "{said:?}");
    let key = out().join("audit/auditor.key");
    let search = ["audit", "search", "--log", "run/log", "--key", key.to_str().unwrap()];
    let (_, shown) = run(&place, &search);
    assert!(shown.contains("activate, by root (uid 0)"), "{shown}");
    let (_, shown) = run(&place, &[&search[..], &["--json"]].concat());
    assert!(shown.contains(&format!("\"detail\":\"block: done: generation 2: block: id {id}\"")), "{shown}");
    assert_eq!(starts.len(), 2, "{starts:?}");
    assert!(starts[0].starts_with("trust generation 1, "), "{starts:?}");
    let second = format!("trust generation 5, unblock: id {id} by root (uid 0), SHA-256 ");
    assert!(starts[1].starts_with(&second), "{starts:?}");

    // An auditor may look and not touch.
    let text = std::fs::read_to_string(place.path("gateway.toml")).unwrap();
    std::fs::write(place.path("gateway.toml"), text.replace("role = \"operator\"", "role = \"auditor\"")).unwrap();
    let server = place.start();
    trust(&place, &["status"]);
    assert!(trust_fails(&place, &["block", "--san", id, "--remove"]).contains("takes the role operator"));
    assert_eq!(server.terminate(), Some(0));
}

/// The key that signs the log, as docs/auditing.md changes it, with calls under way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_key_of_the_log_changes_and_no_call_fails() {
    let place = place().await;
    let text = std::fs::read_to_string(place.path("gateway.toml")).unwrap();
    let changed = text.lines().map(|line| match line.split_once(" = ") {
        Some(("signing_key", _)) => "signing_key = \"log.key\"".to_owned(),
        Some(("previous_signing_key", _)) => "previous_signing_key = \"log-previous.key\"".to_owned(),
        _ => line.to_owned(),
    });
    let changed: Vec<_> = changed.collect();
    std::fs::write(place.path("gateway.toml"), changed.join("\n")).unwrap();
    std::fs::copy(out().join("audit/log.key"), place.path("log.key")).unwrap();
    let server = place.start();
    let load = Load::start(&server.address, 2);
    let state = || -> (String, String) {
        let status: serde_json::Value = serde_json::from_str(&trust(&place, &["status", "--json"])).unwrap();
        let part =
            status["rotated"].as_array().unwrap().iter().find(|part| part["name"] == "log keys").unwrap().clone();
        (part["since"].as_str().unwrap().to_owned(), part["refused"].as_str().unwrap_or_default().to_owned())
    };
    let until = async |what: &str, done: &dyn Fn(&(String, String)) -> bool| {
        let started = Instant::now();
        while !done(&state()) {
            assert!(started.elapsed() < Duration::from_secs(20), "never: {what}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let origin = changed.iter().find_map(|line| line.strip_prefix("origin = \"")?.split('"').next()).unwrap();
    for round in 1..=2 {
        let next = format!("log-next-{round}.key");
        let (code, said) = run(&place, &["audit", "new-key", "log", "--name", origin, "--out", &next]);
        assert_eq!(code, Some(0), "{said}");
        // In the wrong order: refused, and the key in use goes on.
        let kept = std::fs::read(place.path("log.key")).unwrap();
        std::fs::copy(place.path(&next), place.path("log.key")).unwrap();
        until("refused", &|(_, refused)| refused.contains("previous_signing_key")).await;
        std::fs::write(place.path("log.key"), kept).unwrap();
        until("taken back", &|(_, refused)| refused.is_empty()).await;
        let (since, _) = state();
        // Times are shown in whole seconds.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        std::fs::copy(place.path("log.key"), place.path("log-previous.key")).unwrap();
        std::fs::rename(place.path(&next), place.path("log.key")).unwrap();
        until("the new key", &|(now, refused)| *now != since && refused.is_empty()).await;
    }
    let (answered, failed) = load.end().await;
    assert!(answered > 20, "only {answered} calls: no load");
    assert_eq!(failed, 0, "of {answered}");
    assert_eq!(server.terminate(), Some(0));
    let handed = |entry: &LoggedEntry| matches!(entry.content, Content::Entry(Entry::LogKey(_)));
    assert_eq!(place.log().iter().filter(|entry| handed(entry)).count(), 2);
}

/// The gateway down, every certificate expired: the files are enough, and it starts to say what is wrong.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_every_certificate_expired_the_way_back_is_open() {
    let place = place().await;
    run(&place, &["pki", "init", "--expired", "--out", "pki"]);
    std::fs::remove_dir_all(place.path("trust")).unwrap();
    std::fs::rename(place.path("pki/trust"), place.path("trust")).unwrap();
    let status = trust(&place, &["status"]);
    assert!(status.contains("nothing: the gateway does not run") && status.contains("server"), "{status}");
    let server = place.start();
    let status: serde_json::Value = serde_json::from_str(&trust(&place, &["status", "--json"])).unwrap();
    // The departments' sources are those of all tests, and valid.
    let own = status["ends"].as_array().unwrap().iter().filter(|end| end["kind"] != "upstream_ca");
    assert!(own.map(|end| end["days_left"].as_i64().unwrap()).all(|left| left < 0), "{status}");
    // What has expired can still be blocked, and one thing after the other be renewed.
    trust(&place, &["block", "--san", "spiffe://heshan.gov.example/GA/household"]);
    for (ca, file) in [("gateway", "gateway"), ("ZS-2", "ZS-2")] {
        run(&place, &["pki", "ca", "--name", ca, "--force", "--pki", "pki"]);
        assert!(place.path(&format!("pki/ca/{file}.pem")).exists());
    }
    trust(&place, &["csr", "server", "-o", "gw.csr"]);
    run(&place, &["pki", "sign", "--gateway", "--csr", "gw.csr", "--out", "gw.pem", "--pki", "pki"]);
    trust(&place, &["stage", "--cert", "gw.pem", "--server-ca", "pki/ca/gateway.pem"]);
    let zs = ["--client-ca", "pki/ca/ZS-2.pem", "--crl", "pki/ca/ZS-2.crl", "--bind", "ZS-2=ZS"];
    trust(&place, &[&["stage"], zs.as_slice()].concat());
    let said = trust(&place, &["activate", "--wait"]);
    assert!(said.contains("generation 3 serves"), "{said}");
    let ends: serde_json::Value = serde_json::from_str(&trust(&place, &["status", "--json"])).unwrap();
    let renewed = ends["ends"].as_array().unwrap().iter().find(|end| end["kind"] == "server").unwrap();
    assert!(renewed["days_left"].as_i64().unwrap() > 300);
    assert_eq!(server.terminate(), Some(0));
}

/// Killed at a random moment of a command, again and again: `current` always loads, and the gateway always starts.
#[test]
fn kill_nine_in_the_middle_of_commands_leaves_a_generation_that_serves() {
    let rounds: usize = std::env::var("ONCEGATE_ROUNDS").map_or(12, |rounds| rounds.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let place = runtime.block_on(place());
    let mut random = rand::rngs::StdRng::seed_from_u64(11);
    let mut killed = 0;
    for round in 0..rounds {
        let serial = format!("{:04x}", 0x1000 + round);
        let block = ["block", "--serial", &serial, "--ca", "GA"];
        let words: [&[&str]; 3] = [&block, &["stage", "--bind", "GA=GA"], &["activate"]];
        let mut child = Command::new(PROGRAM)
            .args(["trust", "--config", "gateway.toml"])
            .args(words[round % 3])
            .current_dir(place.path(""))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::park_timeout(Duration::from_millis(random.random_range(20..160)));
        killed += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        let (code, said) = run(&place, &["check", "--config", "gateway.toml"]);
        assert_eq!(code, Some(0), "round {round}: {said}");
    }
    assert!(killed > 0, "nothing was interrupted");
}

/// The gateway itself is killed at a random moment of an act that it carries out: it starts again, and a block that was
/// told to be done holds.
#[test]
fn kill_nine_of_the_gateway_in_the_middle_of_an_act_leaves_a_generation_that_serves() {
    let rounds: usize = std::env::var("ONCEGATE_ROUNDS").map_or(4, |rounds| rounds.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let place = runtime.block_on(place());
    let mut random = rand::rngs::StdRng::seed_from_u64(12);
    let mut told = Vec::new();
    for round in 0..rounds {
        let mut server = place.start();
        let serial = format!("{:04x}", 0x2000 + round);
        let mut child = Command::new(PROGRAM)
            .args(["trust", "--config", "gateway.toml", "block", "--serial", &serial, "--ca", "GA"])
            .current_dir(place.path(""))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::park_timeout(Duration::from_millis(random.random_range(20..200)));
        server.child.kill().unwrap();
        server.child.wait().unwrap();
        if child.wait().unwrap().success() {
            told.push(serial);
        }
        let (code, said) = run(&place, &["check", "--config", "gateway.toml"]);
        assert_eq!(code, Some(0), "round {round}: {said}");
    }
    let server = place.start();
    let status: serde_json::Value = serde_json::from_str(&trust(&place, &["status", "--json"])).unwrap();
    let blocked: Vec<_> =
        status["blocked"].as_array().unwrap().iter().map(|one| one["serial"].as_str().unwrap()).collect();
    assert!(told.iter().all(|serial| blocked.contains(&serial.as_str())), "{told:?} in {blocked:?}");
    assert_eq!(server.terminate(), Some(0));
}

/// New token keys are announced beside the old ones; what is not in order is passed over; what is taken out is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_keys_rotate_with_overlap() {
    let dir = tempfile::tempdir().unwrap();
    let jwks = dir.path().join("platform.jwks.json");
    let old: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out().join("tokens/platform.jwks.json")).unwrap()).unwrap();
    let new: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out().join("tokens/FG.jwks.json")).unwrap()).unwrap();
    std::fs::write(&jwks, old.to_string()).unwrap();
    let (others, ca) = (dir.path().join("WJ.jwks.json"), dir.path().join("WJ.pem"));
    std::fs::copy(out().join("tokens/WJ.jwks.json"), &others).unwrap();
    std::fs::copy(out().join("ca/WJ.pem"), &ca).unwrap();
    // Takes connections and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_at = format!("https://{}", silent.local_addr().unwrap());
    let site = Site::with(|config| {
        let source = config.sources.iter_mut().find(|source| source.name == "disability").unwrap();
        (source.address, source.connect_timeout_ms) = (silent_at, 60_000);
        source.ca.clone_from(&ca);
        let issuers = &mut config.identity.issuers;
        issuers.retain(|issuer| !issuer.issuer.contains(".fg."));
        let platform = issuers.iter_mut().find(|issuer| issuer.issuer.contains(".platform.")).unwrap();
        platform.jwks.clone_from(&jwks);
        let wj = issuers.iter_mut().find(|issuer| issuer.issuer.contains(".wj.")).unwrap();
        wj.jwks.clone_from(&others);
    })
    .await;
    site.birth.answers(vec![birth()]);
    let next = key_of("FG");
    let call = async |key: Option<&oncegate::identity::mint::SigningKey>| {
        let token = key.map_or_else(|| site.token("GA"), |key| site.sign(key, "GA", |_| {}));
        site.send(site.channel.clone(), Some(&token), request()).await
    };
    let until = async |key, works: bool| {
        let started = Instant::now();
        while call(key).await.is_ok() != works {
            assert!(started.elapsed() < Duration::from_secs(20), "the change of keys was not seen");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    call(None).await.unwrap();
    assert!(call(Some(&next)).await.is_err());
    // A source that is tried anew and does not answer holds up no key.
    std::fs::copy(out().join("ca/CL.pem"), &ca).unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let both = serde_json::json!({ "keys": [old["keys"][0], new["keys"][0]] });
    site.clock.advance(Duration::from_millis(1));
    std::fs::write(&jwks, both.to_string()).unwrap();
    until(Some(&next), true).await;
    call(None).await.expect("the old key is good as long as it stands there");
    std::fs::write(&jwks, "{ half a fil").unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    call(None).await.unwrap();
    call(Some(&next)).await.expect("what can't be read changes nothing");
    // Another issuer's file that is not in order keeps no key in use but its own.
    std::fs::write(&others, "{ half a fil").unwrap();
    // The very token that was verified before: its memory goes with the key.
    std::fs::write(&jwks, new.to_string()).unwrap();
    until(None, false).await;
    call(Some(&next)).await.unwrap();
    let of_tokens = "oncegate_rotation_refused{part=\"token keys\"} 1";
    assert!(site.metrics().await.contains(of_tokens), "what is not in order is told");
    let acts = acts_of_files(site).await;
    assert!(acts.iter().any(|act| act.starts_with("token keys: other material is used")), "{acts:?}");
    assert!(acts.iter().any(|act| act.starts_with("token keys: ") && act.contains("refused: ")), "{acts:?}");
}

/// What the log says of files that were followed, once it had the time.
async fn acts_of_files(site: Site) -> Vec<String> {
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let (_, dir) = site.close_keeping_the_dir().await;
    let key = PrivateKey::load(&out().join("audit/auditor.key")).unwrap();
    let entries = LogReader::open(&dir.path().join("run/log"), key).unwrap();
    let act = |entry: LoggedEntry| match entry.content {
        Content::Entry(Entry::Admin(act)) if act.operator == "files" && act.method == "rotation" => Some(act.detail),
        _ => None,
    };
    entries.filter_map(|entry| act(entry.unwrap())).collect()
}

/// Another identity towards departments is tried before it is used.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_identity_towards_departments_is_made_before_the_old_one_breaks() {
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key) = (dir.path().join("client.pem"), dir.path().join("client.key"));
    let put = |name: &str| {
        // As a careless script would: one after the other, so that for a moment they do not fit.
        std::fs::copy(out().join(format!("{name}.pem")), &certificate).unwrap();
        std::fs::copy(out().join(format!("{name}.key")), &key).unwrap();
    };
    put("gateway/client");
    let site = Site::with(|config| {
        for source in &mut config.sources {
            (source.certificate, source.key) = (Some(certificate.clone()), Some(key.clone()));
        }
    })
    .await;
    // Answers are remembered: another consumer, or other fields, ask the source anew.
    site.birth.answers(vec![birth()]);
    site.lookup("GA", request()).await.unwrap();
    let refused = async || {
        let metrics = site.metrics().await;
        metrics.lines().any(|line| line == "oncegate_rotation_refused{part=\"source birth\"} 1")
    };
    let until = async |state: bool| {
        let started = Instant::now();
        while refused().await != state {
            assert!(started.elapsed() < Duration::from_secs(20), "the change was not seen");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    // The source does not take certificates of this CA: nothing breaks.
    put("systems/GA/household");
    until(true).await;
    site.lookup("JK", request()).await.expect("the old identity is used on");
    site.clock.advance(Duration::from_millis(1));
    put("systems/ZS/operator");
    until(false).await;
    let more = oncegate::pb::gateway::LookupRequest { read_mask: mask(&["certificate_no", "sex"]), ..request() };
    site.lookup("JK", more).await.expect("the new identity is used");
    assert_eq!((site.birth.calls(), site.birth.given_up()), (3, 0));
    let acts = acts_of_files(site).await;
    assert!(acts.iter().any(|act| act.starts_with("source birth: ") && act.contains("refused: ")), "{acts:?}");
    assert!(acts.iter().any(|act| act.starts_with("source birth: other material is used")), "{acts:?}");
}
