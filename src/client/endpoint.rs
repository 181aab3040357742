//! A server as clients reach it: its URL, the API key, and for `https://` whom to trust and who one is.

use super::{ApiKey, BaseUrl, ClientError};
use crate::{
    limits::CLIENT_CONNECT_TIMEOUT,
    tls::{
        Identity, PROTOCOL, TlsFileError, Transport, VERSIONS, authorities, authorities_of_the_system,
        provider, read, tls_error,
    },
};
use hyper::header::HeaderValue;
use rustls::{AlertDescription, CertificateError, ClientConfig, Error, pki_types::ServerName};
use std::{io, path::PathBuf, sync::Arc};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

/// What connections to a server by TLS need to know; nothing of it is needed for a server with a public certificate.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// The authorities to trust, in place of the system's.
    pub ca: Option<PemFile>,
    /// The name that the server's certificate must be for, in place of the URL's host.
    pub server_name: Option<String>,
    /// The client's own certificate.
    pub certificate: Option<PemFile>,
    /// The key of that certificate.
    pub key: Option<PemFile>,
}

/// A file, and what names it: a flag or an environment variable.
#[derive(Clone, Debug)]
pub struct PemFile {
    /// What names it.
    pub setting: &'static str,
    /// Where it is.
    pub path: PathBuf,
}

/// A server, and how to reach it; clones share what they can.
#[derive(Clone)]
pub struct Endpoint {
    url: BaseUrl,
    key: Option<ApiKey>,
    tls: Option<Tls>,
}

#[derive(Clone)]
struct Tls {
    connector: TlsConnector,
    name: ServerName<'static>,
}

/// Why a server cannot be reached as it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// A file is of no use.
    #[error(transparent)]
    File(#[from] TlsFileError),
    /// There is nobody to trust.
    #[error("this system has no authorities to trust ({0}); install ca-certificates, or name them with --ca")]
    NoAuthorities(String),
    /// Something for TLS, and no TLS.
    #[error("{setting} is for https:// URLs, and {url} is none")]
    NotForHttp {
        /// What is set.
        setting: &'static str,
        /// The URL.
        url: BaseUrl,
    },
    /// A certificate without key, or a key without certificate.
    #[error("--client-certificate and --client-key belong together: set both, or none")]
    HalfAnIdentity,
    /// A certificate cannot be for such a name.
    #[error("\"{0}\" is neither a host name nor an IP address; see --url and --server-name")]
    NotAName(String),
    /// The library refuses what it was given.
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] Error),
}

impl Endpoint {
    /// The server at `url`, which is sent this key. Reads the files that `trust` names.
    pub fn new(url: BaseUrl, trust: &Trust, key: Option<ApiKey>) -> Result<Self, EndpointError> {
        let tls = match (url.is_https(), trust.first()) {
            (true, _) => Some(Tls::new(&url, trust)?),
            (false, None) => None,
            (false, Some(setting)) => return Err(EndpointError::NotForHttp { setting, url }),
        };
        Ok(Self { url, key, tls })
    }

    /// Where it is.
    pub fn url(&self) -> &BaseUrl {
        &self.url
    }

    /// The value of `Authorization`, if there is a key.
    pub(super) fn authorization(&self) -> Option<&HeaderValue> {
        self.key.as_ref().map(|key| &key.authorization)
    }

    /// The head of a publish of JSON, up to the value of `Content-Length`.
    pub fn publish_head(&self) -> String {
        let authorization = match &self.key {
            Some(key) => format!("Authorization: {}\r\n", key.authorization()),
            None => String::new(),
        };
        format!(
            "POST {} HTTP/1.1\r\nHost: {}\r\n{authorization}Content-Type: application/json\r\nContent-Length: ",
            self.url.path("/publish"),
            self.url.authority()
        )
    }

    /// Opens a connection, within [`CLIENT_CONNECT_TIMEOUT`].
    pub async fn connect(&self) -> Result<Transport<TcpStream>, ClientError> {
        timeout(CLIENT_CONNECT_TIMEOUT, self.open())
            .await
            .unwrap_or_else(|_| {
                Err(self.unreachable(format!("no answer within {} s", CLIENT_CONNECT_TIMEOUT.as_secs())))
            })
    }

    async fn open(&self) -> Result<Transport<TcpStream>, ClientError> {
        let stream = TcpStream::connect((self.url.host(), self.url.port()))
            .await
            .map_err(|error| self.unreachable(connect_problem(&error)))?;
        stream
            .set_nodelay(true)
            .map_err(|error| self.unreachable(error.to_string()))?;
        let Some(tls) = &self.tls else {
            return Ok(Transport::Plain(stream));
        };
        let stream = tls
            .connector
            .connect(tls.name.clone(), stream)
            .await
            .map_err(|error| {
                self.insecure(&error)
                    .unwrap_or_else(|| self.unreachable(format!("the TLS handshake broke off: {error}")))
            })?;
        Ok(Transport::Tls(Box::new(stream.into())))
    }

    /// What is said when TLS made an operation fail; `None` when it was not TLS.
    pub(super) fn insecure(&self, error: &(dyn std::error::Error + 'static)) -> Option<ClientError> {
        let tls = self.tls.as_ref()?;
        tls_error(error).map(|error| ClientError::Insecure {
            url: self.url.clone(),
            reason: in_words(error, &tls.name),
        })
    }

    fn unreachable(&self, reason: String) -> ClientError {
        ClientError::Unreachable {
            url: self.url.clone(),
            reason,
        }
    }
}

impl Tls {
    fn new(url: &BaseUrl, trust: &Trust) -> Result<Self, EndpointError> {
        let name = trust.server_name.as_deref().unwrap_or(url.host());
        let name =
            ServerName::try_from(name.to_owned()).map_err(|_| EndpointError::NotAName(name.to_owned()))?;
        let roots = match &trust.ca {
            Some(file) => authorities(file.setting, &file.path, &file.read()?)?,
            None => authorities_of_the_system().map_err(EndpointError::NoAuthorities)?,
        };
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(VERSIONS)?
            .with_root_certificates(roots);
        let mut config = match (&trust.certificate, &trust.key) {
            (Some(certificate), Some(key)) => {
                let identity = Identity::parse(
                    (certificate.setting, &certificate.path, &certificate.read()?),
                    (key.setting, &key.path, &key.read()?),
                )?;
                builder.with_client_auth_cert(identity.chain, identity.key)?
            }
            (None, None) => builder.with_no_client_auth(),
            _ => return Err(EndpointError::HalfAnIdentity),
        };
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        Ok(Self {
            connector: TlsConnector::from(Arc::new(config)),
            name,
        })
    }
}

impl PemFile {
    fn read(&self) -> Result<Vec<u8>, TlsFileError> {
        read(self.setting, &self.path)
    }
}

impl Trust {
    /// What names the first thing that is set.
    fn first(&self) -> Option<&'static str> {
        let name = self.server_name.as_ref().map(|_| "--server-name");
        [&self.ca, &self.certificate, &self.key]
            .into_iter()
            .find_map(|file| file.as_ref().map(|file| file.setting))
            .or(name)
    }
}

fn in_words(error: &Error, name: &ServerName<'_>) -> String {
    match error {
        // A wrong signature: the authority has the name of one that is trusted, and another key.
        Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "the server's certificate is of an authority that is not trusted; name the authority's file with --ca".to_owned()
        }
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => format!(
            "the server's certificate is not for {}; use a name that it is for in --url, or say it with --server-name",
            name.to_str()
        ),
        Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => "the server's certificate has expired; renew it".to_owned(),
        Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => "the server's certificate is not valid yet; are the clocks right?".to_owned(),
        Error::AlertReceived(AlertDescription::CertificateRequired) => {
            "the server serves only clients with a certificate; name one with --client-certificate and --client-key"
                .to_owned()
        }
        Error::AlertReceived(
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::DecryptError,
        ) => format!("the server does not accept the client's certificate ({error})"),
        Error::InvalidMessage(_) => "what answers there does not speak TLS; is it an http:// URL?".to_owned(),
        error => error.to_string(),
    }
}

fn connect_problem(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        _ => error.to_string(),
    }
}
