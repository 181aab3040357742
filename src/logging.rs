//! Log lines to standard error, as text or JSON. Called once, by the commands that log.
//!
//! Both formats are our own, small ones: a line of JSON is one flat object with field names that stay (the table is in
//! `docs/OPERATIONS.md`), a line of text cannot be forged by what a client sends, and either names the request that is
//! worked on. Lines of libraries, whose fields nobody has promised, are left out.

mod json;
mod seldom;
mod text;

pub(crate) use seldom::Seldom;

use crate::config::LogFormat;
use json::JsonLines;
use std::{
    io::{IsTerminal, stderr},
    time::{SystemTime, UNIX_EPOCH},
};
use text::TextLines;
use tracing_subscriber::{filter::Targets, fmt, layer::SubscriberExt, registry, util::SubscriberInitExt};

/// Starts logging for the whole process; a second call changes nothing.
pub fn start(level: tracing::Level, format: LogFormat) {
    let ours = Targets::new().with_target(env!("CARGO_CRATE_NAME"), level);
    let lines = registry().with(ours);
    let to_stderr = || fmt::layer().with_writer(stderr);
    if format == LogFormat::Json {
        // What collects the lines reads no other text.
        std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "a thread panicked")));
    }
    // The only error is that logging was started before.
    let _ = match format {
        LogFormat::Text => lines
            .with(
                to_stderr()
                    .with_ansi(stderr().is_terminal())
                    .event_format(TextLines),
            )
            .try_init(),
        LogFormat::Json => lines.with(to_stderr().event_format(JsonLines)).try_init(),
    };
}

/// The time as all times of ours are written.
fn now() -> String {
    // A clock before 1970 shows 1970.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    crate::event::format_micros(since.as_micros() as i64)
}
