//! A rate limiter per key, of bounded memory.

use std::hash::{BuildHasher, Hash, RandomState};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::middleware::NoOpMiddleware;
use governor::state::keyed::DashMapStateStore;
use governor::{Quota, RateLimiter};

/// How often the number of keys is looked at, in admissions; the bound may be overshot by as many.
const LOOK_EVERY: u64 = 256;
/// Cells shared by strangers while the table is full.
const SHARED_CELLS: u64 = 1024;

/// Rates by key. A key is kept as a 64-bit hash with a secret of the process, so no name or number stays in memory.
///
/// Keys that have rested long enough to be as good as new are forgotten when the table has doubled, or is full. If it is
/// full of keys in use, keys share cells: stricter for them, never looser in sum, and memory stays bounded.
pub(super) struct Keyed<C: Clock = DefaultClock> {
    rates: RateLimiter<u64, DashMapStateStore<u64>, C, NoOpMiddleware<C::Instant>>,
    clock: C,
    secret: RandomState,
    max_keys: usize,
    admissions: AtomicU64,
    sweep_at: AtomicUsize,
    full: AtomicBool,
}

impl<C: Clock + Clone> Keyed<C> {
    pub(super) fn new(quota: Quota, max_keys: usize, clock: C) -> Self {
        Self {
            rates: RateLimiter::new(quota, DashMapStateStore::default(), clock.clone()),
            clock,
            secret: RandomState::new(),
            max_keys,
            admissions: AtomicU64::new(0),
            sweep_at: AtomicUsize::new(max_keys.min(4096)),
            full: AtomicBool::new(false),
        }
    }

    /// Admits one call under `key`, or says how long to wait.
    pub(super) fn admit(&self, key: &impl Hash) -> Result<(), Duration> {
        if self.admissions.fetch_add(1, Ordering::Relaxed).is_multiple_of(LOOK_EVERY) {
            self.tidy();
        }
        let mut cell = self.secret.hash_one(key);
        if self.full.load(Ordering::Relaxed) {
            cell %= SHARED_CELLS;
        }
        self.rates.check_key(&cell).map_err(|until| until.wait_time_from(self.clock.now()))
    }

    fn tidy(&self) {
        if self.rates.len() < self.sweep_at.load(Ordering::Relaxed) {
            return;
        }
        self.rates.retain_recent();
        let left = self.rates.len();
        self.full.store(left >= self.max_keys, Ordering::Relaxed);
        // Doubling keeps the cost of sweeping constant per admission.
        self.sweep_at.store(left.saturating_mul(2).clamp(1024.min(self.max_keys), self.max_keys), Ordering::Relaxed);
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.rates.len()
    }
}

/// Highest rate or burst that a limit takes; arithmetic in nanoseconds overflows far beyond it.
const MAX_RATE: u32 = 1_000_000;

/// `rate` calls per `period`, `burst` at once.
pub(super) fn quota(rate: NonZeroU32, period: Duration, burst: NonZeroU32) -> Quota {
    let one_per = period / rate.get().min(MAX_RATE);
    let burst = burst.min(NonZeroU32::new(MAX_RATE).unwrap_or(burst));
    // `with_period` refuses only a period of zero, which a million per second is far from.
    Quota::with_period(one_per).unwrap_or(Quota::per_second(NonZeroU32::MIN)).allow_burst(burst)
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;

    use super::*;

    fn keyed(rate: u32, burst: u32, max_keys: usize) -> (Keyed<FakeRelativeClock>, FakeRelativeClock) {
        let clock = FakeRelativeClock::default();
        let quota = quota(rate.try_into().unwrap(), Duration::from_secs(1), burst.try_into().unwrap());
        (Keyed::new(quota, max_keys, clock.clone()), clock)
    }

    #[test]
    fn a_key_has_its_burst_and_then_its_rate() {
        let (keyed, clock) = keyed(10, 3, 1000);
        for _ in 0..3 {
            keyed.admit(&"a").unwrap();
        }
        assert_eq!(keyed.admit(&"a"), Err(Duration::from_millis(100)));
        keyed.admit(&"b").unwrap();
        clock.advance(Duration::from_millis(60));
        assert_eq!(keyed.admit(&"a"), Err(Duration::from_millis(40)));
        clock.advance(Duration::from_millis(40));
        keyed.admit(&"a").unwrap();
        assert!(keyed.admit(&"a").is_err());
    }

    #[test]
    fn rested_keys_are_forgotten() {
        let (keyed, clock) = keyed(10, 10, 1000);
        for round in 0..50_u64 {
            for key in 0..500_u64 {
                keyed.admit(&(round, key)).unwrap();
            }
            clock.advance(Duration::from_secs(2));
        }
        assert!(keyed.len() <= 1000 + 256, "{}", keyed.len());
        assert!(!keyed.full.load(Ordering::Relaxed));
    }

    #[test]
    fn memory_is_bounded_when_all_keys_are_in_use_and_limits_still_hold() {
        let (keyed, clock) = keyed(1, 2, 1000);
        let admitted = (0..20_000_u32).filter(|key| keyed.admit(key).is_ok()).count();
        let bound = 1000 + 256 + 1024;
        assert!(keyed.len() <= bound, "{}", keyed.len());
        assert!(admitted <= bound * 2, "strangers share cells: {admitted}");
        // Once the flood has passed, everybody has a cell again.
        clock.advance(Duration::from_secs(10));
        for key in 0..256_u32 {
            let _ = keyed.admit(&key);
        }
        assert!(!keyed.full.load(Ordering::Relaxed) && keyed.len() <= 300);
    }

    #[test]
    fn extreme_settings_do_not_overflow() {
        let most = NonZeroU32::MAX;
        for period in [Duration::from_secs(1), Duration::from_mins(1)] {
            for (rate, burst) in [(most, most), (NonZeroU32::MIN, most), (most, NonZeroU32::MIN)] {
                let keyed = Keyed::new(quota(rate, period, burst), 10, FakeRelativeClock::default());
                keyed.admit(&1).unwrap();
            }
        }
    }
}
