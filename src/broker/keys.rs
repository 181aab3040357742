//! The names of everything that the broker keeps in Redis.
//!
//! All have the same hash tag, so that a cluster keeps them on one node: a publish changes several of them at once. To
//! have two brokers on one server, use two of its databases (`redis://HOST/1`).

/// The consumer group of each stream.
pub(super) const GROUP: &str = "oncelog";

/// The one consumer of each group. Which instance that is, the lease says; a consumer for each of them would stay in Redis
/// when the instance has gone.
pub(super) const CONSUMER: &str = "owner";

/// The names, with those of each partition.
#[derive(Debug)]
pub(super) struct Keys {
    /// A hash: the store whose events these are, and the number of partitions.
    pub(super) meta: &'static str,
    /// A hash: events and bytes in the streams, and in the dead letters.
    pub(super) queued: &'static str,
    /// The stream of dead letters.
    pub(super) dead: &'static str,
    /// The number of the newest lease.
    pub(super) token: &'static str,
    /// A sorted set: the instances that are there, and until when that holds.
    pub(super) instances: &'static str,
}

impl Keys {
    pub(super) const fn new() -> Self {
        Self {
            meta: "{oncelog}:meta",
            queued: "{oncelog}:queued",
            dead: "{oncelog}:dead",
            token: "{oncelog}:token",
            instances: "{oncelog}:instances",
        }
    }

    /// The stream of a partition.
    pub(super) fn stream(&self, partition: u16) -> String {
        format!("{{oncelog}}:stream:{partition}")
    }

    /// The lease of a partition.
    pub(super) fn lease(&self, partition: u16) -> String {
        format!("{{oncelog}}:lease:{partition}")
    }
}
