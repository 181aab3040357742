//! Settings: the first source that sets one wins, and a wrong one says what, where and what is allowed.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[cfg(feature = "otlp")]
use oncelog::traces::SampleRatio;
use oncelog::{
    access::{Limit, Limits, Rate},
    broker::BrokerConfig,
    config::{Arguments, Config, Environment, LogFormat, SETTINGS, TlsFiles},
    limits,
};
use std::{fs, path::PathBuf, process::Command};
use tempfile::TempDir;

/// Every source a test may fill.
#[derive(Default)]
struct Given<'a> {
    flags: &'a [(&'static str, &'a str)],
    environment: &'a [(&'a str, &'a str)],
    env_file: Option<&'a str>,
    config_file: Option<&'a str>,
}

impl Given<'_> {
    /// The settings as read in a folder with the files `.env` and `oncelog.toml`.
    fn load(&self) -> Result<Config, String> {
        let folder = TempDir::new().unwrap();
        if let Some(text) = self.env_file {
            fs::write(folder.path().join(".env"), text).unwrap();
        }
        let mut arguments = Arguments {
            values: self
                .flags
                .iter()
                .map(|(name, value)| (*name, (*value).to_owned()))
                .collect(),
            ..Arguments::default()
        };
        if let Some(text) = self.config_file {
            fs::write(folder.path().join("oncelog.toml"), text).unwrap();
            arguments.config_file = Some(PathBuf::from("oncelog.toml"));
        }
        let environment = self
            .environment
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        Config::load_from(&arguments, &Environment(environment), folder.path())
            .map_err(|error| error.to_string())
    }

    fn error(&self) -> String {
        self.load().unwrap_err()
    }
}

#[test]
fn with_nothing_set_the_defaults_hold() {
    let config = Given::default().load().unwrap();
    assert_eq!(
        config,
        Config {
            log_level: tracing::Level::INFO,
            log_format: LogFormat::Text,
            host: "127.0.0.1".to_owned(),
            port: 8080,
            database_path: PathBuf::from("data/dedup.db"),
            database_url: None,
            allow_anonymous: false,
            limits: Limits::default(),
            queue_max_size: limits::DEFAULT_QUEUE_EVENTS,
            tls: None,
            otlp: None,
            broker: None,
        }
    );
}

#[test]
fn a_flag_wins_over_the_environment_over_the_env_file_over_the_toml_file() {
    let mut given = Given {
        flags: &[("PORT", "1")],
        environment: &[("PORT", "2")],
        env_file: Some("PORT=3"),
        config_file: Some("port = 4"),
    };
    let port = |given: &Given| given.load().unwrap().port;
    assert_eq!(port(&given), 1);
    given.flags = &[];
    assert_eq!(port(&given), 2);
    given.environment = &[];
    assert_eq!(port(&given), 3);
    given.env_file = None;
    assert_eq!(port(&given), 4);
    given.config_file = None;
    assert_eq!(port(&given), 8080);
}

#[test]
fn every_setting_can_be_set_in_every_source() {
    let rate = |per_second, burst| Some(Limit::Rate(Rate::new(per_second, Some(burst)).unwrap()));
    let expected = Config {
        log_level: tracing::Level::DEBUG,
        log_format: LogFormat::Json,
        host: "::1".to_owned(),
        port: 0,
        database_path: PathBuf::from("/srv/a b.db"),
        database_url: None,
        allow_anonymous: false,
        limits: Limits {
            requests: rate(5, 50),
            events: rate(100, 100),
        },
        queue_max_size: 7,
        tls: Some(TlsFiles {
            certificate: PathBuf::from("tls/chain.pem"),
            key: PathBuf::from("tls/key.pem"),
            client_ca: Some(PathBuf::from("tls/clients.pem")),
        }),
        otlp: None,
        broker: Some(BrokerConfig {
            url: "redis://me:secret@redis:7000/2".parse().unwrap(),
            max_events: 8,
            max_bytes: 9,
        }),
    };
    let flags = [
        ("LOG_LEVEL", "debug"),
        ("LOG_FORMAT", "json"),
        ("HOST", "::1"),
        ("PORT", "0"),
        ("DATABASE_PATH", "/srv/a b.db"),
        ("QUEUE_MAX_SIZE", "7"),
        ("RATE_LIMIT_REQUESTS", "5"),
        ("RATE_LIMIT_REQUESTS_BURST", "50"),
        ("RATE_LIMIT_EVENTS", "100"),
        ("RATE_LIMIT_EVENTS_BURST", "100"),
        ("TLS_CERTIFICATE", "tls/chain.pem"),
        ("TLS_KEY", "tls/key.pem"),
        ("TLS_CLIENT_CA", "tls/clients.pem"),
        ("BROKER_URL", "redis://me:secret@redis:7000/2"),
        ("BROKER_MAX_EVENTS", "8"),
        ("BROKER_MAX_BYTES", "9"),
    ];
    let env_file = "# a comment\nLOG_LEVEL=debug\nexport LOG_FORMAT=json\nHOST=::1\nPORT=0\n\
        DATABASE_PATH=\"/srv/a b.db\"\nQUEUE_MAX_SIZE=7\nSOMETHING_ELSE=1\n\
        RATE_LIMIT_REQUESTS=5\nRATE_LIMIT_REQUESTS_BURST=50\nRATE_LIMIT_EVENTS=100\nRATE_LIMIT_EVENTS_BURST=100\n\
        TLS_CERTIFICATE=tls/chain.pem\nTLS_KEY=tls/key.pem\nTLS_CLIENT_CA=tls/clients.pem\n\
        BROKER_URL=redis://me:secret@redis:7000/2\nBROKER_MAX_EVENTS=8\nBROKER_MAX_BYTES=9\n";
    let config_file = "log_level = \"debug\"\nlog_format = \"json\"\nhost = \"::1\"\nport = 0\n\
        database_path = \"/srv/a b.db\"\nqueue_max_size = \"7\"\n\
        rate_limit_requests = 5\nrate_limit_requests_burst = 50\nrate_limit_events = 100\nrate_limit_events_burst = 100\n\
        tls_certificate = \"tls/chain.pem\"\ntls_key = \"tls/key.pem\"\ntls_client_ca = \"tls/clients.pem\"\n\
        broker_url = \"redis://me:secret@redis:7000/2\"\nbroker_max_events = 8\nbroker_max_bytes = 9\n";
    for given in [
        Given {
            flags: &flags,
            ..Given::default()
        },
        Given {
            environment: &flags,
            ..Given::default()
        },
        Given {
            env_file: Some(env_file),
            ..Given::default()
        },
        Given {
            config_file: Some(config_file),
            ..Given::default()
        },
    ] {
        assert_eq!(given.load().unwrap(), expected);
    }
}

#[cfg(feature = "otlp")]
#[test]
fn the_collector_of_traces_can_be_set_in_every_source() {
    let flags = [
        ("OTLP_ENDPOINT", "https://collector:4318/otlp"),
        ("OTLP_SAMPLE_RATIO", "0.25"),
    ];
    for given in [
        Given {
            flags: &flags,
            ..Given::default()
        },
        Given {
            environment: &flags,
            ..Given::default()
        },
        Given {
            config_file: Some("otlp_endpoint = \"https://collector:4318/otlp\"\notlp_sample_ratio = 0.25"),
            ..Given::default()
        },
    ] {
        let otlp = given.load().unwrap().otlp.unwrap();
        assert_eq!(otlp.endpoint.to_string(), "https://collector:4318/otlp");
        assert_eq!(Some(otlp.sample_ratio), SampleRatio::parse("0.25"));
    }
    let error = |name, value| {
        Given {
            environment: &[(name, value)],
            ..Given::default()
        }
        .error()
    };
    assert_eq!(
        error("OTLP_ENDPOINT", "collector:4318"),
        "environment variable OTLP_ENDPOINT is \"collector:4318\"; allowed: an http:// or https:// URL such as \
         http://collector:4318, without /v1/traces"
    );
    assert_eq!(
        error("OTLP_SAMPLE_RATIO", "2"),
        "environment variable OTLP_SAMPLE_RATIO is \"2\"; allowed: a number from 0 to 1, together with OTLP_ENDPOINT"
    );
    assert_eq!(
        error("OTLP_SAMPLE_RATIO", "0.5"),
        "environment variable OTLP_SAMPLE_RATIO is set, but OTLP_ENDPOINT is not: set OTLP_ENDPOINT as well, or unset \
         OTLP_SAMPLE_RATIO"
    );
}

/// `.ci/run` builds the program without the feature for this.
#[cfg(not(feature = "otlp"))]
#[test]
fn a_program_without_traces_says_how_to_build_one_with_them() {
    let given = Given {
        environment: &[("OTLP_ENDPOINT", "http://collector:4318")],
        ..Given::default()
    };
    assert_eq!(
        given.error(),
        "environment variable OTLP_ENDPOINT is set, but this program was built without the feature otlp: build it with \
         `cargo build --release --features otlp`, or unset OTLP_ENDPOINT"
    );
}

#[test]
fn a_wrong_value_names_its_source_the_value_and_what_is_allowed() {
    let port = "allowed: a whole number from 0 to 65535 (0 takes any free port)";
    let flag = Given {
        flags: &[("PORT", "http")],
        ..Given::default()
    };
    assert_eq!(flag.error(), format!("--port is \"http\"; {port}"));
    let environment = Given {
        environment: &[("PORT", "65536")],
        ..Given::default()
    };
    assert_eq!(
        environment.error(),
        format!("environment variable PORT is \"65536\"; {port}")
    );
    let env_file = Given {
        env_file: Some("PORT=-1"),
        ..Given::default()
    };
    assert_eq!(env_file.error(), format!("PORT in .env is \"-1\"; {port}"));
    let config_file = Given {
        config_file: Some("port = 70000"),
        ..Given::default()
    };
    assert_eq!(
        config_file.error(),
        format!("port in oncelog.toml is \"70000\"; {port}")
    );
}

#[test]
fn each_setting_refuses_what_it_cannot_be() {
    for (name, value) in [
        ("LOG_LEVEL", "LOUD"),
        ("LOG_FORMAT", "xml"),
        ("HOST", "localhost:80"),
        ("HOST", "http://localhost"),
        ("PORT", "8080 "),
        ("PORT", "80.5"),
        ("QUEUE_MAX_SIZE", "0"),
        ("QUEUE_MAX_SIZE", "1000001"),
        ("QUEUE_MAX_SIZE", "many"),
        ("RATE_LIMIT_REQUESTS", "-1"),
        ("RATE_LIMIT_REQUESTS", "0.5"),
        ("RATE_LIMIT_EVENTS", "10000001"),
        ("BROKER_MAX_EVENTS", "0"),
        ("BROKER_MAX_BYTES", "1 GB"),
    ] {
        let given = Given {
            environment: &[(name, value)],
            ..Given::default()
        };
        let setting = SETTINGS.iter().find(|setting| setting.name == name).unwrap();
        match (name, value) {
            // Blanks around a value are not part of it.
            ("PORT", "8080 ") => assert_eq!(given.load().unwrap().port, 8080),
            _ => assert_eq!(
                given.error(),
                format!(
                    "environment variable {name} is \"{value}\"; allowed: {}",
                    setting.allowed
                )
            ),
        }
    }
    let empty = Given {
        flags: &[("DATABASE_PATH", "")],
        ..Given::default()
    };
    assert_eq!(
        empty.error(),
        "--database-path is \"\"; allowed: the path of a file"
    );
}

#[test]
fn a_burst_needs_its_rate_and_is_at_least_as_large() {
    let alone = Given {
        env_file: Some("RATE_LIMIT_EVENTS_BURST=5"),
        ..Given::default()
    };
    assert_eq!(
        alone.error(),
        "RATE_LIMIT_EVENTS_BURST in .env is set, but RATE_LIMIT_EVENTS is not: set RATE_LIMIT_EVENTS as well, or unset \
         RATE_LIMIT_EVENTS_BURST"
    );
    let of_nothing = Given {
        env_file: Some("RATE_LIMIT_EVENTS=0\nRATE_LIMIT_EVENTS_BURST=5"),
        ..Given::default()
    };
    assert_eq!(
        of_nothing.error(),
        "RATE_LIMIT_EVENTS_BURST in .env is set, but RATE_LIMIT_EVENTS is 0, which is no limit: set RATE_LIMIT_EVENTS as \
         well, or unset RATE_LIMIT_EVENTS_BURST"
    );
    let smaller = Given {
        flags: &[("RATE_LIMIT_REQUESTS", "10"), ("RATE_LIMIT_REQUESTS_BURST", "9")],
        ..Given::default()
    };
    assert_eq!(
        smaller.error(),
        "--rate-limit-requests-burst is \"9\"; allowed: a whole number from RATE_LIMIT_REQUESTS to 10000000"
    );
    let without = Given {
        flags: &[("RATE_LIMIT_REQUESTS", "0")],
        ..Given::default()
    };
    assert_eq!(without.load().unwrap().limits, Limits::default());
}

#[test]
fn the_described_bounds_are_those_that_hold() {
    for (name, bound) in [
        ("QUEUE_MAX_SIZE", limits::MAX_QUEUE_EVENTS.to_string()),
        ("RATE_LIMIT_REQUESTS", limits::MAX_RATE.to_string()),
        ("RATE_LIMIT_REQUESTS_BURST", limits::MAX_RATE.to_string()),
        ("RATE_LIMIT_EVENTS", limits::MAX_RATE.to_string()),
        ("RATE_LIMIT_EVENTS_BURST", limits::MAX_RATE.to_string()),
    ] {
        let setting = SETTINGS.iter().find(|setting| setting.name == name).unwrap();
        assert!(setting.allowed.ends_with(&bound), "{name}");
    }
}

#[test]
fn an_empty_environment_variable_is_not_set() {
    let given = Given {
        environment: &[("PORT", ""), ("DATABASE_URL", ""), ("ONCELOG_CONFIG", "")],
        ..Given::default()
    };
    assert_eq!(given.load().unwrap().port, 8080);
}

#[test]
fn the_url_of_a_server_is_taken_and_its_password_never_shown() {
    let given = Given {
        environment: &[("DATABASE_URL", "postgres://me:secret@db/events?sslmode=disable")],
        ..Given::default()
    };
    let url = given.load().unwrap().database_url.unwrap();
    assert_eq!(url.server().unwrap().to_string(), "PostgreSQL at db:5432/events");
    assert_eq!(format!("{url:?}"), "DatabaseUrl(…)");
    let given = Given {
        environment: &[("DATABASE_URL", "postgres://me:secret@db/events?sslmode=maybe")],
        ..Given::default()
    };
    assert_eq!(
        given.error(),
        "environment variable DATABASE_URL cannot be used: sslmode is \"maybe\"; allowed: disable, prefer (the default), \
         require (encrypted, the server's certificate not checked), verify-full (checked). Give a URL such as \
         postgres://USER:PASSWORD@HOST:5432/DATABASE"
    );
}

#[test]
fn the_bounds_of_the_broker_have_the_defaults_that_are_described() {
    let given = Given {
        environment: &[("BROKER_URL", "redis://localhost")],
        ..Given::default()
    };
    let broker = given.load().unwrap().broker.unwrap();
    assert_eq!(broker.max_events, limits::DEFAULT_BROKER_EVENTS);
    assert_eq!(broker.max_bytes, limits::DEFAULT_BROKER_BYTES);
}

#[test]
fn a_wrong_url_of_the_broker_is_refused_without_showing_the_password_in_it() {
    let given = Given {
        env_file: Some("BROKER_URL=http://me:secret@localhost"),
        ..Given::default()
    };
    assert_eq!(
        given.error(),
        "BROKER_URL in .env cannot be used: it is not redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE] or rediss:// for \
         TLS. Give a URL such as redis://USER:PASSWORD@HOST:6379/0"
    );
}

#[test]
fn a_toml_file_with_an_unknown_key_a_wrong_type_or_broken_text_says_so() {
    let error = |text| {
        Given {
            config_file: Some(text),
            ..Given::default()
        }
        .error()
    };
    assert_eq!(
        error("prot = 1"),
        "oncelog.toml: unknown setting \"prot\"; known: log_level, log_format, host, port, tls_certificate, tls_key, \
         tls_client_ca, database_path, database_url, broker_url, broker_max_events, broker_max_bytes, allow_anonymous, \
         rate_limit_requests, rate_limit_requests_burst, rate_limit_events, rate_limit_events_burst, queue_max_size, otlp_endpoint, \
         otlp_sample_ratio"
    );
    assert_eq!(
        error("port = true"),
        "oncelog.toml: port is a boolean; allowed: a string or a number"
    );
    let broken = error("port = \n");
    assert!(
        broken.starts_with("oncelog.toml: TOML parse error at line 1"),
        "{broken}"
    );
}

#[test]
fn the_toml_file_can_be_named_by_the_environment_and_by_the_env_file() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("named.toml");
    fs::write(&file, "port = 5").unwrap();
    let named = file.to_str().unwrap();
    let environment = Given {
        environment: &[("ONCELOG_CONFIG", named)],
        ..Given::default()
    };
    assert_eq!(environment.load().unwrap().port, 5);
    let line = format!("ONCELOG_CONFIG={named}");
    let env_file = Given {
        env_file: Some(&line),
        ..Given::default()
    };
    assert_eq!(env_file.load().unwrap().port, 5);
}

#[test]
fn a_broken_line_of_the_env_file_is_named_by_its_number_and_not_shown() {
    let given = Given {
        env_file: Some("\u{feff}PORT=1\nPASSWORD secret\n"),
        ..Given::default()
    };
    assert_eq!(
        given.error(),
        ".env: line 2: not of the form NAME=value; quote a value with blanks"
    );
}

#[test]
fn a_file_that_was_named_must_exist() {
    let load = |arguments: Arguments| {
        Config::load_from(
            &arguments,
            &Environment::default(),
            TempDir::new().unwrap().path(),
        )
        .unwrap_err()
        .to_string()
    };
    let env_file = load(Arguments {
        env_file: Some(PathBuf::from("other.env")),
        ..Arguments::default()
    });
    assert!(
        env_file.starts_with("other.env: cannot be read: No such file"),
        "{env_file}"
    );
    let config_file = load(Arguments {
        config_file: Some(PathBuf::from("other.toml")),
        ..Arguments::default()
    });
    assert!(
        config_file.starts_with("other.toml: cannot be read: No such file"),
        "{config_file}"
    );
}

#[test]
fn wrong_settings_end_the_program_with_2_and_a_message() {
    for arguments in [&["serve", "--port", "http"][..], &["--port", "http"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_oncelog"))
            .args(arguments)
            .env_clear()
            .current_dir(TempDir::new().unwrap().path())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2));
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(
            message.starts_with("error: --port is \"http\"; allowed: "),
            "{message}"
        );
    }
}

#[test]
fn a_setting_of_tls_without_the_one_that_it_needs_is_refused() {
    for (name, missing) in [
        ("TLS_CERTIFICATE", "TLS_KEY"),
        ("TLS_KEY", "TLS_CERTIFICATE"),
        ("TLS_CLIENT_CA", "TLS_CERTIFICATE"),
    ] {
        let given = Given {
            environment: &[(name, "a.pem")],
            ..Given::default()
        };
        assert_eq!(
            given.error(),
            format!(
                "environment variable {name} is set, but {missing} is not: set {missing} as well, or unset {name}"
            )
        );
    }
}
