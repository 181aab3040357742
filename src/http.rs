//! The HTTP API: requests become calls of the queue and the store, results become answers.
//!
//! The router ties paths to handlers, one file a resource; `Api::handle` is the one thin layer around it, which
//! counts and logs. Only `server` uses this module.

mod admission;
mod answers;
mod body;
mod codings;
mod cursor;
mod documents;
mod error;
mod events;
mod health;
mod home;
mod metrics;
mod parameters;
mod publish;
mod queries;
mod rate_limit;
mod reference;
mod room;
mod stats;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod topics;

use crate::{
    access::Gate,
    broker::Broker,
    health::Health,
    ingest::Ingest,
    limits,
    logging::Seldom,
    request::{self, Context, Panicked, RequestIds, Trace, X_REQUEST_ID},
    store::Store,
    traces::{OpenSpan, Tracer},
    wakeup::Wakeup,
};
use admission::Admitted;
use answers::AnswerRoom;
use axum::{
    Router,
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, header},
    middleware::{from_fn_with_state, map_response},
    response::IntoResponse,
    routing::get,
};
use body::{BodyRoom, Patience};
use cursor::Cursors;
use documents::Documents;
use error::{Kind, Problem, Unavailable};
use metrics::{Gathered, Metrics, Route};
use queries::Queries;
pub(crate) use room::{Pressure, Progress};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::watch;
use tower::Service;
use utoipa_axum::{router::OpenApiRouter, routes};

/// How long things may take; tests take short times.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    /// See [`limits::HEADER_READ_TIMEOUT`].
    pub(crate) header_read: Duration,
    /// See [`limits::BODY_READ_TIMEOUT`].
    pub(crate) body_read: Duration,
    /// How long a body waits for room: [`limits::QUEUE_WAIT`].
    pub(crate) body_room: Duration,
    /// See [`limits::STALL`].
    pub(crate) stall: Duration,
    /// See [`limits::QUERY_WAIT`].
    pub(crate) query: Duration,
    /// See [`limits::WRITE_TIMEOUT`].
    pub(crate) write: Duration,
    /// See [`limits::LINGER`].
    pub(crate) linger: Duration,
    /// See [`limits::SHUTDOWN_TIMEOUT`].
    pub(crate) shutdown: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            header_read: limits::HEADER_READ_TIMEOUT,
            body_read: limits::BODY_READ_TIMEOUT,
            body_room: limits::QUEUE_WAIT,
            stall: limits::STALL,
            query: limits::QUERY_WAIT,
            write: limits::WRITE_TIMEOUT,
            linger: limits::LINGER,
            shutdown: limits::SHUTDOWN_TIMEOUT,
        }
    }
}

/// What the API works on.
pub(crate) struct Parts {
    /// The store that is read.
    pub(crate) store: Arc<dyn Store>,
    /// The way to the committer.
    pub(crate) ingest: Ingest,
    /// The way into the broker, if there is one.
    pub(crate) broker: Option<Broker>,
    /// Tells of commits.
    pub(crate) wakeup: Wakeup,
    /// Tells what the committer knows about the store.
    pub(crate) health: Health,
    /// Becomes true when the server stops.
    pub(crate) stopping: watch::Receiver<bool>,
    /// Knows who may come in.
    pub(crate) gate: Arc<Gate>,
    /// Begins the spans of requests.
    pub(crate) tracer: Tracer,
    /// How long things may take.
    pub(crate) timeouts: Timeouts,
}

/// What every handler works with.
struct AppState {
    store: Arc<dyn Store>,
    ingest: Ingest,
    broker: Option<Broker>,
    wakeup: Wakeup,
    health: Health,
    stopping: watch::Receiver<bool>,
    bodies: BodyRoom,
    answers: AnswerRoom,
    patience: Patience,
    queries: Queries,
    cursors: Cursors,
    metrics: Arc<Metrics>,
    documents: Documents,
    tracer: Tracer,
    started: Instant,
}

type App = Arc<AppState>;

/// The API, ready to answer requests. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Api {
    app: App,
    router: Router,
    gate: Arc<Gate>,
    metrics: Arc<Metrics>,
    pressure: Pressure,
    ids: Arc<RequestIds>,
    tracer: Tracer,
    /// Requests that are answered with a 503.
    unavailable: Arc<Mutex<Seldom>>,
}

impl Api {
    /// Ties the API to its parts.
    pub(crate) fn new(parts: Parts) -> Self {
        let bodies = BodyRoom::new(parts.timeouts.stall);
        let answers = AnswerRoom::new(parts.timeouts.query, parts.timeouts.stall);
        let started = Instant::now();
        let queries = Queries::new(parts.timeouts.query);
        let gathered = Gathered::new(
            Arc::clone(&parts.store),
            parts.ingest.clone(),
            parts.broker.clone(),
            parts.health.clone(),
            bodies.clone(),
            answers.clone(),
            started,
        );
        let metrics = Arc::new(Metrics::new(gathered, &queries, parts.gate.figures()));
        let pressure = answers.pressure().clone();
        let (router, mut description) = described_routes().split_for_parts();
        let (pages, described_pages) = documents::routes().split_for_parts();
        description.merge(described_pages);
        documents::describe_limits(&mut description);
        let app = Arc::new(AppState {
            cursors: Cursors::new(parts.store.identity(), parts.store.branches()),
            store: parts.store,
            ingest: parts.ingest,
            broker: parts.broker,
            wakeup: parts.wakeup,
            health: parts.health,
            stopping: parts.stopping,
            bodies,
            answers,
            patience: Patience {
                read: parts.timeouts.body_read,
                room: parts.timeouts.body_room,
            },
            queries,
            metrics: Arc::clone(&metrics),
            documents: Documents::new(&documents::with_request_ids(description)),
            tracer: parts.tracer.clone(),
            started,
        });
        let pages = pages
            .merge(documents::explorer())
            .layer(from_fn_with_state(Arc::clone(&app), codings::compress))
            .layer(map_response(codings::vary));
        Self {
            app: Arc::clone(&app),
            router: router
                .merge(pages)
                .route("/problems/{name}", get(documents::problem))
                .fallback(no_such_path)
                .method_not_allowed_fallback(method_not_allowed)
                .with_state(app),
            gate: parts.gate,
            metrics,
            pressure,
            ids: Arc::default(),
            tracer: parts.tracer,
            unavailable: Arc::default(),
        }
    }

    /// Tells that an answer waits for room that others hold.
    pub(crate) fn pressure(&self) -> Pressure {
        self.pressure.clone()
    }

    /// Answers one request, counts it and logs it. Whatever is done for it knows its id.
    pub(crate) async fn handle(self: Arc<Self>, request: Request<Body>) -> Response<Body> {
        let headers = request.headers();
        let id = self.ids.of(headers);
        let (trace, span) = self.tracer.begin(headers, &id);
        let context = Context { id, trace };
        let id = context.id.header_value();
        // In a box: it is large, and would be copied several times on its way to where it is polled (measured: 1,500
        // instructions a request).
        let mut response = context
            .work(Box::pin(Arc::clone(&self).answer(request, span)))
            .await;
        name(&mut response, id);
        response
    }

    /// Answers a request with `answer`, which does not look at it: it has an id all the same.
    pub(crate) fn refuse(
        &self,
        headers: &HeaderMap,
        answer: impl FnOnce() -> Response<Body>,
    ) -> Response<Body> {
        let context = Context {
            id: self.ids.of(headers),
            trace: Trace::of(headers),
        };
        let id = context.id.header_value();
        let mut response = context.within(answer);
        name(&mut response, id);
        response
    }

    async fn answer(
        self: Arc<Self>,
        mut request: Request<Body>,
        mut span: Option<OpenSpan>,
    ) -> Response<Body> {
        let started = Instant::now();
        let route = Route::of(request.uri().path());
        if let Some(span) = &mut span {
            describe(span, &request, route);
        }
        let line = tracing::enabled!(tracing::Level::DEBUG)
            .then(|| (request.method().clone(), request.uri().path().to_owned()));
        let (sender, admitted) = admission::admit(&self.gate, route, &mut request);
        let mut response = match (admitted, &sender) {
            (Err(problem), _) => problem.into_response(),
            // Past the router, which has to say nothing of it but which handler it is for (measured: it takes 3,000 of the
            // 50,000 instructions of a request with one event).
            (Ok(()), Some(sender)) if route == Route::Publish && request.method() == Method::POST => {
                let (app, sender) = (Arc::clone(&self.app), Arc::clone(sender));
                publish::publish(State(app), Admitted(sender), request)
                    .await
                    .into_response()
            }
            (Ok(()), sender) => {
                if let Some(sender) = sender {
                    admission::note(&mut request, Arc::clone(sender));
                }
                match self.router.clone().call(request).await {
                    Ok(response) => response,
                    Err(impossible) => match impossible {},
                }
            }
        };
        if let Some(sender) = sender {
            sender.tell(&mut response);
        }
        let took = started.elapsed();
        self.metrics.observe(route, response.status(), took);
        self.note_unavailable(route, &response);
        if let Some(span) = &mut span {
            conclude(span, &response);
        }
        if let Some((method, path)) = line {
            tracing::debug!(
                %method,
                path,
                status = response.status().as_u16(),
                duration_us = took.as_micros() as u64,
                bytes = axum::body::HttpBody::size_hint(response.body()).lower(),
                "request"
            );
        }
        response
    }

    /// Logs a request that is refused with a 503, with its id; of many in a second, the first one. What else fails is
    /// logged where it does. (A health check that says no is no such refusal; that is logged when it changes.)
    fn note_unavailable(&self, route: Route, response: &Response<Body>) {
        let Some(Unavailable { problem, reason }) = response.extensions().get() else {
            return;
        };
        let mut unavailable = self.unavailable.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(not_logged) = unavailable.now() {
            tracing::warn!(
                route = route.label(),
                problem,
                reason,
                not_logged,
                "a request was answered with a 503"
            );
        }
    }
}

/// Says what is asked, by the conventions of OpenTelemetry for HTTP.
fn describe(span: &mut OpenSpan, request: &Request<Body>, route: Route) {
    let method = match request.method().as_str() {
        known @ ("GET" | "HEAD" | "POST" | "PUT" | "DELETE" | "CONNECT" | "OPTIONS" | "TRACE" | "PATCH") => {
            known
        }
        _ => "_OTHER",
    };
    span.text("http.request.method", method);
    span.text("url.path", request.uri().path());
    match route {
        Route::Other => span.name(method.replace("_OTHER", "HTTP")),
        route => {
            span.name(format!("{method} {}", route.label()));
            span.text("http.route", route.label());
        }
    }
}

/// Says what is answered.
fn conclude(span: &mut OpenSpan, response: &Response<Body>) {
    let status = response.status();
    span.number("http.response.status_code", status.as_u16().into());
    if status.is_server_error() {
        span.text("error.type", status.as_str());
        span.fail();
    }
}

/// Puts the request's id on its answer.
fn name(response: &mut Response<Body>, id: Option<HeaderValue>) {
    if let Some(id) = id {
        response.headers_mut().insert(&X_REQUEST_ID, id);
    }
}

/// As [`request::beside`]. When the work panics, the client is told that it `failed`.
async fn beside<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
    doing: &'static str,
    failed: &'static str,
) -> Result<T, Problem> {
    request::beside(work, doing)
        .await
        .map_err(|Panicked| Problem::new(Kind::Internal, failed))
}

/// Whether the client names this media type in `Accept` and does not refuse it; `*/*` names none.
fn accepts(headers: &HeaderMap, media_type: &str) -> bool {
    headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|range| {
            let mut parts = range.split(';').map(str::trim);
            let named = parts
                .next()
                .is_some_and(|name| name.eq_ignore_ascii_case(media_type));
            named && !parts.any(refuses)
        })
}

/// Whether a parameter of a media range is a weight of zero.
fn refuses(parameter: &str) -> bool {
    parameter.split_once('=').is_some_and(|(name, weight)| {
        name.trim().eq_ignore_ascii_case("q") && weight.trim().parse() == Ok(0.0)
    })
}

/// The answer for a client that comes when all `places` for connections are taken.
pub(crate) fn no_place(places: usize) -> Response<Body> {
    let mut response = Problem::new(
        Kind::Overloaded,
        format!("{places} connections are open and in use, as many as may be"),
    )
    .into_response();
    response
        .headers_mut()
        .insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// The answer for a client that speaks to a server with TLS without it.
pub(crate) fn without_tls() -> Response<Body> {
    let mut response = Problem::new(
        Kind::TlsRequired,
        "this port speaks HTTPS only; begin the URL with https://",
    )
    .into_response();
    // A 426 has to say to what, and that this is about the connection (RFC 9110, sections 15.5.22 and 7.8).
    let headers = response.headers_mut();
    headers.insert(header::UPGRADE, HeaderValue::from_static("TLS/1.2, HTTP/1.1"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade, close"));
    response
}

/// All paths and their handlers, with their description.
fn described_routes() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(documents::description())
        .routes(routes!(publish::publish))
        .routes(routes!(publish::publish_batch))
        .merge(query_routes().layer(map_response(codings::vary)))
        .routes(routes!(health::health))
        .routes(routes!(health::ready))
        .routes(routes!(health::live))
}

/// Those whose answers may be compressed.
fn query_routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(events::list))
        .routes(routes!(events::one))
        .routes(routes!(topics::list))
        .routes(routes!(stats::stats))
        .routes(routes!(metrics::metrics))
}

async fn no_such_path(uri: Uri) -> Problem {
    Problem::new(
        Kind::NoSuchPath,
        format!("there is no {}; GET / lists the paths", uri.path()),
    )
}

async fn method_not_allowed(method: Method, uri: Uri) -> Problem {
    Problem::new(
        Kind::MethodNotAllowed,
        format!("{} does not take {method}; see the Allow header", uri.path()),
    )
}

/// A small answer of JSON; a large one is made with a [`answers::Reservation`].
fn json<T: serde::Serialize>(body: &T) -> Response<Body> {
    match serde_json::to_vec(body) {
        Ok(bytes) => json_of(Body::from(bytes)),
        Err(error) => cannot_write(&error).into_response(),
    }
}

fn json_of(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn cannot_write(error: &serde_json::Error) -> Problem {
    tracing::error!(%error, "cannot write an answer");
    Problem::new(Kind::Internal, "the answer could not be written")
}

/// An answer of HTML that needs nothing from elsewhere, and may load nothing from elsewhere.
fn page(html: bytes::Bytes) -> Response<Body> {
    let mut response = Response::new(Body::from(html));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/html; charset=utf-8"),
    );
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
    );
    response
}
