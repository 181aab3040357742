//! Where the parts of a store are: all names follow from the database file's.

use crate::store::OpenError;
use std::{
    ffi::OsString,
    io::ErrorKind,
    path::{Path, PathBuf},
};

/// The files and folders of one store.
#[derive(Clone, Debug)]
pub(super) struct Paths {
    /// The SQLite file.
    pub(super) database: PathBuf,
    /// Its write-ahead log, which SQLite manages.
    pub(super) wal: PathBuf,
    /// By what its connections find each other, while there are any.
    pub(super) shm: PathBuf,
    /// What SQLite undoes the first of all changes by, before there is a write-ahead log.
    pub(super) journal: PathBuf,
    /// The folder of the index segments.
    pub(super) index: PathBuf,
    /// The lock file.
    pub(super) lock: PathBuf,
}

impl Paths {
    /// The parts of the store at `database`.
    pub(super) fn of(database: &Path) -> Self {
        let with = |suffix: &str| {
            let mut name = OsString::from(database);
            name.push(suffix);
            PathBuf::from(name)
        };
        Self {
            database: database.to_path_buf(),
            wal: with("-wal"),
            shm: with("-shm"),
            journal: with("-journal"),
            index: with("-index"),
            lock: with(".lock"),
        }
    }

    /// The parts of the store at `database`, whose names follow from the file itself if `database` is a symbolic link to
    /// it: whatever leads to a store leads to the same lock and the same index.
    pub(super) fn resolve(database: &Path) -> Result<Self, OpenError> {
        match std::fs::canonicalize(database) {
            Ok(database) => Ok(Self::of(&database)),
            Err(error) if error.kind() == ErrorKind::NotFound && !database.is_symlink() => {
                Ok(Self::of(database))
            }
            Err(error) => Err(OpenError(format!(
                "{} cannot be followed to a file: {error}. If it is a symbolic link, make its target's folder and set \
                 DATABASE_PATH to the target itself",
                database.display()
            ))),
        }
    }

    /// Bytes of the SQLite file and its write-ahead log. Asks for sizes only: opening and closing the file beside
    /// SQLite would drop the locks that SQLite holds on it in this process (POSIX locks work that way).
    pub(super) fn database_bytes(&self) -> u64 {
        [&self.database, &self.wal]
            .iter()
            .filter_map(|path| std::fs::metadata(path).ok())
            .map(|metadata| metadata.len())
            .sum()
    }
}
