//! Why a field is withheld.

use std::sync::Arc;

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
    /// A grant needs another kind of legal basis than the token's.
    BasisNotAccepted,
    /// The subject, or its role, is not in the case.
    SubjectNotInCase,
    /// The case is closed, or there is none of this number.
    CaseNotOpen,
    /// The consent is not given, or was revoked.
    ConsentMissing,
    /// The consumer is of another region.
    RegionMismatch,
    /// It is not the time of day, or the day, for it.
    OutsideHours,
    /// A condition could not be established; a retry may succeed.
    ConditionUnknown,
    /// The record itself forbids it.
    RecordCondition,
}

impl WithheldReason {
    /// Every reason, least useful first.
    pub const ALL: [Self; 16] = [
        Self::NeverShared,
        Self::NotGranted,
        Self::Denied,
        Self::RoleNotGranted,
        Self::VerifyOnly,
        Self::GrantExpired,
        Self::GrantNotYetValid,
        Self::BasisMissing,
        Self::BasisNotAccepted,
        Self::SubjectNotInCase,
        Self::CaseNotOpen,
        Self::ConsentMissing,
        Self::RegionMismatch,
        Self::OutsideHours,
        Self::ConditionUnknown,
        Self::RecordCondition,
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
            Self::BasisNotAccepted => "BASIS_NOT_ACCEPTED",
            Self::SubjectNotInCase => "SUBJECT_NOT_IN_CASE",
            Self::CaseNotOpen => "CASE_NOT_OPEN",
            Self::ConsentMissing => "CONSENT_MISSING",
            Self::RegionMismatch => "REGION_MISMATCH",
            Self::OutsideHours => "OUTSIDE_HOURS",
            Self::ConditionUnknown => "CONDITION_UNKNOWN",
            Self::RecordCondition => "RECORD_CONDITION",
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
            Self::CaseNotOpen => 9,
            Self::ConditionUnknown => 10,
            Self::RecordCondition => 11,
            Self::SubjectNotInCase => 12,
            Self::ConsentMissing => 13,
            Self::OutsideHours => 14,
            Self::RegionMismatch => 15,
            Self::BasisNotAccepted => 16,
        }
    }
}

/// One field that was asked for and may not leave.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Withheld {
    /// The leaf.
    pub leaf: usize,
    /// Why.
    pub reason: WithheldReason,
    /// The condition that did not hold, if one decided: the fact's name; for [`WithheldReason::RecordCondition`] the
    /// exact reason, which callers are not told.
    pub condition: Option<Arc<str>>,
}

/// Why a whole request is refused: the most useful of its fields' reasons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The reason.
    pub reason: WithheldReason,
    /// The condition that did not hold, as in [`Withheld`].
    pub condition: Option<Arc<str>>,
    /// The grant that came furthest, where one names a field that was asked for and no deny rule took it away.
    pub grant: Option<Arc<str>>,
}
