//! Small file systems of their own, for tests that fill one or cut its power. Mounted inside a temporary folder, and
//! unmounted when dropped. Needs root.

use super::{run, shell};
use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::Command,
};
use tempfile::TempDir;

/// A mounted file system. Whatever uses it must be gone before it is dropped.
pub(crate) struct Mount {
    folder: TempDir,
    kind: Kind,
}

enum Kind {
    Tmpfs {
        size: String,
    },
    /// In a file, `image`.
    Ext4,
}

impl Mount {
    /// In memory.
    pub(crate) fn tmpfs(mebibytes: u64) -> Self {
        let size = format!("size={mebibytes}m");
        Self::new(Kind::Tmpfs { size })
    }

    /// In a file, with a journal.
    pub(crate) fn ext4(mebibytes: u64) -> Self {
        let mount = Self::make(Kind::Ext4);
        let image = std::fs::File::create(mount.image()).expect("an image");
        image.set_len(mebibytes << 20).expect("a sparse file");
        shell(
            Command::new("mkfs.ext4")
                .args(["-q", "-m", "0"])
                .arg(mount.image()),
        );
        mount.mount();
        mount
    }

    fn new(kind: Kind) -> Self {
        let mount = Self::make(kind);
        mount.mount();
        mount
    }

    fn make(kind: Kind) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir(folder.path().join("mount")).expect("a folder to mount on");
        Self { folder, kind }
    }

    /// The file that an ext4 is in.
    pub(crate) fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("mount")
    }

    /// Mounts it again after [`Mount::unmount`].
    pub(crate) fn mount(&self) {
        let mut command = Command::new("mount");
        match &self.kind {
            Kind::Tmpfs { size } => command.args(["-t", "tmpfs", "-o", size, "tmpfs"]),
            Kind::Ext4 => command.args(["-t", "ext4", "-o", "loop"]).arg(self.image()),
        };
        shell(command.arg(self.path()));
    }

    /// Takes it away; nobody may be using it.
    pub(crate) fn unmount(&self) {
        shell(Command::new("umount").arg(self.path()));
    }

    /// A file that takes room in it.
    pub(crate) fn ballast(&self) -> Ballast {
        Ballast(self.path().join("ballast"))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Not mounted, if a test failed between two mounts. A server that a failed test left behind keeps it busy: then
        // it goes when that ends.
        let path = self.path();
        let unmounted = |option: &[&str]| {
            run(Command::new("umount").args(option).arg(&path))
                .status
                .success()
        };
        let _ = unmounted(&[]) || unmounted(&["--lazy"]);
    }
}

/// A file that takes room from others.
pub(crate) struct Ballast(PathBuf);

impl Ballast {
    /// Grows until there is no room left.
    pub(crate) fn fill(&self) {
        for bytes in [1 << 20, 1 << 12] {
            loop {
                match self.grow(bytes) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::StorageFull => break,
                    Err(error) => panic!("{}: {error}", self.0.display()),
                }
            }
        }
    }

    /// Grows by so many bytes, which are on the disk then.
    pub(crate) fn grow(&self, bytes: usize) -> io::Result<()> {
        let mut file = std::fs::File::options().append(true).create(true).open(&self.0)?;
        file.write_all(&vec![0x55; bytes])?;
        file.sync_all()
    }

    /// Gives so many bytes back.
    pub(crate) fn shrink(&self, bytes: u64) {
        let file = std::fs::File::options()
            .append(true)
            .open(&self.0)
            .expect("the ballast");
        let length = file.metadata().expect("its length").len();
        file.set_len(length.saturating_sub(bytes)).expect("it shrinks");
        file.sync_all().expect("and the room is free");
    }

    /// Gives all of it back.
    pub(crate) fn remove(&self) {
        std::fs::remove_file(&self.0).expect("the ballast");
    }
}
