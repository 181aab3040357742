//! The names of everything that the broker keeps in Redis.
//!
//! All have the same hash tag, so that a cluster keeps them on one node: a publish changes several of them at once. To
//! have two brokers on one server, use two of its databases (`redis://HOST/1`).

/// The consumer group of each stream.
pub(super) const GROUP: &str = "oncelog";

/// The one consumer of each group. Which instance that is, the lease says; a consumer for each of them would stay in Redis
/// when the instance has gone.
pub(super) const CONSUMER: &str = "owner";

/// A hash: the store whose events these are, and the number of partitions.
pub(super) const META: &str = "{oncelog}:meta";
/// A hash: events and bytes in the streams, and in the dead letters.
pub(super) const QUEUED: &str = "{oncelog}:queued";
/// The stream of dead letters.
pub(super) const DEAD: &str = "{oncelog}:dead";
/// The number of the newest lease.
pub(super) const TOKEN: &str = "{oncelog}:token";
/// A sorted set: the instances that are there, and until when that holds.
pub(super) const INSTANCES: &str = "{oncelog}:instances";

/// The stream of a partition.
pub(super) fn stream(partition: u16) -> String {
    format!("{{oncelog}}:stream:{partition}")
}

/// The lease of a partition.
pub(super) fn lease(partition: u16) -> String {
    format!("{{oncelog}}:lease:{partition}")
}
