//! `oncelog migrate`: copies a store in a file into a PostgreSQL server, where several instances share it.

use super::{
    Failure, block_on_all_processors,
    output::{self, columns, grouped, printable},
    progress,
};
use crate::{
    access::{KeyFile, KeyStore as _},
    config::{Config, StoreArguments},
    store::{
        migration::{self, MigrationReport, Step},
        postgres, sqlite,
    },
};
use tokio::task::block_in_place;

/// Copy a store from its SQLite file into a PostgreSQL server
///
/// For when one machine is not enough any more. Stop the server, run this, and start servers with `DATABASE_URL`: they go on
/// where it was. Every event keeps its number, so cursors that clients have go on, every identity is known again, and
/// counters and API keys come along. Nothing is changed in the file.
///
/// The database must be empty. At the end each event is read back and compared. Whatever interrupts the command, run it
/// again and it goes on where it was; until it is complete, no server starts on the database.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    oncelog migrate --database-url postgres://oncelog:secret@db.example/oncelog\n  \
    DATABASE_URL=postgres://db.example/oncelog oncelog migrate --database-path /var/lib/oncelog/events.db --json")]
pub(super) struct Migrate {
    #[command(flatten)]
    settings: StoreArguments,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

impl Migrate {
    pub(super) fn run(self) -> Result<(), Failure> {
        let config = Config::load(&self.settings.0)?;
        let Some(url) = &config.database_url else {
            return Err(Failure::Usage(
                "DATABASE_URL is not set: name the PostgreSQL server to copy to, such as \
                 --database-url postgres://USER:PASSWORD@HOST:5432/DATABASE"
                    .to_owned(),
            ));
        };
        let server = url.server().map_err(Failure::of)?;
        let to = server.to_string();
        let source = sqlite::Source::open(&config.database_path).map_err(Failure::of)?;
        let keys = KeyFile::beside(&config.database_path);
        // They are read at the end; that they cannot be is found out now.
        keys.read()?;
        let mut bars = Bars::default();
        let report = block_on_all_processors(async {
            // A server that cannot be used is found out about before the file is checked, which may take long.
            let target = postgres::Target::begin(server, &source)
                .await
                .map_err(Failure::of)?;
            let source = block_in_place(|| source.verify(&mut |done, total| bars.show(VERIFY, done, total)))
                .map_err(Failure::of)?;
            let mut show = |step, done, total| bars.show(unit(step), done, total);
            migration::migrate(&source, target, &keys, &mut show)
                .await
                .map_err(Failure::of)
        });
        bars.end();
        let report = report?;
        if self.json {
            return output::print_json(&report);
        }
        let from = config.database_path.display().to_string();
        output::print(&format_args!(
            "{}\n{}",
            columns(rows(&report, &from, &to)),
            next(&report, &printable(&from))
        ))
    }
}

/// What is counted while the file is checked.
const VERIFY: &str = "steps to check the file";

/// What is counted in a step.
fn unit(step: Step) -> &'static str {
    match step {
        Step::Copy => "events copied",
        Step::Check => "events compared",
    }
}

/// A bar for each step, one after the other.
#[derive(Default)]
struct Bars(Option<(&'static str, indicatif::ProgressBar)>);

impl Bars {
    fn show(&mut self, unit: &'static str, done: u64, total: u64) {
        if self.0.as_ref().is_none_or(|(shown, _)| *shown != unit) {
            self.end();
            self.0 = Some((unit, progress::counter(total, unit)));
        }
        if let Some((_, bar)) = &self.0 {
            bar.set_length(total);
            bar.set_position(done);
        }
    }

    fn end(&mut self) {
        if let Some((_, bar)) = self.0.take() {
            bar.finish_and_clear();
        }
    }
}

fn rows<'a>(report: &MigrationReport, from: &str, to: &str) -> Vec<(&'a str, String)> {
    let mut rows = vec![
        ("copied from", from.to_owned()),
        ("to", to.to_owned()),
        ("events", grouped(report.events)),
    ];
    if report.gone > 0 {
        rows.push(("identities of events that are gone", grouped(report.gone)));
    }
    rows.extend([
        ("up to seq", grouped(report.watermark)),
        ("topics", grouped(report.topics)),
        ("duplicates counted", grouped(report.duplicates)),
        ("conflicts counted", grouped(report.conflicts)),
        ("keys", grouped(report.keys)),
    ]);
    if report.resumed_after > 0 {
        rows.push(("went on after seq", grouped(report.resumed_after)));
    }
    rows
}

fn next(report: &MigrationReport, from: &str) -> String {
    let keys = match report.keys {
        0 => "",
        _ => " API keys go on as well.",
    };
    format!(
        "Each event was read back and is there as it was; all counters are.{keys}\n\
         Next: start servers with this DATABASE_URL. Keep {from} until you have a backup of the database, and let no \
         server use it any more: what it took in would be nowhere else.\n"
    )
}
