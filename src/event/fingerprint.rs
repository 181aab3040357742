//! A payload as a JSON value in 64 bits, made in one pass over its text.
//!
//! The same value has the same fingerprint: the order of keys, white space and escapes do not matter, and numbers
//! count as exact decimals (`1` = `1.0` = `10e-1`, `-0` = `0`). Fingerprints are kept for ever beside their events, so
//! this definition must never change:
//!
//! | value | hash |
//! |---|---|
//! | `null`, `true`, `false` | a constant each |
//! | string, key | XXH3 of its characters in UTF-8, seeded |
//! | number | see [`super::decimal`] |
//! | array | each item's hash hashed with the hash so far as seed, then their count |
//! | object | the sum of its members' hashes (the value's hash with the key's as seed), then their count |
//!
//! The same pass refuses what a payload may not have: nesting beyond
//! [`MAX_PAYLOAD_DEPTH`], duplicate keys, lone surrogates.

use super::{
    decimal,
    json::{Fault, RawString, Scanner, shown, unescape},
};
use crate::limits::MAX_PAYLOAD_DEPTH;
use std::borrow::Cow;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// A payload's value. Two payloads with the same one are taken to be the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub u64);

/// Why a payload was refused.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {message}")]
pub struct PayloadError {
    /// Where, from the payload inwards: `payload.tags[2]`.
    pub place: String,
    /// What is wrong, and what is allowed.
    pub message: String,
}

impl Fingerprint {
    /// The fingerprint of a payload, if it is a valid one.
    pub fn of(payload: &str) -> Result<Self, PayloadError> {
        let mut scanner = Scanner::new(payload, 0);
        let fingerprint = Fingerprinter::default()
            .payload(&mut scanner)
            .and_then(|fingerprint| scanner.finish().map(|()| fingerprint));
        fingerprint.map_err(|fault| match fault.inside("payload") {
            Fault::Invalid(violation) => PayloadError {
                place: violation.place,
                message: violation.message,
            },
            Fault::Syntax | Fault::TooManyEvents => PayloadError {
                place: "payload".to_owned(),
                message: format!("is not JSON (near byte {})", scanner.at()),
            },
        })
    }
}

// Constants and seeds that keep the kinds apart.
const NULL: u64 = 0x6e75_6c6c_0000_0001;
const TRUE: u64 = 0x7472_7565_0000_0002;
const FALSE: u64 = 0x6661_6c73_0000_0003;
const STRING: u64 = 0x7374_7269_6e67_0004;
const ARRAY: u64 = 0x6172_7261_7900_0005;
const OBJECT: u64 = 0x6f62_6a65_6374_0006;

/// Up to this many keys of an object are compared each with each, which is faster than sorting.
const FEW_KEYS: usize = 16;

/// Makes fingerprints; keeps its buffers from one payload to the next.
#[derive(Default)]
pub(super) struct Fingerprinter {
    /// The keys of all objects that are open, innermost last.
    keys: Vec<Key>,
    unescaped: String,
}

/// A key of an object.
#[derive(Clone, Copy)]
struct Key {
    hash: u64,
    /// Where it stands in the scanner's text, without its quotes.
    start: usize,
    end: usize,
}

impl Fingerprinter {
    /// The fingerprint of the object that comes next.
    pub(super) fn payload(&mut self, scanner: &mut Scanner<'_>) -> Result<Fingerprint, Fault> {
        if scanner.peek() != Some(b'{') {
            return Err(scanner.mismatch("an object"));
        }
        self.keys.clear();
        self.keys.reserve(FEW_KEYS);
        self.object(scanner, 1).map(Fingerprint)
    }

    fn value(&mut self, scanner: &mut Scanner<'_>, depth: usize) -> Result<u64, Fault> {
        match scanner.peek() {
            Some(b'"') => {
                let string = scanner.string()?;
                self.string(&string)
            }
            Some(b'-' | b'0'..=b'9') => decimal::hash(&scanner.number()?),
            Some(b'{') => self.object(scanner, depth),
            Some(b'[') => self.array(scanner, depth),
            Some(b'n') => scanner.literal("null").map(|()| NULL),
            Some(b't') => scanner.literal("true").map(|()| TRUE),
            Some(b'f') => scanner.literal("false").map(|()| FALSE),
            _ => Err(Fault::Syntax),
        }
    }

    fn string(&mut self, string: &RawString<'_>) -> Result<u64, Fault> {
        if !string.escaped {
            return Ok(xxh3_64_with_seed(string.raw.as_bytes(), STRING));
        }
        self.unescaped.clear();
        unescape(string.raw, &mut self.unescaped)?;
        Ok(xxh3_64_with_seed(self.unescaped.as_bytes(), STRING))
    }

    fn array(&mut self, scanner: &mut Scanner<'_>, depth: usize) -> Result<u64, Fault> {
        check_depth(depth)?;
        scanner.expect(b'[')?;
        let mut hash = ARRAY;
        let mut count = 0;
        while scanner.next_item(b']', count == 0)? {
            let item = self
                .value(scanner, depth + 1)
                .map_err(|fault| fault.inside(&format!("[{count}]")))?;
            hash = chain(item, hash);
            count += 1;
        }
        Ok(chain(count, hash))
    }

    fn object(&mut self, scanner: &mut Scanner<'_>, depth: usize) -> Result<u64, Fault> {
        check_depth(depth)?;
        scanner.expect(b'{')?;
        let first = self.keys.len();
        let mut sum = OBJECT;
        while scanner.next_item(b'}', self.keys.len() == first)? {
            let key = scanner.key()?;
            let key_hash = self.string(&key).map_err(|fault| fault.inside_key(key.raw))?;
            self.keys.push(Key {
                hash: key_hash,
                start: key.start,
                end: key.start + key.raw.len(),
            });
            let value = self
                .value(scanner, depth + 1)
                .map_err(|fault| fault.inside_key(key.raw))?;
            sum = sum.wrapping_add(chain(value, key_hash));
        }
        let keys = &mut self.keys[first..];
        let count = keys.len() as u64;
        refuse_duplicates(keys, scanner.text())?;
        self.keys.truncate(first);
        Ok(chain(count, sum))
    }
}

fn chain(value: u64, seed: u64) -> u64 {
    xxh3_64_with_seed(&value.to_le_bytes(), seed)
}

fn check_depth(depth: usize) -> Result<(), Fault> {
    if depth > MAX_PAYLOAD_DEPTH {
        return Err(Fault::invalid(format!(
            "is nested deeper than the {MAX_PAYLOAD_DEPTH} levels allowed"
        )));
    }
    Ok(())
}

/// Refuses keys that are the same when their escapes are gone. Exact: hashes only choose which keys are compared.
/// May reorder the keys.
fn refuse_duplicates(keys: &mut [Key], text: &str) -> Result<(), Fault> {
    if keys.len() <= FEW_KEYS {
        for (i, key) in keys.iter().enumerate() {
            for other in &keys[..i] {
                if key.hash == other.hash && key.unescaped(text) == other.unescaped(text) {
                    return Err(key.duplicate(text));
                }
            }
        }
        return Ok(());
    }
    // Keys with one hash but different texts can be crafted, so within a hash the texts are sorted too.
    keys.sort_unstable_by(|a, b| {
        a.hash
            .cmp(&b.hash)
            .then_with(|| a.unescaped(text).cmp(&b.unescaped(text)))
    });
    for pair in keys.windows(2) {
        if pair[0].hash == pair[1].hash && pair[0].unescaped(text) == pair[1].unescaped(text) {
            return Err(pair[1].duplicate(text));
        }
    }
    Ok(())
}

impl Key {
    fn unescaped<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let raw = &text[self.start..self.end];
        if !raw.contains('\\') {
            return Cow::Borrowed(raw);
        }
        let mut unescaped = String::new();
        // It was unescaped before, to be hashed: it cannot fail.
        let _ = unescape(raw, &mut unescaped);
        Cow::Owned(unescaped)
    }

    fn duplicate(&self, text: &str) -> Fault {
        Fault::invalid(format!(
            "has the key `{}` more than once",
            shown(&self.unescaped(text))
        ))
    }
}

#[cfg(test)]
mod tests;
