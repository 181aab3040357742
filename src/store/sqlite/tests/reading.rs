//! What readers see: the view for people, filters and bounds of a page, damage.

use super::{commit, commit_many, open, sent};
use crate::{
    event::format_micros,
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
