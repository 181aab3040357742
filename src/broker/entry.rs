//! Events as they stand in a stream: some of one request, of one partition, as an array of JSON.
//!
//! JSON, because whoever looks into Redis can read it, and because a consumer parses it with the parser of requests: what
//! comes out of Redis is trusted no more than what comes from a client. Names and payloads are byte for byte as they were
//! sent, times are in UTC. Several events make an entry, because each entry costs Redis work
//! of its own, beside that for its bytes.

use crate::{event::Batch, limits::BROKER_ENTRY_BYTES};
use xxhash_rust::xxh3::xxh3_64;

/// An entry that is not in Redis yet.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Where it belongs.
    pub(super) partition: u16,
    /// How many events it has.
    pub(super) events: u64,
    /// The events.
    pub(super) json: Vec<u8>,
}

/// The partition of a topic, of so many: by the topic's XXH3, which is part of the format.
pub(super) fn partition_of(topic: &str, partitions: u16) -> u16 {
    (xxh3_64(topic.as_bytes()) % u64::from(partitions.max(1))) as u16
}

impl Entry {
    /// The events of a batch, those of a topic in their order.
    pub(super) fn all_of(batch: &Batch, partitions: u16) -> Result<Vec<Self>, serde_json::Error> {
        let mut entries: Vec<Self> = Vec::new();
        // The last entry of each partition.
        let mut open: Vec<Option<usize>> = vec![None; usize::from(partitions.max(1))];
        for event in batch.events() {
            let partition = partition_of(event.topic, partitions);
            let last = &mut open[usize::from(partition)];
            let place = match *last {
                Some(place) if entries[place].json.len() < BROKER_ENTRY_BYTES => place,
                _ => {
                    entries.push(Self {
                        partition,
                        events: 0,
                        json: Vec::new(),
                    });
                    entries.len() - 1
                }
            };
            *last = Some(place);
            let entry = &mut entries[place];
            entry.json.push(if entry.events == 0 { b'[' } else { b',' });
            event.write_json(&mut entry.json)?;
            entry.events += 1;
        }
        for entry in &mut entries {
            entry.json.push(b']');
        }
        Ok(entries)
    }
}

/// The events of several entries as one array. `None` when one of them is no array.
pub(super) fn joined<'a>(arrays: impl IntoIterator<Item = &'a [u8]>) -> Option<Vec<u8>> {
    let mut json = b"[".to_vec();
    for array in arrays {
        if json.len() > 1 {
            json.push(b',');
        }
        json.extend_from_slice(array.strip_prefix(b"[")?.strip_suffix(b"]")?);
    }
    json.push(b']');
    Some(json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        event::{Identity, Shape, parse},
        limits::MAX_EVENT_BYTES,
    };

    const IDENTITY: Identity = Identity {
        store: 1,
        secret: [0; 16],
    };

    fn batch(events: &[(&str, usize)]) -> Batch {
        let events: Vec<_> = events
            .iter()
            .enumerate()
            .map(|(number, (topic, size))| {
                format!(
                    r#"{{"topic":"{topic}","event_id":"{number}","timestamp":"2025-10-23T10:00:00Z","source":"s","payload":{{"x":"{}"}}}}"#,
                    "x".repeat(*size)
                )
            })
            .collect();
        let body = format!("[{}]", events.join(","));
        parse(body.into_bytes(), Shape::Any, &IDENTITY, 1_000).expect("valid events")
    }

    #[test]
    fn each_event_is_in_one_entry_of_its_partition_and_a_topic_keeps_its_order() {
        let topics: Vec<String> = (0..40).map(|number| format!("topic-{number}")).collect();
        let events: Vec<(&str, usize)> = (0..400).map(|at| (topics[at * 7 % 40].as_str(), 5_000)).collect();
        let batch = batch(&events);
        let entries = Entry::all_of(&batch, 16).expect("JSON");
        assert!(entries.len() > 16, "some partitions have more than one");
        let mut seen = Vec::new();
        for entry in &entries {
            assert!(entry.json.len() < BROKER_ENTRY_BYTES + 6_000);
            let read = parse(entry.json.clone(), Shape::Normalised, &IDENTITY, 1_000).expect("events");
            assert_eq!(read.len() as u64, entry.events);
            for event in read.events() {
                assert_eq!(partition_of(event.topic, 16), entry.partition);
                seen.push((
                    event.topic.to_owned(),
                    event.event_id.parse::<u64>().expect("a number"),
                ));
            }
        }
        assert_eq!(seen.len(), 400);
        for topic in &topics {
            assert!(
                seen.iter()
                    .filter(|(of, _)| of == topic)
                    .map(|(_, id)| id)
                    .is_sorted(),
                "{topic}"
            );
        }
    }

    #[test]
    fn a_large_event_has_an_entry_to_itself() {
        let large = MAX_EVENT_BYTES - 200;
        let entries = Entry::all_of(&batch(&[("t", large), ("t", large), ("t", 1)]), 1).expect("JSON");
        assert_eq!(
            entries.iter().map(|entry| entry.events).collect::<Vec<_>>(),
            [1, 1, 1]
        );
    }

    #[test]
    fn a_topic_never_changes_its_partition() {
        assert_eq!(
            ["user.login", "orders", "é"].map(|topic| partition_of(topic, 16)),
            [1, 11, 3]
        );
    }

    #[test]
    fn arrays_are_joined_to_one() {
        let joined = |arrays: &[&[u8]]| joined(arrays.iter().copied());
        assert_eq!(joined(&[b"[1,2]", b"[3]"]).as_deref(), Some(&b"[1,2,3]"[..]));
        assert_eq!(joined(&[b"[1]", b"{}"]), None);
        assert_eq!(joined(&[b""]), None);
    }
}
