//! `tail` and `export` hand on every event once, with the bytes that were sent.

use crate::support::{Reaction, Server, folder, line, oncelog, run, scripted, text};
use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::Stdio,
};

fn publish(folder: &Path, server: &Server, lines: &[String]) {
    fs::write(folder.join("events.ndjson"), lines.join("\n")).unwrap();
    let arguments = [
        "publish",
        "events.ndjson",
        "--connections",
        "1",
        "--url",
        &server.url,
    ];
    let output = run(folder, &arguments);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

#[test]
fn what_is_exported_and_published_elsewhere_is_exported_there_alike() {
    let folders = [folder(), folder()];
    let servers = folders.each_ref().map(|folder| Server::start(folder.path()));
    let mut lines: Vec<String> = (0..2_500).map(|id| line("orders", id)).collect();
    lines.extend((0..10).map(|id| line("other/topic é", id)));
    publish(folders[0].path(), &servers[0], &lines);

    let export = |number: usize, more: &[&str]| {
        let arguments = [&["export", "--url", &servers[number].url], more].concat();
        let output = run(folders[number].path(), &arguments);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        text(&output.stdout).to_owned()
    };
    let first = export(0, &[]);
    assert_eq!(first.lines().collect::<Vec<_>>(), lines);
    let copies: Vec<String> = first.lines().map(str::to_owned).collect();
    publish(folders[1].path(), &servers[1], &copies);
    assert_eq!(export(1, &[]), first);

    let of_topic = export(0, &["--topic", "other/topic é", "--to", "2025-10-24T00:00:00Z"]);
    assert_eq!(of_topic.lines().count(), 10);
    assert_eq!(export(0, &["--from", "2025-10-24T00:00:00Z"]), "");
    let full = export(0, &["--full", "copy.ndjson"]);
    assert_eq!(full, "");
    let full = fs::read_to_string(folders[0].path().join("copy.ndjson")).unwrap();
    assert!(full.lines().next().unwrap().contains("\"seq\":1,"), "{full}");
    assert_eq!(full.lines().count(), lines.len());
}

/// The file was emptied before the first page was asked for, and kept what had come when a later page failed.
#[test]
fn an_export_that_fails_leaves_the_file_of_before() {
    let folder = folder();
    let file = folder.path().join("events.ndjson");
    fs::write(&file, "before").unwrap();
    let event = "{\"seq\":1,\"topic\":\"t\",\"event_id\":\"1\",\"timestamp\":\"2025-10-23T10:00:00Z\",\
        \"source\":\"s\",\"payload\":{}}";
    let page = |next: &str| {
        let body = format!("{{\"events\":[{event}],\"next\":\"{next}\",\"caught_up\":false}}");
        Reaction::Answer("200 OK", body)
    };
    let gone = Reaction::Answer("404 Not Found", String::new());
    let (url, _server) = scripted(vec![page("a"), page("b"), gone]);
    let output = run(folder.path(), &["export", "events.ndjson", "--url", &url]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("404"), "{}", text(&output.stderr));
    assert_eq!(fs::read_to_string(&file).unwrap(), "before");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn tail_prints_each_event_once_also_across_a_restart_of_the_server() {
    let folder = folder();
    let server = Server::start(folder.path());
    let port = server.port().to_owned();
    let lines: Vec<String> = (0..30).map(|id| line("orders", id)).collect();
    publish(folder.path(), &server, &lines[..10]);

    let mut tail = oncelog(
        folder.path(),
        &["tail", "--topic", "orders", "--from-start", "--url", &server.url],
    )
    .stdout(Stdio::piped())
    .stderr(Stdio::null())
    .spawn()
    .unwrap();
    let mut printed = BufReader::new(tail.stdout.take().unwrap()).lines();
    let mut ids = BTreeSet::new();
    let mut take = |count: usize| {
        for _ in 0..count {
            let event: serde_json::Value = serde_json::from_str(&printed.next().unwrap().unwrap()).unwrap();
            let id = event["event_id"].as_str().unwrap().to_owned();
            assert!(ids.insert(id), "{event} came twice");
        }
    };
    take(10);
    publish(folder.path(), &server, &[line("other", 1)]);
    publish(folder.path(), &server, &lines[5..20]);
    take(10);
    assert_eq!(server.stop(), Some(0));
    let server = Server::start_on(folder.path(), &port);
    publish(folder.path(), &server, &lines);
    take(10);
    assert_eq!(ids.len(), 30);
    tail.kill().unwrap();
    tail.wait().unwrap();
}

#[test]
fn tail_begins_behind_the_newest_event() {
    let folder = folder();
    let server = Server::start(folder.path());
    publish(folder.path(), &server, &[line("orders", 1)]);
    let mut tail = oncelog(folder.path(), &["tail", "--url", &server.url])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut printed = BufReader::new(tail.stdout.take().unwrap()).lines();
    // When it begins cannot be seen from outside: publish until something is printed.
    let (sender, first) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || sender.send(printed.next().unwrap().unwrap()));
    let mut published = 1;
    let first = loop {
        published += 1;
        publish(folder.path(), &server, &[line("orders", published)]);
        if let Ok(first) = first.try_recv() {
            break first;
        }
    };
    reader.join().unwrap().unwrap();
    assert!(!first.contains("\"event_id\":\"1\""), "{first}");
    tail.kill().unwrap();
    tail.wait().unwrap();
}
