//! The store in a PostgreSQL server, for several instances at once.
//!
//! | module | what it is for |
//! |---|---|
//! | `server`, `certificate` | where the server is, and connections to it |
//! | `schema` | the tables, and their migrations |
//! | `topics` | topics and their numbers |
//! | `plan`, `statements`, `transaction`, `writer` | a commit, and what became of one that got no answer |
//! | `horizon` | up to where the log is final |
//! | `reader`, `page`, `counters` | queries |
//! | `keys` | the API keys of all instances |
//! | `target` | the copy of a store that was in a file |
//! | `hints` | tells other instances of commits, and readers of theirs |
//! | `failure` | errors in words |
//!
//! Nothing but what can be looked up again is in memory, so an instance can be killed at any moment.
//!
//! **Seqs.** They come from a sequence, so their order is not the order in which commits end: while a commit runs,
//! others end with higher ones. Each commit therefore holds, from before it takes seqs until it has ended, a shared
//! advisory lock that names the last seq given before it began. A reader from old to new goes up to the smallest of
//! these, the *horizon*, and waits for the commits before it where it must show what was answered. A reader from new to
//! old sees all that is committed. Seqs have gaps: those of duplicates and of commits that failed.

mod certificate;
mod counters;
mod failure;
mod hints;
mod horizon;
mod keys;
mod page;
mod plan;
mod reader;
mod schema;
mod server;
mod statements;
mod target;
mod topics;
mod transaction;
mod writer;

pub use keys::KeyTable;
pub use server::{Server, ServerError};
pub use target::Target;

use super::{Branch, Maintenance, OpenError, Store, Writer};
use crate::{
    event::{Identity, Seq},
    limits,
    wakeup::Wakeup,
};
use deadpool_postgres::Pool;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use tokio::{runtime::Handle, sync::watch, task::AbortHandle};
use topics::Topics;
use writer::PostgresWriter;

/// The faces of an open store: a writer for each commit at once, and the one that reads.
pub type Opened = (Vec<Box<dyn Writer>>, Arc<dyn Store>);

/// Opens the store on `server`, and makes its tables when they are not there. `wakeup` is told of what other instances
/// commit. `maintenance` is called when [`Writer::maintain`] has something to do.
pub async fn open(server: Server, maintenance: Maintenance, wakeup: &Wakeup) -> Result<Opened, OpenError> {
    open_with(server, maintenance, wakeup, limits::MAX_TOPICS).await
}

/// As [`open`], with room for so many topics.
pub async fn open_with(
    server: Server,
    maintenance: Maintenance,
    wakeup: &Wakeup,
    max_topics: usize,
) -> Result<Opened, OpenError> {
    let (shared, writers) = Shared::open(server, max_topics).await?;
    let background = hints::spawn(&shared, wakeup.clone(), maintenance);
    let writers = writers
        .into_iter()
        .map(|number| Box::new(PostgresWriter::new(Arc::clone(&shared), number)) as Box<dyn Writer>)
        .collect();
    Ok((writers, Arc::new(reader::PostgresStore::new(shared, background))))
}

/// What writers, readers and the background share.
struct Shared {
    server: Server,
    readers: Pool,
    runtime: Handle,
    identity: Identity,
    branches: Vec<Branch>,
    topics: Topics,
    /// Every event up to here is committed, and none will come any more.
    settled: AtomicU64,
    /// The newest committed event that this instance knows of.
    newest: watch::Sender<Seq>,
    /// The newest event of this instance's last commit, for those who tell others.
    own: watch::Sender<Seq>,
}

impl Shared {
    /// Connects, brings the tables up to date, and takes numbers for the writers.
    async fn open(server: Server, max_topics: usize) -> Result<(Arc<Self>, Vec<i64>), OpenError> {
        let (identity, branches, writers) = schema::prepare(&server).await?;
        let readers = server.pool()?;
        let shared = Arc::new(Self {
            readers,
            runtime: Handle::current(),
            identity,
            branches,
            topics: Topics::new(max_topics),
            settled: AtomicU64::new(0),
            newest: watch::Sender::new(0),
            own: watch::Sender::new(0),
            server,
        });
        let failed = |error: super::ReadError| OpenError(error.to_string());
        shared.horizon().await.map_err(failed)?;
        Ok((shared, writers))
    }

    /// Remembers that everything up to `seq` is settled.
    fn note_settled(&self, seq: Seq) {
        self.settled.fetch_max(seq, Ordering::AcqRel);
    }

    /// Remembers that `seq` is committed.
    fn note_committed(&self, seq: Seq) {
        self.newest.send_if_modified(|newest| {
            let is_newer = seq > *newest;
            *newest = seq.max(*newest);
            is_newer
        });
    }
}

/// What runs beside the store, until it is dropped.
struct Background(Vec<AbortHandle>);

impl Drop for Background {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}
