//! Bounds lines that could come in floods.

use std::time::{Duration, Instant};

/// Something that is worth a line in the log at most once a second.
#[derive(Debug, Default)]
pub(crate) struct Seldom {
    logged: Option<Instant>,
    silent: u64,
}

impl Seldom {
    /// How often it happened without a line since the last one; `None` when it is too early for another.
    pub(crate) fn now(&mut self) -> Option<u64> {
        if self
            .logged
            .is_some_and(|logged| logged.elapsed() < Duration::from_secs(1))
        {
            self.silent += 1;
            return None;
        }
        self.logged = Some(Instant::now());
        Some(std::mem::take(&mut self.silent))
    }
}
