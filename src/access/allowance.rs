//! Holds callers to their limits, with a bucket of tokens for each, and counts what they do.
//!
//! A request, or all events of one, takes its tokens or is refused; a refused one takes none. That is one atomic operation
//! and no lock. What is taken is not given back when the request fails later: the server has worked for it.

use super::{
    figures::{Counters, Figures},
    rate::{Limit, Limits, Rate, Unit},
};
use bytes::Bytes;
use governor::{
    Quota, RateLimiter,
    clock::{Clock, MonotonicClock},
    middleware::StateInformationMiddleware,
    state::{InMemoryState, NotKeyed},
};
use std::{
    num::NonZeroU32,
    sync::{Arc, OnceLock},
    time::Duration,
};

/// What one caller may still do. Shared by all of its requests.
#[derive(Debug)]
pub struct Allowance {
    requests: Option<Arc<Bucket>>,
    events: Option<Arc<Bucket>>,
    policy: OnceLock<Bytes>,
    account: Arc<Account>,
}

/// A limit is reached for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exceeded {
    /// Of what there are too many.
    pub unit: Unit,
    /// The limit.
    pub rate: Rate,
    /// How many would be let through now.
    pub left: u32,
    /// How long it takes until the same is let through, if nothing else is until then.
    pub wait: Duration,
}

/// Why events are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventsRefused {
    /// For now.
    Exceeded(Exceeded),
    /// For ever: one request has more than the limit lets through at once.
    TooMany {
        /// The limit.
        rate: Rate,
    },
}

impl Allowance {
    /// The allowance of a key. From the key's allowance `before`, if there is one, it takes over every bucket whose limit
    /// has not changed, as full as it is.
    pub(super) fn of_key(id: &str, limits: Limits, figures: &Figures, before: Option<&Self>) -> Self {
        let account = match before {
            Some(before) => Arc::clone(&before.account),
            None => Arc::new(Account {
                id: id.to_owned(),
                figures: figures.clone(),
                counters: OnceLock::new(),
            }),
        };
        Self {
            requests: bucket(
                limits.requests,
                before.and_then(|before| before.requests.as_ref()),
            ),
            events: bucket(limits.events, before.and_then(|before| before.events.as_ref())),
            policy: OnceLock::new(),
            account,
        }
    }

    /// The allowance that all requests without a key share.
    pub(super) fn of_nobody(limits: Limits, figures: &Figures) -> Self {
        Self {
            requests: bucket(limits.requests, None),
            events: bucket(limits.events, None),
            policy: OnceLock::new(),
            account: Arc::new(Account {
                id: String::new(),
                figures: figures.clone(),
                counters: figures.of_nobody().into(),
            }),
        }
    }

    /// The limits, in the order in which they are shown.
    pub fn rates(&self) -> impl Iterator<Item = (Unit, Rate)> {
        let rate = |unit, bucket: &Option<Arc<Bucket>>| Some((unit, bucket.as_ref()?.rate));
        [
            rate(Unit::Requests, &self.requests),
            rate(Unit::Events, &self.events),
        ]
        .into_iter()
        .flatten()
    }

    /// The limits as callers are told them, in ASCII: what `write` makes of them, once. They never change.
    pub fn policy(&self, write: impl FnOnce() -> String) -> Bytes {
        self.policy.get_or_init(|| write().into()).clone()
    }

    /// Counts a request, and says how many more would be let through now; `None` without a limit.
    pub fn take_request(&self) -> Result<Option<u32>, Exceeded> {
        let counters = self.account.counters();
        counters.requests.inc();
        let Some(bucket) = &self.requests else {
            return Ok(None);
        };
        let wait = match bucket.take(NonZeroU32::MIN) {
            Taken::All { left } => return Ok(Some(left)),
            Taken::NotYet { wait, .. } => wait,
            // A bucket holds one at least, so this is no case.
            Taken::Never => Duration::MAX,
        };
        counters.refused(Unit::Requests).inc();
        Err(Exceeded {
            unit: Unit::Requests,
            rate: bucket.rate,
            left: 0,
            wait,
        })
    }

    /// Lets the events of a request through, all or none, counts them, and says how many more would be let through now;
    /// `None` without a limit.
    pub fn take_events(&self, events: usize) -> Result<Option<u32>, EventsRefused> {
        let counters = self.account.counters();
        let left = match &self.events {
            None => None,
            Some(bucket) => {
                let taken = bucket.take_events(events);
                Some(taken.inspect_err(|_| {
                    counters.refused(Unit::Events).inc();
                })?)
            }
        };
        counters.events.inc_by(events as u64);
        Ok(left)
    }
}

fn bucket(limit: Option<Limit>, before: Option<&Arc<Bucket>>) -> Option<Arc<Bucket>> {
    let Some(Limit::Rate(rate)) = limit else {
        return None;
    };
    match before {
        Some(before) if before.rate == rate => Some(Arc::clone(before)),
        _ => Some(Arc::new(Bucket::new(rate, MonotonicClock))),
    }
}

/// The counters of a caller, from its first request on.
#[derive(Debug)]
struct Account {
    id: String,
    figures: Figures,
    counters: OnceLock<Counters>,
}

impl Account {
    fn counters(&self) -> &Counters {
        self.counters.get_or_init(|| self.figures.of_key(&self.id))
    }
}

/// The tokens of one limit.
#[derive(Debug)]
struct Bucket<C: Clock = MonotonicClock> {
    rate: Rate,
    limiter: RateLimiter<NotKeyed, InMemoryState, C, StateInformationMiddleware>,
}

/// What became of a wish for tokens.
#[derive(Debug, PartialEq, Eq)]
enum Taken {
    All { left: u32 },
    NotYet { left: u32, wait: Duration },
    Never,
}

impl<C: Clock> Bucket<C> {
    fn new(rate: Rate, clock: C) -> Self {
        let quota = Quota::per_second(rate.per_second()).allow_burst(rate.burst());
        Self {
            rate,
            limiter: RateLimiter::direct_with_clock(quota, clock).with_middleware(),
        }
    }

    /// The number that is left, if that many can be taken.
    fn take_events(&self, events: usize) -> Result<u32, EventsRefused> {
        let events = u32::try_from(events).unwrap_or(u32::MAX);
        match self.take(NonZeroU32::new(events).unwrap_or(NonZeroU32::MIN)) {
            Taken::All { left } => Ok(left),
            Taken::NotYet { left, wait } => Err(EventsRefused::Exceeded(Exceeded {
                unit: Unit::Events,
                rate: self.rate,
                left,
                wait,
            })),
            Taken::Never => Err(EventsRefused::TooMany { rate: self.rate }),
        }
    }

    fn take(&self, tokens: NonZeroU32) -> Taken {
        match self.limiter.check_n(tokens) {
            Ok(Ok(state)) => Taken::All {
                left: state.remaining_burst_capacity(),
            },
            Ok(Err(until)) => {
                let wait = until.wait_time_from(self.limiter.clock().now());
                // Those that have still to come are those that the wait brings.
                let missing =
                    (wait.as_nanos() * u128::from(self.rate.per_second().get())).div_ceil(1_000_000_000);
                let missing = u32::try_from(missing).unwrap_or(u32::MAX);
                Taken::NotYet {
                    left: tokens.get().saturating_sub(missing),
                    wait,
                }
            }
            Err(_) => Taken::Never,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use governor::clock::FakeRelativeClock;

    fn rate(per_second: u32, burst: u32) -> Rate {
        Rate::new(per_second, Some(burst)).unwrap()
    }

    fn tokens(count: u32) -> NonZeroU32 {
        NonZeroU32::new(count).unwrap()
    }

    fn limits(requests: Option<Rate>, events: Option<Rate>) -> Limits {
        Limits {
            requests: requests.map(Limit::Rate),
            events: events.map(Limit::Rate),
        }
    }

    #[test]
    fn a_bucket_is_full_at_first_and_fills_as_time_goes_by() {
        let clock = FakeRelativeClock::default();
        let bucket = Bucket::new(rate(10, 30), clock.clone());
        assert_eq!(bucket.take(tokens(25)), Taken::All { left: 5 });
        // Refused whole, and nothing is taken.
        for _ in 0..3 {
            let wait = Duration::from_millis(500);
            assert_eq!(bucket.take(tokens(10)), Taken::NotYet { left: 5, wait });
        }
        assert_eq!(bucket.take(tokens(5)), Taken::All { left: 0 });
        clock.advance(Duration::from_millis(99));
        let wait = Duration::from_millis(1);
        assert_eq!(bucket.take(tokens(1)), Taken::NotYet { left: 0, wait });
        clock.advance(wait);
        assert_eq!(bucket.take(tokens(1)), Taken::All { left: 0 });
        // No fuller than full.
        clock.advance(Duration::from_secs(3600));
        assert_eq!(bucket.take(tokens(1)), Taken::All { left: 29 });
    }

    #[test]
    fn waiting_as_long_as_is_said_is_enough() {
        for (per_second, burst, wanted) in [(1, 1, 1), (3, 10, 10), (7, 7, 2), (1000, 5000, 4999)] {
            let clock = FakeRelativeClock::default();
            let bucket = Bucket::new(rate(per_second, burst), clock.clone());
            assert_eq!(bucket.take(tokens(burst)), Taken::All { left: 0 });
            let Taken::NotYet { left: 0, wait } = bucket.take(tokens(wanted)) else {
                panic!("the bucket is empty");
            };
            clock.advance(wait);
            let taken = bucket.take(tokens(wanted));
            assert!(
                matches!(taken, Taken::All { .. }),
                "{per_second} a second: {taken:?}"
            );
        }
    }

    #[test]
    fn what_a_bucket_cannot_hold_is_never_let_through() {
        let bucket = Bucket::new(rate(10, 30), FakeRelativeClock::default());
        assert_eq!(bucket.take(tokens(31)), Taken::Never);
        assert_eq!(bucket.take(tokens(30)), Taken::All { left: 0 });
    }

    #[test]
    fn without_limits_everything_is_let_through() {
        let allowance = Allowance::of_nobody(Limits::default(), &Figures::default());
        for _ in 0..1000 {
            assert_eq!(allowance.take_request(), Ok(None));
            assert_eq!(allowance.take_events(1_000_000), Ok(None));
        }
        assert_eq!(allowance.rates().count(), 0);
    }

    // A bucket of a million that gets one a second stays about as it is for as long as a test lasts.
    #[test]
    fn only_the_bucket_whose_limit_changes_is_filled() {
        let figures = Figures::default();
        let slow = rate(1, 1_000_000);
        let first = Allowance::of_key("a", limits(None, Some(slow)), &figures, None);
        assert_eq!(first.take_events(1_000_000), Ok(Some(0)));
        let refused = |allowance: &Allowance| allowance.take_events(500_000).is_err();
        assert!(refused(&first));
        let with_requests = limits(Some(rate(1, 1_000_000)), Some(slow));
        let second = Allowance::of_key("a", with_requests, &figures, Some(&first));
        assert!(refused(&second), "the limit of events is the same as before");
        assert_eq!(second.take_request(), Ok(Some(999_999)));
        let third = Allowance::of_key(
            "a",
            limits(None, Some(rate(2, 1_000_000))),
            &figures,
            Some(&second),
        );
        assert!(!refused(&third), "another limit is another bucket");
        assert_eq!(third.take_request(), Ok(None));
    }

    #[test]
    fn many_threads_together_get_no_more_than_there_is() {
        let allowance = Allowance::of_nobody(limits(None, Some(rate(1, 1_000_000))), &Figures::default());
        let taken: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..100).filter(|_| allowance.take_events(10_000).is_ok()).count()))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(taken, 100);
    }
}
