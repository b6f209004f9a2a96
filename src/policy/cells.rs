//! What can only be seen of all grants of a cell together: whether one field gives away what the mask of another hides, and
//! whether the conditions on the record can be told in words.
//!
//! An identity number (GB 11643) is a division code (digits 1 to 6), a birth date (7 to 14), a sequence number and a check
//! digit. So a masked number is refused beside a clear birth date, or where division and year of birth leave fewer than
//! [`LEAST_HIDDEN`] of its digits hidden; and a masked birth date beside a clear number. Grants of a cell add up, over time if
//! not at once, so neither their conditions nor their roles and days make such a pair acceptable. Two leaves that lookup
//! keys take from different people are not compared; where that can't be told, they count as the same person's.
//!
//! A pseudonym shows nothing of a number, so nothing gives it away.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;

use super::check::Known;
use super::explain::{MAX_COMBINATIONS, values};
use super::facts::FactSet;
use super::file::GrantFile;
use super::grant::{Deny, Grant, Mode};
use super::mask::Mask;
use crate::catalog::{CertificateType, Faults, Fields, Leaf, ValueKind};

/// A masked number keeps at least this many digits to itself: ten million possibilities, less the tenth or so that the
/// check digit rules out.
const LEAST_HIDDEN: usize = 7;

/// A grant and its place: index of the file and offset in it.
type Placed = (Arc<Grant>, (usize, usize));

/// Checks each cell of the grants.
pub(super) fn check(grants: &[Placed], denies: &[Deny], files: &[GrantFile], known: &Known, faults: &mut Faults) {
    let mut cells: BTreeMap<_, Vec<&Placed>> = BTreeMap::new();
    for placed in grants {
        let grant = &placed.0;
        cells.entry((&grant.consumer, &grant.matter, &grant.certificate_type)).or_default().push(placed);
    }
    for ((consumer, matter, code), grants) in cells {
        let Some(kind) = known.types.get(code) else { continue };
        let mut fault = |(_, (file, offset)): &Placed, message: String| {
            let place = files.get(*file);
            let (path, text) = place.map_or((Path::new(""), ""), |file| (file.path.as_path(), file.text.as_str()));
            faults.at(path, text, *offset, message);
        };
        let cell = Cell { kind, grants: &grants, consumer: consumer.as_str() };
        cell.inference(&mut fault);
        let denies = denies.iter().filter(|deny| deny.concerns(consumer, matter, code));
        let in_denies = denies.fold(FactSet::EMPTY, |all, deny| all | deny.when);
        let in_grants = grants.iter().fold(FactSet::EMPTY, |all, (grant, _)| all | grant.when);
        let on_record = known.vocabulary.record_facts() & (in_grants | in_denies);
        let count = |fact| values(in_grants.contains(fact), in_denies.contains(fact)).len();
        let combinations = on_record.iter().fold(1_usize, |all, fact| all.saturating_mul(count(fact)));
        if let (true, Some(first)) = (combinations > MAX_COMBINATIONS, grants.first()) {
            let message = format!("{consumer}'s grants of `{code}` name {} conditions on the record", on_record.len());
            fault(first, format!("{message}: too many to explain; 7 can always be, 12 at most"));
        }
    }
}

/// The grants of one consumer, matter and certificate type.
struct Cell<'a> {
    kind: &'a CertificateType,
    grants: &'a [&'a Placed],
    consumer: &'a str,
}

impl Cell<'_> {
    fn inference(&self, fault: &mut impl FnMut(&Placed, String)) {
        let consumer = self.consumer;
        for placed in self.grants.iter().filter(|(grant, _)| !grant.masks.is_empty()) {
            for (mask, leaf) in placed.0.masks.iter().flat_map(|(mask, fields)| fields.iter().map(move |at| (mask, at)))
            {
                let Some(path) = self.kind.leaves.get(leaf).map(|leaf| leaf.path.as_str()) else { continue };
                if self.is(leaf, is_number) {
                    if let Some(message) = self.number_given_away(*mask, leaf) {
                        fault(placed, format!("`{path}` is masked, but {consumer} also gets {message}"));
                    }
                } else if self.is(leaf, is_birth)
                    && let Some(number) = self.find(leaf, is_number, |leaf| self.clear().contains(leaf))
                {
                    let number = self.kind.path(number);
                    let message = format!("`{path}` is masked, but {consumer} also gets `{number}` in clear");
                    fault(placed, format!("{message}: its digits 7 to 14 are the birth date; mask `{number}`, too"));
                }
            }
        }
    }

    /// What else the consumer gets that leaves too little of a number hidden.
    fn number_given_away(&self, mask: Mask, number: usize) -> Option<String> {
        let mut hidden: Vec<usize> = hidden_digits(mask)?.collect();
        let clear = self.clear();
        if let Some(birth) = self.find(number, is_birth, |leaf| clear.contains(leaf)) {
            let birth = self.kind.path(birth);
            return Some(format!(
                "`{birth}` in clear: digits 7 to 14 of an identity number are the birth date; mask one of them as `present`"
            ));
        }
        let shown = |mask: Mask| move |leaf: usize| clear.contains(leaf) || self.masked(mask).contains(leaf);
        let division = self.find(number, is_division, shown(Mask::Address));
        let year = self.find(number, is_birth, shown(Mask::BirthDate));
        let (Some(division), Some(year)) = (division, year) else { return None };
        hidden.retain(|digit| !(1..=10).contains(digit));
        (hidden.len() < LEAST_HIDDEN).then(|| {
            let (division, year) = (self.kind.path(division), self.kind.path(year));
            format!(
                "its division from `{division}` and the year of birth from `{year}`: digits 1 to 10 of an identity number; \
                 mask one of the three as `present`"
            )
        })
    }

    /// Fields that some grant gives in clear; granting to compare shows nothing.
    fn clear(&self) -> Fields {
        self.read().fold(Fields::EMPTY, |all, grant| all | grant.clear())
    }

    /// Fields that some grant gives under this mask.
    fn masked(&self, mask: Mask) -> Fields {
        let masks = self.read().flat_map(|grant| &grant.masks);
        masks.filter(|(of, _)| *of == mask).fold(Fields::EMPTY, |all, (_, fields)| all | *fields)
    }

    fn read(&self) -> impl Iterator<Item = &Grant> {
        self.grants.iter().map(|(grant, _)| &**grant).filter(|grant| grant.mode > Mode::Verify)
    }

    fn is(&self, leaf: usize, what: fn(&Leaf) -> bool) -> bool {
        self.kind.leaves.get(leaf).is_some_and(what)
    }

    /// A leaf of this sort that may be the same person's as `beside`.
    fn find(&self, beside: usize, what: fn(&Leaf) -> bool, given: impl Fn(usize) -> bool) -> Option<usize> {
        (0..self.kind.leaves.len()).find(|leaf| self.is(*leaf, what) && given(*leaf) && self.same_person(*leaf, beside))
    }

    /// False if lookup keys take the two leaves from different people.
    fn same_person(&self, one: usize, other: usize) -> bool {
        let keys = || self.kind.lookup_sets.iter().flat_map(|set| &set.keys);
        let role = |leaf: usize| keys().find(|key| key.matches.contains(leaf)).map(|key| key.role.as_str());
        match (role(one), role(other)) {
            (Some(one), Some(other)) => one == other,
            _ => true,
        }
    }
}

/// The digits of an identity number, from 1, that a mask hides; none if it shows no digit at all.
fn hidden_digits(mask: Mask) -> Option<RangeInclusive<usize>> {
    match mask {
        Mask::Phone | Mask::IdNumber => Some(4..=14),
        Mask::CertNo => Some(3..=14),
        Mask::BankCard => Some(1..=14),
        Mask::NameZh => Some(2..=18),
        // A number has neither the form of an address nor that of a date, so the value is omitted.
        Mask::Address | Mask::BirthDate | Mask::Pseudonym | Mask::Present => None,
    }
}

fn is_number(leaf: &Leaf) -> bool {
    matches!(leaf.kind, ValueKind::IdNumber | ValueKind::PersonOrEntityNo)
}

fn is_birth(leaf: &Leaf) -> bool {
    matches!(leaf.kind, ValueKind::Date | ValueKind::DateTime) && leaf.mask.as_deref() == Some(Mask::BirthDate.name())
}

fn is_division(leaf: &Leaf) -> bool {
    matches!(leaf.kind, ValueKind::Division | ValueKind::Address)
}
