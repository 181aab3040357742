//! The writing side: one transaction a commit, and the truth about one that got no answer.
//!
//! | the connection breaks, or this process is killed | what that leaves |
//! |---|---|
//! | before COMMIT was sent, or the call that is all of a small commit | nothing: the server rolls back. The commit is tried again |
//! | after that, before its answer | the commit happened or not: its row in `commits` tells. Another connection tries to insert that row itself; PostgreSQL makes it wait until the first transaction has ended. The row was there: it happened. It went in: it did not, and never can |
//! | the same, of a small commit | as well; what the lost answer had is in that row and in the identities, which never change |
//! | after the answer | all of it, on disk |
//!
//! So a batch is never reported as duplicates of itself. Only a process that is killed leaves a client without an answer;
//! what it sends again is then told apart exactly, as ever.

use super::{
    Shared, failure,
    plan::{Decided, Plan, Refused, told},
    topics::TopicNumber,
    transaction::{Connection, Doubt, Failed, Name},
};
use crate::{
    event::{Batch, Event, Key},
    faults::{self, CrashPoint},
    limits,
    store::{BatchOutcome, CommitError, Fences, Writer},
};
use hashbrown::HashMap;
use std::{sync::Arc, time::Duration};
use tokio::{
    runtime::{Builder, Runtime},
    task::yield_now,
    time::{Instant, sleep, timeout},
};
use tokio_postgres::Error;

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
                Failed::Contradiction(key) => return Err(self.contradiction(key)),
                // At once again, without them.
                Failed::Fenced(newest) => {
                    newest.into_iter().for_each(|fence| fences.know(fence));
                    plan = None;
                    continue;
                }
                Failed::InDoubt(doubt) => {
                    // Only what was planned can be in doubt.
                    let Some(plan) = &plan else {
                        return Err(self.silent());
                    };
                    match self.find_out(plan, &doubt).await? {
                        Some(decided) => return Ok(self.done(decided)),
                        None => self.silent(),
                    }
                }
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

    fn contradiction(&self, key: Key) -> CommitError {
        CommitError::Unavailable(format!(
            "{}: an identity ({key:?}) is neither new nor known; is something else changing the tables?",
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
        let left = || until.saturating_duration_since(Instant::now());
        if plan.is_simple() && plan.firsts.len() < limits::POSTGRES_COPY_ROWS {
            return match timeout(left(), connection.commit_few(plan, name)).await {
                Ok(Ok(decided)) => {
                    faults::reached(CrashPoint::CommitDurable);
                    Ok(decided)
                }
                Ok(Err(Failed::Undone(error))) if failure::leaves_in_doubt(&error) => {
                    Err(Failed::InDoubt(Doubt::Recall))
                }
                Ok(Err(failed)) => Err(failed),
                Err(_) => Err(Failed::InDoubt(Doubt::Recall)),
            };
        }
        let identified = match timeout(left(), connection.identify(plan)).await {
            Ok(result) => result?,
            Err(_) => return Err(Failed::Silent),
        };
        faults::reached(CrashPoint::CommitWritten);
        match timeout(left(), connection.finish(&identified, name)).await {
            Ok(Ok(())) => {
                faults::reached(CrashPoint::CommitDurable);
                Ok(identified.decided)
            }
            Ok(Err(error)) if !failure::leaves_in_doubt(&error) => Err(Failed::Undone(error)),
            _ => Err(Failed::InDoubt(Doubt::Decided(identified.decided))),
        }
    }

    /// Finds out whether the newest commit happened, and returns what is to be told then; if not, it cannot happen any more.
    async fn find_out(&mut self, plan: &Plan<'_>, doubt: &Doubt) -> Result<Option<Decided>, CommitError> {
        let until = Instant::now() + limits::POSTGRES_DOUBT;
        let mut pause = limits::POSTGRES_BACKOFF_FIRST;
        loop {
            let asked = self.ask(plan, doubt);
            let error = match timeout(limits::POSTGRES_COMMIT_TIMEOUT, asked).await {
                Ok(Ok(found)) => return Ok(found),
                Ok(Err(Failed::Undone(error))) => failure::commit(&self.shared.server, &error),
                Ok(Err(Failed::Contradiction(key))) => return Err(self.contradiction(key)),
                Ok(Err(_)) | Err(_) => self.silent(),
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

    /// Asks once.
    async fn ask(&mut self, plan: &Plan<'_>, doubt: &Doubt) -> Result<Option<Decided>, Failed> {
        if self.disown().await? {
            return Ok(None);
        }
        let name = Name(self.number, self.commit);
        let decided = match doubt {
            Doubt::Decided(decided) => decided.clone(),
            Doubt::Recall => self.connected().await?.recall(plan, name).await?,
        };
        Ok(Some(decided))
    }

    /// Takes the name of the newest commit; returns whether it was free.
    async fn disown(&mut self) -> Result<bool, Error> {
        let name = Name(self.number, self.commit);
        self.connected().await?.disown(name).await
    }

    /// The connection, or another one. One that was closed meanwhile is noticed here, so that nothing is in doubt that was never
    /// sent: its task runs only while this writer works.
    async fn connected(&mut self) -> Result<&mut Connection, Error> {
        yield_now().await;
        let connection = match self.connection.take() {
            Some(connection) if !connection.is_closed() => connection,
            _ => Connection::open(&self.shared).await?,
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
        refused = connection.add_topics(&shared.topics, &unknown).await?;
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
