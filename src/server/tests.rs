//! The server on real sockets: its bounds, and how it stops.

use super::Server;
use crate::{
    health::Health,
    http::{
        Timeouts,
        testing::{FakeStore, FakeWriter, event, open_gate},
    },
    ingest,
    limits::{MAX_BODY_BYTES, MAX_HEADER_BYTES, MAX_HEADERS},
    store::{Store, TopicFilter},
    wakeup::Wakeup,
};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
    task::JoinHandle,
};

/// Long enough never to end a test that works.
const LONG: Duration = Duration::from_secs(60);
/// Short enough to wait for.
const SHORT: Duration = Duration::from_millis(50);

struct Running {
    address: SocketAddr,
    store: Arc<FakeStore>,
    stop: Option<oneshot::Sender<()>>,
    server: JoinHandle<Result<(), super::ServeError>>,
}

impl Running {
    fn start(timeouts: Timeouts) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let store = Arc::new(FakeStore::default());
        let (ingest, queue) = ingest::queue(100);
        let server = Server {
            store: Arc::clone(&store) as Arc<dyn Store>,
            writers: vec![Box::new(FakeWriter(Arc::clone(&store)))],
            wakeup: Wakeup::new(0),
            ingest,
            queue,
            broker: None,
            consuming: None,
            health: Health::default(),
            gate: open_gate(),
            tracer: crate::traces::Tracer::default(),
            export: None,
            timeouts,
            places: 100,
            tls: None,
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(server.run(listener, async {
            // A test that forgets to stop the server stops it by ending.
            let _ = stopped.await;
        }));
        Self {
            address,
            store,
            stop: Some(stop),
            server,
        }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("a connection")
    }

    /// Sends bytes on a new connection and reads all that comes back until it is closed.
    async fn exchange(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect().await;
        stream.write_all(bytes).await.expect("sent");
        read_to_end(&mut stream).await
    }

    fn stop(&mut self) {
        self.stop
            .take()
            .expect("stopped once")
            .send(())
            .expect("the server runs");
    }

    async fn ended(self) {
        self.server.await.expect("no panic").expect("a clean stop");
    }
}

async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    stream
        .read_to_end(&mut text)
        .await
        .expect("read to the end, not reset");
    String::from_utf8(text).expect("UTF-8")
}

/// Reads one answer with a `content-length`.
async fn read_answer(stream: &mut TcpStream) -> String {
    let mut text = String::new();
    let mut byte = [0];
    while !text.ends_with("\r\n\r\n") {
        stream.read_exact(&mut byte).await.expect("a head");
        text.push(char::from(byte[0]));
    }
    let length = text
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .map_or(0, |length| length.parse().expect("a number"));
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.expect("a body");
    text + std::str::from_utf8(&body).expect("UTF-8")
}

fn publish(event_id: &str, headers: &str) -> String {
    let body = event("t", event_id).to_string();
    format!(
        "POST /publish HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{headers}\r\n{body}",
        body.len()
    )
}

fn long() -> Timeouts {
    Timeouts {
        header_read: LONG,
        body_read: LONG,
        body_room: LONG,
        stall: LONG,
        query: LONG,
        write: LONG,
        linger: LONG,
        shutdown: LONG,
    }
}

#[tokio::test]
async fn a_connection_serves_one_request_after_the_other() {
    let server = Running::start(long());
    let mut stream = server.connect().await;
    for id in ["1", "2", "2"] {
        stream.write_all(publish(id, "").as_bytes()).await.expect("sent");
        let answer = read_answer(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }
    assert_eq!(server.store.totals(&TopicFilter::all()).unwrap().duplicates, 1);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let server = Running::start(long());
    let requests = format!(
        "{}{}GET /events HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        publish("1", ""),
        publish("1", "")
    );
    let answers = server.exchange(requests.as_bytes()).await;
    let first = answers.find("\"accepted\":1").expect("the first answer");
    let second = answers.find("\"duplicates\":1").expect("the second answer");
    let third = answers.find("\"count\":1").expect("the third answer");
    assert!(first < second && second < third, "{answers}");
}

#[tokio::test]
async fn http_1_0_is_answered_and_closed() {
    let server = Running::start(long());
    let answer = server.exchange(b"GET /health HTTP/1.0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
}

#[tokio::test]
async fn a_query_that_waits_ends_with_its_client() {
    let server = Running::start(long());
    let mut stream = server.connect().await;
    let request = b"GET /events?order=asc&wait=30 HTTP/1.1\r\nhost: x\r\n\r\n";
    stream.write_all(request).await.expect("sent");
    while server.store.pages() == 0 {
        tokio::task::yield_now().await;
    }
    stream.shutdown().await.expect("closed");
    assert_eq!(
        read_to_end(&mut stream).await,
        "",
        "closed, not answered after the wait"
    );
}

#[tokio::test]
async fn a_client_that_does_not_read_its_answers_is_closed() {
    let server = Running::start(Timeouts {
        write: SHORT,
        linger: SHORT,
        ..long()
    });
    let mut stream = server.connect().await;
    // Far more answers than sockets hold: the explorer's script has more than a megabyte.
    let request = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nhost: x\r\n\r\n".repeat(100);
    stream.write_all(&request).await.expect("sent");
    // Writable again and again until the server has closed its side.
    while stream.write_all(b"\r\n").await.is_ok() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_head_that_is_half_there() {
    let mut server = Running::start(long());
    let mut fresh = server.connect().await;
    fresh
        .write_all(b"GET /health HTTP/1.1\r\nhost:")
        .await
        .expect("sent");
    let mut used = server.connect().await;
    used.write_all(publish("1", "").as_bytes()).await.expect("sent");
    read_answer(&mut used).await;
    used.write_all(b"GET /hea").await.expect("sent");
    // All three connections were accepted in this order.
    let mut silent = server.connect().await;
    let mut last = server.connect().await;
    last.write_all(publish("2", "").as_bytes()).await.expect("sent");
    read_answer(&mut last).await;
    server.stop();
    for stream in [&mut fresh, &mut used, &mut silent, &mut last] {
        assert_eq!(read_to_end(stream).await, "");
    }
    server.ended().await;
}

#[tokio::test]
async fn a_slow_head_is_closed() {
    let server = Running::start(Timeouts {
        header_read: SHORT,
        linger: SHORT,
        ..long()
    });
    assert_eq!(server.exchange(b"GET /health HTTP/1.1\r\nhost:").await, "");
    assert_eq!(server.exchange(b"").await, "", "an idle connection as well");
}

#[tokio::test]
async fn a_slow_body_is_408_and_closed() {
    let server = Running::start(Timeouts {
        body_read: SHORT,
        linger: SHORT,
        ..long()
    });
    let request = publish("1", "");
    let answer = server.exchange(&request.as_bytes()[..request.len() - 1]).await;
    assert!(answer.starts_with("HTTP/1.1 408 Request Timeout\r\n"), "{answer}");
    assert!(answer.contains("/problems/body-too-slow"), "{answer}");
    assert_eq!(server.store.totals(&TopicFilter::all()).unwrap().accepted, 0);
}

#[tokio::test]
async fn a_body_that_comes_in_parts_is_waited_for() {
    let server = Running::start(long());
    let request = publish("1", "connection: close\r\n");
    let mut stream = server.connect().await;
    for part in request.as_bytes().chunks(40) {
        stream.write_all(part).await.expect("sent");
        tokio::task::yield_now().await;
    }
    assert!(read_to_end(&mut stream).await.contains("\"accepted\":1"));
}

#[tokio::test]
async fn an_announced_body_that_is_too_large_is_413_before_it_is_read() {
    let server = Running::start(Timeouts {
        linger: SHORT,
        ..long()
    });
    let head = format!(
        "POST /publish HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        MAX_BODY_BYTES + 1
    );
    let answer = server.exchange(head.as_bytes()).await;
    assert!(
        answer.starts_with("HTTP/1.1 413 Payload Too Large\r\n"),
        "{answer}"
    );
    assert!(answer.contains("connection: close\r\n"), "{answer}");
}

#[tokio::test]
async fn a_client_that_sends_on_hears_the_413_before_the_connection_is_closed() {
    let server = Running::start(long());
    let mut stream = server.connect().await;
    let head = "POST /publish HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("sent");
    // Twice what is allowed, all of it sent before the answer is read.
    let chunk = [b"100000\r\n".as_slice(), &vec![b' '; 1 << 20], b"\r\n"].concat();
    for _ in 0..2 * MAX_BODY_BYTES / (1 << 20) {
        stream.write_all(&chunk).await.expect("taken, not reset");
    }
    stream.shutdown().await.expect("closed");
    let answer = read_to_end(&mut stream).await;
    assert!(
        answer.starts_with("HTTP/1.1 413 Payload Too Large\r\n"),
        "{answer}"
    );
    assert!(answer.contains("/problems/body-too-large"), "{answer}");
}

#[tokio::test]
async fn a_head_that_is_too_large_is_431() {
    let server = Running::start(Timeouts {
        linger: SHORT,
        ..long()
    });
    let large = format!(
        "GET /health HTTP/1.1\r\nx: {}\r\n\r\n",
        "y".repeat(MAX_HEADER_BYTES)
    );
    let answer = server.exchange(large.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
}

#[tokio::test]
async fn a_request_may_have_as_many_headers_as_the_limit_says() {
    let server = Running::start(Timeouts {
        linger: SHORT,
        ..long()
    });
    let request = |headers: usize| {
        let headers = "x: y\r\n".repeat(headers - 1);
        format!("GET /health HTTP/1.1\r\nconnection: close\r\n{headers}\r\n")
    };
    let most = server.exchange(request(MAX_HEADERS).as_bytes()).await;
    assert!(most.starts_with("HTTP/1.1 200 "), "{most}");
    let more = server.exchange(request(MAX_HEADERS + 1).as_bytes()).await;
    assert!(more.starts_with("HTTP/1.1 431 "), "{more}");
}

#[tokio::test]
async fn what_is_no_http_is_400() {
    let server = Running::start(Timeouts {
        linger: SHORT,
        ..long()
    });
    let answer = server.exchange(b"hello\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[tokio::test]
async fn a_stop_closes_idle_connections_and_refuses_new_ones() {
    let mut server = Running::start(long());
    let mut idle = server.connect().await;
    idle.write_all(publish("1", "").as_bytes()).await.expect("sent");
    read_answer(&mut idle).await;
    server.stop();
    assert_eq!(read_to_end(&mut idle).await, "");
    let address = server.address;
    server.ended().await;
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_stop_wakes_waiting_readers_and_answers_them() {
    let mut server = Running::start(long());
    let mut reader = server.connect().await;
    let request = b"GET /events?order=asc&wait=30 HTTP/1.1\r\nhost: x\r\n\r\n";
    reader.write_all(request).await.expect("sent");
    while server.store.pages() == 0 {
        tokio::task::yield_now().await;
    }
    server.stop();
    let answer = read_to_end(&mut reader).await;
    assert!(answer.contains("\"caught_up\":true"), "{answer}");
    server.ended().await;
}

#[tokio::test]
async fn a_stop_finishes_a_request_that_is_half_there() {
    let mut server = Running::start(long());
    let mut stream = server.connect().await;
    let request = publish("1", "expect: 100-continue\r\n");
    let (head, body) = request.split_at(request.find("\r\n\r\n").expect("a head") + 4);
    stream.write_all(head.as_bytes()).await.expect("sent");
    assert!(
        read_answer(&mut stream)
            .await
            .starts_with("HTTP/1.1 100 Continue")
    );
    server.stop();
    stream.write_all(body.as_bytes()).await.expect("sent");
    let answer = read_to_end(&mut stream).await;
    assert!(answer.contains("\"accepted\":1"), "{answer}");
    let store = Arc::clone(&server.store);
    server.ended().await;
    assert_eq!(store.totals(&TopicFilter::all()).unwrap().accepted, 1);
}

#[tokio::test]
async fn a_stop_does_not_wait_for_ever() {
    let mut server = Running::start(Timeouts {
        shutdown: SHORT,
        ..long()
    });
    let mut stream = server.connect().await;
    let request = publish("1", "expect: 100-continue\r\n");
    let head = &request[..request.find("\r\n\r\n").expect("a head") + 4];
    stream.write_all(head.as_bytes()).await.expect("sent");
    assert!(
        read_answer(&mut stream)
            .await
            .starts_with("HTTP/1.1 100 Continue")
    );
    server.stop();
    server.ended().await;
}
