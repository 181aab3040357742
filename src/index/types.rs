//! What goes into the index and comes out of it.

use crate::{
    event::{Fingerprint, Key, Seq},
    limits,
};
use std::time::Duration;

/// The number by which a store knows a topic; small and dense, from 0.
pub type TopicNumber = u32;

/// What the index keeps of one event of the log. Its seq is its place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The keyed hash of the event's identity.
    pub key: Key,
    /// Its payload's fingerprint.
    pub fingerprint: Fingerprint,
    /// Its topic.
    pub topic: TopicNumber,
    /// Its time in seconds since 1970, rounded down.
    pub seconds: i64,
}

/// Where an identity stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The event's seq.
    pub seq: Seq,
    /// Its payload's fingerprint.
    pub fingerprint: Fingerprint,
}

/// A segment as the store lists it: the index of the events from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentName {
    /// Unique among all segments that a store ever listed.
    pub number: u64,
    /// The first event's seq.
    pub first: Seq,
    /// The last event's seq.
    pub last: Seq,
}

/// A change of the list of segments. The store lists it in a transaction, then hands it to [`super::Index::apply`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// These are no longer listed.
    pub remove: Vec<SegmentName>,
    /// These are listed instead; their files are complete and synced.
    pub add: Vec<SegmentName>,
}

/// The events that share a smallest and largest time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeBlock {
    /// The first event's seq.
    pub first: Seq,
    /// The last event's seq.
    pub last: Seq,
    /// The smallest time in seconds since 1970.
    pub min: i64,
    /// The largest time in seconds since 1970.
    pub max: i64,
}

/// Which way to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To larger seqs.
    Up,
    /// To smaller seqs.
    Down,
}

/// The sizes an index works with; tests take small ones.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// See [`limits::TAIL_EVENTS`]. A multiple of `time_block_events`.
    pub tail_events: usize,
    /// See [`limits::MERGE_FAN_IN`].
    pub merge_fan_in: usize,
    /// See [`limits::FILTER_KEYS`].
    pub filter_keys: usize,
    /// See [`limits::MAX_FROZEN_TAILS`].
    pub max_frozen_tails: usize,
    /// See [`limits::TIME_BLOCK_EVENTS`].
    pub time_block_events: u64,
    /// See [`limits::INDEX_RETRY`].
    pub retry: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            tail_events: limits::TAIL_EVENTS,
            merge_fan_in: limits::MERGE_FAN_IN,
            filter_keys: limits::FILTER_KEYS,
            max_frozen_tails: limits::MAX_FROZEN_TAILS,
            time_block_events: limits::TIME_BLOCK_EVENTS,
            retry: limits::INDEX_RETRY,
        }
    }
}

/// Figures of an index, as of now.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Ids in the index: all events, but those of segments that have to be rebuilt.
    pub ids: u64,
    /// Events in the tail and in tails that wait to be sealed.
    pub tail_events: u64,
    /// Segments of each tier, from tier 0.
    pub tier_segments: Vec<u64>,
    /// Bytes of the segments on disk.
    pub segment_bytes: u64,
    /// Bytes of memory of the segments' filters.
    pub filter_bytes: u64,
    /// Tails written as segments since the index was opened.
    pub seals: Effort,
    /// Merges since then.
    pub merges: Effort,
}

/// What a kind of background work has done, and what it took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Effort {
    /// How often it was done.
    pub done: u64,
    /// How long that took in all.
    pub time: Duration,
}

/// A listed segment whose file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unusable {
    /// Which.
    pub segment: SegmentName,
    /// What is wrong with its file, and where the file is.
    pub reason: String,
}

/// Why the index could not answer.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// A segment's file is damaged or missing: it has to be rebuilt from the log.
    #[error("index segment {} (events {} to {}): {reason}", segment.number, segment.first, segment.last)]
    Damaged {
        /// Which.
        segment: SegmentName,
        /// What is wrong, and where.
        reason: String,
    },
    /// The operating system failed to read or write; the text says what and where.
    #[error("{0}")]
    Io(String),
}

impl From<Unusable> for IndexError {
    fn from(Unusable { segment, reason }: Unusable) -> Self {
        Self::Damaged { segment, reason }
    }
}
