//! The real program, through its HTTP API, beside a model that a list and a map make: whatever is sent and asked, in
//! whatever order, with restarts and kills between, both say the same. A sequence that tells them apart is shrunk to
//! a short one and printed.
//!
//! Half of the sequences are the same in every run. The others come from a seed that is printed;
//! `ONCELOG_MODEL_SEED` gives it again.

mod action;
mod drive;
mod memory;
mod wire;

use crate::scenario::Scenario;
use drive::{Driver, Tally};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use std::{
    cell::Cell,
    panic::{self, AssertUnwindSafe},
};

pub(crate) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "model: random sequences of calls, restarts and kills",
    needs: &[],
    run: random_sequences,
}];

/// Sequences of each seed.
const SEQUENCES: u32 = 200;
/// Actions in the longest of them.
const ACTIONS: usize = 60;
const FIXED_SEED: u64 = 1;
/// Bounds of the search for a shorter sequence that fails, too.
const SHRINKS: u32 = 400;
const SHRINK_MILLISECONDS: u32 = 60_000;

fn random_sequences() -> String {
    let seed = match std::env::var("ONCELOG_MODEL_SEED") {
        Ok(seed) => seed.parse().expect("ONCELOG_MODEL_SEED is a number"),
        Err(_) => fastrand::u64(..),
    };
    // Each on a processor of its own: a sequence spends most of its time waiting for the disk.
    let [fixed, random] = std::thread::scope(|scope| {
        [FIXED_SEED, seed]
            .map(|seed| scope.spawn(move || sequences(seed)))
            .map(|thread| thread.join().unwrap_or_else(|panic| panic::resume_unwind(panic)))
    });
    let tally = fixed + random;
    format!(
        "{} sequences, half of them from seed {seed}: {} requests, {} events published, {} stored, {} read, {} restarts, \
         {} kills, {} of them before an answer with all of its events stored and {} with none, {} segments at the end",
        2 * SEQUENCES,
        tally.requests,
        tally.published,
        tally.stored,
        tally.read,
        tally.restarts,
        tally.kills,
        tally.unanswered_stored,
        tally.unanswered_lost,
        tally.segments
    )
}

fn sequences(seed: u64) -> Tally {
    let config = Config {
        cases: SEQUENCES,
        failure_persistence: None,
        max_shrink_iters: SHRINKS,
        max_shrink_time: SHRINK_MILLISECONDS,
        ..Config::default()
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let tally = Cell::new(Tally::default());
    let result = TestRunner::new_with_rng(config, random).run(&action::actions(ACTIONS), |actions| {
        let done = panic::catch_unwind(AssertUnwindSafe(|| {
            let mut driver = Driver::new();
            for action in &actions {
                driver.act(action);
            }
            driver.finish()
        }));
        match done {
            Ok(done) => {
                tally.set(tally.get() + done);
                Ok(())
            }
            Err(panic) => Err(TestCaseError::fail(message(panic.as_ref()))),
        }
    });
    match result {
        Ok(()) => tally.get(),
        Err(TestError::Fail(why, actions)) => {
            // Only the first panics of a scenario are printed, and those are of the long sequence.
            println!("ONCELOG_MODEL_SEED={seed}: {why}\nafter {actions:#?}");
            panic!("the program and the model differ; the shortest sequence found is printed above");
        }
        Err(other) => panic!("seed {seed}: {other}"),
    }
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_default()
}
