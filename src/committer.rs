//! The committer: one thread that groups what is queued into commits, answers each request, and wakes readers.
//!
//! Group commit without a timer: it takes whatever arrived while the last commit ran, up to a bound, and commits it as
//! one transaction. Latency is one sync when idle, and throughput grows with load by itself. A request is answered
//! after its commit, never before; a failed commit is answered to every request in it and leaves no trace. While the
//! store cannot commit, it is tried again without traffic, so that it recovers by itself.

mod report;
#[cfg(test)]
mod tests;

use crate::{
    event::Batch,
    faults::{self, CrashPoint},
    health::{Health, Trouble},
    ingest::{Figures, Message, Next, Queue, Submission, SubmitError},
    limits::{MAX_COMMIT_BYTES, MAX_COMMIT_EVENTS, PROBE_INTERVAL},
    store::{BatchOutcome, CommitError, Store, Writer},
    wakeup::Wakeup,
};
use report::OutcomeReport;
use std::{sync::Arc, thread::JoinHandle, time::Instant};
use tokio::runtime::Handle;

/// Starts the committer's thread. It ends after [`crate::ingest::Ingest::stop`], with everything that was queued
/// answered and the store closed. Answers are sent on the current runtime, so it must be called from one.
///
/// # Errors
/// When the operating system gives no thread.
pub fn spawn(
    writer: Box<dyn Writer>,
    store: Arc<dyn Store>,
    queue: Queue,
    wakeup: Wakeup,
    health: Health,
) -> std::io::Result<JoinHandle<()>> {
    health.set_committer_running(true);
    let committer = Committer {
        writer,
        store,
        wakeup,
        health: health.clone(),
        report: OutcomeReport::default(),
        figures: queue.figures(),
        runtime: Handle::current(),
    };
    std::thread::Builder::new()
        .name("committer".into())
        .spawn(move || {
            // Also when the thread panics.
            let _running = Running(health);
            committer.run(&queue);
        })
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
    report: OutcomeReport,
    figures: Figures,
    runtime: Handle,
}

/// What is taken out of the queue for one turn.
#[derive(Default)]
struct Turn {
    submissions: Vec<Submission>,
    events: usize,
    bytes: usize,
    maintain: bool,
    stop: bool,
}

impl Turn {
    fn take(&mut self, message: Message) {
        match message {
            Message::Publish(submission) => {
                self.events += submission.batch.len();
                self.bytes += submission.batch.bytes();
                self.submissions.push(submission);
            }
            Message::Maintain => self.maintain = true,
            Message::Stop => self.stop = true,
        }
    }

    fn is_full(&self) -> bool {
        self.stop || self.events >= MAX_COMMIT_EVENTS || self.bytes >= MAX_COMMIT_BYTES
    }
}

impl Committer {
    fn run(mut self, queue: &Queue) {
        loop {
            let trouble = self.health.trouble();
            let timeout = trouble
                .filter(|trouble| !trouble.needs_restart)
                .map(|_| PROBE_INTERVAL);
            let mut turn = Turn::default();
            match queue.next(timeout.or_else(|| self.report.pending())) {
                Next::Message(message) => turn.take(message),
                Next::TimedOut => {
                    self.report.flush();
                    if timeout.is_some() {
                        let result = self.writer.probe();
                        if result.is_err() {
                            self.figures.failed(0);
                        }
                        self.note(&result);
                    }
                    continue;
                }
            }
            while !turn.is_full() {
                match queue.ready() {
                    Some(message) => turn.take(message),
                    None => break,
                }
            }
            let (asked_to_maintain, stop) = (turn.maintain, turn.stop);
            let committed = (!turn.submissions.is_empty()).then(|| self.commit(turn));
            // The answers are out; what is left to do delays the next commit only. After a failed commit too, if it
            // was asked for: what is ready to be listed may be what the commit lacked.
            let maintain = asked_to_maintain || matches!(committed, Some(Ok(())));
            let maintained = maintain.then(|| self.writer.maintain());
            if let Some(result) = [committed, maintained].into_iter().flatten().reduce(Result::and) {
                self.note(&result);
            }
            if stop {
                break;
            }
        }
        self.report.flush();
        // Its connections go first, so that SQLite can remove the write-ahead log.
        drop(self.store);
        if let Err(error) = self.writer.close() {
            tracing::error!(%error, "the store was not closed tidily; it is put right at the next start");
        }
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
                let refused = outcomes
                    .iter()
                    .filter(|outcome| matches!(outcome, BatchOutcome::TooManyTopics { .. }))
                    .count();
                self.figures
                    .committed(publishes, refused as u64, events, bytes, started.elapsed());
                self.report.note(&batches, &outcomes);
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
                self.figures.failed(publishes);
                for submission in submissions {
                    submission.answer(Err(SubmitError::Store(error.to_string())));
                }
                Err(error)
            }
        }
    }

    /// Tells health what a call to the writer showed; logs when that is news.
    fn note(&self, result: &Result<(), CommitError>) {
        let trouble = result.as_ref().err().map(|error| match error {
            CommitError::Unavailable(reason) => Trouble {
                reason: reason.clone(),
                needs_restart: false,
            },
            CommitError::Poisoned(reason) => Trouble {
                reason: reason.clone(),
                needs_restart: true,
            },
        });
        let before = self.health.set_trouble(trouble.clone());
        if before == trouble {
            return;
        }
        match trouble {
            Some(trouble) => tracing::error!(reason = trouble.reason, "the store cannot commit"),
            None => tracing::info!("the store commits again"),
        }
    }
}
