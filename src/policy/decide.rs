//! The decision: a pure read of a table, on every request, a cached answer included. Nothing here is remembered, so there
//! is nothing to invalidate.
//!
//! Per field, in this order:
//! 1. The catalog lets nobody have it: `NEVER_SHARED`.
//! 2. No grant of the cell (consumer, matter, certificate type) names it: `NOT_GRANTED`.
//! 3. A deny rule names it: `DENIED`, whatever the grants say.
//! 4. Each grant that names it is asked for the subject's role, for its mode, for its days and, if the field is sensitive,
//!    for the basis in the token. One that passes gives the field; clear beats masked, a weaker mask beats a stronger one.
//! 5. If none passes, the reason is that of the grant which came furthest, see [`WithheldReason`].
//!
//! Conditions on facts (is the case open, is the record sealed) belong into step 4: each grant and each deny would name
//! facts from a closed vocabulary; a grant passes only if all are known true, a deny applies unless one is known false.

use std::sync::Arc;

use time::Date;

use super::PolicyHash;
use super::grant::{Deny, Grant, Mode};
use super::mask::Mask;
use crate::catalog::{CertificateType, Fields};
use crate::identity::Basis;
use crate::ids::DepartmentCode;

/// Why a field is withheld. The order is that of usefulness to the caller, least first: where several grants fail, and
/// where a whole request is refused, the greatest stands for all.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum WithheldReason {
    /// The catalog lets nobody have it.
    NeverShared,
    /// No grant names it.
    NotGranted,
    /// A deny rule applies.
    Denied,
    /// A grant names it for subjects in other roles.
    RoleNotGranted,
    /// A grant allows comparing it, not reading it.
    VerifyOnly,
    /// A grant named it until a day that has passed.
    GrantExpired,
    /// A grant will name it from a day to come.
    GrantNotYetValid,
    /// A sensitive field: the token lacks a consent reference, or cites none of the grant's legal bases.
    BasisMissing,
}

impl WithheldReason {
    /// Every reason, least useful first.
    pub const ALL: [Self; 8] = [
        Self::NeverShared,
        Self::NotGranted,
        Self::Denied,
        Self::RoleNotGranted,
        Self::VerifyOnly,
        Self::GrantExpired,
        Self::GrantNotYetValid,
        Self::BasisMissing,
    ];

    /// Its stable name, without `WITHHELD_REASON_`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NeverShared => "NEVER_SHARED",
            Self::NotGranted => "NOT_GRANTED",
            Self::Denied => "DENIED",
            Self::RoleNotGranted => "ROLE_NOT_GRANTED",
            Self::VerifyOnly => "VERIFY_ONLY",
            Self::GrantExpired => "GRANT_EXPIRED",
            Self::GrantNotYetValid => "GRANT_NOT_YET_VALID",
            Self::BasisMissing => "BASIS_MISSING",
        }
    }

    /// Its number in `oncegate.gateway.v1.WithheldReason`, as access records hold it.
    pub const fn number(self) -> i32 {
        match self {
            Self::NotGranted => 1,
            Self::GrantExpired => 2,
            Self::GrantNotYetValid => 3,
            Self::RoleNotGranted => 4,
            Self::VerifyOnly => 5,
            Self::NeverShared => 6,
            Self::BasisMissing => 7,
            Self::Denied => 8,
        }
    }
}

/// Why a whole request is refused: the most useful of its fields' reasons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The reason.
    pub reason: WithheldReason,
    /// The grant that came furthest, where one names a field that was asked for and no deny rule took it away.
    pub grant: Option<Arc<str>>,
}

/// Evidence of one decision, and all that later steps may act on: what to fetch, what to release, what to record.
/// Made only by [`Policy::decide`](super::Policy::decide).
#[derive(Clone, Debug)]
pub struct Permit {
    certificate_type: Arc<CertificateType>,
    released: Fields,
    masked: Vec<(Mask, Fields)>,
    withheld: Vec<(usize, WithheldReason)>,
    /// Fields that show whom a record is about.
    matches: Fields,
    grants: Vec<Arc<str>>,
    refusal: Option<Refusal>,
    policy: PolicyHash,
}

impl Permit {
    /// The certificate type that it is about.
    pub fn certificate_type(&self) -> &Arc<CertificateType> {
        &self.certificate_type
    }

    /// Leaves that may leave as they are.
    pub fn released(&self) -> Fields {
        self.released
    }

    /// Leaves that may leave in a masked form, weakest mask first; no leaf twice, none of them released.
    pub fn masked(&self) -> &[(Mask, Fields)] {
        &self.masked
    }

    /// Leaves that were asked for and may not leave, ascending, each with its reason.
    pub fn withheld(&self) -> &[(usize, WithheldReason)] {
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

    /// What to ask the provider for: what may leave, and what shows that the answer is about the subject. Empty if nothing
    /// may leave.
    pub fn fetch_fields(&self) -> Fields {
        if self.may_release() {
            self.masked.iter().fold(self.released | self.matches, |all, (_, fields)| all | *fields)
        } else {
            Fields::EMPTY
        }
    }

    /// Ids of the grants that give at least one of the fields, in any form.
    pub fn grants(&self) -> &[Arc<str>] {
        &self.grants
    }

    /// Hash of the policy that decided.
    pub fn policy_hash(&self) -> &PolicyHash {
        &self.policy
    }
}

/// What is asked: the parts of caller, purpose and subject that a decision depends on.
#[derive(Debug)]
pub(super) struct Ask<'a> {
    pub(super) consumer: &'a DepartmentCode,
    pub(super) matter: &'a str,
    pub(super) certificate_type: &'a Arc<CertificateType>,
    pub(super) role: &'a str,
    pub(super) want: Fields,
    pub(super) matches: Fields,
    pub(super) basis: Basis,
    pub(super) reference: &'a str,
    /// True if every field counts as sensitive because the subject is under 14 (PIPL art. 28).
    pub(super) minor: bool,
    /// Today in China.
    pub(super) today: Date,
}

/// Everything granted, as a table: one cell per (consumer, matter, certificate type), sorted by these.
#[derive(Debug, Default)]
pub(super) struct Table {
    cells: Vec<Cell>,
}

#[derive(Debug)]
struct Cell {
    consumer: DepartmentCode,
    matter: String,
    certificate_type: Arc<CertificateType>,
    grants: Vec<Arc<Grant>>,
    denied: Fields,
}

impl Cell {
    fn key(&self) -> (&str, &str, &str) {
        (self.consumer.as_str(), &self.matter, &self.certificate_type.code)
    }
}

impl Table {
    /// Sorts checked grants into cells; `type_of` knows every type they name.
    pub(super) fn new(
        grants: &[Arc<Grant>],
        denies: &[Deny],
        type_of: impl Fn(&str) -> Option<Arc<CertificateType>>,
    ) -> Self {
        let mut table = Self::default();
        for grant in grants {
            let Some(certificate_type) = type_of(&grant.certificate_type) else { continue };
            match table.find(&grant.consumer, &grant.matter, &grant.certificate_type) {
                Ok(at) => table.cells.get_mut(at).into_iter().for_each(|cell| cell.grants.push(Arc::clone(grant))),
                Err(at) => {
                    let cell = Cell {
                        consumer: grant.consumer.clone(),
                        matter: grant.matter.clone(),
                        certificate_type,
                        grants: vec![Arc::clone(grant)],
                        denied: Fields::EMPTY,
                    };
                    table.cells.insert(at, cell);
                }
            }
        }
        for deny in denies {
            for cell in &mut table.cells {
                let concerned = cell.matter == deny.matter
                    && cell.certificate_type.code == deny.certificate_type
                    && deny.consumers.as_ref().is_none_or(|consumers| consumers.contains(&cell.consumer));
                if concerned {
                    cell.denied |= deny.fields;
                }
            }
        }
        table
    }

    fn find(&self, consumer: &DepartmentCode, matter: &str, certificate_type: &str) -> Result<usize, usize> {
        self.cells.binary_search_by(|cell| cell.key().cmp(&(consumer.as_str(), matter, certificate_type)))
    }

    pub(super) fn decide(&self, ask: &Ask<'_>, policy: PolicyHash) -> Permit {
        let certificate_type = Arc::clone(ask.certificate_type);
        let cell = self.find(ask.consumer, ask.matter, &certificate_type.code).ok().and_then(|at| self.cells.get(at));
        // Field indexes mean the same only within one catalog: a subject of another one than the grants' gets nothing.
        let cell = cell.filter(|cell| Arc::ptr_eq(&cell.certificate_type, &certificate_type));
        let (grants, denied) = cell.map_or((&[][..], Fields::EMPTY), |cell| (cell.grants.as_slice(), cell.denied));

        let never = ask.want & certificate_type.never;
        let open = ask.want - never - denied;
        let mut clear = Fields::EMPTY;
        let mut masks = [Fields::EMPTY; Mask::ALL.len()];
        let mut givers = Vec::new();
        let mut failures = Vec::new();
        for grant in grants {
            let named = grant.fields & open;
            let (given, failure) = judge(grant, named, ask);
            if let Some((fields, reason)) = failure {
                failures.push((fields, reason, &grant.id));
            }
            if given.is_empty() {
                continue;
            }
            givers.push(Arc::clone(&grant.id));
            clear |= given & grant.clear();
            for (mask, fields) in &grant.masks {
                if let Some(of_mask) = masks.get_mut(*mask as usize) {
                    *of_mask |= given & *fields;
                }
            }
        }

        let mut given = clear;
        let mut masked = Vec::new();
        for (mask, fields) in Mask::ALL.into_iter().zip(masks) {
            let left = fields - given;
            if !left.is_empty() {
                masked.push((mask, left));
                given |= left;
            }
        }

        let named = grants.iter().fold(Fields::EMPTY, |all, grant| all | grant.fields);
        let reason = |leaf: usize| {
            if never.contains(leaf) {
                WithheldReason::NeverShared
            } else if denied.contains(leaf) && named.contains(leaf) {
                WithheldReason::Denied
            } else {
                let of_leaf = failures.iter().filter(|(fields, ..)| fields.contains(leaf));
                of_leaf.map(|(_, reason, _)| *reason).max().unwrap_or(WithheldReason::NotGranted)
            }
        };
        let withheld: Vec<_> = (ask.want - given).iter().map(|leaf| (leaf, reason(leaf))).collect();
        let refusal = given.is_empty().then(|| {
            let reason = withheld.iter().map(|(_, reason)| *reason).max().unwrap_or(WithheldReason::NotGranted);
            let grant = failures.iter().find(|(_, of_grant, _)| *of_grant == reason).map(|(.., id)| Arc::clone(id));
            Refusal { reason, grant }
        });
        Permit {
            certificate_type,
            released: clear,
            masked,
            withheld,
            matches: ask.matches,
            grants: givers,
            refusal,
            policy,
        }
    }
}

/// What a grant gives of the fields `named`, and why not the others.
fn judge(grant: &Grant, named: Fields, ask: &Ask<'_>) -> (Fields, Option<(Fields, WithheldReason)>) {
    if named.is_empty() {
        return (Fields::EMPTY, None);
    }
    let refused = |reason| (Fields::EMPTY, Some((named, reason)));
    if !grant.roles.iter().any(|role| role == ask.role) {
        return refused(WithheldReason::RoleNotGranted);
    }
    if grant.mode < Mode::Query {
        return refused(WithheldReason::VerifyOnly);
    }
    if ask.today > grant.valid_until {
        return refused(WithheldReason::GrantExpired);
    }
    if ask.today < grant.valid_from {
        return refused(WithheldReason::GrantNotYetValid);
    }
    let justified = match ask.basis {
        Basis::Consent => !ask.reference.is_empty(),
        Basis::StatutoryDuty => grant.legal_basis.iter().any(|citation| citation == ask.reference),
    };
    let sensitive = if ask.minor { named } else { named & ask.certificate_type.sensitive };
    if justified || sensitive.is_empty() {
        (named, None)
    } else {
        (named - sensitive, Some((sensitive, WithheldReason::BasisMissing)))
    }
}
