//! Who plays in which matter: real roles, synthetic people, chosen so that every certificate the matter needs is there.

use super::population::{Business, Family, Person, Population};
use super::record;
use super::registry::consent_of;
use crate::catalog::Matter;
use crate::cli::case::{Case, Subject};
use crate::cli::{Exit, Failure};

/// The case of a matter.
///
/// # Errors
/// If the population has nobody for it.
pub(super) fn case(population: &Population, matter: &Matter) -> Result<Case, Failure> {
    let code = matter.code.as_str();
    let missing = || Failure::new(Exit::Failed, format!("the population has nobody for {code}"));
    let subjects = subjects(population, code).ok_or_else(missing)?;
    let place = CASES.iter().position(|known| *known == code).ok_or_else(missing)?;
    let case_id = format!("HS-DEMO-{:06}", place + 1);
    // The family mandates the look into what it owns and earns.
    let consent = if code == "social_assistance" { consent_of(&case_id) } else { String::new() };
    Ok(Case {
        matter: code.to_owned(),
        case_id,
        citation: matter.legal_basis.first().cloned().unwrap_or_default(),
        consent,
        purpose: matter.name_zh.clone(),
        subjects,
    })
}

/// The matters in the order of their case numbers.
const CASES: [&str; 23] = [
    "newborn_birth",
    "school_enrolment",
    "disability_services",
    "individual_to_enterprise",
    "social_security_card_services",
    "retirement",
    "enterprise_info_change",
    "open_restaurant",
    "open_transport_enterprise",
    "utilities_joint_application",
    "credit_repair",
    "enterprise_deregistration",
    "veteran_services",
    "housing_fund_loan",
    "enterprise_relocation",
    "enterprise_startup",
    "public_rental_housing",
    "marriage_and_birth",
    "posthumous_affairs",
    "real_estate_transfer",
    "social_assistance",
    "childcare_subsidy",
    "flexible_employment_insurance",
];

fn subjects(population: &Population, matter: &str) -> Option<Vec<Subject>> {
    Some(match matter {
        "newborn_birth" | "marriage_and_birth" | "childcare_subsidy" => {
            let family = population.newborn_family()?;
            let (father, mother) = (family.father.as_ref()?, &family.mother);
            let child = born("child", &family.children.first()?.person);
            match matter {
                "newborn_birth" => vec![child, person("mother", mother), person("father", father)],
                "childcare_subsidy" => vec![child, person("guardian", mother)],
                _ => vec![
                    person("applicant", father),
                    person("spouse", mother),
                    person("mother", mother),
                    person("father", father),
                ],
            }
        }
        "school_enrolment" => {
            let (family, child) = population.school_family()?;
            vec![born("child", &child.person), person("guardian", family.head()), person("mother", &family.mother)]
        }
        "disability_services" => {
            let (_, found) = population.disabled_person()?;
            let (_, elder) = late(population)?;
            vec![person("applicant", found), person("deceased", elder)]
        }
        "social_security_card_services" => {
            let (_, found) = population.disabled_person()?;
            vec![person("applicant", found)]
        }
        "retirement" => {
            let fathers = population.families.iter().filter_map(|family| family.father.as_ref());
            let eldest = fathers.filter(|father| employed(father)).min_by_key(|father| father.birth_date)?;
            vec![person("applicant", eldest)]
        }
        "flexible_employment_insurance" => {
            let own = |person: &&Person| person.employer == Some("自营");
            vec![person("applicant", population.families.iter().flat_map(Family::parents).find(own)?)]
        }
        "veteran_services" => {
            let family = (population.families.iter())
                .find(|family| family.father.is_some() && family.registers.veteran.is_some())?;
            vec![person("applicant", family.father.as_ref()?), person("household_member", &family.mother)]
        }
        "housing_fund_loan" => {
            let family = buyers(population).next()?;
            vec![person("applicant", family.father.as_ref()?), person("spouse", &family.mother)]
        }
        "real_estate_transfer" => {
            let mut buyers = buyers(population);
            let (buyer, seller) = (buyers.next()?, buyers.next()?);
            let company = company(population)?;
            vec![
                person("transferee", buyer.head()),
                person("transferor", seller.head()),
                person("agent", &seller.mother),
                entity(company),
            ]
        }
        "public_rental_housing" => {
            let (family, found) = population.disabled_person()?;
            vec![person("applicant", found), person("household_member", &family.mother)]
        }
        "social_assistance" => {
            let (family, pupil) = needy(population)?;
            vec![person("applicant", family.father.as_ref()?), person("household_member", pupil)]
        }
        "posthumous_affairs" => {
            let (family, elder) = late(population)?;
            vec![person("deceased", elder), person("heir", family.head())]
        }
        "individual_to_enterprise" => {
            let business = population.converted_business()?;
            vec![owner("operator", business), entity(business)]
        }
        "open_restaurant" => {
            let (family, business) = owned_home(population)?;
            vec![person("operator", family.head()), entity(business)]
        }
        "enterprise_info_change"
        | "open_transport_enterprise"
        | "utilities_joint_application"
        | "credit_repair"
        | "enterprise_deregistration"
        | "enterprise_relocation"
        | "enterprise_startup" => {
            let company = company(population)?;
            let agent = population.families.first()?;
            vec![owner("legal_representative", company), person("agent", &agent.mother), entity(company)]
        }
        _ => return None,
    })
}

fn employed(person: &Person) -> bool {
    !matches!(person.employer, Some("自营" | "务农") | None)
}

/// A company in operation.
fn company(population: &Population) -> Option<&Business> {
    population.businesses.iter().find(|found| found.registered_capital.is_some() && found.status == "OPERATING")
}

/// Couples who own a home and have bought another.
fn buyers(population: &Population) -> impl Iterator<Item = &Family> {
    population.families.iter().filter(|family| {
        let registers = &family.registers;
        family.father.is_some() && registers.home.is_some() && registers.purchase.is_some()
    })
}

/// A head of a family who owns a home and runs a business, and the business.
fn owned_home(population: &Population) -> Option<(&Family, &Business)> {
    let mut homes = population.families.iter().filter(|family| family.registers.home.is_some());
    homes.find_map(|family| Some((family, run_by(population, family.head())?)))
}

fn run_by<'a>(population: &'a Population, person: &Person) -> Option<&'a Business> {
    let own = |found: &&Business| found.legal_representative_id_no == person.id_no && found.status != "CANCELLED";
    population.businesses.iter().find(own)
}

/// A couple with an allowance, a disabled father, an old home and a small business, and their child at school.
fn needy(population: &Population) -> Option<(&Family, &Person)> {
    let mut poor = population.families.iter().filter(|family| {
        let registers = &family.registers;
        let disability = family.father.as_ref().and_then(|father| father.disability.as_ref());
        disability.is_some_and(|disability| disability.status == "VALID")
            && registers.low_income.is_some()
            && registers.home.is_some()
            && run_by(population, family.head()).is_some()
    });
    let at_school = |person: &&Person| {
        let age = population.today.year() - person.birth_date.year();
        (8..=14).contains(&age)
    };
    poor.find_map(|family| Some((family, family.children.iter().map(|child| &child.person).find(at_school)?)))
}

/// A family whose elder has died, and the elder.
fn late(population: &Population) -> Option<(&Family, &Person)> {
    let with = |family| -> Option<_> {
        let family: &Family = family;
        Some((family, &family.registers.elder.as_ref()?.person))
    };
    population.families.iter().find_map(with)
}

pub(super) fn person(role: &str, person: &Person) -> Subject {
    subject(role, [("id_no", person.id_no.clone()), ("name", person.name.clone())])
}

pub(super) fn born(role: &str, child: &Person) -> Subject {
    let birth_date = ("birth_date", child.birth_date.to_string());
    subject(role, [("id_no", child.id_no.clone()), ("name", child.name.clone()), birth_date])
}

fn owner(role: &str, business: &Business) -> Subject {
    let id_no = business.legal_representative_id_no.clone();
    subject(role, [("id_no", id_no), ("name", business.legal_representative.clone())])
}

fn entity(business: &Business) -> Subject {
    let permit = ("planning_permit_no", record::planning_permit_no(business));
    subject("entity", [("uscc", business.uscc.clone()), ("name", business.entity_name.clone()), permit])
}

fn subject<const N: usize>(role: &str, attributes: [(&str, String); N]) -> Subject {
    Subject { role: role.to_owned(), attributes: attributes.map(|(name, value)| (name.to_owned(), value)).into() }
}
