//! The contract of a store, which each of them keeps: one suite, run against all.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

#[path = "../harness/mod.rs"]
mod harness;

/// A test of each of these functions for each kind of store.
macro_rules! on_every_store {
    ($($test:ident,)*) => {
        mod sqlite {
            $(#[test] fn $test() { super::$test::<crate::subject::Sqlite>(); })*
        }
        mod postgres {
            $(#[test] fn $test() { super::$test::<crate::subject::Postgres>(); })*
        }
    };
}

mod counting;
mod model;
mod pages;
mod subject;
mod texts;
