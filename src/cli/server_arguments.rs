//! The arguments of the subcommands that talk to a server.

use crate::{
    client::{BaseUrl, Client},
    limits::CLIENT_REQUEST_TIMEOUT,
};

/// Where the server is.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct ServerArguments {
    /// The server's base URL
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    pub(super) url: BaseUrl,
}

impl ServerArguments {
    /// A client of the server with the usual time to answer.
    pub(super) fn client(&self) -> Client {
        Client::new(self.url.clone(), CLIENT_REQUEST_TIMEOUT)
    }
}
