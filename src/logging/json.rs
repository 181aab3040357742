//! A line as one flat JSON object, for programs.

use super::now;
use crate::request;
use serde::ser::{SerializeMap, Serializer};
use std::fmt;
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    registry::LookupSpan,
};

/// See [`super`].
pub(super) struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut line: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let text = object(event).map_err(|_| fmt::Error)?;
        line.write_str(&text)?;
        line.write_char('\n')
    }
}

fn object(event: &Event<'_>) -> serde_json::Result<String> {
    let mut bytes = Vec::with_capacity(256);
    let mut serializer = serde_json::Serializer::new(&mut bytes);
    let mut object = serializer.serialize_map(None)?;
    let metadata = event.metadata();
    object.serialize_entry("timestamp", &now())?;
    object.serialize_entry("level", metadata.level().as_str())?;
    object.serialize_entry("target", metadata.target())?;
    let mut fields = Fields {
        object,
        result: Ok(()),
    };
    event.record(&mut fields);
    fields.result?;
    let mut object = fields.object;
    request::current(|request| {
        object.serialize_entry("request_id", &request.id)?;
        if let Some(trace) = request.trace {
            object.serialize_entry("trace_id", &trace.id.to_string())?;
            if let Some(span) = trace.span {
                object.serialize_entry("span_id", &span.to_string())?;
            }
        }
        Ok(())
    })
    .unwrap_or(Ok(()))?;
    object.end()?;
    String::from_utf8(bytes).map_err(serde::ser::Error::custom)
}

/// Writes an event's fields into the object; what goes wrong is kept until the end.
struct Fields<M: SerializeMap> {
    object: M,
    result: Result<(), M::Error>,
}

impl<M: SerializeMap> Fields<M> {
    fn add(&mut self, field: &Field, value: &(impl serde::Serialize + ?Sized)) {
        if self.result.is_ok() {
            self.result = self.object.serialize_entry(field.name(), value);
        }
    }
}

impl<M: SerializeMap> Visit for Fields<M> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, &format_args!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, &value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, &value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, &value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, &value);
    }
}
