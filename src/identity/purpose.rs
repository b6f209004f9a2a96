//! What a verified token says a call is for.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;
use zeroize::Zeroizing;

use crate::clock::Timestamp;
use crate::ids::{CaseId, DepartmentCode};

/// Evidence that a registered issuer vouches for a call: which officer of which department asks, for which matter and
/// case, on which legal basis. Made only by [`TokenVerifier::verify`](super::TokenVerifier::verify).
#[derive(Clone, Debug)]
pub struct Purpose {
    pub(super) consumer: DepartmentCode,
    pub(super) matter: String,
    pub(super) case_id: CaseId,
    pub(super) basis: Basis,
    pub(super) basis_reference: String,
    pub(super) text: String,
    pub(super) officer: String,
    pub(super) issuer: Arc<str>,
    pub(super) token_id: String,
    pub(super) certificate_types: Option<Vec<String>>,
    pub(super) subjects: Option<Subjects>,
    pub(super) not_before: Timestamp,
    pub(super) expires_at: Timestamp,
}

/// Kind of the legal basis (PIPL art. 13).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Basis {
    /// A statutory duty.
    StatutoryDuty,
    /// The subject's consent; its reference is never empty.
    Consent,
}

impl Purpose {
    /// The department that asks.
    pub fn consumer(&self) -> &DepartmentCode {
        &self.consumer
    }

    /// Code of the matter.
    pub fn matter(&self) -> &str {
        &self.matter
    }

    /// Number of the case.
    pub fn case_id(&self) -> &CaseId {
        &self.case_id
    }

    /// Kind of the legal basis.
    pub fn basis(&self) -> Basis {
        self.basis
    }

    /// Citation or consent reference, at most 200 characters; may be empty for a statutory duty.
    pub fn basis_reference(&self) -> &str {
        &self.basis_reference
    }

    /// The purpose in words, 1 to 200 characters.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The officer: the token's `sub`, at most 128 characters.
    pub fn officer(&self) -> &str {
        &self.officer
    }

    /// Who issued the token.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The token's `jti`, at most 128 characters.
    pub fn token_id(&self) -> &str {
        &self.token_id
    }

    /// The certificate types that the token is limited to, if it is.
    pub fn certificate_types(&self) -> Option<&[String]> {
        self.certificate_types.as_deref()
    }

    /// True if the token does not name its subjects, or `holder`, the number that stands for the subject, is one of
    /// them.
    pub fn covers_subject(&self, holder: &str) -> bool {
        self.subjects.as_ref().is_none_or(|subjects| subjects.contain(holder))
    }

    /// The token's `exp`.
    pub fn expires_at(&self) -> Timestamp {
        self.expires_at
    }
}

/// Subjects that a token names by their HMAC.
#[derive(Clone, Debug)]
pub(super) struct Subjects {
    pub(super) tags: Vec<[u8; 32]>,
    /// Without a key no subject can be recognised, so none is covered.
    pub(super) key: Option<Arc<SubjectsKey>>,
}

impl Subjects {
    fn contain(&self, holder: &str) -> bool {
        let Some(key) = &self.key else { return false };
        let holder = key.tag(holder);
        self.tags.iter().any(|tag| verify_slices_are_equal(tag, &holder).is_ok())
    }
}

/// The key shared by issuers and gateway under which subjects stand in tokens: HMAC-SHA256 of the holder's number.
pub struct SubjectsKey(hmac::Key);

impl SubjectsKey {
    /// Reads a file of 32 to 256 bytes in hexadecimal.
    pub fn load(file: &Path) -> Result<Self, SubjectsKeyError> {
        let text = std::fs::read_to_string(file).map(Zeroizing::new).map_err(SubjectsKeyError::Unreadable)?;
        let bytes = hex::decode(text.trim()).map(Zeroizing::new).map_err(|_| SubjectsKeyError::Form)?;
        if (32..=256).contains(&bytes.len()) {
            Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, &bytes)))
        } else {
            Err(SubjectsKeyError::Form)
        }
    }

    /// The tag of a holder's number.
    pub fn tag(&self, holder: &str) -> [u8; 32] {
        let mut tag = [0; 32];
        tag.copy_from_slice(hmac::sign(&self.0, holder.as_bytes()).as_ref());
        tag
    }
}

impl fmt::Debug for SubjectsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SubjectsKey")
    }
}

/// The key file is of no use. Nothing of it is repeated.
#[derive(Debug, thiserror::Error)]
pub enum SubjectsKeyError {
    /// It can't be read.
    #[error("can't be read: {0}")]
    Unreadable(std::io::Error),
    /// It has another form.
    #[error("needs 32 to 256 bytes in hexadecimal")]
    Form,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_is_hmac_sha256() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("subjects.hex");
        // RFC 4231, test case 6.
        std::fs::write(&file, "aa".repeat(131) + "\n").unwrap();
        let key = SubjectsKey::load(&file).unwrap();
        let tag = key.tag("Test Using Larger Than Block-Size Key - Hash Key First");
        assert_eq!(hex::encode(tag), "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
        assert_eq!(format!("{key:?}"), "SubjectsKey");
        for wrong in ["", "zz", &"aa".repeat(31), &"aa".repeat(257)] {
            std::fs::write(&file, wrong).unwrap();
            assert!(matches!(SubjectsKey::load(&file), Err(SubjectsKeyError::Form)), "{wrong}");
        }
        assert!(matches!(SubjectsKey::load(&dir.path().join("none")), Err(SubjectsKeyError::Unreadable(_))));
    }

    #[test]
    fn without_the_key_no_named_subject_is_covered() {
        assert!(!Subjects { tags: vec![[0; 32]], key: None }.contain(""));
    }
}
