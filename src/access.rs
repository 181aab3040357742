//! Who may do what: API keys with scopes and topics.
//!
//! A [`KeyStore`] keeps the keys: [`KeyFile`] in a file beside the store, so that a command that makes or revokes one never
//! waits for the committer; a table, where the store is a server. [`Gate`] reads them again when they have changed, and
//! turns the `Authorization` header of a request into a [`Caller`]; what a caller may do and see is asked of it alone. Its
//! [`Allowance`] holds it to its [`Limits`].

mod allowance;
mod figures;
mod file;
mod gate;
mod grant;
mod key_store;
mod rate;
mod record;
mod secret;

pub use allowance::{Allowance, EventsRefused, Exceeded};
pub use figures::Figures;
pub use file::KeyFile;
pub use gate::{Caller, Gate, Refused};
pub use grant::{Grant, PatternError, Scope, TopicPattern};
pub use key_store::{KeyError, KeyStore, Stamp};
pub use rate::{Limit, Limits, Rate, RateError, Unit};
pub use record::{KeyRecord, NewKey};
pub use secret::Secret;
