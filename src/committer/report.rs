//! Log lines about dropped duplicates and conflicts, a few a second, with a line that counts those left out.
//!
//! A third of all events being duplicates is an ordinary day; the log must tell of it without drowning in it.

use crate::{
    event::{Event, Outcome},
    ingest::Submission,
    limits::OUTCOME_LOG_LINES_PER_SECOND,
    request::Context,
    store::{BatchOutcome, Placed},
};
use std::time::{Duration, Instant};

const WINDOW: Duration = Duration::from_secs(1);

/// What was written and left out in the current second.
#[derive(Default)]
pub(super) struct OutcomeReport {
    since: Option<Instant>,
    duplicates: Lines,
    conflicts: Lines,
}

#[derive(Default)]
struct Lines {
    written: u32,
    left_out: u64,
}

impl Lines {
    /// Whether one more line may be written; counts it either way.
    fn admit(&mut self) -> bool {
        if self.written < OUTCOME_LOG_LINES_PER_SECOND {
            self.written += 1;
            return true;
        }
        self.left_out += 1;
        false
    }
}

impl OutcomeReport {
    /// Writes lines for the duplicates and conflicts of a commit, each with the id of its request.
    pub(super) fn note(&mut self, submissions: &[Submission], outcomes: &[BatchOutcome]) {
        if self.since.is_some_and(|since| since.elapsed() >= WINDOW) {
            self.flush();
        }
        for (submission, outcome) in submissions.iter().zip(outcomes) {
            let BatchOutcome::Committed(placed) = outcome else {
                continue;
            };
            for (event, placed) in submission.batch.events().zip(placed) {
                self.note_event(&event, placed, submission.request.as_ref());
            }
        }
    }

    /// How long until lines that were left out should be counted in a line of their own; `None` if there are none.
    pub(super) fn pending(&self) -> Option<Duration> {
        let left_out = self.duplicates.left_out + self.conflicts.left_out > 0;
        self.since
            .filter(|_| left_out)
            .map(|since| WINDOW.saturating_sub(since.elapsed()))
    }

    /// Counts what was left out in a line and begins a new second.
    pub(super) fn flush(&mut self) {
        if self.duplicates.left_out > 0 {
            tracing::warn!(
                "Duplicates dropped: {} more, not listed",
                self.duplicates.left_out
            );
        }
        if self.conflicts.left_out > 0 {
            tracing::warn!("Conflicts: {} more, not listed", self.conflicts.left_out);
        }
        *self = Self::default();
    }

    fn note_event(&mut self, event: &Event<'_>, placed: &Placed, request: Option<&Context>) {
        let lines = match placed.outcome {
            Outcome::Stored => return,
            Outcome::Duplicate => &mut self.duplicates,
            Outcome::Conflict => &mut self.conflicts,
        };
        if lines.admit() {
            match request {
                Some(request) => request.clone().within(|| write(event, placed)),
                None => write(event, placed),
            }
        }
        self.since.get_or_insert_with(Instant::now);
    }
}

fn write(event: &Event<'_>, placed: &Placed) {
    let Event {
        topic,
        event_id,
        source,
        ..
    } = *event;
    let first_seq = placed.seq;
    match placed.outcome {
        Outcome::Conflict => tracing::warn!(
            topic,
            event_id,
            source,
            first_seq,
            "Conflict: another payload for an event that is stored; the first one stays"
        ),
        _ => tracing::warn!(topic, event_id, source, first_seq, "Duplicate dropped"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_lines_are_written_and_the_rest_is_counted() {
        let mut lines = Lines::default();
        let written = (0..1000).filter(|_| lines.admit()).count();
        assert_eq!(written as u32, OUTCOME_LOG_LINES_PER_SECOND);
        assert_eq!(lines.left_out, 1000 - u64::from(OUTCOME_LOG_LINES_PER_SECOND));
    }

    #[test]
    fn what_was_left_out_is_told_within_a_second_also_without_traffic() {
        let mut report = OutcomeReport::default();
        assert_eq!(report.pending(), None);
        report.since = Some(Instant::now());
        assert_eq!(report.pending(), None, "nothing was left out");
        report.duplicates.left_out = 1;
        assert!(report.pending().is_some_and(|wait| wait <= WINDOW));
        report.flush();
        assert_eq!(report.pending(), None);
    }
}
