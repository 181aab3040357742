//! A backup taken while events come in is a store of its own with exactly the events up to its watermark; `verify` finds
//! any damage.

use crate::harness::{Event, Folder, Server, eventually, oncelog, read_all, run};
use serde_json::Value;
use std::{
    fs,
    path::Path,
    process::Output,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

fn backup(server: &Server, destination: &str) -> Output {
    run(oncelog(server.folder()).args(["backup", destination, "--json"]))
}

fn verify(folder: &Folder, path: &Path) -> Output {
    run(oncelog(folder).arg("verify").arg(path))
}

fn said(output: &Output) -> String {
    format!(
        "{} {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn a_backup_under_load_restores_to_exactly_the_events_up_to_its_watermark() {
    let server = Server::start();
    let stop = AtomicBool::new(false);
    let mut watermarks = Vec::new();
    thread::scope(|scope| {
        for writer in 0..3 {
            let (server, stop) = (&server, &stop);
            scope.spawn(move || {
                let mut client = server.client();
                for request in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let events: Vec<_> = (0..20)
                        .map(|number| {
                            Event::new(
                                &format!("topic-{}", number % 3),
                                &format!("{writer}-{}", request * 15 + number),
                            )
                        })
                        .collect();
                    client.publish(&events);
                }
            });
        }
        let mut client = server.client();
        for number in 0..3 {
            let before = client.counters()[1];
            eventually("events come in", || {
                (client.counters()[1] > before + 500).then_some(())
            });
            let at_least = client.counters()[1];
            let output = backup(&server, &format!("copy-{number}.db"));
            assert!(output.status.success(), "{}", said(&output));
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            let watermark = report["watermark"].as_u64().unwrap();
            assert!(
                watermark >= at_least,
                "what was acknowledged before the backup is in it"
            );
            watermarks.push(watermark);
        }
        stop.store(true, Ordering::Relaxed);
    });

    let original = read_all(&mut server.client(), "order=asc&limit=1000&");
    for (number, watermark) in watermarks.into_iter().enumerate() {
        let name = format!("copy-{number}.db");
        let output = verify(server.folder(), &server.folder().path().join(&name));
        assert!(output.status.success(), "{}", said(&output));
        let copy = Server::start_in(server.folder().clone(), &[("DATABASE_PATH", &name)]);
        let mut client = copy.client();
        assert_eq!(
            read_all(&mut client, "order=asc&limit=1000&"),
            original[..watermark as usize]
        );
        let [received, unique, duplicates, conflicts] = client.counters();
        assert_eq!((unique, received, conflicts), (watermark, unique + duplicates, 0));
        let of_topics: u64 = client.get("/topics").ok()["topics"]
            .as_array()
            .unwrap()
            .iter()
            .map(|topic| topic["accepted"].as_u64().unwrap())
            .sum();
        assert_eq!(of_topics, watermark);

        // It goes on as a store: what it knows is a duplicate, what came later is new.
        let last = original.last().unwrap();
        let event = Event::new(
            last["topic"].as_str().unwrap(),
            last["event_id"].as_str().unwrap(),
        );
        let is_new = watermark < original.len() as u64;
        assert_eq!(client.publish(&[event])["accepted"], u64::from(is_new));
    }
}

/// Once a cursor from after a backup was refused only until the restored store had grown past it, and then skipped what
/// the restored store had put under the same seqs.
#[test]
fn a_cursor_from_after_a_backup_never_skips_events_of_the_restored_store() {
    let server = Server::start();
    let mut client = server.client();
    let events = |ids: std::ops::Range<u32>| -> Vec<Event> {
        ids.map(|id| Event::new("t", &id.to_string())).collect()
    };
    let next = |client: &mut crate::harness::Client| {
        let page = client.get("/events?order=asc&limit=1000").ok();
        page["next"].as_str().unwrap().to_owned()
    };
    client.publish(&events(0..10));
    let before = next(&mut client);
    let output = backup(&server, "copy.db");
    assert!(output.status.success(), "{}", said(&output));
    client.publish(&events(10..20));
    let after = next(&mut client);

    let restored = Server::start_in(server.folder().clone(), &[("DATABASE_PATH", "copy.db")]);
    let mut client = restored.client();
    let other = client.publish(&events(100..150));
    assert_eq!(other["accepted"], 50, "the store has grown past the cursor");
    let problem = client.get(&format!("/events?cursor={after}")).problem(422);
    assert!(
        problem["detail"]
            .as_str()
            .unwrap()
            .contains("restored from a backup"),
        "{problem}"
    );
    let page = client.get(&format!("/events?limit=1000&cursor={before}")).ok();
    assert_eq!(page["count"], 50, "a cursor from before the backup goes on");
    assert_eq!(page["events"][0]["event_id"], "100");
}

#[test]
fn a_backup_never_writes_over_anything() {
    let server = Server::start();
    server.client().publish(&[Event::new("t", "1")]);
    let file = server.folder().path().join("precious");
    fs::write(&file, "precious").unwrap();
    let output = backup(&server, "precious");
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("precious"), "{}", said(&output));
    assert_eq!(fs::read_to_string(file).unwrap(), "precious");

    let output = backup(&server, "missing/folder/copy.db");
    let made = server.folder().path().join("missing/folder/copy.db").exists();
    assert_eq!(output.status.success(), made, "{}", said(&output));
}

#[test]
fn verify_is_clean_after_every_stop_and_names_a_flipped_byte_in_the_file() {
    let server = Server::start();
    let payload = r#"{"needle":"in the haystack"}"#;
    let mut events: Vec<_> = (0..500)
        .map(|number| Event::new("t", &number.to_string()))
        .collect();
    events[250].payload = payload.to_owned();
    server.client().publish(&events);
    let path = server.folder().database();
    let output = verify(server.folder(), &path);
    assert_eq!(
        output.status.code(),
        Some(1),
        "a server has it open: {}",
        said(&output)
    );
    server.client().publish(&events[..7]);
    server.kill9();
    let output = verify(server.folder(), &path);
    assert!(output.status.success(), "after a crash: {}", said(&output));
    let server = server.restart();
    server.stop();
    let output = verify(server.folder(), &path);
    assert!(output.status.success(), "after a clean stop: {}", said(&output));

    let whole = fs::read(&path).unwrap();
    let place = whole
        .windows(payload.len())
        .position(|window| window == payload.as_bytes())
        .expect("the payload is in the file as it was sent");
    let mut damaged = whole.clone();
    damaged[place + 12] ^= 1;
    fs::write(&path, &damaged).unwrap();
    let output = verify(server.folder(), &path);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(
        said(&output).contains("251"),
        "the event is named: {}",
        said(&output)
    );

    // The newest events are read at every start, so the server finds it as well, and says what to do.
    let output = run(oncelog(server.folder()).arg("serve"));
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    for part in ["dedup.db", "251", "backup"] {
        assert!(said(&output).contains(part), "{}", said(&output));
    }
    fs::write(&path, &whole).unwrap();
    let output = verify(server.folder(), &path);
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn verify_and_backup_refuse_what_is_no_store() {
    let folder = Folder::new();
    for path in ["nothing.db", "text"] {
        fs::write(folder.path().join("text"), "no store").unwrap();
        for arguments in [
            vec!["verify", path],
            vec!["backup", "copy.db", "--database-path", path],
        ] {
            let output = run(oncelog(&folder).args(&arguments));
            assert!(
                matches!(output.status.code(), Some(1 | 2)),
                "{arguments:?}: {}",
                said(&output)
            );
            assert!(said(&output).contains(path), "{arguments:?}: {}", said(&output));
        }
        assert!(!folder.path().join("nothing.db").exists());
        assert!(!folder.path().join("copy.db").exists());
    }
}
