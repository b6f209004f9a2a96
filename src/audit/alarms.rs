//! The log itself tells since when, and until when, it was less safe than it should be: DEGRADED and RECOVERED entries.

use std::collections::VecDeque;
use std::time::Duration;

use super::{AppendError, Entry, Journal};
use crate::clock::Timestamp;

/// Changes that may wait for a log that takes no entry; further ones are seen when it does.
const MOST: usize = 64;
/// From here on an entry says when the change was seen: the entry's own time is then another.
const LATE: Duration = Duration::from_secs(5);

/// Alarms of a log as far as they are seen, and what the log has not been told yet: one that begins and ends while the log
/// takes no entry is told afterwards.
#[derive(Debug, Default)]
pub struct Alarms {
    raised: Vec<&'static str>,
    untold: VecDeque<Change>,
}

#[derive(Debug, Clone, Copy)]
struct Change {
    begun: bool,
    alarm: &'static str,
    at: Timestamp,
}

impl Alarms {
    /// Sees the log's alarms as they are `now`, and writes what it has not been told.
    pub async fn record(&mut self, journal: &Journal, now: Timestamp) {
        self.see(&journal.status().alarms, now);
        while let Some(change) = self.untold.front() {
            match journal.append(change.entry(now)).await {
                // What was too slow is written all the same.
                Ok(_) | Err(AppendError::TooSlow) => self.untold.pop_front(),
                Err(_) => return,
            };
        }
    }

    fn see(&mut self, alarms: &[&'static str], at: Timestamp) {
        let (begun, over): (Vec<_>, Vec<_>) = (
            alarms.iter().filter(|alarm| !self.raised.contains(alarm)).copied().collect(),
            self.raised.iter().filter(|alarm| !alarms.contains(alarm)).copied().collect(),
        );
        let changes = begun.into_iter().map(|alarm| (true, alarm)).chain(over.into_iter().map(|alarm| (false, alarm)));
        for (begun, alarm) in changes.take(MOST - self.untold.len()) {
            self.untold.push_back(Change { begun, alarm, at });
            if begun {
                self.raised.push(alarm);
            } else {
                self.raised.retain(|raised| *raised != alarm);
            }
        }
    }
}

impl Change {
    fn entry(self, now: Timestamp) -> Entry {
        let Self { begun, alarm, at } = self;
        let what = if now.since(at) > LATE { format!("{alarm}; seen {}", at.to_rfc3339()) } else { alarm.to_owned() };
        if begun { Entry::Degraded(what) } else { Entry::Recovered(what) }
    }
}
