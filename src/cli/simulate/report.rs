//! What `simulate` found, a line a scenario.

use super::producer::Counts;
use crate::cli::output::{grouped, printable};
use serde::Serialize;
use std::fmt;

/// All results.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    passed: bool,
    results: Vec<Outcome>,
    /// What the scenarios that passed sent, and what came of it.
    total: Counts,
}

/// One line.
#[derive(Debug, Serialize)]
struct Outcome {
    name: &'static str,
    passed: bool,
    /// What was found, or what is wrong.
    found: String,
}

impl Report {
    /// Adds a scenario.
    pub(super) fn add(&mut self, name: &'static str, result: Result<Counts, String>) {
        if let Ok(counts) = &result {
            self.total += *counts;
        }
        self.add_check(name, result.map(|counts| counts.to_string()));
    }

    /// Adds something that was checked afterwards.
    pub(super) fn add_check(&mut self, name: &'static str, result: Result<String, String>) {
        let is_first = self.results.is_empty();
        self.passed = result.is_ok() && (is_first || self.passed);
        self.results.push(Outcome {
            name,
            passed: result.is_ok(),
            found: result.unwrap_or_else(|problem| problem),
        });
    }

    /// What the scenarios sent in all.
    pub(super) fn total(&self) -> Counts {
        self.total
    }

    /// Whether everything was as it must be.
    pub(super) fn passed(&self) -> bool {
        self.passed
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.results.iter().map(|result| result.name.len()).max();
        let width = width.unwrap_or_default();
        for result in &self.results {
            let mark = if result.passed { "ok  " } else { "FAIL" };
            let found = printable(&result.found);
            writeln!(formatter, "{mark}  {:width$}  {found}", result.name)?;
        }
        Ok(())
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} sent, {} accepted, {} duplicates",
            grouped(self.received),
            grouped(self.accepted),
            grouped(self.duplicates)
        )?;
        if self.conflicts > 0 {
            write!(formatter, ", {} conflicts", grouped(self.conflicts))?;
        }
        if self.unanswered > 0 {
            write!(formatter, ", {} more without an answer", grouped(self.unanswered))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failed_line_fails_the_report_and_says_why() {
        let counts = Counts {
            received: 3,
            accepted: 1,
            duplicates: 2,
            ..Counts::default()
        };
        let mut report = Report::default();
        report.add("first", Ok(counts));
        assert!(report.passed());
        report.add("second one", Err("accepted 2, expected 1".to_owned()));
        report.add_check("third", Ok("fine".to_owned()));
        assert!(!report.passed());
        assert_eq!(report.total(), counts);
        assert_eq!(
            report.to_string(),
            "ok    first       3 sent, 1 accepted, 2 duplicates\n\
             FAIL  second one  accepted 2, expected 1\n\
             ok    third       fine\n"
        );
    }
}
