//! Connections to Redis, and whether there are any.
//!
//! The keeper alone connects, with growing waits; all others take what it has made ([`Link`]) and are told at once when
//! there is none, so that no request waits for a Redis that is away and no crowd of them asks it to come back.

use super::{keys, scripts::Scripts, url::BrokerUrl};
use crate::limits::{BROKER_ANSWER_TIMEOUT, BROKER_CONNECT_TIMEOUT, BROKER_CONNECTIONS, BROKER_PARTITIONS};
use redis::{AsyncConnectionConfig, Client, ErrorKind, RedisError, RedisResult, aio::MultiplexedConnection};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::sync::{Notify, watch};

/// The oldest Redis that has all that is used: XAUTOCLAIM that leaves deleted entries out, and scripts whose effects
/// are written to the append-only file as one.
const OLDEST_VERSION: u32 = 7;

/// The state of the connections: they are there, or why they are not.
type State = Result<Arc<Connections>, String>;

/// What all but the keeper know of the connections. Clones know the same.
#[derive(Clone)]
pub(super) struct Link {
    state: watch::Receiver<State>,
    doubted: Arc<Notify>,
}

/// The keeper's end of the [`Link`].
pub(super) struct LinkState {
    state: watch::Sender<State>,
    doubted: Arc<Notify>,
}

/// A link that is down.
pub(super) fn link() -> (Link, LinkState) {
    let (sender, state) = watch::channel(Err("not connected yet".to_owned()));
    let doubted = Arc::new(Notify::new());
    let link = Link {
        state,
        doubted: Arc::clone(&doubted),
    };
    (
        link,
        LinkState {
            state: sender,
            doubted,
        },
    )
}

impl Link {
    /// The connections, or why there are none.
    pub(super) fn connections(&self) -> State {
        self.state.borrow().clone()
    }

    /// Waits until there are connections. Never ends once the keeper is gone.
    pub(super) async fn up(&mut self) {
        if self.state.wait_for(Result::is_ok).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until these connections are lost, or others have taken their place. Never ends once the keeper is gone.
    pub(super) async fn replaced(&mut self, connections: &Arc<Connections>) {
        let is_other = |state: &State| !matches!(state, Ok(now) if Arc::ptr_eq(now, connections));
        if self.state.wait_for(is_other).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Something went wrong that may mean that the connections are lost: the keeper is to look at once.
    pub(super) fn doubt(&self) {
        self.doubted.notify_one();
    }
}

impl LinkState {
    pub(super) fn up(&self, connections: Arc<Connections>) {
        // What it replaces is of no interest.
        let _ = self.state.send_replace(Ok(connections));
    }

    pub(super) fn down(&self, reason: String) {
        let _ = self.state.send_replace(Err(reason));
    }

    /// Ends when somebody doubts the connections.
    pub(super) async fn doubted(&self) {
        self.doubted.notified().await;
    }
}

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ConnectError {
    /// Redis cannot be reached, or not yet: it is worth trying again.
    Away(String),
    /// Redis answers, but is none that can be used.
    Unusable(String),
}

impl From<RedisError> for ConnectError {
    fn from(error: RedisError) -> Self {
        match error.kind() {
            ErrorKind::AuthenticationFailed | ErrorKind::InvalidClientConfig => {
                Self::Unusable(error.to_string())
            }
            _ => Self::Away(error.to_string()),
        }
    }
}

/// Makes connections to one Redis for one store.
pub(super) struct Connector {
    url: BrokerUrl,
    /// The store's id; without it, any is good enough.
    store: Option<String>,
    /// What was warned of, so that it is not said again with each connection.
    warned: Mutex<Vec<String>>,
}

impl Connector {
    pub(super) fn new(url: &BrokerUrl, store: u128) -> Self {
        Self {
            url: url.clone(),
            store: Some(format!("{store:032x}")),
            warned: Mutex::default(),
        }
    }

    /// For who changes nothing that belongs to a store alone.
    pub(super) fn for_any_store(url: &BrokerUrl) -> Self {
        Self {
            url: url.clone(),
            store: None,
            warned: Mutex::default(),
        }
    }

    pub(super) fn url(&self) -> &BrokerUrl {
        &self.url
    }

    /// Connects, checks that this Redis can be used, and sets it up if it is new.
    pub(super) async fn connect(&self) -> Result<Arc<Connections>, ConnectError> {
        let client = self.url.client()?;
        let mut first = open(&client).await?;
        let mut warnings = check_version(&mut first).await?;
        let (store, partitions) = set_up(&mut first, self.store.as_deref()).await?;
        if let Some(ours) = self.store.as_ref().filter(|ours| **ours != store) {
            return Err(ConnectError::Unusable(format!(
                "it holds the events of another store ({store}, this is {ours}); give each its own Redis, or its own \
                 database of one (redis://HOST/1)"
            )));
        }
        if self.store.is_some() {
            warnings.extend(persistence(&mut first).await?);
            self.warn(warnings);
        }
        let scripts = Scripts::new();
        scripts.load(&mut first).await?;
        let mut shared = vec![first];
        while shared.len() < BROKER_CONNECTIONS {
            shared.push(open(&client).await?);
        }
        Ok(Arc::new(Connections {
            client,
            store,
            partitions,
            shared,
            next: AtomicUsize::new(0),
            scripts,
        }))
    }

    fn warn(&self, warnings: Vec<String>) {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        for warning in warnings.iter().filter(|warning| !warned.contains(warning)) {
            tracing::warn!(broker = %self.url, "{warning}");
        }
        *warned = warnings;
    }
}

async fn open(client: &Client) -> RedisResult<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(BROKER_CONNECT_TIMEOUT))
        .set_response_timeout(Some(BROKER_ANSWER_TIMEOUT));
    client.get_multiplexed_async_connection_with_config(&config).await
}

/// Whether somebody who runs Redis has forbidden the command.
fn is_forbidden(error: &RedisError) -> bool {
    // NOPERM of an access list; "unknown command" where the command was renamed away.
    !error.is_unrecoverable_error() && error.code().is_some_and(|code| matches!(code, "NOPERM" | "ERR"))
}

/// Refuses a Redis that is too old; warns when that cannot be seen.
async fn check_version(connection: &mut MultiplexedConnection) -> Result<Vec<String>, ConnectError> {
    let info: String = match redis::cmd("INFO").arg("server").query_async(connection).await {
        Ok(info) => info,
        Err(error) if is_forbidden(&error) => {
            return Ok(vec![format!(
                "cannot see the version of Redis, INFO is forbidden; {OLDEST_VERSION} or newer is needed"
            )]);
        }
        Err(error) => return Err(error.into()),
    };
    let version = info
        .lines()
        .find_map(|line| line.strip_prefix("redis_version:"))
        .unwrap_or("without a version")
        .trim();
    let major = version
        .split('.')
        .next()
        .and_then(|major| major.parse::<u32>().ok());
    match major {
        Some(major) if major >= OLDEST_VERSION => Ok(Vec::new()),
        _ => Err(ConnectError::Unusable(format!(
            "it is Redis {version}; {OLDEST_VERSION} or newer is needed"
        ))),
    }
}

/// Writes down whose this Redis is and its number of partitions, unless that is there already, and returns what is
/// there. Without a store nothing is written.
async fn set_up(connection: &mut MultiplexedConnection, store: Option<&str>) -> RedisResult<(String, u16)> {
    let mut look = redis::cmd("HMGET");
    look.arg(keys::META).arg("store").arg("partitions");
    let mut found: (Option<String>, Option<u16>) = look.query_async(connection).await?;
    // Only if something is missing: out of memory, Redis refuses also what would change nothing, and has to be drained.
    if let (Some(store), (None, _) | (_, None)) = (store, &found) {
        let mut commands = redis::pipe();
        commands.atomic();
        for (field, value) in [("store", store), ("partitions", &BROKER_PARTITIONS.to_string())] {
            commands
                .cmd("HSETNX")
                .arg(keys::META)
                .arg(field)
                .arg(value)
                .ignore();
        }
        commands.add_command(look);
        (found,) = commands.query_async(connection).await?;
    }
    let (store, partitions) = found;
    Ok((
        store.unwrap_or_default(),
        partitions.unwrap_or(BROKER_PARTITIONS).max(1),
    ))
}

/// What in Redis's settings would lose events that were answered 202.
async fn persistence(connection: &mut MultiplexedConnection) -> RedisResult<Vec<String>> {
    let settings: HashMap<String, String> = match redis::cmd("CONFIG")
        .arg("GET")
        .arg("appendonly")
        .arg("appendfsync")
        .arg("no-appendfsync-on-rewrite")
        .arg("maxmemory")
        .arg("maxmemory-policy")
        .query_async(connection)
        .await
    {
        Ok(settings) => settings,
        Err(error) if is_forbidden(&error) => {
            return Ok(vec![
                "cannot see whether Redis keeps what it has taken, CONFIG is forbidden; it needs appendonly yes, \
                 appendfsync always and maxmemory-policy noeviction"
                    .to_owned(),
            ]);
        }
        Err(error) => return Err(error),
    };
    Ok(losses(&settings))
}

/// A warning for each of Redis's settings that can lose events.
fn losses(settings: &HashMap<String, String>) -> Vec<String> {
    let setting = |name: &str| settings.get(name).map_or("", String::as_str);
    let mut warnings = Vec::new();
    if setting("appendonly") != "yes" {
        warnings.push(
            "Redis loses queued events when it ends: it has appendonly no; set appendonly yes and appendfsync always"
                .to_owned(),
        );
    } else if setting("appendfsync") != "always" {
        warnings.push(format!(
            "Redis may lose queued events when its machine ends: it has appendfsync {}; set appendfsync always",
            setting("appendfsync")
        ));
    }
    if setting("appendonly") == "yes" && setting("no-appendfsync-on-rewrite") == "yes" {
        warnings.push(
            "Redis may lose what it queues while it rewrites its file: it has no-appendfsync-on-rewrite yes; set \
             no-appendfsync-on-rewrite no"
                .to_owned(),
        );
    }
    if setting("maxmemory") != "0" && setting("maxmemory-policy") != "noeviction" {
        warnings.push(format!(
            "Redis drops queued events when it is out of memory: it has maxmemory-policy {}; set maxmemory-policy \
             noeviction",
            setting("maxmemory-policy")
        ));
    }
    warnings
}

/// Connections to a Redis that was checked and set up.
pub(super) struct Connections {
    client: Client,
    store: String,
    partitions: u16,
    shared: Vec<MultiplexedConnection>,
    next: AtomicUsize,
    scripts: Scripts,
}

impl Connections {
    /// One that others use at the same time: for what does not block in Redis.
    pub(super) fn shared(&self) -> MultiplexedConnection {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        self.shared[next % self.shared.len()].clone()
    }

    /// The same, without a bound for the wait: who calls has to bound it.
    pub(super) fn patient(&self) -> MultiplexedConnection {
        let mut connection = self.shared();
        connection.set_response_timeout(Duration::MAX);
        connection
    }

    /// A new one, for what blocks in Redis.
    pub(super) async fn own(&self) -> RedisResult<MultiplexedConnection> {
        open(&self.client).await
    }

    /// Whether all shared ones hold; the error is that of the first one that is lost.
    pub(super) async fn check(&self) -> RedisResult<()> {
        for connection in &self.shared {
            let pong = redis::cmd("PING").exec_async(&mut connection.clone()).await;
            pong.or_else(|error| match error.code() {
                // An access list may forbid it; that is an answer, too.
                Some(_) if !error.is_unrecoverable_error() => Ok(()),
                _ => Err(error),
            })?;
        }
        Ok(())
    }

    /// The id of the store whose events are in it.
    pub(super) fn store(&self) -> &str {
        &self.store
    }

    /// How many partitions there are.
    pub(super) fn partitions(&self) -> u16 {
        self.partitions
    }

    pub(super) fn scripts(&self) -> &Scripts {
        &self.scripts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_setting_that_loses_events_is_named() {
        let safe = [
            ("appendonly", "yes"),
            ("appendfsync", "always"),
            ("no-appendfsync-on-rewrite", "no"),
            ("maxmemory", "0"),
            ("maxmemory-policy", "noeviction"),
        ];
        let with = |changes: &[(&str, &str)]| {
            let settings = safe.iter().chain(changes);
            losses(
                &settings
                    .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                    .collect(),
            )
        };
        for harmless in [
            &[][..],
            &[("maxmemory", "1000")],
            &[("maxmemory-policy", "allkeys-lru")],
        ] {
            assert!(with(harmless).is_empty(), "{harmless:?}");
        }
        for (changes, part) in [
            (
                &[("appendonly", "no"), ("appendfsync", "everysec")][..],
                "appendonly no",
            ),
            (&[("appendfsync", "everysec")], "appendfsync everysec"),
            (
                &[("no-appendfsync-on-rewrite", "yes")],
                "no-appendfsync-on-rewrite yes",
            ),
            (
                &[("maxmemory", "1000"), ("maxmemory-policy", "allkeys-lru")],
                "maxmemory-policy allkeys-lru",
            ),
        ] {
            let warnings = with(changes);
            assert_eq!(warnings.len(), 1, "{warnings:?}");
            assert!(warnings[0].contains(part), "{warnings:?}");
        }
    }
}
