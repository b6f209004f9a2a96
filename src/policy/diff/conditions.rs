//! Sets of assignments, and how they are said in words: a disjunction of conjunctions that covers exactly the set.

use std::fmt;

/// Which values of a fact can make a difference, and are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Values {
    /// Only grants name it: known true, or not.
    Granting,
    /// Only denies name it: known false, or not.
    Denying,
    /// Both: true, false, unknown.
    Both,
}

impl Values {
    /// How many.
    pub(super) const fn count(self) -> usize {
        match self {
            Self::Granting | Self::Denying => 2,
            Self::Both => 3,
        }
    }

    /// Known true and known false under one of the values.
    pub(super) const fn truth(self, value: usize) -> (bool, bool) {
        match (self, value) {
            (Self::Granting | Self::Both, 0) => (true, false),
            (Self::Denying, 0) | (Self::Both, 1) => (false, true),
            _ => (false, false),
        }
    }

    /// The values of a set (bit by bit) in words; none if it has all of them.
    fn say(self, fact: &str, set: u8) -> Option<String> {
        Some(match (self, set) {
            (Self::Granting | Self::Both, 0b001) => fact.to_owned(),
            (Self::Granting, 0b010) | (Self::Both, 0b110) => format!("{fact} not known true"),
            (Self::Denying, 0b001) | (Self::Both, 0b010) => format!("{fact} known false"),
            (Self::Denying, 0b010) | (Self::Both, 0b101) => format!("{fact} not known false"),
            (Self::Both, 0b100) => format!("{fact} unknown"),
            (Self::Both, 0b011) => format!("{fact} known"),
            _ => return None,
        })
    }
}

/// The facts of a cell, each with its values; an assignment is a number in their mixed radix, the first fact lowest.
#[derive(Debug)]
pub(super) struct Facts(pub(super) Vec<(String, Values)>);

impl Facts {
    /// How many assignments there are.
    pub(super) fn assignments(&self) -> u64 {
        self.0.iter().fold(1, |all: u64, (_, values)| all.saturating_mul(values.count() as u64))
    }

    /// The value of each fact.
    pub(super) fn values(&self, assignment: usize) -> Vec<usize> {
        let mut rest = assignment;
        let digit = |(_, values): &(String, Values)| {
            let digit = rest % values.count();
            rest /= values.count();
            digit
        };
        self.0.iter().map(digit).collect()
    }

    /// The assignments, ascending, in words.
    pub(super) fn say(&self, assignments: &[u32]) -> When {
        let mut left = assignments.to_vec();
        let mut terms = Vec::new();
        while let Some(first) = left.first() {
            let cube = self.widen(*first as usize, assignments);
            let covered = self.members(&cube);
            left.retain(|assignment| covered.binary_search(assignment).is_err());
            let words = self.0.iter().zip(&cube).filter_map(|((fact, values), set)| values.say(fact, *set));
            terms.push(words.collect());
        }
        let (cases, of) = (assignments.len() as u64, self.assignments());
        When { terms, cases, of }
    }

    /// The widest set of values per fact around an assignment that stays within `all`: facts that make no difference
    /// drop out, others take a further value where that is allowed.
    fn widen(&self, assignment: usize, all: &[u32]) -> Vec<u8> {
        let within = |cube: &[u8]| self.members(cube).iter().all(|member| all.binary_search(member).is_ok());
        let mut cube: Vec<u8> = self.values(assignment).iter().map(|value| 1 << value).collect();
        for (position, (_, values)) in self.0.iter().enumerate() {
            let every = (1_u8 << values.count()) - 1;
            let single = (0..values.count()).map(|value| 1 << value);
            for more in std::iter::once(every).chain(single) {
                let mut wider = cube.clone();
                if let Some(set) = wider.get_mut(position) {
                    *set |= more;
                }
                if wider != cube && within(&wider) {
                    cube = wider;
                }
            }
        }
        cube
    }

    /// The assignments of a cube, ascending.
    fn members(&self, cube: &[u8]) -> Vec<u32> {
        let mut members = vec![0_u32];
        let mut weight = 1;
        for ((_, values), set) in self.0.iter().zip(cube) {
            let of_fact: Vec<u32> = (0_u32..).take(values.count()).filter(|value| set >> value & 1 == 1).collect();
            // The weights rise, so the order stays ascending with the higher digit outside.
            members = of_fact.iter().flat_map(|value| members.iter().map(move |low| low + value * weight)).collect();
            weight *= u32::try_from(values.count()).unwrap_or(1);
        }
        members
    }
}

/// The facts under which something is so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct When {
    /// It is so if every word of one of these holds; one without words holds always.
    pub terms: Vec<Vec<String>>,
    /// In so many assignments of the cell's facts.
    pub cases: u64,
    /// Of so many.
    pub of: u64,
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.terms.iter().any(Vec::is_empty) {
            return f.write_str("always");
        }
        let terms: Vec<_> = self.terms.iter().map(|words| words.join(" and ")).collect();
        write!(f, "when {} ({} of {} cases)", terms.join("; or when "), self.cases, self.of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(values: &[Values]) -> Facts {
        Facts(["a", "b", "c", "d"].iter().zip(values).map(|(name, values)| ((*name).to_owned(), *values)).collect())
    }

    #[test]
    fn sets_are_said_exactly() {
        use Values::{Both, Denying, Granting};
        for (values, set, words) in [
            (&[Granting, Granting][..], &[0][..], "when a and b (1 of 4 cases)"),
            (&[Granting, Granting], &[0, 2], "when a (2 of 4 cases)"),
            (&[Granting, Granting], &[0, 1, 2], "when b; or when a (3 of 4 cases)"),
            (
                &[Granting, Granting],
                &[1, 2],
                "when a not known true and b; or when a and b not known true (2 of 4 cases)",
            ),
            (&[Granting, Granting], &[0, 1, 2, 3], "always"),
            (&[Denying], &[0], "when a known false (1 of 2 cases)"),
            (&[Denying], &[1], "when a not known false (1 of 2 cases)"),
            (&[Both], &[0], "when a (1 of 3 cases)"),
            (&[Both], &[1, 2], "when a not known true (2 of 3 cases)"),
            (&[Both], &[2], "when a unknown (1 of 3 cases)"),
            (&[], &[0], "always"),
        ] {
            assert_eq!(facts(values).say(set).to_string(), words);
        }
    }

    /// Whatever the set, its words cover all of it and nothing else.
    #[test]
    fn no_assignment_is_lost_or_added() {
        use Values::{Both, Denying, Granting};
        let facts = facts(&[Granting, Both, Denying]);
        assert_eq!(facts.assignments(), 12);
        for bits in 1_u32..1 << 12 {
            let set: Vec<u32> = (0..12).filter(|at| bits >> at & 1 == 1).collect();
            let mut left = set.clone();
            let mut said = std::collections::BTreeSet::new();
            while let Some(first) = left.first() {
                let members = facts.members(&facts.widen(*first as usize, &set));
                assert!(members.is_sorted());
                left.retain(|at| !members.contains(at));
                said.extend(members);
            }
            assert_eq!(said.into_iter().collect::<Vec<_>>(), set);
        }
    }
}
