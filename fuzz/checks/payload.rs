//! What has to hold for any two payloads: they have the same fingerprint when they are the same JSON value, and only
//! then. Shared by the fuzz target and the test that replays its corpus.

#![allow(clippy::expect_used, reason = "a check of a fuzz target fails by panicking")]

use oncelog::event::Fingerprint;
use serde_json::Value;

/// Takes the text up to the first line feed and the rest as a payload each, and compares with another reader of JSON.
pub(crate) fn check(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let (one, other) = text.split_once('\n').unwrap_or((text, text));
    let (Some(one), Some(other)) = (payload(one), payload(other)) else {
        return;
    };
    assert_eq!(
        one.value == other.value,
        one.fingerprint == other.fingerprint,
        "{} and {}",
        one.value,
        other.value
    );
}

struct Payload {
    value: Value,
    fingerprint: Fingerprint,
}

/// None for what is no valid payload, or has a number that the other reader would round.
fn payload(text: &str) -> Option<Payload> {
    let value = serde_json::from_str::<Value>(text);
    let fingerprint = Fingerprint::of(text).ok()?;
    let value = value.ok().or_else(|| {
        // It refuses numbers beyond its own.
        assert!(
            text.contains(['e', 'E', '.', '0']),
            "{text:?} is no JSON, and is taken"
        );
        None
    })?;
    if !is_exact(&value) {
        return None;
    }
    for again in [value.to_string(), format!("{value:#}")] {
        let respelled = Fingerprint::of(&again).expect("it was taken in another spelling");
        assert_eq!(fingerprint, respelled, "{text:?} and {again:?}");
    }
    Some(Payload { value, fingerprint })
}

fn is_exact(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.is_i64() || number.is_u64(),
        Value::Array(items) => items.iter().all(is_exact),
        Value::Object(members) => members.values().all(is_exact),
        _ => true,
    }
}
