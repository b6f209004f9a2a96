//! W3C Trace Context, level 1: the `traceparent` header.

use std::fmt;
use std::str::FromStr;

use rand::RngCore as _;

/// Length of the header's value, which never varies.
const LEN: usize = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".len();

/// Which trace a request belongs to, and which span of it asks.
///
/// Only version `00` with lower-case hex and ids other than zero parses; whatever else a caller sends starts a new
/// trace. Of the flags only `sampled` is passed on, as level 1 defines no other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TraceContext {
    trace_id: [u8; 16],
    span_id: [u8; 8],
    sampled: bool,
}

impl TraceContext {
    /// Name of the header.
    pub const HEADER: &'static str = "traceparent";

    /// A new trace with random ids, not sampled.
    pub fn generate() -> Self {
        Self { trace_id: random(), span_id: random(), sampled: false }
    }

    /// Continues the trace that a header names with a span of its own; starts a new one if there is none or it is not
    /// of the form.
    pub fn continued(header: Option<&str>) -> Self {
        header.and_then(|text| text.parse().ok()).map_or_else(Self::generate, |asking: Self| asking.child())
    }

    /// A new span of the same trace, for a call onwards.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { span_id: random(), ..*self }
    }

    /// Id of the trace.
    pub fn trace_id(&self) -> &[u8; 16] {
        &self.trace_id
    }

    /// Id of the span.
    pub fn span_id(&self) -> &[u8; 8] {
        &self.span_id
    }

    /// True if the caller records the trace.
    pub fn sampled(&self) -> bool {
        self.sampled
    }
}

/// The header's value.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (trace, span) = (hex::encode(self.trace_id), hex::encode(self.span_id));
        write!(f, "00-{trace}-{span}-{:02x}", u8::from(self.sampled))
    }
}

impl FromStr for TraceContext {
    type Err = TraceError;

    fn from_str(text: &str) -> Result<Self, TraceError> {
        let lower_hex = |part: &str| part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let mut parts = text.split('-');
        let (Some("00"), Some(trace), Some(span), Some(flags), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TraceError);
        };
        if text.len() != LEN || ![trace, span, flags].into_iter().all(lower_hex) {
            return Err(TraceError);
        }
        let (mut trace_id, mut span_id, mut flag_bits) = ([0; 16], [0; 8], [0; 1]);
        hex::decode_to_slice(trace, &mut trace_id).map_err(|_| TraceError)?;
        hex::decode_to_slice(span, &mut span_id).map_err(|_| TraceError)?;
        hex::decode_to_slice(flags, &mut flag_bits).map_err(|_| TraceError)?;
        if trace_id == [0; 16] || span_id == [0; 8] {
            return Err(TraceError);
        }
        let [flags] = flag_bits;
        Ok(Self { trace_id, span_id, sampled: flags & 1 == 1 })
    }
}

/// Not a `traceparent` of version 00.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent of version 00")]
pub struct TraceError;

/// Random bytes, never all zero. They tell calls apart and protect nothing.
fn random<const N: usize>() -> [u8; N] {
    let mut id = [0; N];
    rand::rng().fill_bytes(&mut id);
    if id == [0; N] { [1; N] } else { id }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_trace_is_read_and_written() {
        let context: TraceContext = GOOD.parse().unwrap();
        assert_eq!(hex::encode(context.trace_id()), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(hex::encode(context.span_id()), "b7ad6b7169203331");
        assert!(context.sampled());
        assert_eq!(context.to_string(), GOOD);
        // Unknown flags are dropped.
        let flags: TraceContext = GOOD.replace("-01", "-fe").parse().unwrap();
        assert!(flags.to_string().ends_with("-00"));
    }

    #[test]
    fn what_is_not_a_traceparent_is_refused() {
        for odd in [
            "",
            "00",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-ab",
            "00-0af7651916cd43dd8448eb211c8031-9cb7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319g-b7ad6b7169203331-01",
            " 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319中-b7ad6b7169203331-0",
        ] {
            assert!(odd.parse::<TraceContext>().is_err(), "{odd:?}");
        }
    }

    #[test]
    fn a_call_onwards_is_a_span_of_its_own() {
        let asking: TraceContext = GOOD.parse().unwrap();
        let ours = TraceContext::continued(Some(GOOD));
        assert_eq!((ours.trace_id(), ours.sampled()), (asking.trace_id(), true));
        assert_ne!(ours.span_id(), asking.span_id());
        let fresh = TraceContext::continued(Some("garbage"));
        assert_ne!(fresh.trace_id(), TraceContext::continued(None).trace_id());
        assert_eq!(fresh.to_string().parse(), Ok(fresh));
    }
}
