//! The subcommands do what their help says, against a real server and, for what that does too rarely, a scripted one.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod checks;
mod copies;
mod publish;
mod reading;
mod serve;
mod support;
