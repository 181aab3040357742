//! A commit that fails leaves no trace; what was damaged while the store is open heals.

use super::{SMALL, batch, commit, commit_many, open, sent};
use crate::{
    event::Outcome,
    index::Settings,
    limits,
    store::{
        BatchOutcome, CommitError, Store as _, TopicFilter, Writer as _,
        sqlite::{counters::Delta, paths::Paths, reader::SqliteStore, recovery, writer::SqliteWriter},
    },
};
use rusqlite::Connection;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

fn set_pages(writer: &SqliteWriter, pages: i64) {
    writer
        .connection()
        .pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))
        .unwrap();
}

#[test]
fn a_commit_that_finds_the_disk_full_leaves_no_trace_and_works_later() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let (mut writer, store) = open(&path);
    commit_many(&mut writer, &store, "id", 30);
    let before = (
        store.totals(&TopicFilter::all()).unwrap(),
        store.topics(&TopicFilter::all(), None, 10).unwrap(),
        store.high_watermark(),
    );
    // No more pages than there are.
    set_pages(&writer, 1);
    let large = format!(r#"{{"a":"{}"}}"#, "x".repeat(100_000));
    let events = batch(
        &store.identity(),
        &[
            sent("new topic", "new", &large),
            sent("topic", "id-1", r#"{"a":1}"#),
        ],
    );
    let error = writer.commit(&[&events]).unwrap_err();
    assert!(matches!(error, CommitError::Unavailable(_)), "{error:?}");
    assert!(error.to_string().contains("free some space"), "{error}");
    assert_eq!(
        (
            store.totals(&TopicFilter::all()).unwrap(),
            store.topics(&TopicFilter::all(), None, 10).unwrap(),
            store.high_watermark()
        ),
        before
    );
    assert_eq!(store.find("new topic", "new").unwrap(), None);

    set_pages(&writer, 1 << 30);
    writer.probe().unwrap();
    let outcomes = writer.commit(&[&events]).unwrap();
    let BatchOutcome::Committed(placed) = &outcomes[0] else {
        panic!("{outcomes:?}");
    };
    assert_eq!((placed[0].outcome, placed[0].seq), (Outcome::Stored, 31));
    assert_eq!((placed[1].outcome, placed[1].seq), (Outcome::Duplicate, 2));
    let after = (
        store.totals(&TopicFilter::all()).unwrap(),
        store.topics(&TopicFilter::all(), None, 10).unwrap(),
    );
    drop((writer, store));
    let (_writer, store) = open(&path);
    assert_eq!(
        (
            store.totals(&TopicFilter::all()).unwrap(),
            store.topics(&TopicFilter::all(), None, 10).unwrap()
        ),
        after
    );
}

/// A full disk often has a little room left: what a failed commit had taken, say. A probe wrote one small row, found that
/// to work, and the store called itself healthy until it refused the next request.
#[test]
fn a_probe_fails_while_there_is_little_room() {
    let folder = tempfile::tempdir().unwrap();
    let (mut writer, store) = open(&folder.path().join("events.db"));
    commit_many(&mut writer, &store, "id", 3);
    let pages: i64 = writer
        .connection()
        .query_row("PRAGMA page_count", [], |row| row.get(0))
        .unwrap();
    set_pages(&writer, pages + 8);
    let small = batch(&store.identity(), &[sent("topic", "small", "{}")]);
    writer.commit(&[&small]).unwrap();
    let error = writer.probe().unwrap_err();
    assert!(matches!(error, CommitError::Unavailable(_)), "{error:?}");
    set_pages(&writer, 1 << 30);
    writer.probe().unwrap();
    let left: i64 = writer
        .connection()
        .query_row("SELECT length(value) FROM meta WHERE name = 'probe'", [], |row| {
            row.get(0)
        })
        .unwrap();
    assert_eq!(left, 0, "the next commits use the room");
}

#[test]
fn a_store_whose_sync_failed_is_not_written_again() {
    let folder = tempfile::tempdir().unwrap();
    let (mut writer, store) = open(&folder.path().join("events.db"));
    commit_many(&mut writer, &store, "id", 3);
    writer.poison("a sync", "for this test");
    let events = batch(&store.identity(), &[sent("topic", "new", "{}")]);
    assert!(matches!(writer.commit(&[&events]), Err(CommitError::Poisoned(_))));
    assert!(matches!(writer.maintain(), Err(CommitError::Poisoned(_))));
    assert!(matches!(writer.probe(), Err(CommitError::Poisoned(_))));
    assert_eq!(store.high_watermark(), 3);
    assert!(matches!(Box::new(writer).close(), Err(CommitError::Poisoned(_))));
}

#[test]
fn commits_without_new_events_are_durable_and_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let (mut writer, store) = open(&path);
    writer
        .connection()
        .pragma_update(None, "synchronous", "OFF")
        .unwrap();
    let commits = limits::MAX_COUNTER_DELTAS + 10;
    let events = batch(&store.identity(), &[sent("topic", "id", "{}")]);
    for _ in 0..=commits {
        writer.commit(&[&events]).unwrap();
    }
    let (deltas, bytes, snapshots): (u32, u32, u32) = writer
        .connection()
        .query_row(
            "SELECT count(*), sum(length(delta)), (SELECT count(*) FROM counter_snapshot) FROM counter_deltas",
            [],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )
        .unwrap();
    assert!(u64::from(deltas) <= limits::MAX_COUNTER_DELTAS);
    assert!(u64::from(bytes) <= limits::MIN_COUNTER_FOLD_BYTES + 100);
    assert_eq!(snapshots, 1);
    drop((writer, store));
    let (_writer, store) = open(&path);
    assert_eq!(store.totals(&TopicFilter::all()).unwrap().duplicates, commits);
    assert_eq!(store.totals(&TopicFilter::all()).unwrap().accepted, 1);
}

/// A store without merges, which could replace a file before it is damaged or while it is.
fn open_unmerged(path: &Path) -> (SqliteWriter, SqliteStore) {
    let settings = Settings {
        merge_fan_in: 1000,
        ..SMALL
    };
    recovery::open(path, Arc::new(|| {}), settings, 1000).unwrap()
}

/// The files of the segments, the first events' first.
fn segment_files(database: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(Paths::of(database).index)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
}

/// Damages a file in place, because the store has it open.
fn damage(file: &Path) {
    let length = fs::metadata(file).unwrap().len();
    fs::write(file, vec![0x55; usize::try_from(length).unwrap()]).unwrap();
}

fn is_being_rebuilt(result: Result<impl std::fmt::Debug, CommitError>) {
    let error = result.unwrap_err();
    assert!(matches!(error, CommitError::Unavailable(_)), "{error:?}");
    assert!(error.to_string().contains("rebuilt"), "{error}");
}

#[test]
fn a_segment_that_is_damaged_while_the_store_is_open_is_rebuilt() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let (mut writer, store) = open_unmerged(&path);
    commit_many(&mut writer, &store, "id", 64);
    // Of the first events, long sealed.
    damage(&segment_files(&path)[0]);
    let events = batch(&store.identity(), &[sent("topic", "id-0", r#"{"a":1}"#)]);
    is_being_rebuilt(writer.commit(&[&events]));
    // Each failing probe lets the rebuilds get on.
    while writer.probe().is_err() || writer.commit(&[&events]).is_err() {
        std::thread::yield_now();
    }
    let again = commit(&mut writer, &store, &[sent("topic", "id-63", r#"{"a":1}"#)]);
    assert_eq!((again[0].outcome, again[0].seq), (Outcome::Duplicate, 64));
}

#[test]
fn commits_alone_list_what_was_rebuilt() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let (mut writer, store) = open_unmerged(&path);
    commit_many(&mut writer, &store, "id", 64);
    damage(&segment_files(&path)[0]);
    let events = batch(&store.identity(), &[sent("topic", "id-0", r#"{"a":1}"#)]);
    is_being_rebuilt(writer.commit(&[&events]));
    let outcomes = loop {
        match writer.commit(&[&events]) {
            Ok(outcomes) => break outcomes,
            Err(_) => std::thread::yield_now(),
        }
    };
    assert!(
        matches!(&outcomes[0], BatchOutcome::Committed(placed) if placed[0].outcome == Outcome::Duplicate),
        "{outcomes:?}"
    );
    writer.maintain().unwrap();
}

#[test]
fn a_store_with_an_unusable_segment_says_so_although_some_commits_work() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let (mut writer, store) = open_unmerged(&path);
    commit_many(&mut writer, &store, "id", 64);
    // So that it cannot be rebuilt.
    Connection::open(&path)
        .unwrap()
        .execute("DELETE FROM events WHERE seq = 2", [])
        .unwrap();
    damage(&segment_files(&path)[0]);
    let events = batch(&store.identity(), &[sent("topic", "id-0", r#"{"a":1}"#)]);
    is_being_rebuilt(writer.commit(&[&events]));
    is_being_rebuilt(writer.maintain());
    is_being_rebuilt(writer.probe());
    // Of what is found elsewhere, a commit is as sure as ever.
    let known = batch(&store.identity(), &[sent("topic", "id-63", r#"{"a":1}"#)]);
    assert!(writer.commit(&[&known]).is_ok());
    is_being_rebuilt(writer.maintain());
}

#[test]
fn a_segment_that_cannot_be_rebuilt_keeps_no_other_from_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let (mut writer, store) = open_unmerged(&path);
    commit_many(&mut writer, &store, "id", 64);
    Connection::open(&path)
        .unwrap()
        .execute("DELETE FROM events WHERE seq = 2", [])
        .unwrap();
    let files = segment_files(&path);
    damage(&files[0]);
    damage(&files[1]);
    // The topic's events by position: the first segment is read first, then noticed; so is the second.
    let (lost, other) = (sent("topic", "id-0", "{}"), sent("topic", "id-9", "{}"));
    let (lost, other) = (
        batch(&store.identity(), &[lost]),
        batch(&store.identity(), &[other]),
    );
    is_being_rebuilt(writer.commit(&[&lost]));
    loop {
        match writer.commit(&[&other]) {
            Ok(_) => break,
            Err(CommitError::Unavailable(_)) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
    is_being_rebuilt(writer.commit(&[&lost]));
}

#[test]
fn readers_know_the_topic_of_every_event_that_they_find() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let (mut writer, store) = open(&path);
    writer
        .connection()
        .pragma_update(None, "synchronous", "OFF")
        .unwrap();
    let rounds = 500;
    std::thread::scope(|scope| {
        let store = &store;
        // More than there are processors, so that the writer is interrupted between its steps now and then.
        for _ in 0..6 {
            scope.spawn(move || {
                for round in 0..rounds {
                    let topic = format!("topic {round}");
                    while store.find(&topic, "id").unwrap().is_none() {
                        std::hint::spin_loop();
                    }
                }
            });
        }
        for round in 0..rounds {
            commit(&mut writer, store, &[sent(&format!("topic {round}"), "id", "{}")]);
        }
    });
}

#[test]
fn the_time_of_commits_never_goes_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let (mut writer, store) = open(&path);
    commit_many(&mut writer, &store, "id", 1);
    drop((writer, store));
    // As if the clock had been far ahead then.
    let future = i64::MAX / 4;
    let connection = Connection::open(&path).unwrap();
    let mut delta: Delta = connection
        .query_row("SELECT id, delta FROM counter_deltas", [], |row| {
            Ok(Delta::decode(row.get_ref(1)?.as_blob()?, row.get(0)?).unwrap())
        })
        .unwrap();
    delta.processed_at = future;
    connection
        .execute(
            "UPDATE counter_deltas SET delta = ?1 WHERE id = 1",
            [delta.encode(1)],
        )
        .unwrap();
    drop(connection);
    let (mut writer, store) = open(&path);
    commit(&mut writer, &store, &[sent("topic", "next", "{}")]);
    assert_eq!(store.find("topic", "next").unwrap().unwrap().processed_at, future);
}
