//! Dead letters, for the command line: what could not be committed, to look at, to queue again, or to delete.
//!
//! Talks to Redis directly, so that it works while no server runs.

use super::{
    connection::{ConnectError, Connections, Connector},
    keys,
    url::BrokerUrl,
};
use crate::limits::MAX_DEAD_LETTERS_PAGE;
use redis::{RedisError, Value};
use serde::Serialize;
use std::{collections::HashMap, sync::Arc};

/// The dead letters of a broker.
pub struct Letters {
    connections: Arc<Connections>,
}

/// A dead letter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Letter {
    /// Its name, and when it became one: milliseconds since 1970, and a number.
    pub id: String,
    /// Why it could not be committed.
    pub reason: String,
    /// How many events it has; 0 when it is none of oncelog's making.
    pub events: u64,
    /// How often its entry was tried.
    pub deliveries: u64,
    /// The partition that it was in.
    pub partition: u64,
    /// What it is, as text: an array of events, or whatever was there.
    pub data: String,
}

/// What to do with dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// Queue them again, behind what is queued.
    Requeue,
    /// Delete them for ever.
    Delete,
}

/// What became of dead letters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Settled {
    /// How many were settled.
    pub settled: u64,
    /// Those that cannot be queued, because they are no events; they stay.
    pub refused: Vec<String>,
}

impl Settled {
    fn add(&mut self, others: Self) {
        self.settled += others.settled;
        self.refused.extend(others.refused);
    }
}

/// Why dead letters cannot be read or settled. The message says where and what to do.
#[derive(Debug, thiserror::Error)]
pub enum LetterError {
    /// Redis cannot be used.
    #[error("the broker at {url} cannot be used: {reason}")]
    Connect {
        /// Where it is.
        url: BrokerUrl,
        /// Why.
        reason: String,
    },
    /// Redis failed.
    #[error("the broker failed: {0}")]
    Redis(#[from] RedisError),
}

impl Letters {
    /// Connects to the broker, whatever store it is of.
    pub async fn open(url: &BrokerUrl) -> Result<Self, LetterError> {
        let connections = Connector::for_any_store(url).connect().await;
        let connections = connections.map_err(|error| {
            let (ConnectError::Away(reason) | ConnectError::Unusable(reason)) = error;
            LetterError::Connect {
                url: url.clone(),
                reason,
            }
        })?;
        Ok(Self { connections })
    }

    /// Up to `limit` letters, at most [`MAX_DEAD_LETTERS_PAGE`], from the oldest one after `after`.
    pub async fn page(&self, after: Option<&str>, limit: usize) -> Result<Vec<Letter>, LetterError> {
        self.between(after, "+", limit).await
    }

    async fn between(
        &self,
        after: Option<&str>,
        last: &str,
        limit: usize,
    ) -> Result<Vec<Letter>, LetterError> {
        let from = after.map_or_else(|| "-".to_owned(), |id| format!("({id}"));
        let entries: Vec<Value> = redis::cmd("XRANGE")
            .arg(keys::DEAD)
            .arg(from)
            .arg(last)
            .arg("COUNT")
            .arg(limit.min(MAX_DEAD_LETTERS_PAGE))
            .query_async(&mut self.connections.shared())
            .await?;
        entries.into_iter().map(letter).collect()
    }

    /// The id of the newest letter.
    pub async fn newest(&self) -> Result<Option<String>, LetterError> {
        let newest: Vec<Value> = redis::cmd("XREVRANGE")
            .arg(keys::DEAD)
            .arg("+")
            .arg("-")
            .arg("COUNT")
            .arg(1)
            .query_async(&mut self.connections.shared())
            .await?;
        Ok(newest
            .into_iter()
            .map(letter)
            .next()
            .transpose()?
            .map(|letter| letter.id))
    }

    /// Settles letters by their ids; ids that are not there are left out. Each letter is settled whole or not at all, and
    /// the server that consumes takes up at once what is queued again.
    pub async fn settle(&self, settlement: Settlement, ids: &[String]) -> Result<Settled, LetterError> {
        let action = match settlement {
            Settlement::Requeue => "requeue",
            Settlement::Delete => "delete",
        };
        let mut all = Settled::default();
        for some in ids.chunks(MAX_DEAD_LETTERS_PAGE) {
            let (settled, refused) = self.connections.settle(action, some).await?;
            all.add(Settled { settled, refused });
        }
        Ok(all)
    }

    /// Settles all letters up to `newest`. Those that came after it stay, whatever somebody else settles at the same time,
    /// `newest` itself included: what is queued again may become a dead letter again.
    pub async fn settle_up_to(&self, settlement: Settlement, newest: &str) -> Result<Settled, LetterError> {
        let mut all = Settled::default();
        let mut after: Option<String> = None;
        loop {
            let page = self
                .between(after.as_deref(), newest, MAX_DEAD_LETTERS_PAGE)
                .await?;
            let ids: Vec<String> = page.into_iter().map(|letter| letter.id).collect();
            let Some(last) = ids.last() else {
                return Ok(all);
            };
            all.add(self.settle(settlement, &ids).await?);
            after = Some(last.clone());
        }
    }
}

fn letter(entry: Value) -> Result<Letter, LetterError> {
    let (id, fields): (String, Vec<Vec<u8>>) = redis::from_redis_value(entry).map_err(RedisError::from)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut fields: HashMap<String, String> = fields
        .chunks_exact(2)
        .map(|pair| (text(&pair[0]), text(&pair[1])))
        .collect();
    let mut take = |name: &str| fields.remove(name);
    let reason = take("reason").unwrap_or_default();
    let mut number = |name: &str| take(name).and_then(|text| text.parse().ok()).unwrap_or_default();
    let (events, deliveries, partition) = (number("events"), number("deliveries"), number("partition"));
    let data = fields.remove("data").unwrap_or_else(|| {
        fields.remove("entry");
        let mut rest: Vec<_> = fields
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        rest.sort();
        rest.join(" ")
    });
    Ok(Letter {
        id,
        reason,
        events,
        deliveries,
        partition,
        data,
    })
}
