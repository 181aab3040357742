//! The contract between the program and a store.
//!
//! A store has two faces. The [`Writer`] belongs to the committer alone and is the only way to change anything; the
//! [`Store`] is shared by all who read. Both block, so async code calls them on threads of their own. What is
//! promised here holds for every store; `sqlite` keeps it in one file with an index beside it.

mod fences;
pub mod migration;
pub mod postgres;
pub mod sqlite;

pub(crate) use fences::Fences;

use crate::{
    event::{Batch, Identity, Instant, Outcome, Seq},
    index,
};
use std::sync::Arc;

/// The side of a store that changes it. A store in a file has one, a server one for each commit at once; dropping it without [`Writer::close`] is safe and
/// leaves what a crash would leave.
pub trait Writer: Send {
    /// Stores the new events of all `batches` in one durable transaction and says what became of each event.
    ///
    /// When this returns `Ok`, everything in it is on disk and seen by every reader that asks from then on. When it
    /// returns an error, nothing of it is stored or counted, unless the error says that it is [in
    /// doubt](CommitError::Poisoned).
    fn commit(&mut self, batches: &[&Batch]) -> Result<Vec<BatchOutcome>, CommitError>;

    /// Does what background work has left for the writer (listing new index segments, checkpoints). Called after each
    /// commit, and when [`Maintenance`] was asked for. An error says that commits fail, or may fail, until a commit or a probe
    /// succeeds; success says nothing of commits.
    fn maintain(&mut self) -> Result<(), CommitError>;

    /// Commits a change without events, as large as commits are under load, to find out whether the store can commit
    /// again.
    fn probe(&mut self) -> Result<(), CommitError>;

    /// Leaves the store tidy (a checkpoint) and lets go of it.
    fn close(self: Box<Self>) -> Result<(), CommitError>;
}

/// Asks the committer to call [`Writer::maintain`] soon. Handed to a store when it is opened; cheap, callable from any
/// thread, never blocks.
pub type Maintenance = std::sync::Arc<dyn Fn() + Send + Sync>;

/// What became of one batch in a commit.
#[derive(Debug)]
pub enum BatchOutcome {
    /// All of its events were counted: one entry an event, in the order sent.
    Committed(Vec<Placed>),
    /// Nothing of it was stored: it names a topic that would be one more than the store may hold.
    TooManyTopics {
        /// Where in the batch the event with the topic stands, from 0.
        event: usize,
    },
    /// Nothing of it was stored: its [fence](Batch::fence) is of a lease that has ended, because one with a larger token
    /// has committed for the same partition. Checked in the commit itself.
    Fenced {
        /// The largest token that the store knows for the partition.
        newest: u64,
    },
}

/// What became of one event, and where its identity stands in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// What became of it.
    pub outcome: Outcome,
    /// The event's number; of a duplicate or conflict, the number of the event that was there first.
    pub seq: Seq,
}

/// The side of a store that reads.
pub trait Store: Send + Sync {
    /// What the store's keys and cursors are made with.
    fn identity(&self) -> Identity;

    /// The branches of the store's history, in the order of their first seqs; the first one begins at seq 1.
    fn branches(&self) -> &[Branch];

    /// The number of the newest committed event that this process knows of; 0 when there is none. Does not block.
    fn high_watermark(&self) -> Seq;

    /// How far the log has come, as the store itself knows, whoever committed.
    fn frontier(&self) -> Result<Frontier, ReadError>;

    /// The next events of a query from its position, in its order.
    fn page(&self, query: &Query) -> Result<Page, ReadError>;

    /// One event by its identity.
    fn find(&self, topic: &str, event_id: &str) -> Result<Option<StoredEvent>, ReadError>;

    /// The exact counters over these topics alone.
    fn totals(&self, shown: &TopicFilter) -> Result<Totals, ReadError>;

    /// Up to `limit` of these topics in the byte order of their names, from the first one after `after`.
    fn topics(
        &self,
        shown: &TopicFilter,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<TopicStatus>, ReadError>;

    /// The exact counters, and the `limit` topics that came first, in the order in which they came; both as of one
    /// moment. Which topics these are never changes, unless there are fewer.
    fn first_topics(&self, limit: usize) -> Result<(Totals, Vec<TopicStatus>), ReadError>;

    /// Figures about the store for metrics.
    fn gauges(&self) -> Result<Gauges, ReadError>;
}

/// How far a log has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frontier {
    /// No event will come any more whose number is up to this one. In a store that takes one commit at a time it is the
    /// newest one.
    pub settled: Seq,
    /// The number of the newest event; 0 when there is none.
    pub newest: Seq,
}

/// A stretch of a store's history, up to the next branch.
///
/// A backup goes on from its watermark with a branch of its own. So a seq behind the watermark, which the store and a
/// restored copy give to different events, is of different branches, and a cursor of one is no cursor of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Branch {
    /// The first seq that is given on it.
    pub first: Seq,
    /// A random number.
    pub id: u64,
}

/// The branch that `seq` is given on. `branches` are in the order of their first seqs; a seq before all of them is of the
/// first.
pub fn branch_of(branches: &[Branch], seq: Seq) -> Option<Branch> {
    let behind = branches.partition_point(|branch| branch.first <= seq);
    branches.get(behind.saturating_sub(1)).copied()
}

/// Which way a query reads the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// From old to new, by `seq`.
    Ascending,
    /// From new to old, by `seq`.
    Descending,
}

/// Which topics a reader is shown.
#[derive(Clone, Default)]
pub struct TopicFilter(Option<Shows>);

type Shows = Arc<dyn Fn(&str) -> bool + Send + Sync>;

impl TopicFilter {
    /// All of them.
    pub fn all() -> Self {
        Self(None)
    }

    /// Those whose name `shows` lets pass. It is called for every row that a query looks at.
    pub fn only(shows: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(shows)))
    }

    /// Whether all are shown.
    pub fn is_all(&self) -> bool {
        self.0.is_none()
    }

    /// Whether this one is.
    pub fn shows(&self, topic: &str) -> bool {
        self.0.as_ref().is_none_or(|shows| shows(topic))
    }
}

impl std::fmt::Debug for TopicFilter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.is_all() {
            "all topics"
        } else {
            "some topics"
        })
    }
}

/// What to read. All filters must hold.
#[derive(Clone, Debug)]
pub struct Query {
    /// Only topics that the reader is shown.
    pub shown: TopicFilter,
    /// Only this topic.
    pub topic: Option<String>,
    /// Only this source.
    pub source: Option<String>,
    /// Only events that happened at this time or later.
    pub from: Option<Instant>,
    /// Only events that happened before this time.
    pub to: Option<Instant>,
    /// Which way.
    pub order: Order,
    /// Go on from here: events after it (ascending) or before it (descending). `None` starts at the end of the log
    /// that comes first.
    pub position: Option<Seq>,
    /// At most this many events, from 1.
    pub limit: usize,
}

/// A part of a query's answer.
#[derive(Debug)]
pub struct Page {
    /// The events, in the query's order. May be fewer than `limit`, or none, although more is left: a page also ends
    /// when it has scanned or holds too much.
    pub events: Vec<StoredEvent>,
    /// The position from which to go on: everything up to it (in the query's order) has been looked at.
    pub position: Seq,
    /// Whether the page reached the end of the log in its direction.
    pub exhausted: bool,
}

/// An event as it was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredEvent {
    /// Its number.
    pub seq: Seq,
    /// See [`crate::event::Event::topic`].
    pub topic: String,
    /// See [`crate::event::Event::event_id`].
    pub event_id: String,
    /// See [`crate::event::Event::timestamp`].
    pub timestamp: String,
    /// See [`crate::event::Event::source`].
    pub source: String,
    /// See [`crate::event::Event::payload`].
    pub payload: String,
    /// When it was committed, in microseconds since 1970 UTC.
    pub processed_at: i64,
}

/// Exact counters over the whole store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Events stored.
    pub accepted: u64,
    /// Events dropped because their identity was there already, conflicts included.
    pub duplicates: u64,
    /// Those of `duplicates` that had another payload.
    pub conflicts: u64,
    /// Topics with at least one event.
    pub topics: u64,
}

/// A topic with its exact counters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicStatus {
    /// Its name.
    pub topic: String,
    /// Events stored.
    pub accepted: u64,
    /// Events dropped because their identity was there already, conflicts included.
    pub duplicates: u64,
    /// Those of `duplicates` that had another payload.
    pub conflicts: u64,
    /// The number of its first event.
    pub first_seq: Seq,
    /// When its first event was committed, in microseconds since 1970 UTC.
    pub first_processed_at: i64,
    /// The number of its newest event.
    pub last_seq: Seq,
    /// When its newest event was committed, in microseconds since 1970 UTC.
    pub last_processed_at: i64,
}

/// Figures about a store, as of now.
#[derive(Clone, Debug, Default)]
pub struct Gauges {
    /// Those of the index, in a store that has one of its own.
    pub index: Option<index::Figures>,
    /// Bytes of the database and, where it is a file, its write-ahead log.
    pub store_bytes: u64,
}

/// Why a commit did not happen.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The store cannot be written now (disk full, damaged index that is being rebuilt …). It is tried again by
    /// itself; nothing of the commit is stored.
    #[error("{0}")]
    Unavailable(String),
    /// A sync failed, so that nobody knows what is on disk. No further write is tried until the program is started
    /// again, because a repeated sync can report success for data that is lost.
    #[error("{0}")]
    Poisoned(String),
}

/// Why a read did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The store has it, or should, and cannot read it: damage, or an error of the disk.
    #[error("{0}")]
    Failed(String),
    /// The store cannot be reached now; the same read may succeed later.
    #[error("{0}")]
    Unavailable(String),
}

/// Why a store could not be opened. The message says what was wrong, where, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct OpenError(pub String);
