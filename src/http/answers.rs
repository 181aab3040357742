//! Answers that may be large: bounded in bytes together, from before they are made until the client has them.
//!
//! The room that an answer takes goes with its bytes through the connection, and comes back when they are sent or the
//! connection ends. Who does not read its answers cannot fill the memory with them.

use super::error::{Kind, Problem};
use crate::limits::{
    MAX_EVENT_BYTES, MAX_IN_FLIGHT_ANSWER_BYTES, MAX_NAME_CHARS, MAX_PAGE_BYTES, ROOM_UNIT_BYTES,
};
use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde::Serialize;
use std::{sync::Arc, time::Duration};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The most bytes that a topic, event id or source takes in JSON: six for an escaped character, and the quotes.
pub(crate) const NAME_BYTES: usize = MAX_NAME_CHARS * 6 + 2;
/// More than an entry of a list takes beside names and payload: the fields' names, numbers and times.
pub(crate) const ENTRY_BYTES: usize = 256;
/// The most bytes of an answer with one event.
pub(crate) const EVENT_ANSWER_BYTES: usize = MAX_EVENT_BYTES + 3 * NAME_BYTES + ENTRY_BYTES;

/// The most bytes of a page of at most `limit` events: it ends with the event that reaches its bound.
pub(crate) fn page_bytes(limit: usize) -> usize {
    let payloads = (MAX_PAGE_BYTES + MAX_EVENT_BYTES).min(limit * MAX_EVENT_BYTES);
    payloads + limit * (3 * NAME_BYTES + ENTRY_BYTES) + ENTRY_BYTES
}

/// The room for all answers together. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct AnswerRoom {
    units: Arc<Semaphore>,
    patience: Duration,
}

/// Room for one answer that is about to be made.
pub(crate) struct Reservation(OwnedSemaphorePermit);

/// The bytes of an answer with their room.
struct Held {
    bytes: Vec<u8>,
    _room: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl AnswerRoom {
    /// Room for [`MAX_IN_FLIGHT_ANSWER_BYTES`]; an answer waits at most `patience` for some.
    pub(crate) fn new(patience: Duration) -> Self {
        Self {
            units: Arc::new(Semaphore::new(MAX_IN_FLIGHT_ANSWER_BYTES / ROOM_UNIT_BYTES)),
            patience,
        }
    }

    /// Bytes that answers hold now.
    pub(crate) fn used_bytes(&self) -> usize {
        MAX_IN_FLIGHT_ANSWER_BYTES - self.units.available_permits() * ROOM_UNIT_BYTES
    }

    /// Waits for room for an answer of at most `bytes`.
    pub(crate) async fn reserve(&self, bytes: usize) -> Result<Reservation, Problem> {
        let units = units_of(bytes) as u32;
        // The usual case takes no timer.
        if let Ok(room) = Arc::clone(&self.units).try_acquire_many_owned(units) {
            return Ok(Reservation(room));
        }
        match tokio::time::timeout(self.patience, Arc::clone(&self.units).acquire_many_owned(units)).await {
            Ok(Ok(room)) => Ok(Reservation(room)),
            _ => Err(Problem::new(
                Kind::Overloaded,
                format!("answers that were not read yet hold all of {MAX_IN_FLIGHT_ANSWER_BYTES} bytes"),
            )),
        }
    }
}

impl Reservation {
    /// An answer of JSON, of about `expected` bytes; what it does not need of the room is given back at once.
    pub(crate) fn json<T: Serialize>(self, body: &T, expected: usize) -> Response {
        let Self(mut room) = self;
        let mut bytes = Vec::with_capacity(expected);
        if let Err(error) = serde_json::to_writer(&mut bytes, body) {
            return super::cannot_write(&error).into_response();
        }
        let surplus = room.num_permits().saturating_sub(units_of(bytes.capacity()));
        drop(room.split(surplus));
        super::json_of(Body::from(Bytes::from_owner(Held { bytes, _room: room })))
    }
}

fn units_of(bytes: usize) -> usize {
    bytes.div_ceil(ROOM_UNIT_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::MAX_PAGE_LIMIT;

    #[tokio::test]
    async fn an_answer_holds_its_room_until_it_is_gone() {
        let room = AnswerRoom::new(Duration::from_millis(20));
        let response = room
            .reserve(MAX_IN_FLIGHT_ANSWER_BYTES)
            .await
            .unwrap_or_else(|problem| panic!("{problem:?}"))
            .json(&"x".repeat(3 * ROOM_UNIT_BYTES), 3 * ROOM_UNIT_BYTES + 2);
        assert_eq!(room.used_bytes(), 4 * ROOM_UNIT_BYTES, "the rest is given back");
        let refused = room.reserve(MAX_IN_FLIGHT_ANSWER_BYTES).await.map(|_| ());
        let problem = refused.expect_err("there is not so much room");
        assert_eq!(problem.into_response().status(), 503);
        drop(response);
        assert_eq!(room.used_bytes(), 0);
    }

    #[test]
    fn several_of_the_largest_pages_fit_at_once() {
        assert!(8 * page_bytes(MAX_PAGE_LIMIT) < MAX_IN_FLIGHT_ANSWER_BYTES);
    }
}
