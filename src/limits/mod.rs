//! How much is too much: calls per calling system, look-ups and wrong claims per subject, calls in flight per provider.
//!
//! Rates follow the generic cell rate algorithm: a burst at once, then evenly. What is refused says when to come again.

mod attempts;
mod keyed;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use governor::clock::DefaultClock;
use serde::{Deserialize, Deserializer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use self::attempts::{Attempts, Taken};
use self::keyed::{Keyed, quota};
use crate::identity::Caller;
use crate::ids::{CaseId, DepartmentCode, SpiffeId};
pub use crate::telemetry::LimitScope as Scope;

/// What a caller of a busy provider is told to wait: calls in flight end at any time, so there is nothing to compute.
const PROVIDER_RETRY: Duration = Duration::from_millis(200);
/// Refusals of one caller written one by one, per second; more are counted together.
const SINGLE_REFUSALS_PER_SECOND: u32 = 10;

/// Bounds of rates and of calls in flight. Rates and bursts above a million count as a million.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Calls of one calling system per second. Default 200.
    pub caller_per_second: NonZeroU32,
    /// Calls of one calling system at once. Default 400.
    pub caller_burst: NonZeroU32,
    /// Look-ups of one consumer about one subject per minute. Default 30: a matter needs a dozen certificates.
    pub subject_per_minute: NonZeroU32,
    /// Look-ups of one consumer about one subject at once. Default 60.
    pub subject_burst: NonZeroU32,
    /// Calls of `Verify` of one consumer in which something was wrong, per hour: about one subject, and about one
    /// certificate type in one case, whatever keys name the subject. Default 20: room for mistakes of the pen, and little
    /// for guessing. A code of few values, such as a sex or a status, is found out all the same.
    pub verify_per_subject_per_hour: NonZeroU32,
    /// Predicates that one consumer may have judged for another day than today, about one subject, and about one
    /// certificate type in one case: so many at once, and as many again evenly in 30 days, whatever the answers. Default
    /// 3: each answer halves the days among which a date is sought.
    pub verify_other_days_per_subject: NonZeroU32,
    /// Calls in flight to one provider. Default 64.
    pub provider_in_flight: NonZeroU32,
    /// The same for single providers, by department code.
    #[serde(deserialize_with = "by_department")]
    pub providers: BTreeMap<DepartmentCode, NonZeroU32>,
    /// How many callers, and how many subjects, are followed at once; some 100 bytes each. Default 200000.
    pub max_tracked: NonZeroU32,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        let default = |value| NonZeroU32::new(value).unwrap_or(NonZeroU32::MIN);
        Self {
            caller_per_second: default(200),
            caller_burst: default(400),
            subject_per_minute: default(30),
            subject_burst: default(60),
            verify_per_subject_per_hour: default(20),
            verify_other_days_per_subject: default(3),
            provider_in_flight: default(64),
            providers: BTreeMap::new(),
            max_tracked: default(200_000),
        }
    }
}

fn by_department<'de, D: Deserializer<'de>>(input: D) -> Result<BTreeMap<DepartmentCode, NonZeroU32>, D::Error> {
    let bounds = BTreeMap::<String, NonZeroU32>::deserialize(input)?;
    let parsed = |(code, bound): (String, _)| Ok((code.parse().map_err(serde::de::Error::custom)?, bound));
    bounds.into_iter().map(parsed).collect()
}

/// A caller's refusals for its rate.
#[derive(Default)]
struct Refusals {
    /// The second that `single` is of, since the start.
    second: u64,
    /// How many of this second are written one by one.
    single: u32,
    /// How many, of any second, are still to be written together.
    counted: u32,
}

/// All limits of one gateway.
pub struct Limits {
    callers: Keyed,
    subjects: Keyed,
    attempts: Attempts,
    other_days: Attempts,
    in_flight: NonZeroU32,
    in_flight_of: BTreeMap<DepartmentCode, NonZeroU32>,
    providers: Mutex<HashMap<DepartmentCode, Arc<Semaphore>>>,
    refusals: Mutex<HashMap<SpiffeId, Refusals>>,
    started: Instant,
    max_tracked: usize,
}

impl Limits {
    /// Nobody has asked yet.
    pub fn new(config: &LimitsConfig) -> Self {
        let (second, minute) = (Duration::from_secs(1), Duration::from_mins(1));
        let max_tracked = usize::try_from(config.max_tracked.get()).unwrap_or(usize::MAX);
        let keyed = |quota| Keyed::new(quota, max_tracked, DefaultClock::default());
        Self {
            callers: keyed(quota(config.caller_per_second, second, config.caller_burst)),
            subjects: keyed(quota(config.subject_per_minute, minute, config.subject_burst)),
            attempts: Attempts::new(config.verify_per_subject_per_hour, Duration::from_hours(1), max_tracked),
            other_days: Attempts::new(config.verify_other_days_per_subject, 30 * Duration::from_hours(24), max_tracked),
            in_flight: config.provider_in_flight,
            in_flight_of: config.providers.clone(),
            providers: Mutex::default(),
            refusals: Mutex::default(),
            started: Instant::now(),
            max_tracked,
        }
    }

    /// Admits one call of a system.
    pub fn admit_caller(&self, caller: &Caller) -> Result<(), Limited> {
        self.callers.admit(caller.id()).map_err(|retry_after| Limited { scope: Scope::Caller, retry_after })
    }

    /// Admits one look-up of a consumer about a subject, `holder` being the number that stands for it. Only a hash of
    /// the number, with a secret of the process, is kept.
    pub fn admit_subject(&self, consumer: &DepartmentCode, holder: &str) -> Result<(), Limited> {
        let admitted = self.subjects.admit(&(consumer, holder));
        admitted.map_err(|retry_after| Limited { scope: Scope::Subject, retry_after })
    }

    /// Takes one attempt to verify something, which counts as wrong until [`Limits::was_right`].
    pub fn attempt(&self, verified: &Verified<'_>) -> Result<Attempt, Limited> {
        self.take(&self.attempts, verified)
    }

    /// Gives an attempt back: nothing in it was wrong.
    pub fn was_right(&self, attempt: Attempt) {
        for taken in attempt.0 {
            self.attempts.give_back(taken);
        }
    }

    /// Takes one predicate's judgement for another day than today; nothing gives it back.
    pub fn other_day(&self, verified: &Verified<'_>) -> Result<(), Limited> {
        self.take(&self.other_days, verified).map(drop)
    }

    fn take(&self, attempts: &Attempts, verified: &Verified<'_>) -> Result<Attempt, Limited> {
        let Verified { consumer, holder, case_id, certificate_type } = *verified;
        let now = self.started.elapsed();
        let limited = |retry_after| Limited { scope: Scope::Attempts, retry_after };
        let of_subject = attempts.take(&("subject", consumer, holder), now).map_err(limited)?;
        match attempts.take(&("case", consumer, case_id.as_str(), certificate_type), now) {
            Ok(of_case) => Ok(Attempt([of_subject, of_case])),
            Err(retry_after) => {
                attempts.give_back(of_subject);
                Err(limited(retry_after))
            }
        }
    }

    /// Takes one of the places in flight to a provider, which the permit holds until it is dropped. `provider` is a
    /// department of the catalog, so the number of counters is bounded.
    pub fn provider(&self, provider: &DepartmentCode) -> Result<ProviderPermit, Limited> {
        let places = self.places(provider);
        let permit =
            places.try_acquire_owned().map_err(|_| Limited { scope: Scope::Provider, retry_after: PROVIDER_RETRY })?;
        Ok(ProviderPermit { _permit: permit })
    }

    /// Says how a refusal of this caller is to be written: on its own, or counted here with others, to be written
    /// later. A flood of refusals then costs one entry, and loses none.
    pub fn count_limited(&self, caller: &Caller) -> Tally {
        let second = self.started.elapsed().as_secs();
        let mut refusals = lock(&self.refusals);
        if refusals.len() >= self.max_tracked && !refusals.contains_key(caller.id()) {
            return Tally::Record;
        }
        let of_caller = refusals.entry(caller.id().clone()).or_default();
        if of_caller.second != second {
            (of_caller.second, of_caller.single) = (second, 0);
        }
        if of_caller.single < SINGLE_REFUSALS_PER_SECOND {
            of_caller.single += 1;
            return Tally::Record;
        }
        of_caller.counted = of_caller.counted.saturating_add(1);
        Tally::Counted
    }

    /// The refusals counted since the last call, by caller; whoever takes them writes them.
    pub fn take_counted(&self) -> Vec<(SpiffeId, u32)> {
        let second = self.started.elapsed().as_secs();
        let mut refusals = lock(&self.refusals);
        let counted = refusals.iter_mut().filter(|(_, of_caller)| of_caller.counted > 0);
        let counted =
            counted.map(|(caller, of_caller)| (caller.clone(), std::mem::take(&mut of_caller.counted))).collect();
        refusals.retain(|_, of_caller| of_caller.second == second);
        counted
    }

    /// Counts refusals again that were taken and could not be written.
    pub fn count_again(&self, caller: SpiffeId, count: u32) {
        let mut refusals = lock(&self.refusals);
        let of_caller = refusals.entry(caller).or_default();
        of_caller.counted = of_caller.counted.saturating_add(count);
    }

    fn places(&self, provider: &DepartmentCode) -> Arc<Semaphore> {
        let mut providers = lock(&self.providers);
        if let Some(places) = providers.get(provider) {
            return places.clone();
        }
        let bound = self.in_flight_of.get(provider).unwrap_or(&self.in_flight).get();
        let bound = usize::try_from(bound).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        providers.entry(provider.clone()).or_insert(Arc::new(Semaphore::new(bound))).clone()
    }
}

/// Who asked stays out of logs.
impl fmt::Debug for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limits").finish_non_exhaustive()
    }
}

/// A place among the calls in flight to a provider, until it is dropped.
#[derive(Debug)]
#[must_use = "dropping it gives the place away"]
pub struct ProviderPermit {
    _permit: OwnedSemaphorePermit,
}

/// What attempts to verify are counted under: the subject, in whatever case, and the certificate type in its case, by
/// whatever keys the subject is named.
#[derive(Clone, Copy)]
pub struct Verified<'a> {
    /// Who asks.
    pub consumer: &'a DepartmentCode,
    /// The number that stands for the subject; see [`Limits::admit_subject`].
    pub holder: &'a str,
    /// The case.
    pub case_id: &'a CaseId,
    /// Code of the certificate type.
    pub certificate_type: &'a str,
}

/// Whom it is about stays out of logs.
impl fmt::Debug for Verified<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verified").finish_non_exhaustive()
    }
}

/// An attempt to verify. Unless it is given back, it counts as wrong: so does a call that was cut short.
#[derive(Debug)]
#[must_use = "an attempt that was right is given back"]
pub struct Attempt([Taken; 2]);

/// Refused for its rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many calls: limit per {scope}; again in {} ms", .retry_after.as_millis())]
pub struct Limited {
    /// Which limit.
    pub scope: Scope,
    /// How long to wait.
    pub retry_after: Duration,
}

/// How a refusal is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a refusal that is neither recorded nor counted is lost"]
pub enum Tally {
    /// As an entry of its own.
    Record,
    /// Counted; [`Limits::take_counted`] gives it back.
    Counted,
}

/// What the locks guard is valid after each statement, so a panic elsewhere changes nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::testing;

    fn limits(config: &str) -> Limits {
        Limits::new(&toml::from_str(config).unwrap())
    }

    fn code(code: &str) -> DepartmentCode {
        code.parse().unwrap()
    }

    #[test]
    fn a_caller_is_limited_alone() {
        let limits = limits("caller_per_second = 1\ncaller_burst = 2");
        let one = testing::caller("spiffe://heshan.gov.example/GA/one");
        let renewed = testing::caller("spiffe://heshan.gov.example/GA/one");
        let two = testing::caller("spiffe://heshan.gov.example/GA/two");
        limits.admit_caller(&one).unwrap();
        limits.admit_caller(&renewed).unwrap();
        let limited = limits.admit_caller(&one).unwrap_err();
        assert_eq!(limited.scope, Scope::Caller);
        assert!(limited.retry_after > Duration::ZERO && limited.retry_after <= Duration::from_secs(1), "{limited}");
        limits.admit_caller(&two).unwrap();
    }

    #[test]
    fn a_subject_is_limited_per_consumer() {
        let limits = limits("subject_per_minute = 1\nsubject_burst = 1");
        limits.admit_subject(&code("GA"), "99999919900101002X").unwrap();
        let limited = limits.admit_subject(&code("GA"), "99999919900101002X").unwrap_err();
        assert_eq!(limited.scope, Scope::Subject);
        assert!(limited.retry_after > Duration::from_secs(50), "{limited}");
        limits.admit_subject(&code("GA"), "999999199001010038").unwrap();
        limits.admit_subject(&code("WJ"), "99999919900101002X").unwrap();
        assert!(!format!("{limits:?} {limited:?} {limited}").contains("999999"));
    }

    #[test]
    fn attempts_count_for_the_subject_and_for_the_case() {
        let limits = limits("verify_per_subject_per_hour = 2\nverify_other_days_per_subject = 1");
        let (consumer, cases) = (code("WJ"), ["HS-2026-000001".parse().unwrap(), "HS-2026-000002".parse().unwrap()]);
        let verified = |holder, case: usize, certificate_type| Verified {
            consumer: &consumer,
            holder,
            case_id: &cases[case],
            certificate_type,
        };
        // Twice about one subject, whatever the case.
        let _ = (limits.attempt(&verified("a", 0, "t")).unwrap(), limits.attempt(&verified("a", 1, "t")).unwrap());
        assert_eq!(limits.attempt(&verified("a", 1, "u")).unwrap_err().scope, Scope::Attempts);
        // Twice in one case, whatever keys name the subject.
        let _ = limits.attempt(&verified("b", 0, "t")).unwrap();
        for holder in ["c", "d", "e"] {
            assert!(limits.attempt(&verified(holder, 0, "t")).is_err(), "{holder}");
        }
        // What was refused for the case cost the subject nothing, and what was right costs neither.
        for _ in 0..3 {
            let attempt = limits.attempt(&verified("c", 1, "u")).unwrap();
            limits.was_right(attempt);
        }
        limits.other_day(&verified("f", 1, "v")).unwrap();
        assert!(limits.other_day(&verified("f", 0, "v")).is_err() && limits.other_day(&verified("g", 1, "v")).is_err());
        let wait = limits.other_day(&verified("f", 1, "v")).unwrap_err().retry_after;
        assert!(wait > 29 * Duration::from_hours(24), "{wait:?}");
        assert!(!format!("{:?}", verified("99999919900101002X", 0, "t")).contains("9999"));
    }

    #[test]
    fn a_provider_has_its_places() {
        let limits = limits("provider_in_flight = 2\n[providers]\nMZ = 1");
        let held = [limits.provider(&code("WJ")).unwrap(), limits.provider(&code("WJ")).unwrap()];
        let limited = limits.provider(&code("WJ")).unwrap_err();
        assert_eq!((limited.scope, limited.retry_after), (Scope::Provider, PROVIDER_RETRY));
        let single = limits.provider(&code("MZ")).unwrap();
        assert!(limits.provider(&code("MZ")).is_err());
        drop((held, single));
        let _again = (limits.provider(&code("WJ")).unwrap(), limits.provider(&code("MZ")).unwrap());
    }

    #[test]
    fn refusals_beyond_ten_a_second_are_counted_and_none_is_lost() {
        let limits = limits("");
        let one = testing::caller("spiffe://heshan.gov.example/GA/one");
        let two = testing::caller("spiffe://heshan.gov.example/GA/two");
        let recorded = (0..1000).filter(|_| limits.count_limited(&one) == Tally::Record).count();
        // Ten, or twenty if a second ended on the way.
        assert!(recorded == 10 || recorded == 20, "{recorded}");
        assert_eq!(limits.count_limited(&two), Tally::Record);
        let counted = limits.take_counted();
        assert_eq!(counted, [(one.id().clone(), u32::try_from(1000 - recorded).unwrap())]);
        assert!(limits.take_counted().is_empty());
        for (caller, count) in counted.clone() {
            limits.count_again(caller, count);
        }
        assert_eq!(limits.take_counted(), counted);
    }

    #[test]
    fn settings_that_mean_nothing_are_refused() {
        for wrong in ["caller_burst = 0", "max_tracked = 0", "calls = 1", "[providers]\nwj = 1", "[providers]\nWJ = 0"]
        {
            assert!(toml::from_str::<LimitsConfig>(wrong).is_err(), "{wrong}");
        }
    }
}
