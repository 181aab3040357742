//! One server a store: an operating system lock on `<file>.lock`.
//!
//! SQLite's own locks would let two servers take turns, and each has an index in memory that knows nothing of the
//! other's commits. The lock ends with the process, however it ends, so a lock file left behind means nothing.

use super::paths::Paths;
use crate::store::OpenError;
use std::{
    fs::{File, TryLockError},
    io::{ErrorKind, Read as _, Seek as _, Write as _},
};

/// The right to be the only server of a store, held until it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// As [`Lock::take`], for one who only reads: `None` on a read-only file system, where nobody writes to the store.
    pub(super) fn take_to_read(paths: &Paths) -> Result<Option<Self>, OpenError> {
        match File::options().append(true).create(true).open(&paths.lock) {
            Err(error) if error.kind() == ErrorKind::ReadOnlyFilesystem => Ok(None),
            _ => Self::take(paths).map(Some),
        }
    }

    /// Takes the lock, or says who has it.
    pub(super) fn take(paths: &Paths) -> Result<Self, OpenError> {
        let failed = |error: std::io::Error| {
            OpenError(format!(
                "{}: the lock file cannot be written: {error}. oncelog needs to write in this folder; \
                 check its owner and permissions, or set DATABASE_PATH to another place",
                paths.lock.display()
            ))
        };
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&paths.lock)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Only to name the other process; the message is as true without its number.
                let _ = file.read_to_string(&mut holder);
                let holder = match holder.trim() {
                    "" => String::new(),
                    pid => format!(" (process {pid})"),
                };
                return Err(OpenError(format!(
                    "{} is in use by another oncelog{holder}. Stop that one first, or set DATABASE_PATH to another \
                     file; a copy can be made while it runs with `oncelog backup`",
                    paths.database.display()
                )));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        file.set_len(0).map_err(failed)?;
        file.rewind().map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(Self { _file: file })
    }
}
