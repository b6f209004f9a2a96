//! Callers and tokens for the tests of every room.

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, SanType};
use serde_json::Value;

use super::mint::{MintRequest, SigningKey};
use super::{Basis, Caller, IdentityConfig, IssuerConfig, PlatformConfig, TokenVerifier};
use crate::clock::Timestamp;
use crate::ids::{CaseId, DepartmentCode, SpiffeId};

/// The trust domain of all tests.
pub(crate) const DOMAIN: &str = "heshan.gov.example";
/// The registered issuer, which may speak for GA and WJ.
pub(crate) const ISSUER: &str = "https://id.heshan.gov.example";
/// The registered platform, which may call for GA and WJ.
pub(crate) const PLATFORM: &str = "spiffe://heshan.gov.example/ZS/platform";

/// A caller of this SPIFFE ID with a certificate of its own.
pub(crate) fn caller(uri: &str) -> Caller {
    let id: SpiffeId = uri.parse().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let leaf = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
    Caller::from_verified_leaf(leaf.der(), &[id.department().clone()], id.trust_domain()).unwrap()
}

/// A key that signs tokens.
pub(crate) fn signing_key(algorithm: &'static rcgen::SignatureAlgorithm) -> SigningKey {
    let pair = KeyPair::generate_for(algorithm).unwrap();
    SigningKey::from_pkcs8_pem(pair.serialize_pem().as_bytes()).unwrap()
}

/// A configuration with [`ISSUER`] and [`PLATFORM`]; its files live as long as the directory.
pub(crate) fn config(jwks: &Value) -> (tempfile::TempDir, IdentityConfig) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("jwks.json"), jwks.to_string()).unwrap();
    std::fs::write(dir.path().join("subjects.hex"), "0b".repeat(32)).unwrap();
    let (police, health): (DepartmentCode, DepartmentCode) = ("GA".parse().unwrap(), "WJ".parse().unwrap());
    let mut config = IdentityConfig {
        issuers: vec![IssuerConfig {
            issuer: ISSUER.into(),
            jwks: "jwks.json".into(),
            consumers: vec![police.clone(), health.clone()],
        }],
        platforms: vec![PlatformConfig { id: PLATFORM.parse().unwrap(), consumers: vec![police, health] }],
        subjects_key: Some("subjects.hex".into()),
        ..IdentityConfig::default()
    };
    config.rebase(dir.path());
    (dir, config)
}

/// A verifier that trusts `key` as [`ISSUER`]'s.
pub(crate) fn verifier(key: &SigningKey) -> TokenVerifier {
    let (_dir, config) = config(&key.jwks());
    TokenVerifier::load(&config, DOMAIN, |_| true).unwrap()
}

/// A request for a good token: GA asks in `newborn_birth`, by statutory duty, for ten minutes.
pub(crate) fn request<'a>(
    caller: &'a Caller,
    consumer: &'a DepartmentCode,
    case: &'a CaseId,
    now: Timestamp,
) -> MintRequest<'a> {
    MintRequest {
        issuer: ISSUER,
        trust_domain: DOMAIN,
        caller: caller.id(),
        leaf_sha256: caller.leaf_sha256(),
        officer: "officer-0417",
        token_id: "01J0-token",
        issued_at: now,
        lifetime_s: 600,
        consumer,
        matter: "newborn_birth",
        case_id: case,
        basis: Basis::StatutoryDuty,
        basis_reference: "户口登记条例 第七条",
        purpose: "新生儿入户",
        certificate_types: &[],
        subjects: None,
    }
}
