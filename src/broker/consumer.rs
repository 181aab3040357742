//! Takes the events of one partition out of the broker and has them committed, for as long as the lease lasts.
//!
//! One batch at a time, so that a topic's events are committed in their order. It begins with what was read before and not
//! acknowledged, by a consumer that died or by itself before something failed: that is tried entry by entry, so that one
//! which cannot be committed is found and buried. Then it takes many new entries at once. After any failure it begins
//! again. While the store cannot commit it reads nothing.

use super::{
    connection::Connections,
    entry,
    keeper::Site,
    scripts::{Delivered, Lease, Obituary, Which},
    suspect::{Suspect, Verdict},
};
use crate::{
    client::Backoff,
    event::{self, Batch, Fence, ParseError, Shape},
    faults::{self, CrashPoint},
    ingest::SubmitError,
    limits::{
        BROKER_BACKOFF_FIRST, BROKER_BACKOFF_MOST, BROKER_IDLE_WAIT, BROKER_REFUSALS, BROKER_STORE_CHECK,
        BROKER_TRIES, BROKER_VERDICT_WAIT, MAX_COMMIT_EVENTS, MAX_TOPICS, PARSE_INLINE_BYTES,
    },
    request::{self, Panicked},
    stopping::told,
    store::BatchOutcome,
};
use redis::{RedisError, aio::MultiplexedConnection};
use serde_json::value::RawValue;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::{OwnedSemaphorePermit, watch};

/// The consumer of one partition under one lease.
pub(super) struct Consumer {
    site: Arc<Site>,
    lease: Lease,
    stopping: watch::Receiver<bool>,
    /// Whether there may be entries that were read and not acknowledged.
    careful: bool,
    /// What went wrong last, for the dead letter if it does so again and again.
    last_failure: Option<String>,
    /// The entry that was tried alone last.
    suspect: Option<Suspect>,
    /// What Redis refused, the last first: that is not said again with each try.
    refused: Vec<String>,
    /// For waiting in Redis, which blocks the connection.
    waiting: Option<MultiplexedConnection>,
}

/// Why a consumer ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It was told to.
    Stopped,
    /// The lease is another's by now, or nobody's.
    Lost,
    /// The store knows of a newer lease.
    Fenced {
        /// The newest token that it knows.
        newest: u64,
    },
}

/// What one turn came to.
enum Turn {
    /// Something was done; there may be more.
    Done,
    /// There was nothing to do.
    Idle,
    /// It has to be tried again.
    Failed,
    Ended(End),
}

/// Why a batch was not committed.
enum Refusal {
    /// One event has a topic too many.
    Topic {
        event: usize,
    },
    /// The store or the queue did not take it.
    Failed(SubmitError),
    Fenced {
        newest: u64,
    },
}

impl Consumer {
    pub(super) fn new(site: Arc<Site>, lease: Lease, stopping: watch::Receiver<bool>) -> Self {
        Self {
            site,
            lease,
            stopping,
            careful: true,
            last_failure: None,
            suspect: None,
            refused: Vec::new(),
            waiting: None,
        }
    }

    pub(super) async fn run(mut self) -> End {
        let mut backoff = Backoff::between(BROKER_BACKOFF_FIRST, BROKER_BACKOFF_MOST);
        let mut woken = false;
        while !*self.stopping.borrow() {
            let turn = match self.turn().await {
                Ok(turn) => turn,
                Err(error) => {
                    self.failed_by_redis(&error);
                    Turn::Failed
                }
            };
            match turn {
                Turn::Done => {
                    backoff.reset();
                    woken = false;
                }
                Turn::Idle if self.careful => self.careful = false,
                Turn::Idle => {
                    if woken {
                        // For nothing: somebody has moved the group behind what is in the stream.
                        self.pause(BROKER_IDLE_WAIT).await;
                    }
                    woken = match self.wait().await {
                        Ok(found) => {
                            backoff.reset();
                            found
                        }
                        Err(error) => {
                            self.failed_by_redis(&error);
                            self.pause(backoff.next_wait(None)).await;
                            false
                        }
                    };
                }
                Turn::Failed => {
                    self.careful = true;
                    self.pause(backoff.next_wait(None)).await;
                }
                Turn::Ended(end) => return end,
            }
        }
        End::Stopped
    }

    async fn turn(&mut self) -> Result<Turn, RedisError> {
        if !self.store_commits().await {
            return Ok(Turn::Ended(End::Stopped));
        }
        let Ok(connections) = self.site.link.connections() else {
            let mut link = self.site.link.clone();
            tokio::select! {
                () = link.up() => {}
                () = told(&mut self.stopping) => {}
            }
            return Ok(Turn::Done);
        };
        // Never closed, so it cannot fail.
        let Ok(room) = Arc::clone(&self.site.reads).acquire_owned().await else {
            return Ok(Turn::Ended(End::Stopped));
        };
        let which = if self.careful { Which::Pending } else { Which::New };
        let read = connections.read(&self.site.instance, self.lease, which).await?;
        let Some(read) = read else {
            return Ok(Turn::Ended(End::Lost));
        };
        if !read.entries.is_empty() {
            faults::reached(CrashPoint::BrokerRead);
        }
        match read.entries.as_slice() {
            [] => Ok(Turn::Idle),
            [entry, ..] if self.careful => self.one(&connections, room, entry, read.deliveries).await,
            entries => self.many(&connections, room, entries).await,
        }
    }

    /// Commits new entries, as many together as fit into a commit.
    async fn many(
        &mut self,
        connections: &Connections,
        mut room: OwnedSemaphorePermit,
        entries: &[Delivered],
    ) -> Result<Turn, RedisError> {
        let most = self.most_events();
        let mut rest = entries;
        while !rest.is_empty() {
            let mut events = 0;
            let count = rest
                .iter()
                .take_while(|entry| {
                    events += entry.events;
                    events <= most as u64
                })
                .count();
            let (together, after) = rest.split_at(count);
            let batch = match entry::joined(together.iter().map(|entry| entry.json.as_slice())) {
                Some(json) if count > 0 => self.parse(json, most).await.ok(),
                _ => None,
            };
            // One of them alone is too much, or is none of ours: that is found out entry by entry.
            let Some(batch) = batch else {
                return Ok(Turn::Failed);
            };
            match self.submit(batch, &mut room).await {
                Ok(()) => {
                    faults::reached(CrashPoint::BrokerCommitted);
                    connections.acknowledge(self.lease.partition, together).await?;
                    faults::reached(CrashPoint::BrokerAcknowledged);
                    rest = after;
                }
                // Nothing is wrong with them: the same again, unless it is told to stop.
                Err(Refusal::Failed(SubmitError::QueueFull)) if !*self.stopping.borrow() => {}
                Err(Refusal::Fenced { newest }) => return Ok(Turn::Ended(End::Fenced { newest })),
                Err(Refusal::Topic { .. }) => return Ok(Turn::Failed),
                Err(Refusal::Failed(error)) => {
                    self.last_failure = Some(error.to_string());
                    return Ok(Turn::Failed);
                }
            }
        }
        Ok(Turn::Done)
    }

    /// Commits one entry that was read before, and buries what of it cannot be committed.
    async fn one(
        &mut self,
        connections: &Connections,
        mut room: OwnedSemaphorePermit,
        entry: &Delivered,
        deliveries: u64,
    ) -> Result<Turn, RedisError> {
        self.site.figures.redelivered();
        let whole = |reason: String| {
            vec![Obituary {
                reason,
                events: entry.events,
                json: None,
            }]
        };
        // The first time was together with others.
        let letters = if deliveries > BROKER_TRIES + 1 {
            let reason = self
                .last_failure
                .take()
                .unwrap_or_else(|| "its consumer ended each time".to_owned());
            whole(format!("not committed in {BROKER_TRIES} tries: {reason}"))
        } else {
            if !self.suspect.as_ref().is_some_and(|suspect| suspect.is(&entry.id)) {
                let stored = self.site.ingest.figures().stored();
                self.suspect = Some(Suspect::new(&entry.id, Instant::now(), stored));
            }
            match self.alone(&entry.json, &mut room).await {
                Ok(Ok(letters)) => letters,
                Ok(Err(reason)) => whole(reason),
                Err(Refusal::Fenced { newest }) => return Ok(Turn::Ended(End::Fenced { newest })),
                Err(Refusal::Topic { .. }) => return Ok(Turn::Failed),
                Err(Refusal::Failed(error)) => {
                    if self.verdict(&error).await == Verdict::NotProven {
                        connections
                            .set_deliveries(self.lease.partition, entry, deliveries.saturating_sub(1))
                            .await?;
                    }
                    self.last_failure = Some(error.to_string());
                    return Ok(Turn::Failed);
                }
            }
        };
        let partition = self.lease.partition;
        if letters.is_empty() {
            connections
                .acknowledge(partition, std::slice::from_ref(entry))
                .await?;
            return Ok(Turn::Done);
        }
        let buried = connections.bury(partition, entry, deliveries, &letters).await?;
        // None when somebody has emptied Redis meanwhile.
        if buried > 0 {
            self.site.figures.buried(buried);
            tracing::error!(
                partition,
                entry = entry.id,
                letters = buried,
                reason = letters[0].reason,
                "the broker had events that cannot be committed; `oncelog broker dead list` shows them"
            );
        }
        Ok(Turn::Done)
    }

    /// Commits what can be committed of an entry's events, and returns the others, or why all of it is wrong.
    async fn alone(
        &self,
        json: &[u8],
        room: &mut OwnedSemaphorePermit,
    ) -> Result<Result<Vec<Obituary>, String>, Refusal> {
        let events: Vec<&RawValue> = match serde_json::from_slice(json) {
            Ok(events) => events,
            Err(error) => return Ok(Err(format!("not an array of events: {error}"))),
        };
        let mut letters = Vec::new();
        let mut bury = |reason: String, event: &RawValue| {
            letters.push(Obituary {
                reason,
                events: 1,
                json: Some(array(&[event])),
            });
        };
        let mut left = Vec::with_capacity(events.len());
        for event in events {
            match self.parse(array(&[event]), 1).await {
                Ok(_) => left.push(event),
                Err(error) => bury(error.to_string(), event),
            }
        }
        let mut rest = left;
        while !rest.is_empty() {
            let after = rest.split_off(rest.len().min(self.most_events()));
            let mut together = std::mem::replace(&mut rest, after);
            while !together.is_empty() {
                let batch = match self.parse(array(&together), together.len()).await {
                    Ok(batch) => batch,
                    // Each of them is valid, so this does not happen.
                    Err(error) => return Ok(Err(error.to_string())),
                };
                match self.submit(batch, room).await {
                    Ok(()) => break,
                    Err(Refusal::Topic { event }) if event < together.len() => {
                        let reason = format!("the store holds {MAX_TOPICS} topics, as many as it may");
                        bury(reason, together.remove(event));
                    }
                    Err(refusal) => return Err(refusal),
                }
            }
        }
        Ok(Ok(letters))
    }

    async fn parse(&self, json: Vec<u8>, most: usize) -> Result<Batch, ParseError> {
        let identity = self.site.identity;
        if json.len() <= PARSE_INLINE_BYTES {
            return event::parse(json, Shape::Normalised, &identity, most);
        }
        let parse = move || event::parse(json, Shape::Normalised, &identity, most);
        request::beside(parse, "parsing events of the broker")
            .await
            .unwrap_or_else(|Panicked| {
                Err(ParseError {
                    kind: event::ParseErrorKind::Invalid,
                    place: String::new(),
                    message: "parsing it panicked".to_owned(),
                })
            })
    }

    async fn submit(&self, batch: Batch, room: &mut OwnedSemaphorePermit) -> Result<(), Refusal> {
        let events = batch.len();
        let batch = batch.behind(Fence {
            partition: self.lease.partition,
            token: self.lease.token,
        });
        // The room is for what was read, and is held until that is acknowledged.
        let Some(nothing) = room.split(0) else {
            return Err(Refusal::Failed(SubmitError::Stopping));
        };
        match self.site.ingest.submit(batch, nothing).await {
            Ok(BatchOutcome::Committed(_)) => {
                self.site.figures.committed(events);
                Ok(())
            }
            Ok(BatchOutcome::TooManyTopics { event }) => Err(Refusal::Topic { event }),
            Ok(BatchOutcome::Fenced { newest }) => Err(Refusal::Fenced { newest }),
            Err(error) => Err(Refusal::Failed(error)),
        }
    }

    /// Whether a failure was the fault of the entry that was tried alone: the store did not take it, and stores others.
    async fn verdict(&mut self, error: &SubmitError) -> Verdict {
        if !matches!(error, SubmitError::Store(_)) {
            return Verdict::NotProven;
        }
        self.pause(BROKER_VERDICT_WAIT).await;
        let stored = self.site.ingest.figures().stored();
        let Some(suspect) = self.suspect.as_mut().filter(|_| !*self.stopping.borrow()) else {
            return Verdict::NotProven;
        };
        if self.site.health.commits() {
            return suspect.judge(Instant::now(), stored);
        }
        suspect.excuse(Instant::now(), stored);
        Verdict::NotProven
    }

    /// Most events of a batch.
    fn most_events(&self) -> usize {
        self.site.ingest.capacity().min(MAX_COMMIT_EVENTS)
    }

    /// Waits until the store commits; false when the consumer was told to stop before.
    async fn store_commits(&mut self) -> bool {
        loop {
            if *self.stopping.borrow() {
                return false;
            }
            if self.site.health.commits() {
                return true;
            }
            self.pause(BROKER_STORE_CHECK).await;
        }
    }

    /// Waits for an entry, for a while; true when there is one.
    async fn wait(&mut self) -> Result<bool, RedisError> {
        let Ok(connections) = self.site.link.connections() else {
            return Ok(false);
        };
        let mut stopping = self.stopping.clone();
        let partition = self.lease.partition;
        let waiting = &mut self.waiting;
        let waited = async {
            let connection = match waiting {
                Some(connection) => connection,
                None => waiting.insert(connections.own().await?),
            };
            Connections::wait(connection, partition, BROKER_IDLE_WAIT).await
        };
        let waited = tokio::select! {
            waited = waited => waited,
            () = told(&mut stopping) => return Ok(false),
        };
        if waited.is_err() {
            self.waiting = None;
        }
        waited
    }

    /// Redis did not do what it was asked for. What it refuses is told of: the others may go on while this partition stands
    /// still. That it is away the keeper tells.
    fn failed_by_redis(&mut self, error: &RedisError) {
        let partition = self.lease.partition;
        if error.code().is_none() || error.is_unrecoverable_error() {
            tracing::debug!(partition, %error, "the broker failed a consumer");
            return self.site.link.doubt();
        }
        let text = error.to_string();
        if !self.refused.contains(&text) {
            tracing::warn!(
                partition,
                %error,
                "Redis refuses what this partition needs; its events wait until that is put right"
            );
            self.refused.truncate(BROKER_REFUSALS - 1);
            self.refused.insert(0, text);
        }
    }

    /// Sleeps, unless it is told to stop.
    async fn pause(&mut self, time: Duration) {
        tokio::select! {
            () = tokio::time::sleep(time) => {}
            () = told(&mut self.stopping) => {}
        }
    }
}

fn array(events: &[&RawValue]) -> Vec<u8> {
    let mut json = b"[".to_vec();
    for (number, event) in events.iter().enumerate() {
        if number > 0 {
            json.push(b',');
        }
        json.extend_from_slice(event.get().as_bytes());
    }
    json.push(b']');
    json
}
