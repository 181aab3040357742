//! Clients as they should be, which have to be served whatever others do.

use crate::harness::{Answer, Client, Event, Oracle};
use std::{
    io,
    net::SocketAddr,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Pause between two rounds of requests.
const PAUSE: Duration = Duration::from_millis(50);
/// New events a second of the producer. Few, so that an hour of them can be checked.
const PRODUCED: u32 = 250;
const PRODUCED_BATCH: u32 = 50;
/// How often a request is sent again when the connection was closed before its answer, as any HTTP client does.
const TRIES: u64 = 5;
/// Far longer than a request may wait for anything in the server.
const LONGEST: Duration = Duration::from_secs(20);

/// Two clients: one sends an event, reads and looks at the health, again and again; one produces events in batches.
#[derive(Default)]
pub(super) struct Polite {
    stopped: AtomicBool,
    counts: Mutex<Counts>,
}

/// What became of the first one's requests.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) served: u64,
    pub(super) refused: u64,
    pub(super) reconnected: u64,
    pub(super) slowest: Duration,
}

impl Polite {
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    pub(super) fn counts(&self) -> Counts {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Small requests, one after the other, until it is stopped.
    pub(super) fn ask(&self, address: SocketAddr, oracle: &Oracle) {
        let mut client = Client::new(address);
        for number in 0_u64.. {
            if self.is_stopped() {
                return;
            }
            let event = [Event::new("polite", &format!("{number}"))];
            self.request(&mut client, "publish", |client| {
                oracle
                    .publish(client, &event)
                    .ok_or_else(|| io::ErrorKind::ConnectionAborted.into())
            });
            for target in ["/events?limit=100", "/health"] {
                self.request(&mut client, target, |client| {
                    client.attempt("GET", target, &[], b"")
                });
            }
            thread::sleep(PAUSE);
        }
    }

    fn request(
        &self,
        client: &mut Client,
        what: &str,
        mut ask: impl FnMut(&mut Client) -> io::Result<Answer>,
    ) {
        let began = Instant::now();
        let mut reconnected = 0;
        let answer = loop {
            match ask(client) {
                Ok(answer) => break answer,
                Err(error) => {
                    reconnected += 1;
                    assert!(reconnected < TRIES, "{what}: {error}");
                    client.reconnect();
                }
            }
        };
        let took = began.elapsed();
        assert!(took < LONGEST, "{what} took {took:?}: {answer:?}");
        let mut counts = self.lock();
        counts.reconnected += reconnected;
        counts.slowest = counts.slowest.max(took);
        if answer.status == 200 {
            counts.served += 1;
        } else {
            answer.problem(503);
            assert!(answer.header("retry-after").is_some(), "{answer:?}");
            counts.refused += 1;
        }
    }

    /// New events at a steady pace, each batch until it is taken.
    pub(super) fn produce(&self, address: SocketAddr, oracle: &Oracle) {
        let mut client = Client::new(address);
        for batch in 0_u64.. {
            let events: Vec<_> = (0..PRODUCED_BATCH)
                .map(|number| Event::new("produced", &format!("{batch}-{number}")))
                .collect();
            loop {
                if self.is_stopped() {
                    return;
                }
                match oracle.publish(&mut client, &events) {
                    Some(answer) if answer.status == 200 => break,
                    Some(answer) => {
                        answer.problem(503);
                    }
                    None => client.reconnect(),
                }
                thread::sleep(PAUSE);
            }
            thread::sleep(Duration::from_secs(1) * PRODUCED_BATCH / PRODUCED);
        }
    }
}
