//! Reading events: pages in both directions, cursors, filters, waiting.

use crate::http::testing::{Answer, Fault, Fixture, event};
use axum::http::StatusCode;
use proptest::prelude::*;
use serde_json::{Value, json};

fn ids(page: &Value) -> Vec<String> {
    page["events"]
        .as_array()
        .expect("events")
        .iter()
        .map(|event| event["event_id"].as_str().expect("an id").to_owned())
        .collect()
}

#[tokio::test]
async fn a_page_has_the_fields_of_the_contract_in_order() {
    let fixture = Fixture::new();
    let body = r#"{"topic":"user.login","event_id":"1","timestamp":"2025-10-23T10:00:00+02:00","source":"s","payload":{ "b":1.0, "a":[] }}"#;
    fixture.post("/publish", body).await;
    let answer = fixture.get("/events?topic=user.login&limit=10").await;
    assert_eq!(
        answer.text,
        concat!(
            r#"{"topic":"user.login","count":1,"events":[{"seq":1,"topic":"user.login","event_id":"1","#,
            r#""timestamp":"2025-10-23T08:00:00Z","source":"s","payload":{ "b":1.0, "a":[] },"#,
            r#""processed_at":"2025-10-23T10:00:00.123456Z"}],"next":null}"#
        )
    );
    let one = fixture.get("/events/user.login/1").await;
    assert_eq!(one.json(), answer.json()["events"][0]);
    assert_eq!(fixture.get("/events").await.json()["topic"], Value::Null);
}

#[tokio::test]
async fn newest_first_is_the_default_and_next_ends_with_null() {
    let fixture = Fixture::new();
    fixture.fill("t", 1..6).await;
    let first = fixture.get("/events?limit=3").await.json();
    assert_eq!(ids(&first), ["e5", "e4", "e3"]);
    assert!(first.get("caught_up").is_none());
    let next = first["next"].as_str().expect("more is left");
    let second = fixture
        .get(&format!("/events?limit=3&cursor={next}"))
        .await
        .json();
    assert_eq!(ids(&second), ["e2", "e1"]);
    assert_eq!(second["next"], Value::Null);
}

#[tokio::test]
async fn oldest_first_always_has_a_cursor_that_goes_on() {
    let fixture = Fixture::new();
    fixture.fill("t", 1..3).await;
    let page = fixture.get("/events?order=asc").await.json();
    assert_eq!(ids(&page), ["e1", "e2"]);
    assert_eq!(page["caught_up"], true);
    fixture.fill("t", 3..4).await;
    let next = page["next"].as_str().expect("a cursor");
    let more = fixture.get(&format!("/events?cursor={next}")).await.json();
    assert_eq!(ids(&more), ["e3"]);
}

#[tokio::test]
async fn an_empty_store_is_read_in_both_directions() {
    let fixture = Fixture::new();
    assert_eq!(
        fixture.get("/events").await.json(),
        json!({"topic": null, "count": 0, "events": [], "next": null})
    );
    let page = fixture.get("/events?order=asc").await.json();
    fixture.fill("t", 1..2).await;
    let next = page["next"].as_str().expect("a cursor");
    assert_eq!(
        ids(&fixture.get(&format!("/events?cursor={next}")).await.json()),
        ["e1"]
    );
}

#[tokio::test]
async fn filters_hold_together() {
    let fixture = Fixture::new();
    for (topic, id, source, time) in [
        ("a", "1", "s", "2025-01-01T00:00:00Z"),
        ("a", "2", "s", "2025-01-02T00:00:00Z"),
        ("a", "3", "other", "2025-01-02T00:00:00Z"),
        ("b", "4", "s", "2025-01-02T00:00:00Z"),
        ("a", "5", "s", "2025-01-03T00:00:00Z"),
    ] {
        let mut event = event(topic, id);
        event["source"] = json!(source);
        event["timestamp"] = json!(time);
        assert_eq!(
            fixture.post("/publish", event.to_string()).await.status,
            StatusCode::OK
        );
    }
    let page = fixture
        .get("/events?topic=a&source=s&from=2025-01-02T00:00:00Z&to=2025-01-03T00:00:00Z")
        .await;
    assert_eq!(ids(&page.json()), ["2"]);
}

#[tokio::test]
async fn wrong_parameters_are_named() {
    let fixture = Fixture::new();
    let long = format!("topic={}", "x".repeat(256));
    for (query, part) in [
        (
            "limit=0",
            "limit: a whole number from 1 to 1000 is needed, not \"0\"",
        ),
        ("limit=1001", "limit: a whole number from 1 to 1000"),
        ("limit=ten", "limit: "),
        ("limit=%2B5", "limit: "),
        ("topic=", "topic: must not be empty"),
        ("source=", "source: must not be empty"),
        ("topic=a%00", "topic: must not contain U+0000"),
        (&long, "topic: must have at most 255 characters, not 256"),
        ("order=up", "order: asc or desc is needed, not \"up\""),
        ("topics=a", "topics: unknown parameter"),
        ("topic=a&topic=b", "topic: given more than once"),
        ("topic=%FF", "topic: the percent-encoded value is not UTF-8"),
        ("from=yesterday", "from: "),
        ("to=2025-01-01T00:00:00+02:00", "write + as %2B"),
        ("wait=1", "wait: only with order=asc"),
        ("order=asc&wait=31", "wait: a whole number from 0 to 30"),
        ("position=end", "position: only with order=asc"),
        ("order=asc&position=middle", "position: start or end"),
    ] {
        let answer = fixture.get(&format!("/events?{query}")).await;
        answer.assert_problem(422, "invalid-parameter", part);
        let name = query.rsplit('&').next().and_then(|pair| pair.split('=').next());
        assert_eq!(answer.json()["place"].as_str(), name, "{query}");
    }
}

#[tokio::test]
async fn wrong_cursors_each_say_why() {
    let fixture = Fixture::new();
    fixture.fill("t", 1..3).await;
    let next = |page: Answer| page.json()["next"].as_str().expect("a cursor").to_owned();
    let down = next(fixture.get("/events?limit=1").await);
    let up = next(fixture.get("/events?order=asc").await);
    let topics = {
        fixture.fill("u", 1..2).await;
        next(fixture.get("/topics?limit=1").await)
    };
    let ahead = {
        let other = Fixture::new();
        other.fill("t", 1..9).await;
        next(other.get("/events?order=asc").await)
    };
    for (query, part) in [
        ("cursor=made-up".to_owned(), "none that this server gave out"),
        ("cursor=".to_owned(), "none that this server gave out"),
        (
            format!("cursor={}", "A".repeat(up.len())),
            "none that this server gave out",
        ),
        (
            format!("cursor={down}&order=asc"),
            "of order=desc, not of order=asc",
        ),
        (
            format!("cursor={up}&order=desc"),
            "of order=asc, not of order=desc",
        ),
        (format!("cursor={topics}"), "of GET /topics"),
        (format!("cursor={ahead}"), "ahead of the store"),
    ] {
        let answer = fixture.get(&format!("/events?{query}")).await;
        answer.assert_problem(422, "invalid-cursor", part);
    }
    assert_eq!(
        fixture.get(&format!("/events?cursor={up}&wait=0")).await.status,
        StatusCode::OK
    );
}

#[tokio::test]
async fn the_end_is_where_following_starts() {
    let fixture = Fixture::new();
    fixture.fill("t", 1..4).await;
    let end = fixture.get("/events?order=asc&position=end").await.json();
    assert_eq!((&end["count"], &end["caught_up"]), (&json!(0), &json!(true)));
    fixture.fill("t", 4..5).await;
    let next = end["next"].as_str().expect("a cursor");
    assert_eq!(
        ids(&fixture.get(&format!("/events?cursor={next}")).await.json()),
        ["e4"]
    );
    let start = fixture
        .get("/events?order=asc&position=start&limit=1")
        .await
        .json();
    assert_eq!(ids(&start), ["e1"]);
}

#[tokio::test]
async fn waiting_ends_with_the_next_commit() {
    let fixture = Fixture::new();
    fixture.fill("t", 1..2).await;
    let end = fixture.get("/events?order=asc&topic=u").await.json();
    let path = format!(
        "/events?topic=u&wait=30&cursor={}",
        end["next"].as_str().expect("a cursor")
    );
    let pages = fixture.store.pages();
    let (page, ()) = tokio::join!(fixture.get(&path), async {
        fixture.pages_beyond(pages).await;
        fixture.fill("other", 1..2).await;
        fixture.pages_beyond(pages + 1).await;
        fixture.fill("u", 2..3).await;
    });
    assert_eq!(ids(&page.json()), ["e2"]);
}

#[tokio::test]
async fn waiting_ends_at_once_when_the_server_stops() {
    let fixture = Fixture::new();
    let (page, ()) = tokio::join!(fixture.get("/events?order=asc&wait=30"), async {
        fixture.pages_beyond(0).await;
        fixture.stop.send_replace(true);
    });
    assert_eq!(page.json()["count"], 0);
    assert_eq!(page.json()["caught_up"], true);
}

#[tokio::test]
async fn waiting_ends_when_its_time_is_over() {
    let fixture = Fixture::new();
    let page = fixture.get("/events?order=asc&wait=1").await;
    assert_eq!(
        (&page.json()["count"], &page.json()["caught_up"]),
        (&json!(0), &json!(true))
    );
    assert!(fixture.store.pages() >= 2, "it looked again before it gave up");
}

#[tokio::test]
async fn waiting_does_not_stop_at_an_empty_page() {
    let fixture = Fixture::new();
    fixture.fill("t", 1..9).await;
    fixture.fill("u", 9..10).await;
    fixture.store.set_scan_rows(3);
    let short = fixture.get("/events?order=asc&topic=u").await.json();
    assert_eq!((&short["count"], &short["caught_up"]), (&json!(0), &json!(false)));
    let waited = fixture.get("/events?order=asc&topic=u&wait=30").await.json();
    assert_eq!(ids(&waited), ["e9"]);
}

#[tokio::test]
async fn path_parts_are_decoded_one_by_one() {
    let fixture = Fixture::new();
    fixture.post("/publish", event("a/b c%", "é/1").to_string()).await;
    let answer = fixture.get("/events/a%2Fb%20c%25/%C3%A9%2F1").await;
    assert_eq!(answer.json()["event_id"], "é/1");
    fixture
        .get("/events/a/b/1")
        .await
        .assert_problem(404, "no-such-path", "");
    fixture
        .get("/events/a/b")
        .await
        .assert_problem(404, "no-such-event", "\"b\"");
    fixture
        .get("/events/%FF/b")
        .await
        .assert_problem(422, "invalid-parameter", "UTF-8");
    fixture.get("/events/a/b%00").await.assert_problem(
        422,
        "invalid-parameter",
        "event_id: must not contain U+0000",
    );
    fixture
        .get("/events/a/b?x=1")
        .await
        .assert_problem(422, "invalid-parameter", "x: ");
}

#[tokio::test]
async fn a_store_that_cannot_be_read_is_500() {
    let fixture = Fixture::new();
    fixture.store.set_fault(Fault::Reads);
    for path in ["/events", "/events?order=asc&wait=1", "/events/a/b"] {
        fixture
            .get(path)
            .await
            .assert_problem(500, "internal-error", "row 7 is damaged");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn pages_return_every_event_exactly_once(
        topics in prop::collection::vec(0_u8..3, 0..40),
        limits in prop::collection::vec(1_usize..9, 1..6),
        scan_rows in 1_usize..8,
        ascending: bool,
        only_topic: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let fixture = Fixture::new();
            for (number, topic) in topics.iter().enumerate() {
                fixture.post("/publish", event(&format!("t{topic}"), &number.to_string()).to_string()).await;
            }
            fixture.store.set_scan_rows(scan_rows);
            let mut expected: Vec<String> = topics
                .iter()
                .enumerate()
                .filter(|(_, topic)| !only_topic || **topic == 1)
                .map(|(number, _)| number.to_string())
                .collect();
            if !ascending {
                expected.reverse();
            }
            let base = format!(
                "/events?order={}{}",
                if ascending { "asc" } else { "desc" },
                if only_topic { "&topic=t1" } else { "" }
            );
            let mut found = Vec::new();
            let mut cursor = String::new();
            for limit in limits.iter().cycle() {
                let page = fixture.get(&format!("{base}&limit={limit}{cursor}")).await.json();
                found.extend(ids(&page));
                if page["next"].is_null() || page["caught_up"] == true {
                    break;
                }
                cursor = format!("&cursor={}", page["next"].as_str().expect("a cursor"));
            }
            assert_eq!(found, expected);
        });
    }
}
