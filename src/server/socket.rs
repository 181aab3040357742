//! The socket of a connection: gives up on a client that takes nothing of its answer, and knows whether something is
//! still to be written.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};

/// What is in work on a connection; clones see the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Work {
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    request: AtomicBool,
    answer: AtomicBool,
}

impl Work {
    /// Whether a request is with its handler, or an answer not yet with the client.
    pub(super) fn is_there(&self) -> bool {
        self.state.request.load(Ordering::Acquire) || self.state.answer.load(Ordering::Acquire)
    }

    /// A handler begins or ends.
    pub(super) fn set_request(&self, there: bool) {
        self.state.request.store(there, Ordering::Release);
    }

    fn set_answer(&self, there: bool) {
        self.state.answer.store(there, Ordering::Release);
    }
}

/// A stream whose writes fail when nothing is taken for a while. A write that is taken at once costs no timer.
pub(super) struct Socket<S> {
    stream: S,
    patience: Duration,
    /// Since a write found no room.
    stalled: Option<Pin<Box<Sleep>>>,
    work: Work,
}

impl<S> Socket<S> {
    pub(super) fn new(stream: S, patience: Duration, work: Work) -> Self {
        Self {
            stream,
            patience,
            stalled: None,
            work,
        }
    }

    /// The stream within.
    pub(super) fn into_inner(self) -> S {
        self.stream
    }

    fn watch(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            if self.stalled.take().is_some() {
                self.work.set_answer(false);
            }
            return written;
        }
        let patience = self.patience;
        if self.stalled.is_none() {
            self.work.set_answer(true);
        }
        let stalled = self
            .stalled
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        stalled.as_mut().poll(context).map(|()| {
            Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the client takes nothing of its answer",
            ))
        })
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

    #[tokio::test]
    async fn a_write_that_nobody_takes_fails_after_a_while() {
        let (stream, _silent) = tokio::io::duplex(16);
        let work = Work::default();
        let mut socket = Socket::new(stream, Duration::from_millis(20), work.clone());
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
        let mut socket = Socket::new(stream, Duration::from_secs(60), work.clone());
        let mut taken = [0; 64];
        let (written, read) = tokio::join!(socket.write_all(&[7; 64]), reader.read_exact(&mut taken));
        written.expect("taken");
        read.expect("all of it");
        assert!(!work.is_there());
    }
}
