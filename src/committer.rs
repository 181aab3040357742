//! The committer: groups what is queued into commits, answers each request, and wakes readers.
//!
//! One thread for each writer that the store has: one for a file, several for a server that takes several commits at
//! once. Group commit without a timer: a thread takes whatever arrived while the last commits ran, up to a bound, and
//! commits it as one transaction. Latency is one sync when idle, and throughput grows with load by itself. A request is
//! answered after its commit, never before; a failed commit is answered to every request in it and leaves no trace. While
//! the store cannot commit, it is tried again without traffic, so that it recovers by itself.

mod report;
#[cfg(test)]
mod tests;

use crate::{
    event::Batch,
    faults::{self, CrashPoint},
    health::{Health, News, Trouble},
    ingest::{Queue, SubmitError, Turn},
    limits::PROBE_INTERVAL,
    store::{CommitError, Store, Writer},
    wakeup::Wakeup,
};
use report::OutcomeReport;
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Instant,
};
use tokio::runtime::Handle;

/// Starts a thread for each writer. They end after [`crate::ingest::Ingest::stop`], with everything that was queued
/// answered and the store closed. Answers are sent on the current runtime, so it must be called from one.
///
/// # Errors
/// When the operating system gives no thread.
pub fn spawn(
    writers: Vec<Box<dyn Writer>>,
    store: &Arc<dyn Store>,
    queue: Queue,
    wakeup: &Wakeup,
    health: &Health,
) -> std::io::Result<Committers> {
    health.set_committer_running(true);
    let report = Arc::<Mutex<OutcomeReport>>::default();
    let start = |writer| {
        let committer = Committer {
            writer,
            store: Arc::clone(store),
            wakeup: wakeup.clone(),
            health: health.clone(),
            queue: queue.clone(),
            report: Arc::clone(&report),
            runtime: Handle::current(),
        };
        let running = Running(health.clone());
        thread::Builder::new().name("committer".into()).spawn(move || {
            // Also when the thread panics.
            let _running = running;
            committer.run();
        })
    };
    let threads = writers.into_iter().map(start).collect::<Result<_, _>>()?;
    // Each thread has its own end; without them, nothing is taken in.
    drop(queue);
    Ok(Committers(threads))
}

/// The committer's threads.
#[derive(Debug)]
pub struct Committers(Vec<JoinHandle<()>>);

impl Committers {
    /// Whether all have ended.
    #[cfg(test)]
    pub(crate) fn are_finished(&self) -> bool {
        self.0.iter().all(JoinHandle::is_finished)
    }

    /// Waits until all have ended.
    ///
    /// # Errors
    /// When one panicked.
    pub fn join(self) -> thread::Result<()> {
        // All of them, also when one has panicked.
        let ended: Vec<_> = self.0.into_iter().map(JoinHandle::join).collect();
        ended.into_iter().collect()
    }
}

struct Running(Health);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.set_committer_running(false);
    }
}

struct Committer {
    writer: Box<dyn Writer>,
    store: Arc<dyn Store>,
    wakeup: Wakeup,
    health: Health,
    queue: Queue,
    /// Of all committers.
    report: Arc<Mutex<OutcomeReport>>,
    runtime: Handle,
}

impl Committer {
    fn run(mut self) {
        loop {
            let trouble = self.health.trouble();
            let timeout = trouble
                .filter(|trouble| !trouble.needs_restart)
                .map(|_| PROBE_INTERVAL);
            let pending = self.report().pending();
            let Some(turn) = self.queue.next(timeout.or(pending)) else {
                self.report().flush();
                if timeout.is_some() {
                    let began = Instant::now();
                    let result = self.probe();
                    self.note(began, &result);
                }
                continue;
            };
            let began = Instant::now();
            let (asked_to_maintain, stop) = (turn.maintain, turn.stop);
            let committed = (!turn.submissions.is_empty()).then(|| self.commit(turn));
            // The answers are out; what is left to do delays the next commit only. After a failed commit too, if it
            // was asked for: what is ready to be listed may be what the commit lacked.
            let maintain = asked_to_maintain || matches!(committed, Some(Ok(())));
            let maintained = maintain.then(|| self.writer.maintain());
            // That there was nothing to do, or that it went well, does not say that a commit would.
            let maintained = maintained.filter(Result::is_err);
            // Who is asked for maintenance again and again would never come to the end of a pause.
            let probes = timeout.is_some() && committed.is_none() && maintained.is_none() && !stop;
            let probed = probes.then(|| self.probe());
            if let Some(result) = [committed, maintained, probed]
                .into_iter()
                .flatten()
                .reduce(Result::and)
            {
                self.note(began, &result);
            }
            if stop {
                break;
            }
        }
        self.report().flush();
        // Its connections go first, so that SQLite can remove the write-ahead log.
        drop(self.store);
        if let Err(error) = self.writer.close() {
            tracing::error!(%error, "the store was not closed tidily; it is put right at the next start");
        }
    }

    fn probe(&mut self) -> Result<(), CommitError> {
        let result = self.writer.probe();
        if result.is_err() {
            self.queue.figures().failed(0);
        }
        result
    }

    fn commit(&mut self, turn: Turn) -> Result<(), CommitError> {
        let Turn {
            submissions,
            events,
            bytes,
            ..
        } = turn;
        let publishes = submissions.len() as u64;
        let started = Instant::now();
        let batches: Vec<&Batch> = submissions.iter().map(|submission| &submission.batch).collect();
        match self.writer.commit(&batches) {
            Ok(outcomes) => {
                self.queue
                    .figures()
                    .committed(&outcomes, events, bytes, started.elapsed());
                self.report().note(&submissions, &outcomes);
                // Waking the requests and freeing their batches from inside the runtime is cheaper than from here, and
                // the next commit can begin meanwhile (measured: 4 % more events/s in batches of 200).
                self.runtime.spawn(async move {
                    for (submission, outcome) in submissions.into_iter().zip(outcomes) {
                        submission.answer(Ok(outcome));
                    }
                });
                self.wakeup.announce(self.store.high_watermark());
                faults::reached(CrashPoint::CommitAnswered);
                Ok(())
            }
            Err(error) => {
                self.queue.figures().failed(publishes);
                for submission in submissions {
                    submission.answer(Err(SubmitError::Store(error.to_string())));
                }
                Err(error)
            }
        }
    }

    fn report(&self) -> MutexGuard<'_, OutcomeReport> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells health what a call to the writer showed that began at `began`; logs when that is news: once an outage, also
    /// when its reasons change or differ between the writers.
    fn note(&self, began: Instant, result: &Result<(), CommitError>) {
        let trouble = result.as_ref().err().map(|error| Trouble {
            reason: error.to_string(),
            needs_restart: matches!(error, CommitError::Poisoned(_)),
        });
        match self.health.note(began, trouble) {
            News::None => {}
            News::Failed => {
                let reason = self.health.trouble().map(|trouble| trouble.reason);
                tracing::error!(reason, "the store cannot commit");
            }
            News::Recovered => tracing::info!("the store commits again"),
        }
    }
}
