//! Tells callers of their limits: the `RateLimit` and `RateLimit-Policy` headers, and what is answered at a limit.
//!
//! The headers are those of draft-ietf-httpapi-ratelimit-headers-11. A policy `"events";q=500;w=5` lets 500 events through
//! at once, and takes five seconds to be as it was; `"events";r=20;t=1` leaves 20 for the next second.

use super::error::{Kind, Problem};
use crate::access::{Allowance, Caller, EventsRefused, Exceeded, Rate, Unit};
use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, Response},
};
use bytes::Bytes;
use std::sync::OnceLock;

/// What the limits are.
pub(super) const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
/// What is left of them.
pub(super) const LEFT: HeaderName = HeaderName::from_static("ratelimit");

/// In which time there is more to be had, in whole seconds: a rate brings one a second at least.
const MORE_WITHIN_SECONDS: u32 = 1;

/// What two items take at most, with ten digits for each number.
const MAX_ITEMS_BYTES: usize = 80;

/// Who sent a request, and where it stands with its limits.
pub(super) struct Sender {
    /// Who it is.
    pub(super) caller: Caller,
    /// Requests that would be let through now.
    requests_left: Option<u32>,
    /// Events that would be let through now, once that was asked.
    events_left: OnceLock<u32>,
}

impl Sender {
    /// Counts a request and refuses it beyond the limit.
    pub(super) fn of_request(caller: Caller) -> (Self, Result<(), Problem>) {
        let (left, result) = match caller.allowance().take_request() {
            Ok(left) => (left, Ok(())),
            Err(exceeded) => (Some(exceeded.left), Err(Problem::from(exceeded))),
        };
        (Self::new(caller, left), result)
    }

    /// Of a request that does not count.
    pub(super) fn uncounted(caller: Caller) -> Self {
        Self::new(caller, None)
    }

    fn new(caller: Caller, requests_left: Option<u32>) -> Self {
        Self {
            caller,
            requests_left,
            events_left: OnceLock::new(),
        }
    }

    /// Counts the events of the request and refuses them, all together, beyond the limit.
    pub(super) fn take_events(&self, events: usize) -> Result<(), Problem> {
        let (left, result) = match self.caller.allowance().take_events(events) {
            Ok(left) => (left, Ok(())),
            Err(EventsRefused::Exceeded(exceeded)) => (Some(exceeded.left), Err(exceeded.into())),
            Err(EventsRefused::TooMany { rate }) => (None, Err(too_many(events, rate))),
        };
        if let Some(left) = left {
            // A request takes its events once.
            let _ = self.events_left.set(left);
        }
        result
    }

    /// Says in the headers of the answer what is left, if there is a limit.
    pub(super) fn tell(&self, response: &mut Response<Body>) {
        let allowance = self.caller.allowance();
        let mut left = Items::default();
        for (unit, _) in allowance.rates() {
            let count = match unit {
                Unit::Requests => self.requests_left,
                Unit::Events => self.events_left.get().copied(),
            };
            if let Some(count) = count {
                left.add(unit, [(";r=", count), (";t=", MORE_WITHIN_SECONDS)]);
            }
        }
        insert(
            response.headers_mut(),
            POLICY,
            allowance.policy(|| policy(allowance)),
        );
        insert(response.headers_mut(), LEFT, left.0.into());
    }
}

/// The limits of a caller; nothing when there are none.
fn policy(allowance: &Allowance) -> String {
    let mut policies = Items::default();
    for (unit, rate) in allowance.rates() {
        policies.add(
            unit,
            [(";q=", rate.burst().get()), (";w=", rate.seconds_to_fill())],
        );
    }
    policies.0
}

/// Sets a header that is a list. Nothing at all when there is none: the list must not be empty.
fn insert(headers: &mut HeaderMap, name: HeaderName, items: Bytes) {
    if items.is_empty() {
        return;
    }
    // Names and numbers are always a value.
    if let Ok(value) = HeaderValue::from_maybe_shared(items) {
        headers.insert(name, value);
    }
}

/// A list of structured fields (RFC 9651): strings with parameters that are numbers. Written for every answer to a caller
/// with limits, so without the machinery of `format!` (measured: it took 5,000 instructions of a request's 60,000).
#[derive(Default)]
struct Items(String);

impl Items {
    fn add(&mut self, unit: Unit, parameters: [(&str, u32); 2]) {
        if self.0.is_empty() {
            self.0.reserve(MAX_ITEMS_BYTES);
        } else {
            self.0.push_str(", ");
        }
        self.0.push('"');
        self.0.push_str(unit.name());
        self.0.push('"');
        for (name, value) in parameters {
            self.0.push_str(name);
            self.0.push_str(itoa::Buffer::new().format(value));
        }
    }
}

impl From<Exceeded> for Problem {
    fn from(exceeded: Exceeded) -> Self {
        let Exceeded { unit, rate, .. } = exceeded;
        // Rounded up: who comes back earlier is refused again.
        let seconds = exceeded.wait.as_nanos().div_ceil(1_000_000_000).max(1);
        let seconds = u64::try_from(seconds).unwrap_or(u64::MAX);
        let left = match unit {
            Unit::Requests => "",
            Unit::Events => &format!(", and {} would be let through now", exceeded.left),
        };
        let detail = format!(
            "the limit of {unit}, {} a second, is reached{left}; send it again in {seconds} s",
            rate.per_second()
        );
        Self::new(Kind::RateLimited, detail).with_retry_after(seconds)
    }
}

/// Of a request with so many events that it is refused whenever it comes.
fn too_many(events: usize, rate: Rate) -> Problem {
    Problem::new(
        Kind::TooManyEvents,
        format!(
            "the request has {events} events, and the limit of events, {} a second, lets at most {} through at once; send \
             it in parts",
            rate.per_second(),
            rate.burst()
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::response::IntoResponse;
    use std::time::Duration;

    #[test]
    fn the_time_to_wait_is_rounded_up_to_whole_seconds() {
        for (milliseconds, seconds) in [(0, "1"), (1, "1"), (1000, "1"), (1001, "2"), (59_999, "60")] {
            let problem = Problem::from(Exceeded {
                unit: Unit::Events,
                rate: Rate::new(5, Some(9)).unwrap(),
                left: 4,
                wait: Duration::from_millis(milliseconds),
            });
            let response = problem.into_response();
            assert_eq!(response.headers()["retry-after"], seconds);
        }
    }

    #[test]
    fn a_list_without_items_is_no_header() {
        let mut headers = HeaderMap::new();
        insert(&mut headers, LEFT, Bytes::new());
        assert!(headers.is_empty());
        let mut items = Items::default();
        items.add(Unit::Requests, [(";q=", 100), (";w=", 1)]);
        items.add(Unit::Events, [(";q=", 5000), (";w=", 1)]);
        insert(&mut headers, POLICY, items.0.into());
        assert_eq!(headers[POLICY], "\"requests\";q=100;w=1, \"events\";q=5000;w=1");
    }
}
