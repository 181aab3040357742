//! A histogram that many threads count into at once.
//!
//! The library's takes a lock, and every answer would take it: two workers waited for each other there. Nothing here is
//! read while it is counted but by `GET /metrics`, so each bucket is a number of its own.

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::{MetricType, TypedMetric},
};
use std::{
    fmt, iter,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// The upper edges of the buckets, in nanoseconds: from a commit on a fast disk to the longest wait.
const EDGES: [u64; 12] = [
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    1_000_000_000,
    5_000_000_000,
    30_000_000_000,
];

/// How long things took; clones count into the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Durations(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// How many fell into each bucket, and not into the one before it; the last has no upper edge.
    buckets: [AtomicU64; EDGES.len() + 1],
    /// All of them together, which is enough for 584 years.
    nanoseconds: AtomicU64,
}

impl Durations {
    /// Counts one.
    pub(super) fn observe(&self, took: Duration) {
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = EDGES.iter().take_while(|edge| nanoseconds > **edge).count();
        self.0.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.0.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }
}

impl EncodeMetric for Durations {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let edges = EDGES.iter().map(|edge| seconds(*edge));
        let counts = self
            .0
            .buckets
            .each_ref()
            .map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<(f64, u64)> = edges.chain(iter::once(f64::INFINITY)).zip(counts).collect();
        let sum = seconds(self.0.nanoseconds.load(Ordering::Relaxed));
        encoder.encode_histogram::<NoLabelSet>(sum, counts.iter().sum(), &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for Durations {
    const TYPE: MetricType = MetricType::Histogram;
}

fn seconds(nanoseconds: u64) -> f64 {
    Duration::from_nanos(nanoseconds).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::{encoding::text::encode, registry::Registry};

    #[test]
    fn a_duration_counts_in_every_bucket_that_it_fits_into() {
        let durations = Durations::default();
        let mut registry = Registry::default();
        registry.register("took", "Time", durations.clone());
        for milliseconds in [0, 5, 6, 31_000] {
            durations.observe(Duration::from_millis(milliseconds));
        }
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            "took_sum 31.011",
            "took_count 4",
            "took_bucket{le=\"0.0005\"} 1",
            "took_bucket{le=\"0.0025\"} 1",
            "took_bucket{le=\"0.005\"} 2",
            "took_bucket{le=\"0.01\"} 3",
            "took_bucket{le=\"30.0\"} 3",
            "took_bucket{le=\"+Inf\"} 4",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
    }
}
