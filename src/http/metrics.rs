//! `GET /metrics`, and the counters behind it.
//!
//! What a request adds is counted in atomics that are looked up once for each route and status. What the store knows
//! is read from the store when the metrics are, so these counters survive restarts.

mod classic;
mod durations;
mod gathered;
mod process;

pub(super) use gathered::Gathered;

use super::{
    App,
    answers::Made,
    codings::Accepts,
    documents::ReadProblems,
    error::{Kind, Problem},
    queries::Queries,
};
use crate::access::Figures;
use axum::{
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::Response,
};
use durations::Durations;
use process::Process;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, info::Info},
    registry::{Registry, Unit},
};
use std::{
    array,
    sync::{Arc, OnceLock},
    time::Duration,
};

/// A path of the API as metrics name it, so that their number is bounded whatever clients ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    Publish,
    PublishBatch,
    Events,
    Event,
    Topics,
    Stats,
    Health,
    Ready,
    Live,
    Metrics,
    Home,
    OpenApi,
    Redoc,
    Docs,
    Problem,
    Other,
}

impl Route {
    pub(crate) const ALL: [Self; 16] = [
        Self::Publish,
        Self::PublishBatch,
        Self::Events,
        Self::Event,
        Self::Topics,
        Self::Stats,
        Self::Health,
        Self::Ready,
        Self::Live,
        Self::Metrics,
        Self::Home,
        Self::OpenApi,
        Self::Redoc,
        Self::Docs,
        Self::Problem,
        Self::Other,
    ];

    /// The route of a request's path.
    pub(crate) fn of(path: &str) -> Self {
        match path {
            "/publish" => Self::Publish,
            "/publish/batch" => Self::PublishBatch,
            "/events" => Self::Events,
            "/topics" => Self::Topics,
            "/stats" => Self::Stats,
            "/health" => Self::Health,
            "/readyz" => Self::Ready,
            "/livez" => Self::Live,
            "/metrics" => Self::Metrics,
            "/" => Self::Home,
            "/openapi.json" => Self::OpenApi,
            "/redoc" => Self::Redoc,
            "/docs" => Self::Docs,
            other if other.starts_with("/events/") => Self::Event,
            other if other.starts_with("/docs/") => Self::Docs,
            other if other.starts_with("/problems/") => Self::Problem,
            _ => Self::Other,
        }
    }

    /// Its label.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Publish => "/publish",
            Self::PublishBatch => "/publish/batch",
            Self::Events => "/events",
            Self::Event => "/events/{topic}/{event_id}",
            Self::Topics => "/topics",
            Self::Stats => "/stats",
            Self::Health => "/health",
            Self::Ready => "/readyz",
            Self::Live => "/livez",
            Self::Metrics => "/metrics",
            Self::Home => "/",
            Self::OpenApi => "/openapi.json",
            Self::Redoc => "/redoc",
            Self::Docs => "/docs",
            Self::Problem => "/problems/{name}",
            Self::Other => "other",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: &'static str,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: &'static str,
}

/// The statuses that answers have; any other one costs a look-up.
const STATUSES: [u16; 16] = [
    200, 202, 303, 400, 401, 403, 404, 405, 408, 413, 415, 422, 426, 429, 500, 503,
];

/// All metrics of a server.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    counters: [[OnceLock<Counter>; STATUSES.len()]; Route::ALL.len()],
    durations: Family<RouteLabels, Durations>,
    durations_of: [OnceLock<Durations>; Route::ALL.len()],
}

impl Metrics {
    /// The metrics of these parts.
    pub(crate) fn new(gathered: Gathered, queries: &Queries, callers: &Figures) -> Self {
        let mut all = Registry::default();
        all.register_collector(Box::new(Process));
        let registry = all.sub_registry_with_prefix("oncelog");
        registry.register(
            "build",
            "The program",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        let requests = Family::default();
        registry.register("http_requests", "Requests answered", requests.clone());
        let durations = Family::<RouteLabels, Durations>::default();
        registry.register_with_unit(
            "http_request_duration",
            "Time from the end of a request's head to its answer",
            Unit::Seconds,
            durations.clone(),
        );
        gathered.ingest().figures().register(registry);
        if let Some(broker) = gathered.broker() {
            broker.figures().register(registry);
        }
        queries.register(registry);
        callers.register(registry);
        registry.register_collector(Box::new(gathered));
        Self {
            registry: all,
            requests,
            counters: array::from_fn(|_| array::from_fn(|_| OnceLock::new())),
            durations,
            durations_of: array::from_fn(|_| OnceLock::new()),
        }
    }

    /// Counts an answer.
    pub(crate) fn observe(&self, route: Route, status: StatusCode, took: Duration) {
        let status = status.as_u16();
        let labels = || RequestLabels {
            route: route.label(),
            status,
        };
        match STATUSES.iter().position(|known| *known == status) {
            Some(column) => self.counters[route as usize][column]
                .get_or_init(|| self.requests.get_or_create_owned(&labels()))
                .inc(),
            None => self.requests.get_or_create_owned(&labels()).inc(),
        };
        self.durations_of[route as usize]
            .get_or_init(|| {
                let labels = RouteLabels { route: route.label() };
                self.durations.get_or_create_owned(&labels)
            })
            .observe(took);
    }

    /// All metrics as text.
    fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// Metrics for Prometheus
///
/// OpenMetrics text for a client that names it in `Accept`, as Prometheus does; the older text format for any other.
#[utoipa::path(
    get,
    path = "/metrics",
    operation_id = "readMetrics",
    tag = "Operate",
    responses(
        (status = 200, description = "The metrics.", content(
            (String = "application/openmetrics-text"),
            (String = "text/plain"),
        )),
        ReadProblems,
    ),
)]
pub(super) async fn metrics(
    State(app): State<App>,
    accepts: Accepts,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let metrics = Arc::clone(&app.metrics);
    let open = super::accepts(&headers, "application/openmetrics-text");
    let made = app
        .queries
        .run(move || {
            let text = metrics.text().map(|text| match open {
                true => text,
                false => classic::from_open_metrics(&text),
            });
            text.map(|text| Made::new(text.into_bytes(), accepts))
        })
        .await?;
    let made = made.map_err(|error| {
        tracing::error!(%error, "cannot write the metrics");
        Problem::new(Kind::Internal, "the metrics could not be written")
    })?;
    let mut response = made.small();
    let content_type = match open {
        true => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        false => "text/plain; version=0.0.4; charset=utf-8",
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::VARY, HeaderValue::from_static("Accept"));
    Ok(response)
}
