//! Folders that outlast a power cut: a new name is on the disk when the folder that has it is synced.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

/// The folder that has the file or folder `path`.
pub(super) fn of(path: &Path) -> &Path {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// Makes a folder and those above it, as far as they are missing, durably: each is synced before the next one is made.
pub(super) fn make(folder: &Path) -> io::Result<()> {
    let above = of(folder);
    if folder.is_dir() {
        // It may be left from a start that ended before this sync.
        return match sync(above) {
            Err(error) if is_of_another(&error) => Ok(()),
            result => result,
        };
    }
    make(above)?;
    match fs::create_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => {}
        result => result?,
    }
    sync(above)
}

/// Whether a sync failed as it would have when a folder was to be made there: so none was, by us.
fn is_of_another(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::InvalidInput
    )
}

/// When this returns, the file, or the names in the folder, survive a power cut.
pub(super) fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
