//! Facts: the closed vocabulary of conditions that grants and denies may name, and what is known of them.
//!
//! A fact is three-valued. A grant needs each of its facts known true; a deny applies unless one of its facts is known
//! false. So whatever can't be established never releases anything.
//!
//! Facts of the stage *request* are decided before a provider is asked, from the token, the clock, regions and what the
//! platform's registries say ([`Given`]). Facts of the stage *record* are decided on the provider's answer. Evaluating is
//! pure: the same arguments give the same truth.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{BitAnd, BitOr, BitOrAssign, Sub};
use std::sync::Arc;

use time::{Date, Month, Time};

use super::holidays::Holidays;
use super::wire::ProjectError;
use super::{WithheldReason, answer};
use crate::catalog::{CertificateType, Fields, Subject, ValueKind};
use crate::clock::Timestamp;
use crate::identity::{Basis, Purpose};
use crate::ids::DepartmentCode;

/// At most this many facts in a vocabulary: the width of [`FactSet`].
pub(super) const MAX_FACTS: usize = 64;

/// A set of facts, by their index in the [`Vocabulary`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct FactSet(u64);

impl FactSet {
    /// No fact.
    pub const EMPTY: Self = Self(0);

    /// The set of one fact; empty if `fact` is not below 64.
    pub const fn one(fact: usize) -> Self {
        if fact < MAX_FACTS { Self(1 << fact) } else { Self(0) }
    }

    /// True if every fact of `other` is here.
    pub const fn covers(self, other: Self) -> bool {
        other.0 & !self.0 == 0
    }

    /// True if the two sets share a fact.
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// True if the set has the fact.
    pub const fn contains(self, fact: usize) -> bool {
        fact < MAX_FACTS && self.0 >> fact & 1 == 1
    }

    /// True if there is no fact.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many facts.
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// The facts' indexes, ascending.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let fact = rest.trailing_zeros() as usize;
            (fact < MAX_FACTS).then(|| {
                rest &= rest - 1;
                fact
            })
        })
    }
}

impl BitOr for FactSet {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for FactSet {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl BitAnd for FactSet {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

/// The facts of the left set that are not in the right one.
impl Sub for FactSet {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl FromIterator<usize> for FactSet {
    fn from_iter<I: IntoIterator<Item = usize>>(facts: I) -> Self {
        facts.into_iter().fold(Self::EMPTY, |set, fact| set | Self::one(fact))
    }
}

impl fmt::Debug for FactSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// What is known of facts; what is in neither set is unknown. No fact is in both.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Truths {
    known_true: FactSet,
    known_false: FactSet,
}

impl Truths {
    /// Nothing is known.
    pub const NONE: Self = Self { known_true: FactSet::EMPTY, known_false: FactSet::EMPTY };

    /// Facts known true.
    pub const fn known_true(self) -> FactSet {
        self.known_true
    }

    /// Facts known false.
    pub const fn known_false(self) -> FactSet {
        self.known_false
    }

    /// The truth of one fact; none if it is unknown.
    pub const fn of(self, fact: usize) -> Option<bool> {
        match (self.known_true.contains(fact), self.known_false.contains(fact)) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            _ => None,
        }
    }

    /// Notes the truth of a fact, in place of what was noted of it before.
    pub fn set(&mut self, fact: usize, truth: Option<bool>) {
        let one = FactSet::one(fact);
        self.known_true = self.known_true - one;
        self.known_false = self.known_false - one;
        match truth {
            Some(true) => self.known_true |= one,
            Some(false) => self.known_false |= one,
            None => {}
        }
    }

    /// What both know alike.
    #[must_use]
    pub fn common(self, other: Self) -> Self {
        Self { known_true: self.known_true & other.known_true, known_false: self.known_false & other.known_false }
    }

    /// What is known of those of `facts`.
    #[must_use]
    pub fn only(self, facts: FactSet) -> Self {
        Self { known_true: self.known_true & facts, known_false: self.known_false & facts }
    }

    /// Both together; where both know a fact, `other` counts.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            known_true: (self.known_true - other.known_false) | other.known_true,
            known_false: (self.known_false - other.known_true) | other.known_false,
        }
    }
}

/// When a fact can be decided.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Before the provider is asked.
    Request,
    /// On the provider's answer.
    Record,
}

/// One fact of the vocabulary.
#[derive(Clone, Debug)]
pub struct Fact {
    /// Its name in grant files, for example `case_open`.
    pub name: Arc<str>,
    /// What the caller is told if it is known false (stage `request`); `RECORD_CONDITION` at the stage `record`.
    pub reason: WithheldReason,
    /// The exact reason, as access records hold it, for example `APPLICANT_NOT_PARENT`.
    pub code: Arc<str>,
    /// Where its truth comes from.
    pub source: FactSource,
}

impl Fact {
    /// When it can be decided.
    pub const fn stage(&self) -> Stage {
        match self.source {
            FactSource::RecordMatches { .. } | FactSource::RecordFlag { .. } => Stage::Record,
            _ => Stage::Request,
        }
    }

    /// The leaves of a certificate type that it is decided on; empty at the stage `request`.
    pub fn inputs(&self, certificate_type: &str) -> Fields {
        match &self.source {
            FactSource::RecordMatches { leaves, .. } | FactSource::RecordFlag { leaves } => {
                leaves.get(certificate_type).copied().unwrap_or_default()
            }
            _ => Fields::EMPTY,
        }
    }

    /// True if it needs the case registry's answer.
    pub const fn needs_case(&self) -> bool {
        match &self.source {
            FactSource::CaseOpen | FactSource::SubjectInCase | FactSource::RecordMatches { .. } => true,
            FactSource::SameRegion { case, .. } => *case,
            _ => false,
        }
    }
}

/// Where the truth of a fact comes from (facts.toml, `from`).
#[derive(Clone, Debug)]
pub enum FactSource {
    /// `case.open`: the case registry knows the case of the token, and it is open.
    CaseOpen,
    /// `case.subject`: the subject has its role in the case, and its keys are those of the case's people.
    SubjectInCase,
    /// `consent.given`: the consent registry says that the token's consent reference is given and not revoked.
    ConsentGiven,
    /// `token.basis`: the token's legal basis is of this kind.
    TokenBasis(Basis),
    /// `clock.hours`: China Standard Time is within the hours, on a working day if `workdays`.
    Hours {
        /// First moment.
        from: Time,
        /// First moment that is not within.
        until: Time,
        /// True if only working days count.
        workdays: bool,
    },
    /// `region.same`: the consumer's region is `of`, or the case's, in their first `digits`.
    SameRegion {
        /// True if it is compared with the case's region, false with the provider's.
        case: bool,
        /// 2 for the province, 4 for the city, 6 for the county.
        digits: usize,
    },
    /// `record.matches`: a leaf of the record equals the number of the one who has a role in the case.
    RecordMatches {
        /// The role.
        role: String,
        /// The leaves, per certificate type.
        leaves: BTreeMap<String, Fields>,
    },
    /// `record.flag`: a boolean leaf of the record is there and true; there and false is known false.
    RecordFlag {
        /// The leaf, per certificate type.
        leaves: BTreeMap<String, Fields>,
    },
}

/// A case as the platform's registry knows it (`fact.v1.CaseRegistryService`).
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Case {
    /// True if it is under way.
    pub open: bool,
    /// Division code of where it is handled, 6 digits; empty if unknown.
    pub region: String,
    /// Everybody in it. A role may occur several times.
    pub parties: Vec<Party>,
}

/// Somebody who has a role in a case.
#[derive(Clone, PartialEq, Eq)]
pub struct Party {
    /// Role, as in requests.
    pub role: String,
    /// What the registry knows of the party: names and values as in a request's subjects.
    pub attributes: Vec<(String, String)>,
}

impl Party {
    fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// People stay out of logs.
impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case").field("open", &self.open).field("parties", &self.parties.len()).finish_non_exhaustive()
    }
}

/// People stay out of logs.
impl fmt::Debug for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Party").field("role", &self.role).finish_non_exhaustive()
    }
}

/// What the registries answered; none where they were not asked or did not answer, so that nothing rests on it.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// The case of the token.
    pub case: Option<Arc<Case>>,
    /// True if the token's consent reference is given.
    pub consent: Option<bool>,
}

/// The registries that a decision needs.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Needs {
    /// The case registry.
    pub case: bool,
    /// The consent registry.
    pub consent: bool,
}

/// All facts that grants and denies may name.
#[derive(Clone, Debug, Default)]
pub struct Vocabulary {
    facts: Vec<Fact>,
    record_facts: FactSet,
    /// Division code of each department, 6 digits.
    regions: BTreeMap<DepartmentCode, String>,
    holidays: Holidays,
}

/// What request facts are decided on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Situation<'a> {
    pub(super) purpose: &'a Purpose,
    pub(super) subject: &'a Subject,
    pub(super) given: &'a Given,
    pub(super) now: Timestamp,
}

impl Vocabulary {
    /// INVARIANT: at most [`MAX_FACTS`] facts, no name twice; `file` sees to it.
    pub(super) fn new(facts: Vec<Fact>, regions: BTreeMap<DepartmentCode, String>, holidays: Holidays) -> Self {
        let on_record = facts.iter().enumerate().filter(|(_, fact)| fact.stage() == Stage::Record);
        let record_facts = on_record.map(|(index, _)| index).collect();
        Self { facts, record_facts, regions, holidays }
    }

    /// All facts, in the order of their indexes.
    pub fn facts(&self) -> &[Fact] {
        &self.facts
    }

    /// A fact by its index.
    pub fn get(&self, fact: usize) -> Option<&Fact> {
        self.facts.get(fact)
    }

    /// Index of the fact of this name.
    pub fn index(&self, name: &str) -> Option<usize> {
        self.facts.iter().position(|fact| &*fact.name == name)
    }

    /// The facts of the stage `record`.
    pub(super) const fn record_facts(&self) -> FactSet {
        self.record_facts
    }

    /// The registries that some of the facts need.
    pub(super) fn needs(&self, facts: FactSet) -> Needs {
        let mut needs = Needs::default();
        for fact in facts.iter().filter_map(|fact| self.get(fact)) {
            needs.case |= fact.needs_case();
            needs.consent |= matches!(fact.source, FactSource::ConsentGiven);
        }
        needs
    }

    /// The truth of those of `facts` that are of the stage `request`.
    pub(super) fn request_truths(&self, facts: FactSet, at: &Situation<'_>) -> Truths {
        let mut truths = Truths::NONE;
        for (index, fact) in facts.iter().filter_map(|index| Some((index, self.get(index)?))) {
            truths.set(index, self.request_truth(fact, at));
        }
        truths
    }

    fn request_truth(&self, fact: &Fact, at: &Situation<'_>) -> Option<bool> {
        match &fact.source {
            FactSource::CaseOpen => at.given.case.as_ref().map(|case| case.open),
            FactSource::SubjectInCase => at.given.case.as_ref().and_then(|case| is_in_case(case, at.subject)),
            // Without a consent there is nothing to ask for, and none is given.
            FactSource::ConsentGiven if at.purpose.basis() != Basis::Consent => Some(false),
            FactSource::ConsentGiven => at.given.consent,
            FactSource::TokenBasis(basis) => Some(at.purpose.basis() == *basis),
            FactSource::Hours { from, until, workdays } => {
                let local = at.now.in_china();
                let within = (*from..*until).contains(&local.time());
                match (within, workdays) {
                    (false, _) => Some(false),
                    (true, false) => Some(true),
                    (true, true) => self.holidays.is_workday(local.date()),
                }
            }
            FactSource::SameRegion { case, digits } => {
                let of_consumer = self.regions.get(at.purpose.consumer())?;
                let other = if *case {
                    &at.given.case.as_ref()?.region
                } else {
                    self.regions.get(&at.subject.certificate_type().provider)?
                };
                Some(of_consumer.get(..*digits)? == other.get(..*digits)?)
            }
            FactSource::RecordMatches { .. } | FactSource::RecordFlag { .. } => None,
        }
    }

    /// Facts of the stage `record` that can't be decided whatever the record says, because a registry did not answer.
    pub(super) fn undecidable(&self, facts: FactSet, given: &Given) -> FactSet {
        if given.case.is_some() {
            return FactSet::EMPTY;
        }
        facts.iter().filter(|index| self.get(*index).is_some_and(Fact::needs_case)).collect()
    }

    /// The truth of those of `facts` that are of the stage `record`, on an encoded record.
    pub(super) fn record_truths(
        &self,
        facts: FactSet,
        kind: &CertificateType,
        case: Option<&Case>,
        record: &[u8],
    ) -> Result<Truths, ProjectError> {
        let mut truths = Truths::NONE;
        for (index, fact) in facts.iter().filter_map(|index| Some((index, self.get(index)?))) {
            let inputs = fact.inputs(&kind.code);
            let truth = match &fact.source {
                FactSource::RecordMatches { role, .. } => match case {
                    Some(case) => answer::any_equals(kind, record, inputs, &numbers(case, role))?,
                    None => None,
                },
                FactSource::RecordFlag { .. } => answer::flag(kind, record, inputs)?,
                _ => continue,
            };
            truths.set(index, truth);
        }
        Ok(truths)
    }

    /// True if both have the same table of holidays.
    pub(super) fn same_holidays(&self, other: &Self) -> bool {
        self.holidays == other.holidays
    }

    /// The first day from `today` on of which some of the facts needs to know whether it is worked and can't; none if no
    /// fact needs it.
    pub(super) fn workdays_end(&self, facts: FactSet, today: Date) -> Option<Date> {
        let needed = |fact: &Fact| matches!(fact.source, FactSource::Hours { workdays: true, .. });
        let named = facts.iter().filter_map(|fact| self.get(fact)).any(needed);
        let unknown = (today.year()..=Date::MAX.year()).find(|year| !self.holidays.has(*year))?;
        let first = Date::from_calendar_date(unknown, Month::January, 1).ok()?;
        named.then(|| first.max(today))
    }
}

/// Attributes that hold a number by which a person or an entity is known.
const NUMBERS: [&str; 2] = ["id_no", "uscc"];

/// The numbers of everybody who has a role in the case.
fn numbers<'a>(case: &'a Case, role: &str) -> Vec<&'a str> {
    let in_role = case.parties.iter().filter(|party| party.role == role);
    let numbers = in_role.flat_map(|party| NUMBERS.iter().filter_map(|name| party.attribute(name)));
    numbers.filter(|number| !number.is_empty()).collect()
}

/// True if the subject's role is in the case and the keys that name it are those of the case's people: every key that is
/// a number must be the number of a party in the role it comes from, and every other key must equal what the registry
/// knows of that party. Where no key is a number, the registry must know all of them. None if the registry knows no key
/// of the subject's own role: somebody else's number, such as the mother's, does not tell which of her children it is.
fn is_in_case(case: &Case, subject: &Subject) -> Option<bool> {
    if !case.parties.iter().any(|party| party.role == subject.role()) {
        return Some(false);
    }
    let (mut own, mut numbers, mut unconfirmed) = (0, 0, 0);
    for key in subject.keys() {
        let in_role = || case.parties.iter().filter(|party| party.role == key.role);
        let known = |party: &Party| party.attribute(&key.attribute).map(|known| known.eq_ignore_ascii_case(&key.value));
        let is_number = matches!(key.kind, ValueKind::IdNumber | ValueKind::Uscc | ValueKind::PersonOrEntityNo);
        if in_role().any(|party| known(party) == Some(true)) {
            numbers += usize::from(is_number);
            own += usize::from(key.role == subject.role());
        } else if is_number || in_role().next().is_none() || in_role().all(|party| known(party).is_some()) {
            return Some(false);
        } else {
            unconfirmed += 1;
        }
    }
    (own > 0).then_some(numbers > 0 || unconfirmed == 0)
}
