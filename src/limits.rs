//! Every bound of the program in one place, with the unit in its name.
//!
//! A queue, body, batch, retry, label or wait without a bound is a way to fall over; if a new one is needed, it goes
//! here. Bounds that a user can set have their default here and their allowed range in `config`. A leaf: it names
//! nothing else of the program.

use std::time::Duration;

// ---- what an event may be ----

/// Longest `topic`, `event_id` and `source`, in Unicode scalar values. At least one is needed.
pub const MAX_NAME_CHARS: usize = 255;
/// Largest single event as it was sent, in bytes of JSON.
pub const MAX_EVENT_BYTES: usize = 1 << 20;
/// Deepest nesting of a payload; the payload object itself is depth 1.
pub const MAX_PAYLOAD_DEPTH: usize = 64;
/// Most digits of a second's fraction in a `timestamp` (nanoseconds).
pub const MAX_FRACTION_DIGITS: usize = 9;
/// Most significant digits of a number's exponent in a payload; more is refused, so that exact comparison stays cheap.
pub const MAX_EXPONENT_DIGITS: usize = 18;

// ---- what a request may be ----

/// Largest request body in bytes, as it comes and once it is decompressed; more is a 413 before the rest is read.
pub const MAX_BODY_BYTES: usize = 16 << 20;
/// Bytes of request bodies held in memory at once, until their answers. A request that finds no room waits
/// [`QUEUE_WAIT`] and is then refused with a 503. There are five shares, for bodies of different kinds.
pub const MAX_IN_FLIGHT_BODY_BYTES: usize = WHOLE_BODIES_BYTES
    + PARTIAL_BODIES_BYTES
    + LARGE_BODIES_BYTES
    + SMALL_DECOMPRESSED_BYTES
    + LARGE_DECOMPRESSED_BYTES;
/// The share of bodies that were there at once. No client can hold it, so it is only as long in use as the server works.
pub const WHOLE_BODIES_BYTES: usize = 8 << 20;
/// The share of bodies that arrive in parts, counted as they arrive.
pub const PARTIAL_BODIES_BYTES: usize = 24 << 20;
/// The share of bodies beyond [`LARGE_BODY_BYTES`], each counted in whole before it is read.
pub const LARGE_BODIES_BYTES: usize = 32 << 20;
/// The share of what bodies become that are decompressed to at most [`LARGE_BODY_BYTES`]. It is not one of the above,
/// because a body holds its room there until it is decompressed: with one share, all could wait for each other.
pub const SMALL_DECOMPRESSED_BYTES: usize = 8 << 20;
/// The share of what larger ones become. Room for one that does not say how large it becomes, and some beside it.
pub const LARGE_DECOMPRESSED_BYTES: usize = 24 << 20;
/// Largest window of a zstd frame in a request body, in bytes: what HTTP allows (RFC 9659).
pub const MAX_ZSTD_WINDOW_BYTES: u64 = 8 << 20;
/// A body larger than this is a large one, in bytes.
pub const LARGE_BODY_BYTES: usize = 256 << 10;
/// How long a body or an answer may stand still while others wait for the room that it holds. Without anybody waiting
/// it may take [`BODY_READ_TIMEOUT`] and [`WRITE_TIMEOUT`].
pub const STALL: Duration = Duration::from_millis(500);
/// Bytes that have to move for a body or an answer not to stand still.
pub const PROGRESS_BYTES: usize = 16 << 10;
/// How often those who hold room are told that somebody waits for it.
pub const PRESSURE_INTERVAL: Duration = Duration::from_millis(100);
/// The grain in which the room for bodies and answers is counted, in bytes.
pub const ROOM_UNIT_BYTES: usize = 1 << 10;
/// Memory set aside for a body when its head announces it, in bytes, however much it announces.
pub const MAX_BODY_AHEAD_BYTES: usize = 256 << 10;
/// Bytes of answers held in memory at once, until the client has taken them or is gone. There are two shares.
pub const MAX_IN_FLIGHT_ANSWER_BYTES: usize = SMALL_ANSWERS_BYTES + LARGE_ANSWERS_BYTES;
/// The share of answers up to [`LARGE_ANSWER_BYTES`].
pub const SMALL_ANSWERS_BYTES: usize = 16 << 20;
/// The share of larger answers. The largest are pages, of some 10 MiB when every name in them has to be escaped.
pub const LARGE_ANSWERS_BYTES: usize = 80 << 20;
/// An answer larger than this is a large one, in bytes.
pub const LARGE_ANSWER_BYTES: usize = 256 << 10;
/// Smallest answer that is compressed, in bytes: about what goes into one packet anyway.
pub const MIN_COMPRESSED_ANSWER_BYTES: usize = 1 << 10;
/// How long an answer that is made waits for room before it is refused with a 503.
pub const ANSWER_WAIT: Duration = Duration::from_millis(50);
/// A body larger than this is decompressed and parsed on a thread of its own, so that it does not hold up other connections.
pub const PARSE_INLINE_BYTES: usize = LARGE_BODY_BYTES;
/// Default number of events that may wait for a commit at once (`QUEUE_MAX_SIZE`). A request with more events
/// than the setting is a 413: it could never fit.
pub const DEFAULT_QUEUE_EVENTS: usize = 10_000;
/// Largest allowed `QUEUE_MAX_SIZE`, in events.
pub const MAX_QUEUE_EVENTS: usize = 1_000_000;
/// How long a publish waits for a place in the queue before it is refused with a 503.
pub const QUEUE_WAIT: Duration = Duration::from_secs(1);
/// `Retry-After` of a 503, in seconds.
pub const RETRY_AFTER_SECONDS: u64 = 1;

// ---- connections ----

/// Open connections. For another one, those that have been idle the longest are closed; when none is idle, it is refused
/// with a 503. Fewer when the process may not have so many file descriptors.
pub const MAX_CONNECTIONS: usize = 10_000;
/// How long a connection has to be idle before it is closed for another one.
pub const IDLE_BEFORE_GIVEN_UP: Duration = Duration::from_secs(1);
/// Connections beyond [`MAX_CONNECTIONS`] that are told so; further ones wait in the kernel's queue.
pub const MAX_REFUSED_CONNECTIONS: usize = 128;
/// How long such a connection may take.
pub const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);
/// Connections that wait in the kernel's queue to be accepted; beyond it the kernel drops them, and their clients try
/// again after a second. The kernel has a bound of its own (`net.core.somaxconn`).
pub const LISTEN_BACKLOG: i32 = 4_096;
/// File descriptors kept for everything that is no open connection: the store, its readers, the index's segments, and
/// [`MAX_REFUSED_CONNECTIONS`]. At most half of what the process may have.
pub const DESCRIPTOR_RESERVE: usize = 640;
/// Bytes of a request head (request line and all headers); more is a 431. The longest that the API needs is some 10 KiB.
pub const MAX_HEADER_BYTES: usize = 32 << 10;
/// Largest read buffer of a connection, in bytes; it grows only for those that send that much at once. As many bytes of
/// answers wait to be written, or one answer. 256 KiB cost the same processor time (measured), but every connection
/// may make it grow.
pub const READ_BUFFER_BYTES: usize = 32 << 10;
/// Most headers of a request.
pub const MAX_HEADERS: usize = 100;
/// How long a request head may take from its first byte, and how long an idle connection is kept open.
pub const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a request body may take from the end of the head.
pub const BODY_READ_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an answer may wait for a client that takes nothing of it, before the connection is closed.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection that closes early is still read, so that its answer is not lost in a reset.
pub const LINGER: Duration = Duration::from_secs(1);
/// Pause after a connection could not be accepted (no file descriptors, say).
pub const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// How long a stopping server waits for requests that it has taken in, before it closes their connections. Container
/// runtimes kill what has not ended 10 s after they asked, and the store has to be closed in that time as well.
pub const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(8);

// ---- keys ----

/// API keys of a store, revoked ones included.
pub const MAX_KEYS: usize = 10_000;
/// Topic patterns of one key: each event of a batch is held against them.
pub const MAX_KEY_PATTERNS: usize = 100;
/// Largest file of keys that is read, in bytes: far more than [`MAX_KEYS`] take with long names and a few patterns each.
pub const MAX_KEY_FILE_BYTES: u64 = 64 << 20;
/// How often the server looks whether the file of keys has changed, so how long a revoked key may still be let in.
pub const KEY_REFRESH: Duration = Duration::from_secs(1);

/// Largest rate limit of requests or events, a second and at once. Rates are kept as nanoseconds from one to the next:
/// up to this one that is exact to a hundredth.
pub const MAX_RATE: u32 = 10_000_000;

// ---- TLS ----

/// Handshakes at once, each with at most 64 KiB of messages and a signature; further ones wait for their turn.
pub const MAX_HANDSHAKES: usize = 1_024;
/// How long a handshake may take, from the moment its connection is accepted.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may take from its turn on when all turns are taken.
pub const HANDSHAKE_CROWDED_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes of an answer that wait as plain text, and as many encrypted, in each connection.
pub const TLS_BUFFER_BYTES: usize = 32 << 10;
/// How often the certificate's files are looked at. A new one is taken when two looks have seen the same.
pub const TLS_FILES_CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// Largest file with certificates or a key, in bytes; all authorities of a Linux distribution have a fifth of it.
pub const MAX_PEM_BYTES: usize = 1 << 20;

// ---- the broker ----

/// Partitions of a broker that is set up for the first time; it keeps the number that it has. So many instances can share
/// the work.
pub const BROKER_PARTITIONS: u16 = 16;
/// Default number of events that the broker may hold, dead letters included (`BROKER_MAX_EVENTS`).
pub const DEFAULT_BROKER_EVENTS: u64 = 1_000_000;
/// Default bytes of events that the broker may hold, dead letters included (`BROKER_MAX_BYTES`): with what Redis needs
/// beside them less than 1 GiB of its memory.
pub const DEFAULT_BROKER_BYTES: u64 = 512 << 20;
/// Bytes after which an entry of a stream is closed and another one begun: some 200 usual events. What is read at once is
/// bounded by whole entries, so they have to be small beside [`BROKER_READ_BYTES`].
pub const BROKER_ENTRY_BYTES: usize = 64 << 10;
/// Connections to Redis that publishes share. Redis reads some 16 KiB of each connection before it syncs what came with
/// all of them, so with a single one it would sync more often.
pub const BROKER_CONNECTIONS: usize = 8;
/// How long a connection to Redis may take to be opened, the handshake included.
pub const BROKER_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long Redis may take to answer; a slow sync of its file is part of that.
pub const BROKER_ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a lease lasts if it is not kept: an instance that dies leaves its partitions alone for so long.
pub const BROKER_LEASE: Duration = Duration::from_secs(5);
/// How often leases are kept, and the figures of the broker taken.
pub const BROKER_TICK: Duration = Duration::from_secs(1);
/// How long a consumer that has nothing to do waits in Redis for an entry before it asks again.
pub const BROKER_IDLE_WAIT: Duration = Duration::from_secs(1);
/// Bound of the wait after a first failure of Redis; it doubles with each further one.
pub const BROKER_BACKOFF_FIRST: Duration = Duration::from_millis(50);
/// Largest bound of that.
pub const BROKER_BACKOFF_MOST: Duration = Duration::from_secs(2);
/// Refusals of Redis that a consumer remembers, so as to say each once: a list of what is allowed may refuse several commands.
pub const BROKER_REFUSALS: usize = 8;
/// Most entries that a consumer takes at once.
pub const BROKER_READ_ENTRIES: usize = 512;
/// Bytes of entries after which a consumer takes no more at once; four entries, of at most [`MAX_EVENT_BYTES`] and a few
/// bytes each, may come on top.
pub const BROKER_READ_BYTES: usize = 1 << 20;
/// Partitions whose entries are in memory at once. Each holds what was read, and as much again for what is made of it,
/// twice.
pub const BROKER_READS: usize = 8;
/// How often an entry that fails alone, while the store stores other events, is tried before it becomes a dead letter.
pub const BROKER_TRIES: u64 = 5;
/// How long an entry may fail alone while there are no other events from which one could tell whose fault that is. After that
/// its tries count as well.
pub const BROKER_ALONE_PATIENCE: Duration = Duration::from_hours(1);
/// How long the store is watched after a failed try, to tell whether it was the store's fault: two of its own tries.
pub const BROKER_VERDICT_WAIT: Duration = Duration::from_secs(2 * PROBE_INTERVAL.as_secs());
/// How often a consumer looks whether the store commits again.
pub const BROKER_STORE_CHECK: Duration = Duration::from_millis(100);
/// How long a stop waits for consumers to finish what they have in work.
pub const BROKER_STOP_WAIT: Duration = Duration::from_secs(2);
/// Most dead letters that the command line lists or settles in one call to Redis.
pub const MAX_DEAD_LETTERS_PAGE: usize = 100;

// ---- queries ----

/// Largest `limit` of a page, in events or topics.
pub const MAX_PAGE_LIMIT: usize = 1_000;
/// Default `limit` of a page.
pub const DEFAULT_PAGE_LIMIT: usize = 100;
/// A page ends early once it holds this many bytes of payload.
pub const MAX_PAGE_BYTES: usize = 4 << 20;
/// A page ends early once it has looked at this many rows of the log.
pub const MAX_PAGE_SCAN_ROWS: usize = 20_000;
/// A page ends early when it has taken this long.
pub const QUERY_TIME: Duration = Duration::from_secs(1);
/// Rows read inside one read transaction; a longer one would stop the log from being checkpointed.
pub const READ_SLICE_ROWS: usize = 500;
/// Queries that run at once; further ones wait their turn.
pub const MAX_CONCURRENT_QUERIES: usize = 8;
/// Those of them that may be searches, by source or time, which look at many rows for each that they find.
pub const MAX_CONCURRENT_SEARCHES: usize = 4;
/// How long a query waits for its turn before it is refused with a 503.
pub const QUERY_WAIT: Duration = Duration::from_secs(5);
/// Largest `wait` of a query that waits for new events, in seconds.
pub const MAX_WAIT_SECONDS: u64 = 30;
/// Shortest time between two looks of a query that waits, however often something is committed.
pub const WAIT_RECHECK: Duration = Duration::from_millis(5);
/// Topics listed by `GET /stats`; `topics_total` says how many there are.
pub const MAX_STATS_TOPICS: usize = 1_000;

/// Topics that have metrics of their own, those that came first; the others are counted together as `other`. Each makes
/// three series, and Prometheus keeps every one of them.
pub const MAX_METRIC_TOPICS: usize = 100;

/// Keys that have metrics of their own, those that were used first since the start; the others are counted together as
/// `other`. Each makes four series.
pub const MAX_METRIC_KEYS: usize = 100;

// ---- the store ----

/// Topics a store may hold; an event that would make one more is refused with a 422. Each costs about 200 bytes of
/// memory.
pub const MAX_TOPICS: usize = 100_000;
/// Events that the committer puts into one transaction; a single larger request still goes in whole.
pub const MAX_COMMIT_EVENTS: usize = 8_000;
/// A commit begins beside those that run when at least so many events wait; see `ingest`.
/// More than 64 clients send together that wait for one event each: their commits are faster one after the other than two
/// at once (measured on two processors). Less than a batch usually has: those gain by commits beside each other.
pub const COMMIT_BESIDE_EVENTS: usize = 100;
/// Or when something has waited this long, many times what a commit takes.
pub const COMMIT_BESIDE_WAIT: Duration = Duration::from_millis(50);
/// Bytes of events that the committer puts into one transaction; a single larger request still goes in whole.
pub const MAX_COMMIT_BYTES: usize = 8 << 20;
/// The write-ahead log is copied back into the SQLite file beyond this size: 8 MiB kept the worst commit near
/// 20 to 40 ms, 32 MiB gave 160 ms (measured).
pub const CHECKPOINT_BYTES: u64 = 8 << 20;
/// While the store cannot commit, it is tried this often without any traffic.
pub const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// Bytes that such a try writes.
pub const PROBE_BYTES: i64 = 1 << 20;
/// Pause after the first failure to rebuild a damaged index segment; it doubles with each further one.
pub const REPAIR_BACKOFF_FIRST: Duration = Duration::from_secs(1);
/// Largest pause of that.
pub const REPAIR_BACKOFF_MOST: Duration = Duration::from_mins(5);
/// How long a connection to the SQLite file waits for another one's lock before it gives up.
pub const SQLITE_BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// The page size of the SQLite file.
pub const SQLITE_PAGE_BYTES: u64 = 8192;
/// Cache of the writer's connection, in KiB: the pages of a commit of [`MAX_COMMIT_BYTES`] and its neighbours.
pub const SQLITE_WRITER_CACHE_KIB: i64 = 16 << 10;
/// Cache of each reading connection, in KiB. There are at most [`MAX_CONCURRENT_QUERIES`] of them and a few in the
/// background.
pub const SQLITE_READER_CACHE_KIB: i64 = 1 << 10;
/// Beyond this size of the write-ahead log the committer waits for the background, which could not keep up, and for
/// readers. A log that was larger is cut to this size when it is started over.
pub const MAX_WAL_BYTES: u64 = 64 << 20;
/// How long the committer waits for readers before a checkpoint gives up for now; and, as many times as the log is
/// larger than [`MAX_WAL_BYTES`], for the background's checkpoint.
pub const CHECKPOINT_WAIT: Duration = Duration::from_millis(200);
/// Most that the committer waits for the background's checkpoint after one commit.
pub const MAX_CHECKPOINT_WAIT: Duration = Duration::from_secs(5);
/// How often the write-ahead log is looked through while a server starts it over, before the look is given up.
pub const WAL_CHECK_TRIES: u32 = 3;
/// How long a start waits for other programs that read the file before it is refused.
pub const SETTLE_WAIT: Duration = Duration::from_secs(10);
/// Pause between two tries of that.
pub const SETTLE_RETRY: Duration = Duration::from_millis(20);
/// The background hands the rest of a checkpoint to the committer when at most this much was written meanwhile.
pub const CHECKPOINT_REST_BYTES: u64 = 1 << 20;
/// Rounds of a checkpoint in the background before the committer does the rest, however much it is.
pub const CHECKPOINT_ROUNDS: u32 = 3;
/// Counter deltas, one a commit, before they are folded into a snapshot.
pub const MAX_COUNTER_DELTAS: u64 = 4096;
/// Bytes of counter deltas before they are folded; or twice the snapshot's size, if that is more. So a fold costs each
/// commit a constant share of what it writes anyway.
pub const MIN_COUNTER_FOLD_BYTES: u64 = 64 << 10;
/// A read transaction also ends when it has read this many bytes of rows.
pub const READ_SLICE_BYTES: usize = 4 << 20;
/// Threads that read the log when the index's tail is rebuilt.
pub const MAX_RECOVERY_READERS: usize = 4;
/// Rows that such a thread hands over at a time.
pub const RECOVERY_CHUNK_ROWS: u64 = 16 << 10;
/// How often a backup starts over because a merge has removed an index segment that it was about to open.
pub const BACKUP_TRIES: u32 = 10;
/// Hashes of identities that `verify` holds in memory at once, in 8 bytes each; a larger log is read more often.
pub const VERIFY_IDENTITIES: u64 = 32 << 20;
/// Slices of the log that `verify` reads ahead of the check of a segment.
pub const VERIFY_SLICES_AHEAD: usize = 16;
/// Examples that a check of `verify` names before it only counts.
pub const VERIFY_EXAMPLES: usize = 3;
/// Rows that one INSERT adds to the log. A statement goes down the tree to the log's end once, however many rows it
/// has; 32 make that way cheap, and the statement's text and its parameters stay few (SQLite allows 32,766).
pub const INSERT_ROWS: usize = 32;
/// How long a commit waits for room in the index before it fails.
pub const INDEX_WAIT: Duration = Duration::from_secs(10);

// ---- the PostgreSQL store ----

/// Commits that one instance has under way at once: enough that the server's processors are busy while one waits for the
/// disk, few enough that the groups stay large.
pub const POSTGRES_COMMITS: usize = 4;
/// Connections that read: one for each query and each read of the metrics.
pub const POSTGRES_READERS: usize = MAX_CONCURRENT_QUERIES + 2;
/// How long a connection may take to come up.
pub const POSTGRES_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The server ends a statement of ours that runs for longer.
pub const POSTGRES_STATEMENT_TIMEOUT: Duration = Duration::from_secs(10);
/// The server ends a transaction of ours that does nothing for this long: its instance is gone, and it holds up readers.
pub const POSTGRES_IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause between the questions whether the other end is still there, once nothing came from it for
/// [`POSTGRES_IDLE_TIMEOUT`]; without an answer both ends give up after [`POSTGRES_COMMIT_TIMEOUT`]. The server does not
/// end a COPY that waits for its rows in another way, and that holds up readers.
pub const POSTGRES_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);
/// How long a start waits for a table that it has to change for a newer version, while the commits of others wait behind it.
pub const POSTGRES_MIGRATION_LOCK_WAIT: Duration = Duration::from_secs(5);
/// A commit that has no answer after this long is given up, and found out about on another connection.
pub const POSTGRES_COMMIT_TIMEOUT: Duration = Duration::from_secs(15);
/// A commit that failed for a reason that passes is tried again for this long: a server restarts within it.
pub const POSTGRES_RETRY: Duration = Duration::from_secs(10);
/// For this long an instance tries to find out whether a commit that got no answer happened.
pub const POSTGRES_DOUBT: Duration = Duration::from_secs(30);
/// Pause before the first retry; it doubles with each further one.
pub const POSTGRES_BACKOFF_FIRST: Duration = Duration::from_millis(20);
/// Largest pause of that.
pub const POSTGRES_BACKOFF_MOST: Duration = Duration::from_secs(1);
/// Events of a commit from which on a COPY is worth it, which is the quicker way in but takes three round trips; fewer go in one
/// call.
pub const POSTGRES_COPY_ROWS: usize = 64;
/// A reader at the end of the log looks this often whether the commits that run before an event have ended.
pub const POSTGRES_SETTLE_POLL: Duration = Duration::from_millis(2);
/// Without a hint, an instance looks this often for what others have committed.
pub const POSTGRES_POLL: Duration = Duration::from_millis(500);
/// An instance tells others of its commits at most this often.
pub const POSTGRES_NOTIFY_INTERVAL: Duration = Duration::from_millis(5);
/// An instance looks this often whether the server is there and whether counters have to be folded.
pub const POSTGRES_MAINTENANCE: Duration = Duration::from_secs(1);
/// Rows of commits that are folded into the counters at once.
pub const POSTGRES_FOLD_COMMITS: i64 = 10_000;
/// The newest row of a writer is kept for this long, to tell whether its commit happened; many times
/// [`POSTGRES_DOUBT`].
pub const POSTGRES_COMMIT_MEMORY: Duration = Duration::from_hours(24);
/// The name of a commit that was given up stays taken for this long, so that its transaction, should it still hang on the
/// server, cannot commit. A transaction of ours has up to 11 statements; the server undoes it when one takes
/// [`POSTGRES_STATEMENT_TIMEOUT`] or when it waits [`POSTGRES_IDLE_TIMEOUT`] for the next, so after 220 s none can commit.
/// More than ten times as long.
pub const POSTGRES_DISOWNED_MEMORY: Duration = Duration::from_hours(1);
/// Events that `migrate` copies in one transaction: enough that its sync costs little, few enough that a kill loses little.
pub const MIGRATION_SLICE_ROWS: usize = 10_000;
/// Such a slice also ends when its rows have this many bytes.
pub const MIGRATION_SLICE_BYTES: usize = 8 << 20;

// ---- the index ----

/// Events in the index's tail before it is sealed: what a hash table of 2^20 slots holds at 7/8 load without growing.
/// A multiple of [`TIME_BLOCK_EVENTS`].
pub const TAIL_EVENTS: usize = 917_504;
/// Full tails that may wait to be sealed; when this many wait, commits wait too.
pub const MAX_FROZEN_TAILS: usize = 2;
/// Neighbouring segments of one tier that are merged into one.
pub const MERGE_FAN_IN: usize = 6;
/// Most ids that share a filter: building one needs all its keys in memory.
pub const FILTER_KEYS: usize = 1 << 20;
/// Events that share an entry of smallest and largest event time.
pub const TIME_BLOCK_EVENTS: u64 = 1024;
/// Most events in one segment; segments that would merge into a larger one stay as they are.
pub const MAX_SEGMENT_EVENTS: u64 = 1 << 31;

/// Most filters of a segment, as a power of two: 4096, for some 4 billion ids.
pub const MAX_FILTER_BITS: u32 = 12;
/// Blocks of a segment file read at once when a section is read from end to end: 256 KiB.
pub const SEGMENT_READ_BLOCKS: usize = 64;
/// Blocks of a segment file gathered before they are written: 1 MiB.
pub const SEGMENT_WRITE_BLOCKS: usize = 256;
/// Bytes of a segment file written before they are synced: spreads the disk's work, so that the commits beside it do
/// not wait for one huge flush.
pub const SEGMENT_SYNC_BYTES: u64 = 16 << 20;
/// How long background work of the index waits before it tries again after a failure; a merge that fails again waits
/// twice as long each time, up to [`MAX_INDEX_RETRY`].
pub const INDEX_RETRY: Duration = Duration::from_secs(1);
/// Longest wait before a merge is tried again.
pub const MAX_INDEX_RETRY: Duration = Duration::from_secs(60);
/// Records of a merge between two looks whether the program is stopping.
pub const MERGE_STOP_CHECK_RECORDS: u32 = 1 << 16;

// ---- logging ----

/// Longest `X-Request-Id` that is taken from a client, in bytes; it is copied into every line and answer.
pub const MAX_REQUEST_ID_BYTES: usize = 128;
/// Lines a second about dropped duplicates, and as many about conflicts; those left out are counted in a line.
pub const OUTCOME_LOG_LINES_PER_SECOND: u32 = 5;

// ---- traces ----

/// Spans that wait to be exported, in spans of at most some 4 KiB; further ones are lost and counted.
pub const SPAN_QUEUE: usize = 2_048;
/// Spans in one request to the collector.
pub const SPAN_BATCH: usize = 512;
/// How long a span waits for others to be sent with.
pub const SPAN_GATHER_WAIT: Duration = Duration::from_secs(1);
/// How long the collector may take to answer.
pub const SPAN_EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a server that stops waits for its last spans to be sent.
pub const SPAN_FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// Shortest time between two lines about lost spans.
pub const SPAN_LOSS_LOG_INTERVAL: Duration = Duration::from_secs(60);
/// Bytes of a text, such as a path, that are put into a span.
pub const MAX_SPAN_TEXT_BYTES: usize = 1_024;
/// Longest `tracestate` that is passed on, in bytes: what the standard asks for at least.
pub const MAX_TRACESTATE_BYTES: usize = 512;

// ---- the client side: the subcommands that talk to a server ----

/// How long a connection to a server may take to be opened, the handshake included.
pub const CLIENT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a server may take to answer a request of a subcommand; a query that waits has this on top of its wait.
pub const CLIENT_REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest answer that a subcommand reads, in bytes; a page has at most [`MAX_PAGE_BYTES`] of payload and one event more.
pub const MAX_ANSWER_BYTES: usize = 64 << 20;
/// Bound of the wait after a first failure; it doubles with each further one.
pub const CLIENT_BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// Largest bound of the wait between two attempts.
pub const CLIENT_BACKOFF_MOST: Duration = Duration::from_secs(10);
/// Longest `Retry-After` that a client heeds; a server that asks for more is asked again after this.
pub const CLIENT_RETRY_AFTER_MOST: Duration = Duration::from_mins(10);
/// Most connections that `publish`, `simulate` and `bench` open.
pub const MAX_CLIENT_CONNECTIONS: usize = 4_096;
/// Largest answer to a publish that `bench` reads, in bytes.
pub const MAX_BENCH_ANSWER_BYTES: usize = 1 << 20;
/// `bench` makes its requests ahead of the measurement when they fit into this many bytes, otherwise while it runs.
pub const BENCH_AHEAD_BYTES: u64 = 2 << 30;
/// Requests that `bench` keeps ready when it makes them while it runs.
pub const BENCH_READY_REQUESTS: usize = 1_024;
/// Events in a request of `publish`, `simulate` and `bench`.
pub const MAX_CLIENT_BATCH_EVENTS: usize = 10_000;
/// Bytes of events that `publish` puts into one request, unless a single event has more.
pub const CLIENT_BATCH_BYTES: usize = 4 << 20;
/// How long `publish` waits for more lines before it sends a request that is not full.
pub const CLIENT_GATHER_WAIT: Duration = Duration::from_millis(100);
