//! A store in a PostgreSQL server, with two instances: instances that are killed, a server that is stopped in the middle of
//! commits or away for a minute, connections that are cut exactly at COMMIT and where it is told what became of one, a network
//! that drops everything. The clients go on all the while; afterwards both instances have to be healthy without help and to
//! agree on all that was answered.

use crate::{
    broker::{Producers, drained, instance_with_broker},
    harness::{
        Answer, Cut, Database, Event, Load, Moment, Network, Oracle, Postgres, Proxy, Redis, Server,
        StoreKind, eventually,
    },
    kill::ABORTED,
    scenario::{Need, Scenario, side_by_side},
};
use oncelog::faults::CrashPoint;
use std::{
    os::unix::process::ExitStatusExt,
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "postgres: instances killed at random moments under mixed load",
        needs: &[],
        run: instances_killed_at_random,
    },
    Scenario {
        name: "postgres: instances killed at each step of a commit",
        needs: &[],
        run: instances_killed_at_each_step,
    },
    Scenario {
        name: "postgres: server stopped or killed in the middle of commits",
        needs: &[],
        run: server_stopped,
    },
    Scenario {
        name: "postgres: server away for a minute, also while it is asked what became of a commit",
        needs: &[Need::Program("redis-server")],
        run: away_for_long,
    },
    Scenario {
        name: "postgres: connections cut at COMMIT, before it, after it, and late, and when its outcome is told",
        needs: &[],
        run: connections_cut,
    },
    Scenario {
        name: "postgres: proxy that drops everything for a while",
        needs: &[],
        run: proxy_drops,
    },
    Scenario {
        name: "postgres: router that drops everything for a while",
        needs: &[Need::NetworkNamespaces],
        run: router_drops,
    },
];

const WRITERS: u64 = 3;

/// What an instance logs of a commit whose outcome it could not find out in time.
const LEFT_OPEN: &str = "a commit got no answer, and the server did not come back";

/// Clients of all kinds at each instance, until `meanwhile` has returned.
pub(crate) fn under_load(instances: &[&Server], oracle: &Oracle, load: &Load, meanwhile: impl FnOnce()) {
    thread::scope(|scope| {
        for (number, instance) in (0..).zip(instances) {
            let address = instance.address();
            for writer in 0..WRITERS {
                scope.spawn(move || load.write(address, oracle, number * WRITERS + writer));
            }
            scope.spawn(move || load.read(address));
        }
        let _running = load.running();
        meanwhile();
    });
}

/// Waits for so many answers more.
pub(crate) fn answers(oracle: &Oracle, more: usize) {
    let before = oracle.answers();
    eventually("requests are acknowledged", || {
        (oracle.answers() >= before + more).then_some(())
    });
}

/// Waits until an instance says that it is, or is not, healthy.
pub(crate) fn wait_for_health(instance: &Server, is_healthy: bool) {
    eventually("health tells the truth", || {
        let answer = instance.client().get("/health");
        match (answer.status, is_healthy) {
            (200, true) => Some(()),
            (503, false) => {
                let text = answer.text();
                assert!(text.contains("PostgreSQL at "), "{text}");
                Some(())
            }
            _ => None,
        }
    });
}

/// All instances become healthy by themselves, and each has all that was answered.
pub(crate) fn check(instances: &[&Server], oracle: &Oracle, load: &Load) -> u64 {
    for instance in instances {
        wait_for_health(instance, true);
        let client = &mut instance.client();
        oracle.check(client, Moment::LAST);
        load.check_readers(client);
    }
    oracle.check_all(&mut instances[0].client()).acknowledged
}

/// The same where no request was left without an answer: what was answered with a 503 is not stored, and nothing is counted
/// that was not answered.
fn check_exactly(instances: &[&Server], oracle: &Oracle, load: &Load) -> u64 {
    for instance in instances {
        assert!(!instance.log().contains(LEFT_OPEN), "{}", instance.log());
    }
    let acknowledged = check(instances, oracle, load);
    oracle.check_exactly(&mut instances[0].client());
    acknowledged
}

pub(crate) fn new_oracle() -> Oracle {
    Oracle::of(StoreKind::Server)
}

pub(crate) fn new_load(seed: u64) -> Load {
    Load::on(StoreKind::Server, seed)
}

fn instances_killed_at_random() -> String {
    const KILLS: u64 = 12;
    let mut random = fastrand::Rng::with_seed(1);
    let database = Database::new();
    let oracle = new_oracle();
    let [mut stays, mut goes] = database.instances();
    for kill in 0..KILLS {
        let load = new_load(kill);
        under_load(&[&stays, &goes], &oracle, &load, || {
            answers(&oracle, random.usize(5..60));
            goes.kill9();
            // The other one goes on, also where the dead one has left a transaction.
            answers(&oracle, 20);
        });
        goes = goes.restart();
        oracle.check(&mut goes.client(), Moment::LAST);
        load.check_readers(&mut goes.client());
        std::mem::swap(&mut stays, &mut goes);
    }
    let acknowledged = check(&[&stays, &goes], &oracle, &new_load(0));
    format!("{KILLS} kills, {acknowledged} events acknowledged")
}

fn instances_killed_at_each_step() -> String {
    use CrashPoint::*;
    let points = [CommitInserted, CommitWritten, CommitDurable, CommitAnswered];
    let database = Database::new();
    let oracle = new_oracle();
    let stays = database.instance();
    let mut crashes = 0;
    for point in points {
        for time in [1, 5] {
            let crash = format!("{}:{time}", point.name());
            let goes = Server::start_with(&[("DATABASE_URL", &database.url()), ("ONCELOG_CRASH_AT", &crash)]);
            crashes += 1;
            let load = new_load(crashes);
            under_load(&[&stays, &goes], &oracle, &load, || {
                let status = goes.ended();
                assert_eq!(
                    status.signal(),
                    Some(ABORTED),
                    "{crash}: {status}\n{}",
                    goes.log()
                );
                answers(&oracle, 10);
            });
            let again = database.instance();
            oracle.check(&mut again.client(), Moment::LAST);
            load.check_readers(&mut again.client());
        }
    }
    let acknowledged = check(&[&stays, &database.instance()], &oracle, &new_load(0));
    format!(
        "{crashes} crashes at {} steps, {acknowledged} events acknowledged",
        points.len()
    )
}

fn server_stopped() -> String {
    const STOPS: u64 = 6;
    let server = Postgres::start();
    let database = server.database();
    let oracle = new_oracle();
    let [a, b] = database.instances();
    let mut random = fastrand::Rng::with_seed(2);
    let (mut acknowledged, mut refused) = (0, 0);
    for stop in 0..STOPS {
        let load = new_load(stop);
        under_load(&[&a, &b], &oracle, &load, || {
            answers(&oracle, random.usize(5..60));
            match stop % 3 {
                0 => server.stop(),
                1 => server.kill9(),
                _ => server.stop_immediate(),
            }
            server.start_again();
            answers(&oracle, 20);
        });
        refused += load.refused.load(Ordering::Relaxed);
        acknowledged = check_exactly(&[&a, &b], &oracle, &load);
    }
    format!("{STOPS} stops, {acknowledged} events acknowledged, {refused} requests refused meanwhile")
}

/// The two things that take a minute, side by side.
fn away_for_long() -> String {
    thread::scope(|scope| {
        let in_doubt = scope.spawn(|| side_by_side(2, [Cut::Before, Cut::After], commit_in_doubt));
        let figures = server_away();
        let in_doubt = in_doubt.join().expect("commits in doubt are found out about");
        format!(
            "{figures}, {} commits in doubt for longer than that",
            in_doubt.len()
        )
    })
}

fn server_away() -> String {
    const AWAY: Duration = Duration::from_mins(1);
    let (server, redis) = (Postgres::start(), Redis::start());
    let database = server.database();
    let oracle = new_oracle();
    let [a, b]: [Server; 2] = std::array::from_fn(|_| instance_with_broker(&database, &redis, &[]));
    let load = new_load(1).leaving_doubts();
    let producers = Producers::new(&oracle, 2).at_ease();
    let under_all_load = |meanwhile: &dyn Fn()| {
        under_load(&[&a, &b], &oracle, &load, || {
            producers.during(b.address(), meanwhile);
        });
    };
    under_all_load(&|| {
        answers(&oracle, 50);
        producers.queue_some();
        server.stop_immediate();
        let stopped = Instant::now();
        for instance in [&a, &b] {
            wait_for_health(instance, false);
        }
        while stopped.elapsed() < AWAY {
            for instance in [&a, &b] {
                let mut client = instance.client();
                assert_eq!(client.get("/readyz").status, 503);
                assert_eq!(client.get("/livez").status, 200, "a restart is no cure");
                client.get("/events").problem(503);
                client.get("/stats").problem(503);
            }
            // Redis takes events all the while.
            producers.queue_some();
        }
        assert!(load.refused.load(Ordering::Relaxed) > 4 * WRITERS);
        server.start_again();
        for instance in [&a, &b] {
            wait_for_health(instance, true);
        }
        answers(&oracle, 50);
        producers.queue_some();
    });
    drained(&redis);
    let acknowledged = check(&[&a, &b], &oracle, &load);
    format!(
        "{acknowledged} events acknowledged, {} requests refused and {} queued meanwhile",
        load.refused.load(Ordering::Relaxed),
        producers.queued()
    )
}

/// A commit gets no answer, and the server stays away until the instance has given up to ask what became of it. Its client
/// is told to send again, and what it sends is new if the commit did not happen, or duplicates if it did.
fn commit_in_doubt(&cut: &Cut) {
    const NEW: usize = 30;
    let database = Database::new();
    let (proxy, through, direct) = behind_a_proxy(&database);
    let oracle = new_oracle();
    let mut client = through.client();
    let known = Event::numbered("topic", 0..10);
    let told = |answer: Option<Answer>| {
        let answer = answer.expect("an answer").ok();
        [&answer["accepted"], &answer["duplicates"], &answer["conflicts"]]
            .map(|count| count.as_u64().expect("a count"))
    };
    assert_eq!(told(oracle.publish(&mut client, &known)), [10, 0, 0]);
    assert_eq!(told(oracle.publish(&mut client, &known)), [0, 10, 0]);
    // Counters are folded in a commit, too, and it is not that one which is to be cut off.
    eventually("counters are folded", || {
        let rows = "SELECT coalesce(max(rows), 0) <= 1 FROM (SELECT count(*) AS rows FROM oncelog.commits GROUP BY writer) AS of";
        (database.sql(rows) == "t").then_some(())
    });
    let mut batch = Event::numbered("topic", 0..10 + NEW);
    batch.extend(Event::numbered("topic", 5..15));
    batch.push(known[0].clone().with_payload("{}"));
    let all = batch.len() as u64;

    proxy.cut_off(cut);
    let refused = oracle.publish(&mut client, &batch).expect("an answer");
    refused.problem(503);
    assert!(through.log().contains(LEFT_OPEN), "{}", through.log());
    oracle.doubt(batch.clone());
    wait_for_health(&through, false);
    let others = Event::numbered("others", 0..20);
    assert_eq!(told(oracle.publish(&mut direct.client(), &others)), [20, 0, 0]);

    proxy.let_through();
    wait_for_health(&through, true);
    let happened = cut == Cut::After;
    let answer = told(oracle.publish(&mut client, &batch));
    let new = NEW as u64;
    match happened {
        true => assert_eq!(answer, [0, all, 1]),
        false => assert_eq!(answer, [new, all - new, 1]),
    }
    let in_all = 20 + 20 + all * (1 + u64::from(happened));
    let stored = 10 + 20 + new;
    let expected = [in_all, stored, in_all - stored, 1 + u64::from(happened)];
    for instance in [&through, &direct] {
        assert_eq!(instance.client().counters(), expected);
    }
    check(&[&through, &direct], &oracle, &new_load(1));
}

/// A proxy, an instance that reaches the database through it, and one that needs no proxy.
fn behind_a_proxy(database: &Database) -> (Proxy, Server, Server) {
    let proxy = Proxy::to(database.server().port());
    let through = Server::start_with(&[("DATABASE_URL", &database.url_through(proxy.port()))]);
    (proxy, through, database.instance())
}

fn connections_cut() -> String {
    const ROUNDS: u64 = 20;
    let database = Database::new();
    let (proxy, through, direct) = behind_a_proxy(&database);
    let oracle = new_oracle();
    let load = new_load(1);
    let cuts = [Cut::Before, Cut::After, Cut::Late];
    under_load(&[&through, &direct], &oracle, &load, || {
        for round in 0..ROUNDS {
            for cut in cuts {
                if round % 2 == 1 {
                    proxy.lose_outcome();
                }
                proxy.cut(cut);
                answers(&oracle, 5);
            }
        }
    });
    let acknowledged = check_exactly(&[&through, &direct], &oracle, &load);
    // Not one for each that was armed: now and then it is a commit of counters that is cut off, and nobody asks what became of
    // that.
    let lost = proxy.lost_outcomes();
    assert!(lost >= ROUNDS / 2, "{lost} outcomes were lost");
    // Another connection works at once: no client has to know.
    assert_eq!(load.refused.load(Ordering::Relaxed), 0, "{}", through.log());
    format!(
        "{} cuts and {lost} at the outcome, {acknowledged} events acknowledged",
        ROUNDS * cuts.len() as u64
    )
}

fn proxy_drops() -> String {
    let database = Database::new();
    let (proxy, through, direct) = behind_a_proxy(&database);
    cut_off_for_a_while(&through, &direct, || proxy.hold(), || proxy.pass_on())
}

/// Packets go for good, and it is the kernels that send them again or give up.
fn router_drops() -> String {
    let network = Network::new();
    let host = network.database();
    let server = Postgres::start_with(|_| vec![format!("listen_addresses=127.0.0.1,{host}")]);
    let database = server.database();
    let through = network.instance(&[("DATABASE_URL", &database.url_from(&host))]);
    let direct = database.instance();
    cut_off_for_a_while(&through, &direct, || network.cut(), || network.mend())
}

/// One of two instances cannot reach the server for a while, and nobody tells it or the server.
fn cut_off_for_a_while(through: &Server, direct: &Server, cut: impl Fn(), mend: impl Fn()) -> String {
    let oracle = new_oracle();
    let load = new_load(1);
    under_load(&[through, direct], &oracle, &load, || {
        answers(&oracle, 50);
        cut();
        // The other instance goes on meanwhile, and so do those who follow the log there: what the one that is cut off has
        // begun is ended by the server.
        answers(&oracle, 50);
        wait_for_health(through, false);
        let before = load.read.load(Ordering::Relaxed);
        answers(&oracle, 50);
        eventually("readers of the other instance go on", || {
            (load.read.load(Ordering::Relaxed) > before).then_some(())
        });
        mend();
        wait_for_health(through, true);
        answers(&oracle, 50);
    });
    let acknowledged = check_exactly(&[through, direct], &oracle, &load);
    format!(
        "{acknowledged} events acknowledged, {} requests refused meanwhile",
        load.refused.load(Ordering::Relaxed)
    )
}
