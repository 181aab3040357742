//! Looks for damage in the write-ahead log before SQLite reads it.
//!
//! SQLite reads a log that a crash has left up to the first frame whose checksum is wrong, and takes that frame and
//! all behind it for a commit that was torn and never acknowledged, without a word. So one bit that flips in the log
//! would take every later commit away, and nobody would know. Here is told apart what a crash leaves and what only
//! damage does. Nothing is written; a damaged log stays as it is and the store is refused.
//!
//! # What is damage
//!
//! The file is a header and *frames*, one a page that a commit has changed; the last frame of a commit is marked. Each
//! checksum goes on from that of the frame before, so of each frame can be told whether it *follows* the one before it,
//! also when that one is damaged. SQLite starts the file over from its beginning from time to time, with a new *salt*
//! in the header and in each frame; what is left behind the newest frames has an older one.
//!
//! The header is synced before the first frame is written, and each commit before the next one is begun. So a crash can
//! tear the last commit and nothing before it:
//!
//! 1. A header that is wrong, with frames behind it, is damage.
//! 2. A frame that is wrong is damage when the end of a commit comes at or behind it, and then a frame that follows
//!    that end: it is of a later commit, so the earlier one was synced.
//!
//! The mark of a frame that is wrong itself counts only if a disk cannot have torn it from the checksum beside it, which
//! the next frame proves to be the new one. Frames of a commit that was given up can stand behind a torn commit; they do
//! not follow it.
//!
//! The file that SQLite's connections share (`-shm`) says how far the log goes: that is written after a commit is
//! synced. It is never synced itself, so after a power cut it is old or gone. But a crash of the program leaves it as it
//! was, and what it says of a log with its salt was true at some time:
//!
//! 3. A log that ends before that is damaged, also when it is empty or gone.
//! 4. So is one that is older than that by its salt: SQLite adds one to its first half with each new start.
//!
//! So after a power cut, damage of the last commit cannot be told from a torn one, nor can damage of the checksum at the
//! end of the commit before. And one log that is merely torn may be refused: if the program was killed while it wrote,
//! somebody looked into the log, and then the power was cut before the disk had it.
//!
//! A server may be writing meanwhile (for `backup`). What is found then counts only if nothing has been started over.

use super::paths::Paths;
use crate::{
    limits::{SQLITE_PAGE_BYTES, WAL_CHECK_TRIES},
    store::OpenError,
};
use std::{
    fs::File,
    io::{self, BufReader, ErrorKind, Read},
    path::Path,
};

const HEADER_BYTES: usize = 32;
/// SQLite puts a header of this many bytes before each page in the log.
pub(super) const FRAME_HEADER_BYTES: u64 = 24;
const FRAME_BYTES: usize = (FRAME_HEADER_BYTES + SQLITE_PAGE_BYTES) as usize;
/// The first number of a log; the last bit says in which byte order its checksums are made.
const MAGIC: u32 = 0x377f_0682;
/// The format of the log and of the shared file.
const VERSION: u32 = 3_007_000;
/// What a disk writes as a whole.
const SECTOR_BYTES: u64 = 512;
/// Bytes of what the shared file says of the log; a copy of them stands behind them.
const SHARED_BYTES: usize = 48;
/// A log whose salt is behind another one's by less than this is older.
const MAX_RESTARTS: u32 = 1 << 20;

/// A running checksum of SQLite's.
type Checksum = [u32; 2];
type Salt = [u8; 8];

/// Refuses a store whose write-ahead log has lost commits that were acknowledged. Before any connection is opened: the
/// first one makes the shared file anew.
pub(super) fn check(paths: &Paths) -> Result<(), OpenError> {
    for _ in 0..WAL_CHECK_TRIES {
        let shared = read_shared(paths)?;
        let header = read_header(paths)?;
        let Some(damage) = find_damage(paths, shared.as_ref())? else {
            return Ok(());
        };
        if read_shared(paths)? == shared && read_header(paths)? == header {
            return Err(refusal(paths, &damage));
        }
    }
    // It is being written: what it says now is what its writer knows.
    Ok(())
}

/// What is wrong, and how many bytes of the file are whole commits.
struct Damage {
    what: String,
    whole_bytes: u64,
}

fn refusal(paths: &Paths, damage: &Damage) -> OpenError {
    let (wal, what) = (paths.wal.display(), &damage.what);
    OpenError(format!(
        "{wal}: {what}. Commits that were acknowledged are in it, and SQLite would drop them without a word, so the \
         store is not opened and nothing was changed. Put the file back if it was moved, or go back to a backup. To give \
         up what was committed from there on, run `truncate -s {} {wal}; rm -f {}`, and then `oncelog verify`",
        damage.whole_bytes,
        paths.shm.display()
    ))
}

/// What the shared file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shared {
    /// Frames of whole commits.
    frames: u64,
    /// The last one's checksum.
    checksum: Checksum,
    salt: Salt,
}

/// Reads the shared file; what does not hold together says nothing.
fn read_shared(paths: &Paths) -> Result<Option<Shared>, OpenError> {
    let mut bytes = [0; 2 * SHARED_BYTES];
    if read(&paths.shm, &mut bytes)? < bytes.len() {
        return Ok(None);
    }
    let (bytes, copy) = bytes.split_at(SHARED_BYTES);
    // In the byte order of the processor, apart from the salt.
    let number = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let checksum = add_to_checksum([0, 0], &bytes[..40], cfg!(target_endian = "big"));
    let is_whole = bytes == copy
        && number(0) == VERSION
        && bytes[12] == 1
        && checksum == [number(40), number(44)]
        && number(16) > 0;
    Ok(is_whole.then(|| Shared {
        frames: number(16).into(),
        checksum: [number(24), number(28)],
        salt: salt(bytes, 32),
    }))
}

fn read_header(paths: &Paths) -> Result<Option<[u8; HEADER_BYTES]>, OpenError> {
    let mut bytes = [0; HEADER_BYTES];
    let length = read(&paths.wal, &mut bytes)?;
    Ok((length == bytes.len()).then_some(bytes))
}

/// Reads from the beginning of a file as much as there is.
fn read(path: &Path, bytes: &mut [u8]) -> Result<usize, OpenError> {
    let mut length = 0;
    let mut file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
        file => file.map_err(|error| unreadable(path, &error))?,
    };
    while length < bytes.len() {
        match file.read(&mut bytes[length..]) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(path, &error)),
        }
    }
    Ok(length)
}

fn unreadable(path: &Path, error: &io::Error) -> OpenError {
    OpenError(format!(
        "{} cannot be read: {error}. Check its owner and permissions, and the disk",
        path.display()
    ))
}

/// Reads the log from end to end.
fn find_damage(paths: &Paths, shared: Option<&Shared>) -> Result<Option<Damage>, OpenError> {
    let file = match File::open(&paths.wal) {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        file => Some(file.map_err(|error| unreadable(&paths.wal, &error))?),
    };
    let found = match file {
        None => Ok(lacks_everything(shared)),
        Some(file) => scan(&mut BufReader::with_capacity(FRAME_BYTES, file), shared),
    };
    found.map_err(|error| unreadable(&paths.wal, &error))
}

/// A log without a frame.
fn lacks_everything(shared: Option<&Shared>) -> Option<Damage> {
    shared.map(|shared| Damage {
        what: format!("it is empty or missing, and had {} frames (pages)", shared.frames),
        whole_bytes: 0,
    })
}

fn scan(log: &mut impl Read, shared: Option<&Shared>) -> io::Result<Option<Damage>> {
    let mut header = [0; HEADER_BYTES];
    let mut frame = vec![0; FRAME_BYTES];
    if !read_whole(log, &mut header)? || !read_whole(log, &mut frame)? {
        return Ok(lacks_everything(shared));
    }
    let is_big_endian = u32_at(&header, 0) & 1 == 1;
    let mut checksum = add_to_checksum([0, 0], &header[..24], is_big_endian);
    let is_whole = checksum == [u32_at(&header, 24), u32_at(&header, 28)];
    if !is_whole || [u32_at(&header, 0) & !1, u32_at(&header, 4)] != [MAGIC, VERSION] {
        return Ok(Some(Damage {
            what: "its header is damaged".into(),
            whole_bytes: 0,
        }));
    }
    if u64::from(u32_at(&header, 8)) != SQLITE_PAGE_BYTES {
        // Another program's; it is refused for that.
        return Ok(None);
    }
    let salt_of_log = salt(&header, 16);
    let start = |number: u64| HEADER_BYTES as u64 + (number - 1) * FRAME_BYTES as u64;

    // The end of the commits that SQLite would find, and the first frame behind it that is wrong.
    let mut whole = 0;
    let mut wrong = None;
    let mut reached = false;
    let mut behind_commit = false;
    for number in 1.. {
        let is_of_log = salt(&frame, 8) == salt_of_log;
        let before = checksum;
        checksum = [u32_at(&frame, 16), u32_at(&frame, 20)];
        let sum = add_to_checksum(before, &frame[..8], is_big_endian);
        let follows = is_of_log && checksum == add_to_checksum(sum, &frame[24..], is_big_endian);
        let is_marked = u32_at(&frame, 4) > 0;
        let damage = |what: &str, frame: u64| Damage {
            what: format!("frame {frame} (from byte {}) {what}", start(frame)),
            whole_bytes: start(whole + 1),
        };
        match wrong {
            None if follows => {
                if is_marked {
                    whole = number;
                    reached |= shared.is_some_and(|shared| {
                        (shared.salt, shared.frames, shared.checksum) == (salt_of_log, number, checksum)
                    });
                }
            }
            None => wrong = Some(number),
            Some(wrong) if follows && behind_commit => return Ok(Some(damage("is damaged", wrong))),
            Some(_) => {}
        }
        let is_in_one_sector = start(number) % SECTOR_BYTES + FRAME_HEADER_BYTES <= SECTOR_BYTES;
        behind_commit = is_marked && (follows || is_in_one_sector);
        if !read_whole(log, &mut frame)? {
            break;
        }
    }
    let damage = |what: String| {
        Some(Damage {
            what,
            whole_bytes: start(whole + 1),
        })
    };
    Ok(match shared {
        Some(shared) if shared.salt == salt_of_log && !reached => damage(format!(
            "it has {whole} whole frames (pages), and had {}: it was cut, or frame {} (from byte {}) is damaged",
            shared.frames,
            wrong.unwrap_or(whole + 1),
            start(wrong.unwrap_or(whole + 1)),
        )),
        Some(shared) if is_older(salt_of_log, shared.salt) => {
            damage("it is an older one than the store had last".into())
        }
        _ => None,
    })
}

/// Whether a log with the salt `this` was started before the one with the salt `other`.
fn is_older(this: Salt, other: Salt) -> bool {
    (1..MAX_RESTARTS).contains(&u32_at(&other, 0).wrapping_sub(u32_at(&this, 0)))
}

/// Fills `bytes`; false when the file ends before.
fn read_whole(file: &mut impl Read, bytes: &mut [u8]) -> io::Result<bool> {
    match file.read_exact(bytes) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        result => result.map(|()| true),
    }
}

/// SQLite's checksum of `bytes`, a multiple of eight, behind what `checksum` is of.
fn add_to_checksum([mut first, mut second]: Checksum, bytes: &[u8], is_big_endian: bool) -> Checksum {
    let number = |bytes: [u8; 4]| {
        if is_big_endian {
            u32::from_be_bytes(bytes)
        } else {
            u32::from_le_bytes(bytes)
        }
    };
    let (pairs, _) = bytes.as_chunks::<8>();
    for &[a, b, c, d, e, f, g, h] in pairs {
        first = first.wrapping_add(number([a, b, c, d])).wrapping_add(second);
        second = second.wrapping_add(number([e, f, g, h])).wrapping_add(first);
    }
    [first, second]
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn salt(bytes: &[u8], at: usize) -> Salt {
    let mut salt = [0; 8];
    salt.copy_from_slice(&bytes[at..at + 8]);
    salt
}
