//! Events as a producer makes them, and reading them back.

use super::Client;
use serde_json::Value;
use std::fmt::Write as _;

/// An event to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) topic: String,
    pub(crate) event_id: String,
    pub(crate) source: String,
    pub(crate) timestamp: String,
    /// JSON text.
    pub(crate) payload: String,
}

impl Event {
    /// Its payload holds its id, so that it can be told from any other.
    pub(crate) fn new(topic: &str, event_id: &str) -> Self {
        Self {
            topic: topic.to_owned(),
            event_id: event_id.to_owned(),
            source: "tests".to_owned(),
            timestamp: "2025-10-23T10:00:00Z".to_owned(),
            payload: format!(r#"{{ "id":"{event_id}", "n":1.50 }}"#),
        }
    }

    /// Events of a topic with these numbers as ids, and payloads that only come back as they were when no byte is touched.
    pub(crate) fn numbered(topic: &str, numbers: std::ops::Range<usize>) -> Vec<Self> {
        let event = |number: usize| {
            Self::new(topic, &number.to_string())
                .with_payload(&format!(r#"{{ "n" : {number}.0, "text":"\u00e9 é {number}" }}"#))
        };
        numbers.map(event).collect()
    }

    pub(crate) fn with_payload(mut self, payload: &str) -> Self {
        payload.clone_into(&mut self.payload);
        self
    }

    pub(crate) fn with_source(mut self, source: &str) -> Self {
        source.clone_into(&mut self.source);
        self
    }

    pub(crate) fn at(mut self, timestamp: &str) -> Self {
        timestamp.clone_into(&mut self.timestamp);
        self
    }

    /// Its identity.
    pub(crate) fn identity(&self) -> (String, String) {
        (self.topic.clone(), self.event_id.clone())
    }

    /// As JSON; the payload byte for byte.
    pub(crate) fn json(&self) -> String {
        let text = |text: &str| Value::from(text).to_string();
        format!(
            r#"{{"topic":{},"event_id":{},"timestamp":{},"source":{},"payload":{}}}"#,
            text(&self.topic),
            text(&self.event_id),
            text(&self.timestamp),
            text(&self.source),
            self.payload
        )
    }

    /// `{"events":[…]}`.
    pub(crate) fn wrapped(events: &[Self]) -> Vec<u8> {
        format!(r#"{{"events":{}}}"#, Self::array_text(events)).into_bytes()
    }

    /// `[…]`.
    pub(crate) fn array(events: &[Self]) -> Vec<u8> {
        Self::array_text(events).into_bytes()
    }

    /// One event a line.
    pub(crate) fn lines(events: &[Self]) -> Vec<u8> {
        events
            .iter()
            .fold(String::new(), |mut lines, event| {
                let _ = writeln!(lines, "{}", event.json());
                lines
            })
            .into_bytes()
    }

    fn array_text(events: &[Self]) -> String {
        let events: Vec<_> = events.iter().map(Self::json).collect();
        format!("[{}]", events.join(","))
    }
}

/// All events that a query finds, by following its cursor to the end. `parameters` begin with nothing or end with `&`.
#[track_caller]
pub(crate) fn read_all(client: &mut Client, parameters: &str) -> Vec<Value> {
    let mut events = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = client.get(&format!("/events?{parameters}{cursor}")).ok();
        let found = page["events"].as_array().expect("events");
        assert_eq!(page["count"], found.len(), "count in {page}");
        events.extend(found.iter().cloned());
        if page["next"].is_null() || page["caught_up"] == true {
            return events;
        }
        cursor = format!("cursor={}", page["next"].as_str().expect("next"));
    }
}

/// Topic and id of each event.
pub(crate) fn identities(events: &[Value]) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    events
        .iter()
        .map(|event| (text(&event["topic"]), text(&event["event_id"])))
        .collect()
}
