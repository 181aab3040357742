//! `oncelog verify`: checks a store or a backup from end to end.

use super::{
    Failure,
    output::{self, grouped, printable},
    progress, store_is_in_a_file,
};
use crate::{
    config::Arguments,
    store::sqlite::{self, VerifyReport},
};
use serde::Serialize;
use std::{fmt, path::PathBuf};

/// Check a store or a backup from end to end; changes nothing in it
///
/// No server may be using it: stop the server, or make a backup and check that. To keep servers out meanwhile, a file
/// `<PATH>.lock` is made beside it, unless that is on a read-only file system. Exit code 1 when something is wrong. A store
/// in a PostgreSQL server is checked with PostgreSQL's own tools.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    oncelog verify /mnt/backup/monday.db\n  \
    oncelog verify data/dedup.db --json")]
pub(super) struct Verify {
    /// The SQLite file of the store or backup
    path: PathBuf,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

const PG_AMCHECK: &str = "Check the server's tables and indexes with pg_amcheck --install-missing --heapallindexed \
     --schema=oncelog --dbname=DATABASE as a superuser, and read all of it with pg_dump --schema=oncelog --file=/dev/null URL";

impl Verify {
    pub(super) fn run(self) -> Result<(), Failure> {
        store_is_in_a_file(&Arguments::default(), PG_AMCHECK)?;
        let bar = progress::counter(0, "steps");
        let report = sqlite::verify(&self.path, &mut |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        });
        bar.finish_and_clear();
        let report = report.map_err(|error| Failure::Failed(error.to_string()))?;
        let verdict = Verdict::new(&report);
        output::print_verdict(&verdict, self.json, verdict.passed)
    }
}

/// What was found, and what it comes to.
#[derive(Serialize)]
struct Verdict<'a> {
    passed: bool,
    #[serde(flatten)]
    report: &'a VerifyReport,
}

impl<'a> Verdict<'a> {
    fn new(report: &'a VerifyReport) -> Self {
        Self {
            passed: report.is_sound(),
            report,
        }
    }
}

impl fmt::Display for Verdict<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for check in &self.report.checks {
            let name = printable(&check.name);
            match &check.problem {
                None => writeln!(formatter, "ok    {name}")?,
                Some(problem) => writeln!(formatter, "FAIL  {name}: {}", printable(problem))?,
            }
        }
        writeln!(formatter, "{} events", grouped(self.report.events))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::Check;

    #[test]
    fn each_check_has_a_line_and_a_problem_is_shown() {
        let check = |name: &str, problem: Option<&str>| Check {
            name: name.to_owned(),
            problem: problem.map(str::to_owned),
        };
        let report = VerifyReport {
            checks: vec![
                check("rows", None),
                check("segment 7", Some("block 3 is damaged")),
            ],
            events: 1_234,
        };
        let verdict = Verdict::new(&report);
        assert_eq!(
            verdict.to_string(),
            "ok    rows\nFAIL  segment 7: block 3 is damaged\n1,234 events\n"
        );
        assert_eq!(serde_json::to_value(&verdict).unwrap()["passed"], false);
    }
}
