//! Everything has a bound, and what is beyond it is refused with an answer that says so.

use crate::harness::{Answer, Client, Event, Server};
use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

const JSON: &str = "application/json";

fn kind(answer: &Answer, status: u16) -> String {
    answer.problem(status)["type"].as_str().unwrap().to_owned()
}

/// As many small events as one request may have, and more.
fn array(events: usize) -> Vec<u8> {
    let mut text = String::from("[");
    for number in 0..events {
        let _ = write!(
            text,
            r#"{}{{"topic":"t","event_id":"{number}","timestamp":"2025-10-23T10:00:00Z","source":"s"}}"#,
            if number == 0 { "" } else { "," }
        );
    }
    text.push(']');
    text.into_bytes()
}

#[test]
fn a_body_beyond_the_bound_is_refused_before_it_is_sent() {
    let server = Server::start();
    let mut client = server.client();
    let head = format!(
        "POST /publish HTTP/1.1\r\nhost: x\r\ncontent-type: {JSON}\r\ncontent-length: {}\r\n\r\n",
        (16 << 20) + 1
    );
    // Only the head: the answer cannot have waited for the body.
    client.send_raw(head.as_bytes()).unwrap();
    assert_eq!(kind(&client.receive().unwrap(), 413), "/problems/body-too-large");
    assert!(
        client.is_closed(),
        "what follows on this connection would be the body"
    );
    assert_eq!(server.client().counters(), [0; 4]);
}

#[test]
fn a_body_of_unknown_length_is_refused_once_it_is_too_large() {
    let server = Server::start();
    let mut client = server.client();
    let head = format!(
        "POST /publish HTTP/1.1\r\nhost: x\r\ncontent-type: {JSON}\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    client.send_raw(head.as_bytes()).unwrap();
    let mut chunk = b"100000\r\n".to_vec();
    chunk.resize(chunk.len() + (1 << 20), b' ');
    chunk.extend_from_slice(b"\r\n");
    // One MiB more than is allowed. The server may close while the last of it is on its way.
    for _ in 0..17 {
        if client.send_raw(&chunk).is_err() {
            break;
        }
    }
    assert_eq!(kind(&client.receive().unwrap(), 413), "/problems/body-too-large");
    assert_eq!(server.client().counters(), [0; 4]);
}

#[test]
fn a_request_with_more_events_than_the_queue_holds_is_refused_and_one_with_as_many_is_taken() {
    let server = Server::start();
    let mut client = server.client();
    let answer = client.post("/publish", JSON, &array(10_001));
    assert_eq!(kind(&answer, 413), "/problems/too-many-events");
    assert!(
        answer.json()["detail"].as_str().unwrap().contains("10000"),
        "{}",
        answer.text()
    );
    assert_eq!(client.counters(), [0; 4]);
    assert_eq!(
        client.post("/publish", JSON, &array(10_000)).ok()["accepted"],
        10_000
    );

    let server = Server::start_with(&[("QUEUE_MAX_SIZE", "3")]);
    let mut client = server.client();
    assert_eq!(
        kind(&client.post("/publish", JSON, &array(4)), 413),
        "/problems/too-many-events"
    );
    assert_eq!(client.post("/publish", JSON, &array(3)).ok()["accepted"], 3);
}

#[test]
fn clients_that_find_the_queue_full_lose_nothing_when_they_send_again() {
    let server = Server::start_with(&[("QUEUE_MAX_SIZE", "10")]);
    let refusals = AtomicU64::new(0);
    thread::scope(|scope| {
        for connection in 0..16 {
            let (server, refusals) = (&server, &refusals);
            scope.spawn(move || {
                let mut client = server.client();
                for batch in 0..20 {
                    let events: Vec<_> = (0..10)
                        .map(|number| Event::new("t", &format!("{connection}-{batch}-{number}")))
                        .collect();
                    let refused = publish_until_taken(&mut client, &events);
                    refusals.fetch_add(refused, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(server.client().counters(), [3_200, 3_200, 0, 0]);
    // There was room for one of them at a time, so that the others waited; the metrics say so.
    let metrics = server.client().get("/metrics");
    let value = |series: &str| -> u64 {
        let text = metrics.text();
        text.lines()
            .find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
            .unwrap_or_else(|| panic!("{series} is not in\n{text}"))
    };
    assert_eq!(
        value(r#"oncelog_publishes_total{result="queue_full"}"#),
        refusals.into_inner()
    );
    assert_eq!(value(r#"oncelog_publishes_total{result="committed"}"#), 320);
    if value(r#"oncelog_publishes_total{result="queue_full"}"#) > 0 {
        let log = server.log();
        assert!(
            log.contains(" route=/publish problem=queue-full reason=\"the queue is full\" "),
            "{log}"
        );
    }
    assert!(value("oncelog_queue_wait_seconds_count") > 0);
    assert_eq!(value("oncelog_queue_bytes"), 0);
}

/// Returns how often it was refused.
fn publish_until_taken(client: &mut Client, events: &[Event]) -> u64 {
    for refused in 0.. {
        let answer = client.post("/publish", JSON, &Event::wrapped(events));
        if answer.status == 200 {
            return refused;
        }
        assert_eq!(kind(&answer, 503), "/problems/queue-full");
        assert!(
            answer
                .header("retry-after")
                .is_some_and(|after| after.parse::<u32>().is_ok()),
            "{}",
            answer.head
        );
    }
    unreachable!("it is tried for ever")
}

#[test]
fn a_head_that_is_too_large_is_refused() {
    let server = Server::start();
    // The bound is 32 KiB; what one read brings beyond it may still be taken.
    let long = "x".repeat(128 << 10);
    let many: String = (0..101).map(|number| format!("x-{number}: 1\r\n")).collect();
    for headers in [format!("x-long: {long}\r\n"), many] {
        let mut client = server.client();
        // The server may answer and close before all of it is sent.
        let _ = client.send_raw(format!("GET /health HTTP/1.1\r\nhost: x\r\n{headers}\r\n").as_bytes());
        assert_eq!(client.receive().unwrap().status, 431);
        assert!(client.is_closed());
    }
    assert_eq!(server.client().get("/health").status, 200);
}

#[test]
fn what_is_no_http_is_refused_and_the_server_goes_on() {
    let server = Server::start();
    for garbage in [
        &b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\r\n\r\n"[..],
        b"hello\r\n\r\n",
        b"GET\r\n\r\n",
    ] {
        let mut client = server.client();
        client.send_raw(garbage).unwrap();
        if let Ok(answer) = client.receive() {
            assert_eq!(answer.status, 400, "{answer:?}");
        }
        assert!(client.is_closed());
    }
    assert_eq!(server.client().get("/health").status, 200);
}

#[test]
fn a_body_that_breaks_off_stores_nothing() {
    let server = Server::start();
    let body = Event::array(&[Event::new("t", "1")]);
    let mut client = server.client();
    let head = format!(
        "POST /publish HTTP/1.1\r\nhost: x\r\ncontent-type: {JSON}\r\ncontent-length: {}\r\n\r\n",
        body.len() + 1
    );
    client.send_raw(&[head.as_bytes(), &body].concat()).unwrap();
    drop(client);
    let mut client = server.client();
    client.publish(&[Event::new("t", "2")]);
    assert_eq!(client.counters(), [1, 1, 0, 0]);
}

#[test]
fn many_connections_are_served_beside_each_other() {
    let server = Server::start();
    let mut clients: Vec<_> = (0..200).map(|_| server.client()).collect();
    for round in 0..3 {
        for (number, client) in clients.iter_mut().enumerate() {
            client.publish(&[Event::new("t", &format!("{round}-{number}"))]);
        }
    }
    assert_eq!(clients[0].counters(), [600, 600, 0, 0]);
}
