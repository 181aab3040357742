//! What callers do, counted by key for metrics.
//!
//! A key gets series of its own with its first request, as long as there are some left; the others share one, so that
//! the number of series is bounded. Which keys these are does not change while the server runs, so no counter falls.

use super::rate::Unit;
use crate::limits::MAX_METRIC_KEYS;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// The label of all keys that have no series of their own. No key's id: those have sixteen digits.
const OTHER_KEYS: &str = "other";
/// The label of all requests without a key.
const NO_KEY: &str = "anonymous";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KeyLabels {
    key: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusedLabels {
    key: String,
    limit: &'static str,
}

/// The figures of all keys; clones count into the same.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    requests: Family<KeyLabels, Counter>,
    events: Family<KeyLabels, Counter>,
    refused: Family<RefusedLabels, Counter>,
    /// Keys that have series of their own.
    named: Arc<AtomicUsize>,
}

/// The counters of one key.
#[derive(Debug)]
pub(super) struct Counters {
    pub(super) requests: Counter,
    pub(super) events: Counter,
    requests_refused: Counter,
    events_refused: Counter,
}

impl Counters {
    pub(super) fn refused(&self, unit: Unit) -> &Counter {
        match unit {
            Unit::Requests => &self.requests_refused,
            Unit::Events => &self.events_refused,
        }
    }
}

impl Figures {
    /// Shows the figures in `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "key_requests",
            "Requests by key, refused ones included; the keys that came first, and all others together",
            self.requests.clone(),
        );
        registry.register(
            "key_events",
            "Published events that came as far as the queue, by key",
            self.events.clone(),
        );
        registry.register(
            "key_refused",
            "Requests refused because a limit of the key was reached, by key and limit",
            self.refused.clone(),
        );
    }

    /// The counters of a key that is used for the first time.
    pub(super) fn of_key(&self, id: &str) -> Counters {
        if self.named.fetch_add(1, Ordering::Relaxed) < MAX_METRIC_KEYS {
            self.labelled(id)
        } else {
            self.labelled(OTHER_KEYS)
        }
    }

    /// The counters of all requests without a key.
    pub(super) fn of_nobody(&self) -> Counters {
        self.labelled(NO_KEY)
    }

    fn labelled(&self, key: &str) -> Counters {
        let labels = KeyLabels { key: key.to_owned() };
        let refused = |unit: Unit| {
            self.refused.get_or_create_owned(&RefusedLabels {
                key: key.to_owned(),
                limit: unit.name(),
            })
        };
        Counters {
            requests: self.requests.get_or_create_owned(&labels),
            events: self.events.get_or_create_owned(&labels),
            // From the start: a rate needs a zero to begin with.
            requests_refused: refused(Unit::Requests),
            events_refused: refused(Unit::Events),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text::encode;

    #[test]
    fn the_number_of_keys_with_series_of_their_own_is_bounded() {
        let figures = Figures::default();
        figures.of_nobody().requests.inc();
        for key in 0..MAX_METRIC_KEYS + 7 {
            figures.of_key(&format!("{key:016}")).requests.inc();
        }
        let mut registry = Registry::default();
        figures.register(&mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let series = text.lines().filter(|line| line.starts_with("key_requests_total"));
        assert_eq!(series.count(), MAX_METRIC_KEYS + 2);
        for sample in [
            "key=\"other\"} 7",
            "key=\"anonymous\"} 1",
            "key=\"0000000000000000\"} 1",
        ] {
            assert!(text.contains(&format!("key_requests_total{{{sample}")), "{text}");
        }
    }
}
