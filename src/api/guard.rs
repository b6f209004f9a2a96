//! The outermost layer: every call of an authenticated connection passes here, and none leaves without an entry in the
//! access log, whether or not a handler ever saw it.
//!
//! Before the body is read it checks the form of the call, the caller's limit and the gateway's own. Around the handler
//! it keeps the deadline and catches panics. Behind it, a call that nobody recorded is recorded as REJECTED.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use serde::Deserialize;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::Service;
use tracing::Instrument as _;

use super::rpcs::{self, Audit, Needs, Rpc};
use super::single::Single;
use super::status::{self, REQUEST_ID};
use crate::catalog::Faults;
use crate::certs::{self, Connection, RefusedRequest};
use crate::ids::RequestId;
use crate::lookup::{Call, CallStart, Gateway, Reason, Refusal, Refused};
use crate::telemetry::TraceContext;

/// Bounds on calls.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CallConfig {
    /// Largest request message, in bytes; 1 KiB to 16 MiB.
    pub max_request_bytes: usize,
    /// Largest answer message, in bytes; 1 KiB to 256 MiB.
    pub max_answer_bytes: usize,
    /// Calls in progress in all; more are refused with `GATEWAY_LIMITED`. At most a million.
    pub in_flight: usize,
    /// Time a call may take if it states none, in milliseconds; at most `max_timeout_ms`.
    pub default_timeout_ms: u64,
    /// Time a call may take at most, in milliseconds; ten minutes at most.
    pub max_timeout_ms: u64,
}

impl Default for CallConfig {
    fn default() -> Self {
        Self {
            max_request_bytes: 64 * 1024,
            max_answer_bytes: 8 * 1024 * 1024,
            in_flight: 4096,
            default_timeout_ms: 10_000,
            max_timeout_ms: 60_000,
        }
    }
}

/// Longest time that `max_timeout_ms` may allow.
const LONGEST_MS: u64 = 600_000;

impl CallConfig {
    /// Adds a fault, placed at `file`, for every option out of its bounds.
    pub fn check(&self, file: &Path, faults: &mut Faults) {
        let (request, answer) = (self.max_request_bytes as u64, self.max_answer_bytes as u64);
        for (name, value, least, most) in [
            ("max_request_bytes", request, 1_024, 16 << 20),
            ("max_answer_bytes", answer, 1_024, 256 << 20),
            ("in_flight", self.in_flight as u64, 1, 1_000_000),
            ("max_timeout_ms", self.max_timeout_ms, 1, LONGEST_MS),
            ("default_timeout_ms", self.default_timeout_ms, 1, self.max_timeout_ms.max(1)),
        ] {
            if !(least..=most).contains(&value) {
                faults.of(file, format!("[calls] {name} is {value}; it must be {least} to {most}"));
            }
        }
    }
}

/// A lookup ends by itself at its deadline, and its entry is waited for at most [`Journal::longest_wait`]; this much later
/// the guard stops waiting for one that did not end.
///
/// [`Journal::longest_wait`]: crate::audit::Journal::longest_wait
const DEADLINE_GRACE: Duration = Duration::from_secs(1);

/// The layer around the gateway's services.
#[derive(Clone, Debug)]
pub struct Guard<S> {
    inner: S,
    gateway: Arc<Gateway>,
    config: Arc<CallConfig>,
    places: Arc<Semaphore>,
}

impl<S> Guard<S> {
    /// Around `inner`.
    pub fn new(inner: S, gateway: Arc<Gateway>, config: CallConfig) -> Self {
        let places = Arc::new(Semaphore::new(config.in_flight));
        Self { inner, gateway, config: Arc::new(config), places }
    }
}

impl<S> Service<Request<Body>> for Guard<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The instance that is ready is the one to call.
        let fresh = self.inner.clone();
        let mut guard = self.clone();
        guard.inner = std::mem::replace(&mut self.inner, fresh);
        let id = RequestId::generate();
        let row = rpcs::find(request.uri().path());
        let span = tracing::info_span!("call", request_id = %id, method = row.map_or(rpcs::UNKNOWN, |row| row.path));
        async move {
            let mut response = guard.handle(id, row, request).await;
            if let Ok(value) = HeaderValue::from_str(&id.to_string()) {
                response.headers_mut().insert(REQUEST_ID, value);
            }
            Ok(response)
        }
        .instrument(span)
        .boxed()
    }
}

impl<S> Guard<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    async fn handle(mut self, id: RequestId, row: Option<&'static Rpc>, request: Request<Body>) -> Response<Body> {
        let started = Instant::now();
        let Some((connection, refusal)) = judged(&request) else {
            return Status::internal("the connection was not admitted").into_http();
        };
        let exempt = row.is_some_and(|row| row.audit == Audit::Exempt);
        if exempt && refusal.is_none() {
            // Not recorded, but not for free.
            if let Err(limited) = self.gateway.limits.admit_caller(connection.caller()) {
                return Status::resource_exhausted(limited.to_string()).into_http();
            }
            return self.inner.call(request).await.unwrap_or_else(|never| match never {});
        }
        // The log is not closed before this call, whatever becomes of it, has its entry.
        let _owes = self.gateway.tasks.token();
        let mut head = Head::read(request.headers(), &self.config);
        // Nothing else matters on such a connection.
        head.fault = refusal.map(Refused::from).or(head.fault);
        let start = CallStart {
            id,
            caller: connection.caller().clone(),
            peer: connection.peer(),
            method: row.map_or(rpcs::UNKNOWN, |row| row.path),
            token: head.token,
            caller_request_id: head.caller_request_id,
            sign_receipt: head.sign_receipt,
            trace: head.trace,
            started,
            deadline: started + head.timeout.unwrap_or(Duration::from_millis(self.config.default_timeout_ms)),
        };
        let call = match self.gateway.admit(start).await {
            Ok(call) => Arc::new(call),
            Err(refusal) => return self.finished(row, started, status::of(&refusal, id).into_http()),
        };
        // Dropped with this future if the caller goes away before a handler took the call over.
        let mut unsaid = Unsaid { gateway: self.gateway.clone(), call: Some(call.clone()) };
        let response = self.respond(row, &call, head.fault, request).await;
        unsaid.call = None;
        self.finished(row, started, response)
    }

    async fn respond(
        &mut self,
        row: Option<&'static Rpc>,
        call: &Arc<Call>,
        fault: Option<Refused>,
        mut request: Request<Body>,
    ) -> Response<Body> {
        let refuse = async |refused: Refused| {
            let refusal = self.gateway.reject(call, refused).await;
            status::of(&refusal, call.id).into_http()
        };
        if let Some(fault) = fault {
            return refuse(fault).await;
        }
        let Some(row) = row else { return refuse(Reason::MethodUnknown.into()).await };
        if let Some(fault) = form(&request, row) {
            return refuse(fault).await;
        }
        let Ok(_place) = self.places.clone().try_acquire_owned() else {
            let retry_after = Some(Duration::from_secs(1));
            return refuse(Refused { retry_after, ..Refused::new(Reason::GatewayLimited) }).await;
        };
        request.extensions_mut().insert(call.clone());
        let request = request.map(|body| Body::new(Single::new(body)));

        let handled = AssertUnwindSafe(self.inner.call(request)).catch_unwind();
        let last = call.deadline + self.gateway.journal.longest_wait() + DEADLINE_GRACE;
        let handled = tokio::time::timeout_at(last, handled).await;
        let refused = match handled {
            Ok(Ok(Ok(response))) => {
                let owes_nothing = row.audit == Audit::Refusals && code_of(&response) == Code::Ok;
                if call.is_claimed() || owes_nothing {
                    return response;
                }
                unrecorded(&response, &self.config)
            }
            Ok(Ok(Err(never))) => match never {},
            Ok(Err(_panic)) => {
                tracing::error!("a handler panicked");
                Reason::Internal.into()
            }
            Err(_elapsed) => Reason::DeadlineExceeded.into(),
        };
        let refusal = self.gateway.reject(call, refused).await;
        status::of(&refusal, call.id).into_http()
    }

    /// Counts the call and says in one line how it ended.
    fn finished(&self, row: Option<&'static Rpc>, started: Instant, response: Response<Body>) -> Response<Body> {
        let (method, code, took) = (row.map_or(rpcs::UNKNOWN, |row| row.path), code_of(&response), started.elapsed());
        self.gateway.metrics.request(method, code_name(code), took);
        tracing::debug!(code = code_name(code), took_us = took.as_micros(), "answered");
        response
    }
}

/// By which connection a request came, and why that one no longer allows it.
fn judged(request: &Request<Body>) -> Option<(Arc<Connection>, Option<Reason>)> {
    let extensions = request.extensions();
    if let Some(RefusedRequest { connection, refusal }) = extensions.get() {
        let reason = match refusal {
            certs::Refusal::NotTrusted => Reason::CertificateUntrusted,
            certs::Refusal::Expired => Reason::CertificateExpired,
        };
        return Some((connection.clone(), Some(reason)));
    }
    Some((extensions.get::<Arc<Connection>>()?.clone(), None))
}

/// What the headers of a call say.
struct Head {
    token: Option<String>,
    caller_request_id: Option<String>,
    sign_receipt: bool,
    trace: TraceContext,
    timeout: Option<Duration>,
    fault: Option<Refused>,
}

impl Head {
    fn read(headers: &HeaderMap, config: &CallConfig) -> Self {
        let mut fault = None;
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let token = match (values.next(), values.next()) {
            (Some(value), None) => bearer(value),
            // Which of several would count is not for us to choose.
            _ => None,
        };
        let timeout = match headers.get("grpc-timeout").map(grpc_timeout) {
            Some(Some(timeout)) => Some(timeout.min(Duration::from_millis(config.max_timeout_ms))),
            Some(None) => {
                fault = Some(Refused::new(Reason::RequestMalformed).with("header", "grpc-timeout"));
                None
            }
            None => None,
        };
        let caller_request_id = headers.get("x-request-id").and_then(|value| value.to_str().ok());
        Self {
            token,
            sign_receipt: headers.get("oncegate-sign-receipt").is_some_and(|value| value == "1"),
            caller_request_id: caller_request_id.filter(|id| id.len() <= 64).map(str::to_owned),
            trace: TraceContext::continued(headers.get(TraceContext::HEADER).and_then(|value| value.to_str().ok())),
            timeout,
            fault,
        }
    }
}

fn bearer(value: &HeaderValue) -> Option<String> {
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then(|| token.to_owned())
}

/// `TimeoutValue TimeoutUnit` of the gRPC protocol: at most 8 digits and one of `HMSmun`.
fn grpc_timeout(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// What breaks gRPC's form before any message.
fn form(request: &Request<Body>, row: &Rpc) -> Option<Refused> {
    let malformed = |what| Some(Refused::new(Reason::RequestMalformed).with("what", what));
    if request.method() != Method::POST {
        return malformed("method");
    }
    if request.uri().query().is_some() {
        return malformed("query");
    }
    if !own_authority(request) {
        return malformed("authority");
    }
    let content_type = request.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    if !matches!(content_type, Some(b"application/grpc" | b"application/grpc+proto")) {
        return malformed("content-type");
    }
    if request.headers().get("grpc-encoding").is_some_and(|encoding| encoding != "identity") {
        return malformed("grpc-encoding");
    }
    let tokens = request.headers().get_all(header::AUTHORIZATION).iter().count();
    (row.needs == Needs::Token && tokens != 1).then(|| Reason::TokenMissing.into())
}

/// True if `:authority`, and `host` if it is sent too, names a host and port alike: which of two would count is not for us
/// to choose. Which name it is does not matter: names of the gateway are its certificate's concern, checked by clients.
fn own_authority<B>(request: &Request<B>) -> bool {
    let Some(authority) = request.uri().authority() else { return false };
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let same = hosts.all(|host| host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes()));
    same && !authority.as_str().contains('@')
}

/// Why a call was answered before any handler recorded it: tonic's own refusals, put as gRPC means them.
fn unrecorded(response: &Response<Body>, config: &CallConfig) -> Refused {
    match code_of(response) {
        Code::OutOfRange => {
            Refused::new(Reason::MessageTooLarge).with("limit_bytes", config.max_request_bytes.to_string())
        }
        Code::Unimplemented => Reason::MethodUnknown.into(),
        // The body was broken off.
        Code::Aborted | Code::Cancelled => Reason::Cancelled.into(),
        Code::DeadlineExceeded => Reason::DeadlineExceeded.into(),
        Code::Ok => {
            tracing::error!("an answer without an entry was held back");
            Reason::Internal.into()
        }
        _ => Reason::RequestMalformed.into(),
    }
}

/// The status of an answer whose head carries it; a stream that has begun is OK so far.
fn code_of(response: &Response<Body>) -> Code {
    response.headers().get("grpc-status").map_or(Code::Ok, |value| Code::from_bytes(value.as_bytes()))
}

/// Names of the canonical codes, for metrics and log lines.
const fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// A call whose caller may go away before anything took charge of recording it.
struct Unsaid {
    gateway: Arc<Gateway>,
    call: Option<Arc<Call>>,
}

impl Drop for Unsaid {
    fn drop(&mut self) {
        let Some(call) = self.call.take().filter(|call| !call.is_taken() && !call.is_claimed()) else { return };
        let (gateway, tasks) = (self.gateway.clone(), self.gateway.tasks.clone());
        let record = async move {
            let _: Refusal = gateway.reject(&call, Reason::Cancelled.into()).await;
        };
        // Without a runtime the process is going down, and nothing can be recorded any more.
        if let Ok(runtime) = Handle::try_current() {
            tasks.spawn_on(record.in_current_span(), &runtime);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_have_at_most_eight_digits_and_a_unit() {
        let parse = |text: &str| grpc_timeout(&HeaderValue::from_str(text).unwrap());
        assert_eq!(parse("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse("99999999H"), Some(Duration::from_hours(99_999_999)));
        for odd in ["", "m", "1", "1x", "-1S", "1.5S", "100000000S", "1 S", "+1S"] {
            assert_eq!(parse(odd), None, "{odd:?}");
        }
    }

    #[test]
    fn a_bearer_token_has_a_scheme() {
        let parse = |text: &str| bearer(&HeaderValue::from_str(text).unwrap());
        assert_eq!(parse("Bearer a.b.c").as_deref(), Some("a.b.c"));
        assert_eq!(parse("bearer a.b.c").as_deref(), Some("a.b.c"));
        for odd in ["a.b.c", "Basic abc", "Bearer ", "Bearer"] {
            assert_eq!(parse(odd), None, "{odd:?}");
        }
    }
}
