//! A grant: what one consumer may have of one certificate type for one matter.

use std::sync::Arc;

use time::Date;

use super::facts::FactSet;
use super::mask::Mask;
use crate::catalog::{CertificateType, ConsumerKind, Fields};
use crate::ids::DepartmentCode;

/// The most that a grant may disclose, least first (共享方式).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Mode {
    /// 核验: values are compared inside the gateway.
    Verify,
    /// 查询: fields are released.
    Query,
    /// 证照文件: the signed file is released.
    File,
}

impl Mode {
    /// Every mode, least disclosure first.
    pub const ALL: [Self; 3] = [Self::Verify, Self::Query, Self::File];

    /// Its name in grant files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Verify => "verify",
            Self::Query => "query",
            Self::File => "file",
        }
    }

    /// The mode of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }

    /// The most that a kind of organisation may be granted (Decree 809, art. 2 and 25).
    pub const fn most_for(kind: ConsumerKind) -> Self {
        match kind {
            ConsumerKind::Government | ConsumerKind::AuthorizedOrg => Self::File,
            ConsumerKind::Hospital => Self::Query,
            ConsumerKind::PublicUtility | ConsumerKind::Bank => Self::Verify,
        }
    }
}

/// True for organisations that are third parties to sharing between departments (Decree 809, art. 25).
pub(super) const fn is_third_party(kind: ConsumerKind) -> bool {
    matches!(kind, ConsumerKind::PublicUtility | ConsumerKind::Bank)
}

/// One grant (授权), as checked at load. Grants add up; only a deny rule takes away.
#[derive(Clone, Debug)]
pub struct Grant {
    /// Unique id, for example `newborn_birth.GA.birth_medical_certificate`; stands in answers and access records.
    pub id: Arc<str>,
    /// The department that asks.
    pub consumer: DepartmentCode,
    /// The department that holds the record and gives the grant.
    pub provider: DepartmentCode,
    /// Code of the matter.
    pub matter: String,
    /// Code of the certificate type.
    pub certificate_type: String,
    /// Roles of the case whose records it covers; never empty.
    pub roles: Vec<String>,
    /// The most it may disclose.
    pub mode: Mode,
    /// The leaves it gives, masked ones included, and the predicates it names; never empty.
    pub fields: Fields,
    /// Leaves given only in a masked form, weakest mask first, no leaf twice.
    pub masks: Vec<(Mask, Fields)>,
    /// Conditions: facts that must all be known true, those at the head of its file included.
    pub when: FactSet,
    /// The first day it holds, China Standard Time.
    pub valid_from: Date,
    /// The last day it holds (使用时限), China Standard Time.
    pub valid_until: Date,
    /// The material that the applicant need not bring, for example `出生医学证明`.
    pub replaces: String,
    /// 免提交方式, `1` to `5`: how the material is spared (`2` certificate linked, `3` verification interface).
    pub exemption: String,
    /// 使用依据, one citation each; never empty.
    pub legal_basis: Vec<String>,
    /// 使用场景.
    pub scene: String,
    /// Reference of the provider's written consent; never empty for a third party, such as a utility or a bank
    /// (Decree 809, art. 25).
    pub provider_consent: String,
}

impl Grant {
    /// The leaves it gives in a masked form.
    pub fn masked(&self) -> Fields {
        self.masks.iter().fold(Fields::EMPTY, |all, (_, fields)| all | *fields)
    }

    /// The leaves it gives in clear.
    pub fn clear(&self) -> Fields {
        self.fields - self.masked()
    }

    /// What it lets be compared: what it gives in clear, and every predicate that is drawn from nothing else. Who may read
    /// a value only masked may not find the rest of it by comparing.
    pub fn comparable(&self, certificate_type: &CertificateType) -> Fields {
        certificate_type.with_conclusions_within(self.clear())
    }
}

/// A rule that takes away what grants give.
#[derive(Clone, Debug)]
pub(super) struct Deny {
    /// `None`: every consumer.
    pub(super) consumers: Option<Vec<DepartmentCode>>,
    pub(super) matter: String,
    pub(super) certificate_type: String,
    pub(super) fields: Fields,
    /// Conditions: it applies unless one of them is known false.
    pub(super) when: FactSet,
}

impl Deny {
    /// True if it takes something away from this consumer, for this matter and certificate type.
    pub(super) fn concerns(&self, consumer: &DepartmentCode, matter: &str, certificate_type: &str) -> bool {
        self.matter == matter
            && self.certificate_type == certificate_type
            && self.consumers.as_ref().is_none_or(|consumers| consumers.contains(consumer))
    }
}
