//! The index beside the log: finds events by identity, topic and time, and touches no random page to do so.
//!
//! It knows nothing of SQL or HTTP. (The data structure's documentation follows with its parts.)

use crate::{
    event::{Fingerprint, Key, Seq},
    limits,
};
use std::{path::Path, sync::Arc};

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

/// A change of the list of segments. The store lists it in a transaction, then hands it to [`Index::apply`].
#[derive(Debug)]
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
    /// See [`limits::TAIL_EVENTS`]. A multiple of [`limits::TIME_BLOCK_EVENTS`], unless in tests.
    pub tail_events: usize,
    /// See [`limits::MERGE_FAN_IN`].
    pub merge_fan_in: usize,
    /// See [`limits::FILTER_KEYS`].
    pub filter_keys: usize,
    /// See [`limits::MAX_FROZEN_TAILS`].
    pub max_frozen_tails: usize,
    /// See [`limits::TIME_BLOCK_EVENTS`].
    pub time_block_events: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            tail_events: limits::TAIL_EVENTS,
            merge_fan_in: limits::MERGE_FAN_IN,
            filter_keys: limits::FILTER_KEYS,
            max_frozen_tails: limits::MAX_FROZEN_TAILS,
            time_block_events: limits::TIME_BLOCK_EVENTS,
        }
    }
}

/// Figures of an index, as of now.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// Events in the tail and in tails that wait to be sealed.
    pub tail_events: u64,
    /// Segments.
    pub segments: u64,
    /// Bytes of the segments on disk.
    pub segment_bytes: u64,
    /// Bytes of memory of the segments' filters.
    pub filter_bytes: u64,
}

/// A listed segment whose file cannot be used.
#[derive(Debug)]
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

/// The index of one store. Shared by the writer, who alone appends, and any number of readers.
pub struct Index {}

#[allow(unused_variables, missing_docs, clippy::todo)]
impl Index {
    /// Opens the folder (made when it is missing), with the segments that the store lists. Files of this store that
    /// are not listed are removed, anything else is left alone. Segments that cannot be used are returned: until each
    /// is replaced ([`Index::rebuild`]), whatever needs it is an [`IndexError::Damaged`].
    ///
    /// The listed segments cover the log from seq 1 without gaps; the caller goes on with [`Index::append`] for all
    /// events behind them. `ready` is called, from any thread, when [`Index::finished`] has something.
    pub fn open(
        folder: &Path,
        store: u128,
        listed: &[SegmentName],
        settings: Settings,
        ready: Arc<dyn Fn() + Send + Sync>,
    ) -> Result<(Self, Vec<Unusable>), IndexError> {
        todo!()
    }

    /// Adds the next events of the log, which are committed. Waits while too many tails wait to be sealed.
    pub fn append(&self, entries: &[Entry]) -> Result<(), IndexError> {
        todo!()
    }

    /// For each key, where it stands, if it is there; in the order asked.
    pub fn lookup(&self, keys: &[Key]) -> Result<Vec<Option<Found>>, IndexError> {
        todo!()
    }

    /// Up to `limit` events of a topic, in `direction`, from the first one beyond `position` (which is not included).
    pub fn topic_seqs(
        &self,
        topic: TopicNumber,
        direction: Direction,
        position: Seq,
        limit: usize,
    ) -> Result<Vec<Seq>, IndexError> {
        todo!()
    }

    /// The block of events around `seq` with its smallest and largest time; `None` beyond the last event.
    pub fn times_of(&self, seq: Seq) -> Result<Option<TimeBlock>, IndexError> {
        todo!()
    }

    /// A change that background work has made ready to be listed. It is returned until it is applied.
    pub fn finished(&self) -> Option<Change> {
        todo!()
    }

    /// The change is listed, durably: from now on the index uses the new files, and removes the old ones.
    pub fn apply(&self, change: Change) {
        todo!()
    }

    /// Builds an unusable segment anew from its events, which `entries` returns in the order of the log, all of them.
    /// The change has to be listed and applied like any other.
    pub fn rebuild<E: From<IndexError>>(
        &self,
        segment: SegmentName,
        entries: impl Iterator<Item = Result<Entry, E>>,
    ) -> Result<Change, E> {
        todo!()
    }

    /// Renames the file of an unusable segment that cannot be rebuilt, so that nothing removes it; returns its new
    /// path, or `None` when there is no file.
    pub fn set_aside(&self, segment: SegmentName) -> Result<Option<std::path::PathBuf>, IndexError> {
        todo!()
    }

    /// Where the file of a segment is.
    pub fn path_of(&self, segment: SegmentName) -> std::path::PathBuf {
        todo!()
    }

    /// Figures for metrics.
    pub fn figures(&self) -> Figures {
        todo!()
    }
}

/// The file name of a segment of the store `store`.
pub fn file_name(store: u128, segment: SegmentName) -> String {
    format!(
        "{:08x}-{:016x}-{:016x}-{:08x}.segment",
        store >> 96,
        segment.first,
        segment.last,
        segment.number
    )
}

/// Checks a whole segment file: every block's checksum, the order of the ids, and, where the log still has the rows,
/// that ids, topics and times say what `entries` say (all events of the segment, in the order of the log). Returns the
/// number of ids, or what is wrong.
#[allow(unused_variables, clippy::todo)]
pub fn verify(
    folder: &Path,
    store: u128,
    segment: SegmentName,
    settings: Settings,
    entries: Option<&mut dyn Iterator<Item = Result<Entry, String>>>,
) -> Result<u64, String> {
    todo!()
}
