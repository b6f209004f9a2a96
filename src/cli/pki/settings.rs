//! Who gets which certificate.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::PkiError;
use crate::ids::{DepartmentCode, SpiffeId};

/// Where the built-in settings stand in the repository.
const BUILT_IN_FILE: &str = "certs-dev/pki.toml";
const BUILT_IN: &str = include_str!("../../../certs-dev/pki.toml");

/// Settings of `oncegate pki init`; `certs-dev/pki.toml` is the full example.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PkiSettings {
    /// Trust domain of all identities.
    pub trust_domain: String,
    /// Validity of CAs in days, 1 to 36500.
    pub ca_days: u32,
    /// Validity of everything else in days, at most that of the CAs.
    pub leaf_days: u32,
    /// Everything is valid from so many minutes ago, at most 1440.
    pub backdate_minutes: u32,
    /// The gateway.
    pub gateway: GatewaySettings,
    /// The platform's registered issuer of tokens.
    pub platform: PlatformSettings,
    /// The departments, each with a CA.
    pub departments: Vec<DepartmentSettings>,
    /// Where these settings came from, for messages.
    #[serde(skip)]
    file: PathBuf,
}

/// The gateway's identity.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewaySettings {
    /// The department that runs it; its CA issues the gateway's client certificate.
    pub department: String,
    /// Its name in that department.
    pub system: String,
}

/// The platform's registered issuer of tokens.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlatformSettings {
    /// Name of its key's files: lower-case letters, digits and `-`.
    pub issuer: String,
}

/// One department.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DepartmentSettings {
    /// Its code.
    pub code: String,
    /// Systems that call the gateway.
    #[serde(default)]
    pub systems: Vec<String>,
    /// Record sources that the gateway calls.
    #[serde(default)]
    pub sources: Vec<String>,
}

impl PkiSettings {
    /// The settings this program carries.
    pub fn built_in() -> Result<Self, PkiError> {
        Self::parse(BUILT_IN, Path::new(BUILT_IN_FILE))
    }

    /// The settings of a file.
    pub fn load(file: &Path) -> Result<Self, PkiError> {
        let text = std::fs::read_to_string(file).map_err(|source| PkiError::Io { path: file.into(), source })?;
        Self::parse(&text, file)
    }

    fn parse(text: &str, file: &Path) -> Result<Self, PkiError> {
        let mut settings: Self = toml::from_str(text)
            .map_err(|error| PkiError::Settings { file: file.into(), message: error.to_string() })?;
        settings.file = file.into();
        settings.check()?;
        Ok(settings)
    }

    /// The identity of a system.
    pub(super) fn spiffe_id(&self, department: &str, name: &str) -> String {
        format!("spiffe://{}/{department}/{name}", self.trust_domain)
    }

    /// Refuses settings that would make certificates nobody accepts, or files that overwrite each other. Names that pass
    /// are safe in paths.
    pub(super) fn check(&self) -> Result<(), PkiError> {
        let wrong = |message: String| Err(PkiError::Settings { file: self.file.clone(), message });
        if !(1..=36_500).contains(&self.ca_days) || !(1..=self.ca_days).contains(&self.leaf_days) {
            return wrong("ca_days must be 1 to 36500, and leaf_days 1 to ca_days".into());
        }
        if self.backdate_minutes > 24 * 60 {
            return wrong("backdate_minutes must be at most 1440".into());
        }
        let mut codes = HashSet::new();
        let mut identities = HashSet::from([self.spiffe_id(&self.gateway.department, &self.gateway.system)]);
        for department in &self.departments {
            let code = &department.code;
            if let Err(error) = code.parse::<DepartmentCode>() {
                return wrong(format!("department {code:?}: {error}"));
            }
            if !codes.insert(code.as_str()) {
                return wrong(format!("department {code} stands there twice"));
            }
            for name in department.systems.iter().chain(&department.sources) {
                if !identities.insert(self.spiffe_id(code, name)) {
                    return wrong(format!("{code}/{name} stands there twice"));
                }
            }
        }
        if !codes.contains(self.gateway.department.as_str()) {
            return wrong(format!(
                "the gateway's department {:?} is not among the departments",
                self.gateway.department
            ));
        }
        let issuer = self.spiffe_id(&self.gateway.department, &self.platform.issuer);
        for identity in identities.iter().chain([&issuer]) {
            if let Err(error) = identity.parse::<SpiffeId>() {
                return wrong(format!("{identity:?}: {error}"));
            }
        }
        Ok(())
    }
}
