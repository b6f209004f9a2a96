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
use crate::certs::{
    Against, ClientCa, Connection, Contents, Gate, Generation, HardeningConfig, Opened, Terms, TrustConfig,
    UpstreamConfig, serve,
};
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

/// Runs `oncegate pki` with these words.
fn command(words: &[&str]) -> Result<String, PkiError> {
    let parser = PkiArgs::augment_args(Command::new("pki"));
    let arguments = std::iter::once("pki").chain(words.iter().copied());
    let matches = parser.try_get_matches_from(arguments).map_err(|error| PkiError::Name(error.to_string()))?;
    let mut said = Vec::new();
    run(&PkiArgs::from_arg_matches(&matches).unwrap(), &no_audit_keys, &mut said)?;
    Ok(String::from_utf8(said).unwrap())
}

fn files(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in root.read_dir().unwrap() {
        let path = entry.unwrap().path();
        if path.is_symlink() {
            // What it leads to is found where it is.
        } else if path.is_dir() {
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
        let (csr, cert, out) = (csr.to_str().unwrap(), cert.to_str().unwrap(), out.to_str().unwrap());
        let named = ["--department", department, "--system", system, "--pki", out];
        command(&[&["sign", "--csr", csr, "--out", cert], named.as_slice()].concat())
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
    let key_set = || command(&["jwks", "--public-key", public.to_str().unwrap(), "--out", set.to_str().unwrap()]);
    key_set().unwrap();
    let keys: serde_json::Value = serde_json::from_slice(&std::fs::read(&set).unwrap()).unwrap();
    assert_eq!((keys["keys"][0]["crv"].as_str(), keys["keys"].as_array().unwrap().len()), (Some("P-256"), 1));
    std::fs::write(&public, "no key").unwrap();
    assert!(key_set().is_err());
}

#[test]
fn a_ca_revokes_and_gets_a_successor() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    make(&out);
    let pki = out.to_str().unwrap();
    let household = out.join("systems/GA/household.pem");
    let list = dir.path().join("ga.crl");
    let revoke = ["crl", "--ca", "GA", "--revoke", household.to_str().unwrap(), "--out", list.to_str().unwrap()];
    let said = command(&[&revoke, ["--pki", pki].as_slice()].concat()).unwrap();
    assert!(said.contains("revocation list 2 of GA") && said.ends_with("1 revoked\n"), "{said}");
    assert_eq!(std::fs::read(&list).unwrap(), std::fs::read(out.join("ca/GA.crl")).unwrap());
    let said = command(&["crl", "--ca", "GA", "--pki", pki]).unwrap();
    assert!(said.contains("revocation list 3 of GA") && said.contains("1 revoked"), "what is revoked stays: {said}");

    command(&["ca", "--name", "GA-2", "--pki", pki]).unwrap();
    assert!(command(&["ca", "--name", "GA-2", "--pki", pki]).is_err(), "it is not thrown away unasked");
    assert!(command(&["ca", "--name", "../GA", "--pki", pki]).is_err());
    let mode = std::fs::metadata(out.join("ca/GA-2.key")).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
}

#[test]
fn the_trust_directory_serves_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    make(&out);
    let trust = TrustConfig::new(out.join("trust"));
    let opened = Opened::open(&trust, DOMAIN, &Clock::system()).unwrap();
    assert_eq!((opened.generation.number(), opened.generation.client_cas().count()), (1, 3));
    command(&["init", "--expired", "--force", "--out", out.to_str().unwrap()]).unwrap();
    let opened = Opened::open(&trust, DOMAIN, &Clock::system()).expect("a gateway starts with everything expired");
    let now = Clock::system().now();
    assert!(opened.generation.expiries().iter().all(|expiry| expiry.at < now));
}

#[test]
fn everything_is_there_and_private_files_are_private() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let summary = make(&out);
    // Systems: GA, WJ, three of ZS; sources: GA, WJ, ZS; the gateway's two.
    assert_eq!((summary.cas, summary.certificates, summary.token_keys), (4, 10, 4));
    let files = files(&out);
    // A certificate or JWK Set for each key, five of them for policy, a list for each CA, subjects.key, the marker; in the trust directory the lock,
    // the manifest, both of the gateway's identities, its CA, and certificate and list of three departments' CAs.
    assert_eq!(files.len(), 2 * (4 + 10 + 4 + 5) + 4 + 2 + (1 + 1 + 4 + 1 + 2 * 3), "{files:#?}");
    for file in &files {
        let private = file.extension().is_some_and(|extension| extension == "key") || file.ends_with("trust/lock");
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
    let read = |name: String| Some(std::fs::read(out.join(name)).unwrap());
    let mut contents = Contents::default();
    contents.set("server.pem", read(format!("{server}.pem")));
    contents.set("server.key", read(format!("{server}.key")));
    contents.set("server_ca.pem", read(format!("ca/{server_ca}.pem")));
    contents.set(format!("{client_ca}.pem"), read(format!("ca/{client_ca}.pem")));
    contents.set(format!("{client_ca}.crl"), read(format!("ca/{client_ca}.crl")));
    contents.manifest.client_cas =
        vec![ClientCa { name: client_ca.to_owned(), departments: vec![client_ca.to_owned()] }];
    let terms = Terms { trust_domain: DOMAIN.into(), require_crls: true, crl_grace: Duration::ZERO };
    let generation = Generation::load(1, &contents, out, &terms, Against::Nothing, &clock).unwrap();
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
    let said = command(&["init", "--out", out.to_str().unwrap(), "--settings", settings.to_str().unwrap()]).unwrap();
    assert!(said.contains("2 CAs, 3 certificates, 2 token keys"), "{said}");
    assert!(said.contains("development only"), "{said}");
    assert!(out.join("gateway/client.pem").is_file());
}
