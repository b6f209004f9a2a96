//! The decision table, and what must hold for all tables.

use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::subsequence;
use time::Date;
use time::macros::date;

use super::super::decide::{Ask, Table};
use super::super::grant::{Deny, Grant};
use super::super::{FactSet, Given, Mask, Mode, Permit, Policy, Truths, WithheldReason, has_completed};
use super::{certificate_type, department, entry, file, forms, known, load, text};
use crate::catalog::{CertificateType, Fields};
use crate::identity::Basis;
use crate::pb;
use crate::policy::PolicyHash;

const CITED: &str = "户口登记条例 第七条";
const TODAY: Date = date!(2026 - 06 - 01);

/// A question about a birth certificate; change what a test is about.
struct Question<'a> {
    consumer: &'a str,
    role: &'a str,
    want: &'a [&'a str],
    basis: Basis,
    reference: &'a str,
    minor: bool,
    today: Date,
}

impl Default for Question<'_> {
    fn default() -> Self {
        Self {
            consumer: "GA",
            role: "child",
            want: &["infant_name"],
            basis: Basis::StatutoryDuty,
            reference: CITED,
            minor: false,
            today: TODAY,
        }
    }
}

impl Question<'_> {
    fn to(&self, policy: &Policy) -> Permit {
        let ty = &known().types["birth"];
        let consumer = department(self.consumer);
        let ask = Ask {
            consumer: &consumer,
            matter: "newborn",
            certificate_type: ty,
            role: self.role,
            want: self.want.iter().fold(Fields::EMPTY, |all, path| all | ty.expand(path).unwrap()),
            matches: ty.expand("mother.id_no").unwrap(),
            basis: self.basis,
            reference: self.reference,
            minor: self.minor,
            mode: Mode::Query,
            today: self.today,
            given: &Given::default(),
        };
        policy.table.decide(&ask, Truths::NONE, policy.hash)
    }
}

/// Per leaf in the order of the type: `path`, `path~mask` or `path!REASON`.
fn shape(permit: &Permit) -> Vec<String> {
    let (ty, forms) = (permit.certificate_type(), forms(permit));
    let mut lines: Vec<_> = forms.released.iter().map(|leaf| (leaf, ty.path(leaf).to_owned())).collect();
    for (mask, fields) in &forms.masked {
        lines.extend(fields.iter().map(|leaf| (leaf, format!("{}~{}", ty.path(leaf), mask.name()))));
    }
    lines.extend(permit.withheld().iter().map(|at| (at.leaf, format!("{}!{}", ty.path(at.leaf), at.reason.name()))));
    lines.sort();
    lines.into_iter().map(|(_, line)| line).collect()
}

/// Grants `g0`, `g1` …, each a sound one with these changes; a text that begins with `[[` stands as it is.
fn policy(entries: &[&str]) -> Policy {
    let numbered = entries.iter().enumerate().map(|(at, changes)| match changes {
        table if table.starts_with("[[") => (*table).to_owned(),
        changes => entry(&format!("id = \"g{at}\"\n{changes}")),
    });
    load(&[file("newborn", "WJ", &numbered.collect::<String>())]).unwrap()
}

#[test]
fn each_reason_has_its_case() {
    let birth = "fields = [\"infant_name\"]";
    let table: [(&[&str], Question<'_>, &str); 12] = [
        (&[], Question::default(), "infant_name!NOT_GRANTED"),
        (&[birth], Question { consumer: "JK", ..Question::default() }, "infant_name!NOT_GRANTED"),
        (&[birth], Question { want: &["birth_weight_g"], ..Question::default() }, "birth_weight_g!NEVER_SHARED"),
        (&[birth], Question::default(), "infant_name"),
        (&[birth], Question { role: "mother", ..Question::default() }, "infant_name!ROLE_NOT_GRANTED"),
        (&["mode = \"verify\""], Question::default(), "infant_name!VERIFY_ONLY"),
        (&["mode = \"file\""], Question::default(), "infant_name"),
        (&[birth], Question { today: date!(2028 - 01 - 01), ..Question::default() }, "infant_name!GRANT_EXPIRED"),
        (&[birth], Question { today: date!(2025 - 12 - 31), ..Question::default() }, "infant_name!GRANT_NOT_YET_VALID"),
        (&[birth], Question { today: date!(2027 - 12 - 31), ..Question::default() }, "infant_name"),
        (&[birth], Question { today: date!(2026 - 01 - 01), ..Question::default() }, "infant_name"),
        (
            &[
                birth,
                "[[deny]]\nid = \"d\"\nconsumers = [\"*\"]\ncertificate_type = \"birth\"\nfields = [\"*\"]\nreason = \"x\"\n",
            ],
            Question::default(),
            "infant_name!DENIED",
        ),
    ];
    for (at, (grants, question, expected)) in table.iter().enumerate() {
        let permit = question.to(&policy(grants));
        assert_eq!(shape(&permit), [*expected], "case {at}");
        let refused = expected.split_once('!').map(|(_, reason)| reason);
        assert_eq!(permit.refusal().map(|refusal| refusal.reason.name()), refused, "case {at}");
        assert_eq!(permit.may_release(), refused.is_none());
        assert_eq!(permit.fetch_fields().is_empty(), refused.is_some());
        assert_eq!(forms(&permit).grants.len(), usize::from(refused.is_none()));
    }
}

#[test]
fn a_sensitive_field_needs_a_basis() {
    let policy = policy(&["fields = [\"infant_name\", \"mother.id_no\"]"]);
    let want: &[&str] = &["infant_name", "mother.id_no"];
    let ask =
        |basis, reference, minor| shape(&Question { want, basis, reference, minor, ..Question::default() }.to(&policy));
    let both = ["infant_name", "mother.id_no"];
    let open_only = ["infant_name", "mother.id_no!BASIS_MISSING"];
    assert_eq!(ask(Basis::StatutoryDuty, CITED, false), both);
    assert_eq!(ask(Basis::StatutoryDuty, "", false), open_only);
    assert_eq!(ask(Basis::StatutoryDuty, "别的法 第一条", false), open_only);
    assert_eq!(ask(Basis::Consent, "consent-1", false), both);
    assert_eq!(ask(Basis::Consent, "", false), open_only);
    assert_eq!(
        ask(Basis::StatutoryDuty, "", true),
        ["infant_name!BASIS_MISSING", "mother.id_no!BASIS_MISSING"],
        "of a child, everything is sensitive"
    );
}

#[test]
fn the_basis_is_checked_per_grant() {
    let number = "fields = [\"mother.id_no\"]";
    let policy = policy(&[&format!("{number}\nbasis = [\"甲法\"]"), &format!("{number}\nbasis = [\"乙法\"]")]);
    let ask = |reference| Question { want: &["mother.id_no"], reference, ..Question::default() }.to(&policy);
    let givers = |permit: Permit| forms(&permit).grants;
    assert_eq!(givers(ask("甲法")).iter().map(AsRef::as_ref).collect::<Vec<&str>>(), ["g0"]);
    assert_eq!(givers(ask("乙法")).iter().map(AsRef::as_ref).collect::<Vec<&str>>(), ["g1"]);
    assert!(!ask("丙法").may_release());
}

#[test]
fn grants_add_up_and_the_weakest_form_wins() {
    let masked = |mask: &str| format!("fields = [\"infant_name\"]\nmask = {{ infant_name = \"{mask}\" }}");
    let name = |grants: &[&str]| shape(&Question::default().to(&policy(grants)));
    let (weak, strong) = (masked("name_zh"), masked("present"));
    assert_eq!(name(&[&strong]), ["infant_name~present"]);
    assert_eq!(name(&[&weak, &strong]), ["infant_name~name_zh"]);
    assert_eq!(name(&[&strong, &weak]), ["infant_name~name_zh"]);
    assert_eq!(name(&[&strong, &weak, ""]), ["infant_name"]);
    let other_role = format!("{weak}\nroles = [\"mother\"]");
    assert_eq!(name(&[&strong, &other_role]), ["infant_name~present"], "a grant that fails adds nothing");
}

#[test]
fn a_refusal_gives_the_reason_that_helps_most_and_its_grant() {
    let policy = policy(&[
        "valid_from = \"2024-01-01\"\nvalid_until = \"2025-12-31\"",
        "fields = [\"certificate_no\"]\nroles = [\"mother\"]",
    ]);
    let want: &[&str] = &["birth_weight_g", "infant_name", "certificate_no", "status"];
    let refusal = Question { want, ..Question::default() }.to(&policy).refusal().cloned().unwrap();
    assert_eq!((refusal.reason, refusal.grant.as_deref()), (WithheldReason::GrantExpired, Some("g0")));
    let refusal = Question { want: &["status"], ..Question::default() }.to(&policy).refusal().cloned().unwrap();
    assert_eq!((refusal.reason, refusal.grant), (WithheldReason::NotGranted, None));
}

#[test]
fn what_identifies_the_record_is_fetched_though_not_granted() {
    let permit = Question::default().to(&policy(&[""]));
    let paths: Vec<_> = permit.fetch_fields().iter().map(|leaf| permit.certificate_type().path(leaf)).collect();
    assert_eq!(paths, ["infant_name", "mother.id_no"]);
    assert!(!forms(&permit).released.intersects(permit.certificate_type().expand("mother.id_no").unwrap()));
}

#[test]
fn a_type_of_another_catalog_gets_nothing() {
    let policy = policy(&[""]);
    let (consumer, other) = (department("GA"), Arc::new(CertificateType::clone(&known().types["birth"])));
    let ask = Ask {
        consumer: &consumer,
        matter: "newborn",
        certificate_type: &other,
        role: "child",
        want: other.expand("infant_name").unwrap(),
        matches: Fields::EMPTY,
        basis: Basis::StatutoryDuty,
        reference: CITED,
        minor: false,
        mode: Mode::Query,
        today: TODAY,
        given: &Given::default(),
    };
    assert!(!policy.table.decide(&ask, Truths::NONE, policy.hash).may_release());
}

#[test]
fn childhood_ends_the_day_after_the_fourteenth_birthday() {
    assert!(!has_completed(date!(2012 - 06 - 01), 14, date!(2026 - 06 - 01)));
    assert!(has_completed(date!(2012 - 06 - 01), 14, date!(2026 - 06 - 02)));
    assert!(!has_completed(date!(2012 - 02 - 29), 14, date!(2026 - 03 - 01)));
    assert!(has_completed(date!(2012 - 02 - 29), 14, date!(2026 - 03 - 02)));
}

#[test]
fn reasons_have_the_numbers_and_names_of_the_api() {
    assert!(WithheldReason::ALL.is_sorted_by(|less, more| less < more));
    for reason in WithheldReason::ALL {
        let of_api = pb::gateway::WithheldReason::try_from(reason.number()).unwrap();
        assert_eq!(of_api.as_str_name(), format!("WITHHELD_REASON_{}", reason.name()));
    }
}

const LEAVES: usize = 5;
const ROLES: [&str; 2] = ["child", "mother"];

fn any_fields() -> impl Strategy<Value = Fields> {
    (1_usize..1 << LEAVES).prop_map(|bits| (0..LEAVES).filter(|leaf| bits >> leaf & 1 == 1).collect())
}

prop_compose! {
    fn any_grant()(
        fields in any_fields(),
        masked in vec((0..Mask::ALL.len(), 0..LEAVES), 0..4),
        roles in subsequence(ROLES.to_vec(), 1..=2),
        mode in 0..Mode::ALL.len(),
        from in 0_i64..4,
        days in 0_i64..4,
        basis in subsequence(vec!["a", "b"], 1..=2),
        id in any::<u32>(),
    ) -> Arc<Grant> {
        let mut masks: Vec<(Mask, Fields)> = Vec::new();
        let mut taken = Fields::EMPTY;
        let mut masked: Vec<_> = masked.into_iter().map(|(mask, leaf)| (Mask::ALL[mask], Fields::one(leaf))).collect();
        masked.sort_by_key(|(mask, _)| *mask);
        for (mask, leaf) in masked {
            if fields.covers(leaf) && !taken.intersects(leaf) {
                taken |= leaf;
                masks.push((mask, leaf));
            }
        }
        let start = TODAY - time::Duration::days(2);
        Arc::new(Grant {
            id: format!("g{id}").into(),
            consumer: department("GA"),
            provider: department("WJ"),
            matter: "newborn".into(),
            certificate_type: "t".into(),
            roles: roles.into_iter().map(Into::into).collect(),
            mode: Mode::ALL[mode],
            fields,
            masks,
            when: FactSet::EMPTY,
            valid_from: start + time::Duration::days(from),
            valid_until: start + time::Duration::days(from + days),
            replaces: String::new(),
            exemption: "3".into(),
            legal_basis: basis.into_iter().map(Into::into).collect(),
            scene: String::new(),
            provider_consent: String::new(),
        })
    }
}

fn five_leaves() -> Arc<CertificateType> {
    let fields: Vec<_> = (1..).zip(["a", "b", "c", "d", "e"]).map(|(number, name)| text(number, name)).collect();
    let mut ty = certificate_type("t", "WJ", &fields);
    ty.never = Fields::one(0);
    ty.sensitive = Fields::one(1) | Fields::one(2);
    Arc::new(ty)
}

/// How much of a leaf is shown: 0 nothing, most for clear.
fn openness(permit: &Permit, leaf: usize) -> usize {
    let forms = forms(permit);
    if forms.released.contains(leaf) {
        return usize::MAX;
    }
    let mask = forms.masked.iter().find(|(_, fields)| fields.contains(leaf));
    mask.map_or(0, |(mask, _)| Mask::ALL.len() - *mask as usize)
}

proptest! {
    #[test]
    fn less_granted_never_shows_more(
        grants in vec(any_grant(), 1..6),
        removed in any::<prop::sample::Index>(),
        denied in any_fields(),
        want in any_fields(),
        role in prop::sample::select(ROLES.to_vec()),
        consent in any::<bool>(),
        reference in prop::sample::select(vec!["", "a", "b", "c"]),
        minor in any::<bool>(),
    ) {
        let ty = five_leaves();
        let consumer = department("GA");
        let ask = Ask {
            consumer: &consumer,
            matter: "newborn",
            certificate_type: &ty,
            role,
            want,
            matches: Fields::EMPTY,
            basis: if consent { Basis::Consent } else { Basis::StatutoryDuty },
            reference,
            minor,
            mode: Mode::Query,
            today: TODAY,
            given: &Given::default(),
        };
        let decide = |grants: &[Arc<Grant>], denies: &[Deny]| {
            Table::new(grants, denies, Arc::default(), |_| Some(Arc::clone(&ty)))
                .decide(&ask, Truths::NONE, PolicyHash([0; 32]))
        };
        let all = decide(&grants, &[]);
        let mut fewer = grants.clone();
        fewer.remove(removed.index(grants.len()));
        let fewer = decide(&fewer, &[]);
        let deny = Deny {
            consumers: None,
            matter: "newborn".into(),
            certificate_type: "t".into(),
            fields: denied,
            when: FactSet::EMPTY,
        };
        let with_deny = decide(&grants, &[deny]);
        let given = forms(&all).masked.iter().fold(forms(&all).released, |given, (_, fields)| given | *fields);
        for leaf in 0..LEAVES {
            let open = openness(&all, leaf);
            prop_assert!(openness(&fewer, leaf) <= open);
            prop_assert_eq!(openness(&with_deny, leaf), if denied.contains(leaf) { 0 } else { open });
            // Each field asked for is released, masked or withheld with a reason; each other field nothing at all.
            let withheld = all.withheld().iter().filter(|at| at.leaf == leaf).count();
            prop_assert_eq!(withheld + usize::from(given.contains(leaf)), usize::from(want.contains(leaf)));
        }
        prop_assert!(!given.contains(0), "nobody may have it");
        prop_assert_eq!(all.may_release(), !given.is_empty());
        let shuffled: Vec<_> = grants.iter().rev().cloned().collect();
        let again = decide(&shuffled, &[]);
        let (one, other) = (forms(&all), forms(&again));
        prop_assert_eq!((one.released, &one.masked, all.withheld()), (other.released, &other.masked, again.withheld()));
    }
}
