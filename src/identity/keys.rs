//! Public keys of issuers: JWKS files (RFC 7517) with EC P-256 or Ed25519 keys, and nothing else.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ED25519, ParsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use serde_json::{Value, json};
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::catalog::Faults;
use crate::ids::DepartmentCode;

/// A JWKS file is at most this long, in bytes.
const MAX_JWKS_BYTES: u64 = 256 * 1024;
/// An issuer has at most this many keys.
const MAX_KEYS: usize = 64;

/// A registered issuer.
#[derive(Debug)]
pub(super) struct Issuer {
    pub(super) name: Arc<str>,
    pub(super) consumers: Vec<DepartmentCode>,
}

/// A key of an issuer, with the one algorithm that it is good for.
#[derive(Debug, Clone)]
pub(super) struct VerificationKey {
    pub(super) issuer: Arc<Issuer>,
    pub(super) decoding: DecodingKey,
    pub(super) validation: Validation,
}

/// Keys by `kid`, which is unique among all issuers: it is known before a signature is checked, `iss` is not.
pub(super) type KeyRing = HashMap<String, VerificationKey>;

/// The keys of one issuer's JWKS file. Every key must be usable: a file with a private, symmetric or RSA key is a mistake
/// to be told, not to be passed over. `others` has the keys of other issuers.
pub(super) fn load(file: &Path, issuer: &Arc<Issuer>, audience: &str, others: &KeyRing) -> Result<KeyRing, Faults> {
    let (mut ring, mut faults) = (KeyRing::new(), Faults::default());
    match read_bounded(file).and_then(|text| JwkSet::parse(&text)) {
        Ok(set) => {
            for (position, jwk) in set.keys.iter().enumerate() {
                let added = jwk.check().and_then(|(kid, key)| {
                    if let Some(other) = ring.get(kid).or_else(|| others.get(kid)) {
                        let name = &other.issuer.name;
                        return Err(format!("kid `{kid}` stands twice (issuer {name}); use RFC 7638 thumbprints"));
                    }
                    let (decoding, validation) = (key.decoding()?, key.validation(&issuer.name, audience));
                    ring.insert(kid.to_owned(), VerificationKey { issuer: issuer.clone(), decoding, validation });
                    Ok(())
                });
                if let Err(message) = added {
                    faults.of(file, format!("key {}: {message}", position + 1));
                }
            }
        }
        Err(message) => faults.of(file, message),
    }
    faults.or(ring)
}

pub(super) fn read_bounded(file: &Path) -> Result<Vec<u8>, String> {
    let length = std::fs::metadata(file).map_err(|error| format!("can't be read: {error}"))?.len();
    if length > MAX_JWKS_BYTES {
        return Err(format!("is longer than {MAX_JWKS_BYTES} bytes"));
    }
    std::fs::read(file).map_err(|error| format!("can't be read: {error}"))
}

/// The keys of a JWKS, each by its `kid` with the one algorithm that it is good for, or all that is wrong with it.
pub(super) fn parse(text: &[u8]) -> Result<HashMap<String, (DecodingKey, Algorithm)>, Vec<String>> {
    let set = JwkSet::parse(text).map_err(|message| vec![message])?;
    let (mut keys, mut wrong) = (HashMap::new(), Vec::new());
    for (position, jwk) in set.keys.iter().enumerate() {
        let key = jwk.check().and_then(|(kid, key)| Ok((kid, key.decoding()?, key.algorithm())));
        match key {
            Ok((kid, decoding, algorithm)) => {
                if keys.insert(kid.to_owned(), (decoding, algorithm)).is_some() {
                    wrong.push(format!("kid `{kid}` stands twice; use RFC 7638 thumbprints"));
                }
            }
            Err(message) => wrong.push(format!("key {}: {message}", position + 1)),
        }
    }
    if wrong.is_empty() { Ok(keys) } else { Err(wrong) }
}

#[derive(Deserialize)]
struct JwkSet {
    keys: Vec<Jwk>,
}

impl JwkSet {
    fn parse(text: &[u8]) -> Result<Self, String> {
        let set: Self = super::json::parse(text).map_err(|error| format!("not a JWKS: {error}"))?;
        match set.keys.len() {
            1..=MAX_KEYS => Ok(set),
            count => Err(format!("has {count} keys instead of 1 to {MAX_KEYS}")),
        }
    }
}

/// Members that matter; others, such as `key_ops` or `x5c`, are ignored as RFC 7517 wants it.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    alg: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    d: Option<Value>,
    k: Option<Value>,
}

impl Jwk {
    fn check(&self) -> Result<(&str, PublicKey), String> {
        if self.d.is_some() || self.k.is_some() {
            return Err("holds a private or symmetric key; give public keys alone, and replace this one".into());
        }
        let kid = self.kid.as_deref().unwrap_or_default();
        if !(1..=128).contains(&kid.len()) || !kid.bytes().all(|b| b.is_ascii_graphic()) {
            return Err("needs a `kid` of 1 to 128 visible ASCII characters".into());
        }
        if self.usage.as_deref() != Some("sig") {
            return Err(format!("kid `{kid}` needs \"use\": \"sig\""));
        }
        let key = match (self.kty.as_str(), self.crv.as_deref()) {
            ("EC", Some("P-256")) => {
                PublicKey::P256 { x: coordinate(self.x.as_deref())?, y: coordinate(self.y.as_deref())? }
            }
            ("OKP", Some("Ed25519")) => PublicKey::Ed25519 { x: coordinate(self.x.as_deref())? },
            _ => return Err(format!("kid `{kid}` is neither EC P-256 nor OKP Ed25519")),
        };
        let fits = match self.alg.as_deref() {
            None => true,
            Some("ES256") => key.algorithm() == Algorithm::ES256,
            Some("EdDSA" | "Ed25519") => key.algorithm() == Algorithm::EdDSA,
            Some(_) => false,
        };
        if fits { Ok((kid, key)) } else { Err(format!("kid `{kid}` has an `alg` that does not fit its key")) }
    }
}

fn coordinate(text: Option<&str>) -> Result<[u8; 32], String> {
    let bytes = URL_SAFE_NO_PAD.decode(text.unwrap_or_default()).unwrap_or_default();
    bytes.try_into().map_err(|_| "a coordinate is not 32 bytes in base64url".into())
}

/// A public key to check or announce.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum PublicKey {
    /// For ES256.
    P256 { x: [u8; 32], y: [u8; 32] },
    /// For `EdDSA`.
    Ed25519 { x: [u8; 32] },
}

impl PublicKey {
    /// From the DER of a `SubjectPublicKeyInfo`, if it is of a kind that is accepted.
    pub(super) fn from_spki(der: &[u8]) -> Option<Self> {
        let (_, spki) = SubjectPublicKeyInfo::from_der(der).ok()?;
        let curve = spki.algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok());
        match (spki.algorithm.algorithm.to_id_string().as_str(), curve.map(|oid| oid.to_id_string()).as_deref()) {
            // id-ecPublicKey with prime256v1, RFC 5480
            ("1.2.840.10045.2.1", Some("1.2.840.10045.3.1.7")) => Self::from_point(&spki.subject_public_key.data),
            // id-Ed25519, RFC 8410
            ("1.3.101.112", None) => Some(Self::Ed25519 { x: spki.subject_public_key.data.as_ref().try_into().ok()? }),
            _ => None,
        }
    }

    /// From an uncompressed point of P-256: 4, x, y.
    pub(super) fn from_point(point: &[u8]) -> Option<Self> {
        let (x, y) = point.strip_prefix(&[4])?.split_at_checked(32)?;
        Some(Self::P256 { x: x.try_into().ok()?, y: y.try_into().ok()? })
    }

    pub(super) fn algorithm(&self) -> Algorithm {
        match self {
            Self::P256 { .. } => Algorithm::ES256,
            Self::Ed25519 { .. } => Algorithm::EdDSA,
        }
    }

    /// SHA-256 thumbprint in base64url (RFC 7638; RFC 8037 for Ed25519).
    pub(super) fn thumbprint(&self) -> String {
        // The required members in alphabetical order, without white space.
        let canonical = match self {
            Self::P256 { x, y } => {
                format!(r#"{{"crv":"P-256","kty":"EC","x":"{}","y":"{}"}}"#, base64url(x), base64url(y))
            }
            Self::Ed25519 { x } => format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#, base64url(x)),
        };
        URL_SAFE_NO_PAD.encode(digest(&SHA256, canonical.as_bytes()))
    }

    /// The key as a JWK for signatures, its thumbprint as `kid`.
    pub(super) fn to_jwk(self) -> Value {
        let kid = self.thumbprint();
        match self {
            Self::P256 { x, y } => json!({
                "kty": "EC", "crv": "P-256", "x": base64url(&x), "y": base64url(&y),
                "use": "sig", "alg": "ES256", "kid": kid,
            }),
            Self::Ed25519 { x } => json!({
                "kty": "OKP", "crv": "Ed25519", "x": base64url(&x), "use": "sig", "alg": "EdDSA", "kid": kid,
            }),
        }
    }

    /// The key for `jsonwebtoken`, after its point was found to be on the curve.
    fn decoding(&self) -> Result<DecodingKey, String> {
        let (parsed, decoding) = match self {
            Self::P256 { x, y } => {
                let point = [&[4], x.as_slice(), y].concat();
                let decoding = DecodingKey::from_ec_components(&base64url(x), &base64url(y));
                (ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point), decoding)
            }
            Self::Ed25519 { x } => (ParsedPublicKey::new(&ED25519, x), DecodingKey::from_ed_components(&base64url(x))),
        };
        match (parsed, decoding) {
            (Ok(_), Ok(decoding)) => Ok(decoding),
            _ => Err("is not a point of its curve".into()),
        }
    }

    /// One algorithm, the key's own, whatever a token's header says. Times are checked by [`super::token`], by the
    /// gateway's clock.
    fn validation(&self, issuer: &str, audience: &str) -> Validation {
        let mut validation = Validation::new(self.algorithm());
        validation.set_required_spec_claims(&["iss", "sub", "aud", "nbf", "exp"]);
        validation.set_issuer(&[issuer]);
        validation.set_audience(&[audience]);
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation
    }
}

fn base64url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED_X: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
    const EC_X: &str = "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU";
    const EC_Y: &str = "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0";

    fn ed(kid: &str) -> Value {
        json!({ "kty": "OKP", "crv": "Ed25519", "x": ED_X, "use": "sig", "kid": kid })
    }

    fn ec(kid: &str) -> Value {
        json!({ "kty": "EC", "crv": "P-256", "x": EC_X, "y": EC_Y, "use": "sig", "kid": kid, "key_ops": ["verify"] })
    }

    fn with(mut jwk: Value, member: &str, value: Value) -> Value {
        jwk[member] = value;
        jwk
    }

    fn faults(text: &str) -> Vec<String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let issuer = Arc::new(Issuer { name: "https://id.example".into(), consumers: vec![] });
        match load(file.path(), &issuer, "spiffe://a.b", &KeyRing::new()) {
            Ok(ring) => {
                assert!(!ring.is_empty());
                Vec::new()
            }
            Err(faults) => faults.0.into_iter().map(|fault| fault.message).collect(),
        }
    }

    #[test]
    fn the_thumbprint_is_rfc_8037_s() {
        let key = PublicKey::Ed25519 { x: coordinate(Some(ED_X)).unwrap() };
        assert_eq!(key.thumbprint(), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    }

    #[test]
    fn ec_and_ed_keys_are_taken() {
        assert_eq!(faults(&json!({ "keys": [ed("a"), ec("b")] }).to_string()), Vec::<String>::new());
        let with_alg = [with(ed("a"), "alg", "EdDSA".into()), with(ec("b"), "alg", "ES256".into())];
        assert_eq!(faults(&json!({ "keys": with_alg }).to_string()), Vec::<String>::new());
    }

    #[test]
    fn every_other_key_is_a_fault() {
        let off_curve = with(ec("a"), "y", EC_X.into());
        for (wrong, part) in [
            (with(ed("a"), "d", "AAAA".into()), "private or symmetric"),
            (json!({ "kty": "oct", "k": "c2VjcmV0", "use": "sig", "kid": "a", "alg": "HS256" }), "symmetric"),
            (json!({ "kty": "oct", "use": "sig", "kid": "a" }), "neither"),
            (json!({ "kty": "RSA", "n": "AQAB", "e": "AQAB", "use": "sig", "kid": "a" }), "neither"),
            (with(ec("a"), "crv", "P-384".into()), "neither"),
            (with(ed("a"), "crv", "X25519".into()), "neither"),
            (with(ed("a"), "use", "enc".into()), "\"use\": \"sig\""),
            (with(ed("a"), "use", Value::Null), "\"use\": \"sig\""),
            (with(ed("a"), "kid", Value::Null), "`kid`"),
            (ed(""), "`kid`"),
            (ed("a b"), "`kid`"),
            (with(ed("a"), "alg", "ES256".into()), "`alg`"),
            (with(ec("a"), "alg", "HS256".into()), "`alg`"),
            (with(ec("a"), "x", "AAAA".into()), "coordinate"),
            (with(ec("a"), "y", Value::Null), "coordinate"),
            (off_curve, "point"),
        ] {
            let said = faults(&json!({ "keys": [wrong] }).to_string());
            assert!(said.len() == 1 && said[0].contains(part), "{wrong}: {said:?}");
        }
    }

    #[test]
    fn files_that_are_no_key_sets_are_faults() {
        for wrong in ["", "[]", "{}", r#"{"keys":[]}"#, r#"{"keys":[],"keys":[]}"#, &" ".repeat(300_000)] {
            assert_eq!(faults(wrong).len(), 1, "{}", wrong.len());
        }
        let twice = faults(&json!({ "keys": [ed("a"), ec("a"), ec("b"), ed("b")] }).to_string());
        assert_eq!(twice.len(), 2, "all faults at once: {twice:?}");
    }
}
