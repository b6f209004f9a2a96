//! `Verify`: what is compared, what can't be told, and that no record, a wrong key and somebody else's record look alike.

use std::num::NonZeroU32;
use std::time::Duration;

use oncegate::audit::{Comparison, Mode, Outcome};
use oncegate::pb::department::SourceRecord;
use oncegate::pb::fact::CaseState;
use oncegate::pb::gateway as pb;
use oncegate::pb::gateway::lookup_service_client::LookupServiceClient;
use pb::ComparisonResult::{CannotTell, Match, Mismatch};
use prost::Message as _;
use prost_reflect::{DynamicMessage, Value};
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt as _;

use crate::harness::{Site, birth, mother_id, pool, record, request, subject};

const MOTHER: &str = "乌有宁";

/// The mother's card.
fn card(name: &str) -> SourceRecord {
    let mut found = record(
        "ResidentIdentity",
        &[
            ("name", name),
            ("id_no", &mother_id()),
            ("birth_date", "1995-03-04"),
            ("address", "子虚县乌有镇"),
            ("valid_from", "2020-01-01"),
            ("valid_until", "2040-01-01"),
        ],
    );
    let any = found.record.as_mut().unwrap();
    let descriptor = pool().get_message_by_name("oncegate.records.v1.ResidentIdentity").unwrap();
    let mut message = DynamicMessage::decode(descriptor, any.value.as_slice()).unwrap();
    message.set_field_by_name("status", Value::EnumNumber(1));
    any.value = message.encode_to_vec();
    found
}

fn claims(claims: &[(&str, &str)]) -> Vec<pb::Claim> {
    claims.iter().map(|(path, value)| pb::Claim { path: (*path).into(), value: (*value).into() }).collect()
}

/// WJ's question about the mother's card.
fn about_mother(name: &str, claimed: &[(&str, &str)]) -> pb::VerifyRequest {
    pb::VerifyRequest {
        matter: "newborn_birth".into(),
        case_id: request().case_id,
        certificate_type: "resident_identity".into(),
        subject_role: "mother".into(),
        subjects: vec![subject("mother", &[("id_no", &mother_id()), ("name", name)])],
        claims: claims(claimed),
    }
}

/// A question about the newborn's certificate.
fn about_child(claimed: &[(&str, &str)]) -> pb::VerifyRequest {
    let pb::LookupRequest { matter, case_id, certificate_type, subject_role, subjects, .. } = request();
    pb::VerifyRequest { matter, case_id, certificate_type, subject_role, subjects, claims: claims(claimed) }
}

async fn send(site: &Site, token: &str, message: pb::VerifyRequest) -> Result<pb::VerifyResponse, Status> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    LookupServiceClient::new(site.channel.clone()).verify(request).await.map(Response::into_inner)
}

async fn verify(site: &Site, consumer: &str, message: pb::VerifyRequest) -> Result<pb::VerifyResponse, Status> {
    send(site, &site.token(consumer), message).await
}

fn results(answer: &pb::VerifyResponse) -> Vec<pb::ComparisonResult> {
    answer.comparisons.iter().map(pb::Comparison::result).collect()
}

fn why(answer: &pb::VerifyResponse) -> Vec<Option<pb::WithheldReason>> {
    answer.comparisons.iter().map(|found| found.withheld.as_ref().map(pb::WithheldField::reason)).collect()
}

#[tokio::test]
async fn values_are_compared_and_nothing_else_leaves() {
    let site = Site::start().await;
    site.population.answers(vec![card(MOTHER)]);
    let id = mother_id().to_lowercase();
    let claimed =
        [("name", "乌有宁"), ("id_no", &*id), ("status", "LOST"), ("in_force", "true"), ("birth_date", "1995-03-04")];
    let answer = verify(&site, "WJ", about_mother(MOTHER, &claimed)).await.unwrap();
    assert_eq!(results(&answer), [Match, Match, Mismatch, Match, CannotTell]);
    let not_granted = Some(pb::WithheldReason::NotGranted);
    assert_eq!(why(&answer), [None, None, None, None, not_granted]);
    let paths: Vec<_> = answer.comparisons.iter().map(|found| found.path.as_str()).collect();
    assert_eq!(paths, claimed.map(|(path, _)| path), "in the order of the claims");
    let bytes = answer.encode_to_vec();
    for secret in [MOTHER, &mother_id(), "子虚县乌有镇", "2040-01-01", "1995"] {
        assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()), "{secret}");
    }
    let decision = answer.decision.unwrap();
    assert_eq!(decision.grants, ["newborn_birth.WJ.resident_identity"]);
    assert_eq!((decision.cached, decision.fetched_at), (false, None), "the same with and without a record");
    let mut asked = site.population.last_request().fields.unwrap().paths;
    asked.sort();
    assert_eq!(
        asked,
        ["id_no", "name", "status", "valid_from", "valid_until"],
        "only what may be compared is asked for"
    );

    let request_id = answer.receipt.unwrap().request_id;
    let entries = site.close().await;
    let entry = &entries[&request_id][0];
    assert_eq!((entry.outcome, entry.mode), (Outcome::Verified, Some(Mode::Verify)));
    let compared: Vec<_> = entry.compared.iter().map(|found| (found.field.as_slice(), found.result)).collect();
    assert_eq!(
        compared,
        [
            (&[1][..], Comparison::Match),
            (&[2], Comparison::Match),
            (&[12], Comparison::Mismatch),
            (&[0, 1], Comparison::Match),
            (&[5], Comparison::CannotTell),
        ]
    );
    assert_eq!(entry.requested, [vec![1], vec![2], vec![5], vec![12], vec![0, 1]]);
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &[1, 1, 2, 1, 3]);
    assert_eq!(entry.answer_digest.unwrap(), digest.as_ref());
    assert!(!format!("{entry:?}").contains(MOTHER), "results stand on record, not values");
}

#[tokio::test]
async fn no_record_and_a_wrong_name_look_alike() {
    let site = Site::start().await;
    let claimed = [("name", MOTHER), ("status", "VALID"), ("birth_date", "1995-03-04")];
    let mut answers = Vec::new();
    let mut ids = Vec::new();
    // Nobody; somebody else; the right person under a wrong name; a person and somebody else.
    for (name, records) in [
        (MOTHER, vec![]),
        (MOTHER, vec![card("子虚宁")]),
        ("子虚宁", vec![card(MOTHER)]),
        ("子虚宁", vec![record("ResidentIdentity", &[("name", "子虚宁"), ("id_no", "x")])]),
    ] {
        site.population.answers(records);
        let mut answer = verify(&site, "WJ", about_mother(name, &claimed)).await.unwrap();
        assert_eq!(results(&answer), [CannotTell; 3]);
        assert_eq!(why(&answer), [None, None, Some(pb::WithheldReason::NotGranted)]);
        ids.push(answer.receipt.take().unwrap().request_id);
        answers.push(answer.encode_to_vec());
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]), "not a byte differs but the receipt's");
    site.population.answers(vec![card(MOTHER)]);
    let found = verify(&site, "WJ", about_mother(MOTHER, &claimed)).await.unwrap();
    assert_eq!(results(&found), [Match, Match, CannotTell]);
    let entries = site.close().await;
    for id in &ids {
        assert_eq!(entries[id][0].outcome, Outcome::NotFound, "the auditor knows");
        assert_eq!(entries[id][0].compared.len(), 3);
    }
    assert!(entries[&ids[1]][0].detail.contains("another subject"));
}

#[tokio::test]
pub(crate) async fn guessing_is_bounded_and_being_right_is_not() {
    let site = Site::with(|config| {
        config.limits.verify_per_subject_per_hour = NonZeroU32::new(4).unwrap();
        config.cache.max_bytes = 0;
    })
    .await;
    site.population.answers(vec![card(MOTHER)]);
    let ask =
        async |name: &str, path: &str, value: &str| verify(&site, "WJ", about_mother(name, &[(path, value)])).await;
    for _ in 0..6 {
        assert_eq!(results(&ask(MOTHER, "status", "VALID").await.unwrap()), [Match]);
    }
    // Refused before anything is told: no attempt.
    for _ in 0..5 {
        site.refused(ask(MOTHER, "status", "nonsense").await, Code::InvalidArgument, "CLAIM_INVALID");
    }
    let today = site.clock.now().date_in_china().to_string();
    assert_eq!(results(&ask(MOTHER, "in_force", &today).await.unwrap()), [Match]);
    // Each of these tells something: another value, another name, nothing to compare as if there were nobody.
    assert_eq!(results(&ask(MOTHER, "status", "LOST").await.unwrap()), [Mismatch]);
    assert_eq!(results(&ask("子虚宁", "status", "VALID").await.unwrap()), [CannotTell]);
    site.population.answers(vec![record("ResidentIdentity", &[("name", MOTHER), ("id_no", &mother_id())])]);
    assert_eq!(results(&ask(MOTHER, "status", "VALID").await.unwrap()), [CannotTell]);
    site.population.answers(vec![card(MOTHER)]);
    assert_eq!(results(&ask(MOTHER, "in_force", "false").await.unwrap()), [Mismatch]);
    let limited = site.refused(ask(MOTHER, "status", "VALID").await, Code::ResourceExhausted, "ATTEMPTS_LIMITED");
    let delay = limited.get_error_details().retry_info().unwrap().retry_delay.unwrap();
    assert!(delay > Duration::from_mins(10) && delay <= Duration::from_mins(15), "{delay:?}");
    // Another consumer has attempts of its own.
    site.birth.answers(vec![birth()]);
    verify(&site, "GA", about_child(&[("infant_name", "乌有安")])).await.unwrap();
    let entries = site.close().await;
    assert_eq!(entries.values().flatten().filter(|entry| entry.outcome == Outcome::Limited).count(), 1);
}

/// Day after day a predicate would tell a date: three other days, and the department is asked no more.
#[tokio::test]
async fn a_date_is_not_found_out_day_by_day() {
    let site = Site::start().await;
    site.population.answers(vec![card(MOTHER)]);
    let ask = async |claimed: &[(&str, &str)]| verify(&site, "WJ", about_mother(MOTHER, claimed)).await;
    let today = site.clock.now().date_in_china();
    let day = |days: i64| (today + time::Duration::days(days)).to_string();
    for days in [183, -92, 46] {
        assert_eq!(results(&ask(&[("in_force", &day(days))]).await.unwrap()), [Match], "{days}");
    }
    let asked = site.population.calls();
    let limited = ask(&[("in_force", &day(23))]).await;
    let limited = site.refused(limited, Code::ResourceExhausted, "ATTEMPTS_LIMITED");
    let delay = limited.get_error_details().retry_info().unwrap().retry_delay.unwrap();
    assert!(delay > Duration::from_hours(9 * 24), "{delay:?}");
    assert_eq!(site.population.calls(), asked, "nobody was asked");
    // Today is free, and so is everything else.
    for claimed in [("in_force", "true"), ("in_force", &*day(0)), ("status", "VALID")] {
        assert_eq!(results(&ask(&[claimed]).await.unwrap()), [Match]);
    }
    // An age tells the birthday within days.
    for path in ["aged_16", "aged_18", "aged_60"] {
        let refused = site.refused(ask(&[(path, &day(1))]).await, Code::InvalidArgument, "CLAIM_INVALID");
        let details = refused.get_error_details();
        assert_eq!(details.error_info().unwrap().metadata["rule"], "an age is told for today alone");
    }
    site.close().await;
}

#[tokio::test]
async fn a_provider_that_fails_costs_no_attempt() {
    let site = Site::with(|config| config.limits.verify_per_subject_per_hour = NonZeroU32::MIN).await;
    for _ in 0..3 {
        site.population.fails(Code::Unavailable);
        let failed = verify(&site, "WJ", about_mother(MOTHER, &[("status", "LOST")])).await;
        site.refused(failed, Code::Unavailable, "PROVIDER_UNAVAILABLE");
    }
    // Records that the type can't have.
    site.population.answers(vec![card(MOTHER), card(MOTHER)]);
    let many = verify(&site, "WJ", about_mother(MOTHER, &[("status", "LOST")])).await;
    site.refused(many, Code::FailedPrecondition, "RECORD_AMBIGUOUS");
    site.population.answers(vec![card(MOTHER)]);
    assert_eq!(results(&verify(&site, "WJ", about_mother(MOTHER, &[("status", "LOST")])).await.unwrap()), [Mismatch]);
    site.close().await;
}

#[tokio::test]
async fn what_is_granted_masked_or_to_nobody_is_not_compared() {
    let site = Site::start().await;
    site.birth.answers(vec![birth()]);
    let claimed = [("infant_name", "乌有安"), ("mother_name", "乌有宁"), ("father_name", "子虚刚")];
    let masked = verify(&site, "JK", about_child(&claimed)).await.unwrap();
    assert_eq!(results(&masked), [Match, CannotTell, CannotTell], "the mother's name is JK's only masked");
    assert_eq!(why(&masked)[1..], [Some(pb::WithheldReason::NotGranted); 2]);
    let never =
        verify(&site, "GA", about_child(&[("infant_name", "乌有乐"), ("birth_weight_g", "3200")])).await.unwrap();
    assert_eq!(results(&never), [Mismatch, CannotTell]);
    assert_eq!(why(&never), [None, Some(pb::WithheldReason::NeverShared)]);

    // Where nothing may be compared, the call is refused, and nobody is asked.
    let before = site.birth.calls();
    let denied = Code::PermissionDenied;
    site.refused(verify(&site, "JK", about_child(&claimed[1..])).await, denied, "NOT_GRANTED");
    site.refused(verify(&site, "GA", about_child(&[("birth_weight_g", "3200")])).await, denied, "NEVER_SHARED");
    site.refused(verify(&site, "RS", about_child(&claimed[..1])).await, denied, "GRANT_EXPIRED");
    // All of a newborn is sensitive.
    let bare = site.token_with("GA", |claims| {
        drop(claims["authorization_details"][0].as_object_mut().unwrap().remove("legal_basis_reference"));
    });
    site.refused(send(&site, &bare, about_child(&claimed[..1])).await, denied, "BASIS_MISSING");
    site.registry.says(CaseState::Closed, &request().subjects);
    let other = site.token_with("GA", |claims| claims["authorization_details"][0]["case"] = "HS-TEST-000009".into());
    let closed = pb::VerifyRequest { case_id: "HS-TEST-000009".into(), ..about_child(&claimed[..1]) };
    site.refused(send(&site, &other, closed).await, denied, "CASE_NOT_OPEN");
    assert_eq!(site.birth.calls(), before);
    site.close().await;
}

#[tokio::test]
pub(crate) async fn claims_that_no_record_could_answer_are_refused() {
    let site = Site::start().await;
    let many: Vec<_> = (0..33).map(|_| ("name", "x")).collect();
    let long = "x".repeat(257);
    for (claimed, place) in [
        (&[][..], None),
        (&many, None),
        (&[("name", "x"), ("name", "y")], Some("claims[1]")),
        (&[("name", "")], Some("claims[0]")),
        (&[("name", &long)], Some("claims[0]")),
        (&[("name", "x"), ("status", "VALLID")], Some("claims[1]")),
        (&[("photo", "x")], Some("claims[0]")),
        (&[("in_force", "2020-01-01")], Some("claims[0]")),
    ] {
        let refused = verify(&site, "WJ", about_mother(MOTHER, claimed)).await;
        let refused = site.refused(refused, Code::InvalidArgument, "CLAIM_INVALID");
        let details = refused.get_error_details();
        let metadata = &details.error_info().unwrap().metadata;
        assert_eq!(metadata.get("claim").map(String::as_str), place, "{claimed:?}");
    }
    for path in ["nmae", "", "*", "in_force.x"] {
        let refused = verify(&site, "WJ", about_mother(MOTHER, &[(path, "x")])).await;
        let refused = site.refused(refused, Code::InvalidArgument, "FIELD_UNKNOWN");
        assert_eq!(refused.get_error_details().error_info().unwrap().metadata["path"], "claims[0].path");
    }
    // A predicate can't be read.
    let read = pb::LookupRequest {
        certificate_type: "resident_identity".into(),
        subject_role: "mother".into(),
        subjects: about_mother(MOTHER, &[]).subjects,
        read_mask: crate::harness::mask(&["in_force"]),
        ..request()
    };
    site.refused(site.lookup("WJ", read).await, Code::InvalidArgument, "FIELD_UNKNOWN");
    site.close().await;
}

#[tokio::test]
async fn explain_names_predicates_as_verify_does() {
    let site = Site::start().await;
    let ask = async |verify: bool, paths: &[&str]| {
        let pb::VerifyRequest { matter, case_id, certificate_type, subject_role, subjects, .. } =
            about_mother(MOTHER, &[]);
        let read_mask = crate::harness::mask(paths);
        let message =
            pb::ExplainRequest { matter, case_id, certificate_type, subject_role, subjects, read_mask, verify };
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", format!("Bearer {}", site.token("WJ")).parse().unwrap());
        LookupServiceClient::new(site.channel.clone()).explain(request).await.map(Response::into_inner)
    };
    let explained = ask(true, &["aged_18", "in_force", "name"]).await.unwrap();
    let forms: Vec<_> = explained.fields.iter().map(|field| (field.path.as_str(), field.forms[0].form())).collect();
    let (may, may_not) = (pb::FieldForm::Released, pb::FieldForm::Withheld);
    assert_eq!(forms, [("name", may), ("in_force", may), ("aged_18", may_not)]);
    site.refused(ask(false, &["in_force"]).await, Code::InvalidArgument, "FIELD_UNKNOWN");
    assert_eq!(site.population.calls(), 0);
    site.close().await;
}

#[tokio::test]
async fn twins_are_compared_one_by_one() {
    let site = Site::start().await;
    let twin = |name: &str, number: &str| {
        record(
            "BirthMedicalCertificate",
            &[
                ("certificate_no", number),
                ("infant_name", name),
                ("birth_datetime", "2026-10-05T08:30"),
                ("mother_id_no", &mother_id()),
            ],
        )
    };
    site.birth.answers(vec![twin("乌有安", "N900000001"), twin("乌有乐", "N900000002")]);
    let ask = async |name: &str, number: &str| {
        let claimed = [("infant_name", name), ("certificate_no", number), ("birth_datetime", "2026-10-05")];
        results(&verify(&site, "GA", about_child(&claimed)).await.unwrap())
    };
    assert_eq!(ask("乌有安", "N900000001").await, [Match, Match, Match]);
    assert_eq!(ask("乌有乐", "N900000002").await, [Match, Match, Match]);
    assert_eq!(
        ask("乌有乐", "N900000001").await,
        [Mismatch, Match, Match],
        "one record's results, not the best of both"
    );
    site.close().await;
}

#[tokio::test]
async fn what_the_record_forbids_can_not_be_told() {
    let site = Site::with_bundle(|bundle| {
        let grant = |id: &str, field: &str, when: &str| {
            format!(
                "[[grant]]\nid = \"{id}\"\nconsumer = \"GA\"\ncertificate_type = \"birth_medical_certificate\"\n\
                 roles = [\"child\"]\nmode = \"verify\"\nfields = [\"{field}\"]\nwhen = [{when}]\n\
                 replaces = \"出生医学证明\"\nexemption = \"3\"\nscene = \"出生登记\"\n\
                 valid_from = \"2026-01-01\"\nvalid_until = \"2027-12-31\"\n"
            )
        };
        let text = "matter = \"newborn_birth\"\nprovider = \"WJ\"\nwhen = [\"case_open\"]\n".to_owned()
            + &grant("a", "infant_name", "")
            + &grant("b", "mother_name", "\"applicant_is_parent\"");
        std::fs::write(bundle.join("grants/newborn_birth/WJ.toml"), text).unwrap();
    })
    .await;
    site.birth.answers(vec![birth()]);
    let claimed = [("infant_name", "乌有安"), ("mother_name", "乌有宁")];
    let parent = verify(&site, "GA", about_child(&claimed)).await.unwrap();
    assert_eq!(results(&parent), [Match, Match]);

    // Nobody applies who is a parent.
    let mut parties = request().subjects;
    let stranger = oncegate::cli::demo::numbers::id_number(time::macros::date!(1990 - 01 - 01), 7);
    parties.push(subject("applicant", &[("id_no", &stranger)]));
    site.registry.knows(&parties);
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let answer = verify(&site, "GA", about_child(&claimed)).await.unwrap();
    assert_eq!(results(&answer), [Match, CannotTell]);
    assert_eq!(why(&answer), [None, Some(pb::WithheldReason::RecordCondition)]);
    assert_eq!(answer.comparisons[1].withheld.as_ref().unwrap().condition, "", "which condition is the auditor's");
    let alone = verify(&site, "GA", about_child(&claimed[1..])).await.unwrap();
    assert_eq!(results(&alone), [CannotTell]);
    let id = alone.receipt.unwrap().request_id;
    let entries = site.close().await;
    assert_eq!(entries[&id][0].outcome, Outcome::Verified);
    assert_eq!(entries[&id][0].records[0].withheld[0].detail, "APPLICANT_NOT_PARENT");
}
