//! A case file: what `oncegate call` says of a case. TOML, for example:
//!
//! ```toml
//! matter = "newborn_birth"
//! case_id = "HS-2026-000001"
//! citation = "户口登记条例 第七条"      # or: consent = "C-2026-17"
//! purpose = "出生登记"
//!
//! [[subjects]]
//! role = "mother"
//! id_no = "…"
//! name = "…"
//! ```

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::client::TokenFor;
use crate::identity::Basis;
use crate::ids::{CaseId, DepartmentCode, IdError};
use crate::pb::gateway::{Attribute, CaseSubject};

/// One case as a caller knows it.
#[derive(Clone, Serialize, Deserialize)]
pub struct Case {
    /// Code of the matter.
    pub matter: String,
    /// Number of the case.
    pub case_id: String,
    /// Citation of the statutory duty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub citation: String,
    /// Reference of the subject's consent; counts instead of a citation.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub consent: String,
    /// The purpose in words, at most 200 characters.
    pub purpose: String,
    /// Who takes part.
    #[serde(default)]
    pub subjects: Vec<Subject>,
}

/// Who takes part in a case: a role, and every other key is an attribute.
#[derive(Clone, Serialize, Deserialize)]
pub struct Subject {
    /// Role in the case.
    pub role: String,
    /// Attributes by name.
    #[serde(flatten)]
    pub attributes: BTreeMap<String, String>,
}

/// Values stay out of logs.
impl std::fmt::Debug for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subject").field("role", &self.role).finish_non_exhaustive()
    }
}

/// Values stay out of logs.
impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Case").field("matter", &self.matter).field("case_id", &self.case_id).finish_non_exhaustive()
    }
}

/// A case file can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {why}")]
pub struct CaseError {
    file: String,
    why: String,
}

impl Case {
    /// Reads a case file.
    ///
    /// # Errors
    /// If the file is missing or not a case.
    pub fn load(file: &Path) -> Result<Self, CaseError> {
        let wrong = |why: String| CaseError { file: file.display().to_string(), why };
        let text = std::fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
        toml::from_str(&text).map_err(|error| wrong(error.to_string()))
    }

    /// The subjects as the API takes them.
    pub fn subjects(&self) -> Vec<CaseSubject> {
        let message = |subject: &Subject| CaseSubject {
            role: subject.role.clone(),
            attributes: (subject.attributes.iter())
                .map(|(name, value)| Attribute { name: name.clone(), value: value.clone() })
                .collect(),
        };
        self.subjects.iter().map(message).collect()
    }

    /// What a token for this case and one consumer says.
    ///
    /// # Errors
    /// If the case number has not the form of one.
    pub fn token_for(&self, consumer: &DepartmentCode) -> Result<TokenFor, IdError> {
        let (basis, reference) = match self.consent.as_str() {
            "" => (Basis::StatutoryDuty, self.citation.clone()),
            consent => (Basis::Consent, consent.to_owned()),
        };
        Ok(TokenFor {
            consumer: consumer.clone(),
            matter: self.matter.clone(),
            case_id: self.case_id.parse::<CaseId>()?,
            basis,
            reference,
            purpose: self.purpose.clone(),
        })
    }
}
