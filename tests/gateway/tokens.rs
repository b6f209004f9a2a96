//! Tokens: each rule has a token that breaks it.

use std::time::Duration;

use serde_json::{Value, json};
use tonic::Code;

use crate::harness::{Site, birth, key_of, request, thumbprint};

type Case = (&'static str, fn(&mut Value), &'static str);

const CASES: &[Case] = &[
    ("expired", |c| set_times(c, -700, -400), "TOKEN_EXPIRED"),
    ("from the future", |c| set_times(c, 60, 200), "TOKEN_TIME_INVALID"),
    ("too long", |c| set_times(c, 0, 3600), "TOKEN_TIME_INVALID"),
    ("for another domain", |c| c["aud"] = json!("spiffe://elsewhere.example"), "TOKEN_AUDIENCE_MISMATCH"),
    ("of a stranger", |c| c["iss"] = json!("https://stranger.example"), "TOKEN_UNTRUSTED"),
    ("for another client", |c| c["client_id"] = json!("spiffe://heshan.gov.example/GA/household"), "TOKEN_NOT_BOUND"),
    ("without its binding", |c| drop(c.as_object_mut().unwrap().remove("cnf")), "TOKEN_MALFORMED"),
    ("without an id", |c| drop(c.as_object_mut().unwrap().remove("jti")), "TOKEN_MALFORMED"),
    ("with an unknown member", |c| c["authorization_details"][0]["all"] = json!(true), "TOKEN_MALFORMED"),
    (
        "with two purposes",
        |c| {
            let one = c["authorization_details"][0].clone();
            c["authorization_details"].as_array_mut().unwrap().push(one);
        },
        "TOKEN_MALFORMED",
    ),
    ("with a long purpose", |c| c["authorization_details"][0]["purpose"] = json!("长".repeat(201)), "TOKEN_MALFORMED"),
];

fn set_times(claims: &mut Value, from: i64, until: i64) {
    let issued = claims["iat"].as_i64().unwrap();
    claims["iat"] = json!(issued + from);
    claims["nbf"] = json!(issued + from);
    claims["exp"] = json!(issued + until);
}

#[tokio::test]
pub(crate) async fn a_certificate_that_expires_on_an_open_connection_is_refused_and_recorded() {
    let site = Site::start().await;
    site.birth.answers(vec![birth()]);
    site.lookup("GA", request()).await.unwrap();
    // Development certificates live 397 days.
    site.clock.advance(Duration::from_hours(400 * 24));
    let late = site.lookup("GA", request()).await;
    site.refused(late, Code::Unauthenticated, "CERTIFICATE_EXPIRED");
    let entries = site.close().await;
    assert_eq!(entries.len(), 2);
}

#[tokio::test]
pub(crate) async fn a_token_that_breaks_a_rule_is_refused() {
    let site = Site::start().await;
    for (what, change, reason) in CASES {
        let token = site.token_with("GA", change);
        let ended = site.send(site.channel.clone(), Some(&token), request()).await;
        assert!(ended.is_err(), "{what}");
        site.refused(ended, Code::Unauthenticated, reason);
    }
    site.refused(site.send(site.channel.clone(), None, request()).await, Code::Unauthenticated, "TOKEN_MISSING");
    let scrap = site.send(site.channel.clone(), Some("a.b.c"), request()).await;
    site.refused(scrap, Code::Unauthenticated, "TOKEN_MALFORMED");
    // Signed by a department's key in the platform's name.
    let foreign = site.sign(&key_of("GA"), "GA", |_| {});
    let foreign = site.send(site.channel.clone(), Some(&foreign), request()).await;
    site.refused(foreign, Code::Unauthenticated, "TOKEN_UNTRUSTED");
    site.close().await;
}

#[tokio::test]
pub(crate) async fn a_token_serves_nobody_but_the_one_it_is_bound_to() {
    let site = Site::start().await;
    let stolen = site.send(site.channel_of("GA", "household"), Some(&site.token("GA")), request()).await;
    site.refused(stolen, Code::Unauthenticated, "TOKEN_NOT_BOUND");
    site.close().await;
}

#[tokio::test]
pub(crate) async fn a_departments_own_system_speaks_for_no_other() {
    let site = Site::start().await;
    site.birth.answers(vec![birth()]);
    let own = |consumer: &str| {
        site.sign(&key_of("GA"), consumer, |claims| {
            use base64::Engine as _;
            let thumbprint = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(thumbprint("GA", "household"));
            claims["iss"] = json!("https://token.ga.heshan.gov.example");
            claims["client_id"] = json!("spiffe://heshan.gov.example/GA/household");
            claims["cnf"] = json!({ "x5t#S256": thumbprint });
        })
    };
    let channel = site.channel_of("GA", "household");
    site.send(channel.clone(), Some(&own("GA")), request()).await.unwrap();
    let other = site.send(channel, Some(&own("JK")), request()).await;
    site.refused(other, Code::PermissionDenied, "CONSUMER_NOT_DELEGATED");
    site.close().await;
}

#[tokio::test]
async fn a_token_that_was_good_expires_in_memory_too() {
    let site = Site::start().await;
    site.birth.answers(vec![birth()]);
    let token = site.token("GA");
    site.send(site.channel.clone(), Some(&token), request()).await.unwrap();
    site.clock.advance(Duration::from_secs(400));
    let late = site.send(site.channel.clone(), Some(&token), request()).await;
    site.refused(late, Code::Unauthenticated, "TOKEN_EXPIRED");
    site.close().await;
}
