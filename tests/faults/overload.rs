//! Overload and abuse, against the real program with the bounds that it has in the field: its memory stays under a stated
//! bound, whoever behaves is served, whoever is refused is told so, and afterwards everything is as it should be.
//!
//! While clients do what they should not, two do as they should (`polite`). With `--soak MINUTES`, ten times the load goes
//! on for so long, with each abuse beside it in turn, and nothing may grow.

mod abuse;
mod crowd;
mod flood;
mod polite;
mod process;
mod wire;

use crate::{
    harness::{Checked, Event, Folder, Oracle, Server, eventually, verify},
    scenario::{Scenario, soak},
};
use abuse::{Abuse, Tally, Times};
use crowd::Crowd;
use flood::Flood;
use oncelog::limits;
use polite::Polite;
use process::Process;
use std::{
    sync::atomic::Ordering::Relaxed,
    thread,
    time::{Duration, Instant},
};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "overload: ten times more than it can take, for a minute or a soak",
        needs: &[],
        run: ten_times_more,
    },
    Scenario {
        name: "overload: slow clients of every kind are cut off in time",
        needs: &[],
        run: slow_clients,
    },
    Scenario {
        name: "overload: slow readers that come back",
        needs: &[],
        run: slow_readers,
    },
    Scenario {
        name: "overload: idle connections and half heads beyond all places",
        needs: &[],
        run: beyond_all_places,
    },
    Scenario {
        name: "overload: slow, endless, wrong and many of the largest bodies",
        needs: &[],
        run: bad_bodies,
    },
    Scenario {
        name: "overload: floods of heads, pipelined requests and searches",
        needs: &[],
        run: floods,
    },
];

/// The most memory that the program may take beside its connections: bodies and what is made of them (four times
/// `MAX_IN_FLIGHT_BODY_BYTES`), answers (`MAX_IN_FLIGHT_ANSWER_BYTES`), eight queries with their rows and the answer that
/// is being made (28 MiB each), and 320 MiB for the store, its index, its caches and the threads.
const MEMORY_BYTES: u64 = 1 << 30;
/// And for each connection: 12 KiB while it is idle, and at most four read buffers, for a head or body that is being read
/// and for answers that wait to be written.
const CONNECTION_BYTES: u64 = (12 << 10) + 4 * limits::READ_BUFFER_BYTES as u64;
/// The issue's bound: how soon after the load the server is healthy.
const HEALTHY_AFTER: Duration = Duration::from_secs(1);
const OVERLOAD: Duration = Duration::from_secs(60);
/// Clients of the overload, and those that measure what the server can take.
const FLOOD_CLIENTS: usize = 400;
const MEASURING_CLIENTS: usize = 16;
const MEASURE: Duration = Duration::from_secs(4);
const TIMES_MORE: f64 = 10.0;
/// How long the abuses last that need no timeout.
const ABUSE: Duration = Duration::from_secs(12);
/// How long a soak keeps to one abuse, and how often it looks at the memory.
const SOAK_TURN: Duration = Duration::from_secs(20);
const SOAK_LOOK: Duration = Duration::from_secs(1);
/// Nothing that the server waits for lasts longer than 30 s. Generous, for a machine with other work.
const CUT_OFF_AFTER: Duration = Duration::from_secs(60);
/// Descriptors that come and go with the store's background work.
const OTHER_DESCRIPTORS: usize = 64;

/// A server under load, and the clients that it has to serve.
struct Ground {
    server: Server,
    process: Process,
    oracle: Oracle,
    polite: Polite,
    /// Connections that there may be at once.
    connections: usize,
}

impl Ground {
    /// A server with some megabytes to read, and so many connections at the most.
    fn new(connections: usize) -> Self {
        let server = Server::start();
        let oracle = Oracle::default();
        let mut client = server.client();
        // Names that take six bytes a character in an answer, and payloads of 5 KiB: a page has 8 MiB.
        let long = "\u{1}".repeat(255);
        for batch in 0..10 {
            let events: Vec<_> = (0..200)
                .map(|number| {
                    Event::new(&long, &format!("{}{batch}-{number}", "\u{1}".repeat(240)))
                        .with_source(&long)
                        .with_payload(&format!(r#"{{"text":"{}"}}"#, "y".repeat(5_000)))
                })
                .collect();
            let answer = oracle.publish(&mut client, &events).expect("an answer");
            assert_eq!(answer.status, 200, "{answer:?}");
        }
        Self {
            process: Process::of(&server),
            server,
            oracle,
            polite: Polite::default(),
            connections,
        }
    }

    /// Serves the polite clients while `meanwhile` runs.
    fn serve_while<T>(&self, meanwhile: impl FnOnce() -> T) -> T {
        let address = self.server.address();
        thread::scope(|scope| {
            scope.spawn(|| self.polite.ask(address, &self.oracle));
            scope.spawn(|| self.polite.produce(address, &self.oracle));
            // Also when it fails, or the scope would wait for ever.
            let _stop = Stop(&self.polite);
            meanwhile()
        })
    }

    /// Does all this at once for a while, and until all that is named has been seen: how soon that is depends on what else
    /// the machine does.
    fn abuse(&self, abuses: &[(Abuse, usize)], time: Duration, to_see: &[ToSee]) -> String {
        let mut crowd = Crowd::new();
        let tallies: Vec<_> = abuses
            .iter()
            .map(|(abuse, clients)| {
                abuse::add(&mut crowd, self.server.address(), *abuse, *clients, Times::Again)
            })
            .collect();
        self.serve_while(|| {
            thread::sleep(time);
            for (what, is_seen) in to_see {
                eventually(what, || is_seen(&tallies).then_some(()));
            }
            crowd.stop();
            self.healthy_soon();
        });
        let figures: Vec<_> = abuses
            .iter()
            .zip(&tallies)
            .map(|((abuse, clients), tally)| format!("{clients} {abuse:?} ({tally})"))
            .collect();
        figures.join(", ")
    }

    /// The load has just ended.
    fn healthy_soon(&self) -> Duration {
        let ended = Instant::now();
        eventually("the server is healthy", || {
            let answer = self.server.client().attempt("GET", "/health", &[], b"").ok()?;
            (answer.status == 200).then_some(())
        });
        let took = ended.elapsed();
        assert!(took < HEALTHY_AFTER, "healthy only after {took:?}");
        took
    }

    fn memory_bound(&self) -> u64 {
        MEMORY_BYTES + self.connections as u64 * CONNECTION_BYTES
    }

    /// Checks everything, and tells of it.
    fn end(self) -> String {
        let counts = self.polite.counts();
        assert!(
            counts.served > 5 * counts.refused,
            "who behaves is served: {counts:?}\n{}",
            self.server.log()
        );
        let (peak, bound) = (self.process.peak_bytes(), self.memory_bound());
        assert!(peak < bound, "{peak} bytes of memory, {bound} at most");
        let Checked {
            stored, acknowledged, ..
        } = self.oracle.check_all(&mut self.server.client());
        let folder: Folder = self.server.folder().clone();
        self.server.stop();
        verify(&folder);
        format!(
            "polite {} of {} served in {:.1} s at most, peak {} MiB of {} MiB, {acknowledged} events acknowledged, \
             {stored} stored",
            counts.served,
            counts.served + counts.refused,
            counts.slowest.as_secs_f64(),
            peak >> 20,
            bound >> 20,
        )
    }
}

/// What clients that abuse the server have to see, and whether they have.
type ToSee = (&'static str, fn(&[Tally]) -> bool);

/// Stops the polite clients when it is dropped.
struct Stop<'a>(&'a Polite);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

fn ten_times_more() -> String {
    let ground = Ground::new(FLOOD_CLIENTS + 1_100);
    let address = ground.server.address();
    let flood = Flood::prepare();
    // All of them once, so that what is measured is what follows.
    flood.capacity(address, MEASURING_CLIENTS, MEASURE);
    let capacity = flood.capacity(address, MEASURING_CLIENTS, MEASURE);
    let rate = TIMES_MORE * capacity;
    let counts = || {
        let counts = flood.counts();
        [&counts.sent, &counts.held_up, &counts.served, &counts.refused].map(|count| count.load(Relaxed))
    };
    let before = counts();
    let began = Instant::now();
    let (healthy, soaked) = ground.serve_while(|| {
        let mut crowd = Crowd::new();
        flood.begin(&mut crowd, address, FLOOD_CLIENTS, rate);
        let soaked = match soak() {
            None => {
                thread::sleep(OVERLOAD);
                String::new()
            }
            Some(time) => soak_for(&ground, time),
        };
        crowd.stop();
        (ground.healthy_soon(), soaked)
    });
    let seconds = began.elapsed().as_secs_f64();
    flood.settle(&ground.oracle);
    let [sent, held_up, served, refused] = std::array::from_fn(|count| counts()[count] - before[count]);
    assert!(
        (sent + held_up) as f64 > 0.9 * rate * seconds,
        "{sent} and {held_up} requests in {seconds:.0} s were not {rate:.0} a second"
    );
    assert!(
        refused > 0,
        "nothing was refused, so it was no overload: {sent} sent, {held_up} held up, {served} served in {seconds:.0} s"
    );
    assert!(
        served as f64 > capacity * seconds / 10.0,
        "{served} of the flood's requests in {seconds:.0} s were served, and the server can take {capacity:.0} a second"
    );
    format!(
        "it takes {capacity:.0} requests/s; {rate:.0}/s offered for {seconds:.0} s: {sent} sent, {held_up} held up, \
         {served} served, {refused} refused; healthy after {} ms;{soaked} {}",
        healthy.as_millis(),
        ground.end()
    )
}

/// All abuses in turn, beside the flood. Memory and descriptors may not grow.
fn soak_for(ground: &Ground, time: Duration) -> String {
    use Abuse::*;
    let turns: &[(Abuse, usize)] = &[
        (Idle, 1_000),
        (SlowHead, 1_000),
        (SlowLargeHead, 1_000),
        (SlowBody, 1_000),
        (SlowLargeBody, 200),
        (EndlessBody, 20),
        (HugeBody, 50),
        (TooLarge, 20),
        (WrongLength, 20),
        (Compressed, 20),
        (CompressedPages, 20),
        (SlowReader, 200),
        (SlowDownload, 200),
        (LargeHeads, 20),
        (Pipeline, 100),
        (Search, 50),
    ];
    let began = Instant::now();
    let (mut memory, mut descriptors) = (Vec::new(), Vec::new());
    for (abuse, clients) in turns.iter().cycle() {
        if began.elapsed() > time {
            break;
        }
        let mut crowd = Crowd::new();
        abuse::add(
            &mut crowd,
            ground.server.address(),
            *abuse,
            *clients,
            Times::Again,
        );
        let turn = Instant::now();
        while turn.elapsed() < SOAK_TURN.min(time / (2 * turns.len() as u32)) {
            thread::sleep(SOAK_LOOK);
            memory.push(ground.process.bytes());
        }
        crowd.stop();
        // Those of the abuse are closed at once, or after the second in which an answer may still be read.
        descriptors.push(eventually("connections are closed", || {
            let now = ground.process.descriptors();
            (now < 2 * FLOOD_CLIENTS + OTHER_DESCRIPTORS).then_some(now)
        }));
    }
    let peak = |quarter: usize| {
        let quarter = &memory[quarter * memory.len() / 4..(quarter + 1) * memory.len() / 4];
        *quarter.iter().max().expect("the memory was looked at")
    };
    let (second, last) = (peak(1), peak(3));
    assert!(
        last < second + second / 4 + (64 << 20),
        "memory grows: {second} bytes at most in the second quarter, {last} in the last"
    );
    format!(
        " soaked for {} s, {} turns: {} MiB at most in the second quarter, {} MiB in the last, {} descriptors at the end;",
        began.elapsed().as_secs(),
        descriptors.len(),
        second >> 20,
        last >> 20,
        descriptors.last().expect("there was a turn")
    )
}

fn slow_clients() -> String {
    use Abuse::*;
    let abuses = [
        (Idle, 500),
        (SlowHead, 500),
        (SlowLargeHead, 500),
        (SlowBody, 500),
        (SlowLargeBody, 10),
        (SlowReader, 5),
        (SlowDownload, 200),
    ];
    let ground = Ground::new(abuses.iter().map(|(_, clients)| clients).sum());
    let before = ground.process.descriptors();
    let mut crowd = Crowd::new();
    let tallies = abuses.map(|(abuse, clients)| {
        (
            abuse,
            abuse::add(&mut crowd, ground.server.address(), abuse, clients, Times::Once),
        )
    });
    let (most, took) = ground.serve_while(|| {
        let began = Instant::now();
        let mut most = 0;
        eventually("slow clients are cut off", || {
            let now = ground.process.descriptors();
            most = most.max(now);
            (began.elapsed() > limits::HEADER_READ_TIMEOUT && now < before + OTHER_DESCRIPTORS).then_some(())
        });
        (most - before, began.elapsed())
    });
    crowd.stop();
    assert!(took < CUT_OFF_AFTER, "cut off only after {took:?}");
    let bodies: u64 = tallies.iter().map(|(_, tally)| tally.answers(408)).sum();
    assert!(bodies > 0, "a slow body is told so");
    format!(
        "{most} slow clients, all gone after {:.0} s, {bodies} of them with a 408; {}",
        took.as_secs_f64(),
        ground.end()
    )
}

fn slow_readers() -> String {
    let ground = Ground::new(600);
    let figures = ground.abuse(&[(Abuse::SlowReader, 500)], ABUSE, &[]);
    format!("{figures}; {}", ground.end())
}

fn beyond_all_places() -> String {
    let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let places = descriptors
        .maximum
        .map_or(usize::MAX, |limit| limit as usize - limits::DESCRIPTOR_RESERVE)
        .min(limits::MAX_CONNECTIONS);
    let ground = Ground::new(places);
    let beyond = 300;
    let figures = ground.abuse(
        &[(Abuse::Idle, places - 500 + beyond), (Abuse::SlowHead, 500)],
        ABUSE,
        &[("idle connections make room for others", |seen| {
            seen.iter().map(Tally::closed).sum::<u64>() > 0
        })],
    );
    format!("{figures} with {places} places; {}", ground.end())
}

fn bad_bodies() -> String {
    use Abuse::*;
    let abuses = [
        (SlowBody, 3_000),
        (SlowLargeBody, 300),
        (EndlessBody, 30),
        (HugeBody, 200),
        (TooLarge, 20),
        (WrongLength, 20),
        (Compressed, 20),
    ];
    let ground = Ground::new(abuses.iter().map(|(_, clients)| clients).sum());
    // In the order of the abuses.
    let to_see: &[ToSee] = &[
        ("slow bodies have to leave", |seen| {
            seen[0].answers(503) + seen[1].answers(503) > 0
        }),
        ("bodies without end are refused", |seen| {
            seen[2].answers(413) + seen[2].answers(503) > 0
        }),
        ("some of the largest bodies are read to their end", |seen| {
            seen[3].answers(400) > 0
        }),
        ("too large bodies are refused", |seen| seen[4].answers(413) > 0),
        ("events without their fields are refused", |seen| {
            seen[5].answers(422) > 0
        }),
        ("bodies that become too large are refused", |seen| {
            seen[6].answers(413) > 0
        }),
        ("bodies that become the largest are read", |seen| {
            seen[6].answers(400) > 0
        }),
    ];
    let figures = ground.abuse(&abuses, 2 * ABUSE, to_see);
    format!("{figures}; {}", ground.end())
}

fn floods() -> String {
    use Abuse::*;
    let abuses = [
        (LargeHeads, 30),
        (Pipeline, 500),
        (Search, 100),
        (CompressedPages, 50),
    ];
    let ground = Ground::new(abuses.iter().map(|(_, clients)| clients).sum());
    let figures = ground.abuse(
        &abuses,
        ABUSE,
        &[
            ("large heads are refused", |seen| seen[0].answers(431) > 0),
            ("pages come compressed", |seen| seen[3].answers(200) > 0),
        ],
    );
    format!("{figures}; {}", ground.end())
}
