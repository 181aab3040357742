//! Starts the program: as a server with a store of its own, and as the command under test; and a scripted server for
//! what a real one does too rarely.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Output, Stdio},
    thread,
};
use tempfile::TempDir;

/// A bound of `bench` in milliseconds that holds on any machine: what is tested is not how fast this one is.
pub(crate) const SLOW_ENOUGH: &str = "3600000";

/// The program, in `folder`, with no settings from outside.
pub(crate) fn oncelog(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_oncelog"));
    command
        .env_clear()
        .current_dir(folder)
        .stdin(Stdio::null())
        .args(arguments);
    command
}

/// Runs a command to its end.
pub(crate) fn run(folder: &Path, arguments: &[&str]) -> Output {
    oncelog(folder, arguments).output().unwrap()
}

/// What a command printed.
pub(crate) fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// What a command printed with `--json`.
pub(crate) fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}{}", text(&output.stdout), text(&output.stderr)))
}

/// A running server; killed when it is dropped.
pub(crate) struct Server {
    process: Child,
    pub(crate) url: String,
}

impl Server {
    /// Starts one on any free port, with its store in `folder`.
    pub(crate) fn start(folder: &Path) -> Self {
        Self::start_on(folder, "0")
    }

    pub(crate) fn start_on(folder: &Path, port: &str) -> Self {
        let mut process = oncelog(folder, &["serve", "--port", port])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap()).lines();
        let url = log
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| {
                let (_, address) = line.split_once("listening address=")?;
                Some(address.split_whitespace().next()?.to_owned())
            })
            .expect("the server says where it listens");
        // A full pipe would stop the server.
        thread::spawn(move || log.map_while(Result::ok).for_each(drop));
        Self { process, url }
    }

    pub(crate) fn port(&self) -> &str {
        self.url.rsplit(':').next().unwrap()
    }

    /// Stops it with SIGTERM and returns its exit code.
    pub(crate) fn stop(mut self) -> Option<i32> {
        let id = self.process.id();
        // The shell has `kill` built in; the program of that name is in a package that may be missing.
        let sent = Command::new("sh").args(["-c", &format!("kill {id}")]).status();
        assert!(sent.unwrap().success());
        self.process.wait().unwrap().code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A folder for a test.
pub(crate) fn folder() -> TempDir {
    TempDir::new().unwrap()
}

/// An event as a line for `publish`.
pub(crate) fn line(topic: &str, id: usize) -> String {
    format!(
        "{{\"topic\":\"{topic}\",\"event_id\":\"{id}\",\"timestamp\":\"2025-10-23T10:00:00Z\",\"source\":\"test\",\
         \"payload\":{{\"b\": {id}.0, \"a\":\"x\"}}}}"
    )
}

/// How a scripted server reacts to a request.
pub(crate) enum Reaction {
    Answer(&'static str, String),
    /// It closes the connection without an answer.
    Close,
}

/// A server that reacts to its requests as `script` says, one request a connection; it ends with the script.
/// Returns its URL and, from its thread, the requests' bodies.
pub(crate) fn scripted(script: Vec<Reaction>) -> (String, thread::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let thread = thread::spawn(move || {
        let mut bodies = Vec::new();
        for reaction in script {
            let (stream, _) = listener.accept().unwrap();
            let mut stream = BufReader::new(stream);
            bodies.extend(read_request(&mut stream));
            if let Reaction::Answer(status, body) = reaction {
                answer(stream.get_mut(), status, &body);
            }
        }
        bodies
    });
    (url, thread)
}

fn read_request(stream: &mut BufReader<TcpStream>) -> Option<String> {
    let mut length = 0;
    loop {
        let mut header = String::new();
        if stream.read_line(&mut header).ok()? == 0 {
            return None;
        }
        let header = header.trim_end().to_ascii_lowercase();
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if header.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    String::from_utf8(body).ok()
}

fn answer(stream: &mut TcpStream, status: &str, body: &str) {
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
}
