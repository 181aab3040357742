//! Content codings: takes compressed request bodies apart within a bound, and makes answers smaller.
//!
//! A body is decompressed in one go into memory that its caller has set aside, so however much it would become, it takes no
//! more than that. A leaf; `http` and `client` use it.

mod decode;
mod encode;

pub use decode::{BodyCoding, DecodeError};
pub use encode::Coding;

#[cfg(test)]
mod tests;
