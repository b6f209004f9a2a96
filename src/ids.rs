//! Identifiers: small validated types, parsed once at the edge.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use uuid::Uuid;

/// The gateway's id of one request: a UUID version 7, made here, never taken from a caller.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(Uuid);

impl RequestId {
    /// A new id; ids made later by the same process sort later.
    pub fn generate() -> Self {
        Self(Uuid::now_v7())
    }

    /// Its 16 bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// From 16 bytes, as an access record holds them.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for RequestId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        Uuid::parse_str(text).map(Self).map_err(|_| IdError::new("request id", "a UUID"))
    }
}

/// Code of a department, for example `GA`: 2 to 8 upper-case ASCII letters or digits, a letter first.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DepartmentCode(Arc<str>);

impl DepartmentCode {
    /// The code.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DepartmentCode {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let form = (2..=8).contains(&text.len())
            && text.starts_with(|c: char| c.is_ascii_uppercase())
            && text.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit());
        if form { Ok(Self(text.into())) } else { Err(IdError::new("department code", "2 to 8 capitals or digits")) }
    }
}

impl fmt::Display for DepartmentCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for DepartmentCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Number of a case (办件编号): 6 to 64 ASCII letters, digits, `-`, `_` or `.`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct CaseId(Arc<str>);

impl CaseId {
    /// The number.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for CaseId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let form = (6..=64).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        if form {
            Ok(Self(text.into()))
        } else {
            Err(IdError::new("case number", "6 to 64 letters, digits, '-', '_' or '.'"))
        }
    }
}

impl fmt::Display for CaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Identity of a system: `spiffe://<trust-domain>/<department>/<system>` (SPIFFE-ID, narrowed to two segments).
///
/// Only the canonical form parses: lower-case scheme and trust domain, a department code, a system name of lower-case
/// letters, digits and `-`; no port, user, query, fragment, percent-encoding, empty segment or trailing slash.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    uri: Arc<str>,
    department: DepartmentCode,
    /// Where the trust domain ends in `uri`.
    trust_domain_end: usize,
}

const SPIFFE_SCHEME: &str = "spiffe://";

impl SpiffeId {
    /// The whole URI.
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// The trust domain, for example `heshan.gov.example`.
    pub fn trust_domain(&self) -> &str {
        self.uri.get(SPIFFE_SCHEME.len()..self.trust_domain_end).unwrap_or_default()
    }

    /// The department that runs the system.
    pub fn department(&self) -> &DepartmentCode {
        &self.department
    }

    /// The system's name within its department.
    pub fn system(&self) -> &str {
        self.uri.rsplit('/').next().unwrap_or_default()
    }
}

impl FromStr for SpiffeId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let wrong = || IdError::new("SPIFFE ID", "spiffe://<trust-domain>/<DEPARTMENT>/<system>");
        let rest = text.strip_prefix(SPIFFE_SCHEME).ok_or_else(wrong)?;
        let mut parts = rest.split('/');
        let (Some(domain), Some(department), Some(system), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(wrong());
        };
        let label = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let domain_form = (1..=253).contains(&domain.len())
            && domain.split('.').all(|part| !part.is_empty() && part.len() <= 63 && part.bytes().all(label));
        let system_form = (1..=63).contains(&system.len()) && system.bytes().all(label);
        if !domain_form || !system_form {
            return Err(wrong());
        }
        Ok(Self {
            uri: text.into(),
            department: department.parse().map_err(|_| wrong())?,
            trust_domain_end: SPIFFE_SCHEME.len() + domain.len(),
        })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

/// A text that is no identifier of its kind. It does not repeat the text, which may come from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a {kind}: needs {form}")]
pub struct IdError {
    kind: &'static str,
    form: &'static str,
}

impl IdError {
    const fn new(kind: &'static str, form: &'static str) -> Self {
        Self { kind, form }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spiffe_id_has_its_parts() {
        let id: SpiffeId = "spiffe://heshan.gov.example/GA/household-2".parse().unwrap();
        assert_eq!(
            (id.trust_domain(), id.department().as_str(), id.system()),
            ("heshan.gov.example", "GA", "household-2")
        );
    }

    #[test]
    fn odd_spiffe_ids_are_refused() {
        for odd in [
            "",
            "spiffe://",
            "https://a.b/GA/x",
            "SPIFFE://a.b/GA/x",
            "spiffe://A.b/GA/x",
            "spiffe://a.b:443/GA/x",
            "spiffe://u@a.b/GA/x",
            "spiffe://a..b/GA/x",
            "spiffe://a.b/GA/x/",
            "spiffe://a.b/GA//x",
            "spiffe://a.b/GA",
            "spiffe://a.b/ga/x",
            "spiffe://a.b/GA/x?y",
            "spiffe://a.b/GA/x#y",
            "spiffe://a.b/GA/%78",
            "spiffe://a.b/GA/..",
            "spiffe://a.b/GA/x\0",
            "spiffe://a.b/GA/X",
        ] {
            assert!(odd.parse::<SpiffeId>().is_err(), "{odd:?}");
        }
    }

    #[test]
    fn case_numbers_have_a_form() {
        assert!("HS-2026.0001_a".parse::<CaseId>().is_ok());
        for odd in ["", "short", "with space", "中文编号", "a\n234567", &"x".repeat(65)] {
            assert!(odd.parse::<CaseId>().is_err(), "{odd:?}");
        }
    }
}
