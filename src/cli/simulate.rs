//! `oncelog simulate`: an at-least-once producer that knows what must come of what it sends, and checks it.
//!
//! Ids carry a random name of the run, so a run can be repeated on the same store. Nothing else may publish meanwhile,
//! or the counts at the end do not match.

mod checks;
mod producer;
mod report;
mod scenarios;

use super::{Failure, block_on_all_processors, output, progress, server_arguments::ServerArguments};
use crate::{client::Client, limits::CLIENT_REQUEST_TIMEOUT};
use checks::Before;
use producer::{BatchSizes, Run};
use report::Report;
use std::sync::Arc;

/// Check that the server stores each event once, whatever a producer does
///
/// Sends new events, re-sends, duplicates inside batches, races and requests whose answer is lost; compares every
/// answer, the counters and the stored events with what must come of it. Nothing else may publish to the server
/// meanwhile, and it must take requests of 70 events, or of the largest batch. Exit code 1 when something is not as it
/// must be.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    oncelog simulate\n  \
    oncelog simulate --url http://10.0.0.7:8080 --events 100000 --connections 32\n  \
    oncelog simulate --events 25000 --batch 100-200 --duplicates 0.35")]
pub(super) struct Simulate {
    #[command(flatten)]
    server: ServerArguments,
    /// Send at least so many events in all, duplicates included, and not many more
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1_000..=10_000_000))]
    events: u64,
    /// Connections that send at the same time
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u64).range(2..=256))]
    connections: u64,
    /// Events in a request: a number, or the smallest and the largest, as in 100-200
    #[arg(long, default_value = "50", value_name = "EVENTS", value_parser = BatchSizes::parse)]
    batch: BatchSizes,
    /// Share of each batch of the many producers that they have sent before; the other scenarios have shares of their own,
    /// most of them larger
    #[arg(long, default_value_t = 0.3, value_name = "SHARE", value_parser = super::share)]
    duplicates: f64,
    /// Print the results as JSON
    #[arg(long)]
    json: bool,
}

impl Simulate {
    pub(super) fn run(self) -> Result<(), Failure> {
        let json = self.json;
        let report = block_on_all_processors(self.check())?;
        output::print_verdict(&report, json, report.passed())
    }

    async fn check(self) -> Result<Report, Failure> {
        let server = self.server.endpoint()?;
        let mut client = Client::new(server.clone(), CLIENT_REQUEST_TIMEOUT);
        let run = Run::new(server, self.events, self.connections, self.batch, self.duplicates);
        checks::queue_is_large_enough(&mut client, &run).await?;
        let before = Before::take(&mut client).await?;
        let run = Arc::new(run);
        let mut report = Report::default();
        let spinner = progress::spinner("sending");
        report.add("one event, sent three times", scenarios::three_times(&run).await);
        report.add(
            "duplicates inside one batch",
            scenarios::duplicates_inside_a_batch(&run).await,
        );
        report.add("a batch of old and new", scenarios::old_and_new(&run).await);
        report.add("one id in several topics", scenarios::several_topics(&run).await);
        report.add("another payload for an id", scenarios::conflict(&run).await);
        report.add("connections race on the same ids", scenarios::race(&run).await);
        report.add("re-sent after a lost answer", scenarios::lost_answer(&run).await);
        report.add(
            "re-sent after a broken connection",
            scenarios::broken_connection(&run).await,
        );
        let left = run.events.saturating_sub(report.total().sent());
        report.add("many producers that re-send", scenarios::bulk(&run, left).await);
        spinner.finish_and_clear();
        let expected = report.total();
        report.add_check(
            "the server's counters",
            before.compare_counters(&mut client, expected).await,
        );
        report.add_check(
            "every event is stored once",
            before.compare_events(&mut client, &run, expected.accepted).await,
        );
        Ok(report)
    }
}
