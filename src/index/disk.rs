//! Every call by which the index changes the disk, in one place.
//!
//! That makes the crash points countable: in tests, the n-th of these calls fails, and so does every later one, which
//! is what a crash at that point leaves behind.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::Path,
};

/// The disk; free of cost outside tests.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    #[cfg(test)]
    pub(crate) faults: std::sync::Arc<Faults>,
}

impl Disk {
    pub(crate) fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        fs::create_dir_all(path)
    }

    /// A new, empty file that can be written and read. An older one of that name is emptied.
    pub(crate) fn create(&self, path: &Path) -> io::Result<File> {
        self.step()?;
        File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)
    }

    pub(crate) fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.step()?;
        file.write_all_at(bytes, offset)
    }

    /// When this returns, what was written and the file's length survive a power cut.
    pub(crate) fn sync(&self, file: &File) -> io::Result<()> {
        self.step()?;
        file.sync_data()
    }

    /// When this returns, the names in the folder survive a power cut.
    pub(crate) fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        File::open(path)?.sync_all()
    }

    pub(crate) fn remove(&self, path: &Path) -> io::Result<()> {
        #[cfg(test)]
        if self.faults.full_only.load(std::sync::atomic::Ordering::SeqCst) {
            return fs::remove_file(path);
        }
        self.step()?;
        fs::remove_file(path)
    }

    pub(crate) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step()?;
        fs::rename(from, to)
    }

    #[cfg(not(test))]
    #[allow(
        clippy::unused_self,
        clippy::unnecessary_wraps,
        reason = "in tests it does fail"
    )]
    #[inline]
    fn step(&self) -> io::Result<()> {
        Ok(())
    }

    #[cfg(test)]
    fn step(&self) -> io::Result<()> {
        self.faults.step()
    }
}

/// Lets a number of calls through and fails all later ones.
#[cfg(test)]
#[derive(Debug)]
pub(crate) struct Faults {
    pub(crate) calls: std::sync::atomic::AtomicU64,
    pub(crate) fail_from: std::sync::atomic::AtomicU64,
    /// The disk is full: files can be removed.
    pub(crate) full_only: std::sync::atomic::AtomicBool,
}

#[cfg(test)]
impl Default for Faults {
    fn default() -> Self {
        Self {
            calls: 0.into(),
            fail_from: u64::MAX.into(),
            full_only: false.into(),
        }
    }
}

#[cfg(test)]
impl Faults {
    fn step(&self) -> io::Result<()> {
        use std::sync::atomic::Ordering::SeqCst;
        let call = self.calls.fetch_add(1, SeqCst);
        if call >= self.fail_from.load(SeqCst) {
            return Err(io::Error::other(format!("the test fails disk call {call}")));
        }
        Ok(())
    }
}
