//! Departments that are down, slow, wrong or hostile.

use std::time::Duration;

use oncegate::audit::Outcome;
use oncegate::pb::gateway as pb;
use tonic::Code;

use crate::harness::{BORN, Site, birth, fields, mask, mother_id, record, request, subject};

#[tokio::test]
pub(crate) async fn each_failure_of_a_provider_has_its_reason() {
    let site = Site::start().await;
    let ask = async || site.lookup("GA", request()).await;

    site.birth.answers(Vec::new());
    site.refused(ask().await, Code::NotFound, "RECORD_NOT_FOUND");
    for (code, due, reason) in [
        (Code::Unavailable, Code::Unavailable, "PROVIDER_UNAVAILABLE"),
        (Code::Internal, Code::Unavailable, "PROVIDER_ANSWER_INVALID"),
        (Code::PermissionDenied, Code::Unavailable, "PROVIDER_REFUSED"),
        (Code::Unauthenticated, Code::Unavailable, "PROVIDER_REFUSED"),
        (Code::InvalidArgument, Code::Unavailable, "PROVIDER_ANSWER_INVALID"),
    ] {
        site.birth.fails(code);
        let status = site.refused(ask().await, due, reason);
        assert!(!format!("{status:?}").contains("张三"), "the source's own words stay inside");
    }

    let mut wrong_type = record("ResidentIdentity", &[("name", "乌有宁")]);
    site.birth.answers(vec![wrong_type.clone()]);
    site.refused(ask().await, Code::Unavailable, "PROVIDER_ANSWER_INVALID");
    wrong_type.record.as_mut().unwrap().type_url = birth().record.unwrap().type_url;
    site.birth.answers(vec![wrong_type]);
    site.refused(ask().await, Code::Unavailable, "PROVIDER_ANSWER_INVALID");

    let mut renamed = birth();
    renamed.record.as_mut().unwrap().type_url = "type.googleapis.com/oncegate.records.v1.DeathRecord".into();
    site.birth.answers(vec![renamed]);
    site.refused(ask().await, Code::Unavailable, "PROVIDER_ANSWER_INVALID");

    let mut garbage = birth();
    garbage.record.as_mut().unwrap().value.extend([0xff, 0xff, 0xff]);
    site.birth.answers(vec![garbage]);
    site.refused(ask().await, Code::Unavailable, "PROVIDER_ANSWER_INVALID");

    site.birth.answers(vec![birth(); 40]);
    site.refused(ask().await, Code::FailedPrecondition, "RECORD_AMBIGUOUS");

    // Nothing of all this was kept: the next answer is the source's.
    site.birth.answers(vec![birth()]);
    assert_eq!(ask().await.unwrap().records.len(), 1);
    site.close().await;
}

#[tokio::test]
async fn another_subjects_record_is_thrown_away() {
    let site = Site::start().await;
    let stranger = oncegate::cli::demo::numbers::id_number(time::macros::date!(1990 - 01 - 02), 44);
    let other = record(
        "BirthMedicalCertificate",
        &[("infant_name", "别家儿"), ("birth_datetime", "2026-10-05T09:00"), ("mother_id_no", &stranger)],
    );
    for records in [vec![other.clone()], vec![birth(), other]] {
        site.birth.answers(records);
        let status = site.refused(site.lookup("GA", request()).await, Code::Unavailable, "PROVIDER_ANSWER_INVALID");
        assert!(!format!("{status:?}").contains("别家儿"));
    }
    site.close().await;
}

#[tokio::test]
async fn unknown_fields_never_leave() {
    let site = Site::start().await;
    let mut sent = birth();
    // Field 999, a string that no descriptor knows.
    let mut extra = vec![0xba, 0x3e, 6];
    extra.extend(b"SECRET");
    sent.record.as_mut().unwrap().value.extend(extra);
    site.birth.answers(vec![sent]);
    let answer = site.lookup("GA", request()).await.unwrap();
    let bytes = prost::Message::encode_to_vec(&answer);
    assert!(!bytes.windows(6).any(|window| window == b"SECRET"));
    assert_eq!(fields(&answer.records[0]).len(), 3);
    let id = answer.receipt.unwrap().request_id;
    assert_eq!(site.close().await[&id][0].records[0].unknown_dropped, 1);
}

#[tokio::test]
pub(crate) async fn a_provider_that_is_down_or_missing_says_so() {
    let site = Site::with(|config| {
        for source in &mut config.sources {
            source.certificate_types.retain(|code| code != "residence_permit");
        }
    })
    .await;
    let disability = pb::LookupRequest {
        matter: "disability_services".into(),
        certificate_type: "disability_certificate".into(),
        subject_role: "applicant".into(),
        subjects: vec![subject("applicant", &[("id_no", &mother_id()), ("name", "乌有宁")])],
        read_mask: mask(&["status"]),
        ..request()
    };
    let token = |matter: &str, citation: &str, consumer: &str| {
        site.token_with(consumer, |claims| {
            claims["authorization_details"][0]["matter"] = matter.into();
            claims["authorization_details"][0]["legal_basis_reference"] = citation.into();
        })
    };
    let down = token("disability_services", "残疾人保障法 第二条", "RS");
    let down = site.send(site.channel.clone(), Some(&down), disability).await;
    site.refused(down, Code::Unavailable, "PROVIDER_UNAVAILABLE");

    let permit = pb::LookupRequest {
        matter: "school_enrolment".into(),
        certificate_type: "residence_permit".into(),
        subject_role: "guardian".into(),
        subjects: vec![subject("guardian", &[("id_no", &mother_id()), ("name", "乌有宁")])],
        read_mask: mask(&["status"]),
        ..request()
    };
    site.registry.knows(&permit.subjects);
    let missing = token("school_enrolment", "义务教育法 第十一条", "JY");
    let missing = site.send(site.channel.clone(), Some(&missing), permit).await;
    site.refused(missing, Code::Unavailable, "PROVIDER_NOT_CONNECTED");
    site.close().await;
}

#[tokio::test]
pub(crate) async fn a_slow_provider_costs_its_caller_the_deadline_and_nobody_else_anything() {
    let site = Site::with(|config| {
        for source in &mut config.sources {
            source.timeout_ms = 300;
        }
    })
    .await;
    site.birth.answers_after(Duration::from_secs(30), vec![birth()]);
    site.population.answers(Vec::new());
    let child = subject("child", &[("id_no", &mother_id()), ("name", "乌有安"), ("birth_date", BORN)]);
    site.registry.knows(&[child, subject("mother", &[("id_no", &mother_id())])]);
    let slow = site.lookup("GA", request());
    let quick = site.lookup(
        "RS",
        pb::LookupRequest {
            certificate_type: "household_register".into(),
            subjects: vec![subject("child", &[("id_no", &mother_id()), ("name", "乌有安")])],
            read_mask: mask(&["status"]),
            ..request()
        },
    );
    let (slow, quick) = tokio::join!(slow, quick);
    site.refused(slow, Code::DeadlineExceeded, "PROVIDER_TIMEOUT");
    site.refused(quick, Code::NotFound, "RECORD_NOT_FOUND");
    site.close().await;
}

#[tokio::test]
async fn the_callers_deadline_travels_and_counts() {
    let site = Site::start().await;
    site.birth.answers_after(Duration::from_secs(30), vec![birth()]);
    // The connections stand before the clock runs.
    let unknown = pb::LookupRequest { read_mask: mask(&["nope"]), ..request() };
    site.refused(site.lookup("GA", unknown).await, Code::InvalidArgument, "FIELD_UNKNOWN");
    let mut call = tonic::Request::new(request());
    call.metadata_mut().insert("authorization", format!("Bearer {}", site.token("GA")).parse().unwrap());
    // The header alone, so that the gateway's answer arrives before this client gives up.
    call.metadata_mut().insert("grpc-timeout", "200m".parse().unwrap());
    let ended = pb::lookup_service_client::LookupServiceClient::new(site.channel.clone()).lookup(call).await;
    site.refused(ended, Code::DeadlineExceeded, "PROVIDER_TIMEOUT");
    site.close().await;
}

#[tokio::test]
async fn a_caller_who_goes_away_is_on_record_and_the_provider_is_told() {
    let site = Site::start().await;
    site.birth.answers_after(Duration::from_secs(30), vec![birth()]);
    let gone = tokio::time::timeout(Duration::from_millis(300), site.lookup("GA", request())).await;
    assert!(gone.is_err());
    for _ in 0..100 {
        if site.birth.given_up() == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(site.birth.given_up(), 1, "the source's call was cancelled");
    let entries = site.close().await;
    let outcomes: Vec<_> = entries.values().flatten().map(|entry| entry.outcome).collect();
    assert_eq!(outcomes, [Outcome::Cancelled]);
}

#[tokio::test]
async fn one_fetch_serves_all_who_wait_and_those_who_come_later() {
    let site = Site::start().await;
    site.birth.answers_after(Duration::from_millis(200), vec![birth()]);
    let (a, b) = tokio::join!(site.lookup("GA", request()), site.lookup("GA", request()));
    let later = site.lookup("GA", request()).await.unwrap();
    assert_eq!(site.birth.calls(), 1);
    assert!(later.decision.as_ref().unwrap().cached);
    assert!(!a.unwrap().decision.unwrap().cached && !b.unwrap().decision.unwrap().cached);

    // Another consumer shares nothing, and a field that was not fetched is fetched.
    site.birth.answers(vec![birth()]);
    let jk = pb::LookupRequest { read_mask: mask(&["infant_name"]), ..request() };
    assert!(!site.lookup("JK", jk).await.unwrap().decision.unwrap().cached);
    let more = pb::LookupRequest { read_mask: mask(&["father_name"]), ..request() };
    assert!(!site.lookup("GA", more).await.unwrap().decision.unwrap().cached);
    assert_eq!(site.birth.calls(), 3);

    let id = later.receipt.unwrap().request_id;
    let entries = site.close().await;
    assert!(entries[&id][0].cached);
    let fetched_by = entries[&id][0].fetched_by.unwrap().to_string();
    assert!(entries.contains_key(&fetched_by) && fetched_by != id, "the entry names the original fetch");
}

#[tokio::test]
async fn twins_are_two_records() {
    let site = Site::start().await;
    let twin = record(
        "BirthMedicalCertificate",
        &[("infant_name", "乌有康"), ("birth_datetime", &format!("{BORN}T08:41")), ("mother_id_no", &mother_id())],
    );
    site.birth.answers(vec![birth(), twin]);
    let answer = site.lookup("GA", request()).await.unwrap();
    let names: Vec<_> = answer.records.iter().map(|record| fields(record)["infant_name"].clone()).collect();
    assert_eq!(names, ["乌有安", "乌有康"]);
    let id = answer.receipt.unwrap().request_id;
    let entries = site.close().await;
    assert_eq!((entries[&id].len(), entries[&id][0].records.len()), (1, 2));
}

#[tokio::test]
async fn of_a_type_with_one_record_two_are_ambiguous() {
    let site = Site::start().await;
    let child = oncegate::cli::demo::numbers::id_number(time::macros::date!(2026 - 10 - 05), 21);
    let page = record("HouseholdRegister", &[("id_no", &child), ("name", "乌有安"), ("division_code", "990784")]);
    let ask = pb::LookupRequest {
        certificate_type: "household_register".into(),
        subjects: vec![subject("child", &[("id_no", &child), ("name", "乌有安")])],
        read_mask: mask(&["division_code"]),
        ..request()
    };
    site.registry.knows(&ask.subjects);
    site.population.answers(vec![page.clone(), page.clone()]);
    site.refused(site.lookup("RS", ask.clone()).await, Code::FailedPrecondition, "RECORD_AMBIGUOUS");
    site.population.answers(vec![page]);
    assert_eq!(fields(&site.lookup("RS", ask).await.unwrap().records[0])["division_code"], "990784");
    site.close().await;
}

#[tokio::test]
async fn what_changes_too_often_is_never_served_from_memory() {
    let site = Site::with(|config| {
        // The scripted source stands in for the register of titles, too.
        let script = config.sources.iter().find(|source| source.name == "birth").unwrap().clone();
        let titles = config.sources.iter_mut().find(|source| source.name == "real-estate-register").unwrap();
        (titles.address, titles.ca, titles.server_id) = (script.address, script.ca, script.server_id);
    })
    .await;
    let holder = mother_id();
    site.birth.answers(vec![record(
        "RealEstateTitle",
        &[("certificate_no", "T900000001"), ("holder_id_no", &holder), ("holder_name", "乌有宁")],
    )]);
    let token = site.token_with("GJJ", |claims| {
        let details = &mut claims["authorization_details"][0];
        details["matter"] = "housing_fund_loan".into();
        details["legal_basis_reference"] = "不动产登记暂行条例 第二十五条".into();
    });
    for (path, cached) in [("location", false), ("location", true), ("restrictions", false), ("restrictions", false)] {
        let ask = pb::LookupRequest {
            matter: "housing_fund_loan".into(),
            certificate_type: "real_estate_title".into(),
            subject_role: "applicant".into(),
            subjects: vec![subject("applicant", &[("id_no", &holder), ("name", "乌有宁")])],
            read_mask: mask(&[path]),
            ..request()
        };
        let answer = site.send(site.channel.clone(), Some(&token), ask).await.unwrap();
        assert_eq!(answer.decision.unwrap().cached, cached, "{path}");
    }
    assert_eq!(site.birth.calls(), 3);
    site.close().await;
}
