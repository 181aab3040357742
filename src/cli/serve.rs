//! `oncelog serve`: binds the port, starts the server, stops it on SIGTERM or SIGINT.

use super::{Failure, block_on_all_processors};
use crate::{
    config::{Arguments, Config, DatabaseUrl, LogFormat},
    logging, server,
};
use std::{io, net::TcpListener};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};

/// Serve events over HTTP until SIGTERM or SIGINT
///
/// A setting is taken from the first of these that has it: flag, environment variable, .env file, TOML file, default.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    oncelog serve --port 9000 --database-path /var/lib/oncelog/events.db\n  \
    HOST=0.0.0.0 LOG_FORMAT=json oncelog serve\n  \
    oncelog serve --tls-certificate chain.pem --tls-key key.pem     for https://\n  \
    oncelog serve --config oncelog.toml     where oncelog.toml has lines such as: port = 9000")]
pub(super) struct Serve {
    #[command(flatten)]
    settings: Arguments,
}

impl Serve {
    pub(super) fn run(self) -> Result<(), Failure> {
        let config = Config::load(&self.settings)?;
        logging::start(config.log_level, config.log_format);
        let log_format = config.log_format;
        start(config).map_err(|failure| report(failure, log_format))
    }
}

fn start(config: Config) -> Result<(), Failure> {
    let listener = bind(&config.host, config.port).map_err(Failure::Failed)?;
    block_on_all_processors(async move {
        let shutdown = shutdown()?;
        info!(
            version = env!("ONCELOG_VERSION"),
            store = %store(&config),
            "starting"
        );
        server::serve(config, listener, shutdown)
            .await
            .map_err(|error| Failure::Failed(error.to_string()))
    })
}

/// Where the events go, without a password.
fn store(config: &Config) -> String {
    match config.database_url.as_ref().map(DatabaseUrl::server) {
        Some(Ok(server)) => server.to_string(),
        Some(Err(error)) => error.to_string(),
        None => config.database_path.display().to_string(),
    }
}

/// Who collects JSON lines must find the reason for a failure among them; people find it as the last line.
fn report(failure: Failure, log_format: LogFormat) -> Failure {
    match (failure, log_format) {
        (Failure::Failed(message), LogFormat::Json) => {
            error!("{message}");
            Failure::Reported
        }
        (failure, _) => failure,
    }
}

fn bind(host: &str, port: u16) -> Result<TcpListener, String> {
    let bind = || {
        let listener = TcpListener::bind((host, port))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    bind().map_err(|error: io::Error| match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "port {port} on {host} is taken; stop the other program or choose another with --port or PORT"
        ),
        io::ErrorKind::PermissionDenied => format!(
            "port {port} on {host} needs more rights than this user has; choose one from 1024 with --port or PORT"
        ),
        io::ErrorKind::AddrNotAvailable => {
            format!("{host} is not an address of this machine; choose another with --host or HOST")
        }
        _ => format!("cannot listen on {host}, port {port}: {error}; see --host (HOST) and --port (PORT)"),
    })
}

/// Waits for the first signal to stop. A second one ends the process at once.
fn shutdown() -> Result<impl Future<Output = ()> + Send + 'static, Failure> {
    let handler =
        |kind| signal(kind).map_err(|error| Failure::Failed(format!("cannot wait for signals: {error}")));
    let mut terminate = handler(SignalKind::terminate())?;
    let mut interrupt = handler(SignalKind::interrupt())?;
    Ok(async move {
        let name = either(&mut terminate, &mut interrupt).await;
        info!("received {name}");
        tokio::spawn(async move {
            let name = either(&mut terminate, &mut interrupt).await;
            warn!("received {name} as well: ending at once");
            std::process::exit(1);
        });
    })
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}
