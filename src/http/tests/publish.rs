//! Publishing: exact answers, and a clear problem for everything wrong.

use crate::{
    http::testing::{Chunks, Fault, Fixture, event},
    limits::{LARGE_BODIES_BYTES, LARGE_BODY_BYTES, MAX_BODY_BYTES, PARSE_INLINE_BYTES},
};
use axum::{
    body::Body,
    http::{Request, header},
};
use serde_json::json;

#[tokio::test]
async fn one_event_an_array_wrapped_events_and_lines_are_taken() {
    let fixture = Fixture::new();
    let one = fixture.post("/publish", event("t", "1").to_string()).await;
    assert_eq!(one.status, 200);
    assert_eq!(one.header(header::CONTENT_TYPE), "application/json");
    assert_eq!(
        one.text,
        r#"{"received":1,"accepted":1,"duplicates":0,"conflicts":0,"message":"Received 1 events, accepted 1, rejected 0 duplicates"}"#
    );
    let array = json!([event("t", "2"), event("t", "3")]).to_string();
    assert_eq!(fixture.post("/publish", array).await.json()["accepted"], 2);
    let wrapped = json!({"events": [event("t", "4"), event("t", "4")]}).to_string();
    let answer = fixture.post("/publish", wrapped.clone()).await.json();
    assert_eq!(
        (&answer["accepted"], &answer["duplicates"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(
        fixture.post("/publish/batch", wrapped).await.json()["duplicates"],
        2
    );
    let lines = format!("{}\n\n{}\n", event("t", "5"), event("t", "6"));
    let answer = fixture.post_as("/publish", "application/x-ndjson", lines).await;
    assert_eq!(answer.json()["accepted"], 2);
}

#[tokio::test]
async fn results_say_what_became_of_each_event_in_the_order_sent() {
    let fixture = Fixture::new();
    fixture.fill("t", 1..3).await;
    let mut conflict = event("t", "e1");
    conflict["payload"] = json!({"n": 2});
    let body = json!([event("t", "e2"), event("t", "new"), conflict]).to_string();
    let answer = fixture.post("/publish?results=true", body.clone()).await;
    assert_eq!(
        answer.text,
        concat!(
            r#"{"received":3,"accepted":1,"duplicates":2,"conflicts":1,"#,
            r#""message":"Received 3 events, accepted 1, rejected 2 duplicates","results":["#,
            r#"{"topic":"t","event_id":"e2","outcome":"duplicate","seq":2},"#,
            r#"{"topic":"t","event_id":"new","outcome":"stored","seq":3},"#,
            r#"{"topic":"t","event_id":"e1","outcome":"conflict","seq":1}]}"#
        )
    );
    assert!(
        fixture
            .post("/publish?results=false", body)
            .await
            .json()
            .get("results")
            .is_none()
    );
}

#[tokio::test]
async fn wrong_parameters_are_refused_before_anything_is_stored() {
    let fixture = Fixture::new();
    for (query, part) in [
        ("results=yes", "results: true or false is needed, not \"yes\""),
        (
            "result=true",
            "result: unknown parameter; this path takes results, ack",
        ),
        ("results=true&results=true", "results: given more than once"),
        ("ack=queued", "ack: this server has no broker"),
        ("ack=never", "ack: committed or queued is needed, not \"never\""),
    ] {
        let answer = fixture
            .post(&format!("/publish?{query}"), event("t", "1").to_string())
            .await;
        answer.assert_problem(422, "invalid-parameter", part);
    }
    let committed = fixture
        .post("/publish?ack=committed", event("t", "1").to_string())
        .await;
    assert_eq!(committed.json()["accepted"], 1);
}

#[tokio::test]
async fn content_types_that_are_not_taken_are_415() {
    let fixture = Fixture::new();
    let body = event("t", "1").to_string();
    for content_type in [
        "text/plain",
        "application/vnd.api+json",
        "application/json; charset=latin1",
        "application/jsonx",
    ] {
        let answer = fixture.post_as("/publish", content_type, body.clone()).await;
        answer.assert_problem(415, "unsupported-media-type", "");
    }
    let lines = fixture
        .post_as("/publish/batch", "application/x-ndjson", body.clone())
        .await;
    lines.assert_problem(415, "unsupported-media-type", "takes application/json only");
    let none = Request::post("/publish")
        .body(Body::from(body.clone()))
        .expect("valid");
    fixture
        .send(none)
        .await
        .assert_problem(415, "unsupported-media-type", "is missing");
    for content_type in [
        "application/json; charset=UTF-8",
        "Application/JSON;charset=\"utf-8\"",
    ] {
        let answer = fixture.post_as("/publish", content_type, body.clone()).await;
        assert_eq!(answer.status, 200, "{content_type}");
    }
}

#[tokio::test]
async fn an_invalid_body_is_named_and_nothing_is_stored() {
    let fixture = Fixture::new();
    let bad = json!({"events": [event("t", "1"), {"topic": "t", "event_id": "2"}]}).to_string();
    let answer = fixture.post("/publish", bad).await;
    answer.assert_problem(422, "invalid-event", "events[1]");
    assert!(
        answer.json()["place"]
            .as_str()
            .expect("a place")
            .starts_with("events[1]")
    );
    fixture
        .post("/publish", "{\"topic\":")
        .await
        .assert_problem(400, "not-json", "");
    fixture
        .post("/publish", "")
        .await
        .assert_problem(400, "not-json", "");
    fixture
        .post("/publish", "{\"events\":[]}")
        .await
        .assert_problem(422, "invalid-event", "");
    let array = json!([event("t", "1")]).to_string();
    fixture
        .post("/publish/batch", array)
        .await
        .assert_problem(422, "invalid-event", "");
    assert_eq!(fixture.get("/stats").await.json()["received"], 0);
}

#[tokio::test]
async fn a_request_that_could_never_fit_is_413() {
    let fixture = Fixture::new();
    let events: Vec<_> = (0..101).map(|number| event("t", &number.to_string())).collect();
    let answer = fixture.post("/publish", json!(events).to_string()).await;
    answer.assert_problem(413, "too-many-events", "100");
    let large = vec![b' '; MAX_BODY_BYTES + 1];
    let answer = fixture.post("/publish", large.clone()).await;
    answer.assert_problem(413, "body-too-large", &MAX_BODY_BYTES.to_string());
    assert_eq!(answer.header(header::CONNECTION), "close");
    let chunks = large
        .chunks(1 << 20)
        .map(|chunk| Ok::<_, std::io::Error>(chunk.to_vec()));
    let chunked = Body::new(Chunks(chunks.collect::<Vec<_>>().into_iter()));
    fixture
        .post("/publish", chunked)
        .await
        .assert_problem(413, "body-too-large", "");
}

/// A body that announces the most there may be, and sends one byte.
struct Silent(Option<bytes::Bytes>);

impl axum::body::HttpBody for Silent {
    type Data = bytes::Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<bytes::Bytes>, std::io::Error>>> {
        match self.0.take() {
            Some(bytes) => std::task::Poll::Ready(Some(Ok(hyper::body::Frame::data(bytes)))),
            None => std::task::Poll::Pending,
        }
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        hyper::body::SizeHint::with_exact(MAX_BODY_BYTES as u64)
    }
}

#[tokio::test]
async fn bodies_that_are_only_announced_keep_nobody_out() {
    let fixture = Fixture::new();
    let silent: Vec<_> = (0..10)
        .map(|_| {
            let request = Request::post("/publish")
                .header(header::CONTENT_TYPE, "application/json")
                .body(Body::new(Silent(Some(bytes::Bytes::from_static(b"[")))));
            tokio::spawn(fixture.api.clone().handle(request.expect("valid")))
        })
        .collect();
    let held = format!("oncelog_request_bodies_bytes {LARGE_BODIES_BYTES}\n");
    while !fixture.get("/metrics").await.text.contains(&held) {
        tokio::task::yield_now().await;
    }
    let answer = fixture.post("/publish", event("t", "1").to_string()).await;
    assert_eq!(answer.json()["accepted"], 1);
    // The silent ones hold all the room for large bodies, until others have waited for it for a while.
    let mut large = event("t", "2");
    large["payload"] = json!({"text": "x".repeat(LARGE_BODY_BYTES)});
    let answer = loop {
        let answer = fixture.post("/publish", large.to_string()).await;
        if answer.status == 200 {
            break answer;
        }
        answer.assert_problem(503, "overloaded", "");
    };
    assert_eq!(answer.json()["accepted"], 1);
    for request in silent {
        request.abort();
    }
}

#[tokio::test]
async fn a_body_in_many_chunks_is_put_together() {
    let fixture = Fixture::new();
    let body = event("t", "1").to_string();
    let chunks: Vec<_> = body
        .as_bytes()
        .chunks(7)
        .map(|chunk| Ok(chunk.to_vec()))
        .collect();
    let answer = fixture
        .post("/publish", Body::new(Chunks(chunks.into_iter())))
        .await;
    assert_eq!(answer.json()["accepted"], 1);
}

#[tokio::test]
async fn a_body_that_breaks_off_is_400_and_stores_nothing() {
    let fixture = Fixture::new();
    let whole = event("t", "1").to_string().into_bytes();
    let chunks = vec![Ok(whole), Err(std::io::Error::other("reset"))];
    let answer = fixture
        .post("/publish", Body::new(Chunks(chunks.into_iter())))
        .await;
    answer.assert_problem(400, "broken-body", "");
    assert_eq!(fixture.get("/stats").await.json()["received"], 0);
}

#[tokio::test]
async fn a_large_body_is_parsed_as_well() {
    let fixture = Fixture::new();
    let mut large = event("t", "1");
    large["payload"] = json!({"text": "x".repeat(PARSE_INLINE_BYTES)});
    let answer = fixture.post("/publish", large.to_string()).await;
    assert_eq!(answer.json()["accepted"], 1, "{}", answer.text);
    let broken = "[".repeat(PARSE_INLINE_BYTES + 1);
    assert!(fixture.post("/publish", broken).await.status.is_client_error());
}

#[tokio::test]
async fn a_store_that_cannot_commit_is_503_with_retry_after() {
    let fixture = Fixture::new();
    fixture.store.set_fault(Fault::Commits);
    let answer = fixture.post("/publish", event("t", "1").to_string()).await;
    answer.assert_problem(503, "store-unavailable", "the disk is full");
    fixture.store.set_fault(Fault::None);
    assert_eq!(fixture.get("/stats").await.json()["received"], 0);
}

#[tokio::test]
async fn one_topic_too_many_is_422_with_its_place() {
    let fixture = Fixture::new();
    fixture.store.set_fault(Fault::Topics);
    let answer = fixture.post("/publish", event("t", "1").to_string()).await;
    answer.assert_problem(
        422,
        "too-many-topics",
        "events[0].topic: the store holds 100000 topics",
    );
    assert_eq!(answer.json()["place"], "events[0].topic");
}

#[tokio::test]
async fn a_committer_that_is_gone_is_told_from_a_server_that_stops() {
    let fixture = Fixture::new();
    fixture.ingest.stop();
    fixture.wait_for_committer().await;
    let answer = fixture.post("/publish", event("t", "1").to_string()).await;
    answer.assert_problem(503, "store-unavailable", "restart the server");
    fixture.stop.send_replace(true);
    let answer = fixture.post("/publish", event("t", "1").to_string()).await;
    answer.assert_problem(503, "stopping", "");
}

#[tokio::test]
async fn bodies_give_their_room_back() {
    let fixture = Fixture::new();
    fixture.fill("t", 0..3).await;
    fixture
        .post("/publish", "{")
        .await
        .assert_problem(400, "not-json", "");
    let metrics = fixture.get("/metrics").await.text;
    assert!(metrics.contains("oncelog_request_bodies_bytes 0\n"), "{metrics}");
}

#[tokio::test]
async fn answers_hold_their_room_until_they_are_read() {
    let fixture = Fixture::new();
    fixture.fill("t", 0..3).await;
    for path in ["/events", "/events/t/e0", "/topics", "/stats"] {
        let request = Request::get(path).body(Body::empty()).expect("valid");
        let unread = fixture.api.clone().handle(request).await;
        let metrics = fixture.get("/metrics").await.text;
        assert!(
            !metrics.contains("oncelog_answers_bytes 0\n"),
            "{path}: {metrics}"
        );
        drop(unread);
        let metrics = fixture.get("/metrics").await.text;
        assert!(metrics.contains("oncelog_answers_bytes 0\n"), "{path}: {metrics}");
    }
    let body = event("t", "e1").to_string();
    fixture.post("/publish?results=true", body).await;
    let metrics = fixture.get("/metrics").await.text;
    assert!(metrics.contains("oncelog_answers_bytes 0\n"), "{metrics}");
}
