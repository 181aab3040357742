//! The model: what a store promises, in a list and a map.

use super::action::{Draft, Filter};
use std::collections::{BTreeMap, HashMap};

/// What became of an event that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Stored,
    Duplicate,
    Conflict,
}

/// A stored event.
pub(super) struct Row {
    pub(super) seq: u64,
    pub(super) draft: Draft,
    /// What the server said first; it never says anything else.
    pub(super) processed_at: Option<String>,
}

/// A topic's counts.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) accepted: u64,
    pub(super) duplicates: u64,
    pub(super) conflicts: u64,
    pub(super) first: u64,
    pub(super) last: u64,
}

#[derive(Default)]
pub(super) struct Memory {
    /// The event with seq N stands at N - 1.
    rows: Vec<Row>,
    seqs: HashMap<(String, String), u64>,
    /// In the byte order of their names.
    pub(super) topics: BTreeMap<String, Counts>,
}

impl Memory {
    /// Stores what is new; says of each event what became of it and where it stands.
    pub(super) fn publish(&mut self, events: &[Draft]) -> Vec<(Outcome, u64)> {
        events.iter().map(|event| self.publish_one(event)).collect()
    }

    fn publish_one(&mut self, event: &Draft) -> (Outcome, u64) {
        let counts = self.topics.entry(event.topic.clone()).or_default();
        if let Some(&seq) = self.seqs.get(&event.identity()) {
            counts.duplicates += 1;
            let first = &self.rows[seq as usize - 1].draft;
            if first.value == event.value {
                return (Outcome::Duplicate, seq);
            }
            counts.conflicts += 1;
            return (Outcome::Conflict, seq);
        }
        let seq = self.rows.len() as u64 + 1;
        counts.accepted += 1;
        counts.last = seq;
        if counts.first == 0 {
            counts.first = seq;
        }
        self.seqs.insert(event.identity(), seq);
        self.rows.push(Row {
            seq,
            draft: event.clone(),
            processed_at: None,
        });
        (Outcome::Stored, seq)
    }

    /// The newest seq; 0 when there is none.
    pub(super) fn newest(&self) -> u64 {
        self.rows.len() as u64
    }

    pub(super) fn row(&mut self, seq: u64) -> &mut Row {
        &mut self.rows[seq as usize - 1]
    }

    pub(super) fn find(&self, topic: &str, event_id: &str) -> Option<u64> {
        self.seqs.get(&(topic.to_owned(), event_id.to_owned())).copied()
    }

    /// The seqs of the events that a query wants, in ascending order.
    pub(super) fn wanted(&self, filter: &Filter) -> Vec<u64> {
        self.rows
            .iter()
            .filter(|row| {
                let event = &row.draft;
                filter.topic.is_none_or(|topic| topic == event.topic)
                    && filter.source.is_none_or(|source| source == event.source)
                    && filter
                        .from
                        .as_ref()
                        .is_none_or(|from| from.nanos <= event.time.nanos)
                    && filter.to.as_ref().is_none_or(|to| event.time.nanos < to.nanos)
            })
            .map(|row| row.seq)
            .collect()
    }

    /// Received, unique, duplicates, conflicts.
    pub(super) fn totals(&self) -> [u64; 4] {
        let sum = |of: fn(&Counts) -> u64| self.topics.values().map(of).sum::<u64>();
        let (unique, duplicates) = (sum(|counts| counts.accepted), sum(|counts| counts.duplicates));
        [
            unique + duplicates,
            unique,
            duplicates,
            sum(|counts| counts.conflicts),
        ]
    }
}
