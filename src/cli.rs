//! The command line: one file a subcommand; here is what they share.
//!
//! Each subcommand is a type with its arguments and a `run`. A failure is printed once, by [`run`], which also makes
//! the exit code: 0 done, 1 failed, 2 wrong usage or settings. Only `main` calls this.

mod backup;
mod bench;
mod broker;
mod completions;
mod events;
mod export;
mod health;
mod keys;
mod man;
mod migrate;
mod output;
mod progress;
mod publish;
mod serve;
mod server_arguments;
mod simulate;
mod stats;
mod tail;
mod verify;

use crate::{
    client::ClientError,
    config::{self, Arguments, ConfigError},
};
use clap::{CommandFactory, Parser, Subcommand};
use std::{io, process::ExitCode};

/// The whole command line.
#[derive(Parser)]
#[command(
    name = "oncelog",
    version = env!("ONCELOG_VERSION"),
    about = "A log aggregator that stores every event exactly once, however often it is sent",
    long_about = "A log aggregator that stores every event exactly once, however often it is sent.\n\n\
        Without a command it is `serve`.",
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  \
        oncelog --port 9000                 serve on port 9000\n  \
        oncelog publish events.ndjson       send a file of events\n  \
        oncelog bench                       measure the server\n  \
        oncelog help bench                  what bench can do"
)]
pub struct CommandLine {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: serve::Serve,
}

#[derive(Subcommand)]
enum Command {
    Serve(serve::Serve),
    Publish(publish::Publish),
    Tail(tail::Tail),
    Export(export::Export),
    Stats(stats::Stats),
    Health(health::Health),
    Simulate(simulate::Simulate),
    Bench(bench::Bench),
    Backup(backup::Backup),
    Verify(verify::Verify),
    Migrate(migrate::Migrate),
    Keys(keys::Keys),
    Broker(broker::Broker),
    Completions(completions::Completions),
    Man(man::Pages),
}

/// Why a command did not succeed.
#[derive(Debug)]
enum Failure {
    /// Wrong usage or settings.
    Usage(String),
    /// It failed.
    Failed(String),
    /// It failed, and what it printed says so.
    Reported,
    /// Nobody reads standard output any more.
    OutputClosed,
}

impl Failure {
    /// What failed, whoever made its text.
    fn of(error: impl std::fmt::Display) -> Self {
        Self::Failed(output::printable(&error.to_string()).into_owned())
    }
}

/// Reads the process's command line. Wrong usage, `--help` and `--version` end the process.
pub fn parse() -> CommandLine {
    CommandLine::parse()
}

/// The command line's description, with all subcommands.
pub fn command() -> clap::Command {
    CommandLine::command()
}

/// Does what the command line asks for.
pub fn run(command_line: CommandLine) -> ExitCode {
    let result = match command_line.command {
        None => command_line.serve.run(),
        Some(Command::Serve(command)) => command.run(),
        Some(Command::Publish(command)) => command.run(),
        Some(Command::Tail(command)) => command.run(),
        Some(Command::Export(command)) => command.run(),
        Some(Command::Stats(command)) => command.run(),
        Some(Command::Health(command)) => command.run(),
        Some(Command::Simulate(command)) => command.run(),
        Some(Command::Bench(command)) => command.run(),
        Some(Command::Backup(command)) => command.run(),
        Some(Command::Verify(command)) => command.run(),
        Some(Command::Migrate(command)) => command.run(),
        Some(Command::Keys(command)) => command.run(),
        Some(Command::Broker(command)) => command.run(),
        Some(Command::Completions(command)) => command.run(),
        Some(Command::Man(command)) => command.run(),
    };
    match result {
        Ok(()) | Err(Failure::OutputClosed) => ExitCode::SUCCESS,
        Err(Failure::Reported) => ExitCode::from(1),
        Err(Failure::Failed(message)) => {
            eprintln!("error: {message}");
            ExitCode::from(1)
        }
        Err(Failure::Usage(message)) => {
            eprintln!("error: {message}");
            ExitCode::from(2)
        }
    }
}

/// Refuses what works on the file of a store when the settings say that the store is in a server, so that nobody takes the
/// file for it. `instead` says what does the same there.
fn store_is_in_a_file(arguments: &Arguments, instead: &str) -> Result<(), Failure> {
    match config::source_of_database_url(arguments)? {
        None => Ok(()),
        Some(source) => Err(Failure::Usage(format!(
            "{source} is set, so the store is in a PostgreSQL server, and this command is for SQLite files. {instead}. \
             For a SQLite file all the same, unset DATABASE_URL"
        ))),
    }
}

/// Runs `future` on a runtime of one thread: enough for a command that waits for a server.
fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Failed(format!("cannot start: {error}")))?
        .block_on(future)
}

/// Runs `future` on a runtime with a thread for each processor.
fn block_on_all_processors<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Failed(format!("cannot start: {error}")))?;
    let result = runtime.block_on(future);
    // Not waiting for threads: `serve` may leave one behind that opens a store.
    runtime.shutdown_background();
    result
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Usage(error.to_string())
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::Failed(output::printable(&error.to_string()).into_owned())
    }
}

impl From<io::Error> for Failure {
    /// Errors of standard output; other errors are given their place by those who see them.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::OutputClosed,
            _ => Self::Failed(format!("cannot write to standard output: {error}")),
        }
    }
}

/// Reads a number of seconds above zero, at most a day.
fn seconds(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|seconds| *seconds > 0.0 && *seconds <= 86_400.0)
        .ok_or_else(|| "expected a number of seconds above 0, at most 86400".to_owned())
}

/// Reads a share, from 0 to 1.
fn share(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|share| (0.0..=1.0).contains(share))
        .ok_or_else(|| "expected a number from 0 to 1, such as 0.3".to_owned())
}

/// Reads a number above zero.
fn above_zero(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|number: &f64| *number > 0.0 && number.is_finite())
        .ok_or_else(|| "expected a number above 0".to_owned())
}
