//! With a certificate the server speaks TLS, and only TLS; certificates are replaced while it runs without a failed
//! request; and every subcommand that talks to a server knows whom to trust.

use crate::harness::{
    Authority, Client, Event, FailedStart, Folder, PATIENCE, Pair, Server, eventually, oncelog, run,
    run_with_input,
};
use rustls::{
    ClientConfig, ClientConnection,
    pki_types::CertificateDer,
    version::{TLS12, TLS13},
};
use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    process::{Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

const SETTINGS: [(&str, &str); 2] = [("TLS_CERTIFICATE", "chain.pem"), ("TLS_KEY", "key.pem")];
const NAMES: [&str; 2] = ["127.0.0.1", "localhost"];
/// What the log says when a new pair is taken, and when it is not.
const TAKEN: &str = "new connections get the certificate that was read just now";
const NOT_TAKEN: &str = "the certificate was not replaced";

/// Puts a pair in place as one does it: what is read is always a whole file.
fn put(folder: &Folder, pair: &Pair) {
    for (name, text) in [("chain.pem", &pair.certificate), ("key.pem", &pair.key)] {
        write(folder, name, text);
    }
}

fn write(folder: &Folder, name: &str, text: &str) {
    let new = folder.path().join("new.pem");
    fs::write(&new, text).unwrap();
    fs::rename(new, folder.path().join(name)).unwrap();
}

/// A server with a certificate by `authority`; the authority's own is in `ca.pem` of its folder.
fn start(authority: &Authority, more: &[(&str, &str)]) -> Server {
    let folder = Folder::new();
    write(&folder, "ca.pem", authority.pem());
    put(&folder, &authority.issue(&NAMES));
    Server::start_in(folder, &[&SETTINGS, more].concat())
}

fn client(server: &Server, authority: &Authority) -> Client {
    Client::with_tls(server.address(), authority.client(&[&TLS12, &TLS13]))
}

/// A subcommand against the server, in whose folder it runs.
fn command(server: &Server, arguments: &[&str]) -> Command {
    let mut command = oncelog(server.folder());
    command.args(arguments).args(["--url", &server.url()]);
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

/// Runs a command to its end; returns what it said.
#[track_caller]
fn exits(command: &mut Command, code: i32) -> String {
    let output = run(command);
    let said = said(&output);
    assert_eq!(output.status.code(), Some(code), "{command:?}: {said}");
    said
}

/// Runs a command that must fail and say these things.
#[track_caller]
fn fails(command: &mut Command, code: i32, parts: &[&str]) {
    let said = exits(command, code);
    for part in parts {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
}

/// The certificate that a new connection gets.
fn certificate(server: &Server, config: &Arc<ClientConfig>) -> CertificateDer<'static> {
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut session = ClientConnection::new(Arc::clone(config), server.address().ip().into()).unwrap();
    while session.is_handshaking() {
        session.complete_io(&mut stream).unwrap();
    }
    session.peer_certificates().unwrap()[0].clone().into_owned()
}

#[test]
fn a_server_that_cannot_use_its_files_does_not_start_and_says_why() {
    let authority = Authority::new();
    let (pair, other) = (authority.issue(&NAMES), authority.issue(&NAMES));
    let folder = Folder::new();
    put(&folder, &pair);
    for (name, text) in [
        ("ca.pem", authority.pem()),
        ("other.pem", &other.key),
        ("nothing.pem", "no PEM at all\n"),
        (
            "damaged.pem",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ),
    ] {
        write(&folder, name, text);
    }
    for (certificate, key, client_ca, parts) in [
        (
            "missing.pem",
            "key.pem",
            "",
            ["TLS_CERTIFICATE: cannot read missing.pem", "name a PEM file"],
        ),
        (
            "chain.pem",
            "missing.pem",
            "",
            ["TLS_KEY: cannot read missing.pem", "name a PEM file"],
        ),
        (
            "chain.pem",
            "data",
            "",
            ["TLS_KEY: cannot read data", "not a file"],
        ),
        (
            "chain.pem",
            "other.pem",
            "",
            ["TLS_KEY: the key in other.pem", "name the pair"],
        ),
        (
            "nothing.pem",
            "key.pem",
            "",
            ["TLS_CERTIFICATE: nothing.pem", "BEGIN CERTIFICATE"],
        ),
        (
            "damaged.pem",
            "key.pem",
            "",
            ["TLS_CERTIFICATE: damaged.pem", "make or export it again"],
        ),
        (
            "chain.pem",
            "nothing.pem",
            "",
            ["TLS_KEY: nothing.pem", "BEGIN PRIVATE KEY"],
        ),
        (
            "chain.pem",
            "chain.pem",
            "",
            ["TLS_KEY: chain.pem", "BEGIN PRIVATE KEY"],
        ),
        (
            "chain.pem",
            "key.pem",
            "missing.pem",
            ["TLS_CLIENT_CA: cannot read missing.pem", "name a PEM file"],
        ),
        (
            "chain.pem",
            "key.pem",
            "nothing.pem",
            ["TLS_CLIENT_CA: nothing.pem", "BEGIN CERTIFICATE"],
        ),
        (
            "chain.pem",
            "key.pem",
            "damaged.pem",
            ["TLS_CLIENT_CA: damaged.pem", "make or export it again"],
        ),
    ] {
        fs::create_dir_all(folder.path().join("data")).unwrap();
        let settings = [
            ("TLS_CERTIFICATE", certificate),
            ("TLS_KEY", key),
            ("TLS_CLIENT_CA", client_ca),
        ];
        let Err(FailedStart { status, log }) = Server::try_start_in(folder.clone(), &settings) else {
            panic!("started with {settings:?}");
        };
        assert_eq!(status.code(), Some(1), "{log}");
        for part in parts {
            assert!(log.contains(part), "{part:?} is not in {log}");
        }
        assert!(!folder.database().exists(), "no store is made: {settings:?}");
    }
    // Settings that contradict each other.
    let Err(FailedStart { status, log }) = Server::try_start_in(folder, &[("TLS_KEY", "key.pem")]) else {
        panic!("started with a key and no certificate");
    };
    assert_eq!(status.code(), Some(2), "{log}");
    assert!(
        log.contains("set TLS_CERTIFICATE as well, or unset TLS_KEY"),
        "{log}"
    );
}

#[test]
fn clients_that_speak_only_tls_1_2_or_only_1_3_are_served() {
    let authority = Authority::new();
    let server = start(&authority, &[]);
    for (version, id) in [(&TLS12, "1.2"), (&TLS13, "1.3")] {
        let mut client = Client::with_tls(server.address(), authority.client(&[version]));
        assert_eq!(client.publish(&[Event::new("t", id)])["accepted"], 1, "{id}");
        assert_eq!(client.publish(&[Event::new("t", id)])["duplicates"], 1, "{id}");
    }
    // A client that shares no code with the server.
    for versions in [
        ["--tlsv1.2", "--tls-max", "1.2"],
        ["--tlsv1.3", "--tls-max", "1.3"],
    ] {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--fail", "--cacert"])
            .arg(server.folder().path().join("ca.pem"))
            .args(versions)
            .arg(format!("{}/health", server.url()));
        assert!(exits(&mut curl, 0).contains("\"healthy\""));
    }
}

#[test]
fn plain_http_is_answered_once_with_what_to_do() {
    let authority = Authority::new();
    let server = start(&authority, &[]);
    let mut plain = server.client();
    let answer = plain.get("/health");
    let problem = answer.problem(426);
    assert_eq!(problem["type"], "/problems/tls-required");
    assert!(
        problem["detail"].as_str().unwrap().contains("https://"),
        "{problem}"
    );
    assert_eq!(answer.header("upgrade"), Some("TLS/1.2, HTTP/1.1"));
    assert_eq!(answer.header("connection"), Some("upgrade, close"));
    assert!(plain.is_closed());
    let answer = server.client().post(
        "/publish",
        "application/json",
        &Event::wrapped(&[Event::new("t", "1")]),
    );
    answer.problem(426);
    assert_eq!(client(&server, &authority).counters(), [0; 4]);
    // What is neither is closed without harm.
    let mut neither = TcpStream::connect(server.address()).unwrap();
    neither.write_all(b"\x16\x03\x01 no handshake").unwrap();
    client(&server, &authority).get("/health").ok();
    // The other way round: no secret reaches a server that does not speak TLS.
    let open = Server::start();
    let url = open.url().replace("http://", "https://");
    write(open.folder(), "ca.pem", authority.pem());
    fails(
        oncelog(open.folder()).args(["stats", "--ca", "ca.pem", "--url", &url]),
        1,
        &["does not speak TLS; is it an http:// URL?"],
    );
}

#[test]
fn large_bodies_and_answers_arrive_whole() {
    let authority = Authority::new();
    let server = start(&authority, &[]);
    let events: Vec<_> = (0..60)
        .map(|number: u64| {
            let text = format!("{number} ").repeat(40_000);
            Event::new("large", &number.to_string()).with_payload(&format!(r#"{{"text":"{text}"}}"#))
        })
        .collect();
    let mut client = client(&server, &authority);
    assert_eq!(client.publish(&events)["accepted"], 60);
    for number in [0, 59] {
        let event = client.get(&format!("/events/large/{number}")).ok();
        assert_eq!(event["payload"]["text"], format!("{number} ").repeat(40_000));
    }
    assert!(client.get("/events?topic=large").body.len() > 1 << 20);
}

/// Publishes until it is told to stop: on one connection, or on a new one for each request. Nothing may fail.
fn load(server: &Server, config: &Arc<ClientConfig>, name: &str, is_kept: bool, go_on: &AtomicBool) -> u64 {
    let mut client = Client::with_tls(server.address(), Arc::clone(config));
    let mut sent = 0;
    while go_on.load(Ordering::Relaxed) {
        let answer = client.publish(&[Event::new(name, &sent.to_string())]);
        assert_eq!(answer["accepted"], 1, "{answer}");
        sent += 1;
        if !is_kept {
            client.reconnect();
        }
    }
    sent
}

/// Stops the load also when a check fails: whoever waits for it would hide that.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

fn times(server: &Server, line: &str) -> usize {
    server.log().matches(line).count()
}

#[test]
fn new_pairs_are_taken_under_load_without_a_failed_request() {
    let authority = Authority::new();
    let server = start(&authority, &[]);
    let config = authority.client(&[&TLS12, &TLS13]);
    let go_on = AtomicBool::new(true);
    let sent = AtomicU64::new(0);
    thread::scope(|scope| {
        let _stop = Stop(&go_on);
        for (name, is_kept) in [("kept", true), ("new", false), ("new as well", false)] {
            let (server, config, go_on, sent) = (&server, &config, &go_on, &sent);
            scope.spawn(move || {
                sent.fetch_add(load(server, config, name, is_kept, go_on), Ordering::Relaxed);
            });
        }
        let mut open = client(&server, &authority);
        open.get("/health").ok();
        for by_signal in [false, true, false, true] {
            let pair = authority.issue(&NAMES);
            put(server.folder(), &pair);
            if by_signal {
                server.signal("HUP");
            }
            eventually("new connections get the new certificate", || {
                (certificate(&server, &config) == pair.der()).then_some(())
            });
            // The same connection as at the beginning.
            open.send_raw(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
            assert_eq!(open.receive().unwrap().status, 200);
        }
    });
    assert_eq!(times(&server, NOT_TAKEN), 0, "{}", server.log());
    let sent = sent.into_inner();
    assert!(sent > 0);
    assert_eq!(client(&server, &authority).counters(), [sent, sent, 0, 0]);
    server.stop();
}

#[test]
fn sighup_acts_also_when_nothing_has_changed() {
    let authority = Authority::new();
    let server = start(&authority, &[]);
    for count in 1..=2 {
        server.signal("HUP");
        eventually("it is read again", || {
            (times(&server, TAKEN) == count).then_some(())
        });
    }
    client(&server, &authority).get("/health").ok();
}

#[test]
fn a_new_pair_that_cannot_be_used_leaves_the_old_one_in_place() {
    let authority = Authority::new();
    let server = start(&authority, &[]);
    let config = authority.client(&[&TLS13]);
    let first = certificate(&server, &config);
    let mut open = client(&server, &authority);
    open.get("/health").ok();
    // A key that is not the certificate's, then nothing at all: noticed by itself, and again on SIGHUP.
    write(server.folder(), "key.pem", &authority.issue(&NAMES).key);
    eventually("the change is noticed", || {
        (times(&server, NOT_TAKEN) == 1).then_some(())
    });
    let log = server.log();
    let line = log.lines().find(|line| line.contains(NOT_TAKEN)).unwrap();
    for part in ["ERROR", "TLS_KEY", "key.pem", "name the pair"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    assert_eq!(certificate(&server, &config), first);
    fs::remove_file(server.folder().path().join("chain.pem")).unwrap();
    eventually("the removal is noticed", || {
        (times(&server, NOT_TAKEN) == 2).then_some(())
    });
    server.signal("HUP");
    eventually("the signal is answered", || {
        (times(&server, NOT_TAKEN) == 3).then_some(())
    });
    assert_eq!(certificate(&server, &config), first);
    open.get("/health").ok();
    // And then one that can.
    let pair = authority.issue(&NAMES);
    put(server.folder(), &pair);
    eventually("the good pair is taken", || {
        (certificate(&server, &config) == pair.der()).then_some(())
    });
    assert_eq!(
        (times(&server, NOT_TAKEN), times(&server, TAKEN)),
        (3, 1),
        "{}",
        server.log()
    );
}

#[test]
fn clients_talk_only_to_a_server_that_they_trust() {
    let authority = Authority::new();
    let server = start(&authority, &[]);
    // Another of the same name, as one that was made anew, and one with a name of its own.
    write(server.folder(), "anew.pem", Authority::new().pem());
    write(server.folder(), "other.pem", Authority::named("other").pem());
    let untrusted = "of an authority that is not trusted; name the authority's file with --ca";
    fails(
        &mut command(&server, &["stats", "--ca", "other.pem"]),
        1,
        &[&server.url(), untrusted],
    );
    fails(
        &mut command(&server, &["stats", "--ca", "anew.pem"]),
        1,
        &[untrusted],
    );
    // The system's authorities count when no others are named, and only then.
    let with_system = |arguments: &[&str], file: &str| {
        let mut command = command(&server, arguments);
        command.env("SSL_CERT_FILE", server.folder().path().join(file));
        command
    };
    exits(&mut with_system(&["health"], "ca.pem"), 0);
    fails(&mut with_system(&["health"], "other.pem"), 1, &[untrusted]);
    fails(
        &mut with_system(&["health", "--ca", "other.pem"], "ca.pem"),
        1,
        &[untrusted],
    );
    // A producer does not try for ever what cannot come right.
    let output = run_with_input(
        &mut command(&server, &["publish", "--ca", "other.pem"]),
        &Event::lines(&[Event::new("t", "1")]),
    );
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert_eq!(client(&server, &authority).counters(), [0; 4]);

    // Another name.
    put(server.folder(), &authority.issue(&["logs.example.org"]));
    server.signal("HUP");
    eventually("the new certificate is there", || {
        (times(&server, TAKEN) == 1).then_some(())
    });
    fails(
        &mut command(&server, &["stats", "--ca", "ca.pem"]),
        1,
        &["is not for 127.0.0.1", "--server-name"],
    );
    let name = ["--server-name", "logs.example.org"];
    exits(command(&server, &["stats", "--ca", "ca.pem"]).args(name), 0);
}

#[test]
fn a_server_with_an_authority_for_clients_serves_only_those_with_its_certificate() {
    let authority = Authority::new();
    let clients = Authority::new();
    let folder = Folder::new();
    write(&folder, "ca.pem", authority.pem());
    write(&folder, "clients.pem", clients.pem());
    put(&folder, &authority.issue(&NAMES));
    for (name, pair) in [
        ("right", clients.issue(&["me"])),
        ("wrong", authority.issue(&["me"])),
    ] {
        write(&folder, &format!("{name}.pem"), &pair.certificate);
        write(&folder, &format!("{name}-key.pem"), &pair.key);
    }
    let settings = [&SETTINGS, [("TLS_CLIENT_CA", "clients.pem")].as_slice()].concat();
    let server = Server::start_in(folder, &settings);
    let with = |certificate: &str, key: &str| {
        let mut command = command(&server, &["stats", "--ca", "ca.pem"]);
        command.args(["--client-certificate", certificate, "--client-key", key]);
        command
    };
    fails(
        &mut command(&server, &["stats", "--ca", "ca.pem"]),
        1,
        &["serves only clients with a certificate; name one with --client-certificate"],
    );
    fails(
        &mut with("wrong.pem", "wrong-key.pem"),
        1,
        &["does not accept the client's certificate"],
    );
    exits(&mut with("right.pem", "right-key.pem"), 0);
    // What is wrong on the client's side is said before anything is sent.
    fails(
        &mut with("right.pem", "wrong-key.pem"),
        2,
        &["--client-key: the key in wrong-key.pem", "name the pair"],
    );
    fails(
        command(&server, &["stats", "--ca", "ca.pem"]).args(["--client-key", "right-key.pem"]),
        2,
        &["--client-certificate and --client-key belong together"],
    );
    // As in a container, whose health check has no arguments.
    let mut health = oncelog(server.folder());
    health.arg("health").envs([
        ("ONCELOG_URL", server.url().as_str()),
        ("ONCELOG_CA", "ca.pem"),
        ("ONCELOG_CLIENT_CERTIFICATE", "right.pem"),
        ("ONCELOG_CLIENT_KEY", "right-key.pem"),
    ]);
    exits(&mut health, 0);
    fails(
        health.env("ONCELOG_CA", "missing.pem"),
        2,
        &["ONCELOG_CA: cannot read missing.pem"],
    );
    fails(
        health.env("ONCELOG_URL", "logs.example.org"),
        2,
        &["environment variable ONCELOG_URL"],
    );
}

#[test]
fn what_is_for_tls_is_refused_without_it_unless_the_environment_says_it() {
    let server = Server::start();
    fails(
        &mut command(&server, &["stats", "--ca", "ca.pem"]),
        2,
        &["--ca is for https:// URLs", &server.url()],
    );
    fails(
        &mut command(&server, &["stats", "--server-name", "x"]),
        2,
        &["--server-name is for https:// URLs"],
    );
    exits(command(&server, &["stats"]).env("ONCELOG_CA", "ca.pem"), 0);
}

#[test]
fn every_subcommand_that_talks_to_a_server_speaks_tls() {
    let authority = Authority::new();
    let server = start(&authority, &[]);
    let talking = [
        "publish", "simulate", "bench", "stats", "health", "export", "tail",
    ];
    for subcommand in ::oncelog::cli::command().get_subcommands() {
        let talks = subcommand
            .get_arguments()
            .any(|argument| argument.get_id() == "url");
        let name = subcommand.get_name();
        assert_eq!(talking.contains(&name), talks, "{name}");
    }
    let trusting = |arguments: &[&str]| {
        let mut command = command(&server, arguments);
        command.args(["--ca", "ca.pem"]);
        command
    };
    let events: Vec<_> = (0..100)
        .map(|number| Event::new("t", &number.to_string()))
        .collect();
    let output = run_with_input(&mut trusting(&["publish"]), &Event::lines(&events));
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let exported = exits(&mut trusting(&["export"]), 0);
    assert_eq!(
        exported.lines().filter(|line| line.starts_with('{')).count(),
        100,
        "{exported}"
    );
    exits(&mut trusting(&["simulate", "--events", "2000"]), 0);
    exits(&mut trusting(&["bench", "--events", "5000", "--batch", "10"]), 0);
    assert!(exits(&mut trusting(&["stats", "--json"]), 0).contains("unique_processed"));
    exits(&mut trusting(&["health"]), 0);

    let mut tail = trusting(&["tail", "--topic", "new"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(tail.stdout.take().unwrap());
    // It begins behind what is there when it comes: new events until it has one.
    let go_on = AtomicBool::new(true);
    let mut line = String::new();
    thread::scope(|scope| {
        let _stop = Stop(&go_on);
        scope.spawn(|| load(&server, &authority.client(&[&TLS13]), "new", true, &go_on));
        lines.read_line(&mut line).unwrap();
    });
    tail.kill().unwrap();
    tail.wait().unwrap();
    assert!(line.contains("\"topic\":\"new\""), "{line}");
}
