//! A key goes as fast as it may and no faster: what is beyond its limit is refused whole, says when to come again, and
//! disturbs nobody else.
//!
//! The buckets here are large and fill by one a second, so that what a test finds does not depend on how fast it runs.

use crate::harness::{Answer, Client, Event, Folder, Server, eventually, oncelog, run, shell};
use serde_json::Value;

/// Events that are let through at once by [`SLOW`].
const BURST: usize = 1_000;
/// A limit of events that a test uses up, and that it cannot wait for to be full again.
const SLOW: [&str; 4] = ["--events-per-second", "1", "--events-burst", "1000"];

fn keys(folder: &Folder, arguments: &[&str]) -> Value {
    let text = shell(oncelog(folder).arg("keys").args(arguments).arg("--json"));
    serde_json::from_str(&text).expect("JSON")
}

/// Makes a key for everything, with these limits.
fn create(folder: &Folder, limits: &[&str]) -> Key {
    let arguments = [&["create", "--name", "test", "--scope", "admin"], limits].concat();
    let made = keys(folder, &arguments);
    let text = |name: &str| made[name].as_str().expect(name).to_owned();
    Key {
        id: text("id"),
        authorization: format!("Bearer {}", text("key")),
    }
}

struct Key {
    id: String,
    authorization: String,
}

impl Key {
    fn get(&self, client: &mut Client, target: &str) -> Answer {
        client.request("GET", target, &[("authorization", &self.authorization)], b"")
    }

    fn publish(&self, client: &mut Client, events: &[Event]) -> Answer {
        let headers = [
            ("authorization", &*self.authorization),
            ("content-type", "application/json"),
        ];
        client.request("POST", "/publish", &headers, &Event::wrapped(events))
    }

    /// Waits until the server knows the key.
    fn known(&self, client: &mut Client) {
        eventually("the key counts", || {
            (self.get(client, "/problems/rate-limited").status != 401).then_some(())
        });
    }
}

/// Events that nobody else has sent.
fn events(prefix: &str, count: usize) -> Vec<Event> {
    (0..count)
        .map(|number| Event::new("limited", &format!("{prefix}-{number}")))
        .collect()
}

/// The whole number behind `name` in an item of a header such as `"events";r=20;t=1`.
fn parameter(answer: &Answer, header: &str, item: &str, name: &str) -> u64 {
    let value = answer
        .header(header)
        .unwrap_or_else(|| panic!("no {header} in {}", answer.head));
    value
        .split(", ")
        .find_map(|text| text.strip_prefix(&format!("\"{item}\";")))
        .and_then(|parameters| {
            parameters
                .split(';')
                .find_map(|text| text.strip_prefix(&format!("{name}=")))
        })
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("no {name} of {item} in {value}"))
}

/// Checks that it is refused for now, and returns for how many seconds.
#[track_caller]
fn refused(answer: &Answer) -> u64 {
    let problem = answer.problem(429);
    assert_eq!(problem["type"], "/problems/rate-limited");
    let seconds: u64 = answer
        .header("retry-after")
        .and_then(|text| text.parse().ok())
        .expect("whole seconds");
    let detail = problem["detail"].as_str().expect("a detail");
    assert!(
        seconds >= 1 && detail.contains(&format!("in {seconds} s")),
        "{detail}"
    );
    seconds
}

#[test]
fn events_beyond_the_limit_are_refused_whole_until_the_time_that_is_said() {
    let folder = Folder::new();
    let key = create(&folder, &SLOW);
    let server = Server::start_in(folder, &[]);
    let mut client = server.client();
    let first = key.publish(&mut client, &events("a", BURST));
    assert_eq!(first.ok()["accepted"], BURST);
    assert_eq!(
        first.header("ratelimit-policy"),
        Some("\"events\";q=1000;w=1000"),
        "{}",
        first.head
    );
    assert_eq!(parameter(&first, "ratelimit", "events", "r"), 0);
    assert_eq!(parameter(&first, "ratelimit", "events", "t"), 1);

    let counters = |client: &mut Client| {
        let stats = key.get(client, "/stats").ok();
        (stats["received"].clone(), stats["topics"].clone())
    };
    let before = counters(&mut client);
    let many = key.publish(&mut client, &events("b", BURST));
    let seconds = refused(&many);
    let left = parameter(&many, "ratelimit", "events", "r");
    assert!(seconds + left >= BURST as u64, "{}", many.head);
    assert!(
        many.json()["detail"]
            .as_str()
            .unwrap()
            .contains("the limit of events, 1 a second")
    );
    // Nothing is stored or counted, and a duplicate is refused as well: it is work.
    assert_eq!(counters(&mut client), before);
    assert_eq!(key.get(&mut client, "/events/limited/b-0").status, 404);
    refused(&key.publish(&mut client, &events("a", BURST)));

    // Three are there in three seconds at most. A refusal takes nothing from them, however often it is tried.
    eventually("three events are let through", || {
        let answer = key.publish(&mut client, &events("c", 3));
        if answer.status == 200 {
            return Some(());
        }
        assert!(refused(&answer) <= 3, "{}", answer.head);
        None
    });
    assert_eq!(key.get(&mut client, "/events/limited/c-2").status, 200);
}

#[test]
fn a_request_that_could_never_pass_is_too_large() {
    let folder = Folder::new();
    let key = create(&folder, &SLOW);
    let server = Server::start_in(folder, &[]);
    let mut client = server.client();
    let answer = key.publish(&mut client, &events("a", BURST + 1));
    let problem = answer.problem(413);
    assert_eq!(problem["type"], "/problems/too-many-events");
    let detail = problem["detail"].as_str().unwrap();
    assert!(
        detail.contains("1001 events") && detail.contains("at most 1000"),
        "{detail}"
    );
    assert_eq!(answer.header("retry-after"), None);
    // It took nothing.
    key.publish(&mut client, &events("a", BURST)).ok();
}

#[test]
fn requests_beyond_the_limit_are_refused_on_every_path_but_the_health_checks() {
    let folder = Folder::new();
    let key = create(&folder, &["--requests-per-second", "1", "--requests-burst", "5"]);
    let other = create(&folder, &[]);
    let server = Server::start_in(folder, &[]);
    let mut client = server.client();
    let first = key.get(&mut client, "/topics");
    assert_eq!(first.status, 200);
    assert_eq!(first.header("ratelimit-policy"), Some("\"requests\";q=5;w=5"));
    assert_eq!(parameter(&first, "ratelimit", "requests", "r"), 4);
    for path in [
        "/events",
        "/stats",
        "/metrics",
        "/",
        "/openapi.json",
        "/no/such/path",
    ] {
        let answer = eventually("the limit is reached", || {
            let answer = key.get(&mut client, path);
            (answer.status == 429).then_some(answer)
        });
        assert_eq!(refused(&answer), 1, "{path}");
        assert_eq!(parameter(&answer, "ratelimit", "requests", "r"), 0);
        assert_eq!(parameter(&answer, "ratelimit-policy", "requests", "q"), 5);
    }
    // A publish that is refused for its request stores nothing.
    let prefix = eventually("a publish is refused", || {
        let prefix = format!("p{}", std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos());
        let answer = key.publish(&mut client, &events(&prefix, 1));
        (answer.status == 429).then_some(prefix)
    });
    for path in ["/health", "/readyz", "/livez"] {
        for _ in 0..10 {
            let answer = key.get(&mut client, path);
            assert_eq!(answer.status, 200, "{path}");
            assert_eq!(answer.header("ratelimit-policy"), None, "{path}");
        }
    }
    // Somebody else is not disturbed, and is told of no limit, having none.
    for _ in 0..10 {
        let answer = other.get(&mut client, &format!("/events/limited/{prefix}-0"));
        assert_eq!(answer.status, 404);
        assert_eq!(answer.header("ratelimit-policy"), None);
        assert_eq!(answer.header("ratelimit"), None);
    }
    eventually("it goes on", || {
        (key.get(&mut client, "/topics").status == 200).then_some(())
    });
}

#[test]
fn limits_change_while_the_server_runs_and_what_is_used_up_stays_so() {
    let folder = Folder::new();
    let first = create(&folder, &SLOW);
    let second = create(&folder, &SLOW);
    let server = Server::start_in(folder, &[]);
    let mut client = server.client();
    first.publish(&mut client, &events("a", BURST)).ok();
    refused(&first.publish(&mut client, &events("b", BURST)));
    second.publish(&mut client, &events("c", BURST)).ok();

    // The server reads the file again, for another key.
    create(server.folder(), &[]).known(&mut client);
    refused(&first.publish(&mut client, &events("b", BURST)));

    let changed = keys(
        server.folder(),
        &[
            "limit",
            &first.id,
            "--events-per-second",
            "0",
            "--requests-per-second",
            "100",
        ],
    );
    assert_eq!(changed["events_per_second"], 0);
    assert_eq!(changed["requests_per_second"], 100);
    assert_eq!(changed["requests_burst"], 100);
    assert!(changed.get("key").is_none(), "the secret is not shown again");
    let answer = eventually("the limit is gone", || {
        let answer = first.publish(&mut client, &events("b", BURST));
        (answer.status == 200).then_some(answer)
    });
    assert_eq!(answer.header("ratelimit-policy"), Some("\"requests\";q=100;w=1"));
    refused(&second.publish(&mut client, &events("d", BURST)));

    let listed = keys(server.folder(), &["list"]);
    assert_eq!(listed[1]["events_per_second"], 1);
    assert_eq!(listed[1]["events_burst"], BURST);
    assert_eq!(listed[2]["events_per_second"], Value::Null);
    let text = shell(oncelog(server.folder()).args(["keys", "list"]));
    let lines: Vec<Vec<_>> = text
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    for words in [
        "events no limit",
        "requests 100 a second, 100 at once",
        "events 1 a second, 1000 at once",
    ] {
        let words: Vec<_> = words.split(' ').collect();
        assert!(lines.contains(&words), "{words:?} is not in\n{text}");
    }
    for wrong in [
        &["limit", &first.id][..],
        &["limit", &first.id, "--events-burst", "5"],
        &[
            "limit",
            &first.id,
            "--events-per-second",
            "5",
            "--events-burst",
            "4",
        ],
        &["limit", &first.id, "--events-per-second", "fast"],
    ] {
        let output = run(oncelog(server.folder()).arg("keys").args(wrong));
        assert_eq!(output.status.code(), Some(2), "{wrong:?}: {output:?}");
    }
    assert_eq!(keys(server.folder(), &["list"]), listed, "nothing has changed");
}

#[test]
fn the_settings_are_for_keys_that_set_nothing_and_for_all_without_a_key_together() {
    let settings = [("RATE_LIMIT_EVENTS", "1"), ("RATE_LIMIT_EVENTS_BURST", "1000")];
    let server = Server::start_in(Folder::new(), &settings);
    let mut client = server.client();
    let publish = |client: &mut Client, prefix: &str, count: usize| {
        let body = Event::wrapped(&events(prefix, count));
        client.post("/publish", "application/json", &body)
    };
    publish(&mut client, "a", BURST).ok();
    // Whoever has no key shares one limit.
    refused(&publish(&mut server.client(), "b", BURST));
    publish(&mut client, "b", BURST + 1).problem(413);

    let plain = create(server.folder(), &[]);
    let free = create(server.folder(), &["--events-per-second", "0"]);
    eventually("the keys count", || {
        (client.get("/problems/rate-limited").status == 401).then_some(())
    });
    free.known(&mut client);
    plain.publish(&mut client, &events("c", BURST)).ok();
    refused(&plain.publish(&mut client, &events("d", BURST)));
    for prefix in ["d", "e", "f"] {
        let answer = free.publish(&mut client, &events(prefix, BURST));
        answer.ok();
        assert_eq!(answer.header("ratelimit-policy"), None);
    }
}

#[test]
fn metrics_count_by_key() {
    let folder = Folder::new();
    let key = create(&folder, &SLOW);
    let reader = create(&folder, &[]);
    let server = Server::start_in(folder, &[]);
    let mut client = server.client();
    key.publish(&mut client, &events("a", 7)).ok();
    key.publish(&mut client, &events("a", 7)).ok();
    refused(&key.publish(&mut client, &events("b", BURST)));
    key.publish(&mut client, &events("b", BURST + 1)).problem(413);
    let text = reader.get(&mut client, "/metrics").text().to_owned();
    for (name, labels, value) in [
        ("requests", format!("key=\"{}\"", key.id), 4),
        ("requests", format!("key=\"{}\"", reader.id), 1),
        ("requests", "key=\"anonymous\"".to_owned(), 0),
        ("events", format!("key=\"{}\"", key.id), 14),
        ("events", format!("key=\"{}\"", reader.id), 0),
        ("refused", format!("key=\"{}\",limit=\"events\"", key.id), 2),
        ("refused", format!("key=\"{}\",limit=\"requests\"", key.id), 0),
    ] {
        let sample = format!("oncelog_key_{name}_total{{{labels}}} {value}\n");
        assert!(text.contains(&sample), "{sample} is not in\n{text}");
    }
    let counted = "oncelog_http_requests_total{route=\"/publish\",status=\"429\"} 1\n";
    assert!(text.contains(counted), "{text}");
}

#[test]
fn our_commands_wait_and_go_on() {
    let folder = Folder::new();
    let slow = create(&folder, &["--events-per-second", "3", "--events-burst", "5"]);
    let faster = create(
        &folder,
        &["--requests-per-second", "50", "--events-per-second", "2000"],
    );
    let server = Server::start_in(folder, &[]);
    let command = |key: &Key, arguments: &[&str]| {
        let secret = key.authorization.strip_prefix("Bearer ").expect("a key");
        let mut command = oncelog(server.folder());
        command
            .args(arguments)
            .args(["--url", &server.url()])
            .env("ONCELOG_KEY", secret);
        shell(&mut command)
    };
    let path = server.folder().path().join("events.ndjson");
    std::fs::write(path, Event::lines(&events("line", 16))).expect("written");
    // A request of eight could never pass.
    let arguments = ["publish", "events.ndjson", "--batch", "8", "--json"];
    let published = command(&slow, &[&arguments[..], &["--connections", "1"]].concat());
    let published: Value = serde_json::from_str(&published).expect("JSON");
    assert_eq!(published["accepted"], 16, "{published}");
    assert_eq!(published["bad_lines"], 0, "{published}");
    let retries = published["retries"].as_u64().expect("a number");
    assert!(retries > 0, "{published}");
    let metrics = slow.get(&mut server.client(), "/metrics").text().to_owned();
    for (status, count) in [("200", 4), ("413", 1), ("429", retries)] {
        // It learns once what is too large.
        let sample =
            format!("oncelog_http_requests_total{{route=\"/publish\",status=\"{status}\"}} {count}\n");
        assert!(metrics.contains(&sample), "{sample} is not in\n{metrics}");
    }
    assert_eq!(command(&faster, &["export"]).lines().count(), 16);
    command(&faster, &["simulate", "--events", "1000"]);
}
