//! A bounded set of read-only connections, opened when they are first needed.

use super::{failure, paths::Paths, schema};
use crate::{limits, store::ReadError};
use rusqlite::Connection;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The connections of one store.
#[derive(Debug, Default)]
pub(super) struct Connections {
    state: Mutex<State>,
    returned: Condvar,
}

#[derive(Debug, Default)]
struct State {
    idle: Vec<Connection>,
    lent: usize,
}

/// One of the places, given back when it is dropped.
struct Place<'a> {
    connections: &'a Connections,
    connection: Option<Connection>,
}

impl Connections {
    /// Runs `work` with a connection to the store; waits a bounded time for one.
    pub(super) fn with<T>(
        &self,
        paths: &Paths,
        work: impl FnOnce(&Connection) -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        let mut place = self.take_place()?;
        let connection = match place.connection.take() {
            Some(connection) => connection,
            None => schema::connect_reader(paths).map_err(|error| failure::read(paths, &error))?,
        };
        work(place.connection.insert(connection))
    }

    fn take_place(&self) -> Result<Place<'_>, ReadError> {
        let (mut state, _) = self
            .returned
            .wait_timeout_while(self.state(), limits::QUERY_WAIT, |state| {
                state.lent >= limits::MAX_CONCURRENT_QUERIES
            })
            .unwrap_or_else(PoisonError::into_inner);
        if state.lent >= limits::MAX_CONCURRENT_QUERIES {
            return Err(ReadError::Failed(format!(
                "{} queries were running for {} s; ask again",
                limits::MAX_CONCURRENT_QUERIES,
                limits::QUERY_WAIT.as_secs()
            )));
        }
        state.lent += 1;
        Ok(Place {
            connections: self,
            connection: state.idle.pop(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.connections.state();
        state.lent -= 1;
        state.idle.extend(self.connection.take());
        drop(state);
        self.connections.returned.notify_one();
    }
}
