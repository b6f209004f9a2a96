//! Metrics and health over HTTP/1, on a listener of its own for the operators' network. No authentication and nothing
//! personal:
//!
//! - `GET /metrics`: `OpenMetrics` text
//! - `GET /livez`: 200 as long as the process runs
//! - `GET /readyz`: 200, or 503 with one reason a line

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::Metrics;

/// Connections served at once; one more is closed at once.
const MAX_CONNECTIONS: usize = 32;
/// For a request's head to arrive.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection's whole life: one request, one answer.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// After `accept` failed, for want of file descriptors for instance, so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `shutdown` resolves. `ready` is asked on each `/readyz` and says what is wanting.
pub async fn serve<R>(listener: TcpListener, metrics: Arc<Metrics>, ready: R, shutdown: impl Future<Output = ()>)
where
    R: Fn() -> Result<(), Vec<String>> + Send + Sync + 'static,
{
    let ready = Arc::new(ready);
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => return,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if connections.len() < MAX_CONNECTIONS => {
                    connections.spawn(connection(stream, metrics.clone(), ready.clone()));
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "metrics listener: accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn connection<R>(stream: TcpStream, metrics: Arc<Metrics>, ready: Arc<R>)
where
    R: Fn() -> Result<(), Vec<String>>,
{
    let answer = service_fn(|request: Request<Incoming>| {
        let response = respond(request.method(), request.uri().path(), &metrics, &*ready);
        async { Ok::<_, Infallible>(response) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .keep_alive(false)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), answer);
    // What a scraper does to its own connection is of no interest.
    let _ = tokio::time::timeout(CONNECTION_TIMEOUT, serving).await;
}

fn respond(
    method: &Method,
    path: &str,
    metrics: &Metrics,
    ready: &impl Fn() -> Result<(), Vec<String>>,
) -> Response<Full<Bytes>> {
    const TEXT: &str = "text/plain; charset=utf-8";
    let (status, content_type, body) = match path {
        "/metrics" | "/livez" | "/readyz" if method != Method::GET => {
            (StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET only\n".to_owned())
        }
        "/metrics" => (StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", metrics.encode()),
        "/livez" => (StatusCode::OK, TEXT, "ok\n".to_owned()),
        "/readyz" => match ready() {
            Ok(()) => (StatusCode::OK, TEXT, "ok\n".to_owned()),
            Err(reasons) => (StatusCode::SERVICE_UNAVAILABLE, TEXT, reasons.join("\n") + "\n"),
        },
        _ => (StatusCode::NOT_FOUND, TEXT, "not found\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("GET"));
    }
    response
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn ask(address: SocketAddr, request_line: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("{request_line} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn health_and_metrics_are_served_and_nothing_else() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let ready = Arc::new(AtomicBool::new(false));
        let asked = ready.clone();
        let check = move || {
            let reasons = vec!["access log is not writable".into(), "draining".into()];
            if asked.load(Ordering::SeqCst) { Ok(()) } else { Err(reasons) }
        };
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let serving = tokio::spawn(serve(listener, Arc::new(Metrics::new("t")), check, async {
            let _ = stopped.await;
        }));

        let refused = ask(address, "GET /readyz").await;
        assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
        assert!(refused.ends_with("\r\n\r\naccess log is not writable\ndraining\n"), "{refused}");
        ready.store(true, Ordering::SeqCst);
        assert!(ask(address, "GET /readyz").await.starts_with("HTTP/1.1 200 "));
        assert!(ask(address, "GET /livez?probe=1").await.starts_with("HTTP/1.1 200 "));
        let metrics = ask(address, "GET /metrics").await;
        assert!(metrics.contains("application/openmetrics-text") && metrics.ends_with("# EOF\n"), "{metrics}");
        assert!(ask(address, "POST /metrics").await.starts_with("HTTP/1.1 405 "));
        assert!(ask(address, "GET /").await.starts_with("HTTP/1.1 404 "));
        assert!(ask(address, "\0\u{1}").await.starts_with("HTTP/1.1 400 "));

        stop.send(()).unwrap();
        serving.await.unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn too_many_connections_are_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let _serving =
            tokio::spawn(serve(listener, Arc::new(Metrics::new("t")), || Ok(()), std::future::pending::<()>()));
        let mut idle = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            idle.push(TcpStream::connect(address).await.unwrap());
        }
        let mut one_more = TcpStream::connect(address).await.unwrap();
        // Closed unread, or reset.
        assert!(matches!(one_more.read(&mut [0; 1]).await, Ok(0) | Err(_)));
        idle.pop();
        loop {
            // The place is free once the server has seen the close.
            let mut again = TcpStream::connect(address).await.unwrap();
            let _ = again.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await;
            let mut answer = String::new();
            if again.read_to_string(&mut answer).await.is_ok() && answer.starts_with("HTTP/1.1 200 ") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
