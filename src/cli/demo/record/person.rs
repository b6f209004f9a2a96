//! What is recorded of persons: cards, permits, disability, service, vaccination, school.

use time::{Date, Duration};

use super::super::numbers::DIVISION;
use super::super::population::{Child, Family, Person};
use super::super::registers::{Veteran, months_between};
use super::{Cell, Draft, date, id_and_name, keys, named, photo, sex, text};

pub(super) fn identities(family: &Family) -> Vec<Draft> {
    let late = family.registers.elder.iter().map(|elder| &elder.person);
    family.members().map(|(person, _)| person).chain(late).filter_map(|person| identity(family, person)).collect()
}

fn identity(family: &Family, person: &Person) -> Option<Draft> {
    let card = person.card.as_ref()?;
    let mut cells = vec![
        text("name", &person.name),
        text("id_no", &person.id_no),
        sex(person),
        text("ethnicity", person.ethnicity),
        date("birth_date", person.birth_date),
        text("address", &family.address),
        text("issuing_authority", "子虚县公安局"),
        date("valid_from", card.valid_from),
        ("photo", photo()),
        ("fingerprint", Cell::Bytes(vec![0x5a; 512])),
        ("status", Cell::Named(card.status)),
    ];
    cells.extend(card.valid_until.map(|until| date("valid_until", until)));
    Some(Draft { keys: vec![id_and_name(person)], cells })
}

pub(super) fn permits(family: &Family) -> Vec<Draft> {
    let Some(permit) = &family.registers.permit else { return Vec::new() };
    let of = |(person, number): (&Person, &String)| Draft {
        keys: vec![id_and_name(person)],
        cells: vec![
            text("permit_no", number),
            text("name", &person.name),
            text("id_no", &person.id_no),
            text("residence_address", &permit.address),
            text("residence_division", DIVISION),
            date("first_issue_date", permit.first_issued),
            date("valid_until", permit.valid_until),
            named("VALID"),
        ],
    };
    family.parents().zip(&permit.numbers).map(of).collect()
}

pub(super) fn disability(family: &Family, person: &Person) -> Vec<Draft> {
    let Some(certificate) = &person.disability else { return Vec::new() };
    let mut cells = vec![
        text("certificate_no", &certificate.certificate_no),
        text("name", &person.name),
        text("id_no", &person.id_no),
        sex(person),
        text("address", &family.address),
        ("disability_category", Cell::Numbered(certificate.category)),
        ("disability_grade", Cell::Numbered(certificate.grade)),
        date("issue_date", certificate.issue_date),
        date("valid_until", certificate.valid_until),
        text("issuing_authority", "子虚县残疾人联合会"),
        ("photo", photo()),
        ("status", Cell::Named(certificate.status)),
    ];
    if let Some(guardian) = &certificate.guardian {
        cells.extend([text("guardian_name", &guardian.name), text("guardian_phone", &guardian.phone)]);
    }
    let by_number = vec![("certificate_no", certificate.certificate_no.clone()), ("name", person.name.clone())];
    vec![Draft { keys: vec![id_and_name(person), by_number], cells }]
}

fn veteran(family: &Family) -> Option<(&Person, &Veteran)> {
    Some((family.father.as_ref()?, family.registers.veteran.as_ref()?))
}

pub(super) fn veteran_card(family: &Family) -> Option<Draft> {
    let (person, veteran) = veteran(family)?;
    Some(Draft {
        keys: vec![id_and_name(person), keys([("card_no", &veteran.card_no), ("name", &person.name)])],
        cells: vec![
            text("card_no", &veteran.card_no),
            ("card_type", Cell::Named("VETERAN")),
            text("name", &person.name),
            text("id_no", &person.id_no),
            text("issuing_authority", "子虚县退役军人事务局"),
            date("issue_date", veteran.discharged),
            date("valid_until", veteran.discharged.saturating_add(Duration::days(3650))),
            text("bank_account_no", &format!("9907840000{}", &veteran.card_no.get(3..).unwrap_or_default())),
            named("VALID"),
        ],
    })
}

pub(super) fn veteran_registration(family: &Family) -> Option<Draft> {
    let (person, veteran) = veteran(family)?;
    Some(Draft {
        keys: vec![id_and_name(person)],
        cells: vec![
            text("name", &person.name),
            text("id_no", &person.id_no),
            ("discharge_mode", Cell::Named("SELF_EMPLOYMENT")),
            date("enlistment_date", veteran.enlisted),
            date("discharge_date", veteran.discharged),
            ("service_months", Cell::Count(months_between(veteran.enlisted, veteran.discharged))),
            text("placement_division", DIVISION),
            text("household_letter_no", &veteran.household_letter_no),
            text("unit_designation", "无此部队"),
            named("REPORTED"),
        ],
    })
}

/// Vaccines of the plan for children, and the month of age from which each is due.
const VACCINES: [(&str, u16); 8] = [
    ("乙肝疫苗", 0),
    ("卡介苗", 0),
    ("脊灰疫苗", 2),
    ("百白破疫苗", 3),
    ("麻腮风疫苗", 8),
    ("乙脑减毒活疫苗", 8),
    ("A群流脑多糖疫苗", 6),
    ("甲肝减毒活疫苗", 18),
];

pub(super) fn vaccinations(family: &Family, today: Date) -> Vec<Draft> {
    family.children.iter().map(|child| vaccination(family, child, today)).collect()
}

/// Every vaccine that is due but the last, in families that the calendar slipped by: a third of them.
fn vaccination(family: &Family, child: &Child, today: Date) -> Draft {
    let (person, number) = (&child.person, &child.birth.certificate_no);
    let slipped = person.id_no.bytes().map(u32::from).sum::<u32>().is_multiple_of(3);
    let due = VACCINES.iter().filter_map(|(vaccine, month)| {
        let day = person.birth_date.saturating_add(Duration::days(i64::from(*month) * 30 + 1));
        (day <= today).then_some((*vaccine, day))
    });
    let (mut due, mut missing): (Vec<_>, Vec<_>) = (due.collect(), Vec::new());
    if slipped && let Some((vaccine, _)) = due.pop() {
        missing.push(vec![text("name", vaccine)]);
    }
    let dose = |(vaccine, day): &(&str, Date)| {
        vec![
            text("vaccine", vaccine),
            ("dose_number", Cell::Count(1)),
            date("date", *day),
            text("batch", "WY2020"),
            text("unit", "子虚县预防接种门诊"),
        ]
    };
    let guardian = family.head();
    let mut cells = vec![
        text("child_code", &format!("990784{}", number.get(1..).unwrap_or_default())),
        text("child_name", &person.name),
        text("child_id_no", &person.id_no),
        date("birth_date", person.birth_date),
        text("guardian_name", &guardian.name),
        ("nip_complete", Cell::Flag(missing.is_empty())),
        ("doses", Cell::Rows(due.iter().map(dose).collect())),
        text("vaccination_unit", "子虚县预防接种门诊"),
        named("ACTIVE"),
    ];
    if !missing.is_empty() {
        cells.push(("missing_vaccines", Cell::Rows(missing)));
    }
    Draft {
        keys: vec![
            keys([("child_id_no", &person.id_no), ("child_name", &person.name)]),
            keys([("birth_certificate_no", number), ("child_name", &person.name)]),
            keys([
                ("child_name", &person.name),
                ("birth_date", &person.birth_date.to_string()),
                ("guardian_id_no", &guardian.id_no),
            ]),
        ],
        cells,
    }
}

pub(super) fn schooling(family: &Family, today: Date) -> Vec<Draft> {
    family.children.iter().filter_map(|child| school(&child.person, today)).collect()
}

/// A pupil of three to eighteen years.
fn school(person: &Person, today: Date) -> Option<Draft> {
    let age = (today - person.birth_date).whole_days() / 365;
    let (stage, school, first_year, grades): (_, _, _, &[&str]) = match age {
        3..=6 => ("PRESCHOOL", "子虚县中心幼儿园", 3, &["小班", "中班", "大班", "大班"]),
        7..=12 => ("PRIMARY", "子虚县第一小学", 7, &["一年级", "二年级", "三年级", "四年级", "五年级", "六年级"]),
        13..=15 => ("JUNIOR_SECONDARY", "子虚县第一中学", 13, &["初一", "初二", "初三"]),
        16..=18 => ("SENIOR_SECONDARY", "子虚县第一中学", 16, &["高一", "高二", "高三"]),
        _ => return None,
    };
    let grade = grades.get(usize::try_from(age - first_year).unwrap_or(0)).copied().unwrap_or_default();
    let years = i32::try_from(age - first_year).unwrap_or(0);
    let number = format!("G{}", person.id_no);
    Some(Draft {
        keys: vec![id_and_name(person), keys([("student_no", &number), ("name", &person.name)])],
        cells: vec![
            text("student_no", &number),
            text("name", &person.name),
            text("id_no", &person.id_no),
            text("school_name", school),
            ("stage", Cell::Named(stage)),
            text("grade", grade),
            text("enrolment_date", &format!("{}-09", today.year() - years - i32::from(u8::from(today.month()) < 9))),
            ("is_enrolled", Cell::Flag(true)),
            named("ENROLLED"),
        ],
    })
}
