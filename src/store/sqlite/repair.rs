//! Rebuilds damaged index segments from the log while the store is open.
//!
//! One at a time, on a thread of its own; one that fails waits longer and longer before it is tried again. The index hands the new segment to the writer like any other.

use super::{Shared, rows::RowError, scan, schema};
use crate::{
    index::{IndexError, SegmentName, Unusable},
    limits,
};
use hashbrown::HashMap;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
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
    running: Option<Running>,
    stop: Arc<AtomicBool>,
    /// By the segment's number.
    tries: HashMap<u64, Tries>,
}

/// The thread; it returns whether the segment was rebuilt.
#[derive(Debug)]
struct Running {
    number: u64,
    thread: JoinHandle<bool>,
}

/// What is known of the rebuilds of one segment.
#[derive(Clone, Copy, Debug)]
struct Tries {
    failed: u32,
    /// It is not tried again before.
    not_before: Instant,
}

impl Repairs {
    /// Starts to rebuild an unusable segment, unless one is being rebuilt: of those whose turn it is, the one that
    /// waits for the longest. So one that cannot be rebuilt keeps no other from it.
    pub(super) fn look(&mut self, shared: &Arc<Shared>) -> std::io::Result<()> {
        if self
            .running
            .as_ref()
            .is_some_and(|running| !running.thread.is_finished())
        {
            return Ok(());
        }
        self.note_end();
        let unusable = shared.index.unusable();
        self.tries
            .retain(|number, _| unusable.iter().any(|unusable| unusable.segment.number == *number));
        let not_before = |unusable: &Unusable| {
            self.tries
                .get(&unusable.segment.number)
                .map(|tries| tries.not_before)
        };
        let now = Instant::now();
        let next = unusable
            .into_iter()
            .filter(|unusable| not_before(unusable).is_none_or(|moment| moment <= now))
            .min_by_key(not_before);
        let Some(unusable) = next else {
            return Ok(());
        };
        let number = unusable.segment.number;
        let (shared, stop) = (Arc::clone(shared), Arc::clone(&self.stop));
        let thread = std::thread::Builder::new()
            .name("index-rebuild".into())
            .spawn(move || run(&shared, &unusable, &stop))?;
        self.running = Some(Running { number, thread });
        Ok(())
    }

    /// Says when the segment whose rebuild has ended may be tried again. That goes for a success, too: it is unusable
    /// until its successor is listed.
    fn note_end(&mut self) {
        let Some(Running { number, thread }) = self.running.take() else {
            return;
        };
        let rebuilt = join(thread);
        let failed = if rebuilt {
            0
        } else {
            self.tries.get(&number).map_or(1, |tries| tries.failed + 1)
        };
        self.tries.insert(
            number,
            Tries {
                failed,
                not_before: Instant::now() + pause(failed),
            },
        );
    }
}

/// The pause after so many failures in a row.
fn pause(failed: u32) -> Duration {
    limits::REPAIR_BACKOFF_FIRST
        .saturating_mul(2_u32.saturating_pow(failed.saturating_sub(1)))
        .min(limits::REPAIR_BACKOFF_MOST)
}

fn join(thread: JoinHandle<bool>) -> bool {
    thread.join().unwrap_or_else(|_| {
        tracing::error!("the thread that rebuilds index segments panicked");
        false
    })
}

/// The thread's work.
fn run(shared: &Shared, unusable: &Unusable, stop: &AtomicBool) -> bool {
    let Unusable { segment, reason } = unusable;
    let SegmentName { number, first, last } = *segment;
    tracing::warn!(
        number,
        first,
        last,
        reason,
        "an index segment is damaged; rebuilding it from the log"
    );
    match rebuild(shared, *segment, stop) {
        Ok(()) => {
            tracing::info!(number, first, last, "rebuilt an index segment");
            true
        }
        Err(RebuildError::Stopping) => false,
        Err(error) => {
            tracing::error!(number, first, last, %error, "cannot rebuild an index segment; trying again");
            // So that another one gets its turn.
            (shared.maintenance)();
            false
        }
    }
}

impl Drop for Repairs {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(running) = self.running.take() {
            join(running.thread);
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
