//! The stores under test, and what the tests do with one.

use crate::harness::{Database, Event};
use oncelog::{
    event::{Batch, Shape, parse},
    index::Settings,
    limits,
    store::{BatchOutcome, Order, Placed, Query, Store, StoredEvent, TopicFilter, Writer, postgres, sqlite},
    wakeup::Wakeup,
};
use std::{path::PathBuf, sync::Arc};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// A kind of store.
pub(crate) trait Subject {
    /// How many cases of the model are worth their time.
    const MODEL_CASES: u32;

    /// A place for an empty one that takes no more than so many topics.
    fn with_topics(max_topics: usize) -> Self;

    /// Opens it.
    fn open(&self) -> Opened;

    /// A place for an empty one.
    fn new() -> Self
    where
        Self: Sized,
    {
        Self::with_topics(limits::MAX_TOPICS)
    }
}

/// A store in a file, with sizes that make a few events go through all parts of the index.
pub(crate) struct Sqlite {
    folder: TempDir,
    max_topics: usize,
}

impl Sqlite {
    fn path(&self) -> PathBuf {
        self.folder.path().join("events.db")
    }
}

impl Subject for Sqlite {
    const MODEL_CASES: u32 = 48;

    fn with_topics(max_topics: usize) -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            max_topics,
        }
    }

    fn open(&self) -> Opened {
        let small = Settings {
            tail_events: 8,
            merge_fan_in: 2,
            filter_keys: 16,
            time_block_events: 4,
            ..Settings::default()
        };
        let (writer, store) =
            sqlite::open_with(&self.path(), Arc::new(|| {}), small, self.max_topics).unwrap();
        Opened::new(vec![writer], store)
    }
}

/// A store in a database of its own.
pub(crate) struct Postgres {
    database: Database,
    runtime: Runtime,
    max_topics: usize,
}

impl Subject for Postgres {
    /// Each one makes a database and opens it some times: about half a second.
    const MODEL_CASES: u32 = 24;

    fn with_topics(max_topics: usize) -> Self {
        Self {
            database: Database::new(),
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap(),
            max_topics,
        }
    }

    fn open(&self) -> Opened {
        let server = postgres::Server::parse(&self.database.url()).unwrap();
        let wakeup = Wakeup::new(0);
        let opening = postgres::open_with(server, Arc::new(|| {}), &wakeup, self.max_topics);
        let (writers, store) = self.runtime.block_on(opening).unwrap();
        Opened::new(writers, store)
    }
}

/// An open store. Its writers take turns.
pub(crate) struct Opened {
    writers: Vec<Box<dyn Writer>>,
    commits: usize,
    pub(crate) store: Arc<dyn Store>,
}

impl Opened {
    fn new(writers: Vec<Box<dyn Writer>>, store: Arc<dyn Store>) -> Self {
        Self {
            writers,
            commits: 0,
            store,
        }
    }

    /// The events as a request brings them.
    pub(crate) fn batch(&self, events: &[Event]) -> Batch {
        parse(
            Event::array(events),
            Shape::Any,
            &self.store.identity(),
            events.len(),
        )
        .unwrap()
    }

    /// Commits some batches together; an error is the place of an event that has one topic too many.
    pub(crate) fn commit_all(&mut self, batches: &[Vec<Event>]) -> Vec<Result<Vec<Placed>, usize>> {
        let batches: Vec<Batch> = batches.iter().map(|events| self.batch(events)).collect();
        self.commits += 1;
        let turn = self.commits % self.writers.len();
        let writer = &mut self.writers[turn];
        let outcomes = writer.commit(&batches.iter().collect::<Vec<_>>()).unwrap();
        writer.maintain().unwrap();
        assert_eq!(outcomes.len(), batches.len());
        outcomes
            .into_iter()
            .map(|outcome| match outcome {
                BatchOutcome::Committed(placed) => Ok(placed),
                BatchOutcome::TooManyTopics { event } => Err(event),
                BatchOutcome::Fenced { .. } => panic!("nothing has a fence"),
            })
            .collect()
    }

    /// Commits one batch, which has room.
    pub(crate) fn commit(&mut self, events: &[Event]) -> Vec<Placed> {
        let outcome = self.commit_all(&[events.to_vec()]).remove(0);
        outcome.unwrap_or_else(|event| panic!("event {event} has one topic too many"))
    }

    /// Leaves the store tidy.
    pub(crate) fn close(self) {
        for writer in self.writers {
            writer.close().unwrap();
        }
    }

    /// Follows a query page by page to its end.
    pub(crate) fn read_all(&self, query: &Query) -> Vec<StoredEvent> {
        let mut query = query.clone();
        let mut events = Vec::new();
        loop {
            let page = self.store.page(&query).unwrap();
            assert!(page.events.len() <= query.limit);
            events.extend(page.events);
            if page.exhausted {
                return events;
            }
            assert_ne!(query.position, Some(page.position), "a page must get on");
            query.position = Some(page.position);
        }
    }
}

/// Everything, from the oldest event.
pub(crate) fn everything(limit: usize) -> Query {
    Query {
        shown: TopicFilter::all(),
        topic: None,
        source: None,
        from: None,
        to: None,
        order: Order::Ascending,
        position: None,
        limit,
    }
}
