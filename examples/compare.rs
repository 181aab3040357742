//! Sends one load to one system and prints how many events a second it took, durably. `scripts/bench-compare` runs it
//! against oncelog and what one would use instead; each system is driven by the same program in the same way: requests are
//! made beforehand, each connection sends its next one when the last is answered.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a measurement that fails has no result"
)]

mod load;

use load::Load;
use std::{
    fs::File,
    io::Write,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};
use tokio_postgres::{NoTls, types::ToSql};

const USAGE: &str = "usage: compare oncelog|oncelog-queued|redis|redis-xadd|postgres|disk TARGET EVENTS BATCH CONNECTIONS SEED
prints events a second; TARGET is IP:PORT, of oncelog also several with commas that share the connections; for
`postgres` a URL, for `disk` the folder where it writes its file. `oncelog-queued` is for a server with a broker: it is done
when the broker has the events. `redis-xadd` is that without oncelog: a pipeline of XADD";

/// One identity a key that is set once, and the event appended to its topic's stream; all of a batch in one script.
const REDIS_SCRIPT: &str = r"
local accepted = 0
for i = 1, #ARGV, 5 do
  local topic, id = ARGV[i], ARGV[i + 1]
  if redis.call('SET', 'seen:' .. topic .. ':' .. id, '1', 'NX') then
    redis.call('XADD', 'events:' .. topic, '*', 'event_id', id, 'timestamp', ARGV[i + 2], 'source', ARGV[i + 3], 'payload', ARGV[i + 4])
    accepted = accepted + 1
  end
end
return accepted";

const POSTGRES_TABLE: &str = "DROP TABLE IF EXISTS events;
CREATE TABLE events (
    seq bigserial, topic text NOT NULL, event_id text NOT NULL, timestamp timestamptz NOT NULL, source text NOT NULL,
    payload json NOT NULL, processed_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (topic, event_id));
CHECKPOINT";

const POSTGRES_BATCH: &str = "INSERT INTO events (topic, event_id, timestamp, source, payload)
SELECT topic, event_id, timestamp::timestamptz, source, payload::json
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[]) AS t (topic, event_id, timestamp, source, payload)
ON CONFLICT DO NOTHING";

const POSTGRES_SINGLE: &str = "INSERT INTO events (topic, event_id, timestamp, source, payload)
VALUES ($1, $2, $3::text::timestamptz, $4, $5::text::json) ON CONFLICT DO NOTHING";

/// What to send and how.
struct Run {
    events: usize,
    batch: usize,
    connections: usize,
    seed: u64,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [system, target, numbers @ ..] = arguments.as_slice() else {
        panic!("{USAGE}");
    };
    let numbers: Vec<usize> = numbers
        .iter()
        .map(|number| number.parse().expect(USAGE))
        .collect();
    let [events, batch, connections, seed] = numbers[..] else {
        panic!("{USAGE}");
    };
    let run = Run {
        events,
        batch,
        connections,
        seed: seed as u64,
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let spent = match system.as_str() {
        "oncelog" => runtime.block_on(oncelog(&run, &addresses(target), "/publish")),
        "oncelog-queued" => runtime.block_on(oncelog(&run, &addresses(target), "/publish?ack=queued")),
        "redis-xadd" => runtime.block_on(redis_xadd(&run, target.parse().expect(USAGE))),
        "redis" => runtime.block_on(redis(&run, target.parse().expect(USAGE))),
        "postgres" => runtime.block_on(postgres(&run, target)),
        "disk" => disk(&run, Path::new(target)),
        _ => panic!("{USAGE}"),
    };
    println!("{:.0}", (events / batch * batch) as f64 / spent.as_secs_f64());
}

impl Run {
    fn requests<T>(&self, request: impl Fn(Vec<load::Event>) -> T) -> (Vec<T>, u64) {
        let mut load = Load::new(self.seed, 10);
        let requests = (0..self.events / self.batch)
            .map(|_| request(load.batch(self.batch)))
            .collect();
        (requests, load.unique())
    }
}

fn addresses(target: &str) -> Vec<SocketAddr> {
    target
        .split(',')
        .map(|address| address.parse().expect(USAGE))
        .collect()
}

/// What an answer says, once all of it is there.
type ReadAnswer = fn(&[u8]) -> Option<u64>;

/// Sends all requests over all connections, which go to the addresses in turn; checks that as many events were accepted as there are different ones.
async fn drive(
    addresses: &[SocketAddr],
    connections: usize,
    requests: Vec<Vec<u8>>,
    unique: u64,
    answer: ReadAnswer,
) -> Duration {
    let requests = Arc::new(requests);
    let next = Arc::new(AtomicUsize::new(0));
    let accepted = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for &address in addresses.iter().cycle().take(connections) {
        let (requests, next, accepted) = (requests.clone(), next.clone(), accepted.clone());
        tasks.spawn(async move {
            let mut stream = TcpStream::connect(address).await.expect("the system listens");
            stream.set_nodelay(true).expect("a socket option");
            let mut buffer = vec![0; 16 << 10];
            while let Some(request) = requests.get(next.fetch_add(1, Ordering::Relaxed)) {
                stream.write_all(request).await.expect("the request is taken");
                let mut filled = 0;
                let told = loop {
                    let read = stream.read(&mut buffer[filled..]).await.expect("an answer");
                    assert!(read > 0, "the connection was closed");
                    filled += read;
                    if let Some(told) = answer(&buffer[..filled]) {
                        break told;
                    }
                };
                accepted.fetch_add(told, Ordering::Relaxed);
            }
        });
    }
    tasks.join_all().await;
    let spent = start.elapsed();
    assert_eq!(accepted.load(Ordering::Relaxed), unique, "accepted events");
    spent
}

async fn oncelog(run: &Run, addresses: &[SocketAddr], path: &str) -> Duration {
    let is_queued = path.contains("queued");
    let (requests, unique) = run.requests(|events| {
        let events: Vec<_> = events.iter().map(load::Event::json).collect();
        let body = match events.as_slice() {
            [event] => event.clone(),
            events => format!(r#"{{"events":[{}]}}"#, events.join(",")),
        };
        let length = body.len();
        format!(
            "POST {path} HTTP/1.1\r\nhost: oncelog\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        )
        .into_bytes()
    });
    if is_queued {
        // Which of them are duplicates is not known yet.
        let all = (requests.len() * run.batch) as u64;
        return drive(addresses, run.connections, requests, all, http_queued).await;
    }
    drive(addresses, run.connections, requests, unique, http_accepted).await
}

fn http_accepted(answer: &[u8]) -> Option<u64> {
    http_count(answer, "HTTP/1.1 200", r#""accepted":"#)
}

fn http_queued(answer: &[u8]) -> Option<u64> {
    http_count(answer, "HTTP/1.1 202", r#""queued":"#)
}

fn http_count(answer: &[u8], status: &str, count: &str) -> Option<u64> {
    let text = std::str::from_utf8(answer).expect("an HTTP answer");
    let (head, body) = text.split_once("\r\n\r\n")?;
    assert!(head.starts_with(status), "{text}");
    let length: usize = head
        .lines()
        .find_map(|line| {
            line.to_ascii_lowercase()
                .strip_prefix("content-length:")?
                .trim()
                .parse()
                .ok()
        })
        .expect("a content-length");
    if body.len() < length {
        return None;
    }
    let (_, rest) = body.split_once(count).expect("the count");
    rest[..rest.find(|c: char| !c.is_ascii_digit())?].parse().ok()
}

async fn redis(run: &Run, address: SocketAddr) -> Duration {
    let mut connection = redis::Client::open(format!("redis://{address}"))
        .and_then(|client| client.get_connection())
        .expect("Redis listens");
    let script: String = redis::cmd("SCRIPT")
        .arg("LOAD")
        .arg(REDIS_SCRIPT)
        .query(&mut connection)
        .expect("Redis takes the script");
    let (requests, unique) = run.requests(|events| {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&script).arg(0);
        for event in events {
            command
                .arg(event.topic)
                .arg(event.event_id)
                .arg(event.timestamp)
                .arg(event.source)
                .arg(event.payload);
        }
        command.get_packed_command()
    });
    drive(&[address], run.connections, requests, unique, redis_accepted).await
}

fn redis_accepted(answer: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(answer).expect("a Redis answer");
    let number = text.strip_suffix("\r\n")?;
    Some(
        number
            .strip_prefix(':')
            .and_then(|number| number.parse().ok())
            .unwrap_or_else(|| panic!("Redis answered {text}")),
    )
}

async fn redis_xadd(run: &Run, address: SocketAddr) -> Duration {
    let (requests, _) = run.requests(|events| {
        let mut pipeline = redis::pipe();
        for event in events {
            pipeline
                .cmd("XADD")
                .arg(format!("raw:{}", event.topic))
                .arg("*")
                .arg("topic")
                .arg(event.topic)
                .arg("event_id")
                .arg(event.event_id)
                .arg("timestamp")
                .arg(event.timestamp)
                .arg("source")
                .arg(event.source)
                .arg("payload")
                .arg(event.payload);
        }
        pipeline.get_packed_pipeline()
    });
    let requests_sent = requests.len() as u64;
    match run.batch {
        1 => drive(&[address], run.connections, requests, requests_sent, ids::<1>).await,
        200 => drive(&[address], run.connections, requests, requests_sent, ids::<200>).await,
        _ => panic!("redis-xadd takes batches of 1 or 200"),
    }
}

/// Answers of so many XADD: each the length of an id on a line, and the id on the next.
fn ids<const COUNT: usize>(answer: &[u8]) -> Option<u64> {
    assert_eq!(answer.first(), Some(&b'$'), "{}", String::from_utf8_lossy(answer));
    let lines = answer.iter().filter(|byte| **byte == b'\n').count();
    (lines == 2 * COUNT).then_some(1)
}

async fn postgres(run: &Run, url: &str) -> Duration {
    let connect = async || {
        let (client, connection) = tokio_postgres::connect(url, NoTls)
            .await
            .expect("PostgreSQL listens");
        tokio::spawn(async move { connection.await.expect("the connection stays") });
        client
    };
    let admin = connect().await;
    admin.batch_execute(POSTGRES_TABLE).await.expect("a table");
    // Sorted, because two batches that lock the same keys in different orders deadlock.
    let (requests, unique) = run.requests(|mut events| {
        events.sort_by(|a, b| (&a.topic, &a.event_id).cmp(&(&b.topic, &b.event_id)));
        let mut columns: [Vec<String>; 5] = Default::default();
        for event in events {
            let texts = [
                event.topic,
                event.event_id,
                event.timestamp,
                event.source.to_owned(),
                event.payload,
            ];
            for (column, text) in columns.iter_mut().zip(texts) {
                column.push(text);
            }
        }
        columns
    });
    let requests = Arc::new(requests);
    let next = Arc::new(AtomicUsize::new(0));
    let mut clients = Vec::new();
    for _ in 0..run.connections {
        let client = connect().await;
        let statement = client
            .prepare(if run.batch == 1 {
                POSTGRES_SINGLE
            } else {
                POSTGRES_BATCH
            })
            .await
            .expect("the statement is right");
        clients.push((client, statement));
    }
    let single = run.batch == 1;
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for (client, statement) in clients {
        let (requests, next) = (requests.clone(), next.clone());
        tasks.spawn(async move {
            let mut accepted = 0;
            while let Some(columns) = requests.get(next.fetch_add(1, Ordering::Relaxed)) {
                let values: [&(dyn ToSql + Sync); 5] = if single {
                    columns.each_ref().map(|column| &column[0] as _)
                } else {
                    columns.each_ref().map(|column| column as _)
                };
                accepted += client
                    .execute(&statement, &values)
                    .await
                    .expect("the batch is taken");
            }
            accepted
        });
    }
    let accepted: u64 = tasks.join_all().await.iter().sum();
    let spent = start.elapsed();
    assert_eq!(accepted, unique, "accepted events");
    spent
}

/// What no system on this disk can pass by much: the same bytes appended to a file, with one sync for as many batches
/// as there are connections, since that many wait for it at once.
fn disk(run: &Run, folder: &Path) -> Duration {
    let (requests, _) = run.requests(|events| events.iter().map(load::Event::json).collect::<String>());
    let path = folder.join("appended");
    let mut file = File::create(&path).expect("a file");
    let start = Instant::now();
    for waiting in requests.chunks(run.connections) {
        file.write_all(waiting.concat().as_bytes())
            .expect("the disk takes it");
        file.sync_data().expect("the disk keeps it");
    }
    let spent = start.elapsed();
    std::fs::remove_file(&path).expect("the file goes");
    spent
}
