//! What is fuzzed. Each function takes any bytes and must return; what it may not let through it asserts.

use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use oncegate::audit::checkpoint::{Checkpoint, Proof, Tree};
use oncegate::audit::keys::PrivateKey;
use oncegate::audit::note::{self, Algorithm, Note, VerifierKey};
use oncegate::audit::reader::LogReader;
use oncegate::audit::receipt::SignedReceipt;
use oncegate::audit::tree::Resource;
use oncegate::audit::{AuditConfig, Entry, Journal, PolicyKeys, StartInfo, StopEntry};
use oncegate::catalog::{CaseSubject, Catalog, Fields};
use oncegate::cli::demo::numbers;
use oncegate::cli::pki::{self, PkiSettings};
use oncegate::clock::{Clock, Timestamp};
use oncegate::config::Config;
use oncegate::identity::mint::{MintRequest, SigningKey};
use oncegate::identity::{Basis, Caller, TokenVerifier};
use oncegate::policy::{Case, Given, Mode, Party, Policy, answers_subject, project, settle};
use prost::Message as _;
use prost_reflect::{DynamicMessage, Value};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tempfile::TempDir;

/// A mother whose number has an impossible division and a valid check digit.
fn mother() -> String {
    numbers::id_number(time::macros::date!(1995 - 03 - 04), 22)
}

/// The reference deployment, a caller, and the key that signs its tokens.
pub(crate) struct World {
    dir: TempDir,
    catalog: Arc<Catalog>,
    policy: Policy,
    tokens: TokenVerifier,
    caller: Caller,
    key: SigningKey,
    leaf: [u8; 32],
    now: Timestamp,
}

impl World {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let clock = Clock::system();
        let settings = PkiSettings::built_in().unwrap();
        pki::generate(&out, &settings, false, &clock, &oncegate::cli::audit_keys).unwrap();
        let text = std::fs::read_to_string("deploy/heshan/gateway.toml").unwrap();
        let file = dir.path().join("gateway.toml");
        std::fs::write(&file, text.replace("../../certs-dev/out", out.to_str().unwrap())).unwrap();
        let mut config = Config::load(&file).unwrap();
        config.policy.bundle = "deploy/heshan/policy".into();
        let policy = Policy::open(&config.policy.bundle).unwrap();
        let catalog = policy.catalog().clone();
        let registered = |code: &_| catalog.department(code).is_some();
        let tokens = TokenVerifier::load(&config.identity, &config.trust_domain, registered).unwrap();
        let leaf = std::fs::read(out.join("systems/ZS/platform.pem")).unwrap();
        let leaf = CertificateDer::from_pem_slice(&leaf).unwrap();
        let caller = Caller::from_verified_leaf(&leaf, &["ZS".parse().unwrap()], "heshan.gov.example").unwrap();
        let key = SigningKey::from_pkcs8_pem(&std::fs::read(out.join("tokens/platform.key")).unwrap()).unwrap();
        let leaf = *caller.leaf_sha256();
        Self { dir, catalog, policy, tokens, caller, key, leaf, now: clock.now() }
    }

    /// A good token.
    pub(crate) fn token(&self) -> String {
        let request = MintRequest {
            issuer: "https://token.platform.heshan.gov.example",
            trust_domain: "heshan.gov.example",
            caller: self.caller.id(),
            leaf_sha256: &self.leaf,
            officer: "window-3",
            token_id: "fuzz",
            issued_at: self.now,
            lifetime_s: 300,
            consumer: &"GA".parse().unwrap(),
            matter: "newborn_birth",
            case_id: &"HS-FUZZ-000001".parse().unwrap(),
            basis: Basis::StatutoryDuty,
            basis_reference: "户口登记条例 第七条",
            purpose: "出生登记",
            certificate_types: &[],
            subjects: None,
        };
        self.key.mint(&request).unwrap()
    }

    /// Its claims as JSON, which the target signs: mutations then get past the signature.
    pub(crate) fn unsigned(&self) -> String {
        let token = self.token();
        let claims = token.split('.').nth(1).unwrap();
        String::from_utf8(URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap()
    }

    /// Records of the type that is fuzzed.
    pub(crate) fn records(&self) -> Vec<Vec<u8>> {
        let message = self.catalog.certificate_type("birth_medical_certificate").unwrap().message.clone();
        let mut record = DynamicMessage::new(self.catalog.pool().get_message_by_name(&message).unwrap());
        for (field, value) in
            [("infant_name", "乌有安"), ("mother_id_no", mother().as_str()), ("birth_datetime", "2026-10-05T08:30")]
        {
            record.set_field_by_name(field, Value::String(value.into()));
        }
        record.set_field_by_name("birth_weight_g", Value::U32(3_250));
        vec![record.encode_to_vec(), Vec::new()]
    }

    /// A segment as a gateway writes it.
    pub(crate) async fn segment(&self) -> Vec<u8> {
        let config = self.audit(&self.dir.path().join("seed"));
        let journal = Journal::open(&config, Clock::system(), start()).unwrap();
        for _ in 0..3 {
            journal.append(Entry::Stop(StopEntry { reason: "seed".into() })).await.unwrap();
        }
        let closing = journal.clone();
        tokio::task::spawn_blocking(move || closing.close("drained")).await.unwrap();
        let mut bytes = std::fs::read(config.dir.join("0000000000.seg")).unwrap();
        let end = bytes.iter().rposition(|byte| *byte != 0).unwrap_or_default();
        bytes.truncate(end + 64);
        bytes
    }

    fn audit(&self, dir: &Path) -> AuditConfig {
        let out = self.dir.path().join("out/audit");
        let mut text = toml::Table::new();
        text.insert("dir".into(), dir.to_str().unwrap().into());
        text.insert("origin".into(), "heshan.gov.example/gw1".into());
        text.insert("signing_key".into(), out.join("log.key").to_str().unwrap().into());
        text.insert("preallocate_mib".into(), 1.into());
        let recipients = ["auditor.pub", "escrow.pub"].map(|name| out.join(name).to_str().unwrap().to_owned());
        text.insert("recipients".into(), recipients.to_vec().into());
        text.try_into().unwrap()
    }
}

fn start() -> StartInfo {
    StartInfo {
        gateway: "spiffe://heshan.gov.example/ZS/oncegate".into(),
        policy: [0; 32],
        trust: String::new(),
        policy_keys: PolicyKeys::default(),
        held: Vec::new(),
    }
}

fn subject(world: &World) -> oncegate::catalog::Subject {
    let of = |role: &str, name: &str, value: &str| CaseSubject {
        role: role.into(),
        attributes: vec![(name.into(), value.into())],
    };
    let child = of("child", "birth_date", "2026-10-05");
    let all = [child.clone(), of("mother", "id_no", &mother())];
    world.catalog.resolve(world.catalog.certificate_type("birth_medical_certificate").unwrap(), &child, &all).unwrap()
}

/// The case, open, with the mother in it.
fn case() -> Arc<Case> {
    let party = |role: &str, name: &str, value: &str| Party {
        role: role.into(),
        attributes: vec![(name.into(), value.into())],
    };
    let parties = vec![party("child", "birth_date", "2026-10-05"), party("mother", "id_no", &mother())];
    Arc::new(Case { open: true, region: String::new(), parties })
}

/// The projector lets nothing through but released leaves, whatever the record.
pub(crate) fn projector(world: &World, data: &[u8]) {
    let subject = subject(world);
    let kind: &Arc<_> = subject.certificate_type();
    let purpose = world.tokens.verify(&world.caller, &world.token_once(), world.now).unwrap();
    let all: Fields = (0..kind.leaves.len()).collect();
    let given = Given { case: Some(case()), consent: None };
    let permit = world.policy.decide(&world.caller, &purpose, &subject, Mode::Query, all, &given, world.now);
    assert!(permit.may_release());
    let Ok(settled) = settle(&permit, data) else { return };
    let Ok(projected) = project(&settled) else { return };
    assert!(projected.bytes.len() <= data.len() && settled.released().covers(projected.released));
    let message = world.catalog.pool().get_message_by_name(&kind.message).unwrap();
    let shown = DynamicMessage::decode(message, projected.bytes).expect("what leaves decodes");
    assert_eq!(shown.unknown_fields().count(), 0);
    for (field, _) in shown.fields() {
        assert!(settled.released().intersects(kind.expand(field.name()).unwrap()), "{}", field.name());
    }
}

impl World {
    /// The same token each time, so that it is verified once.
    fn token_once(&self) -> String {
        static TOKENS: std::sync::Mutex<Option<(u64, String)>> = std::sync::Mutex::new(None);
        let key = self.now.as_micros();
        let mut tokens = TOKENS.lock().unwrap();
        match tokens.as_ref() {
            Some((of, token)) if *of == key => token.clone(),
            _ => tokens.insert((key, self.token())).1.clone(),
        }
    }
}

/// A token is refused unless it is the good one; claims that a registered issuer signed are refused or mean what they say.
pub(crate) fn token(world: &World, data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(purpose) = world.tokens.verify(&world.caller, text, world.now) {
        assert_eq!(purpose.matter(), "newborn_birth");
    }
    if let Ok(claims) = serde_json::from_slice::<serde_json::Value>(data)
        && let Ok(token) = world.key.sign(&claims)
        && let Ok(purpose) = world.tokens.verify(&world.caller, &token, world.now)
    {
        assert!(world.tokens.may_speak_for(&world.caller).contains(purpose.consumer()));
        assert_eq!(claims["aud"].as_str().or(claims["aud"][0].as_str()), Some("spiffe://heshan.gov.example"));
    }
}

/// A log with any bytes in its segment is read or refused, and opened for writing or refused; what was opened reads back.
pub(crate) fn journal(world: &World, data: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let config = world.audit(&dir.path().join("log"));
    std::fs::create_dir(&config.dir).unwrap();
    std::fs::write(config.dir.join("origin"), &config.origin).unwrap();
    std::fs::write(config.dir.join("0000000000.seg"), data).unwrap();
    let key = || PrivateKey::load(&world.dir.path().join("out/audit/auditor.key")).unwrap();
    if let Ok(reader) = LogReader::open(&config.dir, key()) {
        reader.take_while(Result::is_ok).for_each(drop);
    }
    if let Ok(journal) = Journal::open(&config, Clock::system(), start()) {
        journal.close("drained");
        let mut entries = LogReader::open(&config.dir, key()).expect("a log that was opened can be read");
        assert!(entries.all(|entry| entry.is_ok()), "every entry of a log that was opened is whole");
    }
}

/// Attributes of a case become keys or a refusal; a provider's record is the subject's or nobody's.
pub(crate) fn mapping(world: &World, data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut parts = text.split(['\u{1}', '\n', ' ', '"']);
    let mut attributes = Vec::new();
    for name in ["id_no", "name", "birth_date", "uscc", "birth_certificate_no"] {
        if let Some(value) = parts.next() {
            attributes.push((name.to_owned(), value.to_owned()));
        }
    }
    for role in ["child", "mother", "entity", &text] {
        let about = CaseSubject { role: role.to_owned(), attributes: attributes.clone() };
        let all = [about.clone()];
        if world.catalog.check_subjects(&all).is_err() {
            continue;
        }
        for kind in world.catalog.certificate_types() {
            if let Ok(subject) = world.catalog.resolve(kind, &about, &all) {
                assert!(!subject.keys().is_empty() && !subject.holder().is_empty());
                let _ = answers_subject(&subject, data, &[]);
            }
        }
    }
    let subject = subject(world);
    if answers_subject(&subject, data, &[]) {
        let mother = mother();
        assert!(data.windows(mother.len()).any(|window| window.eq_ignore_ascii_case(mother.as_bytes())));
    }
}

/// A descriptor set is a catalog or a list of faults.
pub(crate) fn types(data: &[u8]) {
    let _ = Catalog::from_parts(&[data], Vec::new(), Vec::new());
}

/// Notes, checkpoints, proofs, policies, keys and receipts come from anywhere: what is read writes itself as it was, and
/// nothing that was changed is believed.
pub(crate) fn notes(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(note) = text.parse::<Note>() {
        assert_eq!(note.to_string().parse::<Note>().unwrap(), note);
        let _ = Checkpoint::of(&note);
    }
    if let Ok(proof) = text.parse::<Proof>() {
        assert_eq!(proof.to_string().parse::<Proof>().unwrap(), proof);
    }
    if let Ok(key) = text.parse::<VerifierKey>() {
        assert_eq!(key.to_string(), text);
    }
    if let Some(resource) = Resource::of_path(text) {
        assert_eq!(resource.path(), text);
    }
    let _ = text.parse::<oncegate::audit::checkpoint::Policy>();
    let _ = SignedReceipt::parse(text);
}

/// One of each.
pub(crate) fn seeds_of_notes() -> Vec<Vec<u8>> {
    let log = note::SigningKey::generate("heshan.gov.example/gw1", Algorithm::Ed25519).unwrap();
    let witness = note::SigningKey::generate("w", Algorithm::Cosignature).unwrap();
    let tree = Tree { size: 3, root: [7; 32] };
    let mut note = Checkpoint { origin: "heshan.gov.example/gw1".into(), tree }.sign(&[&log], Clock::system().now());
    note.add(witness.sign(note.text(), Clock::system().now()));
    let proof = Proof { index: 1, hashes: vec![[1; 32], [2; 32]], note: note.clone() };
    let policy = format!("log {}\nwitness w {}\ngroup g any w\nquorum g\n", log.verifier(), witness.verifier());
    let texts = [note.to_string(), proof.to_string(), policy, log.verifier().to_string(), "tile/0/x001/234.p/5".into()];
    texts.into_iter().map(String::into_bytes).collect()
}
