//! The decision on the provider's answer: conditions that only the record can tell, then the form of each field.
//!
//! [`settle`] looks at one encoded record. A grant gives its fields if all its record facts are known true; a pending
//! deny applies unless one of its facts is known false. What is left adds up: clear beats masked, a weaker mask beats a
//! stronger one.

use std::sync::Arc;

use super::decide::Permit;
use super::explain::Form;
use super::facts::{FactSet, Truths};
use super::mask::Mask;
use super::reason::{Refusal, Withheld, WithheldReason};
use super::wire::ProjectError;
use crate::catalog::Fields;

/// Evidence of what may leave of one record, bound to the record it was decided on. Made only by [`settle`].
#[derive(Clone, Debug)]
pub struct Settled<'a> {
    permit: &'a Permit,
    record: &'a [u8],
    forms: Forms,
    truths: Truths,
}

/// What a permit comes to when the record's facts are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Forms {
    pub(super) released: Fields,
    pub(super) masked: Vec<(Mask, Fields)>,
    pub(super) withheld: Vec<Withheld>,
    pub(super) grants: Vec<Arc<str>>,
}

impl Forms {
    /// The form of one of the permit's open leaves.
    pub(super) fn of(&self, leaf: usize) -> Form {
        if self.released.contains(leaf) {
            return Form::Clear;
        }
        let masked = self.masked.iter().find(|(_, fields)| fields.contains(leaf));
        masked.map_or(Form::Withheld, |(mask, _)| Form::Masked(*mask))
    }
}

impl<'a> Settled<'a> {
    /// The decision that it completes.
    pub fn permit(&self) -> &'a Permit {
        self.permit
    }

    /// The encoded record that it was decided on.
    pub fn record(&self) -> &'a [u8] {
        self.record
    }

    /// Leaves that may leave as they are.
    pub fn released(&self) -> Fields {
        self.forms.released
    }

    /// Leaves that may leave in a masked form, weakest mask first; no leaf twice, none of them released.
    pub fn masked(&self) -> &[(Mask, Fields)] {
        &self.forms.masked
    }

    /// Leaves that the record forbids, ascending; those that were withheld whatever it says are the permit's.
    pub fn withheld(&self) -> &[Withheld] {
        &self.forms.withheld
    }

    /// Ids of the grants that give at least one of the fields, in any form.
    pub fn grants(&self) -> &[Arc<str>] {
        &self.forms.grants
    }

    /// True if nothing may leave of this record.
    pub fn is_empty(&self) -> bool {
        self.forms.released.is_empty() && self.forms.masked.is_empty()
    }

    /// What is known of every fact that the decision rests on.
    pub fn truths(&self) -> Truths {
        self.permit.truths.and(self.truths)
    }

    /// Why nothing may leave, for records that leave nothing.
    pub fn refusal() -> Refusal {
        Refusal { reason: WithheldReason::RecordCondition, condition: None, grant: None }
    }
}

/// Decides on one record what may leave of it.
///
/// # Errors
/// If the record is no message; then nothing of it may leave.
pub fn settle<'a>(permit: &'a Permit, record: &'a [u8]) -> Result<Settled<'a>, ProjectError> {
    let truths = if permit.record_facts.is_empty() {
        Truths::NONE
    } else {
        permit.vocabulary.record_truths(
            permit.record_facts,
            &permit.certificate_type,
            permit.case.as_deref(),
            record,
        )?
    };
    Ok(Settled { permit, record, forms: forms(permit, truths), truths })
}

/// The form of each field under these truths of record facts. Pure.
pub(super) fn forms(permit: &Permit, truths: Truths) -> Forms {
    let mut denied = Fields::EMPTY;
    for deny in permit.pending.iter().filter(|deny| !deny.when.intersects(truths.known_false())) {
        denied |= deny.fields;
    }
    let mut clear = Fields::EMPTY;
    let mut masks = [Fields::EMPTY; Mask::ALL.len()];
    let mut grants = Vec::with_capacity(permit.candidates.len());
    for (grant, given) in &permit.candidates {
        let holds = truths.known_true().covers(grant.when & permit.record_facts);
        let given = if holds { *given - denied } else { Fields::EMPTY };
        if given.is_empty() {
            continue;
        }
        grants.push(Arc::clone(&grant.id));
        clear |= given - grant.masked();
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
    let withheld = (permit.open - given).iter().map(|leaf| forbidden(permit, truths, leaf)).collect();
    Forms { released: clear, masked, withheld, grants }
}

/// Why the record forbids a leaf: the exact reason of a fact that decided.
fn forbidden(permit: &Permit, truths: Truths, leaf: usize) -> Withheld {
    let code = |facts: FactSet| facts.iter().find_map(|fact| permit.vocabulary.get(fact)).map(|fact| fact.code.clone());
    let mut denies = permit.pending.iter().filter(|deny| deny.fields.contains(leaf));
    let by_deny = denies.find(|deny| !deny.when.intersects(truths.known_false())).and_then(|deny| code(deny.when));
    let by_grant = || {
        let mut naming = permit.candidates.iter().filter(|(_, given)| given.contains(leaf));
        naming.find_map(|(grant, _)| code((grant.when & permit.record_facts) - truths.known_true()))
    };
    Withheld { leaf, reason: WithheldReason::RecordCondition, condition: by_deny.or_else(by_grant) }
}
