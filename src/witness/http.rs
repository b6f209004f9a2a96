//! A witness over HTTP: `POST /add-checkpoint` (C2SP tlog-witness), and `GET /<SHA-256 of the origin>/checkpoint` for
//! those who want to know what it last cosigned, a gateway that starts above all.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tonic::body::Body;
use tower::Service;

use super::config::WitnessTls;
use super::{Refused, Witness, WitnessFile};
use crate::certs::{self, Connection, Gate, HardeningConfig};
use crate::clock::Clock;
use crate::watched::{POLL, Watched};

/// Longest request: a note of 64 KiB and 64 hashes.
const MAX_REQUEST: usize = 72 << 10;
/// Plain connections at once.
const MAX_CONNECTIONS: usize = 64;
/// A plain connection's whole life.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);

/// Serves a witness until `shutdown`. Tells the address by `bound`. Its certificate, its callers' CAs and a mirror's
/// identity follow their files.
///
/// # Errors
/// If the address can't be had, or the TLS material not be used.
pub async fn serve(
    witness: Arc<Witness>,
    config: &WitnessFile,
    clock: Clock,
    bound: impl FnOnce(SocketAddr),
    shutdown: impl Future<Output = ()>,
) -> Result<(), String> {
    let listener = TcpListener::bind(config.listen).await.map_err(|error| format!("{}: {error}", config.listen))?;
    bound(listener.local_addr().map_err(|error| error.to_string())?);
    let mut followers = JoinSet::new();
    for channel in witness.channels() {
        followers.spawn(channel.clone().keep_following(|| None));
    }
    match &config.tls {
        Some(tls) => {
            let files = Watched::new(tls.files());
            let generation = tls.load(&config.trust_domain, None, &clock)?;
            let gate = Gate::new(generation, HardeningConfig::default(), clock.clone());
            let gate = gate.map_err(|faults| faults.to_string())?;
            followers.spawn(follow(files, tls.clone(), config.trust_domain.clone(), gate.clone(), clock));
            certs::serve(listener, gate, Submissions { witness, over_tls: true }, shutdown).await;
        }
        None => plain(listener, Submissions { witness, over_tls: false }, shutdown).await,
    }
    Ok(())
}

/// Lets the certificate and the callers' CAs change while a witness runs. What is not in order is tried again until it
/// is, for a certificate may be of tomorrow; the ones from before serve meanwhile.
async fn follow(mut files: Watched, tls: WitnessTls, trust_domain: String, gate: Arc<Gate>, clock: Clock) {
    let mut ticks = tokio::time::interval(POLL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut refused = None;
    loop {
        ticks.tick().await;
        let (tls, domain, gate, clock) = (tls.clone(), trust_domain.clone(), gate.clone(), clock.clone());
        let (again, mut seen) = (refused.is_some(), files);
        // Reads files, and judging open connections may take signatures.
        let looked = tokio::task::spawn_blocking(move || {
            let changed = seen.changed() || again;
            let load = || tls.load(&domain, Some(&gate.current()), &clock);
            let install = |generation| gate.install(generation).map_err(|error| error.to_string());
            (changed.then(|| load().and_then(install)), seen)
        });
        let Ok((loaded, seen)) = looked.await else { return };
        files = seen;
        match loaded {
            None => {}
            Some(Ok(_)) => {
                refused = None;
                tracing::info!("another certificate, or other CAs of callers, are used");
            }
            Some(Err(why)) if refused.as_ref() == Some(&why) => {}
            Some(Err(why)) => {
                tracing::error!(why, "certificate or CAs of callers refused; those from before are used");
                refused = Some(why);
            }
        }
    }
}

async fn plain(listener: TcpListener, service: Submissions, shutdown: impl Future<Output = ()>) {
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => return,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if connections.len() < MAX_CONNECTIONS => {
                    let service = service.clone();
                    connections.spawn(async move {
                        let answer = service_fn(|request: Request<hyper::body::Incoming>| {
                            service.clone().call(request.map(Body::new))
                        });
                        let serving = http1::Builder::new()
                            .timer(TokioTimer::new())
                            .header_read_timeout(Duration::from_secs(5))
                            .max_buf_size(16 * 1024)
                            .serve_connection(TokioIo::new(stream), answer);
                        // What a peer does to its own connection is of no interest.
                        let _ = tokio::time::timeout(CONNECTION_TIMEOUT, serving).await;
                    });
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "witness: accept failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

/// The service.
#[derive(Debug, Clone)]
struct Submissions {
    witness: Arc<Witness>,
    /// Then only admitted connections are answered. Without TLS the log's signature alone decides, as C2SP has it.
    over_tls: bool,
}

impl Service<Request<Body>> for Submissions {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let service = self.clone();
        async move { Ok(service.answer(request).await) }.boxed()
    }
}

impl Submissions {
    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        if self.over_tls && request.extensions().get::<Arc<Connection>>().is_none() {
            return text(StatusCode::FORBIDDEN, "this certificate is not admitted\n");
        }
        let path = request.uri().path().to_owned();
        match (request.method(), path.as_str()) {
            (&Method::POST, "/add-checkpoint") => {
                let Ok(body) = Limited::new(request.into_body(), MAX_REQUEST).collect().await else {
                    return text(StatusCode::BAD_REQUEST, "the request is too large, or broke off\n");
                };
                let body = body.to_bytes();
                match std::str::from_utf8(&body) {
                    Ok(body) => self.add(body).await,
                    Err(_) => text(StatusCode::BAD_REQUEST, "not text\n"),
                }
            }
            (_, "/add-checkpoint") => text(StatusCode::METHOD_NOT_ALLOWED, "POST only\n"),
            (&Method::GET, path) => {
                let id = path.strip_prefix('/').and_then(|path| path.strip_suffix("/checkpoint"));
                match id {
                    Some(id) => match self.witness.latest(id) {
                        Some(note) => text(StatusCode::OK, note.as_str()),
                        None => text(StatusCode::NOT_FOUND, "nothing was cosigned of such a log\n"),
                    },
                    None => text(StatusCode::NOT_FOUND, "not found\n"),
                }
            }
            _ => text(StatusCode::NOT_FOUND, "not found\n"),
        }
    }

    async fn add(&self, body: &str) -> Response<Body> {
        let refused = match self.witness.add_checkpoint(body).await {
            Ok(cosignature) => return text(StatusCode::OK, cosignature),
            Err(refused) => refused,
        };
        let status = match &refused {
            Refused::Form => StatusCode::BAD_REQUEST,
            Refused::UnknownLog => StatusCode::NOT_FOUND,
            Refused::Unsigned => StatusCode::FORBIDDEN,
            Refused::Inconsistent => StatusCode::UNPROCESSABLE_ENTITY,
            Refused::NotHeld(why) => {
                tracing::error!(why, "mirror: not cosigned");
                StatusCode::SERVICE_UNAVAILABLE
            }
            Refused::Io(error) => {
                tracing::error!(%error, "witness: not cosigned");
                StatusCode::INTERNAL_SERVER_ERROR
            }
            Refused::Conflict(size) => {
                let mut response = text(StatusCode::CONFLICT, format!("{size}\n"));
                response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/x.tlog.size"));
                return response;
            }
        };
        text(status, format!("{refused}\n"))
    }
}

/// A short answer in text.
pub(super) fn text(status: StatusCode, body: impl Into<String>) -> Response<Body> {
    respond(status, HeaderValue::from_static("text/plain; charset=utf-8"), body.into().into_bytes())
}

pub(super) fn respond(status: StatusCode, content_type: HeaderValue, body: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(body.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}
