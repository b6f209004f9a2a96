//! `Collect`: the plan, each item as it ends, the summary.

use std::time::Duration;

use oncegate::audit::Outcome;
use oncegate::pb::gateway as pb;
use oncegate::pb::gateway::collect_item::Result as ItemResult;
use oncegate::pb::gateway::collect_response::Event;
use oncegate::pb::gateway::lookup_service_client::LookupServiceClient;
use prost::Message as _;
use tonic::{Code, Request, Status, Streaming};

use crate::harness::{CASE, Site, birth, mother_id, subject};

async fn collect(site: &Site, message: pb::CollectRequest) -> Result<Streaming<pb::CollectResponse>, Status> {
    let mut call = Request::new(message);
    call.metadata_mut().insert("authorization", format!("Bearer {}", site.token("GA")).parse().unwrap());
    LookupServiceClient::new(site.channel.clone()).collect(call).await.map(tonic::Response::into_inner)
}

fn message() -> pb::CollectRequest {
    pb::CollectRequest {
        matter: "newborn_birth".into(),
        case_id: CASE.into(),
        subjects: vec![
            subject("child", &[("birth_date", crate::harness::BORN)]),
            subject("mother", &[("id_no", &mother_id()), ("name", "乌有宁")]),
        ],
        certificate_types: Vec::new(),
    }
}

#[tokio::test]
async fn items_come_as_they_end_and_fail_alone() {
    let site = Site::start().await;
    site.birth.answers(vec![birth()]);
    let mut stream = collect(&site, message()).await.unwrap();
    let mut events = Vec::new();
    while let Some(event) = stream.message().await.unwrap() {
        events.push(event.event.unwrap());
    }
    let Some(Event::Plan(plan)) = events.first() else { panic!("the plan comes first") };
    assert_eq!(plan.items.len(), 3, "the birth, and the marriage by either parent");
    let Some(Event::Summary(summary)) = events.last() else { panic!("the summary comes last") };
    assert_eq!((summary.answered, summary.failed), (1, 2));
    assert_eq!((summary.materials_demanded, summary.materials_avoided), (2, 1));
    let mut reasons = Vec::new();
    let mut receipts = Vec::new();
    for event in &events {
        let Event::Item(item) = event else { continue };
        receipts.push(item.receipt.clone().expect("each item is on record").index);
        match item.result.as_ref().unwrap() {
            ItemResult::Answer(answer) => {
                assert_eq!(plan.items[item.number as usize].certificate_type, "birth_medical_certificate");
                assert_eq!(crate::harness::fields(&answer.records[0])["mother_id_no"], mother_id());
            }
            ItemResult::Error(error) => {
                let details = error.details.iter().find(|any| any.type_url.ends_with("google.rpc.ErrorInfo"));
                let info = tonic_types::pb::ErrorInfo::decode(details.unwrap().value.as_slice()).unwrap();
                reasons.push(info.reason);
            }
        }
    }
    reasons.sort();
    // No father in the case; and marriage records may only be compared.
    assert_eq!(reasons, ["SUBJECT_NOT_GIVEN", "VERIFY_ONLY"]);
    receipts.sort_unstable();
    receipts.dedup();
    assert_eq!(receipts.len(), 3);
    let entries = site.close().await;
    assert_eq!(entries.values().map(Vec::len).sum::<usize>(), 3, "one entry per item and none besides");
}

#[tokio::test]
pub(crate) async fn a_collection_that_can_not_be_planned_is_refused_as_a_whole() {
    let site = Site::start().await;
    let matter = pb::CollectRequest { case_id: "HS-TEST-000002".into(), ..message() };
    site.refused(collect(&site, matter).await, Code::PermissionDenied, "PURPOSE_MISMATCH");
    let nothing = pb::CollectRequest { certificate_types: vec!["business_license".into()], ..message() };
    site.refused(collect(&site, nothing).await, Code::PermissionDenied, "NOT_GRANTED");
    let unknown = pb::CollectRequest { certificate_types: vec!["nope".into()], ..message() };
    site.refused(collect(&site, unknown).await, Code::InvalidArgument, "CERTIFICATE_TYPE_UNKNOWN");
    site.close().await;
}

/// Panics where the registry of cases fails, which is in the middle of an item.
struct Panics;

impl tracing::Subscriber for Panics {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.is_event() && metadata.target() == "oncegate::connectors::registry"
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {
        panic!("injected")
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test]
async fn an_item_that_panics_is_on_record_and_harms_no_other() {
    let site = Site::start().await;
    site.registry.fails(Code::Unavailable);
    // Everything runs on this one thread.
    let _panics = tracing::subscriber::set_default(Panics);
    let mut stream = collect(&site, message()).await.unwrap();
    let mut items = 0;
    while let Some(event) = stream.message().await.unwrap() {
        if let Event::Item(item) = event.event.unwrap() {
            assert!(item.receipt.is_some(), "each item is on record");
            items += 1;
        }
    }
    assert_eq!(items, 3);
    let single = site.lookup("GA", crate::harness::request()).await.unwrap_err();
    assert_eq!(single.code(), Code::Internal, "{single:?}");
    let entries = site.close().await;
    let internal = i32::from(pb::ErrorReason::Internal);
    let panicked: Vec<_> = entries.values().flatten().filter(|entry| entry.error_reason == internal).collect();
    assert!(panicked.len() >= 2, "{panicked:#?}");
    assert!(panicked.iter().all(|entry| entry.outcome == Outcome::Rejected && entry.consumer.is_some()));
    assert_eq!(entries.values().map(Vec::len).sum::<usize>(), 4);
}

#[tokio::test]
async fn a_collector_who_goes_away_leaves_every_item_on_record() {
    let site = Site::start().await;
    site.registry.knows(&message().subjects);
    site.birth.answers_after(Duration::from_secs(30), vec![birth()]);
    let mut stream = collect(&site, message()).await.unwrap();
    stream.message().await.unwrap();
    for _ in 0..100 {
        if site.birth.calls() == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(stream);
    for _ in 0..100 {
        if site.birth.given_up() == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(site.birth.given_up(), 1);
    let entries = site.close().await;
    let outcomes: Vec<_> = entries.values().flatten().map(|entry| entry.outcome).collect();
    assert_eq!(outcomes.len(), 3);
    assert!(outcomes.contains(&Outcome::Cancelled), "{outcomes:?}");
}
