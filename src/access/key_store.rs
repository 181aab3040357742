//! The contract between the keys and the place where they are kept: a file beside the store, or a table in its server.
//!
//! A place reads all keys at once and changes them in one step; what may be changed, and how, is the same everywhere.

use super::{
    rate::Limits,
    record::{KeyRecord, NewKey},
    secret::Secret,
};
use crate::limits::MAX_KEYS;
use std::{fmt, io, path::PathBuf};

/// A place where the keys of a store are kept. Its methods block.
pub trait KeyStore: fmt::Debug + Send + Sync {
    /// Where it is, for people.
    fn place(&self) -> String;

    /// What it is now; `None` when nobody made a key yet. Costs less than to read the keys.
    fn stamp(&self) -> Result<Option<Stamp>, KeyError>;

    /// All keys in the order in which they were made, also revoked ones; `None` when nobody made one yet.
    fn read(&self) -> Result<Option<Vec<KeyRecord>>, KeyError>;

    /// Replaces the keys by what `change` makes of them, as one step: two changes at once happen one after the other, and
    /// one that fails has changed nothing. No key is taken away.
    fn change(
        &self,
        change: &mut dyn FnMut(&mut Vec<KeyRecord>) -> Result<(), KeyError>,
    ) -> Result<(), KeyError>;

    /// Makes a key. Its secret is in what is returned and nowhere else.
    fn create(&self, wanted: NewKey) -> Result<(KeyRecord, Secret), KeyError> {
        let (record, secret) = KeyRecord::new(wanted)?;
        self.change(&mut |keys| {
            if keys.len() >= MAX_KEYS {
                return Err(KeyError::Refused(format!(
                    "{} has {MAX_KEYS} keys, as many as it may",
                    self.place()
                )));
            }
            keys.push(record.clone());
            Ok(())
        })?;
        Ok((record, secret))
    }

    /// Refuses a key from now on. Revoking it again changes nothing.
    fn revoke(&self, id: &str) -> Result<KeyRecord, KeyError> {
        self.change_key(id, &|key| key.revoke())
    }

    /// Changes how fast a key may be used; its secret stays.
    fn limit(&self, id: &str, change: &dyn Fn(&mut Limits)) -> Result<KeyRecord, KeyError> {
        self.change_key(id, &|key| change(&mut key.limits))
    }

    /// Changes one key.
    fn change_key(&self, id: &str, change: &dyn Fn(&mut KeyRecord)) -> Result<KeyRecord, KeyError> {
        let unknown = || {
            KeyError::Refused(format!(
                "{} has no key {id}; `oncelog keys list` shows them",
                self.place()
            ))
        };
        let mut changed = None;
        self.change(&mut |keys| {
            let key = keys.iter_mut().find(|key| key.id == id).ok_or_else(unknown)?;
            change(key);
            changed = Some(key.clone());
            Ok(())
        })?;
        changed.ok_or_else(unknown)
    }
}

/// Tells one state of a place from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stamp {
    /// Of a file.
    File {
        /// Its number in the file system.
        inode: u64,
        /// Its size.
        bytes: u64,
        /// When it was written: seconds since 1970, and nanoseconds.
        modified: (i64, i64),
    },
    /// Of a table: how often it was changed.
    Table {
        /// Statements that changed it.
        changes: i64,
    },
}

/// Why the keys cannot be read or changed. The message says what was wrong, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file, or its folder, cannot be read or written.
    #[error("{}: {error}; check that this user may read and write the file and its folder", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the operating system says.
        error: io::Error,
    },
    /// The keys are there and cannot be understood.
    #[error("{place} cannot be used: {reason}. {cure}")]
    Damaged {
        /// Where they are.
        place: String,
        /// What is wrong with them.
        reason: String,
        /// What to do.
        cure: &'static str,
    },
    /// The server that has the keys did not do what it was asked.
    #[error("{0}")]
    Unavailable(String),
    /// The change cannot be made.
    #[error("{0}")]
    Refused(String),
}

impl KeyError {
    /// Whether it tells nothing new to who was told of `before`. While a server is away, what it says changes from one
    /// moment to the next.
    pub(super) fn is_known_by(&self, before: &Self) -> bool {
        matches!((self, before), (Self::Unavailable(_), Self::Unavailable(_)))
            || self.to_string() == before.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_while_it_is_away_is_told_once_and_other_troubles_whenever_they_change() {
        let away = |text: &str| KeyError::Unavailable(text.to_owned());
        let damaged = |reason: &str| KeyError::Damaged {
            place: "x-keys.json".to_owned(),
            reason: reason.to_owned(),
            cure: "",
        };
        assert!(away("refused").is_known_by(&away("starting up")));
        assert!(damaged("a").is_known_by(&damaged("a")));
        assert!(!damaged("b").is_known_by(&damaged("a")));
        assert!(!damaged("a").is_known_by(&away("refused")));
    }
}
