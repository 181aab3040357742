//! On whose authority events out of a broker are committed.
//!
//! One instance at a time has a partition of the broker, by a lease. An instance that has lost its lease may not know it
//! yet (it was stopped, or the network was), and must not commit behind its successor: that would mix up the order of a
//! topic's events. So each lease has a number that is larger than those before, and stores refuse smaller ones.

/// Travels with a batch to the commit; see [`crate::store::BatchOutcome::Fenced`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence {
    /// The partition that the events are from.
    pub partition: u16,
    /// The number of the lease; larger than that of every earlier lease of the partition, and below 2^53.
    pub token: u64,
}
