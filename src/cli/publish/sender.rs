//! One connection of `publish`: takes batches until there are none, and each batch until it is settled.

use super::{
    Summary,
    lines::{Line, Lines},
};
use crate::{
    cli::{Failure, output::printable},
    client::{Answer, Backoff, Client, ClientError, Content, is_passing},
    compression::Coding,
};
use bytes::Bytes;
use hyper::StatusCode;
use indicatif::ProgressBar;
use serde::Deserialize;
use std::{
    sync::{
        Arc, Mutex as BlockingMutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep},
};

/// Failures in a row after which a person is told that the server is busy.
const TOLD_AFTER_FAILURES: u32 = 5;
/// The problem of an event that is in order but would make one topic more than the server's store may hold.
const TOO_MANY_TOPICS: &str = "too-many-topics";

/// The problem of a request with more events than the server, or the key's limit, takes at once.
const TOO_MANY_EVENTS: &str = "too-many-events";

/// What all connections share.
pub(super) struct Shared {
    lines: Mutex<Lines>,
    pub(super) summary: BlockingMutex<Summary>,
    progress: ProgressBar,
    input_name: String,
    /// How long a request is sent again before all is given up; for ever when there is none.
    give_up_after: Option<Duration>,
    /// What requests are compressed with.
    coding: Option<Coding>,
    /// Whether a person was told that the server does not take requests.
    told_of_trouble: AtomicBool,
    /// Events that the server takes in one request, as far as is known.
    most_events: AtomicUsize,
}

impl Shared {
    pub(super) fn new(
        lines: Lines,
        progress: ProgressBar,
        input_name: String,
        give_up_after: Option<Duration>,
        coding: Option<Coding>,
    ) -> Self {
        Self {
            lines: Mutex::new(lines),
            summary: BlockingMutex::default(),
            progress,
            input_name,
            give_up_after,
            coding,
            told_of_trouble: AtomicBool::new(false),
            most_events: AtomicUsize::new(usize::MAX),
        }
    }

    fn tell(&self, message: &str) {
        self.progress.suspend(|| eprintln!("{}", printable(message)));
    }

    fn count(&self, change: impl FnOnce(&mut Summary)) {
        change(&mut self.summary.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn report_bad(&self, line: u64, problem: &str) {
        self.tell(&format!("{}, line {line}: {problem}", self.input_name));
        self.count(|summary| summary.bad_lines += 1);
    }
}

/// One connection.
pub(super) struct Sender {
    client: Client,
    shared: Arc<Shared>,
}

/// A line that is worth sending.
type Sendable = (u64, String);

/// What the server said about a batch.
enum Settled {
    Acknowledged(Acknowledged),
    /// At least one of its events is not valid, or it is too large; nothing of it is stored.
    Refused(String),
    /// The server's store is full in a way that no other line is to blame for.
    AtItsLimit(String),
}

/// The counts of an acknowledged batch.
#[derive(Deserialize)]
struct Acknowledged {
    received: u64,
    accepted: u64,
    duplicates: u64,
    #[serde(default)]
    conflicts: u64,
}

impl Sender {
    pub(super) fn new(client: Client, shared: Arc<Shared>) -> Self {
        Self { client, shared }
    }

    pub(super) async fn run(mut self) -> Result<(), Failure> {
        loop {
            let batch = self.shared.lines.lock().await.next_batch().await;
            let batch = batch.map_err(|error| {
                Failure::Failed(format!("cannot read {}: {error}", self.shared.input_name))
            })?;
            let Some(batch) = batch else { return Ok(()) };
            self.settle(batch).await?;
        }
    }

    /// Sends the lines until each is acknowledged or reported. A batch with a bad line is refused whole, so it is sent
    /// again in parts without that line.
    async fn settle(&mut self, batch: Vec<Line>) -> Result<(), Failure> {
        let mut lines = Vec::with_capacity(batch.len());
        for line in batch {
            match line.text {
                Ok(text) => lines.push((line.number, text)),
                Err(problem) => self.shared.report_bad(line.number, &problem),
            }
        }
        let mut parts = vec![lines];
        while let Some(mut part) = parts.pop() {
            if part.is_empty() {
                continue;
            }
            let most = self.shared.most_events.load(Ordering::Relaxed);
            if part.len() > most {
                parts.push(part.split_off(most));
            }
            match self.deliver(&part).await? {
                Settled::Acknowledged(counts) => self.shared.count(|summary| {
                    summary.sent += counts.received;
                    summary.accepted += counts.accepted;
                    summary.duplicates += counts.duplicates;
                    summary.conflicts += counts.conflicts;
                }),
                Settled::Refused(problem) => {
                    let (bad, rest) = set_aside(part, &problem);
                    if let Some((number, problem)) = bad {
                        self.shared.report_bad(number, &problem);
                    }
                    // The last one is taken first: the order of the lines is kept.
                    parts.extend(rest.into_iter().rev());
                }
                Settled::AtItsLimit(problem) => return Err(self.at_its_limit(&part, &problem)),
            }
        }
        Ok(())
    }

    /// Sends one request again and again until the server settles it.
    async fn deliver(&mut self, lines: &[Sendable]) -> Result<Settled, Failure> {
        let body = encoded(body(lines), self.shared.coding)?;
        let mut backoff = Backoff::default();
        let begin = Instant::now();
        loop {
            let answer = self.client.post("/publish", body.clone()).await;
            let (problem, retry_after) = match answer {
                Ok(answer) if is_passing(answer.status) => (
                    format!("{}: {}", answer.status, answer.traceable()),
                    answer.retry_after,
                ),
                Ok(answer) => {
                    if self.shared.told_of_trouble.swap(false, Ordering::Relaxed) {
                        self.shared.tell("the server takes events again");
                    }
                    return Ok(self.read(&answer, lines)?);
                }
                Err(error) if error.is_passing() => {
                    self.tell_if_unreachable(&error);
                    (error.to_string(), None)
                }
                Err(error) => return Err(error.into()),
            };
            let wait = backoff.next_wait(retry_after);
            if let Some(limit) = self.shared.give_up_after
                && begin.elapsed() + wait >= limit
            {
                return Err(Failure::Failed(format!(
                    "{}. Given up after {} s; what was acknowledged is stored, and the same again sends the rest",
                    printable(&problem),
                    limit.as_secs_f64()
                )));
            }
            if backoff.failures() == TOLD_AFTER_FAILURES {
                self.tell_of_trouble(&problem);
            }
            self.shared.count(|summary| summary.retries += 1);
            sleep(wait).await;
        }
    }

    fn at_its_limit(&self, part: &[Sendable], problem: &str) -> Failure {
        let input = &self.shared.input_name;
        let (place, problem) = match named_event(problem) {
            Some((index, problem)) => match part.get(index) {
                Some((number, _)) => (format!("{input}, line {number}"), problem),
                None => (input.clone(), problem),
            },
            None => (input.clone(), problem),
        };
        Failure::Failed(format!(
            "{place}: {}. The line is in order; this is a limit of the server, so nothing more is sent. What was \
             acknowledged is stored",
            printable(problem)
        ))
    }

    fn read(&self, answer: &Answer, lines: &[Sendable]) -> Result<Settled, ClientError> {
        match answer.status {
            StatusCode::UNPROCESSABLE_ENTITY if answer.problem_name().as_deref() == Some(TOO_MANY_TOPICS) => {
                Ok(Settled::AtItsLimit(answer.detail()))
            }
            StatusCode::PAYLOAD_TOO_LARGE if answer.problem_name().as_deref() == Some(TOO_MANY_EVENTS) => {
                // It is sent again in two halves, as all that come later had better be.
                let half = lines.len().div_ceil(2);
                self.shared.most_events.fetch_min(half, Ordering::Relaxed);
                Ok(Settled::Refused(answer.detail()))
            }
            StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE | StatusCode::UNPROCESSABLE_ENTITY => {
                Ok(Settled::Refused(answer.detail()))
            }
            _ => self.client.read(answer).map(Settled::Acknowledged),
        }
    }

    /// A wrong address should show at once, not after some time of waiting.
    fn tell_if_unreachable(&self, error: &ClientError) {
        if matches!(error, ClientError::Unreachable { .. }) {
            self.tell_of_trouble(&error.to_string());
        }
    }

    fn tell_of_trouble(&self, problem: &str) {
        if !self.shared.told_of_trouble.swap(true, Ordering::Relaxed) {
            self.shared
                .tell(&format!("{problem}; trying again until it works"));
        }
    }
}

fn body(lines: &[Sendable]) -> Bytes {
    let bytes: usize = lines.iter().map(|(_, text)| text.len() + 1).sum();
    let mut body = String::with_capacity(bytes + 16);
    body.push_str("{\"events\":[");
    for (index, (_, text)) in lines.iter().enumerate() {
        if index > 0 {
            body.push(',');
        }
        body.push_str(text);
    }
    body.push_str("]}");
    body.into()
}

fn encoded(bytes: Bytes, coding: Option<Coding>) -> Result<Content, Failure> {
    let Some(coding) = coding else {
        return Ok(Content::json(bytes, None));
    };
    let encoded = coding.encode(&bytes).map_err(|error| {
        Failure::Failed(format!(
            "cannot compress a request with {}: {error}",
            coding.name()
        ))
    })?;
    Ok(Content::json(encoded, Some(coding)))
}

/// Takes a refused batch apart: the bad line, if it is known which one that is, and the parts to be sent again. What
/// stands behind a bad line is halved, so that many bad lines do not make one large request each.
fn set_aside(mut lines: Vec<Sendable>, problem: &str) -> (Option<(u64, String)>, Vec<Vec<Sendable>>) {
    let named = named_event(problem).filter(|(index, _)| *index < lines.len());
    let (index, problem) = match named {
        Some((index, problem)) => (index, problem),
        None if lines.len() == 1 => (0, problem),
        None => {
            let behind = lines.split_off(lines.len() / 2);
            return (None, vec![lines, behind]);
        }
    };
    let mut behind = lines.split_off(index + 1);
    let bad = lines.pop().map(|(number, _)| (number, problem.to_owned()));
    let last = behind.split_off(behind.len() / 2);
    (bad, vec![lines, behind, last])
}

/// The index in a problem such as `events[3].timestamp: not a date`, and what is said about that event.
fn named_event(problem: &str) -> Option<(usize, &str)> {
    let (_, behind) = problem.split_once("events[")?;
    let (index, text) = behind.split_once(']')?;
    let text = text.trim_start_matches(['.', ':', ' ']);
    Some((index.parse().ok()?, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(count: u64) -> Vec<Sendable> {
        (1..=count).map(|number| (number, "{}".to_owned())).collect()
    }

    fn numbers(parts: Vec<Vec<Sendable>>) -> Vec<Vec<u64>> {
        parts
            .into_iter()
            .map(|part| part.into_iter().map(|(number, _)| number).collect())
            .collect()
    }

    #[test]
    fn a_problem_names_its_event() {
        assert_eq!(
            named_event("events[12].timestamp: not a date"),
            Some((12, "timestamp: not a date"))
        );
        assert_eq!(
            named_event("events[0]: not an object"),
            Some((0, "not an object"))
        );
        assert_eq!(named_event("the body is too large"), None);
    }

    #[test]
    fn the_bad_line_is_set_aside_and_all_others_are_sent_again() {
        let (bad, parts) = set_aside(lines(7), "events[2].topic: missing");
        assert_eq!(bad, Some((3, "topic: missing".to_owned())));
        assert_eq!(numbers(parts), [vec![1, 2], vec![4, 5], vec![6, 7]]);
    }

    #[test]
    fn a_refusal_that_names_no_line_halves_the_batch_down_to_one() {
        let (bad, parts) = set_aside(lines(3), "too large");
        assert_eq!(bad, None);
        assert_eq!(numbers(parts), [vec![1], vec![2, 3]]);
        let (bad, parts) = set_aside(lines(1), "too large");
        assert_eq!(bad, Some((1, "too large".to_owned())));
        assert!(parts.iter().all(Vec::is_empty));
        let (bad, _) = set_aside(lines(2), "events[9].topic: missing");
        assert_eq!(bad, None);
    }

    #[test]
    fn a_body_is_a_list_of_the_lines_as_they_are() {
        let lines = [(1, "{\"a\": 1}".to_owned()), (2, "{}".to_owned())];
        assert_eq!(body(&lines), "{\"events\":[{\"a\": 1},{}]}");
    }
}
