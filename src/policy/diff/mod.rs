//! What changes between two policies, exactly: who gains, loses or gets in another form which field, in which role, on
//! which days, and under which facts.
//!
//! Nothing is sampled. Per cell (consumer, matter, certificate type) every role, every span of days between two dates that
//! a grant names, and every assignment of the facts that either side names is decided on both sides. A fact has as many
//! values as can make a difference: for grants what is not known true does not hold, for denies what is not known false
//! holds, so the unknown counts by itself only where both name the fact.
//!
//! What else a grant states (roles, days, mode, legal basis …) is compared grant by grant, as are facts, types, matters
//! and departments: they say why a field changes, or that a word changed and nothing else.

mod cell;
mod conditions;
mod rest;

use std::collections::BTreeSet;
use std::fmt;

use time::Date;

use super::decide::Cell;
use super::{Mask, Policy, PolicyHash};

pub use cell::MAX_FACTS_OF_A_CELL;
pub use conditions::When;

/// All differences between two policies.
#[derive(Debug)]
pub struct Diff {
    /// Hash of the old policy.
    pub from: PolicyHash,
    /// Hash of the new one.
    pub to: PolicyHash,
    /// Cells in which something changes, by consumer, matter and certificate type.
    pub cells: Vec<CellDiff>,
    /// Changes of what grants rest on, one sentence each: facts, holidays, certificate types, matters, departments. Not
    /// empty if the catalogs' hashes differ.
    pub ground: Vec<String>,
}

/// What changes for one consumer, matter and certificate type.
#[derive(Debug)]
pub struct CellDiff {
    /// Code of the consumer.
    pub consumer: String,
    /// Code of the matter.
    pub matter: String,
    /// Code of the certificate type.
    pub certificate_type: String,
    /// Fields that change their form.
    pub fields: Vec<FieldChange>,
    /// Changes of what grants state, one sentence each.
    pub grants: Vec<String>,
}

/// Fields that change in the same way under the same circumstances.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldChange {
    /// Their form until now.
    pub from: Form,
    /// Their form from now on.
    pub to: Form,
    /// Their paths.
    pub fields: Vec<String>,
    /// The roles of the subjects.
    pub roles: Vec<String>,
    /// The days on which it is so, first and last of each span, China Standard Time.
    pub days: Vec<(Date, Date)>,
    /// The facts under which it is so.
    pub when: When,
}

/// In which form a consumer may have a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Form {
    /// What can be read of it.
    pub read: Read,
    /// True if a value may be compared with it (`Verify`).
    pub compare: bool,
}

/// What can be read of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Read {
    /// Nothing.
    #[default]
    Nothing,
    /// The masked value.
    Masked(Mask),
    /// The value.
    Clear,
}

impl Form {
    /// True if nothing can be learnt.
    pub fn is_nothing(self) -> bool {
        self == Self::default()
    }
}

/// `-`, `compare`, `name_zh`, `name_zh+compare` or `clear`, which can always be compared.
impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.read, self.compare) {
            (Read::Nothing, false) => "-",
            (Read::Nothing, true) => "compare",
            (Read::Clear, _) => "clear",
            (Read::Masked(mask), compare) => {
                return write!(f, "{}{}", mask.name(), if compare { "+compare" } else { "" });
            }
        })
    }
}

impl FieldChange {
    /// `gains`, `loses` or, if something can be learnt on both sides, `changes`.
    pub fn kind(&self) -> &'static str {
        match (self.from.is_nothing(), self.to.is_nothing()) {
            (true, _) => "gains",
            (_, true) => "loses",
            _ => "changes",
        }
    }
}

/// A cell names more facts than can be enumerated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{cell}: grants and denies of both sides name facts with {assignments} assignments together; the difference is exact \
     up to {MAX_FACTS_OF_A_CELL} facts of two values: split the grants, or compare in two steps"
)]
pub struct TooManyFacts {
    /// Consumer, matter and certificate type.
    pub cell: String,
    /// How many assignments there would be.
    pub assignments: u64,
}

impl Diff {
    /// Compares two policies. Pure.
    ///
    /// # Errors
    /// If a cell names too many facts.
    pub fn of(old: &Policy, new: &Policy) -> Result<Self, TooManyFacts> {
        let keys: BTreeSet<_> =
            [old, new].iter().flat_map(|policy| policy.table.cells().iter().map(Cell::key)).collect();
        let mut cells = Vec::new();
        for key in keys {
            let side = |policy| cell::Side::of(policy, key);
            let (before, after) = (side(old), side(new));
            let found = CellDiff {
                consumer: key.0.to_owned(),
                matter: key.1.to_owned(),
                certificate_type: key.2.to_owned(),
                fields: cell::compare(&before, &after, key)?,
                grants: rest::grants(&before, &after),
            };
            if !found.fields.is_empty() || !found.grants.is_empty() {
                cells.push(found);
            }
        }
        Ok(Self { from: *old.hash(), to: *new.hash(), cells, ground: rest::ground(old, new) })
    }

    /// True if nothing that is compared differs.
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty() && self.ground.is_empty()
    }
}
