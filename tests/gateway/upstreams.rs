//! Channels to departments, registers and witnesses: whom the gateway believes there and what it shows, changed while it
//! runs; and what is called once more.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use oncegate::certs::{Contents, Store};
use oncegate::pb::gateway::LookupRequest;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::harness::{Site, birth, mask, out, request, source_tls};
use crate::proofs::overseer_with;
use crate::trust::{in_force, put_in_force};

/// Waits until the metrics have a line that begins so.
async fn until(site: &Site, line: &str) {
    let started = Instant::now();
    while !site.metrics().await.lines().any(|have| have.starts_with(line)) {
        assert!(started.elapsed() < Duration::from_mins(1), "no {line}\n{}", site.metrics().await);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A question that nobody asked before: answers are remembered.
fn asking(field: &str) -> LookupRequest {
    LookupRequest { read_mask: mask(&["infant_name", field]), ..request() }
}

fn copy(from: &str, to: &Path) {
    std::fs::copy(out().join(from), to).unwrap();
}

/// Whoever has the key of a CA that was taken out makes the probe fail: that must not keep the CA in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ca_that_is_taken_out_is_believed_no_more_whatever_the_probe_says() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("believed.pem");
    copy("ca/WJ.pem", &ca);
    let site = Site::with(|config| config.sources.iter_mut().for_each(|source| source.ca.clone_from(&ca))).await;
    site.birth.answers(vec![birth()]);
    site.lookup("GA", asking("sex")).await.unwrap();
    // One more is believed: nothing breaks.
    let both = [out().join("ca/WJ.pem"), out().join("ca/GA.pem")].map(|file| std::fs::read(file).unwrap()).concat();
    std::fs::write(&ca, &both).unwrap();
    until(&site, "oncegate_trust_expiry_seconds{kind=\"upstream_ca\",name=\"source birth, CA 2\"}").await;
    site.lookup("GA", asking("birth_place")).await.unwrap();

    copy("ca/GA.pem", &ca);
    until(&site, "oncegate_rotation_refused{part=\"source birth\"} 1").await;
    let asked = site.birth.calls();
    let refused = site.lookup("GA", asking("father_name")).await;
    site.refused(refused, Code::Unavailable, "PROVIDER_UNAVAILABLE");
    assert_eq!(site.birth.calls(), asked, "the source of the old CA was not asked");

    std::fs::write(&ca, &both).unwrap();
    until(&site, "oncegate_rotation_refused{part=\"source birth\"} 0").await;
    site.lookup("GA", asking("father_name")).await.expect("the CA is back");
    // A file that is not in order takes nobody out.
    std::fs::write(&ca, "-----BEGIN CERT").unwrap();
    until(&site, "oncegate_rotation_refused{part=\"source birth\"} 1").await;
    site.lookup("JK", request()).await.unwrap();
    site.close().await;
}

/// The identity towards departments is that of the generation that serves, not of the one on disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_identity_shown_is_that_of_the_generation_that_serves() {
    let dir = tempfile::tempdir().unwrap();
    let trust = dir.path().join("trust");
    let good = in_force(&out().join("trust"));
    put_in_force(&trust, &good);
    let site = Site::with(|config| config.trust.dir.clone_from(&trust)).await;
    site.birth.answers(vec![birth()]);
    let promote = |change: &dyn Fn(&mut Contents)| {
        let (store, mut contents) = (Store::new(&trust), good.clone());
        change(&mut contents);
        let number = *store.numbers().last().unwrap();
        store.write().unwrap().promote(&contents, number).unwrap();
    };
    let file = |name: &str| Some(std::fs::read(out().join(name)).unwrap());
    // Not in order, and with an identity that sources do not take.
    promote(&|contents| {
        contents.set("client.pem", file("systems/GA/household.pem"));
        contents.set("client.key", file("systems/GA/household.key"));
    });
    until(&site, "oncegate_trust_refused 1").await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    until(&site, "oncegate_rotation_refused{part=\"source birth\"} 0").await;
    site.lookup("GA", asking("sex")).await.unwrap();
    // One without an identity serves, and says what it lacks; the one of before is shown on.
    promote(&|contents| {
        contents.set("client.pem", None);
        contents.set("client.key", None);
    });
    until(&site, "oncegate_trust_refused 0").await;
    for part in ["source birth", "case registry", "consent registry"] {
        until(&site, &format!("oncegate_rotation_refused{{part=\"{part}\"}} 1")).await;
    }
    site.lookup("GA", asking("birth_place")).await.unwrap();
    promote(&|_| {});
    until(&site, "oncegate_rotation_refused{part=\"source birth\"} 0").await;
    site.lookup("GA", asking("father_name")).await.unwrap();
    assert_eq!((site.birth.calls(), site.birth.given_up()), (3, 0));
    site.close().await;
}

#[tokio::test]
async fn certificate_and_key_are_given_both_or_neither() {
    let said = Site::refused_to_start(|config| {
        config.sources[0].certificate = Some(out().join("gateway/client.pem"));
    })
    .await;
    assert!(said.contains("certificate and key must be given both or neither"), "{said}");
    let dir = tempfile::tempdir().unwrap();
    let mut bare = in_force(&out().join("trust"));
    bare.set("client.pem", None);
    bare.set("client.key", None);
    put_in_force(&dir.path().join("trust"), &bare);
    let said = Site::refused_to_start(|config| config.trust.dir = dir.path().join("trust")).await;
    assert!(
        said.contains("WJ/birth: no certificate and key are given, and the trust generation has no client"),
        "{said}"
    );
}

/// A witness's certificate and CAs, and what the gateway shows it, follow their files.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn witness_and_gateway_change_towards_each_other() {
    let (dir, stop) = (tempfile::tempdir().unwrap(), CancellationToken::new());
    let at = |name: &str| dir.path().join(name);
    copy("ca/WJ.pem", &at("callers.pem"));
    copy("systems/GA/household.pem", &at("shown.pem"));
    copy("systems/GA/household.key", &at("shown.key"));
    let callers = at("callers.pem");
    let witness = overseer_with(dir.path(), None, &stop, |config| {
        config.tls.as_mut().unwrap().client_cas[0].file.clone_from(&callers);
    })
    .await;
    let site = Site::with(|config| {
        let [of_log] = config.audit.witnesses.as_mut_slice() else { panic!("one witness") };
        of_log.url = witness;
        let tls = of_log.tls.as_mut().unwrap();
        (tls.certificate, tls.key) = (Some(at("shown.pem")), Some(at("shown.key")));
    })
    .await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    until(&site, "oncegate_log_witnessed_seconds 0").await;
    copy("ca/ZS.pem", &callers);
    // Its poll is each second.
    tokio::time::sleep(Duration::from_secs(3)).await;
    copy("gateway/client.key", &at("shown.key"));
    copy("gateway/client.pem", &at("shown.pem"));
    let started = Instant::now();
    while site.metrics().await.lines().any(|have| have == "oncegate_log_witnessed_seconds 0") {
        assert!(started.elapsed() < Duration::from_mins(1), "not witnessed");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    stop.cancel();
    site.close().await;
}

/// What the bad source does with the first call.
#[derive(Clone, Copy, Debug)]
enum First {
    /// `GOAWAY(NO_ERROR)` with 0 as the last stream: it was not taken up.
    LeftAside,
    /// `RST_STREAM(REFUSED_STREAM)`: nor was it.
    Refused,
    /// The connection breaks off: nobody knows.
    BrokenOff,
    /// `RST_STREAM(CANCEL)`: nobody knows.
    Cancelled,
}

/// A source in frames of HTTP/2, which does `first` to the first call and answers every other with no record. Returns
/// where it is and how many calls came.
async fn source_in_frames(first: First) -> (String, Arc<AtomicU32>) {
    const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
    const SETTINGS_ACK: &[u8] = &[0, 0, 0, 4, 1, 0, 0, 0, 0];
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    };
    // HPACK: `:status: 200`, then literals that are not indexed.
    let head = [&[0x88, 0, 12][..], b"content-type", &[16], b"application/grpc"].concat();
    let trailers = [&[0, 11][..], b"grpc-status", &[1], b"0"].concat();
    let acceptor = TlsAcceptor::from(source_tls("WJ/birth"));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("https://{}", listener.local_addr().unwrap());
    let calls = Arc::new(AtomicU32::new(0));
    let counted = calls.clone();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (acceptor, counted) = (acceptor.clone(), counted.clone());
            let (head, trailers) = (head.clone(), trailers.clone());
            tokio::spawn(async move {
                let mut tls = acceptor.accept(tcp).await.unwrap();
                let mut preface = [0; 24];
                tls.read_exact(&mut preface).await.unwrap();
                tls.write_all(SETTINGS).await.unwrap();
                let mut begun = [0; 9];
                while tls.read_exact(&mut begun).await.is_ok() {
                    let length = u32::from_be_bytes([0, begun[0], begun[1], begun[2]]);
                    let stream = u32::from_be_bytes(begun[5..9].try_into().unwrap());
                    let mut payload = vec![0; usize::try_from(length).unwrap()];
                    tls.read_exact(&mut payload).await.unwrap();
                    let sent = match (begun[3], begun[4] & 1) {
                        // The end of a call's message.
                        (0, 1) => match (counted.fetch_add(1, Ordering::SeqCst), first) {
                            (0, First::LeftAside) => {
                                tls.write_all(&frame(7, 0, 0, &[0; 8])).await.unwrap();
                                tls.shutdown().await.unwrap();
                                return;
                            }
                            (0, First::Refused) => frame(3, 0, stream, &[0, 0, 0, 7]),
                            (0, First::Cancelled) => frame(3, 0, stream, &[0, 0, 0, 8]),
                            (0, First::BrokenOff) => return,
                            _ => [
                                frame(1, 4, stream, &head),
                                frame(0, 0, stream, &[0; 5]),
                                frame(1, 5, stream, &trailers),
                            ]
                            .concat(),
                        },
                        (4, 0) => SETTINGS_ACK.to_vec(),
                        (6, 0) => frame(6, 1, 0, &payload),
                        _ => Vec::new(),
                    };
                    tls.write_all(&sent).await.unwrap();
                }
            });
        }
    });
    (address, calls)
}

/// A call is made once more if the source surely did not take it up, and only then.
#[tokio::test]
async fn what_was_never_processed_is_asked_once_more_and_nothing_else() {
    for (first, code, reason, calls) in [
        (First::LeftAside, Code::NotFound, "RECORD_NOT_FOUND", 2),
        (First::Refused, Code::NotFound, "RECORD_NOT_FOUND", 2),
        (First::BrokenOff, Code::Unavailable, "PROVIDER_UNAVAILABLE", 1),
        (First::Cancelled, Code::Unavailable, "PROVIDER_UNAVAILABLE", 1),
    ] {
        let (address, counted) = source_in_frames(first).await;
        let site = Site::with(|config| {
            let source = config.sources.iter_mut().find(|source| source.name == "birth").unwrap();
            source.address = address;
        })
        .await;
        site.refused(site.lookup("GA", request()).await, code, reason);
        assert_eq!(counted.load(Ordering::SeqCst), calls, "{first:?}");
        site.close().await;
    }
}

/// Names of metrics in a text, each with its labels and their values.
fn series(text: &str) -> Vec<(String, Vec<(String, String)>)> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("oncegate_") {
        let rest = &text[at..];
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        let mut labels = Vec::new();
        if let Some(inner) = rest[end..].strip_prefix('{') {
            let mut parts = inner.split('"');
            while let (Some(key), Some(value)) = (parts.next(), parts.next()) {
                if key.contains('}') {
                    break;
                }
                let key = key.trim_matches(|c: char| ",=~! ".contains(c)).to_owned();
                labels.push((key, value.to_owned()));
            }
        }
        found.push((rest[..end].to_owned(), labels));
    }
    found
}

/// Alert rules are tried against series that somebody wrote down; a gateway must have these very ones.
#[tokio::test]
async fn alert_rules_speak_of_metrics_that_a_gateway_has() {
    let site = Site::start().await;
    until(&site, "oncegate_trust_expiry_seconds{").await;
    let real = series(&site.metrics().await);
    let keys = |labels: &[(String, String)]| labels.iter().map(|(key, _)| key.clone()).collect::<BTreeSet<_>>();
    let is_real = |name: &str, due: &BTreeSet<String>| {
        real.iter().any(|(have, labels)| have == name && due.is_subset(&keys(labels)))
    };
    let rules = std::fs::read_to_string("deploy/prometheus/trust.rules.yml").unwrap();
    for rule in rules.split("- alert:").skip(1) {
        let spoken_of = series(rule);
        assert!(!spoken_of.is_empty(), "{rule}");
        let shown = rule.split("$labels.").skip(1).map(|rest| rest.split(' ').next().unwrap().to_owned());
        let shown: BTreeSet<_> = shown.collect();
        for (name, labels) in spoken_of {
            let due = keys(&labels).union(&shown).cloned().collect();
            assert!(is_real(&name, &due), "{name} with {due:?}, of the rule{rule}");
        }
    }
    let values = |key: &str| {
        let of_key = real.iter().flat_map(|(_, labels)| labels).filter(|(have, _)| have == key);
        of_key.map(|(_, value)| value.clone()).collect::<BTreeSet<_>>()
    };
    let tried = std::fs::read_to_string("deploy/prometheus/trust.test.yml").unwrap();
    for line in tried.lines().filter(|line| line.contains("series:")) {
        for (name, labels) in series(line) {
            assert!(is_real(&name, &keys(&labels)), "{line}");
            for (key, value) in labels.iter().filter(|(key, _)| key != "name") {
                assert!(values(key).contains(value), "no gateway says {key}=\"{value}\": {line}");
            }
        }
    }
    // Everything that ends is told: the departments' CAs and the registers' and witness's, too.
    let named = |kind: &str| {
        let of_kind = real.iter().filter(|(name, labels)| {
            name == "oncegate_trust_expiry_seconds" && labels.contains(&("kind".to_owned(), kind.to_owned()))
        });
        of_kind.filter_map(|(_, labels)| labels.iter().find(|(key, _)| key == "name")).count()
    };
    assert_eq!((named("client"), named("upstream_ca")), (1, 13 + 2 + 1));
    site.close().await;
}
