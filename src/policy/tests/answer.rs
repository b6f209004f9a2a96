//! Answers about somebody else are thrown away.

use prost::encoding::{encode_key, encode_varint};

use super::super::answer::answers_keys;
use super::{certificate_type, leaf, message, text};
use crate::catalog::{CertificateType, Fields, SubjectKey, ValueKind};

const NUMBER: &str = "11010519491231002X";

fn person() -> CertificateType {
    let id = |number| leaf(number, "id_no", ValueKind::IdNumber, None);
    certificate_type(
        "t",
        "GA",
        &[
            id(1),
            text(2, "name"),
            text(3, "born"),
            message(4, "members", true, vec![id(1)]),
            message(5, "spouse", false, vec![id(1)]),
        ],
    )
}

fn field(number: u32, value: impl AsRef<[u8]>) -> Vec<u8> {
    let mut out = Vec::new();
    encode_key(number, prost::encoding::WireType::LengthDelimited, &mut out);
    encode_varint(value.as_ref().len() as u64, &mut out);
    out.extend_from_slice(value.as_ref());
    out
}

fn key(name: &str, kind: ValueKind, value: &str, matches: &[&str]) -> SubjectKey {
    let ty = person();
    let matches = matches.iter().fold(Fields::EMPTY, |all, path| all | ty.expand(path).unwrap());
    let (role, attribute) = ("child".into(), name.into());
    SubjectKey { name: name.into(), kind, role, attribute, value: value.into(), matches }
}

fn answers(keys: &[SubjectKey], record: &[Vec<u8>], echoed: &[(&str, &str)]) -> bool {
    let echoed: Vec<_> = echoed.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    answers_keys(&person(), keys, &record.concat(), &echoed)
}

#[test]
fn every_key_must_be_found() {
    let number = key("id_no", ValueKind::IdNumber, NUMBER, &["id_no"]);
    let name = key("name", ValueKind::PersonName, "王小明", &["name"]);
    let keys = [number, name];
    assert!(answers(&keys, &[field(1, NUMBER), field(2, "王小明")], &[]));
    assert!(answers(&keys, &[field(2, "王小明"), field(1, NUMBER.to_lowercase())], &[]));
    assert!(!answers(&keys, &[field(1, NUMBER), field(2, "王小")], &[]));
    assert!(!answers(&keys, &[field(1, NUMBER)], &[]));
    assert!(!answers(&keys, &[], &[]));
    assert!(!answers(&[], &[field(1, NUMBER)], &[]), "a subject without keys is nobody");
}

#[test]
fn one_of_several_places_is_enough() {
    let either = [key("id_no", ValueKind::IdNumber, NUMBER, &["id_no", "members.id_no"])];
    let other = "110105194912310046";
    let member = |number: &str| field(4, field(1, number));
    assert!(answers(&either, &[field(1, other), member(other), member(NUMBER)], &[]));
    assert!(!answers(&either, &[field(1, other), member(other)], &[]));
}

#[test]
fn a_singular_value_that_occurs_twice_is_ambiguous() {
    let other = "110105194912310046";
    let number = [key("id_no", ValueKind::IdNumber, NUMBER, &["id_no"])];
    assert!(answers(&number, &[field(1, NUMBER), field(1, NUMBER)], &[]));
    assert!(!answers(&number, &[field(1, NUMBER), field(1, other)], &[]));
    assert!(!answers(&number, &[field(1, other), field(1, NUMBER)], &[]));
    let member = [key("id_no", ValueKind::IdNumber, NUMBER, &["members.id_no"])];
    assert!(!answers(&member, &[field(4, [field(1, other), field(1, NUMBER)].concat())], &[]));
    // Two elements of a list are two; two singular messages are merged into one.
    let spouse = [key("id_no", ValueKind::IdNumber, NUMBER, &["spouse.id_no"])];
    assert!(answers(&spouse, &[field(5, field(1, NUMBER))], &[]));
    assert!(!answers(&spouse, &[field(5, field(1, NUMBER)), field(5, field(1, other))], &[]));
}

#[test]
fn dates_match_points_in_time() {
    let born = |value: &str| answers(&[key("born", ValueKind::Date, "2026-01-02", &["born"])], &[field(3, value)], &[]);
    assert!(born("2026-01-02") && born("2026-01-02T23:59"));
    assert!(!born("2026-01-03") && !born("2026-01-020") && !born("2026-01") && !born("2026年01月02日"));
    let text = [key("born", ValueKind::Text, "2026-01-02", &["born"])];
    assert!(!answers(&text, &[field(3, "2026-01-02T23:59")], &[]), "only dates are cut");
}

#[test]
fn a_key_that_the_record_has_not_is_echoed() {
    let keys = [key("unit_no", ValueKind::Text, "A-1", &[])];
    assert!(answers(&keys, &[], &[("unit_no", "A-1"), ("other", "x")]));
    for echoed in [&[][..], &[("unit_no", "A-2")], &[("other", "A-1")], &[("unit_no", "A-1"), ("unit_no", "A-2")]] {
        assert!(!answers(&keys, &[], echoed), "{echoed:?}");
    }
    let number = [key("id_no", ValueKind::IdNumber, NUMBER, &["id_no"])];
    assert!(!answers(&number, &[], &[("id_no", NUMBER)]), "an echo is no record");
}

#[test]
fn garbage_is_about_nobody() {
    let number = [key("id_no", ValueKind::IdNumber, NUMBER, &["id_no"])];
    let good = field(1, NUMBER);
    assert!(!answers(&number, &[good.clone(), vec![0x0a, 0xff]], &[]));
    assert!(!answers(&number, &[good.clone(), vec![0x0b]], &[]), "a group");
    assert!(!answers(&number, &[good, field(1, [0xff, 0xfe])], &[]));
    // The right value in another encoding than the field's is no value of it.
    assert!(!answers(&number, &[vec![0x08, 0x01]], &[]));
}
