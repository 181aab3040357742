//! The arguments of the subcommands that talk to a server.
//!
//! Each may come from the environment as well, so that a container's health check needs no other command when TLS is
//! switched on.

use super::Failure;
use crate::{
    client::{ApiKey, BaseUrl, Client, Endpoint, EndpointError, PemFile, Trust},
    limits::CLIENT_REQUEST_TIMEOUT,
};
use std::path::PathBuf;

const DEFAULT_URL: &str = "http://127.0.0.1:8080";

/// Where the server is, whom to trust, and who asks.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct ServerArguments {
    #[arg(
        long,
        value_name = "URL",
        help = "The server's base URL [env: ONCELOG_URL] [default: http://127.0.0.1:8080]"
    )]
    url: Option<BaseUrl>,
    #[arg(
        long,
        value_name = "FILE",
        help_heading = "TLS",
        help = "Trust only the authorities in this PEM file [env: ONCELOG_CA] [default: the system's]"
    )]
    ca: Option<PathBuf>,
    #[arg(
        long,
        value_name = "NAME",
        help_heading = "TLS",
        help = "The name that the server's certificate must be for [env: ONCELOG_SERVER_NAME] [default: the URL's host]"
    )]
    server_name: Option<String>,
    #[arg(
        long,
        value_name = "FILE",
        help_heading = "TLS",
        help = "Your certificate, for a server that wants one [env: ONCELOG_CLIENT_CERTIFICATE]"
    )]
    client_certificate: Option<PathBuf>,
    #[arg(
        long,
        value_name = "FILE",
        help_heading = "TLS",
        help = "The key of your certificate [env: ONCELOG_CLIENT_KEY]"
    )]
    client_key: Option<PathBuf>,
    #[arg(
        long,
        value_name = "KEY",
        help = "The API key, if the server asks for one; in the environment others do not see it [env: ONCELOG_KEY]"
    )]
    key: Option<ApiKey>,
}

impl ServerArguments {
    /// The server, with the files read that say how to reach it.
    pub(super) fn endpoint(&self) -> Result<Endpoint, Failure> {
        let url = match (&self.url, variable("ONCELOG_URL")) {
            (Some(url), _) => url.clone(),
            (None, text) => text
                .as_deref()
                .unwrap_or(DEFAULT_URL)
                .parse()
                .map_err(|problem| Failure::Usage(format!("environment variable ONCELOG_URL: {problem}")))?,
        };
        // What the environment says about TLS is for servers that have it; a flag is for this one.
        let variable = |name| variable(name).filter(|_| url.is_https());
        let file = |path: &Option<PathBuf>, flag, name| match path {
            Some(path) => Some(PemFile {
                setting: flag,
                path: path.clone(),
            }),
            None => variable(name).map(|path| PemFile {
                setting: name,
                path: path.into(),
            }),
        };
        let trust = Trust {
            ca: file(&self.ca, "--ca", "ONCELOG_CA"),
            server_name: self
                .server_name
                .clone()
                .or_else(|| variable("ONCELOG_SERVER_NAME")),
            certificate: file(
                &self.client_certificate,
                "--client-certificate",
                "ONCELOG_CLIENT_CERTIFICATE",
            ),
            key: file(&self.client_key, "--client-key", "ONCELOG_CLIENT_KEY"),
        };
        Ok(Endpoint::new(url, &trust, self.key()?)?)
    }

    fn key(&self) -> Result<Option<ApiKey>, Failure> {
        match (&self.key, variable("ONCELOG_KEY")) {
            (Some(key), _) => Ok(Some(key.clone())),
            (None, None) => Ok(None),
            (None, Some(text)) => match text.parse() {
                Ok(key) => Ok(Some(key)),
                Err(problem) => Err(Failure::Usage(format!(
                    "environment variable ONCELOG_KEY: {problem}"
                ))),
            },
        }
    }

    /// A client of the server with the usual time to answer.
    pub(super) fn client(&self) -> Result<Client, Failure> {
        Ok(Client::new(self.endpoint()?, CLIENT_REQUEST_TIMEOUT))
    }
}

impl From<EndpointError> for Failure {
    fn from(error: EndpointError) -> Self {
        Self::Usage(error.to_string())
    }
}

/// An environment variable; an empty one counts as not set, as container tools pass on what is unset that way.
fn variable(name: &str) -> Option<String> {
    let value = std::env::var_os(name).filter(|value| !value.is_empty())?;
    Some(value.to_string_lossy().into_owned())
}
