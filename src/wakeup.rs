//! "Committed up to seq N": tells waiting readers that there may be more to read.
//!
//! A hint, never data: a reader subscribes first, then reads the store from its own cursor, then waits. Hints that
//! come while it reads melt into one. The committer announces; anyone may subscribe.

use crate::event::Seq;
use tokio::sync::watch;

/// The announcing side; one a store.
#[derive(Clone, Debug)]
pub struct Wakeup {
    committed: watch::Sender<Seq>,
}

/// A reader's side.
#[derive(Debug)]
pub struct Woken {
    committed: watch::Receiver<Seq>,
}

impl Wakeup {
    /// Starts at the store's high watermark.
    pub fn new(high_watermark: Seq) -> Self {
        Self {
            committed: watch::Sender::new(high_watermark),
        }
    }

    /// Wakes all readers that wait, unless `high_watermark` is what they know already.
    pub fn announce(&self, high_watermark: Seq) {
        self.committed
            .send_if_modified(|known| std::mem::replace(known, high_watermark) != high_watermark);
    }

    /// From now on no announcement is missed.
    pub fn subscribe(&self) -> Woken {
        Woken {
            committed: self.committed.subscribe(),
        }
    }
}

impl Woken {
    /// Waits until something was announced since the last call (or since the subscription).
    /// Returns at once, and for ever after, when the announcing side is gone.
    pub async fn changed(&mut self) {
        // The only error is that the announcing side is gone: the caller's next look at the store settles it.
        let _ = self.committed.changed().await;
    }
}
