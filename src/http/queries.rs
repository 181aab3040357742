//! Runs what blocks (reads of the store) on threads of its own, a bounded number at once.

use super::error::{Kind, Problem};
use crate::limits::{MAX_CONCURRENT_QUERIES, MAX_CONCURRENT_SEARCHES};
use prometheus_client::{
    metrics::histogram::Histogram,
    registry::{Registry, Unit},
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The turns of all queries.
#[derive(Debug)]
pub(crate) struct Queries {
    turns: Arc<Semaphore>,
    searches: Arc<Semaphore>,
    patience: Duration,
    times: Histogram,
}

/// Upper edges of a query's time, in seconds; a page ends after one second, a slice of it may still be running.
const SECONDS: [f64; 12] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 5.0,
];

/// A query's turn.
#[derive(Debug)]
pub(crate) struct Turn(#[allow(dead_code, reason = "it only has to be dropped")] OwnedSemaphorePermit);

impl Queries {
    /// [`MAX_CONCURRENT_QUERIES`] turns; a query waits at most `patience` for one.
    pub(crate) fn new(patience: Duration) -> Self {
        Self {
            turns: Arc::new(Semaphore::new(MAX_CONCURRENT_QUERIES)),
            searches: Arc::new(Semaphore::new(MAX_CONCURRENT_SEARCHES)),
            patience,
            times: Histogram::new(SECONDS),
        }
    }

    /// Shows how long queries take in `registry`.
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "read_duration",
            "Time that a query took to read what it answers, once it had its turn",
            Unit::Seconds,
            self.times.clone(),
        );
    }

    /// Waits until there are few enough searches: queries that look at many more rows than they return. The others,
    /// which take little of their turn, do not wait behind all of them.
    pub(crate) async fn search(&self) -> Result<Turn, Problem> {
        let search = tokio::time::timeout(self.patience, Arc::clone(&self.searches).acquire_owned()).await;
        match search {
            Ok(Ok(search)) => Ok(Turn(search)),
            _ => Err(Problem::new(
                Kind::Overloaded,
                format!(
                    "{MAX_CONCURRENT_SEARCHES} searches by source, by time or with a key for some topics run already; none ended in time"
                ),
            )),
        }
    }

    /// Runs `query` when its turn comes. The turn lasts until the query ends, also when nobody waits for it any more.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        query: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Problem> {
        self.run_in_turn(query).await.map(|(result, _)| result)
    }

    /// The same, with the turn for what is left to do: it lasts until it is dropped.
    pub(crate) async fn run_in_turn<T: Send + 'static>(
        &self,
        query: impl FnOnce() -> T + Send + 'static,
    ) -> Result<(T, Turn), Problem> {
        let turn = tokio::time::timeout(self.patience, Arc::clone(&self.turns).acquire_owned()).await;
        let Ok(Ok(turn)) = turn else {
            return Err(Problem::new(
                Kind::Overloaded,
                format!("{MAX_CONCURRENT_QUERIES} queries run already; none ended in time"),
            ));
        };
        let turn = Turn(turn);
        let times = self.times.clone();
        let timed = move || {
            let started = Instant::now();
            let result = query();
            times.observe(started.elapsed().as_secs_f64());
            (result, turn)
        };
        super::beside(timed, "a query", "the query failed").await
    }
}
