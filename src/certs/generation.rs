//! One immutable set of trust material, validated before anybody is served with it.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ServerConfig, version};

use super::config::TlsConfig;
use super::material::{self, Facts, TlsClock};
use super::trust::{CallerVerifier, ClientTrust, JudgeError};
use crate::catalog::Faults;
use crate::clock::{Clock, Timestamp};
use crate::identity::Caller;
use crate::ids::SpiffeId;

/// The only protocol served.
pub(super) const ALPN: &[u8] = b"h2";

/// Server chain and key, CAs of callers with their bindings, and the TLS configuration made of them.
///
/// Never changed once made: a rotation loads a new one with a higher number and gives it to [`super::Gate::install`].
pub struct Generation {
    number: u64,
    server_id: SpiffeId,
    leaf_sha256: [u8; 32],
    leaf_not_after: Timestamp,
    trust: Arc<ClientTrust>,
    server_config: Arc<ServerConfig>,
    clock: Clock,
}

impl Generation {
    /// Reads and validates everything, now, and reports all faults at once.
    pub fn load(number: u64, config: &TlsConfig, trust_domain: &str, clock: &Clock) -> Result<Self, Faults> {
        let mut faults = Faults::default();
        let now = clock.now();
        let key = material::certified_key(&config.certificate, &config.key, &mut faults);
        let leaf = key.as_ref().and_then(|key| check_server(key, &config.certificate, trust_domain, now, &mut faults));
        if config.client_cas.is_empty() {
            faults.of(&config.certificate, "no client CA is configured (client_cas); nobody could call");
        }
        let trust = Arc::new(ClientTrust::load(&config.client_cas, trust_domain, now, &mut faults));
        let (Some(key), Some((leaf_der, server_id, leaf_not_after)), true) = (key, leaf, faults.0.is_empty()) else {
            return Err(faults);
        };
        let server_config = match server_config(key, trust.clone(), clock) {
            Ok(config) => Arc::new(config),
            Err(error) => {
                faults.of(&config.certificate, format!("TLS refuses this material: {error}"));
                return Err(faults);
            }
        };
        Ok(Self {
            number,
            server_id,
            leaf_sha256: material::sha256(&leaf_der),
            leaf_not_after,
            trust,
            server_config,
            clock: clock.clone(),
        })
    }

    /// Its number; higher is newer.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The identity the gateway shows its callers.
    pub fn server_id(&self) -> &SpiffeId {
        &self.server_id
    }

    /// SHA-256 of the server leaf's DER.
    pub fn leaf_sha256(&self) -> &[u8; 32] {
        &self.leaf_sha256
    }

    /// When the server's leaf expires.
    pub fn leaf_not_after(&self) -> Timestamp {
        self.leaf_not_after
    }

    /// The TLS configuration: 1.3 only, ALPN `h2`, client certificate required, no resumption, no early data.
    pub fn server_config(&self) -> &Arc<ServerConfig> {
        &self.server_config
    }

    /// The caller a chain (leaf first) proves under this generation, now.
    pub fn judge(&self, certs: &[CertificateDer<'_>]) -> Result<Caller, JudgeError> {
        self.judge_until(certs).map(|(caller, _)| caller)
    }

    /// The caller and until when the chain, its CA included, proves it.
    pub(super) fn judge_until(&self, certs: &[CertificateDer<'_>]) -> Result<(Caller, Timestamp), JudgeError> {
        self.trust.judge(certs, material::unix_time(self.clock.now()))
    }

    /// Generations with equal fingerprints judge every chain alike, dates aside.
    pub(super) fn trust_fingerprint(&self) -> &[u8; 32] {
        self.trust.fingerprint()
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generation")
            .field("number", &self.number)
            .field("server_id", &self.server_id)
            .field("leaf_sha256", &hex::encode(self.leaf_sha256))
            .finish_non_exhaustive()
    }
}

type ServerLeaf = (CertificateDer<'static>, SpiffeId, Timestamp);

fn check_server(
    key: &CertifiedKey,
    file: &Path,
    trust_domain: &str,
    now: Timestamp,
    faults: &mut Faults,
) -> Option<ServerLeaf> {
    let mut chain = Vec::new();
    for (position, der) in key.cert.iter().enumerate() {
        let Some(facts) = Facts::of(der) else {
            faults.of(file, format!("certificate {} can't be read", position + 1));
            return None;
        };
        if let Some(wrong) = facts.dates(now) {
            faults.of(file, format!("certificate {} {wrong}", position + 1));
        }
        chain.push(facts);
    }
    for (position, (lower, upper)) in chain.iter().zip(chain.iter().skip(1)).enumerate() {
        if lower.issuer != upper.subject || !upper.is_ca {
            faults.of(file, format!("certificate {} is not the issuer of the one before it", position + 2));
        }
    }
    let leaf = chain.first()?;
    if leaf.is_ca {
        faults.of(file, "the first certificate is a CA's; it must be the server's");
    }
    if !leaf.server_auth {
        faults.of(file, "the server's certificate lacks the extended key usage serverAuth");
    }
    let id = leaf.spiffe_id().filter(|id| id.trust_domain() == trust_domain);
    if id.is_none() {
        faults.of(
            file,
            format!(
                "the server's certificate must have exactly one URI name, spiffe://{trust_domain}/<DEPARTMENT>/<system>"
            ),
        );
    }
    Some((key.cert.first()?.clone(), id?, leaf.not_after))
}

fn server_config(key: CertifiedKey, trust: Arc<ClientTrust>, clock: &Clock) -> Result<ServerConfig, rustls::Error> {
    let mut config =
        ServerConfig::builder_with_details(Arc::new(material::provider()), Arc::new(TlsClock(clock.clone())))
            .with_protocol_versions(&[&version::TLS13])?
            .with_client_cert_verifier(Arc::new(CallerVerifier(trust)))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed session copies the old client chain and never asks the verifier, so there must be none.
    config.send_tls13_tickets = 0;
    config.max_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    Ok(config)
}
