//! `kill -9`: at random moments under mixed load, and at each named step of the program (`src/faults.rs`).

use crate::{
    harness::{Folder, Load, Moment, Oracle, Server, eventually, oncelog, run, verify},
    scenario::Scenario,
};
use oncelog::faults::CrashPoint;
use std::{os::unix::process::ExitStatusExt, process::ExitStatus, thread, time::Duration};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "kill: at random moments under mixed load",
        needs: &[],
        run: at_random_moments,
    },
    Scenario {
        name: "kill: at each step of commits, seals, merges, lists and checkpoints",
        needs: &[],
        run: at_each_step_of_writing,
    },
    Scenario {
        name: "kill: at each step of a start",
        needs: &[],
        run: at_each_step_of_a_start,
    },
    Scenario {
        name: "kill: at each step of a stop",
        needs: &[],
        run: at_each_step_of_a_stop,
    },
    Scenario {
        name: "kill: at each step of a backup",
        needs: &[],
        run: at_each_step_of_a_backup,
    },
];

const WRITERS: u64 = 4;
pub(crate) const SMALL: (&str, &str) = ("ONCELOG_SMALL_BOUNDS", "1");
/// Kills at random moments, in stores that each live through some of them.
const RANDOM_KILLS: u64 = 60;
const KILLS_A_STORE: u64 = 6;
/// SIGABRT, with which a crash point ends the program.
pub(crate) const ABORTED: i32 = 6;

fn at_random_moments() -> String {
    let mut random = fastrand::Rng::with_seed(1);
    let (mut stored, mut acknowledged) = (0, 0);
    let mut kills = 0;
    while kills < RANDOM_KILLS {
        let oracle = Oracle::default();
        let folder = Folder::new();
        let mut server = Server::start_in(folder.clone(), &[SMALL]);
        for _ in 0..KILLS_A_STORE {
            let load = Load::new(kills);
            let before = oracle.answers();
            let pause = Duration::from_micros(random.u64(0..400_000));
            under_load(&server, &oracle, &load, || {
                eventually("a request is acknowledged", || {
                    (oracle.answers() > before).then_some(())
                });
                thread::sleep(pause);
                server.kill9();
            });
            kills += 1;
            server = server.restart();
            oracle.check(&mut server.client(), Moment::LAST);
        }
        let checked = oracle.check_all(&mut server.client());
        stored += checked.stored;
        acknowledged += checked.acknowledged;
        server.stop();
        verify(&folder);
    }
    format!("{kills} kills, {acknowledged} events acknowledged, {stored} stored")
}

/// Clients of all kinds, until `meanwhile` has returned and the server is gone or the load is stopped.
pub(crate) fn under_load(server: &Server, oracle: &Oracle, load: &Load, meanwhile: impl FnOnce()) {
    let address = server.address();
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            scope.spawn(move || load.write(address, oracle, writer));
        }
        scope.spawn(|| load.read(address));
        let _running = load.running();
        meanwhile();
    });
}

fn aborted(status: ExitStatus) -> bool {
    status.signal() == Some(ABORTED)
}

fn at_each_step_of_writing() -> String {
    use CrashPoint::*;
    let points = [
        CommitDecided,
        CommitInserted,
        CommitFolded,
        CommitWritten,
        CommitDurable,
        CommitRemembered,
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
    let (mut crashes, mut acknowledged) = (0, 0);
    for point in points {
        let times: &[u64] = match point {
            CommitFolded => &[1, 2],
            CommitDecided | CommitInserted | CommitWritten | CommitDurable | CommitRemembered
            | CommitAnswered => &[1, 2, 7, 60],
            // Seals first, then merges among them.
            _ => &[1, 2, 3, 5, 8],
        };
        let oracle = Oracle::default();
        let folder = Folder::new();
        for time in times {
            let crash = format!("{}:{time}", point.name());
            let server = Server::start_in(folder.clone(), &[SMALL, ("ONCELOG_CRASH_AT", &crash)]);
            let load = Load::new(*time);
            under_load(&server, &oracle, &load, || {
                let status = server.ended();
                assert!(aborted(status), "{crash}: {status}\n{}", server.log());
            });
            crashes += 1;
            let server = Server::start_in(folder.clone(), &[SMALL]);
            oracle.check(&mut server.client(), Moment::LAST);
            server.kill9();
        }
        let server = Server::start_in(folder.clone(), &[SMALL]);
        acknowledged += oracle.check_all(&mut server.client()).acknowledged;
        server.stop();
        verify(&folder);
    }
    format!(
        "{crashes} crashes at {} steps, {acknowledged} events acknowledged",
        points.len()
    )
}

/// A store that was killed under load, with sealed segments, a tail, and a write-ahead log.
fn killed_store(oracle: &Oracle, answers: usize) -> Folder {
    let folder = Folder::new();
    let server = Server::start_in(folder.clone(), &[SMALL]);
    under_load(&server, oracle, &Load::new(99), || {
        eventually("requests are acknowledged", || {
            (oracle.answers() >= answers).then_some(())
        });
        server.kill9();
    });
    folder
}

fn at_each_step_of_a_start() -> String {
    use CrashPoint::*;
    let mut crashes = 0;
    let mut acknowledged = 0;
    {
        // Of a store that is not there yet.
        let folder = Folder::new();
        crash_at_start(&folder, OpenCreated);
        let oracle = Oracle::default();
        let server = Server::start_in(folder, &[SMALL]);
        oracle.check_all(&mut server.client());
        crashes += 1;
    }
    let oracle = Oracle::default();
    let folder = killed_store(&oracle, 300);
    for point in [
        OpenSettled,
        OpenLoaded,
        OpenRemoved,
        OpenAppended,
        RebuildDone,
        OpenDone,
    ] {
        for _ in 0..2 {
            match point {
                OpenRemoved => leave_unlisted_file(&folder),
                RebuildDone => damage_a_segment(&folder),
                _ => {}
            }
            crash_at_start(&folder, point);
            crashes += 1;
            let server = Server::start_in(folder.clone(), &[SMALL]);
            oracle.check(&mut server.client(), Moment::LAST);
            under_load(&server, &oracle, &Load::new(100 + crashes), || {
                let before = oracle.answers();
                eventually("requests are acknowledged", || {
                    (oracle.answers() >= before + 50).then_some(())
                });
                server.kill9();
            });
        }
    }
    let server = Server::start_in(folder.clone(), &[SMALL]);
    acknowledged += oracle.check_all(&mut server.client()).acknowledged;
    server.stop();
    verify(&folder);
    format!("{crashes} crashes at 7 steps, {acknowledged} events acknowledged")
}

fn crash_at_start(folder: &Folder, point: CrashPoint) {
    let settings = [SMALL, ("ONCELOG_CRASH_AT", point.name())];
    match Server::try_start_in(folder.clone(), &settings) {
        Ok(server) => panic!("{} was not reached:\n{}", point.name(), server.log()),
        Err(failed) => assert!(aborted(failed.status), "{failed}"),
    }
}

/// As a crash leaves it that comes after a segment was written and before it was listed.
pub(crate) fn leave_unlisted_file(folder: &Folder) {
    let listed = a_segment(folder);
    let name = listed.file_name().unwrap().to_str().unwrap();
    let (rest, _) = name.rsplit_once('-').unwrap();
    std::fs::copy(&listed, listed.with_file_name(format!("{rest}-0fffffff.segment"))).unwrap();
}

pub(crate) fn damage_a_segment(folder: &Folder) {
    std::fs::File::options()
        .write(true)
        .open(a_segment(folder))
        .unwrap()
        .set_len(100)
        .unwrap();
}

fn a_segment(folder: &Folder) -> std::path::PathBuf {
    let mut segments: Vec<_> = std::fs::read_dir(folder.index())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "segment"))
        .collect();
    segments.sort();
    segments.first().expect("the store has a segment").clone()
}

fn at_each_step_of_a_stop() -> String {
    let mut acknowledged = 0;
    let points = [CrashPoint::CloseBegun, CrashPoint::CloseCheckpointed];
    for point in points {
        let folder = Folder::new();
        let oracle = Oracle::default();
        let server = Server::start_in(folder.clone(), &[SMALL, ("ONCELOG_CRASH_AT", point.name())]);
        under_load(&server, &oracle, &Load::new(7), || {
            eventually("requests are acknowledged", || {
                (oracle.answers() >= 100).then_some(())
            });
            server.terminate();
            let status = server.ended();
            assert!(aborted(status), "{status}\n{}", server.log());
        });
        let server = Server::start_in(folder.clone(), &[SMALL]);
        acknowledged += oracle.check_all(&mut server.client()).acknowledged;
        server.stop();
        verify(&folder);
    }
    format!("2 crashes at 2 steps, {acknowledged} events acknowledged")
}

/// A backup that dies leaves no store behind that would be taken for one, a second try works, and the source is as it was.
fn at_each_step_of_a_backup() -> String {
    use CrashPoint::*;
    let folder = Folder::new();
    let oracle = Oracle::default();
    let server = Server::start_in(folder.clone(), &[SMALL]);
    under_load(&server, &oracle, &Load::new(5), || {
        eventually("requests are acknowledged", || {
            (oracle.answers() >= 300).then_some(())
        });
    });
    let points = [
        BackupPinned,
        BackupSegments,
        BackupSlice,
        BackupComplete,
        BackupIndexNamed,
        BackupNamed,
    ];
    for point in points {
        let copy = folder.path().join(format!("copy-{}", point.name()));
        let backup = |crash: &[(&str, &str)]| {
            run(oncelog(&folder)
                .envs(crash.iter().copied())
                .arg("backup")
                .arg(&copy))
        };
        let output = backup(&[("ONCELOG_CRASH_AT", point.name())]);
        assert!(aborted(output.status), "{}: {output:?}", point.name());
        if copy.exists() {
            // It had its name: it must be whole.
            assert_eq!(point, BackupNamed);
        } else {
            let output = backup(&[]);
            if !output.status.success() {
                // Only what stands under the name of the copy is in the way, and the message says what.
                let message = String::from_utf8_lossy(&output.stderr);
                let index = copy.with_file_name(format!("copy-{}-index", point.name()));
                assert!(message.contains(&*index.to_string_lossy()), "{message}");
                std::fs::remove_dir_all(index).unwrap();
                let output = backup(&[]);
                assert!(output.status.success(), "{output:?}");
            }
        }
        let output = run(oncelog(&folder).arg("verify").arg(&copy));
        assert!(output.status.success(), "{}: {output:?}", point.name());
    }
    let checked = oracle.check_all(&mut server.client());
    server.stop();
    verify(&folder);
    format!(
        "{} crashes at as many steps, {} events",
        points.len(),
        checked.stored
    )
}
