//! A thin HTTP/1.1 keep-alive connection for `bench` alone: the load must cost little beside the server it measures.
//!
//! It writes requests that are made already and reads answers that have a length, which is all a publish needs; the
//! other subcommands use [`crate::client`].

use crate::{
    client::{ClientError, Endpoint},
    limits::MAX_BENCH_ANSWER_BYTES,
    tls::Transport,
};
use std::io;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const MAX_ANSWER_HEADERS: usize = 32;

/// An open connection. After an error it must not be used again.
pub(super) struct Connection {
    stream: Transport<TcpStream>,
    buffer: Vec<u8>,
}

/// An answer; its body stands in the connection's buffer until the next exchange.
pub(super) struct Answer<'a> {
    /// The HTTP status.
    pub(super) status: u16,
    /// The body.
    pub(super) body: &'a [u8],
    /// Whether the server closes the connection after this.
    pub(super) closes: bool,
}

struct Head {
    status: u16,
    bytes: usize,
    body_bytes: usize,
    closes: bool,
}

impl Connection {
    pub(super) async fn open(server: &Endpoint) -> Result<Self, ClientError> {
        Ok(Self {
            stream: server.connect().await?,
            buffer: Vec::with_capacity(4096),
        })
    }

    /// Sends a request and waits for its answer.
    pub(super) async fn exchange(&mut self, request: &[u8]) -> io::Result<Answer<'_>> {
        self.stream.write_all(request).await?;
        self.stream.flush().await?;
        self.buffer.clear();
        let head = loop {
            self.receive().await?;
            if let Some(head) = parse_head(&self.buffer)? {
                break head;
            }
        };
        let end = head.bytes.saturating_add(head.body_bytes);
        while self.buffer.len() < end {
            self.receive().await?;
        }
        Ok(Answer {
            status: head.status,
            body: &self.buffer[head.bytes..end],
            closes: head.closes,
        })
    }

    async fn receive(&mut self) -> io::Result<()> {
        if self.buffer.len() > MAX_BENCH_ANSWER_BYTES {
            return Err(io::Error::other("the answer is too long"));
        }
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

/// The head of an answer, once it is complete.
fn parse_head(buffer: &[u8]) -> io::Result<Option<Head>> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_ANSWER_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(bytes) = response.parse(buffer).map_err(io::Error::other)? else {
        return Ok(None);
    };
    let header = |name: &str| {
        response
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case(name))
            .and_then(|header| std::str::from_utf8(header.value).ok())
    };
    let body_bytes = header("content-length")
        .and_then(|length| length.trim().parse().ok())
        .ok_or_else(|| io::Error::other("the answer has no length"))?;
    Ok(Some(Head {
        status: response.code.unwrap_or_default(),
        bytes,
        body_bytes,
        closes: header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_once_it_is_complete() {
        let text = b"HTTP/1.1 503 Busy\r\nCONTENT-length: 2\r\nConnection: close\r\n\r\n{}";
        assert!(parse_head(&text[..30]).unwrap().is_none());
        let head = parse_head(text).unwrap().unwrap();
        assert_eq!((head.status, head.body_bytes, head.closes), (503, 2, true));
        assert_eq!(&text[head.bytes..], b"{}");
    }

    #[test]
    fn an_answer_without_length_or_that_is_not_http_is_an_error() {
        assert!(parse_head(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
        assert!(parse_head(b"SSH-2.0-OpenSSH\r\n\r\n").is_err());
    }
}
