//! Which request is worked on: its id, and the trace that it belongs to.
//!
//! `http` gives each request a [`Context`] and works on it inside of it. Whatever is logged or answered there asks for
//! the current one, so nothing has to hand it on but what changes the thread: [`here`] takes it there. A leaf: it names
//! only `limits`.

mod traceparent;

pub use traceparent::{SpanId, TraceId, Traceparent};

use crate::limits::MAX_REQUEST_ID_BYTES;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Serialize, Serializer};
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// The header with a request's id, both ways.
pub static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

tokio::task_local! {
    /// Not a parameter of everything: a line in the log, deep in a query, has to know it as well. It costs a swap each
    /// time the request's task is polled, and no line, span or allocation for a request that logs nothing.
    static CURRENT: Context;
}

/// What a request is known by. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// Its id.
    pub id: RequestId,
    /// Its trace, if it has one.
    pub trace: Option<Trace>,
}

/// A request's place in a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The trace.
    pub id: TraceId,
    /// The span that is exported for this request; none when none is.
    pub span: Option<SpanId>,
}

impl Trace {
    /// The trace that the client names in `traceparent`.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        Traceparent::of(headers).map(|from| Self {
            id: from.trace,
            span: None,
        })
    }
}

/// The id of a request, unique unless its client says otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestId {
    /// Made here: a number that is this server's since its start, and a running one. It takes no allocation.
    Made {
        /// Of the server, random.
        server: u64,
        /// Of the request.
        number: u64,
    },
    /// Taken from the client.
    Given(Arc<str>),
}

/// Makes the ids of a server's requests.
#[derive(Debug)]
pub struct RequestIds {
    server: u64,
    next: AtomicU64,
}

impl Default for RequestIds {
    fn default() -> Self {
        Self {
            // Without random numbers of the system, which a store cannot be opened without, the clock's have to do.
            server: getrandom::u64().unwrap_or_else(|_| fastrand::u64(..)),
            next: AtomicU64::new(0),
        }
    }
}

impl RequestIds {
    /// The id that the client gave in `X-Request-Id`, if it can be used, or a new one.
    pub fn of(&self, headers: &HeaderMap) -> RequestId {
        headers
            .get(&X_REQUEST_ID)
            .and_then(|value| RequestId::given(value.as_bytes()))
            .unwrap_or_else(|| RequestId::Made {
                server: self.server,
                number: self.next.fetch_add(1, Ordering::Relaxed),
            })
    }
}

impl RequestId {
    /// An id of a client: 1 to [`MAX_REQUEST_ID_BYTES`] visible ASCII characters but quotes and backslashes, so that it
    /// stands in every kind of log as it is.
    fn given(text: &[u8]) -> Option<Self> {
        let is_plain = |byte: &u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\'' | b'`' | b'\\');
        let is_valid = (1..=MAX_REQUEST_ID_BYTES).contains(&text.len()) && text.iter().all(is_plain);
        let text = std::str::from_utf8(text).ok().filter(|_| is_valid)?;
        Some(Self::Given(text.into()))
    }

    /// The value of `X-Request-Id`.
    pub fn header_value(&self) -> Option<HeaderValue> {
        match self {
            Self::Made { server, number } => {
                let mut digits = [0; 32];
                let (of_server, of_number) = digits.split_at_mut(16);
                hexadecimal(*server, of_server);
                hexadecimal(*number, of_number);
                HeaderValue::from_bytes(&digits).ok()
            }
            Self::Given(text) => HeaderValue::from_str(text).ok(),
        }
    }
}

/// `number` in lower-case hexadecimal digits, the last of them at the end of `digits`.
fn hexadecimal(mut number: u64, digits: &mut [u8]) {
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(number & 15) as usize];
        number >>= 4;
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Made { server, number } => write!(formatter, "{server:016x}{number:016x}"),
            Self::Given(text) => formatter.write_str(text),
        }
    }
}

impl Serialize for RequestId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Context {
    /// Works on the request: this is the current context wherever `work` is polled.
    pub fn work<F: Future>(self, work: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(self, work)
    }

    /// The same, for what does not wait.
    pub fn within<T>(self, work: impl FnOnce() -> T) -> T {
        CURRENT.sync_scope(self, work)
    }
}

/// What `read` makes of the current context; `None` when no request is worked on.
pub fn current<T>(read: impl FnOnce(&Context) -> T) -> Option<T> {
    CURRENT.try_with(read).ok()
}

/// `work`, done for the current request also when another task polls it.
pub fn elsewhere<F: Future>(work: F) -> impl Future<Output = F::Output> {
    let context = current(Clone::clone);
    async move {
        match context {
            Some(context) => context.work(work).await,
            None => work.await,
        }
    }
}

/// `work`, to be done for the current request also when it is done on another thread.
pub fn here<T>(work: impl FnOnce() -> T) -> impl FnOnce() -> T {
    let context = current(Clone::clone);
    move || match context {
        Some(context) => context.within(work),
        None => work(),
    }
}

/// Work on another thread panicked, which was logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Panicked;

/// Does `work`, which blocks or takes long, on a thread of its own, for the current request if there is one. It goes on when
/// nobody waits for it any more.
///
/// # Errors
/// When it panics; that is logged with what it was `doing`.
pub async fn beside<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
    doing: &'static str,
) -> Result<T, Panicked> {
    tokio::task::spawn_blocking(here(work)).await.map_err(|error| {
        tracing::error!(%error, "{doing} panicked");
        Panicked
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_taken_if_it_is_harmless_in_every_log() {
        let longest = "x".repeat(MAX_REQUEST_ID_BYTES);
        for good in ["1", "a-b_c:d/e.f=", "{[(<|>)]}!#$%&*+,;?@^~", &longest] {
            assert_eq!(
                RequestId::given(good.as_bytes()),
                Some(RequestId::Given(good.into())),
                "{good}"
            );
        }
        let too_long = "x".repeat(MAX_REQUEST_ID_BYTES + 1);
        for bad in [
            "", "a b", "a\tb", "\"a\"", "it's", "a\\b", "a`b", "ä", "a\u{7f}", &too_long,
        ] {
            assert_eq!(RequestId::given(bad.as_bytes()), None, "{bad:?}");
        }
        assert_eq!(RequestId::given(b"\xff"), None);
    }

    #[test]
    fn an_id_that_is_made_reads_the_same_everywhere() {
        let id = RequestId::Made {
            server: 0x0123_4567_89ab_cdef,
            number: 255,
        };
        assert_eq!(id.to_string(), "0123456789abcdef00000000000000ff");
        assert_eq!(id.header_value(), HeaderValue::from_str(&id.to_string()).ok());
        assert_eq!(serde_json::to_value(&id).ok(), Some(id.to_string().into()));
    }

    #[test]
    fn work_on_another_thread_is_for_the_same_request() {
        let id = RequestId::Given("abc".into());
        let context = Context {
            id: id.clone(),
            trace: None,
        };
        let work = context.within(|| here(|| current(|context| context.id.clone())));
        let found = std::thread::spawn(work).join();
        assert_eq!(found.ok().flatten(), Some(id));
        assert_eq!(current(Clone::clone), None);
    }
}
