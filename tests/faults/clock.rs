//! A clock that is set back and forth by days while the server runs and between its runs. Order follows `seq` and never
//! the clock; what is measured (uptime, waits, timeouts) does not follow it either.

use crate::{
    harness::{Client, Event, Folder, Load, Moment, Oracle, Server, eventually, read_all, shell, verify},
    kill::{SMALL, under_load},
    scenario::{Need, Scenario},
};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use std::{
    fs,
    process::Command,
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "clock: set by days under load and between runs",
        needs: &[Need::Program("faketime")],
        run: under_load_and_between_runs,
    },
    Scenario {
        name: "clock: set by days while clients wait",
        needs: &[Need::Program("faketime")],
        run: while_clients_wait,
    },
];

const RUNS: i64 = 4;
/// Where the clock stands one after the other, in days from the run's own time.
const DAYS: [i64; 8] = [3, -2, 0, 40, -400, 1, -1, 0];
/// Between two runs, the time of the run goes on by so many days.
const DAYS_A_RUN: i64 = 1000;
/// A day, in seconds.
const DAY: i64 = 86_400;

/// The wall clock of a server, by libfaketime. The monotonic clock is left alone, as it is when a clock is set.
struct Clock {
    folder: Folder,
    library: String,
    /// By how many seconds it is wrong.
    offset: Mutex<i64>,
    /// Process ids.
    servers: Mutex<Vec<u32>>,
}

impl Clock {
    fn new() -> Self {
        // Where the library is depends on the machine; the program knows.
        let environment = shell(Command::new("faketime").args(["-m", "-f", "+0d", "env"]));
        let library = environment
            .lines()
            .find_map(|line| line.strip_prefix("LD_PRELOAD="))
            .expect("faketime sets LD_PRELOAD");
        let clock = Self {
            folder: Folder::new(),
            library: library.to_owned(),
            offset: Mutex::new(0),
            servers: Mutex::default(),
        };
        clock.set(0);
        clock
    }

    /// Starts a server by this clock, and checks that it goes by it.
    fn start(&self, folder: &Folder) -> Server {
        let offset = self.folder.path().join("offset");
        let server = Server::start_in(
            folder.clone(),
            &[
                SMALL,
                ("LD_PRELOAD", &self.library),
                ("FAKETIME_TIMESTAMP_FILE", offset.to_str().unwrap()),
                ("FAKETIME_NO_CACHE", "1"),
                ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ],
        );
        self.servers.lock().unwrap().push(server.process());
        let health = server.client().get("/health").ok();
        self.is_right(&health["timestamp"]);
        server
    }

    /// Sets it wrong by so many seconds.
    fn set(&self, offset: i64) {
        let mut now = self.offset.lock().unwrap();
        let unfinished = self.folder.path().join("next");
        fs::write(&unfinished, format!("{offset:+}")).unwrap();
        fs::rename(unfinished, self.folder.path().join("offset")).unwrap();
        *now = offset;
    }

    fn now(&self) -> Timestamp {
        Timestamp::now() + SignedDuration::from_secs(*self.offset.lock().unwrap())
    }

    /// Checks that a time of the server was taken from this clock just now.
    #[track_caller]
    fn is_right(&self, time: &Value) {
        let wrong_by = self.now().duration_since(timestamp(time)).abs();
        assert!(
            wrong_by < SignedDuration::from_mins(2),
            "{time} is wrong by {wrong_by:#}, the clock by {} s",
            self.offset.lock().unwrap()
        );
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        for process in self.servers.get_mut().unwrap() {
            for name in ["faketime_shm", "sem.faketime_sem"] {
                // There only after a server that was killed.
                let _ = fs::remove_file(format!("/dev/shm/{name}_{process}"));
            }
        }
    }
}

fn timestamp(time: &Value) -> Timestamp {
    time.as_str().unwrap().parse().unwrap()
}

fn under_load_and_between_runs() -> String {
    let clock = Clock::new();
    let oracle = Oracle::default();
    let folder = Folder::new();
    let mut jumps = 0;
    for run in 0..RUNS {
        // Each second run begins in the past of the one before.
        clock.set(if run % 2 == 0 {
            run * DAYS_A_RUN * DAY
        } else {
            -DAYS_A_RUN * DAY
        });
        let before = Instant::now();
        let server = clock.start(&folder);
        let after = Instant::now();
        oracle.check(&mut server.client(), Moment::LAST);
        let load = Load::new(run as u64);
        under_load(&server, &oracle, &load, || {
            for days in DAYS {
                clock.set((run * DAYS_A_RUN + days) * DAY);
                let answers = oracle.answers();
                eventually("requests are acknowledged", || {
                    (oracle.answers() > answers + 30).then_some(())
                });
                let mut client = server.client();
                clock.is_right(&client.get("/health").ok()["timestamp"]);
                uptime_is_right(&mut client, before, after);
                jumps += 1;
            }
        });
        let mut client = server.client();
        oracle.check(&mut client, Moment::LAST);
        processed_at_is_right(&mut client, &oracle, &clock, (run + 1) * DAYS_A_RUN - 1);
        jumps += 2;
        if run % 2 == 0 {
            server.stop();
        } else {
            server.kill9();
        }
    }
    clock.set(0);
    let server = clock.start(&folder);
    let checked = oracle.check_all(&mut server.client());
    never_goes_back(&mut server.client());
    server.stop();
    verify(&folder);
    format!(
        "{jumps} jumps in {RUNS} runs, {} events acknowledged",
        checked.acknowledged
    )
}

fn uptime_is_right(client: &mut Client, before_start: Instant, after_start: Instant) {
    let least = after_start.elapsed();
    let stats = client.get("/stats").ok();
    let most = before_start.elapsed();
    let uptime = Duration::from_secs(stats["uptime_seconds"].as_u64().expect("uptime_seconds"));
    assert!(
        least < uptime + Duration::from_secs(1) && uptime <= most,
        "{stats}, {most:?} after the start"
    );
    let human = stats["uptime_human"].as_str().expect("uptime_human");
    assert!(human.starts_with("0h 0m "), "{stats}");
}

/// It is the clock's time where that is later than all before, and otherwise that of the newest event.
fn processed_at_is_right(client: &mut Client, oracle: &Oracle, clock: &Clock, latest_days: i64) {
    let mut publish = |name: &str| {
        let id = format!("{latest_days}-{name}");
        let answer = oracle.publish(client, &[Event::new("clock", &id)]);
        answer.expect("an answer").ok();
        client.get(&format!("/events/clock/{id}")).ok()["processed_at"].clone()
    };
    clock.set(latest_days * DAY);
    let ahead = publish("ahead");
    clock.is_right(&ahead);
    clock.set(-latest_days * DAY);
    assert_eq!(publish("back"), ahead);
    never_goes_back(client);
}

fn never_goes_back(client: &mut Client) {
    let events = read_all(client, "order=asc&limit=1000&");
    let times: Vec<_> = events
        .iter()
        .map(|event| timestamp(&event["processed_at"]))
        .collect();
    assert!(times.is_sorted(), "processed_at goes back");
    let topics = client.get("/topics?limit=1000").ok();
    for topic in topics["topics"].as_array().expect("topics") {
        for seen in ["first", "last"] {
            let seq = topic[format!("{seen}_seq")].as_u64().expect("a seq");
            assert_eq!(
                timestamp(&topic[format!("{seen}_processed_at")]),
                times[seq as usize - 1],
                "{topic}"
            );
        }
    }
}

fn while_clients_wait() -> String {
    const WAIT: Duration = Duration::from_secs(2);
    let clock = Clock::new();
    let folder = Folder::new();
    let server = clock.start(&folder);
    let mut idle = server.client();
    idle.get("/livez").ok();
    let mut publisher = server.client();
    let events = [Event::new("t", "1"), Event::new("t", "2")];
    let body = Event::array(&events);
    let head = format!(
        "POST /publish HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    publisher
        .send_raw(&[head.as_bytes(), &body[..9]].concat())
        .unwrap();
    let ask = |wait: Duration| {
        let target = format!("/events?order=asc&topic=t&wait={}", wait.as_secs());
        let asked = Instant::now();
        let page = server.client().get(&target).ok();
        (page["count"].clone(), asked.elapsed())
    };
    let mut jumps = 0;
    let mut jump = |days: i64| {
        // So that those who ask have begun to wait; if not, less is tested and nothing fails.
        thread::sleep(Duration::from_millis(200));
        clock.set(days * DAY);
        clock.is_right(&server.client().get("/health").ok()["timestamp"]);
        jumps += 1;
    };
    for days in [5, -5, 0] {
        let (count, took) = thread::scope(|scope| {
            let asking = scope.spawn(|| ask(WAIT));
            jump(days);
            asking.join().unwrap()
        });
        assert_eq!(count, 0);
        assert!(took >= WAIT, "it was answered after {took:?}");
        assert!(took < 10 * WAIT, "it was answered after {took:?}");
    }
    // An event that is stored after a jump back wakes who waits; the half request was not taken to be too slow.
    let (count, took) = thread::scope(|scope| {
        let asking = scope.spawn(|| ask(15 * WAIT));
        jump(-300);
        publisher.send_raw(&body[9..]).unwrap();
        assert_eq!(publisher.receive().unwrap().ok()["accepted"], 2);
        asking.join().unwrap()
    });
    assert_eq!(count, 2);
    assert!(took < 15 * WAIT, "it was answered after {took:?}");
    jump(300);
    // Its connection has not been closed for having been idle for a year.
    assert_eq!(idle.get("/stats").ok()["received"], 2);
    // Nor is a stop cut short, or held up.
    server.stop();
    verify(&folder);
    format!("{jumps} jumps, 4 waits")
}
