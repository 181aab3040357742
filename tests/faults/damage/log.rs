//! Damage of the write-ahead log, which a server that was killed has left.
//!
//! SQLite itself reads such a log up to the first damage and takes all behind it for never committed, without a word.

use super::{
    store::{Answers, SMALL, Store, event, log_of, publish},
    trial::{Trial, figures, run_all},
};
use crate::harness::{Client, Folder, Server, eventually, shell, verify};
use std::{fs, os::unix::fs::FileExt, path::PathBuf, process::Command, sync::Mutex};

const HEADER: usize = 32;
const FRAME_HEADER: usize = 24;
const FRAME: usize = FRAME_HEADER + 8192;
/// Of a frame's header: name, first byte, bytes.
const FIELDS: [(&str, usize, usize); 4] = [
    ("page number", 0, 4),
    ("commit mark", 4, 4),
    ("salt", 8, 8),
    ("checksum", 16, 8),
];

fn shared_memory_of(folder: &Folder) -> PathBuf {
    folder.path().join("data/dedup.db-shm")
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// The frames of the newest commits, those of older ones that were overwritten left out: where each ends a commit.
fn commits(log: &[u8]) -> Vec<bool> {
    log[HEADER..]
        .chunks_exact(FRAME)
        .take_while(|frame| frame[8..16] == log[16..24])
        .map(|frame| u32_at(frame, 4) > 0)
        .collect()
}

fn change(path: PathBuf, change: impl FnOnce(&fs::File)) {
    change(&fs::File::options().read(true).write(true).open(path).unwrap());
}

fn flip(path: PathBuf, place: usize, bit: u8) {
    change(path, |file| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, place as u64).unwrap();
        file.write_all_at(&[byte[0] ^ 1 << bit], place as u64).unwrap();
    });
}

/// The salt by which SQLite tells this log from what was written to the same file before.
fn salt(folder: &Folder) -> Vec<u8> {
    fs::read(log_of(folder)).unwrap()[16..24].to_vec()
}

/// Publishes until SQLite has started the log over, and some commits more.
fn start_over(client: &mut Client, folder: &Folder, numbers: &mut std::ops::RangeFrom<usize>) {
    let before = salt(folder);
    eventually("the log starts over", || {
        let events: Vec<_> = numbers.by_ref().take(5).map(event).collect();
        publish(client, &events);
        (salt(folder) != before).then_some(())
    });
    for size in [1, 3, 8, 2, 1, 5] {
        let events: Vec<_> = numbers.by_ref().take(size).map(event).collect();
        publish(client, &events);
    }
}

/// The damages of a killed store's log, apart from those that need another log.
fn damages(store: &Store) -> Vec<Trial> {
    let log = fs::read(store.log()).unwrap();
    let commits = commits(&log);
    let last = commits.len() - 1;
    let last_commit = commits[..last].iter().rposition(|is_commit| *is_commit).unwrap() + 1;
    let mut random = fastrand::Rng::with_seed(8);
    let mut trials = Vec::new();
    for place in 0..HEADER {
        let bit = random.u8(0..8);
        trials.push(Trial::new(
            format!("log: header: bit {bit} of byte {place}"),
            move |folder| flip(log_of(folder), place, bit),
        ));
    }
    for frame in 0..commits.len() {
        let start = HEADER + frame * FRAME;
        let mut places: Vec<_> = FIELDS
            .iter()
            .map(|(field, from, length)| (*field, start + from + random.usize(0..*length)))
            .collect();
        places.push(("page", start + FRAME_HEADER + random.usize(0..8192)));
        for (field, place) in places {
            let bit = random.u8(0..8);
            let name = format!(
                "log: frame {} of {}: {field}: bit {bit} of byte {place}",
                frame + 1,
                commits.len()
            );
            trials.push(Trial::new(name.clone(), move |folder| {
                flip(log_of(folder), place, bit);
            }));
            let ends_commit_before = frame + 1 == last_commit && field == "checksum";
            if frame == 0 || frame + 4 > last_commit && !ends_commit_before {
                let trial = Trial::new(format!("{name}; power cut"), move |folder| {
                    forget_shared(folder);
                    flip(log_of(folder), place, bit);
                });
                trials.push(if frame < last_commit {
                    trial
                } else {
                    trial.may_lose_last()
                });
            }
        }
    }
    let end = HEADER + commits.len() * FRAME;
    let start_of_last = HEADER + last_commit * FRAME;
    for length in [
        0,
        10,
        HEADER,
        HEADER + FRAME / 2,
        HEADER + FRAME,
        HEADER + last_commit / 2 * FRAME,
        start_of_last - FRAME,
        start_of_last - 1,
        start_of_last,
        start_of_last + 100,
        end - FRAME,
        end - 1,
    ] {
        let name = format!("log: cut to {length} bytes of {end}");
        let cut = move |folder: &Folder| change(log_of(folder), |file| file.set_len(length as u64).unwrap());
        trials.push(Trial::new(name.clone(), cut));
        if length >= start_of_last {
            let after_power_cut = move |folder: &Folder| {
                forget_shared(folder);
                cut(folder);
            };
            trials.push(Trial::new(format!("{name}; power cut"), after_power_cut).may_lose_last());
        }
    }
    trials.push(Trial::new("log: removed", |folder| {
        fs::remove_file(log_of(folder)).unwrap();
    }));
    trials
}

/// The file that SQLite's connections share is never synced; SQLite makes it anew.
fn forget_shared(folder: &Folder) {
    fs::remove_file(shared_memory_of(folder)).unwrap();
}

pub(super) fn at_rest() -> String {
    let older = Mutex::new(Vec::new());
    let store = Store::killed(|client, folder| {
        let mut numbers = 10_000..;
        start_over(client, folder, &mut numbers);
        *older.lock().unwrap() = fs::read(log_of(folder)).unwrap();
        start_over(client, folder, &mut numbers);
    });
    let older = older.into_inner().unwrap();
    let log = fs::read(store.log()).unwrap();
    let commits = commits(&log);
    let count = commits.iter().filter(|is_commit| **is_commit).count();
    assert!(count > 5, "{commits:?}");
    let mut trials = damages(&store);
    trials.push(Trial::new("log: an older one put back", move |folder| {
        fs::write(log_of(folder), &older).unwrap();
    }));
    trials.push(Trial::new("shared memory: removed", forget_shared));
    for (what, byte) in [("zeros", 0), ("garbage", 0xa7)] {
        trials.push(Trial::new(format!("shared memory: {what}"), move |folder| {
            fs::write(shared_memory_of(folder), [byte; 32768]).unwrap();
        }));
    }
    let outcomes = run_all(&store, &trials);
    give_up_what_is_damaged(&store, commits.len() / 2);
    format!("{count} commits, {}", figures(&outcomes))
}

/// Does what the refusal says: the store opens with what was committed before the damage.
fn give_up_what_is_damaged(store: &Store, frame: usize) {
    let folder = store.copy();
    flip(log_of(&folder), HEADER + frame * FRAME + 1_000, 3);
    let refused = Server::try_start_in(folder.clone(), &[SMALL])
        .map(drop)
        .expect_err("the store is refused");
    let (_, command) = refused.log.split_once("run `").expect("what to run");
    let (command, _) = command.split_once('`').unwrap();
    shell(Command::new("sh").args(["-c", command]));
    verify(&folder);
    let server = Server::start_in(folder, &[SMALL]);
    let mut client = server.client();
    let stored = Answers::of(&mut client).events;
    assert!(stored.len() > 3_000 && stored.len() < store.now.events.len());
    for (stored, expected) in stored.iter().zip(&store.now.events) {
        assert_eq!(stored.text.get(), expected.text.get());
    }
}

/// A log that is copied into the file, and not started over yet: SQLite would lay what is left of it over the file.
pub(super) fn copied() -> String {
    let store = Store::killed(|client, folder| {
        let mut numbers = 20_000..;
        start_over(client, folder, &mut numbers);
        eventually("the log is copied after one commit more", || {
            publish(
                client,
                &numbers
                    .by_ref()
                    .step_by(80)
                    .take(1)
                    .map(event)
                    .collect::<Vec<_>>(),
            );
            let frames = commits(&fs::read(log_of(folder)).unwrap()).len();
            (30..32).contains(&frames).then_some(())
        });
    });
    let shared = fs::read(shared_memory_of(store.folder())).unwrap();
    let number = |at: usize| u32::from_ne_bytes(shared[at..at + 4].try_into().unwrap());
    let (frames, copied) = (number(16), number(96));
    assert_eq!(frames, copied, "the log is copied");
    let outcomes = run_all(&store, &damages(&store));
    format!("{copied} of {frames} frames copied, {}", figures(&outcomes))
}
