//! A payload as a JSON value in 64 bits.
/// The payload's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub u64);
/// Why a payload was refused.
#[derive(Debug)]
pub struct PayloadError;
