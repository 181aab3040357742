//! Room in memory for what is in work, bounded by shares, and a way to get it back from clients that keep it.
//!
//! Whoever finds no room waits for some, for a bounded time. Bodies that are still arriving and answers that are still
//! being taken hold room while they wait for their client, which may take its time as long as nobody else needs the
//! room. As soon as somebody does, a client that has not moved on for a moment has to leave: so a few slow clients
//! cannot keep all others out.

use crate::limits::{PRESSURE_INTERVAL, PROGRESS_BYTES, ROOM_UNIT_BYTES};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// Room for things of one kind. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Share {
    units: Arc<Semaphore>,
    bytes: usize,
    pressure: Pressure,
}

impl Share {
    /// Room for `bytes`. Who waits for it raises `pressure`.
    pub(crate) fn new(bytes: usize, pressure: &Pressure) -> Self {
        Self {
            units: Arc::new(Semaphore::new(bytes / ROOM_UNIT_BYTES)),
            bytes,
            pressure: pressure.clone(),
        }
    }

    /// How many bytes there are in all.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes that are held now.
    pub(crate) fn used_bytes(&self) -> usize {
        self.bytes - self.units.available_permits() * ROOM_UNIT_BYTES
    }

    /// Room for `bytes`, or `None` when there was none in time.
    pub(crate) async fn take(&self, bytes: usize, patience: Duration) -> Option<OwnedSemaphorePermit> {
        let units = units_of(bytes) as u32;
        // The usual case takes no timer.
        if let Ok(room) = Arc::clone(&self.units).try_acquire_many_owned(units) {
            return Some(room);
        }
        let until = Instant::now() + patience;
        let mut taken = std::pin::pin!(Arc::clone(&self.units).acquire_many_owned(units));
        loop {
            self.pressure.raise();
            let pause = (Instant::now() + PRESSURE_INTERVAL).min(until);
            match tokio::time::timeout_at(pause.into(), taken.as_mut()).await {
                Ok(room) => return room.ok(),
                Err(_) if pause == until => return None,
                Err(_) => {}
            }
        }
    }
}

/// Units of room for so many bytes.
pub(crate) fn units_of(bytes: usize) -> usize {
    bytes.div_ceil(ROOM_UNIT_BYTES)
}

/// That somebody waits for room. Clones see the same.
#[derive(Clone, Debug)]
pub(crate) struct Pressure {
    raised: Arc<Notify>,
    stall: Duration,
}

impl Pressure {
    /// Pressure that drives out whoever has not moved on for `stall`.
    pub(crate) fn new(stall: Duration) -> Self {
        Self {
            raised: Arc::default(),
            stall,
        }
    }

    /// How long who keeps room may not move on while others wait for it.
    pub(crate) fn stall(&self) -> Duration {
        self.stall
    }

    /// Ends when somebody waits for room.
    pub(crate) async fn raised(&self) {
        self.raised.notified().await;
    }

    /// Tells those who may have to leave. Who listens too late for it hears the next one: it is repeated while somebody
    /// waits.
    fn raise(&self) {
        self.raised.notify_waiters();
    }
}

/// When something last moved on, by more than a trickle.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    since: Instant,
    bytes: usize,
}

impl Progress {
    /// From now on.
    pub(crate) fn new() -> Self {
        Self {
            since: Instant::now(),
            bytes: 0,
        }
    }

    /// So many bytes came or went.
    pub(crate) fn add(&mut self, bytes: usize) {
        self.bytes += bytes;
        if self.bytes >= PROGRESS_BYTES {
            *self = Self::new();
        }
    }

    /// This time does not count.
    pub(crate) fn excuse(&mut self, time: Duration) {
        self.since += time;
    }

    /// Since when it has not moved on.
    pub(crate) fn since(&self) -> Instant {
        self.since
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn room_is_given_back_and_who_finds_none_is_told_so() {
        let share = Share::new(2 * ROOM_UNIT_BYTES, &Pressure::new(SOON));
        let room = share.take(ROOM_UNIT_BYTES + 1, SOON).await.expect("room");
        assert_eq!(share.used_bytes(), share.bytes());
        assert!(share.take(1, SOON).await.is_none());
        drop(room);
        assert_eq!(share.used_bytes(), 0);
        assert!(share.take(1, SOON).await.is_some());
    }

    #[tokio::test]
    async fn who_waits_for_room_is_heard_by_those_who_have_it() {
        let pressure = Pressure::new(SOON);
        let share = Share::new(ROOM_UNIT_BYTES, &pressure);
        let room = share.take(1, SOON).await.expect("room");
        let leaving = async {
            // Later than the first time that it is raised.
            tokio::time::sleep(SOON).await;
            pressure.raised().await;
            drop(room);
        };
        let (taken, ()) = tokio::join!(share.take(1, Duration::from_secs(60)), leaving);
        assert!(taken.is_some());
    }

    #[test]
    fn a_trickle_is_no_progress() {
        let mut progress = Progress::new();
        let since = progress.since();
        for _ in 1..PROGRESS_BYTES {
            progress.add(1);
        }
        assert_eq!(progress.since(), since);
        progress.add(1);
        assert!(progress.since() > since);
    }
}
