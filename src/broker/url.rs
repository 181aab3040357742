//! The address of a Redis server, which may have a password in it that nobody is to see.

use redis::{ConnectionAddr, IntoConnectionInfo};
use std::{fmt, str::FromStr};

/// A valid `BROKER_URL`. Shown without user and password.
#[derive(Clone, PartialEq, Eq)]
pub struct BrokerUrl {
    text: String,
    shown: String,
}

/// Why a text is none. It does not repeat the text.
#[derive(Debug, thiserror::Error)]
#[error("it is not redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE] or rediss:// for TLS")]
pub struct InvalidBrokerUrl;

impl FromStr for BrokerUrl {
    type Err = InvalidBrokerUrl;

    fn from_str(text: &str) -> Result<Self, InvalidBrokerUrl> {
        let (scheme, _) = text.split_once("://").ok_or(InvalidBrokerUrl)?;
        // `#insecure` would make rediss:// trust any certificate.
        if !matches!(scheme, "redis" | "rediss") || text.contains('#') {
            return Err(InvalidBrokerUrl);
        }
        let info = text.into_connection_info().map_err(|_| InvalidBrokerUrl)?;
        let address = match info.addr() {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                let host = if host.contains(':') {
                    format!("[{host}]")
                } else {
                    host.clone()
                };
                format!("{host}:{port}")
            }
            _ => return Err(InvalidBrokerUrl),
        };
        let database = match info.redis_settings().db() {
            0 => String::new(),
            number => format!("/{number}"),
        };
        Ok(Self {
            text: text.to_owned(),
            shown: format!("{scheme}://{address}{database}"),
        })
    }
}

impl BrokerUrl {
    /// A client of the server; it connects to nothing yet.
    pub(super) fn client(&self) -> redis::RedisResult<redis::Client> {
        redis::Client::open(self.text.as_str())
    }
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BrokerUrl({})", self.shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_user_and_password() {
        for (text, shown) in [
            ("redis://localhost", "redis://localhost:6379"),
            ("redis://me:secret@10.0.0.7:7000/3", "redis://10.0.0.7:7000/3"),
            ("rediss://:secret@[::1]/", "rediss://[::1]:6379"),
        ] {
            let url: BrokerUrl = text.parse().expect(text);
            assert_eq!(url.to_string(), shown);
            assert!(!format!("{url:?}").contains("secret"));
        }
    }

    #[test]
    fn what_is_no_url_of_a_redis_server_is_refused() {
        for text in [
            "",
            "localhost",
            "localhost:6379",
            "http://localhost",
            "unix:///tmp/redis",
            "redis://",
            "redis://h/x",
            "redis://h:99999",
            "rediss://h#insecure",
            "REDIS://h",
        ] {
            assert!(text.parse::<BrokerUrl>().is_err(), "{text}");
        }
    }
}
