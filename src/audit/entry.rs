//! What an entry says: the domain types. `entry/wire.rs` turns them into protobuf bodies and back; generated types stay
//! there.

mod wire;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

pub use self::wire::DecodeError;
pub(super) use self::wire::{WrappedKey, decode, decode_epoch, encode, encode_epoch};
use crate::clock::Timestamp;
use crate::ids::{CaseId, DepartmentCode, RequestId, SpiffeId};

/// One entry of the access log. The journal itself writes [`Entry::Start`] when it opens and [`Entry::Stop`] when it
/// is closed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Entry {
    /// One decision about one subject's certificate, or one call refused before any decision.
    Access(Box<AccessEntry>),
    /// The gateway began to write.
    Start(StartEntry),
    /// The gateway ended in order.
    Stop(StopEntry),
    /// Another policy generation serves.
    PolicyChange(PolicyChangeEntry),
    /// An act of an operator.
    Admin(AdminEntry),
    /// The log is less safe than it should be: what is wrong, in words.
    Degraded(String),
    /// What was wrong is so no more.
    Recovered(String),
    /// This log goes on where another one ended: that one's last checkpoint, a signed note. In clear.
    Continues(String),
    /// An auditor allows to delete old entries: a note signed by the auditor. In clear.
    PruneAuth(String),
    /// Another key signs this log from here on: a note signed by the key before. In clear.
    LogKey(String),
}

/// An access record (访问记录): who asked what about whom, for which purpose, and what became of each field.
///
/// It names fields by number and holds no field's value. Texts and lists are bounded when the entry is encoded, so that
/// an entry always fits its 65,535 bytes: a longer text is cut and ends in `…`, what a list loses is counted in
/// [`AccessEntry::omitted`]. The bounds lie above what catalog, token and policy let through.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AccessEntry {
    /// The gateway's request id.
    pub request_id: RequestId,
    /// The caller's own `x-request-id`; at most 256 bytes are kept.
    pub caller_request_id: String,
    /// The calling system.
    pub caller: SpiffeId,
    /// Its address.
    pub peer: Option<SocketAddr>,
    /// Full name of the RPC; at most 256 bytes are kept.
    pub method: String,
    /// W3C trace id.
    pub trace_id: Option<[u8; 16]>,

    /// The consumer, if a token said so.
    pub consumer: Option<DepartmentCode>,
    /// The officer: `sub` of the token; at most 512 bytes are kept.
    pub officer: String,
    /// Issuer of the token; at most 512 bytes are kept.
    pub token_issuer: String,
    /// Id of the token (`jti`); at most 256 bytes are kept.
    pub token_id: String,
    /// Code of the matter; at most 128 bytes are kept.
    pub matter: String,
    /// Number of the case.
    pub case_id: Option<CaseId>,
    /// Kind of the legal basis; none if no token was verified.
    pub legal_basis: Option<LegalBasis>,
    /// Citation or consent reference; at most 1,024 bytes are kept.
    pub basis_reference: String,
    /// The token's purpose text; at most 1,024 bytes are kept.
    pub purpose: String,

    /// Code of the certificate type; at most 128 bytes are kept.
    pub certificate_type: String,
    /// Who was asked about.
    pub subject: Option<EntrySubject>,
    /// What the caller wanted to do; none if refused before it was known.
    pub mode: Option<Mode>,
    /// Fields asked for, each by the field numbers that lead to it; at most 128 are kept.
    pub requested: Vec<Vec<u32>>,
    /// Per record of the answer, what became of each field; at most 32 are kept.
    pub records: Vec<RecordDecision>,
    /// Fields withheld whatever the record says; at most 128 are kept.
    pub withheld: Vec<WithheldField>,
    /// Ids of the grants that released or masked a field; at most 128 are kept, 96 bytes of each.
    pub grants: Vec<Arc<str>>,
    /// Hash of the policy generation; none if no policy was asked.
    pub policy: Option<[u8; 32]>,
    /// Facts used and their values, none where not established; at most 64 are kept, 64 bytes of each name.
    pub facts: Vec<(String, Option<bool>)>,
    /// What the caller was told of each value that it claimed; at most 32 are kept.
    pub compared: Vec<ComparedField>,

    /// How it ended.
    pub outcome: Outcome,
    /// The `ErrorReason`'s number if nothing was released, else 0.
    pub error_reason: i32,
    /// More about a refusal, for auditors only; no personal data; at most 1,024 bytes are kept.
    pub detail: String,
    /// True if the answer came from the cache.
    pub cached: bool,
    /// The request by whose id the provider was asked: this one's own from the moment it asks.
    pub fetched_by: Option<RequestId>,
    /// When the provider answered.
    pub fetched_at: Option<Timestamp>,
    /// Time the provider took, in microseconds.
    pub provider_us: u32,
    /// Time from the request's start to this entry, in microseconds.
    pub total_us: u32,
    /// SHA-256 over the released records, or over the results of a comparison.
    pub answer_digest: Option<[u8; 32]>,
    /// How many calls this entry stands for, where refusals were counted together; 0 means 1.
    pub count: u32,
    /// What did not fit. Set by the encoder: writers leave it at its default.
    pub omitted: Omitted,
    /// An earlier entry of the same request, which says that an answer was ready: the answer was not given, and this entry
    /// says how it ended instead.
    pub corrects: Option<u64>,
}

impl AccessEntry {
    /// An entry that says only which request of whom ended how; the writer fills in what it knows.
    pub fn new(request_id: RequestId, caller: SpiffeId, outcome: Outcome) -> Self {
        Self {
            request_id,
            caller_request_id: String::new(),
            caller,
            peer: None,
            method: String::new(),
            trace_id: None,
            consumer: None,
            officer: String::new(),
            token_issuer: String::new(),
            token_id: String::new(),
            matter: String::new(),
            case_id: None,
            legal_basis: None,
            basis_reference: String::new(),
            purpose: String::new(),
            certificate_type: String::new(),
            subject: None,
            mode: None,
            requested: Vec::new(),
            records: Vec::new(),
            withheld: Vec::new(),
            grants: Vec::new(),
            policy: None,
            facts: Vec::new(),
            compared: Vec::new(),
            outcome,
            error_reason: 0,
            detail: String::new(),
            cached: false,
            fetched_by: None,
            fetched_at: None,
            provider_us: 0,
            total_us: 0,
            answer_digest: None,
            count: 0,
            omitted: Omitted::default(),
            corrects: None,
        }
    }
}

/// Who was asked about.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct EntrySubject {
    /// Role in the case; at most 128 bytes are kept.
    pub role: String,
    /// The keys that named the subject, name and value: what an auditor searches by. At most 16 are kept, 128 bytes of
    /// a name and 256 of a value.
    pub keys: Vec<(String, String)>,
}

/// Values stay out of logs.
impl fmt::Debug for EntrySubject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.keys.iter().map(|(name, _)| name).collect();
        f.debug_struct("EntrySubject").field("role", &self.role).field("keys", &names).finish()
    }
}

/// What became of each field of one record. Lists keep at most 128 items.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RecordDecision {
    /// Fields released in clear.
    pub released: Vec<Vec<u32>>,
    /// Fields released masked.
    pub masked: Vec<MaskedField>,
    /// Fields withheld because of the record itself.
    pub withheld: Vec<WithheldField>,
    /// How many fields the provider sent that no descriptor knows; they were dropped.
    pub unknown_dropped: u32,
}

/// A field released masked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MaskedField {
    /// Field numbers from the outermost inwards; at most 8 are kept.
    pub field: Vec<u32>,
    /// Name of the mask; at most 32 bytes are kept.
    pub mask: String,
}

/// A field withheld.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WithheldField {
    /// Field numbers from the outermost inwards; at most 8 are kept.
    pub field: Vec<u32>,
    /// The `WithheldReason`'s number.
    pub reason: i32,
    /// The exact reason where callers are told only `RECORD_CONDITION`; at most 64 bytes are kept.
    pub detail: String,
}

/// A field that was compared with a claimed value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ComparedField {
    /// Field numbers from the outermost inwards, or 0 and a predicate's number; at most 8 are kept.
    pub field: Vec<u32>,
    /// What came of it.
    pub result: Comparison,
}

/// What comparing a claimed value came to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Comparison {
    /// The record says the same.
    Match,
    /// The record says something else.
    Mismatch,
    /// There was no value, or it might not be compared.
    CannotTell,
}

impl Comparison {
    /// Its name as documents and screens show it, for example `CANNOT_TELL`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Match => "MATCH",
            Self::Mismatch => "MISMATCH",
            Self::CannotTell => "CANNOT_TELL",
        }
    }
}

/// What an entry leaves out to stay within its 65,535 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Omitted {
    /// True if the details of the records' withheld fields are left out.
    pub details: bool,
    /// How many of the last records are left out.
    pub records: u32,
    /// How many items of lists beyond their bounds are left out.
    pub items: u32,
}

/// The gateway began to write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StartEntry {
    /// Version of the program.
    pub version: String,
    /// The gateway's SPIFFE ID.
    pub gateway: String,
    /// Hash of the policy generation.
    pub policy: [u8; 32],
    /// Who can change the policy, as the configuration has it.
    pub policy_keys: PolicyKeys,
    /// Entries that recovery found. An unclean end shows in that no STOP stands before.
    pub recovered: u64,
    /// The trust generation that serves, in words.
    pub trust: String,
}

/// Who can change a gateway's policy. That stands in its configuration, which its operators write: here it is seen.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PolicyKeys {
    /// True if bundles must be signed.
    pub signed: bool,
    /// Ids of the pinned keys of the competent department; at most 32 are kept.
    pub authority: Vec<String>,
    /// Ids of the keys of the security administrators; at most 32 are kept.
    pub approvers: Vec<String>,
}

/// The gateway ended in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StopEntry {
    /// Why, in a word: `drained`, `grace_expired`.
    pub reason: String,
}

/// Another policy generation serves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PolicyChangeEntry {
    /// Hash of the one before, if there was one.
    pub from: Option<[u8; 32]>,
    /// Hash of the one from here on.
    pub to: [u8; 32],
    /// Who activated it; at most 256 bytes are kept.
    pub operator: String,
}

/// An act of an operator.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AdminEntry {
    /// Who; at most 256 bytes are kept.
    pub operator: String,
    /// Full name of the RPC; at most 256 bytes are kept.
    pub method: String,
    /// What, without secrets; at most 1,024 bytes are kept.
    pub detail: String,
}

/// How a request ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Outcome {
    /// Every field asked for was released, some perhaps masked.
    Released,
    /// Some fields were released, others withheld.
    Partial,
    /// Values were compared.
    Verified,
    /// The policy released nothing.
    Denied,
    /// The provider has no such record.
    NotFound,
    /// Too many records.
    Ambiguous,
    /// The provider failed.
    ProviderError,
    /// The caller went away, or its deadline passed, before the answer.
    Cancelled,
    /// A limit refused it.
    Limited,
    /// Refused before a decision.
    Rejected,
}

impl Outcome {
    /// Every outcome, in the order of their numbers.
    pub const ALL: [Self; 10] = [
        Self::Released,
        Self::Partial,
        Self::Verified,
        Self::Denied,
        Self::NotFound,
        Self::Ambiguous,
        Self::ProviderError,
        Self::Cancelled,
        Self::Limited,
        Self::Rejected,
    ];

    /// Its name as documents and screens show it, for example `NOT_FOUND`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Released => "RELEASED",
            Self::Partial => "PARTIAL",
            Self::Verified => "VERIFIED",
            Self::Denied => "DENIED",
            Self::NotFound => "NOT_FOUND",
            Self::Ambiguous => "AMBIGUOUS",
            Self::ProviderError => "PROVIDER_ERROR",
            Self::Cancelled => "CANCELLED",
            Self::Limited => "LIMITED",
            Self::Rejected => "REJECTED",
        }
    }

    /// The outcome of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.name() == name)
    }
}

/// Way of asking, least disclosure first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Mode {
    /// Values compared inside the gateway.
    Verify,
    /// Fields released.
    Query,
    /// The signed file released.
    File,
}

/// Kind of the legal basis (PIPL art. 13).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum LegalBasis {
    /// A statutory duty.
    StatutoryDuty,
    /// The subject's consent.
    Consent,
}
