//! The log as outsiders see it: signed, cosigned by a mirror that holds a copy, proved by receipts, checked by the
//! program's own commands and by a verifier that shares no line with it.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt as _;
use oncegate::app::{App, StartError};
use oncegate::audit::checkpoint::{Checkpoint, Policy, Proof};
use oncegate::audit::keys::PrivateKey;
use oncegate::audit::note::{Algorithm, SigningKey};
use oncegate::audit::receipt::SignedReceipt;
use oncegate::audit::tree::{Entries, Resource};
use oncegate::audit::{AdminEntry, AuditConfig, Entry, Journal, OpenError, PolicyKeys, StartInfo, verify};
use oncegate::clock::Clock;
use oncegate::config::Config;
use oncegate::pb::gateway as pb;
use oncegate::pb::gateway::lookup_service_client::LookupServiceClient;
use oncegate::witness::{self, Witness, WitnessFile};
use prost::Message as _;
use tokio_util::sync::CancellationToken;
use tonic::Request;
use tower::ServiceExt as _;

use crate::harness::{Around, Site, birth, deployment, mask, out, profile, request};

const PROGRAM: &str = env!("CARGO_BIN_EXE_oncegate");

fn run(arguments: &[&str]) -> Output {
    Command::new(PROGRAM).args(arguments).output().unwrap()
}

#[track_caller]
fn succeeds(arguments: &[&str]) -> String {
    let output = run(arguments);
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{arguments:?}: {said}{complained}");
    said.into_owned()
}

fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// The deployment's witness, or its mirror of the log served at an address. Returns its URL.
async fn overseer(dir: &Path, mirror_of: Option<SocketAddr>, stop: &CancellationToken) -> String {
    overseer_with(dir, mirror_of, stop, |_| {}).await
}

/// With its configuration as a test wants it.
pub(crate) async fn overseer_with(
    dir: &Path,
    mirror_of: Option<SocketAddr>,
    stop: &CancellationToken,
    change: impl FnOnce(&mut WitnessFile),
) -> String {
    let name = if mirror_of.is_some() { "mirror.toml" } else { "witness.toml" };
    let text = std::fs::read_to_string(format!("deploy/heshan/{name}"))
        .unwrap()
        .replace("../../certs-dev/out", out().to_str().unwrap())
        .replace("127.0.0.1:7446", "127.0.0.1:0")
        .replace("127.0.0.1:7447", &mirror_of.map(|address| address.to_string()).unwrap_or_default());
    std::fs::write(dir.join(name), text).unwrap();
    let mut config = WitnessFile::load(&dir.join(name)).unwrap();
    change(&mut config);
    let witness = Arc::new(Witness::open(&config, mirror_of.is_some(), Clock::system()).unwrap());
    let (told, address) = tokio::sync::oneshot::channel();
    let stop = stop.clone();
    tokio::spawn(async move {
        let bound = move |address| told.send(address).unwrap();
        witness::serve(witness, &config, Clock::system(), bound, stop.cancelled()).await.unwrap();
    });
    format!("https://{}", address.await.unwrap())
}

/// The log's key and the overseer's, who must have cosigned.
fn policy(dir: &Path) -> PathBuf {
    let key = |name: &str| std::fs::read_to_string(out().join("audit").join(name)).unwrap();
    let text = format!("log {}witness overseer {}quorum overseer\n", key("log.vkey"), key("witness.vkey"));
    let file = dir.join("policy.txt");
    std::fs::write(&file, text).unwrap();
    file
}

async fn witnessed(log: &Path, size: u64) {
    for _ in 0..1000 {
        let note = verify::read_note(&log.join("witnessed")).unwrap();
        if note.is_some_and(|note| Checkpoint::of(&note).unwrap().tree.size >= size) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("never cosigned");
}

async fn get(address: SocketAddr, department: &str, system: &str, path: &str) -> (u16, Vec<u8>) {
    let channel = profile(&format!("https://{address}"), department, system).client(Clock::system()).unwrap().channel;
    let request = http::Request::get(path).body(tonic::body::Body::empty()).unwrap();
    let response = channel.oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    (status, response.into_body().collect().await.unwrap().to_bytes().to_vec())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_gateway_records_is_cosigned_copied_and_proved_to_anybody() {
    let (stop, aside) = (CancellationToken::new(), tempfile::tempdir().unwrap());
    let served = free_port();
    let mirror = overseer(aside.path(), Some(served), &stop).await;
    let site = Site::with(|config| {
        config.audit.witnesses[0].url = mirror;
        config.audit.serve.as_mut().unwrap().listen = served;
        config.audit.checkpoint_ms = 50;
    })
    .await;
    site.birth.answers(vec![birth()]);
    let ask = async |paths: &[&str]| {
        let mut message = Request::new(pb::LookupRequest { read_mask: mask(paths), ..request() });
        let token = format!("Bearer {}", site.token("GA"));
        message.metadata_mut().insert("authorization", token.parse().unwrap());
        message.metadata_mut().insert("oncegate-sign-receipt", "1".parse().unwrap());
        LookupServiceClient::new(site.channel.clone()).lookup(message).await
    };
    let answer = ask(&["infant_name"]).await.unwrap().into_inner();
    let receipt = answer.receipt.clone().unwrap();
    let refused = ask(&["birth_weight_g"]).await.unwrap_err();
    let refused = refused.metadata().get_bin("oncegate-receipt-bin").unwrap().to_bytes().unwrap();
    let refused: pb::Receipt = prost::Message::decode(refused).unwrap();
    let unsigned = site.lookup("GA", request()).await.unwrap().receipt.unwrap();
    assert_eq!(unsigned.signed, "", "only who asks for it gets one");

    let log = site.dir.path().join("run/log");
    witnessed(&log, unsigned.index + 1).await;
    let (log, copy) = (log.to_str().unwrap().to_owned(), aside.path().join("run/mirror/gw1"));
    let policy_file = policy(aside.path());
    let (policy_file, file) = (policy_file.to_str().unwrap(), |name: &str| aside.path().join(name));

    // The receipt: by the program, and by hand.
    for (receipt, outcome) in [(&receipt, "RELEASED"), (&refused, "DENIED")] {
        std::fs::write(file("receipt.jws"), &receipt.signed).unwrap();
        let log_key = out().join("audit/log.vkey");
        let path = file("receipt.jws");
        let check = ["audit", "receipt", path.to_str().unwrap(), "--log-key", log_key.to_str().unwrap()];
        let said = succeeds(&check);
        assert!(said.contains(outcome) && said.contains(&receipt.request_id), "{said}");
        let claims = SignedReceipt::parse(&receipt.signed).unwrap().claims().clone();
        assert_eq!((claims.index, claims.leaf.as_slice()), (receipt.index, receipt.leaf_hash.as_ref()));
        assert_eq!(claims.answer.is_some(), outcome == "RELEASED");
        assert!(!receipt.signed.is_empty() && !said.contains("乌有"));
        // The answer that it is for, and no other.
        let saved = file("answer.bin");
        let with = [&check[..], &["--answer", saved.to_str().unwrap()]].concat();
        std::fs::write(&saved, answer.encode_to_vec()).unwrap();
        assert_eq!(run(&with).status.success(), outcome == "RELEASED", "a refusal is for no answer");
        let mut other = answer.clone();
        other.records[0].record.as_mut().unwrap().value.push(0);
        std::fs::write(&saved, other.encode_to_vec()).unwrap();
        assert_eq!(run(&with).status.code(), Some(1), "{outcome}: another answer");

        // The proof, from the log and from the mirror's copy; checked against the receipt, the hash, the entry itself.
        for from in [log.as_str(), copy.to_str().unwrap()] {
            let (index, entry, proof) = (receipt.index.to_string(), file("entry"), file("x.tlog-proof"));
            let (entry, proof) = (entry.to_str().unwrap(), proof.to_str().unwrap());
            let text = succeeds(&["audit", "prove", &index, "--log", from, "--entry", entry]);
            std::fs::write(proof, &text).unwrap();
            let leaf = hex::encode(&receipt.leaf_hash);
            let path = path.to_str().unwrap();
            for of in [["--entry", entry], ["--leaf", &leaf], ["--receipt", path]] {
                let said = succeeds(&["audit", "check", proof, "--policy", policy_file, of[0], of[1]]);
                assert!(said.contains("witnessed by overseer"), "{said}");
            }
            let wrong = "00".repeat(32);
            assert!(!run(&["audit", "check", proof, "--policy", policy_file, "--leaf", &wrong]).status.success());
            let policy: Policy = std::fs::read_to_string(policy_file).unwrap().parse().unwrap();
            text.parse::<Proof>().unwrap().check(&policy, claims.leaf).unwrap();
        }
    }

    // Who may read the log, and who may not.
    let (status, checkpoint) = get(served, "FG", "log-mirror", "/checkpoint").await;
    assert!(status == 200 && checkpoint.starts_with(b"heshan.gov.example/gw1\n"));
    let (status, tile) = get(served, "FG", "log-mirror", "/tile/0/000.p/3").await;
    assert_eq!((status, tile.len()), (200, 96));
    for (path, expected) in [("/tile/0/000", 404), ("/tile/entries/001.p/1", 404), ("/lock", 404), ("/", 404)] {
        assert_eq!(get(served, "FG", "log-mirror", path).await.0, expected, "{path}");
    }
    for (department, system) in [("GA", "household"), ("ZS", "platform")] {
        assert_eq!(get(served, department, system, "/checkpoint").await.0, 403, "{system}");
    }

    // As an auditor would take it, from a running gateway.
    let taken = file("taken");
    assert!(Command::new("cp").arg("-r").arg(&log).arg(&taken).status().unwrap().success());
    site.close().await;
    stop.cancel();
    let log = taken.to_str().unwrap().to_owned();
    // The log and the copy, whole; and by a verifier that shares nothing with the program.
    for from in [log.as_str(), copy.to_str().unwrap()] {
        let said = succeeds(&["audit", "verify", "--log", from, "--policy", policy_file]);
        assert!(said.contains("The log is what was signed.") && said.contains("witnessed  by overseer"), "{said}");
        succeeds(&["audit", "fsck", from]);
        let tree = file(if from == log.as_str() { "tree" } else { "tree-of-copy" });
        let tree = tree.to_str().unwrap();
        succeeds(&["audit", "export", "--format", "tiles", "--log", from, "--out", tree]);
        let (proof, entry) = (file("x.tlog-proof"), file("entry"));
        let python = |tree: &str| {
            let arguments =
                ["tests/verify_log.py", tree, policy_file, proof.to_str().unwrap(), entry.to_str().unwrap()];
            Command::new("python3").args(arguments).output().unwrap()
        };
        let output = python(tree);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let key = std::fs::read_to_string(out().join("audit/log.vkey")).unwrap();
        another_implementation_agrees(Path::new(tree), key.trim(), 1);
        // And it is no yes-man.
        let bundle = std::fs::read_dir(file(tree).join("tile/entries/000.p")).unwrap().next().unwrap().unwrap().path();
        let mut bytes = std::fs::read(&bundle).unwrap();
        bytes[60] ^= 1;
        std::fs::write(&bundle, bytes).unwrap();
        assert!(!python(tree).status.success());
    }
}

/// Cloudflare's crates for C2SP signed-note and tlog-tiles read the tree, and their proofs hold: of every `step`th entry.
///
/// Their tile reader does not check every tile against the root, so each entry's own hash is checked against a proof.
fn another_implementation_agrees(tree: &Path, key: &str, step: usize) {
    let note = signed_note::Note::from_bytes(&std::fs::read(tree.join("checkpoint")).unwrap()).unwrap();
    let verifier = signed_note::StandardVerifier::new(key).unwrap();
    let (signed, _) = note.verify(&signed_note::VerifierList::new(vec![Box::new(verifier)])).unwrap();
    assert_eq!(signed.len(), 1);
    let checkpoint = tlog_tiles::Checkpoint::from_bytes(note.text()).unwrap();
    let (size, root) = (checkpoint.size(), *checkpoint.hash());
    let files = Files(tree.to_owned());
    let hashes = tlog_tiles::TileHashReader::new(size, root, &files);
    let bundles = Resource::all(size).filter(|resource| matches!(resource, Resource::Entries { .. }));
    let bundles: Vec<u8> = bundles.flat_map(|bundle| std::fs::read(tree.join(bundle.path())).unwrap()).collect();
    let entries: Vec<_> = Entries(&bundles).collect();
    assert_eq!(entries.len() as u64, size);
    for (index, entry) in entries.iter().enumerate().step_by(step).chain(entries.iter().enumerate().next_back()) {
        let index = index as u64;
        let proof = tlog_tiles::prove_record(size, index, &hashes).unwrap();
        tlog_tiles::check_record(&proof, size, root, index, tlog_tiles::record_hash(entry)).unwrap();
        assert!(tlog_tiles::check_record(&proof, size, root, index, tlog_tiles::record_hash(b"other")).is_err());
    }
    for old in (1..size).step_by(step) {
        let before = tlog_tiles::tree_hash(old, &hashes).unwrap();
        let proof = tlog_tiles::prove_tree(size, old, &hashes).unwrap();
        tlog_tiles::check_tree(&proof, size, root, old, before).unwrap();
    }
}

/// A log of two segments, so of full tiles on two levels, whose signing key changed on the way: the program, the crates and
/// the verifier in Python agree on it, knowing the first key alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_of_seventy_thousand_entries_and_two_keys_is_verified_by_others() {
    const ORIGIN: &str = "heshan.gov.example/gw1";
    let aside = tempfile::tempdir().unwrap();
    let file = |name: &str| aside.path().join(name);
    for name in ["auditor.pub", "escrow.pub"] {
        PrivateKey::generate().unwrap().public().write(&file(name)).unwrap();
    }
    let first = SigningKey::generate(ORIGIN, Algorithm::Ed25519).unwrap();
    first.write(&file("log.key")).unwrap();
    let text = format!(
        "dir = 'log'\norigin = '{ORIGIN}'\nsigning_key = 'log.key'\nprevious_signing_key = 'previous.key'\n\
         recipients = ['auditor.pub', 'escrow.pub']\nqueue = 40000\nbatch = 8192\nwait_ms = 60000\n"
    );
    let mut config: AuditConfig = toml::from_str(&text).unwrap();
    config.rebase(aside.path());
    let gateway = "spiffe://heshan.gov.example/ZS/gateway-1".into();
    let start = StartInfo {
        gateway,
        policy: [7; 32],
        policy_keys: PolicyKeys::default(),
        trust: String::new(),
        held: Vec::new(),
    };
    let journal = Journal::open(&config, Clock::system(), start).unwrap();
    let fill = async || {
        let entry = || Entry::Admin(AdminEntry { operator: "a".into(), method: "m".into(), detail: String::new() });
        let answers = futures_util::future::join_all((0..35_000).map(|_| journal.append(entry()))).await;
        assert!(answers.iter().all(Result::is_ok));
    };
    fill().await;
    std::fs::rename(file("log.key"), file("previous.key")).unwrap();
    let second = SigningKey::generate(ORIGIN, Algorithm::Ed25519).unwrap();
    second.write(&file("log.key")).unwrap();
    journal.follow().await.unwrap().unwrap();
    fill().await;
    journal.close("drained");

    std::fs::write(file("policy.txt"), format!("log {}\nquorum none\n", first.verifier())).unwrap();
    let [log, policy, tree, entry] =
        ["log", "policy.txt", "tree", "entry"].map(|name| file(name).display().to_string());
    let said = succeeds(&["audit", "verify", "--log", &log, "--policy", &policy, "--origin", ORIGIN]);
    assert!(said.contains("signed     70004 entries") && said.contains("entry 35002: the log goes over"), "{said}");
    assert!(said.starts_with(&format!("log        {ORIGIN}\n")), "{said}");
    succeeds(&["audit", "export", "--format", "tiles", "--log", &log, "--out", &tree]);
    std::fs::write(file("proof"), succeeds(&["audit", "prove", "66000", "--log", &log, "--entry", &entry])).unwrap();
    let python = |policy: &Path| {
        let proof = file("proof");
        Command::new("python3")
            .arg("tests/verify_log.py")
            .args([&file("tree"), policy, &proof, &file("entry")])
            .output()
    };
    let output = python(&file("policy.txt")).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    another_implementation_agrees(&file("tree"), &second.verifier().to_string(), 1997);
    // A tile of each level, the handover, and a policy that does not know who began.
    let stranger = SigningKey::generate(ORIGIN, Algorithm::Ed25519).unwrap();
    std::fs::write(file("other.txt"), format!("log {}\nquorum none\n", stranger.verifier())).unwrap();
    assert!(!python(&file("other.txt")).unwrap().status.success());
    for name in ["tile/0/255", "tile/1/000", "tile/1/001.p/17", "tile/2/000.p/1", "tile/entries/136"] {
        let whole = std::fs::read(file("tree").join(name)).unwrap();
        let mut bytes = whole.clone();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(file("tree").join(name), bytes).unwrap();
        assert!(!python(&file("policy.txt")).unwrap().status.success(), "{name}");
        std::fs::write(file("tree").join(name), whole).unwrap();
    }
    // A policy of two logs must be told which one is meant.
    let other = SigningKey::generate("heshan.gov.example/gw2", Algorithm::Ed25519).unwrap();
    let both = format!("log {}\nlog {}\nquorum none\n", first.verifier(), other.verifier());
    std::fs::write(file("both.txt"), both).unwrap();
    let both = file("both.txt").display().to_string();
    let unsaid = run(&["audit", "verify", "--log", &log, "--policy", &both]);
    assert!(!unsaid.status.success() && String::from_utf8_lossy(&unsaid.stderr).contains("--origin"), "{unsaid:?}");
    let wrong = run(&["audit", "verify", "--log", &log, "--policy", &both, "--origin", "heshan.gov.example/gw2"]);
    assert!(!wrong.status.success() && String::from_utf8_lossy(&wrong.stdout).contains("this is the log"), "{wrong:?}");
    succeeds(&["audit", "verify", "--log", &log, "--policy", &both, "--origin", ORIGIN]);
}

/// Tiles of an exported tree.
struct Files(PathBuf);

impl tlog_tiles::TileReader for Files {
    fn height(&self) -> u8 {
        8
    }

    fn read_tiles(&self, tiles: &[tlog_tiles::Tile]) -> Result<Vec<Vec<u8>>, tlog_tiles::Error> {
        let read = |tile: &tlog_tiles::Tile| {
            let path = tile.path();
            let path = path.strip_prefix("tile/8/").map_or(path.clone(), |rest| format!("tile/{rest}"));
            std::fs::read(self.0.join(path)).unwrap()
        };
        Ok(tiles.iter().map(read).collect())
    }

    fn save_tiles(&self, _: &[tlog_tiles::Tile], _: &[Vec<u8>]) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolled_back_gateway_does_not_start_because_its_witness_remembers() {
    let (stop, aside) = (CancellationToken::new(), tempfile::tempdir().unwrap());
    let witness = overseer(aside.path(), None, &stop).await;
    let file = aside.path().join("gateway.toml");
    std::fs::write(&file, deployment(&Around::new(), &stop).await).unwrap();
    let config = || {
        let mut config = Config::load(&file).unwrap();
        config.admin = None;
        config.audit.witnesses[0].url.clone_from(&witness);
        config
    };
    let once = async || {
        let ended = CancellationToken::new();
        let app = App::build(config(), Clock::system()).await?;
        let gateway = tokio::spawn(app.run(ended.clone()));
        tokio::time::sleep(Duration::from_millis(100)).await;
        let size = verify::read_note(&config().audit.dir.join("checkpoint")).unwrap().unwrap();
        witnessed(&config().audit.dir, Checkpoint::of(&size).unwrap().tree.size).await;
        ended.cancel();
        gateway.await.unwrap().map(drop)
    };
    once().await.unwrap();
    // An administrator's backup: everything, the checkpoint too, as it was.
    let (log, backup) = (config().audit.dir, aside.path().join("backup"));
    let copy = |from: &Path, to: &Path| {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    };
    copy(&log, &backup);
    once().await.unwrap();
    std::fs::remove_dir_all(&log).unwrap();
    copy(&backup, &log);
    let refused = once().await;
    assert!(matches!(refused, Err(StartError::Log(OpenError::Rollback { .. }))), "{refused:?}");
    // Deleted altogether, it is no fresh start either.
    std::fs::remove_dir_all(&log).unwrap();
    let refused = once().await;
    assert!(matches!(refused, Err(StartError::Log(OpenError::Rollback { size: 0, .. }))), "{refused:?}");
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exports_and_reconciliation_say_exactly_what_is_there() {
    let site = Site::start().await;
    site.birth.answers(vec![birth()]);
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(site.lookup("GA", request()).await.unwrap().receipt.unwrap().request_id);
    }
    let log = site.dir.path().join("run/log");
    let list = site.dir.path().join("list.csv");
    let dir = site.dir.path().to_owned();
    let log = log.to_str().unwrap().to_owned();
    let key = out().join("audit/auditor.key");
    let key = key.to_str().unwrap();
    let export = |format: &str| succeeds(&["audit", "export", "--format", format, "--log", &log, "--key", key]);
    let csv = export("csv");
    assert_eq!(csv.lines().count(), 4, "{csv}");
    assert!(csv.starts_with("index,time,request_id,outcome,") && csv.contains(",RELEASED,"), "{csv}");
    let ocsf = export("ocsf");
    for line in ocsf.lines() {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!((&event["class_uid"], &event["type_uid"]), (&6003.into(), &600_302.into()));
        assert!(ids.contains(&event["api"]["request"]["uid"].as_str().unwrap().to_owned()));
    }
    let jsonl = export("jsonl");
    assert!(jsonl.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()));
    assert!(jsonl.lines().count() > 3, "START and EPOCH are exported, too");

    let reconcile = |whose: [&str; 2], lines: &[&str]| {
        std::fs::write(&list, lines.join("\n")).unwrap();
        let list = list.to_str().unwrap();
        let arguments = ["audit", "reconcile", "--log", &log, "--key", key, "--list", list, whose[0], whose[1]];
        let output = run(&arguments);
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    let all: Vec<_> = ids.iter().map(String::as_str).collect();
    let (code, said) = reconcile(["--consumer", "GA"], &all);
    assert_eq!((code, said.as_str()), (0, "3 in both, 0 missing in the log, 0 missing in the list\n"));
    let unknown = "01a20b4d-9a06-72f1-b560-95c9a8bac618";
    let (code, said) = reconcile(["--consumer", "GA"], &["# ours", all[0], &format!("\"{}\",x", all[1]), unknown]);
    assert_eq!(code, 1);
    assert!(said.contains(&format!("{unknown}  NOT IN THE LOG")), "{said}");
    assert!(said.contains(&format!("{}  NOT IN THE LIST", all[2])), "{said}");
    // The provider was asked once; two answers came from memory.
    let (code, said) = reconcile(["--provided", "birth_medical_certificate"], &all[..1]);
    assert_eq!((code, said.lines().count()), (0, 1), "{said}");
    // Calls without a token have no consumer: theirs or not, nobody is accused.
    let unsaid = site.send(site.channel.clone(), None, request()).await.unwrap_err();
    let unsaid = unsaid.metadata().get("oncegate-request-id").unwrap().to_str().unwrap().to_owned();
    // A provider that has no record, or does not answer in time, was asked all the same.
    let other = |path: &str| pb::LookupRequest { read_mask: mask(&[path]), ..request() };
    let mut asked = vec![ids[0].clone()];
    site.birth.answers(Vec::new());
    let failed = site.lookup("GA", other("certificate_no")).await.unwrap_err();
    asked.push(failed.metadata().get("oncegate-request-id").unwrap().to_str().unwrap().to_owned());
    site.birth.answers_after(Duration::from_mins(1), vec![birth()]);
    let mut message = Request::new(other("issue_date"));
    message.metadata_mut().insert("authorization", format!("Bearer {}", site.token("GA")).parse().unwrap());
    message.metadata_mut().insert("grpc-timeout", "400m".parse().unwrap());
    let late = LookupServiceClient::new(site.channel.clone()).lookup(message).await.unwrap_err();
    asked.push(late.metadata().get("oncegate-request-id").unwrap().to_str().unwrap().to_owned());
    let of = |ids: &[String]| ids.iter().map(String::as_str).collect::<Vec<_>>().join("\n");
    let (code, said) = reconcile(["--consumer", "GA"], &[&of(&ids), &of(&asked[1..]), &unsaid]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains(&format!("{unsaid}  in the log, without a consumer")), "{said}");
    let (code, said) = reconcile(["--provided", "birth_medical_certificate"], &[&of(&asked)]);
    assert_eq!((code, said.as_str()), (0, "3 in both, 0 missing in the log, 0 missing in the list\n"));
    // What timed out may never have arrived; that there is no record, the provider itself has said.
    let (code, said) = reconcile(["--provided", "birth_medical_certificate"], &[&of(&asked[..2])]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains(&format!("{}  not in the list; may not have arrived", asked[2])), "{said}");
    let (code, said) = reconcile(["--provided", "birth_medical_certificate"], &[&of(&asked[..1])]);
    assert_eq!(code, 1);
    assert!(said.contains(&format!("{}  NOT IN THE LIST", asked[1])), "{said}");

    // One entry, with everything that it says; and the others with theirs.
    let show = |index: &str| -> serde_json::Value {
        serde_json::from_str(&succeeds(&["audit", "show", index, "--log", &log, "--key", key])).unwrap()
    };
    let shown = show("2");
    assert_eq!((shown["request_id"].as_str(), shown["mode"].as_str()), (Some(ids[0].as_str()), Some("QUERY")));
    assert!(shown["facts"].is_object() && shown["records"][0]["withheld"].is_array(), "{shown}");
    assert_eq!((&shown["corrects"], &shown["omitted"]["records"]), (&serde_json::Value::Null, &0.into()));
    let start = show("1");
    assert_eq!((&start["kind"], start["policy"].as_str().map(str::len)), (&"START".into(), Some(64)), "{start}");
    assert_eq!(start["recovered"], 0);
    drop(dir);
    site.close().await;
}
