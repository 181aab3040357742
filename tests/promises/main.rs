//! The program's promises, checked from outside: the real binary, over HTTP and on its files. One file a promise.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

#[path = "../harness/mod.rs"]
mod harness;

mod backup;
mod bad_input;
mod broker;
mod broker_instances;
mod cli_end_to_end;
mod cluster;
mod compressed_answers;
mod compressed_bodies;
mod demo;
mod events_and_cursors;
mod exact_counts;
mod index_files;
mod keys;
mod keys_in_a_table;
mod limits;
mod logs;
mod metrics;
mod migrate;
mod openapi;
mod postgres_server;
mod rate_limits;
mod replaced_database;
mod request_ids;
mod restart;
mod several_instances;
mod shutdown;
mod sqlite_file;
mod tls;
#[cfg(feature = "otlp")]
mod traces;
