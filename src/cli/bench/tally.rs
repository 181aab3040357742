//! Counts what the server answered, and keeps what must hold between the counts.

use super::{connection::Answer, workload::Request};
use serde::Deserialize;

/// Different errors that are shown.
const SHOWN_ERRORS: usize = 5;

/// Counts over many requests.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Requests sent.
    pub(super) requests: u64,
    /// Requests that were not answered with 200.
    pub(super) errors: u64,
    /// Events sent.
    pub(super) sent: u64,
    /// Events sent that were new, by the workload's own account.
    pub(super) new_events: u64,
    /// Events that the server says it received.
    pub(super) received: u64,
    /// Events that the server says it stored.
    pub(super) accepted: u64,
    /// Events that the server says it dropped.
    pub(super) duplicates: u64,
    /// Events that the server says were conflicts.
    pub(super) conflicts: u64,
    /// Answers whose counts do not add up.
    pub(super) wrong_answers: u64,
    /// The first few different errors.
    pub(super) first_errors: Vec<String>,
}

/// What an answer to a publish counts.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Answered {
    received: u64,
    accepted: u64,
    duplicates: u64,
    #[serde(default)]
    conflicts: u64,
}

impl Answered {
    pub(super) fn read(answer: &Answer<'_>) -> Result<Self, String> {
        if answer.status != 200 {
            let body = String::from_utf8_lossy(answer.body);
            return Err(format!("answered {}: {}", answer.status, body.trim()));
        }
        serde_json::from_slice(answer.body)
            .map_err(|error| format!("an answer that is not oncelog's: {error}"))
    }
}

impl Tally {
    pub(super) fn count(&mut self, request: &Request, answered: Result<Answered, String>) {
        self.requests += 1;
        self.sent += request.events;
        self.new_events += request.new_events;
        match answered {
            Ok(answered) => {
                let adds_up = answered.received == request.events
                    && answered.received == answered.accepted + answered.duplicates
                    && answered.conflicts <= answered.duplicates;
                self.wrong_answers += u64::from(!adds_up);
                self.received += answered.received;
                self.accepted += answered.accepted;
                self.duplicates += answered.duplicates;
                self.conflicts += answered.conflicts;
            }
            Err(error) => {
                self.errors += 1;
                self.note(error);
            }
        }
    }

    /// Keeps an error's text, if it is among the first few different ones.
    pub(super) fn note(&mut self, error: String) {
        if self.first_errors.len() < SHOWN_ERRORS && !self.first_errors.contains(&error) {
            self.first_errors.push(error);
        }
    }

    pub(super) fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.errors += other.errors;
        self.sent += other.sent;
        self.new_events += other.new_events;
        self.received += other.received;
        self.accepted += other.accepted;
        self.duplicates += other.duplicates;
        self.conflicts += other.conflicts;
        self.wrong_answers += other.wrong_answers;
        for error in other.first_errors {
            self.note(error);
        }
    }

    /// The share of the received events that were duplicates.
    pub(super) fn duplication_rate(&self) -> f64 {
        match self.received {
            0 => 0.0,
            received => self.duplicates as f64 / received as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(events: u64, new_events: u64) -> Request {
        Request {
            bytes: Vec::new(),
            events,
            new_events,
        }
    }

    fn answered(status: u16, body: &str) -> Result<Answered, String> {
        Answered::read(&Answer {
            status,
            body: body.as_bytes(),
            closes: false,
        })
    }

    #[test]
    fn an_answer_whose_counts_do_not_add_up_is_noticed() {
        let mut tally = Tally::default();
        tally.count(
            &request(3, 2),
            answered(200, r#"{"received":3,"accepted":2,"duplicates":1}"#),
        );
        assert_eq!((tally.wrong_answers, tally.accepted, tally.new_events), (0, 2, 2));
        tally.count(
            &request(3, 2),
            answered(200, r#"{"received":3,"accepted":3,"duplicates":1}"#),
        );
        tally.count(
            &request(3, 2),
            answered(200, r#"{"received":2,"accepted":2,"duplicates":0}"#),
        );
        assert_eq!(tally.wrong_answers, 2);
    }

    #[test]
    fn an_error_counts_as_sent_but_not_as_received() {
        let mut tally = Tally::default();
        for _ in 0..3 {
            tally.count(&request(5, 5), answered(503, "busy"));
        }
        assert_eq!(
            (tally.requests, tally.errors, tally.sent, tally.received),
            (3, 3, 15, 0)
        );
        assert_eq!(tally.first_errors, ["answered 503: busy"]);
    }
}
