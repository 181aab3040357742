//! The header `traceparent`: W3C Trace Context, version 00, and what later versions have in common with it.

use axum::http::{HeaderMap, HeaderName};
use std::{fmt, num::NonZero};

/// The id of a trace; never all zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceId(NonZero<u128>);

/// The id of a span; never all zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanId(NonZero<u64>);

/// Where a request comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traceparent {
    /// The trace.
    pub trace: TraceId,
    /// The span of the client that sent the request.
    pub parent: SpanId,
    /// Whether the client exports it.
    pub sampled: bool,
}

static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Bytes of a header of version 00; later versions begin with as many of the same form.
const LENGTH: usize = 55;

impl Traceparent {
    /// What the request's header says. One that is malformed, has an id of zeros or is there twice is ignored, as the
    /// standard asks for: the request is then the first of its trace.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(&TRACEPARENT).into_iter();
        let value = values.next()?;
        if values.next().is_some() {
            return None;
        }
        Self::parse(value.as_bytes())
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let (text, more) = text.split_at_checked(LENGTH)?;
        let [version, trace, parent, flags] = [0..2, 3..35, 36..52, 53..55].map(|place| &text[place]);
        if [text[2], text[35], text[52]] != *b"---" {
            return None;
        }
        let version = number(version)?;
        // What later versions add stands behind a hyphen.
        let is_known = match version {
            0 => more.is_empty(),
            0xff => false,
            _ => more.is_empty() || more.starts_with(b"-"),
        };
        let sampled = number(flags)? & 1 == 1;
        is_known.then_some(Self {
            trace: TraceId(NonZero::new(number(trace)?)?),
            parent: SpanId(NonZero::new(number(parent)? as u64)?),
            sampled,
        })
    }
}

impl TraceId {
    /// A new one. Other programs draw theirs from the same 128 bits, so the system's random numbers have to be asked.
    pub fn random() -> Self {
        let mut bytes = [0; 16];
        let drawn = getrandom::fill(&mut bytes).map(|()| u128::from_be_bytes(bytes));
        Self(
            drawn
                .ok()
                .and_then(NonZero::new)
                .unwrap_or_else(|| NonZero::<u128>::MIN.saturating_add(fastrand::u128(..))),
        )
    }

    /// As it is sent.
    pub fn bytes(self) -> [u8; 16] {
        self.0.get().to_be_bytes()
    }
}

impl SpanId {
    /// A new one; it has to differ from those of its trace only.
    pub fn random() -> Self {
        Self(NonZero::<u64>::MIN.saturating_add(fastrand::u64(..)))
    }

    /// As it is sent.
    pub fn bytes(self) -> [u8; 8] {
        self.0.get().to_be_bytes()
    }
}

/// Reads lower-case hexadecimal digits, at most 32.
fn number(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |number, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(digit))
    })
}

impl fmt::Display for TraceId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:032x}", self.0)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const PARENT: &str = "00f067aa0ba902b7";

    fn parse(text: &str) -> Option<(String, String, bool)> {
        Traceparent::parse(text.as_bytes())
            .map(|read| (read.trace.to_string(), read.parent.to_string(), read.sampled))
    }

    #[test]
    fn version_00_is_read_as_the_standard_says() {
        let expected = |sampled| Some((TRACE.to_owned(), PARENT.to_owned(), sampled));
        assert_eq!(parse(&format!("00-{TRACE}-{PARENT}-01")), expected(true));
        assert_eq!(parse(&format!("00-{TRACE}-{PARENT}-00")), expected(false));
        // Flags that are not known yet.
        assert_eq!(parse(&format!("00-{TRACE}-{PARENT}-fe")), expected(false));
        assert_eq!(parse(&format!("00-{TRACE}-{PARENT}-03")), expected(true));
    }

    #[test]
    fn later_versions_are_read_as_far_as_they_are_alike() {
        for good in ["", "-", "-what-the-future-will-be-like"] {
            assert!(
                parse(&format!("cc-{TRACE}-{PARENT}-01{good}")).is_some(),
                "{good}"
            );
        }
        for bad in [
            format!("cc-{TRACE}-{PARENT}-01.more"),
            format!("00-{TRACE}-{PARENT}-01-more"),
            format!("ff-{TRACE}-{PARENT}-01"),
        ] {
            assert_eq!(parse(&bad), None, "{bad}");
        }
    }

    #[test]
    fn anything_else_is_ignored() {
        for bad in [
            String::new(),
            "00".to_owned(),
            format!("00-{TRACE}-{PARENT}"),
            format!("00-{TRACE}-{PARENT}-1"),
            format!("00-{TRACE}-{PARENT}-0g"),
            format!("0-{TRACE}-{PARENT}-011"),
            format!("00_{TRACE}-{PARENT}-01"),
            format!("00-{TRACE}_{PARENT}-01"),
            format!("00-{TRACE}-{PARENT}_01"),
            format!("00-{}-{PARENT}-01", TRACE.to_uppercase()),
            format!("00-{TRACE}-{}-01", PARENT.to_uppercase()),
            format!("00-{}-{PARENT}-01", "0".repeat(32)),
            format!("00-{TRACE}-{}-01", "0".repeat(16)),
            format!("00-{}-{PARENT}-01", TRACE.replace('4', "g")),
            format!(" 00-{TRACE}-{PARENT}-0"),
        ] {
            assert_eq!(parse(&bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_header_that_is_there_twice_is_ignored() {
        let value = format!("00-{TRACE}-{PARENT}-01");
        let value = || value.parse().unwrap_or_else(|error| panic!("{error}"));
        let mut headers = HeaderMap::new();
        headers.append("traceparent", value());
        assert!(Traceparent::of(&headers).is_some());
        headers.append("traceparent", value());
        assert_eq!(Traceparent::of(&headers), None);
    }
}
