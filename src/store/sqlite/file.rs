//! What can be told of the SQLite file before SQLite opens it: whether it is there, ours, and of a kind that SQLite will
//! read as it was written. Reads only; whoever is refused finds the file as it was.

use super::{paths::Paths, schema};
use crate::store::OpenError;
use std::{fs::File, io::Read as _};

/// What the header of the file of each store has at these places: the size of a page, the shares of a page, the
/// formats of tables and of texts, no automatic vacuum. With another value in one of them SQLite would read or, worse,
/// write the pages wrong.
const FIXED_HEADER: [(usize, &[u8]); 5] = [
    (16, &[0x20, 0]),
    (20, &[0, 64, 32, 32]),
    (44, &[0, 0, 0, 4]),
    (52, &[0, 0, 0, 0, 0, 0, 0, 1]),
    (64, &[0, 0, 0, 0]),
];
/// Where the header says with which kinds of journal a program must be able to write and to read the file.
const JOURNAL_VERSIONS: std::ops::Range<usize> = 18..20;
const USER_VERSION: usize = 60;
const APPLICATION: usize = 68;

/// Refuses a file that is there but cannot be a store of ours, before SQLite gets to write to it, and one that is lost
/// while the rest of the store is there.
///
/// Only while this process has no SQLite connection to the file: closing it would drop that one's locks.
pub(super) fn check(paths: &Paths) -> Result<(), OpenError> {
    let shown = paths.database.display();
    match std::fs::metadata(&paths.database) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return refuse_lost(paths, "is missing");
        }
        Err(error) => return Err(OpenError(format!("{shown} cannot be looked at: {error}"))),
        Ok(metadata) if metadata.is_dir() => return Err(is_folder(paths)),
        Ok(metadata) if metadata.len() == 0 => return refuse_lost(paths, "is empty"),
        Ok(_) => {}
    }
    let mut header = Vec::new();
    File::open(&paths.database)
        .and_then(|file| file.take(100).read_to_end(&mut header))
        .map_err(|error| {
            OpenError(format!(
                "{shown} cannot be read: {error}. Check the file's owner and permissions"
            ))
        })?;
    if header.len() < 100 || !header.starts_with(b"SQLite format 3\0") {
        return Err(OpenError(format!(
            "{shown} is not a SQLite database. Set DATABASE_PATH to a file of oncelog's or to a new one; if it was one of \
             oncelog's, its beginning is damaged: go back to a backup"
        )));
    }
    let number =
        |at: usize| i32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]).into();
    match number(APPLICATION) {
        // Of a new store, the header in the write-ahead log counts.
        0 => Ok(()),
        application => {
            schema::refuse_format(paths, application, number(USER_VERSION))?;
            check_header(paths, &header)
        }
    }
}

fn check_header(paths: &Paths, header: &[u8]) -> Result<(), OpenError> {
    let is_fixed = |(at, bytes): &(usize, &[u8])| header[*at..].starts_with(bytes);
    let is_journaled = header[JOURNAL_VERSIONS]
        .iter()
        .all(|version| matches!(version, 1 | 2));
    if FIXED_HEADER.iter().all(is_fixed) && is_journaled {
        return Ok(());
    }
    Err(OpenError(format!(
        "{}: the header of the file (its first 100 bytes) is damaged. Go back to a backup",
        paths.database.display()
    )))
}

/// A new store is only begun where no other one was: SQLite would remove the write-ahead log of a file that is gone, and
/// what was acknowledged would be accepted again.
fn refuse_lost(paths: &Paths, what: &str) -> Result<(), OpenError> {
    let has_log = std::fs::metadata(&paths.wal).is_ok_and(|metadata| metadata.len() > 0);
    // It is made after the file is.
    let left = match (has_log, paths.index.exists()) {
        (true, _) => &paths.wal,
        (false, true) => &paths.index,
        (false, false) => return Ok(()),
    };
    Err(OpenError(format!(
        "{} {what}, but {} of the same store is there. Put the file back, or go back to a backup. To begin a new store, \
         move away or remove what is left of this one",
        paths.database.display(),
        left.display()
    )))
}

/// The error for a folder where a file should be.
pub(super) fn is_folder(paths: &Paths) -> OpenError {
    OpenError(format!(
        "{0} is a folder. Set DATABASE_PATH to a file, for example {0}/oncelog.db",
        paths.database.display()
    ))
}
