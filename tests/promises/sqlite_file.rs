//! The store is a SQLite file that anyone may look into while the server runs; what is not a store of ours, or cannot
//! be one, is refused at start, with what to do, and stays as it was.

use crate::harness::{Event, Folder, Server, oncelog, run, shell};
use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
};

fn sqlite3(file: &Path, sql: &str) -> String {
    shell(Command::new("sqlite3").arg(file).arg(sql))
}

#[test]
fn the_sqlite3_program_reads_the_live_file_as_text() {
    let server = Server::start();
    let mut client = server.client();
    client.publish(&[
        Event::new("user.login", "é-1")
            .at("2025-10-23T12:00:00+02:00")
            .with_payload(r#"{"n":1}"#),
        Event::new("user.login", "é-1"),
        Event::new("order.created", "2"),
    ]);
    let file = server.folder().database();
    let rows = sqlite3(&file, "SELECT * FROM processed_events LIMIT 5");
    let stored = client.get("/events/user.login/%C3%A9-1").ok();
    let first = format!(
        "user.login|é-1|2025-10-23T10:00:00Z|tests|{{\"n\":1}}|{}",
        stored["processed_at"].as_str().unwrap()
    );
    assert_eq!(rows.lines().count(), 2, "{rows}");
    assert_eq!(rows.lines().next(), Some(first.as_str()));
    let columns = sqlite3(
        &file,
        "SELECT group_concat(name, ',') FROM pragma_table_info('processed_events')",
    );
    assert_eq!(
        columns.trim(),
        "topic,event_id,timestamp,source,payload,processed_at"
    );

    // Looking does not get in the way of writing, and sees what was written since.
    client.publish(&[Event::new("user.login", "3")]);
    assert_eq!(
        sqlite3(&file, "SELECT count(*) FROM processed_events").trim(),
        "3"
    );
    assert_eq!(sqlite3(&file, "PRAGMA integrity_check").trim(), "ok");
}

/// Tries to serve with these settings; returns what it said when it refused.
fn refusal(folder: &Folder, settings: &[(&str, &str)]) -> String {
    let output = run(oncelog(folder).arg("serve").envs(settings.iter().copied()));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        matches!(output.status.code(), Some(1 | 2)),
        "{}: {said}",
        output.status
    );
    assert!(!said.contains("panicked"), "{said}");
    said
}

#[track_caller]
fn says(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "the message should have {part:?}: {said}");
    }
}

#[test]
fn a_second_server_on_the_same_file_is_refused_and_the_first_goes_on() {
    let server = Server::start();
    let mut client = server.client();
    client.publish(&[Event::new("t", "1")]);
    says(
        &refusal(server.folder(), &[]),
        &["data/dedup.db", "another", "DATABASE_PATH"],
    );
    client.publish(&[Event::new("t", "2")]);
    assert_eq!(client.counters(), [2, 2, 0, 0]);

    // A lock is no leftover: after a crash the next server opens the file.
    server.kill9();
    let server = server.restart();
    assert_eq!(server.client().counters(), [2, 2, 0, 0]);
}

/// A folder with a file where the store should be.
fn folder_with(make: impl FnOnce(&Path)) -> (Folder, PathBuf) {
    let folder = Folder::new();
    let file = folder.database();
    fs::create_dir(file.parent().unwrap()).unwrap();
    make(&file);
    (folder, file)
}

#[test]
fn a_file_that_is_no_database_is_refused_and_left_as_it_was() {
    for text in ["no database at all".to_owned(), "x".repeat(10_000)] {
        let (folder, file) = folder_with(|file| fs::write(file, &text).unwrap());
        says(
            &refusal(&folder, &[]),
            &["data/dedup.db", "not a SQLite database", "DATABASE_PATH"],
        );
        assert_eq!(fs::read_to_string(&file).unwrap(), text);
    }
}

#[test]
fn a_database_of_another_program_is_refused_and_left_as_it_was() {
    let (folder, file) = folder_with(|file| {
        sqlite3(
            file,
            "CREATE TABLE processed_events(topic TEXT, event_id TEXT); INSERT INTO processed_events VALUES('a','b')",
        );
    });
    let before = fs::read(&file).unwrap();
    says(
        &refusal(&folder, &[]),
        &["data/dedup.db", "another program", "DATABASE_PATH"],
    );
    assert_eq!(fs::read(&file).unwrap(), before);
}

#[test]
fn a_store_of_a_newer_version_is_refused_and_opens_again_with_its_own() {
    let server = Server::start();
    server.client().publish(&[Event::new("t", "1")]);
    server.stop();
    let file = server.folder().database();
    let version: u32 = sqlite3(&file, "PRAGMA user_version").trim().parse().unwrap();
    sqlite3(&file, &format!("PRAGMA user_version = {}", version + 1));
    says(&refusal(server.folder(), &[]), &["data/dedup.db", "newer"]);
    sqlite3(&file, &format!("PRAGMA user_version = {version}"));
    let server = server.restart();
    assert_eq!(server.client().counters(), [1, 1, 0, 0]);
}

#[test]
fn a_folder_in_place_of_the_file_is_refused() {
    let (folder, file) = folder_with(|file| fs::create_dir(file).unwrap());
    says(
        &refusal(&folder, &[]),
        &["data/dedup.db", "folder", "DATABASE_PATH"],
    );
    assert_eq!(fs::read_dir(file).unwrap().count(), 0);
}

#[test]
fn a_path_that_cannot_be_written_is_refused() {
    // Not by permissions: the tests may run as root, who may write everywhere.
    let (folder, _) = folder_with(|file| fs::write(file, "a file").unwrap());
    let below = "data/dedup.db/below/store.db";
    says(&refusal(&folder, &[("DATABASE_PATH", below)]), &["data/dedup.db"]);
    says(
        &refusal(&folder, &[("DATABASE_PATH", "/proc/oncelog/store.db")]),
        &["/proc/oncelog"],
    );
}

#[test]
fn a_port_that_is_taken_is_refused_by_name() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    says(
        &refusal(&Folder::new(), &[("PORT", &port)]),
        &[&port, "taken", "--port", "PORT"],
    );
}

#[test]
fn missing_folders_are_made_and_an_empty_file_is_a_new_store() {
    let folder = Folder::new();
    let server = Server::start_in(folder.clone(), &[("DATABASE_PATH", "a/b/c/store.db")]);
    server.client().publish(&[Event::new("t", "1")]);
    assert!(folder.path().join("a/b/c/store.db").is_file());
    assert!(folder.path().join("a/b/c/store.db-index").is_dir());

    let (folder, _) = folder_with(|file| fs::write(file, "").unwrap());
    let server = Server::start_in(folder, &[]);
    server.client().publish(&[Event::new("t", "1")]);
    assert_eq!(server.client().counters(), [1, 1, 0, 0]);
}

#[test]
fn a_stopped_server_leaves_one_file_that_holds_everything() {
    let server = Server::start();
    server
        .client()
        .publish(&[Event::new("t", "1"), Event::new("t", "2")]);
    server.stop();
    let file = server.folder().database();
    // The write-ahead log was copied back: the file alone is the whole log.
    let alone = server.folder().path().join("alone.db");
    fs::copy(&file, &alone).unwrap();
    assert_eq!(
        sqlite3(&alone, "SELECT count(*) FROM processed_events").trim(),
        "2"
    );
}
