//! `Explain`: what a lookup would release, and why, without looking. It takes a lookup's steps up to the decision, asks the
//! registries as a lookup would, and ends there: no department hears of it.

use std::sync::Arc;

use super::record::Draft;
use super::unescapable::Unescapable;
use super::{
    Call, Ending, Gateway, LookupRequest, Refusal, Refused, Wanted, certificate_type, matter, read_mask,
    subject_in_role,
};
use crate::audit::Recorded;
use crate::policy::{Explanation, Mode, PolicyHash};

/// An explanation, with the proof that it is on record.
#[derive(Debug)]
pub struct Explained {
    /// What would be released, and why.
    pub explanation: Explanation,
    /// The policy generation that would decide.
    pub policy: PolicyHash,
    /// The access record.
    pub recorded: Recorded,
}

/// An explanation that is not yet on record.
struct Would {
    explanation: Explanation,
    policy: PolicyHash,
}

impl Ending for Would {
    type Answer = Explained;

    fn recorded(self, recorded: Recorded) -> Explained {
        Explained { explanation: self.explanation, policy: self.policy, recorded }
    }
}

impl Gateway {
    /// Explains one lookup. The entry has the outcome that the decision would have had, and no records: that a field is
    /// open, or why it is not, says something about a case.
    ///
    /// # Errors
    /// The refusal, recorded. A decision that releases nothing is an explanation, not a refusal.
    pub async fn explain(
        self: &Arc<Self>,
        call: Arc<Call>,
        request: LookupRequest,
        mode: Mode,
    ) -> Result<Explained, Refusal> {
        call.take();
        let gateway = self.clone();
        Unescapable::new(&self.tasks, move |gone| async move {
            let mut draft = Draft::new(&call);
            let ended = gateway.bounded(&call, &gone, gateway.would(&call, request, mode, &mut draft)).await;
            gateway.close(&call, &gone, draft, ended).await
        })
        .await
    }

    /// What a lookup would release.
    async fn would(
        &self,
        call: &Call,
        request: LookupRequest,
        mode: Mode,
        draft: &mut Draft,
    ) -> Result<Would, Refused> {
        let policy = self.policy.load_full();
        let purpose = &self.purpose(call, &policy, &request.matter, &request.case_id, draft)?;
        let matter = &*matter(&policy, &request.matter)?;
        let kind = &certificate_type(&policy, &request.certificate_type)?;
        draft.certificate_type(kind, mode);
        let fields = read_mask(kind, mode, &request.read_mask)?;
        policy.catalog().check_subjects(&request.subjects)?;
        let subjects = &request.subjects;
        let about = subject_in_role(subjects, &request.subject_role)?;
        let wanted = Wanted { call, policy: &policy, purpose, matter, kind, about, subjects, fields };
        let (_, permit) = self.judge(&wanted, mode, draft).await?;
        let would = Would { explanation: permit.explain(), policy: *permit.policy_hash() };
        draft.explained(&would.explanation);
        Ok(would)
    }
}
