//! The HTTP client of the subcommands: one keep-alive connection to one server.
//!
//! A [`Client`] opens its connection when it is first needed and again when it was lost. It never sends a request
//! twice by itself, unless none of it left: whether to try again is the caller's decision ([`Backoff`] says when).
//! Every wait has a bound, and every error says what to do about it.

mod api_key;
mod backoff;
mod base_url;
mod endpoint;

pub use api_key::{ApiKey, ApiKeyError};
pub use backoff::Backoff;
pub use base_url::BaseUrl;
pub use endpoint::{Endpoint, EndpointError, PemFile, Trust};

use crate::{
    compression::Coding,
    limits::{CLIENT_CONNECT_TIMEOUT, MAX_ANSWER_BYTES, MAX_REQUEST_ID_BYTES},
    request::X_REQUEST_ID,
};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, StatusCode,
    client::conn::http1::{SendRequest, handshake},
    header::{ACCEPT, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HOST, RETRY_AFTER},
};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use std::time::Duration;
use tokio::{task::JoinHandle, time::timeout};

/// A connection to one server.
pub struct Client {
    endpoint: Endpoint,
    timeout: Duration,
    connection: Option<Connection>,
}

/// An open connection, and what it ended with once it has.
struct Connection {
    requests: SendRequest<Full<Bytes>>,
    end: JoinHandle<hyper::Result<()>>,
}

/// What is posted, as it is or compressed. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Content {
    /// What it is.
    pub media_type: &'static str,
    /// Its bytes as they are sent.
    pub bytes: Bytes,
    /// What they are compressed with.
    pub coding: Option<Coding>,
}

impl Content {
    /// JSON, compressed with `coding` if there is one.
    pub fn json(bytes: impl Into<Bytes>, coding: Option<Coding>) -> Self {
        Self {
            media_type: "application/json",
            bytes: bytes.into(),
            coding,
        }
    }
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// What `Retry-After` asks for.
    pub retry_after: Option<Duration>,
    /// The id by which the server's log knows the request.
    pub request_id: Option<String>,
    /// Its body.
    pub body: Bytes,
}

/// Why there is no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection could be opened.
    #[error("cannot reach {url}: {reason}; is the server running, and is --url right?")]
    Unreachable {
        /// The base URL.
        url: BaseUrl,
        /// What the operating system says.
        reason: String,
    },
    /// TLS says no: a certificate is missing or not trusted, or the other side does not speak TLS.
    #[error("no secure connection to {url}: {reason}")]
    Insecure {
        /// The base URL.
        url: BaseUrl,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// The connection broke before the answer was there; the server may have done what was asked.
    #[error("{url} broke the connection before it had answered: {reason}")]
    Broken {
        /// The base URL.
        url: BaseUrl,
        /// What happened.
        reason: String,
    },
    /// No answer came in time; the server may have done what was asked, or may still do it.
    #[error("{url} did not answer within {} s", waited.as_secs_f32())]
    TimedOut {
        /// The base URL.
        url: BaseUrl,
        /// How long it had.
        waited: Duration,
    },
    /// The server answered with an error.
    #[error("{url} answered {status}: {detail}")]
    Refused {
        /// The base URL.
        url: BaseUrl,
        /// The status.
        status: StatusCode,
        /// What the server says about it.
        detail: String,
        /// What `Retry-After` asks for.
        retry_after: Option<Duration>,
    },
    /// The answer is not what this program understands.
    #[error("{url} gave an answer that is not oncelog's ({reason}); is --url right?")]
    NotOurs {
        /// The base URL.
        url: BaseUrl,
        /// What is wrong with it.
        reason: String,
    },
}

impl ClientError {
    /// Whether the same request may well succeed later.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Broken { .. } | Self::TimedOut { .. } => true,
            Self::Refused { status, .. } => is_passing(*status),
            Self::Insecure { .. } | Self::NotOurs { .. } => false,
        }
    }

    /// How long the server asks to wait before the same request.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// Whether a request that was answered like this may well succeed later.
pub fn is_passing(status: StatusCode) -> bool {
    status.is_server_error()
        || matches!(
            status,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT
        )
}

impl Client {
    /// A client of the server at `endpoint` that gives each request `timeout` to be answered.
    pub fn new(endpoint: Endpoint, timeout: Duration) -> Self {
        Self {
            endpoint,
            timeout,
            connection: None,
        }
    }

    /// The server's base URL.
    pub fn base(&self) -> &BaseUrl {
        self.endpoint.url()
    }

    /// Gets what stands at `path`, which begins with `/` and may have a query. When a connection that had been kept
    /// open breaks, it asks once more on a new one: reading changes nothing.
    pub async fn get(&mut self, path: &str) -> Result<Answer, ClientError> {
        let was_open = self.connection.is_some();
        match self.send(Method::GET, path, None).await {
            Err(ClientError::Broken { .. }) if was_open => self.send(Method::GET, path, None).await,
            answer => answer,
        }
    }

    /// Posts to `path`.
    pub async fn post(&mut self, path: &str, body: Content) -> Result<Answer, ClientError> {
        self.send(Method::POST, path, Some(body)).await
    }

    async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Option<Content>,
    ) -> Result<Answer, ClientError> {
        let answer = timeout(self.timeout, self.exchange(method, path, body)).await;
        let answer = answer.unwrap_or_else(|_| {
            Err(ClientError::TimedOut {
                url: self.base().clone(),
                waited: self.timeout,
            })
        });
        if answer.is_err() {
            self.connection = None;
        }
        answer
    }

    async fn exchange(
        &mut self,
        method: Method,
        path: &str,
        body: Option<Content>,
    ) -> Result<Answer, ClientError> {
        let mut request = Request::builder()
            .method(method)
            .uri(self.base().path(path))
            .header(HOST, self.base().authority())
            .header(ACCEPT, "application/json");
        if let Some(authorization) = self.endpoint.authorization() {
            request = request.header(AUTHORIZATION, authorization);
        }
        if let Some(body) = &body {
            request = request.header(CONTENT_TYPE, body.media_type);
            if let Some(coding) = body.coding {
                request = request.header(CONTENT_ENCODING, coding.name());
            }
        }
        let request = request
            .body(Full::new(body.map(|body| body.bytes).unwrap_or_default()))
            .map_err(|error| self.not_ours(error.to_string()))?;

        let mut connection = self.ready_connection().await?;
        let response = match connection.requests.try_send_request(request).await {
            Ok(response) => response,
            Err(mut failed) => match failed.take_message() {
                // The server had closed the connection and nothing was sent.
                Some(request) => {
                    connection = self.connect().await?;
                    match connection.requests.send_request(request).await {
                        Ok(response) => response,
                        Err(error) => return Err(self.broken_off(&error, connection).await),
                    }
                }
                None => return Err(self.broken_off(failed.error(), connection).await),
            },
        };
        let status = response.status();
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .map(Duration::from_secs);
        let request_id = response
            .headers()
            .get(&X_REQUEST_ID)
            .and_then(|value| value.to_str().ok())
            .filter(|id| id.len() <= MAX_REQUEST_ID_BYTES)
            .map(str::to_owned);
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES)
            .collect()
            .await
            .map_err(|error| self.broken(error.as_ref()))?
            .to_bytes();
        self.connection = Some(connection);
        Ok(Answer {
            status,
            retry_after,
            request_id,
            body,
        })
    }

    async fn ready_connection(&mut self) -> Result<Connection, ClientError> {
        if let Some(mut connection) = self.connection.take()
            && connection.requests.ready().await.is_ok()
        {
            return Ok(connection);
        }
        self.connect().await
    }

    async fn connect(&self) -> Result<Connection, ClientError> {
        let stream = self.endpoint.connect().await?;
        let (requests, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.broken(&error))?;
        // The task ends with the connection.
        let end = tokio::spawn(connection);
        Ok(Connection { requests, end })
    }

    /// A server that refuses the client's certificate may say so before the request is written, and then only the
    /// connection has heard it.
    async fn broken_off(&self, error: &hyper::Error, connection: Connection) -> ClientError {
        drop(connection.requests);
        match timeout(CLIENT_CONNECT_TIMEOUT, connection.end).await {
            Ok(Ok(Err(end))) => self.endpoint.insecure(&end).unwrap_or_else(|| self.broken(error)),
            _ => self.broken(error),
        }
    }

    fn broken(&self, error: &(dyn std::error::Error + 'static)) -> ClientError {
        self.endpoint
            .insecure(error)
            .unwrap_or_else(|| ClientError::Broken {
                url: self.base().clone(),
                reason: error
                    .source()
                    .map_or_else(|| error.to_string(), ToString::to_string),
            })
    }

    /// What is said of an answer that this program does not understand.
    pub fn not_ours(&self, reason: String) -> ClientError {
        ClientError::NotOurs {
            url: self.base().clone(),
            reason,
        }
    }

    /// The answer's body as `T`, or what went wrong when its status is not a success.
    pub fn read<'a, T: Deserialize<'a>>(&self, answer: &'a Answer) -> Result<T, ClientError> {
        if !answer.status.is_success() {
            return Err(ClientError::Refused {
                url: self.base().clone(),
                status: answer.status,
                detail: answer.traceable(),
                retry_after: answer.retry_after,
            });
        }
        self.parse(&answer.body)
    }

    /// JSON of the server as `T`.
    pub fn parse<'a, T: Deserialize<'a>>(&self, json: &'a [u8]) -> Result<T, ClientError> {
        serde_json::from_slice(json).map_err(|error| self.not_ours(error.to_string()))
    }
}

impl Answer {
    /// The stable name of the problem that an answer with an error is about, such as `too-many-topics`: the last part
    /// of its `type`.
    pub fn problem_name(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Problem {
            r#type: String,
        }
        let problem: Problem = serde_json::from_slice(&self.body).ok()?;
        problem.r#type.rsplit('/').next().map(str::to_owned)
    }

    /// What an answer with an error says about it, and how the command is told a key when that is what is missing.
    pub fn detail(&self) -> String {
        let said = self.said();
        match self.status {
            StatusCode::UNAUTHORIZED => format!("{said}; name it by ONCELOG_KEY or --key"),
            _ => said,
        }
    }

    /// The same, with the id by which the server's log knows the request.
    pub fn traceable(&self) -> String {
        match &self.request_id {
            Some(id) => format!("{} (request {id})", self.detail()),
            None => self.detail(),
        }
    }

    /// The `detail` of the problem, or the start of the body.
    fn said(&self) -> String {
        #[derive(Deserialize)]
        struct Problem {
            detail: Option<String>,
            title: Option<String>,
        }
        const SHOWN_CHARS: usize = 200;
        serde_json::from_slice::<Problem>(&self.body)
            .ok()
            .and_then(|problem| problem.detail.or(problem.title))
            .unwrap_or_else(|| {
                String::from_utf8_lossy(&self.body)
                    .chars()
                    .take(SHOWN_CHARS)
                    .collect()
            })
    }
}
