//! The projector against a slow reference that decodes, filters and encodes by descriptors.

use std::sync::Arc;

use proptest::prelude::*;
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint};
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, ReflectMessage as _, Value};
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::pseudonym::test_key;
use super::super::{Mask, Permit, ProjectError};
use super::noleak::cases;
use super::{FieldSpec, Spec, certificate_type, forms, message, permit, project, text};
use crate::catalog::{CertificateType, Fields, ValueKind, Wire};

/// A random type: up to five fields a message, messages up to three deep.
pub(super) fn random_fields(rng: &mut StdRng, depth: usize) -> Vec<FieldSpec> {
    let mut numbers: Vec<u32> = vec![1, 2, 3, 15, 16, 200, 5000];
    (0..rng.random_range(1..=5))
        .map(|at| {
            let number = numbers.remove(rng.random_range(0..numbers.len()));
            let wires = [Wire::String, Wire::String, Wire::Bytes, Wire::Varint, Wire::Fixed32, Wire::Fixed64];
            let spec = if depth < 3 && rng.random_bool(0.35) {
                Spec::Message(random_fields(rng, depth + 1))
            } else {
                Spec::Leaf(wires[rng.random_range(0..wires.len())], ValueKind::Text, None)
            };
            FieldSpec { name: format!("f{at}"), number, repeated: rng.random_bool(0.3), spec }
        })
        .collect()
}

/// The same type as a descriptor; proto2, whose optional fields know whether they are present.
pub(super) fn descriptor(fields: &[FieldSpec]) -> MessageDescriptor {
    let file = FileDescriptorProto {
        name: Some("t.proto".into()),
        package: Some("test".into()),
        syntax: Some("proto2".into()),
        message_type: vec![message_proto("T", ".test.T", fields)],
        ..FileDescriptorProto::default()
    };
    let pool = DescriptorPool::from_file_descriptor_set(FileDescriptorSet { file: vec![file] }).unwrap();
    pool.get_message_by_name("test.T").unwrap()
}

fn message_proto(name: &str, full: &str, fields: &[FieldSpec]) -> DescriptorProto {
    let mut proto = DescriptorProto { name: Some(name.into()), ..DescriptorProto::default() };
    for field in fields {
        let mut of_field = FieldDescriptorProto {
            name: Some(field.name.clone()),
            number: Some(field.number.try_into().unwrap()),
            ..FieldDescriptorProto::default()
        };
        of_field.set_label(if field.repeated { Label::Repeated } else { Label::Optional });
        match &field.spec {
            Spec::Leaf(wire, ..) => of_field.set_type(match wire {
                Wire::String => Type::String,
                Wire::Bytes => Type::Bytes,
                Wire::Varint => Type::Int64,
                Wire::Fixed32 => Type::Fixed32,
                Wire::Fixed64 => Type::Sfixed64,
            }),
            Spec::Message(inner) => {
                let nested = field.name.to_uppercase();
                let full = format!("{full}.{nested}");
                proto.nested_type.push(message_proto(&nested, &full, inner));
                of_field.set_type(Type::Message);
                of_field.type_name = Some(full);
            }
        }
        proto.field.push(of_field);
    }
    proto
}

/// Writes random records of a type.
pub(super) struct Writer {
    pub(super) rng: StdRng,
    /// What is unique in each value that is long enough, with its leaf.
    pub(super) markers: Vec<(usize, Vec<u8>)>,
    /// How many of the texts are empty, and of the numbers zero.
    pub(super) empty: f64,
}

impl Writer {
    /// A record twice: as a tidy source sends it, and with unknown fields and fields in wrong encodings in between.
    pub(super) fn message(&mut self, fields: &[FieldSpec], first_leaf: usize) -> (Vec<u8>, Vec<u8>) {
        let (mut tidy, mut noisy) = (Vec::new(), Vec::new());
        let mut leaf = first_leaf;
        for field in fields {
            // A singular field may occur twice, as in merged messages.
            for _ in 0..self.rng.random_range(0..3) {
                self.noise(fields, &mut noisy);
                match &field.spec {
                    Spec::Leaf(wire, ..) => {
                        let value = self.value(*wire, field, leaf);
                        tidy.extend_from_slice(&value);
                        noisy.extend_from_slice(&value);
                    }
                    Spec::Message(inner) => {
                        let (of_tidy, of_noisy) = self.message(inner, leaf);
                        put(&mut tidy, field.number, &of_tidy);
                        put(&mut noisy, field.number, &of_noisy);
                    }
                }
            }
            leaf += field.leaves();
        }
        (tidy, noisy)
    }

    fn noise(&mut self, fields: &[FieldSpec], out: &mut Vec<u8>) {
        if self.rng.random_bool(0.3) {
            match self.rng.random_range(0..4) {
                0 => put(out, 7_000, b"unknown"),
                1 => put_key_varint(out, 6_000, self.rng.random()),
                // A string, bytes or message in the encoding of a number; a number as 3 bytes.
                _ => {
                    let field = &fields[self.rng.random_range(0..fields.len())];
                    match field.spec {
                        Spec::Leaf(Wire::Varint | Wire::Fixed32 | Wire::Fixed64, ..) if !field.repeated => {
                            put(out, field.number, b"abc");
                        }
                        Spec::Leaf(Wire::Varint | Wire::Fixed32 | Wire::Fixed64, ..) => {}
                        _ => put_key_varint(out, field.number, self.rng.random()),
                    }
                }
            }
        }
    }

    fn value(&mut self, wire: Wire, field: &FieldSpec, leaf: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let number = field.number;
        let packed = field.repeated && self.rng.random_bool(0.5);
        match wire {
            Wire::String | Wire::Bytes if self.rng.random_bool(self.empty) => put(&mut out, number, b""),
            Wire::Varint if self.rng.random_bool(self.empty) => put_key_varint(&mut out, number, 0),
            Wire::String | Wire::Bytes => {
                let marker = format!("m{:08x}k", self.rng.random::<u32>());
                // Long enough that no mask shows the marker or omits the value.
                put(&mut out, number, format!("王小明一二三{marker}四五六七八").as_bytes());
                self.markers.push((leaf, marker.into_bytes()));
            }
            Wire::Varint if packed => {
                let mut values = Vec::new();
                (0..self.rng.random_range(0..4)).for_each(|_| encode_varint(self.rng.random(), &mut values));
                put(&mut out, number, &values);
            }
            Wire::Varint => {
                // Ten bytes when encoded.
                let value = self.rng.random::<u64>() | 1 << 63;
                put_key_varint(&mut out, number, value);
                let mut marker = Vec::new();
                encode_varint(value, &mut marker);
                self.markers.push((leaf, marker));
            }
            Wire::Fixed32 | Wire::Fixed64 => {
                let (size, wire) =
                    if wire == Wire::Fixed32 { (4, WireType::ThirtyTwoBit) } else { (8, WireType::SixtyFourBit) };
                let count = if packed { self.rng.random_range(0..3) } else { 1 };
                let values: Vec<u8> = (0..size * count).map(|_| self.rng.random()).collect();
                if packed {
                    put(&mut out, number, &values);
                } else {
                    encode_key(number, wire, &mut out);
                    out.extend_from_slice(&values);
                    if size == 8 {
                        self.markers.push((leaf, values));
                    }
                }
            }
        }
        out
    }
}

pub(super) fn put(out: &mut Vec<u8>, number: u32, value: &[u8]) {
    encode_key(number, WireType::LengthDelimited, out);
    encode_varint(value.len() as u64, out);
    out.extend_from_slice(value);
}

fn put_key_varint(out: &mut Vec<u8>, number: u32, value: u64) {
    encode_key(number, WireType::Varint, out);
    encode_varint(value, out);
}

/// The reference: what the permit gives of a decoded message.
fn filter(source: &DynamicMessage, fields: &[FieldSpec], first_leaf: usize, permit: &Permit) -> DynamicMessage {
    let mut out = DynamicMessage::new(source.descriptor());
    let wanted = wanted(permit);
    let mut leaf = first_leaf;
    for field in fields {
        let below: Fields = (leaf..leaf + field.leaves()).collect();
        if below.intersects(wanted) && source.has_field_by_number(field.number) {
            let value = source.get_field_by_number(field.number).unwrap().into_owned();
            let values = if let Value::List(values) = value { values } else { vec![value] };
            let kept = values.into_iter().filter_map(|value| match (&field.spec, value) {
                (Spec::Message(inner), Value::Message(of_field)) => {
                    Some(Value::Message(filter(&of_field, inner, leaf, permit)))
                }
                (_, value) if forms(permit).released.contains(leaf) => Some(value),
                (_, Value::String(text)) => {
                    mask_of(permit, leaf).apply(&text, permit.pseudonyms.as_deref()).map(Value::String)
                }
                _ => None,
            });
            let mut kept: Vec<_> = kept.collect();
            if kept.is_empty() {
                // An empty list is the same as none.
            } else if field.repeated {
                out.set_field_by_number(field.number, Value::List(kept));
            } else if let Some(value) = kept.pop() {
                out.set_field_by_number(field.number, value);
            }
        }
        leaf += field.leaves();
    }
    out
}

fn wanted(permit: &Permit) -> Fields {
    forms(permit).masked.iter().fold(forms(permit).released, |all, (_, fields)| all | *fields)
}

fn mask_of(permit: &Permit, leaf: usize) -> Mask {
    forms(permit).masked.iter().find(|(_, fields)| fields.contains(leaf)).unwrap().0
}

fn random_permit(rng: &mut StdRng, ty: &Arc<CertificateType>) -> Permit {
    let masks = [Mask::IdNumber, Mask::CertNo, Mask::BankCard, Mask::NameZh, Mask::Pseudonym, Mask::Present];
    let mut released = Fields::EMPTY;
    let mut masked = Vec::new();
    for leaf in 0..ty.leaves.len() {
        match rng.random_range(0..4) {
            0 => released |= Fields::one(leaf),
            1 => {
                let mask =
                    if ty.leaves[leaf].wire == Wire::String { masks[rng.random_range(0..6)] } else { Mask::Present };
                masked.push((mask, Fields::one(leaf)));
            }
            _ => {}
        }
    }
    let mut permit = permit(ty, released, &masked);
    permit.pseudonyms = Some(Arc::new(test_key().of(&"GA".parse().unwrap(), "newborn")));
    permit
}

fn holds_nothing_else(record: &DynamicMessage) -> bool {
    record.unknown_fields().next().is_none()
        && record.fields().all(|(_, value)| match value {
            Value::Message(inner) => holds_nothing_else(inner),
            Value::List(values) => values.iter().filter_map(Value::as_message).all(holds_nothing_else),
            _ => true,
        })
}

pub(super) fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

proptest! {
    #![proptest_config(cases(500))]

    #[test]
    fn it_gives_what_the_reference_gives_and_nothing_else(seed in any::<u64>(), at in any::<prop::sample::Index>(), noise in any::<u8>()) {
        let mut rng = StdRng::seed_from_u64(seed);
        let fields = random_fields(&mut rng, 0);
        let ty = Arc::new(certificate_type("t", "WJ", &fields));
        let descriptor = descriptor(&fields);
        let permit = random_permit(&mut rng, &ty);
        let mut writer = Writer { rng, markers: Vec::new(), empty: 0.0 };
        let (tidy, noisy) = writer.message(&fields, 0);

        let expected = filter(&DynamicMessage::decode(descriptor.clone(), &*tidy).unwrap(), &fields, 0, &permit);
        let projected = project(&permit, &noisy).unwrap();
        let shown = DynamicMessage::decode(descriptor.clone(), projected.bytes.clone()).unwrap();
        // Encoded anew, because a packed list of nothing is decoded as a list but is the same as none.
        prop_assert!(shown.encode_to_vec() == expected.encode_to_vec(), "{} is not {}", shown, expected);
        prop_assert!(holds_nothing_else(&shown));
        prop_assert!(projected.bytes.len() <= 10 * noisy.len());

        for (leaf, marker) in &writer.markers {
            let left = contains(&projected.bytes, marker);
            prop_assert_eq!(left, forms(&permit).released.contains(*leaf), "{}", ty.path(*leaf));
        }
        // What was planted was seen, and is reported in the form it left in.
        let seen: Fields = writer.markers.iter().map(|(leaf, _)| *leaf).collect();
        prop_assert!(projected.released.covers(seen & forms(&permit).released));
        prop_assert!(forms(&permit).released.covers(projected.released));
        for (leaf, mask) in &projected.masked {
            prop_assert_eq!(*mask, mask_of(&permit, *leaf));
        }
        let masked: Fields = projected.masked.iter().map(|(leaf, _)| *leaf).collect();
        prop_assert!(masked.covers(seen & (wanted(&permit) - forms(&permit).released)));

        // Damaged: refused, or still a message of released fields only.
        let mut damaged = noisy.clone();
        if !damaged.is_empty() {
            let at = at.index(damaged.len());
            damaged[at] ^= noise;
            for damaged in [&damaged[..], &noisy[..at]] {
                if let Ok(projected) = project(&permit, damaged) {
                    let shown = DynamicMessage::decode(descriptor.clone(), projected.bytes).unwrap();
                    prop_assert!(holds_nothing_else(&shown));
                }
            }
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(seed in any::<u64>(), bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut rng = StdRng::seed_from_u64(seed);
        let fields = random_fields(&mut rng, 0);
        let permit = random_permit(&mut rng, &Arc::new(certificate_type("t", "WJ", &fields)));
        if let Ok(projected) = project(&permit, &bytes) {
            prop_assert!(DynamicMessage::decode(descriptor(&fields), projected.bytes).is_ok());
        }
    }
}

/// `name` (1), `members` (2) of `name` (1), `count` (3, numbers), `secret` (4).
fn small() -> (Arc<CertificateType>, impl Fn(&str) -> Fields) {
    let count = FieldSpec { repeated: true, spec: Spec::Leaf(Wire::Varint, ValueKind::Text, None), ..text(3, "count") };
    let fields = [text(1, "name"), message(2, "members", true, vec![text(1, "name")]), count, text(4, "secret")];
    let ty = Arc::new(certificate_type("t", "WJ", &fields));
    let of = Arc::clone(&ty);
    (ty, move |path: &str| of.expand(path).unwrap())
}

fn fields(parts: &[(u32, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (number, value) in parts {
        put(&mut out, *number, value);
    }
    out
}

#[test]
fn what_no_descriptor_knows_is_dropped_and_counted() {
    let (ty, of) = small();
    let permit = permit(&ty, of("name") | of("members"), &[]);
    let member = fields(&[(1, "乙".as_bytes()), (9, b"x")]);
    let mut record = fields(&[(1, "甲".as_bytes()), (2, &member), (4, b"s"), (77, b"y")]);
    put_key_varint(&mut record, 1, 5);
    let projected = project(&permit, &record).unwrap();
    let expected = fields(&[(1, "甲".as_bytes()), (2, &fields(&[(1, "乙".as_bytes())]))]);
    assert_eq!(projected.bytes, expected);
    // In the member, the unknown one, and `name` as a number; the known `secret` is no news.
    assert_eq!(projected.unknown_dropped, 3);
}

#[test]
fn only_what_is_present_is_reported() {
    let (ty, of) = small();
    let permit = permit(&ty, of("name") | of("secret"), &[(Mask::NameZh, of("members")), (Mask::Present, of("count"))]);
    let record = fields(&[(1, b""), (2, &fields(&[(1, "王小明".as_bytes())])), (2, &fields(&[(1, "李".as_bytes())]))]);
    let projected = project(&permit, &record).unwrap();
    assert_eq!(projected.released, of("name"), "an empty value is a value");
    let member = of("members").iter().next().unwrap();
    assert_eq!(projected.masked, [(member, Mask::NameZh), (member, Mask::Present)], "a one-letter name is omitted");
    assert_eq!(projected.bytes, fields(&[(1, b""), (2, &fields(&[(1, "王**".as_bytes())])), (2, b"")]));
    assert_eq!(project(&permit, &[]).unwrap().released, Fields::EMPTY);
}

#[test]
fn every_occurrence_of_a_masked_field_is_masked() {
    let (ty, of) = small();
    let permit = permit(&ty, Fields::EMPTY, &[(Mask::NameZh, of("name"))]);
    let projected = project(&permit, &fields(&[(1, "张三".as_bytes()), (1, "李四".as_bytes())])).unwrap();
    assert_eq!(projected.bytes, fields(&[(1, "张*".as_bytes()), (1, "李*".as_bytes())]));
    assert_eq!(projected.masked.len(), 1);
}

#[test]
fn what_would_break_a_parser_is_refused() {
    let (ty, of) = small();
    let all = permit(&ty, of("name") | of("count"), &[(Mask::NameZh, of("secret"))]);
    let malformed: [(&str, &[u8]); 11] = [
        ("truncated key", &[0x80]),
        ("truncated length", &[0x0a]),
        ("truncated value", &[0x0a, 2, b'x']),
        ("length over all bounds", &[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]),
        ("field number 0", &[0x02, 0]),
        ("group", &[0x0b, 0x0c]),
        ("end of a group", &[0x0c]),
        ("unknown encoding", &[0x0e]),
        ("overlong varint", &[0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]),
        ("key over 32 bits", &[0x8a, 0x80, 0x80, 0x80, 0x10, 0]),
        ("damaged packed numbers", &[0x1a, 1, 0x80]),
    ];
    for (what, record) in malformed {
        assert!(matches!(project(&all, record), Err(ProjectError::Malformed(_))), "{what}");
    }
    for number in [1, 4] {
        assert_eq!(project(&all, &fields(&[(number, b"\xff")])), Err(ProjectError::NotUtf8));
    }
    let none = permit(&ty, of("name"), &[]);
    assert!(project(&none, &fields(&[(4, b"\xff")])).is_ok(), "what does not leave is not looked at");
}

#[test]
fn depth_is_bounded() {
    let nested = |depth| (0..depth).fold(text(1, "x"), |inner, _| message(1, "x", false, vec![inner]));
    let record = |depth| (0..depth).fold(fields(&[(1, b"v")]), |inner, _| fields(&[(1, &inner)]));
    for (depth, good) in [(16, true), (17, false)] {
        let ty = Arc::new(certificate_type("t", "WJ", &[nested(depth)]));
        let projected = project(&permit(&ty, Fields::one(0), &[]), &record(depth));
        assert_eq!(projected.is_ok(), good, "{depth}");
        if !good {
            assert_eq!(projected, Err(ProjectError::TooDeep));
        }
    }
}
