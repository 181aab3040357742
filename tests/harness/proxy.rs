//! A proxy between an instance and its PostgreSQL server, which cuts and holds connections where a network would at the
//! worst moment. It reads the protocol just so far as to know a COMMIT and its answer; TLS would hide them.

use super::eventually;
use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

/// `COMMIT` as a simple query, and the answer to one.
const COMMIT: &[u8] = b"Q\0\0\0\x0bCOMMIT\0";
const COMMITTED: &[u8] = b"C\0\0\0\x0bCOMMIT\0";

/// What an instance says to be told of commits, and what it says when it is made deaf: as long, and of another channel.
const LISTEN: &[u8] = b"LISTEN oncelog";
const LISTEN_ELSEWHERE: &[u8] = b"LISTEN nothing";

/// How late a late COMMIT is: an instance finds out about its commit in a small part of it.
const LATE: Duration = Duration::from_millis(300);

/// Where a commit's connection is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The server never gets the COMMIT.
    Before,
    /// The server has committed; its answer is lost.
    After,
    /// Before as well, but the server gets the COMMIT all the same, when the instance has long been told that the connection is closed.
    Late,
}

/// Passes connections on to a port. Goes on until the test ends.
pub(crate) struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// What happens to whoever commits next.
    next: Mutex<Option<Cut>>,
    cuts: AtomicU64,
    is_silent: AtomicBool,
    hints: Hints,
    /// Connections that have asked for hints.
    listeners: AtomicU64,
}

/// What becomes of a connection for hints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Hints {
    #[default]
    Pass,
    /// It is told of nothing.
    Deaf,
    /// It stays open, and what it says is never answered.
    Stuck,
}

impl Proxy {
    /// To a port of this machine.
    pub(crate) fn to(port: u16) -> Self {
        Self::start(port, Shared::default())
    }

    /// The same; what others notify of does not come through.
    pub(crate) fn deaf(port: u16) -> Self {
        Self::with_hints(port, Hints::Deaf)
    }

    /// The same; a connection for hints gets no answer when it comes up.
    pub(crate) fn stuck_for_hints(port: u16) -> Self {
        Self::with_hints(port, Hints::Stuck)
    }

    fn with_hints(port: u16, hints: Hints) -> Self {
        let shared = Shared {
            hints,
            ..Shared::default()
        };
        Self::start(port, shared)
    }

    fn start(port: u16, shared: Shared) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let proxy = Self {
            port: listener.local_addr().expect("its address").port(),
            shared: Arc::new(shared),
        };
        let shared = Arc::clone(&proxy.shared);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // Without a server, a connection is closed at once, as the server's machine would refuse it.
                if let Ok(server) = TcpStream::connect(("127.0.0.1", port)) {
                    pass(client, server, &shared);
                }
            }
        });
        proxy
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Cuts the connection of the next commit there, and returns when that is done.
    pub(crate) fn cut(&self, cut: Cut) {
        let before = self.shared.cuts.load(Ordering::SeqCst);
        *self.shared.next.lock().unwrap_or_else(PoisonError::into_inner) = Some(cut);
        eventually("a commit is cut off", || {
            (self.shared.cuts.load(Ordering::SeqCst) > before).then_some(())
        });
    }

    /// How many connections have asked for hints.
    pub(crate) fn listeners(&self) -> u64 {
        self.shared.listeners.load(Ordering::SeqCst)
    }

    /// Holds everything back, in both directions, as a network does that drops every packet: nobody is told.
    pub(crate) fn hold(&self) {
        self.shared.is_silent.store(true, Ordering::SeqCst);
    }

    /// Passes everything on again, what was held back first.
    pub(crate) fn pass_on(&self) {
        self.shared.is_silent.store(false, Ordering::SeqCst);
    }
}

/// Passes on one connection, on two threads that end with it.
fn pass(client: TcpStream, server: TcpStream, shared: &Arc<Shared>) {
    for stream in [&client, &server] {
        stream.set_nodelay(true).expect("a socket");
    }
    let loses_answer = Arc::new(AtomicBool::new(false));
    let clone = |stream: &TcpStream| stream.try_clone().expect("a socket");
    let (from_client, to_server) = (clone(&client), clone(&server));
    let (up, loses) = (Arc::clone(shared), Arc::clone(&loses_answer));
    thread::spawn(move || {
        copy(from_client, to_server, COMMIT, &up, || {
            let cut = up.next.lock().unwrap_or_else(PoisonError::into_inner).take();
            loses.store(cut == Some(Cut::After), Ordering::SeqCst);
            cut.filter(|cut| *cut != Cut::After)
        });
    });
    let down = Arc::clone(shared);
    thread::spawn(move || {
        copy(server, client, COMMITTED, &down, || {
            loses_answer.load(Ordering::SeqCst).then_some(Cut::After)
        });
    });
}

/// Passes bytes on until an end closes, or until `cut` says so when `mark` comes, which is not passed on then.
fn copy(
    mut from: TcpStream,
    mut to: TcpStream,
    mark: &[u8],
    shared: &Shared,
    mut cut: impl FnMut() -> Option<Cut>,
) {
    // What may be the beginning of a mark waits for the rest of it.
    let mut held: Vec<u8> = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        while shared.is_silent.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(2));
        }
        held.extend_from_slice(&buffer[..count]);
        if let Some(place) = find(&held, LISTEN) {
            shared.listeners.fetch_add(1, Ordering::SeqCst);
            match shared.hints {
                Hints::Pass => {}
                Hints::Deaf => held[place..place + LISTEN.len()].copy_from_slice(LISTEN_ELSEWHERE),
                Hints::Stuck => held.clear(),
            }
        }
        let marked = find(&held, mark);
        let cut = marked.and_then(|_| cut());
        let upto = match (marked, cut) {
            (Some(place), Some(_)) => place,
            (Some(_), None) => held.len(),
            (None, _) => {
                let begun = (1..mark.len())
                    .rev()
                    .find(|&count| held.ends_with(&mark[..count]));
                held.len() - begun.unwrap_or(0)
            }
        };
        if to.write_all(&held[..upto]).is_err() {
            break;
        }
        held.drain(..upto);
        if let Some(cut) = cut {
            shared.cuts.fetch_add(1, Ordering::SeqCst);
            if cut == Cut::Late {
                let _ = from.shutdown(Shutdown::Both);
                thread::sleep(LATE);
                let _ = to.write_all(&held);
            }
            // Both directions: each end is a handle to the same connection as the other direction's.
            let _ = from.shutdown(Shutdown::Both);
            let _ = to.shutdown(Shutdown::Both);
            return;
        }
    }
    // This direction alone, as the end did that closed. Either may be closed already.
    let _ = from.shutdown(Shutdown::Read);
    let _ = to.shutdown(Shutdown::Write);
}

fn find(bytes: &[u8], mark: &[u8]) -> Option<usize> {
    bytes.windows(mark.len()).position(|found| found == mark)
}
