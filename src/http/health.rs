//! `GET /health`, `/readyz` and `/livez`: whether the store can commit, and whether a restart would help.

use super::{App, admission::Detailed, documents::ParameterProblems, error::Problem, parameters::Parameters};
use crate::{broker::Broker, limits::RETRY_AFTER_SECONDS};
use axum::{
    extract::{RawQuery, State},
    http::{HeaderValue, StatusCode, header},
    response::Response,
};
use serde::Serialize;
use std::time::{SystemTime, UNIX_EPOCH};
use utoipa::ToSchema;

/// The state of the server.
#[derive(Serialize, ToSchema)]
#[schema(as = Health, example = json!({
    "status": "healthy",
    "consumer_running": true,
    "queue_size": 0,
    "timestamp": "2025-10-23T10:00:00.000000Z"
}))]
pub(crate) struct HealthBody {
    /// `healthy` or `unhealthy`.
    #[schema(value_type = String)]
    status: &'static str,
    /// Whether the thread that commits is running.
    consumer_running: bool,
    /// Events that wait for their commit. Only for who may come in.
    #[serde(skip_serializing_if = "Option::is_none")]
    queue_size: Option<usize>,
    /// The server's clock, in UTC with microseconds.
    #[schema(format = "date-time")]
    timestamp: String,
    /// The broker, on a server that has one. It has no part in `status`: without it everything but `ack=queued` goes on.
    /// Only for who may come in.
    #[serde(skip_serializing_if = "Option::is_none")]
    broker: Option<BrokerHealth>,
    /// When unhealthy: what is wrong and what to do. Only for who may come in.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// The state of the broker.
#[derive(Serialize, ToSchema)]
pub(crate) struct BrokerHealth {
    /// `healthy` when it takes events, or `unhealthy`.
    #[schema(value_type = String)]
    status: &'static str,
    /// When unhealthy: what is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl BrokerHealth {
    fn of(broker: &Broker) -> Self {
        let reason = broker.trouble();
        Self {
            status: word(reason.is_none()),
            reason,
        }
    }
}

/// Whether the store can commit
///
/// While it cannot, the server tries a commit by itself, so it recovers without traffic.
#[utoipa::path(
    get,
    path = "/health",
    operation_id = "readHealth",
    tag = "Operate",
    responses(
        (status = 200, description = "The store can commit.", body = HealthBody),
        (status = 503, description = "The store cannot commit; `reason` says why.", body = HealthBody, headers(("Retry-After" = u64, description = "Seconds to wait."))),
        ParameterProblems,
    ),
)]
pub(super) async fn health(
    State(app): State<App>,
    Detailed(detailed): Detailed,
    RawQuery(raw): RawQuery,
) -> Result<Response, Problem> {
    Parameters::parse(raw.as_deref(), &[])?;
    Ok(answer(&app, unready(&app), detailed))
}

/// Whether to send requests here
///
/// The same as `GET /health`.
#[utoipa::path(
    get,
    path = "/readyz",
    operation_id = "readReadiness",
    tag = "Operate",
    responses(
        (status = 200, description = "The store can commit.", body = HealthBody),
        (status = 503, description = "The store cannot commit, or the server is stopping.", body = HealthBody, headers(("Retry-After" = u64, description = "Seconds to wait."))),
        ParameterProblems,
    ),
)]
pub(super) async fn ready(
    State(app): State<App>,
    Detailed(detailed): Detailed,
    RawQuery(raw): RawQuery,
) -> Result<Response, Problem> {
    Parameters::parse(raw.as_deref(), &[])?;
    Ok(answer(&app, unready(&app), detailed))
}

/// Whether a restart would help
///
/// Fails only when a restart is the cure, so a full disk does not make a supervisor restart the server again and again.
#[utoipa::path(
    get,
    path = "/livez",
    operation_id = "readLiveness",
    tag = "Operate",
    responses(
        (status = 200, description = "A restart would not help.", body = HealthBody),
        (status = 503, description = "Restart the server.", body = HealthBody, headers(("Retry-After" = u64, description = "Seconds to wait."))),
        ParameterProblems,
    ),
)]
pub(super) async fn live(
    State(app): State<App>,
    Detailed(detailed): Detailed,
    RawQuery(raw): RawQuery,
) -> Result<Response, Problem> {
    Parameters::parse(raw.as_deref(), &[])?;
    let reason = match app.health.trouble() {
        Some(trouble) if trouble.needs_restart => Some(trouble.reason),
        // A server that stops ends its committer itself.
        _ if !app.health.committer_running() && !*app.stopping.borrow() => Some(NO_COMMITTER.to_owned()),
        _ => None,
    };
    Ok(answer(&app, reason, detailed))
}

/// `healthy` or `unhealthy`.
pub(super) fn status(app: &App) -> &'static str {
    word(unready(app).is_none())
}

fn word(healthy: bool) -> &'static str {
    if healthy { "healthy" } else { "unhealthy" }
}

/// Why the store cannot commit, if it cannot.
fn unready(app: &App) -> Option<String> {
    if *app.stopping.borrow() {
        Some("the server is stopping".to_owned())
    } else if let Some(trouble) = app.health.trouble() {
        Some(trouble.reason)
    } else if app.health.committer_running() {
        None
    } else {
        Some(NO_COMMITTER.to_owned())
    }
}

/// What to do when the committer's thread has ended by itself.
pub(super) const NO_COMMITTER: &str = "the thread that commits is gone; restart the server";

fn answer(app: &App, reason: Option<String>, detailed: bool) -> Response {
    let healthy = reason.is_none();
    let mut response = super::json(&HealthBody {
        status: word(healthy),
        consumer_running: app.health.committer_running(),
        queue_size: detailed.then(|| app.ingest.queued_events()),
        broker: app.broker.as_ref().filter(|_| detailed).map(BrokerHealth::of),
        timestamp: now(),
        reason: reason.filter(|_| detailed),
    });
    if !healthy {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECONDS));
    }
    response
}

fn now() -> String {
    // A clock before 1970 shows 1970.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    crate::event::format_micros(since.as_micros() as i64)
}
