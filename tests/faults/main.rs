//! The promise under faults: one scenario a kind of fault, each judged by the same oracle. Run by `scripts/test-faults`,
//! which installs what it needs; docs/RELIABILITY.md says what each scenario stands for.
//!
//! Arguments are parts of names: scenarios whose name has one of them are run, all of them without any. `--list` names
//! them. `--soak MINUTES` runs the overload for so long instead of its usual minute. With `REQUIRE_ALL=1` a scenario that
//! cannot run here is a failure.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

#[path = "../harness/mod.rs"]
mod harness;

mod kill;
mod scenario;

use scenario::Scenario;

/// In the order in which they are run.
const SCENARIOS: &[&[Scenario]] = &[kill::SCENARIOS];

fn main() -> std::process::ExitCode {
    scenario::run(SCENARIOS)
}
