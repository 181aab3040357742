//! Copies the write-ahead log back into the SQLite file without making commits wait for it.
//!
//! SQLite starts the log over from its beginning when a commit finds all of it copied and nobody reading it; until then
//! it grows. Copying all of it takes tens of milliseconds, so a thread of its own does that (a *passive* checkpoint
//! runs beside the writer) and repeats it while much is written meanwhile. What then is left is little; the writer
//! copies it between two commits, so that the next one starts the log over. If the log grows beyond
//! [`limits::MAX_WAL_BYTES`] all the same, the writer copies everything itself and waits for readers.

use super::{Shared, failure, schema};
use crate::limits;
use rusqlite::Connection;
use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Instant,
};

/// SQLite puts a header of this many bytes before each page in the log.
const FRAME_HEADER_BYTES: u64 = 24;

/// What the log holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LogState {
    /// Bytes since the log was started over.
    pub(super) bytes: u64,
    /// Those of them that the SQLite file lacks.
    pub(super) missing: u64,
}

/// Runs `PRAGMA wal_checkpoint(mode)`; `NOOP` only looks.
pub(super) fn checkpoint(connection: &Connection, mode: &str) -> rusqlite::Result<LogState> {
    let mut pragma = connection.prepare_cached(&format!("PRAGMA wal_checkpoint({mode})"))?;
    pragma.query_row([], |row| {
        let pages = |column| {
            row.get(column)
                .map(|pages: i64| u64::try_from(pages).unwrap_or(0))
        };
        let (logged, copied) = (pages(1)?, pages(2)?);
        let page = limits::SQLITE_PAGE_BYTES + FRAME_HEADER_BYTES;
        Ok(LogState {
            bytes: logged * page,
            missing: logged.saturating_sub(copied) * page,
        })
    })
}

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The log is short.
    Idle,
    /// The thread copies.
    Background,
    /// The thread has copied most; the writer copies the rest.
    Rest,
    /// The thread ends.
    Stopped,
}

#[derive(Debug)]
struct Turn {
    phase: Mutex<Phase>,
    changed: Condvar,
}

impl Turn {
    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands over, unless the program is stopping.
    fn set(&self, next: Phase) {
        let mut phase = self.phase();
        if *phase != Phase::Stopped {
            *phase = next;
            self.changed.notify_all();
        }
    }
}

/// The writer's side, and the thread; dropping it stops the thread and waits for it.
#[derive(Debug)]
pub(super) struct Checkpoints {
    turn: Arc<Turn>,
    thread: Option<JoinHandle<()>>,
    /// A checkpoint of the writer's that failed or had to give up is not tried again before.
    not_before: Option<Instant>,
}

impl Checkpoints {
    /// Starts the thread.
    pub(super) fn start(shared: &Arc<Shared>) -> std::io::Result<Self> {
        let turn = Arc::new(Turn {
            phase: Mutex::new(Phase::Idle),
            changed: Condvar::new(),
        });
        let thread = {
            let (turn, shared) = (Arc::clone(&turn), Arc::clone(shared));
            std::thread::Builder::new()
                .name("checkpoint".into())
                .spawn(move || run(&turn, &shared))?
        };
        Ok(Self {
            turn,
            thread: Some(thread),
            not_before: None,
        })
    }

    /// Called by the writer between two commits.
    pub(super) fn between_commits(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let log = checkpoint(connection, "NOOP")?;
        let phase = *self.turn.phase();
        if phase == Phase::Idle && log.missing < limits::CHECKPOINT_BYTES
            || phase == Phase::Background && log.bytes < limits::MAX_WAL_BYTES
            || self.not_before.is_some_and(|moment| Instant::now() < moment)
        {
            return Ok(());
        }
        self.not_before = None;
        let result = if log.bytes >= limits::MAX_WAL_BYTES {
            self.copy_all(connection)
        } else if phase == Phase::Idle {
            self.turn.set(Phase::Background);
            return Ok(());
        } else {
            checkpoint(connection, "PASSIVE").map(|_| self.turn.set(Phase::Idle))
        };
        if result.is_err() {
            self.not_before = Some(Instant::now() + limits::PROBE_INTERVAL);
        }
        result
    }

    /// Copies the whole log and makes the next commit start it over, unless someone reads for too long.
    fn copy_all(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        connection.busy_timeout(limits::CHECKPOINT_WAIT)?;
        let copied = checkpoint(connection, "RESTART");
        connection.busy_timeout(limits::SQLITE_BUSY_TIMEOUT)?;
        if copied?.missing > 0 {
            tracing::warn!(
                "the write-ahead log keeps growing: a program has been reading the database file for long"
            );
            self.not_before = Some(Instant::now() + limits::PROBE_INTERVAL);
        } else if *self.turn.phase() == Phase::Rest {
            self.turn.set(Phase::Idle);
        }
        Ok(())
    }
}

impl Drop for Checkpoints {
    fn drop(&mut self) {
        self.turn.set(Phase::Stopped);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the checkpoint thread panicked");
        }
    }
}

fn run(turn: &Turn, shared: &Shared) {
    let mut connection = None;
    loop {
        {
            let mut phase = turn.phase();
            while !matches!(*phase, Phase::Background | Phase::Stopped) {
                phase = turn.changed.wait(phase).unwrap_or_else(PoisonError::into_inner);
            }
            if *phase == Phase::Stopped {
                return;
            }
        }
        match copy_most(&mut connection, shared) {
            Ok(()) => turn.set(Phase::Rest),
            Err(error) if failure::is_failed_sync(&error) => {
                shared.poison("a sync of a checkpoint", &error);
                return;
            }
            Err(error) => {
                tracing::warn!(%error, "a checkpoint failed; it is tried again");
                connection = None;
                let phase = turn.phase();
                // Only a stop ends the pause early.
                let (phase, _) = turn
                    .changed
                    .wait_timeout_while(phase, limits::PROBE_INTERVAL, |phase| *phase != Phase::Stopped)
                    .unwrap_or_else(PoisonError::into_inner);
                drop(phase);
                turn.set(Phase::Idle);
            }
        }
    }
}

fn copy_most(connection: &mut Option<Connection>, shared: &Shared) -> rusqlite::Result<()> {
    let connection = match connection {
        Some(connection) => connection,
        None => connection.insert(schema::connect_checkpointer(&shared.paths)?),
    };
    for _ in 0..limits::CHECKPOINT_ROUNDS {
        checkpoint(connection, "PASSIVE")?;
        if checkpoint(connection, "NOOP")?.missing <= limits::CHECKPOINT_REST_BYTES {
            break;
        }
    }
    Ok(())
}
