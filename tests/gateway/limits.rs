//! Too much of anything: refused with a time to come back.

use std::num::NonZeroU32;
use std::time::Duration;

use oncegate::audit::Outcome;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::harness::{Site, birth, request};

const ONE: NonZeroU32 = NonZeroU32::MIN;

fn retry_delay(status: &Status) -> Duration {
    status.get_error_details().retry_info().expect("RetryInfo").retry_delay.expect("a delay")
}

#[tokio::test]
pub(crate) async fn a_caller_has_a_rate_and_a_flood_is_counted() {
    let site = Site::with(|config| {
        config.limits.caller_per_second = ONE;
        config.limits.caller_burst = ONE;
    })
    .await;
    site.birth.answers(vec![birth()]);
    site.lookup("GA", request()).await.unwrap();
    let limited = site.refused(site.lookup("GA", request()).await, Code::ResourceExhausted, "CALLER_LIMITED");
    assert!(retry_delay(&limited) <= Duration::from_secs(1));
    let mut refused = 1;
    for _ in 0..60 {
        match site.lookup("GA", request()).await {
            Err(status) if status.code() == Code::ResourceExhausted => refused += 1,
            other => drop(other),
        }
    }
    let entries = site.close().await;
    let limited: Vec<_> = entries.values().flatten().filter(|entry| entry.outcome == Outcome::Limited).collect();
    let counted: u32 = limited.iter().map(|entry| entry.count.max(1)).sum();
    assert_eq!(counted, refused, "none is lost");
    assert!(u32::try_from(limited.len()).unwrap() < refused, "and they do not fill the log");
}

#[tokio::test]
pub(crate) async fn a_subject_has_a_rate() {
    let site = Site::with(|config| {
        config.limits.subject_per_minute = ONE;
        config.limits.subject_burst = ONE;
    })
    .await;
    site.birth.answers(vec![birth()]);
    site.lookup("GA", request()).await.unwrap();
    let limited = site.refused(site.lookup("GA", request()).await, Code::ResourceExhausted, "SUBJECT_LIMITED");
    assert!(retry_delay(&limited) > Duration::from_secs(30));
    // Another consumer has a rate of its own.
    let jk =
        oncegate::pb::gateway::LookupRequest { read_mask: crate::harness::mask(&["sex", "infant_name"]), ..request() };
    site.lookup("JK", jk).await.unwrap();
    site.close().await;
}

#[tokio::test]
pub(crate) async fn a_provider_has_a_bound_of_calls_in_flight() {
    let site = Site::with(|config| config.limits.provider_in_flight = ONE).await;
    site.birth.answers_after(Duration::from_millis(600), vec![birth()]);
    let first = site.lookup("GA", request());
    let second = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let jk =
            oncegate::pb::gateway::LookupRequest { read_mask: crate::harness::mask(&["infant_name"]), ..request() };
        site.lookup("JK", jk).await
    };
    let (first, second) = tokio::join!(first, second);
    first.unwrap();
    let limited = site.refused(second, Code::ResourceExhausted, "PROVIDER_LIMITED");
    assert!(retry_delay(&limited) > Duration::ZERO);
    site.close().await;
}

#[tokio::test]
pub(crate) async fn the_gateway_has_a_bound_of_calls_in_progress() {
    let site = Site::with(|config| config.calls.in_flight = 1).await;
    site.birth.answers_after(Duration::from_millis(400), vec![birth()]);
    let late = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        site.lookup("GA", request()).await
    };
    let (first, second) = tokio::join!(site.lookup("GA", request()), late);
    first.unwrap();
    let limited = site.refused(second, Code::ResourceExhausted, "GATEWAY_LIMITED");
    assert!(retry_delay(&limited) > Duration::ZERO);
    site.close().await;
}
