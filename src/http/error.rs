//! Every error answer of the API, in one table: its status, its stable name and its title.
//!
//! Handlers return a [`Problem`]; it answers as `application/problem+json` (RFC 9457). What went wrong inside the
//! server is logged where it is noticed and never shown beyond a sentence.

use crate::{
    broker::QueueError,
    event::{ParseError, ParseErrorKind},
    ingest::SubmitError,
    limits::RETRY_AFTER_SECONDS,
    request::{self, RequestId},
    store::ReadError,
};
use axum::{
    body::Body,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

/// What kind of problem it is; the path `/problems/<name>` in `type` never changes for a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    NotJson,
    BrokenBody,
    BrokenCompression,
    NoValidKey,
    NotAllowed,
    NoSuchPath,
    NoSuchEvent,
    MethodNotAllowed,
    BodyTooSlow,
    BodyTooLarge,
    TooManyEvents,
    UnsupportedMediaType,
    UnsupportedCoding,
    InvalidEvent,
    TooManyTopics,
    InvalidParameter,
    InvalidCursor,
    TlsRequired,
    RateLimited,
    QueueFull,
    Overloaded,
    StoreUnavailable,
    BrokerFull,
    BrokerUnavailable,
    Stopping,
    Internal,
}

impl Kind {
    /// All kinds, in the order of their status.
    pub(crate) const ALL: [Self; 26] = [
        Self::NotJson,
        Self::BrokenBody,
        Self::BrokenCompression,
        Self::NoValidKey,
        Self::NotAllowed,
        Self::NoSuchPath,
        Self::NoSuchEvent,
        Self::MethodNotAllowed,
        Self::BodyTooSlow,
        Self::BodyTooLarge,
        Self::TooManyEvents,
        Self::UnsupportedMediaType,
        Self::UnsupportedCoding,
        Self::InvalidEvent,
        Self::TooManyTopics,
        Self::InvalidParameter,
        Self::InvalidCursor,
        Self::TlsRequired,
        Self::RateLimited,
        Self::Internal,
        Self::QueueFull,
        Self::Overloaded,
        Self::StoreUnavailable,
        Self::BrokerFull,
        Self::BrokerUnavailable,
        Self::Stopping,
    ];

    /// The table: status, name, title, and what it means for the one who gets it.
    const fn row(self) -> (StatusCode, &'static str, &'static str, &'static str) {
        match self {
            Self::NotJson => (
                StatusCode::BAD_REQUEST,
                "not-json",
                "The body is not JSON",
                "The body is no JSON text: cut off, empty, wrong UTF-8 or wrong syntax. Nothing of it is stored.",
            ),
            Self::BrokenBody => (
                StatusCode::BAD_REQUEST,
                "broken-body",
                "The body did not arrive whole",
                "The connection or the chunked encoding broke before the end of the body. Nothing of it is stored.",
            ),
            Self::BrokenCompression => (
                StatusCode::BAD_REQUEST,
                "broken-compression",
                "The body cannot be decompressed",
                "The body is not what its `Content-Encoding` says: cut off, damaged, or followed by something else; or a zstd frame asks for a window beyond 8 MiB. Nothing of it is stored.",
            ),
            Self::NoValidKey => (
                StatusCode::UNAUTHORIZED,
                "no-valid-key",
                "A valid key is needed",
                "The request has no key, or one that is wrong, expired or revoked; which of these is not said.",
            ),
            Self::NotAllowed => (
                StatusCode::FORBIDDEN,
                "not-allowed",
                "The key does not allow this",
                "The key lacks the scope, or is not for the topic. Nothing of the request is stored.",
            ),
            Self::NoSuchPath => (
                StatusCode::NOT_FOUND,
                "no-such-path",
                "There is no such path",
                "The API has no such path; `GET /` lists those it has.",
            ),
            Self::NoSuchEvent => (
                StatusCode::NOT_FOUND,
                "no-such-event",
                "There is no such event",
                "No event with this topic and id is stored.",
            ),
            Self::MethodNotAllowed => (
                StatusCode::METHOD_NOT_ALLOWED,
                "method-not-allowed",
                "The path does not take this method",
                "The `Allow` header lists the methods that the path takes.",
            ),
            Self::BodyTooSlow => (
                StatusCode::REQUEST_TIMEOUT,
                "body-too-slow",
                "The body took too long",
                "The body was not there in time. Nothing of it is stored; the connection is closed.",
            ),
            Self::BodyTooLarge => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "body-too-large",
                "The body is too large",
                "The body has more bytes than a request may have, as it is or once it is decompressed. Send it in parts.",
            ),
            Self::TooManyEvents => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "too-many-events",
                "The request has too many events",
                "The request has more events than the queue (`QUEUE_MAX_SIZE`), the broker or a rate limit takes at once. Send it in parts.",
            ),
            Self::UnsupportedMediaType => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported-media-type",
                "The content type is not supported",
                "The body's `Content-Type` or its charset is none that the path takes.",
            ),
            Self::UnsupportedCoding => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported-coding",
                "The content coding is not supported",
                "The body's `Content-Encoding` names several codings, or one that the path does not take. The `Accept-Encoding` header lists those that it takes.",
            ),
            Self::InvalidEvent => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "invalid-event",
                "An event is invalid",
                "`place` and `detail` say which field of which event, and why. Nothing of the request is stored.",
            ),
            Self::TooManyTopics => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "too-many-topics",
                "The store has too many topics",
                "The event would make one topic more than a store may hold. Nothing of the request is stored.",
            ),
            Self::InvalidParameter => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "invalid-parameter",
                "A parameter is invalid",
                "`place` names the parameter of the query or path, `detail` says what is allowed.",
            ),
            Self::InvalidCursor => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "invalid-cursor",
                "The cursor is invalid",
                "The cursor is made up, of another store or direction, or ahead of the store. Start without one.",
            ),
            Self::TlsRequired => (
                StatusCode::UPGRADE_REQUIRED,
                "tls-required",
                "The port speaks HTTPS only",
                "The request came unencrypted to a server that has a certificate. Begin the URL with `https://`.",
            ),
            Self::RateLimited => (
                StatusCode::TOO_MANY_REQUESTS,
                "rate-limited",
                "A rate limit is reached",
                "The key, or all without one, may not go so fast. Nothing is stored; send it again after `Retry-After`.",
            ),
            Self::Internal => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal-error",
                "The server failed",
                "The server could not read what it has; its log says why.",
            ),
            Self::QueueFull => (
                StatusCode::SERVICE_UNAVAILABLE,
                "queue-full",
                "The queue is full",
                "No place became free in time. Nothing of the request is stored; send it again after `Retry-After`.",
            ),
            Self::Overloaded => (
                StatusCode::SERVICE_UNAVAILABLE,
                "overloaded",
                "The server is busy",
                "Too many bodies, queries or unread answers are in work at once. Try again after `Retry-After`.",
            ),
            Self::StoreUnavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "store-unavailable",
                "The store cannot commit",
                "The store did not take the events; `GET /health` says why. Sending them again is safe.",
            ),
            Self::BrokerFull => (
                StatusCode::SERVICE_UNAVAILABLE,
                "broker-full",
                "The broker is full",
                "The broker holds as much as it may. Nothing of the request is queued; send it again after `Retry-After`.",
            ),
            Self::BrokerUnavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "broker-unavailable",
                "The broker is not available",
                "The broker did not take the events, or did not say so. Sending them again, also without `ack=queued`, is safe.",
            ),
            Self::Stopping => (
                StatusCode::SERVICE_UNAVAILABLE,
                "stopping",
                "The server is stopping",
                "The server is about to stop. Sending the request again, to the next one, is safe.",
            ),
        }
    }

    /// The status that it answers with.
    pub(crate) const fn status(self) -> StatusCode {
        self.row().0
    }

    /// The last part of its `type`.
    pub(crate) const fn name(self) -> &'static str {
        self.row().1
    }

    /// Its title.
    pub(crate) const fn title(self) -> &'static str {
        self.row().2
    }

    /// What it means for the one who gets it, for the reference.
    pub(crate) const fn meaning(self) -> &'static str {
        self.row().3
    }

    /// Whether the connection cannot go on, as when the rest of the request's body will not be read.
    const fn closes(self) -> bool {
        matches!(self, Self::BodyTooSlow | Self::BodyTooLarge | Self::TlsRequired)
    }
}

/// A problem as it is answered.
#[derive(Debug)]
pub(crate) struct Problem {
    kind: Kind,
    detail: String,
    place: Option<String>,
    retry_after_seconds: Option<u64>,
}

/// The body of an error answer (RFC 9457).
#[derive(Serialize, ToSchema)]
#[schema(as = Problem, example = json!({
    "type": "/problems/invalid-event",
    "title": "An event is invalid",
    "status": 422,
    "detail": "events[3].timestamp: not a date-time",
    "place": "events[3].timestamp",
    "request_id": "5f0c9ad3be117f280000000000000017"
}))]
pub(crate) struct ProblemBody<'a> {
    /// The kind of problem, `/problems/<name>`; it never changes for a kind.
    r#type: &'a str,
    /// The kind of problem in words.
    title: &'a str,
    /// The status of the answer.
    status: u16,
    /// What was wrong with this request, where, and what is allowed.
    detail: &'a str,
    /// The part of the request that is meant: a field of an event (`events[3].timestamp`) or a parameter.
    #[serde(skip_serializing_if = "Option::is_none")]
    place: Option<&'a str>,
    /// The request's id, as in `X-Request-Id` and in the server's log.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = true)]
    request_id: Option<RequestId>,
}

/// Why an answer is a 503: it goes with the response to where these are logged.
#[derive(Clone)]
pub(crate) struct Unavailable {
    /// The name of its kind.
    pub(crate) problem: &'static str,
    /// Its detail.
    pub(crate) reason: String,
}

impl Problem {
    /// A problem; `detail` says what was wrong and what is allowed.
    pub(crate) fn new(kind: Kind, detail: impl Into<String>) -> Self {
        let busy = kind.status() == StatusCode::SERVICE_UNAVAILABLE;
        Self {
            kind,
            detail: detail.into(),
            place: None,
            retry_after_seconds: busy.then_some(RETRY_AFTER_SECONDS),
        }
    }

    /// The same, to be sent again after this time.
    pub(super) fn with_retry_after(self, seconds: u64) -> Self {
        Self {
            retry_after_seconds: Some(seconds),
            ..self
        }
    }

    /// A problem with a part of the request.
    pub(crate) fn at(kind: Kind, place: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            place: Some(place.into()),
            ..Self::new(kind, detail)
        }
    }

    /// A wrong parameter; `message` goes on after its name.
    pub(crate) fn parameter(name: &str, message: impl std::fmt::Display) -> Self {
        Self::at(Kind::InvalidParameter, name, format!("{name}: {message}"))
    }
}

impl From<ParseError> for Problem {
    fn from(error: ParseError) -> Self {
        let kind = match error.kind {
            ParseErrorKind::NotJson => Kind::NotJson,
            ParseErrorKind::Invalid => Kind::InvalidEvent,
            ParseErrorKind::TooManyEvents => Kind::TooManyEvents,
        };
        let mut detail = error.to_string();
        if kind == Kind::TooManyEvents {
            detail.push_str(" (QUEUE_MAX_SIZE)");
        }
        if error.place.is_empty() {
            Self::new(kind, detail)
        } else {
            Self::at(kind, error.place, detail)
        }
    }
}

impl From<SubmitError> for Problem {
    fn from(error: SubmitError) -> Self {
        let kind = match error {
            SubmitError::TooManyEvents { .. } => Kind::TooManyEvents,
            SubmitError::QueueFull => Kind::QueueFull,
            SubmitError::Store(_) => Kind::StoreUnavailable,
            SubmitError::Stopping => Kind::Stopping,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<QueueError> for Problem {
    fn from(error: QueueError) -> Self {
        let kind = match error {
            QueueError::Full { .. } => Kind::BrokerFull,
            QueueError::TooLarge { .. } => Kind::TooManyEvents,
            QueueError::Unavailable(_) => Kind::BrokerUnavailable,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<ReadError> for Problem {
    /// The one place where a failed read is logged. That the store is away is logged like every 503.
    fn from(error: ReadError) -> Self {
        let kind = match error {
            ReadError::Failed(_) => {
                tracing::error!(%error, "cannot read from the store");
                Kind::Internal
            }
            ReadError::Unavailable(_) => Kind::StoreUnavailable,
        };
        Self::new(kind, format!("the store could not be read: {error}"))
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.kind.status();
        let body = ProblemBody {
            r#type: &format!("/problems/{}", self.kind.name()),
            title: self.kind.title(),
            status: status.as_u16(),
            detail: &self.detail,
            place: self.place.as_deref(),
            request_id: request::current(|request| request.id.clone()),
        };
        // Strings and a number always serialise.
        let mut response = Response::new(Body::from(serde_json::to_vec(&body).unwrap_or_default()));
        *response.status_mut() = status;
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.extensions_mut().insert(Unavailable {
                problem: self.kind.name(),
                reason: self.detail,
            });
        }
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if let Some(seconds) = self.retry_after_seconds {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static("Bearer realm=\"oncelog\""),
            );
        }
        if self.kind == Kind::UnsupportedCoding {
            headers.insert(
                header::ACCEPT_ENCODING,
                HeaderValue::from_static(super::codings::TAKEN),
            );
        }
        if self.kind.closes() {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
