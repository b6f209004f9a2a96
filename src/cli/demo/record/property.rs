//! What is recorded of land and homes: titles, contracts of sale, planning permits.

use super::super::numbers::DIVISION;
use super::super::population::{Business, Family, Population};
use super::{Cell, Draft, date, keys, named, text};

/// Titles of families' homes and of companies' premises.
pub(super) fn titles(population: &Population) -> Vec<Draft> {
    let homes = population.families.iter().filter_map(home);
    let premises = population.businesses.iter().filter(|business| business.registered_capital.is_some()).map(premises);
    homes.chain(premises).collect()
}

fn home(family: &Family) -> Option<Draft> {
    let (home, holder) = (family.registers.home.as_ref()?, family.head());
    let mut cells = vec![
        text("certificate_no", &home.certificate_no),
        text("unit_no", &home.unit_no),
        text("holder_name", &holder.name),
        text("holder_id_no", &holder.id_no),
        text("co_ownership", if family.father.is_some() { "1" } else { "0" }),
        text("location", &family.address),
        text("right_type", "4"),
        text("right_nature", "102"),
        text("use", "10"),
        text("area_m2", &home.area_m2),
        text("term_until", "2089-12-31"),
        date("registration_date", home.registered),
        ("has_home_in_area", Cell::Flag(true)),
        named("CURRENT"),
    ];
    if home.mortgaged {
        let restriction = vec![("kind", Cell::Named("MORTGAGE")), date("registered_on", home.registered)];
        cells.push(("restrictions", Cell::Rows(vec![restriction])));
    }
    Some(Draft {
        keys: vec![
            keys([("holder_id_no", &holder.id_no), ("holder_name", &holder.name)]),
            keys([("certificate_no", &home.certificate_no), ("holder_name", &holder.name)]),
            keys([("unit_no", &home.unit_no), ("holder_name", &holder.name)]),
        ],
        cells,
    })
}

fn premises(business: &Business) -> Draft {
    let serial = business.uscc.get(10..16).unwrap_or_default();
    let (number, unit) = (format!("乌(2021)子虚县不动产权第{serial}号"), format!("990784009009GB00001F00{serial}"));
    Draft {
        keys: vec![
            keys([("holder_id_no", &business.uscc), ("holder_name", &business.entity_name)]),
            keys([("certificate_no", &number), ("holder_name", &business.entity_name)]),
            keys([("unit_no", &unit), ("holder_name", &business.entity_name)]),
        ],
        cells: vec![
            text("certificate_no", &number),
            text("unit_no", &unit),
            text("holder_name", &business.entity_name),
            text("holder_id_no", &business.uscc),
            text("co_ownership", "0"),
            text("location", &business.domicile),
            text("right_type", "4"),
            text("right_nature", "102"),
            text("use", "30"),
            text("area_m2", "320.00"),
            date("registration_date", business.established_date),
            ("has_home_in_area", Cell::Flag(false)),
            named("CURRENT"),
        ],
    }
}

pub(super) fn contract(family: &Family) -> Option<Draft> {
    let (purchase, buyer) = (family.registers.purchase.as_ref()?, family.head());
    Some(Draft {
        keys: vec![
            keys([("buyer_id_no", &buyer.id_no), ("buyer_name", &buyer.name)]),
            keys([("contract_no", &purchase.contract_no), ("buyer_name", &buyer.name)]),
        ],
        cells: vec![
            text("contract_no", &purchase.contract_no),
            text("buyer_name", &buyer.name),
            text("buyer_id_no", &buyer.id_no),
            text("seller_name", purchase.seller),
            text("location", &purchase.location),
            text("area_m2", &purchase.area_m2),
            text("price", &purchase.price),
            date("filing_date", purchase.filed),
            named("FILED"),
        ],
    })
}

/// Every company may build its premises.
pub(super) fn planning(population: &Population) -> Vec<Draft> {
    let companies = population.businesses.iter().filter(|business| business.registered_capital.is_some());
    companies
        .map(|business| {
            let (number, project) =
                (permit_no(business), format!("2026-{DIVISION}-{}", business.uscc.get(10..).unwrap_or_default()));
            Draft {
                keys: vec![keys([("permit_no", &number)]), keys([("project_code", &project)])],
                cells: vec![
                    text("permit_no", &number),
                    text("project_code", &project),
                    text("builder_name", &business.entity_name),
                    text("project_name", "生产经营用房"),
                    text("location", &business.domicile),
                    text("scale", "建筑面积320平方米"),
                    date("issue_date", business.approved_date),
                    named("VALID"),
                ],
            }
        })
        .collect()
}

/// The number of a company's planning permit.
pub(super) fn permit_no(business: &Business) -> String {
    format!("建字第{DIVISION}{}号", business.uscc.get(10..).unwrap_or_default())
}
