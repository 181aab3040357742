//! Lines of the log can be relied on: one JSON object a line, with the fields that `docs/OPERATIONS.md` lists and no
//! others; as text, nobody can forge one.

use crate::harness::{Event, Server, eventually};
use serde_json::Value;
use std::collections::BTreeSet;

/// The fields in the table of the documentation.
fn documented() -> BTreeSet<String> {
    let fields: BTreeSet<String> = include_str!("../../docs/OPERATIONS.md")
        .split("### The log")
        .nth(1)
        .unwrap()
        .lines()
        .skip_while(|line| !line.starts_with("|---"))
        .skip(1)
        .take_while(|line| line.starts_with('|'))
        .flat_map(|row| row.split('|').nth(1).unwrap().split(','))
        .map(|name| name.trim().trim_matches('`').to_owned())
        .collect();
    assert!(fields.contains("request_id"), "{fields:?}");
    fields
}

/// A server that has logged about requests, duplicates and conflicts, has been stopped, and what it said.
fn lines_of_a_life() -> Vec<Value> {
    let server = Server::start_with(&[("LOG_FORMAT", "json"), ("LOG_LEVEL", "TRACE")]);
    let mut client = server.client();
    let hard = "a \"topic\" \\ with\na line break\u{1b}[31m";
    client.publish(&[Event::new(hard, "1"), Event::new(hard, "1")]);
    client.publish(&[Event::new(hard, "1").with_payload("{}")]);
    client.get("/events").ok();
    client.get("/no/such/path").problem(404);
    // A connection that is no HTTP.
    let mut other = server.client();
    other.send_raw(b"what?\r\n\r\n").unwrap();
    assert_eq!(other.receive().unwrap().status, 400);
    server.stop();
    eventually("the log is there to its end", || {
        server.log().contains("\"stopped\"").then_some(())
    });
    let log = server.log();
    log.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

#[test]
fn every_line_is_one_flat_object_of_documented_fields() {
    let documented = documented();
    let lines = lines_of_a_life();
    for line in &lines {
        let object = line.as_object().unwrap();
        for (name, value) in object {
            assert!(documented.contains(name), "{name} is not documented: {line}");
            assert!(
                !value.is_object() && !value.is_array(),
                "{name} is not flat: {line}"
            );
        }
        let text = |name: &str| {
            object
                .get(name)
                .and_then(Value::as_str)
                .unwrap_or_else(|| panic!("{name} in {line}"))
        };
        let time = text("timestamp");
        assert!(
            time.len() == 27 && time.ends_with('Z') && &time[19..20] == ".",
            "{time}"
        );
        assert!(
            ["ERROR", "WARN", "INFO", "DEBUG", "TRACE"].contains(&text("level")),
            "{line}"
        );
        assert!(text("target").starts_with("oncelog"), "{line}");
        assert!(!text("message").is_empty(), "{line}");
    }
    let times: Vec<_> = lines
        .iter()
        .map(|line| line["timestamp"].as_str().unwrap())
        .collect();
    assert!(times.len() > 10, "{lines:#?}");
}

#[test]
fn duplicates_and_conflicts_name_the_event_as_it_is() {
    let lines = lines_of_a_life();
    let about = |what: &str| {
        let is_about = |line: &&Value| line["message"].as_str().unwrap().starts_with(what);
        let found: Vec<_> = lines.iter().filter(is_about).collect();
        assert_eq!(found.len(), 1, "{what}: {lines:#?}");
        found[0]
    };
    for line in [about("Duplicate"), about("Conflict")] {
        assert_eq!(line["level"], "WARN");
        assert_eq!(line["topic"], "a \"topic\" \\ with\na line break\u{1b}[31m");
        assert_eq!(line["event_id"], "1");
        assert_eq!(line["source"], "tests");
        assert_eq!(line["first_seq"], 1);
    }
}

#[test]
fn a_name_cannot_forge_a_line_of_text() {
    let server = Server::start();
    let mut client = server.client();
    let forged = Event::new(
        "t\n2025-10-23T10:00:00.000000Z ERROR forged\u{1b}[31m",
        "x request_id=1",
    );
    client.publish(&[
        forged.clone(),
        forged,
        Event::new("plain", "1"),
        Event::new("plain", "1"),
    ]);
    let log = eventually("the duplicates are logged", || {
        Some(server.log()).filter(|log| log.matches("Duplicate dropped").count() == 2)
    });
    assert!(!log.contains('\u{1b}'), "{log}");
    assert!(log.lines().all(|line| !line.starts_with("2025-10-23")), "{log}");
    assert!(
        log.contains(
            r#" topic="t\n2025-10-23T10:00:00.000000Z ERROR forged\u{1b}[31m" event_id="x request_id=1" "#
        ),
        "{log}"
    );
    assert!(
        log.contains("WARN Duplicate dropped topic=plain event_id=1 source=tests first_seq=2 request_id="),
        "{log}"
    );
}
