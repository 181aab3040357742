//! An HTTP/1.1 client over one kept-open connection: small enough that a test sees every byte.

use super::{Event, PATIENCE};
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use serde_json::Value;
use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
};

/// One connection to a server.
pub(crate) struct Client {
    address: SocketAddr,
    tls: Option<Arc<ClientConfig>>,
    stream: Option<BufReader<Box<dyn Stream>>>,
}

/// Bytes both ways, encrypted or not.
trait Stream: Read + Write + Send {}

impl<S: Read + Write + Send> Stream for S {}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    fn without_body(head: String) -> io::Result<Self> {
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .ok_or_else(|| io::Error::other(format!("not an HTTP answer: {head:?}")))?;
        Ok(Self {
            status,
            head,
            body: Vec::new(),
        })
    }

    /// A header's value.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("the answer is UTF-8")
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("not JSON ({error}): {self:?}"))
    }

    /// The JSON of an answer that must be a 200.
    #[track_caller]
    pub(crate) fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", String::from_utf8_lossy(&self.body));
        self.json()
    }

    /// The problem document of an answer that must have this status.
    #[track_caller]
    pub(crate) fn problem(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        assert_eq!(
            self.header("content-type"),
            Some("application/problem+json"),
            "{}",
            self.head
        );
        let problem = self.json();
        assert_eq!(problem["status"], status, "{problem}");
        problem
    }
}

impl Client {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self {
            address,
            tls: None,
            stream: None,
        }
    }

    /// One that speaks TLS.
    pub(crate) fn with_tls(address: SocketAddr, tls: Arc<ClientConfig>) -> Self {
        Self {
            tls: Some(tls),
            ..Self::new(address)
        }
    }

    #[track_caller]
    pub(crate) fn get(&mut self, target: &str) -> Answer {
        self.request("GET", target, &[], b"")
    }

    #[track_caller]
    pub(crate) fn post(&mut self, target: &str, content_type: &str, body: &[u8]) -> Answer {
        self.request("POST", target, &[("content-type", content_type)], body)
    }

    /// Publishes as `{"events":[…]}` and returns the answer, which must be a 200.
    #[track_caller]
    pub(crate) fn publish(&mut self, events: &[Event]) -> Value {
        self.post(
            "/publish?results=true",
            "application/json",
            &Event::wrapped(events),
        )
        .ok()
    }

    /// The server's counters: received, unique, duplicates, conflicts.
    #[track_caller]
    pub(crate) fn counters(&mut self) -> [u64; 4] {
        let stats = self.get("/stats").ok();
        ["received", "unique_processed", "duplicate_dropped", "conflicts"].map(|name| {
            stats[name]
                .as_u64()
                .unwrap_or_else(|| panic!("{name} in {stats}"))
        })
    }

    #[track_caller]
    pub(crate) fn request(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        self.attempt(method, target, headers, body)
            .unwrap_or_else(|error| panic!("{method} {target}: {error}"))
    }

    /// The same, for tests in which the server may go away at any moment.
    pub(crate) fn attempt(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Answer> {
        let mut request = format!("{method} {target} HTTP/1.1\r\nhost: {}\r\n", self.address);
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() || method == "POST" {
            request.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        request.push_str("\r\n");
        let mut bytes = request.into_bytes();
        bytes.extend_from_slice(body);
        self.send_raw(&bytes)?;
        self.receive()
    }

    /// Gives the connection up; the next request opens another.
    pub(crate) fn reconnect(&mut self) {
        self.stream = None;
    }

    /// Sends bytes as they are.
    pub(crate) fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => {
                let stream = TcpStream::connect(self.address)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                none.insert(BufReader::new(match &self.tls {
                    None => Box::new(stream),
                    Some(tls) => Box::new(encrypted(Arc::clone(tls), self.address, stream)?),
                }))
            }
        };
        stream.get_mut().write_all(bytes)?;
        stream.get_mut().flush()
    }

    /// What is said of an answer, without it.
    #[track_caller]
    pub(crate) fn head(&mut self, target: &str, headers: &[(&str, &str)]) -> Answer {
        let headers: String = headers
            .iter()
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect();
        let request = format!(
            "HEAD {target} HTTP/1.1\r\nhost: {}\r\n{headers}\r\n",
            self.address
        );
        let stream = self
            .send_raw(request.as_bytes())
            .and_then(|()| {
                self.stream
                    .as_mut()
                    .ok_or_else(|| io::Error::other("nothing was sent"))
            })
            .unwrap_or_else(|error| panic!("HEAD {target}: {error}"));
        let head = read_head(stream).unwrap_or_else(|error| panic!("HEAD {target}: {error}"));
        Answer::without_body(head).unwrap_or_else(|error| panic!("HEAD {target}: {error}"))
    }

    /// Reads one answer.
    pub(crate) fn receive(&mut self) -> io::Result<Answer> {
        let stream = self
            .stream
            .as_mut()
            .ok_or_else(|| io::Error::other("nothing was sent"))?;
        let head = read_head(stream)?;
        let mut answer = Answer::without_body(head)?;
        if let Some(length) = answer.header("content-length") {
            let length = length.parse().map_err(io::Error::other)?;
            answer.body.resize(length, 0);
            stream.read_exact(&mut answer.body)?;
        } else if answer.header("transfer-encoding") == Some("chunked") {
            while let Some(chunk) = read_chunk(stream)? {
                answer.body.extend_from_slice(&chunk);
            }
        }
        if answer.header("connection") == Some("close") {
            self.stream = None;
        }
        Ok(answer)
    }

    /// Whether the server has closed the connection; waits until it has, or until it says something.
    pub(crate) fn is_closed(&mut self) -> bool {
        match &mut self.stream {
            None => true,
            Some(stream) => stream.fill_buf().is_ok_and(<[u8]>::is_empty),
        }
    }
}

/// With TLS on it; the handshake comes with the first bytes that are sent.
fn encrypted(
    tls: Arc<ClientConfig>,
    address: SocketAddr,
    stream: TcpStream,
) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
    let session = ClientConnection::new(tls, address.ip().into()).map_err(io::Error::other)?;
    Ok(StreamOwned::new(session, stream))
}

fn read_head(stream: &mut impl BufRead) -> io::Result<String> {
    let mut head = String::new();
    loop {
        let before = head.len();
        if stream.read_line(&mut head)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if head[before..].trim_end().is_empty() {
            return Ok(head);
        }
    }
}

fn read_chunk(stream: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let length = usize::from_str_radix(line.trim_end(), 16).map_err(io::Error::other)?;
    let mut chunk = vec![0; length + 2];
    stream.read_exact(&mut chunk)?;
    chunk.truncate(length);
    Ok((length > 0).then_some(chunk))
}
