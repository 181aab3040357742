//! What is refused at open, with a message that says what to do, and what comes back after a stop.

use super::{commit, commit_many, open, refusal, sent};
use crate::{
    event::Outcome,
    store::{Store as _, TopicFilter, Writer as _},
};
use rusqlite::Connection;
use std::{fs, path::Path};

#[test]
fn a_second_server_is_refused_and_told_who_has_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let first = open(&path);
    let message = refusal(&path);
    assert!(
        message.contains(&format!("process {}", std::process::id())),
        "{message}"
    );
    assert!(message.contains("events.db"), "{message}");
    drop(first);
    open(&path);
}

#[test]
fn a_symbolic_link_leads_to_the_same_lock_and_the_same_index() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let link = folder.path().join("elsewhere.db");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let message = refusal(&link);
    assert!(message.contains("symbolic link"), "{message}");
    let (mut writer, store) = open(&path);
    commit_many(&mut writer, &store, "id", 30);
    let message = refusal(&link);
    assert!(message.contains("in use"), "{message}");
    drop((writer, store));
    let (_writer, store) = open(&link);
    assert_eq!(store.totals(&TopicFilter::all()).unwrap().accepted, 30);
    assert!(!folder.path().join("elsewhere.db-index").exists());
    assert!(!folder.path().join("elsewhere.db.lock").exists());
}

#[test]
fn the_lock_is_held_as_long_as_anyone_uses_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let (writer, store) = open(&path);
    Box::new(writer).close().unwrap();
    // The index's threads are the store's too.
    let message = refusal(&path);
    assert!(message.contains("in use"), "{message}");
    drop(store);
    open(&path);
}

#[test]
fn folders_are_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("some/where/events.db");
    let (writer, store) = open(&path);
    assert_eq!(store.high_watermark(), 0);
    Box::new(writer).close().unwrap();
    assert!(path.is_file());
}

#[test]
fn a_database_of_another_program_is_refused_and_left_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.db");
    let other = Connection::open(&path).unwrap();
    other.execute_batch("CREATE TABLE things(name)").unwrap();
    drop(other);
    let before = fs::read(&path).unwrap();
    let message = refusal(&path);
    assert!(message.contains("another program"), "{message}");
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn a_file_that_is_no_database_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes.txt");
    fs::write(&path, "Dear diary, ".repeat(50)).unwrap();
    let message = refusal(&path);
    assert!(message.contains("not a SQLite database"), "{message}");
}

/// As a crash leaves a database whose first transaction has written pages: the file, and a journal that says that the
/// file was empty.
fn cut_off_making(path: &Path) {
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("events.db");
    let connection = Connection::open(&other).unwrap();
    connection
        .execute_batch(
            "PRAGMA page_size = 8192; PRAGMA cache_size = 1; BEGIN; CREATE TABLE things(name);
             INSERT INTO things VALUES (zeroblob(1000000));",
        )
        .unwrap();
    fs::copy(&other, path).unwrap();
    let journal = |path: &Path| path.with_file_name("events.db-journal");
    fs::copy(journal(&other), journal(path)).unwrap();
    assert!(fs::metadata(path).unwrap().len() > 0);
}

/// A power cut in the first milliseconds of a new store left SQLite's rollback journal beside the file. Every later start
/// was refused: the look that must not change another program's database cannot undo what is half done, and a file whose
/// first page was torn was no database at all.
#[test]
fn a_store_whose_making_was_cut_off_is_made_again() {
    for torn in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.db");
        cut_off_making(&path);
        if torn {
            let mut bytes = fs::read(&path).unwrap();
            bytes[..512].fill(0);
            fs::write(&path, bytes).unwrap();
        }
        let (mut writer, store) = open(&path);
        assert_eq!(store.high_watermark(), 0);
        commit_many(&mut writer, &store, "id", 30);
        drop((writer, store));
        let (_writer, store) = open(&path);
        assert_eq!(store.high_watermark(), 30);
    }
}

#[test]
fn a_database_that_another_program_left_half_changed_is_left_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let journal = folder.path().join("events.db-journal");
    cut_off_making(&path);
    let mut bytes = fs::read(&journal).unwrap();
    // It had a page before.
    bytes[19] = 1;
    fs::write(&journal, &bytes).unwrap();
    let before = fs::read(&path).unwrap();
    refusal(&path);
    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(fs::read(&journal).unwrap(), bytes);
}

#[test]
fn a_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let message = refusal(folder.path());
    assert!(message.contains("is a folder"), "{message}");
}

#[test]
fn a_store_of_a_newer_format_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    drop(open(&path));
    let connection = Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    let message = refusal(&path);
    assert!(message.contains("format 99"), "{message}");
    assert!(message.contains("newer oncelog"), "{message}");
}

#[test]
fn a_store_of_an_older_format_is_not_called_newer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    drop(open(&path));
    let connection = Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 0).unwrap();
    drop(connection);
    let message = refusal(&path);
    assert!(message.contains("older oncelog"), "{message}");
}

#[test]
fn a_damaged_topic_is_refused() {
    for damage in [
        "UPDATE topics SET name = 'other'",
        "UPDATE topics SET checksum = checksum + 1",
        "INSERT INTO topics SELECT 1, 'another', checksum FROM topics",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.db");
        let (mut writer, store) = open(&path);
        commit_many(&mut writer, &store, "id", 3);
        drop((writer, store));
        Connection::open(&path).unwrap().execute(damage, []).unwrap();
        let message = refusal(&path);
        assert!(message.contains("its checksum is wrong"), "{damage}: {message}");
    }
}

#[test]
fn a_log_without_rows_is_enough_only_when_segments_know_every_event() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let (mut writer, store) = open(&path);
    // Three full tails, and nothing behind them.
    commit_many(&mut writer, &store, "id", 24);
    let sealed = |writer: &crate::store::sqlite::writer::SqliteWriter| -> Option<i64> {
        writer
            .connection()
            .query_row("SELECT max(last) FROM segments", [], |row| row.get(0))
            .unwrap()
    };
    while sealed(&writer) != Some(24) {
        writer.maintain().unwrap();
        std::thread::yield_now();
    }
    drop((writer, store));
    let connection = Connection::open(&path).unwrap();
    connection.execute("DELETE FROM events", []).unwrap();
    drop(connection);
    let (mut writer, store) = open(&path);
    assert_eq!(store.high_watermark(), 24);
    let again = commit(
        &mut writer,
        &store,
        &[sent("topic", "id-7", r#"{"a":1}"#), sent("topic", "new", "{}")],
    );
    assert_eq!((again[0].outcome, again[0].seq), (Outcome::Duplicate, 8));
    assert_eq!((again[1].outcome, again[1].seq), (Outcome::Stored, 25));
    drop((writer, store));
    let connection = Connection::open(&path).unwrap();
    connection.execute("DELETE FROM events", []).unwrap();
    drop(connection);
    let message = refusal(&path);
    assert!(message.contains("ends with event 24"), "{message}");
}

#[test]
fn damaged_counters_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let (mut writer, store) = open(&path);
    commit_many(&mut writer, &store, "id", 3);
    drop((writer, store));
    let connection = Connection::open(&path).unwrap();
    connection
        .execute(
            "UPDATE counter_deltas SET delta = CAST(delta || x'00' AS BLOB)",
            [],
        )
        .unwrap();
    drop(connection);
    let message = refusal(&path);
    assert!(message.contains("counters are damaged"), "{message}");
}

#[test]
fn a_log_that_lost_its_end_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let (mut writer, store) = open(&path);
    commit_many(&mut writer, &store, "id", 3);
    drop((writer, store));
    let connection = Connection::open(&path).unwrap();
    connection
        .execute("DELETE FROM events WHERE seq = 3", [])
        .unwrap();
    drop(connection);
    let message = refusal(&path);
    assert!(message.contains("ends with event 2"), "{message}");
}

#[test]
fn commits_are_synced_before_they_count() {
    let folder = tempfile::tempdir().unwrap();
    let (writer, _store) = open(&folder.path().join("events.db"));
    let pragma = |name: &str| -> String {
        writer
            .connection()
            .pragma_query_value(None, name, |row| {
                Ok(match row.get_ref(0)? {
                    rusqlite::types::ValueRef::Integer(number) => number.to_string(),
                    other => other.as_str()?.to_owned(),
                })
            })
            .unwrap()
    };
    assert_eq!(pragma("synchronous"), "2");
    assert_eq!(pragma("journal_mode"), "wal");
    assert_eq!(pragma("page_size"), "8192");
    assert_eq!(pragma("wal_autocheckpoint"), "0");
}

#[test]
fn a_store_that_was_dropped_forgets_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let (mut writer, store) = open(&path);
    commit_many(&mut writer, &store, "id", 100);
    let before = (
        store.totals(&TopicFilter::all()).unwrap(),
        store.topics(&TopicFilter::all(), None, 10).unwrap(),
        store.identity(),
    );
    drop((writer, store));
    let (mut writer, store) = open(&path);
    assert_eq!(
        (
            store.totals(&TopicFilter::all()).unwrap(),
            store.topics(&TopicFilter::all(), None, 10).unwrap(),
            store.identity()
        ),
        before
    );
    let again = commit(&mut writer, &store, &[sent("topic", "id-0", r#"{"a":1}"#)]);
    assert_eq!((again[0].outcome, again[0].seq), (Outcome::Duplicate, 1));
}

#[test]
fn missing_and_damaged_segments_are_rebuilt_at_open() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let (mut writer, store) = open(&path);
    commit_many(&mut writer, &store, "id", 100);
    Box::new(writer).close().unwrap();
    drop(store);
    let mut files: Vec<_> = fs::read_dir(folder.path().join("events.db-index"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(files.len() >= 2, "{files:?}");
    fs::remove_file(&files[0]).unwrap();
    fs::write(&files[1], "nonsense").unwrap();
    let (mut writer, store) = open(&path);
    for number in 0..100 {
        let id = format!("id-{number}");
        assert_eq!(store.find("topic", &id).unwrap().unwrap().seq, number + 1);
    }
    let again = commit(&mut writer, &store, &[sent("topic", "id-7", r#"{"a":1}"#)]);
    assert_eq!(again[0].outcome, Outcome::Duplicate);
}

#[test]
fn a_segment_that_the_log_cannot_rebuild_is_set_aside_and_the_store_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let (mut writer, store) = open(&path);
    commit_many(&mut writer, &store, "id", 100);
    drop((writer, store));
    let connection = Connection::open(&path).unwrap();
    connection
        .execute("DELETE FROM events WHERE seq = 2", [])
        .unwrap();
    drop(connection);
    for entry in fs::read_dir(folder.path().join("events.db-index")).unwrap() {
        fs::write(entry.unwrap().path(), "nonsense").unwrap();
    }
    let message = refusal(&path);
    assert!(message.contains("event 2 of the log is missing"), "{message}");
    assert!(message.contains("set aside"), "{message}");
}
