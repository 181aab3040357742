//! The broker's one background task: it connects, keeps this instance's leases, and starts and ends consumers with them.
//!
//! Each instance should have an equal share of the partitions. One that has more gives some back when their consumers
//! have finished what they have in work; one that has fewer takes what is free. An instance that dies is forgotten, and
//! its leases end, after [`BROKER_LEASE`]. One whose store has been in trouble for as long gives all of them back and does
//! not count, until the store commits again: another one may reach it. If none does, what is queued stays where it is.

use super::{
    connection::{ConnectError, Connections, Connector, Link, LinkState},
    consumer::{Consumer, End},
    figures::Figures,
    scripts::Lease,
    status::Status,
};
use crate::{
    client::Backoff,
    event::Identity,
    health::Health,
    ingest::Ingest,
    limits::{BROKER_BACKOFF_FIRST, BROKER_BACKOFF_MOST, BROKER_LEASE, BROKER_READS, BROKER_TICK},
    stopping::told,
};
use std::{collections::HashMap, sync::Arc};
use tokio::{
    sync::{Semaphore, watch},
    task::{Id, JoinError, JoinSet},
};

/// What the consumers of an instance work with.
pub(super) struct Site {
    /// The instance's name in Redis: another one with each start.
    pub(super) instance: String,
    pub(super) identity: Identity,
    pub(super) ingest: Ingest,
    pub(super) health: Health,
    pub(super) link: Link,
    pub(super) figures: Figures,
    /// For entries in memory.
    pub(super) reads: Arc<Semaphore>,
}

impl Site {
    pub(super) fn new(
        identity: Identity,
        ingest: Ingest,
        health: Health,
        link: Link,
        figures: Figures,
    ) -> Self {
        Self {
            instance: format!("{:032x}", fastrand::u128(..)),
            identity,
            ingest,
            health,
            link,
            figures,
            reads: Arc::new(Semaphore::new(BROKER_READS)),
        }
    }
}

/// The task.
pub(super) struct Keeper {
    connector: Connector,
    state: LinkState,
    status: watch::Sender<Status>,
    site: Arc<Site>,
    stopping: watch::Receiver<bool>,
    consumers: HashMap<u16, Work>,
    /// Their tasks.
    tasks: JoinSet<End>,
    /// Leases of consumers that have ended, to be given back.
    free: Vec<Lease>,
    /// New leases have at least this token: the store has refused a smaller one.
    smallest_token: u64,
    /// How long to wait until it connects again.
    backoff: Backoff,
    /// Why the broker was not available, if it has not been since: that is not said again with each try.
    told: Option<String>,
    /// Whether it has no share, because the store does not commit.
    stands_back: bool,
}

/// A consumer at work.
struct Work {
    lease: Lease,
    stop: watch::Sender<bool>,
    id: Id,
}

impl Keeper {
    pub(super) fn new(
        connector: Connector,
        state: LinkState,
        status: watch::Sender<Status>,
        site: Arc<Site>,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        Self {
            connector,
            state,
            status,
            site,
            stopping,
            consumers: HashMap::new(),
            tasks: JoinSet::new(),
            free: Vec::new(),
            smallest_token: 0,
            backoff: Backoff::between(BROKER_BACKOFF_FIRST, BROKER_BACKOFF_MOST),
            told: None,
            stands_back: false,
        }
    }

    /// Runs until it is told to stop, then ends the consumers and gives everything back.
    pub(super) async fn run(mut self, first: Option<Arc<Connections>>) {
        let mut stopping = self.stopping.clone();
        tokio::select! {
            () = self.serve(first) => {}
            () = told(&mut stopping) => {}
        }
        self.close().await;
    }

    /// Connects again and again, for ever.
    async fn serve(&mut self, first: Option<Arc<Connections>>) {
        let mut next = first;
        loop {
            let connected = match next.take() {
                Some(connections) => Ok(connections),
                None => self.connector.connect().await,
            };
            let reason = match connected {
                Ok(connections) => self.tend(&connections).await,
                Err(ConnectError::Away(reason) | ConnectError::Unusable(reason)) => reason,
            };
            self.state.down(reason.clone());
            if self.told.as_ref() != Some(&reason) {
                tracing::error!(broker = %self.connector.url(), reason, "the broker is not available");
                self.told = Some(reason);
            }
            tokio::time::sleep(self.backoff.next_wait(None)).await;
        }
    }

    /// All that has to be done with the connections was done once. Not before are they good: a Redis may let an instance
    /// in and refuse it what it asks for, each time.
    fn available(&mut self, connections: &Arc<Connections>) {
        self.backoff.reset();
        self.told = None;
        tracing::info!(
            broker = %self.connector.url(),
            partitions = connections.partitions(),
            "the broker is connected"
        );
        self.state.up(Arc::clone(connections));
    }

    /// Keeps the leases for as long as the connections hold; returns why they do not.
    async fn tend(&mut self, connections: &Arc<Connections>) -> String {
        let mut available = false;
        loop {
            match self.tick(connections).await {
                Ok(true) => {}
                Ok(false) => return "Redis was set up anew by another instance".to_owned(),
                Err(error) => return error.to_string(),
            }
            if !available {
                self.available(connections);
                available = true;
            }
            if let Err(error) = self.rest(connections).await {
                return error.to_string();
            }
        }
    }

    /// Tells Redis that this instance is there, and does what follows from what it answers. False when it is another store's.
    async fn tick(&mut self, connections: &Connections) -> redis::RedisResult<bool> {
        while let Some(ended) = self.tasks.try_join_next_with_id() {
            self.ended(ended);
        }
        let site = Arc::clone(&self.site);
        // First, so that those are taken again, under a new token, which are wanted.
        connections.release(&site.instance, &self.free).await?;
        self.free.clear();
        let takes_part = self.takes_part();
        let tick = connections
            .tick(&site.instance, takes_part, BROKER_LEASE, self.smallest_token)
            .await?;
        let Some(tick) = tick else {
            return Ok(false);
        };
        self.status.send_replace(Status {
            queued_events: tick.events,
            queued_bytes: tick.bytes,
            dead: tick.dead,
            lag: tick.lag,
            leases: tick.leases.len() as u64,
        });
        self.follow(connections, &tick.leases, tick.share).await?;
        Ok(true)
    }

    /// Waits until the next tick is due: at once when a consumer has ended, whose partition is idle until then.
    async fn rest(&mut self, connections: &Connections) -> redis::RedisResult<()> {
        tokio::select! {
            () = tokio::time::sleep(BROKER_TICK) => {}
            // A tick would show that of one connection only.
            () = self.state.doubted() => connections.check().await?,
            Some(ended) = self.tasks.join_next_with_id() => {
                // Others may end with it. One that panics may do so again and again.
                let pause = if ended.is_ok() { BROKER_BACKOFF_FIRST } else { BROKER_TICK };
                self.ended(ended);
                tokio::time::sleep(pause).await;
            }
        }
        Ok(())
    }

    /// A consumer has ended: its lease is to be given back.
    fn ended(&mut self, ended: Result<(Id, End), JoinError>) {
        let id = match &ended {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        let partition = self.consumers.iter().find(|(_, work)| work.id == id);
        let Some(work) = partition
            .map(|(partition, _)| *partition)
            .and_then(|partition| self.consumers.remove(&partition))
        else {
            return;
        };
        let partition = work.lease.partition;
        match ended {
            Ok((_, End::Fenced { newest })) => {
                tracing::warn!(
                    partition,
                    "another instance has committed for this partition; leaving it"
                );
                self.smallest_token = self.smallest_token.max(newest + 1);
            }
            Ok((_, End::Stopped | End::Lost)) => {}
            Err(error) => {
                tracing::error!(partition, %error, "a consumer of the broker panicked; starting it again");
            }
        }
        self.free.push(work.lease);
    }

    /// Whether this instance should consume. Its share is given back for an outage that lasts, not for one that passes: the
    /// next owner of a partition begins with what this one had in work, entry by entry.
    fn takes_part(&mut self) -> bool {
        let stands_back = self.site.health.is_lost(BROKER_LEASE);
        match (self.stands_back, stands_back) {
            (false, true) => tracing::warn!(
                "the store does not commit for this instance; it leaves the broker's partitions to others until it does"
            ),
            (true, false) => {
                tracing::info!("the store commits again; taking a share of the broker's partitions");
            }
            _ => {}
        }
        self.stands_back = stands_back;
        !stands_back
    }

    /// Starts and ends consumers, so that there is one for each lease, and gives back what is too much.
    async fn follow(
        &mut self,
        connections: &Connections,
        leases: &[Lease],
        share: usize,
    ) -> redis::RedisResult<()> {
        for work in self.consumers.values() {
            if !leases.contains(&work.lease) {
                work.stop.send_replace(true);
            }
        }
        let surplus = leases.len().saturating_sub(share);
        let (wanted, surplus) = leases.split_at(leases.len() - surplus);
        for lease in surplus {
            match self.consumers.get(&lease.partition) {
                Some(work) => {
                    work.stop.send_replace(true);
                }
                None => {
                    connections.release(&self.site.instance, &[*lease]).await?;
                }
            }
        }
        for lease in wanted {
            // One of an older lease has to end first: it may have something in work.
            if !self.consumers.contains_key(&lease.partition) {
                self.start(*lease);
            }
        }
        Ok(())
    }

    fn start(&mut self, lease: Lease) {
        let (stop, stopping) = watch::channel(false);
        let consumer = Consumer::new(Arc::clone(&self.site), lease, stopping);
        let work = Work {
            lease,
            stop,
            id: self.tasks.spawn(consumer.run()).id(),
        };
        self.consumers.insert(lease.partition, work);
    }

    /// Ends the consumers and gives everything back, as far as Redis is there.
    async fn close(mut self) {
        for work in self.consumers.values() {
            work.stop.send_replace(true);
        }
        while let Some(ended) = self.tasks.join_next_with_id().await {
            self.ended(ended);
        }
        if let Ok(connections) = self.site.link.connections() {
            let given_back = async {
                connections.release(&self.site.instance, &self.free).await?;
                connections.leave(&self.site.instance).await
            };
            if let Err(error) = given_back.await {
                tracing::warn!(%error, "the broker's partitions were not given back; others take them when the leases end");
            }
        }
    }
}
