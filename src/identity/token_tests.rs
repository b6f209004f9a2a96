//! Every rule about tokens has a token that breaks it.

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_ED25519};
use serde_json::json;

use super::*;
use crate::identity::mint::SigningKey;
use crate::identity::testing::{self, DOMAIN, ISSUER, PLATFORM};

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

/// One caller, one key, one verifier.
struct Desk {
    caller: Caller,
    key: SigningKey,
    verifier: TokenVerifier,
}

impl Desk {
    fn new(algorithm: &'static rcgen::SignatureAlgorithm) -> Self {
        let key = testing::signing_key(algorithm);
        let verifier = testing::verifier(&key);
        Self { caller: testing::caller("spiffe://heshan.gov.example/GA/household"), key, verifier }
    }

    /// Claims of a good token.
    fn claims(&self) -> Value {
        let (consumer, case) = ("GA".parse().unwrap(), "HS-2026-000123".parse().unwrap());
        testing::request(&self.caller, &consumer, &case, NOW).claims()
    }

    fn verify(&self, token: &str) -> Result<Arc<Purpose>, TokenError> {
        self.verifier.verify(&self.caller, token, NOW)
    }

    fn verify_claims(&self, claims: &Value) -> Result<Arc<Purpose>, TokenError> {
        self.verify(&self.key.sign(claims).unwrap())
    }
}

/// `text` with `from` in its decoded JSON part replaced, and not signed again.
fn tampered(token: &str, part: usize, from: &str, to: &str) -> String {
    let mut parts: Vec<String> = token.split('.').map(str::to_owned).collect();
    let json = String::from_utf8(URL_SAFE_NO_PAD.decode(&parts[part]).unwrap()).unwrap();
    assert!(json.contains(from), "{json}");
    parts[part] = URL_SAFE_NO_PAD.encode(json.replacen(from, to, 1));
    parts.join(".")
}

/// A token of raw JSON texts, signed well: for what a serializer can't write.
fn signed_raw(key: &SigningKey, header: &str, payload: &str) -> String {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
    let signature = key.signature(message.as_bytes());
    format!("{message}.{signature}")
}

fn header(key: &SigningKey, extra: &str) -> String {
    format!(r#"{{"typ":"at+jwt","alg":"ES256","kid":"{}"{extra}}}"#, key.kid())
}

#[test]
fn a_good_token_of_either_algorithm_gives_its_purpose() {
    for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ED25519] {
        let desk = Desk::new(algorithm);
        let purpose = desk.verify_claims(&desk.claims()).unwrap();
        assert_eq!(purpose.consumer().as_str(), "GA");
        assert_eq!((purpose.matter(), purpose.case_id().as_str()), ("newborn_birth", "HS-2026-000123"));
        assert_eq!((purpose.basis(), purpose.basis_reference()), (Basis::StatutoryDuty, "户口登记条例 第七条"));
        assert_eq!((purpose.text(), purpose.officer()), ("新生儿入户", "officer-0417"));
        assert_eq!((purpose.issuer(), purpose.token_id()), (ISSUER, "01J0-token"));
        assert_eq!(purpose.certificate_types(), None);
        assert!(purpose.covers_subject("anybody"));
        assert_eq!(purpose.expires_at(), NOW.plus(Duration::from_mins(10)));
    }
}

#[test]
fn an_audience_of_one_in_a_list_and_the_long_type_are_good() {
    let desk = Desk::new(&PKCS_ECDSA_P256_SHA256);
    let mut claims = desk.claims();
    claims["aud"] = json!(["spiffe://heshan.gov.example"]);
    desk.verify_claims(&claims).unwrap();
    let long = header(&desk.key, "").replace("at+jwt", "application/at+jwt");
    desk.verify(&signed_raw(&desk.key, &long, &claims.to_string())).unwrap();
}

#[test]
fn each_broken_claim_is_refused() {
    let desk = Desk::new(&PKCS_ECDSA_P256_SHA256);
    let malformed = |claim| TokenError::Malformed { claim };
    let time = |claim| TokenError::TimeInvalid { claim };
    let now = NOW.as_secs();
    let tag = URL_SAFE_NO_PAD.encode([7; 32]);
    let details = "/authorization_details/0";
    let cases: Vec<(&str, Value, TokenError)> = vec![
        ("/iss", Value::Null, malformed("iss")),
        ("/iss", json!("https://other.example"), TokenError::Untrusted),
        ("/iss", json!([ISSUER]), malformed("iss")),
        ("/sub", Value::Null, malformed("sub")),
        ("/sub", json!(""), malformed("sub")),
        ("/sub", json!("x".repeat(129)), malformed("sub")),
        ("/sub", json!("a\nb"), malformed("sub")),
        ("/sub", json!("a\u{202e}b"), malformed("sub")),
        ("/sub", json!(17), malformed("sub")),
        ("/jti", Value::Null, malformed("jti")),
        ("/jti", json!("x".repeat(129)), malformed("jti")),
        ("/jti", json!("a\0"), malformed("jti")),
        ("/aud", Value::Null, malformed("aud")),
        ("/aud", json!("spiffe://other.gov.example"), TokenError::AudienceMismatch),
        ("/aud", json!("spiffe://heshan.gov.example/"), TokenError::AudienceMismatch),
        ("/aud", json!([]), TokenError::AudienceMismatch),
        ("/aud", json!(["spiffe://heshan.gov.example", "spiffe://b.example"]), TokenError::AudienceMismatch),
        ("/iat", Value::Null, malformed("iat")),
        ("/iat", json!(now + 11), time("iat")),
        ("/iat", json!(1.5), malformed("iat")),
        ("/iat", json!(-1), malformed("iat")),
        ("/iat", json!(now - 1), time("exp")),
        ("/nbf", Value::Null, malformed("nbf")),
        ("/nbf", json!(now + 11), time("nbf")),
        ("/nbf", json!(now + 600), time("exp")),
        ("/exp", Value::Null, malformed("exp")),
        ("/exp", json!(now.to_string()), malformed("exp")),
        ("/exp", json!(now + 601), time("exp")),
        ("/exp", json!(u64::MAX), malformed("exp")),
        ("/exp", json!(now), time("exp")),
        ("/client_id", Value::Null, malformed("client_id")),
        ("/client_id", json!("spiffe://heshan.gov.example/GA/other"), TokenError::NotBound),
        ("/cnf", Value::Null, malformed("cnf")),
        ("/cnf", json!({}), malformed("cnf")),
        ("/cnf", json!({ "jkt": tag }), malformed("cnf")),
        ("/cnf", json!({ "x5t#S256": "AAAA" }), malformed("cnf")),
        ("/cnf", json!({ "x5t#S256": format!("{tag}=") }), malformed("cnf")),
        ("/cnf", json!({ "x5t#S256": tag }), TokenError::NotBound),
        ("/cnf/jkt", json!("x"), malformed("cnf")),
        ("/authorization_details", Value::Null, malformed("authorization_details")),
        ("/authorization_details", json!([]), malformed("authorization_details")),
        ("/authorization_details", json!({}), malformed("authorization_details")),
        ("/authorization_details", json!(["x"]), malformed("authorization_details")),
        (details, json!({}), malformed("authorization_details")),
        ("/authorization_details/0/type", json!("payment"), malformed("authorization_details")),
        ("/authorization_details/0/fields", json!(["name"]), malformed("authorization_details")),
        ("/authorization_details/0/matter", Value::Null, malformed("matter")),
        ("/authorization_details/0/matter", json!("Newborn Birth"), malformed("matter")),
        ("/authorization_details/0/matter", json!("x".repeat(65)), malformed("matter")),
        ("/authorization_details/0/case", Value::Null, malformed("case")),
        ("/authorization_details/0/case", json!("short"), malformed("case")),
        ("/authorization_details/0/consumer", Value::Null, malformed("consumer")),
        ("/authorization_details/0/consumer", json!("ga"), malformed("consumer")),
        ("/authorization_details/0/legal_basis", Value::Null, malformed("legal_basis")),
        ("/authorization_details/0/legal_basis", json!("CURIOSITY"), malformed("legal_basis")),
        ("/authorization_details/0/legal_basis_reference", json!(""), malformed("legal_basis_reference")),
        ("/authorization_details/0/legal_basis_reference", json!("条".repeat(201)), malformed("legal_basis_reference")),
        ("/authorization_details/0/purpose", Value::Null, malformed("purpose")),
        ("/authorization_details/0/purpose", json!("用".repeat(201)), malformed("purpose")),
        ("/authorization_details/0/purpose", json!("a\r\nb"), malformed("purpose")),
        ("/authorization_details/0/certificate_types", json!([]), malformed("certificate_types")),
        ("/authorization_details/0/certificate_types", json!([1]), malformed("certificate_types")),
        ("/authorization_details/0/certificate_types", json!(["*"]), malformed("certificate_types")),
        ("/authorization_details/0/certificate_types", json!(vec!["a"; 65]), malformed("certificate_types")),
        ("/authorization_details/0/subjects", json!([]), malformed("subjects")),
        ("/authorization_details/0/subjects", json!(["11010519491231002X"]), malformed("subjects")),
        ("/authorization_details/0/subjects", json!(vec![tag; 17]), malformed("subjects")),
    ];
    for (place, value, expected) in cases {
        let mut claims = desk.claims();
        let (parent, member) = place.rsplit_once('/').unwrap();
        let parent = claims.pointer_mut(parent).unwrap();
        match parent {
            Value::Object(object) if value.is_null() => drop(object.remove(member)),
            Value::Object(object) => drop(object.insert(member.into(), value.clone())),
            _ => parent[member.parse::<usize>().unwrap()] = value.clone(),
        }
        assert_eq!(desk.verify_claims(&claims).err(), Some(expected), "{place} = {value}");
    }
}

#[test]
fn texts_may_be_as_long_as_their_bound_and_clocks_may_differ_by_the_leeway() {
    let desk = Desk::new(&PKCS_ECDSA_P256_SHA256);
    let mut claims = desk.claims();
    claims["sub"] = json!("员".repeat(128));
    claims["authorization_details"][0]["purpose"] = json!("用".repeat(200));
    for claim in ["iat", "nbf", "exp"] {
        claims[claim] = json!(claims[claim].as_u64().unwrap() + 10);
    }
    desk.verify_claims(&claims).unwrap();
    for claim in ["iat", "nbf", "exp"] {
        claims[claim] = json!(claims[claim].as_u64().unwrap() - 619);
    }
    desk.verify_claims(&claims).unwrap();
    for claim in ["iat", "nbf", "exp"] {
        claims[claim] = json!(claims[claim].as_u64().unwrap() - 1);
    }
    assert_eq!(desk.verify_claims(&claims).unwrap_err(), TokenError::Expired);
}

#[test]
fn consent_needs_a_reference_and_duty_does_not() {
    let desk = Desk::new(&PKCS_ECDSA_P256_SHA256);
    let mut claims = desk.claims();
    let details = claims.pointer_mut("/authorization_details/0").unwrap().as_object_mut().unwrap();
    details.remove("legal_basis_reference");
    assert_eq!(desk.verify_claims(&claims).unwrap().basis_reference(), "");
    claims["authorization_details"][0]["legal_basis"] = json!("CONSENT");
    let missing = TokenError::Malformed { claim: "legal_basis_reference" };
    assert_eq!(desk.verify_claims(&claims).unwrap_err(), missing);
    claims["authorization_details"][0]["legal_basis_reference"] = json!("同意书 2026-17");
    let purpose = desk.verify_claims(&claims).unwrap();
    assert_eq!((purpose.basis(), purpose.basis_reference()), (Basis::Consent, "同意书 2026-17"));
}

#[test]
fn headers_that_we_do_not_understand_are_refused() {
    let desk = Desk::new(&PKCS_ECDSA_P256_SHA256);
    let payload = desk.claims().to_string();
    let good = header(&desk.key, "");
    desk.verify(&signed_raw(&desk.key, &good, &payload)).unwrap();
    let malformed = |claim| TokenError::Malformed { claim };
    for (odd, expected) in [
        (header(&desk.key, r#","crit":["exp"]"#), malformed("crit")),
        (header(&desk.key, r#","crit":["b64"],"b64":false"#), malformed("crit")),
        (header(&desk.key, r#","crit":[]"#), malformed("crit")),
        (header(&desk.key, r#","crit":null"#), malformed("crit")),
        (header(&desk.key, r#","kid":"other""#), malformed("header")),
        (good.replace("at+jwt", "JWT"), malformed("typ")),
        (good.replace("at+jwt", "AT+JWT"), malformed("typ")),
        (good.replace(r#""typ":"at+jwt","#, ""), malformed("typ")),
        (good.replace(&desk.key.kid(), "other"), TokenError::Untrusted),
        (good.replace(&format!(r#","kid":"{}""#, desk.key.kid()), ""), malformed("kid")),
        (good.replace("ES256", "EdDSA"), TokenError::Untrusted),
        (good.replace("ES256", "ES384"), TokenError::Untrusted),
        (good.replace("ES256", "HS256"), TokenError::Untrusted),
        ("[]".into(), malformed("header")),
        (String::new(), malformed("header")),
    ] {
        let token = signed_raw(&desk.key, &odd, &payload);
        assert_eq!(desk.verify(&token).err(), Some(expected), "{odd}");
    }
    for none in ["none", "None", "NONE"] {
        let token = signed_raw(&desk.key, &good.replace("ES256", none), &payload);
        let unsigned = format!("{}.", token.rsplit_once('.').unwrap().0);
        assert!(desk.verify(&token).is_err() && desk.verify(&unsigned).is_err(), "{none}");
    }
}

#[test]
fn a_member_that_stands_twice_is_refused() {
    let desk = Desk::new(&PKCS_ECDSA_P256_SHA256);
    let payload = desk.claims().to_string();
    let details = desk.claims()["authorization_details"].to_string();
    let doubled = payload.replacen('{', &format!(r#"{{"authorization_details":{details},"#), 1);
    let inside = payload.replacen(r#""matter":"#, r#""matter":"marriage","matter":"#, 1);
    for twice in [doubled, inside] {
        let error = desk.verify(&signed_raw(&desk.key, &header(&desk.key, ""), &twice)).unwrap_err();
        assert_eq!(error, TokenError::Malformed { claim: "payload" }, "{twice}");
    }
    let mut two = desk.claims();
    let second = two["authorization_details"][0].clone();
    two["authorization_details"].as_array_mut().unwrap().push(second);
    assert_eq!(desk.verify_claims(&two).unwrap_err(), TokenError::Malformed { claim: "authorization_details" });
}

#[test]
fn forged_tokens_are_refused() {
    for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ED25519] {
        let desk = Desk::new(algorithm);
        let token = desk.key.sign(&desk.claims()).unwrap();
        // A public key as the secret of an HMAC, in the forms that a careless library would take it.
        let jwk = desk.key.jwks()["keys"][0].clone();
        let mut point = URL_SAFE_NO_PAD.decode(jwk["x"].as_str().unwrap()).unwrap();
        let x_alone = point.clone();
        if let Some(y) = jwk["y"].as_str() {
            point.insert(0, 4);
            point.extend(URL_SAFE_NO_PAD.decode(y).unwrap());
        }
        for secret in [point, x_alone, jwk.to_string().into_bytes(), Vec::new()] {
            let mut header = Header::new(Algorithm::HS256);
            (header.typ, header.kid) = (Some("at+jwt".into()), Some(desk.key.kid()));
            let forged = jsonwebtoken::encode(&header, &desk.claims(), &EncodingKey::from_secret(&secret)).unwrap();
            assert_eq!(desk.verify(&forged).unwrap_err(), TokenError::Untrusted);
        }
        // Another key under the registered kid.
        let foreign = testing::signing_key(algorithm).sign(&desk.claims()).unwrap();
        assert_eq!(desk.verify(&foreign).unwrap_err(), TokenError::Untrusted);
        let stolen_kid = {
            let (rest, signature) = foreign.rsplit_once('.').unwrap();
            let (_, payload) = rest.split_once('.').unwrap();
            format!("{}.{payload}.{signature}", token.split('.').next().unwrap())
        };
        assert_eq!(desk.verify(&stolen_kid).unwrap_err(), TokenError::Untrusted);
        // The content changed after signing.
        let changed = tampered(&token, 1, "officer-0417", "officer-0418");
        assert_eq!(desk.verify(&changed).unwrap_err(), TokenError::Untrusted);
        // Each byte of the signature counts.
        let (rest, signature) = token.rsplit_once('.').unwrap();
        let bytes = URL_SAFE_NO_PAD.decode(signature).unwrap();
        for position in [0, bytes.len() / 2, bytes.len() - 1] {
            let mut bytes = bytes.clone();
            bytes[position] ^= 1;
            let flipped = format!("{rest}.{}", URL_SAFE_NO_PAD.encode(&bytes));
            assert_eq!(desk.verify(&flipped).unwrap_err(), TokenError::Untrusted);
        }
        for broken in ["", "zz", signature.get(..10).unwrap()] {
            assert!(desk.verify(&format!("{rest}.{broken}")).is_err());
        }
        desk.verify(&token).unwrap();
    }
}

#[test]
fn garbage_is_no_token() {
    let desk = Desk::new(&PKCS_ECDSA_P256_SHA256);
    assert_eq!(desk.verify("").unwrap_err(), TokenError::Missing);
    let good = desk.key.sign(&desk.claims()).unwrap();
    for garbage in
        ["x", ".", "..", "...", "a.b.c", "中.文.。", &"x".repeat(100_000), &format!("{good}."), &format!(".{good}")]
    {
        assert!(matches!(desk.verify(garbage), Err(TokenError::Malformed { .. })), "{garbage:.20}");
    }
    let mut long = desk.claims();
    long["padding"] = json!("x".repeat(MAX_TOKEN_BYTES));
    assert_eq!(desk.verify_claims(&long).unwrap_err(), TokenError::Malformed { claim: "token" });
}

#[test]
fn a_token_is_of_no_use_to_another_connection() {
    let desk = Desk::new(&PKCS_ECDSA_P256_SHA256);
    let token = desk.key.sign(&desk.claims()).unwrap();
    desk.verify(&token).unwrap();
    // The same system with a new certificate, another system, and again after the good use was remembered.
    for uri in ["spiffe://heshan.gov.example/GA/household", "spiffe://heshan.gov.example/GA/other"] {
        let other = testing::caller(uri);
        assert_eq!(desk.verifier.verify(&other, &token, NOW).unwrap_err(), TokenError::NotBound);
    }
}

#[test]
fn a_remembered_token_expires_all_the_same() {
    let desk = Desk::new(&PKCS_ECDSA_P256_SHA256);
    let metrics = Arc::new(Metrics::new("t"));
    let verifier = testing::verifier(&desk.key).with_metrics(metrics.clone());
    let token = desk.key.sign(&desk.claims()).unwrap();
    let at = |seconds| verifier.verify(&desk.caller, &token, NOW.plus(Duration::from_secs(seconds)));
    let first = at(0).unwrap();
    assert!(Arc::ptr_eq(&first, &at(609).unwrap()), "within leeway, from memory");
    assert_eq!(at(610).unwrap_err(), TokenError::Expired);
    let before = Timestamp::from_secs(NOW.as_secs() - 11);
    assert_eq!(verifier.verify(&desk.caller, &token, before).unwrap_err(), TokenError::TimeInvalid { claim: "nbf" });
    let text = metrics.encode();
    assert!(text.contains("oncegate_token_cache_total{result=\"miss\"} 1"), "{text}");
    assert!(text.contains("oncegate_token_cache_total{result=\"hit\"} 3"), "{text}");
}

#[test]
fn only_good_tokens_are_remembered() {
    let desk = Desk::new(&PKCS_ECDSA_P256_SHA256);
    let token = desk.key.sign(&desk.claims()).unwrap();
    let early = Timestamp::from_secs(NOW.as_secs() - 11);
    assert!(desk.verifier.verify(&desk.caller, &token, early).is_err());
    desk.verifier.verified.run_pending_tasks();
    assert_eq!(desk.verifier.verified.entry_count(), 0);
    desk.verify(&token).unwrap();
    desk.verifier.verified.run_pending_tasks();
    assert_eq!(desk.verifier.verified.entry_count(), 1);
}

#[test]
fn a_platform_calls_for_those_who_let_it() {
    let desk = Desk::new(&PKCS_ECDSA_P256_SHA256);
    let verify = |uri: &str, consumer: &str| {
        let (caller, consumer) = (testing::caller(uri), consumer.parse().unwrap());
        let case = "HS-2026-000123".parse().unwrap();
        let token = desk.key.mint(&testing::request(&caller, &consumer, &case, NOW)).unwrap();
        desk.verifier.verify(&caller, &token, NOW).map(|purpose| purpose.consumer().clone())
    };
    let refused = |code: &str| Err(TokenError::ConsumerNotDelegated { consumer: code.parse().unwrap() });
    assert_eq!(verify(PLATFORM, "GA"), Ok("GA".parse().unwrap()));
    assert_eq!(verify(PLATFORM, "WJ"), Ok("WJ".parse().unwrap()));
    // Its own department, for which the issuer may not speak; one that nobody delegated.
    assert_eq!(verify(PLATFORM, "ZS"), refused("ZS"));
    assert_eq!(verify(PLATFORM, "MZ"), refused("MZ"));
    // Another system of the platform's department has no delegation; a department has none for another.
    assert_eq!(verify("spiffe://heshan.gov.example/ZS/other", "GA"), refused("GA"));
    assert_eq!(verify("spiffe://heshan.gov.example/WJ/hospital", "GA"), refused("GA"));
    assert_eq!(verify("spiffe://heshan.gov.example/WJ/hospital", "WJ"), Ok("WJ".parse().unwrap()));

    let codes = |uri: &str| -> Vec<String> {
        desk.verifier.may_speak_for(&testing::caller(uri)).iter().map(ToString::to_string).collect()
    };
    assert_eq!(codes(PLATFORM), ["ZS", "GA", "WJ"]);
    assert_eq!(codes("spiffe://heshan.gov.example/GA/household"), ["GA"]);
}

#[test]
fn a_token_may_name_its_subjects_and_types() {
    let desk = Desk::new(&PKCS_ECDSA_P256_SHA256);
    let (dir, config) = testing::config(&desk.key.jwks());
    let subjects_key = SubjectsKey::load(config.subjects_key.as_ref().unwrap()).unwrap();
    let (consumer, case) = ("GA".parse().unwrap(), "HS-2026-000123".parse().unwrap());
    let mut request = testing::request(&desk.caller, &consumer, &case, NOW);
    let holders = ["99999919900101002X".to_owned(), "91999999MA00000005".to_owned()];
    let types = ["birth_medical_certificate".to_owned()];
    request.subjects = Some((&subjects_key, &holders));
    request.certificate_types = &types;
    let token = desk.key.mint(&request).unwrap();
    assert!(!request.claims().to_string().contains("9999991990"), "no number in clear");

    let purpose = desk.verify(&token).unwrap();
    assert_eq!(purpose.certificate_types(), Some(types.as_slice()));
    assert!(holders.iter().all(|holder| purpose.covers_subject(holder)));
    assert!(!purpose.covers_subject("999999199001010038") && !purpose.covers_subject(""));

    let without_key = IdentityConfig { subjects_key: None, ..config };
    let verifier = TokenVerifier::load(&without_key, DOMAIN, |_| true).unwrap();
    assert!(!verifier.verify(&desk.caller, &token, NOW).unwrap().covers_subject(&holders[0]));
    drop(dir);
}

#[test]
fn all_faults_of_a_configuration_are_told_at_once() {
    let key = testing::signing_key(&PKCS_ED25519);
    let (_dir, mut config) = testing::config(&key.jwks());
    config.token_max_lifetime_s = 3600;
    config.leeway_s = 300;
    config.subjects_key = Some("/nowhere".into());
    config.issuers.push(config.issuers[0].clone());
    config.platforms[0].id = "spiffe://other.example/ZS/platform".parse().unwrap();
    let known = |code: &DepartmentCode| code.as_str() == "GA";
    let faults = TokenVerifier::load(&config, DOMAIN, known).unwrap_err().to_string();
    for part in [
        "token_max_lifetime_s",
        "leeway_s",
        "/nowhere: can't be read",
        "issuer `https://id.heshan.gov.example` stands twice",
        "kid `",
        "of another trust domain",
        "https://id.heshan.gov.example: no department WJ",
        "spiffe://other.example/ZS/platform: no department WJ",
    ] {
        assert!(faults.contains(part), "{part} not in\n{faults}");
    }
    let nobody = IdentityConfig::default();
    assert!(TokenVerifier::load(&nobody, DOMAIN, known).unwrap_err().to_string().contains("no issuer"));
}

proptest::proptest! {
    /// Whatever stands in the three parts, signed or not: an answer, never a panic, and never a purpose.
    #[test]
    fn no_text_is_taken_for_a_token(
        text in "\\PC{0,80}",
        payload in r#"[\[\]{}":,.0-9a-z\-]{0,60}"#,
        signature in "[A-Za-z0-9_-]{0,90}",
    ) {
        static DESK: std::sync::LazyLock<Desk> = std::sync::LazyLock::new(|| Desk::new(&PKCS_ECDSA_P256_SHA256));
        let good = header(&DESK.key, "");
        let unsigned =
            format!("{}.{}.{signature}", URL_SAFE_NO_PAD.encode(&good), URL_SAFE_NO_PAD.encode(&payload));
        for token in [text, unsigned, signed_raw(&DESK.key, &good, &payload), signed_raw(&DESK.key, &payload, &payload)] {
            proptest::prop_assert!(DESK.verify(&token).is_err(), "{}", token);
        }
    }
}
