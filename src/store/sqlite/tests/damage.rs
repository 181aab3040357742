//! Damage that SQLite does not see is found before anything is built on it.

use super::{commit, commit_many, open, refusal, sent};
use crate::store::{
    Store as _, Writer as _,
    sqlite::{backup, paths::Paths, verify::verify_with, writer::SqliteWriter},
};
use rusqlite::Connection;
use std::{fs, os::unix::fs::FileExt, path::Path};

/// A store with 30 events that was stopped.
fn stopped(path: &Path) {
    let (mut writer, store) = open(path);
    commit_many(&mut writer, &store, "id", 30);
    Box::new(writer).close().unwrap();
}

fn overwrite(path: &Path, place: u64, bytes: &[u8]) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(bytes, place).unwrap();
}

fn sql(path: &Path, sql: &str) {
    Connection::open(path).unwrap().execute_batch(sql).unwrap();
}

#[track_caller]
fn is_refused(path: &Path, words: &str) {
    let message = refusal(path);
    assert!(message.contains(words), "{message}");
    assert!(message.contains("events.db"), "{message}");
    let report = verify_with(path, super::SMALL, &mut |_, _| {});
    assert!(
        report.is_err() || report.is_ok_and(|report| !report.is_sound()),
        "verify finds it, too"
    );
}

// A file that was lost or cut to nothing was taken for a new store: everything acknowledged was accepted again, and
// SQLite removed the log of the one that was lost.
#[test]
fn no_new_store_is_begun_where_another_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let (mut writer, store) = open(&path);
    commit_many(&mut writer, &store, "id", 30);
    drop((writer, store));
    let whole = fs::read(&path).unwrap();
    fs::write(&path, "").unwrap();
    let message = refusal(&path);
    assert!(message.contains("is empty"), "{message}");
    assert!(message.contains("events.db-wal"), "{message}");
    fs::remove_file(&path).unwrap();
    let message = refusal(&path);
    assert!(message.contains("is missing"), "{message}");

    fs::write(&path, whole).unwrap();
    let (writer, store) = open(&path);
    assert_eq!(store.high_watermark(), 30);
    drop(store);
    Box::new(writer).close().unwrap();
    fs::remove_file(&path).unwrap();
    let message = refusal(&path);
    assert!(message.contains("events.db-index"), "{message}");
    fs::write(&path, "").unwrap();
    let message = refusal(&path);
    assert!(message.contains("is empty"), "{message}");
    fs::remove_dir_all(Paths::of(&path).index).unwrap();
    assert_eq!(open(&path).1.high_watermark(), 0);
}

// The header says "vacuum by itself" in a byte that SQLite believes: it took page 2 for a map of pages and wrote over
// it. Another one says that the file may not be written: the store opened, and each commit failed.
#[test]
fn a_header_that_is_not_as_it_was_made_is_refused() {
    for (place, byte) in [(55, 1), (20, 8), (47, 0), (59, 2), (67, 1), (18, 3), (19, 0)] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.db");
        stopped(&path);
        overwrite(&path, place, &[byte]);
        is_refused(&path, "header of the file");
    }
}

// The definition of a column has no checksum: `event_id TEXU` is a column of numbers, which would keep the id "007" as 7.
#[test]
fn a_definition_that_is_not_as_it_was_made_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    stopped(&path);
    sql(
        &path,
        "PRAGMA writable_schema=ON;
         UPDATE sqlite_schema SET sql = replace(sql, 'event_id TEXT', 'event_id TEXU') WHERE name = 'events'",
    );
    is_refused(&path, "table events");
}

// The number of rows in the head of a page was one too low: the newest change of the counters was not missed, because
// it had only duplicates, and the counters were wrong.
#[test]
fn a_row_that_its_page_does_not_count_is_missed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let (mut writer, store) = open(&path);
    commit_many(&mut writer, &store, "id", 30);
    commit(&mut writer, &store, &[sent("topic", "id-1", r#"{"a":1}"#)]);
    Box::new(writer).close().unwrap();
    drop(store);
    let root: u64 = Connection::open(&path)
        .unwrap()
        .query_row(
            "SELECT rootpage FROM sqlite_schema WHERE name = 'counter_deltas'",
            [],
            |row| row.get::<_, i64>(0).map(i64::cast_unsigned),
        )
        .unwrap();
    let count = (root - 1) * 8192 + 4;
    let rows = fs::read(&path).unwrap()[count as usize];
    assert_eq!(rows, 6);
    overwrite(&path, count, &[rows - 1]);
    is_refused(&path, "table counter_deltas");
}

// The history had no checksum: cursors that were given out were refused as those of another history, or those of
// another one taken.
#[test]
fn a_history_that_is_not_as_it_was_made_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    stopped(&path);
    let copy = folder.path().join("copy-of-events.db");
    backup(&path, &copy, &mut |_, _| {}).unwrap();
    for path in [&path, &copy] {
        assert_eq!(open(path).1.high_watermark(), 30);
        sql(path, "UPDATE branches SET id = id + 1 WHERE first = 1");
        is_refused(path, "history");
        // The first stores of this format have no checksum of it.
        sql(path, "DELETE FROM meta WHERE name = 'history_checksum'");
        open(path);
    }
}

#[test]
fn a_damaged_list_of_segments_can_be_given_up_as_the_refusal_says() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    for damage in [
        "UPDATE segments SET last = last + 1000",
        "UPDATE segments SET first = first + 1",
        "UPDATE segments SET number = -1 WHERE first = 1",
        "UPDATE segments SET last = -1 WHERE last = 24",
    ] {
        let (mut writer, store) = open(&path);
        let events: Vec<_> = (0..30)
            .map(|number| sent("topic", &format!("id-{number}"), r#"{"a":1}"#))
            .collect();
        let placed = commit(&mut writer, &store, &events);
        assert_eq!(placed[29].seq, 30);
        let listed = |writer: &SqliteWriter| -> Option<i64> {
            writer
                .connection()
                .query_row("SELECT max(last) FROM segments", [], |row| row.get(0))
                .unwrap()
        };
        while listed(&writer) != Some(24) {
            writer.maintain().unwrap();
        }
        drop(store);
        Box::new(writer).close().unwrap();
        sql(&path, damage);
        is_refused(&path, "'DELETE FROM segments'");
        sql(&path, "DELETE FROM segments");
    }
    assert_eq!(open(&path).1.high_watermark(), 30);
}
