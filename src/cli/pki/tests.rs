//! What is written fits the rest of the house.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use clap::{Command, FromArgMatches as _};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tonic::body::Body;

use super::*;
use crate::certs::upstream::client_channel;
use crate::certs::{ClientCaConfig, Connection, Gate, Generation, HardeningConfig, TlsConfig, UpstreamConfig, serve};
use crate::identity::Caller;

const DOMAIN: &str = "heshan.gov.example";

#[expect(clippy::unnecessary_wraps, reason = "of the form that `generate` takes")]
fn no_audit_keys(dir: &Path, _domain: &str) -> io::Result<()> {
    assert!(dir.ends_with("audit") && dir.is_dir());
    Ok(())
}

/// Three departments, so that the tests are quick.
fn small() -> PkiSettings {
    let mut settings = PkiSettings::built_in().unwrap();
    settings.departments.retain(|department| ["GA", "WJ", "ZS"].contains(&department.code.as_str()));
    settings
}

fn make(out: &Path) -> PkiSummary {
    generate(out, &small(), false, &Clock::system(), &no_audit_keys).unwrap()
}

fn files(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in root.read_dir().unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

#[test]
fn the_built_in_settings_name_every_department() {
    let settings = PkiSettings::built_in().unwrap();
    let codes: Vec<_> = settings.departments.iter().map(|department| department.code.as_str()).collect();
    let all = "WJ JK GA MZ CL SJ TY ZR ZJ JY RS YB SW GJJ FG JT ZS GSQY GDQY RQQY TXQY GBQY STYH CKYH";
    assert_eq!(codes, all.split(' ').collect::<Vec<_>>());
    assert!(settings.departments.iter().all(|department| !department.systems.is_empty()));
    let with_sources = settings.departments.iter().filter(|department| !department.sources.is_empty());
    let what = "whoever provides a certificate type, the platform with its registers, the witness";
    assert_eq!(with_sources.count(), 15, "{what}");
}

#[test]
fn a_request_gets_the_name_that_the_ca_gives() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    make(&out);
    let key = rcgen::KeyPair::generate().unwrap();
    let mut asked = rcgen::CertificateParams::default();
    asked.subject_alt_names = vec![rcgen::SanType::URI("spiffe://heshan.gov.example/ZS/platform".try_into().unwrap())];
    let (csr, cert) = (dir.path().join("my.csr"), dir.path().join("my.pem"));
    std::fs::write(&csr, asked.serialize_request(&key).unwrap().pem().unwrap()).unwrap();
    let signed = |department: &str, system: &str| {
        let args = SignArgs {
            csr: csr.clone(),
            department: department.parse().unwrap(),
            system: system.into(),
            source: false,
            out: cert.clone(),
            pki: out.clone(),
        };
        sign(&args, &mut Vec::new())
    };
    signed("GA", "my-system").unwrap();
    let leaf = CertificateDer::from_pem_slice(&std::fs::read(&cert).unwrap()).unwrap();
    let caller = Caller::from_verified_leaf(&leaf, &["GA".parse().unwrap()], "heshan.gov.example").unwrap();
    assert_eq!(caller.id().as_str(), "spiffe://heshan.gov.example/GA/my-system");
    for (department, system) in [("GA", "My System"), ("GA", ""), ("GA", "a/b"), ("XX", "my-system")] {
        assert!(signed(department, system).is_err(), "{department}/{system}");
    }
    for (algorithm, fits) in
        [(&rcgen::PKCS_ED25519, true), (&rcgen::PKCS_ECDSA_P384_SHA384, false), (&rcgen::PKCS_ECDSA_P521_SHA512, false)]
    {
        let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
        std::fs::write(&csr, asked.serialize_request(&key).unwrap().pem().unwrap()).unwrap();
        assert_eq!(signed("GA", "my-system").is_ok(), fits, "{algorithm:?}");
    }

    let (public, set) = (dir.path().join("my.pub"), dir.path().join("my.jwks.json"));
    std::fs::write(&public, key.public_key_pem()).unwrap();
    let args = JwksArgs { public_key: public.clone(), out: set.clone() };
    jwks(&args, &mut Vec::new()).unwrap();
    let keys: serde_json::Value = serde_json::from_slice(&std::fs::read(&set).unwrap()).unwrap();
    assert_eq!((keys["keys"][0]["crv"].as_str(), keys["keys"].as_array().unwrap().len()), (Some("P-256"), 1));
    std::fs::write(&public, "no key").unwrap();
    assert!(jwks(&args, &mut Vec::new()).is_err());
}

#[test]
fn everything_is_there_and_private_files_are_private() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let summary = make(&out);
    // Systems: GA, WJ, three of ZS; sources: GA, WJ, ZS; the gateway's two.
    assert_eq!((summary.cas, summary.certificates, summary.token_keys), (4, 10, 4));
    let files = files(&out);
    // A certificate or JWK Set for each key, subjects.key, the marker.
    assert_eq!(files.len(), 2 * (4 + 10 + 4) + 2, "{files:#?}");
    for file in &files {
        let private = file.extension().is_some_and(|extension| extension == "key");
        let mode = file.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, if private { 0o600 } else { 0o644 }, "{}", file.display());
    }
    for name in ["systems/GA/household.pem", "sources/WJ/birth.key", "systems/ZS/platform.pem", "tokens/platform.key"] {
        assert!(out.join(name).is_file(), "{name}");
    }
    assert_eq!(hex::decode(std::fs::read_to_string(out.join("subjects.key")).unwrap().trim()).unwrap().len(), 32);
}

#[test]
fn a_complete_directory_is_kept_an_incomplete_one_made_anew_a_foreign_one_never_touched() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    make(&out);
    let ca = || std::fs::read(out.join("ca/GA.pem")).unwrap();
    let first = ca();
    let again = |force| generate(&out, &small(), force, &Clock::system(), &no_audit_keys);
    assert!(matches!(again(false), Err(PkiError::Exists(_))));
    assert_eq!(ca(), first);

    std::fs::write(out.join("systems/GA/left-over.pem"), "").unwrap();
    std::fs::write(out.join("notes.txt"), "mine").unwrap();
    again(true).unwrap();
    assert_ne!(ca(), first);
    assert!(!out.join("systems/GA/left-over.pem").exists());
    assert!(out.join("notes.txt").exists(), "only what this command wrote is removed");

    let second = ca();
    let failing = |_: &Path, _: &str| Err(io::Error::other("no keys today"));
    assert!(generate(&out, &small(), true, &Clock::system(), &failing).is_err());
    assert_ne!(ca(), second, "the failed run got that far");
    again(false).expect("half a directory is made anew without force");
    assert!(matches!(again(false), Err(PkiError::Exists(_))));

    let foreign = dir.path().join("foreign");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("thesis.txt"), "years of work").unwrap();
    let refused = generate(&foreign, &small(), true, &Clock::system(), &no_audit_keys);
    assert!(matches!(refused, Err(PkiError::NotOurs(_))));
    assert_eq!(files(&foreign).len(), 1);
}

#[test]
fn a_token_signed_with_a_key_is_verified_with_its_jwk_set() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    make(&out);
    let jwks = std::fs::read(out.join("tokens/GA.jwks.json")).unwrap();
    let jwks: jsonwebtoken::jwk::JwkSet = serde_json::from_slice(&jwks).unwrap();
    let jwk = &jwks.keys[0];
    assert_eq!(
        jwk.common.key_id.as_deref(),
        Some(jwk.thumbprint(jsonwebtoken::jwk::ThumbprintHash::SHA256).unwrap().as_str())
    );
    let pem = std::fs::read(out.join("tokens/GA.key")).unwrap();
    let claims = serde_json::json!({ "exp": Clock::system().now().as_secs() + 60 });
    let key = EncodingKey::from_ec_pem(&pem).unwrap();
    let token = jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &key).unwrap();
    let verify = |jwk| {
        let key = DecodingKey::from_jwk(jwk).unwrap();
        jsonwebtoken::decode::<serde_json::Value>(&token, &key, &Validation::new(Algorithm::ES256))
    };
    verify(jwk).unwrap();
    let other = std::fs::read(out.join("tokens/WJ.jwks.json")).unwrap();
    let other: jsonwebtoken::jwk::JwkSet = serde_json::from_slice(&other).unwrap();
    assert!(verify(&other.keys[0]).is_err());
}

/// The caller's identity as the body of the answer's header.
async fn who(request: http::Request<Body>) -> Result<http::Response<Body>, std::convert::Infallible> {
    let caller = request.extensions().get::<Arc<Connection>>().unwrap().caller().id().to_string();
    Ok(http::Response::builder().header("x-caller", caller).body(Body::empty()).unwrap())
}

/// Serves with `certificate` and lets `client` call; returns who the server saw.
async fn call(out: &Path, server: &str, server_ca: &str, server_id: &str, client: &str, client_ca: &str) -> String {
    let clock = Clock::system();
    let department = client_ca.parse().unwrap();
    let tls = TlsConfig {
        certificate: out.join(format!("{server}.pem")),
        key: out.join(format!("{server}.key")),
        client_cas: vec![ClientCaConfig {
            file: out.join(format!("ca/{client_ca}.pem")),
            departments: vec![department],
        }],
    };
    let generation = Generation::load(1, &tls, DOMAIN, &clock).unwrap();
    assert_eq!(generation.server_id().as_str(), server_id);
    let gate = Gate::new(generation, HardeningConfig::default(), clock.clone()).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("https://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn(serve(listener, gate, tower::service_fn(who), std::future::pending()));
    let upstream = UpstreamConfig::new(
        address,
        out.join(format!("ca/{server_ca}.pem")),
        out.join(format!("{client}.pem")),
        out.join(format!("{client}.key")),
        server_id.parse().unwrap(),
    );
    let channel = client_channel(&upstream, &clock).unwrap();
    let request = http::Request::builder().uri("/x").body(Body::empty()).unwrap();
    let answer = tower::ServiceExt::oneshot(channel, request).await.unwrap();
    serving.abort();
    answer.headers()["x-caller"].to_str().unwrap().to_owned()
}

#[tokio::test]
async fn callers_gateway_and_sources_accept_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    make(&out);
    let id = |path: &str| format!("spiffe://{DOMAIN}/{path}");
    let gateway = id("ZS/oncegate");
    let seen = call(&out, "gateway/server", "gateway", &gateway, "systems/GA/household", "GA").await;
    assert_eq!(seen, id("GA/household"));
    let seen = call(&out, "gateway/server", "gateway", &gateway, "systems/ZS/platform", "ZS").await;
    assert_eq!(seen, id("ZS/platform"));
    let seen = call(&out, "sources/WJ/birth", "WJ", &id("WJ/birth"), "gateway/client", "ZS").await;
    assert_eq!(seen, gateway);
}

#[test]
fn odd_settings_are_refused() {
    let text = include_str!("../../../certs-dev/pki.toml");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pki.toml");
    for (from, to, word) in [
        ("\"maternity\"", "\"../../etc\"", "SPIFFE ID"),
        ("code = \"JK\"", "code = \"WJ\"", "twice"),
        ("sources = [\"birth\"]", "sources = [\"maternity\"]", "twice"),
        ("code = \"JK\"", "code = \"jk\"", "department code"),
        ("leaf_days = 397", "leaf_days = 4000", "leaf_days"),
        ("department = \"ZS\"", "department = \"XX\"", "not among"),
        ("issuer = \"platform\"", "issuer = \"a/b\"", "SPIFFE ID"),
        ("ca_days = 3650", "ca_days = 3650\nunknown = 1", "unknown"),
    ] {
        assert!(text.contains(from), "{from}");
        std::fs::write(&file, text.replacen(from, to, 1)).unwrap();
        let error = PkiSettings::load(&file).unwrap_err().to_string();
        assert!(error.contains(word), "{to}: {error}");
    }
}

#[test]
fn the_command_writes_where_it_is_told_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let settings = dir.path().join("pki.toml");
    let text = "trust_domain = \"a.example\"\nca_days = 2\nleaf_days = 1\nbackdate_minutes = 0\n\
                gateway = { department = \"ZS\", system = \"oncegate\" }\nplatform = { issuer = \"platform\" }\n\
                departments = [{ code = \"ZS\", systems = [\"platform\"] }]";
    std::fs::write(&settings, text).unwrap();
    let command = PkiArgs::augment_args(Command::new("pki"));
    let arguments = ["pki", "init", "--out", out.to_str().unwrap(), "--settings", settings.to_str().unwrap()];
    let args = PkiArgs::from_arg_matches(&command.get_matches_from(arguments)).unwrap();
    let mut said = Vec::new();
    run(&args, &no_audit_keys, &mut said).unwrap();
    let said = String::from_utf8(said).unwrap();
    assert!(said.contains("2 CAs, 3 certificates, 2 token keys"), "{said}");
    assert!(said.contains("development only"), "{said}");
    assert!(out.join("gateway/client.pem").is_file());
}
