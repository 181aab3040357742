//! The answer is exact: `received = accepted + duplicates`, for every interleaving, in every shape, and the totals
//! agree with what the clients were told.

use crate::harness::{Client, Event, Server, identities, read_all};
use proptest::{
    collection::vec,
    prelude::{Just, Strategy, any},
    prop_oneof,
    test_runner::{Config, TestRunner},
};
use serde_json::Value;
use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Barrier,
    thread,
};

const CONNECTIONS: usize = 12;
const REQUESTS: usize = 40;

fn number(answer: &Value, name: &str) -> u64 {
    answer[name]
        .as_u64()
        .unwrap_or_else(|| panic!("{name} in {answer}"))
}

/// Sends what `request` makes over many connections at once and returns, for each, what was sent and answered.
fn race(
    server: &Server,
    request: impl Fn(&mut fastrand::Rng) -> Vec<Event> + Sync,
) -> Vec<(Vec<Event>, Value)> {
    let together = Barrier::new(CONNECTIONS);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..CONNECTIONS)
            .map(|connection| {
                let (request, together) = (&request, &together);
                scope.spawn(move || {
                    let mut random = fastrand::Rng::with_seed(connection as u64);
                    let mut client = server.client();
                    together.wait();
                    (0..REQUESTS)
                        .map(|_| {
                            let events = request(&mut random);
                            let answer = client.publish(&events);
                            (events, answer)
                        })
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("a client"))
            .collect()
    })
}

#[test]
fn racing_clients_store_every_id_once_and_are_told_exactly_what_became_of_each() {
    let server = Server::start();
    let told = race(&server, |random| {
        let length = random.usize(1..=30);
        (0..length)
            .map(|_| {
                Event::new(
                    &format!("topic-{}", random.u8(0..3)),
                    &format!("id-{}", random.u16(0..700)),
                )
            })
            .collect()
    });

    let (mut received, mut accepted, mut duplicates) = (0, 0, 0);
    let mut stored_at: HashMap<(String, String), u64> = HashMap::new();
    let mut seqs: HashMap<(String, String), BTreeSet<u64>> = HashMap::new();
    for (events, answer) in &told {
        assert_eq!(number(answer, "received"), events.len() as u64);
        assert_eq!(
            number(answer, "received"),
            number(answer, "accepted") + number(answer, "duplicates"),
            "{answer}"
        );
        assert_eq!(number(answer, "conflicts"), 0);
        received += number(answer, "received");
        accepted += number(answer, "accepted");
        duplicates += number(answer, "duplicates");
        let results = answer["results"].as_array().unwrap();
        assert_eq!(
            identities(results),
            events.iter().map(Event::identity).collect::<Vec<_>>()
        );
        let stored = results
            .iter()
            .filter(|result| result["outcome"] == "stored")
            .count();
        assert_eq!(stored as u64, number(answer, "accepted"), "{answer}");
        for (event, result) in events.iter().zip(results) {
            let seq = number(result, "seq");
            seqs.entry(event.identity()).or_default().insert(seq);
            if result["outcome"] == "stored" {
                let earlier = stored_at.insert(event.identity(), seq);
                assert_eq!(earlier, None, "{event:?} was stored twice");
            } else {
                assert_eq!(result["outcome"], "duplicate");
            }
        }
    }

    let sent: BTreeSet<_> = seqs.keys().cloned().collect();
    assert_eq!(accepted, sent.len() as u64);
    for (identity, told) in &seqs {
        assert_eq!(
            told.iter().collect::<Vec<_>>(),
            [&stored_at[identity]],
            "all answers about {identity:?} name the one place where it stands"
        );
    }

    let mut client = server.client();
    assert_eq!(client.counters(), [received, accepted, duplicates, 0]);
    let events = read_all(&mut client, "limit=1000&");
    let stored: BTreeSet<_> = identities(&events).into_iter().collect();
    assert_eq!(stored, sent);
    assert_eq!(events.len(), sent.len());
    for event in &events {
        let identity = identities(std::slice::from_ref(event)).remove(0);
        assert_eq!(number(event, "seq"), stored_at[&identity]);
    }

    let topics = client.get("/topics").ok();
    let topics = topics["topics"].as_array().unwrap();
    assert_eq!(topics.len(), 3);
    assert_eq!(
        topics.iter().map(|topic| number(topic, "accepted")).sum::<u64>(),
        accepted
    );
    assert_eq!(
        topics
            .iter()
            .map(|topic| number(topic, "duplicates"))
            .sum::<u64>(),
        duplicates
    );
}

#[test]
fn racing_conflicts_are_told_apart_from_duplicates_by_the_payload_that_stayed() {
    let server = Server::start();
    let told = race(&server, |random| {
        let length = random.usize(1..=20);
        (0..length)
            .map(|_| {
                Event::new("races", &format!("id-{}", random.u8(0..200)))
                    .with_payload(["{\"v\":1}", "{\"v\":2}", "{ \"v\" : 2.0 }"][random.usize(0..3)])
            })
            .collect()
    });

    let mut client = server.client();
    let stayed: HashMap<String, f64> = read_all(&mut client, "limit=1000&")
        .iter()
        .map(|event| {
            (
                event["event_id"].as_str().unwrap().to_owned(),
                event["payload"]["v"].as_f64().unwrap(),
            )
        })
        .collect();
    let mut conflicts = 0;
    for (events, answer) in &told {
        for (event, result) in events.iter().zip(answer["results"].as_array().unwrap()) {
            let value = serde_json::from_str::<Value>(&event.payload).unwrap()["v"]
                .as_f64()
                .unwrap();
            let same = value.to_bits() == stayed[&event.event_id].to_bits();
            match result["outcome"].as_str().unwrap() {
                "conflict" => assert!(!same, "{event:?} has the payload that stayed"),
                _ => assert!(
                    same,
                    "{event:?} has another payload than the one that stayed: {result}"
                ),
            }
        }
        let told_conflicts = answer["results"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|result| result["outcome"] == "conflict")
            .count() as u64;
        assert_eq!(told_conflicts, number(answer, "conflicts"));
        conflicts += told_conflicts;
    }
    assert!(conflicts > 0, "the race had conflicts");
    assert_eq!(client.counters()[3], conflicts);
}

/// How a request is written down.
#[derive(Clone, Copy, Debug)]
enum Form {
    Single,
    Array,
    Wrapped,
    Lines,
    BatchCall,
}

/// An event of the model: the texts are chosen by these numbers.
#[derive(Clone, Copy, Debug)]
struct Choice {
    topic: u8,
    id: u8,
    payload: usize,
}

/// Payload texts; those of one row are the same JSON value.
const PAYLOADS: [[&str; 3]; 3] = [
    [
        r#"{"a":1,"b":[true,null]}"#,
        r#"{"b":[true,null],"a":1.0}"#,
        "{ \"a\" : 10e-1 , \"\\u0062\":[ true,null ]}",
    ],
    [r#"{"a":2}"#, r#"{"a":2.000}"#, r#"{"a":0.2e1}"#],
    [r#"{"a":"1"}"#, r#"{"a":"\u0031"}"#, r#"{ "a":"1" }"#],
];

fn requests() -> impl Strategy<Value = Vec<(Form, Vec<Choice>)>> {
    let form = prop_oneof![
        Just(Form::Single),
        Just(Form::Array),
        Just(Form::Wrapped),
        Just(Form::Lines),
        Just(Form::BatchCall)
    ];
    let choice = (0..3u8, 0..8u8, 0..9usize).prop_map(|(topic, id, payload)| Choice { topic, id, payload });
    vec((form, vec(choice, 1..12)), 1..15)
}

/// What a store is, said in the simplest way.
#[derive(Default)]
struct Model {
    events: Vec<(Event, usize)>,
    counts: BTreeMap<String, [u64; 3]>,
}

impl Model {
    fn publish(&mut self, event: Event, value: usize) -> &'static str {
        let counts = self.counts.entry(event.topic.clone()).or_default();
        let first = self
            .events
            .iter()
            .find(|(known, _)| known.identity() == event.identity());
        match first {
            None => {
                counts[0] += 1;
                self.events.push((event, value));
                "stored"
            }
            Some((_, known)) if *known == value => {
                counts[1] += 1;
                "duplicate"
            }
            Some(_) => {
                counts[1] += 1;
                counts[2] += 1;
                "conflict"
            }
        }
    }
}

fn send(client: &mut Client, form: Form, events: &[Event]) -> Value {
    const JSON: &str = "application/json";
    let (target, content_type, body) = match form {
        Form::Single => ("/publish?results=true", JSON, events[0].json().into_bytes()),
        Form::Array => ("/publish?results=true", JSON, Event::array(events)),
        Form::Wrapped => ("/publish?results=true", JSON, Event::wrapped(events)),
        Form::Lines => (
            "/publish?results=true",
            "application/x-ndjson",
            Event::lines(events),
        ),
        Form::BatchCall => ("/publish/batch?results=true", JSON, Event::wrapped(events)),
    };
    client.post(target, content_type, &body).ok()
}

#[test]
fn any_sequence_of_requests_is_answered_as_a_simple_model_answers_it() {
    let server = Server::start();
    let case = Cell::new(0);
    let config = Config {
        cases: 40,
        failure_persistence: None,
        ..Config::default()
    };
    let outcome = TestRunner::new(config).run(&(requests(), any::<bool>()), |(requests, newest_first)| {
        // All cases share a server; topics of its own make a case independent of the others.
        case.set(case.get() + 1);
        let topic_name = |topic: u8| format!("case-{}-{topic}", case.get());
        let mut client = server.client();
        let mut model = Model::default();
        let before = client.counters();
        for (form, choices) in &requests {
            let count = if matches!(form, Form::Single) {
                1
            } else {
                choices.len()
            };
            let events: Vec<_> = choices[..count]
                .iter()
                .map(|choice| {
                    let event = Event::new(&topic_name(choice.topic), &format!("id-{}", choice.id))
                        .with_payload(PAYLOADS[choice.payload / 3][choice.payload % 3]);
                    (event, choice.payload / 3)
                })
                .collect();
            let sent: Vec<_> = events.iter().map(|(event, _)| event.clone()).collect();
            let answer = send(&mut client, *form, &sent);
            let expected: Vec<_> = events
                .into_iter()
                .map(|(event, value)| model.publish(event, value))
                .collect();
            let told: Vec<_> = answer["results"]
                .as_array()
                .unwrap()
                .iter()
                .map(|result| result["outcome"].as_str().unwrap())
                .collect();
            assert_eq!(told, expected, "{sent:?}");
            let of =
                |wanted: &[&str]| expected.iter().filter(|outcome| wanted.contains(outcome)).count() as u64;
            assert_eq!(number(&answer, "received"), count as u64);
            assert_eq!(number(&answer, "accepted"), of(&["stored"]));
            assert_eq!(number(&answer, "duplicates"), of(&["duplicate", "conflict"]));
            assert_eq!(number(&answer, "conflicts"), of(&["conflict"]));
        }

        // The totals moved by what the model says.
        let sum = |index: usize| model.counts.values().map(|counts| counts[index]).sum::<u64>();
        let after = client.counters();
        let moved: Vec<_> = after
            .iter()
            .zip(before)
            .map(|(after, before)| after - before)
            .collect();
        assert_eq!(moved, [sum(0) + sum(1), sum(0), sum(1), sum(2)]);

        for (topic, [accepted, duplicates, conflicts]) in &model.counts {
            // Each topic holds the model's events in the order of their first arrival, byte for byte.
            let order = if newest_first { "desc" } else { "asc" };
            let found = read_all(&mut client, &format!("topic={topic}&order={order}&limit=3&"));
            let mut expected: Vec<_> = model
                .events
                .iter()
                .filter(|(event, _)| event.topic == *topic)
                .map(|(event, _)| event.identity())
                .collect();
            if newest_first {
                expected.reverse();
            }
            assert_eq!(identities(&found), expected);

            // So do the counts of each topic.
            let topics = topics_of(&mut client, topic);
            assert_eq!(number(&topics, "accepted"), *accepted);
            assert_eq!(number(&topics, "duplicates"), *duplicates);
            assert_eq!(number(&topics, "conflicts"), *conflicts);
        }
        for (event, _) in &model.events {
            let found = client.get(&format!("/events/{}/{}", event.topic, event.event_id));
            assert_eq!(found.status, 200);
            assert!(
                found.text().contains(&event.payload),
                "{} comes back byte for byte: {}",
                event.payload,
                found.text()
            );
        }
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}

/// A topic's entry in the paged list.
fn topics_of(client: &mut Client, topic: &str) -> Value {
    let mut cursor = String::new();
    loop {
        let page = client.get(&format!("/topics?limit=7{cursor}")).ok();
        if let Some(found) = page["topics"]
            .as_array()
            .unwrap()
            .iter()
            .find(|entry| entry["topic"] == topic)
        {
            return found.clone();
        }
        let next = page["next"]
            .as_str()
            .unwrap_or_else(|| panic!("{topic} is listed"));
        cursor = format!("&cursor={next}");
    }
}
