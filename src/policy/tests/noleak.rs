//! No leak: from random grants to the bytes of the answer. Whatever a provider sends, nothing leaves that a slow reading of
//! the grants does not give, and everything that it does give.

use proptest::prelude::*;
use prost::Message as _;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::Mask;
use super::super::grant::{Deny, Grant};
use super::project::{Writer, contains, put, random_fields};
use super::*;
use crate::pb::gateway as pb;

const TODAY: Date = date!(2026 - 06 - 01);
const ROLES: [&str; 3] = ["child", "mother", "guardian"];
const CONSUMERS: [&str; 2] = ["GA", "JK"];
const MATTERS: [&str; 2] = ["newborn", "school"];
const CITATIONS: [&str; 2] = ["甲法 第一条", "乙法 第二条"];

/// How many cases a property is tried with: `ONCEGATE_CASES`, or else `few`.
pub(super) fn cases(few: u32) -> ProptestConfig {
    let set = std::env::var("ONCEGATE_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(set.unwrap_or(few)) }
}

fn pick<T: Copy>(rng: &mut StdRng, from: &[T]) -> T {
    from[rng.random_range(0..from.len())]
}

fn some_leaves(rng: &mut StdRng, of: usize, share: f64) -> Fields {
    (0..of).filter(|_| rng.random_bool(share)).collect()
}

fn random_grant(rng: &mut StdRng, ty: &CertificateType, number: usize) -> Grant {
    let fields = some_leaves(rng, ty.leaves.len(), 0.5) - ty.never;
    let mut masks: Vec<(Mask, Fields)> = Vec::new();
    for leaf in fields.iter().filter(|_| rng.random_bool(0.4)).collect::<Vec<_>>() {
        let strings = [Mask::Phone, Mask::IdNumber, Mask::CertNo, Mask::NameZh, Mask::Present];
        let mask = if ty.leaves[leaf].wire == Wire::String { pick(rng, &strings) } else { Mask::Present };
        match masks.iter_mut().find(|(known, _)| *known == mask) {
            Some((_, fields)) => *fields |= Fields::one(leaf),
            None => masks.push((mask, Fields::one(leaf))),
        }
    }
    masks.sort_by_key(|(mask, _)| *mask);
    let days = |rng: &mut StdRng, most: i64| time::Duration::days(rng.random_range(-most..=most));
    Grant {
        id: format!("g{number}").into(),
        consumer: department(pick(rng, &CONSUMERS)),
        provider: ty.provider.clone(),
        matter: pick(rng, &MATTERS).to_owned(),
        certificate_type: ty.code.clone(),
        roles: ROLES.iter().filter(|_| rng.random_bool(0.6)).map(|role| (*role).to_owned()).collect(),
        mode: pick(rng, &[Mode::Verify, Mode::Query, Mode::Query, Mode::File]),
        fields,
        masks,
        when: FactSet::EMPTY,
        valid_from: TODAY - time::Duration::days(3) + days(rng, 4),
        valid_until: TODAY + time::Duration::days(3) + days(rng, 4),
        replaces: String::new(),
        exemption: "3".into(),
        legal_basis: vec![pick(rng, &CITATIONS).to_owned()],
        scene: String::new(),
        provider_consent: String::new(),
    }
}

/// The grants read one by one and field by field: the form in which a leaf may leave.
fn reading(grants: &[Arc<Grant>], denies: &[Deny], ty: &CertificateType, ask: &Ask<'_>, leaf: usize) -> Option<Form> {
    let denied = denies.iter().any(|deny| {
        let consumers = deny.consumers.as_ref();
        deny.matter == ask.matter
            && deny.certificate_type == ty.code
            && consumers.is_none_or(|consumers| consumers.contains(ask.consumer))
            && deny.fields.contains(leaf)
    });
    if denied || ty.never.contains(leaf) || !ask.want.contains(leaf) {
        return None;
    }
    let mut best = None;
    for grant in grants {
        let cited = match ask.basis {
            Basis::Consent => !ask.reference.is_empty(),
            Basis::StatutoryDuty => grant.legal_basis.iter().any(|citation| citation == ask.reference),
        };
        let holds = grant.consumer == *ask.consumer
            && grant.matter == ask.matter
            && grant.certificate_type == ty.code
            && grant.roles.iter().any(|role| role == ask.role)
            && grant.mode != Mode::Verify
            && grant.valid_from <= ask.today
            && ask.today <= grant.valid_until
            && grant.fields.contains(leaf)
            && (cited || !(ask.minor || ty.sensitive.contains(leaf)));
        if holds {
            let mask = grant.masks.iter().find(|(_, fields)| fields.contains(leaf)).map(|(mask, _)| *mask);
            let form = mask.map_or(Form::Clear, Form::Masked);
            best = Some(best.map_or(form, |best: Form| best.min(form)));
        }
    }
    best
}

/// Least disguised first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Form {
    Clear,
    Masked(Mask),
}

proptest! {
    #![proptest_config(cases(1_500))]

    #[test]
    fn nothing_leaves_but_what_the_grants_give(seed in any::<u64>(), at in any::<prop::sample::Index>()) {
        let mut rng = StdRng::seed_from_u64(seed);
        let fields = random_fields(&mut rng, 0);
        let mut ty = certificate_type("t", "WJ", &fields);
        ty.never = some_leaves(&mut rng, ty.leaves.len(), 0.15);
        ty.sensitive = some_leaves(&mut rng, ty.leaves.len(), 0.3);
        let ty = Arc::new(ty);
        let grants: Vec<_> = (0..rng.random_range(0..8)).map(|n| Arc::new(random_grant(&mut rng, &ty, n))).collect();
        let denies: Vec<_> = (0..rng.random_range(0..2))
            .map(|_| Deny {
                consumers: rng.random_bool(0.5).then(|| vec![department(pick(&mut rng, &CONSUMERS))]),
                matter: pick(&mut rng, &MATTERS).to_owned(),
                certificate_type: "t".into(),
                fields: some_leaves(&mut rng, ty.leaves.len(), 0.3),
                when: FactSet::EMPTY,
            })
            .collect();
        let table = Table::new(&grants, &denies, Arc::default(), |_| Some(Arc::clone(&ty)));
        let consumer = department(pick(&mut rng, &CONSUMERS));
        let ask = Ask {
            consumer: &consumer,
            matter: pick(&mut rng, &MATTERS),
            certificate_type: &ty,
            role: pick(&mut rng, &ROLES),
            want: some_leaves(&mut rng, ty.leaves.len(), 0.8),
            matches: Fields::EMPTY,
            basis: pick(&mut rng, &[Basis::StatutoryDuty, Basis::Consent]),
            reference: pick(&mut rng, &["", CITATIONS[0], CITATIONS[1]]),
            minor: rng.random_bool(0.3),
            mode: Mode::Query,
            today: TODAY,
            given: &Given::default(),
        };
        let permit = table.decide(&ask, Truths::NONE, PolicyHash([7; 32]));
        let forms: Vec<_> = (0..ty.leaves.len()).map(|leaf| reading(&grants, &denies, &ty, &ask, leaf)).collect();

        // Several records, with unknown fields, doubled ones, wrong encodings, and a message of another type inside.
        let mut writer = Writer { rng, markers: Vec::new() };
        let mut leaving = Vec::new();
        for _ in 0..3 {
            let (_, mut noisy) = writer.message(&fields, 0);
            let (_, foreign) = writer.message(&fields, ty.leaves.len());
            put(&mut noisy, 9_999, &foreign);
            leaving.push(project(&permit, &noisy).unwrap());
            // Damaged, it may say anything, but it must be read or refused.
            if !noisy.is_empty() {
                noisy.remove(at.index(noisy.len()));
                let _ = project(&permit, &noisy);
            }
        }
        let answer = pb::LookupResponse {
            records: leaving.iter().map(|projected| pb::Record {
                record: Some(prost_types::Any { type_url: ty.type_url.clone(), value: projected.bytes.to_vec() }),
                masked: projected.masked.iter().map(|(leaf, mask)| pb::MaskedField {
                    path: ty.path(*leaf).to_owned(),
                    mask: mask.name().to_owned(),
                }).collect(),
                ..pb::Record::default()
            }).collect(),
            ..pb::LookupResponse::default()
        };
        let bytes = answer.encode_to_vec();
        for (leaf, marker) in &writer.markers {
            let given = forms.get(*leaf).copied().flatten() == Some(Form::Clear);
            prop_assert_eq!(contains(&bytes, marker), given, "{:?} {:?}", ty.leaves.get(*leaf), forms.get(*leaf));
        }
        for projected in &leaving {
            for leaf in projected.released.iter() {
                prop_assert_eq!(forms[leaf], Some(Form::Clear));
            }
            for (leaf, mask) in &projected.masked {
                // A value that its mask can't cut is omitted.
                let due = forms[*leaf];
                prop_assert!(due == Some(Form::Masked(*mask)) || (*mask == Mask::Present && matches!(due, Some(Form::Masked(_)))));
            }
        }
    }
}
