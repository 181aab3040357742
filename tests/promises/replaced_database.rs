//! An instance whose database was given to another store stores nothing in it: it knows identities by another key, so that
//! none would be known again.

use crate::harness::{Database, Event, eventually};

#[test]
fn an_instance_that_knows_another_store_commits_nothing_until_it_is_started_again() {
    let database = Database::new();
    let instance = database.instance();
    let mut client = instance.client();
    client.publish(&[Event::new("a", "1")]);
    // What a restored dump does while instances run.
    database.sql("UPDATE oncelog.store SET identity = decode(repeat('ab', 16), 'hex')");
    let publish = |client: &mut crate::harness::Client| {
        client.post(
            "/publish",
            "application/json",
            &Event::wrapped(&[Event::new("a new topic", "2")]),
        )
    };
    publish(&mut client).problem(503);
    // It stays unhealthy, although the database takes writes: what it tries by itself is rolled back as well.
    let rolled_back = || -> u64 {
        let told =
            database.sql("SELECT xact_rollback FROM pg_stat_database WHERE datname = current_database()");
        told.parse().expect("a number")
    };
    let before = rolled_back();
    eventually("it has tried to recover", || {
        (rolled_back() >= before + 3).then_some(())
    });
    assert_eq!(client.get("/health").status, 503);
    publish(&mut client).problem(503);
    assert_eq!(client.get("/readyz").status, 503);
    assert_eq!(database.sql("SELECT count(*) FROM oncelog.identities"), "1");
    assert_eq!(database.sql("SELECT name FROM oncelog.topics"), "a");
    assert!(
        instance.log().contains("start the instance again"),
        "{}",
        instance.log()
    );
    let instance = instance.restart();
    assert_eq!(publish(&mut instance.client()).ok()["accepted"], 1);
}
