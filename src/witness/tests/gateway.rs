//! A gateway and its witness, who may remember more than the gateway has, or lie.

use super::*;
use crate::audit::keys::PrivateKey;
use crate::audit::medium::{Disk, Medium as _};
use crate::audit::note::parse_signatures;
use crate::audit::testing::{copy, until};
use crate::audit::{AdminEntry, AppendError, AuditConfig, Entry, Journal, OpenError, PolicyKeys, StartInfo};

/// A log beside the site of its witness.
struct Gateway {
    site: Site,
    config: AuditConfig,
}

impl Gateway {
    fn new(url: &str) -> Self {
        let site = Site::new();
        let dir = site.dir.path();
        for name in ["auditor.pub", "escrow.pub"] {
            PrivateKey::generate().unwrap().public().write(&dir.join(name)).unwrap();
        }
        site.log.write(&dir.join("log.key")).unwrap();
        SigningKey::load(&dir.join("key")).unwrap().write_public(&dir.join("witness.vkey")).unwrap();
        let text = format!(
            "dir = 'log'\norigin = '{ORIGIN}'\nsigning_key = 'log.key'\nrecipients = ['auditor.pub', 'escrow.pub']\n\
             preallocate_mib = 1\ncheckpoint_ms = 10\n[[witnesses]]\nvkey = 'witness.vkey'\nurl = '{url}'\n"
        );
        let mut config: AuditConfig = toml::from_str(&text).unwrap();
        config.rebase(dir);
        Self { site, config }
    }

    /// Opens the log without asking anybody.
    fn open(&self) -> Journal {
        let gateway = "spiffe://heshan.gov.example/ZS/gateway-1".into();
        let start = StartInfo {
            gateway,
            policy: [7; 32],
            policy_keys: PolicyKeys::default(),
            trust: String::new(),
            held: Vec::new(),
        };
        Journal::open(&self.config, Clock::manual(NOW), start).unwrap()
    }

    fn submit(&self, journal: &Journal, stop: &CancellationToken) {
        let proofs = Proofs::open(&self.config.dir).unwrap();
        let (witness, peer) = (&self.config.witnesses[0], self.peers().remove(0));
        submit(&self.config, witness, peer, journal.clone(), proofs, stop.clone()).unwrap();
    }

    fn peers(&self) -> Vec<Peer> {
        peers(&self.config, None, &Clock::manual(NOW)).unwrap()
    }
}

fn entry() -> Entry {
    Entry::Admin(AdminEntry { operator: "a".into(), method: "m".into(), detail: "d".into() })
}

/// The log lost what its witness remembers, and the witness was away when it started: as soon as the two meet, no further
/// entry is taken. Once the log is still shorter than what the witness holds, once it has grown past that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_its_witness_knows_better_takes_no_further_entry() {
    for grown in [0, 10] {
        let stop = CancellationToken::new();
        let mut gateway = Gateway::new("http://127.0.0.1:1");
        let url = start(gateway.site.witness(), gateway.site.config.clone(), &stop).await;
        gateway.config.witnesses[0].url = url;
        let journal = gateway.open();
        gateway.submit(&journal, &stop);
        let backup = gateway.site.dir.path().join("backup");
        until(|| journal.status().witnessed_at.is_some()).await;
        copy(&gateway.config.dir, &backup);
        for _ in 0..5 {
            journal.append(entry()).await.unwrap();
        }
        let witnessed = gateway.config.dir.join("witnessed");
        until(|| fs::read_to_string(&witnessed).is_ok_and(|note| note.contains("\n7\n"))).await;
        journal.close("drained");

        fs::remove_dir_all(&gateway.config.dir).unwrap();
        copy(&backup, &gateway.config.dir);
        let journal = gateway.open();
        for _ in 0..grown {
            journal.append(entry()).await.unwrap();
        }
        until(|| journal.status().signed == 4 + grown).await;
        gateway.submit(&journal, &stop);
        until(|| !journal.is_writable()).await;
        assert_eq!(journal.append(entry()).await, Err(AppendError::Refused));
        let alarms = journal.status().alarms;
        let expected = if grown == 0 { "rolled back" } else { "rewritten" };
        assert!(alarms[0].starts_with(expected), "{alarms:?}");
        let signed = journal.status().signed;
        journal.publish();
        journal.close("drained");
        let last = fs::read_to_string(gateway.config.dir.join("checkpoint")).unwrap();
        assert!(last.contains(&format!("\n{signed}\n")), "nothing more is signed: {last}");
        let held = held(&gateway.config, &gateway.peers()).await.unwrap();
        assert_eq!(held.len(), 1, "and a restart hears of it");
        stop.cancel();
    }
}

/// Answers every request alike: status and body by path.
async fn liar(answer: impl Fn(&str, String) -> (u16, String) + Clone + Send + Sync + 'static) -> String {
    use http_body_util::BodyExt as _;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let answer = answer.clone();
            let service = hyper::service::service_fn(move |request: ::http::Request<hyper::body::Incoming>| {
                let answer = answer.clone();
                async move {
                    let path = request.uri().path().to_owned();
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    let (status, text) = answer(&path, String::from_utf8(body.to_vec()).unwrap());
                    ::http::Response::builder().status(status).body(http_body_util::Full::new(bytes::Bytes::from(text)))
                }
            });
            let io = hyper_util::rt::TokioIo::new(stream);
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(io, service));
        }
    });
    format!("http://{address}")
}

/// Over plain HTTP anybody may speak in a witness's name: what it does not show alarms, and stops nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_witness_does_not_show_alarms_and_stops_nothing() {
    let stop = CancellationToken::new();
    for (status, says) in [(409, "99999\n"), (422, "")] {
        let url =
            liar(move |path, _| if path == "/add-checkpoint" { (status, says.into()) } else { (404, String::new()) });
        let gateway = Gateway::new(&url.await);
        let journal = gateway.open();
        gateway.submit(&journal, &stop);
        until(|| journal.status().alarms.iter().any(|alarm| alarm.contains("does not show"))).await;
        journal.append(entry()).await.unwrap();
        journal.close("drained");
    }
    stop.cancel();
}

/// Whatever stands in a witness's answer beside its cosignature, or instead of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_answer_gets_nothing_into_the_checkpoint() {
    use base64::Engine as _;
    let line = |name: &str, id: [u8; 4], len: usize| {
        let encoded = base64::engine::general_purpose::STANDARD.encode([id.as_slice(), &vec![0; len]].concat());
        format!("\u{2014} {name} {encoded}\n")
    };
    let gateway = Gateway::new("http://127.0.0.1:1");
    let key = Arc::new(SigningKey::load(&gateway.site.dir.path().join("key")).unwrap());
    let own = line(ORIGIN, gateway.site.log.verifier().id(), 64);
    for (extra, cosigns, taken) in [
        (own.clone(), true, true),
        (own, false, false),
        (line("nobody", *b"abcd", 200_000), true, false),
        (line("nobody", *b"abcd", 70).repeat(99), true, true),
        (line("nobody", *b"abcd", 70).repeat(200), true, false),
        ("nonsense\n".into(), true, false),
    ] {
        let stop = CancellationToken::new();
        let (key, asked) = (key.clone(), Arc::new(std::sync::atomic::AtomicBool::new(false)));
        let seen = asked.clone();
        let url = liar(move |path, body| {
            if path != "/add-checkpoint" {
                return (404, String::new());
            }
            seen.store(true, std::sync::atomic::Ordering::SeqCst);
            let note: Note = body.split_once("\n\n").unwrap().1.parse().unwrap();
            let line = if cosigns { format!("{}\n", key.sign(note.text(), NOW)) } else { String::new() };
            (200, format!("{extra}{line}"))
        });
        let mut config = gateway.config.clone();
        config.witnesses[0].url = url.await;
        drop(fs::remove_dir_all(&config.dir));
        let gateway = Gateway { site: Site::new(), config };
        let journal = gateway.open();
        gateway.submit(&journal, &stop);
        if taken {
            until(|| journal.status().witnessed_at == Some(NOW)).await;
        } else {
            until(|| asked.load(std::sync::atomic::Ordering::SeqCst)).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert_eq!(journal.status().witnessed_at, None);
        }
        journal.close("drained");
        let note: Note = fs::read_to_string(gateway.config.dir.join("checkpoint")).unwrap().parse().unwrap();
        assert!(note.signatures().len() <= 2, "{note}");
        gateway.open().close("drained");
        stop.cancel();
    }
    assert!(parse_signatures("").is_err());
}

#[tokio::test]
async fn a_start_may_demand_that_a_witness_answers() {
    let stop = CancellationToken::new();
    let mut gateway = Gateway::new("http://127.0.0.1:1");
    assert_eq!(held(&gateway.config, &gateway.peers()).await.unwrap(), []);
    gateway.config.witness_at_start = true;
    gateway.config.check().unwrap();
    assert!(matches!(held(&gateway.config, &gateway.peers()).await, Err(OpenError::NoWitness)));
    let broken = liar(|_, _| (500, String::new())).await;
    gateway.config.witnesses[0].url = broken;
    assert!(matches!(held(&gateway.config, &gateway.peers()).await, Err(OpenError::NoWitness)));
    // One that holds nothing yet has answered.
    gateway.config.witnesses[0].url = start(gateway.site.witness(), gateway.site.config.clone(), &stop).await;
    assert_eq!(held(&gateway.config, &gateway.peers()).await.unwrap(), []);
    gateway.config.witnesses.clear();
    assert!(gateway.config.check().is_err());
    stop.cancel();
}

/// Kept hashes that are wrong make no wrong proof: the entries make a right one.
#[tokio::test]
async fn a_proof_is_made_from_the_entries_if_the_kept_hashes_are_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let (mut frontier, mut old, mut segment) = (Frontier::default(), None, Vec::new());
    for seq in 0..65_546_u64 {
        let entry = crate::audit::testing::framed(seq);
        frontier.push(leaf_hash(&entry));
        segment.extend_from_slice(&u16::try_from(entry.len()).unwrap().to_be_bytes());
        segment.extend_from_slice(&entry);
        if seq + 1 == 300 {
            old = Some(Tree { size: 300, root: frontier.root() });
        }
        if seq + 1 == 65_536 {
            fs::write(dir.path().join("0000000000.seg"), std::mem::take(&mut segment)).unwrap();
        }
    }
    fs::write(dir.path().join("0000000001.seg"), segment).unwrap();
    let new = Tree { size: frontier.size(), root: frontier.root() };
    let (old, other) = (old.unwrap(), Tree { size: 300, root: [1; 32] });
    Disk.replace(dir.path(), "0000000000.tiles", &vec![7; 2_106_372]).unwrap();
    let proofs = Proofs::open(dir.path()).unwrap();
    let proof = proofs.consistency(old.size, new).await.unwrap();
    assert!(crate::audit::merkle::verify_consistency(&proof, old.size, &old.root, new.size, &new.root));
    let proofs = Proofs::open(dir.path()).unwrap();
    assert!(proofs.begins_with(old).await.unwrap() && !proofs.begins_with(other).await.unwrap());
    let forged = Tree { root: [9; 32], ..new };
    assert!(matches!(proofs.consistency(300, forged).await, Err(crate::audit::tree::TreeError::Unsigned { .. })));
}
