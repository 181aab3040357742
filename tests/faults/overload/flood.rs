//! More load than the server can take: requests made beforehand, each sent when it is due, answered or not.

use super::{
    crowd::{Crowd, PAUSE},
    wire::{Answer, Connection},
};
use crate::harness::{Event, Oracle};
use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::{
    sync::mpsc,
    time::{sleep, sleep_until},
};

/// Requests of all sizes, in the order in which they are sent, again and again: their events are new once.
#[derive(Clone)]
pub(super) struct Flood {
    requests: Arc<Vec<Prepared>>,
    counts: Arc<Counts>,
}

struct Prepared {
    bytes: Vec<u8>,
    events: Vec<Event>,
    sent: AtomicU64,
    acknowledged: AtomicU64,
    accepted: AtomicU64,
}

/// What became of the requests.
#[derive(Default)]
pub(super) struct Counts {
    /// Sent, in whole or in part.
    pub(super) sent: AtomicU64,
    /// Due while nobody was there to send them, because the server took nothing.
    pub(super) held_up: AtomicU64,
    /// Answered with a 200.
    pub(super) served: AtomicU64,
    /// Answered with a 503.
    pub(super) refused: AtomicU64,
}

/// In the largest body and in one with the most events.
const LARGEST_BODY: usize = 16 << 20;
const MOST_EVENTS: usize = 10_000;
/// A request that could not be sent for so long is given up.
const TOO_LATE: Duration = Duration::from_secs(1);

impl Flood {
    pub(super) fn prepare() -> Self {
        Self {
            requests: Arc::new((0..400).map(Prepared::new).collect()),
            counts: Arc::default(),
        }
    }

    pub(super) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// How many requests a second are answered when so many clients wait for each answer.
    pub(super) fn capacity(&self, address: SocketAddr, clients: usize, time: Duration) -> f64 {
        let before = self.counts.served.load(Relaxed);
        let began = Instant::now();
        let mut crowd = Crowd::new();
        for client in 0..clients {
            let flood = self.clone();
            crowd.add(async move {
                let mut connection = Connection::open(address).await.expect("a connection");
                for number in (client..).step_by(clients) {
                    if began.elapsed() > time {
                        return;
                    }
                    let request = flood.send(number);
                    connection.sender.send(&request.bytes).await.expect("sent");
                    flood.judge(request, &connection.receiver.answer().await.expect("an answer"));
                }
            });
        }
        crowd.ended();
        (self.counts.served.load(Relaxed) - before) as f64 / began.elapsed().as_secs_f64()
    }

    /// Adds clients that together send `rate` requests a second and wait for no answer.
    pub(super) fn begin(&self, crowd: &mut Crowd, address: SocketAddr, clients: usize, rate: f64) {
        let began = Instant::now();
        for client in 0..clients {
            let flood = self.clone();
            crowd.add(async move {
                let mut schedule = Schedule {
                    began,
                    pause: 1.0 / rate,
                    number: client,
                    step: clients,
                };
                loop {
                    // It ends with the connection, and what was not answered on it is in doubt.
                    if flood.send_when_due(address, &mut schedule).await.is_err() {
                        sleep(PAUSE).await;
                    }
                }
            });
        }
    }

    /// Sends what is due on one connection, until the server closes it.
    async fn send_when_due(&self, address: SocketAddr, schedule: &mut Schedule) -> io::Result<()> {
        let Connection {
            mut receiver,
            mut sender,
        } = Connection::open(address).await?;
        let (unanswered, mut answers) = mpsc::unbounded_channel();
        let sending = async {
            loop {
                let (number, given_up) = schedule.next().await;
                self.counts.held_up.fetch_add(given_up, Relaxed);
                let request = self.send(number);
                // The receiver is there for as long as this runs.
                let _ = unanswered.send(request);
                if sender.send(&request.bytes).await.is_err() {
                    // What was answered before is still to be read, if there is something.
                    drop(unanswered);
                    return std::future::pending().await;
                }
            }
        };
        let receiving = async {
            while let Some(request) = answers.recv().await {
                self.judge(request, &receiver.answer().await?);
            }
            Ok(())
        };
        tokio::select! {
            ended = receiving => ended,
            () = sending => Ok(()),
        }
    }

    fn send(&self, number: usize) -> &Prepared {
        // Another one in each round, so that every client sends requests of all sizes.
        let all = self.requests.len();
        let request = &self.requests[(number + number / all) % all];
        request.sent.fetch_add(1, Relaxed);
        self.counts.sent.fetch_add(1, Relaxed);
        request
    }

    fn judge(&self, request: &Prepared, answer: &Answer) {
        answer.check();
        if answer.status == 503 {
            self.counts.refused.fetch_add(1, Relaxed);
            return;
        }
        assert_eq!(answer.status, 200, "{answer:?}");
        let counts: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
        assert_eq!(counts["received"], request.events.len(), "{counts}");
        let accepted = counts["accepted"].as_u64().expect("a number");
        request.accepted.fetch_add(accepted, Relaxed);
        request.acknowledged.fetch_add(1, Relaxed);
        self.counts.served.fetch_add(1, Relaxed);
    }

    /// Tells the oracle what was sent and answered.
    pub(super) fn settle(&self, oracle: &Oracle) {
        for request in self.requests.iter() {
            let accepted = request.accepted.load(Relaxed);
            assert!(
                accepted <= request.events.len() as u64,
                "an event was accepted twice: {:?}",
                request.events[0]
            );
            let (sent, acknowledged) = (request.sent.load(Relaxed), request.acknowledged.load(Relaxed));
            oracle.settle(&request.events, sent, acknowledged);
        }
    }
}

impl Prepared {
    /// Of 200 requests, one is as large as may be, 14 have as many events as may be, 45 have 200, and the others one.
    fn new(number: usize) -> Self {
        let event = |of: usize| Event::new("flood", &format!("{number}-{of}"));
        let events: Vec<_> = match number % 200 {
            199 => (0..16)
                .map(|of| {
                    let text = "x".repeat(LARGEST_BODY / 16 - 256);
                    event(of).with_payload(&format!(r#"{{"text":"{text}"}}"#))
                })
                .collect(),
            within if within % 14 == 13 => (0..MOST_EVENTS)
                .map(|of| event(of).with_source("s").with_payload("{}"))
                .collect(),
            within if within % 4 == 3 => (0..200).map(event).collect(),
            _ => vec![event(0)],
        };
        let body = Event::array(&events);
        assert!(body.len() <= LARGEST_BODY);
        let head = format!(
            "POST /publish HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        Self {
            bytes: [head.into_bytes(), body].concat(),
            events,
            sent: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
        }
    }
}

/// When a client has to send which request.
struct Schedule {
    began: Instant,
    /// Between two requests of all clients together, in seconds.
    pause: f64,
    number: usize,
    step: usize,
}

impl Schedule {
    /// Waits until the next request is due; returns its number, and how many were given up before it.
    async fn next(&mut self) -> (usize, u64) {
        let mut given_up = 0;
        while self.due() + TOO_LATE < Instant::now() {
            self.number += self.step;
            given_up += 1;
        }
        sleep_until(self.due().into()).await;
        let number = self.number;
        self.number += self.step;
        (number, given_up)
    }

    fn due(&self) -> Instant {
        self.began + Duration::from_secs_f64(self.pause * self.number as f64)
    }
}
