use std::collections::{HashMap, HashSet};

use time::Duration;
use time::macros::date;

use super::super::numbers::{DIVISION, id_check, uscc_check};
use super::*;

const TODAY: Date = date!(2026 - 11 - 23);

fn county() -> Population {
    Population::generate(7, TODAY)
}

/// Form, impossible division, check digit, and the facts that the number repeats.
fn check_person(person: &Person) {
    let (body, check) = person.id_no.split_at(17);
    assert!(body.starts_with(DIVISION));
    assert_eq!(check, id_check(body).to_string());
    assert_eq!(body.get(6..14), Some(person.birth_date.to_string().replace('-', "").as_str()));
    let odd = body.chars().last().and_then(|digit| digit.to_digit(10)).unwrap() % 2 == 1;
    assert_eq!(odd, person.sex == Sex::Male);
    assert!(person.birth_date <= person.registered_at && person.registered_at <= TODAY);
    assert!((3..=5).contains(&person.name.chars().count()), "{}", person.name);
}

#[test]
fn it_is_large_and_every_number_is_valid_and_unique() {
    let county = county();
    assert!(county.families.len() >= 1000);
    assert!(county.businesses.len() >= 200);
    let mut numbers = HashSet::new();
    for (_, person) in county.people() {
        check_person(person);
        assert!(numbers.insert(person.id_no.as_str()));
    }
    for family in &county.families {
        assert!(numbers.insert(&family.household_no));
        for child in &family.children {
            assert!(numbers.insert(&child.birth.certificate_no));
        }
    }
    let mut names = HashSet::new();
    for business in &county.businesses {
        assert!(numbers.insert(&business.uscc));
        assert!(names.insert(&business.entity_name));
        assert!(business.registration_no.as_ref().is_none_or(|number| numbers.insert(number)));
        let (body, check) = business.uscc.split_at(17);
        assert_eq!(body.get(2..8), Some(DIVISION));
        assert_eq!(check, uscc_check(body).to_string());
    }
}

#[test]
fn families_are_consistent() {
    let county = county();
    for family in &county.families {
        let oldest = family.children.first().expect("a child").person.birth_date;
        assert!(oldest - family.mother.birth_date >= Duration::days(22 * 365));
        assert!((1..=3).contains(&family.children.len()));
        assert!(family.children.is_sorted_by_key(|child| child.person.birth_date));
        for Child { person, birth } in &family.children {
            assert!(birth.datetime.starts_with(&person.birth_date.to_string()));
            assert!(person.birth_date < birth.issue_date && birth.issue_date <= TODAY);
            assert!(TODAY - person.birth_date < Duration::days(18 * 366));
            let parents: Vec<_> = family.parents().collect();
            assert!(parents.iter().any(|parent| person.name.chars().next() == parent.name.chars().next()));
            assert!(parents.iter().any(|parent| person.ethnicity == parent.ethnicity));
        }
        for (person, _) in family.members() {
            if let Some(card) = &person.card {
                assert!(card.valid_from <= TODAY && person.birth_date < card.valid_from);
                let ended = card.valid_until.is_some_and(|end| end < TODAY);
                assert_eq!(ended, card.status == "EXPIRED");
            }
            if let Some(disability) = &person.disability {
                assert!(person.birth_date < disability.issue_date && disability.issue_date < TODAY);
                assert!(disability.certificate_no.starts_with(&person.id_no));
                assert_eq!(disability.certificate_no.len(), 20);
                assert_eq!(disability.valid_until < TODAY, disability.status == "EXPIRED");
            }
        }
        let adults_have_cards = family.parents().all(|parent| parent.card.is_some());
        assert!(adults_have_cards);
    }
}

#[test]
fn every_kind_of_family_is_there() {
    let county = county();
    let count = |test: &dyn Fn(&Family) -> bool| county.families.iter().filter(|family| test(family)).count();
    assert!(count(&|family| family.father.is_none()) > 100);
    assert!(count(&|family| family.members().any(|(person, _)| person.disability.is_some())) == 120);
    assert!(count(&|family| family.children.iter().any(|child| child.birth.stage == Stage::Newborn)) == 48);
    let twins =
        count(&|family| family.children.windows(2).any(|pair| pair[0].person.birth_date == pair[1].person.birth_date));
    assert!(twins > 20, "{twins}");
    for size in 1..=3 {
        assert!(count(&|family| family.children.len() == size) > 20, "{size}");
    }
}

#[test]
fn the_demo_finds_its_people_whatever_the_seed() {
    for seed in 0..5 {
        let county = Population::generate(seed, TODAY);
        let newborn = county.newborn_family().expect("a newborn");
        let child = &newborn.children[0].person;
        assert!(TODAY - child.birth_date < Duration::days(10));
        assert_eq!(child.registered_at, TODAY);
        assert_eq!(county.newborn_twins().expect("twins").children.len(), 2);

        let (family, child) = county.school_family().expect("a child of six");
        let age = TODAY - child.person.birth_date;
        assert!(age > Duration::days(6 * 365) && age < Duration::days(7 * 365));
        assert!(family.father.is_some());

        let (_, person) = county.disabled_person().expect("a disabled adult");
        assert!(TODAY - person.birth_date > Duration::days(18 * 365));
        assert!(person.disability.as_ref().is_some_and(|disability| disability.guardian.is_none()));

        let company = county.converted_business().expect("a conversion");
        assert_eq!(company.status, "OPERATING");
        assert!(TODAY - company.established_date < Duration::days(180), "{}", company.established_date);
        let before = company.predecessor.as_ref().expect("a predecessor");
        let old = county.businesses.iter().find(|business| business.uscc == before.uscc).expect("its record");
        assert_eq!((old.established_date, old.status), (before.established_date, "CANCELLED"));
    }
}

#[test]
fn registers_fit_the_families() {
    let county = county();
    for family in &county.families {
        let registers = &family.registers;
        assert_eq!(registers.marriage.is_some(), family.father.is_some());
        let eldest = family.children[0].person.birth_date;
        assert!(registers.marriage.as_ref().is_none_or(|marriage| marriage.date < eldest));
        if let Some(elder) = &registers.elder {
            check_person(&elder.person);
            assert!(family.head().birth_date - elder.person.birth_date >= Duration::days(22 * 365));
            assert!(elder.died <= elder.cremated && elder.cremated <= TODAY);
        }
        if let Some(veteran) = &registers.veteran {
            let father = family.father.as_ref().expect("a father");
            assert!(veteran.enlisted < veteran.discharged && veteran.discharged <= TODAY);
            assert!(veteran.enlisted - father.birth_date >= Duration::days(18 * 365));
        }
        if let Some(permit) = &registers.permit {
            assert_eq!(permit.numbers.len(), family.parents().count());
            assert!(permit.first_issued < TODAY && TODAY < permit.valid_until);
        }
        assert!(registers.home.as_ref().is_none_or(|home| home.unit_no.chars().count() == 28));
    }
    let held = |test: fn(&Registers) -> bool| county.families.iter().filter(|family| test(&family.registers)).count();
    assert!(held(|registers| registers.home.is_some()) > 1000);
    assert!(held(|registers| registers.purchase.is_some()) > 200);
    assert!(held(|registers| registers.permit.is_some()) > 100);
    assert!(held(|registers| registers.low_income.is_some()) > 100);
    assert!(held(|registers| registers.elder.is_some()) > 50);
    assert!(held(|registers| registers.veteran.is_some()) > 50);
}

#[test]
fn owners_of_businesses_are_people_of_the_county_and_of_age() {
    let county = county();
    let people: HashMap<_, _> = county.people().map(|(_, person)| (person.id_no.as_str(), person)).collect();
    for business in &county.businesses {
        let owner = people[business.legal_representative_id_no.as_str()];
        assert_eq!(owner.name, business.legal_representative);
        assert!(business.established_date - owner.birth_date >= Duration::days(18 * 365));
        assert!(business.established_date <= business.approved_date && business.approved_date <= TODAY);
    }
}

#[test]
fn the_same_seed_gives_the_same_county() {
    let county = county();
    assert_eq!(county.families, self::county().families);
    assert_eq!(county.businesses, self::county().businesses);
    assert_ne!(county.families, Population::generate(8, TODAY).families);
}

#[test]
fn secrets_name_everybody_and_no_word_that_a_log_may_use() {
    let county = county();
    let secrets: HashSet<_> = county.secrets().collect();
    for (family, person) in county.people() {
        assert!(secrets.contains(person.name.as_str()) && secrets.contains(person.id_no.as_str()));
        assert!(secrets.contains(family.household_no.as_str()));
    }
    assert!(county.businesses.iter().all(|business| secrets.contains(business.uscc.as_str())));
    assert!(secrets.iter().all(|secret| secret.chars().count() >= 3));
}
