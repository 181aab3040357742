//! The metrics that are read from the other parts of the program when somebody asks for them: they cost nothing until
//! then, and what the store knows survives restarts.

use crate::{
    broker::Broker,
    health::Health,
    http::{answers::AnswerRoom, body::BodyRoom},
    index::Figures,
    ingest::Ingest,
    limits::{self, MAX_METRIC_TOPICS},
    store::{Gauges, Store, TopicStatus, Totals},
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};
use std::{sync::Arc, time::Instant};

/// The label of all topics that have no series of their own.
const OTHER_TOPICS: &str = "other";

/// What is read from the other parts when the metrics are.
#[derive(Debug)]
pub(crate) struct Gathered {
    store: Facade<Arc<dyn Store>>,
    ingest: Facade<Ingest>,
    broker: Option<Broker>,
    health: Health,
    bodies: BodyRoom,
    answers: AnswerRoom,
    started: Instant,
}

impl Gathered {
    /// Reads from these parts.
    pub(crate) fn new(
        store: Arc<dyn Store>,
        ingest: Ingest,
        broker: Option<Broker>,
        health: Health,
        bodies: BodyRoom,
        answers: AnswerRoom,
        started: Instant,
    ) -> Self {
        Self {
            store: Facade(store),
            ingest: Facade(ingest),
            broker,
            health,
            bodies,
            answers,
            started,
        }
    }

    pub(super) fn ingest(&self) -> &Ingest {
        &self.ingest.0
    }

    pub(super) fn broker(&self) -> Option<&Broker> {
        self.broker.as_ref()
    }
}

/// Hides what has no `Debug`, which a [`Collector`] needs.
struct Facade<T>(T);

impl<T> std::fmt::Debug for Facade<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("…")
    }
}

impl Collector for Gathered {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        self.of_this_process(&mut encoder)?;
        if let Some(broker) = &self.broker {
            of_broker(&mut encoder, broker)?;
        }
        // Whoever watches needs the rest most when the store is away.
        let stored = self.store.0.first_topics(MAX_METRIC_TOPICS);
        match stored.and_then(|counted| Ok((counted, self.store.0.gauges()?))) {
            Ok(((totals, first_topics), gauges)) => of_store(&mut encoder, &totals, &first_topics, &gauges),
            Err(error) => {
                tracing::error!(%error, "cannot read the store's metrics; they are left out");
                Ok(())
            }
        }
    }
}

/// What the store knows.
fn of_store(
    encoder: &mut DescriptorEncoder,
    totals: &Totals,
    first_topics: &[TopicStatus],
    gauges: &Gauges,
) -> Result<(), std::fmt::Error> {
    for (name, help, value) in [
        (
            "events_received",
            "Events committed or dropped as duplicates, since the store was made",
            totals.accepted + totals.duplicates,
        ),
        ("events_accepted", "Events stored", totals.accepted),
        (
            "events_duplicate",
            "Events dropped because their identity was there already, conflicts included",
            totals.duplicates,
        ),
        (
            "events_conflict",
            "Duplicates that had another payload than the first one",
            totals.conflicts,
        ),
    ] {
        counter(encoder, name, help, None, value)?;
    }
    topics(encoder, totals, first_topics)?;
    for (name, help, unit, value) in [
        ("topics", "Topics with at least one event", None, totals.topics),
        (
            "store",
            "The database; of a file, with its write-ahead log",
            Some(Unit::Bytes),
            gauges.store_bytes,
        ),
    ] {
        gauge(encoder, name, help, unit.as_ref(), value)?;
    }
    match &gauges.index {
        Some(index) => of_index(encoder, index),
        None => Ok(()),
    }
}

impl Gathered {
    fn of_this_process(&self, encoder: &mut DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let queued = self.ingest.0.queued_events() as u64;
        let healthy = self.health.commits();
        for (name, help, unit, value) in [
            ("healthy", "1 when the store can commit", None, u64::from(healthy)),
            (
                "high_watermark",
                "The number of the newest event that this server knows of",
                None,
                self.store.0.high_watermark(),
            ),
            (
                "topics_limit",
                "Topics that the store may hold",
                None,
                limits::MAX_TOPICS as u64,
            ),
            ("queue_events", "Events that wait for their commit", None, queued),
            (
                "queue",
                "Text of the events that wait for their commit",
                Some(Unit::Bytes),
                self.ingest.0.queued_bytes() as u64,
            ),
            (
                "queue_capacity_events",
                "Events that may wait at once",
                None,
                self.ingest.0.capacity() as u64,
            ),
            (
                "request_bodies",
                "Request bodies in work",
                Some(Unit::Bytes),
                self.bodies.used_bytes() as u64,
            ),
            (
                "request_bodies_limit",
                "Request bodies that may be in work at once",
                Some(Unit::Bytes),
                limits::MAX_IN_FLIGHT_BODY_BYTES as u64,
            ),
            (
                "answers",
                "Answers that are in work or not read yet",
                Some(Unit::Bytes),
                self.answers.used_bytes() as u64,
            ),
            (
                "answers_limit",
                "Answers that may be in work or not read yet at once",
                Some(Unit::Bytes),
                limits::MAX_IN_FLIGHT_ANSWER_BYTES as u64,
            ),
            (
                "uptime",
                "Time since the server started",
                Some(Unit::Seconds),
                self.started.elapsed().as_secs(),
            ),
        ] {
            gauge(encoder, name, help, unit.as_ref(), value)?;
        }
        Ok(())
    }
}

/// What the broker holds, as of the last second.
fn of_broker(encoder: &mut DescriptorEncoder, broker: &Broker) -> Result<(), std::fmt::Error> {
    let status = broker.status();
    let config = broker.config();
    for (name, help, unit, value) in [
        (
            "broker_connected",
            "1 when the broker takes events",
            None,
            u64::from(broker.trouble().is_none()),
        ),
        (
            "broker_queued_events",
            "Events in the broker that wait for their commit",
            None,
            status.queued_events,
        ),
        (
            "broker_queued",
            "Their text",
            Some(Unit::Bytes),
            status.queued_bytes,
        ),
        (
            "broker_limit_events",
            "Events that the broker may hold, dead letters included",
            None,
            config.max_events,
        ),
        (
            "broker_limit",
            "Text of events that the broker may hold, dead letters included",
            Some(Unit::Bytes),
            config.max_bytes,
        ),
        (
            "broker_dead_letters",
            "Events in the broker that could not be committed",
            None,
            status.dead,
        ),
        (
            "broker_leases",
            "Partitions of the broker that this instance consumes",
            None,
            status.leases,
        ),
    ] {
        gauge(encoder, name, help, unit.as_ref(), value)?;
    }
    gauge(
        encoder,
        "broker_lag",
        "How long the oldest events in the broker have waited for their commit",
        Some(&Unit::Seconds),
        status.lag.as_secs_f64(),
    )
}

/// What the index knows.
fn of_index(encoder: &mut DescriptorEncoder, index: &Figures) -> Result<(), std::fmt::Error> {
    for (name, help, unit, value) in [
        (
            "index_ids",
            "Identities in the index, those in segments that have to be rebuilt left out",
            None,
            index.ids,
        ),
        (
            "index_tail_events",
            "Events whose index is not in a segment yet",
            None,
            index.tail_events,
        ),
        (
            "index_segments",
            "Index segments",
            None,
            index.tier_segments.iter().sum(),
        ),
        (
            "index_segments_size",
            "Index segments on disk",
            Some(Unit::Bytes),
            index.segment_bytes,
        ),
        (
            "index_filters",
            "Memory of the segments' filters",
            Some(Unit::Bytes),
            index.filter_bytes,
        ),
    ] {
        gauge(encoder, name, help, unit.as_ref(), value)?;
    }
    work(encoder, index)
}

/// Events by topic and outcome. What is not of the topics that came first is counted together, so that the number of
/// series is bounded; a topic that has that name itself is among them.
fn topics(
    encoder: &mut DescriptorEncoder,
    totals: &Totals,
    first: &[TopicStatus],
) -> Result<(), std::fmt::Error> {
    let mut rest = *totals;
    let mut family = encoder.encode_descriptor(
        "topic_events",
        "Events by topic and outcome since the store was made; the topics that came first, and all others together",
        None,
        MetricType::Counter,
    )?;
    let mut outcomes = |topic: &str, accepted: u64, duplicates: u64, conflicts: u64| {
        let same = duplicates.saturating_sub(conflicts);
        for (outcome, value) in [("stored", accepted), ("duplicate", same), ("conflict", conflicts)] {
            let labels = [("topic", topic), ("outcome", outcome)];
            ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    };
    for status in first.iter().filter(|status| status.topic != OTHER_TOPICS) {
        rest.accepted = rest.accepted.saturating_sub(status.accepted);
        rest.duplicates = rest.duplicates.saturating_sub(status.duplicates);
        rest.conflicts = rest.conflicts.saturating_sub(status.conflicts);
        outcomes(
            &status.topic,
            status.accepted,
            status.duplicates,
            status.conflicts,
        )?;
    }
    outcomes(OTHER_TOPICS, rest.accepted, rest.duplicates, rest.conflicts)
}

/// The index's segments by tier, and its work in the background.
fn work(encoder: &mut DescriptorEncoder, index: &Figures) -> Result<(), std::fmt::Error> {
    let mut family = encoder.encode_descriptor(
        "index_tier_segments",
        "Index segments by tier; one of a tier is made of six of the tier below",
        None,
        MetricType::Gauge,
    )?;
    for (tier, segments) in index.tier_segments.iter().enumerate() {
        let labels = [("tier", tier as u64)];
        ConstGauge::new(*segments).encode(family.encode_family(&labels)?)?;
    }
    for (count, seconds, help, help_seconds, effort) in [
        (
            "index_seals",
            "index_seal",
            "Tails of the index written as segments",
            "Time that writing tails of the index as segments took",
            index.seals,
        ),
        (
            "index_merges",
            "index_merge",
            "Merges of index segments",
            "Time that merges of index segments took",
            index.merges,
        ),
    ] {
        counter(encoder, count, help, None, effort.done)?;
        let time = effort.time.as_secs_f64();
        counter(encoder, seconds, help_seconds, Some(&Unit::Seconds), time)?;
    }
    Ok(())
}

/// Shows one counter.
pub(super) fn counter<N: EncodeCounterValue>(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    value: N,
) -> Result<(), std::fmt::Error> {
    let metric = ConstCounter::new(value);
    metric.encode(encoder.encode_descriptor(name, help, unit, metric.metric_type())?)
}

/// Shows one gauge.
pub(super) fn gauge<N: EncodeGaugeValue>(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    value: N,
) -> Result<(), std::fmt::Error> {
    let metric = ConstGauge::new(value);
    metric.encode(encoder.encode_descriptor(name, help, unit, metric.metric_type())?)
}
