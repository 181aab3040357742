//! The writing side: one transaction a commit, and nothing in memory changes before it is durable.

use super::{
    Shared,
    checkpoint::{self, Checkpoints},
    counters::Delta,
    decide::{Plan, decide},
    failure,
    insert::Insert,
    repair::Repairs,
    rows::{self, ADD_TOPIC},
};
use crate::{
    event::{Batch, Key},
    faults::{self, CrashPoint},
    index::{Change, Found},
    limits,
    store::{BatchOutcome, CommitError, Fences, Writer},
};
use rusqlite::{Connection, config::DbConfig, wal::CheckpointMode};
use std::sync::{Arc, atomic::Ordering};

/// The writer of a SQLite store.
pub(super) struct SqliteWriter {
    checkpoints: Checkpoints,
    repairs: Repairs,
    connection: Connection,
    shared: Arc<Shared>,
    insert: Insert,
    ledger: Ledger,
    max_topics: usize,
    fences: Fences,
}

/// What is known of the stored counters, to give row ids and to see when to fold.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ledger {
    /// The newest delta's id; 0 when there was none yet.
    pub(super) last_delta: i64,
    /// Deltas that are stored.
    pub(super) deltas: u64,
    /// Their bytes.
    pub(super) delta_bytes: u64,
    /// The snapshot's id; 0 when there is none yet.
    pub(super) snapshot: i64,
    /// The snapshot's bytes.
    pub(super) snapshot_bytes: u64,
}

impl Ledger {
    fn is_due(&self) -> bool {
        self.deltas >= limits::MAX_COUNTER_DELTAS
            || self.delta_bytes > limits::MIN_COUNTER_FOLD_BYTES.max(2 * self.snapshot_bytes)
    }
}

impl SqliteWriter {
    pub(super) fn new(
        connection: Connection,
        shared: Arc<Shared>,
        ledger: Ledger,
        max_topics: usize,
    ) -> std::io::Result<Self> {
        connection.set_prepared_statement_cache_capacity(32);
        Ok(Self {
            checkpoints: Checkpoints::start(&shared)?,
            repairs: Repairs::default(),
            connection,
            shared,
            insert: Insert::new(),
            ledger,
            max_topics,
            fences: Fences::default(),
        })
    }

    /// The connection that commits go through, for tests that make SQLite fail.
    #[cfg(test)]
    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// As after a failed sync.
    #[cfg(test)]
    pub(super) fn poison(&self, what: &str, error: &str) {
        self.shared.poison(what, error);
    }

    fn ensure_usable(&self) -> Result<(), CommitError> {
        match self.shared.poisoned.get() {
            Some(reason) => Err(CommitError::Poisoned(reason.clone())),
            None => Ok(()),
        }
    }

    /// Waits until the index can take `events` more, and lists what it has finished for that.
    pub(super) fn make_room(&mut self, events: usize) -> Result<(), CommitError> {
        loop {
            match self.shared.index.wait_for_room(events, limits::INDEX_WAIT) {
                Ok(true) => return Ok(()),
                Ok(false) => {
                    self.list_changes()?;
                }
                Err(error) => {
                    return Err(CommitError::Unavailable(format!(
                        "{error}. It is tried again by itself: if the disk is full, free some space; else see the system's log"
                    )));
                }
            }
        }
    }

    /// Lists all changes of the index's segments that are ready, each durably before the index uses it. Returns
    /// whether there were any.
    pub(super) fn list_changes(&mut self) -> Result<bool, CommitError> {
        let mut any = false;
        while let Some(change) = self.shared.index.finished() {
            transaction(&self.connection, &self.shared, |connection| {
                list(connection, &change)?;
                faults::reached(CrashPoint::ListWritten);
                Ok(())
            })?;
            faults::reached(CrashPoint::ListDurable);
            self.shared.index.apply(&change);
            faults::reached(CrashPoint::ListApplied);
            any = true;
        }
        Ok(any)
    }

    /// Asks the index for all keys. What it cannot use is replaced if that is ready, and otherwise rebuilt.
    fn look_up(&mut self, keys: &[Key]) -> Result<Vec<Option<Found>>, CommitError> {
        loop {
            let error = match self.shared.index.lookup(keys) {
                Ok(found) => return Ok(found),
                Err(error) => error,
            };
            if !self.list_changes()? {
                self.repair()?;
                return Err(CommitError::Unavailable(failure::index(&error)));
            }
        }
    }

    /// Starts to rebuild what is damaged in the index, if anything is.
    fn repair(&mut self) -> Result<(), CommitError> {
        self.repairs
            .look(&self.shared)
            .map_err(|error| CommitError::Unavailable(format!("cannot start a thread: {error}")))
    }

    /// Writes what was decided in one durable transaction.
    fn write(&mut self, batches: &[&Batch], plan: &Plan<'_>, delta: &Delta) -> Result<(), CommitError> {
        let topics = self.shared.topics();
        let fold = self.ledger.is_due();
        let mut ledger = self.ledger;
        let (shared, insert) = (&self.shared, &self.insert);
        transaction(&self.connection, shared, |connection| {
            if !plan.new_topics.is_empty() {
                let mut add = connection.prepare_cached(ADD_TOPIC)?;
                for (number, name) in (topics.len() as u64..).zip(&plan.new_topics) {
                    add.execute((
                        number.cast_signed(),
                        name,
                        rows::topic_checksum(number, name).cast_signed(),
                    ))?;
                }
            }
            let first = delta.highest_seq - plan.entries.len() as u64 + 1;
            insert.run(
                connection,
                batches,
                &plan.outcomes,
                &plan.entries,
                first,
                delta.processed_at,
            )?;
            faults::reached(CrashPoint::CommitInserted);
            if fold {
                // The counters as they were before this commit, whose own delta comes behind.
                let id = ledger.snapshot + 1;
                let snapshot = topics.encode_snapshot(id);
                connection.execute("DELETE FROM counter_deltas", [])?;
                connection.execute("DELETE FROM counter_snapshot", [])?;
                connection.execute(
                    "INSERT INTO counter_snapshot(id, upto_delta, snapshot) VALUES (?1, ?2, ?3)",
                    (id, ledger.last_delta, &snapshot),
                )?;
                ledger = Ledger {
                    last_delta: ledger.last_delta,
                    snapshot: id,
                    snapshot_bytes: snapshot.len() as u64,
                    ..Ledger::default()
                };
                faults::reached(CrashPoint::CommitFolded);
            }
            let id = ledger.last_delta + 1;
            let bytes = delta.encode(id);
            connection
                .prepare_cached("INSERT INTO counter_deltas(id, delta) VALUES (?1, ?2)")?
                .execute((id, &bytes))?;
            ledger.last_delta = id;
            ledger.deltas += 1;
            ledger.delta_bytes += bytes.len() as u64;
            faults::reached(CrashPoint::CommitWritten);
            Ok(())
        })?;
        faults::reached(CrashPoint::CommitDurable);
        self.ledger = ledger;
        Ok(())
    }

    /// Takes what was written over into memory. Readers look all the while, so each step relies only on those before:
    /// an event that the index finds has a topic with a name, and all up to the high watermark is found and counted.
    fn remember(&self, plan: &Plan<'_>, delta: &Delta) -> Result<(), CommitError> {
        if !plan.new_topics.is_empty() {
            let mut topics = self.shared.topics_mut();
            for name in &plan.new_topics {
                topics.add(name);
            }
        }
        self.shared.index.append(&plan.entries);
        self.shared.topics_mut().apply(delta).map_err(|error| {
            CommitError::Poisoned(self.shared.poison("taking a commit into memory", error))
        })?;
        self.shared
            .high_watermark
            .store(delta.highest_seq, Ordering::Release);
        Ok(())
    }
}

impl Writer for SqliteWriter {
    fn commit(&mut self, batches: &[&Batch]) -> Result<Vec<BatchOutcome>, CommitError> {
        self.ensure_usable()?;
        let keys: Vec<Key> = batches
            .iter()
            .flat_map(|batch| batch.events())
            .map(|event| event.key)
            .collect();
        self.make_room(keys.len())?;
        let found = self.look_up(&keys)?;
        let (plan, delta) = {
            let topics = self.shared.topics();
            let mut plan = decide(
                batches,
                &found,
                &topics,
                &mut self.fences,
                topics.highest_seq(),
                self.max_topics,
            );
            let delta = Delta {
                processed_at: jiff::Timestamp::now()
                    .as_microsecond()
                    .max(topics.last_processed_at()),
                highest_seq: topics.highest_seq() + plan.entries.len() as u64,
                topics: std::mem::take(&mut plan.counts),
            };
            (plan, delta)
        };
        if !delta.topics.is_empty() {
            faults::reached(CrashPoint::CommitDecided);
            self.write(batches, &plan, &delta)?;
            self.remember(&plan, &delta)?;
            faults::reached(CrashPoint::CommitRemembered);
        }
        Ok(plan.outcomes)
    }

    fn maintain(&mut self) -> Result<(), CommitError> {
        self.ensure_usable()?;
        self.list_changes()?;
        self.repair()?;
        match self.checkpoints.between_commits(&self.connection) {
            Err(error) if failure::is_failed_sync(&error) => {
                let reason = self.shared.poison("a sync of a checkpoint", &error);
                return Err(CommitError::Poisoned(reason));
            }
            Err(error) => {
                // Commits are safe in the log meanwhile. If the cause lasts, they fail by themselves.
                tracing::warn!(%error, "a checkpoint failed; it is tried again");
            }
            Ok(()) => {}
        }
        match self.shared.index.unusable().into_iter().next() {
            Some(unusable) => Err(CommitError::Unavailable(failure::index(&unusable.into()))),
            None => Ok(()),
        }
    }

    fn probe(&mut self) -> Result<(), CommitError> {
        self.maintain()?;
        self.make_room(limits::MAX_COMMIT_EVENTS)?;
        // As large as commits are under load: on a full disk there is often some room left that a small one fits into,
        // and a store that then calls itself healthy refuses the next request.
        for bytes in [limits::PROBE_BYTES, 0] {
            transaction(&self.connection, &self.shared, |connection| {
                connection.execute(
                    "UPDATE meta SET value = zeroblob(?1) WHERE name = 'probe'",
                    [bytes],
                )?;
                Ok(())
            })?;
        }
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<(), CommitError> {
        self.ensure_usable()?;
        let Self {
            checkpoints,
            repairs,
            connection,
            shared,
            ..
        } = *self;
        drop((checkpoints, repairs));
        faults::reached(CrashPoint::CloseBegun);
        let closed = checkpoint::checkpoint(&connection, CheckpointMode::TRUNCATE).and_then(|_| {
            faults::reached(CrashPoint::CloseCheckpointed);
            // So that SQLite removes the empty log, if nobody else has it open.
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)
        });
        match closed {
            Err(error) if failure::is_failed_sync(&error) => Err(CommitError::Poisoned(
                shared.poison("the sync of the last checkpoint", &error),
            )),
            Err(error) => Err(failure::unavailable(&shared.paths, &error)),
            Ok(_) => Ok(()),
        }
    }
}

/// Replaces segments in the list.
fn list(connection: &Connection, change: &Change) -> rusqlite::Result<()> {
    let mut remove = connection.prepare_cached("DELETE FROM segments WHERE number = ?1")?;
    for segment in &change.remove {
        remove.execute([segment.number.cast_signed()])?;
    }
    let mut add =
        connection.prepare_cached("INSERT INTO segments(number, first, last) VALUES (?1, ?2, ?3)")?;
    for segment in &change.add {
        add.execute([
            segment.number.cast_signed(),
            segment.first.cast_signed(),
            segment.last.cast_signed(),
        ])?;
    }
    Ok(())
}

/// Runs `work` in a durable transaction: all of it is on disk, or nothing of it ever was, or the store is poisoned.
pub(super) fn transaction(
    connection: &Connection,
    shared: &Shared,
    work: impl FnOnce(&Connection) -> rusqlite::Result<()>,
) -> Result<(), CommitError> {
    let run =
        |sql: &str| -> rusqlite::Result<()> { connection.prepare_cached(sql)?.raw_execute().map(|_| ()) };
    let poisoned =
        |what: &str, error: &rusqlite::Error| Err(CommitError::Poisoned(shared.poison(what, error)));
    let worked = run("BEGIN IMMEDIATE").and_then(|()| work(connection));
    let (error, in_doubt) = match worked {
        Err(error) => (error, false),
        Ok(()) => match run("COMMIT") {
            Ok(()) => return Ok(()),
            Err(error) => {
                let clear = failure::is_clear_after_commit(&error);
                (error, !clear)
            }
        },
    };
    if failure::is_failed_sync(&error) {
        return poisoned("a sync", &error);
    }
    // SQLite has rolled back by itself after some errors.
    if !connection.is_autocommit()
        && let Err(error) = run("ROLLBACK")
        && !connection.is_autocommit()
    {
        return poisoned("rolling back", &error);
    }
    if in_doubt && !(failure::is_not_indexed(&error) && write_over(connection)) {
        return poisoned("a commit", &error);
    }
    Err(failure::unavailable(&shared.paths, &error))
}

/// Writes over a transaction that is in the log and not in SQLite's shared memory, so that a crash does not bring it
/// back. The next transaction takes its place in the log, and is synced before room for it in the shared memory is looked
/// for. Returns whether the first one is certainly gone.
///
/// A crash before that sync may bring it back, and nobody was told what became of it; a crash after the sync does not.
fn write_over(connection: &Connection) -> bool {
    let begun =
        connection.execute_batch("BEGIN IMMEDIATE; UPDATE meta SET value = random() WHERE name = 'probe'");
    let gone = begun.is_ok()
        && match connection.execute_batch("COMMIT") {
            Ok(()) => true,
            Err(error) => failure::is_not_indexed(&error),
        };
    gone && (connection.is_autocommit() || connection.execute_batch("ROLLBACK").is_ok())
}
