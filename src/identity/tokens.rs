//! Token keys that change while the gateway runs. An issuer announces its next key beside the one in use, and takes the
//! old one out when the last token it signed has expired.

use std::collections::BTreeSet;
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
use crate::telemetry::Metrics;
use crate::watched::{Rotation, Watched};

/// The verifier in use, and the files it was made of.
#[derive(Debug)]
pub struct Tokens {
    current: ArcSwap<TokenVerifier>,
    config: IdentityConfig,
    trust_domain: String,
    departments: BTreeSet<DepartmentCode>,
    clock: Clock,
    metrics: Arc<Metrics>,
    state: Mutex<(Watched, Rotation)>,
}

impl Tokens {
    /// Follows the files of `config`, of which `first` was made. `departments` are those of the catalog.
    pub fn new(
        first: TokenVerifier,
        config: IdentityConfig,
        trust_domain: &str,
        departments: BTreeSet<DepartmentCode>,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Self {
        let keys = config.issuers.iter().map(|issuer| issuer.jwks.clone());
        let files: Vec<PathBuf> = keys.chain(config.subjects_key.clone()).collect();
        let rotation = Rotation { name: "token keys".to_owned(), since: clock.now(), refused: None };
        Self {
            current: ArcSwap::from_pointee(first),
            trust_domain: trust_domain.to_owned(),
            state: Mutex::new((Watched::new(files), rotation)),
            config,
            departments,
            clock,
            metrics,
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

    /// Uses the files as they are now, if they changed and are in order; otherwise what was used is used on. Tokens that
    /// were verified before are verified anew. Blocks.
    pub fn follow(&self) -> Option<Result<(), Faults>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.0.changed() {
            return None;
        }
        let known = |code: &DepartmentCode| self.departments.contains(code);
        let loaded = TokenVerifier::load(&self.config, &self.trust_domain, known);
        Some(match loaded {
            Ok(verifier) => {
                self.current.store(Arc::new(verifier.with_metrics(self.metrics.clone())));
                (state.1.since, state.1.refused) = (self.clock.now(), None);
                Ok(())
            }
            Err(faults) => {
                state.1.refused = Some(faults.to_string());
                Err(faults)
            }
        })
    }

    /// How the rotation stands.
    pub fn rotation(&self) -> Rotation {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).1.clone()
    }
}
