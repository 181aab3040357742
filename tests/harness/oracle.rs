//! What the clients of a server know, and the check of its store against it: everything acknowledged is stored,
//! everything stored was sent, nothing twice, every byte as it was sent, every seq where an answer said it was, the
//! counters consistent, and what is sent again is known.

use super::{Answer, Client, Event, Folder, oncelog, run};
use serde::Deserialize;
use serde_json::{Value, value::RawValue};
use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Topic and id.
type Identity = (String, String);

/// Nanoseconds of the system's monotonic clock, which all processes share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(pub(crate) u64);

impl Moment {
    /// After everything that has happened.
    pub(crate) const LAST: Self = Self(u64::MAX);

    pub(crate) fn now() -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        Self(now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned())
    }
}

/// What differs from store to store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum StoreKind {
    /// Its seqs are 1, 2, 3 … What it could not sync may be stored although the answer was a 503.
    #[default]
    File,
    /// Its seqs grow: those of duplicates and of failed commits are left out. What was answered with a 503 is not stored:
    /// a commit without an answer is found out about, as long as the server comes back soon.
    Server,
}

impl StoreKind {
    /// Whether an event with the number `seq` may come next after one with the number `last`; 0 is before all.
    pub(crate) fn allows(self, last: u64, seq: u64) -> bool {
        match self {
            Self::File => seq == last + 1,
            Self::Server => seq > last,
        }
    }
}

/// Shared by all clients of a test.
#[derive(Default)]
pub(crate) struct Oracle {
    kind: StoreKind,
    knowledge: Mutex<Knowledge>,
}

#[derive(Default)]
struct Knowledge {
    /// Every event that may be stored.
    sent: HashMap<Identity, Sent>,
    /// Requests with a 200.
    answers: Vec<Acknowledged>,
    /// Events in all requests, and those of them whose identity was sent before with another payload.
    offered: u64,
    offered_conflicts: u64,
    /// Requests without an answer: their events may be stored or not.
    in_doubt: Vec<Vec<Event>>,
}

struct Sent {
    event: Event,
    /// When an answer first promised it.
    acknowledged: Option<Moment>,
    /// Where an answer said that it stands.
    seq: Option<u64>,
    told_stored: bool,
    /// Whether it was in a request whose outcome is not known, so that it may be stored without an answer that said so.
    doubted: bool,
}

struct Acknowledged {
    at: Moment,
    events: u64,
    conflicts: u64,
}

/// What a check has seen.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Checked {
    /// Events that the store holds.
    pub(crate) stored: u64,
    /// Those of them that an answer had promised.
    pub(crate) acknowledged: u64,
    /// Events that it has counted, duplicates included.
    pub(crate) received: u64,
}

/// An event as it comes back, its payload untouched.
#[derive(Deserialize)]
struct Stored {
    seq: u64,
    topic: String,
    event_id: String,
    timestamp: String,
    source: String,
    payload: Box<RawValue>,
}

#[derive(Deserialize)]
struct Page {
    events: Vec<Stored>,
    next: String,
    caught_up: bool,
}

impl Oracle {
    /// For a store of this kind.
    pub(crate) fn of(kind: StoreKind) -> Self {
        Self {
            kind,
            knowledge: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Knowledge> {
        // A client that failed a check has failed the test already.
        self.knowledge.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These are about to be sent.
    pub(crate) fn offer(&self, events: &[Event]) {
        let mut knowledge = self.lock();
        knowledge.offered += events.len() as u64;
        for event in events {
            let sent = knowledge.sent.entry(event.identity()).or_insert_with(|| Sent {
                event: event.clone(),
                acknowledged: None,
                seq: None,
                told_stored: false,
                doubted: false,
            });
            if sent.event.payload != event.payload {
                knowledge.offered_conflicts += 1;
            }
        }
    }

    /// These were answered with a 200, asked with `?results=true`. Checks what the answer says of each.
    pub(crate) fn acknowledge(&self, events: &[Event], answer: &Value) {
        let at = Moment::now();
        let results = answer["results"].as_array().expect("results");
        assert_eq!(answer["received"], events.len(), "{answer}");
        assert_eq!(results.len(), events.len(), "{answer}");
        let mut knowledge = self.lock();
        for (event, result) in events.iter().zip(results) {
            let sent = knowledge
                .sent
                .get_mut(&event.identity())
                .expect("what is answered was offered");
            let seq = result["seq"].as_u64().expect("a seq");
            sent.acknowledged.get_or_insert(at);
            let known = *sent.seq.get_or_insert(seq);
            assert_eq!(seq, known, "the seq of {:?}", event.identity());
            if result["outcome"] == "stored" {
                assert!(!sent.told_stored, "{:?} was stored twice", event.identity());
                sent.told_stored = true;
            }
        }
        knowledge.answers.push(Acknowledged {
            at,
            events: events.len() as u64,
            conflicts: answer["conflicts"].as_u64().expect("conflicts"),
        });
    }

    /// One request with these events was sent so many times, and so many of them were answered with a 200, which did not
    /// say where each event stands. For clients that cannot stop to tell of each; the events are none that others send.
    pub(crate) fn settle(&self, events: &[Event], sent: u64, acknowledged: u64) {
        if sent == 0 {
            return;
        }
        self.offer(events);
        let count = events.len() as u64;
        let at = Moment::now();
        let mut knowledge = self.lock();
        knowledge.offered += (sent - 1) * count;
        // No answer says which of the times stored them.
        for event in events {
            if let Some(sent) = knowledge.sent.get_mut(&event.identity()) {
                sent.doubted = true;
            }
        }
        if acknowledged > 0 {
            for event in events {
                if let Some(sent) = knowledge.sent.get_mut(&event.identity()) {
                    sent.acknowledged.get_or_insert(at);
                }
            }
            knowledge.answers.push(Acknowledged {
                at,
                events: acknowledged * count,
                conflicts: 0,
            });
        }
    }

    /// These were answered with a 503, and are to be sent again.
    pub(crate) fn refused(&self, events: Vec<Event>) {
        match self.kind {
            StoreKind::File => self.doubt(events),
            StoreKind::Server => self.lock().in_doubt.push(events),
        }
    }

    /// These were sent, and no answer came.
    pub(crate) fn doubt(&self, events: Vec<Event>) {
        let mut knowledge = self.lock();
        for event in &events {
            if let Some(sent) = knowledge.sent.get_mut(&event.identity()) {
                sent.doubted = true;
            }
        }
        knowledge.in_doubt.push(events);
    }

    /// What was acknowledged after `moment` counts as not answered: the disk itself may have promised what it lost.
    pub(crate) fn forget_since(&self, moment: Moment) {
        let mut knowledge = self.lock();
        for sent in knowledge.sent.values_mut() {
            if sent.acknowledged.is_some_and(|at| at > moment) {
                sent.acknowledged = None;
                sent.seq = None;
                sent.told_stored = false;
                sent.doubted = true;
            }
        }
        knowledge.answers.retain(|answer| answer.at <= moment);
    }

    /// A request to send again, as a producer does that got no answer.
    pub(crate) fn take_in_doubt(&self) -> Option<Vec<Event>> {
        self.lock().in_doubt.pop()
    }

    /// Requests that were answered with a 200 so far.
    pub(crate) fn answers(&self) -> usize {
        self.lock().answers.len()
    }

    /// Publishes and notes what is known; `None` when no answer came or the server refused.
    pub(crate) fn publish(&self, client: &mut Client, events: &[Event]) -> Option<Answer> {
        self.offer(events);
        match client.attempt(
            "POST",
            "/publish?results=true",
            &[("content-type", "application/json")],
            &Event::wrapped(events),
        ) {
            Ok(answer) => {
                if answer.status == 200 {
                    self.acknowledge(events, &answer.json());
                }
                Some(answer)
            }
            Err(_) => {
                self.doubt(events.to_vec());
                None
            }
        }
    }

    /// Checks the store behind `client` against all that was known at `moment`: the store may be one that lost what
    /// was sent later.
    #[track_caller]
    pub(crate) fn check(&self, client: &mut Client, moment: Moment) -> Checked {
        let stored = read_log(client);
        let counters = client.counters();
        let knowledge = self.lock();
        let mut found = HashSet::new();
        let mut last = 0;
        for event in &stored {
            let identity = (event.topic.clone(), event.event_id.clone());
            assert!(
                self.kind.allows(last, event.seq),
                "{} after {last}; {identity:?}",
                event.seq
            );
            last = event.seq;
            let sent = knowledge
                .sent
                .get(&identity)
                .unwrap_or_else(|| panic!("{identity:?} is stored and was never sent"));
            assert_eq!(event.payload.get(), sent.event.payload, "{identity:?}");
            assert_eq!(event.timestamp, sent.event.timestamp, "{identity:?}");
            assert_eq!(event.source, sent.event.source, "{identity:?}");
            if let (Some(at), Some(told)) = (sent.acknowledged, sent.seq)
                && at <= moment
            {
                assert_eq!(event.seq, told, "the seq of {identity:?}");
                assert!(
                    sent.told_stored || sent.doubted,
                    "{identity:?} was a duplicate in every answer, also in the one that stored it"
                );
            }
            assert!(found.insert(identity.clone()), "{identity:?} is stored twice");
        }
        let acknowledged: Vec<_> = knowledge.acknowledged(moment).collect();
        let lost: Vec<_> = acknowledged
            .iter()
            .filter(|sent| !found.contains(&sent.event.identity()))
            .map(|sent| (sent.event.identity(), sent.seq))
            .collect();
        assert!(
            lost.is_empty(),
            "{} acknowledged events of {} are lost, the store has {}: {:?} …",
            lost.len(),
            acknowledged.len(),
            found.len(),
            &lost[..lost.len().min(3)]
        );

        let [received, unique, duplicates, conflicts] = counters;
        assert_eq!(received, unique + duplicates, "received is what became of it");
        assert_eq!(unique, stored.len() as u64, "unique_processed is what is stored");
        let answered = || knowledge.answers.iter().filter(|answer| answer.at <= moment);
        let received_at_least: u64 = answered().map(|answer| answer.events).sum();
        let conflicts_at_least: u64 = answered().map(|answer| answer.conflicts).sum();
        assert!(
            (received_at_least..=knowledge.offered).contains(&received),
            "{received} counted, {received_at_least} acknowledged, {} sent",
            knowledge.offered
        );
        assert!(
            (conflicts_at_least..=knowledge.offered_conflicts).contains(&conflicts),
            "{conflicts} conflicts counted, {conflicts_at_least} acknowledged, {} sent",
            knowledge.offered_conflicts
        );
        Checked {
            stored: unique,
            acknowledged: acknowledged.len() as u64,
            received,
        }
    }

    /// As [`Oracle::check`], and more: nothing of a request that got no 200 is stored or counted.
    #[track_caller]
    pub(crate) fn check_exactly(&self, client: &mut Client) -> Checked {
        let checked = self.check(client, Moment::LAST);
        assert_eq!(
            checked.stored, checked.acknowledged,
            "what is stored is what was answered"
        );
        let answered: u64 = self.lock().answers.iter().map(|answer| answer.events).sum();
        assert_eq!(checked.received, answered, "what is counted is what was answered");
        checked
    }

    /// Sends again everything that was acknowledged at `moment`: none of it is accepted.
    #[track_caller]
    pub(crate) fn send_again(&self, client: &mut Client, moment: Moment) {
        let events: Vec<Event> = self
            .lock()
            .acknowledged(moment)
            .map(|sent| sent.event.clone())
            .collect();
        for events in events.chunks(500) {
            let answer = client.publish(events);
            assert_eq!(answer["accepted"], 0, "{}", answer["message"]);
            if moment == Moment::LAST {
                self.offer(events);
                self.acknowledge(events, &answer);
            }
        }
    }

    /// All of it for the store of a running server.
    #[track_caller]
    pub(crate) fn check_all(&self, client: &mut Client) -> Checked {
        let checked = self.check(client, Moment::LAST);
        self.send_again(client, Moment::LAST);
        checked
    }
}

impl Knowledge {
    fn acknowledged(&self, moment: Moment) -> impl Iterator<Item = &Sent> {
        self.sent
            .values()
            .filter(move |sent| sent.acknowledged.is_some_and(|at| at <= moment))
    }
}

/// Checks the files of a store that is not running.
#[track_caller]
pub(crate) fn verify(folder: &Folder) {
    let output = run(oncelog(folder).arg("verify").arg(folder.database()));
    assert!(
        output.status.success(),
        "oncelog verify: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The number of every event, in the order of the log.
pub(crate) fn stored_seqs(client: &mut Client) -> Vec<u64> {
    read_log(client).iter().map(|event| event.seq).collect()
}

fn read_log(client: &mut Client) -> Vec<Stored> {
    let mut events = Vec::new();
    let mut cursor = String::new();
    loop {
        let answer = client.get(&format!("/events?order=asc&limit=1000{cursor}"));
        assert_eq!(answer.status, 200, "{}", answer.text());
        let page: Page = serde_json::from_slice(&answer.body).expect("a page");
        events.extend(page.events);
        if page.caught_up {
            return events;
        }
        cursor = format!("&cursor={}", page.next);
    }
}
