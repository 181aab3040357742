//! What an event is: parsed once at the edge, valid ever after.
//!
//! [`parse`] turns the bytes of a request into a [`Batch`]; nothing else makes one, so code that is handed an
//! [`Event`] never checks it again. The texts of a batch are slices of the body as it came in. A leaf: it names only
//! `limits`.

mod decimal;
mod fence;
mod fingerprint;
mod identity;
mod json;
mod parse;
mod timestamp;

pub use fence::Fence;
pub use fingerprint::{Fingerprint, PayloadError};
pub use identity::{Identity, Key};
pub use parse::{ParseError, ParseErrorKind, Shape, parse};
pub use timestamp::{Instant, Timestamp, TimestampError, format_micros};

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The number of an event in its store, from 1: the order in which all readers see the events. Without gaps in a file.
pub type Seq = u64;

/// A place in a batch's text.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// From byte `start` up to, not including, byte `end`. Bodies are bounded far below the four gigabytes that fit.
    pub(crate) fn new(start: usize, end: usize) -> Self {
        Self {
            start: start as u32,
            end: end as u32,
        }
    }
}

/// One event of a batch, as places in the batch's text.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    pub(crate) topic: Span,
    pub(crate) event_id: Span,
    pub(crate) source: Span,
    pub(crate) timestamp: Span,
    pub(crate) payload: Span,
    pub(crate) key: Key,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) seconds: i64,
}

/// The valid events of one request, in the order sent; at least one.
#[derive(Debug)]
pub struct Batch {
    text: String,
    records: Vec<Record>,
    fence: Option<Fence>,
}

/// One valid event; the texts are borrowed from its [`Batch`].
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    /// What the event is about; with `event_id` it is the event's identity.
    pub topic: &'a str,
    /// The producer's name for the event, unique within its topic.
    pub event_id: &'a str,
    /// Who sent it.
    pub source: &'a str,
    /// When it happened: RFC 3339 in UTC with `Z`, the fraction's digits as they were sent.
    pub timestamp: &'a str,
    /// A JSON object, byte for byte as it was sent.
    pub payload: &'a str,
    /// The keyed hash of `(topic, event_id)` in the store that the batch was parsed for.
    pub key: Key,
    /// The payload as a JSON value, in 64 bits.
    pub fingerprint: Fingerprint,
    /// Seconds of `timestamp` since 1970, rounded down.
    pub seconds: i64,
}

impl Batch {
    /// How many events there are; never zero.
    #[allow(clippy::len_without_is_empty, reason = "a batch is never empty")]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// How many bytes of text the events have together, at most the body's size and what normalising added.
    pub fn bytes(&self) -> usize {
        self.text.len()
    }

    /// The events in the order sent.
    pub fn events(&self) -> impl ExactSizeIterator<Item = Event<'_>> {
        self.records.iter().map(|record| Event {
            topic: self.slice(record.topic),
            event_id: self.slice(record.event_id),
            source: self.slice(record.source),
            timestamp: self.slice(record.timestamp),
            payload: self.slice(record.payload),
            key: record.key,
            fingerprint: record.fingerprint,
            seconds: record.seconds,
        })
    }

    /// The same events, committed only if nobody has the broker's partition after the holder of `fence`.
    pub fn behind(self, fence: Fence) -> Self {
        Self {
            fence: Some(fence),
            ..self
        }
    }

    /// What the store has to check before it commits the batch, if it came out of a broker.
    pub fn fence(&self) -> Option<Fence> {
        self.fence
    }

    fn slice(&self, span: Span) -> &str {
        &self.text[span.start as usize..span.end as usize]
    }
}

impl Event<'_> {
    /// Appends the event as JSON that [`parse`] makes the same event of, as [`Shape::Normalised`].
    ///
    /// # Errors
    /// None: strings always serialise, and a vector takes everything.
    pub fn write_json(&self, json: &mut Vec<u8>) -> Result<(), serde_json::Error> {
        for (name, text) in [
            (&b"{\"topic\":"[..], self.topic),
            (b",\"event_id\":", self.event_id),
            (b",\"timestamp\":", self.timestamp),
            (b",\"source\":", self.source),
        ] {
            json.extend_from_slice(name);
            serde_json::to_writer(&mut *json, text)?;
        }
        json.extend_from_slice(b",\"payload\":");
        json.extend_from_slice(self.payload.as_bytes());
        json.push(b'}');
        Ok(())
    }

    /// A 64-bit checksum of the texts (XXH3, each text seeded with the checksum so far, so that bytes cannot move from
    /// one field to the next unseen).
    pub fn checksum(&self) -> u64 {
        [
            self.topic,
            self.event_id,
            self.source,
            self.timestamp,
            self.payload,
        ]
        .iter()
        .fold(0, |sum, text| xxh3_64_with_seed(text.as_bytes(), sum))
    }
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is new and now in the store.
    Stored,
    /// Its identity was there already, with the same payload.
    Duplicate,
    /// Its identity was there already, with another payload; the first one stays. Counts as a duplicate too.
    Conflict,
}
