//! The identity of an event as a 128-bit keyed hash.
//!
//! Keyed with a secret of the store, so that nobody outside can craft two identities with the same key.

use siphasher::sip128::{Hasher128, SipHasher13};
use std::hash::Hasher;

/// The keyed hash of `(topic, event_id)`: what the index finds events by. Ordered as the 128-bit number `high, low`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The upper 64 bits; uniformly distributed.
    pub high: u64,
    /// The lower 64 bits.
    pub low: u64,
}

/// What makes a store itself: an id that its files and cursors carry, and the secret its keys are hashed with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// A random number given at creation and kept by every copy of the store.
    pub store: u128,
    /// The secret of the keyed hash.
    pub secret: [u8; 16],
}

impl Identity {
    /// The key of an event: SipHash-1-3-128 over the topic, its length, and the event id. The length keeps
    /// `("ab", "c")` and `("a", "bc")` apart.
    pub fn key(&self, topic: &str, event_id: &str) -> Key {
        let mut hasher = SipHasher13::new_with_key(&self.secret);
        hasher.write(topic.as_bytes());
        hasher.write_u64(topic.len() as u64);
        hasher.write(event_id.as_bytes());
        let hash = hasher.finish128();
        Key {
            high: hash.h1,
            low: hash.h2,
        }
    }
}

impl std::fmt::Debug for Identity {
    /// Shows the store's id, never the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({:032x})", self.store)
    }
}
