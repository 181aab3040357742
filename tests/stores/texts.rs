//! Every text that is valid comes back byte for byte.

use crate::{
    harness::Event,
    subject::{Opened, Subject, everything},
};

on_every_store! {
    payloads_come_back_byte_for_byte,
    every_character_comes_back_in_a_payload,
    every_character_makes_an_id_of_its_own,
    names_are_told_apart_byte_by_byte,
}

/// Stores events and reads them back, one by one and in pages.
fn check(opened: &mut Opened, events: &[Event]) {
    opened.commit(events);
    let read: Vec<Event> = opened
        .read_all(&everything(1000))
        .into_iter()
        .map(|event| Event {
            topic: event.topic,
            event_id: event.event_id,
            source: event.source,
            timestamp: event.timestamp,
            payload: event.payload,
        })
        .collect();
    assert_eq!(read.len(), events.len());
    for (read, event) in read.iter().zip(events) {
        assert!(read == event, "{:?}", event.identity());
        let found = opened.store.find(&event.topic, &event.event_id).unwrap().unwrap();
        assert!(found.payload == event.payload, "{:?}", event.identity());
    }
}

fn payloads_come_back_byte_for_byte<S: Subject>() {
    let subject = S::new();
    let deep = format!("{}{}", r#"{"a":"#.repeat(63) + "{}", "}".repeat(63));
    let large = format!(r#"{{"a":"{}"}}"#, "ü".repeat((1 << 19) - 512));
    let payloads = [
        "{}",
        "{ }",
        r#"{"a":"\u0000"}"#,
        r#"{"\u0000":"\u0000\u0001\u001f"}"#,
        r#"{"escapes":"\"\\\/\b\f\n\r\t\u00fc\ud83d\ude00"}"#,
        "{\r\n\t\"a\" :\t[ 1 , 2.50, -0.0, 1e400, 123456789012345678901234567890 ] ,\n\"b\":null}",
        r#"{"b":1,"a":{"d":true,"c":false}}"#,
        r#"{"":""}"#,
        r"{'}".replace('\'', r#""it's":"$1 \\x00 %s {0} ?""#).leak(),
        &deep,
        &large,
    ];
    let events: Vec<Event> = payloads
        .iter()
        .enumerate()
        .map(|(number, payload)| Event::new("t", &number.to_string()).with_payload(payload))
        .collect();
    check(&mut subject.open(), &events);
}

fn every_character_comes_back_in_a_payload<S: Subject>() {
    let subject = S::new();
    // Those below a space are only valid as escapes.
    let characters: Vec<char> = (' '..=char::MAX).filter(|c| !['"', '\\'].contains(c)).collect();
    let events: Vec<Event> = characters
        .chunks(1 << 16)
        .enumerate()
        .map(|(number, characters)| {
            let text: String = characters.iter().collect();
            Event::new("t", &number.to_string()).with_payload(&format!(r#"{{"{text}":"{text}"}}"#))
        })
        .collect();
    check(&mut subject.open(), &events);
}

fn every_character_makes_an_id_of_its_own<S: Subject>() {
    let subject = S::new();
    let characters: Vec<char> = ('\u{1}'..=char::MAX).collect();
    let events: Vec<Event> = characters
        .chunks(255)
        .map(|characters| {
            let text: String = characters.iter().collect();
            Event::new("t", &text).with_source(&text).with_payload("{}")
        })
        .collect();
    check(&mut subject.open(), &events);
}

fn names_are_told_apart_byte_by_byte<S: Subject>() {
    let subject = S::new();
    // The same to a reader, to a language, or after normalisation; not here. In the order of their bytes.
    let mut names = vec![
        "é",
        "e\u{301}",
        "E",
        "e",
        "ß",
        "ss",
        "ｅ",
        "a b",
        "a  b",
        "a ",
        " a",
        "a",
        "i",
        "ı",
        "I",
        "İ",
        "\u{1}",
        "\u{200b}a",
        "-",
        "_",
        "%",
        "'",
        "\"",
        "\\",
    ];
    let events: Vec<Event> = names
        .iter()
        .flat_map(|name| {
            [
                Event::new(name, "id"),
                Event::new("of all", name).with_payload("{}"),
            ]
        })
        .collect();
    let mut opened = subject.open();
    check(&mut opened, &events);
    let all = oncelog::store::TopicFilter::all();
    let told: Vec<String> = opened
        .store
        .topics(&all, None, 100)
        .unwrap()
        .into_iter()
        .map(|topic| topic.topic)
        .collect();
    names.push("of all");
    names.sort_unstable();
    assert_eq!(told, names);
}
