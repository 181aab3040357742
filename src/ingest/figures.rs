//! What the way from the queue to the commit counts for metrics.
//!
//! The queue and the committer count, `http` shows. Counted once a publish or once a commit, never once an event, so
//! that it costs the hot path nothing that can be measured.

use crate::{event::Outcome, store::BatchOutcome};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// Upper edges of waits and commits, in seconds: from a commit on a fast disk to the longest wait for the index.
const SECONDS: [f64; 14] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 10.0,
];
/// Upper edges of a commit's size, in events; a commit takes 8,000 and the rest of its last request.
const EVENTS: [f64; 11] = [
    1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1_000.0, 2_000.0, 4_000.0, 8_000.0, 16_000.0,
];
/// Upper edges of a commit's size, in bytes: 1 KiB to 16 MiB.
const BYTES: [f64; 8] = [
    1_024.0,
    4_096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

/// The figures; clones count into the same.
#[derive(Clone, Debug)]
pub struct Figures {
    publishes: Family<ResultLabels, Counter>,
    committed: Counter,
    topics_full: Counter,
    fenced: Counter,
    queue_full: Counter,
    store_failed: Counter,
    waits: Histogram,
    commit_times: Histogram,
    commit_events: Histogram,
    commit_bytes: Histogram,
    commit_failures: Counter,
    /// Commits with new events; shown nowhere.
    stored: Arc<AtomicU64>,
}

impl Default for Figures {
    fn default() -> Self {
        let publishes = Family::<ResultLabels, Counter>::default();
        // All of them from the start: a rate needs a zero to begin with.
        let counter = |result| publishes.get_or_create_owned(&ResultLabels { result });
        Self {
            committed: counter("committed"),
            topics_full: counter("topics_full"),
            fenced: counter("fenced"),
            queue_full: counter("queue_full"),
            store_failed: counter("store_failed"),
            publishes,
            waits: Histogram::new(SECONDS),
            commit_times: Histogram::new(SECONDS),
            commit_events: Histogram::new(EVENTS),
            commit_bytes: Histogram::new(BYTES),
            commit_failures: Counter::default(),
            stored: Arc::default(),
        }
    }
}

impl Figures {
    /// Shows the figures in `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "publishes",
            "Publish requests, and batches out of the broker, that came as far as the queue, by what became of them",
            self.publishes.clone(),
        );
        registry.register_with_unit(
            "queue_wait",
            "Time that publishes waited for a place in the queue, of those that had to",
            Unit::Seconds,
            self.waits.clone(),
        );
        registry.register_with_unit(
            "commit_duration",
            "Time of a commit, its sync included",
            Unit::Seconds,
            self.commit_times.clone(),
        );
        registry.register(
            "commit_events",
            "Events in a commit, duplicates included",
            self.commit_events.clone(),
        );
        registry.register_with_unit(
            "commit_size",
            "Text of the events in a commit, duplicates included",
            Unit::Bytes,
            self.commit_bytes.clone(),
        );
        registry.register(
            "commit_failures",
            "Commits that failed, tries without traffic included",
            self.commit_failures.clone(),
        );
    }

    /// A publish waited so long for its place in the queue, or until it gave up.
    pub(super) fn waited(&self, time: Duration) {
        self.waits.observe(time.as_secs_f64());
    }

    /// A publish found no place in time.
    pub(super) fn queue_full(&self) {
        self.queue_full.inc();
    }

    /// A commit with these outcomes took `time`.
    pub fn committed(&self, outcomes: &[BatchOutcome], events: usize, bytes: usize, time: Duration) {
        for outcome in outcomes {
            match outcome {
                BatchOutcome::Committed(_) => self.committed.inc(),
                BatchOutcome::TooManyTopics { .. } => self.topics_full.inc(),
                BatchOutcome::Fenced { .. } => self.fenced.inc(),
            };
        }
        let is_stored = |outcome: &BatchOutcome| match outcome {
            // The first one tells, unless all are duplicates.
            BatchOutcome::Committed(placed) => placed.iter().any(|event| event.outcome == Outcome::Stored),
            _ => false,
        };
        if outcomes.iter().any(is_stored) {
            self.stored.fetch_add(1, Ordering::Relaxed);
        }
        self.commit_times.observe(time.as_secs_f64());
        self.commit_events.observe(events as f64);
        self.commit_bytes.observe(bytes as f64);
    }

    /// How many commits have stored events. One of duplicates alone writes so little that it shows less of the store.
    pub fn stored(&self) -> u64 {
        self.stored.load(Ordering::Relaxed)
    }

    /// A commit of so many publishes failed; none for a try without traffic.
    pub fn failed(&self, publishes: u64) {
        self.store_failed.inc_by(publishes);
        self.commit_failures.inc();
    }
}
