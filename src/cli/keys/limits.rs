//! The limits of a key on the command line: the flags that set them, and how they are shown.

use crate::{
    access::{Limit, Limits, Rate},
    cli::Failure,
};
use serde::Serialize;
use std::str::FromStr;

/// The flags.
#[derive(clap::Args)]
pub(super) struct LimitArguments {
    /// Requests a second; 0 for no limit, the word default for the server's
    #[arg(long, value_name = "NUMBER")]
    requests_per_second: Option<PerSecond>,
    /// Requests that may come at once after a pause [default: as many as in a second]
    #[arg(long, value_name = "NUMBER", requires = "requests_per_second")]
    requests_burst: Option<u32>,
    /// Published events a second; 0 for no limit, the word default for the server's
    #[arg(long, value_name = "NUMBER")]
    events_per_second: Option<PerSecond>,
    /// Published events that may come at once after a pause, so also the most of one request [default: as many as in a
    /// second]
    #[arg(long, value_name = "NUMBER", requires = "events_per_second")]
    events_burst: Option<u32>,
}

/// What stands behind `--…-per-second`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PerSecond {
    Default,
    Unlimited,
    Rate(u32),
}

impl FromStr for PerSecond {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match (text, text.parse()) {
            ("default", _) => Ok(Self::Default),
            (_, Ok(0)) => Ok(Self::Unlimited),
            (_, Ok(rate)) => Ok(Self::Rate(rate)),
            (_, Err(_)) => Err("a whole number, or default"),
        }
    }
}

impl LimitArguments {
    /// Whether none is given.
    pub(super) fn is_empty(&self) -> bool {
        self.requests_per_second.is_none() && self.events_per_second.is_none()
    }

    /// What they change.
    pub(super) fn changes(&self) -> Result<Changes, Failure> {
        Ok(Changes {
            requests: change("requests", self.requests_per_second, self.requests_burst)?,
            events: change("events", self.events_per_second, self.events_burst)?,
        })
    }
}

/// What becomes of a key's limits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Changes {
    requests: Change,
    events: Change,
}

/// What becomes of one of them.
#[derive(Clone, Copy, Debug)]
enum Change {
    Nothing,
    To(Option<Limit>),
}

impl Changes {
    /// The limits `before`, with what is changed.
    pub(super) fn apply(self, before: Limits) -> Limits {
        let changed = |change, before| match change {
            Change::Nothing => before,
            Change::To(limit) => limit,
        };
        Limits {
            requests: changed(self.requests, before.requests),
            events: changed(self.events, before.events),
        }
    }
}

/// What the flags of one limit say.
fn change(unit: &str, per_second: Option<PerSecond>, burst: Option<u32>) -> Result<Change, Failure> {
    match per_second {
        None => Ok(Change::Nothing),
        Some(PerSecond::Default | PerSecond::Unlimited) if burst.is_some() => Err(Failure::Usage(format!(
            "--{unit}-burst needs a rate: --{unit}-per-second 1 or more"
        ))),
        Some(PerSecond::Default) => Ok(Change::To(None)),
        Some(PerSecond::Unlimited) => Ok(Change::To(Some(Limit::Unlimited))),
        Some(PerSecond::Rate(per_second)) => match Rate::new(per_second, burst) {
            Ok(rate) => Ok(Change::To(Some(Limit::Rate(rate)))),
            Err(error) => Err(Failure::Usage(format!(
                "--{unit}-per-second, --{unit}-burst: {error}"
            ))),
        },
    }
}

/// The limits of a key as JSON has them, named like the flags: 0 for no limit, null for the server's.
#[derive(Serialize)]
pub(super) struct Shown {
    requests_per_second: Option<u32>,
    requests_burst: Option<u32>,
    events_per_second: Option<u32>,
    events_burst: Option<u32>,
}

impl From<Limits> for Shown {
    fn from(limits: Limits) -> Self {
        let numbers = |limit| match limit {
            None => (None, None),
            Some(Limit::Unlimited) => (Some(0), None),
            Some(Limit::Rate(rate)) => (Some(rate.per_second().get()), Some(rate.burst().get())),
        };
        let (requests_per_second, requests_burst) = numbers(limits.requests);
        let (events_per_second, events_burst) = numbers(limits.events);
        Self {
            requests_per_second,
            requests_burst,
            events_per_second,
            events_burst,
        }
    }
}

/// A limit in words; none for one that the key does not set.
pub(super) fn in_words(limit: Option<Limit>) -> Option<String> {
    Some(match limit? {
        Limit::Unlimited => "no limit".to_owned(),
        Limit::Rate(rate) => format!("{} a second, {} at once", rate.per_second(), rate.burst()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(requests: Option<PerSecond>, burst: Option<u32>) -> LimitArguments {
        LimitArguments {
            requests_per_second: requests,
            requests_burst: burst,
            events_per_second: None,
            events_burst: None,
        }
    }

    #[test]
    fn what_is_given_changes_and_the_rest_stays() {
        let events = Some(Limit::Rate(Rate::new(7, None).unwrap()));
        let before = Limits {
            requests: Some(Limit::Unlimited),
            events,
        };
        let changed = |requests, burst| arguments(requests, burst).changes().unwrap().apply(before);
        assert_eq!(changed(None, None), before);
        assert_eq!(changed(Some(PerSecond::Default), None).requests, None);
        assert_eq!(changed(Some(PerSecond::Default), None).events, events);
        let rate = Some(Limit::Rate(Rate::new(5, Some(9)).unwrap()));
        assert_eq!(changed(Some(PerSecond::Rate(5)), Some(9)).requests, rate);
        for (wrong, burst) in [
            (PerSecond::Rate(5), 4),
            (PerSecond::Unlimited, 4),
            (PerSecond::Default, 4),
        ] {
            let refused = arguments(Some(wrong), Some(burst)).changes();
            assert!(matches!(refused, Err(Failure::Usage(_))), "{wrong:?}");
        }
    }

    #[test]
    fn a_rate_is_a_number_or_the_servers() {
        assert_eq!("default".parse(), Ok(PerSecond::Default));
        assert_eq!("0".parse(), Ok(PerSecond::Unlimited));
        assert_eq!("12".parse(), Ok(PerSecond::Rate(12)));
        for wrong in ["", "-1", "1.5", "many", "5000000000"] {
            assert!(wrong.parse::<PerSecond>().is_err(), "{wrong}");
        }
    }
}
