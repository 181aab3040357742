//! The one table of settings, and the command-line flags that follow from it.

use clap::{Arg, ArgMatches, Command};
use std::{collections::BTreeMap, path::PathBuf};

/// A setting as people see it. Its key in a TOML file follows from its name.
#[derive(Debug)]
pub struct Setting {
    /// The name of the environment variable, such as `DATABASE_PATH`.
    pub name: &'static str,
    /// The command-line flag without its dashes, such as `database-path`.
    pub flag: &'static str,
    /// What it is when nothing sets it.
    pub default: Option<&'static str>,
    /// What it is for.
    pub help: &'static str,
    /// Which values it may have.
    pub allowed: &'static str,
    value_name: &'static str,
}

/// Every setting.
pub const SETTINGS: &[Setting] = &[
    Setting {
        name: "LOG_LEVEL",
        flag: "log-level",
        default: Some("INFO"),
        help: "Write log lines of this level and above",
        allowed: "ERROR, WARN (or WARNING), INFO, DEBUG, TRACE",
        value_name: "LEVEL",
    },
    Setting {
        name: "LOG_FORMAT",
        flag: "log-format",
        default: Some("text"),
        help: "What a log line on standard error looks like",
        allowed: "text, json",
        value_name: "FORMAT",
    },
    Setting {
        name: "HOST",
        flag: "host",
        default: Some("127.0.0.1"),
        help: "Listen on this address; 0.0.0.0 or :: for all",
        allowed: "an IP address or a host name, without a port",
        value_name: "HOST",
    },
    Setting {
        name: "PORT",
        flag: "port",
        default: Some("8080"),
        help: "Listen on this port",
        allowed: "a whole number from 0 to 65535 (0 takes any free port)",
        value_name: "PORT",
    },
    Setting {
        name: "TLS_CERTIFICATE",
        flag: "tls-certificate",
        default: None,
        help: "Serve HTTPS with the certificate in this PEM file, followed by those of its issuers",
        allowed: "the path of a file, together with TLS_KEY",
        value_name: "FILE",
    },
    Setting {
        name: "TLS_KEY",
        flag: "tls-key",
        default: None,
        help: "The PEM file with the certificate's private key",
        allowed: "the path of a file, together with TLS_CERTIFICATE",
        value_name: "FILE",
    },
    Setting {
        name: "TLS_CLIENT_CA",
        flag: "tls-client-ca",
        default: None,
        help: "Serve only clients with a certificate of an authority in this PEM file",
        allowed: "the path of a file, together with TLS_CERTIFICATE",
        value_name: "FILE",
    },
    Setting {
        name: "DATABASE_PATH",
        flag: "database-path",
        default: Some("data/dedup.db"),
        help: "The SQLite file of the store; missing folders are made",
        allowed: "the path of a file",
        value_name: "FILE",
    },
    Setting {
        name: "DATABASE_URL",
        flag: "database-url",
        default: None,
        help: "The PostgreSQL server that is the store, in place of the file",
        allowed: "postgres://USER:PASSWORD@HOST:PORT/DATABASE, with ?sslmode=verify-full and others of libpq's parameters",
        value_name: "URL",
    },
    Setting {
        name: "BROKER_URL",
        flag: "broker-url",
        default: None,
        help: "A Redis server, version 7 or newer, that holds what is published with ack=queued until it is committed",
        allowed: "redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE], or rediss:// for TLS",
        value_name: "URL",
    },
    Setting {
        name: "BROKER_MAX_EVENTS",
        flag: "broker-max-events",
        default: Some("1000000"),
        help: "Events that the broker may hold, dead letters included; beyond it publishes with ack=queued are refused",
        allowed: "a whole number above 0",
        value_name: "EVENTS",
    },
    Setting {
        name: "BROKER_MAX_BYTES",
        flag: "broker-max-bytes",
        default: Some("536870912"),
        help: "Bytes of events that the broker may hold, dead letters included; likewise",
        allowed: "a whole number above 0",
        value_name: "BYTES",
    },
    Setting {
        name: "ALLOW_ANONYMOUS",
        flag: "allow-anonymous",
        default: Some("false"),
        help: "Let requests without a key in, wherever they come from",
        allowed: "true, false",
        value_name: "BOOL",
    },
    Setting {
        name: "RATE_LIMIT_REQUESTS",
        flag: "rate-limit-requests",
        default: Some("0"),
        help: "Requests a second for each key that sets no limit, and for all without a key together; 0 for no limit",
        allowed: "a whole number from 0 to 10000000",
        value_name: "NUMBER",
    },
    Setting {
        name: "RATE_LIMIT_REQUESTS_BURST",
        flag: "rate-limit-requests-burst",
        default: None,
        help: "Requests that may come at once after a pause; as many as in a second, when it is not set",
        allowed: "a whole number from RATE_LIMIT_REQUESTS to 10000000",
        value_name: "NUMBER",
    },
    Setting {
        name: "RATE_LIMIT_EVENTS",
        flag: "rate-limit-events",
        default: Some("0"),
        help: "Published events a second for each key that sets no limit, and for all without a key together; 0 for no limit",
        allowed: "a whole number from 0 to 10000000",
        value_name: "NUMBER",
    },
    Setting {
        name: "RATE_LIMIT_EVENTS_BURST",
        flag: "rate-limit-events-burst",
        default: None,
        help: "Published events that may come at once after a pause, so also the most of one request; as many as in a second, when it is not set",
        allowed: "a whole number from RATE_LIMIT_EVENTS to 10000000",
        value_name: "NUMBER",
    },
    Setting {
        name: "QUEUE_MAX_SIZE",
        flag: "queue-max-size",
        default: Some("10000"),
        help: "Events that may wait for a commit at once; a request with more is refused",
        allowed: "a whole number from 1 to 1000000",
        value_name: "EVENTS",
    },
    Setting {
        name: "OTLP_ENDPOINT",
        flag: "otlp-endpoint",
        default: None,
        help: "Export spans of requests to the OpenTelemetry collector at this URL, by OTLP over HTTP",
        allowed: "an http:// or https:// URL such as http://collector:4318, without /v1/traces",
        value_name: "URL",
    },
    Setting {
        name: "OTLP_SAMPLE_RATIO",
        flag: "otlp-sample-ratio",
        default: Some("1"),
        help: "Export this share of requests; of those with a traceparent, the ones that it says are sampled",
        allowed: "a number from 0 to 1, together with OTLP_ENDPOINT",
        value_name: "RATIO",
    },
];

const ENV_FILE: &str = "env-file";
const CONFIG_FILE: &str = "config";

impl Setting {
    /// The key in a TOML file, such as `database_path`.
    pub fn key(&self) -> String {
        self.name.to_ascii_lowercase()
    }

    fn argument(&self) -> Arg {
        let default = self
            .default
            .map(|text| format!(" [default: {text}]"))
            .unwrap_or_default();
        Arg::new(self.name)
            .long(self.flag)
            .value_name(self.value_name)
            .help(format!("{} [env: {}]{default}", self.help, self.name))
            .long_help(format!(
                "{}\n\nAllowed: {}\n[env: {}]{default}",
                self.help, self.allowed, self.name
            ))
            .allow_negative_numbers(true)
            .help_heading("Settings")
    }
}

/// What the command line said about settings; not checked yet. As a group of clap arguments it is every setting's
/// flag, `--env-file` and `--config`.
#[derive(Clone, Debug, Default)]
pub struct Arguments {
    /// Values of flags, by the setting's name.
    pub values: BTreeMap<&'static str, String>,
    /// `--env-file`: this file in place of `.env`.
    pub env_file: Option<PathBuf>,
    /// `--config`: the TOML file.
    pub config_file: Option<PathBuf>,
}

/// The part of [`Arguments`] that tells where a store is.
#[derive(Clone, Debug, Default)]
pub struct StoreArguments(pub Arguments);

/// The part of [`Arguments`] that tells where a store in a file is.
#[derive(Clone, Debug, Default)]
pub struct FileArguments(pub Arguments);

/// The part of [`Arguments`] that tells where the broker is.
#[derive(Clone, Debug, Default)]
pub struct BrokerArguments(pub Arguments);

/// Makes a part of [`Arguments`] a group of clap arguments of its own: the flags of these settings.
macro_rules! group {
    ($group:ident, $settings:expr) => {
        impl clap::Args for $group {
            fn augment_args(command: Command) -> Command {
                let settings = SETTINGS
                    .iter()
                    .filter(|setting| $settings.contains(&setting.name));
                Arguments::augment(command, settings)
            }

            fn augment_args_for_update(command: Command) -> Command {
                Self::augment_args(command)
            }
        }

        impl clap::FromArgMatches for $group {
            fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
                Ok(Self(Arguments::from_matches(matches)))
            }

            fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
                self.0 = Arguments::from_matches(matches);
                Ok(())
            }
        }
    };
}

group!(StoreArguments, ["DATABASE_PATH", "DATABASE_URL"]);
group!(FileArguments, ["DATABASE_PATH"]);
group!(BrokerArguments, ["BROKER_URL"]);

impl Arguments {
    fn augment(command: Command, settings: impl Iterator<Item = &'static Setting>) -> Command {
        settings
            .fold(command, |command, setting| command.arg(setting.argument()))
            .arg(
                Arg::new(ENV_FILE)
                    .long(ENV_FILE)
                    .value_name("FILE")
                    .value_parser(clap::value_parser!(PathBuf))
                    .help("Read environment variables from this file [default: .env, if there is one]")
                    .help_heading("Settings"),
            )
            .arg(
                Arg::new(CONFIG_FILE)
                    .long(CONFIG_FILE)
                    .value_name("FILE")
                    .value_parser(clap::value_parser!(PathBuf))
                    .help("Read settings from this TOML file; keys are the names in lower case [env: ONCELOG_CONFIG]")
                    .help_heading("Settings"),
            )
    }

    fn from_matches(matches: &ArgMatches) -> Self {
        let value = |setting: &'static Setting| {
            // A group has the flags of some settings only.
            let text = matches.try_get_one::<String>(setting.name).ok()??;
            Some((setting.name, text.clone()))
        };
        Self {
            values: SETTINGS.iter().filter_map(value).collect(),
            env_file: matches.get_one(ENV_FILE).cloned(),
            config_file: matches.get_one(CONFIG_FILE).cloned(),
        }
    }
}

impl clap::Args for Arguments {
    fn augment_args(command: Command) -> Command {
        Self::augment(command, SETTINGS.iter())
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for Arguments {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self::from_matches(matches))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_matches(matches);
        Ok(())
    }
}
