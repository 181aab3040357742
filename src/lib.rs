//! oncelog: a log aggregator for services that deliver at least once.
//!
//! The modules, in the order in which data flows:
//!
//! | module | what it is for |
//! |---|---|
//! | [`config`] | flags, environment and files become one validated `Config` |
//! | [`server`] | takes connections, ties everything together, stops cleanly |
//! | [`access`] | who may do what: API keys |
//! | [`http`] | requests become calls, results become answers |
//! | [`request`] | which request is worked on: its id and trace |
//! | [`event`] | what a valid event is; parsed once at the edge |
//! | [`broker`] | Redis, which takes events in while nobody waits for their commit |
//! | [`ingest`] | the bounded queue |
//! | [`committer`] | groups what is queued into commits, answers, wakes readers |
//! | [`store`] | the contract of a store, and those on SQLite and PostgreSQL |
//! | [`index`] | finds ids, topics and times in the log; knows nothing of SQL or HTTP |
//! | [`wakeup`], [`health`] | what the committer tells the rest |
//! | `stopping` | how the parts are told to stop |
//! | [`traces`] | spans of requests, for a collector of OpenTelemetry |
//! | [`cli`] | one file a subcommand |
//! | [`tls`] | certificates from files, streams that may be encrypted |
//! | [`client`] | the HTTP client of the subcommands |
//! | [`compression`] | gzip, zstd and brotli, within bounds |
//! | [`logging`] | log lines to standard error |
//! | [`limits`] | every bound |
//! | [`faults`] | where the fault tests end the program; nothing in a release |

pub mod access;
pub mod broker;
pub mod cli;
pub mod client;
pub mod committer;
pub mod compression;
pub mod config;
pub mod event;
pub mod faults;
pub mod health;
pub mod http;
pub mod index;
pub mod ingest;
pub mod limits;
pub mod logging;
pub mod request;
pub mod server;
mod stopping;
pub mod store;
pub mod tls;
pub mod traces;
pub mod wakeup;
