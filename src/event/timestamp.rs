//! Event times: which forms are taken, and what they become.
//!
//! A time is an ISO 8601 date-time. It is kept as the same instant in UTC, written `YYYY-MM-DDTHH:MM:SS[.fraction]Z`
//! with the digits of the fraction as they were sent.
//!
//! | part | taken | refused |
//! |---|---|---|
//! | date | `2025-10-23`, or `20251023` before a time without colons | week dates (`2025-W43-4`), ordinal dates (`2025-296`), a date alone |
//! | year | 0001 to 9999, in UTC | 0000, five digits, a sign |
//! | between | `T`, `t` or one space | anything else |
//! | time | `10:00:00`, `10:00`; `100000`, `1000` after a date without hyphens | hours alone, `24:00` |
//! | fraction | behind the seconds: `.` or `,` and 1 to 9 digits | more digits, a fraction of a minute |
//! | second 60 | as the last second of a day in UTC (a leap second): the first instant of the next day, as in POSIX time | anywhere else |
//! | offset | `Z`, `z`, `±HH`, `±HHMM`, `±HH:MM`, up to 23:59; none is UTC, `-00:00` too | seconds in an offset, names of zones (`[Europe/Berlin]`) |
//! | a number | | seconds or milliseconds since 1970 |

use crate::limits::MAX_FRACTION_DIGITS;
use jiff::{SignedDuration, civil};
use std::borrow::Cow;

/// A point in time, to the nanosecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant {
    /// Seconds since 1970 in UTC without leap seconds, rounded down.
    pub seconds: i64,
    /// Nanoseconds within the second.
    pub nanos: u32,
}

/// A valid event time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timestamp<'a> {
    /// In UTC, as it is kept: borrowed when it was sent like that.
    pub text: Cow<'a, str>,
    /// The same as a number.
    pub instant: Instant,
}

/// Why a time was refused, and what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TimestampError(String);

impl Instant {
    /// The instant of a time in any of the forms that events may use.
    pub fn parse(text: &str) -> Result<Self, TimestampError> {
        Timestamp::parse(text).map(|timestamp| timestamp.instant)
    }
}

impl<'a> Timestamp<'a> {
    /// Reads a time in any of the forms taken.
    pub fn parse(text: &'a str) -> Result<Self, TimestampError> {
        if let Some(instant) = parse_kept_form(text) {
            return Ok(Self {
                text: Cow::Borrowed(text),
                instant,
            });
        }
        Parts::parse(text)
            .and_then(Parts::into_utc)
            .map_err(|reason| {
                TimestampError(format!(
                    "{reason}; send an ISO 8601 date-time such as 2025-10-23T10:00:00.123Z or 2025-10-23T12:00:00+02:00"
                ))
            })
            .map(|(text, instant)| Self {
                text: Cow::Owned(text),
                instant,
            })
    }
}

/// Microseconds since 1970 as RFC 3339 in UTC, with six digits of fraction and `Z`. Beyond the years -9999 to 9999,
/// the nearest time within them.
pub fn format_micros(micros: i64) -> String {
    let nearest = if micros < 0 {
        jiff::Timestamp::MIN
    } else {
        jiff::Timestamp::MAX
    };
    format!(
        "{:.6}",
        jiff::Timestamp::from_microsecond(micros).unwrap_or(nearest)
    )
}

/// `YYYY-MM-DDTHH:MM:SS[.fraction]Z`, what nearly everyone sends and what is kept; `None` when it is anything else.
fn parse_kept_form(text: &str) -> Option<Instant> {
    let (head, tail) = text.as_bytes().split_first_chunk::<19>()?;
    let &[
        y1,
        y2,
        y3,
        y4,
        b'-',
        m1,
        m2,
        b'-',
        d1,
        d2,
        b'T',
        h1,
        h2,
        b':',
        n1,
        n2,
        b':',
        s1,
        s2,
    ] = head
    else {
        return None;
    };
    let year = number(&[y1, y2, y3, y4])?;
    let month = number(&[m1, m2])?;
    let day = number(&[d1, d2])?;
    let hour = number(&[h1, h2])?;
    let minute = number(&[n1, n2])?;
    let second = number(&[s1, s2])?;
    let (b'Z', fraction) = tail.split_last()? else {
        return None;
    };
    let nanos = match fraction {
        [] => 0,
        [b'.', digits @ ..] => fraction_nanos(digits)?,
        _ => return None,
    };
    if year == 0 || !(1..=12).contains(&month) || day == 0 || day > days_in(year, month) {
        return None;
    }
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let in_day = i64::from(hour * 3600 + minute * 60 + second);
    Some(Instant {
        seconds: days_since_1970(year, month, day) * 86_400 + in_day,
        nanos,
    })
}

/// Decimal digits as a number; `None` when one is not a digit.
#[inline]
fn number(digits: &[u8]) -> Option<u32> {
    let mut number = 0;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        number = number * 10 + u32::from(digit - b'0');
    }
    Some(number)
}

fn fraction_nanos(digits: &[u8]) -> Option<u32> {
    if digits.is_empty() || digits.len() > MAX_FRACTION_DIGITS {
        return None;
    }
    let missing = (MAX_FRACTION_DIGITS - digits.len()) as u32;
    Some(number(digits)? * 10_u32.pow(missing))
}

fn days_in(year: u32, month: u32) -> u32 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => 29,
        2 => 28,
        _ => 31,
    }
}

/// Days from 1970-01-01 in the Gregorian calendar, for years from 1.
fn days_since_1970(year: u32, month: u32, day: u32) -> i64 {
    // Years that begin in March put the leap day at their end, so a month's first day does not depend on it.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    // Days before a month of such a year: 0, 31, 61, 92 … which this line meets when rounded down.
    let before_month = (153 * month + 2) / 5;
    let days = 365 * year + year / 4 - year / 100 + year / 400 + before_month + day - 1;
    // 0000-03-01, where the count begins, is this many days before 1970-01-01.
    i64::from(days) - 719_468
}

/// A date-time as it was sent.
struct Parts<'a> {
    year: u32,
    month: u32,
    day: u32,
    hour: u32,
    minute: u32,
    second: u32,
    /// Without its point.
    fraction: &'a str,
    offset_minutes: i64,
}

impl<'a> Parts<'a> {
    fn parse(text: &'a str) -> Result<Self, String> {
        let mut rest = Cursor(text);
        refuse_other_notations(text)?;
        let year = rest.take(4).ok_or("the year must have four digits")?;
        let extended = rest.skip("-");
        if rest.0.starts_with(['W', 'w']) {
            return Err("week dates are not allowed".into());
        }
        let month = rest.take(2).ok_or("the month must have two digits")?;
        if extended && !rest.skip("-") {
            return Err(if rest.0.starts_with(|c: char| c.is_ascii_digit()) {
                "ordinal dates are not allowed".into()
            } else {
                "the day is missing".into()
            });
        }
        let day = rest.take(2).ok_or(if extended {
            "the day must have two digits"
        } else {
            "ordinal dates are not allowed"
        })?;
        if rest.0.is_empty() {
            return Err("the time of day is missing".into());
        }
        if !rest.skip("T") && !rest.skip("t") && !rest.skip(" ") {
            return Err("after the date `T` or one space must follow".into());
        }
        let hour = rest.take(2).ok_or("the hour must have two digits")?;
        if extended && !rest.skip(":") {
            return Err("after the hour `:` and the minute must follow".into());
        }
        let minute = rest.take(2).ok_or("the minute must have two digits")?;
        let mut second = 0;
        let mut fraction = "";
        let has_second = if extended {
            rest.skip(":")
        } else {
            rest.0.starts_with(|c: char| c.is_ascii_digit())
        };
        if has_second {
            second = rest.take(2).ok_or("the second must have two digits")?;
        }
        if rest.skip(".") || rest.skip(",") {
            if !has_second {
                return Err("a fraction is allowed behind the seconds only".into());
            }
            fraction = rest.digits();
            if fraction.is_empty() || fraction.len() > MAX_FRACTION_DIGITS {
                return Err(format!(
                    "the fraction must have 1 to {MAX_FRACTION_DIGITS} digits, not {}",
                    fraction.len()
                ));
            }
        }
        let offset_minutes = rest.offset()?;
        Ok(Self {
            year,
            month,
            day,
            hour,
            minute,
            second,
            fraction,
            offset_minutes,
        })
    }

    /// The time in the form that is kept, and its instant.
    fn into_utc(self) -> Result<(String, Instant), String> {
        const OUTSIDE: &str = "the year must be 0001 to 9999 in UTC";
        let Self { year, month, day, .. } = self;
        if !(1..=12).contains(&month) {
            return Err(format!("the month must be 01 to 12, not {month:02}"));
        }
        let days = days_in(year, month);
        if day == 0 || day > days {
            return Err(format!(
                "the day must be 01 to {days} in {year:04}-{month:02}, not {day:02}"
            ));
        }
        if self.hour > 23 {
            return Err(format!("the hour must be 00 to 23, not {:02}", self.hour));
        }
        if self.minute > 59 {
            return Err(format!("the minute must be 00 to 59, not {:02}", self.minute));
        }
        if self.second > 60 {
            return Err(format!("the second must be 00 to 59, not {:02}", self.second));
        }
        let leap = self.second == 60;
        let second = if leap { 59 } else { self.second };
        // All fields fit: they were checked just now.
        let local = civil::DateTime::new(
            year as i16,
            month as i8,
            day as i8,
            self.hour as i8,
            self.minute as i8,
            second as i8,
            0,
        )
        .map_err(|error| error.to_string())?;
        let mut utc = local
            .checked_sub(SignedDuration::from_mins(self.offset_minutes))
            .map_err(|_| OUTSIDE)?;
        if leap {
            if (utc.hour(), utc.minute()) != (23, 59) {
                return Err(
                    "the second 60 is allowed only as the last second of a day in UTC, 23:59:60".into(),
                );
            }
            utc = utc
                .checked_add(SignedDuration::from_secs(1))
                .map_err(|_| OUTSIDE)?;
        }
        if utc.year() < 1 {
            return Err(OUTSIDE.into());
        }
        let point = if self.fraction.is_empty() { "" } else { "." };
        let text = format!("{}{point}{}Z", utc.strftime("%Y-%m-%dT%H:%M:%S"), self.fraction);
        let instant = parse_kept_form(&text).ok_or(OUTSIDE)?;
        Ok((text, instant))
    }
}

/// Forms that are no date-time, but that people send: each gets its own answer.
fn refuse_other_notations(text: &str) -> Result<(), String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let behind = &text[digits..];
    if text.is_empty() {
        return Err("it is empty".into());
    }
    if text.starts_with(['+', '-']) {
        return Err("a sign before the year is not allowed".into());
    }
    let is_number = behind.is_empty()
        || behind
            .strip_prefix('.')
            .is_some_and(|fraction| fraction.bytes().all(|byte| byte.is_ascii_digit()));
    if is_number && digits != 8 && digits > 4 {
        return Err("a number of seconds or milliseconds is not allowed".into());
    }
    if digits > 4 && behind.starts_with('-') {
        return Err("the year must be 0001 to 9999".into());
    }
    if text.contains('[') {
        return Err("a time zone in brackets is not allowed".into());
    }
    Ok(())
}

/// What is left of a text.
struct Cursor<'a>(&'a str);

impl<'a> Cursor<'a> {
    fn skip(&mut self, prefix: &str) -> bool {
        match self.0.strip_prefix(prefix) {
            Some(rest) => {
                self.0 = rest;
                true
            }
            None => false,
        }
    }

    /// A number of exactly `digits` digits.
    fn take(&mut self, digits: usize) -> Option<u32> {
        let (taken, rest) = self.0.split_at_checked(digits)?;
        let number = number(taken.as_bytes())?;
        self.0 = rest;
        Some(number)
    }

    fn digits(&mut self) -> &'a str {
        let count = self.0.bytes().take_while(u8::is_ascii_digit).count();
        let (digits, rest) = self.0.split_at(count);
        self.0 = rest;
        digits
    }

    /// The offset from UTC, up to the end of the text.
    fn offset(&mut self) -> Result<i64, String> {
        const FORMS: &str = "the offset must be `Z`, `±HH`, `±HHMM` or `±HH:MM`, up to 23:59";
        if self.0.is_empty() {
            return Ok(0);
        }
        let minutes = if self.skip("Z") || self.skip("z") {
            0
        } else {
            let sign = if self.skip("-") {
                -1
            } else if self.skip("+") {
                1
            } else {
                return Err(FORMS.into());
            };
            let hours = self.take(2).filter(|hours| *hours < 24).ok_or(FORMS)?;
            let minutes = if self.skip(":") || !self.0.is_empty() {
                self.take(2).filter(|minutes| *minutes < 60).ok_or(FORMS)?
            } else {
                0
            };
            sign * i64::from(hours * 60 + minutes)
        };
        if self.0.is_empty() {
            Ok(minutes)
        } else {
            Err(FORMS.into())
        }
    }
}

#[cfg(test)]
mod tests;
