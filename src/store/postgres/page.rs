//! A page of the log.
//!
//! The server looks at a slice of rows in the order asked for, and sends back of each whether it is wanted and, if so and
//! as long as there is room, what it holds: so a page knows how far it has looked, and neither side holds more than a
//! page. From old to new it goes up to the horizon (see [`super`]).

use super::{Shared, failure, topics::TopicNumber};
use crate::{
    event::{Instant as EventTime, Seq},
    limits,
    store::{Order, Page, Query, ReadError, StoredEvent},
};
use std::{collections::BTreeSet, sync::Arc};
use tokio::time::{Instant, sleep};
use tokio_postgres::Row;

/// A page while it is read.
struct PageReader<'a> {
    shared: &'a Shared,
    query: &'a Query,
    shown: Option<Vec<TopicNumber>>,
    topic: Option<TopicNumber>,
    events: Vec<StoredEvent>,
    bytes: usize,
    scanned: usize,
    /// Everything up to here, in the query's order, has been looked at.
    position: Seq,
    until: Instant,
}

/// What a slice came to.
#[derive(PartialEq, Eq)]
enum Slice {
    /// The page has to end here.
    Full,
    /// There may be more rows.
    Read,
    /// There are no more rows within the bounds.
    End,
}

impl Shared {
    /// The next events of a query from its position, in its order.
    pub(super) async fn page(&self, query: &Query) -> Result<Page, ReadError> {
        // Before the topics are looked up: whatever is up to here has a topic that is found then.
        let settled = self.known_settled();
        let mut reader = PageReader {
            shown: None,
            topic: None,
            events: Vec::new(),
            bytes: 0,
            scanned: 0,
            position: match query.order {
                Order::Ascending => query.position.unwrap_or(0),
                Order::Descending => query.position.unwrap_or(i64::MAX as u64),
            },
            until: Instant::now() + limits::QUERY_TIME,
            shared: self,
            query,
        };
        reader.look_up_topics().await?;
        let exhausted = match query.order {
            Order::Ascending => reader.read_up(settled).await?,
            Order::Descending => reader.read_down().await?,
        };
        Ok(Page {
            events: reader.events,
            position: reader.position,
            exhausted,
        })
    }

    async fn known_topic(&self, name: &str) -> Result<Option<TopicNumber>, ReadError> {
        if let Some(number) = self.topics.number(name) {
            return Ok(Some(number));
        }
        let client = self.reader().await?;
        self.topics
            .look_up(&client, &[name])
            .await
            .map_err(|error| failure::read(&self.server, &error))?;
        Ok(self.topics.number(name))
    }
}

impl PageReader<'_> {
    /// Looks up the numbers of the topics that are wanted, as far as there are such topics. A topic is there before its first
    /// event, so this is enough for all that is final before the call, and for nothing more.
    async fn look_up_topics(&mut self) -> Result<(), ReadError> {
        self.shown = self.shared.shown_numbers(&self.query.shown).await?;
        if let (Some(name), None) = (&self.query.topic, self.topic) {
            self.topic = self.shared.known_topic(name).await?;
        }
        Ok(())
    }

    /// Reads on from what is final up to `settled` to the end of what is final; returns whether it came there.
    async fn read_up(&mut self, mut settled: Seq) -> Result<bool, ReadError> {
        // What must be seen: everything that was committed when the end was first looked for.
        let mut wanted = None;
        loop {
            while self.position < settled {
                match self.read_slice(self.position, settled).await? {
                    Slice::Full => return Ok(false),
                    Slice::Read => {}
                    Slice::End => self.position = settled,
                }
            }
            let frontier = self.shared.horizon().await?;
            settled = frontier.settled;
            let wanted = *wanted.get_or_insert(frontier.newest);
            if self.position < settled {
                self.look_up_topics().await?;
                continue;
            }
            if settled >= wanted {
                return Ok(true);
            }
            // A commit is running whose events come before some that are committed: it ends soon.
            if Instant::now() >= self.until || !self.events.is_empty() {
                return Ok(false);
            }
            sleep(limits::POSTGRES_SETTLE_POLL).await;
        }
    }

    /// Reads on to the log's beginning; returns whether it came there.
    async fn read_down(&mut self) -> Result<bool, ReadError> {
        while self.position > 1 {
            match self.read_slice(0, self.position - 1).await? {
                Slice::Full => return Ok(self.position <= 1),
                Slice::Read => {}
                Slice::End => self.position = 1,
            }
        }
        Ok(true)
    }

    /// Looks at some rows above `after` and up to `upto`.
    async fn read_slice(&mut self, after: Seq, upto: Seq) -> Result<Slice, ReadError> {
        if self.query.topic.is_some() && self.topic.is_none() {
            return Ok(Slice::End);
        }
        let is_filtered = self.shown.is_some()
            || self.query.source.is_some()
            || self.query.from.is_some()
            || self.query.to.is_some();
        let left = self.query.limit - self.events.len();
        let rows_asked = match is_filtered {
            true => limits::READ_SLICE_ROWS,
            false => limits::READ_SLICE_ROWS.min(left),
        };
        let failed = |error| failure::read(&self.shared.server, &error);
        let client = self.shared.reader().await?;
        let statement = client
            .prepare_cached(statement(self.query.order, self.topic.is_some()))
            .await
            .map_err(failed)?;
        let seconds = |time: Option<EventTime>| time.map(|time| time.seconds);
        let rows = client
            .query(
                &statement,
                &[
                    &after.cast_signed(),
                    &upto.cast_signed(),
                    &(rows_asked as i64),
                    &self.query.source,
                    &seconds(self.query.from),
                    &seconds(self.query.to),
                    &self.shown,
                    &(limits::MAX_PAGE_BYTES.saturating_sub(self.bytes) as i64),
                    &self.topic.unwrap_or_default(),
                ],
            )
            .await
            .map_err(failed)?;
        let topics: BTreeSet<TopicNumber> = rows.iter().map(|row| row.get(1)).collect();
        self.shared.learn_topics(&client, topics).await.map_err(failed)?;
        for row in &rows {
            if row.get(3) {
                return Ok(Slice::Full);
            }
            self.look_at(row)?;
            if self.is_full() {
                return Ok(Slice::Full);
            }
        }
        Ok(match rows.len() < rows_asked {
            true => Slice::End,
            false => Slice::Read,
        })
    }

    /// Takes an event into the page, if it is wanted.
    fn look_at(&mut self, row: &Row) -> Result<(), ReadError> {
        self.scanned += 1;
        self.position = row.get::<_, i64>(0).cast_unsigned();
        let number: TopicNumber = row.get(1);
        let Some(event_id) = row.get::<_, Option<String>>(4) else {
            return Ok(());
        };
        let timestamp: String = row.get(5);
        if self.query.from.is_some() || self.query.to.is_some() {
            let time = EventTime::parse(&timestamp).map_err(|error| self.damaged(&error.to_string()))?;
            if self.query.from.is_some_and(|from| time < from) || self.query.to.is_some_and(|to| time >= to) {
                return Ok(());
            }
        }
        let topic: Arc<str> = self
            .shared
            .topics
            .name(number)
            .ok_or_else(|| self.damaged("its topic is unknown"))?;
        let event = StoredEvent {
            seq: self.position,
            topic: topic.to_string(),
            event_id,
            timestamp,
            source: row.get(6),
            payload: row.get(7),
            processed_at: row.get(2),
        };
        self.bytes += event.payload.len() + event.event_id.len() + event.source.len() + event.topic.len();
        self.events.push(event);
        Ok(())
    }

    fn damaged(&self, what: &str) -> ReadError {
        ReadError::Failed(format!(
            "{}: event {} is damaged: {what}; go back to a backup",
            self.shared.server, self.position
        ))
    }

    /// Whether the page must end here. Asked only after something was looked at, so that every page gets on.
    fn is_full(&self) -> bool {
        self.events.len() >= self.query.limit
            || self.bytes >= limits::MAX_PAGE_BYTES
            || self.scanned >= limits::MAX_PAGE_SCAN_ROWS
            || Instant::now() >= self.until
    }
}

/// The statement for a slice: of each row that is looked at, in order, its seq, topic and time, whether the page's room is
/// used up before it, and what it holds if it is wanted. A time's second is wanted whole; the fraction is compared here.
///
/// In a topic, pairs are compared and ordered by: only the index by topic has that order, so no other one is taken.
fn statement(order: Order, in_topic: bool) -> &'static str {
    macro_rules! slice {
        ($range:literal, $order:literal, $direction:literal) => {
            concat!(
                "SELECT seq, topic, processed_at, is_wanted AND before >= $8 AND place > 1, ",
                "CASE WHEN is_wanted AND (before < $8 OR place = 1) THEN event_id END, ",
                "CASE WHEN is_wanted AND (before < $8 OR place = 1) THEN timestamp END, ",
                "CASE WHEN is_wanted AND (before < $8 OR place = 1) THEN source END, ",
                "CASE WHEN is_wanted AND (before < $8 OR place = 1) THEN payload END ",
                "FROM (SELECT *, row_number() OVER by_seq AS place, ",
                "coalesce(sum(CASE WHEN is_wanted THEN octet_length(payload) ELSE 0 END) OVER ",
                "(ORDER BY seq ", $direction, " ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS before ",
                "FROM (SELECT *, ($4::text IS NULL OR source = $4) AND ($5::bigint IS NULL OR seconds >= $5) ",
                "AND ($6::bigint IS NULL OR seconds <= $6) AND ($7::integer[] IS NULL OR topic = ANY($7)) AS is_wanted ",
                "FROM events WHERE ", $range, " ORDER BY ", $order, " LIMIT $3) AS looked_at ",
                "WINDOW by_seq AS (ORDER BY seq ", $direction, ")) AS summed ORDER BY seq ", $direction
            )
        };
    }
    match (order, in_topic) {
        (Order::Ascending, false) => {
            slice!("$9::integer IS NOT NULL AND seq > $1 AND seq <= $2", "seq", "ASC")
        }
        (Order::Descending, false) => slice!(
            "$9::integer IS NOT NULL AND seq > $1 AND seq <= $2",
            "seq DESC",
            "DESC"
        ),
        (Order::Ascending, true) => slice!(
            "(topic, seq) > ($9::integer, $1::bigint) AND (topic, seq) <= ($9::integer, $2::bigint)",
            "topic, seq",
            "ASC"
        ),
        (Order::Descending, true) => slice!(
            "(topic, seq) > ($9::integer, $1::bigint) AND (topic, seq) <= ($9::integer, $2::bigint)",
            "topic DESC, seq DESC",
            "DESC"
        ),
    }
}
