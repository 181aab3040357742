//! PEM files become certificates, keys and roots of trust.
//!
//! Reading and understanding are two steps, so that a server can tell whether a file has changed before it acts on it.

use super::provider;
use crate::limits::MAX_PEM_BYTES;
use rustls::{
    Error, InconsistentKeys, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
    sign::CertifiedKey,
};
use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

/// Why a file with certificates or a key cannot be used. `setting` is the setting or flag that names the file.
#[derive(Debug, thiserror::Error)]
pub enum TlsFileError {
    /// It cannot be read.
    #[error("{setting}: cannot read {}: {reason}; name a PEM file that this user may read", file.display())]
    Unreadable {
        /// What names the file.
        setting: &'static str,
        /// The file.
        file: PathBuf,
        /// What the operating system says.
        reason: String,
    },
    /// It has no certificate.
    #[error(
        "{setting}: {} has no certificate; it must be PEM, with a part that begins with -----BEGIN CERTIFICATE-----",
        file.display()
    )]
    NoCertificate {
        /// What names the file.
        setting: &'static str,
        /// The file.
        file: PathBuf,
    },
    /// It has no private key.
    #[error(
        "{setting}: {} has no private key that can be used; it must be PEM, with a part that begins with \
         -----BEGIN PRIVATE KEY----- (one with a password: decrypt it with openssl pkey)",
        file.display()
    )]
    NoKey {
        /// What names the file.
        setting: &'static str,
        /// The file.
        file: PathBuf,
    },
    /// The key belongs to another certificate.
    #[error(
        "{setting}: the key in {} is not that of the first certificate in {}; name the pair, with the server's own \
         certificate first",
        file.display(), certificate.display()
    )]
    Mismatch {
        /// What names the key's file.
        setting: &'static str,
        /// The key's file.
        file: PathBuf,
        /// The certificate's file.
        certificate: PathBuf,
    },
    /// It is damaged, or of a kind that is not supported.
    #[error("{setting}: {} cannot be used: {reason}; make or export it again as PEM", file.display())]
    Invalid {
        /// What names the file.
        setting: &'static str,
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// Who one is: a certificate with those of its issuers, and its key.
#[derive(Debug)]
pub struct Identity {
    /// The certificate, then those of its issuers.
    pub chain: Vec<CertificateDer<'static>>,
    /// The certificate's private key.
    pub key: PrivateKeyDer<'static>,
}

impl Identity {
    /// From the contents of two files; each comes with the setting that names it. It is checked that they belong
    /// together.
    pub fn parse(
        certificate: (&'static str, &Path, &[u8]),
        key: (&'static str, &Path, &[u8]),
    ) -> Result<Self, TlsFileError> {
        let (certificate_setting, certificate_file, text) = certificate;
        let chain = certificates(certificate_setting, certificate_file, text)?;
        let (setting, file, text) = key;
        let parsed = PrivateKeyDer::from_pem_slice(text).map_err(|error| match error {
            pem::Error::NoItemsFound => TlsFileError::NoKey {
                setting,
                file: file.to_owned(),
            },
            error => invalid(setting, file, &error),
        })?;
        match CertifiedKey::from_der(chain.clone(), parsed.clone_key(), &provider()) {
            Ok(_) => Ok(Self { chain, key: parsed }),
            Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => Err(TlsFileError::Mismatch {
                setting,
                file: file.to_owned(),
                certificate: certificate_file.to_owned(),
            }),
            // The only thing that looks into the certificate is the comparison of the keys.
            Err(Error::InvalidCertificate(reason)) => Err(invalid(
                certificate_setting,
                certificate_file,
                &format!("{reason:?}"),
            )),
            Err(error) => Err(invalid(setting, file, &error)),
        }
    }
}

/// The authorities whose certificates stand in a file.
pub fn authorities(setting: &'static str, file: &Path, text: &[u8]) -> Result<RootCertStore, TlsFileError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(setting, file, text)? {
        roots
            .add(certificate)
            .map_err(|error| invalid(setting, file, &error))?;
    }
    Ok(roots)
}

/// The system's authorities and not ones that are built in: an authority that a company has added is trusted, and one
/// that is found out is not trusted any more, without a new version of this program.
///
/// # Errors
/// Why there are none.
pub fn authorities_of_the_system() -> Result<RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let reason = found.errors.first();
        return Err(reason.map_or_else(|| "none were found".to_owned(), ToString::to_string));
    }
    Ok(roots)
}

/// The bytes of a file, at most [`MAX_PEM_BYTES`].
pub fn read(setting: &'static str, file: &Path) -> Result<Vec<u8>, TlsFileError> {
    let unreadable = |reason: String| TlsFileError::Unreadable {
        setting,
        file: file.to_owned(),
        reason,
    };
    let read = || -> io::Result<Vec<u8>> {
        // Opening a pipe could wait for ever.
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("not a file"));
        }
        let mut bytes = Vec::new();
        File::open(file)?
            .take(MAX_PEM_BYTES as u64 + 1)
            .read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|error| unreadable(error.to_string()))?;
    if bytes.len() > MAX_PEM_BYTES {
        return Err(unreadable(format!("it has more than {MAX_PEM_BYTES} bytes")));
    }
    Ok(bytes)
}

fn certificates(
    setting: &'static str,
    file: &Path,
    text: &[u8],
) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
    let certificates = CertificateDer::pem_slice_iter(text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| invalid(setting, file, &error))?;
    if certificates.is_empty() {
        return Err(TlsFileError::NoCertificate {
            setting,
            file: file.to_owned(),
        });
    }
    Ok(certificates)
}

fn invalid(setting: &'static str, file: &Path, reason: &impl ToString) -> TlsFileError {
    TlsFileError::Invalid {
        setting,
        file: file.to_owned(),
        reason: reason.to_string(),
    }
}
