//! How fast a caller may go, as keys and settings say it: so many requests and events a second.
//!
//! [`Limits`] is what a key, or the server for all that say nothing, has; [`super::Allowance`] holds callers to it.

use crate::limits::MAX_RATE;
use serde::{Deserialize, Serialize};
use std::{fmt, num::NonZeroU32};

/// What a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unit {
    /// Requests, whatever they are about.
    Requests,
    /// Events that are published, duplicates included.
    Events,
}

impl Unit {
    /// Its name, in the plural.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Events => "events",
        }
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A bucket of tokens: how many come in each second, and how many it holds. It is full at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked", into = "Unchecked")]
pub struct Rate {
    per_second: NonZeroU32,
    burst: NonZeroU32,
}

/// Why there is no such [`Rate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RateError {
    /// Too few or too many a second.
    #[error("a rate is 1 to {MAX_RATE} a second")]
    PerSecond,
    /// The bucket is too small or too large.
    #[error("a burst is at least what comes in a second, and at most {MAX_RATE}")]
    Burst,
}

impl Rate {
    /// So many a second, and so many at once; without `burst`, as many at once as a second brings. A smaller bucket is
    /// refused: it would overflow while nobody asks, and the rate would not be what it says.
    pub fn new(per_second: u32, burst: Option<u32>) -> Result<Self, RateError> {
        let per_second = NonZeroU32::new(per_second)
            .filter(|rate| rate.get() <= MAX_RATE)
            .ok_or(RateError::PerSecond)?;
        let burst = match burst {
            None => per_second,
            Some(burst) => NonZeroU32::new(burst)
                .filter(|burst| (per_second.get()..=MAX_RATE).contains(&burst.get()))
                .ok_or(RateError::Burst)?,
        };
        Ok(Self { per_second, burst })
    }

    /// Tokens that come in each second.
    pub fn per_second(self) -> NonZeroU32 {
        self.per_second
    }

    /// Tokens that there may be at once.
    pub fn burst(self) -> NonZeroU32 {
        self.burst
    }

    /// How long an empty bucket takes to be full, in whole seconds, rounded up.
    pub fn seconds_to_fill(self) -> u32 {
        self.burst.get().div_ceil(self.per_second.get())
    }
}

/// As it stands in the file of keys.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Unchecked {
    per_second: u32,
    burst: u32,
}

impl TryFrom<Unchecked> for Rate {
    type Error = RateError;

    fn try_from(rate: Unchecked) -> Result<Self, RateError> {
        Self::new(rate.per_second, Some(rate.burst))
    }
}

impl From<Rate> for Unchecked {
    fn from(rate: Rate) -> Self {
        Self {
            per_second: rate.per_second.get(),
            burst: rate.burst.get(),
        }
    }
}

/// A limit that somebody has set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Limit {
    /// There is none.
    Unlimited,
    /// No faster than this.
    Rate(Rate),
}

/// The limits of a key, or of all callers whose key sets none. What is not set here is for somebody else to say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Of requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<Limit>,
    /// Of events that are published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events: Option<Limit>,
}

impl Limits {
    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// These, and the others where these say nothing.
    pub fn or(self, others: Self) -> Self {
        Self {
            requests: self.requests.or(others.requests),
            events: self.events.or(others.events),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_brings_at_least_a_second_at_once() {
        let rate = Rate::new(100, None).unwrap();
        assert_eq!((rate.per_second().get(), rate.burst().get()), (100, 100));
        assert_eq!(rate.seconds_to_fill(), 1);
        assert_eq!(Rate::new(100, Some(250)).unwrap().seconds_to_fill(), 3);
        assert!(Rate::new(MAX_RATE, Some(MAX_RATE)).is_ok());
        for wrong in [0, MAX_RATE + 1] {
            assert_eq!(Rate::new(wrong, None), Err(RateError::PerSecond));
        }
        for wrong in [0, 99, MAX_RATE + 1] {
            assert_eq!(Rate::new(100, Some(wrong)), Err(RateError::Burst));
        }
    }

    #[test]
    fn limits_are_written_as_they_are_read_and_wrong_ones_are_refused() {
        let limits = Limits {
            requests: Some(Limit::Unlimited),
            events: Some(Limit::Rate(Rate::new(5, Some(7)).unwrap())),
        };
        let text = serde_json::to_string(&limits).unwrap();
        assert_eq!(
            text,
            r#"{"requests":"unlimited","events":{"rate":{"per_second":5,"burst":7}}}"#
        );
        assert_eq!(serde_json::from_str::<Limits>(&text).unwrap(), limits);
        assert_eq!(serde_json::from_str::<Limits>("{}").unwrap(), Limits::default());
        for wrong in [
            r#"{"events":{"rate":{"per_second":0,"burst":7}}}"#,
            r#"{"events":{"rate":{"per_second":5,"burst":4}}}"#,
            r#"{"bytes":"unlimited"}"#,
        ] {
            assert!(serde_json::from_str::<Limits>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_a_key_does_not_set_the_server_does() {
        let rate = |per_second| Some(Limit::Rate(Rate::new(per_second, None).unwrap()));
        let server = Limits {
            requests: rate(1),
            events: rate(2),
        };
        let key = Limits {
            requests: Some(Limit::Unlimited),
            events: None,
        };
        let together = key.or(server);
        assert_eq!(
            (together.requests, together.events),
            (Some(Limit::Unlimited), rate(2))
        );
        assert_eq!(Limits::default().or(server), server);
    }
}
