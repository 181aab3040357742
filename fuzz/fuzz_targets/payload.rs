//! However two payloads are spelt, it is known whether they are the same.
//!
//! `scripts/fuzz payload`

#![no_main]

#[path = "../checks/payload.rs"]
mod payload;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| payload::check(bytes));
