//! Certificate authorities and what they issue.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertificateSigningRequestParams,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PublicKeyData as _, RevokedCertParams, SanType, SerialNumber,
};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::output::Output;
use super::settings::PkiSettings;
use super::{PkiError, days};
use crate::clock::Timestamp;

/// When the certificates of one run are valid.
pub(super) struct Validity {
    from: Timestamp,
    ca_until: Timestamp,
    leaf_until: Timestamp,
}

impl Validity {
    pub(super) fn new(settings: &PkiSettings, now: Timestamp) -> Self {
        Self {
            from: Timestamp::from_secs(now.as_secs().saturating_sub(u64::from(settings.backdate_minutes) * 60)),
            ca_until: now.plus(days(settings.ca_days)),
            leaf_until: now.plus(days(settings.leaf_days)),
        }
    }

    /// All over since an hour before `now`.
    pub(super) fn over(settings: &PkiSettings, now: Timestamp) -> Self {
        let before = |seconds: u64| Timestamp::from_secs(now.as_secs().saturating_sub(seconds));
        let until = before(3600);
        Self { from: before(days(settings.leaf_days).as_secs() + 3600), ca_until: until, leaf_until: until }
    }

    pub(super) fn leaf_until(&self) -> Timestamp {
        self.leaf_until
    }
}

/// What a certificate is for.
#[derive(Clone, Copy)]
pub(super) enum Use {
    /// Answering on this machine.
    Server,
    /// Calling.
    Client,
}

/// A CA with its key.
pub(super) struct Authority {
    certificate: String,
    trust_domain: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new self-signed CA that issues leaves only.
    pub(super) fn new(name: &str, trust_domain: &str, validity: &Validity) -> Result<Self, PkiError> {
        let mut params = params(&format!("{name} development CA"), trust_domain, validity.from, validity.ca_until);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = new_key()?;
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self { certificate, trust_domain: trust_domain.into(), issuer: Issuer::new(params, key) })
    }

    /// Certificate, key, and a revocation list that revokes nobody.
    pub(super) fn write(&self, output: &Output, name: &str, validity: &Validity) -> Result<(), PkiError> {
        let key = self.key();
        output.public(&format!("{name}.pem"), self.certificate.as_bytes())?;
        output.public(&format!("{name}.crl"), self.crl(1, &[], validity)?.as_bytes())?;
        output.private(&format!("{name}.key"), key.as_bytes())
    }

    /// Its certificate, PEM.
    pub(super) fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Its key, PEM.
    pub(super) fn key(&self) -> Zeroizing<String> {
        Zeroizing::new(self.issuer.key().serialize_pem())
    }

    /// A revocation list with these serial numbers, PEM, due when leaves expire.
    pub(super) fn crl(&self, number: u64, revoked: &[Vec<u8>], validity: &Validity) -> Result<String, PkiError> {
        let entry = |serial: &Vec<u8>| RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial),
            revocation_time: to_date(validity.from),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: to_date(validity.from),
            next_update: to_date(validity.leaf_until),
            crl_number: number.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(entry).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(params.signed_by(&self.issuer)?.pem()?)
    }

    /// The CA that an earlier run wrote as `name`.pem and `name`.key.
    pub(super) fn load(name: &Path, trust_domain: &str) -> Result<Self, PkiError> {
        let read = |extension: &str| {
            let path = name.with_extension(extension);
            std::fs::read_to_string(&path).map_err(|source| PkiError::Io { path, source })
        };
        let certificate = read("pem")?;
        let key = KeyPair::from_pem(&Zeroizing::new(read("key")?))?;
        let issuer = Issuer::from_ca_cert_pem(&certificate, key)?;
        Ok(Self { certificate, trust_domain: trust_domain.into(), issuer })
    }

    /// A certificate for the key of a request (PKCS#10, PEM), which must be of P-256 or Ed25519. The names are the CA's
    /// to give: whatever the request asks for is left out.
    pub(super) fn sign(
        &self,
        request: &str,
        spiffe_id: &str,
        usage: Use,
        validity: &Validity,
    ) -> Result<String, PkiError> {
        let request = CertificateSigningRequestParams::from_pem(request)?;
        let key = &request.public_key;
        // rcgen goes by the signature's algorithm, which fits keys of other curves, too; the form of the key tells.
        let known = match (key.algorithm(), key.der_bytes()) {
            (of, point) if *of == PKCS_ECDSA_P256_SHA256 => point.len() == 65 && point.first() == Some(&4),
            (of, point) => *of == PKCS_ED25519 && point.len() == 32,
        };
        if !known {
            return Err(PkiError::RequestKey);
        }
        Ok(self.leaf(spiffe_id, usage, validity)?.signed_by(key, &self.issuer)?.pem())
    }

    /// A certificate whose one URI name is `spiffe_id`.
    pub(super) fn issue(&self, spiffe_id: &str, usage: Use, validity: &Validity) -> Result<Identity, PkiError> {
        let params = self.leaf(spiffe_id, usage, validity)?;
        let key = new_key()?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Identity { certificate, key: Zeroizing::new(key.serialize_pem()) })
    }

    fn leaf(&self, spiffe_id: &str, usage: Use, validity: &Validity) -> Result<CertificateParams, PkiError> {
        let name = spiffe_id.rsplit('/').next().unwrap_or(spiffe_id);
        let mut params = params(name, &self.trust_domain, validity.from, validity.leaf_until);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.subject_alt_names = vec![SanType::URI(spiffe_id.try_into()?)];
        match usage {
            Use::Client => params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth],
            Use::Server => {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
                params.subject_alt_names.extend([
                    SanType::DnsName("localhost".try_into()?),
                    SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)),
                    SanType::IpAddress(IpAddr::V6(Ipv6Addr::LOCALHOST)),
                ]);
            }
        }
        Ok(params)
    }
}

/// A certificate and its key, as PEM.
pub(super) struct Identity {
    pub(super) certificate: String,
    pub(super) key: Zeroizing<String>,
}

impl Identity {
    pub(super) fn write(&self, output: &Output, name: &str) -> Result<(), PkiError> {
        output.public(&format!("{name}.pem"), self.certificate.as_bytes())?;
        output.private(&format!("{name}.key"), self.key.as_bytes())
    }
}

/// A new P-256 key.
pub(super) fn new_key() -> Result<KeyPair, PkiError> {
    Ok(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?)
}

fn params(name: &str, organization: &str, from: Timestamp, until: Timestamp) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, organization);
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = to_date(from);
    params.not_after = to_date(until);
    params
}

fn to_date(at: Timestamp) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH
        .saturating_add(Duration::from_secs(at.as_secs()).try_into().unwrap_or(time::Duration::MAX))
}
