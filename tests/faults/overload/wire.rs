//! HTTP/1.1 by hand, for clients that do what no HTTP library does.

use std::{io, net::SocketAddr};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        TcpSocket, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

/// A connection that sends whatever it is told.
pub(super) struct Connection {
    pub(super) receiver: Receiver,
    pub(super) sender: Sender,
}

/// Its receiving half.
pub(super) struct Receiver(BufReader<OwnedReadHalf>);

/// Its sending half.
pub(super) struct Sender(OwnedWriteHalf);

/// What came back.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    head: String,
    pub(super) body: Vec<u8>,
}

impl Connection {
    pub(super) async fn open(address: SocketAddr) -> io::Result<Self> {
        Ok(Self::over(TcpStream::connect(address).await?))
    }

    /// With so little room for what the server sends that it soon has to keep it.
    pub(super) async fn open_narrow(address: SocketAddr) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(4 << 10)?;
        Ok(Self::over(socket.connect(address).await?))
    }

    fn over(stream: TcpStream) -> Self {
        let (receiver, sender) = stream.into_split();
        // Small, because there are thousands of them.
        let receiver = Receiver(BufReader::with_capacity(1 << 10, receiver));
        Self {
            receiver,
            sender: Sender(sender),
        }
    }
}

impl Sender {
    pub(super) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes).await
    }

    /// Says that nothing more will be sent.
    pub(super) async fn end(&mut self) -> io::Result<()> {
        self.0.shutdown().await
    }
}

impl Receiver {
    /// One byte of whatever comes; an error when the server has closed.
    pub(super) async fn byte(&mut self) -> io::Result<u8> {
        self.0.read_u8().await
    }

    /// The next answer; an error when the server has closed instead.
    pub(super) async fn answer(&mut self) -> io::Result<Answer> {
        let mut head = String::new();
        loop {
            let before = head.len();
            if self.0.read_line(&mut head).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if head[before..].trim_end().is_empty() {
                break;
            }
        }
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .ok_or_else(|| io::Error::other(format!("not an HTTP answer: {head:?}")))?;
        let mut answer = Answer {
            status,
            head,
            body: Vec::new(),
        };
        let length = answer.header("content-length").map(str::parse);
        if let Some(length) = length.transpose().map_err(io::Error::other)? {
            answer.body.resize(length, 0);
            self.0.read_exact(&mut answer.body).await?;
        }
        Ok(answer)
    }
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }

    /// Fails when this is a refusal that does not say what a client needs to know. What hyper refuses by itself, a head
    /// that is no HTTP or too large, has no body.
    #[track_caller]
    pub(super) fn check(&self) {
        if self.status < 400 {
            return;
        }
        let by_hyper = [400, 431].contains(&self.status) && self.body.is_empty();
        assert!(
            by_hyper || self.header("content-type") == Some("application/problem+json"),
            "a refusal is a problem document: {self:?}"
        );
        assert_eq!(
            self.header("retry-after").is_some(),
            self.status == 503,
            "Retry-After: {self:?}"
        );
    }
}
