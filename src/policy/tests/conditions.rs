//! What must hold of conditions whatever the policy: less knowledge never shows more, what is explained is what is decided,
//! the decision before the record covers the one on it, and the truth of a record's facts is what its reader reads.

use proptest::prelude::*;
use prost_reflect::{DynamicMessage, Value};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::explain::Explanation;
use super::super::facts::FactSource;
use super::super::grant::{Deny, Grant};
use super::super::settle::{self, Forms};
use super::super::{Case, Form, Party, Permit, Verdict, Vocabulary};
use super::noleak::{
    cases, pick, random_deny, random_grant, random_truths, random_vocabulary, some_facts, some_leaves,
};
use super::project::{Writer, descriptor, random_fields};
use super::*;

/// A random policy about one type, a question to it, and the truth of every fact.
#[derive(Clone)]
struct World {
    ty: Arc<CertificateType>,
    vocabulary: Arc<Vocabulary>,
    grants: Vec<Arc<Grant>>,
    denies: Vec<Deny>,
    truths: Truths,
    consumer: DepartmentCode,
    mode: Mode,
    role: &'static str,
    want: Fields,
    minor: bool,
}

impl World {
    fn random(seed: u64) -> (Self, StdRng) {
        let mut rng = StdRng::seed_from_u64(seed);
        let fields = random_fields(&mut rng, 0);
        let mut ty = certificate_type("t", "WJ", &fields);
        ty.never = some_leaves(&mut rng, ty.leaves.len(), 0.1);
        ty.sensitive = some_leaves(&mut rng, ty.leaves.len(), 0.2);
        let ty = Arc::new(ty);
        let vocabulary = random_vocabulary(&mut rng, &ty);
        let grants = (0..rng.random_range(1..6)).map(|n| {
            let when = some_facts(&mut rng, &vocabulary, 0.25);
            let grant = random_grant(&mut rng, &ty, n);
            Arc::new(Grant { when, consumer: department("GA"), matter: "newborn".into(), ..grant })
        });
        let grants = grants.collect();
        let denies = (0..rng.random_range(0..3)).map(|_| {
            let when = some_facts(&mut rng, &vocabulary, 0.4);
            Deny { consumers: None, matter: "newborn".into(), ..random_deny(&mut rng, &ty, when) }
        });
        let denies = denies.collect();
        let truths = random_truths(&mut rng, (0..vocabulary.facts().len()).collect());
        let world = Self {
            grants,
            denies,
            truths,
            consumer: department("GA"),
            mode: pick(&mut rng, &[Mode::Query, Mode::Query, Mode::Verify]),
            role: pick(&mut rng, &["child", "mother"]),
            want: some_leaves(&mut rng, ty.leaves.len(), 0.9),
            minor: rng.random_bool(0.1),
            ty,
            vocabulary,
        };
        (world, rng)
    }

    fn request_facts(&self) -> FactSet {
        (0..self.vocabulary.facts().len()).collect::<FactSet>() - self.vocabulary.record_facts()
    }

    fn decide(&self, given: &Given) -> Permit {
        let table =
            Table::new(&self.grants, &self.denies, Arc::clone(&self.vocabulary), |_| Some(Arc::clone(&self.ty)));
        let ask = Ask {
            consumer: &self.consumer,
            matter: "newborn",
            certificate_type: &self.ty,
            role: self.role,
            mode: self.mode,
            want: self.want,
            matches: Fields::EMPTY,
            basis: Basis::Consent,
            reference: "c",
            minor: self.minor,
            today: date!(2026 - 06 - 01),
            given,
        };
        table.decide(&ask, self.truths.only(self.request_facts()), PolicyHash([0; 32]))
    }

    /// Both phases with all that is known.
    fn forms(&self) -> (Permit, Forms) {
        let permit = self.decide(&case());
        let forms = settle::forms(&permit, self.truths.only(self.vocabulary.record_facts()));
        (permit, forms)
    }

    /// How much of each leaf is shown.
    fn shown(&self) -> Vec<Form> {
        let (permit, forms) = self.forms();
        let of = |leaf| if permit.open().contains(leaf) { forms.of(leaf) } else { Form::Withheld };
        (0..self.ty.leaves.len()).map(of).collect()
    }
}

/// A case that the registry knows.
fn case() -> Given {
    Given { case: Some(Arc::default()), consent: None }
}

fn no_more(less: &[Form], than: &[Form]) -> bool {
    less.iter().zip(than).all(|(less, than)| less >= than)
}

proptest! {
    #![proptest_config(cases(2_000))]

    #[test]
    fn less_knowledge_and_fewer_grants_never_show_more(seed in any::<u64>()) {
        let (world, mut rng) = World::random(seed);
        let all = world.shown();
        for fact in 0..world.vocabulary.facts().len() {
            let mut less = world.truths;
            less.set(fact, None);
            let world = World { truths: less, ..world.clone() };
            prop_assert!(no_more(&world.shown(), &all), "fact {}", fact);
        }
        // The case registry does not answer: whatever needs the case is not released, and the provider is asked for less.
        let silent = world.decide(&Given::default());
        let heard = world.decide(&case());
        prop_assert!(heard.open().covers(silent.open()));
        let forms = settle::forms(&silent, world.truths.only(world.vocabulary.record_facts()));
        let shown = |leaf| if silent.open().contains(leaf) { forms.of(leaf) } else { Form::Withheld };
        prop_assert!(no_more(&(0..all.len()).map(shown).collect::<Vec<_>>(), &all));

        let mut grants = world.grants.clone();
        grants.remove(rng.random_range(0..grants.len()));
        let fewer = World { grants, ..world.clone() };
        prop_assert!(no_more(&fewer.shown(), &all));
        let mut denies = world.denies.clone();
        let when = some_facts(&mut rng, &world.vocabulary, 0.4);
        denies.push(Deny { consumers: None, matter: "newborn".into(), ..random_deny(&mut rng, &world.ty, when) });
        let denied = World { denies, ..world.clone() };
        prop_assert!(no_more(&denied.shown(), &all));
    }

    #[test]
    fn the_first_decision_covers_the_second(seed in any::<u64>()) {
        let (world, _) = World::random(seed);
        let (permit, forms) = world.forms();
        let given = forms.masked.iter().fold(forms.released, |all, (_, fields)| all | *fields);
        prop_assert!(permit.open().covers(given));
        prop_assert!(world.want.covers(permit.open()));
        let withheld: Fields = forms.withheld.iter().map(|withheld| withheld.leaf).collect();
        prop_assert_eq!(given | withheld, permit.open());
        prop_assert!(!given.intersects(withheld));
        // All that the second decision reads is asked for.
        for fact in permit.record_facts.iter() {
            let inputs = world.vocabulary.get(fact).unwrap().inputs("t");
            prop_assert!(permit.fetch_fields().is_empty() || permit.fetch_fields().covers(inputs));
        }
        if !given.is_empty() {
            prop_assert!(permit.fetch_fields().covers(given));
        }
    }

    #[test]
    fn what_is_explained_is_what_is_decided(seed in any::<u64>()) {
        let (world, mut rng) = World::random(seed);
        let permit = world.decide(&case());
        let explanation = permit.explain();
        prop_assert_eq!(explanation.fields.iter().map(|field| field.leaf).collect::<Fields>(), world.want);
        for _ in 0..8 {
            let truths = random_truths(&mut rng, world.vocabulary.record_facts());
            let forms = settle::forms(&permit, truths);
            let stated = Explanation::of(&permit, world.vocabulary.record_facts(), truths);
            for leaf in world.want.iter() {
                let live = if permit.open().contains(leaf) { forms.of(leaf) } else { Form::Withheld };
                let verdict = explanation.verdict(leaf).unwrap();
                prop_assert_eq!(verdict.form(truths), Some(live), "{} under {:?}", verdict, truths);
                if let Verdict::Open(branches) = verdict {
                    prop_assert_eq!(branches.iter().filter(|branch| branch.holds(truths)).count(), 1, "{}", verdict);
                    prop_assert!(branches.len() > 1);
                }
                // With the record's facts stated nothing is open, and the reason is the one of the entry.
                let stated = stated.verdict(leaf).unwrap();
                prop_assert_eq!(stated.form(Truths::NONE), Some(live));
                if let Verdict::Withheld(why) = stated {
                    let live = permit.withheld().iter().chain(&forms.withheld).find(|withheld| withheld.leaf == leaf);
                    prop_assert_eq!(Some(why), live);
                }
            }
        }
    }

    #[test]
    fn what_is_known_of_a_record_is_what_a_decoder_reads(seed in any::<u64>()) {
        let mut rng = StdRng::seed_from_u64(seed);
        let fields = random_fields(&mut rng, 0);
        let ty = certificate_type("t", "WJ", &fields);
        let vocabulary = random_vocabulary(&mut rng, &ty);
        let mut writer = Writer { rng, markers: Vec::new(), empty: 0.2 };
        let (tidy, _) = writer.message(&fields, 0);
        let numbers: Vec<_> = writer.markers.iter().filter_map(|(_, marker)| std::str::from_utf8(marker).ok()).collect();
        let number = if numbers.is_empty() { "none" } else { pick(&mut writer.rng, &numbers) };
        let number = format!("王小明一二三{number}四五六七八");
        let applicant = Party { role: "applicant".into(), attributes: vec![("id_no".into(), number.clone())] };
        let case = Case { parties: vec![applicant], ..Case::default() };
        let truths = vocabulary.record_truths(vocabulary.record_facts(), &ty, Some(&case), &tidy).unwrap();
        let decoded = DynamicMessage::decode(descriptor(&fields), &*tidy).unwrap();
        for (index, fact) in vocabulary.facts().iter().enumerate() {
            let leaf = fact.inputs("t").iter().next().and_then(|leaf| ty.leaves.get(leaf));
            let Some(leaf) = leaf else { continue };
            let mut values = Vec::new();
            read(&Value::Message(decoded.clone()), &leaf.numbers, &mut values);
            match (&fact.source, truths.of(index)) {
                // A decoder takes the last of several; where they do not agree, nothing is known.
                (FactSource::RecordFlag { .. }, truth) => {
                    let set = |value: &Value| value.as_i64().unwrap() != 0;
                    prop_assert!(values.len() <= 1, "a flag is in no list");
                    prop_assert!(truth.is_none() || values.iter().map(set).eq(truth), "{:?} {:?}", values, truth);
                }
                // Empty is nobody's number, and elements of a list that say nothing say nothing.
                (_, Some(truth)) => {
                    prop_assert!(values.iter().any(|value| value.as_str() != Some("")));
                    prop_assert_eq!(values.iter().any(|value| value.as_str() == Some(&number)), truth);
                }
                (_, None) => {}
            }
        }
    }
}

/// Of two elements, one says yes and the other nothing: a list has no one value.
#[test]
fn a_flag_in_a_list_is_no_condition() {
    let flag =
        |number, name: &str| FieldSpec { spec: Spec::Leaf(Wire::Varint, ValueKind::Text, None), ..text(number, name) };
    let listed = FieldSpec { repeated: true, ..flag(3, "flags") };
    let mut ty =
        certificate_type("t", "WJ", &[flag(1, "one"), message(2, "members", true, vec![flag(1, "one")]), listed]);
    ty.leaves.iter_mut().for_each(|leaf| leaf.scalar = Scalar::Bool);
    let known = Known { types: BTreeMap::from([("t".to_owned(), Arc::new(ty))]), ..made_up() };
    let faults = |path: &str| {
        let fact =
            format!("[[fact]]\nname = \"f\"\nfrom = \"record.flag\"\nreason = \"X\"\n[fact.paths]\nt = [\"{path}\"]\n");
        let mut faults = Faults::default();
        super::super::vocabulary::parse(std::path::Path::new("facts.toml"), &fact, &known, &mut faults);
        faults.0.into_iter().map(|fault| (fault.line, fault.message)).collect::<Vec<_>>()
    };
    assert_eq!(faults("one"), []);
    for path in ["members.one", "flags"] {
        assert_eq!(faults(path), [(Some(6), "a flag in a list has no one value".to_owned())], "{path}");
    }
}

/// Every value under a path of field numbers.
fn read(value: &Value, path: &[u32], values: &mut Vec<Value>) {
    match (value, path) {
        (Value::List(list), _) => list.iter().for_each(|value| read(value, path, values)),
        (Value::Message(message), [number, rest @ ..]) if message.has_field_by_number(*number) => {
            read(&message.get_field_by_number(*number).unwrap(), rest, values);
        }
        (Value::Message(_), _) => {}
        (value, _) => values.push(value.clone()),
    }
}
