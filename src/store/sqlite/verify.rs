//! Checks a store from end to end: SQLite's own structure, every row, the counters and every index segment.
//!
//! For a store that no server has open, or a backup. Changes nothing in the store; beside it, it takes the lock (a file
//! `<path>.lock`), unless the file system is read-only. Whatever it finds it goes on, as far as what is left can still
//! be read.

use super::{
    counters::{Counters, TopicTable},
    failure, file,
    lock::Lock,
    paths::Paths,
    recovery::{self, Loaded},
    rows::{COLUMNS, LogRow, RowError},
    scan, schema, wal,
};
use crate::{
    event::{Identity, Key, Seq},
    index::{self, SegmentName, Settings},
    limits,
    store::OpenError,
};
use hashbrown::HashMap;
use rusqlite::Connection;
use serde::Serialize;
use std::{
    path::Path,
    sync::{Arc, mpsc},
};

/// What a check of a whole store found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// Events in the log.
    pub events: u64,
    /// All checks, in the order in which they were made.
    pub checks: Vec<Check>,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was checked.
    pub name: String,
    /// What is wrong, with a few examples; nothing when it is in order.
    pub problem: Option<String>,
}

impl VerifyReport {
    /// Whether all is in order.
    pub fn is_sound(&self) -> bool {
        self.checks.iter().all(|check| check.problem.is_none())
    }

    fn add(&mut self, name: impl Into<String>, problem: Option<String>) {
        self.checks.push(Check {
            name: name.into(),
            problem,
        });
    }
}

/// Checks the store at `path`, which no server may have open. `progress` is told how many steps of how many are done.
/// An error means that there is no store to check; what is wrong with one is in the report.
pub fn verify(path: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<VerifyReport, OpenError> {
    verify_with(path, Settings::default(), progress)
}

/// As [`verify`], for a store with other sizes of the index.
pub(super) fn verify_with(
    path: &Path,
    settings: Settings,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<VerifyReport, OpenError> {
    if std::fs::metadata(path).is_err() {
        return Err(OpenError(format!("{}: there is no such file", path.display())));
    }
    let paths = Paths::resolve(path)?;
    let lock = Lock::take_to_read(&paths)?;
    verify_locked(&paths, lock.is_none(), settings, progress)
}

/// As [`verify`], by who has the store's lock, or knows that it is on a read-only file system (`is_immutable`).
pub(super) fn verify_locked(
    paths: &Paths,
    is_immutable: bool,
    settings: Settings,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<VerifyReport, OpenError> {
    file::check(paths)?;
    let mut report = VerifyReport {
        events: 0,
        checks: Vec::new(),
    };
    let log = wal::check(paths).err().map(|error| error.to_string());
    let is_damaged = log.is_some();
    report.add("write-ahead log", log);
    if is_damaged {
        // Opening the file would destroy what tells the damage from a torn commit.
        return Ok(report);
    }
    let connection = connect(paths, is_immutable)?;
    report.add("SQLite's structure", structure(&connection));
    let tables = schema::check_tables(paths, &connection).err();
    report.add("tables", tables.map(|error| error.to_string()));
    let identity = match schema::load_meta(paths, &connection) {
        Ok(meta) => meta.identity,
        Err(error) => {
            report.add("identity of the store", Some(error.to_string()));
            return Ok(report);
        }
    };
    report.add("identity of the store", None);
    let history = schema::load_branches(paths, &connection).err();
    report.add("history of the store", history.map(|error| error.to_string()));
    let loaded = match recovery::load(paths, &connection) {
        Ok(loaded) => loaded,
        Err(error) => {
            report.add("topics, counters and list of segments", Some(error.to_string()));
            return Ok(report);
        }
    };
    report.add("topics, counters and list of segments", None);
    let store = Stored {
        paths,
        is_immutable,
        connection: &connection,
        identity,
        names: loaded.topics.names(),
        loaded: &loaded,
        settings,
    };
    store.check(&mut report, progress);
    Ok(report)
}

fn structure(connection: &Connection) -> Option<String> {
    let found: rusqlite::Result<Vec<String>> = connection
        .prepare(&format!("PRAGMA integrity_check({})", limits::VERIFY_EXAMPLES))
        .and_then(|mut check| check.query_map([], |row| row.get(0))?.collect());
    match found {
        Ok(lines) if lines == ["ok"] => None,
        Ok(lines) => Some(failure::of_integrity_check(&lines.join("\n"))),
        Err(error) => Some(error.to_string()),
    }
}

/// Counts what is wrong and keeps a few examples.
#[derive(Debug, Default)]
struct Findings {
    examples: Vec<String>,
    count: u64,
}

impl Findings {
    fn add(&mut self, what: String) {
        self.count += 1;
        if self.examples.len() < limits::VERIFY_EXAMPLES {
            self.examples.push(what);
        }
    }

    fn problem(self) -> Option<String> {
        let more = self.count - self.examples.len() as u64;
        match (self.count, more) {
            (0, _) => None,
            (_, 0) => Some(self.examples.join("; ")),
            _ => Some(format!("{}; and {more} more", self.examples.join("; "))),
        }
    }
}

/// A store whose frame is in order.
struct Stored<'a> {
    paths: &'a Paths,
    /// On a read-only file system.
    is_immutable: bool,
    connection: &'a Connection,
    identity: Identity,
    names: Vec<Arc<str>>,
    loaded: &'a Loaded,
    settings: Settings,
}

impl Stored<'_> {
    fn check(&self, report: &mut VerifyReport, progress: &mut dyn FnMut(u64, u64)) {
        let high = self.loaded.topics.highest_seq();
        let sealed = self.loaded.segments.last().map_or(0, |segment| segment.last);
        let passes = high.div_ceil(limits::VERIFY_IDENTITIES);
        let total = high * (1 + passes) + sealed;
        let mut done = 0;
        let mut step = |events: u64| {
            done += events;
            progress(done, total);
        };
        let mut rows = Findings::default();
        let mut counted = vec![Counters::default(); self.loaded.topics.len()];
        report.events = self.check_rows(&mut rows, &mut counted, &mut step);
        report.add(
            "rows of the log: checksums, numbers without gaps, times",
            rows.problem(),
        );
        report.add(
            "counters of the topics",
            check_counters(&self.loaded.topics, &self.names, &counted),
        );
        report.add(
            "no identity is stored twice",
            match self.find_twins(passes, &mut step) {
                Ok(findings) => findings.problem(),
                Err(error) => Some(error.to_string()),
            },
        );
        for &segment in &self.loaded.segments {
            let SegmentName { number, first, last } = segment;
            report.add(
                format!("index segment {number} (events {first} to {last})"),
                self.check_segment(segment),
            );
            step(last - first + 1);
        }
    }

    /// Looks at every row; returns how many there are.
    fn check_rows(
        &self,
        findings: &mut Findings,
        counted: &mut [Counters],
        step: &mut dyn FnMut(u64),
    ) -> u64 {
        let high = self.loaded.topics.highest_seq();
        let (mut next, mut events, mut latest) = (1, 0, i64::MIN);
        let result = self.each_row(&format!("SELECT {COLUMNS} FROM events ORDER BY seq"), |row| {
            let seq = row.get::<_, i64>(0)?.cast_unsigned();
            if seq != next {
                findings.add(format!(
                    "event {next} is missing or out of order: {seq} comes instead"
                ));
            }
            next = seq.wrapping_add(1);
            events += 1;
            match self.check_row(row, counted) {
                Ok(processed_at) if processed_at < latest => {
                    findings.add(format!("event {seq} was committed before the one before it"));
                }
                Ok(processed_at) => latest = processed_at,
                Err(RowError::Damaged(what)) => findings.add(what),
                Err(RowError::Sqlite(error)) => return Err(error),
            }
            if events % limits::READ_SLICE_ROWS as u64 == 0 {
                step(limits::READ_SLICE_ROWS as u64);
            }
            Ok(())
        });
        if let Err(error) = result {
            findings.add(format!("after event {}: {error}", next.saturating_sub(1)));
        } else if next != high + 1 {
            findings.add(format!("the log ends with event {}, not {high}", next - 1));
        }
        events
    }

    fn check_row(&self, row: &rusqlite::Row<'_>, counted: &mut [Counters]) -> Result<i64, RowError> {
        let topic = LogRow::topic_of(row)? as usize;
        let row = LogRow::read(row, self.names.get(topic).map(|name| &**name))?;
        row.instant()?;
        if let Some(counters) = counted.get_mut(topic) {
            if counters.accepted == 0 {
                counters.first_seq = row.seq;
                counters.first_processed_at = row.processed_at;
            }
            counters.accepted += 1;
            counters.last_seq = row.seq;
            counters.last_processed_at = row.processed_at;
        }
        Ok(row.processed_at)
    }

    fn each_row(
        &self,
        select: &str,
        mut each: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<()>,
    ) -> rusqlite::Result<()> {
        let mut select = self.connection.prepare(select)?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            each(row)?;
        }
        Ok(())
    }

    /// Finds events with the same identity. Each pass holds the upper halves of a part of the keys; what is equal there
    /// is compared as a whole.
    fn find_twins(&self, passes: u64, step: &mut dyn FnMut(u64)) -> rusqlite::Result<Findings> {
        let mut suspects = HashMap::new();
        for pass in 0..passes {
            let mut halves: Vec<u64> = Vec::new();
            let mut seen = 0;
            self.each_key(|_, key| {
                if (u128::from(key.high) * u128::from(passes)) >> 64 == u128::from(pass) {
                    halves.push(key.high);
                }
                seen += 1;
                if seen % limits::READ_SLICE_ROWS as u64 == 0 {
                    step(limits::READ_SLICE_ROWS as u64);
                }
            })?;
            halves.sort_unstable();
            let equal = halves.windows(2).filter(|pair| pair[0] == pair[1]);
            suspects.extend(equal.map(|pair| (pair[0], Vec::<(Key, Seq)>::new())));
        }
        let mut findings = Findings::default();
        if suspects.is_empty() {
            return Ok(findings);
        }
        self.each_key(|seq, key| {
            let Some(keys) = suspects.get_mut(&key.high) else {
                return;
            };
            if let Some((_, first)) = keys.iter().find(|(known, _)| *known == key) {
                findings.add(format!("event {seq} has the identity of event {first}"));
            } else {
                keys.push((key, seq));
            }
        })?;
        Ok(findings)
    }

    /// Calls `each` with every event's key; one whose topic or id cannot be read is left out.
    fn each_key(&self, mut each: impl FnMut(Seq, Key)) -> rusqlite::Result<()> {
        self.each_row("SELECT seq, topic, event_id FROM events ORDER BY seq", |row| {
            let topic = LogRow::topic_of(row)
                .ok()
                .and_then(|topic| self.names.get(topic as usize));
            if let (Some(topic), Ok(event_id)) = (topic, row.get_ref(2)?.as_str()) {
                each(
                    row.get::<_, i64>(0)?.cast_unsigned(),
                    self.identity.key(topic, event_id),
                );
            }
            Ok(())
        })
    }

    /// Checks a segment against the log. One thread reads the log and another one the segment: each takes about as long
    /// as the other.
    fn check_segment(&self, segment: SegmentName) -> Option<String> {
        let Self {
            paths,
            names,
            identity,
            is_immutable,
            settings,
            ..
        } = self;
        std::thread::scope(|scope| {
            let (send, receive) = mpsc::sync_channel(limits::VERIFY_SLICES_AHEAD);
            scope.spawn(move || {
                let connection = match connect(paths, *is_immutable) {
                    Ok(connection) => connection,
                    Err(error) => {
                        // The receiver is gone only when the segment turned out to be damaged.
                        let _ = send.send(vec![Err(error.to_string())]);
                        return;
                    }
                };
                let SegmentName { first, last, .. } = segment;
                let mut entries = scan::entries_in_slices(&connection, names, identity, first, last)
                    .map(|entry| entry.map_err(|error| error.to_string()));
                loop {
                    let slice: Vec<_> = entries.by_ref().take(limits::READ_SLICE_ROWS).collect();
                    // As above.
                    if slice.is_empty() || send.send(slice).is_err() {
                        return;
                    }
                }
            });
            let mut entries = receive.into_iter().flatten();
            index::verify(
                &paths.index,
                identity.store,
                segment,
                *settings,
                Some(&mut entries),
            )
            .err()
        })
    }
}

/// Opens the file for reading only; `is_immutable` says that it is on a read-only file system.
pub(super) fn connect(paths: &Paths, is_immutable: bool) -> Result<Connection, OpenError> {
    if is_immutable {
        schema::open_immutable(paths)
    } else {
        schema::open_for_reading(paths)
    }
}

/// Compares what the rows add up to with what was counted.
fn check_counters(topics: &TopicTable, names: &[Arc<str>], counted: &[Counters]) -> Option<String> {
    let mut findings = Findings::default();
    for (name, (kept, rows)) in names.iter().zip(topics.counters().zip(counted)) {
        let expected = Counters {
            duplicates: kept.duplicates,
            conflicts: kept.conflicts,
            ..*rows
        };
        if *kept != expected {
            findings.add(format!(
                "topic {name:?} counts {} events ({} to {}), the log has {} ({} to {})",
                kept.accepted, kept.first_seq, kept.last_seq, rows.accepted, rows.first_seq, rows.last_seq
            ));
        }
        if kept.conflicts > kept.duplicates {
            findings.add(format!("topic {name:?} counts more conflicts than duplicates"));
        }
    }
    findings.problem()
}
