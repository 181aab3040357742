//! Puts the load on the server and measures it.
//!
//! Closed loop: each connection sends its next request when the last one was answered. Open loop (`--rate`): requests
//! are due at fixed times whatever the server does, and a response time counts from when its request was due, so that
//! a slow server cannot hide by slowing the load down.

use super::{
    connection::Connection,
    source::Source,
    tally::{Answered, Tally},
};
use crate::{
    cli::Failure,
    client::{ClientError, Endpoint},
    limits::{CLIENT_REQUEST_TIMEOUT, MAX_CLIENT_CONNECTIONS},
};
use hdrhistogram::Histogram;
use indicatif::ProgressBar;
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use tokio::{sync::Semaphore, time::timeout};

/// Response times a connection keeps before it adds them to the shared histogram.
const KEPT_TIMES: usize = 4096;
/// The longest response time that is told apart from longer ones.
const LONGEST_TIME: Duration = Duration::from_secs(3600);
/// The pause between two looks at which requests have become due.
const PACE: Duration = Duration::from_micros(100);
/// Requests between two movements of the progress bar, for each connection.
const PROGRESS_STEP: u64 = 64;

/// How to put the load on.
pub(super) struct Load {
    pub(super) server: Endpoint,
    pub(super) connections: usize,
    /// Requests a second; `None` for a closed loop.
    pub(super) rate: Option<f64>,
    pub(super) requests: u64,
    pub(super) progress: ProgressBar,
}

/// What came of it.
pub(super) struct Measured {
    pub(super) tally: Tally,
    pub(super) duration: Duration,
    /// Response times in microseconds.
    pub(super) times: Histogram<u64>,
}

/// What the connections share.
struct Run {
    source: Source,
    start: Instant,
    pace: Option<Pace>,
    times: Mutex<Histogram<u64>>,
}

/// In an open loop: when requests are due.
struct Pace {
    rate: f64,
    due: Arc<Semaphore>,
}

pub(super) async fn run(load: Load, source: Source) -> Result<Measured, Failure> {
    let mut connections = Vec::with_capacity(load.connections);
    for _ in 0..load.connections {
        connections.push(Connection::open(&load.server).await?);
    }
    let times = response_times().map_err(Failure::Failed)?;
    let run = Arc::new(Run {
        source,
        start: Instant::now(),
        pace: load.rate.map(|rate| Pace {
            rate,
            due: Arc::new(Semaphore::new(0)),
        }),
        times: Mutex::new(times),
    });
    let is_over = Arc::new(AtomicBool::new(false));
    if let Some(pace) = &run.pace {
        let (due, rate, start) = (pace.due.clone(), pace.rate, run.start);
        let (requests, is_over) = (load.requests, is_over.clone());
        thread::spawn(move || release_due(&due, rate, start, requests, &is_over));
    }
    let workers: Vec<_> = connections
        .into_iter()
        .map(|connection| {
            let worker = Worker {
                run: run.clone(),
                server: load.server.clone(),
                progress: load.progress.clone(),
                tally: Tally::default(),
                times: Vec::with_capacity(KEPT_TIMES),
            };
            tokio::spawn(worker.work(connection))
        })
        .collect();
    let mut tally = Tally::default();
    for worker in workers {
        let of_worker = worker.await.map_err(|error| Failure::Failed(error.to_string()))?;
        tally.add(of_worker);
    }
    let duration = run.start.elapsed();
    is_over.store(true, Ordering::Relaxed);
    let times = run.times.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Ok(Measured {
        tally,
        duration,
        times,
    })
}

/// An empty histogram of response times in microseconds, exact to three digits; longer ones count as the longest.
fn response_times() -> Result<Histogram<u64>, String> {
    let longest = LONGEST_TIME.as_micros() as u64;
    Histogram::new_with_bounds(1, longest, 3).map_err(|error| error.to_string())
}

/// Lets requests go as they become due. A thread of its own: the runtime's timer has a grain of a millisecond, which
/// would show in the response times.
fn release_due(due: &Semaphore, rate: f64, start: Instant, requests: u64, is_over: &AtomicBool) {
    let mut released = 0;
    while released < requests && !is_over.load(Ordering::Relaxed) {
        let now_due = ((start.elapsed().as_secs_f64() * rate) as u64 + 1).min(requests);
        due.add_permits((now_due - released) as usize);
        released = now_due;
        thread::sleep(PACE);
    }
    // Every connection comes once more, to see that nothing is left.
    due.add_permits(MAX_CLIENT_CONNECTIONS);
}

struct Worker {
    run: Arc<Run>,
    server: Endpoint,
    progress: ProgressBar,
    tally: Tally,
    times: Vec<u64>,
}

impl Worker {
    async fn work(mut self, mut connection: Connection) -> Tally {
        let run = self.run.clone();
        let mut unshown = 0;
        loop {
            if let Some(pace) = &run.pace {
                match pace.due.acquire().await {
                    Ok(permit) => permit.forget(),
                    Err(_) => break,
                }
            }
            let Some(numbered) = run.source.next().await else {
                break;
            };
            let begin = match &run.pace {
                Some(pace) => run.start + Duration::from_secs_f64(numbered.number as f64 / pace.rate),
                None => Instant::now(),
            };
            let request = &*numbered.request;
            let exchange = timeout(CLIENT_REQUEST_TIMEOUT, connection.exchange(&request.bytes)).await;
            self.record(begin.elapsed());
            let is_usable = match exchange {
                Ok(Ok(answer)) => {
                    self.tally.count(request, Answered::read(&answer));
                    !answer.closes
                }
                Ok(Err(error)) => {
                    self.tally
                        .count(request, Err(format!("connection broken: {error}")));
                    false
                }
                Err(_) => {
                    self.tally.count(
                        request,
                        Err(format!("no answer within {} s", CLIENT_REQUEST_TIMEOUT.as_secs())),
                    );
                    false
                }
            };
            unshown += 1;
            if unshown == PROGRESS_STEP {
                self.progress.inc(unshown);
                unshown = 0;
            }
            if !is_usable {
                match self.reopen().await {
                    Ok(opened) => connection = opened,
                    Err(error) => {
                        self.tally.note(error.to_string());
                        break;
                    }
                }
            }
        }
        self.progress.inc(unshown);
        self.flush();
        self.tally
    }

    async fn reopen(&self) -> Result<Connection, ClientError> {
        Connection::open(&self.server).await
    }

    fn record(&mut self, time: Duration) {
        self.times
            .push(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
        if self.times.len() == KEPT_TIMES {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let mut times = self.run.times.lock().unwrap_or_else(PoisonError::into_inner);
        for time in self.times.drain(..) {
            times.saturating_record(time);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn response_times_are_kept_exact_to_three_digits() {
        let mut times = response_times().unwrap();
        for microseconds in [0, 7, 12_345, 98_765_432, u64::MAX] {
            times.saturating_record(microseconds);
        }
        let close = |found: u64, wanted: u64| found.abs_diff(wanted) <= wanted / 1000;
        assert_eq!(times.value_at_quantile(0.4), 7);
        assert!(close(times.value_at_quantile(0.6), 12_345));
        assert!(close(times.value_at_quantile(0.8), 98_765_432));
        assert!(close(times.max(), LONGEST_TIME.as_micros() as u64));
    }
}
