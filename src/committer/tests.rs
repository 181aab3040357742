//! The committer over a writer whose every answer the test gives.

use super::*;
use crate::{
    event::{Identity, Outcome, Seq, Shape, parse},
    ingest::{self, Ingest},
    store::{
        BatchOutcome, Branch, Frontier, Gauges, Page, Placed, Query, ReadError, StoredEvent, TopicFilter,
        TopicStatus, Totals,
    },
};
use prometheus_client::{encoding::text::encode, registry::Registry};
use std::{sync::mpsc, time::Duration};
use tokio::sync::Semaphore;

/// Far beyond what any step takes.
const DEADLINE: Duration = Duration::from_secs(60);
const IDENTITY: Identity = Identity {
    store: 1,
    secret: [1; 16],
};

/// What the committer asked of the writer.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Call {
    /// With so many batches.
    Commit(usize),
    Maintain,
    Probe,
    Close,
}

struct ScriptedWriter {
    calls: mpsc::Sender<Call>,
    answers: mpsc::Receiver<Result<(), CommitError>>,
}

impl ScriptedWriter {
    fn ask(&self, call: Call) -> Result<(), CommitError> {
        self.calls.send(call).unwrap();
        self.answers.recv_timeout(DEADLINE).unwrap()
    }
}

impl Writer for ScriptedWriter {
    fn commit(&mut self, batches: &[&Batch]) -> Result<Vec<BatchOutcome>, CommitError> {
        self.ask(Call::Commit(batches.len()))?;
        let stored = Placed {
            outcome: Outcome::Stored,
            seq: 1,
        };
        Ok(batches
            .iter()
            .map(|_| BatchOutcome::Committed(vec![stored]))
            .collect())
    }

    fn maintain(&mut self) -> Result<(), CommitError> {
        self.ask(Call::Maintain)
    }

    fn probe(&mut self) -> Result<(), CommitError> {
        self.ask(Call::Probe)
    }

    fn close(self: Box<Self>) -> Result<(), CommitError> {
        self.ask(Call::Close)
    }
}

/// The committer asks it for the high watermark only.
struct EmptyStore;

impl Store for EmptyStore {
    fn identity(&self) -> Identity {
        IDENTITY
    }
    fn branches(&self) -> &[Branch] {
        &[]
    }
    fn high_watermark(&self) -> Seq {
        1
    }
    fn page(&self, _: &Query) -> Result<Page, ReadError> {
        Err(ReadError::Failed("there is nothing".into()))
    }
    fn find(&self, _: &str, _: &str) -> Result<Option<StoredEvent>, ReadError> {
        Ok(None)
    }
    fn frontier(&self) -> Result<Frontier, ReadError> {
        Ok(Frontier {
            settled: 1,
            newest: 1,
        })
    }
    fn totals(&self, _: &TopicFilter) -> Result<Totals, ReadError> {
        Ok(Totals::default())
    }
    fn topics(&self, _: &TopicFilter, _: Option<&str>, _: usize) -> Result<Vec<TopicStatus>, ReadError> {
        Ok(Vec::new())
    }
    fn first_topics(&self, _: usize) -> Result<(Totals, Vec<TopicStatus>), ReadError> {
        Ok((Totals::default(), Vec::new()))
    }
    fn gauges(&self) -> Result<Gauges, ReadError> {
        Ok(Gauges::default())
    }
}

struct Bench {
    ingest: Ingest,
    health: Health,
    calls: mpsc::Receiver<Call>,
    answers: mpsc::Sender<Result<(), CommitError>>,
    thread: Committers,
}

impl Bench {
    fn start() -> Self {
        let (ingest, queue) = ingest::queue(100);
        let (calls_sender, calls) = mpsc::channel();
        let (answers, answers_receiver) = mpsc::channel();
        let writer = ScriptedWriter {
            calls: calls_sender,
            answers: answers_receiver,
        };
        let health = Health::default();
        let thread = spawn(
            vec![Box::new(writer)],
            &(Arc::new(EmptyStore) as Arc<dyn Store>),
            queue,
            &Wakeup::new(0),
            &health,
        )
        .unwrap();
        Self {
            ingest,
            health,
            calls,
            answers,
            thread,
        }
    }

    fn submit(&self) -> tokio::task::JoinHandle<Result<BatchOutcome, SubmitError>> {
        let body =
            br#"{"topic":"t","event_id":"e","timestamp":"2025-10-23T10:00:00Z","source":"s"}"#.to_vec();
        let batch = parse(body, Shape::Any, &IDENTITY, 10).unwrap();
        let ingest = self.ingest.clone();
        tokio::spawn(async move {
            let room = Arc::new(Semaphore::new(1)).acquire_owned().await.unwrap();
            ingest.submit(batch, room).await
        })
    }

    fn expect(&self, call: Call) {
        assert_eq!(self.calls.recv_timeout(DEADLINE).unwrap(), call);
    }

    fn answer(&self, result: Result<(), CommitError>) {
        self.answers.send(result).unwrap();
    }

    /// Waits until so many events are in the queue or the running commit.
    async fn queued(&self, events: usize) {
        while self.ingest.queued_events() < events {
            tokio::task::yield_now().await;
        }
    }

    fn stop(self) {
        self.ingest.stop();
        self.expect(Call::Close);
        self.answer(Ok(()));
        self.thread.join().unwrap();
        assert!(!self.health.committer_running());
    }
}

fn full() -> CommitError {
    CommitError::Unavailable("the disk is full".into())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_arrives_during_a_commit_goes_into_the_next_one_together() {
    let bench = Bench::start();
    let first = bench.submit();
    bench.expect(Call::Commit(1));
    let others: Vec<_> = (0..3).map(|_| bench.submit()).collect();
    bench.queued(4).await;
    bench.answer(Ok(()));
    assert!(first.await.unwrap().is_ok());
    bench.expect(Call::Maintain);
    bench.answer(Ok(()));
    bench.expect(Call::Commit(3));
    bench.answer(Ok(()));
    for other in others {
        assert!(other.await.unwrap().is_ok());
    }
    bench.expect(Call::Maintain);
    bench.answer(Ok(()));
    bench.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_commit_is_told_to_its_requests_and_the_store_recovers_without_traffic() {
    let bench = Bench::start();
    let request = bench.submit();
    bench.expect(Call::Commit(1));
    bench.answer(Err(full()));
    let error = request.await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "the disk is full");
    bench.expect(Call::Probe);
    assert_eq!(bench.health.trouble().unwrap().reason, "the disk is full");
    bench.answer(Err(full()));
    bench.expect(Call::Probe);
    bench.answer(Ok(()));
    while bench.health.trouble().is_some() {
        tokio::task::yield_now().await;
    }
    let mut registry = Registry::default();
    bench.ingest.figures().register(&mut registry);
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    // The probe as well.
    assert!(text.contains("\ncommit_failures_total 2\n"), "{text}");
    assert!(
        text.contains("\npublishes_total{result=\"store_failed\"} 1\n"),
        "{text}"
    );
    bench.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poisoned_store_is_not_tried_again() {
    let bench = Bench::start();
    let request = bench.submit();
    bench.expect(Call::Commit(1));
    bench.answer(Err(CommitError::Poisoned("a sync failed".into())));
    assert!(request.await.unwrap().is_err());
    while bench.health.trouble().is_none() {
        tokio::task::yield_now().await;
    }
    assert!(bench.health.trouble().unwrap().needs_restart);
    // No probe comes before the end.
    bench.stop();
}

/// Once a call for maintenance was lost when it shared a turn with requests whose commit failed: a rebuilt segment was
/// never listed, and the commits went on failing for want of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn maintenance_is_done_also_when_the_commit_beside_it_fails() {
    let bench = Bench::start();
    let first = bench.submit();
    bench.expect(Call::Commit(1));
    // Both wait while the first commit runs, so that they share the next turn.
    bench.ingest.maintenance()();
    let second = bench.submit();
    bench.queued(2).await;
    bench.answer(Ok(()));
    assert!(first.await.unwrap().is_ok());
    bench.expect(Call::Maintain);
    bench.answer(Ok(()));
    bench.expect(Call::Commit(1));
    bench.answer(Err(full()));
    assert!(second.await.unwrap().is_err());
    bench.expect(Call::Maintain);
    bench.answer(Ok(()));
    // The commit failed all the same.
    bench.expect(Call::Probe);
    assert!(bench.health.trouble().is_some());
    bench.answer(Ok(()));
    bench.stop();
}

/// Once maintenance that went well ended an outage: a writer that had nothing to do said "the store commits again" while no
/// commit could.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn maintenance_that_goes_well_does_not_end_an_outage() {
    let bench = Bench::start();
    let request = bench.submit();
    bench.expect(Call::Commit(1));
    bench.answer(Err(full()));
    assert!(request.await.unwrap().is_err());
    bench.ingest.maintenance()();
    bench.expect(Call::Maintain);
    bench.answer(Ok(()));
    bench.expect(Call::Probe);
    assert!(bench.health.trouble().is_some());
    bench.answer(Ok(()));
    bench.stop();
}
