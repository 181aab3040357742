//! What goes over the wire: bodies and query strings as the model makes them, and answers as it reads them, with nothing
//! in them that it does not know.

use super::{
    action::{Draft, Filter, Shape, Time},
    memory::Outcome,
};
use crate::harness::Answer;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json, value::RawValue};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Page {
    pub(super) topic: Option<String>,
    pub(super) count: usize,
    pub(super) events: Vec<Stored>,
    pub(super) next: Option<String>,
    pub(super) caught_up: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stored {
    pub(super) seq: u64,
    pub(super) topic: String,
    pub(super) event_id: String,
    pub(super) timestamp: String,
    pub(super) source: String,
    pub(super) payload: Box<RawValue>,
    pub(super) processed_at: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TopicPage {
    pub(super) count: usize,
    pub(super) topics: Vec<Topic>,
    pub(super) next: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Topic {
    pub(super) topic: String,
    pub(super) accepted: u64,
    pub(super) duplicates: u64,
    pub(super) conflicts: u64,
    pub(super) first_seq: u64,
    pub(super) first_processed_at: String,
    pub(super) last_seq: u64,
    pub(super) last_processed_at: String,
}

/// Queries that are refused, and what is wrong with them.
pub(super) const WRONG_QUERIES: [(&str, &str); 16] = [
    ("/events?limit=0", "parameter"),
    ("/events?limit=1001", "parameter"),
    ("/events?order=up", "parameter"),
    ("/events?topic=", "parameter"),
    ("/events?topic=a&topic=a", "parameter"),
    ("/events?from=yesterday", "parameter"),
    ("/events?to=2025-10-23T10:00:00+02:00", "parameter"),
    ("/events?order=desc&wait=1", "parameter"),
    ("/events?position=end", "parameter"),
    ("/events?order=asc&wait=31", "parameter"),
    ("/events?colour=red", "parameter"),
    ("/events?cursor=made-up", "cursor"),
    ("/events?cursor=", "cursor"),
    ("/topics?limit=0", "parameter"),
    ("/topics?cursor=made-up", "cursor"),
    ("/stats?topic=a", "parameter"),
];

pub(super) fn body(shape: Shape, events: &[Draft]) -> String {
    shape.body(&events.iter().map(Draft::json).collect::<Vec<_>>())
}

/// The answer to a publish.
pub(super) fn published(events: &[Draft], outcomes: &[(Outcome, u64)], results: bool) -> Value {
    let count = |wanted| outcomes.iter().filter(|(outcome, _)| *outcome == wanted).count();
    let (received, accepted) = (events.len(), count(Outcome::Stored));
    let duplicates = received - accepted;
    let mut answer = json!({
        "received": received,
        "accepted": accepted,
        "duplicates": duplicates,
        "conflicts": count(Outcome::Conflict),
        "message": format!("Received {received} events, accepted {accepted}, rejected {duplicates} duplicates"),
    });
    if results {
        answer["results"] = events
            .iter()
            .zip(outcomes)
            .map(|(event, (outcome, seq))| {
                json!({
                    "topic": event.topic,
                    "event_id": event.event_id,
                    "outcome": match outcome {
                        Outcome::Stored => "stored",
                        Outcome::Duplicate => "duplicate",
                        Outcome::Conflict => "conflict",
                    },
                    "seq": seq,
                })
            })
            .collect();
    }
    answer
}

/// Its parameters in a query string, in any order; each ends with `&`.
pub(super) fn question(filter: &Filter) -> String {
    let time = |time: &Option<Time>| time.as_ref().map(|time| time.sent.clone());
    [
        ("topic", filter.topic.map(str::to_owned)),
        ("source", filter.source.map(str::to_owned)),
        ("from", time(&filter.from)),
        ("to", time(&filter.to)),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some(format!("{name}={}&", encoded(&value?))))
    .collect()
}

pub(super) fn encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

#[track_caller]
pub(super) fn parsed<T: DeserializeOwned>(answer: &Answer) -> T {
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("application/json"));
    serde_json::from_slice(&answer.body).unwrap_or_else(|error| panic!("{error}: {}", answer.text()))
}
