//! The index of the newest events, in memory; never saved, rebuilt from the log.
//!
//! It takes events until it is full, is frozen then, and is written as a segment in the background. Events are kept in
//! the order of the log, with a hash table of their places beside them: a probe for an id that is not there touches
//! the table's control bytes only, and no entry is ever moved.

use super::{Direction, Entry, Found, IndexError, SegmentName, TimeBlock, TopicNumber, format::IdRecord};
use crate::event::{Fingerprint, Key, Seq};
use hashbrown::HashTable;

/// The index of the events from `first` on.
#[derive(Debug)]
pub(super) struct Tail {
    first: Seq,
    ids: Vec<(Key, Fingerprint)>,
    places: HashTable<u32>,
    /// For each topic number, the offsets of its events.
    topics: Vec<Vec<u32>>,
    /// For each block of events, the smallest and largest time.
    times: Vec<(i64, i64)>,
    time_block_events: u64,
}

impl Tail {
    /// An empty tail with room for `events` events, so that the table never grows.
    pub(super) fn new(first: Seq, events: usize, time_block_events: u64) -> Self {
        Self {
            first,
            ids: Vec::with_capacity(events),
            places: HashTable::with_capacity(events),
            topics: Vec::new(),
            times: Vec::with_capacity(events.div_ceil(time_block_events as usize)),
            time_block_events,
        }
    }

    pub(super) fn first(&self) -> Seq {
        self.first
    }

    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    /// The seq behind the last event.
    pub(super) fn end(&self) -> Seq {
        self.first + self.ids.len() as u64
    }

    /// Adds the next event of the log.
    pub(super) fn append(&mut self, entry: &Entry) {
        let offset = self.ids.len() as u32;
        self.ids.push((entry.key, entry.fingerprint));
        let ids = &self.ids;
        self.places
            .insert_unique(entry.key.high, offset, |place| ids[*place as usize].0.high);
        let topic = entry.topic as usize;
        if topic >= self.topics.len() {
            self.topics.resize_with(topic + 1, Vec::new);
        }
        self.topics[topic].push(offset);
        if u64::from(offset).is_multiple_of(self.time_block_events) {
            self.times.push((entry.seconds, entry.seconds));
        } else if let Some((min, max)) = self.times.last_mut() {
            *min = entry.seconds.min(*min);
            *max = entry.seconds.max(*max);
        }
    }

    #[inline]
    pub(super) fn find(&self, key: Key) -> Option<Found> {
        let place = *self
            .places
            .find(key.high, |place| self.ids[*place as usize].0 == key)?;
        Some(Found {
            seq: self.first + u64::from(place),
            fingerprint: self.ids[place as usize].1,
        })
    }

    /// Adds up to `limit` seqs of a topic to `found`, from the first one beyond `position` on.
    pub(super) fn topic_seqs(
        &self,
        topic: TopicNumber,
        direction: Direction,
        position: Seq,
        limit: usize,
        found: &mut Vec<Seq>,
    ) {
        let Some(offsets) = self.topics.get(topic as usize) else {
            return;
        };
        let seq = |offset: &u32| self.first + u64::from(*offset);
        match direction {
            Direction::Up => {
                let start = offsets.partition_point(|offset| seq(offset) <= position);
                found.extend(offsets[start..].iter().take(limit).map(seq));
            }
            Direction::Down => {
                let end = offsets.partition_point(|offset| seq(offset) < position);
                found.extend(offsets[..end].iter().rev().take(limit).map(seq));
            }
        }
    }

    /// The block of events around `seq`; `None` if it is not in here.
    pub(super) fn times_of(&self, seq: Seq) -> Option<TimeBlock> {
        let block = seq.checked_sub(self.first)? / self.time_block_events;
        let (min, max) = *self.times.get(block as usize)?;
        let first = self.first + block * self.time_block_events;
        let last = (first + self.time_block_events).min(self.end()) - 1;
        (seq <= last).then_some(TimeBlock {
            first,
            last,
            min,
            max,
        })
    }

    /// The segment that this tail becomes.
    pub(super) fn segment_name(&self, number: u64) -> SegmentName {
        SegmentName {
            number,
            first: self.first,
            last: self.end() - 1,
        }
    }

    /// All ids in the order of their keys.
    pub(super) fn sorted_ids(&self) -> impl Iterator<Item = Result<IdRecord, IndexError>> + use<> {
        let mut ids: Vec<IdRecord> = self
            .ids
            .iter()
            .enumerate()
            .map(|(offset, (key, fingerprint))| IdRecord {
                key: *key,
                offset: offset as u32,
                fingerprint: fingerprint.0,
            })
            .collect();
        ids.sort_unstable_by_key(|id| id.key);
        ids.into_iter().map(Ok)
    }

    /// All postings by topic, then offset.
    pub(super) fn postings(&self) -> impl Iterator<Item = Result<(TopicNumber, u32), IndexError>> + use<'_> {
        self.topics
            .iter()
            .enumerate()
            .flat_map(|(topic, offsets)| offsets.iter().map(move |offset| Ok((topic as u32, *offset))))
    }

    /// Smallest and largest time of each block of events, in order.
    pub(super) fn times(&self) -> impl Iterator<Item = Result<(i64, i64), IndexError>> + use<'_> {
        self.times.iter().copied().map(Ok)
    }
}
