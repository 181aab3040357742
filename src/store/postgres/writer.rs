//! The writing side: one transaction a commit, and the truth about one that got no answer.
//!
//! | the connection breaks, or this process is killed | what that leaves |
//! |---|---|
//! | before COMMIT was sent | nothing: the server rolls back. The commit is tried again |
//! | after COMMIT was sent, before its answer | the commit happened or not: its row in `commits` tells. Another connection tries to insert that row itself; PostgreSQL makes it wait until the first transaction has ended. The row was there: it happened. It went in: it did not, and never can |
//! | after the answer | all of it, on disk |
//!
//! So a batch is never reported as duplicates of itself. Only a process that is killed leaves a client without an answer;
//! what it sends again is then told apart exactly, as ever.

use super::{
    Shared, counters, failure,
    plan::{Decided, First, Found, Plan, Refused, told},
    server::Session,
    statements::{APPEND, COPY, COPY_TYPES, COUNT, DISOWN, FENCE, FIND, IDENTIFY, NEWEST_TOKENS, SqlKey},
    topics::TopicNumber,
};
use crate::{
    event::{Batch, Event, Fence, Fingerprint, Key, Seq},
    faults::{self, CrashPoint},
    limits,
    store::{BatchOutcome, CommitError, Fences, Writer},
};
use hashbrown::HashMap;
use std::{
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};
use tokio::{
    runtime::{Builder, Runtime},
    task::yield_now,
    time::{Instant, sleep, timeout},
};
use tokio_postgres::{
    Error, Row, Statement,
    binary_copy::BinaryCopyInWriter,
    types::{FromSql, ToSql},
};

/// One of the writers of a store on a server.
pub(super) struct PostgresWriter {
    shared: Arc<Shared>,
    /// Names this writer among all of all instances.
    number: i64,
    /// Names the newest commit among this writer's.
    commit: i64,
    connection: Option<Connection>,
    /// Drives the connection on the writer's own thread: no other thread has to be woken for each message. Made by the
    /// first call, on that thread.
    runtime: Option<Runtime>,
    /// Whether the last commit or probe failed: then the next commit is not tried for long, since its clients would wait.
    is_away: bool,
    /// When this writer last folded counters. Not when the server last answered: under load it answers all the time, and what
    /// nobody folds grows with each commit.
    folded: Instant,
}

struct Connection {
    session: Session,
    /// Which store this instance takes the server's for.
    store: [u8; 16],
    fence: Statement,
    newest_tokens: Statement,
    announce: Statement,
    identify: Statement,
    find: Statement,
    append: Statement,
    copy: Statement,
    count: Statement,
    disown: Statement,
}

/// A commit's name among all of all instances: the writer's number, and the commit's among that writer's.
#[derive(Clone, Copy)]
struct Name(i64, i64);

/// A transaction whose identities are stored, but not its events.
struct Identified<'a> {
    decided: Decided,
    /// The new events, in the order sent.
    stored: Vec<(Seq, First<'a>)>,
    /// The time of the commit, in microseconds since 1970 by the server's clock.
    at: i64,
}

/// How an attempt failed.
enum Failed {
    /// Nothing of it is or will be stored.
    Undone(Error),
    /// There was no answer in time; nothing of it is or will be stored.
    Silent,
    /// Nobody knows. What is to be told if it is stored.
    InDoubt(Decided),
    /// The server contradicts itself.
    Contradiction(Key),
    /// Nothing of it is stored: some batches come under leases that are not the newest. These are.
    Fenced(Vec<Fence>),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Undone(error)
    }
}

impl Writer for PostgresWriter {
    fn commit(&mut self, batches: &[&Batch]) -> Result<Vec<BatchOutcome>, CommitError> {
        let result = self.wait(async |writer| writer.commit_batches(batches).await);
        self.is_away = result.is_err();
        result
    }

    fn maintain(&mut self) -> Result<(), CommitError> {
        if self.folded.elapsed() < limits::POSTGRES_MAINTENANCE {
            return Ok(());
        }
        let result = self.wait(async |writer| writer.fold().await);
        self.folded = Instant::now();
        result
    }

    fn probe(&mut self) -> Result<(), CommitError> {
        let result = self.wait(async |writer| writer.try_to_write().await);
        self.is_away = result.is_err();
        result
    }

    fn close(self: Box<Self>) -> Result<(), CommitError> {
        Ok(())
    }
}

impl PostgresWriter {
    pub(super) fn new(shared: Arc<Shared>, number: i64) -> Self {
        Self {
            shared,
            number,
            commit: 0,
            connection: None,
            runtime: None,
            is_away: false,
            folded: Instant::now(),
        }
    }

    /// Works on the writer's own runtime, on this thread.
    fn wait<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut Self) -> Result<T, CommitError>,
    ) -> Result<T, CommitError> {
        let runtime = match self.runtime.take() {
            Some(runtime) => runtime,
            None => Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|error| {
                    CommitError::Unavailable(format!(
                        "the operating system gives nothing to wait with: {error}"
                    ))
                })?,
        };
        let result = runtime.block_on(async {
            let result = work(self).await;
            if result.is_err() {
                // A connection that was given up is closed by its task, which runs only here: until then the server would
                // keep its transaction, and readers would wait for that.
                yield_now().await;
            }
            result
        });
        self.runtime = Some(runtime);
        result
    }

    async fn commit_batches(&mut self, batches: &[&Batch]) -> Result<Vec<BatchOutcome>, CommitError> {
        let patience = match self.is_away {
            true => Duration::ZERO,
            false => limits::POSTGRES_RETRY,
        };
        let until = Instant::now() + patience;
        let mut pause = limits::POSTGRES_BACKOFF_FIRST;
        let mut plan = None;
        let mut fences = Fences::default();
        loop {
            let failed = match self.attempt(batches, &mut plan, &mut fences).await {
                Ok(decided) => return Ok(self.done(decided)),
                Err(failed) => failed,
            };
            // Whatever state the connection is in, a new one is in none.
            self.connection = None;
            let error = match failed {
                Failed::Undone(error) if !failure::passes(&error) => {
                    return Err(failure::commit(&self.shared.server, &error));
                }
                Failed::Undone(error) => failure::commit(&self.shared.server, &error),
                Failed::Silent => self.silent(),
                Failed::Contradiction(key) => {
                    return Err(CommitError::Unavailable(format!(
                        "{}: an identity ({key:?}) is neither new nor known; is something else changing the tables?",
                        self.shared.server
                    )));
                }
                // At once again, without them.
                Failed::Fenced(newest) => {
                    newest.into_iter().for_each(|fence| fences.know(fence));
                    plan = None;
                    continue;
                }
                Failed::InDoubt(decided) => match self.happened().await? {
                    true => return Ok(self.done(decided)),
                    false => self.silent(),
                },
            };
            if Instant::now() + pause >= until {
                return Err(error);
            }
            sleep(pause).await;
            pause = (pause * 2).min(limits::POSTGRES_BACKOFF_MOST);
        }
    }

    fn silent(&self) -> CommitError {
        CommitError::Unavailable(format!(
            "{}: the connection broke or did not answer in time; it is tried again by itself; is it running, and does the \
             address in DATABASE_URL reach it?",
            self.shared.server
        ))
    }

    fn done(&self, decided: Decided) -> Vec<BatchOutcome> {
        if let Some(newest) = decided.counts.last_seqs.iter().flatten().max() {
            self.shared.note_committed(newest.cast_unsigned());
            self.shared.own.send_replace(newest.cast_unsigned());
        }
        told(decided.outcomes)
    }

    /// Tries one transaction; `plan` is made by the first attempt that gets so far.
    async fn attempt<'a>(
        &mut self,
        batches: &[&'a Batch],
        plan: &mut Option<Plan<'a>>,
        fences: &mut Fences,
    ) -> Result<Decided, Failed> {
        let until = Instant::now() + limits::POSTGRES_COMMIT_TIMEOUT;
        let shared = Arc::clone(&self.shared);
        let prepared = timeout(limits::POSTGRES_COMMIT_TIMEOUT, async {
            let connection = self.connected().await?;
            let made = match plan.take() {
                Some(made) => made,
                None => make_plan(&shared, connection, batches, fences).await?,
            };
            Ok::<_, Error>(plan.insert(made))
        });
        let plan = prepared.await.map_err(|_| Failed::Silent)??;
        let Some(connection) = &self.connection else {
            return Err(Failed::Silent);
        };
        if plan.firsts.is_empty() {
            return plan
                .decide(&HashMap::new(), &HashMap::new())
                .map_err(Failed::Contradiction);
        }
        self.commit += 1;
        let name = Name(self.number, self.commit);
        let left = until.saturating_duration_since(Instant::now());
        let identified = match timeout(left, connection.identify(plan)).await {
            Ok(result) => result?,
            Err(_) => return Err(Failed::Silent),
        };
        faults::reached(CrashPoint::CommitWritten);
        let left = until.saturating_duration_since(Instant::now());
        match timeout(left, connection.finish(&identified, name)).await {
            Ok(Ok(())) => {
                faults::reached(CrashPoint::CommitDurable);
                Ok(identified.decided)
            }
            Ok(Err(error)) if !failure::is_connection(&error) => Err(Failed::Undone(error)),
            _ => Err(Failed::InDoubt(identified.decided)),
        }
    }

    /// Finds out whether the newest commit happened; from then on it cannot happen any more.
    async fn happened(&mut self) -> Result<bool, CommitError> {
        let until = Instant::now() + limits::POSTGRES_DOUBT;
        let mut pause = limits::POSTGRES_BACKOFF_FIRST;
        loop {
            let error = match timeout(limits::POSTGRES_COMMIT_TIMEOUT, self.disown()).await {
                Ok(Ok(disowned)) => return Ok(!disowned),
                Ok(Err(error)) => failure::commit(&self.shared.server, &error),
                Err(_) => self.silent(),
            };
            self.connection = None;
            if Instant::now() + pause >= until {
                tracing::error!(
                    %error,
                    "a commit got no answer, and the server did not come back to tell whether it happened; its clients are told to send again"
                );
                return Err(error);
            }
            sleep(pause).await;
            pause = (pause * 2).min(limits::POSTGRES_BACKOFF_MOST);
        }
    }

    /// Takes the name of the newest commit; returns whether it was free.
    async fn disown(&mut self) -> Result<bool, Error> {
        let name = Name(self.number, self.commit);
        let connection = self.connected().await?;
        let rows = connection
            .session
            .client
            .execute(&connection.disown, &[&name.0, &name.1])
            .await?;
        Ok(rows == 1)
    }

    async fn connected(&mut self) -> Result<&mut Connection, Error> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => Connection::open(&self.shared).await?,
        };
        Ok(self.connection.insert(connection))
    }

    /// Looks whether the server is there and has this store, and folds counters. That a connection has broken since it was
    /// used last says nothing of the server: another one does.
    async fn fold(&mut self) -> Result<(), CommitError> {
        let shared = Arc::clone(&self.shared);
        let folded = timeout(limits::POSTGRES_COMMIT_TIMEOUT, async {
            if let Some(connection) = &mut self.connection {
                match connection.fold().await {
                    Err(error) if failure::is_connection(&error) => self.connection = None,
                    folded => return folded,
                }
            }
            self.connected().await?.fold().await
        })
        .await;
        self.finish_work(folded, &shared)
    }

    /// Commits a change that nobody sees: a name that no commit has.
    async fn try_to_write(&mut self) -> Result<(), CommitError> {
        self.commit += 1;
        let tried = timeout(limits::POSTGRES_COMMIT_TIMEOUT, async {
            let connection = self.connected().await?;
            connection.announce().await?;
            self.disown().await
        })
        .await;
        let shared = Arc::clone(&self.shared);
        self.finish_work(tried.map(|result| result.map(|_| ())), &shared)
    }

    fn finish_work(
        &mut self,
        result: Result<Result<(), Error>, tokio::time::error::Elapsed>,
        shared: &Shared,
    ) -> Result<(), CommitError> {
        let error = match result {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => failure::commit(&shared.server, &error),
            Err(_) => self.silent(),
        };
        self.connection = None;
        Err(error)
    }
}

/// Finds the numbers of all topics, adds new ones, and plans the commit.
async fn make_plan<'a>(
    shared: &Shared,
    connection: &mut Connection,
    batches: &[&'a Batch],
    fences: &mut Fences,
) -> Result<Plan<'a>, Error> {
    let fenced: Vec<Option<u64>> = batches
        .iter()
        .map(|batch| fences.admit(batch.fence()).err())
        .collect();
    let mut refused = vec![None; batches.len()];
    let unknown: Vec<Vec<&str>> = batches
        .iter()
        .zip(&fenced)
        .map(|(batch, fenced)| match fenced {
            None => unknown_topics(shared, batch),
            Some(_) => Vec::new(),
        })
        .collect();
    if unknown.iter().any(|names| !names.is_empty()) {
        // Topics stay, also those of a commit that is refused later.
        connection.announce().await?;
        refused = shared
            .topics
            .add(&mut connection.session.client, &unknown)
            .await?;
    }
    let numbered = batches.iter().zip(fenced).zip(refused);
    let numbered = numbered.map(|((&batch, fenced), one_too_many)| {
        if let Some(newest) = fenced {
            return (batch, Err(Refused::Fenced { newest }));
        }
        let is_it = |event: Event<'_>| one_too_many.as_deref() == Some(event.topic);
        let numbers = batch.events().map(|event| shared.topics.number(event.topic));
        let numbers: Option<Vec<TopicNumber>> = numbers.collect();
        (
            batch,
            numbers.ok_or_else(|| Refused::TooManyTopics {
                event: batch.events().position(is_it).unwrap_or_default(),
            }),
        )
    });
    Ok(Plan::new(numbered))
}

/// The topics of a batch that were not seen yet, in the order sent.
fn unknown_topics<'a>(shared: &Shared, batch: &'a Batch) -> Vec<&'a str> {
    let mut names: Vec<&str> = Vec::new();
    for event in batch.events() {
        if shared.topics.number(event.topic).is_none() && !names.contains(&event.topic) {
            names.push(event.topic);
        }
    }
    names
}

impl Connection {
    async fn open(shared: &Shared) -> Result<Self, Error> {
        let session = shared.server.connect().await?;
        let client = &session.client;
        // Each statement has one right way to run, whatever its parameters: it is planned once.
        client
            .batch_execute("SET plan_cache_mode = force_generic_plan")
            .await?;
        let (fence, newest_tokens, announce, identify, find, append, copy, count, disown) = tokio::try_join!(
            client.prepare(FENCE),
            client.prepare(NEWEST_TOKENS),
            client.prepare("SELECT announce($1)"),
            client.prepare(IDENTIFY),
            client.prepare(FIND),
            client.prepare(APPEND),
            client.prepare(COPY),
            client.prepare(COUNT),
            client.prepare(DISOWN),
        )?;
        Ok(Self {
            store: shared.identity.store.to_be_bytes(),
            fence,
            newest_tokens,
            announce,
            identify,
            find,
            append,
            copy,
            count,
            disown,
            session,
        })
    }

    /// Says that seqs may come, until the transaction ends; returns the time. Fails when the server has another store than
    /// this instance takes it for.
    async fn announce(&self) -> Result<i64, Error> {
        let store = self.store.as_slice();
        let client = &self.session.client;
        Ok(client.query_one(&self.announce, &[&store]).await?.get(0))
    }

    /// Looks whether the server still has this store, and folds counters.
    async fn fold(&mut self) -> Result<(), Error> {
        self.announce().await?;
        counters::fold(&mut self.session.client).await
    }

    /// Begins the transaction, checks the fences, stores the identities, and decides.
    async fn identify<'a>(&self, plan: &Plan<'a>) -> Result<Identified<'a>, Failed> {
        let client = &self.session.client;
        let keys: Vec<SqlKey> = plan.firsts.iter().map(|first| SqlKey(first.event.key)).collect();
        let fingerprints: Vec<i64> = plan
            .firsts
            .iter()
            .map(|first| first.event.fingerprint.0.cast_signed())
            .collect();
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
        let new: HashMap<Key, Seq> = column(&identified, 1)?
            .into_iter()
            .zip(column(&identified, 2)?)
            .map(|(SqlKey(key), seq): (_, i64)| (key, seq.cast_unsigned()))
            .collect();
        let mut known: HashMap<Key, Found> = column(&identified, 3)?
            .into_iter()
            .zip(column(&identified, 4)?)
            .zip(column(&identified, 5)?)
            .map(|((SqlKey(key), seq), fingerprint)| (key, found(seq, fingerprint)))
            .collect();
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
    async fn finish(&self, identified: &Identified<'_>, name: Name) -> Result<(), Error> {
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
        // All but the first answer to a COPY is waited for at once. When one has failed, COMMIT rolls back.
        if stored.len() >= limits::POSTGRES_COPY_ROWS {
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
            return Ok(());
        }
        let append = async {
            match stored.is_empty() {
                true => client.execute(&self.count, &counted).await,
                false => self.append(stored, &counted).await,
            }
        };
        tokio::try_join!(biased; append, client.batch_execute("COMMIT"))?;
        Ok(())
    }

    async fn append(
        &self,
        stored: &[(Seq, First<'_>)],
        counted: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, Error> {
        let texts = |text: for<'e> fn(&Event<'e>) -> &'e str| -> Vec<&str> {
            stored.iter().map(|(_, first)| text(&first.event)).collect()
        };
        let seqs: Vec<i64> = stored.iter().map(|(seq, _)| seq.cast_signed()).collect();
        let seconds: Vec<i64> = stored.iter().map(|(_, first)| first.event.seconds).collect();
        let topics: Vec<TopicNumber> = stored.iter().map(|(_, first)| first.topic).collect();
        let columns: [&(dyn ToSql + Sync); 7] = [
            &seqs,
            &seconds,
            &topics,
            &texts(|event| event.event_id),
            &texts(|event| event.timestamp),
            &texts(|event| event.source),
            &texts(|event| event.payload),
        ];
        let parameters: Vec<_> = counted.iter().chain(&columns).copied().collect();
        self.session.client.execute(&self.append, &parameters).await
    }
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

/// An array that the statement [`IDENTIFY`] returns; none when it is empty.
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
