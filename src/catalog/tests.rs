//! The built-in catalog and the files of `deploy/heshan`. Faults have their tests in `tests/faults.rs`.

mod faults;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use super::*;

static HESHAN: LazyLock<Catalog> = LazyLock::new(|| Catalog::load(&heshan()).unwrap());

fn heshan() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/heshan/policy")
}

fn ty(code: &str) -> &'static Arc<CertificateType> {
    HESHAN.certificate_type(code).unwrap()
}

fn subject(role: &str, attributes: &[(&str, &str)]) -> CaseSubject {
    let attributes = attributes.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    CaseSubject { role: role.into(), attributes }
}

/// Resolves with the first subject as the one that the certificate is about.
fn resolve(code: &str, subjects: &[CaseSubject]) -> Result<Subject, SubjectError> {
    HESHAN.check_subjects(subjects)?;
    HESHAN.resolve(ty(code), &subjects[0], subjects)
}

fn keys(subject: &Subject) -> Vec<(&str, &str)> {
    subject.keys().iter().map(|key| (key.name.as_str(), key.value.as_str())).collect()
}

const MOTHER_ID: &str = "11010519491231002X";

#[test]
fn the_built_in_types() {
    // Code, provider, leaves, lookup sets, several records, freshness in seconds, subject a minor.
    let expected = [
        ("birth_medical_certificate", "WJ", 20, 2, true, 86_400, true),
        ("business_license", "SJ", 17, 4, true, 3_600, false),
        ("death_record", "WJ", 9, 1, false, 3_600, false),
        ("disability_certificate", "CL", 14, 2, false, 86_400, false),
        ("house_contract_filing", "ZJ", 9, 2, false, 3_600, false),
        ("household_register", "GA", 28, 2, false, 21_600, false),
        ("low_income_record", "MZ", 11, 1, false, 86_400, false),
        ("marriage_record", "MZ", 10, 3, true, 3_600, false),
        ("medical_insurance_record", "YB", 9, 1, false, 43_200, false),
        ("planning_permit", "ZR", 8, 2, false, 86_400, false),
        ("real_estate_title", "ZR", 16, 4, true, 900, false),
        ("residence_permit", "GA", 8, 1, false, 86_400, false),
        ("resident_identity", "GA", 12, 1, false, 86_400, false),
        ("school_enrolment_record", "JY", 9, 2, false, 86_400, true),
        ("social_insurance_record", "RS", 13, 2, true, 86_400, false),
        ("tax_clearance", "SW", 6, 1, false, 300, false),
        ("vaccination_record", "JK", 14, 3, false, 43_200, true),
        ("veteran_preferential_card", "TY", 9, 2, false, 86_400, false),
        ("veteran_registration", "TY", 10, 1, false, 21_600, false),
    ];
    let found: Vec<_> = (HESHAN.certificate_types())
        .map(|ty| {
            let provider = ty.provider.as_str();
            let sets = ty.lookup_sets.len();
            (ty.code.as_str(), provider, ty.leaves.len(), sets, ty.many, ty.freshness.as_secs(), ty.subject_minor)
        })
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn a_birth_certificate_has_the_fields_of_the_form() {
    let ty = ty("birth_medical_certificate");
    let paths: Vec<_> = ty.leaves.iter().map(|leaf| leaf.path.as_str()).collect();
    let expected = "certificate_no infant_name sex birth_datetime gestational_weeks birth_weight_g birth_length_cm \
                    birth_place birth_institution mother_name mother_id_type mother_id_no mother_ethnicity father_name \
                    father_id_type father_id_no father_ethnicity issuing_institution issue_date status";
    assert_eq!(paths, expected.split_whitespace().collect::<Vec<_>>());
    let numbers: Vec<_> = ty.leaves.iter().map(|leaf| leaf.numbers.clone()).collect();
    assert_eq!(numbers, (1..=20).map(|number| vec![number]).collect::<Vec<_>>());
    assert_eq!(
        ty.never.iter().map(|leaf| ty.path(leaf)).collect::<Vec<_>>(),
        ["gestational_weeks", "birth_weight_g", "birth_length_cm"]
    );
    // The child is a minor: all of it is sensitive, the issuing hospital, too.
    assert_eq!(ty.sensitive.len(), 20);
    let leaf = &ty.leaves[ty.leaf("mother_id_no").unwrap()];
    assert_eq!((leaf.label_zh.as_str(), leaf.label_en.as_str()), ("母亲证件号码", "Mother's document number"));
    assert_eq!((leaf.kind, leaf.wire, leaf.sensitivity), (ValueKind::IdNumber, Wire::String, 3));
    assert_eq!(leaf.mask.as_deref(), Some("id_number"));
    assert_eq!((ty.name_zh.as_str(), ty.name_en.as_str()), ("出生医学证明", "Medical certificate of birth"));
    assert_eq!(ty.type_url, "type.googleapis.com/oncegate.records.v1.BirthMedicalCertificate");
    assert_eq!(ty.sharing, SharingClass::Conditional);
}

#[test]
fn members_of_a_household_are_leaves_below_a_list() {
    let ty = ty("household_register");
    let members: Vec<_> = ty.expand("members").unwrap().iter().map(|leaf| &ty.leaves[leaf]).collect();
    let found: Vec<_> = members.iter().map(|leaf| (leaf.path.as_str(), leaf.numbers.as_slice())).collect();
    assert_eq!(
        found,
        [("members.name", &[25, 1][..]), ("members.id_no", &[25, 2]), ("members.relation_to_head", &[25, 3])]
    );
    let (number, child) = ty.root.children.iter().find(|(number, _)| *number == 25).unwrap();
    let Child::Message { node, below, repeated: true } = child else { panic!("{number} is no list") };
    assert_eq!(node.children.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(*below, ty.expand("members").unwrap());
    // `name` and `members.name` are two fields, and a path does not reach into a longer name.
    assert_eq!(ty.expand("name").unwrap().len(), 1);
    assert_eq!(ty.expand("member"), None);
}

#[test]
fn options_set_the_field_sets() {
    let business = ty("business_license");
    let compare = ["legal_representative_id_no", "in_business"].map(|name| business.comparable(name).unwrap());
    assert_eq!(business.verify_only, compare.into_iter().collect());
    assert_eq!(business.sharing, SharingClass::Unconditional);
    assert!(business.sensitive.is_empty());
    let title = ty("real_estate_title");
    assert_eq!(title.volatile, title.expand("restrictions").unwrap());
    assert_eq!(title.sensitive, title.volatile);
    let identity = ty("resident_identity");
    assert_eq!(identity.never, identity.expand("fingerprint").unwrap());
    assert_eq!(identity.sensitive, identity.expand("photo").unwrap() | identity.never);
    let wire = |path: &str| identity.leaves[identity.leaf(path).unwrap()].wire;
    assert_eq!((wire("photo"), wire("sex"), wire("name")), (Wire::Bytes, Wire::Varint, Wire::String));
}

#[test]
fn built_in_leaves_are_consistent() {
    for ty in HESHAN.certificate_types() {
        let numbers: BTreeSet<_> = ty.leaves.iter().map(|leaf| &leaf.numbers).collect();
        assert_eq!(numbers.len(), ty.leaves.len(), "{}", ty.code);
        for leaf in &ty.leaves {
            let at = format!("{}.{}", ty.code, leaf.path);
            let known = ["id_number", "name_zh", "phone", "cert_no", "address", "birth_date", "bank_card", "present"];
            if let Some(mask) = &leaf.mask {
                assert!(known.contains(&mask.as_str()), "{at}: {mask}");
                // What is not text can only be shown to be there.
                assert!(leaf.wire == Wire::String || mask == "present", "{at}: {mask}");
            }
            // Names and numbers of persons are never without a mask.
            if matches!(leaf.kind, ValueKind::IdNumber | ValueKind::PersonOrEntityNo | ValueKind::Phone) {
                assert!(leaf.mask.is_some(), "{at}");
            }
            if leaf.kind == ValueKind::PersonName && leaf.sensitivity >= 3 {
                assert_eq!(leaf.mask.as_deref(), Some("name_zh"), "{at}");
            }
            assert!(!leaf.label_zh.contains(['(', '（']), "{at}: {}", leaf.label_zh);
        }
        // A record answers to at least one of the keys that found it.
        for set in &ty.lookup_sets {
            assert!(set.keys.iter().any(|key| !key.matches.is_empty()), "{}", ty.code);
        }
    }
}

#[test]
fn departments_and_matters_of_heshan() {
    assert_eq!(HESHAN.departments().count(), 17 + 7, "departments, utilities and banks");
    let kind = |code: &str| HESHAN.department(&code.parse().unwrap()).unwrap().kind;
    assert_eq!(kind("GA"), ConsumerKind::Government);
    for code in ["GJJ", "CL", "JK"] {
        assert_eq!(kind(code), ConsumerKind::AuthorizedOrg, "{code}");
    }
    let codes: Vec<_> = HESHAN.matters().map(|matter| matter.code.as_str()).collect();
    assert_eq!(codes.len(), 23);
    assert!(codes.is_sorted() && codes.contains(&"newborn_birth"));
    let external: Vec<_> =
        HESHAN.matters().filter(|m| !m.external.is_empty()).map(|m| (m.code.as_str(), m.external.len())).collect();
    assert_eq!(external, [("housing_fund_loan", 1), ("posthumous_affairs", 1), ("utilities_joint_application", 5)]);
    let birth = HESHAN.matter("newborn_birth").unwrap();
    assert_eq!(birth.lead.as_str(), "WJ");
    assert_eq!(birth.cooperating.iter().map(DepartmentCode::as_str).collect::<Vec<_>>(), ["GA", "RS", "YB", "JK"]);
    assert_eq!(birth.legal_basis[1], "户口登记条例 第七条");
}

#[test]
fn the_first_complete_set_of_keys_is_used() {
    let child =
        subject("child", &[("name", "李小明"), ("birth_date", "2026-03-01"), ("birth_certificate_no", "T440001")]);
    let mother = subject("mother", &[("id_no", MOTHER_ID)]);
    let found = resolve("birth_medical_certificate", &[child.clone(), mother]).unwrap();
    assert_eq!((found.set(), found.role()), (0, "child"));
    assert_eq!(keys(&found), [("mother_id_no", MOTHER_ID), ("birth_date", "2026-03-01")]);
    assert_eq!(found.holder(), MOTHER_ID);
    let ty = ty("birth_medical_certificate");
    assert_eq!(found.keys()[1].matches, ty.expand("birth_datetime").unwrap());

    let found = resolve("birth_medical_certificate", &[child]).unwrap();
    assert_eq!(found.set(), 1);
    assert_eq!(keys(&found), [("certificate_no", "T440001"), ("infant_name", "李小明")]);
}

#[test]
fn a_key_may_match_either_party() {
    let found = resolve("marriage_record", &[subject("mother", &[("name", "王芳"), ("id_no", MOTHER_ID)])]).unwrap();
    let ty = ty("marriage_record");
    let either = ty.expand("man_id_no").unwrap() | ty.expand("woman_id_no").unwrap();
    assert_eq!(found.keys()[1].matches, either);
}

#[test]
fn keys_of_one_role_come_from_one_subject() {
    let child = subject("child", &[("name", "李小明"), ("birth_date", "2026-03-01")]);
    let half = subject("guardian", &[("name", "李强")]);
    let whole = subject("guardian", &[("name", "王芳"), ("id_no", MOTHER_ID)]);
    let found = resolve("vaccination_record", &[child, half.clone(), whole.clone()]).unwrap();
    assert_eq!((found.set(), keys(&found)[2]), (2, ("guardian_id_no", MOTHER_ID)));
    assert!(found.keys()[2].matches.is_empty());

    // About a guardian: the one named, not the other who has the missing number.
    let missing = resolve("resident_identity", &[half, whole]).unwrap_err();
    assert_eq!(missing, SubjectError::KeysIncomplete { missing: "subject.id_no".into() });
    // A husband's number and another husband's name make no pair.
    let wife = subject("wife", &[("name", "王芳"), ("id_no", MOTHER_ID)]);
    let child = subject("child", &[]);
    let husbands = [subject("husband", &[("name", "李强")]), subject("husband", &[("id_no", MOTHER_ID)])];
    let [one, two] = husbands;
    let error = resolve("marriage_record", &[child, wife, one, two]).unwrap_err();
    assert_eq!(error, SubjectError::KeysIncomplete { missing: "husband.id_no".into() });
}

#[test]
fn what_is_missing_is_said_of_the_nearest_set() {
    let error = |code: &str, subjects: &[CaseSubject]| resolve(code, subjects).unwrap_err();
    let child = subject("child", &[("birth_date", "2026-03-01")]);
    assert_eq!(
        error("birth_medical_certificate", std::slice::from_ref(&child)),
        SubjectError::NotGiven { role: "mother".into() }
    );
    let mother = subject("mother", &[("name", "王芳")]);
    assert_eq!(
        error("birth_medical_certificate", &[child, mother]),
        SubjectError::KeysIncomplete { missing: "mother.id_no".into() }
    );
    let named = subject("child", &[("name", "李小明")]);
    assert_eq!(
        error("birth_medical_certificate", &[named]),
        SubjectError::KeysIncomplete { missing: "subject.birth_certificate_no".into() }
    );
}

#[test]
fn keys_are_checked_and_identity_numbers_raised() {
    let person = |id: &str| resolve("resident_identity", &[subject("mother", &[("name", "王芳"), ("id_no", id)])]);
    assert_eq!(person("11010519491231002x").unwrap().keys()[0].value, MOTHER_ID);
    let error = person("110105194912310021").unwrap_err();
    assert_eq!(
        error,
        SubjectError::KeyInvalid { attribute: "subject.id_no".into(), rule: "the check digit does not fit" }
    );
    assert!(!format!("{error} {error:?}").contains("110105194912310021"));
    // A title's holder may be an entity.
    let entity = subject("entity", &[("name", "鹤山某厂"), ("id_no", "91350100M000100Y43")]);
    assert_eq!(resolve("real_estate_title", &[entity]).unwrap().set(), 0);
    // An invalid key is an error even if another set is complete.
    let child =
        subject("child", &[("name", "李小明"), ("birth_date", "2026-02-30"), ("birth_certificate_no", "T440001")]);
    let mother = subject("mother", &[("id_no", MOTHER_ID)]);
    let error = resolve("birth_medical_certificate", &[child, mother]).unwrap_err();
    assert_eq!(
        error,
        SubjectError::KeyInvalid { attribute: "subject.birth_date".into(), rule: "no such date or time" }
    );
}

#[test]
fn values_are_not_in_debug_output() {
    let found = resolve("resident_identity", &[subject("mother", &[("name", "王芳"), ("id_no", MOTHER_ID)])]).unwrap();
    let text = format!("{found:?} {:?}", found.keys());
    assert!(!text.contains(MOTHER_ID) && !text.contains("王芳"), "{text}");
}

#[test]
fn subjects_have_bounds() {
    let what = |subjects: &[CaseSubject]| match HESHAN.check_subjects(subjects) {
        Ok(()) => String::new(),
        Err(SubjectError::Invalid { what }) => what,
        Err(other) => panic!("{other}"),
    };
    let child = || subject("child", &[("name", "李小明")]);
    assert_eq!(what(&vec![child(); 16]), "");
    assert_eq!(what(&vec![child(); 17]), "at most 16 subjects");
    assert_eq!(what(&[]), "");
    for role in ["", "Child", "1child", "child ", "孩子", &"a".repeat(33)] {
        assert!(what(&[subject(role, &[])]).starts_with("subjects[0].role: "), "{role}");
    }
    assert_eq!(what(&[subject(&"a".repeat(32), &[])]), "");
    assert_eq!(what(&[subject("child", &[("name", "a"); 17])]), "subjects[0]: at most 16 attributes");
    assert_eq!(
        what(&[child(), subject("child", &[("name", "a"), ("id_no", "b"), ("name", "c")])]),
        "subjects[1].attributes[2].name: given twice"
    );
    assert_eq!(
        what(&[subject("child", &[("zhangsan", "a")])]),
        "subjects[0].attributes[0].name: no certificate type uses it"
    );
    let (long, longest) = ("a".repeat(257), "a".repeat(256));
    for value in ["", "a\u{0}", "a\u{85}", "a\n", &long] {
        assert!(what(&[subject("child", &[("name", value)])]).contains("value: 1 to 256 bytes"), "{value:?}");
    }
    assert_eq!(what(&[subject("child", &[("name", &longest)])]), "");
}

#[test]
fn a_descriptor_set_stands_alone_with_its_options() {
    let ty = ty("household_register");
    let bytes = HESHAN.descriptor_set(ty);
    let departments = HESHAN.departments().cloned().collect();
    let alone = Catalog::from_parts(&[&bytes], departments, Vec::new()).unwrap();
    let codes: Vec<_> = alone.certificate_types().map(|ty| ty.code.as_str()).collect();
    assert_eq!(codes, ["household_register"]);
    assert_eq!(format!("{:?}", alone.certificate_type("household_register").unwrap()), format!("{ty:?}"));
    // Imports come first, as protobuf's own libraries want them.
    let files: Vec<_> = alone.pool().files().map(|file| file.name().to_owned()).collect();
    assert_eq!(files.first().unwrap(), "google/protobuf/descriptor.proto");
    assert_eq!(files.last().unwrap(), "oncegate/records/v1/household_register.proto");
    let foreign = CertificateType { message: "no.Such".into(), ..(**ty).clone() };
    assert!(HESHAN.descriptor_set(&foreign).is_empty());
}

#[test]
fn the_hash_is_of_everything() {
    let departments: Vec<_> = HESHAN.departments().cloned().collect();
    let matters: Vec<_> = HESHAN.matters().map(|matter| (**matter).clone()).collect();
    let hash = |departments: Vec<Department>, matters: Vec<Matter>| {
        Catalog::from_parts(&[crate::pb::DESCRIPTOR_SET], departments, matters).unwrap().hash()
    };
    assert_eq!(hash(departments.clone(), matters.clone()), HESHAN.hash());
    let mut renamed = departments.clone();
    renamed[0].name_zh.push('局');
    assert_ne!(hash(renamed, matters.clone()), HESHAN.hash());
    let mut cited = matters.clone();
    cited[0].legal_basis[0].push('款');
    assert_ne!(hash(departments.clone(), cited), HESHAN.hash());
    let mut joined = matters.clone();
    joined[0].linked_items.pop();
    assert_ne!(hash(departments.clone(), joined), HESHAN.hash());
    let set = HESHAN.descriptor_set(ty("tax_clearance"));
    let fewer = Catalog::from_parts(&[&set], departments, matters).unwrap();
    assert_ne!(fewer.hash(), HESHAN.hash());
}
