//! Files of 4 KiB blocks, each with its own checksum.
//!
//! A block is 4088 bytes of data and an 8-byte XXH3-64 of them, little endian. The checksum is seeded with the file's
//! identity and the block's number, so that a block of another file or place never passes. Every read checks it.
//! Records of a fixed size never straddle two blocks. Only the segment code uses this.

use super::disk::Disk;
use crate::limits::{SEGMENT_SYNC_BYTES, SEGMENT_WRITE_BLOCKS};
use std::{fs::File, io, os::unix::fs::FileExt};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Bytes of a block on disk.
pub(super) const BLOCK_BYTES: usize = 4096;
/// Bytes of a block that hold data.
const DATA_BYTES: usize = BLOCK_BYTES - 8;
/// What Linux says of a sector that cannot be read. Writing the data anew, elsewhere, is the cure.
const EIO: i32 = 5;

/// A run of equally long records that starts at a block's beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Section {
    pub(super) first_block: u64,
    pub(super) records: u64,
    pub(super) record_bytes: usize,
}

impl Section {
    pub(super) fn per_block(&self) -> u64 {
        (DATA_BYTES / self.record_bytes) as u64
    }

    pub(super) fn blocks(&self) -> u64 {
        self.records.div_ceil(self.per_block())
    }
}

/// Why a block cannot be used.
#[derive(Debug)]
pub(super) enum BlockError {
    /// What is there is not what was written.
    Damaged(String),
    /// The operating system failed.
    Io(io::Error),
}

fn checksum(seed: u64, number: u64, data: &[u8]) -> u64 {
    xxh3_64_with_seed(
        data,
        seed.wrapping_add(number.wrapping_mul(0x9E37_79B9_7F4A_7C15)),
    )
}

/// Reads `blocks` (a whole number of them, from block `number` on) and checks each.
pub(super) fn read_blocks(file: &File, seed: u64, number: u64, blocks: &mut [u8]) -> Result<(), BlockError> {
    file.read_exact_at(blocks, number * BLOCK_BYTES as u64)
        .map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                BlockError::Damaged(format!("the file ends before block {number}"))
            }
            _ if error.raw_os_error() == Some(EIO) => {
                BlockError::Damaged(format!("block {number} cannot be read: {error}"))
            }
            _ => BlockError::Io(error),
        })?;
    for (i, block) in blocks.chunks_exact(BLOCK_BYTES).enumerate() {
        let number = number + i as u64;
        let (data, stored) = block.split_at(DATA_BYTES);
        if checksum(seed, number, data).to_le_bytes() != stored {
            return Err(BlockError::Damaged(format!(
                "the checksum of block {number} is wrong"
            )));
        }
    }
    Ok(())
}

/// Reads records of a section, a window of blocks at a time.
pub(super) struct Records<'a> {
    file: &'a File,
    seed: u64,
    section: Section,
    window: Vec<u8>,
    window_blocks: u64,
    /// The section's block (from 0) that the window starts with, and how many it holds.
    held: std::ops::Range<u64>,
}

impl<'a> Records<'a> {
    /// `window_blocks`: 1 for random reads, more to read on and on.
    pub(super) fn new(file: &'a File, seed: u64, section: Section, window_blocks: usize) -> Self {
        Self {
            file,
            seed,
            section,
            window: Vec::new(),
            window_blocks: window_blocks as u64,
            held: 0..0,
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.section.records
    }

    /// The bytes of record `i`, which must exist.
    pub(super) fn get(&mut self, i: u64) -> Result<&[u8], BlockError> {
        debug_assert!(i < self.section.records);
        let block = i / self.section.per_block();
        if !self.held.contains(&block) {
            self.load(block)?;
        }
        let start = (block - self.held.start) as usize * BLOCK_BYTES
            + (i % self.section.per_block()) as usize * self.section.record_bytes;
        Ok(&self.window[start..start + self.section.record_bytes])
    }

    /// The bytes of block `block` of the section that hold records.
    pub(super) fn block_data(&mut self, block: u64) -> Result<&[u8], BlockError> {
        let per_block = self.section.per_block();
        let records = per_block.min(self.section.records - block * per_block);
        self.get(block * per_block)?;
        let start = (block - self.held.start) as usize * BLOCK_BYTES;
        Ok(&self.window[start..start + records as usize * self.section.record_bytes])
    }

    /// The first record for which `before` is false, if the records are ordered so that it is true up to some point.
    pub(super) fn partition_point(
        &mut self,
        mut before: impl FnMut(&[u8]) -> bool,
    ) -> Result<u64, BlockError> {
        let (mut low, mut high) = (0, self.section.records);
        while low < high {
            let middle = low + (high - low) / 2;
            if before(self.get(middle)?) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }

    fn load(&mut self, block: u64) -> Result<(), BlockError> {
        let count = self.window_blocks.min(self.section.blocks() - block);
        self.held = 0..0;
        self.window.resize(count as usize * BLOCK_BYTES, 0);
        read_blocks(
            self.file,
            self.seed,
            self.section.first_block + block,
            &mut self.window,
        )?;
        self.held = block..block + count;
        Ok(())
    }
}

/// Writes a file of blocks from block 1 on, in order; block 0 comes last.
pub(super) struct BlockWriter {
    disk: Disk,
    file: File,
    seed: u64,
    /// Full blocks that are not written yet.
    gathered: Vec<u8>,
    /// The number of the first block in `gathered`.
    gathered_from: u64,
    /// The data of the block that is being filled.
    data: Vec<u8>,
    unsynced_bytes: u64,
}

impl BlockWriter {
    pub(super) fn new(disk: Disk, file: File, seed: u64) -> Self {
        Self {
            disk,
            file,
            seed,
            gathered: Vec::with_capacity(SEGMENT_WRITE_BLOCKS * BLOCK_BYTES),
            gathered_from: 1,
            data: Vec::with_capacity(DATA_BYTES),
            unsynced_bytes: 0,
        }
    }

    /// The number of the block that the next section starts with.
    pub(super) fn next_block(&self) -> u64 {
        debug_assert!(self.data.is_empty(), "a section is being written");
        self.gathered_from + (self.gathered.len() / BLOCK_BYTES) as u64
    }

    /// Adds a record of the current section; all records of a section have the same length.
    pub(super) fn put(&mut self, record: &[u8]) -> io::Result<()> {
        if self.data.len() + record.len() > DATA_BYTES {
            self.end_block()?;
        }
        self.data.extend_from_slice(record);
        Ok(())
    }

    /// Adds bytes of a section of one-byte records.
    pub(super) fn put_bytes(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.data.len() == DATA_BYTES {
                self.end_block()?;
            }
            let (now, later) = bytes.split_at(bytes.len().min(DATA_BYTES - self.data.len()));
            self.data.extend_from_slice(now);
            bytes = later;
        }
        Ok(())
    }

    /// Ends the current section, so that the next one starts with a block of its own.
    pub(super) fn end_section(&mut self) -> io::Result<()> {
        if self.data.is_empty() {
            Ok(())
        } else {
            self.end_block()
        }
    }

    /// Writes what is left, then `header` as block 0 with the seed 0, and syncs. Returns the file and its bytes.
    pub(super) fn finish(mut self, header: &[u8]) -> io::Result<(File, u64)> {
        self.write_gathered()?;
        let bytes = self.gathered_from * BLOCK_BYTES as u64;
        let mut block = header.to_vec();
        block.resize(DATA_BYTES, 0);
        block.extend_from_slice(&checksum(0, 0, &block).to_le_bytes());
        self.disk.write_at(&self.file, &block, 0)?;
        self.disk.sync(&self.file)?;
        Ok((self.file, bytes))
    }

    fn end_block(&mut self) -> io::Result<()> {
        self.data.resize(DATA_BYTES, 0);
        let number = self.gathered_from + (self.gathered.len() / BLOCK_BYTES) as u64;
        self.gathered.extend_from_slice(&self.data);
        self.gathered
            .extend_from_slice(&checksum(self.seed, number, &self.data).to_le_bytes());
        self.data.clear();
        if self.gathered.len() == SEGMENT_WRITE_BLOCKS * BLOCK_BYTES {
            self.write_gathered()
        } else {
            Ok(())
        }
    }

    fn write_gathered(&mut self) -> io::Result<()> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        self.disk.write_at(
            &self.file,
            &self.gathered,
            self.gathered_from * BLOCK_BYTES as u64,
        )?;
        self.gathered_from += (self.gathered.len() / BLOCK_BYTES) as u64;
        self.unsynced_bytes += self.gathered.len() as u64;
        self.gathered.clear();
        if self.unsynced_bytes >= SEGMENT_SYNC_BYTES {
            self.disk.sync(&self.file)?;
            self.unsynced_bytes = 0;
        }
        Ok(())
    }
}
