//! A store in a PostgreSQL server, with two instances: instances that are killed, a server that is stopped in the middle of
//! commits or away for a while, connections that are cut exactly at COMMIT, a network that drops everything. The clients go
//! on all the while; afterwards both instances have to be healthy without help and to agree on all that was answered.

use crate::{
    harness::{Cut, Database, Load, Moment, Oracle, Postgres, Proxy, Server, StoreKind, eventually},
    kill::ABORTED,
    scenario::Scenario,
};
use oncelog::faults::CrashPoint;
use std::{os::unix::process::ExitStatusExt, sync::atomic::Ordering, thread};

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
        name: "postgres: server away for a while",
        needs: &[],
        run: server_away,
    },
    Scenario {
        name: "postgres: connections cut at COMMIT, before it, after it, and late",
        needs: &[],
        run: connections_cut,
    },
    Scenario {
        name: "postgres: network that drops everything for a while",
        needs: &[],
        run: network_drops,
    },
];

const WRITERS: u64 = 3;

/// Clients of all kinds at each instance, until `meanwhile` has returned.
fn under_load(instances: &[&Server], oracle: &Oracle, load: &Load, meanwhile: impl FnOnce()) {
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
fn answers(oracle: &Oracle, more: usize) {
    let before = oracle.answers();
    eventually("requests are acknowledged", || {
        (oracle.answers() >= before + more).then_some(())
    });
}

/// Waits until an instance says that it is, or is not, healthy.
fn wait_for_health(instance: &Server, is_healthy: bool) {
    eventually("health tells the truth", || {
        let answer = instance.client().get("/health");
        match (answer.status, is_healthy) {
            (200, true) => Some(()),
            (503, false) => {
                let text = answer.text();
                assert!(text.contains("PostgreSQL at 127.0.0.1"), "{text}");
                Some(())
            }
            _ => None,
        }
    });
}

/// All instances become healthy by themselves, and each has all that was answered.
fn check(instances: &[&Server], oracle: &Oracle, load: &Load) -> u64 {
    for instance in instances {
        wait_for_health(instance, true);
        let client = &mut instance.client();
        oracle.check(client, Moment::LAST);
        load.check_readers(client);
    }
    oracle.check_all(&mut instances[0].client()).acknowledged
}

fn new_oracle() -> Oracle {
    Oracle::of(StoreKind::Server)
}

fn new_load(seed: u64) -> Load {
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
        acknowledged = check(&[&a, &b], &oracle, &load);
    }
    format!("{STOPS} stops, {acknowledged} events acknowledged, {refused} requests refused meanwhile")
}

fn server_away() -> String {
    let server = Postgres::start();
    let database = server.database();
    let oracle = new_oracle();
    let [a, b] = database.instances();
    let load = new_load(1);
    under_load(&[&a, &b], &oracle, &load, || {
        answers(&oracle, 50);
        server.stop_immediate();
        for instance in [&a, &b] {
            wait_for_health(instance, false);
            let mut client = instance.client();
            assert_eq!(client.get("/livez").status, 200, "a restart is no cure");
            client.get("/events").problem(503);
            client.get("/stats").problem(503);
        }
        // Longer than a commit is tried again for.
        eventually("both refuse what they cannot commit", || {
            (load.refused.load(Ordering::Relaxed) > 4 * WRITERS).then_some(())
        });
        server.start_again();
        for instance in [&a, &b] {
            wait_for_health(instance, true);
        }
        answers(&oracle, 50);
    });
    let acknowledged = check(&[&a, &b], &oracle, &load);
    format!(
        "{acknowledged} events acknowledged, {} requests refused meanwhile",
        load.refused.load(Ordering::Relaxed)
    )
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
        for _ in 0..ROUNDS {
            for cut in cuts {
                proxy.cut(cut);
                answers(&oracle, 5);
            }
        }
    });
    let acknowledged = check(&[&through, &direct], &oracle, &load);
    // Another connection works at once: no client has to know.
    assert_eq!(load.refused.load(Ordering::Relaxed), 0, "{}", through.log());
    format!(
        "{} cuts, {acknowledged} events acknowledged",
        ROUNDS * cuts.len() as u64
    )
}

fn network_drops() -> String {
    let database = Database::new();
    let (proxy, through, direct) = behind_a_proxy(&database);
    let oracle = new_oracle();
    let load = new_load(1);
    under_load(&[&through, &direct], &oracle, &load, || {
        answers(&oracle, 50);
        proxy.hold();
        // The other instance goes on meanwhile, and so do those who follow the log there: what the one that is cut off has
        // begun is ended by the server.
        answers(&oracle, 50);
        wait_for_health(&through, false);
        let before = load.read.load(Ordering::Relaxed);
        answers(&oracle, 50);
        eventually("readers of the other instance go on", || {
            (load.read.load(Ordering::Relaxed) > before).then_some(())
        });
        proxy.pass_on();
        wait_for_health(&through, true);
        answers(&oracle, 50);
    });
    let acknowledged = check(&[&through, &direct], &oracle, &load);
    format!(
        "{acknowledged} events acknowledged, {} requests refused meanwhile",
        load.refused.load(Ordering::Relaxed)
    )
}
