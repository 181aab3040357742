//! `oncelog health`: asks a server how it is; the exit code says it to scripts.

use super::{Failure, block_on, output, server_arguments::ServerArguments};
use crate::client::{Answer, Client, ClientError};
use hyper::StatusCode;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::time::Duration;

/// Tell whether the server can store events (exit code 0 or 1)
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    oncelog health\n  \
    HEALTHCHECK CMD [\"oncelog\", \"health\"]     in a Dockerfile\n  \
    ONCELOG_URL=https://localhost:8080 ONCELOG_CA=ca.pem oncelog health     a server with TLS")]
pub(super) struct Health {
    #[command(flatten)]
    server: ServerArguments,
    /// How long the server may take to answer
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0, value_parser = super::seconds)]
    timeout: f64,
    /// Print the server's answer as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Deserialize)]
struct Status {
    status: String,
    #[serde(default)]
    reason: Option<String>,
}

impl Health {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut client = Client::new(self.server.endpoint()?, Duration::from_secs_f64(self.timeout));
        let json = self.json;
        block_on(async move {
            let answer = client.get("/health").await?;
            // An unhealthy server's answer is as good to read as a healthy one's.
            let health: &RawValue = match answer.status {
                StatusCode::SERVICE_UNAVAILABLE => client.parse(&answer.body)?,
                _ => client.read(&answer)?,
            };
            if json {
                output::print_json(&health)?;
            } else {
                output::print(&format_args!("{}\n", in_words(&answer)))?;
            }
            if answer.status.is_success() {
                Ok(())
            } else {
                Err(Failure::Reported)
            }
        })
    }
}

/// Whether the server is healthy, in its own words.
pub(super) async fn check(client: &mut Client) -> Result<Result<String, String>, ClientError> {
    let answer = client.get("/health").await?;
    let words = in_words(&answer);
    Ok(if answer.status.is_success() {
        Ok(words)
    } else {
        Err(words)
    })
}

fn in_words(answer: &Answer) -> String {
    let words = match serde_json::from_slice(&answer.body) {
        Ok(Status {
            status,
            reason: Some(reason),
        }) => format!("{status}: {reason}"),
        Ok(Status { status, reason: None }) => status,
        Err(_) => answer.detail(),
    };
    output::printable(&words).into_owned()
}
