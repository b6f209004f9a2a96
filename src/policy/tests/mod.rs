//! Tests of the room, and what they share: certificate types, catalogs and grants made by hand.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code")]

mod answer;
mod cases;
mod compare;
mod conditions;
mod decide;
mod deploy;
mod diff;
mod load;
mod noleak;
mod project;
mod signed;
mod store;

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use time::Date;
use time::macros::date;

use super::check::Known;
use super::decide::{Ask, Table};
use super::file::GrantFile;
use super::settle::Forms;
use super::{FactSet, Given, Mask, Mode, Policy, PolicyHash, ProjectError, Projected, Truths};
use crate::catalog::{
    Catalog, CertificateType, Child, ConsumerKind, Department, Faults, Fields, Leaf, LookupKey, LookupSet, Matter,
    Node, Predicate, Scalar, SharingClass, ValueKind, Wire,
};
use crate::identity::Basis;
use crate::ids::DepartmentCode;

/// A field of a made-up record type.
#[derive(Clone, Debug)]
pub(super) struct FieldSpec {
    pub(super) name: String,
    pub(super) number: u32,
    pub(super) repeated: bool,
    pub(super) spec: Spec,
}

#[derive(Clone, Debug)]
pub(super) enum Spec {
    Leaf(Wire, ValueKind, Option<&'static str>),
    Message(Vec<FieldSpec>),
}

impl FieldSpec {
    pub(super) fn leaves(&self) -> usize {
        match &self.spec {
            Spec::Leaf(..) => 1,
            Spec::Message(fields) => fields.iter().map(Self::leaves).sum(),
        }
    }
}

pub(super) fn leaf(number: u32, name: &str, kind: ValueKind, mask: Option<&'static str>) -> FieldSpec {
    FieldSpec { name: name.into(), number, repeated: false, spec: Spec::Leaf(Wire::String, kind, mask) }
}

pub(super) fn text(number: u32, name: &str) -> FieldSpec {
    leaf(number, name, ValueKind::Text, None)
}

pub(super) fn message(number: u32, name: &str, repeated: bool, fields: Vec<FieldSpec>) -> FieldSpec {
    FieldSpec { name: name.into(), number, repeated, spec: Spec::Message(fields) }
}

pub(super) fn certificate_type(code: &str, provider: &str, fields: &[FieldSpec]) -> CertificateType {
    let mut leaves = Vec::new();
    let root = node(fields, "", &[], &mut leaves);
    let key = LookupKey {
        name: "id_no".into(),
        kind: ValueKind::IdNumber,
        role: "subject".into(),
        attribute: "id_no".into(),
        matches: Fields::EMPTY,
    };
    CertificateType {
        code: code.into(),
        name_zh: code.into(),
        name_en: code.into(),
        provider: department(provider),
        message: format!("test.{code}"),
        type_url: format!("type.googleapis.com/test.{code}"),
        sharing: SharingClass::Conditional,
        lookup_sets: vec![LookupSet { keys: vec![key] }],
        many: false,
        freshness: Duration::from_mins(1),
        subject_minor: false,
        leaves,
        predicates: Vec::new(),
        root,
        never: Fields::EMPTY,
        verify_only: Fields::EMPTY,
        sensitive: Fields::EMPTY,
        volatile: Fields::EMPTY,
    }
}

/// A predicate that holds if all of these are true.
pub(super) fn predicate(name: &str, flags: Fields) -> Predicate {
    Predicate {
        name: name.into(),
        number: 1,
        label_zh: String::new(),
        label_en: String::new(),
        inputs: flags,
        flags,
        state: None,
        from: None,
        until: None,
        open_ended: false,
        born: None,
    }
}

fn node(fields: &[FieldSpec], prefix: &str, numbers: &[u32], leaves: &mut Vec<Leaf>) -> Node {
    let mut children = Vec::new();
    for field in fields {
        let path = format!("{prefix}{}", field.name);
        let numbers = [numbers, &[field.number]].concat();
        let child = match &field.spec {
            Spec::Leaf(wire, kind, mask) => {
                leaves.push(Leaf {
                    path,
                    numbers,
                    label_zh: String::new(),
                    label_en: String::new(),
                    sensitivity: 3,
                    kind: *kind,
                    wire: *wire,
                    scalar: match wire {
                        Wire::String => Scalar::Text,
                        Wire::Varint => Scalar::Integer,
                        _ => Scalar::Opaque,
                    },
                    mask: mask.map(Into::into),
                });
                Child::Leaf { leaf: leaves.len() - 1, wire: *wire, repeated: field.repeated }
            }
            Spec::Message(fields) => {
                let first = leaves.len();
                let node = node(fields, &format!("{path}."), &numbers, leaves);
                Child::Message { node, below: (first..leaves.len()).collect(), repeated: field.repeated }
            }
        };
        children.push((field.number, child));
    }
    children.sort_by_key(|(number, _)| *number);
    Node { children }
}

pub(super) fn department(code: &str) -> DepartmentCode {
    code.parse().unwrap()
}

/// Birth certificates of WJ, tax records of SW that are not shared; GA, JK and other consumers; one matter.
pub(super) fn known() -> &'static Known {
    static KNOWN: LazyLock<Known> = LazyLock::new(made_up);
    &KNOWN
}

fn made_up() -> Known {
    let birth = [
        leaf(1, "certificate_no", ValueKind::CertificateNo, Some("cert_no")),
        leaf(2, "infant_name", ValueKind::PersonName, Some("name_zh")),
        leaf(3, "birth_datetime", ValueKind::DateTime, Some("birth_date")),
        FieldSpec { spec: Spec::Leaf(Wire::Varint, ValueKind::Text, None), ..text(4, "birth_weight_g") },
        message(
            5,
            "mother",
            false,
            vec![
                leaf(1, "name", ValueKind::PersonName, Some("name_zh")),
                leaf(2, "id_no", ValueKind::IdNumber, Some("id_number")),
            ],
        ),
        text(6, "blood_group"),
        FieldSpec { spec: Spec::Leaf(Wire::Varint, ValueKind::Code, None), ..text(7, "status") },
    ];
    let mut birth = certificate_type("birth", "WJ", &birth);
    birth.never = Fields::one(birth.leaf("birth_weight_g").unwrap());
    let status = Fields::one(birth.leaf("status").unwrap());
    birth.predicates.push(predicate("on_record", status));
    let compared = ["blood_group", "on_record"].map(|name| birth.comparable(name).unwrap());
    birth.verify_only = compared.into_iter().collect();
    birth.sensitive = Fields::one(birth.leaf("mother.id_no").unwrap());
    let person = [
        leaf(1, "id_no", ValueKind::IdNumber, Some("id_number")),
        leaf(2, "birth_date", ValueKind::Date, Some("birth_date")),
        leaf(3, "division_code", ValueKind::Division, None),
        leaf(4, "address", ValueKind::Address, Some("address")),
        leaf(5, "spouse_id_no", ValueKind::IdNumber, Some("id_number")),
    ];
    let mut person = certificate_type("person", "WJ", &person);
    let key = |name: &str, role: &str, matches: &[&str]| LookupKey {
        name: name.into(),
        role: role.into(),
        matches: matches.iter().map(|path| person.leaf(path).unwrap()).collect(),
        ..person.lookup_sets[0].keys[0].clone()
    };
    let keys = vec![key("id_no", "subject", &["id_no", "birth_date"]), key("spouse", "spouse", &["spouse_id_no"])];
    person.lookup_sets = vec![LookupSet { keys }];
    let mut tax = certificate_type("tax", "SW", &[text(1, "tax_no")]);
    tax.sharing = SharingClass::None;

    let matter = |legal_basis: &[&str]| Matter {
        code: "newborn".into(),
        name_zh: String::new(),
        name_en: String::new(),
        lead: department("WJ"),
        cooperating: ["GA", "JK", "SW"].map(department).into(),
        external: ["BANK", "WATER", "YY"].map(department).into(),
        batch: "local".into(),
        linked_items: Vec::new(),
        legal_basis: legal_basis.iter().map(|citation| (*citation).to_owned()).collect(),
    };
    let kinds = [
        ("WJ", ConsumerKind::Government),
        ("GA", ConsumerKind::Government),
        ("JK", ConsumerKind::AuthorizedOrg),
        ("SW", ConsumerKind::Government),
        ("BANK", ConsumerKind::Bank),
        ("WATER", ConsumerKind::PublicUtility),
        ("YY", ConsumerKind::Hospital),
        ("XQ", ConsumerKind::Government),
    ];
    Known {
        vocabulary: Arc::default(),
        types: [birth, person, tax].into_iter().map(|ty| (ty.code.clone(), Arc::new(ty))).collect(),
        matters: BTreeMap::from([
            ("newborn".into(), Arc::new(matter(&["户口登记条例 第七条", "母婴保健法 第二十三条"]))),
            ("bare".into(), Arc::new(Matter { code: "bare".into(), ..matter(&[]) })),
        ]),
        departments: kinds.map(|(code, kind)| (code.to_owned(), (department(code), kind))).into(),
    }
}

/// A grant file with the head that its path demands.
pub(super) fn file(matter: &str, provider: &str, body: &str) -> GrantFile {
    GrantFile {
        path: format!("grants/{matter}/{provider}.toml").into(),
        matter: matter.into(),
        provider: provider.into(),
        text: format!("matter = \"{matter}\"\nprovider = \"{provider}\"\n{body}"),
    }
}

/// A valid `[[grant]]` in which `changes`, lines of `key = value`, stand instead of the lines with these keys.
pub(super) fn entry(changes: &str) -> String {
    let base = "id = \"g\"\nconsumer = \"GA\"\ncertificate_type = \"birth\"\nroles = [\"child\"]\nmode = \"query\"\n\
                fields = [\"infant_name\"]\nreplaces = \"出生医学证明\"\nexemption = \"3\"\nscene = \"出生登记\"\n\
                valid_from = \"2026-01-01\"\nvalid_until = \"2027-12-31\"\n";
    let key = |line: &str| line.split(" =").next().unwrap_or_default().to_owned();
    let changed: Vec<_> = changes.lines().map(key).collect();
    let kept = base.lines().filter(|line| !changed.contains(&key(line)));
    let lines: Vec<_> = kept.chain(changes.lines().filter(|line| !line.ends_with("= none"))).collect();
    format!("[[grant]]\n{}\n", lines.join("\n"))
}

pub(super) fn load(files: &[GrantFile]) -> Result<Policy, Faults> {
    Policy::compile(files, known(), nothing(), PolicyHash([7; 32]), Faults::default())
}

/// A catalog in which nobody is registered: made-up types stand beside it.
pub(super) fn nothing() -> Arc<Catalog> {
    static NOTHING: LazyLock<Arc<Catalog>> = LazyLock::new(|| {
        Arc::new(Catalog::from_parts(&[crate::pb::DESCRIPTOR_SET], registered(), Vec::new()).unwrap())
    });
    NOTHING.clone()
}

/// The departments that provide the built-in types.
fn registered() -> Vec<Department> {
    let bundle = std::path::Path::new("deploy/heshan/policy");
    Catalog::load(bundle).unwrap().departments().cloned().collect()
}

/// What a permit comes to if no condition is on the record.
pub(super) fn forms(permit: &super::Permit) -> Forms {
    assert!(permit.record_facts.is_empty());
    super::settle::forms(permit, Truths::NONE)
}

/// Settles and projects.
pub(super) fn project(permit: &super::Permit, record: &[u8]) -> Result<Projected, ProjectError> {
    super::project(&super::settle(permit, record)?)
}

/// A permit to read exactly these fields of a type.
pub(super) fn permit(ty: &Arc<CertificateType>, released: Fields, masked: &[(Mask, Fields)]) -> super::Permit {
    permit_to(Mode::Query, ty, released, masked)
}

/// A permit to read or compare these fields of a type, and in comparing what is concluded from them.
pub(super) fn permit_to(
    mode: Mode,
    ty: &Arc<CertificateType>,
    released: Fields,
    masked: &[(Mask, Fields)],
) -> super::Permit {
    let all_masked = masked.iter().fold(Fields::EMPTY, |all, (_, fields)| all | *fields);
    let grant = super::Grant {
        id: "g".into(),
        consumer: department("GA"),
        provider: ty.provider.clone(),
        matter: "newborn".into(),
        certificate_type: ty.code.clone(),
        roles: vec!["child".into()],
        mode,
        fields: released | all_masked,
        masks: masked.to_vec(),
        when: FactSet::EMPTY,
        valid_from: Date::MIN,
        valid_until: Date::MAX,
        replaces: String::new(),
        exemption: "3".into(),
        legal_basis: vec!["x".into()],
        scene: String::new(),
        provider_consent: String::new(),
    };
    let table = Table::new(&[Arc::new(grant)], &[], Arc::default(), |_| Some(Arc::clone(ty)));
    let want = ty.all();
    let consumer = department("GA");
    table.decide(
        &Ask {
            consumer: &consumer,
            matter: "newborn",
            certificate_type: ty,
            role: "child",
            want,
            matches: Fields::EMPTY,
            basis: Basis::Consent,
            reference: "c",
            minor: false,
            mode,
            today: date!(2026 - 06 - 01),
            given: &Given::default(),
        },
        Truths::NONE,
        PolicyHash([0; 32]),
    )
}
