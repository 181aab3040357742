//! What the black-box tests share: the real program on a port and in a folder of its own, a small HTTP client, clients
//! under load, and the check of a store against what they know.

#![allow(dead_code, unused_imports, reason = "each test program uses a part of it")]

mod authority;
mod client;
mod events;
mod load;
mod mount;
mod network;
mod oracle;
mod postgres;
mod proxy;
mod redis;
mod server;

pub(crate) use authority::{Authority, Pair};
pub(crate) use client::{Answer, Client};
pub(crate) use events::{Event, identities, read_all};
pub(crate) use load::Load;
pub(crate) use mount::{Ballast, Mount};
pub(crate) use network::Network;
pub(crate) use oracle::{Checked, Moment, Oracle, StoreKind, verify};
pub(crate) use postgres::{Database, Postgres};
pub(crate) use proxy::{Cut, Proxy};
pub(crate) use redis::Redis;
pub(crate) use server::{FailedStart, Folder, Server, oncelog, pipe, run, run_with_input, shell};

use std::time::{Duration, Instant};

/// How long anything may take before a test gives up. Generous: it bounds a broken run, it measures nothing.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Asks again and again until there is an answer; fails the test when none comes.
pub(crate) fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
