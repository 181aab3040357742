//! A full disk: what cannot be stored is refused with the reason, nothing acknowledged is lost, reading goes on, and
//! writing resumes by itself when there is room again.

use crate::{
    harness::{
        Ballast, Event, Folder, Load, Moment, Mount, Oracle, Server, eventually, oncelog, run, verify,
    },
    kill::{SMALL, under_load},
    scenario::{Need, Scenario},
};
use oncelog::limits::{PROBE_INTERVAL, SQLITE_PAGE_BYTES};
use rusqlite::config::DbConfig;
use std::{
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "full disk: a tmpfs, again and again under load",
        needs: &[Need::Root],
        run: || again_and_again(&Mount::tmpfs(48), &[SMALL]),
    },
    Scenario {
        name: "full disk: an ext4, again and again under load",
        needs: &[Need::Root, Need::LoopDevices],
        run: || again_and_again(&Mount::ext4(48), &[SMALL]),
    },
    Scenario {
        name: "full disk: an ext4, again and again under load, with the usual bounds",
        needs: &[Need::Root, Need::LoopDevices],
        run: || again_and_again(&Mount::ext4(96), &[]),
    },
    Scenario {
        name: "full disk: SQLite's shared memory finds no room",
        needs: &[Need::Root],
        run: no_room_for_shared_memory,
    },
    Scenario {
        name: "full disk: kill -9, and starts with ever more room",
        needs: &[Need::Root, Need::LoopDevices],
        run: killed_and_started,
    },
    Scenario {
        name: "full disk: backups onto it",
        needs: &[Need::Root, Need::LoopDevices],
        run: backups_onto_it,
    },
];

const TIMES: u64 = 6;
/// Room that is given back between two tries.
const STEP: u64 = 64 << 10;

/// Filled to the brim while clients write; emptied again under load, or with nobody asking for anything.
fn again_and_again(mount: &Mount, settings: &[(&str, &str)]) -> String {
    let mut random = fastrand::Rng::with_seed(6);
    let oracle = Oracle::default();
    let folder = Folder::within(&mount.path());
    let server = Server::start_in(folder.clone(), settings);
    let ballast = mount.ballast();
    let mut refused = 0;
    for time in 0..TIMES {
        let load = Load::new(time);
        let acknowledges = |more: usize| {
            let before = oracle.answers();
            eventually("requests are acknowledged", || {
                (oracle.answers() > before + more).then_some(())
            });
        };
        under_load(&server, &oracle, &load, || {
            acknowledges(50);
            thread::sleep(Duration::from_micros(random.u64(0..100_000)));
            ballast.fill();
            is_refused(&server, &oracle, &format!("{time}"));
            if time % 2 == 0 {
                ballast.remove();
                acknowledges(50);
            }
        });
        refused += load.refused.load(Ordering::Relaxed);
        if time % 2 == 1 {
            is_refused(&server, &oracle, &format!("{time}-at-rest"));
            // Reading works, and nothing of what was refused is stored.
            let mut client = server.client();
            oracle.check_exactly(&mut client);
            stays_unhealthy(&server);
            ballast.remove();
            becomes_healthy(&server);
        }
    }
    let checked = oracle.check_all(&mut server.client());
    server.stop();
    verify(&folder);
    let log = server.log();
    let count = |text: &str| log.matches(text).count();
    format!(
        "{TIMES} times full, {refused} requests refused, {} seals, {} merges and {} checkpoints failed, {} events \
         acknowledged",
        count("cannot seal"),
        count("cannot merge"),
        count("checkpoint failed"),
        checked.acknowledged
    )
}

/// Publishes until the answer is no, and looks at what the server then says and does.
fn is_refused(server: &Server, oracle: &Oracle, name: &str) {
    let mut client = server.client();
    let text = "x".repeat(4000);
    let mut number = 0;
    let refused = eventually("a request is refused because the disk is full", || {
        number += 1;
        let id = format!("{name}-{number}");
        let event = Event::new("filling", &id).with_payload(&format!(r#"{{"id":"{id}","text":"{text}"}}"#));
        let answer = oracle.publish(&mut client, &[event]).expect("an answer");
        (answer.status == 503 && answer.json()["type"] == "/problems/store-unavailable").then_some(answer)
    });
    assert_eq!(refused.header("retry-after"), Some("1"), "{}", refused.head);
    let problem = refused.problem(503);
    assert!(names_the_disk(problem["detail"].as_str().unwrap()), "{problem}");

    let health = eventually("it is unhealthy", || {
        Some(client.get("/health")).filter(|health| health.status == 503)
    });
    let health = health.json();
    assert_eq!(health["status"], "unhealthy", "{health}");
    assert!(names_the_disk(health["reason"].as_str().unwrap()), "{health}");
    // A restart would not help.
    client.get("/livez").ok();
    for target in [
        "/events?limit=10",
        "/events?topic=topic-1",
        "/stats",
        "/topics",
        "/metrics",
    ] {
        let answer = client.get(target);
        assert_eq!(answer.status, 200, "{target}: {}", answer.text());
    }
}

fn names_the_disk(reason: &str) -> bool {
    reason.contains("disk is full") || reason.contains("No space left on device")
}

/// While nothing changes, and nobody asks for anything, it must not call itself healthy.
fn stays_unhealthy(server: &Server) {
    let mut client = server.client();
    let until = Instant::now() + 3 * PROBE_INTERVAL;
    while Instant::now() < until {
        let health = client.get("/health");
        assert_eq!(health.status, 503, "{}", health.text());
        thread::sleep(Duration::from_millis(20));
    }
}

fn becomes_healthy(server: &Server) {
    let mut client = server.client();
    eventually("it is healthy again", || {
        (client.get("/health").status == 200).then_some(())
    });
}

/// SQLite's shared memory grows by a page for some 4,000 pages of the write-ahead log, and it does so after the commit is
/// synced. When it found no room, nobody knew whether the commit had happened, and only a restart helped. It takes a log
/// that is long, because a program reads for long, and some room in it that an earlier commit took and did not use.
fn no_room_for_shared_memory() -> String {
    let [resumed, killed] = [false, true].map(without_room_for_shared_memory);
    format!("{resumed} events acknowledged, and {killed} before a kill")
}

fn without_room_for_shared_memory(killed: bool) -> u64 {
    /// Pages of the log that the first page of the shared memory is for.
    const PAGES: u64 = 4062;
    const PAGE_BYTES: u64 = SQLITE_PAGE_BYTES + 24;
    let mount = Mount::tmpfs(160);
    let oracle = Oracle::default();
    let folder = Folder::within(&mount.path());
    let server = Server::start_in(folder.clone(), &[]);
    let reader = rusqlite::Connection::open(folder.database()).unwrap();
    // It leaves the log as the server left it.
    reader
        .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
        .unwrap();
    reader
        .execute_batch("BEGIN; SELECT count(*) FROM processed_events")
        .unwrap();
    let mut client = server.client();
    let mut number = 0;
    let mut publish = |events: usize, bytes: usize| {
        let events: Vec<_> = (0..events)
            .map(|_| {
                number += 1;
                let payload = format!(r#"{{"text":"{}"}}"#, "x".repeat(bytes));
                Event::new("t", &number.to_string()).with_payload(&payload)
            })
            .collect();
        oracle.publish(&mut client, &events).expect("an answer")
    };
    let log = folder.path().join("data/dedup.db-wal");
    publish(1, 10).ok();
    let pages = || std::fs::metadata(&log).unwrap().len() / PAGE_BYTES;
    while pages() < PAGES - 20 {
        let events = if pages() < PAGES - 100 { 100 } else { 1 };
        publish(events, 4000).ok();
    }
    let ballast = mount.ballast();
    ballast.fill();
    ballast.shrink(40 * PAGE_BYTES);
    publish(300, 4000).problem(503);
    ballast.fill();
    // There is room in the log, as far as the earlier one got.
    let refused = loop {
        let answer = publish(1, 10);
        if answer.status != 200 {
            break answer.problem(503);
        }
    };
    let reason = refused["detail"].as_str().unwrap();
    assert!(reason.contains("shared memory"), "{refused}");
    oracle.check_exactly(&mut server.client());
    if killed {
        server.kill9();
        ballast.remove();
    } else {
        ballast.remove();
        becomes_healthy(&server);
        publish(1, 10).ok();
        server.kill9();
    }
    // A crash brings nothing back that was refused.
    drop(reader);
    let server = server.restart();
    let checked = oracle.check_exactly(&mut server.client());
    oracle.check_all(&mut server.client());
    server.stop();
    verify(&folder);
    checked.acknowledged
}

/// A server is killed while the disk is full and started again, first without room and then with ever more.
fn killed_and_started() -> String {
    let mount = Mount::ext4(48);
    let oracle = Oracle::default();
    let ballast = mount.ballast();
    let mut refused = 0;

    // A store that is not there yet, and whose folder is.
    let folder = Folder::within(&mount.path());
    ballast.fill();
    refused += started_with_ever_more_room(&folder, &ballast, &oracle);

    const KILLS: u64 = 6;
    for kill in 0..KILLS {
        let server = Server::start_in(folder.clone(), &[SMALL]);
        let load = Load::new(kill);
        under_load(&server, &oracle, &load, || {
            let before = oracle.answers();
            eventually("requests are acknowledged", || {
                (oracle.answers() > before + 50).then_some(())
            });
            ballast.fill();
            is_refused(&server, &oracle, &format!("killed-{kill}"));
            server.kill9();
        });
        refused += started_with_ever_more_room(&folder, &ballast, &oracle);
    }
    let server = Server::start_in(folder.clone(), &[SMALL]);
    let checked = oracle.check_all(&mut server.client());
    server.stop();
    verify(&folder);
    format!(
        "{KILLS} kills, {refused} starts refused for want of room, {} events acknowledged",
        checked.acknowledged
    )
}

/// Starts that fail say why, and harm nothing. Returns how many there were.
fn started_with_ever_more_room(folder: &Folder, ballast: &Ballast, oracle: &Oracle) -> u64 {
    let mut refused = 0;
    let server = loop {
        match Server::try_start_in(folder.clone(), &[SMALL]) {
            Ok(server) => break server,
            Err(failed) => {
                assert_eq!(failed.status.code(), Some(1), "{failed}");
                assert!(names_the_disk(&failed.log), "{failed}");
                refused += 1;
                ballast.shrink(STEP);
            }
        }
    };
    oracle.check(&mut server.client(), Moment::LAST);
    ballast.remove();
    let event = Event::new("started", &format!("{:?}", Instant::now()));
    eventually("there is room for an event", || {
        let answer = oracle.publish(&mut server.client(), std::slice::from_ref(&event));
        (answer.expect("an answer").status == 200).then_some(())
    });
    becomes_healthy(&server);
    oracle.check(&mut server.client(), Moment::LAST);
    server.kill9();
    refused
}

/// A backup that finds no room says so and leaves nothing behind; the store that it copies is none the worse.
fn backups_onto_it() -> String {
    let mount = Mount::ext4(32);
    let oracle = Oracle::default();
    let server = Server::start_with(&[SMALL]);
    under_load(&server, &oracle, &Load::new(8), || {
        eventually("requests are acknowledged", || {
            (oracle.answers() > 400).then_some(())
        });
    });
    let copy = mount.path().join("copy.db");
    let ballast = mount.ballast();
    ballast.fill();
    let left = || {
        let names = std::fs::read_dir(mount.path()).unwrap();
        let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = left();
    let mut refused = 0;
    loop {
        let output = run(oncelog(server.folder()).arg("backup").arg(&copy));
        if output.status.success() {
            break;
        }
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(names_the_disk(&message), "{message}");
        assert!(message.contains(copy.to_str().unwrap()), "{message}");
        assert_eq!(left(), before, "a backup that fails leaves nothing behind");
        refused += 1;
        ballast.shrink(4 * STEP);
    }
    let output = run(oncelog(server.folder()).arg("verify").arg(&copy));
    assert!(output.status.success(), "{output:?}");
    let checked = oracle.check_all(&mut server.client());
    server.stop();
    verify(server.folder());
    format!(
        "{refused} backups refused, then one of {} events taken and verified",
        checked.stored
    )
}
