//! `oncelog stats`: a server's counters.

use super::{
    Failure, block_on,
    output::{self, grouped},
    server_arguments::ServerArguments,
};
use crate::client::{Client, ClientError};
use serde::Deserialize;
use serde_json::value::RawValue;

/// Show the server's counters
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    oncelog stats\n  \
    oncelog stats --url http://10.0.0.7:8080 --json")]
pub(super) struct Stats {
    #[command(flatten)]
    server: ServerArguments,
    /// Print the server's answer as JSON
    #[arg(long)]
    json: bool,
}

/// What `GET /stats` answers, as far as people want to see it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Counters {
    pub(super) received: u64,
    pub(super) unique_processed: u64,
    pub(super) duplicate_dropped: u64,
    pub(super) conflicts: u64,
    topics: Vec<String>,
    topics_total: Option<u64>,
    queue_size: u64,
    broker: Option<Broker>,
    uptime_human: String,
}

/// What it says about the broker, if there is one.
#[derive(Clone, Debug, Deserialize)]
struct Broker {
    connected: bool,
    queued: u64,
    dead: u64,
}

impl Broker {
    fn shown(&self) -> String {
        let state = if self.connected { "" } else { ", not connected" };
        format!(
            "{} events queued, {} dead letters{state}",
            grouped(self.queued),
            grouped(self.dead)
        )
    }
}

impl Counters {
    /// Asks the server.
    pub(super) async fn get(client: &mut Client) -> Result<Self, ClientError> {
        let answer = client.get("/stats").await?;
        client.read(&answer)
    }
}

impl Stats {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut client = self.server.client()?;
        block_on(async move {
            let answer = client.get("/stats").await?;
            if self.json {
                return output::print_json(&client.read::<&RawValue>(&answer)?);
            }
            output::print(&table(&client.read(&answer)?))
        })
    }
}

fn table(counters: &Counters) -> String {
    const SHOWN_TOPICS: usize = 20;
    let rate = match counters.received {
        0 => 0.0,
        received => 100.0 * counters.duplicate_dropped as f64 / received as f64,
    };
    let topics = counters.topics_total.unwrap_or(counters.topics.len() as u64);
    let shown = counters.topics.len().min(SHOWN_TOPICS);
    let mut names = counters.topics[..shown].join(", ");
    if topics > shown as u64 {
        names.push_str(", …");
    }
    let broker = counters.broker.as_ref().map(|broker| ("broker", broker.shown()));
    output::columns(
        [
            ("received", grouped(counters.received)),
            ("unique processed", grouped(counters.unique_processed)),
            (
                "duplicates dropped",
                format!("{} ({rate:.1} %)", grouped(counters.duplicate_dropped)),
            ),
            ("conflicts", grouped(counters.conflicts)),
            ("queue size", grouped(counters.queue_size)),
        ]
        .into_iter()
        .chain(broker)
        .chain([
            ("uptime", counters.uptime_human.clone()),
            ("topics", format!("{} ({names})", grouped(topics))),
        ]),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_every_counter() {
        let counters = Counters {
            received: 1_500,
            unique_processed: 1_000,
            duplicate_dropped: 500,
            conflicts: 2,
            topics: vec!["a".to_owned(), "b".to_owned()],
            topics_total: None,
            queue_size: 0,
            broker: Some(Broker {
                connected: false,
                queued: 1_200,
                dead: 3,
            }),
            uptime_human: "1h 0m 0s".to_owned(),
        };
        assert_eq!(
            table(&counters),
            "received            1,500\n\
             unique processed    1,000\n\
             duplicates dropped  500 (33.3 %)\n\
             conflicts           2\n\
             queue size          0\n\
             broker              1,200 events queued, 3 dead letters, not connected\n\
             uptime              1h 0m 0s\n\
             topics              2 (a, b)\n"
        );
    }
}
