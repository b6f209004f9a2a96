//! Tests of a policy: what its departments expect of it, written down as data beside it and tried before it serves.
//!
//! ```toml
//! matter = "newborn_birth"
//! date = "2026-06-01"
//! reference = "户口登记条例 第七条"
//!
//! [[case]]
//! name = "vaccination clinics see the mother's surname alone"
//! consumer = "JK"
//! certificate_type = "birth_medical_certificate"
//! role = "child"
//! facts = { case_open = true, subject_in_case = true }
//! [case.expect]
//! clear = ["certificate_no", "infant_name", "sex", "birth_datetime", "birth_institution"]
//! masked = { mother_name = "name_zh" }
//! withheld = { mother_id_no = "NOT_GRANTED" }
//! ```
//!
//! A case asks for `fields`, or for every field of the type. What it expects in clear, masked or open must be exactly that;
//! `withheld` names the reasons that matter, `"*"` standing for all fields named nowhere else. A fact is `true`, `false` or
//! `"unknown"`; one that is not stated is unknown, or still open if only the record can tell it. `open` holds the sentence
//! of the explanation, for example `"clear if applicant_is_parent; else withheld"`.
//!
//! A case may say another `date`, `basis` (`STATUTORY_DUTY` unless it is `CONSENT`) or `reference` than the file, a `mode`
//! other than `query`, and `minor = true` for a subject under 14.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use time::Date;
use time::macros::format_description;
use toml::Spanned;

use super::check::{unknown, unknown_field};
use super::{Explanation, FactSet, Mode, Policy, Stated, Truths, Verdict, WithheldReason};
use crate::catalog::{CertificateType, Faults, Fields};
use crate::identity::Basis;
use crate::ids::DepartmentCode;

/// A file may be this large, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// What a run of all cases found.
#[derive(Debug, Default)]
pub struct Report {
    /// How many cases were tried.
    pub cases: usize,
    /// Those that did not come out as expected.
    pub failures: Vec<Failure>,
    /// Grants that gave something in some case.
    pub gave: BTreeSet<Arc<str>>,
    /// Grants that named a field asked for in some case, in which that grant and all others gave none of its fields.
    pub refused: BTreeSet<Arc<str>>,
    /// Reasons for which fields were withheld, each with the condition or, on the record, the exact reason.
    pub reasons: BTreeSet<(&'static str, Option<Arc<str>>)>,
}

/// A case that did not come out as expected.
#[derive(Debug)]
pub struct Failure {
    /// The file.
    pub file: PathBuf,
    /// Line of the case, from 1.
    pub line: usize,
    /// The case's name.
    pub name: String,
    /// One line per difference: `- expected`, `+ found`.
    pub differences: Vec<String>,
}

/// Tries every case of the files `*.toml` in `dir`, in the order of their names.
///
/// # Errors
/// All faults of all files: what is no case, or names something that the policy does not know.
pub fn run(policy: &Policy, dir: &Path) -> Result<Report, Faults> {
    let (mut report, mut faults) = (Report::default(), Faults::default());
    for file in files(dir, &mut faults) {
        match read(&file) {
            Ok(text) => File { policy, path: &file, text: &text, faults: &mut faults }.run(&mut report),
            Err(message) => faults.of(&file, message),
        }
    }
    if faults.0.is_empty() && report.cases == 0 {
        faults.of(dir, "no test: a test is a [[case]] in a file *.toml");
    }
    faults.or(report)
}

fn files(dir: &Path, faults: &mut Faults) -> Vec<PathBuf> {
    let listed = fs::read_dir(dir).and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect());
    let mut listed: Vec<PathBuf> = listed.unwrap_or_else(|error| {
        faults.of(dir, format!("can't be read: {error}"));
        Vec::new()
    });
    listed.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    listed.sort();
    listed
}

fn read(path: &Path) -> Result<String, String> {
    match fs::metadata(path).map(|metadata| metadata.len()) {
        Ok(size) if size > MAX_FILE_BYTES => Err(format!("larger than {MAX_FILE_BYTES} bytes")),
        Ok(_) => fs::read_to_string(path).map_err(|error| format!("can't be read: {error}")),
        Err(error) => Err(format!("can't be read: {error}")),
    }
}

/// What stands above the cases.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    matter: Spanned<String>,
    date: Option<Spanned<String>>,
    #[serde(default)]
    reference: String,
}

/// One `[[case]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    consumer: Spanned<String>,
    certificate_type: Spanned<String>,
    role: String,
    mode: Option<Spanned<String>>,
    date: Option<Spanned<String>>,
    basis: Option<Spanned<String>>,
    reference: Option<String>,
    #[serde(default)]
    minor: bool,
    #[serde(default)]
    facts: BTreeMap<Spanned<String>, Spanned<Truth>>,
    fields: Option<Vec<Spanned<String>>>,
    expect: Expect,
}

/// What is stated of a fact.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Truth {
    Known(bool),
    Word(String),
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Expect {
    clear: Vec<Spanned<String>>,
    masked: BTreeMap<Spanned<String>, String>,
    withheld: BTreeMap<Spanned<String>, Spanned<String>>,
    open: BTreeMap<Spanned<String>, String>,
}

/// One file being tried.
struct File<'a> {
    policy: &'a Policy,
    path: &'a Path,
    text: &'a str,
    faults: &'a mut Faults,
}

impl File<'_> {
    fn run(&mut self, report: &mut Report) {
        let Some(mut table) = self.faults.table(self.path, self.text) else { return };
        let cases = self.faults.entries::<Case>(self.path, self.text, &mut table, "case");
        let Some(head) = self.faults.typed::<Head>(self.path, self.text, table) else { return };
        if self.policy.catalog().matter(head.matter.get_ref()).is_none() {
            let matters = self.policy.catalog().matters().map(|matter| matter.code.as_str());
            let message = unknown("matter", head.matter.get_ref(), matters);
            self.fault(&head.matter, message);
            return;
        }
        for case in &cases {
            let line = self.text.get(..case.span().start).map_or(0, |before| before.matches('\n').count()) + 1;
            if let Some(differences) = self.case(&head, case.get_ref(), case, report) {
                report.cases += 1;
                if !differences.is_empty() {
                    let (file, name) = (self.path.to_owned(), case.get_ref().name.clone());
                    report.failures.push(Failure { file, line, name, differences });
                }
            }
        }
    }

    /// Tries one case; none if it is no case.
    fn case(&mut self, head: &Head, case: &Case, here: &Spanned<Case>, report: &mut Report) -> Option<Vec<String>> {
        let policy = self.policy;
        let before = self.faults.0.len();
        let kind = self.kind(&case.certificate_type)?;
        let consumer = self.consumer(&case.consumer)?;
        let mode = case.mode.as_ref().map_or(Some(Mode::Query), |mode| self.mode(mode))?;
        let basis = case.basis.as_ref().map_or(Some(Basis::StatutoryDuty), |basis| self.basis(basis))?;
        let Some(date) = case.date.as_ref().or(head.date.as_ref()) else {
            self.fault(here, "date is missing, here and at the head of the file");
            return None;
        };
        let today = self.date(date)?;
        let (facts, truths) = self.facts(&case.facts);
        let want = match &case.fields {
            None => (0..kind.leaves.len()).collect(),
            Some(paths) => paths.iter().fold(Fields::EMPTY, |all, path| all | self.leaves(path, &kind)),
        };
        let expected = self.expected(&case.expect, &kind, want);
        if self.faults.0.len() > before {
            return None;
        }
        let explanation = policy.explain(&Stated {
            consumer: &consumer,
            matter: head.matter.get_ref(),
            certificate_type: &kind,
            role: &case.role,
            mode,
            want,
            basis,
            reference: case.reference.as_ref().unwrap_or(&head.reference),
            minor: case.minor,
            today,
            facts,
            truths,
        });
        self.reached(&explanation, &consumer, head.matter.get_ref(), want, report);
        Some(differences(&explanation, &expected))
    }

    /// Notes which grants gave something and which were put to the test and gave nothing.
    fn reached(
        &self,
        explanation: &Explanation,
        consumer: &DepartmentCode,
        matter: &str,
        want: Fields,
        report: &mut Report,
    ) {
        let kind = explanation.certificate_type();
        report.gave.extend(explanation.grants.iter().cloned());
        for field in &explanation.fields {
            if let Verdict::Withheld(why) = &field.verdict {
                report.reasons.insert((why.reason.name(), why.condition.clone()));
            }
        }
        let withheld = |leaf| matches!(explanation.verdict(leaf), Some(Verdict::Withheld(_)));
        for grant in self.policy.grants_to(consumer, matter).filter(|grant| grant.certificate_type == kind.code) {
            let asked = grant.fields & want;
            if !asked.is_empty() && asked.iter().all(withheld) {
                report.refused.insert(Arc::clone(&grant.id));
            }
        }
    }

    /// The sentence that each field is expected to have: a reason where any will do.
    fn expected(&mut self, expect: &Expect, kind: &Arc<CertificateType>, want: Fields) -> Vec<(usize, Expected)> {
        let mut found: BTreeMap<usize, Expected> = BTreeMap::new();
        let mut note = |file: &mut Self, path: &Spanned<String>, expected: &Expected| {
            for leaf in file.leaves(path, kind).iter() {
                if !want.contains(leaf) {
                    file.fault(path, format!("`{}` is expected but not asked for", kind.path(leaf)));
                } else if found.insert(leaf, expected.clone()).is_some() {
                    file.fault(path, format!("`{}` is expected twice", kind.path(leaf)));
                }
            }
        };
        for path in &expect.clear {
            note(self, path, &Expected::Sentence("clear".to_owned()));
        }
        for (path, mask) in &expect.masked {
            note(self, path, &Expected::Sentence(format!("masked {mask}")));
        }
        for (path, sentence) in &expect.open {
            note(self, path, &Expected::Sentence(sentence.clone()));
        }
        let mut others = Expected::Withheld;
        for (path, reason) in &expect.withheld {
            if !WithheldReason::ALL.iter().any(|known| known.name() == reason.get_ref()) {
                let names = WithheldReason::ALL.into_iter().map(WithheldReason::name);
                let message = unknown("reason", reason.get_ref(), names);
                self.fault(reason, message);
            }
            let sentence = Expected::Sentence(format!("withheld {}", reason.get_ref()));
            if path.get_ref() == "*" {
                others = sentence;
            } else {
                note(self, path, &sentence);
            }
        }
        want.iter().map(|leaf| (leaf, found.get(&leaf).unwrap_or(&others).clone())).collect()
    }

    fn facts(&mut self, stated: &BTreeMap<Spanned<String>, Spanned<Truth>>) -> (FactSet, Truths) {
        let (mut facts, mut truths) = (FactSet::EMPTY, Truths::NONE);
        for (name, truth) in stated {
            let vocabulary = self.policy.vocabulary();
            let Some(fact) = vocabulary.index(name.get_ref()) else {
                let message = unknown("fact", name.get_ref(), vocabulary.facts().iter().map(|fact| &*fact.name));
                self.fault(name, message);
                continue;
            };
            let known = match truth.get_ref() {
                Truth::Known(known) => Some(*known),
                Truth::Word(word) if word == "unknown" => None,
                Truth::Word(_) => {
                    self.fault(truth, "a fact is true, false or \"unknown\"");
                    continue;
                }
            };
            facts |= FactSet::one(fact);
            truths.set(fact, known);
        }
        (facts, truths)
    }

    fn leaves(&mut self, path: &Spanned<String>, kind: &CertificateType) -> Fields {
        kind.named(path.get_ref()).unwrap_or_else(|| {
            self.fault(path, unknown_field(path.get_ref(), kind));
            Fields::EMPTY
        })
    }

    fn kind(&mut self, code: &Spanned<String>) -> Option<Arc<CertificateType>> {
        let catalog = self.policy.catalog();
        let found = catalog.certificate_type(code.get_ref()).cloned();
        if found.is_none() {
            let types = catalog.certificate_types().map(|kind| kind.code.as_str());
            let message = unknown("certificate type", code.get_ref(), types);
            self.fault(code, message);
        }
        found
    }

    fn consumer(&mut self, code: &Spanned<String>) -> Option<DepartmentCode> {
        let catalog = self.policy.catalog();
        let found = catalog.departments().find(|of| of.code.as_str() == code.get_ref()).map(|of| of.code.clone());
        if found.is_none() {
            let codes = catalog.departments().map(|of| of.code.as_str());
            let message = unknown("department", code.get_ref(), codes);
            self.fault(code, message);
        }
        found
    }

    fn mode(&mut self, name: &Spanned<String>) -> Option<Mode> {
        let found = Mode::named(name.get_ref());
        if found.is_none() {
            let message = unknown("mode", name.get_ref(), Mode::ALL.iter().map(|mode| mode.name()));
            self.fault(name, message);
        }
        found
    }

    fn basis(&mut self, name: &Spanned<String>) -> Option<Basis> {
        match name.get_ref().as_str() {
            "STATUTORY_DUTY" => Some(Basis::StatutoryDuty),
            "CONSENT" => Some(Basis::Consent),
            _ => {
                self.fault(name, "a legal basis is STATUTORY_DUTY or CONSENT");
                None
            }
        }
    }

    fn date(&mut self, text: &Spanned<String>) -> Option<Date> {
        let date = Date::parse(text.get_ref(), format_description!("[year]-[month]-[day]")).ok();
        if date.is_none() {
            self.fault(text, "date is a date, YYYY-MM-DD");
        }
        date
    }

    fn fault<T>(&mut self, at: &Spanned<T>, message: impl Into<String>) {
        self.faults.at(self.path, self.text, at.span().start, message);
    }
}

/// What is expected of one field.
#[derive(Clone, Debug)]
enum Expected {
    /// Exactly this.
    Sentence(String),
    /// Withheld, for whatever reason.
    Withheld,
}

fn differences(explanation: &Explanation, expected: &[(usize, Expected)]) -> Vec<String> {
    let kind = explanation.certificate_type();
    let mut lines = Vec::new();
    for (leaf, expected) in expected {
        let found = explanation.verdict(*leaf);
        let sentence = found.map(ToString::to_string).unwrap_or_default();
        let wanted = match expected {
            Expected::Sentence(wanted) if *wanted == sentence => continue,
            Expected::Withheld if matches!(found, Some(Verdict::Withheld(_))) => continue,
            Expected::Sentence(wanted) => wanted.as_str(),
            Expected::Withheld => "withheld",
        };
        lines.push(format!("- {}: {wanted}", kind.path(*leaf)));
        lines.push(format!("+ {}: {sentence}", kind.path(*leaf)));
    }
    lines
}
