//! The people and businesses of the demo county: families whose certificates agree with each other.

use std::fmt;

use time::Date;

use super::registers::Registers;

/// Everybody and every business, made from a seed.
pub struct Population {
    /// Families; each is one household.
    pub families: Vec<Family>,
    /// Businesses, those cancelled by a conversion included.
    pub businesses: Vec<Business>,
    /// The day on which everything is as it is.
    pub today: Date,
}

impl Population {
    /// 1,200 families and 280 businesses. The same seed and day give the same population; no date lies after `today`
    /// but the ends of terms.
    pub fn generate(seed: u64, today: Date) -> Self {
        super::generate::generate(seed, today)
    }

    /// Two parents whose only child was born less than ten days ago and entered in the register today.
    pub fn newborn_family(&self) -> Option<&Family> {
        self.families.iter().find(|family| {
            family.father.is_some()
                && matches!(family.children.as_slice(), [child]
                    if child.birth.stage == Stage::Newborn)
        })
    }

    /// Two parents whose newborn children are twins: one mother, one birth date, two certificates.
    pub fn newborn_twins(&self) -> Option<&Family> {
        self.families.iter().find(|family| {
            family.father.is_some()
                && matches!(family.children.as_slice(), [first, second]
                    if first.birth.stage == Stage::Newborn && first.person.birth_date == second.person.birth_date)
        })
    }

    /// Two parents who came from elsewhere, own a home, have bought another, and whose youngest child is six years old;
    /// and that child.
    pub fn school_family(&self) -> Option<(&Family, &Child)> {
        let settled = |family: &&Family| {
            let Registers { home, purchase, permit, .. } = &family.registers;
            family.father.is_some() && home.is_some() && purchase.is_some() && permit.is_some()
        };
        (self.families.iter().filter(settled))
            .find_map(|family| Some((family, family.children.last().filter(|c| c.birth.stage == Stage::SchoolAge)?)))
    }

    /// A father from elsewhere who has served, with a disability certificate in force and an allowance, and the family.
    pub fn disabled_person(&self) -> Option<(&Family, &Person)> {
        let mut families = self.families.iter().filter(|family| {
            let Registers { permit, low_income, veteran, .. } = &family.registers;
            permit.is_some() && low_income.is_some() && veteran.is_some()
        });
        let in_force = |person: &&Person| person.disability.as_ref().is_some_and(|d| d.status == "VALID");
        families.find_map(|family| Some((family, family.father.as_ref().filter(in_force)?)))
    }

    /// The company that was an individual business until most recently, of an operator with a home.
    pub fn converted_business(&self) -> Option<&Business> {
        let settled = |id_no: &str| {
            self.families.iter().any(|family| family.head().id_no == id_no && family.registers.home.is_some())
        };
        (self.businesses.iter())
            .filter(|business| business.predecessor.is_some() && settled(&business.legal_representative_id_no))
            .max_by_key(|business| business.established_date)
    }

    /// Every person with the family.
    pub fn people(&self) -> impl Iterator<Item = (&Family, &Person)> {
        self.families.iter().flat_map(|family| family.members().map(move |(person, _)| (family, person)))
    }

    /// Every name and number of a person or business: what must never stand in a log line.
    pub fn secrets(&self) -> impl Iterator<Item = &str> {
        let people = self.people().flat_map(|(_, person)| person.secrets());
        let families = self.families.iter().flat_map(|family| {
            let births = family.children.iter().map(|child| child.birth.certificate_no.as_str());
            births.chain([family.household_no.as_str(), family.address.as_str()]).chain(family.registers.secrets())
        });
        let businesses = self.businesses.iter().flat_map(|business| {
            [business.uscc.as_str(), business.entity_name.as_str()]
                .into_iter()
                .chain(business.registration_no.as_deref())
        });
        people.chain(families).chain(businesses)
    }
}

/// Counts only.
impl fmt::Debug for Population {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Population")
            .field("families", &self.families.len())
            .field("businesses", &self.businesses.len())
            .finish_non_exhaustive()
    }
}

/// A household of one or two parents and their children.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    /// Household number.
    pub household_no: String,
    /// Address, largest unit first.
    pub address: String,
    /// The police station that keeps the register.
    pub police_station: String,
    /// Mother of every child.
    pub mother: Person,
    /// Father of every child; absent in single-parent families, and then from the birth certificates too.
    pub father: Option<Person>,
    /// Children, oldest first; never empty.
    pub children: Vec<Child>,
    /// What they hold in other registers.
    pub registers: Registers,
}

impl Family {
    /// The head of the household.
    pub fn head(&self) -> &Person {
        self.father.as_ref().unwrap_or(&self.mother)
    }

    /// Father, if there is one, and mother.
    pub fn parents(&self) -> impl Iterator<Item = &Person> {
        self.father.iter().chain([&self.mother])
    }

    /// Everybody, the head first, with the relation to the head (GB/T 4761).
    pub fn members(&self) -> impl Iterator<Item = (&Person, &'static str)> {
        let relations = [HEAD, WIFE];
        let children = self
            .children
            .iter()
            .map(|child| (&child.person, if child.person.sex == Sex::Male { SON } else { DAUGHTER }));
        self.parents().zip(relations).chain(children)
    }
}

const HEAD: &str = "02";
const WIFE: &str = "12";
const SON: &str = "20";
const DAUGHTER: &str = "30";

/// A child and the birth certificate.
#[derive(Clone, Debug, PartialEq)]
pub struct Child {
    /// The child.
    pub person: Person,
    /// The medical certificate of birth.
    pub birth: Birth,
}

/// What a birth certificate says besides names and numbers of child and parents.
#[derive(Clone, Debug, PartialEq)]
pub struct Birth {
    /// Certificate number.
    pub certificate_no: String,
    /// Time of birth, `YYYY-MM-DDTHH:MM`.
    pub datetime: String,
    /// Whole weeks.
    pub gestational_weeks: u32,
    /// Grams.
    pub weight_g: u32,
    /// Centimetres.
    pub length_cm: u32,
    /// The hospital, which also issues the certificate.
    pub institution: &'static str,
    /// Day of issue.
    pub issue_date: Date,
    /// What the child is chosen for.
    pub stage: Stage,
}

/// Where a child stands in the matters of the demo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Born less than ten days ago.
    Newborn,
    /// Six years old.
    SchoolAge,
    /// Any other age below 18.
    Other,
}

/// A person as the household register knows them.
#[derive(Clone, Debug, PartialEq)]
pub struct Person {
    /// Name.
    pub name: String,
    /// Name before a change.
    pub former_name: Option<String>,
    /// Identity number.
    pub id_no: String,
    /// Sex.
    pub sex: Sex,
    /// Date of birth; the identity number holds the same.
    pub birth_date: Date,
    /// Code of GB/T 3304.
    pub ethnicity: &'static str,
    /// Code of GB/T 2261.2.
    pub marital_status: &'static str,
    /// Code of GB/T 4658.
    pub education: &'static str,
    /// Where the person works.
    pub employer: Option<&'static str>,
    /// Centimetres.
    pub height_cm: u32,
    /// Blood group.
    pub blood_type: &'static str,
    /// Entered in this household on.
    pub registered_at: Date,
    /// Identity card; small children have none.
    pub card: Option<Card>,
    /// Disability certificate.
    pub disability: Option<Disability>,
}

impl Person {
    fn secrets(&self) -> impl Iterator<Item = &str> {
        let disability = self.disability.iter().flat_map(|disability| {
            [disability.certificate_no.as_str()]
                .into_iter()
                .chain(disability.guardian.as_ref().map(|g| g.phone.as_str()))
        });
        [self.name.as_str(), self.id_no.as_str()].into_iter().chain(self.former_name.as_deref()).chain(disability)
    }
}

/// Sex.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sex {
    /// Male; digit 17 of the identity number is odd.
    Male,
    /// Female; digit 17 of the identity number is even.
    Female,
}

/// An identity card, the latest of its holder.
#[derive(Clone, Debug, PartialEq)]
pub struct Card {
    /// First day.
    pub valid_from: Date,
    /// Last day; absent on a long-term card.
    pub valid_until: Option<Date>,
    /// The catalog's status without its prefix: `VALID`, `EXPIRED` or `LOST`.
    pub status: &'static str,
}

/// A disability certificate.
#[derive(Clone, Debug, PartialEq)]
pub struct Disability {
    /// Identity number, category and grade in one.
    pub certificate_no: String,
    /// 1 sight, 2 hearing, 3 speech, 4 limbs, 5 intellect, 6 mental, 7 more than one.
    pub category: u8,
    /// 1, the gravest, to 4.
    pub grade: u8,
    /// Guardian of a child.
    pub guardian: Option<Guardian>,
    /// Day of issue.
    pub issue_date: Date,
    /// Last day, ten years after issue.
    pub valid_until: Date,
    /// The catalog's status without its prefix: `VALID`, `EXPIRED` or `FROZEN`.
    pub status: &'static str,
}

/// Who answers for a disabled child.
#[derive(Clone, Debug, PartialEq)]
pub struct Guardian {
    /// Name of the mother.
    pub name: String,
    /// A telephone number that no network can have.
    pub phone: String,
}

/// A registered business.
#[derive(Clone, Debug, PartialEq)]
pub struct Business {
    /// Unified social credit code.
    pub uscc: String,
    /// Number from before 2015.
    pub registration_no: Option<String>,
    /// Name, unlike every other.
    pub entity_name: String,
    /// `1130` a company of natural persons, `9500` an individual business.
    pub entity_type: &'static str,
    /// Name of the legal representative or operator, a parent of some family.
    pub legal_representative: String,
    /// The same person's identity number.
    pub legal_representative_id_no: String,
    /// Yuan; companies only.
    pub registered_capital: Option<String>,
    /// Day of establishment.
    pub established_date: Date,
    /// Last day of the term; absent if unlimited.
    pub term_until: Option<Date>,
    /// Address.
    pub domicile: String,
    /// What it may do.
    pub business_scope: &'static str,
    /// Day of the last approval.
    pub approved_date: Date,
    /// The individual business that it was.
    pub predecessor: Option<Predecessor>,
    /// The catalog's status without its prefix: `OPERATING`, `SUSPENDED` or `CANCELLED`.
    pub status: &'static str,
}

/// The individual business that a company was.
#[derive(Clone, Debug, PartialEq)]
pub struct Predecessor {
    /// Its code; the business of that code is cancelled.
    pub uscc: String,
    /// Its day of establishment.
    pub established_date: Date,
}

#[cfg(test)]
#[path = "population_tests.rs"]
mod tests;
