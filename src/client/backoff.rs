//! How long to wait before a request is sent again.

use crate::limits::{CLIENT_BACKOFF_FIRST, CLIENT_BACKOFF_MOST, CLIENT_RETRY_AFTER_MOST};
use std::time::Duration;

/// Exponential back-off with full jitter: a wait is anything from nothing to a bound that doubles with each failure,
/// so that many clients do not come back at once.
#[derive(Debug)]
pub struct Backoff {
    failures: u32,
    first: Duration,
    most: Duration,
}

impl Default for Backoff {
    /// That of the subcommands.
    fn default() -> Self {
        Self::between(CLIENT_BACKOFF_FIRST, CLIENT_BACKOFF_MOST)
    }
}

impl Backoff {
    /// With a bound that grows from `first` to `most`.
    pub fn between(first: Duration, most: Duration) -> Self {
        Self {
            failures: 0,
            first,
            most,
        }
    }

    /// How long to wait after one more failure; at least what the server asked for, up to
    /// [`CLIENT_RETRY_AFTER_MOST`].
    pub fn next_wait(&mut self, retry_after: Option<Duration>) -> Duration {
        let bound = self.bound();
        self.failures = self.failures.saturating_add(1);
        let jitter = bound.mul_f64(fastrand::f64());
        retry_after.unwrap_or_default().min(CLIENT_RETRY_AFTER_MOST) + jitter
    }

    /// Failures since the last success.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// A request succeeded: the next failure is the first again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    fn bound(&self) -> Duration {
        self.first
            .saturating_mul(1 << self.failures.min(16))
            .min(self.most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_grows_up_to_its_bound_and_starts_again_after_a_success() {
        let mut backoff = Backoff::default();
        let mut bounds = Vec::new();
        for _ in 0..40 {
            let bound = backoff.bound();
            assert!(backoff.next_wait(None) <= bound);
            bounds.push(bound);
        }
        assert!(bounds.is_sorted());
        assert_eq!(bounds[0], CLIENT_BACKOFF_FIRST);
        assert_eq!(bounds[39], CLIENT_BACKOFF_MOST);
        backoff.reset();
        assert_eq!(backoff.bound(), CLIENT_BACKOFF_FIRST);
    }

    #[test]
    fn the_wait_is_no_shorter_than_what_the_server_asked_for() {
        for asked in [Duration::from_secs(2), CLIENT_RETRY_AFTER_MOST] {
            assert!(Backoff::default().next_wait(Some(asked)) >= asked);
        }
        let most = CLIENT_RETRY_AFTER_MOST + CLIENT_BACKOFF_FIRST;
        assert!(Backoff::default().next_wait(Some(Duration::MAX)) <= most);
    }
}
