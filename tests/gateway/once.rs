//! Every call leaves exactly one entry with its true outcome, whatever becomes of it: the caller hangs up, the deadline
//! passes, the gateway drains, a handler panics; and where no entry can be written, there is no answer.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use oncegate::api::{CallConfig, Guard};
use oncegate::app::App;
use oncegate::audit::keys::PrivateKey;
use oncegate::audit::reader::LogReader;
use oncegate::audit::{AccessEntry, Outcome};
use oncegate::certs::{self, Gate, HardeningConfig, Opened};
use oncegate::clock::Clock;
use oncegate::config::Config;
use oncegate::pb::gateway as pb;
use oncegate::pb::gateway::lookup_service_client::LookupServiceClient;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request};

use crate::harness::{Around, birth, deployment, mask, out, profile, request};
use crate::process::{Place, with_token};

/// A request that says who it is.
fn named(message: pb::LookupRequest, name: &str) -> Request<pb::LookupRequest> {
    let mut request = with_token(message);
    request.metadata_mut().insert("x-request-id", name.parse().unwrap());
    request
}

fn by_name(entries: impl Iterator<Item = AccessEntry>) -> BTreeMap<String, Vec<AccessEntry>> {
    let mut found: BTreeMap<String, Vec<AccessEntry>> = BTreeMap::new();
    for entry in entries {
        found.entry(entry.caller_request_id.clone()).or_default().push(entry);
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hanging_up_deadlines_and_a_drain_leave_one_entry_each() {
    const EACH: u32 = 12;
    let place = Place::new(|text| text).await;
    place.birth.answers_after(Duration::from_millis(400), vec![birth()]);
    let server = place.start();
    // One connection, made before the clock counts: a busy machine takes its time to shake hands.
    let mut client = server.client();
    // The same goes for what is known of the case; other fields, so that nothing is answered from memory later.
    let other = pb::LookupRequest { read_mask: mask(&["issuing_institution"]), ..request() };
    let _ = client.lookup(named(other, "warm")).await;
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..EACH {
        for (kind, wait) in [("answered", 10_000), ("gone", 10_000), ("late", 120)] {
            let mut client = client.clone();
            calls.spawn(async move {
                // Each its own field set, so that no fetch is shared with a caller who stays.
                let fields = [["infant_name"], ["issue_date"], ["certificate_no"]];
                let paths = fields[usize::try_from(number % 3).unwrap()];
                let message = pb::LookupRequest { read_mask: mask(&paths), ..request() };
                let mut request = named(message, &format!("{kind}-{number}"));
                request.set_timeout(Duration::from_millis(wait));
                let call = client.lookup(request);
                if kind == "gone" {
                    let patience = Duration::from_millis(150 + u64::from(number) * 15);
                    assert!(tokio::time::timeout(patience, call).await.is_err(), "hung up");
                } else {
                    let answer = call.await;
                    assert_eq!(answer.is_ok(), kind == "answered", "{answer:?}");
                }
            });
        }
    }
    drop(client);
    // The drain begins while they are under way; what is under way ends as it would have.
    tokio::time::sleep(Duration::from_millis(350)).await;
    let stopped = tokio::task::spawn_blocking(move || server.terminate());
    while let Some(call) = calls.join_next().await {
        call.unwrap();
    }
    assert_eq!(stopped.await.unwrap(), Some(0));
    let found = by_name(place.log().iter().filter_map(|entry| entry.access().cloned()));
    let mut never = 0;
    for number in 0..EACH {
        for (kind, outcomes) in [
            ("answered", [Outcome::Released, Outcome::Partial]),
            // One who goes away before its message has arrived has said nothing whole.
            ("gone", [Outcome::Cancelled, Outcome::Rejected]),
            ("late", [Outcome::Cancelled, Outcome::Rejected]),
        ] {
            let entries = found.get(&format!("{kind}-{number}")).map(Vec::as_slice).unwrap_or_default();
            if kind == "gone" && entries.is_empty() {
                // Hung up before the request was on the wire: there was no call.
                never += 1;
                continue;
            }
            assert_eq!(entries.len(), 1, "{kind}-{number}: {entries:#?}");
            let outcome = entries[0].outcome;
            // The provider's share of a deadline may be over first.
            let right = outcomes.contains(&outcome) || (kind == "late" && outcome == Outcome::ProviderError);
            assert!(right, "{kind}-{number}: {outcome:?}");
        }
    }
    assert!(never <= EACH / 2, "{never} calls were never made");
}

/// A service whose handlers all panic.
#[derive(Clone)]
struct Panics;

impl tower::Service<http::Request<tonic::body::Body>> for Panics {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Request<tonic::body::Body>) -> Self::Future {
        Box::pin(async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            panic!("injected")
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_panics_leaves_its_entry() {
    let (dir, stop) = (tempfile::tempdir().unwrap(), CancellationToken::new());
    let file = dir.path().join("gateway.toml");
    std::fs::write(&file, deployment(&Around::new(), &stop).await).unwrap();
    let mut config = Config::load(&file).unwrap();
    config.admin = None;
    let (log, trust, domain) = (config.audit.dir.clone(), config.trust.clone(), config.trust_domain.clone());
    let app = App::build(config, Clock::system()).await.unwrap();
    let opened = Opened::open(&trust, &domain, &Clock::system()).unwrap();
    let gate = Gate::new(opened.generation, HardeningConfig::default(), Clock::system()).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("https://{}", listener.local_addr().unwrap());
    let service = Guard::new(Panics, app.gateway().clone(), CallConfig::default());
    let ended = stop.clone();
    let serving = tokio::spawn(async move { certs::serve(listener, gate, service, ended.cancelled()).await });
    for number in 0..5 {
        let channel = profile(&address, "ZS", "platform").client(Clock::system()).unwrap().channel;
        let status =
            LookupServiceClient::new(channel).lookup(named(request(), &format!("p-{number}"))).await.unwrap_err();
        assert_eq!(status.code(), Code::Internal);
        assert!(!status.message().contains("injected"));
        assert!(status.metadata().get_bin("oncegate-receipt-bin").is_some(), "with the receipt of its entry");
    }
    stop.cancel();
    serving.await.unwrap();
    let journal = app.gateway().journal.clone();
    tokio::task::spawn_blocking(move || journal.close("drained")).await.unwrap();
    let key = PrivateKey::load(&out().join("audit/auditor.key")).unwrap();
    let entries: Vec<_> = LogReader::open(&log, key).unwrap().collect::<Result<_, _>>().unwrap();
    let found = by_name(entries.iter().filter_map(|entry| entry.access().cloned()));
    for number in 0..5 {
        let entries = &found[&format!("p-{number}")];
        assert_eq!((entries.len(), entries[0].outcome), (1, Outcome::Rejected));
        assert_eq!(entries[0].error_reason, i32::from(pb::ErrorReason::Internal));
    }
}

/// A file may grow to 1.5 MiB here: the log's first step of zeros fits, the second does not. Calls are refused, and every
/// answer that was given is on record; the checkpoint still covers all of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_files_may_not_grow_calls_are_refused_and_nothing_is_lost() {
    let place = Place::new(|text| {
        text.replace("preallocate_mib = 8", "preallocate_mib = 1")
            .replace("caller_per_second = 200", "caller_per_second = 1000000")
            .replace("caller_burst = 400", "caller_burst = 1000000")
            .replace("subject_per_minute = 30", "subject_per_minute = 1000000")
            .replace("subject_burst = 60", "subject_burst = 1000000")
    })
    .await;
    place.birth.answers(vec![birth()]);
    // `ulimit -f` counts blocks of 512 bytes. The signal that comes with it is ignored, so that writing fails instead.
    let server = place.start_in_shell("trap '' XFSZ; ulimit -f 3072");
    let answered = Arc::new(std::sync::Mutex::new(Vec::new()));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (mut client, answered) = (server.client(), answered.clone());
        clients.spawn(async move {
            for _ in 0..1500 {
                match client.lookup(with_token(request())).await {
                    Ok(answer) => answered.lock().unwrap().push(answer.into_inner().receipt.unwrap()),
                    Err(status) => {
                        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                        return true;
                    }
                }
            }
            false
        });
    }
    let refused = clients.join_all().await;
    assert!(refused.iter().all(|refused| *refused), "the log was never full");
    server.terminate();
    let log = place.log();
    let answered = answered.lock().unwrap();
    assert!(answered.len() > 500, "{}", answered.len());
    for receipt in answered.iter() {
        let entry = &log[usize::try_from(receipt.index).unwrap()];
        assert_eq!(entry.leaf_hash.as_slice(), receipt.leaf_hash.as_ref());
    }
}
