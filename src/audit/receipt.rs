//! Signed receipts: what a department files with its case, and a court checks years later without the gateway.
//!
//! A receipt is a JWS (RFC 7515, compact, `EdDSA`) by the log's own key. It says what was decided, on which request, and
//! which entry of the log records it. The entry's hash ties it to every checkpoint and proof; the answer's digest ties it
//! to the records that were released. It names nobody but the consumer.
//!
//! The log's key signs two kinds of text, checkpoints and these. They can't be taken for each other: a checkpoint has
//! line breaks, the text that a JWS signs has none.

use aws_lc_rs::digest::{Context, SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::merkle::Hash;
use super::note::{Algorithm, SigningKey, VerifierKey};
use super::{AccessEntry, Recorded};

const TYPE: &str = "oncegate-receipt+jws";
/// Longest receipt read, in bytes.
const MAX: usize = 8 * 1024;

/// What was decided, as a receipt repeats it from the entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    request_id: String,
    outcome: &'static str,
    consumer: String,
    matter: String,
    case_id: String,
    certificate_type: String,
    policy: Option<[u8; 32]>,
    answer: Option<[u8; 32]>,
}

impl Decided {
    /// Of an entry.
    pub fn of(entry: &AccessEntry) -> Self {
        Self {
            request_id: entry.request_id.to_string(),
            outcome: entry.outcome.name(),
            consumer: entry.consumer.as_ref().map(ToString::to_string).unwrap_or_default(),
            matter: entry.matter.clone(),
            case_id: entry.case_id.as_ref().map(ToString::to_string).unwrap_or_default(),
            certificate_type: entry.certificate_type.clone(),
            policy: entry.policy,
            answer: entry.answer_digest,
        }
    }
}

/// Signs the receipt of an entry.
pub(super) fn sign(key: &SigningKey, recorded: &Recorded, decided: &Decided) -> String {
    let header = json!({ "alg": "EdDSA", "typ": TYPE, "kid": key_name(key.verifier()) });
    let claims = Payload {
        iss: recorded.origin().to_string(),
        index: recorded.index(),
        leaf: encoded(recorded.leaf_hash()),
        time: recorded.time().to_rfc3339(),
        request_id: decided.request_id.clone(),
        outcome: decided.outcome.to_owned(),
        consumer: decided.consumer.clone(),
        matter: decided.matter.clone(),
        case_id: decided.case_id.clone(),
        certificate_type: decided.certificate_type.clone(),
        policy: decided.policy.as_ref().map(encoded),
        answer: decided.answer.as_ref().map(encoded),
    };
    // A struct of texts and numbers has a JSON form.
    let payload = serde_json::to_vec(&claims).unwrap_or_default();
    let input = format!("{}.{}", encoded(header.to_string()), encoded(payload));
    let signature = key.sign_bytes(input.as_bytes());
    format!("{input}.{}", encoded(signature))
}

/// The digest of an answer that releases records: SHA-256 over each record's length in 8 big-endian bytes, then itself.
pub fn digest_of_records<'a>(records: impl Iterator<Item = &'a [u8]>) -> Hash {
    let mut digest = Context::new(&SHA256);
    for record in records {
        digest.update(&(record.len() as u64).to_be_bytes());
        digest.update(record);
    }
    hash(digest)
}

/// The digest of an answer that compares: SHA-256 over the numbers of the results, a byte each.
pub fn digest_of_results(results: impl Iterator<Item = i32>) -> Hash {
    let mut digest = Context::new(&SHA256);
    for result in results {
        digest.update(&[u8::try_from(result).unwrap_or_default()]);
    }
    hash(digest)
}

fn hash(digest: Context) -> Hash {
    let mut hash = Hash::default();
    // SHA-256 has as many bytes.
    hash.copy_from_slice(digest.finish().as_ref());
    hash
}

/// A receipt that was read; its signature is checked by [`SignedReceipt::is_signed_by`].
#[derive(Debug, Clone)]
pub struct SignedReceipt {
    input: String,
    signature: Vec<u8>,
    kid: String,
    claims: Claims,
}

/// What a receipt says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// Name of the log.
    pub origin: String,
    /// Index of the entry.
    pub index: u64,
    /// Its leaf hash.
    pub leaf: Hash,
    /// The gateway's id of the request.
    pub request_id: String,
    /// How it ended.
    pub outcome: String,
    /// SHA-256 over the released records, if any were: for each its length in 8 big-endian bytes, then itself.
    pub answer: Option<Hash>,
    payload: Payload,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Payload {
    iss: String,
    index: u64,
    leaf: String,
    time: String,
    request_id: String,
    outcome: String,
    consumer: String,
    matter: String,
    case_id: String,
    certificate_type: String,
    policy: Option<String>,
    answer: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    typ: String,
    kid: String,
}

/// The text is no signed receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a signed receipt")]
pub struct NoReceipt;

impl SignedReceipt {
    /// Reads a receipt.
    ///
    /// # Errors
    /// If it has another form.
    pub fn parse(text: &str) -> Result<Self, NoReceipt> {
        let text = text.trim_ascii();
        let (input, signature) = text.rsplit_once('.').filter(|_| text.len() <= MAX).ok_or(NoReceipt)?;
        let (header, payload) = input.split_once('.').ok_or(NoReceipt)?;
        let header: Header = serde_json::from_slice(&decoded(header)?).map_err(|_| NoReceipt)?;
        if header.alg != "EdDSA" || header.typ != TYPE {
            return Err(NoReceipt);
        }
        let payload: Payload = serde_json::from_slice(&decoded(payload)?).map_err(|_| NoReceipt)?;
        let hash = |text: &str| <Hash>::try_from(decoded(text)?).map_err(|_| NoReceipt);
        let claims = Claims {
            origin: payload.iss.clone(),
            index: payload.index,
            leaf: hash(&payload.leaf)?,
            request_id: payload.request_id.clone(),
            outcome: payload.outcome.clone(),
            answer: payload.answer.as_deref().map(hash).transpose()?,
            payload,
        };
        Ok(Self { input: input.to_owned(), signature: decoded(signature)?, kid: header.kid, claims })
    }

    /// True if this key of the log, and no other, has signed exactly this.
    pub fn is_signed_by(&self, key: &VerifierKey) -> bool {
        key.algorithm() == Algorithm::Ed25519
            && key.name() == self.claims.origin
            && self.kid == key_name(key)
            && key.verifies(self.input.as_bytes(), &self.signature)
    }

    /// What it says; worth something once its signature is checked.
    pub fn claims(&self) -> &Claims {
        &self.claims
    }
}

impl Claims {
    /// All of it.
    pub fn to_json(&self) -> Value {
        serde_json::to_value(&self.payload).unwrap_or_default()
    }
}

fn key_name(key: &VerifierKey) -> String {
    format!("{}+{}", key.name(), hex::encode(key.id()))
}

fn encoded(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn decoded(text: &str) -> Result<Vec<u8>, NoReceipt> {
    URL_SAFE_NO_PAD.decode(text).map_err(|_| NoReceipt)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Outcome;
    use crate::clock::Timestamp;
    use crate::ids::RequestId;

    #[test]
    fn a_receipt_holds_for_its_log_and_breaks_with_any_change() {
        let key = SigningKey::generate("o/gw1", Algorithm::Ed25519).unwrap();
        let recorded = Recorded {
            origin: "o/gw1".into(),
            index: 7,
            time: Timestamp::from_secs(1_795_399_200),
            leaf_hash: [5; 32],
            signed: None,
        };
        let id = RequestId::generate();
        let caller = "spiffe://heshan.gov.example/GA/household".parse().unwrap();
        let mut entry = AccessEntry::new(id, caller, Outcome::Partial);
        entry.answer_digest = Some([9; 32]);
        let text = sign(&key, &recorded, &Decided::of(&entry));
        let receipt = SignedReceipt::parse(&format!("{text}\n")).unwrap();
        assert!(receipt.is_signed_by(key.verifier()));
        let claims = receipt.claims();
        assert_eq!((claims.index, claims.leaf, claims.answer), (7, [5; 32], Some([9; 32])));
        assert_eq!((claims.request_id.as_str(), claims.outcome.as_str()), (id.to_string().as_str(), "PARTIAL"));
        for name in ["o/gw1", "o/gw2"] {
            let other = SigningKey::generate(name, Algorithm::Ed25519).unwrap();
            assert!(!receipt.is_signed_by(other.verifier()), "{name}");
        }
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).unwrap();
            let holds = SignedReceipt::parse(&changed).is_ok_and(|receipt| receipt.is_signed_by(key.verifier()));
            assert!(!holds, "byte {at}");
        }
        assert!(SignedReceipt::parse("a.b.c").is_err() && SignedReceipt::parse("").is_err());
    }
}
