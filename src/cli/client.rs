//! A client of the gateway: its profile, its channel, its tokens. Used by `oncegate call` and the demo.

use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::digest;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};
use tonic::Request;
use tonic::transport::Channel;

use crate::certs::upstream::{self, UpstreamConfig};
use crate::clock::Clock;
use crate::identity::Basis;
use crate::identity::mint::{MintRequest, SigningKey};
use crate::ids::{CaseId, DepartmentCode, RequestId, SpiffeId};

/// Who calls, and whom: a TOML file with paths relative to it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// `https://host:port` of the gateway.
    pub address: String,
    /// SPIFFE ID that the gateway's certificate must carry.
    pub server_id: String,
    /// PEM file with the certificate authority of the gateway.
    pub ca: PathBuf,
    /// PEM file with the caller's certificate chain.
    pub certificate: PathBuf,
    /// PEM file with its key.
    pub key: PathBuf,
    /// The calling system.
    pub caller: String,
    /// The token issuer's name, as the gateway knows it.
    pub issuer: String,
    /// PEM file with the issuer's key. A department that has an issuer of its own asks that one for tokens instead.
    pub token_key: PathBuf,
    /// The officer that tokens name.
    pub officer: String,
}

/// What a token is for.
#[derive(Debug, Clone)]
pub struct TokenFor {
    /// The department that asks.
    pub consumer: DepartmentCode,
    /// Code of the matter.
    pub matter: String,
    /// Number of the case.
    pub case_id: CaseId,
    /// Kind of the legal basis.
    pub basis: Basis,
    /// Citation or consent reference.
    pub reference: String,
    /// The purpose in words.
    pub purpose: String,
}

/// A profile can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {why}")]
pub struct ProfileError {
    what: String,
    why: String,
}

impl ProfileError {
    fn new(what: impl std::fmt::Display, why: impl std::fmt::Display) -> Self {
        Self { what: what.to_string(), why: why.to_string() }
    }
}

/// A ready client.
#[derive(Debug, Clone)]
pub struct Client {
    /// The channel to the gateway.
    pub channel: Channel,
    caller: SpiffeId,
    leaf_sha256: [u8; 32],
    key: std::sync::Arc<SigningKey>,
    issuer: String,
    officer: String,
    clock: Clock,
}

impl Profile {
    /// Reads a profile.
    ///
    /// # Errors
    /// If the file is missing or not a profile.
    pub fn load(file: &Path) -> Result<Self, ProfileError> {
        let wrong = |error: &dyn std::fmt::Display| ProfileError::new(file.display(), error);
        let text = std::fs::read_to_string(file).map_err(|error| wrong(&error))?;
        let mut profile: Self = toml::from_str(&text).map_err(|error| wrong(&error))?;
        let base = file.parent().unwrap_or(Path::new("."));
        for path in [&mut profile.ca, &mut profile.certificate, &mut profile.key, &mut profile.token_key] {
            *path = base.join(&*path);
        }
        Ok(profile)
    }

    /// Reads its files and prepares a channel, which connects when it is first used.
    ///
    /// # Errors
    /// If a file can't be used.
    pub fn client(&self, clock: Clock) -> Result<Client, ProfileError> {
        let read = |path: &Path| std::fs::read(path).map_err(|error| ProfileError::new(path.display(), error));
        let leaf = CertificateDer::from_pem_slice(&read(&self.certificate)?)
            .map_err(|_| ProfileError::new(self.certificate.display(), "holds no certificate in PEM"))?;
        let mut leaf_sha256 = [0; 32];
        leaf_sha256.copy_from_slice(digest::digest(&digest::SHA256, &leaf).as_ref());
        let key = SigningKey::from_pkcs8_pem(&read(&self.token_key)?)
            .map_err(|error| ProfileError::new(self.token_key.display(), error))?;
        let server_id: SpiffeId = self.server_id.parse().map_err(|error| ProfileError::new("server_id", error))?;
        let Self { address, ca, certificate, key: tls_key, .. } = self;
        let channel =
            upstream::channel(&UpstreamConfig::new(address, ca, certificate.clone(), tls_key.clone(), server_id))
                .map_err(|faults| ProfileError::new("channel", faults))?;
        Ok(Client {
            channel,
            caller: self.caller.parse().map_err(|error| ProfileError::new("caller", error))?,
            leaf_sha256,
            key: std::sync::Arc::new(key),
            issuer: self.issuer.clone(),
            officer: self.officer.clone(),
            clock,
        })
    }
}

/// Tokens live this long, in seconds.
const LIFETIME_S: u64 = 300;

impl Client {
    /// A token for one purpose, bound to this client's certificate.
    ///
    /// # Errors
    /// If it can't be signed.
    pub fn token(&self, purpose: &TokenFor) -> Result<String, ProfileError> {
        let request = MintRequest {
            issuer: &self.issuer,
            trust_domain: self.caller.trust_domain(),
            caller: &self.caller,
            leaf_sha256: &self.leaf_sha256,
            officer: &self.officer,
            token_id: &RequestId::generate().to_string(),
            issued_at: self.clock.now(),
            lifetime_s: LIFETIME_S,
            consumer: &purpose.consumer,
            matter: &purpose.matter,
            case_id: &purpose.case_id,
            basis: purpose.basis,
            basis_reference: &purpose.reference,
            purpose: &purpose.purpose,
            certificate_types: &[],
            subjects: None,
        };
        self.key.mint(&request).map_err(|error| ProfileError::new("token", error))
    }

    /// A request that carries a token.
    ///
    /// # Errors
    /// If the token does not fit a header, which a minted one does.
    pub fn request<T>(&self, message: T, token: &str, timeout: Duration) -> Result<Request<T>, ProfileError> {
        let mut request = Request::new(message);
        let value = format!("Bearer {token}").parse().map_err(|_| ProfileError::new("token", "not a header value"))?;
        request.metadata_mut().insert("authorization", value);
        request.set_timeout(timeout);
        Ok(request)
    }
}
