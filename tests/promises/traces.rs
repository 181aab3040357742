//! Spans of requests reach a collector of OpenTelemetry, as parts of the traces of those who sent them; and whatever
//! the collector does, requests are answered as without one.
//!
//! The collector is a small one of the test's own; what it gets is read with the messages that OpenTelemetry publishes.

use crate::harness::{Event, Server, eventually};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{ResourceSpans, Span, span::SpanKind},
};
use prost::Message;
use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering},
    },
    thread,
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// What listens for spans, until the test ends.
struct Collector {
    address: SocketAddr,
    inside: Arc<Inside>,
}

#[derive(Default)]
struct Inside {
    received: Mutex<Vec<ResourceSpans>>,
    /// What it answers with.
    status: AtomicU16,
}

impl Collector {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let inside = Arc::new(Inside {
            status: AtomicU16::new(200),
            ..Inside::default()
        });
        let there = Arc::clone(&inside);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let inside = Arc::clone(&there);
                // It ends when the server closes the connection.
                thread::spawn(move || inside.serve(stream.unwrap()));
            }
        });
        Self { address, inside }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn answer_with(&self, status: u16) {
        self.inside.status.store(status, Ordering::Relaxed);
    }

    fn spans(&self) -> Vec<Span> {
        let received = self.inside.received.lock().unwrap();
        let scopes = received.iter().flat_map(|resource| &resource.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }

    /// The spans of this name, once there are so many.
    fn wait_for(&self, name: &str, count: usize) -> Vec<Span> {
        eventually(&format!("{count} spans {name}"), || {
            let mut spans = self.spans();
            spans.retain(|span| span.name == name);
            (spans.len() >= count).then_some(spans)
        })
    }
}

impl Inside {
    fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        loop {
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                if reader.read_line(&mut head)? == 0 {
                    return Ok(());
                }
            }
            let head = head.to_ascii_lowercase();
            assert!(head.starts_with("post /v1/traces http/1.1\r\n"), "{head}");
            assert!(
                head.contains("content-type: application/x-protobuf\r\n"),
                "{head}"
            );
            let (_, length) = head.split_once("content-length: ").unwrap();
            let mut body = vec![0; length.lines().next().unwrap().parse().unwrap()];
            reader.read_exact(&mut body)?;
            let request = ExportTraceServiceRequest::decode(&body[..]).unwrap();
            let status = self.status.load(Ordering::Relaxed);
            if status == 200 {
                self.received.lock().unwrap().extend(request.resource_spans);
            }
            write!(stream, "HTTP/1.1 {status} whatever\r\ncontent-length: 0\r\n\r\n")?;
        }
    }
}

fn traced_server(endpoint: &str) -> Server {
    Server::start_with(&[
        ("OTLP_ENDPOINT", endpoint),
        ("LOG_FORMAT", "json"),
        ("LOG_LEVEL", "DEBUG"),
    ])
}

fn publish(server: &Server, headers: &[(&str, &str)], events: &[Event]) {
    let json = ("content-type", "application/json");
    server
        .client()
        .request(
            "POST",
            "/publish",
            &[&[json], headers].concat(),
            &Event::wrapped(events),
        )
        .ok();
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attribute(attributes: &[KeyValue], name: &str) -> Option<Value> {
    let found = attributes.iter().find(|attribute| attribute.key == name)?;
    found.value.clone()?.value
}

fn text(value: &str) -> Option<Value> {
    Some(Value::StringValue(value.to_owned()))
}

#[test]
fn a_request_and_its_commit_are_spans_of_the_trace_of_its_sender() {
    let collector = Collector::start();
    let server = traced_server(&collector.url());
    let traceparent = format!("00-{TRACE}-{PARENT}-01");
    let headers = [
        ("traceparent", traceparent.as_str()),
        ("tracestate", "vendor=abc,other=1"),
        ("x-request-id", "traced"),
    ];
    publish(&server, &headers, &[Event::new("t", "1"), Event::new("t", "2")]);

    let request = collector.wait_for("POST /publish", 1).remove(0);
    assert_eq!(hexadecimal(&request.trace_id), TRACE);
    assert_eq!(hexadecimal(&request.parent_span_id), PARENT);
    assert_eq!(request.trace_state, "vendor=abc,other=1");
    assert_eq!(request.kind(), SpanKind::Server);
    assert_eq!(request.flags, 0x301, "sampled, and its parent is elsewhere");
    assert!(request.status.is_none());
    for (name, value) in [
        ("http.request.method", text("POST")),
        ("http.route", text("/publish")),
        ("url.path", text("/publish")),
        ("http.response.status_code", Some(Value::IntValue(200))),
        ("oncelog.request_id", text("traced")),
    ] {
        assert_eq!(attribute(&request.attributes, name), value, "{name}");
    }

    let commit = collector.wait_for("commit", 1).remove(0);
    assert_eq!(hexadecimal(&commit.trace_id), TRACE);
    assert_eq!(commit.parent_span_id, request.span_id);
    assert_eq!(commit.kind(), SpanKind::Internal);
    assert_eq!(
        attribute(&commit.attributes, "oncelog.events"),
        Some(Value::IntValue(2))
    );
    assert!(request.start_time_unix_nano <= commit.start_time_unix_nano);
    assert!(commit.start_time_unix_nano < commit.end_time_unix_nano);
    assert!(commit.end_time_unix_nano <= request.end_time_unix_nano);

    let resource = collector.inside.received.lock().unwrap()[0]
        .resource
        .clone()
        .unwrap();
    assert_eq!(attribute(&resource.attributes, "service.name"), text("oncelog"));
    assert_eq!(
        attribute(&resource.attributes, "service.version"),
        text(env!("CARGO_PKG_VERSION"))
    );
    // The line in the log names the same span.
    let log = server.log();
    let line = log.lines().find(|line| line.contains("\"traced\"")).unwrap();
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!(line["trace_id"], TRACE);
    assert_eq!(line["span_id"], hexadecimal(&request.span_id));
}

#[test]
fn the_sender_decides_what_is_sampled_and_without_one_the_ratio_does() {
    let collector = Collector::start();
    let server = traced_server(&collector.url());
    let not_sampled = format!("00-{TRACE}-{PARENT}-00");
    publish(&server, &[("traceparent", &not_sampled)], &[Event::new("t", "1")]);
    // A request without a trace begins one.
    publish(&server, &[], &[Event::new("t", "2")]);
    server.client().get("/no/such/path").problem(404);
    let other = collector.wait_for("GET", 1).remove(0);
    assert_eq!(attribute(&other.attributes, "url.path"), text("/no/such/path"));
    assert_eq!(attribute(&other.attributes, "http.route"), None);
    let first = collector.wait_for("POST /publish", 1);
    assert_eq!(first.len(), 1, "the one that is not to be sampled is not");
    assert_ne!(hexadecimal(&first[0].trace_id), TRACE);
    assert_ne!(first[0].trace_id, other.trace_id);
    assert!(first[0].parent_span_id.is_empty());
    assert_eq!(first[0].flags, 0x101);

    let collector = Collector::start();
    let server = Server::start_with(&[("OTLP_ENDPOINT", &collector.url()), ("OTLP_SAMPLE_RATIO", "0")]);
    publish(&server, &[], &[Event::new("t", "1")]);
    let sampled = format!("00-{TRACE}-{PARENT}-01");
    publish(&server, &[("traceparent", &sampled)], &[Event::new("t", "2")]);
    server.stop();
    let names: Vec<_> = collector.spans().into_iter().map(|span| span.name).collect();
    assert_eq!(
        names,
        ["commit", "POST /publish"],
        "flushed when the server stops"
    );
}

#[test]
fn a_collector_that_is_away_disturbs_nobody_and_is_told_once() {
    // Nobody listens there.
    let nowhere = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let server = traced_server(&format!("http://{nowhere}"));
    for number in 0..100 {
        publish(&server, &[], &[Event::new("t", &number.to_string())]);
    }
    assert_eq!(server.client().counters(), [100, 100, 0, 0]);
    eventually("the failure is logged", || {
        server.log().contains("cannot export spans").then_some(())
    });
    server.stop();
    let log = server.log();
    assert_eq!(log.matches("cannot export spans").count(), 1, "{log}");
    assert_eq!(log.matches("\"level\":\"ERROR\"").count(), 0, "{log}");
}

#[test]
fn what_a_failing_collector_did_not_take_it_gets_when_it_is_well() {
    let collector = Collector::start();
    collector.answer_with(503);
    let server = traced_server(&collector.url());
    let log_has = |text: &str| {
        eventually(text, || {
            let log = server.log();
            log.lines().find(|line| line.contains(text)).map(str::to_owned)
        })
    };
    publish(&server, &[], &[Event::new("t", "1")]);
    log_has("cannot export spans");
    collector.answer_with(200);
    collector.wait_for("POST /publish", 1);
    log_has("spans are exported again");
    // One that it refuses for good is not sent for ever.
    collector.answer_with(400);
    publish(&server, &[], &[Event::new("t", "2")]);
    log_has("the collector refuses spans for good");
    collector.answer_with(200);
    publish(&server, &[], &[Event::new("t", "3")]);
    let spans = collector.wait_for("POST /publish", 2);
    assert_eq!(spans.len(), 2);
}

#[test]
fn an_error_of_the_client_is_not_one_of_the_span() {
    let collector = Collector::start();
    let server = traced_server(&collector.url());
    server.client().get("/events?limit=0").problem(422);
    let span = collector.wait_for("GET /events", 1).remove(0);
    assert_eq!(
        attribute(&span.attributes, "http.response.status_code"),
        Some(Value::IntValue(422))
    );
    assert!(span.status.is_none());
}

#[test]
fn more_spans_than_the_queue_holds_are_lost_and_counted() {
    let collector = Collector::start();
    collector.answer_with(503);
    let server = traced_server(&collector.url());
    let mut client = server.client();
    const REQUESTS: usize = 4_000;
    for _ in 0..REQUESTS {
        client.get("/livez").ok();
    }
    collector.answer_with(200);
    let line = eventually("the loss is logged", || {
        let log = server.log();
        let line = log
            .lines()
            .find(|line| line.contains("spans were not exported"))?;
        Some(serde_json::from_str::<serde_json::Value>(line).unwrap())
    });
    let lost = line["spans"].as_u64().unwrap() as usize;
    assert!(lost > 0);
    collector.wait_for("GET /livez", REQUESTS - lost);
}
