//! The broker: the program dies at each step between Redis and the commit, and Redis dies at random moments. What was
//! answered 202 is stored once, whatever comes again.

use crate::{
    harness::{Checked, Client, Event, Folder, Moment, Oracle, Redis, Server, eventually, verify},
    kill::ABORTED,
    scenario::{Need, Scenario},
};
use oncelog::faults::CrashPoint;
use std::{
    net::SocketAddr,
    os::unix::process::ExitStatusExt,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "broker: kill at each step between Redis and the commit",
        needs: &[Need::Program("redis-server")],
        run: at_each_step,
    },
    Scenario {
        name: "broker: kill Redis at random moments under load",
        needs: &[Need::Program("redis-server")],
        run: redis_at_random_moments,
    },
];

const WRITERS: u64 = 4;
const REDIS_KILLS: u64 = 15;
/// How often an event may be committed at most: each crash makes some come again.
const DELIVERIES: u64 = 30;

/// Producers that have their events queued.
struct Producers<'a> {
    oracle: &'a Oracle,
    seed: u64,
    stop: AtomicBool,
    queued: AtomicU64,
}

impl<'a> Producers<'a> {
    fn new(oracle: &'a Oracle, seed: u64) -> Self {
        Self {
            oracle,
            seed,
            stop: AtomicBool::new(false),
            queued: AtomicU64::new(0),
        }
    }

    /// Publishes until it is stopped, or the server is gone.
    fn run(&self, address: SocketAddr, writer: u64) {
        let mut client = Client::new(address);
        let mut random = fastrand::Rng::with_seed(self.seed << 8 | writer);
        for request in 0_u64.. {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let topic = format!("topic-{}", random.u32(0..20));
            let mut events: Vec<_> = (0..random.u64(1..40))
                .map(|number| Event::new(&topic, &format!("{}-{writer}-{request}-{number}", self.seed)))
                .collect();
            events.push(events[0].clone());
            let answer = client.attempt(
                "POST",
                "/publish?ack=queued",
                &[("content-type", "application/json")],
                &Event::array(&events),
            );
            let status = answer.map(|answer| answer.status).ok();
            self.oracle
                .settle(&events, DELIVERIES, u64::from(status == Some(202)));
            match status {
                Some(202) => {
                    self.queued.fetch_add(1, Ordering::Relaxed);
                }
                Some(503) => thread::sleep(Duration::from_millis(10)),
                Some(other) => panic!("answered {other}"),
                None => return,
            }
        }
    }

    /// Runs all of them until `meanwhile` has returned.
    fn during(&self, address: SocketAddr, meanwhile: impl FnOnce()) {
        struct Stopped<'a>(&'a AtomicBool);
        impl Drop for Stopped<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        thread::scope(|scope| {
            for writer in 0..WRITERS {
                scope.spawn(move || self.run(address, writer));
            }
            // Also when a check fails: whoever waits for them would hide it.
            let _stopped = Stopped(&self.stop);
            meanwhile();
        });
    }
}

/// Waits until the broker is empty, then checks the store.
fn checked(redis: &Redis, server: &Server, oracle: &Oracle) -> Checked {
    eventually("the broker is drained", || {
        let left: u64 = (0..16)
            .map(|partition| redis.call::<u64>(&["XLEN", &format!("{{oncelog}}:stream:{partition}")]))
            .sum();
        (left == 0).then_some(())
    });
    let dead: u64 = redis.call(&["XLEN", "{oncelog}:dead"]);
    assert_eq!(dead, 0, "nothing was wrong with the events");
    oracle.check(&mut server.client(), Moment::LAST)
}

fn at_each_step() -> String {
    use CrashPoint::*;
    let points = [BrokerQueued, BrokerRead, BrokerCommitted, BrokerAcknowledged];
    let (mut crashes, mut acknowledged) = (0, 0);
    for point in points {
        let redis = Redis::start();
        let url = redis.url();
        let folder = Folder::new();
        let oracle = Oracle::default();
        for time in [1, 2, 7, 40] {
            let crash = format!("{}:{time}", point.name());
            let settings = [("BROKER_URL", url.as_str()), ("ONCELOG_CRASH_AT", &crash)];
            let server = Server::start_in(folder.clone(), &settings);
            Producers::new(&oracle, time).during(server.address(), || {
                let status = server.ended();
                assert!(
                    status.signal() == Some(ABORTED),
                    "{crash}: {status}\n{}",
                    server.log()
                );
            });
            crashes += 1;
            // The dead one's leases would end by themselves after a while.
            redis.give_free();
            let server = Server::start_in(folder.clone(), &[("BROKER_URL", &url)]);
            checked(&redis, &server, &oracle);
            server.kill9();
            redis.give_free();
        }
        let server = Server::start_in(folder.clone(), &[("BROKER_URL", &url)]);
        oracle.send_again(&mut server.client(), Moment::LAST);
        acknowledged += checked(&redis, &server, &oracle).acknowledged;
        server.stop();
        verify(&folder);
    }
    format!(
        "{crashes} crashes at {} steps, {acknowledged} events acknowledged",
        points.len()
    )
}

fn redis_at_random_moments() -> String {
    let mut random = fastrand::Rng::with_seed(7);
    let redis = Redis::start();
    let server = Server::start_with(&[("BROKER_URL", &redis.url())]);
    let oracle = Oracle::default();
    let producers = Producers::new(&oracle, 1);
    producers.during(server.address(), || {
        for _ in 0..REDIS_KILLS {
            let before = producers.queued.load(Ordering::Relaxed);
            eventually("something is queued", || {
                (producers.queued.load(Ordering::Relaxed) > before).then_some(())
            });
            thread::sleep(Duration::from_micros(random.u64(0..300_000)));
            redis.kill9();
            redis.start_again();
        }
    });
    let acknowledged = checked(&redis, &server, &oracle).acknowledged;
    server.stop();
    verify(server.folder());
    format!("{REDIS_KILLS} kills, {acknowledged} events acknowledged")
}
