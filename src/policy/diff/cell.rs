//! One cell decided on both sides, under everything that can make a difference.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use time::Date;

use super::conditions::{Facts, Values};
use super::{FieldChange, Form, Read, TooManyFacts};
use crate::catalog::{CertificateType, Fields};
use crate::policy::decide::{Cell, CellDeny};
use crate::policy::facts::{FactSet, Vocabulary};
use crate::policy::{Grant, Mask, Mode, Policy};

/// Facts of two values that one cell may name on both sides together.
pub const MAX_FACTS_OF_A_CELL: u32 = 16;

/// Consumer, matter and certificate type.
pub(super) type Key<'p> = (&'p str, &'p str, &'p str);

/// What one policy has of a cell.
pub(super) struct Side<'p> {
    pub(super) kind: Option<&'p Arc<CertificateType>>,
    pub(super) grants: &'p [Arc<Grant>],
    denies: &'p [CellDeny],
    pub(super) vocabulary: &'p Vocabulary,
}

impl<'p> Side<'p> {
    pub(super) fn of(policy: &'p Policy, key: Key<'_>) -> Self {
        let cell = policy.table.cells().iter().find(|cell| cell.key() == key);
        let (grants, denies) = cell.map_or((&[][..], &[][..]), |cell: &Cell| (&cell.grants, &cell.denies));
        Self { kind: cell.map(|cell| &cell.certificate_type), grants, denies, vocabulary: policy.vocabulary() }
    }

    /// The names of a set of facts.
    pub(super) fn names(&self, facts: FactSet) -> impl Iterator<Item = &'p str> {
        let vocabulary = self.vocabulary;
        facts.iter().filter_map(move |fact| vocabulary.get(fact)).map(|fact| &*fact.name)
    }

    /// The form of each leaf and predicate for a role, on a day, with these facts known true and these known false. The rules are those
    /// of `decide` and `settle`, which a test holds it against.
    fn forms(&self, role: &str, day: Date, known_true: FactSet, known_false: FactSet) -> BTreeMap<&'p str, Form> {
        let Some(kind) = self.kind else { return BTreeMap::new() };
        let denied = (self.denies.iter())
            .filter(|deny| !deny.when.intersects(known_false))
            .fold(kind.never, |all, deny| all | deny.fields);
        let mut forms = vec![Form::default(); kind.all().len()];
        let mut give = |fields: Fields, form: Form| {
            for leaf in (fields - denied).iter() {
                if let Some(has) = forms.get_mut(leaf) {
                    has.compare |= form.compare;
                    has.read = better(has.read, form.read);
                }
            }
        };
        let open = self.grants.iter().filter(|grant| {
            grant.roles.iter().any(|of| of == role)
                && (grant.valid_from..=grant.valid_until).contains(&day)
                && known_true.covers(grant.when)
        });
        for grant in open {
            give(grant.comparable(kind), Form { read: Read::Nothing, compare: true });
            if grant.mode > Mode::Verify {
                give(grant.clear(), Form { read: Read::Clear, compare: true });
                for (mask, fields) in &grant.masks {
                    give(*fields, Form { read: Read::Masked(*mask), compare: false });
                }
            }
        }
        kind.all().iter().map(|field| kind.path(field)).zip(forms).collect()
    }
}

/// Clear beats masked, a weaker mask a stronger one.
fn better(left: Read, right: Read) -> Read {
    match (left, right) {
        (Read::Masked(left), Read::Masked(right)) => Read::Masked(Mask::min(left, right)),
        _ => left.max(right),
    }
}

/// Every field whose form differs.
pub(super) fn compare(old: &Side<'_>, new: &Side<'_>, key: Key<'_>) -> Result<Vec<FieldChange>, TooManyFacts> {
    let facts = facts(&[old, new]);
    let assignments = facts.assignments();
    if assignments > 1 << MAX_FACTS_OF_A_CELL {
        return Err(TooManyFacts { cell: format!("{} / {} / {}", key.0, key.1, key.2), assignments });
    }
    let roles: BTreeSet<&str> = both(old, new).flat_map(|grant| &grant.roles).map(String::as_str).collect();
    let spans = spans(both(old, new));
    // (leaf, from, to) → (role, span) → assignments, ascending.
    let mut changes: BTreeMap<_, BTreeMap<_, Vec<u32>>> = BTreeMap::new();
    for assignment in 0..u32::try_from(assignments).unwrap_or(u32::MAX) {
        let values = facts.values(assignment as usize);
        let known = |side: &Side<'_>| {
            let (mut known_true, mut known_false) = (FactSet::EMPTY, FactSet::EMPTY);
            for ((name, kind), value) in facts.0.iter().zip(&values) {
                let one = side.vocabulary.index(name).map_or(FactSet::EMPTY, FactSet::one);
                match kind.truth(*value) {
                    (true, _) => known_true |= one,
                    (_, true) => known_false |= one,
                    _ => {}
                }
            }
            (known_true, known_false)
        };
        let (known_old, known_new) = (known(old), known(new));
        for role in &roles {
            for (number, span) in spans.iter().enumerate() {
                let before = old.forms(role, span.0, known_old.0, known_old.1);
                let after = new.forms(role, span.0, known_new.0, known_new.1);
                let leaves: BTreeSet<_> = before.keys().chain(after.keys()).copied().collect();
                for leaf in leaves {
                    let form = |forms: &BTreeMap<&str, Form>| forms.get(leaf).copied().unwrap_or_default();
                    let (from, to) = (form(&before), form(&after));
                    if from != to {
                        let of_leaf = changes.entry((leaf.to_owned(), from, to)).or_default();
                        of_leaf.entry((*role, number)).or_default().push(assignment);
                    }
                }
            }
        }
    }
    Ok(grouped(changes, &spans, &facts))
}

fn both<'s>(old: &'s Side<'_>, new: &'s Side<'_>) -> impl Iterator<Item = &'s Grant> {
    old.grants.iter().chain(new.grants).map(|grant| &**grant)
}

/// The facts that either side names, each with the values that can make a difference.
fn facts(sides: &[&Side<'_>]) -> Facts {
    let mut named: BTreeMap<&str, (bool, bool)> = BTreeMap::new();
    for side in sides {
        for grant in side.grants {
            side.names(grant.when).for_each(|name| named.entry(name).or_default().0 = true);
        }
        for deny in side.denies {
            side.names(deny.when).for_each(|name| named.entry(name).or_default().1 = true);
        }
    }
    let values = |(granting, denying)| match (granting, denying) {
        (true, true) => Values::Both,
        (_, true) => Values::Denying,
        _ => Values::Granting,
    };
    Facts(named.into_iter().map(|(name, by)| (name.to_owned(), values(by))).collect())
}

/// The spans of days between two dates that a grant names, in which nothing begins or ends; first and last day of each.
fn spans<'g>(grants: impl Iterator<Item = &'g Grant>) -> Vec<(Date, Date)> {
    let mut starts = BTreeSet::new();
    for grant in grants {
        starts.insert(grant.valid_from);
        starts.insert(grant.valid_until.next_day().unwrap_or(Date::MAX));
    }
    let starts: Vec<Date> = starts.into_iter().collect();
    let span = |pair: &[Date]| match pair {
        [first, next] => Some((*first, next.previous_day().unwrap_or(*next))),
        _ => None,
    };
    starts.windows(2).filter_map(span).collect()
}

type Changes<'r> = BTreeMap<(String, Form, Form), BTreeMap<(&'r str, usize), Vec<u32>>>;

/// Leaves that change alike stand together, as do roles, and days that follow each other.
fn grouped(changes: Changes<'_>, spans: &[(Date, Date)], facts: &Facts) -> Vec<FieldChange> {
    // (from, to, assignments, days, roles) → fields.
    let mut groups: BTreeMap<_, Vec<String>> = BTreeMap::new();
    for ((leaf, from, to), found) in changes {
        let mut by_role: BTreeMap<(&str, Vec<u32>), Vec<usize>> = BTreeMap::new();
        for ((role, span), assignments) in found {
            by_role.entry((role, assignments)).or_default().push(span);
        }
        let mut by_days: BTreeMap<_, Vec<String>> = BTreeMap::new();
        for ((role, assignments), numbers) in by_role {
            by_days.entry((assignments, joined(&numbers, spans))).or_default().push(role.to_owned());
        }
        for ((assignments, days), roles) in by_days {
            groups.entry((from, to, assignments, days, roles)).or_default().push(leaf.clone());
        }
    }
    let change = |((from, to, assignments, days, roles), fields)| FieldChange {
        from,
        to,
        fields,
        roles,
        days,
        when: facts.say(&assignments as &Vec<u32>),
    };
    let mut all: Vec<FieldChange> = groups.into_iter().map(change).collect();
    all.sort_by_key(FieldChange::kind);
    all
}

/// Spans that follow each other become one.
fn joined(numbers: &[usize], spans: &[(Date, Date)]) -> Vec<(Date, Date)> {
    let mut days: Vec<(Date, Date)> = Vec::new();
    for (first, last) in numbers.iter().filter_map(|number| spans.get(*number)) {
        match days.last_mut() {
            Some(before) if before.1.next_day() == Some(*first) => before.1 = *last,
            _ => days.push((*first, *last)),
        }
    }
    days
}
