//! Several instances on one command: `scripts/cluster` starts PostgreSQL, Redis, two instances and a proxy; what clients
//! see of them is one server, also when an instance or the database is killed; and nothing of it is left behind.

use crate::harness::{Answer, Client, eventually};
use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::{Command, Output},
};
use tempfile::TempDir;

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts");
const PROGRAM: &str = env!("CARGO_BIN_EXE_oncelog");

/// A cluster in a folder of its own; stopped when it is dropped.
struct Cluster {
    folder: TempDir,
}

impl Cluster {
    fn new() -> Self {
        Self {
            folder: TempDir::new().expect("a temporary folder"),
        }
    }

    fn try_to(&self, program: &str, arguments: &[&str]) -> Output {
        Command::new(format!("{SCRIPTS}/cluster"))
            .arg("--folder")
            .arg(self.folder.path())
            .args(["--program", program])
            .args(arguments)
            .output()
            .expect("bash is there")
    }

    /// Runs the script and returns what it printed.
    fn run(&self, arguments: &[&str]) -> String {
        let output = self.try_to(PROGRAM, arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// The command line with these arguments, for a shell.
    fn command(&self, arguments: &str) -> String {
        let folder = self.folder.path().display();
        format!("'{SCRIPTS}/cluster' --folder '{folder}' {arguments}")
    }

    fn log(&self, part: &str) -> String {
        let path: PathBuf = self.folder.path().join("log").join(part);
        fs::read_to_string(path).expect("a log")
    }

    /// The command lines of all processes that name the cluster's folder.
    fn processes(&self) -> Vec<String> {
        let folder = self.folder.path().display().to_string();
        let entries = fs::read_dir("/proc").expect("/proc");
        let command_line = |entry: fs::DirEntry| {
            // A process may end meanwhile, and others have no such file.
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            Some(String::from_utf8_lossy(&line).replace('\0', " "))
        };
        entries
            .filter_map(|entry| command_line(entry.ok()?))
            .filter(|line| line.contains(&folder))
            .collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Whatever the test came to; it is harmless when it was done before.
        self.try_to(PROGRAM, &["down"]);
    }
}

fn event(id: usize) -> String {
    format!(
        r#"{{"topic":"cluster","event_id":"{id}","timestamp":"2025-10-23T10:00:00Z","source":"test","payload":{{}}}}"#
    )
}

fn send(client: &mut Client, id: usize) -> Answer {
    client.post("/publish", "application/json", event(id).as_bytes())
}

fn queue(client: &mut Client, id: usize) -> Answer {
    client.post("/publish?ack=queued", "application/json", event(id).as_bytes())
}

fn is_stored(client: &mut Client, id: usize) -> Option<()> {
    let answer = client.get(&format!("/events/cluster/{id}"));
    (answer.status == 200).then_some(())
}

/// The counts of an answer to a publish of one event, over a connection of its own. As producers do, it sends again what the
/// proxy says an instance had that is gone: its connection to one that was killed may not have ended yet.
fn publish(address: SocketAddr, id: usize) -> (u64, u64) {
    let mut answer = send(&mut Client::new(address), id);
    if answer.status == 502 {
        answer = send(&mut Client::new(address), id);
    }
    let counts = answer.ok();
    (
        counts["accepted"].as_u64().expect("a number"),
        counts["duplicates"].as_u64().expect("a number"),
    )
}

#[test]
fn a_cluster_is_one_server_to_its_clients_whichever_part_is_killed() {
    let cluster = Cluster::new();
    let told = cluster.run(&["up"]);
    let base = told.lines().last().expect("a URL").to_owned();
    let address = base.trim_start_matches("http://").parse().expect("an address");
    assert_eq!(cluster.run(&["up"]), told, "a second time");

    let demo = Command::new(format!("{SCRIPTS}/demo"))
        .args(["--url", &base])
        .arg(format!(
            "{} && {}",
            cluster.command("kill 1 2"),
            cluster.command("restart")
        ))
        .output()
        .expect("bash is there");
    assert!(demo.status.success(), "{demo:?}");

    let simulate = [
        "simulate", "--url", &base, "--batch", "100-200", "--events", "5000",
    ];
    let simulated = Command::new(PROGRAM).args(simulate).output().expect("it runs");
    assert!(simulated.status.success(), "{simulated:?}");
    // Counters are folded meanwhile, which no client may notice.
    let mut client = Client::new(address);
    for part in ["instance-1", "instance-2"] {
        assert!(!cluster.log(part).contains("ERROR"), "{}", cluster.log(part));
    }

    // One instance is enough, also for requests of the moment in which the other one dies.
    cluster.run(&["kill", "1"]);
    for id in 0..20 {
        assert_eq!(publish(address, id), (1, 0));
    }
    assert!(!cluster.try_to(PROGRAM, &["status"]).status.success());
    cluster.run(&["restart", "1"]);
    cluster.run(&["kill", "2"]);
    for id in 0..20 {
        assert_eq!(publish(address, id), (0, 1), "the other instance knows it");
    }

    // Without Redis only what is to be queued is refused.
    cluster.run(&["kill", "redis"]);
    eventually("an instance finds the broker away", || {
        Some(queue(&mut client, 200)).filter(|answer| answer.status == 503)
    });
    assert_eq!(publish(address, 20), (1, 0));
    cluster.run(&["up"]);
    let queued = eventually("the broker is in use again", || {
        Some(queue(&mut client, 200)).filter(|answer| answer.status == 202)
    });
    assert_eq!(queued.json()["queued"], 1);
    eventually("what was queued is stored", || is_stored(&mut client, 200));

    // Without the database the instances say so, and go on by themselves when it is back.
    cluster.run(&["kill", "postgres"]);
    let answer = eventually("an instance finds the database away", || {
        Some(send(&mut client, 100)).filter(|answer| answer.status == 503)
    });
    assert_eq!(answer.json()["title"], "The store cannot commit");
    assert_eq!(queue(&mut client, 300).status, 202, "the broker has room");
    cluster.run(&["up"]);
    assert_eq!(publish(address, 19), (0, 1));
    eventually("what was queued meanwhile is stored", || {
        is_stored(&mut client, 300)
    });
    cluster.run(&["status"]);

    assert!(!cluster.processes().is_empty());
    cluster.run(&["down"]);
    assert_eq!(cluster.processes(), Vec::<String>::new());
    assert!(!cluster.folder.path().exists());
    cluster.run(&["down"]);
}

#[test]
fn a_start_that_fails_half_way_leaves_nothing_behind() {
    let cluster = Cluster::new();
    let output = cluster.try_to("/bin/false", &["up"]);
    assert!(!output.status.success());
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("instance-1 does not answer"), "{told}");
    assert_eq!(cluster.processes(), Vec::<String>::new());
    assert!(!cluster.folder.path().exists());
}

#[test]
fn a_folder_with_other_files_is_refused_and_stays_as_it_is() {
    let cluster = Cluster::new();
    let file = cluster.folder.path().join("mine");
    fs::write(&file, "something else").expect("a file");
    for arguments in [["up"], ["down"]] {
        let output = cluster.try_to(PROGRAM, &arguments);
        assert_eq!(output.status.success(), arguments == ["down"], "{output:?}");
        assert_eq!(fs::read_to_string(&file).expect("the file"), "something else");
    }
}
