//! `GET /metrics`, and the counters behind it.
//!
//! What a request adds is counted in atomics that are looked up once for each route and status. What the store knows
//! is read from the store when the metrics are, so these counters survive restarts.

mod classic;

use super::{App, answers::AnswerRoom, body::BodyRoom, documents::ReadProblems, error::Problem};
use crate::{health::Health, ingest::Ingest, limits, store::Store};
use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::Response,
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text::encode},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::ConstGauge,
        histogram::Histogram,
        info::Info,
    },
    registry::{Registry, Unit},
};
use std::{
    array,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
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

/// The upper edges of the histogram's buckets, in seconds: from a commit on a fast disk to the longest wait.
const BUCKETS: [f64; 12] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0,
];

/// The statuses that answers have; any other one costs a look-up.
const STATUSES: [u16; 13] = [200, 303, 400, 401, 403, 404, 405, 408, 413, 415, 422, 500, 503];

/// All metrics of a server.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    counters: [[OnceLock<Counter>; STATUSES.len()]; Route::ALL.len()],
    durations: Family<RouteLabels, Histogram, fn() -> Histogram>,
    histograms: [OnceLock<Histogram>; Route::ALL.len()],
}

impl Metrics {
    /// Metrics of these parts.
    pub(crate) fn new(
        store: Arc<dyn Store>,
        ingest: Ingest,
        health: Health,
        bodies: BodyRoom,
        answers: AnswerRoom,
        started: Instant,
    ) -> Self {
        let mut registry = Registry::with_prefix("oncelog");
        registry.register(
            "build",
            "The program",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        let requests = Family::default();
        registry.register("http_requests", "Requests answered", requests.clone());
        let durations = Family::<RouteLabels, Histogram, fn() -> Histogram>::new_with_constructor(|| {
            Histogram::new(BUCKETS)
        });
        registry.register_with_unit(
            "http_request_duration",
            "Time from the end of a request's head to its answer",
            Unit::Seconds,
            durations.clone(),
        );
        registry.register_collector(Box::new(Gathered {
            store: Facade(store),
            ingest: Facade(ingest),
            health,
            bodies,
            answers,
            started,
        }));
        Self {
            registry,
            requests,
            counters: array::from_fn(|_| array::from_fn(|_| OnceLock::new())),
            durations,
            histograms: array::from_fn(|_| OnceLock::new()),
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
        self.histograms[route as usize]
            .get_or_init(|| {
                let labels = RouteLabels { route: route.label() };
                self.durations.get_or_create_owned(&labels)
            })
            .observe(took.as_secs_f64());
    }

    /// All metrics as text.
    fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// What is read from the other parts when the metrics are.
#[derive(Debug)]
struct Gathered {
    store: Facade<Arc<dyn Store>>,
    ingest: Facade<Ingest>,
    health: Health,
    bodies: BodyRoom,
    answers: AnswerRoom,
    started: Instant,
}

/// Hides what has no `Debug`, which a [`Collector`] needs.
struct Facade<T>(T);

impl<T> std::fmt::Debug for Facade<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("…")
    }
}

impl Collector for Gathered {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let totals = self.store.0.totals();
        let gauges = self.store.0.gauges();
        for (name, help, value) in [
            (
                "events_received",
                "Events committed or dropped as duplicates, since the store was made",
                totals.accepted + totals.duplicates,
            ),
            ("events_accepted", "Events stored", totals.accepted),
            (
                "events_duplicate",
                "Events dropped because their identity was there already, conflicts included",
                totals.duplicates,
            ),
            (
                "events_conflict",
                "Duplicates that had another payload than the first one",
                totals.conflicts,
            ),
        ] {
            counter(&mut encoder, name, help, value)?;
        }
        let queued = self.ingest.0.queued_events() as u64;
        let healthy = self.health.committer_running() && self.health.trouble().is_none();
        for (name, help, unit, value) in [
            ("healthy", "1 when the store can commit", None, u64::from(healthy)),
            (
                "high_watermark",
                "The number of the newest event",
                None,
                self.store.0.high_watermark(),
            ),
            ("topics", "Topics with at least one event", None, totals.topics),
            ("queue_events", "Events that wait for their commit", None, queued),
            (
                "queue_capacity_events",
                "Events that may wait at once",
                None,
                self.ingest.0.capacity() as u64,
            ),
            (
                "request_bodies",
                "Request bodies in work",
                Some(Unit::Bytes),
                self.bodies.used_bytes() as u64,
            ),
            (
                "request_bodies_limit",
                "Request bodies that may be in work at once",
                Some(Unit::Bytes),
                limits::MAX_IN_FLIGHT_BODY_BYTES as u64,
            ),
            (
                "answers",
                "Answers that are in work or not read yet",
                Some(Unit::Bytes),
                self.answers.used_bytes() as u64,
            ),
            (
                "answers_limit",
                "Answers that may be in work or not read yet at once",
                Some(Unit::Bytes),
                limits::MAX_IN_FLIGHT_ANSWER_BYTES as u64,
            ),
            (
                "index_tail_events",
                "Events whose index is not in a segment yet",
                None,
                gauges.tail_events,
            ),
            ("index_segments", "Index segments", None, gauges.segments),
            (
                "index_segments_size",
                "Index segments on disk",
                Some(Unit::Bytes),
                gauges.segment_bytes,
            ),
            (
                "index_filters",
                "Memory of the segments' filters",
                Some(Unit::Bytes),
                gauges.filter_bytes,
            ),
            (
                "store",
                "The database file and its write-ahead log",
                Some(Unit::Bytes),
                gauges.store_bytes,
            ),
            (
                "uptime",
                "Time since the server started",
                Some(Unit::Seconds),
                self.started.elapsed().as_secs(),
            ),
        ] {
            gauge(&mut encoder, name, help, unit.as_ref(), value)?;
        }
        Ok(())
    }
}

fn counter(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    value: u64,
) -> Result<(), std::fmt::Error> {
    let metric = ConstCounter::new(value);
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

fn gauge(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    value: u64,
) -> Result<(), std::fmt::Error> {
    let metric = ConstGauge::new(value);
    metric.encode(encoder.encode_descriptor(name, help, unit, metric.metric_type())?)
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
pub(super) async fn metrics(State(app): State<App>, headers: HeaderMap) -> Result<Response, Problem> {
    let metrics = Arc::clone(&app.metrics);
    let text = app.queries.run(move || metrics.text()).await?.map_err(|error| {
        tracing::error!(%error, "cannot write the metrics");
        Problem::new(super::error::Kind::Internal, "the metrics could not be written")
    })?;
    let (text, content_type) = if super::accepts(&headers, "application/openmetrics-text") {
        (text, "application/openmetrics-text; version=1.0.0; charset=utf-8")
    } else {
        (
            classic::from_open_metrics(&text),
            "text/plain; version=0.0.4; charset=utf-8",
        )
    };
    let mut response = Response::new(Body::from(text));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::VARY, HeaderValue::from_static("Accept"));
    Ok(response)
}
