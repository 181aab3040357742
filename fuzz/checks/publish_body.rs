//! What has to hold for every publish body, valid or not. Shared by the fuzz target and the test that replays its
//! corpus.

use oncelog::event::{Batch, Fingerprint, Identity, ParseErrorKind, Shape, Timestamp, parse};
use serde::de::IgnoredAny;

/// Parses a body in every shape and panics when the result breaks a promise of [`parse`].
pub(crate) fn check(body: &[u8]) {
    const IDENTITY: Identity = Identity {
        store: 1,
        secret: [7; 16],
    };
    const MAX_EVENTS: usize = 20;
    let is_json = str::from_utf8(body).is_ok_and(|body| {
        // A byte order mark in front is skipped.
        let body = body.strip_prefix('\u{feff}').unwrap_or(body);
        serde_json::from_str::<IgnoredAny>(body).is_ok()
    });
    for shape in [Shape::Any, Shape::Wrapped, Shape::Lines] {
        match parse(body.to_vec(), shape, &IDENTITY, MAX_EVENTS) {
            Ok(batch) => {
                assert!(is_json || shape == Shape::Lines, "accepted what is not JSON");
                assert!((1..=MAX_EVENTS).contains(&batch.len()), "{} events", batch.len());
                check_events(&batch, &IDENTITY, body);
            }
            Err(error) if shape != Shape::Lines => match error.kind {
                ParseErrorKind::NotJson => assert!(!is_json, "JSON was refused: {error}"),
                ParseErrorKind::Invalid => assert!(is_json, "not JSON, but: {error}"),
                ParseErrorKind::TooManyEvents => {}
            },
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

fn check_events(batch: &Batch, identity: &Identity, body: &[u8]) {
    for event in batch.events() {
        for name in [event.topic, event.event_id, event.source] {
            assert!((1..=255).contains(&name.chars().count()) && !name.contains('\0'));
        }
        assert_eq!(event.key, identity.key(event.topic, event.event_id));
        let timestamp = Timestamp::parse(event.timestamp);
        assert!(
            timestamp.is_ok_and(|time| time.text == event.timestamp && time.instant.seconds == event.seconds)
        );
        assert!(Fingerprint::of(event.payload).is_ok_and(|fingerprint| fingerprint == event.fingerprint));
        let payload = event.payload.as_bytes();
        assert!(payload == b"{}" || body.windows(payload.len()).any(|part| part == payload));
    }
}
