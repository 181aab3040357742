//! With keys, a request is answered for what its key allows and nothing else.

use crate::{
    access::{Gate, KeyFile, KeyStore as _, Limits, NewKey, Scope},
    health::Trouble,
    http::{
        Timeouts,
        testing::{Answer, Fixture, event},
    },
};
use axum::{
    body::Body,
    http::{Request, header},
};
use serde_json::{Value, json};
use std::{sync::Arc, time::Instant};
use tempfile::TempDir;

/// An API that asks for keys.
struct Guarded {
    fixture: Fixture,
    file: KeyFile,
    gate: Arc<Gate>,
    _folder: TempDir,
}

impl Guarded {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = KeyFile::beside(&folder.path().join("dedup.db"));
        let gate =
            Arc::new(Gate::open(Box::new(file.clone()), false, Limits::default()).expect("no keys yet"));
        Self {
            fixture: Fixture::behind(Arc::clone(&gate), Timeouts::default()),
            file,
            gate,
            _folder: folder,
        }
    }

    /// Makes a key and lets the server know.
    fn key(&self, scopes: &[Scope], topics: &[&str]) -> String {
        let (_, secret) = self
            .file
            .create(NewKey {
                name: "test".to_owned(),
                scopes: scopes.to_vec(),
                topics: topics
                    .iter()
                    .map(|text| text.parse().expect("a pattern"))
                    .collect(),
                expires_at: None,
                limits: Limits::default(),
            })
            .expect("a key");
        self.gate.refresh();
        secret.reveal()
    }

    async fn get(&self, key: &str, path: &str) -> Answer {
        let request = Request::get(path).header(header::AUTHORIZATION, format!("Bearer {key}"));
        self.fixture
            .send(request.body(Body::empty()).expect("a request"))
            .await
    }

    async fn publish(&self, key: &str, body: &Value) -> Answer {
        let request = Request::post("/publish")
            .header(header::AUTHORIZATION, format!("Bearer {key}"))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body.to_string()));
        self.fixture.send(request.expect("a request")).await
    }
}

const PATHS: [&str; 12] = [
    "/events",
    "/events?topic=a",
    "/events/a/e1",
    "/topics",
    "/stats",
    "/metrics",
    "/",
    "/openapi.json",
    "/redoc",
    "/docs",
    "/problems/not-json",
    "/no/such/path",
];

#[tokio::test]
async fn without_a_key_nothing_is_answered_but_whether_it_is_up() {
    let guarded = Guarded::new();
    let key = guarded.key(&[Scope::Admin], &["*"]);
    for path in PATHS {
        let answer = guarded.fixture.get(path).await;
        answer.assert_problem(401, "no-valid-key", "Bearer");
        assert_eq!(
            answer.header(header::WWW_AUTHENTICATE),
            "Bearer realm=\"oncelog\""
        );
        let wrong = guarded.get("oncelog_0000000000000000_x", path).await;
        let [said, said_of_none] = [&wrong, &answer].map(|answer| {
            let mut problem = answer.json();
            problem["request_id"].take();
            problem
        });
        assert_eq!(said, said_of_none, "no hint what is wrong with a key");
        assert_ne!(guarded.get(&key, path).await.status, 401, "{path}");
    }
    let body = event("a", "e1").to_string();
    for path in ["/publish", "/publish/batch"] {
        let answer = guarded.fixture.post(path, body.clone()).await;
        answer.assert_problem(401, "no-valid-key", "Bearer");
    }
    for path in ["/health", "/readyz", "/livez"] {
        assert_eq!(guarded.fixture.get(path).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn health_says_why_only_to_who_may_come_in() {
    let guarded = Guarded::new();
    let key = guarded.key(&[Scope::Publish], &["a"]);
    guarded.fixture.health.note(
        Instant::now(),
        Some(Trouble {
            reason: "the disk is full".to_owned(),
            needs_restart: true,
        }),
    );
    for path in ["/health", "/readyz", "/livez"] {
        let told = guarded.get(&key, path).await;
        assert_eq!(told.status, 503);
        assert_eq!(told.json()["reason"], "the disk is full");
        for answer in [
            guarded.fixture.get(path).await,
            guarded.get("oncelog_0000000000000000_x", path).await,
        ] {
            assert_eq!(answer.status, 503);
            let body = answer.json();
            assert_eq!(body["status"], "unhealthy");
            assert!(
                body.get("reason").is_none() && body.get("queue_size").is_none(),
                "{body}"
            );
        }
    }
}

#[tokio::test]
async fn a_key_does_what_its_scopes_say() {
    let guarded = Guarded::new();
    let publish = guarded.key(&[Scope::Publish], &["*"]);
    let read = guarded.key(&[Scope::Read], &["*"]);
    let admin = guarded.key(&[Scope::Admin], &["*"]);
    for (key, publishes, reads) in [
        (&publish, true, false),
        (&read, false, true),
        (&admin, true, true),
    ] {
        let answer = guarded.publish(key, &event("a", "e1")).await;
        if publishes {
            assert_eq!(answer.status, 200, "{}", answer.text);
        } else {
            answer.assert_problem(403, "not-allowed", "scope publish");
        }
        for path in &PATHS[..6] {
            let answer = guarded.get(key, path).await;
            if reads {
                assert_eq!(answer.status, 200, "{path}: {}", answer.text);
            } else {
                answer.assert_problem(403, "not-allowed", "scope read");
            }
        }
    }
    assert_eq!(guarded.fixture.store.pages(), 4, "nobody else has read the store");
}

#[tokio::test]
async fn a_batch_with_one_topic_that_is_not_allowed_stores_nothing() {
    let guarded = Guarded::new();
    let key = guarded.key(&[Scope::Publish], &["orders.*"]);
    let admin = guarded.key(&[Scope::Admin], &["*"]);
    let batch = json!([
        event("orders.eu", "1"),
        event("orders.us", "2"),
        event("payments", "3")
    ]);
    let answer = guarded.publish(&key, &batch).await;
    answer.assert_problem(403, "not-allowed", "\"payments\"");
    assert_eq!(answer.json()["place"], "events[2].topic");
    assert_eq!(guarded.get(&admin, "/stats").await.json()["received"], 0);
    let allowed = json!([event("orders.eu", "1"), event("orders.us", "2")]);
    assert_eq!(guarded.publish(&key, &allowed).await.json()["accepted"], 2);
}

#[tokio::test]
async fn an_answer_shows_only_topics_that_the_key_may_read() {
    let guarded = Guarded::new();
    let admin = guarded.key(&[Scope::Admin], &["*"]);
    let some = guarded.key(&[Scope::Read], &["orders.*"]);
    for (topic, id) in [
        ("orders.eu", "1"),
        ("payments", "1"),
        ("orders.us", "1"),
        ("payments", "2"),
        ("payments", "1"),
    ] {
        assert_eq!(guarded.publish(&admin, &event(topic, id)).await.status, 200);
    }

    let names = |answer: &Answer, list: &str| -> Vec<String> {
        let body = answer.json();
        let entries = body[list].as_array().expect("a list");
        entries
            .iter()
            .map(|entry| entry["topic"].as_str().expect("a topic").to_owned())
            .collect()
    };
    let events = guarded.get(&some, "/events?order=asc").await;
    assert_eq!(names(&events, "events"), ["orders.eu", "orders.us"]);
    assert_eq!(events.json()["caught_up"], true);
    assert_eq!(
        names(&guarded.get(&some, "/topics").await, "topics"),
        ["orders.eu", "orders.us"]
    );
    let stats = guarded.get(&some, "/stats").await.json();
    assert_eq!(
        (
            &stats["received"],
            &stats["unique_processed"],
            &stats["topics_total"]
        ),
        (&json!(2), &json!(2), &json!(2))
    );
    assert_eq!(stats["topics"], json!(["orders.eu", "orders.us"]));
    for path in [
        "/events?topic=payments",
        "/events/payments/1",
        "/events/payments/none",
    ] {
        guarded
            .get(&some, path)
            .await
            .assert_problem(403, "not-allowed", "\"payments\"");
    }
    assert_eq!(guarded.get(&some, "/events/orders.eu/1").await.status, 200);
    let metrics = guarded.get(&some, "/metrics").await;
    metrics.assert_problem(403, "not-allowed", "for every topic");
    assert_eq!(guarded.get(&admin, "/stats").await.json()["received"], 5);
}

#[tokio::test]
async fn two_keys_are_live_while_one_replaces_the_other() {
    let guarded = Guarded::new();
    let old = guarded.key(&[Scope::Read], &["*"]);
    let new = guarded.key(&[Scope::Read], &["*"]);
    for key in [&old, &new] {
        assert_eq!(guarded.get(key, "/stats").await.status, 200);
    }
    let id = old.split('_').nth(1).expect("an id");
    guarded.file.revoke(id).expect("revoked");
    guarded.gate.refresh();
    assert_eq!(guarded.get(&old, "/stats").await.status, 401);
    assert_eq!(guarded.get(&new, "/stats").await.status, 200);
}
