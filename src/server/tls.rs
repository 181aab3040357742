//! The server's side of TLS: handshakes within bounds, and certificates that are replaced while it runs.
//!
//! A new pair of files takes over on SIGHUP, or by itself once they have changed and stand still. Connections that are
//! open go on with what they began with. Files that cannot be used are an error in the log, and the old ones stay.

#[cfg(test)]
mod tests;

use super::{answer_once, drain, socket::Socket};
use crate::{
    config::TlsFiles,
    limits::{
        HANDSHAKE_CROWDED_TIMEOUT, HANDSHAKE_TIMEOUT, MAX_HANDSHAKES, PRESSURE_INTERVAL, TLS_BUFFER_BYTES,
        TLS_FILES_CHECK_INTERVAL,
    },
    stopping::told,
    tls::{Identity, PROTOCOL, TlsFileError, Transport, VERSIONS, authorities, provider, read},
};
use axum::{http::HeaderMap, response::Response};
use hyper::server::conn::http1;
use rustls::{ServerConfig, server::WebPkiClientVerifier};
use std::{
    io,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};
use tokio::{
    net::TcpStream,
    signal::unix::{Signal, SignalKind, signal},
    sync::{Semaphore, watch},
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout, timeout_at},
};
use tokio_rustls::TlsAcceptor;

const CERTIFICATE: &str = "TLS_CERTIFICATE";
const KEY: &str = "TLS_KEY";
const CLIENT_CA: &str = "TLS_CLIENT_CA";

/// What the first byte of a TLS connection is.
const HANDSHAKE_RECORD: u8 = 0x16;

/// What connections are encrypted with; clones share it.
#[derive(Clone)]
pub(super) struct Tls {
    current: Arc<RwLock<Arc<ServerConfig>>>,
    turns: Arc<Semaphore>,
    bounds: Bounds,
}

/// What became of a handshake.
enum Handshake {
    Done(Transport<Socket<TcpStream>>),
    /// The client has been told the reason.
    Refused(io::Error, Socket<TcpStream>),
    TooSlow,
}

/// The bounds on handshakes.
#[derive(Clone, Copy)]
struct Bounds {
    /// How many may be in work.
    at_once: usize,
    /// How long one may take, from the moment its connection is accepted.
    time: Duration,
    /// How long it may take from its turn on when all turns are taken.
    crowded: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            at_once: MAX_HANDSHAKES,
            time: HANDSHAKE_TIMEOUT,
            crowded: HANDSHAKE_CROWDED_TIMEOUT,
        }
    }
}

/// The files' contents.
#[derive(Clone, PartialEq, Eq)]
struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

/// Replaces what a [`Tls`] works with when its files change.
pub(super) struct Reloader {
    tls: Tls,
    files: TlsFiles,
    hangup: Signal,
    /// In use, or found to be of no use.
    settled: Result<Contents, String>,
}

impl Tls {
    /// From its files; what comes with it keeps it up to date. From here on SIGHUP does not end the process.
    pub(super) fn load(files: TlsFiles) -> Result<(Self, Reloader), LoadError> {
        let contents = Contents::read(&files)?;
        let tls = Self::new(contents.server_config(&files)?, Bounds::default());
        let reloader = Reloader {
            tls: tls.clone(),
            files,
            hangup: signal(SignalKind::hangup()).map_err(LoadError::Signal)?,
            settled: Ok(contents),
        };
        Ok((tls, reloader))
    }

    fn new(config: ServerConfig, bounds: Bounds) -> Self {
        Self {
            current: Arc::new(RwLock::new(Arc::new(config))),
            turns: Arc::new(Semaphore::new(bounds.at_once)),
            bounds,
        }
    }

    /// The stream with TLS on it; `None` when there was no handshake and the client has been told why. That takes at
    /// most the time of a handshake and twice `linger`. `without_tls` answers a request that comes unencrypted.
    pub(super) async fn open(
        &self,
        mut socket: Socket<TcpStream>,
        protocol: &http1::Builder,
        linger: Duration,
        without_tls: impl Fn(&HeaderMap) -> Response,
    ) -> Option<Transport<Socket<TcpStream>>> {
        let deadline = Instant::now() + self.bounds.time;
        let mut first = [0];
        // A client that says nothing takes nobody's turn.
        let said = timeout_at(deadline, socket.stream().peek(&mut first)).await;
        if !matches!(said, Ok(Ok(1))) {
            tracing::debug!("a client said nothing");
            return None;
        }
        if first[0] != HANDSHAKE_RECORD {
            tracing::debug!("a client did not begin with a handshake");
            // Whatever becomes of it, there is no more to say.
            let _ = timeout(linger, answer_once(protocol, &mut socket, without_tls)).await;
            let _ = timeout(linger, drain(&mut socket)).await;
            return None;
        }
        match self.handshake(socket, deadline).await {
            Handshake::Done(stream) => Some(stream),
            Handshake::Refused(error, mut socket) => {
                // Of the client's making: no common version, the wrong certificate, or gone.
                tracing::debug!(%error, "no handshake");
                // So that the reason is not lost in a reset.
                let _ = timeout(linger, drain(&mut socket)).await;
                None
            }
            Handshake::TooSlow => {
                tracing::debug!("a handshake took too long");
                None
            }
        }
    }

    /// Waits for its turn and does the handshake, until `deadline`, or for a shorter time when all turns are taken.
    async fn handshake(&self, socket: Socket<TcpStream>, deadline: Instant) -> Handshake {
        // Never closed, so only the time can be over.
        let Ok(Ok(_turn)) = timeout_at(deadline, self.turns.acquire()).await else {
            return Handshake::TooSlow;
        };
        let current = Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner));
        let handshake = TlsAcceptor::from(current)
            .accept_with(socket, |session| session.set_buffer_limit(Some(TLS_BUFFER_BYTES)))
            .into_fallible();
        tokio::select! {
            done = handshake => match done {
                Ok(stream) => Handshake::Done(Transport::Tls(Box::new(stream.into()))),
                Err((error, socket)) => Handshake::Refused(error, socket),
            },
            () = self.time_is_up(deadline) => Handshake::TooSlow,
        }
    }

    async fn time_is_up(&self, deadline: Instant) {
        let crowded = Instant::now() + self.bounds.crowded;
        sleep_until(crowded.min(deadline)).await;
        while self.turns.available_permits() > 0 && Instant::now() < deadline {
            sleep(PRESSURE_INTERVAL).await;
        }
    }

    fn replace(&self, config: ServerConfig) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
    }
}

/// Why a server cannot start with TLS.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file is of no use.
    #[error(transparent)]
    File(#[from] TlsFileError),
    /// The signal cannot be waited for.
    #[error("cannot wait for SIGHUP: {0}")]
    Signal(#[source] io::Error),
}

impl Contents {
    fn read(files: &TlsFiles) -> Result<Self, TlsFileError> {
        Ok(Self {
            certificate: read(CERTIFICATE, &files.certificate)?,
            key: read(KEY, &files.key)?,
            client_ca: files
                .client_ca
                .as_deref()
                .map(|file| read(CLIENT_CA, file))
                .transpose()?,
        })
    }

    fn server_config(&self, files: &TlsFiles) -> Result<ServerConfig, TlsFileError> {
        let identity = Identity::parse(
            (CERTIFICATE, &files.certificate, &self.certificate),
            (KEY, &files.key, &self.key),
        )?;
        let key_invalid = |error: rustls::Error| TlsFileError::Invalid {
            setting: KEY,
            file: files.key.clone(),
            reason: error.to_string(),
        };
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(VERSIONS)
            .map_err(key_invalid)?;
        let builder = match (&files.client_ca, &self.client_ca) {
            (Some(file), Some(text)) => {
                let roots = authorities(CLIENT_CA, file, text)?;
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
                    .build()
                    .map_err(|error| TlsFileError::Invalid {
                        setting: CLIENT_CA,
                        file: file.clone(),
                        reason: error.to_string(),
                    })?;
                builder.with_client_cert_verifier(verifier)
            }
            _ => builder.with_no_client_auth(),
        };
        let mut config = builder
            .with_single_cert(identity.chain, identity.key)
            .map_err(key_invalid)?;
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        Ok(config)
    }
}

impl Reloader {
    /// Watches until the server stops.
    pub(super) async fn run(mut self, mut stopping: watch::Receiver<bool>) {
        let mut ticks = interval(TLS_FILES_CHECK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut before = None;
        loop {
            let asked = tokio::select! {
                () = told(&mut stopping) => return,
                _ = self.hangup.recv() => true,
                _ = ticks.tick() => false,
            };
            let files = self.files.clone();
            let read = tokio::task::spawn_blocking(move || {
                Contents::read(&files).map_err(|error| error.to_string())
            });
            let Ok(found) = read.await else { return };
            // Who replaces two files does so one after the other: what is still changing is not looked at.
            let stands_still = before.as_ref() == Some(&found);
            if asked || (stands_still && found != self.settled) {
                self.take(found.clone());
                self.settled = found.clone();
            }
            before = Some(found);
        }
    }

    fn take(&self, found: Result<Contents, String>) {
        let config = found.and_then(|contents| {
            contents
                .server_config(&self.files)
                .map_err(|error| error.to_string())
        });
        match config {
            Ok(config) => {
                self.tls.replace(config);
                tracing::info!(
                    certificate = %self.files.certificate.display(),
                    "new connections get the certificate that was read just now"
                );
            }
            Err(error) => {
                tracing::error!(%error, "the certificate was not replaced; the old one stays in use");
            }
        }
    }
}
