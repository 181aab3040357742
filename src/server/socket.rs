//! The socket of a connection: gives up on a client that takes nothing of its answer, and knows whether something is
//! still to be written, and since when nothing is in work.

use crate::http::{Pressure, Progress};
use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is in work on a connection; clones see the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Work {
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    request: AtomicBool,
    answer: AtomicBool,
    began: Instant,
    /// When the last request ended, in milliseconds since the beginning.
    idle_since: AtomicU64,
}

impl Default for State {
    fn default() -> Self {
        Self {
            request: AtomicBool::default(),
            answer: AtomicBool::default(),
            began: Instant::now(),
            idle_since: AtomicU64::default(),
        }
    }
}

impl Work {
    /// Whether a request is with its handler, or an answer not yet with the client.
    pub(super) fn is_there(&self) -> bool {
        self.state.request.load(Ordering::Acquire) || self.state.answer.load(Ordering::Acquire)
    }

    /// For how long there is nothing in work; `None` when there is.
    pub(super) fn idle(&self) -> Option<Duration> {
        let since = Duration::from_millis(self.state.idle_since.load(Ordering::Acquire));
        (!self.is_there()).then(|| self.state.began.elapsed().saturating_sub(since))
    }

    /// A handler begins or ends.
    pub(super) fn set_request(&self, there: bool) {
        if !there {
            let now = self.state.began.elapsed().as_millis() as u64;
            self.state.idle_since.store(now, Ordering::Release);
        }
        self.state.request.store(there, Ordering::Release);
    }

    fn set_answer(&self, there: bool) {
        self.state.answer.store(there, Ordering::Release);
    }
}

/// A stream whose writes fail when nothing is taken for a while, which is shorter while other answers wait for room. A
/// write that is taken at once costs no timer.
pub(super) struct Socket<S> {
    stream: S,
    patience: Duration,
    pressure: Pressure,
    /// Since a write found no room.
    stalled: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// Since the first of the writes that found no room and were not followed by much that was taken.
    progress: Option<Progress>,
    work: Work,
}

impl<S> Socket<S> {
    pub(super) fn new(stream: S, patience: Duration, pressure: Pressure, work: Work) -> Self {
        Self {
            stream,
            patience,
            pressure,
            stalled: None,
            progress: None,
            work,
        }
    }

    /// The stream within.
    pub(super) fn stream(&self) -> &S {
        &self.stream
    }

    fn watch(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(result) = &written {
            if self.stalled.take().is_some() {
                self.work.set_answer(false);
            }
            if let (Some(progress), Ok(bytes)) = (&mut self.progress, result) {
                progress.add(*bytes);
            }
            return written;
        }
        if self.stalled.is_none() {
            self.work.set_answer(true);
            let now = Instant::now();
            // What an answer long ago did does not count.
            let progress = match self.progress {
                Some(progress) if progress.since() + self.patience > now => progress,
                _ => *self.progress.insert(Progress::new()),
            };
            let until = now + self.patience;
            self.stalled = Some(Box::pin(standstill(progress, until, self.pressure.clone())));
        }
        let over = match &mut self.stalled {
            Some(stalled) => stalled.as_mut().poll(context),
            None => Poll::Pending,
        };
        over.map(|()| {
            Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the client takes nothing of its answer",
            ))
        })
    }
}

/// Ends when the client has had its time, or when others wait for room and it does not move on.
async fn standstill(progress: Progress, until: Instant, pressure: Pressure) {
    let stalled = (progress.since() + pressure.stall()).min(until);
    tokio::time::sleep_until(stalled.into()).await;
    tokio::select! {
        () = pressure.raised() => {}
        () = tokio::time::sleep_until(until.into()) => {}
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Socket<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Socket<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.watch(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_write_that_nobody_takes_fails_after_a_while() {
        let (stream, _silent) = tokio::io::duplex(16);
        let work = Work::default();
        let mut socket = Socket::new(
            stream,
            Duration::from_millis(20),
            Pressure::new(LONG),
            work.clone(),
        );
        socket.write_all(&[0; 16]).await.expect("there is room");
        assert!(!work.is_there());
        let error = socket.write_all(&[0]).await.expect_err("there is no room");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(work.is_there());
    }

    #[tokio::test]
    async fn a_write_that_waited_and_was_taken_is_over() {
        let (stream, mut reader) = tokio::io::duplex(16);
        let work = Work::default();
        let mut socket = Socket::new(stream, LONG, Pressure::new(LONG), work.clone());
        let mut taken = [0; 64];
        let (written, read) = tokio::join!(socket.write_all(&[7; 64]), reader.read_exact(&mut taken));
        written.expect("taken");
        read.expect("all of it");
        assert!(!work.is_there());
    }
}
