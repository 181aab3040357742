//! Copies a store while a server may be writing to it.
//!
//! It runs in the process of `oncelog backup`, beside the server and without its help: no request over the network
//! can make the server write a file. One short read transaction tells what belongs to the copy: everything up to the
//! high watermark, the counters and the list of segments of that moment. Rows never change, so the log is then copied in
//! short slices; segment files never change either, and one that is open stays readable when a merge removes it.
//! The copy is built under another name and gets its own when it is complete and synced.

use super::{
    failure, file, folders,
    paths::Paths,
    recovery::{self, Loaded},
    rows::{self, ADD_TOPIC, COLUMNS, LogRow, RowError},
    scan, schema, wal,
};
use crate::{
    event::Seq,
    faults::{self, CrashPoint},
    index::{self, SegmentName, Settings, file_name},
    limits,
    store::OpenError,
};
use rusqlite::Connection;
use serde::Serialize;
use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

/// What a backup holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct BackupReport {
    /// Events in the copy.
    pub events: u64,
    /// The number of the last event in the copy; later ones came while it was made.
    pub watermark: Seq,
    /// Index segments in the copy.
    pub segments: u64,
}

/// Copies the store at `source`, which may be in use, to `destination`, which must not exist: the copy is a store of
/// its own. `progress` is told how many events of how many are copied.
pub fn backup(
    source: &Path,
    destination: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<BackupReport, OpenError> {
    let from = Paths::resolve(source)?;
    let to = Paths::of(destination);
    refuse_existing(&to)?;
    // Before SQLite looks, which makes files beside it.
    file::check(&from)?;
    wal::check(&from)?;
    let connection = schema::open_for_reading(&from)?;
    schema::check_tables(&from, &connection)?;
    let meta = schema::load_meta(&from, &connection)?;
    let (loaded, segments) = pin(&from, &connection, meta.identity.store)?;
    faults::reached(CrashPoint::BackupPinned);
    let high = loaded.topics.highest_seq();
    // From here on the copy gives its seqs to other events than the store does.
    let mut branches = schema::load_branches(&from, &connection)?;
    branches.retain(|branch| branch.first <= high);
    branches.push(schema::new_branch(&to, high + 1)?);
    progress(0, high);

    let folder = folders::of(destination);
    folders::make(folder).map_err(|error| {
        OpenError(format!(
            "{}: the folder cannot be made: {error}",
            folder.display()
        ))
    })?;
    let partial = Partial::new(destination);
    let paths = &partial.paths;
    copy_segments(&from, paths, meta.identity.store, &segments)?;
    faults::reached(CrashPoint::BackupSegments);
    let failed = |error: rusqlite::Error| failure::open(paths, "the copy cannot be written", &error);
    let mut copy = Connection::open(&paths.database).map_err(failed)?;
    let identity = meta.identity;
    schema::create(
        &mut copy,
        &identity.store.to_be_bytes(),
        &identity.secret,
        &meta.created_at,
        &branches,
    )
    .map_err(failed)?;
    // Nobody trusts the copy before it is complete, so it needs no journal; it is synced at the end.
    copy.execute_batch("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF")
        .map_err(failed)?;
    write_tables(&copy, &loaded).map_err(failed)?;
    copy_log(&connection, &copy, &loaded, progress).map_err(|error| match error {
        CopyError::Source(RowError::Sqlite(error)) => failure::open(&from, "the log cannot be read", &error),
        CopyError::Source(RowError::Damaged(what)) => OpenError(format!(
            "{}: {what}. Run `oncelog verify` on it; an earlier backup may be whole",
            from.database.display()
        )),
        CopyError::Copy(error) => failed(error),
    })?;
    copy.execute_batch("PRAGMA synchronous=FULL; PRAGMA journal_mode=WAL")
        .map_err(failed)?;
    copy.close().map_err(|(_, error)| failed(error))?;
    partial.finish(&to)?;
    Ok(BackupReport {
        events: loaded.topics.totals().accepted,
        watermark: high,
        segments: segments.len() as u64,
    })
}

fn refuse_existing(to: &Paths) -> Result<(), OpenError> {
    for path in [&to.database, &to.wal, &to.index] {
        if std::fs::symlink_metadata(path).is_ok() {
            return Err(OpenError(format!(
                "{} exists already, and a backup overwrites nothing. Remove it or choose another destination",
                path.display()
            )));
        }
    }
    Ok(())
}

/// Finds out what belongs to the copy, and opens the segments' files before anything can remove them.
fn pin(
    paths: &Paths,
    connection: &Connection,
    store: u128,
) -> Result<(Loaded, Vec<(SegmentName, File)>), OpenError> {
    let mut tries = 0;
    loop {
        tries += 1;
        let loaded = {
            let _moment = connection
                .unchecked_transaction()
                .map_err(|error| failure::open(paths, "the file cannot be read", &error))?;
            recovery::load(paths, connection)?
        };
        let opened: Result<Vec<_>, (PathBuf, io::Error)> = loaded
            .segments
            .iter()
            .map(|&segment| {
                let path = paths.index.join(file_name(store, segment));
                File::open(&path)
                    .map(|file| (segment, file))
                    .map_err(|error| (path, error))
            })
            .collect();
        match opened {
            Ok(files) => return Ok((loaded, files)),
            // A merge was listed after the list was read, and has removed what it merged.
            Err((_, error)) if error.kind() == io::ErrorKind::NotFound && tries < limits::BACKUP_TRIES => {}
            Err((path, error)) => {
                return Err(OpenError(format!(
                    "{}: {error}. The store's index is not whole: a start of the server rebuilds it from the log",
                    path.display()
                )));
            }
        }
    }
}

fn copy_segments(
    from: &Paths,
    to: &Paths,
    store: u128,
    segments: &[(SegmentName, File)],
) -> Result<(), OpenError> {
    let failed = |path: &Path, error: io::Error| {
        OpenError(format!(
            "{}: an index segment cannot be copied here: {error}",
            path.display()
        ))
    };
    std::fs::create_dir_all(&to.index).map_err(|error| failed(&to.index, error))?;
    for (segment, file) in segments {
        let name = file_name(store, *segment);
        let path = to.index.join(&name);
        let mut source = file;
        File::create_new(&path)
            .and_then(|mut copy| {
                io::copy(&mut source, &mut copy)?;
                copy.sync_all()
            })
            .map_err(|error| failed(&path, error))?;
        // What the store has not read for long may be damaged there without its knowing.
        index::verify(&to.index, store, *segment, Settings::default(), None).map_err(|what| {
            OpenError(format!(
                "{what}. {} is damaged: stop the server, remove this file and start the server again, which rebuilds it \
                 from the log",
                from.index.join(&name).display()
            ))
        })?;
    }
    sync(&to.index)
}

fn write_tables(copy: &Connection, loaded: &Loaded) -> rusqlite::Result<()> {
    let transaction = copy.unchecked_transaction()?;
    {
        let mut add = copy.prepare(ADD_TOPIC)?;
        for (number, name) in (0_u64..).zip(loaded.topics.names()) {
            add.execute((
                number.cast_signed(),
                &*name,
                rows::topic_checksum(number, &name).cast_signed(),
            ))?;
        }
        let mut add = copy.prepare("INSERT INTO segments(number, first, last) VALUES (?1, ?2, ?3)")?;
        for segment in &loaded.segments {
            add.execute([
                segment.number.cast_signed(),
                segment.first.cast_signed(),
                segment.last.cast_signed(),
            ])?;
        }
        copy.execute(
            "INSERT INTO counter_snapshot(id, upto_delta, snapshot) VALUES (1, 0, ?1)",
            [loaded.topics.encode_snapshot(1)],
        )?;
    }
    transaction.commit()
}

enum CopyError {
    Source(RowError),
    Copy(rusqlite::Error),
}

impl From<RowError> for CopyError {
    fn from(error: RowError) -> Self {
        Self::Source(error)
    }
}

fn copy_log(
    connection: &Connection,
    copy: &Connection,
    loaded: &Loaded,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), CopyError> {
    let high = loaded.topics.highest_seq();
    let names = loaded.topics.names();
    let insert = format!("INSERT INTO events({COLUMNS}) VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9)");
    let mut next = 1;
    while next <= high {
        let transaction = copy.unchecked_transaction().map_err(CopyError::Copy)?;
        let mut add = transaction.prepare_cached(&insert).map_err(CopyError::Copy)?;
        let last = scan::slice(connection, &names, next, high, |row: &LogRow<'_>| {
            add.execute((
                row.seq.cast_signed(),
                row.topic,
                row.processed_at,
                row.fingerprint.0.cast_signed(),
                row.checksum().cast_signed(),
                row.event_id,
                row.timestamp,
                row.source,
                row.payload,
            ))
            .map(|_| ())
            .map_err(CopyError::Copy)
        })?;
        drop(add);
        transaction.commit().map_err(CopyError::Copy)?;
        faults::reached(CrashPoint::BackupSlice);
        progress(last, high);
        next = last + 1;
    }
    Ok(())
}

/// A copy that is not complete, under a name of its own; removed when it is dropped.
struct Partial {
    paths: Paths,
}

impl Partial {
    fn new(destination: &Path) -> Self {
        let mut name = destination.as_os_str().to_owned();
        name.push(".partial");
        let partial = Self {
            paths: Paths::of(Path::new(&name)),
        };
        // What an interrupted backup to the same place has left.
        partial.remove();
        partial
    }

    fn remove(&self) {
        let Paths {
            database,
            wal,
            shm,
            journal,
            index,
            ..
        } = &self.paths;
        // Whatever cannot be removed makes the next step fail, with a message of its own.
        for file in [database, wal, shm, journal] {
            let _ = std::fs::remove_file(file);
        }
        let _ = std::fs::remove_dir_all(index);
    }

    /// Syncs everything and gives it its name; the database comes last, because a store is there when its file is.
    fn finish(&self, to: &Paths) -> Result<(), OpenError> {
        let rename = |from: &Path, to: &Path| {
            std::fs::rename(from, to)
                .map_err(|error| OpenError(format!("{} cannot be renamed: {error}", from.display())))
        };
        sync(&self.paths.database)?;
        faults::reached(CrashPoint::BackupComplete);
        rename(&self.paths.index, &to.index)?;
        // A disk may keep the later of two names and lose the earlier one.
        sync(folders::of(&to.database))?;
        faults::reached(CrashPoint::BackupIndexNamed);
        rename(&self.paths.database, &to.database)?;
        faults::reached(CrashPoint::BackupNamed);
        sync(folders::of(&to.database))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        self.remove();
    }
}

fn sync(path: &Path) -> Result<(), OpenError> {
    folders::sync(path).map_err(|error| OpenError(format!("{} cannot be synced: {error}", path.display())))
}
