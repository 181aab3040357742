//! The promise under faults: one scenario a kind of fault, each judged by the same oracle. Run by `scripts/test-faults`,
//! which installs what it needs; docs/RELIABILITY.md says what each scenario stands for.
//!
//! Arguments are parts of names: scenarios whose name has one of them are run, all of them without any. `--list` names
//! them. With `REQUIRE_ALL=1` a scenario that cannot run here is a failure.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

#[path = "../harness/mod.rs"]
mod harness;

mod broker;
mod clock;
mod damage;
mod disk_image;
mod disk_record;
mod failing_disk;
mod full_disk;
mod fuzz;
mod kill;
mod model;
mod overload;
mod postgres;
mod power;
mod scenario;
mod shim;
mod stop;
mod torn_writes;
mod upgrade;

use scenario::Scenario;

/// In the order in which they are run.
const SCENARIOS: &[&[Scenario]] = &[
    kill::SCENARIOS,
    stop::SCENARIOS,
    postgres::SCENARIOS,
    power::SCENARIOS,
    torn_writes::SCENARIOS,
    full_disk::SCENARIOS,
    failing_disk::SCENARIOS,
    damage::SCENARIOS,
    clock::SCENARIOS,
    broker::SCENARIOS,
    overload::SCENARIOS,
    model::SCENARIOS,
    fuzz::SCENARIOS,
    upgrade::SCENARIOS,
];

fn main() -> std::process::ExitCode {
    scenario::run(SCENARIOS)
}
