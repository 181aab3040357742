//! `oncelog bench`: puts load on a server, reports what it measured, and checks it.

mod connection;
mod load;
mod report;
mod source;
mod tally;
mod workload;

use super::{Failure, block_on_all_processors, health, output, progress, server_arguments::ServerArguments};
use crate::{
    client::{Client, Endpoint},
    limits::{BENCH_AHEAD_BYTES, CLIENT_REQUEST_TIMEOUT, MAX_CLIENT_BATCH_EVENTS, MAX_CLIENT_CONNECTIONS},
};
use load::Load;
use report::Report;
use source::Source;
use workload::Workload;

/// Whole numbers below this survive programs that read JSON's numbers as doubles, such as jq.
const EXACT_IN_JSON: u64 = 1 << 53;

/// Measure the server under load, and check the result
///
/// Events are about 330 bytes of JSON each. Requests are made ahead of the measurement while they fit into 2 GiB.
/// Exit code 1 when a check at the end fails.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  \
    oncelog bench\n  \
    oncelog bench --events 2000000 --batch 200 --connections 16\n  \
    oncelog bench --events 300000 --batch 1 --connections 64 --rate 30000 --max-p99 5\n\n\
    With --rate a response time counts from when its request was due, so that waiting for a slow server shows.")]
pub(super) struct Bench {
    #[command(flatten)]
    server: ServerArguments,
    /// Events to send in all, duplicates included
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..))]
    events: u64,
    /// Events in a request; 1 sends single events
    #[arg(long, default_value_t = 100, value_name = "EVENTS",
        value_parser = clap::value_parser!(u64).range(1..=MAX_CLIENT_BATCH_EVENTS as u64))]
    batch: u64,
    /// Connections that send at the same time
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=MAX_CLIENT_CONNECTIONS as u64))]
    connections: u64,
    /// Share of events that were sent before, each one of the 2,000,000 before it
    #[arg(long, default_value_t = 0.3, value_name = "SHARE", value_parser = super::share)]
    duplicates: f64,
    /// Topics that the events are spread over
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    topics: u64,
    /// Requests a second, due at fixed times (default: as fast as answers come)
    #[arg(long, value_name = "REQUESTS", value_parser = super::above_zero)]
    rate: Option<f64>,
    /// Repeat the events of an earlier run; those that are stored already are duplicates then (default: random)
    #[arg(long)]
    seed: Option<u64>,
    /// Fail when fewer events were received
    #[arg(long, default_value_t = 5_000, value_name = "EVENTS", help_heading = "Checks")]
    min_events: u64,
    /// Fail when a smaller share were duplicates
    #[arg(long, default_value_t = 0.2, value_name = "SHARE", value_parser = super::share, help_heading = "Checks")]
    min_duplicates: f64,
    /// Fail when fewer events a second were received
    #[arg(long, value_name = "EVENTS", value_parser = super::above_zero, help_heading = "Checks")]
    min_throughput: Option<f64>,
    /// Fail when the mean response time is not below this
    #[arg(long, default_value_t = 1_000.0, value_name = "MILLISECONDS", value_parser = super::above_zero,
        help_heading = "Checks")]
    max_mean: f64,
    /// Fail when the 99th percentile of the response times is not below this
    #[arg(long, value_name = "MILLISECONDS", value_parser = super::above_zero, help_heading = "Checks")]
    max_p99: Option<f64>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

impl Bench {
    pub(super) fn run(self) -> Result<(), Failure> {
        block_on_all_processors(async move {
            // Fails early, before time goes into making requests.
            let server = self.server.endpoint()?;
            let mut client = Client::new(server.clone(), CLIENT_REQUEST_TIMEOUT);
            health::check(&mut client)
                .await?
                .map_err(|problem| Failure::Failed(format!("{} is not healthy: {problem}", client.base())))?;
            let seed = self.seed.unwrap_or_else(|| fastrand::u64(..EXACT_IN_JSON));
            let workload = Workload::new(&self, seed);
            let source = make_source(&workload, &server).await?;
            let load = Load {
                server,
                connections: self.connections as usize,
                rate: self.rate,
                requests: workload.request_count(),
                progress: progress::counter(workload.request_count(), "requests"),
            };
            let progress = load.progress.clone();
            let measured = load::run(load, source).await;
            progress.finish_and_clear();
            let health = match health::check(&mut client).await {
                Ok(health) => health,
                Err(error) => Err(error.to_string()),
            };
            let report = Report::new(&self, seed, measured?, health);
            output::print_verdict(&report, self.json, report.passed())
        })
    }
}

async fn make_source(workload: &Workload, server: &Endpoint) -> Result<Source, Failure> {
    // The hour before this one, so that no event is from the future.
    let hour = (jiff::Timestamp::now() - jiff::SignedDuration::from_hours(1))
        .strftime("%Y-%m-%dT%H")
        .to_string();
    let requests = workload.requests(server, hour);
    if workload.bytes() > BENCH_AHEAD_BYTES {
        return Ok(Source::streamed(requests));
    }
    let spinner = progress::spinner("making requests");
    let source = tokio::task::spawn_blocking(move || Source::ahead(requests))
        .await
        .map_err(|error| Failure::Failed(error.to_string()));
    spinner.finish_and_clear();
    source
}
