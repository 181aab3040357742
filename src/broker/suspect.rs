//! Whose fault it is that an entry fails again and again: its own, or the store's.
//!
//! An entry that the store never takes has to be buried, or nothing behind it in its partition is ever committed. One that
//! fails because the store does must not be, or each outage would make dead letters of good events. That the store looks
//! well says too little: while its disk is full, or a table is locked, a try without events may succeed. What tells is
//! that it has stored other events, and not these.
//!
//! Without other traffic nothing tells. What parses and still fails alone is then the work of something outside: a trigger, a
//! constraint, damage in a table; or just the one lock that lasts. To wait costs what stands behind the entry in its partition,
//! to bury a good one costs its order and somebody's time. So it is given [`BROKER_ALONE_PATIENCE`], more than any lock
//! should last and less than a night, during which the lag and the log call for somebody. From then on its failures count.
//! Nothing is blocked for ever, and a dead letter can be queued again.

use crate::limits::BROKER_ALONE_PATIENCE;
use std::time::Instant;

/// The entry that failed last, alone.
#[derive(Debug)]
pub(super) struct Suspect {
    id: String,
    /// Since when it fails while the store does not.
    since: Instant,
    /// Commits that had stored events when this was last looked at.
    stored: u64,
}

/// What one failed try says of the entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It counts against it.
    Guilty,
    /// It does not.
    NotProven,
}

impl Suspect {
    /// An entry that is about to be tried for the first time. `stored` counts commits that have stored events.
    pub(super) fn new(id: &str, now: Instant, stored: u64) -> Self {
        Self {
            id: id.to_owned(),
            since: now,
            stored,
        }
    }

    /// Whether this is the entry.
    pub(super) fn is(&self, id: &str) -> bool {
        self.id == id
    }

    /// Judges a failed try, some time after it.
    pub(super) fn judge(&mut self, now: Instant, stored: u64) -> Verdict {
        let others_were_stored = stored > self.stored;
        self.stored = stored;
        match others_were_stored || now.duration_since(self.since) >= BROKER_ALONE_PATIENCE {
            true => Verdict::Guilty,
            false => Verdict::NotProven,
        }
    }

    /// The store was in trouble, so that nothing can be said of the time before.
    pub(super) fn excuse(&mut self, now: Instant, stored: u64) {
        self.since = now;
        self.stored = stored;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Verdict::{Guilty, NotProven};

    #[test]
    fn a_failure_counts_when_other_events_were_stored_since_the_last_one() {
        let now = Instant::now();
        let mut suspect = Suspect::new("1-0", now, 7);
        assert_eq!(suspect.judge(now, 7), NotProven);
        assert_eq!(suspect.judge(now, 8), Guilty);
        assert_eq!(suspect.judge(now, 8), NotProven, "that was before");
        suspect.excuse(now, 9);
        assert_eq!(suspect.judge(now, 9), NotProven, "and that as well");
    }

    #[test]
    fn without_other_traffic_failures_count_after_a_long_time_in_which_the_store_looked_well() {
        let first = Instant::now();
        let mut suspect = Suspect::new("1-0", first, 0);
        let later = first + BROKER_ALONE_PATIENCE;
        assert_eq!(suspect.judge(later - BROKER_ALONE_PATIENCE / 100, 0), NotProven);
        assert_eq!(suspect.judge(later, 0), Guilty);
        assert_eq!(suspect.judge(later, 0), Guilty);
        suspect.excuse(later, 0);
        assert_eq!(suspect.judge(later, 0), NotProven);
    }
}
