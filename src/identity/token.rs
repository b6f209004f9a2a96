//! The token: a JWT of RFC 9068 form, bound to the caller's certificate (RFC 8705), with one authorization detail of
//! type `oncegate` (RFC 9396).
//!
//! The order of checks: size, header, signature by the key that `kid` names, claims, times, audience, binding, purpose,
//! delegation. Only a token that passed all of them is remembered, under the hash of its bytes and the certificate's;
//! its times are checked on each use.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{Context, SHA256};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::errors::ErrorKind;
use serde::de::{Deserialize, Deserializer, IgnoredAny};
use serde_json::{Map, Value};

use super::caller::Caller;
use super::config::IdentityConfig;
use super::keys::{self, Issuer, KeyRing, VerificationKey};
use super::purpose::{Basis, Purpose, Subjects, SubjectsKey};
use crate::catalog::Faults;
use crate::clock::Timestamp;
use crate::ids::{DepartmentCode, SpiffeId};
use crate::telemetry::{CacheResult, Metrics};

/// A token is at most this long, in bytes; half of the header list that the server accepts.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// Verifies tokens. Immutable: other keys or delegations mean another verifier, with an empty memory.
#[derive(Debug)]
pub struct TokenVerifier {
    keys: KeyRing,
    platforms: BTreeMap<SpiffeId, Vec<DepartmentCode>>,
    subjects_key: Option<Arc<SubjectsKey>>,
    audience: String,
    max_lifetime: Duration,
    leeway: Duration,
    verified: moka::sync::Cache<[u8; 32], Arc<Purpose>>,
    metrics: Option<Arc<Metrics>>,
}

impl TokenVerifier {
    /// Reads the issuers' keys and checks the delegations. `departments` says whether a department exists. All faults
    /// are told at once.
    pub fn load(
        config: &IdentityConfig,
        trust_domain: &str,
        departments: impl Fn(&DepartmentCode) -> bool,
    ) -> Result<Self, Faults> {
        use_our_crypto();
        let mut faults = Faults::default();
        let audience = format!("spiffe://{trust_domain}");
        let section = |faults: &mut Faults, what: String| faults.of(&config.file, format!("[identity] {what}"));
        if !(1..=600).contains(&config.token_max_lifetime_s) {
            section(&mut faults, "token_max_lifetime_s must be 1 to 600".into());
        }
        if config.leeway_s > 60 {
            section(&mut faults, "leeway_s must be at most 60".into());
        }
        if config.issuers.is_empty() {
            section(&mut faults, "no issuer: no token could ever be accepted".into());
        }
        config.unregistered(departments).into_iter().for_each(|message| section(&mut faults, message));
        let mut names = HashSet::new();
        for issuer in &config.issuers {
            if issuer.issuer.is_empty() || issuer.issuer.len() > MAX_ISSUER_CHARS || issuer.consumers.is_empty() {
                section(&mut faults, format!("issuer `{}` needs a name and at least one consumer", issuer.issuer));
            }
            if !names.insert(issuer.issuer.as_str()) {
                section(&mut faults, format!("issuer `{}` stands twice", issuer.issuer));
            }
        }
        let keys = load_keys(config, &audience, &KeyRing::new(), &mut faults);
        let mut platforms = BTreeMap::new();
        for platform in &config.platforms {
            if platform.id.trust_domain() != trust_domain {
                section(&mut faults, format!("platform {} is of another trust domain", platform.id));
            }
            if platforms.insert(platform.id.clone(), platform.consumers.clone()).is_some() {
                section(&mut faults, format!("platform {} stands twice", platform.id));
            }
        }
        let subjects_key = load_subjects_key(config, None, &mut faults);
        let (max_lifetime, leeway) =
            (Duration::from_secs(config.token_max_lifetime_s), Duration::from_secs(config.leeway_s));
        let verified = memory(config, max_lifetime, leeway);
        faults.or(Self { keys, platforms, subjects_key, audience, max_lifetime, leeway, verified, metrics: None })
    }

    /// The same delegations with the keys as `config`'s files have them now, and what is wrong with those: of a file that
    /// is not in order the keys from before stay.
    pub(super) fn with_keys_of(&self, config: &IdentityConfig) -> (Self, Faults) {
        let mut faults = Faults::default();
        let verifier = Self {
            keys: load_keys(config, &self.audience, &self.keys, &mut faults),
            platforms: self.platforms.clone(),
            subjects_key: load_subjects_key(config, self.subjects_key.as_ref(), &mut faults),
            audience: self.audience.clone(),
            max_lifetime: self.max_lifetime,
            leeway: self.leeway,
            verified: memory(config, self.max_lifetime, self.leeway),
            metrics: self.metrics.clone(),
        };
        (verifier, faults)
    }

    /// Counts hits and misses of the memory.
    #[must_use]
    pub fn with_metrics(mut self, metrics: Arc<Metrics>) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// What the token says, if it is valid at `now` for this caller.
    pub fn verify(&self, caller: &Caller, token: &str, now: Timestamp) -> Result<Arc<Purpose>, TokenError> {
        if token.is_empty() {
            return Err(TokenError::Missing);
        }
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::Malformed { claim: "token" });
        }
        let memory = memory_key(token, caller);
        if let Some(purpose) = self.verified.get(&memory) {
            self.count(CacheResult::Hit);
            return self.check_window(purpose.not_before, purpose.expires_at, now).map(|()| purpose);
        }
        self.count(CacheResult::Miss);
        let purpose = Arc::new(self.verify_unseen(caller, token, now)?);
        self.verified.insert(memory, purpose.clone());
        Ok(purpose)
    }

    /// The departments that this caller may name as consumer: its own, and those that let it call for them.
    pub fn may_speak_for(&self, caller: &Caller) -> Vec<DepartmentCode> {
        let mut departments = vec![caller.id().department().clone()];
        for delegated in self.platforms.get(caller.id()).into_iter().flatten() {
            if !departments.contains(delegated) {
                departments.push(delegated.clone());
            }
        }
        departments
    }

    fn verify_unseen(&self, caller: &Caller, token: &str, now: Timestamp) -> Result<Purpose, TokenError> {
        let (key, claims) = self.signed_claims(token)?;
        let issuer = text(&claims, "iss", MAX_ISSUER_CHARS)?;
        if issuer != &*key.issuer.name {
            return Err(TokenError::Untrusted);
        }
        let (not_before, expires_at) = self.times(&claims, now)?;
        self.check_audience(&claims)?;
        check_binding(&claims, caller)?;
        let officer = text(&claims, "sub", 128)?;
        let token_id = text(&claims, "jti", 128)?;
        let details = only_details(&claims)?;
        let consumer: DepartmentCode = parsed(details, "consumer")?;
        let vouched = key.issuer.consumers.contains(&consumer);
        if !vouched || !self.may_speak_for(caller).contains(&consumer) {
            return Err(TokenError::ConsumerNotDelegated { consumer });
        }
        let (basis, basis_reference) = legal_basis(details)?;
        Ok(Purpose {
            consumer,
            matter: code(text(details, "matter", 64)?, "matter")?,
            case_id: parsed(details, "case")?,
            basis,
            basis_reference,
            text: text(details, "purpose", 200)?.to_owned(),
            officer: officer.to_owned(),
            issuer: key.issuer.name.clone(),
            token_id: token_id.to_owned(),
            certificate_types: certificate_types(details)?,
            subjects: self.subjects(details)?,
            not_before,
            expires_at,
        })
    }

    /// The claims, after the signature was verified with the key that the header names, by that key's algorithm.
    fn signed_claims(&self, token: &str) -> Result<(&VerificationKey, Map<String, Value>), TokenError> {
        let mut parts = token.split('.');
        let (Some(header), Some(payload), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError::Malformed { claim: "token" });
        };
        let header: TokenHeader = json_part(header).ok_or(TokenError::Malformed { claim: "header" })?;
        if !matches!(header.typ.as_deref(), Some("at+jwt" | "application/at+jwt")) {
            return Err(TokenError::Malformed { claim: "typ" });
        }
        if header.crit {
            return Err(TokenError::Malformed { claim: "crit" });
        }
        let kid = header.kid.ok_or(TokenError::Malformed { claim: "kid" })?;
        let key = self.keys.get(&kid).ok_or(TokenError::Untrusted)?;
        jsonwebtoken::decode::<IgnoredAny>(token, &key.decoding, &key.validation).map_err(|error| refusal(&error))?;
        let claims = json_part(payload).ok_or(TokenError::Malformed { claim: "payload" })?;
        Ok((key, claims))
    }

    fn times(&self, claims: &Map<String, Value>, now: Timestamp) -> Result<(Timestamp, Timestamp), TokenError> {
        let issued_at = seconds(claims, "iat")?;
        let not_before = seconds(claims, "nbf")?;
        let expires_at = seconds(claims, "exp")?;
        if issued_at > now.plus(self.leeway) {
            return Err(TokenError::TimeInvalid { claim: "iat" });
        }
        if expires_at <= issued_at || expires_at <= not_before || expires_at.since(issued_at) > self.max_lifetime {
            return Err(TokenError::TimeInvalid { claim: "exp" });
        }
        self.check_window(not_before, expires_at, now)?;
        Ok((not_before, expires_at))
    }

    fn check_window(&self, not_before: Timestamp, expires_at: Timestamp, now: Timestamp) -> Result<(), TokenError> {
        if now >= expires_at.plus(self.leeway) {
            return Err(TokenError::Expired);
        }
        if not_before > now.plus(self.leeway) {
            return Err(TokenError::TimeInvalid { claim: "nbf" });
        }
        Ok(())
    }

    /// The trust domain alone: a token that is good elsewhere, too, could be replayed by that other place.
    fn check_audience(&self, claims: &Map<String, Value>) -> Result<(), TokenError> {
        let audience = match claims.get("aud") {
            Some(Value::String(audience)) => audience,
            Some(Value::Array(list)) => match list.as_slice() {
                [Value::String(audience)] => audience,
                _ => return Err(TokenError::AudienceMismatch),
            },
            _ => return Err(TokenError::Malformed { claim: "aud" }),
        };
        if *audience == self.audience { Ok(()) } else { Err(TokenError::AudienceMismatch) }
    }

    fn subjects(&self, details: &Map<String, Value>) -> Result<Option<Subjects>, TokenError> {
        const MALFORMED: TokenError = TokenError::Malformed { claim: "subjects" };
        let Some(list) = list(details, "subjects", 16)? else { return Ok(None) };
        let tag = |tag: &Value| tag.as_str().and_then(sha256_base64url).ok_or(MALFORMED);
        let tags = list.iter().map(tag).collect::<Result<_, _>>()?;
        Ok(Some(Subjects { tags, key: self.subjects_key.clone() }))
    }

    fn count(&self, result: CacheResult) {
        if let Some(metrics) = &self.metrics {
            metrics.token_cache(result);
        }
    }
}

/// The keys of all issuers. Where a file is not in order, the keys that its issuer had `before` stay. No issuer may take a
/// `kid` that another has, or had before: whoever gives one up does so first.
fn load_keys(config: &IdentityConfig, audience: &str, before: &KeyRing, faults: &mut Faults) -> KeyRing {
    let mut ring = KeyRing::new();
    for configured in &config.issuers {
        let name = configured.issuer.as_str();
        let (own, mut others): (KeyRing, KeyRing) =
            before.clone().into_iter().partition(|(_, key)| &*key.issuer.name == name);
        others.extend(ring.clone());
        let issuer = Arc::new(Issuer { name: name.into(), consumers: configured.consumers.clone() });
        match keys::load(&configured.jwks, &issuer, audience, &others) {
            Ok(keys) => ring.extend(keys),
            Err(found) => {
                faults.0.extend(found.0);
                ring.extend(own);
            }
        }
    }
    ring
}

fn load_subjects_key(
    config: &IdentityConfig,
    before: Option<&Arc<SubjectsKey>>,
    faults: &mut Faults,
) -> Option<Arc<SubjectsKey>> {
    let file = config.subjects_key.as_ref()?;
    match SubjectsKey::load(file) {
        Ok(key) => Some(Arc::new(key)),
        Err(error) => {
            faults.of(file, error.to_string());
            before.cloned()
        }
    }
}

fn memory(
    config: &IdentityConfig,
    max_lifetime: Duration,
    leeway: Duration,
) -> moka::sync::Cache<[u8; 32], Arc<Purpose>> {
    moka::sync::Cache::builder()
        .max_capacity(config.token_cache_entries)
        // Later a token has expired whatever it says.
        .time_to_live(max_lifetime.saturating_add(leeway.saturating_mul(2)))
        .build()
}

/// Why a token is refused. It repeats nothing of the token but the consumer's code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// There is none.
    #[error("no token")]
    Missing,
    /// Not a token of the form.
    #[error("the token's {claim} is missing or malformed")]
    Malformed {
        /// Which part or claim.
        claim: &'static str,
    },
    /// The issuer is not registered, its key is unknown, or the signature is wrong.
    #[error("the token is not signed by a registered issuer")]
    Untrusted,
    /// `exp` has passed.
    #[error("the token has expired")]
    Expired,
    /// A time lies in the future, or the lifetime is too long.
    #[error("the token's {claim} is not a time that can be accepted")]
    TimeInvalid {
        /// Which claim.
        claim: &'static str,
    },
    /// Meant for another trust domain, or for others, too.
    #[error("the token is for another audience")]
    AudienceMismatch,
    /// Bound to another certificate or client.
    #[error("the token is bound to another certificate")]
    NotBound,
    /// The issuer, or the caller, may not speak for the consumer.
    #[error("the caller or the token's issuer may not speak for department {consumer}")]
    ConsumerNotDelegated {
        /// The consumer that the token names.
        consumer: DepartmentCode,
    },
}

const MAX_ISSUER_CHARS: usize = 256;

/// Members of an authorization detail; any other is refused, as it may limit what we would not limit.
const DETAIL_MEMBERS: [&str; 9] = [
    "type",
    "matter",
    "case",
    "consumer",
    "legal_basis",
    "legal_basis_reference",
    "purpose",
    "certificate_types",
    "subjects",
];

#[derive(serde::Deserialize)]
struct TokenHeader {
    typ: Option<String>,
    kid: Option<String>,
    #[serde(default, deserialize_with = "present")]
    crit: bool,
}

/// True for a member that is there, whatever its value.
fn present<'de, D: Deserializer<'de>>(input: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(input).map(|_| true)
}

/// `jsonwebtoken` panics if it can't tell which cryptography to use; saying it once leaves nothing to tell.
pub(super) fn use_our_crypto() {
    // An error means that a provider was set before.
    let _ = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.install_default();
}

fn memory_key(token: &str, caller: &Caller) -> [u8; 32] {
    let mut hash = Context::new(&SHA256);
    hash.update(token.as_bytes());
    // Of fixed length, so that no other pair gives the same bytes.
    hash.update(caller.leaf_sha256());
    let mut key = [0; 32];
    key.copy_from_slice(hash.finish().as_ref());
    key
}

fn json_part<T: serde::de::DeserializeOwned>(part: &str) -> Option<T> {
    super::json::parse(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

fn refusal(error: &jsonwebtoken::errors::Error) -> TokenError {
    match error.kind() {
        ErrorKind::InvalidAudience => TokenError::AudienceMismatch,
        ErrorKind::MissingRequiredClaim(claim) => TokenError::Malformed {
            claim: ["iss", "sub", "aud", "nbf", "exp"].into_iter().find(|known| known == claim).unwrap_or("payload"),
        },
        ErrorKind::InvalidClaimFormat(_) | ErrorKind::Json(_) | ErrorKind::Base64(_) | ErrorKind::Utf8(_) => {
            TokenError::Malformed { claim: "payload" }
        }
        // Signature, algorithm or issuer.
        _ => TokenError::Untrusted,
    }
}

fn check_binding(claims: &Map<String, Value>, caller: &Caller) -> Result<(), TokenError> {
    const MALFORMED: TokenError = TokenError::Malformed { claim: "cnf" };
    let confirmation = claims.get("cnf").and_then(Value::as_object).ok_or(MALFORMED)?;
    // Another member would be another condition, which nobody here checks.
    if confirmation.len() != 1 {
        return Err(MALFORMED);
    }
    let thumbprint =
        confirmation.get("x5t#S256").and_then(Value::as_str).and_then(sha256_base64url).ok_or(MALFORMED)?;
    let client = text(claims, "client_id", 512)?;
    let same_leaf = verify_slices_are_equal(&thumbprint, caller.leaf_sha256()).is_ok();
    if same_leaf && client == caller.id().as_str() { Ok(()) } else { Err(TokenError::NotBound) }
}

fn only_details(claims: &Map<String, Value>) -> Result<&Map<String, Value>, TokenError> {
    const MALFORMED: TokenError = TokenError::Malformed { claim: "authorization_details" };
    let details = match claims.get("authorization_details") {
        Some(Value::Array(list)) => match list.as_slice() {
            [Value::Object(details)] => details,
            _ => return Err(MALFORMED),
        },
        _ => return Err(MALFORMED),
    };
    let known = details.keys().all(|member| DETAIL_MEMBERS.contains(&member.as_str()));
    if known && details.get("type").and_then(Value::as_str) == Some("oncegate") { Ok(details) } else { Err(MALFORMED) }
}

fn legal_basis(details: &Map<String, Value>) -> Result<(Basis, String), TokenError> {
    const REFERENCE: &str = "legal_basis_reference";
    let basis = match text(details, "legal_basis", 32)? {
        "STATUTORY_DUTY" => Basis::StatutoryDuty,
        "CONSENT" => Basis::Consent,
        _ => return Err(TokenError::Malformed { claim: "legal_basis" }),
    };
    if basis == Basis::StatutoryDuty && !details.contains_key(REFERENCE) {
        return Ok((basis, String::new()));
    }
    Ok((basis, text(details, REFERENCE, 200)?.to_owned()))
}

fn certificate_types(details: &Map<String, Value>) -> Result<Option<Vec<String>>, TokenError> {
    const CLAIM: &str = "certificate_types";
    let Some(list) = list(details, CLAIM, 64)? else { return Ok(None) };
    let one = |item: &Value| code(item.as_str().unwrap_or_default(), CLAIM);
    list.iter().map(one).collect::<Result<_, _>>().map(Some)
}

/// A list that may be absent, but neither empty nor longer than `max`.
fn list<'a>(
    object: &'a Map<String, Value>,
    claim: &'static str,
    max: usize,
) -> Result<Option<&'a [Value]>, TokenError> {
    match object.get(claim) {
        None => Ok(None),
        Some(Value::Array(list)) if (1..=max).contains(&list.len()) => Ok(Some(list)),
        Some(_) => Err(TokenError::Malformed { claim }),
    }
}

/// A text of 1 to `max` characters, none of which moves or breaks a line when an auditor reads it.
fn text<'a>(object: &'a Map<String, Value>, claim: &'static str, max: usize) -> Result<&'a str, TokenError> {
    let deceptive = |c: char| {
        c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let text = object.get(claim).and_then(Value::as_str).ok_or(TokenError::Malformed { claim })?;
    let length = text.chars().count();
    if length == 0 || length > max || text.contains(deceptive) {
        return Err(TokenError::Malformed { claim });
    }
    Ok(text)
}

fn parsed<T: std::str::FromStr>(object: &Map<String, Value>, claim: &'static str) -> Result<T, TokenError> {
    text(object, claim, 64)?.parse().map_err(|_| TokenError::Malformed { claim })
}

/// A code of the catalog: 1 to 64 lower-case letters, digits or `_`.
fn code(text: &str, claim: &'static str) -> Result<String, TokenError> {
    let form = (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if form { Ok(text.to_owned()) } else { Err(TokenError::Malformed { claim }) }
}

fn seconds(claims: &Map<String, Value>, claim: &'static str) -> Result<Timestamp, TokenError> {
    // Later than the year 9999 is no time that anybody means; it also keeps the sums below far from overflow.
    const END_OF_TIME: u64 = 253_402_300_800;
    let seconds = claims.get(claim).and_then(Value::as_u64).filter(|seconds| *seconds < END_OF_TIME);
    seconds.map(Timestamp::from_secs).ok_or(TokenError::Malformed { claim })
}

fn sha256_base64url(text: &str) -> Option<[u8; 32]> {
    URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()
}

#[cfg(test)]
#[path = "token_tests.rs"]
mod tests;
