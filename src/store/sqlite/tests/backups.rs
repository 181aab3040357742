//! A backup holds exactly the events up to its watermark, also when it is taken under load; `verify` tells a whole
//! store from a damaged one.

use super::{SMALL, commit, commit_many, open, sent};
use crate::{
    event::Outcome,
    store::{
        Store as _, TopicFilter, Writer as _,
        sqlite::{backup, paths::Paths, recovery, schema, verify::verify_with, writer::SqliteWriter},
    },
};
use rusqlite::Connection;
use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

fn problems(path: &Path) -> Vec<(String, String)> {
    let report = verify_with(path, SMALL, &mut |done, total| assert!(done <= total)).unwrap();
    assert_eq!(
        report.is_sound(),
        report.checks.iter().all(|check| check.problem.is_none())
    );
    report
        .checks
        .into_iter()
        .filter_map(|check| Some((check.name, check.problem?)))
        .collect()
}

#[test]
fn a_backup_under_load_holds_exactly_the_events_up_to_its_watermark() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let copy = folder.path().join("copy.db");
    let (mut writer, store) = open(&path);
    writer
        .connection()
        .pragma_update(None, "synchronous", "OFF")
        .unwrap();
    commit_many(&mut writer, &store, "before", 700);
    let stop = AtomicBool::new(false);
    let report = std::thread::scope(|scope| {
        let committing = scope.spawn(|| {
            let mut round = 0;
            while !stop.load(Ordering::Relaxed) {
                commit_many(&mut writer, &store, &format!("during-{round}"), 7);
                commit(&mut writer, &store, &[sent("topic", "before-0", r#"{"a":2}"#)]);
                round += 1;
            }
        });
        let report = backup(&path, &copy, &mut |done, total| assert!(done <= total));
        stop.store(true, Ordering::Relaxed);
        committing.join().unwrap();
        report.unwrap()
    });
    assert!(report.watermark >= 700);
    assert_eq!(report.events, report.watermark);
    assert_eq!(problems(&copy), []);
    let (mut restored_writer, restored) = open(&copy);
    assert_eq!(restored.identity(), store.identity());
    assert_eq!(restored.high_watermark(), report.watermark);
    assert_eq!(
        restored.totals(&TopicFilter::all()).unwrap().accepted,
        report.watermark
    );
    for number in 0..700 {
        let id = format!("before-{number}");
        assert_eq!(
            restored.find("topic", &id).unwrap(),
            store.find("topic", &id).unwrap()
        );
    }
    let again = commit(
        &mut restored_writer,
        &restored,
        &[sent("topic", "before-9", r#"{"a":1}"#)],
    );
    assert_eq!((again[0].outcome, again[0].seq), (Outcome::Duplicate, 10));
}

#[test]
fn a_backup_overwrites_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    drop(open(&path));
    let copy = folder.path().join("copy.db");
    fs::write(&copy, "precious").unwrap();
    let error = backup(&path, &copy, &mut |_, _| {}).unwrap_err();
    assert!(error.to_string().contains("exists already"), "{error}");
    assert_eq!(fs::read(&copy).unwrap(), b"precious");
}

#[test]
fn a_backup_that_fails_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let (mut writer, store) = open(&path);
    commit_many(&mut writer, &store, "id", 30);
    Connection::open(&path)
        .unwrap()
        .execute("UPDATE events SET payload = '{}' WHERE seq = 20", [])
        .unwrap();
    let copies = folder.path().join("copies");
    fs::create_dir(&copies).unwrap();
    let error = backup(&path, &copies.join("copy.db"), &mut |_, _| {}).unwrap_err();
    assert!(error.to_string().contains("event 20 "), "{error}");
    assert_eq!(fs::read_dir(&copies).unwrap().count(), 0);
}

/// On a full disk, or when it is killed, a backup may end while SQLite has files of its own beside the copy. One of them
/// stayed for ever.
#[test]
fn a_backup_removes_all_that_an_earlier_one_left() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let (mut writer, store) = open(&path);
    commit_many(&mut writer, &store, "id", 30);
    let copies = folder.path().join("copies");
    fs::create_dir(&copies).unwrap();
    for suffix in ["", "-wal", "-shm", "-journal"] {
        fs::write(copies.join(format!("copy.db.partial{suffix}")), "left behind").unwrap();
    }
    backup(&path, &copies.join("copy.db"), &mut |_, _| {}).unwrap();
    let mut names: Vec<_> = fs::read_dir(&copies)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["copy.db", "copy.db-index"]);
}

#[test]
fn a_backup_of_a_damaged_segment_is_refused_and_says_which() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    Box::new(filled(&path)).close().unwrap();
    let mut names = Vec::new();
    for entry in fs::read_dir(folder.path().join("events.db-index")).unwrap() {
        let file = entry.unwrap().path();
        let mut bytes = fs::read(&file).unwrap();
        // In the first block, of which nothing is read when a segment is opened.
        bytes[20] ^= 1;
        fs::write(&file, bytes).unwrap();
        names.push(file.display().to_string());
    }
    let copy = folder.path().join("copies/copy.db");
    let message = backup(&path, &copy, &mut |_, _| {}).unwrap_err().to_string();
    assert!(names.iter().any(|name| message.contains(name)), "{message}");
    assert!(message.contains("rebuilds it"), "{message}");
    assert_eq!(fs::read_dir(folder.path().join("copies")).unwrap().count(), 0);
}

#[test]
fn a_backup_can_be_read_where_nothing_can_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let copy = folder.path().join("copy 100%?#.db");
    let writer = filled(&path);
    backup(&path, &copy, &mut |_, _| {}).unwrap();
    drop(writer);
    let paths = Paths::of(&copy);
    let connection = schema::open_immutable(&paths).unwrap();
    assert_eq!(
        recovery::load(&paths, &connection).unwrap().topics.highest_seq(),
        60
    );
    assert!(!paths.wal.exists());
    // The log of the original has commits that are only there.
    let message = schema::open_immutable(&Paths::of(&path)).unwrap_err().to_string();
    assert!(message.contains("-wal"), "{message}");
}

fn filled(path: &Path) -> SqliteWriter {
    let (mut writer, store) = recovery::open(path, std::sync::Arc::new(|| {}), SMALL, 1000).unwrap();
    commit_many(&mut writer, &store, "id", 60);
    writer
}

#[test]
fn verify_refuses_a_store_that_is_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let _writer = filled(&path);
    let error = verify_with(&path, SMALL, &mut |_, _| {}).unwrap_err();
    assert!(error.to_string().contains("in use"), "{error}");
}

#[test]
fn verify_finds_nothing_wrong_with_a_whole_store() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    Box::new(filled(&path)).close().unwrap();
    assert_eq!(problems(&path), []);
}

#[test]
fn verify_names_what_is_damaged() {
    let damages = [
        ("UPDATE events SET source = 'x' WHERE seq = 9", "event 9 "),
        ("DELETE FROM events WHERE seq = 11", "event 11 "),
        ("UPDATE topics SET name = 'other'", "topic 0 is damaged"),
        (
            "UPDATE meta SET value = zeroblob(16) WHERE name = 'hash_secret'",
            "identity",
        ),
        ("DELETE FROM counter_deltas WHERE id = 2", "delta 2 is missing"),
    ];
    for (damage, sign) in damages {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.db");
        Box::new(filled(&path)).close().unwrap();
        Connection::open(&path).unwrap().execute(damage, []).unwrap();
        let found = problems(&path);
        assert!(
            found.iter().any(|(_, problem)| problem.contains(sign)),
            "{damage}: {found:?}"
        );
    }
}

#[test]
fn verify_finds_a_damaged_segment() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    Box::new(filled(&path)).close().unwrap();
    // All files, because the last merge may not have been listed any more.
    for entry in fs::read_dir(folder.path().join("events.db-index")).unwrap() {
        let file = entry.unwrap().path();
        let mut bytes = fs::read(&file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&file, bytes).unwrap();
    }
    let found = problems(&path);
    assert!(!found.is_empty());
    assert!(
        found.iter().all(|(name, _)| name.starts_with("index segment")),
        "{found:?}"
    );
}
