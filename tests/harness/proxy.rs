//! A proxy between an instance and its PostgreSQL server, which cuts and holds connections where a network would at the
//! worst moment. It reads the protocol just so far as to know what ends a commit and the answer to that; TLS would hide them.

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

/// What the statement has that does all of a small commit in one call, and the answer to a call. It has a name since it was
/// prepared, and a call has only that.
const COMMIT_FEW: &[u8] = b"commit_few(";
const COMMITTED_FEW: &[u8] = b"C\0\0\0\x0dSELECT 1\0";

/// The answer to an INSERT that was a transaction of its own: an instance asks in that way what became of a commit that got
/// no answer, and in no other case. It did not happen, or it did.
const DISOWNED: &[u8] = b"C\0\0\0\x0fINSERT 0 1\0Z\0\0\0\x05I";
const HAPPENED: &[u8] = b"C\0\0\0\x0fINSERT 0 0\0Z\0\0\0\x05I";

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
    /// Whether the next answer that tells what became of a commit is lost, and how many were.
    loses_outcome: AtomicBool,
    lost_outcomes: AtomicU64,
    /// Whether nobody gets through any more once the next commit is cut off; and whether it is so now.
    goes_down: AtomicBool,
    is_down: AtomicBool,
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
                if !shared.is_down()
                    && let Ok(server) = TcpStream::connect(("127.0.0.1", port))
                {
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

    /// Cuts the connection of the next commit there, whenever that comes, and from then on all others, old and new, until
    /// [`Self::let_through`]. (So no COMMIT comes late.)
    pub(crate) fn cut_off(&self, cut: Cut) {
        self.shared.goes_down.store(true, Ordering::SeqCst);
        *self.shared.next.lock().unwrap_or_else(PoisonError::into_inner) = Some(cut);
    }

    /// Undoes what [`Self::cut_off`] did.
    pub(crate) fn let_through(&self) {
        self.shared.is_down.store(false, Ordering::SeqCst);
    }

    /// Cuts a connection where the server has just told what became of a commit that got no answer: the next one that does.
    pub(crate) fn lose_outcome(&self) {
        self.shared.loses_outcome.store(true, Ordering::SeqCst);
    }

    /// How many such answers were lost.
    pub(crate) fn lost_outcomes(&self) -> u64 {
        self.shared.lost_outcomes.load(Ordering::SeqCst)
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

impl Shared {
    fn is_down(&self) -> bool {
        self.is_down.load(Ordering::SeqCst)
    }

    /// Notes that a connection is cut at a commit.
    fn is_cut(&self) {
        if self.goes_down.swap(false, Ordering::SeqCst) {
            self.is_down.store(true, Ordering::SeqCst);
        }
        self.cuts.fetch_add(1, Ordering::SeqCst);
    }
}

/// How a connection is cut at a mark.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// What is marked is lost.
    Lost,
    /// It is passed on when the other end has long been told that the connection is closed.
    Late,
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
        copy(from_client, to_server, &[COMMIT], &up, |_| {
            let cut = up.next.lock().unwrap_or_else(PoisonError::into_inner).take()?;
            let end = match cut {
                Cut::Before => End::Lost,
                Cut::Late => End::Late,
                Cut::After => {
                    loses.store(true, Ordering::SeqCst);
                    return None;
                }
            };
            up.is_cut();
            Some(end)
        });
    });
    let down = Arc::clone(shared);
    thread::spawn(move || {
        let marks = [COMMITTED, COMMITTED_FEW, DISOWNED, HAPPENED];
        copy(server, client, &marks, &down, |mark| {
            if mark == COMMITTED || mark == COMMITTED_FEW {
                return loses_answer.load(Ordering::SeqCst).then(|| {
                    down.is_cut();
                    End::Lost
                });
            }
            down.loses_outcome.swap(false, Ordering::SeqCst).then(|| {
                down.lost_outcomes.fetch_add(1, Ordering::SeqCst);
                End::Lost
            })
        });
    });
}

/// Passes bytes on until an end closes, or until `cut` says so when one of the marks comes, which is not passed on then.
fn copy(
    mut from: TcpStream,
    mut to: TcpStream,
    marks: &[&[u8]],
    shared: &Shared,
    mut cut: impl FnMut(&[u8]) -> Option<End>,
) {
    let mut marks: Vec<Vec<u8>> = marks.iter().map(|mark| mark.to_vec()).collect();
    // What may be the beginning of a mark waits for the rest of it.
    let mut held: Vec<u8> = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        while shared.is_silent.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(2));
        }
        if shared.is_down() {
            close(&from, &to);
            return;
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
        marks.extend(call_of_prepared(&held));
        let marked = marks.iter().find_map(|mark| Some((find(&held, mark)?, mark)));
        let end = marked.and_then(|(place, mark)| Some((place, cut(mark)?)));
        let upto = match (marked, end) {
            (_, Some((place, _))) => place,
            (Some(_), None) => held.len(),
            (None, None) => {
                // Two bytes of one at least: many a message ends as a mark begins, and nothing may come after it for long.
                let begun = |mark: &Vec<u8>| {
                    (2..mark.len())
                        .rev()
                        .find(|&count| held.ends_with(&mark[..count]))
                };
                held.len() - marks.iter().filter_map(begun).max().unwrap_or(0)
            }
        };
        if to.write_all(&held[..upto]).is_err() {
            break;
        }
        held.drain(..upto);
        if let Some((_, end)) = end {
            if end == End::Late {
                let _ = from.shutdown(Shutdown::Both);
                thread::sleep(LATE);
                let _ = to.write_all(&held);
            }
            close(&from, &to);
            return;
        }
    }
    // This direction alone, as the end did that closed. Either may be closed already.
    let _ = from.shutdown(Shutdown::Read);
    let _ = to.shutdown(Shutdown::Write);
}

/// Both directions: each end is a handle to the same connection as the other direction's.
fn close(from: &TcpStream, to: &TcpStream) {
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// What a call has of the statement that does a small commit, if these bytes prepare that: the portal, without a name, and the
/// statement's name, which is an "s" and a number.
fn call_of_prepared(bytes: &[u8]) -> Option<Vec<u8>> {
    let text = find(bytes, COMMIT_FEW)?;
    let end = bytes[..text].iter().rposition(|&byte| byte == 0)?;
    let start = bytes[..end].iter().rposition(|&byte| byte == b's')?;
    Some([b"\0", &bytes[start..end], b"\0"].concat())
}

fn find(bytes: &[u8], mark: &[u8]) -> Option<usize> {
    bytes.windows(mark.len()).position(|found| found == mark)
}
