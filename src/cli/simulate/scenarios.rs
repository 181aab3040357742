//! What an at-least-once producer does, each with what must come of it.
//!
//! A scenario returns what was counted in its answers, which it has checked, or what was wrong.

use super::producer::{Counts, Event, Lost, Run};
use std::sync::Arc;
use tokio::task::JoinSet;

/// Most events in a request of those scenarios whose requests have sizes of their own.
pub(super) const LARGEST_BATCH: u64 = 70;

pub(super) async fn three_times(run: &Run) -> Result<Counts, String> {
    let mut client = run.client();
    let event = run.new_events(1);
    let mut counts = run.publish(&mut client, &event).await?;
    counts.expect("first time", Counts::of(1, 0))?;
    for step in ["second time", "third time"] {
        counts += run
            .publish(&mut client, &event)
            .await?
            .expect(step, Counts::of(0, 1))?;
    }
    Ok(counts)
}

pub(super) async fn duplicates_inside_a_batch(run: &Run) -> Result<Counts, String> {
    let events = run.new_events(40);
    let mut batch: Vec<Event> = [&events[..], &events[..20], &events[..10]].concat();
    fastrand::shuffle(&mut batch);
    run.publish(&mut run.client(), &batch).await?.expect(
        "40 events, some of them repeated",
        Counts::of(40, LARGEST_BATCH - 40),
    )
}

pub(super) async fn old_and_new(run: &Run) -> Result<Counts, String> {
    let mut client = run.client();
    let old = run.new_events(30);
    let mut counts = run
        .publish(&mut client, &old)
        .await?
        .expect("30 new events", Counts::of(30, 0))?;
    let mut both = [old, run.new_events(20)].concat();
    fastrand::shuffle(&mut both);
    counts += run
        .publish(&mut client, &both)
        .await?
        .expect("the 30 with 20 new ones", Counts::of(20, 30))?;
    Ok(counts)
}

pub(super) async fn several_topics(run: &Run) -> Result<Counts, String> {
    let mut client = run.client();
    let events = run.one_id_in_every_topic();
    let count = events.len() as u64;
    let mut counts = run
        .publish(&mut client, &events)
        .await?
        .expect("the same id is another event in each topic", Counts::of(count, 0))?;
    counts += run
        .publish(&mut client, &events)
        .await?
        .expect("the same again", Counts::of(0, count))?;
    Ok(counts)
}

/// The first payload stays; the other one is a duplicate and a conflict.
pub(super) async fn conflict(run: &Run) -> Result<Counts, String> {
    let mut client = run.client();
    let first = run.new_events(1)[0];
    let other = Event { version: 2, ..first };
    let mut counts = run
        .publish(&mut client, &[first])
        .await?
        .expect("first payload", Counts::of(1, 0))?;
    let expected = Counts {
        conflicts: 1,
        ..Counts::of(0, 1)
    };
    counts += run
        .publish(&mut client, &[other])
        .await?
        .expect("other payload", expected)?;
    let path = format!("/events/{}/{}", first.topic, run.event_id(&first));
    let answer = client.get(&path).await.map_err(|error| error.to_string())?;
    let stored: serde_json::Value = client.read(&answer).map_err(|error| error.to_string())?;
    match stored["payload"]["version"].as_u64() {
        Some(1) => Ok(counts),
        _ => Err(format!("the first payload did not stay: {}", stored["payload"])),
    }
}

/// Every connection sends the same events, each in an order of its own: each event must be accepted exactly once.
pub(super) async fn race(run: &Arc<Run>) -> Result<Counts, String> {
    let batch = run.batch.any();
    // Whole batches.
    let unique = (run.events / 4 / run.connections / batch).max(1) * batch;
    let events = run.new_events(unique);
    let counts = on_every_connection(run, |run| {
        let mut events = events.clone();
        fastrand::shuffle(&mut events);
        async move {
            let mut client = run.client();
            let mut counts = Counts::default();
            for batch in events.chunks(batch as usize) {
                counts += run.publish(&mut client, batch).await?;
            }
            Ok(counts)
        }
    })
    .await?;
    let sent = unique * run.connections;
    counts.expect("all connections together", Counts::of(unique, sent - unique))
}

/// The answer was on its way when the connection broke: all was committed, so all that is sent again is a duplicate.
pub(super) async fn lost_answer(run: &Run) -> Result<Counts, String> {
    let events = run.new_events(run.batch.any());
    run.publish_and_drop(&events, Lost::Answered).await?;
    let count = events.len() as u64;
    let mut counts = Counts::of(count, 0);
    counts += run
        .publish(&mut run.client(), &events)
        .await?
        .expect("sent again", Counts::of(0, count))?;
    Ok(counts)
}

/// The connection broke as soon as the request was written: the server may have taken it or not, but in the end each
/// event is there once.
pub(super) async fn broken_connection(run: &Run) -> Result<Counts, String> {
    let mut client = run.client();
    let mut counts = Counts::default();
    for _ in 0..10 {
        let events = run.new_events(run.batch.any());
        let count = events.len() as u64;
        run.publish_and_drop(&events, Lost::Unanswered).await?;
        let again = run.publish(&mut client, &events).await?;
        if again != Counts::of(count, 0) && again != Counts::of(0, count) {
            return Err(format!(
                "sent again: answered {again}; a request is stored whole or not at all"
            ));
        }
        // Which of the two came first, nobody knows; behind both, a third finds every event.
        run.publish(&mut client, &events)
            .await?
            .expect("sent a third time", Counts::of(0, count))?;
        counts += Counts {
            unanswered: count,
            ..Counts::of(count, count)
        };
    }
    Ok(counts)
}

/// Each connection is a producer that sends new events together with some that it has sent before; together they send
/// `events` or a few more.
pub(super) async fn bulk(run: &Arc<Run>, events: u64) -> Result<Counts, String> {
    let enough = events.div_ceil(run.connections);
    on_every_connection(run, |run| async move {
        let mut client = run.client();
        let mut counts = Counts::default();
        let mut sent: Vec<Event> = Vec::new();
        loop {
            let size = run.batch.any();
            let resent = run.resent_of(size);
            let new = run.new_events(size - resent);
            let pool = if sent.is_empty() { &new } else { &sent };
            let resent = (0..resent).map(|_| pool[fastrand::usize(..pool.len())]);
            let mut batch: Vec<Event> = resent.chain(new.iter().copied()).collect();
            fastrand::shuffle(&mut batch);
            counts += run
                .publish(&mut client, &batch)
                .await?
                .expect("a batch", expected(new.len(), batch.len()))?;
            sent.extend(new);
            if counts.received >= enough {
                return Ok(counts);
            }
        }
    })
    .await
}

fn expected(new: usize, all: usize) -> Counts {
    Counts::of(new as u64, (all - new) as u64)
}

/// Runs `work` once for each connection, all at the same time, and adds up what they counted.
async fn on_every_connection<F>(run: &Arc<Run>, work: impl Fn(Arc<Run>) -> F) -> Result<Counts, String>
where
    F: Future<Output = Result<Counts, String>> + Send + 'static,
{
    let mut connections = JoinSet::new();
    for _ in 0..run.connections {
        connections.spawn(work(run.clone()));
    }
    let mut total = Counts::default();
    while let Some(counts) = connections.join_next().await {
        total += counts.map_err(|error| error.to_string())??;
    }
    Ok(total)
}
