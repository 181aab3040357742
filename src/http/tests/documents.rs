//! The description of the API against the router, and the pages.

use crate::http::{
    described_routes, documents,
    error::Kind,
    metrics::Route,
    testing::{Fixture, event},
};
use crate::limits::{MAX_PAGE_LIMIT, MAX_WAIT_SECONDS};
use axum::{
    body::Body,
    http::{Request, StatusCode, header},
};
use serde_json::{Value, json};
use std::collections::BTreeSet;

fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let paths = document["paths"].as_object().expect("paths");
    paths
        .iter()
        .flat_map(|(path, item)| {
            item.as_object()
                .expect("operations")
                .iter()
                .map(move |(method, operation)| (method.to_uppercase(), path.clone(), operation.clone()))
        })
        .collect()
}

#[tokio::test]
async fn every_documented_call_is_there() {
    let fixture = Fixture::new();
    let document = fixture.get("/openapi.json").await.json();
    for (method, path, operation) in operations(&document) {
        let request = Request::builder()
            .method(method.as_str())
            .uri(path.replace(['{', '}'], ""));
        let answer = fixture.send(request.body(Body::empty()).expect("valid")).await;
        let status = answer.status.as_u16().to_string();
        let problem = answer.header(header::CONTENT_TYPE) == "application/problem+json";
        assert!(
            !problem || answer.json()["type"] != "/problems/no-such-path",
            "{method} {path}"
        );
        assert!(
            operation["responses"][&status].is_object(),
            "{method} {path} answers {status}, undocumented"
        );
    }
}

#[test]
fn every_documented_path_has_its_own_label_in_the_metrics() {
    let (_, document) = described_routes().merge(documents::routes()).split_for_parts();
    let documented: BTreeSet<&str> = document.paths.paths.keys().map(String::as_str).collect();
    let labels: BTreeSet<&str> = Route::ALL.into_iter().map(Route::label).collect();
    let own: BTreeSet<&str> = ["/docs", "/problems/{name}", "other"].into();
    assert_eq!(
        labels.difference(&own).copied().collect::<BTreeSet<_>>(),
        documented
    );
    for path in documented {
        assert_eq!(Route::of(&path.replace(['{', '}'], "")).label(), path);
    }
}

#[tokio::test]
async fn every_call_says_what_it_is_and_how_it_fails() {
    let fixture = Fixture::new();
    let document = fixture.get("/openapi.json").await.json();
    let mut ids = BTreeSet::new();
    for (method, path, operation) in operations(&document) {
        let id = operation["operationId"].to_string();
        assert!(ids.insert(id.clone()), "{id} names two calls");
        for field in ["summary", "operationId"] {
            assert!(
                !operation[field].as_str().unwrap_or_default().is_empty(),
                "{method} {path}: {field}"
            );
        }
        let responses = operation["responses"].as_object().expect("responses");
        assert!(responses.contains_key("200"), "{method} {path}");
        for (status, response) in responses {
            assert!(
                !response["description"].as_str().unwrap_or_default().is_empty(),
                "{method} {path} {status}"
            );
            assert_eq!(
                response["headers"]["Retry-After"].is_object(),
                matches!(&**status, "429" | "503"),
                "{method} {path} {status}"
            );
            for limits in ["RateLimit", "RateLimit-Policy"] {
                assert_eq!(
                    response["headers"][limits].is_object(),
                    responses.contains_key("429"),
                    "{method} {path} {status}"
                );
            }
        }
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            assert!(
                !parameter["description"].as_str().unwrap_or_default().is_empty(),
                "{method} {path}"
            );
        }
        // The health checks count against no limit.
        let checks = ["/health", "/readyz", "/livez"];
        assert_eq!(responses.contains_key("429"), !checks.contains(&&*path), "{path}");
    }
    let publish = &document["paths"]["/publish"]["post"]["responses"];
    for status in ["200", "400", "408", "413", "415", "422", "429", "500", "503"] {
        assert!(publish[status].is_object(), "{status}");
    }
}

#[tokio::test]
async fn the_example_of_an_event_can_be_published() {
    let fixture = Fixture::new();
    let document = fixture.get("/openapi.json").await.json();
    let example = &document["components"]["schemas"]["Event"]["example"];
    let answer = fixture.post("/publish", example.to_string()).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
}

/// Whether a value is what a schema says, as far as our schemas go.
fn is_valid(document: &Value, schema: &Value, value: &Value) -> bool {
    if let Some(reference) = schema["$ref"].as_str() {
        let schema = document.pointer(&reference[1..]).expect("a schema");
        return is_valid(document, schema, value);
    }
    if let Some(choices) = schema["oneOf"].as_array() {
        let fitting = choices.iter().filter(|choice| is_valid(document, choice, value));
        return fitting.count() == 1;
    }
    let kind = match value {
        Value::Object(_) => "object",
        Value::Array(_) => "array",
        Value::String(_) => "string",
        Value::Number(_) => "integer",
        Value::Bool(_) => "boolean",
        Value::Null => "null",
    };
    let kinds = &schema["type"];
    if kinds != kind && !kinds.as_array().is_some_and(|kinds| kinds.contains(&kind.into())) {
        return false;
    }
    let within = |size: usize, least: &str, most: &str| {
        schema[least].as_u64().is_none_or(|least| size as u64 >= least)
            && schema[most].as_u64().is_none_or(|most| size as u64 <= most)
    };
    match value {
        Value::Object(fields) => {
            let properties = &schema["properties"];
            let required = schema["required"].as_array().into_iter().flatten();
            required
                .map(|name| name.as_str().expect("a name"))
                .all(|name| fields.contains_key(name))
                && fields.iter().all(|(name, value)| match &properties[name] {
                    Value::Null => schema["additionalProperties"] != false,
                    schema => is_valid(document, schema, value),
                })
        }
        Value::Array(items) => {
            within(items.len(), "minItems", "maxItems")
                && items
                    .iter()
                    .all(|item| is_valid(document, &schema["items"], item))
        }
        Value::String(text) => {
            let allowed = schema["enum"].as_array();
            within(text.chars().count(), "minLength", "maxLength")
                && allowed.is_none_or(|allowed| allowed.contains(value))
        }
        _ => true,
    }
}

#[tokio::test]
async fn a_body_is_valid_by_the_document_when_the_server_takes_it() {
    let fixture = Fixture::new();
    let document = fixture.get("/openapi.json").await.json();
    let schema =
        &document["paths"]["/publish"]["post"]["requestBody"]["content"]["application/json"]["schema"];
    let mut without_payload = event("t", "1");
    without_payload
        .as_object_mut()
        .expect("an object")
        .remove("payload");
    let mut unknown = event("t", "1");
    unknown["colour"] = "red".into();
    for (body, taken) in [
        (event("t", "1"), true),
        (without_payload, true),
        (json!([event("t", "1"), event("t", "2")]), true),
        (json!({"events": [event("t", "1")]}), true),
        (json!({"One": event("t", "1")}), false),
        (json!({"Many": [event("t", "1")]}), false),
        (json!({"events": [event("t", "1")], "more": 1}), false),
        (json!({"events": []}), false),
        (json!([]), false),
        (unknown, false),
        (event("", "1"), false),
        (json!({"topic": "t"}), false),
        (json!(5), false),
    ] {
        assert_eq!(is_valid(&document, schema, &body), taken, "{body}");
        let answer = fixture.post("/publish", body.to_string()).await;
        assert_eq!(answer.status == StatusCode::OK, taken, "{body}");
    }
}

#[tokio::test]
async fn answers_are_valid_by_the_document() {
    let fixture = Fixture::new();
    fixture.fill("t", 1..3).await;
    let document = fixture.get("/openapi.json").await.json();
    for path in [
        "/events",
        "/events?order=asc&topic=t",
        "/topics",
        "/stats",
        "/health",
        "/",
    ] {
        let documented = path.split('?').next().expect("a path");
        let responses = &document["paths"][documented]["get"]["responses"];
        let schema = &responses["200"]["content"]["application/json"]["schema"];
        assert!(
            is_valid(&document, schema, &fixture.get(path).await.json()),
            "{path}"
        );
    }
    let schemas = &document["components"]["schemas"];
    for (schema, field) in [
        ("EventPage", "topic"),
        ("EventPage", "next"),
        ("TopicPage", "next"),
    ] {
        let required = schemas[schema]["required"].as_array().expect("required fields");
        assert!(required.contains(&field.into()), "{schema}.{field}");
    }
    let names: Vec<&String> = schemas.as_object().expect("schemas").keys().collect();
    assert!(
        names.iter().all(|name| name.starts_with(char::is_uppercase)),
        "{names:?}"
    );
}

#[tokio::test]
async fn parameters_are_documented_with_their_bounds_and_words() {
    let fixture = Fixture::new();
    let document = fixture.get("/openapi.json").await.json();
    let schema = |path: &str, method: &str, name: &str| {
        let parameters = document["paths"][path][method]["parameters"].as_array();
        let mut parameters = parameters.expect("parameters").iter();
        let parameter = parameters.find(|parameter| parameter["name"] == name);
        parameter.expect(name)["schema"].clone()
    };
    for (path, name, least, most) in [
        ("/events", "limit", 1, MAX_PAGE_LIMIT as u64),
        ("/topics", "limit", 1, MAX_PAGE_LIMIT as u64),
        ("/events", "wait", 0, MAX_WAIT_SECONDS),
    ] {
        let schema = schema(path, "get", name);
        assert_eq!(
            (&schema["minimum"], &schema["maximum"]),
            (&json!(least), &json!(most))
        );
    }
    for (path, method, name, words) in [
        ("/events", "get", "order", vec!["desc", "asc"]),
        ("/events", "get", "position", vec!["start", "end"]),
        ("/publish", "post", "ack", vec!["committed", "queued"]),
    ] {
        let schema = schema(path, method, name).to_string();
        let words = format!("\"enum\":{}", json!(words));
        assert!(schema.contains(&words), "{name}: {schema}");
    }
}

#[tokio::test]
async fn the_type_of_a_problem_leads_to_its_description() {
    let fixture = Fixture::new();
    let reference = fixture.get("/redoc").await.text;
    for kind in Kind::ALL {
        let answer = fixture.get(&format!("/problems/{}", kind.name())).await;
        assert_eq!(answer.status, StatusCode::SEE_OTHER);
        let location = format!("/redoc#{}", kind.name());
        assert_eq!(answer.header(header::LOCATION), location);
        assert!(reference.contains(&format!("id=\"{}\"", kind.name())), "{kind:?}");
    }
    let none = fixture.get("/problems/nope").await;
    none.assert_problem(404, "no-such-path", "GET /redoc");
}

#[tokio::test]
async fn the_documented_fields_of_answers_are_those_they_have() {
    let fixture = Fixture::new();
    fixture.fill("t", 1..2).await;
    let document = fixture.get("/openapi.json").await.json();
    let published = fixture
        .post("/publish?results=true", event("t", "2").to_string())
        .await
        .json();
    let mut stats = fixture.get("/stats").await.json();
    // Of a server that has one; `tests/promises/broker.rs` looks at it.
    stats["broker"] = Value::Null;
    for (schema, answer) in [
        ("Published", &published),
        ("EventResult", &published["results"][0]),
        ("EventPage", &fixture.get("/events?order=asc").await.json()),
        ("StoredEvent", &fixture.get("/events/t/2").await.json()),
        ("TopicPage", &fixture.get("/topics").await.json()),
        ("Topic", &fixture.get("/topics").await.json()["topics"][0]),
        ("Stats", &stats),
        ("Service", &fixture.get("/").await.json()),
        ("Problem", &fixture.post("/publish?results=1", "{}").await.json()),
    ] {
        let names = |value: &Value| -> BTreeSet<String> {
            value
                .as_object()
                .into_iter()
                .flatten()
                .map(|(name, _)| name.clone())
                .collect()
        };
        let documented = names(&document["components"]["schemas"][schema]["properties"]);
        assert!(!documented.is_empty(), "{schema} is documented");
        assert_eq!(names(answer), documented, "{schema}");
    }
}

#[tokio::test]
async fn the_reference_shows_every_call_schema_and_problem() {
    let fixture = Fixture::new();
    let document = fixture.get("/openapi.json").await.json();
    let page = fixture.get("/redoc").await;
    assert_eq!(page.header(header::CONTENT_TYPE), "text/html; charset=utf-8");
    for (method, path, _) in operations(&document) {
        assert!(
            page.text.contains(&format!("<code>{method} {path}</code> ")),
            "{method} {path}"
        );
    }
    for (schema, _) in document["components"]["schemas"].as_object().expect("schemas") {
        assert!(page.text.contains(&format!("id=\"schema-{schema}\"")), "{schema}");
    }
    for kind in Kind::ALL {
        assert!(
            page.text.contains(&format!("/problems/{}<", kind.name())),
            "{kind:?}"
        );
    }
    assert!(!page.text.contains("<script") && !page.text.contains("{{"));
}

#[test]
fn problems_have_names_of_their_own() {
    let names: BTreeSet<&str> = Kind::ALL.into_iter().map(Kind::name).collect();
    assert_eq!(names.len(), Kind::ALL.len());
    assert!(Kind::ALL.is_sorted_by_key(|kind| kind.status()));
}

#[tokio::test]
async fn the_explorer_comes_out_of_the_binary() {
    let fixture = Fixture::new();
    let redirect = fixture.get("/docs").await;
    assert_eq!(redirect.header(header::LOCATION), "/docs/");
    let page = fixture.get("/docs/").await;
    assert_eq!(page.status, StatusCode::OK);
    assert!(!page.text.contains("https://"), "{}", page.text);
    let none = fixture.get("/docs/nope").await;
    none.assert_problem(404, "no-such-path", "explorer");
    let script = fixture.get("/docs/swagger-initializer.js").await;
    assert!(script.text.contains("/openapi.json"), "{}", script.text);
    assert!(
        script.text.contains("\"validatorUrl\": \"none\""),
        "{}",
        script.text
    );
    assert_eq!(
        fixture.get("/docs/swagger-ui-bundle.js").await.status,
        StatusCode::OK
    );
}

#[tokio::test]
async fn a_browser_gets_a_page_and_any_other_client_json() {
    let fixture = Fixture::new();
    for accept in [
        "",
        "*/*",
        "application/json",
        "text/html; q=0.0, */*",
        "text/html;Q=0",
    ] {
        let request = Request::get("/")
            .header(header::ACCEPT, accept)
            .body(Body::empty());
        let answer = fixture.send(request.expect("valid")).await;
        let body = answer.json();
        assert_eq!(
            (&body["service"], &body["status"]),
            (&"oncelog".into(), &"healthy".into())
        );
        assert_eq!(body["version"], env!("CARGO_PKG_VERSION"));
        let endpoints = body["endpoints"].to_string();
        assert!(
            endpoints.contains("\"POST /publish\"") && endpoints.contains("\"GET /docs\""),
            "{endpoints}"
        );
    }
    let browser = Request::get("/")
        .header(header::ACCEPT, "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8")
        .body(Body::empty())
        .expect("valid");
    let page = fixture.send(browser).await;
    assert_eq!(page.header(header::CONTENT_TYPE), "text/html; charset=utf-8");
    assert_eq!(page.header(header::VARY), "Accept");
    assert!(
        page.header(header::CONTENT_SECURITY_POLICY)
            .contains("default-src 'none'")
    );
    assert!(page.text.contains(env!("CARGO_PKG_VERSION")) && !page.text.contains("{{"));
}
