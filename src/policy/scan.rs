//! Reads the values of some leaves of an encoded record, for what is decided inside the gateway; none of them leaves it.

use std::collections::HashMap;

use super::wire::{Payload, ProjectError, Reader, child, stands_as};
use crate::catalog::{Child, Fields, Node, Wire};

/// The values of the wanted leaves that are strings or varints.
pub(super) struct Scan<'a> {
    wanted: Fields,
    values: Vec<(usize, Found<'a>)>,
    /// First value of each singular leaf within one list element (0: outside of lists).
    singular: HashMap<(usize, u32), Found<'a>>,
    elements: u32,
    ambiguous: Fields,
}

/// One value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Found<'a> {
    Text(&'a str),
    /// A varint: a number, an enum, or a boolean.
    Number(u64),
}

impl<'a> Scan<'a> {
    /// Reads a record whose message is `root`.
    pub(super) fn of(root: &Node, record: &'a [u8], wanted: Fields) -> Result<Self, ProjectError> {
        let mut scan =
            Self { wanted, values: Vec::new(), singular: HashMap::new(), elements: 0, ambiguous: Fields::EMPTY };
        scan.message(root, record, 0)?;
        Ok(scan)
    }

    /// Every value, in the order of the record.
    pub(super) fn values(&self) -> impl Iterator<Item = (usize, Found<'a>)> {
        self.values.iter().copied()
    }

    /// Singular leaves that occur twice with different values: decoders would not agree which one counts.
    pub(super) fn ambiguous(&self) -> Fields {
        self.ambiguous
    }

    /// `element` is the innermost list element around; a singular message that occurs twice is one, as decoders merge it.
    fn message(&mut self, node: &Node, record: &'a [u8], element: u32) -> Result<(), ProjectError> {
        let mut reader = Reader::new(record);
        while let Some(field) = reader.field()? {
            match child(node, field.number) {
                Some(Child::Leaf { leaf, wire, repeated })
                    if self.wanted.contains(*leaf) && stands_as(*wire, *repeated, field.payload) =>
                {
                    let singular = (!repeated).then_some(element);
                    match wire {
                        Wire::String => {
                            let text = str::from_utf8(field.value).map_err(|_| ProjectError::NotUtf8)?;
                            self.found(*leaf, singular, Found::Text(text));
                        }
                        Wire::Varint => {
                            // One number, or a packed list of them.
                            let mut numbers = Reader::new(field.value);
                            while let Some(number) = numbers.number()? {
                                self.found(*leaf, singular, Found::Number(number));
                            }
                        }
                        Wire::Bytes | Wire::Fixed32 | Wire::Fixed64 => {}
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

    fn found(&mut self, leaf: usize, singular: Option<u32>, value: Found<'a>) {
        self.values.push((leaf, value));
        if let Some(element) = singular
            && *self.singular.entry((leaf, element)).or_insert(value) != value
        {
            self.ambiguous |= Fields::one(leaf);
        }
    }
}
