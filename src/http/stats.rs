//! `GET /stats`: the exact counters over the whole store, which survive restarts.

use super::{
    App,
    admission::{Admitted, shown_to},
    answers::{self, Made},
    codings::Accepts,
    documents::ReadProblems,
    error::Problem,
    parameters::Parameters,
};
use crate::{broker::Broker, limits::MAX_STATS_TOPICS};
use axum::{
    extract::{RawQuery, State},
    response::Response,
};
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

/// The counters. `received` = `unique_processed` + `duplicate_dropped`, always.
#[derive(Serialize, ToSchema)]
#[schema(as = Stats, example = json!({
    "received": 3,
    "unique_processed": 2,
    "duplicate_dropped": 1,
    "conflicts": 0,
    "topics": ["order.created", "user.login"],
    "topics_total": 2,
    "queue_size": 0,
    "uptime_seconds": 3600,
    "uptime_human": "1h 0m 0s"
}))]
pub(crate) struct StatsBody {
    /// Events that were committed or dropped as duplicates; a request answered 4xx or 5xx is not counted.
    received: u64,
    /// Events stored.
    unique_processed: u64,
    /// Events dropped because their identity was there already, conflicts included.
    duplicate_dropped: u64,
    /// Those of `duplicate_dropped` that had another payload than the first one.
    conflicts: u64,
    /// The topics, sorted; at most the first 1,000.
    topics: Vec<String>,
    /// How many topics there are.
    topics_total: u64,
    /// Events that wait for their commit.
    queue_size: usize,
    /// The broker; only on a server that has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    broker: Option<BrokerStats>,
    /// Seconds since the server started.
    uptime_seconds: u64,
    /// The same in words.
    uptime_human: String,
}

/// What the broker holds. The numbers are a second old, or as old as the last look at it when it is not connected.
#[derive(Serialize, ToSchema)]
pub(crate) struct BrokerStats {
    /// Whether the broker takes events now.
    connected: bool,
    /// Events in the broker that wait for their commit.
    queued: u64,
    /// Dead letters: events that could not be committed, kept in the broker. `oncelog broker dead list` shows them.
    dead: u64,
}

impl BrokerStats {
    fn of(broker: &Broker) -> Self {
        let status = broker.status();
        Self {
            connected: broker.trouble().is_none(),
            queued: status.queued_events,
            dead: status.dead,
        }
    }
}

/// Read the counters
///
/// A key that is not for every topic is shown the counters of its topics.
#[utoipa::path(
    get,
    path = "/stats",
    operation_id = "readStats",
    tag = "Read",
    responses(
        (status = 200, description = "The counters as of now.", body = StatsBody),
        ReadProblems,
    ),
)]
pub(super) async fn stats(
    State(app): State<App>,
    Admitted(sender): Admitted,
    accepts: Accepts,
    RawQuery(raw): RawQuery,
) -> Result<Response, Problem> {
    Parameters::parse(raw.as_deref(), &[])?;
    let app_there = Arc::clone(&app);
    let shown = shown_to(&sender.caller);
    let (made, turn) = app
        .queries
        .run_in_turn(move || {
            let totals = app_there.store.totals(&shown)?;
            let topics = app_there.store.topics(&shown, None, MAX_STATS_TOPICS)?;
            let uptime_seconds = app_there.started.elapsed().as_secs();
            let names: usize = topics.iter().map(|status| status.topic.len() + 3).sum();
            let body = StatsBody {
                received: totals.accepted + totals.duplicates,
                unique_processed: totals.accepted,
                duplicate_dropped: totals.duplicates,
                conflicts: totals.conflicts,
                topics: topics.into_iter().map(|status| status.topic).collect(),
                topics_total: totals.topics,
                queue_size: app_there.ingest.queued_events(),
                broker: app_there.broker.as_ref().map(BrokerStats::of),
                uptime_seconds,
                uptime_human: uptime_human(uptime_seconds),
            };
            let bytes = answers::json(&body, names + answers::ENTRY_BYTES);
            bytes.map(|bytes| Made::new(bytes, accepts))
        })
        .await?;
    app.answers.hold(made?, turn).await
}

/// Hours, minutes and seconds.
fn uptime_human(seconds: u64) -> String {
    format!("{}h {}m {}s", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uptime_is_told_in_hours_minutes_and_seconds() {
        assert_eq!(uptime_human(0), "0h 0m 0s");
        assert_eq!(uptime_human(3_600), "1h 0m 0s");
        assert_eq!(uptime_human(90_061), "25h 1m 1s");
    }
}
