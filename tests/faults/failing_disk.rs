//! A disk whose n-th write or sync fails, for each n: nothing is acknowledged that is not durable, the program says what
//! is wrong, a failed write is tried again by itself, and after a failed sync of the store nothing is written until a
//! restart, because nobody knows what the disk has. The shim (`disk.c`) makes the failures; what the disk then holds after
//! a power cut is made from its record (`disk_image`).

use crate::{
    disk_image::{Image, Syncs, Unsynced, judge, place},
    disk_record::{self, Operation, What},
    harness::{Answer, Client, Event, FailedStart, Folder, Load, Moment, Oracle, Server, eventually, verify},
    kill::under_load,
    scenario::{Need, Scenario, side_by_side},
    shim::Disk,
};
use serde_json::Value;
use std::path::{Path, PathBuf};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "failing disk: each call of a start, a publish and a stop fails once",
        needs: &[Need::Program("cc")],
        run: each_call_fails_once,
    },
    Scenario {
        name: "failing disk: the n-th write fails under load",
        needs: &[Need::Program("cc")],
        run: nth_write_fails,
    },
    Scenario {
        name: "failing disk: from the n-th write on there is no space for a while",
        needs: &[Need::Program("cc")],
        run: nth_write_finds_no_space,
    },
    Scenario {
        name: "failing disk: the n-th sync fails under load, and then the power does",
        needs: &[Need::Program("cc")],
        run: nth_sync_fails,
    },
];

const SMALL: (&str, &str) = ("ONCELOG_SMALL_BOUNDS", "1");
/// Servers that run at a time: most of the time they wait to try again.
const AT_A_TIME: usize = 4;
const WRITES: u64 = 200;
const FULL_DISKS: u64 = 200;
/// Writes that find no space in a row.
const FULL_FOR: u64 = 10;
const SYNCS: u64 = 110;
/// More than a start of a store makes that was stopped.
const SYNCS_OF_A_START: u64 = 20;
/// Requests that a load gets acknowledged, when the disk lets it.
const ANSWERS: usize = 40;
/// Why a store that must not be written any more says so.
const UNTIL_RESTART: &str = "until oncelog is started again";

/// What the system and SQLite call the failures that are made here. SQLite does not say why it cannot open a file.
const CAUSES: [&str; 6] = [
    "I/O error",
    "Input/output error",
    "No space left on device",
    "database or disk is full",
    "unable to open database file",
    "the disk cannot read it",
];

fn has_cause(text: &str) -> bool {
    CAUSES.iter().any(|cause| text.contains(cause))
}

/// A start that failed says which file it was and what is wrong with it.
#[track_caller]
fn refused_well(failed: &FailedStart) {
    assert_eq!(failed.status.code(), Some(1), "{failed}");
    let message = failed.log.lines().find(|line| line.starts_with("error: "));
    let message = message.unwrap_or_else(|| panic!("no message: {failed}"));
    assert!(message.contains("data"), "names no file: {message}");
    assert!(has_cause(message), "names no cause: {message}");
}

/// A refusal of a publish says what is wrong with which file, and when to come back.
#[track_caller]
fn refused_request(answer: &Answer) {
    let detail = answer.problem(503)["detail"].clone();
    let detail = detail.as_str().unwrap();
    assert!(
        detail.contains("dedup.db") && has_cause(detail),
        "names no file and cause: {detail}"
    );
    assert!(answer.header("retry-after").is_some(), "{}", answer.head);
}

/// Nothing is written until a restart, and everyone is told.
fn poisoned(client: &mut Client) {
    for target in ["/health", "/readyz", "/livez"] {
        let answer = eventually("the failed sync is known", || {
            let answer = client.get(target);
            (answer.status == 503).then_some(answer)
        });
        let reason = answer.json()["reason"].clone();
        let reason = reason.as_str().unwrap();
        assert!(reason.contains(UNTIL_RESTART), "{reason}");
        assert!(has_cause(reason), "{reason}");
    }
    for number in 0..5 {
        let event = Event::new("poisoned", &number.to_string());
        let answer = client.post("/publish", "application/json", &Event::wrapped(&[event]));
        refused_request(&answer);
        assert!(answer.text().contains(UNTIL_RESTART), "{}", answer.text());
    }
    // Reading goes on.
    client.get("/events").ok();
}

fn is_healthy(client: &mut Client) -> bool {
    client.get("/health").status == 200
}

/// Publishes these until they are taken, and returns how often they were refused.
fn publish_at_last(oracle: &Oracle, client: &mut Client, events: &[Event]) -> u64 {
    let mut refused = 0;
    eventually("the store takes events again", || {
        let answer = oracle.publish(client, events).expect("an answer");
        if answer.status == 200 {
            return Some(refused);
        }
        refused_request(&answer);
        refused += 1;
        None
    })
}

/// Publishes until the disk has recovered and the index has written what it could not write before: more events than it
/// keeps in memory.
fn recover(oracle: &Oracle, client: &mut Client) -> u64 {
    let refused = (0..4)
        .map(|number| publish_at_last(oracle, client, &some_events(&format!("after-{number}"), 350)))
        .sum();
    assert!(is_healthy(client), "{}", client.get("/health").text());
    refused
}

fn some_events(topic: &str, count: u64) -> Vec<Event> {
    (0..count)
        .map(|number| Event::new(topic, &number.to_string()))
        .collect()
}

/// The failed sync in a record, and what it was of.
fn failed_sync(operations: &[Operation]) -> Option<PathBuf> {
    operations
        .iter()
        .find(|operation| matches!(operation.what, What::Sync { succeeded: false, .. }))
        .map(|operation| operation.path.clone())
}

/// Whether a failed sync of it means that nobody knows what the disk has of the store. A segment is written anew, and
/// SQLite does not look whether it can sync a folder, so the program does that itself before anyone is served.
fn is_of_the_store(path: &Path) -> bool {
    ["data/dedup.db", "data/dedup.db-wal"]
        .iter()
        .any(|file| path == Path::new(file))
}

/// The disks that a power cut may leave, now.
fn cut_power(operations: &[Operation], oracle: &Oracle, seed: u64) -> u64 {
    let mut random = fastrand::Rng::with_seed(seed);
    let disks = [
        (Syncs::Kept, Unsynced::Lost),
        (Syncs::DroppedWhenFailed, Unsynced::Lost),
        (Syncs::DroppedWhenFailed, Unsynced::ByChance),
    ];
    for (syncs, unsynced) in disks {
        let mut image = Image::new(syncs);
        for operation in operations {
            image.play(operation);
        }
        let folder = image.cut(place(), unsynced, &mut random);
        // Not for good: what this store answers is not what the next one knows.
        judge(&folder, oracle, Moment::now(), false);
    }
    disks.len() as u64
}

fn nth_write_fails() -> String {
    let rules = [("write", "EIO"), ("shortwrite", "EIO"), ("shortwrite", "0")];
    let cases = rules
        .iter()
        .flat_map(|rule| (1..=WRITES).map(move |number| (*rule, number)));
    let refusals = side_by_side(AT_A_TIME, cases, |&((kind, error), number)| {
        let folder = Folder::within(place());
        let oracle = Oracle::default();
        let disk = Disk::below(&folder).failing(&format!("{kind}:{number}:{error}"));
        let server = match Server::try_start_in(folder.clone(), &disk.settings(&[SMALL])) {
            Ok(server) => server,
            Err(failed) => {
                refused_well(&failed);
                judge(&folder, &oracle, Moment::LAST, true);
                return 1;
            }
        };
        let load = Load::new(number);
        let fault = format!("disk: write {number} fails");
        under_load(&server, &oracle, &load, || {
            eventually("the write fails and requests are acknowledged", || {
                (oracle.answers() >= ANSWERS && server.log().contains(&fault)).then_some(())
            });
        });
        let mut client = server.client();
        // By itself: nothing is published meanwhile.
        eventually("the server is healthy", || is_healthy(&mut client).then_some(()));
        let refused = recover(&oracle, &mut client);
        oracle.check_all(&mut client);
        server.stop();
        verify(&folder);
        load.refused.into_inner() + refused
    });
    format!(
        "{} failed writes, {} starts and requests refused",
        refusals.len(),
        refusals.iter().sum::<u64>()
    )
}

fn nth_write_finds_no_space() -> String {
    let refusals = side_by_side(AT_A_TIME, 1..=FULL_DISKS, |&number| {
        let folder = Folder::within(place());
        let oracle = Oracle::default();
        let disk = Disk::below(&folder).failing(&format!("write:{number}x{FULL_FOR}:ENOSPC"));
        let server = match Server::try_start_in(folder.clone(), &disk.settings(&[SMALL])) {
            Ok(server) => server,
            Err(failed) => {
                refused_well(&failed);
                judge(&folder, &oracle, Moment::LAST, true);
                return 1;
            }
        };
        let load = Load::new(number);
        under_load(&server, &oracle, &load, || {
            eventually("a request is refused", || {
                (load.refused.load(std::sync::atomic::Ordering::Relaxed) > 0).then_some(())
            });
        });
        let mut client = server.client();
        let answer = client.get("/health");
        if answer.status == 503 {
            let reason = answer.json()["reason"].clone();
            assert!(reason.as_str().unwrap().contains("free some space"), "{reason}");
            client.get("/livez").ok();
        }
        client.get("/events").ok();
        let refused = recover(&oracle, &mut client);
        oracle.check_all(&mut client);
        server.stop();
        verify(&folder);
        load.refused.into_inner() + refused
    });
    format!(
        "{} times a full disk, {} starts and requests refused",
        refusals.len(),
        refusals.iter().sum::<u64>()
    )
}

fn nth_sync_fails() -> String {
    let new = (1..=SYNCS).map(|number| (Stand::New, number));
    let stopped = (1..=SYNCS_OF_A_START).map(|number| (Stand::Stopped, number));
    let found = side_by_side(AT_A_TIME, new.chain(stopped), |&(stand, number)| {
        sync_fails(stand, number)
    });
    format!(
        "{} failed syncs, {} of them ended writing, {} power cuts after them",
        found.len(),
        found.iter().filter(|(is_poisoned, _)| *is_poisoned).count(),
        found.iter().map(|(_, cuts)| cuts).sum::<u64>()
    )
}

/// What a server finds whose disk is about to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stand {
    /// Nothing.
    New,
    /// A store with some events that was stopped.
    Stopped,
}

/// Returns whether that ended writing, and how many power cuts were tried.
fn sync_fails(stand: Stand, number: u64) -> (bool, u64) {
    let records = Folder::new();
    let folder = Folder::within(place());
    let oracle = Oracle::default();
    let mut operations = Vec::new();
    if stand == Stand::Stopped {
        let server = recorded_run(&folder, &oracle, &records.path().join("before"), number);
        server.stop();
        operations = disk_record::read(&records.path().join("before"), folder.path());
    }
    let record = records.path().join("failing");
    let disk = Disk::below(&folder)
        .failing(&format!("sync:{number}:EIO"))
        .recorded(&record);
    let mut is_poisoned = false;
    match Server::try_start_in(folder.clone(), &disk.settings(&[SMALL])) {
        Err(failed) => refused_well(&failed),
        Ok(server) => {
            // SQLite makes a new file once more when its first try fails, without a word.
            let log = server.log();
            let started = log.split("listening").next().unwrap();
            let was_hidden = started.contains(&format!("disk: sync {number} fails"));
            under_load(&server, &oracle, &Load::new(1000 + number), || {
                let failed = eventually("the sync fails", || {
                    failed_sync(&disk_record::read(&record, folder.path()))
                });
                is_poisoned = is_of_the_store(&failed) && !was_hidden;
                let mut client = server.client();
                if is_poisoned {
                    poisoned(&mut client);
                } else {
                    let before = oracle.answers();
                    eventually("the server goes on", || {
                        (oracle.answers() >= before + ANSWERS && is_healthy(&mut client)).then_some(())
                    });
                }
            });
            server.kill9();
        }
    }
    operations.extend(disk_record::read(&record, folder.path()));
    let cuts = cut_power(&operations, &oracle, number);
    // Or it is started again before the power fails: what the kernel shows may not be on the disk.
    let record = records.path().join("again");
    let server = recorded_run(&folder, &oracle, &record, 2000 + number);
    server.kill9();
    operations.extend(disk_record::read(&record, folder.path()));
    (is_poisoned, cuts + cut_power(&operations, &oracle, number))
}

/// A server whose disk is in order, after some load.
fn recorded_run(folder: &Folder, oracle: &Oracle, record: &Path, seed: u64) -> Server {
    let disk = Disk::below(folder).recorded(record);
    let server = Server::start_in(folder.clone(), &disk.settings(&[SMALL]));
    let before = oracle.answers();
    under_load(&server, oracle, &Load::new(seed), || {
        eventually("requests are acknowledged", || {
            (oracle.answers() >= before + ANSWERS).then_some(())
        });
    });
    server
}

/// A store that was stopped, with what its clients know of it.
struct Template {
    folder: Folder,
    answers: Vec<(Vec<Event>, Value)>,
}

impl Template {
    fn make() -> Self {
        let folder = Folder::within(place());
        let server = Server::start_in(folder.clone(), &[SMALL]);
        let mut client = server.client();
        let answers = (0..9)
            .map(|number| {
                let events = some_events(&format!("topic-{}", number % 4), 100 * (number + 1));
                let answer = client.publish(&events);
                (events, answer)
            })
            .collect();
        server.kill9();
        Self { folder, answers }
    }

    fn copy(&self) -> (Folder, Oracle) {
        let folder = Folder::within(place());
        copy_folder(self.folder.path(), folder.path());
        let oracle = Oracle::default();
        for (events, answer) in &self.answers {
            oracle.offer(events);
            oracle.acknowledge(events, answer);
        }
        (folder, oracle)
    }
}

fn copy_folder(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&target).unwrap();
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn each_call_fails_once() -> String {
    let template = Template::make();
    let kinds = ["write", "shortwrite", "sync", "size", "name", "read"];
    let cases = kinds
        .iter()
        .flat_map(|kind| [false, true].map(|is_new| (*kind, is_new)));
    let faults = side_by_side(AT_A_TIME, cases, |&(kind, is_new)| {
        (1..)
            .take_while(|number| {
                let (folder, oracle) = if is_new {
                    (Folder::within(place()), Oracle::default())
                } else {
                    template.copy()
                };
                call_fails_once(kind, *number, &folder, &oracle)
            })
            .count()
    });
    format!(
        "{} calls of {} kinds, on a new store and on one that was killed",
        faults.iter().sum::<usize>(),
        kinds.len()
    )
}

/// Returns whether there was such a call.
fn call_fails_once(kind: &str, number: u64, folder: &Folder, oracle: &Oracle) -> bool {
    let disk = Disk::below(folder).failing(&format!("{kind}:{number}:EIO"));
    let fault = format!("disk: {} {number} fails", kind.trim_start_matches("short"));
    let log = match Server::try_start_in(folder.clone(), &disk.settings(&[SMALL])) {
        Err(failed) => {
            refused_well(&failed);
            failed.log
        }
        Ok(server) => {
            let mut client = server.client();
            let events = some_events("tried", 3);
            let answer = oracle.publish(&mut client, &events).expect("an answer");
            if answer.status != 200 {
                refused_request(&answer);
                if answer.text().contains(UNTIL_RESTART) {
                    poisoned(&mut client);
                } else {
                    publish_at_last(oracle, &mut client, &events);
                }
            }
            let answer = client.get("/events?limit=1000");
            if answer.status != 200 {
                assert!(has_cause(answer.problem(500)["detail"].as_str().unwrap()));
                client.get("/events?limit=1000").ok();
            }
            server.terminate();
            let status = server.ended();
            assert_eq!(status.code(), Some(0), "{}", server.log());
            server.log()
        }
    };
    judge(folder, oracle, Moment::LAST, true);
    log.contains(&fault)
}
