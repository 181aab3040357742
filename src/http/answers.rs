//! Answers that may be large: bounded in bytes together, until the client has them.
//!
//! The room that an answer takes goes with its bytes through the connection, and comes back when they are sent or the
//! connection ends. Who does not read its answers cannot fill the memory with them; and as large answers have a share
//! of their own, it cannot keep small ones from others either.

use super::{
    codings::Accepts,
    error::{Kind, Problem},
    queries::Turn,
    room::{Pressure, Share, units_of},
};
use crate::{
    compression::Coding,
    limits::{ANSWER_WAIT, LARGE_ANSWER_BYTES, LARGE_ANSWERS_BYTES, SMALL_ANSWERS_BYTES},
};
use axum::{
    body::Body,
    http::{HeaderValue, header},
    response::Response,
};
use bytes::Bytes;
use serde::Serialize;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;

/// More than an entry of a list takes beside names and payload: the fields' names, numbers and times.
pub(crate) const ENTRY_BYTES: usize = 256;
/// The room for all answers together. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct AnswerRoom {
    small: Share,
    large: Share,
    pressure: Pressure,
    patience: Duration,
}

/// Room for one answer that is about to be made.
pub(crate) struct Reservation(OwnedSemaphorePermit);

/// An answer that a query has made, compressed if its client wants that.
pub(crate) struct Made {
    bytes: Vec<u8>,
    coding: Option<Coding>,
}

impl Made {
    /// As the client accepts it. Compressing takes a while, so this is for a thread of its own.
    pub(crate) fn new(bytes: Vec<u8>, accepts: Accepts) -> Self {
        match accepts.encode(&bytes) {
            Some((coding, bytes)) => Self {
                bytes,
                coding: Some(coding),
            },
            None => Self::plain(bytes),
        }
    }

    /// These bytes.
    pub(crate) fn plain(bytes: Vec<u8>) -> Self {
        Self { bytes, coding: None }
    }

    /// An answer that needs no room, because it is never large.
    pub(crate) fn small(self) -> Response {
        coded(Response::new(Body::from(self.bytes)), self.coding)
    }
}

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
    /// Room for [`MAX_IN_FLIGHT_ANSWER_BYTES`](crate::limits::MAX_IN_FLIGHT_ANSWER_BYTES). A reservation waits at most
    /// `patience`; while it does, no answer may stand still for longer than `stall`.
    pub(crate) fn new(patience: Duration, stall: Duration) -> Self {
        let pressure = Pressure::new(stall);
        Self {
            small: Share::new(SMALL_ANSWERS_BYTES, &pressure),
            large: Share::new(LARGE_ANSWERS_BYTES, &pressure),
            pressure,
            patience,
        }
    }

    /// Bytes that answers hold now.
    pub(crate) fn used_bytes(&self) -> usize {
        self.small.used_bytes() + self.large.used_bytes()
    }

    /// Tells that an answer waits for room.
    pub(crate) fn pressure(&self) -> &Pressure {
        &self.pressure
    }

    /// Waits for room for an answer of at most `bytes` that cannot be refused once it is made.
    pub(crate) async fn reserve(&self, bytes: usize) -> Result<Reservation, Problem> {
        Ok(Reservation(self.take(bytes, self.patience).await?))
    }

    /// Finds room for an answer that a query has made. Its turn lasts until then, so that those which wait are few, and
    /// they do not wait for long, so that they keep no other query from its turn.
    pub(crate) async fn hold(&self, made: Made, turn: Turn) -> Result<Response, Problem> {
        let room = self.take(made.bytes.capacity(), ANSWER_WAIT).await?;
        drop(turn);
        Ok(coded(held(made.bytes, room), made.coding))
    }

    async fn take(&self, bytes: usize, patience: Duration) -> Result<OwnedSemaphorePermit, Problem> {
        let share = if bytes > LARGE_ANSWER_BYTES {
            &self.large
        } else {
            &self.small
        };
        share.take(bytes, patience).await.ok_or_else(|| {
            Problem::new(
                Kind::Overloaded,
                format!(
                    "answers of this size that were not read yet hold all of their {} bytes; ask for less, or later",
                    share.bytes()
                ),
            )
        })
    }
}

impl Reservation {
    /// An answer of JSON, of about `expected` bytes; what it does not need of the room is given back at once.
    pub(crate) fn json<T: Serialize>(self, body: &T, expected: usize) -> Result<Response, Problem> {
        let Self(mut room) = self;
        let bytes = json(body, expected)?;
        let surplus = room.num_permits().saturating_sub(units_of(bytes.capacity()));
        drop(room.split(surplus));
        Ok(held(bytes, room))
    }
}

/// The bytes of an answer of JSON, about `expected` of them.
pub(crate) fn json<T: Serialize>(body: &T, expected: usize) -> Result<Vec<u8>, Problem> {
    let mut bytes = Vec::with_capacity(expected);
    serde_json::to_writer(&mut bytes, body).map_err(|error| super::cannot_write(&error))?;
    Ok(bytes)
}

fn held(bytes: Vec<u8>, room: OwnedSemaphorePermit) -> Response {
    super::json_of(Body::from(Bytes::from_owner(Held { bytes, _room: room })))
}

fn coded(mut response: Response, coding: Option<Coding>) -> Response {
    if let Some(coding) = coding {
        response
            .headers_mut()
            .insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::ROOM_UNIT_BYTES;
    use axum::response::IntoResponse;

    #[tokio::test]
    async fn an_answer_holds_its_room_until_it_is_gone() {
        let soon = Duration::from_millis(20);
        let room = AnswerRoom::new(soon, soon);
        let response = room
            .reserve(LARGE_ANSWERS_BYTES)
            .await
            .and_then(|reserved| reserved.json(&"x".repeat(3 * ROOM_UNIT_BYTES), 3 * ROOM_UNIT_BYTES + 2))
            .unwrap_or_else(|problem| panic!("{problem:?}"));
        assert_eq!(room.used_bytes(), 4 * ROOM_UNIT_BYTES, "the rest is given back");
        let refused = room.reserve(LARGE_ANSWERS_BYTES).await.map(|_| ());
        let problem = refused.expect_err("there is not so much room");
        assert_eq!(problem.into_response().status(), 503);
        assert!(
            room.reserve(LARGE_ANSWER_BYTES).await.is_ok(),
            "for a small one there is"
        );
        drop(response);
        assert_eq!(room.used_bytes(), 0);
    }
}
