//! What a record says: is it about the subject that was asked for, and does a condition on it hold? A provider that mixes
//! up its answers must not have them released.

use std::collections::HashMap;

use super::wire::{Payload, ProjectError, Reader, child, stands_as};
use crate::catalog::{CertificateType, Child, Fields, Node, Subject, SubjectKey, ValueKind, Wire};

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
    let mut scan = Scan::of(wanted);
    if scan.message(&certificate_type.root, record, 0).is_err() || scan.ambiguous || keys.is_empty() {
        return false;
    }
    keys.iter().all(|key| {
        if key.matches.is_empty() {
            let mut echoes = echoed.iter().filter(|(name, _)| *name == key.name).peekable();
            echoes.peek().is_some() && echoes.all(|(_, value)| equals(key, value))
        } else {
            scan.values.iter().any(|(leaf, value)| key.matches.contains(*leaf) && equals(key, value))
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
pub(super) fn any_equals(
    certificate_type: &CertificateType,
    record: &[u8],
    leaves: Fields,
    numbers: &[&str],
) -> Result<Option<bool>, ProjectError> {
    let mut scan = Scan::of(leaves);
    scan.message(&certificate_type.root, record, 0)?;
    if scan.ambiguous || scan.values.is_empty() || numbers.is_empty() {
        return Ok(None);
    }
    Ok(Some(scan.values.iter().any(|(_, value)| numbers.iter().any(|number| value.eq_ignore_ascii_case(number)))))
}

/// The value of a boolean leaf; none if it is absent or stands there with both values.
pub(super) fn flag(
    certificate_type: &CertificateType,
    record: &[u8],
    leaves: Fields,
) -> Result<Option<bool>, ProjectError> {
    let (mut seen_true, mut seen_false) = (false, false);
    flags(&certificate_type.root, record, leaves, &mut |value| {
        seen_true |= value;
        seen_false |= !value;
    })?;
    Ok((seen_true != seen_false).then_some(seen_true))
}

fn flags(node: &Node, record: &[u8], leaves: Fields, seen: &mut impl FnMut(bool)) -> Result<(), ProjectError> {
    let mut reader = Reader::new(record);
    while let Some(field) = reader.field()? {
        match child(node, field.number) {
            Some(Child::Leaf { leaf, .. }) if leaves.contains(*leaf) && field.payload == Payload::Varint => {
                // Zero however long its encoding.
                seen(field.value.iter().any(|byte| byte & 0x7f != 0));
            }
            Some(Child::Message { node, below, .. })
                if field.payload == Payload::Delimited && below.intersects(leaves) =>
            {
                flags(node, field.value, leaves, seen)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Collects the values of the wanted string leaves.
struct Scan<'a> {
    wanted: Fields,
    values: Vec<(usize, &'a str)>,
    /// First value of each singular leaf within one list element (0: outside of lists).
    singular: HashMap<(usize, u32), &'a str>,
    elements: u32,
    ambiguous: bool,
}

impl<'a> Scan<'a> {
    fn of(wanted: Fields) -> Self {
        Self { wanted, values: Vec::new(), singular: HashMap::new(), elements: 0, ambiguous: false }
    }

    /// `element` is the innermost list element around; a singular message that occurs twice is one, as decoders merge it.
    fn message(&mut self, node: &Node, record: &'a [u8], element: u32) -> Result<(), ProjectError> {
        let mut reader = Reader::new(record);
        while let Some(field) = reader.field()? {
            match child(node, field.number) {
                Some(Child::Leaf { leaf, wire: Wire::String, repeated })
                    if self.wanted.contains(*leaf) && stands_as(Wire::String, *repeated, field.payload) =>
                {
                    let value = str::from_utf8(field.value).map_err(|_| ProjectError::NotUtf8)?;
                    self.values.push((*leaf, value));
                    if !repeated {
                        self.ambiguous |= *self.singular.entry((*leaf, element)).or_insert(value) != value;
                    }
                }
                Some(Child::Message { node, below, repeated })
                    if field.payload == Payload::Delimited && below.intersects(self.wanted) =>
                {
                    let inside = if *repeated {
                        self.elements = self.elements.saturating_add(1);
                        self.elements
                    } else {
                        element
                    };
                    self.message(node, field.value, inside)?;
                }
                _ => {}
            }
        }
        Ok(())
    }
}
