//! Follows `current`: whatever it leads to is validated, and serves if it is in order. Polled, for a watch on a file
//! under a link that is swapped sees the first swap and no other.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::time::Instant;

use super::acts::{Act, ActError, Custodian, Done};
use super::config::TrustConfig;
use super::gate::{Gate, Swept};
use super::generation::{Against, Generation, Terms};
use super::refusals::Refusals;
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
    /// Read by whoever asks, however long the next generation takes.
    state: ArcSwap<State>,
    /// One at a time changes it.
    following: Mutex<()>,
}

#[derive(Debug, Clone)]
struct State {
    /// What serves.
    served: PathBuf,
    served_since: Timestamp,
    /// The number that `current` led to when it was looked at last.
    on_disk: Option<u64>,
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
        let mut contents = place.read()?;
        if let Some(number) = place.number {
            // A link flipped by hand to an older generation forgets nobody who was refused since.
            contents.manifest.unblocked.clear();
            let held = Refusals::since(&store, number, clock.now()).hold_in(&mut contents, clock.now());
            if let Some(newest) = store.numbers().last().filter(|newest| **newest > number) {
                tracing::warn!(
                    generation = number,
                    newest,
                    "`current` leads to an older trust generation than the newest"
                );
            }
            for what in held {
                tracing::warn!(generation = number, what, "trust");
            }
        }
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
        let state = State { served: place.dir, served_since: clock.now(), on_disk: place.number, refused: None };
        let (state, following) = (ArcSwap::from_pointee(state), Mutex::default());
        Ok(Arc::new(Self { gate: make(generation)?, store, terms, clock, state, following }))
    }

    /// Who serves.
    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// The directory.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// What `current` leads to, if that was refused. Like its neighbours, neither waits for anybody nor reads the disk.
    pub fn refused(&self) -> Option<Refused> {
        self.state.load().refused.clone()
    }

    /// The number that `current` leads to, if it leads to one.
    pub fn number_on_disk(&self) -> Option<u64> {
        self.state.load().on_disk
    }

    /// Since when the generation in force serves.
    pub fn served_since(&self) -> Timestamp {
        self.state.load().served_since
    }

    /// Carries acts out beside this gateway.
    pub fn custodian(&self) -> Custodian<'_> {
        Custodian { store: &self.store, terms: &self.terms, clock: &self.clock, gate: Some(&self.gate) }
    }

    /// Does it and, if it made a generation, lets that serve: it does when this returns. Blocks.
    pub fn act(&self, act: Act, by: &str) -> Result<Done, ActError> {
        let _one = self.following();
        let mut done = self.custodian().act(act, by)?;
        let Some(generation) = done.validated.take() else { return Ok(done) };
        let place = Place { dir: self.store.generation(generation.number()), number: Some(generation.number()) };
        // As `current` leads there.
        let place = Place { dir: place.dir.canonicalize().unwrap_or(place.dir), ..place };
        match self.serve(place, generation) {
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
            Followed::Same => {}
        }
        Ok(done)
    }

    /// Looks where `current` leads, and lets that serve if it is new and in order. Blocks.
    pub fn follow(&self) -> Followed {
        let _one = self.following();
        let place = match self.store.current() {
            Ok(Some(place)) => place,
            Ok(None) => return self.refuse(None, self.store.root().join("current"), "leads nowhere".to_owned()),
            Err(error) => return self.refuse(None, self.store.root().join("current"), error.to_string()),
        };
        let state = self.state.load();
        if place.dir == state.served {
            if state.refused.is_some() {
                self.state.store(Arc::new(State { on_disk: place.number, refused: None, ..State::clone(&state) }));
            }
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
            return self.refuse(place.number, place.dir, why);
        }
        let loaded = place.read().and_then(|mut contents| {
            let held = serving.refusals().hold_in(&mut contents, self.clock.now());
            for what in held {
                tracing::warn!(generation = number, what, "trust");
            }
            let against = Against::serving(&serving, &contents.manifest);
            Generation::load(number, &contents, &place.dir, &self.terms, against, &self.clock)
        });
        match loaded {
            Ok(generation) => self.serve(place, generation),
            Err(faults) => self.refuse(place.number, place.dir, faults.to_string()),
        }
    }

    /// Puts a generation in force that was validated against the one that serves.
    fn serve(&self, place: Place, generation: Generation) -> Followed {
        let number = generation.number();
        for warning in generation.warnings() {
            tracing::warn!(generation = number, warning, "trust");
        }
        let started = Instant::now();
        match self.gate.install(generation) {
            Ok(swept) => {
                let took = started.elapsed();
                let (served_since, on_disk) = (self.clock.now(), place.number);
                self.state.store(Arc::new(State { served: place.dir, served_since, on_disk, refused: None }));
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
            Err(error) => self.refuse(place.number, place.dir, error.to_string()),
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

    fn refuse(&self, on_disk: Option<u64>, dir: PathBuf, why: String) -> Followed {
        let state = self.state.load();
        let before = state.refused.as_ref().filter(|refused| refused.dir == dir && refused.why == why);
        let (known, at) = (before.is_some(), before.map_or_else(|| self.clock.now(), |before| before.at));
        if !known {
            tracing::error!(dir = %dir.display(), why, "trust generation refused; the one before serves");
        }
        let refused = Some(Refused { dir, at, why: why.clone(), tried: Instant::now() });
        self.state.store(Arc::new(State { on_disk, refused, ..State::clone(&state) }));
        if known { Followed::Same } else { Followed::Refused(why) }
    }

    pub(super) fn following(&self) -> MutexGuard<'_, ()> {
        self.following.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
