//! Whatever a segment file holds, it is refused or read.
//!
//! `scripts/fuzz segment_reader`

#![no_main]

#[path = "../checks/segment_reader.rs"]
mod segment_reader;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| segment_reader::check(bytes));
