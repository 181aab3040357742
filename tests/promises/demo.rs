//! The demo that the README shows: `scripts/demo` runs it with curl against the real program, a kill -9 included.

use crate::harness::PATIENCE;
use std::process::Command;

#[test]
fn the_demo_passes_with_a_crash_in_the_middle() {
    let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/demo"))
        .arg(env!("CARGO_BIN_EXE_oncelog"))
        .env("DEMO_PATIENCE_SECONDS", PATIENCE.as_secs().to_string())
        .output()
        .expect("bash is there");
    let told = String::from_utf8_lossy(&output.stdout);
    println!("{told}");
    assert!(
        output.status.success(),
        "{told}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
