//! The statements of a commit, and how keys travel.

use crate::event::Key;
use bytes::{BufMut, BytesMut};
use std::error::Error;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, accepts, to_sql_checked};

/// Notes the tokens under which a commit comes, where they are the newest. Locks the rows either way, until the commit has
/// ended, so whoever has the partition next comes behind it; in their order, or two commits could wait for each other.
pub(super) const FENCE: &str = "INSERT INTO fences AS known (partition, token) \
     SELECT partition, token FROM unnest($1::integer[], $2::bigint[]) AS of (partition, token) ORDER BY partition \
     ON CONFLICT (partition) DO UPDATE SET token = excluded.token WHERE known.token < excluded.token";

/// The newest tokens, of rows that are locked.
pub(super) const NEWEST_TOKENS: &str =
    "SELECT partition, token FROM fences WHERE partition = ANY($1::integer[])";

/// Stores identities; returns the time in microseconds, those that were new, with their seqs, and those that were there,
/// with their seqs and fingerprints. One statement, because each costs a message and its answer.
///
/// First of all it says with a lock, which ends with the transaction, that seqs above the last one given may still come (see
/// `announce` in [`super::schema`]): `sent` takes them and cannot be read before `announced`. They are taken in the order of
/// the arrays, which is the order sent; rows go in in the order of their keys, or two commits could wait for each other.
/// `known` does not see what others committed while the statement ran: that is for [`FIND`]. The subqueries are such that
/// there is one way to run them, whatever the server believes of the tables' sizes.
pub(super) const IDENTIFY: &str = "WITH announced AS MATERIALIZED (SELECT announce($3) AS at), \
     sent AS MATERIALIZED (SELECT key, fingerprint, nextval('seqs') AS seq \
     FROM announced, unnest($1::uuid[], $2::bigint[]) AS of (key, fingerprint)), \
     inserted AS (INSERT INTO identities (key, seq, fingerprint) SELECT key, seq, fingerprint FROM sent ORDER BY key \
     ON CONFLICT (key) DO NOTHING RETURNING key, seq) \
     SELECT at, new.keys, new.seqs, known.keys, known.seqs, known.fingerprints FROM announced, \
     (SELECT array_agg(key) AS keys, array_agg(seq) AS seqs FROM inserted) AS new, \
     (SELECT array_agg(key) AS keys, array_agg(seq) AS seqs, array_agg(fingerprint) AS fingerprints FROM identities \
     WHERE key = ANY (ARRAY(SELECT key FROM sent WHERE key NOT IN (SELECT key FROM inserted)))) AS known";

/// Where identities stand that were stored by others while [`IDENTIFY`] ran.
pub(super) const FIND: &str = "SELECT key, seq, fingerprint FROM identities WHERE key = ANY($1::uuid[])";

/// Commits a few events whose identities are all different, in one call; returns what [`IDENTIFY`] does. See `commit_few` in
/// [`super::schema`].
pub(super) const COMMIT_FEW: &str = "SELECT committed_at, new_keys, new_seqs, known_keys, known_seqs, known_fingerprints \
     FROM commit_few($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)";

/// Where identities stand after a commit of [`COMMIT_FEW`] has happened, and whether it stored them.
pub(super) const RECALL: &str = "SELECT key, seq, fingerprint, \
     seq = ANY (ARRAY(SELECT unnest(stored) FROM commits WHERE writer = $1 AND number = $2)) \
     FROM identities WHERE key = ANY($3::uuid[])";

/// Appends events.
pub(super) const COPY: &str = "COPY events (seq, seconds, processed_at, topic, event_id, timestamp, source, payload) \
     FROM STDIN (FORMAT binary)";

/// The types of the columns of [`COPY`].
pub(super) const COPY_TYPES: [Type; 8] = [
    Type::INT8,
    Type::INT8,
    Type::INT8,
    Type::INT4,
    Type::TEXT,
    Type::TEXT,
    Type::TEXT,
    Type::TEXT,
];

/// What a commit counted. Its key is the commit's name.
pub(super) const COUNT: &str = "INSERT INTO commits \
     (writer, number, at, topics, accepted, duplicates, conflicts, first_seqs, last_seqs) \
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)";

/// Takes a commit's name, unless the commit has it: one row, or none. Waits for the commit if that is still running. Taking it
/// a second time is taking it as well: the answer to the first time may have been lost. (What happened has counted
/// something, in some topic; a name that was taken has not.)
pub(super) const DISOWN: &str = "INSERT INTO commits \
     (writer, number, at, topics, accepted, duplicates, conflicts, first_seqs, last_seqs) \
     VALUES ($1, $2, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, '{}', '{}', '{}', '{}', '{}', '{}') \
     ON CONFLICT (writer, number) DO UPDATE SET at = excluded.at WHERE commits.topics = '{}'";

/// A key as a `uuid`: its 16 bytes, big-endian, so that both sides order keys alike.
#[derive(Clone, Copy, Debug)]
pub(super) struct SqlKey(pub(super) Key);

impl ToSql for SqlKey {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        out.put_u64(self.0.high);
        out.put_u64(self.0.low);
        Ok(IsNull::No)
    }

    accepts!(UUID);
    to_sql_checked!();
}

impl<'a> FromSql<'a> for SqlKey {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        let bytes: [u8; 16] = raw.try_into()?;
        let number = u128::from_be_bytes(bytes);
        Ok(Self(Key {
            high: (number >> 64) as u64,
            low: number as u64,
        }))
    }

    accepts!(UUID);
}
