//! A write-ahead log that is damaged is refused; one that a crash has torn is not.

use super::{batch, commit, commit_many, open, refusal, sent};
use crate::store::{
    Store as _, Writer as _,
    sqlite::{paths::Paths, wal},
};
use rusqlite::Connection;
use std::{fs, path::PathBuf};

const HEADER: usize = 32;
const FRAME: usize = 24 + 8192;
const SECTOR: usize = 512;

/// A log before and after its last commit, in a folder of its own.
struct Log {
    _folder: tempfile::TempDir,
    path: PathBuf,
    before: Vec<u8>,
    after: Vec<u8>,
}

impl Log {
    /// Of a store that is killed after some commits; the last one is of many frames. If `starts_over`, the log stands
    /// in a file that has an older one behind it.
    fn of_store(starts_over: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.db");
        let (mut writer, store) = open(&path);
        let large = format!(r#"{{"a":"{}"}}"#, "x".repeat(60_000));
        if starts_over {
            for number in 0..9 {
                commit(
                    &mut writer,
                    &store,
                    &[sent("t", &format!("old-{number}"), &large)],
                );
            }
            writer
                .connection()
                .query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(()))
                .unwrap();
        }
        commit_many(&mut writer, &store, "id", 30);
        let paths = Paths::of(&path);
        let before = fs::read(&paths.wal).unwrap();
        let last = batch(&store.identity(), &[sent("t", "last", &large)]);
        writer.commit(&[&last]).unwrap();
        let after = fs::read(&paths.wal).unwrap();
        drop((writer, store));
        let mut log = Self {
            _folder: folder,
            path,
            before,
            after,
        };
        // When the index had no room, segments were listed first, in commits of their own: these are not torn.
        let start = HEADER + log.last_commit() * FRAME;
        let behind = log.before.split_off(start.min(log.before.len()));
        log.before = [&log.after[..start], &behind].concat();
        log
    }

    fn paths(&self) -> Paths {
        Paths::of(&self.path)
    }

    fn check(&self, log: &[u8]) -> Result<(), String> {
        fs::write(self.paths().wal, log).unwrap();
        wal::check(&self.paths()).map_err(|error| error.to_string())
    }

    /// The frames of the newest log, and which of them end a commit.
    fn commits(&self) -> Vec<bool> {
        self.after[HEADER..]
            .chunks_exact(FRAME)
            .take_while(|frame| frame[8..16] == self.after[16..24])
            .map(|frame| frame[4..8] != [0; 4])
            .collect()
    }

    /// The first frame of the last commit, from 0.
    fn last_commit(&self) -> usize {
        let commits = self.commits();
        commits[..commits.len() - 1]
            .iter()
            .rposition(|ends| *ends)
            .unwrap()
            + 1
    }

    fn forget_shared(&self) {
        fs::remove_file(self.paths().shm).unwrap();
    }

    /// What a power cut may leave of the last commit: any of its sectors.
    fn torn(&self, random: &mut fastrand::Rng) -> Vec<u8> {
        let mut torn = self.before.clone();
        torn.resize(self.after.len().max(torn.len()), 0);
        let share = random.u32(0..=10);
        for start in (0..self.after.len()).step_by(SECTOR) {
            let sector = start..self.after.len().min(start + SECTOR);
            if random.u32(0..10) < share {
                torn[sector.clone()].copy_from_slice(&self.after[sector]);
            }
        }
        // Also of the length of the file.
        if random.bool() && self.before.len() < torn.len() {
            torn.truncate(random.usize(self.before.len()..torn.len()));
        }
        torn
    }
}

// A bit that flipped in the log took the commit around it and all behind it away: SQLite took them for a commit that was
// never acknowledged. The store opened without a word, and what it had acknowledged was accepted again.
#[test]
fn a_bit_that_flips_before_the_last_commit_is_found_without_what_was_shared() {
    for starts_over in [false, true] {
        let log = Log::of_store(starts_over);
        log.forget_shared();
        log.check(&log.after).unwrap();
        let mut random = fastrand::Rng::with_seed(1);
        let last = log.last_commit();
        assert!(last > 5);
        let anywhere: Vec<_> = (0..2_000)
            .map(|_| random.usize(HEADER..HEADER + last * FRAME))
            .collect();
        for place in (0..HEADER).chain(anywhere) {
            let mut damaged = log.after.clone();
            damaged[place] ^= 1 << random.u8(0..8);
            let in_frame = (place.wrapping_sub(HEADER)) % FRAME;
            // Of a frame's header, the checksum that ends the commit before the last one is not told apart.
            if place > HEADER && (place - HEADER) / FRAME == last - 1 && in_frame < 24 {
                continue;
            }
            let message = log.check(&damaged).expect_err("the damage is found");
            assert!(message.contains("events.db-wal"), "{message}");
            assert!(message.contains("truncate -s"), "{message}");
        }
        let message = refusal(&log.path);
        assert!(message.contains("is damaged"), "{message}");
    }
}

#[test]
fn a_last_commit_that_a_power_cut_tore_is_no_damage() {
    for starts_over in [false, true] {
        let log = Log::of_store(starts_over);
        log.forget_shared();
        let mut random = fastrand::Rng::with_seed(2);
        for _ in 0..1_000 {
            log.check(&log.torn(&mut random)).unwrap();
        }
        log.check(&log.before).unwrap();
        let others = if starts_over { 9 } else { 0 };
        assert_eq!(open(&log.path).1.high_watermark(), others + 30);
    }
}

// Frames of a commit that was given up stay in the file, behind or under those of the next one.
#[test]
fn what_a_commit_that_was_given_up_left_is_no_damage() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let connection = Connection::open(&path).unwrap();
    connection
        .execute_batch(
            "PRAGMA page_size=8192; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=0;
             PRAGMA cache_size=4; PRAGMA cache_spill=4; CREATE TABLE t(a); INSERT INTO t VALUES(zeroblob(50000));
             BEGIN",
        )
        .unwrap();
    for _ in 0..8 {
        connection
            .execute("INSERT INTO t VALUES(zeroblob(60000))", [])
            .unwrap();
    }
    connection.execute_batch("ROLLBACK").unwrap();
    let paths = Paths::of(&path);
    let before = fs::read(&paths.wal).unwrap();
    connection
        .execute_batch("INSERT INTO t VALUES(randomblob(40000))")
        .unwrap();
    let after = fs::read(&paths.wal).unwrap();
    assert_eq!(before.len(), after.len(), "nothing was left behind the commit");
    drop(connection);
    let log = Log {
        _folder: folder,
        path,
        before,
        after,
    };
    // The last connection has copied the log and removed it.
    let mut random = fastrand::Rng::with_seed(3);
    for _ in 0..1_000 {
        log.check(&log.torn(&mut random)).unwrap();
    }
}

// A killed server's log that was cut, removed or changed for an older one opened as if nothing had been in it.
#[test]
fn what_the_killed_program_shared_tells_how_far_its_log_went() {
    let log = Log::of_store(true);
    let last = HEADER + log.last_commit() * FRAME;
    let end = HEADER + log.commits().len() * FRAME;
    for length in [0, HEADER, last - FRAME, last, end - 1] {
        log.check(&log.after[..length]).unwrap_err();
    }
    for place in [last + 4, last + 8, last + 16, last + 24, end - 1] {
        let mut damaged = log.after.clone();
        damaged[place] ^= 1;
        log.check(&damaged).unwrap_err();
    }
    fs::remove_file(log.paths().wal).unwrap();
    let message = refusal(&log.path);
    assert!(message.contains("empty or missing"), "{message}");
    log.check(&log.after).unwrap();
    assert_eq!(open(&log.path).1.high_watermark(), 40);
}

#[test]
fn an_older_log_is_refused_and_an_older_shared_file_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let paths = Paths::of(&path);
    let (mut writer, store) = open(&path);
    let both = |paths: &Paths| [&paths.wal, &paths.shm].map(|path| fs::read(path).unwrap());
    let mut states = Vec::new();
    for round in 0..4 {
        commit_many(&mut writer, &store, &format!("{round}-a"), 8);
        states.push(both(&paths));
        commit_many(&mut writer, &store, &format!("{round}-b"), 8);
        states.push(both(&paths));
        writer
            .connection()
            .query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(()))
            .unwrap();
    }
    drop((writer, store));
    for (newer, [log, _]) in states.iter().enumerate() {
        for (older, [_, shared]) in states.iter().enumerate() {
            fs::write(&paths.wal, log).unwrap();
            fs::write(&paths.shm, shared).unwrap();
            // After a power cut the shared file may be older than the log, never newer.
            assert_eq!(wal::check(&paths).is_ok(), older <= newer, "{older} {newer}");
        }
    }
}

#[test]
fn the_log_of_another_program_is_left_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.db");
    let connection = Connection::open(&path).unwrap();
    connection
        .execute_batch("PRAGMA page_size=4096; PRAGMA journal_mode=WAL; CREATE TABLE t(a)")
        .unwrap();
    wal::check(&Paths::of(&path)).unwrap();
    let message = refusal(&path);
    assert!(message.contains("another program"), "{message}");
}
