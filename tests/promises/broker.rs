//! With a broker, 202 means that Redis has the events: they are stored soon, once, in the order of their topic, whatever
//! dies in between. Against a real Redis. What needs a store that several processes share is in the library's own tests.

use crate::harness::{
    Authority, Client, Event, Folder, Redis, Server, eventually, identities, oncelog, read_all, run, shell,
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, thread,
    time::Instant,
};

fn server(redis: &Redis) -> Server {
    Server::start_with(&[("BROKER_URL", &redis.url())])
}

/// Publishes with `ack=queued`; returns the status and the answer.
fn queue(client: &mut Client, events: &[Event]) -> (u16, Value) {
    let answer = client.post("/publish?ack=queued", "application/json", &Event::array(events));
    (answer.status, answer.json())
}

#[track_caller]
fn queued(client: &mut Client, events: &[Event]) {
    let count = events.len();
    let expected = json!({
        "received": count,
        "queued": count,
        "message": format!("Received {count} events, queued {count}"),
    });
    assert_eq!(queue(client, events), (202, expected));
}

/// Waits until so many events were committed or dropped.
fn received(client: &mut Client, count: u64) {
    eventually(&format!("{count} events come out of the broker"), || {
        (client.counters()[0] >= count).then_some(())
    });
}

fn events(topic: &str, count: usize) -> Vec<Event> {
    (0..count).map(|id| Event::new(topic, &id.to_string())).collect()
}

#[test]
fn what_is_queued_is_stored_soon_byte_for_byte_and_once() {
    let redis = Redis::start();
    let server = server(&redis);
    let mut client = server.client();
    let payload = "{ \"a\" : 1.50,\n \"é\\u0001\": [ ] }";
    let event = Event::new("t", "1")
        .with_payload(payload)
        .at("2025-10-23T12:00:00+02:00");
    queued(&mut client, &[event.clone(), Event::new("u", "1")]);
    received(&mut client, 2);
    let stored = client.get("/events/t/1");
    assert!(
        stored.text().contains(&format!(r#""payload":{payload}"#)),
        "{}",
        stored.text()
    );
    assert_eq!(stored.ok()["timestamp"], "2025-10-23T10:00:00Z");
    // Both ways lead to the same store.
    queued(&mut client, &[event.clone(), event.clone()]);
    received(&mut client, 4);
    client.publish(std::slice::from_ref(&event));
    client.publish(&[Event::new("t", "2")]);
    queued(&mut client, &[Event::new("t", "2").with_payload("{}")]);
    received(&mut client, 7);
    assert_eq!(client.counters(), [7, 3, 4, 1]);
    // Every form of a body, and the other path.
    for (target, content_type, body) in [
        (
            "/publish?ack=queued",
            "application/json",
            event.json().into_bytes(),
        ),
        (
            "/publish?ack=queued&results=false",
            "application/x-ndjson",
            Event::lines(&[Event::new("u", "1"), Event::new("u", "1")]),
        ),
        (
            "/publish/batch?ack=queued",
            "application/json",
            Event::wrapped(&[event]),
        ),
    ] {
        assert_eq!(client.post(target, content_type, &body).status, 202, "{target}");
    }
    received(&mut client, 11);
    let stats = eventually("the broker is seen to be empty", || {
        let stats = client.get("/stats").ok();
        (stats["broker"]["queued"] == 0).then_some(stats)
    });
    assert_eq!(
        stats["broker"],
        json!({"connected": true, "queued": 0, "dead": 0})
    );
    let shown = shell(oncelog(server.folder()).args(["stats", "--url", &server.url()]));
    assert!(shown.contains("0 events queued, 0 dead letters"), "{shown}");
    let document = client.get("/openapi.json").ok();
    let (_, answer) = queue(&mut client, &[Event::new("t", "1")]);
    let health = client.get("/health").ok();
    for (schema, answer) in [
        ("Queued", &answer),
        ("Stats", &stats),
        ("BrokerStats", &stats["broker"]),
        ("BrokerHealth", &health["broker"]),
    ] {
        let documented = document["components"]["schemas"][schema]["properties"]
            .as_object()
            .unwrap();
        let missing: Vec<_> = answer
            .as_object()
            .unwrap()
            .keys()
            .filter(|name| !documented.contains_key(*name))
            .collect();
        assert!(missing.is_empty(), "{schema}: {missing:?}");
    }
}

#[test]
fn what_is_wrong_is_refused_before_it_is_queued() {
    let redis = Redis::start();
    let server = server(&redis);
    let mut client = server.client();
    let mut post = |target: &str, body: &[u8]| client.post(target, "application/json", body);
    let one = Event::array(&[Event::new("t", "1")]);
    for (target, part) in [
        ("/publish?ack=queued&results=true", "results: with ack=queued"),
        (
            "/publish?ack=now",
            "ack: committed or queued is needed, not \"now\"",
        ),
        ("/publish?ack=", "ack: committed or queued is needed"),
        ("/publish?ack=queued&ack=queued", "ack: given more than once"),
    ] {
        let problem = post(target, &one).problem(422);
        assert!(problem["detail"].as_str().unwrap().contains(part), "{problem}");
    }
    let invalid = Event::array(&[Event::new("t", "1"), Event::new("", "2")]);
    assert_eq!(
        post("/publish?ack=queued", &invalid).problem(422)["place"],
        "events[1].topic"
    );
    post("/publish?ack=queued", b"[").problem(400);
    let entries: u64 = (0..16)
        .map(|partition| redis.call::<u64>(&["XLEN", &format!("{{oncelog}}:stream:{partition}")]))
        .sum();
    assert_eq!(entries, 0);
    let without = Server::start();
    let answer = without
        .client()
        .post("/publish?ack=queued", "application/json", &one);
    assert!(
        answer.problem(422)["detail"]
            .as_str()
            .unwrap()
            .starts_with("ack: this server has no broker"),
    );
}

#[test]
fn a_key_queues_only_what_it_may_publish() {
    let redis = Redis::start();
    let folder = Folder::new();
    let create = |scope: &str, topic: &str| -> String {
        let text = shell(
            oncelog(&folder)
                .args(["keys", "create", "--json", "--name", "k"])
                .args(["--scope", scope, "--topic", topic]),
        );
        let key: Value = serde_json::from_str(&text).unwrap();
        format!("Bearer {}", key["key"].as_str().unwrap())
    };
    let (publish, read) = (create("publish", "orders.*"), create("read", "*"));
    let server = Server::start_in(folder, &[("BROKER_URL", &redis.url())]);
    let mut client = server.client();
    for (key, topic, status) in [
        (&publish, "orders.new", 202),
        (&publish, "users", 403),
        (&read, "orders.new", 403),
    ] {
        let answer = client.request(
            "POST",
            "/publish?ack=queued",
            &[("content-type", "application/json"), ("authorization", key)],
            &Event::array(&[Event::new(topic, "1")]),
        );
        assert_eq!(answer.status, status, "{topic}");
    }
    // Who may not come in is not told about the broker.
    assert_eq!(client.get("/health").ok()["broker"], Value::Null);
}

#[test]
fn events_of_a_topic_are_stored_in_the_order_in_which_they_were_queued() {
    let redis = Redis::start();
    let server = server(&redis);
    const WRITERS: usize = 4;
    const REQUESTS: usize = 40;
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let mut client = server.client();
            scope.spawn(move || {
                for request in 0..REQUESTS {
                    let batch: Vec<_> = (0..30)
                        .map(|number| {
                            Event::new(
                                &format!("t-{writer}-{}", number % 10),
                                &format!("{request}-{number}"),
                            )
                        })
                        .collect();
                    queued(&mut client, &batch);
                }
            });
        }
    });
    let mut client = server.client();
    received(&mut client, (WRITERS * REQUESTS * 30) as u64);
    let mut by_topic: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (topic, id) in identities(&read_all(&mut client, "order=asc&limit=1000&")) {
        by_topic.entry(topic).or_default().push(id);
    }
    assert_eq!(by_topic.len(), WRITERS * 10);
    for (topic, ids) in by_topic {
        let number: usize = topic.rsplit('-').next().unwrap().parse().unwrap();
        let sent: Vec<_> = (0..REQUESTS)
            .flat_map(|request| (0..3).map(move |nth| format!("{request}-{}", number + 10 * nth)))
            .collect();
        assert_eq!(ids, sent, "{topic}");
    }
}

#[test]
fn beyond_its_bound_the_broker_refuses_and_what_it_has_taken_is_stored() {
    let redis = Redis::start();
    redis.occupy();
    let server = Server::start_with(&[("BROKER_URL", &redis.url()), ("BROKER_MAX_EVENTS", "10")]);
    let mut client = server.client();
    let batch = events("t", 12);
    queued(&mut client, &batch[..6]);
    let refused = client.post(
        "/publish?ack=queued",
        "application/json",
        &Event::array(&batch[6..11]),
    );
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(refused.problem(503)["type"], "/problems/broker-full");
    queued(&mut client, &batch[6..10]);
    assert_eq!(queue(&mut client, &batch[10..11]).0, 503);
    // What can never fit is not worth trying again.
    let (status, problem) = queue(&mut client, &batch);
    assert_eq!(
        (status, &problem["type"]),
        (413, &json!("/problems/too-many-events"))
    );
    // The other way stays open.
    client.publish(&batch[11..]);
    redis.give_free();
    received(&mut client, 11);
    eventually("there is room again", || {
        (queue(&mut client, &batch[10..11]).0 == 202).then_some(())
    });
    received(&mut client, 12);
    assert_eq!(client.counters(), [12, 12, 0, 0]);
}

#[test]
fn a_broker_that_holds_too_many_bytes_refuses() {
    let redis = Redis::start();
    redis.occupy();
    let server = Server::start_with(&[("BROKER_URL", &redis.url()), ("BROKER_MAX_BYTES", "2000")]);
    let mut client = server.client();
    let large = |id: &str| Event::new("t", id).with_payload(&format!(r#"{{"x":"{}"}}"#, "x".repeat(1_000)));
    queued(&mut client, &[large("1")]);
    assert_eq!(queue(&mut client, &[large("2")]).0, 503);
    queued(&mut client, &[Event::new("t", "3")]);
}

#[test]
fn redis_that_is_killed_keeps_what_was_queued_and_meanwhile_commits_go_on() {
    let redis = Redis::start();
    redis.occupy();
    let server = server(&redis);
    let mut client = server.client();
    for event in events("t", 20) {
        queued(&mut client, &[event]);
    }
    redis.kill9();
    let (status, problem) = queue(&mut client, &[Event::new("t", "lost")]);
    assert_eq!(
        (status, &problem["type"]),
        (503, &json!("/problems/broker-unavailable"))
    );
    client.publish(&[Event::new("u", "1")]);
    let health = eventually("it is noticed", || {
        let health = client.get("/health").ok();
        (health["broker"]["status"] == "unhealthy").then_some(health)
    });
    assert_eq!(health["status"], "healthy");
    assert!(health["broker"]["reason"].is_string(), "{health}");
    assert_eq!(client.get("/stats").ok()["broker"]["connected"], false);
    redis.start_again();
    redis.give_free();
    received(&mut client, 21);
    eventually("it takes events again", || {
        (queue(&mut client, &[Event::new("t", "20")]).0 == 202).then_some(())
    });
    received(&mut client, 22);
    let stored = read_all(&mut client, "order=asc&topic=t&");
    let ids: Vec<_> = identities(&stored).into_iter().map(|(_, id)| id).collect();
    assert_eq!(ids, (0..=20).map(|id| id.to_string()).collect::<Vec<_>>());
    assert_eq!(client.get("/health").ok()["broker"], json!({"status": "healthy"}));
}

#[test]
fn redis_killed_again_and_again_under_load_loses_nothing_that_was_queued() {
    let redis = Redis::start();
    let server = server(&redis);
    let acknowledged = thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let mut client = server.client();
                scope.spawn(move || {
                    let mut acknowledged = Vec::new();
                    let mut next = 0;
                    while acknowledged.len() < 150 {
                        let event = Event::new(&format!("t{writer}"), &next.to_string());
                        next += 1;
                        if queue(&mut client, std::slice::from_ref(&event)).0 == 202 {
                            acknowledged.push(event.identity());
                        }
                    }
                    acknowledged
                })
            })
            .collect();
        for _ in 0..4 {
            eventually("something is stored", || {
                let before = server.client().counters()[0];
                (before > 0).then_some(())
            });
            redis.kill9();
            redis.start_again();
        }
        writers
            .into_iter()
            .flat_map(|writer| writer.join().unwrap())
            .collect::<Vec<_>>()
    });
    let mut client = server.client();
    eventually("all that was acknowledged is stored", || {
        let stored = identities(&read_all(&mut client, "order=asc&limit=1000&"));
        acknowledged
            .iter()
            .all(|event| stored.contains(event))
            .then_some(())
    });
    let [received, unique, duplicates, conflicts] = client.counters();
    assert_eq!((received, conflicts), (unique + duplicates, 0));
}

/// Each request takes the next of several connections. One that was cut stayed among them while the others held: requests
/// that came to it failed until the server's own look at Redis happened to come to it as well.
#[test]
fn a_connection_to_redis_that_is_cut_alone_is_replaced() {
    let redis = Redis::start();
    let server = server(&redis);
    let mut client = server.client();
    let mut sent = 0;
    let mut one = || {
        sent += 1;
        queue(&mut client, &[Event::new("t", &sent.to_string())]).0
    };
    for _ in 0..32 {
        assert_eq!(one(), 202);
    }
    let connections: String = redis.call(&["CLIENT", "LIST"]);
    let id = |line: &str| line.split_once("id=")?.1.split(' ').next().map(str::to_owned);
    let shared: Vec<_> = connections
        .lines()
        .filter(|line| line.contains("cmd=evalsha"))
        .filter_map(id)
        .collect();
    assert!(shared.len() > 4, "{connections}");
    let killed: u64 = redis.call(&["CLIENT", "KILL", "ID", &shared[0]]);
    assert_eq!(killed, 1);
    eventually("each of the connections takes events", || {
        (0..32).all(|_| one() == 202).then_some(())
    });
}

/// What waits is committed, also what has to be buried: that is how Redis gets memory back.
#[test]
fn redis_that_is_out_of_memory_refuses_and_is_drained() {
    let redis = Redis::start();
    redis.occupy();
    let server = server(&redis);
    let mut client = server.client();
    let batch = events("t", 21);
    for event in &batch[..20] {
        queued(&mut client, std::slice::from_ref(event));
    }
    for partition in 0..16 {
        let stream = format!("{{oncelog}}:stream:{partition}");
        let _: String = redis.call(&["XADD", &stream, "*", "events", "1", "data", "[{}]"]);
    }
    let () = redis.call(&["CONFIG", "SET", "maxmemory", "1"]);
    let (status, problem) = queue(&mut client, &batch[20..]);
    assert_eq!(
        (status, &problem["type"]),
        (503, &json!("/problems/broker-unavailable"))
    );
    assert!(
        problem["detail"].as_str().unwrap().contains("maxmemory"),
        "{problem}"
    );
    // Whoever comes to it now can use it as well, whether it has just started or was cut off.
    server.kill9();
    let server = server.restart();
    let mut client = server.client();
    let cut: u64 = redis.call(&["CLIENT", "KILL", "TYPE", "normal"]);
    assert!(cut > 0, "it is connected");
    redis.give_free();
    received(&mut client, 20);
    eventually("what is no event is buried", || {
        (client.get("/stats").ok()["broker"]["dead"] == 16).then_some(())
    });
    let () = redis.call(&["CONFIG", "SET", "maxmemory", "0"]);
    queued(&mut client, &batch[20..]);
    received(&mut client, 21);
    assert_eq!(client.counters(), [21, 21, 0, 0]);
}

/// A number of Redis's own statistics of a command: `name` is that of the field.
fn statistic(redis: &Redis, command: &str, name: &str) -> u64 {
    let all: String = redis.call(&["INFO", "commandstats"]);
    all.lines()
        .find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:")))
        .and_then(|fields| {
            fields
                .split(',')
                .find_map(|field| field.strip_prefix(&format!("{name}=")))
        })
        .map_or(0, |count| count.parse().expect("a number"))
}

/// A connection was a success before anything was done with it: one that is of no use was made again at once and told of
/// each time, for ever.
#[test]
fn a_redis_that_connects_but_cannot_be_used_is_told_of_once() {
    let redis = Redis::start();
    let server = server(&redis);
    let mut client = server.client();
    queued(&mut client, &[Event::new("t", "1")]);
    received(&mut client, 1);
    let told = |what: &str| server.log().lines().filter(|line| line.contains(what)).count();
    let () = redis.call(&["CONFIG", "RESETSTAT"]);
    let () = redis.call(&["SET", "{oncelog}:instances", "of another type"]);
    eventually("it is tried again and again", || {
        // With each connection the server tells Redis its seven scripts.
        (statistic(&redis, "script|load", "calls") >= 6 * 7).then_some(())
    });
    assert_eq!(told("the broker is not available"), 1, "{}", server.log());
    assert_eq!(told("the broker is connected"), 1, "{}", server.log());
    assert!(server.log().contains("WRONGTYPE"), "{}", server.log());
    let _: u64 = redis.call(&["DEL", "{oncelog}:instances"]);
    eventually("it takes events again", || {
        (queue(&mut client, &[Event::new("t", "2")]).0 == 202).then_some(())
    });
    received(&mut client, 2);
    assert_eq!(told("the broker is connected"), 2, "{}", server.log());
}

/// It was logged for developers only: a partition stood still, and nobody was told why.
#[test]
fn what_redis_refuses_a_partition_is_told_of_once() {
    let redis = Redis::start();
    let server = server(&redis);
    let mut client = server.client();
    queued(&mut client, &[Event::new("t", "1")]);
    received(&mut client, 1);
    let () = redis.call(&["ACL", "SETUSER", "default", "-xreadgroup"]);
    let () = redis.call(&["CONFIG", "RESETSTAT"]);
    queued(&mut client, &[Event::new("t", "2")]);
    eventually("it is tried again and again", || {
        (statistic(&redis, "evalsha", "failed_calls") >= 6).then_some(())
    });
    let log = server.log();
    let warnings = log
        .lines()
        .filter(|line| line.contains(" WARN ") && line.contains("refuses"));
    let partition = |line: &str| {
        line.split_once("partition=")?
            .1
            .split(' ')
            .next()
            .map(str::to_owned)
    };
    let partitions: Vec<_> = warnings.filter_map(partition).collect();
    assert!(!partitions.is_empty(), "{log}");
    let distinct: BTreeSet<_> = partitions.iter().collect();
    assert_eq!(distinct.len(), partitions.len(), "{log}");
    let () = redis.call(&["ACL", "SETUSER", "default", "+xreadgroup"]);
    received(&mut client, 2);
}

/// Waiting for an entry, alone of all that a consumer does, was tried again every 50 ms by each partition, for ever, and had all
/// connections looked at each time.
#[test]
fn what_redis_refuses_is_tried_again_more_and_more_seldom() {
    const PARTITIONS: u64 = 16;
    for command in ["xread", "xreadgroup"] {
        let redis = Redis::start();
        let server = server(&redis);
        let mut client = server.client();
        queued(&mut client, &[Event::new("t", "1")]);
        received(&mut client, 1);
        let () = redis.call(&["ACL", "SETUSER", "default", &format!("-{command}")]);
        let () = redis.call(&["CONFIG", "RESETSTAT"]);
        // About so many times each partition, once all have begun.
        let refused = |count: u64| {
            eventually("it is tried again and again", || {
                let refused = statistic(&redis, command, "rejected_calls");
                (refused >= count * PARTITIONS).then(Instant::now)
            })
        };
        let [early, late] = [(1, 5), (8, 12)].map(|(from, to)| {
            let from = refused(from);
            refused(to) - from
        });
        assert!(2 * late > 3 * early, "{command}: {early:?}, then {late:?}");
        // An answer, whatever it is, says that its connection is well.
        assert_eq!(statistic(&redis, "ping", "calls"), 0, "{command}");
        let () = redis.call(&["ACL", "SETUSER", "default", &format!("+{command}")]);
        queued(&mut client, &[Event::new("t", "2")]);
        received(&mut client, 2);
    }
}

/// It was written first and the entry taken out last: each time that was refused left one more letter.
#[test]
fn an_entry_that_redis_does_not_let_go_leaves_no_dead_letter_yet() {
    let redis = Redis::start();
    let server = server(&redis);
    let mut client = server.client();
    for (round, command) in ["xack", "xdel", "hincrby"].into_iter().enumerate() {
        let () = redis.call(&["ACL", "SETUSER", "default", &format!("-{command}")]);
        let () = redis.call(&["CONFIG", "RESETSTAT"]);
        let entry = ["XADD", "{oncelog}:stream:0", "*", "events", "1", "data", "[{}]"];
        let _: String = redis.call(&entry);
        eventually("it is tried again and again", || {
            (statistic(&redis, "evalsha", "failed_calls") >= 3).then_some(())
        });
        let dead = |redis: &Redis| redis.call::<usize>(&["XLEN", "{oncelog}:dead"]);
        assert_eq!(dead(&redis), round, "{command}");
        let () = redis.call(&["ACL", "SETUSER", "default", &format!("+{command}")]);
        eventually("it is buried", || (dead(&redis) > round).then_some(()));
        eventually("it is counted once", || {
            (client.get("/stats").ok()["broker"]["dead"] == round + 1).then_some(())
        });
    }
    let left: u64 = redis.call(&["XLEN", "{oncelog}:stream:0"]);
    assert_eq!(left, 0);
}

/// Each start left a consumer in each group for ever.
#[test]
fn instances_that_have_gone_leave_nothing_in_redis() {
    let redis = Redis::start();
    let mut server = server(&redis);
    for round in 0..3 {
        queued(&mut server.client(), &[Event::new("t", &round.to_string())]);
        received(&mut server.client(), round + 1);
        server.kill9();
        server = server.restart();
    }
    queued(&mut server.client(), &[Event::new("t", "last")]);
    received(&mut server.client(), 4);
    let consumers: usize = (0..16)
        .map(|partition| format!("{{oncelog}}:stream:{partition}"))
        .filter(|stream| redis.call::<u64>(&["EXISTS", stream]) == 1)
        .map(|stream| redis.call::<Vec<redis::Value>>(&["XINFO", "CONSUMERS", &stream, "oncelog"]))
        .map(|consumers| consumers.len())
        .max()
        .unwrap();
    assert_eq!(consumers, 1);
    eventually("those that were killed are forgotten", || {
        (redis.call::<u64>(&["ZCARD", "{oncelog}:instances"]) == 1).then_some(())
    });
}

#[test]
fn a_server_starts_without_its_redis_and_uses_it_as_soon_as_it_is_there() {
    let redis = Redis::stopped(&[]);
    let server = server(&redis);
    let mut client = server.client();
    assert_eq!(queue(&mut client, &[Event::new("t", "1")]).0, 503);
    client.publish(&[Event::new("t", "1")]);
    assert!(server.log().contains("the broker is away"), "{}", server.log());
    redis.start_again();
    eventually("it takes events", || {
        (queue(&mut client, &[Event::new("t", "2")]).0 == 202).then_some(())
    });
    received(&mut client, 2);
}

#[test]
fn redis_that_is_emptied_while_it_is_used_is_set_up_anew() {
    let redis = Redis::start();
    let server = server(&redis);
    let mut client = server.client();
    queued(&mut client, &events("t", 5));
    received(&mut client, 5);
    for round in 0..4 {
        match round % 2 {
            0 => {
                let () = redis.call(&["FLUSHALL"]);
            }
            _ => {
                redis.kill9();
                redis.lose_everything();
                redis.start_again();
                eventually("it takes events again", || {
                    (queue(&mut client, &[Event::new("t", "0")]).0 == 202).then_some(())
                });
            }
        }
        let id = format!("after-{round}");
        queued(&mut client, &[Event::new("t", &id)]);
        eventually("it is stored", || {
            (client.get(&format!("/events/t/{id}")).status == 200).then_some(())
        });
    }
    let [received, unique, duplicates, conflicts] = client.counters();
    assert_eq!((unique, conflicts), (9, 0));
    assert_eq!(received, unique + duplicates);
    assert_eq!(server.log().matches("panicked").count(), 0, "{}", server.log());
}

#[test]
fn a_server_that_is_killed_has_queued_events_stored_by_the_next() {
    let redis = Redis::start();
    let mut server = server(&redis);
    let mut acknowledged = 0;
    for round in 0..3 {
        thread::scope(|scope| {
            let writers: Vec<_> = (0..3)
                .map(|writer| {
                    let address = server.address();
                    scope.spawn(move || {
                        let mut client = Client::new(address);
                        let mut count = 0;
                        loop {
                            let topic = format!("t{writer}");
                            let ids = (0..20).map(|number| format!("{round}-{count}-{number}"));
                            let batch: Vec<_> = ids.map(|id| Event::new(&topic, &id)).collect();
                            let sent = client.attempt(
                                "POST",
                                "/publish?ack=queued",
                                &[("content-type", "application/json")],
                                &Event::array(&batch),
                            );
                            match sent {
                                Ok(answer) if answer.status == 202 => count += 20,
                                // The server is gone.
                                _ => return count,
                            }
                        }
                    })
                })
                .collect();
            let before = server.client().counters()[0];
            eventually("some are stored", || {
                (server.client().counters()[0] > before + 500).then_some(())
            });
            server.kill9();
            acknowledged += writers
                .into_iter()
                .map(|writer| writer.join().unwrap())
                .sum::<u64>();
        });
        server = server.restart();
    }
    let mut client = server.client();
    eventually("all that was acknowledged is stored", || {
        (client.counters()[1] >= acknowledged).then_some(())
    });
    let stored = identities(&read_all(&mut client, "order=asc&limit=1000&"));
    let mut next: BTreeMap<(String, u64), Vec<String>> = BTreeMap::new();
    for (topic, id) in stored {
        let (round, rest) = id.split_once('-').unwrap();
        next.entry((topic, round.parse().unwrap()))
            .or_default()
            .push(rest.to_owned());
    }
    assert_eq!(next.len(), 9);
    for (topic, ids) in next {
        // Without gaps, and in order.
        for (place, id) in ids.iter().enumerate() {
            assert_eq!(*id, format!("{}-{}", place / 20 * 20, place % 20), "{topic:?}");
        }
    }
    let [received, unique, duplicates, conflicts] = client.counters();
    assert_eq!((received, conflicts), (unique + duplicates, 0));
    // The last look at the broker, and the last entry.
    eventually("nothing is left in the broker", || {
        let left: u64 = (0..16)
            .map(|partition| redis.call::<u64>(&["XLEN", &format!("{{oncelog}}:stream:{partition}")]))
            .sum();
        (left == 0).then_some(())
    });
    server.stop();
}

#[test]
fn a_stop_gives_the_partitions_back_and_ends_well() {
    let redis = Redis::start();
    let server = server(&redis);
    queued(&mut server.client(), &events("t", 5));
    received(&mut server.client(), 5);
    server.stop();
    for partition in 0..16 {
        let there: u64 = redis.call(&["EXISTS", &format!("{{oncelog}}:lease:{partition}")]);
        assert_eq!(there, 0, "{partition}");
    }
    let instances: u64 = redis.call(&["ZCARD", "{oncelog}:instances"]);
    assert_eq!(instances, 0);
}

#[test]
fn what_is_no_event_becomes_a_dead_letter_that_is_listed_queued_again_and_deleted() {
    let redis = Redis::start();
    let server = server(&redis);
    let mut client = server.client();
    let good = Event::new("t", "1").json();
    let entry = format!(r#"[{good},{{"topic":""}}]"#);
    let stream = "{oncelog}:stream:5";
    let _: String = redis.call(&["XADD", stream, "*", "events", "2", "data", &entry]);
    let _: String = redis.call(&["XADD", stream, "*", "name", "value"]);
    queued(&mut client, &[Event::new("t", "2")]);
    received(&mut client, 2);
    eventually("both are buried", || {
        (client.get("/stats").ok()["broker"]["dead"] == 2).then_some(())
    });
    let url = redis.url();
    let broker = |arguments: &[&str]| {
        let mut command = oncelog(server.folder());
        command
            .args(["broker", "dead"])
            .args(arguments)
            .env("BROKER_URL", &url);
        command
    };
    let list = || -> Vec<Value> { serde_json::from_str(&shell(&mut broker(&["list", "--json"]))).unwrap() };
    let letters = list();
    assert_eq!(letters.len(), 2);
    assert_eq!(letters[0]["reason"], "events[0].topic: must not be empty");
    assert_eq!(letters[0]["data"], r#"[{"topic":""}]"#);
    assert_eq!(letters[1]["data"], "name=value");
    let shown = shell(&mut broker(&["list", "--limit", "1"]));
    assert!(
        shown.contains("must not be empty") && !shown.contains("name=value"),
        "{shown}"
    );
    // It is what it was: it comes back. What is no event at all cannot be queued, and stays.
    let again = run(&mut broker(&["requeue", "--all", "--json"]));
    assert_eq!(again.status.code(), Some(1));
    let settled: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!(settled, json!({"settled": 1, "refused": [letters[1]["id"]]}));
    let letters = eventually("it is buried again", || {
        let letters = list();
        (letters.len() == 2).then_some(letters)
    });
    let id = letters[1]["id"].as_str().unwrap();
    assert_eq!(shell(&mut broker(&["delete", id])), "1 deleted\n");
    assert_eq!(run(&mut broker(&["delete", id])).status.code(), Some(1));
    assert_eq!(shell(&mut broker(&["delete", "--all"])), "1 deleted\n");
    assert_eq!(shell(&mut broker(&["list"])), "There are no dead letters.\n");
    eventually("nothing is counted any more", || {
        let held: BTreeMap<String, i64> = redis.call(&["HGETALL", "{oncelog}:queued"]);
        held.values().all(|count| *count == 0).then_some(())
    });
    // Without a broker, or without Redis, it says so.
    for (url, arguments, code, part) in [
        ("", ["list", "--json"], 2, "--broker-url or BROKER_URL"),
        (
            "redis://:secret@127.0.0.1:1",
            ["list", "--json"],
            1,
            "redis://127.0.0.1:1",
        ),
        (url.as_str(), ["delete", "all"], 2, "expected an id"),
    ] {
        let output = run(broker(&arguments).env("BROKER_URL", url));
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{message}");
        assert!(message.contains(part) && !message.contains("secret"), "{message}");
    }
}

#[test]
fn a_redis_that_would_lose_events_is_warned_of_by_the_setting() {
    for (arguments, warning) in [
        (vec!["--appendonly", "no"], Some("appendonly no")),
        (vec!["--appendfsync", "everysec"], Some("appendfsync everysec")),
        (
            vec!["--no-appendfsync-on-rewrite", "yes"],
            Some("no-appendfsync-on-rewrite yes"),
        ),
        (
            vec!["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"],
            Some("maxmemory-policy allkeys-lru"),
        ),
        (
            vec!["--rename-command", "CONFIG", ""],
            Some("CONFIG is forbidden"),
        ),
        (vec![], None),
    ] {
        let redis = Redis::start_with(&arguments);
        let server = server(&redis);
        queued(&mut server.client(), &[Event::new("t", "1")]);
        received(&mut server.client(), 1);
        let log = server.log();
        match warning {
            Some(warning) => assert!(
                log.contains(" WARN ") && log.contains(warning),
                "{arguments:?}\n{log}"
            ),
            None => assert!(!log.contains(" WARN "), "{log}"),
        }
    }
}

#[test]
fn a_redis_that_cannot_be_used_is_refused_at_the_start() {
    let redis = Redis::start_with(&["--requirepass", "right"]);
    let url = redis.url().replace("//", "//:wrong@");
    let refused = Server::try_start_in(Folder::new(), &[("BROKER_URL", &url)])
        .err()
        .unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        refused.log.contains("cannot be used") && !refused.log.contains("wrong"),
        "{refused}"
    );
    // Two stores on one Redis would take each other's events.
    let redis = Redis::start();
    let first = server(&redis);
    let url = redis.url();
    let refused = Server::try_start_in(Folder::new(), &[("BROKER_URL", &url)])
        .err()
        .unwrap();
    assert!(refused.log.contains("another store"), "{refused}");
    let other_database = format!("{url}/1");
    let second = Server::start_with(&[("BROKER_URL", &other_database)]);
    for server in [first, second] {
        queued(&mut server.client(), &[Event::new("t", "1")]);
        received(&mut server.client(), 1);
        assert_eq!(server.client().counters(), [1, 1, 0, 0]);
    }
}

#[test]
fn redis_is_spoken_to_with_tls() {
    let authority = Authority::new();
    let folder = Folder::new();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let pair = authority.issue(&["localhost"]);
    let (ca, certificate, key) = (
        write("ca.pem", authority.pem()),
        write("redis.pem", &pair.certificate),
        write("redis.key", &pair.key),
    );
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    drop(listener);
    let redis = Redis::start_with(&[
        "--tls-port",
        &port,
        "--tls-cert-file",
        &certificate,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &ca,
        "--tls-auth-clients",
        "no",
    ]);
    let url = format!("rediss://localhost:{port}");
    let server = Server::start_with(&[("BROKER_URL", &url), ("SSL_CERT_FILE", &ca)]);
    queued(&mut server.client(), &[Event::new("t", "1")]);
    received(&mut server.client(), 1);
    // Whom it does not trust it tells nothing.
    let stranger = Authority::new();
    let strangers = write("stranger.pem", stranger.pem());
    let server = Server::start_with(&[("BROKER_URL", &url), ("SSL_CERT_FILE", &strangers)]);
    assert_eq!(queue(&mut server.client(), &[Event::new("t", "1")]).0, 503);
    drop(redis);
}
