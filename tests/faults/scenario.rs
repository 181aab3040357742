//! What a scenario is, and the runner: a line a scenario, and the sum at the end.

use crate::harness::Network;
use std::{
    cell::Cell,
    fmt::Debug,
    panic::{self, AssertUnwindSafe},
    path::Path,
    process::ExitCode,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// One kind of fault.
pub(crate) struct Scenario {
    /// `group: what is done`.
    pub(crate) name: &'static str,
    /// What the machine must have for it.
    pub(crate) needs: &'static [Need],
    /// Does it, and returns figures for the line (`40 kills, 12345 events acknowledged`); panics when a promise is
    /// broken.
    pub(crate) run: fn() -> String,
}

/// What a machine may lack.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Need {
    /// To mount file systems.
    Root,
    /// To put a file system into a file.
    LoopDevices,
    /// To make networks between namespaces of the kernel.
    NetworkNamespaces,
    /// A program in the search path.
    Program(&'static str),
}

impl Need {
    /// Why it is not met, if so.
    fn missing(self) -> Option<String> {
        let (met, what) = match self {
            Self::Root => (
                rustix::process::geteuid().is_root(),
                "it must be run as root".to_owned(),
            ),
            Self::LoopDevices => (
                Path::new("/dev/loop-control").exists(),
                "the kernel has no loop devices".to_owned(),
            ),
            Self::NetworkNamespaces => (
                Network::is_possible(),
                "network namespaces cannot be made (as root, with Debian's iproute2)".to_owned(),
            ),
            Self::Program(name) => (
                std::env::var_os("PATH").is_some_and(|path| {
                    std::env::split_paths(&path).any(|folder| folder.join(name).is_file())
                }),
                format!("{name} is not installed"),
            ),
        };
        (!met).then_some(what)
    }
}

enum Verdict {
    Passed(String),
    Failed,
    Skipped(String),
}

/// Runs the scenarios that the command line names.
pub(crate) fn run(groups: &[&[Scenario]]) -> ExitCode {
    let arguments = Arguments::parse();
    let wanted = groups
        .iter()
        .copied()
        .flatten()
        .filter(|scenario| arguments.wants(scenario.name));
    if arguments.list {
        for scenario in wanted {
            println!("{}", scenario.name);
        }
        return ExitCode::SUCCESS;
    }
    remember_panics();
    let require_all = std::env::var_os("REQUIRE_ALL").is_some_and(|value| value == "1");
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    let started = Instant::now();
    for scenario in wanted {
        let began = Instant::now();
        let verdict = match scenario.needs.iter().find_map(|need| need.missing()) {
            Some(missing) if require_all => {
                println!("REQUIRE_ALL=1: {missing}");
                Verdict::Failed
            }
            Some(missing) => Verdict::Skipped(missing),
            None => match panic::catch_unwind(AssertUnwindSafe(scenario.run)) {
                Ok(figures) => Verdict::Passed(figures),
                Err(_) => Verdict::Failed,
            },
        };
        let (word, text) = match verdict {
            Verdict::Passed(figures) => {
                passed += 1;
                ("ok     ", figures)
            }
            Verdict::Failed => {
                failed += 1;
                ("FAILED ", take_panics())
            }
            Verdict::Skipped(missing) => {
                skipped += 1;
                ("skipped", missing)
            }
        };
        println!("{word} {} ({}): {text}", scenario.name, seconds(began.elapsed()));
    }
    println!(
        "{passed} passed, {failed} failed, {skipped} skipped, in {}",
        seconds(started.elapsed())
    );
    if passed + failed + skipped == 0 {
        println!("no scenario has such a name; --list names them all");
        return ExitCode::from(2);
    }
    ExitCode::from(u8::from(failed > 0))
}

/// Runs each of many small cases, some at a time, and returns what came of them in no particular order. When one fails,
/// its name is in the message.
pub(crate) fn side_by_side<C: Debug + Send, T: Send>(
    at_a_time: usize,
    cases: impl IntoIterator<Item = C, IntoIter: Send>,
    run: impl Fn(&C) -> T + Sync,
) -> Vec<T> {
    let cases = Mutex::new(cases.into_iter());
    let work = || {
        let mut results = Vec::new();
        loop {
            let Some(case) = cases.lock().unwrap_or_else(PoisonError::into_inner).next() else {
                return results;
            };
            match panic::catch_unwind(AssertUnwindSafe(|| run(&case))) {
                Ok(result) => results.push(result),
                Err(_) => panic!("that was in the case {case:?}"),
            }
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..at_a_time).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .flat_map(|worker| worker.join().expect("the cases pass"))
            .collect()
    })
}

fn seconds(duration: Duration) -> String {
    format!("{:.0} s", duration.as_secs_f64())
}

/// How long the overload is to last when it is a soak.
pub(crate) fn soak() -> Option<Duration> {
    Arguments::parse().soak
}

#[derive(Default)]
struct Arguments {
    list: bool,
    soak: Option<Duration>,
    names: Vec<String>,
}

impl Arguments {
    fn parse() -> Self {
        let mut parsed = Self::default();
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--list" => parsed.list = true,
                "--soak" => {
                    let minutes = arguments.next().and_then(|minutes| minutes.parse().ok());
                    parsed.soak = Some(Duration::from_mins(minutes.expect("--soak MINUTES")));
                }
                name => parsed.names.push(name.to_owned()),
            }
        }
        parsed
    }

    fn wants(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|part| name.contains(part.as_str()))
    }
}

/// The first panics of the scenario: those of its threads, too.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

thread_local! {
    /// Whether a panic of this thread is what a scenario wants to see.
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// With which message `check` fails, if it does, for controls that show that it can.
pub(crate) fn failure_of(check: impl FnOnce()) -> Option<String> {
    EXPECTED.set(true);
    let failed = panic::catch_unwind(AssertUnwindSafe(check)).err();
    EXPECTED.set(false);
    failed.map(|message| {
        message
            .downcast::<String>()
            .map_or_else(|_| String::new(), |message| *message)
    })
}

fn remember_panics() {
    panic::set_hook(Box::new(|panic| {
        if EXPECTED.get() {
            return;
        }
        let mut panics = PANICS.lock().unwrap_or_else(PoisonError::into_inner);
        if panics.len() < 3 {
            panics.push(panic.to_string());
        }
    }));
}

fn take_panics() -> String {
    let panics = std::mem::take(&mut *PANICS.lock().unwrap_or_else(PoisonError::into_inner));
    panics.join("\n")
}
