//! Several instances over one database are one store: a cursor never skips, counts are exact whoever is asked, a reader at
//! one is told of what another commits, and clients that send the same at once each get a true answer.
//! `tests/faults` goes on from here with instances, servers and connections that die.

use crate::harness::{Client, Cut, Database, Event, Load, Oracle, Proxy, Server, StoreKind, eventually};
use oncelog::limits::{POSTGRES_COMMITS, POSTGRES_COPY_ROWS, POSTGRES_DISOWNED_MEMORY, POSTGRES_POLL};
use serde_json::Value;
use std::{
    thread,
    time::{Duration, Instant},
};

#[test]
fn a_cursor_never_skips_although_three_instances_commit_at_once() {
    const WRITERS: u64 = 3;
    const ANSWERS: usize = 1500;
    let database = Database::new();
    let instances: [Server; 3] = database.instances();
    let addresses: Vec<_> = instances.iter().map(Server::address).collect();
    let (oracle, load) = (Oracle::of(StoreKind::Server), Load::on(StoreKind::Server, 1));
    thread::scope(|scope| {
        let (oracle, load) = (&oracle, &load);
        for (number, &address) in (0..).zip(&addresses) {
            for writer in 0..WRITERS {
                scope.spawn(move || load.write(address, oracle, number * WRITERS + writer));
            }
            scope.spawn(move || load.read(address));
        }
        // One cursor, taken from instance to instance.
        scope.spawn(|| load.read_at(&addresses));
        let _running = load.running();
        eventually("requests are acknowledged", || {
            (oracle.answers() >= ANSWERS).then_some(())
        });
    });
    for instance in &instances {
        oracle.check_all(&mut instance.client());
    }
    load.check_readers(&mut instances[0].client());
    let given = load.check_readers(&mut instances[1].client());
    assert!(
        given.iter().all(|&events| events > 100),
        "readers that follow: {given:?}"
    );
}

/// A reader looked up its topic once, and then waited for a running commit to end. When the topic came up meanwhile, the
/// reader went on behind its first events, for ever.
#[test]
fn a_reader_of_a_topic_that_comes_up_while_it_waits_misses_nothing() {
    let database = Database::new();
    let [writer, reader] = database.instances();
    writer.client().publish(&[Event::new("old", "1")]);
    let page = reader.client().get("/events?topic=new&order=asc").ok();
    let cursor = page["next"].as_str().expect("a cursor").to_owned();
    thread::scope(|scope| {
        // A commit that takes its time, and comes to nothing.
        scope.spawn(|| {
            database.sql(
                "BEGIN; SELECT oncelog.announce((SELECT identity FROM oncelog.store)); SELECT nextval('oncelog.seqs'); \
                 SELECT pg_sleep(0.7); ROLLBACK",
            )
        });
        let seen = |what: &str, question: &str| {
            eventually(what, || (database.sql(question) == "t").then_some(()));
        };
        seen(
            "the commit runs",
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE query LIKE '%pg_sleep(0.7)%' AND pid <> pg_backend_pid())",
        );
        writer.client().publish(&[Event::new("old", "2")]);
        let page = scope.spawn(|| {
            let path = format!("/events?topic=new&order=asc&wait=10&cursor={cursor}");
            reader.client().get(&path).ok()
        });
        seen(
            "the reader looks again and again whether it has ended",
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE query LIKE '%FROM horizon()%' \
             AND query_start > clock_timestamp() - interval '20 milliseconds' AND pid <> pg_backend_pid())",
        );
        writer.client().publish(&[Event::new("new", "1")]);
        let page = page.join().expect("an answer");
        assert_eq!(page["count"], 1, "{page}");
        assert_eq!(page["events"][0]["event_id"], "1");
    });
}

/// Counters were folded only by a writer that had not committed for a second: never under load.
#[test]
fn counters_are_folded_under_load_as_well() {
    let database = Database::new();
    let instance = database.instance();
    let oracle = Oracle::of(StoreKind::Server);
    let load = Load::on(StoreKind::Server, 1);
    thread::scope(|scope| {
        for writer in 0..3 {
            let address = instance.address();
            let (load, oracle) = (&load, &oracle);
            scope.spawn(move || load.write(address, oracle, writer));
        }
        let _running = load.running();
        // More than once: the first time may have been before the load began.
        let folded = |least: i64| {
            let question = "SELECT coalesce(sum(accepted), 0) FROM oncelog.topic_counters";
            let folded: i64 = database.sql(question).parse().expect("a number");
            (folded > least).then_some(folded)
        };
        let first = eventually("counters are folded", || folded(0));
        eventually("and again", || folded(first));
    });
    oracle.check_all(&mut instance.client());
}

/// The counters and topics as each instance tells them, which must be the same.
#[track_caller]
fn agreed(instances: &[&Server]) -> ([u64; 4], Value) {
    let mut told = instances.iter().map(|instance| {
        let mut client = instance.client();
        (client.counters(), client.get("/topics").ok())
    });
    let first = told.next().expect("an instance");
    for other in told {
        assert_eq!(other, first);
    }
    first
}

#[test]
fn counters_are_exact_over_instances_and_restarts() {
    let database = Database::new();
    let [a, b, c] = database.instances();
    let event = |topic: &str, number: u32| Event::new(topic, &number.to_string());
    a.client()
        .publish(&[event("one", 1), event("one", 2), event("one", 1)]);
    b.client().publish(&[event("two", 1), event("one", 2)]);
    c.client()
        .publish(&[event("one", 1).with_payload("{}"), event("three", 1)]);
    let before = agreed(&[&a, &b, &c]);
    assert_eq!(before.0, [7, 4, 3, 1]);
    a.kill9();
    b.stop();
    assert_eq!(agreed(&[&c]), before);
    let (a, b) = (a.restart(), b.restart());
    assert_eq!(agreed(&[&a, &b, &c]), before);
    for round in 0..20 {
        for instance in [&a, &b, &c] {
            instance
                .client()
                .publish(&[event("one", 3 + round), event("two", 1)]);
        }
    }
    let after = agreed(&[&a, &b, &c]);
    assert_eq!(after.0, [127, 24, 103, 1]);
    // What each commit has counted is folded; only each writer's newest row is kept.
    let writers = 5 * POSTGRES_COMMITS;
    eventually("counters are folded", || {
        let rows: usize = database
            .sql("SELECT count(*) FROM oncelog.commits")
            .parse()
            .unwrap();
        (rows <= writers).then_some(())
    });
    assert_eq!(agreed(&[&a, &b, &c]), after);
    assert_eq!(agreed(&[&a.restart()]), after);
}

/// How long readers wait. They look once more at its end, so an answer before it shows that they were told.
const WAIT: Duration = Duration::from_secs(30);

/// Asks for what comes next and does not wait for the answer.
fn ask(client: &mut Client, cursor: &str) {
    let wait = WAIT.as_secs();
    let request = format!("GET /events?order=asc&wait={wait}&cursor={cursor} HTTP/1.1\r\nhost: test\r\n\r\n");
    client.send_raw(request.as_bytes()).unwrap();
}

/// Lets a reader wait at one instance while the other commits, some times. Fails when a wait goes on to its end.
fn waits(reader: &Server, writer: &Server, rounds: u32) {
    let (mut reader, mut writer) = (reader.client(), writer.client());
    let mut page = reader.get("/events?order=asc").ok();
    for round in 0..rounds {
        let started = Instant::now();
        ask(&mut reader, page["next"].as_str().unwrap());
        writer.publish(&[Event::new("topic", &format!("{round} of {rounds}"))]);
        page = reader.receive().unwrap().ok();
        assert_eq!(page["count"], 1, "{page}");
        assert!(started.elapsed() < WAIT, "nobody told the reader");
    }
}

#[test]
fn a_reader_that_waits_at_one_instance_is_answered_when_another_commits() {
    const ROUNDS: u32 = 20;
    let database = Database::new();
    let [reader, writer] = database.instances();
    waits(&reader, &writer, 1);
    let started = Instant::now();
    waits(&reader, &writer, ROUNDS);
    // A look now and then would have taken the whole interval each time, for each wait begins when one has ended.
    let taken = started.elapsed();
    assert!(taken < POSTGRES_POLL * ROUNDS / 2, "{taken:?} for {ROUNDS} waits");
}

#[test]
fn a_reader_is_answered_although_hints_do_not_come_through() {
    let database = Database::new();
    let proxy = Proxy::deaf(database.server().port());
    let reader = Server::start_with(&[("DATABASE_URL", &database.url_through(proxy.port()))]);
    let writer = database.instance();
    waits(&reader, &writer, 4);
}

#[test]
fn a_reader_is_answered_although_the_connection_for_hints_does_not_come_up() {
    let database = Database::new();
    let proxy = Proxy::stuck_for_hints(database.server().port());
    let reader = Server::start_with(&[("DATABASE_URL", &database.url_through(proxy.port()))]);
    let writer = database.instance();
    waits(&reader, &writer, 4);
    eventually("another connection for hints is tried", || {
        (proxy.listeners() > 1).then_some(())
    });
}

/// A small commit is one call, and what became of its events is in the answer alone; a large one is known before COMMIT. Whatever
/// gets lost of either, its clients are told what happened: nothing is a duplicate of itself.
#[test]
fn a_commit_whose_answer_is_lost_is_answered_as_it_was() {
    let database = Database::new();
    let proxy = Proxy::to(database.server().port());
    let instance = Server::start_with(&[("DATABASE_URL", &database.url_through(proxy.port()))]);
    let known = [Event::new("topic", "known"), Event::new("topic", "other")];
    instance.client().publish(&known);
    let other = known[1].clone().with_payload(r#"{"is":"another"}"#);
    let mut stored = 2;
    for (cut, new) in [Cut::Before, Cut::After, Cut::Late]
        .into_iter()
        .flat_map(|cut| [(cut, 3), (cut, 2 * POSTGRES_COPY_ROWS)])
    {
        thread::scope(|scope| {
            let cutting = scope.spawn(|| proxy.cut(cut));
            while !cutting.is_finished() {
                let mut events = Event::numbered("topic", stored..stored + new);
                stored += new;
                events.splice(1..1, [known[0].clone(), other.clone()]);
                let answer = instance.client().publish(&events);
                let count = |name: &str| answer[name].as_u64().expect("a count") as usize;
                let counts = ["accepted", "duplicates", "conflicts"].map(count);
                assert_eq!(counts, [new, 2, 1], "{cut:?}, {new} new ones: {answer}");
                let results = answer["results"].as_array().expect("results");
                let is = |place: usize| results[place]["outcome"].as_str();
                let first = [0, 1, 2, 3].map(is);
                let expected = ["stored", "duplicate", "conflict", "stored"].map(Some);
                assert_eq!(first, expected, "{cut:?}, {new} new ones");
            }
        });
    }
    assert_eq!(instance.client().counters()[1], stored as u64);
}

/// A commit that got no answer was given up, and its name taken. Its transaction may still hang on the server, and must not
/// count anything when its writer has long gone on.
#[test]
fn a_transaction_that_was_given_up_cannot_commit_after_its_writer_has_gone_on() {
    let database = Database::new();
    let instance = database.instance();
    instance.client().publish(&[Event::new("topic", "id")]);
    let row = |number: u32, age: Duration, counted: bool| {
        let at = format!(
            "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint - {}",
            age.as_micros()
        );
        let counts = match counted {
            true => "'{0}', '{0}', '{1}', '{0}', '{NULL}', '{NULL}'",
            false => "'{}', '{}', '{}', '{}', '{}', '{}'",
        };
        format!("INSERT INTO oncelog.commits SELECT 1000, {number}, {at}, {counts}")
    };
    let written = [
        row(1, Duration::ZERO, false),
        row(2, POSTGRES_DISOWNED_MEMORY * 2, false),
        row(3, Duration::ZERO, true),
        row(4, Duration::ZERO, true),
    ];
    database.sql(&written.join("; "));
    let left = || {
        database.sql(
            "SELECT string_agg(number::text, ' ' ORDER BY number) FROM oncelog.commits WHERE writer = 1000",
        )
    };
    eventually("what was counted is folded", || {
        (!left().contains('3')).then_some(())
    });
    assert_eq!(left(), "1 4");
    let late = row(1, Duration::ZERO, true) + " ON CONFLICT DO NOTHING RETURNING number";
    assert_eq!(database.sql(&late), "");
    assert_eq!(instance.client().counters(), [3, 1, 2, 0]);
}

#[test]
fn reversed_overlapping_batches_from_many_clients_get_exact_answers() {
    const CLIENTS: usize = 8;
    const ROUNDS: usize = 20;
    const STEP: usize = 250;
    let database = Database::new();
    // Repeatable reads, a database's default for other programs, would make every other batch fail.
    database.sql(&format!(
        "ALTER DATABASE {} SET default_transaction_isolation = 'serializable'",
        database.name()
    ));
    let instances: [Server; 2] = database.instances();
    let oracle = Oracle::of(StoreKind::Server);
    let barrier = std::sync::Barrier::new(CLIENTS);
    thread::scope(|scope| {
        for number in 0..CLIENTS {
            let (oracle, barrier, instance) = (&oracle, &barrier, &instances[number % 2]);
            scope.spawn(move || {
                let mut client = instance.client();
                for round in 0..ROUNDS {
                    // New ones among known ones, so that both ways meet all along and not only at their ends.
                    let mut events: Vec<Event> = (round * STEP..(round + 1) * STEP)
                        .flat_map(|number| [number, number + STEP])
                        .map(|number| Event::new(&format!("topic {}", number % 7), &number.to_string()))
                        .collect();
                    if number / 2 % 2 == 1 {
                        events.reverse();
                    }
                    barrier.wait();
                    let answer = oracle.publish(&mut client, &events).expect("an answer");
                    answer.ok();
                }
            });
        }
    });
    for instance in &instances {
        let checked = oracle.check_exactly(&mut instance.client());
        assert_eq!(checked.stored, ((ROUNDS + 1) * STEP) as u64);
    }
    // The server would have undone one of two that wait for each other, and it would have been tried again unseen.
    let log = database.server().log();
    let trouble = ["deadlock detected", "could not serialize"];
    let found = log
        .lines()
        .find(|line| trouble.iter().any(|trouble| line.contains(trouble)));
    assert_eq!(found, None);
}

/// What is left of each connection is found out about when it is used next, which is no trouble of the server's.
#[test]
fn an_instance_whose_connections_were_closed_takes_others_and_was_healthy_all_the_while() {
    const ROUNDS: usize = 5;
    let database = Database::new();
    let instance = database.instance();
    let of_writers = format!(
        "FROM pg_stat_activity WHERE datname = '{}' AND application_name = 'oncelog' AND query LIKE '%commits%'",
        database.name()
    );
    for _ in 0..ROUNDS {
        eventually("a writer looks after the store", || {
            (database.sql(&format!("SELECT count(*) > 0 {of_writers}")) == "t").then_some(())
        });
        database.sql(&format!("SELECT pg_terminate_backend(pid) {of_writers}"));
    }
    let event = [Event::new("topic", "id")];
    assert_eq!(instance.client().publish(&event)["accepted"], 1);
    assert!(!instance.log().contains("cannot commit"), "{}", instance.log());
}
