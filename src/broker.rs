//! The broker: Redis takes events in for clients that need not wait for the commit, and while the store is away.
//!
//! ```text
//! publish ──add──▶ streams in Redis, one a partition ──read──▶ consumer ──▶ ingest ──▶ committer
//!                                   ▲                              │
//!                                   └────── acknowledge, bury ◀────┘ after the commit
//! ```
//!
//! [`Broker::queue`] adds a request's events, all or none, and returns once Redis has them. A topic's events are all in
//! one partition, in order. One instance at a time consumes a partition, by a lease whose number ([`Fence`]) the store
//! checks at the commit. An entry is taken out of its stream after its events are committed: whatever dies in between,
//! they come again and are duplicates. What cannot be committed becomes a dead letter. Everything that Redis does in
//! several steps is a script there, so that it happens whole. `docs/ARCHITECTURE.md` has a table of crashes.
//!
//! [`Fence`]: crate::event::Fence

mod connection;
mod consumer;
mod entry;
mod figures;
mod keeper;
mod keys;
mod letters;
mod scripts;
mod status;
mod suspect;
#[cfg(test)]
mod tests;
mod url;

pub use figures::Figures;
pub use letters::{Letter, LetterError, Letters, Settled, Settlement};
pub use status::Status;
pub use url::{BrokerUrl, InvalidBrokerUrl};

use crate::{
    event::Batch,
    faults::{self, CrashPoint},
    health::Health,
    ingest::Ingest,
    limits::{BROKER_ANSWER_TIMEOUT, BROKER_STOP_WAIT, PARSE_INLINE_BYTES},
    request::{self, Panicked},
    store::Store,
};
use connection::{ConnectError, Connections, Connector, Link};
use entry::Entry;
use keeper::{Keeper, Site};
use scripts::Added;
use std::sync::Arc;
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot, watch},
    task::JoinHandle,
};

/// Where the broker is, and how much it may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerConfig {
    /// The Redis server.
    pub url: BrokerUrl,
    /// Events that it may hold at once, dead letters included.
    pub max_events: u64,
    /// Bytes of events that it may hold at once, dead letters included.
    pub max_bytes: u64,
}

/// The way into the broker. Cheap to clone.
#[derive(Clone)]
pub struct Broker {
    link: Link,
    config: Arc<BrokerConfig>,
    figures: Figures,
    status: watch::Receiver<Status>,
}

/// The broker's work in the background.
pub struct Running {
    stop: watch::Sender<bool>,
    keeper: JoinHandle<()>,
}

/// Why events were not queued: none of them is, unless Redis took them and could not say so. Sending them again is safe.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The broker holds as much as it may.
    #[error(
        "the broker holds as much as it may ({max_events} events, BROKER_MAX_EVENTS; {max_bytes} bytes, BROKER_MAX_BYTES)"
    )]
    Full {
        /// Events that it may hold.
        max_events: u64,
        /// Bytes that it may hold.
        max_bytes: u64,
    },
    /// More than the broker can ever hold.
    #[error(
        "the request has {events} events in {bytes} bytes; the broker may hold {max_events} events (BROKER_MAX_EVENTS) \
         and {max_bytes} bytes (BROKER_MAX_BYTES)"
    )]
    TooLarge {
        /// How many events the request has.
        events: u64,
        /// Their bytes.
        bytes: u64,
        /// Events that the broker may hold.
        max_events: u64,
        /// Bytes that it may hold.
        max_bytes: u64,
    },
    /// Redis is away, or did not take them; the text says why.
    #[error("the broker is not available: {0}")]
    Unavailable(String),
}

/// Why the broker cannot be used, so that the server does not start.
#[derive(Debug, thiserror::Error)]
#[error("the broker at {url} cannot be used: {reason}")]
pub struct StartError {
    url: BrokerUrl,
    reason: String,
}

impl Broker {
    /// Connects to Redis and begins to consume. A Redis that is away is no error: it is tried again until it is there.
    ///
    /// # Errors
    /// When Redis answers, but is too old, or holds the events of another store.
    pub async fn start(
        config: BrokerConfig,
        store: &dyn Store,
        ingest: Ingest,
        health: Health,
    ) -> Result<(Self, Running), StartError> {
        let identity = store.identity();
        let connector = Connector::new(&config.url, identity.store);
        let (link, state) = connection::link();
        let first = match connector.connect().await {
            Ok(connections) => {
                state.up(Arc::clone(&connections));
                Some(connections)
            }
            Err(ConnectError::Unusable(reason)) => {
                return Err(StartError {
                    url: config.url,
                    reason,
                });
            }
            Err(ConnectError::Away(reason)) => {
                tracing::warn!(
                    broker = %config.url,
                    reason,
                    "the broker is away; queued publishes get a 503 until it is there"
                );
                state.down(reason);
                None
            }
        };
        let figures = Figures::default();
        let (status, seen) = watch::channel(Status::default());
        let (stop, stopping) = watch::channel(false);
        let site = Arc::new(Site::new(identity, ingest, health, link.clone(), figures.clone()));
        let keeper = Keeper::new(connector, state, status, site, stopping);
        let broker = Self {
            link,
            config: Arc::new(config),
            figures,
            status: seen,
        };
        let keeper = tokio::spawn(keeper.run(first));
        Ok((broker, Running { stop, keeper }))
    }

    /// Adds the events to the broker's streams, all of them or none. When this returns `Ok`, Redis has them, as safely as
    /// it is set up to keep things.
    ///
    /// `room` is what the batch's bytes take of the memory for request bodies. It is given back when they are in memory no
    /// longer, not when the caller stops waiting: what is on its way to Redis for a client that went away is still there.
    pub async fn queue(&self, batch: Batch, room: OwnedSemaphorePermit) -> Result<(), QueueError> {
        let (answer, answered) = oneshot::channel();
        let broker = self.clone();
        tokio::spawn(request::elsewhere(async move {
            let result = broker.add_in_time(batch, room).await;
            broker.figures.queued(&result);
            // A client that went away does not hear it.
            let _ = answer.send(result);
        }));
        answered
            .await
            .unwrap_or_else(|_| Err(QueueError::Unavailable("queueing the events panicked".to_owned())))
    }

    /// Adds the events, and gives up when that takes too long. What has been handed to the connection by then goes on, with
    /// its room.
    async fn add_in_time(&self, batch: Batch, room: OwnedSemaphorePermit) -> Result<(), QueueError> {
        let connections = self.link.connections().map_err(QueueError::Unavailable)?;
        let mut adding = Box::pin({
            let (broker, connections) = (self.clone(), Arc::clone(&connections));
            async move { broker.add(&connections, batch).await }
        });
        if let Ok(result) = tokio::time::timeout(BROKER_ANSWER_TIMEOUT, adding.as_mut()).await {
            // First, so that who has the answer finds the room free.
            drop(room);
            return result;
        }
        self.link.doubt();
        let mut link = self.link.clone();
        tokio::spawn(async move {
            // The bytes go with the answer, or with the connection.
            tokio::select! {
                _ = adding => {}
                () = link.replaced(&connections) => {}
            }
            drop(room);
        });
        Err(QueueError::Unavailable(format!(
            "Redis did not answer within {} s; it may have the events",
            BROKER_ANSWER_TIMEOUT.as_secs()
        )))
    }

    async fn add(&self, connections: &Connections, batch: Batch) -> Result<(), QueueError> {
        let entries = written(batch, connections.partitions()).await?;
        let events = entries.iter().map(|entry| entry.events).sum();
        let bytes = entries.iter().map(|entry| entry.json.len() as u64).sum();
        let BrokerConfig {
            max_events,
            max_bytes,
            ..
        } = *self.config;
        if events > max_events || bytes > max_bytes {
            return Err(QueueError::TooLarge {
                events,
                bytes,
                max_events,
                max_bytes,
            });
        }
        let added = connections.add(entries, max_events, max_bytes).await;
        match added {
            Ok(Added::All) => {
                faults::reached(CrashPoint::BrokerQueued);
                Ok(())
            }
            Ok(Added::Full) => Err(QueueError::Full {
                max_events,
                max_bytes,
            }),
            Ok(Added::Changed) => {
                self.link.doubt();
                Err(QueueError::Unavailable(
                    "Redis was set up anew by another instance; connecting again".to_owned(),
                ))
            }
            Err(error) => {
                if error.is_unrecoverable_error() {
                    self.link.doubt();
                }
                Err(QueueError::Unavailable(error.to_string()))
            }
        }
    }

    /// Why the broker is not available, if it is not.
    pub fn trouble(&self) -> Option<String> {
        self.link.connections().err()
    }

    /// What the broker held when it was last looked at, a second ago unless it is away.
    pub fn status(&self) -> Status {
        *self.status.borrow()
    }

    /// What became of publishes into the broker, and of entries out of it.
    pub fn figures(&self) -> &Figures {
        &self.figures
    }

    /// How much it may hold.
    pub fn config(&self) -> &BrokerConfig {
        &self.config
    }
}

impl std::fmt::Debug for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Broker({})", self.config.url)
    }
}

impl Running {
    /// Ends the consumers, each after what it has in work, and gives their partitions to others. Bounded in time: what is
    /// not finished then comes again.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        let mut keeper = self.keeper;
        if tokio::time::timeout(BROKER_STOP_WAIT, &mut keeper).await.is_err() {
            tracing::warn!("the broker's consumers did not end in time; what they had in work comes again");
            keeper.abort();
        }
    }
}

/// The entries of a batch. Those of a large one are written on a thread of their own, as it was parsed.
async fn written(batch: Batch, partitions: u16) -> Result<Vec<Entry>, QueueError> {
    let write = move |batch: Batch| {
        Entry::all_of(&batch, partitions)
            .map_err(|error| QueueError::Unavailable(format!("cannot write an entry: {error}")))
    };
    if batch.bytes() <= PARSE_INLINE_BYTES {
        return write(batch);
    }
    request::beside(move || write(batch), "writing entries for the broker")
        .await
        .unwrap_or_else(|Panicked| {
            Err(QueueError::Unavailable(
                "the entries could not be written".to_owned(),
            ))
        })
}
