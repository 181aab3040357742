//! The subcommands do against a real server what they promise: nothing lost, nothing twice, exit codes for scripts.

use crate::harness::{Event, Folder, Server, eventually, identities, oncelog, read_all, run, run_with_input};
use serde_json::Value;
use std::{
    io::{BufRead, BufReader},
    process::{Command, Output, Stdio},
    sync::mpsc,
    thread,
};

/// A subcommand against the server.
fn command(server: &Server, arguments: &[&str]) -> Command {
    let mut command = oncelog(server.folder());
    command.args(arguments).args(["--url", &server.url()]);
    command
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

#[track_caller]
fn exits(output: &Output, code: i32) {
    assert_eq!(
        output.status.code(),
        Some(code),
        "{}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
}

#[track_caller]
fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(&output.stdout)))
}

#[test]
fn publish_sends_every_good_line_once_and_names_the_bad_ones() {
    let server = Server::start();
    let mut lines = Vec::new();
    for number in 0..1_200 {
        lines.extend_from_slice(&Event::lines(&[Event::new("t", &format!("id-{number}"))]));
    }
    lines.extend_from_slice(b"this is no JSON\n\n");
    lines.extend_from_slice(&Event::lines(&[Event::new("t", "id-7"), Event::new("t", "last")]));
    lines.extend_from_slice(b"{\"topic\":\"\"}\n");

    let output = run_with_input(&mut command(&server, &["publish", "--json"]), &lines);
    exits(&output, 1);
    let said = text(&output.stderr);
    for line in ["1201", "1205"] {
        assert!(said.contains(line), "line {line} is named: {said}");
    }
    let summary = json(&output);
    assert_eq!(
        ["sent", "accepted", "duplicates", "conflicts", "bad_lines"]
            .map(|name| summary[name].as_u64().unwrap()),
        [1_202, 1_201, 1, 0, 2],
        "{summary}"
    );
    assert_eq!(server.client().counters(), [1_202, 1_201, 1, 0]);

    // From a file, and again: everything is there already.
    let file = server.folder().path().join("events.ndjson");
    std::fs::write(&file, &lines).unwrap();
    let output = run(&mut command(
        &server,
        &["publish", file.to_str().unwrap(), "--json"],
    ));
    exits(&output, 1);
    assert_eq!(json(&output)["accepted"], 0);
    assert_eq!(read_all(&mut server.client(), "limit=1000&").len(), 1_201);
}

#[test]
fn publish_goes_on_when_the_server_crashes_and_comes_back() {
    // The port must stay the same, so it is asked for by number from the second start on.
    let server = Server::start();
    let port = server.address().port().to_string();
    let folder = server.folder().clone();
    let url = server.url();
    let events: Vec<_> = (0..20_000)
        .map(|number| Event::new("t", &number.to_string()))
        .collect();
    let lines = Event::lines(&events);
    let publisher = {
        let folder = folder.clone();
        thread::spawn(move || {
            let mut command = oncelog(&folder);
            command.args(["publish", "--json", "--batch", "50", "--url", &url]);
            run_with_input(&mut command, &lines)
        })
    };
    let mut client = server.client();
    eventually("some events are stored", || {
        (client.counters()[1] > 1_000).then_some(())
    });
    server.kill9();
    drop(server);
    let server = Server::start_in(folder, &[("PORT", &port)]);
    let output = publisher.join().expect("the publisher");
    exits(&output, 0);
    assert_eq!(json(&output)["sent"], 20_000);
    let stored = read_all(&mut server.client(), "order=asc&limit=1000&");
    assert_eq!(stored.len(), 20_000);
}

#[test]
fn simulate_finds_every_count_as_it_must_be() {
    let server = Server::start();
    let output = run(&mut command(&server, &["simulate", "--events", "3000", "--json"]));
    exits(&output, 0);
    assert_eq!(json(&output)["passed"], true);
    // It can be repeated on the same store, and people can read it.
    let output = run(&mut command(&server, &["simulate", "--events", "2000"]));
    exits(&output, 0);
    assert!(!text(&output.stdout).is_empty());
}

#[test]
fn bench_reports_what_it_measured_and_fails_when_a_check_fails() {
    let server = Server::start();
    let output = run(&mut command(&server, &["bench", "--json"]));
    exits(&output, 0);
    let report = json(&output);
    assert_eq!(report["passed"], true);
    assert_eq!(report["errors"], 0);
    assert_eq!(report["sent"], 20_000);
    let [received, unique, duplicates, _] = server.client().counters();
    assert_eq!(received, 20_000);
    assert_eq!(report["accepted"], unique);
    assert_eq!(report["duplicates"], duplicates);

    let output = run(&mut command(&server, &["bench", "--events", "1000"]));
    exits(&output, 1);
    let open_loop = [
        "bench", "--events", "5000", "--batch", "10", "--rate", "500", "--json",
    ];
    let output = run(&mut command(&server, &open_loop));
    exits(&output, 0);
}

#[test]
fn tail_prints_each_new_event_once_as_it_comes() {
    let server = Server::start();
    server.client().publish(&[Event::new("before", "1")]);
    let mut child = command(&server, &["tail", "--from-start"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (sender, lines) = mpsc::channel();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let reader = thread::spawn(move || {
        for line in stdout.lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let next = || lines.recv_timeout(crate::harness::PATIENCE).expect("a line");
    let mut seen: Vec<Value> = vec![serde_json::from_str(&next()).unwrap()];
    for batch in 0..5 {
        let events: Vec<_> = (0..10)
            .map(|number| Event::new("t", &format!("{batch}-{number}")))
            .collect();
        server.client().publish(&events);
        for _ in 0..10 {
            seen.push(serde_json::from_str(&next()).unwrap());
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    reader.join().unwrap();
    let stored = read_all(&mut server.client(), "order=asc&");
    assert_eq!(identities(&seen), identities(&stored));
}

#[test]
fn export_and_publish_make_the_same_store_again() {
    let (server, copy) = (Server::start(), Server::start());
    let events: Vec<_> = (0..2_500)
        .map(|number| {
            Event::new(&format!("topic-{}", number % 7), &format!("é {number}"))
                .at("2025-10-23T12:00:00.120+02:00")
                .with_payload(r#"{ "n" : 1.0e0, "text":"\u00e9\n", "list":[ ] }"#)
        })
        .collect();
    for chunk in events.chunks(500) {
        server.client().publish(chunk);
    }
    let file = server.folder().path().join("exported.ndjson");
    let output = run(&mut command(&server, &["export", file.to_str().unwrap()]));
    exits(&output, 0);
    let output = run(&mut command(
        &copy,
        &["publish", file.to_str().unwrap(), "--connections", "1"],
    ));
    exits(&output, 0);
    let without_times = |server: &Server| {
        let mut events = read_all(&mut server.client(), "order=asc&limit=1000&");
        for event in &mut events {
            event.as_object_mut().unwrap().remove("processed_at");
        }
        events
    };
    assert_eq!(without_times(&copy), without_times(&server));

    // The other way in: from one standard output to the next standard input, one topic only.
    let output = run(&mut command(&server, &["export", "--topic", "topic-3"]));
    exits(&output, 0);
    let output = run_with_input(&mut command(&copy, &["publish", "--json"]), &output.stdout);
    exits(&output, 0);
    assert_eq!(json(&output)["accepted"], 0);
    assert_eq!(json(&output)["duplicates"], 357);
}

#[test]
fn stats_and_health_tell_people_and_scripts() {
    let server = Server::start();
    server
        .client()
        .publish(&[Event::new("t", "1"), Event::new("t", "1")]);
    let output = run(&mut command(&server, &["stats", "--json"]));
    exits(&output, 0);
    assert_eq!(json(&output)["duplicate_dropped"], 1);
    let output = run(&mut command(&server, &["stats"]));
    exits(&output, 0);
    assert!(text(&output.stdout).contains("duplicates"));

    exits(&run(&mut command(&server, &["health"])), 0);
    server.kill9();
    let output = run(&mut command(&server, &["health"]));
    exits(&output, 1);
    assert!(
        text(&output.stderr).contains(&server.url()),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn wrong_usage_is_exit_code_2_and_says_what_is_wrong() {
    let folder = Folder::new();
    for (arguments, part) in [
        (&["publish", "--url", "ftp://x"][..], "--url"),
        (&["serve", "--port", "99999"], "port"),
        (&["serve", "--colour"], "--colour"),
        (&["nothing"], "nothing"),
        (&["bench", "--events", "0"], "--events"),
    ] {
        let output = run(oncelog(&folder).env_remove("PORT").args(arguments));
        exits(&output, 2);
        assert!(
            text(&output.stderr).contains(part),
            "{part}: {}",
            text(&output.stderr)
        );
    }
}

#[test]
fn every_subcommand_has_help_with_an_example_and_completions_exist_for_shells() {
    let folder = Folder::new();
    let help = run(oncelog(&folder).arg("--help"));
    exits(&help, 0);
    for name in [
        "serve",
        "publish",
        "simulate",
        "bench",
        "tail",
        "stats",
        "health",
        "backup",
        "verify",
        "export",
        "completions",
    ] {
        assert!(text(&help.stdout).contains(name), "{name}");
        let output = run(oncelog(&folder).args([name, "--help"]));
        exits(&output, 0);
        assert!(
            text(&output.stdout).contains(&format!("oncelog {name}")),
            "{}",
            text(&output.stdout)
        );
        assert!(
            text(&output.stdout).contains("Example"),
            "{name}: {}",
            text(&output.stdout)
        );
    }
    for shell in ["bash", "zsh", "fish"] {
        let output = run(oncelog(&folder).args(["completions", shell]));
        exits(&output, 0);
        assert!(text(&output.stdout).contains("oncelog"));
    }
}
