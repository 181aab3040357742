//! A scanner over one JSON text, for the two places that read every byte of a publish body: events and payloads.
//!
//! It hands out slices of the text and allocates nothing. It accepts exactly what RFC 8259 calls JSON; that it agrees
//! with `serde_json` is tested. What is wrong is a [`Fault`]: whoever asked turns it into an error for the sender.

use std::fmt::Write;

/// Why scanning stopped.
#[derive(Debug)]
pub(super) enum Fault {
    /// The text is not JSON. Where and why is found out by `serde_json`, whose messages people know.
    Syntax,
    /// It is JSON, but breaks a rule.
    Invalid(Box<Violation>),
    /// There are more events than the request may have.
    TooManyEvents,
}

/// Which rule is broken, and where.
#[derive(Debug)]
pub(super) struct Violation {
    /// From outside in: `events[3].payload.tags[2]`; empty for the text as a whole.
    pub(super) place: String,
    /// What is wrong, and what is allowed.
    pub(super) message: String,
}

/// Characters of a name from the body that a message repeats.
const SHOWN_CHARS: usize = 40;

impl Fault {
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid(Box::new(Violation {
            place: String::new(),
            message: message.into(),
        }))
    }

    /// The same, seen from the value around it.
    pub(super) fn inside(mut self, segment: &str) -> Self {
        if let Self::Invalid(violation) = &mut self {
            let joint = match violation.place.chars().next() {
                None | Some('[') => "",
                Some(_) => ".",
            };
            violation.place = format!("{segment}{joint}{}", violation.place);
        }
        self
    }

    /// The same, seen from the object that has it under `key` (as it stands in the text, without its quotes).
    pub(super) fn inside_key(self, key: &str) -> Self {
        if !key.is_empty() && key.chars().all(|c| c.is_alphanumeric() || "_-$@".contains(c)) {
            self.inside(&shown(key))
        } else {
            self.inside(&format!("[\"{}\"]", shown(key)))
        }
    }
}

/// A name from the body in a form that a message can hold: cut, and without control characters.
pub(super) fn shown(name: &str) -> String {
    let mut shown = String::new();
    for c in name.chars().take(SHOWN_CHARS) {
        if c.is_control() {
            // Writing to a string cannot fail.
            let _ = write!(shown, "{}", c.escape_unicode());
        } else {
            shown.push(c);
        }
    }
    if name.chars().nth(SHOWN_CHARS).is_some() {
        shown.push('…');
    }
    shown
}

/// A string as it stands in the text.
#[derive(Clone, Copy)]
pub(super) struct RawString<'a> {
    /// What is between the quotes.
    pub(super) raw: &'a str,
    /// Where `raw` begins in the scanner's text.
    pub(super) start: usize,
    /// Whether there is a backslash in `raw`: then [`unescape`] is needed, and checks it.
    pub(super) escaped: bool,
}

/// A number as it stands in the text.
#[derive(Clone, Copy, Debug)]
pub(super) struct RawNumber<'a> {
    pub(super) negative: bool,
    /// The digits before the point; at least one.
    pub(super) integer: &'a str,
    /// The digits behind the point; none when there is no point.
    pub(super) fraction: &'a str,
    pub(super) exponent_negative: bool,
    /// The digits of the exponent; none when there is no exponent.
    pub(super) exponent: &'a str,
}

/// A position in a text.
pub(super) struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scanner<'a> {
    /// Starts at the byte `at` of the text.
    pub(super) fn new(text: &'a str, at: usize) -> Self {
        Self { text, at }
    }

    /// The text, from its beginning.
    pub(super) fn text(&self) -> &'a str {
        self.text
    }

    /// The position in bytes.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// Skips white space and shows the next byte.
    #[inline]
    pub(super) fn peek(&mut self) -> Option<u8> {
        match self.byte() {
            Some(b' ' | b'\n' | b'\r' | b'\t') => self.peek_behind_space(),
            other => other,
        }
    }

    /// Apart from [`Self::peek`], because bodies made by programs have no white space.
    #[cold]
    fn peek_behind_space(&mut self) -> Option<u8> {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.byte() {
            self.at += 1;
        }
        self.byte()
    }

    /// Skips white space and the byte that has to follow.
    #[inline]
    pub(super) fn expect(&mut self, byte: u8) -> Result<(), Fault> {
        if self.peek() != Some(byte) {
            return Err(Fault::Syntax);
        }
        self.at += 1;
        Ok(())
    }

    /// Whether an array or object that ends with `close` goes on; `first` before its first item. Skips the comma or
    /// the end.
    #[inline]
    pub(super) fn next_item(&mut self, close: u8, first: bool) -> Result<bool, Fault> {
        match self.peek() {
            Some(byte) if byte == close => {
                self.at += 1;
                Ok(false)
            }
            Some(_) if first => Ok(true),
            Some(b',') => {
                self.at += 1;
                Ok(true)
            }
            _ => Err(Fault::Syntax),
        }
    }

    /// A key of an object, and the colon behind it.
    #[inline]
    pub(super) fn key(&mut self) -> Result<RawString<'a>, Fault> {
        let key = self.string()?;
        self.expect(b':')?;
        Ok(key)
    }

    /// A string. Its escapes are not checked yet.
    #[inline]
    pub(super) fn string(&mut self) -> Result<RawString<'a>, Fault> {
        self.expect(b'"')?;
        let start = self.at;
        let mut escaped = false;
        loop {
            self.skip_plain();
            match self.byte() {
                Some(b'"') => break,
                Some(b'\\') => {
                    escaped = true;
                    self.at += 2;
                }
                // A control character, or the end of the text.
                _ => return Err(Fault::Syntax),
            }
        }
        let raw = &self.text[start..self.at];
        self.at += 1;
        Ok(RawString { raw, start, escaped })
    }

    pub(super) fn literal(&mut self, literal: &str) -> Result<(), Fault> {
        let rest = &self.text.as_bytes()[self.at..];
        if !rest.starts_with(literal.as_bytes()) {
            return Err(Fault::Syntax);
        }
        self.at += literal.len();
        Ok(())
    }

    pub(super) fn number(&mut self) -> Result<RawNumber<'a>, Fault> {
        let negative = self.skip_if(b'-');
        let integer = self.digits();
        if integer.is_empty() || (integer.len() > 1 && integer.starts_with('0')) {
            return Err(Fault::Syntax);
        }
        let mut fraction = "";
        if self.skip_if(b'.') {
            fraction = self.digits();
            if fraction.is_empty() {
                return Err(Fault::Syntax);
            }
        }
        let mut exponent_negative = false;
        let mut exponent = "";
        if self.skip_if(b'e') || self.skip_if(b'E') {
            exponent_negative = self.skip_if(b'-');
            if !exponent_negative {
                self.skip_if(b'+');
            }
            exponent = self.digits();
            if exponent.is_empty() {
                return Err(Fault::Syntax);
            }
        }
        Ok(RawNumber {
            negative,
            integer,
            fraction,
            exponent_negative,
            exponent,
        })
    }

    /// The fault of a value that is not what it `must be`.
    pub(super) fn mismatch(&mut self, must_be: &str) -> Fault {
        let found = match self.peek() {
            Some(b'{') => "an object",
            Some(b'[') => "an array",
            Some(b'"') => "a string",
            Some(b'-' | b'0'..=b'9') => "a number",
            Some(b't' | b'f') => "a boolean",
            Some(b'n') => "null",
            _ => return Fault::Syntax,
        };
        Fault::invalid(format!("must be {must_be}, not {found}"))
    }

    /// Only white space may be left.
    pub(super) fn finish(&mut self) -> Result<(), Fault> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(Fault::Syntax),
        }
    }

    #[inline]
    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip_if(&mut self, byte: u8) -> bool {
        let found = self.byte() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn digits(&mut self) -> &'a str {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.byte() {
            self.at += 1;
        }
        &self.text[start..self.at]
    }

    /// Goes to the next quote, backslash or control character, eight bytes at a time.
    #[inline]
    fn skip_plain(&mut self) {
        let mut rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
        while let Some((word, behind)) = rest.split_first_chunk::<8>() {
            let found = special_bytes(u64::from_le_bytes(*word));
            if found != 0 {
                self.at += (found.trailing_zeros() / 8) as usize;
                return;
            }
            self.at += 8;
            rest = behind;
        }
        while let Some(byte) = self.byte() {
            if byte == b'"' || byte == b'\\' || byte < 0x20 {
                return;
            }
            self.at += 1;
        }
    }
}

/// Sets the top bit of the lowest byte of `word` that is a quote, a backslash or a control character; bits above it
/// mean nothing, none below it is set.
///
/// The usual way to find a zero byte in a word: `x - 1` borrows into the top bit only of a byte that was zero, as long
/// as no byte below it was.
#[inline]
fn special_bytes(word: u64) -> u64 {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    let quote = word ^ (ONES * b'"' as u64);
    let backslash = word ^ (ONES * b'\\' as u64);
    let quotes = quote.wrapping_sub(ONES) & !quote;
    let backslashes = backslash.wrapping_sub(ONES) & !backslash;
    let controls = word.wrapping_sub(ONES * 0x20) & !word;
    (quotes | backslashes | controls) & (ONES * 0x80)
}

/// Appends what a string with escapes stands for.
pub(super) fn unescape(raw: &str, out: &mut String) -> Result<(), Fault> {
    let mut rest = raw;
    while let Some((plain, escape)) = rest.split_once('\\') {
        out.push_str(plain);
        let simple = match escape.as_bytes().first() {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                let (c, behind) = unicode_escape(&escape[1..])?;
                out.push(c);
                rest = behind;
                continue;
            }
            _ => return Err(Fault::Syntax),
        };
        out.push(simple);
        rest = &escape[1..];
    }
    out.push_str(rest);
    Ok(())
}

/// The character of the digits behind `\u`, with the second half of a surrogate pair, and what follows.
fn unicode_escape(digits: &str) -> Result<(char, &str), Fault> {
    let (unit, behind) = code_unit(digits).ok_or(Fault::Syntax)?;
    if let Some(c) = char::from_u32(unit) {
        return Ok((c, behind));
    }
    if unit < 0xDC00
        && let Some((low @ 0xDC00..=0xDFFF, behind)) = behind.strip_prefix("\\u").and_then(code_unit)
        && let Some(c) = char::from_u32(0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00))
    {
        return Ok((c, behind));
    }
    Err(Fault::invalid(format!(
        "has a lone surrogate `\\u{unit:04x}`; surrogates are allowed in pairs only"
    )))
}

fn code_unit(digits: &str) -> Option<(u32, &str)> {
    let (digits, behind) = digits.split_at_checked(4)?;
    // `from_str_radix` would take a sign too.
    if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    Some((u32::from_str_radix(digits, 16).ok()?, behind))
}
