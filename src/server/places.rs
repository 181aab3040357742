//! The places for open connections, and which of them is given up first when a newcomer finds none.
//!
//! A connection without a request in work is only kept open for its client's convenience. When all places are taken,
//! those that have been idle the longest are closed, so that clients that connect and say nothing (or half a head) keep
//! nobody out. Connections with a request in work are never closed for a newcomer. When the server stops, all are told.

use super::socket::Work;
use crate::limits::IDLE_BEFORE_GIVEN_UP;
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// All places.
pub(super) struct Places {
    free: Arc<Semaphore>,
    all: usize,
    taken: Arc<Mutex<HashMap<u64, Taken>>>,
    next: AtomicU64,
}

struct Taken {
    work: Work,
    /// Sent once.
    give_up: Option<oneshot::Sender<()>>,
}

/// A place that a connection has until it is dropped.
pub(super) struct Place {
    number: u64,
    taken: Arc<Mutex<HashMap<u64, Taken>>>,
    _place: OwnedSemaphorePermit,
}

impl Places {
    pub(super) fn new(all: usize) -> Self {
        Self {
            free: Arc::new(Semaphore::new(all)),
            all,
            taken: Arc::default(),
            next: AtomicU64::new(0),
        }
    }

    /// How many there are.
    pub(super) fn all(&self) -> usize {
        self.all
    }

    /// How many are taken.
    pub(super) fn taken(&self) -> usize {
        self.all - self.free.available_permits()
    }

    /// A place for a connection whose work is `work`, and what tells it to give its place up. `None` when all are taken
    /// by connections with work.
    pub(super) async fn take(&self, work: Work) -> Option<(Place, oneshot::Receiver<()>)> {
        let place = loop {
            if let Ok(place) = Arc::clone(&self.free).try_acquire_owned() {
                break place;
            }
            if self.give_up_idle() == 0 {
                return None;
            }
            // Those that were told end at once, unless a request came in between: look again then.
            let free = Arc::clone(&self.free).acquire_owned();
            if let Ok(Ok(place)) = tokio::time::timeout(IDLE_BEFORE_GIVEN_UP, free).await {
                break place;
            }
        };
        let (give_up, told) = oneshot::channel();
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let taken = Taken {
            work,
            give_up: Some(give_up),
        };
        lock(&self.taken).insert(number, taken);
        let place = Place {
            number,
            taken: Arc::clone(&self.taken),
            _place: place,
        };
        Some((place, told))
    }

    /// Tells the connections that have been idle the longest to end: one in a hundred, so that looking at all of them
    /// is worth it. Returns how many.
    fn give_up_idle(&self) -> usize {
        let mut taken = lock(&self.taken);
        let mut idle: Vec<_> = taken
            .values_mut()
            .filter_map(|taken| {
                let idle = taken.work.idle().filter(|idle| *idle >= IDLE_BEFORE_GIVEN_UP)?;
                taken.give_up.is_some().then_some((idle, taken))
            })
            .collect();
        idle.sort_unstable_by_key(|(idle, _)| std::cmp::Reverse(*idle));
        let mut told = 0;
        for (_, taken) in idle.into_iter().take((self.all / 100).max(1)) {
            if let Some(give_up) = taken.give_up.take() {
                // One that has just ended is what is wanted.
                let _ = give_up.send(());
                told += 1;
            }
        }
        told
    }

    /// Tells all connections to end as soon as they have no work.
    pub(super) fn give_up_all(&self) {
        for taken in lock(&self.taken).values_mut() {
            if let Some(give_up) = taken.give_up.take() {
                let _ = give_up.send(());
            }
        }
    }

    /// Waits until none is taken.
    pub(super) async fn empty(&self) {
        // Never closed, so it cannot fail.
        let _ = self.free.acquire_many(self.all as u32).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.taken).remove(&self.number);
    }
}

fn lock(taken: &Mutex<HashMap<u64, Taken>>) -> MutexGuard<'_, HashMap<u64, Taken>> {
    // Nothing in it can be half done.
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_longest_idle_gives_its_place_up_and_one_with_work_never_does() {
        let places = Places::new(2);
        let busy = Work::default();
        busy.set_request(true);
        let (_busy, mut told_busy) = places.take(busy).await.expect("a place");
        let (idle, told_idle) = places.take(Work::default()).await.expect("a place");
        tokio::time::sleep(IDLE_BEFORE_GIVEN_UP).await;
        let leaving = async {
            told_idle.await.expect("told");
            drop(idle);
        };
        let newcomer = Work::default();
        newcomer.set_request(true);
        let (newcomer, ()) = tokio::join!(places.take(newcomer), leaving);
        assert!(newcomer.is_some());
        assert!(places.take(Work::default()).await.is_none(), "all have work");
        assert!(told_busy.try_recv().is_err());
        assert_eq!(places.taken(), 2);
    }
}
