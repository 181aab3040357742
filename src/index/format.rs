//! The format of a segment file, byte by byte.
//!
//! The file is blocks (see `block`), all numbers little endian. Block 0 is the header, written last:
//!
//! | bytes | what |
//! |---|---|
//! | 0..8 | `oncelogS` |
//! | 8..12 | format version, 1 |
//! | 12..16 | filter bits: the segment has 2^bits filters |
//! | 16..32 | the store's id |
//! | 32..40, 40..48, 48..56 | first seq, last seq, number |
//! | 56..64 | events that share an entry in *times* |
//! | 64..72 | blocks of the file, the header included |
//! | 72..168 | for each section in the order below: first block (u64), records (u64) |
//!
//! | section | a record | order |
//! |---|---|---|
//! | *ids* | key: upper u64, lower u64; offset u32; fingerprint u64 (28 bytes) | by key |
//! | *filters* | a byte; see `filter` | |
//! | *fences* | the upper u64 of the first key of each block of *ids*; kept in memory | by key |
//! | *postings* | offset u32 | by topic, then offset |
//! | *directory* | topic u32, count u32, place of its first posting u64 | by topic |
//! | *times* | smallest and largest time in seconds, i64 each | by seq |
//!
//! An offset is an event's seq less the segment's first. Checksums of blocks 1 and up are seeded with the XXH3-64 of
//! bytes 16..56 of the header, so that a block of another segment never passes for one of this.

use super::{SegmentName, TopicNumber, block::Section};
use crate::event::Key;
use xxhash_rust::xxh3::xxh3_64;

const MAGIC: &[u8; 8] = b"oncelogS";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 168;
/// The part of the header that seeds the other blocks' checksums.
const IDENTITY_BYTES: std::ops::Range<usize> = 16..56;

/// An entry of the *ids* section.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct IdRecord {
    pub(super) key: Key,
    pub(super) offset: u32,
    pub(super) fingerprint: u64,
}

impl IdRecord {
    const BYTES: usize = 28;

    pub(super) fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.key.high.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.key.low.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.offset.to_le_bytes());
        bytes[20..].copy_from_slice(&self.fingerprint.to_le_bytes());
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Self {
        Self {
            key: Key {
                high: u64_at(bytes, 0),
                low: u64_at(bytes, 8),
            },
            offset: u32_at(bytes, 16),
            fingerprint: u64_at(bytes, 20),
        }
    }
}

/// An entry of the *directory*.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TopicRecord {
    pub(super) topic: TopicNumber,
    pub(super) count: u32,
    pub(super) start: u64,
}

impl TopicRecord {
    const BYTES: usize = 16;

    pub(super) fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..4].copy_from_slice(&self.topic.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.count.to_le_bytes());
        bytes[8..].copy_from_slice(&self.start.to_le_bytes());
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Self {
        Self {
            topic: u32_at(bytes, 0),
            count: u32_at(bytes, 4),
            start: u64_at(bytes, 8),
        }
    }
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

/// Where the sections of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) ids: Section,
    pub(super) filters: Section,
    pub(super) fences: Section,
    pub(super) postings: Section,
    pub(super) directory: Section,
    pub(super) times: Section,
}

impl Layout {
    pub(super) fn empty() -> Self {
        let section = |record_bytes| Section {
            first_block: 0,
            records: 0,
            record_bytes,
        };
        Self {
            ids: section(IdRecord::BYTES),
            filters: section(1),
            fences: section(8),
            postings: section(4),
            directory: section(TopicRecord::BYTES),
            times: section(16),
        }
    }

    fn sections(&mut self) -> [&mut Section; 6] {
        [
            &mut self.ids,
            &mut self.filters,
            &mut self.fences,
            &mut self.postings,
            &mut self.directory,
            &mut self.times,
        ]
    }
}

/// What block 0 says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) store: u128,
    pub(super) name: SegmentName,
    pub(super) time_block_events: u64,
    pub(super) filter_bits: u32,
    /// Blocks of the file, this one included.
    pub(super) blocks: u64,
    pub(super) layout: Layout,
}

impl Header {
    pub(super) fn to_bytes(mut self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.filter_bits.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.store.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.name.first.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.name.last.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.name.number.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.time_block_events.to_le_bytes());
        bytes[64..72].copy_from_slice(&self.blocks.to_le_bytes());
        for (i, section) in self.layout.sections().into_iter().enumerate() {
            bytes[72 + i * 16..80 + i * 16].copy_from_slice(&section.first_block.to_le_bytes());
            bytes[80 + i * 16..88 + i * 16].copy_from_slice(&section.records.to_le_bytes());
        }
        bytes
    }

    /// Reads the header of the file of `name`, or says what is wrong with it.
    pub(super) fn from_bytes(bytes: &[u8], store: u128, name: SegmentName) -> Result<Self, String> {
        if &bytes[..8] != MAGIC {
            return Err("this is not a segment file".into());
        }
        if u32_at(bytes, 8) != VERSION {
            return Err(format!(
                "format version {} is not known to this program",
                u32_at(bytes, 8)
            ));
        }
        let found = SegmentName {
            number: u64_at(bytes, 48),
            first: u64_at(bytes, 32),
            last: u64_at(bytes, 40),
        };
        let found_store = u128::from(u64_at(bytes, 16)) | u128::from(u64_at(bytes, 24)) << 64;
        if (found_store, found) != (store, name) {
            return Err("the file belongs to another store or segment".into());
        }
        let mut header = Self {
            store,
            name,
            time_block_events: u64_at(bytes, 56),
            filter_bits: u32_at(bytes, 12),
            blocks: u64_at(bytes, 64),
            layout: Layout::empty(),
        };
        for (i, section) in header.layout.sections().into_iter().enumerate() {
            section.first_block = u64_at(bytes, 72 + i * 16);
            section.records = u64_at(bytes, 80 + i * 16);
            let end = section.first_block.checked_add(section.blocks());
            if section.first_block == 0 || end.is_none_or(|end| end > header.blocks) {
                return Err(format!("section {i} lies outside the file"));
            }
        }
        let (events, layout) = (name.last - name.first + 1, &header.layout);
        let complete = header.time_block_events > 0
            && layout.ids.records == events
            && layout.postings.records == events
            && layout.fences.records == layout.ids.blocks()
            && layout.times.records == events.div_ceil(header.time_block_events);
        if complete {
            Ok(header)
        } else {
            Err("the sections do not hold all of its events".into())
        }
    }

    /// What the checksums of the other blocks are seeded with.
    pub(super) fn seed(&self) -> u64 {
        xxh3_64(&self.to_bytes()[IDENTITY_BYTES])
    }
}
