//! The catalog's vocabulary as the rest of the house uses it: plain, immutable, built at load.

use std::fmt;
use std::ops::{BitAnd, BitOr, BitOrAssign, Sub};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use super::predicate::Predicate;
use crate::ids::DepartmentCode;

/// At most this many leaf fields in a certificate type: the width of [`Fields`].
pub const MAX_LEAVES: usize = 128;

/// A set of leaf fields of one certificate type, by their index in [`CertificateType::leaves`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Fields(u128);

impl Fields {
    /// No field.
    pub const EMPTY: Self = Self(0);

    /// The set of one leaf; empty if `leaf` is not below [`MAX_LEAVES`].
    pub const fn one(leaf: usize) -> Self {
        if leaf < MAX_LEAVES { Self(1 << leaf) } else { Self(0) }
    }

    /// True if the set has the leaf.
    pub const fn contains(self, leaf: usize) -> bool {
        leaf < MAX_LEAVES && self.0 >> leaf & 1 == 1
    }

    /// True if every leaf of `other` is here.
    pub const fn covers(self, other: Self) -> bool {
        other.0 & !self.0 == 0
    }

    /// True if the two sets share a leaf.
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// True if there is no leaf.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many leaves.
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// The leaves' indexes, ascending.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let leaf = rest.trailing_zeros() as usize;
            (leaf < MAX_LEAVES).then(|| {
                rest &= rest - 1;
                leaf
            })
        })
    }
}

impl BitOr for Fields {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Fields {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl BitAnd for Fields {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

/// The leaves of the left set that are not in the right one.
impl Sub for Fields {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl FromIterator<usize> for Fields {
    fn from_iter<I: IntoIterator<Item = usize>>(leaves: I) -> Self {
        leaves.into_iter().fold(Self::EMPTY, |set, leaf| set | Self::one(leaf))
    }
}

impl fmt::Debug for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// A department (部门).
#[derive(Clone, Debug)]
pub struct Department {
    /// Its code, for example `GA`.
    pub code: DepartmentCode,
    /// Chinese name.
    pub name_zh: String,
    /// English name.
    pub name_en: String,
    /// What kind of consumer it is.
    pub kind: ConsumerKind,
    /// Division code of where it is (GB/T 2260, 6 digits), for conditions on regions; none if it is of no region.
    pub region: Option<String>,
}

/// Kind of organisation that asks (Decree 809, art. 2 and 25).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConsumerKind {
    /// A government department.
    Government,
    /// An organisation that laws authorise to manage public affairs.
    AuthorizedOrg,
    /// Water, power, gas or telecommunication company: verify only.
    PublicUtility,
    /// Bank: verify only.
    Bank,
    /// Hospital that issues certificates: query at most.
    Hospital,
}

impl ConsumerKind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Government, Self::AuthorizedOrg, Self::PublicUtility, Self::Bank, Self::Hospital];

    /// As it stands in files, for example `public_utility`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Government => "government",
            Self::AuthorizedOrg => "authorized_org",
            Self::PublicUtility => "public_utility",
            Self::Bank => "bank",
            Self::Hospital => "hospital",
        }
    }

    /// The kind of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// A matter (一件事).
#[derive(Clone, Debug)]
pub struct Matter {
    /// For example `newborn_birth`.
    pub code: String,
    /// Chinese name.
    pub name_zh: String,
    /// English name.
    pub name_en: String,
    /// The leading department.
    pub lead: DepartmentCode,
    /// Departments that take part.
    pub cooperating: Vec<DepartmentCode>,
    /// Organisations that take part without being departments, such as banks.
    pub external: Vec<DepartmentCode>,
    /// The national list that it stands in, year and number, or `local`.
    pub batch: String,
    /// The items (事项) that it joins.
    pub linked_items: Vec<String>,
    /// Legal basis, one citation each.
    pub legal_basis: Vec<String>,
}

impl Matter {
    /// Everybody who takes part, the leading department first.
    pub fn participants(&self) -> impl Iterator<Item = &DepartmentCode> {
        [&self.lead].into_iter().chain(&self.cooperating).chain(&self.external)
    }
}

/// Every role that a subject of a case may have (当事人角色): a closed vocabulary, so that grants, lookup keys and case
/// files mean the same by a word.
pub const ROLES: [&str; 17] = [
    "applicant",
    "child",
    "mother",
    "father",
    "guardian",
    "spouse",
    "husband",
    "wife",
    "household_member",
    "deceased",
    "heir",
    "legal_representative",
    "operator",
    "entity",
    "agent",
    "transferor",
    "transferee",
];

/// A certificate type (证照类型), compiled from its message descriptor.
#[derive(Clone, Debug)]
pub struct CertificateType {
    /// For example `birth_medical_certificate`.
    pub code: String,
    /// Chinese name.
    pub name_zh: String,
    /// English name.
    pub name_en: String,
    /// The department that provides it.
    pub provider: DepartmentCode,
    /// Full name of the message, for example `oncegate.records.v1.BirthMedicalCertificate`.
    pub message: String,
    /// `type.googleapis.com/` and the full name: the type URL of its `Any`.
    pub type_url: String,
    /// Sharing class.
    pub sharing: SharingClass,
    /// Sets of keys that find a record, in order of preference; never empty.
    pub lookup_sets: Vec<LookupSet>,
    /// True if one set of keys may find several records.
    pub many: bool,
    /// How long an answer may be kept in memory.
    pub freshness: Duration,
    /// True if the subject is a minor by the nature of the certificate.
    pub subject_minor: bool,
    /// Leaf fields in the order of the message, depth first; at most [`MAX_LEAVES`].
    pub leaves: Vec<Leaf>,
    /// Conclusions drawn from them. In [`Fields`] they stand behind the leaves, and with these they are at most
    /// [`MAX_LEAVES`].
    pub predicates: Vec<Predicate>,
    /// The same leaves as a tree of field numbers.
    pub root: Node,
    /// Fields that nobody may have.
    pub never: Fields,
    /// Fields that may be compared but not read, every predicate among them.
    pub verify_only: Fields,
    /// Sensitive personal information (L4); every field if the subject is a minor.
    pub sensitive: Fields,
    /// Fields never served from memory.
    pub volatile: Fields,
}

impl CertificateType {
    /// The leaves that a path names: itself, or all below a parent. `None` if the type has no such path.
    pub fn expand(&self, path: &str) -> Option<Fields> {
        let below: Fields = (self.leaves.iter().enumerate())
            .filter(|(_, leaf)| {
                leaf.path.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            })
            .map(|(index, _)| index)
            .collect();
        (!path.is_empty() && !below.is_empty()).then_some(below)
    }

    /// The index of a leaf path.
    pub fn leaf(&self, path: &str) -> Option<usize> {
        self.leaves.iter().position(|leaf| leaf.path == path)
    }

    /// True if the leaf stands in a list.
    pub fn is_listed(&self, leaf: usize) -> bool {
        let mut node = &self.root;
        for number in self.leaves.get(leaf).iter().flat_map(|leaf| &leaf.numbers) {
            match node.children.iter().find(|(known, _)| known == number) {
                Some((_, Child::Leaf { repeated: true, .. } | Child::Message { repeated: true, .. })) => return true,
                Some((_, Child::Message { node: below, .. })) => node = below,
                _ => break,
            }
        }
        false
    }

    /// The path of a leaf or the name of a predicate; empty if there is neither.
    pub fn path(&self, field: usize) -> &str {
        let predicate = || self.predicate(field).map_or("", |predicate| &predicate.name);
        self.leaves.get(field).map_or_else(predicate, |leaf| &leaf.path)
    }
}

/// Sharing class (Decree 809, art. 14).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SharingClass {
    /// 无条件共享.
    Unconditional,
    /// 有条件共享.
    Conditional,
    /// 不予共享.
    None,
}

/// One leaf field.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// Dotted path, for example `members.id_no`.
    pub path: String,
    /// Field numbers from the outermost field inwards.
    pub numbers: Vec<u32>,
    /// Chinese label.
    pub label_zh: String,
    /// English label.
    pub label_en: String,
    /// Sensitivity 1 to 4.
    pub sensitivity: u8,
    /// What the value is.
    pub kind: ValueKind,
    /// How it stands on the wire.
    pub wire: Wire,
    /// What stands on the wire there.
    pub scalar: Scalar,
    /// The mask that suits the field, by name.
    pub mask: Option<String>,
}

/// The type of a leaf, as far as its values are understood.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Scalar {
    /// `string`.
    Text,
    /// `bool`: a flag that conditions may name.
    Bool,
    /// An enum: number and name of each value.
    Enum(Vec<(i32, String)>),
    /// `int32`, `int64`, `uint32` or `uint64`.
    Integer,
    /// Anything else: it can be released, but neither compared nor concluded from.
    Opaque,
}

/// How a leaf is encoded (protobuf encoding, "Message structure").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wire {
    /// `string`: length-delimited UTF-8.
    String,
    /// `bytes`: length-delimited.
    Bytes,
    /// `int32`, `uint64`, `sint32`, `bool`, enum …: varint.
    Varint,
    /// `fixed32`, `sfixed32`, `float`: 4 bytes.
    Fixed32,
    /// `fixed64`, `sfixed64`, `double`: 8 bytes.
    Fixed64,
}

/// A message as a tree of field numbers.
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// Children by field number, ascending.
    pub children: Vec<(u32, Child)>,
}

/// What stands under a field number.
#[derive(Clone, Debug)]
pub enum Child {
    /// A leaf: its index and its encoding.
    Leaf {
        /// Index in [`CertificateType::leaves`].
        leaf: usize,
        /// Encoding.
        wire: Wire,
        /// True if the field is repeated (a repeated scalar may be packed).
        repeated: bool,
    },
    /// A message with the leaves below it.
    Message {
        /// Its fields.
        node: Node,
        /// All leaves below.
        below: Fields,
        /// True if the field is repeated.
        repeated: bool,
    },
}

/// What a value is; see `oncegate.records.v1.ValueKind` for the form of each.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ValueKind {
    /// Free text.
    Text,
    /// Name of a person.
    PersonName,
    /// Citizen's identity number, GB 11643.
    IdNumber,
    /// Unified social credit code, GB 32100.
    Uscc,
    /// Identity number or unified social credit code.
    PersonOrEntityNo,
    /// Division code, GB/T 2260.
    Division,
    /// Calendar date.
    Date,
    /// Date and time to the minute, China Standard Time.
    DateTime,
    /// Year and month.
    Month,
    /// Decimal number.
    Decimal,
    /// Telephone number.
    Phone,
    /// Number of a certificate or register.
    CertificateNo,
    /// Address, largest unit first.
    Address,
    /// Code of a code table.
    Code,
    /// Bank account or card number.
    BankCard,
    /// Picture.
    Image,
}

/// Keys that find a record together.
#[derive(Clone, Debug)]
pub struct LookupSet {
    /// Each of them is needed; never empty.
    pub keys: Vec<LookupKey>,
}

/// One lookup key of a certificate type.
#[derive(Clone, Debug)]
pub struct LookupKey {
    /// Name that the provider is given.
    pub name: String,
    /// How the value is checked and compared.
    pub kind: ValueKind,
    /// Role that the value comes from; `subject` is the one the certificate is about.
    pub role: String,
    /// Attribute of that role.
    pub attribute: String,
    /// Leaves of which one must equal the value; empty: the source echoes the key.
    pub matches: Fields,
}

/// A person or entity of the case, as the caller knows them.
#[derive(Clone, Debug)]
pub struct CaseSubject {
    /// Role in the case.
    pub role: String,
    /// Known facts: name and value.
    pub attributes: Vec<(String, String)>,
}

/// Evidence that a request names one subject of one certificate type by every key of one lookup set, each of valid form.
/// Made only by [`Catalog::resolve`](super::Catalog::resolve).
#[derive(Clone)]
pub struct Subject {
    pub(super) certificate_type: Arc<CertificateType>,
    pub(super) role: String,
    pub(super) set: usize,
    pub(super) keys: Vec<SubjectKey>,
}

/// One key of a [`Subject`].
#[derive(Clone)]
pub struct SubjectKey {
    /// Name in the certificate type.
    pub name: String,
    /// What the value is.
    pub kind: ValueKind,
    /// Role of the case that the value was given for, for example `mother`.
    pub role: String,
    /// Attribute of that role, for example `id_no`.
    pub attribute: String,
    /// The checked value.
    pub value: String,
    /// Leaves of which one must equal the value in the answer.
    pub matches: Fields,
}

impl Subject {
    /// The certificate type.
    pub fn certificate_type(&self) -> &Arc<CertificateType> {
        &self.certificate_type
    }

    /// Role in the case.
    pub fn role(&self) -> &str {
        &self.role
    }

    /// Index of the lookup set used.
    pub fn set(&self) -> usize {
        self.set
    }

    /// The keys, in the set's order.
    pub fn keys(&self) -> &[SubjectKey] {
        &self.keys
    }

    /// The number that stands for the holder: the first key that is an identity number or credit code, else the first.
    pub fn holder(&self) -> &str {
        let number =
            |key: &&SubjectKey| matches!(key.kind, ValueKind::IdNumber | ValueKind::Uscc | ValueKind::PersonOrEntityNo);
        self.keys.iter().find(number).or(self.keys.first()).map_or("", |key| &key.value)
    }
}

/// Values stay out of logs.
impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject")
            .field("certificate_type", &self.certificate_type.code)
            .field("role", &self.role)
            .field("set", &self.set)
            .finish_non_exhaustive()
    }
}

/// The value stays out of logs.
impl fmt::Debug for SubjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SubjectKey").field("name", &self.name).field("kind", &self.kind).finish_non_exhaustive()
    }
}
