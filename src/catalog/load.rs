//! Messages and their options to [`CertificateType`]s. Every rule a type must keep is checked here, all faults at once.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use prost_reflect::{
    Cardinality, DescriptorPool, DynamicMessage, ExtensionDescriptor, FieldDescriptor, Kind, MessageDescriptor,
    ReflectMessage as _, Syntax, Value,
};

use super::checks;
use super::fault::Faults;
use super::files::Departments;
use super::subject::{ABOUT, is_name};
use super::types::{
    CertificateType, Child, Fields, Leaf, LookupKey, LookupSet, MAX_LEAVES, Node, ROLES, Scalar, SharingClass,
    ValueKind, Wire,
};

/// Messages within messages, the certificate itself included.
const MAX_DEPTH: usize = 16;
/// Fields looked at in one type, leaves and parents: far above what [`MAX_LEAVES`] leaves need, so that messages that hold
/// each other a thousandfold end early.
const MAX_VISITED: usize = 2048;
/// An answer older than a day is not kept.
const MAX_FRESHNESS_S: u32 = 86_400;
/// Longest code of a certificate type, and of a matter.
pub(super) const MAX_CODE: usize = 48;
/// Lookup sets of a type, and keys of a set.
const MAX_KEYS: usize = 16;

/// Every message of the pool that the option makes a certificate type, by code.
pub(super) fn certificate_types(
    pool: &DescriptorPool,
    departments: &Departments,
    faults: &mut Faults,
) -> BTreeMap<String, Arc<CertificateType>> {
    let mut types: BTreeMap<String, Arc<CertificateType>> = BTreeMap::new();
    let option = |name| pool.get_extension_by_name(&format!("oncegate.records.v1.{name}"));
    let (Some(type_option), Some(field_option)) = (option("certificate_type"), option("field")) else {
        faults.of(Path::new("oncegate/records/v1/options.proto"), "is in none of the descriptor sets");
        return types;
    };
    for message in pool.all_messages() {
        let Some(options) = Options::of(&message.options(), &type_option) else { continue };
        let file = message.parent_file();
        let file = Path::new(file.name());
        let mut reader = Reader::new(&message, file, &field_option, faults);
        let Some(ty) = reader.certificate_type(&options, departments) else { continue };
        if let Some(other) = types.get(&ty.code) {
            faults.of(file, format!("{}: {} has the code `{}`, too", message.name(), other.message, ty.code));
        } else {
            types.insert(ty.code.clone(), Arc::new(ty));
        }
    }
    types
}

/// Lower-case ASCII letters, digits and `_`, a letter first, at most [`MAX_CODE`]: a certificate type or a matter.
pub(super) fn is_code(text: &str) -> bool {
    text.len() <= MAX_CODE
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// Reads one type. A fault is noted and a harmless value takes its place, so that the reading goes on to the next.
pub(super) struct Reader<'a> {
    message: &'a MessageDescriptor,
    file: &'a Path,
    field_option: &'a ExtensionDescriptor,
    faults: &'a mut Faults,
    pub(super) leaves: Vec<Leaf>,
    /// Leaves that may occur several times in a record.
    pub(super) lists: Fields,
    pub(super) never: Fields,
    verify_only: Fields,
    volatile: Fields,
    visited: usize,
    /// True once a leaf beyond [`MAX_LEAVES`] was met.
    full: bool,
    /// Messages from the certificate down to the one being read.
    within: Vec<String>,
}

/// What a field takes from the message that holds it: the stricter of the two rules.
#[derive(Clone, Copy, Default)]
struct Inherited {
    sensitivity: u8,
    share: i32,
    volatile: bool,
    listed: bool,
}

impl<'a> Reader<'a> {
    fn new(
        message: &'a MessageDescriptor,
        file: &'a Path,
        field_option: &'a ExtensionDescriptor,
        faults: &'a mut Faults,
    ) -> Self {
        Self {
            message,
            file,
            field_option,
            faults,
            leaves: Vec::new(),
            lists: Fields::EMPTY,
            never: Fields::EMPTY,
            verify_only: Fields::EMPTY,
            volatile: Fields::EMPTY,
            visited: 0,
            full: false,
            within: Vec::new(),
        }
    }

    fn certificate_type(&mut self, options: &Options, departments: &Departments) -> Option<CertificateType> {
        let code = options.text("code");
        if !is_code(&code) {
            self.fault(
                "",
                format!("code: 1 to {MAX_CODE} lower-case letters, digits and `_`, a letter first, not {code:?}"),
            );
        }
        let (name_zh, name_en) = (options.text("name_zh"), options.text("name_en"));
        if name_zh.is_empty() || name_en.is_empty() {
            self.fault("", "needs name_zh and name_en");
        }
        let department = options.text("department");
        let provider = department.parse().ok().filter(|code| departments.has(code));
        if provider.is_none() {
            self.fault("", format!("department {department:?} is not registered"));
        }
        let national = options.text("national_type_code");
        if !national.is_empty() && !is_national_code(&national) {
            self.fault("", "national_type_code: a unified social credit code and 3 digits (GB/T 36904)");
        }
        let sharing = match options.number("sharing_class") {
            1 => SharingClass::Unconditional,
            2 => SharingClass::Conditional,
            3 => SharingClass::None,
            _ => {
                self.fault("", "needs a sharing_class");
                SharingClass::None
            }
        };
        let many = match options.number("cardinality") {
            0 | 1 => false,
            2 => true,
            _ => {
                self.fault("", "cardinality is unknown");
                false
            }
        };
        let freshness = u32::try_from(options.number("freshness_seconds")).unwrap_or(u32::MAX);
        if freshness > MAX_FRESHNESS_S {
            self.fault("", format!("freshness_seconds: at most {MAX_FRESHNESS_S} (a day), not {freshness}"));
        }

        let message = self.message.clone();
        let root = self.node(&message, "", &[], Inherited::default());
        let lookup_sets = self.lookup_sets(options);
        let predicates = self.predicates(options);
        let leaves = self.leaves.len();
        let all: Fields = (0..leaves + predicates.len()).collect();
        let l4 = self.leaves.iter().enumerate().filter(|(_, leaf)| leaf.sensitivity == 4).map(|(index, _)| index);
        let l4: Fields = l4.collect();
        // A predicate is as sensitive as what it is drawn from, and it is never read.
        let drawn = predicates.iter().enumerate().filter(|(_, predicate)| predicate.inputs.intersects(l4));
        let drawn: Fields = drawn.map(|(index, _)| leaves + index).collect();
        let subject_minor = options.flag("subject_minor");
        let sensitive = if subject_minor { all } else { l4 | drawn };
        let verify_only = self.verify_only | (leaves..all.len()).collect();
        Some(CertificateType {
            code,
            name_zh,
            name_en,
            provider: provider?,
            message: message.full_name().into(),
            type_url: format!("type.googleapis.com/{}", message.full_name()),
            sharing,
            lookup_sets,
            many,
            freshness: Duration::from_secs(freshness.into()),
            subject_minor,
            leaves: std::mem::take(&mut self.leaves),
            predicates,
            root,
            never: self.never,
            verify_only,
            sensitive,
            volatile: self.volatile,
        })
    }

    /// One message: its leaves are added in the order of their numbers, depth first.
    fn node(&mut self, message: &MessageDescriptor, path: &str, numbers: &[u32], inherited: Inherited) -> Node {
        let mut node = Node::default();
        if self.within.iter().any(|outer| outer == message.full_name()) {
            self.fault(path, format!("{} holds itself", message.full_name()));
            return node;
        }
        if self.within.len() >= MAX_DEPTH {
            self.fault(path, format!("more than {MAX_DEPTH} messages deep"));
            return node;
        }
        if message.parent_file().syntax() == Syntax::Proto2 {
            self.fault(path, format!("{} is proto2; records are proto3", message.full_name()));
        }
        if message.fields().len() == 0 {
            self.fault(path, format!("{} has no fields", message.full_name()));
        }
        self.within.push(message.full_name().into());
        let mut fields: Vec<_> = message.fields().collect();
        fields.sort_by_key(FieldDescriptor::number);
        for field in fields {
            self.visited += 1;
            if self.visited == MAX_VISITED {
                self.fault("", format!("more than {MAX_VISITED} fields, those of messages within counted each time"));
            }
            if self.visited >= MAX_VISITED {
                break;
            }
            let path = if path.is_empty() { field.name().into() } else { format!("{path}.{}", field.name()) };
            let numbers: Vec<u32> = numbers.iter().copied().chain([field.number()]).collect();
            if let Some(child) = self.child(&field, path, numbers, inherited) {
                node.children.push((field.number(), child));
            }
        }
        self.within.pop();
        node
    }

    fn child(&mut self, field: &FieldDescriptor, path: String, numbers: Vec<u32>, outer: Inherited) -> Option<Child> {
        for (is_so, what) in [
            (field.is_map(), "a map; use a repeated message"),
            (field.is_group(), "a group; use a message"),
            (field.cardinality() == Cardinality::Required, "required; records grow only with optional fields"),
        ] {
            if is_so {
                self.fault(&path, format!("is {what}"));
                return None;
            }
        }
        let options = Options::of(&field.options(), self.field_option);
        let repeated = field.is_list();
        let mut inherited = self.inherited(&path, options.as_ref(), outer);
        inherited.listed = outer.listed || repeated;
        if let Kind::Message(message) = field.kind() {
            let first = self.leaves.len();
            let node = self.node(&message, &path, &numbers, inherited);
            let below = (first..self.leaves.len()).collect();
            return Some(Child::Message { node, below, repeated });
        }
        if !repeated && !field.supports_presence() {
            self.fault(&path, "must be optional: that there is no value is not the same as 0 or an empty text");
        }
        let leaf = self.leaves.len();
        if leaf >= MAX_LEAVES {
            if !std::mem::replace(&mut self.full, true) {
                self.fault("", format!("more than {MAX_LEAVES} leaf fields"));
            }
            return None;
        }
        let options = options.or_else(|| {
            self.fault(&path, "has no (oncegate.records.v1.field) option");
            None
        })?;
        let (label_zh, label_en) = (options.text("label_zh"), options.text("label_en"));
        if label_zh.is_empty() || label_en.is_empty() {
            self.fault(&path, "needs label_zh and label_en");
        }
        if !(1..=4).contains(&options.number("sensitivity")) {
            self.fault(&path, "needs a sensitivity");
        }
        let kind = self.kind(&path, &options);
        if path == "status" && !matches!(field.kind(), Kind::Enum(_)) {
            self.fault(&path, "must be an enum: what a status means is stated, not guessed");
        }
        let (wire, scalar) = (wire(&field.kind()), scalar(&field.kind()));
        let mask = Some(options.text("mask")).filter(|mask| !mask.is_empty());
        let one = Fields::one(leaf);
        match inherited.share {
            0 => {}
            1 => self.verify_only |= one,
            _ => self.never |= one,
        }
        if inherited.volatile {
            self.volatile |= one;
        }
        if inherited.listed {
            self.lists |= one;
        }
        let sensitivity = inherited.sensitivity;
        self.leaves.push(Leaf { path, numbers, label_zh, label_en, sensitivity, kind, wire, scalar, mask });
        Some(Child::Leaf { leaf, wire, repeated })
    }

    fn inherited(&mut self, path: &str, options: Option<&Options>, outer: Inherited) -> Inherited {
        let Some(options) = options else { return outer };
        let share = options.number("share");
        if !(0..=2).contains(&share) {
            self.fault(path, "share is unknown");
        }
        Inherited {
            sensitivity: outer.sensitivity.max(u8::try_from(options.number("sensitivity")).unwrap_or(4)),
            share: outer.share.max(if share < 0 { 2 } else { share }),
            volatile: outer.volatile || options.flag("volatile"),
            listed: outer.listed,
        }
    }

    fn lookup_sets(&mut self, options: &Options) -> Vec<LookupSet> {
        let sets = options.messages("lookup_sets");
        if sets.is_empty() || sets.len() > MAX_KEYS {
            self.fault("", format!("needs 1 to {MAX_KEYS} lookup_sets"));
        }
        let mut read = Vec::new();
        for (index, set) in sets.iter().enumerate() {
            let before = self.faults.0.len();
            let keys = set.messages("keys");
            if keys.is_empty() || keys.len() > MAX_KEYS {
                self.fault("", format!("lookup_sets[{index}]: needs 1 to {MAX_KEYS} keys"));
            }
            let keys: Vec<_> = keys.iter().filter_map(|key| self.lookup_key(index, key)).collect();
            for (place, key) in keys.iter().enumerate() {
                if keys.iter().take(place).any(|earlier| earlier.name == key.name) {
                    self.fault("", format!("lookup_sets[{index}]: two keys `{}`", key.name));
                }
            }
            if self.faults.0.len() == before {
                self.check_set(index, &keys);
            }
            read.push(LookupSet { keys });
        }
        read
    }

    /// What a set of sound keys must be as a whole.
    fn check_set(&mut self, index: usize, keys: &[LookupKey]) {
        if keys.iter().all(|key| key.matches.is_empty()) {
            self.fault("", format!("lookup_sets[{index}]: no key matches a field, so no answer could be checked"));
        } else if let [key] = keys
            && !self.may_stand_alone(key)
        {
            self.fault(
                "",
                format!("lookup_sets[{index}]: `{}` alone invites guessing; add the person's name", key.name),
            );
        }
    }

    /// True if one key may find a record: an entity's number, or what is no personal information.
    fn may_stand_alone(&self, key: &LookupKey) -> bool {
        let public = |leaf: usize| self.leaves.get(leaf).is_some_and(|leaf| leaf.sensitivity <= 2);
        key.kind == ValueKind::Uscc || (!key.matches.is_empty() && key.matches.iter().all(public))
    }

    fn lookup_key(&mut self, set: usize, options: &Options) -> Option<LookupKey> {
        let (name, from) = (options.text("name"), options.text("from"));
        let place = format!("lookup_sets[{set}].{name}");
        if !is_name(&name) {
            self.fault("", format!("lookup_sets[{set}]: the name {name:?} of a key: lower-case letters, digits, `_`"));
        }
        let mut matches = Fields::EMPTY;
        for path in options.texts("matches") {
            match self.leaves.iter().position(|leaf| leaf.path == path) {
                Some(leaf) if self.leaves.get(leaf).is_some_and(|leaf| leaf.wire == Wire::String) => {
                    matches |= Fields::one(leaf);
                }
                Some(_) => self.fault("", format!("{place}: matches `{path}`, which is not a string")),
                None => self.fault("", format!("{place}: matches `{path}`, which is no leaf of the message")),
            }
        }
        let kind = self.kind(&place, options);
        let parts = from.split_once('.').filter(|(role, attribute)| is_name(role) && is_name(attribute));
        let Some((role, attribute)) = parts else {
            self.fault("", format!("{place}: from must be `role.attribute`, not {from:?}"));
            return None;
        };
        if role != ABOUT && !ROLES.contains(&role) {
            self.fault(
                "",
                format!("{place}: from names an unknown role `{role}`; `subject` or one of {}", ROLES.join(", ")),
            );
        }
        Some(LookupKey { name, kind, role: role.into(), attribute: attribute.into(), matches })
    }

    fn kind(&mut self, path: &str, options: &Options) -> ValueKind {
        match options.number("kind") {
            0 | 1 => ValueKind::Text,
            2 => ValueKind::PersonName,
            3 => ValueKind::IdNumber,
            4 => ValueKind::Uscc,
            5 => ValueKind::PersonOrEntityNo,
            6 => ValueKind::Division,
            7 => ValueKind::Date,
            8 => ValueKind::DateTime,
            9 => ValueKind::Month,
            10 => ValueKind::Decimal,
            11 => ValueKind::Phone,
            12 => ValueKind::CertificateNo,
            13 => ValueKind::Address,
            14 => ValueKind::Code,
            15 => ValueKind::BankCard,
            16 => ValueKind::Image,
            _ => {
                self.fault(path, "kind is unknown");
                ValueKind::Text
            }
        }
    }

    pub(super) fn fault(&mut self, path: &str, message: impl AsRef<str>) {
        let dot = if path.is_empty() { "" } else { "." };
        let line = self.line_of(path);
        self.faults.line(self.file, line, format!("{}{dot}{path}: {}", self.message.name(), message.as_ref()));
    }

    /// Where the message, or its field at the head of the path, is declared; known if the descriptors came with their
    /// source information.
    fn line_of(&self, path: &str) -> Option<usize> {
        let head = path.split('.').next().and_then(|name| self.message.get_field_by_name(name));
        let place = head.as_ref().map_or_else(|| self.message.path(), FieldDescriptor::path);
        let file = self.message.parent_file();
        let source = file.file_descriptor_proto().source_code_info.as_ref()?;
        let location = source.location.iter().find(|location| location.path == place)?;
        usize::try_from(*location.span.first()?).ok().map(|line| line + 1)
    }
}

/// An option's message, read by field name; what is absent or of another type reads as the zero value.
pub(super) struct Options(DynamicMessage);

impl Options {
    fn of(all: &DynamicMessage, option: &ExtensionDescriptor) -> Option<Self> {
        if !all.has_extension(option) {
            return None;
        }
        all.get_extension(option).as_message().cloned().map(Self)
    }

    fn value(&self, name: &str) -> Option<Value> {
        self.0.descriptor().get_field_by_name(name).map(|field| self.0.get_field(&field).into_owned())
    }

    pub(super) fn text(&self, name: &str) -> String {
        self.value(name).and_then(|value| value.as_str().map(Into::into)).unwrap_or_default()
    }

    pub(super) fn flag(&self, name: &str) -> bool {
        self.value(name).and_then(|value| value.as_bool()).unwrap_or_default()
    }

    /// An enum's number or a `uint32`; one beyond `i32` reads as its greatest.
    pub(super) fn number(&self, name: &str) -> i32 {
        match self.value(name) {
            Some(Value::EnumNumber(number)) => number,
            Some(Value::U32(number)) => i32::try_from(number).unwrap_or(i32::MAX),
            _ => 0,
        }
    }

    pub(super) fn texts(&self, name: &str) -> Vec<String> {
        self.list(name).iter().filter_map(|value| value.as_str().map(Into::into)).collect()
    }

    pub(super) fn messages(&self, name: &str) -> Vec<Self> {
        self.list(name).iter().filter_map(|value| value.as_message().cloned().map(Self)).collect()
    }

    fn list(&self, name: &str) -> Vec<Value> {
        self.value(name).and_then(|value| value.as_list().map(<[Value]>::to_vec)).unwrap_or_default()
    }
}

fn wire(kind: &Kind) -> Wire {
    match kind {
        Kind::String => Wire::String,
        // A message is no leaf; were it one, its bytes would be length-delimited, too.
        Kind::Bytes | Kind::Message(_) => Wire::Bytes,
        Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => Wire::Fixed64,
        Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => Wire::Fixed32,
        Kind::Int32
        | Kind::Int64
        | Kind::Uint32
        | Kind::Uint64
        | Kind::Sint32
        | Kind::Sint64
        | Kind::Bool
        | Kind::Enum(_) => Wire::Varint,
    }
}

fn scalar(kind: &Kind) -> Scalar {
    match kind {
        Kind::String => Scalar::Text,
        Kind::Bool => Scalar::Bool,
        Kind::Enum(of) => Scalar::Enum(of.values().map(|value| (value.number(), value.name().into())).collect()),
        Kind::Int32 | Kind::Int64 | Kind::Uint32 | Kind::Uint64 => Scalar::Integer,
        _ => Scalar::Opaque,
    }
}

fn is_national_code(text: &str) -> bool {
    text.split_at_checked(18).is_some_and(|(issuer, serial)| {
        checks::uscc(issuer).is_ok() && serial.len() == 3 && serial.bytes().all(|b| b.is_ascii_digit())
    })
}
