//! Exact counters, over all instances: what commits have appended and what is folded of it, summed when somebody asks.

use super::{Shared, topics::TopicNumber};
use crate::{
    event::Seq,
    limits,
    store::{ReadError, TopicFilter, TopicStatus, Totals},
};
use std::time::Duration;
use tokio_postgres::{Client, Error, Row};

/// Folds the rows of ended commits into the counters, up to `$3` of them, in one transaction: nothing is ever counted twice or
/// not at all, and readers see all of it or nothing.
///
/// Ended are all but the newest of each writer, which tells whether that commit happened. Names that were taken from commits
/// are kept longer, or a transaction that still hangs on the server could have its own after all. Writers and their newest
/// are found by steps through the primary key: what waits may be many times what is folded at once, and is not read for it.
const FOLD: &str = "
WITH RECURSIVE writers AS (
    SELECT min(writer) AS writer FROM commits
    UNION ALL
    SELECT (SELECT min(writer) FROM commits WHERE commits.writer > writers.writer) FROM writers WHERE writer IS NOT NULL
),
newest AS (
    SELECT writer, (SELECT max(number) FROM commits WHERE commits.writer = writers.writer) AS number
    FROM writers WHERE writer IS NOT NULL
),
ended AS (
    SELECT writer, commits.number FROM commits JOIN newest USING (writer)
    WHERE (commits.number < newest.number AND (topics <> '{}' OR at < $1)) OR at < $2
    LIMIT $3
),
folded AS (
    DELETE FROM commits USING ended
    WHERE commits.writer = ended.writer AND commits.number = ended.number
    RETURNING commits.*
)
INSERT INTO topic_counters AS counted
SELECT of.topic, sum(of.accepted), sum(of.duplicates), sum(of.conflicts),
    min(of.first_seq), (array_agg(folded.at ORDER BY of.first_seq NULLS LAST))[1],
    max(of.last_seq), (array_agg(folded.at ORDER BY of.last_seq DESC NULLS LAST))[1]
FROM folded, unnest(topics, accepted, duplicates, conflicts, first_seqs, last_seqs)
    AS of (topic, accepted, duplicates, conflicts, first_seq, last_seq)
GROUP BY of.topic ORDER BY of.topic
ON CONFLICT (topic) DO UPDATE SET
    accepted = counted.accepted + excluded.accepted,
    duplicates = counted.duplicates + excluded.duplicates,
    conflicts = counted.conflicts + excluded.conflicts,
    first_at = CASE WHEN excluded.first_seq < counted.first_seq OR counted.first_seq IS NULL
        THEN excluded.first_at ELSE counted.first_at END,
    first_seq = least(counted.first_seq, excluded.first_seq),
    last_at = CASE WHEN excluded.last_seq > counted.last_seq OR counted.last_seq IS NULL
        THEN excluded.last_at ELSE counted.last_at END,
    last_seq = greatest(counted.last_seq, excluded.last_seq)";

/// One instance folds at a time; next to the locks of migrations and topics.
const FOLD_LOCK: i64 = 0x6F6E_6365_6C6F_6702;

/// Folds what can be, unless another instance does.
pub(super) async fn fold(client: &mut Client) -> Result<(), Error> {
    let now: i64 = client
        .query_one(
            "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint",
            &[],
        )
        .await?
        .get(0);
    let before = |memory: Duration| now - memory.as_micros() as i64;
    let oldest = [
        before(limits::POSTGRES_DISOWNED_MEMORY),
        before(limits::POSTGRES_COMMIT_MEMORY),
    ];
    let transaction = client.transaction().await?;
    let is_ours: bool = transaction
        .query_one("SELECT pg_try_advisory_xact_lock($1)", &[&FOLD_LOCK])
        .await?
        .get(0);
    if is_ours {
        transaction
            .execute(FOLD, &[&oldest[0], &oldest[1], &limits::POSTGRES_FOLD_COMMITS])
            .await?;
    }
    transaction.commit().await
}

/// A topic as the view `counters` has it, with its name.
const STATUS: &str = "SELECT name, accepted, duplicates, conflicts, coalesce(first_seq, 0), coalesce(first_at, 0), \
     coalesce(last_seq, 0), coalesce(last_at, 0) FROM counters JOIN topics ON topics.number = counters.topic";

fn status(row: &Row) -> TopicStatus {
    let count = |place| row.get::<_, i64>(place).cast_unsigned();
    TopicStatus {
        topic: row.get(0),
        accepted: count(1),
        duplicates: count(2),
        conflicts: count(3),
        first_seq: count(4) as Seq,
        first_processed_at: row.get(5),
        last_seq: count(6) as Seq,
        last_processed_at: row.get(7),
    }
}

impl Shared {
    /// The counters over these topics.
    pub(super) async fn totals(&self, shown: &TopicFilter) -> Result<Totals, ReadError> {
        let numbers = self.shown_numbers(shown).await?;
        let row = self
            .query_one(
                "SELECT coalesce(sum(accepted), 0)::bigint, coalesce(sum(duplicates), 0)::bigint, \
                 coalesce(sum(conflicts), 0)::bigint, count(*) FROM counters \
                 WHERE $1::integer[] IS NULL OR topic = ANY($1)",
                &[&numbers],
            )
            .await?;
        Ok(totals(&row))
    }

    /// Up to `limit` of these topics in the order of their names, from the first one after `after`.
    pub(super) async fn topic_page(
        &self,
        shown: &TopicFilter,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<TopicStatus>, ReadError> {
        let numbers = self.shown_numbers(shown).await?;
        let rows = self
            .query(
                &format!(
                    "{STATUS} WHERE ($1::integer[] IS NULL OR topic = ANY($1)) AND ($2::text IS NULL OR name > $2) \
                     ORDER BY name LIMIT $3"
                ),
                &[&numbers, &after, &(limit.min(limits::MAX_TOPICS) as i64)],
            )
            .await?;
        Ok(rows.iter().map(status).collect())
    }

    /// The counters, and the `limit` topics that came first, as of one moment.
    pub(super) async fn first_topics(&self, limit: usize) -> Result<(Totals, Vec<TopicStatus>), ReadError> {
        let rows = self
            .query(
                &format!(
                    "WITH counters AS MATERIALIZED (SELECT * FROM oncelog.counters),
                     all_topics AS (SELECT sum(accepted)::bigint AS a, sum(duplicates)::bigint AS d,
                         sum(conflicts)::bigint AS c, count(*) AS n FROM counters)
                     SELECT of.*, a, d, c, n FROM all_topics, ({STATUS} ORDER BY topics.number LIMIT $1) AS of"
                ),
                &[&(limit as i64)],
            )
            .await?;
        let sums = rows.first().map(|row| {
            let count = |place| row.get::<_, i64>(place).cast_unsigned();
            Totals {
                accepted: count(8),
                duplicates: count(9),
                conflicts: count(10),
                topics: count(11),
            }
        });
        Ok((sums.unwrap_or_default(), rows.iter().map(status).collect()))
    }

    /// The numbers of the topics that are shown; `None` when all are.
    pub(super) async fn shown_numbers(
        &self,
        shown: &TopicFilter,
    ) -> Result<Option<Vec<TopicNumber>>, ReadError> {
        if shown.is_all() {
            return Ok(None);
        }
        let rows = self.query("SELECT number, name FROM topics", &[]).await?;
        let numbers = rows.iter().filter(|row| shown.shows(row.get(1)));
        Ok(Some(numbers.map(|row| row.get(0)).collect()))
    }

    /// Bytes of all tables.
    pub(super) async fn bytes(&self) -> Result<u64, ReadError> {
        let row = self
            .query_one(
                "SELECT coalesce(sum(pg_total_relation_size(pg_class.oid)), 0)::bigint FROM pg_class \
                 JOIN pg_namespace ON pg_namespace.oid = relnamespace WHERE nspname = 'oncelog' AND relkind = 'r'",
                &[],
            )
            .await?;
        Ok(row.get::<_, i64>(0).cast_unsigned())
    }
}

fn totals(row: &Row) -> Totals {
    let count = |place| row.get::<_, i64>(place).cast_unsigned();
    Totals {
        accepted: count(0),
        duplicates: count(1),
        conflicts: count(2),
        topics: count(3),
    }
}
