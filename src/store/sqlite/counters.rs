//! The exact counters, per topic and over all, and how they are stored.
//!
//! What a commit changed is appended as one small *delta*; from time to time all deltas are folded into one
//! *snapshot*. So a commit writes a few bytes at the end of a table whatever it touched, and a start reads one
//! snapshot and a bounded number of deltas. Both carry a checksum seeded with their row's id.
//!
//! All numbers are LEB128 varints. A delta is: time of the commit in microseconds; highest seq after it; number of
//! topics; for each its number, accepted, duplicates, conflicts, and, if anything was accepted, how far its first and
//! its last event of this commit are below the highest seq. A snapshot is: time of the last commit; highest seq;
//! number of topics; for each, in the order of their numbers, accepted, duplicates, conflicts, first seq, time of the
//! first, last seq, time of the last. Then the XXH3 checksum of all that in 8 bytes, little-endian.

use crate::{
    event::Seq,
    index::TopicNumber,
    store::{TopicFilter, TopicStatus, Totals},
};
use hashbrown::{DefaultHashBuilder, HashTable};
use std::{collections::BTreeMap, hash::BuildHasher as _, ops::Bound, sync::Arc};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// A topic's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counters {
    pub(super) accepted: u64,
    pub(super) duplicates: u64,
    pub(super) conflicts: u64,
    pub(super) first_seq: Seq,
    pub(super) first_processed_at: i64,
    pub(super) last_seq: Seq,
    pub(super) last_processed_at: i64,
}

/// What a commit changed for one topic. `first_seq` and `last_seq` mean something only if anything was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TopicDelta {
    pub(super) topic: TopicNumber,
    pub(super) accepted: u64,
    pub(super) duplicates: u64,
    pub(super) conflicts: u64,
    pub(super) first_seq: Seq,
    pub(super) last_seq: Seq,
}

/// What a commit changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Delta {
    pub(super) processed_at: i64,
    pub(super) highest_seq: Seq,
    pub(super) topics: Vec<TopicDelta>,
}

/// A stored delta or snapshot that cannot be true.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the counters are damaged: {0}")]
pub(super) struct CountersError(pub(super) String);

impl Delta {
    /// The bytes stored in row `id`.
    pub(super) fn encode(&self, id: i64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(32 + 12 * self.topics.len());
        put(&mut bytes, self.processed_at.cast_unsigned());
        put(&mut bytes, self.highest_seq);
        put(&mut bytes, self.topics.len() as u64);
        for topic in &self.topics {
            put(&mut bytes, u64::from(topic.topic));
            put(&mut bytes, topic.accepted);
            put(&mut bytes, topic.duplicates);
            put(&mut bytes, topic.conflicts);
            if topic.accepted > 0 {
                put(&mut bytes, self.highest_seq - topic.first_seq);
                put(&mut bytes, self.highest_seq - topic.last_seq);
            }
        }
        seal(&mut bytes, id);
        bytes
    }

    /// Reads back what [`Delta::encode`] made for the same row.
    pub(super) fn decode(bytes: &[u8], id: i64) -> Result<Self, CountersError> {
        let mut reader = Reader::open(bytes, id, "delta")?;
        let processed_at = reader.number()?.cast_signed();
        let highest_seq = reader.number()?;
        let count = reader.number()?;
        let mut topics = Vec::new();
        for _ in 0..count {
            let topic = reader.topic()?;
            let (accepted, duplicates, conflicts) = (reader.number()?, reader.number()?, reader.number()?);
            let (first_seq, last_seq) = if accepted > 0 {
                (reader.below(highest_seq)?, reader.below(highest_seq)?)
            } else {
                (0, 0)
            };
            topics.push(TopicDelta {
                topic,
                accepted,
                duplicates,
                conflicts,
                first_seq,
                last_seq,
            });
        }
        reader.end()?;
        Ok(Self {
            processed_at,
            highest_seq,
            topics,
        })
    }
}

/// All topics and counters of a store, in memory.
#[derive(Debug, Default)]
pub(super) struct TopicTable {
    /// By number.
    topics: Vec<(Arc<str>, Counters)>,
    /// Numbers by the hash of the name.
    by_name: HashTable<TopicNumber>,
    hasher: DefaultHashBuilder,
    sorted: BTreeMap<Arc<str>, TopicNumber>,
    totals: Totals,
    highest_seq: Seq,
    last_processed_at: i64,
}

impl TopicTable {
    /// How many topics there are.
    pub(super) fn len(&self) -> usize {
        self.topics.len()
    }

    /// The number of a topic.
    pub(super) fn number(&self, name: &str) -> Option<TopicNumber> {
        self.by_name
            .find(self.hasher.hash_one(name), |&number| {
                self.topics
                    .get(number as usize)
                    .is_some_and(|(known, _)| &**known == name)
            })
            .copied()
    }

    /// The name of a topic.
    pub(super) fn name(&self, number: TopicNumber) -> Option<&Arc<str>> {
        self.topics.get(number as usize).map(|(name, _)| name)
    }

    /// All counters, by number.
    pub(super) fn counters(&self) -> impl Iterator<Item = &Counters> {
        self.topics.iter().map(|(_, counters)| counters)
    }

    /// All names, by number.
    pub(super) fn names(&self) -> Vec<Arc<str>> {
        self.topics.iter().map(|(name, _)| name.clone()).collect()
    }

    /// All topics with their counters, by number.
    pub(super) fn all(&self) -> Vec<TopicStatus> {
        self.topics
            .iter()
            .map(|(name, counters)| status(name, counters))
            .collect()
    }

    /// Adds a topic, which gets the next number. Returns whether the name is new.
    pub(super) fn add(&mut self, name: &str) -> bool {
        if self.number(name).is_some() {
            return false;
        }
        let Ok(number) = TopicNumber::try_from(self.topics.len()) else {
            return false;
        };
        let name: Arc<str> = name.into();
        let hash = self.hasher.hash_one(&*name);
        self.topics.push((name.clone(), Counters::default()));
        let Self {
            topics,
            by_name,
            hasher,
            ..
        } = self;
        by_name.insert_unique(hash, number, |&other| {
            topics
                .get(other as usize)
                .map_or(0, |(name, _)| hasher.hash_one(&**name))
        });
        self.sorted.insert(name, number);
        true
    }

    /// Counts what a commit changed.
    pub(super) fn apply(&mut self, delta: &Delta) -> Result<(), CountersError> {
        for change in &delta.topics {
            let Some((_, counters)) = self.topics.get_mut(change.topic as usize) else {
                return Err(CountersError(format!(
                    "they count topic {}, which is unknown",
                    change.topic
                )));
            };
            if change.accepted > 0 {
                if counters.accepted == 0 {
                    counters.first_seq = change.first_seq;
                    counters.first_processed_at = delta.processed_at;
                    self.totals.topics += 1;
                }
                counters.last_seq = change.last_seq;
                counters.last_processed_at = delta.processed_at;
            }
            counters.accepted += change.accepted;
            counters.duplicates += change.duplicates;
            counters.conflicts += change.conflicts;
            self.totals.accepted += change.accepted;
            self.totals.duplicates += change.duplicates;
            self.totals.conflicts += change.conflicts;
        }
        self.highest_seq = delta.highest_seq;
        self.last_processed_at = delta.processed_at;
        Ok(())
    }

    /// All counters as the bytes of snapshot row `id`.
    pub(super) fn encode_snapshot(&self, id: i64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(32 + 32 * self.topics.len());
        put(&mut bytes, self.last_processed_at.cast_unsigned());
        put(&mut bytes, self.highest_seq);
        put(&mut bytes, self.topics.len() as u64);
        for (_, counters) in &self.topics {
            put(&mut bytes, counters.accepted);
            put(&mut bytes, counters.duplicates);
            put(&mut bytes, counters.conflicts);
            put(&mut bytes, counters.first_seq);
            put(&mut bytes, counters.first_processed_at.cast_unsigned());
            put(&mut bytes, counters.last_seq);
            put(&mut bytes, counters.last_processed_at.cast_unsigned());
        }
        seal(&mut bytes, id);
        bytes
    }

    /// Sets all counters to those of a snapshot. The table has the topics of the snapshot already, and maybe more that
    /// came after it.
    pub(super) fn load_snapshot(&mut self, bytes: &[u8], id: i64) -> Result<(), CountersError> {
        let mut reader = Reader::open(bytes, id, "snapshot")?;
        self.last_processed_at = reader.number()?.cast_signed();
        self.highest_seq = reader.number()?;
        let count = reader.number()?;
        if count > self.topics.len() as u64 {
            return Err(CountersError(format!(
                "they count {count} topics, but only {} are known",
                self.topics.len()
            )));
        }
        self.totals = Totals::default();
        for (_, counters) in self
            .topics
            .iter_mut()
            .take(usize::try_from(count).unwrap_or(usize::MAX))
        {
            *counters = Counters {
                accepted: reader.number()?,
                duplicates: reader.number()?,
                conflicts: reader.number()?,
                first_seq: reader.number()?,
                first_processed_at: reader.number()?.cast_signed(),
                last_seq: reader.number()?,
                last_processed_at: reader.number()?.cast_signed(),
            };
            self.totals.accepted += counters.accepted;
            self.totals.duplicates += counters.duplicates;
            self.totals.conflicts += counters.conflicts;
            self.totals.topics += u64::from(counters.accepted > 0);
        }
        reader.end()
    }

    /// The exact counters over all topics.
    pub(super) fn totals(&self) -> Totals {
        self.totals
    }

    /// The highest seq ever given.
    pub(super) fn highest_seq(&self) -> Seq {
        self.highest_seq
    }

    /// When the last commit was, in microseconds since 1970 UTC.
    pub(super) fn last_processed_at(&self) -> i64 {
        self.last_processed_at
    }

    /// The exact counters over these topics.
    pub(super) fn totals_of(&self, shown: &TopicFilter) -> Totals {
        if shown.is_all() {
            return self.totals;
        }
        let of_shown = self
            .topics
            .iter()
            .filter(|(name, counters)| counters.accepted > 0 && shown.shows(name));
        of_shown.fold(Totals::default(), |sum, (_, counters)| Totals {
            accepted: sum.accepted + counters.accepted,
            duplicates: sum.duplicates + counters.duplicates,
            conflicts: sum.conflicts + counters.conflicts,
            topics: sum.topics + 1,
        })
    }

    /// Up to `limit` of these topics in the byte order of their names, from the first one after `after`.
    pub(super) fn list(&self, shown: &TopicFilter, after: Option<&str>, limit: usize) -> Vec<TopicStatus> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.sorted
            .range::<str, _>((start, Bound::Unbounded))
            .filter_map(|(_, &number)| self.topics.get(number as usize))
            // A new topic has its name before its first event is counted.
            .filter(|(name, counters)| counters.accepted > 0 && shown.shows(name))
            .take(limit)
            .map(|(name, counters)| status(name, counters))
            .collect()
    }

    /// Up to `limit` topics in the order in which they came.
    pub(super) fn first(&self, limit: usize) -> Vec<TopicStatus> {
        self.topics
            .iter()
            .take(limit)
            .filter(|(_, counters)| counters.accepted > 0)
            .map(|(name, counters)| status(name, counters))
            .collect()
    }
}

fn status(name: &str, counters: &Counters) -> TopicStatus {
    TopicStatus {
        topic: name.to_owned(),
        accepted: counters.accepted,
        duplicates: counters.duplicates,
        conflicts: counters.conflicts,
        first_seq: counters.first_seq,
        first_processed_at: counters.first_processed_at,
        last_seq: counters.last_seq,
        last_processed_at: counters.last_processed_at,
    }
}

/// Appends a LEB128 varint.
fn put(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    bytes.push(number.to_le_bytes()[0]);
}

/// Appends the checksum.
fn seal(bytes: &mut Vec<u8>, id: i64) {
    let checksum = xxh3_64_with_seed(bytes, id.cast_unsigned());
    bytes.extend_from_slice(&checksum.to_le_bytes());
}

/// Reads what [`put`] and [`seal`] made.
struct Reader<'a> {
    bytes: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    fn open(bytes: &'a [u8], id: i64, what: &'static str) -> Result<Self, CountersError> {
        bytes
            .split_last_chunk::<8>()
            .filter(|(body, checksum)| {
                xxh3_64_with_seed(body, id.cast_unsigned()) == u64::from_le_bytes(**checksum)
            })
            .map(|(bytes, _)| Self { bytes, what })
            .ok_or_else(|| CountersError(format!("the checksum of {what} {id} is wrong")))
    }

    fn number(&mut self) -> Result<u64, CountersError> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self
                .bytes
                .split_first()
                .ok_or_else(|| CountersError(format!("a {} is cut short", self.what)))?;
            self.bytes = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(CountersError(format!("a number in a {} is too long", self.what)))
    }

    fn topic(&mut self) -> Result<TopicNumber, CountersError> {
        TopicNumber::try_from(self.number()?)
            .map_err(|_| CountersError(format!("a topic in a {} has too large a number", self.what)))
    }

    fn below(&mut self, highest: Seq) -> Result<Seq, CountersError> {
        highest
            .checked_sub(self.number()?)
            .ok_or_else(|| CountersError(format!("a {} names an event before the first", self.what)))
    }

    fn end(&self) -> Result<(), CountersError> {
        if self.bytes.is_empty() {
            Ok(())
        } else {
            Err(CountersError(format!("a {} is too long", self.what)))
        }
    }
}
