//! The filters of a segment: whether a key may be in it, at 9 bits a key, in memory.
//!
//! Binary fuse filters (crate `xorf`, after Graf and Lemire, "Binary Fuse Filters", 2022): no false negatives, one
//! false positive in 256. Building one needs all its keys at once, so a segment has one for each of 2^bits equal
//! ranges of keys, which are uniform; the upper bits of a key choose the filter.

use crate::limits::MAX_FILTER_BITS;
use xorf::{BinaryFuse8, Descriptor, Filter};

/// The filters of one segment.
#[derive(Debug)]
pub(super) struct Filters {
    bits: u32,
    parts: Vec<BinaryFuse8>,
}

/// Takes the upper halves of all keys of a segment in ascending order and makes the filters.
pub(super) struct FilterBuilder {
    bits: u32,
    parts: Vec<BinaryFuse8>,
    keys: Vec<u64>,
}

fn part_of(bits: u32, high: u64) -> usize {
    // A shift by 64 is not defined, hence the zero.
    high.checked_shr(64 - bits).unwrap_or(0) as usize
}

impl Filters {
    /// Whether a key with this upper half may be in the segment.
    #[inline]
    pub(super) fn may_contain(&self, high: u64) -> bool {
        self.parts[part_of(self.bits, high)].contains(&high)
    }

    /// Bytes of memory.
    pub(super) fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.fingerprints.len() as u64).sum()
    }

    /// The base-2 logarithm of the number of filters.
    pub(super) fn bits(&self) -> u32 {
        self.bits
    }

    /// Hands the file form to `write`, piece by piece: for each filter its seed (u64), segment length, segment length
    /// mask, segment count length and number of fingerprints (u32 each), then the fingerprints, one byte each; all
    /// little endian.
    pub(super) fn write<E>(&self, mut write: impl FnMut(&[u8]) -> Result<(), E>) -> Result<u64, E> {
        let mut bytes = 0;
        for part in &self.parts {
            let Descriptor {
                seed,
                segment_length,
                segment_length_mask,
                segment_count_length,
            } = part.descriptor;
            write(&seed.to_le_bytes())?;
            for number in [
                segment_length,
                segment_length_mask,
                segment_count_length,
                part.fingerprints.len() as u32,
            ] {
                write(&number.to_le_bytes())?;
            }
            write(&part.fingerprints)?;
            bytes += 24 + part.fingerprints.len() as u64;
        }
        Ok(bytes)
    }

    /// Reads back what [`Filters::write`] wrote; says what is wrong if it does not hold together.
    pub(super) fn read(bits: u32, mut bytes: &[u8]) -> Result<Self, String> {
        if bits > MAX_FILTER_BITS {
            return Err(format!("2^{bits} filters are more than a segment can have"));
        }
        let mut parts = Vec::with_capacity(1 << bits);
        for number in 0..1 << bits {
            let incomplete = || format!("filter {number} is incomplete");
            let (head, rest) = bytes.split_first_chunk::<24>().ok_or_else(incomplete)?;
            let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
            let descriptor = Descriptor {
                seed: u64::from(word(0)) | u64::from(word(4)) << 32,
                segment_length: word(8),
                segment_length_mask: word(12),
                segment_count_length: word(16),
            };
            let length = word(20) as usize;
            // What the probing relies on to stay inside the fingerprints.
            let consistent = descriptor.segment_length.is_power_of_two()
                && descriptor.segment_count_length > 0
                && descriptor
                    .segment_count_length
                    .is_multiple_of(descriptor.segment_length)
                && descriptor.segment_length_mask == descriptor.segment_length - 1
                && u64::from(descriptor.segment_count_length) + 2 * u64::from(descriptor.segment_length)
                    == length as u64;
            if !consistent {
                return Err(format!("filter {number} contradicts itself"));
            }
            let (fingerprints, rest) = rest.split_at_checked(length).ok_or_else(incomplete)?;
            parts.push(BinaryFuse8 {
                descriptor,
                fingerprints: fingerprints.into(),
            });
            bytes = rest;
        }
        if bytes.is_empty() {
            Ok(Self { bits, parts })
        } else {
            Err("there is more behind the last filter".into())
        }
    }
}

impl FilterBuilder {
    /// For `keys` keys in all, about `keys_per_filter` or fewer in each filter.
    pub(super) fn new(keys: u64, keys_per_filter: usize) -> Self {
        let mut bits = 0;
        while keys >> bits > keys_per_filter as u64 {
            bits += 1;
        }
        Self {
            bits,
            parts: Vec::with_capacity(1 << bits),
            keys: Vec::new(),
        }
    }

    /// The next key's upper half.
    pub(super) fn push(&mut self, high: u64) -> Result<(), String> {
        while self.parts.len() < part_of(self.bits, high) {
            self.end_part()?;
        }
        // Building fails on equal keys; two identities can share an upper half.
        if self.keys.last() != Some(&high) {
            self.keys.push(high);
        }
        Ok(())
    }

    /// All keys were given.
    pub(super) fn finish(mut self) -> Result<Filters, String> {
        while self.parts.len() < 1 << self.bits {
            self.end_part()?;
        }
        Ok(Filters {
            bits: self.bits,
            parts: self.parts,
        })
    }

    fn end_part(&mut self) -> Result<(), String> {
        let part = BinaryFuse8::try_from(&self.keys)
            .map_err(|error| format!("a filter of {} keys could not be built: {error}", self.keys.len()))?;
        self.parts.push(part);
        self.keys.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_filter_never_denies_a_key(mut keys in prop::collection::vec(any::<u64>(), 0..300), per in 1usize..100) {
            keys.sort_unstable();
            let mut builder = FilterBuilder::new(keys.len() as u64, per);
            for key in &keys {
                builder.push(*key).unwrap();
            }
            let filters = builder.finish().unwrap();
            let mut bytes = Vec::new();
            filters.write(|piece| { bytes.extend_from_slice(piece); Ok::<_, ()>(()) }).unwrap();
            let read = Filters::read(filters.bits(), &bytes).unwrap();
            for key in &keys {
                prop_assert!(filters.may_contain(*key) && read.may_contain(*key));
            }
        }

        #[test]
        fn arbitrary_bytes_are_refused_or_safe(bits in 0u32..4, bytes in prop::collection::vec(any::<u8>(), 0..200), key: u64) {
            if let Ok(filters) = Filters::read(bits, &bytes) {
                filters.may_contain(key);
            }
        }
    }
}
