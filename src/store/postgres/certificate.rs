//! How much a PostgreSQL server has to prove: PostgreSQL's `sslmode`.

use super::server::ServerError;
use crate::tls::{self, provider};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use std::{path::Path, sync::Arc};
use tokio_postgres_rustls::MakeRustlsConnect;

/// A connector that checks who the server is: against the authorities in a file, or those of this machine.
pub(super) fn verified(authorities: Option<&Path>) -> Result<MakeRustlsConnect, ServerError> {
    let roots = match authorities {
        Some(file) => tls::authorities("sslrootcert", file, &tls::read("sslrootcert", file)?)?,
        None => tls::authorities_of_the_system().map_err(ServerError::NoAuthorities)?,
    };
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(|error| ServerError::NoAuthorities(error.to_string()))?;
    connector(verifier)
}

/// A connector that takes any certificate: the traffic is hidden from who listens, not from who stands between.
pub(super) fn unverified() -> Result<MakeRustlsConnect, ServerError> {
    connector(Arc::new(AnyCertificate(provider())))
}

fn connector(verifier: Arc<dyn ServerCertVerifier>) -> Result<MakeRustlsConnect, ServerError> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(tls::VERSIONS)
        .map_err(|error| ServerError::NoAuthorities(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}

/// `sslmode=prefer` and `require` do not say whom to trust, so they encrypt and check nothing, as in PostgreSQL's own
/// clients.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
