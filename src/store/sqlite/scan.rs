//! Reads ranges of the log in order, for what is derived from it.

use super::rows::{COLUMNS, LogRow, RowError};
use crate::{
    event::{Identity, Seq},
    index::Entry,
    limits,
};
use rusqlite::Connection;
use std::sync::Arc;

/// Calls `each` with the rows from `first` on, in one short read transaction: up to `last`, or until it has read as
/// many rows or bytes as one may. Returns the last seq that it read. A row that is missing or damaged is an error.
pub(super) fn slice<E: From<RowError>>(
    connection: &Connection,
    names: &[Arc<str>],
    first: Seq,
    last: Seq,
    mut each: impl FnMut(&LogRow<'_>) -> Result<(), E>,
) -> Result<Seq, E> {
    let failed = |error: rusqlite::Error| E::from(RowError::from(error));
    let last = last.min(first + limits::READ_SLICE_ROWS as u64 - 1);
    let mut select = connection
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM events WHERE seq BETWEEN ?1 AND ?2 ORDER BY seq"
        ))
        .map_err(failed)?;
    let mut rows = select
        .query((first.cast_signed(), last.cast_signed()))
        .map_err(failed)?;
    let mut bytes = 0;
    for seq in first..=last {
        let row = rows
            .next()
            .map_err(failed)?
            .ok_or_else(|| RowError::missing(seq))?;
        let topic = LogRow::topic_of(row)?;
        let read = LogRow::read(row, names.get(topic as usize).map(|name| &**name))?;
        if read.seq != seq {
            return Err(RowError::missing(seq).into());
        }
        each(&read)?;
        bytes += read.bytes();
        if bytes >= limits::READ_SLICE_BYTES {
            return Ok(seq);
        }
    }
    Ok(last)
}

/// What the index keeps of the events from `first` to `last`, both included.
pub(super) fn entries(
    connection: &Connection,
    names: &[Arc<str>],
    identity: &Identity,
    first: Seq,
    last: Seq,
) -> Result<Vec<Entry>, RowError> {
    entries_in_slices(connection, names, identity, first, last).collect()
}

/// As [`entries`], one by one; ends after the first error.
pub(super) fn entries_in_slices<'a>(
    connection: &'a Connection,
    names: &'a [Arc<str>],
    identity: &'a Identity,
    first: Seq,
    last: Seq,
) -> impl Iterator<Item = Result<Entry, RowError>> + 'a {
    let mut next = first;
    let mut read = Vec::new().into_iter();
    std::iter::from_fn(move || {
        if read.len() == 0 && next <= last {
            let mut entries = Vec::with_capacity(limits::READ_SLICE_ROWS);
            let end = slice(connection, names, next, last, |row| -> Result<(), RowError> {
                entries.push(row.entry(identity)?);
                Ok(())
            });
            match end {
                Ok(end) => next = end + 1,
                Err(error) => {
                    next = last + 1;
                    return Some(Err(error));
                }
            }
            read = entries.into_iter();
        }
        read.next().map(Ok)
    })
}
