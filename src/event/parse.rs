//! Bodies to batches.
use super::{Batch, Identity};
/// What a body may look like.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    /// One event, an array, or `{"events":[…]}`.
    Any,
    /// `{"events":[…]}` only.
    Wrapped,
    /// One event a line.
    Lines,
}
/// Why.
#[derive(Debug)]
pub struct ParseError;
/// Which.
#[derive(Debug)]
pub enum ParseErrorKind {}
/// Parse.
#[allow(clippy::todo, clippy::needless_pass_by_value, missing_docs, unused_variables)]
pub fn parse(
    body: Vec<u8>,
    shape: Shape,
    identity: &Identity,
    max_events: usize,
) -> Result<Batch, ParseError> {
    todo!()
}
