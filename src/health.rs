//! Whether the store can commit, and if not, why. The committer tells; health checks ask.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// The shared state; clones see the same.
#[derive(Clone, Debug, Default)]
pub struct Health {
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    committer_running: AtomicBool,
    /// Not the same as one that has not begun yet.
    committer_ended: AtomicBool,
    outage: Mutex<Option<Outage>>,
}

/// A time in which the store cannot commit.
#[derive(Debug)]
struct Outage {
    trouble: Trouble,
    /// When it was noticed.
    since: Instant,
    /// When it was last seen.
    seen: Instant,
}

/// What is wrong with the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// For the person who reads it at night: what is wrong and what to do.
    pub reason: String,
    /// Whether only a restart of the program can help.
    pub needs_restart: bool,
}

/// What a commit showed of the store's health that was not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// Nothing.
    None,
    /// From now on it cannot commit, or not without a restart.
    Failed,
    /// It commits again.
    Recovered,
}

impl Health {
    /// Whether the committer's thread is there.
    pub fn committer_running(&self) -> bool {
        self.state.committer_running.load(Ordering::Acquire)
    }

    /// What is wrong, if anything.
    pub fn trouble(&self) -> Option<Trouble> {
        self.lock().as_ref().map(|outage| outage.trouble.clone())
    }

    /// Whether the store commits, as far as is known.
    pub fn commits(&self) -> bool {
        self.committer_running() && self.lock().is_none()
    }

    /// Whether it has not for as long as `patience`, or does not without a restart.
    pub fn is_lost(&self, patience: Duration) -> bool {
        let is_lost = |outage: &Outage| outage.trouble.needs_restart || outage.since.elapsed() >= patience;
        self.state.committer_ended.load(Ordering::Acquire) || self.lock().as_ref().is_some_and(is_lost)
    }

    /// The committer starts or ends.
    pub fn set_committer_running(&self, running: bool) {
        self.state.committer_running.store(running, Ordering::Release);
        self.state.committer_ended.store(!running, Ordering::Release);
    }

    /// Notes what a commit showed that began at `began`. One that succeeded says nothing of a failure that was seen while it
    /// ran: several run at once.
    pub fn note(&self, began: Instant, shown: Option<Trouble>) -> News {
        let mut known = self.lock();
        match (&*known, shown) {
            (None, None) => News::None,
            (Some(outage), None) if outage.seen > began => News::None,
            (Some(_), None) => {
                *known = None;
                News::Recovered
            }
            (before, Some(trouble)) => {
                let is_worse = before
                    .as_ref()
                    .is_none_or(|before| trouble.needs_restart && !before.trouble.needs_restart);
                let seen = Instant::now();
                *known = Some(Outage {
                    trouble,
                    since: before.as_ref().map_or(seen, |before| before.since),
                    seen,
                });
                if is_worse { News::Failed } else { News::None }
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Outage>> {
        self.state.outage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trouble(reason: &str, needs_restart: bool) -> Option<Trouble> {
        Some(Trouble {
            reason: reason.to_owned(),
            needs_restart,
        })
    }

    /// Once the reasons of several writers took turns, and each was logged as if it were new, every second.
    #[test]
    fn an_outage_is_news_once_and_its_end_once() {
        let health = Health::default();
        let note = |shown| health.note(Instant::now(), shown);
        assert_eq!(note(None), News::None);
        assert_eq!(note(trouble("no connection", false)), News::Failed);
        for reason in ["no answer", "no connection", "starting up"] {
            assert_eq!(note(trouble(reason, false)), News::None);
            assert_eq!(health.trouble().unwrap().reason, reason);
        }
        assert_eq!(note(trouble("a sync failed", true)), News::Failed, "it is worse");
        assert_eq!(note(None), News::Recovered);
        assert_eq!(note(None), News::None);
    }

    #[test]
    fn a_store_is_lost_once_an_outage_has_lasted_whatever_its_reasons_or_only_a_restart_helps() {
        let health = Health::default();
        // The broker begins before the committer does.
        assert!(!health.is_lost(Duration::ZERO));
        health.set_committer_running(true);
        assert!(!health.is_lost(Duration::ZERO));
        health.note(Instant::now(), trouble("no connection", false));
        assert!(!health.is_lost(Duration::MAX));
        let noticed = Instant::now();
        while noticed.elapsed().is_zero() {}
        health.note(Instant::now(), trouble("no answer", false));
        assert!(health.is_lost(noticed.elapsed()), "it is the same outage");
        health.note(Instant::now(), trouble("a sync failed", true));
        assert!(health.is_lost(Duration::MAX));
        health.note(Instant::now(), None);
        assert!(!health.is_lost(Duration::ZERO));
        health.set_committer_running(false);
        assert!(health.is_lost(Duration::MAX), "nobody commits any more");
    }

    #[test]
    fn a_commit_that_began_before_the_failure_does_not_end_the_outage() {
        let health = Health::default();
        let before = Instant::now();
        health.note(before, trouble("no connection", false));
        assert_eq!(health.note(before, None), News::None);
        assert!(health.trouble().is_some());
        assert_eq!(health.note(Instant::now(), None), News::Recovered);
    }
}
