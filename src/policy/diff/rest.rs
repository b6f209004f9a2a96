//! What is compared besides the forms of fields, in sentences.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use super::cell::Side;
use crate::catalog::{Catalog, CertificateType, Scalar};
use crate::policy::facts::{Fact, FactSource};
use crate::policy::{Grant, Policy};

/// Grants of a cell that came, went, or state something else than before; fields and masks show in the forms.
pub(super) fn grants(old: &Side<'_>, new: &Side<'_>) -> Vec<String> {
    let by_id = |side: &Side<'_>| -> BTreeMap<String, Grant> {
        side.grants.iter().map(|grant| (grant.id.to_string(), (**grant).clone())).collect()
    };
    let conditions = |side: &Side<'_>, grant: &Grant| side.names(grant.when).map(str::to_owned).collect::<Vec<_>>();
    let mut said = Vec::new();
    for (id, pair) in paired(by_id(old), by_id(new)) {
        let (before, after) = match pair {
            (Some(before), Some(after)) => (before, after),
            (before, _) => {
                said.push(format!("grant {id} {}", if before.is_some() { "is gone" } else { "is new" }));
                continue;
            }
        };
        let mut changes = Changes::default();
        changes.set("roles", &before.roles, &after.roles);
        changes.word("mode", before.mode.name(), after.mode.name());
        changes.word("valid from", &before.valid_from.to_string(), &after.valid_from.to_string());
        changes.word("valid until", &before.valid_until.to_string(), &after.valid_until.to_string());
        changes.set("conditions", &conditions(old, &before), &conditions(new, &after));
        changes.set("legal basis", &before.legal_basis, &after.legal_basis);
        changes.word("scene", &before.scene, &after.scene);
        changes.word("replaces", &before.replaces, &after.replaces);
        changes.word("exemption", &before.exemption, &after.exemption);
        changes.word("provider's consent", &before.provider_consent, &after.provider_consent);
        said.extend(changes.of(&format!("grant {id}")));
    }
    said
}

/// Facts, holidays, certificate types, matters and departments.
pub(super) fn ground(old: &Policy, new: &Policy) -> Vec<String> {
    let mut said = Vec::new();
    let facts = |policy: &Policy| -> BTreeMap<String, String> {
        let vocabulary = policy.vocabulary();
        vocabulary.facts().iter().map(|fact| (fact.name.to_string(), fact_says(fact, policy.catalog()))).collect()
    };
    said.extend(paired(facts(old), facts(new)).filter_map(by_word("fact")));
    if !old.vocabulary().same_holidays(new.vocabulary()) {
        said.push("the table of holidays is another".to_owned());
    }
    let (before, after) = (old.catalog(), new.catalog());
    if before.hash() != after.hash() {
        let described = catalog(before, after);
        // Labels and comments, if these words lack nothing; but nobody should rely on that.
        let undescribed = "the catalog differs in ways that are not described here".to_owned();
        said.extend(if described.is_empty() { vec![undescribed] } else { described });
    }
    said
}

/// Departments, matters and certificate types.
fn catalog(before: &Catalog, after: &Catalog) -> Vec<String> {
    let mut said = Vec::new();
    let departments = |catalog: &Catalog| -> BTreeMap<String, String> {
        let says = |of: &crate::catalog::Department| {
            format!("{} {} region {}", of.kind.name(), of.name_zh, of.region.as_deref().unwrap_or("none"))
        };
        catalog.departments().map(|of| (of.code.to_string(), says(of))).collect()
    };
    said.extend(paired(departments(before), departments(after)).filter_map(by_word("department")));
    for (code, pair) in paired(
        before.matters().map(|matter| (matter.code.clone(), matter)).collect(),
        after.matters().map(|matter| (matter.code.clone(), matter)).collect(),
    ) {
        if let (Some(before), Some(after)) = pair {
            let parties = |matter: &crate::catalog::Matter| matter.participants().map(ToString::to_string).collect();
            let (was, is): (Vec<String>, Vec<String>) = (parties(before), parties(after));
            let mut changes = Changes::default();
            changes.word("name", &before.name_zh, &after.name_zh);
            changes.word("lead", before.lead.as_str(), after.lead.as_str());
            changes.set("participants", &was, &is);
            changes.set("legal basis", &before.legal_basis, &after.legal_basis);
            changes.set("linked items", &before.linked_items, &after.linked_items);
            said.extend(changes.of(&format!("matter {code}")));
        } else {
            said.push(format!("matter {code} {}", if pair.0.is_some() { "is gone" } else { "is new" }));
        }
    }
    for (code, pair) in paired(
        before.certificate_types().map(|kind| (kind.code.clone(), kind)).collect(),
        after.certificate_types().map(|kind| (kind.code.clone(), kind)).collect(),
    ) {
        match pair {
            (Some(before), Some(after)) => said.extend(certificate_type(&code, before, after)),
            (before, _) => {
                said.push(format!("certificate type {code} {}", if before.is_some() { "is gone" } else { "is new" }));
            }
        }
    }
    said
}

/// A sentence about what has another word than before.
fn by_word(what: &'static str) -> impl Fn((String, Pair<String>)) -> Option<String> {
    move |(name, pair)| match pair {
        (Some(before), Some(after)) if before == after => None,
        (Some(before), Some(after)) => Some(format!("{what} {name}: {before} -> {after}")),
        (Some(_), None) => Some(format!("{what} {name} is gone")),
        (None, _) => Some(format!("{what} {name} is new")),
    }
}

fn certificate_type(code: &str, before: &CertificateType, after: &CertificateType) -> Vec<String> {
    let mut changes = Changes::default();
    let (one, many) = ("one record", "several records");
    let records = |kind: &CertificateType| if kind.many { many } else { one };
    changes.word("message", &before.message, &after.message);
    changes.word("provider", before.provider.as_str(), after.provider.as_str());
    changes.word("answers", records(before), records(after));
    changes.debug("subject a minor", &before.subject_minor, &after.subject_minor);
    changes.debug("sharing class", &before.sharing, &after.sharing);
    changes.debug("keys", &keys(before), &keys(after));
    changes.debug("freshness", &before.freshness, &after.freshness);
    let mut said = changes.of(&format!("certificate type {code}"));
    let leaves = |kind: &CertificateType| -> BTreeMap<String, String> {
        let says = |(index, leaf): (usize, &crate::catalog::Leaf)| {
            let scalar = scalar(&leaf.scalar);
            let mut says = format!(
                "number {:?}, {:?}, {:?} of {scalar}, L{}",
                leaf.numbers, leaf.kind, leaf.wire, leaf.sensitivity
            );
            if kind.is_listed(index) {
                says.push_str(", in a list");
            }
            for (set, word) in [
                (kind.never, "never shared"),
                (kind.verify_only, "compared only"),
                (kind.sensitive, "sensitive"),
                (kind.volatile, "volatile"),
            ] {
                if set.contains(index) {
                    says = format!("{says}, {word}");
                }
            }
            (leaf.path.clone(), format!("{says}, mask {}", leaf.mask.as_deref().unwrap_or("none")))
        };
        // What a predicate is drawn from and when it holds; its labels change nothing.
        let concludes = |drawn: &crate::catalog::Predicate| {
            let inputs: Vec<_> = drawn.inputs.iter().map(|leaf| kind.path(leaf)).collect();
            let state = drawn.state.as_ref().map(|(_, states)| states);
            let years = drawn.born.map(|(_, years)| years);
            let [from, until] = [drawn.from, drawn.until].map(|leaf| leaf.map_or("-", |leaf| kind.path(leaf)));
            let end = if drawn.open_ended { " or without end" } else { "" };
            let says = format!(
                "predicate {} of {}: states {state:?}, from {from}, until {until}{end}, years {years:?}",
                drawn.number,
                inputs.join(", ")
            );
            (drawn.name.clone(), says)
        };
        kind.leaves.iter().enumerate().map(says).chain(kind.predicates.iter().map(concludes)).collect()
    };
    for (path, pair) in paired(leaves(before), leaves(after)) {
        match pair {
            (Some(before), Some(after)) if before == after => {}
            (Some(before), Some(after)) => said.push(format!("field {code}.{path}: {before} -> {after}")),
            (Some(_), None) => said.push(format!("field {code}.{path} is gone")),
            (None, _) => said.push(format!("field {code}.{path} is new")),
        }
    }
    said
}

fn scalar(scalar: &Scalar) -> String {
    match scalar {
        Scalar::Enum(values) => {
            let values: Vec<_> = values.iter().map(|(number, name)| format!("{number} {name}")).collect();
            format!("enum ({})", values.join(", "))
        }
        other => format!("{other:?}"),
    }
}

fn keys(kind: &CertificateType) -> Vec<Vec<String>> {
    let key = |key: &crate::catalog::LookupKey| {
        let matches: Vec<_> = key.matches.iter().map(|leaf| kind.path(leaf)).collect();
        let matches = matches.join(",");
        format!("{} {:?} from {}.{} matches {matches}", key.name, key.kind, key.role, key.attribute)
    };
    kind.lookup_sets.iter().map(|set| set.keys.iter().map(key).collect()).collect()
}

/// What a fact says: where it comes from, with paths instead of indexes, which mean nothing in another catalog.
fn fact_says(fact: &Fact, catalog: &Catalog) -> String {
    let paths = |leaves: &BTreeMap<String, crate::catalog::Fields>| -> Vec<String> {
        let of_type = |(code, fields): (&String, &crate::catalog::Fields)| {
            let kind = catalog.certificate_type(code);
            let paths = fields.iter().map(|leaf| kind.map_or("?", |kind| kind.path(leaf)));
            paths.map(|path| format!("{code}.{path}")).collect::<Vec<_>>()
        };
        leaves.iter().flat_map(of_type).collect()
    };
    let source = match &fact.source {
        FactSource::RecordMatches { role, leaves } => format!("{role} is one of {}", paths(leaves).join(", ")),
        FactSource::RecordFlag { leaves } => format!("flag {}", paths(leaves).join(", ")),
        other => format!("{other:?}"),
    };
    format!("{source} else {}", fact.code)
}

/// Before and after.
type Pair<T> = (Option<T>, Option<T>);

/// Both sides of everything that either has, by key.
fn paired<T>(mut old: BTreeMap<String, T>, mut new: BTreeMap<String, T>) -> impl Iterator<Item = (String, Pair<T>)> {
    let keys: BTreeSet<String> = old.keys().chain(new.keys()).cloned().collect();
    keys.into_iter().map(move |key| {
        let pair = (old.remove(&key), new.remove(&key));
        (key, pair)
    })
}

/// Changes of one thing.
#[derive(Default)]
struct Changes(Vec<String>);

impl Changes {
    fn word(&mut self, what: &str, before: &str, after: &str) {
        if before != after {
            let or_none = |word| if str::is_empty(word) { "none" } else { word };
            self.0.push(format!("{what} {} -> {}", or_none(before), or_none(after)));
        }
    }

    fn debug<T: Debug>(&mut self, what: &str, before: &T, after: &T) {
        self.word(what, &format!("{before:?}"), &format!("{after:?}"));
    }

    fn set(&mut self, what: &str, before: &[String], after: &[String]) {
        let lacks = |all: &[String], one: &String| !all.contains(one);
        let gone = before.iter().filter(|one| lacks(after, one)).map(|one| format!("−{one}"));
        let come = after.iter().filter(|one| lacks(before, one)).map(|one| format!("+{one}"));
        let all: Vec<_> = gone.chain(come).collect();
        if !all.is_empty() {
            self.0.push(format!("{what} {}", all.join(" ")));
        }
    }

    fn of(self, whose: &str) -> Vec<String> {
        self.0.into_iter().map(|change| format!("{whose}: {change}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{Child, Fields, ValueKind, Wire};
    use crate::policy::tests::{certificate_type, text};

    /// Each change of a type that decides something has its words.
    #[test]
    fn every_change_of_a_type_is_described() {
        type Change = fn(&mut CertificateType);
        let before = certificate_type("t", "WJ", &[text(1, "one"), text(2, "two")]);
        let said = |after: &CertificateType| super::certificate_type("t", &before, after);
        assert_eq!(said(&before), [""; 0]);
        let table: &[(&str, Change)] = &[
            ("answers one record -> several records", |kind| kind.many = true),
            ("message test.t -> test.u", |kind| kind.message = "test.u".into()),
            ("subject a minor false -> true", |kind| kind.subject_minor = true),
            ("id_no PersonOrEntityNo from", |kind| kind.lookup_sets[0].keys[0].kind = ValueKind::PersonOrEntityNo),
            ("enum (0 A, 1 B)", |kind| kind.leaves[0].scalar = Scalar::Enum(vec![(0, "A".into()), (1, "B".into())])),
            ("Varint of Text", |kind| kind.leaves[0].wire = Wire::Varint),
            ("in a list", |kind| {
                if let (_, Child::Leaf { repeated, .. }) = &mut kind.root.children[0] {
                    *repeated = true;
                }
            }),
            ("never shared", |kind| kind.never = Fields::one(0)),
            ("number [7]", |kind| kind.leaves[0].numbers = vec![7]),
        ];
        for (words, change) in table {
            let mut after = before.clone();
            change(&mut after);
            let said = said(&after);
            assert!(said.len() == 1 && said[0].contains(words), "{words}: {said:?}");
        }
    }
}
