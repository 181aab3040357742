//! Does what the actions say with a running server, and compares each answer with the model's.

use super::{
    action::{Action, Begin, Draft, Filter, Flaw, Order, Shape, TOPICS, one_of_many},
    memory::{Memory, Outcome},
    wire::{Page, Stored, Topic, TopicPage, WRONG_QUERIES, body, encoded, parsed, published, question},
};
use crate::harness::{Answer, Client, Folder, Server, verify};
use proptest::sample::Index;
use serde_json::json;
use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

const SMALL: (&str, &str) = ("ONCELOG_SMALL_BOUNDS", "1");
/// What a request may wait for new events.
const WAIT_SECONDS: u64 = 30;

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) requests: u64,
    pub(super) published: u64,
    pub(super) stored: u64,
    pub(super) read: u64,
    pub(super) restarts: u64,
    pub(super) kills: u64,
    /// Requests that a kill left without an answer, and that were stored all the same.
    pub(super) unanswered_stored: u64,
    pub(super) unanswered_lost: u64,
    pub(super) segments: u64,
}

impl std::ops::Add for Tally {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            requests: self.requests + other.requests,
            published: self.published + other.published,
            stored: self.stored + other.stored,
            read: self.read + other.read,
            restarts: self.restarts + other.restarts,
            kills: self.kills + other.kills,
            unanswered_stored: self.unanswered_stored + other.unanswered_stored,
            unanswered_lost: self.unanswered_lost + other.unanswered_lost,
            segments: self.segments + other.segments,
        }
    }
}

/// A query that can go on.
#[derive(Clone)]
struct Reader {
    filter: Filter,
    order: Order,
    /// What was given lies up to here, in its direction; none before the first page.
    position: Option<u64>,
    cursor: Option<String>,
    /// The last page gave no cursor.
    ended: bool,
}

impl Reader {
    fn new(filter: &Filter, order: Order) -> Self {
        Self {
            filter: filter.clone(),
            order,
            position: None,
            cursor: None,
            ended: false,
        }
    }
}

/// What a page left.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Left {
    Nothing,
    MaybeMore,
}

/// A server, and the model of its store.
pub(super) struct Driver {
    folder: Folder,
    server: Server,
    client: Client,
    memory: Memory,
    readers: Vec<Reader>,
    /// Makes names that were never used.
    fresh: u64,
    pub(super) tally: Tally,
}

impl Driver {
    /// On a new store.
    pub(super) fn new() -> Self {
        let folder = Folder::new();
        let server = Server::start_in(folder.clone(), &[SMALL]);
        Self {
            client: server.client(),
            folder,
            server,
            memory: Memory::default(),
            readers: Vec::new(),
            fresh: 0,
            tally: Tally::default(),
        }
    }

    pub(super) fn act(&mut self, action: &Action) {
        match action {
            Action::Publish {
                shape,
                results,
                events,
            } => self.publish(*shape, *results, shape.fitting(events)),
            Action::PublishMany { first, count } => {
                let events: Vec<_> = (*first..first + count).map(one_of_many).collect();
                self.publish(Shape::Lines, true, &events);
            }
            Action::PublishInvalid {
                shape,
                events,
                place,
                flaw,
                which,
            } => self.publish_invalid(*shape, shape.fitting(events), *place, *flaw, *which),
            Action::Read {
                filter,
                order,
                start,
                limit,
            } => self.read(filter, *order, *start, *limit),
            Action::GoOn {
                which,
                limit,
                say_order,
                wait,
            } => self.go_on(*which, *limit, *say_order, *wait),
            Action::ReadAll {
                filter,
                order,
                limit,
                between,
            } => self.read_all(filter, *order, *limit, between),
            Action::Follow { event, pause_micros } => self.follow(event, *pause_micros),
            Action::ReadOne { topic, event_id } => self.read_one(topic, event_id),
            Action::Topics { limit } => self.check_topics(*limit),
            Action::WrongQuery { which, cursor } => self.wrong_query(*which, *cursor),
            Action::Restart => {
                self.server.stop();
                self.start_again();
            }
            Action::Kill => {
                self.server.kill9();
                self.tally.kills += 1;
                self.start_again();
            }
            Action::KillDuring { events, pause_micros } => self.kill_during(events, *pause_micros),
        }
        self.check_stats();
    }

    /// Compares everything, stops the server, and lets the program verify what it left.
    pub(super) fn finish(mut self) -> Tally {
        for order in [Order::Ascending, Order::Descending] {
            self.read_all(&Filter::default(), order, 300, &[]);
        }
        for topic in TOPICS {
            let filter = Filter {
                topic: Some(topic),
                ..Filter::default()
            };
            self.read_all(&filter, Order::Descending, 100, &[]);
        }
        self.check_topics(1000);
        self.check_stats();
        let times = (1..=self.memory.newest()).map(|seq| self.memory.row(seq).processed_at.clone());
        assert!(times.is_sorted(), "commits in the order of their times");
        self.server.stop();
        verify(&self.folder);
        self.tally.segments += segments(&self.folder);
        self.tally.stored += self.memory.newest();
        self.tally
    }

    fn start_again(&mut self) {
        self.tally.restarts += 1;
        self.server = Server::start_in(self.folder.clone(), &[SMALL]);
        self.client = self.server.client();
    }

    fn get(&mut self, target: &str) -> Answer {
        self.tally.requests += 1;
        self.client.get(target)
    }

    // ---- publishing ----

    fn publish(&mut self, shape: Shape, results: bool, events: &[Draft]) {
        let path = shape.path();
        let target = match results {
            true => format!("{path}?results=true"),
            false => path.to_owned(),
        };
        let answer = self
            .client
            .post(&target, shape.content_type(), body(shape, events).as_bytes())
            .ok();
        self.tally.requests += 1;
        let outcomes = self.remember(events);
        assert_eq!(answer, published(events, &outcomes, results));
    }

    fn remember(&mut self, events: &[Draft]) -> Vec<(Outcome, u64)> {
        self.tally.published += events.len() as u64;
        self.memory.publish(events)
    }

    /// Nothing of the request is stored; the check of the counters that follows each action sees to that.
    fn publish_invalid(&mut self, shape: Shape, events: &[Draft], place: Index, flaw: Flaw, which: Index) {
        let place = place.index(events.len());
        let mut texts: Vec<_> = events.iter().map(Draft::json).collect();
        texts[place] = flaw.spoil(&events[place], which);
        let body = shape.body(&texts);
        let answer = self
            .client
            .post(shape.path(), shape.content_type(), body.as_bytes());
        self.tally.requests += 1;
        let problem = answer.problem(flaw.status());
        let detail = problem["detail"].as_str().expect("a detail");
        // Text that is no JSON is a place in the text.
        let named = flaw.status() == 400 && shape != Shape::Lines || detail.contains(&shape.names(place));
        assert!(named, "{flaw:?} at {}: {problem}\n{body}", shape.names(place));
    }

    // ---- reading ----

    fn read(&mut self, filter: &Filter, order: Option<Order>, start: Begin, limit: Option<usize>) {
        let order = order.unwrap_or(Order::Descending);
        let mut reader = Reader::new(filter, order);
        // Where to start is a question of ascending order alone.
        let start = match order {
            Order::Ascending => start,
            Order::Descending => Begin::Unsaid,
        };
        let said = match start {
            Begin::Unsaid => "",
            Begin::Start => "position=start&",
            Begin::End => {
                reader.position = Some(self.memory.newest());
                "position=end&"
            }
        };
        self.page(&mut reader, limit, true, said);
        self.readers.push(reader);
    }

    fn go_on(&mut self, which: Index, limit: Option<usize>, say_order: bool, wait: bool) {
        if self.readers.is_empty() {
            return;
        }
        let place = which.index(self.readers.len());
        let mut reader = self.readers[place].clone();
        // Only when there is something, so that nothing has to be waited for.
        let said = match reader.order {
            Order::Ascending if wait && !self.expected(&reader).is_empty() => "wait=30&",
            Order::Ascending if wait => "wait=0&",
            _ => "",
        };
        self.page(&mut reader, limit, say_order, said);
        self.readers[place] = reader;
    }

    fn read_all(&mut self, filter: &Filter, order: Order, limit: usize, between: &[Draft]) {
        let mut reader = Reader::new(filter, order);
        let mut between = between.iter();
        // A page may be short. So many pages in a row bring it to its end all the same.
        let most = 10 + self.expected(&reader).len() / limit * 2 + between.len();
        for _ in 0..most {
            let left = self.page(&mut reader, Some(limit), false, "");
            if let Some(event) = between.next() {
                self.publish(Shape::Single, false, std::slice::from_ref(event));
            } else if left == Left::Nothing {
                return;
            }
        }
        panic!("not at the end after {most} pages");
    }

    /// Reads a page that goes on from what `reader` has, checks it, and lets `reader` go on.
    fn page(&mut self, reader: &mut Reader, limit: Option<usize>, say_order: bool, said: &str) -> Left {
        if reader.ended {
            return Left::Nothing;
        }
        let mut target = format!("/events?{said}");
        // A cursor knows its order; without one it must be said.
        if say_order || reader.cursor.is_none() {
            target.push_str(match reader.order {
                Order::Ascending => "order=asc&",
                Order::Descending => "order=desc&",
            });
        }
        if let Some(limit) = limit {
            target.push_str(&format!("limit={limit}&"));
        }
        if let Some(cursor) = &reader.cursor {
            target.push_str(&format!("cursor={cursor}&"));
        }
        target.push_str(&question(&reader.filter));
        let answer = self.get(target.trim_end_matches('&'));
        let page: Page = parsed(&answer);
        self.check_page(reader, &page, limit.unwrap_or(100))
    }

    fn check_page(&mut self, reader: &mut Reader, page: &Page, limit: usize) -> Left {
        let expected = self.expected(reader);
        assert_eq!(page.topic.as_deref(), reader.filter.topic);
        assert_eq!(page.count, page.events.len());
        assert!(page.count <= limit, "{} events, limit={limit}", page.count);
        let found: Vec<_> = page.events.iter().map(|event| event.seq).collect();
        // A page may end early, and what it has is what comes next.
        let next = &expected[..found.len().min(expected.len())];
        assert_eq!(found, next, "{:?}", reader.filter);
        for event in &page.events {
            self.check_event(event);
        }
        let left = match reader.order {
            Order::Ascending => {
                assert!(page.next.is_some(), "there is always more to come");
                match page.caught_up.expect("caught_up") {
                    true => Left::Nothing,
                    false => Left::MaybeMore,
                }
            }
            Order::Descending => {
                assert_eq!(page.caught_up, None);
                match page.next {
                    None => Left::Nothing,
                    Some(_) => Left::MaybeMore,
                }
            }
        };
        if left == Left::Nothing {
            assert_eq!(found, expected, "nothing is left, and so all of it is here");
        }
        reader.cursor.clone_from(&page.next);
        reader.ended = page.next.is_none();
        let before = reader.position.unwrap_or(match reader.order {
            Order::Ascending => 0,
            Order::Descending => self.memory.newest() + 1,
        });
        reader.position = Some(found.last().copied().unwrap_or(before));
        left
    }

    /// The seqs that a reader has still to be given, in its order.
    fn expected(&self, reader: &Reader) -> Vec<u64> {
        let mut seqs = self.memory.wanted(&reader.filter);
        match reader.order {
            Order::Ascending => seqs.retain(|seq| reader.position.is_none_or(|given| *seq > given)),
            Order::Descending => {
                seqs.retain(|seq| reader.position.is_none_or(|given| *seq < given));
                seqs.reverse();
            }
        }
        seqs
    }

    fn check_event(&mut self, found: &Stored) {
        self.tally.read += 1;
        let row = self.memory.row(found.seq);
        let event = &row.draft;
        assert_eq!(
            (&found.topic, &found.event_id, &found.source),
            (&event.topic, &event.event_id, &event.source)
        );
        assert_eq!(found.timestamp, event.time.kept, "sent as {}", event.time.sent);
        let payload = event.payload.as_deref().unwrap_or("{}").trim();
        assert_eq!(found.payload.get(), payload);
        check_processed_at(&mut row.processed_at, &found.processed_at);
    }

    /// The event gets a name of its own, so that it is new and there is something to wait for. Whether the query has
    /// begun to wait when it is published or not, it is answered with it.
    fn follow(&mut self, event: &Draft, pause_micros: u64) {
        self.fresh += 1;
        let event = Draft {
            event_id: format!("fresh-{}", self.fresh),
            ..event.clone()
        };
        let mut reader = Reader::new(&Filter::default(), Order::Ascending);
        reader.position = Some(self.memory.newest());
        self.page(&mut reader, None, true, "position=end&");
        let cursor = reader.cursor.as_ref().expect("a cursor");
        let topic = encoded(&event.topic);
        let target = format!("/events?cursor={cursor}&wait={WAIT_SECONDS}&topic={topic}");
        let address = self.server.address();
        let began = Instant::now();
        let answer = thread::scope(|scope| {
            let query = scope.spawn(|| Client::new(address).get(&target));
            thread::sleep(Duration::from_micros(pause_micros));
            self.publish(Shape::Single, false, std::slice::from_ref(&event));
            query.join().expect("the query is answered")
        });
        assert!(
            began.elapsed() < Duration::from_secs(WAIT_SECONDS),
            "an event was published, and nobody told the query that waited for it"
        );
        self.tally.requests += 1;
        let page: Page = parsed(&answer);
        let [found] = &page.events[..] else {
            panic!("the one event that was published, not {}", page.count);
        };
        assert_eq!(found.seq, self.memory.newest());
        self.check_event(found);
    }

    fn read_one(&mut self, topic: &str, event_id: &str) {
        let target = format!("/events/{}/{}", encoded(topic), encoded(event_id));
        let answer = self.get(&target);
        match self.memory.find(topic, event_id) {
            Some(seq) => {
                assert_eq!(answer.status, 200, "{target}: {}", answer.text());
                let event: Stored = parsed(&answer);
                assert_eq!(event.seq, seq);
                self.check_event(&event);
            }
            None => {
                let problem = answer.problem(404);
                assert_eq!(problem["type"], "/problems/no-such-event", "{target}");
            }
        }
    }

    fn wrong_query(&mut self, which: Index, cursor: Index) {
        let mut targets: Vec<_> = WRONG_QUERIES
            .iter()
            .map(|(target, kind)| ((*target).to_owned(), *kind))
            .collect();
        let reader = match self.readers.len() {
            0 => None,
            readers => Some(&self.readers[cursor.index(readers)]),
        };
        if let Some(reader) = reader
            && let Some(cursor) = &reader.cursor
        {
            let other = match reader.order {
                Order::Ascending => "desc",
                Order::Descending => "asc",
            };
            targets.extend([
                (format!("/events?order={other}&cursor={cursor}"), "cursor"),
                (format!("/events?cursor={cursor}A"), "cursor"),
                (format!("/events?cursor=B{cursor}"), "cursor"),
                (format!("/topics?cursor={cursor}"), "cursor"),
                (format!("/events?position=start&cursor={cursor}"), "parameter"),
            ]);
        }
        let (target, kind) = which.get(&targets);
        let problem = self.get(target).problem(422);
        assert_eq!(problem["type"], format!("/problems/invalid-{kind}"), "{target}");
    }

    // ---- counters ----

    fn check_stats(&mut self) {
        let mut stats = self.get("/stats").ok();
        let [received, unique, duplicates, conflicts] = self.memory.totals();
        let uptime = stats["uptime_seconds"].as_u64().expect("uptime_seconds");
        let in_words = format!("{}h {}m {}s", uptime / 3600, uptime / 60 % 60, uptime % 60);
        assert_eq!(stats["uptime_human"], in_words);
        for name in ["uptime_seconds", "uptime_human"] {
            stats.as_object_mut().expect("an object").remove(name);
        }
        let topics: Vec<_> = self.memory.topics.keys().collect();
        assert_eq!(
            stats,
            json!({
                "received": received,
                "unique_processed": unique,
                "duplicate_dropped": duplicates,
                "conflicts": conflicts,
                "topics": topics,
                "topics_total": topics.len(),
                "queue_size": 0,
            })
        );
    }

    fn check_topics(&mut self, limit: usize) {
        let mut found: BTreeMap<String, Topic> = BTreeMap::new();
        let mut cursor = String::new();
        loop {
            let answer = self.get(&format!("/topics?limit={limit}{cursor}"));
            let page: TopicPage = parsed(&answer);
            assert_eq!(page.count, page.topics.len());
            assert!(page.count <= limit, "{} topics, limit={limit}", page.count);
            for topic in page.topics {
                let after_last = found.keys().last().is_none_or(|last| *last < topic.topic);
                assert!(after_last, "{:?} in the order of names", topic.topic);
                found.insert(topic.topic.clone(), topic);
            }
            match page.next {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        assert!(found.keys().eq(self.memory.topics.keys()), "{:?}", found.keys());
        for (name, found) in found {
            let counts = &self.memory.topics[&name];
            assert_eq!(
                [
                    found.accepted,
                    found.duplicates,
                    found.conflicts,
                    found.first_seq,
                    found.last_seq
                ],
                [
                    counts.accepted,
                    counts.duplicates,
                    counts.conflicts,
                    counts.first,
                    counts.last
                ],
                "{name:?}"
            );
            for (seq, processed_at) in [
                (found.first_seq, found.first_processed_at),
                (found.last_seq, found.last_processed_at),
            ] {
                check_processed_at(&mut self.memory.row(seq).processed_at, &processed_at);
            }
        }
    }

    // ---- kills ----

    /// A request that gets no answer is stored as a whole or not at all.
    fn kill_during(&mut self, events: &[Draft], pause_micros: u64) {
        let address = self.server.address();
        let body = body(Shape::Array, events);
        let answer = thread::scope(|scope| {
            let publish = scope.spawn(|| {
                Client::new(address).attempt(
                    "POST",
                    "/publish?results=true",
                    &[("content-type", "application/json")],
                    body.as_bytes(),
                )
            });
            thread::sleep(Duration::from_micros(pause_micros));
            self.server.kill9();
            publish.join().expect("the request ends")
        });
        self.tally.kills += 1;
        self.tally.requests += 1;
        self.start_again();
        let [before, ..] = self.memory.totals();
        let [now, ..] = self.client.counters();
        match answer {
            Ok(answer) => {
                let answer = answer.ok();
                let outcomes = self.remember(events);
                assert_eq!(answer, published(events, &outcomes, true));
            }
            Err(_) if now == before => self.tally.unanswered_lost += 1,
            Err(_) => {
                self.tally.unanswered_stored += 1;
                assert_eq!(now, before + events.len() as u64, "all of a request or nothing");
                self.remember(events);
            }
        }
    }
}

/// The time of a commit: microseconds in UTC, and the same whenever it is asked for.
#[track_caller]
fn check_processed_at(known: &mut Option<String>, found: &str) {
    let known = known.get_or_insert_with(|| {
        let form: String = found
            .chars()
            .map(|c| if c.is_ascii_digit() { '0' } else { c })
            .collect();
        assert_eq!(form, "0000-00-00T00:00:00.000000Z", "{found}");
        found.to_owned()
    });
    assert_eq!(known, found, "the time of a commit never changes");
}

fn segments(folder: &Folder) -> u64 {
    let entries = std::fs::read_dir(folder.index()).expect("the index's folder");
    entries
        .filter(|entry| {
            let path = entry.as_ref().expect("an entry").path();
            path.extension().is_some_and(|extension| extension == "segment")
        })
        .count() as u64
}
