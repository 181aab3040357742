//! Reads ranges of the log in order, for what is derived from it.

use super::rows::{COLUMNS, LogRow, RowError};
use crate::{
    event::{Identity, Seq},
    index::Entry,
    limits,
};
use rusqlite::Connection;
use std::sync::Arc;

/// Calls `each` with every row from `first` to `last`, both included, in one read transaction. A row that is missing
/// or damaged is an error.
pub(super) fn rows<E: From<RowError>>(
    connection: &Connection,
    names: &[Arc<str>],
    first: Seq,
    last: Seq,
    mut each: impl FnMut(&LogRow<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let failed = |error: rusqlite::Error| E::from(RowError::from(error));
    let mut select = connection
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM events WHERE seq BETWEEN ?1 AND ?2 ORDER BY seq"
        ))
        .map_err(failed)?;
    let mut rows = select
        .query((first.cast_signed(), last.cast_signed()))
        .map_err(failed)?;
    let mut next = first;
    while let Some(row) = rows.next().map_err(failed)? {
        let topic = LogRow::topic_of(row)?;
        let read = LogRow::read(row, names.get(topic as usize).map(|name| &**name))?;
        if read.seq != next {
            break;
        }
        each(&read)?;
        next += 1;
    }
    if next <= last {
        return Err(RowError::missing(next).into());
    }
    Ok(())
}

/// What the index keeps of the events from `first` to `last`, both included.
pub(super) fn entries(
    connection: &Connection,
    names: &[Arc<str>],
    identity: &Identity,
    first: Seq,
    last: Seq,
) -> Result<Vec<Entry>, RowError> {
    let mut entries = Vec::with_capacity(usize::try_from(last - first + 1).unwrap_or(0));
    rows(connection, names, first, last, |row| -> Result<(), RowError> {
        entries.push(row.entry(identity)?);
        Ok(())
    })?;
    Ok(entries)
}

/// As [`entries`], in order and in short read transactions; ends after the first error.
pub(super) fn entries_in_slices<'a>(
    connection: &'a Connection,
    names: &'a [Arc<str>],
    identity: &'a Identity,
    first: Seq,
    last: Seq,
) -> impl Iterator<Item = Result<Entry, RowError>> + 'a {
    let mut next = first;
    let mut slice = Vec::new().into_iter();
    std::iter::from_fn(move || {
        if slice.len() == 0 && next <= last {
            let end = last.min(next + limits::READ_SLICE_ROWS as u64 - 1);
            match entries(connection, names, identity, next, end) {
                Ok(read) => slice = read.into_iter(),
                Err(error) => {
                    next = last + 1;
                    return Some(Err(error));
                }
            }
            next = end + 1;
        }
        slice.next().map(Ok)
    })
}
