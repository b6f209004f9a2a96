//! Conditions of grants, from the platform's registers, the token, the clock and the record, seen from outside.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use oncegate::audit::{AccessEntry, Outcome};
use oncegate::clock::Timestamp;
use oncegate::pb::fact::{CaseState, ConsentState};
use oncegate::pb::gateway as pb;
use serde_json::json;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::harness::{BORN, Site, birth, fields, mask, request, subject};

/// GA's grants, each field under another condition.
const GRANTS: [(&str, &str); 5] = [
    ("infant_name", "consent_given"),
    ("certificate_no", "office_hours"),
    ("birth_datetime", "same_county"),
    ("mother_name", "statutory_duty"),
    ("issuing_institution", "applicant_is_parent"),
];

/// A gateway on a copy of the deployment's bundle in which GA's grants for a newborn stand under these conditions.
async fn site() -> Site {
    Site::with_bundle(|bundle| {
        let mut text =
            "matter = \"newborn_birth\"\nprovider = \"WJ\"\nwhen = [\"case_open\", \"subject_in_case\"]\n".to_owned();
        for (field, condition) in GRANTS {
            write!(
                text,
                "[[grant]]\nid = \"newborn_birth.GA.{condition}\"\nconsumer = \"GA\"\ncertificate_type = \"birth_medical_certificate\"\n\
                 roles = [\"child\"]\nmode = \"query\"\nfields = [\"{field}\"]\nwhen = [\"{condition}\"]\n\
                 replaces = \"出生医学证明\"\nexemption = \"3\"\nscene = \"出生登记\"\n\
                 valid_from = \"2026-01-01\"\nvalid_until = \"2027-12-31\"\n"
            )
            .unwrap();
        }
        std::fs::write(bundle.join("grants/newborn_birth/WJ.toml"), text).unwrap();
    })
    .await
}

async fn ask(site: &Site, paths: &[&str]) -> Result<pb::LookupResponse, Status> {
    site.lookup("GA", pb::LookupRequest { read_mask: mask(paths), ..request() }).await
}

/// The condition that the refusal names.
fn condition(status: &Status) -> String {
    let details = status.get_error_details();
    details.error_info().unwrap().metadata.get("condition").cloned().unwrap_or_default()
}

#[tokio::test]
pub(crate) async fn each_condition_that_does_not_hold_has_its_reason() {
    let site = site().await;
    site.birth.answers(vec![birth()]);
    let denied = Code::PermissionDenied;

    site.registry.says(CaseState::Closed, &request().subjects);
    let closed = site.refused(ask(&site, &["mother_name"]).await, denied, "CASE_NOT_OPEN");
    assert_eq!(condition(&closed), "case_open");
    site.registry.says(CaseState::None, &[]);
    site.refused(ask(&site, &["mother_name"]).await, denied, "CASE_NOT_OPEN");

    site.registry.fails(Code::Internal);
    let unknown = site.refused(ask(&site, &["mother_name"]).await, Code::Unavailable, "CONDITION_UNKNOWN");
    assert!(!format!("{unknown:?}").contains("张三"), "a registry's own words are not passed on");
    site.registry.says(CaseState::Unspecified, &request().subjects);
    site.refused(ask(&site, &["mother_name"]).await, Code::Unavailable, "CONDITION_UNKNOWN");

    // An empty attribute would equal another one: such a case is not believed.
    let mut parties = request().subjects;
    parties.push(subject("applicant", &[("id_no", "")]));
    site.registry.knows(&parties);
    site.refused(ask(&site, &["mother_name"]).await, Code::Unavailable, "CONDITION_UNKNOWN");

    // The mother is right, and nothing tells which of her children it is.
    site.registry.knows(&[subject("child", &[]), request().subjects[1].clone()]);
    let whose = site.refused(ask(&site, &["mother_name"]).await, Code::Unavailable, "CONDITION_UNKNOWN");
    assert_eq!(condition(&whose), "subject_in_case");
    tokio::time::sleep(Duration::from_millis(1_100)).await;

    // Another mother, and nobody who is the child.
    let other = subject(
        "mother",
        &[("id_no", &oncegate::cli::demo::numbers::id_number(time::macros::date!(1990 - 01 - 01), 7))],
    );
    site.registry.knows(&[subject("child", &[("birth_date", BORN)]), other]);
    let stranger = site.refused(ask(&site, &["mother_name"]).await, denied, "SUBJECT_NOT_IN_CASE");
    assert_eq!(condition(&stranger), "subject_in_case");
    site.close().await;
}

#[tokio::test]
pub(crate) async fn consent_hours_region_and_basis_are_conditions() {
    let site = site().await;
    site.birth.answers(vec![birth()]);
    let denied = Code::PermissionDenied;
    site.refused(ask(&site, &["infant_name"]).await, denied, "CONSENT_MISSING");
    let consent = || {
        site.token_with("GA", |claims| {
            claims["authorization_details"][0]["legal_basis"] = json!("CONSENT");
            claims["authorization_details"][0]["legal_basis_reference"] = json!("CONSENT-1");
        })
    };
    let with_consent = async |paths: &[&str]| {
        let message = pb::LookupRequest { read_mask: mask(paths), ..request() };
        site.send(site.channel.clone(), Some(&consent()), message).await
    };
    site.refused(with_consent(&["infant_name"]).await, denied, "CONSENT_MISSING");
    site.registry.consent(Err(Code::Unavailable));
    site.refused(with_consent(&["infant_name"]).await, Code::Unavailable, "CONDITION_UNKNOWN");
    site.registry.consent(Ok(ConsentState::Revoked));
    site.refused(with_consent(&["infant_name"]).await, denied, "CONSENT_MISSING");
    site.registry.consent(Ok(ConsentState::Given));
    let given = with_consent(&["infant_name"]).await.unwrap();
    assert_eq!(fields(&given.records[0])["infant_name"], "乌有安");
    // Revoked, it is believed for `fresh_s` and not a moment longer.
    site.registry.consent(Ok(ConsentState::Revoked));
    let asked = site.registry.asked_for_consent();
    with_consent(&["infant_name"]).await.unwrap();
    assert_eq!(site.registry.asked_for_consent(), asked, "from memory");
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    site.refused(with_consent(&["infant_name"]).await, denied, "CONSENT_MISSING");
    assert_eq!(site.registry.asked_for_consent(), asked + 1);
    site.refused(with_consent(&["mother_name"]).await, denied, "BASIS_NOT_ACCEPTED");

    site.registry.is_in("990100");
    // An open case is remembered; half a minute later it is asked for again.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    site.refused(ask(&site, &["birth_datetime"]).await, denied, "REGION_MISMATCH");
    site.close().await;
}

#[tokio::test]
pub(crate) async fn a_grant_to_come_and_a_deny_have_their_reasons() {
    let site = Site::with_bundle(|bundle| {
        let grant = |id: &str, field: &str, from: &str| {
            format!(
                "[[grant]]\nid = \"{id}\"\nconsumer = \"GA\"\ncertificate_type = \"birth_medical_certificate\"\n\
                 roles = [\"child\"]\nmode = \"query\"\nfields = [\"{field}\"]\nreplaces = \"x\"\nexemption = \"3\"\n\
                 scene = \"x\"\nvalid_from = \"{from}\"\nvalid_until = \"2099-12-31\"\n"
            )
        };
        let deny = "[[deny]]\nid = \"d\"\nconsumers = [\"*\"]\ncertificate_type = \"birth_medical_certificate\"\n\
                    fields = [\"sex\"]\nreason = \"x\"\n";
        let when = deny.replace("\"d\"", "\"e\"").replace("\"sex\"", "\"certificate_no\"");
        let when = when + "when = [\"case_open\"]\n" + &grant("c", "certificate_no", "2026-01-01");
        let head = "matter = \"newborn_birth\"\nprovider = \"WJ\"\n";
        let (come, now) =
            (grant("newborn_birth.GA.to_come", "infant_name", "2090-01-01"), grant("b", "sex", "2026-01-01"));
        std::fs::write(bundle.join("grants/newborn_birth/WJ.toml"), [head, &come, &now, deny, &when].concat()).unwrap();
    })
    .await;
    site.registry.fails(Code::Internal);
    site.refused(ask(&site, &["infant_name"]).await, Code::PermissionDenied, "GRANT_NOT_YET_VALID");
    site.refused(ask(&site, &["sex"]).await, Code::PermissionDenied, "DENIED");
    site.refused(ask(&site, &["certificate_no"]).await, Code::Unavailable, "CONDITION_UNKNOWN");
    assert_eq!(site.birth.calls(), 0);
    site.close().await;
}

#[tokio::test]
pub(crate) async fn what_decides_on_the_record_is_told_to_the_auditor_alone() {
    let site = site().await;
    site.birth.answers(vec![birth()]);
    let answer = ask(&site, &["issuing_institution", "mother_name"]).await.unwrap();
    assert_eq!(fields(&answer.records[0]).len(), 2, "the mother applies");
    let asked = site.birth.last_request().fields.unwrap().paths;
    assert!(asked.contains(&"father_id_no".to_owned()), "what the condition is decided on is asked for: {asked:?}");

    // An agent applies.
    let agent = subject(
        "applicant",
        &[("id_no", &oncegate::cli::demo::numbers::id_number(time::macros::date!(1990 - 01 - 01), 7))],
    );
    let mut parties = request().subjects;
    parties.push(agent);
    site.registry.knows(&parties);
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let partly = ask(&site, &["issuing_institution", "mother_name"]).await.unwrap();
    assert_eq!(fields(&partly.records[0]).into_keys().collect::<Vec<_>>(), ["mother_name"]);
    let withheld = &partly.records[0].withheld[0];
    assert_eq!(
        (withheld.path.as_str(), withheld.reason()),
        ("issuing_institution", pb::WithheldReason::RecordCondition)
    );
    assert_eq!((withheld.condition.as_str(), withheld.retryable), ("", false));
    let refused = site.refused(ask(&site, &["issuing_institution"]).await, Code::PermissionDenied, "RECORD_CONDITION");
    assert_eq!(condition(&refused), "", "the caller is not told which");

    let (first, second) = (answer.receipt.unwrap().request_id, partly.receipt.unwrap().request_id);
    let entries = site.close().await;
    let fact = |entry: &AccessEntry, name: &str| entry.facts.iter().find(|(known, _)| known == name).unwrap().1;
    assert_eq!(entries[&first][0].outcome, Outcome::Released);
    assert_eq!(fact(&entries[&first][0], "applicant_is_parent"), Some(true));
    assert_eq!(fact(&entries[&second][0], "applicant_is_parent"), Some(false));
    assert_eq!(fact(&entries[&second][0], "case_open"), Some(true));
    let why = &entries[&second][0].records[0].withheld[0];
    assert_eq!(why.detail, "APPLICANT_NOT_PARENT", "the entry tells the exact reason");
}

#[tokio::test]
async fn an_explanation_says_what_a_lookup_would_release_and_asks_no_department() {
    let site = site().await;
    site.birth.answers(vec![birth()]);
    let paths = ["mother_name", "issuing_institution", "infant_name", "sex", "birth_weight_g"];
    let question = |paths: &[&str]| {
        let pb::LookupRequest { matter, case_id, certificate_type, subject_role, subjects, .. } = request();
        let read_mask = mask(paths);
        pb::ExplainRequest { matter, case_id, certificate_type, subject_role, subjects, read_mask, verify: false }
    };
    let explained = site.explain(question(&paths)).await.unwrap();
    assert_eq!(site.birth.calls(), 0);
    let line = |field: &pb::ExplainedField| {
        let form = |form: &pb::ExplainedForm| {
            let parts = [form.form().as_str_name(), &form.condition, &form.when].map(str::to_owned);
            format!("{} {:?}", parts.join(" "), form.reason())
        };
        format!("{}: {}", field.path, field.forms.iter().map(form).collect::<Vec<_>>().join("; "))
    };
    let lines: Vec<_> = explained.fields.iter().map(line).collect();
    assert_eq!(
        lines,
        [
            "infant_name: FIELD_FORM_WITHHELD consent_given  ConsentMissing",
            "sex: FIELD_FORM_WITHHELD   NotGranted",
            "birth_weight_g: FIELD_FORM_WITHHELD   NeverShared",
            "mother_name: FIELD_FORM_RELEASED   Unspecified",
            "issuing_institution: FIELD_FORM_RELEASED  applicant_is_parent Unspecified; \
             FIELD_FORM_WITHHELD  applicant_is_parent not known true RecordCondition",
        ]
    );
    assert_eq!(explained.grants, ["newborn_birth.GA.statutory_duty", "newborn_birth.GA.applicant_is_parent"]);

    // The live path, for a mother who applies.
    let answer = ask(&site, &paths).await.unwrap();
    assert_eq!(
        fields(&answer.records[0]).into_keys().collect::<Vec<_>>(),
        ["issuing_institution", "mother_name"],
        "as explained"
    );
    assert_eq!(answer.decision.unwrap().policy, explained.policy);

    // Nothing to release is an explanation; a call that is wrong is refused as a lookup is.
    let nothing = site.explain(question(&["sex"])).await.unwrap();
    assert_eq!((nothing.fields.len(), nothing.grants.len()), (1, 0));
    let wrong = site.explain(question(&["sexx"])).await;
    site.refused(wrong, Code::InvalidArgument, "FIELD_UNKNOWN");
    site.registry.fails(Code::Internal);
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let unknown = site.explain(question(&["mother_name"])).await.unwrap();
    let form = &unknown.fields[0].forms[0];
    assert_eq!((form.reason(), form.retryable), (pb::WithheldReason::ConditionUnknown, true));

    let entries = site.close().await;
    let entry = |receipt: Option<pb::Receipt>| entries[&receipt.unwrap().request_id][0].clone();
    let some = entry(explained.receipt);
    assert_eq!((some.outcome, some.records.len(), some.answer_digest), (Outcome::Partial, 0, None));
    assert_eq!((some.method.rsplit('/').next(), some.withheld.len(), some.error_reason), (Some("Explain"), 3, 0));
    assert_eq!(entry(nothing.receipt).outcome, Outcome::Denied);
}

#[tokio::test]
pub(crate) async fn hours_are_those_of_china_on_a_working_day() {
    let site = site().await;
    site.birth.answers(vec![birth()]);
    let local = site.clock.now().in_china();
    // The next moment of this hour of day on a working day of this week or the next, within the token's and the
    // certificates' validity: the clock is the gateway's own.
    let to = |hour: i64| {
        let mut moment = local.replace_time(time::Time::MIDNIGHT) + time::Duration::hours(hour);
        while moment <= local || matches!(moment.weekday(), time::Weekday::Saturday | time::Weekday::Sunday) {
            moment += time::Duration::DAY;
        }
        Duration::try_from(moment - local).unwrap()
    };
    let (open, closed) = (to(10), to(20));
    let year_known = (local + time::Duration::days(4)).year() == 2026;
    let (first, second) = if open < closed { (open, closed) } else { (closed, open) };
    for wait in [first, second.checked_sub(first).unwrap()] {
        site.clock.advance(wait);
        let hour = site.clock.now().in_china().hour();
        let result = ask(&site, &["certificate_no"]).await;
        match (year_known, hour) {
            (_, 20) => drop(site.refused(result, Code::PermissionDenied, "OUTSIDE_HOURS")),
            (true, _) => assert_eq!(fields(&result.unwrap().records[0]).len(), 1),
            (false, _) => drop(site.refused(result, Code::Unavailable, "CONDITION_UNKNOWN")),
        }
    }
    site.close().await;
}

/// The table of holidays ends with a year; a gateway whose policy names office hours serves on, but for these.
#[tokio::test]
async fn a_year_without_holidays_hinders_nothing_else() {
    let site = site().await;
    site.birth.answers(vec![birth()]);
    let local = site.clock.now().in_china();
    // A Monday.
    let monday = time::macros::datetime!(2027-01-04 10:00 +8);
    site.clock.advance(Duration::try_from(monday - local).unwrap_or_default());
    let mut metrics = String::new();
    for _ in 0..100 {
        metrics = site.metrics().await;
        if metrics.contains("oncegate_policy_workdays_end_seconds 18") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let today = site.clock.now().date_in_china();
    let end = format!("oncegate_policy_workdays_end_seconds {}", Timestamp::start_of_day_in_china(today).as_secs());
    assert!(metrics.contains(&end), "{end} is not in {metrics}");
    assert!(site.observed("/readyz").await.starts_with("HTTP/1.1 200"));
    assert_eq!(fields(&ask(&site, &["mother_name"]).await.unwrap().records[0]).len(), 1);
    let unknown = site.refused(ask(&site, &["certificate_no"]).await, Code::Unavailable, "CONDITION_UNKNOWN");
    assert_eq!(condition(&unknown), "office_hours");
    site.close().await;
}

#[tokio::test]
async fn an_open_case_is_asked_for_once_in_its_time_and_a_closed_one_each_time() {
    let site = Site::with(|config| config.registries.case.as_mut().unwrap().fresh_s = 600).await;
    site.birth.answers(vec![birth()]);
    for _ in 0..5 {
        site.lookup("GA", request()).await.unwrap();
    }
    assert_eq!(site.registry.asked(), 1);
    let case = |case_id: &str| pb::LookupRequest { case_id: case_id.into(), ..request() };
    let token = site.token_with("GA", |claims| claims["authorization_details"][0]["case"] = json!("HS-TEST-000002"));
    site.registry.says(CaseState::Closed, &request().subjects);
    for asked in [2, 3] {
        let closed = site.send(site.channel.clone(), Some(&token), case("HS-TEST-000002")).await;
        site.refused(closed, Code::PermissionDenied, "CASE_NOT_OPEN");
        assert_eq!(site.registry.asked(), asked);
    }
    site.close().await;
}

#[tokio::test]
pub(crate) async fn a_registry_that_hangs_costs_its_time_and_releases_nothing() {
    let site =
        Site::with(|config| config.registries.case.as_mut().unwrap().address = "https://127.0.0.1:9".into()).await;
    site.birth.answers(vec![birth()]);
    let down = site.refused(site.lookup("GA", request()).await, Code::Unavailable, "CONDITION_UNKNOWN");
    assert_eq!(condition(&down), "case_open");
    assert_eq!(site.birth.calls(), 0, "nothing could be released, so nobody was asked");
    site.close().await;
}

#[tokio::test]
async fn a_registry_has_bounds() {
    let refused = Site::refused_to_start(|config| {
        config.registries.case.as_mut().unwrap().fresh_s = 99_999_999_999;
        config.registries.consent.as_mut().unwrap().timeout_ms = u64::MAX;
    })
    .await;
    assert!(refused.contains("[registries.case] fresh_s is 99999999999; it must be 0 to 3600"), "{refused}");
    assert!(refused.contains("[registries.consent] timeout_ms is 18446744073709551615"), "{refused}");
}

#[tokio::test]
async fn a_condition_without_its_registry_does_not_start() {
    let bundle = Path::new("deploy/heshan/policy").canonicalize().unwrap();
    let refused = Site::refused_to_start(|config| {
        config.registries.case = None;
        config.policy.bundle = bundle;
    })
    .await;
    assert!(refused.contains("[registries.case] is missing"), "{refused}");
}
