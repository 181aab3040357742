//! Tells the program which commit it is built from, for `oncelog --version`.
//!
//! Only in release builds: elsewhere each commit would compile everything again. It runs again when the commit moves or
//! a file that the program is made of changes, and neither needs git nor fails without it. `ONCELOG_COMMIT` replaces
//! what git says, for builds that have no repository beside the sources, such as that of a container's image.

use std::{env, path::Path, process::Command};

const COMMIT: &str = "ONCELOG_COMMIT";

/// What a release is made of, relative to the package's folder.
const SOURCES: [&str; 5] = ["src", "build.rs", "Cargo.toml", "Cargo.lock", ".cargo"];

fn main() {
    for source in SOURCES {
        println!("cargo::rerun-if-changed={source}");
    }
    println!("cargo::rerun-if-env-changed={COMMIT}");
    let version = env::var("CARGO_PKG_VERSION").unwrap_or_default();
    let of_commit = match env::var(COMMIT) {
        Ok(commit) if !commit.is_empty() => commit,
        _ if !is_release() => "development build".to_owned(),
        _ => commit_in_git().unwrap_or_else(|| "commit unknown".to_owned()),
    };
    println!("cargo::rustc-env=ONCELOG_VERSION={version} ({of_commit})");
}

/// Whether this is what users are given. The fault tests' build is optimised too, but is none.
fn is_release() -> bool {
    env::var("PROFILE").is_ok_and(|profile| profile == "release") && env::var("CARGO_FEATURE_FAULTS").is_err()
}

/// The commit, and whether the sources differ from it. None without git, or when the repository is not this
/// package's own: one that was unpacked inside another project's must not take that one's commit for its own.
fn commit_in_git() -> Option<String> {
    if !git(&["rev-parse", "--show-prefix"])?.is_empty() {
        return None;
    }
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    // A path that does not exist would make cargo run this every time.
    let branch = git(&["symbolic-ref", "--quiet", "HEAD"]);
    for name in ["HEAD", "logs/HEAD", "packed-refs"]
        .into_iter()
        .chain(branch.as_deref())
    {
        let path = git(&["rev-parse", "--git-path", name])?;
        if Path::new(&path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    let changed = git(&[&["status", "--porcelain", "--"][..], &SOURCES].concat())?;
    Some(if changed.is_empty() {
        commit
    } else {
        format!("{commit}, modified")
    })
}

/// What git answers, without the line's end; `None` when it is not there or fails.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim_end().to_owned())
}
