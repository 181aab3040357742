//! The good stores that are damaged, and what they must answer.

use crate::harness::{Client, Event, Folder, Server, eventually, verify};
use rusqlite::{Connection, OpenFlags};
use serde::Deserialize;
use serde_json::{Value, value::RawValue};
use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

pub(super) const SMALL: (&str, &str) = ("ONCELOG_SMALL_BOUNDS", "1");
const TOPICS: usize = 20;
/// Events in an index tail, with those bounds.
const TAIL_EVENTS: usize = 384;
/// Enough for two merged segments, two that wait to be merged, and a tail.
const EVENTS: usize = 8 * TAIL_EVENTS + 200;
/// Events that a page of the check has.
pub(super) const CHUNK: usize = 200;

/// A good store, and all that its server answered before it ended.
pub(super) struct Store {
    folder: Folder,
    pub(super) now: Answers,
    /// The same before the last commit.
    pub(super) before: Option<Answers>,
}

/// What a server answers.
#[derive(Clone)]
pub(super) struct Answers {
    /// The events as they are in answers, from seq 1.
    pub(super) events: Vec<Stored>,
    /// The cursors of the places 0, [`CHUNK`], 2 [`CHUNK`], …; the first one is empty.
    pub(super) cursors: Vec<String>,
    pub(super) counters: [u64; 4],
    pub(super) topics: Value,
}

/// An event as it comes back.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) text: Box<RawValue>,
    pub(super) event: Event,
}

#[derive(Deserialize)]
struct Page {
    events: Vec<Box<RawValue>>,
    next: String,
    caught_up: bool,
}

#[derive(Deserialize)]
struct Fields {
    topic: String,
    event_id: String,
    timestamp: String,
    source: String,
    payload: Box<RawValue>,
}

impl Stored {
    fn new(text: Box<RawValue>) -> Self {
        let fields: Fields = serde_json::from_str(text.get()).unwrap();
        let event = Event::new(&fields.topic, &fields.event_id)
            .at(&fields.timestamp)
            .with_source(&fields.source)
            .with_payload(fields.payload.get());
        Self { text, event }
    }
}

impl Answers {
    pub(super) fn of(client: &mut Client) -> Self {
        let (mut events, mut cursors, mut cursor) = (Vec::new(), vec![String::new()], String::new());
        loop {
            let answer = client.get(&format!("/events?order=asc&limit={CHUNK}{cursor}"));
            answer.ok();
            let page: Page = serde_json::from_slice(&answer.body).unwrap();
            events.extend(page.events.into_iter().map(Stored::new));
            if page.caught_up {
                break;
            }
            cursor = format!("&cursor={}", page.next);
            cursors.push(cursor.clone());
        }
        Self {
            events,
            cursors,
            counters: client.counters(),
            topics: client.get("/topics").ok()["topics"].clone(),
        }
    }
}

impl Store {
    /// One that was stopped.
    pub(super) fn stopped() -> Self {
        let folder = Folder::new();
        let server = fill(&folder);
        let now = Answers::of(&mut server.client());
        server.stop();
        verify(&folder);
        Self {
            folder,
            now,
            before: None,
        }
    }

    /// One that was killed with commits in its write-ahead log; `last` is done to the running server before that.
    pub(super) fn killed(last: impl FnOnce(&mut Client, &Folder)) -> Self {
        let folder = Folder::new();
        let server = fill(&folder);
        let mut client = server.client();
        last(&mut client, &folder);
        let before = Answers::of(&mut client);
        publish(&mut client, &[event(EVENTS + 5000), event(0)]);
        let now = Answers::of(&mut client);
        // The background has done what it was asked for, so that nothing changes in the middle of a copy.
        thread::sleep(Duration::from_millis(50));
        server.kill9();
        Self {
            folder,
            now,
            before: Some(before),
        }
    }

    /// A store of its own, of the same content.
    pub(super) fn copy(&self) -> Folder {
        let copy = Folder::new();
        copy_folder(&self.folder.path().join("data"), &copy.path().join("data"));
        copy
    }

    pub(super) fn folder(&self) -> &Folder {
        &self.folder
    }

    pub(super) fn database(&self) -> PathBuf {
        self.folder.database()
    }

    pub(super) fn log(&self) -> PathBuf {
        log_of(&self.folder)
    }

    /// The names of the index's files, in the order of the log.
    pub(super) fn segments(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.folder.index())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    pub(super) fn segment(&self, name: &str) -> Vec<u8> {
        fs::read(self.folder.index().join(name)).unwrap()
    }
}

pub(super) fn log_of(folder: &Folder) -> PathBuf {
    folder.path().join("data/dedup.db-wal")
}

pub(super) fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The event with this number: topics, times and payloads of all sizes.
pub(super) fn event(number: usize) -> Event {
    let mut random = fastrand::Rng::with_seed(number as u64);
    let id = format!("{number}-{:x}", random.u64(..));
    let event = Event::new(&format!("topic-{}", number % TOPICS), &id)
        .with_source(&format!("host {}", number % 7))
        .at(&time(number));
    match number % 80 {
        // On one more page, or on some.
        7 => large(event, random.usize(8_500..12_000)),
        27 => large(event, random.usize(2_000..8_000)),
        // On many.
        13 if number % 400 == 13 => large(event, random.usize(30_000..60_000)),
        _ => event,
    }
}

fn large(event: Event, bytes: usize) -> Event {
    let text: String = std::iter::repeat_n("0123456789 ", bytes / 11).collect();
    event.with_payload(&format!(r#"{{"text":"{text}"}}"#))
}

/// Each event is a minute later than the one before.
pub(super) fn time(number: usize) -> String {
    let (minutes, hours) = (number % 60, number / 60);
    format!(
        "2025-01-{:02}T{:02}:{minutes:02}:00Z",
        1 + hours / 24 % 28,
        hours % 24
    )
}

pub(super) fn publish(client: &mut Client, events: &[Event]) {
    client.publish(events);
}

/// Starts a server and gives it all events in commits of many sizes, with duplicates and conflicts among them.
fn fill(folder: &Folder) -> Server {
    let server = Server::start_in(folder.clone(), &[SMALL]);
    let mut client = server.client();
    let mut random = fastrand::Rng::with_seed(7);
    let mut next = 0;
    while next < EVENTS {
        let end = EVENTS.min(next + random.usize(1..12));
        let mut events: Vec<_> = (next..end).map(event).collect();
        for _ in 0..random.usize(0..20) {
            let again = event(random.usize(0..end));
            events.push(match random.usize(0..30) {
                0 => again.with_payload(r#"{"another":true}"#),
                _ => again,
            });
        }
        publish(&mut client, &events);
        next = end;
    }
    let metrics = |client: &mut Client, name: &str| -> u64 {
        let metrics = client.get("/metrics");
        let line = metrics.text().lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|value| value.trim().parse().ok()).unwrap()
    };
    eventually("all merges are done", || {
        (metrics(&mut client, "oncelog_index_segments ") == 4).then_some(())
    });
    // Until the counters are folded once more, which leaves pages that are free.
    let looker = Connection::open_with_flags(folder.database(), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    eventually("the file has free pages", || {
        let again: Vec<_> = (0..TOPICS).map(event).collect();
        publish(&mut client, &again);
        let free: i64 = looker
            .query_row("PRAGMA freelist_count", [], |row| row.get(0))
            .unwrap();
        (free > 4).then_some(())
    });
    server
}
