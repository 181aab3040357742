//! Copies a store in a file into a PostgreSQL server: every event with its seq, every identity, every counter, the history
//! by which cursors are known, and the keys.
//!
//! Who is killed at any moment goes on where it was. What is done, in this order:
//!
//! | step | in the server | killed in it |
//! |---|---|---|
//! | begin ([`Target::begin`]) | the store's identity, and a row that says how far the copy is: instances are refused from now on | all of it or nothing |
//! | events | slice after slice, with the row that says how far it is, in one transaction | goes on with the first slice that is not there |
//! | check | nothing: each event is read back and compared | is done again |
//! | gone | the identities of events whose rows are gone, from the index segments | is done again; what is there stays |
//! | finish | topics, counters and history; the numbers of all tables are compared; the keys; instances are let in. It is looked once more whether the tables are still this store's | all of it or nothing |

use super::{OpenError, TopicStatus, Totals, postgres::Target, sqlite::Source};
use crate::{
    access::KeyFile,
    event::{Fingerprint, Key, Seq},
    index::{SegmentName, TopicNumber},
    limits,
};
use serde::Serialize;
use std::collections::BTreeMap;
use tokio::task::block_in_place;

/// An event as the log of a file has it, with what is derived of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedEvent {
    /// Its number.
    pub seq: Seq,
    /// Its topic's number.
    pub topic: TopicNumber,
    /// Its identity.
    pub key: Key,
    /// Its payload's value.
    pub fingerprint: Fingerprint,
    /// When it happened, in seconds since 1970 UTC, rounded down.
    pub seconds: i64,
    /// When it was committed, in microseconds since 1970 UTC.
    pub processed_at: i64,
    /// See [`crate::event::Event::event_id`].
    pub event_id: String,
    /// See [`crate::event::Event::timestamp`].
    pub timestamp: String,
    /// See [`crate::event::Event::source`].
    pub source: String,
    /// See [`crate::event::Event::payload`].
    pub payload: String,
}

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Events are copied; counted in events, those that an earlier run has copied included.
    Copy,
    /// Events are read back and compared; counted in events.
    Check,
}

/// What was copied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MigrationReport {
    /// Events.
    pub events: u64,
    /// Identities of events whose rows are gone.
    pub gone: u64,
    /// The highest seq; the next event gets the one after it.
    pub watermark: Seq,
    /// Topics with events.
    pub topics: u64,
    /// Duplicates that were counted, conflicts included.
    pub duplicates: u64,
    /// Conflicts that were counted.
    pub conflicts: u64,
    /// Keys.
    pub keys: u64,
    /// Events that an earlier run, which did not come to its end, had copied up to; 0 when there was none.
    pub resumed_after: Seq,
}

/// The tables of a store that are small enough to be written at the end, in one transaction.
#[derive(Debug)]
pub struct Rest<'a> {
    /// All topics with their counters, by number from 0.
    pub topics: Vec<TopicStatus>,
    /// The sums of their counters.
    pub totals: Totals,
    /// Events in the log.
    pub events: u64,
    /// The highest seq; there are as many identities.
    pub watermark: Seq,
    /// The keys, which are read at the very end.
    pub keys: &'a KeyFile,
}

/// Copies what is missing of the store in the file, and ends the copy. `progress` is told how far each step is. Needs a
/// runtime with several threads. The keys are read last: one that is revoked before the end stays revoked.
pub async fn migrate(
    source: &Source,
    mut target: Target,
    keys: &KeyFile,
    progress: &mut dyn FnMut(Step, u64, u64),
) -> Result<MigrationReport, OpenError> {
    let resumed_after = target.copied();
    copy(source, &mut target, progress).await?;
    let kept = check(source, &target, progress).await?;
    let gone = copy_gone(source, &target, &kept).await?;
    let totals = source.totals();
    let watermark = source.highest_seq();
    let events = watermark - gone;
    let rest = Rest {
        topics: source.topics(),
        totals,
        events,
        watermark,
        keys,
    };
    let keys = target.finish(&rest, source.branches()).await?;
    Ok(MigrationReport {
        events,
        gone,
        watermark,
        topics: totals.topics,
        duplicates: totals.duplicates,
        conflicts: totals.conflicts,
        keys,
        resumed_after,
    })
}

/// Copies what is not copied yet.
async fn copy(
    source: &Source,
    target: &mut Target,
    progress: &mut dyn FnMut(Step, u64, u64),
) -> Result<(), OpenError> {
    let high = source.highest_seq();
    progress(Step::Copy, target.copied(), high);
    while target.copied() < high {
        let slice = block_in_place(|| source.slice(target.copied() + 1))?;
        target.copy(&slice.events, slice.last).await?;
        progress(Step::Copy, slice.last, high);
    }
    Ok(())
}

/// Compares all events with those in the server. Returns how many rows the log has of each segment, by its number.
async fn check(
    source: &Source,
    target: &Target,
    progress: &mut dyn FnMut(Step, u64, u64),
) -> Result<BTreeMap<u64, u64>, OpenError> {
    let high = source.highest_seq();
    let mut segments = source.segments().iter().peekable();
    let mut kept = BTreeMap::new();
    let mut last = 0;
    while last < high {
        let slice = block_in_place(|| source.slice(last + 1))?;
        target.check(&slice.events, last + 1, slice.last).await?;
        for event in &slice.events {
            while segments.next_if(|segment| segment.last < event.seq).is_some() {}
            if let Some(segment) = segments.peek() {
                *kept.entry(segment.number).or_default() += 1;
            }
        }
        last = slice.last;
        progress(Step::Check, last, high);
    }
    Ok(kept)
}

/// Copies the identities of segments that lack rows, and returns how many rows are gone.
async fn copy_gone(source: &Source, target: &Target, kept: &BTreeMap<u64, u64>) -> Result<u64, OpenError> {
    let mut gone = 0;
    for &segment in source.segments() {
        let SegmentName { number, first, last } = segment;
        let lacking = last - first + 1 - kept.get(&number).copied().unwrap_or_default();
        if lacking == 0 {
            continue;
        }
        gone += lacking;
        let failed = |error| OpenError(format!("{}: {error}", source.index().display()));
        let identities = block_in_place(|| source.identities(segment))?;
        let mut all = identities.all();
        loop {
            let some = block_in_place(|| all.by_ref().take(limits::MIGRATION_SLICE_ROWS).collect());
            let some: Vec<_> = Result::map_err(some, failed)?;
            if some.is_empty() {
                break;
            }
            target.copy_identities(&some).await?;
        }
    }
    Ok(gone)
}
