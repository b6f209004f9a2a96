//! The `[identity]` part of the configuration.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer};

use crate::ids::{DepartmentCode, SpiffeId};

/// Whose tokens are accepted, and which systems may call for others.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IdentityConfig {
    /// The longest time from `iat` to `exp`, in seconds; at most 600. Default 600.
    pub token_max_lifetime_s: u64,
    /// How far issuers' clocks may differ from ours, in seconds; at most 60. Default 10.
    pub leeway_s: u64,
    /// How many verified tokens are remembered; 0 for none. Default 10000 (some 10 MB).
    pub token_cache_entries: u64,
    /// Issuers of tokens; at least one.
    pub issuers: Vec<IssuerConfig>,
    /// Systems that call on behalf of other departments.
    pub platforms: Vec<PlatformConfig>,
    /// File with the key, at least 32 bytes in hexadecimal, that issuers share with the gateway to name subjects in
    /// tokens without their numbers. Without it a token that names subjects covers none.
    pub subjects_key: Option<PathBuf>,

    /// The configuration file, for faults.
    #[serde(skip)]
    pub file: PathBuf,
}

impl Default for IdentityConfig {
    fn default() -> Self {
        Self {
            token_max_lifetime_s: 600,
            leeway_s: 10,
            token_cache_entries: 10_000,
            issuers: Vec::new(),
            platforms: Vec::new(),
            subjects_key: None,
            file: PathBuf::new(),
        }
    }
}

impl IdentityConfig {
    /// Joins relative paths to `base`, the directory of the configuration file.
    pub fn rebase(&mut self, base: &Path) {
        for issuer in &mut self.issuers {
            issuer.jwks = base.join(&issuer.jwks);
        }
        if let Some(key) = &mut self.subjects_key {
            *key = base.join(&*key);
        }
    }

    /// Whom issuers and platforms may speak for although nobody of that code is registered, in words.
    pub fn unregistered(&self, departments: impl Fn(&DepartmentCode) -> bool) -> Vec<String> {
        let issuers = self.issuers.iter().map(|issuer| (issuer.issuer.as_str(), &issuer.consumers));
        let platforms = self.platforms.iter().map(|platform| (platform.id.as_str(), &platform.consumers));
        let mut found = Vec::new();
        for (whose, consumers) in issuers.chain(platforms) {
            let unknown = consumers.iter().filter(|consumer| !departments(consumer));
            found.extend(unknown.map(|consumer| format!("{whose}: no department {consumer} in the catalog")));
        }
        found
    }
}

/// One issuer of tokens.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuerConfig {
    /// The token's `iss`, letter for letter.
    pub issuer: String,
    /// JWKS file with its public keys: EC P-256 or Ed25519, each with `kid` and `"use": "sig"`.
    pub jwks: PathBuf,
    /// Departments that it may speak for.
    #[serde(deserialize_with = "department_codes")]
    pub consumers: Vec<DepartmentCode>,
}

/// A system that calls on behalf of other departments.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlatformConfig {
    /// SPIFFE ID of the system.
    #[serde(deserialize_with = "spiffe_id")]
    pub id: SpiffeId,
    /// Departments that let it call for them, besides its own.
    #[serde(deserialize_with = "department_codes")]
    pub consumers: Vec<DepartmentCode>,
}

fn department_codes<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<DepartmentCode>, D::Error> {
    let codes = Vec::<String>::deserialize(input)?;
    codes.iter().map(|code| code.parse().map_err(serde::de::Error::custom)).collect()
}

fn spiffe_id<'de, D: Deserializer<'de>>(input: D) -> Result<SpiffeId, D::Error> {
    String::deserialize(input)?.parse().map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_read_and_its_paths_rebased() {
        let mut config: IdentityConfig = toml::from_str(
            r#"
            subjects_key = "keys/subjects.hex"
            [[issuers]]
            issuer = "https://id.ga.heshan.gov.example"
            jwks = "issuers/ga.json"
            consumers = ["GA"]
            [[platforms]]
            id = "spiffe://heshan.gov.example/ZS/platform"
            consumers = ["GA", "WJ"]
            "#,
        )
        .unwrap();
        config.rebase(Path::new("/etc/oncegate"));
        assert_eq!(config.issuers[0].jwks, Path::new("/etc/oncegate/issuers/ga.json"));
        assert_eq!(config.subjects_key.as_deref(), Some(Path::new("/etc/oncegate/keys/subjects.hex")));
        assert_eq!((config.token_max_lifetime_s, config.leeway_s), (600, 10));
        assert_eq!(config.platforms[0].id.system(), "platform");
    }

    #[test]
    fn wrong_codes_and_unknown_keys_are_refused() {
        for wrong in [
            "leeway = 10",
            "[[platforms]]\nid = 'spiffe://a.b/GA'\nconsumers = []",
            "[[platforms]]\nid = 'spiffe://a.b/GA/x'\nconsumers = ['ga']",
            "[[issuers]]\nissuer = 'x'\njwks = 'x'\nconsumers = ['GA']\nurl = 'x'",
        ] {
            assert!(toml::from_str::<IdentityConfig>(wrong).is_err(), "{wrong}");
        }
    }
}
