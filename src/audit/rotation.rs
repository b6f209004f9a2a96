//! Handing a log over to a new signing key: a `LOG_KEY` entry, a note that the key before has signed. Whoever trusts that
//! key, and walks the log, comes to trust the new one.
//!
//! ```text
//! oncegate/log-key/v1
//! heshan.gov.example/gw1
//! heshan.gov.example/gw1+c0ffee00+AZ…      the new key
//! ```

use super::checkpoint::Policy;
use super::note::{Note, SigningKey, VerifierKey};
use crate::clock::Timestamp;

const HEAD: &str = "oncegate/log-key/v1";

/// The body of the entry.
pub(super) fn handover(origin: &str, before: &SigningKey, next: &VerifierKey) -> String {
    // An Ed25519 signature has no time.
    Note::sign(format!("{HEAD}\n{origin}\n{next}\n"), &[before], Timestamp::default()).to_string()
}

/// The key that a `LOG_KEY` entry of the log `origin` hands over to, if a key that `policy` believes has signed it.
pub fn next_key(body: &str, origin: &str, policy: &Policy) -> Option<VerifierKey> {
    let note: Note = body.parse().ok()?;
    let mut lines = note.text().lines();
    let (head, of, next) = (lines.next()?, lines.next()?, lines.next()?);
    if head != HEAD || of != origin || lines.next().is_some() {
        return None;
    }
    let next: VerifierKey = next.parse().ok().filter(|next: &VerifierKey| next.name() == origin)?;
    let signed = policy.logs().iter().any(|key| key.name() == origin && key.verify(&note).is_some());
    signed.then_some(next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::note::Algorithm;

    #[test]
    fn a_believed_key_hands_over_and_no_other() {
        let key = |name: &str| SigningKey::generate(name, Algorithm::Ed25519).unwrap();
        let (before, next, stranger) = (key("o/gw1"), key("o/gw1"), key("o/gw1"));
        let policy = Policy::of_logs(vec![before.verifier().clone()]);
        let body = handover("o/gw1", &before, next.verifier());
        assert_eq!(next_key(&body, "o/gw1", &policy).as_ref(), Some(next.verifier()));
        assert_eq!(next_key(&body, "o/gw2", &policy), None);
        assert_eq!(next_key(&handover("o/gw1", &stranger, next.verifier()), "o/gw1", &policy), None);
        assert_eq!(next_key(&handover("o/gw1", &before, key("o/gw2").verifier()), "o/gw1", &policy), None);
        let other = Note::sign("o/gw1\n3\nAAAA\n".into(), &[&before], Timestamp::default()).to_string();
        assert_eq!(next_key(&other, "o/gw1", &policy), None);
    }
}
