//! What a record says: is it about the subject that was asked for, and does a condition on it hold? A provider that mixes
//! up its answers must not have them released.

use super::scan::{Found, Scan};
use super::wire::ProjectError;
use crate::catalog::{CertificateType, Fields, Subject, SubjectKey, ValueKind};

/// True if `record`, an encoded message of the subject's certificate type, is about `subject`.
///
/// Every key must equal a value of one of its `matches` leaves; a key without such leaves must be `echoed` by the source
/// under its name, with its value and no other. A singular match leaf that occurs twice with different values makes the
/// answer ambiguous: decoders would not agree which one counts. Ambiguous and malformed records are about nobody.
pub fn answers_subject(subject: &Subject, record: &[u8], echoed: &[(String, String)]) -> bool {
    answers_keys(subject.certificate_type(), subject.keys(), record, echoed)
}

pub(super) fn answers_keys(
    certificate_type: &CertificateType,
    keys: &[SubjectKey],
    record: &[u8],
    echoed: &[(String, String)],
) -> bool {
    let wanted = keys.iter().fold(Fields::EMPTY, |all, key| all | key.matches);
    let Ok(scan) = Scan::of(&certificate_type.root, record, wanted) else { return false };
    if !scan.ambiguous().is_empty() || keys.is_empty() {
        return false;
    }
    keys.iter().all(|key| {
        if key.matches.is_empty() {
            let mut echoes = echoed.iter().filter(|(name, _)| *name == key.name).peekable();
            echoes.peek().is_some() && echoes.all(|(_, value)| equals(key, value))
        } else {
            texts(&scan).any(|(leaf, value)| key.matches.contains(leaf) && equals(key, value))
        }
    })
}

/// How a record's value is compared with a key: codes without regard to the case of their letters (the `X` of an identity
/// number), a date also with the date part of a point in time, all else byte by byte.
fn equals(key: &SubjectKey, value: &str) -> bool {
    match key.kind {
        ValueKind::IdNumber | ValueKind::Uscc | ValueKind::PersonOrEntityNo => value.eq_ignore_ascii_case(&key.value),
        ValueKind::Date => match value.split_at_checked(10) {
            Some((date, rest)) => date == key.value && (rest.is_empty() || rest.starts_with('T')),
            None => false,
        },
        _ => value == key.value,
    }
}

/// True if a value of one of the `leaves`, which are strings, is one of `numbers`; false if there are values and none is.
/// None where it can't be told: no number, no value, or a singular leaf with two values, which decoders would not agree on.
/// An empty value is none.
pub(super) fn any_equals(
    certificate_type: &CertificateType,
    record: &[u8],
    leaves: Fields,
    numbers: &[&str],
) -> Result<Option<bool>, ProjectError> {
    let scan = Scan::of(&certificate_type.root, record, leaves)?;
    let values = || texts(&scan).map(|(_, value)| value).filter(|value| !value.is_empty());
    if !scan.ambiguous().is_empty() || values().next().is_none() || numbers.is_empty() {
        return Ok(None);
    }
    Ok(Some(values().any(|value| numbers.iter().any(|number| value.eq_ignore_ascii_case(number)))))
}

/// The value of a boolean leaf; none if it is absent or stands there with both values.
pub(super) fn flag(
    certificate_type: &CertificateType,
    record: &[u8],
    leaves: Fields,
) -> Result<Option<bool>, ProjectError> {
    let (mut seen_true, mut seen_false) = (false, false);
    for (_, value) in Scan::of(&certificate_type.root, record, leaves)?.values() {
        if let Found::Number(number) = value {
            seen_true |= number != 0;
            seen_false |= number == 0;
        }
    }
    Ok((seen_true != seen_false).then_some(seen_true))
}

fn texts<'a>(scan: &Scan<'a>) -> impl Iterator<Item = (usize, &'a str)> {
    scan.values().filter_map(|(leaf, value)| if let Found::Text(text) = value { Some((leaf, text)) } else { None })
}
