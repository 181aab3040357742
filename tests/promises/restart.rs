//! What was acknowledged is there after kill -9, once, byte for byte; the counters too.

use crate::harness::{Client, Event, Server, eventually};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::{
    collections::{HashMap, HashSet},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

const ROUNDS: usize = 10;
const WRITERS: usize = 4;
/// Requests that must have been acknowledged in a round before the server is killed.
const ACKNOWLEDGED: usize = 40;

/// What the clients know.
#[derive(Default)]
struct Oracle {
    /// Every event that may be stored.
    sent: HashMap<(String, String), Event>,
    /// Every event that must be stored.
    acknowledged: HashSet<(String, String)>,
    /// Requests with a 200.
    answers: usize,
    /// Events in requests with a 200, and in all requests.
    received: u64,
    offered: u64,
}

/// An event as it comes back, its payload untouched.
#[derive(Deserialize)]
struct Stored {
    seq: u64,
    topic: String,
    event_id: String,
    payload: Box<RawValue>,
}

#[derive(Deserialize)]
struct Page {
    events: Vec<Stored>,
    next: String,
    caught_up: bool,
}

fn read_log(client: &mut Client) -> Vec<Stored> {
    let mut events = Vec::new();
    let mut cursor = String::new();
    loop {
        let answer = client.get(&format!("/events?order=asc&limit=1000{cursor}"));
        assert_eq!(answer.status, 200, "{}", answer.text());
        let page: Page = serde_json::from_slice(&answer.body).expect("a page");
        events.extend(page.events);
        if page.caught_up {
            return events;
        }
        cursor = format!("&cursor={}", page.next);
    }
}

/// Publishes until the server goes away or `stop` is set, and notes what it knows.
fn write(server: &Server, oracle: &Mutex<Oracle>, round: usize, writer: usize, stop: &AtomicBool) {
    let mut random = fastrand::Rng::with_seed((round * WRITERS + writer) as u64);
    let mut client = server.client();
    let mut earlier: Vec<Event> = Vec::new();
    for request in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let mut events: Vec<_> = (0..random.usize(1..20))
            .map(|number| {
                Event::new(
                    &format!("topic-{}", number % 3),
                    &format!("{round}-{writer}-{request}-{number}"),
                )
            })
            .collect();
        if !earlier.is_empty() && random.bool() {
            events.push(earlier[random.usize(0..earlier.len())].clone());
        }
        {
            let mut oracle = oracle.lock().unwrap();
            oracle.offered += events.len() as u64;
            oracle
                .sent
                .extend(events.iter().map(|event| (event.identity(), event.clone())));
        }
        let body = Event::wrapped(&events);
        let Ok(answer) = client.attempt("POST", "/publish", &[("content-type", "application/json")], &body)
        else {
            return;
        };
        if answer.status == 503 {
            // The server is stopping.
            return;
        }
        answer.ok();
        let mut oracle = oracle.lock().unwrap();
        oracle.answers += 1;
        oracle.received += events.len() as u64;
        oracle.acknowledged.extend(events.iter().map(Event::identity));
        earlier.append(&mut events);
    }
}

/// Checks the store against what the clients know.
fn check(client: &mut Client, oracle: &Oracle) {
    let stored = read_log(client);
    let seqs: Vec<_> = stored.iter().map(|event| event.seq).collect();
    assert_eq!(
        seqs,
        (1..=stored.len() as u64).collect::<Vec<_>>(),
        "seqs have no gaps"
    );
    let mut found = HashSet::new();
    for event in &stored {
        let identity = (event.topic.clone(), event.event_id.clone());
        let sent = oracle
            .sent
            .get(&identity)
            .unwrap_or_else(|| panic!("{identity:?} was never sent"));
        assert_eq!(event.payload.get(), sent.payload, "{identity:?}");
        assert!(found.insert(identity.clone()), "{identity:?} is stored twice");
    }
    let lost: Vec<_> = oracle.acknowledged.difference(&found).take(5).collect();
    assert!(lost.is_empty(), "acknowledged but not stored: {lost:?} …");

    let [received, unique, duplicates, conflicts] = client.counters();
    assert_eq!(received, unique + duplicates);
    assert_eq!(unique, stored.len() as u64);
    assert_eq!(conflicts, 0);
    assert!(
        (oracle.received..=oracle.offered).contains(&received),
        "{received} counted, {} acknowledged, {} sent",
        oracle.received,
        oracle.offered
    );
}

#[test]
fn ten_times_killed_under_load_the_store_holds_all_that_was_acknowledged_exactly_once() {
    let oracle = Mutex::new(Oracle::default());
    let never = AtomicBool::new(false);
    let mut server = Server::start();
    for round in 0..ROUNDS {
        let before = oracle.lock().unwrap().answers;
        let (shared, never, oracle) = (&server, &never, &oracle);
        thread::scope(|scope| {
            for writer in 0..WRITERS {
                scope.spawn(move || write(shared, oracle, round, writer, never));
            }
            eventually("requests are acknowledged", || {
                (oracle.lock().unwrap().answers >= before + ACKNOWLEDGED).then_some(())
            });
            shared.kill9();
        });
        server = server.restart();
        let mut client = server.client();
        let mut oracle = oracle.lock().unwrap();
        check(&mut client, &oracle);

        // Sent again, nothing that was acknowledged is accepted.
        let again: Vec<_> = oracle
            .acknowledged
            .iter()
            .map(|identity| oracle.sent[identity].clone())
            .collect();
        for events in again.chunks(1000) {
            assert_eq!(client.publish(events)["accepted"], 0);
            oracle.received += events.len() as u64;
            oracle.offered += events.len() as u64;
        }
    }
}

#[test]
fn counters_and_topics_survive_a_clean_stop_and_a_crash() {
    let mut server = Server::start();
    let mut client = server.client();
    let events = [Event::new("a", "1"), Event::new("b", "1"), Event::new("a", "1")];
    client.publish(&events);
    client.publish(&[Event::new("a", "1").with_payload("{}")]);
    let counters = client.counters();
    let topics = client.get("/topics").ok();
    assert_eq!(counters, [4, 2, 2, 1]);
    for crash in [false, true, true, false] {
        if crash {
            server.kill9();
        } else {
            server.stop();
        }
        server = server.restart();
        let mut client = server.client();
        assert_eq!(client.counters(), counters);
        assert_eq!(client.get("/topics").ok(), topics);
        assert_eq!(client.get("/health").ok()["status"], "healthy");
    }
}

#[test]
fn a_stop_under_load_ends_well_and_loses_nothing_acknowledged() {
    let oracle = Mutex::new(Oracle::default());
    let stop = AtomicBool::new(false);
    let server = Server::start();
    let shared = &server;
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (oracle, stop) = (&oracle, &stop);
            scope.spawn(move || write(shared, oracle, 0, writer, stop));
        }
        eventually("requests are acknowledged", || {
            (oracle.lock().unwrap().answers >= ACKNOWLEDGED).then_some(())
        });
        shared.terminate();
        let status = shared.ended();
        stop.store(true, Ordering::Relaxed);
        assert_eq!(status.code(), Some(0), "{}", shared.log());
    });
    let server = server.restart();
    check(&mut server.client(), &oracle.lock().unwrap());
}
