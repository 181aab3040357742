//! The write-ahead log: nothing is built on it before the disk has it, and others who use the file do not stop commits.

use super::{batch, commit_many, open, sent};
use crate::{
    index::Settings,
    limits,
    store::{
        Store as _, TopicFilter, Writer as _,
        sqlite::{checkpoint, paths::Paths, recovery, schema},
    },
};
use rusqlite::{Connection, wal::CheckpointMode};
use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

fn wal_bytes(path: &Path) -> u64 {
    fs::metadata(Paths::of(path).wal).map_or(0, |metadata| metadata.len())
}

#[test]
fn a_start_copies_the_whole_log_before_it_reads_anything_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    // Large tails, so that no start lists a segment and thereby commits.
    let open = || recovery::open(&path, Arc::new(|| {}), Settings::default(), 1000).unwrap();
    let (mut writer, store) = open();
    commit_many(&mut writer, &store, "id", 30);
    drop((writer, store));
    assert!(wal_bytes(&path) > 0, "a dropped store leaves its log");
    let (mut writer, store) = open();
    assert_eq!(wal_bytes(&path), 0);
    assert_eq!(store.high_watermark(), 30);
    for number in 0..30 {
        let found = store.find("topic", &format!("id-{number}")).unwrap();
        assert_eq!(found.unwrap().seq, number + 1);
    }
    commit_many(&mut writer, &store, "more", 3);
}

#[test]
fn settling_leaves_an_empty_log_and_everything_in_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let (mut writer, store) = open(&path);
    commit_many(&mut writer, &store, "id", 30);
    drop((writer, store));
    let paths = Paths::of(&path);
    let connection = schema::open_for_writing(&paths).unwrap();
    checkpoint::settle(&paths, &connection, Duration::ZERO).unwrap();
    assert_eq!(wal_bytes(&path), 0);
    drop(connection);
    fs::remove_file(&paths.wal).unwrap();
    let (_writer, store) = open(&path);
    assert_eq!(store.totals(&TopicFilter::all()).unwrap().accepted, 30);
}

#[test]
fn a_start_is_refused_while_a_foreign_reader_keeps_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let (mut writer, store) = open(&path);
    commit_many(&mut writer, &store, "id", 30);
    let reader = Connection::open(&path).unwrap();
    reader
        .execute_batch("BEGIN; SELECT count(*) FROM events")
        .unwrap();
    drop((writer, store));
    let paths = Paths::of(&path);
    let connection = schema::open_for_writing(&paths).unwrap();
    let error = checkpoint::settle(&paths, &connection, Duration::ZERO).unwrap_err();
    assert!(error.to_string().contains("another program"), "{error}");
    reader.execute_batch("COMMIT").unwrap();
    checkpoint::settle(&paths, &connection, Duration::ZERO).unwrap();
}

/// Commits until the log is larger than the committer lets it grow undisturbed; returns the bytes of the log.
fn outgrow(writer: &mut impl crate::store::Writer, store: &impl crate::store::Store, path: &Path) -> u64 {
    let payload = format!(r#"{{"a":"{}"}}"#, "x".repeat(1 << 19));
    for round in 0..(2 * limits::MAX_WAL_BYTES) >> 22 {
        let events: Vec<_> = (0..8)
            .map(|number| sent("t", &format!("{round}-{number}"), &payload))
            .collect();
        writer.commit(&[&batch(&store.identity(), &events)]).unwrap();
        writer.maintain().unwrap();
    }
    wal_bytes(path)
}

#[test]
fn commits_go_on_while_a_long_reader_keeps_the_log_from_starting_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let (mut writer, store) = open(&path);
    writer
        .connection()
        .pragma_update(None, "synchronous", "OFF")
        .unwrap();
    commit_many(&mut writer, &store, "id", 1);
    let reader = Connection::open(&path).unwrap();
    reader
        .execute_batch("BEGIN; SELECT count(*) FROM events")
        .unwrap();
    assert!(outgrow(&mut writer, &store, &path) > limits::MAX_WAL_BYTES);
    reader.execute_batch("COMMIT").unwrap();
    // Now it is copied and started over, by and by.
    loop {
        writer.probe().unwrap();
        let log = checkpoint::checkpoint(writer.connection(), CheckpointMode::NOOP)
            .unwrap()
            .log
            .unwrap();
        if log.bytes < limits::CHECKPOINT_BYTES {
            break;
        }
        std::thread::yield_now();
    }
    assert!(wal_bytes(&path) <= limits::MAX_WAL_BYTES, "the log's file is cut");
    assert_eq!(
        store.totals(&TopicFilter::all()).unwrap().accepted,
        store.high_watermark()
    );
}

#[test]
fn the_log_stays_bounded_without_readers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let (mut writer, store) = open(&path);
    writer
        .connection()
        .pragma_update(None, "synchronous", "OFF")
        .unwrap();
    let bytes = outgrow(&mut writer, &store, &path);
    // It has been started over, although commits came as fast as they could.
    assert!(bytes < 2 * limits::MAX_WAL_BYTES, "{bytes}");
}

#[test]
fn a_checkpoint_that_could_not_run_is_never_taken_for_one_that_is_done() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let (mut writer, store) = open(&path);
    commit_many(&mut writer, &store, "id", 30);
    let reader = Connection::open(&path).unwrap();
    reader
        .execute_batch("BEGIN; SELECT count(*) FROM events")
        .unwrap();
    commit_many(&mut writer, &store, "more", 3);
    // Holds the checkpoint lock while it waits for the reader.
    let other = schema::connect_checkpointer(&Paths::of(&path)).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stop = &stop;
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                checkpoint::checkpoint(&other, CheckpointMode::RESTART).unwrap();
            }
        });
        let refused = loop {
            let found = checkpoint::checkpoint(writer.connection(), CheckpointMode::PASSIVE).unwrap();
            if found.log.is_none() {
                break found;
            }
            std::thread::yield_now();
        };
        stop.store(true, Ordering::Relaxed);
        assert!(refused.is_busy);
        reader.execute_batch("COMMIT").unwrap();
    });
    let after = checkpoint::checkpoint(writer.connection(), CheckpointMode::PASSIVE).unwrap();
    assert!(!after.is_busy);
    assert!(after.log.is_some_and(|log| log.missing == 0), "{after:?}");
}
