//! Comparing claimed values with a record inside the gateway (核验). Only the results leave, and only of what was decided
//! that it may be compared.
//!
//! | field | equal if |
//! | --- | --- |
//! | text, names, numbers of documents | the same characters; full width and half width are the same, so are capital and small ASCII letters; white space and the form of the dot in names do not count; traditional and simplified characters differ |
//! | code of a table | the same bytes |
//! | date | the same day, whatever the time of day |
//! | date and time | the same minute, or the same day if only a day is claimed |
//! | decimal | the same value: `12.50` is `12.5` |
//! | boolean, whole number | the same value |
//! | enum | the same value, claimed by name (`STATUS_VALID`, `VALID`) or number |
//! | predicate | it holds (`true`, or the day on which), or does not (`false`) |
//!
//! A field of a list matches if one of its values does. A value that is absent, or not of its form, can't be compared.
//! Claims and values are compared by the hash of their canonical form, in constant time, and every one of them is, so the
//! time taken tells neither which field differed nor where.

use std::fmt;

use aws_lc_rs::{constant_time, digest};
use time::{Date, Duration};

use super::has_completed;
use super::scan::{Found, Scan};
use super::settle::Settled;
use super::wire::ProjectError;
use crate::catalog::checks::{self, CheckError};
use crate::catalog::{CertificateType, Leaf, Predicate, Scalar, ValueKind};

/// A predicate can be asked for days this near to today, before and after; one of an age for today alone.
const MAX_DAYS: Duration = Duration::days(366);

/// A value that a caller claims for one field. The value itself is not kept.
#[derive(Clone, PartialEq, Eq)]
pub struct Claim {
    field: usize,
    form: Form,
    digest: [u8; 32],
    other_day: bool,
}

/// How values become canonical.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    Text,
    Code,
    Date,
    DateTime,
    Month,
    Decimal,
    Flag,
    Choice,
    Integer,
    /// A predicate on a day.
    Holds(Date),
}

/// A claim that no record could answer. Repeats nothing that was sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ClaimError {
    /// Neither a leaf path nor a predicate of the type.
    #[error("no such field")]
    Unknown,
    /// The field's value can't be compared, whatever it is.
    #[error("a field of this type can't be compared")]
    Incomparable,
    /// An age for another day than today: day by day, that tells the birthday.
    #[error("an age is told for today alone")]
    OtherDay,
    /// The value is not of the field's form.
    #[error("{0}")]
    Invalid(#[from] CheckError),
}

/// What comparing one field came to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Compared {
    /// The record says the same.
    Match,
    /// The record says something else.
    Mismatch,
    /// There is no value, or it may not be compared.
    CannotTell,
}

impl Compared {
    /// Its number in `gateway.v1.ComparisonResult`.
    pub const fn number(self) -> u8 {
        match self {
            Self::Match => 1,
            Self::Mismatch => 2,
            Self::CannotTell => 3,
        }
    }
}

impl Claim {
    /// A claim for the leaf or predicate that `path` names. `today` is the day in China.
    ///
    /// # Errors
    /// If the type has no such field, the field can't be compared, or the value is not 1 to 256 bytes of its form.
    pub fn new(kind: &CertificateType, path: &str, value: &str, today: Date) -> Result<Self, ClaimError> {
        let field = kind.comparable(path).ok_or(ClaimError::Unknown)?;
        checks::text(value)?;
        if let Some(leaf) = kind.leaves.get(field) {
            let form = Form::of(leaf, value).ok_or(ClaimError::Incomparable)?;
            let canonical = form.of_claim(leaf, value)?;
            return Ok(Self { field, form, digest: hash(&canonical), other_day: false });
        }
        let (day, holds) = match folded(value).as_str() {
            "TRUE" => (today, true),
            "FALSE" => (today, false),
            day => (checks::date(day)?, true),
        };
        if (day - today).abs() > MAX_DAYS {
            return Err(CheckError::Calendar.into());
        }
        let other_day = day != today;
        if other_day && kind.predicate(field).is_some_and(|predicate| predicate.born.is_some()) {
            return Err(ClaimError::OtherDay);
        }
        Ok(Self { field, form: Form::Holds(day), digest: hash(flag(holds)), other_day })
    }

    /// The leaf or predicate, by its index in the certificate type.
    pub fn field(&self) -> usize {
        self.field
    }

    /// True if a predicate is asked for another day than today: day by day, that finds out a date.
    pub fn is_of_another_day(&self) -> bool {
        self.other_day
    }
}

/// Nothing of the value.
impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claim").field("field", &self.field).finish_non_exhaustive()
    }
}

/// Compares every claim with one record. What was not decided to be comparable is [`Compared::CannotTell`], and its value
/// is not looked at.
///
/// # Errors
/// If the record is no message.
pub fn compare(settled: &Settled<'_>, claims: &[Claim]) -> Result<Vec<Compared>, ProjectError> {
    let kind = settled.permit().certificate_type();
    let allowed = settled.released();
    let wanted = claims.iter().map(Claim::field).filter(|field| allowed.contains(*field)).collect();
    let values = Values { scan: Scan::of(&kind.root, settled.record(), kind.sources(wanted))? };
    let result = |claim: &Claim| match (allowed.contains(claim.field), kind.predicate(claim.field), claim.form) {
        (true, Some(predicate), Form::Holds(day)) => match values.holds(predicate, day) {
            Some(holds) => compared(same(&hash(flag(holds)), &claim.digest)),
            None => Compared::CannotTell,
        },
        (true, None, _) => values.leaf(claim),
        _ => Compared::CannotTell,
    };
    Ok(claims.iter().map(result).collect())
}

struct Values<'a> {
    scan: Scan<'a>,
}

impl Values<'_> {
    fn leaf(&self, claim: &Claim) -> Compared {
        let (mut equal, mut known, mut unclear) = (false, false, self.scan.ambiguous().contains(claim.field));
        for (_, value) in self.scan.values().filter(|(leaf, _)| *leaf == claim.field) {
            match claim.form.of_record(value) {
                Some(canonical) => {
                    known = true;
                    equal |= same(&hash(&canonical), &claim.digest);
                }
                None => unclear = true,
            }
        }
        match (equal, known && !unclear) {
            (true, _) if !self.scan.ambiguous().contains(claim.field) => Compared::Match,
            (false, true) => Compared::Mismatch,
            _ => Compared::CannotTell,
        }
    }

    /// None if it can't be told: no part is known not to hold, but not all are known to.
    fn holds(&self, predicate: &Predicate, day: Date) -> Option<bool> {
        let flags = predicate.flags.iter().map(|leaf| self.number(leaf).map(|number| number != 0));
        let state = predicate.state.iter().map(|(leaf, states)| {
            let state = self.number(*leaf).and_then(|number| i32::try_from(number.cast_signed()).ok());
            state.filter(|state| *state != 0).map(|state| states.contains(&state))
        });
        let from = predicate.from.iter().map(|leaf| self.date(*leaf).map(|date| day >= date));
        let until = predicate.until.iter().map(|leaf| {
            let endless = predicate.open_ended && self.scan.values().all(|(other, _)| other != *leaf);
            if endless { Some(true) } else { self.date(*leaf).map(|date| day <= date) }
        });
        let born = predicate.born.iter().map(|(leaf, years)| Some(has_completed(self.date(*leaf)?, *years, day)));
        let parts: Vec<_> = flags.chain(state).chain(from).chain(until).chain(born).collect();
        if parts.contains(&Some(false)) {
            return Some(false);
        }
        parts.iter().all(Option::is_some).then_some(true)
    }

    /// The one value of a leaf.
    fn one(&self, leaf: usize) -> Option<Found<'_>> {
        let found = self.scan.values().find(|(known, _)| *known == leaf).map(|(_, value)| value);
        found.filter(|_| !self.scan.ambiguous().contains(leaf))
    }

    fn number(&self, leaf: usize) -> Option<u64> {
        if let Some(Found::Number(number)) = self.one(leaf) { Some(number) } else { None }
    }

    fn date(&self, leaf: usize) -> Option<Date> {
        if let Some(Found::Text(text)) = self.one(leaf) { date_part(text).and_then(checks::date).ok() } else { None }
    }
}

impl Form {
    /// The form in which values of a leaf are compared with `claim`; none for those that can't be.
    fn of(leaf: &Leaf, claim: &str) -> Option<Self> {
        Some(match (&leaf.scalar, leaf.kind) {
            (Scalar::Bool, _) => Self::Flag,
            (Scalar::Enum(_), _) => Self::Choice,
            (Scalar::Integer, _) => Self::Integer,
            (Scalar::Opaque, _) | (Scalar::Text, ValueKind::Image) => return None,
            (Scalar::Text, ValueKind::Code) => Self::Code,
            (Scalar::Text, ValueKind::DateTime) if folded(claim).contains('T') => Self::DateTime,
            (Scalar::Text, ValueKind::Date | ValueKind::DateTime) => Self::Date,
            (Scalar::Text, ValueKind::Month) => Self::Month,
            (Scalar::Text, ValueKind::Decimal) => Self::Decimal,
            (Scalar::Text, _) => Self::Text,
        })
    }

    fn of_claim(self, leaf: &Leaf, value: &str) -> Result<String, CheckError> {
        let folded = folded(value);
        match self {
            Self::Flag if matches!(folded.as_str(), "TRUE" | "FALSE") => Ok(folded),
            Self::Choice => choice(&leaf.scalar, &folded).map(|number| number.to_string()).ok_or(CheckError::Character),
            Self::Integer => {
                let number: i128 = folded.parse().map_err(|_| CheckError::Character)?;
                let signed = i64::try_from(number).map(i64::cast_unsigned);
                Ok(u64::try_from(number).or(signed).map_err(|_| CheckError::Length)?.to_string())
            }
            Self::Flag | Self::Holds(_) => Err(CheckError::Character),
            _ => self.of_text(value),
        }
    }

    /// None if the value is not of the form.
    fn of_record(self, value: Found<'_>) -> Option<String> {
        match (self, value) {
            (Self::Flag, Found::Number(number)) => Some(flag(number != 0).to_owned()),
            (Self::Choice, Found::Number(number)) => {
                // Zero stands for a value that is not known.
                let number = i32::try_from(number.cast_signed()).ok().filter(|number| *number != 0);
                number.map(|number| number.to_string())
            }
            (Self::Integer, Found::Number(number)) => Some(number.to_string()),
            (_, Found::Text(text)) => self.of_text(text).ok(),
            _ => None,
        }
    }

    fn of_text(self, value: &str) -> Result<String, CheckError> {
        let folded = folded(value);
        match self {
            Self::Code => Ok(value.to_owned()),
            Self::Date => date_part(&folded).and_then(checks::date).map(|date| date.to_string()),
            Self::DateTime => checks::datetime(&folded).map(|()| folded),
            Self::Month => checks::month(&folded).map(|()| folded),
            Self::Decimal => checks::decimal(&folded).map(|()| decimal(&folded)),
            Self::Text if folded.is_empty() => Err(CheckError::Length),
            Self::Text => Ok(folded),
            Self::Flag | Self::Choice | Self::Integer | Self::Holds(_) => Err(CheckError::Character),
        }
    }
}

/// Full-width forms as half-width ones, ASCII letters as capitals, dots in names as one dot, no white space.
fn folded(value: &str) -> String {
    let narrow = |letter: char| match letter {
        // U+FF01 to U+FF5E are U+0021 to U+007E in full width.
        '\u{ff01}'..='\u{ff5e}' => char::from_u32(u32::from(letter) - 0xfee0).unwrap_or(letter),
        // Bullet, hyphenation point and the katakana dots, as they are typed in names such as 买买提·艾力.
        '\u{2022}' | '\u{2027}' | '\u{30fb}' | '\u{ff65}' => '\u{b7}',
        _ => letter,
    };
    value
        .chars()
        .map(narrow)
        .filter(|letter| !letter.is_whitespace())
        .map(|letter| letter.to_ascii_uppercase())
        .collect()
}

/// The day of a date, or of a date and time.
fn date_part(value: &str) -> Result<&str, CheckError> {
    match value.split_at_checked(10) {
        Some((_, "")) => Ok(value),
        Some((day, time)) if time.starts_with('T') => Ok(day),
        _ => Err(CheckError::Length),
    }
}

/// A decimal of checked form without what does not change its value: zeros at the end of the fraction, the sign of zero.
fn decimal(checked: &str) -> String {
    let shortest = match checked.split_once('.') {
        Some((whole, fraction)) if fraction.trim_end_matches('0').is_empty() => whole.to_owned(),
        Some((whole, fraction)) => format!("{whole}.{}", fraction.trim_end_matches('0')),
        None => checked.to_owned(),
    };
    if shortest == "-0" { "0".to_owned() } else { shortest }
}

/// The number of an enum's value that is named or numbered; the zero value is none.
fn choice(scalar: &Scalar, claimed: &str) -> Option<i32> {
    let Scalar::Enum(values) = scalar else { return None };
    let zero = values.iter().find(|(number, _)| *number == 0);
    let prefix = zero.and_then(|(_, name)| name.strip_suffix("UNSPECIFIED")).unwrap_or_default();
    let is_claimed = |(number, name): &&(i32, String)| {
        name == claimed || name.strip_prefix(prefix) == Some(claimed) || number.to_string() == claimed
    };
    values.iter().find(is_claimed).map(|(number, _)| *number).filter(|number| *number != 0)
}

const fn flag(value: bool) -> &'static str {
    if value { "TRUE" } else { "FALSE" }
}

const fn compared(equal: bool) -> Compared {
    if equal { Compared::Match } else { Compared::Mismatch }
}

fn hash(canonical: &str) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest::digest(&digest::SHA256, canonical.as_bytes()).as_ref());
    bytes
}

fn same(left: &[u8; 32], right: &[u8; 32]) -> bool {
    constant_time::verify_slices_are_equal(left, right).is_ok()
}
