//! What the departments' systems hold: for every person and business the certificates, as keys and field values.

mod entity;
mod family;
mod income;
mod person;
mod property;

use prost_reflect::prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, EnumDescriptor, Kind, MessageDescriptor, Value};
use thiserror::Error;
use time::Date;

use super::population::{Business, Family, Person, Population, Sex};

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
    /// Yes or no.
    Flag(bool),
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

/// The sets of keys that find a record, by the options of its message.
pub(super) fn key_sets(message: &MessageDescriptor) -> Vec<Vec<String>> {
    let part = |of: &Value, name: &str| {
        let message = of.as_message()?;
        Some(message.get_field_by_name(name)?.into_owned())
    };
    let list =
        |of: &Value, name: &str| part(of, name).and_then(|found| Some(found.as_list()?.to_vec())).unwrap_or_default();
    let option = message.parent_pool().get_extension_by_name("oncegate.records.v1.certificate_type");
    let of = option.map(|option| message.options().get_extension(&option).into_owned());
    let sets = of.map(|of| list(&of, "lookup_sets")).unwrap_or_default();
    let name = |key: &Value| part(key, "name").and_then(|name| name.as_str().map(ToOwned::to_owned));
    sets.iter().map(|set| list(set, "keys").iter().filter_map(name).collect()).collect()
}

/// Every record of a type.
pub(super) fn drafts(population: &Population, code: &str) -> Result<Vec<Draft>, RecordError> {
    let families = &population.families;
    let each_person = |make: &dyn Fn(&Family, &Person) -> Vec<Draft>| -> Vec<Draft> {
        population.people().flat_map(|(family, person)| make(family, person)).collect()
    };
    Ok(match code {
        "birth_medical_certificate" => families.iter().flat_map(family::births).collect(),
        "household_register" => families.iter().flat_map(family::household).collect(),
        "marriage_record" => families.iter().filter_map(family::marriage).collect(),
        "death_record" => families.iter().filter_map(family::death).collect(),
        "resident_identity" => families.iter().flat_map(person::identities).collect(),
        "residence_permit" => families.iter().flat_map(person::permits).collect(),
        "disability_certificate" => each_person(&person::disability),
        "veteran_preferential_card" => families.iter().filter_map(person::veteran_card).collect(),
        "veteran_registration" => families.iter().filter_map(person::veteran_registration).collect(),
        "vaccination_record" => {
            families.iter().flat_map(|family| person::vaccinations(family, population.today)).collect()
        }
        "school_enrolment_record" => {
            families.iter().flat_map(|family| person::schooling(family, population.today)).collect()
        }
        "low_income_record" => families.iter().flat_map(income::allowance).collect(),
        "social_insurance_record" => income::social_insurance(population),
        "medical_insurance_record" => {
            each_person(&|family, person| vec![income::medical_insurance(family, person, population.today)])
        }
        "real_estate_title" => property::titles(population),
        "house_contract_filing" => families.iter().filter_map(property::contract).collect(),
        "planning_permit" => property::planning(population),
        "business_license" => population.businesses.iter().map(entity::license).collect(),
        "tax_clearance" => population.businesses.iter().map(entity::clearance).collect(),
        _ => return Err(RecordError::UnknownType(code.to_owned())),
    })
}

/// The number of a company's planning permit.
pub(super) fn planning_permit_no(business: &Business) -> String {
    property::permit_no(business)
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
            (Cell::Flag(flag), Kind::Bool) => Value::Bool(*flag),
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

fn named(value: &'static str) -> (&'static str, Cell) {
    ("status", Cell::Named(value))
}

/// A set of keys.
fn keys<const N: usize>(of: [(&'static str, &str); N]) -> Vec<(&'static str, String)> {
    of.map(|(name, value)| (name, value.to_owned())).into()
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
    fn every_type_of_the_catalog_has_records_that_fill_its_fields_and_answer_its_keys() {
        let pool = DescriptorPool::decode(crate::pb::DESCRIPTOR_SET).unwrap();
        let county = Population::generate(7, date!(2026 - 11 - 23));
        let option = pool.get_extension_by_name("oncegate.records.v1.certificate_type").unwrap();
        let types: Vec<_> = pool.all_messages().filter(|message| message.options().has_extension(&option)).collect();
        assert_eq!(types.len(), 19);
        for message in types {
            let options = message.options();
            let code =
                options.get_extension(&option).as_message().unwrap().get_field_by_name("code").unwrap().into_owned();
            let (code, key_sets) = (code.as_str().unwrap().to_owned(), key_sets(&message));
            let (mut filled, mut answered) = (HashSet::new(), HashSet::new());
            for draft in drafts(&county, &code).unwrap() {
                let any = encode(&message, &draft).unwrap();
                assert!(any.value.len() < 16 * 1024);
                filled.extend(draft.cells.iter().map(|(name, _)| *name));
                for set in &draft.keys {
                    let names: Vec<_> = set.iter().map(|(name, _)| (*name).to_owned()).collect();
                    assert!(key_sets.contains(&names), "{code} {names:?}");
                    answered.insert(names);
                }
            }
            for field in message.fields() {
                assert!(filled.contains(field.name()), "{code}.{} is never filled", field.name());
            }
            let asked: HashSet<_> = key_sets.into_iter().collect();
            assert_eq!(answered, asked, "{code}");
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
