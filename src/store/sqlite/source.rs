//! A store in a file that is copied to where there are no files: read in the order of its log, every row checked.
//!
//! It holds the store's lock, so that no server changes the store meanwhile. A row may be gone when an index segment still
//! knows its identity; any other gap is damage.

use super::{
    lock::Lock,
    paths::Paths,
    recovery::{self, Loaded},
    rows::{COLUMNS, LogRow, RowError},
    schema, verify, wal,
};
use crate::{
    event::{Identity, Seq},
    index::{self, SegmentName, Settings},
    limits,
    store::{Branch, OpenError, TopicStatus, Totals, migration::LoggedEvent},
};
use rusqlite::Connection;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// A store in a file that no server can open while this is there.
pub struct Source {
    paths: Paths,
    /// None on a read-only file system.
    lock: Option<Lock>,
    connection: Connection,
    identity: Identity,
    branches: Vec<Branch>,
    loaded: Loaded,
    names: Vec<Arc<str>>,
}

/// A part of the log.
#[derive(Debug)]
pub struct Slice {
    /// Its events; those in between have no rows any more.
    pub events: Vec<LoggedEvent>,
    /// The last seq that it covers.
    pub last: Seq,
}

impl Source {
    /// Opens the store at `path` for reading, and keeps servers out. Changes nothing in it.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        if std::fs::metadata(path).is_err() {
            return Err(OpenError(format!(
                "{}: there is no such file. Set DATABASE_PATH to the file of the store",
                path.display()
            )));
        }
        let paths = Paths::resolve(path)?;
        let lock = Lock::take_to_read(&paths)?;
        // Before SQLite looks, which makes files beside it.
        super::file::check(&paths)?;
        Self::open_locked(paths, lock)
    }

    fn open_locked(paths: Paths, lock: Option<Lock>) -> Result<Self, OpenError> {
        wal::check(&paths)?;
        let connection = verify::connect(&paths, lock.is_none())?;
        schema::check_tables(&paths, &connection)?;
        let identity = schema::load_meta(&paths, &connection)?.identity;
        let loaded = recovery::load(&paths, &connection)?;
        let high = loaded.topics.highest_seq();
        let mut branches = schema::load_branches(&paths, &connection)?;
        branches.retain(|branch| branch.first <= high.max(1));
        // Without an event, the first branch has not ended yet: its cursors are good for a copy as well.
        if high > 0 {
            branches.push(schema::new_branch(&paths, high + 1)?);
        }
        Ok(Self {
            names: loaded.topics.names(),
            paths,
            lock,
            connection,
            identity,
            branches,
            loaded,
        })
    }

    /// Checks all of it, as `oncelog verify` does. `progress` is told how many steps of how many are done.
    pub fn verify(self, progress: &mut dyn FnMut(u64, u64)) -> Result<Self, OpenError> {
        let Self {
            paths,
            lock,
            connection,
            ..
        } = self;
        // To open a file beside SQLite and close it again drops the locks that SQLite holds on it.
        drop(connection);
        let report = verify::verify_locked(&paths, lock.is_none(), Settings::default(), progress)?;
        let problem = report
            .checks
            .iter()
            .find_map(|check| Some((&check.name, check.problem.as_ref()?)));
        match problem {
            None => Self::open_locked(paths, lock),
            Some((name, problem)) => Err(OpenError(format!(
                "{}: {name}: {problem}. Nothing was copied; `oncelog verify` says more. Go back to a backup",
                paths.database.display()
            ))),
        }
    }

    /// Where it is; a symbolic link is followed.
    pub fn path(&self) -> &Path {
        &self.paths.database
    }

    /// What its keys and cursors are made with.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Its history, and the branch on which a copy goes on: if this store went on as well, it would give the same seqs to
    /// other events. A store without events has only its first branch.
    pub fn branches(&self) -> &[Branch] {
        &self.branches
    }

    /// The highest seq ever given.
    pub fn highest_seq(&self) -> Seq {
        self.loaded.topics.highest_seq()
    }

    /// The exact counters.
    pub fn totals(&self) -> Totals {
        self.loaded.topics.totals()
    }

    /// All topics with their counters, by number, from 0.
    pub fn topics(&self) -> Vec<TopicStatus> {
        self.loaded.topics.all()
    }

    /// Reads on from `first`, a bounded number of rows and bytes.
    pub fn slice(&self, first: Seq) -> Result<Slice, OpenError> {
        self.read(first).map_err(|error| match error {
            RowError::Sqlite(error) => super::failure::open(&self.paths, "the log cannot be read", &error),
            RowError::Damaged(what) => OpenError(format!(
                "{}: {what}. Go back to a backup; `oncelog verify` says more",
                self.paths.database.display()
            )),
        })
    }

    fn read(&self, first: Seq) -> Result<Slice, RowError> {
        let high = self.highest_seq();
        let mut select = self.connection.prepare_cached(&format!(
            "SELECT {COLUMNS} FROM events WHERE seq >= ?1 ORDER BY seq LIMIT ?2"
        ))?;
        let mut rows = select.query((first.cast_signed(), limits::MIGRATION_SLICE_ROWS as i64))?;
        let mut slice = Slice {
            events: Vec::with_capacity(limits::MIGRATION_SLICE_ROWS),
            last: first - 1,
        };
        let mut bytes = 0;
        while bytes < limits::MIGRATION_SLICE_BYTES && slice.events.len() < limits::MIGRATION_SLICE_ROWS {
            let Some(row) = rows.next()? else {
                self.check_gap(slice.last, high + 1)?;
                slice.last = high;
                break;
            };
            let topic = LogRow::topic_of(row)?;
            let row = LogRow::read(row, self.names.get(topic as usize).map(|name| &**name))?;
            self.check_gap(slice.last, row.seq)?;
            slice.last = row.seq;
            bytes += row.bytes();
            slice.events.push(logged(&row, &self.identity)?);
        }
        Ok(slice)
    }

    /// Refuses a gap between two neighbours, unless the rows in it may be gone.
    fn check_gap(&self, before: Seq, after: Seq) -> Result<(), RowError> {
        let sealed = self.loaded.segments.last().map_or(0, |segment| segment.last);
        match after > before + 1 && after > sealed + 1 {
            true => Err(RowError::missing(before.max(sealed) + 1)),
            false => Ok(()),
        }
    }

    /// The index segments, which know the identities of rows that are gone.
    pub fn segments(&self) -> &[SegmentName] {
        &self.loaded.segments
    }

    /// The identities in a segment.
    pub fn identities(&self, segment: SegmentName) -> Result<index::Identities, OpenError> {
        index::Identities::open(
            &self.paths.index,
            self.identity.store,
            segment,
            Settings::default(),
        )
        .map_err(|error| OpenError(format!("{}: {error}", self.index().display())))
    }

    /// The folder of the segments.
    pub fn index(&self) -> PathBuf {
        self.paths.index.clone()
    }
}

fn logged(row: &LogRow<'_>, identity: &Identity) -> Result<LoggedEvent, RowError> {
    let entry = row.entry(identity)?;
    Ok(LoggedEvent {
        seq: row.seq,
        topic: row.topic,
        key: entry.key,
        fingerprint: row.fingerprint,
        seconds: entry.seconds,
        processed_at: row.processed_at,
        event_id: row.event_id.to_owned(),
        timestamp: row.timestamp.to_owned(),
        source: row.source.to_owned(),
        payload: row.payload.to_owned(),
    })
}
