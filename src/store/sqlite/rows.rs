//! A row of the log: its columns, its checksum, and how it is read back. And the checksum of a topic.
//!
//! The one place that knows the order of the columns. The payload stands last, so that what comes before it is read
//! without following a large payload's overflow pages.

use crate::{
    event::{Event, Fingerprint, Identity, Instant, Key, Seq},
    index::{Entry, TopicNumber},
    store::StoredEvent,
};
use rusqlite::{Row, types::FromSql};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The log's columns as the methods of [`LogRow`] expect them.
pub(super) const COLUMNS: &str =
    "seq, topic, processed_at, fingerprint, checksum, event_id, timestamp, source, payload";
/// How many columns there are.
pub(super) const COLUMN_COUNT: usize = 9;

/// The checksum of a row: the event's own, mixed with everything that the store adds. SQLite has no checksums of its
/// pages, so this is what tells damage from data.
pub(super) fn checksum(
    event: u64,
    seq: Seq,
    topic: TopicNumber,
    processed_at: i64,
    fingerprint: Fingerprint,
) -> u64 {
    let mut bytes = [0; 28];
    bytes[..8].copy_from_slice(&seq.to_le_bytes());
    bytes[8..12].copy_from_slice(&topic.to_le_bytes());
    bytes[12..20].copy_from_slice(&processed_at.to_le_bytes());
    bytes[20..].copy_from_slice(&fingerprint.0.to_le_bytes());
    xxh3_64_with_seed(&bytes, event)
}

/// Adds a topic: its number, its name, its checksum.
pub(super) const ADD_TOPIC: &str = "INSERT INTO topics(number, name, checksum) VALUES (?1, ?2, ?3)";

/// The checksum of a topic's row. Every event's identity depends on its topic's name.
pub(super) fn topic_checksum(number: u64, name: &str) -> u64 {
    xxh3_64_with_seed(name.as_bytes(), number)
}

/// A row that was read and whose checksum is right.
#[derive(Clone, Copy, Debug)]
pub(super) struct LogRow<'a> {
    pub(super) seq: Seq,
    pub(super) topic: TopicNumber,
    pub(super) topic_name: &'a str,
    pub(super) processed_at: i64,
    pub(super) fingerprint: Fingerprint,
    pub(super) event_id: &'a str,
    pub(super) timestamp: &'a str,
    pub(super) source: &'a str,
    pub(super) payload: &'a str,
}

/// Why a row could not be used: damage, or an error of SQLite's.
#[derive(Debug, thiserror::Error)]
pub(super) enum RowError {
    #[error("{0}")]
    Sqlite(#[from] rusqlite::Error),
    #[error("{0}")]
    Damaged(String),
}

impl RowError {
    /// The log lacks a row that it must have.
    pub(super) fn missing(seq: Seq) -> Self {
        Self::Damaged(format!("event {seq} of the log is missing"))
    }
}

impl<'a> LogRow<'a> {
    /// The topic's number in a row of a query for [`COLUMNS`], to look its name up by.
    pub(super) fn topic_of(row: &Row<'_>) -> Result<TopicNumber, RowError> {
        match integer(row, 1).map(TopicNumber::try_from) {
            Ok(Ok(topic)) => Ok(topic),
            _ => Err(damaged(integer(row, 0)?, "its topic is no number")),
        }
    }

    /// Reads a row of a query for [`COLUMNS`], whose topic has this name.
    pub(super) fn read(row: &'a Row<'_>, topic_name: Option<&'a str>) -> Result<Self, RowError> {
        let seq = integer(row, 0)?;
        let mistyped = |_: rusqlite::Error| damaged(seq, "a column has the wrong type");
        let topic = Self::topic_of(row)?;
        let topic_name = topic_name.ok_or_else(|| damaged(seq, "its topic is unknown"))?;
        let checksum_read = integer(row, 4).map_err(mistyped)?.cast_unsigned();
        let read = Self {
            seq: seq.cast_unsigned(),
            topic,
            topic_name,
            processed_at: integer(row, 2).map_err(mistyped)?,
            fingerprint: Fingerprint(integer(row, 3).map_err(mistyped)?.cast_unsigned()),
            event_id: text(row, 5).map_err(mistyped)?,
            timestamp: text(row, 6).map_err(mistyped)?,
            source: text(row, 7).map_err(mistyped)?,
            payload: text(row, 8).map_err(mistyped)?,
        };
        if read.checksum() != checksum_read {
            return Err(damaged(seq, "its checksum is wrong"));
        }
        Ok(read)
    }

    /// The row's checksum.
    pub(super) fn checksum(&self) -> u64 {
        let event = Event {
            topic: self.topic_name,
            event_id: self.event_id,
            source: self.source,
            timestamp: self.timestamp,
            payload: self.payload,
            key: Key { high: 0, low: 0 },
            fingerprint: self.fingerprint,
            seconds: 0,
        };
        checksum(
            event.checksum(),
            self.seq,
            self.topic,
            self.processed_at,
            self.fingerprint,
        )
    }

    /// When the event happened.
    pub(super) fn instant(&self) -> Result<Instant, RowError> {
        Instant::parse(self.timestamp)
            .map_err(|_| damaged(self.seq.cast_signed(), "its timestamp is no time"))
    }

    /// What the index keeps of the event.
    pub(super) fn entry(&self, identity: &Identity) -> Result<Entry, RowError> {
        Ok(Entry {
            key: identity.key(self.topic_name, self.event_id),
            fingerprint: self.fingerprint,
            topic: self.topic,
            seconds: self.instant()?.seconds,
        })
    }

    /// Bytes of the texts.
    pub(super) fn bytes(&self) -> usize {
        self.topic_name.len()
            + self.event_id.len()
            + self.timestamp.len()
            + self.source.len()
            + self.payload.len()
    }

    /// The event for those outside.
    pub(super) fn to_event(self) -> StoredEvent {
        StoredEvent {
            seq: self.seq,
            topic: self.topic_name.to_owned(),
            event_id: self.event_id.to_owned(),
            timestamp: self.timestamp.to_owned(),
            source: self.source.to_owned(),
            payload: self.payload.to_owned(),
            processed_at: self.processed_at,
        }
    }
}

fn damaged(seq: i64, what: &str) -> RowError {
    RowError::Damaged(format!("event {seq} of the log is damaged: {what}"))
}

fn integer(row: &Row<'_>, column: usize) -> rusqlite::Result<i64> {
    Ok(i64::column_result(row.get_ref(column)?)?)
}

fn text<'a>(row: &'a Row<'_>, column: usize) -> rusqlite::Result<&'a str> {
    Ok(row.get_ref(column)?.as_str()?)
}
