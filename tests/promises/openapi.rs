//! The API describes itself: every route is documented, every documented route is there, and the pages that show it need
//! nothing from anywhere else.

use crate::harness::{Answer, Client, Server};
use serde_json::Value;
use std::collections::BTreeSet;

/// The calls that the program promises.
const CALLS: [(&str, &str); 14] = [
    ("get", "/"),
    ("get", "/docs"),
    ("get", "/events"),
    ("get", "/events/{topic}/{event_id}"),
    ("get", "/health"),
    ("get", "/livez"),
    ("get", "/metrics"),
    ("get", "/openapi.json"),
    ("get", "/readyz"),
    ("get", "/redoc"),
    ("get", "/stats"),
    ("get", "/topics"),
    ("post", "/publish"),
    ("post", "/publish/batch"),
];

/// Pages for people, which describe the API and are not part of it.
const PAGES: [&str; 3] = ["/docs", "/redoc", "/openapi.json"];

fn document(client: &mut Client) -> Value {
    let answer = client.get("/openapi.json");
    assert_eq!(answer.header("content-type"), Some("application/json"));
    answer.ok()
}

fn documented(document: &Value) -> BTreeSet<(String, String)> {
    document["paths"]
        .as_object()
        .expect("paths")
        .iter()
        .flat_map(|(path, calls)| {
            calls
                .as_object()
                .expect("calls")
                .keys()
                .map(move |method| (method.clone(), path.clone()))
        })
        .collect()
}

#[test]
fn every_promised_call_is_documented_and_answers() {
    let server = Server::start();
    let mut client = server.client();
    let document = document(&mut client);
    let documented = documented(&document);
    for (method, path) in CALLS {
        if !PAGES.contains(&path) {
            assert!(
                documented.contains(&(method.to_owned(), path.to_owned())),
                "{method} {path} is not in {documented:?}"
            );
        }
        let target = path.replace("{topic}", "t").replace("{event_id}", "e");
        let answer = client.request(&method.to_uppercase(), &target, &[], b"");
        assert_ne!(answer.status, 405, "{method} {path}");
        if answer.status == 404 {
            assert_eq!(
                answer.json()["type"],
                "/problems/no-such-event",
                "{method} {path}"
            );
        }
    }
}

#[test]
fn every_documented_call_is_there_and_fully_described() {
    let server = Server::start();
    let mut client = server.client();
    let document = document(&mut client);
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
    for (method, path) in documented(&document) {
        let call = &document["paths"][&path][&method];
        assert!(
            call["summary"].as_str().is_some_and(|text| !text.is_empty()),
            "{method} {path} has a summary"
        );
        let responses = call["responses"].as_object().unwrap();
        assert!(
            responses.keys().any(|status| status.starts_with('2')),
            "{method} {path} says what success is"
        );
        let target = path.replace("{topic}", "t").replace("{event_id}", "e");
        let answer = client.request(&method.to_uppercase(), &target, &[], b"");
        assert!(
            responses.contains_key(&answer.status.to_string()),
            "{method} {path} answers {}, which is not documented",
            answer.status
        );
    }
}

#[test]
fn every_reference_inside_the_document_leads_somewhere() {
    let server = Server::start();
    let document = document(&mut server.client());
    let mut references = Vec::new();
    collect_references(&document, &mut references);
    assert!(!references.is_empty());
    for reference in references {
        let pointer = reference
            .strip_prefix('#')
            .expect("references stay inside the document");
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
}

/// The document called any text a time, a name with U+0000 a name and an empty text a cursor, and did not say what a
/// page's `next` is for. Clients made from it could send what is refused, and could not follow pages; schemathesis,
/// which sends what a document allows, found it.
#[test]
fn the_document_says_what_is_taken_and_how_pages_go_on() {
    let server = Server::start();
    let mut client = server.client();
    let document = document(&mut client);
    let event = &document["components"]["schemas"]["Event"]["properties"];
    assert_eq!(event["timestamp"]["format"], "date-time");
    for name in ["topic", "event_id", "source"] {
        assert_eq!(event[name]["pattern"], r"^[^\u0000]+$", "{name}");
    }
    let call = &document["paths"]["/events"]["get"];
    let parameters = call["parameters"].as_array().unwrap();
    let schema = |name| {
        let parameter = parameters.iter().find(|parameter| parameter["name"] == name);
        &parameter.unwrap()["schema"]
    };
    assert_eq!(schema("from")["format"], "date-time");
    assert_eq!(schema("to")["format"], "date-time");
    assert_eq!(schema("cursor")["minLength"], 1);
    assert_eq!(schema("topic")["pattern"], event["topic"]["pattern"]);
    for (path, operation) in [("/events", "listEvents"), ("/topics", "listTopics")] {
        let next = &document["paths"][path]["get"]["responses"]["200"]["links"]["next"];
        assert_eq!(next["operationId"], operation);
        assert_eq!(next["parameters"]["cursor"], "$response.body#/next");
    }
}

fn collect_references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(reference)) = fields.get("$ref") {
                found.push(reference.clone());
            }
            for field in fields.values() {
                collect_references(field, found);
            }
        }
        Value::Array(items) => {
            for item in items {
                collect_references(item, found);
            }
        }
        _ => {}
    }
}

/// The values of `src` and of `href` in tags that load something.
fn loaded(html: &str) -> Vec<String> {
    let mut found = Vec::new();
    for tag in html.split('<').skip(1) {
        let tag = tag.split('>').next().unwrap_or_default();
        let name: String = tag.chars().take_while(char::is_ascii_alphabetic).collect();
        let attribute = match name.as_str() {
            "script" | "img" | "iframe" => "src=",
            "link" => "href=",
            _ => continue,
        };
        if let Some((_, rest)) = tag.split_once(attribute) {
            let quote = rest.chars().next().unwrap_or_default();
            let value = match quote {
                '"' | '\'' => rest[1..].split(quote).next(),
                _ => rest.split_whitespace().next(),
            };
            found.extend(value.map(str::to_owned));
        }
    }
    found
}

/// Follows redirects inside the server; returns where it ended and what is there.
fn page(client: &mut Client, path: &str) -> (String, Answer) {
    let mut target = path.to_owned();
    for _ in 0..3 {
        let answer = client.request("GET", &target, &[("accept", "text/html")], b"");
        let Some(location) = answer.header("location") else {
            return (target, answer);
        };
        assert!(location.starts_with('/'), "{path} leads to {location}");
        target = location.to_owned();
    }
    panic!("{path} redirects too often");
}

#[test]
fn pages_load_everything_they_show_from_the_server_itself() {
    let server = Server::start();
    let mut client = server.client();
    for path in ["/", "/docs", "/redoc"] {
        let (target, answer) = page(&mut client, path);
        assert_eq!(answer.status, 200, "{path}");
        assert!(
            answer.header("content-type").unwrap().starts_with("text/html"),
            "{path}: {}",
            answer.head
        );
        let html = answer.text();
        assert!(html.contains("<title>"), "{path} is a page");
        assert!(!html.contains("cdn"), "{path} names a CDN");
        for asset in loaded(html) {
            if asset.starts_with("data:") {
                continue;
            }
            assert!(!asset.contains("//"), "{path} loads {asset} from elsewhere");
            let folder = &target[..=target.rfind('/').unwrap()];
            let asset = if asset.starts_with('/') {
                asset
            } else {
                format!("{folder}{}", asset.trim_start_matches("./"))
            };
            assert_eq!(client.get(&asset).status, 200, "{path} loads {asset}");
        }
    }
}

#[test]
fn the_explorer_opens_our_document() {
    let server = Server::start();
    let mut client = server.client();
    let (_, initializer) = page(&mut client, "/docs/swagger-initializer.js");
    assert_eq!(initializer.status, 200);
    assert!(
        initializer.text().contains("/openapi.json"),
        "{}",
        initializer.text()
    );
    assert!(!initializer.text().contains("petstore"), "{}", initializer.text());
}

#[test]
fn the_reference_page_shows_every_call() {
    let server = Server::start();
    let mut client = server.client();
    let document = document(&mut client);
    let (_, answer) = page(&mut client, "/redoc");
    for (_, path) in documented(&document) {
        assert!(answer.text().contains(&path), "{path}");
    }
}

#[test]
fn the_root_is_a_page_for_browsers_and_json_for_everyone_else() {
    let server = Server::start();
    let mut client = server.client();
    let root = client.get("/").ok();
    assert_eq!(root["service"], "oncelog");
    assert_eq!(root["version"], env!("CARGO_PKG_VERSION"));
    assert!(root["status"].is_string());
    let endpoints: BTreeSet<_> = root["endpoints"]
        .as_array()
        .unwrap()
        .iter()
        .map(Value::to_string)
        .collect();
    let promised: BTreeSet<_> = CALLS
        .iter()
        .map(|(method, path)| Value::from(format!("{} {path}", method.to_uppercase())).to_string())
        .collect();
    let missing: Vec<_> = promised.difference(&endpoints).collect();
    // `/` lists the calls; it may leave itself out.
    assert!(
        missing.iter().all(|call| *call == "\"GET /\""),
        "{missing:?} are not in {endpoints:?}"
    );
    let unknown: Vec<_> = endpoints.difference(&promised).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    let (_, answer) = page(&mut client, "/");
    assert!(answer.text().contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn the_metrics_say_what_was_counted() {
    let server = Server::start();
    let mut client = server.client();
    let body = crate::harness::Event::array(&["1", "2", "1"].map(|id| crate::harness::Event::new("t", id)));
    client.post("/publish", "application/json", &body).ok();
    let answer = client.get("/metrics");
    assert_eq!(answer.status, 200);
    let text = answer.text();
    for line in text.lines() {
        let good = line.starts_with('#')
            || line
                .rsplit_once(' ')
                .is_some_and(|(_, value)| value.parse::<f64>().is_ok());
        assert!(good, "no sample: {line:?}");
    }
    let total = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok())
            .unwrap_or_else(|| panic!("{name} is not in\n{text}"))
    };
    assert_eq!(total("oncelog_events_accepted_total").to_string(), "2");
    assert_eq!(total("oncelog_events_duplicate_total").to_string(), "1");
}
