//! `GET /topics`: every topic with its exact counts, a page at a time.

use super::{
    App,
    admission::{Admitted, shown_to},
    answers::{self, Made},
    codings::Accepts,
    documents::QueryProblems,
    error::Problem,
    parameters::Parameters,
};
use crate::{
    event::{Seq, format_micros},
    limits::{DEFAULT_PAGE_LIMIT, MAX_PAGE_LIMIT},
    store::TopicStatus,
};
use axum::{
    extract::{RawQuery, State},
    response::Response,
};
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

/// A topic with its counts.
#[derive(Serialize, ToSchema)]
#[schema(as = Topic)]
pub(crate) struct TopicBody {
    /// Its name.
    topic: String,
    /// Events stored.
    accepted: u64,
    /// Events dropped because their identity was there already, conflicts included.
    duplicates: u64,
    /// Those of `duplicates` that had another payload.
    conflicts: u64,
    /// The number of its first event.
    #[schema(value_type = u64)]
    first_seq: Seq,
    /// When its first event was committed, in UTC with microseconds.
    #[schema(format = "date-time")]
    first_processed_at: String,
    /// The number of its newest event.
    #[schema(value_type = u64)]
    last_seq: Seq,
    /// When its newest event was committed, in UTC with microseconds.
    #[schema(format = "date-time")]
    last_processed_at: String,
}

/// A page of topics.
#[derive(Serialize, ToSchema)]
#[schema(as = TopicPage)]
pub(crate) struct TopicsBody {
    /// How many topics this page has.
    count: usize,
    /// The topics, in the byte order of their names.
    topics: Vec<TopicBody>,
    /// The cursor with which to go on; null when nothing is left.
    #[schema(required = true)]
    next: Option<String>,
}

impl From<TopicStatus> for TopicBody {
    fn from(status: TopicStatus) -> Self {
        Self {
            topic: status.topic,
            accepted: status.accepted,
            duplicates: status.duplicates,
            conflicts: status.conflicts,
            first_seq: status.first_seq,
            first_processed_at: format_micros(status.first_processed_at),
            last_seq: status.last_seq,
            last_processed_at: format_micros(status.last_processed_at),
        }
    }
}

/// List the topics
#[utoipa::path(
    get,
    path = "/topics",
    operation_id = "listTopics",
    tag = "Read",
    params(
        ("limit" = Option<u64>, Query, minimum = 1, maximum = 1000, description = "At most this many topics: 1 to 1000, default 100."),
        ("cursor" = Option<String>, Query, min_length = 1, description = "Go on from here: `next` of another page."),
    ),
    responses(
        (status = 200, description = "A page of topics.", body = TopicsBody, links(
            ("next" = (
                operation_id = "listTopics",
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
    let mut parameters = Parameters::parse(raw.as_deref(), &["limit", "cursor"])?;
    let limit = parameters
        .number("limit", 1, MAX_PAGE_LIMIT as u64)?
        .map_or(DEFAULT_PAGE_LIMIT, |limit| limit as usize);
    let after = match parameters.take("cursor") {
        Some(cursor) => Some(app.cursors.read_topics(&cursor)?),
        None => None,
    };
    let app_there = Arc::clone(&app);
    let shown = shown_to(&sender.caller);
    let (made, turn) = app
        .queries
        .run_in_turn(move || {
            // One more than asked for shows whether something is left.
            let mut found = app_there.store.topics(&shown, after.as_deref(), limit + 1)?;
            let more = found.len() > limit;
            found.truncate(limit);
            let next = found
                .last()
                .filter(|_| more)
                .map(|last| app_there.cursors.topics(&last.topic));
            let topics: Vec<TopicBody> = found.into_iter().map(TopicBody::from).collect();
            let names: usize = topics.iter().map(|topic| topic.topic.len()).sum();
            let expected = names + (topics.len() + 1) * answers::ENTRY_BYTES;
            let body = TopicsBody {
                count: topics.len(),
                topics,
                next,
            };
            answers::json(&body, expected).map(|bytes| Made::new(bytes, accepts))
        })
        .await?;
    app.answers.hold(made?, turn).await
}
