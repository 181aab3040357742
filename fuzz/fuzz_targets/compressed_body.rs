//! Whatever comes as a compressed body becomes no larger than it may, and is whole or refused.
//!
//! `scripts/fuzz compressed_body`

#![no_main]

#[path = "../checks/compressed_body.rs"]
mod compressed_body;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| compressed_body::check(bytes));
