//! The tables, and the migrations that bring an older store up to date.
//!
//! All is in a schema of its own, `oncelog`. Instances that start at once wait for each other on an advisory lock; one
//! whose program is older than the tables is refused.

use super::{Server, failure, server::Session};
use crate::{
    event::Identity,
    limits::{POSTGRES_COMMITS, POSTGRES_MIGRATION_LOCK_WAIT},
    store::{Branch, OpenError},
};
use tokio_postgres::{Client, Error};

/// Serialises starts: the lock's number, the first letters of the name.
const MIGRATION_LOCK: i64 = 0x6F6E_6365_6C6F_6700;
/// The upper 16 bits of the advisory locks that running commits hold; the lower 48 are a seq. Apart from
/// [`MIGRATION_LOCK`] and from what other programs in the same database are likely to use.
const RUNNING_TAG: i64 = 0x6F6C;

/// What brings the tables from each version to the next; the first makes them.
const MIGRATIONS: &[fn() -> String] = &[first, fences, keys, origin, few];

fn first() -> String {
    format!(
        "
-- One row: what makes the store itself.
CREATE TABLE store (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    identity bytea NOT NULL,
    secret bytea NOT NULL,
    branch bigint NOT NULL
);
-- Numbered from 0, without gaps, in the order in which they came.
CREATE TABLE topics (
    number integer PRIMARY KEY,
    name text COLLATE \"C\" NOT NULL UNIQUE
);
-- Every identity ever stored, for ever: the keyed hash of topic and event id, where its event stands, and the
-- fingerprint of its payload.
CREATE TABLE identities (
    key uuid PRIMARY KEY,
    seq bigint NOT NULL,
    fingerprint bigint NOT NULL
);
-- The log. Times of ours are microseconds since 1970; seconds is the event's time, rounded down.
CREATE TABLE events (
    seq bigint PRIMARY KEY,
    seconds bigint NOT NULL,
    processed_at bigint NOT NULL,
    topic integer NOT NULL,
    event_id text NOT NULL,
    timestamp text NOT NULL,
    source text NOT NULL,
    payload text NOT NULL
);
CREATE INDEX events_by_topic ON events (topic, seq);
-- The last seq given. It begins at 0, so that the first seq is 1.
CREATE SEQUENCE seqs MINVALUE 0 START 0;
SELECT nextval('seqs');
-- A number for each writer of each instance.
CREATE SEQUENCE writers;
-- What each commit counted, one entry a topic, until it is folded into topic_counters. A commit that is not here and
-- whose row can be inserted never happened.
CREATE TABLE commits (
    writer bigint NOT NULL,
    number bigint NOT NULL,
    at bigint NOT NULL,
    topics integer[] NOT NULL,
    accepted bigint[] NOT NULL,
    duplicates bigint[] NOT NULL,
    conflicts bigint[] NOT NULL,
    first_seqs bigint[] NOT NULL,
    last_seqs bigint[] NOT NULL,
    PRIMARY KEY (writer, number)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
CREATE TABLE topic_counters (
    topic integer PRIMARY KEY,
    accepted bigint NOT NULL,
    duplicates bigint NOT NULL,
    conflicts bigint NOT NULL,
    first_seq bigint,
    first_at bigint,
    last_seq bigint,
    last_at bigint
) WITH (fillfactor = 50);
-- What all topics have counted: one row a topic, exact as of the statement that reads it. What counted only duplicates
-- has no seqs.
CREATE VIEW counters AS
SELECT topic, sum(accepted)::bigint AS accepted, sum(duplicates)::bigint AS duplicates,
    sum(conflicts)::bigint AS conflicts, min(first_seq) AS first_seq,
    (array_agg(first_at ORDER BY first_seq NULLS LAST))[1] AS first_at, max(last_seq) AS last_seq,
    (array_agg(last_at ORDER BY last_seq DESC NULLS LAST))[1] AS last_at
FROM (
    SELECT topic, accepted, duplicates, conflicts, first_seq, first_at, last_seq, last_at FROM topic_counters
    UNION ALL
    SELECT of.topic, of.accepted, of.duplicates, of.conflicts, of.first_seq, commits.at, of.last_seq, commits.at
    FROM commits, unnest(topics, accepted, duplicates, conflicts, first_seqs, last_seqs)
        AS of (topic, accepted, duplicates, conflicts, first_seq, last_seq)
) AS parts
GROUP BY topic;
-- Called by a commit before it takes seqs: says with a lock, which ends with the transaction, that seqs above the last
-- one given may still come. Refuses an instance that knows another store's identity, whose keys would be other ones; who
-- changes the identity locks the table, and waits for commits that have read it. Returns the time in microseconds.
CREATE FUNCTION announce(expected bytea) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM oncelog.store WHERE identity = expected) THEN
        RAISE EXCEPTION 'this is another store than when this instance started' USING HINT = 'start the instance again';
    END IF;
    PERFORM pg_advisory_xact_lock_shared(({RUNNING_TAG}::bigint << 48) | last_value) FROM oncelog.seqs;
    RETURN (extract(epoch FROM clock_timestamp()) * 1000000)::bigint;
END $$;
-- Up to where every seq is committed or will never be, and the newest committed seq. The order counts: who had a seq by
-- the first statement had its lock before, so the second one sees the lock, unless the commit has ended and the third
-- sees its events.
CREATE FUNCTION horizon(OUT settled bigint, OUT newest bigint) LANGUAGE plpgsql AS $$
DECLARE
    given bigint;
    running bigint;
BEGIN
    SELECT last_value INTO given FROM oncelog.seqs;
    SELECT min(((classid::bigint & 65535) << 32) | objid::bigint) INTO running
    FROM pg_catalog.pg_locks
    WHERE locktype = 'advisory' AND objsubid = 1 AND classid::bigint >> 16 = {RUNNING_TAG}
        AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database());
    -- A seq that was given and never committed may be given again after a crash, so the end is a committed one.
    SELECT coalesce(max(seq), 0) INTO settled FROM oncelog.events WHERE seq <= least(given, running);
    SELECT coalesce(max(seq), 0) INTO newest FROM oncelog.events;
END $$;
-- For people.
CREATE VIEW processed_events AS
SELECT topics.name AS topic, event_id, timestamp, source, payload,
    to_char(to_timestamp(processed_at / 1000000) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.')
        || lpad((processed_at % 1000000)::text, 6, '0') || 'Z' AS processed_at
FROM events JOIN topics ON topics.number = events.topic;
"
    )
}

/// What leases of a broker the store knows of.
fn fences() -> String {
    "
-- The newest lease that each partition of a broker was committed under; a commit under an older one is refused.
CREATE TABLE fences (
    partition integer PRIMARY KEY,
    token bigint NOT NULL
);
"
    .to_owned()
}

/// The API keys.
fn keys() -> String {
    "
-- In the order in which they were made. A record is as in the file of keys beside a store in a file: hashes, no secrets.
CREATE TABLE keys (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id text COLLATE \"C\" NOT NULL UNIQUE,
    record json NOT NULL
);
-- How often they were changed, also by hand; 0 as long as nobody made one.
CREATE TABLE key_changes (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    count bigint NOT NULL
);
INSERT INTO key_changes (count) VALUES (0);
CREATE FUNCTION count_key_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE oncelog.key_changes SET count = count + 1;
    RETURN NULL;
END $$;
CREATE TRIGGER key_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON keys
    FOR EACH STATEMENT EXECUTE FUNCTION count_key_change();
"
    .to_owned()
}

/// Where a store came from that began in a file.
fn origin() -> String {
    "
-- Where the history was begun anew after its first branch, which is in store.
CREATE TABLE branches (
    first bigint PRIMARY KEY,
    id bigint NOT NULL
);
-- At most one row: a store in a file that is, or was, copied here, and how far that is. No instance starts before it is
-- finished.
CREATE TABLE migration (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    source text NOT NULL,
    -- Every event up to here is copied; the rest of the tables follows when it is finished.
    copied bigint NOT NULL,
    last bigint NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz
);
"
    .to_owned()
}

/// A commit of a few events in one call.
fn few() -> String {
    "
-- The seqs of the events that a commit of `commit_few` stored, if any: what it answered can be told again, should the answer be
-- lost. Other commits do not fill it in.
ALTER TABLE commits ADD COLUMN stored bigint[];
-- All of a commit whose identities are all different: announces and takes seqs, stores the new identities and their events,
-- and counts. Returns the time in microseconds, what was new, and what was there before. Each statement in here sees what
-- others have committed before it began, so `known` has all that is not new. Seqs are taken in the order of the arrays; rows go
-- in in the order of their keys, or two commits could wait for each other.
CREATE FUNCTION commit_few(
    commit_writer bigint, commit_number bigint, expected bytea, sent_keys uuid[], sent_fingerprints bigint[],
    sent_seconds bigint[], sent_topics integer[], sent_event_ids text[], sent_timestamps text[], sent_sources text[],
    sent_payloads text[],
    OUT committed_at bigint, OUT new_keys uuid[], OUT new_seqs bigint[],
    OUT known_keys uuid[], OUT known_seqs bigint[], OUT known_fingerprints bigint[]
) LANGUAGE plpgsql AS $$
BEGIN
    committed_at := oncelog.announce(expected);
    WITH sent AS MATERIALIZED (
        SELECT *, nextval('oncelog.seqs') AS seq
        FROM unnest(sent_keys, sent_fingerprints, sent_seconds, sent_topics, sent_event_ids, sent_timestamps,
                sent_sources, sent_payloads)
            AS of (key, fingerprint, seconds, topic, event_id, timestamp, source, payload)
    ), identified AS (
        INSERT INTO oncelog.identities (key, seq, fingerprint)
        SELECT key, seq, fingerprint FROM sent ORDER BY key
        ON CONFLICT (key) DO NOTHING RETURNING key, seq
    ), appended AS (
        INSERT INTO oncelog.events (seq, seconds, processed_at, topic, event_id, timestamp, source, payload)
        SELECT seq, seconds, committed_at, topic, event_id, timestamp, source, payload
        FROM sent JOIN identified USING (key, seq)
    )
    SELECT array_agg(key), array_agg(seq) INTO new_keys, new_seqs FROM identified;
    IF coalesce(cardinality(new_keys), 0) < cardinality(sent_keys) THEN
        SELECT array_agg(key), array_agg(seq), array_agg(fingerprint) INTO known_keys, known_seqs, known_fingerprints
        FROM oncelog.identities
        WHERE key = ANY (ARRAY(SELECT unnest(sent_keys) EXCEPT SELECT unnest(new_keys)));
    END IF;
    IF coalesce(cardinality(new_keys), 0) + coalesce(cardinality(known_keys), 0) < cardinality(sent_keys) THEN
        RAISE EXCEPTION 'an identity is neither new nor known' USING HINT = 'is something else changing the tables?';
    END IF;
    INSERT INTO oncelog.commits
        (writer, number, at, topics, accepted, duplicates, conflicts, first_seqs, last_seqs, stored)
    SELECT commit_writer, commit_number, committed_at, array_agg(topic), array_agg(accepted), array_agg(duplicates),
        array_agg(conflicts), array_agg(first_seq), array_agg(last_seq), new_seqs
    FROM (
        SELECT topic, count(new.seq) AS accepted, count(*) - count(new.seq) AS duplicates,
            count(*) FILTER (WHERE known.fingerprint <> sent.fingerprint) AS conflicts,
            min(new.seq) AS first_seq, max(new.seq) AS last_seq
        FROM unnest(sent_topics, sent_keys, sent_fingerprints) AS sent (topic, key, fingerprint)
            LEFT JOIN unnest(new_keys, new_seqs) AS new (key, seq) USING (key)
            LEFT JOIN unnest(known_keys, known_fingerprints) AS known (key, fingerprint) USING (key)
        GROUP BY topic
    ) AS counted;
END $$;
"
    .to_owned()
}

/// Brings the tables up to date, and returns the store's identity, its branches, and a number for each of this
/// instance's writers.
pub(super) async fn prepare(server: &Server) -> Result<(Identity, Vec<Branch>, Vec<i64>), OpenError> {
    let session = begin_whole(server).await?;
    // In the same transaction, so that it is the store that was found whole, and not one that was begun to be copied since.
    let read = read(&session.client)
        .await
        .map_err(|error| failure::open(server, &error))?;
    commit(server, &session).await?;
    Ok(read)
}

/// Brings the tables up to date, and returns the connection.
pub(super) async fn update(server: &Server) -> Result<Session, OpenError> {
    let session = begin_whole(server).await?;
    commit(server, &session).await?;
    Ok(session)
}

/// As [`begin`], with a store that can be worked on.
async fn begin_whole(server: &Server) -> Result<Session, OpenError> {
    let session = begin(server).await?;
    identify(server, &session.client).await?;
    refuse_half_copied(server, &session.client).await?;
    Ok(session)
}

async fn commit(server: &Server, session: &Session) -> Result<(), OpenError> {
    session
        .client
        .batch_execute("COMMIT")
        .await
        .map_err(|error| failure::open(server, &error))
}

/// Connects, and brings the tables up to date in a transaction that is left open: until it ends nobody else does.
pub(super) async fn begin(server: &Server) -> Result<Session, OpenError> {
    let failed = |error: Error| failure::open(server, &error);
    let session = server.connect().await.map_err(failed)?;
    let client = &session.client;
    check_server(server, client).await?;
    // Who waits for another start, which may migrate much, is not held to the bound of a query.
    client
        .batch_execute("BEGIN; SET LOCAL statement_timeout = 0")
        .await
        .map_err(failed)?;
    client
        .execute("SELECT pg_advisory_xact_lock($1)", &[&MIGRATION_LOCK])
        .await
        .map_err(failed)?;
    let version = version(client).await.map_err(failed)?;
    if version > MIGRATIONS.len() {
        return Err(OpenError(format!(
            "{server}: its tables have version {version}, this program knows up to {}: start a newer oncelog",
            MIGRATIONS.len()
        )));
    }
    migrate(client, version).await.map_err(failed)?;
    Ok(session)
}

/// Refuses to work on a store that is copied here and not complete.
async fn refuse_half_copied(server: &Server, client: &Client) -> Result<(), OpenError> {
    let row = client
        .query_opt(
            "SELECT source, copied, last FROM migration WHERE finished_at IS NULL",
            &[],
        )
        .await
        .map_err(|error| failure::open(server, &error))?;
    let Some(row) = row else { return Ok(()) };
    let (source, copied, last): (String, i64, i64) = (row.get(0), row.get(1), row.get(2));
    Err(OpenError(format!(
        "{server}: the store in {source} is being copied here and is not complete (up to event {copied} of {last}). If \
         nobody is at it, go on with `oncelog migrate --database-path {source}` where that file is, with this DATABASE_URL"
    )))
}

/// Refuses a server that cannot keep the promises, and warns of one that was told not to.
async fn check_server(server: &Server, client: &Client) -> Result<(), OpenError> {
    let failed = |error: Error| failure::open(server, &error);
    let row = client
        .query_one(
            "SELECT current_setting('server_version_num')::integer, current_setting('server_version'), \
             current_setting('server_encoding'), current_setting('fsync'), current_setting('full_page_writes')",
            &[],
        )
        .await
        .map_err(failed)?;
    let (number, version, encoding): (i32, String, String) = (row.get(0), row.get(1), row.get(2));
    if number < OLDEST_VERSION {
        return Err(OpenError(format!(
            "{server}: it is version {version}; oncelog needs PostgreSQL 13 or newer"
        )));
    }
    if encoding != "UTF8" {
        return Err(OpenError(format!(
            "{server}: its encoding is {encoding}, so it cannot keep every text; make a database with ENCODING 'UTF8'"
        )));
    }
    for (place, setting) in [(3, "fsync"), (4, "full_page_writes")] {
        if row.get::<_, String>(place) == "off" {
            tracing::warn!(%server, "{setting} is off on the server: a crash of its machine can lose events that were acknowledged; set {setting} = on");
        }
    }
    Ok(())
}

/// PostgreSQL 13, as its `server_version_num`: the oldest that is tested against is Debian's 15, the features used are
/// those of 13.
const OLDEST_VERSION: i32 = 130_000;

/// The version of the tables; 0 when there are none.
async fn version(client: &Client) -> Result<usize, Error> {
    let exists: bool = client
        .query_one("SELECT to_regclass('oncelog.schema_version') IS NOT NULL", &[])
        .await?
        .get(0);
    if !exists {
        return Ok(0);
    }
    let version: i32 = client
        .query_one(
            "SELECT coalesce(max(version), 0) FROM oncelog.schema_version",
            &[],
        )
        .await?
        .get(0);
    Ok(usize::try_from(version).unwrap_or_default())
}

/// Applies what is missing, in the transaction that runs.
async fn migrate(client: &Client, version: usize) -> Result<(), Error> {
    if version == 0 {
        client
            .batch_execute(
                "CREATE SCHEMA IF NOT EXISTS oncelog;
                 CREATE TABLE oncelog.schema_version (version integer PRIMARY KEY, at timestamptz NOT NULL DEFAULT now())",
            )
            .await?;
    }
    // Others wait behind who waits to change a table; so a start gives up rather than keep running instances from committing.
    let patience = POSTGRES_MIGRATION_LOCK_WAIT.as_millis();
    client
        .batch_execute(&format!("SET LOCAL lock_timeout = {patience}"))
        .await?;
    for (number, migration) in (1_i32..).zip(MIGRATIONS).skip(version) {
        client.batch_execute(&migration()).await?;
        client
            .execute(
                "INSERT INTO oncelog.schema_version (version) VALUES ($1)",
                &[&number],
            )
            .await?;
        tracing::info!(version = number, "the store's tables were brought up to date");
    }
    client.batch_execute("SET LOCAL lock_timeout TO DEFAULT").await
}

/// Makes what makes the store itself, if it is new.
async fn identify(server: &Server, client: &Client) -> Result<(), OpenError> {
    let mut random = [0; 40];
    getrandom::fill(&mut random)
        .map_err(|error| OpenError(format!("the operating system gives no random numbers: {error}")))?;
    let (identity, rest) = random.split_at(16);
    let (secret, branch) = rest.split_at(16);
    let branch = branch
        .iter()
        .fold(0_i64, |number, &byte| number << 8 | i64::from(byte));
    client
        .execute(
            "INSERT INTO oncelog.store (identity, secret, branch) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
            &[&identity, &secret, &branch],
        )
        .await
        .map_err(|error| failure::open(server, &error))?;
    Ok(())
}

async fn read(client: &Client) -> Result<(Identity, Vec<Branch>, Vec<i64>), Error> {
    let row = client
        .query_one("SELECT identity, secret, branch FROM store", &[])
        .await?;
    let bytes = |place: usize| -> [u8; 16] {
        let mut bytes = [0; 16];
        for (to, from) in bytes.iter_mut().zip(row.get::<_, &[u8]>(place)) {
            *to = *from;
        }
        bytes
    };
    let identity = Identity {
        store: u128::from_be_bytes(bytes(0)),
        secret: bytes(1),
    };
    let mut branches = vec![Branch {
        first: 1,
        id: row.get::<_, i64>(2).cast_unsigned(),
    }];
    let later = client
        .query("SELECT first, id FROM branches ORDER BY first", &[])
        .await?;
    branches.extend(later.iter().map(|row| Branch {
        first: row.get::<_, i64>(0).cast_unsigned(),
        id: row.get::<_, i64>(1).cast_unsigned(),
    }));
    let writers = client
        .query(
            "SELECT nextval('writers') FROM generate_series(1, $1::bigint)",
            &[&(POSTGRES_COMMITS as i64)],
        )
        .await?;
    let writers = writers.iter().map(|row| row.get(0)).collect();
    Ok((identity, branches, writers))
}
