//! `publish` does not end before every line is stored or named.

use crate::support::{Reaction, Server, folder, json, line, oncelog, run, scripted, text};
use std::{fs, io::Write, process::Stdio};

fn acknowledged(received: u64, accepted: u64) -> Reaction {
    let duplicates = received - accepted;
    Reaction::Answer(
        "200 OK",
        format!(
            "{{\"received\":{received},\"accepted\":{accepted},\"duplicates\":{duplicates},\"conflicts\":0}}"
        ),
    )
}

#[test]
fn bad_lines_are_named_and_all_others_are_stored() {
    let folder = folder();
    let server = Server::start(folder.path());
    let mut lines: Vec<String> = (1..=100).map(|id| line("orders", id)).collect();
    lines[9] = "{\"topic\":".to_owned();
    lines[19] = "[]".to_owned();
    lines[49] = lines[49].replace("2025-10-23", "yesterday ");
    lines[99] = lines[99].replace("\"source\"", "\"sauce\"");
    fs::write(folder.path().join("events.ndjson"), lines.join("\n")).unwrap();

    let arguments = [
        "publish",
        "events.ndjson",
        "--batch",
        "30",
        "--json",
        "--url",
        &server.url,
    ];
    let output = run(folder.path(), &arguments);
    assert_eq!(output.status.code(), Some(1));
    let summary = json(&output);
    assert_eq!(summary["sent"], 96);
    assert_eq!(summary["accepted"], 96);
    assert_eq!(summary["bad_lines"], 4);
    let messages = text(&output.stderr);
    assert!(!messages.contains("line 1 column"), "{messages}");
    for (number, word) in [(10, "JSON"), (20, "object"), (50, "timestamp"), (100, "sauce")] {
        let place = format!("events.ndjson, line {number}: ");
        let message = messages.lines().find(|message| message.starts_with(&place));
        assert!(
            message.is_some_and(|message| message.contains(word)),
            "{messages}"
        );
    }

    // The same again after a crash: nothing is stored twice.
    let summary = json(&run(folder.path(), &arguments));
    assert_eq!(summary["accepted"], 0);
    assert_eq!(summary["duplicates"], 96);
}

#[test]
fn standard_input_is_read_and_an_empty_one_is_fine() {
    let folder = folder();
    let server = Server::start(folder.path());
    for (input, accepted) in [(line("orders", 1) + "\n\n", 1), (String::new(), 0)] {
        let mut command = oncelog(folder.path(), &["publish", "--json", "--url", &server.url])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        command.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = command.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(json(&output)["accepted"], accepted);
    }
}

#[test]
fn a_request_is_sent_again_until_it_is_answered() {
    let folder = folder();
    fs::write(folder.path().join("events.ndjson"), line("orders", 1)).unwrap();
    let (url, server) = scripted(vec![
        Reaction::Answer(
            "503 Service Unavailable",
            "{\"detail\":\"the queue is full\"}".to_owned(),
        ),
        Reaction::Close,
        Reaction::Answer("429 Too Many Requests", String::new()),
        acknowledged(1, 0),
    ]);
    let output = run(
        folder.path(),
        &["publish", "events.ndjson", "--json", "--url", &url],
    );
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let summary = json(&output);
    assert_eq!(summary["retries"], 3);
    assert_eq!(summary["duplicates"], 1);
    let bodies = server.join().unwrap();
    assert_eq!(bodies.len(), 4);
    assert!(bodies.iter().all(|body| *body == bodies[0]));
}

#[test]
fn a_refusal_that_names_no_line_is_narrowed_down_to_one() {
    let folder = folder();
    let lines: Vec<String> = (1..=2).map(|id| line("orders", id)).collect();
    fs::write(folder.path().join("events.ndjson"), lines.join("\n")).unwrap();
    let refused = || Reaction::Answer("413 Payload Too Large", "{\"detail\":\"too large\"}".to_owned());
    let (url, server) = scripted(vec![refused(), refused(), acknowledged(1, 1)]);
    let output = run(
        folder.path(),
        &["publish", "events.ndjson", "--json", "--url", &url],
    );
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stderr), "events.ndjson, line 1: too large\n");
    assert_eq!(json(&output)["accepted"], 1);
    assert_eq!(
        server.join().unwrap()[2],
        format!("{{\"events\":[{}]}}", lines[1])
    );
}

#[test]
fn an_answer_that_no_retry_can_change_ends_it_with_the_reason() {
    let folder = folder();
    fs::write(folder.path().join("events.ndjson"), line("orders", 1)).unwrap();
    let (url, _server) = scripted(vec![Reaction::Answer("404 Not Found", "no such page".to_owned())]);
    let output = run(folder.path(), &["publish", "events.ndjson", "--url", &url]);
    assert_eq!(output.status.code(), Some(1));
    let expected = format!("error: {url} answered 404 Not Found: no such page\n");
    assert_eq!(text(&output.stderr), expected);
}

/// Every line of a new topic was called bad, one by one, with the whole file sent again and again.
#[test]
fn a_server_with_too_many_topics_ends_it_and_blames_no_line() {
    let folder = folder();
    let lines: Vec<String> = (1..=3).map(|id| line("orders", id)).collect();
    fs::write(folder.path().join("events.ndjson"), lines.join("\n")).unwrap();
    let problem =
        "{\"type\":\"/problems/too-many-topics\",\"detail\":\"events[1].topic: the store is full\"}";
    let (url, server) = scripted(vec![Reaction::Answer(
        "422 Unprocessable Content",
        problem.to_owned(),
    )]);
    let output = run(folder.path(), &["publish", "events.ndjson", "--url", &url]);
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    assert!(
        message.starts_with(
            "error: events.ndjson, line 2: topic: the store is full. The line is in order; this is a limit"
        ),
        "{message}"
    );
    assert_eq!(server.join().unwrap().len(), 1);
}

#[test]
fn it_gives_up_only_when_it_was_told_to() {
    let folder = folder();
    fs::write(folder.path().join("events.ndjson"), line("orders", 1)).unwrap();
    let busy = Reaction::Answer("503 Service Unavailable", "{\"detail\":\"busy\"}".to_owned());
    let (url, server) = scripted(vec![busy]);
    let arguments = [
        "publish",
        "events.ndjson",
        "--give-up-after",
        "1e-9",
        "--url",
        &url,
    ];
    let output = run(folder.path(), &arguments);
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    assert!(
        message.contains("503 Service Unavailable: busy. Given up after"),
        "{message}"
    );
    assert_eq!(server.join().unwrap().len(), 1);
}

#[test]
fn a_file_that_is_not_there_is_an_error() {
    let folder = folder();
    let output = run(folder.path(), &["publish", "nothing.ndjson"]);
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    assert!(
        message.starts_with("error: cannot read nothing.ndjson: No such file"),
        "{message}"
    );
}
