//! A record for people and for programs: its fields with the catalog's labels, or JSON.

use prost_reflect::{
    DescriptorPool, DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MapKey, SerializeOptions, Value,
};
use thiserror::Error;

/// One field of a record that has a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldRow {
    /// Leaf path as grants and answers name it, for example `members.id_no`.
    pub path: String,
    /// Chinese label; within a list with the position from 1, for example `户内成员[2] 姓名`.
    pub label_zh: String,
    /// The value as text: an enum's Chinese label, `<12 bytes>` for bytes.
    pub value: String,
}

/// Why a record could not be shown.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RenderError {
    /// The descriptors have no message of the record's type URL.
    #[error("unknown record type `{0}`")]
    UnknownType(String),
    /// The bytes are no message of that type.
    #[error("the record does not decode as `{0}`")]
    Malformed(String),
    /// The record has no JSON form.
    #[error("the record has no JSON form")]
    Json,
}

/// The fields that have a value, in the order of their numbers, messages and lists flattened to their leaves.
pub fn rows(pool: &DescriptorPool, record: &prost_types::Any) -> Result<Vec<FieldRow>, RenderError> {
    let message = decode(pool, record)?;
    let labels = Labels::of(pool);
    let mut rows = Vec::new();
    flatten(&message, &labels, "", "", &mut rows);
    Ok(rows)
}

/// The Chinese label of a leaf path of a record's type, its list positions left out; the path if there is none.
pub fn label(pool: &DescriptorPool, type_url: &str, path: &str) -> String {
    let labels = Labels::of(pool);
    let mut message = pool.get_message_by_name(type_url.rsplit('/').next().unwrap_or_default());
    let mut parts = Vec::new();
    for name in path.split('.') {
        let Some(field) = message.as_ref().and_then(|message| message.get_field_by_name(name)) else {
            return path.to_owned();
        };
        parts.push(labels.field(&field));
        message = field.kind().as_message().cloned();
    }
    parts.join(" ")
}

/// The record as JSON (proto3's mapping) under the field names that paths use, with its type URL as `@type`.
pub fn json(pool: &DescriptorPool, record: &prost_types::Any) -> Result<serde_json::Value, RenderError> {
    let message = decode(pool, record)?;
    let options = SerializeOptions::new().use_proto_field_name(true);
    let value = message.serialize_with_options(serde_json::value::Serializer, &options);
    let Ok(serde_json::Value::Object(fields)) = value else { return Err(RenderError::Json) };
    let kind = ("@type".to_owned(), serde_json::Value::String(record.type_url.clone()));
    Ok([kind].into_iter().chain(fields).collect())
}

fn decode(pool: &DescriptorPool, record: &prost_types::Any) -> Result<DynamicMessage, RenderError> {
    let name = record.type_url.rsplit('/').next().unwrap_or_default();
    let descriptor = pool.get_message_by_name(name).ok_or_else(|| RenderError::UnknownType(record.type_url.clone()))?;
    DynamicMessage::decode(descriptor, record.value.as_slice()).map_err(|_| RenderError::Malformed(name.to_owned()))
}

/// The options that hold labels; a descriptor set without them leaves the names.
struct Labels {
    field: Option<prost_reflect::ExtensionDescriptor>,
    value: Option<prost_reflect::ExtensionDescriptor>,
}

impl Labels {
    fn of(pool: &DescriptorPool) -> Self {
        Self {
            field: pool.get_extension_by_name("oncegate.records.v1.field"),
            value: pool.get_extension_by_name("oncegate.records.v1.label_zh"),
        }
    }

    fn field(&self, field: &FieldDescriptor) -> String {
        let label = self.field.as_ref().and_then(|extension| {
            let options = field.options();
            let of = options.get_extension(extension);
            let label = of.as_message()?.get_field_by_name("label_zh")?.into_owned();
            label.as_str().filter(|label| !label.is_empty()).map(str::to_owned)
        });
        label.unwrap_or_else(|| field.name().to_owned())
    }

    fn value(&self, of: &EnumDescriptor, number: i32) -> String {
        let Some(value) = of.get_value(number) else { return number.to_string() };
        let label = self.value.as_ref().and_then(|extension| {
            let options = value.options();
            let label = options.get_extension(extension).into_owned();
            label.as_str().filter(|label| !label.is_empty()).map(str::to_owned)
        });
        label.unwrap_or_else(|| value.name().to_owned())
    }
}

/// Depth is bounded by the decoder's recursion limit.
fn flatten(message: &DynamicMessage, labels: &Labels, path: &str, label: &str, rows: &mut Vec<FieldRow>) {
    let mut fields: Vec<_> = message.fields().collect();
    fields.sort_by_key(|(field, _)| field.number());
    for (field, value) in fields {
        let path = if path.is_empty() { field.name().to_owned() } else { format!("{path}.{}", field.name()) };
        let own = labels.field(&field);
        let label = if label.is_empty() { own } else { format!("{label} {own}") };
        match value {
            Value::List(items) => {
                for (item, position) in items.iter().zip(1..) {
                    leaf_or_below(item, &field, labels, &path, &format!("{label}[{position}]"), rows);
                }
            }
            value => leaf_or_below(value, &field, labels, &path, &label, rows),
        }
    }
}

fn leaf_or_below(
    value: &Value,
    field: &FieldDescriptor,
    labels: &Labels,
    path: &str,
    label: &str,
    rows: &mut Vec<FieldRow>,
) {
    let value = match (value, field.kind()) {
        (Value::Message(below), _) => return flatten(below, labels, path, label, rows),
        (Value::EnumNumber(number), Kind::Enum(of)) => labels.value(&of, *number),
        (value, _) => text(value),
    };
    rows.push(FieldRow { path: path.to_owned(), label_zh: label.to_owned(), value });
}

fn text(value: &Value) -> String {
    match value {
        Value::Bool(true) => "是".to_owned(),
        Value::Bool(false) => "否".to_owned(),
        Value::I32(number) | Value::EnumNumber(number) => number.to_string(),
        Value::I64(number) => number.to_string(),
        Value::U32(number) => number.to_string(),
        Value::U64(number) => number.to_string(),
        Value::F32(number) => number.to_string(),
        Value::F64(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Bytes(bytes) => format!("<{} bytes>", bytes.len()),
        // Records have no maps; a department's own message is still shown.
        Value::Map(entries) => {
            let mut keys: Vec<_> = entries.keys().map(key_text).collect();
            keys.sort();
            keys.join(", ")
        }
        Value::List(_) | Value::Message(_) => String::new(),
    }
}

fn key_text(key: &MapKey) -> String {
    text(&Value::from(key.clone()))
}

#[cfg(test)]
mod tests {
    use prost_reflect::prost::Message;

    use super::*;

    fn pool() -> DescriptorPool {
        DescriptorPool::decode(crate::pb::DESCRIPTOR_SET).unwrap()
    }

    fn page() -> prost_types::Any {
        let descriptor = pool().get_message_by_name("oncegate.records.v1.HouseholdRegister").unwrap();
        let members = descriptor.get_field_by_name("members").unwrap();
        let Kind::Message(member) = members.kind() else { panic!("members are messages") };
        let member = |name: &str| {
            let mut message = DynamicMessage::new(member.clone());
            message.set_field_by_name("relation_to_head", Value::String("02".into()));
            message.set_field_by_name("name", Value::String(name.into()));
            Value::Message(message)
        };
        let mut page = DynamicMessage::new(descriptor);
        page.set_field_by_name("status", Value::EnumNumber(1));
        page.set_field_by_name("sex", Value::EnumNumber(7));
        page.set_field_by_name("height_cm", Value::U32(0));
        page.set_field_by_name("members", Value::List(vec![member("甲某某"), member("乙某某")]));
        prost_types::Any {
            type_url: "type.googleapis.com/oncegate.records.v1.HouseholdRegister".into(),
            value: page.encode_to_vec(),
        }
    }

    #[test]
    fn a_record_becomes_rows_with_the_catalogs_labels() {
        let rows: Vec<_> =
            rows(&pool(), &page()).unwrap().into_iter().map(|row| [row.path, row.label_zh, row.value]).collect();
        assert_eq!(
            rows,
            [
                ["sex", "性别", "7"],
                ["height_cm", "身高", "0"],
                ["members.name", "户内成员[1] 姓名", "甲某某"],
                ["members.relation_to_head", "户内成员[1] 与户主关系", "02"],
                ["members.name", "户内成员[2] 姓名", "乙某某"],
                ["members.relation_to_head", "户内成员[2] 与户主关系", "02"],
                ["status", "户籍状态", "正常"],
            ]
        );
    }

    #[test]
    fn bytes_are_counted_not_shown() {
        let descriptor = pool().get_message_by_name("oncegate.records.v1.ResidentIdentity").unwrap();
        let mut card = DynamicMessage::new(descriptor);
        card.set_field_by_name("photo", Value::Bytes(vec![0; 12].into()));
        let record = prost_types::Any {
            type_url: "type.googleapis.com/oncegate.records.v1.ResidentIdentity".into(),
            value: card.encode_to_vec(),
        };
        assert_eq!(rows(&pool(), &record).unwrap()[0].value, "<12 bytes>");
    }

    #[test]
    fn json_uses_the_names_of_paths() {
        let json = json(&pool(), &page()).unwrap();
        assert_eq!(json["@type"], "type.googleapis.com/oncegate.records.v1.HouseholdRegister");
        assert_eq!(json["status"], "STATUS_NORMAL");
        assert_eq!(json["members"][1]["relation_to_head"], "02");
    }

    #[test]
    fn what_is_no_record_is_an_error_without_its_bytes() {
        let unknown = prost_types::Any { type_url: "type.googleapis.com/x.Y".into(), value: Vec::new() };
        assert_eq!(rows(&pool(), &unknown), Err(RenderError::UnknownType(unknown.type_url.clone())));
        let broken = prost_types::Any { value: b"\xff\xff".to_vec(), ..page() };
        assert_eq!(json(&pool(), &broken), Err(RenderError::Malformed("oncegate.records.v1.HouseholdRegister".into())));
    }
}
