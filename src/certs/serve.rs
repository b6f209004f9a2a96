//! The accept loop: TCP, TLS, HTTP/2, and requests that passed the gate.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::CertificateDer;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tower::{Service, ServiceExt as _};

use super::callers::JudgeError;
use super::config::HardeningConfig;
use super::connection::Order;
use super::gate::{Gate, Place, RefusedRequest, Registered};
use super::generation::ALPN;
use super::guard::Guarded;

/// How often connections are looked at that make no request: their certificate may have expired.
const SWEEP: Duration = Duration::from_secs(30);

/// Serves `service` on `listener` until `shutdown` is ready, then lets requests under way finish within the grace
/// (`shutdown_grace_ms`). Returns how many connections were cut because they did not.
///
/// A request that the gate admitted carries an `Arc<Connection>` in its extensions. Any other carries a
/// [`RefusedRequest`] instead, so that the refusal can be recorded; a service that looks for neither serves nobody.
pub async fn serve<S>(listener: TcpListener, gate: Arc<Gate>, service: S, shutdown: impl Future<Output = ()>) -> usize
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    let host = Host {
        handshakes: Arc::new(Semaphore::new(gate.hardening().max_handshakes)),
        stop: CancellationToken::new(),
        gate: gate.clone(),
    };
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    let mut sweeps = interval(SWEEP);
    sweeps.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.as_mut() => break,
            accepted = listener.accept() => match accepted {
                Ok((tcp, peer)) => match gate.enter(peer.ip()) {
                    Ok(place) => {
                        connections.spawn(host.clone().connection(tcp, place, service.clone()));
                    }
                    // Dropping the socket closes it at once: a full house must not pay for a handshake.
                    Err(turned) => tracing::debug!(%peer, reason = %turned, "connection turned away"),
                },
                Err(error) => accept_failed(&error, gate.hardening()).await,
            },
            Some(_) = connections.join_next() => {}
            _ = sweeps.tick() => {
                let gate = gate.clone();
                // Judging may take signatures, which must not hold a worker.
                tokio::task::spawn_blocking(move || gate.sweep());
            }
        }
    }
    drop(listener);
    host.stop.cancel();
    drain(&mut connections, Duration::from_millis(gate.hardening().shutdown_grace_ms)).await
}

/// Waits for the connections to end, cuts the rest, and counts those that did not end by themselves.
async fn drain(connections: &mut JoinSet<Ending>, grace: Duration) -> usize {
    let end = Instant::now() + grace;
    let mut cut = 0;
    while let Ok(Some(ended)) = timeout_at(end, connections.join_next()).await {
        cut += usize::from(!matches!(ended, Ok(Ending::Closed)));
    }
    cut += connections.len();
    connections.shutdown().await;
    cut
}

async fn accept_failed(error: &io::Error, hardening: &HardeningConfig) {
    // The peer left before it was taken up: nothing is wrong here.
    if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
        return;
    }
    // Out of descriptors or memory; trying again at once would spin.
    tracing::warn!(%error, "can't accept connections");
    sleep(Duration::from_millis(hardening.accept_pause_ms)).await;
}

/// How a connection ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// By itself, or before it served anything.
    Closed,
    /// With requests under way.
    Cut,
}

/// What every connection's task has.
#[derive(Clone)]
struct Host {
    gate: Arc<Gate>,
    handshakes: Arc<Semaphore>,
    /// Cancelled when the listener stops.
    stop: CancellationToken,
}

impl Host {
    async fn connection<S>(self, tcp: TcpStream, _place: Place, service: S) -> Ending
    where
        S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send,
    {
        let taken = tokio::select! {
            taken = self.take(tcp) => taken,
            () = self.stop.cancelled() => return Ending::Closed,
        };
        match taken {
            Some((tls, registered)) => self.serve(tls, &registered, service).await,
            None => Ending::Closed,
        }
    }

    /// Handshake and registration; `None` if the peer was refused.
    async fn take(&self, tcp: TcpStream) -> Option<(TlsStream<TcpStream>, Registered)> {
        let hardening = self.gate.hardening();
        let peer = tcp.peer_addr().ok()?;
        let refuse = |word: &'static str, reason: &dyn std::fmt::Display| {
            self.gate.handshake_refused(word);
            tracing::info!(%peer, reason = %printable(reason), "connection refused");
        };
        if let Err(error) = prepare(&tcp, hardening) {
            refuse("socket", &error);
            return None;
        }
        let handshake = async {
            let _one = self.handshakes.acquire().await.map_err(io::Error::other)?;
            TlsAcceptor::from(self.gate.current().server_config().clone()).accept(tcp).await
        };
        let tls = match timeout(Duration::from_millis(hardening.handshake_timeout_ms), handshake).await {
            Ok(Ok(tls)) => tls,
            Ok(Err(error)) => {
                refuse(word_of(&error), &error);
                return None;
            }
            Err(_) => {
                refuse("timeout", &"the handshake took too long");
                return None;
            }
        };
        // A client that offers no protocol at all passes rustls.
        if tls.get_ref().1.alpn_protocol() != Some(ALPN) {
            refuse("alpn", &"the client did not offer h2 (ALPN)");
            return None;
        }
        let chain = tls.get_ref().1.peer_certificates().unwrap_or_default();
        let chain = chain.iter().cloned().map(CertificateDer::into_owned).collect();
        match self.gate.register(peer, chain) {
            Ok(registered) => {
                self.gate.counters.handshakes_done.fetch_add(1, Ordering::Relaxed);
                Some((tls, registered))
            }
            Err(turned) => {
                refuse(turned.word(), &turned);
                None
            }
        }
    }

    async fn serve<S>(&self, tls: TlsStream<TcpStream>, registered: &Registered, service: S) -> Ending
    where
        S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send,
    {
        let hardening = self.gate.hardening();
        let connection = &registered.connection;
        let (gate, stamp) = (self.gate.clone(), connection.clone());
        let requests = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let admitted = gate.admit(&stamp);
            let mut request = request.map(Body::new);
            match admitted {
                Ok(()) => drop(request.extensions_mut().insert(stamp.clone())),
                Err(refusal) => {
                    request.extensions_mut().insert(RefusedRequest { connection: stamp.clone(), refusal });
                }
            }
            service.clone().oneshot(request)
        });
        let transport = Guarded::new(
            tls,
            Duration::from_millis(hardening.preface_timeout_ms),
            Duration::from_millis(hardening.read_idle_timeout_ms),
        );
        let killed = connection.clone();
        let transport = transport.at_end(move |tls| {
            // What the peer has not taken yet it shall not get: the socket is reset, and its buffer with it.
            if killed.order() == Order::Kill {
                _ = SockRef::from(tls.get_ref().0).set_linger(Some(Duration::ZERO));
            }
        });
        let mut http = pin!(http2_builder(hardening).serve_connection(TokioIo::new(transport), requests));
        let mut orders = connection.orders();
        let mut order = *orders.borrow_and_update();
        let mut stopping = self.stop.is_cancelled();
        let mut draining = false;
        // First the connection's age; once it drains, its hard end.
        let mut alarm = pin!(sleep(with_jitter(Duration::from_secs(hardening.connection_age_s))));
        loop {
            if order == Order::Kill {
                return Ending::Cut;
            }
            if !draining && (stopping || order == Order::Drain) {
                draining = true;
                http.as_mut().graceful_shutdown();
                alarm.as_mut().reset(Instant::now() + Duration::from_millis(hardening.connection_grace_ms));
            }
            tokio::select! {
                result = http.as_mut() => {
                    if let Err(error) = result {
                        tracing::debug!(connection = connection.id(), caller = %connection.caller().id(),
                            error = %printable(&source_of(&error)), "connection ended by an error");
                    }
                    return Ending::Closed;
                }
                () = alarm.as_mut() => {
                    // While the listener stops, its own grace is the hard end.
                    if !draining {
                        order = Order::Drain;
                    } else if stopping {
                        alarm.as_mut().reset(Instant::now() + Duration::from_millis(hardening.shutdown_grace_ms));
                    } else {
                        return Ending::Cut;
                    }
                }
                () = self.stop.cancelled(), if !stopping => stopping = true,
                Ok(()) = orders.changed() => order = *orders.borrow_and_update(),
            }
        }
    }
}

/// Why a handshake failed, in a word of the program.
fn word_of(error: &io::Error) -> &'static str {
    use rustls::{CertificateError, Error, OtherError};
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(Error::NoCertificatesPresented) => "no_certificate",
        Some(Error::InvalidCertificate(CertificateError::Revoked)) => "revoked",
        Some(Error::InvalidCertificate(CertificateError::Expired)) => "expired",
        Some(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => "unknown_issuer",
        Some(Error::InvalidCertificate(CertificateError::Other(OtherError(error)))) => {
            error.downcast_ref::<JudgeError>().map_or("chain", JudgeError::word)
        }
        Some(Error::InvalidCertificate(_)) => "chain",
        Some(_) => "protocol",
        None => "broken",
    }
}

fn http2_builder(hardening: &HardeningConfig) -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(hardening.max_concurrent_streams)
        .max_local_error_reset_streams(Some(hardening.max_local_error_reset_streams))
        .max_pending_accept_reset_streams(Some(hardening.max_pending_accept_reset_streams))
        .max_header_list_size(hardening.max_header_list_bytes)
        .keep_alive_interval(Duration::from_millis(hardening.keep_alive_interval_ms))
        .keep_alive_timeout(Duration::from_millis(hardening.keep_alive_timeout_ms))
        .initial_stream_window_size(hardening.initial_stream_window_bytes)
        .initial_connection_window_size(hardening.initial_connection_window_bytes)
        .max_send_buf_size(hardening.max_send_buf_bytes)
        .max_frame_size(hardening.max_frame_bytes)
        .adaptive_window(false);
    builder
}

fn prepare(tcp: &TcpStream, hardening: &HardeningConfig) -> io::Result<()> {
    let quiet = Duration::from_secs(hardening.tcp_keepalive_s);
    tcp.set_nodelay(true)?;
    SockRef::from(tcp).set_tcp_keepalive(&TcpKeepalive::new().with_time(quiet).with_interval(quiet))
}

/// `age` ±10 %, so that connections opened together do not return together.
fn with_jitter(age: Duration) -> Duration {
    age.mul_f64(rand::random_range(0.9..=1.1))
}

/// At most 200 characters, control characters and quotes escaped: text that a peer may have influenced.
fn printable(text: &dyn std::fmt::Display) -> String {
    text.to_string().chars().take(200).flat_map(char::escape_debug).collect()
}

/// hyper's own text says only "connection error"; the cause says which.
fn source_of(error: &hyper::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_age_stays_within_ten_percent_and_varies() {
        let ages: Vec<_> = (0..200).map(|_| with_jitter(Duration::from_secs(100))).collect();
        assert!(ages.iter().all(|age| (90.0..=110.0).contains(&age.as_secs_f64())));
        assert!(ages.iter().any(|age| *age != ages[0]));
    }

    #[test]
    fn a_peers_text_can_not_forge_log_lines() {
        assert_eq!(printable(&"a\nb\"\u{1b}[1m"), "a\\nb\\\"\\u{1b}[1m");
        assert_eq!(printable(&"x".repeat(9_000)).len(), 200);
    }
}
