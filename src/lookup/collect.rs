//! `Collect`: everything that a matter grants one consumer for one case, departments asked in parallel, each answer sent
//! as it arrives, each failing alone.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::record::Draft;
use super::{
    Answer, Call, Claim, Gateway, Ready, Reason, Refusal, Refused, Released, Wanted, certificate_type, matter,
};
use crate::catalog::{CaseSubject, CertificateType, Fields, Matter};
use crate::identity::Purpose;
use crate::ids::DepartmentCode;
use crate::policy::{Mode, Policy};

/// A plan has at most this many items: 16 subjects, each of every role, are never all granted every type.
const MAX_ITEMS: usize = 128;

/// What `Collect` asks, as the API received it.
#[derive(Debug, Clone)]
pub struct CollectRequest {
    /// Code of the matter.
    pub matter: String,
    /// Number of the case.
    pub case_id: String,
    /// Subjects of the case; a role may occur several times.
    pub subjects: Vec<CaseSubject>,
    /// Only these certificate types; empty for all.
    pub certificate_types: Vec<String>,
}

/// What a collection tells, in this order: the plan, each item as it ends, the summary.
#[derive(Debug)]
pub enum CollectEvent {
    /// What will be asked.
    Plan(Vec<PlannedItem>),
    /// One item ended.
    Item {
        /// Position in the plan.
        number: usize,
        /// Time from its start until its entry was durable.
        took: Duration,
        /// How it ended.
        result: Box<Result<ItemAnswer, Refusal>>,
    },
    /// All ended.
    Summary {
        /// Items that released at least one field.
        answered: usize,
        /// Items that failed.
        failed: usize,
        /// Distinct materials the matter asks of the applicant for this consumer.
        materials_demanded: usize,
        /// Of these, the ones that an answered item replaces.
        materials_avoided: usize,
    },
}

/// One item of the plan.
#[derive(Debug, Clone)]
pub struct PlannedItem {
    /// Certificate type.
    pub certificate_type: Arc<CertificateType>,
    /// Department that holds the record.
    pub provider: DepartmentCode,
    /// Role of the subject.
    pub role: String,
    /// The material it replaces.
    pub replaces: String,
    /// Index of the subject in the request; none if the case has nobody in the role.
    subject: Option<usize>,
    /// Fields that some grant names.
    fields: Fields,
}

/// What one item released.
#[derive(Debug)]
pub struct ItemAnswer {
    /// As for a lookup.
    pub answer: Answer,
    /// The item that already carried the very same records; then they are not sent again.
    pub same_as: Option<usize>,
}

impl Gateway {
    /// Runs a collection in a task of its own and sends its events to `events`. A caller who goes away, which closes the
    /// channel's other end, ends the items under way as CANCELLED; each stands in the log.
    ///
    /// # Errors
    /// The refusal, recorded, if nothing can be planned: token, matter, subjects, or no grant at all.
    pub async fn collect(
        self: &Arc<Self>,
        call: Arc<Call>,
        request: CollectRequest,
        events: mpsc::Sender<CollectEvent>,
    ) -> Result<(), Refusal> {
        call.take();
        let mut draft = Draft::new(&call);
        let policy = self.policy.load_full();
        let (purpose, matter, plan) = match self.plan(&call, &policy, &request, &mut draft) {
            Ok(planned) => planned,
            Err(refused) => {
                return Err(self.refuse(&call, draft, refused).await);
            }
        };
        // From here on each item is recorded by itself.
        let Some(claim) = call.claim() else {
            return Err(Refusal { refused: Reason::DeadlineExceeded.into(), recorded: None });
        };
        let (gateway, subjects) = (self.clone(), request.subjects);
        let collection = Collection { gateway, call, claim, policy, purpose, matter, subjects, plan };
        self.tasks.spawn(collection.run(events).in_current_span());
        Ok(())
    }

    fn plan(
        &self,
        call: &Call,
        policy: &Policy,
        request: &CollectRequest,
        draft: &mut Draft,
    ) -> Result<Planned, Refused> {
        let purpose = self.purpose(call, policy, &request.matter, &request.case_id, draft)?;
        let matter = matter(policy, &request.matter)?;
        for code in &request.certificate_types {
            certificate_type(policy, code)?;
        }
        policy.catalog().check_subjects(&request.subjects)?;

        // Grants add up: one item per certificate type and role, with the fields of all its grants. Those that have run
        // out count too: that a field is missing for this reason is worth knowing.
        let mut wanted: BTreeMap<(String, String), (Fields, String)> = BTreeMap::new();
        for grant in policy.grants_to(purpose.consumer(), &matter.code) {
            let code = &grant.certificate_type;
            let asked = request.certificate_types.is_empty() || request.certificate_types.contains(code);
            let in_token = purpose.certificate_types().is_none_or(|types| types.contains(code));
            if !(asked && in_token) {
                continue;
            }
            for role in &grant.roles {
                let entry = wanted.entry((code.clone(), role.clone())).or_default();
                entry.0 |= grant.fields;
                entry.1.clone_from(&grant.replaces);
            }
        }
        let mut plan = Vec::new();
        for ((code, role), (fields, replaces)) in wanted {
            let certificate_type = certificate_type(policy, &code)?;
            let item = |subject| PlannedItem {
                provider: certificate_type.provider.clone(),
                certificate_type: certificate_type.clone(),
                role: role.clone(),
                replaces: replaces.clone(),
                subject,
                fields,
            };
            let before = plan.len();
            let in_role = request.subjects.iter().enumerate().filter(|(_, subject)| subject.role == role);
            plan.extend(in_role.map(|(index, _)| item(Some(index))));
            if plan.len() == before {
                plan.push(item(None));
            }
        }
        if plan.is_empty() {
            return Err(Reason::NotGranted.into());
        }
        if plan.len() > MAX_ITEMS {
            return Err(Refused::new(Reason::SubjectInvalid).with("what", "too many subjects"));
        }
        Ok((purpose, matter, plan))
    }
}

/// For what, in which matter, and every item.
type Planned = (Arc<Purpose>, Arc<Matter>, Vec<PlannedItem>);

/// One collection under way.
struct Collection {
    gateway: Arc<Gateway>,
    call: Arc<Call>,
    /// Of the call, so of every item.
    claim: Claim,
    /// Every item is decided by the generation that planned it.
    policy: Arc<Policy>,
    purpose: Arc<Purpose>,
    matter: Arc<Matter>,
    subjects: Vec<CaseSubject>,
    plan: Vec<PlannedItem>,
}

impl Collection {
    async fn run(self, events: mpsc::Sender<CollectEvent>) {
        let gone = CancellationToken::new();
        let tell = async |event| {
            // A caller that stops reading holds its own answers, at most until the call's deadline.
            let sent = tokio::time::timeout_at(self.call.deadline, events.send(event)).await;
            let told = matches!(sent, Ok(Ok(())));
            if !told {
                gone.cancel();
            }
            told
        };
        tell(CollectEvent::Plan(self.plan.clone())).await;
        let mut items: FuturesUnordered<_> =
            self.plan.iter().enumerate().map(|(number, item)| self.item(number, item, &gone)).collect();
        let mut seen: HashMap<(String, Vec<Released>), usize> = HashMap::new();
        let (mut answered, mut avoided) = (0, BTreeSet::new());
        loop {
            let ended = tokio::select! {
                ended = items.next() => ended,
                // The items still have to be recorded, so they are told and waited for.
                () = events.closed(), if !gone.is_cancelled() => {
                    gone.cancel();
                    continue;
                }
            };
            let Some((number, took, result)) = ended else { break };
            let mut given = None;
            let result = result.map(|(answer, ready)| {
                given = Some(ready);
                answered += 1;
                if let Some(item) = self.plan.get(number) {
                    avoided.insert(item.replaces.clone());
                }
                let key = (answer.certificate_type.code.clone(), answer.records.clone());
                let first = *seen.entry(key).or_insert(number);
                ItemAnswer { answer, same_as: (first != number).then_some(first) }
            });
            let told = tell(CollectEvent::Item { number, took, result: Box::new(result) }).await;
            if let Some(ready) = given.filter(|_| !told) {
                self.gateway.take_back(ready, &Reason::Cancelled.into());
            }
        }
        let demanded: BTreeSet<_> = self.plan.iter().map(|item| &item.replaces).collect();
        tell(CollectEvent::Summary {
            answered,
            failed: self.plan.len() - answered,
            materials_demanded: demanded.len(),
            materials_avoided: avoided.len(),
        })
        .await;
    }

    async fn item(
        &self,
        number: usize,
        item: &PlannedItem,
        gone: &CancellationToken,
    ) -> (usize, Duration, Result<(Answer, Ready), Refusal>) {
        let started = Instant::now();
        let mut draft = Draft::new(&self.call);
        draft.purpose(&self.purpose);
        draft.certificate_type(&item.certificate_type, Mode::Query);
        let ended = self.gateway.bounded(&self.call, gone, self.release(item, &mut draft)).await;
        let result = self.gateway.record(&self.call, Claim::of_item(&self.claim), draft, ended).await;
        (number, started.elapsed(), result)
    }

    async fn release(&self, item: &PlannedItem, draft: &mut Draft) -> Result<super::Release, Refused> {
        let about = (item.subject.and_then(|index| self.subjects.get(index)))
            .ok_or_else(|| Refused::new(Reason::SubjectNotGiven).with("role", item.role.clone()))?;
        let wanted = Wanted {
            call: &self.call,
            policy: &self.policy,
            purpose: &self.purpose,
            matter: &self.matter,
            kind: &item.certificate_type,
            about,
            subjects: &self.subjects,
            fields: item.fields,
        };
        self.gateway.release(wanted, draft).await
    }
}
