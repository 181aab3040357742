//! Copies the write-ahead log back into the SQLite file without making commits wait for it.
//!
//! SQLite starts the log over from its beginning when a commit finds all of it copied and nobody reading it; until then
//! it grows. Copying all of it takes tens of milliseconds, so a thread of its own does that (a *passive* checkpoint
//! runs beside the writer) and repeats it while much is written meanwhile. What then is left is little; the writer
//! copies it between two commits, so that the next one starts the log over. If the log grows beyond
//! [`limits::MAX_WAL_BYTES`] all the same, the writer waits for the thread after each commit, the longer the larger the
//! log is, and then for readers: commits slow down, and the log does not grow without end.
//!
//! # At open: nothing of the page cache is trusted
//!
//! After a failed sync the kernel may keep pages that never reached the disk, take them for written, and let the next
//! sync of them succeed. A program that starts then would read commits that a power cut takes away again, answer
//! *duplicate* for them, and append new commits behind them. So [`settle`] copies the whole log first: that writes
//! every page of it anew, to the SQLite file, and syncs that. Copying alone would not do: commits behind pages of the
//! log that are not on the disk are lost with them, because each page's checksum goes on from the one before. The log
//! must start over too, so the mode is `TRUNCATE`.
//!
//! | the program or the machine dies | what is left | what the next [`settle`] does |
//! |---|---|---|
//! | before or while the log is copied | the log, and a part of it in the file | copies all of it again |
//! | after the sync of the file, before the log is cut | both | the same, which changes nothing |
//! | after the log is cut | the file | nothing |
//! | after a commit | the file, and the commit in the log, synced | copies it |

use super::{Shared, failure, paths::Paths, schema, wal::FRAME_HEADER_BYTES};
use crate::{
    faults::{self, CrashPoint},
    limits,
    store::OpenError,
};
use rusqlite::{Connection, MAIN_DB, ffi, wal::CheckpointMode};
use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// What the log holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LogState {
    /// Bytes since the log was started over.
    pub(super) bytes: u64,
    /// Those of them that the SQLite file lacks.
    pub(super) missing: u64,
}

/// What came of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Checkpoint {
    /// Whether it had to leave something undone because of another connection.
    pub(super) is_busy: bool,
    /// The log after it; `None` when another checkpoint was running, so that it did not even look.
    pub(super) log: Option<LogState>,
}

/// Runs a checkpoint; `NOOP` only looks. Not with the pragma, which SQLite would compile anew each time, also when it is
/// cached (measured: 9,500 instructions a commit, this 700).
pub(super) fn checkpoint(connection: &Connection, mode: CheckpointMode) -> rusqlite::Result<Checkpoint> {
    let (logged, copied) = match connection.wal_checkpoint_v2(Some(MAIN_DB), mode) {
        Ok(frames) => frames,
        Err(error) if error.sqlite_extended_error_code() == Some(ffi::SQLITE_BUSY) => {
            return Ok(Checkpoint {
                is_busy: true,
                log: None,
            });
        }
        Err(error) => return Err(error),
    };
    let page = limits::SQLITE_PAGE_BYTES + FRAME_HEADER_BYTES;
    // SQLite says -1 of what it did not find out.
    let log = match (u64::try_from(logged), u64::try_from(copied)) {
        (Ok(logged), Ok(copied)) => Some(LogState {
            bytes: logged * page,
            missing: logged.saturating_sub(copied) * page,
        }),
        _ => None,
    };
    Ok(Checkpoint { is_busy: false, log })
}

/// Before anything is built on what a file holds: makes the disk hold it too, and starts the log over. Waits up to
/// `wait` for other programs that read the file.
pub(super) fn settle(paths: &Paths, connection: &Connection, wait: Duration) -> Result<(), OpenError> {
    let failed = |error| {
        let what = "the write-ahead log cannot be copied into the file, so what was committed may not be on the disk";
        failure::open(paths, what, &error)
    };
    let deadline = Instant::now() + wait;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        connection.busy_timeout(left).map_err(failed)?;
        let settled = checkpoint(connection, CheckpointMode::TRUNCATE).map_err(failed)?;
        if !settled.is_busy && settled.log == Some(LogState::default()) {
            return connection
                .busy_timeout(limits::SQLITE_BUSY_TIMEOUT)
                .map_err(failed);
        }
        if Instant::now() >= deadline {
            return Err(OpenError(format!(
                "{}: another program has been reading or copying the file for {} s, and until it ends nobody can make \
                 sure that what was committed is on the disk. End that program (a SQLite shell, a backup), or its \
                 transaction, and start again",
                paths.database.display(),
                wait.as_secs()
            )));
        }
        // SQLite waits for readers by itself, but not for another program's checkpoint.
        std::thread::sleep(limits::SETTLE_RETRY.min(left));
    }
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

    /// Waits while the thread copies, but not for longer than `wait`.
    fn wait_for_thread(&self, wait: Duration) {
        let waited = self
            .changed
            .wait_timeout_while(self.phase(), wait, |phase| *phase == Phase::Background);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
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
    /// After a checkpoint that failed or had to give up, no other is begun before.
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
        let Some(log) = checkpoint(connection, CheckpointMode::NOOP)?.log else {
            return Ok(());
        };
        let is_large = log.bytes >= limits::MAX_WAL_BYTES;
        if *self.turn.phase() == Phase::Idle {
            let waits = self.not_before.is_some_and(|moment| Instant::now() < moment);
            if waits || log.missing < faults::checkpoint_bytes() && !is_large {
                return Ok(());
            }
            self.turn.set(Phase::Background);
        }
        if is_large {
            let excess = u32::try_from(log.bytes / limits::MAX_WAL_BYTES).unwrap_or(u32::MAX);
            let wait = limits::CHECKPOINT_WAIT.saturating_mul(excess);
            self.turn.wait_for_thread(wait.min(limits::MAX_CHECKPOINT_WAIT));
        }
        if *self.turn.phase() != Phase::Rest {
            return Ok(());
        }
        let copied = copy_rest(connection, is_large);
        faults::reached(CrashPoint::CheckpointDone);
        // A short log that is not all copied is copied on as soon as more was written.
        if copied.is_err() || is_large && !matches!(copied, Ok(true)) {
            self.not_before = Some(Instant::now() + limits::PROBE_INTERVAL);
        }
        self.turn.set(Phase::Idle);
        if matches!(copied, Ok(false)) && is_large {
            tracing::warn!(
                bytes = log.bytes,
                "the write-ahead log keeps growing: a program has been reading the database file for long"
            );
        }
        copied.map(|_| ())
    }
}

/// Copies what the thread has left, so that the next commit starts the log over; of a large log, it waits a while for
/// readers. Returns whether nothing is missing now.
fn copy_rest(connection: &Connection, is_large: bool) -> rusqlite::Result<bool> {
    let mode = if is_large {
        CheckpointMode::RESTART
    } else {
        CheckpointMode::PASSIVE
    };
    connection.busy_timeout(limits::CHECKPOINT_WAIT)?;
    let copied = checkpoint(connection, mode);
    connection.busy_timeout(limits::SQLITE_BUSY_TIMEOUT)?;
    let copied = copied?;
    Ok(!copied.is_busy && copied.log.is_some_and(|log| log.missing == 0))
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
            Ok(()) => {
                faults::reached(CrashPoint::CheckpointCopied);
                turn.set(Phase::Rest);
            }
            Err(error) if failure::is_failed_sync(&error) => {
                shared.poison("a sync of a checkpoint", &error);
                // So that it is known at once, also when nothing is committed.
                (shared.maintenance)();
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
        checkpoint(connection, CheckpointMode::PASSIVE)?;
        let log = checkpoint(connection, CheckpointMode::NOOP)?.log;
        if log.is_some_and(|log| log.missing <= limits::CHECKPOINT_REST_BYTES) {
            break;
        }
    }
    Ok(())
}
