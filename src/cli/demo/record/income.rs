//! What is recorded of incomes: allowances and insurance.

use time::Date;

use super::super::numbers::{DIVISION, uscc};
use super::super::population::{Business, Family, Person, Population};
use super::super::registers::months_between;
use super::{Cell, Draft, date, id_and_name, keys, named, text};

pub(super) fn allowance(family: &Family) -> Vec<Draft> {
    let Some(low) = &family.registers.low_income else { return Vec::new() };
    let covered = u32::try_from(family.members().count()).unwrap_or(u32::MAX);
    let of = |(person, _): (&Person, _)| Draft {
        keys: vec![id_and_name(person)],
        cells: vec![
            ("assistance_type", Cell::Named("SUBSISTENCE_ALLOWANCE")),
            text("name", &person.name),
            text("id_no", &person.id_no),
            text("family_no", &low.family_no),
            ("covered_member_count", Cell::Count(covered)),
            text("monthly_amount", &low.monthly_amount),
            date("start_date", low.since),
            date("end_date", low.since.replace_year(low.since.year() + 3).unwrap_or(low.since)),
            text("approving_authority", "子虚县民政局"),
            ("is_active", Cell::Flag(true)),
            named("ACTIVE"),
        ],
    };
    family.members().map(of).collect()
}

/// Pension insurance for every adult who works, and unemployment insurance for those whom somebody employs; who runs a
/// company is insured by it.
pub(super) fn social_insurance(population: &Population) -> Vec<Draft> {
    let today = population.today;
    let adults = population.families.iter().flat_map(Family::parents);
    let employed = adults.flat_map(|person| {
        let own = matches!(person.employer, Some("自营" | "务农") | None);
        let code = person.employer.filter(|_| !own).map(employer_uscc);
        let kinds: &[&str] = if own { &["110"] } else { &["110", "210"] };
        let made = |kind: &&str| insured(person, kind, person.employer.unwrap_or("自营"), code.as_deref(), today);
        kinds.iter().map(made).collect::<Vec<_>>()
    });
    let people: std::collections::HashMap<_, _> =
        population.people().map(|(_, person)| (person.id_no.as_str(), person)).collect();
    let owners = population.businesses.iter().filter(|business| business.registered_capital.is_some());
    let owners = owners.filter_map(|business: &Business| {
        let person = people.get(business.legal_representative_id_no.as_str())?;
        Some(insured(person, "410", &business.entity_name, Some(&business.uscc), today))
    });
    employed.chain(owners).collect()
}

/// A credit code for an invented employer.
fn employer_uscc(name: &str) -> String {
    let sum: u32 = name.bytes().map(u32::from).sum();
    uscc('1', &format!("MB{:06}", sum % 1_000_000))
}

fn insured(person: &Person, kind: &str, employer: &str, code: Option<&str>, today: Date) -> Draft {
    let first = person.birth_date.replace_year(person.birth_date.year() + 22).unwrap_or(today).min(today);
    let months = months_between(first, today);
    let mut cells = vec![
        text("name", &person.name),
        text("id_no", &person.id_no),
        text("insurance_type", kind),
        text("insured_division", DIVISION),
        text("employer_name", employer),
        text("first_paid_month", &month(first)),
        text("last_paid_month", &month(today)),
        ("paid_months", Cell::Count(months)),
        ("continuous_months", Cell::Count(months.min(60))),
        text("contribution_base", "4800.00"),
        text("retirement_status", "0"),
        named("INSURED"),
    ];
    let mut sets = vec![id_and_name(person)];
    if let Some(code) = code {
        cells.push(text("employer_uscc", code));
        sets.push(keys([("employer_uscc", code)]));
    }
    Draft { keys: sets, cells }
}

pub(super) fn medical_insurance(family: &Family, person: &Person, today: Date) -> Draft {
    let employee = family.parents().any(|parent| parent.id_no == person.id_no)
        && !matches!(person.employer, Some("自营" | "务农") | None);
    let claim = vec![date("visited_on", today), text("institution", "子虚县人民医院"), text("amount", "38.50")];
    Draft {
        keys: vec![id_and_name(person)],
        cells: vec![
            text("name", &person.name),
            text("id_no", &person.id_no),
            ("scheme", Cell::Named(if employee { "EMPLOYEE" } else { "RESIDENT" })),
            text("insured_division", DIVISION),
            text("paid_through", &month(today)),
            ("claims", Cell::Rows(vec![claim])),
            named("INSURED"),
        ],
    }
}

/// `YYYY-MM`.
fn month(day: Date) -> String {
    format!("{:04}-{:02}", day.year(), u8::from(day.month()))
}
