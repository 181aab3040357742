//! What `bench` found, for people and as JSON, and the checks on it.

use super::{Bench, load::Measured};
use crate::cli::output::{columns, grouped, printable};
use serde::Serialize;
use std::{fmt, time::Duration};

/// The report.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// The seed with which the run can be repeated.
    seed: u64,
    requests: u64,
    sent: u64,
    accepted: u64,
    duplicates: u64,
    conflicts: u64,
    /// Requests that were not answered with 200.
    errors: u64,
    first_errors: Vec<String>,
    duplication_rate: f64,
    duration_seconds: f64,
    events_per_second: f64,
    requests_per_second: f64,
    /// The rate of requests that was asked for; none in a closed loop.
    requested_rate: Option<f64>,
    response_milliseconds: Times,
    checks: Vec<Check>,
    passed: bool,
}

/// Response times in milliseconds.
#[derive(Debug, Serialize)]
struct Times {
    mean: f64,
    p50: f64,
    p95: f64,
    p99: f64,
    max: f64,
}

/// One line of the validation.
#[derive(Debug, Serialize)]
struct Check {
    name: String,
    passed: bool,
    found: String,
}

impl Report {
    /// `health` is what the server said of itself afterwards, an error when it was not healthy.
    pub(super) fn new(
        arguments: &Bench,
        seed: u64,
        measured: Measured,
        health: Result<String, String>,
    ) -> Self {
        let Measured {
            tally,
            duration,
            times,
        } = measured;
        let milliseconds = |microseconds: u64| microseconds as f64 / 1e3;
        let seconds = duration.max(Duration::from_micros(1)).as_secs_f64();
        let mut report = Self {
            seed,
            requests: tally.requests,
            sent: tally.sent,
            accepted: tally.accepted,
            duplicates: tally.duplicates,
            conflicts: tally.conflicts,
            errors: tally.errors,
            duplication_rate: tally.duplication_rate(),
            duration_seconds: seconds,
            events_per_second: tally.received as f64 / seconds,
            requests_per_second: (tally.requests - tally.errors) as f64 / seconds,
            requested_rate: arguments.rate,
            response_milliseconds: Times {
                mean: times.mean() / 1e3,
                p50: milliseconds(times.value_at_quantile(0.50)),
                p95: milliseconds(times.value_at_quantile(0.95)),
                p99: milliseconds(times.value_at_quantile(0.99)),
                max: milliseconds(times.max()),
            },
            checks: Vec::new(),
            passed: false,
            first_errors: Vec::new(),
        };
        report.validate(arguments, tally.new_events, tally.wrong_answers, health);
        report.first_errors = tally.first_errors;
        report
    }

    /// Whether every check passed.
    pub(super) fn passed(&self) -> bool {
        self.passed
    }

    fn validate(
        &mut self,
        arguments: &Bench,
        new_events: u64,
        wrong_answers: u64,
        health: Result<String, String>,
    ) {
        let received = self.accepted + self.duplicates;
        let times = &self.response_milliseconds;
        let mut checks = vec![
            Check {
                name: format!("at least {} events received", grouped(arguments.min_events)),
                passed: received >= arguments.min_events,
                found: grouped(received),
            },
            Check {
                name: format!("at least {} duplicates", percent(arguments.min_duplicates)),
                passed: self.duplication_rate >= arguments.min_duplicates,
                found: percent(self.duplication_rate),
            },
            Check {
                name: format!("mean response below {} ms", arguments.max_mean),
                passed: self.requests > 0 && times.mean < arguments.max_mean,
                found: format!("{:.2} ms", times.mean),
            },
        ];
        if let Some(bound) = arguments.max_p99 {
            checks.push(Check {
                name: format!("p99 response below {bound} ms"),
                passed: self.requests > 0 && times.p99 < bound,
                found: format!("{:.2} ms", times.p99),
            });
        }
        if let Some(bound) = arguments.min_throughput {
            checks.push(Check {
                name: format!("at least {bound} events/s"),
                passed: self.events_per_second >= bound,
                found: format!("{:.0} events/s", self.events_per_second),
            });
        }
        checks.push(Check {
            name: "every event sent and answered".to_owned(),
            passed: self.errors == 0 && received == arguments.events,
            found: format!("{} errors, {} events", grouped(self.errors), grouped(received)),
        });
        // Only the events of a seed that was given may be there already, from an earlier run.
        let there_already = new_events.saturating_sub(self.accepted);
        let is_as_many = match arguments.seed {
            Some(_) => self.accepted <= new_events,
            None => self.accepted == new_events,
        };
        let stored_before = match arguments.seed {
            Some(_) => format!(" ({} there already)", grouped(there_already)),
            None => String::new(),
        };
        checks.push(Check {
            name: "every answer's counts exact".to_owned(),
            passed: wrong_answers == 0 && is_as_many && self.conflicts == 0,
            found: format!(
                "{} accepted, {} unique sent{stored_before}, {} conflicts, {} wrong answers",
                grouped(self.accepted),
                grouped(new_events),
                grouped(self.conflicts),
                grouped(wrong_answers)
            ),
        });
        checks.push(Check {
            name: "healthy after".to_owned(),
            passed: health.is_ok(),
            found: health.unwrap_or_else(|problem| problem),
        });
        self.passed = checks.iter().all(|check| check.passed);
        self.checks = checks;
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let times = &self.response_milliseconds;
        let milliseconds = |time: f64| format!("{time:.2} ms");
        let rate = self
            .requested_rate
            .map_or_else(String::new, |rate| format!(" (asked for {rate})"));
        let text = columns([
            (
                "sent",
                format!(
                    "{} events in {} requests",
                    grouped(self.sent),
                    grouped(self.requests)
                ),
            ),
            ("accepted", grouped(self.accepted)),
            ("duplicates", grouped(self.duplicates)),
            ("conflicts", grouped(self.conflicts)),
            ("errors", grouped(self.errors)),
            ("duplication rate", percent(self.duplication_rate)),
            ("duration", format!("{:.2} s", self.duration_seconds)),
            ("events/s", grouped(self.events_per_second as u64)),
            (
                "requests/s",
                format!("{}{rate}", grouped(self.requests_per_second as u64)),
            ),
            ("mean response", milliseconds(times.mean)),
            ("p50 response", milliseconds(times.p50)),
            ("p95 response", milliseconds(times.p95)),
            ("p99 response", milliseconds(times.p99)),
            ("max response", milliseconds(times.max)),
            ("seed", self.seed.to_string()),
        ]);
        formatter.write_str(&text)?;
        for error in &self.first_errors {
            writeln!(formatter, "error: {}", printable(error))?;
        }
        writeln!(formatter, "\nvalidation")?;
        let width = self
            .checks
            .iter()
            .map(|check| check.name.chars().count())
            .max()
            .unwrap_or_default();
        for check in &self.checks {
            let mark = if check.passed { "ok  " } else { "FAIL" };
            let found = printable(&check.found);
            writeln!(formatter, "  {mark}  {:width$}  {found}", check.name)?;
        }
        Ok(())
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::tally::Tally;
    use clap::Parser;
    use hdrhistogram::Histogram;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        bench: Bench,
    }

    fn report(arguments: &[&str], tally: Tally, health: Result<String, String>) -> Report {
        let line = Line::parse_from(["bench"].iter().chain(arguments));
        let mut times = Histogram::new(3).unwrap();
        for microseconds in 1..=1000 {
            times.record(microseconds * 10).unwrap();
        }
        let measured = Measured {
            tally,
            duration: Duration::from_secs(2),
            times,
        };
        Report::new(&line.bench, 7, measured, health)
    }

    fn good() -> Tally {
        Tally {
            requests: 100,
            sent: 10_000,
            new_events: 7_000,
            received: 10_000,
            accepted: 7_000,
            duplicates: 3_000,
            ..Tally::default()
        }
    }

    fn healthy() -> Result<String, String> {
        Ok("healthy".to_owned())
    }

    /// The names of the checks that failed.
    fn failed(report: &Report) -> Vec<&str> {
        assert_eq!(report.passed(), report.checks.iter().all(|check| check.passed));
        let failed = report.checks.iter().filter(|check| !check.passed);
        failed.map(|check| check.name.as_str()).collect()
    }

    #[test]
    fn a_report_shows_what_was_measured_and_passes() {
        let report = report(&["--events", "10000"], good(), healthy());
        assert_eq!(
            report.to_string(),
            "sent              10,000 events in 100 requests\n\
             accepted          7,000\n\
             duplicates        3,000\n\
             conflicts         0\n\
             errors            0\n\
             duplication rate  30.0 %\n\
             duration          2.00 s\n\
             events/s          5,000\n\
             requests/s        50\n\
             mean response     5.01 ms\n\
             p50 response      5.00 ms\n\
             p95 response      9.50 ms\n\
             p99 response      9.90 ms\n\
             max response      10.01 ms\n\
             seed              7\n\
             \n\
             validation\n\
             \x20 ok    at least 5,000 events received  10,000\n\
             \x20 ok    at least 20.0 % duplicates      30.0 %\n\
             \x20 ok    mean response below 1000 ms     5.01 ms\n\
             \x20 ok    every event sent and answered   0 errors, 10,000 events\n\
             \x20 ok    every answer's counts exact     7,000 accepted, 7,000 unique sent, 0 conflicts, 0 wrong answers\n\
             \x20 ok    healthy after                   healthy\n"
        );
        assert!(report.passed());
    }

    #[test]
    fn each_bound_fails_alone() {
        let arguments = ["--events", "10000"];
        let with = |more: &[&'static str]| {
            let arguments: Vec<&str> = arguments.iter().copied().chain(more.iter().copied()).collect();
            report(&arguments, good(), healthy())
        };
        assert_eq!(
            failed(&with(&["--min-events", "10001"])),
            ["at least 10,001 events received"]
        );
        assert_eq!(
            failed(&with(&["--min-duplicates", "0.31"])),
            ["at least 31.0 % duplicates"]
        );
        assert_eq!(failed(&with(&["--max-mean", "5"])), ["mean response below 5 ms"]);
        assert_eq!(
            failed(&with(&["--max-p99", "9.5"])),
            ["p99 response below 9.5 ms"]
        );
        assert_eq!(
            failed(&with(&["--min-throughput", "5001"])),
            ["at least 5001 events/s"]
        );
        let unhealthy = report(&arguments, good(), Err("disk full".to_owned()));
        assert_eq!(failed(&unhealthy), ["healthy after"]);
    }

    #[test]
    fn one_event_too_many_accepted_fails() {
        let tally = Tally {
            accepted: 7_001,
            duplicates: 2_999,
            ..good()
        };
        let report = report(&["--events", "10000"], tally, healthy());
        assert_eq!(failed(&report), ["every answer's counts exact"]);
    }

    #[test]
    fn events_of_a_seed_may_be_there_already_but_none_is_accepted_twice() {
        let with_accepted = |accepted| {
            let tally = Tally {
                accepted,
                duplicates: 10_000 - accepted,
                ..good()
            };
            report(&["--events", "10000", "--seed", "7"], tally, healthy())
        };
        let repeated = with_accepted(1_000);
        assert_eq!(failed(&repeated), [""; 0]);
        assert!(
            repeated
                .to_string()
                .contains("7,000 unique sent (6,000 there already)")
        );
        assert_eq!(failed(&with_accepted(7_001)), ["every answer's counts exact"]);
    }

    #[test]
    fn an_error_fails_and_is_shown() {
        let tally = Tally {
            errors: 1,
            first_errors: vec!["answered 503: busy".to_owned()],
            ..good()
        };
        let report = report(&["--events", "10000"], tally, healthy());
        assert_eq!(failed(&report), ["every event sent and answered"]);
        assert!(report.to_string().contains("\nerror: answered 503: busy\n"));
    }
}
