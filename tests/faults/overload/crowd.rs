//! Many clients at once, on few threads.

use std::time::Duration;
use tokio::{
    runtime::{Builder, Runtime},
    sync::watch,
    task::JoinSet,
};

/// Clients that go on until they are stopped. One that panics fails the scenario.
pub(super) struct Crowd {
    runtime: Runtime,
    stop: watch::Sender<bool>,
    clients: JoinSet<()>,
}

impl Crowd {
    pub(super) fn new() -> Self {
        Self {
            runtime: Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .expect("a runtime"),
            stop: watch::Sender::new(false),
            clients: JoinSet::new(),
        }
    }

    pub(super) fn add(&mut self, client: impl Future<Output = ()> + Send + 'static) {
        let mut stop = self.stop.subscribe();
        let client = async move {
            tokio::select! {
                () = client => {}
                // The only error is that nobody is left to stop it.
                _ = stop.wait_for(|stop| *stop) => {}
            }
        };
        self.clients.spawn_on(client, self.runtime.handle());
    }

    /// Waits for those that end by themselves.
    pub(super) fn ended(mut self) {
        self.runtime.block_on(async {
            while self
                .clients
                .join_next()
                .await
                .transpose()
                .expect("no panic")
                .is_some()
            {}
        });
    }

    /// Stops them and closes their connections.
    pub(super) fn stop(self) {
        self.stop.send_replace(true);
        self.ended();
    }
}

/// The pause of a client that was turned away.
pub(super) const PAUSE: Duration = Duration::from_millis(500);
