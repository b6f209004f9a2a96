//! What families hold beyond births, cards and households: homes, marriages, permits, allowances, service, deaths. Which
//! family has what follows from its index, so that every kind is there whatever the seed: of sixty, the forty-third has a
//! disabled father from elsewhere who has served and is poor.

use rand::Rng as _;
use time::{Date, Duration};

use super::generate::{Maker, years_after};
use super::population::{Card, Family, Person, Sex};

/// What a family holds in other departments' registers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Registers {
    /// The parents' marriage.
    pub marriage: Option<Marriage>,
    /// The head's home.
    pub home: Option<Home>,
    /// The home that the head has bought and not registered yet.
    pub purchase: Option<Purchase>,
    /// The parents' residence permits, for a family whose household is registered elsewhere; the head's number, the
    /// other parent's is one higher.
    pub permit: Option<Permit>,
    /// The allowance that the family receives.
    pub low_income: Option<LowIncome>,
    /// The head's mother, who lived with them and died.
    pub elder: Option<Elder>,
    /// The father's military service.
    pub veteran: Option<Veteran>,
}

impl Registers {
    /// Names and numbers that stand in no other part of the population.
    pub(super) fn secrets(&self) -> impl Iterator<Item = &str> {
        let marriage = self.marriage.iter().map(|marriage| marriage.certificate_no.as_str());
        let home = self.home.iter().flat_map(|home| [home.certificate_no.as_str(), home.unit_no.as_str()]);
        let purchase = self.purchase.iter().map(|purchase| purchase.contract_no.as_str());
        let permit = self.permit.iter().flat_map(|permit| permit.numbers.iter().map(String::as_str));
        let low_income = self.low_income.iter().map(|low| low.family_no.as_str());
        let elder = self
            .elder
            .iter()
            .flat_map(|elder| [elder.person.name.as_str(), elder.person.id_no.as_str(), elder.certificate_no.as_str()]);
        let veteran =
            self.veteran.iter().flat_map(|veteran| [veteran.card_no.as_str(), veteran.household_letter_no.as_str()]);
        marriage.chain(home).chain(purchase).chain(permit).chain(low_income).chain(elder).chain(veteran)
    }
}

/// A marriage in force.
#[derive(Clone, Debug, PartialEq)]
pub struct Marriage {
    /// Certificate number.
    pub certificate_no: String,
    /// Day of registration.
    pub date: Date,
}

/// A home and its title.
#[derive(Clone, Debug, PartialEq)]
pub struct Home {
    /// Title number.
    pub certificate_no: String,
    /// Unit number, 28 characters.
    pub unit_no: String,
    /// Square metres.
    pub area_m2: String,
    /// Day of registration.
    pub registered: Date,
    /// True if it is mortgaged.
    pub mortgaged: bool,
}

/// A filed contract of sale.
#[derive(Clone, Debug, PartialEq)]
pub struct Purchase {
    /// Contract number.
    pub contract_no: String,
    /// Who sells.
    pub seller: &'static str,
    /// Where the home is.
    pub location: String,
    /// Square metres.
    pub area_m2: String,
    /// Yuan.
    pub price: String,
    /// Day of filing.
    pub filed: Date,
}

/// Residence permits of both parents.
#[derive(Clone, Debug, PartialEq)]
pub struct Permit {
    /// Numbers, in the order of [`Family::parents`].
    pub numbers: Vec<String>,
    /// Where they live.
    pub address: String,
    /// First issued.
    pub first_issued: Date,
    /// Last day.
    pub valid_until: Date,
}

/// A family's allowance.
#[derive(Clone, Debug, PartialEq)]
pub struct LowIncome {
    /// Family number.
    pub family_no: String,
    /// Yuan a month.
    pub monthly_amount: String,
    /// First day.
    pub since: Date,
}

/// A late member of the family.
#[derive(Clone, Debug, PartialEq)]
pub struct Elder {
    /// The person, with the card as it was.
    pub person: Person,
    /// Day of death.
    pub died: Date,
    /// Number of the death certificate.
    pub certificate_no: String,
    /// Day of cremation.
    pub cremated: Date,
}

/// A soldier's return.
#[derive(Clone, Debug, PartialEq)]
pub struct Veteran {
    /// Number of the preferential card.
    pub card_no: String,
    /// Number of the letter that enters the household.
    pub household_letter_no: String,
    /// First day of service.
    pub enlisted: Date,
    /// Last day of service.
    pub discharged: Date,
}

const SELLERS: &[&str] = &["乌有置业有限公司", "子虚房地产开发有限公司"];

impl Maker {
    /// What the family of this index holds.
    pub(super) fn registers(&mut self, index: usize, family: &Family) -> Registers {
        let today = self.today;
        let oldest = family.children.first().map_or(today, |child| child.person.birth_date);
        let marriage = family.father.as_ref().map(|_| Marriage {
            certificate_no: format!("J990784-{}-{:06}", oldest.year(), self.next()),
            date: self.earlier(oldest, 200, 900),
        });
        let home = (index % 10 != 6).then(|| Home {
            certificate_no: format!("乌(2019)子虚县不动产权第{:07}号", self.next()),
            unit_no: format!("990784001002GB{:05}F{:08}", self.next(), self.rng.random_range(1..9999)),
            area_m2: format!("{}.{:02}", self.rng.random_range(45..160), self.rng.random_range(0..100)),
            registered: self.earlier(today, 60, 3000),
            mortgaged: index.is_multiple_of(4),
        });
        let purchase = (index % 5 == 2).then(|| {
            let (location, _) = self.address();
            let area = self.rng.random_range(60..140);
            Purchase {
                contract_no: format!("ZX{:010}", self.next()),
                seller: self.pick(SELLERS),
                location,
                area_m2: format!("{area}.00"),
                price: format!("{}00.00", area * self.rng.random_range(45..90)),
                filed: self.earlier(today, 3, 40),
            }
        });
        let permit = matches!(index % 20, 2 | 3).then(|| {
            let first_issued = self.earlier(today, 400, 1500);
            let (address, _) = self.address();
            Permit {
                numbers: family.parents().map(|_| format!("990784{:012}", self.next())).collect(),
                address,
                first_issued,
                valid_until: years_after(today, 1),
            }
        });
        let low_income = (matches!(index % 15, 4 | 8) || index % 60 == 43).then(|| LowIncome {
            family_no: format!("DB{:08}", self.next()),
            monthly_amount: format!("{}.00", self.rng.random_range(500..1800)),
            since: self.earlier(today, 40, 700),
        });
        let elder = (index % 20 == 9).then(|| self.elder(family));
        let veteran = (index % 12 == 1 || index % 60 == 43).then(|| {
            let born = family.father.as_ref()?.birth_date;
            let discharged = self.earlier(today, 5, 25);
            let enlisted = years_after(born, 19).min(discharged.saturating_sub(Duration::days(2 * 366)));
            Some(Veteran {
                card_no: format!("TY{:010}", self.next()),
                household_letter_no: format!("子退介字{:06}", self.next()),
                enlisted,
                discharged,
            })
        });
        Registers { marriage, home, purchase, permit, low_income, elder, veteran: veteran.flatten() }
    }

    /// The head's mother: of the age for it, and dead for some weeks.
    fn elder(&mut self, family: &Family) -> Elder {
        let head = family.head();
        let born = self.earlier(head.birth_date, 22 * 366, 33 * 365);
        let surname = self.surname();
        let died = self.earlier(self.today, 5, 50);
        let mut person = self.adult(Sex::Female, surname, born, head.registered_at);
        person.employer = None;
        person.card = Some(Card { valid_from: years_after(born, 46), valid_until: None, status: "CANCELLED" });
        Elder { person, died, certificate_no: format!("SW{:010}", self.next()), cremated: self.later(died, 2, 4) }
    }
}

/// Whole months from one day to another; 0 if it lies before.
pub(super) fn months_between(from: Date, to: Date) -> u32 {
    let months = (to.year() - from.year()) * 12 + i32::from(u8::from(to.month())) - i32::from(u8::from(from.month()));
    u32::try_from(months - i32::from(to.day() < from.day())).unwrap_or(0)
}
