//! The bounds on handshakes, and on answers that nobody takes, on real sockets.

use super::{Bounds, Tls};
use crate::{
    http::Pressure,
    server::{
        protocol,
        socket::{Socket, Work},
    },
    tls::{Transport, VERSIONS, provider},
};
use rustls::{ClientConfig, RootCertStore, ServerConfig, pki_types::ServerName};
use std::{io, sync::Arc, time::Duration};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Long enough never to end a test that works.
const LONG: Duration = Duration::from_secs(60);
/// Short enough to wait for.
const SHORT: Duration = Duration::from_millis(50);

/// A certificate's two sides.
struct Sides {
    tls: Tls,
    client: TlsConnector,
}

impl Sides {
    fn new(bounds: Bounds) -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let certificate = made.cert.der().clone();
        let key = made.signing_key.serialize_der().try_into().expect("a key");
        let server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(VERSIONS)
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)
            .expect("a pair");
        let mut roots = RootCertStore::empty();
        roots.add(certificate).expect("a certificate");
        let client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(VERSIONS)
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self {
            tls: Tls::new(server, bounds),
            client: TlsConnector::from(Arc::new(client)),
        }
    }

    /// The server's side of a connection.
    async fn open(&self, socket: Socket<TcpStream>) -> Option<Transport<Socket<TcpStream>>> {
        let without_tls = |_: &_| crate::http::without_tls();
        self.tls.open(socket, &protocol(LONG), SHORT, without_tls).await
    }

    /// The client's side of a connection.
    async fn shake_hands(&self, client: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from("localhost").expect("a name");
        self.client.connect(name, client).await
    }

    /// Whether a client that does as it should is let in.
    async fn lets_in(&self) -> bool {
        let (client, socket, _) = connection(LONG).await;
        let (opened, _client) = tokio::join!(self.open(socket), self.shake_hands(client));
        opened.is_some()
    }
}

/// Both sides of a connection, and what is in work on it. A write that nobody takes fails after `patience`.
async fn connection(patience: Duration) -> (TcpStream, Socket<TcpStream>, Work) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    let work = Work::default();
    let socket = Socket::new(
        accepted.expect("accepted").0,
        patience,
        Pressure::new(LONG),
        work.clone(),
    );
    (client.expect("a connection"), socket, work)
}

/// A connection whose client has begun with a handshake and does not go on.
async fn half_a_handshake() -> (TcpStream, Socket<TcpStream>) {
    let (mut client, socket, _) = connection(LONG).await;
    client.write_all(&[super::HANDSHAKE_RECORD]).await.expect("sent");
    // So that it has its turn as soon as it asks for one.
    socket.stream().peek(&mut [0]).await.expect("arrived");
    (client, socket)
}

#[tokio::test]
async fn a_client_that_says_nothing_or_stops_half_way_is_let_go() {
    let sides = Sides::new(Bounds {
        at_once: 10,
        time: SHORT,
        crowded: LONG,
    });
    let (_silent, socket, _) = connection(LONG).await;
    assert!(sides.open(socket).await.is_none());
    let (_half, socket) = half_a_handshake().await;
    assert!(sides.open(socket).await.is_none());
}

#[tokio::test]
async fn a_client_that_says_nothing_takes_nobodys_turn() {
    let sides = Sides::new(Bounds {
        at_once: 1,
        time: LONG,
        crowded: LONG,
    });
    let (_silent, socket, _) = connection(LONG).await;
    let let_in = tokio::select! {
        biased;
        _ = sides.open(socket) => false,
        let_in = sides.lets_in() => let_in,
    };
    assert!(let_in);
}

#[tokio::test]
async fn nobody_is_let_in_without_a_turn() {
    let sides = Sides::new(Bounds {
        at_once: 0,
        time: SHORT,
        crowded: SHORT,
    });
    assert!(!sides.lets_in().await);
}

#[tokio::test]
async fn who_stops_half_way_leaves_early_when_all_turns_are_taken() {
    let sides = Sides::new(Bounds {
        at_once: 1,
        time: LONG,
        crowded: SHORT,
    });
    let (_half, socket) = half_a_handshake().await;
    let (half, let_in) = tokio::join!(sides.open(socket), sides.lets_in());
    assert!(half.is_none());
    assert!(let_in);
}

#[tokio::test]
async fn a_turn_is_given_back_with_the_end_of_the_handshake() {
    let sides = Sides::new(Bounds {
        at_once: 1,
        time: LONG,
        crowded: LONG,
    });
    let (client, socket, _) = connection(LONG).await;
    let (opened, _client) = tokio::join!(sides.open(socket), sides.shake_hands(client));
    assert!(opened.is_some(), "it is open");
    assert!(sides.lets_in().await);
}

#[tokio::test]
async fn an_encrypted_answer_that_nobody_takes_fails_after_a_while() {
    let sides = Sides::new(Bounds::default());
    let (client, socket, work) = connection(SHORT).await;
    let (opened, _client) = tokio::join!(sides.open(socket), sides.shake_hands(client));
    let mut transport = opened.expect("a handshake");
    assert!(!work.is_there());
    let answer = vec![0; 64 << 10];
    let error = loop {
        if let Err(error) = transport.write_all(&answer).await {
            break error;
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    assert!(work.is_there());
}
