//! What the broker holds, as it was last seen.

use std::time::Duration;

/// The state of the broker when it was last looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Events that wait to be committed.
    pub queued_events: u64,
    /// Their bytes.
    pub queued_bytes: u64,
    /// Dead letters.
    pub dead: u64,
    /// How long the oldest entry has waited; zero when there is none.
    pub lag: Duration,
    /// Partitions that this instance consumes.
    pub leases: u64,
}
