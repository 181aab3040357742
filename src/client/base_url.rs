//! Where a server is: the value of `--url`.

use hyper::Uri;
use std::{fmt, str::FromStr};

/// An `http://` or `https://` URL without query, such as `http://127.0.0.1:8080`. A path is put before every request's path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseUrl {
    is_https: bool,
    host: String,
    port: u16,
    authority: String,
    prefix: String,
}

impl BaseUrl {
    /// Whether connections are encrypted.
    pub fn is_https(&self) -> bool {
        self.is_https
    }

    /// The host's name or address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Host and port as the `Host` header shows them.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// A request's target: `path` behind the URL's own path.
    pub fn path(&self, path: &str) -> String {
        format!("{}{path}", self.prefix)
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_https { "https" } else { "http" };
        write!(formatter, "{scheme}://{}{}", self.authority, self.prefix)
    }
}

impl FromStr for BaseUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const EXAMPLE: &str = "expected something like http://127.0.0.1:8080";
        let uri: Uri = text.parse().map_err(|error| format!("{error}; {EXAMPLE}"))?;
        let is_https = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(format!("not an http:// or https:// URL; {EXAMPLE}")),
        };
        let authority = uri.authority().ok_or(EXAMPLE)?;
        if authority.as_str().contains('@') {
            return Err("a user name in the URL is not supported".to_owned());
        }
        if uri.query().is_some() {
            return Err("a query in the URL is not supported".to_owned());
        }
        // What stands behind the host; the library takes a port that is none for no port.
        let port = match authority.as_str()[authority.host().len()..].strip_prefix(':') {
            None | Some("") => {
                if is_https {
                    443
                } else {
                    80
                }
            }
            Some(port) => port
                .parse()
                .ok()
                .filter(|port| *port > 0)
                .ok_or_else(|| format!("\"{port}\" is not a port; expected 1 to {}", u16::MAX))?,
        };
        Ok(Self {
            is_https,
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port,
            authority: authority.to_string(),
            prefix: uri.path().trim_end_matches('/').to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart() {
        let url: BaseUrl = "http://[::1]:9000/logs/".parse().unwrap();
        assert_eq!((url.host(), url.port()), ("::1", 9000));
        assert_eq!(url.path("/stats"), "/logs/stats");
        assert_eq!(url.to_string(), "http://[::1]:9000/logs");
        let url: BaseUrl = "http://example.org".parse().unwrap();
        assert_eq!((url.port(), url.path("/stats").as_str()), (80, "/stats"));
        let url: BaseUrl = "https://example.org".parse().unwrap();
        assert_eq!(
            (url.port(), url.to_string().as_str()),
            (443, "https://example.org")
        );
    }

    #[test]
    fn a_url_that_cannot_be_used_says_why() {
        for (text, part) in [
            ("ftp://example.org", "not an http:// or https:// URL"),
            ("example.org:80", "not an http:// or https:// URL"),
            ("http://user@example.org", "user name"),
            ("http://example.org/?a=b", "query"),
            ("http://127.0.0.1:99999", "\"99999\" is not a port"),
            ("http://[::1]:0", "\"0\" is not a port"),
            ("", "expected something like"),
        ] {
            let problem = text.parse::<BaseUrl>().unwrap_err();
            assert!(problem.contains(part), "{text}: {problem}");
        }
    }
}
