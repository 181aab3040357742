//! Stops: SIGTERM and SIGINT under load, in a start, and with clients that hang. What was answered is stored, what is
//! stored was answered, and the end comes in time.

use crate::{
    harness::{Client, Event, Folder, Load, Moment, Oracle, Server, eventually, oncelog, verify},
    kill::{SMALL, damage_a_segment, under_load},
    scenario::Scenario,
};
use oncelog::limits::SHUTDOWN_TIMEOUT;
use rustix::process::{Pid, Signal, kill_process};
use std::{
    net::{SocketAddr, TcpStream},
    os::unix::process::ExitStatusExt,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "stop: a hundred times under load",
        needs: &[],
        run: under_load_a_hundred_times,
    },
    Scenario {
        name: "stop: with clients that hang",
        needs: &[],
        run: with_clients_that_hang,
    },
    Scenario {
        name: "stop: a second signal ends at once",
        needs: &[],
        run: by_a_second_signal,
    },
    Scenario {
        name: "stop: during a start",
        needs: &[],
        run: during_a_start,
    },
];

const STOPS: u64 = 100;
const STOPS_A_STORE: u64 = 10;
/// Beyond the bound on requests: for the committer, the last checkpoint, and a busy machine.
const SLACK: Duration = Duration::from_secs(10);
/// Requests that a client sends before it reads the first answer.
const PIPELINED: usize = 20;

fn under_load_a_hundred_times() -> String {
    let mut random = fastrand::Rng::with_seed(3);
    let (mut stops, mut acknowledged, mut slowest) = (0, 0, Duration::ZERO);
    while stops < STOPS {
        let oracle = Oracle::default();
        let folder = Folder::new();
        let mut server = Server::start_in(folder.clone(), &[SMALL]);
        for _ in 0..STOPS_A_STORE {
            let load = Load::new(stops);
            let before = oracle.answers();
            let pause = Duration::from_micros(random.u64(0..200_000));
            let signal = if stops % 5 == 4 { "INT" } else { "TERM" };
            under_load(&server, &oracle, &load, || {
                thread::scope(|scope| {
                    scope.spawn(|| pipeline(server.address(), &oracle, stops));
                    eventually("requests are acknowledged", || {
                        (oracle.answers() > before).then_some(())
                    });
                    thread::sleep(pause);
                    slowest = slowest.max(stop(&server, signal));
                });
            });
            assert!(
                !server.log().contains("did not end in time"),
                "clients that read their answers hold nothing up:\n{}",
                server.log()
            );
            stops += 1;
            server = server.restart();
            oracle.check_exactly(&mut server.client());
        }
        acknowledged += oracle.check_all(&mut server.client()).acknowledged;
        server.stop();
        verify(&folder);
    }
    format!(
        "{stops} stops, the slowest in {} ms, {acknowledged} events acknowledged, no other stored",
        slowest.as_millis()
    )
}

/// Asks the server to end, checks that it ends well and in time, and returns how long it took.
#[track_caller]
fn stop(server: &Server, signal: &str) -> Duration {
    let asked = Instant::now();
    server.signal(signal);
    let status = server.ended();
    let took = asked.elapsed();
    assert_eq!(status.code(), Some(0), "after SIG{signal}:\n{}", server.log());
    assert!(
        took <= SHUTDOWN_TIMEOUT + SLACK,
        "it ended after {took:?}:\n{}",
        server.log()
    );
    took
}

/// Sends requests ahead of their answers, until the server goes away. Those that it does not get to are not stored.
fn pipeline(address: SocketAddr, oracle: &Oracle, round: u64) {
    for turn in 0.. {
        let mut client = Client::new(address);
        let mut unanswered: Vec<Event> = (0..PIPELINED)
            .map(|number| Event::new("pipelined", &format!("{round}-{turn}-{number}")))
            .collect();
        oracle.offer(&unanswered);
        let requests: Vec<u8> = unanswered.iter().flat_map(publish).collect();
        let mut answers = client.send_raw(&requests).map(|()| PIPELINED);
        while let Ok(left @ 1..) = answers {
            answers = client.receive().map(|answer| {
                let event = unanswered.remove(0);
                match answer.status {
                    200 => oracle.acknowledge(&[event], &answer.json()),
                    _ => {
                        answer.problem(503);
                        oracle.doubt(vec![event]);
                    }
                }
                left - 1
            });
        }
        if answers.is_err() {
            unanswered.into_iter().for_each(|event| oracle.doubt(vec![event]));
            return;
        }
    }
}

fn publish(event: &Event) -> Vec<u8> {
    let body = Event::array(std::slice::from_ref(event));
    let head = format!(
        "POST /publish?results=true HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.into_bytes(), body].concat()
}

/// Some hang for good and are cut off, but only they, and not before their time.
fn with_clients_that_hang() -> String {
    let oracle = Oracle::default();
    let folder = Folder::new();
    let server = Server::start_in(folder.clone(), &[SMALL]);
    let text = "x".repeat(100_000);
    for number in 0..100 {
        let event = Event::new("large", &number.to_string());
        let payload = format!(r#"{{"id":"{number}","text":"{text}"}}"#);
        oracle.publish(&mut server.client(), &[event.with_payload(&payload)]);
    }

    let mut idle: Vec<_> = (0..50).map(|_| server.client()).collect();
    for client in &mut idle {
        client.get("/livez").ok();
    }
    let silent = TcpStream::connect(server.address()).unwrap();
    let mut half_head = server.client();
    half_head.send_raw(b"GET /health HTTP/1.1\r\nhost:").unwrap();

    let whole = publish(&Event::new("hanging", "half a body"));
    let mut half_body = server.client();
    half_body.send_raw(&whole[..whole.len() - 5]).unwrap();
    oracle.offer(&[Event::new("hanging", "half a body")]);
    gauge_rises(&server, "oncelog_request_bodies_bytes");

    let mut slow_reader = server.client();
    slow_reader
        .send_raw(&b"GET /events HTTP/1.1\r\nhost: x\r\n\r\n".repeat(20))
        .unwrap();
    gauge_rises(&server, "oncelog_answers_bytes");

    // Two requests at once: when the first is answered, the second has arrived.
    let mut waiting: Vec<_> = (0..10).map(|_| server.client()).collect();
    for client in &mut waiting {
        client
            .send_raw(
                b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n\
                  GET /events?order=asc&position=end&topic=none&wait=30 HTTP/1.1\r\nhost: x\r\n\r\n",
            )
            .unwrap();
        client.receive().unwrap().ok();
    }

    let mut took = Duration::ZERO;
    under_load(&server, &oracle, &Load::new(1), || {
        eventually("requests are acknowledged", || {
            (oracle.answers() > 200).then_some(())
        });
        took = stop(&server, "TERM");
    });
    assert!(
        took >= SHUTDOWN_TIMEOUT,
        "the requests in work were cut off after {took:?}:\n{}",
        server.log()
    );
    for client in &mut waiting {
        let page = client
            .receive()
            .expect("a query that waits is answered when the server stops")
            .ok();
        assert_eq!(page["count"], 0, "{page}");
    }
    let left: Vec<_> = idle.iter_mut().chain([&mut half_head, &mut half_body]).collect();
    for client in left {
        assert!(client.is_closed(), "it is closed without a word");
    }
    drop((silent, slow_reader));

    let server = server.restart();
    oracle.check_exactly(&mut server.client());
    let checked = oracle.check_all(&mut server.client());
    server.stop();
    verify(&folder);
    format!(
        "stopped in {} ms, {} events acknowledged, no other stored",
        took.as_millis(),
        checked.acknowledged
    )
}

fn gauge_rises(server: &Server, name: &str) {
    eventually(name, || {
        let metrics = server.client().get("/metrics");
        let value = metrics
            .text()
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned));
        (value.expect("the gauge") != "0").then_some(())
    });
}

/// The second signal is for a person who does not want to wait: like a kill, but said in the log.
fn by_a_second_signal() -> String {
    let folder = Folder::new();
    let oracle = Oracle::default();
    let signals = ["TERM", "INT"];
    for (round, second) in signals.into_iter().enumerate() {
        let server = Server::start_in(folder.clone(), &[SMALL]);
        // A body that never ends keeps the server from stopping before the second signal.
        let whole = publish(&Event::new("hanging", "half a body"));
        let mut half_body = server.client();
        half_body.send_raw(&whole[..whole.len() - 5]).unwrap();
        gauge_rises(&server, "oncelog_request_bodies_bytes");
        under_load(&server, &oracle, &Load::new(round as u64), || {
            let before = oracle.answers();
            eventually("requests are acknowledged", || {
                (oracle.answers() > before + 100).then_some(())
            });
            server.terminate();
            eventually("the server begins to stop", || {
                server.log().contains("stopping").then_some(())
            });
            let asked = Instant::now();
            server.signal(second);
            assert_eq!(server.ended().code(), Some(1), "{}", server.log());
            assert!(
                asked.elapsed() < SHUTDOWN_TIMEOUT,
                "at once, not after {:?}",
                asked.elapsed()
            );
        });
        let log = eventually("it says so", || {
            Some(server.log()).filter(|log| log.contains("ending at once"))
        });
        assert!(!log.contains("stopped"), "{log}");
        let server = Server::start_in(folder.clone(), &[SMALL]);
        oracle.check(&mut server.client(), Moment::LAST);
        server.kill9();
    }
    let server = Server::start_in(folder.clone(), &[SMALL]);
    let checked = oracle.check_all(&mut server.client());
    server.stop();
    verify(&folder);
    format!(
        "{} ends, {} events acknowledged",
        signals.len(),
        checked.acknowledged
    )
}

/// At random moments of starts that have a write-ahead log and a tail to read and a segment to rebuild.
fn during_a_start() -> String {
    const STOPS: u64 = 40;
    let mut random = fastrand::Rng::with_seed(4);
    let folder = Folder::new();
    let oracle = Oracle::default();
    let (mut at_once, mut while_opening) = (0, 0);
    for round in 0..STOPS {
        if round % 8 == 0 {
            let server = Server::start_in(folder.clone(), &[SMALL]);
            under_load(&server, &oracle, &Load::new(round), || {
                let before = oracle.answers();
                eventually("requests are acknowledged", || {
                    (oracle.answers() > before + 300).then_some(())
                });
                server.kill9();
            });
        }
        damage_a_segment(&folder);
        let mut child = oncelog(&folder)
            .arg("serve")
            .env(SMALL.0, SMALL.1)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        thread::sleep(Duration::from_micros(random.u64(0..20_000)));
        kill_process(Pid::from_child(&child), Signal::TERM).expect("it has not ended");
        let asked = Instant::now();
        let status = eventually("the server ends", || child.try_wait().unwrap());
        let log = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
        assert!(asked.elapsed() <= SHUTDOWN_TIMEOUT + SLACK, "{log}");
        // Before it waits for signals, it ends as any program does.
        if status.signal() == Some(Signal::TERM.as_raw()) && log.is_empty() {
            at_once += 1;
            continue;
        }
        assert_eq!(status.code(), Some(0), "{log}");
        while_opening += u64::from(log.contains("stopped while the store was being opened"));
    }
    let server = Server::start_in(folder.clone(), &[SMALL]);
    let checked = oracle.check_all(&mut server.client());
    server.stop();
    verify(&folder);
    format!(
        "{STOPS} stops, {while_opening} of them while the store was being opened, {at_once} before that, {} events \
         acknowledged",
        checked.acknowledged
    )
}
