//! Every request has an id, its client's or one of the server's, and it is wherever the request is spoken of: in the
//! answer, in an error, in each line of the log. The same holds for the trace that it belongs to.

use crate::harness::{Answer, Authority, Client, Event, Folder, Server, eventually, oncelog, run};
use serde_json::Value;
use std::{collections::BTreeSet, fs};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

fn logging_server() -> Server {
    Server::start_with(&[("LOG_FORMAT", "json"), ("LOG_LEVEL", "DEBUG")])
}

fn id(answer: &Answer) -> &str {
    answer
        .header("x-request-id")
        .unwrap_or_else(|| panic!("no id in {}", answer.head))
}

fn publish(client: &mut Client, headers: &[(&str, &str)], event: &Event) -> Answer {
    let json = ("content-type", "application/json");
    client.request(
        "POST",
        "/publish",
        &[&[json], headers].concat(),
        event.json().as_bytes(),
    )
}

/// The lines about the request, once there is one that begins with `last`.
fn lines(server: &Server, id: &str, last: &str) -> Vec<Value> {
    eventually(&format!("a line {last:?} of {id}"), || {
        let log = server.log();
        let lines: Vec<Value> = log
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap())
            .filter(|line| line["request_id"] == id)
            .collect();
        let is_last = |line: &Value| line["message"].as_str().unwrap().starts_with(last);
        lines.iter().any(is_last).then_some(lines)
    })
}

#[test]
fn an_id_that_is_given_comes_back_in_the_answer_the_error_and_every_line() {
    let server = logging_server();
    let mut client = server.client();
    let first = publish(&mut client, &[("x-request-id", "first")], &Event::new("t", "1"));
    assert_eq!((first.status, id(&first)), (200, "first"));
    lines(&server, "first", "request");

    let again = publish(
        &mut client,
        &[("X-REQUEST-ID", "again:2/x=y")],
        &Event::new("t", "1"),
    );
    assert_eq!((again.status, id(&again)), (200, "again:2/x=y"));
    let found = lines(&server, "again:2/x=y", "Duplicate dropped");
    assert!(
        found.iter().all(|line| line.get("trace_id").is_none()),
        "{found:?}"
    );

    let other = Event::new("t", "1").with_payload("{}");
    publish(&mut client, &[("x-request-id", "third")], &other);
    lines(&server, "third", "Conflict");

    let refused = client.request("GET", "/events?limit=0", &[("x-request-id", "fourth")], b"");
    assert_eq!(id(&refused), "fourth");
    assert_eq!(refused.problem(422)["request_id"], "fourth");
    lines(&server, "fourth", "request");
}

#[test]
fn each_request_without_an_id_gets_one_of_its_own() {
    let folder = Folder::new();
    let mut ids = BTreeSet::new();
    for _ in 0..2 {
        let server = Server::start_in(folder.clone(), &[]);
        let mut clients = [server.client(), server.client()];
        for number in 0..500 {
            let answer = clients[number % 2].get("/livez");
            let id = id(&answer);
            assert!(
                id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()),
                "{id}"
            );
            assert!(ids.insert(id.to_owned()), "{id} twice");
        }
    }
}

#[test]
fn an_id_that_cannot_be_used_is_replaced() {
    let server = Server::start();
    let mut client = server.client();
    let too_long = "x".repeat(129);
    for bad in [
        "",
        "two words",
        "a\tb",
        "\"quoted\"",
        "it's",
        "back\\slash",
        "ü",
        &too_long,
    ] {
        let answer = client.request("GET", "/events?limit=x", &[("x-request-id", bad)], b"");
        assert_ne!(id(&answer), bad);
        assert_eq!(answer.problem(422)["request_id"], id(&answer), "{bad:?}");
    }
    let longest = "x".repeat(128);
    assert_eq!(
        id(&client.request("GET", "/livez", &[("x-request-id", &longest)], b"")),
        longest
    );
}

#[test]
fn whatever_is_answered_has_an_id() {
    let server = Server::start();
    let mut client = server.client();
    for (method, path) in [
        ("GET", "/"),
        ("GET", "/docs/"),
        ("GET", "/docs/no-such-file"),
        ("GET", "/redoc"),
        ("GET", "/metrics"),
        ("GET", "/events"),
        ("GET", "/no/such/path"),
        ("DELETE", "/events"),
        ("POST", "/publish"),
        ("GET", "/events?order=up"),
        ("GET", "/problems/overloaded"),
    ] {
        let answer = client.request(method, path, &[], b"");
        let id = id(&answer);
        if answer.status >= 400 {
            assert_eq!(answer.json()["request_id"], id, "{method} {path}");
        }
    }
}

#[test]
fn a_key_that_is_missing_and_a_server_that_wants_tls_are_told_with_an_id() {
    let folder = Folder::new();
    let made = run(oncelog(&folder).args(["keys", "create", "--name", "a", "--scope", "admin"]));
    assert!(made.status.success());
    let server = Server::start_in(folder, &[]);
    let refused = server
        .client()
        .request("GET", "/stats", &[("x-request-id", "no-key")], b"");
    assert_eq!(refused.problem(401)["request_id"], "no-key");

    let folder = Folder::new();
    let pair = Authority::new().issue(&["127.0.0.1"]);
    let [certificate, key] = ["chain.pem", "key.pem"].map(|name| folder.path().join(name));
    fs::write(&certificate, &pair.certificate).unwrap();
    fs::write(&key, &pair.key).unwrap();
    let settings = [
        ("TLS_CERTIFICATE", certificate.to_str().unwrap()),
        ("TLS_KEY", key.to_str().unwrap()),
    ];
    let server = Server::start_in(folder, &settings);
    let refused = server
        .client()
        .request("GET", "/", &[("x-request-id", "no-tls")], b"");
    assert_eq!(id(&refused), "no-tls");
    assert_eq!(refused.problem(426)["request_id"], "no-tls");
}

#[test]
fn a_trace_that_is_named_is_in_the_lines_of_the_request() {
    let server = logging_server();
    let mut client = server.client();
    let event = Event::new("t", "1");
    publish(&mut client, &[], &event);
    let traceparent = format!("00-{TRACE}-00f067aa0ba902b7-01");
    let headers = [("x-request-id", "traced"), ("traceparent", &traceparent)];
    publish(&mut client, &headers, &event);
    for last in ["request", "Duplicate dropped"] {
        for line in lines(&server, "traced", last) {
            assert_eq!(line["trace_id"], TRACE, "{line}");
        }
    }
    let malformed = format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32));
    let headers = [("x-request-id", "untraced"), ("traceparent", &malformed)];
    publish(&mut client, &headers, &event);
    for line in lines(&server, "untraced", "Duplicate dropped") {
        assert!(line.get("trace_id").is_none(), "{line}");
    }
}

#[test]
fn the_subcommands_name_the_request_that_failed() {
    let server = logging_server();
    let folder = Folder::new();
    let failed = run(oncelog(&folder).args(["tail", "--topic", &"x".repeat(256), "--url", &server.url()]));
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    let (_, id) = said
        .split_once("(request ")
        .unwrap_or_else(|| panic!("no id in {said}"));
    lines(&server, id.trim_end().trim_end_matches(')'), "request");
}
