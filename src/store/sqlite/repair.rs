//! Rebuilds damaged index segments from the log while the store is open.
//!
//! One at a time, on a thread of its own. The index hands the new segment to the writer like any other.

use super::{Shared, rows::RowError, scan, schema};
use crate::{
    index::{IndexError, SegmentName, Unusable},
    limits,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Instant,
};

/// Why a segment could not be rebuilt.
#[derive(Debug, thiserror::Error)]
pub(super) enum RebuildError {
    #[error("{0}")]
    Index(#[from] IndexError),
    #[error("{0}")]
    Row(#[from] RowError),
    #[error("oncelog is stopping")]
    Stopping,
}

/// The writer's side; dropping it stops the thread and waits for it.
#[derive(Debug, Default)]
pub(super) struct Repairs {
    thread: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    not_before: Option<Instant>,
}

impl Repairs {
    /// Starts to rebuild the first unusable segment, unless one is being rebuilt. A rebuild that failed is tried again
    /// after a while.
    pub(super) fn look(&mut self, shared: &Arc<Shared>) -> std::io::Result<()> {
        if self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return Ok(());
        }
        if let Some(ended) = self.thread.take()
            && ended.join().is_err()
        {
            tracing::error!("the thread that rebuilds index segments panicked");
        }
        let Some(Unusable { segment, reason }) = shared.index.unusable().into_iter().next() else {
            return Ok(());
        };
        if self.not_before.is_some_and(|moment| Instant::now() < moment) {
            return Ok(());
        }
        self.not_before = Some(Instant::now() + limits::PROBE_INTERVAL);
        let SegmentName { number, first, last } = segment;
        tracing::warn!(
            number,
            first,
            last,
            reason,
            "an index segment is damaged; rebuilding it from the log"
        );
        let (shared, stop) = (Arc::clone(shared), Arc::clone(&self.stop));
        let rebuild = move || match rebuild(&shared, segment, &stop) {
            Ok(()) => tracing::info!(number, first, last, "rebuilt an index segment"),
            Err(RebuildError::Stopping) => {}
            Err(error) => {
                tracing::error!(number, first, last, %error, "cannot rebuild an index segment; trying again");
            }
        };
        self.thread = Some(
            std::thread::Builder::new()
                .name("index-rebuild".into())
                .spawn(rebuild)?,
        );
        Ok(())
    }
}

impl Drop for Repairs {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that rebuilds index segments panicked");
        }
    }
}

/// Rebuilds one segment from the log, in short read transactions.
pub(super) fn rebuild(shared: &Shared, segment: SegmentName, stop: &AtomicBool) -> Result<(), RebuildError> {
    let connection = schema::connect_reader(&shared.paths).map_err(RowError::from)?;
    let names = shared.topics().names();
    let SegmentName { first, last, .. } = segment;
    let entries = scan::entries_in_slices(&connection, &names, &shared.identity, first, last);
    let entries = entries.map(|entry| {
        if stop.load(Ordering::Relaxed) {
            return Err(RebuildError::Stopping);
        }
        Ok(entry?)
    });
    shared.index.rebuild(segment, entries)
}
