//! Whatever is sent in whatever order, the store says what a simple model says, also after it was opened again.

use super::{SMALL, Sent, batch};
use crate::{
    event::{Instant, Outcome, Seq},
    store::{
        BatchOutcome, Order, Placed, Query, Store, TopicFilter, TopicStatus, Totals, Writer,
        sqlite::{reader::SqliteStore, recovery, writer::SqliteWriter},
    },
};
use proptest::prelude::*;
use std::{collections::BTreeMap, path::Path, sync::Arc};

const MAX_TOPICS: usize = 4;

#[derive(Clone, Debug)]
enum Step {
    Commit(Vec<Vec<Sent>>),
    Reopen { tidily: bool },
    Read(Query),
}

fn events() -> impl Strategy<Value = Sent> {
    // Topics 0 to 3 are common; 4 and 5 come late and find the store full of topics.
    let topic = prop_oneof![12 => 0..4, 1 => 4..6];
    (topic, 0..40, 0..2, 0..40, 0..3).prop_map(|(topic, id, payload, second, source)| Sent {
        topic: format!("topic {topic}"),
        event_id: format!("id {id}"),
        timestamp: format!("2025-10-23T10:00:{second:02}.5Z"),
        source: format!("source {source}"),
        payload: format!(r#"{{"n": {payload}}}"#),
    })
}

fn instants() -> impl Strategy<Value = Option<Instant>> {
    prop::option::of((0..42_u32, prop::bool::ANY).prop_map(|(second, half)| Instant {
        seconds: 1_761_213_600 + i64::from(second),
        nanos: if half { 500_000_000 } else { 0 },
    }))
}

fn queries() -> impl Strategy<Value = Query> {
    let topic = prop::option::of((0..6).prop_map(|number| format!("topic {number}")));
    let source = prop::option::weighted(0.3, (0..3).prop_map(|number| format!("source {number}")));
    let order = prop_oneof![Just(Order::Ascending), Just(Order::Descending)];
    (topic, source, instants(), instants(), order, 1..12_usize).prop_map(
        |(topic, source, from, to, order, limit)| Query {
            shown: TopicFilter::all(),
            topic,
            source,
            from,
            to,
            order,
            position: None,
            limit,
        },
    )
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let commit = prop::collection::vec(prop::collection::vec(events(), 1..12), 1..4).prop_map(Step::Commit);
    let step = prop_oneof![
        6 => commit,
        1 => any::<bool>().prop_map(|tidily| Step::Reopen { tidily }),
        4 => queries().prop_map(Step::Read),
    ];
    prop::collection::vec(step, 1..25)
}

#[derive(Default)]
struct Model {
    log: Vec<Sent>,
    known: BTreeMap<(String, String), Seq>,
    topics: BTreeMap<String, [u64; 5]>,
}

impl Model {
    fn commit(&mut self, batch: &[Sent]) -> Result<Vec<Placed>, usize> {
        let mut new: Vec<&str> = Vec::new();
        for (place, event) in batch.iter().enumerate() {
            if !self.topics.contains_key(&event.topic) && !new.contains(&&*event.topic) {
                if self.topics.len() + new.len() == MAX_TOPICS {
                    return Err(place);
                }
                new.push(&event.topic);
            }
        }
        Ok(batch.iter().map(|event| self.place(event)).collect())
    }

    fn place(&mut self, event: &Sent) -> Placed {
        let identity = (event.topic.clone(), event.event_id.clone());
        let next = self.log.len() as u64 + 1;
        let seq = *self.known.entry(identity).or_insert(next);
        let [accepted, duplicates, conflicts, first, last] =
            self.topics.entry(event.topic.clone()).or_default();
        let outcome = if seq == next {
            self.log.push(event.clone());
            *accepted += 1;
            *last = seq;
            if *first == 0 {
                *first = seq;
            }
            Outcome::Stored
        } else {
            *duplicates += 1;
            if self.log[seq as usize - 1].payload == event.payload {
                Outcome::Duplicate
            } else {
                *conflicts += 1;
                Outcome::Conflict
            }
        };
        Placed { outcome, seq }
    }

    fn read(&self, query: &Query) -> Vec<Seq> {
        let wanted = |event: &Sent| {
            let instant = Instant::parse(&event.timestamp).unwrap();
            query.topic.as_ref().is_none_or(|topic| *topic == event.topic)
                && query.source.as_ref().is_none_or(|source| *source == event.source)
                && query.from.is_none_or(|from| instant >= from)
                && query.to.is_none_or(|to| instant < to)
        };
        let mut seqs: Vec<Seq> = (1..)
            .zip(&self.log)
            .filter(|(_, event)| wanted(event))
            .map(|(seq, _)| seq)
            .collect();
        if query.order == Order::Descending {
            seqs.reverse();
        }
        seqs
    }

    fn check(&self, store: &SqliteStore) {
        assert_eq!(store.high_watermark(), self.log.len() as u64);
        let sum = |place: usize| self.topics.values().map(|counts| counts[place]).sum();
        let totals = Totals {
            accepted: sum(0),
            duplicates: sum(1),
            conflicts: sum(2),
            topics: self.topics.len() as u64,
        };
        assert_eq!(store.totals(&TopicFilter::all()).unwrap(), totals);
        let told: Vec<_> = store
            .topics(&TopicFilter::all(), None, 100)
            .unwrap()
            .iter()
            .map(counts)
            .collect();
        let expected: Vec<_> = self
            .topics
            .iter()
            .map(|(name, counts)| (name.clone(), *counts))
            .collect();
        assert_eq!(told, expected);
    }
}

fn counts(topic: &TopicStatus) -> (String, [u64; 5]) {
    let counts = [
        topic.accepted,
        topic.duplicates,
        topic.conflicts,
        topic.first_seq,
        topic.last_seq,
    ];
    (topic.topic.clone(), counts)
}

fn open(path: &Path) -> (SqliteWriter, SqliteStore) {
    recovery::open(path, Arc::new(|| {}), SMALL, MAX_TOPICS).unwrap()
}

/// Follows a query page by page to its end.
fn read_all(store: &SqliteStore, query: &Query) -> Vec<Seq> {
    let mut query = query.clone();
    let mut seqs = Vec::new();
    loop {
        let page = store.page(&query).unwrap();
        assert!(page.events.len() <= query.limit);
        seqs.extend(page.events.iter().map(|event| event.seq));
        if page.exhausted {
            return seqs;
        }
        assert_ne!(query.position, Some(page.position), "a page must get on");
        query.position = Some(page.position);
    }
}

fn check_events(store: &SqliteStore, model: &Model) {
    for (seq, event) in (1..).zip(&model.log) {
        let found = store.find(&event.topic, &event.event_id).unwrap().unwrap();
        assert_eq!(
            (
                found.seq,
                found.topic,
                found.event_id,
                found.timestamp,
                found.source,
                found.payload
            ),
            (
                seq,
                event.topic.clone(),
                event.event_id.clone(),
                event.timestamp.clone(),
                event.source.clone(),
                event.payload.clone()
            )
        );
    }
    assert_eq!(store.find("topic 0", "never sent").unwrap(), None);
    assert_eq!(store.find("no topic", "id 0").unwrap(), None);
}

fn run(steps: Vec<Step>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let mut model = Model::default();
    let (mut writer, mut store) = open(&path);
    for step in steps {
        match step {
            Step::Commit(batches) => {
                let parsed: Vec<_> = batches
                    .iter()
                    .map(|events| batch(&store.identity(), events))
                    .collect();
                let outcomes = writer.commit(&parsed.iter().collect::<Vec<_>>()).unwrap();
                writer.maintain().unwrap();
                for (outcome, events) in outcomes.into_iter().zip(&batches) {
                    let told = match outcome {
                        BatchOutcome::Committed(placed) => Ok(placed),
                        BatchOutcome::TooManyTopics { event } => Err(event),
                    };
                    assert_eq!(told, model.commit(events));
                }
            }
            Step::Reopen { tidily } => {
                if tidily {
                    Box::new(writer).close().unwrap();
                } else {
                    drop(writer);
                }
                drop(store);
                (writer, store) = open(&path);
            }
            Step::Read(query) => assert_eq!(read_all(&store, &query), model.read(&query)),
        }
        model.check(&store);
    }
    check_events(&store, &model);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn the_store_agrees_with_a_simple_model(steps in steps()) {
        run(steps);
    }
}
