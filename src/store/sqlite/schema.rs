//! The tables of the SQLite file, and the checks that they are ours, whole and synced before anything is written.
//!
//! | table | what it holds |
//! |---|---|
//! | `meta` | the store's id, the secret of its keys, checksums of the two and of `branches`, when it was created, what a probe writes |
//! | `branches` | where the history was begun anew from a backup |
//! | `events` | the log: one row an event, only ever appended to |
//! | `topics` | the topics' names by number, from 0 without gaps, in the order in which they came, each with a checksum |
//! | `segments` | the index segments that count; a file that is not listed here does not |
//! | `counter_deltas`, `counter_snapshot` | the counters, see `counters` |
//! | `processed_events` | a view of the log for people |
//!
//! No table has an index beside it and no key is random, so a commit touches the last pages of a few tables and
//! nothing else. That topics are unique is seen to in memory.

use super::{failure, file, paths::Paths};
use crate::{
    event::{Identity, Seq, format_micros},
    faults::{self, CrashPoint},
    limits,
    store::{Branch, OpenError},
};
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use rusqlite::{
    Connection, MAIN_DB, OpenFlags, OptionalExtension as _, TransactionBehavior, config::DbConfig,
};
use std::{fs::File, io::Read as _};
use xxhash_rust::xxh3::xxh3_64;

/// Marks the file as ours, for us and for the `file` program: "oncl".
const APPLICATION_ID: i64 = 0x6f6e_636c;
/// The format of all that is described in this module and in `rows`, `counters` and `index`.
const FORMAT_VERSION: i64 = 1;

const TABLES: &str = "
    CREATE TABLE meta(name TEXT PRIMARY KEY, value) WITHOUT ROWID;
    CREATE TABLE branches(first INTEGER PRIMARY KEY, id INTEGER NOT NULL);
    CREATE TABLE topics(number INTEGER PRIMARY KEY, name TEXT NOT NULL, checksum INTEGER NOT NULL);
    CREATE TABLE events(
        seq INTEGER PRIMARY KEY, topic INTEGER NOT NULL, processed_at INTEGER NOT NULL,
        fingerprint INTEGER NOT NULL, checksum INTEGER NOT NULL,
        event_id TEXT NOT NULL, timestamp TEXT NOT NULL, source TEXT NOT NULL, payload TEXT NOT NULL);
    CREATE TABLE segments(number INTEGER PRIMARY KEY, first INTEGER NOT NULL, last INTEGER NOT NULL);
    CREATE TABLE counter_deltas(id INTEGER PRIMARY KEY, delta BLOB NOT NULL);
    CREATE TABLE counter_snapshot(id INTEGER PRIMARY KEY, upto_delta INTEGER NOT NULL, snapshot BLOB NOT NULL);
    CREATE VIEW processed_events(topic, event_id, timestamp, source, payload, processed_at) AS
        SELECT (SELECT name FROM topics WHERE number = events.topic), event_id, timestamp, source, payload,
            strftime('%Y-%m-%dT%H:%M:%S', processed_at / 1000000, 'unixepoch')
                || printf('.%06dZ', processed_at % 1000000)
        FROM events;
";

/// Whether a crash cut off the making of this file. A new file is not yet in WAL mode, so its first page is written under
/// the protection of a rollback journal; one that is left says how many pages the file had before. Of a
/// file that was empty, the journal and whatever it has of its first page are worth nothing to anybody, and SQLite empties
/// it when it is opened for writing (it cannot when it may only read).
pub(super) fn is_half_made(paths: &Paths) -> bool {
    const MAGIC: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];
    const PAGES_BEFORE: std::ops::Range<usize> = 16..20;
    let mut header = [0; PAGES_BEFORE.end];
    File::open(&paths.journal)
        .and_then(|mut file| file.read_exact(&mut header))
        .is_ok_and(|()| header.starts_with(&MAGIC) && header[PAGES_BEFORE] == [0; 4])
}

/// Opens the file for the writer; makes it when it is not there. Only after [`file::check`], unless it is half made.
pub(super) fn open_for_writing(paths: &Paths) -> Result<Connection, OpenError> {
    let failed = |error| failure::open(paths, "the file cannot be opened", &error);
    if !is_half_made(paths) {
        // A read-only look first: another program's database is left exactly as it was.
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        if std::fs::metadata(&paths.database).is_ok_and(|metadata| metadata.len() > 0) {
            let connection = Connection::open_with_flags(&paths.database, flags).map_err(failed)?;
            configure(&connection).map_err(failed)?;
            check_format(paths, &connection)?;
        }
    }
    let mut connection = connect(
        paths,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE,
    )
    .map_err(failed)?;
    if connection.is_readonly(MAIN_DB).map_err(failed)? {
        return Err(OpenError(format!(
            "{} may be read but not written by this user. Check its owner and permissions",
            paths.database.display()
        )));
    }
    if check_format(paths, &connection)? == Format::New {
        let mut random = [0; 32];
        getrandom::fill(&mut random)
            .map_err(|error| OpenError(format!("the operating system gives no random numbers: {error}")))?;
        let (store, secret) = random.split_at(16);
        let now = format_micros(jiff::Timestamp::now().as_microsecond());
        let branch = new_branch(paths, 1)?;
        create(&mut connection, store, secret, &now, &[branch])
            .map_err(|error| failure::open(paths, "the tables cannot be made", &error))?;
        faults::reached(CrashPoint::OpenCreated);
    }
    make_durable(paths, &connection)?;
    Ok(connection)
}

/// Opens the file for reading only, and checks that it is a store.
pub(super) fn open_for_reading(paths: &Paths) -> Result<Connection, OpenError> {
    match std::fs::metadata(&paths.database) {
        Ok(metadata) if metadata.is_dir() => return Err(file::is_folder(paths)),
        Ok(_) => {}
        Err(error) => {
            return Err(OpenError(format!(
                "{} cannot be opened: {error}",
                paths.database.display()
            )));
        }
    }
    refuse_empty(paths, connect_reader(paths))
}

/// As [`open_for_reading`], for a file that nobody can change: on a read-only file system SQLite cannot make the files
/// beside it by which its connections find each other.
pub(super) fn open_immutable(paths: &Paths) -> Result<Connection, OpenError> {
    if std::fs::metadata(&paths.wal).is_ok_and(|metadata| metadata.len() > 0) {
        return Err(OpenError(format!(
            "{} has commits that are not in the database file yet, and on a read-only file system they cannot be read. \
             Copy the store to another place with all its files",
            paths.wal.display()
        )));
    }
    let path = percent_encode(paths.database.as_os_str().as_encoded_bytes(), NON_ALPHANUMERIC);
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    let connection = Connection::open_with_flags(format!("file:{path}?immutable=1"), flags)
        .and_then(|connection| configure(&connection).map(|()| connection));
    refuse_empty(paths, connection)
}

fn refuse_empty(paths: &Paths, connection: rusqlite::Result<Connection>) -> Result<Connection, OpenError> {
    let connection = connection.map_err(|error| failure::open(paths, "the file cannot be opened", &error))?;
    if check_format(paths, &connection)? == Format::New {
        return Err(OpenError(format!(
            "{} is an empty database, not a store",
            paths.database.display()
        )));
    }
    Ok(connection)
}

/// One more read-only connection to a store that is open.
pub(super) fn connect_reader(paths: &Paths) -> rusqlite::Result<Connection> {
    let connection = connect(paths, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    connection.pragma_update(None, "cache_size", -limits::SQLITE_READER_CACHE_KIB)?;
    Ok(connection)
}

/// One more connection to a store that is open, for checkpoints.
pub(super) fn connect_checkpointer(paths: &Paths) -> rusqlite::Result<Connection> {
    let connection = connect(paths, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    Ok(connection)
}

fn connect(paths: &Paths, flags: OpenFlags) -> rusqlite::Result<Connection> {
    // A connection is used by one thread at a time, which is all that NO_MUTEX asks for.
    let connection = Connection::open_with_flags(&paths.database, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    configure(&connection)?;
    Ok(connection)
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(limits::SQLITE_BUSY_TIMEOUT)?;
    // Checkpoints are ours to do; the last connection to close must not do a large one, least of all after a failed
    // sync.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    connection.pragma_update(None, "trusted_schema", false)
}

/// What a SQLite file turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// A database without anything in it.
    New,
    /// A store that this program can use.
    Ours,
}

fn check_format(paths: &Paths, connection: &Connection) -> Result<Format, OpenError> {
    let failed = |error| failure::open(paths, "the file cannot be read", &error);
    let application: i64 = pragma(connection, "application_id").map_err(failed)?;
    let version: i64 = pragma(connection, "user_version").map_err(failed)?;
    let tables: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(failed)?;
    if (application, version, tables) == (0, 0, 0) {
        return Ok(Format::New);
    }
    refuse_format(paths, application, version).map(|()| Format::Ours)
}

/// Refuses what is no store of this format.
pub(super) fn refuse_format(paths: &Paths, application: i64, version: i64) -> Result<(), OpenError> {
    let shown = paths.database.display();
    match (application, version) {
        (APPLICATION_ID, FORMAT_VERSION) => Ok(()),
        (APPLICATION_ID, ..FORMAT_VERSION) => Err(OpenError(format!(
            "{shown} has file format {version}, and this oncelog knows format {FORMAT_VERSION}: it was written by an \
             older oncelog. Export its events with that version (`oncelog export`), and publish them to a new store"
        ))),
        (APPLICATION_ID, _) => Err(OpenError(format!(
            "{shown} has file format {version}, and this oncelog knows format {FORMAT_VERSION}: it was written by a \
             newer oncelog. Use that version or a later one"
        ))),
        _ => Err(OpenError(format!(
            "{shown} is a SQLite database of another program; nothing was changed in it. Set DATABASE_PATH to a file \
             of oncelog's or to a new one"
        ))),
    }
}

/// Refuses a store whose tables are not what they were made as. Their definitions have no checksums: a column whose type
/// is damaged would take texts for numbers. The pages of all tables but the log are looked at whole, because a row that
/// its page no longer counts would not be missed: the newest change of the counters, say.
pub(super) fn check_tables(paths: &Paths, connection: &Connection) -> Result<(), OpenError> {
    let failed = |error| failure::open(paths, "the tables cannot be read", &error);
    let broken = |what: String| {
        OpenError(format!(
            "{}: {what}. Go back to a backup; `oncelog verify` says more",
            paths.database.display()
        ))
    };
    let expected = Connection::open_in_memory()
        .and_then(|memory| memory.execute_batch(TABLES).and_then(|()| definitions(&memory)))
        .map_err(failed)?;
    let found = definitions(connection).map_err(failed)?;
    for definition in expected {
        let (kind, name, ..) = &definition;
        if !found.contains(&definition) {
            return Err(broken(format!(
                "the definition of {kind} {name} is damaged or missing"
            )));
        }
        if kind == "table" && name != "events" {
            let said: String = connection
                .query_row(&format!("PRAGMA quick_check({name})"), [], |row| row.get(0))
                .map_err(failed)?;
            if said != "ok" {
                let said = failure::of_integrity_check(&said);
                // SQLite's words for a page that it could not read, which is not damage of the file yet.
                if said.contains("unable to get the page") {
                    return Err(OpenError(format!(
                        "{}: table {name}: {said}: the file is damaged, or the disk cannot read it. See the system's log, \
                         and run `oncelog verify`, before you go back to a backup",
                        paths.database.display()
                    )));
                }
                return Err(broken(format!("table {name} is damaged: {said}")));
            }
        }
    }
    Ok(())
}

/// Kind, name, table and text of all tables and views.
type Definition = (String, String, String, String);

fn definitions(connection: &Connection) -> rusqlite::Result<Vec<Definition>> {
    connection
        .prepare("SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE sql IS NOT NULL")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?
        .collect()
}

/// Makes the tables of a store with this identity and history in an empty database, all or nothing.
pub(super) fn create(
    connection: &mut Connection,
    store: &[u8],
    secret: &[u8],
    created_at: &str,
    branches: &[Branch],
) -> rusqlite::Result<()> {
    connection.pragma_update(None, "page_size", limits::SQLITE_PAGE_BYTES.cast_signed())?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", FORMAT_VERSION)?;
    transaction.execute_batch(TABLES)?;
    transaction.execute(
        "INSERT INTO meta(name, value) VALUES \
         ('store_id', ?1), ('hash_secret', ?2), ('checksum', ?3), ('created_at', ?4), ('probe', 0)",
        (store, secret, meta_checksum(store, secret), created_at),
    )?;
    transaction.execute(
        "INSERT INTO meta(name, value) VALUES (?1, ?2)",
        (HISTORY_CHECKSUM, history_checksum(branches)),
    )?;
    for branch in branches {
        transaction.execute(
            "INSERT INTO branches(first, id) VALUES (?1, ?2)",
            [branch.first.cast_signed(), branch.id.cast_signed()],
        )?;
    }
    transaction.commit()
}

/// The checksum of the branches in `meta`. The first stores of this format have none.
const HISTORY_CHECKSUM: &str = "history_checksum";

fn history_checksum(branches: &[Branch]) -> i64 {
    let bytes: Vec<u8> = branches
        .iter()
        .flat_map(|branch| [branch.first, branch.id])
        .flat_map(u64::to_le_bytes)
        .collect();
    xxh3_64(&bytes).cast_signed()
}

fn meta_checksum(store: &[u8], secret: &[u8]) -> i64 {
    xxh3_64(&[store, secret].concat()).cast_signed()
}

/// Sets what makes a commit durable, and reads it back, because SQLite ignores what it cannot do without a word.
fn make_durable(paths: &Paths, connection: &Connection) -> Result<(), OpenError> {
    let failed = |error| failure::open(paths, "the settings cannot be set", &error);
    let journal: String = connection
        .pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))
        .map_err(failed)?;
    connection
        .pragma_update(None, "synchronous", "FULL")
        .map_err(failed)?;
    connection
        .pragma_update(None, "cache_size", -limits::SQLITE_WRITER_CACHE_KIB)
        .map_err(failed)?;
    connection
        .pragma_update_and_check(
            None,
            "journal_size_limit",
            limits::MAX_WAL_BYTES.cast_signed(),
            |_| Ok(()),
        )
        .map_err(failed)?;
    let synchronous: i64 = pragma(connection, "synchronous").map_err(failed)?;
    let page_size: i64 = pragma(connection, "page_size").map_err(failed)?;
    let autocheckpoint: i64 = pragma(connection, "wal_autocheckpoint").map_err(failed)?;
    for (name, found, needed) in [
        ("journal_mode", journal, "wal".to_owned()),
        ("synchronous", synchronous.to_string(), "2".to_owned()),
        (
            "page_size",
            page_size.to_string(),
            limits::SQLITE_PAGE_BYTES.to_string(),
        ),
        ("wal_autocheckpoint", autocheckpoint.to_string(), "0".to_owned()),
    ] {
        if found != needed {
            return Err(OpenError(format!(
                "{}: SQLite's {name} is {found} where {needed} is needed to keep what was acknowledged. The file system \
                 may lack what SQLite's write-ahead log needs (network file systems do): use a local disk",
                paths.database.display()
            )));
        }
    }
    Ok(())
}

fn pragma<T: rusqlite::types::FromSql>(connection: &Connection, name: &str) -> rusqlite::Result<T> {
    connection.pragma_query_value(None, name, |row| row.get(0))
}

/// What makes the store itself, as it was given at its creation.
#[derive(Debug)]
pub(super) struct Meta {
    pub(super) identity: Identity,
    pub(super) created_at: String,
}

/// Reads the branches of the store's history.
pub(super) fn load_branches(paths: &Paths, connection: &Connection) -> Result<Vec<Branch>, OpenError> {
    let read = || {
        connection
            .prepare("SELECT first, id FROM branches ORDER BY first")?
            .query_map([], |row| {
                Ok(Branch {
                    first: row.get::<_, i64>(0)?.cast_unsigned(),
                    id: row.get::<_, i64>(1)?.cast_unsigned(),
                })
            })?
            .collect::<rusqlite::Result<Vec<Branch>>>()
    };
    let failed = |error| failure::open(paths, "the store's history cannot be read", &error);
    let branches = read().map_err(failed)?;
    let checksum: Option<i64> = connection
        .query_row(
            "SELECT value FROM meta WHERE name = ?1",
            [HISTORY_CHECKSUM],
            |row| row.get(0),
        )
        .optional()
        .map_err(failed)?;
    let is_whole = checksum.is_none_or(|checksum| checksum == history_checksum(&branches));
    if is_whole && branches.first().is_some_and(|branch| branch.first == 1) {
        Ok(branches)
    } else {
        Err(OpenError(format!(
            "{}: the store's history (table branches) is damaged, and without it old cursors would be taken for those of \
             another history. Go back to a backup",
            paths.database.display()
        )))
    }
}

/// A branch that begins at `first`.
pub(super) fn new_branch(paths: &Paths, first: Seq) -> Result<Branch, OpenError> {
    let id = getrandom::u64().map_err(|error| {
        OpenError(format!(
            "{}: the system has no random numbers: {error}",
            paths.database.display()
        ))
    })?;
    Ok(Branch { first, id })
}

/// Reads the store's identity.
pub(super) fn load_meta(paths: &Paths, connection: &Connection) -> Result<Meta, OpenError> {
    let failed = |error| failure::open(paths, "the store's identity cannot be read", &error);
    let mut select = connection
        .prepare("SELECT value FROM meta WHERE name = ?1")
        .map_err(failed)?;
    let store: Vec<u8> = select.query_row(["store_id"], |row| row.get(0)).map_err(failed)?;
    let secret: Vec<u8> = select
        .query_row(["hash_secret"], |row| row.get(0))
        .map_err(failed)?;
    let checksum: i64 = select.query_row(["checksum"], |row| row.get(0)).map_err(failed)?;
    let created_at = select
        .query_row(["created_at"], |row| row.get(0))
        .map_err(failed)?;
    match (<[u8; 16]>::try_from(&*store), <[u8; 16]>::try_from(&*secret)) {
        (Ok(id), Ok(key)) if checksum == meta_checksum(&store, &secret) => Ok(Meta {
            identity: Identity {
                store: u128::from_be_bytes(id),
                secret: key,
            },
            created_at,
        }),
        _ => Err(OpenError(format!(
            "{}: the store's identity (table meta) is damaged, and without it no event is known again. Go back to a \
             backup",
            paths.database.display()
        ))),
    }
}
