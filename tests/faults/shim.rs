//! The environment of a server whose disk fails, forgets or tells what is done to it: see `disk.c`, which this compiles.

use crate::harness::Folder;
use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

/// The library, made once a run, in cargo's folder for the files of tests.
static LIBRARY: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    std::fs::create_dir_all(folder).unwrap();
    // Another run of this program may do the same now: what has its name is whole.
    let unfinished = folder.join(format!("disk-{}.so", std::process::id()));
    let output = Command::new("cc")
        .args(["-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o"])
        .arg(&unfinished)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/faults/disk.c"))
        .output()
        .expect("a C compiler; scripts/test-faults installs one");
    assert!(
        output.status.success(),
        "disk.c does not compile:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let library = folder.join("disk.so");
    std::fs::rename(unfinished, &library).unwrap();
    library
});

/// The disk below one folder, as environment variables for the server.
#[derive(Clone)]
pub(crate) struct Disk(Vec<(&'static str, String)>);

impl Disk {
    /// All that a server does to files below `folder` goes through the shim, which changes nothing yet.
    pub(crate) fn below(folder: &Folder) -> Self {
        Self(vec![
            ("LD_PRELOAD", text(&LIBRARY)),
            ("ONCELOG_DISK_ROOT", text(folder.path())),
        ])
    }

    /// A sync does nothing and says that it did.
    pub(crate) fn without_syncs(self) -> Self {
        self.with("ONCELOG_DISK_NOSYNC", "1".to_owned())
    }

    /// Some calls fail: `write:17:EIO`; `disk.c` says what there is.
    pub(crate) fn failing(self, rules: &str) -> Self {
        self.with("ONCELOG_DISK_FAIL", rules.to_owned())
    }

    /// What is done is written to a file outside of the folder.
    pub(crate) fn recorded(self, record: &Path) -> Self {
        self.with("ONCELOG_DISK_RECORD", text(record))
    }

    fn with(mut self, name: &'static str, value: String) -> Self {
        self.0.push((name, value));
        self
    }

    /// For `Server::start_in`: these, and `others`.
    pub(crate) fn settings<'a>(&'a self, others: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        self.0
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .chain(others.iter().copied())
            .collect()
    }
}

fn text(path: &Path) -> String {
    path.to_str().expect("a path in UTF-8").to_owned()
}
