//! What becomes of each event of a commit: decided in memory before anything is written.
//!
//! The authoritative check for duplicates. It knows what the index has, and remembers what the commit itself adds, so
//! that the first of several equal identities in one commit wins.

use super::counters::{TopicDelta, TopicTable};
use crate::{
    event::{Batch, Event, Outcome, Seq},
    index::{Entry, Found, TopicNumber},
    store::{BatchOutcome, Fences, Placed},
};
use hashbrown::{HashMap, HashTable};

/// What a commit will do.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    /// One a batch.
    pub(super) outcomes: Vec<BatchOutcome>,
    /// The new events, in the order of their seqs.
    pub(super) entries: Vec<Entry>,
    /// The new topics, in the order of their numbers.
    pub(super) new_topics: Vec<&'a str>,
    /// What is counted, one a topic.
    pub(super) counts: Vec<TopicDelta>,
}

/// Decides a commit. `found` says for each event of all batches what the index has; `highest` is the last seq given.
pub(super) fn decide<'a>(
    batches: &[&'a Batch],
    found: &[Option<Found>],
    topics: &TopicTable,
    fences: &mut Fences,
    highest: Seq,
    max_topics: usize,
) -> Plan<'a> {
    let mut decider = Decider {
        topics,
        max_topics,
        highest,
        new_numbers: HashMap::new(),
        places: HashTable::with_capacity(found.iter().filter(|found| found.is_none()).count()),
        slots: HashMap::new(),
        plan: Plan {
            outcomes: Vec::with_capacity(batches.len()),
            entries: Vec::with_capacity(found.len()),
            new_topics: Vec::new(),
            counts: Vec::new(),
        },
    };
    let mut found = found;
    let mut numbers = Vec::new();
    for batch in batches {
        let (of_batch, rest) = found.split_at(batch.len());
        found = rest;
        if let Err(newest) = fences.admit(batch.fence()) {
            decider.plan.outcomes.push(BatchOutcome::Fenced { newest });
            continue;
        }
        let outcome = match decider.number_topics(batch, &mut numbers) {
            Ok(()) => BatchOutcome::Committed(
                batch
                    .events()
                    .zip(&numbers)
                    .zip(of_batch)
                    .map(|((event, &topic), &found)| decider.place(&event, topic, found))
                    .collect(),
            ),
            Err(event) => BatchOutcome::TooManyTopics { event },
        };
        decider.plan.outcomes.push(outcome);
    }
    decider.plan
}

struct Decider<'a, 't> {
    topics: &'t TopicTable,
    max_topics: usize,
    highest: Seq,
    /// The numbers of the new topics.
    new_numbers: HashMap<&'a str, TopicNumber>,
    /// Places in the plan's entries by key.
    places: HashTable<usize>,
    /// Places in the plan's counts by topic.
    slots: HashMap<TopicNumber, usize>,
    plan: Plan<'a>,
}

impl<'a> Decider<'a, '_> {
    /// Finds the number of each event's topic, or the event whose topic would be one too many; then none of the
    /// batch's topics is new.
    fn number_topics(&mut self, batch: &'a Batch, numbers: &mut Vec<TopicNumber>) -> Result<(), usize> {
        let before = self.plan.new_topics.len();
        numbers.clear();
        for (place, event) in batch.events().enumerate() {
            let known = self
                .topics
                .number(event.topic)
                .or_else(|| self.new_numbers.get(event.topic).copied());
            let number = known.or_else(|| self.add_topic(event.topic));
            let Some(number) = number else {
                for name in self.plan.new_topics.drain(before..) {
                    self.new_numbers.remove(name);
                }
                return Err(place);
            };
            numbers.push(number);
        }
        Ok(())
    }

    fn add_topic(&mut self, name: &'a str) -> Option<TopicNumber> {
        let number = self.topics.len() + self.plan.new_topics.len();
        if number >= self.max_topics {
            return None;
        }
        let number = TopicNumber::try_from(number).ok()?;
        self.plan.new_topics.push(name);
        self.new_numbers.insert(name, number);
        Some(number)
    }

    fn place(&mut self, event: &Event<'_>, topic: TopicNumber, found: Option<Found>) -> Placed {
        let Plan { entries, counts, .. } = &mut self.plan;
        let slot = *self.slots.entry(topic).or_insert_with(|| {
            counts.push(TopicDelta {
                topic,
                accepted: 0,
                duplicates: 0,
                conflicts: 0,
                first_seq: 0,
                last_seq: 0,
            });
            counts.len() - 1
        });
        let count = &mut counts[slot];
        let first = found.or_else(|| {
            // The keys are hashes already.
            self.places
                .find(event.key.high, |&place| entries[place].key == event.key)
                .map(|&place| Found {
                    seq: self.highest + 1 + place as u64,
                    fingerprint: entries[place].fingerprint,
                })
        });
        if let Some(Found { seq, fingerprint }) = first {
            count.duplicates += 1;
            let outcome = if fingerprint == event.fingerprint {
                Outcome::Duplicate
            } else {
                count.conflicts += 1;
                Outcome::Conflict
            };
            return Placed { outcome, seq };
        }
        let place = entries.len();
        let seq = self.highest + 1 + place as u64;
        entries.push(Entry {
            key: event.key,
            fingerprint: event.fingerprint,
            topic,
            seconds: event.seconds,
        });
        self.places
            .insert_unique(event.key.high, place, |&place| entries[place].key.high);
        if count.accepted == 0 {
            count.first_seq = seq;
        }
        count.accepted += 1;
        count.last_seq = seq;
        Placed {
            outcome: Outcome::Stored,
            seq,
        }
    }
}
