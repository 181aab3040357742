//! `simulate`, `bench`, `health` and `stats` tell the truth, and say it in their exit code.

use crate::support::{Reaction, SLOW_ENOUGH, Server, folder, json, line, run, scripted, text};

#[test]
fn simulate_passes_twice_on_one_server() {
    let folder = folder();
    let server = Server::start(folder.path());
    for _ in 0..2 {
        let arguments = [
            "simulate",
            "--events",
            "2000",
            "--connections",
            "4",
            "--json",
            "--url",
            &server.url,
        ];
        let output = run(folder.path(), &arguments);
        let report = json(&output);
        assert_eq!(report["passed"], true, "{report}");
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(report["results"].as_array().unwrap().len(), 11);
    }
}

#[test]
fn simulate_sends_as_many_events_in_such_batches_as_it_is_told() {
    let folder = folder();
    let server = Server::start(folder.path());
    let arguments = [
        "simulate",
        "--events",
        "25000",
        "--batch",
        "100-200",
        "--duplicates",
        "0.35",
        "--json",
        "--url",
        &server.url,
    ];
    let output = run(folder.path(), &arguments);
    let report = json(&output);
    assert_eq!(report["passed"], true, "{report}");
    let total = |name: &str| report["total"][name].as_u64().unwrap();
    let sent = total("received") + total("unanswered");
    // Each of the connections may end with a batch that is not needed in full.
    assert!((25_000..25_000 + 16 * 200).contains(&sent), "{report}");
    assert!(total("duplicates") * 100 >= total("received") * 35, "{report}");

    let refused = run(folder.path(), &["simulate", "--batch", "200-100"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        text(&refused.stderr).contains("as in 100-200"),
        "{}",
        text(&refused.stderr)
    );
}

#[test]
fn simulate_notices_a_server_that_counts_wrong() {
    let stats = "{\"received\":0,\"unique_processed\":0,\"duplicate_dropped\":0,\"conflicts\":0,\"topics\":[],\
        \"queue_size\":0,\"uptime_human\":\"0h 0m 0s\"}";
    let mut script = vec![
        Reaction::Answer("404 Not Found", String::new()),
        Reaction::Answer(
            "200 OK",
            "{\"events\":[],\"next\":\"c\",\"caught_up\":true}".to_owned(),
        ),
        Reaction::Answer("200 OK", stats.to_owned()),
        // The first event of the first scenario is said to be a duplicate.
        Reaction::Answer(
            "200 OK",
            "{\"received\":1,\"accepted\":0,\"duplicates\":1}".to_owned(),
        ),
    ];
    script.extend((0..100).map(|_| Reaction::Close));
    let (url, _server) = scripted(script);
    let output = run(folder().path(), &["simulate", "--events", "1000", "--url", &url]);
    assert_eq!(output.status.code(), Some(1));
    let report = text(&output.stdout);
    let line = report.lines().next().unwrap();
    assert!(line.starts_with("FAIL  one event, sent three times"), "{report}");
    assert!(
        line.contains("expected 1 sent, 1 accepted, 0 duplicates"),
        "{report}"
    );
}

#[test]
fn simulate_says_at_once_that_a_server_takes_too_few_events_in_a_request() {
    let folder = folder();
    std::fs::write(folder.path().join(".env"), "QUEUE_MAX_SIZE=69").unwrap();
    let server = Server::start(folder.path());
    let output = run(folder.path(), &["simulate", "--url", &server.url]);
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    assert!(message.contains("QUEUE_MAX_SIZE=70 or more"), "{message}");
    let stats = json(&run(folder.path(), &["stats", "--json", "--url", &server.url]));
    assert_eq!(stats["received"], 0);
}

#[test]
fn bench_reports_exact_counts_in_both_loops_and_both_shapes() {
    let folder = folder();
    let server = Server::start(folder.path());
    for more in [&["--batch", "50"][..], &["--batch", "1", "--rate", "4000"]] {
        let arguments = [
            &[
                "bench",
                "--max-mean",
                SLOW_ENOUGH,
                "--events",
                "6000",
                "--json",
                "--url",
                &server.url,
            ],
            more,
        ]
        .concat();
        let output = run(folder.path(), &arguments);
        let report = json(&output);
        assert_eq!(output.status.code(), Some(0), "{report}");
        assert_eq!(report["sent"], 6_000);
        assert_eq!(report["errors"], 0);
        let times = &report["response_milliseconds"];
        assert!(times["p50"].as_f64().unwrap() > 0.0, "{times}");
        assert!(
            times["max"].as_f64().unwrap() >= times["p99"].as_f64().unwrap(),
            "{times}"
        );
    }
}

#[test]
fn bench_fails_when_a_check_fails_and_repeats_a_seed_as_duplicates() {
    let folder = folder();
    let server = Server::start(folder.path());
    let arguments = [
        "bench",
        "--max-mean",
        SLOW_ENOUGH,
        "--events",
        "5000",
        "--seed",
        "7",
        "--url",
        &server.url,
    ];
    let output = run(folder.path(), &arguments);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stdout));
    // The same seed again: all is there already, which is as it must be.
    let output = run(folder.path(), &arguments);
    let report = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{report}");
    assert!(report.contains(" there already)"), "{report}");
    assert!(report.contains("\nduplication rate  100.0 %\n"), "{report}");

    let output = run(
        folder.path(),
        &[&arguments[..], &["--min-events", "5001"]].concat(),
    );
    assert_eq!(output.status.code(), Some(1));
    let report = text(&output.stdout);
    assert!(
        report.contains("\n  FAIL  at least 5,001 events received  5,000\n"),
        "{report}"
    );
}

#[test]
fn health_tells_by_its_exit_code_and_gives_the_reason() {
    let folder = folder();
    let server = Server::start(folder.path());
    let output = run(folder.path(), &["health", "--url", &server.url]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stdout), "healthy\n");
    let url = server.url.clone();
    assert_eq!(server.stop(), Some(0));
    let output = run(folder.path(), &["health", "--url", &url]);
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    let expected = format!("error: cannot reach {url}: connection refused; is the server running");
    assert!(message.starts_with(&expected), "{message}");

    let unhealthy = "{\"status\":\"unhealthy\",\"reason\":\"the disk is full\"}";
    let (url, _server) = scripted(vec![Reaction::Answer(
        "503 Service Unavailable",
        unhealthy.to_owned(),
    )]);
    let output = run(folder.path(), &["health", "--url", &url]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stdout), "unhealthy: the disk is full\n");
}

#[test]
fn stats_shows_the_servers_counters() {
    let folder = folder();
    let server = Server::start(folder.path());
    let output = run(folder.path(), &["stats", "--url", &server.url]);
    assert!(text(&output.stdout).starts_with("received            0\n"));
    let output = run(folder.path(), &["stats", "--json", "--url", &server.url]);
    assert_eq!(json(&output)["received"], 0);

    // A topic's name may hold anything; a terminal is shown none of its control characters.
    let file = folder.path().join("events.ndjson");
    std::fs::write(&file, line("\\u001b[2J\\nqueue", 1)).unwrap();
    let output = run(folder.path(), &["publish", "events.ndjson", "--url", &server.url]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let output = run(folder.path(), &["stats", "--url", &server.url]);
    let shown = text(&output.stdout);
    assert!(
        shown.ends_with("\ntopics              1 (\\u{1b}[2J\\nqueue)\n"),
        "{shown}"
    );
}

#[test]
fn a_server_that_is_not_oncelog_is_an_error() {
    let (url, _server) = scripted(vec![Reaction::Answer("200 OK", "<html>".to_owned())]);
    let output = run(folder().path(), &["stats", "--url", &url]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("an answer that is not oncelog's"));
}

#[test]
fn completions_are_a_script() {
    let output = run(folder().path(), &["completions", "bash"]);
    assert!(text(&output.stdout).contains("complete -F _oncelog"));
}
