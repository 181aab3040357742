//! What is counted is read back as it was, and damage is noticed.

use crate::store::{
    TopicFilter,
    sqlite::counters::{Delta, TopicDelta, TopicTable},
};
use proptest::prelude::*;

fn deltas() -> impl Strategy<Value = Vec<Delta>> {
    let topic = (0..20_u32, 0..5_u64, 0..1000_u64, 0..100_u64);
    let commit = (0..i64::MAX / 2, prop::collection::vec(topic, 0..8));
    prop::collection::vec(commit, 0..10).prop_map(|commits| {
        let mut highest = 0;
        commits
            .into_iter()
            .map(|(processed_at, topics)| {
                let topics = topics
                    .into_iter()
                    .map(|(topic, accepted, duplicates, conflicts)| {
                        let first_seq = if accepted > 0 { highest + 1 } else { 0 };
                        highest += accepted;
                        TopicDelta {
                            topic,
                            accepted,
                            duplicates,
                            conflicts,
                            first_seq,
                            last_seq: if accepted > 0 { highest } else { 0 },
                        }
                    })
                    .collect();
                Delta {
                    processed_at,
                    highest_seq: highest,
                    topics,
                }
            })
            .collect()
    })
}

fn table() -> TopicTable {
    let mut table = TopicTable::default();
    for number in 0..20 {
        assert!(table.add(&format!("topic {number}")));
    }
    table
}

proptest! {
    #[test]
    fn deltas_are_read_back_as_they_were(deltas in deltas()) {
        for (id, delta) in (1..).zip(deltas) {
            prop_assert_eq!(Delta::decode(&delta.encode(id), id), Ok(delta));
        }
    }

    #[test]
    fn a_snapshot_is_the_sum_of_its_deltas(deltas in deltas()) {
        let mut summed = table();
        for delta in &deltas {
            summed.apply(delta).unwrap();
        }
        let mut loaded = table();
        loaded.load_snapshot(&summed.encode_snapshot(7), 7).unwrap();
        prop_assert_eq!(loaded.totals(), summed.totals());
        prop_assert_eq!(loaded.highest_seq(), summed.highest_seq());
        prop_assert_eq!(loaded.last_processed_at(), summed.last_processed_at());
        prop_assert_eq!(loaded.list(&TopicFilter::all(), None, 100), summed.list(&TopicFilter::all(), None, 100));
    }

    #[test]
    fn any_changed_byte_is_noticed(deltas in deltas(), place in any::<prop::sample::Index>(), change in 1..=255_u8) {
        let mut summed = table();
        for delta in &deltas {
            summed.apply(delta).unwrap();
        }
        let mut bytes = summed.encode_snapshot(1);
        let place = place.index(bytes.len());
        bytes[place] ^= change;
        prop_assert!(table().load_snapshot(&bytes, 1).is_err());
    }
}

#[test]
fn a_delta_of_another_row_is_noticed() {
    let delta = Delta {
        processed_at: 1,
        highest_seq: 0,
        topics: Vec::new(),
    };
    assert!(Delta::decode(&delta.encode(1), 2).is_err());
}

#[test]
fn topics_are_listed_in_the_byte_order_of_their_names() {
    let mut table = TopicTable::default();
    for name in ["b", "a", "é", "Z", "ab"] {
        assert!(table.add(name));
    }
    assert!(!table.add("a"));
    assert_eq!(
        table.list(&TopicFilter::all(), None, 10),
        [],
        "a topic is there when it has an event"
    );
    let topics = (0..5).map(|topic| TopicDelta {
        topic,
        accepted: 1,
        duplicates: 0,
        conflicts: 0,
        first_seq: u64::from(topic) + 1,
        last_seq: u64::from(topic) + 1,
    });
    table
        .apply(&Delta {
            processed_at: 1,
            highest_seq: 5,
            topics: topics.collect(),
        })
        .unwrap();
    let names = |after, limit| -> Vec<String> {
        table
            .list(&TopicFilter::all(), after, limit)
            .into_iter()
            .map(|topic| topic.topic)
            .collect()
    };
    assert_eq!(names(None, 10), ["Z", "a", "ab", "b", "é"]);
    assert_eq!(names(Some("a"), 2), ["ab", "b"]);
    assert_eq!(names(Some("aa"), 1), ["ab"]);
}
