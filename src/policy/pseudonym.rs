//! Pseudonyms: what stands for a value where a consumer must recognise the same person again, and nothing more.
//!
//! A pseudonym is HMAC-SHA-256 over the value's bytes under a key of this consumer and matter, so neither two departments
//! nor two matters can compare theirs, and nobody without the key can try out all identity numbers. The key of a consumer
//! and matter is HMAC-SHA-256 over its name under the key of `[policy] pseudonym_key`. Whoever changes that file changes
//! every pseudonym.

use std::fmt;
use std::path::Path;

use aws_lc_rs::hmac;
use zeroize::Zeroizing;

use crate::ids::DepartmentCode;

/// Length of a pseudonym, in characters: 26 × 5 bits of the HMAC's 256. Two of a billion values meet with a probability
/// of 10⁻²¹.
pub(super) const LENGTH: usize = 26;

/// RFC 4648, section 6.
const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// The key that every pseudonym comes from.
pub struct PseudonymKey(hmac::Key);

/// The key of one consumer's pseudonyms within one matter.
#[derive(Clone)]
pub(super) struct Pseudonyms(hmac::Key);

impl PseudonymKey {
    /// Reads a file of 32 to 256 bytes in hexadecimal.
    ///
    /// # Errors
    /// If it can't be read or has another form. Nothing of it is repeated.
    pub fn load(file: &Path) -> Result<Self, PseudonymKeyError> {
        let text = std::fs::read_to_string(file).map(Zeroizing::new).map_err(PseudonymKeyError::Unreadable)?;
        let bytes = hex::decode(text.trim()).map(Zeroizing::new).map_err(|_| PseudonymKeyError::Form)?;
        if (32..=256).contains(&bytes.len()) {
            Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, &bytes)))
        } else {
            Err(PseudonymKeyError::Form)
        }
    }

    /// The key of a consumer and matter.
    pub(super) fn of(&self, consumer: &DepartmentCode, matter: &str) -> Pseudonyms {
        let mut context = hmac::Context::with_key(&self.0);
        for part in ["oncegate pseudonym 1", consumer.as_str(), matter] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part.as_bytes());
        }
        Pseudonyms(hmac::Key::new(hmac::HMAC_SHA256, context.sign().as_ref()))
    }
}

impl Pseudonyms {
    /// What stands for a value: [`LENGTH`] characters, the same for the same bytes. None for an empty value, which would
    /// be told by its pseudonym.
    pub(super) fn of(&self, value: &str) -> Option<String> {
        if value.is_empty() {
            return None;
        }
        let tag = hmac::sign(&self.0, value.as_bytes());
        let bit = |at: usize| tag.as_ref().get(at / 8).is_some_and(|byte| byte >> (7 - at % 8) & 1 == 1);
        let digit = |at: usize| (at * 5..at * 5 + 5).fold(0, |digit, at| digit << 1 | usize::from(bit(at)));
        (0..LENGTH).map(|at| ALPHABET.get(digit(at)).map(|letter| char::from(*letter))).collect()
    }
}

impl fmt::Debug for PseudonymKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PseudonymKey")
    }
}

impl fmt::Debug for Pseudonyms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pseudonyms")
    }
}

/// The key file is of no use. Nothing of it is repeated.
#[derive(Debug, thiserror::Error)]
pub enum PseudonymKeyError {
    /// It can't be read.
    #[error("can't be read: {0}")]
    Unreadable(std::io::Error),
    /// It has another form.
    #[error("needs 32 to 256 bytes in hexadecimal")]
    Form,
}

#[cfg(test)]
pub(super) fn test_key() -> PseudonymKey {
    PseudonymKey(hmac::Key::new(hmac::HMAC_SHA256, &[0x0b; 32]))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn of(consumer: &str, matter: &str, value: &str) -> String {
        test_key().of(&consumer.parse().unwrap(), matter).of(value).unwrap()
    }

    #[test]
    fn a_pseudonym_is_as_described() {
        // Computed with Python's hmac and base64 over the description above.
        assert_eq!(of("GA", "newborn_birth", "11010519491231002X"), "53IUNOCDOOZSFOSKGG37ZAZR6Z");
        assert_eq!(of("GA", "newborn_birth", "王小明"), "A4YPB6XOPTXZQGLWW5Y5UXC4VT");
        assert_eq!(of("JK", "school_enrolment", "11010519491231002X"), "BR5WIM2INI7JEBHTKFYD6IVUCU");
    }

    #[test]
    fn it_tells_the_same_value_again_and_nothing_to_another_consumer_or_matter() {
        let values = ["11010519491231002X", "11010519491231002x", "1", "2", "王小明"];
        let mut all = BTreeSet::new();
        for (consumer, matter) in [("GA", "a"), ("GA", "b"), ("JK", "a")] {
            for value in values {
                let pseudonym = of(consumer, matter, value);
                assert_eq!(pseudonym, of(consumer, matter, value));
                assert_eq!(pseudonym.len(), LENGTH);
                assert!(all.insert(pseudonym), "{consumer} {matter} {value}");
            }
        }
        assert_eq!(test_key().of(&"GA".parse().unwrap(), "a").of(""), None);
    }

    #[test]
    fn the_key_file_is_checked_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pseudonym.hex");
        std::fs::write(&file, "0b".repeat(32) + "\n").unwrap();
        let key = PseudonymKey::load(&file).unwrap();
        let ga = "GA".parse().unwrap();
        assert_eq!(key.of(&ga, "a").of("x"), test_key().of(&ga, "a").of("x"));
        assert_eq!(format!("{key:?} {:?}", key.of(&ga, "a")), "PseudonymKey Pseudonyms");
        for wrong in ["", "zz", &"aa".repeat(31), &"aa".repeat(257)] {
            std::fs::write(&file, wrong).unwrap();
            assert!(matches!(PseudonymKey::load(&file), Err(PseudonymKeyError::Form)), "{wrong}");
        }
        assert!(matches!(PseudonymKey::load(dir.path()), Err(PseudonymKeyError::Unreadable(_))));
    }
}
