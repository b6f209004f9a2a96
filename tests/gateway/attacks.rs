//! One attacker at a time against the gateway as a program of its own, while a good client goes on and measures itself.
//!
//! `cargo test --test gateway attacks -- --nocapture` prints the table of docs/hardening.md. Times are shown, not asserted:
//! asserted is that the good client never fails, that memory stays bounded, and what becomes of the attacker.
#![allow(clippy::print_stdout, reason = "the table")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::harness::{birth, claims, key_of, out, request};
use crate::process::{Place, Server, with_token};

/// How long an attack goes on that does not end by itself; `ONCEGATE_ATTACK_SECONDS` makes it longer.
fn span() -> Duration {
    let set = std::env::var("ONCEGATE_ATTACK_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(set.unwrap_or(1))
}

/// Memory that a gateway may take on during an attack, in MiB.
const BOUND_MIB: u64 = 96;

/// Limits that are reached within a test; all others are those of the reference deployment.
fn short(text: String) -> String {
    let mut text = text;
    for (from, to) in [
        ("handshake_timeout_ms = 5000", "handshake_timeout_ms = 400"),
        ("preface_timeout_ms = 5000", "preface_timeout_ms = 400"),
        ("read_idle_timeout_ms = 90000", "read_idle_timeout_ms = 1500"),
        ("keep_alive_interval_ms = 30000", "keep_alive_interval_ms = 300"),
        ("keep_alive_timeout_ms = 20000", "keep_alive_timeout_ms = 300"),
        ("default_timeout_ms = 10000", "default_timeout_ms = 600"),
        ("subject_per_minute = 30", "subject_per_minute = 1000000"),
        ("subject_burst = 60", "subject_burst = 1000000"),
        ("filter = \"info\"", "filter = \"error\""),
    ] {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    text
}

/// Calls fifty times a second and notes how long each took.
struct GoodClient {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Vec<(Instant, Result<Duration, String>)>>,
}

impl GoodClient {
    fn start(server: &Server) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (mut client, stopped) = (server.client(), stop.clone());
        let task = tokio::spawn(async move {
            let mut calls = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let answer = client.lookup(with_token(request())).await;
                calls.push((begun, answer.map(|_| begun.elapsed()).map_err(|status| status.to_string())));
                sleep(Duration::from_millis(20)).await;
            }
            calls
        });
        Self { stop, task }
    }

    async fn stop(self) -> Vec<(Instant, Result<Duration, String>)> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

fn percentile(mut times: Vec<Duration>, share: f64) -> f64 {
    times.sort();
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank")]
    let place = (times.len() as f64 * share) as usize;
    times.get(place.min(times.len().saturating_sub(1))).map_or(0.0, |time| time.as_secs_f64() * 1e3)
}

fn resident_mib(pid: u32) -> u64 {
    memory_mib(pid, "VmRSS:")
}

/// A line of the process's status.
fn memory_mib(pid: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() / 1024
}

/// A connection of the platform's certificate on which any bytes can be written.
async fn connect(server: &Server, alpn: &[&[u8]]) -> TlsStream<TcpStream> {
    let read = |path: &str| std::fs::read(out().join(path)).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&read("ca/gateway.pem")).unwrap()).unwrap();
    let chain = CertificateDer::pem_slice_iter(&read("systems/GA/household.pem")).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(&read("systems/GA/household.key")).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    let tcp = TcpStream::connect(server.address.trim_start_matches("https://")).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap()
}

/// What the gateway said to an attacker.
#[derive(Debug, Default)]
struct Heard {
    goaway: AtomicU64,
    resets: AtomicU64,
    answers: AtomicU64,
    closed: AtomicBool,
}

/// An HTTP/2 connection of hand-made frames.
struct Raw {
    write: Arc<Mutex<WriteHalf<TlsStream<TcpStream>>>>,
    heard: Arc<Heard>,
    broken: bool,
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

impl Raw {
    /// A peer that is `alive` answers PING, so that the keep-alive does not end its connection.
    async fn open(server: &Server, settings: &[u8], alive: bool) -> Self {
        let (mut read, write) = tokio::io::split(connect(server, &[b"h2"]).await);
        let heard = Arc::new(Heard::default());
        let write = Arc::new(Mutex::new(write));
        let (told, back) = (heard.clone(), write.clone());
        tokio::spawn(async move {
            let mut head = [0; 9];
            while read.read_exact(&mut head).await.is_ok() {
                let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
                if read.read_exact(&mut payload).await.is_err() {
                    break;
                }
                match head[3] {
                    HEADERS => drop(told.answers.fetch_add(1, Ordering::Relaxed)),
                    RST_STREAM => drop(told.resets.fetch_add(1, Ordering::Relaxed)),
                    PING if alive && head[4] == 0 => {
                        let mut write = back.lock().await;
                        let _ = write.write_all(&frame(PING, ACK, 0, &payload)).await;
                        let _ = write.flush().await;
                    }
                    GOAWAY => told.goaway.store(1 + u64::from(payload[7]), Ordering::Relaxed),
                    _ => {}
                }
            }
            told.closed.store(true, Ordering::Relaxed);
        });
        let mut raw = Self { write, heard, broken: false };
        raw.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        raw.send(&frame(SETTINGS, 0, 0, settings)).await;
        raw
    }

    async fn send(&mut self, bytes: &[u8]) {
        let sent = timeout(Duration::from_secs(2), async { self.write.lock().await.write_all(bytes).await }).await;
        self.broken |= !matches!(sent, Ok(Ok(())));
    }

    async fn flush(&mut self) {
        self.broken |= self.write.lock().await.flush().await.is_err();
    }

    fn is_over(&self) -> bool {
        self.broken || self.heard.closed.load(Ordering::Relaxed)
    }

    async fn until_closed(&self, most: Duration) -> bool {
        let end = Instant::now() + most;
        while !self.heard.closed.load(Ordering::Relaxed) && Instant::now() < end {
            sleep(Duration::from_millis(10)).await;
        }
        self.heard.closed.load(Ordering::Relaxed)
    }

    fn said(&self) -> String {
        let heard = &self.heard;
        let goaway = match heard.goaway.load(Ordering::Relaxed) {
            0 => String::new(),
            code => format!(", GOAWAY {}", code - 1),
        };
        let (answers, resets) = (heard.answers.load(Ordering::Relaxed), heard.resets.load(Ordering::Relaxed));
        let closed = if self.is_over() { "closed" } else { "open" };
        format!("{closed}{goaway}; {answers} answers, {resets} resets")
    }
}

/// Header block of a lookup with a good token.
fn headers(method: &str, token: bool) -> Vec<u8> {
    // :method POST, :scheme https; then literals without indexing (RFC 7541, appendix A).
    let mut block = vec![0x83, 0x87];
    let mut literal = |name: &[u8], value: &str| {
        block.extend(name);
        number(&mut block, value.len());
        block.extend(value.as_bytes());
    };
    literal(&[0x04], &format!("/oncegate.gateway.v1.LookupService/{method}"));
    literal(&[0x01], "localhost");
    literal(&[0x0f, 0x10], "application/grpc");
    if token {
        let claims = claims(&oncegate::clock::Clock::system(), "GA");
        literal(&[0x0f, 0x08], &format!("Bearer {}", key_of("platform").sign(&claims).unwrap()));
    }
    block
}

/// A length in HPACK with a prefix of 7 bits.
fn number(out: &mut Vec<u8>, mut value: usize) {
    if value < 127 {
        return out.push(u8::try_from(value).unwrap());
    }
    out.push(127);
    value -= 127;
    while value >= 128 {
        out.push(u8::try_from(value % 128).unwrap() | 128);
        value /= 128;
    }
    out.push(u8::try_from(value).unwrap());
}

fn message() -> Vec<u8> {
    let body = prost::Message::encode_to_vec(&request());
    let mut out = vec![0];
    out.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
    out.extend(body);
    out
}

fn odd_streams(count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(|number| number * 2 + 1)
}

/// Sends what `make` makes for one stream after the other until the gateway ends the connection or `count` are sent.
async fn flood(server: &Server, count: u32, make: impl Fn(u32) -> Vec<u8>) -> Raw {
    let mut raw = Raw::open(server, &[], true).await;
    for stream in odd_streams(count) {
        raw.send(&make(stream)).await;
        if stream % 200 == 1 {
            raw.flush().await;
        }
        if raw.is_over() {
            break;
        }
    }
    raw.flush().await;
    raw
}

const NAMES: [&str; 16] = [
    "silent sockets",
    "no HTTP/2 after TLS",
    "streams without end",
    "made-you-reset",
    "rapid reset",
    "calls that are cancelled",
    "half a message",
    "half a header",
    "CONTINUATION without end",
    "headers of 1 MiB",
    "PING flood",
    "SETTINGS flood",
    "a window of nothing",
    "a peer that answers no PING",
    "a message of 4 GiB",
    "more connections than allowed",
];

/// Runs one attack; tells what became of the attacker, and panics if that is not what the limits say.
async fn attack(name: &str, server: &Server) -> String {
    match name {
        "silent sockets" => {
            let address = server.address.trim_start_matches("https://").to_owned();
            let mut sockets = Vec::new();
            for _ in 0..60 {
                sockets.push(TcpStream::connect(&address).await.unwrap());
            }
            let mut closed = 0;
            for mut socket in sockets {
                let ended = timeout(Duration::from_secs(3), socket.read(&mut [0; 1])).await;
                closed += u32::from(matches!(ended, Ok(Ok(0) | Err(_))));
            }
            assert_eq!(closed, 60);
            "all 60 closed at handshake_timeout_ms".into()
        }
        "no HTTP/2 after TLS" => {
            let mut closed = 0;
            for _ in 0..20 {
                let mut tls = connect(server, &[b"h2"]).await;
                let ended =
                    timeout(Duration::from_secs(3), async { while matches!(tls.read(&mut [0; 64]).await, Ok(1..)) {} });
                closed += u32::from(ended.await.is_ok());
            }
            assert_eq!(closed, 20);
            "all 20 closed at preface_timeout_ms".into()
        }
        "streams without end" => {
            let block = headers("Lookup", true);
            let raw = flood(server, 20_000, |stream| frame(HEADERS, END_HEADERS, stream, &block)).await;
            sleep(span()).await;
            assert!(raw.is_over() || raw.heard.resets.load(Ordering::Relaxed) > 0, "{}", raw.said());
            raw.said()
        }
        "made-you-reset" => {
            let block = headers("Lookup", true);
            let raw = flood(server, 20_000, |stream| {
                let mut both = frame(HEADERS, END_HEADERS, stream, &block);
                // Beyond the greatest window: the gateway must reset the stream itself (CVE-2025-8671).
                both.extend(frame(WINDOW_UPDATE, 0, stream, &0x7fff_ffff_u32.to_be_bytes()));
                both
            })
            .await;
            assert!(raw.until_closed(Duration::from_secs(3)).await, "{}", raw.said());
            raw.said()
        }
        "rapid reset" => {
            let block = headers("Lookup", true);
            let raw = flood(server, 20_000, |stream| {
                let mut both = frame(HEADERS, END_HEADERS, stream, &block);
                both.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
                both
            })
            .await;
            assert!(raw.until_closed(Duration::from_secs(3)).await, "{}", raw.said());
            raw.said()
        }
        "calls that are cancelled" => {
            let (block, body) = (headers("Lookup", true), message());
            let raw = flood(server, 3_000, |stream| {
                let mut all = frame(HEADERS, END_HEADERS, stream, &block);
                all.extend(frame(DATA, END_STREAM, stream, &body));
                all.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
                all
            })
            .await;
            assert!(raw.until_closed(Duration::from_secs(3)).await, "{}", raw.said());
            raw.said()
        }
        "half a message" => {
            let (block, body) = (headers("Lookup", true), message());
            let raw = flood(server, 90, |stream| {
                let mut all = frame(HEADERS, END_HEADERS, stream, &block);
                all.extend(frame(DATA, 0, stream, &body[..body.len() / 2]));
                all
            })
            .await;
            // The calls end at their deadline and the guard's grace, though the connection may stay.
            sleep(Duration::from_secs(5)).await;
            let answers = raw.heard.answers.load(Ordering::Relaxed);
            assert!(answers >= 90, "{}", raw.said());
            raw.said()
        }
        "half a header" => {
            let mut raw = Raw::open(server, &[], true).await;
            raw.send(&frame(HEADERS, 0, 1, &headers("Lookup", true)[..20])).await;
            raw.flush().await;
            assert!(raw.until_closed(Duration::from_secs(4)).await, "{}", raw.said());
            raw.said()
        }
        "CONTINUATION without end" => {
            let mut raw = Raw::open(server, &[], true).await;
            raw.send(&frame(HEADERS, 0, 1, &headers("Lookup", true))).await;
            for _ in 0..20_000 {
                raw.send(&frame(CONTINUATION, 0, 1, &[0, 1, b'a', 1, b'b'])).await;
                if raw.is_over() {
                    break;
                }
            }
            raw.flush().await;
            assert!(raw.until_closed(Duration::from_secs(4)).await, "{}", raw.said());
            raw.said()
        }
        "headers of 1 MiB" => {
            let mut raw = Raw::open(server, &[], true).await;
            let mut block = headers("Lookup", true);
            block.extend([0, 1, b'x']);
            number(&mut block, 1 << 20);
            block.extend(std::iter::repeat_n(b'y', 1 << 20));
            let mut parts = block.chunks(16_384).peekable();
            let mut kind = HEADERS;
            while let Some(part) = parts.next() {
                let flags = if parts.peek().is_some() { 0 } else { END_HEADERS };
                raw.send(&frame(kind, flags, 1, part)).await;
                kind = CONTINUATION;
            }
            raw.flush().await;
            sleep(Duration::from_millis(500)).await;
            let refused = raw.heard.answers.load(Ordering::Relaxed) + raw.heard.resets.load(Ordering::Relaxed);
            assert!(raw.is_over() || refused > 0, "{}", raw.said());
            raw.said()
        }
        "PING flood" | "SETTINGS flood" => {
            let one = if name == "PING flood" { frame(PING, 0, 0, &[0; 8]) } else { frame(SETTINGS, 0, 0, &[]) };
            let mut raw = Raw::open(server, &[], true).await;
            let many = one.repeat(500);
            let end = Instant::now() + span();
            while Instant::now() < end && !raw.is_over() {
                raw.send(&many).await;
            }
            raw.said()
        }
        "a window of nothing" => {
            // SETTINGS_INITIAL_WINDOW_SIZE (4) of 0: no answer can be sent.
            let mut raw = Raw::open(server, &[0, 4, 0, 0, 0, 0], true).await;
            let (block, body) = (headers("Lookup", true), message());
            for stream in odd_streams(90) {
                raw.send(&frame(HEADERS, END_HEADERS, stream, &block)).await;
                raw.send(&frame(DATA, END_STREAM, stream, &body)).await;
            }
            raw.flush().await;
            sleep(span()).await;
            raw.said()
        }
        "a peer that answers no PING" => {
            let mut raw = Raw::open(server, &[], false).await;
            raw.flush().await;
            assert!(raw.until_closed(Duration::from_secs(3)).await, "{}", raw.said());
            raw.said()
        }
        "a message of 4 GiB" => {
            let block = headers("Lookup", true);
            let raw = flood(server, 50, |stream| {
                let mut all = frame(HEADERS, END_HEADERS, stream, &block);
                all.extend(frame(DATA, 0, stream, &[0, 0xff, 0xff, 0xff, 0xff, 1, 2, 3]));
                all
            })
            .await;
            sleep(span()).await;
            assert!(raw.heard.answers.load(Ordering::Relaxed) >= 50, "{}", raw.said());
            raw.said()
        }
        "more connections than allowed" => {
            let mut open = Vec::new();
            for _ in 0..100 {
                let connected = timeout(Duration::from_secs(2), async {
                    let mut raw = Raw::open(server, &[], true).await;
                    raw.flush().await;
                    raw
                });
                open.extend(connected.await);
            }
            sleep(Duration::from_millis(200)).await;
            let kept = open.iter().filter(|raw| !raw.is_over()).count();
            assert!(kept <= 64, "{kept} connections of one caller");
            format!("{kept} of 100 kept")
        }
        _ => panic!("no attack `{name}`"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_attack_harms_a_good_client() {
    let place = Place::new(short).await;
    place.birth.answers(vec![birth()]);
    let server = place.start();
    let pid = server.child.id();
    let good = GoodClient::start(&server);
    sleep(Duration::from_millis(700)).await;
    let quiet_mib = resident_mib(pid);
    let (mut phases, mut rows) = (vec![("before", Instant::now())], Vec::new());
    for name in NAMES {
        let (before, begun) = (resident_mib(pid), Instant::now());
        // Again and again, so that the good client has enough calls to tell how it fared.
        let mut outcome = attack(name, &server).await;
        while begun.elapsed() < span() {
            outcome = attack(name, &server).await;
        }
        let after = resident_mib(pid);
        rows.push((name, begun, Instant::now(), before, after, outcome));
        assert!(after < before + BOUND_MIB, "{name}: {before} MiB before, {after} after");
        sleep(Duration::from_millis(150)).await;
    }
    sleep(Duration::from_millis(700)).await;
    phases.push(("after", Instant::now()));
    let most = memory_mib(pid, "VmHWM:");
    assert!(most < quiet_mib + BOUND_MIB, "{quiet_mib} MiB before, {most} at its peak");
    let calls = good.stop().await;
    let times = |from: Instant, to: Instant| -> Vec<Duration> {
        let within = calls.iter().filter(|(begun, _)| from <= *begun && *begun < to);
        within.filter_map(|(_, took)| took.clone().ok()).collect()
    };
    let (first, quiet) = (calls[0].0, phases[0].1);
    println!("{:<32} {:>6} {:>8} {:>8} {:>9}  attacker", "attack", "calls", "p50 ms", "p99 ms", "RSS MiB");
    let line = |name: &str, times: Vec<Duration>, memory: String, outcome: &str| {
        let (count, p50, p99) = (times.len(), percentile(times.clone(), 0.5), percentile(times, 0.99));
        println!("{name:<32} {count:>6} {p50:>8.2} {p99:>8.2} {memory:>9}  {outcome}");
    };
    line("(none, before)", times(first, quiet), String::new(), "");
    let mut end = quiet;
    for (name, begun, ended, before, after, outcome) in rows {
        line(name, times(begun, ended), format!("{before}-{after}"), &outcome);
        end = ended;
    }
    line("(none, after)", times(end, Instant::now()), String::new(), "");
    let failed: Vec<_> = calls.iter().filter_map(|(_, took)| took.as_ref().err()).collect();
    assert!(failed.is_empty(), "{} of {} calls failed, the first: {}", failed.len(), calls.len(), failed[0]);
    assert!(calls.len() > 100);

    // Every call of the attackers that was admitted is on record, alone or counted, and floods did not fill the log.
    assert_eq!(server.terminate(), Some(0), "the gateway ends in order");
    let entries = place.log().len();
    assert!(entries < calls.len() + 5_000, "{entries} entries");
}

/// User and system time of a process, in hundredths of a second.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_descriptors_the_accept_loop_rests_and_recovers() {
    let place =
        Place::new(|text| short(text).replace("handshake_timeout_ms = 400", "handshake_timeout_ms = 20000")).await;
    place.birth.answers(vec![birth()]);
    let server = place.start_with_descriptors(64);
    let mut client = server.client();
    client.lookup(with_token(request())).await.unwrap();
    let address = server.address.trim_start_matches("https://").to_owned();
    let mut sockets = Vec::new();
    for _ in 0..100 {
        sockets.push(TcpStream::connect(&address).await.unwrap());
    }
    sleep(Duration::from_millis(200)).await;
    let begun = ticks(server.child.id());
    sleep(Duration::from_secs(1)).await;
    let spent = ticks(server.child.id()) - begun;
    assert!(spent < 30, "{spent} hundredths of a second of CPU in one second without descriptors");
    client.lookup(with_token(request())).await.expect("whoever is connected goes on");
    drop(sockets);
    sleep(Duration::from_millis(500)).await;
    server.client().lookup(with_token(request())).await.expect("newcomers are taken again");
}
