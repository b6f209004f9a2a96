//! Comparing: what counts as the same, what can't be told, and that nothing else is looked at.

use proptest::prelude::*;
use prost::Message as _;
use prost_reflect::{DynamicMessage, Value};

use super::super::{Claim, ClaimError, Compared, WithheldReason, compare, settle};
use super::noleak::cases;
use super::*;
use crate::catalog::checks::CheckError;

const TODAY: Date = date!(2026 - 06 - 01);

fn built_in(code: &str) -> Arc<CertificateType> {
    nothing().certificate_type(code).unwrap().clone()
}

/// A record of a built-in type.
fn record(ty: &CertificateType, fields: &[(&str, Value)]) -> Vec<u8> {
    let mut record = DynamicMessage::new(nothing().pool().get_message_by_name(&ty.message).unwrap());
    for (name, value) in fields {
        record.set_field_by_name(name, value.clone());
    }
    record.encode_to_vec()
}

fn text(value: &str) -> Value {
    Value::String(value.to_owned())
}

fn fields(ty: &CertificateType, names: &[&str]) -> Fields {
    names.iter().map(|name| ty.comparable(name).unwrap()).collect()
}

/// What one claim comes to if the fields of `granted` may be compared.
fn claimed(ty: &Arc<CertificateType>, granted: &[&str], record: &[u8], path: &str, value: &str) -> Compared {
    let permit = permit_to(Mode::Verify, ty, fields(ty, granted), &[]);
    let claim = Claim::new(ty, path, value, TODAY).unwrap_or_else(|error| panic!("{path}={value}: {error}"));
    compare(&settle(&permit, record).unwrap(), &[claim]).unwrap()[0]
}

#[test]
fn the_same_value_is_written_in_many_ways() {
    let ty = built_in("resident_identity");
    let record = record(
        &ty,
        &[
            ("name", text("买买提·艾力 John")),
            ("id_no", text("11010519491231002X")),
            ("ethnicity", text("05a")),
            ("birth_date", text("1949-12-31")),
            ("address", text("子虚县乌有镇１号")),
            ("status", Value::EnumNumber(1)),
        ],
    );
    for (path, same, another) in [
        ("name", "买买提·艾力 John", "买买提艾力John"),
        ("name", "买买提•艾力john", "买买提·艾立john"),
        ("name", "　买买提・艾力　ＪＯＨＮ", "買買提·艾力john"),
        ("id_no", "11010519491231002x", "11010519491231002"),
        ("id_no", "１１０１０５ 19491231 002Ｘ", "110105194912310020"),
        ("ethnicity", "05a", "05A"),
        ("birth_date", "1949-12-31", "1949-12-30"),
        ("birth_date", "１９４９－１２－３１", "1949-01-31"),
        ("birth_date", "1949-12-31T08:00", "1949-12-30T08:00"),
        ("address", "子虚县乌有镇1号", "子虚县乌有镇2号"),
        ("status", "STATUS_VALID", "STATUS_LOST"),
        ("status", "valid", "lost"),
        ("status", "1", "3"),
    ] {
        assert_eq!(claimed(&ty, &[path], &record, path, same), Compared::Match, "{path}={same}");
        assert_eq!(claimed(&ty, &[path], &record, path, another), Compared::Mismatch, "{path}={another}");
    }

    let birth = built_in("birth_medical_certificate");
    let born = self::record(&birth, &[("birth_datetime", text("2026-03-01T08:30"))]);
    for (value, due) in [
        ("2026-03-01", Compared::Match),
        ("2026-03-01T08:30", Compared::Match),
        ("2026-03-01T08:31", Compared::Mismatch),
        ("2026-03-02", Compared::Mismatch),
    ] {
        assert_eq!(claimed(&birth, &["birth_datetime"], &born, "birth_datetime", value), due, "{value}");
    }

    let insured = built_in("social_insurance_record");
    let paid = self::record(&insured, &[("contribution_base", text("12500.50")), ("paid_months", Value::U32(7))]);
    for (path, value, due) in [
        ("contribution_base", "12500.5", Compared::Match),
        ("contribution_base", "12500.500", Compared::Match),
        ("contribution_base", "12500.05", Compared::Mismatch),
        ("paid_months", "7", Compared::Match),
        ("paid_months", "07", Compared::Match),
        ("paid_months", "70", Compared::Mismatch),
        ("paid_months", "-7", Compared::Mismatch),
    ] {
        assert_eq!(claimed(&insured, &[path], &paid, path, value), due, "{value}");
    }
    let tax = built_in("tax_clearance");
    let cleared = self::record(&tax, &[("is_cleared", Value::Bool(true))]);
    assert_eq!(claimed(&tax, &["is_cleared"], &cleared, "is_cleared", "true"), Compared::Match);
    assert_eq!(claimed(&tax, &["is_cleared"], &cleared, "is_cleared", "FALSE"), Compared::Mismatch);
}

#[test]
fn what_no_record_could_say_is_refused() {
    let ty = built_in("resident_identity");
    for (path, value, due) in [
        ("nmae", "x", ClaimError::Unknown),
        ("", "x", ClaimError::Unknown),
        ("photo", "x", ClaimError::Incomparable),
        ("name", "", ClaimError::Invalid(CheckError::Length)),
        ("name", "   ", ClaimError::Invalid(CheckError::Length)),
        ("name", "a\nb", ClaimError::Invalid(CheckError::Character)),
        ("name", &"x".repeat(257), ClaimError::Invalid(CheckError::Length)),
        ("birth_date", "1949-02-30", ClaimError::Invalid(CheckError::Calendar)),
        ("birth_date", "31.12.1949", ClaimError::Invalid(CheckError::Character)),
        ("status", "VALLID", ClaimError::Invalid(CheckError::Character)),
        ("status", "UNSPECIFIED", ClaimError::Invalid(CheckError::Character)),
        ("status", "0", ClaimError::Invalid(CheckError::Character)),
        ("aged_18", "2026-06-02", ClaimError::OtherDay),
        ("in_force", "yes", ClaimError::Invalid(CheckError::Length)),
        ("in_force", "2027-06-03", ClaimError::Invalid(CheckError::Calendar)),
    ] {
        assert_eq!(Claim::new(&ty, path, value, TODAY).unwrap_err(), due, "{path}={value}");
    }
    let claim = Claim::new(&ty, "name", "乌有宁", TODAY).unwrap();
    assert!(!format!("{claim:?}").contains("乌有宁"));
}

#[test]
fn absent_ambiguous_and_malformed_values_can_not_be_told() {
    let ty = built_in("resident_identity");
    let told =
        |record: &[u8], path: &str, value: &str| claimed(&ty, &["name", "birth_date", "status"], record, path, value);
    let twice = [record(&ty, &[("name", text("甲"))]), record(&ty, &[("name", text("乙"))])].concat();
    for name in ["甲", "乙", "丙"] {
        assert_eq!(told(&twice, "name", name), Compared::CannotTell, "decoders do not agree which one counts");
    }
    let same_twice = [record(&ty, &[("name", text("甲"))]), record(&ty, &[("name", text("甲"))])].concat();
    assert_eq!(told(&same_twice, "name", "甲"), Compared::Match);
    assert_eq!(told(&[], "name", "甲"), Compared::CannotTell);
    assert_eq!(
        told(&record(&ty, &[("birth_date", text("unknown"))]), "birth_date", "1949-12-31"),
        Compared::CannotTell
    );
    assert_eq!(told(&record(&ty, &[("status", Value::EnumNumber(0))]), "status", "VALID"), Compared::CannotTell);
    let permit = permit_to(Mode::Verify, &ty, fields(&ty, &["name"]), &[]);
    let claim = [Claim::new(&ty, "name", "甲", TODAY).unwrap()];
    assert!(compare(&settle(&permit, &[0xff]).unwrap(), &claim).is_err());
}

#[test]
fn one_element_of_a_list_is_enough() {
    let ty = built_in("vaccination_record");
    let message = nothing().pool().get_message_by_name(&ty.message).unwrap();
    let below = |number| {
        let Some(prost_reflect::Kind::Message(dose)) = message.get_field_by_name("doses").map(|field| field.kind())
        else {
            panic!("no message")
        };
        let mut dose = DynamicMessage::new(dose);
        dose.set_field_by_name("dose_number", Value::U32(number));
        Value::Message(dose)
    };
    let record = record(&ty, &[("doses", Value::List(vec![below(1), below(2)]))]);
    for (number, due) in [("1", Compared::Match), ("2", Compared::Match), ("3", Compared::Mismatch)] {
        assert_eq!(claimed(&ty, &["doses.dose_number"], &record, "doses.dose_number", number), due);
    }
}

#[test]
fn a_predicate_holds_on_a_day() {
    let ty = built_in("resident_identity");
    let card = |status: i32, from: &str, until: Option<&str>| {
        let mut values = vec![("status", Value::EnumNumber(status)), ("valid_from", text(from))];
        values.extend(until.map(|until| ("valid_until", text(until))));
        record(&ty, &values)
    };
    let told = |record: &[u8], value: &str| claimed(&ty, &["in_force"], record, "in_force", value);
    let sound = card(1, "2026-01-01", Some("2026-12-31"));
    for (value, due) in [
        ("true", Compared::Match),
        ("false", Compared::Mismatch),
        ("2026-01-01", Compared::Match),
        ("2025-12-31", Compared::Mismatch),
        ("2026-12-31", Compared::Match),
        ("2027-01-01", Compared::Mismatch),
    ] {
        assert_eq!(told(&sound, value), due, "{value}");
    }
    assert_eq!(told(&card(1, "2026-01-01", None), "true"), Compared::Match, "a long-term card");
    assert_eq!(told(&card(3, "2026-01-01", None), "true"), Compared::Mismatch, "reported lost");
    assert_eq!(told(&card(0, "2026-01-01", None), "true"), Compared::CannotTell);
    assert_eq!(told(&card(0, "2026-07-01", None), "false"), Compared::Match, "whatever its status, it begins later");
    assert_eq!(told(&card(1, "?", Some("2026-12-31")), "true"), Compared::CannotTell);
    assert_eq!(told(&card(1, "2026-01-01", Some("?")), "true"), Compared::CannotTell, "no end is not a wrong end");

    let born = |date: &str| record(&ty, &[("birth_date", text(date))]);
    for (date, due) in
        [("2008-06-01", Compared::Mismatch), ("2008-05-31", Compared::Match), ("1940-02-29", Compared::Match)]
    {
        assert_eq!(claimed(&ty, &["aged_18"], &born(date), "aged_18", "true"), due, "{date}");
    }
    let other = |value| Claim::new(&ty, "in_force", value, TODAY).unwrap().is_of_another_day();
    assert!(other("2026-06-02") && !other("2026-06-01") && !other("true") && !other("false"));

    let tax = built_in("tax_clearance");
    let of =
        |cleared, status| record(&tax, &[("is_cleared", Value::Bool(cleared)), ("status", Value::EnumNumber(status))]);
    assert_eq!(claimed(&tax, &["cleared"], &of(true, 1), "cleared", "true"), Compared::Match);
    assert_eq!(claimed(&tax, &["cleared"], &of(true, 2), "cleared", "true"), Compared::Mismatch);
    assert_eq!(claimed(&tax, &["cleared"], &of(false, 1), "cleared", "true"), Compared::Mismatch);
}

#[test]
fn a_predicate_is_granted_by_its_name_or_by_all_that_it_is_drawn_from() {
    let ty = built_in("resident_identity");
    let record = record(
        &ty,
        &[("status", Value::EnumNumber(1)), ("valid_from", text("2026-01-01")), ("birth_date", text("1949-12-31"))],
    );
    let told = |granted: &[&str], path: &str, value: &str| claimed(&ty, granted, &record, path, value);
    assert_eq!(told(&["in_force"], "in_force", "true"), Compared::Match);
    assert_eq!(told(&["in_force"], "status", "VALID"), Compared::CannotTell, "the parts are not granted with it");
    let parts = ["status", "valid_from", "valid_until"];
    assert_eq!(told(&parts, "in_force", "true"), Compared::Match);
    assert_eq!(told(&parts[..2], "in_force", "true"), Compared::CannotTell);

    let masked = fields(&ty, &["birth_date"]);
    let permit = permit_to(Mode::Verify, &ty, Fields::EMPTY, &[(Mask::BirthDate, masked)]);
    assert!(!permit.may_release(), "masked is neither comparable nor concluded from");
    let permit = permit_to(Mode::Query, &ty, fields(&ty, &["birth_date"]), &[]);
    assert_eq!(permit.open(), fields(&ty, &["birth_date"]), "a predicate can't be read");
    let permit = permit_to(Mode::Verify, &ty, fields(&ty, &["in_force"]), &[]);
    assert_eq!(permit.fetch_fields(), fields(&ty, &parts), "what it is drawn from is fetched");
}

#[test]
fn a_deny_reaches_what_is_concluded() {
    let grant = entry("mode = \"verify\"\nfields = [\"on_record\", \"infant_name\"]");
    let why = |deny: &str| {
        let deny = if deny.is_empty() {
            String::new()
        } else {
            format!(
                "[[deny]]\nid = \"d\"\nconsumers = [\"*\"]\ncertificate_type = \"birth\"\nfields = [\"{deny}\"]\n\
                 reason = \"x\"\n"
            )
        };
        let policy = load(&[file("newborn", "WJ", &format!("{grant}{deny}"))]).unwrap();
        let ty = &known().types["birth"];
        let consumer = department("GA");
        let ask = Ask {
            consumer: &consumer,
            matter: "newborn",
            certificate_type: ty,
            role: "child",
            want: fields(ty, &["on_record"]),
            matches: Fields::EMPTY,
            basis: Basis::Consent,
            reference: "c",
            minor: true,
            mode: Mode::Verify,
            today: TODAY,
            given: &Given::default(),
        };
        policy.table.decide(&ask, Truths::NONE, policy.hash).refusal().map(|refusal| refusal.reason)
    };
    assert_eq!(why(""), None);
    assert_eq!(why("infant_name"), None);
    for deny in ["on_record", "status", "*"] {
        assert_eq!(why(deny), Some(WithheldReason::Denied), "{deny}");
    }
}

#[test]
fn a_predicate_of_sensitive_fields_is_sensitive() {
    // Every field about a child.
    let ty = built_in("vaccination_record");
    assert!(ty.sensitive.covers(ty.all()));
    let ty = built_in("resident_identity");
    assert!(!ty.sensitive.intersects(fields(&ty, &["aged_18", "in_force"])));
    assert!(ty.verify_only.covers(fields(&ty, &["aged_18", "in_force"])));
    assert_eq!(ty.numbers(ty.comparable("aged_18").unwrap()), [0, 3]);
}

proptest! {
    #![proptest_config(cases(300))]

    /// However a name is written, it is the same name; another is another.
    #[test]
    fn a_claim_equal_after_normalisation_matches(
        name in "[a-zA-Z0-9一-龥·]{1,20}",
        other in "[a-zA-Z0-9一-龥·]{1,20}",
        choices in prop::collection::vec(0..4_u8, 20),
    ) {
        let ty = built_in("resident_identity");
        let record = record(&ty, &[("name", text(&name))]);
        let written: String = name.chars().zip(choices).flat_map(|(letter, choice)| match (letter, choice) {
            ('!'..='~', 0) => vec![char::from_u32(u32::from(letter) + 0xfee0).unwrap()],
            ('·', 0) => vec!['•'],
            (_, 1) => vec![letter.to_ascii_lowercase()],
            (_, 2) => vec![letter.to_ascii_uppercase(), ' '],
            (_, 3) => vec!['\u{3000}', letter],
            _ => vec![letter],
        }).collect();
        prop_assert_eq!(claimed(&ty, &["name"], &record, "name", &written), Compared::Match);
        let due = if name.eq_ignore_ascii_case(&other) { Compared::Match } else { Compared::Mismatch };
        prop_assert_eq!(claimed(&ty, &["name"], &record, "name", &other), due);
    }

    /// What may not be compared decides nothing: the results are those of the record without it.
    #[test]
    fn results_rest_on_what_may_be_compared_alone(granted in 0..1_u32 << 16, known in 0..1_u32 << 16, status in 0..5_i32) {
        let ty = built_in("resident_identity");
        let all = ty.all() - ty.never - fields(&ty, &["photo"]);
        let chosen = |bits: u32| -> Fields { all.iter().filter(|field| bits >> field & 1 == 1).collect() };
        let granted = chosen(granted);
        let permit = permit_to(Mode::Verify, &ty, granted, &[]);
        let full: Vec<_> = ["name", "id_no", "birth_date", "address", "valid_from", "valid_until", "status", "ethnicity"]
            .into_iter()
            .filter(|name| chosen(known).contains(ty.leaf(name).unwrap()))
            .map(|name| (name, match name {
                "status" => Value::EnumNumber(status),
                "birth_date" | "valid_from" | "valid_until" => text("2026-06-01"),
                _ => text("x"),
            }))
            .collect();
        // The leaves behind what may be compared; the rest is cut away, or replaced by garbage.
        let open = ty.sources(permit.open());
        let cut: Vec<_> = full.iter().filter(|(name, _)| open.contains(ty.leaf(name).unwrap())).cloned().collect();
        let claims: Vec<_> = all.iter().map(|field| {
            let value = match ty.path(field) {
                "birth_date" | "valid_from" | "valid_until" => "2026-06-01",
                "sex" => "1",
                "status" => "VALID",
                path if ty.leaf(path).is_none() => "true",
                _ => "x",
            };
            Claim::new(&ty, ty.path(field), value, TODAY).unwrap()
        }).collect();
        let of = |values: &[(&str, Value)]| {
            let record = record(&ty, values);
            compare(&settle(&permit, &record).unwrap(), &claims).unwrap()
        };
        let results = of(&full);
        prop_assert_eq!(&results, &of(&cut));
        for (claim, result) in claims.iter().zip(results) {
            prop_assert!(permit.open().contains(claim.field()) || result == Compared::CannotTell);
        }
    }

    /// Whatever a provider sends, it is compared or refused.
    #[test]
    fn no_bytes_break_the_comparison(bytes in prop::collection::vec(any::<u8>(), 0..64), cut in any::<prop::sample::Index>()) {
        let ty = built_in("resident_identity");
        let permit = permit_to(Mode::Verify, &ty, ty.all() - ty.never, &[]);
        let claims = [("name", "x"), ("status", "1"), ("in_force", "true"), ("aged_18", "true")]
            .map(|(path, value)| Claim::new(&ty, path, value, TODAY).unwrap());
        let mut sound = record(&ty, &[("name", text("x")), ("birth_date", text("1949-12-31")), ("status", Value::EnumNumber(1))]);
        for damaged in [bytes.clone(), { sound.truncate(cut.index(sound.len())); [sound, bytes].concat() }] {
            if let Ok(settled) = settle(&permit, &damaged) {
                let _ = compare(&settled, &claims);
            }
        }
    }
}
