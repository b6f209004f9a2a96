//! What else the gateway shows: health, reflection, the catalog, readiness; and that every reason was reached somewhere.

use oncegate::pb::gateway as pb;
use oncegate::pb::gateway::catalog_service_client::CatalogServiceClient;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::harness::{self, Site};

#[tokio::test]
async fn health_and_reflection_need_no_token_and_leave_no_entry() {
    let site = Site::start().await;
    let mut health = HealthClient::new(site.channel.clone());
    let mut status = ServingStatus::Unknown;
    for _ in 0..50 {
        let request = HealthCheckRequest { service: "oncegate.gateway.v1.LookupService".into() };
        status = health.check(request).await.map_or(ServingStatus::Unknown, |answer| answer.into_inner().status());
        if status == ServingStatus::Serving {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(status, ServingStatus::Serving);

    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut reflection = ServerReflectionClient::new(site.channel.clone());
    let mut answers = reflection.server_reflection_info(futures_util::stream::iter([ask])).await.unwrap().into_inner();
    let Some(MessageResponse::ListServicesResponse(list)) = answers.message().await.unwrap().unwrap().message_response
    else {
        panic!("no list")
    };
    let mut names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    names.sort();
    assert_eq!(
        names,
        [
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "oncegate.gateway.v1.CatalogService",
            "oncegate.gateway.v1.LookupService",
        ]
    );
    assert!(site.close().await.is_empty());
}

#[tokio::test]
async fn the_catalog_shows_what_the_caller_may_use() {
    let site = Site::start().await;
    let mut platform = CatalogServiceClient::new(site.channel.clone());
    let types = platform.list_certificate_types(pb::ListCertificateTypesRequest {}).await.unwrap().into_inner();
    assert_eq!(types.certificate_types.len(), 19);
    let birth = pb::GetCertificateTypeRequest { code: "birth_medical_certificate".into() };
    let found = platform.get_certificate_type(birth.clone()).await.unwrap().into_inner();
    let pool = prost_reflect::DescriptorPool::decode(found.descriptor_set.as_ref()).unwrap();
    assert!(pool.get_message_by_name(&found.summary.unwrap().message).is_some(), "the descriptors are complete");

    // Transport takes part in matters that need licences, and one that needs an identity.
    let mut transport = CatalogServiceClient::new(site.channel_of("JT", "transport"));
    let types = transport.list_certificate_types(pb::ListCertificateTypesRequest {}).await.unwrap().into_inner();
    let codes: Vec<_> = types.certificate_types.iter().map(|found| found.code.as_str()).collect();
    assert_eq!(codes, ["business_license", "resident_identity"]);
    let grants = transport.list_grants(pb::ListGrantsRequest::default()).await.unwrap().into_inner().grants;
    assert!(!grants.is_empty() && grants.iter().all(|grant| grant.consumer == "JT"));
    let matters = transport.list_matters(pb::ListMattersRequest {}).await.unwrap().into_inner().matters;
    assert_eq!(matters.len(), 2);
    let hidden = transport.get_certificate_type(birth).await;
    site.refused(hidden, Code::InvalidArgument, "CERTIFICATE_TYPE_UNKNOWN");
    assert_eq!(site.close().await.len(), 1, "only the refusal is on record");
}

#[tokio::test]
async fn readiness_and_metrics_are_served_in_the_clear() {
    let site = Site::start().await;
    assert!(site.observed("/livez").await.starts_with("HTTP/1.1 200"));
    assert!(site.observed("/readyz").await.starts_with("HTTP/1.1 200"));
    let _ = site.lookup("GA", harness::request()).await;
    assert!(site.metrics().await.contains("oncegate_requests_total{"));
    site.close().await;
}

/// Reasons that these tests can't force from outside.
const ELSEWHERE: &[(&str, &str)] = &[
    ("CERTIFICATE_UNTRUSTED", "its connection ends as soon; tested in trust.rs and src/certs"),
    ("DEADLINE_EXCEEDED", "a provider's timeout comes first unless the gateway itself stalls"),
    ("CANCELLED", "nobody is left to be told; the entry is tested in provider.rs"),
    ("INTERNAL", "a fault of the program"),
];

/// Tests that are refused for every other reason.
const REFUSED: &[fn()] = &[
    crate::collect::a_collection_that_can_not_be_planned_is_refused_as_a_whole,
    crate::conditions::a_grant_to_come_and_a_deny_have_their_reasons,
    crate::conditions::each_condition_that_does_not_hold_has_its_reason,
    crate::conditions::consent_hours_region_and_basis_are_conditions,
    crate::conditions::hours_are_those_of_china_on_a_working_day,
    crate::conditions::what_decides_on_the_record_is_told_to_the_auditor_alone,
    crate::conditions::a_registry_that_hangs_costs_its_time_and_releases_nothing,
    crate::input::each_bad_input_has_its_answer_and_its_entry,
    crate::input::what_is_no_call_is_refused_and_recorded,
    crate::limits::a_caller_has_a_rate_and_a_flood_is_counted,
    crate::limits::a_subject_has_a_rate,
    crate::limits::a_provider_has_a_bound_of_calls_in_flight,
    crate::limits::the_gateway_has_a_bound_of_calls_in_progress,
    crate::policy::each_refusal_of_the_policy_is_reached,
    crate::process::a_log_that_fails_stops_every_answer_until_a_restart,
    crate::provider::a_provider_that_is_down_or_missing_says_so,
    crate::provider::each_failure_of_a_provider_has_its_reason,
    crate::provider::a_slow_provider_costs_its_caller_the_deadline_and_nobody_else_anything,
    crate::tokens::a_token_that_breaks_a_rule_is_refused,
    crate::tokens::a_token_serves_nobody_but_the_one_it_is_bound_to,
    crate::tokens::a_departments_own_system_speaks_for_no_other,
    crate::tokens::a_certificate_that_expires_on_an_open_connection_is_refused_and_recorded,
    crate::verify::claims_that_no_record_could_answer_are_refused,
    crate::verify::guessing_is_bounded_and_being_right_is_not,
];

/// What callers are told is what the API's description shows: each example that it has, names and values, and nothing but
/// these names.
#[test]
fn every_reason_is_told_as_documented() {
    std::thread::scope(|scope| {
        for some in REFUSED.chunks(REFUSED.len().div_ceil(4)) {
            scope.spawn(move || some.iter().for_each(|test| test()));
        }
    });
    let told = harness::told();
    let mut missing = Vec::new();
    for reason in oncegate::lookup::Reason::ALL {
        let name = oncegate::api::status::name(reason);
        if ELSEWHERE.iter().any(|(other, _)| *other == name) {
            assert!(!told.contains_key(name), "{name} is told after all");
            continue;
        }
        let told = told.get(name).unwrap_or_else(|| panic!("{name} is told by no test"));
        missing.extend(
            harness::documented(name)
                .into_iter()
                .filter(|example| !told.contains(example))
                .map(|example| format!("{name}: {example:?} is documented, and told is {told:?}")),
        );
    }
    assert!(missing.is_empty(), "{missing:#?}");
}
