//! Clients as they are in the field: single events and batches, new ones and ones sent before, small and large, and
//! readers beside them.

use super::{Client, Event, Oracle, StoreKind, oracle::stored_seqs};
use serde_json::Value;
use std::{
    net::SocketAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

/// What clients did.
#[derive(Debug, Default)]
pub(crate) struct Load {
    stop: AtomicBool,
    /// Tells the events of one load from those of another in the same store.
    pub(crate) seed: u64,
    /// Answers with 503.
    pub(crate) refused: AtomicU64,
    /// Events that readers were given.
    pub(crate) read: AtomicU64,
    kind: StoreKind,
    /// Whether a 503 leaves open what became of the events, whatever the kind of store.
    leaves_doubts: bool,
    /// What each reader that has ended was given, in order.
    followed: Mutex<Vec<Vec<u64>>>,
}

/// See [`Load::running`].
pub(crate) struct Running<'a>(&'a Load);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

impl Load {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            seed,
            ..Self::default()
        }
    }

    /// On a store of this kind.
    pub(crate) fn on(kind: StoreKind, seed: u64) -> Self {
        Self {
            kind,
            ..Self::new(seed)
        }
    }

    /// The same, while the store is away for longer than an instance asks what became of a commit.
    pub(crate) fn leaving_doubts(self) -> Self {
        Self {
            leaves_doubts: true,
            ..self
        }
    }

    /// The clients end after their current request.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Stops the clients when it is dropped, also by a failed check: whoever waits for them would hide it.
    pub(crate) fn running(&self) -> Running<'_> {
        Running(self)
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Publishes until the server goes away or the load is stopped. First what earlier writers got no answer for.
    pub(crate) fn write(&self, address: SocketAddr, oracle: &Oracle, writer: u64) {
        let mut random = fastrand::Rng::with_seed(self.seed << 16 | writer);
        let mut client = Client::new(address);
        let mut earlier: Vec<Event> = Vec::new();
        for request in 0_u64.. {
            if self.stopped() {
                return;
            }
            let events = oracle
                .take_in_doubt()
                .unwrap_or_else(|| self.compose(&mut random, &earlier, writer, request));
            match oracle.publish(&mut client, &events) {
                None => return,
                Some(answer) if answer.status == 503 => {
                    answer.problem(503);
                    self.refused.fetch_add(1, Ordering::Relaxed);
                    match self.leaves_doubts {
                        true => oracle.doubt(events),
                        false => oracle.refused(events),
                    }
                    std::thread::sleep(Duration::from_millis(10));
                    // The server asks to be left alone for a moment, or is about to end.
                    client = Client::new(address);
                }
                Some(answer) => {
                    answer.ok();
                    earlier.extend(events.into_iter().take(8));
                    if earlier.len() > 512 {
                        earlier.drain(..256);
                    }
                }
            }
        }
    }

    fn compose(
        &self,
        random: &mut fastrand::Rng,
        earlier: &[Event],
        writer: u64,
        request: u64,
    ) -> Vec<Event> {
        let count = match random.u32(0..100) {
            0..50 => 1,
            50..97 => random.u64(2..60),
            _ => random.u64(200..500),
        };
        let mut events: Vec<_> = (0..count)
            .map(|number| {
                let id = format!("{}-{writer}-{request}-{number}", self.seed);
                let event = Event::new(&format!("topic-{}", random.u32(0..20)), &id);
                if random.u32(0..40) == 0 {
                    let text = "x".repeat(random.usize(0..6000));
                    event.with_payload(&format!(r#"{{"id":"{id}","text":"{text}"}}"#))
                } else {
                    event
                }
            })
            .collect();
        if !earlier.is_empty() {
            for _ in 0..random.u64(0..=count) {
                let again = earlier[random.usize(0..earlier.len())].clone();
                let place = random.usize(0..=events.len());
                // Sometimes with another payload, which is a conflict: what came first stays.
                let again = if random.u32(0..50) == 0 {
                    again.with_payload(r#"{"another":true}"#)
                } else {
                    again
                };
                events.insert(place, again);
            }
        }
        events
    }

    /// Follows the log from its beginning until the server goes away or the load is stopped; looks at counters, too.
    pub(crate) fn read(&self, address: SocketAddr) {
        self.read_at(&[address]);
    }

    /// The same, page by page from another one of these instances.
    pub(crate) fn read_at(&self, instances: &[SocketAddr]) {
        let mut seqs = Vec::new();
        self.follow(instances, &mut seqs);
        self.followed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(seqs);
    }

    fn follow(&self, instances: &[SocketAddr], seqs: &mut Vec<u64>) {
        let mut clients: Vec<Client> = instances.iter().map(|address| Client::new(*address)).collect();
        let mut cursor = String::new();
        for turn in 0.. {
            if self.stopped() {
                return;
            }
            let client = &mut clients[turn % instances.len()];
            let target = format!("/events?order=asc&limit=200{cursor}");
            let Ok(answer) = client.attempt("GET", &target, &[], b"") else {
                return;
            };
            if answer.status == 503 {
                std::thread::sleep(Duration::from_millis(10));
                client.reconnect();
                continue;
            }
            let page = answer.ok();
            for event in page["events"].as_array().expect("events") {
                let last = seqs.last().copied().unwrap_or_default();
                let seq = event["seq"].as_u64().expect("a seq");
                assert!(
                    self.kind.allows(last, seq),
                    "a reader must not skip or repeat: {seq} after {last}"
                );
                seqs.push(seq);
                self.read.fetch_add(1, Ordering::Relaxed);
            }
            cursor = format!("&cursor={}&wait=1", page["next"].as_str().expect("next"));
            if seqs.len().is_multiple_of(7) {
                for target in ["/stats", "/topics", "/health", "/metrics"] {
                    let Ok(answer) = client.attempt("GET", target, &[], b"") else {
                        return;
                    };
                    if target == "/stats" && answer.status == 200 {
                        counters_add_up(&answer.json());
                    }
                }
            }
        }
    }

    /// Checks that every reader was given all that the store has, up to where it came: nothing that it passed came later.
    /// Returns how many events each was given.
    #[track_caller]
    pub(crate) fn check_readers(&self, client: &mut Client) -> Vec<usize> {
        let stored = stored_seqs(client);
        let followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        for (reader, seqs) in followed.iter().enumerate() {
            let different = seqs.iter().zip(&stored).find(|(read, stored)| read != stored);
            assert!(
                different.is_none() && seqs.len() <= stored.len(),
                "reader {reader} was given {} of {} events; it saw and should have seen {different:?}",
                seqs.len(),
                stored.len()
            );
        }
        followed.iter().map(Vec::len).collect()
    }
}

fn counters_add_up(stats: &Value) {
    let number = |name: &str| {
        stats[name]
            .as_u64()
            .unwrap_or_else(|| panic!("{name} in {stats}"))
    };
    assert_eq!(
        number("received"),
        number("unique_processed") + number("duplicate_dropped"),
        "{stats}"
    );
}
