//! TLS: certificates and keys read from files, and streams that may be encrypted.
//!
//! Used by `server` and `client` alike. The cryptography is `ring`'s: it builds with a C compiler alone, on every
//! machine that the bundled SQLite builds on. A file that cannot be used is an error that names the setting, the file
//! and what to do.

mod files;
mod transport;

pub use files::{Identity, TlsFileError, authorities, authorities_of_the_system, read};
pub use transport::Transport;

use rustls::crypto::{CryptoProvider, ring};
use std::sync::Arc;

/// The versions of TLS that are spoken, on both sides.
pub const VERSIONS: &[&rustls::SupportedProtocolVersion] =
    &[&rustls::version::TLS13, &rustls::version::TLS12];

/// The protocol spoken inside, for clients that ask (ALPN).
pub const PROTOCOL: &[u8] = b"http/1.1";

/// The cryptography.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// What TLS made an operation on a stream fail with, if it was TLS and not the network.
pub fn tls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let mut error = Some(error);
    while let Some(cause) = error {
        if let Some(found) = cause.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        let inner = cause
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        error = match inner {
            Some(inner) => Some(inner),
            None => cause.source(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn what_tls_says_is_found_within_other_errors_and_the_network_is_not_tls() {
        let alert = rustls::Error::AlertReceived(rustls::AlertDescription::UnknownCA);
        let wrapped = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, alert.clone()));
        assert_eq!(tls_error(&wrapped), Some(&alert));
        assert_eq!(tls_error(&io::Error::from(io::ErrorKind::ConnectionReset)), None);
    }
}
