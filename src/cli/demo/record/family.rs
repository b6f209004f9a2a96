//! What is recorded of families: births, households, marriages, deaths.

use super::super::numbers::DIVISION;
use super::super::population::{Child, Family, Person};
use super::{Cell, Draft, date, id_and_name, keys, named, photo, sex, text};

/// Mother of the head, GB/T 4761.
const MOTHER: &str = "52";

/// The code for an identity number in GB/T 36903.
const IDENTITY_NUMBER: &str = "111";

pub(super) fn births(family: &Family) -> Vec<Draft> {
    family.children.iter().map(|child| birth(family, child)).collect()
}

fn birth(family: &Family, child: &Child) -> Draft {
    let Child { person, birth } = child;
    let mother = &family.mother;
    let mut cells = vec![
        text("certificate_no", &birth.certificate_no),
        text("infant_name", &person.name),
        sex(person),
        text("birth_datetime", &birth.datetime),
        ("gestational_weeks", Cell::Count(birth.gestational_weeks)),
        ("birth_weight_g", Cell::Count(birth.weight_g)),
        ("birth_length_cm", Cell::Count(birth.length_cm)),
        text("birth_place", DIVISION),
        text("birth_institution", birth.institution),
        text("mother_name", &mother.name),
        text("mother_id_type", IDENTITY_NUMBER),
        text("mother_id_no", &mother.id_no),
        text("mother_ethnicity", mother.ethnicity),
        text("issuing_institution", birth.institution),
        date("issue_date", birth.issue_date),
        ("status", Cell::Named("VALID")),
    ];
    if let Some(father) = &family.father {
        cells.extend([
            text("father_name", &father.name),
            text("father_id_type", IDENTITY_NUMBER),
            text("father_id_no", &father.id_no),
            text("father_ethnicity", father.ethnicity),
        ]);
    }
    Draft {
        keys: vec![
            vec![("mother_id_no", mother.id_no.clone()), ("birth_date", person.birth_date.to_string())],
            vec![("certificate_no", birth.certificate_no.clone()), ("infant_name", person.name.clone())],
        ],
        cells,
    }
}

/// The pages of a household, one a member, and that of the one who died. The household's own number finds the head's page.
pub(super) fn household(family: &Family) -> Vec<Draft> {
    let members: Vec<Vec<(&'static str, Cell)>> = (family.members())
        .map(|(person, relation)| {
            vec![text("name", &person.name), text("id_no", &person.id_no), text("relation_to_head", relation)]
        })
        .collect();
    let head = family.head();
    let page = |(person, relation, status): (&Person, &'static str, &'static str)| {
        let mut cells = vec![
            text("household_no", &family.household_no),
            ("household_type", Cell::Named("FAMILY")),
            text("head_name", &head.name),
            text("address", &family.address),
            text("division_code", DIVISION),
            text("registration_authority", &family.police_station),
            text("name", &person.name),
            text("id_no", &person.id_no),
            text("relation_to_head", relation),
            sex(person),
            text("ethnicity", person.ethnicity),
            date("birth_date", person.birth_date),
            text("birth_place", "乌有省子虚县"),
            text("native_place", "乌有省子虚县"),
            text("marital_status", person.marital_status),
            text("education", person.education),
            text("military_service", "0"),
            text("religion", "0"),
            ("height_cm", Cell::Count(person.height_cm)),
            text("blood_type", person.blood_type),
            date("registered_at", person.registered_at),
            ("member_count", Cell::Count(u32::try_from(members.len()).unwrap_or(u32::MAX))),
            ("members", Cell::Rows(members.clone())),
            named(status),
        ];
        cells.extend(person.former_name.as_deref().map(|name| text("former_name", name)));
        cells.extend(person.employer.map(|name| text("employer", name)));
        let mut keys = vec![id_and_name(person)];
        if person.id_no == head.id_no {
            keys.push(vec![("household_no", family.household_no.clone()), ("head_name", head.name.clone())]);
        }
        Draft { keys, cells }
    };
    let late = family.registers.elder.iter().map(|elder| (&elder.person, MOTHER, "CANCELLED_DEATH"));
    family.members().map(|(person, relation)| (person, relation, "NORMAL")).chain(late).map(page).collect()
}

pub(super) fn marriage(family: &Family) -> Option<Draft> {
    let (man, woman, marriage) = (family.father.as_ref()?, &family.mother, family.registers.marriage.as_ref()?);
    let number = &marriage.certificate_no;
    let of = |person: &Person| keys([("name", &person.name), ("id_no", &person.id_no)]);
    Some(Draft {
        keys: vec![
            of(man),
            of(woman),
            keys([
                ("name_man", &man.name),
                ("cert_num_man", &man.id_no),
                ("name_woman", &woman.name),
                ("cert_num_woman", &woman.id_no),
            ]),
            keys([("certificate_no", number), ("name", &man.name)]),
            keys([("certificate_no", number), ("name", &woman.name)]),
        ],
        cells: vec![
            text("certificate_no", number),
            ("registration_type", Cell::Named("MARRIAGE")),
            date("registration_date", marriage.date),
            text("registration_authority", "子虚县民政局"),
            text("man_name", &man.name),
            text("man_id_no", &man.id_no),
            text("woman_name", &woman.name),
            text("woman_id_no", &woman.id_no),
            ("photo", photo()),
            named("MARRIED"),
        ],
    })
}

pub(super) fn death(family: &Family) -> Option<Draft> {
    let elder = family.registers.elder.as_ref()?;
    Some(Draft {
        keys: vec![id_and_name(&elder.person)],
        cells: vec![
            text("name", &elder.person.name),
            text("id_no", &elder.person.id_no),
            date("death_date", elder.died),
            text("certificate_no", &elder.certificate_no),
            text("issuing_institution", "子虚县人民医院"),
            text("cause_of_death", "已登记"),
            date("cremation_date", elder.cremated),
            ("is_deceased", Cell::Flag(true)),
            named("RECORDED"),
        ],
    })
}
