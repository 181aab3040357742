//! The index's files are derived from the log: one that is damaged, cut off or gone never makes a wrong answer, and is made
//! again. Files of ours that do not count are removed; all others are left alone.
//!
//! The index writes its first file when it holds 917,504 events, so these promises share one large store; the library's
//! own tests try every fault with small ones.

use crate::harness::{Client, Event, Folder, Server, eventually};
use serde_json::Value;
use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

const REQUEST_EVENTS: u32 = 10_000;
/// Enough for one segment, and some more that stay in memory.
const REQUESTS: u32 = 93;

/// One event of each request, so that all of the file is looked at.
fn sample() -> Vec<Event> {
    (0..REQUESTS)
        .map(|request| {
            Event::new(
                topic(request * REQUEST_EVENTS),
                &(request * REQUEST_EVENTS).to_string(),
            )
            .with_payload("{}")
        })
        .collect()
}

fn topic(number: u32) -> &'static str {
    ["a", "b", "c"][number as usize % 3]
}

fn fill(server: &Server) {
    let mut client = server.client();
    for request in 0..REQUESTS {
        let mut lines = String::new();
        for number in request * REQUEST_EVENTS..(request + 1) * REQUEST_EVENTS {
            let _ = writeln!(
                lines,
                r#"{{"topic":"{}","event_id":"{number}","timestamp":"2025-10-23T10:00:00Z","source":"s"}}"#,
                topic(number)
            );
        }
        let answer = client
            .post("/publish", "application/x-ndjson", lines.as_bytes())
            .ok();
        assert_eq!(answer["accepted"], REQUEST_EVENTS);
    }
    eventually("the first segment is listed", || {
        (gauge(&mut client, "oncelog_index_segments") == 1).then_some(())
    });
    assert_eq!(gauge(&mut client, "oncelog_index_tier_segments{tier=\"0\"}"), 1);
    assert_eq!(gauge(&mut client, "oncelog_index_seals_total"), 1);
}

fn gauge(client: &mut Client, name: &str) -> u64 {
    let metrics = client.get("/metrics");
    metrics
        .text()
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
        .unwrap_or_else(|| panic!("{name} is not in\n{}", metrics.text()))
}

/// The index's files.
fn segments(folder: &Folder) -> Vec<PathBuf> {
    fs::read_dir(folder.index())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "segment"))
        .collect()
}

/// Everything is still known: by identity, by topic and by seq. While an index file is made again a publish may be
/// refused; it may not be answered wrongly.
fn knows_everything(server: &Server) {
    let mut client = server.client();
    let sample = sample();
    let answer = eventually("the store takes events again", || {
        let answer = client.post("/publish", "application/json", &Event::wrapped(&sample));
        match answer.status {
            503 => None,
            _ => Some(answer.ok()),
        }
    });
    assert_eq!(
        [&answer["accepted"], &answer["duplicates"], &answer["conflicts"]],
        [0, sample.len() as u64, 0]
    );
    for topic in ["a", "b", "c"] {
        let page = client
            .get(&format!("/events?topic={topic}&order=asc&limit=1000"))
            .ok();
        let ids: Vec<u32> = page["events"].as_array().unwrap().iter().map(id).collect();
        let first = (0..3)
            .find(|number| crate::index_files::topic(*number) == topic)
            .unwrap();
        assert_eq!(ids, (first..).step_by(3).take(1000).collect::<Vec<_>>());
    }
    assert_eq!(client.counters()[1], u64::from(REQUESTS * REQUEST_EVENTS));
}

fn id(event: &Value) -> u32 {
    event["event_id"].as_str().unwrap().parse().unwrap()
}

#[test]
fn a_damaged_truncated_or_missing_index_file_is_never_believed_and_is_made_again() {
    let mut server = Server::start();
    fill(&server);
    server.stop();
    let folder = server.folder().clone();
    let ours = segments(&folder).remove(0);
    let whole = fs::read(&ours).unwrap();

    // Files that do not count: one of ours, left by a crash, goes; others stay.
    let name = ours.file_name().unwrap().to_str().unwrap();
    let (stem, _) = name.rsplit_once('-').unwrap();
    let unlisted = folder.index().join(format!("{stem}-0000ffff.segment"));
    fs::write(&unlisted, &whole).unwrap();
    let (store, rest) = name.split_at(8);
    let foreign_store = if store == "00000000" {
        "00000001"
    } else {
        "00000000"
    };
    let foreign = [
        folder.index().join("README"),
        folder.index().join("notes.segment"),
        folder.index().join(format!("{foreign_store}{rest}")),
    ];
    for file in &foreign {
        fs::write(file, "not ours").unwrap();
    }
    server = server.restart();
    knows_everything(&server);
    assert!(!unlisted.exists(), "an unlisted file of ours is removed");
    for file in &foreign {
        assert_eq!(fs::read_to_string(file).unwrap(), "not ours");
        fs::remove_file(file).unwrap();
    }

    // A flipped bit in its head, cut off, gone: found at the start, made again while the server already answers.
    let damages: [fn(&Path); 3] = [
        |path| {
            let mut bytes = fs::read(path).unwrap();
            bytes[9] ^= 0x10;
            fs::write(path, bytes).unwrap();
        },
        |path| {
            let file = fs::File::options().write(true).open(path).unwrap();
            file.set_len(file.metadata().unwrap().len() / 2).unwrap();
        },
        |path| fs::remove_file(path).unwrap(),
    ];
    for damage in damages {
        server.kill9();
        damage(&segments(&folder)[0]);
        server = server.restart();
        knows_everything(&server);
        eventually("the file is made again", || {
            let files = segments(&folder);
            let is_whole =
                |path: &PathBuf| fs::metadata(path).is_ok_and(|file| file.len() == whole.len() as u64);
            (files.len() == 1 && is_whole(&files[0])).then_some(())
        });
    }
    server.stop();
    server = server.restart();
    knows_everything(&server);
}
