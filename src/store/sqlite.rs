//! The store in one SQLite file: an append-only log, with the index beside it.
//!
//! | module | what it is for |
//! |---|---|
//! | `paths`, `folders`, `lock` | where the parts are; one server a store |
//! | `file`, `wal`, `schema` | the file, its write-ahead log and its tables are ours, whole and synced |
//! | `rows`, `counters` | what is stored, with checksums |
//! | `recovery` | opens a store, after a clean stop or a crash |
//! | `decide`, `insert`, `writer` | a commit |
//! | `checkpoint`, `repair` | what the background does for the writer |
//! | `connections`, `reader`, `scan` | queries, and reading the log in order |
//! | `backup`, `verify`, `source` | a copy of a running store; a check of one that is not running, and its copy to another kind |
//! | `failure` | SQLite's errors in words |
//!
//! The log in the file is the truth, together with the list of index segments and the counters, all changed in the
//! same transactions. What is in memory follows after each commit and is rebuilt on open.

mod backup;
mod checkpoint;
mod connections;
mod counters;
mod decide;
mod failure;
mod file;
mod folders;
mod insert;
mod lock;
mod paths;
mod reader;
mod recovery;
mod repair;
mod rows;
mod scan;
mod schema;
mod source;
#[cfg(test)]
mod tests;
mod verify;
mod wal;
mod writer;

pub use backup::{BackupReport, backup};
pub use source::Source;
pub use verify::{Check, VerifyReport, verify};

use super::{Branch, Maintenance, OpenError, Store, Writer};
use crate::{
    event::Identity,
    faults,
    index::{Index, Settings},
    limits,
};
use counters::TopicTable;
use lock::Lock;
use paths::Paths;
use std::{
    path::Path,
    sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic::AtomicU64},
};

/// The two faces of an open store.
pub type Opened = (Box<dyn Writer>, Arc<dyn Store>);

/// Opens the store at `path`, and makes it when it is not there. `maintenance` is called, from any thread, when
/// [`Writer::maintain`] has something to do.
pub fn open(path: &Path, maintenance: Maintenance) -> Result<Opened, OpenError> {
    open_with(path, maintenance, faults::index_settings(), limits::MAX_TOPICS)
}

/// As [`open`], with other sizes of the index, and room for so many topics.
pub fn open_with(
    path: &Path,
    maintenance: Maintenance,
    settings: Settings,
    max_topics: usize,
) -> Result<Opened, OpenError> {
    let (writer, store) = recovery::open(path, maintenance, settings, max_topics)?;
    Ok((Box::new(writer), Arc::new(store)))
}

/// What the writer, the readers and the background share.
struct Shared {
    paths: Paths,
    identity: Identity,
    branches: Vec<Branch>,
    index: Index,
    topics: RwLock<TopicTable>,
    /// Everything up to here is committed and in the index.
    high_watermark: AtomicU64,
    /// Why the store must not be written any more.
    poisoned: OnceLock<String>,
    /// Asks for [`Writer::maintain`].
    maintenance: Maintenance,
    // Dropped last: the index's threads write files of the store until they are joined.
    _lock: Lock,
}

impl Shared {
    fn topics(&self) -> RwLockReadGuard<'_, TopicTable> {
        self.topics.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn topics_mut(&self) -> RwLockWriteGuard<'_, TopicTable> {
        self.topics.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on nothing more is written. Returns why; of several reasons, the first.
    fn poison(&self, what: &str, error: impl std::fmt::Display) -> String {
        self.poisoned
            .get_or_init(|| failure::poisoned(&self.paths, what, error))
            .clone()
    }
}
