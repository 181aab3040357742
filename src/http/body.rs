//! Reads request bodies: bounded in bytes each, in bytes together, and in time.
//!
//! The room that a body takes is a permit, taken for the bytes that have arrived and held until the request's answer: who
//! announces much and sends little keeps nobody else out. A body that is there at once, which is the usual case, costs
//! one permit, one allocation and no timer.

use super::error::{Kind, Problem};
use crate::limits::{MAX_BODY_AHEAD_BYTES, MAX_BODY_BYTES, MAX_IN_FLIGHT_BODY_BYTES, ROOM_UNIT_BYTES};
use axum::body::{Body, HttpBody};
use bytes::Bytes;
use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The room for all bodies together. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct BodyRoom {
    units: Arc<Semaphore>,
}

/// How long reading a body may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// For the body to arrive, from the end of the head.
    pub(crate) read: Duration,
    /// For room to become free.
    pub(crate) room: Duration,
}

impl BodyRoom {
    /// Room for [`MAX_IN_FLIGHT_BODY_BYTES`].
    pub(crate) fn new() -> Self {
        Self {
            units: Arc::new(Semaphore::new(MAX_IN_FLIGHT_BODY_BYTES / ROOM_UNIT_BYTES)),
        }
    }

    /// Bytes that bodies hold now.
    pub(crate) fn used_bytes(&self) -> usize {
        MAX_IN_FLIGHT_BODY_BYTES - self.units.available_permits() * ROOM_UNIT_BYTES
    }

    /// Reads a body to its end; the permit is the room that it takes.
    pub(crate) async fn read(
        &self,
        body: Body,
        patience: Patience,
    ) -> Result<(Vec<u8>, OwnedSemaphorePermit), Problem> {
        let started = Instant::now();
        let hint = body.size_hint();
        let announced = usize::try_from(hint.lower()).unwrap_or(usize::MAX);
        if announced > MAX_BODY_BYTES {
            return Err(too_large());
        }
        let most = hint.exact().map_or(MAX_BODY_BYTES, |_| announced);
        let mut room: Option<OwnedSemaphorePermit> = None;
        let mut bytes = Vec::new();
        let mut data = Data { body, asked: false };
        while let Some(chunk) = data.next(started, patience.read).await? {
            let size = bytes.len() + chunk.len();
            if size > MAX_BODY_BYTES {
                return Err(too_large());
            }
            match &mut room {
                None => room = Some(self.acquire(units_of(size), patience.room).await?),
                Some(room) => {
                    let missing = units_of(size).saturating_sub(room.num_permits());
                    if missing > 0 {
                        room.merge(self.acquire(missing, patience.room).await?);
                    }
                }
            }
            if size > bytes.capacity() {
                // Twice as much each time, so that little is copied again, but no more than will come.
                let ahead = announced.min(MAX_BODY_AHEAD_BYTES);
                let target = (2 * bytes.capacity()).max(ahead).min(most).max(size);
                bytes.reserve_exact(target - bytes.len());
            }
            bytes.extend_from_slice(&chunk);
        }
        match room {
            Some(room) => Ok((bytes, room)),
            None => Ok((bytes, self.acquire(0, patience.room).await?)),
        }
    }

    async fn acquire(&self, units: usize, patience: Duration) -> Result<OwnedSemaphorePermit, Problem> {
        let units = units as u32;
        // The usual case takes no timer.
        if let Ok(permit) = self.units.clone().try_acquire_many_owned(units) {
            return Ok(permit);
        }
        match tokio::time::timeout(patience, self.units.clone().acquire_many_owned(units)).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(Problem::new(
                Kind::Overloaded,
                format!("the request bodies in work hold all of {MAX_IN_FLIGHT_BODY_BYTES} bytes"),
            )),
        }
    }
}

/// The data of a body, chunk by chunk.
struct Data {
    body: Body,
    asked: bool,
}

impl Data {
    /// The next chunk; `None` at the end.
    async fn next(&mut self, started: Instant, patience: Duration) -> Result<Option<Bytes>, Problem> {
        let chunk = match self.at_once().await {
            Some(chunk) => chunk,
            None => tokio::time::timeout_at((started + patience).into(), self.chunk())
                .await
                .map_err(|_| {
                    Problem::new(
                        Kind::BodyTooSlow,
                        format!("the body did not arrive within {} s", patience.as_secs_f64()),
                    )
                })?,
        };
        chunk
            .transpose()
            .map_err(|error| Problem::new(Kind::BrokenBody, format!("the body broke off: {error}")))
    }

    /// A chunk that needs no waiting for the network. The connection hands its buffer out only after the body has
    /// been asked for once, so the first look is followed by a second one, right after the connection had its turn.
    async fn at_once(&mut self) -> Option<Option<Result<Bytes, axum::Error>>> {
        poll_fn(|context| match self.poll_chunk(context) {
            Poll::Ready(chunk) => Poll::Ready(Some(chunk)),
            Poll::Pending if self.asked => Poll::Ready(None),
            Poll::Pending => {
                self.asked = true;
                context.waker().wake_by_ref();
                Poll::Pending
            }
        })
        .await
    }

    async fn chunk(&mut self) -> Option<Result<Bytes, axum::Error>> {
        poll_fn(|context| self.poll_chunk(context)).await
    }

    fn poll_chunk(
        &mut self,
        context: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<Bytes, axum::Error>>> {
        loop {
            match std::task::ready!(Pin::new(&mut self.body).poll_frame(context)) {
                // Trailers say nothing that is needed here.
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Poll::Ready(Some(Ok(data)));
                    }
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
    }
}

fn units_of(bytes: usize) -> usize {
    bytes.div_ceil(ROOM_UNIT_BYTES)
}

fn too_large() -> Problem {
    Problem::new(
        Kind::BodyTooLarge,
        format!("a request body may have at most {MAX_BODY_BYTES} bytes"),
    )
}
