//! Promises of the SQLite store, and what its tests share.

mod backups;
mod checkpoints;
mod counting;
mod damage;
mod failures;
mod fences;
mod opening;
mod reading;
mod write_ahead_log;

use super::{reader::SqliteStore, recovery, writer::SqliteWriter};
use crate::{
    event::{Batch, Identity, Outcome, Shape, parse},
    index::Settings,
    store::{BatchOutcome, OpenError, Placed, Store as _, Writer as _},
};
use std::{path::Path, sync::Arc};

/// Sizes that make a few events go through all parts of the index.
const SMALL: Settings = Settings {
    tail_events: 8,
    merge_fan_in: 2,
    filter_keys: 16,
    max_frozen_tails: 2,
    time_block_events: 4,
    retry: std::time::Duration::from_millis(1),
};

/// An event as tests write it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sent {
    topic: String,
    event_id: String,
    timestamp: String,
    source: String,
    payload: String,
}

fn sent(topic: &str, event_id: &str, payload: &str) -> Sent {
    Sent {
        topic: topic.to_owned(),
        event_id: event_id.to_owned(),
        timestamp: "2025-10-23T10:00:00.123Z".to_owned(),
        source: "tests".to_owned(),
        payload: payload.to_owned(),
    }
}

fn batch(identity: &Identity, events: &[Sent]) -> Batch {
    let events: Vec<String> = events
        .iter()
        .map(|event| {
            format!(
                r#"{{"topic":{:?},"event_id":{:?},"timestamp":{:?},"source":{:?},"payload":{}}}"#,
                event.topic, event.event_id, event.timestamp, event.source, event.payload
            )
        })
        .collect();
    parse(
        format!("[{}]", events.join(",")).into_bytes(),
        Shape::Any,
        identity,
        100_000,
    )
    .unwrap()
}

fn try_open(path: &Path) -> Result<(SqliteWriter, SqliteStore), OpenError> {
    recovery::open(path, Arc::new(|| {}), SMALL, 1000)
}

fn open(path: &Path) -> (SqliteWriter, SqliteStore) {
    try_open(path).unwrap()
}

/// The message with which a store is refused.
fn refusal(path: &Path) -> String {
    match try_open(path) {
        Ok(_) => panic!("{} was opened", path.display()),
        Err(error) => error.to_string(),
    }
}

/// Commits one batch and lets the index list what it has finished.
fn commit(writer: &mut SqliteWriter, store: &SqliteStore, events: &[Sent]) -> Vec<Placed> {
    let batch = batch(&store.identity(), events);
    let mut outcomes = writer.commit(&[&batch]).unwrap();
    writer.maintain().unwrap();
    match outcomes.remove(0) {
        BatchOutcome::Committed(placed) => placed,
        refused => panic!("{refused:?}"),
    }
}

/// Commits `count` new events of topic `topic` whose ids start with `prefix`, in batches of seven.
fn commit_many(writer: &mut SqliteWriter, store: &SqliteStore, prefix: &str, count: usize) {
    let events: Vec<Sent> = (0..count)
        .map(|number| sent("topic", &format!("{prefix}-{number}"), r#"{"a":1}"#))
        .collect();
    for events in events.chunks(7) {
        let placed = commit(writer, store, events);
        assert!(placed.iter().all(|placed| placed.outcome == Outcome::Stored));
    }
}
