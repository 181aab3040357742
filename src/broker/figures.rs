//! What this instance has put into the broker and taken out of it, for metrics.

use super::QueueError;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

/// The figures; clones count into the same.
#[derive(Clone, Debug)]
pub struct Figures {
    publishes: Family<ResultLabels, Counter>,
    queued: Counter,
    full: Counter,
    unavailable: Counter,
    consumed: Counter,
    commits: Counter,
    redelivered: Counter,
    buried: Counter,
}

impl Default for Figures {
    fn default() -> Self {
        let publishes = Family::<ResultLabels, Counter>::default();
        // All of them from the start: a rate needs a zero to begin with.
        let counter = |result| publishes.get_or_create_owned(&ResultLabels { result });
        Self {
            queued: counter("queued"),
            full: counter("full"),
            unavailable: counter("unavailable"),
            publishes,
            consumed: Counter::default(),
            commits: Counter::default(),
            redelivered: Counter::default(),
            buried: Counter::default(),
        }
    }
}

impl Figures {
    /// Shows the figures in `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "broker_publishes",
            "Publish requests with ack=queued, by what became of them",
            self.publishes.clone(),
        );
        registry.register(
            "broker_consumed_events",
            "Events out of the broker that were committed, duplicates included",
            self.consumed.clone(),
        );
        registry.register(
            "broker_commits",
            "Batches out of the broker that were committed",
            self.commits.clone(),
        );
        registry.register(
            "broker_redelivered_entries",
            "Entries of the broker that were tried again, because they failed or their consumer died",
            self.redelivered.clone(),
        );
        registry.register(
            "broker_buried_letters",
            "Dead letters made of what could not be committed",
            self.buried.clone(),
        );
    }

    /// A request came to this.
    pub(super) fn queued(&self, result: &Result<(), QueueError>) {
        match result {
            Ok(()) => self.queued.inc(),
            Err(QueueError::Full { .. } | QueueError::TooLarge { .. }) => self.full.inc(),
            Err(QueueError::Unavailable(_)) => self.unavailable.inc(),
        };
    }

    /// A batch with so many events is committed.
    pub(super) fn committed(&self, events: usize) {
        self.commits.inc();
        self.consumed.inc_by(events as u64);
    }

    /// An entry came again.
    pub(super) fn redelivered(&self) {
        self.redelivered.inc();
    }

    /// So many dead letters were made.
    pub(super) fn buried(&self, letters: u64) {
        self.buried.inc_by(letters);
    }
}
