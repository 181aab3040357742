//! Log lines to standard error, as text or JSON. Called once, by the commands that log.

use crate::config::LogFormat;
use std::io::{IsTerminal, stderr};

/// Starts logging for the whole process; a second call changes nothing.
pub fn start(level: tracing::Level, format: LogFormat) {
    let lines = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(stderr)
        .with_target(false);
    // The only error is that logging was started before.
    let _ = match format {
        LogFormat::Text => lines.with_ansi(stderr().is_terminal()).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
}
