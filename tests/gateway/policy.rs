//! What the policy refuses, releases and masks, seen from outside.

use oncegate::audit::Outcome;
use oncegate::pb::gateway as pb;
use serde_json::json;
use tonic::Code;

use crate::harness::{Site, birth, fields, mask, request, subject};

#[tokio::test]
pub(crate) async fn each_refusal_of_the_policy_is_reached() {
    let site = Site::start().await;
    let ask = async |consumer: &str, paths: &[&str]| {
        site.lookup(consumer, pb::LookupRequest { read_mask: mask(paths), ..request() }).await
    };
    site.refused(ask("JK", &["father_id_no"]).await, Code::PermissionDenied, "NOT_GRANTED");
    site.refused(ask("SJ", &["infant_name"]).await, Code::PermissionDenied, "NOT_GRANTED");
    site.refused(ask("RS", &["infant_name"]).await, Code::PermissionDenied, "GRANT_EXPIRED");
    site.refused(ask("GA", &["birth_weight_g"]).await, Code::PermissionDenied, "NEVER_SHARED");

    let role = pb::LookupRequest {
        subject_role: "mother".into(),
        subjects: vec![subject("mother", &[("id_no", &crate::harness::mother_id()), ("birth_date", "2026-10-05")])],
        ..request()
    };
    site.refused(site.lookup("GA", role).await, Code::PermissionDenied, "ROLE_NOT_GRANTED");

    let verify = pb::LookupRequest {
        certificate_type: "resident_identity".into(),
        subject_role: "mother".into(),
        subjects: vec![subject("mother", &[("id_no", &crate::harness::mother_id()), ("name", "乌有宁")])],
        read_mask: mask(&["name"]),
        ..request()
    };
    site.refused(site.lookup("WJ", verify).await, Code::PermissionDenied, "VERIFY_ONLY");

    let token = site.token_with("GA", |claims| {
        drop(claims["authorization_details"][0].as_object_mut().unwrap().remove("legal_basis_reference"));
    });
    let bare = site.send(site.channel.clone(), Some(&token), request()).await;
    site.refused(bare, Code::PermissionDenied, "BASIS_MISSING");
    let token = site.token_with("GA", |claims| {
        claims["authorization_details"][0]["legal_basis_reference"] = json!("a law that the grant does not name");
    });
    let other = site.send(site.channel.clone(), Some(&token), request()).await;
    site.refused(other, Code::PermissionDenied, "BASIS_MISSING");

    let outside = site.token_with("GA", |claims| {
        claims["authorization_details"][0]["certificate_types"] = json!(["household_register"]);
    });
    let outside = site.send(site.channel.clone(), Some(&outside), request()).await;
    site.refused(outside, Code::PermissionDenied, "PURPOSE_MISMATCH");
    // The tag of nobody: 32 zeros.
    let other = site.token_with("GA", |claims| {
        claims["authorization_details"][0]["subjects"] = json!(["A".repeat(43)]);
    });
    let other = site.send(site.channel.clone(), Some(&other), request()).await;
    site.refused(other, Code::PermissionDenied, "PURPOSE_MISMATCH");

    assert_eq!(site.birth.calls() + site.population.calls(), 0, "nothing may be released, so nobody was asked");
    site.close().await;
}

#[tokio::test]
async fn an_answer_holds_what_was_granted_and_nothing_else() {
    let site = Site::start().await;
    site.birth.answers(vec![birth()]);
    let message = pb::LookupRequest { read_mask: mask(&["infant_name", "mother_name", "father_name"]), ..request() };
    let answer = site.lookup("JK", message).await.unwrap();
    let record = &answer.records[0];
    let got = fields(record);
    assert_eq!(got.len(), 2, "{got:?}");
    assert_eq!((got["infant_name"].as_str(), got["mother_name"].as_str()), ("乌有安", "乌**"));
    assert_eq!((record.masked[0].path.as_str(), record.masked[0].mask.as_str()), ("mother_name", "name_zh"));
    assert_eq!(record.withheld[0].path, "father_name");
    assert_eq!(record.withheld[0].reason(), pb::WithheldReason::NotGranted);
    let bytes = prost::Message::encode_to_vec(&answer);
    for secret in ["子虚刚", "子虚县人民医院", &crate::harness::mother_id()] {
        assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()), "{secret}");
    }
    let asked = site.birth.last_request();
    let paths = asked.fields.unwrap().paths;
    assert!(!paths.contains(&"father_name".to_owned()), "only what may be released is asked for: {paths:?}");

    let id = answer.receipt.unwrap().request_id;
    let entries = site.close().await;
    let entry = &entries[&id][0];
    assert_eq!(entry.outcome, Outcome::Partial);
    assert_eq!(entry.records[0].released, [[2]], "infant_name is field 2");
    assert_eq!(entry.records[0].masked[0].field, [10], "mother_name is field 10");
    assert_eq!(entry.withheld[0].field, [14], "father_name is field 14");
    assert_eq!(entry.consumer.as_ref().unwrap().as_str(), "JK");
    assert_eq!(entry.subject.as_ref().unwrap().keys[0].1, crate::harness::mother_id());
}
