//! Time as an argument: every room takes it from a [`Clock`], so tests can set it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{Date, OffsetDateTime, PrimitiveDateTime, Time, UtcOffset};

/// A point in time, microseconds since 1970-01-01 UTC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Timestamp(u64);

impl Timestamp {
    /// From microseconds since 1970-01-01 UTC.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// From seconds since 1970-01-01 UTC.
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs.saturating_mul(1_000_000))
    }

    /// Microseconds since 1970-01-01 UTC.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// Whole seconds since 1970-01-01 UTC.
    pub const fn as_secs(self) -> u64 {
        self.0 / 1_000_000
    }

    /// Time passed since `earlier`, zero if it lies ahead.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// This point plus `duration`.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)))
    }

    /// The calendar date in China Standard Time (UTC+8, no daylight saving).
    pub fn date_in_china(self) -> Date {
        self.in_china().date()
    }

    /// The first moment of a day in China Standard Time; the earliest point for days before 1970.
    pub fn start_of_day_in_china(day: Date) -> Self {
        let start = PrimitiveDateTime::new(day, Time::MIDNIGHT).assume_offset(china());
        Self::from_secs(u64::try_from(start.unix_timestamp()).unwrap_or_default())
    }

    /// Date and time of day in China Standard Time.
    pub fn in_china(self) -> OffsetDateTime {
        self.in_offset(china())
    }

    /// RFC 3339 text in UTC, always with six digits of a second.
    pub fn to_rfc3339(self) -> String {
        const FORM: &[BorrowedFormatItem<'_>] =
            format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");
        self.in_offset(UtcOffset::UTC).format(FORM).unwrap_or_default()
    }

    fn in_offset(self, offset: UtcOffset) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1000)
            .unwrap_or(OffsetDateTime::UNIX_EPOCH)
            .to_offset(offset)
    }
}

fn china() -> UtcOffset {
    UtcOffset::from_hms(8, 0, 0).unwrap_or(UtcOffset::UTC)
}

/// Where the time comes from. Cheap to clone; clones of a manual clock share their hand.
#[derive(Clone, Debug, Default)]
pub struct Clock(Option<Arc<AtomicU64>>);

impl Clock {
    /// The machine's clock.
    pub const fn system() -> Self {
        Self(None)
    }

    /// A clock that stands still at `start` until [`Clock::advance`] moves it.
    pub fn manual(start: Timestamp) -> Self {
        Self(Some(Arc::new(AtomicU64::new(start.0))))
    }

    /// Now.
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Some(hand) => Timestamp(hand.load(Ordering::SeqCst)),
            None => Timestamp(u64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos() / 1000).unwrap_or(0)),
        }
    }

    /// Moves a manual clock on; does nothing to the system's.
    pub fn advance(&self, by: Duration) {
        if let Some(hand) = &self.0 {
            hand.fetch_add(u64::try_from(by.as_micros()).unwrap_or(u64::MAX), Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_day_turns_at_midnight_in_china() {
        // 2026-11-23 15:59:59 UTC is the last second of the 23rd in China.
        let evening = Timestamp::from_secs(1_795_449_599);
        assert_eq!(evening.date_in_china().to_string(), "2026-11-23");
        let morning = evening.plus(Duration::from_secs(1));
        assert_eq!(morning.date_in_china().to_string(), "2026-11-24");
        assert_eq!(Timestamp::start_of_day_in_china(morning.date_in_china()), morning);
    }

    #[test]
    fn times_are_written_with_all_their_digits() {
        assert_eq!(Timestamp::from_micros(1_795_449_599_500_000).to_rfc3339(), "2026-11-23T15:59:59.500000Z");
    }

    #[test]
    fn a_manual_clock_moves_only_by_hand() {
        let clock = Clock::manual(Timestamp::from_secs(5));
        let same = clock.clone();
        clock.advance(Duration::from_secs(2));
        assert_eq!(same.now(), Timestamp::from_secs(7));
    }
}
