//! What a commit is about, worked out before and after the server was asked.
//!
//! Before: which of the events are the first of their identity in this commit ([`Plan`]). After: what became of each
//! event, and what that counts ([`Plan::decide`]). Knows nothing of SQL.

use super::topics::TopicNumber;
use crate::{
    event::{Batch, Event, Fingerprint, Key, Outcome, Seq},
    store::{BatchOutcome, Placed},
};
use hashbrown::HashMap;
use std::collections::BTreeMap;

/// Where an identity stands, and the fingerprint of its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) seq: Seq,
    pub(super) fingerprint: Fingerprint,
}

/// The events of a commit.
pub(super) struct Plan<'a> {
    batches: Vec<Planned<'a>>,
    /// The largest token under which batches come for each partition of a broker.
    pub(super) fences: BTreeMap<u16, u64>,
    /// The first event of each identity, in the order sent.
    pub(super) firsts: Vec<First<'a>>,
    /// Whether an identity comes more than once.
    repeats: bool,
}

enum Planned<'a> {
    /// With the numbers of its events' topics.
    Takes(&'a Batch, Vec<TopicNumber>),
    Refused(Refused),
}

/// Why a batch takes no part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// The topic of the event at this place would be one too many.
    TooManyTopics { event: usize },
    /// Its lease has ended; the newest one of its partition has this token.
    Fenced { newest: u64 },
}

/// An event that is new, unless the store has its identity.
#[derive(Clone, Copy)]
pub(super) struct First<'a> {
    pub(super) event: Event<'a>,
    pub(super) topic: TopicNumber,
}

/// What became of a commit's events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Decided {
    pub(super) outcomes: Vec<Outcomes>,
    pub(super) counts: Counts,
}

/// As [`BatchOutcome`].
pub(super) type Outcomes = Result<Vec<Placed>, Refused>;

/// What a commit counts: arrays with an entry a topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) topics: Vec<TopicNumber>,
    pub(super) accepted: Vec<i64>,
    pub(super) duplicates: Vec<i64>,
    pub(super) conflicts: Vec<i64>,
    pub(super) first_seqs: Vec<Option<i64>>,
    pub(super) last_seqs: Vec<Option<i64>>,
}

impl<'a> Plan<'a> {
    /// Plans the commit of batches whose topics have these numbers, without those that are refused.
    pub(super) fn new(
        batches: impl IntoIterator<Item = (&'a Batch, Result<Vec<TopicNumber>, Refused>)>,
    ) -> Self {
        let mut fences = BTreeMap::new();
        let mut seen: HashMap<Key, ()> = HashMap::new();
        let mut firsts = Vec::new();
        let mut repeats = false;
        let batches = batches
            .into_iter()
            .map(|(batch, topics)| match topics {
                Ok(topics) => {
                    if let Some(fence) = batch.fence() {
                        let token = fences.entry(fence.partition).or_insert(fence.token);
                        *token = fence.token.max(*token);
                    }
                    for (event, &topic) in batch.events().zip(&topics) {
                        match seen.insert(event.key, ()) {
                            None => firsts.push(First { event, topic }),
                            Some(()) => repeats = true,
                        }
                    }
                    Planned::Takes(batch, topics)
                }
                Err(refused) => Planned::Refused(refused),
            })
            .collect();
        Self {
            batches,
            fences,
            firsts,
            repeats,
        }
    }

    /// Whether all identities are different and no lease has to be checked: then the server can do all of it in one call.
    pub(super) fn is_simple(&self) -> bool {
        !self.repeats && self.fences.is_empty()
    }

    /// Says what became of each event. `new` are the identities that were stored, `known` those that were there before;
    /// together they have every identity of `firsts`, or the result is the one that is missing.
    pub(super) fn decide(
        &self,
        new: &HashMap<Key, Seq>,
        known: &HashMap<Key, Found>,
    ) -> Result<Decided, Key> {
        let mut stored: HashMap<Key, Found> = HashMap::with_capacity(new.len());
        let mut places: HashMap<TopicNumber, usize> = HashMap::new();
        let mut counts = Counts::default();
        let mut outcomes = Vec::with_capacity(self.batches.len());
        for planned in &self.batches {
            let (batch, topics) = match planned {
                Planned::Takes(batch, topics) => (batch, topics),
                Planned::Refused(refused) => {
                    outcomes.push(Err(*refused));
                    continue;
                }
            };
            let mut placed = Vec::with_capacity(batch.len());
            for (event, &topic) in batch.events().zip(topics) {
                let place = *places.entry(topic).or_insert_with(|| counts.add(topic));
                let before = known.get(&event.key).or_else(|| stored.get(&event.key));
                placed.push(match before {
                    Some(&found) => counts.duplicate(place, found, event.fingerprint),
                    None => {
                        let &seq = new.get(&event.key).ok_or(event.key)?;
                        let fingerprint = event.fingerprint;
                        stored.insert(event.key, Found { seq, fingerprint });
                        counts.store(place, seq)
                    }
                });
            }
            outcomes.push(Ok(placed));
        }
        Ok(Decided { outcomes, counts })
    }
}

impl Counts {
    fn add(&mut self, topic: TopicNumber) -> usize {
        self.topics.push(topic);
        self.accepted.push(0);
        self.duplicates.push(0);
        self.conflicts.push(0);
        self.first_seqs.push(None);
        self.last_seqs.push(None);
        self.topics.len() - 1
    }

    fn store(&mut self, place: usize, seq: Seq) -> Placed {
        let number = Some(seq.cast_signed());
        self.accepted[place] += 1;
        self.first_seqs[place] = self.first_seqs[place].or(number);
        self.last_seqs[place] = number;
        Placed {
            outcome: Outcome::Stored,
            seq,
        }
    }

    fn duplicate(&mut self, place: usize, first: Found, fingerprint: Fingerprint) -> Placed {
        self.duplicates[place] += 1;
        let outcome = if first.fingerprint == fingerprint {
            Outcome::Duplicate
        } else {
            self.conflicts[place] += 1;
            Outcome::Conflict
        };
        Placed {
            outcome,
            seq: first.seq,
        }
    }
}

/// For those who asked.
pub(super) fn told(outcomes: Vec<Outcomes>) -> Vec<BatchOutcome> {
    outcomes
        .into_iter()
        .map(|outcome| match outcome {
            Ok(placed) => BatchOutcome::Committed(placed),
            Err(Refused::TooManyTopics { event }) => BatchOutcome::TooManyTopics { event },
            Err(Refused::Fenced { newest }) => BatchOutcome::Fenced { newest },
        })
        .collect()
}
