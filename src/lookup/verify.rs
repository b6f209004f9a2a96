//! `Verify`: the steps of a lookup, but what the caller claims is compared with the record inside the gateway, and the
//! results alone leave. No record, a wrong key and an answer about somebody else come to the same.

use std::cmp::Reverse;
use std::sync::Arc;

use super::record::Draft;
use super::unescapable::Unescapable;
use super::{
    Call, Ending, Gateway, Reason, Refusal, Refused, Wanted, certificate_type, invalid, matter, subject_in_role,
    unfetched,
};
use crate::audit::Recorded;
use crate::catalog::{CaseSubject, CertificateType, Subject};
use crate::connectors::FetchError;
use crate::limits::{self, Attempt, Limited};
use crate::policy::{
    Claim, ClaimError, Compared, Mode, Permit, PolicyHash, Settled, Truths, Withheld, compare, settle,
};
use crate::telemetry::FieldDecision;

/// One call may claim this much.
const MAX_CLAIMS: usize = 32;

/// What `Verify` asks, as the API received it.
#[derive(Clone)]
pub struct VerifyRequest {
    /// Code of the matter.
    pub matter: String,
    /// Number of the case.
    pub case_id: String,
    /// Code of the certificate type.
    pub certificate_type: String,
    /// Role of the subject that the certificate is about.
    pub subject_role: String,
    /// Subjects of the case.
    pub subjects: Vec<CaseSubject>,
    /// Path and value of each claim.
    pub claims: Vec<(String, String)>,
}

/// Values stay out of logs.
impl std::fmt::Debug for VerifyRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VerifyRequest").field("claims", &self.claims.len()).finish_non_exhaustive()
    }
}

/// What comparing came to, with the proof that it is on record. Made only by `Gateway::record`.
#[derive(Debug)]
pub struct Verification {
    /// One per claim, in the order of the claims.
    pub results: Vec<Verified>,
    /// Certificate type.
    pub certificate_type: Arc<CertificateType>,
    /// Ids of the grants that let compare, unless the record forbids it.
    pub grants: Vec<String>,
    /// The policy generation that decided.
    pub policy: PolicyHash,
    /// The access record.
    pub recorded: Recorded,
}

/// One claim compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The leaf or predicate.
    pub field: usize,
    /// What came of it.
    pub result: Compared,
    /// Why it may not be compared.
    pub withheld: Option<Withheld>,
}

/// Results that are not yet on record.
pub(super) struct Results {
    pub(super) verified: Vec<Verified>,
    pub(super) permit: Permit,
    /// True if the department has a record of the subject.
    pub(super) found: bool,
}

impl Ending for Results {
    type Answer = Verification;

    fn recorded(self, recorded: Recorded) -> Verification {
        Verification {
            results: self.verified,
            certificate_type: self.permit.certificate_type().clone(),
            grants: self.permit.grants().map(ToString::to_string).collect(),
            policy: *self.permit.policy_hash(),
            recorded,
        }
    }
}

impl Gateway {
    /// One verification, from its token to its record. As for [`Gateway::lookup`], a caller who goes away can't escape the
    /// log.
    ///
    /// # Errors
    /// The refusal, recorded.
    pub async fn verify(self: &Arc<Self>, call: Arc<Call>, request: VerifyRequest) -> Result<Verification, Refusal> {
        call.take();
        let gateway = self.clone();
        Unescapable::new(&self.tasks, move |gone| async move {
            let mut draft = Draft::new(&call);
            let ended = gateway.bounded(&call, &gone, gateway.results(&call, request, &mut draft)).await;
            gateway.close(&call, &gone, draft, ended).await
        })
        .await
    }

    async fn results(&self, call: &Call, request: VerifyRequest, draft: &mut Draft) -> Result<Results, Refused> {
        let policy = self.policy.load_full();
        let purpose = self.purpose(call, &policy, &request.matter, &request.case_id, draft)?;
        let matter = matter(&policy, &request.matter)?;
        let kind = certificate_type(&policy, &request.certificate_type)?;
        draft.certificate_type(&kind, Mode::Verify);
        let claims = self.claims(&kind, &request.claims)?;
        policy.catalog().check_subjects(&request.subjects)?;
        let wanted = Wanted {
            call,
            policy: &policy,
            purpose: &purpose,
            matter: &matter,
            kind: &kind,
            about: subject_in_role(&request.subjects, &request.subject_role)?,
            subjects: &request.subjects,
            fields: claims.iter().map(Claim::field).collect(),
        };
        let (subject, permit) = self.decide(&wanted, Mode::Verify, draft).await?;
        // Taken before anything is told, so that calls at the same time can't share them.
        let holder = subject.holder();
        let (consumer, case_id, certificate_type) = (purpose.consumer(), purpose.case_id(), &kind.code);
        let attempt = self.attempt(&limits::Verified { consumer, holder, case_id, certificate_type }, &claims);
        let attempt = attempt.inspect_err(|limited| self.metrics.limited(limited.scope))?;
        let results = self.compared(&wanted, subject, permit, &claims, draft).await;
        if !results.as_ref().is_ok_and(is_wrong) {
            self.limits.was_right(attempt);
        }
        results
    }

    fn attempt(&self, verified: &limits::Verified<'_>, claims: &[Claim]) -> Result<Attempt, Limited> {
        let attempt = self.limits.attempt(verified)?;
        let mut other_days = claims.iter().filter(|claim| claim.is_of_another_day());
        match other_days.try_for_each(|_| self.limits.other_day(verified)) {
            Ok(()) => Ok(attempt),
            Err(limited) => {
                // Nothing is told.
                self.limits.was_right(attempt);
                Err(limited)
            }
        }
    }

    fn claims(&self, kind: &CertificateType, claims: &[(String, String)]) -> Result<Vec<Claim>, Refused> {
        if claims.is_empty() || claims.len() > MAX_CLAIMS {
            return Err(Reason::ClaimInvalid.into());
        }
        let today = self.clock.now().date_in_china();
        let mut read: Vec<Claim> = Vec::with_capacity(claims.len());
        for (position, (path, value)) in claims.iter().enumerate() {
            let refused = |rule: &'static str| {
                Refused::new(Reason::ClaimInvalid).with("claim", format!("claims[{position}]")).with("rule", rule)
            };
            let claim = Claim::new(kind, path, value, today).map_err(|error| match error {
                ClaimError::Unknown => {
                    Refused::new(Reason::FieldUnknown).with("path", format!("claims[{position}].path"))
                }
                ClaimError::Incomparable => refused("a field of this type can't be compared"),
                ClaimError::OtherDay => refused("an age is told for today alone"),
                ClaimError::Invalid(error) => refused(error.rule()),
            })?;
            if read.iter().any(|other| other.field() == claim.field()) {
                return Err(refused("a field is claimed twice"));
            }
            read.push(claim);
        }
        Ok(read)
    }

    async fn compared(
        &self,
        wanted: &Wanted<'_>,
        subject: Subject,
        permit: Permit,
        claims: &[Claim],
        draft: &mut Draft,
    ) -> Result<Results, Refused> {
        let kind = wanted.kind;
        let fetched = match self.fetch(wanted, subject, &permit, draft).await {
            Ok(fetched) => Some(fetched),
            Err(FetchError::NotFound | FetchError::AnotherSubject) => None,
            Err(error) => return Err(unfetched(kind, error)),
        };
        let records = fetched.as_ref().map(|fetched| fetched.answer.records.as_slice()).unwrap_or_default();
        let mut compared: Vec<(Vec<Compared>, Settled<'_>)> = Vec::with_capacity(records.len());
        for record in records {
            let settled = settle(&permit, record).map_err(|error| invalid(kind, &error, draft))?;
            let results = compare(&settled, claims).map_err(|error| invalid(kind, &error, draft))?;
            compared.push((results, settled));
        }
        let settled = || compared.iter().map(|(_, settled)| settled);
        if !records.is_empty() {
            // What the records do not agree on is not known of all.
            let truths = settled().map(Settled::truths).reduce(Truths::common).unwrap_or_default();
            draft.compared(&permit, settled(), truths);
        }
        // Claims are true together or not at all, so the results are those of one record: the nearest.
        let count = |results: &[Compared], of| results.iter().filter(|result| **result == of).count();
        let nearest = compared
            .iter()
            .rev()
            .max_by_key(|(results, _)| (count(results, Compared::Match), Reverse(count(results, Compared::Mismatch))));
        let on_record = nearest.map(|(_, settled)| settled.withheld()).unwrap_or_default();
        let withheld =
            |field| permit.withheld().iter().chain(on_record).find(|withheld| withheld.leaf == field).cloned();
        let result = |(position, claim): (usize, &Claim)| Verified {
            field: claim.field(),
            result: nearest.and_then(|(results, _)| results.get(position).copied()).unwrap_or(Compared::CannotTell),
            withheld: withheld(claim.field()),
        };
        let results: Vec<_> = claims.iter().enumerate().map(result).collect();
        let open = results.iter().filter(|result| result.withheld.is_none()).count();
        self.metrics.fields(FieldDecision::Compared, open);
        let found = nearest.is_some();
        let results = Results { verified: results, permit, found };
        draft.verified(&results);
        Ok(results)
    }
}

/// True if somebody who guesses would have learnt something: a value is another, or the keys may be. Nothing to compare
/// counts as nobody found, or the count would tell the two apart.
fn is_wrong(results: &Results) -> bool {
    let any = |of| results.verified.iter().any(|result| result.result == of);
    any(Compared::Mismatch) || !any(Compared::Match)
}
