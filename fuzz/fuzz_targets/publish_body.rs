//! Whatever a client sends, parsing it ends, with valid events or an error.
//!
//! `scripts/fuzz publish_body`

#![no_main]

#[path = "../checks/publish_body.rs"]
mod publish_body;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| publish_body::check(bytes));
