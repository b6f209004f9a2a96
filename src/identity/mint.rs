//! The issuer's side: signs tokens that the gateway accepts and announces the public keys. For `oncegate call`, the
//! demo and tests; a department's own issuer does the same in its own way.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{EncodingKey, Header};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};
use serde_json::{Value, json};

use super::jws::{self, Signs};
use super::keys::PublicKey;
use super::purpose::{Basis, SubjectsKey};
use crate::clock::Timestamp;
use crate::ids::{CaseId, DepartmentCode, SpiffeId};

/// A key that signs tokens: ES256 or `EdDSA`.
#[derive(Debug)]
pub struct SigningKey {
    encoding: EncodingKey,
    public: PublicKey,
}

impl SigningKey {
    /// From a PKCS#8 private key of P-256 or Ed25519 in PEM.
    pub fn from_pkcs8_pem(pem: &[u8]) -> Result<Self, MintError> {
        super::token::use_our_crypto();
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|_| MintError::Key)?;
        let der = der.secret_pkcs8_der();
        if let Ok(pair) = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der) {
            let public = PublicKey::from_point(pair.public_key().as_ref()).ok_or(MintError::Key)?;
            return Ok(Self { encoding: EncodingKey::from_ec_der(der), public });
        }
        let pair = Ed25519KeyPair::from_pkcs8(der).map_err(|_| MintError::Key)?;
        let x = pair.public_key().as_ref().try_into().map_err(|_| MintError::Key)?;
        Ok(Self { encoding: EncodingKey::from_ed_der(der), public: PublicKey::Ed25519 { x } })
    }

    /// The key's id: its RFC 7638 thumbprint.
    pub fn kid(&self) -> String {
        self.public.thumbprint()
    }

    /// The JWKS to register with the gateway.
    pub fn jwks(&self) -> Value {
        json!({ "keys": [self.public.to_jwk()] })
    }

    /// Signs a token.
    pub fn mint(&self, request: &MintRequest<'_>) -> Result<String, MintError> {
        self.sign(&request.claims())
    }

    /// Signs whatever claims, also such as the gateway refuses.
    pub fn sign(&self, claims: &Value) -> Result<String, MintError> {
        let mut header = Header::new(self.public.algorithm());
        header.typ = Some("at+jwt".into());
        header.kid = Some(self.kid());
        jsonwebtoken::encode(&header, claims, &self.encoding).map_err(|_| MintError::Signing)
    }

    /// A detached signature over `payload`, see [`jws`].
    pub fn sign_detached(&self, what: Signs, payload: &[u8]) -> Result<String, MintError> {
        let algorithm = self.public.algorithm();
        let header = json!({ "alg": algorithm, "kid": self.kid(), "typ": what.typ() });
        let header = URL_SAFE_NO_PAD.encode(header.to_string());
        let signature = jsonwebtoken::crypto::sign(&jws::message(&header, payload), &self.encoding, algorithm);
        Ok(format!("{header}..{}", signature.map_err(|_| MintError::Signing)?))
    }

    /// The signature alone, for tokens that no serializer would write.
    #[cfg(test)]
    pub(super) fn signature(&self, message: &[u8]) -> String {
        jsonwebtoken::crypto::sign(message, &self.encoding, self.public.algorithm()).unwrap()
    }
}

/// The JWKS of a public key (`SubjectPublicKeyInfo` in PEM, P-256 or Ed25519), its RFC 7638 thumbprint as `kid`.
pub fn jwks_from_public_key(pem: &[u8]) -> Result<Value, MintError> {
    let der = SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(|_| MintError::Key)?;
    let key = PublicKey::from_spki(&der).ok_or(MintError::Key)?;
    Ok(json!({ "keys": [key.to_jwk()] }))
}

/// What a token says.
#[derive(Clone, Copy, Debug)]
pub struct MintRequest<'a> {
    /// `iss`, as registered with the gateway.
    pub issuer: &'a str,
    /// The trust domain: the audience is `spiffe://<trust domain>`.
    pub trust_domain: &'a str,
    /// The system that will present the token.
    pub caller: &'a SpiffeId,
    /// SHA-256 of that system's certificate in DER.
    pub leaf_sha256: &'a [u8; 32],
    /// The officer.
    pub officer: &'a str,
    /// `jti`.
    pub token_id: &'a str,
    /// `iat` and `nbf`.
    pub issued_at: Timestamp,
    /// Until `exp`, in seconds; the gateway takes at most 600.
    pub lifetime_s: u64,
    /// The department that asks.
    pub consumer: &'a DepartmentCode,
    /// Code of the matter.
    pub matter: &'a str,
    /// Number of the case.
    pub case_id: &'a CaseId,
    /// Kind of the legal basis.
    pub basis: Basis,
    /// Citation or consent reference; needed for [`Basis::Consent`].
    pub basis_reference: &'a str,
    /// The purpose in words.
    pub purpose: &'a str,
    /// Limits the token to these certificate types; empty: no limit.
    pub certificate_types: &'a [String],
    /// Limits the token to these holders, by number, under the shared key.
    pub subjects: Option<(&'a SubjectsKey, &'a [String])>,
}

impl MintRequest<'_> {
    /// The claims of the token.
    pub fn claims(&self) -> Value {
        let basis = match self.basis {
            Basis::StatutoryDuty => "STATUTORY_DUTY",
            Basis::Consent => "CONSENT",
        };
        let mut details = json!({
            "type": "oncegate",
            "matter": self.matter,
            "case": self.case_id.as_str(),
            "consumer": self.consumer.as_str(),
            "legal_basis": basis,
            "purpose": self.purpose,
        });
        if let Some(details) = details.as_object_mut() {
            if !self.basis_reference.is_empty() {
                details.insert("legal_basis_reference".into(), self.basis_reference.into());
            }
            if !self.certificate_types.is_empty() {
                details.insert("certificate_types".into(), self.certificate_types.into());
            }
            if let Some((key, holders)) = self.subjects {
                let tags: Vec<Value> = holders.iter().map(|h| URL_SAFE_NO_PAD.encode(key.tag(h)).into()).collect();
                details.insert("subjects".into(), tags.into());
            }
        }
        let issued = self.issued_at.as_secs();
        json!({
            "iss": self.issuer,
            "sub": self.officer,
            "aud": format!("spiffe://{}", self.trust_domain),
            "iat": issued,
            "nbf": issued,
            "exp": issued.saturating_add(self.lifetime_s),
            "jti": self.token_id,
            "client_id": self.caller.as_str(),
            "cnf": { "x5t#S256": URL_SAFE_NO_PAD.encode(self.leaf_sha256) },
            "authorization_details": [details],
        })
    }
}

/// Why no token was made. Nothing of a key is repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MintError {
    /// Not a key of the form.
    #[error("needs a P-256 or Ed25519 key in PEM (private: PKCS#8)")]
    Key,
    /// The signature failed.
    #[error("signing failed")]
    Signing,
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::KeyPair as _;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    #[test]
    fn private_and_public_half_give_the_same_key_set() {
        for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ED25519] {
            let pair = rcgen::KeyPair::generate_for(algorithm).unwrap();
            let key = SigningKey::from_pkcs8_pem(pair.serialize_pem().as_bytes()).unwrap();
            assert_eq!(key.jwks(), jwks_from_public_key(pair.public_key_pem().as_bytes()).unwrap());
            assert_eq!(key.jwks()["keys"][0]["kid"], key.kid());
            assert!(!format!("{key:?}").contains("content: ["));
        }
    }

    #[test]
    fn other_keys_are_refused() {
        let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        for pem in [p384.serialize_pem(), p384.public_key_pem(), String::new(), "x".into()] {
            assert_eq!(SigningKey::from_pkcs8_pem(pem.as_bytes()).unwrap_err(), MintError::Key);
        }
        assert_eq!(jwks_from_public_key(p384.public_key_pem().as_bytes()).unwrap_err(), MintError::Key);
    }

    #[test]
    fn an_openssl_ed25519_key_is_taken() {
        // PKCS#8 version 1 without the public half, as OpenSSL writes it (RFC 8410, sections 4 and 7).
        const PRIVATE: [u8; 16] = [48, 46, 2, 1, 0, 48, 5, 6, 3, 43, 101, 112, 4, 34, 4, 32];
        const PUBLIC: [u8; 12] = [48, 42, 48, 5, 6, 3, 43, 101, 112, 3, 33, 0];
        let pem = |label: &str, der: Vec<u8>| {
            format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
        };
        let mut seed = [0; 32];
        aws_lc_rs::rand::fill(&mut seed).unwrap();
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).unwrap();
        let private = pem("PRIVATE KEY", [PRIVATE.as_slice(), &seed].concat());
        let key = SigningKey::from_pkcs8_pem(private.as_bytes()).unwrap();
        let spki = pem("PUBLIC KEY", [PUBLIC.as_slice(), pair.public_key().as_ref()].concat());
        assert_eq!(key.jwks(), jwks_from_public_key(spki.as_bytes()).unwrap());
    }
}
