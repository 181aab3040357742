//! `oncelog export`: all events as lines that `oncelog publish` takes, up to the newest one at the start.

mod destination;

use super::{
    Failure, block_on,
    events::{Page, Parameters, on_one_line},
    progress,
    server_arguments::ServerArguments,
};
use crate::{client::Client, limits::MAX_PAGE_LIMIT};
use destination::Destination;
use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

/// Attempts at a page while the server is away or busy.
const MAX_ATTEMPTS: u32 = 10;

/// Write all events, one JSON object a line, oldest first
///
/// The lines are what `oncelog publish` takes. Payloads are the bytes that were sent; only line breaks between their
/// tokens become blanks. Events that are stored after the start are not part of it. A file appears under its name, or
/// replaces the one that is there, only when all is written.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    oncelog export events.ndjson\n  \
    oncelog export --topic orders --from 2025-10-01T00:00:00Z | gzip > orders.gz\n  \
    oncelog export | oncelog publish --url http://10.0.0.7:8080")]
pub(super) struct Export {
    #[command(flatten)]
    server: ServerArguments,
    /// The file to write; - is standard output
    #[arg(default_value = "-")]
    file: PathBuf,
    /// Only events of this topic
    #[arg(long)]
    topic: Option<String>,
    /// Only events that happened at this time or later
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Only events that happened before this time
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// Also write each event's number and when it was stored; publish does not take such lines
    #[arg(long)]
    full: bool,
}

/// An event as the server shows it.
#[derive(Deserialize)]
struct Event<'a> {
    seq: u64,
    #[serde(borrow)]
    topic: &'a RawValue,
    #[serde(borrow)]
    event_id: &'a RawValue,
    #[serde(borrow)]
    timestamp: &'a RawValue,
    #[serde(borrow)]
    source: &'a RawValue,
    #[serde(borrow)]
    payload: &'a RawValue,
}

/// An event as `publish` takes it.
#[derive(Serialize)]
struct Publishable<'a> {
    topic: &'a RawValue,
    event_id: &'a RawValue,
    timestamp: &'a RawValue,
    source: &'a RawValue,
    payload: &'a RawValue,
}

impl Export {
    pub(super) fn run(self) -> Result<(), Failure> {
        block_on(self.export())
    }

    async fn export(self) -> Result<(), Failure> {
        let mut client = self.server.client()?;
        let newest = newest_seq(&mut client).await?;
        let mut output = self.open()?;
        let progress = progress::counter(newest, "events");
        if newest > 0 {
            let is_to_be_tidied = output.is_unfinished_file();
            let writing = self.write_up_to(newest, &mut client, &mut output, &progress);
            if is_to_be_tidied {
                // An interrupt does not end the process at once, so that what was begun is removed. Not for a pipe: a
                // write to it may wait for its reader for ever.
                tokio::select! {
                    result = writing => result?,
                    _ = tokio::signal::ctrl_c() => return Err(Failure::Failed("interrupted".to_owned())),
                }
            } else {
                writing.await?;
            }
        }
        progress.finish_and_clear();
        output.finish().map_err(|error| self.cannot_write(error))
    }

    async fn write_up_to(
        &self,
        newest: u64,
        client: &mut Client,
        output: &mut impl Write,
        progress: &ProgressBar,
    ) -> Result<(), Failure> {
        let query = Parameters::default()
            .with("order", Some("asc"))
            .with("limit", Some(&MAX_PAGE_LIMIT.to_string()))
            .with("topic", self.topic.as_deref())
            .with("from", self.from.as_deref())
            .with("to", self.to.as_deref());
        let mut cursor = None;
        loop {
            let query = query.clone().with("cursor", cursor.as_deref());
            let page = Page::get_patiently(client, query.as_str(), MAX_ATTEMPTS).await?;
            for json in &page.events {
                let event: Event<'_> = client.parse(json.get().as_bytes())?;
                if event.seq > newest {
                    return Ok(());
                }
                progress.set_position(event.seq);
                let line = if self.full {
                    on_one_line(json.get())
                } else {
                    on_one_line(&event.publishable()?)
                };
                writeln!(output, "{line}").map_err(|error| self.cannot_write(error))?;
            }
            if page.caught_up {
                return Ok(());
            }
            cursor = Some(page.cursor(client)?);
        }
    }

    fn open(&self) -> Result<Destination, Failure> {
        if self.file == Path::new("-") {
            return Ok(Destination::stdout());
        }
        Destination::file(&self.file).map_err(|error| self.cannot_write(error))
    }

    fn cannot_write(&self, error: io::Error) -> Failure {
        if self.file == Path::new("-") {
            error.into()
        } else {
            Failure::Failed(format!("cannot write {}: {error}", self.file.display()))
        }
    }
}

impl Event<'_> {
    fn publishable(&self) -> Result<String, Failure> {
        serde_json::to_string(&Publishable {
            topic: self.topic,
            event_id: self.event_id,
            timestamp: self.timestamp,
            source: self.source,
            payload: self.payload,
        })
        .map_err(|error| Failure::Failed(error.to_string()))
    }
}

/// The number of the newest event; 0 when there is none.
async fn newest_seq(client: &mut Client) -> Result<u64, Failure> {
    let page = Page::get(client, "order=desc&limit=1").await?;
    match page.events.first() {
        None => Ok(0),
        Some(json) => Ok(client.parse::<Event<'_>>(json.get().as_bytes())?.seq),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_the_bytes_that_were_sent_and_no_line_break() {
        let json = "{\"seq\":1,\"topic\":\"\\u00e9\",\"event_id\":\"1\",\"timestamp\":\"2025-10-23T10:00:00Z\",\
            \"source\":\"s\",\"payload\":{\"b\": 1.0,\n\"a\":\"\\n\"},\"processed_at\":\"2025-10-23T10:00:01Z\"}";
        let event: Event<'_> = serde_json::from_str(json).unwrap();
        assert_eq!(
            on_one_line(&event.publishable().unwrap()),
            "{\"topic\":\"\\u00e9\",\"event_id\":\"1\",\"timestamp\":\"2025-10-23T10:00:00Z\",\"source\":\"s\",\
             \"payload\":{\"b\": 1.0, \"a\":\"\\n\"}}"
        );
    }
}
