//! What else the gateway shows: health, reflection, the catalog, readiness; and that every reason was reached somewhere.

use oncegate::pb::gateway as pb;
use oncegate::pb::gateway::catalog_service_client::CatalogServiceClient;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::harness::Site;

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
    let get = async |path: &str| {
        let mut stream = tokio::net::TcpStream::connect(&site.observe).await.unwrap();
        stream
            .write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    assert!(get("/livez").await.starts_with("HTTP/1.1 200"));
    assert!(get("/readyz").await.starts_with("HTTP/1.1 200"));
    let _ = site.lookup("GA", crate::harness::request()).await;
    assert!(get("/metrics").await.contains("oncegate_requests_total{"));
    site.close().await;
}

/// Reasons that these tests can't force from outside.
const ELSEWHERE: &[(&str, &str)] = &[
    ("CERTIFICATE_UNTRUSTED", "a gateway has no second generation of trust yet; tested in src/certs"),
    ("DEADLINE_EXCEEDED", "a provider's timeout comes first unless the gateway itself stalls"),
    ("CANCELLED", "nobody is left to be told; the entry is tested in provider.rs"),
    ("INTERNAL", "a fault of the program"),
];

#[test]
fn every_reason_is_reached_by_a_test() {
    let tests = [
        "collect.rs",
        "conditions.rs",
        "input.rs",
        "limits.rs",
        "policy.rs",
        "process.rs",
        "provider.rs",
        "tokens.rs",
        "verify.rs",
        "faces.rs",
    ];
    let text: String =
        tests.iter().map(|name| std::fs::read_to_string(format!("tests/gateway/{name}")).unwrap()).collect();
    for reason in oncegate::lookup::Reason::ALL {
        let name = oncegate::api::status::name(reason);
        let reached = text.contains(&format!("\"{name}\")")) || text.contains(&format!("\"{name}\",\n"));
        let elsewhere = ELSEWHERE.iter().any(|(other, _)| *other == name);
        assert!(reached || elsewhere, "{name} is reached by no test");
    }
}
