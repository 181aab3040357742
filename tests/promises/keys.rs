//! Keys, as a team meets them: made on the command line, counted by a running server within moments, asked for by every
//! command; and no server that strangers can reach without one.

use crate::harness::{Client, Event, Folder, Server, eventually, oncelog, run, shell};
use serde_json::Value;
use std::{
    io::{BufRead, BufReader},
    os::unix::fs::{MetadataExt as _, chown},
    process::{Output, Stdio},
};

fn create(folder: &Folder, arguments: &[&str]) -> Value {
    let text = shell(
        oncelog(folder)
            .args(["keys", "create", "--name", "test", "--json"])
            .args(arguments),
    );
    serde_json::from_str(&text).expect("JSON")
}

fn key_of(created: &Value) -> String {
    created["key"].as_str().expect("a key").to_owned()
}

fn get(client: &mut Client, key: &str, target: &str) -> u16 {
    let authorization = format!("Bearer {key}");
    client
        .request("GET", target, &[("authorization", &authorization)], b"")
        .status
}

/// An administrator who made or revoked a key as root left a file that the server's own user could not read: the server
/// let everybody in, or the revoked key, and only said so in its log.
#[test]
fn keys_that_root_makes_can_be_read_by_who_owns_the_store() {
    const OWNER: u32 = 54_321;
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let folder = Folder::new();
    let data = folder.path().join("data");
    let database = folder.database();
    std::fs::create_dir(&data).unwrap();
    let owner = |name: &str| std::fs::metadata(data.join(name)).unwrap().uid();
    // There is no store yet: it will be that of who owns the folder.
    chown(&data, Some(OWNER), Some(OWNER)).unwrap();
    let made = create(&folder, &["--scope", "admin"]);
    assert_eq!(owner("dedup.db-keys.json"), OWNER);
    assert_eq!(owner("dedup.db-keys.lock"), OWNER);
    std::fs::write(&database, "").unwrap();
    chown(&database, Some(OWNER + 1), None).unwrap();
    let id = made["id"].as_str().expect("an id");
    shell(oncelog(&folder).args(["keys", "revoke", id]));
    assert_eq!(owner("dedup.db-keys.json"), OWNER + 1);
}

#[test]
fn keys_made_and_revoked_while_the_server_runs_count_at_once() {
    let server = Server::start();
    let mut client = server.client();
    client.publish(&[Event::new("orders.eu", "1")]);

    let admin = create(server.folder(), &["--scope", "admin"]);
    // From now on everyone needs a key.
    eventually("the first key counts", || {
        (client.get("/stats").status == 401).then_some(())
    });
    assert_eq!(get(&mut client, &key_of(&admin), "/stats"), 200);
    assert_eq!(client.get("/health").status, 200);

    let reader = create(server.folder(), &["--scope", "read", "--topic", "orders.*"]);
    let key = key_of(&reader);
    eventually("a new key counts", || {
        (get(&mut client, &key, "/events?topic=orders.eu") == 200).then_some(())
    });
    assert_eq!(get(&mut client, &key, "/events?topic=payments"), 403);

    let id = reader["id"].as_str().expect("an id");
    shell(oncelog(server.folder()).args(["keys", "revoke", id]));
    eventually("a revoked key is refused", || {
        (get(&mut client, &key, "/events?topic=orders.eu") == 401).then_some(())
    });
    assert_eq!(get(&mut client, &key_of(&admin), "/stats"), 200);

    // And after a restart.
    let server = server.restart();
    let mut client = server.client();
    assert_eq!(client.get("/stats").status, 401);
    assert_eq!(get(&mut client, &key, "/stats"), 401);
    assert_eq!(get(&mut client, &key_of(&admin), "/stats"), 200);
    let listed = shell(oncelog(server.folder()).args(["keys", "list", "--json"]));
    let listed: Value = serde_json::from_str(&listed).expect("JSON");
    assert_eq!(listed[0]["state"], "live");
    assert_eq!(listed[1]["state"], "revoked");
    let made = listed[0]["created_at"].as_str().expect("a time");
    assert_eq!(made.len(), "2026-01-31T12:00:00.123456Z".len(), "{made}");

    // No secret is in the list, in the file or in the log.
    let file =
        std::fs::read_to_string(server.folder().path().join("data/dedup.db-keys.json")).expect("the file");
    for created in [&admin, &reader] {
        let key = key_of(created);
        let secret = key.splitn(3, '_').last().expect("a secret");
        for text in [&listed.to_string(), &file, &server.log()] {
            assert!(!text.contains(secret), "{text}");
        }
    }
}

#[test]
fn a_key_expires() {
    let server = Server::start();
    let admin = key_of(&create(server.folder(), &["--scope", "admin"]));
    let short = key_of(&create(server.folder(), &["--scope", "read", "--expires", "8s"]));
    let mut client = server.client();
    eventually("the keys count", || {
        (get(&mut client, &short, "/stats") == 200).then_some(())
    });
    eventually("the key expires", || {
        (get(&mut client, &short, "/stats") == 401).then_some(())
    });
    assert_eq!(get(&mut client, &admin, "/stats"), 200);
}

#[test]
fn without_a_key_a_server_that_strangers_can_reach_does_not_start() {
    let folder = Folder::new();
    let failed = Server::try_start_in(folder.clone(), &[("HOST", "0.0.0.0")])
        .err()
        .expect("it must not start");
    assert_eq!(failed.status.code(), Some(1), "{failed}");
    for way_out in ["oncelog keys create", "ALLOW_ANONYMOUS=true"] {
        assert!(failed.log.contains(way_out), "{failed}");
    }

    let open = Server::start_in(Folder::new(), &[("HOST", "0.0.0.0"), ("ALLOW_ANONYMOUS", "true")]);
    let mut client = Client::new(([127, 0, 0, 1], open.address().port()).into());
    assert_eq!(client.get("/stats").status, 200);
    assert!(open.log().contains("ALLOW_ANONYMOUS"), "{}", open.log());

    let key = key_of(&create(&folder, &["--scope", "admin"]));
    let guarded = Server::start_in(folder, &[("HOST", "0.0.0.0")]);
    let mut client = Client::new(([127, 0, 0, 1], guarded.address().port()).into());
    assert_eq!(client.get("/stats").status, 401);
    assert_eq!(get(&mut client, &key, "/stats"), 200);
}

#[test]
fn every_command_sends_its_key() {
    let server = Server::start();
    let key = key_of(&create(server.folder(), &["--scope", "admin"]));
    let mut client = server.client();
    eventually("the key counts", || {
        (client.get("/stats").status == 401).then_some(())
    });
    let url = server.url();
    let lines = Event::lines(&[Event::new("a", "1"), Event::new("a", "2")]);
    std::fs::write(server.folder().path().join("events.ndjson"), lines).expect("written");
    let commands: [&[&str]; 6] = [
        &["publish", "events.ndjson"],
        &["stats"],
        &["export"],
        &["simulate", "--events", "1000"],
        &[
            "bench",
            "--events",
            "5000",
            "--connections",
            "2",
            "--max-mean",
            "3600000",
        ],
        &["health"],
    ];
    for arguments in commands {
        let output = |key: Option<&str>| -> Output {
            let mut command = oncelog(server.folder());
            command.args(arguments).args(["--url", &url]);
            if let Some(key) = key {
                command.env("ONCELOG_KEY", key);
            }
            run(&mut command)
        };
        let with = output(Some(&key));
        assert!(with.status.success(), "{arguments:?}: {with:?}");
        let without = output(None);
        if arguments[0] == "health" {
            assert!(without.status.success(), "{without:?}");
            continue;
        }
        assert_eq!(without.status.code(), Some(1), "{arguments:?}: {without:?}");
        let told = [without.stdout, without.stderr].concat();
        let told = String::from_utf8_lossy(&told);
        // `bench` shows an answer as it came; the others say how they are given a key.
        let expected = match arguments[0] {
            "bench" => "a key is needed",
            _ => "ONCELOG_KEY",
        };
        assert!(told.contains(expected), "{arguments:?}: {told}");
    }
    let tail = || {
        let mut command = oncelog(server.folder());
        command.args(["tail", "--from-start", "--url", &url]);
        command
    };
    assert_eq!(run(&mut tail()).status.code(), Some(1));
    // With the key it follows for ever, so one line has to do.
    let mut following = tail()
        .env("ONCELOG_KEY", &key)
        .stdout(Stdio::piped())
        .spawn()
        .expect("started");
    let mut line = String::new();
    let read = BufReader::new(following.stdout.take().expect("its output")).read_line(&mut line);
    following
        .kill()
        .and_then(|()| following.wait().map(drop))
        .expect("ended");
    read.expect("a line");
    assert!(line.contains("event_id"), "{line:?}");
    let wrong = run(oncelog(server.folder()).args(["stats", "--url", &url, "--key", "secret"]));
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
}

#[test]
fn a_damaged_file_of_keys_is_refused_at_start_and_left_alone_by_a_running_server() {
    let server = Server::start();
    let folder = server.folder().clone();
    let key = key_of(&create(&folder, &["--scope", "admin"]));
    let mut client = server.client();
    eventually("the key counts", || {
        (client.get("/stats").status == 401).then_some(())
    });
    let file = folder.path().join("data/dedup.db-keys.json");
    std::fs::write(&file, "{").expect("written");
    eventually("the server tells", || {
        server.log().contains("cannot read the keys").then_some(())
    });
    assert_eq!(get(&mut client, &key, "/stats"), 200);
    assert_eq!(client.get("/stats").status, 401);
    server.stop();
    let failed = Server::try_start_in(folder.clone(), &[])
        .err()
        .expect("it must not start");
    assert_eq!(failed.status.code(), Some(1), "{failed}");
    assert!(failed.log.contains("keys.json"), "{failed}");
    let created = run(oncelog(&folder).args(["keys", "create", "--name", "a", "--scope", "admin"]));
    assert_eq!(created.status.code(), Some(1), "{created:?}");
}
