//! The arguments of the subcommands that talk to a server.

use crate::{
    client::{ApiKey, BaseUrl, Client},
    limits::CLIENT_REQUEST_TIMEOUT,
};
use std::time::Duration;

/// Where the server is, and who asks.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct ServerArguments {
    /// The server's base URL
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    pub(super) url: BaseUrl,
    /// The API key, if the server asks for one; in the environment other users of this machine do not see it
    #[arg(long, value_name = "KEY", env = "ONCELOG_KEY", hide_env_values = true)]
    pub(super) key: Option<ApiKey>,
}

impl ServerArguments {
    /// A client of the server with the usual time to answer.
    pub(super) fn client(&self) -> Client {
        self.client_with(CLIENT_REQUEST_TIMEOUT)
    }

    /// A client of the server that gives it so long to answer.
    pub(super) fn client_with(&self, timeout: Duration) -> Client {
        Client::new(self.url.clone(), self.key.as_ref(), timeout)
    }

    /// The head of a publish of JSON, up to the value of `Content-Length`.
    pub(super) fn publish_head(&self) -> String {
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
}
