//! What a batch comes to: which event of an identity stays, what counts as what, and what is refused.

use crate::{harness::Event, subject::Subject};
use oncelog::{
    event::Outcome::{Conflict, Duplicate, Stored},
    store::{TopicFilter, Totals},
};

on_every_store! {
    the_first_of_an_identity_stays_and_later_ones_are_told_apart,
    a_batch_with_too_many_topics_is_refused_as_a_whole_and_alone,
    a_batch_of_duplicates_counts_for_its_topics,
    a_large_batch_is_stored_in_the_order_sent,
}

fn the_first_of_an_identity_stays_and_later_ones_are_told_apart<S: Subject>() {
    let subject = S::new();
    let mut opened = subject.open();
    let event = |payload: &str| Event::new("topic", "id").with_payload(payload);
    // In one batch, with two batches more in the same commit.
    let batches = [
        vec![
            event(r#"{"n":1}"#),
            event(r#"{"n":2}"#),
            event(r#"{ "n" : 1.0 }"#),
        ],
        vec![event(r#"{"n":2}"#), Event::new("topic", "another")],
        vec![event(r#"{"n":1}"#), Event::new("topic", "another")],
    ];
    let outcomes = opened.commit_all(&batches);
    let outcomes: Vec<_> = outcomes.into_iter().flat_map(Result::unwrap).collect();
    let told: Vec<_> = outcomes.iter().map(|placed| placed.outcome).collect();
    assert_eq!(
        told,
        [
            Stored, Conflict, Duplicate, Conflict, Stored, Duplicate, Duplicate
        ]
    );
    let first = outcomes[0].seq;
    for place in [1, 2, 3, 5] {
        assert_eq!(outcomes[place].seq, first);
    }
    assert_eq!(outcomes[6].seq, outcomes[4].seq);
    // And in a later commit.
    let later = opened.commit(&[event(r#"{"n":3}"#), event(r#"{"n":1e0}"#)]);
    let told: Vec<_> = later.iter().map(|placed| placed.outcome).collect();
    assert_eq!(told, [Conflict, Duplicate]);
    assert!(later.iter().all(|placed| placed.seq == first));
    let found = opened.store.find("topic", "id").unwrap().unwrap();
    assert_eq!((found.seq, found.payload.as_str()), (first, r#"{"n":1}"#));
    let totals = Totals {
        accepted: 2,
        duplicates: 7,
        conflicts: 3,
        topics: 1,
    };
    assert_eq!(opened.store.totals(&TopicFilter::all()).unwrap(), totals);
}

fn a_batch_with_too_many_topics_is_refused_as_a_whole_and_alone<S: Subject>() {
    let subject = S::with_topics(2);
    let mut opened = subject.open();
    let event = |topic: &str, id: &str| Event::new(topic, id);
    let outcomes = opened.commit_all(&[
        vec![event("a", "1")],
        vec![event("a", "2"), event("b", "1"), event("c", "1")],
        vec![
            event("a", "2").with_payload("{}"),
            event("c", "1").with_payload("{}"),
        ],
        vec![event("c", "2"), event("c", "3"), event("d", "1")],
    ]);
    assert_eq!(outcomes[1], Err(2));
    assert_eq!(outcomes[3], Err(2));
    // Nothing of the refused batch was there.
    let placed = outcomes[2].as_ref().unwrap();
    assert!(placed.iter().all(|placed| placed.outcome == Stored));
    let expected = Totals {
        accepted: 3,
        duplicates: 0,
        conflicts: 0,
        topics: 2,
    };
    assert_eq!(opened.store.totals(&TopicFilter::all()).unwrap(), expected);
    for (topic, id) in [("b", "1"), ("c", "2"), ("d", "1")] {
        assert_eq!(opened.store.find(topic, id).unwrap(), None, "{topic}/{id}");
    }
    // A store that is full goes on with the topics that it has, also when it is opened again.
    drop(opened);
    let mut opened = subject.open();
    assert_eq!(opened.commit_all(&[vec![event("e", "1")]]), [Err(0)]);
    assert_eq!(opened.commit(&[event("c", "2")])[0].outcome, Stored);
}

fn a_batch_of_duplicates_counts_for_its_topics<S: Subject>() {
    let subject = S::new();
    let mut opened = subject.open();
    let events = [Event::new("a", "1"), Event::new("b", "1"), Event::new("b", "2")];
    opened.commit(&events);
    let before = opened.store.topics(&TopicFilter::all(), None, 10).unwrap();
    for _ in 0..3 {
        let placed = opened.commit(&events);
        assert!(placed.iter().all(|placed| placed.outcome == Duplicate));
    }
    let mut expected = before;
    expected[0].duplicates = 3;
    expected[1].duplicates = 6;
    let told = opened.store.topics(&TopicFilter::all(), None, 10).unwrap();
    assert_eq!(told, expected);
    opened.close();
    let opened = subject.open();
    assert_eq!(
        opened.store.topics(&TopicFilter::all(), None, 10).unwrap(),
        expected
    );
}

/// Larger than what goes another way into the tables of a server.
fn a_large_batch_is_stored_in_the_order_sent<S: Subject>() {
    let subject = S::new();
    let mut opened = subject.open();
    let mut random = fastrand::Rng::with_seed(1);
    for count in [1, 63, 64, 65, 1000] {
        let events: Vec<Event> = (0..count)
            .map(|_| Event::new(&format!("topic {}", random.u8(0..5)), &random.u64(..).to_string()))
            .collect();
        let placed = opened.commit(&events);
        assert!(placed.iter().all(|placed| placed.outcome == Stored));
        assert!(placed.is_sorted_by_key(|placed| placed.seq));
        for (event, placed) in events.iter().zip(&placed) {
            let found = opened.store.find(&event.topic, &event.event_id).unwrap().unwrap();
            assert_eq!((found.seq, &found.payload), (placed.seq, &event.payload));
        }
    }
}
