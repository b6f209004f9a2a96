//! What the departments' systems hold: for every person and business the certificates, as keys and field values.

use prost_reflect::prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, EnumDescriptor, Kind, MessageDescriptor, Value};
use thiserror::Error;
use time::Date;

use super::numbers::DIVISION;
use super::population::{Business, Child, Disability, Family, Person, Population, Sex};

/// The certificate types of the demo and the sets of keys that find a record of each.
pub(super) const KEY_SETS: &[(&str, &[&[&str]])] = &[
    ("birth_medical_certificate", &[&["mother_id_no", "birth_date"], &["certificate_no", "infant_name"]]),
    ("resident_identity", &[&["id_no", "name"]]),
    ("household_register", &[&["id_no", "name"], &["household_no", "head_name"]]),
    ("disability_certificate", &[&["id_no", "name"], &["certificate_no", "name"]]),
    ("business_license", &[&["uscc"], &["registration_no"], &["entity_name"]]),
];

/// A record of a type as its department holds it.
#[derive(Clone)]
pub(super) struct Draft {
    /// The sets of keys that find it: name and value.
    pub(super) keys: Vec<Vec<(&'static str, String)>>,
    /// Field name and value; what a record lacks is left out.
    pub(super) cells: Vec<(&'static str, Cell)>,
}

/// A value before it meets its descriptor.
#[derive(Clone)]
pub(super) enum Cell {
    /// A string.
    Text(String),
    /// A whole number.
    Count(u32),
    /// Bytes.
    Bytes(Vec<u8>),
    /// An enum's value by its name without the prefix.
    Named(&'static str),
    /// An enum's value by its number.
    Numbered(u8),
    /// A list of messages.
    Rows(Vec<Vec<(&'static str, Cell)>>),
}

/// Why a record could not be made: catalog and population do not fit each other.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RecordError {
    /// No message carries this type code, or the demo has no records of it.
    #[error("no certificate type `{0}`")]
    UnknownType(String),
    /// The message has no such field.
    #[error("`{0}` has no field `{1}`")]
    UnknownField(String, &'static str),
    /// The field is of another type.
    #[error("`{0}.{1}` is of another type")]
    WrongType(String, &'static str),
}

/// The message of a certificate type, by the code in its options.
pub(super) fn message_of(pool: &DescriptorPool, code: &str) -> Result<MessageDescriptor, RecordError> {
    let unknown = || RecordError::UnknownType(code.to_owned());
    let option = pool.get_extension_by_name("oncegate.records.v1.certificate_type").ok_or_else(unknown)?;
    let has_code = |message: &MessageDescriptor| {
        let options = message.options();
        let of = options.get_extension(&option);
        let field = of.as_message().and_then(|of| of.get_field_by_name("code"));
        field.is_some_and(|field| field.as_str() == Some(code))
    };
    pool.all_messages().find(has_code).ok_or_else(unknown)
}

/// Every record of a type.
pub(super) fn drafts(population: &Population, code: &str) -> Result<Vec<Draft>, RecordError> {
    let families = &population.families;
    Ok(match code {
        "birth_medical_certificate" => {
            families.iter().flat_map(|family| family.children.iter().map(|child| birth(family, child))).collect()
        }
        "resident_identity" => population.people().filter_map(|(family, person)| identity(family, person)).collect(),
        "household_register" => families.iter().flat_map(household).collect(),
        "disability_certificate" => (population.people())
            .filter_map(|(family, person)| Some(disability(family, person, person.disability.as_ref()?)))
            .collect(),
        "business_license" => population.businesses.iter().map(business).collect(),
        _ => return Err(RecordError::UnknownType(code.to_owned())),
    })
}

/// The record as an `Any` of its message.
pub(super) fn encode(message: &MessageDescriptor, draft: &Draft) -> Result<prost_types::Any, RecordError> {
    Ok(prost_types::Any {
        type_url: format!("type.googleapis.com/{}", message.full_name()),
        value: fill(message, &draft.cells)?.encode_to_vec(),
    })
}

fn fill(descriptor: &MessageDescriptor, cells: &[(&'static str, Cell)]) -> Result<DynamicMessage, RecordError> {
    let mut message = DynamicMessage::new(descriptor.clone());
    for (name, cell) in cells {
        let field = (descriptor.get_field_by_name(name))
            .ok_or_else(|| RecordError::UnknownField(descriptor.name().to_owned(), name))?;
        let wrong = || RecordError::WrongType(descriptor.name().to_owned(), name);
        let value = match (cell, field.kind()) {
            (Cell::Text(text), Kind::String) => Value::String(text.clone()),
            (Cell::Count(count), Kind::Uint32) => Value::U32(*count),
            (Cell::Bytes(bytes), Kind::Bytes) => Value::Bytes(bytes.clone().into()),
            (Cell::Named(name), Kind::Enum(of)) => Value::EnumNumber(numbered(&of, name).ok_or_else(wrong)?),
            (Cell::Numbered(number), Kind::Enum(of)) => {
                Value::EnumNumber(of.get_value(i32::from(*number)).ok_or_else(wrong)?.number())
            }
            (Cell::Rows(rows), Kind::Message(of)) => {
                let rows: Result<_, _> = rows.iter().map(|row| fill(&of, row).map(Value::Message)).collect();
                Value::List(rows?)
            }
            _ => return Err(wrong()),
        };
        message.try_set_field(&field, value).map_err(|_| wrong())?;
    }
    Ok(message)
}

/// The number of an enum's value by its name without the prefix: `VALID` of `STATUS_VALID`.
fn numbered(of: &EnumDescriptor, name: &str) -> Option<i32> {
    let named = |value: &str| value.strip_suffix(name).is_some_and(|prefix| prefix.ends_with('_'));
    of.values().find(|value| named(value.name())).map(|value| value.number())
}

fn birth(family: &Family, child: &Child) -> Draft {
    let Child { person, birth } = child;
    let mother = &family.mother;
    let mut cells = vec![
        text("certificate_no", &birth.certificate_no),
        text("infant_name", &person.name),
        sex(person),
        text("birth_datetime", &birth.datetime),
        ("gestational_weeks", Cell::Count(birth.gestational_weeks)),
        ("birth_weight_g", Cell::Count(birth.weight_g)),
        ("birth_length_cm", Cell::Count(birth.length_cm)),
        text("birth_place", DIVISION),
        text("birth_institution", birth.institution),
        text("mother_name", &mother.name),
        text("mother_id_type", IDENTITY_NUMBER),
        text("mother_id_no", &mother.id_no),
        text("mother_ethnicity", mother.ethnicity),
        text("issuing_institution", birth.institution),
        date("issue_date", birth.issue_date),
        ("status", Cell::Named("VALID")),
    ];
    if let Some(father) = &family.father {
        cells.extend([
            text("father_name", &father.name),
            text("father_id_type", IDENTITY_NUMBER),
            text("father_id_no", &father.id_no),
            text("father_ethnicity", father.ethnicity),
        ]);
    }
    Draft {
        keys: vec![
            vec![("mother_id_no", mother.id_no.clone()), ("birth_date", person.birth_date.to_string())],
            vec![("certificate_no", birth.certificate_no.clone()), ("infant_name", person.name.clone())],
        ],
        cells,
    }
}

fn identity(family: &Family, person: &Person) -> Option<Draft> {
    let card = person.card.as_ref()?;
    let mut cells = vec![
        text("name", &person.name),
        text("id_no", &person.id_no),
        sex(person),
        text("ethnicity", person.ethnicity),
        date("birth_date", person.birth_date),
        text("address", &family.address),
        text("issuing_authority", "子虚县公安局"),
        date("valid_from", card.valid_from),
        ("photo", photo()),
        ("fingerprint", Cell::Bytes(vec![0x5a; 512])),
        ("status", Cell::Named(card.status)),
    ];
    cells.extend(card.valid_until.map(|until| date("valid_until", until)));
    Some(Draft { keys: vec![id_and_name(person)], cells })
}

/// The pages of a household, one a member. The household's own number finds the head's page.
fn household(family: &Family) -> Vec<Draft> {
    let members: Vec<Vec<(&'static str, Cell)>> = (family.members())
        .map(|(person, relation)| {
            vec![text("name", &person.name), text("id_no", &person.id_no), text("relation_to_head", relation)]
        })
        .collect();
    let head = family.head();
    let page = |(person, relation): (&Person, &'static str)| {
        let mut cells = vec![
            text("household_no", &family.household_no),
            ("household_type", Cell::Named("FAMILY")),
            text("head_name", &head.name),
            text("address", &family.address),
            text("division_code", DIVISION),
            text("registration_authority", &family.police_station),
            text("name", &person.name),
            text("id_no", &person.id_no),
            text("relation_to_head", relation),
            sex(person),
            text("ethnicity", person.ethnicity),
            date("birth_date", person.birth_date),
            text("birth_place", "乌有省子虚县"),
            text("native_place", "乌有省子虚县"),
            text("marital_status", person.marital_status),
            text("education", person.education),
            text("military_service", "0"),
            text("religion", "0"),
            ("height_cm", Cell::Count(person.height_cm)),
            text("blood_type", person.blood_type),
            date("registered_at", person.registered_at),
            ("member_count", Cell::Count(u32::try_from(members.len()).unwrap_or(u32::MAX))),
            ("members", Cell::Rows(members.clone())),
            ("status", Cell::Named("NORMAL")),
        ];
        cells.extend(person.former_name.as_deref().map(|name| text("former_name", name)));
        cells.extend(person.employer.map(|name| text("employer", name)));
        let mut keys = vec![id_and_name(person)];
        if person.id_no == head.id_no {
            keys.push(vec![("household_no", family.household_no.clone()), ("head_name", head.name.clone())]);
        }
        Draft { keys, cells }
    };
    family.members().map(page).collect()
}

fn disability(family: &Family, person: &Person, certificate: &Disability) -> Draft {
    let mut cells = vec![
        text("certificate_no", &certificate.certificate_no),
        text("name", &person.name),
        text("id_no", &person.id_no),
        sex(person),
        text("address", &family.address),
        ("disability_category", Cell::Numbered(certificate.category)),
        ("disability_grade", Cell::Numbered(certificate.grade)),
        date("issue_date", certificate.issue_date),
        date("valid_until", certificate.valid_until),
        text("issuing_authority", "子虚县残疾人联合会"),
        ("photo", photo()),
        ("status", Cell::Named(certificate.status)),
    ];
    if let Some(guardian) = &certificate.guardian {
        cells.extend([text("guardian_name", &guardian.name), text("guardian_phone", &guardian.phone)]);
    }
    let by_number = vec![("certificate_no", certificate.certificate_no.clone()), ("name", person.name.clone())];
    Draft { keys: vec![id_and_name(person), by_number], cells }
}

fn business(business: &Business) -> Draft {
    let mut cells = vec![
        text("uscc", &business.uscc),
        text("entity_name", &business.entity_name),
        text("entity_type", business.entity_type),
        text("legal_representative", &business.legal_representative),
        text("legal_representative_id_no", &business.legal_representative_id_no),
        date("established_date", business.established_date),
        date("term_from", business.established_date),
        text("domicile", &business.domicile),
        text("business_scope", business.business_scope),
        text("registration_authority", "子虚县市场监督管理局"),
        date("approved_date", business.approved_date),
        ("status", Cell::Named(business.status)),
    ];
    let mut keys = vec![vec![("uscc", business.uscc.clone())], vec![("entity_name", business.entity_name.clone())]];
    if let Some(number) = &business.registration_no {
        cells.push(text("registration_no", number));
        keys.push(vec![("registration_no", number.clone())]);
    }
    cells.extend(business.registered_capital.as_deref().map(|capital| text("registered_capital", capital)));
    cells.extend(business.term_until.map(|until| date("term_until", until)));
    if let Some(before) = &business.predecessor {
        cells.extend([
            text("predecessor_uscc", &before.uscc),
            date("predecessor_established_date", before.established_date),
        ]);
    }
    Draft { keys, cells }
}

/// The code for an identity number in GB/T 36903.
const IDENTITY_NUMBER: &str = "111";

fn text(name: &'static str, value: &str) -> (&'static str, Cell) {
    (name, Cell::Text(value.to_owned()))
}

fn date(name: &'static str, value: Date) -> (&'static str, Cell) {
    (name, Cell::Text(value.to_string()))
}

fn sex(person: &Person) -> (&'static str, Cell) {
    ("sex", Cell::Named(if person.sex == Sex::Male { "MALE" } else { "FEMALE" }))
}

/// Bytes that begin as a JPEG does and show nobody.
fn photo() -> Cell {
    let mut bytes = vec![0x80; 2048];
    bytes.splice(..4, [0xff, 0xd8, 0xff, 0xe0]);
    Cell::Bytes(bytes)
}

fn id_and_name(person: &Person) -> Vec<(&'static str, String)> {
    vec![("id_no", person.id_no.clone()), ("name", person.name.clone())]
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use time::macros::date;

    use super::*;

    #[test]
    fn every_record_encodes_and_every_field_of_every_type_is_filled_somewhere() {
        let pool = DescriptorPool::decode(crate::pb::DESCRIPTOR_SET).unwrap();
        let county = Population::generate(7, date!(2026 - 11 - 23));
        for (code, key_sets) in KEY_SETS {
            let message = message_of(&pool, code).unwrap();
            let mut filled = HashSet::new();
            for draft in drafts(&county, code).unwrap() {
                let any = encode(&message, &draft).unwrap();
                assert!(any.value.len() < 16 * 1024);
                filled.extend(draft.cells.iter().map(|(name, _)| *name));
                for set in &draft.keys {
                    let names: Vec<_> = set.iter().map(|(name, _)| *name).collect();
                    assert!(key_sets.contains(&names.as_slice()), "{code} {names:?}");
                }
            }
            for field in message.fields() {
                assert!(filled.contains(field.name()), "{code}.{} is never filled", field.name());
            }
        }
    }

    #[test]
    fn the_key_sets_are_those_of_the_catalog() {
        let pool = DescriptorPool::decode(crate::pb::DESCRIPTOR_SET).unwrap();
        let option = pool.get_extension_by_name("oncegate.records.v1.certificate_type").unwrap();
        for (code, key_sets) in KEY_SETS {
            let options = message_of(&pool, code).unwrap().options();
            let of = options.get_extension(&option);
            let sets = of.as_message().unwrap().get_field_by_name("lookup_sets").unwrap().into_owned();
            let sets: Vec<Vec<String>> = (sets.as_list().unwrap().iter())
                .map(|set| {
                    let keys = set.as_message().unwrap().get_field_by_name("keys").unwrap().into_owned();
                    let name = |key: &Value| key.as_message().unwrap().get_field_by_name("name").unwrap().into_owned();
                    keys.as_list().unwrap().iter().map(|key| name(key).as_str().unwrap().to_owned()).collect()
                })
                .collect();
            assert_eq!(sets, *key_sets, "{code}");
        }
    }

    #[test]
    fn a_field_that_the_catalog_lacks_is_an_error() {
        let pool = DescriptorPool::decode(crate::pb::DESCRIPTOR_SET).unwrap();
        let message = message_of(&pool, "resident_identity").unwrap();
        let draft = |cell| Draft { keys: Vec::new(), cells: vec![cell] };
        assert_eq!(
            encode(&message, &draft(text("nickname", "x"))),
            Err(RecordError::UnknownField("ResidentIdentity".into(), "nickname"))
        );
        assert_eq!(
            encode(&message, &draft(("status", Cell::Named("ALID")))),
            Err(RecordError::WrongType("ResidentIdentity".into(), "status"))
        );
    }
}
