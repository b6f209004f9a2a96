//! A department's own certificate type, compiled and loaded without building the program; reflection and the catalog show
//! each caller what it may use.

use std::path::{Path, PathBuf};

use oncegate::catalog::Catalog;
use oncegate::cli::catalog::build;
use oncegate::config::Config;
use oncegate::pb::department::SourceRecord;
use oncegate::pb::gateway as pb;
use oncegate::pb::gateway::catalog_service_client::CatalogServiceClient;
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, Value};
use tokio_stream::iter;
use tonic::Code;
use tonic::transport::Channel;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

use crate::harness::{Site, mask, subject};

const EXAMPLE: &str = "deploy/examples/health_permit.proto";
const NAME: &str = "heshan.health.v1.HealthPermit";
/// Invented: authority 9, enterprise, impossible division.
fn uscc() -> String {
    oncegate::cli::demo::numbers::uscc('1', "MA000001")
}

fn departments() -> Vec<oncegate::catalog::Department> {
    let config = Config::load(Path::new("deploy/heshan/gateway.toml")).unwrap();
    Catalog::load(&config.policy.bundle).unwrap().departments().cloned().collect()
}

fn compiled() -> Vec<u8> {
    build(&[PathBuf::from(EXAMPLE)], &[], departments()).unwrap().0
}

/// A gateway that also serves the example: WJ provides it, SJ may see it when a restaurant opens.
async fn site() -> Site {
    let dir = Box::leak(Box::new(tempfile::tempdir().unwrap())).path();
    let bundle = Path::new("deploy/heshan/policy");
    for part in ["departments.toml", "matters", "facts.toml", "holidays.toml"] {
        std::os::unix::fs::symlink(bundle.canonicalize().unwrap().join(part), dir.join(part)).unwrap();
    }
    std::fs::create_dir(dir.join("types")).unwrap();
    std::fs::write(dir.join("types/health_permit.binpb"), compiled()).unwrap();
    let grant = "matter = \"open_restaurant\"\nprovider = \"WJ\"\n[[grant]]\nid = \"open_restaurant.SJ.health_permit\"\n\
                 consumer = \"SJ\"\ncertificate_type = \"health_permit\"\nroles = [\"entity\"]\nmode = \"query\"\n\
                 fields = [\"permit_no\", \"person_in_charge\", \"status\"]\n\
                 mask = { person_in_charge = \"name_zh\" }\nreplaces = \"卫生许可证\"\nexemption = \"3\"\n\
                 scene = \"开办餐饮店\"\nvalid_from = \"2026-01-01\"\nvalid_until = \"2027-12-31\"\n";
    let grants = dir.join("grants");
    std::fs::create_dir_all(grants.join("open_restaurant")).unwrap();
    std::fs::write(grants.join("open_restaurant/WJ.toml"), grant).unwrap();
    let newborn = grants.join("newborn_birth");
    std::fs::create_dir_all(&newborn).unwrap();
    for provider in ["GA", "WJ"] {
        let name = format!("{provider}.toml");
        std::fs::copy(bundle.join("grants/newborn_birth").join(&name), newborn.join(name)).unwrap();
    }
    Site::with(|config| {
        dir.clone_into(&mut config.policy.bundle);
        for source in config.sources.iter_mut().filter(|source| source.name == "birth") {
            source.certificate_types.push("health_permit".into());
        }
    })
    .await
}

fn permit() -> SourceRecord {
    let pool = DescriptorPool::decode(compiled().as_slice()).unwrap();
    let mut record = DynamicMessage::new(pool.get_message_by_name(NAME).unwrap());
    let uscc = uscc();
    for (field, value) in [
        ("permit_no", "子卫公证字001号"),
        ("uscc", uscc.as_str()),
        ("person_in_charge", "乌有宁"),
        ("findings", "不得外传"),
    ] {
        record.set_field_by_name(field, Value::String(value.into()));
    }
    record.set_field_by_name("status", Value::EnumNumber(1));
    let any = prost_types::Any { type_url: format!("type.googleapis.com/{NAME}"), value: record.encode_to_vec() };
    SourceRecord { record: Some(any), ..SourceRecord::default() }
}

#[tokio::test]
async fn a_type_that_the_program_never_knew_is_served_like_any_other() {
    let site = site().await;
    site.birth.answers(vec![permit()]);
    let token = site.token_with("SJ", |claims| {
        claims["authorization_details"][0]["matter"] = "open_restaurant".into();
        claims["authorization_details"][0]["legal_basis_reference"] = "市场主体登记管理条例 第八条".into();
    });
    let ask = |paths: &[&str]| pb::LookupRequest {
        matter: "open_restaurant".into(),
        case_id: crate::harness::CASE.into(),
        certificate_type: "health_permit".into(),
        subject_role: "entity".into(),
        subjects: vec![subject("entity", &[("uscc", &uscc())])],
        read_mask: mask(paths),
    };
    let answer = site.send(site.channel.clone(), Some(&token), ask(&["permit_no", "person_in_charge", "valid_until"]));
    let record = answer.await.unwrap().records.remove(0);
    let any = record.record.unwrap();
    let shown = String::from_utf8_lossy(&any.value).into_owned();
    assert!(shown.contains("子卫公证字001号") && shown.contains("乌**"), "{shown}");
    assert!(!shown.contains("不得外传") && !shown.contains(&uscc()), "{shown}");
    assert_eq!((record.masked[0].path.as_str(), record.withheld[0].path.as_str()), ("person_in_charge", "valid_until"));

    // The catalog's descriptors are enough to read the answer.
    let mut registration = CatalogServiceClient::new(site.channel_of("SJ", "registration"));
    let found = pb::GetCertificateTypeRequest { code: "health_permit".into() };
    let found = registration.get_certificate_type(found).await.unwrap().into_inner();
    let pool = DescriptorPool::decode(found.descriptor_set.as_ref()).unwrap();
    let message = DynamicMessage::decode(pool.get_message_by_name(NAME).unwrap(), any.value.as_slice()).unwrap();
    assert_eq!(message.get_field_by_name("permit_no").unwrap().as_str(), Some("子卫公证字001号"));

    let hidden = site.send(site.channel.clone(), Some(&token), ask(&["findings"])).await;
    site.refused(hidden, Code::PermissionDenied, "NEVER_SHARED");
    site.close().await;
}

async fn reflect(channel: Channel, question: MessageRequest) -> MessageResponse {
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(question) };
    let mut answers =
        ServerReflectionClient::new(channel).server_reflection_info(iter([request])).await.unwrap().into_inner();
    let ServerReflectionResponse { message_response, .. } = answers.message().await.unwrap().unwrap();
    message_response.unwrap()
}

#[tokio::test]
async fn reflection_shows_each_caller_what_it_may_use() {
    let site = site().await;
    let sj = || site.channel_of("SJ", "registration");
    let rs = || site.channel_of("RS", "social-security");
    let symbol = |name: &str| MessageRequest::FileContainingSymbol(name.to_owned());
    let sees = async |channel: Channel, question: MessageRequest| match reflect(channel, question).await {
        MessageResponse::FileDescriptorResponse(found) => Some(found.file_descriptor_proto),
        MessageResponse::ErrorResponse(error) => {
            assert_eq!(error.error_code, i32::from(Code::NotFound));
            None
        }
        other => panic!("{other:?}"),
    };
    // The new type's files are complete and in an order that a tool can read.
    let files = sees(sj(), symbol(NAME)).await.expect("SJ is granted the permit");
    let files: Vec<_> =
        files.iter().map(|file| prost_types::FileDescriptorProto::decode(file.as_slice()).unwrap()).collect();
    let pool = DescriptorPool::from_file_descriptor_set(prost_types::FileDescriptorSet { file: files }).unwrap();
    assert!(pool.get_message_by_name(NAME).is_some());

    let household = "oncegate.records.v1.HouseholdRegister";
    assert!(sees(rs(), symbol(household)).await.is_some(), "RS is granted household pages");
    for (channel, name) in [
        (rs(), NAME),
        (sj(), household),
        (sj(), "oncegate.records.v1.LowIncomeRecord"),
        (sj(), "oncegate.admin.v1.AdminService"),
        (sj(), "oncegate.audit.v1.Access"),
        (sj(), "no.Such"),
    ] {
        assert!(sees(channel.clone(), symbol(name)).await.is_none(), "{name}");
        let extensions = MessageRequest::AllExtensionNumbersOfType(name.to_owned());
        assert!(sees(channel, extensions).await.is_none(), "{name}");
    }
    let options = MessageRequest::AllExtensionNumbersOfType("google.protobuf.MessageOptions".to_owned());
    let MessageResponse::AllExtensionNumbersResponse(found) = reflect(sj(), options).await else {
        panic!("no numbers")
    };
    assert_eq!(found.extension_number, [50_784]);
    let file = "oncegate/records/v1/household_register.proto".to_owned();
    assert!(sees(sj(), MessageRequest::FileByFilename(file)).await.is_none());
    // Every service is there for everybody, with its methods.
    assert!(sees(rs(), symbol("oncegate.gateway.v1.LookupService.Lookup")).await.is_some());
    let MessageResponse::ListServicesResponse(services) =
        reflect(sj(), MessageRequest::ListServices(String::new())).await
    else {
        panic!("no list")
    };
    assert_eq!(services.service.len(), 4);
    site.close().await;
}

#[test]
fn what_the_compiler_and_the_catalog_refuse_has_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let sound = std::fs::read_to_string(EXAMPLE).unwrap();
    let refused = |from: &str, to: &str| {
        assert!(sound.contains(from), "{from}");
        let file = dir.path().join("own.proto");
        std::fs::write(&file, sound.replace(from, to)).unwrap();
        format!("{:?}", build(&[file], &[], departments()).expect_err(to))
    };
    let twins = ["a", "b"].map(|folder| dir.path().join(folder).join("own.proto"));
    for file in &twins {
        std::fs::create_dir(file.parent().unwrap()).unwrap();
        std::fs::write(file, &sound).unwrap();
    }
    let said = format!("{:?}", build(&twins, &[], departments()).expect_err("one would be left out"));
    assert!(said.contains("b/own.proto: another file has the same name"), "{said}");
    let line = |text: &str| sound.lines().position(|line| line.contains(text)).unwrap() + 1;
    for (from, to, due) in [
        ("optional string uscc = 2", "optional strnig uscc = 2", "strnig".to_owned()),
        ("department: \"WJ\"", "department: \"XX\"", format!("own.proto:{}: ", line("message HealthPermit"))),
        ("matches: [\"uscc\"]", "matches: [\"uscs\"]", "`uscs`, which is no leaf".to_owned()),
        (
            "    label_zh: \"负责人\"\n",
            "",
            format!("own.proto:{}: HealthPermit.person_in_charge", line("person_in_charge = 3")),
        ),
        (
            "  option (oncegate.records.v1.certificate_type)",
            "  option (oncegate.records.v1.certificate)",
            "certificate".to_owned(),
        ),
        ("mask: \"name_zh\"", "mask: \"nam_zh\"", format!("{NAME}: person_in_charge: no mask `nam_zh`")),
        ("optional string permit_no", "string permit_no", "HealthPermit.permit_no: must be optional".to_owned()),
        ("code: \"health_permit\"", "code: \"tax_clearance\"", "has the code `tax_clearance`, too".to_owned()),
    ] {
        let said = refused(from, to);
        assert!(said.contains(&due), "{due} is not in {said}");
    }
}
