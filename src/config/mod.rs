//! The configuration file: one TOML, composed of what each room owns. Unknown keys are refused, all paths are relative to
//! the file, and `deploy/heshan/gateway.toml` shows every option; a test parses it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::api::{AdminConfig, CallConfig};
use crate::audit::AuditConfig;
use crate::cache::CacheConfig;
use crate::catalog::Faults;
use crate::certs::{HardeningConfig, TrustConfig};
use crate::connectors::{RegistriesConfig, SourceConfig};
use crate::identity::IdentityConfig;
use crate::limits::LimitsConfig;
use crate::policy::PolicyConfig;
use crate::telemetry::TelemetryConfig;

/// A whole gateway.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Trust domain of every SPIFFE ID, for example `heshan.gov.example`.
    pub trust_domain: String,
    /// Where it listens.
    pub server: ServerConfig,
    /// The gateway's certificate, the departments' certificate authorities, and what they revoked.
    pub trust: TrustConfig,
    /// Limits of connections.
    #[serde(default)]
    pub hardening: HardeningConfig,
    /// Bounds on calls.
    #[serde(default)]
    pub calls: CallConfig,
    /// Token issuers and platforms.
    pub identity: IdentityConfig,
    /// Departments, matters, certificate types, conditions and grants.
    #[serde(default)]
    pub policy: PolicyConfig,
    /// The platform's registers of cases and consents.
    #[serde(default)]
    pub registries: RegistriesConfig,
    /// Limits of callers, subjects and providers.
    #[serde(default)]
    pub limits: LimitsConfig,
    /// Memory of providers' answers.
    #[serde(default)]
    pub cache: CacheConfig,
    /// Departments' systems.
    #[serde(default)]
    pub sources: Vec<SourceConfig>,
    /// The access log.
    pub audit: AuditConfig,
    /// The operators' socket; without it there is none.
    pub admin: Option<AdminConfig>,
    /// Log lines.
    #[serde(default)]
    pub telemetry: TelemetryConfig,

    /// The file it was read from, for faults.
    #[serde(skip)]
    pub file: PathBuf,
}

/// Addresses.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerConfig {
    /// Address and port of the gateway; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Address and port of metrics, liveness and readiness, plain HTTP: keep it inside.
    pub observe: SocketAddr,
}

impl Config {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// The fault that keeps it from being read, with its line.
    pub fn load(file: &Path) -> Result<Self, Faults> {
        let mut faults = Faults::default();
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) => {
                faults.of(file, error.to_string());
                return Err(faults);
            }
        };
        let mut config: Self = match toml::from_str(&text) {
            Ok(config) => config,
            Err(error) => {
                faults.at(file, &text, error.span().map_or(0, |span| span.start), error.message());
                return Err(faults);
            }
        };
        file.clone_into(&mut config.file);
        file.clone_into(&mut config.identity.file);
        config.rebase(file.parent().unwrap_or(Path::new(".")));
        Ok(config)
    }

    fn rebase(&mut self, base: &Path) {
        self.trust.rebase(base);
        self.identity.rebase(base);
        self.policy.rebase(base);
        self.registries.rebase(base);
        self.audit.rebase(base);
        self.sources.iter_mut().for_each(|source| source.rebase(base));
        if let Some(admin) = &mut self.admin {
            admin.rebase(base);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("gateway.toml");
        std::fs::write(&file, text).unwrap();
        (dir, file)
    }

    #[test]
    fn the_reference_deployment_parses() {
        let config = Config::load(Path::new("deploy/heshan/gateway.toml")).unwrap();
        assert_eq!(config.trust_domain, "heshan.gov.example");
        assert!(config.policy.bundle.ends_with("deploy/heshan/policy"), "paths are relative to the file");
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line() {
        let text = std::fs::read_to_string("deploy/heshan/gateway.toml").unwrap();
        let (_dir, file) = written(&text.replacen("[server]\n", "[server]\nlisten_adress = \"127.0.0.1:1\"\n", 1));
        let faults = Config::load(&file).unwrap_err();
        let line = text.lines().position(|line| line == "[server]").unwrap() + 2;
        assert_eq!(faults.0[0].line, Some(line), "{faults}");
        assert!(faults.0[0].message.contains("listen_adress"), "{faults}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let faults = Config::load(Path::new("no-such.toml")).unwrap_err();
        assert!(faults.to_string().starts_with("no-such.toml: "), "{faults}");
    }
}
