//! The projector: what leaves is copied field by field from an allow-list, never cleared from a decoded message.
//!
//! A provider's answer is walked as protobuf encoding. A field whose number the certificate type does not know, or that
//! stands there in another encoding than its own, is dropped and counted; a known field that [`Settled`] does not release
//! is passed over without looking at its value; a released one is copied; a masked string is rewritten.
//!
//! Twice the same singular field: both occurrences are copied (decoders merge messages and let the last scalar win), and
//! both are masked if the field is.

use bytes::Bytes;
use prost::encoding;

use super::mask::Mask;
use super::pseudonym::Pseudonyms;
use super::settle::Settled;
use crate::catalog::{Child, Fields, Node, Wire};

/// Messages may stand in each other this deep; generated certificate types are far flatter.
const MAX_DEPTH: usize = 16;

/// One record as it may leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Projected {
    /// The encoded message: never longer than the record that it was made from, except that each masked string may have
    /// grown to a pseudonym's 26 bytes, so at most ten times as long.
    pub bytes: Bytes,
    /// Leaves that are in `bytes` in clear: released by the decision and present in the record.
    pub released: Fields,
    /// Leaves present in the record and masked, each with the mask that was applied: where a value can't be cut, that is
    /// [`Mask::Present`] instead of the decision's. A leaf of a list may stand here once with each.
    pub masked: Vec<(usize, Mask)>,
    /// How many fields were dropped because no descriptor knows them; saturates.
    pub unknown_dropped: u32,
}

/// The record is not what the certificate type describes; nothing of it may leave. Holds no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProjectError {
    /// The bytes are no protobuf message.
    #[error("not a protobuf message: {0}")]
    Malformed(&'static str),
    /// A string is not UTF-8.
    #[error("a string is not UTF-8")]
    NotUtf8,
    /// Messages stand in each other deeper than 16.
    #[error("nested deeper than {MAX_DEPTH}")]
    TooDeep,
}

/// Copies what was decided on out of the record that it was decided on.
pub fn project(settled: &Settled<'_>) -> Result<Projected, ProjectError> {
    let record = settled.record();
    let mut projection = Projection {
        settled,
        pseudonyms: settled.permit().pseudonyms.as_deref(),
        wanted: settled.released() | settled.masked().iter().fold(Fields::EMPTY, |all, (_, fields)| all | *fields),
        released: Fields::EMPTY,
        masked: Vec::new(),
        unknown_dropped: 0,
    };
    let mut bytes = Vec::with_capacity(record.len());
    projection.message(&settled.permit().certificate_type().root, record, &mut bytes, 0)?;
    let Projection { released, masked, unknown_dropped, .. } = projection;
    Ok(Projected { bytes: bytes.into(), released, masked, unknown_dropped })
}

struct Projection<'a> {
    settled: &'a Settled<'a>,
    pseudonyms: Option<&'a Pseudonyms>,
    /// Released or masked.
    wanted: Fields,
    released: Fields,
    masked: Vec<(usize, Mask)>,
    unknown_dropped: u32,
}

impl Projection<'_> {
    fn message(&mut self, node: &Node, record: &[u8], out: &mut Vec<u8>, depth: usize) -> Result<(), ProjectError> {
        if depth > MAX_DEPTH {
            return Err(ProjectError::TooDeep);
        }
        let mut reader = Reader::new(record);
        while let Some(field) = reader.field()? {
            match child(node, field.number) {
                Some(Child::Leaf { leaf, wire, repeated }) if stands_as(*wire, *repeated, field.payload) => {
                    self.leaf(*leaf, *wire, &field, out)?;
                }
                Some(Child::Message { node, below, .. }) if field.payload == Payload::Delimited => {
                    if below.intersects(self.wanted) {
                        let mut inner = Vec::with_capacity(field.value.len());
                        self.message(node, field.value, &mut inner, depth + 1)?;
                        put_delimited(out, field.number, &inner);
                    }
                }
                _ => self.unknown_dropped = self.unknown_dropped.saturating_add(1),
            }
        }
        Ok(())
    }

    fn leaf(&mut self, leaf: usize, wire: Wire, field: &Field<'_>, out: &mut Vec<u8>) -> Result<(), ProjectError> {
        if self.settled.released().contains(leaf) {
            check_value(wire, field)?;
            out.extend_from_slice(field.raw);
            self.released |= Fields::one(leaf);
        } else if let Some((mask, _)) = self.settled.masked().iter().find(|(_, fields)| fields.contains(leaf)) {
            // Only strings have a masked form; the loader lets other values be masked as `present` alone.
            let shown = if wire == Wire::String { mask.apply(utf8(field.value)?, self.pseudonyms) } else { None };
            let applied = if shown.is_some() { *mask } else { Mask::Present };
            if let Some(shown) = shown {
                put_delimited(out, field.number, shown.as_bytes());
            }
            if !self.masked.contains(&(leaf, applied)) {
                self.masked.push((leaf, applied));
            }
        }
        Ok(())
    }
}

/// A value that leaves unchanged must not break the receiver's parser.
fn check_value(wire: Wire, field: &Field<'_>) -> Result<(), ProjectError> {
    let packed = field.payload == Payload::Delimited;
    let wrong_size = ProjectError::Malformed("packed values of a wrong size");
    match wire {
        Wire::String => utf8(field.value).map(drop),
        Wire::Varint if packed => {
            let mut values = Reader::new(field.value);
            while values.number()?.is_some() {}
            Ok(())
        }
        Wire::Fixed32 if packed && !field.value.len().is_multiple_of(4) => Err(wrong_size),
        Wire::Fixed64 if packed && !field.value.len().is_multiple_of(8) => Err(wrong_size),
        Wire::Bytes | Wire::Varint | Wire::Fixed32 | Wire::Fixed64 => Ok(()),
    }
}

fn utf8(value: &[u8]) -> Result<&str, ProjectError> {
    str::from_utf8(value).map_err(|_| ProjectError::NotUtf8)
}

/// What stands under a field number, if the message knows it.
pub(super) fn child(node: &Node, number: u32) -> Option<&Child> {
    let at = node.children.binary_search_by_key(&number, |(number, _)| *number).ok()?;
    node.children.get(at).map(|(_, child)| child)
}

/// True if a leaf of this encoding may stand so: as itself, or as a packed list of numbers.
pub(super) fn stands_as(wire: Wire, repeated: bool, payload: Payload) -> bool {
    match wire {
        Wire::String | Wire::Bytes => payload == Payload::Delimited,
        Wire::Varint => payload == Payload::Varint || (repeated && payload == Payload::Delimited),
        Wire::Fixed32 => payload == Payload::Fixed32 || (repeated && payload == Payload::Delimited),
        Wire::Fixed64 => payload == Payload::Fixed64 || (repeated && payload == Payload::Delimited),
    }
}

/// How a field's value is encoded (protobuf encoding, "Message structure"), groups left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Payload {
    Varint,
    Fixed64,
    Delimited,
    Fixed32,
}

/// One field of an encoded message.
pub(super) struct Field<'a> {
    pub(super) number: u32,
    pub(super) payload: Payload,
    /// The value, without the length of a delimited one.
    pub(super) value: &'a [u8],
    /// Key, length and value.
    raw: &'a [u8],
}

/// Reads an encoded message field by field, and no further than its end.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) const fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    /// The next field; `None` at the end of the message.
    pub(super) fn field(&mut self) -> Result<Option<Field<'a>>, ProjectError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let start = self.rest;
        // A key is a field number of at most 29 bits and 3 bits of encoding.
        let key = u32::try_from(self.varint()?).map_err(|_| ProjectError::Malformed("field number over its bound"))?;
        let number = key >> 3;
        if number == 0 {
            return Err(ProjectError::Malformed("field number 0"));
        }
        let (payload, value) = match key & 7 {
            0 => {
                let before = self.rest;
                self.varint()?;
                (Payload::Varint, consumed(before, self.rest))
            }
            1 => (Payload::Fixed64, self.take(8)?),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| TRUNCATED)?;
                (Payload::Delimited, self.take(length)?)
            }
            5 => (Payload::Fixed32, self.take(4)?),
            _ => return Err(ProjectError::Malformed("a group or an unknown encoding")),
        };
        Ok(Some(Field { number, payload, value, raw: consumed(start, self.rest) }))
    }

    /// The next of numbers that stand one behind the other, packed; `None` at the end.
    pub(super) fn number(&mut self) -> Result<Option<u64>, ProjectError> {
        if self.rest.is_empty() { Ok(None) } else { self.varint().map(Some) }
    }

    /// At most 10 bytes and 64 bits.
    fn varint(&mut self) -> Result<u64, ProjectError> {
        let mut value = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let (byte, rest) = self.rest.split_first().ok_or(TRUNCATED)?;
            self.rest = rest;
            if shift == 63 && *byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if *byte < 0x80 {
                return Ok(value);
            }
        }
        Err(ProjectError::Malformed("varint over 64 bits"))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], ProjectError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(TRUNCATED)?;
        self.rest = rest;
        Ok(taken)
    }
}

const TRUNCATED: ProjectError = ProjectError::Malformed("truncated");

/// The head of `before` that is no longer in its tail `after`.
fn consumed<'a>(before: &'a [u8], after: &[u8]) -> &'a [u8] {
    before.get(..before.len().saturating_sub(after.len())).unwrap_or_default()
}

fn put_delimited(out: &mut Vec<u8>, number: u32, value: &[u8]) {
    encoding::encode_key(number, encoding::WireType::LengthDelimited, out);
    encoding::encode_varint(value.len() as u64, out);
    out.extend_from_slice(value);
}
