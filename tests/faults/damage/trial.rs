//! One damage: done to copies of a good store, and judged.

use super::store::{Answers, CHUNK, SMALL, Store, Stored, event, time};
use crate::harness::{Answer, Client, Event, Folder, Server, oncelog, run};
use serde::Deserialize;
use serde_json::{Value, value::RawValue};
use std::{
    collections::BTreeMap,
    fmt,
    panic::{self, AssertUnwindSafe},
    process::Output,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Trials that run at once.
const AT_ONCE: usize = 2;
/// How long the index may take to be built anew.
const REPAIR: Duration = Duration::from_secs(30);
/// Events from this number on are in no good store.
const FIRST_NEW: usize = 100_000;
const NEW_EVENTS: usize = 60;

/// A damage, and what is expected of it.
pub(super) struct Trial {
    /// What is done, so that it can be done again.
    pub(super) name: String,
    pub(super) damage: Box<dyn Fn(&Folder) + Send + Sync>,
    /// Nothing can tell this damage from a last commit that was torn by a power cut, so it may be lost.
    pub(super) may_lose_last: bool,
}

impl Trial {
    pub(super) fn new(name: impl Into<String>, damage: impl Fn(&Folder) + Send + Sync + 'static) -> Self {
        Self {
            name: name.into(),
            damage: Box::new(damage),
            may_lose_last: false,
        }
    }

    pub(super) fn may_lose_last(self) -> Self {
        Self {
            may_lose_last: true,
            ..self
        }
    }
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Outcome {
    /// Nobody needs what was damaged: all is as before.
    Harmless,
    /// The server does not start, and says why and what to do.
    Refused,
    /// Reads of what is damaged are errors.
    FoundAtRead,
    /// The server answers everything as before; verify names the damage.
    FoundByVerify,
    /// The server has built anew what was damaged.
    Rebuilt,
    /// As after a torn last commit.
    LastCommitLost,
}

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Harmless => "harmless",
            Self::Refused => "refused at start",
            Self::FoundAtRead => "found at read",
            Self::FoundByVerify => "found by verify",
            Self::Rebuilt => "rebuilt",
            Self::LastCommitLost => "taken for a torn last commit",
        })
    }
}

/// Runs all trials; returns how many had which outcome, or fails with what went wrong.
pub(super) fn run_all(store: &Store, trials: &[Trial]) -> BTreeMap<Outcome, usize> {
    run_each(trials, |trial| judge(store, trial))
}

/// The same with the damage done while the server runs.
pub(super) fn run_in_use(store: &Store, trials: &[Trial]) -> BTreeMap<Outcome, usize> {
    run_each(trials, |trial| judge_in_use(store, trial))
}

fn run_each(trials: &[Trial], judge: impl Fn(&Trial) -> Outcome + Sync) -> BTreeMap<Outcome, usize> {
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(BTreeMap::new());
    let failed = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(trial) = trials.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match panic::catch_unwind(AssertUnwindSafe(|| judge(trial))) {
                        Ok(outcome) => {
                            *outcomes.lock().unwrap().entry(outcome).or_default() += 1;
                        }
                        Err(panic) => {
                            let text = panic.downcast_ref::<String>().map(|what| &**what);
                            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
                            println!("        {}: {}", trial.name, text.unwrap_or_default());
                            failed.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    let failed = failed.into_inner();
    assert_eq!(failed, 0, "{failed} of {} trials failed, see above", trials.len());
    outcomes.into_inner().unwrap()
}

/// `512 flips: 100 harmless, 412 refused at start`.
pub(super) fn figures(outcomes: &BTreeMap<Outcome, usize>) -> String {
    let total: usize = outcomes.values().sum();
    let each: Vec<_> = outcomes
        .iter()
        .map(|(outcome, count)| format!("{count} {outcome}"))
        .collect();
    format!("{total} damages: {}", each.join(", "))
}

fn judge(store: &Store, trial: &Trial) -> Outcome {
    let copy = store.copy();
    (trial.damage)(&copy);
    let sound = verify_finds_nothing(&copy);

    let copy = store.copy();
    (trial.damage)(&copy);
    let server = match Server::try_start_in(copy.clone(), &[SMALL]) {
        Err(refused) => {
            assert_eq!(refused.status.code(), Some(1), "{refused}");
            let last = refused.log.lines().last().unwrap_or_default();
            assert!(names_and_advises(last), "{refused}");
            assert!(
                !sound,
                "verify does not find what the start is refused for: {last}"
            );
            return Outcome::Refused;
        }
        Ok(server) => server,
    };
    let outcome = judge_answers(store, trial, &server, sound);
    end(&server);
    if outcome == Outcome::Rebuilt {
        assert!(
            verify_finds_nothing(&copy),
            "what was built anew is damaged\n{}",
            server.log()
        );
    }
    outcome
}

fn judge_in_use(store: &Store, trial: &Trial) -> Outcome {
    let copy = store.copy();
    let server = Server::start_in(copy.clone(), &[SMALL]);
    let mut check = Check::new(server.client());
    check.reads(&store.now);
    check.sends(&store.now);
    assert!(check.errors.is_empty(), "before the damage: {:?}", check.errors);
    (trial.damage)(&copy);
    check.reads(&store.now);
    check.sends(&store.now);
    let is_index = server.log().contains("an index segment is damaged");
    let whole = check.errors.is_empty() || is_index && check.whole_at_last(&store.now);
    end(&server);
    let sound = verify_finds_nothing(&copy);
    match (whole, is_index) {
        (true, true) => {
            assert!(sound, "what was built anew is damaged\n{}", server.log());
            Outcome::Rebuilt
        }
        (false, _) => {
            assert!(!sound, "verify does not find this: {}", check.errors[0]);
            Outcome::FoundAtRead
        }
        _ if sound => Outcome::Harmless,
        _ => Outcome::FoundByVerify,
    }
}

/// Asks a server to end, which may report that the last checkpoint failed.
fn end(server: &Server) {
    server.terminate();
    let status = server.ended();
    let log = server.log();
    assert!(
        matches!(status.code(), Some(0 | 1)) && !log.contains("panicked"),
        "{status}: {log}"
    );
}

fn judge_answers(store: &Store, trial: &Trial, server: &Server, sound: bool) -> Outcome {
    let mut check = Check::new(server.client());
    let mut expected = &store.now;
    let mut lost = false;
    if trial.may_lose_last
        && let Some(before) = &store.before
        && check.client.counters() == before.counters
    {
        expected = before;
        lost = true;
    }
    check.counters(expected);
    check.reads(expected);
    check.sends(expected);
    let log = server.log();
    assert!(!log.contains("panicked"), "{log}");
    // At the start or since.
    let is_index = log.contains("an index segment");
    match (check.errors.is_empty(), is_index) {
        _ if lost => Outcome::LastCommitLost,
        (_, true) if check.whole_at_last(expected) => {
            assert!(!sound, "verify does not find what was built anew");
            Outcome::Rebuilt
        }
        (false, _) => {
            assert!(!sound, "verify does not find this: {}", check.errors[0]);
            Outcome::FoundAtRead
        }
        _ if sound => Outcome::Harmless,
        _ => Outcome::FoundByVerify,
    }
}

/// What verify says of the store; fails when it does not name the damage.
fn verify_finds_nothing(folder: &Folder) -> bool {
    let Output {
        status,
        stdout,
        stderr,
    } = run(oncelog(folder).arg("verify").arg(folder.database()));
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&stdout),
        String::from_utf8_lossy(&stderr)
    );
    assert!(!said.contains("panicked"), "verify: {said}");
    match status.code() {
        Some(0) => true,
        Some(1) => {
            let failed = said.lines().any(|line| line.starts_with("FAIL"));
            assert!(failed || said.contains("data/dedup.db"), "verify: {said}");
            false
        }
        _ => panic!("verify: {status}: {said}"),
    }
}

/// Whether a message says which file, and what to do.
fn names_and_advises(message: &str) -> bool {
    let advice = [
        "backup",
        "set DATABASE_PATH",
        "Set DATABASE_PATH",
        "heck ",
        "Use that version",
        "Export its events",
        "truncate",
    ];
    message.contains("data/dedup.db") && advice.iter().any(|advice| message.contains(advice))
}

/// Asks a server everything; a wrong answer fails, errors are noted.
struct Check {
    client: Client,
    errors: Vec<String>,
    /// What was accepted meanwhile.
    new: Vec<Event>,
    next: usize,
}

#[derive(Deserialize)]
struct Page {
    events: Vec<Box<RawValue>>,
}

impl Check {
    fn new(client: Client) -> Self {
        Self {
            client,
            errors: Vec::new(),
            new: Vec::new(),
            next: FIRST_NEW,
        }
    }

    /// An answer that is no error; one that is must say what is damaged.
    fn get(&mut self, target: &str) -> Option<Answer> {
        let answer = self.client.get(target);
        self.not_failed(target, answer)
    }

    fn not_failed(&mut self, target: &str, answer: Answer) -> Option<Answer> {
        if answer.status == 200 {
            return Some(answer);
        }
        assert!(
            matches!(answer.status, 500 | 503),
            "{target}: {} {}",
            answer.status,
            answer.text()
        );
        let problem = answer.problem(answer.status);
        let detail = problem["detail"].as_str().unwrap_or_default();
        self.errors.push(format!("{target}: {detail}"));
        None
    }

    /// Every way to read gives what it gave before.
    fn reads(&mut self, expected: &Answers) {
        self.log(expected);
        for topic in ["topic-0", "topic-7", "topic-13"] {
            for order in ["asc", "desc"] {
                let mut wanted: Vec<_> = expected
                    .events
                    .iter()
                    .filter(|stored| stored.event.topic == topic)
                    .collect();
                if order == "desc" {
                    wanted.reverse();
                }
                self.page(
                    &format!("/events?topic={topic}&order={order}&limit=1000"),
                    &wanted,
                );
            }
        }
        let (from, to) = (time(1000), time(1700));
        let wanted: Vec<_> = expected
            .events
            .iter()
            .filter(|stored| (&from..&to).contains(&&stored.event.timestamp))
            .collect();
        self.page(
            &format!("/events?from={from}&to={to}&order=asc&limit=1000"),
            &wanted,
        );
        // All of the times, and none of the events.
        self.page(&format!("/events?from={}&source=nobody&order=asc", time(0)), &[]);
        for stored in expected.events.iter().step_by(97) {
            self.one(stored);
        }
    }

    fn counters(&mut self, expected: &Answers) {
        assert_eq!(self.client.counters(), expected.counters, "the counters");
        let topics = self.client.get("/topics").ok();
        assert_eq!(topics["topics"], expected.topics, "the counters by topic");
    }

    /// The whole log, a page at a time; if a page is an error, each of its events alone.
    fn log(&mut self, expected: &Answers) {
        let chunks = expected.events.chunks(CHUNK).zip(&expected.cursors);
        for (events, cursor) in chunks {
            let wanted: Vec<_> = events.iter().collect();
            if !self.page(
                &format!("/events?order=asc&limit={}{cursor}", wanted.len()),
                &wanted,
            ) {
                for stored in events {
                    self.one(stored);
                }
            }
        }
    }

    fn page(&mut self, target: &str, wanted: &[&Stored]) -> bool {
        let Some(answer) = self.get(target) else {
            return false;
        };
        let page: Page = serde_json::from_slice(&answer.body).unwrap();
        for (found, wanted) in page.events.iter().zip(wanted) {
            assert_eq!(short(found.get()), short(wanted.text.get()), "{target}");
            assert!(
                found.get() == wanted.text.get(),
                "{target}: other bytes far behind"
            );
        }
        assert_eq!(page.events.len(), wanted.len(), "{target}");
        true
    }

    fn one(&mut self, stored: &Stored) {
        let target = format!("/events/{}/{}", stored.event.topic, stored.event.event_id);
        if let Some(answer) = self.get(&target) {
            assert_eq!(short(answer.text()), short(stored.text.get()), "{target}");
            assert!(
                answer.text() == stored.text.get(),
                "{target}: other bytes far behind"
            );
        }
    }

    /// Nothing that is stored is accepted again; what is new is stored, or refused.
    fn sends(&mut self, expected: &Answers) {
        self.sends_again(expected);
        let end = self.next + NEW_EVENTS;
        // Apart from all that is asked for.
        let new = |number| Event {
            topic: "new".to_owned(),
            ..event(number).at("2030-01-01T00:00:00Z")
        };
        let new: Vec<_> = (self.next..end).map(new).collect();
        self.next = end;
        for events in new.chunks(7) {
            if let Some(answer) = self.publish(events) {
                assert_eq!(answer["accepted"], events.len(), "{}", answer["message"]);
                self.new.extend_from_slice(events);
            }
        }
        for event in self.new.clone() {
            let target = format!("/events/{}/{}", event.topic, event.event_id);
            if let Some(answer) = self.get(&target) {
                let found: Value = answer.json();
                let payload: Value = serde_json::from_str(&event.payload).unwrap();
                assert_eq!(found["payload"], payload, "{target}");
                assert_eq!(found["timestamp"], event.timestamp, "{target}");
            }
        }
        // What was damaged may have spread by writing; it must not have become another truth.
        self.log(expected);
    }

    fn sends_again(&mut self, expected: &Answers) {
        for stored in expected.events.chunks(400) {
            let events: Vec<_> = stored.iter().map(|stored| stored.event.clone()).collect();
            if let Some(answer) = self.publish(&events) {
                assert_eq!(answer["accepted"], 0, "{}", answer["message"]);
                assert_eq!(answer["conflicts"], 0, "{}", answer["message"]);
            }
        }
    }

    fn publish(&mut self, events: &[Event]) -> Option<Value> {
        let answer = self.client.post(
            "/publish?results=true",
            "application/json",
            &Event::wrapped(events),
        );
        Some(self.not_failed("/publish", answer)?.ok())
    }

    /// Whether everything is answered in the end.
    fn whole_at_last(&mut self, expected: &Answers) -> bool {
        let deadline = Instant::now() + REPAIR;
        loop {
            self.errors.clear();
            self.log(expected);
            self.sends_again(expected);
            if self.errors.is_empty() {
                return true;
            }
            if Instant::now() > deadline {
                return false;
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
}

fn short(text: &str) -> String {
    text.chars().take(300).collect()
}
