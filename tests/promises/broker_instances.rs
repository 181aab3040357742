//! Several instances share a PostgreSQL server and a broker: what is queued is stored once, in the order of its topic,
//! whichever of them dies, is suspended, is cut off from PostgreSQL or has lost its lease, and while PostgreSQL is away.
//! Against real servers.

use crate::harness::{
    Client, Database, Event, Postgres, Proxy, Redis, Server, eventually, identities, read_all,
};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    ops::Range,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

const PARTITIONS: usize = 16;
const TOPICS: usize = 12;

fn instance(database: &Database, redis: &Redis) -> Server {
    Server::start_with(&[("DATABASE_URL", &database.url()), ("BROKER_URL", &redis.url())])
}

/// How many partitions each instance has now.
fn shares(redis: &Redis) -> Vec<usize> {
    let mut shares: BTreeMap<String, usize> = BTreeMap::new();
    for partition in 0..PARTITIONS {
        let lease: Option<String> = redis.call(&["GET", &format!("{{oncelog}}:lease:{partition}")]);
        if let Some((owner, _)) = lease.as_deref().and_then(|lease| lease.split_once(':')) {
            *shares.entry(owner.to_owned()).or_default() += 1;
        }
    }
    shares.into_values().collect()
}

fn shared_by(redis: &Redis, expected: &[usize]) {
    eventually(&format!("the partitions are shared as {expected:?}"), || {
        (shares(redis) == expected).then_some(())
    });
}

/// Queues events of some topics, each topic's in order, until it is told to stop; returns how many of each are queued.
fn produce(address: SocketAddr, writer: usize, stop: &AtomicBool) -> u64 {
    let mut client = Client::new(address);
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let batch: Vec<_> = (0..TOPICS)
            .map(|topic| Event::new(&format!("t-{writer}-{topic}"), &count.to_string()))
            .collect();
        let sent = client.attempt(
            "POST",
            "/publish?ack=queued",
            &[("content-type", "application/json")],
            &Event::array(&batch),
        );
        match sent.map(|answer| answer.status) {
            Ok(202) => count += 1,
            // Sent again, as it may or may not be there.
            Ok(503) => {}
            Ok(other) => panic!("answered {other}"),
            Err(_) => return count,
        }
    }
    count
}

/// Queues events as one of those who [`produce`] does, with these ids.
fn queue(server: &Server, ids: Range<u64>) {
    let mut client = server.client();
    for id in ids {
        let batch: Vec<_> = (0..TOPICS)
            .map(|topic| Event::new(&format!("t-0-{topic}"), &id.to_string()))
            .collect();
        let answer = client.post("/publish?ack=queued", "application/json", &Event::array(&batch));
        assert_eq!(answer.status, 202);
    }
}

/// Waits until all is stored, then checks that it is once, in order, and rightly counted by every instance.
fn check(instances: &[&Server], queued: &[u64]) {
    let mut client = instances[0].client();
    let expected: u64 = queued.iter().map(|count| count * TOPICS as u64).sum();
    eventually("all that was queued is stored", || {
        (client.counters()[1] >= expected).then_some(())
    });
    eventually("nothing is left in the broker", || {
        (client.get("/stats").ok()["broker"]["queued"] == 0).then_some(())
    });
    let mut next: BTreeMap<String, u64> = BTreeMap::new();
    for (topic, id) in identities(&read_all(&mut client, "order=asc&limit=1000&")) {
        let next = next.entry(topic.clone()).or_default();
        assert_eq!(id, next.to_string(), "{topic}");
        *next += 1;
    }
    for (writer, count) in queued.iter().enumerate() {
        for topic in 0..TOPICS {
            let stored = next.remove(&format!("t-{writer}-{topic}")).unwrap_or_default();
            // The last one may have been taken without an answer.
            assert!(
                stored == *count || stored == count + 1,
                "{writer} {topic}: {stored} of {count}"
            );
        }
    }
    for instance in instances {
        let stats = instance.client().get("/stats").ok();
        assert_eq!(stats["broker"]["dead"], 0, "{stats}");
        let [received, unique, duplicates, conflicts] = instance.client().counters();
        assert_eq!((received, conflicts), (unique + duplicates, 0));
        assert_eq!(instance.client().get("/health").ok()["status"], "healthy");
    }
}

/// Two producers at `server` while `meanwhile` runs; returns what each has queued.
fn under_load(server: &Server, meanwhile: impl FnOnce()) -> Vec<u64> {
    struct Stopped<'a>(&'a AtomicBool);
    impl Drop for Stopped<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let (stop, address) = (AtomicBool::new(false), server.address());
    thread::scope(|scope| {
        let writers: Vec<_> = (0..2)
            .map(|writer| {
                let stop = &stop;
                scope.spawn(move || produce(address, writer, stop))
            })
            .collect();
        // Also when it fails: whoever waits for them would hide it.
        let stopped = Stopped(&stop);
        meanwhile();
        drop(stopped);
        writers.into_iter().map(|writer| writer.join().unwrap()).collect()
    })
}

fn grows(server: &Server) {
    let mut client = server.client();
    let before = client.counters()[0];
    eventually("more is stored", || {
        (client.counters()[0] > before + 100).then_some(())
    });
}

#[test]
fn what_an_instance_had_in_work_when_it_was_killed_is_stored_by_another() {
    let (database, redis) = (Database::new(), Redis::start());
    let [first, second] = [instance(&database, &redis), instance(&database, &redis)];
    shared_by(&redis, &[PARTITIONS / 2, PARTITIONS / 2]);
    let queued = under_load(&first, || {
        grows(&first);
        second.kill9();
        shared_by(&redis, &[PARTITIONS]);
        grows(&first);
    });
    check(&[&first], &queued);
}

/// It goes on where it was, with what it had read, and does not know that others have had its partitions meanwhile.
#[test]
fn an_instance_that_was_suspended_for_longer_than_its_lease_mixes_nothing_up() {
    let (database, redis) = (Database::new(), Redis::start());
    let [first, second] = [instance(&database, &redis), instance(&database, &redis)];
    shared_by(&redis, &[PARTITIONS / 2, PARTITIONS / 2]);
    let queued = under_load(&first, || {
        grows(&first);
        second.signal("STOP");
        shared_by(&redis, &[PARTITIONS]);
        grows(&first);
        second.signal("CONT");
        shared_by(&redis, &[PARTITIONS / 2, PARTITIONS / 2]);
        grows(&first);
    });
    check(&[&first, &second], &queued);
}

fn is_healthy(server: &Server) -> bool {
    server.client().get("/health").status == 200
}

/// It kept its partitions for as long as it reached Redis: what was queued in them waited, although the other instance could
/// have committed it.
#[test]
fn an_instance_that_is_cut_off_from_postgresql_leaves_its_partitions_to_another_until_it_is_back() {
    let (database, redis) = (Database::new(), Redis::start());
    let proxy = Proxy::to(database.server().port());
    let (through, url) = (database.url_through(proxy.port()), redis.url());
    let cut_off = Server::start_with(&[("DATABASE_URL", &through), ("BROKER_URL", &url)]);
    let other = instance(&database, &redis);
    shared_by(&redis, &[PARTITIONS / 2, PARTITIONS / 2]);
    queue(&cut_off, 0..10);
    check(&[&cut_off, &other], &[10]);
    proxy.hold();
    // It reaches Redis, so it takes events in.
    queue(&cut_off, 10..30);
    check(&[&other], &[30]);
    assert_eq!(shares(&redis), [PARTITIONS]);
    assert!(!is_healthy(&cut_off), "it is still cut off");
    proxy.pass_on();
    shared_by(&redis, &[PARTITIONS / 2, PARTITIONS / 2]);
    queue(&other, 30..40);
    check(&[&cut_off, &other], &[40]);
}

#[test]
fn while_no_instance_reaches_postgresql_what_is_queued_stays_and_is_stored_once_one_does() {
    let (postgres, redis) = (Postgres::start(), Redis::start());
    let database = postgres.database();
    let instances = [instance(&database, &redis), instance(&database, &redis)];
    shared_by(&redis, &[PARTITIONS / 2, PARTITIONS / 2]);
    queue(&instances[0], 0..10);
    postgres.stop_immediate();
    queue(&instances[0], 10..20);
    shared_by(&redis, &[]);
    queue(&instances[1], 20..30);
    assert!(!instances.iter().any(is_healthy));
    postgres.start_again();
    shared_by(&redis, &[PARTITIONS / 2, PARTITIONS / 2]);
    check(&[&instances[0], &instances[1]], &[30]);
}

/// The store knows of newer leases than Redis does, as after a Redis was emptied whose clock was ahead.
#[test]
fn under_a_lease_that_is_not_the_newest_nothing_is_committed() {
    let (database, redis) = (Database::new(), Redis::start());
    let newest = 1_u64 << 52;
    let server = instance(&database, &redis);
    database.sql(&format!(
        "INSERT INTO oncelog.fences SELECT number, {newest} FROM generate_series(0, {}) AS number",
        PARTITIONS - 1
    ));
    let mut client = server.client();
    for id in 0..20 {
        let answer = client.post(
            "/publish?ack=queued",
            "application/json",
            &Event::array(&[Event::new("t", &id.to_string())]),
        );
        assert_eq!(answer.status, 202);
    }
    eventually("all is stored", || (client.counters()[1] == 20).then_some(()));
    let ids: Vec<_> = identities(&read_all(&mut client, "order=asc&"))
        .into_iter()
        .map(|(_, id)| id)
        .collect();
    assert_eq!(ids, (0..20).map(|id| id.to_string()).collect::<Vec<_>>());
    let metrics = client.get("/metrics").text().to_owned();
    let fenced = metrics
        .lines()
        .find_map(|line| line.strip_prefix(r#"oncelog_publishes_total{result="fenced"} "#))
        .unwrap();
    assert_ne!(fenced, "0");
    let raised = database.sql(&format!(
        "SELECT count(*) FROM oncelog.fences WHERE token > {newest}"
    ));
    assert_eq!(
        raised.trim(),
        "1",
        "the topic's partition has a lease that is newer still"
    );
}

#[test]
fn while_postgresql_is_away_events_are_queued_and_stored_when_it_is_back() {
    let (postgres, redis) = (Postgres::start(), Redis::start());
    let database = postgres.database();
    let server = instance(&database, &redis);
    let queued = under_load(&server, || {
        grows(&server);
        postgres.stop_immediate();
        let mut client = server.client();
        eventually("it is noticed", || {
            (client.get("/health").status == 503).then_some(())
        });
        let id = Event::new("away", "0");
        let answer = client.post(
            "/publish",
            "application/json",
            &Event::array(std::slice::from_ref(&id)),
        );
        assert_eq!(answer.status, 503);
        let answer = client.post("/publish?ack=queued", "application/json", &Event::array(&[id]));
        assert_eq!(answer.status, 202);
        postgres.start_again();
        eventually("it is stored", || {
            (client.get("/events/away/0").status == 200).then_some(())
        });
        grows(&server);
    });
    check(&[&server], &queued);
}
