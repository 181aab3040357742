//! `backup` copies a store in use, `verify` tells a good one from a damaged one.

use crate::support::{SLOW_ENOUGH, Server, folder, json, oncelog, run, text};
use std::fs;

#[test]
fn a_backup_of_a_store_in_use_is_sound_and_can_be_served() {
    let folder = folder();
    let server = Server::start(folder.path());
    let arguments = [
        "bench",
        "--max-mean",
        SLOW_ENOUGH,
        "--events",
        "5000",
        "--json",
        "--url",
        &server.url,
    ];
    let accepted = json(&run(folder.path(), &arguments))["accepted"].clone();
    let output = run(folder.path(), &["backup", "copy/data/dedup.db", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(json(&output)["events"], accepted);

    let output = run(folder.path(), &["verify", "copy/data/dedup.db", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stdout));
    assert_eq!(json(&output)["events"], accepted);
    assert_eq!(json(&output)["passed"], true);
    let copy = Server::start(&folder.path().join("copy"));
    let stats = json(&run(folder.path(), &["stats", "--json", "--url", &copy.url]));
    assert_eq!(stats["unique_processed"], accepted);
}

#[test]
fn a_backup_does_not_overwrite_and_needs_a_store() {
    let folder = folder();
    let server = Server::start(folder.path());
    fs::write(folder.path().join("copy.db"), "something else").unwrap();
    let output = run(folder.path(), &["backup", "copy.db"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).starts_with("error: "),
        "{}",
        text(&output.stderr)
    );
    assert_eq!(
        fs::read_to_string(folder.path().join("copy.db")).unwrap(),
        "something else"
    );
    let arguments = ["backup", "other.db", "--database-path", "nothing.db"];
    assert_eq!(run(folder.path(), &arguments).status.code(), Some(1));
    drop(server);
}

#[test]
fn verify_fails_on_a_damaged_store_and_on_a_missing_one() {
    let folder = folder();
    let server = Server::start(folder.path());
    let arguments = [
        "bench",
        "--max-mean",
        SLOW_ENOUGH,
        "--events",
        "5000",
        "--url",
        &server.url,
    ];
    assert_eq!(run(folder.path(), &arguments).status.code(), Some(0));
    assert_eq!(server.stop(), Some(0));
    let path = folder.path().join("data/dedup.db");
    let mut bytes = fs::read(&path).unwrap();
    // The last one: what stands further to the front may be what a split page has left behind.
    let place = bytes
        .windows(b"checkout".len())
        .rposition(|window| window == b"checkout")
        .expect("payloads stand in the file as they are");
    bytes[place] ^= 1;
    fs::write(&path, bytes).unwrap();
    let output = run(folder.path(), &["verify", "data/dedup.db"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stdout).contains("FAIL  "),
        "{}",
        text(&output.stdout)
    );
    let output = run(folder.path(), &["verify", "nothing.db"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("nothing.db"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn a_file_is_not_taken_for_the_store_when_that_is_in_a_server() {
    let folder = folder();
    let server = Server::start(folder.path());
    assert_eq!(run(folder.path(), &["backup", "copy.db"]).status.code(), Some(0));
    drop(server);
    let url = "postgres://anna:secret@127.0.0.1:1/logs";
    for (arguments, instead) in [
        (["backup", "other.db"], "pg_dump"),
        (["verify", "copy.db"], "pg_amcheck"),
    ] {
        let refused = oncelog(folder.path(), &arguments)
            .env("DATABASE_URL", url)
            .output()
            .unwrap();
        let told = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{told}");
        assert!(
            told.contains("environment variable DATABASE_URL is set"),
            "{told}"
        );
        assert!(told.contains(instead), "{told}");
        assert!(!told.contains("secret"), "{told}");
        // Container tools pass on what is not set as an empty text.
        let taken = oncelog(folder.path(), &arguments)
            .env("DATABASE_URL", "")
            .output()
            .unwrap();
        assert_eq!(taken.status.code(), Some(0), "{}", text(&taken.stderr));
    }
    fs::write(folder.path().join(".env"), format!("DATABASE_URL={url}\n")).unwrap();
    let refused = run(folder.path(), &["verify", "copy.db"]);
    let told = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{told}");
    assert!(told.contains("DATABASE_URL in .env is set"), "{told}");
}
