//! Where batches wait, and when a commit takes them.
//!
//! A commit begins at once when none runs, and then takes all that waits: so groups grow with the load by themselves. A
//! further one begins beside it when [`COMMIT_BESIDE_EVENTS`] wait. Without that bound each committer that has nothing to
//! do would grab the next event that comes, and what a commit costs would be paid for every single one of them. A commit
//! that hangs holds nobody up: what has waited for [`COMMIT_BESIDE_WAIT`] is enough, too.

use super::{Figures, Submission, SubmitError};
use crate::limits::{COMMIT_BESIDE_EVENTS, COMMIT_BESIDE_WAIT, MAX_COMMIT_BYTES, MAX_COMMIT_EVENTS};
use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// A committer's end of the queue. Each committer has one of its own; what waits when the last is dropped is never
/// answered.
pub struct Queue {
    shared: Arc<Shared>,
    figures: Figures,
    /// Whether what was taken last is still being committed.
    is_committing: bool,
}

/// What is taken out of the queue at once.
#[derive(Default)]
pub struct Turn {
    /// The batches to commit.
    pub submissions: Vec<Submission>,
    /// Events in them.
    pub events: usize,
    /// Bytes of text in them.
    pub bytes: usize,
    /// Whether [`crate::store::Writer::maintain`] is asked for.
    pub maintain: bool,
    /// Whether nothing will come after this.
    pub stop: bool,
}

#[derive(Default)]
pub(super) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Submission>,
    /// Events in `waiting`.
    events: usize,
    /// Since when something waits.
    since: Option<Instant>,
    maintain: bool,
    stopped: bool,
    /// Queues that there are; without any, nothing is taken in.
    queues: usize,
    /// Those of them that are committing.
    committing: usize,
    /// Those of them that wait for something to do.
    idle: usize,
}

impl State {
    /// Whether a committer that has nothing to do should take a turn.
    fn is_due(&self) -> bool {
        let is_enough = match self.committing {
            0 => !self.waiting.is_empty(),
            _ => {
                let is_late = |since: Instant| since.elapsed() >= COMMIT_BESIDE_WAIT;
                self.events >= COMMIT_BESIDE_EVENTS || self.since.is_some_and(is_late)
            }
        };
        is_enough || self.maintain || self.stopped
    }

    /// Wakes another committer that has nothing to do, if something waits: one of those that wait for the queue has to look at
    /// the time, since nothing that is pushed later may be news.
    fn pass_the_clock_on(&self, changed: &Condvar) {
        if self.idle > 0 && !self.waiting.is_empty() {
            changed.notify_one();
        }
    }

    fn take(&mut self) -> Turn {
        let mut turn = Turn {
            maintain: std::mem::take(&mut self.maintain),
            ..Turn::default()
        };
        while turn.events < MAX_COMMIT_EVENTS && turn.bytes < MAX_COMMIT_BYTES {
            let Some(submission) = self.waiting.pop_front() else {
                break;
            };
            turn.events += submission.batch.len();
            turn.bytes += submission.batch.bytes();
            turn.submissions.push(submission);
        }
        self.events -= turn.events;
        self.since = (!self.waiting.is_empty()).then(Instant::now);
        turn.stop = self.stopped && self.waiting.is_empty();
        turn
    }
}

impl Shared {
    /// Puts a batch behind the others, unless nobody is left to commit it.
    pub(super) fn push(&self, submission: Submission) -> Result<(), SubmitError> {
        let mut state = self.state();
        if state.queues == 0 || state.stopped {
            return Err(SubmitError::Stopping);
        }
        self.change(&mut state, |state| {
            state.events += submission.batch.len();
            state.since.get_or_insert_with(Instant::now);
            state.waiting.push_back(submission);
        });
        Ok(())
    }

    /// Asks for maintenance.
    pub(super) fn maintain(&self) {
        self.change(&mut self.state(), |state| state.maintain = true);
    }

    /// Lets the committers take what waits, and nothing more.
    pub(super) fn stop(&self) {
        self.state().stopped = true;
        self.changed.notify_all();
    }

    /// Wakes a committer, if there was nothing to do for it before, or nothing that it had to do later.
    fn change(&self, state: &mut State, change: impl FnOnce(&mut State)) {
        if state.idle == 0 {
            // Whoever is at work looks by itself.
            return change(state);
        }
        let (was_due, was_waiting) = (state.is_due(), state.since.is_some());
        change(state);
        let is_first = !was_waiting && state.since.is_some();
        if !was_due && (is_first || state.is_due()) {
            self.changed.notify_one();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    pub(super) fn new(figures: Figures) -> Self {
        let shared = Arc::<Shared>::default();
        shared.state().queues = 1;
        Self {
            shared,
            figures,
            is_committing: false,
        }
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Where what becomes of the queue's batches is counted.
    pub fn figures(&self) -> &Figures {
        &self.figures
    }

    /// Waits for something to do, at most `patience` if that is given; `None` when nothing came. Until the next call,
    /// what is returned counts as being committed.
    pub fn next(&mut self, patience: Option<Duration>) -> Option<Turn> {
        let until = patience.map(|patience| Instant::now() + patience);
        let mut state = self.shared.state();
        if std::mem::take(&mut self.is_committing) {
            state.committing -= 1;
        }
        while !state.is_due() {
            let now = Instant::now();
            if until.is_some_and(|until| until <= now) {
                state.pass_the_clock_on(&self.shared.changed);
                return None;
            }
            let late = state.since.map(|since| since + COMMIT_BESIDE_WAIT);
            let left = [until, late].into_iter().flatten().min();
            let left = left.map(|end| end.saturating_duration_since(now));
            state.idle += 1;
            let changed = &self.shared.changed;
            state = match left {
                None => changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(left) => {
                    changed
                        .wait_timeout(state, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
            state.idle -= 1;
        }
        let turn = state.take();
        self.is_committing = !turn.submissions.is_empty();
        state.committing += usize::from(self.is_committing);
        // What did not fit may be enough for another one, or will have waited long enough soon.
        state.pass_the_clock_on(&self.shared.changed);
        Some(turn)
    }
}

impl Clone for Queue {
    /// Another committer's end of the same queue.
    fn clone(&self) -> Self {
        self.shared.state().queues += 1;
        Self {
            shared: Arc::clone(&self.shared),
            figures: self.figures.clone(),
            is_committing: false,
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.queues -= 1;
        state.committing -= usize::from(self.is_committing);
        if state.queues == 0 {
            // Their requests are told that the server is stopping.
            let waiting = std::mem::take(&mut state.waiting);
            state.since = None;
            drop(state);
            drop(waiting);
        } else if state.is_due() {
            self.shared.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        event::{Identity, Shape, parse},
        ingest::QueuedBytes,
    };
    use tokio::sync::{Semaphore, oneshot};

    const NOW: Option<Duration> = Some(Duration::ZERO);
    const IDENTITY: Identity = Identity {
        store: 1,
        secret: [1; 16],
    };

    fn put(shared: &Shared, events: usize) -> Result<(), SubmitError> {
        shared.push(submission(events))
    }

    fn submission(events: usize) -> Submission {
        let event = r#"{"topic":"t","event_id":"e","timestamp":"2025-10-23T10:00:00Z","source":"s"}"#;
        let body = format!("[{}]", vec![event; events].join(","));
        let places = Arc::new(Semaphore::new(2));
        Submission {
            batch: parse(body.into_bytes(), Shape::Any, &IDENTITY, events).unwrap(),
            request: None,
            answer: oneshot::channel().0,
            place: Arc::clone(&places).try_acquire_owned().unwrap(),
            room: places.try_acquire_owned().unwrap(),
            bytes: QueuedBytes::new(&Arc::default(), 0),
        }
    }

    fn two() -> (Queue, Queue) {
        let queue = Queue::new(Figures::default());
        (queue.clone(), queue)
    }

    /// What is put next does not become late, however slow the test is.
    fn be_patient(queue: &Queue) {
        queue.shared.state().since = Some(Instant::now() + Duration::from_hours(1));
    }

    /// Returns when another end of the queue waits for something to do.
    fn until_idle(queue: &Queue) {
        while queue.shared.state().idle == 0 {
            std::thread::yield_now();
        }
    }

    fn taken(queue: &mut Queue) -> Option<usize> {
        queue.next(NOW).map(|turn| turn.events)
    }

    #[test]
    fn a_commit_begins_at_once_when_none_runs_and_beside_another_when_enough_waits() {
        let (mut first, mut second) = two();
        assert!(put(&first.shared, 1).is_ok());
        assert_eq!(taken(&mut first), Some(1));
        be_patient(&first);
        assert!(put(&first.shared, COMMIT_BESIDE_EVENTS - 1).is_ok());
        assert_eq!(taken(&mut second), None, "one runs, and too little waits");
        assert!(put(&first.shared, 1).is_ok());
        assert_eq!(taken(&mut second), Some(COMMIT_BESIDE_EVENTS));
        be_patient(&first);
        assert!(put(&first.shared, 1).is_ok());
        assert_eq!(taken(&mut first), None, "the second one still runs");
        assert_eq!(taken(&mut second), Some(1), "none runs any more");
    }

    #[test]
    fn what_becomes_due_wakes_who_waits() {
        let (mut first, mut second) = two();
        assert!(put(&first.shared, 1).is_ok());
        assert_eq!(taken(&mut first), Some(1));
        let waiting = std::thread::spawn(move || second.next(None).map(|turn| turn.events));
        until_idle(&first);
        be_patient(&first);
        assert!(put(&first.shared, COMMIT_BESIDE_EVENTS).is_ok());
        assert_eq!(waiting.join().unwrap(), Some(COMMIT_BESIDE_EVENTS));
    }

    #[test]
    fn a_commit_that_hangs_does_not_hold_up_what_comes_after_it() {
        let (mut first, mut second) = two();
        assert!(put(&first.shared, 1).is_ok());
        assert_eq!(taken(&mut first), Some(1));
        let waiting = std::thread::spawn(move || second.next(None).map(|turn| turn.events));
        until_idle(&first);
        assert!(put(&first.shared, 1).is_ok());
        assert_eq!(waiting.join().unwrap(), Some(1));
    }

    /// Who was woken for a batch that waits looks at the time for all of them. When it left, to see whether the store is back,
    /// the others waited without end beside a commit that hung.
    #[test]
    fn who_leaves_lets_another_one_look_at_the_time() {
        let (mut hanging, mut leaving) = two();
        let mut waiting = leaving.clone();
        assert!(put(&hanging.shared, 1).is_ok());
        assert_eq!(taken(&mut hanging), Some(1));
        let waiting = std::thread::spawn(move || {
            let bound = Some(Duration::from_mins(1));
            waiting.next(bound).map(|turn| turn.events)
        });
        until_idle(&hanging);
        {
            // As if `leaving` had been woken for it.
            let mut state = hanging.shared.state();
            state.waiting.push_back(submission(1));
            state.events = 1;
            state.since = Some(Instant::now() + Duration::from_secs(1));
        }
        assert_eq!(taken(&mut leaving), None, "it is not late yet");
        assert_eq!(waiting.join().unwrap(), Some(1));
    }

    #[test]
    fn a_commit_that_panics_does_not_count_as_running() {
        let (mut first, mut second) = two();
        assert!(put(&first.shared, 1).is_ok());
        assert_eq!(taken(&mut first), Some(1));
        drop(first);
        assert!(put(&second.shared, 1).is_ok());
        assert_eq!(taken(&mut second), Some(1));
    }

    #[test]
    fn all_that_waits_is_taken_before_the_end_and_nothing_after() {
        let (mut first, mut second) = two();
        for _ in 0..3 {
            assert!(put(&first.shared, MAX_COMMIT_EVENTS).is_ok());
        }
        first.shared().stop();
        assert!(put(&first.shared, 1).is_err());
        for stop in [false, false, true] {
            let turn = first.next(None).unwrap();
            assert_eq!((turn.events, turn.stop), (MAX_COMMIT_EVENTS, stop));
        }
        let turn = second.next(None).unwrap();
        assert!(turn.stop && turn.submissions.is_empty());
    }

    #[test]
    fn without_a_committer_nothing_is_taken_in() {
        let queue = Queue::new(Figures::default());
        let shared = Arc::clone(queue.shared());
        assert!(put(&queue.shared, 1).is_ok());
        drop(queue);
        assert!(shared.state().waiting.is_empty());
        assert!(put(&shared, 1).is_err());
    }
}
