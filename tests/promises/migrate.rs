//! `oncelog migrate`: a store moves from its file into a PostgreSQL server whole. Who asked the one before gets the same
//! answers from the other, and nothing is forgotten, skipped or half there, wherever the copy is killed.

use crate::harness::{
    Client, Database, Event, Folder, Server, eventually, identities, oncelog, read_all, run, shell, verify,
};
use oncelog::{
    access::KeyFile,
    event::{Outcome, Shape, parse},
    index::Settings,
    store::{
        BatchOutcome, OpenError,
        migration::{self, MigrationReport, Step},
        postgres, sqlite,
    },
};
use serde_json::Value;
use std::{
    path::Path,
    process::{Child, Output, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

fn migrate(folder: &Folder, database: &Database, arguments: &[&str]) -> Output {
    run(oncelog(folder)
        .arg("migrate")
        .args(arguments)
        .env("DATABASE_URL", database.url()))
}

#[track_caller]
fn migrated(folder: &Folder, database: &Database) -> Value {
    let output = migrate(folder, database, &["--json"]);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[track_caller]
fn refused(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Events of some topics, with duplicates and conflicts.
fn fill(client: &mut Client, count: usize) {
    for (round, topic) in ["orders", "log ins/é", "a"].into_iter().enumerate() {
        for start in (0..count).step_by(5000) {
            client.publish(&Event::numbered(topic, start..count.min(start + 5000)));
        }
        client.publish(&Event::numbered(topic, 0..50 * (round + 1)));
        client.publish(&[Event::new(topic, "7").with_payload(r#"{"other":true}"#)]);
    }
    client.publish(&[
        Event::new("a", "early").at("1969-12-31T23:59:59.999999999+01:00"),
        Event::new("a", "\u{1F600} \"quoted\" \\ \t").with_payload("{ \"n\" : 1.50e3 , \"z\":\"\\u0000\" }"),
        Event::new("a", "late")
            .with_source("an other")
            .at("9999-12-30T00:00:00Z"),
    ]);
}

/// Queries whose answers are the same before and after.
const QUERIES: [&str; 6] = [
    "/events",
    "/events?order=asc&limit=1000",
    "/events?topic=log%20ins/%C3%A9&limit=33",
    "/events/a/%F0%9F%98%80%20%22quoted%22%20%5C%20%09",
    "/topics",
    "/topics?limit=2",
];

/// Searches whose answers are, in a log that is looked at whole for one page.
const SEARCHES: [&str; 2] = [
    "/events?topic=a&order=asc&limit=500&source=an%20other",
    "/events?from=1960-01-01T00:00:00Z&to=2025-10-23T10:00:00.000000001Z",
];

/// The answers byte for byte, and the counters.
fn answers<'a>(client: &mut Client, queries: impl IntoIterator<Item = &'a &'a str>) -> Vec<String> {
    let mut answers: Vec<String> = queries
        .into_iter()
        .map(|target| {
            let answer = client.get(target);
            assert_eq!(answer.status, 200, "{target}: {}", answer.text());
            format!("{target}: {}", answer.text())
        })
        .collect();
    let stats = client.get("/stats").ok();
    answers.push(format!("{:?} {}", client.counters(), stats["topics"]));
    answers
}

/// Fails with the first answer that is another one.
#[track_caller]
fn assert_same(after: &[String], before: &[String]) {
    assert_eq!(after.len(), before.len());
    for (after, before) in after.iter().zip(before) {
        assert_eq!(after, before);
    }
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name]
        .as_str()
        .unwrap_or_else(|| panic!("{name} in {value}"))
}

/// What comes after a cursor, and the cursor at the end.
fn follow(client: &mut Client, cursor: &str) -> (Vec<(String, String)>, String) {
    let mut found = Vec::new();
    let mut cursor = cursor.to_owned();
    loop {
        let page = client
            .get(&format!("/events?order=asc&limit=1000&cursor={cursor}"))
            .ok();
        found.extend(identities(page["events"].as_array().expect("events")));
        text(&page, "next").clone_into(&mut cursor);
        if page["caught_up"] == true {
            return (found, cursor);
        }
    }
}

#[test]
fn a_store_answers_as_before_and_goes_on_where_it_was() {
    let database = Database::new();
    let server = Server::start();
    let mut client = server.client();
    fill(&mut client, 700);
    let before = answers(&mut client, QUERIES.iter().chain(&SEARCHES));
    let all = read_all(&mut client, "order=asc&limit=1000&");
    let counters = client.counters();
    // One who reads is in the middle, one at the end, and one goes backwards.
    let middle = client.get("/events?order=asc&limit=1000").ok();
    let middle = text(&middle, "next").to_owned();
    let (_, end) = follow(&mut client, &middle);
    let backwards = client.get("/events?topic=orders&limit=10").ok();
    server.stop();

    let report = migrated(server.folder(), &database);
    let high = all.len() as u64;
    assert_eq!(report["events"], high, "{report}");
    assert_eq!(report["watermark"], high, "{report}");
    assert_eq!(report["duplicates"], counters[2], "{report}");
    assert_eq!(report["conflicts"], 3, "{report}");
    // Nothing was changed in the file.
    verify(server.folder());

    let instance = database.instance();
    let mut client = instance.client();
    assert_same(&answers(&mut client, QUERIES.iter().chain(&SEARCHES)), &before);
    assert_eq!(read_all(&mut client, "order=asc&limit=1000&"), all);
    let cursor = text(&backwards, "next");
    let older = client
        .get(&format!("/events?topic=orders&limit=1&cursor={cursor}"))
        .ok();
    assert_eq!(older["events"][0]["event_id"], "689", "{older}");
    // What was there is a duplicate of what was there, what is new gets the next number.
    let again = client.publish(&[
        Event::numbered("orders", 7..8).remove(0),
        Event::new("orders", "8").with_payload("{}"),
        Event::new("orders", "new"),
        Event::new("a new topic", "new"),
    ]);
    let results = again["results"].as_array().expect("results");
    let outcomes: Vec<&str> = results.iter().map(|result| text(result, "outcome")).collect();
    assert_eq!(outcomes, ["duplicate", "conflict", "stored", "stored"], "{again}");
    let mut seqs: Vec<u64> = results
        .iter()
        .filter_map(|result| result["seq"].as_u64())
        .collect();
    let new: Vec<u64> = seqs.split_off(2);
    assert_eq!(seqs, [8, 9], "{again}");
    assert!(new[0] > high && new[1] > new[0], "{again}");
    assert_eq!(
        client.counters(),
        [counters[0] + 4, counters[1] + 2, counters[2] + 2, counters[3] + 1]
    );

    // Cursors from before go on, without a skip and without a repetition.
    let mut expected = identities(&all[1000..]);
    let new = [("orders", "new"), ("a new topic", "new")];
    let new = new.map(|(topic, id)| (topic.to_owned(), id.to_owned()));
    expected.extend(new.clone());
    assert_eq!(follow(&mut client, &middle).0, expected);
    assert_eq!(follow(&mut client, &end).0, new);

    // If the old store goes on all the same, its new cursors are of another history.
    let old = server.restart();
    old.client().publish(&[Event::new("orders", "elsewhere")]);
    let page = old.client().get("/events?limit=1").ok();
    let problem = client
        .get(&format!("/events?cursor={}", text(&page, "next")))
        .problem(422);
    assert!(text(&problem, "detail").contains("other events"), "{problem}");
}

#[test]
fn keys_go_on_and_those_made_in_the_database_before_stay() {
    let database = Database::new();
    let server = Server::start();
    server.client().publish(&[Event::new("a", "1")]);
    server.stop();
    let create = |command: &mut std::process::Command| -> (String, String) {
        let made = shell(command.args(["keys", "create", "--name", "k", "--scope", "admin", "--json"]));
        let made: Value = serde_json::from_str(&made).expect("JSON");
        (text(&made, "id").to_owned(), text(&made, "key").to_owned())
    };
    let (_, in_file) = create(&mut oncelog(server.folder()));
    let (revoked, of_no_use) = create(&mut oncelog(server.folder()));
    shell(oncelog(server.folder()).args(["keys", "revoke", &revoked]));
    let (_, in_table) = create(oncelog(&Folder::new()).env("DATABASE_URL", database.url()));
    assert_eq!(migrated(server.folder(), &database)["keys"], 2);
    let instance = database.instance();
    for (key, status) in [(&in_file, 200), (&in_table, 200), (&of_no_use, 401)] {
        let authorization = format!("Bearer {key}");
        let answer = instance
            .client()
            .request("GET", "/stats", &[("authorization", &authorization)], b"");
        assert_eq!(answer.status, status, "{}", answer.text());
    }
}

/// Moves it in this process, so that `progress` can do something in the middle.
fn moved(
    path: &Path,
    database: &Database,
    progress: &mut dyn FnMut(Step, u64, u64),
) -> Result<MigrationReport, OpenError> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let source = sqlite::Source::open(path)?;
        let server = postgres::Server::parse(&database.url()).unwrap();
        let target = postgres::Target::begin(server, &source).await?;
        migration::migrate(&source, target, &KeyFile::beside(path), progress).await
    })
}

#[test]
fn keys_are_as_they_were_at_the_end_of_the_copy() {
    let database = Database::new();
    let server = Server::start();
    server.client().publish(&[Event::new("a", "1")]);
    server.stop();
    let keys = |arguments: &[&str]| shell(oncelog(server.folder()).arg("keys").args(arguments));
    let create = || -> Value {
        let made = keys(&["create", "--name", "k", "--scope", "admin", "--json"]);
        serde_json::from_str(&made).expect("JSON")
    };
    let revoked = create();
    let mut late = None;
    let report = moved(&server.folder().database(), &database, &mut |step, _, _| {
        if step == Step::Check && late.is_none() {
            keys(&["revoke", text(&revoked, "id")]);
            late = Some(create());
        }
    });
    assert_eq!(report.unwrap().keys, 2);
    let instance = database.instance();
    for (made, status) in [(&revoked, 401), (&late.expect("it was checked"), 200)] {
        let authorization = format!("Bearer {}", text(made, "key"));
        let answer = instance
            .client()
            .request("GET", "/stats", &[("authorization", &authorization)], b"");
        assert_eq!(answer.status, status, "{}", answer.text());
    }
}

/// They were read before the last comparison, which takes long in a large store: a key that was revoked meanwhile was let in
/// by the instances.
#[test]
fn a_key_that_is_revoked_while_the_copy_ends_is_revoked_in_the_database() {
    let database = Database::new();
    drop(database.instance());
    let server = Server::start();
    server.client().publish(&[Event::new("a", "1")]);
    server.stop();
    let keys = |arguments: &[&str]| shell(oncelog(server.folder()).arg("keys").args(arguments));
    let made = keys(&["create", "--name", "k", "--scope", "admin", "--json"]);
    let made: Value = serde_json::from_str(&made).expect("JSON");
    database.sql("CREATE TABLE public.held AS SELECT true AS is_held");
    let wait = "WHILE EXISTS (SELECT FROM public.held) LOOP PERFORM pg_sleep(0.01); END LOOP";
    let mut child = waits_at(server.folder(), &database, "topic_counters", "true", wait);
    keys(&["revoke", text(&made, "id")]);
    database.sql("DELETE FROM public.held");
    assert!(child.wait().expect("it ends").success());
    let authorization = format!("Bearer {}", text(&made, "key"));
    let instance = database.instance();
    let answer = instance
        .client()
        .request("GET", "/stats", &[("authorization", &authorization)], b"");
    assert_eq!(answer.status, 401, "{}", answer.text());
}

#[test]
fn a_copy_does_not_end_in_a_database_that_another_store_was_put_into_meanwhile() {
    let database = Database::new();
    let server = Server::start();
    server.client().publish(&[Event::new("a", "1")]);
    server.stop();
    let error = moved(&server.folder().database(), &database, &mut |step, _, _| {
        if step == Step::Check {
            // What a restored dump does.
            database.sql("UPDATE oncelog.store SET identity = decode(repeat('ab', 16), 'hex')");
        }
    });
    let error = error.unwrap_err().to_string();
    assert!(error.contains("another one has taken its place"), "{error}");
    assert_eq!(
        database.sql("SELECT finished_at IS NULL FROM oncelog.migration"),
        "t"
    );
}

#[test]
fn a_store_whose_keys_are_all_gone_lets_nobody_in_afterwards() {
    let database = Database::new();
    let server = Server::start();
    server.stop();
    let keys = KeyFile::beside(&server.folder().database());
    std::fs::write(keys.path(), r#"{"format":1,"keys":[]}"#).unwrap();
    assert_eq!(migrated(server.folder(), &database)["keys"], 0);
    assert_eq!(database.instance().client().get("/stats").status, 401);
}

#[test]
fn who_has_read_a_store_without_events_goes_on_in_the_database() {
    let database = Database::new();
    let server = Server::start();
    let page = server.client().get("/events?order=asc").ok();
    let start = text(&page, "next");
    server.stop();
    assert_eq!(migrated(server.folder(), &database)["events"], 0);
    let instance = database.instance();
    let mut client = instance.client();
    client.publish(&[Event::new("a", "1")]);
    let found = follow(&mut client, start).0;
    assert_eq!(found, [("a".to_owned(), "1".to_owned())]);
}

/// A migration that is stopped by a trigger in a table, when it gets to the rows for which `when` holds.
fn stopped_at(folder: &Folder, database: &Database, table: &str, when: &str) -> Child {
    waits_at(folder, database, table, when, "PERFORM pg_sleep(3600)")
}

/// The same; it `wait`s there, and may go on.
fn waits_at(folder: &Folder, database: &Database, table: &str, when: &str, wait: &str) -> Child {
    database.sql(&format!(
        "CREATE FUNCTION oncelog.stop() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {wait}; RETURN NEW; \
         END $$; CREATE TRIGGER stop BEFORE INSERT OR UPDATE ON oncelog.{table} FOR EACH ROW WHEN ({when}) \
         EXECUTE FUNCTION oncelog.stop()"
    ));
    let mut child = oncelog(folder)
        .arg("migrate")
        .env("DATABASE_URL", database.url())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program");
    eventually("the migration is where it is to be killed", || {
        let ended = child.try_wait().expect("its status");
        assert!(ended.is_none(), "{table}, {when}: it ended: {ended:?}");
        (waiting(database) == "1").then_some(())
    });
    child
}

fn waiting(database: &Database) -> String {
    database.sql(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'",
    )
}

/// Ends the connection that waits.
fn end_waiting(database: &Database) {
    database.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE datname = current_database() AND wait_event = 'PgSleep'",
    );
    eventually("PostgreSQL has rolled back", || {
        (waiting(database) == "0").then_some(())
    });
}

/// Kills it, and lets the next one pass.
fn kill9(mut child: Child, database: &Database) {
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    // PostgreSQL sees that its client is gone when it next speaks to it.
    end_waiting(database);
    database.sql("DROP FUNCTION oncelog.stop() CASCADE");
}

#[test]
fn killed_anywhere_it_goes_on_where_it_was_and_nobody_sees_a_half_store() {
    let database = Database::new();
    let server = Server::start();
    fill(&mut server.client(), 8000);
    let before = answers(&mut server.client(), &QUERIES);
    let high = 3 * 8000 + 3;
    server.kill9();
    let folder = server.folder();
    // The tables are there, without an event, and an instance that knows them goes on running.
    let stale = database.instance();

    for (table, when, copied) in [
        ("migration", "NEW.copied = 0", None),
        ("events", "NEW.seq = 2000", Some(0)),
        ("identities", "NEW.seq = 15000", Some(10_000)),
        ("migration", "NEW.copied = 20000", Some(10_000)),
        ("events", &format!("NEW.seq = {high}"), Some(20_000)),
        ("topic_counters", "NEW.topic = 1", Some(high)),
        ("migration", "NEW.finished_at IS NOT NULL", Some(high)),
    ] {
        let child = stopped_at(folder, &database, table, when);
        kill9(child, &database);
        let Some(copied) = copied else {
            // Nothing was begun, so the instance has its store.
            assert_eq!(database.sql("SELECT count(*) FROM oncelog.migration"), "0");
            continue;
        };
        assert_eq!(
            database.sql("SELECT copied, finished_at IS NULL FROM oncelog.migration"),
            format!("{copied}|t"),
            "{table}, {when}"
        );
        // What runs stores nothing, what starts is told what to do.
        let answer = stale.client().post(
            "/publish",
            "application/json",
            &Event::wrapped(&[Event::new("orders", "between")]),
        );
        answer.problem(503);
        let failed = Server::try_start_in(Folder::new(), &[("DATABASE_URL", &database.url())])
            .err()
            .expect("refused");
        let resume = format!(
            "`oncelog migrate --database-path {}`",
            folder.database().canonicalize().unwrap().display()
        );
        assert!(failed.log.contains(&resume), "{failed}");
    }
    // The store of another file is not mixed with it.
    let other = Server::start();
    other.client().publish(&[Event::new("a", "1")]);
    other.stop();
    let told = refused(&migrate(other.folder(), &database, &[]));
    assert!(told.contains("another store"), "{told}");

    let output = migrate(folder, &database, &[]);
    assert!(output.status.success(), "{output:?}");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(told.contains("went on after seq   24,003"), "{told}");
    assert!(told.contains("start servers with this DATABASE_URL"), "{told}");

    let instance = database.instance();
    assert_same(&answers(&mut instance.client(), &QUERIES), &before);
    assert_eq!(
        database.sql("SELECT count(*), count(DISTINCT seq) FROM oncelog.identities"),
        "24003|24003"
    );
    // Started again, the one that knew another store is an instance of this one.
    let stale = stale.restart();
    let answer = stale.client().publish(&Event::numbered("orders", 0..100));
    assert_eq!(answer["duplicates"], 100, "{answer}");
}

#[test]
fn a_copy_begins_only_when_an_instance_that_starts_has_read_what_it_is() {
    let database = Database::new();
    let server = Server::start();
    server.client().publish(&[Event::new("a", "1")]);
    server.stop();
    database.instance().stop();
    let waits = |what: &str| -> bool {
        database.sql(&format!(
            "SELECT count(*) FROM pg_stat_activity \
             WHERE datname = current_database() AND wait_event_type = 'Lock' AND wait_event = '{what}'"
        )) == "1"
    };
    thread::scope(|scope| {
        // Holds the instance up where it reads the last part of what makes the store.
        let holder = scope.spawn(|| {
            database.server().try_sql(
                database.name(),
                "BEGIN; LOCK TABLE oncelog.branches; SELECT pg_sleep(3600)",
            )
        });
        eventually("the table is locked", || {
            (waiting(&database) == "1").then_some(())
        });
        let instance = scope.spawn(|| database.instance());
        eventually("the instance waits for the table", || {
            waits("relation").then_some(())
        });
        let copy = scope.spawn(|| migrate(server.folder(), &database, &[]));
        eventually("the copy waits for the instance", || {
            let begun = database.sql("SELECT count(*) FROM oncelog.migration");
            assert_eq!(begun, "0", "the copy did not wait");
            waits("advisory").then_some(())
        });
        end_waiting(&database);
        assert!(!holder.join().unwrap().status.success());
        let instance = instance.join().unwrap();
        let copied = copy.join().unwrap();
        assert!(copied.status.success(), "{copied:?}");
        // It knows the store that was there, and stores nothing in the other.
        let event = Event::wrapped(&[Event::new("a", "2")]);
        instance
            .client()
            .post("/publish", "application/json", &event)
            .problem(503);
    });
    let again = database.instance().client().publish(&[Event::new("a", "1")]);
    assert_eq!(again["duplicates"], 1, "{again}");
}

#[test]
fn a_copy_that_another_process_has_ended_changes_nothing_any_more() {
    let database = Database::new();
    let server = Server::start();
    server.stop();
    let path = server.folder().database();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let instance = runtime.block_on(async {
        let source = sqlite::Source::open(&path).unwrap();
        let begin = || postgres::Target::begin(postgres::Server::parse(&database.url()).unwrap(), &source);
        let (first, second) = (begin().await.unwrap(), begin().await.unwrap());
        let keys = KeyFile::beside(&path);
        migration::migrate(&source, first, &keys, &mut |_, _, _| ())
            .await
            .unwrap();
        let instance = database.instance();
        instance.client().publish(&[Event::new("a", "1")]);
        let told = migration::migrate(&source, second, &keys, &mut |_, _, _| ())
            .await
            .unwrap_err()
            .to_string();
        assert!(told.contains("another process"), "{told}");
        instance
    });
    let mut client = instance.client();
    let again = client.publish(&[Event::new("a", "1"), Event::new("a", "2")]);
    assert_eq!(again["results"][0]["outcome"], "duplicate", "{again}");
    assert_eq!(again["results"][1]["outcome"], "stored", "{again}");
    assert_eq!(client.counters(), [3, 2, 1, 0]);
}

#[test]
fn a_connection_that_breaks_ends_it_with_how_to_go_on() {
    let database = Database::new();
    let server = Server::start();
    server.client().publish(&Event::numbered("a", 0..100));
    server.stop();
    database.instance().stop();
    let child = stopped_at(server.folder(), &database, "events", "NEW.seq = 50");
    end_waiting(&database);
    let output = child.wait_with_output().expect("it ends");
    let told = refused(&output);
    assert!(told.contains("Run this command again to go on"), "{told}");
    database.sql("DROP FUNCTION oncelog.stop() CASCADE");
    assert_eq!(migrated(server.folder(), &database)["events"], 100);
}

#[test]
fn what_would_mix_stores_or_lose_events_is_refused() {
    let database = Database::new();
    let server = Server::start();
    server.client().publish(&Event::numbered("a", 0..10));
    let nowhere = run(oncelog(server.folder()).arg("migrate"));
    assert_eq!(nowhere.status.code(), Some(2), "{nowhere:?}");
    let told = String::from_utf8_lossy(&nowhere.stderr).into_owned();
    assert!(told.contains("--database-url postgres://"), "{told}");
    // A server that runs would take in events that are not copied.
    let told = refused(&migrate(server.folder(), &database, &[]));
    assert!(told.contains("in use by another oncelog"), "{told}");
    server.stop();

    // A database with events.
    let taken = Database::new();
    let instance = taken.instance();
    instance.client().publish(&[Event::new("a", "1")]);
    let told = refused(&migrate(server.folder(), &taken, &[]));
    assert!(told.contains("has a store with events already"), "{told}");
    assert_eq!(
        instance.client().publish(&[Event::new("a", "1")])["duplicates"],
        1
    );

    // A file that is damaged, or not there.
    let damaged = Folder::new();
    shell(
        oncelog(server.folder())
            .arg("backup")
            .arg(damaged.path().join("copy.db")),
    );
    let copy = damaged.path().join("copy.db");
    let connection = rusqlite::Connection::open(&copy).unwrap();
    connection
        .execute("UPDATE events SET source = 'x' WHERE seq = 5", [])
        .unwrap();
    drop(connection);
    let of = |path: &str| migrate(&damaged, &database, &["--database-path", path]);
    let told = refused(&of("copy.db"));
    assert!(
        told.contains("event 5") && told.contains("oncelog verify"),
        "{told}"
    );
    let told = refused(&of("nothing.db"));
    assert!(told.contains("no such file"), "{told}");
    assert_eq!(database.sql("SELECT count(*) FROM oncelog.events"), "0");

    // What is there by half is of a later state of the same store.
    assert_eq!(migrated(server.folder(), &database)["events"], 10);
    let told = refused(&migrate(server.folder(), &database, &[]));
    assert!(told.contains("copied there already"), "{told}");
    database.sql("UPDATE oncelog.migration SET finished_at = NULL; UPDATE oncelog.migration SET copied = 11");
    let told = refused(&migrate(server.folder(), &database, &[]));
    assert!(told.contains("DROP SCHEMA oncelog CASCADE"), "{told}");

    // Something has changed what was copied.
    for change in [
        "UPDATE oncelog.events SET payload = '{}' WHERE seq = 3",
        "DELETE FROM oncelog.events WHERE seq = 3",
        "UPDATE oncelog.identities SET fingerprint = fingerprint + 1 WHERE seq = 3",
        "DELETE FROM oncelog.identities WHERE seq = 3",
        "INSERT INTO oncelog.identities VALUES (gen_random_uuid(), 3, 3)",
    ] {
        database.sql("DROP SCHEMA oncelog CASCADE");
        migrated(server.folder(), &database);
        database.sql(&format!(
            "UPDATE oncelog.migration SET finished_at = NULL; TRUNCATE oncelog.branches; {change}"
        ));
        let told = refused(&migrate(server.folder(), &database, &[]));
        assert!(told.contains("DROP SCHEMA oncelog CASCADE"), "{change}: {told}");
    }
}

/// A store whose index has segments after a few events.
fn with_segments(path: &Path, count: usize) {
    let settings = Settings {
        tail_events: 64,
        merge_fan_in: 3,
        filter_keys: 64,
        max_frozen_tails: 2,
        time_block_events: 16,
        retry: Duration::from_millis(1),
    };
    let (mut writer, store) = sqlite::open_with(path, Arc::new(|| {}), settings, 10).unwrap();
    let identity = store.identity();
    for events in Event::numbered("orders", 0..count).chunks(32) {
        let batch = parse(Event::array(events), Shape::Any, &identity, 1000).unwrap();
        let outcomes = writer.commit(&[&batch]).unwrap();
        let BatchOutcome::Committed(placed) = &outcomes[0] else {
            panic!("{outcomes:?}")
        };
        assert!(placed.iter().all(|placed| placed.outcome == Outcome::Stored));
        writer.maintain().unwrap();
    }
    eventually("segments are listed", || {
        writer.maintain().unwrap();
        let index = store.gauges().unwrap().index.expect("an index");
        (index.tier_segments.iter().sum::<u64>() > 2).then_some(())
    });
    writer.close().unwrap();
}

#[test]
fn identities_of_events_whose_rows_are_gone_are_known_all_the_same() {
    const COUNT: usize = 1000;
    let database = Database::new();
    let folder = Folder::new();
    let path = folder.path().join("old.db");
    with_segments(&path, COUNT);
    let delete = |which: &str| {
        rusqlite::Connection::open(&path)
            .unwrap()
            .execute(&format!("DELETE FROM events WHERE {which}"), [])
            .unwrap()
    };
    let gone = delete("seq <= 150 OR seq IN (200, 201, 300)");
    let move_it = || moved(&path, &database, &mut |_, _, _| ()).map_err(|error| error.to_string());
    let report = move_it().unwrap();
    assert_eq!(report.gone, gone as u64);
    assert_eq!(report.events, (COUNT - gone) as u64);
    assert_eq!(report.watermark, COUNT as u64);

    let instance = database.instance();
    let mut client = instance.client();
    let counted = COUNT as u64;
    assert_eq!(client.counters(), [counted, counted, 0, 0]);
    assert_eq!(read_all(&mut client, "order=asc&").len(), COUNT - gone);
    assert_eq!(client.get("/events/orders/0").status, 404);
    let again = client.publish(&Event::numbered("orders", 0..COUNT));
    assert_eq!(again["duplicates"], counted, "{again}");
    assert_eq!(again["conflicts"], 0, "{again}");
    for (number, result) in (1_u64..).zip(again["results"].as_array().expect("results")) {
        assert_eq!(result["seq"], number, "{again}");
    }
    let new = client.publish(&[
        Event::new("orders", "new"),
        Event::new("orders", "0").with_payload("{}"),
    ]);
    assert_eq!(new["conflicts"], 1, "{new}");
    assert!(new["results"][0]["seq"].as_u64() > Some(counted), "{new}");

    // A row that no segment knows of is not gone but lost.
    drop(instance);
    database.sql("DROP SCHEMA oncelog CASCADE");
    delete(&format!("seq = {}", COUNT - 3));
    let told = move_it().unwrap_err();
    assert!(
        told.contains(&format!("event {} of the log is missing", COUNT - 3)),
        "{told}"
    );
}
