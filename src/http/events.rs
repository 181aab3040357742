//! `GET /events` and `GET /events/{topic}/{event_id}`: reads the log in both directions, a page at a time.

use super::{
    App,
    admission::{Admitted, check_topic, shown_to},
    answers::{self, Made},
    codings::Accepts,
    cursor::{self, Position},
    documents::{EventProblems, QueryProblems},
    error::{Kind, Problem},
    parameters::{Parameters, check_name},
};
use crate::{
    access::Caller,
    event::{Instant, Seq, format_micros},
    limits::{DEFAULT_PAGE_LIMIT, MAX_PAGE_LIMIT, MAX_WAIT_SECONDS, WAIT_RECHECK},
    stopping::told,
    store::{Frontier, Order, Page, Query, ReadError, StoredEvent},
};
use axum::{
    extract::{Path, RawQuery, State, rejection::PathRejection},
    response::Response,
};
use serde::Serialize;
use serde_json::value::RawValue;
use std::{sync::Arc, time::Duration};
use utoipa::ToSchema;

/// An event as it was stored.
#[derive(Serialize, ToSchema)]
#[schema(as = StoredEvent, example = json!({
    "seq": 1,
    "topic": "user.login",
    "event_id": "evt-001",
    "timestamp": "2025-10-23T10:00:00Z",
    "source": "auth-service",
    "payload": {"user_id": 123, "username": "alice"},
    "processed_at": "2025-10-23T10:00:01.000000Z"
}))]
pub(crate) struct EventBody {
    /// Its number: from 1, without gaps, in the order in which events were committed.
    #[schema(value_type = u64)]
    seq: Seq,
    /// What it is about.
    topic: String,
    /// The producer's name for it, unique within its topic.
    event_id: String,
    /// When it happened, in UTC.
    #[schema(format = "date-time")]
    timestamp: String,
    /// Who sent it.
    source: String,
    /// Byte for byte as it was sent.
    #[schema(value_type = Object)]
    payload: Box<RawValue>,
    /// When it was committed, in UTC with microseconds.
    #[schema(format = "date-time")]
    processed_at: String,
}

/// A page of events.
#[derive(Serialize, ToSchema)]
#[schema(as = EventPage)]
pub(crate) struct PageBody {
    /// The topic that was asked for; null when none was.
    #[schema(required = true)]
    topic: Option<String>,
    /// How many events this page has. It may be fewer than `limit`, or none, although more is left.
    count: usize,
    /// The events, in the order asked for.
    events: Vec<EventBody>,
    /// The cursor with which to go on. With `order=desc` it is null when nothing is left; with `order=asc` it is
    /// always given.
    #[schema(required = true)]
    next: Option<String>,
    /// With `order=asc`: whether the page reached the end of the log.
    #[serde(skip_serializing_if = "Option::is_none")]
    caught_up: Option<bool>,
}

impl TryFrom<StoredEvent> for EventBody {
    type Error = ReadError;

    fn try_from(event: StoredEvent) -> Result<Self, ReadError> {
        let payload = RawValue::from_string(event.payload).map_err(|error| {
            ReadError::Failed(format!("the payload of event {} is damaged: {error}", event.seq))
        })?;
        Ok(Self {
            seq: event.seq,
            topic: event.topic,
            event_id: event.event_id,
            timestamp: event.timestamp,
            source: event.source,
            payload,
            processed_at: format_micros(event.processed_at),
        })
    }
}

/// The values of `order`.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[allow(dead_code, reason = "describes what `request` reads")]
enum OrderWord {
    Desc,
    Asc,
}

/// The values of `position`.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[allow(dead_code, reason = "describes what `request` reads")]
enum StartWord {
    Start,
    End,
}

/// What a request asks for.
struct Request {
    query: Query,
    wait: Duration,
    from_end: bool,
}

/// Read events, newest or oldest first
///
/// A page ends early when it has looked at much of the log or holds many bytes, so it may be short or empty: go on
/// with `next` until it is null (`order=desc`) or `caught_up` is true (`order=asc`). Who reads on from a cursor gets
/// every event once, also while others publish.
#[utoipa::path(
    get,
    path = "/events",
    operation_id = "listEvents",
    tag = "Read",
    params(
        ("topic" = Option<String>, Query, min_length = 1, max_length = 255, pattern = r"^[^\u0000]+$", description = "Only this topic."),
        ("source" = Option<String>, Query, min_length = 1, max_length = 255, pattern = r"^[^\u0000]+$", description = "Only this source."),
        ("from" = Option<String>, Query, format = "date-time", description = "Only events that happened at this time or later (ISO 8601; write a `+` as `%2B`)."),
        ("to" = Option<String>, Query, format = "date-time", description = "Only events that happened before this time (ISO 8601)."),
        ("order" = inline(Option<OrderWord>), Query, description = "`desc`, the default: newest first. `asc`: oldest first."),
        ("limit" = Option<u64>, Query, minimum = 1, maximum = 1000, description = "At most this many events: 1 to 1000, default 100."),
        ("cursor" = Option<String>, Query, min_length = 1, description = "Go on from here: `next` of another page."),
        ("position" = inline(Option<StartWord>), Query, description = "With `order=asc` and no cursor: `start`, the default, or `end`, to follow what is committed from now on."),
        ("wait" = Option<u64>, Query, minimum = 0, maximum = 30, description = "With `order=asc`: when there is nothing yet, answer as soon as there is, or after this many seconds (at most 30)."),
    ),
    responses(
        (status = 200, description = "A page of events.", body = PageBody, links(
            ("next" = (
                operation_id = "listEvents",
                parameters(("cursor" = "$response.body#/next")),
                description = "The page that follows; none when `next` is null.",
            )),
        )),
        QueryProblems,
    ),
)]
pub(super) async fn list(
    State(app): State<App>,
    Admitted(sender): Admitted,
    accepts: Accepts,
    RawQuery(raw): RawQuery,
) -> Result<Response, Problem> {
    let Request {
        mut query,
        wait,
        from_end,
    } = request(&app, &sender.caller, raw.as_deref()).await?;
    if from_end && wait.is_zero() {
        let page = Page {
            events: Vec::new(),
            position: frontier(&app).await?.settled,
            exhausted: true,
        };
        return Ok(super::json(&body(&app, query, page)?));
    }
    let until = tokio::time::Instant::now() + wait;
    // Subscribed before the first look: what is committed from here on is either read or announced.
    let mut woken = app.wakeup.subscribe();
    let mut stopping = app.stopping.clone();
    if from_end {
        query.position = Some(frontier(&app).await?.settled);
    }
    loop {
        let looked = tokio::time::Instant::now();
        let over = looked >= until || *stopping.borrow();
        match look(&app, query.clone(), accepts, over).await? {
            Look::Answer(response) => return Ok(response),
            Look::Nothing { position, exhausted } => {
                query.position = Some(position);
                if !exhausted {
                    continue;
                }
            }
        }
        tokio::select! {
            () = woken.changed() => {
                // However often something is committed, the store is not asked more often than this.
                tokio::time::sleep_until((looked + WAIT_RECHECK).min(until)).await;
            }
            () = tokio::time::sleep_until(until) => {}
            () = told(&mut stopping) => {}
        }
    }
}

/// Read one event
#[utoipa::path(
    get,
    path = "/events/{topic}/{event_id}",
    operation_id = "readEvent",
    tag = "Read",
    params(
        ("topic" = String, Path, min_length = 1, max_length = 255, pattern = r"^[^\u0000]+$", description = "Its topic, percent-encoded (`/` is `%2F`)."),
        ("event_id" = String, Path, min_length = 1, max_length = 255, pattern = r"^[^\u0000]+$", description = "Its id, percent-encoded."),
    ),
    responses(
        (status = 200, description = "The event.", body = EventBody),
        EventProblems,
    ),
)]
pub(super) async fn one(
    State(app): State<App>,
    Admitted(sender): Admitted,
    accepts: Accepts,
    path: Result<Path<(String, String)>, PathRejection>,
    RawQuery(raw): RawQuery,
) -> Result<Response, Problem> {
    Parameters::parse(raw.as_deref(), &[])?;
    let Path((topic, event_id)) =
        path.map_err(|_| Problem::parameter("path", "the percent-encoded topic and event id are not UTF-8"))?;
    check_name("topic", &topic)?;
    check_name("event_id", &event_id)?;
    check_topic(&sender.caller, &topic, "topic")?;
    let store = Arc::clone(&app.store);
    let (found, turn) = app
        .queries
        .run_in_turn(move || match store.find(&topic, &event_id)? {
            Some(event) => {
                let expected = expected_bytes(&event);
                let bytes = answers::json(&EventBody::try_from(event)?, expected)?;
                Ok(Made::new(bytes, accepts))
            }
            None => Err(Problem::new(
                Kind::NoSuchEvent,
                format!("no event {event_id:?} is stored in topic {topic:?}"),
            )),
        })
        .await?;
    app.answers.hold(found?, turn).await
}

/// Reads the parameters.
async fn request(app: &App, caller: &Caller, raw: Option<&str>) -> Result<Request, Problem> {
    let mut parameters = Parameters::parse(
        raw,
        &[
            "topic", "source", "from", "to", "order", "limit", "cursor", "position", "wait",
        ],
    )?;
    let asked = parameters.word("order", &[("asc", Order::Ascending), ("desc", Order::Descending)])?;
    let cursor = match parameters.take("cursor") {
        Some(text) => Some(position(app, &text, asked).await?),
        None => None,
    };
    let order = cursor
        .map(|cursor| cursor.order)
        .or(asked)
        .unwrap_or(Order::Descending);
    let start = parameters.word("position", &[("start", false), ("end", true)])?;
    if start.is_some() && (cursor.is_some() || order == Order::Descending) {
        return Err(Problem::parameter(
            "position",
            "only with order=asc and without a cursor",
        ));
    }
    let wait = parameters.number("wait", 0, MAX_WAIT_SECONDS)?;
    if wait.is_some() && order == Order::Descending {
        return Err(Problem::parameter("wait", "only with order=asc"));
    }
    let topic = parameters.name("topic")?;
    if let Some(topic) = &topic {
        check_topic(caller, topic, "topic")?;
    }
    Ok(Request {
        query: Query {
            shown: shown_to(caller),
            topic,
            source: parameters.name("source")?,
            from: time(&mut parameters, "from")?,
            to: time(&mut parameters, "to")?,
            order,
            position: cursor.map(|cursor| cursor.seq),
            limit: parameters
                .number("limit", 1, MAX_PAGE_LIMIT as u64)?
                .map_or(DEFAULT_PAGE_LIMIT, |limit| limit as usize),
        },
        wait: Duration::from_secs(wait.unwrap_or(0)),
        from_end: start.unwrap_or(false),
    })
}

async fn position(app: &App, text: &str, asked: Option<Order>) -> Result<Position, Problem> {
    let position = app.cursors.read_events(text)?;
    if let Some(asked) = asked
        && asked != position.order
    {
        let (of, other) = match position.order {
            Order::Ascending => ("asc", "desc"),
            Order::Descending => ("desc", "asc"),
        };
        return Err(cursor::invalid(format_args!(
            "it is of order={of}, not of order={other}"
        )));
    }
    // Another instance may have given it, and know of more.
    if position.seq > app.store.high_watermark() && position.seq > frontier(app).await?.newest {
        return Err(cursor::invalid(
            "it is ahead of the store: was an older copy of the store put back?",
        ));
    }
    Ok(position)
}

/// How far the log has come, as the store itself knows.
async fn frontier(app: &App) -> Result<Frontier, Problem> {
    let store = Arc::clone(&app.store);
    Ok(app.queries.run(move || store.frontier()).await??)
}

fn time(parameters: &mut Parameters, name: &str) -> Result<Option<Instant>, Problem> {
    let Some(text) = parameters.take(name) else {
        return Ok(None);
    };
    Instant::parse(&text).map(Some).map_err(|error| {
        let hint = if text.contains(' ') {
            " (in a query string, write + as %2B)"
        } else {
            ""
        };
        Problem::parameter(name, format!("{error}{hint}"))
    })
}

/// What a look at the store found.
enum Look {
    /// Events, or nothing and no time left: the answer.
    Answer(Response),
    /// Nothing up to this position.
    Nothing { position: Seq, exhausted: bool },
}

/// Reads a page and puts the answer together, both beside the connections' threads: a page may hold megabytes.
async fn look(app: &App, query: Query, accepts: Accepts, over: bool) -> Result<Look, Problem> {
    // To find the events of some topics, the rows of all are looked at.
    let some_topics = query.topic.is_none() && !query.shown.is_all();
    let search = match some_topics || query.source.is_some() || query.from.is_some() || query.to.is_some() {
        true => Some(app.queries.search().await?),
        false => None,
    };
    let app_there = Arc::clone(app);
    let (look, turn) = app
        .queries
        .run_in_turn(move || {
            let _search = search;
            let page = app_there.store.page(&query)?;
            if page.events.is_empty() && !over {
                return Ok(Err((page.position, page.exhausted)));
            }
            let expected = answers::ENTRY_BYTES + page.events.iter().map(expected_bytes).sum::<usize>();
            // The rows are gone before the answer is there twice.
            let bytes = answers::json(&body(&app_there, query, page)?, expected)?;
            Ok(Ok(Made::new(bytes, accepts)))
        })
        .await?;
    let look: Result<_, Problem> = look;
    Ok(match look? {
        Ok(made) => Look::Answer(app.answers.hold(made, turn).await?),
        Err((position, exhausted)) => Look::Nothing { position, exhausted },
    })
}

/// About how many bytes an event takes in an answer; more when its names have to be escaped.
fn expected_bytes(event: &StoredEvent) -> usize {
    let names = event.topic.len() + event.event_id.len() + event.source.len();
    event.payload.len() + names + answers::ENTRY_BYTES
}

fn body(app: &App, query: Query, page: Page) -> Result<PageBody, ReadError> {
    let order = query.order;
    let more = order == Order::Ascending || !page.exhausted;
    Ok(PageBody {
        topic: query.topic,
        count: page.events.len(),
        events: page
            .events
            .into_iter()
            .map(EventBody::try_from)
            .collect::<Result<_, _>>()?,
        next: more.then(|| {
            app.cursors.events(Position {
                order,
                seq: page.position,
            })
        }),
        caught_up: (order == Order::Ascending).then_some(page.exhausted),
    })
}
