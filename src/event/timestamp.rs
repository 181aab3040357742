//! Event times.
/// A point in time, to the nanosecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant {
    /// Since 1970, rounded down.
    pub seconds: i64,
    /// Within the second.
    pub nanos: u32,
}
/// A valid time in UTC.
#[derive(Debug)]
pub struct Timestamp;
/// Why a time was refused.
#[derive(Debug)]
pub struct TimestampError;
