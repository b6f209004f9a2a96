//! Token keys that change while the gateway runs. An issuer announces its next key beside the one in use, and takes the
//! old one out when the last token it signed has expired.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use super::caller::Caller;
use super::config::IdentityConfig;
use super::purpose::Purpose;
use super::token::{TokenError, TokenVerifier};
use crate::catalog::Faults;
use crate::clock::{Clock, Timestamp};
use crate::ids::DepartmentCode;
use crate::watched::{Rotation, Watched};

/// The verifier in use, and the files it was made of.
#[derive(Debug)]
pub struct Tokens {
    current: ArcSwap<TokenVerifier>,
    config: IdentityConfig,
    clock: Clock,
    state: Mutex<(Watched, Rotation)>,
}

impl Tokens {
    /// Follows the files of `config`, of which `first` was made.
    pub fn new(first: TokenVerifier, config: IdentityConfig, clock: Clock) -> Self {
        let keys = config.issuers.iter().map(|issuer| issuer.jwks.clone());
        let files: Vec<PathBuf> = keys.chain(config.subjects_key.clone()).collect();
        let rotation = Rotation { name: "token keys".to_owned(), since: clock.now(), refused: None };
        Self {
            current: ArcSwap::from_pointee(first),
            state: Mutex::new((Watched::new(files), rotation)),
            config,
            clock,
        }
    }

    /// See [`TokenVerifier::verify`].
    pub fn verify(&self, caller: &Caller, token: &str, now: Timestamp) -> Result<Arc<Purpose>, TokenError> {
        self.current.load().verify(caller, token, now)
    }

    /// See [`TokenVerifier::may_speak_for`].
    pub fn may_speak_for(&self, caller: &Caller) -> Vec<DepartmentCode> {
        self.current.load().may_speak_for(caller)
    }

    /// Uses the files as they are now, if they changed; of one that is not in order, and of no other, what was used is used
    /// on. Tokens that were verified before are verified anew. Blocks.
    ///
    /// # Errors
    /// What is wrong with which files.
    pub fn follow(&self) -> Option<Result<(), Faults>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (watched, rotation) = &mut *state;
        let changed = watched.changed();
        // A `kid` may be given up by one issuer and taken by another in either order, so what is refused is tried again.
        if !changed && rotation.refused.is_none() {
            return None;
        }
        let (verifier, faults) = self.current.load().with_keys_of(&self.config);
        let refused = (!faults.0.is_empty()).then(|| faults.to_string());
        if !changed && refused == rotation.refused {
            return None;
        }
        self.current.store(Arc::new(verifier));
        (rotation.since, rotation.refused) = (self.clock.now(), refused);
        Some(faults.or(()))
    }

    /// How the rotation stands.
    pub fn rotation(&self) -> Rotation {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).1.clone()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::PKCS_ED25519;

    use super::super::config::IssuerConfig;
    use super::super::mint::{MintRequest, SigningKey};
    use super::super::testing::{self, DOMAIN, ISSUER};
    use super::*;

    /// Each file counts for itself, and no issuer gets hold of another's key by its `kid`.
    #[test]
    fn a_file_that_is_not_in_order_keeps_the_old_keys_of_its_own_issuer_alone() {
        const OTHER: &str = "https://other.heshan.gov.example";
        let [ours, theirs, next] = [(); 3].map(|()| testing::signing_key(&PKCS_ED25519));
        let (dir, mut config) = testing::config(&ours.jwks());
        let (first, second) = (config.issuers[0].jwks.clone(), dir.path().join("other.json"));
        std::fs::write(&second, theirs.jwks().to_string()).unwrap();
        let consumers = config.issuers[0].consumers.clone();
        config.issuers.push(IssuerConfig { issuer: OTHER.into(), jwks: second.clone(), consumers });
        let clock = Clock::manual(Timestamp::from_secs(1_795_399_200));
        let verifier = TokenVerifier::load(&config, DOMAIN, |_| true).unwrap();
        let tokens = Tokens::new(verifier, config, clock.clone());
        let caller = testing::caller("spiffe://heshan.gov.example/GA/household");
        let (consumer, case) = ("GA".parse().unwrap(), "HS-2026-000123".parse().unwrap());
        let works = |key: &SigningKey, issuer: &'static str| {
            let request = testing::request(&caller, &consumer, &case, clock.now());
            let token = key.mint(&MintRequest { issuer, ..request }).unwrap();
            tokens.verify(&caller, &token, clock.now()).is_ok()
        };
        assert!(works(&ours, ISSUER) && works(&theirs, OTHER) && tokens.follow().is_none());

        std::fs::write(&first, "{ half a fil").unwrap();
        std::fs::write(&second, next.jwks().to_string()).unwrap();
        let refused = tokens.follow().unwrap().unwrap_err().to_string();
        assert!(refused.contains("jwks.json") && !refused.contains("other.json"), "{refused}");
        assert!(works(&ours, ISSUER) && works(&next, OTHER) && !works(&theirs, OTHER));
        assert!(tokens.follow().is_none(), "the same faults are told once");

        std::fs::write(&first, next.jwks().to_string()).unwrap();
        assert!(tokens.follow().unwrap().unwrap_err().to_string().contains("stands twice (issuer https://other"));
        assert!(works(&ours, ISSUER) && works(&next, OTHER) && !works(&next, ISSUER));
        // Given up by the one, it is the other's: at the next look, without another change.
        std::fs::write(&second, theirs.jwks().to_string()).unwrap();
        _ = tokens.follow();
        _ = tokens.follow();
        assert!(works(&next, ISSUER) && works(&theirs, OTHER) && !works(&ours, ISSUER));
        assert_eq!(tokens.rotation().refused, None);
    }
}
