//! The server: ties store, queue, committer and API together, takes connections, and stops cleanly.
//!
//! [`serve`] is the only way in. When its shutdown future ends, it takes no more connections, answers what it has
//! taken in, lets the committer finish, and returns; all within a bounded time, whatever clients do.

mod descriptors;
mod places;
mod socket;
#[cfg(test)]
mod tests;
mod tls;

use crate::{
    access::{Gate, KeyError, KeyFile, KeyStore},
    broker::{self, Broker},
    client::EndpointError,
    committer,
    config::{Config, DatabaseUrl},
    health::Health,
    http::{self, Api, Parts, Pressure, Timeouts},
    ingest,
    limits::{
        ACCEPT_RETRY, KEY_REFRESH, LISTEN_BACKLOG, MAX_HEADER_BYTES, MAX_REFUSED_CONNECTIONS,
        READ_BUFFER_BYTES, REFUSAL_TIMEOUT,
    },
    logging::Seldom,
    stopping::told,
    store::{Maintenance, OpenError, Store, Writer, postgres, sqlite},
    tls::Transport,
    traces::{self, Export, Tracer},
    wakeup::Wakeup,
};
use axum::{body::Body, http::HeaderMap, response::Response};
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use places::{Place, Places};
use socket::{Socket, Work};
use std::{convert::Infallible, io, net::IpAddr, path::PathBuf, pin::pin, sync::Arc, time::Duration};
use tls::{Reloader, Tls};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, oneshot, watch},
    time::MissedTickBehavior,
};

pub use tls::LoadError;

/// Why the server did not start, or did not stop cleanly.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// Opening the store, or reading its keys, ended with a panic.
    #[error("opening the store panicked; see the log")]
    OpeningPanicked,
    /// The keys cannot be read.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// Everyone who reaches the address could read and write everything.
    #[error(
        "no key is made, and without keys oncelog answers on this machine alone, not on {address}. Make one \
         (`oncelog keys create --name admin --scope admin`), or set ALLOW_ANONYMOUS=true to let everyone who reaches \
         this address read and write everything"
    )]
    Open {
        /// Where the server was told to listen.
        address: IpAddr,
    },
    /// The broker cannot be used.
    #[error(transparent)]
    Broker(#[from] broker::StartError),
    /// The certificate or its key cannot be used.
    #[error(transparent)]
    Tls(#[from] LoadError),
    /// The collector of traces cannot be reached as it was asked for.
    #[error("OTLP_ENDPOINT: {0}")]
    Otlp(#[from] EndpointError),
    /// The listening socket cannot be used.
    #[error("cannot listen: {0}")]
    Listen(#[source] io::Error),
    /// The committer's thread cannot be started.
    #[error("cannot start the committer's thread: {0}")]
    Committer(#[source] io::Error),
    /// The committer's thread ended with a panic; what it had answered is committed.
    #[error("the committer's thread panicked; see the log")]
    CommitterPanicked,
}

/// Opens the store and serves it on `listener` until `shutdown` ends. If that is while the store is being opened, the
/// thread that opens it goes on until the program ends.
pub async fn serve(
    config: Config,
    listener: std::net::TcpListener,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    let mut shutdown = Box::pin(shutdown);
    let gate = tokio::select! {
        opened = open_gate(&config) => opened?,
        () = &mut shutdown => {
            tracing::info!("stopped while the keys were being read");
            return Ok(());
        }
    };
    let address = listener.local_addr().map_err(ServeError::Listen)?.ip();
    if gate.is_open() && !config.allow_anonymous && !address.is_loopback() {
        return Err(ServeError::Open { address });
    }
    if config.allow_anonymous {
        tracing::warn!(%address, "ALLOW_ANONYMOUS: whoever reaches this address may read and write everything");
    }
    let tls = config.tls.map(Tls::load).transpose()?;
    let (tracer, export) = traces::start(config.otlp)?;
    let (ingest, queue) = ingest::queue(config.queue_max_size);
    let maintenance = ingest.maintenance();
    let wakeup = Wakeup::new(0);
    let opening = open_store(
        config.database_path,
        config.database_url,
        maintenance,
        wakeup.clone(),
    );
    let (writers, store) = tokio::select! {
        opened = opening => opened?,
        // To rebuild a large segment takes minutes. Whatever a start does is safe to leave at any moment.
        () = &mut shutdown => {
            tracing::info!("stopped while the store was being opened");
            return Ok(());
        }
    };
    wakeup.announce(store.high_watermark());
    let health = Health::default();
    let (broker, consuming) = match config.broker {
        Some(broker) => {
            let started = Broker::start(broker, store.as_ref(), ingest.clone(), health.clone()).await?;
            let (broker, running) = started;
            (Some(broker), Some(running))
        }
        None => (None, None),
    };
    Server {
        store,
        writers,
        wakeup,
        ingest,
        queue,
        broker,
        consuming,
        health,
        gate: Arc::new(gate),
        tracer,
        export,
        timeouts: Timeouts::default(),
        places: descriptors::connection_places(),
        tls,
    }
    .run(listener, shutdown)
    .await
}

/// Reads the keys where the store is.
async fn open_gate(config: &Config) -> Result<Gate, ServeError> {
    let keys: Box<dyn KeyStore> = match &config.database_url {
        Some(url) => Box::new(postgres::KeyTable::open(server(url)?).await?),
        None => Box::new(KeyFile::beside(&config.database_path)),
    };
    let (allow_anonymous, limits) = (config.allow_anonymous, config.limits);
    let opened = tokio::task::spawn_blocking(move || Gate::open(keys, allow_anonymous, limits)).await;
    Ok(opened.map_err(|_| ServeError::OpeningPanicked)??)
}

fn server(url: &DatabaseUrl) -> Result<postgres::Server, OpenError> {
    url.server()
        .map_err(|error| OpenError(format!("DATABASE_URL: {error}")))
}

/// Opens the store on the server that the URL names, or else in the file.
async fn open_store(
    file: PathBuf,
    url: Option<DatabaseUrl>,
    maintenance: Maintenance,
    wakeup: Wakeup,
) -> Result<postgres::Opened, ServeError> {
    if let Some(url) = url {
        return Ok(postgres::open(server(&url)?, maintenance, &wakeup).await?);
    }
    let opened = tokio::task::spawn_blocking(move || sqlite::open(&file, maintenance)).await;
    let (writer, store) = opened.map_err(|_| ServeError::OpeningPanicked)??;
    Ok((vec![writer], store))
}

/// A server that is ready to run.
struct Server {
    store: Arc<dyn Store>,
    writers: Vec<Box<dyn Writer>>,
    wakeup: Wakeup,
    ingest: ingest::Ingest,
    queue: ingest::Queue,
    broker: Option<Broker>,
    /// The broker's work in the background.
    consuming: Option<broker::Running>,
    health: Health,
    gate: Arc<Gate>,
    tracer: Tracer,
    export: Option<Export>,
    timeouts: Timeouts,
    /// Connections that may be open at once.
    places: usize,
    /// Without it, connections are not encrypted.
    tls: Option<(Tls, Reloader)>,
}

impl Server {
    async fn run(
        self,
        listener: std::net::TcpListener,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), ServeError> {
        listener.set_nonblocking(true).map_err(ServeError::Listen)?;
        // Again, for a longer queue than the standard library asks for.
        rustix::net::listen(&listener, LISTEN_BACKLOG).map_err(|error| ServeError::Listen(error.into()))?;
        let listener = TcpListener::from_std(listener).map_err(ServeError::Listen)?;
        let address = listener.local_addr().map_err(ServeError::Listen)?;
        let committers = committer::spawn(self.writers, &self.store, self.queue, &self.wakeup, &self.health)
            .map_err(ServeError::Committer)?;
        let (stop, stopping) = watch::channel(false);
        let (close, closing) = watch::channel(false);
        let api = Api::new(Parts {
            store: self.store,
            ingest: self.ingest.clone(),
            broker: self.broker,
            wakeup: self.wakeup,
            health: self.health,
            gate: Arc::clone(&self.gate),
            tracer: self.tracer,
            stopping: stopping.clone(),
            timeouts: self.timeouts,
        });
        let (tls, reloader) = self.tls.unzip();
        if let Some(reloader) = reloader {
            tokio::spawn(reloader.run(stopping.clone()));
        }
        let scheme = if tls.is_some() { "https" } else { "http" };
        let connections = Connections {
            tls,
            pressure: api.pressure(),
            api,
            protocol: protocol(self.timeouts.header_read),
            places: Places::new(self.places),
            refusals: Arc::new(Semaphore::new(MAX_REFUSED_CONNECTIONS)),
            write: self.timeouts.write,
            linger: self.timeouts.linger,
            stopping,
            closing,
        };

        tracing::info!(address = %format_args!("{scheme}://{address}"), "listening");
        tokio::select! {
            () = shutdown => {}
            () = connections.accept(&listener) => {}
            () = keep_fresh(self.gate) => {}
        }
        tracing::info!("stopping: finishing the requests in work");
        drop(listener);
        stop.send_replace(true);
        connections.places.give_up_all();
        if tokio::time::timeout(self.timeouts.shutdown, connections.places.empty())
            .await
            .is_err()
        {
            tracing::warn!(
                connections = connections.places.taken(),
                "some requests did not end in time; closing their connections"
            );
            close.send_replace(true);
            // They end as soon as they hear of it.
            connections.places.empty().await;
        }
        // Nobody reads the store any more when the committer closes it.
        drop(connections);
        if let Some(consuming) = self.consuming {
            consuming.stop().await;
        }

        self.ingest.stop();
        let ended = tokio::task::spawn_blocking(move || committers.join());
        if let Some(export) = self.export {
            export.finish().await;
        }
        let ended = ended.await;
        if !matches!(ended, Ok(Ok(()))) {
            return Err(ServeError::CommitterPanicked);
        }
        tracing::info!("stopped");
        Ok(())
    }
}

/// Looks for changes of the keys, for ever.
async fn keep_fresh(gate: Arc<Gate>) {
    let mut turns = tokio::time::interval(KEY_REFRESH);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        turns.tick().await;
        let gate = Arc::clone(&gate);
        if let Err(error) = tokio::task::spawn_blocking(move || gate.refresh()).await {
            tracing::error!(%error, "reading the keys panicked; they stay as they were");
        }
    }
}

/// HTTP/1.1 with its bounds. The most headers of a request are hyper's default, [`crate::limits::MAX_HEADERS`]:
/// setting it would cost an allocation a request. A client that closes its side is taken to be gone, as HTTP servers
/// commonly do: the two cannot be told apart, and a query that waits must not outlive its client.
fn protocol(header_read: Duration) -> http1::Builder {
    let mut protocol = http1::Builder::new();
    protocol
        .timer(TokioTimer::new())
        .header_read_timeout(header_read)
        .max_header_size(MAX_HEADER_BYTES)
        .max_buf_size(READ_BUFFER_BYTES)
        .half_close(false);
    protocol
}

/// The open connections.
struct Connections {
    tls: Option<Tls>,
    api: Api,
    pressure: Pressure,
    protocol: http1::Builder,
    places: Places,
    /// For connections that only get told that there is no place for them.
    refusals: Arc<Semaphore>,
    write: Duration,
    linger: Duration,
    stopping: watch::Receiver<bool>,
    closing: watch::Receiver<bool>,
}

impl Connections {
    /// Accepts connections, for ever.
    async fn accept(&self, listener: &TcpListener) {
        let mut failures = Seldom::default();
        let mut refusals = Seldom::default();
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let work = Work::default();
                    match self.places.take(work.clone()).await {
                        Some((place, give_up)) => self.spawn(stream, work, place, give_up),
                        None => {
                            if let Some(not_logged) = refusals.now() {
                                tracing::warn!(
                                    connections = self.places.all(),
                                    not_logged,
                                    "all connections are in use; refusing new ones with a 503"
                                );
                            }
                            self.refuse(stream).await;
                        }
                    }
                }
                Err(error) if is_of_the_client(&error) => {}
                Err(error) => {
                    if let Some(not_logged) = failures.now() {
                        tracing::error!(
                            %error,
                            not_logged,
                            "cannot accept connections; trying again (too few file descriptors? see ulimit -n)"
                        );
                    }
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    fn spawn(&self, stream: TcpStream, work: Work, place: Place, mut give_up: oneshot::Receiver<()>) {
        // Without it an answer could wait for the acknowledgement of the one before. A socket that refuses is slower,
        // not wrong.
        let _ = stream.set_nodelay(true);
        let socket = Socket::new(stream, self.write, self.pressure.clone(), work.clone());
        let tls = self.tls.clone();
        // One of its own: what every request of every connection counts up and down is fought over by the processors.
        let api = Arc::new(self.api.clone());
        let refusing = Arc::clone(&api);
        let handled = work.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let api = Arc::clone(&api);
            let work = handled.clone();
            async move {
                work.set_request(true);
                let answer = api.handle(request.map(Body::new)).await;
                work.set_request(false);
                Ok::<_, Infallible>(answer)
            }
        });
        let protocol = self.protocol.clone();
        let linger = self.linger;
        let mut stopping = self.stopping.clone();
        let mut closing = self.closing.clone();
        tokio::spawn(async move {
            let _place = place;
            // A client in its handshake has nothing in work yet.
            let opened = tokio::select! {
                biased;
                opened = open(tls, socket, &protocol, linger, &refusing) => opened,
                _ = &mut give_up => return,
            };
            let Some(mut transport) = opened else { return };
            {
                let mut connection = pin!(protocol.serve_connection(TokioIo::new(&mut transport), service));
                let ending = tokio::select! {
                    biased;
                    ended = connection.as_mut() => Ending::OfItself(ended),
                    // The sender stays until the place is given back.
                    _ = &mut give_up => Ending::Told,
                };
                let ended = match ending {
                    Ending::OfItself(ended) => ended,
                    // Idle, or in the middle of a head: nothing was taken in.
                    Ending::Told if !work.is_there() => return,
                    Ending::Told => {
                        connection.as_mut().graceful_shutdown();
                        tokio::select! {
                            ended = connection => ended,
                            () = told(&mut closing) => return,
                        }
                    }
                };
                if let Err(error) = ended {
                    // Of the client's making: cut off, too slow, or no HTTP.
                    tracing::debug!(%error, "connection ended");
                }
            }
            // Closing a socket with unread bytes resets it, and the client may lose the answer: read on for a while.
            tokio::select! {
                _ = tokio::time::timeout(linger, drain(transport.below())) => {}
                () = told(&mut stopping) => {}
            }
        });
    }

    /// Answers the first request with a 503. There are places for this, too; when they are all taken, newcomers wait in
    /// the kernel's queue for as long as that lasts.
    async fn refuse(&self, stream: TcpStream) {
        // Never closed, so it cannot fail.
        let Ok(place) = Arc::clone(&self.refusals).acquire_owned().await else {
            return;
        };
        let protocol = self.protocol.clone();
        let mut stopping = self.stopping.clone();
        let places = self.places.all();
        let socket = Socket::new(stream, self.write, self.pressure.clone(), Work::default());
        let tls = self.tls.clone();
        let linger = self.linger;
        let api = self.api.clone();
        tokio::spawn(async move {
            let _place = place;
            let refused = async {
                if let Some(mut transport) = open(tls, socket, &protocol, linger, &api).await {
                    let answer = |headers: &_| api.refuse(headers, || http::no_place(places));
                    answer_once(&protocol, &mut transport, answer).await;
                    drain(transport.below()).await;
                }
            };
            tokio::select! {
                _ = tokio::time::timeout(REFUSAL_TIMEOUT, refused) => {}
                () = told(&mut stopping) => {}
            }
        });
    }
}

/// The connection as requests come over it; `None` when there was no handshake, which is told and done with.
async fn open(
    tls: Option<Tls>,
    socket: Socket<TcpStream>,
    protocol: &http1::Builder,
    linger: Duration,
    api: &Api,
) -> Option<Transport<Socket<TcpStream>>> {
    match tls {
        None => Some(Transport::Plain(socket)),
        Some(tls) => {
            let without_tls = |headers: &_| api.refuse(headers, http::without_tls);
            tls.open(socket, protocol, linger, without_tls).await
        }
    }
}

/// Answers whatever is asked with `answer`. Whatever becomes of that, the client is free to try again.
async fn answer_once(
    protocol: &http1::Builder,
    stream: impl AsyncRead + AsyncWrite + Unpin,
    answer: impl Fn(&HeaderMap) -> Response,
) {
    let service = service_fn(|request: Request<Incoming>| {
        let answer = answer(request.headers());
        async move { Ok::<_, Infallible>(answer) }
    });
    let _ = protocol.serve_connection(TokioIo::new(stream), service).await;
}

/// Reads to the end and drops what it reads.
async fn drain(stream: &mut (impl AsyncRead + Unpin)) {
    let mut bytes = vec![0; 16 << 10];
    while matches!(stream.read(&mut bytes).await, Ok(read) if read > 0) {}
}

/// Whether only the connection that was about to be accepted is concerned.
fn is_of_the_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

/// Why a connection ends.
enum Ending {
    OfItself(hyper::Result<()>),
    Told,
}
