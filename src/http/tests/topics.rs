//! The list of topics.

use crate::http::testing::{Fixture, event};
use serde_json::{Value, json};

#[tokio::test]
async fn a_topic_has_the_fields_of_the_contract_in_order() {
    let fixture = Fixture::new();
    fixture.fill("t", 1..3).await;
    let mut conflict = event("t", "e1");
    conflict["payload"] = json!({});
    fixture.post("/publish", conflict.to_string()).await;
    assert_eq!(
        fixture.get("/topics").await.text,
        concat!(
            r#"{"count":1,"topics":[{"topic":"t","accepted":2,"duplicates":1,"conflicts":1,"#,
            r#""first_seq":1,"first_processed_at":"2025-10-23T10:00:00.123456Z","#,
            r#""last_seq":2,"last_processed_at":"2025-10-23T10:00:00.123456Z"}],"next":null}"#
        )
    );
}

#[tokio::test]
async fn pages_list_every_topic_once_in_order() {
    let fixture = Fixture::new();
    for topic in ["é", "b", "a", "B", "a/b", "c"] {
        fixture.fill(topic, 1..2).await;
    }
    let mut found: Vec<String> = Vec::new();
    let mut path = "/topics?limit=2".to_owned();
    loop {
        let page = fixture.get(&path).await.json();
        let topics = page["topics"].as_array().expect("topics");
        assert_eq!(page["count"], topics.len());
        found.extend(
            topics
                .iter()
                .map(|topic| topic["topic"].as_str().expect("a name").to_owned()),
        );
        match &page["next"] {
            Value::String(next) => path = format!("/topics?limit=2&cursor={next}"),
            _ => break,
        }
    }
    assert_eq!(found, ["B", "a", "a/b", "b", "c", "é"]);
}

#[tokio::test]
async fn wrong_parameters_and_cursors_are_422() {
    let fixture = Fixture::new();
    fixture.fill("t", 1..3).await;
    let events = fixture.get("/events?limit=1").await.json();
    let cursor = events["next"].as_str().expect("a cursor");
    fixture
        .get("/topics?limit=0")
        .await
        .assert_problem(422, "invalid-parameter", "limit: ");
    fixture
        .get("/topics?order=asc")
        .await
        .assert_problem(422, "invalid-parameter", "order: unknown");
    fixture
        .get("/topics?cursor=x")
        .await
        .assert_problem(422, "invalid-cursor", "none that this server");
    let answer = fixture.get(&format!("/topics?cursor={cursor}")).await;
    answer.assert_problem(422, "invalid-cursor", "of GET /events");
}
