//! No leak: from random grants to the bytes of the answer. Whatever a provider sends, nothing leaves that a slow reading of
//! the grants does not give, and everything that it does give; with conditions of both stages, masks, denies, and several
//! records that are decided one by one.

use proptest::prelude::*;
use prost::Message as _;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::facts::Fact;
use super::super::grant::{Deny, Grant};
use super::super::holidays::Holidays;
use super::super::pseudonym::test_key;
use super::super::{Case, FactSource, Mask, Party, Vocabulary, WithheldReason, settle};
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

pub(super) fn pick<T: Copy>(rng: &mut StdRng, from: &[T]) -> T {
    from[rng.random_range(0..from.len())]
}

/// Three facts that are known before the record, and a flag or a match for each leaf that suits, as many as fit.
pub(super) fn random_vocabulary(rng: &mut StdRng, ty: &CertificateType) -> Arc<Vocabulary> {
    let fact = |name: String, source: FactSource| Fact {
        reason: WithheldReason::CaseNotOpen,
        code: name.to_uppercase().into(),
        name: name.into(),
        source,
    };
    let mut facts = vec![
        fact("case_open".into(), FactSource::CaseOpen),
        fact("consent_given".into(), FactSource::ConsentGiven),
        fact("basis".into(), FactSource::TokenBasis(Basis::Consent)),
    ];
    for (index, leaf) in ty.leaves.iter().enumerate() {
        let leaves = BTreeMap::from([(ty.code.clone(), Fields::one(index))]);
        match leaf.wire {
            Wire::String if rng.random_bool(0.5) => {
                facts.push(fact(format!("m{index}"), FactSource::RecordMatches { role: "applicant".into(), leaves }));
            }
            Wire::Varint if !ty.is_listed(index) => {
                facts.push(fact(format!("f{index}"), FactSource::RecordFlag { leaves }));
            }
            _ => {}
        }
    }
    facts.truncate(6);
    Arc::new(Vocabulary::new(facts, BTreeMap::new(), Holidays::default()))
}

/// Some of the facts.
pub(super) fn some_facts(rng: &mut StdRng, vocabulary: &Vocabulary, share: f64) -> FactSet {
    (0..vocabulary.facts().len()).filter(|_| rng.random_bool(share)).collect()
}

/// Something known of some of the facts.
pub(super) fn random_truths(rng: &mut StdRng, facts: FactSet) -> Truths {
    let mut truths = Truths::NONE;
    facts.iter().for_each(|fact| truths.set(fact, pick(rng, &[None, Some(true), Some(true), Some(false)])));
    truths
}

pub(super) fn some_leaves(rng: &mut StdRng, of: usize, share: f64) -> Fields {
    (0..of).filter(|_| rng.random_bool(share)).collect()
}

pub(super) fn random_grant(rng: &mut StdRng, ty: &CertificateType, number: usize) -> Grant {
    let fields = some_leaves(rng, ty.leaves.len(), 0.5) - ty.never;
    let mut masks: Vec<(Mask, Fields)> = Vec::new();
    for leaf in fields.iter().filter(|_| rng.random_bool(0.4)).collect::<Vec<_>>() {
        let strings = [Mask::Phone, Mask::IdNumber, Mask::CertNo, Mask::NameZh, Mask::Pseudonym, Mask::Present];
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

pub(super) fn random_deny(rng: &mut StdRng, ty: &CertificateType, when: FactSet) -> Deny {
    Deny {
        consumers: rng.random_bool(0.5).then(|| vec![department(pick(rng, &CONSUMERS))]),
        matter: pick(rng, &MATTERS).to_owned(),
        certificate_type: ty.code.clone(),
        fields: some_leaves(rng, ty.leaves.len(), 0.3),
        when,
    }
}

/// The grants read one by one and field by field: the form in which a leaf may leave of a record of which this is known.
fn reading(
    grants: &[Arc<Grant>],
    denies: &[Deny],
    ty: &CertificateType,
    ask: &Ask<'_>,
    truths: Truths,
    leaf: usize,
) -> Option<Form> {
    let denied = denies.iter().any(|deny| {
        let consumers = deny.consumers.as_ref();
        deny.matter == ask.matter
            && deny.certificate_type == ty.code
            && consumers.is_none_or(|consumers| consumers.contains(ask.consumer))
            && deny.fields.contains(leaf)
            && deny.when.iter().all(|fact| truths.of(fact) != Some(false))
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
            && grant.when.iter().all(|fact| truths.of(fact) == Some(true))
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
        let vocabulary = random_vocabulary(&mut rng, &ty);
        let request = (0..vocabulary.facts().len()).collect::<FactSet>() - vocabulary.record_facts();
        let grants: Vec<_> = (0..rng.random_range(0..8))
            .map(|n| {
                let when = some_facts(&mut rng, &vocabulary, 0.15);
                Arc::new(Grant { when, ..random_grant(&mut rng, &ty, n) })
            })
            .collect();
        let denies: Vec<_> = (0..rng.random_range(0..3))
            .map(|_| {
                let when = some_facts(&mut rng, &vocabulary, 0.3);
                random_deny(&mut rng, &ty, when)
            })
            .collect();
        let mut table = Table::new(&grants, &denies, Arc::clone(&vocabulary), |_| Some(Arc::clone(&ty)));
        table.derive(&test_key());

        // Several records, with unknown fields, doubled ones, wrong encodings, and a message of another type inside.
        let mut writer = Writer { rng, markers: Vec::new(), empty: 0.0 };
        let mut records = Vec::new();
        for _ in 0..3 {
            let from = writer.markers.len();
            let (_, mut noisy) = writer.message(&fields, 0);
            let (_, foreign) = writer.message(&fields, ty.leaves.len());
            put(&mut noisy, 9_999, &foreign);
            records.push((noisy, writer.markers[from..].to_vec()));
        }
        let Writer { mut rng, markers, .. } = writer;

        // The applicant's number is one that some record holds, if there is any.
        let numbers: Vec<_> = markers.iter().filter_map(|(_, marker)| std::str::from_utf8(marker).ok()).collect();
        let number = if numbers.is_empty() { "none" } else { pick(&mut rng, &numbers) };
        let number = format!("王小明一二三{number}四五六七八");
        let applicant = Party { role: "applicant".into(), attributes: vec![("id_no".into(), number)] };
        let case = Case { open: true, region: String::new(), parties: vec![applicant] };
        let given = Given { case: rng.random_bool(0.8).then(|| Arc::new(case)), consent: None };
        let truths = random_truths(&mut rng, request);
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
            given: &given,
        };
        let permit = table.decide(&ask, truths, PolicyHash([7; 32]));

        let mut leaving = Vec::new();
        for (noisy, markers) in &records {
            let settled = settle(&permit, noisy).unwrap();
            let projected = super::super::project(&settled).unwrap();
            let of_record = truths.and(settled.truths().only(vocabulary.record_facts()));
            let forms: Vec<_> =
                (0..ty.leaves.len()).map(|leaf| reading(&grants, &denies, &ty, &ask, of_record, leaf)).collect();
            for (leaf, marker) in markers {
                let given = forms.get(*leaf).copied().flatten() == Some(Form::Clear);
                let left = contains(&projected.bytes, marker);
                prop_assert_eq!(left, given, "{:?} {:?}", ty.leaves.get(*leaf), forms.get(*leaf));
            }
            for leaf in projected.released.iter() {
                prop_assert_eq!(forms[leaf], Some(Form::Clear));
            }
            for (leaf, mask) in &projected.masked {
                // A value that its mask can't cut is omitted.
                let due = forms[*leaf];
                prop_assert!(
                    due == Some(Form::Masked(*mask)) || (*mask == Mask::Present && matches!(due, Some(Form::Masked(_))))
                );
            }
            // Damaged, it may say anything, but it must be read or refused.
            if !noisy.is_empty() {
                let mut damaged = noisy.clone();
                damaged.remove(at.index(noisy.len()));
                let _ = project(&permit, &damaged);
            }
            leaving.push(projected);
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
        let released: Vec<_> = leaving.iter().map(|projected| projected.bytes.clone()).collect();
        for (_, marker) in &markers {
            let left = released.iter().any(|record| contains(record, marker));
            prop_assert_eq!(contains(&bytes, marker), left, "the answer holds what the records hold and nothing else");
        }
    }
}
