//! The body of a publish request becomes a [`Batch`], in one pass over its bytes.
//!
//! Nothing is copied but what has to change: the texts of the events are places in the body, and what an escape, an
//! offset or a left-out payload stands for is appended behind it. The body is checked by our own scanner, which knows
//! the place of everything wrong; only then `serde_json` is asked whether the body is JSON at all, which decides between
//! [`NotJson`](ParseErrorKind::NotJson) and [`Invalid`](ParseErrorKind::Invalid).
//!
//! Places: `events[3].timestamp` in an array, wrapped or not; `timestamp` in a body that is one event;
//! `line 3: timestamp` in NDJSON, counted from 1, blank lines too; `body` when it has the wrong shape as a whole. A
//! field that is missing, unknown or there twice is the place itself.

use super::{
    Batch, Identity, Record, Span, Timestamp,
    fingerprint::Fingerprinter,
    json::{Fault, RawString, Scanner, unescape},
};
use crate::limits::{MAX_BODY_BYTES, MAX_EVENT_BYTES, MAX_NAME_CHARS};
use serde::de::IgnoredAny;
use std::fmt;

/// What a body may look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One event `{…}`, an array of events, or `{"events":[…]}`.
    Any,
    /// `{"events":[…]}` only.
    Wrapped,
    /// NDJSON: one event a line, blank lines are skipped.
    Lines,
    /// An array of events that were valid before, written by [`Event::write_json`](super::Event::write_json). One that
    /// was as large as it may be may have grown by what normalising adds.
    Normalised,
}

impl Shape {
    /// The largest event, in bytes.
    fn max_event_bytes(self) -> usize {
        match self {
            Self::Any | Self::Wrapped | Self::Lines => MAX_EVENT_BYTES,
            Self::Normalised => MAX_EVENT_BYTES + NORMALISING_BYTES,
        }
    }
}

/// More than normalising adds to an event: the digits of a time and `"payload":{}`.
const NORMALISING_BYTES: usize = 64;

/// Why a body was refused; nothing of it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// Which kind of wrong.
    pub kind: ParseErrorKind,
    /// Where, such as `events[3].timestamp`; empty when that is no more than the body.
    pub place: String,
    /// What is wrong there, and what is allowed.
    pub message: String,
}

/// The kinds of wrong bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParseErrorKind {
    /// It is not JSON in UTF-8.
    NotJson,
    /// It is JSON, but not one or more valid events.
    Invalid,
    /// It has more events than a request may have.
    TooManyEvents,
}

/// Reads the events of a body.
///
/// `max_events` is the most that a request may have; reading stops where one more begins. The keys of the events are
/// made with `identity`, so the batch is good for that store only. A body beyond [`MAX_BODY_BYTES`], which should not
/// have been read, is refused.
pub fn parse(
    body: Vec<u8>,
    shape: Shape,
    identity: &Identity,
    max_events: usize,
) -> Result<Batch, ParseError> {
    if body.len() > MAX_BODY_BYTES {
        return Err(invalid_body(format!(
            "has {} bytes; at most {MAX_BODY_BYTES} are allowed",
            body.len()
        )));
    }
    let mut text = String::from_utf8(body).map_err(|error| ParseError {
        kind: ParseErrorKind::NotJson,
        place: String::new(),
        message: format!(
            "not JSON: invalid UTF-8 at byte {}",
            error.utf8_error().valid_up_to()
        ),
    })?;
    // RFC 8259 lets a reader skip a byte order mark, and editors write one unasked.
    let start = if text.starts_with(BYTE_ORDER_MARK) {
        BYTE_ORDER_MARK.len_utf8()
    } else {
        0
    };
    let mut parser = Parser {
        text: &text,
        start,
        identity,
        max_events,
        max_event_bytes: shape.max_event_bytes(),
        records: Vec::with_capacity(max_events.min(text.len() / USUAL_EVENT_BYTES + 1)),
        added: String::new(),
        no_payload: None,
        fingerprinter: Fingerprinter::default(),
        unescaped: String::new(),
    };
    match shape {
        Shape::Any | Shape::Wrapped | Shape::Normalised => parser.document(shape).map_err(|fault| {
            explain(fault, &text[start..], max_events, |error| {
                format!(" at line {} column {}", error.line(), error.column())
            })
        }),
        Shape::Lines => parser.lines(),
    }?;
    let Parser { records, added, .. } = parser;
    if records.is_empty() {
        return Err(invalid_body(NO_EVENTS.to_owned()));
    }
    text.push_str(&added);
    Ok(Batch {
        text,
        records,
        fence: None,
    })
}

const BYTE_ORDER_MARK: char = '\u{feff}';

/// For sizing the list of events.
const USUAL_EVENT_BYTES: usize = 256;

/// The fields of an event; an event's spans are kept in this order.
const FIELDS: [&str; 5] = ["topic", "event_id", "timestamp", "source", "payload"];
const TOPIC: usize = 0;
const EVENT_ID: usize = 1;
const TIMESTAMP: usize = 2;
const SOURCE: usize = 3;
const PAYLOAD: usize = 4;

const NO_EVENTS: &str = "must have at least one event";
const DUPLICATE_FIELD: &str = "duplicate field";

struct Parser<'a> {
    text: &'a str,
    /// Where the JSON begins in `text`.
    start: usize,
    identity: &'a Identity,
    max_events: usize,
    max_event_bytes: usize,
    records: Vec<Record>,
    /// What goes behind `text` in the batch.
    added: String,
    /// The `{}` in `added` that all events without a payload share.
    no_payload: Option<(Span, super::Fingerprint)>,
    fingerprinter: Fingerprinter,
    unescaped: String,
}

impl<'a> Parser<'a> {
    /// A body that is one JSON value.
    fn document(&mut self, shape: Shape) -> Result<(), Fault> {
        let scanner = &mut Scanner::new(self.text, self.start);
        match scanner.peek() {
            Some(b'{') if shape != Shape::Normalised => {
                let start = scanner.at();
                scanner.expect(b'{')?;
                let wrapped = scanner.peek() == Some(b'"') && self.is_events(&scanner.key()?)?;
                if wrapped {
                    self.wrapper(scanner)?;
                } else if shape == Shape::Wrapped {
                    *scanner = Scanner::new(self.text, start);
                    return Err(not_wrapped(scanner));
                } else {
                    *scanner = Scanner::new(self.text, start);
                    self.event(scanner)?;
                }
            }
            Some(b'[') if shape != Shape::Wrapped => self.array(scanner)?,
            _ if shape == Shape::Any => {
                let shapes = "an event, an array of events or `{\"events\":[…]}`";
                return Err(scanner.mismatch(shapes).inside("body"));
            }
            _ if shape == Shape::Normalised => {
                return Err(scanner.mismatch("an array of events").inside("body"));
            }
            _ => return Err(not_wrapped(scanner)),
        }
        scanner.finish()
    }

    /// What follows the key of `{"events":…`.
    fn wrapper(&mut self, scanner: &mut Scanner<'a>) -> Result<(), Fault> {
        if scanner.peek() != Some(b'[') {
            return Err(scanner.mismatch("an array of events").inside("events"));
        }
        self.array(scanner)?;
        if self.records.is_empty() {
            return Err(Fault::invalid(NO_EVENTS).inside("events"));
        }
        if !scanner.next_item(b'}', false)? {
            return Ok(());
        }
        let key = scanner.key()?;
        Err(if self.is_events(&key)? {
            Fault::invalid(DUPLICATE_FIELD).inside("events")
        } else {
            Fault::invalid("unknown field; beside `events` no other is allowed").inside_key(key.raw)
        })
    }

    fn is_events(&mut self, key: &RawString<'_>) -> Result<bool, Fault> {
        Ok(plain(key, &mut self.unescaped)? == "events")
    }

    fn array(&mut self, scanner: &mut Scanner<'a>) -> Result<(), Fault> {
        scanner.expect(b'[')?;
        while scanner.next_item(b']', self.records.is_empty())? {
            self.event(scanner)
                .map_err(|fault| fault.inside(&format!("events[{}]", self.records.len())))?;
        }
        Ok(())
    }

    /// A body of one event a line.
    fn lines(&mut self) -> Result<(), ParseError> {
        let mut start = self.start;
        for (number, line) in self.text[start..].split('\n').enumerate() {
            let end = start + line.len();
            // Positions in the line are positions in the whole text.
            let mut scanner = Scanner::new(&self.text[..end], start);
            if scanner.peek().is_some() {
                let read = self.event(&mut scanner).and_then(|()| scanner.finish());
                read.map_err(|fault| {
                    let mut error = explain(fault, line, self.max_events, |error| {
                        format!(" at column {}", error.column())
                    });
                    if error.kind != ParseErrorKind::TooManyEvents {
                        let joint = if error.place.is_empty() { "" } else { ": " };
                        error.place = format!("line {}{joint}{}", number + 1, error.place);
                    }
                    error
                })?;
            }
            start = end + 1;
        }
        Ok(())
    }

    /// One event; the next of the batch.
    fn event(&mut self, scanner: &mut Scanner<'a>) -> Result<(), Fault> {
        if scanner.peek() != Some(b'{') {
            return Err(scanner.mismatch("an event (an object)"));
        }
        if self.records.len() == self.max_events {
            return Err(Fault::TooManyEvents);
        }
        let start = scanner.at();
        scanner.expect(b'{')?;
        let mut spans: [Option<Span>; FIELDS.len()] = [None; FIELDS.len()];
        let mut seconds = 0;
        let mut payload = None;
        let mut first = true;
        while scanner.next_item(b'}', first)? {
            first = false;
            let key = scanner.key()?;
            let field = self.field(&key)?;
            if spans[field].is_some() {
                return Err(Fault::invalid(DUPLICATE_FIELD).inside(FIELDS[field]));
            }
            let value = match field {
                TIMESTAMP => self.timestamp(scanner).map(|(span, at)| {
                    seconds = at;
                    span
                }),
                PAYLOAD => self.payload(scanner).map(|(span, fingerprint)| {
                    payload = Some((span, fingerprint));
                    span
                }),
                _ => self.name(scanner),
            };
            spans[field] = Some(value.map_err(|fault| fault.inside(FIELDS[field]))?);
        }
        let bytes = scanner.at() - start;
        if bytes > self.max_event_bytes {
            return Err(Fault::invalid(format!(
                "the event has {bytes} bytes; at most {} are allowed",
                self.max_event_bytes
            )));
        }
        let required =
            |field: usize| spans[field].ok_or_else(|| Fault::invalid("missing field").inside(FIELDS[field]));
        let (topic, event_id) = (required(TOPIC)?, required(EVENT_ID)?);
        let (timestamp, source) = (required(TIMESTAMP)?, required(SOURCE)?);
        let (payload, fingerprint) = match payload {
            Some(payload) => payload,
            None => self.no_payload()?,
        };
        let key = self.identity.key(self.slice(topic), self.slice(event_id));
        self.records.push(Record {
            topic,
            event_id,
            source,
            timestamp,
            payload,
            key,
            fingerprint,
            seconds,
        });
        Ok(())
    }

    /// Which field a key names.
    #[inline]
    fn field(&mut self, key: &RawString<'_>) -> Result<usize, Fault> {
        let name = plain(key, &mut self.unescaped)?;
        FIELDS.iter().position(|field| *field == name).ok_or_else(|| {
            Fault::invalid(format!("unknown field; an event has `{}`", FIELDS.join("`, `")))
                .inside_key(key.raw)
        })
    }

    /// A topic, event id or source.
    #[inline]
    fn name(&mut self, scanner: &mut Scanner<'a>) -> Result<Span, Fault> {
        if scanner.peek() != Some(b'"') {
            return Err(scanner.mismatch("a string"));
        }
        let string = scanner.string()?;
        let name = plain(&string, &mut self.unescaped)?;
        if name.is_empty() {
            return Err(Fault::invalid("must not be empty"));
        }
        // Characters need not be counted when there are not even so many bytes.
        if name.len() > MAX_NAME_CHARS {
            let chars = name.chars().count();
            if chars > MAX_NAME_CHARS {
                return Err(Fault::invalid(format!(
                    "must have at most {MAX_NAME_CHARS} characters, not {chars}"
                )));
            }
        }
        if !string.escaped {
            return Ok(raw_span(&string));
        }
        if name.contains('\0') {
            return Err(Fault::invalid("must not contain U+0000"));
        }
        Ok(append(self.text, &mut self.added, name))
    }

    /// A time: where its text in UTC is, and its seconds.
    #[inline]
    fn timestamp(&mut self, scanner: &mut Scanner<'a>) -> Result<(Span, i64), Fault> {
        if scanner.peek() != Some(b'"') {
            return Err(scanner.mismatch("a string with an ISO 8601 date-time"));
        }
        let string = scanner.string()?;
        let sent = plain(&string, &mut self.unescaped)?;
        let timestamp = Timestamp::parse(sent).map_err(|error| Fault::invalid(error.to_string()))?;
        let span = if timestamp.text == string.raw {
            raw_span(&string)
        } else {
            append(self.text, &mut self.added, &timestamp.text)
        };
        Ok((span, timestamp.instant.seconds))
    }

    #[inline]
    fn payload(&mut self, scanner: &mut Scanner<'a>) -> Result<(Span, super::Fingerprint), Fault> {
        // White space before it does not belong to it.
        scanner.peek();
        let start = scanner.at();
        let fingerprint = self.fingerprinter.payload(scanner)?;
        Ok((Span::new(start, scanner.at()), fingerprint))
    }

    fn no_payload(&mut self) -> Result<(Span, super::Fingerprint), Fault> {
        if let Some(known) = self.no_payload {
            return Ok(known);
        }
        let fingerprint = self.fingerprinter.payload(&mut Scanner::new("{}", 0))?;
        let span = append(self.text, &mut self.added, "{}");
        Ok(*self.no_payload.insert((span, fingerprint)))
    }

    fn slice(&self, span: Span) -> &str {
        let (start, end) = (span.start as usize, span.end as usize);
        match start.checked_sub(self.text.len()) {
            None => &self.text[start..end],
            Some(start) => &self.added[start..end - self.text.len()],
        }
    }
}

/// What a string stands for; `buffer` holds it when it has escapes.
#[inline]
fn plain<'b>(string: &RawString<'b>, buffer: &'b mut String) -> Result<&'b str, Fault> {
    if !string.escaped {
        return Ok(string.raw);
    }
    buffer.clear();
    unescape(string.raw, buffer)?;
    Ok(buffer)
}

fn raw_span(string: &RawString<'_>) -> Span {
    Span::new(string.start, string.start + string.raw.len())
}

/// Appends to what goes behind `text`.
fn append(text: &str, added: &mut String, value: &str) -> Span {
    let start = text.len() + added.len();
    added.push_str(value);
    Span::new(start, start + value.len())
}

fn not_wrapped(scanner: &mut Scanner<'_>) -> Fault {
    let fault = if scanner.peek() == Some(b'{') {
        Fault::invalid("must be `{\"events\":[…]}`, but its first field is not `events`")
    } else {
        scanner.mismatch("`{\"events\":[…]}`")
    };
    fault.inside("body")
}

fn invalid_body(message: String) -> ParseError {
    ParseError {
        kind: ParseErrorKind::Invalid,
        place: "body".to_owned(),
        message,
    }
}

/// What to tell the sender of `json`, in which the scanner found a fault.
fn explain(
    fault: Fault,
    json: &str,
    max_events: usize,
    position: impl Fn(&serde_json::Error) -> String,
) -> ParseError {
    if let Fault::TooManyEvents = fault {
        return ParseError {
            kind: ParseErrorKind::TooManyEvents,
            place: String::new(),
            message: format!("more than {max_events} events; a request may have at most that many"),
        };
    }
    let not_json = |message: String| ParseError {
        kind: ParseErrorKind::NotJson,
        place: String::new(),
        message: format!("not JSON: {message}"),
    };
    if json.trim_matches([' ', '\n', '\r', '\t']).is_empty() {
        return not_json("the body is empty".to_owned());
    }
    if let Err(error) = serde_json::from_str::<IgnoredAny>(json) {
        let text = error.to_string();
        let reason = text.split(" at line ").next().unwrap_or_default();
        return not_json(format!("{reason}{}", position(&error)));
    }
    match fault {
        Fault::Invalid(violation) => ParseError {
            kind: ParseErrorKind::Invalid,
            place: violation.place,
            message: violation.message,
        },
        // Both scanners know the same JSON, so this does not happen.
        Fault::Syntax | Fault::TooManyEvents => not_json("the syntax is wrong".to_owned()),
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.place.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.place, self.message)
        }
    }
}

impl std::error::Error for ParseError {}

#[cfg(test)]
mod tests;
