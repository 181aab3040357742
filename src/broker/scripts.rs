//! What Redis does for the broker in one step each: scripts in Lua, which happen whole or not at all, also in Redis's
//! file, and calls of them. Those that lead to entries being taken out may run when Redis is out of memory (`allow-oom`): it is
//! how it gets some back.

use super::{
    connection::Connections,
    entry::Entry,
    keys::{self, CONSUMER, GROUP},
};
use crate::limits::{BROKER_READ_BYTES, BROKER_READ_ENTRIES};
use redis::{Cmd, FromRedisValue, RedisResult, Value, aio::MultiplexedConnection};
use std::time::Duration;

/// The scripts, by the hashes under which Redis knows them.
pub(super) struct Scripts {
    add: Script,
    tick: Script,
    read: Script,
    acknowledge: Script,
    bury: Script,
    release: Script,
    settle: Script,
}

struct Script {
    code: &'static str,
    hash: String,
}

impl Script {
    fn new(code: &'static str) -> Self {
        let hash = redis::Script::new(code).get_hash().to_owned();
        Self { code, hash }
    }

    /// A call with these keys; arguments are to follow.
    fn with<K: AsRef<str>>(&self, keys: &[K]) -> Cmd {
        let mut call = redis::cmd("EVALSHA");
        call.arg(&self.hash).arg(keys.len());
        for key in keys {
            call.arg(key.as_ref());
        }
        call
    }

    async fn load(&self, connection: &mut MultiplexedConnection) -> RedisResult<()> {
        redis::cmd("SCRIPT")
            .arg("LOAD")
            .arg(self.code)
            .exec_async(connection)
            .await
    }

    /// Makes a call. A script that Redis does not know has not run: it is told, and called again.
    async fn call<T: FromRedisValue>(
        &self,
        call: &Cmd,
        mut connection: MultiplexedConnection,
    ) -> RedisResult<T> {
        match call.query_async(&mut connection).await {
            Err(error) if error.code() == Some("NOSCRIPT") => {
                self.load(&mut connection).await?;
                call.query_async(&mut connection).await
            }
            result => result,
        }
    }
}

impl Scripts {
    pub(super) fn new() -> Self {
        Self {
            add: Script::new(include_str!("scripts/add.lua")),
            tick: Script::new(include_str!("scripts/tick.lua")),
            read: Script::new(include_str!("scripts/read.lua")),
            acknowledge: Script::new(include_str!("scripts/acknowledge.lua")),
            bury: Script::new(include_str!("scripts/bury.lua")),
            release: Script::new(include_str!("scripts/release.lua")),
            settle: Script::new(include_str!("scripts/settle.lua")),
        }
    }

    /// Tells Redis all of them.
    pub(super) async fn load(&self, connection: &mut MultiplexedConnection) -> RedisResult<()> {
        for script in [
            &self.add,
            &self.tick,
            &self.read,
            &self.acknowledge,
            &self.bury,
            &self.release,
            &self.settle,
        ] {
            script.load(connection).await?;
        }
        Ok(())
    }
}

/// What became of a request's entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Added {
    /// All are in their streams.
    All,
    /// None is: there would be too many.
    Full,
    /// None is: the broker is another store's by now, or has another number of partitions.
    Changed,
}

/// A lease of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Lease {
    pub(super) partition: u16,
    pub(super) token: u64,
}

impl Lease {
    /// What stands in Redis.
    fn value(self, instance: &str) -> String {
        format!("{instance}:{}", self.token)
    }
}

/// What a look at the broker found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tick {
    /// How many partitions each instance should have.
    pub(super) share: usize,
    pub(super) events: u64,
    pub(super) bytes: u64,
    pub(super) dead: u64,
    /// How long the oldest entry has waited.
    pub(super) lag: Duration,
    /// The leases that the instance has now.
    pub(super) leases: Vec<Lease>,
}

/// An entry as it was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Delivered {
    pub(super) id: String,
    /// How many events it says that it has.
    pub(super) events: u64,
    /// An array of events, or whatever somebody has put there.
    pub(super) json: Vec<u8>,
}

/// Entries that were read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Read {
    /// How often the first one was handed out, this time included.
    pub(super) deliveries: u64,
    pub(super) entries: Vec<Delivered>,
}

/// Which entries to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    /// Many that nobody has read.
    New,
    /// The oldest that was read, by whomever, and not acknowledged.
    Pending,
}

/// A part of an entry that is to become a dead letter.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Obituary {
    /// Why.
    pub(super) reason: String,
    /// How many events.
    pub(super) events: u64,
    /// The events; `None` for the whole entry as it is.
    pub(super) json: Option<Vec<u8>>,
}

impl Connections {
    /// Adds entries to their streams, all or none. Ends with the answer or the connection, however long that takes.
    pub(super) async fn add(
        &self,
        entries: Vec<Entry>,
        max_events: u64,
        max_bytes: u64,
    ) -> RedisResult<Added> {
        let names: Vec<String> = [keys::META.to_owned(), keys::QUEUED.to_owned()]
            .into_iter()
            .chain(entries.iter().map(|entry| keys::stream(entry.partition)))
            .collect();
        let script = &self.scripts().add;
        let mut call = script.with(&names);
        call.arg(self.store())
            .arg(self.partitions())
            .arg(max_events)
            .arg(max_bytes)
            .arg(entries.iter().map(|entry| entry.events).sum::<u64>())
            .arg(entries.iter().map(|entry| entry.json.len()).sum::<usize>());
        for entry in entries {
            call.arg(entry.events).arg(entry.json);
        }
        let added: String = script.call(&call, self.patient()).await?;
        Ok(match added.as_str() {
            "added" => Added::All,
            "full" => Added::Full,
            _ => Added::Changed,
        })
    }

    /// Tells that `instance` is there and keeps its leases, takes more up to its share, each with a token of at least
    /// `smallest`, and looks at the whole. `None` when the broker is another store's by now. One that does not take part has
    /// a share of none, and the others share what there is.
    pub(super) async fn tick(
        &self,
        instance: &str,
        takes_part: bool,
        lease_time: Duration,
        smallest: u64,
    ) -> RedisResult<Option<Tick>> {
        let fixed = [keys::QUEUED, keys::DEAD, keys::TOKEN, keys::INSTANCES, keys::META];
        let partitions = 0..self.partitions();
        let names: Vec<String> = fixed
            .into_iter()
            .map(str::to_owned)
            .chain(partitions.clone().map(keys::lease))
            .chain(partitions.map(keys::stream))
            .collect();
        let script = &self.scripts().tick;
        let mut call = script.with(&names);
        call.arg(instance)
            .arg(lease_time.as_millis() as u64)
            .arg(self.partitions())
            .arg(smallest)
            .arg(self.store())
            .arg(if takes_part { "yes" } else { "no" });
        let numbers: Vec<i64> = script.call(&call, self.shared()).await?;
        let [share, events, bytes, dead, lag, leases @ ..] = numbers.as_slice() else {
            return Ok(None);
        };
        // Counts of entries that somebody put there by hand may make them negative.
        let count = |number: &i64| u64::try_from(*number).unwrap_or_default();
        Ok(Some(Tick {
            share: count(share) as usize,
            events: count(events),
            bytes: count(bytes),
            dead: count(dead),
            lag: Duration::from_millis(count(lag)),
            leases: leases
                .chunks_exact(2)
                .map(|pair| Lease {
                    partition: count(&pair[0]) as u16,
                    token: count(&pair[1]),
                })
                .collect(),
        }))
    }

    /// Reads entries of a partition. `None` when `instance` does not have this lease any more.
    pub(super) async fn read(&self, instance: &str, lease: Lease, which: Which) -> RedisResult<Option<Read>> {
        let script = &self.scripts().read;
        let mut call = script.with(&[keys::lease(lease.partition), keys::stream(lease.partition)]);
        call.arg(lease.value(instance))
            .arg(GROUP)
            .arg(CONSUMER)
            .arg(BROKER_READ_ENTRIES)
            .arg(BROKER_READ_BYTES)
            .arg(match which {
                Which::New => "new",
                Which::Pending => "pending",
            });
        let answer: Option<Vec<Value>> = script.call(&call, self.shared()).await?;
        let Some(answer) = answer else {
            return Ok(None);
        };
        let mut values = answer.into_iter();
        let deliveries = values.next().map_or(Ok(0), redis::from_redis_value::<u64>)?;
        let mut entries = Vec::new();
        while let (Some(id), Some(events), Some(Value::BulkString(json))) =
            (values.next(), values.next(), values.next())
        {
            let events: String = redis::from_redis_value(events)?;
            entries.push(Delivered {
                id: redis::from_redis_value(id)?,
                events: events.parse().unwrap_or_default(),
                json,
            });
        }
        Ok(Some(Read { deliveries, entries }))
    }

    /// Waits in Redis until a partition's stream has any entry, at most `patience`, and tells whether it has. The
    /// connection is blocked meanwhile.
    pub(super) async fn wait(
        connection: &mut MultiplexedConnection,
        partition: u16,
        patience: Duration,
    ) -> RedisResult<bool> {
        let found: Value = redis::cmd("XREAD")
            .arg("COUNT")
            .arg(1)
            .arg("BLOCK")
            .arg(patience.as_millis() as u64)
            .arg("STREAMS")
            .arg(keys::stream(partition))
            .arg("0-0")
            .query_async(connection)
            .await?;
        Ok(found != Value::Nil)
    }

    /// Takes entries out of a stream.
    pub(super) async fn acknowledge(&self, partition: u16, entries: &[Delivered]) -> RedisResult<()> {
        let script = &self.scripts().acknowledge;
        let mut call = script.with(&[&keys::stream(partition), keys::QUEUED]);
        call.arg(GROUP);
        for entry in entries {
            call.arg(&entry.id).arg(entry.events).arg(entry.json.len());
        }
        script.call(&call, self.shared()).await
    }

    /// Takes an entry out of a stream and makes dead letters of parts of it.
    pub(super) async fn bury(
        &self,
        partition: u16,
        entry: &Delivered,
        deliveries: u64,
        letters: &[Obituary],
    ) -> RedisResult<u64> {
        let script = &self.scripts().bury;
        let mut call = script.with(&[&keys::stream(partition), keys::QUEUED, keys::DEAD]);
        call.arg(GROUP)
            .arg(&entry.id)
            .arg(entry.events)
            .arg(entry.json.len())
            .arg(partition)
            .arg(deliveries);
        for letter in letters {
            call.arg(&letter.reason)
                .arg(letter.events)
                .arg(letter.json.as_deref().unwrap_or_default());
        }
        script.call(&call, self.shared()).await
    }

    /// Says how often an entry was handed out, because not every time was its own fault.
    pub(super) async fn set_deliveries(
        &self,
        partition: u16,
        entry: &Delivered,
        deliveries: u64,
    ) -> RedisResult<()> {
        redis::cmd("XCLAIM")
            .arg(keys::stream(partition))
            .arg(GROUP)
            .arg(CONSUMER)
            .arg(0)
            .arg(&entry.id)
            .arg("RETRYCOUNT")
            .arg(deliveries)
            .arg("JUSTID")
            .exec_async(&mut self.shared())
            .await
    }

    /// Gives back leases that `instance` still has.
    pub(super) async fn release(&self, instance: &str, leases: &[Lease]) -> RedisResult<()> {
        if leases.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = leases.iter().map(|lease| keys::lease(lease.partition)).collect();
        let script = &self.scripts().release;
        let mut call = script.with(&names);
        for lease in leases {
            call.arg(lease.value(instance));
        }
        script.call(&call, self.shared()).await
    }

    /// Tells that `instance` is gone, so that the others take its share at once.
    pub(super) async fn leave(&self, instance: &str) -> RedisResult<()> {
        redis::cmd("ZREM")
            .arg(keys::INSTANCES)
            .arg(instance)
            .exec_async(&mut self.shared())
            .await
    }

    /// Queues dead letters again, or deletes them. Returns how many there were, and which cannot be queued.
    pub(super) async fn settle(&self, action: &str, ids: &[String]) -> RedisResult<(u64, Vec<String>)> {
        let names: Vec<String> = [keys::QUEUED.to_owned(), keys::DEAD.to_owned()]
            .into_iter()
            .chain((0..self.partitions()).map(keys::stream))
            .collect();
        let script = &self.scripts().settle;
        let mut call = script.with(&names);
        call.arg(action);
        for id in ids {
            call.arg(id);
        }
        script.call(&call, self.shared()).await
    }
}
