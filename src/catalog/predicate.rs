//! Predicates: conclusions drawn from a record, such as "in force on this day", that can be verified but never read.
//!
//! A predicate stands behind the leaves of its type in [`Fields`], so grants, denies and decisions treat it as a field of
//! its own. It is judged on the record by `policy`.

use super::load::{Options, Reader};
use super::subject::is_name;
use super::types::{CertificateType, Fields, Leaf, MAX_LEAVES, Scalar, ValueKind};

/// Predicates of one type.
const MAX_PREDICATES: usize = 16;
/// Highest number: one byte in an access record, where it stands behind a 0.
const MAX_NUMBER: u32 = 99;
const MAX_YEARS: u32 = 120;

/// A conclusion that holds if every stated part holds (`oncegate.records.v1.Predicate`). Leaves are indexes in
/// [`CertificateType::leaves`], none of them within a list.
#[derive(Clone, Debug)]
pub struct Predicate {
    /// Name in claims and grants.
    pub name: String,
    /// Number in access records.
    pub number: u32,
    /// Chinese label.
    pub label_zh: String,
    /// English label.
    pub label_en: String,
    /// Every leaf that it is drawn from; never empty.
    pub inputs: Fields,
    /// Booleans that must be true.
    pub flags: Fields,
    /// An enum leaf, and the numbers of which it must have one.
    pub state: Option<(usize, Vec<i32>)>,
    /// The date before which it does not hold.
    pub from: Option<usize>,
    /// The date after which it does not hold.
    pub until: Option<usize>,
    /// True if it holds without end where `until` is absent.
    pub open_ended: bool,
    /// A date of birth, and the years completed since.
    pub born: Option<(usize, u16)>,
}

/// Leaves and predicates side by side.
impl CertificateType {
    /// The Chinese label of a leaf or predicate.
    pub fn label_zh(&self, field: usize) -> &str {
        let predicate = || self.predicate(field).map_or("", |predicate| &predicate.label_zh);
        self.leaves.get(field).map_or_else(predicate, |leaf| &leaf.label_zh)
    }

    /// How access records name a field: a leaf by the field numbers that lead to it, a predicate by 0 and its number.
    pub fn numbers(&self, field: usize) -> Vec<u32> {
        let predicate = || self.predicate(field).map(|predicate| vec![0, predicate.number]).unwrap_or_default();
        self.leaves.get(field).map_or_else(predicate, |leaf| leaf.numbers.clone())
    }

    /// The predicate that stands at this place behind the leaves.
    pub fn predicate(&self, field: usize) -> Option<&Predicate> {
        self.predicates.get(field.checked_sub(self.leaves.len())?)
    }

    /// The leaves that a path names, as [`Self::expand`] does, or the predicate of this name.
    pub fn named(&self, path: &str) -> Option<Fields> {
        self.expand(path).or_else(|| self.comparable(path).map(Fields::one))
    }

    /// The one leaf of this path, or the predicate of this name.
    pub fn comparable(&self, path: &str) -> Option<usize> {
        let predicate = || self.predicates.iter().position(|predicate| predicate.name == path);
        self.leaf(path).or_else(|| predicate().map(|index| self.leaves.len() + index))
    }

    /// Every leaf and every predicate.
    pub fn all(&self) -> Fields {
        (0..self.leaves.len() + self.predicates.len()).collect()
    }

    /// The leaves that `fields` come from: themselves, and what their predicates are drawn from.
    pub fn sources(&self, fields: Fields) -> Fields {
        let leaves: Fields = (0..self.leaves.len()).collect();
        let drawn = fields.iter().filter_map(|field| self.predicate(field));
        drawn.fold(fields & leaves, |all, predicate| all | predicate.inputs)
    }

    /// `fields` and every predicate that is drawn from one of them.
    pub fn with_conclusions(&self, fields: Fields) -> Fields {
        let leaves = self.leaves.len();
        let drawn = self.predicates.iter().enumerate().filter(|(_, drawn)| drawn.inputs.intersects(fields));
        fields | drawn.map(|(index, _)| leaves + index).collect()
    }

    /// `fields` and every predicate that is drawn from nothing else.
    pub fn with_conclusions_within(&self, fields: Fields) -> Fields {
        let leaves = self.leaves.len();
        let drawn = self.predicates.iter().enumerate().filter(|(_, drawn)| fields.covers(drawn.inputs));
        fields | drawn.map(|(index, _)| leaves + index).collect()
    }
}

impl Reader<'_> {
    /// The type's predicates, in the order of its options. Its leaves must have been read.
    pub(super) fn predicates(&mut self, options: &Options) -> Vec<Predicate> {
        let stated = options.messages("predicates");
        if stated.len() > MAX_PREDICATES || self.leaves.len() + stated.len() > MAX_LEAVES {
            let message = format!("at most {MAX_PREDICATES} predicates, and {MAX_LEAVES} with the leaf fields");
            self.fault("", message);
        }
        let mut read: Vec<Predicate> = Vec::new();
        for options in &stated {
            let predicate = self.predicate(options);
            if read.iter().any(|other| other.name == predicate.name || other.number == predicate.number) {
                self.fault("", format!("predicate {}: its name or number stands twice", predicate.name));
            }
            read.push(predicate);
        }
        read
    }

    fn predicate(&mut self, options: &Options) -> Predicate {
        let name = options.text("name");
        let number = u32::try_from(options.number("number")).unwrap_or_default();
        let (label_zh, label_en) = (options.text("label_zh"), options.text("label_en"));
        let parent = format!("{name}.");
        if !is_name(&name) || self.leaves.iter().any(|leaf| leaf.path == name || leaf.path.starts_with(&parent)) {
            self.fault("", format!("the name {name:?} of a predicate: as a field's, and no field has it"));
        }
        if !(1..=MAX_NUMBER).contains(&number) {
            self.fault("", format!("predicate {name}: number is 1 to {MAX_NUMBER}"));
        }
        if label_zh.is_empty() || label_en.is_empty() {
            self.fault("", format!("predicate {name}: needs label_zh and label_en"));
        }

        let flag = |leaf: &Leaf| leaf.scalar == Scalar::Bool;
        let date =
            |leaf: &Leaf| leaf.scalar == Scalar::Text && matches!(leaf.kind, ValueKind::Date | ValueKind::DateTime);
        let choice = |leaf: &Leaf| matches!(leaf.scalar, Scalar::Enum(_));
        let flags = options.texts("flags");
        let flags: Fields = flags.iter().filter_map(|path| self.input(&name, path, "a boolean", flag)).collect();
        let state = self.part(options, &name, "state", "an enum", choice);
        let state = state.map(|leaf| (leaf, self.states(&name, leaf, &options.texts("states"))));
        let [from, until, born] = ["from", "until", "born"].map(|part| self.part(options, &name, part, "a date", date));
        let years = u16::try_from(options.number("years")).unwrap_or(u16::MAX);
        if born.is_some() && !(1..=MAX_YEARS).contains(&years.into()) {
            self.fault("", format!("predicate {name}: years is 1 to {MAX_YEARS}"));
        }
        let single = [state.as_ref().map(|(leaf, _)| *leaf), from, until, born];
        let inputs = single.into_iter().flatten().fold(flags, |all, leaf| all | Fields::one(leaf));
        if inputs.is_empty() {
            self.fault("", format!("predicate {name}: is drawn from nothing"));
        }
        if inputs.intersects(self.never) {
            self.fault("", format!("predicate {name}: is drawn from a field that nobody may have"));
        }
        let born = born.map(|leaf| (leaf, years));
        let open_ended = options.flag("open_ended");
        Predicate { name, number, label_zh, label_en, inputs, flags, state, from, until, open_ended, born }
    }

    fn part(
        &mut self,
        options: &Options,
        name: &str,
        part: &str,
        what: &str,
        is: impl Fn(&Leaf) -> bool,
    ) -> Option<usize> {
        let path = options.text(part);
        if path.is_empty() { None } else { self.input(name, &path, what, is) }
    }

    /// A leaf that a predicate is drawn from.
    fn input(&mut self, name: &str, path: &str, what: &str, is: impl Fn(&Leaf) -> bool) -> Option<usize> {
        let found = self.leaves.iter().position(|leaf| leaf.path == path);
        let sound = found.filter(|leaf| self.leaves.get(*leaf).is_some_and(&is) && !self.lists.contains(*leaf));
        if sound.is_none() {
            self.fault("", format!("predicate {name}: `{path}` is not {what} outside of lists"));
        }
        sound
    }

    fn states(&mut self, name: &str, leaf: usize, states: &[String]) -> Vec<i32> {
        let values = match self.leaves.get(leaf).map(|leaf| &leaf.scalar) {
            Some(Scalar::Enum(values)) => values.clone(),
            _ => Vec::new(),
        };
        let number = |state: &String| values.iter().find(|(_, known)| known == state).map(|(number, _)| *number);
        let numbers: Vec<_> = states.iter().filter_map(number).collect();
        // The zero value means that it is not known.
        if numbers.is_empty() || numbers.len() != states.len() || numbers.contains(&0) {
            self.fault("", format!("predicate {name}: states are names of known values of `state`"));
        }
        numbers
    }
}
