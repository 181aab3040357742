//! A store that an earlier release wrote opens in the newest program, and is served as that release served it; one of a
//! newer release is refused and stays as it is.
//!
//! `fixtures/make` made the stores, with the first release of each file format. Each comes with what that release
//! answered of it.

use crate::{
    harness::{Client, Event, Folder, Server, identities, oncelog, read_all, run, verify},
    scenario::{Need, Scenario},
};
use serde::Deserialize;
use serde_json::{Value, value::RawValue};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "upgrade: stores of each released format are served as before",
        needs: UNPACK,
        run: serve_each_format,
    },
    Scenario {
        name: "upgrade: stores of another format or program are refused and left alone",
        needs: UNPACK,
        run: refuse_others,
    },
    Scenario {
        name: "upgrade: an index segment of a newer format is built anew",
        needs: UNPACK,
        run: rebuild_newer_segment,
    },
];

const UNPACK: &[Need] = &[Need::Program("tar"), Need::Program("gzip")];
/// Every format that was released.
const FORMATS: &[&str] = &["format-1"];
const NEWEST: &str = "format-1";
/// The stores of each: one that was stopped, and one that was killed with commits in its write-ahead log.
const STORES: [&str; 2] = ["stopped", "killed"];
const SMALL: (&str, &str) = ("ONCELOG_SMALL_BOUNDS", "1");

/// Where SQLite's header has what tells a format.
const USER_VERSION: u64 = 60;
const APPLICATION_ID: u64 = 68;

/// A store as an earlier release left it, where a server in the folder looks for one.
fn unpack(format: &str, store: &str) -> Folder {
    let archive =
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/faults/fixtures/{format}.tar.gz"));
    let folder = Folder::new();
    let output = run(Command::new("tar")
        .args(["--extract", "--gzip", "--file"])
        .arg(&archive)
        .arg("--directory")
        .arg(folder.path())
        .arg(store));
    assert!(output.status.success(), "{}: {output:?}", archive.display());
    fs::rename(folder.path().join(store), folder.path().join("data")).unwrap();
    fs::rename(folder.path().join("data/answers"), answers(&folder)).unwrap();
    folder
}

fn answers(folder: &Folder) -> PathBuf {
    folder.path().join("answers")
}

/// What the old program answered.
fn answer<T: for<'a> Deserialize<'a>>(folder: &Folder, name: &str) -> T {
    let text = fs::read_to_string(answers(folder).join(name)).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[derive(Deserialize)]
struct Page {
    events: Vec<Stored>,
}

/// An event with all its bytes.
#[derive(Deserialize)]
struct Stored {
    seq: u64,
    topic: String,
    event_id: String,
    timestamp: String,
    source: String,
    payload: Box<RawValue>,
    processed_at: String,
}

impl Stored {
    fn fields(&self) -> (u64, [&str; 6]) {
        let texts = [
            &*self.topic,
            &self.event_id,
            &self.timestamp,
            &self.source,
            self.payload.get(),
            &self.processed_at,
        ];
        (self.seq, texts)
    }

    fn event(&self) -> Event {
        Event::new(&self.topic, &self.event_id)
            .at(&self.timestamp)
            .with_source(&self.source)
            .with_payload(self.payload.get())
    }
}

fn serve_each_format() -> String {
    let (mut events, mut cursors) = (0, 0);
    for format in FORMATS {
        for store in STORES {
            // With the bounds that the store was made with, and with those of a release.
            for settings in [&[SMALL][..], &[]] {
                let folder = unpack(format, store);
                verify(&folder);
                let (of_store, cursors_of_store) = serve(&folder, settings);
                events += of_store;
                cursors += cursors_of_store;
            }
            let folder = unpack(format, store);
            let copy = folder.path().join("copy.db");
            let output = run(oncelog(&folder).arg("backup").arg(&copy));
            assert!(output.status.success(), "{output:?}");
            let output = run(oncelog(&folder).arg("verify").arg(&copy));
            assert!(output.status.success(), "{output:?}");
        }
    }
    format!(
        "{} formats, {} stores, {events} events and {cursors} cursors checked",
        FORMATS.len(),
        FORMATS.len() * STORES.len()
    )
}

/// Serves an old store; returns how many events and cursors it checked.
fn serve(folder: &Folder, settings: &[(&str, &str)]) -> (usize, usize) {
    let expected: Page = answer(folder, "events.json");
    let server = Server::start_in(folder.clone(), settings);
    let mut client = server.client();
    check_events(&mut client, &expected.events);
    check_counters(&mut client, folder);
    let cursors = check_cursors(&mut client, folder, &expected.events);

    // Nothing of it is new, and what is new comes behind it.
    let before = client.counters();
    let mut sent_again = 0;
    for stored in expected.events.chunks(200) {
        let again: Vec<_> = stored.iter().map(Stored::event).collect();
        let answer = client.publish(&again);
        assert_eq!(answer["duplicates"], again.len(), "{}", answer["message"]);
        assert_eq!(answer["conflicts"], 0, "{}", answer["message"]);
        for (stored, result) in stored.iter().zip(answer["results"].as_array().unwrap()) {
            assert_eq!(result["seq"], stored.seq);
        }
        sent_again += again.len() as u64;
    }
    let new: Vec<_> = (0..500)
        .map(|number| Event::new(["new", "a/b"][number % 2], &format!("new-{number}")))
        .collect();
    let answer = client.publish(&new);
    assert_eq!(answer["accepted"], new.len(), "{}", answer["message"]);
    assert_eq!(answer["results"][0]["seq"], expected.events.len() + 1);
    server.stop();
    verify(folder);

    let server = server.restart();
    let mut client = server.client();
    check_events(&mut client, &expected.events);
    let found = read_all(&mut client, "order=asc&limit=1000&");
    assert_eq!(found.len(), expected.events.len() + new.len());
    for (event, found) in new.iter().zip(identities(&found[expected.events.len()..])) {
        assert_eq!(event.identity(), found);
    }
    let [received, unique, duplicates, conflicts] = before;
    let new = new.len() as u64;
    assert_eq!(
        client.counters(),
        [
            received + sent_again + new,
            unique + new,
            duplicates + sent_again,
            conflicts
        ]
    );
    server.stop();
    (expected.events.len(), cursors)
}

fn check_events(client: &mut Client, expected: &[Stored]) {
    let answer = client.get(&format!("/events?order=asc&limit={}", expected.len()));
    answer.ok();
    let page: Page = serde_json::from_slice(&answer.body).unwrap();
    for (stored, expected) in page.events.iter().zip(expected) {
        assert_eq!(stored.fields(), expected.fields());
    }
    assert_eq!(page.events.len(), expected.len());
}

fn check_counters(client: &mut Client, folder: &Folder) {
    let (now, then) = (client.get("/stats").ok(), answer::<Value>(folder, "stats.json"));
    for name in [
        "received",
        "unique_processed",
        "duplicate_dropped",
        "conflicts",
        "topics",
    ] {
        assert_eq!(now[name], then[name], "{name}");
    }
    assert_eq!(
        client.get("/topics").ok()["topics"],
        answer::<Value>(folder, "topics.json")["topics"]
    );
}

/// Reads on from each cursor that the old program gave; returns how many there are.
fn check_cursors(client: &mut Client, folder: &Folder, expected: &[Stored]) -> usize {
    let mut cursors = 0;
    for entry in fs::read_dir(answers(folder)).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let Some(query) = name
            .strip_prefix("page-")
            .and_then(|name| name.strip_suffix(".json"))
        else {
            continue;
        };
        let page: Value = answer(folder, &name);
        let last = page["events"].as_array().unwrap().last().unwrap()["seq"]
            .as_u64()
            .unwrap();
        let following = expected
            .iter()
            .filter(|event| page["topic"].is_null() || page["topic"] == event.topic);
        let following: Vec<u64> = if query.contains("asc") {
            following
                .map(|event| event.seq)
                .filter(|seq| *seq > last)
                .collect()
        } else {
            following
                .rev()
                .map(|event| event.seq)
                .filter(|seq| *seq < last)
                .collect()
        };
        let next = page["next"].as_str().unwrap();
        let found = read_all(client, &format!("{query}&cursor={next}&limit=1000&"));
        let found: Vec<_> = found.iter().map(|event| event["seq"].as_u64().unwrap()).collect();
        assert_eq!(found, following, "from the cursor of {query}");
        cursors += 1;
    }
    assert!(cursors > 0, "the fixture has cursors");
    cursors
}

fn refuse_others() -> String {
    let mut refusals = 0;
    for (place, what, word) in [
        (USER_VERSION, [0, 0, 0, 2], "newer"),
        (USER_VERSION, [0, 0, 0, 0], "older"),
        (APPLICATION_ID, *b"mine", "another program"),
    ] {
        let folder = unpack(NEWEST, "stopped");
        overwrite(&folder.database(), place, &what);
        let before = files(&folder);
        let copy = folder.path().join("copy.db");
        let mut commands = [oncelog(&folder), oncelog(&folder), oncelog(&folder)];
        commands[0].arg("serve");
        commands[1].arg("verify").arg(folder.database());
        commands[2].arg("backup").arg(&copy);
        for command in &mut commands {
            let output = run(command);
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{command:?}: {said}");
            assert!(
                said.contains("data/dedup.db") && said.contains(word),
                "{command:?}: {said}"
            );
            assert!(!copy.exists(), "{command:?} made a copy");
            assert_eq!(files(&folder), before, "{command:?} changed the store");
            refusals += 1;
        }
    }
    format!("{refusals} refusals, no byte changed")
}

fn overwrite(file: &Path, place: u64, bytes: &[u8]) {
    fs::File::options()
        .write(true)
        .open(file)
        .and_then(|file| file.write_all_at(bytes, place))
        .unwrap();
}

/// The store's files with a checksum of what is in them. The lock file is no part of a store.
fn files(folder: &Folder) -> BTreeMap<PathBuf, u64> {
    [folder.path().join("data"), folder.index()]
        .iter()
        .flat_map(|folder| fs::read_dir(folder).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file() && path.extension().is_none_or(|extension| extension != "lock"))
        .map(|path| (path.clone(), xxh3_64(&fs::read(path).unwrap())))
        .collect()
}

/// A newer release that changes the segments gives the whole store a newer format. So a lone newer segment belongs to
/// nothing, and is as good as damaged: the log has what is in it.
fn rebuild_newer_segment() -> String {
    const BLOCK_DATA: usize = 4088;
    let folder = unpack(NEWEST, "stopped");
    let segment = fs::read_dir(folder.index()).unwrap().next().unwrap().unwrap();
    let mut bytes = fs::read(segment.path()).unwrap();
    bytes[8] += 1;
    let checksum = xxh3_64_with_seed(&bytes[..BLOCK_DATA], 0);
    bytes[BLOCK_DATA..BLOCK_DATA + 8].copy_from_slice(&checksum.to_le_bytes());
    fs::write(segment.path(), bytes).unwrap();

    let output = run(oncelog(&folder).arg("verify").arg(folder.database()));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("format version 2 is not known"), "{said}");

    let server = Server::start_in(folder.clone(), &[SMALL]);
    let log = server.log();
    assert!(log.contains("format version 2 is not known"), "{log}");
    assert!(log.contains("rebuilt an index segment"), "{log}");
    let expected: Page = answer(&folder, "events.json");
    let mut client = server.client();
    check_events(&mut client, &expected.events);
    check_cursors(&mut client, &folder, &expected.events);
    server.stop();
    verify(&folder);
    format!("{} events checked", expected.events.len())
}
