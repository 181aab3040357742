//! Answers go out compressed to clients that ask for it, and are the same. The real `gzip`, `zstd` and `curl` are on the
//! other side.

use crate::harness::{Answer, Client, Event, Server, pipe};
use std::process::Command;

const JSON: &str = "application/json";

fn all_events(client: &mut Client, headers: &[(&str, &str)]) -> Answer {
    client.request("GET", "/events?order=asc&limit=1000", headers, b"")
}

#[test]
fn answers_come_compressed_to_who_asks_and_are_the_same() {
    let server = Server::start();
    let mut client = server.client();
    client.publish(&Event::numbered("t", 0..500));
    let plain = all_events(&mut client, &[]);
    assert_eq!(plain.header("content-encoding"), None);
    for target in [
        "/events?limit=1000",
        "/events?topic=t&order=asc",
        "/metrics",
        "/openapi.json",
        "/redoc",
        "/",
    ] {
        let headers = [("accept", "text/html")];
        let plain = client.request("GET", target, &headers, b"");
        assert_eq!(plain.status, 200, "{target}");
        for (coding, decode) in [("gzip", "gzip"), ("zstd", "zstd")] {
            let headers = [("accept-encoding", coding), headers[0]];
            let answer = client.request("GET", target, &headers, b"");
            assert_eq!(answer.header("content-encoding"), Some(coding), "{target}");
            assert!(
                answer.head.to_ascii_lowercase().contains("vary: accept-encoding"),
                "{}",
                answer.head
            );
            assert_eq!(answer.header("content-type"), plain.header("content-type"));
            assert!(
                answer.body.len() < plain.body.len(),
                "{target}: {}",
                answer.body.len()
            );
            // The metrics count the requests between.
            if target != "/metrics" {
                assert_eq!(pipe(decode, &["-dc"], &answer.body), plain.body, "{target}");
            }
        }
    }
    // And by a client of its own.
    let url = server.url();
    for (headers, target) in [
        (&["--compressed"][..], "/events?order=asc&limit=1000"),
        (
            &["--compressed", "-H", "accept-encoding: br"],
            "/events?order=asc&limit=1000",
        ),
    ] {
        let output = Command::new("curl")
            .args(["-sS", "--fail", "-w", "%{size_download}"])
            .args(headers)
            .arg(format!("{url}{target}"))
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let size = text
            .strip_prefix(plain.text())
            .unwrap_or_else(|| panic!("{text}"));
        assert!(size.parse::<usize>().unwrap() < plain.body.len() / 4, "{size}");
    }
    let assets = client.request(
        "GET",
        "/docs/swagger-ui-bundle.js",
        &[("accept-encoding", "br")],
        b"",
    );
    assert_eq!(assets.header("content-encoding"), Some("br"));
    assert!(assets.body.len() < 600_000, "{}", assets.body.len());
}

#[test]
fn weights_decide_and_small_answers_stay_as_they_are() {
    let server = Server::start();
    let mut client = server.client();
    client.publish(&Event::numbered("t", 0..100));
    for (accepts, coding) in [
        ("", None),
        ("identity", None),
        ("gzip;q=0", None),
        ("deflate", None),
        ("gzip, deflate, br, zstd", Some("zstd")),
        ("gzip, deflate, br", Some("br")),
        ("zstd;q=0.1, gzip;q=0.2", Some("gzip")),
        ("*", Some("gzip")),
        ("br;q=0.5, identity;q=0.9", None),
        ("br;q=0.5, identity;q=0", Some("br")),
    ] {
        let answer = all_events(&mut client, &[("accept-encoding", accepts)]);
        assert_eq!(answer.header("content-encoding"), coding, "{accepts}");
        assert_eq!(answer.header("vary"), Some("Accept-Encoding"));
        let head = client.head("/events?order=asc&limit=1000", &[("accept-encoding", accepts)]);
        assert_eq!(head.header("content-encoding"), coding, "HEAD with {accepts}");
        assert_eq!(head.header("content-length"), answer.header("content-length"));
    }
    for target in ["/stats", "/topics", "/events/t/1", "/events?limit=1"] {
        let answer = client.request("GET", target, &[("accept-encoding", "zstd")], b"");
        assert_eq!(answer.header("content-encoding"), None, "{target}");
        assert_eq!(answer.header("vary"), Some("Accept-Encoding"), "{target}");
        answer.ok();
        let only = [("accept-encoding", "gzip, identity;q=0")];
        let answer = client.request("GET", target, &only, b"");
        assert_eq!(answer.header("content-encoding"), Some("gzip"), "{target}");
    }
    // However much a publish says, it says it plainly.
    let answer = client.request(
        "POST",
        "/publish?results=true",
        &[("content-type", JSON), ("accept-encoding", "gzip")],
        &Event::array(&Event::numbered("t", 0..100)),
    );
    assert_eq!(answer.header("content-encoding"), None);
    assert_eq!(answer.ok()["duplicates"], 100);
}

#[test]
fn the_largest_page_comes_compressed() {
    let server = Server::start();
    let mut client = server.client();
    for batch in 0..10 {
        let events: Vec<_> = (0..100)
            .map(|number| {
                let text = format!("{batch}-{number} ").repeat(900);
                Event::new("t", &format!("{batch}-{number}")).with_payload(&format!(r#"{{"text":"{text}"}}"#))
            })
            .collect();
        client.publish(&events);
    }
    let plain = all_events(&mut client, &[]);
    assert!(plain.body.len() > 4 << 20, "{}", plain.body.len());
    let packed = all_events(&mut client, &[("accept-encoding", "zstd")]);
    assert!(packed.body.len() < plain.body.len() / 10, "{}", packed.body.len());
    assert_eq!(pipe("zstd", &["-dc"], &packed.body), plain.body);
}
