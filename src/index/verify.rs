//! Checks a segment file from end to end, against the log where the log still has its rows.

use super::{
    Entry, IndexError, SegmentName, Settings, TopicNumber,
    disk::Disk,
    segment::{Home, Segment},
};
use std::{collections::HashMap, path::Path};

/// Checks a whole segment file: every block's checksum, that ids, topics and times are complete and in order, and,
/// given the segment's events in the order of the log, that it says of each what the log says. Returns the number of
/// ids, or what is wrong.
pub fn verify(
    folder: &Path,
    store: u128,
    segment: SegmentName,
    settings: Settings,
    entries: Option<&mut dyn Iterator<Item = Result<Entry, String>>>,
) -> Result<u64, String> {
    let home = Home {
        folder: folder.to_owned(),
        store,
        settings,
        disk: Disk::default(),
    };
    let segment = home.open(segment).map_err(|error| error.to_string())?;
    check(&segment, entries).map_err(|problem| match problem {
        Problem::Index(error) => error.to_string(),
        Problem::Content(reason) => IndexError::Damaged {
            segment: segment.name(),
            reason,
        }
        .to_string(),
    })
}

enum Problem {
    Index(IndexError),
    Content(String),
}

impl From<IndexError> for Problem {
    fn from(error: IndexError) -> Self {
        Self::Index(error)
    }
}

fn check(
    segment: &Segment,
    entries: Option<&mut dyn Iterator<Item = Result<Entry, String>>>,
) -> Result<u64, Problem> {
    let content = |reason: String| Err(Problem::Content(reason));
    segment.check_blocks()?;

    let events = segment.events();
    let mut seen = vec![false; events as usize];
    let mut last = None;
    let mut ids = 0u64;
    for id in segment.ids() {
        let id = id?;
        if last >= Some(id.key) {
            return content(format!("id {ids} is out of order"));
        }
        if ids.is_multiple_of(segment.ids_per_block())
            && segment.fences().get((ids / segment.ids_per_block()) as usize) != Some(&id.key.high)
        {
            return content(format!("the fence of id {ids} is wrong"));
        }
        if !segment.may_contain(id.key) {
            return content(format!("the filter denies id {ids}"));
        }
        match seen.get_mut(id.offset as usize) {
            Some(seen) if !*seen => *seen = true,
            _ => {
                return content(format!(
                    "id {ids} points to event {}, which is not its own",
                    id.offset
                ));
            }
        }
        last = Some(id.key);
        ids += 1;
    }

    let topics = check_topics(segment)?;
    let Some(entries) = entries else { return Ok(ids) };
    let mut next: HashMap<TopicNumber, std::slice::Iter<'_, u32>> = topics
        .iter()
        .map(|(topic, offsets)| (*topic, offsets.iter()))
        .collect();
    let name = segment.name();
    let mut entries = entries.peekable();
    let mut block = segment.times_of(name.first)?;
    let mut span: Option<(i64, i64)> = None;
    for seq in name.first..=name.last {
        let entry = match entries.next() {
            Some(entry) => entry.map_err(Problem::Content)?,
            None => return content(format!("the log has no event {seq}")),
        };
        match segment.find(entry.key)? {
            Some(found) if found.seq == seq && found.fingerprint == entry.fingerprint => {}
            found => return content(format!("event {seq} is found as {found:?}")),
        }
        let offset = (seq - name.first) as u32;
        if next.get_mut(&entry.topic).and_then(Iterator::next) != Some(&offset) {
            return content(format!("topic {} does not list event {seq}", entry.topic));
        }
        if seq > block.last {
            block = segment.times_of(seq)?;
            span = None;
        }
        let (min, max) = span.unwrap_or((entry.seconds, entry.seconds));
        span = Some((min.min(entry.seconds), max.max(entry.seconds)));
        if seq == block.last && span != Some((block.min, block.max)) {
            return content(format!(
                "the times of events {} to {} are wrong",
                block.first, block.last
            ));
        }
    }
    Ok(ids)
}

/// The offsets of every topic, each event in exactly one.
fn check_topics(segment: &Segment) -> Result<HashMap<TopicNumber, Vec<u32>>, Problem> {
    let content = |reason: String| Err(Problem::Content(reason));
    let mut topics = HashMap::new();
    let mut postings = segment.postings();
    let mut start = 0;
    let mut last = None;
    for record in segment.directory() {
        let record = record?;
        if last >= Some(record.topic) || record.start != start || record.count == 0 {
            return content(format!("the directory is wrong at topic {}", record.topic));
        }
        let offsets = postings
            .by_ref()
            .take(record.count as usize)
            .collect::<Result<Vec<u32>, IndexError>>()?;
        let in_order = offsets.windows(2).all(|pair| pair[0] < pair[1]);
        let inside = offsets
            .last()
            .is_none_or(|last| u64::from(*last) < segment.events());
        if offsets.len() != record.count as usize || !in_order || !inside {
            return content(format!("the events of topic {} are wrong", record.topic));
        }
        start += u64::from(record.count);
        last = Some(record.topic);
        topics.insert(record.topic, offsets);
    }
    if start == segment.events() {
        Ok(topics)
    } else {
        content(format!("only {start} events have a topic"))
    }
}
