//! Compares the server before and after: its counters, and the events that it stores.

use super::{
    producer::{Counts, Run},
    scenarios::LARGEST_BATCH,
};
use crate::{
    cli::{Failure, events::Page, output::grouped, stats::Counters},
    client::{Client, ClientError},
    limits::MAX_PAGE_LIMIT,
};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::HashSet;

/// The server as it was.
pub(super) struct Before {
    counters: Counters,
    /// A cursor behind the newest event.
    end: String,
}

/// What tells an event of the run from others.
#[derive(Deserialize)]
struct Identity {
    topic: String,
    event_id: String,
}

/// Fails when the server's own metrics say that it would refuse the largest request of the scenarios, in which case
/// nearly every one of them would fail for a reason that has nothing to do with what is checked.
pub(super) async fn queue_is_large_enough(client: &mut Client, run: &Run) -> Result<(), Failure> {
    let largest = run.batch.largest().max(LARGEST_BATCH);
    let answer = client.get("/metrics").await?;
    let text = String::from_utf8_lossy(&answer.body);
    let capacity = text
        .lines()
        .find_map(|line| line.strip_prefix("oncelog_queue_capacity_events "))
        .and_then(|value| value.trim().parse::<u64>().ok());
    match capacity {
        Some(capacity) if capacity < largest => Err(Failure::Failed(format!(
            "{} takes at most {capacity} events in a request, and simulate sends up to {largest}: start the \
             server with QUEUE_MAX_SIZE={largest} or more",
            client.base()
        ))),
        // Metrics that are not to be had are no reason to stop.
        Some(_) | None => Ok(()),
    }
}

impl Before {
    pub(super) async fn take(client: &mut Client) -> Result<Self, ClientError> {
        let end = Page::get(client, "order=asc&position=end&limit=1").await?;
        Ok(Self {
            counters: Counters::get(client).await?,
            end: end.cursor(client)?,
        })
    }

    /// Every counter must have grown by what was sent, neither more nor less.
    pub(super) async fn compare_counters(
        &self,
        client: &mut Client,
        expected: Counts,
    ) -> Result<String, String> {
        let after = Counters::get(client).await.map_err(|error| error.to_string())?;
        let before = &self.counters;
        let received = after.received.wrapping_sub(before.received);
        let accepted = after.unique_processed.wrapping_sub(before.unique_processed);
        let conflicts = after.conflicts.wrapping_sub(before.conflicts);
        if after.received != after.unique_processed + after.duplicate_dropped {
            return Err(format!(
                "received {} is not unique_processed {} + duplicate_dropped {}",
                after.received, after.unique_processed, after.duplicate_dropped
            ));
        }
        let most = expected.received + expected.unanswered;
        let is_right = (expected.received..=most).contains(&received)
            && accepted == expected.accepted
            && conflicts == expected.conflicts;
        if is_right {
            return Ok(format!(
                "received +{}, unique +{}, duplicates +{}, conflicts +{}",
                grouped(received),
                grouped(accepted),
                grouped(received - accepted),
                grouped(conflicts)
            ));
        }
        Err(format!(
            "grew by received {received}, unique {accepted}, conflicts {conflicts}; expected received {} to {most}, \
             unique {}, conflicts {}. Did another producer send meanwhile?",
            expected.received, expected.accepted, expected.conflicts
        ))
    }

    /// Reading on from where the log ended, each event of the run must come exactly once.
    pub(super) async fn compare_events(
        &self,
        client: &mut Client,
        run: &Run,
        expected: u64,
    ) -> Result<String, String> {
        let mut seen = HashSet::new();
        let mut cursor = self.end.clone();
        loop {
            let query = format!(
                "order=asc&source={}&limit={MAX_PAGE_LIMIT}&cursor={cursor}",
                run.source()
            );
            let page = Page::get(client, &query)
                .await
                .map_err(|error| error.to_string())?;
            for event in &page.events {
                let Identity { topic, event_id } = identity(event)?;
                let shown = format!("{topic}/{event_id}");
                if !seen.insert((topic, event_id)) {
                    return Err(format!("{shown} came twice"));
                }
            }
            if page.caught_up {
                break;
            }
            cursor = page.cursor(client).map_err(|error| error.to_string())?;
        }
        let found = seen.len() as u64;
        if found == expected {
            Ok(format!("{} read back in order, each once", grouped(found)))
        } else {
            Err(format!(
                "{} found, {} were accepted",
                grouped(found),
                grouped(expected)
            ))
        }
    }
}

fn identity(event: &RawValue) -> Result<Identity, String> {
    serde_json::from_str(event.get()).map_err(|error| error.to_string())
}
