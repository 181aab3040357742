//! The metrics are what Prometheus expects, bounded in number, and what the dashboard and the alerts in `deploy/` use.
//! Checked with the real `promtool` against the real program.

use crate::harness::{Client, Event, Redis, Server, eventually, run_with_input, shell};
use std::{collections::BTreeSet, fs, path::PathBuf, process::Command};

/// In the checkout.
fn deployed(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("deploy")
        .join(path)
}

/// A server that has stored events, dropped duplicates, refused a request and answered queries.
fn busy_server() -> Server {
    kept_busy(Server::start())
}

fn kept_busy(server: Server) -> Server {
    let mut client = server.client();
    let hard = "quoted \"topic\" with \\ and\na line break";
    client.publish(&[Event::new("t", "1"), Event::new("t", "1"), Event::new(hard, "1")]);
    client.publish(&[Event::new("t", "1").with_payload(r#"{"other":1}"#)]);
    client.post("/publish", "application/json", b"{").problem(400);
    client.get("/events?topic=t").ok();
    client.get("/no/such/path").problem(404);
    server
}

/// What Prometheus programs that know no OpenMetrics are answered.
fn metrics(client: &mut Client) -> String {
    let answer = client.get("/metrics");
    assert_eq!(answer.status, 200);
    answer.text().to_owned()
}

/// The value of the sample with this name and labels, as they are written.
fn sample(text: &str, series: &str) -> f64 {
    text.lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
        .unwrap_or_else(|| panic!("{series} is not in\n{text}"))
}

#[test]
fn promtool_has_nothing_to_say_about_them() {
    let redis = Redis::start();
    let server = kept_busy(Server::start_with(&[("BROKER_URL", &redis.url())]));
    let text = metrics(&mut server.client());
    let checked = run_with_input(
        Command::new("promtool").args(["check", "metrics"]),
        text.as_bytes(),
    );
    let said = [checked.stdout, checked.stderr].concat();
    assert!(
        checked.status.success() && said.is_empty(),
        "{}\n{text}",
        String::from_utf8_lossy(&said)
    );
}

#[test]
fn what_is_published_and_read_is_measured() {
    let server = busy_server();
    let mut client = server.client();
    let text = metrics(&mut client);
    for (series, value) in [
        ("oncelog_publishes_total{result=\"committed\"}", 2.0),
        ("oncelog_publishes_total{result=\"queue_full\"}", 0.0),
        ("oncelog_publishes_total{result=\"store_failed\"}", 0.0),
        ("oncelog_topic_events_total{topic=\"t\",outcome=\"stored\"}", 1.0),
        (
            "oncelog_topic_events_total{topic=\"t\",outcome=\"duplicate\"}",
            1.0,
        ),
        (
            "oncelog_topic_events_total{topic=\"t\",outcome=\"conflict\"}",
            1.0,
        ),
        (
            "oncelog_topic_events_total{topic=\"quoted \\\"topic\\\" with \\\\ and\\na line break\",outcome=\"stored\"}",
            1.0,
        ),
        ("oncelog_commit_events_sum", 4.0),
        ("oncelog_commit_duration_seconds_count", 2.0),
        ("oncelog_commit_size_bytes_count", 2.0),
        ("oncelog_commit_failures_total", 0.0),
        ("oncelog_queue_events", 0.0),
        ("oncelog_queue_bytes", 0.0),
        ("oncelog_queue_wait_seconds_count", 0.0),
        ("oncelog_index_ids", 2.0),
        ("oncelog_index_tail_events", 2.0),
        ("oncelog_index_tier_segments{tier=\"0\"}", 0.0),
        ("oncelog_index_merges_total", 0.0),
        (
            "oncelog_http_requests_total{route=\"/publish\",status=\"200\"}",
            2.0,
        ),
        (
            "oncelog_http_requests_total{route=\"/publish\",status=\"400\"}",
            1.0,
        ),
        ("oncelog_http_requests_total{route=\"other\",status=\"404\"}", 1.0),
    ] {
        assert_eq!(sample(&text, series).to_string(), value.to_string(), "{series}");
    }
    for above_zero in [
        "oncelog_commit_duration_seconds_sum",
        "oncelog_commit_size_bytes_sum",
        "oncelog_read_duration_seconds_count",
        "oncelog_store_bytes",
        "process_resident_memory_bytes",
        "process_open_fds",
        "process_max_fds",
        "process_threads",
    ] {
        assert!(sample(&text, above_zero) > 0.0, "{above_zero}\n{text}");
    }
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs_f64();
    let age = now - sample(&text, "process_start_time_seconds");
    // The system says it in hundredths of a second, from a start that it rounds to a second.
    assert!((-2.0..600.0).contains(&age), "started {age} s ago");
    assert!(
        !text.contains("/no/such/path"),
        "a path that a client made up is a label"
    );
    assert!(sample(&text, "process_cpu_seconds_total") >= 0.0);
}

#[test]
fn what_goes_through_the_broker_is_measured() {
    let redis = Redis::start();
    redis.occupy();
    let settings = [("BROKER_URL", redis.url()), ("BROKER_MAX_EVENTS", "5".to_owned())];
    let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
    let server = Server::start_with(&settings);
    let mut client = server.client();
    let events: Vec<_> = ["1", "2", "3"].iter().map(|id| Event::new("t", id)).collect();
    for status in [202, 503] {
        let answer = client.post("/publish?ack=queued", "application/json", &Event::array(&events));
        assert_eq!(answer.status, status);
    }
    let no_event = ["XADD", "{oncelog}:stream:5", "*", "name", "value"];
    let _: String = redis.call(&no_event);
    let mut settle = |expected: &[(&str, f64)]| {
        eventually("the metrics follow", || {
            let text = metrics(&mut client);
            let wrong = expected
                .iter()
                .find(|(series, value)| sample(&text, series) != *value);
            wrong.is_none().then_some(text)
        })
    };
    let text = settle(&[
        ("oncelog_broker_queued_events", 3.0),
        ("oncelog_broker_leases", 0.0),
        ("oncelog_broker_publishes_total{result=\"queued\"}", 1.0),
        ("oncelog_broker_publishes_total{result=\"full\"}", 1.0),
        ("oncelog_broker_publishes_total{result=\"unavailable\"}", 0.0),
        ("oncelog_broker_consumed_events_total", 0.0),
        ("oncelog_broker_limit_events", 5.0),
        ("oncelog_broker_connected", 1.0),
    ]);
    assert!(sample(&text, "oncelog_broker_queued_bytes") > 300.0, "{text}");
    eventually("time passes", || {
        (sample(&metrics(&mut server.client()), "oncelog_broker_lag_seconds") > 0.1).then_some(())
    });
    redis.give_free();
    settle(&[
        ("oncelog_broker_queued_events", 0.0),
        ("oncelog_broker_queued_bytes", 0.0),
        ("oncelog_broker_lag_seconds", 0.0),
        ("oncelog_broker_leases", 16.0),
        ("oncelog_broker_consumed_events_total", 3.0),
        ("oncelog_broker_commits_total", 1.0),
        ("oncelog_broker_redelivered_entries_total", 1.0),
        ("oncelog_broker_buried_letters_total", 1.0),
        ("oncelog_broker_dead_letters", 1.0),
    ]);
    redis.kill9();
    settle(&[("oncelog_broker_connected", 0.0)]);
}

#[test]
fn the_number_of_topics_with_metrics_is_bounded() {
    let server = Server::start();
    let mut client = server.client();
    // One has the name under which the others are counted; were it a series of its own, Prometheus would refuse all.
    let topics: Vec<String> = (0..149)
        .map(|number| format!("topic-{number}"))
        .chain(["other".to_owned()])
        .rev()
        .collect();
    let events: Vec<_> = topics.iter().map(|topic| Event::new(topic, "1")).collect();
    client.publish(&events);
    client.publish(&events);
    let named = |text: &str| -> Vec<String> {
        text.lines()
            .filter_map(|line| line.strip_prefix("oncelog_topic_events_total{topic=\""))
            .filter_map(|rest| rest.strip_suffix("\",outcome=\"stored\"} 1"))
            .map(str::to_owned)
            .collect()
    };
    let text = metrics(&mut client);
    // `other` was the first of 100, and 50 came after them.
    assert_eq!(named(&text), topics[1..100]);
    for outcome in ["stored", "duplicate"] {
        let series = format!("oncelog_topic_events_total{{topic=\"other\",outcome=\"{outcome}\"}}");
        assert_eq!(sample(&text, &series) as u64, 51, "{series}");
        assert_eq!(text.matches(&series).count(), 1, "{series}");
    }
    // A topic that comes later, or sorts before them, takes nobody's place, nor does a restart.
    client.publish(&[Event::new("a", "1")]);
    let server = server.restart();
    assert_eq!(named(&metrics(&mut server.client())), topics[1..100]);
}

#[test]
fn the_alerts_fire_when_they_should() {
    let folder = deployed("prometheus");
    for arguments in [
        ["check", "rules", "alerts.yml"],
        ["check", "config", "prometheus.yml"],
        ["test", "rules", "alerts_test.yml"],
    ] {
        shell(Command::new("promtool").current_dir(&folder).args(arguments));
    }
    let named = |file: &str, key: &str| -> BTreeSet<String> {
        fs::read_to_string(folder.join(file))
            .unwrap()
            .lines()
            .filter_map(|line| Some(line.trim().strip_prefix(key)?.to_owned()))
            .collect()
    };
    let alerts = named("alerts.yml", "- alert: ");
    assert!(!alerts.is_empty());
    assert_eq!(
        alerts,
        named("alerts_test.yml", "alertname: "),
        "each alert has a test"
    );
}

/// A panel or an alert on a metric that is misspelt, or was renamed, shows and says nothing, for ever.
#[test]
fn what_the_dashboard_and_the_alerts_ask_for_is_there() {
    let redis = Redis::start();
    let server = kept_busy(Server::start_with(&[("BROKER_URL", &redis.url())]));
    let text = metrics(&mut server.client());
    let there: BTreeSet<&str> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(['{', ' ']).next())
        .collect();
    let dashboard = fs::read_to_string(deployed("grafana/oncelog.json")).unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&dashboard).unwrap();
    let expressions = dashboard["panels"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|panel| panel["targets"].as_array())
        .flatten()
        .map(|target| target["expr"].as_str().unwrap().to_owned());
    let alerts = fs::read_to_string(deployed("prometheus/alerts.yml")).unwrap();
    let mut asked = BTreeSet::new();
    for text in expressions.chain([alerts]) {
        asked.extend(
            text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                .filter(|word| word.starts_with("oncelog_") || word.starts_with("process_"))
                .map(str::to_owned),
        );
    }
    assert!(asked.len() > 30, "{asked:?}");
    let missing: Vec<_> = asked
        .iter()
        .filter(|name| !there.contains(name.as_str()))
        .collect();
    assert!(missing.is_empty(), "{missing:?} are not in\n{text}");
}
