//! Why a call is refused, and what the caller may be told of it.

use std::time::Duration;

use crate::audit::Outcome;
use crate::catalog::SubjectError;
use crate::connectors::FetchError;
use crate::identity::TokenError;
use crate::limits::{Limited, Scope};
use crate::policy::{self, WithheldReason};

/// Reasons of refusal. The number and the name are those of `gateway.v1.ErrorReason`, where each is described with its
/// gRPC code; a test compares the two.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(i32)]
#[allow(missing_docs, reason = "described in proto/oncegate/gateway/v1/error_reason.proto")]
pub enum Reason {
    TokenMissing = 1,
    TokenMalformed = 2,
    TokenUntrusted = 3,
    TokenExpired = 4,
    TokenTimeInvalid = 5,
    TokenAudienceMismatch = 6,
    TokenNotBound = 7,
    ConsumerNotDelegated = 8,
    PurposeMismatch = 9,
    CertificateExpired = 10,
    CertificateUntrusted = 11,

    RequestMalformed = 20,
    MessageTooLarge = 21,
    MethodUnknown = 22,
    MatterUnknown = 23,
    CertificateTypeUnknown = 24,
    CaseIdInvalid = 25,
    ReadMaskRequired = 26,
    FieldUnknown = 27,
    SubjectNotGiven = 28,
    SubjectKeysIncomplete = 29,
    SubjectKeyInvalid = 30,
    SubjectInvalid = 31,
    ClaimInvalid = 32,

    NotGranted = 40,
    GrantExpired = 41,
    GrantNotYetValid = 42,
    RoleNotGranted = 43,
    VerifyOnly = 44,
    NeverShared = 45,
    BasisMissing = 46,
    Denied = 47,
    CaseNotOpen = 48,
    SubjectNotInCase = 49,
    ConsentMissing = 50,
    OutsideHours = 51,
    RegionMismatch = 52,
    BasisNotAccepted = 53,
    ConditionUnknown = 54,
    RecordCondition = 55,

    RecordNotFound = 60,
    RecordAmbiguous = 61,
    ProviderNotConnected = 62,
    ProviderUnavailable = 63,
    ProviderTimeout = 64,
    ProviderRefused = 65,
    ProviderAnswerInvalid = 66,

    CallerLimited = 80,
    SubjectLimited = 81,
    ProviderLimited = 82,
    GatewayLimited = 83,
    AttemptsLimited = 84,

    AuditUnavailable = 90,
    DeadlineExceeded = 91,
    Cancelled = 92,
    Internal = 93,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 56] = [
        Self::TokenMissing,
        Self::TokenMalformed,
        Self::TokenUntrusted,
        Self::TokenExpired,
        Self::TokenTimeInvalid,
        Self::TokenAudienceMismatch,
        Self::TokenNotBound,
        Self::ConsumerNotDelegated,
        Self::PurposeMismatch,
        Self::CertificateExpired,
        Self::CertificateUntrusted,
        Self::RequestMalformed,
        Self::MessageTooLarge,
        Self::MethodUnknown,
        Self::MatterUnknown,
        Self::CertificateTypeUnknown,
        Self::CaseIdInvalid,
        Self::ReadMaskRequired,
        Self::FieldUnknown,
        Self::SubjectNotGiven,
        Self::SubjectKeysIncomplete,
        Self::SubjectKeyInvalid,
        Self::SubjectInvalid,
        Self::ClaimInvalid,
        Self::NotGranted,
        Self::GrantExpired,
        Self::GrantNotYetValid,
        Self::RoleNotGranted,
        Self::VerifyOnly,
        Self::NeverShared,
        Self::BasisMissing,
        Self::Denied,
        Self::CaseNotOpen,
        Self::SubjectNotInCase,
        Self::ConsentMissing,
        Self::OutsideHours,
        Self::RegionMismatch,
        Self::BasisNotAccepted,
        Self::ConditionUnknown,
        Self::RecordCondition,
        Self::RecordNotFound,
        Self::RecordAmbiguous,
        Self::ProviderNotConnected,
        Self::ProviderUnavailable,
        Self::ProviderTimeout,
        Self::ProviderRefused,
        Self::ProviderAnswerInvalid,
        Self::CallerLimited,
        Self::SubjectLimited,
        Self::ProviderLimited,
        Self::GatewayLimited,
        Self::AttemptsLimited,
        Self::AuditUnavailable,
        Self::DeadlineExceeded,
        Self::Cancelled,
        Self::Internal,
    ];

    /// Its number in `gateway.v1.ErrorReason`.
    pub const fn number(self) -> i32 {
        self as i32
    }

    /// How the access log counts a request that ended so.
    pub const fn outcome(self) -> Outcome {
        match self {
            Self::NotGranted
            | Self::GrantExpired
            | Self::GrantNotYetValid
            | Self::RoleNotGranted
            | Self::VerifyOnly
            | Self::NeverShared
            | Self::BasisMissing
            | Self::Denied
            | Self::CaseNotOpen
            | Self::SubjectNotInCase
            | Self::ConsentMissing
            | Self::OutsideHours
            | Self::RegionMismatch
            | Self::BasisNotAccepted
            | Self::ConditionUnknown
            | Self::RecordCondition => Outcome::Denied,
            Self::RecordNotFound => Outcome::NotFound,
            Self::RecordAmbiguous => Outcome::Ambiguous,
            Self::ProviderNotConnected
            | Self::ProviderUnavailable
            | Self::ProviderTimeout
            | Self::ProviderRefused
            | Self::ProviderAnswerInvalid => Outcome::ProviderError,
            Self::CallerLimited
            | Self::SubjectLimited
            | Self::AttemptsLimited
            | Self::ProviderLimited
            | Self::GatewayLimited => Outcome::Limited,
            Self::Cancelled | Self::DeadlineExceeded => Outcome::Cancelled,
            _ => Outcome::Rejected,
        }
    }
}

/// A refusal before it is recorded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refused {
    /// Why.
    pub reason: Reason,
    /// Metadata of the `ErrorInfo`: names from the API or the catalog, never a citizen's data.
    pub metadata: Vec<(&'static str, String)>,
    /// When a retry may succeed.
    pub retry_after: Option<Duration>,
}

impl Refused {
    /// Without metadata.
    pub const fn new(reason: Reason) -> Self {
        Self { reason, metadata: Vec::new(), retry_after: None }
    }

    /// With one more piece of metadata.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.metadata.push((name, value.into()));
        self
    }
}

impl From<Reason> for Refused {
    fn from(reason: Reason) -> Self {
        Self::new(reason)
    }
}

impl From<Limited> for Refused {
    fn from(limited: Limited) -> Self {
        let reason = match limited.scope {
            Scope::Caller => Reason::CallerLimited,
            Scope::Subject => Reason::SubjectLimited,
            Scope::Attempts => Reason::AttemptsLimited,
            Scope::Provider => Reason::ProviderLimited,
        };
        Self { retry_after: Some(limited.retry_after), ..Self::new(reason) }
    }
}

impl From<TokenError> for Refused {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Missing => Reason::TokenMissing.into(),
            TokenError::Malformed { claim } => Self::new(Reason::TokenMalformed).with("claim", claim),
            TokenError::Untrusted => Reason::TokenUntrusted.into(),
            TokenError::Expired => Reason::TokenExpired.into(),
            TokenError::TimeInvalid { claim } => Self::new(Reason::TokenTimeInvalid).with("claim", claim),
            TokenError::AudienceMismatch => Reason::TokenAudienceMismatch.into(),
            TokenError::NotBound => Reason::TokenNotBound.into(),
            TokenError::ConsumerNotDelegated { consumer } => {
                Self::new(Reason::ConsumerNotDelegated).with("consumer", consumer.to_string())
            }
        }
    }
}

impl From<SubjectError> for Refused {
    fn from(error: SubjectError) -> Self {
        match error {
            SubjectError::NotGiven { role } => Self::new(Reason::SubjectNotGiven).with("role", role),
            SubjectError::KeysIncomplete { missing } => {
                Self::new(Reason::SubjectKeysIncomplete).with("missing", missing)
            }
            SubjectError::KeyInvalid { attribute, rule } => {
                Self::new(Reason::SubjectKeyInvalid).with("attribute", attribute).with("rule", rule)
            }
            SubjectError::Invalid { what } => Self::new(Reason::SubjectInvalid).with("what", what),
        }
    }
}

impl From<FetchError> for Refused {
    fn from(error: FetchError) -> Self {
        match error {
            FetchError::NotConnected => Reason::ProviderNotConnected.into(),
            FetchError::NotFound => Reason::RecordNotFound.into(),
            FetchError::Ambiguous => Reason::RecordAmbiguous.into(),
            FetchError::Limited { retry_after } => {
                Self { retry_after: Some(retry_after), ..Self::new(Reason::ProviderLimited) }
            }
            FetchError::Unavailable => Reason::ProviderUnavailable.into(),
            FetchError::Timeout => Reason::ProviderTimeout.into(),
            FetchError::Refused => Reason::ProviderRefused.into(),
            FetchError::AnotherSubject | FetchError::Invalid(_) => Reason::ProviderAnswerInvalid.into(),
        }
    }
}

impl From<&policy::Refusal> for Refused {
    fn from(refusal: &policy::Refusal) -> Self {
        let mut refused = Self::new(refusal.reason.into());
        if let Some(grant) = &refusal.grant {
            refused = refused.with("grant", grant.as_ref());
        }
        // What decided on the record is told to nobody.
        match &refusal.condition {
            Some(condition) if refusal.reason != WithheldReason::RecordCondition => {
                refused.with("condition", condition.as_ref())
            }
            _ => refused,
        }
    }
}

impl From<WithheldReason> for Reason {
    fn from(reason: WithheldReason) -> Self {
        match reason {
            WithheldReason::NotGranted => Self::NotGranted,
            WithheldReason::GrantExpired => Self::GrantExpired,
            WithheldReason::GrantNotYetValid => Self::GrantNotYetValid,
            WithheldReason::RoleNotGranted => Self::RoleNotGranted,
            WithheldReason::VerifyOnly => Self::VerifyOnly,
            WithheldReason::NeverShared => Self::NeverShared,
            WithheldReason::BasisMissing => Self::BasisMissing,
            WithheldReason::Denied => Self::Denied,
            WithheldReason::CaseNotOpen => Self::CaseNotOpen,
            WithheldReason::SubjectNotInCase => Self::SubjectNotInCase,
            WithheldReason::ConsentMissing => Self::ConsentMissing,
            WithheldReason::OutsideHours => Self::OutsideHours,
            WithheldReason::RegionMismatch => Self::RegionMismatch,
            WithheldReason::BasisNotAccepted => Self::BasisNotAccepted,
            WithheldReason::ConditionUnknown => Self::ConditionUnknown,
            WithheldReason::RecordCondition => Self::RecordCondition,
        }
    }
}
