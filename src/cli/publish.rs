//! `oncelog publish`: sends a file of events and does not end before each is acknowledged or named as bad.
//!
//! Nothing is remembered between runs: an event's identity makes it safe to send a file again, from its start, after a
//! crash on either side.

mod lines;
mod sender;

use super::{
    Failure, block_on_all_processors, output,
    output::{columns, grouped},
    progress,
    server_arguments::ServerArguments,
};
use crate::{
    client::Client,
    compression::Coding,
    limits::{CLIENT_REQUEST_TIMEOUT, MAX_CLIENT_BATCH_EVENTS, MAX_CLIENT_CONNECTIONS},
};
use lines::Lines;
use sender::Sender;
use serde::Serialize;
use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
    time::Duration,
};
use tokio::task::JoinSet;

/// Send events, one JSON object a line, until each is stored
///
/// A request that fails is sent again, with growing waits, until the server answers, for as long as that takes unless
/// --give-up-after sets a bound: a duplicate does no harm. A line
/// that is not a valid event is reported with its number and left out; the exit code is 1 then. After a crash just run
/// it again.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    oncelog publish events.ndjson\n  \
    producer | oncelog publish --url http://10.0.0.7:8080\n  \
    producer | oncelog publish --url https://logs.example.org:8080 --ca ca.pem --compress zstd\n\n\
    A line looks like this:\n  \
    {\"topic\":\"orders\",\"event_id\":\"42\",\"timestamp\":\"2025-10-23T10:00:00Z\",\"source\":\"shop\",\"payload\":{}}")]
pub(super) struct Publish {
    #[command(flatten)]
    server: ServerArguments,
    /// The file to send; - is standard input
    #[arg(default_value = "-")]
    file: PathBuf,
    /// Most events in a request
    #[arg(long, default_value_t = 500, value_name = "EVENTS",
        value_parser = clap::value_parser!(u64).range(1..=MAX_CLIENT_BATCH_EVENTS as u64))]
    batch: u64,
    /// Connections that send at the same time; 1 keeps the order of the lines
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=MAX_CLIENT_CONNECTIONS as u64))]
    connections: u64,
    /// End with exit code 1 when one request was not taken for so long (default: try for ever)
    #[arg(long, value_name = "SECONDS", value_parser = super::seconds)]
    give_up_after: Option<f64>,
    /// Compress the requests
    #[arg(long, value_name = "CODING")]
    compress: Option<Compress>,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

/// What requests may be compressed with.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Compress {
    /// Smaller, and quicker
    Zstd,
    /// What every proxy on the way can read
    Gzip,
}

impl From<Compress> for Coding {
    fn from(compress: Compress) -> Self {
        match compress {
            Compress::Zstd => Self::Zstd,
            Compress::Gzip => Self::Gzip,
        }
    }
}

/// What became of the lines.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
struct Summary {
    /// Events that the server acknowledged.
    sent: u64,
    /// Those of them that were new.
    accepted: u64,
    /// Those of them that were there already, also from an answer of this run that was lost.
    duplicates: u64,
    /// Those of the duplicates that had another payload.
    conflicts: u64,
    /// Lines that are not valid events.
    bad_lines: u64,
    /// Requests that had to be sent again because the server did not take them.
    retries: u64,
}

impl Publish {
    pub(super) fn run(self) -> Result<(), Failure> {
        let summary = block_on_all_processors(self.send())?;
        if self.json {
            output::print_json(&summary)?;
        } else {
            output::print(&summary.table())?;
        }
        match summary.bad_lines {
            0 => Ok(()),
            _ => Err(Failure::Reported),
        }
    }

    async fn send(&self) -> Result<Summary, Failure> {
        let server = self.server.endpoint()?;
        let (progress, lines) = self.open()?;
        let shared = Arc::new(sender::Shared::new(
            lines,
            progress.clone(),
            self.input_name(),
            self.give_up_after.map(Duration::from_secs_f64),
            self.compress.map(Coding::from),
        ));
        let mut senders = JoinSet::new();
        for _ in 0..self.connections {
            let client = Client::new(server.clone(), CLIENT_REQUEST_TIMEOUT);
            senders.spawn(Sender::new(client, shared.clone()).run());
        }
        let mut result = Ok(());
        while let Some(ended) = senders.join_next().await {
            let ended = ended.unwrap_or_else(|error| Err(Failure::Failed(error.to_string())));
            // What stops one sender stops them all.
            if ended.is_err() {
                senders.abort_all();
                result = result.and(ended);
            }
        }
        progress.finish_and_clear();
        result?;
        let summary = shared.summary.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(summary.clone())
    }

    fn open(&self) -> Result<(indicatif::ProgressBar, Lines), Failure> {
        let batch = self.batch as usize;
        if self.file == Path::new("-") {
            let progress = progress::bytes(None);
            let lines = Lines::read(std::io::stdin(), batch, progress.clone());
            return Ok((progress, lines));
        }
        let failed = |error| Failure::Failed(format!("cannot read {}: {error}", self.file.display()));
        let file = std::fs::File::open(&self.file).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        // A pipe has no size that means anything.
        let progress = progress::bytes(metadata.is_file().then_some(metadata.len()));
        let lines = Lines::read(file, batch, progress.clone());
        Ok((progress, lines))
    }

    fn input_name(&self) -> String {
        match self.file.to_str() {
            Some("-") => "standard input".to_owned(),
            _ => self.file.display().to_string(),
        }
    }
}

impl Summary {
    fn table(&self) -> String {
        columns([
            ("sent", grouped(self.sent)),
            ("accepted", grouped(self.accepted)),
            ("duplicates", grouped(self.duplicates)),
            ("conflicts", grouped(self.conflicts)),
            ("bad lines", grouped(self.bad_lines)),
            ("retries", grouped(self.retries)),
        ])
    }
}
