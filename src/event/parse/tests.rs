use super::*;
use crate::event::Fingerprint;
use proptest::prelude::*;

const IDENTITY: Identity = Identity {
    store: 7,
    secret: [9; 16],
};

const GOOD: &str =
    r#"{"topic":"t","event_id":"e","timestamp":"2025-10-23T10:00:00Z","source":"s","payload":{"a":1}}"#;

fn read(body: impl Into<Vec<u8>>, shape: Shape) -> Result<Batch, ParseError> {
    parse(body.into(), shape, &IDENTITY, 5)
}

/// The kind and the whole text of the error.
fn refused(body: impl Into<Vec<u8>>, shape: Shape) -> (ParseErrorKind, String) {
    let error = read(body, shape).unwrap_err();
    (error.kind, error.to_string())
}

#[track_caller]
fn assert_invalid(body: &str, message: &str) {
    assert_eq!(
        refused(body, Shape::Any),
        (ParseErrorKind::Invalid, message.to_owned())
    );
}

#[track_caller]
fn assert_not_json(body: impl Into<Vec<u8>>, message: &str) {
    assert_eq!(
        refused(body, Shape::Any),
        (ParseErrorKind::NotJson, message.to_owned())
    );
}

/// A good event with other text in place of the value of one field.
fn with(field: &str, value: &str) -> String {
    let old = match field {
        "topic" => r#""t""#,
        "event_id" => r#""e""#,
        "timestamp" => r#""2025-10-23T10:00:00Z""#,
        "source" => r#""s""#,
        _ => r#"{"a":1}"#,
    };
    GOOD.replacen(
        &format!(r#""{field}":{old}"#),
        &format!(r#""{field}":{value}"#),
        1,
    )
}

fn ids(batch: &Batch) -> Vec<&str> {
    batch.events().map(|event| event.event_id).collect()
}

#[test]
fn every_shape_is_read() {
    let two = format!("{},{}", GOOD, with("event_id", "\"f\""));
    for (body, shape, expected) in [
        (GOOD.to_owned(), Shape::Any, vec!["e"]),
        (format!(" \n[{two}]\t"), Shape::Any, vec!["e", "f"]),
        (format!(r#"{{"events":[{two}]}}"#), Shape::Any, vec!["e", "f"]),
        (
            format!(r#"{{ "ev\u0065nts" : [ {two} ] }}"#),
            Shape::Wrapped,
            vec!["e", "f"],
        ),
        (
            format!("\n  \r\n{GOOD}\r\n\n{}", with("event_id", "\"f\"")),
            Shape::Lines,
            vec!["e", "f"],
        ),
    ] {
        let batch = read(body.clone(), shape).unwrap_or_else(|error| panic!("{error}: {body}"));
        assert_eq!(ids(&batch), expected, "{body}");
    }
}

#[test]
fn a_byte_order_mark_is_skipped() {
    let two = format!("{GOOD}\n{}", with("event_id", "\"f\""));
    for (body, shape, expected) in [
        (GOOD.to_owned(), Shape::Any, vec!["e"]),
        (format!("[{GOOD}]"), Shape::Any, vec!["e"]),
        (format!(r#"{{"events":[{GOOD}]}}"#), Shape::Wrapped, vec!["e"]),
        (two, Shape::Lines, vec!["e", "f"]),
    ] {
        let batch = read(format!("\u{feff}{body}"), shape).unwrap_or_else(|error| panic!("{error}: {body}"));
        assert_eq!(ids(&batch), expected, "{body}");
        assert_eq!(batch.events().next().unwrap().topic, "t");
    }
    assert_not_json("\u{feff}", "not JSON: the body is empty");
    assert_not_json("\u{feff}x", "not JSON: expected value at line 1 column 1");
    // Only at the start.
    assert_not_json(
        "\u{feff}\u{feff}{}",
        "not JSON: expected value at line 1 column 1",
    );
}

#[test]
fn an_event_has_the_texts_that_were_sent() {
    let body = r#" { "payload" : { "b" : [ 1 , "\u0000é" ] } ,
        "source":"s \"q\" \ud83d\ude00","event_id":"ä","topic":"a\/b","timestamp":"2025-10-23T12:00:00.50+02:00"}"#;
    let batch = read(body, Shape::Any).unwrap();
    let event = batch.events().next().unwrap();
    assert_eq!(event.topic, "a/b");
    assert_eq!(event.event_id, "ä");
    assert_eq!(event.source, "s \"q\" 😀");
    assert_eq!(event.timestamp, "2025-10-23T10:00:00.50Z");
    assert_eq!(event.payload, r#"{ "b" : [ 1 , "\u0000é" ] }"#);
    assert_eq!(event.seconds, 1_761_213_600);
    assert_eq!(event.key, IDENTITY.key("a/b", "ä"));
    assert_eq!(event.fingerprint, Fingerprint::of(event.payload).unwrap());
}

#[test]
fn a_payload_that_was_left_out_is_an_empty_object() {
    let without = GOOD.replace(r#","payload":{"a":1}"#, "");
    let batch = read(format!("[{without},{GOOD},{without}]"), Shape::Any).unwrap();
    let payloads: Vec<_> = batch.events().map(|event| event.payload).collect();
    assert_eq!(payloads, ["{}", r#"{"a":1}"#, "{}"]);
    assert_eq!(
        batch.events().next().unwrap().fingerprint,
        Fingerprint::of("{ }").unwrap()
    );
}

#[test]
fn what_is_not_json_is_told_from_what_is_not_an_event() {
    assert_not_json("", "not JSON: the body is empty");
    assert_not_json(" \n", "not JSON: the body is empty");
    assert_not_json(
        r#"{"topic":"#,
        "not JSON: EOF while parsing a value at line 1 column 9",
    );
    assert_not_json("hello", "not JSON: expected value at line 1 column 1");
    assert_not_json(
        format!("{GOOD} x"),
        "not JSON: trailing characters at line 1 column 96",
    );
    assert_not_json(
        format!("{GOOD}{GOOD}"),
        "not JSON: trailing characters at line 1 column 95",
    );
    assert_not_json(
        format!("[{GOOD},]"),
        "not JSON: expected value at line 1 column 97",
    );
    assert_not_json(
        with("payload", r#"{"a":01}"#),
        "not JSON: invalid number at line 1 column 93",
    );
    assert_not_json(
        with("topic", r#""\x""#),
        "not JSON: invalid escape at line 1 column 12",
    );
    assert_not_json(
        with("topic", "\"\u{1}\""),
        "not JSON: control character (\\u0000-\\u001F) found while parsing a string at line 1 column 10",
    );
    assert_not_json(b"\"\xff\"", "not JSON: invalid UTF-8 at byte 1");
    // A wrong event before the place where the JSON breaks: it is not JSON all the same.
    assert_not_json(
        r#"[{"topic":5},"#,
        "not JSON: EOF while parsing a value at line 1 column 13",
    );
}

#[test]
fn a_body_of_another_type_is_refused() {
    let shapes = "must be an event, an array of events or `{\"events\":[…]}`";
    assert_invalid("5", &format!("body: {shapes}, not a number"));
    assert_invalid("null", &format!("body: {shapes}, not null"));
    assert_invalid("true", &format!("body: {shapes}, not a boolean"));
    assert_invalid(r#""x""#, &format!("body: {shapes}, not a string"));
    assert_invalid("[1]", "events[0]: must be an event (an object), not a number");
    assert_invalid("[[]]", "events[0]: must be an event (an object), not an array");
    assert_invalid(
        r#"{"events":{}}"#,
        "events: must be an array of events, not an object",
    );
    assert_invalid(
        r#"{"events":null}"#,
        "events: must be an array of events, not null",
    );
}

#[test]
fn no_events_at_all_are_refused() {
    for (body, shape, place) in [
        ("[]", Shape::Any, "body"),
        (r#"{"events":[]}"#, Shape::Any, "events"),
        (r#"{"events":[ ]}"#, Shape::Wrapped, "events"),
        ("", Shape::Lines, "body"),
        ("\n \r\n\n", Shape::Lines, "body"),
        ("\u{feff}\n", Shape::Lines, "body"),
    ] {
        let expected = (
            ParseErrorKind::Invalid,
            format!("{place}: must have at least one event"),
        );
        assert_eq!(refused(body, shape), expected);
    }
}

#[test]
fn the_wrapper_has_one_field_only() {
    assert_invalid(
        &format!(r#"{{"events":[{GOOD}],"more":1}}"#),
        "more: unknown field; beside `events` no other is allowed",
    );
    assert_invalid(
        &format!(r#"{{"events":[{GOOD}],"events":[{GOOD}]}}"#),
        "events: duplicate field",
    );
    for (body, found) in [
        (GOOD, "but its first field is not `events`"),
        ("{}", "but its first field is not `events`"),
        ("[]", "not an array"),
        ("1", "not a number"),
    ] {
        let (kind, message) = refused(body, Shape::Wrapped);
        assert_eq!(kind, ParseErrorKind::Invalid);
        assert_eq!(message, format!("body: must be `{{\"events\":[…]}}`, {found}"));
    }
}

#[test]
fn fields_are_known_single_and_complete() {
    assert_invalid("{}", "topic: missing field");
    let without_source = GOOD.replace(r#""source":"s","#, "");
    assert_invalid(&without_source, "source: missing field");
    assert_invalid(
        &format!("[{GOOD},{without_source}]"),
        "events[1].source: missing field",
    );
    let fields = "unknown field; an event has `topic`, `event_id`, `timestamp`, `source`, `payload`";
    assert_invalid(
        &format!("[{GOOD},{}]", GOOD.replacen('{', r#"{"foo":1,"#, 1)),
        &format!("events[1].foo: {fields}"),
    );
    assert_invalid(&GOOD.replace("payload", "events"), &format!("events: {fields}"));
    assert_invalid(&GOOD.replace("source", "Topic"), &format!("Topic: {fields}"));
    assert_invalid(&GOOD.replace("source", "a b"), &format!("[\"a b\"]: {fields}"));
    let long = "x".repeat(300);
    assert_invalid(
        &GOOD.replace("source", &long),
        &format!("{}…: {fields}", &long[..40]),
    );
    assert_invalid(
        &GOOD.replacen('{', r#"{"topic":"u","#, 1),
        "topic: duplicate field",
    );
    assert_invalid(
        &GOOD.replacen('{', r#"{"t\u006fpic":"u","#, 1),
        "topic: duplicate field",
    );
}

#[test]
fn the_error_of_one_bad_event_among_good_ones_names_it_and_its_field() {
    let bad = with("timestamp", "\"yesterday\"");
    let (kind, message) = refused(format!(r#"{{"events":[{GOOD},{bad}]}}"#), Shape::Any);
    assert_eq!(kind, ParseErrorKind::Invalid);
    assert!(
        message.starts_with("events[1].timestamp: the year must have four digits; send"),
        "{message}"
    );
}

#[test]
fn names_are_strings_of_1_to_255_characters() {
    for field in ["topic", "event_id", "source"] {
        for (value, message) in [
            ("5", "must be a string, not a number"),
            ("null", "must be a string, not null"),
            (r#""""#, "must not be empty"),
            (r#""a\u0000b""#, "must not contain U+0000"),
            (
                r#""\ud800""#,
                "has a lone surrogate `\\ud800`; surrogates are allowed in pairs only",
            ),
            (
                r#""\udc00\ud800""#,
                "has a lone surrogate `\\udc00`; surrogates are allowed in pairs only",
            ),
        ] {
            assert_invalid(&with(field, value), &format!("{field}: {message}"));
        }
        // Four bytes each: characters count, not bytes.
        let longest = "😀".repeat(255);
        assert!(read(with(field, &format!("\"{longest}\"")), Shape::Any).is_ok());
        assert_invalid(
            &with(field, &format!("\"{longest}x\"")),
            &format!("{field}: must have at most 255 characters, not 256"),
        );
    }
}

#[test]
fn payloads_are_objects_within_bounds() {
    for (value, message) in [
        ("null", "payload: must be an object, not null"),
        ("[1]", "payload: must be an object, not an array"),
        (r#""{}""#, "payload: must be an object, not a string"),
        (
            r#"{"a":{"b":[0,{"c":1,"\u0063":2}]}}"#,
            "payload.a.b[1]: has the key `c` more than once",
        ),
        (
            r#"{"a b":["\ud800x"]}"#,
            "payload[\"a b\"][0]: has a lone surrogate `\\ud800`; surrogates are allowed in pairs only",
        ),
        (
            r#"{"a":1e1234567890123456789}"#,
            "payload.a: has a number whose exponent has 19 digits; at most 18 are allowed",
        ),
    ] {
        assert_invalid(&with("payload", value), message);
    }
    let nested = |depth: usize| format!("{}{}", r#"{"a":"#.repeat(depth - 1) + "{}", "}".repeat(depth - 1));
    assert!(read(with("payload", &nested(64)), Shape::Any).is_ok());
    let path = ".a".repeat(64);
    assert_invalid(
        &with("payload", &nested(65)),
        &format!("payload{path}: is nested deeper than the 64 levels allowed"),
    );
    // No stack is too small for it.
    let (kind, _) = refused(with("payload", &nested(1_000_000)), Shape::Any);
    assert_eq!(kind, ParseErrorKind::Invalid);
}

#[test]
fn an_event_has_a_largest_size() {
    let fill = MAX_EVENT_BYTES - with("payload", r#"{"a":""}"#).len();
    let event = |fill: usize| with("payload", &format!(r#"{{"a":"{}"}}"#, "x".repeat(fill)));
    assert!(read(event(fill), Shape::Any).is_ok());
    assert_invalid(
        &format!("[{}]", event(fill + 1)),
        "events[0]: the event has 1048577 bytes; at most 1048576 are allowed",
    );
}

#[test]
fn too_many_events_are_refused_without_reading_them_all() {
    let five = [GOOD; 5].join(",");
    assert_eq!(read(format!("[{five}]"), Shape::Any).unwrap().len(), 5);
    let message = "more than 5 events; a request may have at most that many";
    // What follows is not looked at.
    for (body, shape) in [
        (format!("[{five},{GOOD}"), Shape::Any),
        (format!("{}{{", five.replace("},{", "}\n{") + "\n"), Shape::Lines),
    ] {
        assert_eq!(
            refused(body, shape),
            (ParseErrorKind::TooManyEvents, message.to_owned())
        );
    }
}

#[test]
fn errors_in_ndjson_name_the_line() {
    for (line, kind, message) in [
        (
            "{",
            ParseErrorKind::NotJson,
            "line 3: not JSON: EOF while parsing an object at column 1",
        ),
        (
            &format!("{GOOD} {GOOD}"),
            ParseErrorKind::NotJson,
            "line 3: not JSON: trailing characters at column 96",
        ),
        (
            "[]",
            ParseErrorKind::Invalid,
            "line 3: must be an event (an object), not an array",
        ),
        ("{}", ParseErrorKind::Invalid, "line 3: topic: missing field"),
        (
            &with("source", "\"\""),
            ParseErrorKind::Invalid,
            "line 3: source: must not be empty",
        ),
        (
            &with("payload", r#"{"a":[{"b":1,"b":2}]}"#),
            ParseErrorKind::Invalid,
            "line 3: payload.a[0]: has the key `b` more than once",
        ),
    ] {
        let body = format!("{GOOD}\r\n\n{line}\n{GOOD}");
        assert_eq!(refused(body, Shape::Lines), (kind, message.to_owned()));
    }
}

#[test]
fn names_that_differ_in_case_or_unicode_form_are_different() {
    let body = format!(
        "[{},{},{},{}]",
        with("event_id", "\"\u{e9}\""),
        with("event_id", "\"e\u{301}\""),
        with("event_id", "\"A\""),
        with("event_id", "\"a\"")
    );
    let batch = read(body, Shape::Any).unwrap();
    let keys: std::collections::HashSet<_> = batch.events().map(|event| event.key).collect();
    assert_eq!(keys.len(), 4);
}

/// Texts that are nearly JSON: pieces that the parser knows, in any order.
fn nearly_json() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just(GOOD.to_owned()),
        prop::sample::select(vec![
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "\"",
            "\\",
            "\\u",
            "\\ud83d",
            "\\ude00",
            "\n",
            " ",
            "0",
            "-",
            "1.5",
            "e9",
            "null",
            "true",
            "\"topic\"",
            "\"events\":[",
            "\"payload\":{",
            "\"timestamp\"",
            "é",
            "\u{1}",
        ])
        .prop_map(str::to_owned),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

/// A good event with a few bytes changed.
fn damaged_event() -> impl Strategy<Value = Vec<u8>> {
    let good = r#"{"topic":"a\n😀","event_id":"e","timestamp":"2025-10-23T10:00:00Z","source":"s","payload":{"a":[-1.5e+3,true,null,"x\ud83d\ude00"],"b":{}}}"#;
    prop::collection::vec((0..good.len(), any::<u8>(), any::<bool>()), 0..3).prop_map(|changes| {
        let mut bytes = good.as_bytes().to_vec();
        for (at, byte, remove) in changes {
            let at = at % bytes.len();
            if remove {
                bytes.remove(at);
            } else {
                bytes[at] = byte;
            }
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn our_scanner_and_serde_json_know_the_same_json(
        body in prop_oneof![
            nearly_json().prop_map(String::into_bytes),
            damaged_event(),
            prop::collection::vec(any::<u8>(), 0..40),
        ]
    ) {
        // `from_slice` would not check the UTF-8 of what it ignores.
        let is_json = std::str::from_utf8(&body).is_ok_and(|body| {
            let body = body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body);
            serde_json::from_str::<IgnoredAny>(body).is_ok()
        });
        match read(body.clone(), Shape::Any) {
            Ok(_) => prop_assert!(is_json),
            Err(error) => {
                prop_assert_eq!(error.kind == ParseErrorKind::Invalid, is_json);
                prop_assert_ne!(error.message, "not JSON: the syntax is wrong");
            }
        }
        // These must not panic.
        let _ = read(body.clone(), Shape::Wrapped);
        let _ = read(body, Shape::Lines);
    }

    #[test]
    fn names_and_payloads_come_back_as_they_were(
        topic in "\\PC{1,20}", source in "[^\0]{1,20}", key in ".*", value in ".*", escape in any::<bool>()
    ) {
        let string = |text: &str| {
            let json = serde_json::to_string(text).unwrap();
            if escape {
                escape_all(&json)
            } else {
                json
            }
        };
        let payload = format!("{{ {} : [{}] }}", string(&key), string(&value));
        let body = format!(
            r#"{{"topic":{},"event_id":"e","timestamp":"2025-10-23T10:00:00Z","source":{},"payload":{payload}}}"#,
            string(&topic), string(&source)
        );
        let batch = read(body, Shape::Any).unwrap();
        let event = batch.events().next().unwrap();
        prop_assert_eq!(event.topic, topic);
        prop_assert_eq!(event.source, source);
        prop_assert_eq!(event.payload, payload);
    }
}

/// The same JSON string with every character behind the first as `\u…`, unless it is escaped already.
fn escape_all(json: &str) -> String {
    let inner: String = serde_json::from_str(json).unwrap();
    let escaped: String = inner
        .encode_utf16()
        .map(|unit| format!("\\u{unit:04X}"))
        .collect();
    format!("\"{escaped}\"")
}

#[test]
fn what_was_valid_is_read_again_as_the_same() {
    let events = [
        GOOD.to_owned(),
        with("topic", r#""a\u0001\"\\\/\u00e9\ud83d\ude00é\n""#),
        with("timestamp", r#""20251023T120000,250+0200""#),
        with("timestamp", r#""2016-12-31T23:59:60Z""#),
        with("payload", "{ \"a\" :\n1.50e3,\"é\":[ ] }"),
        GOOD.replace(r#","payload":{"a":1}"#, ""),
    ];
    for event in &events {
        let first = read(event.as_str(), Shape::Any).unwrap();
        let mut json = b"[".to_vec();
        for event in first.events() {
            event.write_json(&mut json).unwrap();
        }
        json.push(b']');
        let again = read(json, Shape::Normalised).unwrap();
        let facts = |batch: &Batch| {
            let facts = batch
                .events()
                .map(|event| (event.checksum(), event.key, event.fingerprint, event.seconds));
            facts.collect::<Vec<_>>()
        };
        assert_eq!(facts(&first), facts(&again), "{event}");
    }
    for wrong in [GOOD, r#"{"events":[]}"#, "[]", "1"] {
        assert_eq!(
            refused(wrong, Shape::Normalised).0,
            ParseErrorKind::Invalid,
            "{wrong}"
        );
    }
}

/// Normalising makes a time longer. An event that is as large as it may be must not become one that is refused later.
#[test]
fn the_largest_event_stays_valid_when_it_is_normalised() {
    let short = with("timestamp", r#""20251023T1000""#);
    let padding = "x".repeat(MAX_EVENT_BYTES - short.len() - 1);
    let largest = short.replace(r#"{"a":1}"#, &format!(r#"{{"a":"{padding}"}}"#));
    assert_eq!(largest.len(), MAX_EVENT_BYTES);
    let batch = read(largest, Shape::Any);
    let batch = batch.unwrap_or_else(|error| panic!("{error}"));
    let mut json = b"[".to_vec();
    batch.events().next().unwrap().write_json(&mut json).unwrap();
    json.push(b']');
    assert!(json.len() > MAX_EVENT_BYTES + 2);
    assert_eq!(read(json, Shape::Normalised).unwrap().len(), 1);
}
