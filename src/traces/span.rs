//! A span while it is open and when it is over.

use super::SpanQueue;
use crate::{
    limits::MAX_SPAN_TEXT_BYTES,
    request::{SpanId, TraceId},
};
use std::{borrow::Cow, time::SystemTime};

/// A part of a trace: some work with a beginning and an end.
#[derive(Clone, Debug)]
pub struct Span {
    /// The trace.
    pub trace: TraceId,
    /// Its own id.
    pub id: SpanId,
    /// The span that it is a part of, if it is not the first of its trace.
    pub parent: Option<SpanId>,
    /// What `tracestate` said.
    pub state: String,
    /// What kind of work it is.
    pub kind: Kind,
    /// What the work is.
    pub name: Cow<'static, str>,
    /// When it began.
    pub began: SystemTime,
    /// When it ended.
    pub ended: SystemTime,
    /// What else is known of it.
    pub attributes: Vec<(&'static str, Attribute)>,
    /// Whether the server failed.
    pub failed: bool,
}

/// What kind of work a span is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A request, answered.
    Server,
    /// A part of that.
    Internal,
}

/// What is known of a span.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attribute {
    /// In words.
    Text(String),
    /// A number.
    Number(i64),
}

impl Span {
    pub(super) fn new(trace: TraceId, parent: Option<SpanId>, kind: Kind) -> Self {
        let now = SystemTime::now();
        Self {
            trace,
            id: SpanId::random(),
            parent,
            state: String::new(),
            kind,
            name: Cow::Borrowed(""),
            began: now,
            ended: now,
            attributes: Vec::new(),
            failed: false,
        }
    }
}

/// A span whose work goes on. It ends when this is dropped, also when the client of a request goes away.
#[derive(Debug)]
pub struct OpenSpan {
    /// Emptied by the end.
    span: Option<Box<Span>>,
    queue: SpanQueue,
}

impl OpenSpan {
    pub(super) fn new(span: Span, queue: SpanQueue) -> Self {
        Self {
            span: Some(Box::new(span)),
            queue,
        }
    }

    /// Says what the work is.
    pub fn name(&mut self, name: String) {
        if let Some(span) = &mut self.span {
            span.name = name.into();
        }
    }

    /// Adds a text, at most the first [`MAX_SPAN_TEXT_BYTES`] of it.
    pub fn text(&mut self, name: &'static str, value: &str) {
        let value = &value[..value.floor_char_boundary(MAX_SPAN_TEXT_BYTES)];
        self.add(name, Attribute::Text(value.to_owned()));
    }

    /// Adds a number.
    pub fn number(&mut self, name: &'static str, value: u64) {
        self.add(name, Attribute::Number(i64::try_from(value).unwrap_or(i64::MAX)));
    }

    /// Says that the server failed.
    pub fn fail(&mut self) {
        if let Some(span) = &mut self.span {
            span.failed = true;
        }
    }

    fn add(&mut self, name: &'static str, value: Attribute) {
        if let Some(span) = &mut self.span {
            span.attributes.push((name, value));
        }
    }
}

impl Drop for OpenSpan {
    fn drop(&mut self) {
        if let Some(mut span) = self.span.take() {
            span.ended = SystemTime::now();
            self.queue.put(*span);
        }
    }
}
