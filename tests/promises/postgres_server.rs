//! What an instance makes of the server that `DATABASE_URL` names: TLS as asked for, a start that several make at once, and
//! a refusal that says what is wrong, without the password, where it cannot keep the promises.

use crate::harness::{Authority, Database, Event, Folder, Postgres, Server, eventually};
use oncelog::limits::{POSTGRES_COMMITS, POSTGRES_IDLE_TIMEOUT};
use std::{net::TcpListener, thread};

/// Starts an instance that must not start, and returns what it says.
#[track_caller]
fn refused(url: &str) -> String {
    match Server::try_start_in(Folder::new(), &[("DATABASE_URL", url)]) {
        Ok(server) => panic!("{url} was taken:\n{}", server.log()),
        Err(failed) => {
            assert_eq!(failed.status.code(), Some(1), "{failed}");
            failed.log
        }
    }
}

/// The same, and checks that it says this.
#[track_caller]
fn refused_with(url: &str, reason: &str) {
    let log = refused(url);
    assert!(log.contains(reason), "{url}: no {reason:?} in:\n{log}");
}

#[test]
fn several_instances_that_start_at_once_on_an_empty_database_make_one_store() {
    const INSTANCES: usize = 5;
    let database = Database::new();
    let instances: Vec<Server> = thread::scope(|scope| {
        let starts: Vec<_> = (0..INSTANCES)
            .map(|_| scope.spawn(|| database.instance()))
            .collect();
        starts.into_iter().map(|start| start.join().unwrap()).collect()
    });
    // Each step was done once.
    let applied = database.sql("SELECT min(version), count(*) = max(version) FROM oncelog.schema_version");
    assert_eq!(applied, "1|t");
    // A cursor of one is taken by all, and what one stores is known to all.
    let page = instances[0].client().get("/events?order=asc").ok();
    let cursor = page["next"].as_str().unwrap();
    for (accepted, instance) in [1, 0, 0, 0, 0].iter().zip(&instances) {
        let mut client = instance.client();
        assert_eq!(
            client.publish(&[Event::new("topic", "id")])["accepted"],
            *accepted
        );
        let page = client.get(&format!("/events?order=asc&cursor={cursor}")).ok();
        assert_eq!(page["count"], 1);
    }
}

#[test]
fn tables_of_a_newer_version_are_refused_and_stay_as_they_are() {
    let database = Database::new();
    let instance = database.instance();
    instance.client().publish(&[Event::new("topic", "id")]);
    instance.stop();
    database.sql("INSERT INTO oncelog.schema_version (version) VALUES (7)");
    let state = "SELECT (SELECT count(*) FROM oncelog.schema_version), (SELECT last_value FROM oncelog.writers), \
                 (SELECT count(*) FROM oncelog.events)";
    let before = database.sql(state);
    refused_with(&database.url(), "version 7, this program knows up to ");
    assert_eq!(database.sql(state), before);
    database.sql("DELETE FROM oncelog.schema_version WHERE version = 7");
    assert_eq!(database.instance().client().counters(), [1, 1, 0, 0]);
}

/// Whoever waits to change a table has everybody wait behind it: a start beside a long `pg_dump` would have kept the running
/// instances from committing.
#[test]
fn a_start_that_cannot_change_the_tables_gives_up_and_the_next_one_does_it() {
    let database = Database::new();
    let instance = database.instance();
    instance.client().publish(&[Event::new("topic", "id")]);
    instance.stop();
    // As an earlier version left it.
    database.sql(
        "DROP FUNCTION oncelog.commit_few; ALTER TABLE oncelog.commits DROP COLUMN stored; \
         DELETE FROM oncelog.schema_version WHERE version = 5",
    );
    let holds = "BEGIN; SELECT count(*) FROM oncelog.commits; SELECT pg_sleep(60)";
    let holder = "FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)%' AND pid <> pg_backend_pid()";
    thread::scope(|scope| {
        scope.spawn(|| database.server().try_sql(database.name(), holds));
        eventually("the table is held", || {
            let is_held = format!("SELECT EXISTS (SELECT {holder} AND wait_event = 'PgSleep')");
            (database.sql(&is_held) == "t").then_some(())
        });
        refused_with(&database.url(), "something else holds the tables");
        database.sql(&format!("SELECT pg_terminate_backend(pid) {holder}"));
    });
    let again = database.instance();
    assert_eq!(
        again.client().publish(&[Event::new("topic", "id")])["duplicates"],
        1
    );
    assert_eq!(again.client().publish(&[Event::new("topic", "2")])["accepted"], 1);
}

#[test]
fn a_server_that_does_not_let_it_in_is_named_without_the_password() {
    let database = Database::new();
    let (server, name) = (database.server(), database.name());
    server.sql(
        "postgres",
        &format!(
            "CREATE ROLE with_password LOGIN PASSWORD 'right-secret'; \
             GRANT CREATE ON DATABASE {name} TO with_password"
        ),
    );
    let url =
        |user: &str, database: &str| format!("postgres://{user}@127.0.0.1:{}/{database}", server.port());
    let log = refused(&url("with_password:wrong-secret", name));
    assert!(log.contains("password authentication failed"), "{log}");
    assert!(!log.contains("secret"), "{log}");
    let place = format!("127.0.0.1:{}/{name}", server.port());
    assert!(log.contains(&place) && log.contains("DATABASE_URL"), "{log}");
    refused_with(&url("nobody", name), "role \"nobody\" does not exist");
    refused_with(&url("oncelog", "no_such"), "database \"no_such\" does not exist");

    // The right one may make the tables, and is let in.
    let right = url("with_password:right-secret", name);
    let instance = Server::start_with(&[("DATABASE_URL", &right)]);
    instance.client().publish(&[Event::new("topic", "id")]);
    assert!(!instance.log().contains("secret"), "{}", instance.log());
    drop(instance);
    server.sql(name, "DROP OWNED BY with_password");
    server.sql("postgres", "DROP ROLE with_password");
}

#[test]
fn what_is_no_server_for_it_is_refused() {
    let another_program = Server::start();
    let port = another_program.address().port();
    let log = refused(&format!("postgres://oncelog@127.0.0.1:{port}/postgres"));
    assert!(log.contains(&format!("127.0.0.1:{port}")), "{log}");
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = nobody.local_addr().unwrap().port();
    drop(nobody);
    refused_with(
        &format!("postgres://oncelog@127.0.0.1:{port}/postgres"),
        "is it running",
    );
    let database = Postgres::shared().database_with("ENCODING 'SQL_ASCII' TEMPLATE template0");
    refused_with(&database.url(), "ENCODING 'UTF8'");
}

/// When the server will ask each of its clients whether it is still there, in seconds; without those it waits for.
fn keepalives(server: &Postgres) -> Vec<u64> {
    const ESTABLISHED: &str = "01";
    const KEEPALIVE: &str = "02";
    const TICKS_PER_SECOND: u64 = 100;
    let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let own_port = format!(":{:04X}", server.port());
    let timers = sockets.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (timer, when) = fields[5].split_once(':')?;
        let is_asked = fields[1].ends_with(&own_port) && fields[3] == ESTABLISHED && timer == KEEPALIVE;
        is_asked.then(|| u64::from_str_radix(when, 16).unwrap() / TICKS_PER_SECOND)
    });
    timers.collect()
}

/// Or what an instance has begun would go on holding up the readers of others when its machine or the network is gone. The
/// server waits without a bound of its own in the middle of a COPY.
#[test]
fn the_server_soon_finds_out_that_an_instance_is_gone() {
    let server = Postgres::start();
    let database = server.database();
    let instance = database.instance();
    instance.client().publish(&[Event::new("topic", "id")]);
    eventually("the server asks all its clients soon", || {
        let keepalives = keepalives(&server);
        let is_soon = |&seconds: &u64| seconds <= POSTGRES_IDLE_TIMEOUT.as_secs();
        (keepalives.len() > POSTGRES_COMMITS && keepalives.iter().all(is_soon)).then_some(())
    });
}

#[test]
fn the_server_is_reached_by_tls_and_checked_as_the_url_says() {
    let (authority, other) = (Authority::new(), Authority::named("another"));
    let pair = authority.issue(&["127.0.0.1"]);
    let server = Postgres::start_with(|files| {
        vec![
            "ssl=on".to_owned(),
            format!(
                "ssl_cert_file={}",
                files.put("certificate.pem", &pair.certificate)
            ),
            format!("ssl_key_file={}", files.put("key.pem", &pair.key)),
        ]
    });
    let database = server.database();
    let folder = Folder::new();
    let [trusted, untrusted] = [(&authority, "right.pem"), (&other, "wrong.pem")].map(|(authority, name)| {
        let path = folder.path().join(name);
        std::fs::write(&path, authority.pem()).unwrap();
        format!(
            "{}?sslmode=verify-full&sslrootcert={}",
            database.url(),
            path.display()
        )
    });
    let encrypted = "SELECT count(*) FILTER (WHERE ssl), count(*) FILTER (WHERE NOT ssl) FROM pg_stat_ssl \
                     JOIN pg_stat_activity USING (pid) WHERE application_name = 'oncelog'";
    let connections = || -> (usize, usize) {
        let told = database.sql(encrypted);
        let (with, without) = told.split_once('|').unwrap();
        (with.parse().unwrap(), without.parse().unwrap())
    };

    let instance = Server::start_with(&[("DATABASE_URL", &trusted)]);
    instance.client().publish(&[Event::new("topic", "id")]);
    let (with, without) = connections();
    assert!(with >= 2 && without == 0, "{with} with TLS, {without} without");
    drop(instance);

    // The certificate is for an address, and `localhost` is a name.
    for (url, reason, remedy) in [
        (
            &untrusted,
            "UnknownIssuer",
            "name its authority's file with sslrootcert",
        ),
        (
            &trusted.replace("127.0.0.1", "localhost"),
            "certificate not valid for name",
            "name the server as its certificate does",
        ),
    ] {
        let log = refused(url);
        for told in [reason, remedy, "sslmode"] {
            assert!(log.contains(told), "{url}: no {told:?} in:\n{log}");
        }
        assert!(!log.contains("is it running"), "{log}");
    }
    // Whom the system trusts does not include an authority of a test's.
    let system = format!("{}?sslmode=verify-full", database.url());
    assert!(!refused(&system).contains("listening"));

    for (mode, is_encrypted) in [("require", true), ("prefer", true), ("disable", false)] {
        let url = format!("{}?sslmode={mode}", database.url());
        let instance = Server::start_with(&[("DATABASE_URL", &url)]);
        assert_eq!(
            instance.client().publish(&[Event::new("topic", "id")])["accepted"],
            0
        );
        let (with, without) = connections();
        assert_eq!((with > 0, without > 0), (is_encrypted, !is_encrypted), "{mode}");
        // So that none of its connections is counted again.
        instance.stop();
    }

    // A server without TLS is not spoken to when TLS was asked for.
    let plain = Database::new();
    refused_with(&format!("{}?sslmode=require", plain.url()), "TLS");
}
