//! Whatever text is read as a time, it is the instant that it stands for, or refused.
//!
//! `scripts/fuzz timestamp`

#![no_main]

#[path = "../checks/timestamp.rs"]
mod timestamp;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| timestamp::check(bytes));
