//! What readers see: the view for people, filters and bounds of a page, damage.

use super::{Sent, batch, commit, commit_many, open, sent};
use crate::{
    event::format_micros,
    limits,
    store::{Order, Query, Store as _, TopicFilter},
};
use rusqlite::Connection;

fn all(limit: usize) -> Query {
    Query {
        shown: TopicFilter::all(),
        topic: None,
        source: None,
        from: None,
        to: None,
        order: Order::Ascending,
        position: None,
        limit,
    }
}

#[test]
fn the_view_shows_text_while_the_store_is_open() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let (mut writer, store) = open(&path);
    let event = sent("user.login", "a-1", r#"{"user": "ü", "n": 1.50}"#);
    commit(&mut writer, &store, std::slice::from_ref(&event));
    let connection = Connection::open(&path).unwrap();
    let row: [String; 6] = connection
        .query_row("SELECT * FROM processed_events LIMIT 5", [], |row| {
            Ok([
                row.get(0)?,
                row.get(1)?,
                row.get(2)?,
                row.get(3)?,
                row.get(4)?,
                row.get(5)?,
            ])
        })
        .unwrap();
    let stored = store.find("user.login", "a-1").unwrap().unwrap();
    assert_eq!(
        row,
        [
            event.topic,
            event.event_id,
            event.timestamp,
            event.source,
            event.payload,
            format_micros(stored.processed_at)
        ]
    );
}

#[test]
fn a_page_ends_when_it_holds_too_many_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let (mut writer, store) = open(&folder.path().join("events.db"));
    let payload = format!(r#"{{"a":"{}"}}"#, "x".repeat(1 << 20 >> 1));
    let events: Vec<Sent> = (0..12)
        .map(|number| sent("t", &number.to_string(), &payload))
        .collect();
    for events in events.chunks(4) {
        commit(&mut writer, &store, events);
    }
    let page = store.page(&all(1000)).unwrap();
    assert_eq!(
        page.events.len(),
        limits::MAX_PAGE_BYTES.div_ceil(payload.len() + 30)
    );
    assert!(!page.exhausted);
    let rest = store
        .page(&Query {
            position: Some(page.position),
            ..all(1000)
        })
        .unwrap();
    assert_eq!(page.events.len() + rest.events.len(), 12);
    assert!(rest.exhausted);
}

#[test]
fn a_page_ends_when_it_has_looked_at_too_many_rows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let (writer, store) =
        crate::store::sqlite::open_with(&path, std::sync::Arc::new(|| {}), Default::default()).unwrap();
    let mut writer = writer;
    let events: Vec<Sent> = (0..limits::MAX_PAGE_SCAN_ROWS + 10)
        .map(|number| sent("t", &number.to_string(), "{}"))
        .collect();
    writer.commit(&[&batch(&store.identity(), &events)]).unwrap();
    let query = Query {
        source: Some("nobody".to_owned()),
        ..all(10)
    };
    let page = store.page(&query).unwrap();
    assert!(page.events.is_empty());
    assert!(!page.exhausted);
    assert!(page.position >= 1 && page.position <= limits::MAX_PAGE_SCAN_ROWS as u64);
}

#[test]
fn a_damaged_row_is_an_error_that_names_it_and_never_an_answer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let (mut writer, store) = open(&path);
    commit_many(&mut writer, &store, "id", 30);
    let connection = Connection::open(&path).unwrap();
    connection
        .execute("UPDATE events SET payload = '{\"a\":2}' WHERE seq = 5", [])
        .unwrap();
    let by_position = store.page(&all(10)).unwrap_err().to_string();
    assert!(by_position.contains("event 5 "), "{by_position}");
    let by_identity = store.find("topic", "id-4").unwrap_err().to_string();
    assert!(by_identity.contains("event 5 "), "{by_identity}");
    let by_topic = store
        .page(&Query {
            topic: Some("topic".to_owned()),
            ..all(10)
        })
        .unwrap_err()
        .to_string();
    assert!(by_topic.contains("event 5 "), "{by_topic}");
    assert_eq!(store.find("topic", "id-5").unwrap().unwrap().seq, 6);
}

#[test]
fn a_missing_row_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let (mut writer, store) = open(&path);
    commit_many(&mut writer, &store, "id", 30);
    let connection = Connection::open(&path).unwrap();
    connection
        .execute("DELETE FROM events WHERE seq = 7", [])
        .unwrap();
    let message = store.page(&all(10)).unwrap_err().to_string();
    assert!(message.contains("event 7 of the log is missing"), "{message}");
}
