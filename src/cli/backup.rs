//! `oncelog backup`: copies a store, also one that a server on this machine is using.

use super::{
    Failure,
    output::{self, columns, grouped},
    progress, store_is_in_a_file,
};
use crate::{
    config::{Config, FileArguments},
    store::sqlite,
};
use std::path::PathBuf;

/// Copy the store to another place on this machine, also while a server is using it
///
/// The copy is a store of its own: check it with `oncelog verify`, and serve it with --database-path. It has every
/// event up to a watermark that is taken at the start. The settings say where the store is; one in a PostgreSQL server is
/// copied with PostgreSQL's own tools.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    oncelog backup /mnt/backup/monday.db\n  \
    oncelog backup --database-path /var/lib/oncelog/events.db /mnt/backup/monday.db --json")]
pub(super) struct Backup {
    /// The file to write, which must not exist; its index comes beside it, as DEST-index
    #[arg(value_name = "DEST")]
    destination: PathBuf,
    #[command(flatten)]
    settings: FileArguments,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

const PG_DUMP: &str = "Copy the server's with pg_dump --format=custom --schema=oncelog --file=FILE URL; docs/SCALING.md says \
     what a restore needs";

impl Backup {
    pub(super) fn run(self) -> Result<(), Failure> {
        store_is_in_a_file(&self.settings.0, PG_DUMP)?;
        let config = Config::load(&self.settings.0)?;
        let bar = progress::counter(0, "events");
        let report = sqlite::backup(&config.database_path, &self.destination, &mut |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        });
        bar.finish_and_clear();
        let report = report.map_err(|error| Failure::Failed(error.to_string()))?;
        if self.json {
            return output::print_json(&report);
        }
        output::print(&columns([
            ("copied to", self.destination.display().to_string()),
            ("events", grouped(report.events)),
            ("up to seq", grouped(report.watermark)),
            ("index segments", grouped(report.segments)),
        ]))
    }
}
