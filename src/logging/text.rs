//! A line as text, for people: time, level, message, then `name=value` for each field.

use super::now;
use crate::request;
use std::fmt;
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    registry::LookupSpan,
};

/// See [`super`].
pub(super) struct TextLines;

impl<S, N> FormatEvent<S, N> for TextLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut line: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let level = *event.metadata().level();
        if line.has_ansi_escapes() {
            write!(line, "\x1b[2m{}\x1b[0m {}{level:>5}\x1b[0m", now(), colour(level))?;
        } else {
            write!(line, "{} {level:>5}", now())?;
        }
        let mut fields = Fields {
            line: line.by_ref(),
            result: Ok(()),
        };
        event.record(&mut fields);
        fields.result?;
        request::current(|request| {
            write!(line, " request_id={}", request.id)?;
            match request.trace {
                Some(trace) => write!(line, " trace_id={}", trace.id),
                None => Ok(()),
            }
        })
        .unwrap_or(Ok(()))?;
        line.write_char('\n')
    }
}

/// What makes a terminal show the level's colour.
fn colour(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\x1b[31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[32m",
        Level::DEBUG => "\x1b[34m",
        Level::TRACE => "\x1b[35m",
    }
}

/// Writes an event's fields behind a line; what goes wrong is kept until the end.
struct Fields<'a> {
    line: Writer<'a>,
    result: fmt::Result,
}

impl Fields<'_> {
    fn add(&mut self, field: &Field, value: &str) -> fmt::Result {
        if field.name() == "message" {
            self.line.write_char(' ')?;
            return value.chars().try_for_each(|letter| match letter.is_control() {
                true => write!(self.line, "{}", letter.escape_debug()),
                false => self.line.write_char(letter),
            });
        }
        let is_plain = |letter: char| !letter.is_whitespace() && !letter.is_control() && letter != '"';
        match !value.is_empty() && value.chars().all(is_plain) {
            true => write!(self.line, " {}={value}", field.name()),
            // So that nobody's name can look like a line or a field of ours.
            false => write!(self.line, " {}={value:?}", field.name()),
        }
    }
}

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if self.result.is_ok() {
            self.result = self.add(field, value);
        }
    }
}
