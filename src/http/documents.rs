//! The description of the API: `GET /openapi.json`, made from the handlers themselves, the explorer at `/docs`, and
//! the problems that each kind of call may answer with.

use super::{
    App,
    error::{Kind, Problem, ProblemBody},
    home, reference,
};
use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    http::{HeaderValue, StatusCode, header},
    middleware::map_response,
    response::{IntoResponse, Redirect, Response},
};
use bytes::Bytes;
use std::collections::BTreeMap;
use utoipa::{
    IntoResponses, OpenApi, ToSchema,
    openapi::{
        ContentBuilder, Header, HeaderBuilder, Object, Ref, RefOr, Required, ResponseBuilder,
        ResponsesBuilder, Type,
        path::{ParameterBuilder, ParameterIn},
        response::Response as ResponseObject,
        security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
    },
};
use utoipa_axum::{router::OpenApiRouter, routes};
use utoipa_swagger_ui::{Config, SwaggerUi};

const OPENAPI_PATH: &str = "/openapi.json";

/// What all paths have in common.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "oncelog",
        description = "A log aggregator for services that deliver at least once. Producers re-send when they are not sure; every event, named by its topic and event id, is stored and handed on exactly once, however often it arrives.\n\nAnswers to queries are compressed with `zstd`, `br` or `gzip` for clients that say so in `Accept-Encoding`.",
        license(name = "MIT", identifier = "MIT"),
    ),
    tags(
        (name = "Publish", description = "Send events. 200 means committed and synced to disk; sending again is always safe."),
        (name = "Read", description = "Read events and counters. Once a publish is answered, every reader sees its events."),
        (name = "Operate", description = "Health, metrics and documentation."),
    ),
    components(schemas(ProblemBody)),
)]
struct Description;

/// The description without the paths.
pub(super) fn description() -> utoipa::openapi::OpenApi {
    let mut description = Description::openapi();
    let key = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some(
            "A key of `oncelog keys create`. Needed for everything but the health checks, as soon as the store has a key.",
        ))
        .build();
    description
        .components
        .get_or_insert_default()
        .add_security_scheme("key", SecurityScheme::Http(key));
    // With a key, or without: which of them depends on the server.
    description.security = Some(vec![
        SecurityRequirement::new("key", Vec::<String>::new()),
        SecurityRequirement::default(),
    ]);
    description
}

const REQUEST_ID: &str = "X-Request-Id";

/// The description, with the header that every request may have and every answer has.
pub(super) fn with_request_ids(mut description: utoipa::openapi::OpenApi) -> utoipa::openapi::OpenApi {
    // No pattern: what cannot be used is replaced, not refused.
    let text = || Object::with_type(Type::String);
    let parameter = ParameterBuilder::new()
        .name(REQUEST_ID)
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some(
            "Names the request in the answer and in the server's log: 1 to 128 visible ASCII characters but quotes and backslashes. Without it, or with another, the server makes one.",
        ))
        .schema(Some(text()))
        .build();
    let header = HeaderBuilder::new()
        .schema(Some(text()))
        .description(Some(
            "The request's id: the one that was sent, or one that the server made.",
        ))
        .build();
    for path in description.paths.paths.values_mut() {
        let calls = [&mut path.get, &mut path.post];
        for call in calls.into_iter().flatten() {
            call.parameters
                .get_or_insert_default()
                .push(parameter.clone().into());
            for response in call.responses.responses.values_mut() {
                if let RefOr::T(response) = response {
                    response
                        .headers
                        .insert(REQUEST_ID.to_owned(), header.clone().into());
                }
            }
        }
    }
    description
}

/// The documents, rendered once at start.
pub(super) struct Documents {
    openapi: Bytes,
    redoc: Bytes,
    /// The page at `/`.
    pub(super) home: Bytes,
    /// All calls, as `METHOD /path`.
    pub(super) endpoints: Vec<String>,
}

impl Documents {
    pub(super) fn new(description: &utoipa::openapi::OpenApi) -> Self {
        // The document is made of maps with text keys, which always serialise.
        let document = serde_json::to_value(description).unwrap_or_default();
        let mut endpoints = reference::calls(&document);
        endpoints.push("GET /docs".to_owned());
        let version = env!("CARGO_PKG_VERSION");
        Self {
            openapi: Bytes::from(serde_json::to_vec(description).unwrap_or_default()),
            redoc: Bytes::from(reference::render(&document)),
            home: Bytes::from(include_str!("home.html").replace("{{version}}", version)),
            endpoints,
        }
    }
}

/// The pages about the server, but the explorer.
pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(home::home))
        .routes(routes!(openapi))
        .routes(routes!(redoc))
}

/// The API as an OpenAPI document
#[utoipa::path(
    get,
    path = "/openapi.json",
    operation_id = "readDescription",
    tag = "Operate",
    responses((status = 200, description = "This document.", body = Object, content_type = "application/json"), KeyProblems),
)]
pub(super) async fn openapi(State(app): State<App>) -> Response {
    let mut response = Response::new(Body::from(app.documents.openapi.clone()));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The API as a readable page
#[utoipa::path(
    get,
    path = "/redoc",
    operation_id = "readReference",
    tag = "Operate",
    responses((status = 200, description = "The reference, for people.", body = String, content_type = "text/html"), KeyProblems),
)]
pub(super) async fn redoc(State(app): State<App>) -> Response {
    super::page(app.documents.redoc.clone())
}

/// Leads from a problem's `type` to what the reference says about it.
pub(super) async fn problem(Path(name): Path<String>) -> Response {
    if Kind::ALL.iter().any(|kind| kind.name() == name) {
        return Redirect::to(&format!("/redoc#{name}")).into_response();
    }
    Problem::new(
        Kind::NoSuchPath,
        "there is no such kind of problem; GET /redoc lists them",
    )
    .into_response()
}

/// The explorer at `/docs`, out of the binary.
pub(super) fn explorer() -> Router<App> {
    // The default would send the document's address to a validator on the internet.
    let config = Config::from(OPENAPI_PATH).validator_url("none");
    Router::from(SwaggerUi::new("/docs").config(config)).layer(map_response(asset))
}

/// A file that the explorer does not have is a problem like any other path that is not there.
async fn asset(response: Response) -> Response {
    if response.status() == StatusCode::NOT_FOUND {
        return Problem::new(
            Kind::NoSuchPath,
            "the explorer has no such file; GET /docs shows it",
        )
        .into_response();
    }
    response
}

/// The answers with these problems, by status.
fn problems(kinds: &[Kind]) -> BTreeMap<String, RefOr<ResponseObject>> {
    let mut meanings: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for kind in kinds {
        meanings
            .entry(kind.status().as_str().to_owned())
            .or_default()
            .push(format!("`{}`: {}", kind.name(), kind.meaning()));
    }
    let body = Ref::from_schema_name(ProblemBody::name());
    meanings
        .into_iter()
        .fold(ResponsesBuilder::new(), |responses, (status, meanings)| {
            let mut response = ResponseBuilder::new().description(meanings.join("\n\n")).content(
                "application/problem+json",
                ContentBuilder::new().schema(Some(body.clone())).build(),
            );
            let passing = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE];
            if passing.iter().any(|passing| status == passing.as_str()) {
                response = response.header("Retry-After", retry_after());
            }
            if status == StatusCode::UNAUTHORIZED.as_str() {
                response = response.header("WWW-Authenticate", scheme());
            }
            if status == StatusCode::UNSUPPORTED_MEDIA_TYPE.as_str() {
                response = response.header(
                    "Accept-Encoding",
                    text_header("With `unsupported-coding`: the content codings that a body may have."),
                );
            }
            responses.response(status, response)
        })
        .build()
        .responses
        .into_iter()
        .collect()
}

/// Adds the headers about limits to every answer of the calls that have some.
pub(super) fn describe_limits(description: &mut utoipa::openapi::OpenApi) {
    let calls = description
        .paths
        .paths
        .values_mut()
        .flat_map(|path| [&mut path.get, &mut path.post]);
    for call in calls.flatten() {
        let responses = &mut call.responses.responses;
        if !responses.contains_key(StatusCode::TOO_MANY_REQUESTS.as_str()) {
            continue;
        }
        for response in responses.values_mut() {
            if let RefOr::T(response) = response {
                response.headers.insert("RateLimit-Policy".to_owned(), RefOr::T(text_header(
                    "With a limit: the limits. `q` at once, within `w` seconds, of `requests` and `events`, such as `\"requests\";q=100;w=1`.",
                )));
                response.headers.insert("RateLimit".to_owned(), RefOr::T(text_header(
                    "With a limit: what is left of those that the request counts against. `r` for the next `t` seconds, such as `\"requests\";r=99;t=1`.",
                )));
            }
        }
    }
}

fn text_header(description: &str) -> Header {
    HeaderBuilder::new()
        .schema(Some(Object::with_type(Type::String)))
        .description(Some(description))
        .build()
}

fn scheme() -> Header {
    text_header("The scheme in which a key is sent: `Bearer`.")
}

fn retry_after() -> Header {
    HeaderBuilder::new()
        .schema(Some(Object::with_type(Type::Integer)))
        .description(Some("Seconds to wait before the request is sent again."))
        .build()
}

/// What publishing may answer with.
pub(super) struct PublishProblems;

impl IntoResponses for PublishProblems {
    fn responses() -> BTreeMap<String, RefOr<ResponseObject>> {
        problems(&[
            Kind::NotJson,
            Kind::BrokenBody,
            Kind::BrokenCompression,
            Kind::NoValidKey,
            Kind::NotAllowed,
            Kind::BodyTooSlow,
            Kind::BodyTooLarge,
            Kind::TooManyEvents,
            Kind::UnsupportedMediaType,
            Kind::UnsupportedCoding,
            Kind::InvalidEvent,
            Kind::TooManyTopics,
            Kind::InvalidParameter,
            Kind::RateLimited,
            Kind::Internal,
            Kind::QueueFull,
            Kind::Overloaded,
            Kind::StoreUnavailable,
            Kind::BrokerFull,
            Kind::BrokerUnavailable,
            Kind::Stopping,
        ])
    }
}

/// What reading pages may answer with.
pub(super) struct QueryProblems;

impl IntoResponses for QueryProblems {
    fn responses() -> BTreeMap<String, RefOr<ResponseObject>> {
        problems(&[
            Kind::NoValidKey,
            Kind::NotAllowed,
            Kind::InvalidParameter,
            Kind::InvalidCursor,
            Kind::RateLimited,
            Kind::Internal,
            Kind::Overloaded,
            Kind::StoreUnavailable,
        ])
    }
}

/// What reading one event may answer with.
pub(super) struct EventProblems;

impl IntoResponses for EventProblems {
    fn responses() -> BTreeMap<String, RefOr<ResponseObject>> {
        problems(&[
            Kind::NoValidKey,
            Kind::NotAllowed,
            Kind::NoSuchEvent,
            Kind::InvalidParameter,
            Kind::RateLimited,
            Kind::Internal,
            Kind::Overloaded,
            Kind::StoreUnavailable,
        ])
    }
}

/// What calls without parameters answer to one with a parameter.
pub(super) struct ParameterProblems;

impl IntoResponses for ParameterProblems {
    fn responses() -> BTreeMap<String, RefOr<ResponseObject>> {
        problems(&[Kind::InvalidParameter])
    }
}

/// What everything may answer with that needs no more than a key.
pub(super) struct KeyProblems;

impl IntoResponses for KeyProblems {
    fn responses() -> BTreeMap<String, RefOr<ResponseObject>> {
        problems(&[Kind::NoValidKey, Kind::RateLimited])
    }
}

/// What reading without parameters may answer with.
pub(super) struct ReadProblems;

impl IntoResponses for ReadProblems {
    fn responses() -> BTreeMap<String, RefOr<ResponseObject>> {
        problems(&[
            Kind::NoValidKey,
            Kind::NotAllowed,
            Kind::InvalidParameter,
            Kind::RateLimited,
            Kind::Internal,
            Kind::Overloaded,
            Kind::StoreUnavailable,
        ])
    }
}
