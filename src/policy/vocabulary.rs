//! `facts.toml`: reads the vocabulary of facts. Its form is described in the file of the reference deployment.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use time::Time;
use time::macros::format_description;
use toml::Spanned;

use super::WithheldReason;
use super::check::{Known, unknown, unknown_field};
use super::facts::{Fact, FactSource, MAX_FACTS};
use crate::catalog::{Faults, Fields, ROLES, Scalar, ValueKind};
use crate::identity::Basis;

/// One `[[fact]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FactEntry {
    name: Spanned<String>,
    from: Spanned<String>,
    reason: Option<Spanned<String>>,
    equals: Option<Spanned<String>>,
    hours: Option<Spanned<String>>,
    workdays: Option<Spanned<bool>>,
    with: Option<Spanned<String>>,
    level: Option<Spanned<String>>,
    role: Option<Spanned<String>>,
    #[serde(default)]
    paths: BTreeMap<Spanned<String>, Vec<Spanned<String>>>,
}

/// A file with nothing but facts.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// Every `from` with what it takes beside `name` and `from`.
const SOURCES: [(&str, &[&str]); 8] = [
    ("case.open", &[]),
    ("case.subject", &[]),
    ("consent.given", &[]),
    ("token.basis", &["equals"]),
    ("clock.hours", &["hours", "workdays"]),
    ("region.same", &["with", "level"]),
    ("record.matches", &["role", "paths", "reason"]),
    ("record.flag", &["paths", "reason"]),
];

/// The facts of a file, as far as they are sound; every fault with its line.
pub(super) fn parse(file: &Path, text: &str, known: &Known, faults: &mut Faults) -> Vec<Fact> {
    let Some(mut table) = faults.table(file, text) else { return Vec::new() };
    let entries = faults.entries::<FactEntry>(file, text, &mut table, "fact");
    let _: Option<Nothing> = faults.typed(file, text, table);
    let mut facts: Vec<Fact> = Vec::new();
    for entry in &entries {
        let entry = entry.get_ref();
        if facts.iter().any(|fact| *fact.name == **entry.name.get_ref()) {
            faults.at(file, text, entry.name.span().start, format!("two facts `{}`", entry.name.get_ref()));
        } else if let Some(fact) = (FactCheck { file, text, known, faults }).fact(entry) {
            facts.push(fact);
        }
    }
    if entries.len() > MAX_FACTS {
        faults.of(file, format!("more than {MAX_FACTS} facts"));
        facts.truncate(MAX_FACTS);
    }
    facts
}

/// Checks one fact.
struct FactCheck<'a> {
    file: &'a Path,
    text: &'a str,
    known: &'a Known,
    faults: &'a mut Faults,
}

impl FactCheck<'_> {
    fn fact(&mut self, entry: &FactEntry) -> Option<Fact> {
        let name = entry.name.get_ref();
        let form = (1..=48).contains(&name.len())
            && name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        if !form {
            self.fault(&entry.name, "a fact's name has 1 to 48 lower-case letters, digits and `_`, a letter first");
        }
        let from = entry.from.get_ref().as_str();
        let Some((_, takes)) = SOURCES.iter().find(|(name, _)| *name == from) else {
            let message = unknown("source of facts", from, SOURCES.iter().map(|(name, _)| *name));
            self.fault(&entry.from, message);
            return None;
        };
        self.keys(entry, takes);
        let (reason, source) = match from {
            "case.open" => (WithheldReason::CaseNotOpen, FactSource::CaseOpen),
            "case.subject" => (WithheldReason::SubjectNotInCase, FactSource::SubjectInCase),
            "consent.given" => (WithheldReason::ConsentMissing, FactSource::ConsentGiven),
            "token.basis" => (WithheldReason::BasisNotAccepted, self.token_basis(entry)?),
            "clock.hours" => (WithheldReason::OutsideHours, self.hours(entry)?),
            "region.same" => (WithheldReason::RegionMismatch, self.region(entry)?),
            "record.matches" => (WithheldReason::RecordCondition, self.record_matches(entry)?),
            _ => (WithheldReason::RecordCondition, self.record_flag(entry)),
        };
        let code = entry.reason.as_ref().map_or(reason.name(), |stated| stated.get_ref());
        Some(Fact { name: name.as_str().into(), reason, code: Arc::from(code), source })
    }

    /// Every key that the source takes is there, and no other.
    fn keys(&mut self, entry: &FactEntry, takes: &[&str]) {
        let given = [
            ("reason", entry.reason.is_some()),
            ("equals", entry.equals.is_some()),
            ("hours", entry.hours.is_some()),
            ("workdays", entry.workdays.is_some()),
            ("with", entry.with.is_some()),
            ("level", entry.level.is_some()),
            ("role", entry.role.is_some()),
            ("paths", !entry.paths.is_empty()),
        ];
        let from = entry.from.get_ref();
        for (key, given) in given {
            match (given, takes.contains(&key)) {
                (true, false) => self.fault(&entry.from, format!("`{from}` takes no `{key}`")),
                (false, true) => self.fault(&entry.from, format!("`{from}` needs `{key}`")),
                _ => {}
            }
        }
        if let Some(reason) = &entry.reason {
            let text = reason.get_ref();
            let form = (1..=48).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
            if !form {
                self.fault(reason, "a reason has 1 to 48 capitals and `_`");
            }
        }
    }

    fn token_basis(&mut self, entry: &FactEntry) -> Option<FactSource> {
        let stated = entry.equals.as_ref()?;
        match stated.get_ref().as_str() {
            "STATUTORY_DUTY" => Some(FactSource::TokenBasis(Basis::StatutoryDuty)),
            "CONSENT" => Some(FactSource::TokenBasis(Basis::Consent)),
            _ => self.none(stated, "a legal basis is STATUTORY_DUTY or CONSENT"),
        }
    }

    fn hours(&mut self, entry: &FactEntry) -> Option<FactSource> {
        let stated = entry.hours.as_ref()?;
        let time = |text: &str| Time::parse(text, format_description!("[hour]:[minute]")).ok();
        let hours = stated.get_ref().split_once('-').and_then(|(from, until)| Some((time(from)?, time(until)?)));
        match hours {
            Some((from, until)) if from < until => {
                Some(FactSource::Hours { from, until, workdays: *entry.workdays.as_ref()?.get_ref() })
            }
            _ => self.none(stated, "hours of one day, for example 08:30-17:30"),
        }
    }

    fn region(&mut self, entry: &FactEntry) -> Option<FactSource> {
        let (with, level) = (entry.with.as_ref()?, entry.level.as_ref()?);
        let case = match with.get_ref().as_str() {
            "case" => true,
            "provider" => false,
            _ => return self.none(with, "with is `case` or `provider`"),
        };
        let digits = match level.get_ref().as_str() {
            "province" => 2,
            "city" => 4,
            "county" => 6,
            _ => return self.none(level, "level is `province`, `city` or `county`"),
        };
        Some(FactSource::SameRegion { case, digits })
    }

    fn record_matches(&mut self, entry: &FactEntry) -> Option<FactSource> {
        let role = entry.role.as_ref()?;
        if !ROLES.contains(&role.get_ref().as_str()) {
            return self.none(role, unknown("role", role.get_ref(), ROLES.into_iter()));
        }
        let leaves = self.leaves(entry, "a number of a person or an entity", |leaf| {
            matches!(leaf.kind, ValueKind::IdNumber | ValueKind::Uscc | ValueKind::PersonOrEntityNo)
        });
        Some(FactSource::RecordMatches { role: role.get_ref().clone(), leaves })
    }

    fn record_flag(&mut self, entry: &FactEntry) -> FactSource {
        let leaves = self.leaves(entry, "a boolean", |leaf| leaf.scalar == Scalar::Bool);
        for (code, paths) in &entry.paths {
            let kind = self.known.types.get(code.get_ref()).cloned();
            for path in paths {
                // Elements that say nothing would go unnoticed beside one that says yes.
                if let Some(kind) = &kind
                    && kind.leaf(path.get_ref()).is_some_and(|leaf| kind.is_listed(leaf))
                {
                    self.fault(path, "a flag in a list has no one value");
                }
            }
        }
        for (code, stated) in &entry.paths {
            if leaves.get(code.get_ref()).is_some_and(|leaves| leaves.len() > 1) || stated.len() > 1 {
                self.fault(code, "a flag is one leaf");
            }
        }
        FactSource::RecordFlag { leaves }
    }

    /// The leaves that `paths` names, per certificate type, each of which must be what the fact compares.
    fn leaves(
        &mut self,
        entry: &FactEntry,
        what: &str,
        suits: impl Fn(&crate::catalog::Leaf) -> bool,
    ) -> BTreeMap<String, Fields> {
        let mut all = BTreeMap::new();
        for (code, paths) in &entry.paths {
            let Some(kind) = self.known.types.get(code.get_ref()).cloned() else {
                let types = self.known.types.keys().map(String::as_str);
                let message = unknown("certificate type", code.get_ref(), types);
                self.fault(code, message);
                continue;
            };
            let mut leaves = Fields::EMPTY;
            for path in paths {
                match kind.leaf(path.get_ref()).and_then(|index| Some((index, kind.leaves.get(index)?))) {
                    None => self.fault(path, unknown_field(path.get_ref(), &kind)),
                    Some((_, leaf)) if !suits(leaf) => self.fault(path, format!("`{}` is not {what}", leaf.path)),
                    Some((index, _)) => leaves |= Fields::one(index),
                }
            }
            all.insert(code.get_ref().clone(), leaves);
        }
        all
    }

    fn none<T, S>(&mut self, at: &Spanned<S>, message: impl Into<String>) -> Option<T> {
        self.fault(at, message);
        None
    }

    fn fault<S>(&mut self, at: &Spanned<S>, message: impl Into<String>) {
        self.faults.at(self.file, self.text, at.span().start, message);
    }
}
