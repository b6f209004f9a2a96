//! Detached signatures over files: a JWS in compact form whose payload is left out (RFC 7515, appendix F), ES256 or `EdDSA`.
//!
//! The protected header has exactly `alg`, `kid` and `typ`. `typ` says what is signed, so that a signature made for one
//! purpose is none for another, even where one key serves both.

use std::collections::HashMap;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;

use super::keys;
use crate::catalog::Faults;

/// A detached signature takes some 250 characters.
const MAX_JWS_CHARS: usize = 2048;

/// What a signature is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signs {
    /// A grant file, by the providing department.
    Grants,
    /// The manifest of a policy bundle, by the competent department.
    Manifest,
    /// The hash of a policy that may be activated, by the security administrator.
    Approval,
}

impl Signs {
    /// The header's `typ`.
    pub const fn typ(self) -> &'static str {
        match self {
            Self::Grants => "oncegate-grants",
            Self::Manifest => "oncegate-manifest",
            Self::Approval => "oncegate-approval",
        }
    }
}

/// Why a signature does not hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SignatureError {
    /// It has not the form.
    #[error("is no detached JWS: `<header>..<signature>`, the header with `alg`, `kid` and `typ` alone")]
    Form,
    /// It is about something else.
    #[error("its `typ` says that something else was signed")]
    Type,
    /// None of the keys made it.
    #[error("its `kid` names none of the keys that may sign here")]
    Key,
    /// The bytes are not those that were signed, or the key is another one.
    #[error("the signature does not fit the bytes")]
    Signature,
}

/// Public keys that may sign something.
pub struct KeySet(HashMap<String, (DecodingKey, Algorithm)>);

impl KeySet {
    /// Reads a JWKS file (RFC 7517) with EC P-256 or Ed25519 keys.
    pub fn load(file: &Path, faults: &mut Faults) -> Option<Self> {
        match keys::read_bounded(file) {
            Ok(text) => Self::parse(file, &text, faults),
            Err(message) => {
                faults.of(file, message);
                None
            }
        }
    }

    /// The same of a text at hand; `file` is where it came from.
    pub fn parse(file: &Path, text: &[u8], faults: &mut Faults) -> Option<Self> {
        super::token::use_our_crypto();
        match keys::parse(text) {
            Ok(keys) => Some(Self(keys)),
            Err(wrong) => {
                for message in wrong {
                    faults.of(file, message);
                }
                None
            }
        }
    }

    /// The id of the key with which `jws` was made over `payload`.
    ///
    /// # Errors
    /// Why it does not hold; the first reason found.
    pub fn verify(&self, what: Signs, payload: &[u8], jws: &str) -> Result<&str, SignatureError> {
        let jws = jws.trim_ascii_end();
        let (header, signature) = (jws.len() <= MAX_JWS_CHARS)
            .then(|| jws.split_once(".."))
            .flatten()
            .filter(|(header, signature)| !header.contains('.') && !signature.contains('.'))
            .ok_or(SignatureError::Form)?;
        let said = URL_SAFE_NO_PAD.decode(header).map_err(|_| SignatureError::Form)?;
        let said: Header = super::json::parse(&said).map_err(|_| SignatureError::Form)?;
        if said.typ != what.typ() {
            return Err(SignatureError::Type);
        }
        let (kid, (key, algorithm)) = self.0.get_key_value(&said.kid).ok_or(SignatureError::Key)?;
        if said.alg != *algorithm {
            return Err(SignatureError::Key);
        }
        match jsonwebtoken::crypto::verify(signature, &message(header, payload), key, *algorithm) {
            Ok(true) => Ok(kid),
            _ => Err(SignatureError::Signature),
        }
    }
}

impl KeySet {
    /// The ids of the keys, ascending.
    pub fn kids(&self) -> Vec<String> {
        let mut kids: Vec<_> = self.0.keys().cloned().collect();
        kids.sort_unstable();
        kids
    }
}

impl std::fmt::Debug for KeySet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// `crit` and every other member is refused: what this reader does not know, it can't honour.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: Algorithm,
    kid: String,
    typ: String,
}

/// What is signed (RFC 7515, section 5.1).
pub(super) fn message(header: &str, payload: &[u8]) -> Vec<u8> {
    format!("{header}.{}", URL_SAFE_NO_PAD.encode(payload)).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::mint::SigningKey;
    use crate::identity::testing::signing_key;

    fn es256() -> SigningKey {
        signing_key(&rcgen::PKCS_ECDSA_P256_SHA256)
    }

    fn set(keys: &[&SigningKey]) -> KeySet {
        let keys: Vec<_> = keys.iter().flat_map(|key| key.jwks()["keys"].as_array().unwrap().clone()).collect();
        let text = serde_json::json!({ "keys": keys }).to_string();
        let mut faults = Faults::default();
        KeySet::parse(Path::new("keys"), text.as_bytes(), &mut faults).unwrap_or_else(|| panic!("{faults}"))
    }

    #[test]
    fn either_kind_of_key_signs_bytes_and_purpose() {
        for key in [es256(), signing_key(&rcgen::PKCS_ED25519)] {
            let keys = set(&[&key]);
            let jws = key.sign_detached(Signs::Grants, b"bytes").unwrap();
            assert_eq!(keys.verify(Signs::Grants, b"bytes", &jws), Ok(&*key.kid()));
            assert_eq!(keys.verify(Signs::Grants, b"bytes", &format!("{jws}\n")), Ok(&*key.kid()));
            assert_eq!(keys.verify(Signs::Grants, b"Bytes", &jws), Err(SignatureError::Signature));
            assert_eq!(keys.verify(Signs::Manifest, b"bytes", &jws), Err(SignatureError::Type));
            assert_eq!(set(&[&es256()]).verify(Signs::Grants, b"bytes", &jws), Err(SignatureError::Key));
        }
    }

    #[test]
    fn every_other_form_is_refused() {
        let key = es256();
        let keys = set(&[&key]);
        let (kid, jws) = (key.kid(), key.sign_detached(Signs::Grants, b"bytes").unwrap());
        let signature = jws.split_once("..").unwrap().1;
        let with = |header: serde_json::Value| {
            let header = URL_SAFE_NO_PAD.encode(header.to_string());
            keys.verify(Signs::Grants, b"bytes", &format!("{header}..{signature}")).unwrap_err()
        };
        let typ = Signs::Grants.typ();
        assert_eq!(with(serde_json::json!({ "alg": "none", "kid": kid, "typ": typ })), SignatureError::Form);
        assert_eq!(with(serde_json::json!({ "alg": "HS256", "kid": kid, "typ": typ })), SignatureError::Key);
        assert_eq!(with(serde_json::json!({ "alg": "EdDSA", "kid": kid, "typ": typ })), SignatureError::Key);
        assert_eq!(with(serde_json::json!({ "alg": "ES256", "kid": "x", "typ": typ })), SignatureError::Key);
        assert_eq!(with(serde_json::json!({ "alg": "ES256", "kid": kid })), SignatureError::Form);
        let crit = serde_json::json!({ "alg": "ES256", "kid": kid, "typ": typ, "b64": false, "crit": ["b64"] });
        assert_eq!(with(crit), SignatureError::Form);
        // The same members, written otherwise: the header is signed, too.
        let spaced = format!(r#"{{ "alg":"ES256","kid":"{kid}","typ":"{typ}"}}"#);
        let spaced = format!("{}..{signature}", URL_SAFE_NO_PAD.encode(spaced));
        assert_eq!(keys.verify(Signs::Grants, b"bytes", &spaced), Err(SignatureError::Signature));
        let attached = jws.replacen("..", ".Ynl0ZXM.", 1);
        for wrong in ["", "..", &attached, &format!("{jws}.x"), &jws.replace("..", "."), &"a".repeat(5000)] {
            assert_eq!(keys.verify(Signs::Grants, b"bytes", wrong), Err(SignatureError::Form), "{wrong}");
        }
        let cut = jws.get(..jws.len() - 2).unwrap();
        assert_eq!(keys.verify(Signs::Grants, b"bytes", cut), Err(SignatureError::Signature));
    }
}
