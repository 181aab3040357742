//! Whether the store can commit, and if not, why. The committer tells; health checks ask.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

/// The shared state; clones see the same.
#[derive(Clone, Debug, Default)]
pub struct Health {
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    committer_running: AtomicBool,
    trouble: Mutex<Option<Trouble>>,
}

/// What is wrong with the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// For the person who reads it at night: what is wrong and what to do.
    pub reason: String,
    /// Whether only a restart of the program can help.
    pub needs_restart: bool,
}

impl Health {
    /// Whether the committer's thread is there.
    pub fn committer_running(&self) -> bool {
        self.state.committer_running.load(Ordering::Acquire)
    }

    /// What is wrong, if anything.
    pub fn trouble(&self) -> Option<Trouble> {
        self.lock().clone()
    }

    /// The committer starts or ends.
    pub fn set_committer_running(&self, running: bool) {
        self.state.committer_running.store(running, Ordering::Release);
    }

    /// Notes what the last commit showed; returns what was known before.
    pub fn set_trouble(&self, trouble: Option<Trouble>) -> Option<Trouble> {
        std::mem::replace(&mut *self.lock(), trouble)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Trouble>> {
        self.state.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
