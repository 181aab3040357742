//! `oncelog tail`: prints events as they are stored, each once, for as long as somebody reads.

use super::{
    Failure, block_on,
    events::{Page, Parameters, on_one_line},
    output,
    server_arguments::ServerArguments,
};
use crate::{
    client::{Backoff, Client},
    limits::{CLIENT_REQUEST_TIMEOUT, MAX_PAGE_LIMIT, MAX_WAIT_SECONDS},
};
use std::time::Duration;
use tokio::time::sleep;

/// Follow new events, one JSON object a line
///
/// Ends when it is interrupted. When the server is away it waits and goes on from where it was.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    oncelog tail\n  \
    oncelog tail --topic orders --from-start | jq .payload\n  \
    oncelog tail --url https://logs.example.org:8080 --ca ca.pem")]
pub(super) struct Tail {
    #[command(flatten)]
    server: ServerArguments,
    /// Only events of this topic
    #[arg(long)]
    topic: Option<String>,
    /// Begin with the oldest event, not behind the newest
    #[arg(long)]
    from_start: bool,
}

impl Tail {
    pub(super) fn run(self) -> Result<(), Failure> {
        block_on(self.follow())
    }

    async fn follow(self) -> Result<(), Failure> {
        let timeout = CLIENT_REQUEST_TIMEOUT + Duration::from_secs(MAX_WAIT_SECONDS);
        let mut client = Client::new(self.server.endpoint()?, timeout);
        // A server that is not there from the beginning is more likely a wrong address.
        let mut page = Page::get(&mut client, self.first_query().as_str()).await?;
        loop {
            print(&page)?;
            let cursor = page.cursor(&client)?;
            page = self.next_page(&mut client, &cursor).await?;
        }
    }

    /// Waits for events behind the cursor, for as long as it takes.
    async fn next_page(&self, client: &mut Client, cursor: &str) -> Result<Page, Failure> {
        let query = self
            .query(MAX_PAGE_LIMIT)
            .with("cursor", Some(cursor))
            .with("wait", Some(&MAX_WAIT_SECONDS.to_string()));
        let mut backoff = Backoff::default();
        loop {
            match Page::get(client, query.as_str()).await {
                Ok(page) => return Ok(page),
                Err(error) if error.is_passing() => {
                    if backoff.failures() == 0 {
                        eprintln!(
                            "{}; trying again until it works",
                            output::printable(&error.to_string())
                        );
                    }
                    sleep(backoff.next_wait(error.retry_after())).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn first_query(&self) -> Parameters {
        if self.from_start {
            self.query(MAX_PAGE_LIMIT)
        } else {
            self.query(1).with("position", Some("end"))
        }
    }

    fn query(&self, limit: usize) -> Parameters {
        Parameters::default()
            .with("order", Some("asc"))
            .with("limit", Some(&limit.to_string()))
            .with("topic", self.topic.as_deref())
    }
}

fn print(page: &Page) -> Result<(), Failure> {
    if page.events.is_empty() {
        return Ok(());
    }
    let mut lines = String::new();
    for event in &page.events {
        lines.push_str(&on_one_line(event.get()));
        lines.push('\n');
    }
    output::print(&lines)
}
