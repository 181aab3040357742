//! The real program, run in a folder of its own and never left behind.

use super::{Client, PATIENCE, eventually};
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
};
use tempfile::TempDir;

/// A temporary folder; removed with its last clone.
#[derive(Clone)]
pub(crate) struct Folder(Arc<TempDir>);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(Arc::new(tempfile::tempdir().expect("a temporary folder")))
    }

    /// In another place than the system's folder for temporary files.
    pub(crate) fn within(parent: &Path) -> Self {
        Self(Arc::new(
            tempfile::tempdir_in(parent).expect("a temporary folder"),
        ))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Where a server in this folder keeps its store.
    pub(crate) fn database(&self) -> PathBuf {
        self.path().join("data/dedup.db")
    }

    /// Where its index stands.
    pub(crate) fn index(&self) -> PathBuf {
        self.path().join("data/dedup.db-index")
    }
}

/// A server that ended before it took requests.
#[derive(Debug)]
pub(crate) struct FailedStart {
    pub(crate) status: ExitStatus,
    pub(crate) log: String,
}

impl std::fmt::Display for FailedStart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the server did not start ({}):\n{}", self.status, self.log)
    }
}

/// A running server. Killed when dropped.
pub(crate) struct Server {
    process: u32,
    /// Locked, so that a test can kill the server while its threads talk to it.
    child: Mutex<Child>,
    address: SocketAddr,
    folder: Folder,
    settings: Vec<(String, String)>,
    namespace: Option<String>,
    log: Arc<Mutex<String>>,
}

impl Server {
    /// On a new, empty store.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// On a new, empty store, with these environment variables.
    pub(crate) fn start_with(settings: &[(&str, &str)]) -> Self {
        Self::start_in(Folder::new(), settings)
    }

    /// On the store in `folder`; returns when it takes requests.
    #[track_caller]
    pub(crate) fn start_in(folder: Folder, settings: &[(&str, &str)]) -> Self {
        Self::try_start_in(folder, settings).unwrap_or_else(|failed| panic!("{failed}"))
    }

    /// The same, for tests in which the start may fail.
    pub(crate) fn try_start_in(folder: Folder, settings: &[(&str, &str)]) -> Result<Self, FailedStart> {
        Self::spawn(folder, owned(settings), None)
    }

    /// On a machine of its own, as far as the network goes: in this namespace.
    #[track_caller]
    pub(crate) fn start_within(namespace: &str, settings: &[(&str, &str)]) -> Self {
        Self::spawn(Folder::new(), owned(settings), Some(namespace.to_owned()))
            .unwrap_or_else(|failed| panic!("{failed}"))
    }

    fn spawn(
        folder: Folder,
        settings: Vec<(String, String)>,
        namespace: Option<String>,
    ) -> Result<Self, FailedStart> {
        let mut child = oncelog_within(namespace.as_deref(), &folder)
            .arg("serve")
            .envs(settings.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("the program does not start: {error}"));
        let log = Arc::new(Mutex::new(String::new()));
        let (listening, address) = mpsc::channel();
        let stderr = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let written = log.clone();
        let reader = std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if line.contains("listening")
                    && let Some(address) = address_in(&line)
                {
                    // Nobody listens any more once the address is known.
                    let _ = listening.send(address);
                }
                let mut log = written.lock().expect("the log");
                log.push_str(&line);
                log.push('\n');
            }
        });
        // The channel closes when the program ends before it listens.
        let Ok(address) = address.recv_timeout(PATIENCE) else {
            // It may have ended by itself.
            let _ = child.kill();
            let status = child.wait().expect("the server ends");
            reader.join().expect("the log is read");
            let log = log.lock().expect("the log").clone();
            return Err(FailedStart { status, log });
        };
        Ok(Self {
            process: child.id(),
            child: Mutex::new(child),
            address,
            folder,
            settings,
            namespace,
            log,
        })
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn url(&self) -> String {
        let is_https = self.settings.iter().any(|(name, _)| name == "TLS_CERTIFICATE");
        let scheme = if is_https { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    pub(crate) fn folder(&self) -> &Folder {
        &self.folder
    }

    /// A connection of its own.
    pub(crate) fn client(&self) -> Client {
        Client::new(self.address)
    }

    /// What the server has logged so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().expect("the log").clone()
    }

    /// Its process id.
    pub(crate) fn process(&self) -> u32 {
        self.process
    }

    /// Ends it with no chance to tidy up.
    pub(crate) fn kill9(&self) {
        let mut child = self.child();
        child.kill().expect("the server runs");
        child.wait().expect("the server ends");
    }

    /// Starts it again on the same store, on whatever port is free.
    #[track_caller]
    pub(crate) fn restart(self) -> Self {
        let (folder, settings) = (self.folder.clone(), self.settings.clone());
        let namespace = self.namespace.clone();
        drop(self);
        Self::spawn(folder, settings, namespace).unwrap_or_else(|failed| panic!("{failed}"))
    }

    /// Asks it to end.
    pub(crate) fn terminate(&self) {
        self.signal("TERM");
    }

    /// Sends a signal by its name without `SIG`.
    pub(crate) fn signal(&self, name: &str) {
        // The shell has `kill` built in; the program of that name is in a package that may be missing.
        let sent = Command::new("sh")
            .args(["-c", &format!("kill -{name} {}", self.process)])
            .status()
            .expect("a shell");
        assert!(sent.success(), "the server is gone already:\n{}", self.log());
    }

    /// Waits for its end.
    pub(crate) fn ended(&self) -> ExitStatus {
        eventually("the server ends", || {
            self.child().try_wait().expect("the server's status")
        })
    }

    /// Asks it to end, waits, and checks that it ended well.
    pub(crate) fn stop(&self) {
        self.terminate();
        let status = self.ended();
        assert_eq!(
            status.code(),
            Some(0),
            "exit status after SIGTERM:\n{}",
            self.log()
        );
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail when it has ended already.
        let mut child = self.child();
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn owned(settings: &[(&str, &str)]) -> Vec<(String, String)> {
    settings
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

fn address_in(line: &str) -> Option<SocketAddr> {
    let (_, rest) = line.split_once("://")?;
    let end = rest
        .find(|c: char| !(c.is_ascii_digit() || c == '.' || c == ':'))
        .unwrap_or(rest.len());
    rest[..end].parse().ok()
}

/// The program with the settings that keep a test to itself: a free port, and its store inside `folder`.
pub(crate) fn oncelog(folder: &Folder) -> Command {
    oncelog_within(None, folder)
}

/// The same, in a network namespace.
fn oncelog_within(namespace: Option<&str>, folder: &Folder) -> Command {
    let program = env!("CARGO_BIN_EXE_oncelog");
    let mut command = match namespace {
        None => Command::new(program),
        Some(namespace) => {
            let mut command = Command::new("ip");
            // It becomes the program, so its process is the program's.
            command.args(["netns", "exec", namespace, program]);
            command
        }
    };
    command.current_dir(folder.path());
    // Nothing of the caller's environment is a setting of ours.
    command.env_clear();
    for (name, value) in [
        ("PATH", std::env::var("PATH").unwrap_or_default().as_str()),
        ("HOST", "127.0.0.1"),
        ("PORT", "0"),
        ("DATABASE_PATH", "data/dedup.db"),
        ("LOG_LEVEL", "INFO"),
        ("LOG_FORMAT", "text"),
    ] {
        command.env(name, value);
    }
    command
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command) -> Output {
    run_with_input(command, b"")
}

/// Runs a command to its end, with `input` on its standard input. Fails the test when it does not end.
pub(crate) fn run_with_input(command: &mut Command, input: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| {
            panic!("{command:?} does not start ({error}); scripts/test installs what is missing")
        });
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let input = input.to_vec();
    let feed = std::thread::spawn(move || {
        // A command may end before it has read everything.
        let _ = stdin.write_all(&input);
    });
    let stdout = collect(child.stdout.take().expect("stdout is piped"));
    let stderr = collect(child.stderr.take().expect("stderr is piped"));
    let deadline = std::time::Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().expect("the command's status") {
            break status;
        }
        if std::time::Instant::now() > deadline {
            let _ = child.kill();
            panic!("{command:?} did not end within {PATIENCE:?}");
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    };
    feed.join().expect("the input is written");
    Output {
        status,
        stdout: stdout.join().expect("its output is read"),
        stderr: stderr.join().expect("its messages are read"),
    }
}

fn collect(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).expect("a pipe can be read");
        bytes
    })
}

/// What a program makes of its input; fails the test when the program fails.
#[track_caller]
pub(crate) fn pipe(program: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let output = run_with_input(Command::new(program).args(arguments), input);
    assert!(
        output.status.success(),
        "{program}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

/// The text of a command's output; fails the test when the command failed.
pub(crate) fn shell(command: &mut Command) -> String {
    let output = run(command);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    text
}
