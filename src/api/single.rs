//! Sees to it that a request has one message: a unary handler reads the first and would ignore the rest; and that a message
//! which its caller broke off is not taken for a malformed one.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tonic::body::Body;
use tonic::{Code, Status};

/// Flag and length ahead of each message (gRPC over HTTP/2, "Length-Prefixed-Message").
const PREFIX: usize = 5;

/// A request's body that ends with an error where a second message begins.
pub(super) struct Single {
    inner: Body,
    /// The prefix as far as it has come.
    prefix: Vec<u8>,
    /// Bytes of the message still to come, once its prefix is whole.
    left: Option<u64>,
}

impl Single {
    pub(super) fn new(inner: Body) -> Self {
        Self { inner, prefix: Vec::with_capacity(PREFIX), left: None }
    }

    /// True if `data` holds nothing beyond the one message.
    fn fits(&mut self, mut data: &[u8]) -> bool {
        while let Some((byte, rest)) = data.split_first() {
            let Some(left) = self.left else {
                self.prefix.push(*byte);
                data = rest;
                if let [_, length @ ..] = self.prefix.as_slice()
                    && let Ok(length) = <[u8; 4]>::try_from(length)
                {
                    self.left = Some(u32::from_be_bytes(length).into());
                }
                continue;
            };
            self.left = left.checked_sub(data.len() as u64);
            return self.left.is_some();
        }
        true
    }
}

impl http_body::Body for Single {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
            && !self.fits(data)
        {
            return Poll::Ready(Some(Err(Status::invalid_argument("more messages than one"))));
        }
        let broken_off = match &frame {
            Some(Ok(_)) => false,
            // INTERNAL are breaches of HTTP/2.
            Some(Err(status)) => status.code() != Code::Internal,
            None => !self.inner.is_end_stream(),
        };
        if broken_off {
            // Not CANCELLED: of a request's body tonic takes that for its orderly end.
            return Poll::Ready(Some(Err(Status::aborted("the caller broke off"))));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(chunks: &[&[u8]]) -> bool {
        let mut body = Single::new(Body::empty());
        chunks.iter().all(|chunk| body.fits(chunk))
    }

    #[test]
    fn one_message_in_any_pieces() {
        let message = [0, 0, 0, 0, 3, 1, 2, 3];
        assert!(fits(&[&message]));
        assert!(fits(&message.chunks(1).collect::<Vec<_>>()));
        assert!(fits(&[&message[..5], &message[5..], &[]]));
        assert!(fits(&[&[0, 0, 0, 0, 0]]), "an empty message");
        assert!(fits(&[]));
    }

    #[test]
    fn a_second_one_is_seen_where_it_begins() {
        let two = [0, 0, 0, 0, 1, 9, 0, 0, 0, 0, 0];
        assert!(!fits(&[&two]));
        assert!(!fits(&[&two[..6], &two[6..7]]));
        assert!(!fits(&[&[0, 0, 0, 0, 0], &[0]]));
        assert!(fits(&[&two[..6]]));
    }
}
