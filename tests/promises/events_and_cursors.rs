//! A cursor never skips and never repeats, in both directions and while others write; filters and limits hold.

use crate::harness::{Client, Event, PATIENCE, Server, identities, read_all};
use serde_json::Value;
use std::{
    thread,
    time::{Duration, Instant},
};

const WRITERS: usize = 4;
const BATCHES: usize = 50;

fn seqs(events: &[Value]) -> Vec<u64> {
    events
        .iter()
        .map(|event| event["seq"].as_u64().expect("a seq"))
        .collect()
}

fn ids(events: &[Value]) -> Vec<String> {
    identities(events).into_iter().map(|(_, id)| id).collect()
}

/// Follows the log upwards from its start until it has seen an event with the id `last`.
fn follow(client: &mut Client, filter: &str, last: &str) -> Vec<Value> {
    let deadline = Instant::now() + PATIENCE;
    let mut events: Vec<Value> = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = client
            .get(&format!("/events?order=asc&limit=7&wait=1{filter}{cursor}"))
            .ok();
        let found = page["events"].as_array().unwrap();
        events.extend(found.iter().cloned());
        if found.iter().any(|event| event["event_id"] == last) {
            return events;
        }
        cursor = format!(
            "&cursor={}",
            page["next"]
                .as_str()
                .expect("ascending pages always have a cursor")
        );
        assert!(
            Instant::now() < deadline,
            "{last} was not seen; {} events were",
            events.len()
        );
    }
}

#[test]
fn readers_that_follow_a_cursor_see_every_event_once_while_others_write() {
    let server = Server::start();
    let (all, one_topic, downwards) = thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let server = &server;
                scope.spawn(move || {
                    let mut random = fastrand::Rng::with_seed(writer as u64);
                    let mut client = server.client();
                    for batch in 0..BATCHES {
                        let events: Vec<_> = (0..random.usize(1..30))
                            .map(|number| {
                                Event::new(
                                    &format!("topic-{}", number % 3),
                                    &format!("{writer}-{batch}-{number}"),
                                )
                            })
                            .collect();
                        client.publish(&events);
                    }
                })
            })
            .collect();
        let all = scope.spawn(|| follow(&mut server.client(), "", "the end"));
        let one_topic = scope.spawn(|| follow(&mut server.client(), "&topic=topic-1", "the end"));
        // Reading downwards starts at what is newest now; what comes later is not its business.
        let downwards = scope.spawn(|| {
            let mut client = server.client();
            (0..10)
                .map(|_| seqs(&read_all(&mut client, "limit=13&")))
                .collect::<Vec<_>>()
        });
        for writer in writers {
            writer.join().expect("a writer");
        }
        server.client().publish(&[Event::new("topic-1", "the end")]);
        (
            all.join().expect("a reader"),
            one_topic.join().expect("a reader"),
            downwards.join().expect("a reader"),
        )
    });

    let mut client = server.client();
    let count = client.counters()[1];
    assert_eq!(seqs(&all), (1..=count).collect::<Vec<_>>());
    let expected: Vec<_> = all
        .iter()
        .filter(|event| event["topic"] == "topic-1")
        .cloned()
        .collect();
    assert_eq!(one_topic, expected);
    for seen in downwards {
        let newest = seen.first().copied().unwrap_or(0);
        assert_eq!(seen, (1..=newest).rev().collect::<Vec<_>>());
    }
    let mut backwards = read_all(&mut client, "limit=1000&");
    backwards.reverse();
    assert_eq!(backwards, all, "both directions are the same log");
}

#[test]
fn an_event_is_seen_by_every_query_once_its_publish_was_answered() {
    let server = Server::start();
    let (mut writer, mut reader) = (server.client(), server.client());
    for number in 0..50 {
        let id = format!("id-{number}");
        writer.publish(&[Event::new("t", &id)]);
        let newest = reader.get("/events?limit=1").ok();
        assert_eq!(ids(newest["events"].as_array().unwrap()), [id.as_str()]);
        let of_topic = reader.get("/events?topic=t&limit=1").ok();
        assert_eq!(ids(of_topic["events"].as_array().unwrap()), [id.as_str()]);
        assert_eq!(reader.get(&format!("/events/t/{id}")).status, 200);
        assert_eq!(reader.counters()[1], number + 1);
    }
}

/// What the filters are tested on: every combination of these, in this order.
fn sample() -> Vec<Event> {
    let times = [
        "2025-10-23T10:00:00Z",
        "2025-10-23T12:00:00.000000001+02:00",
        "2025-10-22T10:00:00Z",
        "2025-10-23T10:00:00.999Z",
        "2025-10-24T00:00:00Z",
        "1969-12-31T23:59:59.5Z",
    ];
    let mut events = Vec::new();
    for (time_number, time) in times.iter().enumerate() {
        for topic in ["a", "b"] {
            for source in ["web", "shop"] {
                let id = format!("{time_number}-{topic}-{source}");
                events.push(Event::new(topic, &id).with_source(source).at(time));
            }
        }
    }
    events
}

/// Nanoseconds since 1970 of the sample's times, by the number that their ids begin with.
const NANOS: [i128; 6] = [
    1_761_213_600_000_000_000,
    1_761_213_600_000_000_001,
    1_761_127_200_000_000_000,
    1_761_213_600_999_000_000,
    1_761_264_000_000_000_000,
    -500_000_000,
];

#[test]
fn filters_hold_together_in_both_directions_and_for_every_page_size() {
    let server = Server::start();
    let mut client = server.client();
    let sample = sample();
    client.publish(&sample);
    let bounds = [
        ("2025-10-23T10:00:00Z", NANOS[0]),
        ("2025-10-23T10:00:00.000000001Z", NANOS[1]),
        ("2025-10-23T12:00:01%2B02:00", NANOS[0] + 1_000_000_000),
        ("1969-12-31T23:59:59.5", NANOS[5]),
        ("1970-01-01T00:00:00Z", 0),
    ];
    let any_bound = || std::iter::once(None).chain(bounds.iter().map(Some));
    for topic in [None, Some("a"), Some("nothing")] {
        for source in [None, Some("shop")] {
            for from in any_bound() {
                for to in any_bound() {
                    let mut filter = String::new();
                    let mut add = |name: &str, value: Option<&str>| {
                        if let Some(value) = value {
                            filter.push_str(&format!("{name}={value}&"));
                        }
                    };
                    add("topic", topic);
                    add("source", source);
                    add("from", from.map(|(text, _)| *text));
                    add("to", to.map(|(text, _)| *text));
                    let mut expected: Vec<_> = sample
                        .iter()
                        .filter(|event| {
                            let nanos = NANOS[event.event_id[..1].parse::<usize>().unwrap()];
                            topic.is_none_or(|topic| event.topic == topic)
                                && source.is_none_or(|source| event.source == source)
                                && from.is_none_or(|(_, from)| nanos >= *from)
                                && to.is_none_or(|(_, to)| nanos < *to)
                        })
                        .map(|event| event.event_id.clone())
                        .collect();
                    assert_eq!(
                        ids(&read_all(&mut client, &format!("{filter}order=asc&limit=5&"))),
                        expected,
                        "{filter}"
                    );
                    expected.reverse();
                    assert_eq!(
                        ids(&read_all(&mut client, &format!("{filter}limit=1000&"))),
                        expected,
                        "{filter}"
                    );
                }
            }
        }
    }
    for limit in 1..=sample.len() {
        assert_eq!(
            read_all(&mut client, &format!("limit={limit}&")).len(),
            sample.len()
        );
    }
}

#[test]
fn a_page_has_a_hundred_events_unless_asked_for_more_or_fewer() {
    let server = Server::start();
    let mut client = server.client();
    let events: Vec<_> = (0..1001)
        .map(|number| Event::new("t", &number.to_string()))
        .collect();
    client.publish(&events);
    for (query, count) in [
        ("", 100),
        ("?limit=1", 1),
        ("?limit=1000", 1000),
        ("?topic=t&order=asc", 100),
    ] {
        let page = client.get(&format!("/events{query}")).ok();
        assert_eq!(page["count"], count, "{query}");
        assert!(page["next"].is_string(), "{query}");
    }
    let page = client.get("/events").ok();
    assert_eq!(page["events"][0]["event_id"], "1000", "newest first");
    assert!(page["topic"].is_null());
    assert!(page.get("caught_up").is_none());
}

#[test]
fn a_page_that_looked_at_much_and_found_nothing_leads_on() {
    let server = Server::start();
    let mut client = server.client();
    client.publish(&[Event::new("t", "rare").with_source("rare")]);
    for batch in 0..5 {
        let events: Vec<_> = (0..5_000)
            .map(|number| Event::new("t", &format!("{batch}-{number}")))
            .collect();
        client.publish(&events);
    }
    let first = client.get("/events?source=rare").ok();
    assert_eq!(first["count"], 0, "25,000 rows are more than a page looks at");
    assert!(first["next"].is_string(), "{first}");
    assert_eq!(ids(&read_all(&mut client, "source=rare&")), ["rare"]);
}

#[test]
fn an_ascending_reader_at_the_end_is_told_so_and_can_wait_for_more() {
    let server = Server::start();
    let mut client = server.client();
    let empty = client.get("/events?order=asc").ok();
    assert_eq!((&empty["count"], &empty["caught_up"]), (&0.into(), &true.into()));
    let cursor = empty["next"]
        .as_str()
        .expect("a cursor even when there is nothing")
        .to_owned();

    // Nothing comes: the wait passes, and the cursor still leads on.
    let started = Instant::now();
    let nothing = client
        .get(&format!("/events?order=asc&wait=1&cursor={cursor}"))
        .ok();
    assert!(
        started.elapsed() >= Duration::from_secs(1),
        "it waited as long as it was asked to"
    );
    assert_eq!(
        (&nothing["count"], &nothing["caught_up"]),
        (&0.into(), &true.into())
    );

    // Something comes: the answer does not wait for the rest of the time.
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let started = Instant::now();
            let page = server
                .client()
                .get(&format!("/events?order=asc&wait=30&topic=mine&cursor={cursor}"))
                .ok();
            (page, started.elapsed())
        });
        client.publish(&[Event::new("other", "a")]);
        client.publish(&[Event::new("mine", "b")]);
        let (page, waited) = waiting.join().expect("the waiting reader");
        assert_eq!(ids(page["events"].as_array().unwrap()), ["b"]);
        assert!(
            waited < Duration::from_secs(30),
            "it was answered as soon as there was something"
        );
    });
}

#[test]
fn a_cursor_is_good_for_its_own_store_direction_and_call_only() {
    let (server, other) = (Server::start(), Server::start());
    let (mut client, mut stranger) = (server.client(), other.client());
    for client in [&mut client, &mut stranger] {
        let events: Vec<_> = (0..5)
            .map(|number| Event::new(&format!("t{number}"), "x"))
            .collect();
        client.publish(&events);
    }
    let mut cursor = |target: &str| {
        client.get(target).ok()["next"]
            .as_str()
            .expect("a cursor")
            .to_owned()
    };
    let down = cursor("/events?limit=2");
    let up = cursor("/events?limit=2&order=asc");
    let topics = cursor("/topics?limit=2");
    for target in [
        format!("/events?order=asc&cursor={down}"),
        format!("/events?order=desc&cursor={up}"),
        format!("/events?cursor={topics}"),
        format!("/topics?cursor={up}"),
        format!("/events?cursor={}", flipped(&down)),
    ] {
        let problem = client.get(&target).problem(422);
        assert_eq!(problem["type"], "/problems/invalid-cursor", "{target}");
    }
    for target in [
        format!("/events?cursor={down}"),
        format!("/topics?cursor={topics}"),
    ] {
        let problem = stranger.get(&target).problem(422);
        assert_eq!(problem["type"], "/problems/invalid-cursor");
        assert!(
            problem["detail"].as_str().unwrap().contains("another store"),
            "{problem}"
        );
    }

    // A restart changes nothing: the cursors go on where they were.
    let server = server.restart();
    let mut client = server.client();
    let mut page = |cursor: &str| {
        seqs(
            client.get(&format!("/events?cursor={cursor}")).ok()["events"]
                .as_array()
                .unwrap(),
        )
    };
    assert_eq!(page(&down), [3, 2, 1]);
    assert_eq!(page(&up), [3, 4, 5]);
}

/// The cursor with one character of its middle changed.
fn flipped(cursor: &str) -> String {
    let middle = cursor.len() / 2;
    let other = if &cursor[middle..=middle] == "A" { "B" } else { "A" };
    format!("{}{other}{}", &cursor[..middle], &cursor[middle + 1..])
}

#[test]
fn a_cursor_ahead_of_the_store_is_refused_when_an_older_copy_was_put_back() {
    let server = Server::start();
    server.client().publish(&[Event::new("t", "kept")]);
    server.stop();
    let folder = server.folder().clone();
    let (data, copy) = (folder.path().join("data"), folder.path().join("copy"));
    copy_folder(&data, &copy);

    let server = server.restart();
    let mut client = server.client();
    client.publish(&[Event::new("t", "lost")]);
    let cursor = client.get("/events?order=asc").ok()["next"]
        .as_str()
        .unwrap()
        .to_owned();
    server.stop();
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(&copy, &data).unwrap();

    let server = server.restart();
    let problem = server
        .client()
        .get(&format!("/events?cursor={cursor}"))
        .problem(422);
    assert_eq!(problem["type"], "/problems/invalid-cursor");
    assert!(problem["detail"].as_str().unwrap().contains("ahead"), "{problem}");
}

fn copy_folder(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn topics_are_listed_by_name_with_their_counts_a_page_at_a_time() {
    let server = Server::start();
    let mut client = server.client();
    let names: Vec<_> = (0..25).map(|number| format!("topic-{number:02}")).collect();
    for name in names.iter().rev() {
        client.publish(&[
            Event::new(name, "1"),
            Event::new(name, "2"),
            Event::new(name, "1"),
        ]);
        client.publish(&[Event::new(name, "1").with_payload("{}")]);
    }
    let mut listed = Vec::new();
    let mut target = "/topics?limit=10".to_owned();
    loop {
        let page = client.get(&target).ok();
        listed.extend(page["topics"].as_array().unwrap().iter().cloned());
        let Some(next) = page["next"].as_str() else { break };
        target = format!("/topics?limit=10&cursor={next}");
    }
    assert_eq!(
        listed
            .iter()
            .map(|topic| topic["topic"].as_str().unwrap())
            .collect::<Vec<_>>(),
        names
    );
    for (place, topic) in listed.iter().enumerate() {
        let counts = ["accepted", "duplicates", "conflicts"].map(|name| topic[name].as_u64().unwrap());
        assert_eq!(counts, [2, 2, 1]);
        // The names were published from the last to the first, two events each.
        let first = (names.len() - 1 - place) as u64 * 2 + 1;
        assert_eq!([&topic["first_seq"], &topic["last_seq"]], [first, first + 1]);
        for (time, seq) in [("first_processed_at", first), ("last_processed_at", first + 1)] {
            let event = client
                .get(&format!(
                    "/events/{}/{}",
                    topic["topic"].as_str().unwrap(),
                    1 + (seq - first)
                ))
                .ok();
            assert_eq!(event["processed_at"], topic[time]);
        }
    }
    let stats = client.get("/stats").ok();
    assert_eq!(stats["topics"], serde_json::json!(names));
}
