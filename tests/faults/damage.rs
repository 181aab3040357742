//! Damage: bits that flip, files that are cut, lost, swapped or put back, in each part of a store. Each damage is done to a
//! copy of a good store; then `oncelog verify` looks at one copy, and the server is started on another.
//!
//! Damage is harmless, or it is found: the start is refused, verify names it, a read is an error, or the index is built
//! anew. It is never served as truth.

mod database;
mod log;
mod segments;
mod store;
mod trial;

use crate::scenario::Scenario;

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "damage: each section of each index segment, at rest",
        needs: &[],
        run: segments::at_rest,
    },
    Scenario {
        name: "damage: each section of index segments in use",
        needs: &[],
        run: segments::in_use,
    },
    Scenario {
        name: "damage: each kind of page and column of the SQLite file",
        needs: &[],
        run: database::at_rest,
    },
    Scenario {
        name: "damage: pages of the SQLite file in use",
        needs: &[],
        run: database::in_use,
    },
    Scenario {
        name: "damage: the write-ahead log of a killed server",
        needs: &[],
        run: log::at_rest,
    },
    Scenario {
        name: "damage: a write-ahead log that is copied into the file",
        needs: &[],
        run: log::copied,
    },
];
