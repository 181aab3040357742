//! What a server did to the files of a folder, as `disk.c` wrote it down, in the order in which it happened.

use crate::harness::Moment;
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// One call that changed something, or a sync.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    /// Before it was made; everything earlier in the record was over.
    pub(crate) at: Moment,
    pub(crate) what: What,
    /// Relative to the folder.
    pub(crate) path: PathBuf,
}

/// Tells files apart, also when one takes the name of another.
pub(crate) type Inode = u64;

#[derive(Clone, Debug)]
pub(crate) enum What {
    /// A new file.
    Create(Inode),
    Write {
        inode: Inode,
        offset: u64,
        data: Arc<[u8]>,
    },
    /// The file is cut or extended.
    Resize {
        inode: Inode,
        size: u64,
    },
    /// Of a file or a folder.
    Sync {
        inode: Inode,
        succeeded: bool,
    },
    Rename {
        to: PathBuf,
    },
    /// A file or an empty folder.
    Remove,
    MakeFolder,
}

/// As `struct record` in `disk.c`.
const HEAD_BYTES: usize = 48;

/// Reads a record. The last operation may be half written, when the server was killed.
pub(crate) fn read(record: &Path, folder: &Path) -> Vec<Operation> {
    let bytes = match std::fs::read(record) {
        // Written when the first call is made.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        read => read.unwrap(),
    };
    let folder = folder.canonicalize().unwrap();
    let mut rest = &bytes[..];
    let mut operations = Vec::new();
    while let Some(operation) = take(&mut rest, &folder) {
        operations.push(operation);
    }
    operations
}

fn take(rest: &mut &[u8], folder: &Path) -> Option<Operation> {
    let head = take_bytes(rest, HEAD_BYTES)?;
    let long = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().unwrap());
    let short = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap());
    let (at, inode, offset, result) = (Moment(long(0)), long(8), long(16), long(24).cast_signed());
    let path = take_path(rest, short(36), folder)?;
    let other = take_path(rest, short(40), folder)?;
    let data = take_bytes(rest, short(44) as usize)?;
    let what = match char::from_u32(short(32)).unwrap() {
        'c' => What::Create(inode),
        'w' => What::Write {
            inode,
            offset,
            data: data.into(),
        },
        't' => What::Resize { inode, size: offset },
        's' => What::Sync {
            inode,
            succeeded: result == 0,
        },
        'r' => What::Rename { to: other },
        'u' | 'd' => What::Remove,
        'm' => What::MakeFolder,
        other => panic!("{other} is not a kind of operation"),
    };
    Some(Operation { at, what, path })
}

fn take_bytes<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(count)?;
    *rest = left;
    Some(taken)
}

fn take_path(rest: &mut &[u8], length: u32, folder: &Path) -> Option<PathBuf> {
    let bytes = take_bytes(rest, length as usize)?;
    let path = Path::new(std::str::from_utf8(bytes).unwrap());
    Some(path.strip_prefix(folder).unwrap_or(path).to_owned())
}
