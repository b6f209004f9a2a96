//! A transport that gives up on a silent peer: no preface in time, or nothing read for too long.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// RFC 9113 §3.4: `PRI * HTTP/2.0 CRLF CRLF SM CRLF CRLF`.
const PREFACE_BYTES: usize = 24;

type AtEnd<T> = Box<dyn Fn(&T) + Send + Sync>;

/// A connection whose reads fail with `TimedOut` when the peer is silent for too long. Not a deadline for requests.
pub(super) struct Guarded<T> {
    inner: T,
    /// Bytes of the preface still to come. Until it is whole, trickling bytes do not move the deadline.
    preface_left: usize,
    idle: Duration,
    last_read: Instant,
    deadline: Pin<Box<Sleep>>,
    at_end: Option<AtEnd<T>>,
}

impl<T> Drop for Guarded<T> {
    fn drop(&mut self) {
        if let Some(at_end) = &self.at_end {
            at_end(&self.inner);
        }
    }
}

impl<T> Guarded<T> {
    /// Wraps `inner`, whose preface must arrive within `preface`, and then something within each `idle`.
    pub(super) fn new(inner: T, preface: Duration, idle: Duration) -> Self {
        let (last_read, deadline) = (Instant::now(), Box::pin(sleep(preface)));
        Self { inner, preface_left: PREFACE_BYTES, idle, last_read, deadline, at_end: None }
    }

    /// Calls `at_end` with the transport just before that is dropped.
    pub(super) fn at_end(mut self, at_end: impl Fn(&T) + Send + Sync + 'static) -> Self {
        self.at_end = Some(Box::new(at_end));
        self
    }

    fn arrived(&mut self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        self.last_read = Instant::now();
        if self.preface_left > 0 {
            self.preface_left = self.preface_left.saturating_sub(bytes);
            if self.preface_left == 0 {
                self.deadline.as_mut().reset(self.last_read + self.idle);
            }
        }
    }

    /// Ready once the peer has been silent for too long. The timer is moved only when it fires: cheaper than at each
    /// read.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        loop {
            ready!(self.deadline.as_mut().poll(cx));
            let until = self.last_read + self.idle;
            if self.preface_left > 0 {
                return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "no HTTP/2 preface in time"));
            } else if Instant::now() >= until {
                return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "the peer is silent"));
            }
            self.deadline.as_mut().reset(until);
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Guarded<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        if let Poll::Ready(result) = Pin::new(&mut this.inner).poll_read(cx, buf) {
            this.arrived(buf.filled().len() - before);
            return Poll::Ready(result);
        }
        this.poll_silence(cx).map(Err)
    }
}

/// Not vectored on purpose: then HTTP/2 gathers small answers into one TLS record and one write, instead of one each.
impl<T: AsyncWrite + Unpin> AsyncWrite for Guarded<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::timeout;

    use super::*;

    const SHORT: Duration = Duration::from_millis(60);
    const LONG: Duration = Duration::from_mins(1);

    async fn silence<T: AsyncRead + Unpin>(here: &mut Guarded<T>) -> (io::ErrorKind, Duration) {
        let started = Instant::now();
        let mut buf = [0; 64];
        loop {
            if let Err(error) = here.read(&mut buf).await {
                return (error.kind(), started.elapsed());
            }
        }
    }

    #[tokio::test]
    async fn trickling_the_preface_does_not_move_its_deadline() {
        let (mut peer, here) = duplex(64);
        let mut here = Guarded::new(here, SHORT, LONG);
        let trickle = async {
            loop {
                peer.write_all(b"P").await.unwrap();
                sleep(Duration::from_millis(10)).await;
            }
        };
        let (kind, after) = tokio::select! { end = silence(&mut here) => end, () = trickle => panic!() };
        assert_eq!(kind, io::ErrorKind::TimedOut);
        assert!(after >= SHORT && after < SHORT * 4, "{after:?}");
    }

    #[tokio::test]
    async fn after_the_preface_each_read_moves_the_deadline() {
        let (mut peer, here) = duplex(64);
        let mut here = Guarded::new(here, LONG, SHORT);
        peer.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        let trickle = async {
            for _ in 0..12 {
                sleep(SHORT / 4).await;
                peer.write_all(b"x").await.unwrap();
            }
            std::future::pending::<()>().await;
        };
        let end = timeout(Duration::from_secs(5), async {
            tokio::select! { end = silence(&mut here) => end, () = trickle => panic!() }
        });
        let (kind, after) = end.await.unwrap();
        assert_eq!(kind, io::ErrorKind::TimedOut);
        assert!(after >= SHORT * 4, "the trickle alone lasts three times the limit, then it counts: {after:?}");
    }
}
