//! Bodies may come compressed. What they become is a body like any other, with the same bound, and what cannot be
//! decompressed stores nothing. The real `gzip` and `zstd` are on the other side.

use crate::harness::{Answer, Client, Event, Server, oncelog, pipe, run_with_input};

const JSON: &str = "application/json";
const LARGEST_BODY: usize = 16 << 20;

/// A program that compresses.
type Encode = fn(&[u8]) -> Vec<u8>;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    pipe("gzip", &["-c"], bytes)
}

/// As it comes out of a pipe: without its size.
fn zstd(bytes: &[u8]) -> Vec<u8> {
    pipe("zstd", &["-qc"], bytes)
}

/// With its size in front.
fn zstd_with_size(bytes: &[u8]) -> Vec<u8> {
    pipe("zstd", &["-qc", &format!("--stream-size={}", bytes.len())], bytes)
}

#[track_caller]
fn post(client: &mut Client, content_type: &str, coding: &str, body: &[u8]) -> Answer {
    client.request(
        "POST",
        "/publish?results=true",
        &[("content-type", content_type), ("content-encoding", coding)],
        body,
    )
}

/// The same in chunks of this size.
fn post_chunked(client: &mut Client, coding: &str, body: &[u8], size: usize) -> Answer {
    let mut request = format!(
        "POST /publish?results=true HTTP/1.1\r\nhost: x\r\ncontent-type: {JSON}\r\ncontent-encoding: {coding}\r\n\
         transfer-encoding: chunked\r\n\r\n"
    )
    .into_bytes();
    for chunk in body.chunks(size) {
        request.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        request.extend_from_slice(chunk);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"0\r\n\r\n");
    client.send_raw(&request).unwrap();
    client.receive().unwrap()
}

#[track_caller]
fn refused(answer: &Answer, status: u16, kind: &str, part: &str) {
    let problem = answer.problem(status);
    assert_eq!(problem["type"], format!("/problems/{kind}"), "{problem}");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains(part), "{part:?} is not in {detail:?}");
}

#[test]
fn a_compressed_batch_is_the_same_batch() {
    let server = Server::start();
    let mut client = server.client();
    let ways: [(&str, Encode); 4] = [
        ("gzip", gzip),
        ("x-gzip", gzip),
        ("zstd", zstd),
        ("ZSTD", zstd_with_size),
    ];
    for (number, (coding, encode)) in ways.into_iter().enumerate() {
        let topic = format!("{coding}{number}");
        let batch = Event::numbered(&topic, 0..300);
        let packed = encode(&Event::wrapped(&batch));
        let answer = post(&mut client, JSON, coding, &packed).ok();
        assert_eq!(answer["accepted"], 300, "{coding}");
        assert_eq!(answer["results"][299]["event_id"], "299");
        // The same, plain and in chunks, are all duplicates, and none is a conflict.
        let again = client.publish(&batch);
        assert_eq!(
            (&again["duplicates"], &again["conflicts"]),
            (&300.into(), &0.into())
        );
        for size in [1, 7, 4_000] {
            let again = post_chunked(&mut client, coding, &packed, size).ok();
            assert_eq!(
                (&again["duplicates"], &again["conflicts"]),
                (&300.into(), &0.into())
            );
        }
        let target = format!("/events?order=asc&limit=1000&topic={topic}");
        let page = client.get(&target);
        for event in &batch {
            assert!(
                page.text().contains(&event.payload),
                "{} is not in the page",
                event.payload
            );
        }
    }
    let lines: Vec<String> = Event::numbered("lines", 0..100).iter().map(Event::json).collect();
    for (coding, encode) in ways {
        let packed = encode(lines.join("\n").as_bytes());
        let answer = post(&mut client, "application/x-ndjson", coding, &packed).ok();
        assert_eq!(answer["received"], 100);
    }
    let plain = post(
        &mut client,
        JSON,
        "identity",
        &Event::wrapped(&Event::numbered("plain", 0..1)),
    );
    assert_eq!(plain.ok()["accepted"], 1);
    let answer = client.request(
        "POST",
        "/publish/batch",
        &[("content-type", JSON), ("content-encoding", "gzip")],
        &gzip(&Event::wrapped(&Event::numbered("batch", 0..2))),
    );
    assert_eq!(answer.ok()["accepted"], 2);
}

#[test]
fn members_and_frames_in_a_row_are_one_body() {
    let server = Server::start();
    let mut client = server.client();
    let json = Event::array(&Event::numbered("t", 0..10));
    let (first, second) = json.split_at(100);
    let skippable = b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc".to_vec();
    for (coding, body) in [
        ("gzip", [gzip(first), gzip(second)].concat()),
        ("zstd", [skippable, zstd(first), zstd_with_size(second)].concat()),
    ] {
        assert_eq!(post(&mut client, JSON, coding, &body).ok()["received"], 10);
    }
}

#[test]
fn a_bomb_is_refused_and_nothing_of_it_is_stored() {
    let server = Server::start();
    let mut client = server.client();
    // Valid but for its size: an event, and white space to one byte more than there may be.
    let mut json = Event::numbered("t", 0..1)[0].json().into_bytes();
    json.resize(LARGEST_BODY, b' ');
    for (number, (coding, encode)) in [("gzip", gzip as Encode), ("zstd", zstd), ("zstd", zstd_with_size)]
        .into_iter()
        .enumerate()
    {
        let mut fits = json.clone();
        let bomb = encode(&[&json[..], b" "].concat());
        assert!(bomb.len() < LARGEST_BODY / 500, "{} bytes", bomb.len());
        let answer = post(&mut client, JSON, coding, &bomb);
        refused(&answer, 413, "body-too-large", "once it is decompressed");
        assert!(answer.text().contains("16777216"), "{}", answer.text());
        let answer = post_chunked(&mut client, coding, &bomb, 1_000);
        refused(&answer, 413, "body-too-large", "once it is decompressed");
        assert_eq!(client.counters()[1], number as u64, "nothing of a bomb is stored");
        // One byte less is taken.
        let id = format!(r#""event_id":"{number}""#);
        let place = String::from_utf8_lossy(&fits[..200])
            .find(r#""event_id":"0""#)
            .unwrap();
        fits[place..place + id.len()].copy_from_slice(id.as_bytes());
        assert_eq!(
            post(&mut client, JSON, coding, &encode(&fits)).ok()["accepted"],
            1
        );
    }
    // A thousand times as much as there may be, from a body within its bound.
    let members = gzip(&vec![b' '; 1 << 20]).repeat(10_000);
    assert!(members.len() < LARGEST_BODY);
    refused(
        &post(&mut client, JSON, "gzip", &members),
        413,
        "body-too-large",
        "once it is decompressed",
    );
    assert_eq!(client.counters(), [3, 3, 0, 0]);
}

#[test]
fn what_cannot_be_decompressed_is_refused_with_the_reason() {
    let server = Server::start();
    let mut client = server.client();
    let json = Event::array(&Event::numbered("t", 0..50));
    let flipped = |mut bytes: Vec<u8>, from_end: usize| {
        let place = bytes.len() - from_end;
        bytes[place] ^= 1;
        bytes
    };
    let cut = |mut bytes: Vec<u8>, less: usize| {
        bytes.truncate(bytes.len() - less);
        bytes
    };
    let long = pipe("zstd", &["-qc", "--long=27"], &json);
    for (coding, body, reason) in [
        ("gzip", json.clone(), "invalid gzip header"),
        ("gzip", Vec::new(), "ends too early"),
        ("gzip", cut(gzip(&json), 1), "ends too early"),
        ("gzip", cut(gzip(&json), 100), "ends too early"),
        ("gzip", flipped(gzip(&json), 6), "checksum"),
        ("gzip", flipped(gzip(&json), 2), "checksum"),
        (
            "gzip",
            [gzip(&json), b"and more, which is no gzip".to_vec()].concat(),
            "invalid gzip header",
        ),
        ("gzip", zstd(&json), "invalid gzip header"),
        ("zstd", json.clone(), "unknown frame descriptor"),
        ("zstd", Vec::new(), "ends too early"),
        ("zstd", cut(zstd(&json), 1), "ends too early"),
        ("zstd", cut(zstd(&json), 100), "ends too early"),
        ("zstd", flipped(zstd(&json), 2), "checksum"),
        (
            "zstd",
            [zstd(&json), b"and more, which is no zstd".to_vec()].concat(),
            "unknown frame descriptor",
        ),
        ("zstd", long, "window of 134217728 bytes"),
    ] {
        let answer = post(&mut client, JSON, coding, &body);
        refused(&answer, 400, "broken-compression", reason);
        refused(&answer, 400, "broken-compression", coding);
    }
    // Decompressed, it is a body like any other.
    refused(&post(&mut client, JSON, "gzip", &gzip(b"")), 400, "not-json", "");
    refused(
        &post(&mut client, JSON, "zstd", &zstd(b"[{}]")),
        422,
        "invalid-event",
        "events[0]",
    );
    assert_eq!(client.counters(), [0; 4]);
}

#[test]
fn other_codings_are_refused_with_those_that_are_taken() {
    let server = Server::start();
    let mut client = server.client();
    let json = Event::array(&Event::numbered("t", 0..1));
    for coding in [
        "br",
        "deflate",
        "compress",
        "gzip, gzip",
        "zstd, gzip",
        "identity, gzip",
        "gzip;q=1",
    ] {
        let answer = post(&mut client, JSON, coding, &gzip(&json));
        refused(&answer, 415, "unsupported-coding", "gzip, zstd, identity");
        assert_eq!(answer.header("accept-encoding"), Some("gzip, zstd, identity"));
    }
    let answer = post(&mut client, "text/plain", "identity", &json);
    refused(&answer, 415, "unsupported-media-type", "text/plain");
    assert_eq!(
        answer.header("accept-encoding"),
        None,
        "that was not about the coding"
    );
    assert_eq!(client.counters(), [0; 4]);
}

#[test]
fn publish_compresses_its_requests() {
    let server = Server::start();
    let lines: String = Event::numbered("t", 0..2_000)
        .iter()
        .map(|event| event.json() + "\n")
        .collect();
    for (coding, accepted) in [("zstd", 2_000), ("gzip", 0)] {
        let mut command = oncelog(server.folder());
        command.args(["publish", "--url", &server.url(), "--json", "--compress", coding]);
        let output = run_with_input(&mut command, lines.as_bytes());
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            (&summary["sent"], &summary["accepted"]),
            (&2_000.into(), &accepted.into())
        );
    }
    assert_eq!(server.client().counters(), [4_000, 2_000, 2_000, 0]);
}
