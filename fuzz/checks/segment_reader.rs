//! What has to hold for every segment file, whole or not. Shared by the fuzz target and the test that replays its corpus.

#![allow(clippy::expect_used, reason = "a check of a fuzz target fails by panicking")]

use oncelog::{
    event::Key,
    index::{Direction, Index, SegmentName, Settings, file_name, verify},
};
use std::{fs, path::Path, sync::Arc};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

const STORE: u128 = 7;
const SEGMENT: SegmentName = SegmentName {
    number: 1,
    first: 1,
    last: 8,
};
const DATA_BYTES: usize = 4088;

/// Reads the bytes as a segment of eight events in every way there is. They must be refused or read, never panic.
pub(crate) fn check(bytes: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join(file_name(STORE, SEGMENT)), plausible(bytes)).expect("a file");
    let settings = Settings::default();
    // Errors are as good as answers here.
    let _ = verify(folder.path(), STORE, SEGMENT, settings, None);
    read(folder.path(), settings);
}

fn read(folder: &Path, settings: Settings) {
    let (index, unusable) =
        Index::open(folder, STORE, &[SEGMENT], settings, Arc::new(|| {})).expect("an index");
    let before = index.unusable().len();
    assert_eq!(before, unusable.len());
    for key in [0, 1, u64::MAX / 2, u64::MAX] {
        let _ = index.lookup(&[Key { high: key, low: 1 }]);
    }
    for topic in [0, 1, u32::MAX] {
        for direction in [Direction::Up, Direction::Down] {
            let _ = index.topic_seqs(topic, direction, 5, 10);
        }
    }
    for seq in 1..=8 {
        let _ = index.times_of(seq);
    }
}

/// The bytes as blocks with right checksums, under a header with the right identity: so that they get past the first
/// checks. Built from the documented format, not with the program's own code.
fn plausible(bytes: &[u8]) -> Vec<u8> {
    let mut data = bytes.to_vec();
    data.resize(data.len().next_multiple_of(DATA_BYTES).max(DATA_BYTES), 0);
    data[..8].copy_from_slice(b"oncelogS");
    data[8..12].copy_from_slice(&1u32.to_le_bytes());
    data[16..32].copy_from_slice(&STORE.to_le_bytes());
    data[32..40].copy_from_slice(&SEGMENT.first.to_le_bytes());
    data[40..48].copy_from_slice(&SEGMENT.last.to_le_bytes());
    data[48..56].copy_from_slice(&SEGMENT.number.to_le_bytes());
    let seed = xxh3_64(&data[16..56]);
    let mut file = Vec::new();
    for (number, block) in (0u64..).zip(data.chunks_exact(DATA_BYTES)) {
        let seed = match number {
            0 => 0,
            _ => seed.wrapping_add(number.wrapping_mul(0x9E37_79B9_7F4A_7C15)),
        };
        file.extend_from_slice(block);
        file.extend_from_slice(&xxh3_64_with_seed(block, seed).to_le_bytes());
    }
    file
}
