//! The decision before a provider is asked: a pure read of a table, on every request, a cached answer included. Nothing
//! here is remembered, so there is nothing to invalidate.
//!
//! Per field, in this order:
//! 1. The catalog lets nobody have it: `NEVER_SHARED`.
//! 2. No grant of the cell (consumer, matter, certificate type) names it: `NOT_GRANTED`.
//! 3. A deny rule names it, and none of the rule's conditions is known false: `DENIED`, whatever the grants say.
//! 4. Each grant that names it is asked for the subject's role, for its mode, for its days, for the basis in the token if
//!    the field is sensitive, and for its conditions, each of which must be known true. One that passes may give the field.
//! 5. If none passes, the reason is that of the grant which came furthest, see [`WithheldReason`].
//!
//! Conditions on the record itself are still open then; `settle` decides them on the provider's answer.

use std::sync::Arc;

use time::Date;

use super::PolicyHash;
use super::facts::{Case, FactSet, Given, Truths, Vocabulary};
use super::grant::{Deny, Grant, Mode};
use super::mask::Mask;
use super::pseudonym::{PseudonymKey, Pseudonyms};
use super::reason::{Refusal, Withheld, WithheldReason};
use crate::catalog::{CertificateType, Fields};
use crate::identity::Basis;
use crate::ids::DepartmentCode;

/// Evidence of one decision, and all that later steps may act on: what to fetch and what may be released if the record
/// allows it. Made only by [`Policy::decide`](super::Policy::decide).
#[derive(Clone, Debug)]
pub struct Permit {
    pub(super) certificate_type: Arc<CertificateType>,
    pub(super) mode: Mode,
    /// Asked for and may leave in some form, if the record allows it.
    pub(super) open: Fields,
    /// Grants that give some of `open`, each with what it gives.
    pub(super) candidates: Vec<(Arc<Grant>, Fields)>,
    /// Denies that only the record can lift.
    pub(super) pending: Vec<CellDeny>,
    /// Facts of the stage `record` that candidates and pending denies name.
    pub(super) record_facts: FactSet,
    /// Every fact that the decision rests on.
    pub(super) facts: FactSet,
    /// What is known of the facts of the stage `request`.
    pub(super) truths: Truths,
    pub(super) case: Option<Arc<Case>>,
    pub(super) vocabulary: Arc<Vocabulary>,
    withheld: Vec<Withheld>,
    refusal: Option<Refusal>,
    /// Fields that show whom a record is about, and those that its conditions are decided on.
    needed: Fields,
    /// The key of the consumer's pseudonyms, if a grant gives some.
    pub(super) pseudonyms: Option<Arc<Pseudonyms>>,
    policy: PolicyHash,
}

impl Permit {
    /// The certificate type that it is about.
    pub fn certificate_type(&self) -> &Arc<CertificateType> {
        &self.certificate_type
    }

    /// Whether fields are read or compared.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Fields that may leave in some form, or be compared, unless the record forbids it.
    pub fn open(&self) -> Fields {
        self.open
    }

    /// Leaves that were asked for and may not leave whatever the record says, ascending.
    pub fn withheld(&self) -> &[Withheld] {
        &self.withheld
    }

    /// True if at least one field may leave in some form. If not, the provider must not be asked.
    pub fn may_release(&self) -> bool {
        self.refusal.is_none()
    }

    /// Why nothing may leave; `None` if something may.
    pub fn refusal(&self) -> Option<&Refusal> {
        self.refusal.as_ref()
    }

    /// What to ask the provider for: what may leave, what conditions are decided on, and what shows that the answer is
    /// about the subject. Empty if nothing may leave.
    pub fn fetch_fields(&self) -> Fields {
        if self.may_release() { self.certificate_type.sources(self.open) | self.needed } else { Fields::EMPTY }
    }

    /// Ids of the grants that give some of [`Self::open`], unless the record forbids it.
    pub fn grants(&self) -> impl Iterator<Item = &Arc<str>> {
        self.candidates.iter().map(|(grant, _)| &grant.id)
    }

    /// Hash of the policy that decided.
    pub fn policy_hash(&self) -> &PolicyHash {
        &self.policy
    }

    /// What is known of facts before the record is seen.
    pub fn truths(&self) -> Truths {
        self.truths
    }

    /// The names of the facts that the decision rests on, each with its value among `truths`.
    pub fn facts(&self, truths: Truths) -> impl Iterator<Item = (&str, Option<bool>)> {
        self.facts.iter().filter_map(move |fact| Some((&*self.vocabulary.get(fact)?.name, truths.of(fact))))
    }
}

/// What is asked: the parts of caller, purpose and subject that a decision depends on.
#[derive(Debug)]
pub(super) struct Ask<'a> {
    pub(super) consumer: &'a DepartmentCode,
    pub(super) matter: &'a str,
    pub(super) certificate_type: &'a Arc<CertificateType>,
    pub(super) role: &'a str,
    pub(super) mode: Mode,
    pub(super) want: Fields,
    pub(super) matches: Fields,
    pub(super) basis: Basis,
    pub(super) reference: &'a str,
    /// True if every field counts as sensitive because the subject is under 14 (PIPL art. 28).
    pub(super) minor: bool,
    /// Today in China.
    pub(super) today: Date,
    /// What the registries said; its case decides record facts.
    pub(super) given: &'a Given,
}

/// Everything granted, as a table: one cell per (consumer, matter, certificate type), sorted by these.
#[derive(Debug, Default)]
pub(super) struct Table {
    cells: Vec<Cell>,
    vocabulary: Arc<Vocabulary>,
}

#[derive(Debug)]
pub(super) struct Cell {
    consumer: DepartmentCode,
    matter: String,
    pub(super) certificate_type: Arc<CertificateType>,
    pub(super) grants: Vec<Arc<Grant>>,
    pub(super) denies: Vec<CellDeny>,
    /// Every fact that its grants and denies name.
    pub(super) facts: FactSet,
    /// The key of the consumer's pseudonyms; none if there is none, or no grant gives any.
    pseudonyms: Option<Arc<Pseudonyms>>,
}

/// A deny rule within a cell.
#[derive(Clone, Debug)]
pub(super) struct CellDeny {
    pub(super) when: FactSet,
    pub(super) fields: Fields,
}

impl Cell {
    /// Consumer, matter and certificate type.
    pub(super) fn key(&self) -> (&str, &str, &str) {
        (self.consumer.as_str(), &self.matter, &self.certificate_type.code)
    }
}

impl Table {
    /// Sorts checked grants into cells; `type_of` knows every type they name.
    pub(super) fn new(
        grants: &[Arc<Grant>],
        denies: &[Deny],
        vocabulary: Arc<Vocabulary>,
        type_of: impl Fn(&str) -> Option<Arc<CertificateType>>,
    ) -> Self {
        let mut table = Self { cells: Vec::new(), vocabulary };
        for grant in grants {
            let Some(certificate_type) = type_of(&grant.certificate_type) else { continue };
            match table.find(&grant.consumer, &grant.matter, &grant.certificate_type) {
                Ok(at) => {
                    if let Some(cell) = table.cells.get_mut(at) {
                        cell.facts |= grant.when;
                        cell.grants.push(Arc::clone(grant));
                    }
                }
                Err(at) => {
                    let cell = Cell {
                        consumer: grant.consumer.clone(),
                        matter: grant.matter.clone(),
                        certificate_type,
                        facts: grant.when,
                        grants: vec![Arc::clone(grant)],
                        denies: Vec::new(),
                        pseudonyms: None,
                    };
                    table.cells.insert(at, cell);
                }
            }
        }
        for deny in denies {
            for cell in &mut table.cells {
                if deny.concerns(&cell.consumer, &cell.matter, &cell.certificate_type.code) {
                    cell.facts |= deny.when;
                    cell.denies.push(CellDeny { when: deny.when, fields: deny.fields });
                }
            }
        }
        table
    }

    /// Derives the key of each cell that gives pseudonyms.
    pub(super) fn derive(&mut self, key: &PseudonymKey) {
        let gives = |grant: &Arc<Grant>| grant.masks.iter().any(|(mask, _)| *mask == Mask::Pseudonym);
        for cell in self.cells.iter_mut().filter(|cell| cell.grants.iter().any(gives)) {
            cell.pseudonyms = Some(Arc::new(key.of(&cell.consumer, &cell.matter)));
        }
    }

    /// All cells, by consumer, matter and certificate type.
    pub(super) fn cells(&self) -> &[Cell] {
        &self.cells
    }

    /// The cell; none if nothing is granted, or to a certificate type of another catalog: field indexes mean the same only
    /// within one.
    pub(super) fn cell(
        &self,
        consumer: &DepartmentCode,
        matter: &str,
        certificate_type: &Arc<CertificateType>,
    ) -> Option<&Cell> {
        let found = self.find(consumer, matter, &certificate_type.code).ok().and_then(|at| self.cells.get(at));
        found.filter(|cell| Arc::ptr_eq(&cell.certificate_type, certificate_type))
    }

    fn find(&self, consumer: &DepartmentCode, matter: &str, certificate_type: &str) -> Result<usize, usize> {
        self.cells.binary_search_by(|cell| cell.key().cmp(&(consumer.as_str(), matter, certificate_type)))
    }

    /// Decides with what is known of the facts of the stage `request`.
    pub(super) fn decide(&self, ask: &Ask<'_>, truths: Truths, policy: PolicyHash) -> Permit {
        let certificate_type = Arc::clone(ask.certificate_type);
        let cell = self.cell(ask.consumer, ask.matter, &certificate_type);
        let (grants, denies, facts) =
            cell.map_or((&[][..], &[][..], FactSet::EMPTY), |cell| (&*cell.grants, &*cell.denies, cell.facts));
        let record = self.vocabulary.record_facts() & facts;
        let undecidable = self.vocabulary.undecidable(record, ask.given);

        let never = ask.want & certificate_type.never;
        let mut failures = Vec::new();
        let mut pending = Vec::new();
        // By rules that apply for certain, and by those that may.
        let (mut sure, mut denied) = (Fields::EMPTY, Fields::EMPTY);
        for deny in denies.iter().filter(|deny| !deny.when.intersects(truths.known_false())) {
            let open = deny.when - truths.known_true();
            // One fact known false lifts it, whatever is unknown besides.
            let liftable = (open & record) - undecidable;
            if open.is_empty() {
                sure |= deny.fields;
            } else if liftable.is_empty() {
                denied |= deny.fields;
                let unknown = self.name_of(open);
                failures.push(Failure::of(deny.fields, WithheldReason::ConditionUnknown, unknown, None));
            } else {
                pending.push(CellDeny { when: liftable, fields: deny.fields });
            }
        }

        denied |= sure;
        let gives = |grant: &Grant| match ask.mode {
            Mode::Verify => grant.comparable(&certificate_type),
            Mode::Query | Mode::File => grant.fields,
        };
        let mut open = Fields::EMPTY;
        let mut candidates = Vec::new();
        let mut record_facts = pending.iter().fold(FactSet::EMPTY, |all, deny| all | deny.when);
        for grant in grants {
            let named = (gives(grant) & ask.want) - never - denied;
            let given = self.judge(grant, named, ask, truths, record, undecidable, &mut failures);
            if !given.is_empty() {
                open |= given;
                record_facts |= grant.when & record;
                candidates.push((Arc::clone(grant), given));
            }
        }

        let named = grants.iter().fold(Fields::EMPTY, |all, grant| all | gives(grant));
        let why = |leaf: usize| {
            let of_leaf = failures.iter().filter(|failure| failure.fields.contains(leaf));
            let furthest = of_leaf.max_by_key(|failure| failure.reason);
            let (reason, condition) = match furthest {
                _ if never.contains(leaf) => (WithheldReason::NeverShared, None),
                _ if !named.contains(leaf) => (WithheldReason::NotGranted, None),
                _ if sure.contains(leaf) => (WithheldReason::Denied, None),
                Some(failure) => (failure.reason, failure.condition.clone()),
                None => (WithheldReason::NotGranted, None),
            };
            Withheld { leaf, reason, condition }
        };
        let withheld: Vec<_> = (ask.want - open).iter().map(why).collect();
        let refusal = open.is_empty().then(|| refusal(&withheld, &failures));
        let inputs = record_facts.iter().filter_map(|fact| self.vocabulary.get(fact));
        let inputs = inputs.fold(Fields::EMPTY, |all, fact| all | fact.inputs(&certificate_type.code));
        Permit {
            certificate_type,
            mode: ask.mode,
            open,
            candidates,
            pending,
            record_facts,
            facts,
            truths,
            case: ask.given.case.clone(),
            vocabulary: Arc::clone(&self.vocabulary),
            withheld,
            refusal,
            needed: ask.matches | inputs,
            pseudonyms: cell.and_then(|cell| cell.pseudonyms.clone()),
            policy,
        }
    }

    /// What a grant may give of the fields `named`; `failures` says why not the others.
    #[expect(clippy::too_many_arguments, reason = "what a grant is judged by, as it stands in the decision")]
    fn judge(
        &self,
        grant: &Arc<Grant>,
        named: Fields,
        ask: &Ask<'_>,
        truths: Truths,
        record: FactSet,
        undecidable: FactSet,
        failures: &mut Vec<Failure>,
    ) -> Fields {
        if named.is_empty() {
            return Fields::EMPTY;
        }
        let mut refused = |fields, reason, condition| {
            failures.push(Failure::of(fields, reason, condition, Some(grant)));
            Fields::EMPTY
        };
        if !grant.roles.iter().any(|role| role == ask.role) {
            return refused(named, WithheldReason::RoleNotGranted, None);
        }
        if grant.mode < ask.mode {
            return refused(named, WithheldReason::VerifyOnly, None);
        }
        if ask.today > grant.valid_until {
            return refused(named, WithheldReason::GrantExpired, None);
        }
        if ask.today < grant.valid_from {
            return refused(named, WithheldReason::GrantNotYetValid, None);
        }
        let missing = grant.when - truths.known_true() - (record - undecidable);
        if let Some(fact) = (missing & truths.known_false()).iter().find_map(|fact| self.vocabulary.get(fact)) {
            return refused(named, fact.reason, Some(Arc::clone(&fact.name)));
        }
        if !missing.is_empty() {
            return refused(named, WithheldReason::ConditionUnknown, self.name_of(missing));
        }
        let justified = match ask.basis {
            Basis::Consent => !ask.reference.is_empty(),
            Basis::StatutoryDuty => grant.legal_basis.iter().any(|citation| citation == ask.reference),
        };
        let sensitive = if ask.minor { named } else { named & ask.certificate_type.sensitive };
        if justified || sensitive.is_empty() {
            named
        } else {
            refused(sensitive, WithheldReason::BasisMissing, None);
            named - sensitive
        }
    }

    fn name_of(&self, facts: FactSet) -> Option<Arc<str>> {
        facts.iter().find_map(|fact| self.vocabulary.get(fact)).map(|fact| Arc::clone(&fact.name))
    }
}

/// Fields that one rule does not let go, and why.
struct Failure {
    fields: Fields,
    reason: WithheldReason,
    condition: Option<Arc<str>>,
    grant: Option<Arc<str>>,
}

impl Failure {
    fn of(fields: Fields, reason: WithheldReason, condition: Option<Arc<str>>, grant: Option<&Arc<Grant>>) -> Self {
        Self { fields, reason, condition, grant: grant.map(|grant| Arc::clone(&grant.id)) }
    }
}

/// The most useful of the fields' reasons, with the grant that it comes from.
fn refusal(withheld: &[Withheld], failures: &[Failure]) -> Refusal {
    let Some(most) = withheld.iter().max_by_key(|withheld| withheld.reason) else {
        return Refusal { reason: WithheldReason::NotGranted, condition: None, grant: None };
    };
    let from = failures.iter().find(|failure| failure.reason == most.reason && failure.fields.contains(most.leaf));
    let grant = from.and_then(|failure| failure.grant.clone());
    Refusal { reason: most.reason, condition: most.condition.clone(), grant }
}
