//! A key as its owner has it: `oncelog_ID_SECRET`. The server keeps a hash of the secret only.
//!
//! The secret is 256 random bits, so a plain SHA-256 of it is as hard to turn back as a slow hash would be; slow hashes
//! are for passwords, which can be guessed.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};
use std::fmt;
use subtle::ConstantTimeEq;

const PREFIX: &str = "oncelog_";
const ID_BYTES: usize = 8;
const SECRET_BYTES: usize = 32;

/// A key with its secret. Neither `Debug` nor `Display` show it.
pub struct Secret {
    id: String,
    secret: String,
}

/// What is kept of a secret.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Hash([u8; 32]);

impl Secret {
    /// A new random one.
    ///
    /// # Errors
    /// When the operating system gives no random numbers.
    pub(super) fn random() -> Result<Self, getrandom::Error> {
        let mut random = [0; ID_BYTES + SECRET_BYTES];
        getrandom::fill(&mut random)?;
        let (id, secret) = random.split_at(ID_BYTES);
        Ok(Self {
            id: id.iter().map(|byte| format!("{byte:02x}")).collect(),
            secret: URL_SAFE_NO_PAD.encode(secret),
        })
    }

    /// The key as a text, to be shown once.
    pub fn reveal(&self) -> String {
        format!("{PREFIX}{}_{}", self.id, self.secret)
    }

    /// Its id, which is no secret.
    pub fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn hash(&self) -> Hash {
        Hash::of(self.secret.as_bytes())
    }
}

/// A key as it comes with a request.
pub(super) struct Presented<'a> {
    /// Its id, if there is such a key.
    pub(super) id: &'a str,
    secret: &'a [u8],
}

impl<'a> Presented<'a> {
    /// Reads what [`Secret::reveal`] wrote.
    pub(super) fn parse(text: &'a [u8]) -> Option<Self> {
        // The secret may have more of them.
        let mut parts = text
            .strip_prefix(PREFIX.as_bytes())?
            .splitn(2, |byte| *byte == b'_');
        Some(Self {
            id: std::str::from_utf8(parts.next()?).ok()?,
            secret: parts.next()?,
        })
    }

    /// Of its secret.
    pub(super) fn hash(&self) -> Hash {
        Hash::of(self.secret)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}_…", self.id)
    }
}

impl Hash {
    fn of(secret: &[u8]) -> Self {
        Self(Sha256::digest(secret).into())
    }

    /// Compares in a time that says nothing of where they differ.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }

    pub(super) fn to_text(self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }

    pub(super) fn from_text(text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        Some(Self(bytes.try_into().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_was_written_and_two_are_never_the_same() {
        let key = Secret::random().expect("random numbers");
        let revealed = key.reveal();
        let read = Presented::parse(revealed.as_bytes()).expect("a key");
        assert_eq!(read.id, key.id());
        assert!(read.hash().is(&key.hash()));
        let other = Secret::random().expect("random numbers");
        assert_ne!(other.id(), key.id());
        assert!(!other.hash().is(&key.hash()));
    }

    #[test]
    fn a_key_is_not_shown_by_accident() {
        let key = Secret::random().expect("random numbers");
        let shown = format!("{key:?}");
        assert!(!shown.contains(&key.secret), "{shown}");
    }

    #[test]
    fn a_hash_is_read_as_it_was_written() {
        let hash = Secret::random().expect("random numbers").hash();
        assert!(Hash::from_text(&hash.to_text()).expect("a hash").is(&hash));
        assert!(Hash::from_text("short").is_none());
    }
}
