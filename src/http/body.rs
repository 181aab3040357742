//! Reads request bodies: bounded in bytes each, in bytes together, and in time.
//!
//! The room that a body takes is a permit, held until the request's answer. There are three shares, so that no kind of
//! client keeps the others out. A body that is there at once, which is the usual case, takes room of a share that no
//! slow client ever holds; it costs one permit, one allocation and no timer. One that arrives in parts takes room as
//! its bytes come: who announces much and sends little holds little. A large one takes room for all of it before it is
//! read: if many large ones took what there is piece by piece, none of them would get to its end. What a compressed one
//! becomes takes room of two further shares (`decompress`).

mod decompress;

use super::{
    error::{Kind, Problem},
    room::{Pressure, Progress, Share, units_of},
};
use crate::limits::{
    LARGE_BODIES_BYTES, LARGE_BODY_BYTES, LARGE_DECOMPRESSED_BYTES, MAX_BODY_AHEAD_BYTES, MAX_BODY_BYTES,
    PARTIAL_BODIES_BYTES, ROOM_UNIT_BYTES, SMALL_DECOMPRESSED_BYTES, WHOLE_BODIES_BYTES,
};
use axum::body::{Body, HttpBody};
use bytes::Bytes;
use std::{
    future::poll_fn,
    pin::Pin,
    task::Poll,
    time::{Duration, Instant},
};
use tokio::sync::OwnedSemaphorePermit;

/// The room for all bodies together. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct BodyRoom {
    whole: Share,
    partial: Share,
    large: Share,
    small_decompressed: Share,
    large_decompressed: Share,
    pressure: Pressure,
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
    /// Room for [`MAX_IN_FLIGHT_BODY_BYTES`](crate::limits::MAX_IN_FLIGHT_BODY_BYTES). While others wait for some, a
    /// body may not stand still for longer than `stall`.
    pub(crate) fn new(stall: Duration) -> Self {
        let pressure = Pressure::new(stall);
        // No client holds room of these, so none has to leave for it.
        let unheard = Pressure::new(stall);
        Self {
            whole: Share::new(WHOLE_BODIES_BYTES, &pressure),
            partial: Share::new(PARTIAL_BODIES_BYTES, &pressure),
            large: Share::new(LARGE_BODIES_BYTES, &pressure),
            small_decompressed: Share::new(SMALL_DECOMPRESSED_BYTES, &unheard),
            large_decompressed: Share::new(LARGE_DECOMPRESSED_BYTES, &unheard),
            pressure,
        }
    }

    /// Bytes that bodies hold now.
    pub(crate) fn used_bytes(&self) -> usize {
        [
            &self.whole,
            &self.partial,
            &self.large,
            &self.small_decompressed,
            &self.large_decompressed,
        ]
        .map(Share::used_bytes)
        .iter()
        .sum()
    }

    /// Reads a body to its end; the permit is the room that it takes.
    pub(crate) async fn read(
        &self,
        body: Body,
        patience: Patience,
    ) -> Result<(Vec<u8>, OwnedSemaphorePermit), Problem> {
        let hint = body.size_hint();
        let announced = usize::try_from(hint.lower()).unwrap_or(usize::MAX);
        if announced > MAX_BODY_BYTES {
            return Err(too_large());
        }
        let most = hint.exact().map_or(MAX_BODY_BYTES, |_| announced);
        let mut room = None;
        if announced > LARGE_BODY_BYTES {
            room = Some(take(&self.large, announced, patience).await?);
        }
        let mut bytes = Vec::new();
        let mut data = Data {
            body,
            asked: false,
            deadline: Instant::now() + patience.read,
            patience: patience.read,
            progress: Progress::new(),
        };
        while let Some(chunk) = data.next(room.as_ref().map(|_| &self.pressure)).await? {
            let size = bytes.len() + chunk.len();
            if size > MAX_BODY_BYTES {
                return Err(too_large());
            }
            match &mut room {
                None if hint.exact() == Some(size as u64) => {
                    room = Some(take(&self.whole, size, patience).await?);
                }
                None => room = Some(data.take(&self.partial, size, patience).await?),
                Some(room) if units_of(size) <= room.num_permits() => {}
                Some(room) if size <= LARGE_BODY_BYTES => {
                    let missing = size - room.num_permits() * ROOM_UNIT_BYTES;
                    room.merge(data.take(&self.partial, missing, patience).await?);
                }
                // It did not say how large it is.
                Some(_) => {
                    room = Some(data.take(&self.large, MAX_BODY_BYTES, patience).await?);
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
            Some(mut room) => {
                let surplus = room.num_permits().saturating_sub(units_of(bytes.len()));
                drop(room.split(surplus));
                Ok((bytes, room))
            }
            None => Ok((bytes, take(&self.whole, 0, patience).await?)),
        }
    }
}

async fn take(share: &Share, bytes: usize, patience: Patience) -> Result<OwnedSemaphorePermit, Problem> {
    share.take(bytes, patience.room).await.ok_or_else(|| {
        Problem::new(
            Kind::Overloaded,
            format!(
                "request bodies of this kind hold all of their {} bytes; none became free in time",
                share.bytes()
            ),
        )
    })
}

/// The data of a body, chunk by chunk.
struct Data {
    body: Body,
    asked: bool,
    deadline: Instant,
    /// What the deadline was made of.
    patience: Duration,
    progress: Progress,
}

impl Data {
    /// The next chunk; `None` at the end. With `pressure`, a body that stands still has to leave when others wait.
    async fn next(&mut self, pressure: Option<&Pressure>) -> Result<Option<Bytes>, Problem> {
        let chunk = match self.at_once().await {
            Some(chunk) => chunk,
            None => self.wait(pressure).await?,
        };
        if let Some(Ok(chunk)) = &chunk {
            self.progress.add(chunk.len());
        }
        chunk
            .transpose()
            .map_err(|error| Problem::new(Kind::BrokenBody, format!("the body broke off: {error}")))
    }

    /// Waits for room. It is not the client's fault that nothing moves meanwhile.
    async fn take(
        &mut self,
        share: &Share,
        bytes: usize,
        patience: Patience,
    ) -> Result<OwnedSemaphorePermit, Problem> {
        let began = Instant::now();
        let room = take(share, bytes, patience).await;
        self.progress.excuse(began.elapsed());
        room
    }

    /// Waits for the network.
    async fn wait(
        &mut self,
        pressure: Option<&Pressure>,
    ) -> Result<Option<Result<Bytes, axum::Error>>, Problem> {
        let deadline = self.deadline.into();
        if let Some(pressure) = pressure {
            let stalled = (self.progress.since() + pressure.stall()).min(self.deadline);
            if let Ok(chunk) = tokio::time::timeout_at(stalled.into(), self.chunk()).await {
                return Ok(chunk);
            }
            tokio::select! {
                biased;
                chunk = self.chunk() => return Ok(chunk),
                () = pressure.raised() => {
                    return Err(Problem::new(
                        Kind::Overloaded,
                        "the body did not go on for a while, and others waited for its room",
                    ));
                }
                () = tokio::time::sleep_until(deadline) => {}
            }
        } else if let Ok(chunk) = tokio::time::timeout_at(deadline, self.chunk()).await {
            return Ok(chunk);
        }
        Err(Problem::new(
            Kind::BodyTooSlow,
            format!("the body did not arrive within {} s", self.patience.as_secs_f64()),
        ))
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

fn too_large() -> Problem {
    Problem::new(
        Kind::BodyTooLarge,
        format!("a request body may have at most {MAX_BODY_BYTES} bytes"),
    )
}
