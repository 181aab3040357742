//! Hands the requests of a workload to the connections, in order: made ahead when they fit into memory, otherwise by
//! a thread while the load runs.

use super::workload::{Request, Requests};
use crate::limits::BENCH_READY_REQUESTS;
use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};
use tokio::sync::{Mutex, mpsc};

/// Where connections get their requests.
pub(super) enum Source {
    /// All are there.
    Ahead {
        requests: Vec<Request>,
        next: AtomicUsize,
    },
    /// They are made as they are needed.
    Streamed(Mutex<Stream>),
}

pub(super) struct Stream {
    requests: mpsc::Receiver<Request>,
    next: usize,
}

/// A request with its place in the order.
pub(super) struct Numbered<'a> {
    pub(super) number: usize,
    pub(super) request: Given<'a>,
}

pub(super) enum Given<'a> {
    Borrowed(&'a Request),
    Owned(Request),
}

impl Source {
    pub(super) fn ahead(requests: Requests) -> Self {
        Self::Ahead {
            requests: requests.collect(),
            next: AtomicUsize::new(0),
        }
    }

    pub(super) fn streamed(requests: Requests) -> Self {
        let (sender, receiver) = mpsc::channel(BENCH_READY_REQUESTS);
        thread::spawn(move || {
            for request in requests {
                // Nobody takes requests any more: the run has ended.
                if sender.blocking_send(request).is_err() {
                    break;
                }
            }
        });
        Self::Streamed(Mutex::new(Stream {
            requests: receiver,
            next: 0,
        }))
    }

    /// The next request; `None` when all were handed out.
    pub(super) async fn next(&self) -> Option<Numbered<'_>> {
        match self {
            Self::Ahead { requests, next } => {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let request = Given::Borrowed(requests.get(number)?);
                Some(Numbered { number, request })
            }
            Self::Streamed(stream) => {
                let mut stream = stream.lock().await;
                let request = Given::Owned(stream.requests.recv().await?);
                let number = stream.next;
                stream.next += 1;
                Some(Numbered { number, request })
            }
        }
    }
}

impl std::ops::Deref for Given<'_> {
    type Target = Request;

    fn deref(&self) -> &Request {
        match self {
            Self::Borrowed(request) => request,
            Self::Owned(request) => request,
        }
    }
}
