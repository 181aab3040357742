//! Where an export goes. A file appears under its name only when it is whole: what is written stands beside it until
//! then, and is removed when the export fails or is interrupted.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    process,
};

/// An export that is being written.
pub(super) struct Destination {
    output: BufWriter<Box<dyn Write>>,
    unfinished: Option<Unfinished>,
}

/// A file that is not whole yet; removed when dropped.
struct Unfinished {
    file: File,
    path: PathBuf,
    /// What it will be called.
    wanted: PathBuf,
}

impl Destination {
    /// Standard output.
    pub(super) fn stdout() -> Self {
        Self {
            output: BufWriter::new(Box::new(io::stdout())),
            unfinished: None,
        }
    }

    /// The file at `path`. One that is there stays as it is until [`Destination::finish`]; a pipe or a device is
    /// written to at once, as there is nothing beside it.
    pub(super) fn file(path: &Path) -> io::Result<Self> {
        let existing = match fs::metadata(path) {
            Ok(metadata) if !metadata.is_file() => {
                return Ok(Self {
                    output: BufWriter::new(Box::new(File::create(path)?)),
                    unfinished: None,
                });
            }
            Ok(metadata) => Some(metadata),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        // A link stays a link: the file that it leads to is the one to be replaced.
        let wanted = match existing {
            Some(_) => path.canonicalize()?,
            None => path.to_owned(),
        };
        let mut name = wanted.file_name().unwrap_or_default().to_owned();
        name.push(format!(".unfinished-{}", process::id()));
        let unfinished = Unfinished {
            path: wanted.with_file_name(&name),
            file: File::create_new(wanted.with_file_name(name))?,
            wanted,
        };
        if let Some(metadata) = existing {
            unfinished.file.set_permissions(metadata.permissions())?;
        }
        Ok(Self {
            output: BufWriter::new(Box::new(unfinished.file.try_clone()?)),
            unfinished: Some(unfinished),
        })
    }

    /// Whether it is a file that has yet to get its name.
    pub(super) fn is_unfinished_file(&self) -> bool {
        self.unfinished.is_some()
    }

    /// Writes what is left and gives the file its name.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.output.flush()?;
        let Some(unfinished) = &self.unfinished else {
            return Ok(());
        };
        // Otherwise a crash of the machine could leave an empty file under the name.
        unfinished.file.sync_all()?;
        fs::rename(&unfinished.path, &unfinished.wanted)?;
        Ok(())
    }
}

impl Write for Destination {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // It is not there any more when it was given its name; and a failure has been reported already.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_has_its_name_only_when_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        let mut destination = Destination::file(&path).unwrap();
        writeln!(destination, "line").unwrap();
        assert!(!path.exists());
        destination.finish().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "line\n");
        assert_eq!(names(folder.path()), ["events"]);
    }

    #[test]
    fn a_failed_export_leaves_the_file_of_before_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        fs::write(&path, "before").unwrap();
        let mut destination = Destination::file(&path).unwrap();
        writeln!(destination, "line").unwrap();
        drop(destination);
        assert_eq!(fs::read_to_string(&path).unwrap(), "before");
        assert_eq!(names(folder.path()), ["events"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_stays_a_link_and_a_file_keeps_its_permissions() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("events"), folder.path().join("link"));
        fs::write(&path, "before").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        symlink(&path, &link).unwrap();
        Destination::file(&link).unwrap().finish().unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read_to_string(&path).unwrap(), "");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        Destination::file(Path::new("/dev/null"))
            .unwrap()
            .finish()
            .unwrap();
    }
}
