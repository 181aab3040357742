//! The events that `bench` sends, and the requests made of them. The same seed gives the same events.

use super::Bench;
use crate::client::Endpoint;
use std::{io::Write, ops::Range};

/// A duplicate is one of this many events before it.
const DUPLICATE_WINDOW: u64 = 2_000_000;
/// An event's size, roughly, in bytes of JSON.
const EVENT_BYTES: u64 = 340;

/// What to send.
#[derive(Clone, Debug)]
pub(super) struct Workload {
    /// Events in all.
    pub(super) events: u64,
    /// Events in a request; a request of one is a single event, not a list.
    pub(super) batch: u64,
    /// The share of events that were sent before, from 0 to 1.
    pub(super) duplicates: f64,
    /// Topics that the events are spread over.
    pub(super) topics: u64,
    /// Other seeds make other ids.
    pub(super) seed: u64,
}

/// A request as bytes, head and body.
#[derive(Debug)]
pub(super) struct Request {
    /// What goes over the wire.
    pub(super) bytes: Vec<u8>,
    /// The events in it.
    pub(super) events: u64,
    /// Those of them that were not in a request before.
    pub(super) new_events: u64,
}

/// The requests of a workload, in order.
pub(super) struct Requests {
    workload: Workload,
    head: String,
    hour: String,
    random: fastrand::Rng,
    left: u64,
    next_new: u64,
    body: Vec<u8>,
}

impl Workload {
    pub(super) fn new(arguments: &Bench, seed: u64) -> Self {
        Self {
            events: arguments.events,
            batch: arguments.batch,
            duplicates: arguments.duplicates,
            topics: arguments.topics,
            seed,
        }
    }

    /// How many requests there are.
    pub(super) fn request_count(&self) -> u64 {
        self.events.div_ceil(self.batch)
    }

    /// About how many bytes they have.
    pub(super) fn bytes(&self) -> u64 {
        self.events * EVENT_BYTES
    }

    /// The requests to a server; `hour` is the start of all timestamps, such as `2025-10-23T10`.
    pub(super) fn requests(&self, server: &Endpoint, hour: String) -> Requests {
        Requests {
            head: server.publish_head(),
            hour,
            random: fastrand::Rng::with_seed(self.seed),
            left: self.events,
            next_new: 0,
            body: Vec::new(),
            workload: self.clone(),
        }
    }
}

impl Requests {
    /// The number of the next event: a new one, or one from before.
    fn next_event(&mut self) -> u64 {
        if self.next_new > 0 && self.random.f64() < self.workload.duplicates {
            let back = self.random.u64(0..self.next_new.min(DUPLICATE_WINDOW));
            self.next_new - 1 - back
        } else {
            self.next_new += 1;
            self.next_new - 1
        }
    }

    fn write_events(&mut self, events: u64) {
        self.body.clear();
        if self.workload.batch == 1 {
            let event = self.next_event();
            write_event(&mut self.body, event, &self.workload, &self.hour);
            return;
        }
        self.body.extend_from_slice(b"{\"events\":[");
        for index in 0..events {
            if index > 0 {
                self.body.push(b',');
            }
            let event = self.next_event();
            write_event(&mut self.body, event, &self.workload, &self.hour);
        }
        self.body.extend_from_slice(b"]}");
    }
}

impl Iterator for Requests {
    type Item = Request;

    fn next(&mut self) -> Option<Request> {
        let events = self.left.min(self.workload.batch);
        if events == 0 {
            return None;
        }
        self.left -= events;
        let new_before = self.next_new;
        self.write_events(events);
        let mut bytes = Vec::with_capacity(self.head.len() + 16 + self.body.len());
        bytes.extend_from_slice(self.head.as_bytes());
        write_decimal(&mut bytes, self.body.len() as u64);
        bytes.extend_from_slice(b"\r\n\r\n");
        bytes.extend_from_slice(&self.body);
        Some(Request {
            bytes,
            events,
            new_events: self.next_new - new_before,
        })
    }
}

/// Writes event number `number`. Its id looks like a random UUID; its last 64 bits are a permutation of the number, so
/// no two events of a seed share one.
fn write_event(out: &mut Vec<u8>, number: u64, workload: &Workload, hour: &str) {
    let seed = mix(workload.seed);
    let low = mix(number.wrapping_add(seed));
    let high = mix(low ^ seed.rotate_left(32));
    out.extend_from_slice(b"{\"topic\":\"service-");
    write_decimal(out, number % workload.topics);
    out.extend_from_slice(b".events\",\"event_id\":\"");
    write_hex(out, high, 32..64);
    out.push(b'-');
    write_hex(out, high, 16..32);
    out.extend_from_slice(b"-4");
    write_hex(out, high, 0..12);
    out.push(b'-');
    write_hex(out, low, 48..64);
    out.push(b'-');
    write_hex(out, low, 0..48);
    out.extend_from_slice(b"\",\"timestamp\":\"");
    out.extend_from_slice(hour.as_bytes());
    out.push(b':');
    write_two_digits(out, number / 60 % 60);
    out.push(b':');
    write_two_digits(out, number % 60);
    out.extend_from_slice(b"Z\",\"source\":\"order-service\",\"payload\":{\"user_id\":");
    write_decimal(out, number % 100_000);
    out.extend_from_slice(b",\"action\":\"checkout\",\"amount\":");
    write_decimal(out, number % 1_000);
    out.extend_from_slice(b".95,\"currency\":\"EUR\",\"ip\":\"10.20.");
    write_decimal(out, number % 250);
    out.push(b'.');
    write_decimal(out, number % 16);
    out.extend_from_slice(b"\",\"trace_id\":\"");
    write_hex(out, low, 0..64);
    write_hex(out, high, 0..64);
    out.extend_from_slice(b"\",\"message\":\"payment of order ");
    write_decimal(out, number);
    out.extend_from_slice(b" was confirmed\"}}");
}

/// A permutation of the 64-bit numbers that looks random (the last step of the generator by Steele et al. 2014).
fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// The bits of `number` in `bits`, highest first; a multiple of four of them.
fn write_hex(out: &mut Vec<u8>, number: u64, bits: Range<u32>) {
    let digits = bits.step_by(4).rev();
    out.extend(digits.map(|shift| b"0123456789abcdef"[(number >> shift) as usize & 0xf]));
}

fn write_two_digits(out: &mut Vec<u8>, number: u64) {
    out.extend([b'0' + (number / 10 % 10) as u8, b'0' + (number % 10) as u8]);
}

fn write_decimal(out: &mut Vec<u8>, number: u64) {
    // Writing to a Vec cannot fail.
    let _ = write!(out, "{number}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Trust;
    use serde::Deserialize;
    use std::collections::HashSet;

    #[derive(Deserialize)]
    struct Body {
        events: Vec<Event>,
    }

    #[derive(Deserialize)]
    struct Event {
        topic: String,
        event_id: String,
        timestamp: String,
        payload: serde_json::Map<String, serde_json::Value>,
    }

    fn workload(seed: u64) -> Workload {
        Workload {
            events: 1_050,
            batch: 100,
            duplicates: 0.3,
            topics: 7,
            seed,
        }
    }

    fn requests(workload: &Workload) -> Vec<Request> {
        let url = "http://127.0.0.1:8080".parse().unwrap();
        let server = Endpoint::new(url, &Trust::default(), None).unwrap();
        workload.requests(&server, "2025-10-23T10".to_owned()).collect()
    }

    fn body(request: &Request) -> &str {
        let text = std::str::from_utf8(&request.bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.ends_with(&format!("Content-Length: {}", body.len())));
        body
    }

    fn events(requests: &[Request]) -> Vec<Event> {
        let body = |request| serde_json::from_str::<Body>(body(request)).unwrap();
        requests.iter().flat_map(|request| body(request).events).collect()
    }

    #[test]
    fn the_requests_say_how_many_of_their_events_are_new() {
        let workload = workload(1);
        let requests = requests(&workload);
        assert_eq!(requests.len() as u64, workload.request_count());
        assert_eq!(requests.iter().map(|request| request.events).sum::<u64>(), 1_050);
        let events = events(&requests);
        let unique: HashSet<_> = events
            .iter()
            .map(|event| (&event.topic, &event.event_id))
            .collect();
        let new: u64 = requests.iter().map(|request| request.new_events).sum();
        assert_eq!(unique.len() as u64, new);
        assert!((600..850).contains(&new), "{new}");
        let topics: HashSet<_> = events.iter().map(|event| &event.topic).collect();
        assert_eq!(topics.len(), 7);
        assert!(events.iter().all(|event| event.payload.len() == 7));
        assert!(
            events
                .iter()
                .all(|event| event.timestamp.parse::<jiff::Timestamp>().is_ok())
        );
    }

    #[test]
    fn a_seed_repeats_its_events_and_shares_none_with_another_seed() {
        let ids = |seed| -> HashSet<String> {
            events(&requests(&workload(seed)))
                .into_iter()
                .map(|event| event.event_id)
                .collect()
        };
        assert_eq!(ids(1), ids(1));
        assert!(ids(1).is_disjoint(&ids(2)));
    }

    #[test]
    fn a_batch_of_one_is_a_single_event() {
        let single = Workload {
            batch: 1,
            events: 1,
            ..workload(1)
        };
        let requests = requests(&single);
        let event: Event = serde_json::from_str(body(&requests[0])).unwrap();
        assert_eq!(event.topic, "service-0.events");
        let bytes = body(&requests[0]).len() as u64;
        assert!(bytes <= EVENT_BYTES && bytes + 40 > EVENT_BYTES, "{bytes}");
    }
}
