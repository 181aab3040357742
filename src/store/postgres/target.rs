//! The tables while a store in a file is copied into them. See [`crate::store::migration`] for the order of all this.
//!
//! Instances are kept out from the first transaction to the last: starting ones look for an unfinished row in `migration`,
//! and running ones find another identity in `store` and commit nothing.

use super::{
    Server, failure, keys, schema,
    server::Session,
    statements::{COPY, COPY_TYPES, FIND, SqlKey},
    topics::TopicNumber,
};
use crate::{
    access::{KeyError, KeyStore as _},
    event::{Fingerprint, Key, Seq},
    store::{
        Branch, OpenError, TopicStatus,
        migration::{LoggedEvent, Rest},
        sqlite::Source,
    },
};
use hashbrown::HashMap;
use std::pin::pin;
use tokio::task::block_in_place;
use tokio_postgres::{
    Error, Row, Transaction,
    binary_copy::BinaryCopyInWriter,
    types::{ToSql, Type},
};

/// Identities, as [`COPY`] is for events.
const COPY_IDENTITIES: &str = "COPY identities (key, seq, fingerprint) FROM STDIN (FORMAT binary)";

/// Identities of which some may be there.
const ADD_IDENTITIES: &str = "INSERT INTO identities (key, seq, fingerprint) \
     SELECT key, seq, fingerprint FROM unnest($1::uuid[], $2::bigint[], $3::bigint[]) AS of (key, seq, fingerprint) \
     ON CONFLICT (key) DO NOTHING";

/// Events as [`COPY`] has put them in.
const READ_BACK: &str = "SELECT seq, seconds, processed_at, topic, event_id, timestamp, source, payload FROM events \
     WHERE seq BETWEEN $1 AND $2 ORDER BY seq";

const ADD_COUNTERS: &str = "INSERT INTO topic_counters \
     (topic, accepted, duplicates, conflicts, first_seq, first_at, last_seq, last_at) \
     SELECT * FROM unnest($1::integer[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], \
     $7::bigint[], $8::bigint[])";

/// What there is, to be compared: each is one number.
const COUNTS: &str = "SELECT (SELECT count(*) FROM events), (SELECT count(*) FROM identities), \
     (SELECT coalesce(max(seq), 0) FROM identities), (SELECT count(*) FROM topics), \
     coalesce(sum(accepted), 0)::bigint, coalesce(sum(duplicates), 0)::bigint, coalesce(sum(conflicts), 0)::bigint \
     FROM counters";

/// A database that a store in a file is being copied to.
pub struct Target {
    server: Server,
    session: Session,
    /// Which store it is given.
    store: [u8; 16],
    copied: Seq,
}

impl Target {
    /// Makes the tables, or finds those of an earlier run; other ones are refused.
    pub async fn begin(server: Server, source: &Source) -> Result<Self, OpenError> {
        let session = schema::begin(&server).await?;
        let mut target = Self {
            server,
            session,
            store: source.identity().store.to_be_bytes(),
            copied: 0,
        };
        target.copied = target.claim(source).await?;
        // What a whole store takes is not held to the bounds of a query.
        target
            .session
            .client
            .batch_execute("COMMIT; SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0")
            .await
            .map_err(|error| target.failed(&error))?;
        Ok(target)
    }

    /// Up to which event it has all that have rows.
    pub fn copied(&self) -> Seq {
        self.copied
    }

    fn failed(&self, error: &Error) -> OpenError {
        OpenError(format!(
            "{}. Run this command again to go on",
            failure::open(&self.server, error)
        ))
    }

    fn differs(&self, what: &str) -> OpenError {
        OpenError(format!(
            "{}: {what}. The tables were begun from another state of the store (a backup, say), or something else has \
             changed them. Begin anew: drop them with psql (DROP SCHEMA oncelog CASCADE), and run this command again",
            self.server
        ))
    }

    fn not_alone(&self) -> OpenError {
        OpenError(format!(
            "{}: another process copies to it as well, or has ended the copy. Wait for that one, or stop it",
            self.server
        ))
    }

    /// Makes the tables those of this store, in the transaction that runs. Returns up to where they are filled.
    async fn claim(&self, source: &Source) -> Result<Seq, OpenError> {
        let failed = |error: Error| failure::open(&self.server, &error);
        let client = &self.session.client;
        // Waits for commits of instances that still take the store for theirs.
        client
            .batch_execute("LOCK TABLE store IN ACCESS EXCLUSIVE MODE")
            .await
            .map_err(failed)?;
        let wanted = source.identity();
        let store = wanted.store.to_be_bytes();
        let found = client
            .query_opt("SELECT identity FROM store", &[])
            .await
            .map_err(failed)?;
        let is_same = found.is_some_and(|row| row.get::<_, &[u8]>(0) == store);
        let (path, last) = (
            source.path().to_string_lossy(),
            source.highest_seq().cast_signed(),
        );
        let begun = client
            .query_opt(
                "SELECT source, copied, to_char(finished_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') FROM migration",
                &[],
            )
            .await
            .map_err(failed)?;
        if let Some(begun) = begun {
            let (from, copied): (String, i64) = (begun.get(0), begun.get(1));
            self.refuse_begun(&from, copied, begun.get(2), is_same, last)?;
            client
                .execute("UPDATE migration SET source = $1, last = $2", &[&path, &last])
                .await
                .map_err(failed)?;
            return Ok(copied.cast_unsigned());
        }
        let is_empty: bool = client
            .query_one("SELECT NOT EXISTS (SELECT FROM identities)", &[])
            .await
            .map_err(failed)?
            .get(0);
        if !is_empty {
            return Err(OpenError(format!(
                "{}: it has a store with events already. Name an empty database in DATABASE_URL",
                self.server
            )));
        }
        let branch = source
            .branches()
            .first()
            .map_or(0, |branch| branch.id.cast_signed());
        client
            .execute(
                "INSERT INTO store (identity, secret, branch) VALUES ($1, $2, $3) ON CONFLICT (single) DO UPDATE \
                 SET identity = excluded.identity, secret = excluded.secret, branch = excluded.branch",
                &[&store.as_slice(), &wanted.secret.as_slice(), &branch],
            )
            .await
            .map_err(failed)?;
        client
            .execute(
                "INSERT INTO migration (source, copied, last) VALUES ($1, 0, $2)",
                &[&path, &last],
            )
            .await
            .map_err(failed)?;
        Ok(0)
    }

    /// Refuses tables that another store was copied to, or this one already as a whole.
    fn refuse_begun(
        &self,
        from: &str,
        copied: i64,
        finished_at: Option<String>,
        is_same: bool,
        last: i64,
    ) -> Result<(), OpenError> {
        let server = &self.server;
        match (is_same, finished_at) {
            (false, _) => Err(OpenError(format!(
                "{server}: another store (from {from}) is there, or was begun to be copied there. Name an empty database \
                 in DATABASE_URL"
            ))),
            (true, Some(at)) => Err(OpenError(format!(
                "{server}: this store was copied there already, on {at} UTC, and nothing was changed now. Start servers \
                 with this DATABASE_URL"
            ))),
            (true, None) if copied > last => Err(self.differs(&format!(
                "it has events up to {copied} already, and the file only up to {last}"
            ))),
            (true, None) => Ok(()),
        }
    }

    /// Adds events, the next ones of the log, up to `last`.
    ///
    /// A crash at any moment leaves all of it or nothing. If the connection breaks so that nobody knows, the next run reads
    /// which.
    pub async fn copy(&mut self, events: &[LoggedEvent], last: Seq) -> Result<(), OpenError> {
        let is_next = copy(&mut self.session, events, self.copied, last)
            .await
            .map_err(|error| self.failed(&error))?;
        if !is_next {
            return Err(self.not_alone());
        }
        self.copied = last;
        Ok(())
    }

    /// Compares the events from `first` to `last` with what is there.
    pub async fn check(&self, events: &[LoggedEvent], first: Seq, last: Seq) -> Result<(), OpenError> {
        let client = &self.session.client;
        let keys: Vec<SqlKey> = events.iter().map(|event| SqlKey(event.key)).collect();
        let range = [first.cast_signed(), last.cast_signed()];
        let range: [&(dyn ToSql + Sync); 2] = [&range[0], &range[1]];
        let parameters: [&(dyn ToSql + Sync); 1] = [&keys];
        let read = tokio::try_join!(client.query(READ_BACK, &range), client.query(FIND, &parameters));
        let (rows, found) = read.map_err(|error| self.failed(&error))?;
        if rows.len() != events.len() {
            return Err(self.differs(&format!(
                "of the events {first} to {last}, {} are there and {} in the file",
                rows.len(),
                events.len()
            )));
        }
        let found: HashMap<Key, (i64, i64)> = found
            .iter()
            .map(|row| (row.get::<_, SqlKey>(0).0, (row.get(1), row.get(2))))
            .collect();
        for (event, row) in events.iter().zip(&rows) {
            let identity = (event.seq.cast_signed(), event.fingerprint.0.cast_signed());
            if !is_same(event, row) || found.get(&event.key) != Some(&identity) {
                return Err(self.differs(&format!("event {} is not as in the file", event.seq)));
            }
        }
        Ok(())
    }

    /// Adds identities of events whose rows may be gone; those that are there stay as they are.
    pub async fn copy_identities(&self, identities: &[(Key, Seq, Fingerprint)]) -> Result<(), OpenError> {
        let keys: Vec<SqlKey> = identities.iter().map(|(key, ..)| SqlKey(*key)).collect();
        let seqs: Vec<i64> = identities.iter().map(|(_, seq, _)| seq.cast_signed()).collect();
        let fingerprints: Vec<i64> = identities
            .iter()
            .map(|(.., fingerprint)| fingerprint.0.cast_signed())
            .collect();
        self.session
            .client
            .execute(ADD_IDENTITIES, &[&keys, &seqs, &fingerprints])
            .await
            .map_err(|error| self.failed(&error))?;
        Ok(())
    }

    /// Writes the rest, compares what there is with what there must be, and lets instances in. Returns how many keys there are.
    pub async fn finish(mut self, rest: &Rest<'_>, branches: &[Branch]) -> Result<u64, OpenError> {
        let end = finish(&mut self.session, self.store, self.copied, rest, branches).await;
        let end = end.map_err(|error| match error {
            keys::Failed::Server(error) => self.failed(&error),
            keys::Failed::Keys(error) => OpenError(error.to_string()),
        })?;
        match end {
            End::Finished { keys } => Ok(keys),
            End::AnotherStore => Err(OpenError(format!(
                "{}: while this store was copied, another one has taken its place there, and the copy was not ended. Name an \
                 empty database in DATABASE_URL",
                self.server
            ))),
            End::NotAlone => Err(self.not_alone()),
            End::Differs { name, found, wanted } => {
                Err(self.differs(&format!("it has {found} as its {name}, and the file {wanted}")))
            }
        }
    }
}

/// How a copy ended; if it is not finished, nothing was done.
enum End {
    Finished {
        keys: u64,
    },
    /// The tables are another store's by now, as after somebody has restored a dump.
    AnotherStore,
    /// The row in `migration` is not as this copy has left it.
    NotAlone,
    /// The first number that is not what it must be.
    Differs {
        name: &'static str,
        found: i64,
        wanted: i64,
    },
}

/// Returns whether the row in `migration` was as it must be; if not, nothing was done.
async fn copy(session: &mut Session, events: &[LoggedEvent], before: Seq, last: Seq) -> Result<bool, Error> {
    let transaction = session.client.transaction().await?;
    let is_next = transaction
        .execute(
            "UPDATE migration SET copied = $1 WHERE copied = $2 AND finished_at IS NULL",
            &[&last.cast_signed(), &before.cast_signed()],
        )
        .await?
        == 1;
    if !is_next {
        return Ok(false);
    }
    copy_events(&transaction, events).await?;
    copy_identities(&transaction, events).await?;
    transaction.commit().await?;
    Ok(true)
}

async fn copy_events(transaction: &Transaction<'_>, events: &[LoggedEvent]) -> Result<(), Error> {
    let sink = transaction.copy_in(COPY).await?;
    let mut rows = pin!(BinaryCopyInWriter::new(sink, &COPY_TYPES));
    for event in events {
        let row: [&(dyn ToSql + Sync); 8] = [
            &event.seq.cast_signed(),
            &event.seconds,
            &event.processed_at,
            &(event.topic as TopicNumber),
            &event.event_id,
            &event.timestamp,
            &event.source,
            &event.payload,
        ];
        rows.as_mut().write(&row).await?;
    }
    rows.finish().await?;
    Ok(())
}

async fn copy_identities(transaction: &Transaction<'_>, events: &[LoggedEvent]) -> Result<(), Error> {
    // In the order of their keys, in which the index grows at fewer places at once.
    let mut ordered: Vec<&LoggedEvent> = events.iter().collect();
    ordered.sort_unstable_by_key(|event| event.key);
    let sink = transaction.copy_in(COPY_IDENTITIES).await?;
    let mut rows = pin!(BinaryCopyInWriter::new(
        sink,
        &[Type::UUID, Type::INT8, Type::INT8]
    ));
    for event in ordered {
        let row: [&(dyn ToSql + Sync); 3] = [
            &SqlKey(event.key),
            &event.seq.cast_signed(),
            &event.fingerprint.0.cast_signed(),
        ];
        rows.as_mut().write(&row).await?;
    }
    rows.finish().await?;
    Ok(())
}

fn is_same(event: &LoggedEvent, row: &Row) -> bool {
    let numbers = |place| row.get::<_, i64>(place);
    let text = |place| row.get::<_, &str>(place);
    numbers(0) == event.seq.cast_signed()
        && numbers(1) == event.seconds
        && numbers(2) == event.processed_at
        && row.get::<_, TopicNumber>(3) == event.topic as TopicNumber
        && text(4) == event.event_id
        && text(5) == event.timestamp
        && text(6) == event.source
        && text(7) == event.payload
}

async fn finish(
    session: &mut Session,
    store: [u8; 16],
    copied: Seq,
    rest: &Rest<'_>,
    branches: &[Branch],
) -> Result<End, keys::Failed> {
    let transaction = session.client.transaction().await?;
    // First, for it locks the row: nobody else gets further until this is committed or rolled back.
    let is_ours = transaction
        .execute(
            "UPDATE migration SET finished_at = now() WHERE copied = $1 AND finished_at IS NULL",
            &[&copied.cast_signed()],
        )
        .await?
        == 1;
    if !is_ours {
        return Ok(End::NotAlone);
    }
    // Locked as well, so that it stays so.
    let is_there = transaction
        .query_opt(
            "SELECT FROM store WHERE identity = $1 FOR UPDATE",
            &[&store.as_slice()],
        )
        .await?
        .is_some();
    if !is_there {
        return Ok(End::AnotherStore);
    }
    // Whole tables are counted: the only statement for which it is the best way to look at all of them.
    transaction.batch_execute("SET LOCAL enable_seqscan = on").await?;
    add_topics(&transaction, rest).await?;
    let mut branches = branches.iter();
    if let Some(first) = branches.next() {
        transaction
            .execute("UPDATE store SET branch = $1", &[&first.id.cast_signed()])
            .await?;
    }
    for branch in branches {
        transaction
            .execute(
                "INSERT INTO branches (first, id) VALUES ($1, $2)",
                &[&branch.first.cast_signed(), &branch.id.cast_signed()],
            )
            .await?;
    }
    let counts = transaction.query_one(COUNTS, &[]).await?;
    let watermark = rest.watermark;
    for (place, (name, wanted)) in [
        ("number of events", rest.events),
        ("number of identities", watermark),
        ("highest number of an event", watermark),
        ("number of topics", rest.topics.len() as u64),
        ("count of accepted events", rest.totals.accepted),
        ("count of duplicates", rest.totals.duplicates),
        ("count of conflicts", rest.totals.conflicts),
    ]
    .into_iter()
    .enumerate()
    {
        let found: i64 = counts.get(place);
        if found != wanted.cast_signed() {
            let wanted = wanted.cast_signed();
            return Ok(End::Differs { name, found, wanted });
        }
    }
    // Behind all that takes time, and with changes held off until the end: who revokes one does so before it is read, or when
    // the table has it already and is where to revoke it.
    let (_held, keys) = block_in_place(|| Ok::<_, KeyError>((rest.keys.hold()?, rest.keys.read()?)))?;
    if let Some(keys) = &keys {
        // Ones that were made here before stay.
        keys::put(&transaction, keys.iter(), "NOTHING").await?;
        // Where there were keys only those who have one are let in, also if none is left.
        transaction
            .execute("UPDATE key_changes SET count = greatest(count, 1)", &[])
            .await?;
    }
    // Last, for no rollback undoes it.
    transaction
        .execute("SELECT setval('seqs', $1)", &[&rest.watermark.cast_signed()])
        .await?;
    transaction.commit().await?;
    Ok(End::Finished {
        keys: keys.map_or(0, |keys| keys.len() as u64),
    })
}

/// Adds the topics, in place of any that an instance has made in the empty store, and their counters.
async fn add_topics(transaction: &Transaction<'_>, rest: &Rest<'_>) -> Result<(), Error> {
    transaction
        .batch_execute("DELETE FROM topics; DELETE FROM topic_counters; DELETE FROM commits")
        .await?;
    let topics = &rest.topics;
    let numbers: Vec<TopicNumber> = (0..).take(topics.len()).collect();
    let names: Vec<&str> = topics.iter().map(|topic| &*topic.topic).collect();
    transaction
        .execute(
            "INSERT INTO topics (number, name) SELECT * FROM unnest($1::integer[], $2::text[])",
            &[&numbers, &names],
        )
        .await?;
    let column = |of: fn(&TopicStatus) -> u64| -> Vec<i64> {
        topics.iter().map(|topic| of(topic).cast_signed()).collect()
    };
    let times = |of: fn(&TopicStatus) -> i64| -> Vec<i64> { topics.iter().map(of).collect() };
    transaction
        .execute(
            ADD_COUNTERS,
            &[
                &numbers,
                &column(|topic| topic.accepted),
                &column(|topic| topic.duplicates),
                &column(|topic| topic.conflicts),
                &column(|topic| topic.first_seq),
                &times(|topic| topic.first_processed_at),
                &column(|topic| topic.last_seq),
                &times(|topic| topic.last_processed_at),
            ],
        )
        .await?;
    Ok(())
}
