//! Settings: flags, environment, a `.env` file and a TOML file become one validated [`Config`].
//!
//! [`Arguments`] is what the command line said; [`Config`] is what the program may rely on, and nothing else makes one
//! outside of tests. The first source that sets a setting wins: flag, environment, `.env`, TOML, default. A wrong
//! value is an error that names the setting, where it was set, the value and what is allowed.

mod settings;
mod sources;

pub use settings::{Arguments, BrokerArguments, FileArguments, SETTINGS, Setting, StoreArguments};
pub use sources::{Environment, Source};

use crate::{
    access::{Limit, Limits, Rate, Unit},
    broker::{BrokerConfig, InvalidBrokerUrl},
    limits::MAX_QUEUE_EVENTS,
    store::postgres,
    traces::{Otlp, SampleRatio},
};
use sources::Sources;
use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

/// Valid settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Log lines of this level and above are written (`LOG_LEVEL`).
    pub log_level: tracing::Level,
    /// What a log line looks like (`LOG_FORMAT`).
    pub log_format: LogFormat,
    /// The address to listen on, an IP address or a host name (`HOST`).
    pub host: String,
    /// The port to listen on; 0 takes any free one (`PORT`).
    pub port: u16,
    /// The file of the embedded store (`DATABASE_PATH`).
    pub database_path: PathBuf,
    /// The PostgreSQL server that is the store in place of the file (`DATABASE_URL`).
    pub database_url: Option<DatabaseUrl>,
    /// Whether requests without a key are let in, wherever they come from (`ALLOW_ANONYMOUS`).
    pub allow_anonymous: bool,
    /// How fast each key that sets no limit may be used, and all requests without a key together (`RATE_LIMIT_REQUESTS`,
    /// `RATE_LIMIT_REQUESTS_BURST`, `RATE_LIMIT_EVENTS`, `RATE_LIMIT_EVENTS_BURST`).
    pub limits: Limits,
    /// What connections are encrypted with; without it they are not (`TLS_CERTIFICATE`, `TLS_KEY`, `TLS_CLIENT_CA`).
    pub tls: Option<TlsFiles>,
    /// Where spans of requests are sent; without it there are none (`OTLP_ENDPOINT`, `OTLP_SAMPLE_RATIO`).
    pub otlp: Option<Otlp>,
    /// Events that may wait for a commit at once, from 1 to [`MAX_QUEUE_EVENTS`] (`QUEUE_MAX_SIZE`).
    pub queue_max_size: usize,
    /// The broker, if there is one (`BROKER_URL`, `BROKER_MAX_EVENTS`, `BROKER_MAX_BYTES`).
    pub broker: Option<BrokerConfig>,
}

/// The files of TLS, as PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, then those of its issuers.
    pub certificate: PathBuf,
    /// The certificate's private key.
    pub key: PathBuf,
    /// The authorities of clients' certificates. With it, only clients that have one are served.
    pub client_ca: Option<PathBuf>,
}

/// The URL of a PostgreSQL server; it was checked, and its password is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrl(String);

impl DatabaseUrl {
    /// The server. Reads the file of certificate authorities that the URL may name.
    pub fn server(&self) -> Result<postgres::Server, postgres::ServerError> {
        postgres::Server::parse(&self.0)
    }
}

impl std::fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DatabaseUrl(…)")
    }
}

/// What a log line looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people: time, level, message, fields.
    Text,
    /// For programs: one JSON object a line.
    Json,
}

/// Why there is no valid [`Config`]. The message says what was wrong, where it was set, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value that is not allowed.
    #[error("{source_name} is \"{value}\"; allowed: {allowed}")]
    Value {
        /// Where the value was set, which names the setting.
        source_name: Source,
        /// The value as it was set.
        value: String,
        /// What is allowed.
        allowed: &'static str,
    },
    /// A URL that cannot be used; it is not shown, for it may hold a password.
    #[error("{source_name} cannot be used: {reason}. Give a URL such as {example}")]
    Url {
        /// Where the URL was set, which names the setting.
        source_name: Source,
        /// What is wrong with it.
        reason: String,
        /// What one looks like.
        example: &'static str,
    },
    /// A setting of a part that was left out when the program was built.
    #[error(
        "{source_name} is set, but this program was built without the feature {feature}: build it with \
         `cargo build --release --features {feature}`, or unset {name}"
    )]
    NotBuilt {
        /// Where the value was set.
        source_name: Source,
        /// The setting.
        name: &'static str,
        /// The Cargo feature that it needs.
        feature: &'static str,
    },
    /// A setting that means nothing without another one.
    #[error("{source_name} is set, but {missing} is {instead}: set {missing} as well, or unset {name}")]
    Incomplete {
        /// Where the value was set.
        source_name: Source,
        /// The setting.
        name: &'static str,
        /// The setting that it needs.
        missing: &'static str,
        /// What that is.
        instead: &'static str,
    },
    /// A file with settings that cannot be used.
    #[error("{file}: {problem}")]
    File {
        /// The file's path as it was named.
        file: String,
        /// What is wrong with it, and what to do.
        problem: String,
    },
}

impl Config {
    /// Reads and checks the settings of this process: its environment, and the files in its working folder.
    pub fn load(arguments: &Arguments) -> Result<Self, ConfigError> {
        Self::load_from(arguments, &Environment::of_process(), Path::new(""))
    }

    /// Reads and checks the settings, with this environment and working folder.
    pub fn load_from(
        arguments: &Arguments,
        environment: &Environment,
        folder: &Path,
    ) -> Result<Self, ConfigError> {
        let sources = Sources::read(arguments, environment, folder)?;
        Ok(Self {
            log_level: sources.value("LOG_LEVEL", log_level)?,
            log_format: sources.value("LOG_FORMAT", log_format)?,
            host: sources.value("HOST", host)?,
            port: sources.value("PORT", |text| text.parse().ok())?,
            database_path: sources.value("DATABASE_PATH", path)?,
            database_url: database_url(&sources)?,
            allow_anonymous: sources.value("ALLOW_ANONYMOUS", boolean)?,
            limits: Limits {
                requests: limit(&sources, Unit::Requests)?,
                events: limit(&sources, Unit::Events)?,
            },
            tls: tls(&sources)?,
            otlp: otlp(&sources)?,
            queue_max_size: sources.value("QUEUE_MAX_SIZE", |text| {
                text.parse()
                    .ok()
                    .filter(|events| (1..=MAX_QUEUE_EVENTS).contains(events))
            })?,
            broker: broker(&sources)?,
        })
    }
}

/// Where `DATABASE_URL` is set, if it is: the store is in a server then, not in a file. No other setting is looked at.
pub fn source_of_database_url(arguments: &Arguments) -> Result<Option<Source>, ConfigError> {
    let environment = Environment::of_process();
    let sources = Sources::read(arguments, &environment, Path::new(""))?;
    Ok(sources.find("DATABASE_URL").map(|(source_name, _)| source_name))
}

fn database_url(sources: &Sources) -> Result<Option<DatabaseUrl>, ConfigError> {
    let Some((source_name, text)) = sources.find("DATABASE_URL") else {
        return Ok(None);
    };
    let url = DatabaseUrl(text.to_owned());
    match url.server() {
        Ok(_) => Ok(Some(url)),
        Err(error) => Err(ConfigError::Url {
            source_name,
            reason: error.to_string(),
            example: "postgres://USER:PASSWORD@HOST:5432/DATABASE",
        }),
    }
}

fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" => Some(true),
        "false" | "0" => Some(false),
        _ => None,
    }
}

fn tls(sources: &Sources) -> Result<Option<TlsFiles>, ConfigError> {
    for (name, missing) in [
        ("TLS_CERTIFICATE", "TLS_KEY"),
        ("TLS_KEY", "TLS_CERTIFICATE"),
        ("TLS_CLIENT_CA", "TLS_CERTIFICATE"),
    ] {
        if let (Some((source_name, _)), None) = (sources.find(name), sources.find(missing)) {
            return Err(ConfigError::Incomplete {
                source_name,
                name,
                missing,
                instead: "not",
            });
        }
    }
    if sources.find("TLS_CERTIFICATE").is_none() {
        return Ok(None);
    }
    Ok(Some(TlsFiles {
        certificate: sources.value("TLS_CERTIFICATE", path)?,
        key: sources.value("TLS_KEY", path)?,
        client_ca: match sources.find("TLS_CLIENT_CA") {
            Some(_) => Some(sources.value("TLS_CLIENT_CA", path)?),
            None => None,
        },
    }))
}

fn limit(sources: &Sources, unit: Unit) -> Result<Option<Limit>, ConfigError> {
    let (name, burst_name) = match unit {
        Unit::Requests => ("RATE_LIMIT_REQUESTS", "RATE_LIMIT_REQUESTS_BURST"),
        Unit::Events => ("RATE_LIMIT_EVENTS", "RATE_LIMIT_EVENTS_BURST"),
    };
    let rate = sources.value(name, |text| match text.parse().ok()? {
        0 => Some(None),
        per_second => Rate::new(per_second, None).ok().map(Some),
    })?;
    let burst = sources.find(burst_name);
    match (rate, burst) {
        (None, None) => Ok(None),
        (None, Some((source_name, _))) => Err(ConfigError::Incomplete {
            source_name,
            name: burst_name,
            missing: name,
            instead: match sources.find(name) {
                None => "not",
                Some(_) => "0, which is no limit",
            },
        }),
        (Some(rate), None) => Ok(Some(Limit::Rate(rate))),
        (Some(rate), Some(_)) => {
            let per_second = rate.per_second().get();
            let rate = sources.value(burst_name, |text| {
                Rate::new(per_second, Some(text.parse().ok()?)).ok()
            })?;
            Ok(Some(Limit::Rate(rate)))
        }
    }
}

fn otlp(sources: &Sources) -> Result<Option<Otlp>, ConfigError> {
    const NAME: &str = "OTLP_ENDPOINT";
    const RATIO: &str = "OTLP_SAMPLE_RATIO";
    let sample_ratio = sources.value(RATIO, SampleRatio::parse)?;
    match (sources.find(NAME), sources.find(RATIO)) {
        (Some((source_name, _)), _) if !cfg!(feature = "otlp") => Err(ConfigError::NotBuilt {
            source_name,
            name: NAME,
            feature: "otlp",
        }),
        (Some(_), _) => Ok(Some(Otlp {
            endpoint: sources.value(NAME, |text| text.parse().ok())?,
            sample_ratio,
        })),
        (None, Some((source_name, _))) => Err(ConfigError::Incomplete {
            source_name,
            name: RATIO,
            missing: NAME,
            instead: "not",
        }),
        (None, None) => Ok(None),
    }
}

/// The broker, if one is set. Its bounds mean nothing without it, but do no harm.
fn broker(sources: &Sources) -> Result<Option<BrokerConfig>, ConfigError> {
    let max_events = sources.value("BROKER_MAX_EVENTS", above_zero)?;
    let max_bytes = sources.value("BROKER_MAX_BYTES", above_zero)?;
    let Some((source_name, text)) = sources.find("BROKER_URL") else {
        return Ok(None);
    };
    let url = text.parse().map_err(|error: InvalidBrokerUrl| ConfigError::Url {
        source_name,
        reason: error.to_string(),
        example: "redis://USER:PASSWORD@HOST:6379/0",
    })?;
    Ok(Some(BrokerConfig {
        url,
        max_events,
        max_bytes,
    }))
}

fn above_zero(text: &str) -> Option<u64> {
    // Redis counts in 64 bits with a sign, its scripts in 53 bits.
    text.parse().ok().filter(|number| (1..1 << 53).contains(number))
}

fn path(text: &str) -> Option<PathBuf> {
    (!text.is_empty()).then(|| PathBuf::from(text))
}

fn log_level(text: &str) -> Option<tracing::Level> {
    match text.to_ascii_uppercase().as_str() {
        "ERROR" => Some(tracing::Level::ERROR),
        "WARN" | "WARNING" => Some(tracing::Level::WARN),
        "INFO" => Some(tracing::Level::INFO),
        "DEBUG" => Some(tracing::Level::DEBUG),
        "TRACE" => Some(tracing::Level::TRACE),
        _ => None,
    }
}

fn log_format(text: &str) -> Option<LogFormat> {
    match text.to_ascii_lowercase().as_str() {
        "text" => Some(LogFormat::Text),
        "json" => Some(LogFormat::Json),
        _ => None,
    }
}

fn host(text: &str) -> Option<String> {
    let is_name = !text.is_empty()
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'));
    (is_name || text.parse::<IpAddr>().is_ok()).then(|| text.to_owned())
}
