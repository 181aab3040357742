//! Runs what blocks (reads of the store) on threads of its own, a bounded number at once.

use super::error::{Kind, Problem};
use crate::limits::{MAX_CONCURRENT_QUERIES, MAX_CONCURRENT_SEARCHES};
use std::{sync::Arc, time::Duration};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The turns of all queries.
#[derive(Debug)]
pub(crate) struct Queries {
    turns: Arc<Semaphore>,
    searches: Arc<Semaphore>,
    patience: Duration,
}

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
        }
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
                    "{MAX_CONCURRENT_SEARCHES} searches by source or time run already; none ended in time"
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
        tokio::task::spawn_blocking(move || (query(), turn))
            .await
            .map_err(|error| {
                tracing::error!(%error, "a query panicked");
                Problem::new(Kind::Internal, "the query failed")
            })
    }
}
