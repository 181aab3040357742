//! Appends rows to the log: the hot path of a commit.
//!
//! An INSERT of one row looks for the end of the log each time; one of many rows does so once. The rest of the rows
//! that do not fill such a statement go in one by one.

use super::rows::{self, COLUMN_COUNT, COLUMNS};
use crate::{
    event::{Batch, Event, Outcome, Seq},
    index::Entry,
    limits::INSERT_ROWS,
    store::BatchOutcome,
};
use rusqlite::{CachedStatement, Connection};

/// The statements' texts; made once a store.
#[derive(Debug)]
pub(super) struct Insert {
    many: String,
    one: String,
}

impl Insert {
    pub(super) fn new() -> Self {
        let row = format!("({})", ["?"; COLUMN_COUNT].join(","));
        let into = |rows| {
            format!(
                "INSERT INTO events({COLUMNS}) VALUES {}",
                vec![&*row; rows].join(",")
            )
        };
        Self {
            many: into(INSERT_ROWS),
            one: into(1),
        }
    }

    /// Appends the stored events of a commit, whose first gets the seq `first`. Does not commit.
    pub(super) fn run(
        &self,
        connection: &Connection,
        batches: &[&Batch],
        outcomes: &[BatchOutcome],
        entries: &[Entry],
        first: Seq,
        processed_at: i64,
    ) -> rusqlite::Result<()> {
        let mut events = stored(batches, outcomes).zip(entries).zip(first..);
        let mut statement = connection.prepare_cached(&self.many)?;
        for _ in 0..entries.len() / INSERT_ROWS {
            for (place, row) in events.by_ref().take(INSERT_ROWS).enumerate() {
                bind(&mut statement, place, row, processed_at)?;
            }
            statement.raw_execute()?;
        }
        let mut statement = connection.prepare_cached(&self.one)?;
        for row in events {
            bind(&mut statement, 0, row, processed_at)?;
            statement.raw_execute()?;
        }
        Ok(())
    }
}

/// The events of all batches that are stored.
fn stored<'a>(batches: &[&'a Batch], outcomes: &[BatchOutcome]) -> impl Iterator<Item = Event<'a>> {
    batches
        .iter()
        .zip(outcomes)
        .filter_map(|(batch, outcome)| match outcome {
            BatchOutcome::Committed(placed) => Some((batch, placed)),
            BatchOutcome::TooManyTopics { .. } | BatchOutcome::Fenced { .. } => None,
        })
        .flat_map(|(batch, placed)| batch.events().zip(placed))
        .filter(|(_, placed)| placed.outcome == Outcome::Stored)
        .map(|(event, _)| event)
}

/// Binds the row that stands at `place` in the statement, in the order of [`COLUMNS`].
fn bind(
    statement: &mut CachedStatement<'_>,
    place: usize,
    ((event, entry), seq): ((Event<'_>, &Entry), Seq),
    processed_at: i64,
) -> rusqlite::Result<()> {
    let checksum = rows::checksum(
        event.checksum(),
        seq,
        entry.topic,
        processed_at,
        event.fingerprint,
    );
    let first = place * COLUMN_COUNT + 1;
    statement.raw_bind_parameter(first, seq.cast_signed())?;
    statement.raw_bind_parameter(first + 1, entry.topic)?;
    statement.raw_bind_parameter(first + 2, processed_at)?;
    statement.raw_bind_parameter(first + 3, event.fingerprint.0.cast_signed())?;
    statement.raw_bind_parameter(first + 4, checksum.cast_signed())?;
    statement.raw_bind_parameter(first + 5, event.event_id)?;
    statement.raw_bind_parameter(first + 6, event.timestamp)?;
    statement.raw_bind_parameter(first + 7, event.source)?;
    statement.raw_bind_parameter(first + 8, event.payload)
}
