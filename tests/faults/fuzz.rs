//! Input that nobody thought of: fuzz targets, each for a bounded time from its kept inputs (`scripts/fuzz`), and every
//! kind of request that the served OpenAPI document allows, or does not (`scripts/schemathesis`).

use crate::{
    harness::{Server, verify},
    scenario::{Need, Scenario},
};
use std::{
    path::Path,
    process::{Command, Output},
};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "fuzz: bodies of publish requests",
        needs: &[],
        run: || fuzz("publish_body"),
    },
    Scenario {
        name: "fuzz: compressed bodies",
        needs: &[],
        run: || fuzz("compressed_body"),
    },
    Scenario {
        name: "fuzz: whether two payloads are the same",
        needs: &[],
        run: || fuzz("payload"),
    },
    Scenario {
        name: "fuzz: times in all notations",
        needs: &[],
        run: || fuzz("timestamp"),
    },
    Scenario {
        name: "fuzz: index segments",
        needs: &[],
        run: || fuzz("segment_reader"),
    },
    Scenario {
        name: "fuzz: the API by its own description, with schemathesis",
        needs: &[Need::Program("python3")],
        run: the_api_by_its_description,
    },
];

/// Of each target.
const FUZZ_SECONDS: &str = "25";

fn fuzz(target: &str) -> String {
    let output = script("fuzz", &[target, FUZZ_SECONDS]);
    assert!(output.status.success(), "{}", text(&output));
    let line = text(&output);
    // Before it, the first time, is what was installed and built.
    let figures = line.lines().last().unwrap_or_default();
    figures.trim_start_matches(&format!("{target}: ")).to_owned()
}

fn the_api_by_its_description() -> String {
    let server = Server::start_with(&[("ONCELOG_SMALL_BOUNDS", "1")]);
    let output = script("schemathesis", &[&server.url()]);
    assert!(output.status.success(), "{}", text(&output));
    let mut client = server.client();
    assert_eq!(client.get("/health").ok()["status"], "healthy");
    let [received, unique, duplicates, _] = client.counters();
    assert_eq!(received, unique + duplicates);
    assert!(unique > 0, "no request was as described");
    let failures = |line: &&str| line.contains(" ERROR ") || line.contains("panicked");
    let log = server.log();
    assert_eq!(log.lines().find(failures), None, "a request made the server fail");
    server.stop();
    verify(server.folder());
    let requests = text(&output);
    let requests = requests
        .lines()
        .find(|line| line.contains(" generated"))
        .unwrap_or_else(|| panic!("no figures in\n{requests}"));
    format!(
        "{}, {unique} events stored, {duplicates} duplicates",
        requests.trim()
    )
}

fn script(name: &str, arguments: &[&str]) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    // Beside what cargo has built this with.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("a folder");
    Command::new(root.join("scripts").join(name))
        .args(arguments)
        .env("CARGO_TARGET_DIR", target)
        .output()
        .unwrap_or_else(|error| panic!("scripts/{name} does not start: {error}"))
}

fn text(output: &Output) -> String {
    [&output.stdout, &output.stderr]
        .map(|bytes| String::from_utf8_lossy(bytes))
        .concat()
}
