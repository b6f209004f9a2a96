//! Real TLS on loopback.

use std::sync::Arc;
use std::time::Duration;

use rcgen::ExtendedKeyUsagePurpose;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, HandshakeKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::testing::{Ca, DAY, DOMAIN, Leaf, NOW, Pki, Running, client, get, header, short};
use super::upstream::client_channel;
use super::{Against, HardeningConfig, NotNewer, Refusal, Swept, UpstreamConfig};
use crate::clock::Timestamp;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

async fn tls(running: &Running, config: Arc<ClientConfig>) -> std::io::Result<TlsStream<TcpStream>> {
    TlsConnector::from(config).connect(ServerName::try_from("localhost").unwrap(), running.tcp().await).await
}

/// True if the server takes the connection up: it answers the preface with its SETTINGS. A TLS 1.3 client learns of a
/// refusal only when it reads.
async fn is_served(running: &Running, config: ClientConfig) -> bool {
    let Ok(mut tls) = tls(running, Arc::new(config)).await else { return false };
    if tls.write_all(PREFACE).await.is_err() {
        return false;
    }
    let mut head = [0; 9];
    let read = timeout(Duration::from_secs(20), tls.read_exact(&mut head)).await.expect("an answer or an end");
    read.is_ok() && head[3] == 4
}

/// Reads until the peer ends the connection, and how long that took.
async fn ended(tls: &mut TlsStream<TcpStream>) -> Duration {
    let started = Instant::now();
    let mut buf = [0; 1024];
    let end = async { while matches!(tls.read(&mut buf).await, Ok(1..)) {} };
    timeout(Duration::from_secs(20), end).await.expect("an end");
    started.elapsed()
}

#[tokio::test]
async fn a_caller_is_known_by_its_certificate() {
    let pki = Pki::new();
    let running = Running::start(&pki, short()).await;
    let channel = client_channel(&pki.upstream(running.address), &pki.clock).unwrap();
    let answer = get(&channel, "/x").await.unwrap();
    assert_eq!(header(&answer, "x-caller"), format!("spiffe://{DOMAIN}/GA/household"));
    let status = running.gate.status();
    assert_eq!((status.connections, status.handshakes_done, status.handshakes_refused), (1, 1, 0));
    let connection = running.gate.connections().remove(0);
    assert_eq!((connection.generation(), connection.valid_until()), (1, NOW.plus(30 * DAY)));
}

#[tokio::test]
async fn whoever_does_not_prove_a_caller_is_refused() {
    let pki = Pki::new();
    let running = Running::start(&pki, short()).await;
    let good = Leaf::client("GA/household");
    assert!(is_served(&running, client(Some((&pki.ga, &good)))).await, "the good client of this test");

    let stranger = Ca::new("GA");
    let of_wj = Leaf::client("WJ/maternity");
    let expired = Leaf { not_after: Timestamp::from_secs(NOW.as_secs() - 1), ..Leaf::client("GA/household") };
    let early = Leaf { not_before: NOW.plus(DAY), ..Leaf::client("GA/household") };
    let for_servers = Leaf { usage: vec![ExtendedKeyUsagePurpose::ServerAuth], ..Leaf::client("GA/household") };
    let for_anything = Leaf { usage: Vec::new(), ..Leaf::client("GA/household") };
    let uri = |path: &str| format!("spiffe://{DOMAIN}/{path}");
    let two = Leaf { uris: vec![uri("GA/household"), uri("GA/other")], ..Leaf::client("GA/household") };
    let none = Leaf { uris: Vec::new(), ..Leaf::client("GA/household") };
    let foreign = Leaf { uris: vec!["spiffe://other.example/GA/household".into()], ..Leaf::client("GA/household") };
    for (what, identity) in [
        ("no certificate", None),
        ("a CA of the same name with another key", Some((&stranger, &good))),
        ("a department's CA and another department", Some((&pki.ga, &of_wj))),
        ("the gateway's own CA", Some((&pki.server_ca, &good))),
        ("an expired leaf", Some((&pki.ga, &expired))),
        ("a leaf of tomorrow", Some((&pki.ga, &early))),
        ("a server's leaf", Some((&pki.ga, &for_servers))),
        ("no extended key usage", Some((&pki.ga, &for_anything))),
        ("two URI names", Some((&pki.ga, &two))),
        ("no URI name", Some((&pki.ga, &none))),
        ("another trust domain", Some((&pki.ga, &foreign))),
    ] {
        assert!(!is_served(&running, client(identity)).await, "{what}");
    }
    let refused = 11;
    running.until(|gate| gate.status().handshakes_refused == refused).await;
    running.until(|gate| gate.status().sockets == 0).await;
    assert_eq!(running.gate.status().handshakes_done, 1);
}

#[tokio::test]
async fn other_protocols_are_refused() {
    let pki = Pki::new();
    let running = Running::start(&pki, short()).await;
    let leaf = Leaf::client("GA/household");

    let mut old = running.tcp().await;
    old.write_all(&tls12_hello()).await.unwrap();
    let mut alert = [0; 7];
    old.read_exact(&mut alert).await.unwrap();
    assert_eq!((alert[0], alert[6]), (21, 70), "TLS 1.2 gets the alert protocol_version");
    let mut silent = client(Some((&pki.ga, &leaf)));
    silent.alpn_protocols = Vec::new();
    assert!(!is_served(&running, silent).await, "no ALPN");
    let mut http1 = client(Some((&pki.ga, &leaf)));
    http1.alpn_protocols = vec![b"http/1.1".to_vec()];
    assert!(!is_served(&running, http1).await, "HTTP/1.1");
    assert_eq!(running.gate.status().handshakes_done, 0);
}

/// The first message of a TLS 1.2 client (RFC 5246 §7.4.1.2): ECDHE, P-256, ECDSA with SHA-256; no word of newer
/// versions. Our own TLS library is built without TLS 1.2, so it can't say this.
fn tls12_hello() -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0xc0, 0x2b, 1, 0]);
    let extensions = [0, 13, 0, 4, 0, 2, 4, 3, 0, 10, 0, 4, 0, 2, 0, 23, 0, 11, 0, 2, 1, 0];
    body.extend([0, u8::try_from(extensions.len()).unwrap()]);
    body.extend(extensions);
    let mut hello = vec![22, 3, 1, 0, u8::try_from(body.len() + 4).unwrap()];
    hello.extend([1, 0, 0, u8::try_from(body.len()).unwrap()]);
    hello.extend(body);
    hello
}

#[tokio::test]
async fn no_session_is_ever_resumed_and_the_key_exchange_is_hybrid() {
    let pki = Pki::new();
    let running = Running::start(&pki, short()).await;
    // Each of these alone prevents it; all stand.
    let served = running.gate.current().server_config().clone();
    assert_eq!((served.send_tls13_tickets, served.max_tls13_tickets, served.max_early_data_size), (0, 0, 0));
    assert!(!served.session_storage.can_cache() && !served.ticketer.enabled());
    let config = Arc::new(client(Some((&pki.ga, &Leaf::client("GA/household")))));
    for _ in 0..2 {
        let mut tls = tls(&running, config.clone()).await.unwrap();
        tls.write_all(PREFACE).await.unwrap();
        let mut settings = [0; 9];
        // Tickets would have come before the first application data.
        tls.read_exact(&mut settings).await.unwrap();
        let session = tls.get_ref().1;
        assert_eq!(session.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(session.tls13_tickets_received(), 0);
        let group = session.negotiated_key_exchange_group().unwrap().name();
        assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
    }
}

#[tokio::test]
async fn silent_peers_are_let_go() {
    let pki = Pki::new();
    let running = Running::start(&pki, HardeningConfig { handshake_timeout_ms: 200, ..short() }).await;
    let mut never_speaks = running.tcp().await;
    let config = Arc::new(client(Some((&pki.ga, &Leaf::client("GA/household")))));
    let mut no_preface = tls(&running, config).await.unwrap();

    let mut buf = [0; 16];
    let end = timeout(Duration::from_secs(20), never_speaks.read(&mut buf)).await.expect("an end");
    assert!(matches!(end, Ok(0) | Err(_)), "no handshake");
    let after = ended(&mut no_preface).await;
    assert!(after < Duration::from_secs(2), "no preface: {after:?}");
    running.until(|gate| gate.status().sockets == 0 && gate.status().connections == 0).await;
}

#[tokio::test]
async fn connections_are_capped_by_caller_and_by_address() {
    let pki = Pki::new();
    let hardening = HardeningConfig { max_connections_per_identity: 2, max_connections_per_address: 3, ..short() };
    let running = Running::start(&pki, HardeningConfig { preface_timeout_ms: 60_000, ..hardening }).await;
    let config = Arc::new(client(Some((&pki.ga, &Leaf::client("GA/household")))));
    let mut kept = Vec::new();
    for _ in 0..2 {
        kept.push(tls(&running, config.clone()).await.unwrap());
    }
    running.until(|gate| gate.status().connections == 2).await;
    assert!(!is_served(&running, client(Some((&pki.ga, &Leaf::client("GA/household"))))).await);
    running.until(|gate| gate.status().sockets == 2).await;
    let other = Arc::new(client(Some((&pki.ga, &Leaf::client("GA/other")))));
    kept.push(tls(&running, other).await.unwrap());
    running.until(|gate| gate.status().connections == 3).await;

    // The address has all its places now: not even a handshake.
    let mut fourth = running.tcp().await;
    let mut buf = [0; 16];
    let end = timeout(Duration::from_secs(20), fourth.read(&mut buf)).await.expect("an end");
    assert!(matches!(end, Ok(0) | Err(_)));
    assert_eq!(running.gate.status().over_limit, 2);

    // Places come back.
    kept.clear();
    running.until(|gate| gate.status().sockets == 0).await;
    assert!(is_served(&running, client(Some((&pki.ga, &Leaf::client("GA/household"))))).await);
}

#[tokio::test]
async fn stopping_lets_requests_finish_and_takes_no_new_ones() {
    let pki = Pki::new();
    let mut running = Running::start(&pki, short()).await;
    let channel = client_channel(&pki.upstream(running.address), &pki.clock).unwrap();
    get(&channel, "/x").await.unwrap();
    let slow = tokio::spawn({
        let channel = channel.clone();
        async move { get(&channel, "/slow/400").await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let stopped = running.stop();
    let answer = slow.await.unwrap().expect("the request under way finishes");
    assert_eq!(answer.status(), http::StatusCode::OK);
    assert_eq!(stopped.await.unwrap(), 0, "nothing was cut");
    assert!(TcpStream::connect(running.address).await.is_err(), "the port is closed");
    assert!(get(&channel, "/x").await.is_err());
    assert_eq!(running.gate.status().sockets, 0);
}

#[tokio::test]
async fn stopping_cuts_what_outlasts_the_grace_and_says_so() {
    let pki = Pki::new();
    let mut running = Running::start(&pki, HardeningConfig { shutdown_grace_ms: 200, ..short() }).await;
    let channel = client_channel(&pki.upstream(running.address), &pki.clock).unwrap();
    let endless = tokio::spawn(async move { get(&channel, "/slow/60000").await });
    running.until(|gate| gate.status().connections == 1).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut no_handshake = running.tcp().await;
    let stopped = Instant::now();
    assert_eq!(running.stop().await.unwrap(), 1, "the handshake under way served nobody and does not count");
    assert!(stopped.elapsed() < Duration::from_secs(10));
    assert!(endless.await.unwrap().is_err());
    assert!(matches!(no_handshake.read(&mut [0; 8]).await, Ok(0) | Err(_)));
    assert_eq!(running.gate.status().sockets, 0);
}

#[tokio::test]
async fn an_old_connection_is_drained_without_harm() {
    let pki = Pki::new();
    let running = Running::start(&pki, HardeningConfig { connection_age_s: 1, ..short() }).await;
    let channel = client_channel(&pki.upstream(running.address), &pki.clock).unwrap();
    let end = Instant::now() + Duration::from_millis(1_500);
    while Instant::now() < end {
        // A request that the ending connection never took up is tried again once, as callers should.
        let answer = match get(&channel, "/slow/1").await {
            Err(_) => get(&channel, "/slow/1").await,
            answer => answer,
        };
        answer.expect("no call fails while its connection is replaced");
    }
    running.until(|gate| gate.status().handshakes_done >= 2 && gate.status().connections == 1).await;
}

#[tokio::test]
async fn a_generation_without_its_ca_ends_a_connection() {
    let pki = Pki::new();
    let running = Running::start(&pki, short()).await;
    let channel = client_channel(&pki.upstream(running.address), &pki.clock).unwrap();
    pki.identity("maternity", &pki.wj, &Leaf::client("WJ/maternity"));
    let upstream = pki.upstream(running.address);
    let wj = UpstreamConfig {
        certificate: Some(pki.path("maternity.pem")),
        key: Some(pki.path("maternity.key")),
        ..upstream
    };
    let wj = client_channel(&wj, &pki.clock).unwrap();
    get(&channel, "/x").await.unwrap();
    get(&wj, "/x").await.unwrap();
    let of_ga = |caller: &str| caller.contains("/GA/");
    let connection = running.gate.connections().into_iter().find(|open| of_ga(open.caller().id().as_str())).unwrap();
    // A stream that is open when the generation changes.
    let open = tokio::spawn({
        let channel = channel.clone();
        async move { get(&channel, "/slow/60000").await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;

    let mut without = pki.contents();
    without.manifest.client_cas.remove(0);
    let without = pki.load(2, &without, Against::Serving(&running.gate.current())).unwrap();
    assert_eq!(running.gate.install(without), Ok(Swept { kept: 1, drained: 0, killed: 1 }));
    assert_eq!(running.gate.admit(&connection), Err(Refusal::NotTrusted));
    let open = timeout(Duration::from_secs(10), open).await.expect("open streams end at once").unwrap();
    assert!(open.is_err());
    assert!(get(&channel, "/x").await.is_err(), "and the handshake is refused");
    assert_eq!(get(&wj, "/x").await.unwrap().status(), http::StatusCode::OK, "others go on");
    let status = running.gate.status();
    assert_eq!((status.generation, status.killed, status.connections), (2, 1, 1));

    let again = running.gate.install(pki.generation(2));
    assert_eq!(again, Err(NotNewer { current: 2, offered: 2 }));
}

/// A peer that has stopped reading gets nothing out of the socket's buffer any more: the connection is reset, not closed.
#[tokio::test]
async fn a_killed_connection_is_reset() {
    let pki = Pki::new();
    let running = Running::start(&pki, HardeningConfig { preface_timeout_ms: 60_000, ..short() }).await;
    let config = Arc::new(client(Some((&pki.ga, &Leaf::client("GA/household")))));
    let mut tls = tls(&running, config).await.unwrap();
    running.until(|gate| gate.status().connections == 1).await;
    let mut settings = [0; 9];
    tls.read_exact(&mut settings).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut without = pki.contents();
    without.manifest.client_cas.remove(0);
    let without = pki.load(2, &without, Against::Serving(&running.gate.current())).unwrap();
    running.gate.install(without).unwrap();
    let (tcp, _) = tls.get_mut();
    let mut rest = Vec::new();
    let ended = timeout(Duration::from_secs(20), tcp.read_to_end(&mut rest)).await.expect("an end");
    assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_binding_taken_away_ends_a_connection_and_a_new_server_leaf_does_not() {
    let pki = Pki::new();
    let running = Running::start(&pki, short()).await;
    let channel = client_channel(&pki.upstream(running.address), &pki.clock).unwrap();
    get(&channel, "/x").await.unwrap();
    pki.identity("server", &pki.server_ca, &Leaf::server("ZS/oncegate"));
    assert_eq!(running.gate.install(pki.generation(2)), Ok(Swept { kept: 1, drained: 0, killed: 0 }));
    get(&channel, "/x").await.unwrap();
    assert_eq!(running.gate.status().handshakes_done, 1);

    let mut unbound = pki.contents();
    unbound.manifest.client_cas[0].departments = vec!["MZ".to_owned()];
    let unbound = pki.load(3, &unbound, Against::Start).unwrap();
    assert_eq!(running.gate.install(unbound), Ok(Swept { kept: 0, drained: 0, killed: 1 }));
    assert!(get(&channel, "/x").await.is_err());
}

#[tokio::test]
async fn a_certificate_that_expires_on_an_open_connection_ends_it() {
    let pki = Pki::new();
    let running = Running::start(&pki, short()).await;
    let channel = client_channel(&pki.upstream(running.address), &pki.clock).unwrap();
    get(&channel, "/x").await.unwrap();
    pki.clock.advance(30 * DAY);
    let refused = get(&channel, "/x").await.unwrap();
    assert_eq!(header(&refused, "grpc-status"), "16");
    assert_eq!(header(&refused, "content-type"), "application/grpc");
    assert_eq!(header(&refused, "x-caller"), "", "the service was not asked");
    running.until(|gate| gate.status().connections == 0).await;
    let status = running.gate.status();
    assert_eq!((status.requests_refused, status.drained), (1, 1));
}

#[tokio::test]
async fn a_sweep_finds_expired_certificates_of_idle_connections() {
    let pki = Pki::new();
    let running = Running::start(&pki, short()).await;
    let channel = client_channel(&pki.upstream(running.address), &pki.clock).unwrap();
    get(&channel, "/x").await.unwrap();
    assert_eq!(running.gate.sweep(), Swept { kept: 1, drained: 0, killed: 0 });
    pki.clock.advance(31 * DAY);
    assert_eq!(running.gate.sweep(), Swept { kept: 0, drained: 1, killed: 0 });
    running.until(|gate| gate.status().connections == 0).await;
}

#[tokio::test]
async fn a_connection_lasts_no_longer_than_its_ca() {
    let pki = Pki::new();
    let short_lived = Ca::valid_until("GA", NOW.plus(DAY));
    let mut contents = pki.contents();
    contents.set("GA.pem", Some(short_lived.pem.clone().into()));
    contents.set("GA.crl", Some(short_lived.crl(1, &[], 10 * DAY)));
    let generation = pki.load(1, &contents, Against::Start).unwrap();
    let (chain, _) = short_lived.issue(&Leaf::client("GA/household"));
    let mut faults = crate::catalog::Faults::default();
    let chain = super::material::certificates(&pki.write("chain.pem", &chain), &mut faults);
    assert!(generation.judge(&chain).is_ok());
    pki.clock.advance(DAY);
    assert!(generation.judge(&chain).is_err(), "webpki alone would not look at the root's dates");
}

#[tokio::test]
async fn a_channel_refuses_another_server_than_the_one_expected() {
    let pki = Pki::new();
    let running = Running::start(&pki, short()).await;
    let good = pki.upstream(running.address);
    get(&client_channel(&good, &pki.clock).unwrap(), "/x").await.expect("the good settings of this test");

    let other_id = format!("spiffe://{DOMAIN}/ZS/other").parse().unwrap();
    let other_id = UpstreamConfig { server_id: other_id, ..good.clone() };
    assert!(get(&client_channel(&other_id, &pki.clock).unwrap(), "/x").await.is_err(), "another SPIFFE ID");
    let other_ca = UpstreamConfig { ca: pki.path("WJ.pem"), ..good };
    assert!(get(&client_channel(&other_ca, &pki.clock).unwrap(), "/x").await.is_err(), "another CA");
    // Neither reached the service.
    assert_eq!(running.gate.status().handshakes_done, 1);
}

#[test]
fn settings_of_a_channel_are_checked_when_it_is_made() {
    let pki = Pki::new();
    let good = pki.upstream("127.0.0.1:1".parse().unwrap());
    for address in ["http://localhost:1", "https://localhost", "https://local host:1", "https://a@b:1", "https://a:1/x"]
    {
        let odd = UpstreamConfig { address: address.into(), ..good.clone() };
        let faults = client_channel(&odd, &pki.clock).unwrap_err().to_string();
        assert!(faults.contains("must be https://host:port"), "{address}: {faults}");
    }
    let missing = UpstreamConfig { ca: pki.path("none"), key: Some(pki.path("none")), ..good };
    let faults = client_channel(&missing, &pki.clock).unwrap_err();
    assert_eq!(faults.0.len(), 2, "{faults}");
}
