//! Runs what blocks (reads of the store) on threads of its own, a bounded number at once.

use super::error::{Kind, Problem};
use crate::limits::MAX_CONCURRENT_QUERIES;
use std::{sync::Arc, time::Duration};
use tokio::sync::Semaphore;

/// The turns of all queries.
#[derive(Debug)]
pub(crate) struct Queries {
    turns: Arc<Semaphore>,
    patience: Duration,
}

impl Queries {
    /// [`MAX_CONCURRENT_QUERIES`] turns; a query waits at most `patience` for one.
    pub(crate) fn new(patience: Duration) -> Self {
        Self {
            turns: Arc::new(Semaphore::new(MAX_CONCURRENT_QUERIES)),
            patience,
        }
    }

    /// Runs `query` when its turn comes. The turn lasts until the query ends, also when nobody waits for it any more.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        query: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Problem> {
        let turn = tokio::time::timeout(self.patience, Arc::clone(&self.turns).acquire_owned()).await;
        let Ok(Ok(turn)) = turn else {
            return Err(Problem::new(
                Kind::Overloaded,
                format!("{MAX_CONCURRENT_QUERIES} queries run already; none ended in time"),
            ));
        };
        tokio::task::spawn_blocking(move || {
            let _turn = turn;
            query()
        })
        .await
        .map_err(|error| {
            tracing::error!(%error, "a query panicked");
            Problem::new(Kind::Internal, "the query failed")
        })
    }
}
