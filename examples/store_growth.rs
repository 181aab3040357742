//! The store alone, without HTTP: how its rate holds as it grows. Requests are parsed outside the timed part.
//!
//! `cargo run --release --example store_growth -- FOLDER EVENTS BATCH TOPICS` writes into an empty FOLDER and prints a
//! line for each twelfth of EVENTS: events so far, the mean rate so far, the rate of this twelfth, its slowest commit.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a measurement that fails has no result"
)]

mod load;

use load::Load;
use oncelog::{
    event::{self, Outcome, Shape},
    store::{BatchOutcome, sqlite},
};
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

const USAGE: &str = "usage: store_growth FOLDER EVENTS BATCH TOPICS";
const WINDOWS: usize = 12;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, numbers @ ..] = arguments.as_slice() else {
        panic!("{USAGE}");
    };
    let numbers: Vec<usize> = numbers
        .iter()
        .map(|number| number.parse().expect(USAGE))
        .collect();
    let [events, batch, topics] = numbers[..] else {
        panic!("{USAGE}");
    };

    let asked = Arc::new(AtomicBool::new(false));
    let ask = asked.clone();
    let (mut writer, store) = sqlite::open(
        &Path::new(folder).join("dedup.db"),
        Arc::new(move || ask.store(true, Ordering::Release)),
    )
    .expect("an empty folder");
    let identity = store.identity();
    let mut load = Load::new(1, topics as u64);
    let (mut done, mut accepted, mut spent) = (0, 0, Duration::ZERO);
    for _ in 0..WINDOWS {
        let (done_before, spent_before, mut slowest) = (done, spent, Duration::ZERO);
        while done - done_before < events / WINDOWS {
            let sent: Vec<_> = load.batch(batch).iter().map(load::Event::json).collect();
            let body = format!("[{}]", sent.join(",")).into_bytes();
            let parsed = event::parse(body, Shape::Any, &identity, batch).expect("valid events");

            let start = Instant::now();
            let outcomes = writer.commit(&[&parsed]).expect("a commit");
            // What the committer does after each commit.
            asked.store(false, Ordering::Release);
            writer.maintain().expect("maintenance");
            let took = start.elapsed();

            spent += took;
            slowest = slowest.max(took);
            done += batch;
            for outcome in outcomes {
                let BatchOutcome::Committed(placed) = outcome else {
                    panic!("too many topics");
                };
                accepted += placed
                    .iter()
                    .filter(|placed| placed.outcome == Outcome::Stored)
                    .count() as u64;
            }
        }
        println!(
            "done={done} accepted={accepted} average={:.0}/s window={:.0}/s slowest_commit={:.1}ms segments={}",
            done as f64 / spent.as_secs_f64(),
            (done - done_before) as f64 / (spent - spent_before).as_secs_f64(),
            slowest.as_secs_f64() * 1e3,
            store
                .gauges()
                .expect("gauges")
                .index
                .expect("an index")
                .tier_segments
                .iter()
                .sum::<u64>()
        );
    }
    assert_eq!(accepted, load.unique(), "every id exactly once");
    writer.close().expect("a clean end");
}
