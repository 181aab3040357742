//! Progress bars, on standard error and only when it is a terminal.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{io::IsTerminal, time::Duration};

const TICK: Duration = Duration::from_millis(200);

/// A bar that counts up to `total` of `unit`.
pub(super) fn counter(total: u64, unit: &str) -> ProgressBar {
    bar(
        Some(total),
        &format!("{{bar:40}} {{human_pos}} of {{human_len}} {unit}, {{per_sec}}, {{eta}} left"),
    )
}

/// A bar of bytes; without a total, a count of them.
pub(super) fn bytes(total: Option<u64>) -> ProgressBar {
    let template = match total {
        Some(_) => "{bar:40} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left  {msg}",
        None => "{spinner} {bytes}, {bytes_per_sec}  {msg}",
    };
    bar(total, template)
}

/// Shows that something is being done that has no measure.
pub(super) fn spinner(message: &'static str) -> ProgressBar {
    bar(None, "{spinner} {msg}").with_message(message)
}

fn bar(total: Option<u64>, template: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr_with_hz(5));
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(TICK);
    bar
}
