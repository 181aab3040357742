//! Topics and their numbers. They never change, so each instance remembers those it has seen.

use super::Shared;
use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, PoisonError, RwLock},
};
use tokio_postgres::{Client, Error};

/// A topic's number in the tables.
pub(super) type TopicNumber = i32;

/// Serialises who adds topics, so that there are never more than may be; next to the lock of migrations.
const TOPIC_LOCK: i64 = 0x6F6E_6365_6C6F_6701;

/// The topics that this instance has seen.
pub(super) struct Topics {
    known: RwLock<Known>,
    max_topics: usize,
}

#[derive(Default)]
struct Known {
    numbers: HashMap<Arc<str>, TopicNumber>,
    names: HashMap<TopicNumber, Arc<str>>,
}

impl Topics {
    pub(super) fn new(max_topics: usize) -> Self {
        Self {
            known: RwLock::default(),
            max_topics,
        }
    }

    /// The number of a topic that was seen.
    pub(super) fn number(&self, name: &str) -> Option<TopicNumber> {
        self.read().numbers.get(name).copied()
    }

    /// The name of a topic that was seen.
    pub(super) fn name(&self, number: TopicNumber) -> Option<Arc<str>> {
        self.read().names.get(&number).cloned()
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, topics: impl IntoIterator<Item = (TopicNumber, String)>) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        for (number, name) in topics {
            let name: Arc<str> = name.into();
            known.numbers.insert(Arc::clone(&name), number);
            known.names.insert(number, name);
        }
    }

    /// Looks up topics by their names.
    pub(super) async fn look_up(&self, client: &Client, names: &[&str]) -> Result<(), Error> {
        let rows = client
            .query("SELECT number, name FROM topics WHERE name = ANY($1)", &[&names])
            .await?;
        self.remember(rows.iter().map(|row| (row.get(0), row.get(1))));
        Ok(())
    }

    /// Looks up topics by their numbers.
    pub(super) async fn look_up_numbers(
        &self,
        client: &Client,
        numbers: &[TopicNumber],
    ) -> Result<(), Error> {
        let rows = client
            .query(
                "SELECT number, name FROM topics WHERE number = ANY($1)",
                &[&numbers],
            )
            .await?;
        self.remember(rows.iter().map(|row| (row.get(0), row.get(1))));
        Ok(())
    }

    /// Makes known what each of `batches` names that is not yet, and adds what is nowhere; names are in the order sent,
    /// without repetitions. When a batch has more new ones than may be added, none of its is, and its entry of the result
    /// names the first that does not fit.
    ///
    /// They are added in a transaction of their own: a topic without an event is shown to nobody, and the commits of
    /// others do not wait for this one.
    pub(super) async fn add(
        &self,
        client: &mut Client,
        batches: &[Vec<&str>],
    ) -> Result<Vec<Option<String>>, Error> {
        let all: BTreeSet<&str> = batches.iter().flatten().copied().collect();
        let all: Vec<&str> = all.into_iter().collect();
        self.look_up(client, &all).await?;
        if all.iter().all(|name| self.number(name).is_some()) {
            return Ok(vec![None; batches.len()]);
        }
        let transaction = client.transaction().await?;
        transaction
            .execute("SELECT pg_advisory_xact_lock($1)", &[&TOPIC_LOCK])
            .await?;
        self.look_up(transaction.client(), &all).await?;
        let count: i64 = transaction
            .query_one("SELECT count(*) FROM topics", &[])
            .await?
            .get(0);
        let first = usize::try_from(count).unwrap_or(usize::MAX);
        let mut names: Vec<String> = Vec::new();
        let mut refused = Vec::new();
        for batch in batches {
            let room = self.max_topics.saturating_sub(first + names.len());
            let is_new =
                |name: &&&str| self.number(name).is_none() && !names.iter().any(|other| other == **name);
            let new: Vec<String> = batch
                .iter()
                .filter(is_new)
                .map(|name| (*name).to_owned())
                .collect();
            match new.get(room) {
                None => {
                    names.extend(new);
                    refused.push(None);
                }
                Some(one_too_many) => refused.push(Some(one_too_many.clone())),
            }
        }
        let numbers: Vec<TopicNumber> = (first..)
            .map(|number| number as TopicNumber)
            .take(names.len())
            .collect();
        transaction
            .execute(
                "INSERT INTO topics (number, name) SELECT * FROM unnest($1::integer[], $2::text[])",
                &[&numbers, &names],
            )
            .await?;
        transaction.commit().await?;
        // Not before: what failed to commit has no number.
        self.remember(numbers.into_iter().zip(names));
        Ok(refused)
    }
}

impl Shared {
    /// The names of these topics, all of them known from now on.
    pub(super) async fn learn_topics(
        &self,
        client: &Client,
        numbers: BTreeSet<TopicNumber>,
    ) -> Result<(), Error> {
        let unknown: Vec<TopicNumber> = numbers
            .into_iter()
            .filter(|number| self.topics.name(*number).is_none())
            .collect();
        match unknown.is_empty() {
            true => Ok(()),
            false => self.topics.look_up_numbers(client, &unknown).await,
        }
    }
}
