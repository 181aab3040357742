//! Opens a store: checks it, rebuilds what is derived and missing, and hands out its two faces.
//!
//! What is in the write-ahead log may be in the kernel's memory only, after a failed sync; so it is made durable before
//! anything is built on it (see `checkpoint`).
//!
//! A crash leaves the log, the counters and the list of segments as of the last commit, because they change in the
//! same transactions. Lost is only what was in memory: the index's tail, which is rebuilt from the log's newest rows
//! by several threads, every row checked.

use super::{
    Shared, checkpoint,
    counters::{CountersError, Delta, TopicTable},
    failure, file, folders,
    lock::Lock,
    paths::Paths,
    reader::SqliteStore,
    repair,
    rows::{self, RowError},
    scan, schema, wal,
    writer::{Ledger, SqliteWriter},
};
use crate::{
    event::Seq,
    faults::{self, CrashPoint},
    index::{Entry, Index, IndexError, SegmentName, Settings, Unusable},
    limits,
    store::{CommitError, Maintenance, OpenError},
};
use rusqlite::Connection;
use std::{
    path::Path,
    sync::{Arc, OnceLock, RwLock, atomic::AtomicBool, mpsc},
    time::Instant,
};

/// Opens the store at `path`, and makes it when it is not there.
pub(super) fn open(
    path: &Path,
    maintenance: Maintenance,
    settings: Settings,
    max_topics: usize,
) -> Result<(SqliteWriter, SqliteStore), OpenError> {
    if path.is_dir() {
        return Err(file::is_folder(&Paths::of(path)));
    }
    make_folder(path)?;
    let paths = Paths::resolve(path)?;
    let lock = Lock::take(&paths)?;
    if !schema::is_half_made(&paths) {
        file::check(&paths)?;
    }
    wal::check(&paths)?;
    let connection = schema::open_for_writing(&paths)?;
    schema::check_tables(&paths, &connection)?;
    checkpoint::settle(&paths, &connection, limits::SETTLE_WAIT)?;
    sync_names(&paths)?;
    faults::reached(CrashPoint::OpenSettled);
    let identity = schema::load_meta(&paths, &connection)?.identity;
    let branches = schema::load_branches(&paths, &connection)?;
    let Loaded {
        topics,
        ledger,
        segments,
    } = load(&paths, &connection)?;
    faults::reached(CrashPoint::OpenLoaded);
    let damaged = |error: IndexError| OpenError(format!("{}: {error}", paths.index.display()));
    let (index, unusable) = Index::open(
        &paths.index,
        identity.store,
        &segments,
        settings,
        Arc::clone(&maintenance),
    )
    .map_err(damaged)?;
    let highest = topics.highest_seq();
    let shared = Arc::new(Shared {
        paths,
        identity,
        branches,
        index,
        topics: RwLock::new(topics),
        high_watermark: highest.into(),
        poisoned: OnceLock::new(),
        maintenance,
        _lock: lock,
    });
    let mut writer = SqliteWriter::new(connection, Arc::clone(&shared), ledger, max_topics)
        .map_err(|error| OpenError(format!("cannot start a thread: {error}")))?;
    for unusable in unusable {
        rebuild(&shared, &mut writer, &unusable)?;
    }
    rebuild_tail(&shared, &mut writer, sealed(&segments) + 1, highest)?;
    let store = SqliteStore::new(shared);
    faults::reached(CrashPoint::OpenDone);
    Ok((writer, store))
}

/// Makes durable that there are the file and its write-ahead log, that the journal of the file's making is gone, and the
/// index's folder if an earlier start made it. SQLite syncs the folder when it makes the log, but hides it when that fails.
fn sync_names(paths: &Paths) -> Result<(), OpenError> {
    let folder = folders::of(&paths.database);
    folders::sync(folder).map_err(|error| {
        OpenError(format!(
            "{}: the folder cannot be synced, so a power cut might take {} away: {error}. Check the disk and the \
             system's log",
            folder.display(),
            paths.wal.display()
        ))
    })
}

fn make_folder(database: &Path) -> Result<(), OpenError> {
    let folder = folders::of(database);
    folders::make(folder).map_err(|error| {
        OpenError(format!(
            "{}: the folder cannot be made: {error}. Make it, or set DATABASE_PATH to another place",
            folder.display()
        ))
    })
}

/// What a store's tables say, apart from the log.
pub(super) struct Loaded {
    pub(super) topics: TopicTable,
    pub(super) ledger: Ledger,
    /// In the order of the log, without gaps, from the first event.
    pub(super) segments: Vec<SegmentName>,
}

/// Reads and checks topics, counters and the list of segments. All of one moment, if the caller has a transaction open.
pub(super) fn load(paths: &Paths, connection: &Connection) -> Result<Loaded, OpenError> {
    let failed = |what: &'static str| move |error| failure::open(paths, what, &error);
    let broken = |what: &dyn std::fmt::Display| {
        OpenError(format!(
            "{}: {what}. Go back to a backup; `oncelog verify` says more",
            paths.database.display()
        ))
    };
    let mut topics = load_topics(connection)
        .map_err(failed("the topics cannot be read"))?
        .map_err(|what| broken(&what))?;
    let ledger = load_counters(connection, &mut topics)
        .map_err(failed("the counters cannot be read"))?
        .map_err(|what| broken(&what))?;
    let newest: Option<i64> = connection
        .query_row("SELECT max(seq) FROM events", [], |row| row.get(0))
        .map_err(failed("the log cannot be read"))?;
    let list_broken = |what: &dyn std::fmt::Display| {
        let shown = paths.database.display();
        OpenError(format!(
            "{shown}: the list of index segments is damaged: {what}. The log has all that the index is made from: if \
             `oncelog verify` finds nothing else, `sqlite3 {shown} 'DELETE FROM segments'` makes the next start build \
             the index anew; otherwise go back to a backup"
        ))
    };
    let segments = load_segments(connection).map_err(|error| match error {
        rusqlite::Error::SqliteFailure(..) => failed("the list of index segments cannot be read")(error),
        mistyped => list_broken(&mistyped),
    })?;
    // Old rows may be gone, if segments still know their identities; the newest one is the last to go.
    let newest = newest.map_or_else(|| sealed(&segments), i64::cast_unsigned);
    let highest = topics.highest_seq();
    if newest != highest {
        return Err(broken(&format!(
            "the log ends with event {newest}, but the counters say that {highest} was the last"
        )));
    }
    check_segments(&segments, highest).map_err(|what| list_broken(&what))?;
    Ok(Loaded {
        topics,
        ledger,
        segments,
    })
}

fn load_topics(connection: &Connection) -> rusqlite::Result<Result<TopicTable, String>> {
    let mut table = TopicTable::default();
    let mut select = connection.prepare("SELECT number, name, checksum FROM topics ORDER BY number")?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        let (number, name, checksum): (i64, String, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        if usize::try_from(number) != Ok(table.len()) {
            return Ok(Err(format!("topic {} is missing", table.len())));
        }
        if rows::topic_checksum(number.cast_unsigned(), &name) != checksum.cast_unsigned() {
            return Ok(Err(format!("topic {number} is damaged: its checksum is wrong")));
        }
        if !table.add(&name) {
            return Ok(Err(format!("topic {number} has the name of an earlier one")));
        }
    }
    Ok(Ok(table))
}

fn load_counters(
    connection: &Connection,
    topics: &mut TopicTable,
) -> rusqlite::Result<Result<Ledger, CountersError>> {
    let mut ledger = Ledger::default();
    let mut select =
        connection.prepare("SELECT id, upto_delta, snapshot FROM counter_snapshot ORDER BY id")?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        let bytes = row.get_ref(2)?.as_blob()?;
        ledger = Ledger {
            last_delta: row.get(1)?,
            snapshot: row.get(0)?,
            snapshot_bytes: bytes.len() as u64,
            ..Ledger::default()
        };
        if let Err(error) = topics.load_snapshot(bytes, ledger.snapshot) {
            return Ok(Err(error));
        }
    }
    let mut select = connection.prepare("SELECT id, delta FROM counter_deltas ORDER BY id")?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        let (id, bytes): (i64, _) = (row.get(0)?, row.get_ref(1)?.as_blob()?);
        if id != ledger.last_delta + 1 {
            let missing = format!("delta {} is missing", ledger.last_delta + 1);
            return Ok(Err(CountersError(missing)));
        }
        if let Err(error) = Delta::decode(bytes, id).and_then(|delta| topics.apply(&delta)) {
            return Ok(Err(error));
        }
        ledger.last_delta = id;
        ledger.deltas += 1;
        ledger.delta_bytes += bytes.len() as u64;
    }
    Ok(Ok(ledger))
}

fn load_segments(connection: &Connection) -> rusqlite::Result<Vec<SegmentName>> {
    connection
        .prepare("SELECT number, first, last FROM segments ORDER BY first")?
        .query_map([], |row| {
            Ok(SegmentName {
                number: row.get::<_, i64>(0)?.cast_unsigned(),
                first: row.get::<_, i64>(1)?.cast_unsigned(),
                last: row.get::<_, i64>(2)?.cast_unsigned(),
            })
        })?
        .collect()
}

/// The last event that a segment has.
fn sealed(segments: &[SegmentName]) -> Seq {
    segments.last().map_or(0, |segment| segment.last)
}

fn check_segments(segments: &[SegmentName], highest: Seq) -> Result<(), String> {
    let mut next = 1;
    for segment in segments {
        let SegmentName { number, first, last } = *segment;
        if first != next || last < first || last > highest || i64::try_from(number).is_err() {
            return Err(format!(
                "after event {} comes segment {number} of events {first} to {last}, and the log ends with event {highest}",
                next - 1
            ));
        }
        next = last + 1;
    }
    Ok(())
}

/// Rebuilds a segment whose file is missing or damaged, before anything else needs it.
fn rebuild(shared: &Shared, writer: &mut SqliteWriter, unusable: &Unusable) -> Result<(), OpenError> {
    let Unusable { segment, reason } = unusable;
    let SegmentName { number, first, last } = *segment;
    tracing::warn!(
        number,
        first,
        last,
        reason,
        "an index segment cannot be used; rebuilding it from the log"
    );
    let started = Instant::now();
    match repair::rebuild(shared, *segment, &AtomicBool::new(false)) {
        Ok(()) => {}
        Err(repair::RebuildError::Row(RowError::Damaged(what))) => {
            let aside = match shared.index.set_aside(*segment) {
                Ok(Some(path)) => format!("What is left of it was set aside as {}. ", path.display()),
                Ok(None) => String::new(),
                Err(error) => format!("It could not be set aside either: {error}. "),
            };
            return Err(OpenError(format!(
                "index segment {number} (events {first} to {last}) cannot be used: {reason}; and it cannot be rebuilt \
                 from {}: {what}. {aside}Without it duplicates would not be recognised: go back to a backup",
                shared.paths.database.display()
            )));
        }
        Err(error) => {
            return Err(OpenError(format!(
                "index segment {number} (events {first} to {last}) cannot be rebuilt: {error}"
            )));
        }
    }
    writer.list_changes().map_err(not_written)?;
    tracing::info!(
        number,
        first,
        last,
        milliseconds = started.elapsed().as_millis() as u64,
        "rebuilt an index segment"
    );
    Ok(())
}

fn not_written(error: CommitError) -> OpenError {
    match error {
        CommitError::Unavailable(message) | CommitError::Poisoned(message) => OpenError(message),
    }
}

/// Gives the index the events behind its last segment.
fn rebuild_tail(
    shared: &Shared,
    writer: &mut SqliteWriter,
    first: Seq,
    highest: Seq,
) -> Result<(), OpenError> {
    let started = Instant::now();
    let names = shared.topics().names();
    let chunks: Vec<(Seq, Seq)> = (first..=highest)
        .step_by(usize::try_from(limits::RECOVERY_CHUNK_ROWS).unwrap_or(usize::MAX))
        .map(|first| (first, highest.min(first + limits::RECOVERY_CHUNK_ROWS - 1)))
        .collect();
    let readers = std::thread::available_parallelism()
        .map_or(1, std::num::NonZero::get)
        .min(limits::MAX_RECOVERY_READERS)
        .min(chunks.len());
    std::thread::scope(|scope| {
        // Reader `r` reads the chunks r, r + readers, … and is at most one chunk ahead of what is taken from it.
        let results: Vec<_> = (0..readers)
            .map(|reader| {
                let (send, receive) = mpsc::sync_channel::<Result<Vec<Entry>, RowError>>(1);
                let mine = chunks.iter().skip(reader).step_by(readers);
                let names = &names;
                scope.spawn(move || {
                    let connection = match schema::connect_reader(&shared.paths) {
                        Ok(connection) => connection,
                        Err(error) => {
                            // The receiver is gone only after another reader's error.
                            let _ = send.send(Err(error.into()));
                            return;
                        }
                    };
                    for &(first, last) in mine {
                        let read = scan::entries(&connection, names, &shared.identity, first, last);
                        // The receiver is gone only after an error.
                        if send.send(read).is_err() {
                            return;
                        }
                    }
                });
                receive
            })
            .collect();
        for (chunk, &(first, last)) in chunks.iter().enumerate() {
            let entries = results[chunk % readers]
                .recv()
                .map_err(|_| OpenError(format!("the thread that reads events {first} to {last} has died")))?
                .map_err(|error| match error {
                    RowError::Sqlite(error) => failure::open(&shared.paths, "the log cannot be read", &error),
                    RowError::Damaged(what) => OpenError(format!(
                        "{}: {what}. Go back to a backup; `oncelog verify` says more",
                        shared.paths.database.display()
                    )),
                })?;
            writer.make_room(entries.len()).map_err(not_written)?;
            shared.index.append(&entries);
            faults::reached(CrashPoint::OpenAppended);
        }
        Ok::<_, OpenError>(())
    })?;
    writer.list_changes().map_err(not_written)?;
    if !chunks.is_empty() {
        tracing::info!(
            events = highest + 1 - first,
            milliseconds = started.elapsed().as_millis() as u64,
            "rebuilt the index's tail from the log"
        );
    }
    Ok(())
}
