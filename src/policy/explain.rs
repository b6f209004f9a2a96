//! What would leave, and why, before any record is seen.
//!
//! An explanation is drawn from the [`Permit`] of the live decision. What the record alone can tell is not guessed: every
//! combination of the facts that are still open is put to `settle::forms`, the function that decides on real records, and
//! the results are merged into the shortest conditions that say the same: "clear if `applicant_is_parent`; else
//! withheld".

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::decide::Permit;
use super::facts::{FactSet, Truths};
use super::mask::Mask;
use super::reason::{Refusal, Withheld, WithheldReason};
use super::settle::forms;
use crate::catalog::CertificateType;

/// At most this many combinations of record facts within one cell of the table: 12 facts that only grants or only denies
/// name, or 7 that both do. The loader refuses a cell with more.
pub(super) const MAX_COMBINATIONS: usize = 1 << 12;

/// What became of each field that was asked for.
#[derive(Clone, Debug)]
pub struct Explanation {
    certificate_type: Arc<CertificateType>,
    /// One per field, in the order of the type.
    pub fields: Vec<Explained>,
    /// Ids of the grants that give some of the fields, if the record allows it.
    pub grants: Vec<Arc<str>>,
    /// Why nothing can leave; none if something may.
    pub refusal: Option<Refusal>,
}

/// One field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// The leaf.
    pub leaf: usize,
    /// What became of it.
    pub verdict: Verdict,
}

/// What became of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It leaves as it is, whatever the record says.
    Released,
    /// It leaves in a masked form, whatever the record says.
    Masked(Mask),
    /// It does not leave, whatever the record says.
    Withheld(Withheld),
    /// The record decides. Exactly one of the branches holds for every record; clear ones first, withheld last.
    Open(Vec<Branch>),
}

/// The form in which a field leaves, least disguised first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Form {
    /// As it is.
    Clear,
    /// Masked.
    Masked(Mask),
    /// Not at all.
    Withheld,
}

/// One form of a field, and when it has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Branch {
    /// The form.
    pub form: Form,
    /// Alternatives, of which one must hold; each is a list of conditions that must all hold.
    pub when: Vec<Vec<Condition>>,
}

/// One fact, and what must be known of it; shown as `applicant_is_parent` or `is_active known false`, in the words of [`super::diff`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// The fact's name.
    pub fact: Arc<str>,
    known: Known,
    index: usize,
}

/// What must be known of a fact: true, false, unknown, or one of two of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known(u8);

impl Known {
    const TRUE: u8 = 1;
    const FALSE: u8 = 2;
    const UNKNOWN: u8 = 4;
    const ALL: u8 = 7;

    const fn of(truth: Option<bool>) -> u8 {
        match truth {
            Some(true) => Self::TRUE,
            Some(false) => Self::FALSE,
            None => Self::UNKNOWN,
        }
    }

    /// True if it holds of a fact of this truth.
    const fn holds(self, truth: Option<bool>) -> bool {
        self.0 & Self::of(truth) != 0
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NOT_TRUE: u8 = Known::FALSE | Known::UNKNOWN;
        const NOT_FALSE: u8 = Known::TRUE | Known::UNKNOWN;
        let fact = &self.fact;
        match self.known.0 {
            Known::TRUE => write!(f, "{fact}"),
            Known::FALSE => write!(f, "{fact} known false"),
            Known::UNKNOWN => write!(f, "{fact} unknown"),
            NOT_TRUE => write!(f, "{fact} not known true"),
            NOT_FALSE => write!(f, "{fact} not known false"),
            _ => write!(f, "{fact} known"),
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clear => f.write_str("clear"),
            Self::Masked(mask) => write!(f, "masked {}", mask.name()),
            Self::Withheld => f.write_str("withheld"),
        }
    }
}

/// `clear if a and b, or c`.
impl fmt::Display for Branch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} if {}", self.form, self.condition())
    }
}

impl Branch {
    /// Its condition in words: `a and b, or c`.
    pub fn condition(&self) -> String {
        let all = |of: &Vec<Condition>| of.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
        self.when.iter().map(all).collect::<Vec<_>>().join(", or ")
    }

    /// True if it holds under these truths.
    pub fn holds(&self, truths: Truths) -> bool {
        self.when.iter().any(|all| all.iter().all(|condition| condition.known.holds(truths.of(condition.index))))
    }
}

/// `clear`, `masked name_zh`, `withheld NOT_GRANTED`, or `clear if a, else withheld`.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Released => f.write_str("clear"),
            Self::Masked(mask) => write!(f, "masked {}", mask.name()),
            Self::Withheld(withheld) => write!(f, "withheld {}", withheld.reason.name()),
            Self::Open(branches) => match branches.split_last() {
                Some((last, before)) => {
                    before.iter().try_for_each(|branch| write!(f, "{branch}; "))?;
                    write!(f, "else {}", last.form)
                }
                None => f.write_str("the record decides"),
            },
        }
    }
}

impl Verdict {
    /// The form of the field under these truths of record facts; none if they are not enough to tell.
    pub fn form(&self, truths: Truths) -> Option<Form> {
        match self {
            Self::Released => Some(Form::Clear),
            Self::Masked(mask) => Some(Form::Masked(*mask)),
            Self::Withheld(_) => Some(Form::Withheld),
            Self::Open(branches) => branches.iter().find(|branch| branch.holds(truths)).map(|branch| branch.form),
        }
    }
}

impl Permit {
    /// What would leave of a record, as far as it is decided without one.
    pub fn explain(&self) -> Explanation {
        Explanation::of(self, FactSet::EMPTY, Truths::NONE)
    }
}

impl Explanation {
    /// Of a permit, where `stated` record facts are taken to be as in `truths`.
    pub(super) fn of(permit: &Permit, stated: FactSet, truths: Truths) -> Self {
        let open = Open::of(permit, stated);
        let settled: Vec<_> = open.combinations().map(|of| forms(permit, truths.only(stated).and(of))).collect();
        let mut merged: BTreeMap<Vec<Form>, Vec<Branch>> = BTreeMap::new();
        let mut fields: Vec<_> = (permit.withheld().iter())
            .map(|withheld| Explained { leaf: withheld.leaf, verdict: Verdict::Withheld(withheld.clone()) })
            .collect();
        for leaf in permit.open().iter() {
            let outcomes: Vec<_> = settled.iter().map(|forms| forms.of(leaf)).collect();
            let verdict = match outcomes.split_first() {
                None => Verdict::Open(Vec::new()),
                Some((first, rest)) if rest.iter().all(|form| form == first) => match first {
                    Form::Clear => Verdict::Released,
                    Form::Masked(mask) => Verdict::Masked(*mask),
                    Form::Withheld => {
                        let code = settled.iter().flat_map(|forms| &forms.withheld).find(|of| of.leaf == leaf);
                        let condition = code.and_then(|of| of.condition.clone());
                        Verdict::Withheld(Withheld { leaf, reason: WithheldReason::RecordCondition, condition })
                    }
                },
                Some(_) => {
                    Verdict::Open(merged.entry(outcomes).or_insert_with_key(|outcomes| open.branches(outcomes)).clone())
                }
            };
            fields.push(Explained { leaf, verdict });
        }
        fields.sort_by_key(|field| field.leaf);
        Self {
            certificate_type: permit.certificate_type().clone(),
            fields,
            grants: permit.candidates.iter().map(|(grant, _)| Arc::clone(&grant.id)).collect(),
            refusal: permit.refusal().cloned(),
        }
    }

    /// The certificate type that it is about.
    pub fn certificate_type(&self) -> &Arc<CertificateType> {
        &self.certificate_type
    }

    /// What became of one field; none if it was not asked for.
    pub fn verdict(&self, leaf: usize) -> Option<&Verdict> {
        let at = self.fields.binary_search_by_key(&leaf, |field| field.leaf).ok()?;
        self.fields.get(at).map(|field| &field.verdict)
    }
}

/// The record facts that are still open, each with the values that make a difference. Where only grants name a fact,
/// unknown is as good as false; where only denies do, as true.
struct Open {
    facts: Vec<(Condition, Vec<u8>)>,
}

/// The values that make a difference, as sets of [`Known`].
pub(super) fn values(in_grants: bool, in_denies: bool) -> Vec<u8> {
    match (in_grants, in_denies) {
        (true, true) => vec![Known::TRUE, Known::FALSE, Known::UNKNOWN],
        (true, false) => vec![Known::TRUE, Known::FALSE | Known::UNKNOWN],
        (false, true) => vec![Known::TRUE | Known::UNKNOWN, Known::FALSE],
        (false, false) => vec![Known::ALL],
    }
}

impl Open {
    fn of(permit: &Permit, stated: FactSet) -> Self {
        let in_grants = permit.candidates.iter().fold(FactSet::EMPTY, |all, (grant, _)| all | grant.when);
        let in_denies = permit.pending.iter().fold(FactSet::EMPTY, |all, deny| all | deny.when);
        let facts = (permit.record_facts - stated).iter().filter_map(|index| {
            let fact = Arc::clone(&permit.vocabulary.get(index)?.name);
            let values = values(in_grants.contains(index), in_denies.contains(index));
            Some((Condition { fact, known: Known(Known::ALL), index }, values))
        });
        Self { facts: facts.collect() }
    }

    fn len(&self) -> usize {
        self.facts.iter().fold(1, |all, (_, values)| all.saturating_mul(values.len()))
    }

    /// The values of the facts in one combination, as positions in their lists.
    fn digits(&self, mut combination: usize) -> impl Iterator<Item = usize> {
        self.facts.iter().map(move |(_, values)| {
            let digit = combination.checked_rem(values.len()).unwrap_or_default();
            combination = combination.checked_div(values.len()).unwrap_or_default();
            digit
        })
    }

    /// Every combination; none if there are more than the loader allows.
    fn combinations(&self) -> impl Iterator<Item = Truths> {
        let count = if self.len() > MAX_COMBINATIONS { 0 } else { self.len() };
        (0..count).map(|combination| {
            let mut truths = Truths::NONE;
            for ((fact, values), digit) in self.facts.iter().zip(self.digits(combination)) {
                let known = Known(values.get(digit).copied().unwrap_or_default());
                let truth = [None, Some(true), Some(false)].into_iter().find(|truth| known.holds(*truth));
                truths.set(fact.index, truth.flatten());
            }
            truths
        })
    }

    /// Each form that occurs with the conditions that describe exactly the combinations in which it does.
    fn branches(&self, outcomes: &[Form]) -> Vec<Branch> {
        let mut forms = outcomes.to_vec();
        forms.sort_unstable();
        forms.dedup();
        let when = |form: Form| {
            let inside: Vec<_> = outcomes.iter().map(|of| *of == form).collect();
            self.cover(&inside).iter().map(|cube| self.conditions(cube)).collect()
        };
        forms.into_iter().map(|form| Branch { form, when: when(form) }).collect()
    }

    /// Few and wide cubes that together hold exactly the combinations `inside`. A cube has a set of values per fact; a
    /// condition is left out where all values are allowed.
    fn cover(&self, inside: &[bool]) -> Vec<Vec<Vec<bool>>> {
        let mut cubes: Vec<Vec<Vec<bool>>> = Vec::new();
        for combination in (0..inside.len()).filter(|at| inside.get(*at) == Some(&true)) {
            if cubes.iter().any(|cube| self.in_cube(cube, combination)) {
                continue;
            }
            let only = |((_, values), digit): (&(Condition, Vec<u8>), usize)| {
                (0..values.len()).map(|at| at == digit).collect::<Vec<_>>()
            };
            let mut cube: Vec<_> = self.facts.iter().zip(self.digits(combination)).map(only).collect();
            for fact in 0..cube.len() {
                let values = cube.get(fact).map_or(0, Vec::len);
                for value in 0..values {
                    let mut wider = cube.clone();
                    if let Some(allowed) = wider.get_mut(fact).and_then(|of| of.get_mut(value)) {
                        *allowed = true;
                    }
                    let holds = |(at, inside): (usize, &bool)| *inside || !self.in_cube(&wider, at);
                    if inside.iter().enumerate().all(holds) {
                        cube = wider;
                    }
                }
            }
            cubes.push(cube);
        }
        // A later cube may have made an earlier one idle.
        for at in (0..cubes.len()).rev() {
            let mut others = cubes.clone();
            others.remove(at);
            let covered = |combination| others.iter().any(|cube| self.in_cube(cube, combination));
            if inside.iter().enumerate().all(|(combination, inside)| !inside || covered(combination)) {
                cubes = others;
            }
        }
        cubes
    }

    fn in_cube(&self, cube: &[Vec<bool>], combination: usize) -> bool {
        self.digits(combination).zip(cube).all(|(digit, allowed)| allowed.get(digit) == Some(&true))
    }

    fn conditions(&self, cube: &[Vec<bool>]) -> Vec<Condition> {
        let of_fact = |((fact, values), allowed): (&(Condition, Vec<u8>), &Vec<bool>)| {
            let chosen = values.iter().zip(allowed).filter(|(_, allowed)| **allowed);
            let known = Known(chosen.fold(0, |all, (value, _)| all | value));
            (known.0 != Known::ALL).then(|| Condition { known, ..fact.clone() })
        };
        self.facts.iter().zip(cube).filter_map(of_fact).collect()
    }
}
