//! Whatever a client sends, parsing it ends, with valid events or an error.
//!
//! `cargo +nightly fuzz run publish_body`

#![no_main]

libfuzzer_sys::fuzz_target!(|body: &[u8]| oncelog::event::check_any_body(body));
