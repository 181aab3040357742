//! Who may do what: API keys with scopes and topics.
//!
//! [`KeyFile`] keeps the keys in a file beside the store, so that a command that makes or revokes one never waits for
//! the committer. [`Gate`] reads that file again when it has changed, and turns the `Authorization` header of a request
//! into a [`Caller`]; what a caller may do and see is asked of it alone. Its [`Allowance`] holds it to its [`Limits`].

mod allowance;
mod figures;
mod file;
mod gate;
mod grant;
mod rate;
mod secret;

pub use allowance::{Allowance, EventsRefused, Exceeded};
pub use figures::Figures;
pub use file::{KeyFile, KeyFileError, KeyRecord, NewKey};
pub use gate::{Caller, Gate, Refused};
pub use grant::{Grant, PatternError, Scope, TopicPattern};
pub use rate::{Limit, Limits, Rate, RateError, Unit};
pub use secret::Secret;
