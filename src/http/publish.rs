//! `POST /publish` and `POST /publish/batch`: bytes become a batch, the batch is committed, the answer says exactly
//! what became of it. Or it is queued in the broker, for a client that asked for it.

use super::{
    App,
    admission::{Admitted, check_topic},
    answers::{self, Reservation},
    codings,
    documents::PublishProblems,
    error::{Kind, Problem},
    parameters::Parameters,
    rate_limit::Sender,
};
use crate::{
    access::Caller,
    compression::BodyCoding,
    event::{self, Batch, Outcome, Seq, Shape},
    ingest::SubmitError,
    limits::{MAX_TOPICS, PARSE_INLINE_BYTES},
    store::{BatchOutcome, Placed},
};
use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    response::Response,
};
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;
use utoipa::{IntoParams, ToSchema};

const JSON: &str = "application/json";
const NDJSON: &str = "application/x-ndjson";

/// One event as it is sent.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Event, example = json!({
    "topic": "user.login",
    "event_id": "evt-001",
    "timestamp": "2025-10-23T10:00:00Z",
    "source": "auth-service",
    "payload": {"user_id": 123, "username": "alice"}
}))]
#[allow(dead_code, reason = "describes what `event::parse` reads")]
pub(crate) struct EventInput {
    /// What the event is about. With `event_id` it is the event's identity. Any characters but U+0000; case and
    /// Unicode form matter.
    #[schema(min_length = 1, max_length = 255, pattern = r"^[^\u0000]+$")]
    topic: String,
    /// The producer's name for the event, unique within its topic.
    #[schema(min_length = 1, max_length = 255, pattern = r"^[^\u0000]+$")]
    event_id: String,
    /// When it happened: an ISO 8601 date-time with up to nine digits of a second; with no offset it is UTC.
    #[schema(format = "date-time")]
    timestamp: String,
    /// Who sent it.
    #[schema(min_length = 1, max_length = 255, pattern = r"^[^\u0000]+$")]
    source: String,
    /// A JSON object, nested at most 64 deep, without duplicate keys; `{}` when left out. It comes back byte for byte.
    #[schema(required = false, value_type = Object)]
    payload: serde_json::Value,
}

/// Events that are stored together or not at all.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Events)]
#[allow(dead_code, reason = "describes what `event::parse` reads")]
pub(crate) struct EventsInput {
    /// At least one event, at most `QUEUE_MAX_SIZE`.
    #[schema(min_items = 1)]
    events: Vec<EventInput>,
}

/// At least one event, at most `QUEUE_MAX_SIZE`.
#[derive(Serialize, ToSchema)]
#[schema(min_items = 1)]
#[allow(dead_code, reason = "describes what `event::parse` reads")]
pub(crate) struct EventArray(Vec<EventInput>);

/// One event, an array of events, or `{"events":[…]}`.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = PublishBody)]
#[allow(dead_code, reason = "describes what `event::parse` reads")]
pub(crate) enum PublishInput {
    /// One event.
    #[schema(title = "One event")]
    One(EventInput),
    /// An array of events.
    #[schema(title = "Array")]
    Many(EventArray),
    /// Events in an object.
    #[schema(title = "Wrapped")]
    Wrapped(EventsInput),
}

/// When a publish is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Ack {
    Committed,
    Queued,
}

/// What the query of a publish asks for.
struct Options {
    ack: Ack,
    results: bool,
}

/// What a publish asks for, and how its body is to be read.
struct Wanted {
    shape: Shape,
    coding: Option<BodyCoding>,
    options: Options,
}

impl Wanted {
    fn of(app: &App, request: &Request, shape: Shape) -> Result<Self, Problem> {
        Ok(Self {
            shape,
            coding: codings::of_body(request.headers())?,
            options: options(request.uri().query(), app.broker.is_some())?,
        })
    }
}

/// How many of a request's events the broker has: all of them.
#[derive(Serialize, ToSchema)]
#[schema(as = Queued, example = json!({
    "received": 3,
    "queued": 3,
    "message": "Received 3 events, queued 3"
}))]
pub(crate) struct QueuedBody {
    /// Events in the request.
    received: usize,
    /// Those that the broker has, to be committed soon; which of them are duplicates is found out then.
    queued: usize,
    /// The same in words.
    message: String,
}

/// What became of a request's events. `received` = `accepted` + `duplicates`.
#[derive(Serialize, ToSchema)]
#[schema(as = Published, example = json!({
    "received": 3,
    "accepted": 2,
    "duplicates": 1,
    "conflicts": 0,
    "message": "Received 3 events, accepted 2, rejected 1 duplicates"
}))]
pub(crate) struct PublishedBody<'a> {
    /// Events in the request.
    received: usize,
    /// Those that were new and are stored now.
    accepted: usize,
    /// Those whose identity was there already, conflicts included.
    duplicates: usize,
    /// Those of `duplicates` that had another payload than the first one.
    conflicts: usize,
    /// The same in words.
    message: String,
    /// With `results=true`: one entry an event, in the order sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    results: Option<Vec<EventResult<'a>>>,
}

/// What became of one event.
#[derive(Serialize, ToSchema)]
pub(crate) struct EventResult<'a> {
    /// Its topic.
    topic: &'a str,
    /// Its id.
    event_id: &'a str,
    /// `stored`, `duplicate`, or `conflict`: a duplicate with another payload.
    outcome: EventOutcome,
    /// Where the event stands in the log; of a duplicate, where the first one stands.
    #[schema(value_type = u64)]
    seq: Seq,
}

/// What became of one event.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum EventOutcome {
    /// It is new and now in the store.
    Stored,
    /// Its identity was there already, with the same payload.
    Duplicate,
    /// Its identity was there already, with another payload; the first one stays.
    Conflict,
}

/// The headers that say what a body is, besides its type.
#[derive(Serialize, IntoParams)]
#[into_params(parameter_in = Header)]
#[allow(dead_code, reason = "describes what `codings::of_body` reads")]
struct BodyHeaders {
    /// How the body is compressed: `gzip` (one or more members) or `zstd` (one or more frames, with windows up to 8 MiB);
    /// at most one of them. Its bound holds for the body as it comes and once it is decompressed.
    #[param(rename = "Content-Encoding", required = false, inline)]
    content_encoding: ContentEncoding,
}

/// The values of `Content-Encoding`.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[allow(dead_code, reason = "describes what `codings::of_body` reads")]
enum ContentEncoding {
    Gzip,
    Zstd,
    Identity,
}

/// Store events, each once
///
/// One event, an array of them, `{"events":[…]}`, or one event a line with `application/x-ndjson`. All of the
/// request's events are stored, or none. 200 means that they are committed and synced to disk; after anything else,
/// sending them again is safe.
#[utoipa::path(
    post,
    path = "/publish",
    operation_id = "publish",
    tag = "Publish",
    params(
        ("results" = Option<bool>, Query, description = "Whether the answer says for each event what became of it. Default: false."),
        ("ack" = inline(Option<Ack>), Query, description = "When to answer. `committed`, the default: when the events are in the store. `queued`, only on a server with a broker: when the broker has them; not together with `results=true`."),
        BodyHeaders,
    ),
    request_body(
        description = "At most 16 MiB, also once it is decompressed.",
        content((PublishInput = "application/json"), (String = "application/x-ndjson")),
    ),
    responses(
        (status = 200, description = "All events are committed, or were there already.", body = PublishedBody),
        (status = 202, description = "With `ack=queued`: the broker has all events. They are committed soon, also when the store is away now.", body = QueuedBody),
        PublishProblems,
    ),
)]
pub(super) fn publish(
    State(app): State<App>,
    Admitted(sender): Admitted,
    request: Request,
) -> impl Future<Output = Result<Response, Problem>> {
    let wanted = content_type(request.headers()).and_then(|content_type| {
        let shape = match content_type {
            ContentType::Json => Shape::Any,
            ContentType::Lines => Shape::Lines,
        };
        Wanted::of(&app, &request, shape)
    });
    let body = request.into_body();
    // No `async fn`, for the reason that `accept` has.
    async move { accept(&app, &sender, wanted?, body).await }
}

/// Store a batch of events, each once
///
/// The same as `POST /publish`, for `{"events":[…]}` only.
#[utoipa::path(
    post,
    path = "/publish/batch",
    operation_id = "publishBatch",
    tag = "Publish",
    params(
        ("results" = Option<bool>, Query, description = "Whether the answer says for each event what became of it. Default: false."),
        ("ack" = inline(Option<Ack>), Query, description = "When to answer. `committed`, the default: when the events are in the store. `queued`, only on a server with a broker: when the broker has them; not together with `results=true`."),
        BodyHeaders,
    ),
    request_body(description = "At most 16 MiB, also once it is decompressed.", content = EventsInput, content_type = "application/json"),
    responses(
        (status = 200, description = "All events are committed, or were there already.", body = PublishedBody),
        (status = 202, description = "With `ack=queued`: the broker has all events. They are committed soon, also when the store is away now.", body = QueuedBody),
        PublishProblems,
    ),
)]
pub(super) async fn publish_batch(
    State(app): State<App>,
    Admitted(sender): Admitted,
    request: Request,
) -> Result<Response, Problem> {
    match content_type(request.headers())? {
        ContentType::Json => {
            let wanted = Wanted::of(&app, &request, Shape::Wrapped)?;
            accept(&app, &sender, wanted, request.into_body()).await
        }
        ContentType::Lines => Err(unsupported(format!(
            "/publish/batch takes {JSON} only, not {NDJSON}"
        ))),
    }
}

/// Without the whole request: each `async fn` on the way here would keep two places for it until the answer. What waits for a
/// commit should be small, so that the processor's cache has it still when it goes on.
async fn accept(app: &App, sender: &Sender, wanted: Wanted, body: Body) -> Result<Response, Problem> {
    let Wanted {
        shape,
        coding,
        options: Options { ack, results },
    } = wanted;
    let (mut body, mut room) = app.bodies.read(body, app.patience).await?;
    if let Some(coding) = coding {
        (body, room) = app.bodies.decompress(coding, body, room, app.patience).await?;
    }
    let (batch, room) = parse(app, body, room, shape).await?;
    check_topics(&sender.caller, &batch)?;
    // Before the events are stored: afterwards it is too late to refuse the request.
    let results = match results {
        true => {
            // The names in the answer are never longer than in the body.
            let bytes = batch.bytes() + batch.len() * answers::ENTRY_BYTES;
            Some((names(&batch), app.answers.reserve(bytes).await?))
        }
        false => None,
    };
    let events = batch.len();
    sender.take_events(events)?;
    let is_queued = ack == Ack::Queued;
    let mut span = app.tracer.child(if is_queued { "queue" } else { "commit" });
    if let Some(span) = &mut span {
        span.number("oncelog.events", events as u64);
    }
    let response = match (ack, &app.broker) {
        (Ack::Queued, Some(broker)) => {
            broker.queue(batch, room).await?;
            queued(events)
        }
        _ => commit(app, batch, room, results).await?,
    };
    drop(span);
    Ok(response)
}

/// Has a batch committed and says what became of it.
async fn commit(
    app: &App,
    batch: Batch,
    room: OwnedSemaphorePermit,
    results: Option<Results>,
) -> Result<Response, Problem> {
    match app.ingest.submit(batch, room).await {
        Ok(BatchOutcome::Committed(placed)) => answer(&placed, results),
        Ok(BatchOutcome::TooManyTopics { event }) => Err(Problem::at(
            Kind::TooManyTopics,
            format!("events[{event}].topic"),
            format!(
                "events[{event}].topic: the store holds {MAX_TOPICS} topics, as many as it may; use one that is there"
            ),
        )),
        // Only what comes out of a broker has a fence.
        Ok(BatchOutcome::Fenced { .. }) => Err(Problem::new(
            Kind::Internal,
            "the store refused the events for a lease that they do not have",
        )),
        Err(SubmitError::Stopping) if !*app.stopping.borrow() => {
            Err(Problem::new(Kind::StoreUnavailable, super::health::NO_COMMITTER))
        }
        Err(error) => Err(error.into()),
    }
}

/// Refuses a batch with an event of a topic that the key is not for.
fn check_topics(caller: &Caller, batch: &Batch) -> Result<(), Problem> {
    if caller.has_every_topic() {
        return Ok(());
    }
    for (number, event) in batch.events().enumerate() {
        check_topic(caller, event.topic, &format!("events[{number}].topic"))?;
    }
    Ok(())
}

/// Reads `results` and `ack`.
fn options(query: Option<&str>, has_broker: bool) -> Result<Options, Problem> {
    let mut options = Options {
        ack: Ack::Committed,
        results: false,
    };
    if query.is_none() {
        return Ok(options);
    }
    let mut parameters = Parameters::parse(query, &["results", "ack"])?;
    let words = [("committed", Ack::Committed), ("queued", Ack::Queued)];
    options.ack = parameters.word("ack", &words)?.unwrap_or(options.ack);
    options.results = parameters
        .word("results", &[("true", true), ("false", false)])?
        .unwrap_or(options.results);
    match options {
        Options { ack: Ack::Queued, .. } if !has_broker => Err(Problem::parameter(
            "ack",
            "this server has no broker that could hold the events; leave it out or use committed",
        )),
        Options {
            ack: Ack::Queued,
            results: true,
        } => Err(Problem::parameter(
            "results",
            "with ack=queued the answer leaves before anybody knows what becomes of the events; leave one of the two out",
        )),
        options => Ok(options),
    }
}

fn queued(events: usize) -> Response {
    let mut response = super::json(&QueuedBody {
        received: events,
        queued: events,
        message: format!("Received {events} events, queued {events}"),
    });
    *response.status_mut() = StatusCode::ACCEPTED;
    response
}

async fn parse(
    app: &App,
    body: Vec<u8>,
    room: OwnedSemaphorePermit,
    shape: Shape,
) -> Result<(Batch, OwnedSemaphorePermit), Problem> {
    let identity = app.store.identity();
    let max_events = app.ingest.capacity();
    if body.len() <= PARSE_INLINE_BYTES {
        return Ok((event::parse(body, shape, &identity, max_events)?, room));
    }
    // The room goes with the work, which goes on when the client has left.
    let parse = move || event::parse(body, shape, &identity, max_events).map(|batch| (batch, room));
    let parsed = super::beside(parse, "parsing a body", "the body could not be parsed").await?;
    Ok(parsed?)
}

fn names(batch: &Batch) -> Vec<(String, String)> {
    batch
        .events()
        .map(|event| (event.topic.to_owned(), event.event_id.to_owned()))
        .collect()
}

/// Topic and id of each event of a request, and the room for an answer with them.
type Results = (Vec<(String, String)>, Reservation);

fn answer(placed: &[Placed], results: Option<Results>) -> Result<Response, Problem> {
    let counts = Counts::of(placed);
    let Some((names, room)) = results else {
        return Ok(super::json_of(Body::from(counts.json())));
    };
    let results = placed
        .iter()
        .zip(&names)
        .map(|(placed, (topic, event_id))| EventResult {
            topic,
            event_id,
            outcome: match placed.outcome {
                Outcome::Stored => EventOutcome::Stored,
                Outcome::Duplicate => EventOutcome::Duplicate,
                Outcome::Conflict => EventOutcome::Conflict,
            },
            seq: placed.seq,
        })
        .collect();
    let body = PublishedBody {
        received: counts.received,
        accepted: counts.accepted,
        duplicates: counts.duplicates,
        conflicts: counts.conflicts,
        message: counts.message(),
        results: Some(results),
    };
    let expected = names
        .iter()
        .map(|(topic, id)| topic.len() + id.len() + RESULT_BYTES)
        .sum();
    room.json(&body, expected)
}

/// What became of a request's events, counted.
struct Counts {
    received: usize,
    accepted: usize,
    duplicates: usize,
    conflicts: usize,
}

impl Counts {
    fn of(placed: &[Placed]) -> Self {
        let count = |outcome| placed.iter().filter(|placed| placed.outcome == outcome).count();
        let received = placed.len();
        let conflicts = count(Outcome::Conflict);
        let duplicates = count(Outcome::Duplicate) + conflicts;
        Self {
            received,
            accepted: received - duplicates,
            duplicates,
            conflicts,
        }
    }

    /// A [`PublishedBody`] without results. Almost every answer is one, so it is put together without the machinery of
    /// serde and `format!` (measured: that takes 2,900 instructions, this 1,100).
    fn json(&self) -> String {
        let mut json = String::with_capacity(COUNTS_BYTES);
        let counts = [
            (r#"{"received":"#, self.received),
            (r#","accepted":"#, self.accepted),
            (r#","duplicates":"#, self.duplicates),
            (r#","conflicts":"#, self.conflicts),
        ];
        write_counts(&mut json, counts);
        // It has nothing that JSON would escape.
        json.push_str(r#","message":""#);
        self.write_message(&mut json);
        json.push_str(r#""}"#);
        json
    }

    fn message(&self) -> String {
        let mut message = String::new();
        self.write_message(&mut message);
        message
    }

    fn write_message(&self, text: &mut String) {
        let counts = [
            ("Received ", self.received),
            (" events, accepted ", self.accepted),
            (", rejected ", self.duplicates),
        ];
        write_counts(text, counts);
        text.push_str(" duplicates");
    }
}

/// Each text with its count behind it.
fn write_counts<const N: usize>(text: &mut String, counts: [(&str, usize); N]) {
    for (before, count) in counts {
        text.push_str(before);
        text.push_str(itoa::Buffer::new().format(count));
    }
}

/// What the answer takes without results, with counts of up to ten digits.
const COUNTS_BYTES: usize = 192;

/// About what an entry of the results takes beside its names.
const RESULT_BYTES: usize = 96;

enum ContentType {
    Json,
    Lines,
}

/// What the body is, by its headers.
fn content_type(headers: &HeaderMap) -> Result<ContentType, Problem> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return Err(unsupported(format!(
            "the Content-Type header is missing; send {JSON}, or {NDJSON} for one event a line"
        )));
    };
    // The usual case needs no parsing.
    if value == JSON {
        return Ok(ContentType::Json);
    }
    let text = value.to_str().unwrap_or_default();
    let mut parts = text.split(';').map(str::trim);
    let kind = parts.next().unwrap_or_default();
    for parameter in parts {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        if name.eq_ignore_ascii_case("charset") && !value.trim_matches('"').eq_ignore_ascii_case("utf-8") {
            return Err(unsupported(format!("charset: utf-8 is needed, not {value:?}")));
        }
    }
    if kind.eq_ignore_ascii_case(JSON) {
        Ok(ContentType::Json)
    } else if kind.eq_ignore_ascii_case(NDJSON) {
        Ok(ContentType::Lines)
    } else {
        Err(unsupported(format!(
            "{text:?} is not supported; send {JSON}, or {NDJSON} for one event a line"
        )))
    }
}

fn unsupported(detail: impl Into<String>) -> Problem {
    Problem::new(Kind::UnsupportedMediaType, detail)
}
