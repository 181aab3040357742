//! Pages of `GET /events`, for the subcommands that read events.

use crate::client::{Backoff, Client, ClientError};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::sleep;

/// What stands for itself in a query.
const QUERY_VALUE: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// One page.
#[derive(Debug, Deserialize)]
pub(super) struct Page {
    /// The events as the server sent them.
    pub(super) events: Vec<Box<RawValue>>,
    /// Where the next page begins; none when nothing is left.
    pub(super) next: Option<String>,
    /// With `order=asc`: whether the page reached the newest event.
    #[serde(default)]
    pub(super) caught_up: bool,
}

/// A query's parameters, written one by one.
#[derive(Clone, Debug, Default)]
pub(super) struct Parameters(String);

impl Parameters {
    /// Adds a parameter, if there is a value.
    pub(super) fn with(mut self, name: &str, value: Option<&str>) -> Self {
        if let Some(value) = value {
            if !self.0.is_empty() {
                self.0.push('&');
            }
            self.0.push_str(name);
            self.0.push('=');
            self.0.extend(utf8_percent_encode(value, QUERY_VALUE));
        }
        self
    }

    /// The query without its question mark.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl Page {
    /// Gets a page; `query` is the part behind the question mark.
    pub(super) async fn get(client: &mut Client, query: &str) -> Result<Self, ClientError> {
        let answer = client.get(&format!("/events?{query}")).await?;
        client.read(&answer)
    }

    /// Gets a page, and tries up to `attempts` times, with growing waits, while the server is away or busy.
    pub(super) async fn get_patiently(
        client: &mut Client,
        query: &str,
        attempts: u32,
    ) -> Result<Self, ClientError> {
        let mut backoff = Backoff::default();
        loop {
            match Self::get(client, query).await {
                Err(error) if error.is_passing() && backoff.failures() + 1 < attempts => {
                    sleep(backoff.next_wait(error.retry_after())).await;
                }
                result => return result,
            }
        }
    }

    /// Where the next page begins, when there must be one.
    pub(super) fn cursor(&self, client: &Client) -> Result<String, ClientError> {
        self.next
            .clone()
            .ok_or_else(|| client.not_ours("a page in ascending order has no \"next\"".to_owned()))
    }
}

/// An event's JSON on one line: line breaks in JSON stand between its tokens only, so a blank does as well.
pub(super) fn on_one_line(json: &str) -> String {
    json.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_encoded() {
        let parameters = Parameters::default()
            .with("topic", Some("a b&c/é"))
            .with("from", None)
            .with("limit", Some("10"));
        assert_eq!(parameters.as_str(), "topic=a%20b%26c%2F%C3%A9&limit=10");
    }
}
