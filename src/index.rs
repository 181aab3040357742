//! The index beside the log: finds events by identity, topic and time, and touches no random page to do so.
//!
//! A B-tree over random keys dirties a page for every insert; that is what makes a store that drops duplicates slow.
//! So the log is only ever appended to, and everything that finds events in it is derived from it and kept here. This
//! module knows nothing of SQL or HTTP: it is told of events in the order of the log, and asked for their seqs.
//!
//! # The structure
//!
//! ```text
//! seq 1                                                              newest
//! |-- segment (tier 2) --|- segment (tier 1) -|- s -|- s -|- frozen -|- tail -|
//!            immutable files, merged six to one             in memory
//! ```
//!
//! - The **tail** indexes the newest events in memory. When it is full it is **frozen** and a new one takes over; a
//!   thread writes the frozen one as a **segment** file.
//! - Six neighbouring segments of one tier are **merged** into one of the next by another thread, so that there are
//!   at most five of each tier for long, and an entry is rewritten once a tier.
//! - Which segments count is not decided here but listed by the store, in the same transactions as the log: background
//!   work makes a [`Change`], the store lists it, and only then [`Index::apply`] puts it to use.
//!
//! # Invariants
//!
//! 1. Segments, frozen tails and the tail cover the log from seq 1 without gaps or overlaps, in this order.
//! 2. A file that is listed is complete and synced, and so is its folder. It never changes.
//! 3. Every key stands in exactly one place.
//! 4. Every block that is read is checked. Damage is an error, never an answer.
//!
//! # Crash points
//!
//! | the program dies | what is left | what the next [`Index::open`] does |
//! |---|---|---|
//! | with events in a tail, frozen or not | the log has them | the store appends them again |
//! | while a segment file is written, or before its sync | an unlisted file | removes it |
//! | after the sync, before it is listed | the same | the same; the tail or the merged segments are still the truth |
//! | after it is listed, before [`Index::apply`] | a listed file; for a merge also its sources, now unlisted | opens it; removes the sources |
//! | while the sources of a merge are removed | some of them | removes the rest |
//! | – (a write fails and the program goes on) | nothing: what was begun is removed; it is tried again, later each time | – |
//! | while an unusable segment is rebuilt | unlisted new files | removes them; the segment is still unusable and is rebuilt again |
//!
//! Files are named for their store, so those of another one, and whatever else is in the folder, are left alone.

mod background;
mod block;
mod disk;
mod filter;
mod format;
mod identities;
mod merge;
mod segment;
mod tail;
#[cfg(test)]
mod tests;
mod types;
mod verify;
mod write;

pub use identities::Identities;
pub use types::{
    Change, Direction, Effort, Entry, Figures, Found, IndexError, SegmentName, Settings, TimeBlock,
    TopicNumber, Unusable,
};
pub use verify::verify;

use crate::{
    event::{Key, Seq},
    faults::{self, CrashPoint},
};
use background::{Background, Finished};
use disk::Disk;
use segment::{Home, Segment, io_error};
use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::AtomicU64,
    },
    time::Duration,
};
use tail::Tail;

/// The index of one store. Shared by the writer, who alone appends and applies, and any number of readers. Dropping it
/// stops the background work; what was not finished is done again after the next [`Index::open`].
pub struct Index {
    shared: Arc<Shared>,
    background: Background,
}

/// What the index's threads share.
struct Shared {
    home: Home,
    state: RwLock<State>,
    /// Changes that are ready to be listed, in the order in which they became so.
    finished: Mutex<VecDeque<Finished>>,
    /// Told when `finished` or `trouble` changes.
    progress: Condvar,
    /// Why the newest try to seal a tail failed; it is tried again.
    trouble: Mutex<Option<String>>,
    next_number: AtomicU64,
    seals: Mutex<Effort>,
    merges: Mutex<Effort>,
    ready: Arc<dyn Fn() + Send + Sync>,
}

/// What the index is made of, in the order of the log.
struct State {
    segments: Vec<Arc<Segment>>,
    /// Listed segments that have to be rebuilt.
    unusable: Vec<Unusable>,
    frozen: VecDeque<Arc<Tail>>,
    tail: Tail,
}

impl Index {
    /// Opens the folder (made when it is missing), with the segments that the store lists. Files of this store that
    /// are not listed are removed, anything else is left alone. Segments that cannot be used are returned: until each
    /// is replaced ([`Index::rebuild`]), whatever needs it is an [`IndexError::Damaged`].
    ///
    /// The listed segments cover the log from seq 1 without gaps; the caller goes on with [`Index::append`] for all
    /// events behind them. `ready` is called, from any thread, when [`Index::finished`] or [`Index::unusable`] has
    /// something new.
    pub fn open(
        folder: &Path,
        store: u128,
        listed: &[SegmentName],
        settings: Settings,
        ready: Arc<dyn Fn() + Send + Sync>,
    ) -> Result<(Self, Vec<Unusable>), IndexError> {
        let home = Home {
            folder: folder.to_owned(),
            store,
            settings,
            disk: Disk::default(),
        };
        Self::open_at(home, listed, ready)
    }

    fn open_at(
        home: Home,
        listed: &[SegmentName],
        ready: Arc<dyn Fn() + Send + Sync>,
    ) -> Result<(Self, Vec<Unusable>), IndexError> {
        make_folder(&home)?;
        let mut listed = listed.to_vec();
        listed.sort_unstable_by_key(|name| name.first);
        remove_unlisted(&home, &listed)?;
        let mut segments = Vec::with_capacity(listed.len());
        let mut unusable = Vec::new();
        for name in &listed {
            match home.open(*name) {
                Ok(segment) => segments.push(Arc::new(segment)),
                Err(IndexError::Damaged { segment, reason }) => unusable.push(Unusable { segment, reason }),
                Err(error) => return Err(error),
            }
        }
        let first = listed.last().map_or(1, |name| name.last + 1);
        let tail = Tail::new(first, home.settings.tail_events, home.settings.time_block_events);
        let next_number = listed.iter().map(|name| name.number).max().unwrap_or(0) + 1;
        let state = State {
            segments,
            unusable: unusable.clone(),
            frozen: VecDeque::new(),
            tail,
        };
        let shared = Arc::new(Shared {
            home,
            state: RwLock::new(state),
            finished: Mutex::default(),
            progress: Condvar::new(),
            trouble: Mutex::default(),
            next_number: next_number.into(),
            seals: Mutex::default(),
            merges: Mutex::default(),
            ready,
        });
        let background = Background::start(&shared)
            .map_err(|error| IndexError::Io(format!("cannot start a thread: {error}")))?;
        Ok((Self { shared, background }, unusable))
    }

    /// Adds the next events of the log, which are committed. Never waits; see [`Index::wait_for_room`].
    pub fn append(&self, entries: &[Entry]) {
        let mut state = self.shared.write();
        let settings = &self.shared.home.settings;
        for entry in entries {
            state.tail.append(entry);
            if state.tail.len() == settings.tail_events {
                let next = Tail::new(state.tail.end(), settings.tail_events, settings.time_block_events);
                let full = Arc::new(std::mem::replace(&mut state.tail, next));
                state.frozen.push_back(Arc::clone(&full));
                self.background.seal(full);
            }
        }
    }

    /// Waits, before a commit of up to `events` events, while too many frozen tails wait to be sealed.
    ///
    /// `Ok(true)`: there is room. `Ok(false)`: [`Index::finished`] has a change to be listed first. An error when
    /// sealing fails (it is tried again by itself), or when nothing was finished within `timeout`.
    pub fn wait_for_room(&self, events: usize, timeout: Duration) -> Result<bool, IndexError> {
        if self.has_room(events) {
            return Ok(true);
        }
        let guard = lock(&self.shared.finished);
        let (finished, waited) = self
            .shared
            .progress
            .wait_timeout_while(guard, timeout, |finished| {
                finished.is_empty() && lock(&self.shared.trouble).is_none()
            })
            .unwrap_or_else(PoisonError::into_inner);
        if !finished.is_empty() {
            return Ok(false);
        }
        match lock(&self.shared.trouble).clone() {
            Some(trouble) => Err(IndexError::Io(format!("the index cannot be written: {trouble}"))),
            None if waited.timed_out() => Err(IndexError::Io(format!(
                "the index was not written within {} s: the disk is too slow",
                timeout.as_secs()
            ))),
            // The trouble came and went meanwhile.
            None => Ok(self.has_room(events)),
        }
    }

    fn has_room(&self, events: usize) -> bool {
        let state = self.shared.read();
        let settings = &self.shared.home.settings;
        state.frozen.len() < settings.max_frozen_tails || state.tail.len() + events < settings.tail_events
    }

    /// For each key, where it stands, if it is there; in the order asked.
    pub fn lookup(&self, keys: &[Key]) -> Result<Vec<Option<Found>>, IndexError> {
        let mut found = vec![None; keys.len()];
        let (frozen, segments, unusable) = {
            let state = self.shared.read();
            for (key, found) in keys.iter().zip(&mut found) {
                *found = state.tail.find(*key);
            }
            (
                state.frozen.clone(),
                state.segments.clone(),
                state.unusable.first().cloned(),
            )
        };
        let mut missing: Vec<u32> = (0..keys.len() as u32)
            .filter(|i| found[*i as usize].is_none())
            .collect();
        for tail in frozen.iter().rev() {
            missing.retain(|i| {
                found[*i as usize] = tail.find(keys[*i as usize]);
                found[*i as usize].is_none()
            });
        }
        // Segment by segment, and the filter first for all keys: the probes do not depend on each other, so the
        // processor overlaps their cache misses.
        let mut candidates: Vec<u32> = Vec::new();
        for segment in segments.iter().rev() {
            candidates.clear();
            candidates.extend(missing.iter().filter(|i| segment.may_contain(keys[**i as usize])));
            let mut any = false;
            for i in &candidates {
                found[*i as usize] = segment
                    .find(keys[*i as usize])
                    .inspect_err(|error| self.shared.note_damage(error))?;
                any |= found[*i as usize].is_some();
            }
            if any {
                missing.retain(|i| found[*i as usize].is_none());
            }
        }
        match unusable {
            Some(unusable) if !missing.is_empty() => Err(unusable.into()),
            _ => Ok(found),
        }
    }

    /// Up to `limit` events of a topic, in `direction`, from the first one beyond `position` (which is not included).
    pub fn topic_seqs(
        &self,
        topic: TopicNumber,
        direction: Direction,
        position: Seq,
        limit: usize,
    ) -> Result<Vec<Seq>, IndexError> {
        let mut newest = Vec::new();
        let (frozen, segments, unusable) = {
            let state = self.shared.read();
            state
                .tail
                .topic_seqs(topic, direction, position, limit, &mut newest);
            (
                state.frozen.clone(),
                state.segments.clone(),
                state.unusable.clone(),
            )
        };
        let mut seqs = Vec::new();
        match direction {
            Direction::Down => {
                seqs = newest;
                for tail in frozen.iter().rev() {
                    tail.topic_seqs(topic, direction, position, limit - seqs.len(), &mut seqs);
                }
                for segment in segments
                    .iter()
                    .rev()
                    .filter(|segment| segment.name().first < position)
                {
                    if seqs.len() == limit {
                        break;
                    }
                    segment
                        .topic_seqs(topic, direction, position, limit - seqs.len(), &mut seqs)
                        .inspect_err(|error| self.shared.note_damage(error))?;
                }
            }
            Direction::Up => {
                for segment in segments.iter().filter(|segment| segment.name().last > position) {
                    if seqs.len() == limit {
                        break;
                    }
                    segment
                        .topic_seqs(topic, direction, position, limit - seqs.len(), &mut seqs)
                        .inspect_err(|error| self.shared.note_damage(error))?;
                }
                for tail in &frozen {
                    tail.topic_seqs(topic, direction, position, limit - seqs.len(), &mut seqs);
                }
                newest.truncate(limit - seqs.len());
                seqs.append(&mut newest);
            }
        }
        // An unusable segment matters if the answer reaches into or past it.
        let end = seqs.last().copied().filter(|_| seqs.len() == limit);
        let reached = |name: &SegmentName| match direction {
            Direction::Up => name.last > position && end.is_none_or(|end| name.first <= end),
            Direction::Down => name.first < position && end.is_none_or(|end| name.last >= end),
        };
        match unusable.into_iter().find(|unusable| reached(&unusable.segment)) {
            Some(unusable) => Err(unusable.into()),
            None => Ok(seqs),
        }
    }

    /// The block of events around `seq` with its smallest and largest time; `None` beyond the last event.
    pub fn times_of(&self, seq: Seq) -> Result<Option<TimeBlock>, IndexError> {
        let segment = {
            let state = self.shared.read();
            if seq >= state.tail.first() {
                return Ok(state.tail.times_of(seq));
            }
            if let Some(times) = state.frozen.iter().find_map(|tail| tail.times_of(seq)) {
                return Ok(Some(times));
            }
            let contains = |name: SegmentName| name.first <= seq && seq <= name.last;
            if let Some(unusable) = state.unusable.iter().find(|unusable| contains(unusable.segment)) {
                return Err(unusable.clone().into());
            }
            state
                .segments
                .iter()
                .find(|segment| contains(segment.name()))
                .cloned()
        };
        segment
            .map(|segment| {
                segment
                    .times_of(seq)
                    .inspect_err(|error| self.shared.note_damage(error))
            })
            .transpose()
    }

    /// A change that background work has made ready to be listed. The same one is returned until it is applied.
    pub fn finished(&self) -> Option<Change> {
        let state = self.shared.read();
        let mut finished = lock(&self.shared.finished);
        while let Some(next) = finished.front() {
            if next.removes_only_what_is_there(&state) {
                return Some(next.change());
            }
            // A merge and a rebuild replaced the same segment; the first one listed wins.
            for segment in &next.add {
                self.shared.home.remove(segment.name());
            }
            finished.pop_front();
            // As long as a merge waited to be listed, no other one was begun.
            self.background.look_for_merges();
        }
        None
    }

    /// The change that [`Index::finished`] returned is listed, durably: from now on the index uses the new files, and
    /// removes the old ones.
    pub fn apply(&self, change: &Change) {
        let (applied, sealed_tails) = {
            let mut state = self.shared.write();
            let mut finished = lock(&self.shared.finished);
            if finished.front().is_none_or(|next| next.change() != *change) {
                return;
            }
            let Some(next) = finished.pop_front() else { return };
            let replaced = |name: SegmentName| next.remove.contains(&name);
            state.segments.retain(|segment| !replaced(segment.name()));
            state.unusable.retain(|unusable| !replaced(unusable.segment));
            state.segments.extend(next.add.iter().cloned());
            state
                .segments
                .sort_unstable_by_key(|segment| segment.name().first);
            let sealed = state.segments.last().map_or(0, |segment| segment.name().last);
            let count = state
                .frozen
                .iter()
                .take_while(|tail| tail.end() - 1 <= sealed)
                .count();
            let sealed_tails: Vec<_> = state.frozen.drain(..count).collect();
            (next, sealed_tails)
        };
        // Freed here, where nobody waits for the lock.
        drop(sealed_tails);
        for name in applied.remove {
            self.shared.home.remove(name);
            faults::reached(CrashPoint::SourceRemoved);
        }
        self.background.look_for_merges();
    }

    /// Builds an unusable segment anew from its events, which `entries` returns in the order of the log, all of them.
    /// When this returns, [`Index::finished`] has the change, to be listed and applied like any other.
    pub fn rebuild<E: From<IndexError>>(
        &self,
        segment: SegmentName,
        mut entries: impl Iterator<Item = Result<Entry, E>>,
    ) -> Result<(), E> {
        let mut add = Vec::new();
        match self.rebuild_pieces(segment, &mut entries, &mut add) {
            Ok(()) => {
                faults::reached(CrashPoint::RebuildDone);
                self.shared.finish(Finished {
                    remove: vec![segment],
                    add,
                });
                Ok(())
            }
            Err(error) => {
                for piece in add {
                    self.shared.home.remove(piece.name());
                }
                Err(error)
            }
        }
    }

    fn rebuild_pieces<E: From<IndexError>>(
        &self,
        segment: SegmentName,
        entries: &mut impl Iterator<Item = Result<Entry, E>>,
        add: &mut Vec<Arc<Segment>>,
    ) -> Result<(), E> {
        let settings = &self.shared.home.settings;
        let mut first = segment.first;
        while first <= segment.last {
            let events = (segment.last - first + 1).min(settings.tail_events as u64) as usize;
            let mut tail = Tail::new(first, events, settings.time_block_events);
            for entry in entries.by_ref().take(events) {
                tail.append(&entry?);
            }
            if tail.len() < events {
                let missing = IndexError::Io(format!("the log has no event {}", tail.end()));
                return Err(missing.into());
            }
            first = tail.end();
            add.push(Arc::new(self.shared.write_tail(&tail)?));
        }
        Ok(())
    }

    /// The listed segments that are known to be missing or damaged and are not replaced yet.
    pub fn unusable(&self) -> Vec<Unusable> {
        self.shared.read().unusable.clone()
    }

    /// Renames the file of an unusable segment that cannot be rebuilt, so that nothing removes it; returns its new
    /// path, or `None` when there is no file.
    pub fn set_aside(&self, segment: SegmentName) -> Result<Option<PathBuf>, IndexError> {
        let path = self.path_of(segment);
        let aside = path.with_extension("segment.damaged");
        match self.shared.home.disk.rename(&path, &aside) {
            Ok(()) => Ok(Some(aside)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error("rename", &path, &error)),
        }
    }

    /// Where the file of a segment is.
    fn path_of(&self, segment: SegmentName) -> PathBuf {
        self.shared.home.path(segment)
    }

    /// Figures for metrics.
    pub fn figures(&self) -> Figures {
        let state = self.shared.read();
        let frozen: usize = state.frozen.iter().map(|tail| tail.len()).sum();
        let tail_events = (state.tail.len() + frozen) as u64;
        let mut tier_segments = vec![0];
        for segment in &state.segments {
            let tier = merge::tier(segment.events(), &self.shared.home.settings) as usize;
            if tier_segments.len() <= tier {
                tier_segments.resize(tier + 1, 0);
            }
            tier_segments[tier] += 1;
        }
        Figures {
            ids: tail_events + state.segments.iter().map(|segment| segment.events()).sum::<u64>(),
            tail_events,
            tier_segments,
            segment_bytes: state.segments.iter().map(|segment| segment.bytes()).sum(),
            filter_bytes: state.segments.iter().map(|segment| segment.memory_bytes()).sum(),
            seals: *lock(&self.shared.seals),
            merges: *lock(&self.shared.merges),
        }
    }
}

impl Shared {
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a tail as a segment file.
    fn write_tail(&self, tail: &Tail) -> Result<Segment, IndexError> {
        let number = self
            .next_number
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.home.write(
            tail.segment_name(number),
            tail.sorted_ids(),
            tail.postings(),
            tail.times(),
        )
    }

    /// Background work is done: its change can be listed.
    fn finish(&self, finished: Finished) {
        lock(&self.finished).push_back(finished);
        self.progress.notify_all();
        (self.ready)();
    }

    /// Notes why tails cannot be sealed, or that they can.
    fn set_trouble(&self, trouble: Option<String>) {
        // Under the lock that waiters hold while they look, so that none misses the change.
        let finished = lock(&self.finished);
        *lock(&self.trouble) = trouble;
        drop(finished);
        self.progress.notify_all();
    }

    /// From now on the segment is unusable, until it is replaced.
    fn note_damage(&self, error: &IndexError) {
        let IndexError::Damaged { segment, reason } = error else {
            return;
        };
        let mut state = self.write();
        if let Some(place) = state.segments.iter().position(|open| open.name() == *segment) {
            state.segments.remove(place);
            state.unusable.push(Unusable {
                segment: *segment,
                reason: reason.clone(),
            });
            drop(state);
            (self.ready)();
        }
    }
}

impl Effort {
    fn add(&mut self, time: Duration) {
        self.done += 1;
        self.time += time;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The file name of a segment of the store `store`.
pub fn file_name(store: u128, segment: SegmentName) -> String {
    let SegmentName { number, first, last } = segment;
    format!(
        "{}{first:016x}-{last:016x}-{number:08x}.segment",
        file_prefix(store)
    )
}

fn file_prefix(store: u128) -> String {
    format!("{store:032x}-")
}

/// Makes the folder if it is missing, so that its name survives a power cut too.
fn make_folder(home: &Home) -> Result<(), IndexError> {
    if home.folder.is_dir() {
        return Ok(());
    }
    let failed = |error: std::io::Error| io_error("create", &home.folder, &error);
    home.disk.create_folder(&home.folder).map_err(failed)?;
    let parent = home
        .folder
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    home.disk
        .sync_folder(parent.unwrap_or(Path::new(".")))
        .map_err(failed)
}

/// Removes what a crash left behind: segment files of this store that are not listed.
fn remove_unlisted(home: &Home, listed: &[SegmentName]) -> Result<(), IndexError> {
    let failed = |error: std::io::Error| io_error("read", &home.folder, &error);
    let prefix = file_prefix(home.store);
    let listed: Vec<String> = listed.iter().map(|name| file_name(home.store, *name)).collect();
    for entry in std::fs::read_dir(&home.folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let ours = name.starts_with(&prefix) && name.ends_with(".segment");
        if ours && !listed.contains(&name) {
            home.disk
                .remove(&entry.path())
                .map_err(|error| io_error("remove", &entry.path(), &error))?;
            faults::reached(CrashPoint::OpenRemoved);
            tracing::info!(file = name, "removed an index file that a crash left unlisted");
        }
    }
    Ok(())
}
