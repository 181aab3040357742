//! `oncelog verify`: checks a store or a backup from end to end.

use super::{
    Failure,
    output::{self, grouped},
    progress,
};
use crate::store::sqlite::{self, VerifyReport};
use std::path::PathBuf;

/// Check a store or a backup from end to end; changes nothing in it
///
/// No server may be using it: stop the server, or make a backup and check that. To keep servers out meanwhile, a file
/// `<PATH>.lock` is made beside it, unless that is on a read-only file system. Exit code 1 when something is wrong.
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

impl Verify {
    pub(super) fn run(self) -> Result<(), Failure> {
        let bar = progress::counter(0, "steps");
        let report = sqlite::verify(&self.path, &mut |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        });
        bar.finish_and_clear();
        let report = report.map_err(|error| Failure::Failed(error.to_string()))?;
        if self.json {
            output::print_json(&report)?;
        } else {
            output::print(&table(&report))?;
        }
        if report.is_sound() {
            Ok(())
        } else {
            Err(Failure::Reported)
        }
    }
}

fn table(report: &VerifyReport) -> String {
    let lines: String = report
        .checks
        .iter()
        .map(|check| match &check.problem {
            None => format!("ok    {}\n", check.name),
            Some(problem) => format!("FAIL  {}: {problem}\n", check.name),
        })
        .collect();
    format!("{lines}{} events\n", grouped(report.events))
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
        assert_eq!(
            table(&report),
            "ok    rows\nFAIL  segment 7: block 3 is damaged\n1,234 events\n"
        );
    }
}
