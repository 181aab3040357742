//! A segment: the index of a run of events, as one immutable file that is open to be read.
//!
//! Small things are kept in memory (filters, fences), the rest is read a block at a time and checked each time. The
//! file's format is in `format`, its writing in `write`.

use super::{
    Direction, Found, IndexError, SegmentName, Settings, TimeBlock, TopicNumber,
    block::{BLOCK_BYTES, BlockError, Records, Section, read_blocks},
    disk::Disk,
    file_name,
    filter::Filters,
    format::{Header, IdRecord, TopicRecord, u32_at, u64_at},
};
use crate::{
    event::{Fingerprint, Key, Seq},
    limits::SEGMENT_READ_BLOCKS,
};
use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

/// An open segment. Immutable; an open one stays readable after its file was removed.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) header: Header,
    pub(super) seed: u64,
    pub(super) file: File,
    pub(super) filters: Filters,
    pub(super) fences: Vec<u64>,
    pub(super) bytes: u64,
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

    /// Removes the file of a segment that is not listed, or no longer.
    pub(super) fn remove(&self, name: SegmentName) {
        let path = self.path(name);
        if let Err(error) = self.disk.remove(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            // Not listed, so it is removed when the index is opened next.
            tracing::warn!(path = %path.display(), %error, "cannot remove an index file that is not needed");
        }
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

        let header = Header::from_bytes(&block, self.store, name).map_err(damaged)?;
        let expected = header.blocks.checked_mul(BLOCK_BYTES as u64);
        if Some(bytes) != expected {
            return Err(damaged(format!("the file has {bytes} bytes, not {expected:?}")));
        }
        let (seed, layout) = (header.seed(), header.layout);

        let mut filter_bytes = Vec::with_capacity(layout.filters.records as usize);
        let mut filters = Records::new(&file, seed, layout.filters, SEGMENT_READ_BLOCKS);
        for block in 0..layout.filters.blocks() {
            filter_bytes.extend_from_slice(filters.block_data(block).map_err(failed)?);
        }
        let filters = Filters::read(header.filter_bits, &filter_bytes).map_err(damaged)?;
        let mut records = Records::new(&file, seed, layout.fences, SEGMENT_READ_BLOCKS);
        let fences = (0..records.len())
            .map(|i| records.get(i).map(|bytes| u64_at(bytes, 0)))
            .collect::<Result<_, _>>()
            .map_err(failed)?;
        Ok(Segment {
            header,
            seed,
            file,
            filters,
            fences,
            bytes,
        })
    }
}

pub(super) fn io_error(what: &str, path: &Path, error: &io::Error) -> IndexError {
    IndexError::Io(format!("cannot {what} {}: {error}", path.display()))
}

impl Segment {
    pub(super) fn name(&self) -> SegmentName {
        self.header.name
    }

    pub(super) fn events(&self) -> u64 {
        self.header.name.last - self.header.name.first + 1
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
        let mut ids = self.records(self.header.layout.ids, 1);
        let per_block = self.header.layout.ids.per_block();
        while block < self.fences.len() && (block < behind || self.fences[block] == key.high) {
            let first = block as u64 * per_block;
            let (mut low, mut high) = (first, (first + per_block).min(self.header.layout.ids.records));
            while low < high {
                let middle = low + (high - low) / 2;
                let record = IdRecord::from_bytes(ids.get(middle).map_err(|e| self.error(e))?);
                match record.key.cmp(&key) {
                    std::cmp::Ordering::Less => low = middle + 1,
                    std::cmp::Ordering::Greater => high = middle,
                    std::cmp::Ordering::Equal => {
                        return Ok(Some(Found {
                            seq: self.header.name.first + u64::from(record.offset),
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
        let mut directory = self.records(self.header.layout.directory, 1);
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
        let (start, end) = (record.start, record.start.saturating_add(record.count.into()));
        let mut postings = self.records(self.header.layout.postings, 1);
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
            Ok(self.header.name.first + u64::from(offset))
        };
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
        let block = (seq - self.header.name.first) / self.header.time_block_events;
        let mut times = self.records(self.header.layout.times, 1);
        let bytes = times.get(block).map_err(|e| self.error(e))?;
        let first = self.header.name.first + block * self.header.time_block_events;
        Ok(TimeBlock {
            first,
            last: (first + self.header.time_block_events - 1).min(self.header.name.last),
            min: u64_at(bytes, 0).cast_signed(),
            max: u64_at(bytes, 8).cast_signed(),
        })
    }

    /// All ids in the order of their keys.
    pub(super) fn ids(&self) -> impl Iterator<Item = Result<IdRecord, IndexError>> + use<'_> {
        self.stream(self.header.layout.ids, IdRecord::from_bytes)
    }

    /// All topics in order.
    pub(super) fn directory(&self) -> impl Iterator<Item = Result<TopicRecord, IndexError>> + use<'_> {
        self.stream(self.header.layout.directory, TopicRecord::from_bytes)
    }

    /// All postings, topic after topic.
    pub(super) fn postings(&self) -> impl Iterator<Item = Result<u32, IndexError>> + use<'_> {
        self.stream(self.header.layout.postings, |bytes| u32_at(bytes, 0))
    }

    /// Smallest and largest time of each block of events, in order.
    pub(super) fn times(&self) -> impl Iterator<Item = Result<(i64, i64), IndexError>> + use<'_> {
        self.stream(self.header.layout.times, |bytes| {
            (u64_at(bytes, 0).cast_signed(), u64_at(bytes, 8).cast_signed())
        })
    }

    /// The upper half of the first key of each block of ids.
    pub(super) fn fences(&self) -> &[u64] {
        &self.fences
    }

    /// How many ids a block holds.
    pub(super) fn ids_per_block(&self) -> u64 {
        self.header.layout.ids.per_block()
    }

    /// How many events share an entry of smallest and largest time.
    pub(super) fn time_block_events(&self) -> u64 {
        self.header.time_block_events
    }

    /// Checks every block of the file.
    pub(super) fn check_blocks(&self) -> Result<(), IndexError> {
        let mut window = vec![0; SEGMENT_READ_BLOCKS * BLOCK_BYTES];
        let blocks = self.bytes / BLOCK_BYTES as u64;
        for first in (1..blocks).step_by(SEGMENT_READ_BLOCKS) {
            let count = (blocks - first).min(SEGMENT_READ_BLOCKS as u64) as usize;
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
        let mut records = self.records(section, SEGMENT_READ_BLOCKS);
        (0..section.records).map(move |i| records.get(i).map(&parse).map_err(|e| self.error(e)))
    }

    fn error(&self, error: BlockError) -> IndexError {
        match error {
            BlockError::Damaged(reason) => IndexError::Damaged {
                segment: self.header.name,
                reason,
            },
            BlockError::Io(error) => IndexError::Io(format!(
                "cannot read index segment {} (events {} to {}): {error}",
                self.header.name.number, self.header.name.first, self.header.name.last
            )),
        }
    }
}
