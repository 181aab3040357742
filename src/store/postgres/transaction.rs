//! What a writer says to the server: the statements of a commit in their order, on one connection.
//!
//! A few events whose identities are all different go in one call ([`Connection::commit_few`]), which is one round trip. Others
//! take three: [`Connection::identify`] asks what is new, and [`Connection::finish`] appends that and commits. Large ones are
//! better off with it because a COPY is the quicker way in; repeated identities and leases because what becomes of them is decided
//! here and not in SQL.

use super::{
    Shared, counters,
    plan::{Decided, First, Found, Plan},
    server::Session,
    statements::{
        COMMIT_FEW, COPY, COPY_TYPES, COUNT, DISOWN, FENCE, FIND, IDENTIFY, NEWEST_TOKENS, RECALL, SqlKey,
    },
    topics::{TopicNumber, Topics},
};
use crate::{
    event::{Event, Fence, Fingerprint, Key, Seq},
    faults::{self, CrashPoint},
};
use hashbrown::HashMap;
use std::pin::{Pin, pin};
use tokio_postgres::{
    Error, Row, Statement,
    binary_copy::BinaryCopyInWriter,
    types::{FromSql, ToSql},
};

/// A connection with the statements of a commit.
pub(super) struct Connection {
    session: Session,
    /// Which store this instance takes the server's for.
    store: [u8; 16],
    fence: Statement,
    newest_tokens: Statement,
    announce: Statement,
    commit_few: Statement,
    identify: Statement,
    find: Statement,
    copy: Statement,
    count: Statement,
    disown: Statement,
    recall: Statement,
}

/// A commit's name among all of all instances: the writer's number, and the commit's among that writer's.
#[derive(Clone, Copy)]
pub(super) struct Name(pub(super) i64, pub(super) i64);

/// A transaction whose identities are stored, but not its events.
pub(super) struct Identified<'a> {
    pub(super) decided: Decided,
    /// The new events, in the order sent.
    stored: Vec<(Seq, First<'a>)>,
    /// The time of the commit, in microseconds since 1970 by the server's clock.
    at: i64,
}

/// How an attempt failed.
pub(super) enum Failed {
    /// Nothing of it is or will be stored.
    Undone(Error),
    /// There was no answer in time; nothing of it is or will be stored.
    Silent,
    /// Nobody knows whether it is stored.
    InDoubt(Doubt),
    /// The server contradicts itself.
    Contradiction(Key),
    /// Nothing of it is stored: some batches come under leases that are not the newest. These are.
    Fenced(Vec<Fence>),
}

/// What is to be told of a commit that is in doubt, should it be stored.
pub(super) enum Doubt {
    /// It was decided before.
    Decided(Decided),
    /// The answer that is lost had it: see [`Connection::recall`].
    Recall,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Undone(error)
    }
}

impl Connection {
    pub(super) async fn open(shared: &Shared) -> Result<Self, Error> {
        let session = shared.server.connect().await?;
        let client = &session.client;
        // Each statement has one right way to run, whatever its parameters: it is planned once.
        client
            .batch_execute("SET plan_cache_mode = force_generic_plan")
            .await?;
        let (fence, newest_tokens, announce, commit_few, identify, find, copy, count, disown, recall) = tokio::try_join!(
            client.prepare(FENCE),
            client.prepare(NEWEST_TOKENS),
            client.prepare("SELECT announce($1)"),
            client.prepare(COMMIT_FEW),
            client.prepare(IDENTIFY),
            client.prepare(FIND),
            client.prepare(COPY),
            client.prepare(COUNT),
            client.prepare(DISOWN),
            client.prepare(RECALL),
        )?;
        Ok(Self {
            store: shared.identity.store.to_be_bytes(),
            fence,
            newest_tokens,
            announce,
            commit_few,
            identify,
            find,
            copy,
            count,
            disown,
            recall,
            session,
        })
    }

    /// Whether the other end has gone, as far as was seen.
    pub(super) fn is_closed(&self) -> bool {
        self.session.client.is_closed()
    }

    /// Says that seqs may come, until the transaction ends; returns the time. Fails when the server has another store than
    /// this instance takes it for.
    pub(super) async fn announce(&self) -> Result<i64, Error> {
        let store = self.store.as_slice();
        let client = &self.session.client;
        Ok(client.query_one(&self.announce, &[&store]).await?.get(0))
    }

    /// Finds the numbers of topics and adds those that are nowhere, as [`Topics::add`] does.
    pub(super) async fn add_topics(
        &mut self,
        topics: &Topics,
        unknown: &[Vec<&str>],
    ) -> Result<Vec<Option<String>>, Error> {
        // Topics stay, also those of a commit that is refused later.
        self.announce().await?;
        topics.add(&mut self.session.client, unknown).await
    }

    /// Takes a commit's name; returns whether it was free.
    pub(super) async fn disown(&self, name: Name) -> Result<bool, Error> {
        let client = &self.session.client;
        Ok(client.execute(&self.disown, &[&name.0, &name.1]).await? == 1)
    }

    /// Looks whether the server still has this store, and folds counters.
    pub(super) async fn fold(&mut self) -> Result<(), Error> {
        self.announce().await?;
        counters::fold(&mut self.session.client).await
    }

    /// Begins the transaction, checks the fences, stores the identities, and decides.
    pub(super) async fn identify<'a>(&self, plan: &Plan<'a>) -> Result<Identified<'a>, Failed> {
        let client = &self.session.client;
        let (keys, fingerprints) = identities(plan);
        // Sent at once, in this order; the server works through them one by one.
        let store = self.store.as_slice();
        let parameters: [&(dyn ToSql + Sync); 3] = [&keys, &fingerprints, &store];
        let (_, newest, identified) = tokio::try_join!(
            biased;
            client.batch_execute("BEGIN"),
            // Before seqs are announced: whoever has to wait here holds up no readers.
            self.fence(plan),
            client.query_one(&self.identify, &parameters),
        )?;
        if !newest.is_empty() {
            return Err(Failed::Fenced(newest));
        }
        let (new, mut known) = returned(&identified)?;
        if new.len() + known.len() < keys.len() {
            let is_missing = |SqlKey(key): &SqlKey| !new.contains_key(key) && !known.contains_key(key);
            let missing: Vec<SqlKey> = keys.into_iter().filter(is_missing).collect();
            for row in client.query(&self.find, &[&missing]).await? {
                let SqlKey(key) = row.try_get(0)?;
                known.insert(key, found(row.try_get(1)?, row.try_get(2)?));
            }
        }
        let decided = plan.decide(&new, &known).map_err(Failed::Contradiction)?;
        let is_stored = |first: &First<'a>| Some((*new.get(&first.event.key)?, *first));
        Ok(Identified {
            decided,
            stored: plan.firsts.iter().filter_map(is_stored).collect(),
            at: identified.try_get(0)?,
        })
    }

    /// Takes the place behind all commits of the same partitions; returns those whose newest lease is another one.
    async fn fence(&self, plan: &Plan<'_>) -> Result<Vec<Fence>, Error> {
        if plan.fences.is_empty() {
            return Ok(Vec::new());
        }
        let partitions: Vec<i32> = plan.fences.keys().copied().map(i32::from).collect();
        let tokens: Vec<i64> = plan.fences.values().map(|token| token.cast_signed()).collect();
        let client = &self.session.client;
        let parameters: [&(dyn ToSql + Sync); 2] = [&partitions, &tokens];
        let (_, rows) = tokio::try_join!(
            biased;
            client.execute(&self.fence, &parameters),
            client.query(&self.newest_tokens, &parameters[..1]),
        )?;
        let ours = |fence: &Fence| plan.fences.get(&fence.partition) == Some(&fence.token);
        let newest = rows.iter().map(|row| Fence {
            partition: row.get::<_, i32>(0) as u16,
            token: row.get::<_, i64>(1).cast_unsigned(),
        });
        Ok(newest.filter(|fence| !ours(fence)).collect())
    }

    /// Appends the events, counts, and ends the transaction.
    pub(super) async fn finish(&self, identified: &Identified<'_>, name: Name) -> Result<(), Error> {
        let Identified { decided, stored, at } = identified;
        let counts = &decided.counts;
        let counted: [&(dyn ToSql + Sync); 9] = [
            &name.0,
            &name.1,
            at,
            &counts.topics,
            &counts.accepted,
            &counts.duplicates,
            &counts.conflicts,
            &counts.first_seqs,
            &counts.last_seqs,
        ];
        let client = &self.session.client;
        if stored.is_empty() {
            tokio::try_join!(
                biased;
                client.execute(&self.count, &counted),
                client.batch_execute("COMMIT"),
            )?;
            return Ok(());
        }
        // All but the first answer to a COPY is waited for at once. When one has failed, COMMIT rolls back.
        let sink = client.copy_in(&self.copy).await?;
        let mut rows = pin!(BinaryCopyInWriter::new(sink, &COPY_TYPES));
        write(stored, *at, rows.as_mut()).await?;
        faults::reached(CrashPoint::CommitInserted);
        tokio::try_join!(
            biased;
            rows.finish(),
            client.execute(&self.count, &counted),
            client.batch_execute("COMMIT"),
        )?;
        Ok(())
    }

    /// Does all of a commit in one call. A failure of the connection leaves in doubt whether it happened.
    ///
    /// The server says that the call is complete before it commits; an error may still come. So this waits for all that the
    /// server has to say (`ReadyForQuery`), as `query_one` does.
    pub(super) async fn commit_few(&self, plan: &Plan<'_>, name: Name) -> Result<Decided, Failed> {
        let (keys, fingerprints) = identities(plan);
        let texts = |text: for<'e> fn(&Event<'e>) -> &'e str| -> Vec<&str> {
            plan.firsts.iter().map(|first| text(&first.event)).collect()
        };
        let seconds: Vec<i64> = plan.firsts.iter().map(|first| first.event.seconds).collect();
        let topics: Vec<TopicNumber> = plan.firsts.iter().map(|first| first.topic).collect();
        let store = self.store.as_slice();
        let parameters: [&(dyn ToSql + Sync); 11] = [
            &name.0,
            &name.1,
            &store,
            &keys,
            &fingerprints,
            &seconds,
            &topics,
            &texts(|event| event.event_id),
            &texts(|event| event.timestamp),
            &texts(|event| event.source),
            &texts(|event| event.payload),
        ];
        let client = &self.session.client;
        let (new, known) = returned(&client.query_one(&self.commit_few, &parameters).await?)?;
        plan.decide(&new, &known).map_err(Failed::Contradiction)
    }

    /// What [`commit_few`](Self::commit_few) would have returned for a commit that happened.
    pub(super) async fn recall(&self, plan: &Plan<'_>, name: Name) -> Result<Decided, Failed> {
        let (keys, _) = identities(plan);
        let parameters: [&(dyn ToSql + Sync); 3] = [&name.0, &name.1, &keys];
        let (mut new, mut known) = (HashMap::new(), HashMap::new());
        for row in self.session.client.query(&self.recall, &parameters).await? {
            let SqlKey(key) = row.try_get(0)?;
            let found = found(row.try_get(1)?, row.try_get(2)?);
            match row.try_get(3)? {
                true => drop(new.insert(key, found.seq)),
                false => drop(known.insert(key, found)),
            }
        }
        plan.decide(&new, &known).map_err(Failed::Contradiction)
    }
}

/// The identities of a plan, as columns.
fn identities(plan: &Plan<'_>) -> (Vec<SqlKey>, Vec<i64>) {
    let identity = |first: &First<'_>| (SqlKey(first.event.key), first.event.fingerprint.0.cast_signed());
    plan.firsts.iter().map(identity).unzip()
}

/// The identities that are new, and those that were there before.
type NewAndKnown = (HashMap<Key, Seq>, HashMap<Key, Found>);

/// What [`IDENTIFY`] and [`COMMIT_FEW`] return.
fn returned(row: &Row) -> Result<NewAndKnown, Error> {
    let new = column(row, 1)?
        .into_iter()
        .zip(column(row, 2)?)
        .map(|(SqlKey(key), seq): (_, i64)| (key, seq.cast_unsigned()))
        .collect();
    let known = column(row, 3)?
        .into_iter()
        .zip(column(row, 4)?)
        .zip(column(row, 5)?)
        .map(|((SqlKey(key), seq), fingerprint)| (key, found(seq, fingerprint)))
        .collect();
    Ok((new, known))
}

/// Writes the rows of a COPY.
async fn write(
    stored: &[(Seq, First<'_>)],
    at: i64,
    mut rows: Pin<&mut BinaryCopyInWriter>,
) -> Result<(), Error> {
    for (seq, First { event, topic }) in stored {
        let row: [&(dyn ToSql + Sync); 8] = [
            &seq.cast_signed(),
            &event.seconds,
            &at,
            topic,
            &event.event_id,
            &event.timestamp,
            &event.source,
            &event.payload,
        ];
        rows.as_mut().write(&row).await?;
    }
    Ok(())
}

/// An array that [`IDENTIFY`] or [`COMMIT_FEW`] returns; none when it is empty.
fn column<'a, T: FromSql<'a>>(row: &'a Row, place: usize) -> Result<Vec<T>, Error> {
    let array: Option<Vec<T>> = row.try_get(place)?;
    Ok(array.unwrap_or_default())
}

fn found(seq: i64, fingerprint: i64) -> Found {
    Found {
        seq: seq.cast_unsigned(),
        fingerprint: Fingerprint(fingerprint.cast_unsigned()),
    }
}
