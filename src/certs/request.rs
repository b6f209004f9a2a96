//! Certificate requests (PKCS#10) for keys that are made here and never leave.

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use zeroize::Zeroizing;

use crate::ids::SpiffeId;

/// What a certificate is asked to name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    /// SPIFFE ID of the gateway; empty for the one in force.
    pub id: String,
    /// DNS names and IP addresses, for callers that check the host.
    pub hosts: Vec<String>,
}

/// A new P-256 key (PKCS#8, PEM) and the request for its certificate (PEM).
pub(super) fn make(names: &Names, trust_domain: &str) -> Result<(Zeroizing<String>, String), String> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| error.to_string())?;
    let text = for_key(names, trust_domain, &key)?;
    Ok((Zeroizing::new(key.serialize_pem()), text))
}

/// The request for a key that is kept elsewhere.
fn for_key(names: &Names, trust_domain: &str, key: &impl rcgen::SigningKey) -> Result<String, String> {
    let id: SpiffeId = names
        .id
        .parse()
        .map_err(|_| format!("`{}` is not spiffe://{trust_domain}/<DEPARTMENT>/<system>", names.id.escape_debug()))?;
    if id.trust_domain() != trust_domain {
        return Err(format!("{id} is of another trust domain than {trust_domain}"));
    }
    let odd = |text: &str| format!("`{}` is no DNS name or address", text.escape_debug());
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, trust_domain);
    params.distinguished_name.push(DnType::CommonName, id.as_str().rsplit('/').next().unwrap_or_default());
    params.subject_alt_names = vec![SanType::URI(id.as_str().try_into().map_err(|_| odd(id.as_str()))?)];
    for host in &names.hosts {
        let name = match host.parse() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(host.as_str().try_into().map_err(|_| odd(host))?),
        };
        params.subject_alt_names.push(name);
    }
    let request = params.serialize_request(key).map_err(|error| error.to_string())?;
    request.pem().map_err(|error| error.to_string())
}
