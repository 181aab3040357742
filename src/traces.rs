//! Spans of requests, for a collector of OpenTelemetry (`OTLP_ENDPOINT`).
//!
//! `http` begins a span for each request that is sampled, and children of it for parts of the work; a span that is
//! dropped is over and put into a bounded queue. What sends them ([`start`], with the feature `otlp`) never holds a
//! request up: a span that finds the queue full is lost and counted. A request that is not sampled costs a look at its
//! headers.

#[cfg(feature = "otlp")]
mod otlp;
mod span;

pub use span::{Attribute, Kind, OpenSpan, Span};

use crate::{
    client::{BaseUrl, EndpointError},
    limits::{MAX_TRACESTATE_BYTES, SPAN_FLUSH_TIMEOUT},
    request::{self, RequestId, Trace, TraceId, Traceparent},
};
use axum::http::HeaderMap;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};

/// Where spans are sent, and which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Otlp {
    /// The collector; spans go to `/v1/traces` behind it.
    pub endpoint: BaseUrl,
    /// The share of requests that are sampled, of those whose client does not decide it.
    pub sample_ratio: SampleRatio,
}

/// A share, from 0 to 1, in parts of 2^32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleRatio(u64);

impl SampleRatio {
    /// Reads a number from 0 to 1.
    pub fn parse(text: &str) -> Option<Self> {
        let share: f64 = text.parse().ok().filter(|share| (0.0..=1.0).contains(share))?;
        Some(Self((share * (1_u64 << 32) as f64).round() as u64))
    }

    /// Throws the dice.
    fn takes_one(self) -> bool {
        u64::from(fastrand::u32(..)) < self.0
    }
}

/// Begins spans. Cheap to clone; the default one exports nothing.
#[derive(Clone, Debug, Default)]
pub struct Tracer(Option<Arc<Sampling>>);

#[derive(Debug)]
struct Sampling {
    ratio: SampleRatio,
    spans: SpanQueue,
}

/// The way to what sends the spans.
#[derive(Clone, Debug)]
pub struct SpanQueue {
    sender: mpsc::Sender<Span>,
    lost: Arc<AtomicU64>,
}

impl SpanQueue {
    /// Hands a span over, if there is room.
    fn put(&self, span: Span) {
        if self.sender.try_send(span).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What sends the spans, as long as there is a [`Tracer`].
#[derive(Debug)]
pub struct Export(JoinHandle<()>);

impl Export {
    /// Waits until the spans that are left are sent, at most [`SPAN_FLUSH_TIMEOUT`]. Every [`Tracer`] must be gone.
    pub async fn finish(self) {
        if timeout(SPAN_FLUSH_TIMEOUT, self.0).await.is_err() {
            tracing::warn!("the last spans were not exported before the stop");
        }
    }
}

/// Starts to export spans, if there is a collector to send them to. Must be called from a runtime.
///
/// # Errors
/// When TLS to the collector cannot be set up.
#[cfg(feature = "otlp")]
pub fn start(settings: Option<Otlp>) -> Result<(Tracer, Option<Export>), EndpointError> {
    use crate::{
        client::{Client, Endpoint, Trust},
        limits::{SPAN_EXPORT_TIMEOUT, SPAN_QUEUE},
    };
    let Some(Otlp {
        endpoint,
        sample_ratio: ratio,
    }) = settings
    else {
        return Ok((Tracer::default(), None));
    };
    let endpoint = Endpoint::new(endpoint, &Trust::default(), None)?;
    let client = Client::new(endpoint, SPAN_EXPORT_TIMEOUT);
    let (sender, receiver) = mpsc::channel(SPAN_QUEUE);
    let lost = Arc::default();
    let export = otlp::export(receiver, Arc::clone(&lost), client);
    let spans = SpanQueue { sender, lost };
    Ok((
        Tracer(Some(Arc::new(Sampling { ratio, spans }))),
        Some(Export(tokio::spawn(export))),
    ))
}

/// The same without the feature: `config` has refused every collector.
///
/// # Errors
/// None.
#[cfg(not(feature = "otlp"))]
pub fn start(_: Option<Otlp>) -> Result<(Tracer, Option<Export>), EndpointError> {
    Ok((Tracer::default(), None))
}

impl Tracer {
    /// The trace of a request with these headers, and the span of the request if it is exported. Whether it is, the
    /// client's `traceparent` decides; without one, the ratio.
    pub fn begin(&self, headers: &HeaderMap, id: &RequestId) -> (Option<Trace>, Option<OpenSpan>) {
        let from = Traceparent::of(headers);
        let not_exported = from.map(|from| Trace {
            id: from.trace,
            span: None,
        });
        let Some(sampling) = &self.0 else {
            return (not_exported, None);
        };
        if !from.map_or_else(|| sampling.ratio.takes_one(), |from| from.sampled) {
            return (not_exported, None);
        }
        let mut span = Span::new(
            from.map_or_else(TraceId::random, |from| from.trace),
            from.map(|from| from.parent),
            Kind::Server,
        );
        if from.is_some() {
            span.state = tracestate(headers);
        }
        span.attributes
            .push(("oncelog.request_id", Attribute::Text(id.to_string())));
        let trace = Trace {
            id: span.trace,
            span: Some(span.id),
        };
        (Some(trace), Some(OpenSpan::new(span, sampling.spans.clone())))
    }

    /// A span for a part of the work on the current request, if that one's span is exported.
    pub fn child(&self, name: &'static str) -> Option<OpenSpan> {
        let sampling = self.0.as_ref()?;
        let Trace {
            id,
            span: Some(parent),
        } = request::current(|request| request.trace).flatten()?
        else {
            return None;
        };
        let mut span = Span::new(id, Some(parent), Kind::Internal);
        span.name = name.into();
        Some(OpenSpan::new(span, sampling.spans.clone()))
    }
}

/// The client's `tracestate`, to be passed on as it is; one that is too long to be is left out, as the standard allows.
fn tracestate(headers: &HeaderMap) -> String {
    let parts: Option<Vec<&str>> = headers
        .get_all("tracestate")
        .iter()
        .map(|value| value.to_str().ok())
        .collect();
    let state = parts.unwrap_or_default().join(",");
    match state.len() <= MAX_TRACESTATE_BYTES {
        true => state,
        false => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_of_zero_takes_none_and_of_one_takes_all() {
        let takes = |text: &str| {
            let ratio = SampleRatio::parse(text).unwrap_or_else(|| panic!("{text}"));
            (0..10_000).filter(|_| ratio.takes_one()).count()
        };
        assert_eq!(takes("0"), 0);
        assert_eq!(takes("1"), 10_000);
        let some = takes("0.25");
        assert!((2_000..3_000).contains(&some), "{some}");
        for bad in ["", "-0.1", "1.1", "NaN", "inf", "all"] {
            assert_eq!(SampleRatio::parse(bad), None, "{bad}");
        }
    }
}
