//! The API's promises, on a store in memory.

mod documents;
mod events;
mod operate;
mod publish;
mod topics;
