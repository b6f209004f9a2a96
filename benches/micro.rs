//! The parts of a call on their own: decide, project, token, log append, and the load of many grants.
//!
//! `cargo bench --bench micro`. Each figure is the median of fifteen rounds.

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs, reason = "a bench may fail")]
#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "figures")]

use std::fmt::Write as _;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use oncegate::audit::{AccessEntry, AuditConfig, Entry, Journal, Outcome, PolicyKeys, StartInfo, StopEntry};
use oncegate::catalog::{CaseSubject, Catalog, Fields, Matter};
use oncegate::cli::demo::numbers;
use oncegate::cli::pki::{self, PkiSettings};
use oncegate::clock::{Clock, Timestamp};
use oncegate::config::Config;
use oncegate::identity::mint::{MintRequest, SigningKey};
use oncegate::identity::{Basis, Caller, TokenVerifier};
use oncegate::policy::{Case, Given, Mode, Party, Policy, project, settle};
use prost::Message as _;
use prost_reflect::{DynamicMessage, ReflectMessage as _, Value};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tempfile::TempDir;
use tokio::time::Instant;

const CONSUMERS: [&str; 5] = ["GA", "JK", "RS", "YB", "MZ"];
const ROUNDS: usize = 15;

/// Nanoseconds of one run of `work`.
fn nanos(mut work: impl FnMut()) -> f64 {
    let mut times = Vec::new();
    let mut count = 1_u32;
    while times.len() < ROUNDS {
        let begun = Instant::now();
        (0..count).for_each(|_| work());
        let took = begun.elapsed();
        if took < Duration::from_millis(20) {
            count *= 2;
        } else {
            times.push(took.as_nanos() as f64 / f64::from(count));
        }
    }
    times.sort_by(f64::total_cmp);
    times.get(ROUNDS / 2).copied().unwrap_or_default()
}

fn line(what: &str, nanos: f64) {
    println!("{what:<48} {:>10.3} µs", nanos / 1e3);
}

fn main() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let out = dir.path().join("pki");
    let settings = PkiSettings::built_in().unwrap();
    pki::generate(&out, &settings, false, &Clock::system(), &oncegate::cli::audit_keys).unwrap();
    for grants in [50, 500, 5_000] {
        policy(&dir, &out, grants);
    }
    tokens(&out);
    tokio::runtime::Runtime::new().unwrap().block_on(log(&dir, &out));
}

/// The county's catalog with as many matters as the grants need.
fn catalog(grants: usize) -> Catalog {
    let heshan = Catalog::load(Path::new("deploy/heshan/policy")).unwrap();
    let matter = |number: usize| Matter {
        code: format!("m{number}"),
        name_zh: "一件事".into(),
        name_en: "Matter".into(),
        lead: "WJ".parse().unwrap(),
        cooperating: CONSUMERS.iter().map(|code| code.parse().unwrap()).collect(),
        external: Vec::new(),
        batch: "local".into(),
        linked_items: Vec::new(),
        legal_basis: vec!["某法 第一条".into()],
    };
    let matters = (0..grants / CONSUMERS.len()).map(matter).collect();
    Catalog::from_parts(&[oncegate::pb::DESCRIPTOR_SET], heshan.departments().cloned().collect(), matters).unwrap()
}

/// Four conditions, one of them on the record.
const WHEN: &str = "\"case_open\", \"subject_in_case\", \"statutory_duty\", \"applicant_is_parent\"";

/// One cell for each consumer in each matter: fourteen fields of a birth certificate, four of them masked, four conditions.
fn write_bundle(dir: &Path, grants: usize) {
    std::fs::create_dir_all(dir).unwrap();
    std::fs::copy("deploy/heshan/policy/facts.toml", dir.join("facts.toml")).unwrap();
    for matter in 0..grants / CONSUMERS.len() {
        let mut text = format!("matter = \"m{matter}\"\nprovider = \"WJ\"\nwhen = [{WHEN}]\n");
        for consumer in CONSUMERS {
            write!(
                text,
                "[[grant]]\nid = \"m{matter}.{consumer}\"\nconsumer = \"{consumer}\"\n\
                 certificate_type = \"birth_medical_certificate\"\nroles = [\"child\"]\nmode = \"query\"\n\
                 fields = [\"certificate_no\", \"infant_name\", \"sex\", \"birth_datetime\", \"birth_place\", \
                 \"mother_name\", \"mother_ethnicity\", \"father_name\", \"father_ethnicity\", \"mother_id_type\", \
                 \"birth_institution\", \"issuing_institution\", \"issue_date\", \"status\"]\n\
                 mask = {{ certificate_no = \"cert_no\", infant_name = \"name_zh\", mother_name = \"name_zh\", \
                 father_name = \"name_zh\" }}\nreplaces = \"出生医学证明\"\nexemption = \"3\"\nscene = \"出生登记\"\n\
                 valid_from = \"2026-01-01\"\nvalid_until = \"2099-12-31\"\n"
            )
            .unwrap();
        }
        let folder = dir.join(format!("grants/m{matter}"));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("WJ.toml"), text).unwrap();
    }
}

fn policy(dir: &TempDir, out: &Path, grants: usize) {
    let catalog = Arc::new(catalog(grants));
    let bundle = dir.path().join(format!("policy-{grants}"));
    write_bundle(&bundle, grants);
    let loading = nanos(|| drop(black_box(Policy::load(&bundle, catalog.clone()).unwrap())));
    let policy = Policy::load(&bundle, catalog.clone()).unwrap();
    assert_eq!(policy.grants().count(), grants);

    let (caller, verifier, key, now) = identity(out, 10_000);
    let token = mint(&key, &caller, now, "m0");
    let purpose = verifier.verify(&caller, &token, now).unwrap();
    let kind = catalog.certificate_type("birth_medical_certificate").unwrap();
    let mother = numbers::id_number(time::macros::date!(1995 - 03 - 04), 22);
    let of = |role: &str, name: &str, value: &str| CaseSubject {
        role: role.into(),
        attributes: vec![(name.into(), value.into())],
    };
    let child = of("child", "birth_date", "2026-10-05");
    let subject = catalog.resolve(kind, &child, &[child.clone(), of("mother", "id_no", &mother)]).unwrap();
    let all: Fields = (0..kind.leaves.len()).collect();
    let mut record = DynamicMessage::new(catalog.pool().get_message_by_name(&kind.message).unwrap());
    for leaf in &kind.leaves {
        let field = record.descriptor().get_field_by_name(&leaf.path).unwrap();
        let value = match field.kind() {
            prost_reflect::Kind::String if leaf.path == "mother_id_no" => Value::String(mother.clone()),
            prost_reflect::Kind::String => Value::String("乌有宁乌有宁乌有".into()),
            prost_reflect::Kind::Uint32 => Value::U32(3_250),
            _ => Value::EnumNumber(1),
        };
        record.set_field(&field, value);
    }
    let record = record.encode_to_vec();
    let party = |role: &str| Party { role: role.into(), attributes: vec![("id_no".into(), mother.clone())] };
    let child = Party { role: "child".into(), attributes: child.attributes };
    let case = Case { open: true, region: String::new(), parties: vec![child, party("mother"), party("applicant")] };
    let given = Given { case: Some(Arc::new(case)), consent: None };
    let decide = || policy.decide(&caller, &purpose, &subject, Mode::Query, all, &given, now);
    let permit = decide();
    let settled = settle(&permit, &record).unwrap();
    assert_eq!((settled.masked().iter().map(|(_, fields)| fields.len()).sum::<usize>(), kind.leaves.len()), (4, 20));

    println!("{grants} grants; a record of 20 fields, {} bytes; four conditions, one on the record", record.len());
    line("  load and check", loading);
    line("  decide", nanos(|| drop(black_box(decide()))));
    line("  settle", nanos(|| drop(black_box(settle(&permit, &record).unwrap()))));
    line("  project, 10 fields clear, 4 masked", nanos(|| drop(black_box(project(&settled).unwrap()))));
    let all = nanos(|| {
        let permit = decide();
        let settled = settle(&permit, &record).unwrap();
        drop(black_box(project(&settled).unwrap()));
    });
    line("  decide, settle and project", all);
}

fn identity(out: &Path, cache: u64) -> (Caller, TokenVerifier, SigningKey, Timestamp) {
    let text = std::fs::read_to_string("deploy/heshan/gateway.toml").unwrap();
    let file = out.join("gateway.toml");
    std::fs::write(&file, text.replace("../../certs-dev/out", out.canonicalize().unwrap().to_str().unwrap())).unwrap();
    let mut config = Config::load(&file).unwrap();
    config.identity.token_cache_entries = cache;
    let verifier = TokenVerifier::load(&config.identity, &config.trust_domain, |_| true).unwrap();
    let leaf = CertificateDer::from_pem_slice(&std::fs::read(out.join("systems/ZS/platform.pem")).unwrap()).unwrap();
    let caller = Caller::from_verified_leaf(&leaf, &["ZS".parse().unwrap()], &config.trust_domain).unwrap();
    let key = SigningKey::from_pkcs8_pem(&std::fs::read(out.join("tokens/platform.key")).unwrap()).unwrap();
    (caller, verifier, key, Clock::system().now())
}

fn mint(key: &SigningKey, caller: &Caller, now: Timestamp, matter: &str) -> String {
    let request = MintRequest {
        issuer: "https://token.platform.heshan.gov.example",
        trust_domain: "heshan.gov.example",
        caller: caller.id(),
        leaf_sha256: caller.leaf_sha256(),
        officer: "window-3",
        token_id: "bench",
        issued_at: now,
        lifetime_s: 600,
        consumer: &"GA".parse().unwrap(),
        matter,
        case_id: &"HS-BENCH-000001".parse().unwrap(),
        basis: Basis::StatutoryDuty,
        basis_reference: "某法 第一条",
        purpose: "出生登记",
        certificate_types: &[],
        subjects: None,
    };
    key.mint(&request).unwrap()
}

fn tokens(out: &Path) {
    println!("token, ES256");
    for (what, cache) in [("  verified anew", 0), ("  remembered", 10_000)] {
        let (caller, verifier, key, now) = identity(out, cache);
        let token = mint(&key, &caller, now, "newborn_birth");
        line(what, nanos(|| drop(black_box(verifier.verify(&caller, &token, now).unwrap()))));
    }
}

/// Entries at a steady rate: what one costs in processor time beyond handing a message to a task and back, checkpoints
/// each second included, and how long it waits.
async fn paced(rate: u32, journal: &Arc<Journal>) {
    const SECONDS: u32 = 5;
    let entry = || {
        let id = oncegate::ids::RequestId::generate();
        let caller = "spiffe://heshan.gov.example/GA/household".parse().unwrap();
        let mut access = AccessEntry::new(id, caller, Outcome::Released);
        access.matter = "newborn_birth".into();
        access.certificate_type = "birth_medical_certificate".into();
        access.requested = (1..=14).map(|field| vec![field]).collect();
        Entry::Access(Box::new(access))
    };
    let (queue, mut waiting) = tokio::sync::mpsc::channel::<(Entry, tokio::sync::oneshot::Sender<()>)>(4096);
    let echo = tokio::spawn(async move {
        let mut batch = Vec::new();
        while waiting.recv_many(&mut batch, 1024).await > 0 {
            for (entry, answer) in batch.drain(..) {
                drop(black_box(entry));
                let _ = answer.send(());
            }
        }
    });
    let mut spent = Vec::new();
    let mut waits = Vec::new();
    for logged in [false, true] {
        let (before, mut tasks) = (processor_ticks(), tokio::task::JoinSet::new());
        let mut ticks = tokio::time::interval(Duration::from_millis(1));
        for _ in 0..SECONDS * 1000 {
            ticks.tick().await;
            for _ in 0..rate / 1000 {
                let (journal, queue) = (journal.clone(), queue.clone());
                tasks.spawn(async move {
                    let begun = Instant::now();
                    if logged {
                        journal.append(entry()).await.unwrap();
                    } else {
                        let (answer, answered) = tokio::sync::oneshot::channel();
                        queue.send((entry(), answer)).await.unwrap();
                        answered.await.unwrap();
                    }
                    begun.elapsed()
                });
            }
        }
        waits = tasks.join_all().await;
        spent.push(processor_ticks() - before);
    }
    drop(queue);
    echo.await.unwrap();
    waits.sort();
    let at = |percent: usize| waits.get(waits.len() * percent / 100).copied().unwrap_or_default();
    println!("log, {rate} entries a second, waits p50 {:?}, p99 {:?}", at(50), at(99));
    // A tick of the kernel's clock is a hundredth of a second.
    let ticks = spent.get(1).copied().unwrap_or_default() - spent.first().copied().unwrap_or_default();
    line("  processor time an entry, beyond a queue", ticks * 1e7 / f64::from(rate * SECONDS));
}

/// User and system time of this process so far, all threads, in ticks.
fn processor_ticks() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    [11, 12].iter().filter_map(|place| fields.get(*place)?.parse::<f64>().ok()).sum()
}

/// What an entry costs when many wait at once, syncs included.
async fn log(dir: &TempDir, out: &Path) {
    const WAITING: usize = 512;
    let mut config: AuditConfig = toml::from_str(&format!(
        "dir = \"{}\"\norigin = \"heshan.gov.example/gw1\"\nsigning_key = \"{}\"\nrecipients = [\"{}\", \"{}\"]\n",
        dir.path().join("log").display(),
        out.join("audit/log.key").display(),
        out.join("audit/auditor.pub").display(),
        out.join("audit/escrow.pub").display()
    ))
    .unwrap();
    config.queue = 65_536;
    let start = StartInfo {
        gateway: "spiffe://heshan.gov.example/ZS/oncegate".into(),
        policy: [0; 32],
        trust: String::new(),
        policy_keys: PolicyKeys::default(),
        held: Vec::new(),
    };
    let journal = Arc::new(Journal::open(&config, Clock::system(), start).unwrap());
    let begun = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..WAITING {
        let journal = journal.clone();
        tasks.spawn(async move {
            for _ in 0..200 {
                journal.append(Entry::Stop(StopEntry { reason: "a reason of some length".into() })).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    let took = begun.elapsed();
    println!("log, {WAITING} waiting at once");
    line("  append, wall time an entry", took.as_nanos() as f64 / (WAITING * 200) as f64);
    for rate in [1_000, 10_000] {
        paced(rate, &journal).await;
    }
    tokio::task::spawn_blocking(move || journal.close("drained")).await.unwrap();
}
