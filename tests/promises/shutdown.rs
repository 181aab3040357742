//! A server that is told to stop finishes what it has taken in, answers it, and ends with exit code 0.

use crate::harness::{Event, Server, eventually, oncelog};
use std::{net::TcpStream, process::Stdio};

#[test]
fn sigterm_and_sigint_end_an_idle_server_well() {
    for signal in ["TERM", "INT"] {
        let server = Server::start();
        server.client().publish(&[Event::new("t", signal)]);
        server.signal(signal);
        assert_eq!(server.ended().code(), Some(0), "SIG{signal}: {}", server.log());
        assert!(
            TcpStream::connect(server.address()).is_err(),
            "nobody listens any more"
        );
        eventually("it logs that it stopped", || {
            server.log().contains("stopped").then_some(())
        });
    }
}

#[test]
fn a_request_whose_body_is_still_on_its_way_is_answered_before_the_end() {
    let server = Server::start();
    let body = Event::array(&[Event::new("t", "1"), Event::new("t", "2")]);
    let head = format!(
        "POST /publish HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut client = server.client();
    client.send_raw(&[head.as_bytes(), &body[..20]].concat()).unwrap();
    eventually("the server reads the body", || {
        let metrics = server.client().get("/metrics");
        let bodies = metrics
            .text()
            .lines()
            .find_map(|line| line.strip_prefix("oncelog_request_bodies_bytes "));
        (bodies.expect("the gauge of request bodies") != "0").then_some(())
    });
    server.terminate();
    eventually("the server stops listening", || {
        TcpStream::connect(server.address()).is_err().then_some(())
    });
    client.send_raw(&body[20..]).unwrap();
    assert_eq!(client.receive().unwrap().ok()["accepted"], 2);
    assert_eq!(server.ended().code(), Some(0), "{}", server.log());
    let server = server.restart();
    assert_eq!(server.client().counters(), [2, 2, 0, 0]);
}

#[test]
fn a_query_that_waits_for_events_is_answered_at_once() {
    let server = Server::start();
    let mut client = server.client();
    // Two requests at once: when the first is answered, the second has arrived.
    client
        .send_raw(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\nGET /events?order=asc&wait=30 HTTP/1.1\r\nhost: x\r\n\r\n")
        .unwrap();
    assert_eq!(client.receive().unwrap().status, 200);
    server.terminate();
    let page = client
        .receive()
        .expect("an answer before the connection is closed")
        .ok();
    assert_eq!(page["count"], 0);
    assert!(page["next"].is_string());
    assert_eq!(server.ended().code(), Some(0), "{}", server.log());
}

#[test]
fn idle_connections_do_not_hold_up_the_end() {
    let server = Server::start();
    let mut idle: Vec<_> = (0..10).map(|_| server.client()).collect();
    for client in &mut idle {
        client.get("/livez");
    }
    let silent = TcpStream::connect(server.address()).unwrap();
    server.stop();
    for client in &mut idle {
        assert!(client.is_closed());
    }
    drop(silent);
}

/// A start heard a signal only when it was over: one that rebuilt a large segment went on for minutes, and one that
/// waited for another program, which is what this test can make, was refused instead of stopped.
#[test]
fn sigterm_ends_a_start_that_takes_long() {
    let server = Server::start();
    server.client().publish(&[Event::new("t", "1")]);
    server.kill9();
    let folder = server.folder().clone();
    // The start has to wait for whoever reads what is in the write-ahead log.
    let other = rusqlite::Connection::open(folder.database()).unwrap();
    other
        .execute_batch("BEGIN; SELECT count(*) FROM processed_events")
        .unwrap();
    let mut starting = oncelog(&folder)
        .arg("serve")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    eventually("it has the lock", || {
        let holder = std::fs::read_to_string(folder.path().join("data/dedup.db.lock")).unwrap();
        (holder.trim() == starting.id().to_string()).then_some(())
    });
    let process = rustix::process::Pid::from_child(&starting);
    rustix::process::kill_process(process, rustix::process::Signal::TERM).unwrap();
    let status = eventually("it ends", || starting.try_wait().unwrap());
    let log = std::io::read_to_string(starting.stderr.take().unwrap()).unwrap();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("stopped while the store was being opened"), "{log}");
    drop(other);
    assert_eq!(server.restart().client().counters(), [1, 1, 0, 0]);
}
