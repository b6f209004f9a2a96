//! The access record while a request is under way: each step notes what it found, so whatever way the request ends, the
//! entry tells how far it came.

use super::verify::Results;
use super::{Call, Refused, Release, Released};
use crate::audit::receipt::{digest_of_records, digest_of_results};
use crate::audit::{
    AccessEntry, ComparedField, Comparison, Entry, EntrySubject, LegalBasis, MaskedField, Mode as EntryMode, Outcome,
    RecordDecision, WithheldField,
};
use crate::catalog::{CertificateType, Fields, Subject};
use crate::connectors::Fetched;
use crate::identity::{Basis, Purpose};
use crate::ids::{RequestId, SpiffeId};
use crate::policy::{Compared, Explanation, Mode, Permit, Settled, Truths, Verdict, Withheld, WithheldReason};

/// An entry being filled. Its outcome stands only once the request has ended.
#[derive(Debug)]
pub(super) struct Draft(AccessEntry);

impl Draft {
    pub(super) fn new(call: &Call) -> Self {
        Self(AccessEntry {
            caller_request_id: call.caller_request_id.clone().unwrap_or_default(),
            peer: Some(call.peer),
            method: call.method.to_owned(),
            trace_id: Some(*call.trace.trace_id()),
            ..AccessEntry::new(call.id, call.caller.id().clone(), Outcome::Rejected)
        })
    }

    /// The entry for `count` refusals of one caller that were only counted.
    pub(super) fn counted(caller: SpiffeId, count: u32) -> Entry {
        Entry::Access(Box::new(AccessEntry {
            detail: "counted".to_owned(),
            count,
            ..AccessEntry::new(RequestId::generate(), caller, Outcome::Limited)
        }))
    }

    pub(super) fn purpose(&mut self, purpose: &Purpose) {
        let entry = &mut self.0;
        entry.consumer = Some(purpose.consumer().clone());
        purpose.officer().clone_into(&mut entry.officer);
        purpose.issuer().clone_into(&mut entry.token_issuer);
        purpose.token_id().clone_into(&mut entry.token_id);
        purpose.matter().clone_into(&mut entry.matter);
        entry.case_id = Some(purpose.case_id().clone());
        entry.legal_basis = Some(match purpose.basis() {
            Basis::StatutoryDuty => LegalBasis::StatutoryDuty,
            Basis::Consent => LegalBasis::Consent,
        });
        purpose.basis_reference().clone_into(&mut entry.basis_reference);
        purpose.text().clone_into(&mut entry.purpose);
    }

    pub(super) fn certificate_type(&mut self, kind: &CertificateType, mode: Mode) {
        self.0.certificate_type.clone_from(&kind.code);
        self.0.mode = Some(match mode {
            Mode::Verify => EntryMode::Verify,
            Mode::Query => EntryMode::Query,
            Mode::File => EntryMode::File,
        });
    }

    pub(super) fn subject(&mut self, subject: &Subject, want: Fields) {
        let kind = subject.certificate_type();
        self.0.subject = Some(EntrySubject {
            role: subject.role().to_owned(),
            keys: subject.keys().iter().map(|key| (key.name.clone(), key.value.clone())).collect(),
        });
        self.0.requested = paths(kind, want);
    }

    pub(super) fn permit(&mut self, permit: &Permit) {
        let kind = permit.certificate_type();
        self.0.policy = Some(*permit.policy_hash().as_bytes());
        self.0.withheld = permit.withheld().iter().map(|field| withheld(kind, field)).collect();
        self.facts(permit, permit.truths());
    }

    fn facts(&mut self, permit: &Permit, truths: Truths) {
        self.0.facts = permit.facts(truths).map(|(name, truth)| (name.to_owned(), truth)).collect();
    }

    /// The provider is about to be asked, by this request's id.
    pub(super) fn asks(&mut self) {
        self.0.fetched_by = Some(self.0.request_id);
    }

    pub(super) fn fetched(&mut self, fetched: &Fetched) {
        self.0.cached = fetched.cached;
        self.0.fetched_by = Some(fetched.answer.fetched_by);
        self.0.fetched_at = Some(fetched.answer.fetched_at);
        self.0.provider_us = micros(fetched.took);
    }

    pub(super) fn detail(&mut self, detail: &str) {
        detail.clone_into(&mut self.0.detail);
    }

    /// What became of each field of each record, the ones that leave nothing included.
    pub(super) fn settled(&mut self, permit: &Permit, records: &[Released], truths: Truths) {
        let kind = permit.certificate_type();
        self.facts(permit, truths);
        let on_record = |field: &&Withheld| field.reason == WithheldReason::RecordCondition;
        self.0.records = (records.iter())
            .map(|record| RecordDecision {
                released: paths(kind, record.clear),
                masked: (record.masked.iter())
                    .map(|(leaf, mask)| MaskedField { field: kind.numbers(*leaf), mask: mask.name().to_owned() })
                    .collect(),
                withheld: record.withheld.iter().filter(on_record).map(|field| withheld(kind, field)).collect(),
                unknown_dropped: record.unknown_dropped,
            })
            .collect();
    }

    pub(super) fn released(&mut self, release: &Release) {
        let entry = &mut self.0;
        entry.answer_digest = Some(digest_of_records(release.records.iter().map(|record| record.bytes.as_ref())));
        entry.grants.clone_from(&release.grants);
        let whole = release.records.iter().all(|record| record.withheld.is_empty());
        entry.outcome = if whole { Outcome::Released } else { Outcome::Partial };
    }

    /// What each record that was compared forbids.
    pub(super) fn compared<'a>(
        &mut self,
        permit: &Permit,
        records: impl Iterator<Item = &'a Settled<'a>>,
        truths: Truths,
    ) {
        let kind = permit.certificate_type();
        self.facts(permit, truths);
        let forbidden = |settled: &Settled<'_>| settled.withheld().iter().map(|field| withheld(kind, field)).collect();
        self.0.records = records
            .map(|settled| RecordDecision { withheld: forbidden(settled), ..RecordDecision::default() })
            .collect();
    }

    /// What the caller is told of its claims.
    pub(super) fn verified(&mut self, results: &Results) {
        let kind = results.permit.certificate_type();
        let entry = &mut self.0;
        entry.compared = (results.verified.iter())
            .map(|verified| ComparedField { field: kind.numbers(verified.field), result: comparison(verified.result) })
            .collect();
        let told = results.verified.iter().map(|verified| i32::from(verified.result.number()));
        entry.answer_digest = Some(digest_of_results(told));
        entry.grants = results.permit.grants().cloned().collect();
        entry.outcome = if results.found { Outcome::Verified } else { Outcome::NotFound };
    }

    /// What would be released; nothing was, so no record stands here.
    pub(super) fn explained(&mut self, explanation: &Explanation) {
        let entry = &mut self.0;
        entry.grants.clone_from(&explanation.grants);
        let whole =
            explanation.fields.iter().all(|field| matches!(field.verdict, Verdict::Released | Verdict::Masked(_)));
        entry.outcome = match (&explanation.refusal, whole) {
            (Some(_), _) => Outcome::Denied,
            (None, true) => Outcome::Released,
            (None, false) => Outcome::Partial,
        };
    }

    pub(super) fn refused(&mut self, refused: &Refused) {
        let entry = &mut self.0;
        entry.outcome = refused.reason.outcome();
        entry.error_reason = refused.reason.number();
        if entry.detail.is_empty() {
            entry.detail =
                refused.metadata.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ");
        }
    }

    /// What the entry would say if its answer were not given after all: who asked what about whom, and nothing of records.
    pub(super) fn without_answer(&self) -> Self {
        let entry = &self.0;
        Self(AccessEntry {
            caller_request_id: entry.caller_request_id.clone(),
            peer: entry.peer,
            method: entry.method.clone(),
            trace_id: entry.trace_id,
            consumer: entry.consumer.clone(),
            officer: entry.officer.clone(),
            token_issuer: entry.token_issuer.clone(),
            token_id: entry.token_id.clone(),
            matter: entry.matter.clone(),
            case_id: entry.case_id.clone(),
            legal_basis: entry.legal_basis,
            basis_reference: entry.basis_reference.clone(),
            purpose: entry.purpose.clone(),
            certificate_type: entry.certificate_type.clone(),
            subject: entry.subject.clone(),
            mode: entry.mode,
            policy: entry.policy,
            cached: entry.cached,
            fetched_by: entry.fetched_by,
            ..AccessEntry::new(entry.request_id, entry.caller.clone(), Outcome::Rejected)
        })
    }

    /// Stands for the entry at `index`, whose answer was not given: the request was `refused`.
    pub(super) fn corrects(&mut self, index: u64, refused: &Refused) {
        self.refused(refused);
        self.0.outcome = Outcome::Cancelled;
        self.0.corrects = Some(index);
    }

    pub(super) fn finish(mut self, call: &Call) -> Entry {
        self.0.total_us = micros(call.started.elapsed());
        self.into_entry()
    }

    pub(super) fn into_entry(self) -> Entry {
        Entry::Access(Box::new(self.0))
    }
}

fn micros(duration: std::time::Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

const fn comparison(result: Compared) -> Comparison {
    match result {
        Compared::Match => Comparison::Match,
        Compared::Mismatch => Comparison::Mismatch,
        Compared::CannotTell => Comparison::CannotTell,
    }
}

fn paths(kind: &CertificateType, fields: Fields) -> Vec<Vec<u32>> {
    fields.iter().map(|field| kind.numbers(field)).collect()
}

fn withheld(kind: &CertificateType, field: &Withheld) -> WithheldField {
    WithheldField {
        field: kind.numbers(field.leaf),
        reason: field.reason.number(),
        detail: field.condition.as_deref().unwrap_or_default().to_owned(),
    }
}
