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
    /// The key of an event: SipHash-1-3-128 over the topic, its length (64 bits, little-endian), and the event id.
    /// The length keeps `("ab", "c")` and `("a", "bc")` apart.
    pub fn key(&self, topic: &str, event_id: &str) -> Key {
        let mut hasher = SipHasher13::new_with_key(&self.secret);
        let (topic, length, event_id) = (
            topic.as_bytes(),
            (topic.len() as u64).to_le_bytes(),
            event_id.as_bytes(),
        );
        let bytes = topic.len() + length.len() + event_id.len();
        let mut buffer = [0; SHORT_BYTES];
        let hash = if let Some(message) = buffer.get_mut(..bytes) {
            // One message at once is hashed faster than its parts one by one.
            let (first, rest) = message.split_at_mut(topic.len());
            let (second, third) = rest.split_at_mut(length.len());
            first.copy_from_slice(topic);
            second.copy_from_slice(&length);
            third.copy_from_slice(event_id);
            hasher.hash(message)
        } else {
            hasher.write(topic);
            hasher.write(&length);
            hasher.write(event_id);
            hasher.finish128()
        };
        Key {
            high: hash.h1,
            low: hash.h2,
        }
    }
}

/// Identities up to this size, with the length between their parts, are hashed as one message.
const SHORT_BYTES: usize = 128;

impl std::fmt::Debug for Identity {
    /// Shows the store's id, never the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({:032x})", self.store)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: Identity = Identity {
        store: 1,
        secret: *b"0123456789abcdef",
    };

    #[test]
    fn a_key_is_the_hash_of_topic_length_and_id_whatever_their_size() {
        for size in [1, 7, 8, 9, 50, 110, 119, 120, 121, 255, 1020] {
            let (topic, id) = ("t".repeat(size), "i".repeat(size / 2 + 1));
            let mut hasher = SipHasher13::new_with_key(&IDENTITY.secret);
            hasher.write(topic.as_bytes());
            hasher.write(&(size as u64).to_le_bytes());
            hasher.write(id.as_bytes());
            let hash = hasher.finish128();
            let key = IDENTITY.key(&topic, &id);
            assert_eq!((key.high, key.low), (hash.h1, hash.h2), "{size}");
        }
    }

    #[test]
    fn a_key_never_changes() {
        let key = IDENTITY.key("user.login", "evt-1");
        assert_eq!(
            (key.high, key.low),
            (8_960_223_933_922_997_742, 18_187_594_840_855_386_092)
        );
    }

    #[test]
    fn topic_and_id_do_not_run_into_each_other() {
        assert_ne!(IDENTITY.key("ab", "c"), IDENTITY.key("a", "bc"));
        assert_ne!(IDENTITY.key("a", "b"), IDENTITY.key("b", "a"));
    }

    #[test]
    fn the_secret_is_not_shown() {
        assert_eq!(
            format!("{IDENTITY:?}"),
            "Identity(00000000000000000000000000000001)"
        );
    }
}
