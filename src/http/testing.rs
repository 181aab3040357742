//! A store in memory and an API on it, for the tests of this module and of `server`.

use super::{Api, Parts, Timeouts};
use crate::{
    access::{Gate, KeyFile, Limits},
    committer::{self, Committers},
    event::{Batch, Fence, Identity, Instant, Outcome, Seq},
    health::Health,
    index::Figures,
    ingest::{self, Ingest},
    store::{
        BatchOutcome, Branch, CommitError, Fences, Frontier, Gauges, Order, Page, Placed, Query, ReadError,
        Store, StoredEvent, TopicFilter, TopicStatus, Totals, Writer,
    },
    wakeup::Wakeup,
};
use axum::{
    body::Body,
    http::{HeaderMap, Request, StatusCode, header},
};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
};
use tokio::sync::watch;

/// The identity of the fake store.
pub(crate) const IDENTITY: Identity = Identity {
    store: 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef,
    secret: [42; 16],
};

/// When everything is committed: 2025-10-23T10:00:00.123456Z.
const COMMITTED_AT: i64 = 1_761_213_600_123_456;

/// A store in memory.
#[derive(Default)]
pub(crate) struct FakeStore {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    events: Vec<(StoredEvent, i64, u64)>,
    duplicates: BTreeMap<String, (u64, u64)>,
    fault: Fault,
    fences: Fences,
    scan_rows: Option<usize>,
    pages: usize,
}

/// What is wrong with the store.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    #[default]
    None,
    /// Commits fail.
    Commits,
    /// Commits with events fail; those that only try the store do not.
    Events,
    /// Commits with an event of the id `poison` fail.
    Poison,
    /// The next event has one topic too many.
    Topics,
    /// Reads fail.
    Reads,
}

impl FakeStore {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("no test panics while it holds the store")
    }

    /// Makes something fail from now on.
    pub(crate) fn set_fault(&self, fault: Fault) {
        self.lock().fault = fault;
    }

    /// As if somebody had committed under this lease.
    pub(crate) fn know(&self, fence: Fence) {
        self.lock().fences.know(fence);
    }

    /// Topic and id of each event, in the order in which they were committed.
    pub(crate) fn identities(&self) -> Vec<(String, String)> {
        let state = self.lock();
        let identity = |event: &StoredEvent| (event.topic.clone(), event.event_id.clone());
        state.events.iter().map(|(event, ..)| identity(event)).collect()
    }

    /// A page looks at no more than this many rows.
    pub(crate) fn set_scan_rows(&self, rows: usize) {
        self.lock().scan_rows = Some(rows);
    }

    /// How many pages were read.
    pub(crate) fn pages(&self) -> usize {
        self.lock().pages
    }
}

/// The writing side of a [`FakeStore`].
pub(crate) struct FakeWriter(pub(crate) Arc<FakeStore>);

impl Writer for FakeWriter {
    fn commit(&mut self, batches: &[&Batch]) -> Result<Vec<BatchOutcome>, CommitError> {
        let mut state = self.0.lock();
        match state.fault {
            Fault::Commits | Fault::Events => {
                return Err(CommitError::Unavailable("the disk is full".to_owned()));
            }
            Fault::Topics => {
                return Ok(batches
                    .iter()
                    .map(|_| BatchOutcome::TooManyTopics { event: 0 })
                    .collect());
            }
            Fault::Poison => {
                let mut events = batches.iter().flat_map(|batch| batch.events());
                if events.any(|event| event.event_id == "poison") {
                    return Err(CommitError::Unavailable("it does not like an event".to_owned()));
                }
            }
            Fault::None | Fault::Reads => {}
        }
        Ok(batches
            .iter()
            .map(|batch| match state.fences.admit(batch.fence()) {
                Ok(()) => BatchOutcome::Committed(batch.events().map(|event| state.store(&event)).collect()),
                Err(newest) => BatchOutcome::Fenced { newest },
            })
            .collect())
    }

    fn maintain(&mut self) -> Result<(), CommitError> {
        Ok(())
    }

    fn probe(&mut self) -> Result<(), CommitError> {
        match self.0.lock().fault {
            Fault::Commits => Err(CommitError::Unavailable("the disk is full".to_owned())),
            _ => Ok(()),
        }
    }

    fn close(self: Box<Self>) -> Result<(), CommitError> {
        Ok(())
    }
}

impl State {
    fn store(&mut self, event: &crate::event::Event<'_>) -> Placed {
        let there = self
            .events
            .iter()
            .find(|(stored, ..)| stored.topic == event.topic && stored.event_id == event.event_id);
        if let Some((stored, _, fingerprint)) = there {
            let conflict = *fingerprint != event.fingerprint.0;
            let counts = self.duplicates.entry(event.topic.to_owned()).or_default();
            counts.0 += 1;
            counts.1 += u64::from(conflict);
            return Placed {
                outcome: if conflict {
                    Outcome::Conflict
                } else {
                    Outcome::Duplicate
                },
                seq: stored.seq,
            };
        }
        let seq = self.events.len() as Seq + 1;
        self.events.push((
            StoredEvent {
                seq,
                topic: event.topic.to_owned(),
                event_id: event.event_id.to_owned(),
                timestamp: event.timestamp.to_owned(),
                source: event.source.to_owned(),
                payload: event.payload.to_owned(),
                processed_at: COMMITTED_AT,
            },
            event.seconds,
            event.fingerprint.0,
        ));
        Placed {
            outcome: Outcome::Stored,
            seq,
        }
    }

    fn readable(&self) -> Result<(), ReadError> {
        match self.fault {
            Fault::Reads => Err(ReadError::Failed("row 7 is damaged".to_owned())),
            _ => Ok(()),
        }
    }
}

impl Store for FakeStore {
    fn identity(&self) -> Identity {
        IDENTITY
    }

    fn branches(&self) -> &[Branch] {
        &[Branch { first: 1, id: 1 }]
    }

    fn high_watermark(&self) -> Seq {
        self.lock().events.len() as Seq
    }

    fn frontier(&self) -> Result<Frontier, ReadError> {
        let newest = self.high_watermark();
        Ok(Frontier {
            settled: newest,
            newest,
        })
    }

    fn page(&self, query: &Query) -> Result<Page, ReadError> {
        let mut state = self.lock();
        state.readable()?;
        state.pages += 1;
        let all = state.events.len() as Seq;
        let rows: Vec<Seq> = match query.order {
            Order::Ascending => (query.position.unwrap_or(0) + 1..=all).collect(),
            Order::Descending => (1..query.position.unwrap_or(all + 1)).rev().collect(),
        };
        let mut page = Page {
            events: Vec::new(),
            position: query.position.unwrap_or(match query.order {
                Order::Ascending => 0,
                Order::Descending => all,
            }),
            exhausted: false,
        };
        for (looked, seq) in rows.iter().enumerate() {
            if page.events.len() == query.limit || state.scan_rows.is_some_and(|rows| looked == rows) {
                return Ok(page);
            }
            let (event, seconds, _) = &state.events[*seq as usize - 1];
            let time = Instant {
                seconds: *seconds,
                nanos: 0,
            };
            if query.shown.shows(&event.topic)
                && query.topic.as_ref().is_none_or(|topic| *topic == event.topic)
                && query.source.as_ref().is_none_or(|source| *source == event.source)
                && query.from.is_none_or(|from| time >= from)
                && query.to.is_none_or(|to| time < to)
            {
                page.events.push(event.clone());
            }
            page.position = *seq;
        }
        page.exhausted = true;
        Ok(page)
    }

    fn find(&self, topic: &str, event_id: &str) -> Result<Option<StoredEvent>, ReadError> {
        let state = self.lock();
        state.readable()?;
        Ok(state
            .events
            .iter()
            .map(|(event, ..)| event)
            .find(|event| event.topic == topic && event.event_id == event_id)
            .cloned())
    }

    fn totals(&self, shown: &TopicFilter) -> Result<Totals, ReadError> {
        let topics = self.topics(shown, None, usize::MAX)?;
        Ok(Totals {
            accepted: topics.iter().map(|topic| topic.accepted).sum(),
            duplicates: topics.iter().map(|topic| topic.duplicates).sum(),
            conflicts: topics.iter().map(|topic| topic.conflicts).sum(),
            topics: topics.len() as u64,
        })
    }

    fn topics(
        &self,
        shown: &TopicFilter,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<TopicStatus>, ReadError> {
        let state = self.lock();
        let mut topics: BTreeMap<&str, TopicStatus> = BTreeMap::new();
        for (event, ..) in &state.events {
            let topic = topics.entry(&event.topic).or_insert_with(|| {
                let (duplicates, conflicts) = state.duplicates.get(&event.topic).copied().unwrap_or_default();
                TopicStatus {
                    topic: event.topic.clone(),
                    accepted: 0,
                    duplicates,
                    conflicts,
                    first_seq: event.seq,
                    first_processed_at: event.processed_at,
                    last_seq: event.seq,
                    last_processed_at: event.processed_at,
                }
            });
            topic.accepted += 1;
            topic.last_seq = event.seq;
        }
        Ok(topics
            .into_values()
            .filter(|topic| shown.shows(&topic.topic))
            .filter(|topic| after.is_none_or(|after| topic.topic.as_str() > after))
            .take(limit)
            .collect())
    }

    fn first_topics(&self, limit: usize) -> Result<(Totals, Vec<TopicStatus>), ReadError> {
        let everything = TopicFilter::all();
        Ok((self.totals(&everything)?, self.topics(&everything, None, limit)?))
    }

    fn gauges(&self) -> Result<Gauges, ReadError> {
        let index = Figures {
            tier_segments: vec![1, 2],
            ..Figures::default()
        };
        Ok(Gauges {
            index: Some(index),
            store_bytes: 0,
        })
    }
}

/// An API on a fake store, with a committer.
pub(crate) struct Fixture {
    pub(crate) api: Arc<Api>,
    pub(crate) store: Arc<FakeStore>,
    pub(crate) ingest: Ingest,
    pub(crate) health: Health,
    pub(crate) stop: watch::Sender<bool>,
    committer: Option<Committers>,
}

/// A body without a known length.
pub(crate) struct Chunks(pub(crate) std::vec::IntoIter<Result<Vec<u8>, std::io::Error>>);

impl axum::body::HttpBody for Chunks {
    type Data = bytes::Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<bytes::Bytes>, std::io::Error>>> {
        let next = self.0.next();
        std::task::Poll::Ready(next.map(|chunk| chunk.map(|bytes| hyper::body::Frame::data(bytes.into()))))
    }
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    /// The body as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("no JSON: {error}: {}", self.text))
    }

    /// A header's value; empty when it is not there.
    pub(crate) fn header(&self, name: header::HeaderName) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().expect("a readable header"))
    }

    /// Checks that this is a problem of the kind with a detail that contains `part`.
    #[track_caller]
    pub(crate) fn assert_problem(&self, status: u16, name: &str, part: &str) {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        assert_eq!(self.header(header::CONTENT_TYPE), "application/problem+json");
        let body = self.json();
        assert_eq!(body["type"], format!("/problems/{name}"), "{}", self.text);
        assert_eq!(body["status"], status);
        assert!(!body["title"].as_str().expect("a title").is_empty());
        let detail = body["detail"].as_str().expect("a detail");
        assert!(detail.contains(part), "{part:?} is not in {detail:?}");
        assert_eq!(self.headers.contains_key(header::RETRY_AFTER), status == 503);
    }
}

impl Fixture {
    /// With room for 100 events in the queue.
    pub(crate) fn new() -> Self {
        Self::with(Timeouts::default())
    }

    /// With other timeouts.
    pub(crate) fn with(timeouts: Timeouts) -> Self {
        Self::behind(open_gate(), timeouts)
    }

    /// With keys.
    pub(crate) fn behind(gate: Arc<Gate>, timeouts: Timeouts) -> Self {
        let store = Arc::new(FakeStore::default());
        let (ingest, queue) = ingest::queue(100);
        let health = Health::default();
        let wakeup = Wakeup::new(0);
        let committer = committer::spawn(
            vec![Box::new(FakeWriter(Arc::clone(&store)))],
            &(Arc::clone(&store) as Arc<dyn Store>),
            queue,
            &wakeup,
            &health,
        )
        .expect("a thread");
        health.set_committer_running(true);
        let (stop, stopping) = watch::channel(false);
        let api = Api::new(Parts {
            store: Arc::clone(&store) as Arc<dyn Store>,
            ingest: ingest.clone(),
            broker: None,
            wakeup,
            health: health.clone(),
            stopping,
            gate,
            tracer: crate::traces::Tracer::default(),
            timeouts,
        });
        Self {
            api: Arc::new(api),
            store,
            ingest,
            health,
            stop,
            committer: Some(committer),
        }
    }

    /// Sends a request and reads the answer.
    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.api.clone().handle(request).await;
        let (head, body) = response.into_parts();
        let bytes = body.collect().await.expect("a whole body").to_bytes();
        Answer {
            status: head.status,
            headers: head.headers,
            text: String::from_utf8(bytes.into()).expect("an answer in UTF-8"),
        }
    }

    /// A GET.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path).body(Body::empty()).expect("a valid request"))
            .await
    }

    /// A POST of JSON.
    pub(crate) async fn post(&self, path: &str, body: impl Into<Body>) -> Answer {
        self.post_as(path, "application/json", body).await
    }

    /// A POST of some content type.
    pub(crate) async fn post_as(&self, path: &str, content_type: &str, body: impl Into<Body>) -> Answer {
        let request = Request::post(path)
            .header(header::CONTENT_TYPE, content_type)
            .body(body.into());
        self.send(request.expect("a valid request")).await
    }

    /// Waits until more than `pages` pages were read.
    pub(crate) async fn pages_beyond(&self, pages: usize) {
        while self.store.pages() <= pages {
            tokio::task::yield_now().await;
        }
    }

    /// Waits until the committer has ended.
    pub(crate) async fn wait_for_committer(&self) {
        while self
            .committer
            .as_ref()
            .is_some_and(|committer| !committer.are_finished())
        {
            tokio::task::yield_now().await;
        }
    }

    /// Stores the events `numbers` of a topic.
    pub(crate) async fn fill(&self, topic: &str, numbers: std::ops::Range<usize>) {
        for number in numbers {
            let answer = self
                .post("/publish", event(topic, &format!("e{number}")).to_string())
                .await;
            assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        }
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.ingest.stop();
        if let Some(committer) = self.committer.take() {
            // A test that failed already says why.
            let _ = committer.join();
        }
    }
}

/// A gate without keys.
pub(crate) fn open_gate() -> Arc<Gate> {
    let nowhere = KeyFile::beside(Path::new("/nonexistent/oncelog.db"));
    Arc::new(Gate::open(Box::new(nowhere), false, Limits::default()).expect("no keys"))
}

/// A valid event.
pub(crate) fn event(topic: &str, event_id: &str) -> Value {
    json!({
        "topic": topic,
        "event_id": event_id,
        "timestamp": "2025-10-23T10:00:00Z",
        "source": "test",
        "payload": {"n": 1},
    })
}
