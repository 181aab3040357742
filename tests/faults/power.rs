//! Power cuts on a real file system: an ext4 in a file is shut down without flushing its journal, the program is killed,
//! and the file system is mounted again, which replays the journal. What was not synced is gone.

use crate::{
    harness::{
        Checked, Client, Event, Folder, Load, Moment, Mount, Oracle, Server, eventually, oncelog, run, shell,
        verify,
    },
    kill::{ABORTED, SMALL, damage_a_segment, leave_unlisted_file, under_load},
    scenario::{Need, Scenario, failure_of},
    shim::Disk,
};
use oncelog::faults::CrashPoint;
use std::{
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::LazyLock,
    thread,
    time::{Duration, Instant},
};

const NEEDS: &[Need] = &[Need::Root, Need::LoopDevices, Need::Program("cc")];

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "power: cut at random moments under load",
        needs: NEEDS,
        run: cut_at_random_moments,
    },
    Scenario {
        name: "power: cut at each step of commits, seals, merges, lists and checkpoints",
        needs: NEEDS,
        run: cut_at_each_step_of_writing,
    },
    Scenario {
        name: "power: cut at each step of a start and a stop, and right after a stop",
        needs: NEEDS,
        run: cut_at_each_step_of_a_start_and_a_stop,
    },
    Scenario {
        name: "power: cut at each step of a backup, and right after one",
        needs: NEEDS,
        run: cut_in_backups,
    },
    Scenario {
        name: "power: control: with syncs that do nothing, loss is reported",
        needs: NEEDS,
        run: without_syncs_loss_is_reported,
    },
];

const WRITERS: u64 = 4;
const STORES: u64 = 8;
const CUTS_A_STORE: u64 = 5;
const CONTROL_CUTS: u64 = 8;

/// Compiled once a run, in cargo's folder for the files of tests.
static CUTTER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    std::fs::create_dir_all(folder).unwrap();
    let program = folder.join(format!("power_cut-{}", std::process::id()));
    shell(
        Command::new("cc")
            .args(["-O2", "-Wall", "-Wextra", "-Werror", "-o"])
            .arg(&program)
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/faults/power_cut.c")),
    );
    let name = folder.join("power_cut");
    std::fs::rename(program, &name).unwrap();
    name
});

/// A file system whose power can be cut.
struct Machine(Mount);

impl Machine {
    fn new() -> Self {
        LazyLock::force(&CUTTER);
        Self(Mount::ext4(256))
    }

    /// A folder that is on the disk.
    fn folder(&self) -> Folder {
        let folder = Folder::within(&self.0.path());
        for path in [folder.path(), &self.0.path()] {
            std::fs::File::open(path).unwrap().sync_all().unwrap();
        }
        folder
    }

    /// Returns when it began.
    fn cut(&self) -> Moment {
        let began = shell(Command::new(&*CUTTER).arg(self.0.path()));
        Moment(began.trim().parse().unwrap())
    }

    /// Nobody may be using it.
    fn power_up(&self) {
        self.0.unmount();
        self.0.mount();
    }
}

fn cut_at_random_moments() -> String {
    let mut random = fastrand::Rng::with_seed(10);
    let (mut cuts, mut acknowledged) = (0, 0);
    for store in 0..STORES {
        let machine = Machine::new();
        let folder = machine.folder();
        let oracle = Oracle::default();
        // With the usual bounds there is little but a write-ahead log.
        let settings: &[_] = if store % 3 == 2 { &[] } else { &[SMALL] };
        for _ in 0..CUTS_A_STORE {
            let server = Server::start_in(folder.clone(), settings);
            oracle.check(&mut server.client(), Moment::LAST);
            let pause = Duration::from_micros(random.u64(0..400_000));
            cut_under_load(&machine, &server, &oracle, cuts, pause);
            machine.power_up();
            cuts += 1;
        }
        let server = Server::start_in(folder.clone(), settings);
        acknowledged += oracle.check_all(&mut server.client()).acknowledged;
        server.stop();
        verify(&folder);
    }
    format!("{cuts} cuts, {acknowledged} events acknowledged")
}

/// Cuts the power while clients write and read, and kills the server some moments later.
fn cut_under_load(machine: &Machine, server: &Server, oracle: &Oracle, seed: u64, pause: Duration) {
    let load = &Load::new(seed);
    let address = server.address();
    let cut = thread::scope(|scope| {
        for writer in 0..WRITERS {
            scope.spawn(move || load.write(address, oracle, writer));
        }
        scope.spawn(|| follow(&mut server.client()));
        let _running = load.running();
        let before = oracle.answers();
        eventually("a request is acknowledged", || {
            (oracle.answers() > before).then_some(())
        });
        thread::sleep(pause);
        let cut = machine.cut();
        refuses(server, oracle, seed);
        server.kill9();
        cut
    });
    oracle.forget_since(cut);
}

/// Follows the log until the server goes away or can no longer read its disk.
fn follow(client: &mut Client) {
    let mut cursor = String::new();
    let mut last = 0;
    loop {
        let target = format!("/events?order=asc&limit=200{cursor}");
        match client.attempt("GET", &target, &[], b"") {
            Ok(answer) if answer.status == 200 => {
                let page = answer.json();
                for event in page["events"].as_array().expect("events") {
                    last += 1;
                    assert_eq!(event["seq"], last, "a reader must not skip or repeat");
                }
                cursor = format!("&cursor={}&wait=1", page["next"].as_str().expect("next"));
            }
            Ok(answer) => {
                answer.problem(500);
                return;
            }
            Err(_) => return,
        }
    }
}

/// Nothing that is sent after the cut is acknowledged.
fn refuses(server: &Server, oracle: &Oracle, cut: u64) {
    let mut client = server.client();
    for number in 0..3 {
        let event = Event::new("after the cut", &format!("{cut}-{number}"));
        let answer = oracle.publish(&mut client, &[event]).expect("an answer");
        let problem = answer.problem(503);
        assert_eq!(problem["type"], "/problems/store-unavailable", "{problem}");
    }
    let health = client.get("/health");
    assert_eq!(health.status, 503, "{}", health.text());
    assert!(health.json()["reason"].is_string(), "{}", health.text());
}

/// The program dies at a named step, and the power goes with it.
fn cut_at_each_step_of_writing() -> String {
    use CrashPoint::*;
    let points = [
        CommitInserted,
        CommitFolded,
        CommitWritten,
        CommitDurable,
        CommitAnswered,
        SegmentCreated,
        SegmentFilled,
        SegmentSynced,
        SegmentDurable,
        MergeDone,
        ListWritten,
        ListDurable,
        ListApplied,
        SourceRemoved,
        CheckpointCopied,
        CheckpointDone,
    ];
    let machine = Machine::new();
    let (mut cuts, mut acknowledged) = (0, 0);
    for point in points {
        let folder = machine.folder();
        let oracle = Oracle::default();
        for time in [1, 2, 5] {
            let crash = format!("{}:{time}", point.name());
            let server = Server::start_in(folder.clone(), &[SMALL, ("ONCELOG_CRASH_AT", &crash)]);
            under_load(&server, &oracle, &Load::new(time), || {
                let status = server.ended();
                assert_eq!(status.signal(), Some(ABORTED), "{crash}: {}", server.log());
                machine.cut();
            });
            machine.power_up();
            cuts += 1;
            let server = Server::start_in(folder.clone(), &[SMALL]);
            oracle.check(&mut server.client(), Moment::LAST);
            server.kill9();
        }
        acknowledged += is_whole(&folder, &oracle).acknowledged;
    }
    format!(
        "{cuts} cuts at {} steps, {acknowledged} events acknowledged",
        points.len()
    )
}

fn is_whole(folder: &Folder, oracle: &Oracle) -> Checked {
    let server = Server::start_in(folder.clone(), &[SMALL]);
    let checked = oracle.check_all(&mut server.client());
    server.stop();
    verify(folder);
    checked
}

fn cut_at_each_step_of_a_start_and_a_stop() -> String {
    use CrashPoint::*;
    let machine = Machine::new();
    let folder = machine.folder();
    let oracle = Oracle::default();
    let mut cuts = 0;
    for point in [
        // Of a store that is not there yet.
        OpenCreated,
        OpenSettled,
        OpenLoaded,
        OpenRemoved,
        OpenAppended,
        RebuildDone,
        OpenDone,
        CloseBegun,
        CloseCheckpointed,
    ] {
        if cuts > 0 {
            let server = Server::start_in(folder.clone(), &[SMALL]);
            oracle.check(&mut server.client(), Moment::LAST);
            let is_stop = matches!(point, CloseBegun | CloseCheckpointed);
            under_load(&server, &oracle, &Load::new(cuts), || {
                let before = oracle.answers();
                eventually("requests are acknowledged", || {
                    (oracle.answers() > before + 200).then_some(())
                });
                server.kill9();
            });
            match point {
                OpenRemoved => leave_unlisted_file(&folder),
                RebuildDone => damage_a_segment(&folder),
                _ => {}
            }
            if is_stop {
                let crash = [SMALL, ("ONCELOG_CRASH_AT", point.name())];
                let server = Server::start_in(folder.clone(), &crash);
                under_load(&server, &oracle, &Load::new(100 + cuts), || {
                    let before = oracle.answers();
                    eventually("requests are acknowledged", || {
                        (oracle.answers() > before + 50).then_some(())
                    });
                    server.terminate();
                    assert_eq!(server.ended().signal(), Some(ABORTED), "{}", server.log());
                });
                machine.cut();
                machine.power_up();
                cuts += 1;
                continue;
            }
        }
        let crash = [SMALL, ("ONCELOG_CRASH_AT", point.name())];
        let failed = Server::try_start_in(folder.clone(), &crash)
            .err()
            .unwrap_or_else(|| panic!("{} was not reached", point.name()));
        assert_eq!(failed.status.signal(), Some(ABORTED), "{failed}");
        machine.cut();
        machine.power_up();
        cuts += 1;
    }

    // At random moments of starts.
    let mut random = fastrand::Rng::with_seed(12);
    for _ in 0..10 {
        let mut starting = oncelog(&folder)
            .arg("serve")
            .env(SMALL.0, SMALL.1)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        thread::sleep(Duration::from_micros(random.u64(0..20_000)));
        machine.cut();
        // It may have ended by itself.
        let _ = starting.kill();
        starting.wait().unwrap();
        machine.power_up();
        cuts += 1;
        let server = Server::start_in(folder.clone(), &[SMALL]);
        oracle.check(&mut server.client(), Moment::LAST);
        under_load(&server, &oracle, &Load::new(200 + cuts), || {
            let before = oracle.answers();
            eventually("requests are acknowledged", || {
                (oracle.answers() > before + 50).then_some(())
            });
            server.kill9();
        });
    }

    let server = Server::start_in(folder.clone(), &[SMALL]);
    server.stop();
    machine.cut();
    machine.power_up();
    cuts += 1;
    let checked = is_whole(&folder, &oracle);
    format!("{cuts} cuts, {} events acknowledged", checked.acknowledged)
}

/// The store that is copied stays whole, and the copy is not there or whole; once the command has ended well, it is
/// there.
fn cut_in_backups() -> String {
    use CrashPoint::*;
    let machine = Machine::new();
    let folder = machine.folder();
    let oracle = Oracle::default();
    let mut random = fastrand::Rng::with_seed(13);
    let points = [
        BackupPinned,
        BackupSegments,
        BackupSlice,
        BackupComplete,
        BackupIndexNamed,
        BackupNamed,
    ];
    let (mut cuts, mut whole) = (0, 0);
    let at_random = [None; 10];
    let mut longest = Duration::ZERO;
    for point in points.into_iter().map(Some).chain(at_random) {
        let server = Server::start_in(folder.clone(), &[SMALL]);
        oracle.check(&mut server.client(), Moment::LAST);
        under_load(&server, &oracle, &Load::new(cuts), || {
            let before = oracle.answers();
            eventually("requests are acknowledged", || {
                (oracle.answers() > before + 50).then_some(())
            });
        });
        let copy = folder.path().join(format!("copy-{cuts}.db"));
        let mut backup = oncelog(&folder);
        backup
            .arg("backup")
            .arg(&copy)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if let Some(point) = point {
            let began = Instant::now();
            let output = run(backup.env("ONCELOG_CRASH_AT", point.name()));
            longest = longest.max(began.elapsed());
            assert_eq!(output.status.signal(), Some(ABORTED), "{output:?}");
            machine.cut();
        } else {
            let mut copying = backup.spawn().unwrap();
            thread::sleep(longest.mul_f64(1.5 * random.f64()));
            machine.cut();
            copying.wait().unwrap();
        }
        server.kill9();
        drop(server);
        machine.power_up();
        cuts += 1;
        if copy.exists() {
            copy_is_whole(&folder, &copy);
            whole += 1;
        }
    }

    let server = Server::start_in(folder.clone(), &[SMALL]);
    let copy = folder.path().join("copy.db");
    let output = run(oncelog(&folder).arg("backup").arg(&copy));
    assert!(output.status.success(), "{output:?}");
    machine.cut();
    server.kill9();
    machine.power_up();
    cuts += 1;
    copy_is_whole(&folder, &copy);
    let checked = is_whole(&folder, &oracle);
    format!(
        "{cuts} cuts, {whole} copies there before the end and whole, {} events acknowledged",
        checked.acknowledged
    )
}

fn copy_is_whole(folder: &Folder, copy: &Path) {
    let output = run(oncelog(folder).arg("verify").arg(copy));
    assert!(output.status.success(), "{}: {output:?}", copy.display());
}

/// The same cuts on a disk that only says that it has synced.
fn without_syncs_loss_is_reported() -> String {
    let mut random = fastrand::Rng::with_seed(11);
    let (mut lost, mut refused) = (0, 0);
    for cut in 0..CONTROL_CUTS {
        let machine = Machine::new();
        let folder = machine.folder();
        let oracle = Oracle::default();
        let disk = Disk::below(&folder).without_syncs();
        let server = Server::start_in(folder.clone(), &disk.settings(&[SMALL]));
        let load = &Load::new(cut);
        under_load(&server, &oracle, load, || {
            eventually("requests are acknowledged", || {
                (oracle.answers() > 50).then_some(())
            });
            thread::sleep(Duration::from_micros(random.u64(0..400_000)));
            server.kill9();
        });
        machine.cut();
        machine.power_up();
        match failure_of(|| {
            let server = Server::start_in(folder.clone(), &[SMALL]);
            oracle.check(&mut server.client(), Moment::LAST);
        }) {
            Some(message) if message.contains("are lost") => lost += 1,
            Some(message) if message.contains("did not start") => refused += 1,
            Some(message) => panic!("neither lost nor refused: {message}"),
            None => {}
        }
    }
    assert!(
        lost + refused >= CONTROL_CUTS / 2 && lost > 0,
        "of {CONTROL_CUTS} stores that lost what was synced, {lost} were found out and {refused} refused"
    );
    format!("{CONTROL_CUTS} cuts: {lost} times loss was reported, {refused} times the start was refused")
}
