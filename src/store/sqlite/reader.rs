//! The reading side: pages of the log, single events, counters.
//!
//! A query reads in slices, each in a short read transaction of its own: a long one would stop the write-ahead log
//! from being started over. That is sound because rows never change and the high watermark, read first, says up to
//! where they are all there. Every row that a query looks at is checked, also one that it leaves out.

use super::{
    Shared,
    connections::Connections,
    failure,
    rows::{COLUMNS, LogRow, RowError},
};
use crate::{
    event::{Identity, Seq},
    index::{Direction, IndexError, TimeBlock},
    limits,
    store::{
        Branch, Frontier, Gauges, Order, Page, Query, ReadError, Store, StoredEvent, TopicFilter,
        TopicStatus, Totals,
    },
};
use rusqlite::{Connection, Row};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

/// The readers' face of a SQLite store.
pub(super) struct SqliteStore {
    shared: Arc<Shared>,
    connections: Connections,
}

impl SqliteStore {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            connections: Connections::default(),
        }
    }
}

impl Store for SqliteStore {
    fn identity(&self) -> Identity {
        self.shared.identity
    }

    fn branches(&self) -> &[Branch] {
        &self.shared.branches
    }

    fn high_watermark(&self) -> Seq {
        self.shared.high_watermark.load(Ordering::Acquire)
    }

    fn frontier(&self) -> Result<Frontier, ReadError> {
        let newest = self.high_watermark();
        Ok(Frontier {
            settled: newest,
            newest,
        })
    }

    fn page(&self, query: &Query) -> Result<Page, ReadError> {
        let high = self.high_watermark();
        self.connections.with(&self.shared.paths, |connection| {
            PageReader::new(&self.shared, connection, query, high)
                .read()
                .map_err(|error| error.shown(&self.shared))
        })
    }

    fn find(&self, topic: &str, event_id: &str) -> Result<Option<StoredEvent>, ReadError> {
        self.connections.with(&self.shared.paths, |connection| {
            find(&self.shared, connection, topic, event_id).map_err(|error| error.shown(&self.shared))
        })
    }

    fn totals(&self, shown: &TopicFilter) -> Result<Totals, ReadError> {
        Ok(self.shared.topics().totals_of(shown))
    }

    fn topics(
        &self,
        shown: &TopicFilter,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<TopicStatus>, ReadError> {
        Ok(self.shared.topics().list(shown, after, limit))
    }

    fn first_topics(&self, limit: usize) -> Result<(Totals, Vec<TopicStatus>), ReadError> {
        let topics = self.shared.topics();
        Ok((topics.totals(), topics.first(limit)))
    }

    fn gauges(&self) -> Result<Gauges, ReadError> {
        Ok(Gauges {
            index: Some(self.shared.index.figures()),
            store_bytes: self.shared.paths.database_bytes(),
        })
    }
}

/// Why a query cannot be answered.
#[derive(Debug)]
enum Trouble {
    Row(RowError),
    Index(IndexError),
}

impl Trouble {
    fn shown(self, shared: &Shared) -> ReadError {
        let file = shared.paths.database.display();
        match self {
            Self::Row(RowError::Sqlite(error)) => failure::read(&shared.paths, &error),
            Self::Row(RowError::Damaged(what)) => ReadError::Failed(format!(
                "{file}: {what}. Run `oncelog verify`, and go back to a backup"
            )),
            Self::Index(error) => ReadError::Failed(failure::index(&error)),
        }
    }
}

impl From<RowError> for Trouble {
    fn from(error: RowError) -> Self {
        Self::Row(error)
    }
}

impl From<rusqlite::Error> for Trouble {
    fn from(error: rusqlite::Error) -> Self {
        Self::Row(error.into())
    }
}

impl From<IndexError> for Trouble {
    fn from(error: IndexError) -> Self {
        Self::Index(error)
    }
}

/// Reads a row whose topic may be any.
fn with_row<T>(
    shared: &Shared,
    row: &Row<'_>,
    work: impl FnOnce(&LogRow<'_>) -> Result<T, Trouble>,
) -> Result<T, Trouble> {
    let name = shared.topics().name(LogRow::topic_of(row)?).cloned();
    work(&LogRow::read(row, name.as_deref())?)
}

fn find(
    shared: &Shared,
    connection: &Connection,
    topic: &str,
    event_id: &str,
) -> Result<Option<StoredEvent>, Trouble> {
    let key = shared.identity.key(topic, event_id);
    let Some(found) = shared.index.lookup(&[key])?.into_iter().flatten().next() else {
        return Ok(None);
    };
    let mut select = connection.prepare_cached(&by_seq())?;
    let mut rows = select.query([found.seq.cast_signed()])?;
    let row = rows.next()?.ok_or_else(|| RowError::missing(found.seq))?;
    with_row(shared, row, |row| {
        if row.topic_name != topic || row.event_id != event_id {
            let what = format!(
                "the index says that event {} is another one than it is",
                found.seq
            );
            return Err(RowError::Damaged(what).into());
        }
        Ok(Some(row.to_event()))
    })
}

fn by_seq() -> String {
    format!("SELECT {COLUMNS} FROM events WHERE seq = ?1")
}

/// A page while it is read.
struct PageReader<'a> {
    shared: &'a Shared,
    connection: &'a Connection,
    query: &'a Query,
    /// The last event that the query may see.
    high: Seq,
    started: Instant,
    events: Vec<StoredEvent>,
    bytes: usize,
    scanned: usize,
    /// Everything up to here, in the query's order, has been looked at.
    position: Seq,
    /// The block of times looked up last.
    block: Option<TimeBlock>,
}

impl<'a> PageReader<'a> {
    fn new(shared: &'a Shared, connection: &'a Connection, query: &'a Query, high: Seq) -> Self {
        let position = match query.order {
            Order::Ascending => query.position.unwrap_or(0),
            Order::Descending => query.position.unwrap_or(high + 1).min(high + 1),
        };
        Self {
            shared,
            connection,
            query,
            high,
            started: Instant::now(),
            events: Vec::new(),
            bytes: 0,
            scanned: 0,
            position,
            block: None,
        }
    }

    fn read(mut self) -> Result<Page, Trouble> {
        let exhausted = match &self.query.topic {
            None => self.read_log()?,
            Some(name) => {
                let number = self.shared.topics().number(name);
                match number {
                    Some(number) => self.read_topic(number)?,
                    None => true,
                }
            }
        };
        if exhausted {
            self.position = match self.query.order {
                Order::Ascending => self.position.max(self.high),
                Order::Descending => 1,
            };
        }
        Ok(Page {
            events: self.events,
            position: self.position,
            exhausted,
        })
    }

    /// Whether the page must end here. Asked only after something was looked at, so that every page gets on.
    fn is_full(&self) -> bool {
        self.events.len() >= self.query.limit
            || self.bytes >= limits::MAX_PAGE_BYTES
            || self.scanned >= limits::MAX_PAGE_SCAN_ROWS
            || self.started.elapsed() >= limits::QUERY_TIME
    }

    /// Whether nothing is left in the query's direction.
    fn is_at_end(&self) -> bool {
        match self.query.order {
            Order::Ascending => self.position >= self.high,
            Order::Descending => self.position <= 1,
        }
    }

    /// Reads on in the log itself; returns whether it came to its end.
    fn read_log(&mut self) -> Result<bool, Trouble> {
        while !self.is_at_end() {
            let (mut first, mut last) = match self.query.order {
                Order::Ascending => (self.position + 1, self.high),
                Order::Descending => (1, self.position - 1),
            };
            let next = match self.query.order {
                Order::Ascending => first,
                Order::Descending => last,
            };
            if let Some(block) = self.times_of(next)? {
                first = first.max(block.first);
                last = last.min(block.last);
                if self.leaves_out(&block) {
                    self.position = match self.query.order {
                        Order::Ascending => last,
                        Order::Descending => first,
                    };
                    if self.started.elapsed() >= limits::QUERY_TIME {
                        break;
                    }
                    continue;
                }
            }
            let slice = limits::READ_SLICE_ROWS as u64 - 1;
            match self.query.order {
                Order::Ascending => last = last.min(first + slice),
                Order::Descending => first = first.max(last.saturating_sub(slice)),
            }
            if self.read_range(first, last)? {
                break;
            }
        }
        Ok(self.is_at_end())
    }

    /// Looks at the rows from `first` to `last` in one read transaction; returns whether the page is full.
    fn read_range(&mut self, first: Seq, last: Seq) -> Result<bool, Trouble> {
        let order = match self.query.order {
            Order::Ascending => "ASC",
            Order::Descending => "DESC",
        };
        let mut select = self.connection.prepare_cached(&format!(
            "SELECT {COLUMNS} FROM events WHERE seq BETWEEN ?1 AND ?2 ORDER BY seq {order}"
        ))?;
        let mut rows = select.query((first.cast_signed(), last.cast_signed()))?;
        let mut slice_bytes = 0;
        for _ in first..=last {
            let expected = match self.query.order {
                Order::Ascending => self.position + 1,
                Order::Descending => self.position - 1,
            };
            let row = rows.next()?.ok_or_else(|| RowError::missing(expected))?;
            slice_bytes += with_row(self.shared, row, |row| {
                if row.seq != expected {
                    return Err(RowError::missing(expected).into());
                }
                self.look_at(row)?;
                Ok(row.bytes())
            })?;
            if self.is_full() {
                return Ok(true);
            }
            if slice_bytes >= limits::READ_SLICE_BYTES {
                break;
            }
        }
        Ok(false)
    }

    /// Reads on among the events of a topic; returns whether it came to their end.
    fn read_topic(&mut self, topic: crate::index::TopicNumber) -> Result<bool, Trouble> {
        let direction = match self.query.order {
            Order::Ascending => Direction::Up,
            Order::Descending => Direction::Down,
        };
        let filtered = self.query.source.is_some() || self.query.from.is_some() || self.query.to.is_some();
        while !self.is_at_end() {
            let slice = if filtered {
                limits::READ_SLICE_ROWS
            } else {
                limits::READ_SLICE_ROWS.min(self.query.limit - self.events.len())
            };
            // One more than is needed shows whether there is more.
            let mut seqs = self
                .shared
                .index
                .topic_seqs(topic, direction, self.position, slice + 1)?;
            seqs.retain(|&seq| seq <= self.high);
            let is_last = seqs.len() <= slice;
            seqs.truncate(slice);
            let looked_at = self.read_seqs(&seqs)?;
            if is_last && looked_at == seqs.len() {
                return Ok(true);
            }
            if self.is_full() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Looks at these rows in one read transaction, until the page is full or enough is read; returns at how many.
    fn read_seqs(&mut self, seqs: &[Seq]) -> Result<usize, Trouble> {
        let transaction = self.connection.unchecked_transaction()?;
        let mut select = transaction.prepare_cached(&by_seq())?;
        let mut slice_bytes = 0;
        for (place, &seq) in seqs.iter().enumerate() {
            if let Some(block) = self.times_of(seq)?
                && self.leaves_out(&block)
            {
                self.position = seq;
                continue;
            }
            let mut rows = select.query([seq.cast_signed()])?;
            let row = rows.next()?.ok_or_else(|| RowError::missing(seq))?;
            slice_bytes += with_row(self.shared, row, |row| {
                if self.query.topic.as_deref() != Some(row.topic_name) {
                    let what = format!("the index says that event {seq} has another topic than it has");
                    return Err(RowError::Damaged(what).into());
                }
                self.look_at(row)?;
                Ok(row.bytes())
            })?;
            if self.is_full() || slice_bytes >= limits::READ_SLICE_BYTES {
                return Ok(place + 1);
            }
        }
        Ok(seqs.len())
    }

    /// Takes an event into the page, if the filters let it.
    fn look_at(&mut self, row: &LogRow<'_>) -> Result<(), Trouble> {
        self.scanned += 1;
        self.position = row.seq;
        if !self.query.shown.shows(row.topic_name) {
            return Ok(());
        }
        if self
            .query
            .source
            .as_deref()
            .is_some_and(|source| source != row.source)
        {
            return Ok(());
        }
        if self.query.from.is_some() || self.query.to.is_some() {
            let instant = row.instant()?;
            if self.query.from.is_some_and(|from| instant < from)
                || self.query.to.is_some_and(|to| instant >= to)
            {
                return Ok(());
            }
        }
        self.bytes += row.bytes();
        self.events.push(row.to_event());
        Ok(())
    }

    /// The block of times around `seq`, if the query asks for times.
    fn times_of(&mut self, seq: Seq) -> Result<Option<TimeBlock>, Trouble> {
        if self.query.from.is_none() && self.query.to.is_none() {
            return Ok(None);
        }
        if self
            .block
            .is_none_or(|block| seq < block.first || seq > block.last)
        {
            self.block = self.shared.index.times_of(seq)?;
        }
        Ok(self.block)
    }

    /// Whether no event of the block can be in the answer.
    fn leaves_out(&self, block: &TimeBlock) -> bool {
        let too_old = self.query.from.is_some_and(|from| block.max < from.seconds);
        let too_new = self
            .query
            .to
            .is_some_and(|to| block.min > to.seconds || block.min == to.seconds && to.nanos == 0);
        too_old || too_new
    }
}
