//! Makes the population: one family after the other, every certificate from the same facts.

use std::collections::HashSet;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use time::{Date, Duration};

use super::names::{BRANDS, COUNTY, EMPLOYERS, FEMALE, HOSPITALS, MALE, MINORITIES, STREETS, SURNAMES, TOWNS, TRADES};
use super::numbers::{id_number, uscc, uscc_char};
use super::population::{
    Birth, Business, Card, Child, Disability, Family, Guardian, Person, Population, Predecessor, Sex, Stage,
};
use super::registers::Registers;

const FAMILIES: usize = 1200;
const BUSINESSES: usize = 200;
const CONVERSIONS: usize = 40;

pub(super) fn generate(seed: u64, today: Date) -> Population {
    let mut maker = Maker { rng: StdRng::seed_from_u64(seed), today, taken: HashSet::new(), sequence: 0 };
    let families: Vec<Family> = (0..FAMILIES).map(|index| maker.family(index)).collect();
    let mut businesses: Vec<Business> =
        (0..BUSINESSES).filter_map(|index| maker.business(&families, index % 2 == 0)).collect();
    for index in 0..CONVERSIONS {
        // The first company is converted today, the others on earlier days.
        let days_ago = i64::try_from(index).unwrap_or(0) * 17;
        businesses.extend(maker.conversion(&families, days_ago).into_iter().flatten());
    }
    Population { families, businesses, today }
}

pub(super) struct Maker {
    pub(super) rng: StdRng,
    pub(super) today: Date,
    /// Identity numbers, credit codes and names of businesses already given away.
    taken: HashSet<String>,
    /// Counts certificates, households and telephones.
    sequence: u32,
}

impl Maker {
    /// What is special in a family follows from its index, so that every kind is there whatever the seed.
    fn family(&mut self, index: usize) -> Family {
        let stage = match index {
            i if i % 25 == 7 => Stage::Newborn,
            i if i % 10 == 2 => Stage::SchoolAge,
            _ => Stage::Other,
        };
        let births = self.births(stage, index % 33 == 11 || index % 300 == 57);
        let oldest = births.first().copied().unwrap_or(self.today);
        let youngest = births.last().copied().unwrap_or(self.today);

        let mother_born = self.earlier(oldest, 22 * 366, 33 * 365);
        let father_born = self.earlier(mother_born, 0, 6 * 365);
        let joined = self.earlier(oldest, 30, 900);
        let single = index % 9 == 4;
        let mother_surname = self.pick(SURNAMES);
        let father_surname = self.pick(SURNAMES);
        let mut mother = self.adult(Sex::Female, mother_surname, mother_born, joined);
        let mut father = (!single).then(|| self.adult(Sex::Male, father_surname, father_born, joined));
        if single {
            mother.marital_status = self.pick(&[DIVORCED, WIDOWED]);
        }

        let surname = if single || self.chance(10) { mother_surname } else { father_surname };
        let mut children: Vec<Child> = Vec::new();
        for born in births {
            let ethnicity = match &father {
                Some(father) if self.chance(50) => father.ethnicity,
                _ => mother.ethnicity,
            };
            // Only the youngest, and its twin, is what the family was chosen for.
            let stage = if born == youngest { stage } else { Stage::Other };
            children.push(self.child(surname, born, ethnicity, stage));
        }
        if index % 10 == 3 {
            let guardian = mother.name.clone();
            match (index / 10 % 3, &mut father, children.first_mut()) {
                (0, _, Some(child)) if self.today - child.person.birth_date > Duration::days(1200) => {
                    child.person.disability = Some(self.disability(&child.person, Some(guardian)));
                }
                (1, Some(father), _) => father.disability = Some(self.disability(father, None)),
                _ => mother.disability = Some(self.disability(&mother, None)),
            }
        }
        let (address, town) = self.address();
        let mut family = Family {
            household_no: format!("990784{:06}", self.next()),
            address,
            police_station: format!("子虚县公安局{town}派出所"),
            mother,
            father,
            children,
            registers: Registers::default(),
        };
        family.registers = self.registers(index, &family);
        family
    }

    /// Birth dates of one to three children, oldest first, the youngest at the stage asked for.
    fn births(&mut self, stage: Stage, twins: bool) -> Vec<Date> {
        let youngest = match stage {
            Stage::Newborn => self.earlier(self.today, 3, 9),
            // Six years and one to eleven months.
            Stage::SchoolAge => self.earlier(self.today, 6 * 365 + 32, 6 * 365 + 335),
            Stage::Other => self.earlier(self.today, 40, 5000),
        };
        let mut births = vec![youngest];
        if twins {
            births.push(youngest);
        } else {
            let more = [0, 0, 0, 1, 1, 2].get(self.rng.random_range(0..6)).copied().unwrap_or(0);
            for _ in 0..more {
                let next = births.first().copied().unwrap_or(youngest);
                births.insert(0, self.earlier(next, 500, 1500));
            }
            births.retain(|born| self.today - *born < Duration::days(18 * 365));
        }
        births
    }

    pub(super) fn adult(&mut self, sex: Sex, surname: &str, born: Date, registered_at: Date) -> Person {
        let mut person = self.person(sex, surname, born, registered_at);
        person.ethnicity = if self.chance(8) { self.pick(MINORITIES) } else { HAN };
        person.marital_status = MARRIED;
        person.education = self.pick(&["10", "20", "30", "40", "60", "70"]);
        person.employer = Some(self.pick(EMPLOYERS));
        person.height_cm = match sex {
            Sex::Male => self.rng.random_range(160..188),
            Sex::Female => self.rng.random_range(150..175),
        };
        if self.chance(3) {
            person.former_name = Some(self.name(sex, surname));
        }
        person.card = Some(self.card(years_after(born, 16), 16));
        person
    }

    fn child(&mut self, surname: &str, born: Date, ethnicity: &'static str, stage: Stage) -> Child {
        let sex = if self.chance(52) { Sex::Male } else { Sex::Female };
        let age_days = (self.today - born).whole_days();
        let registered_at = if stage == Stage::Newborn { self.today } else { self.later(born, 5, 30) };
        let mut person = self.person(sex, surname, born, registered_at);
        person.ethnicity = ethnicity;
        person.education = match age_days / 365 {
            0..=6 => "90",
            7..=12 => "80",
            13..=15 => "70",
            _ => "60",
        };
        person.height_cm = 50 + u32::try_from(age_days / 60).unwrap_or(0);
        if age_days > 16 * 366 {
            person.card = Some(self.card(years_after(born, 16), 16));
        } else if age_days > 1100 && self.chance(50) {
            let first = self.later(born, 740, 1050);
            person.card = Some(self.card(first, 2));
        }
        let birth = Birth {
            certificate_no: format!("N9{:08}", self.next()),
            datetime: format!("{born}T{:02}:{:02}", self.rng.random_range(0..24), self.rng.random_range(0..60)),
            gestational_weeks: self.rng.random_range(36..=41),
            weight_g: self.rng.random_range(2400..4200),
            length_cm: self.rng.random_range(46..=54),
            institution: self.pick(HOSPITALS),
            issue_date: self.later(born, 1, 3),
            stage,
        };
        Child { person, birth }
    }

    /// A person with what all ages share; the rest is that of an unmarried child of the Han.
    fn person(&mut self, sex: Sex, surname: &str, birth_date: Date, registered_at: Date) -> Person {
        Person {
            name: self.name(sex, surname),
            former_name: None,
            id_no: self.id_no(sex, birth_date),
            sex,
            birth_date,
            ethnicity: HAN,
            marital_status: UNMARRIED,
            education: "90",
            employer: None,
            height_cm: 0,
            blood_type: self.pick(&["A", "B", "O", "AB"]),
            registered_at,
            card: None,
            disability: None,
        }
    }

    /// The latest card of somebody whose first was issued on `first` at `age`: each is renewed when it ends, for as long
    /// as the age at issue gives (Resident Identity Card Law, art. 5). One in 50 has let the last one end.
    fn card(&mut self, first: Date, mut age: i32) -> Card {
        let forgets = self.chance(2);
        let mut valid_from = first;
        loop {
            let term = match age {
                ..16 => Some(5),
                16..=25 => Some(10),
                26..=45 => Some(20),
                _ => None,
            };
            let valid_until = term.map(|years| years_after(valid_from, years));
            match (valid_until, term) {
                (Some(end), Some(years)) if end < self.today => {
                    if forgets && self.today - end < Duration::days(1500) {
                        return Card { valid_from, valid_until, status: "EXPIRED" };
                    }
                    valid_from = end;
                    age += years;
                }
                _ => {
                    let status = if self.chance(1) { "LOST" } else { "VALID" };
                    return Card { valid_from, valid_until, status };
                }
            }
        }
    }

    fn disability(&mut self, person: &Person, guardian: Option<String>) -> Disability {
        let category = self.rng.random_range(1..=7_u8);
        let grade = self.rng.random_range(1..=4_u8);
        let oldest = (self.today - person.birth_date).whole_days().min(3900) - 400;
        let issue_date = self.earlier(self.today, 30, oldest.max(60));
        let valid_until = years_after(issue_date, 10);
        let status = match valid_until < self.today {
            true => "EXPIRED",
            false if self.chance(5) => "FROZEN",
            false => "VALID",
        };
        let guardian = guardian.map(|name| Guardian { name, phone: format!("100{:08}", self.next()) });
        let certificate_no = format!("{}{category}{grade}", person.id_no);
        Disability { certificate_no, category, grade, guardian, issue_date, valid_until, status }
    }

    /// A business in the hands of some family's parent.
    fn business(&mut self, families: &[Family], company: bool) -> Option<Business> {
        let owner = self.owner(families)?;
        let first_day = years_after(owner.birth_date, 18).max(self.today.saturating_sub(Duration::days(15 * 365)));
        let span = (self.today - first_day).whole_days().max(60);
        let established_date = self.earlier(self.today, 30, span);
        let (address, town) = self.address();
        let (name, scope, shop) = self.pick(TRADES);
        let entity_name = self.unused(|maker| {
            let brand = format!("{}{}{}", maker.pick(BRANDS), maker.pick(BRANDS), maker.pick(BRANDS));
            if company {
                format!("子虚县{brand}{name}有限公司")
            } else {
                format!("子虚县{town}{brand}{shop}")
            }
        });
        let status = if self.chance(4) { "SUSPENDED" } else { "OPERATING" };
        Some(Business {
            uscc: self.uscc(if company { '1' } else { '2' }),
            registration_no: (established_date.year() < 2015).then(|| format!("990784{:09}", self.next())),
            entity_name,
            entity_type: if company { COMPANY } else { INDIVIDUAL },
            legal_representative: owner.name.clone(),
            legal_representative_id_no: owner.id_no.clone(),
            registered_capital: company.then(|| format!("{}0000.00", self.rng.random_range(3..500))),
            established_date,
            term_until: self.chance(40).then(|| years_after(established_date, 20)),
            domicile: address,
            business_scope: scope,
            approved_date: self.later(established_date, 0, 900),
            predecessor: None,
            status,
        })
    }

    /// An individual business and the company that it became `days_ago`.
    fn conversion(&mut self, families: &[Family], days_ago: i64) -> Option<[Business; 2]> {
        let mut before = self.business(families, false)?;
        let day = self.today.saturating_sub(Duration::days(days_ago)).max(before.established_date);
        before.status = "CANCELLED";
        before.approved_date = day;
        let entity_name = self.unused(|maker| {
            format!("子虚县{}{}{}有限公司", maker.pick(BRANDS), maker.pick(BRANDS), maker.pick(BRANDS))
        });
        let after = Business {
            uscc: self.uscc('1'),
            registration_no: None,
            entity_name,
            entity_type: COMPANY,
            registered_capital: Some(format!("{}0000.00", self.rng.random_range(3..500))),
            established_date: day,
            term_until: None,
            approved_date: day,
            predecessor: Some(Predecessor { uscc: before.uscc.clone(), established_date: before.established_date }),
            status: "OPERATING",
            ..before.clone()
        };
        Some([before, after])
    }

    fn owner<'a>(&mut self, families: &'a [Family]) -> Option<&'a Person> {
        let index = self.rng.random_range(0..families.len());
        // One in ten is run by a father who lives on little; see `registers`.
        let index = if self.chance(10) { index - index % 60 + 43 } else { index };
        families.get(index).map(Family::head)
    }

    pub(super) fn address(&mut self) -> (String, &'static str) {
        let town = self.pick(TOWNS);
        let address = format!("{COUNTY}{town}{}{}号", self.pick(STREETS), self.rng.random_range(1..400));
        (address, town)
    }

    /// A surname and two characters.
    fn name(&mut self, sex: Sex, surname: &str) -> String {
        let given = if sex == Sex::Male { MALE } else { FEMALE };
        format!("{surname}{}{}", self.pick(given), self.pick(given))
    }

    fn id_no(&mut self, sex: Sex, birth_date: Date) -> String {
        self.unused(|maker| {
            let half: u16 = maker.rng.random_range(1..500);
            id_number(birth_date, half * 2 - u16::from(sex == Sex::Male))
        })
    }

    fn uscc(&mut self, category: char) -> String {
        self.unused(|maker| {
            let six: String = (0..6).map(|_| uscc_char(maker.rng.random_range(0..31))).collect();
            uscc(category, &format!("MA{six}"))
        })
    }

    /// The first text made that nobody has yet.
    fn unused(&mut self, mut make: impl FnMut(&mut Self) -> String) -> String {
        loop {
            let text = make(self);
            if self.taken.insert(text.clone()) {
                return text;
            }
        }
    }

    pub(super) fn next(&mut self) -> u32 {
        self.sequence += 1;
        self.sequence
    }

    pub(super) fn surname(&mut self) -> &'static str {
        self.pick(SURNAMES)
    }

    pub(super) fn pick<T: Copy + Default>(&mut self, from: &[T]) -> T {
        from.get(self.rng.random_range(0..from.len().max(1))).copied().unwrap_or_default()
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.rng.random_range(0..100) < percent
    }

    /// A day `least` to `most` days before `date`.
    pub(super) fn earlier(&mut self, date: Date, least: i64, most: i64) -> Date {
        date.saturating_sub(Duration::days(self.rng.random_range(least..=most.max(least))))
    }

    /// A day `least` to `most` days after `date`, at the latest today.
    pub(super) fn later(&mut self, date: Date, least: i64, most: i64) -> Date {
        date.saturating_add(Duration::days(self.rng.random_range(least..=most.max(least)))).min(self.today)
    }
}

/// GB/T 3304.
const HAN: &str = "01";

// GB/T 2261.2.
const UNMARRIED: &str = "10";
const MARRIED: &str = "20";
const WIDOWED: &str = "30";
const DIVORCED: &str = "40";

// The register of businesses' own table.
const COMPANY: &str = "1130";
const INDIVIDUAL: &str = "9500";

/// The same day so many years later; 29 February becomes the 28th where the year has none.
pub(super) fn years_after(date: Date, years: i32) -> Date {
    let year = date.year() + years;
    date.replace_year(year).or_else(|_| date.saturating_sub(Duration::DAY).replace_year(year)).unwrap_or(date)
}
