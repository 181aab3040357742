//! A segment: the index of a run of events, as one immutable file.
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

use super::{
    Direction, Found, IndexError, SegmentName, Settings, TimeBlock, TopicNumber,
    block::{BLOCK_BYTES, BlockError, BlockWriter, Records, Section, read_blocks},
    disk::Disk,
    file_name,
    filter::{FilterBuilder, Filters},
};
use crate::event::{Fingerprint, Key, Seq};
use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};
use xxhash_rust::xxh3::xxh3_64;

const MAGIC: &[u8; 8] = b"oncelogS";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 168;
/// The part of the header that seeds the other blocks' checksums.
const IDENTITY_BYTES: std::ops::Range<usize> = 16..56;
/// Blocks read at once when a section is read from end to end.
pub(super) const STREAM_BLOCKS: usize = 64;

/// An entry of the *ids* section.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct IdRecord {
    pub(super) key: Key,
    pub(super) offset: u32,
    pub(super) fingerprint: u64,
}

impl IdRecord {
    const BYTES: usize = 28;

    fn to_bytes(self) -> [u8; Self::BYTES] {
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

    fn to_bytes(self) -> [u8; Self::BYTES] {
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

fn u32_at(bytes: &[u8], at: usize) -> u32 {
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Layout {
    ids: Section,
    filters: Section,
    fences: Section,
    postings: Section,
    directory: Section,
    times: Section,
}

impl Layout {
    fn sections(&mut self) -> [(&mut Section, usize); 6] {
        [
            (&mut self.ids, IdRecord::BYTES),
            (&mut self.filters, 1),
            (&mut self.fences, 8),
            (&mut self.postings, 4),
            (&mut self.directory, TopicRecord::BYTES),
            (&mut self.times, 16),
        ]
    }
}

/// An open segment. Immutable; an open one stays readable after its file was removed.
#[derive(Debug)]
pub(super) struct Segment {
    name: SegmentName,
    file: File,
    seed: u64,
    layout: Layout,
    filters: Filters,
    fences: Vec<u64>,
    time_block_events: u64,
    bytes: u64,
}

/// What a segment file belongs to, and where it goes.
#[derive(Clone, Debug)]
pub(super) struct Home {
    pub(super) folder: PathBuf,
    pub(super) store: u128,
    pub(super) settings: Settings,
    pub(super) disk: Disk,
}

impl Home {
    pub(super) fn path(&self, name: SegmentName) -> PathBuf {
        self.folder.join(file_name(self.store, name))
    }

    /// Writes the file of a segment and syncs it and its folder.
    ///
    /// `ids` come in the order of their keys, all `last - first + 1` of them; `postings` by topic, then offset; `times`
    /// for each block of events in the order of the log.
    pub(super) fn write(
        &self,
        name: SegmentName,
        ids: impl Iterator<Item = Result<IdRecord, IndexError>>,
        postings: impl Iterator<Item = Result<(TopicNumber, u32), IndexError>>,
        times: impl Iterator<Item = Result<(i64, i64), IndexError>>,
    ) -> Result<Segment, IndexError> {
        let path = self.path(name);
        let failed = |error: io::Error| io_error("write", &path, &error);
        let mut header = header(self.store, name, self.settings.time_block_events);
        let seed = xxh3_64(&header[IDENTITY_BYTES]);
        let file = self.disk.create(&path).map_err(failed)?;
        let mut blocks = BlockWriter::new(self.disk.clone(), file, seed);
        let mut layout = Layout::default();
        for (section, record_bytes) in layout.sections() {
            section.record_bytes = record_bytes;
        }

        layout.ids.first_block = blocks.next_block();
        let mut fences = Vec::new();
        let mut filters = FilterBuilder::new(name.last - name.first + 1, self.settings.filter_keys);
        for id in ids {
            let id = id?;
            if layout.ids.records.is_multiple_of(layout.ids.per_block()) {
                fences.push(id.key.high);
            }
            filters.push(id.key.high).map_err(IndexError::Io)?;
            blocks.put(&id.to_bytes()).map_err(failed)?;
            layout.ids.records += 1;
        }
        blocks.end_section().map_err(failed)?;

        layout.filters.first_block = blocks.next_block();
        let filters = filters.finish().map_err(IndexError::Io)?;
        layout.filters.records = filters.write(|bytes| blocks.put_bytes(bytes)).map_err(failed)?;
        blocks.end_section().map_err(failed)?;

        layout.fences.first_block = blocks.next_block();
        for fence in &fences {
            blocks.put(&fence.to_le_bytes()).map_err(failed)?;
        }
        layout.fences.records = fences.len() as u64;
        blocks.end_section().map_err(failed)?;

        layout.postings.first_block = blocks.next_block();
        let mut directory: Vec<TopicRecord> = Vec::new();
        for posting in postings {
            let (topic, offset) = posting?;
            match directory.last_mut() {
                Some(last) if last.topic == topic => last.count += 1,
                _ => directory.push(TopicRecord {
                    topic,
                    count: 1,
                    start: layout.postings.records,
                }),
            }
            blocks.put(&offset.to_le_bytes()).map_err(failed)?;
            layout.postings.records += 1;
        }
        blocks.end_section().map_err(failed)?;

        layout.directory.first_block = blocks.next_block();
        for topic in &directory {
            blocks.put(&topic.to_bytes()).map_err(failed)?;
        }
        layout.directory.records = directory.len() as u64;
        blocks.end_section().map_err(failed)?;

        layout.times.first_block = blocks.next_block();
        for time in times {
            let (min, max) = time?;
            let mut record = [0; 16];
            record[..8].copy_from_slice(&min.to_le_bytes());
            record[8..].copy_from_slice(&max.to_le_bytes());
            blocks.put(&record).map_err(failed)?;
            layout.times.records += 1;
        }
        blocks.end_section().map_err(failed)?;

        header[12..16].copy_from_slice(&filters.bits().to_le_bytes());
        header[64..72].copy_from_slice(&blocks.next_block().to_le_bytes());
        for (i, (section, _)) in layout.sections().into_iter().enumerate() {
            header[72 + i * 16..80 + i * 16].copy_from_slice(&section.first_block.to_le_bytes());
            header[80 + i * 16..88 + i * 16].copy_from_slice(&section.records.to_le_bytes());
        }
        let (file, bytes) = blocks.finish(&header).map_err(failed)?;
        self.disk
            .sync_folder(&self.folder)
            .map_err(|error| io_error("sync", &self.folder, &error))?;
        let time_block_events = self.settings.time_block_events;
        Ok(Segment {
            name,
            file,
            seed,
            layout,
            filters,
            fences,
            time_block_events,
            bytes,
        })
    }

    /// Opens the file of a listed segment: checks the header and reads what is kept in memory.
    pub(super) fn open(&self, name: SegmentName) -> Result<Segment, IndexError> {
        let path = self.path(name);
        let damaged = |reason: String| IndexError::Damaged {
            segment: name,
            reason: format!("{}: {reason}", path.display()),
        };
        let failed = |error: BlockError| match error {
            BlockError::Damaged(reason) => damaged(reason),
            BlockError::Io(error) => io_error("read", &path, &error),
        };
        let file = File::open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => damaged("the file is missing".into()),
            _ => io_error("open", &path, &error),
        })?;
        let bytes = file
            .metadata()
            .map_err(|error| io_error("read", &path, &error))?
            .len();
        let mut block = [0; BLOCK_BYTES];
        read_blocks(&file, 0, 0, &mut block).map_err(failed)?;

        let expected = header(self.store, name, u64_at(&block, 56));
        if block[..8] != expected[..8] {
            return Err(damaged("this is not a segment file".into()));
        }
        if block[8..12] != expected[8..12] {
            return Err(damaged(format!(
                "format version {} is not known to this program",
                u32_at(&block, 8)
            )));
        }
        if block[IDENTITY_BYTES] != expected[IDENTITY_BYTES] {
            return Err(damaged("the file belongs to another store or segment".into()));
        }
        let seed = xxh3_64(&block[IDENTITY_BYTES]);
        let time_block_events = u64_at(&block, 56);
        let blocks = u64_at(&block, 64);
        let mut layout = Layout::default();
        for (i, (section, record_bytes)) in layout.sections().into_iter().enumerate() {
            *section = Section {
                first_block: u64_at(&block, 72 + i * 16),
                records: u64_at(&block, 80 + i * 16),
                record_bytes,
            };
            let end = section.first_block.checked_add(section.blocks());
            if section.first_block == 0 || end.is_none_or(|end| end > blocks) {
                return Err(damaged(format!("section {i} lies outside the file")));
            }
        }
        let events = name.last - name.first + 1;
        if layout.ids.records != events
            || layout.postings.records != events
            || layout.fences.records != layout.ids.blocks()
            || time_block_events == 0
            || layout.times.records != events.div_ceil(time_block_events)
        {
            return Err(damaged("the sections do not hold all of its events".into()));
        }
        if bytes != blocks * BLOCK_BYTES as u64 {
            return Err(damaged(format!(
                "the file has {bytes} bytes, not {}",
                blocks * BLOCK_BYTES as u64
            )));
        }

        let mut filter_bytes = Vec::with_capacity(layout.filters.records as usize);
        let mut filters = Records::new(&file, seed, layout.filters, STREAM_BLOCKS);
        for block in 0..layout.filters.blocks() {
            filter_bytes.extend_from_slice(filters.block_data(block).map_err(failed)?);
        }
        let filters = Filters::read(u32_at(&block, 12), &filter_bytes).map_err(damaged)?;
        let mut records = Records::new(&file, seed, layout.fences, STREAM_BLOCKS);
        let fences = (0..records.len())
            .map(|i| records.get(i).map(|bytes| u64_at(bytes, 0)))
            .collect::<Result<_, _>>()
            .map_err(failed)?;
        Ok(Segment {
            name,
            file,
            seed,
            layout,
            filters,
            fences,
            time_block_events,
            bytes,
        })
    }
}

fn header(store: u128, name: SegmentName, time_block_events: u64) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[16..32].copy_from_slice(&store.to_le_bytes());
    header[32..40].copy_from_slice(&name.first.to_le_bytes());
    header[40..48].copy_from_slice(&name.last.to_le_bytes());
    header[48..56].copy_from_slice(&name.number.to_le_bytes());
    header[56..64].copy_from_slice(&time_block_events.to_le_bytes());
    header
}

pub(super) fn io_error(what: &str, path: &Path, error: &io::Error) -> IndexError {
    IndexError::Io(format!("cannot {what} {}: {error}", path.display()))
}

impl Segment {
    pub(super) fn name(&self) -> SegmentName {
        self.name
    }

    pub(super) fn events(&self) -> u64 {
        self.name.last - self.name.first + 1
    }

    /// Bytes on disk.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of memory of the filters and fences.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.filters.bytes() + self.fences.len() as u64 * 8
    }

    /// Whether [`Segment::find`] is worth a try: false for sure, true with a false alarm in 256.
    #[inline]
    pub(super) fn may_contain(&self, key: Key) -> bool {
        self.filters.may_contain(key.high)
    }

    /// Where an identity stands: the fences name the one block that can hold it, which is read and searched.
    pub(super) fn find(&self, key: Key) -> Result<Option<Found>, IndexError> {
        // The first block that starts at or behind the key. The key can stand in the block before it; and, as fences
        // are only the upper half of a key, in this one and in those that start alike.
        let behind = self.fences.partition_point(|fence| *fence < key.high);
        let mut block = behind.saturating_sub(1);
        let mut ids = self.records(self.layout.ids, 1);
        let per_block = self.layout.ids.per_block();
        while block < self.fences.len() && (block < behind || self.fences[block] == key.high) {
            let first = block as u64 * per_block;
            let (mut low, mut high) = (first, (first + per_block).min(self.layout.ids.records));
            while low < high {
                let middle = low + (high - low) / 2;
                let record = IdRecord::from_bytes(ids.get(middle).map_err(|e| self.error(e))?);
                match record.key.cmp(&key) {
                    std::cmp::Ordering::Less => low = middle + 1,
                    std::cmp::Ordering::Greater => high = middle,
                    std::cmp::Ordering::Equal => {
                        return Ok(Some(Found {
                            seq: self.name.first + u64::from(record.offset),
                            fingerprint: Fingerprint(record.fingerprint),
                        }));
                    }
                }
            }
            block += 1;
        }
        Ok(None)
    }

    /// Adds up to `limit` seqs of a topic to `found`, from the first one beyond `position` on.
    pub(super) fn topic_seqs(
        &self,
        topic: TopicNumber,
        direction: Direction,
        position: Seq,
        limit: usize,
        found: &mut Vec<Seq>,
    ) -> Result<(), IndexError> {
        let mut directory = self.records(self.layout.directory, 1);
        let place = directory
            .partition_point(|record| TopicRecord::from_bytes(record).topic < topic)
            .map_err(|e| self.error(e))?;
        if place == directory.len() {
            return Ok(());
        }
        let record = TopicRecord::from_bytes(directory.get(place).map_err(|e| self.error(e))?);
        if record.topic != topic {
            return Ok(());
        }
        let mut postings = self.records(self.layout.postings, 1);
        let mut seq_at = |i: u64| -> Result<Seq, IndexError> {
            if i >= postings.len() {
                return Err(self.error(BlockError::Damaged(format!(
                    "topic {topic} points outside the file"
                ))));
            }
            let offset = postings
                .get(i)
                .map(|bytes| u32_at(bytes, 0))
                .map_err(|e| self.error(e))?;
            Ok(self.name.first + u64::from(offset))
        };
        let (start, end) = (record.start, record.start + u64::from(record.count));
        // The topic's first posting at (down) or behind (up) the position.
        let (mut low, mut high) = (start, end);
        while low < high {
            let middle = low + (high - low) / 2;
            let seq = seq_at(middle)?;
            let before = match direction {
                Direction::Up => seq <= position,
                Direction::Down => seq < position,
            };
            if before {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        match direction {
            Direction::Up => {
                for i in (low..end).take(limit) {
                    found.push(seq_at(i)?);
                }
            }
            Direction::Down => {
                for i in (start..low).rev().take(limit) {
                    found.push(seq_at(i)?);
                }
            }
        }
        Ok(())
    }

    /// The block of events around `seq`, which is in the segment.
    pub(super) fn times_of(&self, seq: Seq) -> Result<TimeBlock, IndexError> {
        let block = (seq - self.name.first) / self.time_block_events;
        let mut times = self.records(self.layout.times, 1);
        let bytes = times.get(block).map_err(|e| self.error(e))?;
        let first = self.name.first + block * self.time_block_events;
        Ok(TimeBlock {
            first,
            last: (first + self.time_block_events - 1).min(self.name.last),
            min: u64_at(bytes, 0).cast_signed(),
            max: u64_at(bytes, 8).cast_signed(),
        })
    }

    /// All ids in the order of their keys.
    pub(super) fn ids(&self) -> impl Iterator<Item = Result<IdRecord, IndexError>> + use<'_> {
        self.stream(self.layout.ids, IdRecord::from_bytes)
    }

    /// All topics in order.
    pub(super) fn directory(&self) -> impl Iterator<Item = Result<TopicRecord, IndexError>> + use<'_> {
        self.stream(self.layout.directory, TopicRecord::from_bytes)
    }

    /// All postings, topic after topic.
    pub(super) fn postings(&self) -> impl Iterator<Item = Result<u32, IndexError>> + use<'_> {
        self.stream(self.layout.postings, |bytes| u32_at(bytes, 0))
    }

    /// Smallest and largest time of each block of events, in order.
    pub(super) fn times(&self) -> impl Iterator<Item = Result<(i64, i64), IndexError>> + use<'_> {
        self.stream(self.layout.times, |bytes| {
            (u64_at(bytes, 0).cast_signed(), u64_at(bytes, 8).cast_signed())
        })
    }

    /// Checks every block of the file.
    pub(super) fn check_blocks(&self) -> Result<(), IndexError> {
        let mut window = vec![0; STREAM_BLOCKS * BLOCK_BYTES];
        let blocks = self.bytes / BLOCK_BYTES as u64;
        for first in (1..blocks).step_by(STREAM_BLOCKS) {
            let count = (blocks - first).min(STREAM_BLOCKS as u64) as usize;
            read_blocks(&self.file, self.seed, first, &mut window[..count * BLOCK_BYTES])
                .map_err(|e| self.error(e))?;
        }
        Ok(())
    }

    fn records(&self, section: Section, window_blocks: usize) -> Records<'_> {
        Records::new(&self.file, self.seed, section, window_blocks)
    }

    fn stream<T>(
        &self,
        section: Section,
        parse: impl Fn(&[u8]) -> T,
    ) -> impl Iterator<Item = Result<T, IndexError>> {
        let mut records = self.records(section, STREAM_BLOCKS);
        (0..section.records).map(move |i| records.get(i).map(&parse).map_err(|e| self.error(e)))
    }

    fn error(&self, error: BlockError) -> IndexError {
        match error {
            BlockError::Damaged(reason) => IndexError::Damaged {
                segment: self.name,
                reason,
            },
            BlockError::Io(error) => IndexError::Io(format!(
                "cannot read index segment {} (events {} to {}): {error}",
                self.name.number, self.name.first, self.name.last
            )),
        }
    }
}

/// The bytes as blocks with right checksums, under a header with the right identity.
#[cfg(any(test, fuzzing))]
pub(super) fn plausible(bytes: &[u8], store: u128, name: SegmentName) -> Vec<u8> {
    use super::block::{DATA_BYTES, checksum};
    let mut file = bytes.to_vec();
    file.resize(file.len().next_multiple_of(DATA_BYTES).max(DATA_BYTES), 0);
    let identity = header(store, name, u64_at(&file, 56));
    file[..12].copy_from_slice(&identity[..12]);
    file[16..56].copy_from_slice(&identity[16..56]);
    let seed = xxh3_64(&file[IDENTITY_BYTES]);
    let blocks = file.chunks_exact(DATA_BYTES).enumerate();
    blocks
        .flat_map(|(number, data)| {
            let seed = if number == 0 { 0 } else { seed };
            let mut block = data.to_vec();
            block.extend_from_slice(&checksum(seed, number as u64, data).to_le_bytes());
            block
        })
        .collect()
}
