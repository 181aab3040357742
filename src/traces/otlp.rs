//! Sends spans to a collector: OTLP over HTTP, as protobuf, in batches.
//!
//! Not the exporter of OpenTelemetry's SDK: that one logs every failure and is silent about what it drops. Here a
//! collector that is away is one line, and one more when it is back; the batch is kept and tried again meanwhile.

use super::{Attribute, Kind, Span};
use crate::{
    client::{Backoff, Client, Content, is_passing},
    limits::{SPAN_BATCH, SPAN_GATHER_WAIT, SPAN_LOSS_LOG_INTERVAL},
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span as SpanMessage, Status, span::SpanKind, status::StatusCode},
};
use prost::Message;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};
use tokio::{
    sync::mpsc::Receiver,
    time::{Instant, sleep, timeout_at},
};

const PATH: &str = "/v1/traces";
/// Flags of a span: it is sampled, it is known whether its parent is elsewhere, and that it is.
const SAMPLED: u32 = 1;
const PARENT_IS_KNOWN: u32 = 0x100;
const PARENT_IS_ELSEWHERE: u32 = 0x200;

/// Sends what comes until nobody is left who could send more.
pub(super) async fn export(mut spans: Receiver<Span>, lost: Arc<AtomicU64>, client: Client) {
    let mut collector = Collector {
        client,
        resource: resource(),
        is_failing: false,
    };
    let mut losses = Losses { lost, told: None };
    let mut batch = Vec::with_capacity(SPAN_BATCH);
    while gather(&mut spans, &mut batch).await {
        collector.deliver(&mut batch).await;
        losses.tell_at_times();
    }
    losses.tell();
}

/// Waits for a span, then a while for more; false when there are none and there will be none.
async fn gather(spans: &mut Receiver<Span>, batch: &mut Vec<Span>) -> bool {
    spans.recv_many(batch, SPAN_BATCH).await;
    let deadline = Instant::now() + SPAN_GATHER_WAIT;
    while batch.len() < SPAN_BATCH && !batch.is_empty() {
        let room = SPAN_BATCH - batch.len();
        match timeout_at(deadline, spans.recv_many(batch, room)).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
    }
    !batch.is_empty()
}

struct Collector {
    client: Client,
    resource: Resource,
    is_failing: bool,
}

impl Collector {
    /// Sends the batch until it is taken, or refused for good.
    async fn deliver(&mut self, batch: &mut Vec<Span>) {
        let count = batch.len();
        let body = Content {
            media_type: "application/x-protobuf",
            bytes: self.message(batch.drain(..)).encode_to_vec().into(),
            coding: None,
        };
        let mut backoff = Backoff::default();
        loop {
            let (error, passing, retry_after) = match self.client.post(PATH, body.clone()).await {
                Ok(answer) if answer.status.is_success() => {
                    if std::mem::take(&mut self.is_failing) {
                        tracing::info!("spans are exported again");
                    }
                    return;
                }
                Ok(answer) => (
                    format!("{} answered {}", self.client.base(), answer.status),
                    is_passing(answer.status),
                    answer.retry_after,
                ),
                Err(error) => (error.to_string(), error.is_passing(), None),
            };
            if !std::mem::replace(&mut self.is_failing, true) {
                tracing::warn!(
                    error,
                    "cannot export spans; those that the collector refuses for good are lost. No more is said of it until it works (OTLP_ENDPOINT)"
                );
            }
            if !passing {
                tracing::debug!(spans = count, "the collector refuses spans for good");
                return;
            }
            sleep(backoff.next_wait(retry_after)).await;
        }
    }

    fn message(&self, spans: impl Iterator<Item = Span>) -> ExportTraceServiceRequest {
        ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(self.resource.clone()),
                scope_spans: vec![ScopeSpans {
                    scope: Some(InstrumentationScope {
                        name: env!("CARGO_PKG_NAME").to_owned(),
                        version: env!("CARGO_PKG_VERSION").to_owned(),
                        ..InstrumentationScope::default()
                    }),
                    spans: spans.map(message).collect(),
                    ..ScopeSpans::default()
                }],
                ..ResourceSpans::default()
            }],
        }
    }
}

/// Says how many spans found the queue full.
struct Losses {
    lost: Arc<AtomicU64>,
    told: Option<Instant>,
}

impl Losses {
    fn tell_at_times(&mut self) {
        if self
            .told
            .is_none_or(|told| told.elapsed() >= SPAN_LOSS_LOG_INTERVAL)
        {
            self.tell();
        }
    }

    fn tell(&mut self) {
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            self.told = Some(Instant::now());
            tracing::warn!(
                spans = lost,
                "spans were not exported: more came than the collector took (OTLP_SAMPLE_RATIO)"
            );
        }
    }
}

/// Who sends the spans.
fn resource() -> Resource {
    let instance = format!("{:016x}", fastrand::u64(..));
    let attributes = [
        ("service.name", env!("CARGO_PKG_NAME")),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("service.instance.id", &instance),
    ];
    Resource {
        attributes: attributes
            .map(|(name, value)| attribute(name, Attribute::Text(value.to_owned())))
            .into(),
        ..Resource::default()
    }
}

fn message(span: Span) -> SpanMessage {
    let (kind, elsewhere) = match span.kind {
        Kind::Server => (SpanKind::Server, PARENT_IS_ELSEWHERE),
        Kind::Internal => (SpanKind::Internal, 0),
    };
    SpanMessage {
        trace_id: span.trace.bytes().into(),
        span_id: span.id.bytes().into(),
        trace_state: span.state,
        parent_span_id: span
            .parent
            .map(|parent| parent.bytes().into())
            .unwrap_or_default(),
        flags: SAMPLED | PARENT_IS_KNOWN | if span.parent.is_some() { elsewhere } else { 0 },
        name: span.name.into_owned(),
        kind: kind.into(),
        start_time_unix_nano: nanoseconds(span.began),
        end_time_unix_nano: nanoseconds(span.ended.max(span.began)),
        attributes: span
            .attributes
            .into_iter()
            .map(|(name, value)| attribute(name, value))
            .collect(),
        status: span.failed.then(|| Status {
            code: StatusCode::Error.into(),
            ..Status::default()
        }),
        ..SpanMessage::default()
    }
}

fn attribute(name: &str, value: Attribute) -> KeyValue {
    KeyValue {
        key: name.to_owned(),
        value: Some(AnyValue {
            value: Some(match value {
                Attribute::Text(text) => Value::StringValue(text),
                Attribute::Number(number) => Value::IntValue(number),
            }),
        }),
        ..KeyValue::default()
    }
}

/// Since 1970; a clock before it shows it.
fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
