//! A lookup that its caller can't escape by going away.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

/// Work that ends whether or not its caller waits for it. As long as the caller does, it runs within the caller's task,
/// which saves one; if it is dropped unfinished, it is told that the caller is gone and goes on in a task of its own, which
/// is waited for before the log is closed.
pub(super) struct Unescapable<T: Send + 'static> {
    /// None once it has ended.
    work: Option<BoxFuture<'static, T>>,
    gone: CancellationToken,
    tasks: TaskTracker,
}

impl<T: Send + 'static> Unescapable<T> {
    pub(super) fn new<F: Future<Output = T> + Send + 'static>(
        tasks: &TaskTracker,
        work: impl FnOnce(CancellationToken) -> F,
    ) -> Self {
        let gone = CancellationToken::new();
        Self { work: Some(Box::pin(work(gone.clone()))), gone, tasks: tasks.clone() }
    }
}

impl<T: Send + 'static> Future for Unescapable<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        // Work that panics is not polled again: the guard of the API sees that nobody has claimed the call's entry.
        let mut running = self.work.take();
        let polled = running.as_mut().map_or(Poll::Pending, |work| work.as_mut().poll(cx));
        if polled.is_pending() {
            self.work = running;
        }
        polled
    }
}

impl<T: Send + 'static> Drop for Unescapable<T> {
    fn drop(&mut self) {
        if let Some(work) = self.work.take() {
            self.gone.cancel();
            // Without a runtime the process is going down, and nothing can be recorded any more.
            if let Ok(runtime) = Handle::try_current() {
                self.tasks.spawn_on(async move { drop(work.await) }.in_current_span(), &runtime);
            }
        }
    }
}
