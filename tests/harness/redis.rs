//! A real Redis server of a test's own, on a private port and in a folder that goes with it. It names nothing of the
//! other helpers, so that the library's own tests use it as well.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// How long it may take to answer after its start.
const PATIENCE: Duration = Duration::from_secs(60);

/// A Redis server that keeps what it has answered: its file is synced before each answer. Killed when dropped.
pub(crate) struct Redis {
    folder: TempDir,
    port: u16,
    arguments: Vec<String>,
    child: Mutex<Option<Child>>,
}

impl Redis {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// With more arguments, which win over ours.
    pub(crate) fn start_with(arguments: &[&str]) -> Self {
        let redis = Self::stopped(arguments);
        redis.start_again();
        redis
    }

    /// One that is not started yet.
    pub(crate) fn stopped(arguments: &[&str]) -> Self {
        // Free a moment ago; another program is unlikely to take it before Redis does.
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        Self {
            folder: tempfile::tempdir().expect("a temporary folder"),
            port: listener.local_addr().expect("an address").port(),
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            child: Mutex::new(None),
        }
    }

    /// What `BROKER_URL` is set to.
    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Starts it, on the same port and with what it has kept; returns when it answers.
    pub(crate) fn start_again(&self) {
        let log = std::fs::File::create(self.folder.path().join("log")).expect("a file");
        let child = Command::new("redis-server")
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--dir"])
            .arg(self.folder.path())
            .args(["--save", "", "--appendonly", "yes", "--appendfsync", "always"])
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log)
            .spawn()
            .unwrap_or_else(|error| {
                panic!("redis-server does not start ({error}); scripts/test installs what is missing")
            });
        *self.child.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
        let deadline = Instant::now() + PATIENCE;
        while !self.answers() {
            let log = || std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            let ended = {
                let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
                child.as_mut().and_then(|child| child.try_wait().ok().flatten())
            };
            assert!(ended.is_none(), "redis-server ended: {}", log());
            assert!(
                Instant::now() < deadline,
                "redis-server does not answer: {}",
                log()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether it does; that it wants a password is an answer.
    fn answers(&self) -> bool {
        match self.try_call(&["PING"]) {
            Ok(_) => true,
            Err(error) => !error.is_io_error() && error.code() != Some("LOADING"),
        }
    }

    /// Ends it with no chance to write anything.
    pub(crate) fn kill9(&self) {
        let child = self.child.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut child) = child {
            child.kill().expect("redis-server runs");
            child.wait().expect("redis-server ends");
        }
    }

    /// Takes away what it has kept, as if its disk were a new one. It must not run.
    pub(crate) fn lose_everything(&self) {
        std::fs::remove_dir_all(self.folder.path().join("appendonlydir")).expect("its file is there");
    }

    /// Makes a call; fails the test when Redis does.
    #[track_caller]
    pub(crate) fn call<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let value = self
            .try_call(words)
            .unwrap_or_else(|error| panic!("{words:?}: {error}"));
        redis::from_redis_value(value).unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    fn try_call(&self, words: &[&str]) -> redis::RedisResult<redis::Value> {
        let client = redis::Client::open(self.url())?;
        let mut connection = client.get_connection_with_timeout(PATIENCE)?;
        connection.set_read_timeout(Some(PATIENCE))?;
        let mut call = redis::cmd(words[0]);
        for word in &words[1..] {
            call.arg(*word);
        }
        call.query(&mut connection)
    }

    /// As if another instance had every partition: nobody consumes until [`Self::give_free`].
    pub(crate) fn occupy(&self) {
        for partition in 0..16 {
            let lease = format!("{{oncelog}}:lease:{partition}");
            let () = self.call(&["SET", &lease, "somebody:1"]);
        }
    }

    /// Undoes [`Self::occupy`].
    pub(crate) fn give_free(&self) {
        for partition in 0..16 {
            let _: i64 = self.call(&["DEL", &format!("{{oncelog}}:lease:{partition}")]);
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let child = self.child.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut child) = child {
            // Both fail when it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
