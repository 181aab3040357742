//! Where the PostgreSQL server is, and how connections to it come up.
//!
//! Every connection sets its own bounds: the server ends what takes too long, also when this program is gone.

use super::{certificate, failure};
use crate::{limits, store::OpenError, tls::TlsFileError};
use deadpool_postgres::{Hook, HookError, Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use percent_encoding::percent_decode_str;
use std::path::PathBuf;
use tokio::task::JoinHandle;
use tokio_postgres::{
    Client, Config, Connection, Socket, config::Host, config::SslMode, config::TargetSessionAttrs,
};
use tokio_postgres_rustls::MakeRustlsConnect;

/// A PostgreSQL server and a database in it.
#[derive(Clone)]
pub struct Server {
    config: Config,
    tls: MakeRustlsConnect,
    shown: String,
}

/// Why a `DATABASE_URL` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// It is no URL of a PostgreSQL server.
    #[error("{0}")]
    Url(String),
    /// `sslmode` has a value that is not taken.
    #[error(
        "sslmode is {0:?}; allowed: disable, prefer (the default), require (encrypted, the server's certificate not \
         checked), verify-full (checked)"
    )]
    SslMode(String),
    /// `sslrootcert` without `sslmode=verify-full`.
    #[error("sslrootcert is set, but sslmode is not verify-full: nothing would be checked")]
    UncheckedAuthorities,
    /// The file that `sslrootcert` names cannot be used.
    #[error(transparent)]
    File(#[from] TlsFileError),
    /// There is nobody to trust.
    #[error("no certificate authority is known ({0}); name a PEM file with sslrootcert=")]
    NoAuthorities(String),
}

/// Gives a new connection its settings and bounds. Not when it starts, by the parameter `options`: poolers refuse that.
///
/// Each statement has to see what was committed before it, whatever transactions are by default in this database: a commit
/// finds duplicates that others stored while it ran, and the horizon asks in steps.
///
/// Ways that look at whole tables are never right for the statements of this program, whatever the server's statistics
/// say of tables that grow this fast.
pub(super) async fn set_up(client: &Client) -> Result<(), tokio_postgres::Error> {
    let settings = format!(
        "SET search_path = oncelog; SET statement_timeout = {}; SET idle_in_transaction_session_timeout = {}; \
         SET tcp_keepalives_idle = {}; SET tcp_keepalives_interval = {}; SET tcp_user_timeout = {}; \
         SET default_transaction_isolation = 'read committed'; SET enable_seqscan = off; SET jit = off; SET client_min_messages = warning; \
         SELECT set_config('synchronous_commit', CASE current_setting('synchronous_commit') \
         WHEN 'off' THEN 'on' WHEN 'local' THEN 'on' ELSE current_setting('synchronous_commit') END, false)",
        limits::POSTGRES_STATEMENT_TIMEOUT.as_millis(),
        limits::POSTGRES_IDLE_TIMEOUT.as_millis(),
        limits::POSTGRES_IDLE_TIMEOUT.as_secs(),
        limits::POSTGRES_KEEPALIVE_INTERVAL.as_secs(),
        limits::POSTGRES_COMMIT_TIMEOUT.as_millis(),
    );
    client.batch_execute(&settings).await
}

impl Server {
    /// Reads a URL such as `postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=verify-full`. Reads the file that
    /// `sslrootcert` names.
    pub fn parse(url: &str) -> Result<Self, ServerError> {
        if !["postgres://", "postgresql://"]
            .iter()
            .any(|scheme| url.starts_with(scheme))
        {
            return Err(ServerError::Url(
                "it must begin with postgres:// or postgresql://".into(),
            ));
        }
        let (address, query) = url.split_once('?').unwrap_or((url, ""));
        let mut mode = "prefer".to_owned();
        let mut authorities = None;
        let mut rest = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_decode_str(value).decode_utf8_lossy();
            match name {
                "sslmode" => mode = value.into_owned(),
                "sslrootcert" => authorities = Some(PathBuf::from(value.as_ref())),
                _ => rest.push(pair),
            }
        }
        let address = format!("{address}?{}", rest.join("&"));
        let mut config: Config = address
            .trim_end_matches('?')
            .parse()
            .map_err(|error: tokio_postgres::Error| ServerError::Url(failure::chain(&error)))?;
        if config.get_hosts().is_empty() {
            return Err(ServerError::Url("it names no host".into()));
        }
        if authorities.is_some() && mode != "verify-full" {
            return Err(ServerError::UncheckedAuthorities);
        }
        let tls = match mode.as_str() {
            "disable" | "prefer" | "require" => certificate::unverified()?,
            "verify-full" => certificate::verified(authorities.as_deref())?,
            _ => return Err(ServerError::SslMode(mode)),
        };
        config.ssl_mode(match mode.as_str() {
            "disable" => SslMode::Disable,
            "prefer" => SslMode::Prefer,
            _ => SslMode::Require,
        });
        bound(&mut config);
        Ok(Self {
            shown: shown(&config),
            config,
            tls,
        })
    }

    /// A connection of its own.
    pub(super) async fn connect(&self) -> Result<Session, tokio_postgres::Error> {
        let (client, connection) = self.connect_raw().await?;
        // How a connection ends is told to whoever uses it.
        let driver = tokio::spawn(async move { drop(connection.await) });
        let session = Session { client, driver };
        set_up(&session.client).await?;
        Ok(session)
    }

    /// A connection that its user has to drive, and to [set up](set_up): it is for notifications.
    pub(super) async fn connect_raw(
        &self,
    ) -> Result<
        (
            Client,
            Connection<Socket, <MakeRustlsConnect as tokio_postgres::tls::MakeTlsConnect<Socket>>::Stream>,
        ),
        tokio_postgres::Error,
    > {
        self.config.connect(self.tls.clone()).await
    }

    /// The connections that readers share.
    pub(super) fn pool(&self) -> Result<Pool, OpenError> {
        let manager = Manager::from_config(
            self.config.clone(),
            self.tls.clone(),
            ManagerConfig {
                recycling_method: RecyclingMethod::Fast,
            },
        );
        Pool::builder(manager)
            .max_size(limits::POSTGRES_READERS)
            .runtime(Runtime::Tokio1)
            .create_timeout(Some(limits::POSTGRES_CONNECT_TIMEOUT))
            .wait_timeout(Some(limits::QUERY_WAIT))
            .post_create(Hook::async_fn(|client, _| {
                Box::pin(async move { set_up(client).await.map_err(HookError::Backend) })
            }))
            .build()
            .map_err(|error| OpenError(format!("{}: {error}", self.shown)))
    }
}

impl std::fmt::Display for Server {
    /// The server and the database, without the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PostgreSQL at {}", self.shown)
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

/// A connection; it is closed when this is dropped.
pub(super) struct Session {
    pub(super) client: Client,
    driver: JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Sets what every connection needs, but for what the URL says.
fn bound(config: &mut Config) {
    if config.get_application_name().is_none() {
        config.application_name("oncelog");
    }
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(limits::POSTGRES_CONNECT_TIMEOUT);
    }
    // A server that is cut off would otherwise be waited for until the operating system gives up, which takes minutes.
    if config.get_tcp_user_timeout().is_none() {
        config.tcp_user_timeout(limits::POSTGRES_COMMIT_TIMEOUT);
    }
    config.keepalives_idle(limits::POSTGRES_IDLE_TIMEOUT);
    config.keepalives_interval(limits::POSTGRES_KEEPALIVE_INTERVAL);
    config.target_session_attrs(TargetSessionAttrs::ReadWrite);
}

fn shown(config: &Config) -> String {
    let ports = config.get_ports();
    let hosts: Vec<String> = config
        .get_hosts()
        .iter()
        .enumerate()
        .map(|(place, host)| {
            let port = ports.get(place).or(ports.first()).copied().unwrap_or(5432);
            match host {
                Host::Tcp(name) => format!("{name}:{port}"),
                Host::Unix(path) => format!("{}:{port}", path.display()),
            }
        })
        .collect();
    let database = config.get_dbname().or(config.get_user()).unwrap_or("postgres");
    format!("{}/{database}", hosts.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_of_a_server_has_no_password() {
        let server = Server::parse("postgres://anna:secret@db.example:6432/logs?sslmode=disable").unwrap();
        assert_eq!(server.to_string(), "PostgreSQL at db.example:6432/logs");
        assert!(!format!("{server:?}").contains("secret"));
    }

    #[test]
    fn a_url_that_cannot_be_used_is_refused_with_the_reason() {
        for (url, reason) in [
            ("mysql://host/db", "must begin with postgres://"),
            ("postgres://", "no host"),
            ("postgres://host:port/db", "port"),
            ("postgres://host/db?sslmode=allow", "sslmode is \"allow\""),
            (
                "postgres://host/db?sslrootcert=/ca.pem",
                "sslmode is not verify-full",
            ),
            (
                "postgres://host/db?sslmode=verify-full&sslrootcert=/no/such.pem",
                "/no/such.pem",
            ),
            ("postgres://host/db?colour=red", "colour"),
        ] {
            let error = Server::parse(url).unwrap_err().to_string();
            assert!(error.contains(reason), "{url}: {error}");
        }
    }
}
