//! What SQLite's errors mean for a store, in words for the person who has to act.

use super::paths::Paths;
use crate::{
    index::IndexError,
    store::{CommitError, OpenError, ReadError},
};
use rusqlite::{Error, ErrorCode, ffi};

/// The extended result code, if the error came from SQLite.
fn extended_code(error: &Error) -> Option<i32> {
    match error {
        Error::SqliteFailure(failure, _) => Some(failure.extended_code),
        _ => None,
    }
}

/// Whether a sync failed, after which nobody knows what is on disk.
pub(super) fn is_failed_sync(error: &Error) -> bool {
    matches!(
        extended_code(error),
        Some(ffi::SQLITE_IOERR_FSYNC | ffi::SQLITE_IOERR_DIR_FSYNC)
    )
}

/// Whether a COMMIT that failed with this certainly left nothing behind: these happen before the last page of the
/// transaction, without which SQLite ignores all others, is in the write-ahead log.
pub(super) fn is_clear_after_commit(error: &Error) -> bool {
    matches!(
        extended_code(error),
        Some(ffi::SQLITE_FULL | ffi::SQLITE_IOERR_WRITE | ffi::SQLITE_BUSY)
    )
}

/// Whether SQLite's shared memory (the -shm file) could not grow. In a COMMIT that is after the sync: the transaction is
/// in the write-ahead log and nobody is told of it, until a crash makes SQLite read the log anew.
pub(super) fn is_not_indexed(error: &Error) -> bool {
    extended_code(error) == Some(ffi::SQLITE_IOERR_SHMSIZE)
}

/// What to do about an error, for the end of a message.
fn advice(error: &Error) -> &'static str {
    if is_not_indexed(error) {
        return "SQLite's shared memory beside it cannot grow; is the disk full? Free some space";
    }
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => "the disk is full: free some space",
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            "another program keeps the file locked: end that program's transaction"
        }
        // Without a code, it is a value that cannot be there.
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) | None => {
            // SQLite calls it damage, too, when the system cannot read the file.
            "the file is damaged, or the disk cannot read it: see the system's log, stop the server, run \
             `oncelog verify` on it, and go back to a backup if that finds damage"
        }
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => {
            "check that the file and its folder may be read and written by this user, and the disk"
        }
        _ => "check the disk and the system's log",
    }
}

/// An error of a write that was rolled back.
pub(super) fn unavailable(paths: &Paths, error: &Error) -> CommitError {
    CommitError::Unavailable(format!(
        "{} cannot be written: {error}; {}. It is tried again by itself",
        paths.database.display(),
        advice(error)
    ))
}

/// The text of a store that must not be written again.
pub(super) fn poisoned(paths: &Paths, what: &str, error: impl std::fmt::Display) -> String {
    format!(
        "{}: {what} failed: {error}. What the disk holds is unknown, so nothing more is written until oncelog is \
         started again: check the disk and the system's log first",
        paths.database.display()
    )
}

/// What the index's error means for a write or a read that needs it, in words.
pub(super) fn index(error: &IndexError) -> String {
    match error {
        IndexError::Damaged { .. } => format!("{error}; it is being rebuilt from the log"),
        IndexError::Io(_) => error.to_string(),
    }
}

/// An error while a store is opened, copied or checked.
pub(super) fn open(paths: &Paths, what: &str, error: &Error) -> OpenError {
    OpenError(format!(
        "{}: {what}: {error}; {}",
        paths.database.display(),
        advice(error)
    ))
}

/// What SQLite's integrity check says, in one line and without its heading.
pub(super) fn of_integrity_check(said: &str) -> String {
    let lines: Vec<_> = said.lines().filter(|line| !line.starts_with("***")).collect();
    lines.join("; ")
}

/// An error of a read.
pub(super) fn read(paths: &Paths, error: &Error) -> ReadError {
    ReadError::Failed(format!(
        "{} cannot be read: {error}; {}",
        paths.database.display(),
        advice(error)
    ))
}
