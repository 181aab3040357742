//! Tells other instances of commits, and this one's readers of theirs.
//!
//! A hint says that there may be more; it carries no events, and one that is lost costs a reader [`POSTGRES_POLL`]. It is
//! sent by a connection of its own, outside of commits: a NOTIFY within one would make all commits wait in line.
//!
//! [`POSTGRES_POLL`]: limits::POSTGRES_POLL

use super::{Background, Shared, failure, server};
use crate::{limits, store::Maintenance, wakeup::Wakeup};
use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering},
    },
};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_postgres::{AsyncMessage, Error};

/// Starts to tell and to listen, and calls `maintenance` now and then. All ends when the result is dropped.
pub(super) fn spawn(shared: &Arc<Shared>, wakeup: Wakeup, maintenance: Maintenance) -> Background {
    let hints = tokio::spawn(keep_exchanging(Arc::clone(shared), wakeup));
    let ticks = tokio::spawn(async move {
        let mut ticks = interval(limits::POSTGRES_MAINTENANCE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            maintenance();
        }
    });
    Background(vec![hints.abort_handle(), ticks.abort_handle()])
}

async fn keep_exchanging(shared: Arc<Shared>, wakeup: Wakeup) {
    let mut pause = limits::POSTGRES_BACKOFF_FIRST;
    let mut is_away = false;
    loop {
        match exchange(&shared, &wakeup, &mut is_away).await {
            Ok(impossible) => match impossible {},
            Err(error) if is_away => tracing::debug!(error = failure::chain(&error), "still no hints"),
            Err(error) => {
                is_away = true;
                pause = limits::POSTGRES_BACKOFF_FIRST;
                tracing::warn!(
                    server = %shared.server,
                    error = failure::chain(&error),
                    "no connection to exchange hints with other instances; it is tried again by itself"
                );
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(limits::POSTGRES_BACKOFF_MOST);
    }
}

/// Exchanges hints until the connection breaks.
async fn exchange(
    shared: &Arc<Shared>,
    wakeup: &Wakeup,
    is_away: &mut bool,
) -> Result<std::convert::Infallible, Error> {
    let (client, mut connection) = shared.server.connect_raw().await?;
    let (heard, mut hints) = tokio::sync::watch::channel(());
    // Filled in before there is anything to hear.
    let own_process = Arc::new(AtomicI32::new(0));
    let own = Arc::clone(&own_process);
    let driver = tokio::spawn(async move {
        loop {
            match poll_fn(|context| connection.poll_message(context)).await {
                Some(Ok(AsyncMessage::Notification(hint)))
                    if hint.process_id() == own.load(Ordering::Relaxed) => {}
                Some(Ok(AsyncMessage::Notification(_))) => drop(heard.send(())),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return,
            }
        }
    });
    let _ended = Background(vec![driver.abort_handle()]);
    server::set_up(&client).await?;
    let process: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
    own_process.store(process, Ordering::Relaxed);
    client.batch_execute("LISTEN oncelog").await?;
    if std::mem::take(is_away) {
        tracing::info!(server = %shared.server, "hints are exchanged with other instances again");
    }
    let mut committed = shared.own.subscribe();
    let mut polls = interval(limits::POSTGRES_POLL);
    polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known = None;
    loop {
        tokio::select! {
            changed = committed.changed() => {
                if changed.is_ok() {
                    client.batch_execute("NOTIFY oncelog").await?;
                    // Commits that end meanwhile are told of together.
                    sleep(limits::POSTGRES_NOTIFY_INTERVAL).await;
                }
                continue;
            }
            changed = hints.changed() => if changed.is_err() {
                // The driver has ended: whatever is asked next fails, and says why.
                client.batch_execute("").await?;
            },
            _ = polls.tick() => {}
        }
        let frontier = timeout(limits::POSTGRES_STATEMENT_TIMEOUT, shared.horizon()).await;
        let Ok(Ok(frontier)) = frontier else {
            // The maintenance of the writers says what is wrong; this connection may still be good.
            client.batch_execute("").await?;
            continue;
        };
        if known != Some(frontier) {
            known = Some(frontier);
            wakeup.announce(frontier.settled);
        }
    }
}
