//! `oncelog keys`: makes, lists, limits and revokes the API keys of a store.

mod limits;

use super::{
    Failure,
    output::{self, columns, printable},
};
use crate::{
    access::{KeyError, KeyFile, KeyRecord, KeyStore, Limits, NewKey, Scope, TopicPattern},
    config::{Config, StoreArguments},
    store::postgres::KeyTable,
};
use clap::Subcommand;
use jiff::{Span, Timestamp, tz::TimeZone};
use limits::{LimitArguments, in_words};
use serde::Serialize;

/// Make, list, limit and revoke API keys
///
/// Keys stand in a file beside the store, DATABASE_PATH-keys.json, or, with `DATABASE_URL`, in a table of that server, for
/// all its instances; hashes, no secrets. A server that is running knows of a change within a second. As soon as a store
/// has a key, its server asks for one.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    oncelog keys create --name admin --scope admin\n  \
    oncelog keys create --name shop --scope publish --topic 'orders.*' --expires 90d\n  \
    oncelog keys create --name batch --scope publish --events-per-second 5000 --events-burst 20000\n  \
    oncelog keys list\n  \
    oncelog keys limit 3f9c2a7be1d04586 --requests-per-second 50\n  \
    oncelog keys revoke 3f9c2a7be1d04586")]
pub(super) struct Keys {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Make a key; it is shown once, and never again
    Create(Create),
    /// Show all keys, without their secrets
    List(List),
    /// Change how fast a key may be used; what is not given stays as it is
    Limit(SetLimit),
    /// Refuse a key from now on
    Revoke(Revoke),
}

#[derive(clap::Args)]
struct Create {
    /// What people call it
    #[arg(long)]
    name: String,
    /// What it allows: publish, read, or admin, which is everything on every topic; may be given more than once
    #[arg(
        long = "scope",
        value_name = "SCOPE",
        required = true,
        hide_possible_values = true
    )]
    scopes: Vec<Scope>,
    /// For which topics; a * stands for any characters; may be given more than once
    #[arg(long = "topic", value_name = "PATTERN", default_value = "*")]
    topics: Vec<TopicPattern>,
    /// Until when: a time (2027-01-31T00:00:00Z) or a span from now (90d, 12h) [default: until it is revoked]
    #[arg(long, value_name = "WHEN", value_parser = expiry)]
    expires: Option<Timestamp>,
    #[command(flatten)]
    limits: LimitArguments,
    #[command(flatten)]
    output: Output,
}

#[derive(clap::Args)]
struct List {
    #[command(flatten)]
    output: Output,
}

#[derive(clap::Args)]
struct SetLimit {
    /// The key's id, as `oncelog keys list` shows it
    id: String,
    #[command(flatten)]
    limits: LimitArguments,
    #[command(flatten)]
    output: Output,
}

#[derive(clap::Args)]
struct Revoke {
    /// The key's id, as `oncelog keys list` shows it
    id: String,
    #[command(flatten)]
    output: Output,
}

#[derive(clap::Args)]
struct Output {
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: StoreArguments,
}

impl Output {
    /// Does `work` with the keys of the store that the settings name.
    fn with_keys<T>(&self, work: impl FnOnce(&dyn KeyStore) -> Result<T, KeyError>) -> Result<T, Failure> {
        let config = Config::load(&self.settings.0)?;
        let Some(url) = config.database_url else {
            return Ok(work(&KeyFile::beside(&config.database_path))?);
        };
        let server = url.server().map_err(Failure::of)?;
        // A thread of its own drives the connection while this one waits.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(|error| Failure::of(format_args!("cannot start: {error}")))?;
        let table = runtime.block_on(KeyTable::open(server)).map_err(Failure::of)?;
        Ok(work(&table)?)
    }
}

/// A key as it is shown. The hash of its secret is not.
#[derive(Serialize)]
struct Shown<'a> {
    id: &'a str,
    /// With its secret; when it is made only.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    name: &'a str,
    /// `live`, `expired` or `revoked`.
    state: &'static str,
    scopes: &'a [Scope],
    topics: &'a [TopicPattern],
    #[serde(flatten)]
    limits: limits::Shown,
    #[serde(skip)]
    limits_in_words: [Option<String>; 2],
    created_at: String,
    expires_at: Option<String>,
    revoked_at: Option<String>,
}

impl<'a> Shown<'a> {
    fn new(record: &'a KeyRecord, key: Option<String>) -> Self {
        let state = if record.revoked_at.is_some() {
            "revoked"
        } else if record.is_live(Timestamp::now) {
            "live"
        } else {
            "expired"
        };
        Self {
            id: &record.id,
            key,
            name: &record.name,
            state,
            scopes: &record.scopes,
            topics: &record.topics,
            limits: record.limits.into(),
            limits_in_words: [in_words(record.limits.requests), in_words(record.limits.events)],
            created_at: time(record.created_at),
            expires_at: record.expires_at.map(time),
            revoked_at: record.revoked_at.map(time),
        }
    }

    fn rows(&self) -> Vec<(&'static str, String)> {
        let [requests, events] = self.limits_in_words.clone();
        [
            ("key", self.key.clone()),
            ("id", Some(self.id.to_owned())),
            ("name", Some(self.name.to_owned())),
            ("state", Some(self.state.to_owned())),
            ("scopes", Some(joined(self.scopes))),
            ("topics", Some(joined(self.topics))),
            ("requests", requests),
            ("events", events),
            ("created", Some(self.created_at.clone())),
            ("expires", self.expires_at.clone()),
            ("revoked", self.revoked_at.clone()),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect()
    }
}

fn joined<T: ToString>(values: &[T]) -> String {
    let values: Vec<_> = values.iter().map(ToString::to_string).collect();
    values.join(", ")
}

impl Keys {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self.action {
            Action::Create(create) => create.run(),
            Action::List(list) => list.run(),
            Action::Limit(limit) => limit.run(),
            Action::Revoke(revoke) => revoke.run(),
        }
    }
}

impl Create {
    fn run(self) -> Result<(), Failure> {
        let wanted = NewKey {
            name: self.name,
            scopes: self.scopes,
            topics: self.topics,
            expires_at: self.expires,
            limits: self.limits.changes()?.apply(Limits::default()),
        };
        let (place, (record, secret)) = self
            .output
            .with_keys(|keys| Ok((keys.place(), keys.create(wanted)?)))?;
        let shown = Shown::new(&record, Some(secret.reveal()));
        if self.output.json {
            return output::print_json(&shown);
        }
        output::print(&format_args!(
            "{}\nThe key is not shown again. Send it as: Authorization: Bearer KEY\n\
             It is among those in {}, for the server whose keys these are.\n",
            columns(shown.rows()),
            printable(&place)
        ))
    }
}

impl List {
    fn run(self) -> Result<(), Failure> {
        let (place, keys) = self
            .output
            .with_keys(|keys| Ok((keys.place(), keys.read()?.unwrap_or_default())))?;
        let shown: Vec<_> = keys.iter().map(|record| Shown::new(record, None)).collect();
        if self.output.json {
            return output::print_json(&shown);
        }
        if shown.is_empty() {
            return output::print(&format_args!(
                "{} has no keys: its server answers without one, on this machine alone\n",
                printable(&place)
            ));
        }
        let blocks: Vec<_> = shown.iter().map(|key| columns(key.rows())).collect();
        output::print(&blocks.join("\n"))
    }
}

impl SetLimit {
    fn run(self) -> Result<(), Failure> {
        if self.limits.is_empty() {
            return Err(Failure::Usage(
                "nothing to change: give --requests-per-second or --events-per-second".to_owned(),
            ));
        }
        let changes = self.limits.changes()?;
        let record = self
            .output
            .with_keys(|keys| keys.limit(&self.id, &|limits| *limits = changes.apply(*limits)))?;
        let shown = Shown::new(&record, None);
        if self.output.json {
            return output::print_json(&shown);
        }
        output::print(&columns(shown.rows()))
    }
}

impl Revoke {
    fn run(self) -> Result<(), Failure> {
        let record = self.output.with_keys(|keys| keys.revoke(&self.id))?;
        let shown = Shown::new(&record, None);
        if self.output.json {
            return output::print_json(&shown);
        }
        output::print(&columns(shown.rows()))
    }
}

impl From<KeyError> for Failure {
    fn from(error: KeyError) -> Self {
        Self::of(error)
    }
}

/// As all times of ours are shown: in UTC, with microseconds.
fn time(time: Timestamp) -> String {
    format!("{time:.6}")
}

/// Reads a moment, or a span from now on. Days have 24 hours.
fn expiry(text: &str) -> Result<Timestamp, String> {
    if let Ok(moment) = text.parse() {
        return Ok(moment);
    }
    let span: Span = text.parse().map_err(|_| {
        "expected a time such as 2027-01-31T00:00:00Z, or a span such as 90d or 12h".to_owned()
    })?;
    Timestamp::now()
        .to_zoned(TimeZone::UTC)
        .checked_add(span)
        .map(|moment| moment.timestamp())
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expiry_is_a_moment_or_a_span_from_now() {
        assert_eq!(
            expiry("2027-01-31T00:00:00Z"),
            Ok("2027-01-31T00:00:00Z".parse().unwrap())
        );
        let before = Timestamp::now();
        let days = expiry("90d").unwrap().duration_since(before).as_hours();
        assert!((90 * 24..=90 * 24 + 1).contains(&days), "{days}");
        for wrong in ["", "soon", "90", "2027-01-31"] {
            assert!(expiry(wrong).is_err(), "{wrong}");
        }
    }
}
