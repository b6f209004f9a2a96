//! What is recorded of businesses: licences and taxes.

use super::super::population::Business;
use super::{Cell, Draft, date, keys, named, text};

pub(super) fn license(business: &Business) -> Draft {
    let mut cells = vec![
        text("uscc", &business.uscc),
        text("entity_name", &business.entity_name),
        text("entity_type", business.entity_type),
        text("legal_representative", &business.legal_representative),
        text("legal_representative_id_no", &business.legal_representative_id_no),
        date("established_date", business.established_date),
        date("term_from", business.established_date),
        text("domicile", &business.domicile),
        text("business_scope", business.business_scope),
        text("registration_authority", "子虚县市场监督管理局"),
        date("approved_date", business.approved_date),
        ("status", Cell::Named(business.status)),
    ];
    let mut sets = vec![
        keys([("uscc", &business.uscc)]),
        keys([("entity_name", &business.entity_name)]),
        keys([
            ("legal_representative_id_no", &business.legal_representative_id_no),
            ("legal_representative", &business.legal_representative),
        ]),
    ];
    if let Some(number) = &business.registration_no {
        cells.push(text("registration_no", number));
        sets.push(keys([("registration_no", number)]));
    }
    cells.extend(business.registered_capital.as_deref().map(|capital| text("registered_capital", capital)));
    cells.extend(business.term_until.map(|until| date("term_until", until)));
    if let Some(before) = &business.predecessor {
        cells.extend([
            text("predecessor_uscc", &before.uscc),
            date("predecessor_established_date", before.established_date),
        ]);
    }
    Draft { keys: sets, cells }
}

/// Who has stopped or converted has settled; of the others, those that were approved this year still owe something.
pub(super) fn clearance(business: &Business) -> Draft {
    let owes = business.status == "SUSPENDED";
    let mut cells = vec![
        text("uscc", &business.uscc),
        text("entity_name", &business.entity_name),
        ("is_cleared", Cell::Flag(!owes)),
        named(if owes { "OUTSTANDING" } else { "CLEARED" }),
    ];
    if !owes {
        cells.push(text("clearance_no", &format!("子税清{}", business.uscc.get(10..).unwrap_or_default())));
        cells.push(date("clearance_date", business.approved_date));
    }
    Draft { keys: vec![keys([("uscc", &business.uscc)])], cells }
}
