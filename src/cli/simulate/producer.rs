//! Sends events and reads the counts of the answers.

use crate::{
    client::{Backoff, Client, Content, Endpoint, is_passing},
    limits::{CLIENT_REQUEST_TIMEOUT, MAX_CLIENT_BATCH_EVENTS},
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::{
    ops::{AddAssign, Range},
    sync::atomic::{AtomicU64, Ordering},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{sleep, timeout},
};

/// Attempts at a request that the server is too busy for.
const MAX_ATTEMPTS: u32 = 20;
const TOPICS: [&str; 4] = [
    "simulate.orders",
    "simulate.payments",
    "simulate.logins",
    "simulate.mails",
];

/// One run of the simulation.
pub(super) struct Run {
    server: Endpoint,
    /// In the source of every event of the run, and in every id.
    name: String,
    timestamp: String,
    next_event: AtomicU64,
    pub(super) events: u64,
    pub(super) connections: u64,
    pub(super) batch: BatchSizes,
    /// Share of a batch that was sent before, from 0 to 1.
    duplicates: f64,
}

/// How many events a request has: at least two, so that one can be new and one re-sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BatchSizes {
    smallest: u64,
    largest: u64,
}

/// What one or more answers counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Counts {
    pub(super) received: u64,
    pub(super) accepted: u64,
    pub(super) duplicates: u64,
    #[serde(default)]
    pub(super) conflicts: u64,
    /// Events sent of which nobody knows whether the server took them in.
    #[serde(skip_deserializing)]
    pub(super) unanswered: u64,
}

/// An event of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Event {
    pub(super) topic: &'static str,
    pub(super) number: u64,
    /// The payload that goes with it; another one makes it a conflict.
    pub(super) version: u64,
}

/// What was done with a request before its connection was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lost {
    /// It was written.
    Unanswered,
    /// The start of its answer was read: it is committed.
    Answered,
}

impl Run {
    pub(super) fn new(
        server: Endpoint,
        events: u64,
        connections: u64,
        batch: BatchSizes,
        duplicates: f64,
    ) -> Self {
        Self {
            server,
            name: format!("{:016x}", fastrand::u64(..)),
            timestamp: jiff::Timestamp::now().to_string(),
            next_event: AtomicU64::new(0),
            events,
            connections,
            batch,
            duplicates,
        }
    }

    /// How many of a batch's events were sent before: the share that was asked for, rounded up, but one event is new.
    pub(super) fn resent_of(&self, batch: u64) -> u64 {
        let resent = (batch as f64 * self.duplicates).ceil() as u64;
        resent.min(batch - 1)
    }

    /// A new connection.
    pub(super) fn client(&self) -> Client {
        Client::new(self.server.clone(), CLIENT_REQUEST_TIMEOUT)
    }

    /// The source that all events of the run have.
    pub(super) fn source(&self) -> String {
        format!("simulate-{}", self.name)
    }

    /// New events, spread over the topics.
    pub(super) fn new_events(&self, count: u64) -> Vec<Event> {
        let first = self.next_event.fetch_add(count, Ordering::Relaxed);
        let numbers: Range<u64> = first..first + count;
        numbers
            .map(|number| Event {
                topic: TOPICS[(number % TOPICS.len() as u64) as usize],
                number,
                version: 1,
            })
            .collect()
    }

    /// The same event id in every topic.
    pub(super) fn one_id_in_every_topic(&self) -> Vec<Event> {
        let number = self.next_event.fetch_add(1, Ordering::Relaxed);
        TOPICS
            .iter()
            .map(|topic| Event {
                topic,
                number,
                version: 1,
            })
            .collect()
    }

    pub(super) fn event_id(&self, event: &Event) -> String {
        format!("{}-{}", self.name, event.number)
    }

    fn body(&self, events: &[Event]) -> Bytes {
        let source = self.source();
        let events: Vec<_> = events
            .iter()
            .map(|event| {
                json!({
                    "topic": event.topic,
                    "event_id": self.event_id(event),
                    "timestamp": self.timestamp,
                    "source": source,
                    "payload": {"number": event.number, "version": event.version},
                })
            })
            .collect();
        json!({"events": events}).to_string().into()
    }

    /// Publishes the events in one request, and checks that the answer adds up.
    pub(super) async fn publish(&self, client: &mut Client, events: &[Event]) -> Result<Counts, String> {
        let body = self.body(events);
        let mut backoff = Backoff::default();
        loop {
            let answer = client
                .post("/publish", Content::json(body.clone(), None))
                .await
                .map_err(|error| error.to_string())?;
            // Nothing of a request that was refused is counted.
            if is_passing(answer.status) && backoff.failures() < MAX_ATTEMPTS {
                sleep(backoff.next_wait(answer.retry_after)).await;
                continue;
            }
            let counts: Counts = client.read(&answer).map_err(|error| error.to_string())?;
            if counts.received != events.len() as u64
                || counts.received != counts.accepted + counts.duplicates
            {
                return Err(format!("{} events sent, but answered: {counts}", events.len()));
            }
            return Ok(counts);
        }
    }

    /// Writes a request with the events and drops the connection before the answer is read.
    pub(super) async fn publish_and_drop(&self, events: &[Event], when: Lost) -> Result<(), String> {
        let body = self.body(events);
        let head = format!("{}{}\r\n\r\n", self.server.publish_head(), body.len());
        let request = [head.as_bytes(), &body].concat();
        let mut backoff = Backoff::default();
        while backoff.failures() < MAX_ATTEMPTS {
            let mut stream = self.server.connect().await.map_err(|error| error.to_string())?;
            let failed = |error| format!("writing a request failed: {error}");
            stream.write_all(&request).await.map_err(failed)?;
            stream.flush().await.map_err(failed)?;
            if when == Lost::Unanswered {
                return Ok(());
            }
            let mut status = [0; "HTTP/1.1 200".len()];
            timeout(CLIENT_REQUEST_TIMEOUT, stream.read_exact(&mut status))
                .await
                .map_err(|_| "no answer in time".to_owned())?
                .map_err(failed)?;
            if status.ends_with(b"200") {
                return Ok(());
            }
            sleep(backoff.next_wait(None)).await;
        }
        Err("the server took no request".to_owned())
    }
}

impl BatchSizes {
    /// Reads `SIZE` or `SMALLEST-LARGEST`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let size = |text: &str| -> Option<u64> {
            let size = text.trim().parse().ok()?;
            (2..=MAX_CLIENT_BATCH_EVENTS as u64)
                .contains(&size)
                .then_some(size)
        };
        let (smallest, largest) = text.split_once('-').unwrap_or((text, text));
        match (size(smallest), size(largest)) {
            (Some(smallest), Some(largest)) if smallest <= largest => Ok(Self { smallest, largest }),
            _ => Err(format!(
                "allowed: a whole number from 2 to {MAX_CLIENT_BATCH_EVENTS}, or two of them, as in 100-200"
            )),
        }
    }

    /// Any of them.
    pub(super) fn any(self) -> u64 {
        fastrand::u64(self.smallest..=self.largest)
    }

    pub(super) fn largest(self) -> u64 {
        self.largest
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.received += other.received;
        self.accepted += other.accepted;
        self.duplicates += other.duplicates;
        self.conflicts += other.conflicts;
        self.unanswered += other.unanswered;
    }
}

impl Counts {
    /// The counts of a request with `accepted` new events and `duplicates` others.
    pub(super) fn of(accepted: u64, duplicates: u64) -> Self {
        Self {
            received: accepted + duplicates,
            accepted,
            duplicates,
            ..Self::default()
        }
    }

    /// The events that were sent, those without an answer too.
    pub(super) fn sent(&self) -> u64 {
        self.received + self.unanswered
    }

    /// These counts if they are the `expected` ones.
    pub(super) fn expect(self, step: &str, expected: Self) -> Result<Self, String> {
        if self == expected {
            Ok(self)
        } else {
            Err(format!("{step}: answered {self}; expected {expected}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_has_one_size_or_any_of_a_range() {
        let sizes = BatchSizes::parse("100-200").unwrap();
        assert!((0..1_000).all(|_| (100..=200).contains(&sizes.any())));
        assert_eq!(sizes.largest(), 200);
        assert_eq!(BatchSizes::parse("50").unwrap().any(), 50);
        for wrong in ["", "1", "200-100", "0-5", "a-b", "1-", "10001", "5-6-7", "-5"] {
            let error = BatchSizes::parse(wrong).unwrap_err();
            assert!(error.contains("from 2 to"), "{wrong}: {error}");
        }
    }
}
