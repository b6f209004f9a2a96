//! Holds every answer against what the department has and what the grants say: exactly the granted fields, with exactly
//! the department's values, and every grant in force answered at least once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::scene::Scene;
use super::verify::Played;
use crate::catalog::{CaseSubject, CertificateType};
use crate::cli::Failure;
use crate::cli::answer::{self, FieldLine};
use crate::cli::table::Verdict;
use crate::pb::gateway as pb;
use crate::pb::gateway::collect_item::Result as ItemResult;

/// The grants of one matter, and what came of them.
pub(super) struct Exactness<'a> {
    scene: &'a Scene,
    subjects: Vec<CaseSubject>,
    /// Those that release fields and are in force.
    open: Vec<pb::Grant>,
    answered: BTreeSet<String>,
    /// Those that only compare and are in force.
    comparing: Vec<pb::Grant>,
    compared: usize,
    faults: Vec<String>,
}

/// What became of a matter's grants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Grants in force that release fields.
    pub(super) open: usize,
    /// Of these, answered with exactly their fields.
    pub(super) exact: usize,
    /// Grants in force that only compare.
    pub(super) comparing: usize,
    /// Of these, found to match the truth and nothing else.
    pub(super) compared: usize,
}

impl<'a> Exactness<'a> {
    pub(super) fn new(scene: &'a Scene, grants: Vec<pb::Grant>, subjects: &[pb::CaseSubject]) -> Self {
        let today = scene.population.today.to_string();
        let in_force = grants.into_iter().filter(|grant| grant.valid_from <= today && today <= grant.valid_until);
        let (comparing, open) = in_force.partition(|grant| grant.mode == "verify");
        let (answered, faults) = (BTreeSet::new(), Vec::new());
        Self { scene, subjects: case_subjects(subjects), open, answered, comparing, compared: 0, faults }
    }

    /// The grants to a consumer that only compare.
    pub(super) fn comparing(&self, consumer: &str) -> Vec<pb::Grant> {
        self.comparing.iter().filter(|grant| grant.consumer == consumer).cloned().collect()
    }

    /// Looks at what came of a grant that only compares; none if the department has no record.
    pub(super) fn played(&mut self, grant: &pb::Grant, played: Option<&Played>) {
        match played {
            Some(played) if played.is_right() => self.compared += 1,
            Some(_) => self.faults.push(format!("grant {}: the truth did not match, or a lie did", grant.id)),
            None => self.faults.push(format!("grant {}: nobody of the case has a record", grant.id)),
        }
    }

    /// Looks at one item that a consumer got.
    pub(super) fn item(
        &mut self,
        consumer: &str,
        planned: &pb::PlannedItem,
        item: &pb::CollectItem,
    ) -> Result<(), Failure> {
        let what = format!("{consumer} {} of {}", planned.certificate_type, planned.subject_role);
        let of_item = |grant: &&pb::Grant| {
            grant.consumer == consumer
                && grant.certificate_type == planned.certificate_type
                && grant.roles.contains(&planned.subject_role)
        };
        let grants: Vec<_> = self.open.iter().filter(of_item).cloned().collect();
        let granted: BTreeSet<_> = grants.iter().flat_map(|grant| grant.fields.iter().cloned()).collect();
        match &item.result {
            Some(ItemResult::Answer(answer)) if granted.is_empty() => {
                self.faults.push(format!("{what}: {} records without a grant", answer.records.len()));
            }
            Some(ItemResult::Answer(answer)) => {
                if answer.same_as.is_none() {
                    self.compare(&what, planned, &granted, &answer.records)?;
                }
                self.answered.extend(grants.into_iter().map(|grant| grant.id));
            }
            // Not every role has such a record; that some role of the grant has one is checked at the end.
            Some(ItemResult::Error(_)) | None => {}
        }
        Ok(())
    }

    fn compare(
        &mut self,
        what: &str,
        planned: &pb::PlannedItem,
        granted: &BTreeSet<String>,
        records: &[pb::Record],
    ) -> Result<(), Failure> {
        let held = self.held(planned)?;
        if held.len() != records.len() {
            self.faults.push(format!("{what}: {} records of {}", records.len(), held.len()));
        }
        for record in records {
            let got = answer::lines(&self.scene.pool, record)?;
            // Of a granted field nothing is withheld that the department holds.
            let holds = |path: &str| held.iter().flatten().any(|line| line.path == path);
            let missed = |line: &&FieldLine| {
                line.verdict == Verdict::Withheld && granted.contains(&line.path) && holds(&line.path)
            };
            if let Some(line) = got.iter().find(missed) {
                self.faults.push(format!("{what}: {} is granted and withheld", line.path));
            }
            // The department's record, cut to what is granted: the very same must have come.
            if !held.iter().any(|whole| cut(whole, granted, &got) == shown(&got)) {
                self.faults.push(format!("{what}: another answer than the department's record cut to the grant"));
            }
        }
        Ok(())
    }

    /// The department's records of the item's subject, whole.
    fn held(&self, planned: &pb::PlannedItem) -> Result<Vec<Vec<FieldLine>>, Failure> {
        let Some(kind) = self.scene.catalog.certificate_type(&planned.certificate_type) else { return Ok(Vec::new()) };
        let records = held(self.scene, kind, &planned.subject_role, &self.subjects)?;
        let whole =
            |record| answer::lines(&self.scene.pool, &pb::Record { record: Some(record), ..Default::default() });
        Ok(records.into_iter().map(whole).collect::<Result<_, _>>()?)
    }

    /// What became of the grants, and the faults found.
    pub(super) fn finish(mut self) -> (Tally, Vec<String>) {
        for grant in self.open.iter().filter(|grant| !self.answered.contains(&grant.id)) {
            self.faults.push(format!("grant {} was not answered", grant.id));
        }
        let (open, exact) = (self.open.len(), self.answered.len());
        let tally = Tally { open, exact, comparing: self.comparing.len(), compared: self.compared };
        (tally, self.faults)
    }
}

/// The records that a department holds of the subject in a role.
pub(super) fn held(
    scene: &Scene,
    kind: &Arc<CertificateType>,
    role: &str,
    subjects: &[CaseSubject],
) -> Result<Vec<prost_types::Any>, Failure> {
    let Some(about) = subjects.iter().find(|subject| subject.role == role) else { return Ok(Vec::new()) };
    let subject = scene.catalog.resolve(kind, about, subjects)?;
    let keys = subject.keys().iter().map(|key| (key.name.clone(), key.value.clone())).collect();
    Ok(scene.library.records(&kind.code, keys)?)
}

/// The subjects of a request as the catalog takes them.
pub(super) fn case_subjects(subjects: &[pb::CaseSubject]) -> Vec<CaseSubject> {
    let subject = |subject: &pb::CaseSubject| CaseSubject {
        role: subject.role.clone(),
        attributes: subject.attributes.iter().map(|a| (a.name.clone(), a.value.clone())).collect(),
    };
    subjects.iter().map(subject).collect()
}

/// Path and value of all that was released; of what was masked, the path alone. In the order of paths: a value that a
/// mask omits stands at the end of an answer.
fn shown(got: &[FieldLine]) -> BTreeMap<(String, Option<String>), usize> {
    let mut shown = BTreeMap::new();
    for line in got {
        let value = match line.verdict {
            Verdict::Released => Some(line.value.clone()),
            Verdict::Masked => None,
            Verdict::Withheld => continue,
        };
        *shown.entry((line.path.clone(), value)).or_default() += 1;
    }
    shown
}

/// What [`shown`] should be: of the whole record the granted lines, without the values of those that came masked.
fn cut(
    whole: &[FieldLine],
    granted: &BTreeSet<String>,
    got: &[FieldLine],
) -> BTreeMap<(String, Option<String>), usize> {
    let masked: BTreeSet<_> =
        got.iter().filter(|line| line.verdict == Verdict::Masked).map(|line| line.path.as_str()).collect();
    let mut cut = BTreeMap::new();
    for line in whole.iter().filter(|line| granted.contains(&line.path)) {
        let value = (!masked.contains(line.path.as_str())).then(|| line.value.clone());
        *cut.entry((line.path.clone(), value)).or_default() += 1;
    }
    cut
}

impl Tally {
    pub(super) const fn add(&mut self, other: Self) {
        self.open += other.open;
        self.exact += other.exact;
        self.comparing += other.comparing;
        self.compared += other.compared;
    }
}
