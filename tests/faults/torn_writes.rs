//! Power cuts on a disk that writes in any order: a run is recorded, and from the record many disks are made as a cut at
//! some moment may leave them (`disk_image`). Each is started with the real program, and everything that was
//! acknowledged before the cut must be there.

use crate::{
    disk_image::{Image, Syncs, Unsynced, judge, place},
    disk_record::{self, Operation},
    harness::{Folder, Load, Moment, Oracle, Server, eventually},
    kill::under_load,
    scenario::{Need, Scenario, failure_of, side_by_side},
    shim::Disk,
};
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "torn writes: cut at random moments, unsynced writes kept, torn or lost by chance",
        needs: &[Need::Program("cc")],
        run: cut_at_random_moments,
    },
    Scenario {
        name: "torn writes: control: with syncs that do nothing, loss is reported",
        needs: &[Need::Program("cc")],
        run: without_syncs_loss_is_reported,
    },
];

const SMALL: (&str, &str) = ("ONCELOG_SMALL_BOUNDS", "1");
const RECORDINGS: u64 = 6;
/// In all; `TORN_WRITES_CUTS=1000` makes more.
const CUTS: u64 = 600;
const CONTROL_CUTS: u64 = 60;
/// By how many operations a disk that is late is late: several commits.
const LATE_OPERATIONS: usize = 200;
/// Requests that are acknowledged in each of the two runs of a recording: enough for seals, merges and checkpoints.
const ANSWERS: usize = 110;
/// Servers that run at a time.
const JUDGES: usize = 2;
/// About so many operations are a start, and about so many a stop.
const START_OPERATIONS: usize = 80;
const STOP_OPERATIONS: usize = 20;
/// Each so-manieth store is verified after the check.
const VERIFY_EVERY: u64 = 5;

/// A new store under load, a clean stop, a second start, load again, and a kill.
struct Recording {
    oracle: Oracle,
    operations: Vec<Operation>,
    /// Operations of the first run.
    first_run: usize,
}

impl Recording {
    fn make(seed: u64) -> Self {
        let oracle = Oracle::default();
        let records = Folder::new();
        let folder = Folder::within(place());
        let mut operations = Vec::new();
        let mut first_run = 0;
        for run in 0..2 {
            let record = records.path().join(format!("run-{run}"));
            let disk = Disk::below(&folder).recorded(&record);
            let server = Server::start_in(folder.clone(), &disk.settings(&[SMALL]));
            let before = oracle.answers();
            under_load(&server, &oracle, &Load::new(2 * seed + run), || {
                eventually("requests are acknowledged", || {
                    (oracle.answers() >= before + ANSWERS).then_some(())
                });
                if run == 0 {
                    server.stop();
                } else {
                    server.kill9();
                }
            });
            first_run = operations.len();
            operations.extend(disk_record::read(&record, folder.path()));
        }
        Self {
            oracle,
            operations,
            first_run,
        }
    }

    /// The number of operations before the cut. Starts and stops are short, so some cuts are meant for them.
    fn choose(&self, random: &mut fastrand::Rng) -> usize {
        let all = self.operations.len();
        match random.u8(0..6) {
            0 => random.usize(0..START_OPERATIONS),
            1 => random.usize(self.first_run - STOP_OPERATIONS..self.first_run + START_OPERATIONS),
            _ => random.usize(0..=all),
        }
    }

    /// The disk after a cut, and the moment of the cut.
    fn cut(
        &self,
        after: usize,
        syncs: Syncs,
        unsynced: Unsynced,
        random: &mut fastrand::Rng,
    ) -> (Folder, Moment) {
        let mut image = Image::new(syncs);
        for operation in &self.operations[..after] {
            image.play(operation);
        }
        let moment = self
            .operations
            .get(after)
            .map_or(Moment::LAST, |operation| operation.at);
        (image.cut(place(), unsynced, random), moment)
    }
}

fn cut_at_random_moments() -> String {
    let wanted =
        std::env::var("TORN_WRITES_CUTS").map_or(CUTS, |cuts| cuts.parse().expect("a number of cuts"));
    let (mut acknowledged, mut operations) = (0, 0);
    for number in 0..RECORDINGS {
        let recording = Recording::make(number);
        operations += recording.operations.len();
        let cuts = (number..wanted).step_by(RECORDINGS as usize).map(|cut| {
            let mut random = fastrand::Rng::with_seed(cut);
            (cut, recording.choose(&mut random))
        });
        let checked = side_by_side(JUDGES, cuts, |&(cut, after)| {
            let mut random = fastrand::Rng::with_seed(cut);
            let (folder, moment) = recording.cut(after, Syncs::Kept, Unsynced::ByChance, &mut random);
            judge(&folder, &recording.oracle, moment, cut % VERIFY_EVERY == 0)
        });
        acknowledged += checked.iter().map(|checked| checked.acknowledged).sum::<u64>();
    }
    format!(
        "{wanted} cuts in {RECORDINGS} records of {operations} operations, {acknowledged} times an acknowledged event \
         was found"
    )
}

fn without_syncs_loss_is_reported() -> String {
    let recording = Recording::make(RECORDINGS);
    let all = recording.operations.len();
    let mut random = fastrand::Rng::with_seed(1);
    let (mut refused, mut lost) = (0, 0);
    for cut in 0..CONTROL_CUTS {
        // Something was acknowledged long before.
        let after = random.usize(all / 2..=all);
        let (mut folder, moment) = recording.cut(after, Syncs::Ignored, Unsynced::ByChance, &mut random);
        if cut % 2 == 0 {
            // A disk that writes in order and is late: the store is sound, and old.
            let before = after - LATE_OPERATIONS;
            (folder, _) = recording.cut(before, Syncs::Ignored, Unsynced::Written, &mut random);
        }
        match failure_of(|| {
            judge(&folder, &recording.oracle, moment, false);
        }) {
            Some(message) if message.contains("are lost") => lost += 1,
            Some(message) if message.contains("did not start") => refused += 1,
            Some(message) => panic!("neither lost nor refused: {message}"),
            None => {}
        }
    }
    assert!(
        lost >= CONTROL_CUTS / 2 && refused + lost >= CONTROL_CUTS * 9 / 10,
        "of {CONTROL_CUTS} disks that lost what was synced, {lost} were found out and {refused} refused"
    );
    format!("{CONTROL_CUTS} cuts: {lost} times loss was reported, {refused} times the start was refused")
}
