//! The story of a request. `Gateway::answer` is the order of steps, top to bottom; each returns evidence that the next
//! one demands, and whatever way it ends, `Gateway::close` records it before anything is said.
//!
//! ```text
//! TLS peer ─► Caller ─► limits.admit(caller)        Gateway::admit, before the body is read
//!   ─► token ─► Purpose                             who asks, for which matter and case
//!   ─► catalog.resolve(type, subject) ─► Subject    checksums, every key of one lookup set
//!   ─► limits.admit(subject)
//!   ─► registries.given ─► Given                    case and consent, if a condition needs them
//!   ─► policy.decide ─► Permit                      field by field
//!   ─► connectors.fetch ─► records of that subject  cache, single flight, deadline
//!   ─► policy::settle ─► Settled                    conditions that the record alone can tell
//!   ─► policy::project                              allow-listed fields only, at every depth; Verify compares instead
//!   ─► journal.append ─► Recorded                   durable, or no data
//!   ─► reply + receipt
//! ```

mod collect;
mod explain;
mod reason;
mod record;
mod unescapable;
mod verify;

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::FutureExt as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

pub use collect::{CollectEvent, CollectRequest, ItemAnswer, PlannedItem};
pub use explain::Explained;
pub use reason::{Reason, Refused};
pub use verify::{Verification, Verified, VerifyRequest};

use crate::audit::{AppendError, Journal, Outcome, Pending, Recorded};
use crate::catalog::{CaseSubject, CertificateType, Fields, Matter, Subject};
use crate::clock::{Clock, Timestamp};
use crate::connectors::{Connectors, FetchError, Fetched, Query, Registries, RotatingChannel};
use crate::identity::{Caller, Purpose, Tokens};
use crate::ids::{CaseId, RequestId};
use crate::limits::{Limits, Tally};
use crate::policy::{Mask, Mode, Permit, Policy, PolicyHash, ProjectError, Settled, Truths, Withheld, project, settle};
use crate::telemetry::{FieldDecision, LimitScope, LogKind, Metrics, TraceContext};

use record::Draft;
use unescapable::Unescapable;

/// A read mask may name this many paths.
const MAX_READ_MASK: usize = 128;

/// All that a request passes through. One per process.
#[derive(Debug)]
pub struct Gateway {
    /// Verifies tokens.
    pub tokens: Tokens,
    /// Bounds callers, subjects and providers.
    pub limits: Arc<Limits>,
    /// The policy generation that serves, catalog included. A request takes it once and keeps to it.
    pub policy: ArcSwap<Policy>,
    /// Departments' sources.
    pub connectors: Connectors,
    /// The platform's registers of cases and consents.
    pub registries: Registries,
    /// The channels to sources, registries and witnesses: each follows its material.
    pub upstreams: Vec<Arc<RotatingChannel>>,
    /// The access log.
    pub journal: Journal,
    /// Time.
    pub clock: Clock,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// All that may still owe the access log an entry: it is waited for before the log is closed.
    pub tasks: TaskTracker,
}

/// One authenticated call that passed its caller's limit. Made only by [`Gateway::admit`].
#[derive(Debug)]
pub struct Call {
    /// The gateway's id of the request.
    pub id: RequestId,
    /// Who calls.
    pub caller: Arc<Caller>,
    /// From where.
    pub peer: SocketAddr,
    /// Full path of the RPC.
    pub method: &'static str,
    /// The bearer token, if there is one.
    pub token: Option<String>,
    /// The caller's own id, at most 64 characters.
    pub caller_request_id: Option<String>,
    /// True if the caller wants its receipt signed.
    pub sign_receipt: bool,
    /// W3C trace, continued.
    pub trace: TraceContext,
    /// When the call began.
    pub started: Instant,
    /// When it must end.
    pub deadline: Instant,
    /// Set once a task of the call's own will record it.
    taken: AtomicBool,
    /// Set by the one who writes the call's entry.
    claimed: AtomicBool,
    /// The answer that an entry speaks of, until it is given.
    ready: Mutex<Option<Ready>>,
}

/// An answer that is on record and not given yet.
#[derive(Debug)]
struct Ready {
    index: u64,
    /// What is to be recorded should it never be.
    without: Draft,
}

/// The right to write one entry. A call has one; a collection, which has that of its call, has one for each item.
#[must_use = "whoever has it must write the entry"]
struct Claim(());

impl Claim {
    fn of_item(_collection: &Self) -> Self {
        Self(())
    }
}

/// What is known of a call when it begins; see [`Call`] for the fields.
#[derive(Debug)]
#[allow(missing_docs, reason = "described at Call")]
pub struct CallStart {
    pub id: RequestId,
    pub caller: Arc<Caller>,
    pub peer: SocketAddr,
    pub method: &'static str,
    pub token: Option<String>,
    pub caller_request_id: Option<String>,
    pub sign_receipt: bool,
    pub trace: TraceContext,
    pub started: Instant,
    pub deadline: Instant,
}

impl Call {
    /// True once somebody writes the call's entry, so that nobody else may.
    pub fn is_claimed(&self) -> bool {
        self.claimed.load(Ordering::Acquire)
    }

    /// True once a task of the call's own records it, so that nobody else must.
    pub fn is_taken(&self) -> bool {
        self.taken.load(Ordering::Acquire)
    }

    fn take(&self) {
        self.taken.store(true, Ordering::Release);
    }

    /// Gives the right to write the call's one entry to the first who asks.
    fn claim(&self) -> Option<Claim> {
        let first = self.claimed.compare_exchange(false, true, Ordering::AcqRel, Ordering::Acquire);
        first.is_ok().then_some(Claim(()))
    }

    fn ready(&self) -> MutexGuard<'_, Option<Ready>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What `Lookup` asks, as the API received it.
#[derive(Debug, Clone)]
pub struct LookupRequest {
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
    /// Paths wanted.
    pub read_mask: Vec<String>,
}

/// What may leave, with the proof that it is on record. Made only by `Gateway::record`.
#[derive(Debug)]
pub struct Answer {
    /// The released records.
    pub records: Vec<Released>,
    /// Certificate type.
    pub certificate_type: Arc<CertificateType>,
    /// Ids of the grants that released or masked at least one field.
    pub grants: Vec<String>,
    /// The policy generation that decided.
    pub policy: PolicyHash,
    /// True if the provider's answer came from memory.
    pub cached: bool,
    /// When the provider answered.
    pub fetched_at: Timestamp,
    /// The access record.
    pub recorded: Recorded,
}

/// One record as it may leave.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Released {
    /// The encoded message with granted fields only.
    pub bytes: Bytes,
    /// Leaves that left masked.
    pub masked: Vec<(usize, Mask)>,
    /// Leaves asked for that did not leave.
    pub withheld: Vec<Withheld>,
    /// Leaves that left in clear.
    clear: Fields,
    unknown_dropped: u32,
}

/// A refusal that stands in the access log, or says why it does not.
#[derive(Debug)]
pub struct Refusal {
    /// Why.
    pub refused: Refused,
    /// The access record; none if no entry could be written.
    pub recorded: Option<Recorded>,
}

/// The released records of one lookup, not yet on record.
struct Release {
    records: Vec<Released>,
    /// Ids of the grants that gave something.
    grants: Vec<Arc<str>>,
    permit: Permit,
    certificate_type: Arc<CertificateType>,
    cached: bool,
    fetched_at: Timestamp,
}

/// What a call ends with, noted in its draft but not yet on record: [`Gateway::record`] makes an answer of it.
trait Ending {
    type Answer;

    /// The answer, now that it is on record.
    fn recorded(self, recorded: Recorded) -> Self::Answer;
}

impl Ending for Release {
    type Answer = Answer;

    fn recorded(self, recorded: Recorded) -> Answer {
        Answer {
            records: self.records,
            certificate_type: self.certificate_type,
            grants: self.grants.iter().map(ToString::to_string).collect(),
            policy: *self.permit.policy_hash(),
            cached: self.cached,
            fetched_at: self.fetched_at,
            recorded,
        }
    }
}

/// One certificate of one subject as it is asked for, each part evidence of a step before.
struct Wanted<'a> {
    call: &'a Call,
    policy: &'a Policy,
    purpose: &'a Arc<Purpose>,
    matter: &'a Matter,
    kind: &'a Arc<CertificateType>,
    about: &'a CaseSubject,
    subjects: &'a [CaseSubject],
    fields: Fields,
}

impl Gateway {
    /// The first step of every call, taken before its body is read.
    ///
    /// # Errors
    /// The refusal if the caller asks too often.
    pub async fn admit(self: &Arc<Self>, start: CallStart) -> Result<Call, Refusal> {
        let CallStart { id, caller, peer, method, token, caller_request_id, sign_receipt, trace, started, deadline } =
            start;
        let admitted = self.limits.admit_caller(&caller);
        let (taken, claimed, ready) = (AtomicBool::new(false), AtomicBool::new(false), Mutex::default());
        let call = Call {
            id,
            caller,
            peer,
            method,
            token,
            caller_request_id,
            sign_receipt,
            trace,
            started,
            deadline,
            taken,
            claimed,
            ready,
        };
        match admitted {
            Ok(()) => Ok(call),
            Err(limited) => {
                self.metrics.limited(LimitScope::Caller);
                Err(self.reject(&call, limited.into()).await)
            }
        }
    }

    /// One lookup, from its token to its record. A caller who goes away, which drops the returned future, ends the lookup
    /// as CANCELLED and can't escape the log.
    ///
    /// # Errors
    /// The refusal, recorded.
    pub async fn lookup(self: &Arc<Self>, call: Arc<Call>, request: LookupRequest) -> Result<Answer, Refusal> {
        call.take();
        let gateway = self.clone();
        Unescapable::new(&self.tasks, move |gone| async move {
            let mut draft = Draft::new(&call);
            let ended = gateway.bounded(&call, &gone, gateway.answer(&call, request, &mut draft)).await;
            gateway.close(&call, &gone, draft, ended).await
        })
        .await
    }

    async fn answer(&self, call: &Call, request: LookupRequest, draft: &mut Draft) -> Result<Release, Refused> {
        let policy = self.policy.load_full();
        let purpose = self.purpose(call, &policy, &request.matter, &request.case_id, draft)?;
        let matter = matter(&policy, &request.matter)?;
        let kind = certificate_type(&policy, &request.certificate_type)?;
        draft.certificate_type(&kind, Mode::Query);
        let fields = read_mask(&kind, Mode::Query, &request.read_mask)?;
        policy.catalog().check_subjects(&request.subjects)?;
        let subjects = &request.subjects;
        let about = subject_in_role(subjects, &request.subject_role)?;
        let (policy, purpose, matter, kind) = (&*policy, &purpose, &*matter, &kind);
        self.release(Wanted { call, policy, purpose, matter, kind, about, subjects, fields }, draft).await
    }

    /// The steps of one certificate of one subject; `Collect` takes them once per item.
    async fn release(&self, wanted: Wanted<'_>, draft: &mut Draft) -> Result<Release, Refused> {
        let kind = wanted.kind;
        let (subject, permit) = self.decide(&wanted, Mode::Query, draft).await?;
        let fetched = self.fetch(&wanted, subject, &permit, draft).await.map_err(|error| unfetched(kind, error))?;

        let mut records = Vec::with_capacity(fetched.answer.records.len());
        let mut grants: Vec<Arc<str>> = Vec::new();
        let mut truths: Option<Truths> = None;
        for record in &fetched.answer.records {
            let settled = settle(&permit, record).map_err(|error| invalid(kind, &error, draft))?;
            let projected = project(&settled).map_err(|error| invalid(kind, &error, draft))?;
            self.metrics.unknown_fields(&kind.code, projected.unknown_dropped);
            self.metrics.fields(FieldDecision::Released, projected.released.len());
            self.metrics.fields(FieldDecision::Masked, projected.masked.len());
            for grant in settled.grants() {
                if !grants.contains(grant) {
                    grants.push(grant.clone());
                }
            }
            // What the records do not agree on is not known of all.
            truths = Some(truths.map_or(settled.truths(), |all| settled.truths().common(all)));
            records.push(Released {
                bytes: projected.bytes,
                masked: projected.masked,
                withheld: permit.withheld().iter().chain(settled.withheld()).cloned().collect(),
                clear: projected.released,
                unknown_dropped: projected.unknown_dropped,
            });
        }
        draft.settled(&permit, &records, truths.unwrap_or_default());
        if grants.is_empty() {
            return Err(Refused::from(&Settled::refusal()).with("certificate_type", kind.code.clone()));
        }
        let release = Release {
            records,
            grants,
            permit,
            certificate_type: kind.clone(),
            cached: fetched.cached,
            fetched_at: fetched.answer.fetched_at,
        };
        draft.released(&release);
        Ok(release)
    }

    /// A decision that lets ask for something.
    async fn decide(&self, wanted: &Wanted<'_>, mode: Mode, draft: &mut Draft) -> Result<(Subject, Permit), Refused> {
        let (subject, permit) = self.judge(wanted, mode, draft).await?;
        match permit.refusal() {
            Some(refusal) => Err(Refused::from(refusal).with("certificate_type", wanted.kind.code.clone())),
            None => Ok((subject, permit)),
        }
    }

    /// From the subjects of a request to the decision on every field, before anybody is asked for a record.
    async fn judge(&self, wanted: &Wanted<'_>, mode: Mode, draft: &mut Draft) -> Result<(Subject, Permit), Refused> {
        let Wanted { call, policy, purpose, matter, kind, about, subjects, fields } = *wanted;
        let subject = policy.catalog().resolve(kind, about, subjects)?;
        draft.subject(&subject, fields);
        in_token(purpose, matter, &subject)?;
        self.limits.admit_subject(purpose.consumer(), subject.holder()).inspect_err(|limited| {
            self.metrics.limited(limited.scope);
        })?;

        let needs = policy.needs(purpose, kind);
        let given = self.registries.given(needs, call.id, purpose, &subject, call.deadline).await;
        let permit = policy.decide(&call.caller, purpose, &subject, mode, fields, &given, self.clock.now());
        draft.permit(&permit);
        self.metrics.fields(FieldDecision::Withheld, permit.withheld().len());
        Ok((subject, permit))
    }

    /// The records that the permit lets ask for.
    async fn fetch(
        &self,
        wanted: &Wanted<'_>,
        subject: Subject,
        permit: &Permit,
        draft: &mut Draft,
    ) -> Result<Fetched, FetchError> {
        let query = Query {
            request_id: wanted.call.id,
            subject,
            fields: permit.fetch_fields(),
            purpose: wanted.purpose.clone(),
            trace: wanted.call.trace,
        };
        let fetched = self.connectors.fetch(permit, query, wanted.call.deadline, || draft.asks()).await;
        let fetched = fetched.inspect_err(|error| draft.detail(&error.to_string()))?;
        draft.fetched(&fetched);
        Ok(fetched)
    }

    /// The token's purpose, if it is the request's.
    fn purpose(
        &self,
        call: &Call,
        policy: &Policy,
        named: &str,
        case: &str,
        draft: &mut Draft,
    ) -> Result<Arc<Purpose>, Refused> {
        let token = call.token.as_deref().ok_or(Reason::TokenMissing)?;
        let purpose = self.tokens.verify(&call.caller, token, self.clock.now())?;
        draft.purpose(&purpose);
        let case: CaseId = case.parse().map_err(|_| Reason::CaseIdInvalid)?;
        if purpose.matter() != named {
            // A matter that does not exist is a mistake of the caller's; one that is not in the token is a trespass.
            matter(policy, named)?;
            return Err(Refused::new(Reason::PurposeMismatch).with("field", "matter"));
        }
        if *purpose.case_id() != case {
            return Err(Refused::new(Reason::PurposeMismatch).with("field", "case_id"));
        }
        Ok(purpose)
    }

    /// `work`, unless the caller goes away or the deadline passes first; if it panics, the call goes on to its entry.
    async fn bounded<T>(
        &self,
        call: &Call,
        gone: &CancellationToken,
        work: impl Future<Output = Result<T, Refused>>,
    ) -> Result<T, Refused> {
        let caught = AssertUnwindSafe(work).catch_unwind();
        tokio::select! {
            biased;
            () = gone.cancelled() => Err(Reason::Cancelled.into()),
            ended = caught => ended.unwrap_or_else(|_| {
                tracing::error!("a step of a call panicked");
                Err(Reason::Internal.into())
            }),
            () = tokio::time::sleep_until(call.deadline) => Err(Reason::DeadlineExceeded.into()),
        }
    }

    /// Records how a call ended, then hands out what it ended with. This is the only way out, and once for each call.
    async fn close<E: Ending>(
        self: &Arc<Self>,
        call: &Call,
        gone: &CancellationToken,
        draft: Draft,
        ended: Result<E, Refused>,
    ) -> Result<E::Answer, Refusal> {
        let Some(claim) = call.claim() else {
            // The guard has given the call up, and recorded that.
            return Err(Refusal { refused: Reason::DeadlineExceeded.into(), recorded: None });
        };
        let (answer, ready) = self.record(call, claim, draft, ended).await?;
        if gone.is_cancelled() {
            self.take_back(ready, &Reason::Cancelled.into());
        } else {
            *call.ready() = Some(ready);
        }
        Ok(answer)
    }

    /// Writes one entry. The answer may be given once it is on record; then `Ready` is what takes it back if it is not.
    async fn record<E: Ending>(
        self: &Arc<Self>,
        call: &Call,
        claim: Claim,
        draft: Draft,
        ended: Result<E, Refused>,
    ) -> Result<(E::Answer, Ready), Refusal> {
        match ended {
            Ok(ending) => {
                let (recorded, ready) = self.record_answer(call, claim, draft).await?;
                Ok((ending.recorded(recorded), ready))
            }
            Err(refused) => Err(self.record_refusal(call, claim, draft, refused).await),
        }
    }

    /// Records a call that ends before any decision, or after its answer was ready and could not be given.
    pub async fn reject(self: &Arc<Self>, call: &Call, refused: Refused) -> Refusal {
        if let Some(ready) = call.ready().take() {
            self.take_back(ready, &refused);
        }
        self.refuse(call, Draft::new(call), refused).await
    }

    async fn refuse(&self, call: &Call, draft: Draft, refused: Refused) -> Refusal {
        match call.claim() {
            Some(claim) => self.record_refusal(call, claim, draft, refused).await,
            None => Refusal { refused, recorded: None },
        }
    }

    /// Beyond ten limited calls per second and caller, refusals are counted and recorded together: a flood must not fill
    /// the log.
    async fn record_refusal(&self, call: &Call, claim: Claim, mut draft: Draft, refused: Refused) -> Refusal {
        let limited = refused.reason.outcome() == Outcome::Limited;
        if limited && self.limits.count_limited(&call.caller) == Tally::Counted {
            return Refusal { refused, recorded: None };
        }
        draft.refused(&refused);
        let waited = Instant::now();
        let recorded = match self.queue(call, claim, draft) {
            Ok(mut pending) => pending.durable().await,
            Err(error) => Err(error),
        };
        match recorded {
            Ok(recorded) => {
                self.metrics.log_entry(LogKind::Access, waited.elapsed());
                Refusal { refused, recorded: Some(recorded) }
            }
            Err(error) => unrecorded(error),
        }
    }

    /// Writes the entry of an answer. Only if it is durable in time the answer may be given; if it is later, another entry
    /// says that the answer was not.
    async fn record_answer(
        self: &Arc<Self>,
        call: &Call,
        claim: Claim,
        draft: Draft,
    ) -> Result<(Recorded, Ready), Refusal> {
        let without = draft.without_answer();
        let waited = Instant::now();
        let mut pending = self.queue(call, claim, draft).map_err(unrecorded)?;
        match pending.durable().await {
            Ok(recorded) => {
                self.metrics.log_entry(LogKind::Access, waited.elapsed());
                let ready = Ready { index: recorded.index(), without };
                Ok((recorded, ready))
            }
            Err(error) => {
                if error == AppendError::TooSlow {
                    let gateway = self.clone();
                    let late = async move {
                        // Of a log that fails nobody knows what is on its disk, and it takes no other entry.
                        if let Some(recorded) = pending.in_the_end().await {
                            let ready = Ready { index: recorded.index(), without };
                            gateway.take_back(ready, &Reason::AuditUnavailable.into());
                        }
                    };
                    self.tasks.spawn(late.in_current_span());
                }
                Err(unrecorded(error))
            }
        }
    }

    /// Says in another entry that an answer on record was not given, and why.
    fn take_back(self: &Arc<Self>, ready: Ready, refused: &Refused) {
        /// Between tries while the log takes no entries for now.
        const AGAIN: Duration = Duration::from_millis(200);
        let Ready { index, mut without } = ready;
        without.corrects(index, refused);
        let (journal, entry) = (self.journal.clone(), without.into_entry());
        let correct = async move {
            loop {
                match journal.queue(entry.clone(), false) {
                    Ok(_written) => return,
                    Err(AppendError::Unavailable) => break,
                    Err(_) => tokio::time::sleep(AGAIN).await,
                }
            }
            tracing::error!(index, "that the answer of an entry was not given is not on record");
        };
        self.tasks.spawn(correct.in_current_span());
    }

    /// Hands a call's entry to the writer: from here on it is written, even if the caller goes away.
    fn queue(&self, call: &Call, _claim: Claim, draft: Draft) -> Result<Pending, AppendError> {
        self.journal.queue(draft.finish(call), call.sign_receipt)
    }

    /// Waits until every call that was cut off has its entry: they end at once, so only their entries take time. Called
    /// before the log is closed, when no more calls arrive.
    pub async fn settle(&self) {
        // An entry that comes too late has another one behind it.
        let longest = 2 * self.journal.longest_wait() + Duration::from_secs(1);
        self.tasks.close();
        if tokio::time::timeout(longest, self.tasks.wait()).await.is_err() {
            tracing::error!(calls = self.tasks.len(), "calls that were cut off are not on record");
        }
        self.record_counted().await;
    }

    /// Writes one entry per caller for the refusals that were only counted. Called every second and at the end.
    pub async fn record_counted(&self) {
        for (caller, count) in self.limits.take_counted() {
            let written = self.journal.append(Draft::counted(caller.clone(), count)).await;
            match written {
                // One that is late is still written.
                Ok(_) | Err(AppendError::TooSlow) => {}
                Err(error) => {
                    tracing::error!(count, %error, "counted refusals could not be recorded yet");
                    self.limits.count_again(caller, count);
                }
            }
        }
    }
}

/// No durable record, no data.
fn unrecorded(error: AppendError) -> Refusal {
    tracing::error!(%error, "no access record, so no answer");
    Refusal { refused: Reason::AuditUnavailable.into(), recorded: None }
}

/// The fields that a read mask names. Predicates are never read, so only a mask of what to verify names them.
fn read_mask(kind: &CertificateType, mode: Mode, paths: &[String]) -> Result<Fields, Refused> {
    if paths.is_empty() || paths.len() > MAX_READ_MASK || paths.iter().any(|path| path == "*") {
        return Err(Reason::ReadMaskRequired.into());
    }
    let mut want = Fields::EMPTY;
    for path in paths {
        // The path is the caller's text, so it is not repeated: its place in the mask tells as much.
        let named = if mode == Mode::Verify { kind.named(path) } else { kind.expand(path) };
        want |= named.ok_or_else(|| {
            let position = paths.iter().position(|other| other == path).unwrap_or_default();
            Refused::new(Reason::FieldUnknown).with("path", format!("read_mask.paths[{position}]"))
        })?;
    }
    Ok(want)
}

/// No answer of the department's, and whose it would have been.
fn unfetched(kind: &CertificateType, error: FetchError) -> Refused {
    Refused::from(error).with("provider", kind.provider.to_string())
}

/// A record that is no message of its type: nothing of it may leave.
fn invalid(kind: &CertificateType, error: &ProjectError, draft: &mut Draft) -> Refused {
    draft.detail(&error.to_string());
    Refused::new(Reason::ProviderAnswerInvalid).with("provider", kind.provider.to_string())
}

fn matter(policy: &Policy, code: &str) -> Result<Arc<Matter>, Refused> {
    policy.catalog().matter(code).cloned().ok_or_else(|| Reason::MatterUnknown.into())
}

fn certificate_type(policy: &Policy, code: &str) -> Result<Arc<CertificateType>, Refused> {
    policy.catalog().certificate_type(code).cloned().ok_or_else(|| Reason::CertificateTypeUnknown.into())
}

/// The one subject in a role.
fn subject_in_role<'a>(subjects: &'a [CaseSubject], role: &str) -> Result<&'a CaseSubject, Refused> {
    let mut found = subjects.iter().filter(|subject| subject.role == role);
    match (found.next(), found.next()) {
        (Some(subject), None) => Ok(subject),
        (None, _) => Err(Refused::new(Reason::SubjectNotGiven).with("role", "subject_role")),
        (Some(_), Some(_)) => Err(Refused::new(Reason::SubjectInvalid).with("what", "a role given twice")),
    }
}

/// The token may name certificate types and subjects; then it covers no others.
fn in_token(purpose: &Purpose, matter: &Matter, subject: &Subject) -> Result<(), Refused> {
    let mismatch = |field| Err(Refused::new(Reason::PurposeMismatch).with("field", field));
    if purpose.matter() != matter.code {
        return mismatch("matter");
    }
    if purpose.certificate_types().is_some_and(|types| !types.contains(&subject.certificate_type().code)) {
        return mismatch("certificate_type");
    }
    if !purpose.covers_subject(subject.holder()) {
        return mismatch("subjects");
    }
    Ok(())
}
