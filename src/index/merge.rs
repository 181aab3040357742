//! Makes one segment of several neighbouring ones, by sequential reads and writes in bounded memory.

use super::{
    IndexError, SegmentName, Settings, TopicNumber,
    format::{IdRecord, TopicRecord},
    segment::{Home, Segment},
};
use crate::limits::MERGE_STOP_CHECK_RECORDS;
use std::{
    collections::BinaryHeap,
    iter::Peekable,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// The size class of a segment: how many times `merge_fan_in` tails make it up, as a power.
pub(super) fn tier(events: u64, settings: &Settings) -> u32 {
    (events / settings.tail_events as u64)
        .max(1)
        .ilog(settings.merge_fan_in as u64)
}

/// The neighbours to merge next: `merge_fan_in` of one tier side by side, the smallest tier first and the oldest of
/// it, if together they stay below `max_events`. `segments` are in the order of the log.
pub(super) fn choose(
    segments: &[Arc<Segment>],
    settings: &Settings,
    max_events: u64,
) -> Option<Vec<Arc<Segment>>> {
    segments
        .windows(settings.merge_fan_in)
        .filter(|run| {
            let first = tier(run[0].events(), settings);
            run.iter().all(|segment| {
                tier(segment.events(), settings) == first
                    && segment.time_block_events() == settings.time_block_events
            }) && run
                .windows(2)
                .all(|pair| pair[0].name().last + 1 == pair[1].name().first)
                && run.iter().map(|segment| segment.events()).sum::<u64>() <= max_events
        })
        .min_by_key(|run| (tier(run[0].events(), settings), run[0].name().first))
        .map(<[_]>::to_vec)
}

/// Writes the merged segment. Ends with an error soon after `stop` is set.
pub(super) fn merge(
    home: &Home,
    sources: &[Arc<Segment>],
    number: u64,
    stop: &AtomicBool,
) -> Result<Segment, IndexError> {
    let names = sources.iter().map(|source| source.name());
    let (first, last) = (names.clone().map(|n| n.first).min(), names.map(|n| n.last).max());
    let (Some(first), Some(last)) = (first, last) else {
        return Err(IndexError::Io("nothing to merge".into()));
    };
    let name = SegmentName { number, first, last };
    let rebase: Vec<u32> = sources
        .iter()
        .map(|source| (source.name().first - first) as u32)
        .collect();

    let ids = until_stopped(MergedIds::new(sources, &rebase)?, stop);
    let postings = until_stopped(MergedPostings::new(sources, &rebase), stop);
    let times = sources.iter().flat_map(|source| source.times());
    home.write(name, ids, postings, times)
}

/// The records as they come, or an error soon after `stop` is set.
fn until_stopped<T>(
    records: impl Iterator<Item = Result<T, IndexError>>,
    stop: &AtomicBool,
) -> impl Iterator<Item = Result<T, IndexError>> {
    let mut until_check = 0u32;
    records.map(move |record| {
        until_check = until_check.wrapping_add(1);
        if until_check.is_multiple_of(MERGE_STOP_CHECK_RECORDS) && stop.load(Ordering::Relaxed) {
            return Err(IndexError::Io("the program is stopping".into()));
        }
        record
    })
}

/// The ids of all sources by key. Keys are unique in the whole index.
struct MergedIds<I> {
    sources: Vec<I>,
    /// The next id of each source that has one; the smallest key on top.
    next: BinaryHeap<std::cmp::Reverse<(IdRecord, usize)>>,
}

impl<'a> MergedIds<Box<dyn Iterator<Item = Result<IdRecord, IndexError>> + 'a>> {
    fn new(sources: &'a [Arc<Segment>], rebase: &'a [u32]) -> Result<Self, IndexError> {
        let mut merged = Self {
            sources: Vec::new(),
            next: BinaryHeap::new(),
        };
        for (i, (source, rebase)) in sources.iter().zip(rebase).enumerate() {
            let mut ids = source.ids().map(move |id| {
                id.map(|id| IdRecord {
                    offset: id.offset + rebase,
                    ..id
                })
            });
            if let Some(id) = ids.next() {
                merged.next.push(std::cmp::Reverse((id?, i)));
            }
            merged.sources.push(Box::new(ids) as _);
        }
        Ok(merged)
    }
}

impl<I: Iterator<Item = Result<IdRecord, IndexError>>> Iterator for MergedIds<I> {
    type Item = Result<IdRecord, IndexError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut top = self.next.peek_mut()?;
        let std::cmp::Reverse((id, source)) = *top;
        match self.sources[source].next() {
            Some(Ok(next)) => top.0 = (next, source),
            Some(Err(error)) => return Some(Err(error)),
            None => {
                std::collections::binary_heap::PeekMut::pop(top);
            }
        }
        Some(Ok(id))
    }
}

/// The postings of all sources: topic after topic, and of each topic source after source, which is the order of seqs.
struct MergedPostings<D: Iterator, P> {
    sources: Vec<PostingSource<D, P>>,
    topic: TopicNumber,
    /// The source that is being read, and how many postings of the topic it has left.
    current: usize,
    left: u32,
}

struct PostingSource<D: Iterator, P> {
    directory: Peekable<D>,
    postings: P,
    rebase: u32,
}

type Stream<'a, T> = Box<dyn Iterator<Item = Result<T, IndexError>> + 'a>;

impl<'a> MergedPostings<Stream<'a, TopicRecord>, Stream<'a, u32>> {
    fn new(sources: &'a [Arc<Segment>], rebase: &[u32]) -> Self {
        let sources: Vec<_> = sources
            .iter()
            .zip(rebase)
            .map(|(source, rebase)| PostingSource {
                directory: (Box::new(source.directory()) as Stream<'a, _>).peekable(),
                postings: Box::new(source.postings()) as Stream<'a, _>,
                rebase: *rebase,
            })
            .collect();
        Self {
            current: sources.len(),
            sources,
            topic: 0,
            left: 0,
        }
    }
}

impl<D, P> MergedPostings<D, P>
where
    D: Iterator<Item = Result<TopicRecord, IndexError>>,
    P: Iterator<Item = Result<u32, IndexError>>,
{
    /// Goes to the next source that has postings of the topic, or to the next topic; false at the end.
    fn advance(&mut self) -> Result<bool, IndexError> {
        loop {
            self.current += 1;
            if self.current >= self.sources.len() {
                let mut smallest = None;
                for source in &mut self.sources {
                    if let Some(Err(error)) = source.directory.next_if(Result::is_err) {
                        return Err(error);
                    }
                    if let Some(Ok(record)) = source.directory.peek() {
                        smallest = Some(smallest.map_or(record.topic, |topic: u32| topic.min(record.topic)));
                    }
                }
                let Some(topic) = smallest else { return Ok(false) };
                self.topic = topic;
                self.current = 0;
            }
            let topic = self.topic;
            let of_topic =
                |record: &Result<TopicRecord, _>| matches!(record, Ok(record) if record.topic == topic);
            if let Some(Ok(record)) = self.sources[self.current].directory.next_if(of_topic) {
                self.left = record.count;
                return Ok(true);
            }
        }
    }
}

impl<D, P> Iterator for MergedPostings<D, P>
where
    D: Iterator<Item = Result<TopicRecord, IndexError>>,
    P: Iterator<Item = Result<u32, IndexError>>,
{
    type Item = Result<(TopicNumber, u32), IndexError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.left == 0 {
            match self.advance() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => return Some(Err(error)),
            }
        }
        self.left -= 1;
        let source = &mut self.sources[self.current];
        let rebase = source.rebase;
        let topic = self.topic;
        Some(source.postings.next()?.map(|offset| (topic, offset + rebase)))
    }
}
