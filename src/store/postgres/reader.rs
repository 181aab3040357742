//! The reading side: each call is one or a few statements, on a connection of the pool.

use super::{Background, Shared, failure};
use crate::{
    event::{Identity, Seq},
    limits,
    store::{
        Branch, Frontier, Gauges, Page, Query, ReadError, Store, StoredEvent, TopicFilter, TopicStatus,
        Totals,
    },
};
use std::sync::Arc;
use tokio::time::Instant;
use tokio_postgres::{Row, types::ToSql};

/// The readers' face of a store on a server.
pub(super) struct PostgresStore {
    shared: Arc<Shared>,
    _background: Background,
}

impl PostgresStore {
    pub(super) fn new(shared: Arc<Shared>, background: Background) -> Self {
        Self {
            shared,
            _background: background,
        }
    }

    /// Waits for what is done on the runtime; callers are on threads that may block.
    fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.shared.runtime.block_on(work)
    }
}

impl Store for PostgresStore {
    fn identity(&self) -> Identity {
        self.shared.identity
    }

    fn branches(&self) -> &[Branch] {
        &self.shared.branches
    }

    fn high_watermark(&self) -> Seq {
        *self.shared.newest.borrow()
    }

    fn frontier(&self) -> Result<Frontier, ReadError> {
        self.wait(self.shared.settle(Instant::now() + limits::QUERY_TIME))
    }

    fn page(&self, query: &Query) -> Result<Page, ReadError> {
        self.wait(self.shared.page(query))
    }

    fn find(&self, topic: &str, event_id: &str) -> Result<Option<StoredEvent>, ReadError> {
        self.wait(self.shared.find(topic, event_id))
    }

    fn totals(&self, shown: &TopicFilter) -> Result<Totals, ReadError> {
        self.wait(self.shared.totals(shown))
    }

    fn topics(
        &self,
        shown: &TopicFilter,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<TopicStatus>, ReadError> {
        self.wait(self.shared.topic_page(shown, after, limit))
    }

    fn first_topics(&self, limit: usize) -> Result<(Totals, Vec<TopicStatus>), ReadError> {
        self.wait(self.shared.first_topics(limit))
    }

    fn gauges(&self) -> Result<Gauges, ReadError> {
        Ok(Gauges {
            index: None,
            store_bytes: self.wait(self.shared.bytes())?,
        })
    }
}

impl Shared {
    /// One event by its identity.
    async fn find(&self, topic: &str, event_id: &str) -> Result<Option<StoredEvent>, ReadError> {
        let key = super::statements::SqlKey(self.identity.key(topic, event_id));
        let rows = self
            .query(
                "SELECT seq, name, processed_at, event_id, timestamp, source, payload \
                 FROM identities JOIN events USING (seq) JOIN topics ON topics.number = events.topic WHERE key = $1",
                &[&key],
            )
            .await?;
        let Some(row) = rows.first() else {
            return Ok(None);
        };
        let event = StoredEvent {
            seq: row.get::<_, i64>(0).cast_unsigned(),
            topic: row.get(1),
            processed_at: row.get(2),
            event_id: row.get(3),
            timestamp: row.get(4),
            source: row.get(5),
            payload: row.get(6),
        };
        if event.topic != topic || event.event_id != event_id {
            return Err(ReadError::Failed(format!(
                "{}: the table of identities says that event {} is another one than it is; go back to a backup",
                self.server, event.seq
            )));
        }
        Ok(Some(event))
    }

    /// The rows of a statement, which each connection prepares once.
    pub(super) async fn query(
        &self,
        statement: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, ReadError> {
        let client = self.reader().await?;
        let failed = |error| failure::read(&self.server, &error);
        let statement = client.prepare_cached(statement).await.map_err(failed)?;
        client.query(&statement, parameters).await.map_err(failed)
    }

    /// The one row of such a statement.
    pub(super) async fn query_one(
        &self,
        statement: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Row, ReadError> {
        let client = self.reader().await?;
        let failed = |error| failure::read(&self.server, &error);
        let statement = client.prepare_cached(statement).await.map_err(failed)?;
        client.query_one(&statement, parameters).await.map_err(failed)
    }

    /// A connection to read on.
    pub(super) async fn reader(&self) -> Result<deadpool_postgres::Client, ReadError> {
        self.readers
            .get()
            .await
            .map_err(|error| failure::pool(&self.server, error))
    }
}
