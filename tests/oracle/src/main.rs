//! The policy engine against Cedar as an oracle: random tables of grants and denies are written as a bundle, which the
//! gateway's loader reads, and rendered as Cedar policies; both decide on every field with all facts known, and every
//! decision must be the same. Masks, unknown facts and validity have no equal in Cedar; properties of `src/policy/tests` are
//! about them.
//!
//! Usage: `oracle [FIELD_DECISIONS]`; 50,000 unless told otherwise.

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use cedar_policy::{Authorizer, Context, Decision, Entities, EntityUid, PolicySet, Request};
use oncegate::catalog::{Catalog, CertificateType, Fields};
use oncegate::identity::Basis;
use oncegate::ids::DepartmentCode;
use oncegate::policy::{FactSet, Mode, Policy, Stated, Truths, Verdict};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use time::macros::date;

const MATTER: &str = "newborn_birth";
const TYPE: &str = "birth_medical_certificate";
const PROVIDER: &str = "WJ";
const CONSUMERS: [&str; 4] = ["GA", "RS", "YB", "JK"];
const ROLES: [&str; 3] = ["child", "mother", "father"];
const CITATION: &str = "户口登记条例 第七条";

/// A permit, or a forbid where `deny` is true.
struct Rule {
    deny: bool,
    consumers: Vec<&'static str>,
    roles: Vec<&'static str>,
    fields: Vec<String>,
    facts: Vec<String>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let wanted: usize = std::env::args().nth(1).map_or(Ok(50_000), |count| count.parse())?;
    let deployment = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/heshan/policy");
    let catalog = Arc::new(Catalog::load(&deployment)?);
    let kind = catalog.certificate_type(TYPE).ok_or("no such type")?.clone();
    let bundle = std::env::temp_dir().join(format!("oracle-{}", std::process::id()));
    let folder = bundle.join("grants").join(MATTER);
    fs::create_dir_all(&folder)?;
    for file in ["facts.toml", "holidays.toml"] {
        fs::copy(deployment.join(file), bundle.join(file))?;
    }
    let (mut decisions, mut released, mut tables, mut differences) = (0, 0, 0, 0);
    for seed in 0.. {
        if decisions >= wanted {
            break;
        }
        let mut rng = StdRng::seed_from_u64(seed);
        let facts: Vec<String> = ["case_open", "subject_in_case", "same_county", "statutory_duty", "applicant_is_parent"]
            .map(str::to_owned)
            .into();
        let rules = rules(&mut rng, &kind, &facts);
        fs::write(folder.join(format!("{PROVIDER}.toml")), as_bundle(&rules))?;
        let policy = Policy::load(&bundle, catalog.clone())?;
        let cedar: PolicySet = as_cedar(&rules).parse()?;
        tables += 1;
        for _ in 0..4 {
            let holds: Vec<(&str, bool)> = facts.iter().map(|fact| (fact.as_str(), rng.random_bool(0.7))).collect();
            for (consumer, role) in CONSUMERS.iter().flat_map(|consumer| ROLES.map(|role| (*consumer, role))) {
                let ours = ours(&policy, &kind, consumer, role, &holds)?;
                for (leaf, ours) in ours {
                    let theirs = theirs(&cedar, consumer, role, kind.path(leaf), &holds)?;
                    decisions += 1;
                    released += usize::from(ours);
                    if ours != theirs {
                        differences += 1;
                        eprintln!("seed {seed}: {consumer} {role} {} {holds:?}: {ours}, Cedar {theirs}", kind.path(leaf));
                    }
                }
            }
        }
    }
    fs::remove_dir_all(&bundle)?;
    println!("{tables} tables, {decisions} field decisions, {released} of them to release, {differences} differences");
    if differences > 0 { Err("the engine and Cedar do not agree".into()) } else { Ok(()) }
}

/// Up to eight permits and three forbids over the type's fields that somebody may read.
fn rules(rng: &mut StdRng, kind: &CertificateType, facts: &[String]) -> Vec<Rule> {
    let all: Fields = (0..kind.leaves.len()).collect();
    let readable: Vec<_> = (all - kind.never - kind.verify_only).iter().map(|leaf| kind.path(leaf).to_owned()).collect();
    let count = rng.random_range(1..=8);
    let denies = rng.random_range(0..=3);
    let mut some = |from: &[String], share: f64| -> Vec<String> {
        from.iter().filter(|_| rng.random_bool(share)).cloned().collect()
    };
    let mut made: Vec<_> = (0..count + denies)
        .map(|at| {
            let deny = at >= count;
            let mut fields = some(&readable, if deny { 0.2 } else { 0.5 });
            if fields.is_empty() {
                fields.push(readable[0].clone());
            }
            Rule { deny, consumers: Vec::new(), roles: Vec::new(), fields, facts: some(facts, 0.25) }
        })
        .collect();
    for rule in &mut made {
        let wide = rng.random_bool(0.3);
        rule.consumers = match (rule.deny, wide) {
            (true, true) => CONSUMERS.into(),
            _ => CONSUMERS.choose(rng).into_iter().copied().collect(),
        };
        rule.roles = ROLES.into_iter().filter(|_| rng.random_bool(0.6)).collect();
        if rule.roles.is_empty() {
            rule.roles.push("child");
        }
    }
    made
}

fn quoted<S: AsRef<str>>(items: &[S]) -> String {
    items.iter().map(|item| format!("\"{}\"", item.as_ref())).collect::<Vec<_>>().join(", ")
}

fn as_bundle(rules: &[Rule]) -> String {
    let mut text = format!("matter = \"{MATTER}\"\nprovider = \"{PROVIDER}\"\n");
    for (at, rule) in rules.iter().enumerate() {
        let Rule { consumers, roles, fields, facts, .. } = rule;
        let (fields, facts) = (quoted(fields), quoted(facts));
        let common = format!("id = \"r{at}\"\ncertificate_type = \"{TYPE}\"\nfields = [{fields}]\nwhen = [{facts}]\n");
        let _ = if rule.deny {
            write!(text, "[[deny]]\n{common}consumers = [{}]\nreason = \"oracle\"\n", quoted(consumers))
        } else {
            write!(
                text,
                "[[grant]]\n{common}consumer = {}\nroles = [{}]\nmode = \"query\"\nreplaces = \"x\"\nexemption = \"3\"\n\
                 scene = \"x\"\nbasis = [\"{CITATION}\"]\nvalid_from = \"2026-01-01\"\nvalid_until = \"2027-12-31\"\n",
                quoted(consumers),
                quoted(roles),
            )
        };
    }
    text
}

fn as_cedar(rules: &[Rule]) -> String {
    let mut text = String::new();
    for rule in rules {
        let entities = |kind: &str, names: &[&str]| {
            names.iter().map(|name| format!("{kind}::\"{name}\"")).collect::<Vec<_>>().join(", ")
        };
        let fields: Vec<_> = rule.fields.iter().map(String::as_str).collect();
        let mut conditions = vec![
            format!("[{}].contains(principal)", entities("Consumer", &rule.consumers)),
            format!("[{}].contains(resource)", entities("Field", &fields)),
        ];
        if !rule.deny {
            conditions.push(format!("[{}].contains(context.role)", quoted(&rule.roles)));
        }
        conditions.extend(rule.facts.iter().map(|fact| format!("context.{fact}")));
        let effect = if rule.deny { "forbid" } else { "permit" };
        let _ = writeln!(text, "{effect}(principal, action, resource) when {{ {} }};", conditions.join(" && "));
    }
    text
}

/// Per field whether the gateway would release it.
fn ours(
    policy: &Policy,
    kind: &Arc<CertificateType>,
    consumer: &str,
    role: &str,
    holds: &[(&str, bool)],
) -> Result<Vec<(usize, bool)>, Box<dyn Error>> {
    let consumer: DepartmentCode = consumer.parse()?;
    let (mut facts, mut truths) = (FactSet::EMPTY, Truths::NONE);
    for (name, truth) in holds {
        let fact = policy.vocabulary().index(name).ok_or("no such fact")?;
        facts |= FactSet::one(fact);
        truths.set(fact, Some(*truth));
    }
    let explanation = policy.explain(&Stated {
        consumer: &consumer,
        matter: MATTER,
        certificate_type: kind,
        role,
        mode: Mode::Query,
        want: (0..kind.leaves.len()).collect(),
        basis: Basis::StatutoryDuty,
        reference: CITATION,
        minor: false,
        today: date!(2026 - 06 - 01),
        facts,
        truths,
    });
    let seen: BTreeSet<_> = explanation.fields.iter().map(|field| field.leaf).collect();
    if seen.len() != kind.leaves.len() {
        return Err("a field without a verdict".into());
    }
    let fields = explanation.fields.iter().map(|field| match field.verdict {
        Verdict::Released => Ok((field.leaf, true)),
        Verdict::Withheld(_) => Ok((field.leaf, false)),
        Verdict::Masked(_) | Verdict::Open(_) => Err("a verdict that no rule of these tables can give".into()),
    });
    fields.collect()
}

/// Whether Cedar would.
fn theirs(
    policies: &PolicySet,
    consumer: &str,
    role: &str,
    field: &str,
    holds: &[(&str, bool)],
) -> Result<bool, Box<dyn Error>> {
    let entity = |kind: &str, name: &str| format!("{kind}::\"{name}\"").parse::<EntityUid>();
    let facts = holds.iter().map(|(fact, truth)| ((*fact).to_owned(), (*truth).into()));
    let role = [("role".to_owned(), serde_json::Value::from(role))];
    let context = serde_json::Value::Object(role.into_iter().chain(facts).collect());
    let request = Request::new(
        entity("Consumer", consumer)?,
        entity("Action", "read")?,
        entity("Field", field)?,
        Context::from_json_value(context, None)?,
        None,
    )?;
    let answer = Authorizer::new().is_authorized(&request, policies, &Entities::empty());
    if let Some(error) = answer.diagnostics().errors().next() {
        return Err(error.to_string().into());
    }
    Ok(answer.decision() == Decision::Allow)
}
