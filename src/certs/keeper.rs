//! Follows `current`: whatever it leads to is validated, and serves if it is in order. Polled, for a watch on a file
//! under a link that is swapped sees the first swap and no other.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::acts::{Act, ActError, Custodian, Done};
use super::config::TrustConfig;
use super::gate::{Gate, Swept};
use super::generation::{Against, Generation, Terms};
use super::store::{Place, Store};
use crate::catalog::Faults;
use crate::clock::{Clock, Timestamp};

/// How often `current` is looked at.
const POLL: Duration = Duration::from_millis(250);
/// How often a generation that was refused is tried again: a clock may have been wrong.
const AGAIN: Duration = Duration::from_secs(30);

/// A gateway's trust directory and what came of following it.
#[derive(Debug)]
pub struct Keeper {
    store: Store,
    terms: Terms,
    clock: Clock,
    gate: Arc<Gate>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// What serves.
    served: PathBuf,
    served_since: Timestamp,
    /// What was tried last and refused.
    refused: Option<Refused>,
}

/// A generation that does not serve because it is not in order.
#[derive(Debug, Clone)]
pub struct Refused {
    /// Its directory, or the link that leads nowhere.
    pub dir: PathBuf,
    /// Since when.
    pub at: Timestamp,
    /// Every fault, a line each.
    pub why: String,
    tried: Instant,
}

/// What following `current` came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Followed {
    /// It leads where it led before.
    Same,
    /// Another generation serves.
    Activated {
        /// Its number.
        number: u64,
        /// What became of the open connections.
        swept: Swept,
        /// From storing it until every connection was judged.
        took: Duration,
    },
    /// It leads to a generation that is not in order; the one before serves.
    Refused(String),
}

/// A generation read from a trust directory.
#[derive(Debug)]
pub struct Opened {
    /// The generation.
    pub generation: Generation,
    /// Where it was.
    pub place: Place,
    store: Store,
    terms: Terms,
}

impl Opened {
    /// What `current` leads to when the gateway starts.
    pub fn open(config: &TrustConfig, trust_domain: &str, clock: &Clock) -> Result<Self, Faults> {
        let (store, terms) = (Store::new(&config.dir), Terms::new(config, trust_domain));
        let mut faults = Faults::default();
        config.check(&config.dir, &mut faults);
        let place = match store.current() {
            Ok(Some(place)) => place,
            Ok(None) => {
                faults.of(&config.dir, "no generation is in force; see `oncegate trust init` and docs/rotating.md");
                return Err(faults);
            }
            Err(error) => {
                faults.of(&config.dir, error.to_string());
                return Err(faults);
            }
        };
        faults.or(())?;
        let contents = place.read()?;
        let number = place.number.unwrap_or(1);
        let generation = Generation::load(number, &contents, &place.dir, &terms, Against::Start, clock)?;
        Ok(Self { generation, place, store, terms })
    }
}

impl Keeper {
    /// Follows the directory that a gate's first generation came from. `make` makes the gate of it.
    pub fn new(
        opened: Opened,
        clock: Clock,
        make: impl FnOnce(Generation) -> Result<Arc<Gate>, Faults>,
    ) -> Result<Arc<Self>, Faults> {
        let Opened { generation, place, store, terms } = opened;
        let state = Mutex::new(State { served: place.dir, served_since: clock.now(), refused: None });
        Ok(Arc::new(Self { gate: make(generation)?, store, terms, clock, state }))
    }

    /// Who serves.
    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// The directory.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// What `current` leads to now, if that was refused.
    pub fn refused(&self) -> Option<Refused> {
        self.state().refused.clone()
    }

    /// The number that `current` leads to, if it leads to one.
    pub fn number_on_disk(&self) -> Option<u64> {
        self.store.current().ok().flatten()?.number
    }

    /// Since when the generation in force serves.
    pub fn served_since(&self) -> Timestamp {
        self.state().served_since
    }

    /// Carries acts out beside this gateway.
    pub fn custodian(&self) -> Custodian<'_> {
        Custodian { store: &self.store, terms: &self.terms, clock: &self.clock, gate: Some(&self.gate) }
    }

    /// Does it and, if it made a generation, lets that serve: it does when this returns. Blocks.
    pub fn act(&self, act: Act, by: &str) -> Result<Done, ActError> {
        let mut done = self.custodian().act(act, by)?;
        if done.generation.is_some() {
            match self.follow() {
                Followed::Activated { number, swept, took } => done.lines.push(format!(
                    "generation {number} serves: {} connections kept, {} drained, {} cut, in {:.1} ms",
                    swept.kept,
                    swept.drained,
                    swept.killed,
                    took.as_secs_f64() * 1e3
                )),
                Followed::Refused(why) => {
                    return Err(ActError::Refused(format!("it is on disk but does not serve: {why}")));
                }
                // The poll was quicker.
                Followed::Same => {}
            }
        }
        Ok(done)
    }

    /// Looks where `current` leads, and lets that serve if it is new and in order. Blocks.
    pub fn follow(&self) -> Followed {
        let mut state = self.state();
        let place = match self.store.current() {
            Ok(Some(place)) => place,
            Ok(None) => return self.refuse(&mut state, self.store.root().join("current"), "leads nowhere".to_owned()),
            Err(error) => return self.refuse(&mut state, self.store.root().join("current"), error.to_string()),
        };
        if place.dir == state.served {
            state.refused = None;
            return Followed::Same;
        }
        if state.refused.as_ref().is_some_and(|refused| refused.dir == place.dir && refused.tried.elapsed() < AGAIN) {
            return Followed::Same;
        }
        let serving = self.gate.current();
        let number = place.number.unwrap_or_else(|| serving.number() + 1);
        if number <= serving.number() {
            let why = format!(
                "generation {number} is older than generation {}, which serves; `oncegate trust rollback {number}` goes \
                 back without forgetting revocations",
                serving.number()
            );
            return self.refuse(&mut state, place.dir, why);
        }
        let loaded = place.read().and_then(|contents| {
            let against = Against::serving(&serving, &contents.manifest);
            Generation::load(number, &contents, &place.dir, &self.terms, against, &self.clock)
        });
        let generation = match loaded {
            Ok(generation) => generation,
            Err(faults) => return self.refuse(&mut state, place.dir, faults.to_string()),
        };
        for warning in generation.warnings() {
            tracing::warn!(generation = number, warning, "trust");
        }
        let started = Instant::now();
        match self.gate.install(generation) {
            Ok(swept) => {
                let took = started.elapsed();
                *state = State { served: place.dir, served_since: self.clock.now(), refused: None };
                tracing::info!(
                    generation = number,
                    kept = swept.kept,
                    drained = swept.drained,
                    cut = swept.killed,
                    took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
                    "another trust generation serves"
                );
                Followed::Activated { number, swept, took }
            }
            Err(error) => self.refuse(&mut state, place.dir, error.to_string()),
        }
    }

    /// Follows until it is dropped, and tells what happened.
    pub async fn run(self: Arc<Self>, mut tell: impl FnMut(Followed)) {
        let mut ticks = tokio::time::interval(POLL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let keeper = self.clone();
            // Reads files, and judging may take signatures.
            match tokio::task::spawn_blocking(move || keeper.follow()).await {
                Ok(Followed::Same) => {}
                Ok(followed) => tell(followed),
                Err(_) => tracing::error!("following the trust directory failed"),
            }
        }
    }

    fn refuse(&self, state: &mut State, dir: PathBuf, why: String) -> Followed {
        let known = state.refused.as_ref().is_some_and(|refused| refused.dir == dir && refused.why == why);
        let at = match &state.refused {
            Some(refused) if known => refused.at,
            _ => self.clock.now(),
        };
        if !known {
            tracing::error!(dir = %dir.display(), why, "trust generation refused; the one before serves");
        }
        state.refused = Some(Refused { dir, at, why: why.clone(), tried: Instant::now() });
        if known { Followed::Same } else { Followed::Refused(why) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
