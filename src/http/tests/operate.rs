//! Counters, health, metrics, and what the router answers by itself.

use crate::{
    health::Trouble,
    http::testing::{Fixture, event},
};
use axum::{
    body::Body,
    http::{Method, Request, header},
};
use serde_json::json;
use std::time::Instant;

fn trouble(needs_restart: bool) -> Trouble {
    Trouble {
        reason: "the disk is full; make room".to_owned(),
        needs_restart,
    }
}

#[tokio::test]
async fn stats_have_the_fields_of_the_contract() {
    let fixture = Fixture::new();
    fixture.fill("b", 1..3).await;
    fixture.fill("a", 1..2).await;
    fixture.fill("b", 1..2).await;
    let mut stats = fixture.get("/stats").await.json();
    assert!(stats["uptime_seconds"].is_u64());
    assert!(stats["uptime_human"].is_string());
    let fields = stats.as_object_mut().expect("an object");
    fields.remove("uptime_seconds");
    fields.remove("uptime_human");
    assert_eq!(
        stats,
        json!({
            "received": 4, "unique_processed": 3, "duplicate_dropped": 1, "conflicts": 0,
            "topics": ["a", "b"], "topics_total": 2, "queue_size": 0,
        })
    );
}

#[tokio::test]
async fn a_server_that_can_commit_is_healthy() {
    let fixture = Fixture::new();
    for path in ["/health", "/readyz", "/livez"] {
        let answer = fixture.get(path).await;
        assert_eq!(answer.status, 200, "{path}");
        let mut body = answer.json();
        let time = body["timestamp"].take();
        assert_eq!(
            time.as_str().expect("a time").len(),
            "2025-10-23T10:00:00.123456Z".len()
        );
        assert_eq!(
            body,
            json!({"status": "healthy", "consumer_running": true, "queue_size": 0, "timestamp": null})
        );
    }
}

#[tokio::test]
async fn a_store_that_cannot_commit_is_unhealthy_but_alive() {
    let fixture = Fixture::new();
    fixture.health.note(Instant::now(), Some(trouble(false)));
    for path in ["/health", "/readyz"] {
        let answer = fixture.get(path).await;
        assert_eq!(answer.status, 503, "{path}");
        assert_eq!(answer.json()["status"], "unhealthy");
        assert_eq!(answer.json()["reason"], "the disk is full; make room");
        assert_eq!(answer.header(header::RETRY_AFTER), "1");
    }
    assert_eq!(fixture.get("/livez").await.status, 200);
    assert_eq!(fixture.get("/").await.json()["status"], "unhealthy");
    fixture.health.note(Instant::now(), None);
    assert_eq!(fixture.get("/health").await.status, 200);
}

#[tokio::test]
async fn livez_fails_when_a_restart_is_the_cure() {
    let fixture = Fixture::new();
    fixture.health.note(Instant::now(), Some(trouble(true)));
    assert_eq!(fixture.get("/livez").await.status, 503);
    fixture.health.note(Instant::now(), None);
    fixture.health.set_committer_running(false);
    let answer = fixture.get("/livez").await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.json()["consumer_running"], false);
}

#[tokio::test]
async fn a_stopping_server_is_alive_but_not_ready() {
    let fixture = Fixture::new();
    fixture.stop.send_replace(true);
    assert_eq!(fixture.get("/readyz").await.status, 503);
    fixture.health.set_committer_running(false);
    assert_eq!(fixture.get("/livez").await.status, 200);
}

#[tokio::test]
async fn parameters_that_mean_nothing_are_refused() {
    let fixture = Fixture::new();
    for path in [
        "/stats",
        "/health",
        "/readyz",
        "/livez",
        "/topics",
        "/events",
        "/events/t/e",
    ] {
        let answer = fixture.get(&format!("{path}?colour=red")).await;
        answer.assert_problem(422, "invalid-parameter", "colour: unknown parameter");
    }
    assert_eq!(fixture.get("/metrics?colour=red").await.status, 200);
}

#[tokio::test]
async fn unknown_paths_and_methods_are_problems() {
    let fixture = Fixture::new();
    fixture
        .get("/nope")
        .await
        .assert_problem(404, "no-such-path", "/nope");
    fixture
        .get("/publish/nope")
        .await
        .assert_problem(404, "no-such-path", "");
    let answer = fixture.get("/publish").await;
    answer.assert_problem(405, "method-not-allowed", "/publish does not take GET");
    assert_eq!(answer.header(header::ALLOW), "POST");
    let answer = fixture.post("/events", event("t", "1").to_string()).await;
    answer.assert_problem(405, "method-not-allowed", "POST");
    assert_eq!(answer.header(header::ALLOW), "GET,HEAD");
}

#[tokio::test]
async fn head_answers_like_get_without_a_body() {
    let fixture = Fixture::new();
    for path in [
        "/",
        "/stats",
        "/events",
        "/topics",
        "/health",
        "/metrics",
        "/openapi.json",
        "/redoc",
    ] {
        let head = Request::builder()
            .method(Method::HEAD)
            .uri(path)
            .body(Body::empty())
            .expect("valid");
        let answer = fixture.send(head).await;
        assert_eq!(
            (answer.status.as_u16(), answer.text.as_str()),
            (200, ""),
            "{path}"
        );
        assert_eq!(
            answer.header(header::CONTENT_TYPE),
            fixture.get(path).await.header(header::CONTENT_TYPE)
        );
    }
}

#[tokio::test]
async fn metrics_count_events_and_requests() {
    let fixture = Fixture::new();
    fixture.fill("t", 1..3).await;
    fixture.fill("t", 1..2).await;
    fixture.get("/nope").await;
    let prometheus = Request::get("/metrics")
        .header(
            header::ACCEPT,
            "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1",
        )
        .body(Body::empty());
    let answer = fixture.send(prometheus.expect("valid")).await;
    assert_eq!(
        answer.header(header::CONTENT_TYPE),
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    );
    for line in [
        "oncelog_events_received_total 3\n",
        "oncelog_events_accepted_total 2\n",
        "oncelog_events_duplicate_total 1\n",
        "oncelog_events_conflict_total 0\n",
        "oncelog_http_requests_total{route=\"/publish\",status=\"200\"} 3\n",
        "oncelog_http_requests_total{route=\"other\",status=\"404\"} 1\n",
        "oncelog_http_request_duration_seconds_count{route=\"/publish\"} 3\n",
        "oncelog_queue_capacity_events 100\n",
        "oncelog_index_segments 3\n",
        "oncelog_index_tier_segments{tier=\"1\"} 2\n",
        "oncelog_healthy 1\n",
    ] {
        assert!(answer.text.contains(line), "{line} is not in\n{}", answer.text);
    }
    assert!(answer.text.ends_with("# EOF\n"));
    let samples = |text: &str| -> std::collections::BTreeSet<String> {
        let names = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split([' ', '{']).next());
        names.map(str::to_owned).collect()
    };
    let older = fixture.get("/metrics").await;
    assert_eq!(
        older.header(header::CONTENT_TYPE),
        "text/plain; version=0.0.4; charset=utf-8"
    );
    assert_eq!(samples(&older.text), samples(&answer.text));
    for line in [
        "# TYPE oncelog_events_received_total counter\n",
        "# TYPE oncelog_build_info gauge\n",
        "# TYPE oncelog_http_request_duration_seconds histogram\n",
        "# TYPE oncelog_healthy gauge\n",
    ] {
        assert!(older.text.contains(line), "{line} is not in\n{}", older.text);
    }
    assert!(!older.text.contains("# EOF") && !older.text.contains("# UNIT"));
}
