//! What a sequence is made of: events with names, times and payloads of which many are equal in one way and not in
//! another, and the calls that are made with them. Every action is possible at any time, so a sequence stays one when
//! actions are left out of it.

use jiff::{SignedDuration, civil::DateTime};
use proptest::{
    collection::vec, option, prelude::any, prop_oneof, sample::Index, sample::select, strategy::Strategy,
};
use serde_json::Value;
use std::fmt::{self, Debug, Formatter};

/// Compared byte by byte: case and Unicode form make another name. Some need escapes in JSON or in a URL.
pub(super) const TOPICS: [&str; 7] = [
    "a",
    "A",
    "order/paid?x=1&y",
    "caf\u{e9}",
    "cafe\u{301}",
    "\"\\\n\u{1f4be}%2F+",
    "..",
];
const SOURCES: [&str; 3] = ["web", "WEB", "a b+c"];
/// Asked for and never sent.
const NOBODY: &str = "nobody";

/// JSON values, each in several spellings that are equal.
const PAYLOADS: &[&[Option<&str>]] = &[
    &[None, Some("{}"), Some(" {\t} ")],
    &[
        Some(r#"{"n":1}"#),
        Some(r#"{ "n" : 1.0 }"#),
        Some(r#"{"\u006e":10e-1}"#),
    ],
    &[Some(r#"{"n":"1"}"#), Some(r#"{"n":"\u0031"}"#)],
    &[
        Some(r#"{"a":[true,null,{"b":0}],"c":"é/"}"#),
        Some(r#"{"c":"\u00e9\/","a":[ true , null,{"b":-0.0}]}"#),
    ],
    &[Some(r#"{"a":[null,true,{"b":0}],"c":"é/"}"#)],
    &[
        Some(r#"{"n":12345678901234567890123}"#),
        Some(r#"{"n":12345678901234567890123.000}"#),
        Some(r#"{"n":1234567890123456789012.3E+1}"#),
    ],
    &[Some(r#"{"n":12345678901234567890124}"#)],
];

/// An event to send, and what of it comes back.
#[derive(Clone)]
pub(super) struct Draft {
    pub(super) topic: String,
    pub(super) event_id: String,
    pub(super) source: String,
    pub(super) time: Time,
    /// As it is sent; none leaves the field out.
    pub(super) payload: Option<String>,
    /// Equal for equal payloads.
    pub(super) value: usize,
}

impl Draft {
    /// Topic and id.
    pub(super) fn identity(&self) -> (String, String) {
        (self.topic.clone(), self.event_id.clone())
    }

    /// Its fields as JSON, in the order in which they are sent.
    fn fields(&self) -> Vec<(&'static str, String)> {
        let text = |text: &str| Value::from(text).to_string();
        let mut fields = vec![
            ("topic", text(&self.topic)),
            ("event_id", text(&self.event_id)),
            ("timestamp", text(&self.time.sent)),
            ("source", text(&self.source)),
        ];
        fields.extend(self.payload.iter().map(|payload| ("payload", payload.clone())));
        fields
    }

    pub(super) fn json(&self) -> String {
        object(&self.fields())
    }
}

fn object(fields: &[(&str, String)]) -> String {
    let fields: Vec<_> = fields
        .iter()
        .map(|(name, value)| format!(r#""{name}":{value}"#))
        .collect();
    format!("{{{}}}", fields.join(","))
}

/// As it is sent, so that a sequence can be read and sent by hand.
impl Debug for Draft {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.json())
    }
}

/// An instant in one of the notations that are taken.
#[derive(Clone)]
pub(super) struct Time {
    pub(super) sent: String,
    /// As it comes back.
    pub(super) kept: String,
    /// Since 1970.
    pub(super) nanos: i128,
}

impl Debug for Time {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.sent.fmt(f)
    }
}

/// Seconds and fractions of a second: the first and the last instant there is, both sides of 1970, a leap day, and
/// neighbours.
const INSTANTS: [(&str, &str); 12] = [
    ("0001-01-01T00:00:00", ""),
    ("1969-12-31T23:59:59", "999999999"),
    ("1970-01-01T00:00:00", ""),
    ("2016-12-31T23:59:59", "9"),
    ("2017-01-01T00:00:00", ""),
    ("2024-02-29T12:30:00", ""),
    ("2025-10-23T10:00:00", ""),
    ("2025-10-23T10:00:00", "000"),
    ("2025-10-23T10:00:00", "000000001"),
    ("2025-10-23T10:00:00", "5"),
    ("2025-10-23T10:00:01", ""),
    ("9999-12-31T23:59:59", "999999999"),
];

impl Time {
    fn new(utc: &str, fraction: &str, notation: usize) -> Self {
        let utc: DateTime = utc.parse().expect("a time");
        let seconds = utc
            .duration_since(DateTime::constant(1970, 1, 1, 0, 0, 0, 0))
            .as_secs();
        let point = if fraction.is_empty() { "" } else { "." };
        // None where the year there has more than four digits, or a sign.
        let local = |minutes: i64, format: &str| {
            let local = utc.checked_add(SignedDuration::from_mins(minutes)).ok()?;
            (local.year() > 0).then(|| local.strftime(format).to_string())
        };
        let kept = format!("{}{point}{fraction}Z", utc.strftime("%Y-%m-%dT%H:%M:%S"));
        let leap_second = seconds > 0 && seconds % 86_400 == 0;
        let sent = match notation {
            1 => kept.to_lowercase(),
            2 => kept.replace('T', " ").replace(['Z'], ""),
            3 => kept.replace('.', ",").replace('Z', "-00:00"),
            4 => local(120, "%Y-%m-%dT%H:%M:%S")
                .map_or(kept.clone(), |time| format!("{time}{point}{fraction}+02:00")),
            5 => local(-570, "%Y%m%dT%H%M%S")
                .map_or(kept.clone(), |time| format!("{time}{point}{fraction}-0930")),
            6 => local(1439, "%Y-%m-%d %H:%M:%S")
                .map_or(kept.clone(), |time| format!("{time}{point}{fraction}+23:59")),
            7 if seconds % 60 == 0 && fraction.is_empty() => utc.strftime("%Y-%m-%dT%H:%MZ").to_string(),
            8 if leap_second => {
                let before = utc - SignedDuration::from_secs(60);
                let second = before.strftime("%Y-%m-%dT%H:%M:60");
                format!("{second}{point}{fraction}Z")
            }
            _ => kept.clone(),
        };
        let digits: i128 = format!("{fraction:0<9}").parse().expect("digits");
        Self {
            sent,
            kept,
            nanos: i128::from(seconds) * 1_000_000_000 + digits,
        }
    }
}

/// Which events a query wants.
#[derive(Clone, Debug, Default)]
pub(super) struct Filter {
    pub(super) topic: Option<&'static str>,
    pub(super) source: Option<&'static str>,
    pub(super) from: Option<Time>,
    pub(super) to: Option<Time>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Ascending,
    Descending,
}

/// Where a query begins that has no cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begin {
    Unsaid,
    Start,
    End,
}

/// How events are put into a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// Only the first of them, as it is.
    Single,
    Array,
    Wrapped,
    /// To `/publish/batch`.
    Batch,
    Lines,
}

impl Shape {
    /// How many of `events` it can hold.
    pub(super) fn fitting<T>(self, events: &[T]) -> &[T] {
        match self {
            Self::Single => &events[..1],
            _ => events,
        }
    }

    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Batch => "/publish/batch",
            _ => "/publish",
        }
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Lines => "application/x-ndjson",
            _ => "application/json",
        }
    }

    pub(super) fn body(self, events: &[String]) -> String {
        match self {
            Self::Single => events[0].clone(),
            Self::Array => format!("[{}]", events.join(",")),
            Self::Wrapped | Self::Batch => format!(r#"{{"events":[{}]}}"#, events.join(",")),
            // Blank lines are skipped, and the last line may end or not.
            Self::Lines => events.join("\n\r\n"),
        }
    }

    /// How an error names the event at `place`.
    pub(super) fn names(self, place: usize) -> String {
        match self {
            Self::Single => String::new(),
            Self::Array | Self::Wrapped | Self::Batch => format!("events[{place}]"),
            Self::Lines => format!("line {}", 2 * place + 1),
        }
    }
}

/// What makes an event invalid.
#[derive(Clone, Copy, Debug)]
pub(super) enum Flaw {
    MissingField,
    UnknownField,
    FieldTwice,
    EmptyName,
    LongName,
    NulInName,
    NameIsNumber,
    WrongDay,
    TimeIsNumber,
    NullPayload,
    ArrayPayload,
    DeepPayload,
    KeyTwice,
    LoneSurrogate,
    NotJson,
}

impl Flaw {
    const ALL: [Self; 15] = [
        Self::MissingField,
        Self::UnknownField,
        Self::FieldTwice,
        Self::EmptyName,
        Self::LongName,
        Self::NulInName,
        Self::NameIsNumber,
        Self::WrongDay,
        Self::TimeIsNumber,
        Self::NullPayload,
        Self::ArrayPayload,
        Self::DeepPayload,
        Self::KeyTwice,
        Self::LoneSurrogate,
        Self::NotJson,
    ];

    /// The event as JSON with this flaw; `which` selects among fields.
    pub(super) fn spoil(self, draft: &Draft, which: Index) -> String {
        let mut fields = draft.fields();
        let name = [0, 1, 3][which.index(3)];
        match self {
            Self::MissingField => {
                fields.remove(which.index(4));
            }
            Self::UnknownField => fields.push(("colour", "\"red\"".to_owned())),
            Self::FieldTwice => fields.push(fields[which.index(fields.len())].clone()),
            Self::EmptyName => fields[name].1 = "\"\"".to_owned(),
            Self::LongName => fields[name].1 = format!("\"{}\"", "é".repeat(256)),
            Self::NulInName => fields[name].1 = r#""a\u0000b""#.to_owned(),
            Self::NameIsNumber => fields[name].1 = "7".to_owned(),
            Self::WrongDay => fields[2].1 = "\"2025-02-29T10:00:00Z\"".to_owned(),
            Self::TimeIsNumber => fields[2].1 = "1761213600".to_owned(),
            Self::NullPayload => set_payload(&mut fields, "null"),
            Self::ArrayPayload => set_payload(&mut fields, "[]"),
            Self::DeepPayload => {
                let deep = format!(r#"{{"a":{}{}}}"#, "[".repeat(64), "]".repeat(64));
                set_payload(&mut fields, &deep);
            }
            Self::KeyTwice => set_payload(&mut fields, r#"{"a":[{"b":1,"\u0062":1}]}"#),
            Self::LoneSurrogate => set_payload(&mut fields, r#"{"a":"\ud800"}"#),
            Self::NotJson => set_payload(&mut fields, "{]"),
        }
        object(&fields)
    }

    pub(super) fn status(self) -> u16 {
        match self {
            Self::NotJson => 400,
            _ => 422,
        }
    }
}

fn set_payload(fields: &mut Vec<(&'static str, String)>, payload: &str) {
    fields.retain(|(name, _)| *name != "payload");
    fields.push(("payload", payload.to_owned()));
}

/// One call or a few that belong together.
#[derive(Clone, Debug)]
pub(super) enum Action {
    Publish {
        shape: Shape,
        results: bool,
        events: Vec<Draft>,
    },
    /// Many events at once, so that there are segments and merges.
    PublishMany {
        first: u32,
        count: u32,
    },
    /// A body with one invalid event in it.
    PublishInvalid {
        shape: Shape,
        events: Vec<Draft>,
        place: Index,
        flaw: Flaw,
        which: Index,
    },
    /// The first page of a query, whose cursor is kept.
    Read {
        filter: Filter,
        order: Option<Order>,
        start: Begin,
        limit: Option<usize>,
    },
    /// The next page of a query whose cursor was kept.
    GoOn {
        which: Index,
        limit: Option<usize>,
        say_order: bool,
        wait: bool,
    },
    /// A query to its end, with events published between its pages.
    ReadAll {
        filter: Filter,
        order: Order,
        limit: usize,
        between: Vec<Draft>,
    },
    /// A query that has read everything and waits until an event is published that it wants.
    Follow {
        event: Draft,
        pause_micros: u64,
    },
    ReadOne {
        topic: &'static str,
        event_id: String,
    },
    Topics {
        limit: usize,
    },
    /// A query that is refused.
    WrongQuery {
        which: Index,
        cursor: Index,
    },
    /// A clean stop and a start.
    Restart,
    /// A kill, and a start.
    Kill,
    /// A kill while a request is under way.
    KillDuring {
        events: Vec<Draft>,
        pause_micros: u64,
    },
}

pub(super) fn actions(count: usize) -> impl Strategy<Value = Vec<Action>> {
    vec(action(), 1..=count)
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        8 => (shape(), any::<bool>(), vec(draft(), 1..12))
            .prop_map(|(shape, results, events)| Action::Publish { shape, results, events }),
        3 => (0..3000_u32, 1..800_u32).prop_map(|(first, count)| Action::PublishMany { first, count }),
        2 => (shape(), vec(draft(), 1..5), any::<Index>(), select(&Flaw::ALL[..]), any::<Index>()).prop_map(
            |(shape, events, place, flaw, which)| Action::PublishInvalid { shape, events, place, flaw, which }
        ),
        4 => (filter(), option::of(order()), start(), option::of(limit()))
            .prop_map(|(filter, order, start, limit)| Action::Read { filter, order, start, limit }),
        6 => (any::<Index>(), option::of(limit()), any::<bool>(), any::<bool>())
            .prop_map(|(which, limit, say_order, wait)| Action::GoOn { which, limit, say_order, wait }),
        2 => (filter(), order(), limit(), vec(draft(), 0..4)).prop_map(
            |(filter, order, limit, between)| Action::ReadAll { filter, order, limit, between }
        ),
        1 => (draft(), 0..3000_u64).prop_map(|(event, pause_micros)| Action::Follow { event, pause_micros }),
        2 => (topic(), event_id()).prop_map(|(topic, event_id)| Action::ReadOne { topic, event_id }),
        1 => limit().prop_map(|limit| Action::Topics { limit }),
        1 => (any::<Index>(), any::<Index>()).prop_map(|(which, cursor)| Action::WrongQuery { which, cursor }),
        1 => select(vec![Action::Restart, Action::Kill]),
        1 => (vec(draft(), 1..200), 0..4000_u64)
            .prop_map(|(events, pause_micros)| Action::KillDuring { events, pause_micros }),
    ]
}

/// Number `number` of those that are sent many at a time.
pub(super) fn one_of_many(number: u32) -> Draft {
    let number = number as usize;
    let (utc, fraction) = INSTANTS[number / 60 % INSTANTS.len()];
    let value = number % PAYLOADS.len();
    Draft {
        topic: TOPICS[number % TOPICS.len()].to_owned(),
        event_id: format!("many-{number}"),
        source: SOURCES[number % SOURCES.len()].to_owned(),
        time: Time::new(utc, fraction, number % 9),
        payload: PAYLOADS[value][0].map(str::to_owned),
        value,
    }
}

fn draft() -> impl Strategy<Value = Draft> {
    let payload = (0..PAYLOADS.len(), any::<Index>());
    (topic(), event_id(), select(&SOURCES[..]), time(), payload).prop_map(
        |(topic, event_id, source, time, (value, spelling))| Draft {
            topic: topic.to_owned(),
            event_id,
            source: source.to_owned(),
            time,
            payload: spelling.get(PAYLOADS[value]).map(str::to_owned),
            value,
        },
    )
}

fn topic() -> impl Strategy<Value = &'static str> {
    select(&TOPICS[..])
}

fn event_id() -> impl Strategy<Value = String> {
    (0..24_u32).prop_map(|number| match number {
        0 => "..".to_owned(),
        1 => "x/y z?%41".to_owned(),
        2 => "\u{1f4be}".repeat(255),
        3 => format!("many-{number}"),
        _ => number.to_string(),
    })
}

fn time() -> impl Strategy<Value = Time> {
    (select(&INSTANTS[..]), 0..9_usize)
        .prop_map(|((utc, fraction), notation)| Time::new(utc, fraction, notation))
}

fn filter() -> impl Strategy<Value = Filter> {
    let topics = [&TOPICS[..], &[NOBODY]].concat();
    let sources = [&SOURCES[..], &[NOBODY]].concat();
    (
        option::of(select(topics)),
        option::weighted(0.3, select(sources)),
        option::weighted(0.3, time()),
        option::weighted(0.3, time()),
    )
        .prop_map(|(topic, source, from, to)| Filter {
            topic,
            source,
            from,
            to,
        })
}

fn order() -> impl Strategy<Value = Order> {
    select(vec![Order::Ascending, Order::Descending])
}

fn start() -> impl Strategy<Value = Begin> {
    prop_oneof![
        4 => proptest::strategy::Just(Begin::Unsaid),
        1 => proptest::strategy::Just(Begin::Start),
        1 => proptest::strategy::Just(Begin::End),
    ]
}

fn limit() -> impl Strategy<Value = usize> {
    prop_oneof![1..=7_usize, 1..=1000_usize]
}

fn shape() -> impl Strategy<Value = Shape> {
    select(vec![
        Shape::Single,
        Shape::Array,
        Shape::Wrapped,
        Shape::Batch,
        Shape::Lines,
    ])
}
