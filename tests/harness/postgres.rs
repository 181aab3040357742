//! A real PostgreSQL server of the tests' own, on a private port and in a folder that goes with it, and databases in it.

use super::{Folder, PATIENCE, Server, eventually, network::ADDRESSES, run, shell};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs,
    net::TcpListener,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
};

/// Who owns everything in it.
const USER: &str = "oncelog";

/// A PostgreSQL server that keeps what it has committed. Killed when dropped.
pub(crate) struct Postgres {
    folder: Folder,
    port: u16,
    settings: Vec<String>,
    running: Mutex<Option<Running>>,
    databases: AtomicU32,
}

/// The server's process, and the thread that waits for it.
struct Running {
    process: Pid,
    waits: JoinHandle<()>,
}

/// The server that the tests of this process share.
static SHARED: Mutex<Weak<Postgres>> = Mutex::new(Weak::new());

impl Postgres {
    /// The one that all tests of this process share: started by the first that asks, stopped with the last that lets go.
    pub(crate) fn shared() -> Arc<Self> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let server = Self::start();
            *shared = Arc::downgrade(&server);
            server
        })
    }

    /// One of a test's own, to be stopped or killed.
    pub(crate) fn start() -> Arc<Self> {
        Self::start_with(|_| Vec::new())
    }

    /// One with more settings (`name=value`), which may name files that are put into its folder first.
    pub(crate) fn start_with(settings: impl FnOnce(&Files) -> Vec<String>) -> Arc<Self> {
        let files = Files::new();
        let settings = settings(&files);
        let folder = files.0;
        shell(
            as_server(&folder, "initdb")
                .args(["--encoding=UTF8", "--locale=C", "--auth=trust", "--no-sync"])
                .arg(format!("--username={USER}"))
                .arg("--pgdata")
                .arg(data(&folder)),
        );
        // A role whose name says so needs its password. Others than this machine come by a test's own network.
        let rules = format!(
            "host all with_password 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\nhost all all {ADDRESSES} trust\n"
        );
        fs::write(data(&folder).join("pg_hba.conf"), rules).expect("the server's folder");
        let server = Self {
            folder,
            port: free_port(),
            settings,
            running: Mutex::new(None),
            databases: AtomicU32::new(0),
        };
        server.start_again();
        Arc::new(server)
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Starts it with what it has kept, on the same port; returns when it takes connections.
    pub(crate) fn start_again(&self) {
        // After a kill -9 it refuses to start until the last of its processes has seen that.
        eventually("PostgreSQL starts", || {
            let running = self.spawn();
            let process = running.process;
            let is_ready = eventually("PostgreSQL takes connections, or ends", || {
                if running.waits.is_finished() {
                    return Some(false);
                }
                // Who it is, in the first line, and how far it is, in the eighth.
                let told = fs::read_to_string(data(&self.folder).join("postmaster.pid")).ok()?;
                let mut lines = told.lines().map(str::trim);
                let is_ours = lines.next() == Some(&process.as_raw_nonzero().to_string());
                (is_ours && lines.nth(6) == Some("ready")).then_some(true)
            });
            let log = self.log();
            assert!(
                is_ready || log.contains("still in use"),
                "PostgreSQL does not start:\n{log}"
            );
            is_ready.then(|| *self.running() = Some(running))
        });
    }

    fn spawn(&self) -> Running {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.log_file())
            .expect("a log");
        let mut command = as_server(&self.folder, "postgres");
        command.arg("-D").arg(data(&self.folder)).stderr(log);
        let fixed = [
            format!("port={}", self.port),
            "listen_addresses=127.0.0.1".into(),
            "unix_socket_directories=".into(),
            "max_connections=300".into(),
            "shared_buffers=64MB".into(),
            "fsync=on".into(),
            "synchronous_commit=on".into(),
            "full_page_writes=on".into(),
        ];
        for setting in fixed.iter().chain(&self.settings) {
            command.arg("-c").arg(setting);
        }
        let (spawned, process) = mpsc::channel();
        // A thread of its own that lives as long as it: the server ends with its parent, which is a thread to the kernel.
        let waits = thread::spawn(move || {
            let mut child = command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .expect("setpriv is there");
            spawned.send(child.id()).expect("somebody asked");
            child.wait().expect("the server ends");
        });
        let process = process.recv().expect("it was spawned");
        let process = Pid::from_raw(process.cast_signed()).expect("a process");
        Running { process, waits }
    }

    /// Ends it as `pg_ctl stop -m immediate` does: no transaction is finished, and the next start recovers.
    pub(crate) fn stop_immediate(&self) {
        self.end(Signal::QUIT);
    }

    /// Ends it in good order: running transactions are rolled back, connections told.
    pub(crate) fn stop(&self) {
        self.end(Signal::INT);
    }

    /// Ends its first process with no chance to do anything; the others end when they see that.
    pub(crate) fn kill9(&self) {
        self.end(Signal::KILL);
    }

    fn end(&self, signal: Signal) {
        let Some(Running { process, waits }) = self.running().take() else {
            return;
        };
        // It may have ended by itself.
        let _ = kill_process(process, signal);
        let _ = waits.join();
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// A new, empty database.
    pub(crate) fn database(self: &Arc<Self>) -> Database {
        self.database_with("")
    }

    /// The same, with options of `CREATE DATABASE`.
    pub(crate) fn database_with(self: &Arc<Self>, options: &str) -> Database {
        let number = self.databases.fetch_add(1, Ordering::Relaxed);
        let name = format!("store_{number}");
        self.sql("postgres", &format!("CREATE DATABASE {name} {options}"));
        Database {
            server: Arc::clone(self),
            name,
        }
    }

    /// Runs statements in a database, each by itself, and returns what they print.
    #[track_caller]
    pub(crate) fn sql(&self, database: &str, statements: &str) -> String {
        shell(&mut self.psql(database, statements)).trim().to_owned()
    }

    /// The same for statements that may fail, in one transaction unless they say otherwise.
    pub(crate) fn try_sql(&self, database: &str, statements: &str) -> Output {
        run(&mut self.psql(database, statements))
    }

    fn psql(&self, database: &str, statements: &str) -> Command {
        let mut psql = Command::new(program("psql"));
        psql.env_clear()
            .args(["--no-psqlrc", "--quiet", "--no-align", "--tuples-only"])
            .args(["--set", "ON_ERROR_STOP=1", "--host=127.0.0.1"])
            .arg(format!("--port={}", self.port))
            .arg(format!("--username={USER}"))
            .args(["--dbname", database, "--command", statements]);
        psql
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop_immediate();
    }
}

/// A server's folder, before it is made.
pub(crate) struct Files(Folder);

impl Files {
    fn new() -> Self {
        let folder = Folder::new();
        give(folder.path());
        Self(folder)
    }

    /// Puts a file there that only the server can read, and returns its path.
    pub(crate) fn put(&self, name: &str, text: &str) -> String {
        let path = self.0.path().join(name);
        fs::write(&path, text).expect("the server's folder");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("its file");
        give(&path);
        path.to_str().expect("a path in UTF-8").to_owned()
    }
}

/// A database on a server. Removed when dropped.
pub(crate) struct Database {
    server: Arc<Postgres>,
    name: String,
}

impl Database {
    /// A new, empty one on the server that all tests of this process share.
    pub(crate) fn new() -> Self {
        Postgres::shared().database()
    }

    pub(crate) fn server(&self) -> &Arc<Postgres> {
        &self.server
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// What `DATABASE_URL` is set to.
    pub(crate) fn url(&self) -> String {
        self.url_through(self.server.port)
    }

    /// The same, by way of another port.
    pub(crate) fn url_through(&self, port: u16) -> String {
        self.url_at(&format!("127.0.0.1:{port}"))
    }

    /// The same, for those to whom the server has another address.
    pub(crate) fn url_from(&self, host: &str) -> String {
        self.url_at(&format!("{host}:{}", self.server.port))
    }

    fn url_at(&self, address: &str) -> String {
        format!("postgres://{USER}@{address}/{}", self.name)
    }

    /// Runs statements in it and returns what they print.
    #[track_caller]
    pub(crate) fn sql(&self, statements: &str) -> String {
        self.server.sql(&self.name, statements)
    }

    /// Starts an instance on it.
    #[track_caller]
    pub(crate) fn instance(&self) -> Server {
        Server::start_with(&[("DATABASE_URL", &self.url())])
    }

    /// Starts some.
    #[track_caller]
    pub(crate) fn instances<const COUNT: usize>(&self) -> [Server; COUNT] {
        std::array::from_fn(|_| self.instance())
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if self.server.running().is_some() {
            let drop = format!("DROP DATABASE {} WITH (FORCE)", self.name);
            // A test that failed has other worries.
            let _ = run(&mut self.server.psql("postgres", &drop));
        }
    }
}

fn data(folder: &Folder) -> PathBuf {
    folder.path().join("data")
}

/// One of PostgreSQL's programs, as a user that it runs for: it refuses root. It ends when the thread that starts it does.
fn as_server(folder: &Folder, name: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.current_dir(folder.path()).args(["--pdeathsig", "QUIT"]);
    if rustix::process::geteuid().is_root() {
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
    }
    command.arg(program(name));
    command
}

/// Gives a file or folder to the user that the server runs for.
fn give(path: &Path) {
    if rustix::process::geteuid().is_root() {
        let id = |flag| {
            shell(Command::new("id").args([flag, "postgres"]))
                .trim()
                .parse()
                .expect("a number")
        };
        chown(path, Some(id("-u")), Some(id("-g"))).expect("root may give files away");
    }
}

/// Where a program of PostgreSQL is: the newest version's of Debian's packages, or in the search path.
fn program(name: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let newest = versions
        .map(|version| version.path().join("bin").join(name))
        .filter(|path| path.exists())
        .max_by_key(|path| {
            let version = path.iter().nth(4).and_then(|name| name.to_str());
            version.and_then(|version| version.parse::<u32>().ok())
        });
    let search_path = std::env::var_os("PATH").unwrap_or_default();
    newest
        .or_else(|| {
            std::env::split_paths(&search_path)
                .map(|folder| folder.join(name))
                .find(|path| path.exists())
        })
        .unwrap_or_else(|| {
            panic!("PostgreSQL ({name}) is not installed: run ./scripts/test, which installs what is missing")
        })
}

/// A port that nobody uses, outside of those that the system gives to clients: it stays free while the server is stopped.
fn free_port() -> u16 {
    loop {
        let port = fastrand::u16(20_000..32_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
