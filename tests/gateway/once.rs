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
use oncegate::catalog::CaseSubject;
use oncegate::certs::{self, Gate, HardeningConfig, Opened};
use oncegate::clock::Clock;
use oncegate::config::Config;
use oncegate::lookup::{Call, Gateway, LookupRequest, Reason};
use oncegate::pb::gateway as pb;
use oncegate::pb::gateway::lookup_service_client::LookupServiceClient;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request};

use crate::harness::{Around, Site, birth, deployment, mask, out, profile, request};
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
            ("gone", [Outcome::Cancelled, Outcome::Cancelled]),
            ("late", [Outcome::Cancelled, Outcome::Cancelled]),
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

/// What a handler does that goes wrong.
#[derive(Clone, Copy, PartialEq)]
enum Wrong {
    /// Panics before anything is known.
    Early,
    /// Panics when its entry is written already: a refusal.
    Refused,
    /// Panics when its answer is on record.
    Answered,
    /// Never gives the answer that is on record.
    Hangs,
}

/// A service whose handlers all go wrong.
#[derive(Clone)]
struct Faulty(Wrong, Arc<Gateway>);

impl tower::Service<http::Request<tonic::body::Body>> for Faulty {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, asked: http::Request<tonic::body::Body>) -> Self::Future {
        let (Self(wrong, gateway), call) = (self.clone(), asked.extensions().get::<Arc<Call>>().unwrap().clone());
        Box::pin(async move {
            match wrong {
                Wrong::Early => tokio::time::sleep(Duration::from_millis(5)).await,
                Wrong::Refused => drop(gateway.reject(&call, Reason::FieldUnknown.into()).await),
                Wrong::Answered | Wrong::Hangs => drop(gateway.lookup(call, of_message(request())).await.unwrap()),
            }
            if wrong == Wrong::Hangs {
                std::future::pending::<()>().await;
            }
            panic!("injected")
        })
    }
}

/// A message as the API hands it on.
fn of_message(message: pb::LookupRequest) -> LookupRequest {
    let attributes = |attributes: Vec<pb::Attribute>| {
        attributes.into_iter().map(|attribute| (attribute.name, attribute.value)).collect()
    };
    let subject =
        |subject: pb::CaseSubject| CaseSubject { role: subject.role, attributes: attributes(subject.attributes) };
    LookupRequest {
        matter: message.matter,
        case_id: message.case_id,
        certificate_type: message.certificate_type,
        subject_role: message.subject_role,
        subjects: message.subjects.into_iter().map(subject).collect(),
        read_mask: message.read_mask.unwrap().paths,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_goes_wrong_leaves_its_entry_and_none_that_contradicts_it() {
    let (dir, stop, around) = (tempfile::tempdir().unwrap(), CancellationToken::new(), Around::new());
    around.birth.answers(vec![birth()]);
    let file = dir.path().join("gateway.toml");
    std::fs::write(&file, deployment(&around, &stop).await).unwrap();
    let mut config = Config::load(&file).unwrap();
    config.admin = None;
    config.audit.wait_ms = 1000;
    let (log, trust, domain) = (config.audit.dir.clone(), config.trust.clone(), config.trust_domain.clone());
    let app = App::build(config, Clock::system()).await.unwrap();
    let mut due = Vec::new();
    for (wrong, code, outcome, reason) in [
        (Wrong::Early, Code::Internal, Outcome::Rejected, pb::ErrorReason::Internal),
        (Wrong::Refused, Code::Internal, Outcome::Rejected, pb::ErrorReason::FieldUnknown),
        (Wrong::Answered, Code::Internal, Outcome::Released, pb::ErrorReason::Internal),
        (Wrong::Hangs, Code::DeadlineExceeded, Outcome::Released, pb::ErrorReason::DeadlineExceeded),
    ] {
        let opened = Opened::open(&trust, &domain, &Clock::system()).unwrap();
        let gate = Gate::new(opened.generation, HardeningConfig::default(), Clock::system()).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("https://{}", listener.local_addr().unwrap());
        let calls = CallConfig { default_timeout_ms: 500, ..CallConfig::default() };
        let service = Guard::new(Faulty(wrong, app.gateway().clone()), app.gateway().clone(), calls);
        let ended = stop.clone();
        let serving = tokio::spawn(async move { certs::serve(listener, gate, service, ended.cancelled()).await });
        for number in 0..3 {
            let name = format!("{outcome:?}-{reason:?}-{number}");
            let channel = profile(&address, "ZS", "platform").client(Clock::system()).unwrap().channel;
            let status = LookupServiceClient::new(channel).lookup(named(request(), &name)).await.unwrap_err();
            assert_eq!(status.code(), code, "{name}: {status:?}");
            assert!(!status.message().contains("injected"));
            let receipt = status.metadata().get_bin("oncegate-receipt-bin").is_some();
            assert_eq!(receipt, wrong == Wrong::Early, "{name}: with the receipt of the entry that says so");
            due.push((name, outcome, i32::from(reason)));
        }
        drop(serving);
    }
    stop.cancel();
    app.gateway().settle().await;
    let journal = app.gateway().journal.clone();
    tokio::task::spawn_blocking(move || journal.close("drained")).await.unwrap();
    let key = PrivateKey::load(&out().join("audit/auditor.key")).unwrap();
    let entries: Vec<_> = LogReader::open(&log, key).unwrap().collect::<Result<_, _>>().unwrap();
    let found = by_name(entries.iter().filter_map(|entry| entry.access().cloned()));
    for (name, outcome, reason) in due {
        let entries = &found[&name];
        assert_eq!((entries[0].outcome, entries[0].corrects), (outcome, None), "{name}");
        if outcome == Outcome::Released {
            assert_eq!(entries.len(), 2, "{name}: and one that takes the answer back");
            assert_eq!((entries[1].outcome, entries[1].error_reason), (Outcome::Cancelled, reason), "{name}");
            assert_eq!(entries[1].request_id, entries[0].request_id);
        } else {
            assert_eq!((entries.len(), entries[0].error_reason), (1, reason), "{name}");
        }
    }
}

/// While many entries arrive the log is written every 100 ms here, and an entry is waited for at most 20: most answers are
/// ready too late to be given. Each such entry has another one behind it that says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_whose_entry_comes_too_late_is_taken_back_in_the_log() {
    let site = Site::with(|config| {
        config.audit.wait_ms = 20;
        config.audit.pace_us = 100_000;
    })
    .await;
    site.birth.answers(vec![birth()]);
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..48 {
        let (channel, token) = (site.channel.clone(), site.token("GA"));
        calls.spawn(async move {
            let mut message = Request::new(request());
            message.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
            match LookupServiceClient::new(channel).lookup(message).await {
                Ok(answer) => (answer.into_inner().receipt.unwrap().request_id, true),
                Err(status) => {
                    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                    let id = status.metadata().get("oncegate-request-id").unwrap().to_str().unwrap().to_owned();
                    (id, false)
                }
            }
        });
    }
    let calls = calls.join_all().await;
    let late = calls.iter().filter(|(_, answered)| !answered).count();
    assert!(late > 0, "none was late");
    let entries = site.close().await;
    for (id, answered) in calls {
        let entries = &entries[&id];
        assert_eq!((entries[0].outcome, entries[0].corrects), (Outcome::Released, None), "{id}");
        if answered {
            assert_eq!(entries.len(), 1, "{id}: {entries:#?}");
            continue;
        }
        assert_eq!(entries.len(), 2, "{id}: {entries:#?}");
        let (given, taken_back) = (&entries[0], &entries[1]);
        assert!(taken_back.corrects.is_some() && taken_back.records.is_empty() && taken_back.answer_digest.is_none());
        let reason = i32::from(pb::ErrorReason::AuditUnavailable);
        assert_eq!((taken_back.outcome, taken_back.error_reason), (Outcome::Cancelled, reason));
        assert_eq!((&taken_back.subject, &taken_back.officer), (&given.subject, &given.officer));
    }
}

/// A department that does not answer, and a grace that is over long before: whoever is cut off has one entry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_are_cut_off_when_the_grace_is_over_leave_one_entry_each() {
    const CALLS: usize = 50;
    for round in 0..3 {
        let place = Place::new(|text| {
            let changed = text.replace("shutdown_grace_ms = 30000", "shutdown_grace_ms = 300");
            assert_ne!(changed, text);
            changed
        })
        .await;
        place.birth.answers_after(Duration::from_mins(1), vec![birth()]);
        let server = place.start();
        let mut calls = tokio::task::JoinSet::new();
        let client = server.client();
        for number in 0..CALLS {
            let mut client = client.clone();
            calls.spawn(async move { client.lookup(named(request(), &format!("cut-{number}"))).await });
        }
        drop(client);
        while place.birth.calls() == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // The others wait for the same fetch by then.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let _code = tokio::task::spawn_blocking(move || server.terminate()).await.unwrap();
        assert!(calls.join_all().await.iter().all(Result::is_err));
        let found = by_name(place.log().iter().filter_map(|entry| entry.access().cloned()));
        for number in 0..CALLS {
            let entries = found.get(&format!("cut-{number}")).map(Vec::as_slice).unwrap_or_default();
            assert_eq!(entries.len(), 1, "round {round}, call {number}");
            assert_eq!(entries[0].outcome, Outcome::Cancelled, "round {round}, call {number}");
        }
    }
}

/// Calls whose message never comes, more of them than refusals that are written one by one.
#[tokio::test]
async fn callers_who_go_away_before_they_said_anything_are_recorded_as_gone() {
    const CALLS: usize = 25;
    let site = Site::start().await;
    for _ in 0..CALLS {
        let mut grpc = tonic::client::Grpc::new(site.channel.clone());
        grpc.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<pb::LookupRequest, pb::LookupResponse>::default();
        let path = http::uri::PathAndQuery::from_static("/oncegate.gateway.v1.LookupService/Lookup");
        let mut message = Request::new(tokio_stream::pending());
        message.metadata_mut().insert("authorization", "Bearer a.b.c".parse().unwrap());
        let call = grpc.client_streaming(message, path, codec);
        let waited = tokio::time::timeout(Duration::from_millis(200), call).await;
        assert!(waited.is_err(), "nobody answers");
    }
    let entries = site.close().await;
    let gone: Vec<_> = entries.values().flatten().collect();
    assert!(gone.iter().all(|entry| entry.outcome == Outcome::Cancelled && entry.count <= 1), "{gone:#?}");
    assert_eq!(gone.len(), CALLS);
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
