//! The API's promises, on a store in memory.

mod documents;
mod events;
mod keys;
mod operate;
mod publish;
mod topics;
