//! The API keys in a table of the store, for all its instances.
//!
//! Every change of the table counts up `key_changes`, whoever makes it, so an instance sees with one small question that
//! its keys are out of date.

use super::{Server, failure, schema, server::Session};
use crate::{
    access::{KeyError, KeyRecord, KeyStore, Stamp},
    limits,
    store::OpenError,
};
use std::{
    fmt,
    sync::{Mutex, PoisonError},
};
use tokio::{runtime::Handle, time::timeout};
use tokio_postgres::{Client, Error, GenericClient};

/// The keys of a store in a PostgreSQL server. Its methods block, and must not be called from async code.
pub struct KeyTable {
    server: Server,
    runtime: Handle,
    /// The connection of the last question, if it is still good.
    session: Mutex<Option<Session>>,
}

impl KeyTable {
    /// Connects, and brings the tables up to date. Call it on a runtime with a thread of its own to drive the connection.
    pub async fn open(server: Server) -> Result<Self, OpenError> {
        let session = schema::update(&server).await?;
        Ok(Self {
            server,
            runtime: Handle::current(),
            session: Mutex::new(Some(session)),
        })
    }

    /// Does `work` on a connection, within a bounded time.
    fn ask<T>(&self, work: impl AsyncFnOnce(&mut Client) -> Result<T, Failed>) -> Result<T, KeyError> {
        let mut kept = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let usable = kept.take().filter(|session| !session.client.is_closed());
        let asked = async {
            let mut session = match usable {
                Some(session) => session,
                None => self.server.connect().await?,
            };
            let done = work(&mut session.client).await?;
            Ok((session, done))
        };
        // Its clock is made within, for it is the runtime's.
        let done = self
            .runtime
            .block_on(async { timeout(limits::POSTGRES_COMMIT_TIMEOUT, asked).await });
        match done {
            Ok(Ok((session, done))) => {
                *kept = Some(session);
                Ok(done)
            }
            Ok(Err(Failed::Keys(error))) => Err(error),
            Ok(Err(Failed::Server(error))) => Err(KeyError::Unavailable(
                failure::open(&self.server, &error).to_string(),
            )),
            Err(_) => Err(KeyError::Unavailable(format!(
                "{}: it did not answer within {} s; is it running, and does the address in DATABASE_URL reach it?",
                self.server,
                limits::POSTGRES_COMMIT_TIMEOUT.as_secs()
            ))),
        }
    }

    fn parse(&self, rows: &[tokio_postgres::Row]) -> Result<Vec<KeyRecord>, KeyError> {
        let parse = |row: &tokio_postgres::Row| {
            KeyRecord::from_json(row.get(0)).map_err(|reason| KeyError::Damaged {
                place: self.place(),
                reason,
                cure: "Correct or delete the row, which psql shows with: TABLE oncelog.keys",
            })
        };
        rows.iter().map(parse).collect()
    }
}

impl KeyStore for KeyTable {
    fn place(&self) -> String {
        format!("{}, table oncelog.keys", self.server)
    }

    fn stamp(&self) -> Result<Option<Stamp>, KeyError> {
        let changes = self.ask(async |client| Ok(changes(client).await?))?;
        Ok((changes > 0).then_some(Stamp::Table { changes }))
    }

    fn read(&self) -> Result<Option<Vec<KeyRecord>>, KeyError> {
        let (changes, rows) = self.ask(async |client| {
            let rows = client.query(SELECT, &[]).await?;
            // Asked last: who reads keys has seen the change that made them.
            Ok((changes(client).await?, rows))
        })?;
        let keys = self.parse(&rows)?;
        Ok((changes > 0).then_some(keys))
    }

    fn change(
        &self,
        change: &mut dyn FnMut(&mut Vec<KeyRecord>) -> Result<(), KeyError>,
    ) -> Result<(), KeyError> {
        self.ask(async |client| {
            let transaction = client.transaction().await?;
            // One change at a time.
            transaction
                .execute("SELECT FROM key_changes FOR UPDATE", &[])
                .await?;
            let before = self.parse(&transaction.query(SELECT, &[]).await?)?;
            let mut keys = before.clone();
            change(&mut keys)?;
            let changed = keys.iter().filter(|key| !before.contains(key));
            put(&transaction, changed, "UPDATE SET record = excluded.record").await?;
            transaction.commit().await?;
            Ok(())
        })
    }
}

impl fmt::Debug for KeyTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyTable({})", self.place())
    }
}

/// All keys in the order in which they were made.
const SELECT: &str = "SELECT record::text FROM keys ORDER BY number";

/// How often keys were changed.
async fn changes(client: &Client) -> Result<i64, Error> {
    Ok(client
        .query_one("SELECT count FROM key_changes", &[])
        .await?
        .get(0))
}

/// Stores keys. `on_conflict` is what becomes of one whose id is there.
pub(super) async fn put(
    client: &impl GenericClient,
    keys: impl Iterator<Item = &KeyRecord>,
    on_conflict: &str,
) -> Result<u64, Failed> {
    let statement = format!(
        "INSERT INTO keys (id, record) VALUES ($1, $2::text::json) ON CONFLICT (id) DO {on_conflict}"
    );
    let mut stored = 0;
    for key in keys {
        let record = key
            .to_json()
            .map_err(|error| KeyError::Refused(format!("key {} cannot be written: {error}", key.id)))?;
        stored += client.execute(&statement, &[&key.id, &record]).await?;
    }
    Ok(stored)
}

/// Why a question had no answer.
pub(super) enum Failed {
    Server(Error),
    Keys(KeyError),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Server(error)
    }
}

impl From<KeyError> for Failed {
    fn from(error: KeyError) -> Self {
        Self::Keys(error)
    }
}
