//! Working days: the State Council's yearly notice of holidays, as data (`holidays.toml`).
//!
//! ```toml
//! [2026]
//! source = "国办发明电〔2025〕7号"
//! holidays = ["2026-01-01/2026-01-03"]   # first and last day
//! workdays = ["2026-01-04"]              # Saturdays and Sundays that are worked (调休)
//! ```
//!
//! Nothing is guessed for a year that the table lacks: its working days are unknown, so a condition on them holds for
//! nobody. The gateway's status and a metric warn [`DUE`] before, if a grant or deny names such a condition.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;
use time::macros::format_description;
use time::{Date, Duration, Weekday};
use toml::Spanned;

use crate::catalog::Faults;

/// How long before the days of the table end somebody should be told: the notice for a year comes in November.
pub(super) const DUE: Duration = Duration::days(45);

/// The years of the table.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Holidays {
    years: BTreeMap<i32, Year>,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Year {
    off: BTreeSet<Date>,
    worked: BTreeSet<Date>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct YearEntry {
    /// The notice that it follows.
    source: Spanned<String>,
    holidays: Vec<Spanned<String>>,
    #[serde(default)]
    workdays: Vec<Spanned<String>>,
}

impl Holidays {
    /// True if the table has the year.
    pub(super) fn has(&self, year: i32) -> bool {
        self.years.contains_key(&year)
    }

    /// True on a working day, none if the table lacks the year.
    pub(super) fn is_workday(&self, date: Date) -> Option<bool> {
        let year = self.years.get(&date.year())?;
        let weekend = matches!(date.weekday(), Weekday::Saturday | Weekday::Sunday);
        Some(year.worked.contains(&date) || !(weekend || year.off.contains(&date)))
    }

    /// Reads the table; every fault with its line.
    pub(super) fn parse(file: &Path, text: &str, faults: &mut Faults) -> Self {
        let mut holidays = Self::default();
        let Some(table) = faults.table(file, text) else { return holidays };
        let Some(years) = faults.typed::<BTreeMap<Spanned<String>, YearEntry>>(file, text, table) else {
            return holidays;
        };
        for (name, entry) in years {
            let Ok(number) = name.get_ref().parse::<i32>() else {
                faults.at(file, text, name.span().start, "a year, for example [2026]");
                continue;
            };
            if entry.source.get_ref().trim().is_empty() {
                faults.at(file, text, entry.source.span().start, "source is the notice that the year follows");
            }
            let mut year = Year::default();
            for written in &entry.holidays {
                match days(written.get_ref()) {
                    Some((first, last)) if first.year() == number && last.year() == number => {
                        year.off
                            .extend(std::iter::successors(Some(first), |day| day.next_day().filter(|d| *d <= last)));
                    }
                    _ => {
                        faults.at(file, text, written.span().start, format!("days of {number}: YYYY-MM-DD/YYYY-MM-DD"));
                    }
                }
            }
            for written in &entry.workdays {
                match date(written.get_ref()) {
                    Some(day)
                        if day.year() == number && matches!(day.weekday(), Weekday::Saturday | Weekday::Sunday) =>
                    {
                        year.worked.insert(day);
                    }
                    _ => faults.at(file, text, written.span().start, format!("a Saturday or Sunday of {number}")),
                }
            }
            if let Some(both) = year.off.intersection(&year.worked).next() {
                faults.at(file, text, name.span().start, format!("{both} is both off and worked"));
            }
            holidays.years.insert(number, year);
        }
        holidays
    }
}

/// One day, or the first and the last of several, at most a month.
fn days(text: &str) -> Option<(Date, Date)> {
    let (first, last) = text.split_once('/').unwrap_or((text, text));
    let (first, last) = (date(first)?, date(last)?);
    (first <= last && (last - first).whole_days() < 31).then_some((first, last))
}

fn date(text: &str) -> Option<Date> {
    Date::parse(text, format_description!("[year]-[month]-[day]")).ok()
}

#[cfg(test)]
mod tests {
    use time::macros::date;

    use super::*;

    fn parse(text: &str) -> Result<Holidays, Faults> {
        let mut faults = Faults::default();
        let holidays = Holidays::parse(Path::new("holidays.toml"), text, &mut faults);
        faults.or(holidays)
    }

    #[test]
    fn the_reference_table_knows_2026() {
        let holidays = parse(include_str!("../../deploy/heshan/policy/holidays.toml")).unwrap();
        for (day, worked) in [
            (date!(2026 - 01 - 01), false),
            (date!(2026 - 01 - 04), true), // a Sunday, worked
            (date!(2026 - 01 - 10), false),
            (date!(2026 - 02 - 16), false),
            (date!(2026 - 02 - 28), true), // a Saturday, worked
            (date!(2026 - 03 - 02), true),
            (date!(2026 - 10 - 07), false),
        ] {
            assert_eq!(holidays.is_workday(day), Some(worked), "{day}");
        }
        assert_eq!(holidays.is_workday(date!(2031 - 01 - 06)), None, "a year that it lacks is not guessed");
    }

    #[test]
    fn every_fault_has_its_line() {
        let faults = parse(
            "[2026]\nsource = \"\"\nholidays = [\"2026-01-03/2026-01-01\",\n\"2025-12-31\", \"2026-01-10\"]\n\
             workdays = [\n\"2026-01-05\",\n\"2026-01-10\"]\n[later]\nsource = \"x\"\nholidays = []\n",
        )
        .unwrap_err();
        let lines: Vec<_> = faults.0.iter().map(|fault| fault.line.unwrap()).collect();
        assert_eq!(lines, [2, 3, 4, 6, 1, 8], "{faults}");
        assert!(parse("[2026]\nsource = \"x\"\nholidays = []\nworkday = []\n").is_err(), "unknown keys are refused");
    }
}
