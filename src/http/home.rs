//! `GET /`: a page for browsers, a list of the paths for any other client.

use super::{App, documents::KeyProblems};
use axum::{
    extract::State,
    http::{HeaderMap, HeaderValue, header},
    response::Response,
};
use serde::Serialize;
use utoipa::ToSchema;

/// What this is, and where to go on.
#[derive(Serialize, ToSchema)]
#[schema(as = Service)]
pub(crate) struct HomeBody<'a> {
    /// `oncelog`.
    service: &'a str,
    /// Its version.
    version: &'a str,
    /// `healthy` or `unhealthy`, as in `GET /health`.
    status: &'a str,
    /// The calls it takes, as `METHOD /path`.
    endpoints: &'a [String],
}

/// What this is
///
/// A browser (`Accept: text/html`) gets a page with live counts and links.
#[utoipa::path(
    get,
    path = "/",
    operation_id = "readService",
    tag = "Operate",
    responses((status = 200, description = "The service and its paths.", content(
        (HomeBody = "application/json"),
        (String = "text/html"),
    )), KeyProblems),
)]
pub(super) async fn home(State(app): State<App>, headers: HeaderMap) -> Response {
    let mut response = if super::accepts(&headers, "text/html") {
        super::page(app.documents.home.clone())
    } else {
        super::json(&HomeBody {
            service: env!("CARGO_PKG_NAME"),
            version: env!("CARGO_PKG_VERSION"),
            status: super::health::status(&app),
            endpoints: &app.documents.endpoints,
        })
    };
    response
        .headers_mut()
        .insert(header::VARY, HeaderValue::from_static("Accept"));
    response
}
