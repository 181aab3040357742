//! What is kept of a key, wherever it is kept: everything but its secret.

use super::{
    grant::{Grant, Scope, TopicPattern},
    key_store::KeyError,
    rate::Limits,
    secret::{Hash, Secret},
};
use crate::limits::{MAX_KEY_PATTERNS, MAX_NAME_CHARS};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What is kept of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRecord {
    /// Its id, which is no secret.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// What it allows.
    pub scopes: Vec<Scope>,
    /// For which topics.
    pub topics: Vec<TopicPattern>,
    /// When it was made, to the microsecond, as all times here.
    pub created_at: Timestamp,
    /// From when on it is refused, if ever.
    pub expires_at: Option<Timestamp>,
    /// Since when it is refused, if it is.
    pub revoked_at: Option<Timestamp>,
    /// How fast it may be used. A program that does not know of limits refuses a file that has some; one without can be
    /// read by all.
    #[serde(default, skip_serializing_if = "Limits::is_empty")]
    pub limits: Limits,
    /// The SHA-256 of its secret, in base64url.
    secret_sha256: String,
}

/// A key that is to be made.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// What people call it: 1 to 255 characters.
    pub name: String,
    /// What it allows.
    pub scopes: Vec<Scope>,
    /// For which topics.
    pub topics: Vec<TopicPattern>,
    /// From when on it is refused.
    pub expires_at: Option<Timestamp>,
    /// How fast it may be used.
    pub limits: Limits,
}

impl KeyRecord {
    /// Makes the key that is wanted. Its secret is in what is returned and nowhere else.
    pub(super) fn new(wanted: NewKey) -> Result<(Self, Secret), KeyError> {
        let refused = |reason: &str| Err(KeyError::Refused(reason.to_owned()));
        if wanted.scopes.is_empty() {
            return refused("a key needs a scope");
        }
        if !(1..=MAX_KEY_PATTERNS).contains(&wanted.topics.len()) {
            return Err(KeyError::Refused(format!(
                "a key has 1 to {MAX_KEY_PATTERNS} topic patterns"
            )));
        }
        let every_topic = wanted.topics.iter().any(TopicPattern::is_everything);
        if wanted.scopes.contains(&Scope::Admin) && !every_topic {
            return refused(
                "the scope admin is for every topic: leave the topics out, or use publish and read",
            );
        }
        if !(1..=MAX_NAME_CHARS).contains(&wanted.name.chars().count()) {
            return Err(KeyError::Refused(format!(
                "a key's name has 1 to {MAX_NAME_CHARS} characters"
            )));
        }
        let created_at = now();
        let expires_at = wanted.expires_at.map(to_the_microsecond);
        if expires_at.is_some_and(|expires| expires <= created_at) {
            return refused("the key would have expired already");
        }
        let secret = Secret::random().map_err(|error| {
            KeyError::Refused(format!("the operating system gives no random numbers: {error}"))
        })?;
        let record = Self {
            id: secret.id().to_owned(),
            name: wanted.name,
            scopes: wanted.scopes,
            topics: wanted.topics,
            created_at,
            expires_at,
            revoked_at: None,
            limits: wanted.limits,
            secret_sha256: secret.hash().to_text(),
        };
        Ok((record, secret))
    }

    /// Reads what [`KeyRecord::to_json`] wrote, or says what is wrong with it.
    pub fn from_json(text: &str) -> Result<Self, String> {
        let record: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        record.check()?;
        Ok(record)
    }

    /// The record as a JSON object.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }

    /// Says what is wrong with a record that was read.
    pub(super) fn check(&self) -> Result<(), String> {
        match self.hash() {
            Some(_) => Ok(()),
            None => Err(format!("key {} has no SHA-256", self.id)),
        }
    }

    /// Whether it is let in now. The clock is only asked for a key that expires.
    pub fn is_live(&self, now: impl FnOnce() -> Timestamp) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|expires| now() < expires)
    }

    /// Refuses it from now on, unless it is refused already.
    pub(super) fn revoke(&mut self) {
        self.revoked_at.get_or_insert_with(now);
    }

    pub(super) fn hash(&self) -> Option<Hash> {
        Hash::from_text(&self.secret_sha256)
    }

    pub(super) fn grant(&self) -> Grant {
        Grant::new(self.id.clone(), self.scopes.clone(), self.topics.clone())
    }
}

fn now() -> Timestamp {
    to_the_microsecond(Timestamp::now())
}

fn to_the_microsecond(time: Timestamp) -> Timestamp {
    // The only times out of range are before the year -9999.
    Timestamp::from_microsecond(time.as_microsecond()).unwrap_or(time)
}
