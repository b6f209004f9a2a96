//! Attempts that may be wrong: a rate per key in which what turned out right is given back.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::num::NonZeroU32;
use std::sync::Mutex;
use std::time::Duration;

use super::lock;

/// Cells shared by strangers while the table is full.
const SHARED_CELLS: u64 = 1024;

/// At most `most` attempts at once under one key, and as many again evenly in each period. Keys are kept as hashes with a
/// secret of the process; memory is bounded as that of the other rates.
pub(super) struct Attempts {
    /// Time in which one attempt comes back.
    one: Duration,
    most: u32,
    max_keys: usize,
    secret: RandomState,
    /// When each key will have all its attempts again; times are since some start.
    rested: Mutex<HashMap<u64, Duration>>,
}

/// One attempt that was taken from one key.
#[derive(Debug)]
#[must_use = "an attempt that was right is given back"]
pub(super) struct Taken(u64);

impl Attempts {
    pub(super) fn new(most: NonZeroU32, period: Duration, max_keys: usize) -> Self {
        Self {
            one: period / most.get(),
            most: most.get(),
            max_keys,
            secret: RandomState::new(),
            rested: Mutex::default(),
        }
    }

    /// Takes one attempt of `key`, or says how long to wait.
    pub(super) fn take(&self, key: &impl Hash, now: Duration) -> Result<Taken, Duration> {
        let mut cell = self.secret.hash_one(key);
        let mut rested = lock(&self.rested);
        if rested.len() >= self.max_keys && !rested.contains_key(&cell) {
            rested.retain(|_, until| *until > now);
            if rested.len() >= self.max_keys {
                cell %= SHARED_CELLS;
            }
        }
        let until = rested.entry(cell).or_default();
        let next = (*until).max(now) + self.one;
        match next.checked_sub(now + self.one * self.most) {
            Some(wait) if !wait.is_zero() => Err(wait),
            _ => {
                *until = next;
                Ok(Taken(cell))
            }
        }
    }

    /// Nothing was wrong.
    #[expect(clippy::needless_pass_by_value, reason = "an attempt is given back once")]
    pub(super) fn give_back(&self, taken: Taken) {
        if let Some(until) = lock(&self.rested).get_mut(&taken.0) {
            *until = until.saturating_sub(self.one);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    fn attempts(most: u32, max_keys: usize) -> Attempts {
        Attempts::new(most.try_into().unwrap(), HOUR, max_keys)
    }

    const NOW: Duration = Duration::from_secs(7);

    #[test]
    fn wrong_attempts_come_back_one_by_one() {
        let attempts = attempts(4, 100);
        for _ in 0..4 {
            let _ = attempts.take(&"a", NOW).unwrap();
        }
        assert_eq!(attempts.take(&"a", NOW).unwrap_err(), HOUR / 4);
        let _ = attempts.take(&"b", NOW).unwrap();
        assert_eq!(attempts.take(&"a", NOW + HOUR / 8).unwrap_err(), HOUR / 8);
        let _ = attempts.take(&"a", NOW + HOUR / 4).unwrap();
        assert!(attempts.take(&"a", NOW + HOUR / 4).is_err());
    }

    #[test]
    fn right_attempts_cost_nothing_but_none_is_free_while_it_is_open() {
        let attempts = attempts(2, 100);
        for _ in 0..100 {
            let attempt = attempts.take(&"a", NOW).unwrap();
            attempts.give_back(attempt);
        }
        let _open = (attempts.take(&"a", NOW).unwrap(), attempts.take(&"a", NOW).unwrap());
        assert!(attempts.take(&"a", NOW).is_err(), "calls at the same time do not share an attempt");
    }

    #[test]
    fn memory_is_bounded_and_limits_still_hold() {
        let attempts = attempts(2, 1000);
        let taken = (0..10_000_u32).filter(|key| attempts.take(key, NOW).is_ok()).count();
        let bound = 1000 + 1024;
        assert!(lock(&attempts.rested).len() <= bound && taken <= bound * 2, "{taken}");
        let _ = attempts.take(&"a", NOW + HOUR).unwrap();
        assert_eq!(lock(&attempts.rested).len(), 1, "rested keys are forgotten");
    }
}
