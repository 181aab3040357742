//! Keys of a store in a PostgreSQL server: made and revoked once, they count on every instance, and while the database is
//! away everyone is let in or kept out as before.

use crate::harness::{Client, Database, Folder, Postgres, Server, eventually, oncelog, run};
use serde_json::Value;
use std::process::Output;

fn keys(url: &str, arguments: &[&str]) -> Output {
    run(oncelog(&Folder::new())
        .arg("keys")
        .args(arguments)
        .arg("--json")
        .env("DATABASE_URL", url))
}

#[track_caller]
fn done(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[track_caller]
fn create(url: &str, name: &str, scope: &str) -> (String, String) {
    let made = done(&keys(url, &["create", "--name", name, "--scope", scope]));
    let text = |field: &str| made[field].as_str().expect("a text").to_owned();
    (text("id"), text("key"))
}

fn get(server: &Server, key: &str, target: &str) -> u16 {
    let authorization = format!("Bearer {key}");
    let mut client = Client::new(([127, 0, 0, 1], server.address().port()).into());
    client
        .request("GET", target, &[("authorization", &authorization)], b"")
        .status
}

#[test]
fn a_key_counts_on_every_instance_from_when_it_is_made_until_it_is_revoked() {
    let database = Database::new();
    let url = database.url();
    // Before any server was ever started.
    let (_, admin) = create(&url, "admin", "admin");
    let instances: [Server; 2] = database.instances();
    for server in &instances {
        assert_eq!(get(server, &admin, "/stats"), 200);
        assert_eq!(server.client().get("/stats").status, 401);
        assert_eq!(server.client().get("/health").status, 200);
    }

    let (id, reader) = create(&url, "reader", "read");
    for server in &instances {
        eventually("a new key counts", || {
            (get(server, &reader, "/stats") == 200).then_some(())
        });
    }
    let limited = done(&keys(&url, &["limit", &id, "--requests-per-second", "1"]));
    assert_eq!(limited["requests_per_second"], 1, "{limited}");
    for server in &instances {
        eventually("its limit counts, on each instance by itself", || {
            (get(server, &reader, "/stats") == 429).then_some(())
        });
    }
    done(&keys(&url, &["revoke", &id]));
    for server in &instances {
        eventually("a revoked key is refused", || {
            (get(server, &reader, "/stats") == 401).then_some(())
        });
        assert_eq!(get(server, &admin, "/stats"), 200);
    }
    let listed = done(&keys(&url, &["list"]));
    let states: Vec<_> = ["name", "state"].map(|field| listed[1][field].clone()).into();
    assert_eq!(states, ["reader", "revoked"], "{listed}");

    // No secret is in the table, in the list or in a log.
    let table = database.sql("SELECT record FROM oncelog.keys");
    for key in [&admin, &reader] {
        let secret = key.splitn(3, '_').last().expect("a secret");
        for text in [
            &table,
            &listed.to_string(),
            &instances[0].log(),
            &instances[1].log(),
        ] {
            assert!(!text.contains(secret), "{text}");
        }
    }
}

#[test]
fn what_is_changed_by_hand_counts_as_well() {
    let database = Database::new();
    let (id, key) = create(&database.url(), "a", "admin");
    let server = database.instance();
    assert_eq!(get(&server, &key, "/stats"), 200);
    database.sql(&format!("DELETE FROM oncelog.keys WHERE id = '{id}'"));
    eventually("the key is refused", || {
        (get(&server, &key, "/stats") == 401).then_some(())
    });
    // Without a key that is left nobody gets in, rather than everybody.
    assert_eq!(server.client().get("/stats").status, 401);
    assert_eq!(server.restart().client().get("/stats").status, 401);
}

#[test]
fn many_commands_at_once_lose_no_key() {
    let database = Database::new();
    let url = database.url();
    std::thread::scope(|scope| {
        for number in 0..8 {
            let url = &url;
            scope.spawn(move || create(url, &number.to_string(), "read"));
        }
    });
    let listed = done(&keys(&url, &["list"]));
    assert_eq!(listed.as_array().map(Vec::len), Some(8), "{listed}");
}

#[test]
fn while_the_database_is_away_known_keys_are_let_in_and_unknown_ones_kept_out() {
    let postgres = Postgres::start();
    let database = postgres.database();
    let url = database.url();
    let (_, key) = create(&url, "a", "admin");
    let server = database.instance();
    assert_eq!(get(&server, &key, "/stats"), 200);

    postgres.stop_immediate();
    eventually("the server tells that it cannot read the keys", || {
        server.log().contains("cannot read the keys").then_some(())
    });
    let made_up = format!("{}x", &key[..key.len() - 1]);
    assert_eq!(get(&server, &made_up, "/stats"), 401);
    assert_eq!(server.client().get("/stats").status, 401);
    // Let in, and told that there is no database.
    assert_eq!(get(&server, &key, "/stats"), 503);

    let refused = keys(&url, &["create", "--name", "b", "--scope", "read"]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    for part in ["PostgreSQL at 127.0.0.1", "is it running", "DATABASE_URL"] {
        assert!(told.contains(part), "{told}");
    }
    let failed = Server::try_start_in(Folder::new(), &[("DATABASE_URL", &url)])
        .err()
        .expect("it must not start");
    assert_eq!(failed.status.code(), Some(1), "{failed}");
    assert!(failed.log.contains("is it running"), "{failed}");

    postgres.start_again();
    let (_, new) = create(&url, "b", "read");
    eventually("a new key counts without a restart", || {
        (get(&server, &new, "/stats") == 200).then_some(())
    });
    assert_eq!(get(&server, &key, "/stats"), 200);
    let log = server.log();
    assert_eq!(log.matches("cannot read the keys").count(), 1, "{log}");
    assert_eq!(log.matches("the keys can be read again").count(), 1, "{log}");
}

#[test]
fn without_a_key_in_the_table_a_server_that_strangers_can_reach_does_not_start() {
    let database = Database::new();
    let url = database.url();
    let start = || Server::try_start_in(Folder::new(), &[("DATABASE_URL", &url), ("HOST", "0.0.0.0")]);
    let failed = start().err().expect("it must not start");
    assert_eq!(failed.status.code(), Some(1), "{failed}");
    assert!(failed.log.contains("oncelog keys create"), "{failed}");
    let (_, key) = create(&url, "a", "admin");
    let server = start().unwrap_or_else(|failed| panic!("{failed}"));
    assert_eq!(get(&server, &key, "/stats"), 200);
}
