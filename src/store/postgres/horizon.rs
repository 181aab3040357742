//! Up to where the log is final: see [`super::statements::IDENTIFY`] and the functions `announce` and `horizon` in
//! [`super::schema`].

use super::Shared;
use crate::{
    event::Seq,
    limits,
    store::{Frontier, ReadError},
};
use std::sync::atomic::Ordering;
use tokio::time::{Instant, sleep};

impl Shared {
    /// Asks the server, and remembers the answer.
    pub(super) async fn horizon(&self) -> Result<Frontier, ReadError> {
        let row = self
            .query_one("SELECT settled, newest FROM horizon()", &[])
            .await?;
        let seq = |place| row.get::<_, i64>(place).cast_unsigned();
        let frontier = Frontier {
            settled: seq(0),
            newest: seq(1),
        };
        self.note_settled(frontier.settled);
        self.note_committed(frontier.newest);
        Ok(frontier)
    }

    /// Waits until everything is final that was committed before the call, but not beyond `until`.
    pub(super) async fn settle(&self, until: Instant) -> Result<Frontier, ReadError> {
        let first = self.horizon().await?;
        let mut now = first;
        while now.settled < first.newest && Instant::now() < until {
            sleep(limits::POSTGRES_SETTLE_POLL).await;
            now = self.horizon().await?;
        }
        Ok(Frontier {
            settled: now.settled,
            newest: first.newest,
        })
    }

    /// What is known to be final, without asking.
    pub(super) fn known_settled(&self) -> Seq {
        self.settled.load(Ordering::Acquire)
    }
}
