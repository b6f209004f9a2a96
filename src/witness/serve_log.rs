//! A gateway's log, read-only, for those who may hold a copy: C2SP tlog-tiles, as byte ranges of the segments.
//!
//! `GET /checkpoint`, `/tile/<level>/<number>`, `/tile/entries/<number>`. Entries are ciphertext; still, only the systems
//! named in `audit.serve.readers` get them. Nothing newer than the latest checkpoint is served.

use std::collections::HashSet;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use tonic::body::Body;
use tower::Service;

use super::Proofs;
use super::http::{respond, text};
use crate::audit::tree::{Resource, TreeError};
use crate::audit::{Journal, verify};
use crate::certs::Connection;
use crate::ids::SpiffeId;

/// The service.
#[derive(Debug, Clone)]
pub struct LogService {
    journal: Journal,
    dir: Arc<PathBuf>,
    proofs: Proofs,
    readers: Arc<HashSet<SpiffeId>>,
}

impl LogService {
    /// Serves the log of `journal`, which stands in `dir`, to `readers`.
    pub fn new(journal: Journal, dir: PathBuf, proofs: Proofs, readers: impl IntoIterator<Item = SpiffeId>) -> Self {
        Self { journal, dir: Arc::new(dir), proofs, readers: Arc::new(readers.into_iter().collect()) }
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let reader = request.extensions().get::<Arc<Connection>>().map(|connection| connection.caller().id().clone());
        if !reader.is_some_and(|reader| self.readers.contains(&reader)) {
            return text(StatusCode::FORBIDDEN, "you may not read this log\n");
        }
        if request.method() != Method::GET {
            return text(StatusCode::METHOD_NOT_ALLOWED, "GET only\n");
        }
        match request.uri().path() {
            "/checkpoint" => self.checkpoint().await,
            path => match path.strip_prefix('/').and_then(Resource::of_path) {
                Some(resource) => self.resource(resource).await,
                None => text(StatusCode::NOT_FOUND, "not found\n"),
            },
        }
    }

    /// The latest checkpoint that is witnessed; if none ever was, the latest.
    async fn checkpoint(&self) -> Response<Body> {
        let dir = self.dir.clone();
        let read = tokio::task::spawn_blocking(move || verify::read_note(&dir.join("witnessed"))).await;
        let latest = self.journal.checkpoints().borrow().as_ref().map(|latest| latest.note.clone());
        let mut response = match (read, latest) {
            (Ok(Ok(Some(note))), _) | (Ok(Ok(None)), Some(note)) => text(StatusCode::OK, note.to_string()),
            _ => text(StatusCode::SERVICE_UNAVAILABLE, "there is no checkpoint now\n"),
        };
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }

    async fn resource(&self, resource: Resource) -> Response<Body> {
        let Some(signed) = self.journal.checkpoints().borrow().as_ref().map(|latest| latest.tree.size) else {
            return text(StatusCode::SERVICE_UNAVAILABLE, "there is no checkpoint now\n");
        };
        let found = self.proofs.with(move |tree| {
            tree.grow(signed)?;
            tree.resource(resource, signed)
        });
        match found.await {
            Ok(Some(bytes)) => {
                let binary = HeaderValue::from_static("application/octet-stream");
                let mut response = respond(StatusCode::OK, binary, bytes);
                let for_ever = HeaderValue::from_static("private, max-age=31536000, immutable");
                response.headers_mut().insert(header::CACHE_CONTROL, for_ever);
                response
            }
            Ok(None) => text(StatusCode::NOT_FOUND, "not in the signed tree\n"),
            Err(TreeError::Pruned { .. }) => text(StatusCode::GONE, "pruned\n"),
            Err(error) => {
                tracing::error!(%error, "the log can't be served");
                text(StatusCode::INTERNAL_SERVER_ERROR, "the log can't be read\n")
            }
        }
    }
}

impl Service<Request<Body>> for LogService {
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
