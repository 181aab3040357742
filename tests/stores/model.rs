//! Whatever is sent in whatever order, the store says what a simple model says, also after it was opened again.

use crate::{
    harness::Event,
    subject::{Opened, Subject},
};
use oncelog::{
    event::{Instant, Outcome, Seq},
    store::{Frontier, Order, Placed, Query, TopicFilter, TopicStatus, Totals},
};
use proptest::{
    prelude::*,
    sample::Index,
    test_runner::{Config, TestRunner},
};
use std::collections::BTreeMap;

const MAX_TOPICS: usize = 4;

#[derive(Clone, Debug)]
enum Step {
    Commit(Vec<Vec<Event>>),
    Reopen {
        tidily: bool,
    },
    /// From the end that comes first, or from an event.
    Read(Query, Option<Index>),
}

fn topic(number: u8) -> String {
    format!("topic {number}")
}

fn events() -> impl Strategy<Value = Event> {
    // Topics 0 to 3 are common; 4 and 5 come late and find the store full of topics.
    let topics = prop_oneof![12 => 0..4_u8, 1 => 4..6_u8];
    (topics, 0..40, 0..2, 0..40, 0..3).prop_map(|(number, id, payload, second, source)| {
        Event::new(&topic(number), &format!("id {id}"))
            .at(&format!("2025-10-23T10:00:{second:02}.5Z"))
            .with_source(&format!("source {source}"))
            .with_payload(&format!(r#"{{"n": {payload}}}"#))
    })
}

fn instants() -> impl Strategy<Value = Option<Instant>> {
    prop::option::of((0..42_u32, prop::bool::ANY).prop_map(|(second, half)| Instant {
        seconds: 1_761_213_600 + i64::from(second),
        nanos: if half { 500_000_000 } else { 0 },
    }))
}

fn filters() -> impl Strategy<Value = TopicFilter> {
    prop_oneof![
        3 => Just(TopicFilter::all()),
        1 => prop::collection::vec(0..6_u8, 0..4).prop_map(|numbers| {
            let names: Vec<_> = numbers.into_iter().map(topic).collect();
            TopicFilter::only(move |name| names.iter().any(|shown| shown == name))
        }),
    ]
}

fn queries() -> impl Strategy<Value = Query> {
    let topics = prop::option::of((0..6_u8).prop_map(topic));
    let source = prop::option::weighted(0.3, (0..3).prop_map(|number| format!("source {number}")));
    let order = prop_oneof![Just(Order::Ascending), Just(Order::Descending)];
    (
        filters(),
        topics,
        source,
        instants(),
        instants(),
        order,
        1..12_usize,
    )
        .prop_map(|(shown, topic, source, from, to, order, limit)| Query {
            shown,
            topic,
            source,
            from,
            to,
            order,
            position: None,
            limit,
        })
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let commit = prop::collection::vec(prop::collection::vec(events(), 1..12), 1..4).prop_map(Step::Commit);
    let step = prop_oneof![
        6 => commit,
        1 => any::<bool>().prop_map(|tidily| Step::Reopen { tidily }),
        4 => (queries(), prop::option::of(any::<Index>())).prop_map(|(query, start)| Step::Read(query, start)),
    ];
    prop::collection::vec(step, 1..25)
}

/// What a store is, said in the simplest way. Which numbers it gives is its own business; that they grow is not.
#[derive(Default)]
struct Model {
    log: Vec<(Seq, Event)>,
    /// Places in the log.
    known: BTreeMap<(String, String), usize>,
    topics: BTreeMap<String, Counts>,
}

/// Accepted, duplicates, conflicts, and the numbers of the first and the newest event.
type Counts = [u64; 5];

impl Model {
    fn commit(&mut self, batch: &[Event], told: &Result<Vec<Placed>, usize>) {
        let mut new: Vec<&str> = Vec::new();
        for (place, event) in batch.iter().enumerate() {
            if !self.topics.contains_key(&event.topic) && !new.contains(&&*event.topic) {
                if self.topics.len() + new.len() == MAX_TOPICS {
                    assert_eq!(told, &Err(place));
                    return;
                }
                new.push(&event.topic);
            }
        }
        let told = told.as_ref().expect("the topics fit");
        assert_eq!(told.len(), batch.len());
        for (event, placed) in batch.iter().zip(told) {
            self.place(event, *placed);
        }
    }

    fn place(&mut self, event: &Event, told: Placed) {
        let [accepted, duplicates, conflicts, first, last] =
            self.topics.entry(event.topic.clone()).or_default();
        let outcome = if let Some(&place) = self.known.get(&event.identity()) {
            let (seq, stays) = &self.log[place];
            assert_eq!(told.seq, *seq, "where {event:?} stands");
            *duplicates += 1;
            if stays.payload == event.payload {
                Outcome::Duplicate
            } else {
                *conflicts += 1;
                Outcome::Conflict
            }
        } else {
            let before = self.log.last().map_or(0, |(seq, _)| *seq);
            assert!(told.seq > before, "numbers grow: {} after {before}", told.seq);
            self.known.insert(event.identity(), self.log.len());
            self.log.push((told.seq, event.clone()));
            *accepted += 1;
            *last = told.seq;
            if *first == 0 {
                *first = told.seq;
            }
            Outcome::Stored
        };
        assert_eq!(told.outcome, outcome, "{event:?}");
    }

    fn read(&self, query: &Query) -> Vec<Seq> {
        let wanted = |(seq, event): &&(Seq, Event)| {
            let instant = Instant::parse(&event.timestamp).unwrap();
            query.shown.shows(&event.topic)
                && query.topic.as_ref().is_none_or(|topic| *topic == event.topic)
                && query.source.as_ref().is_none_or(|source| *source == event.source)
                && query.from.is_none_or(|from| instant >= from)
                && query.to.is_none_or(|to| instant < to)
                && query.position.is_none_or(|position| match query.order {
                    Order::Ascending => *seq > position,
                    Order::Descending => *seq < position,
                })
        };
        let mut seqs: Vec<Seq> = self.log.iter().filter(wanted).map(|(seq, _)| *seq).collect();
        if query.order == Order::Descending {
            seqs.reverse();
        }
        seqs
    }

    fn check(&self, opened: &Opened) {
        let store = &opened.store;
        let newest = self.log.last().map_or(0, |(seq, _)| *seq);
        assert_eq!(store.high_watermark(), newest);
        let frontier = Frontier {
            settled: newest,
            newest,
        };
        assert_eq!(store.frontier().unwrap(), frontier);
        for shown in [TopicFilter::all(), TopicFilter::only(|name| name >= "topic 2")] {
            let expected: Vec<_> = self
                .topics
                .iter()
                .filter(|(name, _)| shown.shows(name))
                .map(|(name, counts)| (name.clone(), *counts))
                .collect();
            assert_eq!(store.totals(&shown).unwrap(), sum(&expected));
            let told = store.topics(&shown, None, 100).unwrap();
            assert_eq!(told.iter().map(counts).collect::<Vec<_>>(), expected);
            // From each topic on there is the next one.
            let pairs = told.iter().zip(told.iter().skip(1));
            for (topic, next) in pairs {
                let page = store.topics(&shown, Some(&topic.topic), 1).unwrap();
                assert_eq!(page, std::slice::from_ref(next));
            }
        }
        let mut first: Vec<_> = self
            .topics
            .iter()
            .map(|(name, counts)| (name.clone(), *counts))
            .collect();
        let totals = sum(&first);
        first.sort_by_key(|(_, [_, _, _, first, _])| *first);
        first.truncate(3);
        let (told_totals, told) = store.first_topics(3).unwrap();
        assert_eq!(told_totals, totals);
        assert_eq!(told.iter().map(counts).collect::<Vec<_>>(), first);
    }

    fn check_events(&self, opened: &Opened) {
        let find = |topic: &str, event_id: &str| opened.store.find(topic, event_id).unwrap();
        for (seq, event) in &self.log {
            let found = find(&event.topic, &event.event_id).unwrap();
            assert_eq!(found.seq, *seq);
            let found = Event {
                topic: found.topic,
                event_id: found.event_id,
                source: found.source,
                timestamp: found.timestamp,
                payload: found.payload,
            };
            assert_eq!(found, *event);
        }
        assert_eq!(find("topic 0", "never sent"), None);
        assert_eq!(find("no topic", "id 0"), None);
    }
}

fn sum(topics: &[(String, Counts)]) -> Totals {
    let sum = |place: usize| topics.iter().map(|(_, counts)| counts[place]).sum();
    Totals {
        accepted: sum(0),
        duplicates: sum(1),
        conflicts: sum(2),
        topics: topics.len() as u64,
    }
}

fn counts(topic: &TopicStatus) -> (String, Counts) {
    let counts = [
        topic.accepted,
        topic.duplicates,
        topic.conflicts,
        topic.first_seq,
        topic.last_seq,
    ];
    (topic.topic.clone(), counts)
}

fn run<S: Subject>(steps: Vec<Step>) {
    let subject = S::with_topics(MAX_TOPICS);
    let mut model = Model::default();
    let mut opened = subject.open();
    for step in steps {
        match step {
            Step::Commit(batches) => {
                let outcomes = opened.commit_all(&batches);
                for (events, told) in batches.iter().zip(&outcomes) {
                    model.commit(events, told);
                }
            }
            Step::Reopen { tidily } => {
                if tidily {
                    opened.close();
                } else {
                    drop(opened);
                }
                opened = subject.open();
            }
            Step::Read(mut query, start) => {
                if !model.log.is_empty() {
                    query.position = start.map(|start| start.get(&model.log).0);
                }
                let told: Vec<Seq> = opened.read_all(&query).iter().map(|event| event.seq).collect();
                assert_eq!(told, model.read(&query));
            }
        }
        model.check(&opened);
    }
    model.check_events(&opened);
}

fn the_store_agrees_with_a_simple_model<S: Subject>() {
    let config = Config {
        cases: S::MODEL_CASES,
        failure_persistence: None,
        ..Config::default()
    };
    // The server that the cases share goes with the last who uses it.
    let _held = S::new();
    let outcome = TestRunner::new(config).run(&steps(), |steps| {
        run::<S>(steps);
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}

on_every_store! {
    the_store_agrees_with_a_simple_model,
}
