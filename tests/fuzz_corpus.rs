//! Every file that is kept for a fuzz target passes what the target checks.

#[path = "../fuzz/checks/compressed_body.rs"]
mod compressed_body;
#[path = "../fuzz/checks/payload.rs"]
mod payload;
#[path = "../fuzz/checks/publish_body.rs"]
mod publish_body;
#[path = "../fuzz/checks/segment_reader.rs"]
mod segment_reader;
#[path = "../fuzz/checks/timestamp.rs"]
mod timestamp;

use std::{fs, path::Path};

/// What a target does with an input; it panics when a promise is broken.
type Check = fn(&[u8]);

/// The targets, each with the function that it calls.
const TARGETS: [(&str, Check); 5] = [
    ("compressed_body", compressed_body::check),
    ("payload", payload::check),
    ("publish_body", publish_body::check),
    ("segment_reader", segment_reader::check),
    ("timestamp", timestamp::check),
];

#[test]
fn every_kept_input_of_every_fuzz_target_passes() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (target, check) in TARGETS {
        let mut files = 0;
        for entry in fs::read_dir(corpus.join(target)).unwrap() {
            let path = entry.unwrap().path();
            // Shown only when the test fails.
            println!("{}", path.display());
            check(&fs::read(&path).unwrap());
            files += 1;
        }
        assert!(files > 0, "no inputs are kept for {target}");
    }
}

#[test]
fn every_folder_of_inputs_belongs_to_a_target() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for entry in fs::read_dir(corpus).unwrap() {
        let name = entry.unwrap().file_name();
        assert!(
            TARGETS.iter().any(|(target, _)| name == *target),
            "{} is not replayed",
            name.display()
        );
    }
}
