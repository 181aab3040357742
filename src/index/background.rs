//! The two threads of an index: one seals frozen tails, one merges segments.
//!
//! Two, because a large merge takes seconds, and a tail that waits for it would make commits wait. Both only ever make
//! new files and hand them over as [`Finished`]; the store lists them.

use super::{Change, IndexError, SegmentName, Shared, State, lock, merge, segment::Segment, tail::Tail};
use crate::{
    faults::{self, CrashPoint},
    limits::{MAX_INDEX_RETRY, MAX_SEGMENT_EVENTS},
};
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// New segments, and those that they replace.
pub(super) struct Finished {
    pub(super) remove: Vec<SegmentName>,
    pub(super) add: Vec<Arc<Segment>>,
}

impl Finished {
    pub(super) fn change(&self) -> Change {
        Change {
            remove: self.remove.clone(),
            add: self.add.iter().map(|segment| segment.name()).collect(),
        }
    }

    pub(super) fn removes_only_what_is_there(&self, state: &State) -> bool {
        self.remove.iter().all(|name| {
            state.segments.iter().any(|segment| segment.name() == *name)
                || state.unusable.iter().any(|unusable| unusable.segment == *name)
        })
    }
}

/// The threads; dropping it stops them and waits for them.
pub(super) struct Background {
    stop: Arc<AtomicBool>,
    seals: Option<Sender<Arc<Tail>>>,
    merges: Option<Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

impl Background {
    pub(super) fn start(shared: &Arc<Shared>) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (seals, to_seal) = mpsc::channel();
        let (merges, to_merge) = mpsc::channel();
        let sealer = {
            let (shared, stop) = (Arc::clone(shared), Arc::clone(&stop));
            move || seal_all(&shared, &to_seal, &stop)
        };
        let merger = {
            let (shared, stop) = (Arc::clone(shared), Arc::clone(&stop));
            move || merge_all(&shared, &to_merge, &stop)
        };
        let mut background = Self {
            stop,
            seals: Some(seals),
            merges: Some(merges),
            threads: Vec::new(),
        };
        background.threads.push(
            std::thread::Builder::new()
                .name("index-seal".into())
                .spawn(sealer)?,
        );
        background.threads.push(
            std::thread::Builder::new()
                .name("index-merge".into())
                .spawn(merger)?,
        );
        // What an earlier run did not get to.
        background.look_for_merges();
        Ok(background)
    }

    /// Writes a frozen tail as a segment.
    pub(super) fn seal(&self, tail: Arc<Tail>) {
        if let Some(seals) = &self.seals {
            // The thread ends only when this is dropped.
            let _ = seals.send(tail);
        }
    }

    /// The segments have changed.
    pub(super) fn look_for_merges(&self) {
        if let Some(merges) = &self.merges {
            // As above.
            let _ = merges.send(());
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.seals = None;
        self.merges = None;
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::error!("a thread of the index panicked");
            }
        }
    }
}

/// Tells those who wait for a seal when the thread dies.
struct Sealer<'a>(&'a Shared);

impl Drop for Sealer<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.set_trouble(Some(
                "the thread that writes it has died; restart the program".into(),
            ));
        }
    }
}

fn seal_all(shared: &Shared, tails: &Receiver<Arc<Tail>>, stop: &AtomicBool) {
    let _sealer = Sealer(shared);
    for tail in tails {
        loop {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let started = Instant::now();
            match shared.write_tail(&tail) {
                Ok(segment) => {
                    let name = segment.name();
                    tracing::debug!(
                        first = name.first,
                        last = name.last,
                        milliseconds = started.elapsed().as_millis() as u64,
                        "sealed a tail of the index"
                    );
                    lock(&shared.seals).add(started.elapsed());
                    shared.set_trouble(None);
                    shared.finish(Finished {
                        remove: Vec::new(),
                        add: vec![Arc::new(segment)],
                    });
                    break;
                }
                Err(error) => {
                    tracing::error!(%error, "cannot seal a tail of the index; trying again");
                    shared.set_trouble(Some(error.to_string()));
                    pause(stop, shared.home.settings.retry);
                }
            }
        }
    }
}

/// Waits before another try, unless the index is being dropped.
fn pause(stop: &AtomicBool, duration: Duration) {
    let until = Instant::now() + duration;
    while Instant::now() < until && !stop.load(Ordering::Relaxed) {
        // Dropping the index unparks the thread.
        std::thread::park_timeout(duration);
    }
}

fn merge_all(shared: &Shared, changed: &Receiver<()>, stop: &AtomicBool) {
    let mut retry = shared.home.settings.retry;
    let mut failed = false;
    loop {
        let woken = if failed {
            changed.recv_timeout(retry)
        } else {
            changed.recv().map_err(Into::into)
        };
        if matches!(woken, Err(RecvTimeoutError::Disconnected)) || stop.load(Ordering::Relaxed) {
            return;
        }
        if failed && woken.is_ok() {
            // Only the pause ends the pause: a disk without room is not to be filled again at once.
            continue;
        }
        while changed.try_recv().is_ok() {}
        let result = merge_next(shared, stop);
        retry = if failed {
            (2 * retry).min(MAX_INDEX_RETRY)
        } else {
            shared.home.settings.retry
        };
        failed = result.is_err();
        if let Err(error) = result {
            if !stop.load(Ordering::Relaxed) {
                let seconds = retry.as_secs();
                tracing::error!(%error, "cannot merge segments of the index; trying again in {seconds} s");
            }
            shared.note_damage(&error);
        }
    }
}

/// Merges one run of segments, if there is one and no merge waits to be listed (it would still be in the state).
fn merge_next(shared: &Shared, stop: &AtomicBool) -> Result<(), IndexError> {
    let segments = shared.read().segments.clone();
    if lock(&shared.finished)
        .iter()
        .any(|finished| !finished.remove.is_empty())
    {
        return Ok(());
    }
    let settings = &shared.home.settings;
    let Some(sources) = merge::choose(&segments, settings, MAX_SEGMENT_EVENTS) else {
        return Ok(());
    };
    let started = Instant::now();
    let number = shared.next_number.fetch_add(1, Ordering::Relaxed);
    let segment = merge::merge(&shared.home, &sources, number, stop)?;
    faults::reached(CrashPoint::MergeDone);
    lock(&shared.merges).add(started.elapsed());
    tracing::info!(
        segments = sources.len(),
        events = segment.events(),
        bytes = segment.bytes(),
        milliseconds = started.elapsed().as_millis() as u64,
        "merged segments of the index"
    );
    let remove = sources.iter().map(|source| source.name()).collect();
    shared.finish(Finished {
        remove,
        add: vec![Arc::new(segment)],
    });
    Ok(())
}
