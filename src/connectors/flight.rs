//! Fetches under way, each shared by all who wait for the same answer.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tracing::Instrument as _;

use super::FetchError;
use crate::cache::{CachedAnswer, Key};
use crate::catalog::Fields;

type Outcome = Result<Arc<CachedAnswer>, FetchError>;

/// What makes two fetches the same.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct FlightKey {
    pub(super) cache: Key,
    pub(super) fields: Fields,
}

/// The fetches under way.
#[derive(Clone, Default)]
pub(super) struct Flights(Arc<Mutex<HashMap<FlightKey, Weak<Flight>>>>);

/// One fetch, a task of its own. Dropped by the last who waits, it is aborted.
pub(super) struct Flight {
    key: FlightKey,
    deadline: Instant,
    outcome: watch::Receiver<Option<Outcome>>,
    task: AbortHandle,
    flights: Flights,
}

impl Flights {
    /// Joins the fetch of the same answer if it has at least half the time left that there is until `deadline`; else
    /// starts one. Who joins may thus be told of a timeout before its own deadline, but never much too early.
    pub(super) fn join<F>(&self, key: FlightKey, deadline: Instant, fetch: impl FnOnce() -> F) -> Arc<Flight>
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A flight that is over is not joined: its answer is in the cache, or it failed and deserves another try.
        let now = Instant::now();
        let half = deadline.saturating_duration_since(now) / 2;
        let open = |flight: &Arc<Flight>| flight.deadline >= now + half && flight.outcome.borrow().is_none();
        if let Some(flight) = flights.get(&key).and_then(Weak::upgrade) {
            if open(&flight) {
                return flight;
            }
            // Dropping the last handle takes the lock again, so it must happen after this one is released.
            drop(flights);
            drop(flight);
            flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        }
        let (sender, outcome) = watch::channel(None);
        let fetch = fetch();
        let task = tokio::spawn(
            async move {
                sender.send_replace(Some(fetch.await));
            }
            .in_current_span(),
        );
        let flight =
            Arc::new(Flight { key: key.clone(), deadline, outcome, task: task.abort_handle(), flights: self.clone() });
        flights.insert(key, Arc::downgrade(&flight));
        flight
    }
}

impl Flight {
    /// The outcome, as soon as it is known.
    pub(super) async fn wait(&self) -> Outcome {
        let mut outcome = self.outcome.clone();
        match outcome.wait_for(Option::is_some).await {
            Ok(known) => known.clone().unwrap_or(Err(FetchError::Unavailable)),
            // The task ended without an outcome: it panicked.
            Err(_) => Err(FetchError::Unavailable),
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.task.abort();
        let mut flights = self.flights.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Another flight may have taken the place meanwhile.
        if flights.get(&self.key).is_some_and(|weak| weak.strong_count() == 0) {
            flights.remove(&self.key);
        }
    }
}
