//! Clients that do what they should not.

use super::{
    crowd::{Crowd, PAUSE},
    wire::{Connection, Receiver},
};
use oncelog::compression::Coding;
use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};
use tokio::time::{sleep, timeout};

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Abuse {
    /// Connects and says nothing.
    Idle,
    /// Sends a head byte by byte.
    SlowHead,
    /// Sends almost all of a head of the largest size, then byte by byte.
    SlowLargeHead,
    /// Sends some KiB of a body, then byte by byte.
    SlowBody,
    /// Sends much of a large body, then byte by byte.
    SlowLargeBody,
    /// Sends chunks for ever.
    EndlessBody,
    /// Sends a body of the largest size, which is no JSON, so that it costs much and stores nothing.
    HugeBody,
    /// Announces a body that is one byte too large.
    TooLarge,
    /// Announces more than it sends; then less.
    WrongLength,
    /// Sends bodies that are small and become a thousand times as large: within the bound, and beyond it.
    Compressed,
    /// Asks for the largest page, and takes a byte now and then.
    SlowReader,
    /// Asks for the largest page, compressed in each way.
    CompressedPages,
    /// Asks for the largest file many times over, and takes a byte now and then.
    SlowDownload,
    /// Sends heads beyond the bounds.
    LargeHeads,
    /// Sends thousands of requests at once and takes no answer.
    Pipeline,
    /// Searches everything for what is not there.
    Search,
}

/// What clients saw: answers by status, and connections that were closed without one.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) answers: BTreeMap<u16, u64>,
    pub(super) closed: u64,
}

/// Shared by the clients of one kind.
#[derive(Clone, Default)]
pub(super) struct Tally(Arc<Mutex<Seen>>);

/// How often a client does it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Times {
    Once,
    Again,
}

const LARGEST_BODY: usize = 16 << 20;
const LARGEST_HEAD: usize = 32 << 10;
const GET: &str = "HTTP/1.1\r\nhost: x\r\n\r\n";

/// Adds `clients` that do this.
pub(super) fn add(
    crowd: &mut Crowd,
    address: SocketAddr,
    abuse: Abuse,
    clients: usize,
    times: Times,
) -> Tally {
    let tally = Tally::default();
    for _ in 0..clients {
        let seen = tally.clone();
        crowd.add(async move {
            loop {
                if abuse.act(address, &seen).await.is_err() {
                    seen.lock(|seen| seen.closed += 1);
                    sleep(PAUSE).await;
                }
                if times == Times::Once {
                    return;
                }
            }
        });
    }
    tally
}

impl Tally {
    fn lock<T>(&self, look: impl FnOnce(&mut Seen) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many connections were closed without an answer.
    pub(super) fn closed(&self) -> u64 {
        self.lock(|seen| seen.closed)
    }

    /// How many answers had this status.
    pub(super) fn answers(&self, status: u16) -> u64 {
        self.lock(|seen| seen.answers.get(&status).copied().unwrap_or(0))
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.lock(|seen| {
            let answers: Vec<_> = seen
                .answers
                .iter()
                .map(|(status, count)| format!("{count} × {status}"))
                .collect();
            write!(f, "{}", answers.join(", "))?;
            let comma = if answers.is_empty() { "" } else { ", " };
            write!(f, "{comma}{} closed", seen.closed)
        })
    }
}

impl Abuse {
    /// The answers that it may get; and any may be a 503.
    const fn expected(self) -> &'static [u16] {
        match self {
            Self::Idle | Self::SlowHead | Self::SlowLargeHead => &[],
            Self::SlowReader | Self::SlowDownload | Self::Pipeline | Self::Search | Self::CompressedPages => {
                &[200]
            }
            Self::SlowBody | Self::SlowLargeBody => &[408],
            Self::EndlessBody => &[408, 413],
            Self::HugeBody => &[400, 408],
            Self::TooLarge => &[413],
            Self::WrongLength => &[400, 422],
            Self::Compressed => &[400, 413],
            Self::LargeHeads => &[431],
        }
    }

    /// One connection, from its beginning to its end; an error when the server closes it without an answer.
    async fn act(self, address: SocketAddr, seen: &Tally) -> io::Result<()> {
        let Connection {
            mut receiver,
            mut sender,
        } = match self {
            Self::SlowReader | Self::SlowDownload | Self::Pipeline => {
                Connection::open_narrow(address).await?
            }
            _ => Connection::open(address).await?,
        };
        match self {
            Self::Idle => self.answer(&mut receiver, seen).await,
            Self::SlowHead | Self::SlowLargeHead | Self::SlowBody | Self::SlowLargeBody => {
                let sent = match self {
                    Self::SlowHead => half_head(10),
                    Self::SlowLargeHead => half_head(LARGEST_HEAD - 200),
                    Self::SlowBody => body(LARGEST_BODY / 100, 16 << 10),
                    _ => body(LARGEST_BODY, 1 << 20),
                };
                // The server may have had enough already.
                let _ = sender.send(&sent).await;
                loop {
                    if let Ok(end) = timeout(PAUSE, self.answer(&mut receiver, seen)).await {
                        return end;
                    }
                    let _ = sender.send(b"x").await;
                }
            }
            Self::EndlessBody => {
                sender
                    .send(publish("transfer-encoding: chunked\r\n").as_bytes())
                    .await?;
                let chunk = [b"10000\r\n".as_slice(), &[b' '; 1 << 16], b"\r\n"].concat();
                while sender.send(&chunk).await.is_ok() {}
                self.answer(&mut receiver, seen).await
            }
            Self::HugeBody => {
                // Sent in one go: most of it before the server can say no.
                let _ = sender.send(&body(LARGEST_BODY, LARGEST_BODY)).await;
                self.answer(&mut receiver, seen).await
            }
            Self::TooLarge => {
                sender.send(&body(LARGEST_BODY + 1, 0)).await?;
                self.answer(&mut receiver, seen).await
            }
            Self::WrongLength => {
                sender.send(&body(100, 99)).await?;
                sender.end().await?;
                // A client that ends its side is taken to be gone.
                let _ = self.answer(&mut receiver, seen).await;
                let mut other = Connection::open(address).await?;
                other.sender.send(&body(2, 0)).await?;
                other.sender.send(b"{}{}").await?;
                self.answer(&mut other.receiver, seen).await?;
                self.answer(&mut other.receiver, seen).await
            }
            Self::Compressed => {
                drop((sender, receiver));
                // On a connection each, for a 413 ends it.
                for bomb in BOMBS.iter() {
                    let mut other = Connection::open(address).await?;
                    let _ = other.sender.send(bomb).await;
                    self.answer(&mut other.receiver, seen).await?;
                }
                // Who leaves at once does not take his work with him.
                for bomb in BOMBS.iter() {
                    Connection::open(address).await?.sender.send(bomb).await?;
                }
                Ok(())
            }
            Self::SlowReader | Self::SlowDownload => {
                let requests = match self {
                    Self::SlowReader => format!("GET /events?order=asc&limit=1000 {GET}"),
                    _ => format!("GET /docs/swagger-ui-bundle.js {GET}").repeat(10),
                };
                sender.send(requests.as_bytes()).await?;
                loop {
                    receiver.byte().await?;
                    sleep(PAUSE).await;
                }
            }
            Self::LargeHeads => {
                let long = [half_head(4 * LARGEST_HEAD), b"\r\n\r\n".to_vec()].concat();
                let many = [
                    half_head(0),
                    "\r\nx: y".repeat(1_000).into_bytes(),
                    b"\r\n\r\n".to_vec(),
                ]
                .concat();
                let _ = sender.send(&long).await;
                self.answer(&mut receiver, seen).await?;
                let mut other = Connection::open(address).await?;
                let _ = other.sender.send(&many).await;
                self.answer(&mut other.receiver, seen).await
            }
            Self::Pipeline => {
                let requests = [
                    format!("GET /metrics {GET}").repeat(2_000),
                    format!("GET /events?limit=1000 {GET}").repeat(2_000),
                    format!("GET /health {GET}").repeat(2_000),
                ];
                // Blocks when the server has had enough.
                sender.send(requests.concat().as_bytes()).await?;
                loop {
                    sleep(PAUSE).await;
                    sender.send(b"\r\n").await?;
                }
            }
            Self::CompressedPages => {
                for coding in [Coding::Zstd, Coding::Brotli, Coding::Gzip] {
                    let request = format!(
                        "GET /events?order=asc&limit=1000 HTTP/1.1\r\nhost: x\r\naccept-encoding: {}\r\n\r\n",
                        coding.name()
                    );
                    sender.send(request.as_bytes()).await?;
                    self.answer(&mut receiver, seen).await?;
                }
                Ok(())
            }
            Self::Search => {
                let search = format!("GET /events?source=nobody&limit=1000 {GET}");
                sender.send(search.as_bytes()).await?;
                self.answer(&mut receiver, seen).await
            }
        }
    }

    async fn answer(self, receiver: &mut Receiver, seen: &Tally) -> io::Result<()> {
        let answer = receiver.answer().await?;
        answer.check();
        assert!(
            answer.status == 503 || self.expected().contains(&answer.status),
            "{self:?}: {answer:?}"
        );
        seen.lock(|seen| *seen.answers.entry(answer.status).or_default() += 1);
        Ok(())
    }
}

fn half_head(bytes: usize) -> Vec<u8> {
    format!("GET /health HTTP/1.1\r\nhost: x\r\nx: {}", "y".repeat(bytes)).into_bytes()
}

fn publish(headers: &str) -> String {
    format!("POST /publish HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{headers}\r\n")
}

/// Requests with bodies of white space, compressed: as much as there may be, a byte more, and ten times as much.
static BOMBS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let bodies = [LARGEST_BODY, LARGEST_BODY + 1, 10 * LARGEST_BODY].map(|bytes| vec![b' '; bytes]);
    bodies
        .iter()
        .flat_map(|body| {
            [Coding::Gzip, Coding::Zstd].map(|coding| {
                let packed = coding.encode(body).expect("there is memory");
                let head = publish(&format!(
                    "content-encoding: {}\r\ncontent-length: {}\r\n",
                    coding.name(),
                    packed.len()
                ));
                [head.into_bytes(), packed].concat()
            })
        })
        .collect()
});

/// A publish that announces so many bytes and has fewer.
fn body(announced: usize, sent: usize) -> Vec<u8> {
    let head = publish(&format!("content-length: {announced}\r\n"));
    [head.into_bytes(), vec![b' '; sent]].concat()
}
