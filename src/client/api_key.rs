//! An API key as a client sends it.

use hyper::header::HeaderValue;
use std::{fmt, str::FromStr};

/// A key that can be sent. `Debug` does not show it.
#[derive(Clone)]
pub struct ApiKey {
    pub(super) authorization: HeaderValue,
}

/// Why a text is no key.
#[derive(Debug, thiserror::Error)]
#[error("an API key has letters, digits, - and _ only, and begins with oncelog_")]
pub struct ApiKeyError;

impl ApiKey {
    /// The value of the `Authorization` header.
    pub fn authorization(&self) -> &str {
        // Made of visible characters.
        self.authorization.to_str().unwrap_or_default()
    }
}

impl FromStr for ApiKey {
    type Err = ApiKeyError;

    fn from_str(text: &str) -> Result<Self, ApiKeyError> {
        let is_key = text.starts_with("oncelog_")
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        let mut authorization = HeaderValue::from_str(&format!("Bearer {text}")).map_err(|_| ApiKeyError)?;
        authorization.set_sensitive(true);
        is_key.then_some(Self { authorization }).ok_or(ApiKeyError)
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}
