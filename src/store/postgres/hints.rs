//! Tells other instances of commits, and this one's readers of theirs.
//!
//! A hint says that there may be more; it carries no events, and one that is lost costs a reader [`POSTGRES_POLL`], for the
//! store is looked at without hints too. They are sent by a connection of its own, outside of commits: a NOTIFY within one
//! would make all commits wait in line.
//!
//! [`POSTGRES_POLL`]: limits::POSTGRES_POLL

use super::{Background, Shared, failure, server};
use crate::{limits, store::Maintenance, wakeup::Wakeup};
use std::{
    convert::Infallible,
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{Interval, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_postgres::{AsyncMessage, Client, Error};

/// Starts to tell, to listen and to look, and calls `maintenance` now and then. All ends when the result is dropped.
pub(super) fn spawn(shared: &Arc<Shared>, wakeup: Wakeup, maintenance: Maintenance) -> Background {
    let heard = Arc::new(Notify::new());
    let hints = tokio::spawn(keep_exchanging(Arc::clone(shared), Arc::clone(&heard)));
    let looks = tokio::spawn(keep_looking(Arc::clone(shared), heard, wakeup));
    let ticks = tokio::spawn(async move {
        let mut ticks = unhurried(limits::POSTGRES_MAINTENANCE);
        loop {
            ticks.tick().await;
            maintenance();
        }
    });
    Background(vec![
        hints.abort_handle(),
        looks.abort_handle(),
        ticks.abort_handle(),
    ])
}

/// Ticks that are late are not made up for.
fn unhurried(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Looks for what was committed: when a hint was heard, and now and then without one. Hints that come meanwhile are one.
async fn keep_looking(shared: Arc<Shared>, heard: Arc<Notify>, wakeup: Wakeup) {
    let mut polls = unhurried(limits::POSTGRES_POLL);
    let mut known = None;
    loop {
        tokio::select! {
            () = heard.notified() => {}
            _ = polls.tick() => {}
        }
        // If it fails, the maintenance of the writers says what is wrong.
        if let Ok(Ok(frontier)) = timeout(limits::POSTGRES_STATEMENT_TIMEOUT, shared.horizon()).await
            && known != Some(frontier)
        {
            known = Some(frontier);
            wakeup.announce(frontier.settled);
        }
    }
}

async fn keep_exchanging(shared: Arc<Shared>, heard: Arc<Notify>) {
    let mut pause = limits::POSTGRES_BACKOFF_FIRST;
    let mut is_away = false;
    loop {
        match exchange(&shared, &heard, &mut is_away).await {
            Ok(impossible) => match impossible {},
            Err(gone) if is_away => tracing::debug!(error = gone.text(), "still no hints"),
            Err(gone) => {
                is_away = true;
                pause = limits::POSTGRES_BACKOFF_FIRST;
                tracing::warn!(
                    server = %shared.server,
                    error = gone.text(),
                    "no connection to exchange hints with other instances; it is tried again by itself"
                );
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(limits::POSTGRES_BACKOFF_MOST);
    }
}

/// Exchanges hints until the connection breaks.
async fn exchange(shared: &Shared, heard: &Arc<Notify>, is_away: &mut bool) -> Result<Infallible, Gone> {
    let listening = timeout(limits::POSTGRES_CONNECT_TIMEOUT, Listening::begin(shared, heard));
    let mut listening = listening.await.map_err(|_| Gone::Silent)??;
    if std::mem::take(is_away) {
        tracing::info!(server = %shared.server, "hints are exchanged with other instances again");
    }
    let mut committed = shared.own.subscribe();
    loop {
        tokio::select! {
            // Only with the store itself its sender goes, and this ends with the store.
            _ = committed.changed() => {}
            ended = &mut listening.driver => return Err(ended.unwrap_or(Gone::Closed)),
        }
        let told = listening.client.batch_execute("NOTIFY oncelog");
        timeout(limits::POSTGRES_STATEMENT_TIMEOUT, told)
            .await
            .map_err(|_| Gone::Silent)??;
        // Commits that end meanwhile are told of together.
        sleep(limits::POSTGRES_NOTIFY_INTERVAL).await;
    }
}

/// A connection that hears what other instances tell; it is closed when this is dropped.
struct Listening {
    client: Client,
    /// Ends with the connection.
    driver: JoinHandle<Gone>,
}

impl Listening {
    async fn begin(shared: &Shared, heard: &Arc<Notify>) -> Result<Self, Error> {
        let (client, mut connection) = shared.server.connect_raw().await?;
        // Filled in before there is anything to hear.
        let own_process = Arc::new(AtomicI32::new(0));
        let (own, listener) = (Arc::clone(&own_process), Arc::clone(heard));
        let driver = tokio::spawn(async move {
            loop {
                match poll_fn(|context| connection.poll_message(context)).await {
                    Some(Ok(AsyncMessage::Notification(hint)))
                        if hint.process_id() == own.load(Ordering::Relaxed) => {}
                    Some(Ok(AsyncMessage::Notification(_))) => listener.notify_one(),
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Gone::Failed(error),
                    None => return Gone::Closed,
                }
            }
        });
        let listening = Self { client, driver };
        let client = &listening.client;
        server::set_up(client).await?;
        let process: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
        own_process.store(process, Ordering::Relaxed);
        client.batch_execute("LISTEN oncelog").await?;
        // For what came while nobody listened.
        heard.notify_one();
        Ok(listening)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Why no hints come any more.
enum Gone {
    Failed(Error),
    /// There was no answer in time.
    Silent,
    Closed,
}

impl Gone {
    fn text(&self) -> String {
        match self {
            Self::Failed(error) => failure::chain(error),
            Self::Silent => "there was no answer in time".into(),
            Self::Closed => "the connection was closed".into(),
        }
    }
}

impl From<Error> for Gone {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}
