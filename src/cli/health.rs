//! `oncelog health`: asks a server how it is; the exit code says it to scripts.

use super::{Failure, block_on, output, server_arguments::ServerArguments};
use crate::client::Client;
use hyper::StatusCode;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::time::Duration;

/// Tell whether the server can store events (exit code 0 or 1)
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    oncelog health\n  \
    HEALTHCHECK CMD [\"oncelog\", \"health\"]     in a Dockerfile")]
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
    queue_size: u64,
}

impl Health {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut client = Client::new(self.server.url, Duration::from_secs_f64(self.timeout));
        let json = self.json;
        block_on(async move {
            let mut answer = client.get("/health").await?;
            let is_healthy = answer.status.is_success();
            // An unhealthy server's answer is as good to read as a healthy one's.
            if answer.status == StatusCode::SERVICE_UNAVAILABLE {
                answer.status = StatusCode::OK;
            }
            if json {
                output::print_json(&client.read::<&RawValue>(&answer)?)?;
            } else {
                let status: Status = client.read(&answer)?;
                let reason = status
                    .reason
                    .map(|reason| format!(": {reason}"))
                    .unwrap_or_default();
                let queue = status.queue_size;
                output::print(&format_args!(
                    "{}{reason} ({queue} events in the queue)\n",
                    status.status
                ))?;
            }
            if is_healthy {
                Ok(())
            } else {
                Err(Failure::Reported)
            }
        })
    }
}
