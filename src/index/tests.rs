//! The index against a simple model: a `Vec` of entries is the log, a `Vec` of names is the store's list.

use super::background::Finished;
use super::*;
use crate::event::Fingerprint;
use proptest::prelude::*;
use std::{sync::mpsc, time::Instant};

const STORE: u128 = 0x00ab_cdef;
const SETTINGS: Settings = Settings {
    tail_events: 8,
    merge_fan_in: 3,
    filter_keys: 16,
    max_frozen_tails: 2,
    time_block_events: 4,
    retry: Duration::from_millis(1),
};
/// Far beyond what any step takes; a test that gets here hangs.
const DEADLINE: Duration = Duration::from_secs(60);

/// The log, the list, and an index over them, as a store would hold them.
struct Model {
    folder: tempfile::TempDir,
    log: Vec<Entry>,
    listed: Vec<SegmentName>,
    disk: Disk,
    index: Option<Index>,
    ready: mpsc::Receiver<()>,
    unusable: Vec<Unusable>,
}

fn entry(n: u64, topic: u32, seconds: i64) -> Entry {
    // Spreads the numbers over the key space, as the keyed hash does.
    let high = n.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (n << 40);
    Entry {
        key: Key { high, low: n },
        fingerprint: Fingerprint(n * 3),
        topic,
        seconds,
    }
}

impl Model {
    fn new() -> Self {
        let mut model = Self {
            folder: tempfile::tempdir().unwrap(),
            log: Vec::new(),
            listed: Vec::new(),
            disk: Disk::default(),
            index: None,
            ready: mpsc::channel().1,
            unusable: Vec::new(),
        };
        model.reopen();
        model
    }

    fn index(&self) -> &Index {
        self.index.as_ref().unwrap()
    }

    /// Drops the index as it is and opens it anew from the list and the log.
    fn reopen(&mut self) {
        self.index = None;
        self.disk = Disk::default();
        self.open().unwrap();
    }

    fn open(&mut self) -> Result<(), IndexError> {
        let (sender, ready) = mpsc::channel();
        let home = Home {
            folder: self.folder.path().join("index"),
            store: STORE,
            settings: SETTINGS,
            disk: self.disk.clone(),
        };
        let ready_sender = std::sync::Mutex::new(sender);
        let on_ready = Arc::new(move || {
            let _ = ready_sender.lock().unwrap().send(());
        });
        let (index, unusable) = Index::open_at(home, &self.listed, on_ready)?;
        let covered = self.listed.iter().map(|name| name.last).max().unwrap_or(0) as usize;
        index.append(&self.log[covered..]);
        self.index = Some(index);
        self.ready = ready;
        self.unusable = unusable;
        Ok(())
    }

    fn append(&mut self, entries: Vec<Entry>) {
        self.index().append(&entries);
        self.log.extend(entries);
    }

    /// Lists a change, and applies it unless the program is to die in between.
    fn list(&mut self, change: &Change, apply: bool) {
        for name in &change.remove {
            let place = self
                .listed
                .iter()
                .position(|listed| listed == name)
                .expect("only listed segments are removed");
            self.listed.remove(place);
        }
        self.listed.extend(&change.add);
        if apply {
            self.index().apply(change);
        }
    }

    fn work_is_left(&self) -> bool {
        let state = self.index().shared.read();
        !state.frozen.is_empty() || merge::choose(&state.segments, &SETTINGS, u64::MAX).is_some()
    }

    /// Lists and applies everything until the background has nothing left to do. False if a fault keeps it from that.
    fn settle(&mut self) -> bool {
        let until = Instant::now() + DEADLINE;
        loop {
            while let Some(change) = self.index().finished() {
                self.list(&change, true);
            }
            if !self.work_is_left() {
                return true;
            }
            if self.disk.faults.calls.load(std::sync::atomic::Ordering::SeqCst)
                > self
                    .disk
                    .faults
                    .fail_from
                    .load(std::sync::atomic::Ordering::SeqCst)
            {
                return false;
            }
            assert!(Instant::now() < until, "the background work does not end");
            let _ = self.ready.recv_timeout(Duration::from_millis(1));
        }
    }

    /// Every answer of the index is what the log says.
    fn check(&self) {
        let index = self.index();
        let keys: Vec<Key> = self.log.iter().map(|entry| entry.key).collect();
        for (i, found) in index.lookup(&keys).unwrap().into_iter().enumerate() {
            let expected = Found {
                seq: i as u64 + 1,
                fingerprint: self.log[i].fingerprint,
            };
            assert_eq!(found, Some(expected), "event {}", i + 1);
        }
        let absent: Vec<Key> = (0..50).map(|n| entry(1_000_000 + n, 0, 0).key).collect();
        assert!(index.lookup(&absent).unwrap().iter().all(Option::is_none));

        for topic in 0..4 {
            let all: Vec<Seq> = (1..)
                .zip(&self.log)
                .filter(|(_, e)| e.topic == topic)
                .map(|(seq, _)| seq)
                .collect();
            for position in [0, 1, self.log.len() as u64 / 2, self.log.len() as u64, u64::MAX] {
                for limit in [1, 3, 1000] {
                    let up: Vec<Seq> = all
                        .iter()
                        .copied()
                        .filter(|seq| *seq > position)
                        .take(limit)
                        .collect();
                    let down: Vec<Seq> = all
                        .iter()
                        .rev()
                        .copied()
                        .filter(|seq| *seq < position)
                        .take(limit)
                        .collect();
                    assert_eq!(
                        index.topic_seqs(topic, Direction::Up, position, limit).unwrap(),
                        up
                    );
                    assert_eq!(
                        index.topic_seqs(topic, Direction::Down, position, limit).unwrap(),
                        down
                    );
                }
            }
        }
        for (i, entry) in self.log.iter().enumerate() {
            let seq = i as u64 + 1;
            let block = index.times_of(seq).unwrap().unwrap();
            assert!(block.first <= seq && seq <= block.last);
            let times = self.log[block.first as usize - 1..block.last as usize]
                .iter()
                .map(|e| e.seconds);
            assert_eq!(
                (Some(block.min), Some(block.max)),
                (times.clone().min(), times.max()),
                "around {entry:?}"
            );
        }
        assert_eq!(index.times_of(self.log.len() as u64 + 1).unwrap(), None);
    }

    /// Every listed file says what the log says, and there are no others.
    fn check_files(&self) {
        for name in &self.listed {
            let rows = self.log[name.first as usize - 1..name.last as usize]
                .iter()
                .map(|entry| Ok(*entry));
            let folder = self.folder.path().join("index");
            verify(&folder, STORE, *name, SETTINGS, Some(&mut rows.into_iter())).unwrap();
        }
        let until = Instant::now() + DEADLINE;
        loop {
            // A merge that a rebuild was quicker than ends later, and is thrown away then.
            assert!(self.index().finished().is_none());
            let files = std::fs::read_dir(self.folder.path().join("index"))
                .unwrap()
                .count();
            if files == self.listed.len() {
                return;
            }
            assert!(Instant::now() < until, "{files} files, {:?}", self.listed);
            let _ = self.ready.recv_timeout(Duration::from_millis(1));
        }
    }

    fn rebuild_unusable(&mut self) {
        for unusable in self.index().unusable() {
            let name = unusable.segment;
            let rows = self.log[name.first as usize - 1..name.last as usize]
                .iter()
                .map(|e| Ok::<_, IndexError>(*e));
            self.index().rebuild(name, rows).unwrap();
        }
    }

    fn damage(&self, which: usize, how: Damage) {
        let name = self.listed[which % self.listed.len()];
        let path = self.index().path_of(name);
        let mut bytes = std::fs::read(&path).unwrap();
        match how {
            Damage::Missing => return std::fs::remove_file(path).unwrap(),
            Damage::Cut(at) => bytes.truncate(at % bytes.len()),
            Damage::Flip(at) => {
                let at = at % bytes.len();
                bytes[at] ^= 0x10;
            }
        }
        // A new file, so that the open one is the damaged one too.
        std::fs::write(&path, bytes).unwrap();
    }
}

#[derive(Clone, Copy, Debug)]
enum Damage {
    Missing,
    Cut(usize),
    Flip(usize),
}

#[derive(Clone, Debug)]
enum Step {
    Append(Vec<(u32, i64)>),
    /// List and apply what is finished.
    List,
    Settle,
    /// The program dies, between listing and applying if something is finished.
    Crash {
        listed: bool,
    },
    /// The program dies, and a file is damaged while it is away.
    Damage(usize, Damage),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let damage = prop_oneof![
        Just(Damage::Missing),
        any::<usize>().prop_map(Damage::Cut),
        any::<usize>().prop_map(Damage::Flip)
    ];
    prop::collection::vec(
        prop_oneof![
            6 => prop::collection::vec((0u32..4, -50i64..50), 0..20).prop_map(Step::Append),
            2 => Just(Step::List),
            2 => Just(Step::Settle),
            1 => any::<bool>().prop_map(|listed| Step::Crash { listed }),
            1 => (any::<usize>(), damage).prop_map(|(which, how)| Step::Damage(which, how)),
        ],
        1..25,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn the_index_answers_like_the_log(steps in steps()) {
        let mut model = Model::new();
        for step in steps {
            match step {
                Step::Append(events) => {
                    let next = model.log.len() as u64;
                    model.append((next..).zip(events).map(|(n, (topic, time))| entry(n, topic, time)).collect());
                }
                Step::List => {
                    if let Some(change) = model.index().finished() {
                        model.list(&change, true);
                    }
                }
                Step::Settle => prop_assert!(model.settle()),
                Step::Crash { listed } => {
                    if let Some(change) = model.index().finished() && listed {
                        model.list(&change, false);
                    }
                    model.reopen();
                }
                Step::Damage(which, how) => {
                    if !model.listed.is_empty() {
                        model.damage(which, how);
                        model.reopen();
                        // What opening does not find, reading does; either way it is never an answer.
                        for topic in 0..4 {
                            let _ = model.index().topic_seqs(topic, Direction::Up, 0, usize::MAX);
                        }
                        let keys: Vec<Key> = model.log.iter().map(|entry| entry.key).collect();
                        let _ = model.index().lookup(&keys);
                        for seq in 1..=model.log.len() as u64 {
                            let _ = model.index().times_of(seq);
                        }
                        model.rebuild_unusable();
                        prop_assert!(model.settle());
                    }
                }
            }
            model.check();
        }
        prop_assert!(model.settle());
        model.check();
        model.check_files();
    }
}

/// A merge that had lost against a rebuild of one of its segments was thrown away, and nobody looked for other merges: they waited
/// for the next seal. (Seen as a test that did not end when the machine was busy.)
#[test]
fn a_merge_that_is_thrown_away_keeps_no_other_one_waiting() {
    let mut model = Model::new();
    let sealed = SETTINGS.merge_fan_in;
    model.append(
        (0..(sealed * SETTINGS.tail_events) as u64)
            .map(|n| entry(n, 0, 0))
            .collect(),
    );
    let until = Instant::now() + DEADLINE;
    while lock(&model.index().shared.finished).len() < sealed {
        assert!(Instant::now() < until, "the tails are not sealed");
        let _ = model.ready.recv_timeout(Duration::from_millis(1));
    }
    // As if a merge of a segment had ended that is no longer there.
    let gone = SegmentName {
        first: 1,
        last: 1,
        number: u64::MAX,
    };
    lock(&model.index().shared.finished).push_back(Finished {
        remove: vec![gone],
        add: Vec::new(),
    });
    assert!(model.settle());
    model.check();
    model.check_files();
}

/// Twelve tails of events: seals, merges of tails, and a merge of merged ones.
fn fill(model: &mut Model) -> bool {
    for n in 0..96 {
        let next = entry(n, (n % 3) as u32, n as i64);
        model.append(vec![next]);
        if !model.settle() {
            return false;
        }
    }
    true
}

#[test]
fn a_crash_at_any_step_of_seal_and_merge_loses_nothing() {
    let mut steps = 0;
    loop {
        let mut model = Model::new();
        model.disk.faults.fail_from.store(
            model.disk.faults.calls.load(std::sync::atomic::Ordering::SeqCst) + steps,
            std::sync::atomic::Ordering::SeqCst,
        );
        let whole = fill(&mut model);
        model.reopen();
        assert!(model.unusable.is_empty(), "step {steps}: {:?}", model.unusable);
        model.check();
        assert!(model.settle());
        model.check();
        model.check_files();
        if whole {
            // Twelve tails, four merges of three and one of those: create, write, sync … of each.
            assert!(steps > 80, "only {steps} steps were tried");
            return;
        }
        steps += 1;
    }
}

/// Once a merge that failed on a full disk left its part behind and began another under a new name, again and again,
/// until nothing was free.
#[test]
fn work_that_failed_leaves_nothing_behind_and_goes_on_when_the_disk_heals() {
    use std::sync::atomic::Ordering::SeqCst;
    let mut healed = 0;
    for step in (0..100).step_by(3) {
        let mut model = Model::new();
        let faults = Arc::clone(&model.disk.faults);
        faults.full_only.store(true, SeqCst);
        faults.fail_from.store(faults.calls.load(SeqCst) + step, SeqCst);
        let whole = fill(&mut model);
        faults.fail_from.store(u64::MAX, SeqCst);
        assert!(model.settle());
        model.check();
        model.check_files();
        healed += u32::from(!whole);
    }
    assert!(healed > 20, "only {healed} runs had a fault");
}

#[test]
fn a_segment_that_is_damaged_while_open_is_refused_until_it_is_rebuilt() {
    let mut model = Model::new();
    assert!(fill(&mut model));
    let path = model.index().path_of(model.listed[0]);
    let bytes = std::fs::read(&path).unwrap();
    // In place: the index has the file open.
    std::fs::write(&path, vec![0xff; bytes.len()]).unwrap();
    let keys: Vec<Key> = model.log.iter().map(|entry| entry.key).collect();
    let error = model.index().lookup(&keys).unwrap_err();
    assert!(
        matches!(&error, IndexError::Damaged { segment, .. } if *segment == model.listed[0]),
        "{error}"
    );
    assert_eq!(model.index().unusable().len(), 1);
    assert!(model.index().lookup(&keys).is_err(), "still refused");
    model.rebuild_unusable();
    assert!(model.settle());
    model.check();
    model.check_files();
}

#[test]
fn files_of_others_are_left_alone_and_set_aside_ones_too() {
    let mut model = Model::new();
    assert!(fill(&mut model));
    let folder = model.folder.path().join("index");
    let name = SegmentName {
        number: 99,
        first: 1,
        last: 8,
    };
    let keep = [
        folder.join("notes.txt"),
        folder.join(file_name(STORE + 1, name)),
        folder.join("x.segment"),
    ];
    for path in &keep {
        std::fs::write(path, "theirs").unwrap();
    }
    let ours = folder.join(file_name(STORE, name));
    std::fs::write(&ours, "left by a crash").unwrap();
    model.damage(0, Damage::Flip(100));
    model.reopen();
    assert!(!ours.exists());
    let aside = model
        .index()
        .set_aside(model.unusable[0].segment)
        .unwrap()
        .unwrap();
    assert_eq!(model.index().set_aside(model.unusable[0].segment).unwrap(), None);
    model.reopen();
    assert!(aside.exists() && keep.iter().all(|path| path.exists()));
}

#[test]
fn commits_wait_while_too_many_tails_wait() {
    let mut model = Model::new();
    model.append((0..23).map(|n| entry(n, 0, 0)).collect());
    // Two tails are frozen and seven events are in the third: one more fits without freezing it, nine do not.
    assert!(
        !model.index().wait_for_room(9, DEADLINE).unwrap(),
        "a change has to be listed first"
    );
    assert!(model.settle());
    assert!(model.index().wait_for_room(9, DEADLINE).unwrap());
}

#[test]
fn a_rebuild_without_all_rows_is_an_error() {
    let mut model = Model::new();
    assert!(fill(&mut model));
    model.damage(0, Damage::Missing);
    model.reopen();
    let name = model.unusable[0].segment;
    let error = model
        .index()
        .rebuild(name, std::iter::empty::<Result<Entry, IndexError>>())
        .unwrap_err();
    assert_eq!(error.to_string(), "the log has no event 1");
}
