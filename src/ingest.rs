//! The bounded queue between the requests and the committer, and the channel on which each gets its answer.
//!
//! A request waits for a place for [`QUEUE_WAIT`] and is then refused, so nothing is dropped in silence and nothing
//! piles up. Places are counted in events; the bytes behind them are bounded where bodies are read. Handlers call
//! [`Ingest::submit`]; the committers alone hold the [`Queue`].

mod figures;
mod queue;

pub use figures::Figures;
pub use queue::{Queue, Turn};

use crate::{
    event::Batch,
    limits::QUEUE_WAIT,
    request::{self, Context},
    store::{BatchOutcome, Maintenance},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// The way into the queue. Cheap to clone.
#[derive(Clone)]
pub struct Ingest {
    entrance: Arc<Entrance>,
    places: Arc<Semaphore>,
    capacity: usize,
    bytes: Arc<AtomicUsize>,
    figures: Figures,
}

/// What all who put batches in share. When the last of them is gone, nobody is left who could ask for anything: the same
/// as being told to stop.
struct Entrance(Arc<queue::Shared>);

impl Drop for Entrance {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// A batch that waits for its commit.
pub struct Submission {
    /// The events.
    pub batch: Batch,
    /// The request that they came with, for lines in the log.
    pub request: Option<Context>,
    answer: oneshot::Sender<Result<BatchOutcome, SubmitError>>,
    place: OwnedSemaphorePermit,
    room: OwnedSemaphorePermit,
    bytes: QueuedBytes,
}

/// Counts a batch's bytes for as long as it is in the queue, whatever becomes of it.
struct QueuedBytes {
    all: Arc<AtomicUsize>,
    bytes: usize,
}

impl QueuedBytes {
    fn new(all: &Arc<AtomicUsize>, bytes: usize) -> Self {
        all.fetch_add(bytes, Ordering::Relaxed);
        Self {
            all: Arc::clone(all),
            bytes,
        }
    }
}

impl Drop for QueuedBytes {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Why a batch was not committed. All are safe to send again.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// More events than the queue can ever hold.
    #[error("the request has {events} events; at most {allowed} fit into the queue (QUEUE_MAX_SIZE)")]
    TooManyEvents {
        /// How many the request has.
        events: usize,
        /// How many the queue holds.
        allowed: usize,
    },
    /// No place became free in time.
    #[error("the queue is full")]
    QueueFull,
    /// The store did not commit; the text says why.
    #[error("{0}")]
    Store(String),
    /// The server is stopping.
    #[error("the server is stopping")]
    Stopping,
}

/// Makes a queue for `capacity` events.
pub fn queue(capacity: usize) -> (Ingest, Queue) {
    let figures = Figures::default();
    let queue = Queue::new(figures.clone());
    let ingest = Ingest {
        entrance: Arc::new(Entrance(Arc::clone(queue.shared()))),
        places: Arc::new(Semaphore::new(capacity)),
        capacity,
        bytes: Arc::default(),
        figures,
    };
    (ingest, queue)
}

impl Ingest {
    /// Waits for a place, then for the commit, and returns what became of the batch's events.
    ///
    /// `room` is what the batch's bytes take of the memory for request bodies. It is given back with the answer, not
    /// when the caller stops waiting: the batch of a client that went away is still there.
    pub async fn submit(
        &self,
        batch: Batch,
        room: OwnedSemaphorePermit,
    ) -> Result<BatchOutcome, SubmitError> {
        let events = batch.len();
        if events > self.capacity {
            return Err(SubmitError::TooManyEvents {
                events,
                allowed: self.capacity,
            });
        }
        let place = self.place(events as u32).await?;
        let bytes = QueuedBytes::new(&self.bytes, batch.bytes());
        let (answer, answered) = oneshot::channel();
        self.entrance.0.push(Submission {
            batch,
            request: request::current(Clone::clone),
            answer,
            place,
            room,
            bytes,
        })?;
        answered.await.unwrap_or(Err(SubmitError::Stopping))
    }

    /// How many events may be in the queue at once.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many events are in the queue now, those in the running commit included.
    pub fn queued_events(&self) -> usize {
        self.capacity - self.places.available_permits()
    }

    /// How many bytes of text these events have.
    pub fn queued_bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// What became of publishes and commits so far.
    pub fn figures(&self) -> &Figures {
        &self.figures
    }

    /// Lets the committer finish what is queued and end; batches submitted from now on are refused.
    pub fn stop(&self) {
        self.entrance.0.stop();
    }

    /// A handle with which a store asks for maintenance.
    pub fn maintenance(&self) -> Maintenance {
        let queue = Arc::clone(&self.entrance.0);
        Arc::new(move || queue.maintain())
    }

    async fn place(&self, events: u32) -> Result<OwnedSemaphorePermit, SubmitError> {
        // The usual case takes no timer.
        if let Ok(place) = self.places.clone().try_acquire_many_owned(events) {
            return Ok(place);
        }
        let started = Instant::now();
        let place = tokio::time::timeout(QUEUE_WAIT, self.places.clone().acquire_many_owned(events)).await;
        self.figures.waited(started.elapsed());
        place
            .map_err(|_| {
                self.figures.queue_full();
                SubmitError::QueueFull
            })?
            .map_err(|_| SubmitError::Stopping)
    }
}

impl Submission {
    /// Answers the request and frees its place.
    pub fn answer(self, outcome: Result<BatchOutcome, SubmitError>) {
        // First, so that who has the answer finds the place free.
        drop((self.batch, self.place, self.room, self.bytes));
        // A client that went away does not hear it; its events are stored all the same.
        let _ = self.answer.send(outcome);
    }
}
