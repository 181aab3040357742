//! Against a real Redis: leases, fences, dead letters and a store that is away. `tests/promises/broker.rs` has what shows
//! over HTTP.

#[path = "../../tests/harness/redis.rs"]
#[allow(dead_code, reason = "the black-box tests use more of it")]
mod redis_server;

use super::{
    Broker, BrokerConfig, Letters, QueueError, Running, Settlement,
    connection::{ConnectError, Connections, Connector},
    entry::partition_of,
    keys::{self, CONSUMER, GROUP},
    scripts::{Lease, Which},
};
use crate::{
    committer,
    event::{Batch, Fence, Identity, Shape, parse},
    health::Health,
    http::testing::{FakeStore, FakeWriter, Fault, IDENTITY},
    ingest::{self, Ingest},
    limits::{BROKER_PARTITIONS, BROKER_TRIES},
    store::Store,
    wakeup::Wakeup,
};
use redis_server::Redis;
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

const PATIENCE: Duration = Duration::from_secs(60);
const LEASE: Duration = Duration::from_secs(1);

/// An instance: a broker, and a committer on a store that it may share with others.
struct Instance {
    broker: Broker,
    running: Running,
    ingest: Ingest,
}

impl Instance {
    async fn start(redis: &Redis, store: &Arc<FakeStore>) -> Self {
        let (ingest, queue) = ingest::queue(100);
        let health = Health::default();
        let writer = Box::new(FakeWriter(Arc::clone(store)));
        let shared = Arc::clone(store) as Arc<dyn Store>;
        committer::spawn(vec![writer], &shared, queue, &Wakeup::new(0), &health).expect("a thread");
        let started = Broker::start(config(redis), store.as_ref(), ingest.clone(), health).await;
        let (broker, running) = started.unwrap_or_else(|error| panic!("{error}"));
        Self {
            broker,
            running,
            ingest,
        }
    }

    async fn leases(&self, count: u64) {
        eventually("an instance has its share of the partitions", || {
            (self.broker.status().leases == count).then_some(())
        })
        .await;
    }

    /// Ends it as a kill would.
    fn kill(self) {
        self.running.keeper.abort();
        self.ingest.stop();
    }
}

fn config(redis: &Redis) -> BrokerConfig {
    BrokerConfig {
        url: redis.url().parse().expect("a URL"),
        max_events: 1_000_000,
        max_bytes: 1 << 30,
    }
}

async fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn batch(events: &[(&str, &str)]) -> Batch {
    let events: Vec<_> = events
        .iter()
        .map(|(topic, id)| crate::http::testing::event(topic, id).to_string())
        .collect();
    let body = format!("[{}]", events.join(","));
    parse(body.into_bytes(), Shape::Any, &IDENTITY, 1_000).expect("valid events")
}

/// Room of the request bodies.
fn room() -> OwnedSemaphorePermit {
    let room = Arc::new(Semaphore::new(1)).try_acquire_owned();
    room.expect("it is free")
}

async fn connect(redis: &Redis) -> Arc<Connections> {
    let connector = Connector::new(&config(redis).url, IDENTITY.store);
    connector.connect().await.expect("a connection")
}

async fn tick(connections: &Connections, instance: &str, smallest: u64) -> (usize, Vec<Lease>) {
    let tick = connections.tick(instance, true, LEASE, smallest).await;
    let tick = tick.expect("Redis answers").expect("it is this store's");
    (tick.share, tick.leases)
}

#[tokio::test]
async fn a_partition_has_one_owner_at_a_time_and_the_next_has_a_larger_token() {
    let redis = Redis::start();
    let connections = connect(&redis).await;
    let all = usize::from(BROKER_PARTITIONS);
    let (share, first) = tick(&connections, "a", 0).await;
    assert_eq!((share, first.len()), (all, all));
    let (share, second) = tick(&connections, "b", 0).await;
    assert_eq!((share, second.len()), (all / 2, 0), "all are taken");
    // It keeps what it has as long as it asks, also beyond the time of a lease.
    let began = Instant::now();
    while began.elapsed() < 2 * LEASE {
        assert_eq!(tick(&connections, "a", 0).await.1, first);
        assert_eq!(tick(&connections, "b", 0).await.1, []);
        tokio::time::sleep(LEASE / 10).await;
    }
    // `a` gives one back.
    connections
        .release("a", &first[..1])
        .await
        .expect("Redis answers");
    connections
        .release("b", &first[1..])
        .await
        .expect("not b's to give");
    let (_, second) = tick(&connections, "b", 0).await;
    assert_eq!(second.len(), 1);
    assert_eq!(second[0].partition, first[0].partition);
    assert!(first.iter().all(|lease| lease.token < second[0].token));
    // `a` dies.
    eventually_all(&connections, all).await;
    let read = connections.read("a", first[2], Which::New).await;
    assert_eq!(
        read.expect("Redis answers"),
        None,
        "who has no lease reads nothing"
    );
}

#[tokio::test]
async fn who_takes_no_part_gets_nothing_and_the_others_share_all_of_it() {
    let redis = Redis::start();
    let connections = connect(&redis).await;
    let all = usize::from(BROKER_PARTITIONS);
    let (_, first) = tick(&connections, "a", 0).await;
    assert_eq!(first.len(), all);
    let stands_back = async || {
        let tick = connections.tick("a", false, LEASE, 0).await;
        let tick = tick.expect("Redis answers").expect("it is this store's");
        assert_eq!(tick.share, 0);
        tick.leases
    };
    assert_eq!(stands_back().await, first, "it is still at work");
    let (share, second) = tick(&connections, "b", 0).await;
    assert_eq!((share, second.len()), (all, 0));
    connections.release("a", &first).await.expect("Redis answers");
    assert_eq!(stands_back().await, []);
    let (share, second) = tick(&connections, "b", 0).await;
    assert_eq!((share, second.len()), (all, all));
}

/// `b` gets everything once `a` does not ask any more.
async fn eventually_all(connections: &Connections, all: usize) {
    let deadline = Instant::now() + PATIENCE;
    let mut leases = Vec::new();
    while leases.len() < all {
        (_, leases) = tick(connections, "b", 0).await;
        assert!(Instant::now() < deadline, "{leases:?}");
        tokio::time::sleep(LEASE / 10).await;
    }
}

/// Tokens were a counter alone: a Redis that was emptied began again at 1, and the store refused everything.
#[tokio::test]
async fn tokens_grow_also_when_redis_loses_its_counter_or_its_clock_went_back() {
    let redis = Redis::start();
    let connections = connect(&redis).await;
    let (_, before) = tick(&connections, "a", 0).await;
    let largest = |leases: &[Lease]| leases.iter().map(|lease| lease.token).max().expect("leases");
    let () = redis.call(&["FLUSHALL"]);
    let (_, after) = tick(&connections, "a", 0).await;
    assert_eq!(after.len(), before.len());
    assert!(after.iter().all(|lease| lease.token > largest(&before)));
    // What the store refused as too small counts as well.
    let () = redis.call(&["FLUSHALL"]);
    let refused = largest(&after) + 1_000_000_000_000;
    let (_, last) = tick(&connections, "a", refused).await;
    assert!(last.iter().all(|lease| lease.token >= refused));
}

/// It took new leases in the stead of lost ones, and forgot about them while the consumers of the old ones ended: nobody read
/// these partitions until the leases had ended by themselves.
#[tokio::test(flavor = "multi_thread")]
async fn leases_that_are_lost_are_replaced_at_once() {
    let redis = Redis::start();
    let store = Arc::new(FakeStore::default());
    let instance = Instance::start(&redis, &store).await;
    instance.leases(u64::from(BROKER_PARTITIONS)).await;
    let leases = || -> Vec<Option<String>> {
        let lease = |partition| redis.call(&["GET", &keys::lease(partition)]);
        (0..BROKER_PARTITIONS).map(lease).collect()
    };
    let before = leases();
    redis.give_free();
    let replaced = eventually("all are replaced", || {
        let now = leases();
        let is_new = |(now, before): (&Option<String>, &Option<String>)| now.is_some() && now != before;
        now.iter().zip(&before).all(is_new).then_some(now)
    })
    .await;
    let topics: Vec<String> = (0..40).map(|number| format!("topic-{number}")).collect();
    let events: Vec<_> = topics.iter().map(|topic| (topic.as_str(), "0")).collect();
    let queued = instance.broker.queue(batch(&events), room());
    queued.await.unwrap_or_else(|error| panic!("{error}"));
    eventually("all is stored", || {
        (store.identities().len() == topics.len()).then_some(())
    })
    .await;
    assert_eq!(leases(), replaced, "these are in use");
    instance.running.stop().await;
}

/// What a dead instance had lasted as much longer as the clock was set back.
#[tokio::test]
async fn what_a_dead_instance_had_is_free_soon_also_when_the_clock_of_redis_went_back() {
    let redis = Redis::start();
    let connections = connect(&redis).await;
    let all = usize::from(BROKER_PARTITIONS);
    let (_, leases) = tick(&connections, "dead", 0).await;
    assert_eq!(leases.len(), all);
    // As if they were from a clock that was an hour ahead.
    let hour = "3600000";
    let _: f64 = redis.call(&["ZINCRBY", keys::INSTANCES, hour, "dead"]);
    for partition in 0..BROKER_PARTITIONS {
        let _: u64 = redis.call(&["PEXPIRE", &keys::lease(partition), hour]);
    }
    let (share, leases) = tick(&connections, "alive", 0).await;
    assert_eq!((share, leases.len()), (all, all));
}

#[tokio::test]
async fn a_redis_of_another_store_is_refused_and_left_alone() {
    let redis = Redis::start();
    connect(&redis).await;
    let other = Connector::new(&config(&redis).url, 1);
    let refused = match other.connect().await {
        Err(ConnectError::Unusable(reason)) => reason,
        Err(ConnectError::Away(reason)) => panic!("{reason}"),
        Ok(_) => panic!("it was taken"),
    };
    assert!(refused.contains("another store"), "{refused}");
    let meta: String = redis.call(&["HGET", keys::META, "store"]);
    assert_eq!(meta, format!("{:032x}", IDENTITY.store));
    // Another one sets it up after it was emptied: the first one notices before it changes anything.
    let connections = connect(&redis).await;
    let () = redis.call(&["FLUSHALL"]);
    other.connect().await.expect("it is empty");
    let tick = connections.tick("a", true, LEASE, 0).await;
    assert_eq!(tick.expect("Redis answers"), None);
}

#[tokio::test]
async fn one_connection_that_is_cut_among_others_is_found() {
    let redis = Redis::start();
    let connections = connect(&redis).await;
    connections.check().await.expect("all hold");
    let all: String = redis.call(&["CLIENT", "LIST"]);
    let (_, first) = all.split_once("id=").expect("a connection");
    let (id, _) = first.split_once(' ').expect("more of it");
    let killed: u64 = redis.call(&["CLIENT", "KILL", "ID", id]);
    assert_eq!(killed, 1);
    assert!(connections.check().await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_instances_share_the_work_and_one_takes_over_when_the_other_dies_or_leaves() {
    let redis = Redis::start();
    let store = Arc::new(FakeStore::default());
    let all = u64::from(BROKER_PARTITIONS);
    let first = Instance::start(&redis, &store).await;
    first.leases(all).await;
    let second = Instance::start(&redis, &store).await;
    first.leases(all / 2).await;
    second.leases(all / 2).await;
    let topics: Vec<String> = (0..40).map(|number| format!("topic-{number}")).collect();
    let mut sent = 0;
    let mut send = async |broker: &Broker| {
        for _ in 0..20 {
            let id = sent.to_string();
            let events: Vec<_> = topics.iter().map(|topic| (topic.as_str(), id.as_str())).collect();
            broker
                .queue(batch(&events), room())
                .await
                .unwrap_or_else(|error| panic!("{error}"));
            sent += 1;
        }
        sent
    };
    send(&first.broker).await;
    second.kill();
    send(&first.broker).await;
    first.leases(all).await;
    let third = Instance::start(&redis, &store).await;
    third.leases(all / 2).await;
    send(&third.broker).await;
    first.running.stop().await;
    let sent = send(&third.broker).await;
    third.leases(all).await;
    let stored = eventually("all is stored", || {
        let stored = store.identities();
        (stored.len() == sent * topics.len()).then_some(stored)
    })
    .await;
    assert_in_order(&stored);
    third.running.stop().await;
}

/// Each topic's ids are 0, 1, 2 …
fn assert_in_order(stored: &[(String, String)]) {
    let mut next: BTreeMap<&str, u64> = BTreeMap::new();
    for (topic, id) in stored {
        let next = next.entry(topic).or_default();
        assert_eq!(*id, next.to_string(), "{topic}");
        *next += 1;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_the_store_fences_off_comes_back_with_a_newer_lease_and_loses_nothing() {
    let redis = Redis::start();
    let store = Arc::new(FakeStore::default());
    // Far ahead of every clock.
    for partition in 0..BROKER_PARTITIONS {
        store.know(Fence {
            partition,
            token: 1 << 52,
        });
    }
    let instance = Instance::start(&redis, &store).await;
    for id in 0..20 {
        let queued = instance
            .broker
            .queue(batch(&[("a", &id.to_string()), ("b", &id.to_string())]), room());
        queued.await.unwrap_or_else(|error| panic!("{error}"));
    }
    let stored = eventually("all is stored", || {
        let stored = store.identities();
        (stored.len() == 40).then_some(stored)
    })
    .await;
    assert_in_order(&stored);
    // It is by the store's refusal that leases have such numbers.
    let token: u64 = redis.call(&["GET", keys::TOKEN]);
    assert!(token > 1 << 52, "{token}");
    instance.running.stop().await;
}

/// Whatever an instance knows of a Redis that is empty now, scripts and leases included, must not be in its way.
#[tokio::test(flavor = "multi_thread")]
async fn two_instances_go_on_when_redis_is_emptied_or_has_lost_its_file() {
    let redis = Redis::start();
    let store = Arc::new(FakeStore::default());
    let half = u64::from(BROKER_PARTITIONS) / 2;
    let instances = [
        Instance::start(&redis, &store).await,
        Instance::start(&redis, &store).await,
    ];
    let topics: Vec<String> = (0..40).map(|number| format!("topic-{number}")).collect();
    for round in 0..6_usize {
        for instance in &instances {
            instance.leases(half).await;
        }
        let before: u64 = redis.call(&["GET", keys::TOKEN]);
        match round % 3 {
            0 => {
                let () = redis.call(&["FLUSHALL"]);
            }
            1 => {
                let () = redis.call(&["FLUSHALL"]);
                let () = redis.call(&["SCRIPT", "FLUSH"]);
            }
            _ => {
                redis.kill9();
                redis.lose_everything();
                redis.start_again();
            }
        }
        let id = round.to_string();
        let events: Vec<_> = topics.iter().map(|topic| (topic.as_str(), id.as_str())).collect();
        let deadline = Instant::now() + PATIENCE;
        // Through either of them, as soon as it is connected.
        while let Err(error) = instances[round % 2].broker.queue(batch(&events), room()).await {
            assert!(Instant::now() < deadline, "{error}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        eventually("all is stored", || {
            (store.identities().len() == (round + 1) * topics.len()).then_some(())
        })
        .await;
        let after: u64 = redis.call(&["GET", keys::TOKEN]);
        assert!(after > before, "{before} {after}");
    }
    assert_in_order(&store.identities());
    for instance in instances {
        instance.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_store_is_away_publishes_are_queued_and_then_all_of_them_are_stored_in_order() {
    let redis = Redis::start();
    let store = Arc::new(FakeStore::default());
    let instance = Instance::start(&redis, &store).await;
    store.set_fault(Fault::Commits);
    let began = Instant::now();
    let mut sent = 0_u64;
    // Longer than it takes to find out whose fault a failure is.
    while began.elapsed() < Duration::from_secs(5) {
        let id = sent.to_string();
        let queued = instance
            .broker
            .queue(batch(&[("a", &id), ("b", &id), ("c", &id)]), room());
        queued.await.unwrap_or_else(|error| panic!("{error}"));
        sent += 1;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(store.identities(), []);
    store.set_fault(Fault::None);
    let stored = eventually("all is stored", || {
        let stored = store.identities();
        (stored.len() as u64 == 3 * sent).then_some(stored)
    })
    .await;
    assert_in_order(&stored);
    let letters: u64 = redis.call(&["XLEN", keys::DEAD]);
    assert_eq!(letters, 0);
    instance.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_alone_again_and_again_becomes_a_dead_letter_and_what_is_behind_it_is_stored() {
    let redis = Redis::start();
    let store = Arc::new(FakeStore::default());
    let instance = Instance::start(&redis, &store).await;
    store.set_fault(Fault::Poison);
    for id in ["0", "poison", "1"] {
        let queued = instance.broker.queue(batch(&[("a", id)]), room());
        queued.await.unwrap_or_else(|error| panic!("{error}"));
    }
    // Only that others are stored tells that it is the event's fault. Those behind it in its partition are not.
    let beside =
        |topic: &String| partition_of(topic, BROKER_PARTITIONS) != partition_of("a", BROKER_PARTITIONS);
    let topic = (0..)
        .map(|number| format!("b-{number}"))
        .find(beside)
        .expect("one of many");
    let mut others = 0;
    while redis.call::<u64>(&["XLEN", keys::DEAD]) == 0 {
        let id = others.to_string();
        let queued = instance.broker.queue(batch(&[(&topic, &id)]), room());
        queued.await.unwrap_or_else(|error| panic!("{error}"));
        others += 1;
        eventually("it is stored", || {
            (store.identities().len() > others).then_some(())
        })
        .await;
    }
    eventually("the others are stored", || {
        (store.identities().len() == others + 2).then_some(())
    })
    .await;
    let letters = Letters::open(&config(&redis).url).await.expect("Redis is there");
    let page = letters.page(None, 10).await.expect("Redis answers");
    assert_eq!(page.len(), 1);
    assert_eq!((page[0].events, page[0].deliveries), (1, 7));
    assert_eq!(
        page[0].reason,
        "not committed in 5 tries: it does not like an event"
    );
    assert!(page[0].data.contains("\"poison\""), "{}", page[0].data);
    // What was wrong is put right.
    store.set_fault(Fault::None);
    let ids = [page[0].id.clone()];
    let settled = letters
        .settle(Settlement::Requeue, &ids)
        .await
        .expect("Redis answers");
    assert_eq!((settled.settled, settled.refused.len()), (1, 0));
    eventually("it is stored", || {
        (store.identities().len() == others + 3).then_some(())
    })
    .await;
    let again = letters
        .settle(Settlement::Requeue, &ids)
        .await
        .expect("Redis answers");
    assert_eq!(again.settled, 0, "a letter is settled once");
    instance.running.stop().await;
}

/// The store was taken to be well as soon as a try without events succeeded, as one of a few bytes does on a full disk, or
/// beside a table that somebody has locked: what was queued became dead letters, one after the other.
#[tokio::test(flavor = "multi_thread")]
async fn what_fails_while_the_store_stores_nothing_else_is_not_buried() {
    let redis = Redis::start();
    let store = Arc::new(FakeStore::default());
    let instance = Instance::start(&redis, &store).await;
    store.set_fault(Fault::Events);
    for id in ["0", "1"] {
        let queued = instance.broker.queue(batch(&[("a", id)]), room());
        queued.await.unwrap_or_else(|error| panic!("{error}"));
    }
    eventually("it is tried more often than what is to blame", || {
        (redelivered(&instance.broker) > BROKER_TRIES + 2).then_some(())
    })
    .await;
    assert_eq!(redis.call::<u64>(&["XLEN", keys::DEAD]), 0);
    store.set_fault(Fault::None);
    let stored = eventually("all is stored", || {
        let stored = store.identities();
        (stored.len() == 2).then_some(stored)
    })
    .await;
    assert_in_order(&stored);
    instance.running.stop().await;
}

/// A full queue is nobody's fault but the load's, however long it stays full.
#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_finds_no_place_in_the_queue_is_not_blamed_for_it() {
    let redis = Redis::start();
    redis.occupy();
    let store = Arc::new(FakeStore::default());
    // Nobody drains it, and one event fills it.
    let (ingest, _queue) = ingest::queue(1);
    let health = Health::default();
    health.set_committer_running(true);
    let first = ingest.clone();
    tokio::spawn(async move { first.submit(batch(&[("b", "0")]), room()).await });
    let started = Broker::start(config(&redis), store.as_ref(), ingest, health).await;
    let (broker, running) = started.unwrap_or_else(|error| panic!("{error}"));
    broker
        .queue(batch(&[("a", "0")]), room())
        .await
        .unwrap_or_else(|error| panic!("{error}"));
    let streams = (0..BROKER_PARTITIONS).map(keys::stream);
    let stream = streams
        .into_iter()
        .find(|stream| redis.call::<u64>(&["XLEN", stream]) == 1)
        .expect("it is in one of them");
    // Somebody has read it and died.
    let () = redis.call(&["XGROUP", "CREATE", &stream, GROUP, "0"]);
    let read = [
        "XREADGROUP",
        "GROUP",
        GROUP,
        CONSUMER,
        "STREAMS",
        stream.as_str(),
        ">",
    ];
    let _: redis::Value = redis.call(&read);
    redis.give_free();
    eventually("it is tried more often than what is to blame", || {
        (redelivered(&broker) > BROKER_TRIES + 2).then_some(())
    })
    .await;
    assert_eq!(redis.call::<u64>(&["XLEN", keys::DEAD]), 0);
    assert_eq!(redis.call::<u64>(&["XLEN", &stream]), 1);
    running.stop().await;
}

fn redelivered(broker: &Broker) -> u64 {
    let mut registry = prometheus_client::registry::Registry::default();
    broker.figures().register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("text");
    text.lines()
        .find_map(|line| line.strip_prefix("broker_redelivered_entries_total "))
        .and_then(|count| count.parse().ok())
        .expect("it is there")
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_entry_only_the_events_that_the_store_refuses_become_dead_letters() {
    let redis = Redis::start();
    let store = Arc::new(FakeStore::default());
    store.set_fault(Fault::Topics);
    let instance = Instance::start(&redis, &store).await;
    let queued = instance.broker.queue(batch(&[("a", "0"), ("a", "1")]), room());
    queued.await.unwrap_or_else(|error| panic!("{error}"));
    let letters = Letters::open(&config(&redis).url).await.expect("Redis is there");
    eventually("both are refused", || {
        (redis.call::<u64>(&["XLEN", keys::DEAD]) == 2).then_some(())
    })
    .await;
    let page = letters.page(None, 10).await.expect("Redis answers");
    for letter in &page {
        assert_eq!(letter.events, 1);
        assert!(
            letter.reason.contains("topics, as many as it may"),
            "{}",
            letter.reason
        );
    }
    assert_eq!(store.identities(), []);
    instance.running.stop().await;
}

/// It went on until it came across the newest letter that there had been at its beginning. When somebody else had settled
/// that one meanwhile, it never did, and took letters that nobody had looked at.
#[tokio::test]
async fn who_settles_all_letters_leaves_those_that_came_later_also_when_others_settle_some() {
    let redis = Redis::start();
    connect(&redis).await;
    let letters = Letters::open(&config(&redis).url).await.expect("Redis is there");
    let bury = || -> String {
        let letter = ["partition", "0", "reason", "none", "events", "1", "data", "[]"];
        redis.call(&[&["XADD", keys::DEAD, "*"], &letter[..]].concat())
    };
    for settlement in [Settlement::Requeue, Settlement::Delete] {
        let before: Vec<String> = (0..250).map(|_| bury()).collect();
        let newest = letters.newest().await.expect("Redis answers").expect("a letter");
        let removed: u64 = redis.call(&["XDEL", keys::DEAD, &newest, &before[7]]);
        assert_eq!(removed, 2);
        let later = bury();
        let settled = letters
            .settle_up_to(settlement, &newest)
            .await
            .expect("Redis answers");
        assert_eq!((settled.settled, settled.refused.len()), (248, 0));
        let left = letters.page(None, 10).await.expect("Redis answers");
        assert_eq!(left.iter().map(|letter| &letter.id).collect::<Vec<_>>(), [&later]);
        let removed: u64 = redis.call(&["XDEL", keys::DEAD, &later]);
        assert_eq!(removed, 1);
    }
}

#[tokio::test]
async fn a_publish_is_added_whole_or_not_at_all() {
    let redis = Redis::start();
    redis.occupy();
    let store = Arc::new(FakeStore::default());
    let (ingest, _queue) = ingest::queue(100);
    let config = BrokerConfig {
        max_events: 5,
        ..config(&redis)
    };
    let started = Broker::start(config, store.as_ref(), ingest, Health::default()).await;
    let (broker, running) = started.unwrap_or_else(|error| panic!("{error}"));
    let some = [("a", "0"), ("b", "0"), ("c", "0")];
    broker
        .queue(batch(&some), room())
        .await
        .unwrap_or_else(|error| panic!("{error}"));
    let refused = broker.queue(batch(&some), room()).await;
    assert!(matches!(refused, Err(QueueError::Full { .. })), "{refused:?}");
    broker
        .queue(batch(&some[..2]), room())
        .await
        .unwrap_or_else(|error| panic!("{error}"));
    let refused = broker.queue(batch(&[some, some].concat()), room()).await;
    assert!(matches!(refused, Err(QueueError::TooLarge { .. })), "{refused:?}");
    let held: u64 = redis.call(&["HGET", keys::QUEUED, "events"]);
    assert_eq!(held, 5);
    running.stop().await;
}

/// The room went with the request. A client that left took it back, while what it had sent was still on its way to a slow
/// Redis: clients that came and left could fill the memory.
#[tokio::test]
async fn a_publish_holds_its_room_until_redis_has_it_also_when_its_client_leaves() {
    let redis = Redis::start();
    redis.occupy();
    let store = Arc::new(FakeStore::default());
    let (ingest, _queue) = ingest::queue(100);
    let started = Broker::start(config(&redis), store.as_ref(), ingest, Health::default()).await;
    let (broker, running) = started.unwrap_or_else(|error| panic!("{error}"));
    let () = redis.call(&["CLIENT", "PAUSE", "60000", "WRITE"]);
    let rooms = Arc::new(Semaphore::new(1));
    let room = Arc::clone(&rooms).try_acquire_owned().expect("it is free");
    let mut publish = Box::pin(broker.queue(batch(&[("a", "0")]), room));
    // So far that it waits for Redis.
    std::future::poll_fn(|context| {
        assert!(publish.as_mut().poll(context).is_pending());
        std::task::Poll::Ready(())
    })
    .await;
    drop(publish);
    assert_eq!(rooms.available_permits(), 0);
    let () = redis.call(&["CLIENT", "UNPAUSE"]);
    eventually("the room is given back", || {
        (rooms.available_permits() == 1).then_some(())
    })
    .await;
    let held: u64 = redis.call(&["HGET", keys::QUEUED, "events"]);
    assert_eq!(held, 1, "it is queued all the same");
    running.stop().await;
}

#[tokio::test]
async fn what_is_in_an_entry_is_what_was_sent() {
    let redis = Redis::start();
    redis.occupy();
    let connections = connect(&redis).await;
    let payload = "{ \"a\" :\n1.50, \"é\\u0001\": [ ] }";
    let event = format!(
        r#"{{"topic":"t\u00e9\"","event_id":"e","timestamp":"2025-10-23T12:00:00+02:00","source":"s","payload":{payload}}}"#
    );
    let identity = Identity { ..IDENTITY };
    let sent = parse(event.into_bytes(), Shape::Any, &identity, 1).expect("an event");
    let entries = super::Entry::all_of(&sent, connections.partitions()).expect("JSON");
    connections.add(entries, 10, 10_000).await.expect("Redis answers");
    let streams = (0..16).map(keys::stream);
    let found: Vec<redis::Value> = streams
        .flat_map(|stream| redis.call::<Vec<redis::Value>>(&["XRANGE", &stream, "-", "+"]))
        .collect();
    let [entry] = found.as_slice() else {
        panic!("{found:?}")
    };
    let (_, fields): (String, Vec<String>) = redis::from_redis_value_ref(entry).expect("an entry");
    let json = format!(
        r#"[{{"topic":"té\"","event_id":"e","timestamp":"2025-10-23T10:00:00Z","source":"s","payload":{payload}}}]"#
    );
    assert_eq!(fields, ["events", "1", "data", &json]);
}
