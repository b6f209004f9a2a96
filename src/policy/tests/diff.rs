//! The comparison of two policies, held against the decisions themselves.

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::diff::{Diff, FieldChange, Form, Read};
use super::super::grant::{Deny, Grant};
use super::super::{Fact, FactSource, Vocabulary, WithheldReason};
use super::noleak::{cases, random_grant, some_leaves};
use super::*;

const TODAY: Date = date!(2026 - 06 - 01);
const FACTS: [&str; 3] = ["f1", "f2", "f3"];

/// The first two are known before, the third by the record.
fn vocabulary() -> Arc<Vocabulary> {
    let fact =
        |name: &str, source| Fact { name: name.into(), reason: WithheldReason::CaseNotOpen, code: "X".into(), source };
    let facts = vec![
        fact("f1", FactSource::CaseOpen),
        fact("f2", FactSource::ConsentGiven),
        fact("f3", FactSource::RecordFlag { leaves: BTreeMap::new() }),
    ];
    Arc::new(Vocabulary::new(facts, BTreeMap::new(), super::super::holidays::Holidays::default()))
}

fn policy(ty: &Arc<CertificateType>, grants: Vec<Grant>, denies: &[Deny]) -> Policy {
    let grants: Vec<_> = grants.into_iter().map(Arc::new).collect();
    let vocabulary = vocabulary();
    let table = Table::new(&grants, denies, vocabulary.clone(), |_| Some(ty.clone()));
    let versions = BTreeMap::new();
    let (hash, pseudonyms) = (PolicyHash([1; 32]), Faults::default());
    Policy { catalog: nothing(), grants, table, vocabulary, hash, versions, pseudonyms }
}

fn some_facts(rng: &mut StdRng) -> FactSet {
    (0..FACTS.len()).filter(|_| rng.random_bool(0.3)).collect()
}

fn random_policy(rng: &mut StdRng, ty: &Arc<CertificateType>) -> Policy {
    let grants = (0..rng.random_range(0..4)).map(|number| {
        let grant = random_grant(rng, ty, number);
        // Some name the predicate, which only grants to compare may.
        let named = if grant.mode == Mode::Verify && rng.random_bool(0.5) { ty.all() } else { Fields::EMPTY };
        let fields = grant.fields | (named - (0..ty.leaves.len()).collect());
        Grant { consumer: department("GA"), matter: "newborn".into(), when: some_facts(rng), fields, ..grant }
    });
    let grants = grants.collect();
    let denies: Vec<_> = (0..rng.random_range(0..3))
        .map(|_| Deny {
            consumers: None,
            matter: "newborn".into(),
            certificate_type: ty.code.clone(),
            fields: ty.with_conclusions(some_leaves(rng, ty.leaves.len(), 0.3)),
            when: some_facts(rng),
        })
        .collect();
    policy(ty, grants, &denies)
}

/// What the live path gives, in both modes.
fn decided(policy: &Policy, ty: &Arc<CertificateType>, role: &str, today: Date, truths: Truths) -> Vec<Form> {
    let consumer = department("GA");
    let given = Given::default();
    let mut forms = vec![Form::default(); ty.all().len()];
    for mode in [Mode::Query, Mode::Verify] {
        let ask = Ask {
            consumer: &consumer,
            matter: "newborn",
            certificate_type: ty,
            role,
            mode,
            want: ty.all(),
            matches: Fields::EMPTY,
            basis: Basis::Consent,
            reference: "c",
            minor: false,
            today,
            given: &given,
        };
        let mut before = truths;
        before.set(2, None);
        let permit = policy.table.decide(&ask, before, policy.hash);
        let found = super::super::settle::forms(&permit, truths);
        for leaf in found.released.iter() {
            match mode {
                Mode::Verify => forms[leaf].compare = true,
                _ => forms[leaf].read = Read::Clear,
            }
        }
        for (mask, fields) in found.masked.iter().filter(|_| mode == Mode::Query) {
            fields.iter().for_each(|leaf| forms[leaf].read = Read::Masked(*mask));
        }
    }
    forms
}

/// Whether the words hold.
fn holds(change: &FieldChange, truths: Truths) -> bool {
    let word = |word: &String| {
        let fact = FACTS.iter().position(|fact| word.split(' ').any(|part| part == *fact)).unwrap();
        let truth = truths.of(fact);
        match word.replace(FACTS[fact], "_").as_str() {
            "_" => truth == Some(true),
            "_ not known true" => truth != Some(true),
            "_ known false" => truth == Some(false),
            "_ not known false" => truth != Some(false),
            "_ unknown" => truth.is_none(),
            "_ known" => truth.is_some(),
            other => panic!("{other}"),
        }
    };
    change.when.terms.iter().any(|words| words.iter().all(word))
}

proptest! {
    #![proptest_config(cases(150))]

    #[test]
    fn what_is_said_is_what_is_decided(seed in any::<u64>()) {
        let mut rng = StdRng::seed_from_u64(seed);
        let fields = [text(1, "one"), text(2, "two"), text(3, "three"), text(4, "four")];
        let mut ty = certificate_type("t", "WJ", &fields);
        ty.never = Fields::one(3);
        ty.predicates.push(predicate("one_and_two", Fields::one(0) | Fields::one(1)));
        let ty = Arc::new(ty);
        let (old, new) = (random_policy(&mut rng, &ty), random_policy(&mut rng, &ty));
        let diff = Diff::of(&old, &new).unwrap();
        let changes: Vec<_> = diff.cells.iter().flat_map(|cell| &cell.fields).collect();
        for state in 0..27_u32 {
            let mut truths = Truths::NONE;
            for (fact, weight) in [(0, 1), (1, 3), (2, 9)] {
                truths.set(fact, [Some(true), Some(false), None][(state / weight % 3) as usize]);
            }
            for role in ["child", "mother", "guardian"] {
                for day in -8..=8 {
                    let today = TODAY + time::Duration::days(day);
                    let before = decided(&old, &ty, role, today, truths);
                    let after = decided(&new, &ty, role, today, truths);
                    for (leaf, (from, to)) in before.into_iter().zip(after).enumerate() {
                        let said: Vec<_> = changes.iter().filter(|change| {
                            change.fields.iter().any(|path| path == ty.path(leaf))
                                && change.roles.iter().any(|of| of == role)
                                && change.days.iter().any(|(first, last)| (*first..=*last).contains(&today))
                                && holds(change, truths)
                        }).map(|change| (change.from, change.to)).collect();
                        let due = if from == to { vec![] } else { vec![(from, to)] };
                        prop_assert_eq!(said, due, "{} for {} on {} under {:?}", ty.path(leaf), role, today, truths);
                    }
                }
            }
        }
    }
}

#[test]
fn a_change_is_told_in_words() {
    let bundle = std::path::Path::new("deploy/heshan/policy");
    let old = Policy::open(bundle).unwrap();
    let copy = tempfile::tempdir().unwrap();
    signed::copy_tree(bundle, copy.path());
    let edit = |file: &str, from: &str, to: &str| {
        let path = copy.path().join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{from}");
        std::fs::write(path, text.replacen(from, to, 1)).unwrap();
    };
    edit("grants/newborn_birth/WJ.toml", "mask = { mother_name = \"name_zh\" }", "");
    edit(
        "grants/newborn_birth/WJ.toml",
        "\"birth_datetime\", \"mother_name\", \"birth_inst",
        "\"mother_name\", \"birth_inst",
    );
    edit("grants/newborn_birth/WJ.toml", "roles = [\"child\"]", "roles = [\"child\", \"applicant\"]");
    edit("facts.toml", "08:30-17:30", "08:00-18:00");
    edit("matters/newborn_birth.toml", "\"GA\", \"RS\", \"YB\"", "\"GA\", \"RS\", \"MZ\", \"YB\"");
    let new = Policy::open(copy.path()).unwrap_or_else(|faults| panic!("{faults}"));
    let diff = Diff::of(&old, &new).unwrap();
    let said: Vec<String> = (diff.cells.iter())
        .flat_map(|cell| {
            let fields = cell.fields.iter().map(|change| {
                let (kind, fields) = (change.kind(), change.fields.join(","));
                format!("{} {kind} {} -> {}: {fields} {}", cell.consumer, change.from, change.to, change.when)
            });
            fields.chain(cell.grants.iter().map(|grant| format!("{} {grant}", cell.consumer))).collect::<Vec<_>>()
        })
        .collect();
    let when = "when case_open and subject_in_case (1 of 4 cases)";
    assert!(said.contains(&format!("JK changes name_zh -> clear: mother_name {when}")), "{said:#?}");
    assert!(said.contains(&format!("JK loses clear -> -: birth_datetime {when}")), "{said:#?}");
    assert!(said.iter().any(|line| line.starts_with("GA gains - -> clear: ")), "{said:#?}");
    assert!(
        said.contains(&"GA grant newborn_birth.GA.birth_medical_certificate: roles +applicant".to_owned()),
        "{said:#?}"
    );
    assert_eq!(said.len(), 4, "{said:#?}");
    assert!(diff.ground.iter().any(|line| line.starts_with("fact office_hours: ")), "{:?}", diff.ground);
    assert!(diff.ground.contains(&"matter newborn_birth: participants +MZ".to_owned()), "{:?}", diff.ground);
    assert_eq!(diff.ground.len(), 2, "{:?}", diff.ground);
    assert!(Diff::of(&old, &Policy::open(bundle).unwrap()).unwrap().is_empty());
}

/// Whatever is not described is not said to be nothing.
#[test]
fn a_change_that_is_not_described_is_told() {
    let bundle = std::path::Path::new("deploy/heshan/policy");
    let copy = tempfile::tempdir().unwrap();
    signed::copy_tree(bundle, copy.path());
    let file = copy.path().join("departments.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replacen("Health Bureau", "Bureau of Health", 1)).unwrap();
    let diff = Diff::of(&Policy::open(bundle).unwrap(), &Policy::open(copy.path()).unwrap()).unwrap();
    assert_eq!(diff.ground, ["the catalog differs in ways that are not described here"]);
    assert!(!diff.is_empty());
}

#[test]
fn more_facts_than_can_be_enumerated_are_told() {
    let names: Vec<String> = (0..17).map(|number| format!("f{number}")).collect();
    let facts = names.iter().map(|name| Fact {
        name: name.as_str().into(),
        reason: WithheldReason::CaseNotOpen,
        code: "X".into(),
        source: FactSource::CaseOpen,
    });
    let facts: Vec<_> = facts.collect();
    let vocabulary = Arc::new(Vocabulary::new(facts, BTreeMap::new(), super::super::holidays::Holidays::default()));
    let ty = Arc::new(certificate_type("t", "WJ", &[text(1, "one")]));
    let mut rng = StdRng::seed_from_u64(1);
    let mut grant = random_grant(&mut rng, &ty, 1);
    grant.when = (0..17).collect();
    let grants = vec![Arc::new(grant)];
    let table = Table::new(&grants, &[], vocabulary.clone(), |_| Some(ty.clone()));
    let hash = PolicyHash([2; 32]);
    let (versions, pseudonyms) = (BTreeMap::new(), Faults::default());
    let many = Policy { catalog: nothing(), grants, table, vocabulary, hash, versions, pseudonyms };
    let error = Diff::of(&policy(&ty, Vec::new(), &[]), &many).unwrap_err();
    assert_eq!(error.assignments, 1 << 17);
    assert!(error.to_string().contains("up to 16 facts"), "{error}");
}
