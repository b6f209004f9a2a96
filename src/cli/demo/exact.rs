//! Holds every answer against what the department has and what the grants say: exactly the granted fields, with exactly
//! the department's values, and every grant in force answered at least once.

use std::collections::{BTreeMap, BTreeSet};

use super::scene::Scene;
use crate::catalog::CaseSubject;
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
    /// Grants that only compare.
    verify_only: usize,
    faults: Vec<String>,
}

/// What became of a matter's grants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Grants in force that release fields.
    pub(super) open: usize,
    /// Of these, answered with exactly their fields.
    pub(super) exact: usize,
    /// Grants that only compare.
    pub(super) verify_only: usize,
}

impl<'a> Exactness<'a> {
    pub(super) fn new(scene: &'a Scene, grants: Vec<pb::Grant>, subjects: &[pb::CaseSubject]) -> Self {
        let today = scene.population.today.to_string();
        let verify_only = grants.iter().filter(|grant| grant.mode == "verify").count();
        let in_force = |grant: &pb::Grant| grant.valid_from <= today && today <= grant.valid_until;
        let open = grants.into_iter().filter(|grant| grant.mode != "verify" && in_force(grant)).collect();
        let subject = |subject: &pb::CaseSubject| CaseSubject {
            role: subject.role.clone(),
            attributes: subject.attributes.iter().map(|a| (a.name.clone(), a.value.clone())).collect(),
        };
        let subjects = subjects.iter().map(subject).collect();
        Self { scene, subjects, open, answered: BTreeSet::new(), verify_only, faults: Vec::new() }
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
        let about = self.subjects.iter().find(|subject| subject.role == planned.subject_role);
        let kind = self.scene.catalog.certificate_type(&planned.certificate_type);
        let (Some(about), Some(kind)) = (about, kind) else { return Ok(Vec::new()) };
        let subject = self.scene.catalog.resolve(kind, about, &self.subjects)?;
        let keys = subject.keys().iter().map(|key| (key.name.clone(), key.value.clone())).collect();
        let records = self.scene.library.records(&planned.certificate_type, keys)?;
        let whole =
            |record| answer::lines(&self.scene.pool, &pb::Record { record: Some(record), ..Default::default() });
        Ok(records.into_iter().map(whole).collect::<Result<_, _>>()?)
    }

    /// What became of the grants, and the faults found.
    pub(super) fn finish(mut self) -> (Tally, Vec<String>) {
        for grant in self.open.iter().filter(|grant| !self.answered.contains(&grant.id)) {
            self.faults.push(format!("grant {} was not answered", grant.id));
        }
        let tally = Tally { open: self.open.len(), exact: self.answered.len(), verify_only: self.verify_only };
        (tally, self.faults)
    }
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
        self.verify_only += other.verify_only;
    }
}
