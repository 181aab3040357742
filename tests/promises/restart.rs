//! What was acknowledged is there after kill -9 and after a stop under load, once, byte for byte; the counters too.
//! `tests/faults` goes on from here with many more kills and every other fault.

use crate::harness::{Event, Load, Moment, Oracle, Server, eventually, verify};
use std::thread;

const ROUNDS: u64 = 10;
const WRITERS: u64 = 4;
/// Requests that must have been acknowledged in a round before the server is killed.
const ACKNOWLEDGED: usize = 40;

/// Clients of all kinds, until `end` has ended the server.
fn under_load(server: &Server, oracle: &Oracle, round: u64, end: impl FnOnce()) {
    let load = Load::new(round);
    let before = oracle.answers();
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let load = &load;
            scope.spawn(move || load.write(server.address(), oracle, writer));
        }
        scope.spawn(|| load.read(server.address()));
        eventually("requests are acknowledged", || {
            (oracle.answers() >= before + ACKNOWLEDGED).then_some(())
        });
        end();
        load.stop();
    });
}

#[test]
fn ten_times_killed_under_load_the_store_holds_all_that_was_acknowledged_exactly_once() {
    let oracle = Oracle::default();
    let mut server = Server::start();
    for round in 0..ROUNDS {
        under_load(&server, &oracle, round, || server.kill9());
        server = server.restart();
        oracle.check(&mut server.client(), Moment::LAST);
    }
    oracle.check_all(&mut server.client());
    server.stop();
    verify(server.folder());
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
    let oracle = Oracle::default();
    let server = Server::start();
    under_load(&server, &oracle, 0, || server.stop());
    let server = server.restart();
    oracle.check_all(&mut server.client());
}
