//! Bad input gets a clear error that names the place, and nothing of its request is stored or counted.

use crate::harness::{Answer, Client, Event, Server, identities, read_all};
use std::fmt::Write as _;

const JSON: &str = "application/json";
const NDJSON: &str = "application/x-ndjson";

/// The fields that a test does not care about.
const REST: &str = r#""event_id":"e","timestamp":"2025-10-23T10:00:00Z","source":"s""#;

/// A wrong request: what it shows, its content type and body, and the answer's status, kind and part of its detail.
struct Row {
    shows: &'static str,
    content_type: &'static str,
    body: Vec<u8>,
    status: u16,
    kind: &'static str,
    detail: &'static str,
}

fn row(
    shows: &'static str,
    body: impl Into<Vec<u8>>,
    status: u16,
    kind: &'static str,
    detail: &'static str,
) -> Row {
    Row {
        shows,
        content_type: JSON,
        body: body.into(),
        status,
        kind,
        detail,
    }
}

fn lines(
    shows: &'static str,
    body: impl Into<Vec<u8>>,
    status: u16,
    kind: &'static str,
    detail: &'static str,
) -> Row {
    Row {
        content_type: NDJSON,
        ..row(shows, body, status, kind, detail)
    }
}

/// An event with this text between its braces, in front of the rest.
fn event(text: &str) -> String {
    format!("{{{text},{REST}}}")
}

fn with_payload(payload: &str) -> String {
    event(&format!(r#""topic":"t","payload":{payload}"#))
}

fn nested(depth: usize) -> String {
    format!(r#"{}1{}"#, r#"{"a":"#.repeat(depth), "}".repeat(depth))
}

fn good() -> String {
    Event::new("good", "good").json()
}

fn rows() -> Vec<Row> {
    let long = "x".repeat(256);
    let not_json = "not-json";
    let invalid = "invalid-event";
    vec![
        row("an empty body", "", 400, not_json, ""),
        row("no JSON", "topic=t", 400, not_json, ""),
        row("truncated JSON", &good().as_bytes()[..40], 400, not_json, ""),
        row("a truncated batch", format!("[{},", good()), 400, not_json, ""),
        row(
            "something behind the JSON",
            format!("{} x", good()),
            400,
            not_json,
            "",
        ),
        row(
            "invalid UTF-8",
            [b"{\"topic\":\"", &[0xff_u8, 0xfe][..], b"\"}"].concat(),
            400,
            not_json,
            "UTF-8",
        ),
        row("a text", r#""topic""#, 422, invalid, ""),
        row("a number", "1", 422, invalid, ""),
        row("null", "null", 422, invalid, ""),
        row("an empty object", "{}", 422, invalid, ""),
        row("an empty array", "[]", 422, invalid, "at least one event"),
        row(
            "an empty batch",
            r#"{"events":[]}"#,
            422,
            invalid,
            "at least one event",
        ),
        row(
            "a batch that is no array",
            r#"{"events":{}}"#,
            422,
            invalid,
            "events",
        ),
        row(
            "a batch with another field",
            format!(r#"{{"events":[{}],"dry_run":true}}"#, good()),
            422,
            invalid,
            "dry_run",
        ),
        row(
            "an element that is no event",
            format!("[{},7]", good()),
            422,
            invalid,
            "events[1]",
        ),
        row("no topic", format!("{{{REST}}}"), 422, invalid, "topic"),
        row(
            "no event_id",
            r#"{"topic":"t","timestamp":"2025-10-23T10:00:00Z","source":"s"}"#,
            422,
            invalid,
            "event_id",
        ),
        row(
            "no timestamp",
            r#"{"topic":"t","event_id":"e","source":"s"}"#,
            422,
            invalid,
            "timestamp",
        ),
        row(
            "no source",
            r#"{"topic":"t","event_id":"e","timestamp":"2025-10-23T10:00:00Z"}"#,
            422,
            invalid,
            "source",
        ),
        row(
            "a topic that is a number",
            event(r#""topic":1"#),
            422,
            invalid,
            "topic",
        ),
        row(
            "a topic that is null",
            event(r#""topic":null"#),
            422,
            invalid,
            "topic",
        ),
        row(
            "a topic that is a list",
            event(r#""topic":["t"]"#),
            422,
            invalid,
            "topic",
        ),
        row("an empty topic", event(r#""topic":"""#), 422, invalid, "topic"),
        row(
            "a topic of 256 characters",
            event(&format!(r#""topic":"{long}""#)),
            422,
            invalid,
            "topic",
        ),
        row(
            "an unknown field",
            event(r#""topic":"t","colour":"red""#),
            422,
            invalid,
            "colour",
        ),
        row(
            "a field twice",
            event(r#""topic":"t","topic":"t""#),
            422,
            invalid,
            "topic",
        ),
        row(
            "a field twice, once escaped",
            event(r#""topic":"t","\u0074opic":"t""#),
            422,
            invalid,
            "topic",
        ),
        row(
            "U+0000 in an id",
            event(r#""topic":"a\u0000b""#),
            422,
            invalid,
            "topic",
        ),
        row(
            "a lone high surrogate in an id",
            event(r#""topic":"\ud800""#),
            422,
            invalid,
            "topic",
        ),
        row(
            "a lone low surrogate in an id",
            event(r#""topic":"\udc00x""#),
            422,
            invalid,
            "topic",
        ),
        row(
            "a lone surrogate in a payload",
            with_payload(r#"{"a":"\ud800"}"#),
            422,
            invalid,
            "payload",
        ),
        row(
            "a lone surrogate in a payload's key",
            with_payload(r#"{"\ud800":1}"#),
            422,
            invalid,
            "payload",
        ),
        row(
            "a payload that is null",
            with_payload("null"),
            422,
            invalid,
            "payload",
        ),
        row(
            "a payload that is a list",
            with_payload("[1]"),
            422,
            invalid,
            "payload",
        ),
        row(
            "a payload that is a text",
            with_payload(r#""{}""#),
            422,
            invalid,
            "payload",
        ),
        row(
            "a payload's key twice",
            with_payload(r#"{"a":1,"b":{"c":1,"c":2}}"#),
            422,
            invalid,
            "payload.b",
        ),
        row(
            "a payload's key twice, once escaped",
            with_payload(r#"{"a":1,"\u0061":1}"#),
            422,
            invalid,
            "payload",
        ),
        row(
            "a payload nested 65 deep",
            with_payload(&nested(65)),
            422,
            invalid,
            "payload",
        ),
        row(
            "a payload nested 100,000 deep",
            with_payload(&nested(100_000)),
            422,
            invalid,
            "payload",
        ),
        row(
            "an event beyond 1 MiB",
            with_payload(&format!(r#"{{"a":"{}"}}"#, "x".repeat(1 << 20))),
            422,
            invalid,
            "",
        ),
        row(
            "one bad time among good events",
            format!(
                "[{},{}]",
                good(),
                good().replace("2025-10-23T10:00:00Z", "yesterday")
            ),
            422,
            invalid,
            "events[1].timestamp",
        ),
        row(
            "the same in a wrapped batch",
            format!(
                r#"{{"events":[{},{}]}}"#,
                good(),
                good().replace("2025-10-23T10:00:00Z", "yesterday")
            ),
            422,
            invalid,
            "events[1].timestamp",
        ),
        row(
            "one bad source far behind",
            format!(
                "[{}{}]",
                format!("{},", good()).repeat(99),
                good().replace(r#""tests""#, r#""""#)
            ),
            422,
            invalid,
            "events[99].source",
        ),
        lines("no events at all", "\n\n", 422, invalid, ""),
        lines(
            "a line that is no JSON",
            format!("{}\n\n{{\n", good()),
            400,
            not_json,
            "line 3",
        ),
        lines(
            "a line that is no event",
            format!("{}\n\n{}\n", good(), event(r#""topic":"""#)),
            422,
            invalid,
            "line 3: topic",
        ),
        lines(
            "a line with an array",
            format!("[{}]\n", good()),
            422,
            invalid,
            "line 1",
        ),
        Row {
            content_type: "text/plain",
            ..row(
                "another content type",
                good(),
                415,
                "unsupported-media-type",
                "application/json",
            )
        },
        Row {
            content_type: "application/json; charset=latin1",
            ..row("another character set", good(), 415, "unsupported-media-type", "")
        },
    ]
}

#[test]
fn every_wrong_request_is_refused_with_its_place_and_leaves_no_trace() {
    let server = Server::start();
    let mut client = server.client();
    let mut wrong = String::new();
    for row in rows() {
        let answer = client.post("/publish", row.content_type, &row.body);
        if let Err(reason) = problem(&answer, row.status, row.kind, row.detail) {
            let _ = writeln!(wrong, "{}: {reason}", row.shows);
        }
        if client.counters() != [0; 4] {
            let _ = writeln!(wrong, "{}: something was counted", row.shows);
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
    assert_eq!(read_all(&mut client, ""), [] as [serde_json::Value; 0]);
    assert_eq!(client.get("/topics").ok()["count"], 0);
}

fn problem(answer: &Answer, status: u16, kind: &str, detail: &str) -> Result<(), String> {
    let told = || format!("{} {}", answer.status, String::from_utf8_lossy(&answer.body));
    if answer.status != status {
        return Err(format!("{status} is due: {}", told()));
    }
    if answer.header("content-type") != Some("application/problem+json") {
        return Err(format!("no problem document: {}", answer.head));
    }
    let problem = answer.json();
    if problem["type"] != format!("/problems/{kind}")
        || problem["status"] != status
        || !problem["title"].is_string()
    {
        return Err(format!("{kind} is due: {}", told()));
    }
    if !problem["detail"]
        .as_str()
        .is_some_and(|text| text.contains(detail) && !text.is_empty())
    {
        return Err(format!("the detail should have {detail:?}: {}", told()));
    }
    Ok(())
}

#[test]
fn a_request_with_no_content_type_is_refused() {
    let server = Server::start();
    let mut client = server.client();
    let answer = client.request("POST", "/publish", &[], good().as_bytes());
    problem(&answer, 415, "unsupported-media-type", "").unwrap();
    assert_eq!(client.counters(), [0; 4]);
}

#[test]
fn publish_batch_takes_the_wrapped_shape_only() {
    let server = Server::start();
    let mut client = server.client();
    for body in [good(), format!("[{}]", good())] {
        let answer = client.post("/publish/batch", JSON, body.as_bytes());
        problem(&answer, 422, "invalid-event", "").unwrap();
    }
    assert_eq!(client.counters(), [0; 4]);
    client
        .post(
            "/publish/batch",
            JSON,
            format!(r#"{{"events":[{}]}}"#, good()).as_bytes(),
        )
        .ok();
    assert_eq!(client.counters(), [1, 1, 0, 0]);
}

/// Times that people send, and what they become; `None`: refused.
const TIMES: &[(&str, Option<&str>)] = &[
    ("2025-10-23T10:00:00Z", Some("2025-10-23T10:00:00Z")),
    ("2025-10-23T10:00:00z", Some("2025-10-23T10:00:00Z")),
    ("2025-10-23t10:00:00Z", Some("2025-10-23T10:00:00Z")),
    ("2025-10-23 10:00:00Z", Some("2025-10-23T10:00:00Z")),
    ("2025-10-23T10:00:00", Some("2025-10-23T10:00:00Z")),
    ("2025-10-23T10:00", Some("2025-10-23T10:00:00Z")),
    ("20251023T100000Z", Some("2025-10-23T10:00:00Z")),
    ("2025-10-23T10:00:00+02:00", Some("2025-10-23T08:00:00Z")),
    ("2025-10-23T10:00:00+0200", Some("2025-10-23T08:00:00Z")),
    ("2025-10-23T10:00:00+02", Some("2025-10-23T08:00:00Z")),
    ("2025-10-23T00:30:00+02:00", Some("2025-10-22T22:30:00Z")),
    ("2025-10-23T10:00:00-05:30", Some("2025-10-23T15:30:00Z")),
    ("2025-10-23T10:00:00-00:00", Some("2025-10-23T10:00:00Z")),
    ("2025-10-23T10:00:00.5Z", Some("2025-10-23T10:00:00.5Z")),
    ("2025-10-23T10:00:00.500Z", Some("2025-10-23T10:00:00.500Z")),
    ("2025-10-23T10:00:00,25Z", Some("2025-10-23T10:00:00.25Z")),
    (
        "2025-10-23T12:00:00.123456789+02:00",
        Some("2025-10-23T10:00:00.123456789Z"),
    ),
    ("2025-10-23T10:00:00.1234567890Z", None),
    ("2025-10-23T10:00:00.Z", None),
    ("2024-02-29T00:00:00Z", Some("2024-02-29T00:00:00Z")),
    ("2025-02-29T00:00:00Z", None),
    ("2016-12-31T23:59:60Z", Some("2017-01-01T00:00:00Z")),
    ("2025-10-23T10:00:60Z", None),
    ("2025-10-23T10:00:61Z", None),
    ("2025-10-23T24:00:00Z", None),
    ("2025-10-23T10:60:00Z", None),
    ("2025-13-23T10:00:00Z", None),
    ("2025-00-23T10:00:00Z", None),
    ("0001-01-01T00:00:00Z", Some("0001-01-01T00:00:00Z")),
    ("0000-01-01T00:00:00Z", None),
    (
        "9999-12-31T23:59:59.999999999Z",
        Some("9999-12-31T23:59:59.999999999Z"),
    ),
    ("10000-01-01T00:00:00Z", None),
    ("9999-12-31T23:59:59-01:00", None),
    ("0001-01-01T00:00:00+01:00", None),
    ("-2025-10-23T10:00:00Z", None),
    ("2025-10-23", None),
    ("2025-10-23T10Z", None),
    ("2025-W43-4T10:00:00Z", None),
    ("2025-296T10:00:00Z", None),
    ("2025-10-23T10:00:00+24:00", None),
    ("2025-10-23T10:00:00 Europe/Berlin", None),
    ("2025-10-23T10:00:00Z ", None),
    (" 2025-10-23T10:00:00Z", None),
    ("1761213600", None),
    ("yesterday", None),
    ("", None),
];

#[test]
fn every_form_of_a_time_is_read_by_its_rule_or_refused() {
    let server = Server::start();
    let mut client = server.client();
    let mut wrong = String::new();
    for (number, (time, kept)) in TIMES.iter().enumerate() {
        let id = number.to_string();
        let answer = client.post(
            "/publish",
            JSON,
            Event::new("times", &id).at(time).json().as_bytes(),
        );
        let verdict = match kept {
            None => problem(&answer, 422, "invalid-event", "timestamp"),
            Some(_) if answer.status != 200 => Err(answer.text().to_owned()),
            Some(kept) => {
                let event = client.get(&format!("/events/times/{id}")).ok();
                if event["timestamp"] == *kept {
                    Ok(())
                } else {
                    Err(format!("kept as {}", event["timestamp"]))
                }
            }
        };
        if let Err(reason) = verdict {
            let _ = writeln!(wrong, "{time:?} should be {kept:?}: {reason}");
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
    let stored = TIMES.iter().filter(|(_, kept)| kept.is_some()).count() as u64;
    assert_eq!(client.counters(), [stored, stored, 0, 0]);
    let answer = client.post(
        "/publish",
        JSON,
        good()
            .replace(r#""2025-10-23T10:00:00Z""#, "1761213600")
            .as_bytes(),
    );
    problem(&answer, 422, "invalid-event", "timestamp").unwrap();
}

#[test]
fn ids_that_differ_in_case_or_unicode_form_are_different_and_come_back_as_sent() {
    let server = Server::start();
    let mut client = server.client();
    let mut longest = "€".repeat(254);
    longest.push('😀');
    let ids = [
        "id", "ID", "Id", " id", "id ", "é", "e\u{301}", "ı", "i", "\u{1}", "a/b", "a%2Fb", "?", "😀",
        &longest,
    ];
    let events: Vec<_> = ids
        .iter()
        .map(|id| Event::new("t", id).with_payload("{}"))
        .collect();
    assert_eq!(client.publish(&events)["accepted"], ids.len());
    assert_eq!(client.publish(&events)["duplicates"], ids.len());
    let sent: Vec<_> = events.iter().map(Event::identity).collect();
    assert_eq!(identities(&read_all(&mut client, "order=asc&")), sent);
    for (id, event) in ids.iter().zip(&events) {
        let found = client.get(&format!("/events/t/{}", percent_encoded(id))).ok();
        assert_eq!(identities(&[found]), [event.identity()]);
    }
}

fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        let _ = write!(encoded, "%{byte:02X}");
        encoded
    })
}

#[test]
fn an_escaped_id_is_the_same_as_the_plain_one_and_a_payload_stays_as_it_was_written() {
    let server = Server::start();
    let mut client = server.client();
    let payload =
        "{ \"z\" :1e0,\t\"a\":[ ],\"u\":\"\\u00e9\\u0000\\/\",\"big\":123456789012345678901234567890.10 }";
    client.publish(&[Event::new("é/t", "x").with_payload(payload)]);
    let again = format!(
        r#"{{"payload":{payload},"source":"other","event_id":"\u0078","timestamp":"2026-01-01T00:00:00Z","topic":"\u00e9\/t"}}"#
    );
    let answer = client.post("/publish", JSON, again.as_bytes()).ok();
    assert_eq!(
        [&answer["accepted"], &answer["duplicates"], &answer["conflicts"]],
        [0, 1, 0]
    );
    let found = client.get("/events/%C3%A9%2Ft/x");
    assert_eq!(found.ok()["source"], "tests", "the first one stays");
    assert!(found.text().contains(payload), "{}", found.text());
    let page = client.get("/events");
    assert!(page.text().contains(payload), "{}", page.text());
}

#[test]
fn the_deepest_allowed_payload_and_the_longest_allowed_names_are_taken() {
    let server = Server::start();
    let mut client = server.client();
    let name = "n".repeat(255);
    let event = Event::new(&name, &name)
        .with_source(&name)
        .with_payload(&nested(64));
    assert_eq!(client.publish(&[event])["accepted"], 1);
}

fn refused(client: &mut Client, target: &str, kind: &str, detail: &str) {
    let answer = client.get(target);
    problem(&answer, 422, kind, detail).unwrap_or_else(|reason| panic!("{target}: {reason}"));
}

#[test]
fn wrong_parameters_and_cursors_are_refused_by_name() {
    let server = Server::start();
    let mut client = server.client();
    let parameter = "invalid-parameter";
    for limit in ["0", "1001", "-1", "1.5", "ten", "", "99999999999999999999"] {
        refused(&mut client, &format!("/events?limit={limit}"), parameter, "limit");
        refused(&mut client, &format!("/topics?limit={limit}"), parameter, "limit");
    }
    for (target, name) in [
        ("/events?order=up", "order"),
        ("/events?from=yesterday", "from"),
        ("/events?to=2025-10-23", "to"),
        ("/events?wait=1", "wait"),
        ("/events?order=asc&wait=31", "wait"),
        ("/events?order=asc&wait=-1", "wait"),
        ("/events?colour=red", "colour"),
        ("/events?limit=1&limit=2", "limit"),
        ("/events?topic=%FF", "topic"),
        ("/publish?results=maybe", "results"),
    ] {
        if let Some(query) = target.strip_prefix("/publish") {
            let answer = client.post(&format!("/publish{query}"), JSON, good().as_bytes());
            problem(&answer, 422, parameter, name).unwrap();
        } else {
            refused(&mut client, target, parameter, name);
        }
    }
    for cursor in ["x", "made-up", "AAAA", "%00", "0"] {
        refused(
            &mut client,
            &format!("/events?cursor={cursor}"),
            "invalid-cursor",
            "cursor",
        );
        refused(
            &mut client,
            &format!("/topics?cursor={cursor}"),
            "invalid-cursor",
            "cursor",
        );
    }
    assert_eq!(client.counters(), [0; 4]);
}

#[test]
fn unknown_paths_and_methods_are_problems_too() {
    let server = Server::start();
    let mut client = server.client();
    problem(&client.get("/nothing"), 404, "no-such-path", "/nothing").unwrap();
    problem(&client.get("/events/t/nobody"), 404, "no-such-event", "nobody").unwrap();
    let answer = client.get("/publish");
    problem(&answer, 405, "method-not-allowed", "").unwrap();
    assert_eq!(answer.header("allow"), Some("POST"));
    let answer = client.request("DELETE", "/events", &[], b"");
    problem(&answer, 405, "method-not-allowed", "").unwrap();
}
