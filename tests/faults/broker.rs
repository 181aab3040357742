//! The broker: the program dies at each step between Redis and the commit, and Redis dies at random moments or is emptied.
//! What was answered 202, and Redis has kept, is stored once, whatever comes again.

use crate::{
    harness::{Checked, Client, Database, Event, Folder, Moment, Oracle, Redis, Server, eventually, verify},
    kill::ABORTED,
    postgres,
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
    Scenario {
        name: "broker: two instances over PostgreSQL, one killed between commit and acknowledge",
        needs: &[Need::Program("redis-server")],
        run: killed_before_it_acknowledges,
    },
    Scenario {
        name: "broker: two instances over PostgreSQL, Redis killed, emptied, or back without its files",
        needs: &[Need::Program("redis-server")],
        run: redis_loses_what_it_had,
    },
];

const WRITERS: u64 = 4;
const REDIS_KILLS: u64 = 15;
/// How often an event may be committed at most: each crash makes some come again.
const DELIVERIES: u64 = 30;

/// Producers that have their events queued. Each request has one event twice.
pub(crate) struct Producers<'a> {
    oracle: &'a Oracle,
    seed: u64,
    /// Between two requests of one producer.
    pause: Duration,
    stop: AtomicBool,
    queued: AtomicU64,
    /// Whether Redis keeps what it is given from now on.
    keeps: AtomicBool,
}

impl<'a> Producers<'a> {
    pub(crate) fn new(oracle: &'a Oracle, seed: u64) -> Self {
        Self {
            oracle,
            seed,
            pause: Duration::ZERO,
            stop: AtomicBool::new(false),
            queued: AtomicU64::new(0),
            keeps: AtomicBool::new(true),
        }
    }

    /// With pauses, so that a minute of it is not too much to be looked through.
    pub(crate) fn at_ease(self) -> Self {
        Self {
            pause: Duration::from_millis(100),
            ..self
        }
    }

    /// What is answered 202 may be lost, until [`Self::keeps_again`].
    fn may_lose(&self) {
        self.keeps.store(false, Ordering::SeqCst);
    }

    fn keeps_again(&self) {
        self.keeps.store(true, Ordering::SeqCst);
    }

    /// How many requests were answered 202.
    pub(crate) fn queued(&self) -> u64 {
        self.queued.load(Ordering::Relaxed)
    }

    /// Waits until some more are.
    pub(crate) fn queue_some(&self) {
        let before = self.queued();
        eventually("something is queued", || {
            (self.queued() > before + WRITERS).then_some(())
        });
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
            let keeps = self.keeps.load(Ordering::SeqCst);
            let answer = client.attempt(
                "POST",
                "/publish?ack=queued",
                &[("content-type", "application/json")],
                &Event::array(&events),
            );
            let status = answer.map(|answer| answer.status).ok();
            self.oracle
                .settle(&events, DELIVERIES, u64::from(status == Some(202) && keeps));
            match status {
                Some(202) => {
                    self.queued.fetch_add(1, Ordering::Relaxed);
                }
                Some(503) => thread::sleep(Duration::from_millis(10)),
                Some(other) => panic!("answered {other}"),
                None => return,
            }
            thread::sleep(self.pause);
        }
    }

    /// Runs all of them until `meanwhile` has returned.
    pub(crate) fn during(&self, address: SocketAddr, meanwhile: impl FnOnce()) {
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

/// An instance with these settings beside.
pub(crate) fn instance_with_broker(database: &Database, redis: &Redis, settings: &[(&str, &str)]) -> Server {
    let (database, redis) = (database.url(), redis.url());
    let mut all = vec![
        ("DATABASE_URL", database.as_str()),
        ("BROKER_URL", redis.as_str()),
    ];
    all.extend(settings);
    Server::start_with(&all)
}

/// Waits until the broker is empty, then checks the store.
fn checked(redis: &Redis, server: &Server, oracle: &Oracle) -> Checked {
    drained(redis);
    oracle.check(&mut server.client(), Moment::LAST)
}

/// Waits until the broker is empty; nothing has become a dead letter.
pub(crate) fn drained(redis: &Redis) {
    eventually("the broker is drained", || {
        let left: u64 = (0..16)
            .map(|partition| redis.call::<u64>(&["XLEN", &format!("{{oncelog}}:stream:{partition}")]))
            .sum();
        (left == 0).then_some(())
    });
    let dead: u64 = redis.call(&["XLEN", "{oncelog}:dead"]);
    assert_eq!(dead, 0, "nothing was wrong with the events");
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
            producers.queue_some();
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

/// What it had committed comes again, to the other instance, and is duplicates.
fn killed_before_it_acknowledges() -> String {
    let crashes = [1, 20];
    let (database, redis) = (Database::new(), Redis::start());
    let oracle = postgres::new_oracle();
    let stays = instance_with_broker(&database, &redis, &[]);
    let mut queued = 0;
    for time in crashes {
        let crash = format!("{}:{time}", CrashPoint::BrokerCommitted.name());
        let goes = instance_with_broker(&database, &redis, &[("ONCELOG_CRASH_AT", &crash)]);
        let producers = Producers::new(&oracle, time).at_ease();
        producers.during(stays.address(), || {
            let status = goes.ended();
            assert!(
                status.signal() == Some(ABORTED),
                "{crash}: {status}\n{}",
                goes.log()
            );
            producers.queue_some();
        });
        queued += producers.queued();
        drained(&redis);
        oracle.check(&mut stays.client(), Moment::LAST);
    }
    let [.., duplicates, conflicts] = stays.client().counters();
    let again = duplicates - queued;
    assert!(again >= crashes.len() as u64, "{again} came again");
    assert_eq!(conflicts, 0);
    let other = instance_with_broker(&database, &redis, &[]);
    let acknowledged = postgres::check(&[&stays, &other], &oracle, &postgres::new_load(0));
    format!(
        "{} crashes, {acknowledged} events acknowledged, {again} came again",
        crashes.len()
    )
}

/// What is done to Redis.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    Killed,
    Emptied,
    /// As if its disk were a new one.
    FilesLost,
}

impl Fault {
    fn strike(self, redis: &Redis) {
        if self == Self::Emptied {
            return redis.call(&["FLUSHALL"]);
        }
        redis.kill9();
        if self == Self::FilesLost {
            redis.lose_everything();
        }
        redis.start_again();
    }
}

/// Clients whose events go to the store at once see nothing of it; what is queued afterwards is stored.
fn redis_loses_what_it_had() -> String {
    use Fault::*;
    let faults = [Killed, Emptied, FilesLost, Killed, Emptied, FilesLost];
    let (database, redis) = (Database::new(), Redis::start());
    let oracle = postgres::new_oracle();
    let [a, b]: [Server; 2] = std::array::from_fn(|_| instance_with_broker(&database, &redis, &[]));
    let load = postgres::new_load(1000);
    let mut queued = 0;
    postgres::under_load(&[&a, &b], &oracle, &load, || {
        for (seed, fault) in (0..).zip(faults) {
            let before = Producers::new(&oracle, 2 * seed).at_ease();
            before.during(a.address(), || before.queue_some());
            drained(&redis);
            let producers = Producers::new(&oracle, 2 * seed + 1).at_ease();
            if fault != Killed {
                producers.may_lose();
            }
            producers.during(b.address(), || {
                producers.queue_some();
                fault.strike(&redis);
                producers.keeps_again();
                producers.queue_some();
            });
            queued += before.queued() + producers.queued();
        }
    });
    drained(&redis);
    for instance in [&a, &b] {
        assert_eq!(instance.client().get("/health").ok()["status"], "healthy");
    }
    let acknowledged = postgres::check(&[&a, &b], &oracle, &load);
    format!(
        "{} faults, {acknowledged} events acknowledged, {queued} requests queued",
        faults.len()
    )
}
