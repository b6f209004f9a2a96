//! The grants of Heshan, with the real catalog, a real token and a real record.

use std::path::Path;
use std::sync::Arc;

use prost::Message as _;
use prost_reflect::{DynamicMessage, Value};
use time::macros::date;

use super::super::decide::Ask;
use super::super::settle;
use super::super::{
    Case, FactSet, Given, Mode, Party, Permit, Policy, Stated, Truths, Vocabulary, WithheldReason, answers_subject,
};
use super::{department, forms, project};
use crate::catalog::{CaseSubject, Catalog, Fields, ValueKind};
use crate::clock::Timestamp;
use crate::identity::mint::MintRequest;
use crate::identity::{Basis, Caller, Purpose, TokenVerifier, testing};
use crate::ids::CaseId;

/// A number with a valid check digit, from the annex of GB 11643.
const MOTHER: &str = "11010519491231002X";

/// 2026-06-01 12:00 in China.
const JUNE: Timestamp = Timestamp::from_secs(1_780_286_400);

fn heshan() -> (Arc<Catalog>, Policy) {
    let bundle = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/heshan/policy");
    let policy = Policy::open(&bundle).unwrap_or_else(|faults| panic!("{faults}"));
    (policy.catalog().clone(), policy)
}

/// A case that is open and has these people in it.
fn given(people: &[CaseSubject]) -> Given {
    let party = |of: &CaseSubject| Party { role: of.role.clone(), attributes: of.attributes.clone() };
    let case = Case { open: true, region: String::new(), parties: people.iter().map(party).collect() };
    Given { case: Some(Arc::new(case)), consent: None }
}

#[test]
fn every_grant_of_heshan_loads_and_gives_what_it_says() {
    let (catalog, policy) = heshan();
    // 114 in the files, two of them to all five utilities of a matter, and one more to show expiry.
    assert_eq!(policy.grants().count(), 112 + 2 * 5 + 1);
    assert_eq!(policy.grants().filter(|grant| grant.mode == Mode::Verify).count(), 35 + 2 * 4);
    let today = date!(2026 - 06 - 01);
    let facts: FactSet = (0..policy.vocabulary().facts().len()).collect();
    let request_facts = facts - policy.vocabulary().record_facts();
    let given = given(&[]);
    for grant in policy.grants() {
        let ty = catalog.certificate_type(&grant.certificate_type).unwrap();
        let permit = policy.table.decide(
            &Ask {
                consumer: &grant.consumer,
                matter: &grant.matter,
                certificate_type: ty,
                role: &grant.roles[0],
                want: grant.fields,
                matches: Fields::EMPTY,
                basis: Basis::StatutoryDuty,
                reference: &grant.legal_basis[0],
                minor: true,
                mode: Mode::Query,
                today,
                given: &given,
            },
            known_true(policy.vocabulary()).only(request_facts),
            policy.hash,
        );
        let reason = permit.refusal().map(|refusal| refusal.reason);
        let expected = match grant.mode {
            Mode::Verify => Some(WithheldReason::VerifyOnly),
            _ if grant.valid_until < today => Some(WithheldReason::GrantExpired),
            _ => None,
        };
        assert_eq!(reason, expected, "{}", grant.id);
        if expected.is_none() {
            let forms = settle::forms(&permit, favourable(&permit));
            assert!(permit.withheld().is_empty() && forms.released == grant.clear(), "{}", grant.id);
            assert_eq!(forms.masked, grant.masks, "{}", grant.id);
        }
    }
    let masked: Vec<_> =
        policy.grants().filter(|grant| !grant.masks.is_empty()).map(|grant| grant.id.as_ref()).collect();
    assert_eq!(
        masked,
        [
            "disability_services.MZ.disability_certificate",
            "disability_services.CL.household_register",
            "newborn_birth.JK.birth_medical_certificate",
        ]
    );
    assert_eq!(policy.grants_to(&department("RS"), "newborn_birth").count(), 2);
}

/// What the record says if it lets everything go: grants' conditions hold, those of denies do not.
fn favourable(permit: &Permit) -> Truths {
    let mut truths = Truths::NONE;
    permit.record_facts.iter().for_each(|fact| truths.set(fact, Some(true)));
    permit.pending.iter().flat_map(|deny| deny.when.iter()).for_each(|fact| truths.set(fact, Some(false)));
    truths
}

/// Every fact holds.
fn known_true(vocabulary: &Vocabulary) -> Truths {
    let mut truths = Truths::NONE;
    (0..vocabulary.facts().len()).for_each(|fact| truths.set(fact, Some(true)));
    truths
}

/// A consumer's token for the matter `newborn_birth` that cites `basis_reference`.
fn purpose(consumer: &str, basis_reference: &str, now: Timestamp) -> (Caller, Arc<Purpose>) {
    purpose_of("newborn_birth", consumer, basis_reference, now)
}

fn purpose_of(matter: &str, consumer: &str, basis_reference: &str, now: Timestamp) -> (Caller, Arc<Purpose>) {
    let caller = testing::caller(&format!("spiffe://heshan.gov.example/{consumer}/system"));
    let key = testing::signing_key(&rcgen::PKCS_ECDSA_P256_SHA256);
    let (consumer, case): (_, CaseId) = (department(consumer), "HS-2026-000001".parse().unwrap());
    let (_dir, mut config) = testing::config(&key.jwks());
    config.issuers[0].consumers = vec![consumer.clone()];
    let verifier = TokenVerifier::load(&config, testing::DOMAIN, |_| true).unwrap();
    let request = MintRequest { matter, basis_reference, ..testing::request(&caller, &consumer, &case, now) };
    let purpose = verifier.verify(&caller, &key.mint(&request).unwrap(), now).unwrap();
    (caller, purpose)
}

fn subject(role: &str, attributes: &[(&str, &str)]) -> CaseSubject {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    CaseSubject { role: role.into(), attributes: attributes.iter().map(owned).collect() }
}

#[test]
fn a_birth_certificate_leaves_as_granted_and_only_about_the_child_asked_for() {
    let (catalog, policy) = heshan();
    let now = JUNE;
    let (caller, purpose) = purpose("GA", "户口登记条例 第七条", now);
    let ty = catalog.certificate_type("birth_medical_certificate").unwrap();
    let child = subject("child", &[("birth_date", "2026-03-01")]);
    let all = [child.clone(), subject("mother", &[("id_no", MOTHER)])];
    let about = catalog.resolve(ty, &child, &all).unwrap();
    let leaf = |path: &str| ty.expand(path).unwrap();
    let given = given(&all);
    let decide = |want: Fields, now: Timestamp| -> Permit {
        policy.decide(&caller, &purpose, &about, Mode::Query, want, &given, now)
    };

    let permit = decide(leaf("infant_name") | leaf("birth_weight_g") | leaf("mother_id_type"), now);
    assert_eq!(forms(&permit).released, leaf("infant_name"));
    let why = |path: &str| permit.withheld().iter().find(|at| ty.path(at.leaf) == path).map(|at| at.reason);
    assert_eq!(why("birth_weight_g"), Some(WithheldReason::NeverShared));
    assert_eq!(why("mother_id_type"), Some(WithheldReason::NotGranted));
    assert_eq!(permit.fetch_fields(), leaf("infant_name") | leaf("mother_id_no") | leaf("birth_datetime"));
    assert_eq!(permit.policy_hash(), policy.hash());

    let record = |born: &str| {
        let mut record = DynamicMessage::new(catalog.pool().get_message_by_name(&ty.message).unwrap());
        for (field, value) in [("infant_name", "李小明"), ("mother_id_no", MOTHER), ("birth_datetime", born)] {
            record.set_field_by_name(field, Value::String(value.into()));
        }
        record.set_field_by_name("birth_weight_g", Value::U32(3_250));
        record.encode_to_vec()
    };
    assert!(answers_subject(&about, &record("2026-03-01T08:15"), &[]));
    assert!(!answers_subject(&about, &record("2026-03-02T08:15"), &[]));
    let projected = project(&permit, &record("2026-03-01T08:15")).unwrap();
    assert_eq!((projected.released, projected.unknown_dropped), (leaf("infant_name"), 0));
    let shown = DynamicMessage::decode(catalog.pool().get_message_by_name(&ty.message).unwrap(), projected.bytes);
    assert_eq!(shown.unwrap().fields().map(|(field, _)| field.name().to_owned()).collect::<Vec<_>>(), ["infant_name"]);

    // The last day ends at midnight in China, 16:00 UTC.
    let last_second = Timestamp::from_secs(1_830_268_799);
    assert_eq!(last_second.to_rfc3339(), "2027-12-31T15:59:59.000000Z");
    assert!(decide(leaf("infant_name"), last_second).may_release());
    let refusal =
        decide(leaf("infant_name"), Timestamp::from_secs(last_second.as_secs() + 1)).refusal().cloned().unwrap();
    assert_eq!(refusal.reason, WithheldReason::GrantExpired);
    assert_eq!(refusal.grant.as_deref(), Some("newborn_birth.GA.birth_medical_certificate"));
}

#[test]
fn of_a_subject_under_14_every_field_needs_a_basis() {
    let (catalog, policy) = heshan();
    let ty = catalog.certificate_type("household_register").unwrap();
    let want = ty.expand("division_code").unwrap();
    assert!(!ty.sensitive.intersects(want), "of an adult it needs none");
    for (id_no, reference, reason) in [
        (MOTHER, "", None),
        ("999999201503010016", "", Some(WithheldReason::BasisMissing)),
        ("999999201503010016", "户口登记条例 第七条", None),
    ] {
        let (caller, purpose) = purpose("RS", reference, JUNE);
        let child = subject("child", &[("id_no", id_no), ("name", "李小明")]);
        let about = catalog.resolve(ty, &child, std::slice::from_ref(&child)).unwrap();
        let given = given(std::slice::from_ref(&child));
        let permit = policy.decide(&caller, &purpose, &about, Mode::Query, want, &given, JUNE);
        assert_eq!(permit.refusal().map(|refusal| refusal.reason), reason, "{reference}");
    }
}

/// Where no key tells how old somebody is, nobody is taken for an adult; an entity is none.
#[test]
fn whose_age_no_key_tells_may_be_a_child() {
    let (catalog, policy) = heshan();
    for (matter, consumer, code, path, subject, reason) in [
        (
            "newborn_birth",
            "RS",
            "household_register",
            "division_code",
            [("household_no", "H1"), ("head_name", "李大明")],
            true,
        ),
        ("newborn_birth", "RS", "household_register", "division_code", [("id_no", MOTHER), ("name", "李大明")], false),
    ]
    .map(|(matter, consumer, code, path, keys, minor)| {
        (matter, consumer, code, path, subject("child", &keys), minor.then_some(WithheldReason::BasisMissing))
    }) {
        let ty = catalog.certificate_type(code).unwrap();
        let want = ty.expand(path).unwrap();
        let about = catalog.resolve(ty, &subject, std::slice::from_ref(&subject)).unwrap();
        let given = given(std::slice::from_ref(&subject));
        for reference in ["", "户口登记条例 第七条"] {
            let (caller, purpose) = purpose_of(matter, consumer, reference, JUNE);
            let permit = policy.decide(&caller, &purpose, &about, Mode::Query, want, &given, JUNE);
            let due = reason.filter(|_| reference.is_empty());
            assert_eq!(permit.refusal().map(|refusal| refusal.reason), due, "{code} {:?}", subject.attributes);
        }
    }
}

/// The keys alone: a birth date counts, another role's number does not, an entity is no child.
#[test]
fn age_is_told_by_the_subject_s_own_keys() {
    let (catalog, _) = heshan();
    let child_no = "999999201503010016";
    let today = date!(2026 - 06 - 01);
    for (code, subjects, minor) in [
        (
            "vaccination_record",
            vec![
                subject("child", &[("name", "李小明"), ("birth_date", "2000-01-01")]),
                subject("guardian", &[("id_no", MOTHER)]),
            ],
            false,
        ),
        (
            "vaccination_record",
            vec![
                subject("child", &[("name", "李小明"), ("birth_date", "2020-01-01")]),
                subject("guardian", &[("id_no", MOTHER)]),
            ],
            true,
        ),
        (
            "birth_medical_certificate",
            vec![
                subject("child", &[("birth_certificate_no", "N900000099"), ("name", "李小明")]),
                subject("mother", &[("id_no", MOTHER)]),
            ],
            true,
        ),
        ("real_estate_title", vec![subject("child", &[("id_no", child_no), ("name", "李小明")])], true),
        ("real_estate_title", vec![subject("operator", &[("title_certificate_no", "T1"), ("name", "某店")])], true),
        ("real_estate_title", vec![subject("entity", &[("title_certificate_no", "T1"), ("name", "某公司")])], false),
        ("real_estate_title", vec![subject("entity", &[("id_no", child_no), ("name", "李小明")])], true),
        ("real_estate_title", vec![subject("operator", &[("uscc", "91990784MA0L3DAK5N"), ("name", "某公司")])], false),
    ] {
        let ty = catalog.certificate_type(code).unwrap();
        let about = catalog.resolve(ty, &subjects[0], &subjects).unwrap_or_else(|error| panic!("{code}: {error}"));
        assert_eq!(super::super::may_be_under_14(&about, today), minor, "{code} {:?}", subjects[0].attributes);
    }
}

/// The mother's number alone does not tell which of her children is the one of the case.
#[test]
fn the_subject_itself_must_be_known_to_the_case() {
    let (catalog, policy) = heshan();
    let (caller, purpose) = purpose("GA", "户口登记条例 第七条", JUNE);
    let ty = catalog.certificate_type("birth_medical_certificate").unwrap();
    let mother = subject("mother", &[("id_no", MOTHER)]);
    let asked = subject("child", &[("birth_date", "2019-01-01")]);
    let about = catalog.resolve(ty, &asked, &[asked.clone(), mother.clone()]).unwrap();
    let want = ty.expand("infant_name").unwrap();
    let unknown = Some(WithheldReason::ConditionUnknown);
    for (known, reason) in [
        (subject("child", &[]), unknown),
        (subject("child", &[("id_no", "999999201503010016"), ("name", "李小明")]), unknown),
        (subject("child", &[("birth_date", "2026-03-01")]), Some(WithheldReason::SubjectNotInCase)),
        (subject("child", &[("birth_date", "2019-01-01")]), None),
    ] {
        let given = given(&[known.clone(), mother.clone()]);
        let permit = policy.decide(&caller, &purpose, &about, Mode::Query, want, &given, JUNE);
        assert_eq!(permit.refusal().map(|refusal| refusal.reason), reason, "{:?}", known.attributes);
    }
}

/// What is not known equals nothing, not even what else is not known.
#[test]
fn an_empty_number_is_nobody_s() {
    let (catalog, policy) = heshan();
    let ty = catalog.certificate_type("birth_medical_certificate").unwrap();
    let index = policy.vocabulary().index("applicant_is_parent").unwrap();
    let truth = |father: &str, applicant: &str| {
        let mut record = DynamicMessage::new(catalog.pool().get_message_by_name(&ty.message).unwrap());
        for (field, value) in [("mother_id_no", MOTHER), ("father_id_no", father)] {
            record.set_field_by_name(field, Value::String(value.into()));
        }
        let given = given(&[subject("applicant", &[("id_no", applicant), ("uscc", "91990784MA0L3DAK5N")])]);
        let record = record.encode_to_vec();
        let of = FactSet::one(index);
        policy.vocabulary().record_truths(of, ty, given.case.as_deref(), &record).unwrap().of(index)
    };
    assert_eq!(truth("", ""), Some(false));
    assert_eq!(truth("", MOTHER), Some(true));
    assert_eq!(truth("999999201503010016", "999999201503010016"), Some(true));
}

/// Stated facts and the live path come to the same, also where the register did not answer and only the record decides.
#[test]
fn what_is_explained_without_a_case_is_what_is_decided_without_one() {
    let copy = tempfile::tempdir().unwrap();
    super::signed::copy_tree(&Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/heshan/policy"), copy.path());
    let file = copy.path().join("grants/social_assistance/GA.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replacen("when = [\"case_open\", \"subject_in_case\"]\n", "", 1)).unwrap();
    let policy = Policy::open(copy.path()).unwrap_or_else(|faults| panic!("{faults}"));
    let ty = policy.catalog().certificate_type("household_register").unwrap();
    let citation = "社会救助暂行办法 第五十八条";
    let (caller, purpose) = purpose_of("social_assistance", "MZ", citation, JUNE);
    let applicant = subject("applicant", &[("id_no", MOTHER), ("name", "李大明")]);
    let about = policy.catalog().resolve(ty, &applicant, std::slice::from_ref(&applicant)).unwrap();
    let want: Fields = (0..ty.leaves.len()).collect();
    let case_open = policy.vocabulary().index("case_open").unwrap();
    for (given, known) in [(given(std::slice::from_ref(&applicant)), Some(true)), (Given::default(), None)] {
        let mut truths = Truths::NONE;
        truths.set(case_open, known);
        let stated = policy.explain(&Stated {
            consumer: &department("MZ"),
            matter: "social_assistance",
            certificate_type: ty,
            role: "applicant",
            mode: Mode::Query,
            want,
            basis: Basis::StatutoryDuty,
            reference: citation,
            minor: false,
            today: JUNE.date_in_china(),
            facts: FactSet::one(case_open),
            truths,
        });
        let live = policy.decide(&caller, &purpose, &about, Mode::Query, want, &given, JUNE).explain();
        assert_eq!(stated.fields, live.fields, "{known:?}");
        let verdict = stated.verdict(ty.leaf("address").unwrap()).unwrap().to_string();
        let due = if known.is_some() {
            "clear if applicant_in_household; else withheld"
        } else {
            "withheld CONDITION_UNKNOWN"
        };
        assert_eq!(verdict, due);
    }
}

/// The table of the deployment has 2026 alone, and no grant depends on it.
#[test]
fn a_year_without_holidays_is_told_before_it_hinders_and_only_where_it_does() {
    let (_, policy) = heshan();
    assert_eq!(policy.workdays_end(date!(2026 - 12 - 31)), None);
    assert_eq!(policy.warnings(date!(2026 - 12 - 31)), [""; 0]);
    let copy = tempfile::tempdir().unwrap();
    super::signed::copy_tree(&Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/heshan/policy"), copy.path());
    let file = copy.path().join("grants/newborn_birth/WJ.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replacen("when = [\"case_open\"", "when = [\"office_hours\", \"case_open\"", 1))
        .unwrap();
    let policy = Policy::open(copy.path()).unwrap_or_else(|faults| panic!("{faults}"));
    for (today, end, warnings) in [
        (date!(2026 - 11 - 16), date!(2027 - 01 - 01), 0),
        (date!(2026 - 11 - 17), date!(2027 - 01 - 01), 1),
        (date!(2027 - 03 - 01), date!(2027 - 03 - 01), 1),
    ] {
        assert_eq!(policy.workdays_end(today), Some(end));
        let said = policy.warnings(today);
        assert_eq!(said.len(), warnings, "{today}: {said:?}");
        assert!(said.iter().all(|warning| warning.contains("holidays.toml lacks 2027")), "{said:?}");
    }
}

#[test]
fn a_holder_of_a_title_may_be_a_child() {
    let (catalog, policy) = heshan();
    let ty = catalog.certificate_type("real_estate_title").unwrap();
    let want = ty.expand("status").unwrap();
    assert!(!ty.sensitive.intersects(want), "of an adult it needs no basis");
    for (id_no, reason) in [(MOTHER, None), ("999999201503010016", Some(WithheldReason::BasisMissing))] {
        let (caller, purpose) = purpose_of("school_enrolment", "JY", "", JUNE);
        let child = subject("child", &[("id_no", id_no), ("name", "李小明")]);
        let about = catalog.resolve(ty, &child, std::slice::from_ref(&child)).unwrap();
        assert_eq!(about.keys()[0].kind, ValueKind::PersonOrEntityNo);
        let given = given(std::slice::from_ref(&child));
        let permit = policy.decide(&caller, &purpose, &about, Mode::Query, want, &given, JUNE);
        assert_eq!(permit.refusal().map(|refusal| refusal.reason), reason);
    }
}
