//! The bounds of a page: however it ends, the next one goes on where it ended.

use crate::{
    harness::Event,
    subject::{Subject, everything},
};
use oncelog::{
    event::Instant,
    limits,
    store::{Order, Query, TopicFilter},
};

on_every_store! {
    a_page_ends_when_it_holds_too_many_bytes,
    a_page_ends_when_it_has_looked_at_too_many_rows,
    times_are_compared_to_the_nanosecond,
    what_is_not_shown_is_nowhere,
    nothing_is_found_in_an_empty_store,
}

fn a_page_ends_when_it_holds_too_many_bytes<S: Subject>() {
    let subject = S::new();
    let mut opened = subject.open();
    let payload = format!(r#"{{"a":"{}"}}"#, "x".repeat(1 << 19));
    // The third one is as large as an event may be, but for its other fields.
    let large = format!(r#"{{"a":"{}"}}"#, "x".repeat(limits::MAX_EVENT_BYTES - 1024));
    let events: Vec<Event> = (0..12)
        .map(|number| {
            let payload = if number == 2 { &large } else { &payload };
            Event::new("t", &number.to_string()).with_payload(payload)
        })
        .collect();
    for events in events.chunks(4) {
        opened.commit(events);
    }
    for (order, topic) in [
        (Order::Ascending, None),
        (Order::Descending, None),
        (Order::Ascending, Some("t")),
        (Order::Descending, Some("t")),
    ] {
        let mut query = Query {
            order,
            topic: topic.map(str::to_owned),
            ..everything(1000)
        };
        let mut ids = Vec::new();
        let mut pages = 0;
        loop {
            let page = opened.store.page(&query).unwrap();
            pages += 1;
            let bytes: usize = page.events.iter().map(|event| event.payload.len()).sum();
            let last = page.events.last().map_or(0, |event| event.payload.len());
            assert!(bytes - last < limits::MAX_PAGE_BYTES, "{bytes} bytes in a page");
            ids.extend(page.events.into_iter().map(|event| event.event_id));
            if page.exhausted {
                break;
            }
            query.position = Some(page.position);
        }
        let mut expected: Vec<String> = (0..12).map(|number: u32| number.to_string()).collect();
        if order == Order::Descending {
            expected.reverse();
        }
        assert_eq!(ids, expected, "{order:?}");
        assert!(pages > 1, "6.5 MiB are more than a page");
    }
}

fn a_page_ends_when_it_has_looked_at_too_many_rows<S: Subject>() {
    let subject = S::new();
    let mut opened = subject.open();
    let events: Vec<Event> = (0..limits::MAX_PAGE_SCAN_ROWS + 10)
        .map(|number| Event::new("t", &number.to_string()))
        .collect();
    let placed = opened.commit(&events);
    let query = Query {
        source: Some("nobody".to_owned()),
        ..everything(10)
    };
    let page = opened.store.page(&query).unwrap();
    assert!(page.events.is_empty());
    assert!(!page.exhausted);
    let farthest = placed[limits::MAX_PAGE_SCAN_ROWS - 1].seq;
    assert!(page.position >= placed[0].seq && page.position <= farthest);
    assert_eq!(opened.read_all(&query), []);
}

fn times_are_compared_to_the_nanosecond<S: Subject>() {
    let subject = S::new();
    let mut opened = subject.open();
    let times = [
        "0001-01-01T00:00:00Z",
        "1969-12-31T23:59:59.999999999Z",
        "2025-10-23T10:00:00Z",
        "2025-10-23T10:00:00.000000001Z",
        "2025-10-23T10:00:00.000000002Z",
        "2025-10-23T10:00:00.1200Z",
        "2025-10-23T10:00:00.999999999Z",
        "2025-10-23T10:00:01Z",
        "9999-12-31T23:59:59.999999999Z",
    ];
    let events: Vec<Event> = times.iter().map(|time| Event::new("t", time).at(time)).collect();
    opened.commit(&events);
    for (place, time) in times.iter().enumerate() {
        let found = opened.store.find("t", time).unwrap().unwrap();
        assert_eq!(found.timestamp, *time, "the digits come back as they were");
        let instant = Some(Instant::parse(time).unwrap());
        let ids = |query: Query| -> Vec<String> {
            let events = opened.read_all(&query).into_iter();
            events.map(|event| event.event_id).collect()
        };
        let from = Query {
            from: instant,
            ..everything(3)
        };
        let to = Query {
            to: instant,
            ..everything(3)
        };
        assert_eq!(ids(from), times[place..], "from {time}");
        assert_eq!(ids(to), times[..place], "to {time}");
    }
}

fn what_is_not_shown_is_nowhere<S: Subject>() {
    let subject = S::new();
    let mut opened = subject.open();
    let events: Vec<Event> = (0..30)
        .map(|number| Event::new(["hidden", "seen", "seen too"][number % 3], &number.to_string()))
        .collect();
    opened.commit(&events);
    let shown = TopicFilter::only(|name| name.starts_with("seen"));
    let count = |shown: &TopicFilter, topic: Option<&str>| {
        let query = Query {
            shown: shown.clone(),
            topic: topic.map(str::to_owned),
            ..everything(7)
        };
        opened.read_all(&query).len()
    };
    assert_eq!(count(&shown, None), 20);
    assert_eq!(count(&shown, Some("seen")), 10);
    assert_eq!(count(&shown, Some("hidden")), 0);
    let totals = opened.store.totals(&shown).unwrap();
    assert_eq!((totals.accepted, totals.topics), (20, 2));
    let names: Vec<String> = opened
        .store
        .topics(&shown, None, 10)
        .unwrap()
        .into_iter()
        .map(|topic| topic.topic)
        .collect();
    assert_eq!(names, ["seen", "seen too"]);
    let nothing = TopicFilter::only(|_| false);
    assert_eq!(count(&nothing, None), 0);
    assert_eq!(opened.store.totals(&nothing).unwrap().accepted, 0);
}

fn nothing_is_found_in_an_empty_store<S: Subject>() {
    let subject = S::new();
    let opened = subject.open();
    for order in [Order::Ascending, Order::Descending] {
        for topic in [None, Some("t".to_owned())] {
            let query = Query {
                order,
                topic,
                ..everything(10)
            };
            let page = opened.store.page(&query).unwrap();
            assert!(page.events.is_empty() && page.exhausted);
        }
    }
    assert_eq!(opened.store.find("t", "id").unwrap(), None);
    assert_eq!(opened.store.high_watermark(), 0);
    let (totals, topics) = opened.store.first_topics(10).unwrap();
    assert_eq!((totals.accepted, totals.topics), (0, 0));
    assert_eq!(topics, []);
}
