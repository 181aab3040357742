//! What the fault tests need inside the program: named points at which it dies, and bounds so small that a short load
//! sees every kind of background work. Built in with the feature `faults`, for `scripts/test-faults` alone; without it
//! nothing of this is in the program.
//!
//! Environment variables, with the feature only:
//!
//! - `ONCELOG_CRASH_AT=commit-durable:3`: the process aborts when it gets to that [`CrashPoint`] for the third time.
//!   Nothing is flushed, unlocked or removed, so what is left is what `kill -9` would leave.
//! - `ONCELOG_SMALL_BOUNDS=1`: an index tail is full after some hundred events, and the write-ahead log is copied into
//!   the file after some hundred KiB.

macro_rules! crash_points {
    ($($(#[$documentation:meta])* $point:ident = $name:literal,)*) => {
        /// A place at which a test can end the program.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum CrashPoint {
            $($(#[$documentation])* $point,)*
        }

        impl CrashPoint {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$point,)*];

            /// Its name in `ONCELOG_CRASH_AT`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$point => $name,)*
                }
            }
        }
    };
}

crash_points! {
    /// A commit is decided; nothing of it is written.
    CommitDecided = "commit-decided",
    /// Its rows are in the transaction.
    CommitInserted = "commit-inserted",
    /// The counters before it are folded into a snapshot, in the transaction.
    CommitFolded = "commit-folded",
    /// All of it is in the transaction.
    CommitWritten = "commit-written",
    /// It is on disk; nothing in memory knows.
    CommitDurable = "commit-durable",
    /// Memory knows; nobody is answered.
    CommitRemembered = "commit-remembered",
    /// The answers are on their way.
    CommitAnswered = "commit-answered",
    /// A segment's file is there, empty (a seal, a merge or a rebuild, whichever comes first).
    SegmentCreated = "segment-created",
    /// Its records are written, its header is not.
    SegmentFilled = "segment-filled",
    /// The file is synced, its name is not.
    SegmentSynced = "segment-synced",
    /// Its name is synced, too; it is not listed.
    SegmentDurable = "segment-durable",
    /// A merge is complete and not listed.
    MergeDone = "merge-done",
    /// A change of the segment list is in the transaction.
    ListWritten = "list-written",
    /// It is on disk; the index does not know.
    ListDurable = "list-durable",
    /// The index uses it; the files of merged segments are all there.
    ListApplied = "list-applied",
    /// One of the files that a merge replaced is removed.
    SourceRemoved = "source-removed",
    /// The checkpoint thread has copied most of the write-ahead log.
    CheckpointCopied = "checkpoint-copied",
    /// The writer has copied the rest, so that the log starts over.
    CheckpointDone = "checkpoint-done",
    /// A new store's tables are committed.
    OpenCreated = "open-created",
    /// The write-ahead log of the last run is copied.
    OpenSettled = "open-settled",
    /// The tables are read; no index file is touched.
    OpenLoaded = "open-loaded",
    /// A file that a crash left unlisted is removed.
    OpenRemoved = "open-removed",
    /// A part of the tail is read from the log.
    OpenAppended = "open-appended",
    /// The store is open; nobody is served.
    OpenDone = "open-done",
    /// A damaged segment is built anew and not listed.
    RebuildDone = "rebuild-done",
    /// A stop has answered everything; the last checkpoint is not made.
    CloseBegun = "close-begun",
    /// The last checkpoint is made.
    CloseCheckpointed = "close-checkpointed",
    /// A backup knows what belongs to it.
    BackupPinned = "backup-pinned",
    /// It has the index segments.
    BackupSegments = "backup-segments",
    /// It has a part of the log.
    BackupSlice = "backup-slice",
    /// It is complete, under its other name.
    BackupComplete = "backup-complete",
    /// Its index has its name, its file has not.
    BackupIndexNamed = "backup-index-named",
    /// Its file has its name, too; the folder is not synced.
    BackupNamed = "backup-named",
    /// Redis has a publish; it is not answered.
    BrokerQueued = "broker-queued",
    /// Entries are read out of Redis; nothing is done with them.
    BrokerRead = "broker-read",
    /// Their events are committed; they are not acknowledged.
    BrokerCommitted = "broker-committed",
    /// They are acknowledged.
    BrokerAcknowledged = "broker-acknowledged",
}

#[cfg(not(feature = "faults"))]
mod built_in {
    use super::CrashPoint;
    use crate::{index::Settings, limits};

    #[inline]
    pub(crate) fn reached(_: CrashPoint) {}

    #[inline]
    pub(crate) fn index_settings() -> Settings {
        Settings::default()
    }

    #[inline]
    pub(crate) fn checkpoint_bytes() -> u64 {
        limits::CHECKPOINT_BYTES
    }
}

#[cfg(feature = "faults")]
mod built_in {
    use super::CrashPoint;
    use crate::{index::Settings, limits};
    use std::sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    };

    /// Where to die, and after how many times.
    static CRASH: LazyLock<Option<(CrashPoint, AtomicU64)>> = LazyLock::new(|| {
        let wanted = std::env::var("ONCELOG_CRASH_AT").ok()?;
        let (name, times) = wanted.split_once(':').unwrap_or((&wanted, "1"));
        let point = CrashPoint::ALL.iter().find(|point| point.name() == name);
        match (point, times.parse::<u64>()) {
            (Some(point), Ok(times)) => Some((*point, times.into())),
            _ => {
                eprintln!("ONCELOG_CRASH_AT={wanted}: not a crash point and a number");
                std::process::exit(2);
            }
        }
    });

    static SMALL_BOUNDS: LazyLock<bool> =
        LazyLock::new(|| std::env::var_os("ONCELOG_SMALL_BOUNDS").is_some());

    pub(crate) fn reached(point: CrashPoint) {
        if let Some((at, left)) = &*CRASH
            && *at == point
            && left.fetch_sub(1, Ordering::SeqCst) == 1
        {
            eprintln!("crash point {} reached", point.name());
            std::process::abort();
        }
    }

    pub(crate) fn index_settings() -> Settings {
        if *SMALL_BOUNDS {
            Settings {
                tail_events: 384,
                merge_fan_in: 3,
                filter_keys: 256,
                time_block_events: 64,
                ..Settings::default()
            }
        } else {
            Settings::default()
        }
    }

    pub(crate) fn checkpoint_bytes() -> u64 {
        if *SMALL_BOUNDS {
            256 << 10
        } else {
            limits::CHECKPOINT_BYTES
        }
    }
}

pub(crate) use built_in::{checkpoint_bytes, index_settings, reached};
